//! What the command says is durable is durable: every sync comes before the first thing that
//! relies on it. `strace` watches the real binary, and a model of a disk that forgets what was
//! not synced follows what it saw.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::path::{Path, PathBuf};

use support::chain::{change, make_table, open, table};
use support::disk::{Disk, HITS, is_lmdb, is_lock, lay_out};
use support::trace::{Call, record};
use support::{Outcome, Tidemark};

mod support;

const ROWS: u64 = 120;

/// Where collection and target are made: in folders that are not there yet.
const BACKUPS: &str = "new/deep/backups";
const TARGET: &str = "embedded:other/deep/target";

const BACKUP: [&str; 6] = ["backup", "--source", "embedded:source", "--to", BACKUPS, "--json"];
const RESTORE: [&str; 7] = ["restore", BACKUPS, "--target", TARGET, "--shards", "2", "--json"];
const CONTINUE: [&str; 6] = ["restore", BACKUPS, "--target", TARGET, "--continue", "--json"];

/// The exit code of a restore whose tables are there already.
const IN_THE_WAY: i32 = 14;

/// Points at which a transaction is about to name shards as part of something.
const NAMING_SHARDS: [&str; 3] = [
    "generation.switched",
    "target.prepare.before_complete_commit",
    "target.publish.before_commit",
];

/// A folder whose every change is followed.
struct Watched {
    folder: tempfile::TempDir,
    disk: Disk,
}

impl Watched {
    /// With a database `source`, and where `backups` says so a collection.
    fn new(backups: u64) -> Watched {
        let folder = support::temp_folder();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let root = root.canonicalize().unwrap();
        let orders = table("orders");
        make_table(&open(&root.join("source")), &orders, ROWS);
        for generation in 1..=backups {
            Tidemark::new(&root).run(BACKUP).expect_code(0);
            change(&open(&root.join("source")), &orders, ROWS, generation);
        }
        let disk = Disk::of(&root);
        Watched { folder, disk }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root").canonicalize().unwrap()
    }

    fn tidemark(&self) -> Tidemark {
        Tidemark::new(&self.root()).with_hit_log(&self.root().join(HITS))
    }

    /// Runs the command to its end, and checks the order of all it does; how often each check
    /// had something to look at is in the answer.
    fn run(&mut self, args: &[&str]) -> Checked {
        let (outcome, calls) = record(&self.tidemark(), &self.root(), args);
        let outcome = outcome.expect_code(0);
        self.follow(&calls, outcome)
    }

    fn follow(&mut self, calls: &[Call], outcome: Outcome) -> Checked {
        let mut checked = Checked { outcome, visible: 0, commits: 0, points: Vec::new(), ends: 0 };
        self.disk.replay(calls, |disk, call| checked.before(disk, call));
        checked
    }

    /// The command dies in front of every sync in turn, and runs again: what it says then is
    /// durable, also what the dead process made and did not sync.
    fn run_again_after_each_sync_that_was_missed(mut self, args: &[&str]) {
        let (outcome, calls) = record(&self.tidemark(), &self.root(), args);
        outcome.expect_code(0);
        let first = self.disk.moments;
        self.disk.replay(&calls, |_, _| ());
        let all = self.disk.cut(self.disk.moments);
        let mut deaths = 0;
        for (at, call) in calls.iter().enumerate() {
            // LMDB alone looks after its pages: the next sync of its file is for all of them.
            if matches!(call, Call::Sync { path, .. } if !path.ends_with("data.mdb")) {
                // A death leaves all that was done; only a power loss tells what was synced.
                self.disk = all.cut(first + at);
                lay_out(&self.disk.image(&self.disk.without_loss(first + at)), &self.root());
                let (outcome, calls) = record(&self.tidemark(), &self.root(), args);
                // What was over is not done again.
                if outcome.code != Some(IN_THE_WAY) {
                    let checked = self.follow(&calls, outcome.expect_code(0));
                    assert_eq!(checked.ends, 1, "after call {at}: {}", checked.outcome);
                }
                deaths += 1;
            }
        }
        assert!(deaths > 8, "{deaths}");
    }
}

/// What was looked at.
struct Checked {
    outcome: Outcome,
    /// Files that got the name by which they are known.
    visible: u32,
    /// Commits of LMDB.
    commits: u32,
    points: Vec<String>,
    /// Summaries that were printed.
    ends: u32,
}

impl Checked {
    fn before(&mut self, disk: &Disk, call: &Call) {
        match call {
            Call::Link { from, to } | Call::Rename { from, to } if !disk.is_folder(from) => {
                let shown = to.display();
                assert!(disk.has_durable_bytes(from), "{shown} is visible before it is synced");
                let name = to.file_name().unwrap();
                if name == "manifest.json" || to.parent().unwrap().ends_with("log") {
                    expect_collection_durable(disk, &shown.to_string());
                }
                self.visible += 1;
            }
            Call::Write { path, offset, durable, .. } if is_lmdb(path) => {
                if *durable {
                    self.commit(disk, path);
                } else if offset.is_some_and(|offset| offset < 8192) {
                    assert!(disk.is_empty(path), "{} commits without a sync", path.display());
                }
            }
            Call::MakeFolder { path } => {
                // What is in the directory of a database is ours only by this file.
                let marker = path.parent().unwrap().join("tidemark-database.json");
                if !disk.paths(|path| path == marker).is_empty() {
                    disk.expect_durable(&marker, &path.display().to_string());
                }
            }
            Call::Write { path, bytes, .. } if path.ends_with(HITS) => {
                let point = String::from_utf8(bytes.clone()).unwrap();
                self.point(disk, point.trim());
            }
            Call::Print { text } if text.contains(r#""message_type":"summary""#) => {
                for path in disk.paths(|path| is_ours(path) && !disk.is_folder(path)) {
                    disk.expect_durable(&path, "the command says that it is done");
                }
                self.ends += 1;
            }
            _ => {}
        }
    }

    /// The page that makes a transaction count is about to be written.
    fn commit(&mut self, disk: &Disk, path: &Path) {
        assert!(disk.has_durable_bytes(path), "{} commits unsynced pages", path.display());
        if path.parent().unwrap().ends_with("catalog") {
            // The record of a generation goes with this; the directory must not come back.
            assert_eq!(disk.unsynced_move(), None, "the catalog forgets what may be back");
        }
        self.commits += 1;
    }

    fn point(&mut self, disk: &Disk, point: &str) {
        if point == "backup.before_advance" {
            expect_collection_durable(disk, "the source forgets changes");
        }
        if NAMING_SHARDS.contains(&point) {
            let shards = disk.paths(|path| {
                path.ends_with("data.mdb") && path.iter().any(|part| part == "shards")
            });
            for shard in shards {
                assert_eq!(disk.unsynced_name(&shard), None, "{point} names an unsynced shard");
            }
        }
        self.points.push(point.to_owned());
    }

    #[track_caller]
    fn expect(&self, points: &[&str]) {
        assert_eq!(self.ends, 1, "{}", self.outcome);
        for point in points {
            assert!(self.points.iter().any(|passed| passed == point), "never at {point}");
        }
    }
}

/// Whether anybody relies on the file: not so on drafts and locks.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_draft =
        name.contains('#') || name.contains(".json.new") || name.ends_with(".unfinished");
    !is_draft && !is_lock(path) && !path.iter().any(|part| part == "scratch")
}

/// Every object of the collection, the folders around it too.
fn expect_collection_durable(disk: &Disk, before: &str) {
    let in_collection = |path: &Path| path.iter().any(|part| part == "backups") && is_ours(path);
    for object in disk.paths(|path| in_collection(path) && !disk.is_folder(path)) {
        disk.expect_durable(&object, before);
    }
}

#[test]
fn a_backup_is_synced_part_manifest_log_entry_and_source_in_this_order() {
    let mut watched = Watched::new(0);
    // Parts of two shards, the manifest, the log entry and the description of the collection.
    let full = watched.run(&BACKUP);
    full.expect(&["backup.before_advance", "backup.after_advance"]);
    assert!(full.visible >= 5 && full.commits > 3, "{} {}", full.visible, full.commits);
    change(&open(&watched.root().join("source")), &table("orders"), ROWS, 1);
    watched.disk = Disk::of(&watched.root());
    let increment = watched.run(&BACKUP);
    increment.expect(&["backup.before_advance"]);
    assert!(increment.visible >= 4, "{}", increment.visible);
}

#[test]
fn a_restore_is_synced_before_anything_says_so() {
    let mut watched = Watched::new(2);
    let restored = watched.run(&RESTORE);
    restored.expect(&["target.prepare.before_complete_commit", "target.publish.before_commit"]);
    assert!(restored.commits > 10, "{}", restored.commits);
    // The next one moves copies of the shards on, and removes those that it replaces.
    Tidemark::new(&watched.root()).run(BACKUP).expect_code(0);
    watched.disk = Disk::of(&watched.root());
    let continued = watched.run(&CONTINUE);
    continued.expect(&["lmdb.after_copy_link", "target.publish.before_commit"]);
    continued.expect(&["generation.after_move_aside"]);
}

#[test]
fn a_takeover_claims_every_shard_durably_before_the_catalog_has_the_new_holder() {
    let mut watched = Watched::new(2);
    let killed = watched.tidemark().with_failpoint("target.apply.after_commit:1");
    killed.run(RESTORE).expect_killed();
    std::fs::remove_file(watched.root().join(HITS)).unwrap();
    watched.disk = Disk::of(&watched.root());
    let resumed = watched.run(&RESTORE);
    resumed.expect(&["target.claim.after_commit", "target.prepare.after_reserve_commit"]);
    let at = |name: &str| resumed.points.iter().position(|point| point == name).unwrap();
    let claimed = resumed.points.iter().take(at("target.prepare.before_reserve_commit"));
    let claims = claimed.filter(|point| *point == "target.claim.after_commit").count();
    assert_eq!(claims, 2, "{:?}", resumed.points);
}

#[test]
fn a_table_is_loaded_synced_and_dumped_synced() {
    let mut watched = Watched::new(0);
    let root = watched.root();
    let lines: String = (0..200).map(|id| format!("{id},{}\n", id * 7)).collect();
    std::fs::write(root.join("t.csv"), format!("id,value\n{lines}")).unwrap();
    watched.disk = Disk::of(&root);
    let db = "other/deep/loaded";
    let load = ["db", "load", "--db", db, "--table", "t", "--key", "id", "--json", "t.csv"];
    watched.run(&load).expect(&["generation.switched"]);
    std::fs::write(root.join("t.csv"), format!("id,value\n{lines}777,8\n")).unwrap();
    watched.disk = Disk::of(&root);
    watched.run(&[&load[..], &["--sync"]].concat()).expect(&["lmdb.after_commit"]);
    let dump = ["db", "dump", "--db", db, "--table", "t", "--output", "dumped.csv", "--json"];
    watched.run(&dump).expect(&[]);
}

#[test]
fn a_verification_is_recorded_in_folders_that_are_synced() {
    let mut watched = Watched::new(1);
    watched.run(&["verify", BACKUPS, "--json"]).expect(&["lmdb.after_commit"]);
}

#[test]
fn what_a_dead_load_left_unsynced_is_synced_by_the_next() {
    let mut watched = Watched::new(0);
    std::fs::write(watched.root().join("t.csv"), "id,value\n1,2\n3,4\n").unwrap();
    watched.disk = Disk::of(&watched.root());
    let load = ["db", "load", "--db", "new/deep/loaded", "--table", "t", "--key", "id"];
    watched.run_again_after_each_sync_that_was_missed(
        &[&load[..], &["--sync", "--json", "t.csv"]].concat(),
    );
}

#[test]
fn what_a_dead_backup_left_unsynced_is_synced_by_the_next() {
    Watched::new(0).run_again_after_each_sync_that_was_missed(&BACKUP);
}

#[test]
fn what_a_dead_restore_left_unsynced_is_synced_by_the_next() {
    Watched::new(1).run_again_after_each_sync_that_was_missed(&RESTORE);
}

#[test]
fn what_a_dead_roll_forward_left_unsynced_is_synced_by_the_next() {
    let mut watched = Watched::new(1);
    watched.run(&RESTORE).expect(&["target.publish.after_commit"]);
    Tidemark::new(&watched.root()).run(BACKUP).expect_code(0);
    watched.disk = Disk::of(&watched.root());
    watched.run_again_after_each_sync_that_was_missed(&CONTINUE);
}
