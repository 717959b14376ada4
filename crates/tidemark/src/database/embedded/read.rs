//! Reading rows: by key, in key order, and as streams of what changed.

use std::ops::Bound;
use std::sync::Arc;

use super::shard::ShardView;
use super::write::encode_whole_key;
use super::{EmbeddedDatabase, TableHandle};
use crate::error::{Error, Kind, Result};
use crate::ids::{Position, TableName};
use crate::lmdb::LmdbContext;
use crate::row::{ChangeOp, KeyRange, Row, RowBatch, RowRef, Value};

/// Rows and bytes after which a batch is handed on; one row may exceed the bytes.
const BATCH_ROWS_MAX: usize = 4096;
const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Rows of a table by key, from `start` on, up to but without `end`.
///
/// Both are key values in key order; fewer than the key has columns stand before every key
/// that begins with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowRange {
    /// First key; empty for the very first.
    pub start: Vec<Value>,
    /// First key that does not belong; `None` for no end.
    pub end: Option<Vec<Value>>,
}

impl RowRange {
    /// Every row.
    pub const ALL: RowRange = RowRange { start: Vec::new(), end: None };
}

/// The shards of a table as one commit left them.
#[derive(Debug)]
pub(crate) struct TableView {
    /// The table.
    pub(crate) table: Arc<TableHandle>,
    /// One view per shard of its record, in key order.
    pub(crate) shards: Vec<ShardView>,
}

impl EmbeddedDatabase {
    /// The row with that key, whose values are in key order.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: no such table. [`Kind::Usage`]: too few values, or of another type.
    pub fn get(&self, table: &TableName, key: &[Value]) -> Result<Option<Row>> {
        let access = self.pass_shared()?;
        let table = self.resolve(&access.database, table)?;
        let mut key_bytes = Vec::new();
        encode_whole_key(&table, key, &mut key_bytes)
            .map_err(|error| error.context(format!("read table `{}`", table.name)))?;
        let record = &table.record;
        let shard = self.open_shard(record.shards[record.shard_of(&key_bytes)].generation)?;
        let txn = shard.read()?;
        let payload = shard.rows().get(&txn, &key_bytes).during(|| shard.doing("read"))?;
        payload.map(|payload| decode_row(&table, &key_bytes, payload)).transpose()
    }

    /// Rows in key order, as they all stood at one moment of this call.
    ///
    /// The rows stay readable as long as the scan lives, and the space of what is written
    /// over meanwhile is not used again: do not keep it for hours.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Kind::Held`] when writers do not let go in time.
    pub fn scan(&self, table: &TableName, range: &RowRange) -> Result<Scan> {
        let view = self.view_at_one_moment(table)?;
        let range = encode_range(&view.table, range)?;
        Ok(Scan::new(view, range))
    }

    /// Views of all shards of a table as they stand at one moment of this call.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Held`] when writers do not let go in time.
    pub(super) fn view_at_one_moment(&self, name: &TableName) -> Result<TableView> {
        let access = self.pass_shared()?;
        let table = self.resolve(&access.database, name)?;
        if table.record.shards.len() == 1 {
            return self.view_table(&table);
        }
        drop(access);
        // Several shards stand at one moment only while nobody writes.
        let alone = self.pass_alone()?;
        self.view_table(&self.resolve(&alone.database, name)?)
    }

    /// Views of all shards of a table; of one moment if the gate is passed alone.
    pub(crate) fn view_table(&self, table: &Arc<TableHandle>) -> Result<TableView> {
        let view = |generation| self.open_shard(generation)?.view();
        let shards = table.record.shards.iter().map(|shard| view(shard.generation));
        Ok(TableView { table: Arc::clone(table), shards: shards.collect::<Result<_>>()? })
    }
}

fn encode_range(table: &TableHandle, range: &RowRange) -> Result<KeyRange> {
    let encode = |values: &[Value]| {
        let mut key = Vec::new();
        table
            .codec
            .encode_key_values(values, &mut key)
            .map_err(|error| error.context(format!("read table `{}`", table.name)))?;
        Ok::<Vec<u8>, Error>(key)
    };
    let end = range.end.as_deref().map(encode).transpose()?;
    Ok(KeyRange { start: encode(&range.start)?, end })
}

/// The row of a stored key and payload.
fn decode_row(table: &TableHandle, key: &[u8], payload: &[u8]) -> Result<Row> {
    // The key of a table without key columns only numbers its rows.
    let key = if table.record.schema.key.is_empty() { &[] } else { key };
    table
        .codec
        .decode(key, payload)
        .map_err(|error| error.context(format!("table `{}`", table.name)))
}

/// Rows of a table in key order; see [`EmbeddedDatabase::scan`].
#[derive(Debug)]
pub struct Scan {
    view: TableView,
    cursor: TableCursor,
    batch: RowBatch,
    at: usize,
    failed: bool,
}

impl Scan {
    fn new(view: TableView, range: KeyRange) -> Scan {
        let cursor = TableCursor::new(&view, range, Reads::Rows);
        Scan { view, cursor, batch: RowBatch::new(), at: 0, failed: false }
    }
}

impl Iterator for Scan {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.failed {
            return None;
        }
        if self.at == self.batch.len() {
            self.at = 0;
            match self.cursor.next_batch(&self.view, &mut self.batch) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let row = self.batch.row(self.at);
        self.at += 1;
        Some(decode_row(&self.view.table, row.key, row.payload))
    }
}

/// What a [`TableCursor`] reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reads {
    /// Every row.
    Rows,
    /// Keys that changed after a cut.
    Changes {
        /// The cut.
        from: Position,
    },
}

/// Where a reader stands in a table: goes through its shards in key order.
#[derive(Debug)]
pub(crate) struct TableCursor {
    end: Option<Vec<u8>>,
    reads: Reads,
    /// The shard that is read, and where in it; `None` at the end.
    at: Option<(usize, RowCursor)>,
}

impl TableCursor {
    /// A cursor before the first key of `range`.
    pub(crate) fn new(view: &TableView, range: KeyRange, reads: Reads) -> TableCursor {
        let first = view.table.record.shard_of(&range.start);
        let at = Some((first, RowCursor::new(&range)));
        TableCursor { end: range.end, reads, at }
    }

    /// Replaces `batch` by the next rows; `false`, with an empty batch, at the end.
    pub(crate) fn next_batch(&mut self, view: &TableView, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        while let Some((shard, cursor)) = &mut self.at {
            let shard_view = &view.shards[*shard];
            let more = match self.reads {
                Reads::Rows => cursor.read_rows(shard_view, batch)?,
                Reads::Changes { from } => cursor.read_changes(shard_view, from, batch)?,
            };
            if more {
                return Ok(true);
            }
            let behind = *shard + 1;
            self.at = self.enter(view, behind);
        }
        Ok(false)
    }

    /// The beginning of a shard, if there is one and the range reaches it.
    fn enter(&self, view: &TableView, shard: usize) -> Option<(usize, RowCursor)> {
        let start = &view.table.record.shards.get(shard)?.range.start;
        let reached = self.end.as_ref().is_none_or(|end| start < end);
        let rest = KeyRange { start: Vec::new(), end: self.end.clone() };
        reached.then(|| (shard, RowCursor::new(&rest)))
    }
}

/// Where a reader stands inside one shard; survives between batches, holds no lock.
#[derive(Clone, Debug)]
pub(crate) struct RowCursor {
    next: Bound<Vec<u8>>,
    end: Option<Vec<u8>>,
    ended: bool,
}

impl RowCursor {
    /// A cursor before the first key of `range`.
    pub(crate) fn new(range: &KeyRange) -> RowCursor {
        // LMDB knows no empty key, and no seeking to one.
        let next = match range.start.as_slice() {
            [] => Bound::Unbounded,
            start => Bound::Included(start.to_vec()),
        };
        RowCursor { next, end: range.end.clone(), ended: false }
    }

    /// A cursor behind `key`, and before every key if there is none.
    pub(crate) fn behind(key: Option<Vec<u8>>) -> RowCursor {
        RowCursor { next: key.map_or(Bound::Unbounded, Bound::Excluded), end: None, ended: false }
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = self.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (self.next.as_ref().map(Vec::as_slice), end)
    }

    /// Appends the next rows to `batch` as upserts; `false` when there are no more.
    pub(crate) fn read_rows(&mut self, view: &ShardView, batch: &mut RowBatch) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let before = batch.len();
        let txn = view.txn();
        let shard = view.shard();
        let doing = || shard.doing("read");
        self.ended = true;
        for entry in shard.rows().range(&txn, &self.bounds()).during(doing)? {
            let (key, payload) = entry.during(doing)?;
            batch.push(RowRef { key, op: ChangeOp::Upsert, payload });
            if is_full(batch) {
                self.ended = false;
                break;
            }
        }
        self.stand_behind(batch, before);
        Ok(batch.len() > before)
    }

    /// Appends the next keys that changed after `from`, each with its last state; `false`
    /// when there are no more.
    pub(crate) fn read_changes(
        &mut self,
        view: &ShardView,
        from: Position,
        batch: &mut RowBatch,
    ) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let before = batch.len();
        let txn = view.txn();
        let shard = view.shard();
        let doing = || shard.doing("read the changes of");
        self.ended = true;
        for entry in shard.changes().range(&txn, &self.bounds()).during(doing)? {
            let (key, stamp) = entry.during(doing)?;
            if decode_stamp(stamp)? <= from {
                continue;
            }
            let (op, payload) = match shard.rows().get(&txn, key).during(doing)? {
                Some(payload) => (ChangeOp::Upsert, payload),
                None => (ChangeOp::Delete, &[][..]),
            };
            batch.push(RowRef { key, op, payload });
            if is_full(batch) {
                self.ended = false;
                break;
            }
        }
        self.stand_behind(batch, before);
        Ok(batch.len() > before)
    }

    fn stand_behind(&mut self, batch: &RowBatch, before: usize) {
        if batch.len() > before
            && let Some(last) = batch.last()
        {
            self.next = Bound::Excluded(last.key.to_vec());
        }
    }
}

/// The cut in an entry of the change log.
pub(super) fn decode_stamp(stamp: &[u8]) -> Result<Position> {
    let stamp = <[u8; 8]>::try_from(stamp)
        .map_err(|_| Error::new(Kind::Broken, "an entry of a change log is malformed"))?;
    Ok(Position(u64::from_le_bytes(stamp)))
}

fn is_full(batch: &RowBatch) -> bool {
    batch.len() >= BATCH_ROWS_MAX || batch.byte_count() >= BATCH_BYTES_MAX
}
