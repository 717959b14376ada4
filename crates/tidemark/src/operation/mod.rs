//! An operation, as a pure state machine: restore, backup and verify are all one.
//!
//! Nothing here performs I/O, reads a clock or draws a random number: time and
//! chance come with each event in a [`Moment`]. [`Operation::step`] applies an
//! [`Event`] and returns what to write ([`Changes`]) and what to do ([`Effect`]);
//! the executor commits the first, then performs the second. A restart builds
//! the operation from what was written and calls [`Operation::recover`], which
//! asks for the same work again: recovery is the ordinary path.

mod event;
mod phase;
mod progress;
pub mod retry;
mod shards;

#[cfg(test)]
mod tests;

pub use event::{Effect, Event, Request, Task, TaskOutcome, TaskTicket, Ticket, Work};
pub use phase::{ApplyStage, Desired, Failure, PausedBy, Phase, Working};
pub use progress::{Percent, Planned};
pub use retry::RetryPolicy;
pub use shards::{ShardProgress, ShardStatus};

use crate::env::BootTime;
use crate::error::Kind;
use crate::ids::{Attempt, OperationId, ShardIdx, StepIdx, Txn};
use crate::planted::{self, Bug};
use retry::Decision;
use shards::Shards;

/// Shards that run at once unless an option says otherwise; the plan's bound of 10.
pub const WINDOW_DEFAULT: u32 = 10;

/// Shards that can run at once at most; each is a thread of the driver.
pub const WINDOW_MAX: u32 = 1024;

/// Time and chance, as the outside world gives them with an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Now.
    pub now: BootTime,
    /// 64 random bits.
    pub chance: u64,
}

/// What is durable about an operation besides its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub phase: Phase,
    /// What people want of it.
    pub desired: Desired,
    /// Shards that may run at once; from 1 to [`WINDOW_MAX`].
    pub window: u32,
    /// How the task of the current phase fares.
    pub task: TaskState,
    /// Work of the whole plan, per step and for the proof.
    pub planned: Planned,
    /// Work of the steps that are finished.
    pub finished: Work,
    /// The greatest percentage ever shown; it never turns back. It rises only in transitions
    /// that are made durable, so that no restart shows less than was seen before.
    pub percent: Percent,
}

/// Attempts of the task that the current phase asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskState {
    /// Attempts started.
    pub attempt: Attempt,
    /// Failures in a row.
    pub failures: u32,
    /// When the next attempt may start.
    pub rests_until: Option<BootTime>,
    /// What the last attempt failed of, while it is tried again.
    pub reason: Option<String>,
}

impl State {
    /// The state of a new operation.
    pub fn new(planned: Planned, window: u32) -> State {
        State {
            phase: Phase::FIRST,
            desired: Desired::Run,
            window: window.clamp(1, WINDOW_MAX),
            task: TaskState::default(),
            planned,
            finished: Work::default(),
            percent: Percent::ZERO,
        }
    }
}

/// One operation in memory: its durable state and the shards of its current step.
#[derive(Clone, Debug)]
pub struct Operation {
    id: OperationId,
    step_count: u32,
    policy: RetryPolicy,
    state: State,
    shards: Shards,
    /// The task in flight; never stored, since nobody runs it after a restart.
    task: Option<(TaskTicket, u64)>,
}

/// What a transition makes durable, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Shards whose record changes, in order; the last one of a shard counts.
    pub shards: Vec<(StepIdx, ShardIdx, ShardProgress)>,
    /// Which shard records are removed before those are written.
    pub removed: Removed,
}

/// Shard records that a transition removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removed {
    /// None.
    #[default]
    Nothing,
    /// Those of one step: a backup starts over at a new cut.
    Step(StepIdx),
    /// All: the operation has ended.
    All,
}

/// What to write, then what to do. The state itself is always written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transition {
    /// Written first.
    pub changes: Changes,
    /// Performed after.
    pub effects: Vec<Effect>,
    /// What the one who asked is told, when nothing was done about the request.
    pub refused: Option<Refusal>,
    /// Whether anything changed; nothing needs to be written otherwise.
    pub changed: bool,
}

/// Why a request changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Publishing began: there is no way back.
    PointOfNoReturn,
    /// The operation has ended.
    Ended,
    /// The operation is being cancelled, which is not taken back.
    Cancelling,
}

/// The event cannot happen in this phase: a bug, or a corrupt catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IllegalEvent {
    /// Phase.
    pub phase: &'static str,
    /// Event.
    pub event: Event,
}

impl std::fmt::Display for IllegalEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event {:?} cannot happen while {}", self.event, self.phase)
    }
}

impl std::error::Error for IllegalEvent {}

impl Operation {
    /// The operation as the catalog has it. `planned` is the work of each shard of the
    /// current step and `stored` their records, where [`Phase::has_shards`].
    pub fn new(
        id: OperationId,
        step_count: u32,
        policy: RetryPolicy,
        state: State,
        planned: &[Work],
        stored: impl IntoIterator<Item = (ShardIdx, ShardProgress)>,
    ) -> Operation {
        assert!(step_count > 0, "a plan has at least one step: checked when it was made");
        let shards = Shards::new(planned, stored);
        Operation { id, step_count, policy, state, shards, task: None }
    }

    /// Its number.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// What is durable of it besides the shards.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Number of shards of the current step.
    pub fn shard_count(&self) -> u64 {
        self.shards.count()
    }

    /// Shards of the current step that are done.
    pub fn shards_done(&self) -> u64 {
        self.shards.done_count()
    }

    /// Shards running now.
    pub fn in_flight_count(&self) -> u32 {
        self.shards.in_flight_count()
    }

    /// What the catalog keeps of one shard of the current step.
    pub fn shard_progress(&self, shard: ShardIdx) -> ShardProgress {
        self.shards.progress(shard)
    }

    /// Planned and done work of one shard of the current step, as progress counts it.
    pub fn shard_work(&self, shard: ShardIdx) -> (Work, Work) {
        self.shards.work(shard)
    }

    /// Whether nothing runs and nothing will start by itself: ended, failed or paused.
    pub fn is_at_rest(&self) -> bool {
        let nothing_runs = self.task.is_none() && self.shards.in_flight_count() == 0;
        let nothing_starts = match self.state.phase {
            Phase::Done { .. } | Phase::Cancelled { .. } | Phase::Failed { .. } => true,
            Phase::Working(_) => matches!(self.state.desired, Desired::Paused { .. }),
            Phase::Reverting { .. } => matches!(self.state.desired, Desired::Paused { .. }),
        };
        nothing_runs && nothing_starts
    }

    /// When a [`Event::Tick`] is due at the latest, because a rest ends then.
    pub fn next_due(&self) -> Option<BootTime> {
        if self.state.desired != Desired::Run {
            return self.state.task.rests_until;
        }
        [self.state.task.rests_until, self.shards.next_due()].into_iter().flatten().min()
    }

    /// Work done so far over the whole plan, the proof included.
    pub fn done(&self) -> Work {
        let mut done = self.state.finished;
        match &self.state.phase {
            Phase::Working(Working::Waiting { .. })
            | Phase::Failed { was: Working::Waiting { .. }, .. } => done += self.shards.done(),
            Phase::Working(_) | Phase::Failed { .. } => {}
            Phase::Reverting { .. } | Phase::Done { .. } | Phase::Cancelled { .. } => {}
        }
        if let Some((_, bytes)) = self.task {
            done.bytes += bytes.min(self.state.planned.proof_bytes);
        }
        done
    }

    /// Asks for everything that the stored state says is to be done; the first call after
    /// building the operation, and the only one that recovery needs.
    pub fn recover(&mut self, moment: Moment) -> Transition {
        let mut transition = Transition::default();
        self.settle(moment, &mut transition);
        transition
    }

    /// Applies `event`.
    ///
    /// An answer to a ticket that is no longer awaited is legal and changes nothing,
    /// because workers may answer late or twice. After an error the operation is unchanged.
    ///
    /// # Errors
    /// [`IllegalEvent`] for an event that cannot happen in this phase.
    pub fn step(&mut self, event: Event, moment: Moment) -> Result<Transition, IllegalEvent> {
        let mut transition = Transition::default();
        match event {
            Event::TaskDone { ticket, ref outcome } => {
                if !self.is_awaited(&ticket) {
                    return Ok(transition);
                }
                if !self.task_done(outcome, &mut transition) {
                    return Err(self.illegal(event));
                }
                transition.changed = true;
            }
            Event::TaskFailed { ticket, failure } => {
                if !self.is_awaited(&ticket) {
                    return Ok(transition);
                }
                self.task_failed(failure, moment, &mut transition);
                transition.changed = true;
            }
            Event::TaskAdvanced { ticket, bytes } => {
                if let Some((awaited, done)) = &mut self.task
                    && *awaited == ticket
                {
                    *done = bytes;
                }
                return Ok(transition);
            }
            Event::ShardAdvanced { ticket, done, last_key } => {
                if self.is_running(&ticket) {
                    self.shards.advance(ticket.shard, done, last_key, moment.now);
                }
                return Ok(transition);
            }
            Event::ShardDone { ticket, done } => {
                if !self.is_running(&ticket) {
                    return self.unawaited(ticket, Event::ShardDone { ticket, done });
                }
                self.shards.finish(ticket.shard, done);
                self.record(ticket.shard, &mut transition);
            }
            Event::ShardFailed { ticket, failure } => {
                if !self.is_running(&ticket) {
                    return self.unawaited(ticket, Event::ShardFailed { ticket, failure });
                }
                self.shard_failed(ticket.shard, failure, moment, &mut transition);
            }
            Event::ShardStopped { ticket } => {
                if !self.is_running(&ticket) {
                    return self.unawaited(ticket, Event::ShardStopped { ticket });
                }
                self.shards.put_back(ticket.shard);
                self.record(ticket.shard, &mut transition);
            }
            Event::CutLost => self.cut_lost(&mut transition)?,
            Event::Steered(request) => self.steer(request, &mut transition),
            Event::Tick => self.tick(moment, &mut transition),
        }
        self.settle(moment, &mut transition);
        if transition.changed {
            self.state.percent = self.percent_reached();
        }
        Ok(transition)
    }

    /// Moves on what the answer to the awaited task allows; `false` if it answers another question.
    fn task_done(&mut self, outcome: &TaskOutcome, transition: &mut Transition) -> bool {
        let next = match (&self.state.phase, outcome) {
            (Phase::Working(Working::Allocating), TaskOutcome::Allocated(txn)) => {
                Phase::Working(Working::Proposing { txn: *txn, step: StepIdx(0) })
            }
            (&Phase::Working(Working::Proposing { txn, step }), TaskOutcome::Accepted(planned)) => {
                self.shards = Shards::new(planned, []);
                self.state.planned.cut_step(step, self.shards.planned());
                Phase::Working(Working::Waiting { txn, step })
            }
            (&Phase::Working(Working::Applying { txn, stage }), outcome) => {
                match (stage, outcome) {
                    (ApplyStage::Sealing, TaskOutcome::Sealed) => {
                        let next = match planted::is(Bug::PublishBeforeProof) {
                            true => ApplyStage::Publishing,
                            false => ApplyStage::Proving,
                        };
                        Phase::Working(Working::Applying { txn, stage: next })
                    }
                    (ApplyStage::Proving, TaskOutcome::Proved) => {
                        self.state.finished.bytes += self.state.planned.proof_bytes;
                        Phase::Working(Working::Applying { txn, stage: ApplyStage::Publishing })
                    }
                    (ApplyStage::Publishing, TaskOutcome::Published) => {
                        transition.changes.removed = Removed::All;
                        Phase::Done { txn }
                    }
                    (
                        ApplyStage::Sealing | ApplyStage::Proving | ApplyStage::Publishing,
                        TaskOutcome::Allocated(_)
                        | TaskOutcome::Accepted(_)
                        | TaskOutcome::Sealed
                        | TaskOutcome::Proved
                        | TaskOutcome::Published
                        | TaskOutcome::Discarded,
                    ) => return false,
                }
            }
            (&Phase::Reverting { txn }, TaskOutcome::Discarded) => {
                transition.changes.removed = Removed::All;
                Phase::Cancelled { txn }
            }
            // Publishing had succeeded after all, and nobody had heard of it.
            (&Phase::Reverting { txn: Some(txn) }, TaskOutcome::Published) => {
                transition.changes.removed = Removed::All;
                transition.refused = Some(Refusal::PointOfNoReturn);
                Phase::Done { txn }
            }
            (
                Phase::Working(
                    Working::Allocating | Working::Proposing { .. } | Working::Waiting { .. },
                )
                | Phase::Failed { .. }
                | Phase::Reverting { .. }
                | Phase::Done { .. }
                | Phase::Cancelled { .. },
                TaskOutcome::Allocated(_)
                | TaskOutcome::Accepted(_)
                | TaskOutcome::Sealed
                | TaskOutcome::Proved
                | TaskOutcome::Published
                | TaskOutcome::Discarded,
            ) => return false,
        };
        self.enter(next);
        true
    }

    fn task_failed(&mut self, failure: Failure, moment: Moment, transition: &mut Transition) {
        self.task = None;
        self.state.task.failures = self.state.task.failures.saturating_add(1);
        let failures = self.state.task.failures;
        // Undoing is tried for ever, since only it gives the reserved names back; but where a
        // person must make room first, or end a frozen process, it stands still until one says so.
        let is_undoing = matches!(self.state.phase, Phase::Reverting { .. });
        let is_obstructed = matches!(failure.kind, Kind::Blocked | Kind::Held);
        match retry::decide(failure.kind) {
            Decision::Retry | Decision::Pause
                if is_undoing && is_obstructed && failures >= retry::UNDO_OBSTACLE_MAX =>
            {
                self.state.desired =
                    Desired::Paused { by: PausedBy::Obstacle, why: failure.message };
            }
            Decision::Retry | Decision::Pause | Decision::Fail if is_undoing => {
                self.rest_task(failure, moment);
            }
            Decision::Retry if failures < self.policy.failures_max => {
                self.rest_task(failure, moment);
            }
            Decision::Pause => self.obstacle(failure, transition),
            Decision::Retry | Decision::Fail => self.fail(failure, transition),
        }
    }

    fn rest_task(&mut self, failure: Failure, moment: Moment) {
        let rest = self.policy.backoff(self.state.task.failures, moment.chance);
        self.state.task.rests_until = Some(moment.now.after(rest));
        self.state.task.reason = Some(failure.message);
    }

    fn shard_failed(
        &mut self,
        shard: ShardIdx,
        failure: Failure,
        moment: Moment,
        transition: &mut Transition,
    ) {
        let failures = self.shards.count_failure(shard, &failure.message);
        match retry::decide(failure.kind) {
            Decision::Retry if failures < self.policy.failures_max => {
                let rest = self.policy.backoff(failures, moment.chance);
                self.shards.rest(shard, moment.now.after(rest));
                self.record(shard, transition);
            }
            Decision::Pause => {
                self.shards.put_back(shard);
                self.record(shard, transition);
                self.obstacle(failure, transition);
            }
            Decision::Retry | Decision::Fail => {
                self.shards.put_back(shard);
                self.record(shard, transition);
                self.fail(failure, transition);
            }
        }
    }

    /// Stands still until somebody removed the obstacle.
    fn obstacle(&mut self, failure: Failure, transition: &mut Transition) {
        transition.changed = true;
        if self.state.desired == Desired::Run {
            self.state.desired = Desired::Paused { by: PausedBy::Obstacle, why: failure.message };
            transition.effects.push(Effect::StopInFlight);
        }
    }

    /// Ends the work; the siblings are stopped, and their answers no longer awaited.
    fn fail(&mut self, failure: Failure, transition: &mut Transition) {
        transition.changed = true;
        match self.state.phase {
            Phase::Working(was) => {
                if self.shards.in_flight_count() > 0 {
                    transition.effects.push(Effect::StopInFlight);
                }
                self.release(transition);
                let was = match (was, failure.kind) {
                    // What was made can never be published: no publishing is left to be
                    // protected from a cancel, and whoever resumes begins at a new cut.
                    (Working::Applying { txn, .. }, Kind::Overtaken) => {
                        self.start_over(txn, StepIdx(0), transition)
                    }
                    (was, _) => was,
                };
                self.state.phase = Phase::Failed { was, failure };
            }
            Phase::Reverting { .. } => unreachable!("undoing rests and is tried again"),
            Phase::Failed { .. } | Phase::Done { .. } | Phase::Cancelled { .. } => {
                unreachable!("nothing is in flight in these phases")
            }
        }
    }

    /// Takes every running shard back into the queue.
    fn release(&mut self, transition: &mut Transition) {
        let running: Vec<ShardIdx> = self.shards.running().map(|(shard, ..)| shard).collect();
        for shard in running {
            self.shards.put_back(shard);
            self.record(shard, transition);
        }
    }

    fn cut_lost(&mut self, transition: &mut Transition) -> Result<(), IllegalEvent> {
        let lost = match &self.state.phase {
            Phase::Working(was) | Phase::Failed { was, .. } => *was,
            // Undoing needs no cut.
            Phase::Reverting { .. } => return Ok(()),
            Phase::Done { .. } | Phase::Cancelled { .. } => {
                return Err(self.illegal(Event::CutLost));
            }
        };
        let (txn, step) = match lost {
            Working::Proposing { txn, step } | Working::Waiting { txn, step } => (txn, step),
            // Parts of the lost cut cannot be published either.
            Working::Applying { txn, .. } => (txn, StepIdx(0)),
            Working::Allocating => return Err(self.illegal(Event::CutLost)),
        };
        let again = self.start_over(txn, step, transition);
        match std::mem::replace(&mut self.state.phase, Phase::FIRST) {
            // It stays failed until somebody resumes it, and then begins at a new cut.
            Phase::Failed { failure, .. } => self.enter(Phase::Failed { was: again, failure }),
            Phase::Working(_)
            | Phase::Reverting { .. }
            | Phase::Done { .. }
            | Phase::Cancelled { .. } => self.enter(Phase::Working(again)),
        }
        Ok(())
    }

    /// Drops what was done in `step`, which is to be proposed again.
    fn start_over(&mut self, txn: Txn, step: StepIdx, transition: &mut Transition) -> Working {
        transition.changed = true;
        transition.changes = Changes { shards: Vec::new(), removed: Removed::Step(step) };
        self.shards = Shards::default();
        self.state.finished = Work::default();
        Working::Proposing { txn, step }
    }

    fn steer(&mut self, request: Request, transition: &mut Transition) {
        transition.refused = match (&self.state.phase, &self.state.desired, &request) {
            (Phase::Done { .. } | Phase::Cancelled { .. }, _, _) => Some(Refusal::Ended),
            // Whether publishing succeeds is for the target to say; once it was refused, or
            // its driver is gone, undoing is tried, and finds out.
            (
                Phase::Working(Working::Applying { stage: ApplyStage::Publishing, .. }),
                _,
                Request::Cancel,
            ) if self.task.is_some() && !planted::is(Bug::CancelAfterPublishing) => {
                Some(Refusal::PointOfNoReturn)
            }
            // It stands still before an obstacle: undoing is tried once more.
            (Phase::Reverting { .. }, Desired::Paused { .. }, Request::Cancel) => None,
            (Phase::Reverting { .. }, _, Request::Pause { .. } | Request::Cancel)
            | (_, Desired::Cancelled, Request::Pause { .. } | Request::Resume) => {
                Some(Refusal::Cancelling)
            }
            (
                Phase::Working(_) | Phase::Failed { .. } | Phase::Reverting { .. },
                Desired::Run | Desired::Paused { .. } | Desired::Cancelled,
                Request::Pause { .. } | Request::Resume | Request::Cancel | Request::Window(_),
            ) => None,
        };
        if transition.refused.is_some() {
            return;
        }
        transition.changed = true;
        match request {
            Request::Window(window) => self.state.window = window.clamp(1, WINDOW_MAX),
            Request::Pause { by, why } => {
                self.state.desired = Desired::Paused { by, why };
                transition.effects.push(Effect::StopInFlight);
            }
            Request::Cancel => {
                self.state.desired = Desired::Cancelled;
                if matches!(self.state.phase, Phase::Reverting { .. }) {
                    self.forgive_task();
                }
                transition.effects.push(Effect::StopInFlight);
            }
            Request::Resume => {
                // What is being undone is never done any more.
                self.state.desired = match self.state.phase {
                    Phase::Reverting { .. } => Desired::Cancelled,
                    _ => Desired::Run,
                };
                self.forgive_task();
                for shard in self.shards.forgive() {
                    self.record(shard, transition);
                }
                if let Phase::Failed { was, .. } = self.state.phase {
                    self.state.phase = Phase::Working(was);
                }
            }
        }
    }

    /// Forgets that the task failed: its next attempt may start at once.
    fn forgive_task(&mut self) {
        self.state.task.failures = 0;
        self.state.task.rests_until = None;
        self.state.task.reason = None;
    }

    /// Gives up silent attempts and writes what people look at: copies of marks, the percentage.
    fn tick(&mut self, moment: Moment, transition: &mut Transition) {
        let silence_max = self.policy.silence_max;
        let silent: Vec<(ShardIdx, Attempt)> = self
            .shards
            .running()
            .filter(|(_, _, running)| moment.now.since(running.last_heard) >= silence_max)
            .filter(|_| !planted::is(Bug::SilenceIgnored))
            .map(|(shard, attempt, _)| (shard, attempt))
            .collect();
        for (shard, attempt) in silent {
            // One that fell silent with it may have ended the work already.
            if !self.shards.is_running(shard, attempt) {
                continue;
            }
            // It may only be slow; two attempts of one shard would cost twice the memory.
            if let &Phase::Working(Working::Waiting { txn, step }) = &self.state.phase {
                let ticket = Ticket { operation: self.id, txn, step, shard, attempt };
                transition.effects.push(Effect::StopShard(ticket));
            }
            let message = format!("no progress for {} s; started again", silence_max.as_secs());
            let failure = Failure { kind: Kind::Transient, message };
            self.shard_failed(shard, failure, moment, transition);
        }
        if self.state.phase.has_shards() {
            for shard in self.shards.take_newer() {
                self.record(shard, transition);
            }
        }
        transition.changed |= self.percent_reached() > self.state.percent;
    }

    /// Leaves finished steps, turns to what people want, asks for what is due.
    fn settle(&mut self, moment: Moment, transition: &mut Transition) {
        self.turn_back_if_wanted(transition);
        if let Phase::Working(Working::Waiting { txn, step }) = self.state.phase
            && (self.shards.are_all_done() || self.is_barrier_skipped())
            && self.state.desired != Desired::Cancelled
        {
            transition.changed = true;
            // From here the step is what it was, not what it was estimated to be.
            let done = self.shards.really_done();
            self.state.planned.cut_step(step, done);
            self.state.finished += done;
            self.shards = Shards::default();
            let next = StepIdx(step.0 + 1);
            self.enter(Phase::Working(if next.0 < self.step_count {
                Working::Proposing { txn, step: next }
            } else {
                Working::Applying { txn, stage: ApplyStage::Sealing }
            }));
        }
        let before = transition.effects.len();
        match self.wanted_task() {
            Some(task) => self.start_task(task, moment, transition),
            None => self.fill_window(moment, transition),
        }
        transition.changed |= transition.effects.len() > before;
    }

    /// Starts undoing once nothing is in flight any more.
    fn turn_back_if_wanted(&mut self, transition: &mut Transition) {
        let in_flight = self.task.is_some() || self.shards.in_flight_count() > 0;
        if self.state.desired != Desired::Cancelled || in_flight {
            return;
        }
        let txn = match self.state.phase {
            // A cancel that came while the proof ran loses against publishing only if
            // publishing was reached, and then it was refused.
            Phase::Working(working) | Phase::Failed { was: working, .. } => working.txn(),
            Phase::Reverting { .. } | Phase::Done { .. } | Phase::Cancelled { .. } => return,
        };
        transition.changed = true;
        self.shards = Shards::default();
        self.enter(Phase::Reverting { txn });
    }

    /// The task that the phase asks for, if it may start now.
    fn wanted_task(&self) -> Option<Task> {
        match (&self.state.phase, &self.state.desired) {
            (Phase::Working(working), Desired::Run) => match *working {
                Working::Allocating => Some(Task::Allocate),
                Working::Proposing { txn, step } => Some(Task::Propose { txn, step }),
                Working::Waiting { .. } => None,
                Working::Applying { txn, stage } => Some(match stage {
                    ApplyStage::Sealing => Task::Seal { txn },
                    ApplyStage::Proving => Task::Prove { txn },
                    ApplyStage::Publishing => Task::Publish { txn },
                }),
            },
            (&Phase::Reverting { txn }, Desired::Run | Desired::Cancelled) => {
                Some(Task::Discard { txn })
            }
            (Phase::Working(_), Desired::Paused { .. } | Desired::Cancelled)
            | (Phase::Reverting { .. }, Desired::Paused { .. })
            | (Phase::Failed { .. } | Phase::Done { .. } | Phase::Cancelled { .. }, _) => None,
        }
    }

    fn start_task(&mut self, task: Task, moment: Moment, transition: &mut Transition) {
        let is_due = |at| self.policy.is_due(at, moment.now);
        if self.task.is_some() || !self.state.task.rests_until.is_none_or(is_due) {
            return;
        }
        self.state.task.rests_until = None;
        self.state.task.attempt.0 += 1;
        let ticket = TaskTicket { operation: self.id, task, attempt: self.state.task.attempt };
        self.task = Some((ticket, 0));
        transition.effects.push(Effect::RunTask(ticket));
    }

    fn fill_window(&mut self, moment: Moment, transition: &mut Transition) {
        let (&Phase::Working(Working::Waiting { txn, step }), Desired::Run) =
            (&self.state.phase, &self.state.desired)
        else {
            return;
        };
        let policy = self.policy;
        let window = self.state.window + u32::from(planted::is(Bug::WindowExceeded));
        while self.shards.in_flight_count() < window {
            let started = self.shards.start_next(moment.now, |at| policy.is_due(at, moment.now));
            let Some((shard, attempt)) = started else { break };
            self.record(shard, transition);
            let ticket = Ticket { operation: self.id, txn, step, shard, attempt };
            transition.effects.push(Effect::RunShard(ticket));
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.task = None;
        self.state.task = TaskState::default();
        self.state.phase = phase;
    }

    fn record(&mut self, shard: ShardIdx, transition: &mut Transition) {
        if let Some(step) = self.state.phase.step() {
            transition.changes.shards.push((step, shard, self.shards.progress(shard)));
            transition.changed = true;
        }
    }

    fn percent_reached(&self) -> Percent {
        let now = match self.state.phase {
            Phase::Done { .. } => Percent::WHOLE,
            Phase::Working(_)
            | Phase::Failed { .. }
            | Phase::Reverting { .. }
            | Phase::Cancelled { .. } => self.state.planned.percent(self.done()),
        };
        if planted::is(Bug::ProgressTurnsBack) { now } else { self.state.percent.max(now) }
    }

    fn is_awaited(&self, ticket: &TaskTicket) -> bool {
        self.task.as_ref().is_some_and(|(awaited, _)| awaited == ticket)
    }

    fn is_running(&self, ticket: &Ticket) -> bool {
        let attempt = match planted::is(Bug::LateAnswerAccepted) {
            true => self.shards.attempt(ticket.shard).unwrap_or(ticket.attempt),
            false => ticket.attempt,
        };
        ticket.operation == self.id
            && matches!(self.state.phase, Phase::Working(Working::Waiting { txn, step })
                if txn == ticket.txn
                    && (step == ticket.step || planted::is(Bug::AnswerOfEarlierStepAccepted)))
            && self.shards.is_running(ticket.shard, attempt)
    }

    fn is_barrier_skipped(&self) -> bool {
        let is_short_of_one = self.shards.done_count() + 1 == self.shards.count();
        planted::is(Bug::BarrierSkipped) && is_short_of_one
    }

    /// A shard's answer that nobody awaits: late, doubled or stale, or a bug.
    fn unawaited(&self, ticket: Ticket, event: Event) -> Result<Transition, IllegalEvent> {
        let is_ours = ticket.operation == self.id && ticket.attempt.0 > 0;
        match self.state.phase {
            // Nothing was ever started under a number that was not allocated.
            Phase::Working(Working::Allocating) => Err(self.illegal(event)),
            Phase::Working(
                Working::Proposing { .. } | Working::Waiting { .. } | Working::Applying { .. },
            )
            | Phase::Failed { .. }
            | Phase::Reverting { .. }
            | Phase::Done { .. }
            | Phase::Cancelled { .. }
                if is_ours =>
            {
                Ok(Transition::default())
            }
            Phase::Working(_)
            | Phase::Failed { .. }
            | Phase::Reverting { .. }
            | Phase::Done { .. }
            | Phase::Cancelled { .. } => Err(self.illegal(event)),
        }
    }

    fn illegal(&self, event: Event) -> IllegalEvent {
        IllegalEvent { phase: self.state.phase.name(), event }
    }
}
