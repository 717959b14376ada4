//! A job that notes when its tasks and shards ran.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tidemark::Result;
use tidemark::database::Fence;
use tidemark::executor::{ChunkOutcome, Job, ResumedStep, ShardRun, Stop};
use tidemark::ids::{Epoch, ShardIdx, StepIdx, TableName};
use tidemark::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket};

use crate::report::{Clock, Spent};

/// Passes everything on to `job`.
#[derive(Debug)]
pub(crate) struct Watched<'j> {
    job: &'j dyn Job,
    steps: Mutex<BTreeMap<u32, Span>>,
    proof: Mutex<Spent>,
}

/// From the first moment of something to the last.
#[derive(Clone, Copy, Debug)]
struct Span {
    begun: Clock,
    spent: Spent,
}

impl<'j> Watched<'j> {
    pub(crate) fn new(job: &'j dyn Job) -> Watched<'j> {
        Watched { job, steps: Mutex::default(), proof: Mutex::default() }
    }

    /// How long the shards of each step took, from the first start to the last end.
    pub(crate) fn steps(&self) -> Vec<Spent> {
        let steps = self.steps.lock().unwrap();
        steps.values().map(|span| span.spent).collect()
    }

    /// How long the proof took.
    pub(crate) fn proof(&self) -> Spent {
        *self.proof.lock().unwrap()
    }

    fn note(&self, step: StepIdx) {
        let mut steps = self.steps.lock().unwrap();
        let fresh = || Span { begun: Clock::start(), spent: Spent::default() };
        let span = steps.entry(step.0).or_insert_with(fresh);
        span.spent = span.begun.spent();
    }
}

impl Job for Watched<'_> {
    fn allocate_epoch(&self) -> Result<Epoch> {
        self.job.allocate_epoch()
    }

    fn claim(&self, fence: Fence, phase: &Phase) -> Result<()> {
        self.job.claim(fence, phase)
    }

    fn resume_step(&self, step: StepIdx) -> Result<ResumedStep> {
        self.job.resume_step(step)
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        fence: Fence,
        stop: &Stop,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        let begun = Clock::start();
        let outcome = self.job.run_task(ticket, fence, stop, advanced);
        if matches!(ticket.task, Task::Prove { .. }) {
            *self.proof.lock().unwrap() = begun.spent();
        }
        outcome
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        self.note(ticket.step);
        let run = self.job.start_shard(ticket, fence)?;
        Ok(Box::new(WatchedRun { watched: self, step: ticket.step, run }))
    }

    fn tables(&self) -> Vec<TableName> {
        self.job.tables()
    }

    fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize> {
        self.job.table_of(step, shard)
    }

    fn outcome(&self) -> Option<String> {
        self.job.outcome()
    }
}

struct WatchedRun<'a> {
    watched: &'a Watched<'a>,
    step: StepIdx,
    run: Box<dyn ShardRun + 'a>,
}

impl ShardRun for WatchedRun<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        let outcome = self.run.next_chunk();
        self.watched.note(self.step);
        outcome
    }
}
