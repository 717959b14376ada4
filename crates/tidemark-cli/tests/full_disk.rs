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
