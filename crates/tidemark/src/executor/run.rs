//! The loop: answers in, transitions committed, work out.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Scope;
use std::time::Duration;

use super::commit::{Driver, Orders, Recovered};
use super::hold;
use super::{ChunkOutcome, Ended, Job, Observer, Stop, TableProgress};
use crate::catalog::Catalog;
use crate::database::Fence;
use crate::env::{BootTime, Env};
use crate::error::{Error, Kind, Result};
use crate::ids::{Epoch, OperationId, ShardIdx};
use crate::operation::{
    Desired, Effect, Event, Failure, Moment, Operation, PausedBy, Phase, Request, RetryPolicy,
    TaskTicket, Ticket, Work,
};

/// Longest time the driver waits for an answer before it looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);
/// Time between two renewals of the lease.
const RENEW: Duration = Duration::from_secs(2);
/// Time between two writes of what people look at; five small commits a second.
const TICK: Duration = Duration::from_millis(200);
/// Answers that one commit takes in; more wait for the next, so that the lease is renewed.
const ANSWERS_MAX: usize = 4096;
/// Shards up to which progress is broken down by table.
const TABLE_PROGRESS_SHARDS_MAX: u64 = 100_000;

/// What the caller of [`run`] wants besides driving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Carry on, also after a pause or a failure.
    CarryOn,
    /// Undo and end.
    Cancel,
}

/// What the driver thread hears.
enum Heard {
    Event(Event),
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
    let (mut driver, recovered) = Driver::load(catalog, hold, job, id, RetryPolicy::default())?;
    let (answers, heard) = channel();
    let ended = std::thread::scope(|scope| {
        let mut crew = Crew {
            scope,
            job,
            fence: Fence { operation: id, epoch: driver.epoch() },
            answers,
            working: HashMap::new(),
            is_fenced: false,
        };
        let mut watch =
            Watch { job, env, interrupted, observer, last: Times::now(env), has_paused: false };
        let driven = begin(&mut driver, recovered, intent, &mut crew, &mut watch)
            .and_then(|()| drive(&mut driver, &heard, &mut crew, &mut watch));
        // Whatever happened, nobody works on once the driver has left.
        crew.stop();
        driven
    });
    ended?;
    Ok(ended_as(driver.operation(), job))
}

/// The first transitions: requests that waited, what the caller wants, what recovery asks for.
fn begin(
    driver: &mut Driver<'_>,
    recovered: Recovered,
    intent: Intent,
    crew: &mut Crew<'_, '_>,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let is_ended = driver.operation().state().phase.is_terminal();
    if is_ended {
        return Ok(());
    }
    let requests = driver.requests()?;
    let seen = requests.last().map(|(number, _)| *number);
    let waited = requests.into_iter().map(|(_, request)| request);
    let events: Vec<Event> = match intent {
        // First of all: any other event would ask for work that nobody wants.
        Intent::Cancel => {
            std::iter::once(Request::Cancel).chain(waited).map(Event::Steered).collect()
        }
        Intent::CarryOn => {
            // First of all: any other event would ask for work on the cut that is gone.
            let lost = (recovered == Recovered::CutLost).then_some(Event::CutLost);
            // Pauses that waited meant the operation as it stood; whoever starts it anew wants
            // it to run.
            let waited = waited.filter(|request| !matches!(request, Request::Pause { .. }));
            let steered = waited.chain([Request::Resume]);
            let steered = steered.map(|request| Event::Steered(watch.bounded(request)));
            lost.into_iter().chain(steered).collect()
        }
    };
    let orders = driver.commit_then_act(events, watch.moment(), seen)?;
    crew.act(orders, watch);
    let orders = driver.recover(watch.moment())?;
    crew.act(orders, watch);
    Ok(())
}

fn drive(
    driver: &mut Driver<'_>,
    heard: &Receiver<Heard>,
    crew: &mut Crew<'_, '_>,
    watch: &mut Watch<'_>,
) -> Result<()> {
    watch.show(driver.operation());
    loop {
        // Undoing rests between its tries for ever; whoever interrupts it meanwhile may go.
        let may_leave = driver.operation().is_at_rest()
            || watch.has_paused && driver.operation().state().desired == Desired::Cancelled;
        if may_leave && crew.working.is_empty() {
            watch.show(driver.operation());
            return Ok(());
        }
        let mut events = crew.hear(heard);
        let mut seen = None;
        watch.look_around(driver, &mut events, &mut seen)?;
        let is_ended = driver.operation().state().phase.is_terminal();
        if std::mem::take(&mut crew.is_fenced) && !is_ended {
            crew.claim_again(driver)?;
        }
        if !events.is_empty() || seen.is_some() {
            let orders = driver.commit_then_act(events, watch.moment(), seen)?;
            crew.act(orders, watch);
        }
    }
}

fn ended_as(operation: &Operation, job: &dyn Job) -> Ended {
    match (&operation.state().phase, &operation.state().desired) {
        (Phase::Done { .. }, _) => Ended::Done { outcome: job.outcome() },
        (Phase::Cancelled { .. }, _) => Ended::Cancelled,
        (Phase::Failed { failure, .. }, _) => Ended::Failed(failure.clone()),
        (Phase::Working(_) | Phase::Reverting { .. }, Desired::Paused { by, why }) => {
            Ended::Paused { by: *by, why: why.clone() }
        }
        (Phase::Working(_) | Phase::Reverting { .. }, Desired::Cancelled) => {
            let why = match &operation.state().task.reason {
                Some(reason) => format!("interrupted while undoing, which fails: {reason}"),
                None => "interrupted while undoing".to_owned(),
            };
            Ended::Paused { by: PausedBy::Person, why }
        }
        (Phase::Working(_) | Phase::Reverting { .. }, Desired::Run) => {
            unreachable!("the loop ends only at rest")
        }
    }
}

/// The threads that work.
struct Crew<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    job: &'env dyn Job,
    fence: Fence,
    answers: Sender<Heard>,
    working: HashMap<Running, Worker>,
    /// Whether the target refused our fence, although nobody has taken the operation.
    is_fenced: bool,
}

/// A worker thread as the driver sees it.
struct Worker {
    stop: Stop,
    /// Epoch under which it writes.
    epoch: Epoch,
}

impl<'scope> Crew<'scope, '_> {
    /// Performs effects; what they are about is durable.
    fn act(&mut self, orders: Orders, watch: &mut Watch<'_>) {
        orders.refused.into_iter().for_each(|refusal| watch.observer.refused(refusal));
        for effect in orders.effects {
            match effect {
                Effect::StopInFlight => self.stop(),
                Effect::StopShard(ticket) => {
                    if let Some(worker) = self.working.get(&Running::Shard(ticket)) {
                        worker.stop.ask();
                    }
                }
                Effect::RunTask(ticket) => self.start_task(ticket),
                Effect::RunShard(ticket) => self.start_shard(ticket),
            }
        }
    }

    fn stop(&self) {
        self.working.values().for_each(|worker| worker.stop.ask());
    }

    /// Raises the fence anew where the rows are.
    ///
    /// Somebody who tried to take the operation and failed may have raised it before.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when somebody did take it: the hold is gone.
    fn claim_again(&mut self, driver: &mut Driver<'_>) -> Result<()> {
        driver.renew()?;
        let epoch = self.job.allocate_epoch()?;
        let fence = Fence { epoch, ..self.fence };
        self.job.claim(fence, &driver.operation().state().phase)?;
        self.fence = fence;
        Ok(())
    }

    /// Notices an answer that says our fence is no longer current.
    fn notice_fence(&mut self, event: &Event) {
        let (work, failure) = match event {
            Event::TaskFailed { ticket, failure } => (Running::Task(*ticket), failure),
            Event::ShardFailed { ticket, failure } => (Running::Shard(*ticket), failure),
            Event::TaskDone { .. }
            | Event::TaskAdvanced { .. }
            | Event::ShardAdvanced { .. }
            | Event::ShardDone { .. }
            | Event::ShardStopped { .. }
            | Event::CutLost
            | Event::Steered(_)
            | Event::Tick => return,
        };
        // One that wrote under an earlier epoch of ours says nothing about this one.
        let is_current = self.working.get(&work).is_some_and(|w| w.epoch == self.fence.epoch);
        self.is_fenced |= failure.kind == Kind::Fenced && is_current;
    }

    fn enlist(&mut self, work: Running) -> Stop {
        let stop = Stop::default();
        self.working.insert(work, Worker { stop: stop.clone(), epoch: self.fence.epoch });
        stop
    }

    fn start_task(&mut self, ticket: TaskTicket) {
        let (job, fence, answers) = (self.job, self.fence, self.answers.clone());
        let stop = self.enlist(Running::Task(ticket));
        self.scope.spawn(move || {
            let tell = |heard| {
                // The driver may have left; then nobody wants to know.
                let _ = answers.send(heard);
            };
            let advanced = |bytes| tell(Heard::Event(Event::TaskAdvanced { ticket, bytes }));
            let done = caught(|| job.run_task(ticket, fence, &stop, &advanced));
            tell(Heard::Event(match done {
                Ok(outcome) => Event::TaskDone { ticket, outcome },
                Err(error) => Event::TaskFailed { ticket, failure: failure(&error) },
            }));
            tell(Heard::WorkerEnded(Running::Task(ticket)));
        });
    }

    fn start_shard(&mut self, ticket: Ticket) {
        let (job, fence, answers) = (self.job, self.fence, self.answers.clone());
        let stop = self.enlist(Running::Shard(ticket));
        self.scope.spawn(move || {
            let tell = |heard| {
                let _ = answers.send(heard);
            };
            let advanced = |done, last_key| {
                tell(Heard::Event(Event::ShardAdvanced { ticket, done, last_key }));
            };
            let answer = match caught(|| run_shard(job, ticket, fence, &stop, &advanced)) {
                Ok(Some(done)) => Event::ShardDone { ticket, done },
                Ok(None) => Event::ShardStopped { ticket },
                Err(error) => Event::ShardFailed { ticket, failure: failure(&error) },
            };
            tell(Heard::Event(answer));
            tell(Heard::WorkerEnded(Running::Shard(ticket)));
        });
    }

    /// What was answered, waiting a moment if nothing was.
    fn hear(&mut self, heard: &Receiver<Heard>) -> Vec<Event> {
        let mut events = Vec::new();
        let first = match heard.recv_timeout(LOOK_AROUND) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the crew keeps a sender of its own")
            }
        };
        for heard in first.into_iter().chain(heard.try_iter().take(ANSWERS_MAX)) {
            match heard {
                Heard::Event(event) => {
                    self.notice_fence(&event);
                    events.push(event);
                }
                Heard::WorkerEnded(work) => {
                    self.working.remove(&work);
                }
            }
        }
        events
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

/// The driver's view of time and of the people around it.
struct Watch<'a> {
    job: &'a dyn Job,
    env: &'a dyn Env,
    interrupted: &'a Stop,
    observer: &'a mut dyn Observer,
    last: Times,
    /// Whether the interrupt has been turned into a pause.
    has_paused: bool,
}

/// When things were done last.
struct Times {
    renewed: BootTime,
    ticked: BootTime,
    shown: BootTime,
}

impl Times {
    fn now(env: &dyn Env) -> Times {
        let now = env.boot_time();
        Times { renewed: now, ticked: now, shown: now }
    }
}

impl Watch<'_> {
    fn moment(&self) -> Moment {
        Moment { now: self.env.boot_time(), chance: self.env.random() }
    }

    /// Renews the lease, reads requests, notices an interrupt, ticks when it is time.
    fn look_around(
        &mut self,
        driver: &mut Driver<'_>,
        events: &mut Vec<Event>,
        seen: &mut Option<u64>,
    ) -> Result<()> {
        if driver.operation().state().phase.is_terminal() {
            // Held by nobody any more; what is still asked of it changes nothing.
            return Ok(());
        }
        let now = self.env.boot_time();
        if now.since(self.last.shown) >= LOOK_AROUND {
            self.last.shown = now;
            self.show(driver.operation());
            for (number, request) in driver.requests()? {
                *seen = Some(number);
                events.push(Event::Steered(self.bounded(request)));
            }
            if self.interrupted.is_asked() && !self.has_paused {
                self.has_paused = true;
                let why = "interrupted".to_owned();
                events.push(Event::Steered(Request::Pause { by: PausedBy::Person, why }));
            }
        }
        if now.since(self.last.renewed) >= RENEW {
            self.last.renewed = now;
            driver.renew()?;
        }
        let is_due = driver.operation().next_due().is_some_and(|due| due <= now);
        if is_due || now.since(self.last.ticked) >= TICK {
            self.last.ticked = now;
            events.push(Event::Tick);
        }
        Ok(())
    }

    /// The request as it can be met: no wider window than fits the memory.
    fn bounded(&mut self, request: Request) -> Request {
        let max = self.job.window_max();
        match request {
            Request::Window(asked) if asked > max => {
                self.observer.window_bounded(max);
                Request::Window(max)
            }
            Request::Window(_) | Request::Pause { .. } | Request::Resume | Request::Cancel => {
                request
            }
        }
    }

    fn show(&mut self, operation: &Operation) {
        let tables = self.table_progress(operation);
        self.observer.progress(operation, &tables);
    }

    fn table_progress(&self, operation: &Operation) -> Vec<TableProgress> {
        let Some(step) = operation.state().phase.step() else { return Vec::new() };
        if operation.shard_count() > TABLE_PROGRESS_SHARDS_MAX {
            return Vec::new();
        }
        let fresh = |name| TableProgress { name, planned: Work::default(), done: Work::default() };
        let mut tables: Vec<TableProgress> = self.job.tables().into_iter().map(fresh).collect();
        for shard in 0..operation.shard_count() as u32 {
            let shard = ShardIdx(shard);
            let table = self.job.table_of(step, shard).and_then(|table| tables.get_mut(table));
            if let Some(table) = table {
                let (planned, done) = operation.shard_work(shard);
                table.planned += planned;
                table.done += done;
            }
        }
        tables
    }
}
