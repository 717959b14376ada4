//! A disk that is really full, not one that only says so: nothing dies of it, whatever the moment
//! at which the room ends, and what it stopped can be given up without any room.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use support::Tidemark;
use support::chain::make_chain;
use support::small_disk::SmallDisk;

mod support;

/// What the disk gives at a time: no room between two of these is another one.
const PAGE_KIB: u32 = 4;

/// Runs a command on empty disks, each a page larger than the one before, until it is done; each
/// run before that ends by itself and says that it needs room.
#[track_caller]
fn fill(args: &[&str]) {
    const KIB_MAX: u32 = 2 << 10;
    let folder = support::temp_folder();
    make_chain(folder.path(), 60, 0);
    std::fs::write(folder.path().join("rows.csv"), "id,text\n1,one\n2,two\n").unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), PAGE_KIB);
    let tidemark = Tidemark::new(folder.path()).on(&disk);
    for kib in (PAGE_KIB..=KIB_MAX).step_by(PAGE_KIB as usize) {
        disk.begin_anew(kib);
        let outcome = tidemark.run(args);
        if outcome.code == Some(0) {
            return;
        }
        let outcome = outcome.expect_code(5);
        assert!(outcome.stderr.contains("space"), "with {kib} KiB: {outcome}");
    }
    panic!("{args:?} never had enough room with {KIB_MAX} KiB");
}

#[test]
fn a_restore_survives_a_disk_that_is_full_at_any_page() {
    fill(&["restore", "backups", "--target", "embedded:disk/copy", "--shards", "1"]);
}

#[test]
fn a_load_survives_a_disk_that_is_full_at_any_page() {
    fill(&["db", "load", "--db", "disk/db", "--table", "t", "--key", "id", "rows.csv"]);
}

#[test]
fn a_verification_survives_a_disk_that_is_full_at_any_page() {
    fill(&["verify", "backups", "--state", "disk/state"]);
}

/// Less than the rows that are restored take.
const SMALL_KIB: u32 = 6 << 10;
const TABLES: [&str; 5] = ["db", "tables", "--db", "disk/copy", "--json"];
const CANCEL: [&str; 5] = ["operation", "cancel", "1", "--target", "embedded:disk/copy"];

/// A restore into a database that stands on a disk of `kib` KiB, which is full by then.
fn restore_until_full(folder: &std::path::Path, kib: u32) -> (SmallDisk, Tidemark, String) {
    make_chain(folder, 9_000, 0);
    std::fs::write(folder.join("rows.csv"), "id,text\n1,one\n2,two\n").unwrap();
    let disk = SmallDisk::mount(&folder.join("disk"), kib);
    let tidemark = Tidemark::new(folder).on(&disk);
    let load = ["db", "load", "--db", "disk/copy", "--table", "kept", "--key", "id", "rows.csv"];
    tidemark.run(load).expect_code(0);
    let tables = tidemark.run(TABLES).expect_code(0).stdout;
    disk.resize(SMALL_KIB);
    let restore = ["restore", "backups", "--target", "embedded:disk/copy", "--shards", "3"]
        .map(str::to_owned);
    let stopped = tidemark.run(&restore).expect_code(5);
    assert!(stopped.stderr.contains("space"), "{stopped}");
    disk.fill();
    (disk, tidemark, tables)
}

#[test]
fn what_filled_the_disk_is_cancelled_without_any_room() {
    let folder = support::temp_folder();
    let (_disk, tidemark, tables) = restore_until_full(folder.path(), 16 << 10);
    tidemark.run(CANCEL).expect_code(0);
    assert_eq!(tidemark.run(TABLES).expect_code(0).stdout, tables);
}

#[test]
fn a_cancel_that_finds_no_room_ends_with_5_and_its_reason_until_there_is_some() {
    let folder = support::temp_folder();
    // So small that no room was kept.
    let (disk, tidemark, tables) = restore_until_full(folder.path(), SMALL_KIB);
    let mut room_kib = 0;
    loop {
        let outcome = tidemark.run(CANCEL);
        if outcome.code == Some(0) {
            break;
        }
        let outcome = outcome.expect_code(5);
        for words in ["space", "operation cancel 1"] {
            assert!(outcome.stderr.contains(words), "`{words}` is missing in {outcome}");
        }
        room_kib += 4 * PAGE_KIB;
        disk.resize(SMALL_KIB + room_kib);
    }
    assert!(room_kib > 0, "it needed no room");
    assert_eq!(tidemark.run(TABLES).expect_code(0).stdout, tables);
}
