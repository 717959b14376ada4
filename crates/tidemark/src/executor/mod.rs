//! Drives operations: takes the hold, feeds events to the machine, commits, acts.
//!
//! - [`Job`] is what a verb gives: its tasks and the runs of its shards.
//! - [`commit::Driver`] is the order file: a transition is durable before any of its
//!   effects is performed.
//! - [`turn::Turns`] is one turn of the loop around it: answers and requests in, effects out.
//! - [`run`] is that loop: one driver thread, one thread per running task or shard, a
//!   channel of answers between them.
//!
//! Recovery is this same loop: [`run`] does not know whether it is the first.

pub mod begin;
pub mod commit;
mod hold;
mod run;
pub mod turn;
mod undo;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::database::Fence;
use crate::error::Result;
use crate::ids::{Epoch, ShardIdx, StepIdx, TableName};
use crate::operation::{
    Failure, Operation, PausedBy, Phase, Refusal, TaskOutcome, TaskTicket, Ticket, WINDOW_MAX, Work,
};

pub use hold::claim;
pub use run::run;
pub use turn::Intent;
pub use undo::Undo;

/// The work of one verb, behind the machine's tasks and shards.
///
/// Every method may be called again after a crash, with a greater epoch.
pub trait Job: Debug + Send + Sync {
    /// A number greater than every epoch handed out for this operation before.
    fn allocate_epoch(&self) -> Result<Epoch>;

    /// Raises the fence where the rows are, before the catalog learns of the new holder.
    fn claim(&self, fence: Fence, phase: &Phase) -> Result<()>;

    /// The shards of a step whose proposal was accepted before this process came.
    fn resume_step(&self, step: StepIdx) -> Result<ResumedStep>;

    /// Does a task. `advanced` takes the bytes done, for progress; between pieces of work
    /// the task looks at `stop` and, when asked, ends with a transient error.
    fn run_task(
        &self,
        ticket: TaskTicket,
        fence: Fence,
        stop: &Stop,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome>;

    /// Opens a shard where its mark stands.
    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>>;

    /// Tables of the operation, for progress.
    fn tables(&self) -> Vec<TableName>;

    /// Position in [`tables`](Self::tables) of the table that a shard belongs to.
    fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize>;

    /// Shards that may run at once, whatever is asked for: more would not fit the memory.
    fn window_max(&self) -> u32 {
        WINDOW_MAX
    }

    /// What the verb has to say, JSON; kept with the operation from the moment that publishing
    /// begins, and again at its end.
    fn outcome(&self) -> Option<String>;

    /// Takes what an earlier process said as [`outcome`](Self::outcome), before anything else
    /// is asked; nothing by default.
    ///
    /// # Errors
    /// [`Kind::Broken`](crate::Kind::Broken) for text that is no outcome of this verb.
    fn recall(&self, outcome: &str) -> Result<()> {
        let _ = outcome;
        Ok(())
    }
}

/// What a restart finds of a step that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumedStep {
    /// Its shards, as they were cut.
    Shards(Vec<Work>),
    /// The snapshot they were cut from is gone; the step begins again.
    CutLost,
}

/// One attempt of one shard, a chunk at a time.
pub trait ShardRun: Send {
    /// Makes the next chunk durable together with its mark.
    ///
    /// After an error the run is spent; the next attempt begins at the mark.
    fn next_chunk(&mut self) -> Result<ChunkOutcome>;
}

/// What a chunk did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// There is more.
    Advanced {
        /// Done in this step so far, over all attempts.
        done: Work,
        /// The mark's last key, for display.
        last_key: Option<Vec<u8>>,
    },
    /// Every row of the step is durable on the shard.
    Done {
        /// Done in this step, over all attempts.
        done: Work,
    },
}

/// Asks running work to stop at its next boundary.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicBool>> for Stop {
    /// Asked as soon as somebody sets the flag, which a signal handler may do.
    fn from(flag: Arc<AtomicBool>) -> Stop {
        Stop(flag)
    }
}

/// How a drive ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Published and proven.
    Done {
        /// What the verb said, JSON.
        outcome: Option<String>,
    },
    /// Stopped by a failure; marks are kept.
    Failed(Failure),
    /// Undone.
    Cancelled,
    /// Standing still; the same command carries on.
    Paused {
        /// Who asked.
        by: PausedBy,
        /// Why.
        why: String,
    },
}

/// Watches a drive; called from the driver thread, a few times a second.
pub trait Observer: Send {
    /// The operation moved, or time passed.
    fn progress(&mut self, operation: &Operation, tables: &[TableProgress]);

    /// Somebody's request was refused.
    fn refused(&mut self, refusal: Refusal);

    /// More shards at once were asked for than fit; `window` is what was taken.
    fn window_bounded(&mut self, window: u32);

    /// Somebody else holds the operation; its lease runs for `seconds` more.
    fn waiting_for_holder(&mut self, pid: u32, seconds: u64);
}

/// Progress of one table in the current step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableProgress {
    /// Table.
    pub name: TableName,
    /// Work of its shards.
    pub planned: Work,
    /// Done of it.
    pub done: Work,
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn progress(&mut self, _: &Operation, _: &[TableProgress]) {}

    fn refused(&mut self, _: Refusal) {}

    fn window_bounded(&mut self, _: u32) {}

    fn waiting_for_holder(&mut self, _: u32, _: u64) {}
}
