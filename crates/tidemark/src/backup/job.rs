//! A backup behind the machine's tasks and shards.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::cut::{Cut, CutRequest};
use super::outcome::BackupOutcome;
use super::shard::BackupShard;
use super::{BackupOptions, ResolvedBackup};
use crate::catalog::Catalog;
use crate::collection::Collection;
use crate::database::{Fence, Source};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::executor::{Job, ResumedStep, ShardRun, Stop};
use crate::ids::{Epoch, OperationId, ShardIdx, StepIdx, TableName, Txn};
use crate::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket, Work};

/// Key and payload bytes after which a part is closed and the next one begun: large enough
/// that a store's cost per object vanishes, small enough to be written again after a failure.
const PART_ROW_BYTES_MAX: u64 = 256 << 20;

/// What a job is made of.
pub(super) struct JobParts<'c> {
    pub(super) catalog: &'c dyn Catalog,
    pub(super) id: OperationId,
    pub(super) source: Arc<dyn Source>,
    pub(super) collection: Arc<Collection>,
    pub(super) env: Arc<dyn Env>,
    pub(super) options: BackupOptions,
    pub(super) resolved: ResolvedBackup,
}

/// One backup, to be driven by [`executor::run`](crate::executor::run).
///
/// Holds the cut and what was written from it; both end with the value. May be driven
/// again after a pause or a failure, and goes on with the same cut if that can still become
/// a backup.
pub struct BackupJob<'c> {
    pub(super) parts: JobParts<'c>,
    pub(super) part_row_bytes_max: u64,
    cuts: CutLine,
    /// Whether earlier processes may have written parts.
    pub(super) has_past: bool,
    outcome: Mutex<Option<BackupOutcome>>,
    /// Held while a cut is taken, so that a doubled task takes none of its own.
    proposing: Mutex<()>,
}

impl<'c> BackupJob<'c> {
    pub(super) fn new(parts: JobParts<'c>, cut: Option<Cut>) -> BackupJob<'c> {
        let cuts = CutLine::default();
        let has_past = cut.is_none();
        if let Some(cut) = cut {
            cuts.push(cut);
        }
        BackupJob {
            parts,
            part_row_bytes_max: PART_ROW_BYTES_MAX,
            cuts,
            has_past,
            outcome: Mutex::default(),
            proposing: Mutex::default(),
        }
    }

    /// The same backup with parts of about so many key and payload bytes; at least one row each.
    #[must_use]
    pub fn with_part_row_bytes_max(mut self, bytes: u64) -> BackupJob<'c> {
        self.part_row_bytes_max = bytes.max(1);
        self
    }

    /// What was resolved when the backup was recorded.
    pub fn resolved(&self) -> &ResolvedBackup {
        &self.parts.resolved
    }

    /// The cut that shards are read from now.
    pub(super) fn live_cut(&self) -> Option<&Cut> {
        self.cuts.last().filter(|cut| !cut.is_spent())
    }

    /// The same, for work that cannot be without one.
    pub(super) fn needed_cut(&self) -> Result<&Cut> {
        self.live_cut().ok_or_else(|| {
            let message = format!("operation {}: its snapshot is gone", self.parts.id);
            Error::new(Kind::Fatal, message)
        })
    }

    /// Every cut that was taken, the newest last.
    pub(super) fn cuts(&self) -> impl Iterator<Item = &Cut> {
        self.cuts.iter()
    }

    pub(super) fn say(&self, outcome: BackupOutcome) {
        *lock(&self.outcome) = Some(outcome);
    }

    fn propose(&self) -> Result<Vec<Work>> {
        let _alone = lock(&self.proposing);
        if self.find_own()?.is_some() {
            // Whoever drove it before committed it after all; only the source is to be told.
            return Ok(Vec::new());
        }
        if let Some(cut) = self.live_cut() {
            return Ok(cut.planned().collect());
        }
        // Before anything is written: a full disk must not be made fuller by trying again.
        self.remove_unmade()?;
        let JobParts { source, collection, env, options, resolved, .. } = &self.parts;
        let cut = Cut::take(&CutRequest {
            source: &**source,
            collection,
            kind: resolved.kind,
            source_identity: &resolved.source_identity,
            tables: &options.tables,
            mark: &resolved.mark,
            env: &**env,
        })?;
        Ok(self.cuts.push(cut).planned().collect())
    }
}

impl Job for BackupJob<'_> {
    fn allocate_epoch(&self) -> Result<Epoch> {
        self.parts.catalog.allocate_epoch()
    }

    /// Nothing to raise: parts carry a nonce and their attempt in their names, and the log
    /// entry is the fence.
    fn claim(&self, _: Fence, _: &Phase) -> Result<()> {
        Ok(())
    }

    fn resume_step(&self, _: StepIdx) -> Result<ResumedStep> {
        if let Some(cut) = self.live_cut() {
            return Ok(ResumedStep::Shards(cut.planned().collect()));
        }
        Ok(match self.find_own()? {
            Some(_) => ResumedStep::Shards(Vec::new()),
            None => ResumedStep::CutLost,
        })
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        _: Fence,
        stop: &Stop,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        let done = match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(Txn(self.parts.catalog.allocate_epoch()?.0)),
            Task::Propose { .. } => TaskOutcome::Accepted(self.propose()?),
            // Parts are complete when their shard is; nobody can write to them.
            Task::Seal { .. } => TaskOutcome::Sealed,
            Task::Prove { .. } => {
                self.prove(stop, advanced)?;
                TaskOutcome::Proved
            }
            Task::Publish { .. } => {
                self.publish()?;
                TaskOutcome::Published
            }
            Task::Discard { .. } => match self.find_own()? {
                // Its log entry was made, and nobody had heard of it: it is a backup.
                Some((_, manifest)) => {
                    self.say(BackupOutcome::of(&manifest));
                    TaskOutcome::Published
                }
                None => {
                    self.remove_unmade()?;
                    TaskOutcome::Discarded
                }
            },
        };
        Ok(done)
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, _: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        let cut = self.needed_cut()?;
        Ok(Box::new(BackupShard::start(self, cut, ticket.shard, ticket.attempt)?))
    }

    fn tables(&self) -> Vec<TableName> {
        self.live_cut().map(Cut::table_names).unwrap_or_default()
    }

    fn table_of(&self, _: StepIdx, shard: ShardIdx) -> Option<usize> {
        Some(self.live_cut()?.shard(shard)?.table)
    }

    fn outcome(&self) -> Option<String> {
        lock(&self.outcome).as_ref().map(BackupOutcome::to_json)
    }

    fn recall(&self, outcome: &str) -> Result<()> {
        let recalled = serde_json::from_str(outcome).map_err(|cause| {
            Error::with_source(Kind::Broken, "read what the backup said before", cause)
        })?;
        self.say(recalled);
        Ok(())
    }
}

impl fmt::Debug for BackupJob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupJob")
            .field("id", &self.parts.id)
            .field("resolved", &self.parts.resolved)
            .finish_non_exhaustive()
    }
}

/// The cuts of one job, one after the other.
///
/// All are kept until the job goes: a shard that is still running borrows the one it reads.
/// There is more than one only when a race was lost or a proof failed, and the same process
/// tried again.
#[derive(Debug, Default)]
struct CutLine {
    first: OnceLock<Box<CutNode>>,
}

#[derive(Debug)]
struct CutNode {
    cut: Cut,
    next: OnceLock<Box<CutNode>>,
}

impl CutLine {
    fn iter(&self) -> impl Iterator<Item = &Cut> {
        std::iter::successors(self.first.get(), |node| node.next.get()).map(|node| &node.cut)
    }

    fn last(&self) -> Option<&Cut> {
        self.iter().last()
    }

    /// Appends a cut; one caller at a time.
    fn push(&self, cut: Cut) -> &Cut {
        let mut end = &self.first;
        while let Some(node) = end.get() {
            end = &node.next;
        }
        &end.get_or_init(|| Box::new(CutNode { cut, next: OnceLock::new() })).cut
    }
}

/// Locks also what a panicking thread left: everything in it is consistent between statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
