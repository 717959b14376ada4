//! What must hold after every step, and at the end.
//!
//! The oracle is a plain map per table and backup. A mark is never ahead of its rows and
//! never behind them: the rows up to its last key are those of its step, the rows beyond are
//! those of the step before. A step has begun nowhere before the one before it has ended
//! everywhere. Readers see the target as it was until everything is published at once; at the
//! end nothing is left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark::database::conformance::Rows;
use tidemark::database::{Disposition, Mark, TargetShard};
use tidemark::ids::{LinkIdx, OperationId, ShardIdx, StepIdx, TableName};
use tidemark::operation::{ApplyStage, Desired, Phase, ShardStatus, Working};
use tidemark::restore::RestorePlan;
use tidemark::restore::plan::Piece;
use tidemark::row::KeyRange;
use tidemark::{Kind, Result};

use crate::catalog::SimCatalog;
use crate::database::{Database, HiddenShard, Standing, Table};
use crate::scenario::Setup;
use crate::world::World;

/// Compares what is durable with the oracle.
#[derive(Debug)]
pub(crate) struct Checker {
    world: Arc<World>,
    database: Database,
    catalog: SimCatalog,
    plan: Option<RestorePlan>,
    before: BTreeMap<TableName, Table>,
    after: BTreeMap<TableName, Rows>,
}

impl Checker {
    /// A checker for a target that holds what it holds now.
    pub(crate) fn new(world: Arc<World>, database: Database, catalog: SimCatalog) -> Checker {
        let before = database.tables();
        Checker { world, database, catalog, plan: None, before, after: BTreeMap::new() }
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// A plan that cannot be read.
    pub(crate) fn check(&mut self, setup: &Setup) -> Result<()> {
        let Some(id) = self.catalog.first() else { return Ok(()) };
        if self.plan.is_none() {
            let plan = RestorePlan::from_bytes(&self.catalog.plan_bytes(id).unwrap_or_default())?;
            self.after = setup.chain.at(setup.point);
            let names: Vec<&TableName> =
                plan.tables.iter().map(|table| &table.target.name).collect();
            // What is not restored anew stays as it is.
            let kept = self.before.iter().filter(|(name, _)| !names.contains(name));
            let kept: Vec<(TableName, Rows)> =
                kept.map(|(name, table)| (name.clone(), table.rows.clone())).collect();
            self.after.retain(|name, _| names.contains(&name));
            self.after.extend(kept);
            self.plan = Some(plan);
        }
        let standing = self.database.standing(id);
        let phase = self.catalog.look_at_state(id, |state| state.phase.clone());
        let phase = phase.unwrap_or(Phase::FIRST);
        let desired = self.catalog.look_at_state(id, |state| state.desired.clone());
        self.check_visible(standing, &phase);
        self.check_phase(&phase, desired.unwrap_or(Desired::Run));
        self.check_released(id, &phase);
        if standing == Standing::Hidden {
            self.check_hidden(id, setup)?;
        }
        self.check_records(id, standing)
    }

    fn check_phase(&self, phase: &Phase, desired: Desired) {
        let is_publishing = matches!(
            phase,
            Phase::Working(Working::Applying { stage: ApplyStage::Publishing, .. })
        );
        if is_publishing && desired == Desired::Cancelled {
            self.world.violate("a cancel was taken behind the point of no return");
        }
        if let Phase::Failed { failure, .. } = phase
            && failure.kind == Kind::Blocked
        {
            self.world.violate(format!("an obstacle ended the operation: {}", failure.message));
        }
    }

    /// The commit that ends an operation lets go of it, and of what is known of its shards.
    fn check_released(&self, id: OperationId, phase: &Phase) {
        if !phase.is_terminal() {
            return;
        }
        let (records, holder) = self.catalog.leftovers(id);
        if records > 0 {
            self.world.violate(format!("{records} records of shards are left behind"));
        }
        if let Some(holder) = holder {
            self.world.violate(format!("process {holder} still holds the operation"));
        }
    }

    /// Hidden until published, and all at once.
    fn check_visible(&self, standing: Standing, phase: &Phase) {
        if standing != Standing::Published {
            if self.database.look_at_tables(|tables| *tables != self.before) {
                self.world.violate(format!("the target changed while {standing:?}"));
            }
            if matches!(phase, Phase::Done { .. }) {
                self.world.violate("done before anything was published");
            }
            return;
        }
        let is_publishing = match phase {
            Phase::Done { .. } => true,
            Phase::Working(working) | Phase::Failed { was: working, .. } => {
                matches!(working, Working::Applying { stage: ApplyStage::Publishing, .. })
            }
            // It will find out that there is nothing to undo any more.
            Phase::Reverting { .. } => true,
            Phase::Cancelled { .. } => false,
        };
        if !is_publishing {
            self.world.violate(format!("published while {}", phase.name()));
        }
        let found = self.database.look_at_tables(|tables| {
            tables.len() == self.after.len()
                && tables.iter().all(|(name, table)| self.after.get(name) == Some(&table.rows))
        });
        if !found {
            self.world.violate("what was published is not what the oracle says");
        }
    }

    fn check_hidden(&self, id: OperationId, setup: &Setup) -> Result<()> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let mut marks: BTreeMap<(u32, u32), Option<Mark>> = BTreeMap::new();
        for (table, planned) in (0u32..).zip(&plan.tables) {
            for (shard, range) in (0u32..).zip(&planned.target.shards) {
                let name = planned.target.name.clone();
                let at = TargetShard { operation: id, table: name, shard: ShardIdx(shard) };
                let place = Place { plan, setup, table, shard, range };
                let mark = self.database.look_at(&at, |hidden| {
                    if let Some(what) = place.flaw(hidden) {
                        self.world.violate(format!("shard {shard} of `{}`: {what}", at.table));
                    }
                    hidden.mark.clone()
                });
                if let Some(mark) = mark {
                    marks.insert((table, shard), mark);
                }
            }
        }
        self.check_barrier(plan, &marks);
        Ok(())
    }

    /// No row of a step before the step before it is done everywhere.
    fn check_barrier(&self, plan: &RestorePlan, marks: &BTreeMap<(u32, u32), Option<Mark>>) {
        let begun = |mark: &Option<Mark>| {
            let mark = mark.as_ref()?;
            (mark.last_key.is_some() || mark.done).then_some(mark.step.0)
        };
        let newest = marks.values().filter_map(begun).max().unwrap_or(0);
        for (at, step) in plan.steps.iter().enumerate().take(newest as usize) {
            let at = at as u32;
            for planned in &step.shards {
                let Piece::Apply(shard) = planned.piece else { continue };
                let mark = marks.get(&(planned.table, shard.0)).and_then(Option::as_ref);
                let is_done =
                    mark.is_some_and(|mark| mark.step.0 > at || (mark.step.0 == at && mark.done));
                if !is_done {
                    self.world.violate(format!(
                        "step {newest} has rows before shard {shard} of table {} ended step {at}",
                        planned.table
                    ));
                }
            }
        }
    }

    /// A record says done only when the rows are durable.
    fn check_records(&self, id: OperationId, standing: Standing) -> Result<()> {
        let Some(plan) = &self.plan else { return Ok(()) };
        for (step, shard, progress) in self.catalog.take_written(id) {
            if progress.status != ShardStatus::Done || standing != Standing::Hidden {
                continue;
            }
            let planned = plan.step(step)?.shards.get(shard.0 as usize);
            let Some(planned) = planned else {
                self.world.violate(format!("a record of shard {shard}, which step {step} has not"));
                continue;
            };
            let Piece::Apply(at) = planned.piece else { continue };
            let table = plan.tables[planned.table as usize].target.name.clone();
            let place = TargetShard { operation: id, table, shard: at };
            let is_durable = |hidden: &HiddenShard| {
                hidden
                    .mark
                    .as_ref()
                    .is_some_and(|mark| mark.step > step || (mark.step == step && mark.done))
            };
            if self.database.look_at(&place, is_durable) != Some(true) {
                let message =
                    format!("shard {shard} of step {step} was recorded as done before its rows");
                self.world.violate(message);
            }
        }
        Ok(())
    }

    /// What must hold once nobody works any more.
    pub(crate) fn check_end(&mut self, setup: &Setup) -> Result<()> {
        self.check(setup)?;
        if self.catalog.first().is_none() {
            self.world.violate("no operation was ever recorded");
        }
        if self.database.hides_anything() {
            self.world.violate("hidden tables or reserved names are left behind");
        }
        Ok(())
    }
}

/// One shard, as the plan has it.
struct Place<'a> {
    plan: &'a RestorePlan,
    setup: &'a Setup,
    table: u32,
    shard: u32,
    range: &'a KeyRange,
}

impl Place<'_> {
    /// What is wrong with the rows that are durable, if anything is.
    fn flaw(&self, hidden: &HiddenShard) -> Option<String> {
        let empty = Rows::new();
        let step = hidden.mark.as_ref().map_or(StepIdx(0), |mark| mark.step);
        let before = self.state_before(step).unwrap_or(&empty);
        let (after, last_key, is_done) = match &hidden.mark {
            None => (&empty, None, false),
            Some(mark) => {
                let link = self.plan.steps.get(step.0 as usize)?.links.1;
                let after = self.state_at(link).unwrap_or(&empty);
                (after, mark.last_key.as_deref(), mark.done)
            }
        };
        let is_applied = |key: &[u8]| is_done || last_key.is_some_and(|last| key <= last);
        let inside = |rows: &Rows, applied: bool| -> Rows {
            let mine = rows.iter().filter(|(key, _)| self.range.contains(key));
            let mine = mine.filter(|(key, _)| is_applied(key) == applied);
            mine.map(|(key, row)| (key.clone(), row.clone())).collect()
        };
        let mut expected = inside(after, true);
        expected.extend(inside(before, false));
        if hidden.rows == expected {
            return None;
        }
        Some(format!(
            "its mark says step {step}, done {is_done}, last key {last_key:?}; {} rows are there \
             which are not the {} of the oracle",
            hidden.rows.len(),
            expected.len()
        ))
    }

    /// The rows of the table after the last step before `step` that touches this shard.
    fn state_before(&self, step: StepIdx) -> Option<&Rows> {
        let touches = |at: usize| {
            self.plan.steps.get(at).is_some_and(|step| {
                step.shards.iter().any(|shard| {
                    shard.table == self.table && shard.piece == Piece::Apply(ShardIdx(self.shard))
                })
            })
        };
        let earlier = (0..step.0 as usize).rev().find(|at| touches(*at));
        match earlier {
            Some(at) => self.state_at(self.plan.steps[at].links.1),
            None => {
                let target = &self.plan.tables[self.table as usize].target;
                let (base, _) = self.setup.base?;
                let rolls = target.disposition == Disposition::RollForward;
                rolls.then(|| self.state_at(LinkIdx(base as u32))).flatten()
            }
        }
    }

    fn state_at(&self, link: LinkIdx) -> Option<&Rows> {
        let planned = &self.plan.tables[self.table as usize];
        let oracle = self.setup.chain.table(&planned.source_name)?;
        oracle.states.get(link.0 as usize)?.as_ref()
    }
}
