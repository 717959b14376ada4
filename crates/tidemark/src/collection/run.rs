//! Bounded fan-in: when a chain is too long for the memory budget, neighbouring
//! increments are first merged into local sorted runs.
//!
//! [`plan_runs`] is pure: from what each link costs to hold open it plans a tree of
//! merges, so that no merge and not the final fold exceed the budget. [`RunWriter`]
//! does one merge; its outcome is on disk, found again by [`open_run`] after a restart.
//!
//! A run is an increment's part like any other, so the final fold reads it the same way.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::byte_size::ByteSize;
use crate::collection::fold::{Fold, FoldMode, FoldOptions};
use crate::collection::manifest::PartEntry;
use crate::collection::part::{PartKind, PartOptions, PartWriter};
use crate::database::LinkTally;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{Attempt, LinkIdx, TableId};
use crate::row::{RowBatch, RowStream, Schema};

/// Compressed bytes of a run's row group: smaller than a backup's, since the writer shares
/// the budget with the readers it merges.
const RUN_GROUP_BYTES_MAX: u64 = 2 << 20;

/// Bytes of a reader or writer besides what grows with columns and rows.
const BASE_BYTES: u64 = 32 << 10;

/// Bytes of a column's cursor or encoder, name and descriptions included.
const COLUMN_BYTES: u64 = 512;

/// Bytes of a chunk's extent while the footer is decoded: its text and what is kept.
const CHUNK_BYTES: u64 = 256;

/// Bytes that columns hold for a row beyond its key and payload: operation and lengths.
const ROW_EXTRA_BYTES: u64 = 16;

/// Peak bytes of one open reader of `part`, the batch in front of it included.
///
/// Per column a page and a window, unless the largest row group has less; the batch with
/// its doubling; the footer while it is read; and three times the greatest row if that is
/// more than a page: in its frame, its page and its batch. `tests/memory_parts.rs` holds
/// it against what an allocator counts. A zstd context of the thread, about 200 KiB, is
/// shared by all its readers and not in it.
pub fn part_memory_bytes(part: &PartEntry, column_count: u32, kind: PartKind) -> u64 {
    let columns = u64::from(column_count) + 2;
    let page_bytes = kind.page_bytes_max(columns as u32);
    let group_bytes = part
        .row_groups
        .iter()
        .map(|group| group.row_bytes.saturating_add(group.rows.saturating_mul(ROW_EXTRA_BYTES)))
        .max()
        .unwrap_or(0);
    // A page and half of it as a window.
    let columns_bytes = (columns * page_bytes * 3 / 2).min(group_bytes.saturating_mul(2));
    let large_bytes =
        if part.row_bytes_max > page_bytes { part.row_bytes_max.saturating_mul(3) } else { 0 };
    let batch_bytes = 2 * kind.batch_bytes_max().min(part.row_bytes);
    let footer_bytes = part.row_groups.len() as u64 * columns * CHUNK_BYTES;
    BASE_BYTES
        .saturating_add(columns * COLUMN_BYTES)
        .saturating_add(columns_bytes)
        .saturating_add(large_bytes)
        .saturating_add(batch_bytes)
        .saturating_add(footer_bytes)
}

/// Peak bytes of a run's writer, the batch in front of it included.
pub fn run_writer_memory_bytes(column_count: u32, row_bytes_max: u64) -> u64 {
    let columns = u64::from(column_count) + 2;
    let page_bytes = PartKind::Increment.page_bytes_max(columns as u32);
    // Vectors double, and an open page stands beside its compressed form.
    let batch_bytes = 2 * FoldOptions::new(FoldMode::ToIncrement).bytes_max;
    let held = 2 * (RUN_GROUP_BYTES_MAX + columns * page_bytes) + batch_bytes;
    BASE_BYTES
        .saturating_add(columns * COLUMN_BYTES)
        .saturating_add(held)
        .saturating_add(row_bytes_max.saturating_mul(4))
}

/// What a link costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCost {
    /// Only increments are merged; a full stays as it is.
    pub kind: PartKind,
    /// Peak bytes while it is read: the greatest [`part_memory_bytes`] of its parts, since
    /// one is open at a time.
    pub open_bytes: u64,
    /// Key and payload bytes: what merging it rewrites.
    pub row_bytes: u64,
}

/// What merges must fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunBudget {
    /// Bytes for the readers of a fold, or the readers and the writer of a merge.
    pub bytes: u64,
    /// See [`run_writer_memory_bytes`].
    pub writer_bytes: u64,
    /// Peak bytes of a reader of a run of any length; it is never more than its inputs'.
    pub reader_bytes_max: u64,
}

/// Something a merge or the final fold reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunInput {
    /// A link of the chain.
    Link(LinkIdx),
    /// An earlier merge of the plan, 0-based.
    Run(u32),
}

/// Merges in the order in which they are done, and what is left for the final fold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPlan {
    /// Each merges neighbours, oldest first; a run is made before it is read.
    pub runs: Vec<PlannedRun>,
    /// Inputs of the final fold, oldest first.
    pub last: Vec<RunInput>,
}

/// One merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRun {
    /// Neighbours, oldest first; at least two.
    pub inputs: Vec<RunInput>,
    /// Key and payload bytes that it reads: its weight in the progress.
    pub row_bytes: u64,
}

/// Plans merges of neighbouring increments until all that is left fits the budget.
///
/// Greedy: merge the window that rewrites the fewest bytes per byte of memory it frees, or,
/// once a single window is enough, the cheapest one that is. Small neighbours go first, and
/// runs are merged again when needed. The same costs give the same plan.
///
/// # Errors
/// [`Kind::Usage`] if even two inputs and a writer do not fit, with what would be enough.
pub fn plan_runs(links: &[LinkCost], budget: RunBudget) -> Result<RunPlan> {
    let mut left: Vec<(RunInput, LinkCost)> =
        (0..).zip(links).map(|(at, cost)| (RunInput::Link(LinkIdx(at)), *cost)).collect();
    let mut runs = Vec::new();
    loop {
        let open_bytes: u64 = left.iter().map(|(_, cost)| cost.open_bytes).sum();
        if open_bytes <= budget.bytes {
            let last = left.into_iter().map(|(input, _)| input).collect();
            return Ok(RunPlan { runs, last });
        }
        let excess = open_bytes - budget.bytes;
        let Some(window) = best_window(&left, budget, excess) else {
            return Err(too_small(&left, budget));
        };
        let merged = left[window.start].1;
        let merged =
            LinkCost { open_bytes: window.open_bytes, row_bytes: window.row_bytes, ..merged };
        let run = RunInput::Run(runs.len() as u32);
        let inputs = left[window.start..window.end].iter().map(|(input, _)| *input).collect();
        runs.push(PlannedRun { inputs, row_bytes: window.row_bytes });
        left.splice(window.start..window.end, [(run, merged)]);
    }
}

/// Neighbours that could be merged, and what comes of it.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: usize,
    end: usize,
    /// Of the run that it would become.
    open_bytes: u64,
    row_bytes: u64,
    freed_bytes: u64,
}

impl Window {
    /// Whether this one is the better choice when `excess` bytes are to be freed.
    fn is_better(&self, other: &Window, excess: u64) -> bool {
        let (enough, other_enough) = (self.freed_bytes >= excess, other.freed_bytes >= excess);
        if enough && other_enough {
            return self.row_bytes < other.row_bytes;
        }
        if enough != other_enough {
            return enough;
        }
        let price = u128::from(self.row_bytes) * u128::from(other.freed_bytes);
        price < u128::from(other.row_bytes) * u128::from(self.freed_bytes)
    }
}

fn best_window(left: &[(RunInput, LinkCost)], budget: RunBudget, excess: u64) -> Option<Window> {
    let mut best: Option<Window> = None;
    for start in 0..left.len() {
        let (mut opened, mut greatest, mut row_bytes) = (0u64, 0u64, 0u64);
        for (end, (_, cost)) in left.iter().enumerate().skip(start) {
            opened = opened.saturating_add(cost.open_bytes);
            let fits = opened.saturating_add(budget.writer_bytes) <= budget.bytes;
            if cost.kind == PartKind::Full || !fits {
                break;
            }
            greatest = greatest.max(cost.open_bytes);
            row_bytes = row_bytes.saturating_add(cost.row_bytes);
            let open_bytes = opened.min(budget.reader_bytes_max.max(greatest));
            let freed_bytes = opened - open_bytes;
            if end == start || freed_bytes == 0 {
                continue;
            }
            let window = Window { start, end: end + 1, open_bytes, row_bytes, freed_bytes };
            if best.is_none_or(|best| window.is_better(&best, excess)) {
                best = Some(window);
            }
        }
    }
    best
}

fn too_small(left: &[(RunInput, LinkCost)], budget: RunBudget) -> Error {
    let pairs = left.windows(2).map(|pair| pair[0].1.open_bytes + pair[1].1.open_bytes);
    let enough = pairs.max().unwrap_or(0).saturating_add(budget.writer_bytes);
    Error::new(
        Kind::Usage,
        format!(
            "the chain cannot be folded within {} of memory for a shard: merging two of its \
             links takes up to {}; raise the memory budget, or restore fewer shards at a time",
            ByteSize(budget.bytes),
            ByteSize(enough)
        ),
    )
}

/// A finished run: what [`open_run`] finds again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortedRun {
    /// The part, named by its file; `None` if the links had no row.
    pub part: Option<PartEntry>,
}

/// Merges links, oldest first, into a run, with rows under one schema, batch by batch.
///
/// The run is durable when [`finish`](Self::finish) returns: the part first, then its
/// description beside it (`<path>.json`), each written under another name, synced and renamed.
/// A crash leaves files that [`open_run`] does not accept and a later attempt replaces.
pub struct RunWriter<'a> {
    fold: Fold<'a>,
    batch: RowBatch,
    writer: Option<PartWriter<BufWriter<File>>>,
    schema: &'a Schema,
    digest_id: TableId,
    path: PathBuf,
    /// Told apart by the attempt, so that one that was given up disturbs no later one.
    partial: String,
}

impl<'a> RunWriter<'a> {
    /// Attempt number `attempt` of merging `links` into a run at `path`.
    pub fn new(
        links: Vec<Box<dyn RowStream + 'a>>,
        schema: &'a Schema,
        digest_id: TableId,
        path: &Path,
        attempt: Attempt,
    ) -> RunWriter<'a> {
        RunWriter {
            fold: Fold::new(links, FoldOptions::new(FoldMode::ToIncrement)),
            batch: RowBatch::new(),
            writer: None,
            schema,
            digest_id,
            path: path.to_owned(),
            partial: format!(".{attempt}.partial"),
        }
    }

    /// Merges one more batch; `false` when there was nothing left.
    ///
    /// # Errors
    /// Those of the links; the kinds of [`Error::io`]: [`Kind::Blocked`] for a full disk.
    pub fn advance(&mut self) -> Result<bool> {
        if !self.fold.next_batch(&mut self.batch)? {
            return Ok(false);
        }
        let doing = |what: &str| format!("{what} the sorted run {}", self.path.display());
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let file = File::create(beside(&self.path, &self.partial))
                    .map_err(|cause| Error::io(doing("create"), cause))?;
                let options = PartOptions {
                    group_bytes_max: RUN_GROUP_BYTES_MAX,
                    ..PartOptions::new(self.digest_id)
                };
                let out = BufWriter::new(file);
                let writer = PartWriter::new(out, self.schema, PartKind::Increment, options)?;
                self.writer.insert(writer)
            }
        };
        writer.write(&self.batch).map_err(|error| error.context(doing("write")))?;
        Ok(true)
    }

    /// How much was consumed of each link.
    pub fn tallies(&self) -> &[LinkTally] {
        self.fold.tallies()
    }

    /// Makes the run durable, once [`advance`](Self::advance) has found nothing left.
    ///
    /// # Errors
    /// The kinds of [`Error::io`]: [`Kind::Blocked`] for a full disk.
    pub fn finish(self) -> Result<SortedRun> {
        let path = &*self.path;
        let doing = |what: &str| format!("{what} the sorted run {}", path.display());
        let part = match self.writer {
            None => None,
            Some(writer) => {
                let finished = writer.finish().map_err(|error| error.context(doing("finish")))?;
                let (out, summary) = finished;
                let file = out
                    .into_inner()
                    .map_err(|error| Error::io(doing("finish"), error.into_error()))?;
                settle(&file, &beside(path, &self.partial), path)
                    .map_err(|cause| Error::io(doing("finish"), cause))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Some(summary.into_entry(name))
            }
        };
        let run = SortedRun { part };
        write_description(&run, path, &self.partial)
            .map_err(|cause| Error::io(doing("describe"), cause))?;
        Ok(run)
    }
}

impl std::fmt::Debug for RunWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Merges `links` with a [`RunWriter`], all at once.
///
/// `on_batch` is told after every batch how much was consumed of each link; its error ends the
/// merge.
///
/// # Errors
/// As [`RunWriter`]'s, and those of `on_batch`.
pub fn write_run(
    links: Vec<Box<dyn RowStream + '_>>,
    schema: &Schema,
    digest_id: TableId,
    path: &Path,
    on_batch: &mut dyn FnMut(&[LinkTally]) -> Result<()>,
) -> Result<SortedRun> {
    let mut writer = RunWriter::new(links, schema, digest_id, path, Attempt(1));
    while writer.advance()? {
        on_batch(writer.tallies())?;
    }
    on_batch(writer.tallies())?;
    writer.finish()
}

/// The run at `path`, if it was finished and its bytes are those that were written.
///
/// A run that is not there, not finished or not intact is `None`: it is made again.
///
/// # Errors
/// The kinds of [`Error::io`] when the files cannot be read.
pub fn open_run(path: &Path) -> Result<Option<SortedRun>> {
    let doing = || format!("open the sorted run {}", path.display());
    let description = match fs::read(beside(path, ".json")) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io(doing(), cause)),
    };
    let Ok(run) = serde_json::from_slice::<SortedRun>(&description) else { return Ok(None) };
    let Some(part) = &run.part else { return Ok(Some(run)) };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io(doing(), cause)),
    };
    let (bytes, blake3) = hash(file).map_err(|cause| Error::io(doing(), cause))?;
    let intact = bytes == part.bytes && blake3 == part.blake3;
    Ok(intact.then_some(run))
}

fn hash(mut file: File) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hasher.finalize().to_hex().to_string())),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}

fn write_description(run: &SortedRun, path: &Path, partial: &str) -> io::Result<()> {
    let description = beside(path, ".json");
    let partial = beside(&description, partial);
    let mut file = File::create(&partial)?;
    file.write_all(&serde_json::to_vec(run)?)?;
    settle(&file, &partial, &description)
}

/// Makes what was written to `file` durable, and then known by `path`.
fn settle(file: &File, partial: &Path, path: &Path) -> io::Result<()> {
    failpoint::hit_io("run.settle")?;
    file.sync_all()?;
    failpoint::hit("run.before_rename");
    fs::rename(partial, path)?;
    failpoint::hit("run.after_rename");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
