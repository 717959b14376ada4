//! One turn of the loop, without its threads: answers and requests in, what is to be done out.
//!
//! Whoever has the threads calls [`Turns::begin`] once and then [`Turns::turn`] about ten
//! times a second, performs what comes back, and leaves when [`Turns::may_leave`] says so and
//! nothing of it works any more. Time comes with each call, so that a simulator can own it.

use std::time::Duration;

use super::commit::{Driver, Orders, Recovered};
use super::{Ended, Job, Observer, TableProgress};
use crate::catalog::{Catalog, Hold};
use crate::database::Fence;
use crate::env::BootTime;
use crate::error::{Kind, Result};
use crate::ids::{Epoch, OperationId, ShardIdx};
use crate::operation::{
    Desired, Event, Moment, Operation, PausedBy, Phase, Request, RetryPolicy, Work,
};

/// Time between two looks at requests and interrupts, and between two views of progress.
pub(super) const LOOK_AROUND: Duration = Duration::from_millis(100);
/// Time between two renewals of the lease.
const RENEW: Duration = Duration::from_secs(2);
/// Time between two writes of what people look at; five small commits a second.
const TICK: Duration = Duration::from_millis(200);
/// Shards up to which progress is broken down by table.
const TABLE_PROGRESS_SHARDS_MAX: u64 = 100_000;

/// What the caller wants besides driving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Carry on, also after a pause or a failure.
    CarryOn,
    /// Undo and end.
    Cancel,
}

/// What a worker answered, and the epoch under which it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The answer.
    pub event: Event,
    /// Epoch that its fence had.
    pub epoch: Epoch,
}

/// The driver of one operation, from turn to turn.
#[derive(Debug)]
pub struct Turns<'a> {
    driver: Driver<'a>,
    job: &'a dyn Job,
    recovered: Recovered,
    /// Under which new work writes.
    fence: Fence,
    /// Whether the target refused that fence, although nobody has taken the operation.
    is_fenced: bool,
    /// Whether an interrupt has been turned into a pause.
    has_paused: bool,
    looked: BootTime,
    renewed: BootTime,
    ticked: BootTime,
}

impl<'a> Turns<'a> {
    /// Builds the operation from what the catalog holds, under a hold that was just taken.
    ///
    /// # Errors
    /// As [`Driver::load`].
    pub fn load(
        catalog: &dyn Catalog,
        hold: Box<dyn Hold>,
        job: &'a dyn Job,
        id: OperationId,
        policy: RetryPolicy,
        now: BootTime,
    ) -> Result<Turns<'a>> {
        let (driver, recovered) = Driver::load(catalog, hold, job, id, policy)?;
        let fence = Fence { operation: id, epoch: driver.epoch() };
        let (is_fenced, has_paused) = (false, false);
        let (looked, renewed, ticked) = (now, now, now);
        let turns =
            Turns { driver, job, recovered, fence, is_fenced, has_paused, looked, renewed, ticked };
        Ok(turns)
    }

    /// The operation as it is now.
    pub fn operation(&self) -> &Operation {
        self.driver.operation()
    }

    /// The fence under which new work writes.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The first transitions: requests that waited, what the caller wants, what recovery asks for.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub fn begin(
        &mut self,
        intent: Intent,
        moment: Moment,
        observer: &mut dyn Observer,
    ) -> Result<Orders> {
        if self.operation().state().phase.is_terminal() {
            return Ok(Orders::default());
        }
        let (waited, seen) = self.requests()?;
        let waited = waited.into_iter();
        let events: Vec<Event> = match intent {
            // First of all: any other event would ask for work that nobody wants.
            Intent::Cancel => {
                std::iter::once(Request::Cancel).chain(waited).map(Event::Steered).collect()
            }
            Intent::CarryOn => {
                // First of all: any other event would ask for work on the cut that is gone.
                let lost = (self.recovered == Recovered::CutLost).then_some(Event::CutLost);
                // Pauses that waited meant the operation as it stood; whoever starts it anew wants
                // it to run.
                let waited = waited.filter(|request| !matches!(request, Request::Pause { .. }));
                let steered = waited.chain([Request::Resume]);
                let steered = steered.map(|request| self.steered(request, observer));
                lost.into_iter().chain(steered).collect()
            }
        };
        let mut orders = self.driver.commit_then_act(events, moment, seen)?;
        let recovered = self.driver.recover(moment)?;
        orders.effects.extend(recovered.effects);
        orders.refused.extend(recovered.refused);
        Ok(orders)
    }

    /// Takes in what was answered, and whatever is due: requests, the lease, a tick, a view of
    /// progress. Commits what follows and gives what is to be done now.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when somebody else took the operation; what the catalog gives when it
    /// cannot be written. Nothing more may be done then but stop what works, and leave.
    pub fn turn(
        &mut self,
        answers: Vec<Answer>,
        is_interrupted: bool,
        moment: Moment,
        observer: &mut dyn Observer,
    ) -> Result<Orders> {
        let mut events: Vec<Event> = Vec::with_capacity(answers.len());
        for answer in answers {
            self.notice_fence(&answer);
            events.push(answer.event);
        }
        let mut seen = None;
        // Once it has ended nobody holds it; what is still asked of it changes nothing.
        if !self.operation().state().phase.is_terminal() {
            seen = self.look_around(&mut events, is_interrupted, moment.now, observer)?;
            if std::mem::take(&mut self.is_fenced) {
                self.claim_again()?;
            }
        }
        if events.is_empty() && seen.is_none() {
            return Ok(Orders::default());
        }
        self.driver.commit_then_act(events, moment, seen)
    }

    /// Whether a turn would do more than take in answers.
    pub fn is_due(&self, now: BootTime) -> bool {
        self.is_look_due(now) || self.is_renewal_due(now) || self.is_tick_due(now)
    }

    /// Whether nothing more will come of it, once what works now has ended.
    pub fn may_leave(&self) -> bool {
        // Undoing rests between its tries for ever; whoever interrupts it meanwhile may go.
        let is_undoing = self.operation().state().desired == Desired::Cancelled;
        self.operation().is_at_rest() || self.has_paused && is_undoing
    }

    /// How it ended; after [`may_leave`](Self::may_leave) said yes.
    pub fn ended(&self) -> Ended {
        let state = self.operation().state();
        match (&state.phase, &state.desired) {
            (Phase::Done { .. }, _) => Ended::Done { outcome: self.job.outcome() },
            (Phase::Cancelled { .. }, _) => Ended::Cancelled,
            (Phase::Failed { failure, .. }, _) => Ended::Failed(failure.clone()),
            (Phase::Working(_) | Phase::Reverting { .. }, Desired::Paused { by, why }) => {
                Ended::Paused { by: *by, why: why.clone() }
            }
            (Phase::Working(_) | Phase::Reverting { .. }, Desired::Cancelled) => {
                let why = match &state.task.reason {
                    Some(reason) => format!("interrupted while undoing, which fails: {reason}"),
                    None => "interrupted while undoing".to_owned(),
                };
                Ended::Paused { by: PausedBy::Person, why }
            }
            (Phase::Working(_) | Phase::Reverting { .. }, Desired::Run) => {
                unreachable!("nobody leaves what is not at rest")
            }
        }
    }

    /// Shows how far it is.
    pub fn show(&self, observer: &mut dyn Observer) {
        observer.progress(self.operation(), &self.table_progress());
    }

    fn is_look_due(&self, now: BootTime) -> bool {
        now.since(self.looked) >= LOOK_AROUND
    }

    fn is_renewal_due(&self, now: BootTime) -> bool {
        now.since(self.renewed) >= RENEW
    }

    fn is_tick_due(&self, now: BootTime) -> bool {
        let is_due = self.operation().next_due().is_some_and(|due| due <= now);
        is_due || now.since(self.ticked) >= TICK
    }

    /// Shows progress, reads requests, notices an interrupt, renews the lease, ticks; each when
    /// it is time. Gives the number of the last request.
    fn look_around(
        &mut self,
        events: &mut Vec<Event>,
        is_interrupted: bool,
        now: BootTime,
        observer: &mut dyn Observer,
    ) -> Result<Option<u64>> {
        let mut seen = None;
        if self.is_look_due(now) {
            self.looked = now;
            self.show(observer);
            let requests;
            (requests, seen) = self.requests()?;
            events.extend(requests.into_iter().map(|request| self.steered(request, observer)));
            if is_interrupted && !self.has_paused {
                self.has_paused = true;
                let why = "interrupted".to_owned();
                events.push(Event::Steered(Request::Pause { by: PausedBy::Person, why }));
            }
        }
        if self.is_renewal_due(now) {
            self.renewed = now;
            self.driver.renew()?;
        }
        if self.is_tick_due(now) {
            self.ticked = now;
            events.push(Event::Tick);
        }
        Ok(seen)
    }

    /// Requests that wait, and the number of the last one. Of several windows only the last one
    /// counts, so that nothing is begun in a window that somebody took back.
    fn requests(&self) -> Result<(Vec<Request>, Option<u64>)> {
        let waiting = self.driver.requests()?;
        let is_window = |request: &Request| matches!(request, Request::Window(_));
        let window = waiting.iter().rposition(|(_, request)| is_window(request));
        let seen = waiting.last().map(|(number, _)| *number);
        let requests = waiting.into_iter().map(|(_, request)| request).enumerate();
        let counts = |(at, request): &(usize, Request)| !is_window(request) || window == Some(*at);
        Ok((requests.filter(counts).map(|(_, request)| request).collect(), seen))
    }

    /// The request as it can be met: no wider window than fits the memory.
    fn steered(&self, request: Request, observer: &mut dyn Observer) -> Event {
        let max = self.job.window_max();
        Event::Steered(match request {
            Request::Window(asked) if asked > max => {
                observer.window_bounded(max);
                Request::Window(max)
            }
            Request::Window(_) | Request::Pause { .. } | Request::Resume | Request::Cancel => {
                request
            }
        })
    }

    /// Notices an answer that says our fence is no longer current.
    fn notice_fence(&mut self, answer: &Answer) {
        let failure = match &answer.event {
            Event::TaskFailed { failure, .. } | Event::ShardFailed { failure, .. } => failure,
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
        self.is_fenced |= failure.kind == Kind::Fenced && answer.epoch == self.fence.epoch;
    }

    /// Raises the fence anew where the rows are.
    ///
    /// Somebody who tried to take the operation and failed may have raised it before.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when somebody did take it: the hold is gone.
    fn claim_again(&mut self) -> Result<()> {
        self.driver.renew()?;
        let fence = Fence { epoch: self.job.allocate_epoch()?, ..self.fence };
        self.job.claim(fence, &self.operation().state().phase)?;
        self.fence = fence;
        Ok(())
    }

    fn table_progress(&self) -> Vec<TableProgress> {
        let operation = self.operation();
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
