//! Fuzz target of the records of operations.

use super::StoredState;
use super::record::holder::HolderRecord;
use super::record::{shard_progress, steering};
use super::{OperationRecord, Verb};
use crate::env::{BootTime, WallTime};
use crate::ids::{Attempt, Epoch, Txn};
use crate::operation::{
    Desired, Failure, PausedBy, Phase, Planned, Request, ShardProgress, ShardStatus, State, Work,
    Working,
};

/// `u8` which record, then its stored form.
pub(crate) fn record(input: &[u8]) {
    let Some((which, stored)) = input.split_first() else { return };
    let written = match which % 5 {
        0 => HolderRecord::decode(stored).map(|record| record.encode()),
        1 => OperationRecord::decode(stored).map(|record| record.encode()),
        2 => StoredState::decode(stored).map(|record| record.encode()),
        3 => shard_progress::decode(stored).map(|record| shard_progress::encode(&record)),
        _ => steering::decode(stored).map(|record| steering::encode(&record)),
    };
    let Ok(written) = written else { return };
    let again = match which % 5 {
        0 => HolderRecord::decode(&written).map(|record| record.encode()),
        1 => OperationRecord::decode(&written).map(|record| record.encode()),
        2 => StoredState::decode(&written).map(|record| record.encode()),
        3 => shard_progress::decode(&written).map(|record| shard_progress::encode(&record)),
        _ => steering::decode(&written).map(|record| steering::encode(&record)),
    };
    assert_eq!(again.ok(), Some(written), "a record reads back as another");
    let _ = steering::number_of(stored);
    let _ = shard_progress::shard_of(stored);
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let holder = HolderRecord {
        epoch: Epoch(900),
        pid: 4_194_303,
        boot_id: u128::MAX / 3,
        lease_until: BootTime(123_456_789),
    };
    let operation = OperationRecord {
        verb: Verb::Restore,
        identity: "restore|x".to_owned(),
        title: "restore of `c` into `d`".to_owned(),
        request: serde_json::json!({"options": {"at": "latest"}, "resolved": [1, null]}),
        plan_hash: "ab".repeat(32),
        step_count: 3,
        created_at: WallTime(5),
    };
    let mut seeds =
        vec![[&[0], &holder.encode()[..]].concat(), [&[1], &operation.encode()[..]].concat()];
    let planned = Planned { steps: vec![Work { rows: 300, bytes: 70_000 }; 2], proof_bytes: 9 };
    let why = "the disk is full".to_owned();
    let failure = Failure { kind: crate::Kind::Blocked, message: why.clone() };
    for phase in [
        Phase::Working(Working::Allocating),
        Phase::Failed { was: Working::Allocating, failure },
        Phase::Done { txn: Txn(8) },
    ] {
        let mut state = State::new(planned.clone(), 10);
        state.phase = phase;
        state.desired = Desired::Paused { by: PausedBy::Obstacle, why: why.clone() };
        state.task.rests_until = Some(BootTime(77));
        state.task.reason = Some(why.clone());
        let stored = StoredState {
            state,
            version: 7,
            created_at: WallTime(1),
            changed_at: WallTime(2),
            ended_at: Some(WallTime(3)),
            outcome: Some("{}".to_owned()),
        };
        seeds.push([&[2], &stored.encode()[..]].concat());
    }
    for status in [ShardStatus::Resting { until: BootTime(300) }, ShardStatus::InFlight] {
        let progress = ShardProgress {
            status,
            attempt: Attempt(2),
            last_key: Some(vec![0, 0xff]),
            reason: Some(why.clone()),
            ..ShardProgress::default()
        };
        seeds.push([&[3], &shard_progress::encode(&progress)[..]].concat());
    }
    for request in
        [Request::Resume, Request::Window(300), Request::Pause { by: PausedBy::Person, why }]
    {
        seeds.push([&[4], &steering::encode(&request)[..]].concat());
    }
    seeds
}
