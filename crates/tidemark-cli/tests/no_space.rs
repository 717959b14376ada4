//! A disk that is full: whatever was being done stops, says so, and loses nothing; once there
//! is room the same command carries on.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use support::chain::{BACKUP, make_chain, make_table, open, table};
use support::{Outcome, Tidemark};

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];

fn dump(tidemark: &Tidemark, db: &str) -> String {
    tidemark.run(["db", "dump", "--db", db, "--table", "orders"]).expect_code(0).stdout
}

/// Panics unless it stopped and said that room is needed and what comes after.
#[track_caller]
fn expect_stopped_for_room(outcome: Outcome) -> Outcome {
    let outcome = outcome.expect_code(5);
    for words in ["free space", "same command"] {
        assert!(outcome.stderr.contains(words), "`{words}` is missing in {outcome}");
    }
    outcome
}

/// How often a run asks whether the disk takes what `name` writes.
fn count_writes(tidemark: &Tidemark, name: &str, args: &[&str]) -> usize {
    let folder = support::temp_folder();
    let log = folder.path().join("hits");
    tidemark.with_hit_log(&log).run(args).expect_code(0);
    support::log_lines(&log).iter().filter(|hit| *hit == name).count()
}

#[test]
fn a_restore_that_finds_no_space_pauses_and_the_same_command_carries_on() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 9_000, 1);
    let full = tidemark.with_failpoint("target.apply.write:2:enospc").run(RESTORE);
    let full = expect_stopped_for_room(full);
    assert!(full.stderr.contains("tidemark operation resume 1"), "{full}");
    assert!(full.stderr.contains("No space left"), "{full}");
    let listed = tidemark.run(["operation", "get", "1", "--target", "embedded:copy", "--json"]);
    let listed = listed.expect_code(0).json_lines().remove(0);
    assert_eq!(listed["desired"], "paused", "{listed}");
    assert_eq!(listed["paused"]["by"], "obstacle", "{listed}");
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn a_restore_carries_on_wherever_the_disk_became_full() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let commits = count_writes(&tidemark, "lmdb.commit", &RESTORE);
    let expected = dump(&tidemark, "source");
    for first in 1..=commits {
        std::fs::remove_dir_all(folder.path().join("copy")).unwrap();
        let point = format!("lmdb.commit:{first}-:enospc");
        let full = tidemark.with_failpoint(&point).run(RESTORE);
        // What follows the last decision is tidying up, which can wait.
        if full.code == Some(0) {
            assert!(first + 4 > commits, "{point}: {full}");
        } else {
            expect_stopped_for_room(full);
            tidemark.run(RESTORE).expect_code(0);
        }
        assert!(dump(&tidemark, "copy") == expected, "{point}");
    }
}

#[test]
fn a_restore_onto_a_small_disk_stops_and_carries_on_when_there_is_room() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 18_000, 0);
    let full = tidemark.with_file_kib_max(5 << 10).run(RESTORE);
    expect_stopped_for_room(full);
    let again = tidemark.with_file_kib_max(5 << 10).run(RESTORE);
    expect_stopped_for_room(again);
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn a_backup_that_finds_no_space_stops_and_leaves_the_collection_as_it_was() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_chain(folder.path(), 300, 1);
    let mut first = 0;
    loop {
        first += 1;
        let point = format!("store.write:{first}-:enospc");
        let full = tidemark.with_failpoint(&point).run(&BACKUP[..5]);
        if full.code == Some(0) {
            break;
        }
        expect_stopped_for_room(full);
        let listed = tidemark.run(["backups", "backups", "--json"]);
        // Between its manifest and its log entry it looks like one whose entry was lost.
        let code = if listed.stdout.contains("no log entry names") { 3 } else { 0 };
        let listed = listed.expect_code(code).json_lines();
        assert_eq!(listed[0]["restore_points"], 1 + first, "{point}");
        tidemark.run(BACKUP).expect_code(0);
    }
    assert!(first > 2, "{first}");
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn a_backup_onto_a_small_disk_stops_and_carries_on_when_there_is_room() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    make_table(&open(&folder.path().join("source")), &table("orders"), 18_000);
    let full = tidemark.with_file_kib_max(300).run(&BACKUP[..5]);
    expect_stopped_for_room(full);
    tidemark.run(&BACKUP[..5]).expect_code(0);
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

fn load<'a>(db: &'a str, file: &'a str) -> [&'a str; 10] {
    ["db", "load", "--db", db, "--table", "orders", "--key", "id", "--sync", file]
}

fn write_file(tidemark_folder: &std::path::Path, name: &str, rows: std::ops::Range<u64>) -> String {
    let lines: String =
        rows.map(|id| format!("{},{}\n", 100_000 + id, "text ".repeat(40))).collect();
    let text = format!("id,text\n{lines}");
    std::fs::write(tidemark_folder.join(name), &text).unwrap();
    text
}

#[test]
fn a_load_that_finds_no_space_leaves_the_table_as_it_was() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    let before = write_file(folder.path(), "before.csv", 0..300);
    let after = write_file(folder.path(), "after.csv", 100..500);
    tidemark.run(load("shop", "before.csv")).expect_code(0);
    let mut first = 0;
    loop {
        first += 1;
        let point = format!("lmdb.commit:{first}-:enospc");
        let full = tidemark.with_failpoint(&point).run(load("shop", "after.csv"));
        if full.code == Some(0) {
            break;
        }
        expect_stopped_for_room(full);
        let found = dump(&tidemark, "shop");
        assert!(found == before || found == after, "{point}");
        tidemark.run(load("shop", "after.csv")).expect_code(0);
        assert!(dump(&tidemark, "shop") == after, "{point}");
        tidemark.run(load("shop", "before.csv")).expect_code(0);
    }
    assert!(first > 3, "{first}");
    assert!(dump(&tidemark, "shop") == after);
}

#[test]
fn a_load_onto_a_small_disk_stops_and_carries_on_when_there_is_room() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    let before = write_file(folder.path(), "before.csv", 0..300);
    let after = write_file(folder.path(), "after.csv", 0..40_000);
    tidemark.run(load("shop", "before.csv")).expect_code(0);
    expect_stopped_for_room(tidemark.with_file_kib_max(1 << 10).run(load("shop", "after.csv")));
    assert!(dump(&tidemark, "shop") == before);
    expect_stopped_for_room(tidemark.with_file_kib_max(1 << 10).run(load("new", "after.csv")));
    for db in ["shop", "new"] {
        tidemark.run(load(db, "after.csv")).expect_code(0);
        assert!(dump(&tidemark, db) == after, "{db}");
    }
}
