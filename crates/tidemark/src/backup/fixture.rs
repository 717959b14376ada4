//! A source, its collection and its catalog, for tests of what reads and writes backups.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{BackupChoice, BackupOptions, BackupRequest, BegunBackup, begin_backup};
use crate::catalog::LmdbCatalog;
use crate::collection::{Collection, Store};
use crate::database::Fence;
use crate::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use crate::env::{Env, SystemEnv};
use crate::error::{Error, Kind, Result};
use crate::executor::{Ended, Intent, Job, ResumedStep, ShardRun, Stop, Unobserved, run};
use crate::ids::{Epoch, OperationId, ShardIdx, StepIdx, TableName};
use crate::operation::{Phase, TaskOutcome, TaskTicket, Ticket};
use crate::row::{LogicalType, RowBatch, RowCodec, RowStream, Schema, Value};

pub(crate) fn env() -> Arc<dyn Env> {
    Arc::new(SystemEnv)
}

pub(crate) fn name(text: &str) -> TableName {
    TableName::parse(text).unwrap()
}

/// An embedded database `source`, a collection and a catalog in one folder.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) source: Arc<EmbeddedDatabase>,
    pub(crate) collection: Arc<Collection>,
    pub(crate) catalog: LmdbCatalog,
}

impl World {
    pub(crate) fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let source = database(&folder.path().join("source"));
        let place = folder.path().join("collection");
        let store = Store::open(place.to_str().unwrap()).unwrap();
        let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
        let catalog = LmdbCatalog::open_or_create(&folder.path().join("state"), env()).unwrap();
        World { folder, source, collection, catalog }
    }

    /// A table of an integer key and an integer, with shards below 100, below 200, and above.
    pub(crate) fn create(&self, table: &str) {
        let columns = [("id", LogicalType::Int64), ("amount", LogicalType::Int64)];
        let schema = Schema::new(&columns, &["id"]).unwrap();
        let splits = [vec![Value::Int64(100)], vec![Value::Int64(200)]];
        self.source.create_table(&name(table), &schema, &splits).unwrap();
    }

    pub(crate) fn put(&self, table: &str, rows: impl IntoIterator<Item = (i64, i64)>) {
        put(&self.source, table, rows);
    }

    pub(crate) fn begin(&self, kind: BackupChoice, tables: &[&str]) -> Result<BegunBackup<'_>> {
        begin_with(&self.catalog, &self.source, &self.collection, kind, tables)
    }

    /// Takes a backup of all tables to its end.
    #[track_caller]
    pub(crate) fn back_up(&self, kind: BackupChoice) {
        let begun = self.begin(kind, &[]).unwrap();
        let ended = drive(&self.catalog, &begun.job, begun.id, Intent::CarryOn);
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    }

    /// Files of the collection, as paths inside it, sorted.
    pub(crate) fn objects(&self) -> Vec<String> {
        let root = self.folder.path().join("collection");
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    pub(crate) fn path(&self, object: &str) -> PathBuf {
        self.folder.path().join("collection").join(object)
    }

    /// Paths of the parts of a backup, by its position in the log.
    pub(crate) fn parts(&self, backup: usize) -> Vec<String> {
        let entry = &self.collection.log().unwrap()[backup];
        let manifest = self.collection.manifest(entry).unwrap();
        let parts = manifest.tables.iter().flat_map(|table| &table.parts);
        parts.map(|part| format!("{}/{}", manifest.directory, part.name)).collect()
    }
}

pub(crate) fn begin_with<'c>(
    catalog: &'c LmdbCatalog,
    source: &Arc<EmbeddedDatabase>,
    collection: &Arc<Collection>,
    kind: BackupChoice,
    tables: &[&str],
) -> Result<BegunBackup<'c>> {
    let tables = tables.iter().map(|table| (*table).to_owned()).collect();
    let request = BackupRequest {
        source: Arc::clone(source) as Arc<_>,
        source_shown: "embedded:source",
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &BackupOptions { kind, tables, attest: false },
        window: 1,
    };
    begin_backup(catalog, &request, env())
}

pub(crate) fn database(dir: &Path) -> Arc<EmbeddedDatabase> {
    let options = EmbeddedOptions::default();
    Arc::new(EmbeddedDatabase::open_or_create(dir, env(), options).unwrap())
}

pub(crate) fn put(
    database: &EmbeddedDatabase,
    table: &str,
    rows: impl IntoIterator<Item = (i64, i64)>,
) {
    let mut batch = WriteBatch::new();
    for (id, amount) in rows {
        batch.put(&name(table), vec![Value::Int64(id), Value::Int64(amount)]);
    }
    database.write(&batch).unwrap();
}

/// Rows of a table in key order.
pub(crate) fn rows(database: &EmbeddedDatabase, table: &str) -> Vec<Vec<Value>> {
    let read = |schema: &Schema, stream: &mut dyn RowStream| {
        let (codec, mut batch, mut rows) = (RowCodec::new(schema), RowBatch::new(), Vec::new());
        while stream.next_batch(&mut batch)? {
            for row in batch.iter() {
                rows.push(codec.decode(row.key, row.payload)?);
            }
        }
        Ok(rows)
    };
    database.read_table(&name(table), read).unwrap()
}

pub(crate) fn drive(
    catalog: &LmdbCatalog,
    job: &dyn Job,
    id: OperationId,
    intent: Intent,
) -> Ended {
    run(catalog, job, id, intent, &SystemEnv, &Stop::default(), &mut Unobserved).unwrap()
}

/// A job whose shards, after the first so many, find an obstacle that a person must remove:
/// an interruption at a known place.
#[derive(Debug)]
pub(crate) struct Obstructed<'a> {
    pub(crate) job: &'a dyn Job,
    pub(crate) shards_left: AtomicU32,
}

impl<'a> Obstructed<'a> {
    pub(crate) fn after(job: &'a dyn Job, shards: u32) -> Obstructed<'a> {
        Obstructed { job, shards_left: AtomicU32::new(shards) }
    }
}

impl Job for Obstructed<'_> {
    fn allocate_epoch(&self) -> Result<Epoch> {
        self.job.allocate_epoch()
    }

    fn claim(&self, fence: Fence, phase: &Phase) -> Result<()> {
        self.job.claim(fence, phase)
    }

    fn resume_step(&self, step: StepIdx) -> Result<ResumedStep> {
        self.job.resume_step(step)
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        fence: Fence,
        stop: &Stop,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        self.job.run_task(ticket, fence, stop, advanced)
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        let left = self.shards_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(Error::new(Kind::Blocked, "the disk of this test is full"));
        }
        self.shards_left.store(left - 1, Ordering::Relaxed);
        self.job.start_shard(ticket, fence)
    }

    fn tables(&self) -> Vec<TableName> {
        self.job.tables()
    }

    fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize> {
        self.job.table_of(step, shard)
    }

    fn outcome(&self) -> Option<String> {
        self.job.outcome()
    }
}
