//! A chain of 400 links of 100 columns: what readers cost most for.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tidemark::collection::manifest::{
    BackupKind, FormatVersion, Manifest, ParentLink, PartEntry, SourceLink, TableEntry, TableMode,
    Totals,
};
use tidemark::collection::part::{PartKind, PartOptions, PartWriter};
use tidemark::collection::{Collection, NewBackup, Store};
use tidemark::env::{SystemEnv, WallTime};
use tidemark::ids::{Position, Sequence, TableId, TableName};
use tidemark::row::digest::RowHasher;
use tidemark::row::{ChangeOp, Digest, LogicalType, RowBatch, RowCodec, RowRef, Schema, Value};

pub const COLUMNS: usize = 100;
pub const LINKS: u64 = 400;

fn name() -> TableName {
    TableName::parse("wide").unwrap()
}

/// One table in one full and increments, written without taking each as a backup: that
/// would look at the whole chain below every one of them.
///
/// The full has `rows` rows, each increment replaces `changes` of them; `rows` is a multiple
/// of `changes`.
pub fn chain(path: &Path, rows: i64, changes: i64) -> Arc<Collection> {
    let store = Store::open(path.to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let mut table = WideTable::new(rows, changes);
    let mut before: Option<ParentLink> = None;
    for link in 0..LINKS {
        let kind = if link == 0 { BackupKind::Full } else { BackupKind::Incremental };
        let batch = if link == 0 { table.change(0..rows, 0) } else { table.change_some(link) };
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
    rows: BTreeMap<Vec<u8>, Digest>,
    state: Digest,
    row_count: i64,
    change_count: i64,
}

const DIGEST_ID: TableId = TableId(7);

impl WideTable {
    fn new(row_count: i64, change_count: i64) -> WideTable {
        let names: Vec<String> = (0..COLUMNS).map(|column| format!("c{column}")).collect();
        let columns: Vec<(&str, LogicalType)> =
            names.iter().map(|name| (name.as_str(), LogicalType::Int64)).collect();
        let schema = Schema::new(&columns, &["c0"]).unwrap();
        WideTable {
            codec: RowCodec::new(&schema),
            schema,
            hasher: RowHasher::new(DIGEST_ID),
            rows: BTreeMap::new(),
            state: Digest::default(),
            row_count,
            change_count,
        }
    }

    fn change_some(&mut self, link: u64) -> RowBatch {
        let step = self.row_count / self.change_count;
        let ids = (0..self.change_count).map(move |at| at * step + link as i64 % step);
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
        let part_name = new.part_name(&name(), 0, "1").unwrap();
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
            name: name(),
            schema: self.schema.clone(),
            mode,
            reason: None,
            state: Some(self.state),
            structure: None,
            parts: vec![part],
            extra: serde_json::Map::new(),
        }
    }
}
