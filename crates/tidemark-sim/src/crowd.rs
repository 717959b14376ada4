//! A job of very many shards: counters instead of rows, everything else as it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark::database::Fence;
use tidemark::executor::{ChunkOutcome, Job, ResumedStep, ShardRun, Stop};
use tidemark::ids::{Epoch, ShardIdx, StepIdx, TableName, Txn};
use tidemark::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket, Work};
use tidemark::{Error, Kind, Result};

use crate::world::{Touch, World};

/// Chunks of a shard.
const CHUNKS: u8 = 2;

/// What outlives the processes: how many chunks each shard has.
#[derive(Debug)]
pub(crate) struct Counters {
    chunks: Vec<u8>,
    epoch: u64,
    claimed: u64,
    is_published: bool,
}

/// A [`Job`] that counts to two on each shard.
#[derive(Clone, Debug)]
pub(crate) struct CrowdJob {
    world: Arc<World>,
    counters: Arc<Mutex<Counters>>,
}

impl CrowdJob {
    /// A job of so many shards.
    pub(crate) fn new(world: Arc<World>, shards: u32) -> CrowdJob {
        let chunks = vec![0; shards as usize];
        let counters = Counters { chunks, epoch: 0, claimed: 0, is_published: false };
        CrowdJob { world, counters: Arc::new(Mutex::new(counters)) }
    }

    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self) -> Vec<Work> {
        let of = |_: &u8| Work { rows: u64::from(CHUNKS), bytes: u64::from(CHUNKS) };
        self.lock().chunks.iter().map(of).collect()
    }

    /// Whether every shard is done.
    pub(crate) fn is_whole(&self) -> bool {
        self.lock().chunks.iter().all(|chunks| *chunks == CHUNKS)
    }
}

impl Job for CrowdJob {
    fn allocate_epoch(&self) -> Result<Epoch> {
        let mut counters = self.lock();
        counters.epoch += 1;
        Ok(Epoch(counters.epoch))
    }

    fn claim(&self, fence: Fence, _: &Phase) -> Result<()> {
        self.lock().claimed = fence.epoch.0;
        Ok(())
    }

    fn resume_step(&self, _: StepIdx) -> Result<ResumedStep> {
        Ok(ResumedStep::Shards(self.planned()))
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        _: Fence,
        _: &Stop,
        _: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        let pass = self.world.gate("crowd.task", Touch::Writes)?;
        let outcome = match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(Txn(1)),
            Task::Propose { .. } => TaskOutcome::Accepted(self.planned()),
            Task::Seal { .. } => TaskOutcome::Sealed,
            Task::Prove { .. } if !self.is_whole() => {
                return Err(Error::new(Kind::Mismatch, "a shard has not counted to its end"));
            }
            Task::Prove { .. } => TaskOutcome::Proved,
            Task::Publish { .. } => {
                self.lock().is_published = true;
                TaskOutcome::Published
            }
            Task::Discard { .. } => TaskOutcome::Discarded,
        };
        self.world.answer(pass, Ok(outcome))
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        Ok(Box::new(Count { job: self, shard: ticket.shard, fence }))
    }

    fn tables(&self) -> Vec<TableName> {
        Vec::new()
    }

    fn table_of(&self, _: StepIdx, _: ShardIdx) -> Option<usize> {
        None
    }

    fn outcome(&self) -> Option<String> {
        None
    }
}

struct Count<'a> {
    job: &'a CrowdJob,
    shard: ShardIdx,
    fence: Fence,
}

impl ShardRun for Count<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        let pass = self.job.world.gate("crowd.chunk", Touch::Writes)?;
        let mut counters = self.job.lock();
        if counters.claimed != self.fence.epoch.0 {
            return Err(Error::new(Kind::Fenced, "the epoch was taken over"));
        }
        let chunks = &mut counters.chunks[self.shard.0 as usize];
        *chunks = (*chunks + 1).min(CHUNKS);
        let done = Work { rows: u64::from(*chunks), bytes: u64::from(*chunks) };
        let is_last = *chunks == CHUNKS;
        drop(counters);
        self.job.world.answer(pass, Ok(()))?;
        Ok(match is_last {
            true => ChunkOutcome::Done { done },
            false => ChunkOutcome::Advanced { done, last_key: None },
        })
    }
}
