//! Two processes and one operation: one of them drives it, the other is told who; the dead
//! free what they held at once, the silent when their lease ends, and neither writes again.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use rustix::process::Signal;
use serde_json::Value as Json;
use support::chain::make_chain;
use support::{Gate, Tidemark};

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];

/// The same with one shard at a time: a process that stops between two chunks is then inside
/// no transaction of another.
const ONE_BY_ONE: [&str; 8] =
    ["restore", "backups", "--target", "embedded:copy", "--shards", "3", "--shards-in-flight", "1"];

fn dump(tidemark: &Tidemark, db: &str, table: &str) -> String {
    tidemark.run(["db", "dump", "--db", db, "--table", table]).expect_code(0).stdout
}

fn get(tidemark: &Tidemark) -> Json {
    let args = ["operation", "get", "1", "--target", "embedded:copy", "--json"];
    tidemark.run(args).expect_code(0).json_lines().remove(0)
}

#[test]
fn a_second_process_is_told_who_drives_the_operation_and_disturbs_nothing() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let gate = Gate::close(folder.path(), "gate");
    let first = tidemark.held_at("restore.before_apply:1", &gate).spawn(RESTORE);
    gate.wait_for("restore.before_apply:1");
    let pid = first.pid().to_string();
    let before = get(&tidemark)["holder"].clone();
    assert_eq!(before["pid"].to_string(), pid, "{before}");

    let second = tidemark.run(RESTORE).expect_code(11);
    let says = format!("process {pid}");
    assert!(second.stderr.contains(&says), "{second}");
    assert!(second.stderr.contains("tidemark operation watch 1"), "{second}");
    assert!(!second.stderr.contains("silent"), "it lives: {second}");
    let third = tidemark.run(["operation", "resume", "1", "--target", "embedded:copy"]);
    assert!(third.stderr.contains(&says), "{third}");
    third.expect_code(11);
    assert_eq!(get(&tidemark)["holder"]["pid"], before["pid"]);

    gate.open();
    first.wait().expect_code(0);
    assert!(dump(&tidemark, "copy", "orders") == dump(&tidemark, "source", "orders"));
}

#[test]
fn a_dead_holder_is_taken_over_at_once() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    tidemark.with_failpoint("restore.before_apply:1:kill").run(RESTORE).expect_killed();
    assert_eq!(get(&tidemark)["holder"]["state"], "dead");
    let second = tidemark.run(RESTORE).expect_code(0);
    assert!(!second.stderr.contains("lease"), "nobody was waited for: {second}");
    assert!(dump(&tidemark, "copy", "orders") == dump(&tidemark, "source", "orders"));
}

#[test]
fn a_silent_holder_is_taken_over_when_its_lease_ends_and_commits_nothing_when_it_wakes() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let chunks = folder.path().join("chunks");
    let mut silent = tidemark
        .with_chunk_log(&chunks)
        .with_failpoint("restore.before_apply:2:stop")
        .spawn(ONE_BY_ONE);
    silent.wait_until_stopped();
    let pid = silent.pid();
    let before = support::log_lines(&chunks).len();

    let second = tidemark.run(RESTORE).expect_code(0);
    let says = format!("process {pid} drives it and is silent");
    assert!(second.stderr.contains(&says), "the wait is shown: {second}");
    let expected = dump(&tidemark, "copy", "orders");
    assert!(expected == dump(&tidemark, "source", "orders"));
    let done = get(&tidemark);

    silent.signal(Signal::CONT);
    let woken = silent.wait().expect_code(11);
    assert!(woken.stderr.contains("this process stops"), "{woken}");
    assert_eq!(support::log_lines(&chunks).len(), before, "it applied nothing more");
    assert_eq!(get(&tidemark), done);
    assert!(dump(&tidemark, "copy", "orders") == expected);
}

#[test]
fn a_silent_holder_is_cancelled_when_its_lease_ends_and_no_verb_says_done_before() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let operation = |verb: &'static str| ["operation", verb, "1", "--target", "embedded:copy"];
    let mut silent = tidemark.with_failpoint("restore.before_apply:2:stop").spawn(ONE_BY_ONE);
    silent.wait_until_stopped();
    // What only the holder could do is left for it.
    let paused = tidemark.run(operation("pause")).expect_code(11);
    for words in [&format!("process {}", silent.pid()), "is silent", "operation cancel 1"] {
        assert!(paused.stderr.contains(words), "`{words}` is missing in {paused}");
    }
    tidemark.run(operation("cancel")).expect_code(0);
    assert_eq!(get(&tidemark)["phase"], "cancelled");
    silent.signal(Signal::CONT);
    silent.wait().expect_code(11);
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy", "orders") == dump(&tidemark, "source", "orders"));
}

#[test]
fn a_holder_that_is_frozen_inside_a_transaction_is_named_blocks_no_other_table_and_may_wake() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let frozen = tidemark.with_failpoint("target.apply.in_transaction:1:stop");
    let mut frozen = frozen.spawn(ONE_BY_ONE);
    frozen.wait_until_stopped();

    let other = [&RESTORE[..], &["--rename", "orders=other"]].concat();
    tidemark.run(other).expect_code(0);
    assert!(dump(&tidemark, "copy", "other") == dump(&tidemark, "source", "orders"));

    // The lease ends, and then the lock of the shard is waited for in vain.
    let second = tidemark.run(RESTORE).expect_code(11);
    assert!(second.stderr.contains(&format!("is held by process {}", frozen.pid())), "{second}");

    // Nobody took the operation from it, and no fence was raised: it finishes its work.
    frozen.signal(Signal::CONT);
    frozen.wait().expect_code(0);
    assert!(dump(&tidemark, "copy", "orders") == dump(&tidemark, "source", "orders"));
}
