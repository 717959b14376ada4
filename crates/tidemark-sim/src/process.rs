//! A process that drives the operation: what the executor's loop keeps, without its threads.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use tidemark::env::BootTime;
use tidemark::executor::turn::{Answer, Turns};
use tidemark::executor::{Intent, Job, ShardRun, Stop};
use tidemark::ids::{Attempt, Epoch, OperationId, ShardIdx, StepIdx};
use tidemark::operation::{Event, Phase, ShardStatus, TaskTicket, Ticket, Working};

/// One started command.
pub(crate) struct Process<'a> {
    pub(crate) job: &'a dyn Job,
    pub(crate) id: OperationId,
    pub(crate) intent: Intent,
    pub(crate) stage: Stage<'a>,
    /// It does nothing before that time.
    pub(crate) frozen_until: u64,
    /// Kept while it takes the operation.
    pub(crate) taking: Option<Box<dyn Debug>>,
}

/// How far a process is.
pub(crate) enum Stage<'a> {
    /// Waits until nobody holds the operation; the least seconds that a lease still ran.
    Looking(u64),
    /// Has raised the fence.
    Claimed(Epoch),
    /// Holds the operation.
    Driving(Box<Drive<'a>>),
}

/// What the executor's loop keeps.
pub(crate) struct Drive<'a> {
    pub(crate) turns: Turns<'a>,
    /// Whether somebody pressed the keys that interrupt a command.
    pub(crate) is_interrupted: bool,
    /// Why it leaves, once it does; its workers end at their next chunk.
    pub(crate) leaving: Option<String>,
    pub(crate) inbox: Vec<Answer>,
    pub(crate) workers: BTreeMap<u64, Worker<'a>>,
    /// The newest attempt of each shard that this process started.
    pub(crate) started: BTreeMap<(StepIdx, ShardIdx), Attempt>,
    /// Attempts whose last word was lost, and when.
    lost: Vec<(Ticket, BootTime)>,
}

/// Silence after which an attempt must have been given up: more than what the run's policy
/// allows and two looks.
const SILENCE_MAX: Duration = Duration::from_secs(55);

/// Phase, step, running shards and done ones of an operation.
pub(crate) type Shape = (&'static str, Option<StepIdx>, u32, u64);

/// One worker thread.
pub(crate) struct Worker<'a> {
    pub(crate) work: Work,
    pub(crate) stop: Stop,
    /// Epoch under which it writes.
    pub(crate) epoch: Epoch,
    pub(crate) run: Option<Box<dyn ShardRun + 'a>>,
    /// Chunks that the target had taken when this one opened its shard.
    pub(crate) opened_after: u64,
    pub(crate) has_hung: bool,
}

/// What a worker does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Task(TaskTicket),
    Shard(Ticket),
}

impl<'a> Drive<'a> {
    pub(crate) fn new(turns: Turns<'a>) -> Drive<'a> {
        Drive {
            turns,
            is_interrupted: false,
            leaving: None,
            inbox: Vec::new(),
            workers: BTreeMap::new(),
            started: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    /// What a stale answer must not change.
    pub(crate) fn shape(&self) -> Shape {
        let operation = self.turns.operation();
        let phase = operation.state().phase.name();
        let step = operation.state().phase.step();
        (phase, step, operation.in_flight_count(), operation.shards_done())
    }

    /// Notes that the last word of an attempt will never be heard.
    pub(crate) fn note_lost(&mut self, event: &Event, now: BootTime) {
        if let Event::ShardDone { ticket, .. }
        | Event::ShardFailed { ticket, .. }
        | Event::ShardStopped { ticket } = event
        {
            self.lost.push((*ticket, now));
        }
    }

    /// Notes that a sign of life came late, behind the last word.
    pub(crate) fn note_heard(&mut self, answers: &[Answer], now: BootTime) {
        for answer in answers {
            if let Event::ShardAdvanced { ticket: heard, .. } = &answer.event {
                let of_it = self.lost.iter_mut().filter(|(ticket, _)| ticket == heard);
                of_it.for_each(|(_, at)| *at = now);
            }
        }
    }

    /// An attempt that went silent long ago and still counts as running. Asked after a turn.
    pub(crate) fn long_silent(&self, now: BootTime) -> Option<Ticket> {
        let operation = self.turns.operation();
        let Phase::Working(Working::Waiting { step, .. }) = operation.state().phase else {
            return None;
        };
        let is_awaited = |ticket: &Ticket| {
            let progress = operation.shard_progress(ticket.shard);
            progress.status == ShardStatus::InFlight && progress.attempt == ticket.attempt
        };
        let of_step = self.lost.iter().filter(|(ticket, _)| ticket.step == step);
        let old = of_step.filter(|(_, at)| now.since(*at) > SILENCE_MAX);
        old.map(|(ticket, _)| *ticket).find(is_awaited)
    }

    /// Whether every event is a shard's answer to a ticket that is not the newest.
    pub(crate) fn are_all_stale(&self, answers: &[Answer]) -> bool {
        answers.iter().all(|answer| match &answer.event {
            Event::ShardDone { ticket, .. }
            | Event::ShardFailed { ticket, .. }
            | Event::ShardStopped { ticket }
            | Event::ShardAdvanced { ticket, .. } => {
                self.started.get(&(ticket.step, ticket.shard)) != Some(&ticket.attempt)
            }
            Event::TaskDone { .. }
            | Event::TaskFailed { .. }
            | Event::TaskAdvanced { .. }
            | Event::CutLost
            | Event::Steered(_)
            | Event::Tick => false,
        })
    }
}

/// The jobs of all processes of a run: drivers and workers borrow them.
#[derive(Default)]
pub(crate) struct Jobs {
    first: OnceCell<Box<Node>>,
}

struct Node {
    job: Box<dyn Job>,
    next: OnceCell<Box<Node>>,
}

impl Jobs {
    /// Keeps a job until the end of the run.
    pub(crate) fn push(&self, job: Box<dyn Job>) -> &dyn Job {
        let mut end = &self.first;
        while let Some(node) = end.get() {
            end = &node.next;
        }
        &*end.get_or_init(|| Box::new(Node { job, next: OnceCell::new() })).job
    }
}
