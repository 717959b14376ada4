//! Making, listing, emptying and dropping tables.

use std::sync::Arc;

use super::apply::check_key_length;
use super::record::{ShardRecord, TableRecord};
use super::shard::Shard;
use super::{EmbeddedDatabase, SHARDS_MAX};
use crate::error::{Error, Kind, Result};
use crate::ids::{TableId, TableName};
use crate::row::{Digest, KeyRange, RowCodec, Schema, Value};

/// What there is to know of a table without reading its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSummary {
    /// Name.
    pub name: TableName,
    /// Identity for the life of the table.
    pub id: TableId,
    /// Columns and key.
    pub schema: Schema,
    /// Key ranges of the shards, in key order.
    pub shards: Vec<KeyRange>,
    /// Number of rows and their digest.
    pub digest: Digest,
    /// Key and payload bytes of the rows.
    pub row_bytes: u64,
}

/// Sums over the shards of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableTotals {
    /// Rows.
    pub(crate) digest: Digest,
    /// Key and payload bytes.
    pub(crate) row_bytes: u64,
    /// Transactions of users since an operation put the rows there; 0 for an untouched copy.
    pub(crate) user_writes: u64,
}

impl EmbeddedDatabase {
    /// Makes an empty table; one more shard than there are `splits`.
    ///
    /// A split is the first key of a shard, as key values in key order, possibly only the
    /// first few; splits ascend. A crash leaves the table or nothing.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when the name is taken, or reserved by a restore; [`Kind::Usage`] for a table without key,
    /// splits that do not ascend, or more than [`SHARDS_MAX`] shards; [`Kind::Held`] when
    /// writers do not let go in time.
    pub fn create_table(
        &self,
        name: &TableName,
        schema: &Schema,
        splits: &[Vec<Value>],
    ) -> Result<TableId> {
        let creating = |error: Error| error.context(format!("create table `{name}`"));
        let ranges = check_new_table(schema, splits).map_err(creating)?;
        let shards = self.build_generations(ranges.len() as u32).map_err(creating)?;
        let id = TableId(self.env().random_id());
        self.name_new_table(name, id, schema, ranges, &shards).map_err(creating)?;
        Ok(id)
    }

    /// Makes a table of shards that were built for it, one per range; visible as a whole.
    /// `id` is its identity and that of its digests.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when the name is taken, or reserved by a restore; [`Kind::Held`] when
    /// writers do not let go in time. The shards are garbage then.
    pub(super) fn name_new_table(
        &self,
        name: &TableName,
        id: TableId,
        schema: &Schema,
        ranges: Vec<KeyRange>,
        shards: &[Arc<Shard>],
    ) -> Result<()> {
        let alone = self.pass_alone()?;
        let mut txn = self.write_catalog()?;
        if let Some(taken) = self.catalog().table(&txn, name)? {
            let message = if taken.is_visible() {
                "the name is taken by a table".to_owned()
            } else {
                format!("the name is taken by {}", told_of_held(name))
            };
            return Err(Error::new(Kind::InTheWay, message));
        }
        self.refuse_reserved(&txn, name)?;
        let table = TableRecord {
            id,
            digest_id: id,
            schema: schema.clone(),
            shards: ranges
                .into_iter()
                .zip(shards)
                .map(|(range, shard)| ShardRecord { range, generation: shard.generation() })
                .collect(),
            base_position: alone.database.next_cut(),
            created_by: None,
            copy: None,
        };
        self.switch_table(&alone.gate, &mut txn, name, Some(&table))?;
        txn.commit()
    }

    /// Removes a table or a held copy with its rows; whoever still reads them reads on.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::InTheWay`] while a restore is to replace it or to move it on;
    /// [`Kind::Held`] when writers do not let go in time.
    pub fn drop_table(&self, name: &TableName) -> Result<()> {
        let alone = self.pass_alone()?;
        let mut txn = self.write_catalog()?;
        if self.catalog().table(&txn, name)?.is_none() {
            return Err(self.no_table(name, None));
        }
        let dropping = |error: Error| error.context(format!("drop table `{name}`"));
        self.refuse_reserved(&txn, name).map_err(dropping)?;
        self.switch_table(&alone.gate, &mut txn, name, None)?;
        txn.commit()?;
        drop(alone);
        self.tidy();
        Ok(())
    }

    /// Removes all rows of a table at once; the next increment carries it whole.
    ///
    /// # Errors
    /// As [`drop_table`](Self::drop_table).
    pub fn truncate(&self, name: &TableName) -> Result<()> {
        let alone = self.pass_alone()?;
        let table = self.resolve(&alone.database, name)?;
        let emptying = |error: Error| error.context(format!("empty table `{name}`"));
        self.refuse_reserved(&*self.catalog().read()?, name).map_err(emptying)?;
        let shards = self.build_generations(table.record.shards.len() as u32)?;
        let mut record = table.record.clone();
        record.base_position = alone.database.next_cut();
        for (shard, new) in record.shards.iter_mut().zip(&shards) {
            shard.generation = new.generation();
            // A copy that was emptied is no copy any more.
            let mut txn = self.write_shard(new)?;
            let mut meta = new.meta(&txn)?;
            meta.user_writes = 1;
            new.put_meta(&mut txn, &meta)?;
            txn.commit()?;
        }
        let mut txn = self.write_catalog()?;
        self.refuse_reserved(&txn, name).map_err(emptying)?;
        self.switch_table(&alone.gate, &mut txn, name, Some(&record))?;
        txn.commit()?;
        drop(alone);
        self.tidy();
        Ok(())
    }

    /// The tables, by name.
    pub fn tables(&self) -> Result<Vec<TableSummary>> {
        self.summaries(TableRecord::is_visible)
    }

    /// The held copies, by name: what restores with `--hold` left, and no reader sees.
    pub fn held_copies(&self) -> Result<Vec<TableSummary>> {
        self.summaries(|record| !record.is_visible())
    }

    fn summaries(&self, selects: impl Fn(&TableRecord) -> bool) -> Result<Vec<TableSummary>> {
        let _access = self.pass_shared()?;
        let mut tables = self.catalog().tables(&*self.catalog().read()?)?;
        tables.retain(|(_, record)| selects(record));
        let summary = |(name, record): (TableName, TableRecord)| {
            let totals = self.table_totals(&record)?;
            Ok(TableSummary {
                name,
                id: record.id,
                schema: record.schema,
                shards: record.shards.into_iter().map(|shard| shard.range).collect(),
                digest: totals.digest,
                row_bytes: totals.row_bytes,
            })
        };
        tables.into_iter().map(summary).collect()
    }

    /// Sums over the shards of a table, hidden or not.
    pub(crate) fn table_totals(&self, table: &TableRecord) -> Result<TableTotals> {
        let mut totals = TableTotals::default();
        for shard in &table.shards {
            let shard = self.open_shard(shard.generation)?;
            let meta = shard.meta(&*shard.read()?)?;
            totals.digest += meta.digest;
            totals.row_bytes += meta.row_bytes;
            totals.user_writes += meta.user_writes;
        }
        Ok(totals)
    }
}

/// A held copy, for an error.
pub(super) fn told_of_held(name: &TableName) -> String {
    format!(
        "a held copy `{name}`, which a restore with --hold left and no reader sees; `restore \
         --continue` shows it, `tidemark db drop` removes it"
    )
}

/// The key ranges of a new table's shards.
fn check_new_table(schema: &Schema, splits: &[Vec<Value>]) -> Result<Vec<KeyRange>> {
    schema.check()?;
    if schema.key.is_empty() {
        return Err(Error::new(Kind::Usage, "a table needs a key; name its key columns"));
    }
    if splits.len() as u64 + 1 > u64::from(SHARDS_MAX) {
        let message = format!(
            "{} shards were asked for, at most {SHARDS_MAX} are possible",
            splits.len() + 1
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let codec = RowCodec::new(schema);
    let mut keys: Vec<Vec<u8>> = Vec::with_capacity(splits.len());
    for split in splits {
        let mut key = Vec::new();
        codec.encode_key_values(split, &mut key)?;
        check_key_length(&key)?;
        if keys.last().is_some_and(|last| *last >= key) {
            let message = format!("the split {split:?} is not greater than the one before it");
            return Err(Error::new(Kind::Usage, message));
        }
        keys.push(key);
    }
    Ok(KeyRange::between(&keys))
}
