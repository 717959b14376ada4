//! The table that is measured: random rows, a full, ten increments, and a full of the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark::backup::{BackupChoice, BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::manifest::TableMode;
use tidemark::collection::part::{PartKind, PartRead, PartReader};
use tidemark::collection::{Collection, RestorePoint, Store};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use tidemark::env::{Env, SystemEnv};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::TableName;
use tidemark::row::{KeyRange, LogicalType, Row, RowBatch, RowCodec, RowStream, Schema, Value};

use crate::report::Spent;
use crate::watched::Watched;

/// Shards of the source and of every copy.
pub(crate) const SHARDS: u32 = 4;
/// Shards, or pieces of a reference, that run at once.
pub(crate) const THREADS: u32 = 2;
/// Increments of the chain.
pub(crate) const INCREMENTS: u64 = 10;
/// One row of so many changes in an increment.
const CHANGED_SHARE: u64 = 50;
/// Rows of one batch of a writer.
const BATCH_ROWS: u64 = 20_000;
/// Bytes of the random text of a row: brings it to about 131 bytes with its key.
const NOTE_BYTES: usize = 63;

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) source: Arc<EmbeddedDatabase>,
    /// A full and its increments.
    pub(crate) collection: PathBuf,
    /// One full of the final state.
    pub(crate) whole: PathBuf,
}

pub(crate) fn env() -> Arc<dyn Env> {
    Arc::new(SystemEnv)
}

pub(crate) fn database(path: &Path) -> Arc<EmbeddedDatabase> {
    let options = EmbeddedOptions::default();
    Arc::new(EmbeddedDatabase::open_or_create(path, env(), options).unwrap())
}

pub(crate) fn collection(path: &Path) -> Arc<Collection> {
    let store = Store::open(path.to_str().unwrap()).unwrap();
    Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap())
}

pub(crate) fn table() -> TableName {
    TableName::parse("measured").unwrap()
}

/// Makes the source and both collections.
pub(crate) fn chain(folder: &Path, rows: u64) -> Chain {
    let source = database(&folder.join("source"));
    let chain = Chain {
        source: Arc::clone(&source),
        collection: folder.join("collection"),
        whole: folder.join("whole"),
    };
    println!("making {rows} rows, {INCREMENTS} increments of {} changes", rows / CHANGED_SHARE);
    fill(&source, rows);
    let to = collection(&chain.collection);
    backup(&source, &to, BackupChoice::Full);
    for generation in 1..=INCREMENTS {
        change(&source, rows, rows / CHANGED_SHARE, generation);
        backup(&source, &to, BackupChoice::Incremental);
    }
    backup(&source, &collection(&chain.whole), BackupChoice::Full);
    chain
}

/// Makes the table with `rows` random rows; their keys are the even numbers.
pub(crate) fn fill(database: &EmbeddedDatabase, rows: u64) {
    let columns = [
        ("id", LogicalType::Int64),
        ("customer", LogicalType::Int64),
        ("placed", LogicalType::Timestamp),
        ("amount", LogicalType::Float64),
        ("token", LogicalType::Uuid),
        ("note", LogicalType::Text),
    ];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    let split =
        |part: u32| vec![Value::Int64((2 * rows * u64::from(part) / u64::from(SHARDS)) as i64)];
    let splits: Vec<Vec<Value>> = (1..SHARDS).map(split).collect();
    database.create_table(&table(), &schema, &splits).unwrap();
    for first in (0..rows).step_by(BATCH_ROWS as usize) {
        let mut batch = WriteBatch::new();
        (first..rows.min(first + BATCH_ROWS)).for_each(|at| batch.put(&table(), row(2 * at, 0)));
        database.write(&batch).unwrap();
    }
}

/// Changes `changes` rows spread over all of `rows`: eight of ten replaced, one new, one gone.
pub(crate) fn change(database: &EmbeddedDatabase, rows: u64, changes: u64, generation: u64) {
    let mut random = Random(generation << 32);
    for first in (0..changes).step_by(BATCH_ROWS as usize) {
        let mut batch = WriteBatch::new();
        for at in first..changes.min(first + BATCH_ROWS) {
            let id = 2 * (random.next() % rows);
            match at % 10 {
                0 => batch.delete(&table(), vec![Value::Int64(id as i64)]),
                1 => batch.put(&table(), row(id + 1, generation)),
                _ => batch.put(&table(), row(id, generation)),
            }
        }
        database.write(&batch).unwrap();
    }
}

/// A row that looks random and is always the same.
fn row(id: u64, generation: u64) -> Row {
    let mut random = Random(id ^ generation << 48);
    let mut note = String::with_capacity(NOTE_BYTES);
    while note.len() < NOTE_BYTES {
        let bits = random.next();
        let letters = (0..60).step_by(6).map(|shift| char::from(b'0' + (bits >> shift) as u8 % 64));
        note.extend(letters.take(NOTE_BYTES - note.len()));
    }
    vec![
        Value::Int64(id as i64),
        Value::Int64((random.next() >> 20) as i64),
        Value::Timestamp(1_700_000_000_000_000 + (random.next() >> 20) as i64),
        Value::Float64((random.next() >> 11) as f64 / 1e6),
        Value::Uuid(u128::from(random.next()) << 64 | u128::from(random.next())),
        Value::Text(note),
    ]
}

/// SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Takes a backup; gives what its shards took.
pub(crate) fn backup(
    source: &Arc<EmbeddedDatabase>,
    to: &Arc<Collection>,
    kind: BackupChoice,
) -> Spent {
    let catalog = LmdbCatalog::of_database(source, env()).unwrap();
    let options = BackupOptions { kind, ..BackupOptions::default() };
    let request = BackupRequest {
        source: source.clone(),
        source_shown: "embedded:source",
        collection: Arc::clone(to),
        collection_shown: "collection",
        options: &options,
        window: THREADS,
    };
    let begun = begin_backup(&catalog, &request, env()).unwrap();
    let watched = Watched::new(&begun.job);
    let stop = Stop::default();
    let ended =
        run(&catalog, &watched, begun.id, Intent::CarryOn, &SystemEnv, &stop, &mut Unobserved);
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
    watched.steps().into_iter().sum()
}

/// Rows of one backup as they are stored: per shard, in batches as `cut` asks for.
pub(crate) struct Decoded {
    pub(crate) schema: Schema,
    pub(crate) shards: Vec<Vec<RowBatch>>,
}

/// What a link of a chain holds, gathered into chunks that end when `is_full` says so.
pub(crate) fn decode(
    collection: &Collection,
    link: usize,
    ranges: &[KeyRange],
    is_full: impl Fn(&RowBatch) -> bool,
) -> Decoded {
    let chain = collection.chain(&RestorePoint::parse("latest").unwrap()).unwrap();
    let tables = chain.tables(&[]).unwrap();
    let link = &tables[0].links[link];
    let kind = match link.entry.mode {
        TableMode::Whole => PartKind::Full,
        TableMode::Delta => PartKind::Increment,
    };
    let codec = RowCodec::new(&link.entry.schema);
    let mut shards = Vec::new();
    for range in ranges {
        let mut chunks = Vec::new();
        let mut chunk = RowBatch::new();
        for part in &link.entry.parts {
            let read = PartRead {
                part,
                schema: &link.entry.schema,
                kind,
                wanted: &codec,
                range,
                after: None,
            };
            let object = collection.open_part(link.directory, part).unwrap();
            let mut reader = PartReader::open(object, &read).unwrap();
            let mut batch = RowBatch::new();
            while reader.next_batch(&mut batch).unwrap() {
                for row in batch.iter() {
                    chunk.push(row);
                }
                if is_full(&chunk) {
                    chunks.push(std::mem::take(&mut chunk));
                }
            }
        }
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
        shards.push(chunks);
    }
    Decoded { schema: link.entry.schema.clone(), shards }
}

/// The shards that a restore of the collection's newest point cuts.
pub(crate) fn shard_ranges(rows: u64) -> Vec<KeyRange> {
    let schema = Schema::new(&[("id", LogicalType::Int64)], &["id"]).unwrap();
    let codec = RowCodec::new(&schema);
    let split = |part: u32| {
        let mut key = Vec::new();
        let id = (2 * rows * u64::from(part) / u64::from(SHARDS)) as i64;
        codec.encode_key_values(&[Value::Int64(id)], &mut key).unwrap();
        key
    };
    KeyRange::between(&(1..SHARDS).map(split).collect::<Vec<Vec<u8>>>())
}
