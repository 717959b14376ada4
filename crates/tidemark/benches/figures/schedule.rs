//! What an operation of very many shards costs: time per event, memory, restart.

use std::time::Instant;

use tidemark::catalog::{Catalog, Commit, LmdbCatalog, OperationRecord, Verb};
use tidemark::env::{BootTime, WallTime};
use tidemark::ids::{Epoch, OperationId, ShardIdx, StepIdx, Txn};
use tidemark::operation::{
    Changes, Effect, Event, Moment, Operation, Phase, Planned, RetryPolicy, ShardProgress,
    ShardStatus, State, Task, TaskOutcome, Ticket, WINDOW_DEFAULT, Work,
};

use crate::data;
use crate::machine::anonymous_bytes;
use crate::report::{Goal, Report, Sample};

const SHARD_COUNTS: [u32; 3] = [10_000, 100_000, 1_000_000];

pub(crate) fn measure(report: &mut Report) {
    for count in SHARD_COUNTS {
        let events: Sample = (0..3).map(|_| nanoseconds_per_event(count)).collect();
        let work = format!("scheduling, {count} shards");
        report.figure(&work, "ns an event", events, Goal::None);
    }
    let count = SHARD_COUNTS[2];
    let bytes = Sample::from_iter([bytes_per_shard(count)]);
    let work = format!("memory of an operation, {count} shards");
    report.figure(&work, "bytes a shard", bytes, Goal::AtMost(200.0));
    for count in SHARD_COUNTS {
        let restart: Sample = (0..3).map(|_| restart_seconds(count)).collect();
        let work = format!("restart from the catalog, {count} shards");
        report.figure(&work, "s", restart, Goal::None);
    }
}

fn moment(now: u64) -> Moment {
    Moment { now: BootTime(now), chance: now }
}

fn planned_shards(count: u32) -> Vec<Work> {
    let mut random = data::Random(1);
    let work = |_| {
        let bytes = 1 + random.next() % 1_000_000;
        Work { rows: bytes / 100, bytes }
    };
    (0..count).map(work).collect()
}

fn fresh_state(shards: &[Work]) -> State {
    let mut step = Work::default();
    shards.iter().for_each(|shard| step += *shard);
    State::new(Planned { steps: vec![step], proof_bytes: 1_000 }, WINDOW_DEFAULT)
}

/// Brings a new operation to where its shards run.
fn waiting(shards: Vec<Work>) -> (Operation, Vec<Effect>) {
    let state = fresh_state(&shards);
    let mut operation = Operation::new(OperationId(1), 1, RetryPolicy::default(), state, &[], []);
    let mut effects = operation.recover(moment(0)).effects;
    let mut shards = Some(shards);
    loop {
        let Some(Effect::RunTask(ticket)) = effects.pop() else { unreachable!("no shard yet") };
        let outcome = match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(Txn(7)),
            Task::Propose { .. } => TaskOutcome::Accepted(shards.take().unwrap()),
            task => unreachable!("{task:?} comes after the shards"),
        };
        effects = operation.step(Event::TaskDone { ticket, outcome }, moment(1)).unwrap().effects;
        if matches!(effects.first(), Some(Effect::RunShard(_))) {
            return (operation, effects);
        }
    }
}

/// Runs every shard to its end with one chunk in between: two events a shard.
fn nanoseconds_per_event(count: u32) -> f64 {
    let shards = planned_shards(count);
    let (mut operation, effects) = waiting(shards.clone());
    let mut running: std::collections::VecDeque<Ticket> = tickets(effects).collect();
    let begun = Instant::now();
    let mut events = 0u64;
    while let Some(ticket) = running.pop_front() {
        let done = shards[ticket.shard.0 as usize];
        let half = Work { rows: done.rows / 2, bytes: done.bytes / 2 };
        let last_key = Some(ticket.shard.0.to_be_bytes().to_vec());
        let advanced = Event::ShardAdvanced { ticket, done: half, last_key };
        operation.step(advanced, moment(events)).unwrap();
        let transition = operation.step(Event::ShardDone { ticket, done }, moment(events)).unwrap();
        running.extend(tickets(transition.effects));
        events += 2;
    }
    assert_eq!(events, 2 * u64::from(count));
    begun.elapsed().as_nanos() as f64 / events as f64
}

fn tickets(effects: Vec<Effect>) -> impl Iterator<Item = Ticket> {
    effects.into_iter().filter_map(|effect| match effect {
        Effect::RunShard(ticket) => Some(ticket),
        Effect::RunTask(_) | Effect::StopShard(_) | Effect::StopInFlight => None,
    })
}

fn bytes_per_shard(count: u32) -> f64 {
    let shards = planned_shards(count);
    let before = anonymous_bytes(std::process::id()).unwrap();
    // The planned work is moved into the machine or dropped by it: it is not counted twice.
    let (operation, _) = waiting(shards);
    let after = anonymous_bytes(std::process::id()).unwrap();
    assert_eq!(operation.shard_count(), u64::from(count));
    after.saturating_sub(before) as f64 / f64::from(count)
}

/// Reads an operation whose shards are half done, and asks it what is to be done.
fn restart_seconds(count: u32) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let catalog = LmdbCatalog::open_or_create(folder.path(), data::env()).unwrap();
    let shards = planned_shards(count);
    let phase = waiting(shards.clone()).0.state().phase.clone();
    assert!(matches!(phase, Phase::Working(_)));
    let state = State { phase, ..fresh_state(&shards) };
    let id = record(&catalog, &shards, &state);
    let begun = Instant::now();
    let stored = catalog.shards(id, StepIdx(0)).unwrap();
    let state = catalog.state(id).unwrap().state;
    let mut operation = Operation::new(id, 1, RetryPolicy::default(), state, &shards, stored);
    let effects = operation.recover(moment(0)).effects;
    let elapsed = begun.elapsed().as_secs_f64();
    assert_eq!(effects.len(), WINDOW_DEFAULT as usize);
    elapsed
}

/// Records the operation with every second shard done.
fn record(catalog: &LmdbCatalog, shards: &[Work], state: &State) -> OperationId {
    let record = OperationRecord {
        verb: Verb::Restore,
        identity: "measured".to_owned(),
        title: "measured".to_owned(),
        request: serde_json::Value::Null,
        plan_hash: String::new(),
        step_count: 1,
        created_at: WallTime(0),
    };
    let id = catalog.create(&record, b"plan", state).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    let done: Vec<(StepIdx, ShardIdx, ShardProgress)> = (0u32..)
        .zip(shards)
        .step_by(2)
        .map(|(shard, work)| {
            let progress = ShardProgress {
                status: ShardStatus::Done,
                done: *work,
                last_key: Some(shard.to_be_bytes().to_vec()),
                ..ShardProgress::default()
            };
            (StepIdx(0), ShardIdx(shard), progress)
        })
        .collect();
    for some in done.chunks(10_000) {
        let changes = Changes { shards: some.to_vec(), ..Changes::default() };
        hold.commit(&Commit { state, changes: &changes, seen: None, outcome: None }).unwrap();
    }
    id
}
