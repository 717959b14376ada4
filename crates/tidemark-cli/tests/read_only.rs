//! Folders that may not be written to: what needs to write there stops, says so and carries
//! on once it may; what only reads does its work.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::chain::{BACKUP, make_chain, make_table, open, table};
use support::{Outcome, Tidemark};

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];

/// Takes the right to write from a folder and all in it.
fn close(folder: &Path) {
    set_modes(folder, 0o555, 0o444);
}

/// Gives it back.
fn reopen(folder: &Path) {
    set_modes(folder, 0o755, 0o644);
}

fn set_modes(folder: &Path, of_folders: u32, of_files: u32) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            set_modes(&path, of_folders, of_files)
        } else {
            set_mode(&path, of_files)
        }
    }
    set_mode(folder, of_folders);
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn dump(tidemark: &Tidemark, db: &str) -> String {
    tidemark.run(["db", "dump", "--db", db, "--table", "orders"]).expect_code(0).stdout
}

/// Panics unless it stopped for want of permission, and named the folder.
#[track_caller]
fn expect_stopped_for_permission(outcome: Outcome, folder: &str) {
    let outcome = outcome.expect_code(5);
    for words in ["permission", "same command", folder] {
        assert!(outcome.stderr.contains(words), "`{words}` is missing in {outcome}");
    }
}

#[test]
fn a_new_target_in_a_read_only_folder_stops_the_restore() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    make_chain(folder.path(), 300, 1);
    set_mode(folder.path(), 0o555);
    let refused = tidemark.run(RESTORE);
    set_mode(folder.path(), 0o755);
    expect_stopped_for_permission(refused, "copy");
    assert!(!folder.path().join("copy").exists());
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn a_read_only_target_stops_the_restore() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    make_chain(folder.path(), 300, 1);
    let target = folder.path().join("copy");
    make_table(&open(&target), &table("kept"), 10);
    close(&target);
    let refused = tidemark.run(RESTORE);
    reopen(&target);
    expect_stopped_for_permission(refused, "copy");
    tidemark.run(RESTORE).expect_code(0);
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
}

#[test]
fn a_read_only_collection_is_restored_from_and_takes_no_backup() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    make_chain(folder.path(), 300, 1);
    let collection = folder.path().join("backups");
    close(&collection);
    let restored = tidemark.run(RESTORE);
    let listed = tidemark.run(["backups", "backups"]);
    let refused = tidemark.run(&BACKUP[..5]);
    reopen(&collection);
    restored.expect_code(0);
    listed.expect_code(0);
    expect_stopped_for_permission(refused, "backups");
    assert!(dump(&tidemark, "copy") == dump(&tidemark, "source"));
    tidemark.run(&BACKUP[..5]).expect_code(0);
}

#[test]
fn a_collection_that_may_not_be_read_stops_the_restore() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    make_chain(folder.path(), 300, 1);
    let collection = folder.path().join("backups");
    set_mode(&collection, 0o000);
    let refused = tidemark.run(RESTORE);
    set_mode(&collection, 0o755);
    expect_stopped_for_permission(refused, "backups");
    tidemark.run(RESTORE).expect_code(0);
}

#[test]
fn a_read_only_source_stops_the_backup() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    let source = folder.path().join("source");
    make_table(&open(&source), &table("orders"), 300);
    close(&source);
    let refused = tidemark.run(&BACKUP[..5]);
    reopen(&source);
    expect_stopped_for_permission(refused, "source");
    tidemark.run(&BACKUP[..5]).expect_code(0);
}

#[test]
fn a_file_that_may_not_be_read_is_told_by_name_and_loads_nothing() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path()).without_powers();
    let file = folder.path().join("orders.csv");
    std::fs::write(&file, "id,text\n1,one\n").unwrap();
    set_mode(&file, 0o000);
    let load = ["db", "load", "--db", "shop", "--table", "orders", "--key", "id", "orders.csv"];
    let refused = tidemark.run(load).expect_code(2);
    assert!(refused.stderr.contains("orders.csv"), "{refused}");
    assert!(!folder.path().join("shop").exists(), "no database is left behind");
    set_mode(&file, 0o644);
    tidemark.run(load).expect_code(0);
}
