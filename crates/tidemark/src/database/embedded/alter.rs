//! Changing the columns of a table.

use std::sync::Arc;

use super::build::ShardBuilder;
use super::read::RowCursor;
use super::record::{ShardMeta, TableRecord};
use super::shard::Shard;
use super::{EmbeddedDatabase, TableHandle};
use crate::error::{Error, Kind, Result};
use crate::ids::{ColumnId, TableName};
use crate::lmdb::LmdbContext;
use crate::row::{Column, KeyRange, LogicalType, RowBatch, RowCodec, Schema};

/// One change of a table's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alteration {
    /// Adds a column behind the others, NULL in every row. No row is written.
    AddColumn {
        /// Its name.
        name: String,
        /// Its type.
        logical: LogicalType,
    },
    /// Removes a column with its values. Every row is written.
    DropColumn {
        /// Its name.
        name: String,
    },
    /// Renames a column; it stays the same column. No row is written.
    RenameColumn {
        /// Its name until now.
        from: String,
        /// Its name from now on.
        to: String,
    },
}

impl EmbeddedDatabase {
    /// Changes the columns of a table, all changes or none, in the given order.
    ///
    /// Increments stay increments: the change log is kept. Dropping a column rewrites the
    /// table while writers of the whole database wait.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for no such table; [`Kind::Usage`] for no such column, a name that is
    /// taken, or a key column that would go; [`Kind::InTheWay`] while a restore is to replace the
    /// table or to move it on; [`Kind::Held`] when writers do not let go in time.
    pub fn alter(&self, name: &TableName, alterations: &[Alteration]) -> Result<()> {
        let altering = |error: Error| error.context(format!("alter table `{name}`"));
        let alone = self.pass_alone()?;
        let table = self.resolve(&alone.database, name)?;
        let schema = alter_schema(&table.record.schema, alterations).map_err(altering)?;
        // Told before every row is written, and decided in the transaction below.
        self.refuse_reserved(&*self.catalog().read()?, name).map_err(altering)?;
        let mut record = TableRecord { schema, ..table.record.clone() };
        if let Some(copy) = &mut record.copy {
            copy.altered = true;
        }
        let rewrites = alterations.iter().any(|one| matches!(one, Alteration::DropColumn { .. }));
        // Kept until the new record names them.
        let mut built = Vec::new();
        if rewrites {
            built = self.build_generations(record.shards.len() as u32)?;
            let codec = RowCodec::new(&record.schema);
            for (shard, new) in record.shards.iter_mut().zip(&built) {
                let old = self.open_shard(shard.generation)?;
                self.copy_projected(&table, &old, new, &codec).map_err(altering)?;
                shard.generation = new.generation();
            }
        }
        let mut txn = self.write_catalog()?;
        self.refuse_reserved(&txn, name).map_err(altering)?;
        self.switch_table(&alone.gate, &mut txn, name, Some(&record))?;
        txn.commit()?;
        drop((built, alone, table));
        self.tidy();
        Ok(())
    }

    /// Copies rows without the columns that are gone, and the change log as it is.
    fn copy_projected(
        &self,
        table: &TableHandle,
        old: &Arc<Shard>,
        new: &Arc<Shard>,
        codec: &RowCodec,
    ) -> Result<()> {
        let view = old.view()?;
        let mut builder = ShardBuilder::new(self, Arc::clone(new), table.record.digest_id);
        let mut cursor = RowCursor::new(&KeyRange::ALL);
        let (mut batch, mut payload) = (RowBatch::new(), Vec::new());
        while cursor.read_rows(&view, &mut batch)? {
            for row in batch.iter() {
                payload.clear();
                codec.project(row.payload, &mut payload)?;
                builder.push(row.key, &payload)?;
            }
            batch.clear();
        }
        let written = builder.finish()?;
        drop(view);
        self.copy_changes(old, new)?;

        let before = old.meta(&*old.read()?)?;
        let mut txn = self.write_shard(new)?;
        let meta = ShardMeta { digest: written.digest, row_bytes: written.row_bytes, ..before };
        new.put_meta(&mut txn, &meta)?;
        txn.commit()
    }

    /// Copies the change log of a shard into one that has none yet.
    pub(super) fn copy_changes(&self, old: &Shard, new: &Shard) -> Result<()> {
        const ENTRIES_MAX: usize = 65_536;
        let reading = || old.doing("read the changes of");
        let writing = || new.doing("write the changes of");
        let txn = old.read()?;
        let mut entries = old.changes().iter(&txn).during(reading)?;
        loop {
            let chunk: Vec<_> =
                entries.by_ref().take(ENTRIES_MAX).collect::<heed::Result<_>>().during(reading)?;
            if chunk.is_empty() {
                return Ok(());
            }
            let mut txn = self.write_shard(new)?;
            for (key, stamp) in chunk {
                new.changes()
                    .put_with_flags(&mut txn, heed::PutFlags::APPEND, key, stamp)
                    .during(writing)?;
            }
            txn.commit()?;
        }
    }
}

fn alter_schema(schema: &Schema, alterations: &[Alteration]) -> Result<Schema> {
    let mut schema = schema.clone();
    let position = |schema: &Schema, name: &str| {
        schema.columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let names: Vec<&str> = schema.columns.iter().map(|c| c.name.as_str()).collect();
            Error::new(Kind::Usage, format!("there is no column `{name}`; it has {names:?}"))
        })
    };
    for alteration in alterations {
        match alteration {
            Alteration::AddColumn { name, logical } => {
                let id = schema.next_column_id;
                schema.next_column_id = ColumnId(id.0.checked_add(1).ok_or_else(|| {
                    Error::new(Kind::Usage, "all column ids are used; copy the table")
                })?);
                let (name, logical) = (name.clone(), *logical);
                schema.columns.push(Column { id, name, logical, native: None });
            }
            Alteration::DropColumn { name } => {
                let at = position(&schema, name)?;
                if schema.key.contains(&schema.columns[at].id) {
                    let message = format!("column `{name}` is in the key and cannot be dropped");
                    return Err(Error::new(Kind::Usage, message));
                }
                schema.columns.remove(at);
            }
            Alteration::RenameColumn { from, to } => {
                let at = position(&schema, from)?;
                schema.columns[at].name.clone_from(to);
            }
        }
        schema.check()?;
    }
    Ok(schema)
}
