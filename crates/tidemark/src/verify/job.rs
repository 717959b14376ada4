//! A verification behind the machine's tasks and shards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fold::FoldRun;
use super::outcome::{Finding, VerifyOutcome};
use super::part::PartRun;
use super::plan::{FOLDS, PARTS, VerifyPlan};
use crate::catalog::Catalog;
use crate::collection::Collection;
use crate::database::Fence;
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, Job, ResumedStep, ShardRun, Stop};
use crate::ids::{Attempt, Epoch, OperationId, ShardIdx, StepIdx, TableName, Txn};
use crate::operation::{Phase, ShardStatus, Task, TaskOutcome, TaskTicket, Ticket, Work};
use crate::restore::Room;

/// One verification, to be driven by [`executor::run`](crate::executor::run).
pub struct VerifyJob<'c> {
    catalog: &'c dyn Catalog,
    id: OperationId,
    pub(super) collection: Arc<Collection>,
    pub(super) plan: VerifyPlan,
    pub(super) room: Room,
    /// What shards of this process found since the last verdict.
    found: Mutex<BTreeMap<(StepIdx, ShardIdx), Finding>>,
    /// Tables that were not folded since the last verdict, with the reason.
    unfolded: Mutex<BTreeMap<ShardIdx, String>>,
    verdict: Mutex<Option<VerifyOutcome>>,
}

impl<'c> VerifyJob<'c> {
    pub(super) fn new(
        catalog: &'c dyn Catalog,
        id: OperationId,
        collection: Arc<Collection>,
        plan: VerifyPlan,
        room: Room,
    ) -> VerifyJob<'c> {
        VerifyJob {
            catalog,
            id,
            collection,
            plan,
            room,
            found: Mutex::default(),
            unfolded: Mutex::default(),
            verdict: Mutex::default(),
        }
    }

    /// The verdict, once there is one: also that of a verification that failed with it.
    pub fn verdict(&self) -> Option<VerifyOutcome> {
        lock(&self.verdict).clone()
    }

    /// Takes what a shard found, and says what it has verified: all of it, or nothing.
    pub(super) fn conclude(
        &self,
        step: StepIdx,
        shard: ShardIdx,
        found: Option<Finding>,
        planned: Work,
    ) -> ChunkOutcome {
        let done = if found.is_some() { Work::default() } else { planned };
        let mut all = lock(&self.found);
        match found {
            Some(finding) => all.insert((step, shard), finding),
            // A later attempt may see what an earlier one could not.
            None => all.remove(&(step, shard)),
        };
        ChunkOutcome::Done { done }
    }

    /// Takes why a table is not folded; nothing of it is verified.
    pub(super) fn leave_unfolded(&self, shard: ShardIdx, why: String) -> ChunkOutcome {
        lock(&self.unfolded).insert(shard, why);
        ChunkOutcome::Done { done: Work::default() }
    }

    /// Folder for what an attempt of a fold does not keep in memory.
    pub(super) fn scratch(&self, shard: ShardIdx, attempt: Attempt) -> PathBuf {
        self.scratch_root().join(format!("{shard}-{attempt}"))
    }

    fn scratch_root(&self) -> PathBuf {
        self.room.scratch.join(format!("verify-{}", self.id))
    }

    fn remove_scratch(&self) {
        // It may never have been made; what stays is scratch.
        let _ = std::fs::remove_dir_all(self.scratch_root());
    }

    /// Gathers everything that was found. Shards that verified nothing, and whose reason was
    /// lost with its process or told in an earlier verdict, are looked at again.
    fn judge(&self, stop: &Stop) -> Result<VerifyOutcome> {
        let mut found = std::mem::take(&mut *lock(&self.found));
        for step in [PARTS, FOLDS] {
            if step.0 >= self.plan.step_count() {
                break;
            }
            for (shard, progress) in self.catalog.shards(self.id, step)? {
                let is_verified =
                    progress.status != ShardStatus::Done || progress.done != Work::default();
                let is_known = found.contains_key(&(step, shard))
                    || (step == FOLDS && lock(&self.unfolded).contains_key(&shard));
                if is_verified || is_known {
                    continue;
                }
                self.look_again(step, shard, progress.attempt, stop)?;
                found.append(&mut lock(&self.found));
            }
        }
        let mut unfolded = std::mem::take(&mut *lock(&self.unfolded));
        let findings = self.distinct(found, &mut unfolded);
        let (parts, bytes, rows) = self.plan.part_totals();
        Ok(VerifyOutcome {
            level: self.plan.level,
            backups: self.plan.backups,
            parts,
            bytes,
            rows,
            folds: self.plan.fold_count() - unfolded.len() as u64,
            unfolded: unfolded.into_values().collect(),
            unlisted: self.plan.unlisted.iter().map(ToString::to_string).collect(),
            findings,
        })
    }

    /// Every flaw once: a part that is missing cannot be read either, and a chain with a
    /// flawed part leads nowhere.
    fn distinct(
        &self,
        found: BTreeMap<(StepIdx, ShardIdx), Finding>,
        unfolded: &mut BTreeMap<ShardIdx, String>,
    ) -> Vec<Finding> {
        let mut findings: Vec<Finding> =
            self.plan.flaws.iter().cloned().map(Finding::flaw).collect();
        let mut flawed: BTreeSet<String> =
            findings.iter().map(|finding| finding.object.clone()).collect();
        for ((step, shard), finding) in found {
            if step == PARTS {
                if flawed.insert(finding.object.clone()) {
                    findings.push(finding);
                }
                continue;
            }
            let cause = self.plan.folded_paths(shard).find(|path| flawed.contains(path));
            match cause {
                Some(path) if finding.kind == Kind::Broken => {
                    let why = format!("{} was not folded: `{path}` is flawed", finding.object);
                    unfolded.insert(shard, why);
                }
                _ => findings.push(finding),
            }
        }
        findings
    }

    fn look_again(
        &self,
        step: StepIdx,
        shard: ShardIdx,
        attempt: Attempt,
        stop: &Stop,
    ) -> Result<()> {
        let mut run = self.open_shard(step, shard, attempt)?;
        while let ChunkOutcome::Advanced { .. } = run.next_chunk()? {
            if stop.is_asked() {
                return Err(Error::new(Kind::Transient, "the verdict was asked to stop"));
            }
        }
        Ok(())
    }

    fn open_shard<'a>(
        &'a self,
        step: StepIdx,
        shard: ShardIdx,
        attempt: Attempt,
    ) -> Result<Box<dyn ShardRun + 'a>> {
        Ok(match step {
            PARTS => Box::new(PartRun::start(self, shard)?),
            _ => Box::new(FoldRun::start(self, shard, attempt)?),
        })
    }
}

impl Job for VerifyJob<'_> {
    fn allocate_epoch(&self) -> Result<Epoch> {
        self.catalog.allocate_epoch()
    }

    /// Nothing to raise: nothing is written.
    fn claim(&self, _: Fence, _: &Phase) -> Result<()> {
        Ok(())
    }

    fn resume_step(&self, step: StepIdx) -> Result<ResumedStep> {
        Ok(ResumedStep::Shards(self.plan.planned(step)))
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        _: Fence,
        stop: &Stop,
        _: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        Ok(match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(Txn(self.catalog.allocate_epoch()?.0)),
            Task::Propose { step, .. } => TaskOutcome::Accepted(self.plan.planned(step)),
            Task::Seal { .. } => TaskOutcome::Sealed,
            Task::Prove { .. } => {
                let verdict = self.judge(stop)?;
                self.remove_scratch();
                let failure = verdict.failure();
                *lock(&self.verdict) = Some(verdict);
                match failure {
                    Some(failure) => return Err(failure),
                    None => TaskOutcome::Proved,
                }
            }
            // The verdict is durable since it was given.
            Task::Publish { .. } => TaskOutcome::Published,
            Task::Discard { .. } => {
                self.remove_scratch();
                TaskOutcome::Discarded
            }
        })
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, _: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        self.open_shard(ticket.step, ticket.shard, ticket.attempt)
    }

    fn tables(&self) -> Vec<TableName> {
        self.plan.tables().to_vec()
    }

    fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize> {
        self.plan.table_of(step, shard)
    }

    fn outcome(&self) -> Option<String> {
        lock(&self.verdict).as_ref().map(VerifyOutcome::to_json)
    }

    fn recall(&self, outcome: &str) -> Result<()> {
        let recalled = serde_json::from_str(outcome).map_err(|cause| {
            Error::with_source(Kind::Broken, "read what the verification said before", cause)
        })?;
        *lock(&self.verdict) = Some(recalled);
        Ok(())
    }
}

impl fmt::Debug for VerifyJob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyJob")
            .field("id", &self.id)
            .field("level", &self.plan.level)
            .field("backups", &self.plan.backups)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
