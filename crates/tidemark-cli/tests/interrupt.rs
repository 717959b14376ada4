//! Ctrl-C: once it pauses between two chunks, twice it stops at once; the same command
//! carries on in both cases.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use rustix::process::Signal;
use support::chain::{BACKUP, make_chain, make_table, open, table};
use support::deadline::wait_until;
use support::{Gate, Outcome, Running, Tidemark};

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];
const BEGUN: &str = "restore.before_apply:2";

fn dump(tidemark: &Tidemark, db: &str) -> String {
    tidemark.run(["db", "dump", "--db", db, "--table", "orders"]).expect_code(0).stdout
}

/// Interrupts a process and waits until it has taken note: the pause is recorded then.
fn interrupt(tidemark: &Tidemark, running: &Running, signal: Signal, at: [&str; 2]) {
    running.signal(signal);
    wait_until("the pause is recorded", || {
        let found = tidemark.run(["operation", "get", "1", at[0], at[1], "--json"]);
        found.expect_code(0).json_lines()[0]["desired"] == "paused"
    });
}

/// Panics unless it says how to carry on.
fn expect_paused(outcome: Outcome, resume: &str) {
    let outcome = outcome.expect_code(5);
    // A restore goes on at its marks; a backup's snapshot ended with its process.
    let what = if resume.contains("--source") { "begin it anew" } else { "nothing is lost" };
    for words in ["is paused (interrupted)", what, "the same command", resume] {
        assert!(outcome.stderr.contains(words), "`{words}` is missing in {outcome}");
    }
}

fn check_once(signal: Signal) {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let gate = Gate::close(folder.path(), "gate");
    let chunks = folder.path().join("chunks");
    let running = tidemark.with_chunk_log(&chunks).held_at(BEGUN, &gate).spawn(RESTORE);
    gate.wait_for(BEGUN);
    interrupt(&tidemark, &running, signal, ["--target", "embedded:copy"]);
    gate.open();
    expect_paused(running.wait(), "tidemark operation resume 1 --target embedded:");
    // The chunk in flight was finished and is not repeated.
    let finished = support::log_lines(&chunks).len();
    assert!(finished >= 1, "{finished}");
    tidemark.with_chunk_log(&chunks).run(RESTORE).expect_code(0);
    assert_eq!(support::log_lines(&chunks).len(), 3);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn an_interrupt_pauses_a_restore_and_the_same_command_carries_on() {
    check_once(Signal::INT);
}

#[test]
fn a_request_to_end_pauses_a_restore_as_an_interrupt_does() {
    check_once(Signal::TERM);
}

#[test]
fn a_terminal_that_closes_pauses_a_restore_as_an_interrupt_does() {
    check_once(Signal::HUP);
}

#[test]
fn a_second_interrupt_stops_at_once_and_the_same_command_carries_on() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    for (number, second) in [Signal::INT, Signal::TERM].into_iter().enumerate() {
        let gate = Gate::close(folder.path(), &format!("gate-{number}"));
        let running = tidemark.held_at("restore.before_apply:1", &gate).spawn(RESTORE);
        gate.wait_for("restore.before_apply:1");
        interrupt(&tidemark, &running, Signal::INT, ["--target", "embedded:copy"]);
        running.signal(second);
        // The gate is still closed: nothing was waited for.
        running.wait().expect_code(130);
        gate.open();
    }
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn an_interrupt_pauses_a_backup_and_the_same_command_carries_on() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_table(&open(&folder.path().join("source")), &table("orders"), 300);
    let gate = Gate::close(folder.path(), "gate");
    let running = tidemark.held_at("backup.before_part:1", &gate).spawn(&BACKUP[..5]);
    gate.wait_for("backup.before_part:1");
    interrupt(&tidemark, &running, Signal::INT, ["--source", "embedded:source"]);
    gate.open();
    expect_paused(running.wait(), "tidemark operation resume 1 --source embedded:");
    tidemark.run(&BACKUP[..5]).expect_code(0);
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}
