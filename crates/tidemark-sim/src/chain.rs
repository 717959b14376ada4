//! A small chain, written by the real writers, and what it means: a plain map per backup.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use object_store::memory::InMemory;
use tidemark::collection::accept::totals;
use tidemark::collection::manifest::{
    BackupKind, FormatVersion, Manifest, SourceLink, TableEntry, TableMode,
};
use tidemark::collection::part::{PartKind, PartOptions, PartWriter};
use tidemark::collection::{Collection, NewBackup, Store};
use tidemark::database::conformance::Rows;
use tidemark::env::WallTime;
use tidemark::ids::{ColumnId, Position, TableId, TableName};
use tidemark::row::digest::RowHasher;
use tidemark::row::{
    ChangeOp, Digest, LogicalType, RowBatch, RowCodec, RowRef, Schema, Value, payload,
};
use tidemark::{Error, Kind, Result};

use crate::chance::{Chance, Rate, mixed};
use crate::world::{Rates, World};

/// How large a chain may be.
#[derive(Clone, Copy, Debug)]
pub struct ChainSize {
    /// Tables at most.
    pub tables_max: u64,
    /// Backups at least.
    pub links_min: u64,
    /// Backups at most.
    pub links_max: u64,
    /// Rows of a table's full at most.
    pub rows_max: u64,
}

/// A chain and its oracle.
#[derive(Debug)]
pub struct SimChain {
    /// The objects of the collection.
    pub objects: Arc<InMemory>,
    /// Every object's path and size.
    pub paths: Vec<(String, u64)>,
    /// Tables, by name.
    pub tables: Vec<OracleTable>,
    /// Number of backups.
    pub links: u64,
}

/// What a table holds after each backup.
#[derive(Debug)]
pub struct OracleTable {
    /// Name.
    pub name: TableName,
    /// Rows after each backup; `None` before the table was made.
    pub states: Vec<Option<Rows>>,
}

const TABLE_NAMES: [&str; 3] = ["orders", "people", "stock.items"];

/// A table while its chain is written.
struct Draft {
    name: TableName,
    id: TableId,
    first_link: u64,
    tells_state: bool,
    rows: Rows,
    states: Vec<Option<Rows>>,
}

/// What one backup says of one table.
struct Change {
    mode: TableMode,
    rows: Vec<(Vec<u8>, ChangeOp, Vec<u8>)>,
}

impl SimChain {
    /// The chain of that number; the same for ever.
    ///
    /// # Errors
    /// What the real writers say; none is expected.
    pub fn build(number: u64, size: ChainSize) -> Result<SimChain> {
        let mut chance = Chance::new(mixed(number ^ 0xc4a1));
        let objects = Arc::new(InMemory::new());
        let dyn_objects: Arc<dyn object_store::ObjectStore> = objects.clone();
        let store = Store::over("chain", dyn_objects);
        let env = World::new(number, Rates::default(), false);
        let collection = Collection::create(store.clone(), &env)?;
        let links = chance.between(size.links_min, size.links_max);
        let schema = schema()?;
        let codec = RowCodec::new(&schema);
        let mut drafts = Vec::new();
        for at in 0..chance.between(1, size.tables_max) {
            let late = at > 0 && links > 1 && chance.happens(Rate::percent(25));
            drafts.push(Draft {
                name: table_name(TABLE_NAMES[at as usize])?,
                id: TableId(u128::from(at) + 10),
                first_link: if late { chance.between(1, links - 1) } else { 0 },
                tells_state: chance.happens(Rate::percent(60)),
                rows: Rows::new(),
                states: Vec::new(),
            });
        }
        for link in 0..links {
            let kind = if link == 0 { BackupKind::Full } else { BackupKind::Incremental };
            let new = collection.begin_backup(kind, &env)?;
            let mut entries = Vec::new();
            for draft in &mut drafts {
                let change = change(draft, link, size.rows_max, &codec, &mut chance)?;
                let exists = link >= draft.first_link;
                draft.states.push(exists.then(|| draft.rows.clone()));
                if let Some(change) = change {
                    let writing = Writing { collection: &collection, new: &new, schema: &schema };
                    entries.push(writing.table(draft, &change, &mut chance)?);
                }
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            commit(&collection, &new, entries, link)?;
        }
        let paths = store.list("")?.into_iter().map(|object| (object.path, object.bytes));
        let mut tables: Vec<OracleTable> = drafts
            .into_iter()
            .map(|draft| OracleTable { name: draft.name, states: draft.states })
            .collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(SimChain { objects, paths: paths.collect(), tables, links })
    }

    /// What the tables hold at the backup of that position.
    pub fn at(&self, link: usize) -> BTreeMap<TableName, Rows> {
        let of = |table: &OracleTable| Some((table.name.clone(), table.states[link].clone()?));
        self.tables.iter().filter_map(of).collect()
    }

    /// The table of that name.
    pub fn table(&self, name: &TableName) -> Option<&OracleTable> {
        self.tables.iter().find(|table| table.name == *name)
    }
}

/// A valid table name.
pub fn table_name(text: &str) -> Result<TableName> {
    TableName::parse(text).map_err(|message| Error::new(Kind::Usage, message))
}

fn schema() -> Result<Schema> {
    let columns = [
        ("id", LogicalType::Int64),
        ("name", LogicalType::Text),
        ("note", LogicalType::Text),
        ("amount", LogicalType::Int64),
    ];
    Schema::new(&columns, &["id"])
}

fn row(id: i64, codec: &RowCodec, chance: &mut Chance) -> Result<(Vec<u8>, Vec<u8>)> {
    let note = match chance.below(3) {
        0 => Value::Null,
        _ => Value::Text(format!("note {}", chance.below(1000))),
    };
    let name = Value::Text(format!("name {}", chance.below(1000)));
    let row = [Value::Int64(id), name, note, Value::Int64(chance.below(100) as i64)];
    let (mut key, mut payload) = (Vec::new(), Vec::new());
    codec.encode_key(&row, &mut key)?;
    codec.encode_payload(&row, &mut payload)?;
    Ok((key, payload))
}

/// What the backup `link` says of a table, applied to its rows; `None` if it is not there yet.
fn change(
    draft: &mut Draft,
    link: u64,
    rows_max: u64,
    codec: &RowCodec,
    chance: &mut Chance,
) -> Result<Option<Change>> {
    if link < draft.first_link {
        return Ok(None);
    }
    let anew = link == draft.first_link || chance.happens(Rate::percent(8));
    if anew {
        draft.rows.clear();
        for _ in 0..chance.below(rows_max + 1) {
            let (key, payload) = row(chance.below(rows_max * 3) as i64, codec, chance)?;
            draft.rows.insert(key, payload);
        }
        let rows = draft.rows.iter();
        let rows = rows.map(|(key, row)| (key.clone(), ChangeOp::Upsert, row.clone())).collect();
        return Ok(Some(Change { mode: TableMode::Whole, rows }));
    }
    let mut changed: BTreeMap<Vec<u8>, (ChangeOp, Vec<u8>)> = BTreeMap::new();
    for _ in 0..chance.below(rows_max / 2 + 1) {
        let (key, new) = row(chance.below(rows_max * 3) as i64, codec, chance)?;
        if changed.contains_key(&key) {
            continue;
        }
        let change = match (draft.rows.get(&key), chance.below(3)) {
            (_, 0) => {
                draft.rows.remove(&key);
                (ChangeOp::Delete, Vec::new())
            }
            (Some(old), 1) => {
                let mut update = Vec::new();
                payload::begin(&mut update);
                payload::put_unchanged(ColumnId(2), &mut update);
                payload::put_value(ColumnId(3), &Value::Text("updated".to_owned()), &mut update);
                let amount = Value::Int64(chance.below(100) as i64);
                payload::put_value(ColumnId(4), &amount, &mut update);
                let mut whole = Vec::new();
                payload::overlay(&update, old, &mut whole)?;
                draft.rows.insert(key.clone(), whole);
                (ChangeOp::Update, update)
            }
            _ => {
                draft.rows.insert(key.clone(), new.clone());
                (ChangeOp::Upsert, new)
            }
        };
        changed.insert(key, change);
    }
    let rows = changed.into_iter().map(|(key, (op, payload))| (key, op, payload)).collect();
    Ok(Some(Change { mode: TableMode::Delta, rows }))
}

/// Where a backup is written.
struct Writing<'a> {
    collection: &'a Collection,
    new: &'a NewBackup,
    schema: &'a Schema,
}

impl Writing<'_> {
    fn table(&self, draft: &Draft, change: &Change, chance: &mut Chance) -> Result<TableEntry> {
        let kind = match change.mode {
            TableMode::Whole => PartKind::Full,
            TableMode::Delta => PartKind::Increment,
        };
        let mut hasher = RowHasher::new(draft.id);
        let digest: Digest = draft.rows.iter().map(|(key, row)| hasher.row(key, row)).sum();
        let mut entry = TableEntry {
            id: draft.id,
            digest_id: draft.id,
            name: draft.name.clone(),
            schema: self.schema.clone(),
            mode: change.mode,
            reason: None,
            state: draft.tells_state.then_some(digest),
            structure: None,
            parts: Vec::new(),
            extra: serde_json::Map::new(),
        };
        let part_rows = chance.between(1, change.rows.len().max(1) as u64) as usize;
        for (number, rows) in (0u32..).zip(change.rows.chunks(part_rows)) {
            let mut batch = RowBatch::new();
            for (key, op, payload) in rows {
                batch.push(RowRef { key, op: *op, payload });
            }
            let name = self.new.part_name(&draft.name, number, "1")?;
            let object = self.new.create_part(self.collection, &name)?;
            let options = PartOptions::new(draft.id);
            let mut writer = PartWriter::new(object, self.schema, kind, options)?;
            writer.write(&batch)?;
            let (mut object, summary) = writer.finish()?;
            object.flush().map_err(|cause| Error::io("write a part", cause))?;
            object.finish()?;
            entry.parts.push(summary.into_entry(name));
        }
        Ok(entry)
    }
}

fn commit(
    collection: &Collection,
    new: &NewBackup,
    tables: Vec<TableEntry>,
    link: u64,
) -> Result<()> {
    let totals = totals(&tables).ok_or_else(|| Error::new(Kind::Fatal, "totals overflow"))?;
    let manifest = Manifest {
        format: FormatVersion::CURRENT,
        collection: new.collection,
        sequence: new.sequence,
        kind: new.kind,
        directory: new.directory.clone(),
        parent: new.parent.clone(),
        source: SourceLink {
            identity: "the simulated source".to_owned(),
            from: link.checked_sub(1).map(|before| Position(before + 1)),
            to: Position(link + 1),
            cut: None,
        },
        cut_at: WallTime(1_800_000_000_000 + link),
        tables,
        totals,
        extra: serde_json::Map::new(),
    };
    new.commit(collection, &manifest)?;
    Ok(())
}
