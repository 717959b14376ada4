//! Memory of whole restores, counted by the allocator.
//!
//! One test, since the counter is the whole process's. What C allocates is not counted:
//! LMDB's dirty pages, bounded by the size of a chunk, and one zstd context of each kind
//! per thread. [`UNCOUNTED_BYTES`] of the promised memory are left for them. The program
//! itself is measured by `cargo xtask bench memory`, and under a limit of the system.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![expect(clippy::print_stdout, reason = "figures for people who look for them")]

mod chain;
mod counting;

use std::io::{self, Write};
use std::sync::Arc;

use chain::{backup, database, env, name, restore};
use counting::{Counting, peak_of};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::check::Level;
use tidemark::collection::manifest::{
    BackupKind, FormatVersion, Manifest, ParentLink, PartEntry, SourceLink, TableEntry, TableMode,
    Totals,
};
use tidemark::collection::part::{PartKind, PartOptions, PartWriter};
use tidemark::collection::{Collection, NewBackup, Store};
use tidemark::database::embedded::{DumpFormat, EmbeddedDatabase};
use tidemark::env::{SystemEnv, WallTime};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::{Position, Sequence, TableId};
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{RestoreOptions, Room};
use tidemark::row::digest::RowHasher;
use tidemark::row::{ChangeOp, Digest, LogicalType, RowBatch, RowCodec, RowRef, Schema, Value};
use tidemark::verify::{VerifyOptions, VerifyRequest, begin_verify};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: u64 = 1 << 20;
/// Two shards in flight dirty at most 8 MiB each; the rest is for zstd.
const UNCOUNTED_BYTES: u64 = 32 * MIB;

const COLUMNS: usize = 100;
const LINKS: u64 = 400;
const ROWS: i64 = 2_000;
const CHANGES: i64 = 40;

const LARGE_BYTES: usize = 64 << 20;

#[test]
fn memory_of_restores_stays_within_what_is_promised() {
    a_hundred_columns_and_four_hundred_links_fit_the_default_memory();
    a_value_of_64_mib_costs_a_stated_multiple_all_the_way();
}

fn a_hundred_columns_and_four_hundred_links_fit_the_default_memory() {
    let folder = tempfile::tempdir().unwrap();
    let collection = wide_chain(&folder.path().join("collection"));
    let target = database(&folder.path().join("target"));
    let options = RestoreOptions { shards: Some(8), ..RestoreOptions::default() };
    let (ended, peak) =
        peak_of(|| restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap());
    // Done means proven: what was read back has the digest that the last link records.
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    println!("{COLUMNS} columns, {LINKS} links, 8 shards: peak {} MiB", peak / MIB);
    assert!(peak <= MEMORY_BYTES_DEFAULT - UNCOUNTED_BYTES, "{} MiB", peak / MIB);
}

/// One table in one full and increments, written without taking each as a backup: that
/// would look at the whole chain below every one of them.
fn wide_chain(path: &std::path::Path) -> Arc<Collection> {
    let store = Store::open(path.to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let mut table = WideTable::new();
    let mut before: Option<ParentLink> = None;
    for link in 0..LINKS {
        let kind = if link == 0 { BackupKind::Full } else { BackupKind::Incremental };
        let batch = if link == 0 { table.change(0..ROWS, 0) } else { table.change_some(link) };
        let suffix = if link == 0 { "full" } else { "incremental" };
        let (minute, second) = (link / 60, link % 60);
        let new = NewBackup {
            collection: collection.id(),
            sequence: Sequence(link + 1),
            kind,
            directory: format!("2026013109{minute:02}{second:02}Z_{suffix}"),
            parent: before.clone(),
            previous: before.as_ref().map(|parent| parent.manifest.clone()),
        };
        let entry = table.write(&new, &collection, &batch);
        let from = before.is_some().then_some(Position(link));
        let totals = Totals {
            tables: 1,
            parts: 1,
            rows: entry.parts[0].rows,
            tombstones: 0,
            bytes: entry.parts[0].bytes,
            row_bytes: entry.parts[0].row_bytes,
        };
        let manifest = Manifest {
            format: FormatVersion::CURRENT,
            collection: new.collection,
            sequence: new.sequence,
            kind,
            directory: new.directory.clone(),
            parent: new.parent.clone(),
            source: SourceLink {
                identity: "embedded:0".to_owned(),
                from,
                to: Position(link + 1),
                cut: None,
            },
            cut_at: WallTime(1_769_851_800_000 + link * 1000),
            tables: vec![entry],
            totals,
            extra: serde_json::Map::new(),
        };
        let logged = new.commit(&collection, &manifest).unwrap();
        before = Some(ParentLink {
            sequence: logged.sequence,
            directory: logged.directory,
            manifest: logged.manifest,
        });
    }
    collection
}

/// Integers behind an integer key, and the digest of all rows.
struct WideTable {
    schema: Schema,
    codec: RowCodec,
    hasher: RowHasher,
    rows: std::collections::BTreeMap<Vec<u8>, Digest>,
    state: Digest,
}

const DIGEST_ID: TableId = TableId(7);

impl WideTable {
    fn new() -> WideTable {
        let names: Vec<String> = (0..COLUMNS).map(|column| format!("c{column}")).collect();
        let columns: Vec<(&str, LogicalType)> =
            names.iter().map(|name| (name.as_str(), LogicalType::Int64)).collect();
        let schema = Schema::new(&columns, &["c0"]).unwrap();
        WideTable {
            codec: RowCodec::new(&schema),
            schema,
            hasher: RowHasher::new(DIGEST_ID),
            rows: std::collections::BTreeMap::new(),
            state: Digest::default(),
        }
    }

    fn change_some(&mut self, link: u64) -> RowBatch {
        let step = ROWS / CHANGES;
        let ids = (0..CHANGES).map(move |at| at * step + link as i64 % step);
        self.change(ids, link as i64)
    }

    fn change(&mut self, ids: impl Iterator<Item = i64>, generation: i64) -> RowBatch {
        let mut batch = RowBatch::new();
        for id in ids {
            let value =
                |column: i64| (id << 32 ^ generation << 16 ^ column).wrapping_mul(0x9e37_79b9);
            let rest = (1..COLUMNS as i64).map(|column| Value::Int64(value(column)));
            let row: Vec<Value> = std::iter::once(Value::Int64(id)).chain(rest).collect();
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            self.codec.encode_key(&row, &mut key).unwrap();
            self.codec.encode_payload(&row, &mut payload).unwrap();
            let digest = self.hasher.row(&key, &payload);
            batch.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
            self.state += digest - self.rows.insert(key, digest).unwrap_or_default();
        }
        batch
    }

    fn write(&self, new: &NewBackup, collection: &Collection, batch: &RowBatch) -> TableEntry {
        let (kind, mode) = match new.kind {
            BackupKind::Full => (PartKind::Full, TableMode::Whole),
            BackupKind::Incremental => (PartKind::Increment, TableMode::Delta),
        };
        let part_name = new.part_name(&name("wide"), 0, "1").unwrap();
        let object = new.create_part(collection, &part_name).unwrap();
        let options = PartOptions::new(DIGEST_ID);
        let mut writer = PartWriter::new(object, &self.schema, kind, options).unwrap();
        writer.write(batch).unwrap();
        let (object, summary) = writer.finish().unwrap();
        object.finish().unwrap();
        let part: PartEntry = summary.into_entry(part_name);
        TableEntry {
            id: DIGEST_ID,
            digest_id: DIGEST_ID,
            name: name("wide"),
            schema: self.schema.clone(),
            mode,
            reason: None,
            state: Some(self.state),
            parts: vec![part],
            extra: serde_json::Map::new(),
        }
    }
}

/// Besides what a program holds anyway, each verb holds the value so many times.
fn a_value_of_64_mib_costs_a_stated_multiple_all_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let columns = [("id", LogicalType::Int64), ("value", LogicalType::Text)];
    source.create_table(&name("large"), &Schema::new(&columns, &["id"]).unwrap(), &[]).unwrap();
    for id in 0..20 {
        let bytes = if id == 10 { LARGE_BYTES } else { 100 };
        let row = vec![Value::Int64(id), Value::Text(noise(bytes))];
        source.put(&name("large"), row).unwrap();
    }
    let told = |verb: &str, peak: u64, factor: u64| {
        println!("64 MiB value: {verb} takes {} MiB", peak / MIB);
        let bytes = factor * LARGE_BYTES as u64 + 24 * MIB;
        assert!(peak <= bytes, "{verb}: {} MiB, {factor} times were promised", peak / MIB);
    };
    let ((), peak) = peak_of(|| drop(backup(&source, &collection)));
    told("backup", peak, 5);
    let target = database(&folder.path().join("target"));
    let options = RestoreOptions::default();
    let (ended, peak) =
        peak_of(|| restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap());
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    told("restore", peak, 5);
    let ((), peak) = peak_of(|| verify(&folder.path().join("state"), &collection));
    told("verify", peak, 5);
    let (expected, peak) = peak_of(|| dumped(&source));
    told("dump", peak, 5);
    assert_eq!(dumped(&target), expected);
}

/// Text in which no codec finds repetitions.
fn noise(bytes: usize) -> String {
    let mut seed = 1u64;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let letters =
            (16..64).step_by(6).map(|shift| char::from(b'0' + (seed >> shift) as u8 % 64));
        text.extend(letters.take(bytes - text.len()));
    }
    text
}

fn verify(state: &std::path::Path, collection: &Arc<Collection>) {
    let catalog = LmdbCatalog::open_or_create(state, env()).unwrap();
    let room =
        Room { window: 2, memory_bytes: MEMORY_BYTES_DEFAULT, scratch: state.join("scratch") };
    let request = VerifyRequest {
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &VerifyOptions { level: Level::Rows, at: None },
        room: &room,
    };
    let begun = begin_verify(&catalog, &request, &SystemEnv).unwrap();
    let stop = Stop::default();
    let ended =
        run(&catalog, &begun.job, begun.id, Intent::CarryOn, &SystemEnv, &stop, &mut Unobserved);
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
}

/// BLAKE3 of the table as CSV.
fn dumped(database: &EmbeddedDatabase) -> String {
    struct Hashing(blake3::Hasher);
    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut out = Hashing(blake3::Hasher::new());
    database.dump(&name("large"), DumpFormat::Csv, &mut out).unwrap();
    out.0.finalize().to_hex().to_string()
}
