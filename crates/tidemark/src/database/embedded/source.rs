//! The embedded database as a [`Source`] of backups.

use std::sync::Arc;

use super::EmbeddedDatabase;
use super::capture::Cut;
use super::read::{Reads, TableCursor, TableView, decode_stamp};
use crate::database::{Delta, ParentTable, Snapshot, Source, SourceShard, SourceTable};
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, CutId, Position, TableName};
use crate::lmdb::LmdbContext;
use crate::row::{Digest, KeyRange, RowBatch, RowStream};

/// Cuts of all visible tables at once.
///
/// ```
/// # use std::sync::Arc;
/// # use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
/// # use tidemark::env::SystemEnv;
/// # use tidemark::ids::TableName;
/// # use tidemark::row::{LogicalType, Schema, Value};
/// use tidemark::database::Source;
/// use tidemark::ids::CollectionId;
/// use tidemark::row::{KeyRange, RowBatch};
///
/// # fn main() -> tidemark::Result<()> {
/// # let place = tempfile::tempdir().unwrap();
/// # let options = EmbeddedOptions::default();
/// # let dir = place.path().join("shop");
/// # let database = EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), options)?;
/// # let orders = TableName::parse("orders").unwrap();
/// # let schema = Schema::new(&[("id", LogicalType::Int64)], &["id"])?;
/// # database.create_table(&orders, &schema, &[])?;
/// database.put(&orders, vec![Value::Int64(1)])?;
/// let cut = database.snapshot(CollectionId(7))?;
/// database.put(&orders, vec![Value::Int64(2)])?;
///
/// // Whatever is written afterwards, the cut stands still until it is dropped.
/// let mut rows = cut.scan(0, &KeyRange::ALL)?;
/// let mut batch = RowBatch::new();
/// let mut count = 0;
/// while rows.next_batch(&mut batch)? {
///     count += batch.len();
/// }
/// assert_eq!(count, 1);
///
/// // Changes are kept for every collection that took a cut, until it says that it has them,
/// // or is forgotten.
/// database.advance(CollectionId(7), cut.position())?;
/// database.forget_collection(CollectionId(7))?;
/// # Ok(()) }
/// ```
impl Source for EmbeddedDatabase {
    fn identity(&self) -> Result<String> {
        Ok(self.identity_text())
    }

    fn snapshot(&self, collection: CollectionId) -> Result<Arc<dyn Snapshot>> {
        self.snapshot_of(collection, &mut |_| true)
    }

    fn snapshot_of(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(EmbeddedSnapshot::new(self.cut(collection, selects)?)?))
    }

    fn advance(&self, collection: CollectionId, to: Position) -> Result<()> {
        self.advance_collection(collection, to)
    }
}

/// One cut of an embedded database: read transactions on all its shards.
#[derive(Debug)]
struct EmbeddedSnapshot {
    cut: Cut,
    tables: Vec<SourceTable>,
}

impl EmbeddedSnapshot {
    fn new(cut: Cut) -> Result<EmbeddedSnapshot> {
        let tables = cut.tables.iter().map(source_table).collect::<Result<_>>()?;
        Ok(EmbeddedSnapshot { cut, tables })
    }

    fn table(&self, table: usize) -> Result<&TableView> {
        self.cut.tables.get(table).ok_or_else(|| {
            let message =
                format!("the cut has {} tables, number {table} was asked", self.tables.len());
            Error::new(Kind::Usage, message)
        })
    }

    /// Why the changes since `parent` are not known completely.
    fn whole_reason(&self, view: &TableView, parent: &ParentTable) -> Option<String> {
        let record = &view.table.record;
        let database = &self.cut.database;
        if record.schema.key.is_empty() {
            return Some("it has no key".to_owned());
        }
        if record.id != parent.id {
            return Some("it was dropped and made again after the parent".to_owned());
        }
        if !record.schema.same_key(&parent.schema) {
            return Some("its key columns changed after the parent".to_owned());
        }
        if parent.position >= database.position {
            return Some("the parent was taken after this cut".to_owned());
        }
        if record.base_position > parent.position {
            return Some("it was made, emptied or replaced after the parent".to_owned());
        }
        if database.capture_since.is_none_or(|since| parent.position < since) {
            return Some("changes were not captured yet when the parent was taken".to_owned());
        }
        if parent.position < database.trimmed_to {
            return Some("changes as old as the parent are no longer kept".to_owned());
        }
        None
    }
}

fn source_table(view: &TableView) -> Result<SourceTable> {
    let record = &view.table.record;
    let mut digest = Digest::default();
    let mut shards = Vec::with_capacity(view.shards.len());
    for (shard, described) in view.shards.iter().zip(&record.shards) {
        let meta = shard.meta()?;
        digest += meta.digest;
        shards.push(SourceShard {
            range: described.range.clone(),
            rows: meta.digest.rows,
            bytes: meta.row_bytes,
        });
    }
    Ok(SourceTable {
        id: record.id,
        digest_id: record.digest_id,
        name: view.table.name.clone(),
        schema: record.schema.clone(),
        shards,
        digest: Some(digest),
        structure: None,
    })
}

impl Snapshot for EmbeddedSnapshot {
    fn position(&self) -> Position {
        self.cut.database.position
    }

    fn table_names(&self) -> Vec<TableName> {
        self.cut.names.clone()
    }

    fn cut_id(&self) -> Option<CutId> {
        Some(self.cut.id)
    }

    fn is_after(&self, position: Position, cut: CutId) -> Result<bool> {
        let known = self.cut.past.binary_search_by_key(&position, |(position, _)| *position);
        let is_forgotten = position < self.cut.database.trimmed_to;
        Ok(is_forgotten || known.is_ok_and(|at| self.cut.past[at].1 == cut))
    }

    fn tables(&self) -> &[SourceTable] {
        &self.tables
    }

    fn scan<'a>(&'a self, table: usize, range: &KeyRange) -> Result<Box<dyn RowStream + 'a>> {
        Ok(Box::new(CutStream::new(self.table(table)?, range, Reads::Rows)))
    }

    fn delta(&self, table: usize, parent: &ParentTable) -> Result<Delta> {
        let view = self.table(table)?;
        if let Some(reason) = self.whole_reason(view, parent) {
            return Ok(Delta::Whole { reason });
        }
        let mut rows = 0;
        for shard in &view.shards {
            let txn = shard.txn();
            let doing = || shard.shard().doing("read the changes of");
            for entry in shard.shard().changes().iter(&txn).during(doing)? {
                let (_, stamp) = entry.during(doing)?;
                rows += u64::from(decode_stamp(stamp)? > parent.position);
            }
        }
        let described = &self.tables[table];
        let stored: u64 = described.shards.iter().map(|shard| shard.rows).sum();
        let bytes: u64 = described.shards.iter().map(|shard| shard.bytes).sum();
        let row_bytes = bytes.checked_div(stored).unwrap_or(0);
        Ok(Delta::Known { rows, bytes: rows.saturating_mul(row_bytes) })
    }

    fn changes<'a>(
        &'a self,
        table: usize,
        range: &KeyRange,
        from: Position,
    ) -> Result<Box<dyn RowStream + 'a>> {
        Ok(Box::new(CutStream::new(self.table(table)?, range, Reads::Changes { from })))
    }
}

/// Rows or changes of a range, over all shards that it touches.
#[derive(Debug)]
pub(super) struct CutStream<'a> {
    view: &'a TableView,
    cursor: TableCursor,
}

impl<'a> CutStream<'a> {
    /// A stream before the first key of `range`.
    pub(super) fn new(view: &'a TableView, range: &KeyRange, reads: Reads) -> CutStream<'a> {
        CutStream { view, cursor: TableCursor::new(view, range.clone(), reads) }
    }
}

impl RowStream for CutStream<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        self.cursor.next_batch(self.view, batch)
    }
}
