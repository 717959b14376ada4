use std::process::{Command, Stdio};

use super::*;
use crate::env::SystemEnv;

const WAIT: Duration = Duration::from_secs(10);

fn small() -> EnvironmentOptions {
    EnvironmentOptions { map_bytes: 16 << 20, ..EnvironmentOptions::default() }
}

#[test]
fn one_path_is_one_environment_in_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = Environment::create(dir.path(), small(), &SystemEnv).unwrap();
    let indirect = dir.path().join("../").join(dir.path().file_name().unwrap());
    let second = Environment::open(&indirect, small(), &SystemEnv).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn an_environment_opens_again_after_its_last_owner_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::create(dir.path(), small(), &SystemEnv).unwrap();
    let [database] = environment.create_databases(["d"], &SystemEnv, WAIT).unwrap();
    let mut txn = environment.write(&SystemEnv, WAIT).unwrap();
    database.put(&mut txn, b"k", b"v").unwrap();
    txn.commit().unwrap();
    let reader = environment.read_owned().unwrap();
    drop(environment);
    assert_eq!(database.get(&reader, b"k").unwrap(), Some(&b"v"[..]));
    drop(reader);
    let again = Environment::open(dir.path(), small(), &SystemEnv).unwrap();
    let [database] = again.open_databases(["d"]).unwrap().unwrap();
    assert_eq!(database.get(&again.read().unwrap(), b"k").unwrap(), Some(&b"v"[..]));
}

#[test]
fn what_was_not_committed_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::create(dir.path(), small(), &SystemEnv).unwrap();
    let [database] = environment.create_databases(["d"], &SystemEnv, WAIT).unwrap();
    let mut txn = environment.write(&SystemEnv, WAIT).unwrap();
    database.put(&mut txn, b"k", b"v").unwrap();
    drop(txn);
    assert_eq!(database.get(&environment.read().unwrap(), b"k").unwrap(), None);
}

#[test]
fn a_missing_environment_is_not_made_by_opening() {
    let dir = tempfile::tempdir().unwrap();
    let error = Environment::open(dir.path(), small(), &SystemEnv).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_not_lmdb_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(DATA_FILE), vec![7; 8192]).unwrap();
    let error = Environment::open(dir.path(), small(), &SystemEnv).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken, "{error:?}");
}

#[test]
fn a_full_map_asks_to_open_again_and_then_grows() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = EnvironmentOptions { map_bytes: 1 << 20, ..small() };
    let environment = Environment::create(dir.path(), tiny, &SystemEnv).unwrap();
    let [database] = environment.create_databases(["d"], &SystemEnv, WAIT).unwrap();
    let fill = |environment: &Environment, keys: std::ops::Range<u32>| -> Result<()> {
        for key in keys {
            let mut txn = environment.write(&SystemEnv, WAIT)?;
            let put = database.put(&mut txn, &key.to_be_bytes(), &[1; 100_000]);
            put.during(|| "fill".to_owned())?;
            txn.commit()?;
        }
        Ok(())
    };
    let error = fill(&environment, 0..20).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked, "{error:?}");
    drop(environment);
    let environment = Environment::open(dir.path(), tiny, &SystemEnv).unwrap();
    let [database] = environment.open_databases(["d"]).unwrap().unwrap();
    let mut txn = environment.write(&SystemEnv, WAIT).unwrap();
    database.put(&mut txn, b"more", &[1; 200_000]).unwrap();
    txn.commit().unwrap();
}

#[test]
fn the_map_doubles_a_file_that_fills_half_of_it() {
    assert_eq!(map_bytes(0, 1 << 30), 1 << 30);
    assert_eq!(map_bytes(1 << 29, 1 << 30), 1 << 30);
    assert_eq!(map_bytes((1 << 29) + 1, 1 << 30), (1 << 30) + MAP_UNIT);
    assert_eq!(map_bytes(u64::MAX, 1 << 30), 1 << 46);
}

#[test]
fn writers_of_one_process_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::create(dir.path(), small(), &SystemEnv).unwrap();
    let [database] = environment.create_databases(["d"], &SystemEnv, WAIT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut txn = environment.write(&SystemEnv, WAIT).unwrap();
                    let count = database.get(&txn, b"n").unwrap().map_or(0, |n| n[0]);
                    database.put(&mut txn, b"n", &[count + 1]).unwrap();
                    txn.commit().unwrap();
                }
            });
        }
    });
    assert_eq!(database.get(&environment.read().unwrap(), b"n").unwrap(), Some(&[100][..]));
}

/// A process that takes the write lock, says so, and keeps it until it is killed.
fn holder_elsewhere(dir: &Path) -> std::process::Child {
    use std::io::Read;
    let path = dir.join(WRITE_LOCK_FILE);
    let script = format!(
        "exec 9<>'{0}'; flock 9; printf '%10d\\n' $$ >'{0}'; echo held; exec sleep 600",
        path.display()
    );
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    child
}

#[test]
fn a_frozen_writer_elsewhere_is_waited_for_with_a_limit_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::create(dir.path(), small(), &SystemEnv).unwrap();
    let mut child = holder_elsewhere(dir.path());
    // Frozen, not dead: it would never let go by itself.
    let holder = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(holder, rustix::process::Signal::STOP).unwrap();
    let error = environment.write(&SystemEnv, Duration::from_millis(30)).err().unwrap();
    assert_eq!(error.kind(), Kind::Held);
    assert!(error.message().contains(&format!("process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    environment.write(&SystemEnv, WAIT).unwrap();
}
