//! Small collections for tests: their parts are any bytes, everything else is real.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Map;

use super::accept::totals;
use super::collection::{Collection, NewBackup};
use super::manifest::{
    BackupKind, FormatVersion, LogEntry, Manifest, ParentLink, PartEntry, RowGroupEntry,
    SourceLink, TableEntry, TableMode,
};
use super::store::Store;
use crate::env::{BootTime, Env, WallTime};
use crate::error::Result;
use crate::ids::{CollectionId, Position, Sequence, TableId, TableName};
use crate::row::{Digest, LogicalType, Schema};

/// A clock that stands where it was put, and counted dice.
#[derive(Debug)]
pub(super) struct TestEnv {
    pub(super) now_ms: AtomicU64,
    drawn: AtomicU64,
}

/// 2026-01-31T09:30:00Z
pub(super) const NOW_MS: u64 = 1_769_851_800_000;

impl TestEnv {
    pub(super) fn new() -> TestEnv {
        TestEnv { now_ms: AtomicU64::new(NOW_MS), drawn: AtomicU64::new(0) }
    }
}

impl Env for TestEnv {
    fn wall_time(&self) -> WallTime {
        WallTime(self.now_ms.load(Ordering::Relaxed))
    }

    fn boot_time(&self) -> BootTime {
        BootTime(self.now_ms.load(Ordering::Relaxed))
    }

    fn boot_id(&self) -> u128 {
        1
    }

    fn random(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed)
    }

    fn sleep(&self, duration: Duration) {
        let millis = u64::try_from(duration.as_millis()).unwrap();
        self.now_ms.fetch_add(millis, Ordering::Relaxed);
    }
}

/// A table with an `int64` key and a text column.
pub(super) fn table(id: u128, name: &str, mode: TableMode) -> TableEntry {
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    TableEntry {
        id: TableId(id),
        digest_id: TableId(id),
        name: TableName::parse(name).unwrap(),
        schema: Schema::new(&columns, &["id"]).unwrap(),
        mode,
        reason: None,
        state: None,
        structure: None,
        parts: Vec::new(),
        extra: Map::new(),
    }
}

/// A part of `rows` rows in one row group, between keys that nothing else has.
pub(super) fn part(name: String, number: u32, rows: u64, object: &[u8]) -> PartEntry {
    let key = |last: u8| [number.to_be_bytes().as_slice(), &[last]].concat();
    let last_key = key(u8::from(rows > 1));
    let group = RowGroupEntry { rows, row_bytes: rows * 20, first_key: key(0) };
    PartEntry {
        name,
        bytes: object.len() as u64,
        blake3: blake3::hash(object).to_hex().to_string(),
        rows,
        tombstones: 0,
        row_bytes: rows * 20,
        row_bytes_max: 20,
        first_key: key(0),
        last_key,
        digest: Digest { rows, sum: u128::from(number) },
        row_groups: vec![group],
        key_samples: vec![key(0)],
        extra: Map::new(),
    }
}

/// The manifest of a backup with those tables.
pub(super) fn manifest(new: &NewBackup, tables: Vec<TableEntry>) -> Manifest {
    let to = Position(new.sequence.0 * 10);
    let from = new.parent.as_ref().map(|parent| Position(parent.sequence.0 * 10));
    Manifest {
        format: FormatVersion::CURRENT,
        collection: new.collection,
        sequence: new.sequence,
        kind: new.kind,
        directory: new.directory.clone(),
        parent: new.parent.clone(),
        source: SourceLink { identity: "embedded:0".to_owned(), from, to, cut: None },
        cut_at: WallTime(NOW_MS + new.sequence.0 * 60_000),
        totals: totals(&tables).unwrap(),
        tables,
        extra: Map::new(),
    }
}

/// Writes one part for each table and gives them their entries.
pub(super) fn write_parts(
    collection: &Collection,
    new: &NewBackup,
    tables: &mut [TableEntry],
    ticket: &str,
) -> Result<()> {
    for table in tables {
        let name = new.part_name(&table.name, 0, ticket)?;
        let object = format!("{} of {} by {ticket}", table.name, new.directory);
        let mut writer = new.create_part(collection, &name)?;
        writer.write_all(object.as_bytes()).unwrap();
        writer.finish()?;
        table.parts.push(part(name, 0, 3, object.as_bytes()));
    }
    Ok(())
}

/// The tables of a small backup.
pub(super) fn tables(mode: TableMode) -> Vec<TableEntry> {
    vec![table(1, "orders", mode), table(2, "stock.\"a/b\"", mode)]
}

/// Takes one backup from beginning to end.
pub(super) fn take(collection: &Collection, kind: BackupKind, env: &TestEnv) -> LogEntry {
    let new = collection.begin_backup(kind, env).unwrap();
    let mode = match kind {
        BackupKind::Full => TableMode::Whole,
        BackupKind::Incremental => TableMode::Delta,
    };
    let mut tables = tables(mode);
    write_parts(collection, &new, &mut tables, "1a").unwrap();
    new.commit(collection, &manifest(&new, tables)).unwrap()
}

/// A collection with a full and `increments` increments.
pub(super) fn small_collection(store: Store, increments: u32) -> Collection {
    let env = TestEnv::new();
    let collection = Collection::create(store, &env).unwrap();
    take(&collection, BackupKind::Full, &env);
    for _ in 0..increments {
        take(&collection, BackupKind::Incremental, &env);
    }
    collection
}

/// A log and its manifests without a store, of the given kinds; `tables` gives each its tables.
pub(super) fn paper_log(
    kinds: &[BackupKind],
    mut tables: impl FnMut(usize) -> Vec<TableEntry>,
) -> Vec<(LogEntry, Manifest)> {
    let mut log: Vec<(LogEntry, Manifest)> = Vec::new();
    for (at, &kind) in kinds.iter().enumerate() {
        let before = log.last().map(|(entry, _)| entry);
        let parent = before.filter(|_| kind == BackupKind::Incremental).map(|entry| ParentLink {
            sequence: entry.sequence,
            directory: entry.directory.clone(),
            manifest: entry.manifest.clone(),
        });
        let directory = super::layout::BackupDirectory::after(
            before.and_then(|entry| super::layout::BackupDirectory::parse(&entry.directory)),
            kind,
            WallTime(NOW_MS),
        );
        let new = NewBackup {
            collection: CollectionId(7),
            sequence: Sequence(at as u64 + 1),
            kind,
            directory: directory.unwrap().to_string(),
            parent,
            previous: before.map(|entry| entry.manifest.clone()),
        };
        let manifest = manifest(&new, tables(at));
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let entry = LogEntry {
            format: FormatVersion::CURRENT,
            sequence: new.sequence,
            kind,
            directory: new.directory,
            manifest: blake3::hash(&bytes).to_hex().to_string(),
            previous: new.previous,
            extra: Map::new(),
        };
        log.push((entry, manifest));
    }
    log
}
