//! The loop with a job of plain maps: real threads, a real catalog.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Condvar, Mutex};

use super::*;
use crate::Kind;
use crate::catalog::{Catalog, LmdbCatalog, OperationRecord, Verb};
use crate::env::{SystemEnv, WallTime};
use crate::error::Error;
use crate::ids::{OperationId, Txn};
use crate::operation::{Planned, State, Task};

const CHUNKS: u64 = 20;

/// Counts to `CHUNKS` on each shard; positions outlive every run, as marks do.
#[derive(Debug, Default)]
struct Counting {
    shards: u32,
    epoch: Mutex<u64>,
    positions: Mutex<BTreeMap<u32, u64>>,
    applied: AtomicU32,
    /// Chunks after which the interrupt is set.
    interrupt_after: u32,
    interrupted: Stop,
    /// Whether the pause was committed; chunks after the interrupt wait for it.
    pause_seen: (Mutex<bool>, Condvar),
    fail_shard: Mutex<Option<(u32, Kind)>>,
    panic_shard: Option<u32>,
    /// Chunks after which somebody else raises the fence, and then fails to take the operation.
    fenced_after: u32,
    /// Epoch that the rows are claimed for.
    claimed: Mutex<Epoch>,
    /// Whether a restart finds its snapshot gone.
    is_cut_lost: AtomicBool,
    discard_fails: Option<Kind>,
    tasks: Mutex<Vec<Task>>,
}

impl Job for Counting {
    fn allocate_epoch(&self) -> Result<Epoch> {
        let mut epoch = self.epoch.lock().unwrap();
        *epoch += 1;
        Ok(Epoch(*epoch))
    }

    fn claim(&self, fence: Fence, _: &Phase) -> Result<()> {
        *self.claimed.lock().unwrap() = fence.epoch;
        Ok(())
    }

    fn resume_step(&self, _: StepIdx) -> Result<ResumedStep> {
        if self.is_cut_lost.swap(false, Ordering::SeqCst) {
            return Ok(ResumedStep::CutLost);
        }
        Ok(ResumedStep::Shards(vec![Work { rows: CHUNKS, bytes: CHUNKS }; self.shards as usize]))
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        _: Fence,
        _: &Stop,
        _: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        self.tasks.lock().unwrap().push(ticket.task);
        Ok(match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(Txn(9)),
            Task::Propose { .. } => {
                let ResumedStep::Shards(shards) = self.resume_step(StepIdx(0))? else {
                    unreachable!("always shards")
                };
                TaskOutcome::Accepted(shards)
            }
            Task::Seal { .. } => TaskOutcome::Sealed,
            Task::Prove { .. } => TaskOutcome::Proved,
            Task::Publish { .. } => TaskOutcome::Published,
            Task::Discard { .. } => match self.discard_fails {
                Some(kind) => return Err(Error::new(kind, "the discard was told to fail")),
                None => TaskOutcome::Discarded,
            },
        })
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        if let Some((shard, kind)) = *self.fail_shard.lock().unwrap()
            && shard == ticket.shard.0
        {
            return Err(Error::new(kind, "the shard was told to fail"));
        }
        assert!(self.panic_shard != Some(ticket.shard.0), "the shard was told to panic");
        Ok(Box::new(Count { job: self, shard: ticket.shard.0, epoch: fence.epoch }))
    }

    fn tables(&self) -> Vec<TableName> {
        vec![TableName::parse("counted").unwrap()]
    }

    fn table_of(&self, _: StepIdx, _: ShardIdx) -> Option<usize> {
        Some(0)
    }

    fn outcome(&self) -> Option<String> {
        Some("\"counted\"".to_owned())
    }
}

struct Count<'a> {
    job: &'a Counting,
    shard: u32,
    epoch: Epoch,
}

impl ShardRun for Count<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        let mut claimed = self.job.claimed.lock().unwrap();
        if *claimed != self.epoch {
            return Err(Error::new(Kind::Fenced, "another epoch has claimed the rows"));
        }
        if self.job.applied.load(Ordering::SeqCst) + 1 == self.job.fenced_after {
            *claimed = self.job.allocate_epoch()?;
        }
        drop(claimed);
        let mut positions = self.job.positions.lock().unwrap();
        let position = positions.entry(self.shard).or_default();
        if *position == CHUNKS {
            // The answer of the attempt that finished was lost.
            let done = Work { rows: CHUNKS, bytes: CHUNKS };
            return Ok(ChunkOutcome::Done { done });
        }
        *position += 1;
        let applied = self.job.applied.fetch_add(1, Ordering::SeqCst) + 1;
        let done = Work { rows: *position, bytes: *position };
        let is_last = *position == CHUNKS;
        drop(positions);
        if applied == self.job.interrupt_after {
            self.job.interrupted.ask();
        }
        if self.job.interrupted.is_asked() {
            let (seen, changed) = &self.job.pause_seen;
            drop(changed.wait_while(seen.lock().unwrap(), |seen| !*seen).unwrap());
        }
        Ok(if is_last {
            ChunkOutcome::Done { done }
        } else {
            ChunkOutcome::Advanced { done, last_key: None }
        })
    }
}

/// Tells the job when its pause is durable.
struct PauseWatcher<'a>(&'a Counting);

impl Observer for PauseWatcher<'_> {
    fn progress(&mut self, operation: &Operation, _: &[TableProgress]) {
        if matches!(operation.state().desired, crate::operation::Desired::Paused { .. }) {
            *self.0.pause_seen.0.lock().unwrap() = true;
            self.0.pause_seen.1.notify_all();
        }
    }

    fn refused(&mut self, _: Refusal) {}

    fn window_bounded(&mut self, _: u32) {}

    fn waiting_for_holder(&mut self, _: u32, _: u64) {}
}

fn start(job: &Counting) -> (tempfile::TempDir, LmdbCatalog, OperationId) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = LmdbCatalog::open_or_create(dir.path(), std::sync::Arc::new(SystemEnv)).unwrap();
    let record = OperationRecord {
        verb: Verb::Restore,
        identity: "x".to_owned(),
        title: "restore of x".to_owned(),
        request: serde_json::Value::Null,
        plan_hash: String::new(),
        step_count: 1,
        created_at: WallTime(0),
    };
    let work = Work { rows: 1, bytes: CHUNKS * u64::from(job.shards) };
    let state = State::new(Planned { steps: vec![work], proof_bytes: 1 }, 3);
    let id = catalog.create(&record, b"", &state).unwrap();
    (dir, catalog, id)
}

fn drive(catalog: &LmdbCatalog, job: &Counting, id: OperationId, intent: Intent) -> Result<Ended> {
    run(catalog, job, id, intent, &SystemEnv, &job.interrupted, &mut PauseWatcher(job))
}

#[test]
fn an_operation_runs_to_its_end_and_leaves_its_evidence() {
    let job = Counting { shards: 7, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert_eq!(ended, Ended::Done { outcome: Some("\"counted\"".to_owned()) });
    let stored = catalog.state(id).unwrap();
    assert!(matches!(stored.state.phase, Phase::Done { txn: Txn(9) }));
    assert_eq!(stored.outcome.as_deref(), Some("\"counted\""));
    assert!(catalog.shards(id, StepIdx(0)).unwrap().is_empty());
    let again = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(again, Ended::Done { .. }), "an ended operation stays ended");
}

#[test]
fn an_interrupt_pauses_between_chunks_and_the_same_call_carries_on() {
    let job = Counting { shards: 5, interrupt_after: 12, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Paused { by: PausedBy::Person, .. }), "{ended:?}");
    let fresh = Stop::default();
    let ended =
        run(&catalog, &job, id, Intent::CarryOn, &SystemEnv, &fresh, &mut Unobserved).unwrap();
    assert!(matches!(ended, Ended::Done { .. }));
    let applied = job.applied.load(Ordering::SeqCst);
    assert_eq!(u64::from(applied), CHUNKS * 5, "no chunk was done twice");
}

#[test]
fn a_fatal_failure_ends_with_the_shards_own_words_and_can_be_resumed() {
    let job = Counting { shards: 4, ..Counting::default() };
    *job.fail_shard.lock().unwrap() = Some((2, Kind::Broken));
    let (_dir, catalog, id) = start(&job);
    let Ended::Failed(failure) = drive(&catalog, &job, id, Intent::CarryOn).unwrap() else {
        panic!("not failed");
    };
    assert_eq!(failure.message, "the shard was told to fail");
    assert!(matches!(catalog.holder(id).unwrap(), crate::catalog::Holding::Free));
    *job.fail_shard.lock().unwrap() = None;
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Done { .. }));
}

#[test]
fn an_obstacle_pauses_and_the_same_call_carries_on() {
    let job = Counting { shards: 2, ..Counting::default() };
    *job.fail_shard.lock().unwrap() = Some((1, Kind::Blocked));
    let (_dir, catalog, id) = start(&job);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Paused { by: PausedBy::Obstacle, .. }), "{ended:?}");
    *job.fail_shard.lock().unwrap() = None;
    assert!(matches!(drive(&catalog, &job, id, Intent::CarryOn).unwrap(), Ended::Done { .. }));
}

#[test]
fn a_panic_of_a_worker_is_its_failure_not_the_end_of_the_process() {
    let job = Counting { shards: 2, panic_shard: Some(0), ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let Ended::Failed(failure) = drive(&catalog, &job, id, Intent::CarryOn).unwrap() else {
        panic!("not failed");
    };
    assert!(failure.message.contains("told to panic"), "{}", failure.message);
}

#[test]
fn a_request_from_elsewhere_reaches_the_driver() {
    let job = Counting { shards: 3, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    catalog.steer(id, &crate::operation::Request::Cancel).unwrap();
    let ended = drive(&catalog, &job, id, Intent::Cancel).unwrap();
    assert_eq!(ended, Ended::Cancelled);
    let tasks = job.tasks.lock().unwrap();
    assert!(tasks.iter().any(|task| matches!(task, Task::Discard { .. })), "{tasks:?}");
}

#[test]
fn a_holder_fenced_by_one_who_failed_to_take_the_operation_claims_again() {
    let job = Counting { shards: 3, fenced_after: 10, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    assert_eq!(u64::from(job.applied.load(Ordering::SeqCst)), CHUNKS * 3);
}

#[test]
fn of_two_takers_at_once_the_second_is_told_and_fences_nobody() {
    let job = Counting { shards: 3, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let taking = catalog.taking(id).unwrap();
    let error = drive(&catalog, &job, id, Intent::CarryOn).unwrap_err();
    assert_eq!(error.kind(), Kind::Held);
    assert!(error.message().contains(&std::process::id().to_string()), "{error}");
    assert_eq!(*job.claimed.lock().unwrap(), Epoch(0), "the fence was not raised");
    drop(taking);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
}

#[test]
fn a_lost_cut_runs_no_task_of_the_old_one() {
    let job = Counting { shards: 3, interrupt_after: 5, ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    job.tasks.lock().unwrap().clear();
    job.is_cut_lost.store(true, Ordering::SeqCst);
    catalog.steer(id, &crate::operation::Request::Window(2)).unwrap();
    let fresh = Stop::default();
    let ended = run(&catalog, &job, id, Intent::CarryOn, &SystemEnv, &fresh, &mut Unobserved);
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
    let tasks = job.tasks.lock().unwrap();
    let txn = Txn(9);
    let expected = [
        Task::Propose { txn, step: StepIdx(0) },
        Task::Seal { txn },
        Task::Prove { txn },
        Task::Publish { txn },
    ];
    assert_eq!(*tasks, expected);
}

#[test]
fn undoing_that_fails_can_be_interrupted_and_carried_on() {
    let mut job = Counting { shards: 1, discard_fails: Some(Kind::Blocked), ..Counting::default() };
    let (_dir, catalog, id) = start(&job);
    job.interrupted.ask();
    let ended = drive(&catalog, &job, id, Intent::Cancel).unwrap();
    let Ended::Paused { why, .. } = ended else { panic!("{ended:?}") };
    assert!(why.contains("told to fail"), "{why}");
    let tries = job.tasks.lock().unwrap().len();
    assert!(tries <= 2, "{tries} tries within a moment: it rests between them");
    job.discard_fails = None;
    job.interrupted = Stop::default();
    let ended = drive(&catalog, &job, id, Intent::CarryOn).unwrap();
    assert_eq!(ended, Ended::Cancelled);
}
