//! Writing rows: atomic batches over any number of shards.
//!
//! A batch of one shard is one transaction. A batch of several is recorded in the
//! catalog, which decides that it happens; then it is applied shard by shard, and
//! the record goes:
//!
//! ```text
//! record (durable: the batch happens) ─▶ shard ─▶ shard ─▶ ... ─▶ record removed
//! ```
//!
//! The lock `redo` lets one process at a time do that. Whoever passes the gate and
//! finds a record waits for that lock, completes the record if its writer died, and
//! only then reads or writes: nobody acts on half a batch. Each shard remembers the
//! last record it applied, so that applying one again changes nothing.

use std::collections::BTreeMap;

use super::apply::{check_key_length, key_for_people};
use super::record::{DatabaseRecord, GenerationNumber, RedoRecord, RedoShard};
use super::{EmbeddedDatabase, TableHandle};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{Position, TableId, TableName};
use crate::lmdb::{FileLock, LockMode};
use crate::row::digest::RowHasher;
use crate::row::{ChangeOp, Row, RowBatch, RowRef, Value};

/// Most key and payload bytes of one batch: what it changes stays in memory, twice, until
/// it is durable.
pub const WRITE_BATCH_BYTES_MAX: u64 = 64 << 20;

/// Most key and payload bytes of one row, as a batch of its own: the greatest that a file to
/// load may have.
pub const ROW_BYTES_MAX: u64 = 128 << 20;

/// Most rows of one batch: in the worst case each dirties a page of its own.
pub const WRITE_BATCH_ROWS_MAX: usize = 65_536;

/// Rows to put and delete, all of them or none.
///
/// The last change of a key counts. A batch may touch any tables and shards:
///
/// ```
/// # use std::sync::Arc;
/// # use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
/// # use tidemark::env::SystemEnv;
/// # use tidemark::ids::TableName;
/// # use tidemark::row::{LogicalType, Schema, Value};
/// use tidemark::database::embedded::WriteBatch;
///
/// # fn main() -> tidemark::Result<()> {
/// # let place = tempfile::tempdir().unwrap();
/// # let options = EmbeddedOptions::default();
/// # let dir = place.path().join("bank");
/// # let database = EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), options)?;
/// # let accounts = TableName::parse("accounts").unwrap();
/// # let columns = [("id", LogicalType::Int64), ("balance", LogicalType::Int64)];
/// # let schema = Schema::new(&columns, &["id"])?;
/// // `accounts` has its accounts up to 99 in one shard and the others in another.
/// # database.create_table(&accounts, &schema, &[vec![Value::Int64(100)]])?;
/// let mut transfer = WriteBatch::new();
/// transfer.put(&accounts, vec![Value::Int64(7), Value::Int64(60)]);
/// transfer.put(&accounts, vec![Value::Int64(142), Value::Int64(40)]);
/// transfer.delete(&accounts, vec![Value::Int64(8)]);
/// database.write(&transfer)?;
///
/// // One change that is refused refuses all of them, and says which it was.
/// let mut wrong = WriteBatch::new();
/// wrong.put(&accounts, vec![Value::Int64(9), Value::Int64(1)]);
/// wrong.put(&accounts, vec![Value::Null, Value::Int64(1)]);
/// let error = database.write(&wrong).unwrap_err();
/// assert_eq!(error.kind(), tidemark::Kind::Usage);
/// assert!(error.message().contains("`accounts`"));
/// assert!(database.get(&accounts, &[Value::Int64(9)])?.is_none());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    changes: Vec<(TableName, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Put(Row),
    Delete(Vec<Value>),
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Adds a row, which replaces the one with its key. Values are in schema order.
    pub fn put(&mut self, table: &TableName, row: Row) {
        self.changes.push((table.clone(), Change::Put(row)));
    }

    /// Removes the row with that key, if there is one. Values are in key order.
    pub fn delete(&mut self, table: &TableName, key: Vec<Value>) {
        self.changes.push((table.clone(), Change::Delete(key)));
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// What a batch changes in one shard, by key; `None` deletes.
struct ShardChanges {
    digest_id: TableId,
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl EmbeddedDatabase {
    /// Writes one row; see [`write`](Self::write).
    pub fn put(&self, table: &TableName, row: Row) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.put(table, row);
        self.write(&batch)
    }

    /// Removes one row; see [`write`](Self::write).
    pub fn delete(&self, table: &TableName, key: &[Value]) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.delete(table, key.to_vec());
        self.write(&batch)
    }

    /// Writes a batch: durable, and seen whole or not at all by every cut, on return.
    ///
    /// # Errors
    /// Nothing is written with [`Kind::Usage`] (a NULL or too long key, naming table and key; a
    /// value of another type; a batch beyond [`WRITE_BATCH_BYTES_MAX`], or beyond
    /// [`ROW_BYTES_MAX`] if it is one row, or beyond [`WRITE_BATCH_ROWS_MAX`]), [`Kind::NotFound`] (no such table) and [`Kind::Held`] while
    /// waiting to begin. When a batch over several shards fails later, its error says that it
    /// is recorded: the next access completes it.
    pub fn write(&self, batch: &WriteBatch) -> Result<()> {
        if batch.len() > WRITE_BATCH_ROWS_MAX {
            return Err(too_large(&format!("{} rows", batch.len())));
        }
        let access = self.pass_shared()?;
        let mut shards = self.encode_batch(&access.database, batch)?;
        let capture = access.database.capture();
        match shards.len() {
            0 => Ok(()),
            1 => {
                let (generation, changes) = shards.pop_first().expect("there is one");
                let redo = redo_shard(generation, changes);
                self.apply_to_shard(&redo, None, capture)
            }
            _ => {
                let shards = shards
                    .into_iter()
                    .map(|(generation, changes)| redo_shard(generation, changes))
                    .collect();
                self.write_across(&RedoRecord { shards }, capture)
            }
        }
    }

    fn encode_batch(
        &self,
        database: &DatabaseRecord,
        batch: &WriteBatch,
    ) -> Result<BTreeMap<GenerationNumber, ShardChanges>> {
        let mut shards: BTreeMap<GenerationNumber, ShardChanges> = BTreeMap::new();
        // A row that is large needs a batch of its own, which is never recorded for redoing.
        let bytes_max = if batch.len() == 1 { ROW_BYTES_MAX } else { WRITE_BATCH_BYTES_MAX };
        let mut byte_count = 0;
        for (name, change) in &batch.changes {
            let table = self.resolve(database, name)?;
            let (key, payload) = encode_change(&table, change)
                .map_err(|error| error.context(format!("write to table `{name}`")))?;
            byte_count += (key.len() + payload.as_ref().map_or(0, Vec::len)) as u64;
            if byte_count > bytes_max {
                return Err(too_large(&format!(
                    "more bytes at the row of key {}",
                    key_for_people(&key)
                )));
            }
            let record = &table.record;
            let generation = record.shards[record.shard_of(&key)].generation;
            let changes = shards.entry(generation).or_insert_with(|| ShardChanges {
                digest_id: record.digest_id,
                rows: BTreeMap::new(),
            });
            changes.rows.insert(key, payload);
        }
        Ok(shards)
    }

    /// Records the batch and applies it. On an error it is either not recorded, or recorded
    /// and left to the next access.
    fn write_across(&self, redo: &RedoRecord, capture: Option<Position>) -> Result<()> {
        let lock = self.lock_redo()?;
        // A writer that died since the gate was passed comes first.
        self.complete_redo_locked(&lock)?;
        let mut txn = self.write_catalog()?;
        let sequence = self.catalog().add_redo(&mut txn, redo)?;
        txn.commit()?;
        self.apply_redo(&lock, sequence, redo, capture).map_err(|error| {
            error.context("the batch is recorded, the next access to the database completes it")
        })
    }

    /// Completes what a dead writer left half applied, waiting for one that is alive.
    ///
    /// Returns the database's record as it is without any such batch. Inside the gate only.
    pub(super) fn complete_redo(&self) -> Result<DatabaseRecord> {
        let txn = self.catalog().read()?;
        let pending = self.catalog().has_redo(&txn)?;
        let database = self.catalog().database(&txn)?;
        drop(txn);
        if !pending {
            return Ok(database);
        }
        let lock = self.lock_redo()?;
        self.complete_redo_locked(&lock)?;
        self.catalog().database(&*self.catalog().read()?)
    }

    fn complete_redo_locked(&self, lock: &FileLock) -> Result<()> {
        loop {
            let txn = self.catalog().read()?;
            let Some((sequence, redo)) = self.catalog().first_redo(&txn)? else { return Ok(()) };
            // No cut was taken since the record was made: cuts complete records first.
            let capture = self.catalog().database(&txn)?.capture();
            drop(txn);
            self.apply_redo(lock, sequence, &redo, capture)
                .map_err(|error| error.context(format!("complete recorded batch {sequence}")))?;
        }
    }

    fn apply_redo(
        &self,
        _lock: &FileLock,
        sequence: u64,
        redo: &RedoRecord,
        capture: Option<Position>,
    ) -> Result<()> {
        for shard in &redo.shards {
            self.apply_to_shard(shard, Some(sequence), capture)?;
            failpoint::hit("redo.after_shard");
        }
        let mut txn = self.write_catalog()?;
        self.catalog().remove_redo(&mut txn, sequence)?;
        txn.commit()
    }

    /// Applies one shard's part in one transaction, once per `sequence`.
    pub(super) fn apply_to_shard(
        &self,
        changes: &RedoShard,
        sequence: Option<u64>,
        capture: Option<Position>,
    ) -> Result<()> {
        let shard = self.open_shard(changes.generation)?;
        let mut txn = self.write_shard(&shard)?;
        let applied = shard.meta(&txn)?.redo_applied;
        if sequence.is_some_and(|sequence| applied >= sequence) {
            return Ok(());
        }
        let mut hasher = RowHasher::new(changes.digest_id);
        shard.apply(&mut txn, &changes.rows, &mut hasher, capture, None)?;
        let mut meta = shard.meta(&txn)?;
        meta.user_writes += 1;
        meta.redo_applied = sequence.unwrap_or(applied);
        shard.put_meta(&mut txn, &meta)?;
        txn.commit()
    }

    fn lock_redo(&self) -> Result<FileLock> {
        let path = self.locks_dir().join("redo");
        FileLock::acquire(&path, LockMode::Exclusive, self.env(), self.lock_wait())
    }

    /// Records a batch as its writer does, and then dies after `applied` shards.
    #[cfg(test)]
    pub(super) fn die_after(&self, batch: &WriteBatch, applied: usize) -> Result<()> {
        let access = self.pass_shared()?;
        let shards = self.encode_batch(&access.database, batch)?;
        let shards = shards.into_iter().map(|(number, changes)| redo_shard(number, changes));
        let redo = RedoRecord { shards: shards.collect() };
        let mut txn = self.write_catalog()?;
        let sequence = self.catalog().add_redo(&mut txn, &redo)?;
        txn.commit()?;
        for shard in &redo.shards[..applied] {
            self.apply_to_shard(shard, Some(sequence), access.database.capture())?;
        }
        Ok(())
    }
}

fn encode_change(table: &TableHandle, change: &Change) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let mut key = Vec::new();
    let payload = match change {
        Change::Put(row) => {
            table.codec.encode_key(row, &mut key)?;
            let mut payload = Vec::new();
            table.codec.encode_payload(row, &mut payload)?;
            Some(payload)
        }
        Change::Delete(values) => {
            encode_whole_key(table, values, &mut key)?;
            None
        }
    };
    check_key_length(&key)?;
    Ok((key, payload))
}

/// Appends the key of all key values.
///
/// # Errors
/// [`Kind::Usage`] for too few or too many, or what [`RowCodec`](crate::row::RowCodec) refuses.
pub(super) fn encode_whole_key(
    table: &TableHandle,
    values: &[Value],
    key: &mut Vec<u8>,
) -> Result<()> {
    let columns = table.record.schema.key.len();
    if values.len() != columns {
        let message = format!("the key has {columns} columns, {} values were given", values.len());
        return Err(Error::new(Kind::Usage, message));
    }
    table.codec.encode_key_values(values, key)
}

fn redo_shard(generation: GenerationNumber, changes: ShardChanges) -> RedoShard {
    let mut rows = RowBatch::new();
    for (key, payload) in &changes.rows {
        let (op, payload) = match payload {
            Some(payload) => (ChangeOp::Upsert, payload.as_slice()),
            None => (ChangeOp::Delete, &[][..]),
        };
        rows.push(RowRef { key, op, payload });
    }
    RedoShard { generation, digest_id: changes.digest_id, rows }
}

fn too_large(found: &str) -> Error {
    let message = format!(
        "a batch is all or nothing and holds at most {WRITE_BATCH_ROWS_MAX} rows and {} MiB, or \
         one row of {} MiB; found {found}; write several batches",
        WRITE_BATCH_BYTES_MAX >> 20,
        ROW_BYTES_MAX >> 20
    );
    Error::new(Kind::Usage, message)
}
