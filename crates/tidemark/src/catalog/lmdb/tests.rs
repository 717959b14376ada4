//! The catalog on LMDB: holds, leases, requests, and what the dead leave.

use super::*;
use crate::env::{SystemEnv, WallTime};
use crate::operation::{Changes, PausedBy, Phase, Planned, Working};

fn record(identity: &str) -> OperationRecord {
    OperationRecord {
        verb: super::super::Verb::Restore,
        identity: identity.to_owned(),
        title: format!("restore of {identity}"),
        request: serde_json::Value::Null,
        plan_hash: String::new(),
        step_count: 1,
        created_at: WallTime(1),
    }
}

fn catalog(dir: &tempfile::TempDir) -> LmdbCatalog {
    LmdbCatalog::open_or_create(dir.path(), Arc::new(SystemEnv)).unwrap()
}

fn state() -> State {
    State::new(Planned::default(), 10)
}

fn commit(hold: &mut Box<dyn Hold>, state: &State) -> Result<()> {
    let changes = Changes::default();
    hold.commit(&Commit { state, changes: &changes, seen: None, outcome: None })
}

fn waiting(number: u64) -> State {
    let working = Working::Waiting { txn: Txn(number), step: StepIdx(0) };
    State { phase: Phase::Working(working), ..state() }
}

#[test]
fn an_unfinished_identity_is_there_once_and_free_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"plan", &state()).unwrap();
    assert_eq!(catalog.create(&record("a"), b"", &state()).unwrap_err().kind(), Kind::Held);
    assert_eq!(catalog.unfinished("a").unwrap(), Some(id));
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    commit(&mut hold, &waiting(5)).unwrap();
    assert_eq!(catalog.by_txn(Txn(5)).unwrap(), Some(id));
    commit(&mut hold, &State { phase: Phase::Done { txn: Txn(5) }, ..state() }).unwrap();
    drop(hold);
    assert_eq!(catalog.unfinished("a").unwrap(), None);
    assert!(catalog.create(&record("a"), b"", &state()).unwrap() > id);
    assert_eq!(catalog.plan(id).unwrap(), b"plan", "evidence stays until forget");
}

#[test]
fn only_one_process_holds_an_operation() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let hold = catalog.hold(id, Epoch(1)).unwrap();
    let error = catalog.hold(id, Epoch(2)).unwrap_err();
    assert_eq!(error.kind(), Kind::Held);
    assert!(error.message().contains(&std::process::id().to_string()), "{error}");
    drop(hold);
    assert!(catalog.hold(id, Epoch(3)).is_ok());
}

#[test]
fn an_operation_whose_holder_died_at_its_end_is_held_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    commit(&mut hold, &State { phase: Phase::Done { txn: Txn(5) }, ..state() }).unwrap();
    // It dies before it can give anything back.
    std::mem::forget(hold);
    assert_eq!(catalog.holder(id).unwrap(), Holding::Free);
    // So does whoever comes later, and dies as well.
    std::mem::forget(catalog.hold(id, Epoch(2)).unwrap());
    assert_eq!(catalog.holder(id).unwrap(), Holding::Free);
}

#[test]
fn a_dead_holder_is_taken_over_at_once_and_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let mut dead = catalog.hold(id, Epoch(1)).unwrap();
    // What the kernel does when the process dies.
    std::fs::remove_file(catalog.0.lock_path(id, Epoch(1))).unwrap();
    assert!(matches!(catalog.holder(id).unwrap(), Holding::Dead { .. }));
    let _taken = catalog.hold(id, Epoch(2)).unwrap();
    assert_eq!(commit(&mut dead, &waiting(1)).unwrap_err().kind(), Kind::Fenced);
    assert_eq!(dead.renew().unwrap_err().kind(), Kind::Fenced);
    drop(dead);
    assert!(matches!(catalog.holder(id).unwrap(), Holding::Alive { .. }));
}

#[test]
fn forgetting_is_refused_while_running_and_not_found_twice() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    assert_eq!(catalog.forget(id).unwrap_err().kind(), Kind::Held);
    commit(&mut hold, &State { phase: Phase::Done { txn: Txn(5) }, ..state() }).unwrap();
    drop(hold);
    catalog.forget(id).unwrap();
    assert_eq!(catalog.forget(id).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(catalog.by_txn(Txn(5)).unwrap(), None);
}

#[test]
fn forgetting_an_unfinished_operation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    assert_eq!(catalog.forget(id).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn requests_reach_the_holder_in_order_and_go_with_the_commit_that_saw_them() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let pause = Request::Pause { by: PausedBy::Person, why: "lunch".to_owned() };
    catalog.steer(id, &Request::Window(3)).unwrap();
    catalog.steer(id, &pause).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    let requests = hold.requests().unwrap();
    assert_eq!(
        requests.iter().map(|(_, request)| request.clone()).collect::<Vec<_>>(),
        [Request::Window(3), pause.clone()]
    );
    let changes = Changes::default();
    let seen = Some(requests[0].0);
    let commit = Commit { state: &state(), changes: &changes, seen, outcome: None };
    hold.commit(&commit).unwrap();
    assert_eq!(hold.requests().unwrap(), requests[1..]);
}

#[test]
fn shard_rows_go_with_the_commit_that_ends_the_operation() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    let shards = vec![(StepIdx(0), ShardIdx(4), ShardProgress::default())];
    let changes = Changes { shards: shards.clone(), removed: Removed::Nothing };
    let running = waiting(1);
    let commit = Commit { state: &running, changes: &changes, seen: None, outcome: None };
    hold.commit(&commit).unwrap();
    assert_eq!(catalog.shards(id, StepIdx(0)).unwrap(), [(ShardIdx(4), shards[0].2.clone())]);
    assert!(catalog.shards(id, StepIdx(1)).unwrap().is_empty(), "another step's rows");
    let done = State { phase: Phase::Done { txn: Txn(1) }, ..state() };
    let changes = Changes { shards: Vec::new(), removed: Removed::All };
    let commit = Commit { state: &done, changes: &changes, seen: None, outcome: Some("{}") };
    hold.commit(&commit).unwrap();
    assert!(catalog.shards(id, StepIdx(0)).unwrap().is_empty());
    assert_eq!(catalog.state(id).unwrap().outcome.as_deref(), Some("{}"));
}

/// What the kernel leaves when a holder is killed: its record, and its lock file, unlocked.
fn kill_holder(catalog: &LmdbCatalog, id: OperationId, epoch: Epoch) -> PathBuf {
    let path = catalog.0.lock_path(id, epoch);
    // The lock stays with the old file; a new one of the same name is nobody's.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "      4711\n").unwrap();
    path
}

fn lock_files(catalog: &LmdbCatalog) -> Vec<String> {
    let entries = std::fs::read_dir(&catalog.0.locks).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn two_probers_of_a_dead_holder_both_see_it_dead() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let dead = catalog.hold(id, Epoch(1)).unwrap();
    let path = kill_holder(&catalog, id, Epoch(1));
    // The first prober is stopped in the middle of its look.
    let first = std::fs::File::open(&path).unwrap();
    first.try_lock_shared().unwrap();
    assert!(matches!(catalog.holder(id).unwrap(), Holding::Dead { .. }));
    let signed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(signed, "      4711\n", "a look writes nothing");
    assert!(catalog.hold(id, Epoch(2)).is_ok());
    drop((first, dead));
}

#[test]
fn a_look_at_a_holder_that_let_go_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let dead = catalog.hold(id, Epoch(1)).unwrap();
    std::fs::remove_file(catalog.0.lock_path(id, Epoch(1))).unwrap();
    assert!(matches!(catalog.holder(id).unwrap(), Holding::Dead { .. }));
    assert!(lock_files(&catalog).is_empty());
    drop(dead);
}

#[test]
fn lock_files_of_killed_takers_go_with_the_next_takeover_and_with_forget() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let other = catalog.create(&record("b"), b"", &state()).unwrap();
    let _others = catalog.hold(other, Epoch(1)).unwrap();
    let theirs = format!("operation-{other}-1.lock");
    // Killed between its lock and its record.
    std::fs::write(catalog.0.lock_path(id, Epoch(2)), "").unwrap();
    let mut hold = catalog.hold(id, Epoch(5)).unwrap();
    let mut files = lock_files(&catalog);
    files.sort();
    assert_eq!(files, [format!("operation-{id}-5.lock"), theirs.clone()]);
    commit(&mut hold, &State { phase: Phase::Done { txn: Txn(5) }, ..state() }).unwrap();
    drop(hold);
    std::fs::write(catalog.0.lock_path(id, Epoch(9)), "").unwrap();
    catalog.forget(id).unwrap();
    assert_eq!(lock_files(&catalog), [theirs]);
}

/// The real machine, whose clock can be put forward.
#[derive(Debug, Default)]
struct LaterEnv(std::sync::atomic::AtomicU64);

impl Env for LaterEnv {
    fn wall_time(&self) -> WallTime {
        SystemEnv.wall_time()
    }

    fn boot_time(&self) -> crate::env::BootTime {
        let later = self.0.load(std::sync::atomic::Ordering::Relaxed);
        SystemEnv.boot_time().after(Duration::from_secs(later))
    }

    fn boot_id(&self) -> u128 {
        SystemEnv.boot_id()
    }

    fn random(&self) -> u64 {
        SystemEnv.random()
    }

    fn sleep(&self, duration: Duration) {
        SystemEnv.sleep(duration);
    }
}

const WATCHER_DIR: &str = "TIDEMARK_TEST_WATCHER_DIR";

/// No test of its own: the process that
/// `a_killed_watcher_does_not_make_the_catalog_grow` kills while it looks.
#[test]
fn watcher_process() {
    let Some(dir) = std::env::var_os(WATCHER_DIR) else { return };
    let catalog = LmdbCatalog::open_or_create(Path::new(&dir), Arc::new(SystemEnv)).unwrap();
    let _view = catalog.0.environment.read().unwrap();
    println!("watching");
    loop {
        SystemEnv.sleep(Duration::from_secs(600));
    }
}

#[test]
fn a_killed_watcher_does_not_make_the_catalog_grow() {
    use std::io::BufRead as _;
    let dir = tempfile::tempdir().unwrap();
    let env = Arc::new(LaterEnv::default());
    let catalog = LmdbCatalog::open_or_create(dir.path(), env.clone()).unwrap();
    let id = catalog.create(&record("a"), b"", &state()).unwrap();
    let mut hold = catalog.hold(id, Epoch(1)).unwrap();
    let size = || std::fs::metadata(dir.path().join("data.mdb")).unwrap().len();
    let drive = |hold: &mut Box<dyn Hold>| {
        for number in 0..100 {
            commit(hold, &waiting(number)).unwrap();
        }
    };
    let mut watcher = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "catalog::lmdb::tests::watcher_process"])
        .env(WATCHER_DIR, dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = std::io::BufReader::new(watcher.stdout.take().unwrap());
    let watching = said.lines().any(|line| line.unwrap().contains("watching"));
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    assert!(watching);
    drive(&mut hold);
    let pinned = size();
    // A minute of driving later.
    env.0.store(61, std::sync::atomic::Ordering::Relaxed);
    hold.renew().unwrap();
    drive(&mut hold);
    drive(&mut hold);
    let grown = size() - pinned;
    assert!(grown <= 64 << 10, "{grown} bytes in 200 commits");
}
