//! Keeping a fold inside its memory: fewer shards at once, then merges beforehand. Pure.
//!
//! One fold holds a reader per link. When that, times the shards in flight, is more than the
//! budget, the window shrinks to a few shards; when that is not enough, neighbouring
//! increments are first merged into local sorted runs, which are steps of the plan like any
//! other: in the progress, and found again after a restart.

use super::plan::{Piece, PlanInputs, PlanShard, PlanStep, PlanTable};
use crate::byte_size::ByteSize;
use crate::collection::chain::TableLink;
use crate::collection::manifest::TableMode;
use crate::collection::part::PartKind;
use crate::collection::run::{
    LinkCost, RunBudget, RunInput, RunPlan, part_memory_bytes, plan_runs, run_writer_memory_bytes,
};
use crate::error::{Error, Kind, Result};
use crate::operation::WINDOW_MAX;

/// Shards in flight below which merging beforehand is better than waiting for one another:
/// enough for one to read while another writes.
const WINDOW_BEFORE_MERGING: u32 = 2;

/// No machine has more memory than two to the power of this, in MiB.
const MEMORY_MIB_BITS: u32 = 24;

/// Memory of the process besides the shards: code, catalog, manifests.
const PROCESS_BYTES: u64 = 32 << 20;

/// What the allocator and the stacks of threads take beyond what is asked of them, as a
/// divisor of the rest: a fold of 400 links that was planned for 256 MiB had 222 MiB
/// resident, but reserved more than 256.
const OVERHEAD_DIVISOR: u64 = 8;

/// A shard's chunk, the next one that is read meanwhile, and the pages that a chunk dirties.
const CHUNK_BYTES: u64 = 16 << 20;

/// Rows from this size on may take more than the memory; below it, the memory is what is
/// too small.
const LARGE_ROW_BYTES: u64 = 8 << 20;

/// How often a restore holds its greatest row: in its frame, its page, the batch of its link,
/// its chunk, and in the pages of the target's transaction.
const LARGE_ROW_FACTOR: u64 = 5;

/// What fits.
#[derive(Debug)]
pub(super) struct Fitted {
    /// Shards in flight.
    pub(super) window: u32,
    /// Shards in flight that would fit, whatever was asked for.
    pub(super) window_max: u32,
    /// Merges per table.
    pub(super) runs: Vec<RunPlan>,
}

/// Chooses window and merges for folds of `links`, one list per table.
///
/// # Errors
/// [`Kind::Usage`](crate::Kind::Usage) when not even one shard with merges fits.
pub(super) fn fit(
    inputs: &PlanInputs<'_>,
    links: &[Vec<TableLink<'_>>],
    shard_count: u32,
    notices: &mut Vec<String>,
) -> Result<Fitted> {
    let costs: Vec<Vec<LinkCost>> =
        links.iter().map(|links| links.iter().map(link_cost).collect()).collect();
    let greatest = costs.iter().map(|costs| open_bytes(costs)).max().unwrap_or(0);
    let memory = shard_memory_bytes(inputs.memory_bytes);
    let window_max = fitting(memory, greatest);
    let window = window_max.min(inputs.window);
    if window >= WINDOW_BEFORE_MERGING.min(inputs.window) {
        // Whoever has no more shards than fit is limited by nothing.
        if window < inputs.window.min(shard_count) {
            notices.push(format!(
                "{window} shards at once fit the memory of {}",
                ByteSize(inputs.memory_bytes)
            ));
        }
        let runs = costs.iter().map(|costs| unmerged(costs)).collect();
        return Ok(Fitted { window, window_max, runs });
    }
    let mut refused: Option<Error> = None;
    for window in (1..=WINDOW_BEFORE_MERGING.min(inputs.window)).rev() {
        let bytes = (memory / u64::from(window)).saturating_sub(CHUNK_BYTES);
        let merged: Result<Vec<RunPlan>> = links
            .iter()
            .zip(&costs)
            .map(|(links, costs)| plan_runs(costs, budget(bytes, links, costs)))
            .collect();
        match merged {
            Err(error) => refused = Some(error),
            Ok(runs) => {
                let count: usize = runs.iter().map(|runs| runs.runs.len()).sum();
                notices.push(format!(
                    "the chain is too long for {} of memory at once: {count} merges come first, \
                     and {window} shards run at once",
                    ByteSize(inputs.memory_bytes)
                ));
                return Ok(Fitted { window, window_max: window, runs });
            }
        }
    }
    let refused = refused.expect("at least one window was tried and refused");
    if let Some(fitted) = fit_large_row(inputs, links, &costs, notices) {
        return fitted;
    }
    let Some(least) = least_memory(inputs.memory_bytes, links, &costs) else {
        return Err(refused);
    };
    let message = format!(
        "the chain cannot be folded within the memory of {}: the least that suffices, for one shard \
         at a time, is {}MiB",
        ByteSize(inputs.memory_bytes),
        least >> 20
    );
    Err(Error::new(Kind::Usage, message))
}

/// The least memory, in whole MiB, that one shard at a time fits with merges.
fn least_memory(beyond: u64, links: &[Vec<TableLink<'_>>], costs: &[Vec<LinkCost>]) -> Option<u64> {
    let fits = |mib: u64| {
        let bytes = shard_memory_bytes(mib << 20).saturating_sub(CHUNK_BYTES);
        let mut tables = links.iter().zip(costs);
        tables.all(|(links, costs)| plan_runs(costs, budget(bytes, links, costs)).is_ok())
    };
    // More memory never fits less: the first power of two that does, then halves below it.
    let mut below = beyond >> 20;
    let mut least =
        (0..=MEMORY_MIB_BITS).map(|bits| 1 << bits).find(|mib| *mib > below && fits(*mib))?;
    while least - below > 1 {
        let middle = below + (least - below) / 2;
        match fits(middle) {
            true => least = middle,
            false => below = middle,
        }
    }
    Some(least << 20)
}

/// What all shards in flight may ask for together.
fn shard_memory_bytes(memory_bytes: u64) -> u64 {
    let bytes = memory_bytes.saturating_sub(PROCESS_BYTES);
    bytes - bytes / OVERHEAD_DIVISOR
}

/// One shard at a time beyond the memory, by what a reader holds of the greatest row; `None`
/// if rows are not what is too large.
fn fit_large_row(
    inputs: &PlanInputs<'_>,
    links: &[Vec<TableLink<'_>>],
    costs: &[Vec<LinkCost>],
    notices: &mut Vec<String>,
) -> Option<Result<Fitted>> {
    let row_bytes = large_row_bytes(links.iter().flatten())?;
    let memory = shard_memory_bytes(inputs.memory_bytes).saturating_sub(CHUNK_BYTES);
    let bytes = memory.saturating_add(row_bytes.saturating_mul(LARGE_ROW_FACTOR));
    let runs: Result<Vec<RunPlan>> = links
        .iter()
        .zip(costs)
        .map(|(links, costs)| plan_runs(costs, budget(bytes, links, costs)))
        .collect();
    Some(runs.map(|runs| {
        notices.push(format!(
            "a row of {} takes {LARGE_ROW_FACTOR} times its size beyond the memory of {}",
            ByteSize(row_bytes),
            ByteSize(inputs.memory_bytes)
        ));
        Fitted { window: 1, window_max: 1, runs }
    }))
}

/// Bytes of the greatest row, if it may take more than the memory.
fn large_row_bytes<'l>(links: impl Iterator<Item = &'l TableLink<'l>>) -> Option<u64> {
    let parts = links.flat_map(|link| &link.entry.parts);
    parts.map(|part| part.row_bytes_max).max().filter(|bytes| *bytes >= LARGE_ROW_BYTES)
}

/// Merges that let one fold of a table's whole chain fit the memory: what its proof reads when
/// the source told no digest.
///
/// # Errors
/// [`Kind::Usage`](crate::Kind::Usage) when not even merges fit.
pub(super) fn proof_runs(memory_bytes: u64, links: &[TableLink<'_>]) -> Result<RunPlan> {
    let costs: Vec<LinkCost> = links.iter().map(link_cost).collect();
    let large = large_row_bytes(links.iter()).unwrap_or(0).saturating_mul(LARGE_ROW_FACTOR);
    let bytes = shard_memory_bytes(memory_bytes).saturating_sub(CHUNK_BYTES).saturating_add(large);
    plan_runs(&costs, budget(bytes, links, &costs))
}

/// Shards of a sequential plan that fit: each holds one link at a time.
pub(super) fn sequential_window_max(memory_bytes: u64, links: &[Vec<TableLink<'_>>]) -> u32 {
    let greatest = links.iter().flatten().map(|link| link_cost(link).open_bytes).max();
    fitting(shard_memory_bytes(memory_bytes), greatest.unwrap_or(0)).max(1)
}

fn fitting(memory: u64, open_bytes: u64) -> u32 {
    let fitting = memory / (open_bytes + CHUNK_BYTES).max(1);
    u32::try_from(fitting).unwrap_or(u32::MAX).min(WINDOW_MAX)
}

/// Puts the merges of all tables in front of the steps that need them, level by level.
pub(super) fn with_merges(tables: &[PlanTable], steps: Vec<PlanStep>) -> Vec<PlanStep> {
    let Some(span) = steps.first().map(|step| step.links) else { return steps };
    let mut levels: Vec<Vec<PlanShard>> = Vec::new();
    for (table, plan) in (0u32..).zip(tables) {
        let mut level_of: Vec<usize> = Vec::new();
        for (run, planned) in (0u32..).zip(&plan.runs.runs) {
            let below = planned.inputs.iter().filter_map(|input| match input {
                RunInput::Link(_) => None,
                RunInput::Run(run) => Some(level_of[*run as usize] + 1),
            });
            let level = below.max().unwrap_or(0);
            level_of.push(level);
            if levels.len() <= level {
                levels.resize(level + 1, Vec::new());
            }
            let bytes = planned.row_bytes;
            levels[level].push(PlanShard { table, piece: Piece::Merge(run), rows: 0, bytes });
        }
    }
    let merges = levels.into_iter().map(|shards| PlanStep { links: span, shards });
    merges.chain(steps).collect()
}

fn unmerged(costs: &[LinkCost]) -> RunPlan {
    let last = (0..costs.len() as u32).map(|at| RunInput::Link(crate::ids::LinkIdx(at))).collect();
    RunPlan { runs: Vec::new(), last }
}

fn open_bytes(costs: &[LinkCost]) -> u64 {
    costs.iter().map(|cost| cost.open_bytes).sum()
}

fn link_cost(link: &TableLink<'_>) -> LinkCost {
    let kind = match link.entry.mode {
        TableMode::Whole => PartKind::Full,
        TableMode::Delta => PartKind::Increment,
    };
    let columns = link.entry.schema.columns.len() as u32;
    let parts = &link.entry.parts;
    let open_bytes = parts.iter().map(|part| part_memory_bytes(part, columns, kind)).max();
    let row_bytes = parts.iter().map(|part| part.row_bytes).sum();
    LinkCost { kind, open_bytes: open_bytes.unwrap_or(0), row_bytes }
}

fn budget(bytes: u64, links: &[TableLink<'_>], costs: &[LinkCost]) -> RunBudget {
    let columns = links.iter().map(|link| link.entry.schema.columns.len()).max().unwrap_or(0);
    let increments = links.iter().filter(|link| link.entry.mode == TableMode::Delta);
    let greatest = increments.flat_map(|link| &link.entry.parts).map(|part| part.row_bytes_max);
    let writer_bytes = run_writer_memory_bytes(columns as u32, greatest.max().unwrap_or(0));
    let reader_bytes_max = costs.iter().map(|cost| cost.open_bytes).max().unwrap_or(0);
    RunBudget { bytes, writer_bytes, reader_bytes_max }
}
