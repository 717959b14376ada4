//! The machine against every phase and event, and against random schedules with restarts.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::Kind;

const ID: OperationId = OperationId(42);
const TXN: Txn = Txn(7);

use crate::ids::Txn;

fn work(bytes: u64) -> Work {
    Work { rows: bytes / 10, bytes }
}

fn planned(steps: u32, shards: u32) -> Planned {
    let step = work(u64::from(shards) * 100);
    Planned { steps: vec![step; steps as usize], proof_bytes: 50 }
}

fn operation(phase: Phase, shards: u32, steps: u32) -> Operation {
    let state = State { phase, ..State::new(planned(steps, shards), 2) };
    let weights = vec![work(100); if state.phase.has_shards() { shards as usize } else { 0 }];
    Operation::new(ID, steps, RetryPolicy::default(), state, &weights, [])
}

fn moment(now: u64) -> Moment {
    Moment { now: BootTime(now), chance: now }
}

fn failure(kind: Kind) -> Failure {
    Failure { kind, message: format!("{} happened", kind.name()) }
}

fn working(working: Working) -> Phase {
    Phase::Working(working)
}

fn waiting(step: u32) -> Phase {
    working(Working::Waiting { txn: TXN, step: StepIdx(step) })
}

fn applying(stage: ApplyStage) -> Phase {
    working(Working::Applying { txn: TXN, stage })
}

fn every_phase() -> Vec<Phase> {
    let mut phases = vec![
        Phase::FIRST,
        working(Working::Proposing { txn: TXN, step: StepIdx(0) }),
        working(Working::Proposing { txn: TXN, step: StepIdx(1) }),
        waiting(0),
        waiting(1),
        applying(ApplyStage::Sealing),
        applying(ApplyStage::Proving),
        applying(ApplyStage::Publishing),
    ];
    let failed = phases.clone().into_iter().filter_map(|phase| match phase {
        Phase::Working(was) => Some(Phase::Failed { was, failure: failure(Kind::Fatal) }),
        _ => None,
    });
    phases.extend(failed.collect::<Vec<Phase>>());
    phases.extend([
        Phase::Reverting { txn: Some(TXN) },
        Phase::Reverting { txn: None },
        Phase::Done { txn: TXN },
        Phase::Cancelled { txn: None },
    ]);
    phases
}

/// Every kind of event, with tickets of the attempt that a first start hands out.
fn every_event() -> Vec<Event> {
    let task = |task| TaskTicket { operation: ID, task, attempt: Attempt(1) };
    let ticket = Ticket {
        operation: ID,
        txn: TXN,
        step: StepIdx(0),
        shard: ShardIdx(0),
        attempt: Attempt(1),
    };
    let mut events = vec![
        Event::ShardAdvanced { ticket, done: work(50), last_key: Some(vec![1]) },
        Event::ShardDone { ticket, done: work(100) },
        Event::ShardStopped { ticket },
        Event::CutLost,
        Event::Tick,
        Event::Steered(Request::Resume),
        Event::Steered(Request::Cancel),
        Event::Steered(Request::Window(5)),
        Event::Steered(Request::Pause { by: PausedBy::Person, why: "lunch".to_owned() }),
    ];
    for kind in [Kind::Transient, Kind::Blocked, Kind::Fatal] {
        events.push(Event::ShardFailed { ticket, failure: failure(kind) });
    }
    let pairs = [
        (Task::Allocate, TaskOutcome::Allocated(TXN)),
        (
            Task::Propose { txn: TXN, step: StepIdx(0) },
            TaskOutcome::Accepted(vec![work(100), work(300), work(200)]),
        ),
        (Task::Seal { txn: TXN }, TaskOutcome::Sealed),
        (Task::Prove { txn: TXN }, TaskOutcome::Proved),
        (Task::Publish { txn: TXN }, TaskOutcome::Published),
        (Task::Discard { txn: Some(TXN) }, TaskOutcome::Discarded),
    ];
    for (of, outcome) in pairs {
        let ticket = task(of);
        events.push(Event::TaskAdvanced { ticket, bytes: 20 });
        events.push(Event::TaskDone { ticket, outcome });
        for kind in [Kind::Transient, Kind::Blocked, Kind::Fatal] {
            events.push(Event::TaskFailed { ticket, failure: failure(kind) });
        }
    }
    events
}

/// What must hold of any operation after any transition.
fn check_invariants(operation: &Operation) {
    let state = operation.state();
    assert!(state.percent <= Percent::WHOLE);
    assert_eq!(
        state.percent == Percent::WHOLE,
        matches!(state.phase, Phase::Done { .. }),
        "100 % means published and proven: {:?}",
        state.phase
    );
    if !matches!(state.phase, Phase::Working(Working::Waiting { .. })) {
        assert_eq!(operation.in_flight_count(), 0, "shards run only while waiting");
    }
}

#[test]
fn every_phase_meets_every_event_without_breaking_an_invariant() {
    let mut met = 0;
    for phase in every_phase() {
        if matches!(phase, Phase::Done { .. }) {
            continue; // Its percentage is 100 by construction; see the terminal test.
        }
        for event in every_event() {
            let mut operation = operation(phase.clone(), 3, 2);
            operation.recover(moment(0));
            let before = operation.clone();
            match operation.step(event.clone(), moment(1)) {
                Ok(_) => check_invariants(&operation),
                Err(illegal) => {
                    assert_eq!(illegal, IllegalEvent { phase: phase.name(), event });
                    assert_eq!(operation.state(), before.state(), "an error changes nothing");
                }
            }
            met += 1;
        }
    }
    assert!(met > 700, "{met}");
}

#[test]
fn terminal_is_terminal() {
    for phase in [Phase::Done { txn: TXN }, Phase::Cancelled { txn: Some(TXN) }] {
        for event in every_event() {
            let mut operation = operation(phase.clone(), 3, 2);
            if let Ok(transition) = operation.step(event, moment(1)) {
                assert!(transition.effects.is_empty());
                assert_eq!(transition.changes, Changes::default());
            }
            assert_eq!(operation.state().phase, phase);
        }
    }
}

#[test]
fn a_shard_answer_before_any_number_was_allocated_is_illegal() {
    let ticket = Ticket {
        operation: ID,
        txn: TXN,
        step: StepIdx(0),
        shard: ShardIdx(0),
        attempt: Attempt(1),
    };
    let mut operation = operation(Phase::FIRST, 1, 1);
    operation.recover(moment(0));
    let event = Event::ShardDone { ticket, done: work(1) };
    let illegal = operation.step(event, moment(1)).unwrap_err();
    assert!(illegal.to_string().contains("allocating"), "{illegal}");
}

/// A world that answers effects in random order, loses and doubles answers, fails shards,
/// restarts, pauses, resumes and changes the window, and checks every step.
struct World {
    rng: u64,
    now: u64,
    operation: Operation,
    /// The catalog's copy of the state: what a restart finds.
    committed: State,
    todo: Vec<Effect>,
    sent: Vec<Event>,
    /// The catalog's copy of the shards: what a restart finds.
    stored: BTreeMap<(StepIdx, ShardIdx), ShardProgress>,
    weights: Vec<Work>,
    /// Shards whose rows of a step are durable in the target.
    durable: BTreeSet<(StepIdx, ShardIdx)>,
    percent: Percent,
    steps: u32,
    shards: u32,
    prove_mismatch: bool,
}

impl World {
    fn new(seed: u64, steps: u32, shards: u32) -> World {
        World {
            rng: seed,
            now: 1,
            operation: operation(Phase::FIRST, shards, steps),
            committed: State::new(planned(steps, shards), 2),
            todo: Vec::new(),
            sent: Vec::new(),
            stored: BTreeMap::new(),
            weights: (0..shards).map(|shard| work(100 + u64::from(shard))).collect(),
            durable: BTreeSet::new(),
            percent: Percent::ZERO,
            steps,
            shards,
            prove_mismatch: false,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng = self.rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.rng >> 33) % n
    }

    fn moment(&mut self) -> Moment {
        Moment { now: BootTime(self.now), chance: self.below(u64::MAX >> 34) }
    }

    fn restart(&mut self) {
        let state = self.committed.clone();
        let step = state.phase.step();
        let has_shards = state.phase.has_shards();
        let weights = if has_shards { self.weights.clone() } else { Vec::new() };
        let stored: Vec<(ShardIdx, ShardProgress)> = self
            .stored
            .iter()
            .filter(|((of, _), _)| has_shards && Some(*of) == step)
            .map(|((_, shard), progress)| (*shard, progress.clone()))
            .collect();
        self.operation =
            Operation::new(ID, self.steps, RetryPolicy::default(), state, &weights, stored);
        let moment = self.moment();
        let transition = self.operation.recover(moment);
        self.todo.clear();
        self.accept(transition);
    }

    fn apply(&mut self, event: Event) {
        let moment = self.moment();
        let transition = self
            .operation
            .step(event.clone(), moment)
            .unwrap_or_else(|illegal| panic!("{illegal}"));
        self.sent.push(event);
        self.accept(transition);
        // Whatever was answered before changes nothing when it comes again.
        let at = self.below(self.sent.len() as u64) as usize;
        let again = self.sent[at].clone();
        if matches!(again, Event::ShardDone { .. } | Event::ShardFailed { .. })
            && !matches!(self.operation.state().phase, Phase::Working(Working::Allocating))
        {
            let (Event::ShardDone { ticket, .. } | Event::ShardFailed { ticket, .. }) = &again
            else {
                unreachable!("matched above")
            };
            if !self.operation.is_running(ticket) {
                let before = self.operation.state().clone();
                let moment = self.moment();
                let transition = self.operation.step(again, moment).unwrap();
                assert_eq!(transition, Transition::default());
                assert_eq!(*self.operation.state(), before);
            }
        }
    }

    fn accept(&mut self, transition: Transition) {
        if transition.changed {
            self.committed = self.operation.state().clone();
        }
        match transition.changes.removed {
            Removed::Nothing => {}
            Removed::Step(step) => self.stored.retain(|(of, _), _| *of != step),
            Removed::All => self.stored.clear(),
        }
        for (step, shard, progress) in transition.changes.shards {
            if progress.status == ShardStatus::Done {
                assert!(self.durable.contains(&(step, shard)), "done before its rows are durable");
            }
            self.stored.insert((step, shard), progress);
        }
        if transition.effects.iter().any(|effect| matches!(effect, Effect::RunShard(_))) {
            let state = self.operation.state();
            assert!(self.operation.in_flight_count() <= state.window, "the window is the bound");
        }
        self.todo.extend(transition.effects);
        check_invariants(&self.operation);
        let percent = self.operation.state().percent;
        assert!(percent >= self.percent, "progress went backwards");
        self.percent = percent;
        if let Some(step) = self.operation.state().phase.step() {
            for earlier in 0..step.0 {
                for shard in 0..self.shards {
                    let rows = (StepIdx(earlier), ShardIdx(shard));
                    assert!(self.durable.contains(&rows), "barrier crossed before {rows:?}");
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        Some(match effect {
            // Its answer is no longer awaited: as if it came never.
            Effect::StopShard(_) => return None,
            Effect::StopInFlight => {
                let at = self.todo.iter().position(|effect| matches!(effect, Effect::RunShard(_)));
                let Effect::RunShard(ticket) = self.todo.swap_remove(at?) else {
                    unreachable!("found above")
                };
                Event::ShardStopped { ticket }
            }
            Effect::RunShard(ticket) => match self.below(12) {
                0 => Event::ShardFailed { ticket, failure: failure(Kind::Transient) },
                1 => Event::ShardFailed { ticket, failure: failure(Kind::Fenced) },
                2 => {
                    let done = Work { rows: 1, bytes: 10 };
                    self.todo.push(effect);
                    Event::ShardAdvanced { ticket, done, last_key: Some(vec![1]) }
                }
                _ => {
                    self.durable.insert((ticket.step, ticket.shard));
                    let done = self.weights[ticket.shard.0 as usize];
                    Event::ShardDone { ticket, done }
                }
            },
            Effect::RunTask(ticket) if self.below(8) == 0 => {
                Event::TaskFailed { ticket, failure: failure(Kind::Transient) }
            }
            Effect::RunTask(ticket)
                if matches!(ticket.task, Task::Prove { .. }) && self.below(3) == 0 =>
            {
                self.todo.push(effect);
                Event::TaskAdvanced { ticket, bytes: 30 }
            }
            Effect::RunTask(ticket) => {
                let outcome = match ticket.task {
                    Task::Allocate => TaskOutcome::Allocated(TXN),
                    Task::Propose { .. } => TaskOutcome::Accepted(self.weights.clone()),
                    Task::Seal { .. } => TaskOutcome::Sealed,
                    Task::Prove { .. } if self.prove_mismatch => {
                        return Some(Event::TaskFailed {
                            ticket,
                            failure: failure(Kind::Mismatch),
                        });
                    }
                    Task::Prove { .. } => TaskOutcome::Proved,
                    Task::Publish { .. } => TaskOutcome::Published,
                    Task::Discard { .. } => TaskOutcome::Discarded,
                };
                Event::TaskDone { ticket, outcome }
            }
        })
    }

    fn run(mut self) -> Phase {
        self.restart();
        for _ in 0..20_000 {
            if self.operation.state().phase.is_terminal() {
                assert!(self.stored.is_empty(), "shard records go when the operation ends");
                return self.operation.state().phase.clone();
            }
            if matches!(self.operation.state().phase, Phase::Failed { .. }) {
                if self.prove_mismatch {
                    return self.operation.state().phase.clone();
                }
                self.apply(Event::Steered(Request::Resume));
            }
            match self.below(40) {
                0 => self.restart(),
                1 => {
                    let window = 1 + self.below(4) as u32;
                    self.apply(Event::Steered(Request::Window(window)));
                }
                2 => {
                    let why = "test".to_owned();
                    self.apply(Event::Steered(Request::Pause { by: PausedBy::Person, why }));
                }
                3 => self.apply(Event::Steered(Request::Resume)),
                _ => {}
            }
            if self.todo.is_empty() {
                if matches!(self.operation.state().desired, Desired::Paused { .. }) {
                    self.apply(Event::Steered(Request::Resume));
                }
                self.now += 31_000;
                self.apply(Event::Tick);
                if self.todo.is_empty() && self.below(3) == 0 {
                    self.restart(); // An answer was lost: only a restart asks again.
                }
                continue;
            }
            let at = self.below(self.todo.len() as u64) as usize;
            let effect = self.todo.swap_remove(at);
            if self.below(40) == 0 {
                continue; // Lost.
            }
            if let Some(event) = self.perform(effect) {
                self.apply(event);
            }
        }
        panic!("did not finish");
    }
}

#[test]
fn every_schedule_reaches_done_with_every_shard_of_every_step() {
    for seed in 0..1_500 {
        let (steps, shards) = (1 + (seed % 4) as u32, (seed % 7) as u32);
        let world = World::new(seed, steps, shards);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        match result {
            Ok(phase) => assert_eq!(phase, Phase::Done { txn: TXN }, "seed {seed}"),
            Err(panic) => {
                println!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn a_mismatch_is_never_done() {
    for seed in 0..200 {
        let mut world = World::new(seed, 2, 3);
        world.prove_mismatch = true;
        let phase = world.run();
        let Phase::Failed { was: Working::Applying { stage, .. }, failure } = phase else {
            panic!("seed {seed}: {phase:?}");
        };
        assert_eq!((stage, failure.kind), (ApplyStage::Proving, Kind::Mismatch));
    }
}

#[test]
fn cancelling_in_every_phase_ends_cancelled_or_is_refused() {
    for phase in every_phase() {
        let mut operation = operation(phase.clone(), 3, 2);
        let mut todo = operation.recover(moment(0)).effects;
        let transition = operation.step(Event::Steered(Request::Cancel), moment(1)).unwrap();
        let is_publishing =
            |was: &Working| matches!(was, Working::Applying { stage: ApplyStage::Publishing, .. });
        let expected = match &phase {
            Phase::Done { .. } | Phase::Cancelled { .. } => Some(Refusal::Ended),
            Phase::Reverting { .. } => Some(Refusal::Cancelling),
            Phase::Working(was) if is_publishing(was) => Some(Refusal::PointOfNoReturn),
            _ => None,
        };
        assert_eq!(transition.refused, expected, "{phase:?}");
        if expected.is_some() && !matches!(phase, Phase::Reverting { .. }) {
            continue;
        }
        todo.extend(transition.effects);
        while let Some(effect) = todo.pop() {
            let event = match effect {
                Effect::RunShard(ticket) => Event::ShardStopped { ticket },
                Effect::RunTask(ticket) if matches!(ticket.task, Task::Discard { .. }) => {
                    Event::TaskDone { ticket, outcome: TaskOutcome::Discarded }
                }
                Effect::RunTask(ticket) => {
                    Event::TaskFailed { ticket, failure: failure(Kind::Transient) }
                }
                Effect::StopShard(_) | Effect::StopInFlight => continue,
            };
            todo.extend(operation.step(event, moment(2)).unwrap().effects);
        }
        assert!(
            matches!(operation.state().phase, Phase::Cancelled { .. }),
            "{phase:?} -> {:?}",
            operation.state().phase
        );
    }
}

fn task_ticket(effects: &[Effect]) -> TaskTicket {
    let tasks = effects.iter().filter_map(|effect| match effect {
        Effect::RunTask(ticket) => Some(*ticket),
        Effect::RunShard(_) | Effect::StopShard(_) | Effect::StopInFlight => None,
    });
    let tasks: Vec<TaskTicket> = tasks.collect();
    assert_eq!(tasks.len(), 1, "{effects:?}");
    tasks[0]
}

#[test]
fn a_publish_that_was_refused_can_be_cancelled() {
    let mut operation = operation(applying(ApplyStage::Publishing), 1, 1);
    let ticket = task_ticket(&operation.recover(moment(0)).effects);
    let refused = Event::TaskFailed { ticket, failure: failure(Kind::InTheWay) };
    operation.step(refused, moment(1)).unwrap();
    let transition = operation.step(Event::Steered(Request::Cancel), moment(2)).unwrap();
    assert_eq!(transition.refused, None);
    let ticket = task_ticket(&transition.effects);
    assert_eq!(ticket.task, Task::Discard { txn: Some(TXN) });
    let discarded = Event::TaskDone { ticket, outcome: TaskOutcome::Discarded };
    operation.step(discarded, moment(3)).unwrap();
    assert_eq!(operation.state().phase, Phase::Cancelled { txn: Some(TXN) });
}

#[test]
fn a_cancel_that_comes_after_the_target_published_ends_done_and_is_told() {
    // Its driver died between publishing and recording that: nobody runs the task.
    let mut operation = operation(applying(ApplyStage::Publishing), 1, 1);
    let transition = operation.step(Event::Steered(Request::Cancel), moment(1)).unwrap();
    let ticket = task_ticket(&transition.effects);
    let published = Event::TaskDone { ticket, outcome: TaskOutcome::Published };
    let transition = operation.step(published, moment(2)).unwrap();
    assert_eq!(transition.refused, Some(Refusal::PointOfNoReturn));
    assert_eq!(operation.state().phase, Phase::Done { txn: TXN });
    assert_eq!(operation.state().percent, Percent::WHOLE);
}

#[test]
fn undoing_that_finds_no_room_stands_still_after_three_tries_and_goes_on_when_asked() {
    let kinds = [Kind::Blocked, Kind::Held];
    for (kind, asked) in kinds.into_iter().zip([Request::Cancel, Request::Resume]) {
        let mut operation = operation(Phase::Reverting { txn: Some(TXN) }, 1, 1);
        operation.state.desired = Desired::Cancelled;
        let mut ticket = task_ticket(&operation.recover(moment(0)).effects);
        for attempt in 1..=3 {
            assert!(!operation.is_at_rest());
            let failed = Event::TaskFailed { ticket, failure: failure(kind) };
            operation.step(failed, moment(attempt * 100_000)).unwrap();
            let later = moment(attempt * 100_000 + 90_000);
            let again = operation.step(Event::Tick, later).unwrap().effects;
            match attempt {
                3 => assert!(again.is_empty(), "a person must make room first"),
                _ => ticket = task_ticket(&again),
            }
        }
        assert!(operation.is_at_rest());
        let Desired::Paused { by: PausedBy::Obstacle, why } = &operation.state().desired else {
            panic!("{:?}", operation.state().desired);
        };
        assert_eq!(*why, failure(kind).message);
        let transition = operation.step(Event::Steered(asked), moment(400_000)).unwrap();
        assert_eq!(transition.refused, None);
        let ticket = task_ticket(&transition.effects);
        assert_eq!(operation.state().desired, Desired::Cancelled);
        let discarded = Event::TaskDone { ticket, outcome: TaskOutcome::Discarded };
        operation.step(discarded, moment(400_001)).unwrap();
        assert!(matches!(operation.state().phase, Phase::Cancelled { .. }));
    }
}

#[test]
fn undoing_that_fails_rests_between_tries_and_says_why() {
    // What a person must clear away first is another matter.
    let is_obstacle = |kind: &Kind| matches!(kind, Kind::Blocked | Kind::Held);
    for kind in Kind::ALL.into_iter().filter(|kind| !is_obstacle(kind)) {
        let mut operation = operation(Phase::Reverting { txn: Some(TXN) }, 1, 1);
        operation.state.desired = Desired::Cancelled;
        let mut ticket = task_ticket(&operation.recover(moment(0)).effects);
        let mut now = 0;
        for _ in 0..20 {
            let failed = Event::TaskFailed { ticket, failure: failure(kind) };
            let transition = operation.step(failed, moment(now)).unwrap();
            assert!(transition.effects.is_empty(), "{kind:?}: it rests first");
            let reason = operation.state().task.reason.as_deref();
            assert_eq!(reason, Some(failure(kind).message.as_str()));
            let due = operation.next_due().expect("it is tried again");
            assert!(due > BootTime(now), "{kind:?}");
            now = due.0;
            ticket = task_ticket(&operation.step(Event::Tick, moment(now)).unwrap().effects);
        }
        let discarded = Event::TaskDone { ticket, outcome: TaskOutcome::Discarded };
        operation.step(discarded, moment(now)).unwrap();
        assert!(matches!(operation.state().phase, Phase::Cancelled { .. }));
    }
}

/// Brings an operation to waiting for its first step, with shards of those sizes.
fn started(bytes: &[u64], window: u32) -> (Operation, Vec<Ticket>) {
    let weights: Vec<Work> = bytes.iter().map(|bytes| work(*bytes)).collect();
    let state = State { phase: waiting(0), ..State::new(planned(1, 1), window) };
    let mut operation = Operation::new(ID, 1, RetryPolicy::default(), state, &weights, []);
    let effects = operation.recover(moment(0)).effects;
    (operation, tickets(&effects))
}

fn tickets(effects: &[Effect]) -> Vec<Ticket> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::RunShard(ticket) => Some(*ticket),
            Effect::RunTask(_) | Effect::StopShard(_) | Effect::StopInFlight => None,
        })
        .collect()
}

#[test]
fn the_largest_shard_starts_first() {
    let (_, started) = started(&[5, 90, 20, 70], 3);
    let shards: Vec<u32> = started.iter().map(|ticket| ticket.shard.0).collect();
    assert_eq!(shards, [1, 3, 2]);
}

#[test]
fn the_window_can_be_changed_while_running() {
    let (mut operation, running) = started(&[10; 20], 2);
    assert_eq!(running.len(), 2);
    let more = operation.step(Event::Steered(Request::Window(5)), moment(1)).unwrap();
    assert_eq!(tickets(&more.effects).len(), 3);
    operation.step(Event::Steered(Request::Window(1)), moment(2)).unwrap();
    let done = Event::ShardDone { ticket: running[0], done: work(10) };
    let after = operation.step(done, moment(3)).unwrap();
    assert!(after.effects.is_empty(), "four still run and only one may");
}

#[test]
fn only_the_failed_shard_is_tried_again_after_its_rest() {
    let (mut operation, running) = started(&[10, 10, 10], 3);
    let failed = Event::ShardFailed { ticket: running[1], failure: failure(Kind::Transient) };
    let transition = operation.step(failed, moment(10)).unwrap();
    assert!(transition.effects.is_empty(), "it rests first");
    let due = operation.next_due().unwrap();
    let early = operation.step(Event::Tick, Moment { now: BootTime(due.0 - 1), chance: 0 });
    assert!(early.unwrap().effects.is_empty());
    let again = operation.step(Event::Tick, Moment { now: due, chance: 0 }).unwrap();
    let again = tickets(&again.effects);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].shard, again[0].attempt), (running[1].shard, Attempt(2)));
}

#[test]
fn a_rest_survives_a_restart() {
    let (mut operation, running) = started(&[10], 1);
    let failed = Event::ShardFailed { ticket: running[0], failure: failure(Kind::Transient) };
    let changes = operation.step(failed, moment(10)).unwrap().changes;
    let due = operation.next_due();
    let stored = changes.shards.into_iter().map(|(_, shard, progress)| (shard, progress));
    let state = operation.state().clone();
    let mut again = Operation::new(ID, 1, RetryPolicy::default(), state, &[work(10)], stored);
    assert!(again.recover(moment(11)).effects.is_empty());
    assert_eq!(again.next_due(), due);
}

#[test]
fn a_shard_that_keeps_failing_ends_the_operation_with_its_own_error() {
    let (mut operation, running) = started(&[10, 10], 2);
    let mut ticket = running[0];
    let mut now = 0;
    for _ in 1..RetryPolicy::default().failures_max {
        let failed = Event::ShardFailed { ticket, failure: failure(Kind::Transient) };
        operation.step(failed, moment(now)).unwrap();
        now += 60_000;
        let again = operation.step(Event::Tick, moment(now)).unwrap();
        ticket = tickets(&again.effects)[0];
    }
    let last = Failure { kind: Kind::Transient, message: "connection 7 reset".to_owned() };
    let transition =
        operation.step(Event::ShardFailed { ticket, failure: last.clone() }, moment(now)).unwrap();
    assert!(transition.effects.contains(&Effect::StopInFlight), "siblings are stopped");
    assert!(matches!(&operation.state().phase, Phase::Failed { failure, .. } if *failure == last));
    assert_eq!(operation.in_flight_count(), 0);
    let late = Event::ShardDone { ticket: running[1], done: work(10) };
    assert_eq!(operation.step(late, moment(now)).unwrap(), Transition::default());
    assert!(
        matches!(operation.state().phase, Phase::Failed { .. }),
        "a late success masks no failure"
    );
}

#[test]
fn progress_refills_the_budget_of_failures() {
    let (mut operation, running) = started(&[1_000], 1);
    let mut ticket = running[0];
    let mut now = 0;
    for round in 0..30 {
        let done = Work { rows: round, bytes: round * 10 };
        let advanced = Event::ShardAdvanced { ticket, done, last_key: None };
        operation.step(advanced, moment(now)).unwrap();
        let failed = Event::ShardFailed { ticket, failure: failure(Kind::Transient) };
        operation.step(failed, moment(now)).unwrap();
        now += 60_000;
        ticket = tickets(&operation.step(Event::Tick, moment(now)).unwrap().effects)[0];
    }
    assert!(matches!(operation.state().phase, Phase::Working(Working::Waiting { .. })));
}

#[test]
fn a_full_disk_pauses_and_resuming_carries_on() {
    let (mut operation, running) = started(&[10, 10], 2);
    let full = Failure { kind: Kind::Blocked, message: "no space left on device".to_owned() };
    operation.step(Event::ShardFailed { ticket: running[0], failure: full }, moment(1)).unwrap();
    operation.step(Event::ShardStopped { ticket: running[1] }, moment(1)).unwrap();
    assert!(operation.is_at_rest());
    let Desired::Paused { by: PausedBy::Obstacle, why } = &operation.state().desired else {
        panic!("{:?}", operation.state().desired);
    };
    assert_eq!(why, "no space left on device");
    let resumed = operation.step(Event::Steered(Request::Resume), moment(2)).unwrap();
    assert_eq!(tickets(&resumed.effects).len(), 2);
}

#[test]
fn an_answer_of_an_earlier_step_changes_nothing() {
    let state = State { phase: waiting(0), ..State::new(planned(2, 1), 1) };
    let mut operation = Operation::new(ID, 2, RetryPolicy::default(), state, &[work(100)], []);
    let first = tickets(&operation.recover(moment(0)).effects)[0];
    let done = Event::ShardDone { ticket: first, done: work(100) };
    let proposing = operation.step(done.clone(), moment(1)).unwrap();
    let Effect::RunTask(propose) = proposing.effects[0] else { panic!("{proposing:?}") };
    let accepted =
        Event::TaskDone { ticket: propose, outcome: TaskOutcome::Accepted(vec![work(100)]) };
    operation.step(accepted, moment(2)).unwrap();
    let before = operation.state().clone();
    assert_eq!(operation.step(done, moment(3)).unwrap(), Transition::default());
    assert_eq!(*operation.state(), before);
    assert_eq!(operation.shards_done(), 0);
}

#[test]
fn a_done_of_step_one_does_not_count_for_step_two_after_a_restart() {
    let done = ShardProgress {
        status: ShardStatus::Done,
        attempt: Attempt(1),
        done: work(100),
        ..ShardProgress::default()
    };
    let stored: BTreeMap<(StepIdx, ShardIdx), ShardProgress> =
        [((StepIdx(0), ShardIdx(0)), done)].into();
    let state = State { phase: waiting(1), ..State::new(planned(2, 1), 1) };
    let of_this_step = stored
        .into_iter()
        .filter(|((step, _), _)| Some(*step) == state.phase.step())
        .map(|((_, shard), progress)| (shard, progress));
    let mut operation =
        Operation::new(ID, 2, RetryPolicy::default(), state.clone(), &[work(100)], of_this_step);
    assert_eq!(tickets(&operation.recover(moment(0)).effects).len(), 1);
}

#[test]
fn a_silent_shard_is_given_up_with_a_visible_reason() {
    let (mut operation, running) = started(&[10], 1);
    let silence = RetryPolicy::default().silence_max.as_millis() as u64;
    operation.step(Event::Tick, moment(silence - 1)).unwrap();
    assert_eq!(operation.in_flight_count(), 1);
    operation.step(Event::Tick, moment(silence)).unwrap();
    let progress = operation.shard_progress(running[0].shard);
    assert!(progress.reason.unwrap().contains("no progress for 600 s"));
    let late = Event::ShardDone { ticket: running[0], done: work(10) };
    assert_eq!(operation.step(late, moment(silence)).unwrap(), Transition::default());
}

#[test]
fn a_lost_cut_starts_the_backup_over() {
    let (mut operation, running) = started(&[10, 10], 1);
    operation.step(Event::ShardDone { ticket: running[0], done: work(10) }, moment(1)).unwrap();
    let transition = operation.step(Event::CutLost, moment(2)).unwrap();
    assert_eq!(transition.changes.removed, Removed::Step(StepIdx(0)));
    assert!(matches!(
        operation.state().phase,
        Phase::Working(Working::Proposing { step: StepIdx(0), .. })
    ));
}

#[test]
fn a_failed_backup_whose_cut_is_lost_starts_over_when_it_is_resumed() {
    for was in [
        Working::Waiting { txn: TXN, step: StepIdx(0) },
        Working::Applying { txn: TXN, stage: ApplyStage::Publishing },
    ] {
        let phase = Phase::Failed { was, failure: failure(Kind::Fatal) };
        let mut operation = operation(phase, 0, 1);
        let transition = operation.step(Event::CutLost, moment(1)).unwrap();
        assert!(transition.effects.is_empty(), "it stays failed: {transition:?}");
        let transition = operation.step(Event::Steered(Request::Resume), moment(2)).unwrap();
        let ticket = task_ticket(&transition.effects);
        assert_eq!(ticket.task, Task::Propose { txn: TXN, step: StepIdx(0) });
    }
}

#[test]
fn an_attempt_that_is_given_up_is_asked_to_stop() {
    let (mut operation, running) = started(&[10], 1);
    let silence = RetryPolicy::default().silence_max.as_millis() as u64;
    let transition = operation.step(Event::Tick, moment(silence)).unwrap();
    assert_eq!(transition.effects, [Effect::StopShard(running[0])]);
}

#[test]
fn shards_that_fall_silent_together_fail_the_operation_once() {
    let silence = RetryPolicy::default().silence_max.as_millis() as u64;
    let (mut operation, _) = started(&[10, 10], 2);
    let mut now = 0;
    for _ in 0..RetryPolicy::default().failures_max {
        // Both are given up, rest, and are started again.
        now += silence;
        operation.step(Event::Tick, moment(now)).unwrap();
        now += 60_000;
        operation.step(Event::Tick, moment(now)).unwrap();
    }
    assert!(matches!(operation.state().phase, Phase::Failed { .. }));
    assert_eq!(operation.in_flight_count(), 0);
}

#[test]
fn a_paused_or_resting_shard_still_shows_its_last_key() {
    let (mut operation, running) = started(&[100, 100], 2);
    for ticket in &running {
        let (done, last_key) = (work(10), Some(vec![7]));
        let advanced = Event::ShardAdvanced { ticket: *ticket, done, last_key };
        operation.step(advanced, moment(1)).unwrap();
    }
    let failed = Event::ShardFailed { ticket: running[0], failure: failure(Kind::Transient) };
    let mut stored = operation.step(failed, moment(2)).unwrap().changes.shards;
    let stopped = Event::ShardStopped { ticket: running[1] };
    stored.extend(operation.step(stopped, moment(2)).unwrap().changes.shards);
    for ticket in &running {
        assert_eq!(operation.shard_progress(ticket.shard).last_key, Some(vec![7]));
    }
    let stored = stored.into_iter().map(|(_, shard, progress)| (shard, progress));
    let state = operation.state().clone();
    let again =
        Operation::new(ID, 1, RetryPolicy::default(), state, &[work(100), work(100)], stored);
    assert_eq!(again.shard_progress(running[0].shard).last_key, Some(vec![7]));
}

#[test]
fn the_window_has_a_greatest_width() {
    let (mut operation, _) = started(&[10], 1);
    operation.step(Event::Steered(Request::Window(u32::MAX)), moment(1)).unwrap();
    assert_eq!(operation.state().window, WINDOW_MAX);
}

#[test]
fn a_full_only_chain_and_an_empty_one_finish() {
    for shards in [0, 1] {
        assert_eq!(World::new(3, 1, shards).run(), Phase::Done { txn: TXN });
    }
}

#[test]
fn an_event_on_a_million_shards_costs_the_logarithm() {
    let (mut operation, running) = started(&vec![1_000; 1_000_000], 10);
    let mut queue: std::collections::VecDeque<Ticket> = running.into();
    let mut finished = 0u32;
    while let Some(ticket) = queue.pop_front() {
        let done = Event::ShardDone { ticket, done: work(1_000) };
        let transition = operation.step(done, moment(1)).unwrap();
        // One record for the one that ended, one for the one that started: never more.
        assert!(transition.changes.shards.len() <= 2);
        queue.extend(tickets(&transition.effects));
        finished += 1;
    }
    assert_eq!(finished, 1_000_000);
    assert!(matches!(operation.state().phase, Phase::Working(Working::Applying { .. })));
}
