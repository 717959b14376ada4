//! The work of an operation of which nothing is wanted any more but its end.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::{Job, ResumedStep, ShardRun, Stop};
use crate::database::Fence;
use crate::error::{Error, Kind, Result};
use crate::ids::{Epoch, ShardIdx, StepIdx, TableName};
use crate::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket};

/// Undoes an operation, and needs for that neither its collection nor a target in order.
///
/// Drive it with [`Intent::Cancel`](super::Intent::Cancel). The end of an operation must never
/// depend on what may be the reason that somebody wants it to end.
pub struct Undo<'a> {
    allocate: Box<dyn Fn() -> Result<Epoch> + Send + Sync + 'a>,
    discard: Box<dyn Fn(Fence) -> Result<TaskOutcome> + Send + Sync + 'a>,
    said: Mutex<Option<String>>,
}

impl<'a> Undo<'a> {
    /// Undoes by `discard`, which gives [`TaskOutcome::Discarded`], or
    /// [`TaskOutcome::Published`] when it is too late. It raises the fence itself, with an epoch
    /// from `allocate`, which is greater than every earlier one.
    pub fn new(
        allocate: impl Fn() -> Result<Epoch> + Send + Sync + 'a,
        discard: impl Fn(Fence) -> Result<TaskOutcome> + Send + Sync + 'a,
    ) -> Undo<'a> {
        Undo { allocate: Box::new(allocate), discard: Box::new(discard), said: Mutex::default() }
    }
}

impl Job for Undo<'_> {
    fn allocate_epoch(&self) -> Result<Epoch> {
        (self.allocate)()
    }

    fn claim(&self, _: Fence, _: &Phase) -> Result<()> {
        // Discarding raises the fence itself.
        Ok(())
    }

    fn resume_step(&self, _: StepIdx) -> Result<ResumedStep> {
        Ok(ResumedStep::Shards(Vec::new()))
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        fence: Fence,
        _: &Stop,
        _: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        match ticket.task {
            Task::Discard { .. } => (self.discard)(fence),
            Task::Allocate
            | Task::Propose { .. }
            | Task::Seal { .. }
            | Task::Prove { .. }
            | Task::Publish { .. } => Err(only_undone()),
        }
    }

    fn start_shard<'s>(&'s self, _: Ticket, _: Fence) -> Result<Box<dyn ShardRun + 's>> {
        Err(only_undone())
    }

    fn tables(&self) -> Vec<TableName> {
        Vec::new()
    }

    fn table_of(&self, _: StepIdx, _: ShardIdx) -> Option<usize> {
        None
    }

    fn outcome(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn recall(&self, outcome: &str) -> Result<()> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome.to_owned());
        Ok(())
    }
}

fn only_undone() -> Error {
    Error::new(Kind::Fatal, "the operation was opened to be undone only")
}

impl fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undo").finish_non_exhaustive()
    }
}
