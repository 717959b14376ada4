//! Making a table equal to a staged file.
//!
//! The table is compared as it stood at one moment, its *base*. Nobody is kept
//! from writing meanwhile; instead the change happens only if the base is still
//! what the table is, which is checked alone inside the gate. If it is not, nothing
//! happened, and the load begins anew.

use std::sync::Arc;

use super::change_log::ChangeLog;
use super::compare::{Cursor, Outcome, Tally, compare};
use super::file::StagedFile;
use super::{Load, LoadMode, LoadReport, LoadRequest, SchemaChange, plan};
use crate::database::embedded::read::Reads;
use crate::database::embedded::record::{RedoRecord, RedoShard};
use crate::database::embedded::source::CutStream;
use crate::database::embedded::table::told_of_held;
use crate::database::embedded::{
    AloneAccess, EmbeddedDatabase, Shard, ShardBuilder, ShardMeta, ShardRecord, TableRecord,
    TableView,
};
use crate::database::sorter::SortedStream;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{Position, TableName};
use crate::row::{ChangeOp, KeyRange, RowBatch, RowCodec, RowRef};

/// A table as it stood at one moment.
#[derive(Debug)]
pub(super) struct Base {
    view: TableView,
    /// What each shard knew of itself.
    shards: Vec<ShardMeta>,
    /// The last cut.
    position: Position,
    /// What changed keys are stamped with until the next cut.
    capture: Option<Position>,
}

impl EmbeddedDatabase {
    /// The table that is to become equal to the file; `None` if there is none.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when the request does not allow for a table, or an operation reserved
    /// the name.
    pub(super) fn find_base(&self, request: &LoadRequest) -> Result<Option<Base>> {
        let alone = self.pass_alone()?;
        let name = &request.table;
        let txn = self.catalog().read()?;
        self.refuse_reserved(&txn, name)?;
        let record = self.catalog().table(&txn, name)?;
        drop(txn);
        let Some(record) = record else { return Ok(None) };
        if !record.is_visible() {
            let message = format!("the name is taken by {}", told_of_held(name));
            return Err(Error::new(Kind::InTheWay, message));
        }
        if request.mode == LoadMode::Create {
            let message = "the table exists; use --sync to make it equal to the file, or another \
                           name";
            return Err(Error::new(Kind::InTheWay, message));
        }
        let view = self.view_table(&self.resolve(&alone.database, name)?)?;
        let shards = view.shards.iter().map(|shard| shard.meta()).collect::<Result<_>>()?;
        let AloneAccess { database, .. } = alone;
        Ok(Some(Base { view, shards, position: database.position, capture: database.capture() }))
    }

    /// Whether the table is still what it was, cuts included: a stamp from before a cut
    /// would hide a change from the one after it.
    fn is_current(&self, alone: &AloneAccess, name: &TableName, base: &Base) -> Result<bool> {
        let record = self.catalog().table(&*self.catalog().read()?, name)?;
        if record.as_ref() != Some(&base.view.table.record)
            || alone.database.position != base.position
        {
            return Ok(false);
        }
        for (view, before) in base.view.shards.iter().zip(&base.shards) {
            let shard = view.shard();
            if shard.meta(&*shard.read()?)? != *before {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What has to happen to the table.
struct Differences {
    total: Tally,
    /// Per shard of the base.
    by_shard: Vec<Tally>,
    /// The rows to change in place; `None` when they are too many.
    batch: Option<RedoRecord>,
}

impl Load<'_> {
    /// Makes the table equal to the file; `None`, and nothing was changed, if it was
    /// written to meanwhile.
    pub(super) fn sync(&self, base: &Base) -> Result<Option<LoadReport>> {
        let before = &base.view.table.record;
        let (schema, changes) = plan::plan_sync(&before.schema, self.columns())?;
        let staged = self.stage(&schema, before.shards.len() as u32)?;
        let mut after = TableRecord { schema, ..before.clone() };
        if let (Some(copy), false) = (&mut after.copy, changes.is_empty()) {
            copy.altered = true;
        }

        let (tally, switched) = if !after.schema.same_key(&before.schema) {
            self.replace(base, &staged, after)?
        } else {
            self.change(base, &staged, after, &changes)?
        };
        Ok(switched.then(|| LoadReport::new(self.file, tally, changes)))
    }

    /// Changes the rows that differ.
    fn change(
        &self,
        base: &Base,
        staged: &StagedFile,
        after: TableRecord,
        changes: &[SchemaChange],
    ) -> Result<(Tally, bool)> {
        // A column that goes leaves its values in every row, where no digest may count them.
        let rewrites = changes.iter().any(|change| match change {
            SchemaChange::Dropped { .. } | SchemaChange::Retyped { .. } => true,
            SchemaChange::Added { .. } | SchemaChange::Reordered => false,
        });
        let codec = RowCodec::new(&after.schema);
        let differences = self.find_differences(base, staged, &codec)?;
        let switched = match differences.batch {
            _ if differences.total.differences() == 0 && changes.is_empty() => true,
            Some(batch) if !rewrites => self.apply_batch(base, &after, batch)?,
            _ => {
                let is_touched =
                    |shard: usize| rewrites || differences.by_shard[shard].differences() > 0;
                self.rebuild(base, staged, after, &codec, is_touched)?
            }
        };
        Ok((differences.total, switched))
    }

    fn find_differences(
        &self,
        base: &Base,
        staged: &StagedFile,
        codec: &RowCodec,
    ) -> Result<Differences> {
        let record = &base.view.table.record;
        let mut file = Cursor::new(staged.rows.stream()?);
        let mut total = Tally::default();
        let mut by_shard = Vec::with_capacity(record.shards.len());
        let mut batch = Some(RedoRecord::default());
        let (mut batch_rows, mut batch_bytes) = (0, 0);
        for shard in &record.shards {
            let stream = CutStream::new(&base.view, &shard.range, Reads::Rows);
            let mut rows = RowBatch::new();
            let tally = compare(stream, &mut file, shard.range.end.as_deref(), codec, |outcome| {
                if let (Some(row), true) = (difference(outcome), batch.is_some()) {
                    batch_rows += 1;
                    batch_bytes += row.byte_count();
                    rows.push(row);
                }
                if batch_rows > self.bounds.batch_rows_max
                    || batch_bytes > self.bounds.batch_bytes_max
                {
                    batch = None;
                    rows = RowBatch::new();
                }
                Ok(())
            })?;
            if let Some(batch) = batch.as_mut().filter(|_| !rows.is_empty()) {
                let (generation, digest_id) = (shard.generation, record.digest_id);
                batch.shards.push(RedoShard { generation, digest_id, rows });
            }
            total.add(tally);
            by_shard.push(tally);
        }
        Ok(Differences { total, by_shard, batch })
    }

    /// Changes rows in place, and the schema with them.
    fn apply_batch(&self, base: &Base, after: &TableRecord, batch: RedoRecord) -> Result<bool> {
        if !self.record_batch(base, after, &batch)? {
            return Ok(false);
        }
        // Completing it passes the gate once more: whoever is faster does it for us.
        let completed = self.database.pass_shared();
        completed.map(|_| true).map_err(|error| {
            error.context("the change is recorded, the next access to the database completes it")
        })
    }

    /// Decides, in one transaction, that the schema is `after` and the batch happens.
    fn record_batch(&self, base: &Base, after: &TableRecord, batch: &RedoRecord) -> Result<bool> {
        let database = self.database;
        let alone = database.pass_alone()?;
        if !database.is_current(&alone, &self.request.table, base)? {
            return Ok(false);
        }
        let mut txn = database.write_catalog()?;
        database.refuse_reserved(&txn, &self.request.table)?;
        if base.view.table.record != *after {
            database.switch_table(&alone.gate, &mut txn, &self.request.table, Some(after))?;
        }
        if !batch.shards.is_empty() {
            database.catalog().add_redo(&mut txn, batch)?;
        }
        failpoint::hit("load.before_switch");
        txn.commit()?;
        failpoint::hit("load.after_switch");
        Ok(true)
    }

    /// Records the change as [`sync`](Self::sync) does, and then dies.
    #[cfg(test)]
    pub(super) fn record_only(&self, base: &Base) -> Result<RedoRecord> {
        let before = &base.view.table.record;
        let (schema, _) = plan::plan_sync(&before.schema, self.columns())?;
        let staged = self.stage(&schema, 1)?;
        let codec = RowCodec::new(&schema);
        let batch = self.find_differences(base, &staged, &codec)?.batch.expect("it is small");
        let after = TableRecord { schema, ..before.clone() };
        assert!(self.record_batch(base, &after, &batch)?);
        Ok(batch)
    }

    /// Builds the shards that are touched anew, with their change logs, and switches all of
    /// them and the schema at once.
    fn rebuild(
        &self,
        base: &Base,
        staged: &StagedFile,
        mut after: TableRecord,
        codec: &RowCodec,
        is_touched: impl Fn(usize) -> bool,
    ) -> Result<bool> {
        let touched: Vec<usize> = (0..after.shards.len()).filter(|at| is_touched(*at)).collect();
        let built = self.database.build_generations(touched.len() as u32)?;
        let mut file = Cursor::new(staged.rows.stream()?);
        for (at, new) in touched.iter().zip(&built) {
            let shard = &mut after.shards[*at];
            file.skip_below(&shard.range.start)?;
            self.rebuild_shard(base, *at, &mut file, codec, new)?;
            shard.generation = new.generation();
        }
        self.switch(base, &after)
    }

    fn rebuild_shard(
        &self,
        base: &Base,
        at: usize,
        file: &mut Cursor<SortedStream<'_>>,
        codec: &RowCodec,
        new: &Arc<Shard>,
    ) -> Result<()> {
        let database = self.database;
        let record = &base.view.table.record;
        let range: &KeyRange = &record.shards[at].range;
        database.copy_changes(base.view.shards[at].shard(), new)?;
        let mut builder = ShardBuilder::new(database, Arc::clone(new), record.digest_id);
        let mut log = ChangeLog::new(database, Arc::clone(new), base.capture);
        let stream = CutStream::new(&base.view, range, Reads::Rows);
        let tally = compare(stream, file, range.end.as_deref(), codec, |outcome| {
            if let Some(row) = difference(outcome) {
                log.note(row.key)?;
            }
            match outcome {
                Outcome::Inserted(row) | Outcome::Updated(row) | Outcome::Unchanged(row) => {
                    builder.push(row.key, row.payload)
                }
                Outcome::Deleted { .. } => Ok(()),
            }
        })?;
        log.finish()?;
        let written = builder.finish()?;
        let before = base.shards[at];
        let user_writes = before.user_writes + u64::from(tally.differences() > 0);
        let (digest, row_bytes) = (written.digest, written.row_bytes);
        self.put_meta(new, ShardMeta { digest, row_bytes, user_writes, ..before })
    }

    /// Puts the file's rows in the place of all rows: every key is another one.
    fn replace(
        &self,
        base: &Base,
        staged: &StagedFile,
        mut after: TableRecord,
    ) -> Result<(Tally, bool)> {
        let (ranges, built) = self.build_shards(staged, after.digest_id)?;
        for new in &built {
            let written = new.meta(&*new.read()?)?;
            // A copy whose rows were replaced is no copy any more.
            self.put_meta(new, ShardMeta { user_writes: 1, ..written })?;
        }
        let named = ranges.into_iter().zip(&built);
        after.shards = named
            .map(|(range, shard)| ShardRecord { range, generation: shard.generation() })
            .collect();
        after.base_position = Position(base.position.0 + 1);
        let deleted = base.shards.iter().map(|shard| shard.digest.rows).sum();
        let tally = Tally { inserted: staged.rows.row_count(), deleted, ..Tally::default() };
        Ok((tally, self.switch(base, &after)?))
    }

    fn put_meta(&self, shard: &Shard, meta: ShardMeta) -> Result<()> {
        let mut txn = self.database.write_shard(shard)?;
        shard.put_meta(&mut txn, &meta)?;
        txn.commit()
    }

    /// Makes the table what `after` says, if it is still what `base` says.
    fn switch(&self, base: &Base, after: &TableRecord) -> Result<bool> {
        self.record_batch(base, after, &RedoRecord::default())
    }
}

/// The change that an outcome asks for.
fn difference(outcome: Outcome<'_>) -> Option<RowRef<'_>> {
    match outcome {
        Outcome::Inserted(row) | Outcome::Updated(row) => Some(row),
        Outcome::Deleted { key } => Some(RowRef { key, op: ChangeOp::Delete, payload: &[] }),
        Outcome::Unchanged(_) => None,
    }
}
