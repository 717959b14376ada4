//! What happens to an operation, and what it asks to be done.

use super::phase::{Failure, PausedBy};
use crate::ids::{Attempt, OperationId, ShardIdx, StepIdx, Txn};

/// One attempt of one shard in one step. Every answer names its ticket, so that a
/// late, doubled or stale one is told from the one that is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Operation.
    pub operation: OperationId,
    /// The operation's number.
    pub txn: Txn,
    /// Step.
    pub step: StepIdx,
    /// Shard of the step.
    pub shard: ShardIdx,
    /// Attempt; grows with every start of the shard in this step.
    pub attempt: Attempt,
}

/// One attempt of work that concerns the operation as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskTicket {
    /// Operation.
    pub operation: OperationId,
    /// What is to be done.
    pub task: Task,
    /// Attempt; grows with every start of the task.
    pub attempt: Attempt,
}

/// Work that concerns the operation as a whole. Each may be run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Get the fencing number.
    Allocate,
    /// Ask the target to accept a step, and cut its shards.
    Propose {
        /// The operation's number.
        txn: Txn,
        /// Step.
        step: StepIdx,
    },
    /// Finish indexes, shut every writer out.
    Seal {
        /// The operation's number.
        txn: Txn,
    },
    /// Read back and compare.
    Prove {
        /// The operation's number.
        txn: Txn,
    },
    /// Make the result visible.
    Publish {
        /// The operation's number.
        txn: Txn,
    },
    /// Remove everything that the operation made.
    Discard {
        /// The operation's number, if it ever got one.
        txn: Option<Txn>,
    },
}

/// What a task gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    /// [`Task::Allocate`].
    Allocated(Txn),
    /// [`Task::Propose`]: planned work of each shard, in shard order.
    Accepted(Vec<Work>),
    /// [`Task::Seal`].
    Sealed,
    /// [`Task::Prove`].
    Proved,
    /// [`Task::Publish`]; also [`Task::Discard`], when it had been published before.
    Published,
    /// [`Task::Discard`].
    Discarded,
}

/// An amount of work, planned or done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows.
    pub rows: u64,
    /// Key and payload bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.rows = self.rows.saturating_add(other.rows);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A task ended well.
    TaskDone {
        /// Which.
        ticket: TaskTicket,
        /// What it gave.
        outcome: TaskOutcome,
    },
    /// A task ended otherwise.
    TaskFailed {
        /// Which.
        ticket: TaskTicket,
        /// Why.
        failure: Failure,
    },
    /// A task is `bytes` far.
    TaskAdvanced {
        /// Which.
        ticket: TaskTicket,
        /// Bytes done in this attempt.
        bytes: u64,
    },
    /// A chunk of a shard became durable.
    ShardAdvanced {
        /// Which.
        ticket: Ticket,
        /// Done in this step, over all attempts.
        done: Work,
        /// Copy of the mark's last key, for display.
        last_key: Option<Vec<u8>>,
    },
    /// Every row of the step is durable on the shard.
    ShardDone {
        /// Which.
        ticket: Ticket,
        /// Done in this step, over all attempts.
        done: Work,
    },
    /// The attempt ended otherwise; the mark stands where it stood.
    ShardFailed {
        /// Which.
        ticket: Ticket,
        /// Why.
        failure: Failure,
    },
    /// The attempt stopped between two chunks, as it was asked to.
    ShardStopped {
        /// Which.
        ticket: Ticket,
    },
    /// A backup's snapshot is gone; the step begins again at a new cut.
    CutLost,
    /// Somebody wants something.
    Steered(Request),
    /// Time passed: back-off ends, silence is noticed, display copies are written.
    Tick,
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stand still.
    Pause {
        /// Who.
        by: PausedBy,
        /// Why, for people.
        why: String,
    },
    /// Carry on, after a pause or a failure.
    Resume,
    /// Undo and end.
    Cancel,
    /// Run so many shards at once; taken as the nearest number from 1 to
    /// [`WINDOW_MAX`](super::WINDOW_MAX).
    Window(u32),
}

/// Something to do once the transition is durable. Each may be performed twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start a task; answers with `TaskDone` or `TaskFailed`.
    RunTask(TaskTicket),
    /// Start a shard; answers with `ShardDone`, `ShardFailed` or `ShardStopped`.
    RunShard(Ticket),
    /// Ask one attempt that was given up to stop at its next chunk boundary; its answer is no
    /// longer awaited.
    StopShard(Ticket),
    /// Ask every shard and task in flight to stop at its next chunk boundary.
    StopInFlight,
}
