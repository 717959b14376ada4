//! Looking at a restore and steering it from a second terminal, while it runs in the first.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use serde_json::Value as Json;
use support::chain::{make_chain, make_table, open, table};
use support::deadline::wait_until;
use support::{Gate, Outcome, Running, Tidemark, files};
use tempfile::TempDir;

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];
const FIRST_CHUNK: &str = "restore.before_apply:1";

/// A collection, and a target that holds a table of its own.
struct Stage {
    folder: TempDir,
    tidemark: Tidemark,
}

impl Stage {
    fn new() -> Stage {
        let folder = support::temp_folder();
        let tidemark = Tidemark::new(folder.path());
        make_chain(folder.path(), 300, 1);
        make_table(&open(&folder.path().join("copy")), &table("kept"), 10);
        Stage { folder, tidemark }
    }

    /// A restore that is held at `point` until the gate opens.
    fn restore_held_at(&self, point: &str, args: &[&str]) -> (Running, Gate) {
        let gate = Gate::close(self.folder.path(), "gate");
        let running = self.tidemark.held_at(point, &gate).spawn([&RESTORE[..], args].concat());
        gate.wait_for(point);
        (running, gate)
    }

    fn operation<const N: usize>(&self, args: [&str; N]) -> Outcome {
        let args = [&["operation"], &args[..], &["--target", "embedded:copy"]].concat();
        self.tidemark.run(args)
    }

    fn get(&self) -> Json {
        self.operation(["get", "1", "--json"]).expect_code(0).json_lines().remove(0)
    }

    fn dump(&self, db: &str) -> String {
        let args = ["db", "dump", "--db", db, "--table", "orders"];
        self.tidemark.run(args).expect_code(0).stdout
    }

    fn files(&self) -> std::collections::BTreeSet<std::path::PathBuf> {
        files(&self.folder.path().join("copy"))
    }

    /// What people see of the tables.
    fn tables(&self) -> String {
        self.tidemark.run(["db", "tables", "--db", "copy", "--json"]).expect_code(0).stdout
    }
}

#[track_caller]
fn expect_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

#[test]
fn a_running_restore_is_seen_from_another_terminal() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &[]);
    let pid = running.pid().to_string();

    let listed = stage.operation(["list"]).expect_code(0);
    expect_words(&listed.stdout, &["waiting", "restore of"]);
    let got = stage.operation(["get", "1"]).expect_code(0);
    expect_words(&got.stdout, &["waiting", &pid, "in flight"]);
    let json = stage.get();
    assert_eq!(json["phase"], "waiting");
    assert_eq!(json["holder"]["state"], "alive");
    assert_eq!(json["holder"]["pid"].to_string(), pid);
    assert_eq!(json["shards"].as_array().unwrap().len(), 3);

    // By the number that the target knows it by.
    let txn = json["txn"].to_string();
    let by_txn = stage.operation(["get", &txn, "--txn", "--json"]).expect_code(0);
    assert_eq!(by_txn.json_lines()[0]["operation"], 1);
    let unknown = stage.operation(["get", "99"]).expect_code(10);
    expect_words(&unknown.stderr, &["no operation 99", "embedded:copy"]);

    let watch = ["operation", "watch", "1", "--target", "embedded:copy", "--json"];
    let mut watching = stage.tidemark.spawn(watch);
    let status = watching.wait_for_line(|line| line.contains("\"status\""));
    expect_words(&status, &["\"phase\":\"waiting\"", "\"percent_done\":0"]);
    let waiting = stage.tidemark.spawn(["operation", "wait", "1", "--target", "embedded:copy"]);

    // What is not ended cannot be forgotten, and what is driven not resumed.
    expect_words(&stage.operation(["forget", "1"]).expect_code(11).stderr, &[&pid, "cancel"]);
    expect_words(&stage.operation(["resume", "1"]).expect_code(11).stderr, &[&pid, "watch"]);

    gate.open();
    running.wait().expect_code(0);
    expect_words(&waiting.wait().expect_code(0).stdout, &["restored"]);
    let watched = watching.wait().expect_code(0);
    assert_eq!(watched.json_lines().last().unwrap()["ended"], "done");
    assert_eq!(stage.get()["percent_done"], 1.0);
    assert!(stage.dump("copy") == stage.dump("source"));
}

#[test]
fn a_restore_that_is_paused_elsewhere_stops_with_5_and_is_carried_on_or_cancelled() {
    let stage = Stage::new();
    let (before, tables) = (stage.files(), stage.tables());
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &[]);
    let paused = stage.operation(["pause", "1"]).expect_code(0);
    expect_words(&paused.stdout, &["is paused", &running.pid().to_string(), "operation resume 1"]);
    gate.open();
    let stopped = running.wait().expect_code(5);
    expect_words(&stopped.stderr, &["operation pause", "the same command", "nothing is lost"]);

    expect_words(&stage.operation(["get", "1"]).expect_code(0).stdout, &["paused"]);
    expect_words(&stage.operation(["wait", "1"]).expect_code(5).stderr, &["operation resume 1"]);
    expect_words(&stage.operation(["pause", "1"]).expect_code(0).stdout, &["nobody drives it"]);
    expect_words(&stage.operation(["forget", "1"]).expect_code(2).stderr, &["operation cancel 1"]);

    stage.operation(["cancel", "1"]).expect_code(0);
    assert_eq!(stage.files(), before);
    assert_eq!(stage.tables(), tables);
    expect_words(&stage.operation(["wait", "1"]).expect_code(1).stderr, &["was cancelled"]);
    expect_words(&stage.operation(["cancel", "1"]).expect_code(1).stderr, &["nothing to cancel"]);
    stage.operation(["forget", "1"]).expect_code(0);
    expect_words(&stage.operation(["forget", "1"]).expect_code(10).stderr, &["no operation 1"]);
    expect_words(&stage.operation(["list"]).expect_code(0).stdout, &["no operations"]);
}

#[test]
fn a_paused_restore_is_carried_on_by_its_number() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &[]);
    stage.operation(["pause", "1"]).expect_code(0);
    gate.open();
    running.wait().expect_code(5);
    stage.operation(["resume", "1"]).expect_code(0);
    stage.operation(["wait", "1"]).expect_code(0);
    assert!(stage.dump("copy") == stage.dump("source"));
}

#[test]
fn a_running_restore_that_is_cancelled_elsewhere_leaves_the_target_as_it_was() {
    let stage = Stage::new();
    let (before, tables) = (stage.files(), stage.tables());
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &[]);
    let cancel = stage.tidemark.spawn(["operation", "cancel", "1", "--target", "embedded:copy"]);
    wait_until("the request is taken", || stage.get()["desired"] == "cancelled");
    gate.open();
    expect_words(&running.wait().expect_code(1).stderr, &["was cancelled", "as it was"]);
    cancel.wait().expect_code(0);
    assert_eq!(stage.get()["phase"], "cancelled");
    assert_eq!(stage.files(), before);
    assert_eq!(stage.tables(), tables);
    stage.tidemark.run(RESTORE).expect_code(0);
    assert!(stage.dump("copy") == stage.dump("source"));
}

#[test]
fn a_restore_that_publishes_cannot_be_cancelled_and_says_so() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at("target.publish.before_commit:1", &[]);
    assert_eq!(stage.get()["stage"], "publishing");
    let late = stage.operation(["cancel", "1"]).expect_code(1);
    expect_words(&late.stderr, &["cannot be cancelled now", "is publishing", "operation wait 1"]);
    gate.open();
    running.wait().expect_code(0);
    let later = stage.operation(["cancel", "1"]).expect_code(1);
    expect_words(&later.stderr, &["is done", "nothing to cancel"]);
    assert!(stage.dump("copy") == stage.dump("source"));
}

#[test]
fn the_window_changes_while_a_restore_runs() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &["--shards-in-flight", "1"]);
    assert_eq!(in_flight(&stage), 1);
    let set = stage.operation(["set", "1", "--shards-in-flight", "3"]).expect_code(0);
    expect_words(&set.stdout, &["3 shards", &running.pid().to_string()]);
    assert_eq!(stage.get()["shards_in_flight_max"], 3);
    // One is held at the gate; the others go on beside it.
    wait_until("the other shards are done", || done(&stage) == 2);
    gate.open();
    running.wait().expect_code(0);
    assert!(stage.dump("copy") == stage.dump("source"));
}

fn count(stage: &Stage, state: &str) -> usize {
    let shards = stage.get()["shards"].clone();
    shards.as_array().unwrap().iter().filter(|shard| shard["state"] == state).count()
}

fn in_flight(stage: &Stage) -> usize {
    count(stage, "in_flight")
}

fn done(stage: &Stage) -> usize {
    count(stage, "done")
}

#[test]
fn a_detached_restore_prints_its_number_and_is_waited_for() {
    let stage = Stage::new();
    let detached = stage.tidemark.run([&RESTORE[..], &["--detach", "--json"]].concat());
    let detached = detached.expect_code(0).json_lines();
    assert_eq!(detached.last().unwrap()["operation"], 1, "{detached:?}");
    expect_words(&stage.operation(["wait", "1"]).expect_code(0).stdout, &["restored"]);
    assert!(stage.dump("copy") == stage.dump("source"));
}

#[test]
fn waiting_for_an_operation_whose_process_died_says_so() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &[]);
    let pid = running.pid().to_string();
    let waiting = stage.tidemark.spawn(["operation", "wait", "1", "--target", "embedded:copy"]);
    running.kill().expect_killed();
    let told = waiting.wait().expect_code(5);
    expect_words(&told.stderr, &[&pid, "is gone", "operation resume 1"]);
    gate.open();
}

#[test]
fn waiting_exits_with_the_code_of_a_failure() {
    let stage = Stage::new();
    let (running, gate) = stage.restore_held_at(FIRST_CHUNK, &["--shards-in-flight", "1"]);
    stage.operation(["pause", "1"]).expect_code(0);
    gate.open();
    running.wait().expect_code(5);
    let parts = files_below(&stage.folder.path().join("backups"), "parquet");
    let kept: Vec<Vec<u8>> = parts.iter().map(|part| std::fs::read(part).unwrap()).collect();
    parts.iter().for_each(|part| std::fs::write(part, b"not a part").unwrap());
    let failed = stage.tidemark.run(RESTORE).expect_code(13);
    expect_words(&failed.stderr, &[".parquet"]);
    expect_words(&stage.operation(["wait", "1"]).expect_code(13).stderr, &["operation resume 1"]);
    // The marks were kept: with the parts back in place it carries on.
    parts.iter().zip(kept).for_each(|(part, bytes)| std::fs::write(part, bytes).unwrap());
    stage.operation(["resume", "1"]).expect_code(0);
    assert!(stage.dump("copy") == stage.dump("source"));
}

fn files_below(folder: &std::path::Path, extension: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}
