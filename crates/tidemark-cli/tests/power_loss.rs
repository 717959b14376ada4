//! What a power loss leaves, built from what the real binary did, and opened.
//!
//! Of every run each moment is taken, and of what was not synced then everything or nothing, each
//! thing alone or alone missing, cut, or replaced by zeros, and more at random.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![expect(clippy::print_stdout, reason = "how many images there were, and the one of a failure")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions};
use support::Tidemark;
use support::chain::{Rng, change, make_table, open, table};
use support::disk::{Disk, Loss, is_lmdb, lay_out};
use support::trace::{Call, record};
use tidemark::Kind;
use tidemark::collection::{Collection, Store};

mod support;

const ROWS: u64 = 60;
const BACKUP: [&str; 6] = ["backup", "--source", "embedded:source", "--to", "backups", "--json"];
const RESTORE: [&str; 7] =
    ["restore", "backups", "--target", "embedded:target", "--shards", "2", "--json"];
const DUMP: [&str; 6] = ["db", "dump", "--db", "target", "--table", "orders"];

const SEED: u64 = 20_261_125;

/// Images on which whole commands are run, of each recorded run; all others are only opened.
const RUNS: usize = 20;

/// LMDB files that are opened, of each environment.
const ENVIRONMENTS: usize = 250;

/// A folder with what happened in it since it was made.
struct Recorded {
    folder: tempfile::TempDir,
    root: PathBuf,
    disk: Disk,
}

impl Recorded {
    /// Begins with a database `source`, and so many backups of it.
    fn new(backups: u64) -> Recorded {
        let folder = support::temp_folder();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let root = root.canonicalize().unwrap();
        make_table(&open(&root.join("source")), &table("orders"), ROWS);
        for generation in 1..=backups {
            Tidemark::new(&root).run(BACKUP).expect_code(0);
            change(&open(&root.join("source")), &table("orders"), ROWS, generation);
        }
        let disk = Disk::of(&root);
        Recorded { folder, root, disk }
    }

    fn tidemark(&self) -> Tidemark {
        Tidemark::new(&self.root)
    }

    fn run(&mut self, args: &[&str]) {
        let (outcome, calls): (_, Vec<Call>) = record(&self.tidemark(), &self.root, args);
        outcome.expect_code(0);
        self.disk.replay(&calls, |_, _| ());
    }

    /// Every loss, on the disk as a whole.
    fn losses(&self) -> Vec<Loss> {
        self.disk.losses(|_| true, 1, &mut Rng(SEED))
    }
}

/// At most `count` of all, the first and the last among them.
fn spread<T>(all: Vec<T>, count: usize) -> Vec<T> {
    let stride = all.len().div_ceil(count).max(1);
    let last = all.len().saturating_sub(1);
    let numbered = all.into_iter().enumerate();
    numbered.filter(|(at, _)| at % stride == 0 || *at == last).map(|(_, one)| one).collect()
}

/// Numbers of the log entries of a folder.
fn log_entries(disk: &Disk, loss: &Loss, root: &Path) -> usize {
    (1..)
        .take_while(|number| {
            disk.file(loss, &root.join(format!("backups/log/{number:06}.json"))).is_some()
        })
        .count()
}

/// Opens the collection of an image, and gives its number of backups.
fn open_collection(root: &Path, loss: &Loss) -> usize {
    let store = Store::open(&root.join("backups").display().to_string()).unwrap();
    let collection = match Collection::open(store) {
        Ok(collection) => collection,
        Err(error) if error.kind() == Kind::NotFound => return 0,
        Err(error) => panic!("{loss}: {error}"),
    };
    let log = collection.log().unwrap_or_else(|error| panic!("{loss}: {error}"));
    for entry in &log {
        let manifest = collection.manifest(entry).unwrap_or_else(|error| panic!("{loss}: {error}"));
        for part in manifest.tables.iter().flat_map(|table| &table.parts) {
            let path = format!("{}/{}", manifest.directory, part.name);
            let found = collection.store().hash(&path);
            let found = found.unwrap_or_else(|error| panic!("{loss}: {error}"));
            assert_eq!((found.bytes, &found.blake3), (part.bytes, &part.blake3), "{loss}");
        }
    }
    log.len()
}

fn dump(tidemark: &Tidemark) -> String {
    tidemark.run(DUMP).expect_code(0).stdout
}

/// What `source` holds, as a restored table would print it.
fn source_rows(tidemark: &Tidemark) -> String {
    tidemark.run(["db", "dump", "--db", "source", "--table", "orders"]).expect_code(0).stdout
}

/// Loses power at any time of a backup that follows `before` others: every backup of the log is
/// whole, none that was acknowledged is missing, and the same command carries on.
fn lose_power_in_a_backup(before: u64) {
    let mut recorded = Recorded::new(before);
    recorded.run(&BACKUP);
    let Recorded { root, disk, .. } = &recorded;
    let rows = source_rows(&recorded.tidemark());
    let last = disk.without_loss(disk.moments);
    assert_eq!(log_entries(disk, &last, root), before as usize + 1);
    // The collection alone, in every way; everything else is told apart below.
    let of_collection = |path: &Path| path.starts_with("backups");
    let losses = disk.losses(of_collection, 1, &mut Rng(SEED));
    for loss in &losses {
        lay_out(&disk.image_of(loss, of_collection), root);
        let least = log_entries(disk, &disk.greatest_loss(loss.moments), root);
        let most = log_entries(disk, &disk.without_loss(loss.moments), root);
        let found = open_collection(root, loss);
        assert!((least..=most).contains(&found), "{loss}: {found} backups");
        assert!(least >= before as usize, "{loss}");
    }
    println!("{} images of the collection were opened", losses.len());
    assert!(losses.len() > 50, "{}", losses.len());
    let losses = recorded.losses();
    println!("{} images of all", losses.len());
    let sample = spread(losses, RUNS);
    println!("{} are carried on", sample.len());
    for loss in sample {
        println!("{loss}");
        lay_out(&disk.image(&loss), root);
        let tidemark = recorded.tidemark();
        if open_collection(root, &loss) > 0 {
            let verified = tidemark.run(["verify", "backups", "--level", "rows"]);
            // Between its manifest and its log entry it looks like one whose entry was lost.
            let code = if verified.stdout.contains("no log entry names") { 3 } else { 0 };
            verified.expect_code(code);
        }
        tidemark.run(BACKUP).expect_code(0);
        tidemark.run(RESTORE).expect_code(0);
        assert_eq!(dump(&tidemark), rows);
    }
}

#[test]
fn every_image_of_a_first_backup_is_a_collection_that_takes_the_next() {
    lose_power_in_a_backup(0);
}

#[test]
fn every_image_of_an_increment_is_a_collection_that_takes_the_next() {
    lose_power_in_a_backup(1);
}

/// Runs the command on a sample of what a loss of power leaves of it: the table has `rows` then.
fn carry_on(recorded: &Recorded, command: &[&str], rows: &str) {
    let losses = recorded.losses();
    println!("{} images of all", losses.len());
    let sample = spread(losses, 2 * RUNS);
    println!("{} are carried on", sample.len());
    for loss in sample {
        println!("{loss}");
        lay_out(&recorded.disk.image(&loss), &recorded.root);
        let tidemark = recorded.tidemark();
        let outcome = tidemark.run(command);
        // One that was over finds its own table in the way.
        if outcome.code != Some(14) {
            outcome.expect_code(0);
        }
        assert_eq!(dump(&tidemark), rows);
    }
}

#[test]
fn every_image_of_a_restore_is_carried_on_to_the_same_rows() {
    let mut recorded = Recorded::new(2);
    recorded.tidemark().run(BACKUP).expect_code(0);
    let rows = source_rows(&recorded.tidemark());
    recorded.disk = Disk::of(&recorded.root);
    recorded.run(&RESTORE);
    carry_on(&recorded, &RESTORE, &rows);
}

#[test]
fn every_image_of_a_load_is_a_database_with_the_table_or_without() {
    let mut recorded = Recorded::new(0);
    let lines: String = (0..100).map(|id| format!("{id},{}\n", id * 7)).collect();
    std::fs::write(recorded.root.join("t.csv"), format!("id,value\n{lines}")).unwrap();
    recorded.disk = Disk::of(&recorded.root);
    let load = ["db", "load", "--db", "target", "--table", "orders", "--key", "id", "t.csv"];
    recorded.run(&load);
    let rows = dump(&recorded.tidemark());
    carry_on(&recorded, &load, &rows);
}

/// All that an environment holds: by database, by key.
type Held = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Opens a file of LMDB's as it is, in a folder of its own.
fn read_lmdb(folder: &Path, bytes: &[u8]) -> heed::Result<Held> {
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("data.mdb"), bytes).unwrap();
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(1 << 26).max_dbs(64);
    // SAFETY: nobody else knows of the file.
    let env = unsafe { options.open(folder)? };
    let read = env.open_databases_and_commit(env.read_txn()?, |opener, txn| {
        let mut held = Held::new();
        let Some(main) = opener.open_database::<Bytes, Bytes>(txn, None)? else {
            return Ok(CommitOrAbort::Abort(held));
        };
        let names: Vec<Vec<u8>> =
            main.iter(txn)?.map(|entry| Ok(entry?.0.to_vec())).collect::<heed::Result<_>>()?;
        for name in names {
            let text = std::str::from_utf8(&name).expect("names are words");
            let database = opener.open_database::<Bytes, Bytes>(txn, Some(text))?;
            let entries = database.expect("main names it").iter(txn)?;
            let copied = entries.map(|entry| {
                let (key, value) = entry?;
                Ok((key.to_vec(), value.to_vec()))
            });
            held.insert(name, copied.collect::<heed::Result<_>>()?);
        }
        heed::Result::Ok(CommitOrAbort::<(), _>::Abort(held))
    })?;
    let CommitOrAbort::Abort(held) = read else { panic!("nothing was written") };
    env.prepare_for_closing().wait();
    Ok(held)
}

/// Loses power while an environment is written: it holds what the last commit before left.
fn lose_power_in_an_environment(recorded: &Recorded, path: &Path, opened: &mut u32) {
    let disk = &recorded.disk;
    let folder = recorded.folder.path().join("environments");
    std::fs::create_dir_all(&folder).unwrap();
    let mut read = |loss: &Loss| -> Option<Held> {
        let bytes = disk.file(loss, path)?;
        *opened += 1;
        // A new name each time: a process opens no environment twice.
        let place = folder.join(opened.to_string());
        let held = read_lmdb(&place, &bytes);
        std::fs::remove_dir_all(place).unwrap();
        Some(held.unwrap_or_else(|error| panic!("{}: {loss}: {error}", path.display())))
    };
    let inside = path.strip_prefix(&recorded.root).unwrap();
    let losses = disk.losses(|changed| changed == inside, 4, &mut Rng(SEED));
    let mut committed = (None, Held::new());
    for loss in spread(losses, ENVIRONMENTS) {
        let commit = disk.last_commit(path, loss.moments);
        if let Some(after) = commit.filter(|_| commit != committed.0) {
            let held = read(&disk.without_loss(after)).expect("it was written");
            committed = (commit, held);
        }
        if let Some(found) = read(&loss) {
            assert_eq!(found, committed.1, "{}: {loss}", path.display());
        }
    }
}

#[test]
fn every_image_of_an_environment_holds_one_commit_and_no_mixture() {
    let mut recorded = Recorded::new(1);
    recorded.run(&BACKUP);
    recorded.run(&RESTORE);
    let environments = recorded.disk.paths(is_lmdb);
    assert!(environments.len() >= 6, "{environments:?}");
    let mut opened = 0;
    for path in &environments {
        lose_power_in_an_environment(&recorded, path, &mut opened);
    }
    println!("{opened} images were opened");
    assert!(opened > 300, "{opened}");
}
