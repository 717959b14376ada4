//! Long chains under the limit of open files that most systems start with.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use support::{Outcome, Tidemark, at_run_time};
use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::layout::BackupDirectory;
use tidemark::collection::manifest::BackupKind;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use tidemark::env::{SystemEnv, WallTime};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::TableName;
use tidemark::row::{self, LogicalType, Schema};

/// A folder in memory where the system has such a place: hundreds of backups are made there,
/// and none of them has to survive the machine.
fn folder() -> tempfile::TempDir {
    let in_memory = Path::new("/dev/shm");
    let place = if in_memory.is_dir() { in_memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("tidemark-").tempdir_in(place).unwrap()
}

/// A source of 200 rows and its collection of `links` backups, each increment changing rows everywhere.
fn make_chain(folder: &Path, links: u64) {
    let env = Arc::new(SystemEnv);
    let source = folder.join("source");
    let source = EmbeddedDatabase::create(&source, env.clone(), EmbeddedOptions::default());
    let source = Arc::new(source.unwrap());
    let store = Store::open(folder.join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let catalog = LmdbCatalog::of_database(&source, env).unwrap();
    let table = TableName::parse("orders").unwrap();
    let columns = [("id", LogicalType::Int64), ("amount", LogicalType::Int64)];
    source.create_table(&table, &Schema::new(&columns, &["id"]).unwrap(), &[]).unwrap();
    let write = |amount: i64, step: usize| {
        let mut rows = WriteBatch::new();
        for id in (0..200).step_by(step) {
            rows.put(&table, vec![row::Value::Int64(id), row::Value::Int64(amount)]);
        }
        source.write(&rows).unwrap();
        let options = BackupOptions::default();
        let request = BackupRequest {
            source: source.clone(),
            source_shown: "embedded:source",
            collection: Arc::clone(&collection),
            collection_shown: "collection",
            options: &options,
            window: 1,
        };
        let begun = begin_backup(&catalog, &request, Arc::new(SystemEnv)).unwrap();
        let (intent, stop) = (Intent::CarryOn, Stop::default());
        let ended = run(&catalog, &begun.job, begun.id, intent, &SystemEnv, &stop, &mut Unobserved);
        assert!(matches!(ended.unwrap(), Ended::Done { .. }));
    };
    write(0, 1);
    write(1, 10);
    for sequence in 3..=links {
        repeat_newest(&folder.join("collection"), sequence);
    }
}

/// Adds a backup that changes the same rows to the same values as the newest one, as its
/// child: what taking one of a source does, without looking at the whole chain each time.
fn repeat_newest(collection: &Path, sequence: u64) {
    let mut entry = json(&log(collection, sequence - 1));
    let parent = entry["directory"].as_str().unwrap().to_owned();
    let newest = BackupDirectory::parse(&parent);
    let directory =
        BackupDirectory::after(newest, BackupKind::Incremental, WallTime(0)).unwrap().to_string();
    copy_folder(&collection.join(&parent), &collection.join(&directory));

    let mut manifest = json(&collection.join(&directory).join("manifest.json"));
    manifest["sequence"] = sequence.into();
    manifest["directory"] = directory.clone().into();
    manifest["parent"] = serde_json::json!({
        "sequence": sequence - 1,
        "directory": parent,
        "manifest": entry["manifest"],
    });
    manifest["source"]["from"] = (sequence - 1).into();
    manifest["source"]["to"] = sequence.into();
    entry["previous"] = entry["manifest"].clone();
    entry["sequence"] = sequence.into();
    entry["directory"] = directory.into();
    write_backup(collection, &manifest, entry);
}

/// Makes the newest backup one of a source that tells no digests.
fn forget_digest(collection: &Path, sequence: u64) {
    let entry = json(&log(collection, sequence));
    let directory = entry["directory"].as_str().unwrap();
    let mut manifest = json(&collection.join(directory).join("manifest.json"));
    manifest["tables"][0].as_object_mut().unwrap().shift_remove("state").unwrap();
    write_backup(collection, &manifest, entry);
}

fn log(collection: &Path, sequence: u64) -> PathBuf {
    collection.join(format!("log/{sequence:06}.json"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes a manifest and the log entry that vouches for it, as `docs/format.md` says.
fn write_backup(collection: &Path, manifest: &Value, mut entry: Value) {
    let directory = collection.join(entry["directory"].as_str().unwrap());
    let bytes = format!("{}\n", serde_json::to_string_pretty(manifest).unwrap());
    std::fs::write(directory.join("manifest.json"), &bytes).unwrap();
    entry["manifest"] = blake3::hash(bytes.as_bytes()).to_hex().as_str().into();
    entry.as_object_mut().unwrap().shift_remove("checksum");
    let path = log(collection, entry["sequence"].as_u64().unwrap());
    let sealed = serde_json::to_string_pretty(&entry).unwrap();
    let body = sealed.strip_suffix("\n}").unwrap();
    let checksum = blake3::hash(body.as_bytes()).to_hex();
    std::fs::write(path, format!("{body},\n  \"checksum\": \"{checksum}\"\n}}\n")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Runs the command with limits of open files: the soft one, and the hard one.
fn run_limited(folder: &Path, soft: u32, hard: u32, args: &[&str]) -> Outcome {
    let program = at_run_time("NEXTEST_BIN_EXE_tidemark", env!("CARGO_BIN_EXE_tidemark"));
    let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
    let mut words = vec!["-c", &script, program.to_str().unwrap()];
    words.extend(args);
    Tidemark::of_program(Path::new("/bin/sh"), folder).run(words)
}

#[test]
fn a_chain_of_400_links_restores_with_1024_descriptors() {
    let folder = folder();
    make_chain(folder.path(), 400);
    let restore = ["restore", "collection", "--target", "embedded:target", "--shards", "8"];
    let outcome = run_limited(folder.path(), 1024, 1024, &restore);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    // A shell's soft limit is no reason to fail where the hard one allows more.
    let dump = ["db", "dump", "--db", "target", "--table", "orders"];
    let outcome = run_limited(folder.path(), 20, 1024, &dump);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let rows: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((rows.len(), rows[1], rows[200]), (201, "0,1", "199,0"));
}

#[test]
fn too_few_descriptors_pause_a_restore_and_say_which_limit_to_raise() {
    let folder = folder();
    make_chain(folder.path(), 60);
    let restore = ["restore", "collection", "--target", "embedded:target", "--shards", "4"];
    let outcome = run_limited(folder.path(), 60, 60, &restore);
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    assert!(outcome.stderr.contains("ulimit -n"), "{outcome:?}");
    let outcome = run_limited(folder.path(), 60, 1024, &restore);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// Memory is what bounds how many links are open at once, and a part that is open is a
/// descriptor: fewer than links are enough exactly if the proof keeps to the memory.
#[test]
fn a_proof_against_the_chain_stays_within_the_memory() {
    let folder = folder();
    make_chain(folder.path(), 800);
    forget_digest(&folder.path().join("collection"), 800);
    let restore = [
        "restore",
        "collection",
        "--target",
        "embedded:target",
        "--shards",
        "1",
        "--memory",
        "58M",
    ];
    let outcome = run_limited(folder.path(), 600, 600, &restore);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let dump = ["db", "dump", "--db", "target", "--table", "orders"];
    let outcome = run_limited(folder.path(), 600, 600, &dump);
    let rows: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((rows.len(), rows[1], rows[200]), (201, "0,1", "199,0"));
    let left = std::fs::read_dir(folder.path().join("target/scratch")).unwrap().count();
    assert_eq!(left, 0, "what the proof merged goes with the end");
}
