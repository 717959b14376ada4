//! The loop: one driver, and a thread for each running task or shard.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Scope;

use super::commit::Orders;
use super::hold;
use super::turn::{Answer, Intent, LOOK_AROUND, Turns};
use super::{ChunkOutcome, Ended, Job, Observer, Stop};
use crate::catalog::Catalog;
use crate::database::Fence;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::OperationId;
use crate::operation::{Effect, Event, Failure, Moment, RetryPolicy, TaskTicket, Ticket, Work};

/// Answers that one commit takes in; more wait for the next, so that the lease is renewed.
const ANSWERS_MAX: usize = 4096;

/// What the driver thread hears.
enum Heard {
    Answer(Answer),
    /// A worker thread has ended, after its answer.
    WorkerEnded(Running),
}

/// One piece of running work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Running {
    Task(TaskTicket),
    Shard(Ticket),
}

/// Drives operation `id` until it ends or stands still, and says how.
///
/// `interrupted` is asked about ten times a second; once it is set the operation pauses.
///
/// # Errors
/// [`Kind::Held`] when another process drives it; [`Kind::Fenced`] when another took it over
/// meanwhile; what the catalog gives when it cannot be written. Everything stays resumable.
pub fn run(
    catalog: &dyn Catalog,
    job: &dyn Job,
    id: OperationId,
    intent: Intent,
    env: &dyn Env,
    interrupted: &Stop,
    observer: &mut dyn Observer,
) -> Result<Ended> {
    let hold = hold::take(catalog, job, id, intent, env, observer)?;
    let policy = RetryPolicy::default();
    let mut turns = Turns::load(catalog, hold, job, id, policy, env.boot_time())?;
    let (answers, heard) = channel();
    std::thread::scope(|scope| {
        let mut crew = Crew { scope, job, answers, working: HashMap::new() };
        let driven = drive(&mut turns, intent, &heard, &mut crew, env, interrupted, observer);
        // Whatever happened, nobody works on once the driver has left.
        crew.stop();
        driven
    })?;
    Ok(turns.ended())
}

fn drive(
    turns: &mut Turns<'_>,
    intent: Intent,
    heard: &Receiver<Heard>,
    crew: &mut Crew<'_, '_>,
    env: &dyn Env,
    interrupted: &Stop,
    observer: &mut dyn Observer,
) -> Result<()> {
    let moment = || Moment { now: env.boot_time(), chance: env.random() };
    let orders = turns.begin(intent, moment(), observer)?;
    crew.act(orders, turns.fence(), observer);
    turns.show(observer);
    while !(turns.may_leave() && crew.working.is_empty()) {
        let answers = crew.hear(heard);
        let orders = turns.turn(answers, interrupted.is_asked(), moment(), observer)?;
        crew.act(orders, turns.fence(), observer);
    }
    turns.show(observer);
    Ok(())
}

/// The threads that work.
struct Crew<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    job: &'env dyn Job,
    answers: Sender<Heard>,
    working: HashMap<Running, Stop>,
}

impl<'scope> Crew<'scope, '_> {
    /// Performs effects; what they are about is durable.
    fn act(&mut self, orders: Orders, fence: Fence, observer: &mut dyn Observer) {
        orders.refused.into_iter().for_each(|refusal| observer.refused(refusal));
        for effect in orders.effects {
            match effect {
                Effect::StopInFlight => self.stop(),
                Effect::StopShard(ticket) => {
                    if let Some(stop) = self.working.get(&Running::Shard(ticket)) {
                        stop.ask();
                    }
                }
                Effect::RunTask(ticket) => self.start_task(ticket, fence),
                Effect::RunShard(ticket) => self.start_shard(ticket, fence),
            }
        }
    }

    fn stop(&self) {
        self.working.values().for_each(Stop::ask);
    }

    fn start_task(&mut self, ticket: TaskTicket, fence: Fence) {
        let job = self.job;
        self.start(Running::Task(ticket), fence, move |stop, tell| {
            let advanced = |bytes| tell(Event::TaskAdvanced { ticket, bytes });
            match caught(|| job.run_task(ticket, fence, stop, &advanced)) {
                Ok(outcome) => Event::TaskDone { ticket, outcome },
                Err(error) => Event::TaskFailed { ticket, failure: failure(&error) },
            }
        });
    }

    fn start_shard(&mut self, ticket: Ticket, fence: Fence) {
        let job = self.job;
        self.start(Running::Shard(ticket), fence, move |stop, tell| {
            let advanced = |done, last_key| tell(Event::ShardAdvanced { ticket, done, last_key });
            match caught(|| run_shard(job, ticket, fence, stop, &advanced)) {
                Ok(Some(done)) => Event::ShardDone { ticket, done },
                Ok(None) => Event::ShardStopped { ticket },
                Err(error) => Event::ShardFailed { ticket, failure: failure(&error) },
            }
        });
    }

    /// Starts a thread that does `work` and tells what it gives last.
    fn start(
        &mut self,
        running: Running,
        fence: Fence,
        work: impl FnOnce(&Stop, &(dyn Fn(Event) + Sync)) -> Event + Send + 'scope,
    ) {
        let stop = Stop::default();
        self.working.insert(running, stop.clone());
        let answers = self.answers.clone();
        self.scope.spawn(move || {
            let tell = |event| {
                // The driver may have left; then nobody wants to know.
                let _ = answers.send(Heard::Answer(Answer { event, epoch: fence.epoch }));
            };
            tell(work(&stop, &tell));
            let _ = answers.send(Heard::WorkerEnded(running));
        });
    }

    /// What was answered, waiting a moment if nothing was.
    fn hear(&mut self, heard: &Receiver<Heard>) -> Vec<Answer> {
        let first = match heard.recv_timeout(LOOK_AROUND) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the crew keeps a sender of its own")
            }
        };
        let mut answers = Vec::new();
        for heard in first.into_iter().chain(heard.try_iter().take(ANSWERS_MAX)) {
            match heard {
                Heard::Answer(answer) => answers.push(answer),
                Heard::WorkerEnded(work) => {
                    self.working.remove(&work);
                }
            }
        }
        answers
    }
}

/// Runs a shard to its end; `None` when it was asked to stop.
fn run_shard(
    job: &dyn Job,
    ticket: Ticket,
    fence: Fence,
    stop: &Stop,
    advanced: &dyn Fn(Work, Option<Vec<u8>>),
) -> Result<Option<Work>> {
    if stop.is_asked() {
        return Ok(None);
    }
    let mut run = job.start_shard(ticket, fence)?;
    loop {
        match run.next_chunk()? {
            ChunkOutcome::Done { done } => return Ok(Some(done)),
            ChunkOutcome::Advanced { done, last_key } => advanced(done, last_key),
        }
        if stop.is_asked() {
            return Ok(None);
        }
    }
}

/// A panic of a worker is its failure, not the end of the process.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = format!("a worker panicked: {}; this is a bug", panic_text(&*panic));
        Err(Error::new(Kind::Fatal, message))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn failure(error: &Error) -> Failure {
    Failure { kind: error.kind(), message: error.chain() }
}
