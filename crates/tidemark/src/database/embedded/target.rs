//! The embedded database as the target of a restore.
//!
//! A hidden table is a record in the catalog that names generations; nothing else
//! leads to them until publishing puts them into the table's record. What a call may
//! change is decided in two places, always in this order:
//!
//! 1. the **shards**, each by its own [`ShardFence`], in the transaction that would write;
//! 2. the **catalog**, by the [operation's record](TargetOperationRecord), in one transaction.
//!
//! A takeover raises the fences first, so when the catalog says that an epoch holds an
//! operation, no older one can write a row any more; whoever is refused by a shard has
//! changed nothing in the catalog.
//!
//! | call | shards | catalog, one transaction |
//! |---|---|---|
//! | prepare | claim what is there | reserve names, record hidden tables |
//! | | make, copy and claim the others | record them as complete |
//! | apply | rows and mark, if the fence is equal | |
//! | seal | seal | record that all are sealed |
//! | publish | | tables, reservations and hidden tables at once |
//! | discard | seal | drop hidden tables and reservations |
//!
//! A crash between two cells of a row is completed by repeating the call.

use std::sync::Arc;

use super::record::{
    HiddenTableRecord, ShardFence, TableRecord, TargetOperationRecord, TargetOperationState,
};
use super::{EmbeddedDatabase, SHARDS_MAX, Shard};
use crate::database::{
    CopyState, ExistingTable, Fence, Mark, Publish, Target, TargetLimits, TargetShard, TargetTable,
};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{TableName, Txn};
use crate::lmdb::KEY_BYTES_MAX;
use crate::row::digest::RowHasher;
use crate::row::{RowBatch, RowStream};

mod claim;
mod prepare;
mod project;
mod publish;
mod read_back;
mod records;

pub(super) use records::TargetRecords;

impl Target for EmbeddedDatabase {
    fn identity(&self) -> Result<String> {
        Ok(self.identity_text())
    }

    fn allocate_txn(&self) -> Result<Txn> {
        EmbeddedDatabase::allocate_txn(self)
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        // A batch that is half applied counts as not written, as for every reader.
        let _access = self.pass_shared()?;
        let Some(record) = self.catalog().table(&*self.catalog().read()?, name)? else {
            return Ok(None);
        };
        let mut rows = 0;
        for shard in &record.shards {
            let shard = self.open_shard(shard.generation)?;
            rows += shard.meta(&*shard.read()?)?.digest.rows;
        }
        let written_to = self.is_written_to(&record)?;
        Ok(Some(ExistingTable {
            id: record.id,
            digest_id: record.digest_id,
            schema: record.schema,
            shards: record.shards.into_iter().map(|shard| shard.range).collect(),
            rows,
            copy: record.copy.map(|copy| CopyState {
                origin: copy.origin,
                held: copy.held,
                written_to,
            }),
        }))
    }

    fn check_unreserved(&self, name: &TableName) -> Result<()> {
        self.refuse_reserved(&*self.catalog().read()?, name)
    }

    fn limits(&self) -> Result<TargetLimits> {
        let database = self.catalog().database(&*self.catalog().read()?)?;
        Ok(TargetLimits { shards_now: u64::from(database.live_shards), ..EmbeddedDatabase::LIMITS })
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        let doing = |error: Error| error.context(format!("prepare operation {}", fence.operation));
        self.prepare_tables(fence, tables).map_err(doing)
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        let (_, shard) = self.hidden_shard(shard)?;
        shard.mark(&*shard.read()?)
    }

    fn apply(
        &self,
        fence: Fence,
        at: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let (hidden, shard) = self.hidden_shard(at)?;
        let doing = |error: Error| {
            let TargetShard { operation, table, shard } = at;
            error.context(format!("operation {operation}, shard {shard} of `{table}`"))
        };
        rows.check_inside(&hidden.plan.shards[at.shard.0 as usize]).map_err(doing)?;
        let mut hasher = RowHasher::new(hidden.plan.digest_id);
        let wanted = ShardFence::open(hidden.txn, fence.epoch);

        let mut txn = self.write_shard(&shard).map_err(doing)?;
        failpoint::hit("target.apply.in_transaction");
        let current = shard.meta(&txn)?.fence;
        if current != wanted {
            return Err(doing(fenced(fence, current)));
        }
        let stored = shard.mark(&txn)?;
        mark.check_follows(stored.as_ref(), rows).map_err(doing)?;
        mark.ranges = stored.map(|stored| stored.ranges).unwrap_or_default();
        shard.apply(&mut txn, rows, &mut hasher, None, Some(mark)).map_err(doing)?;
        shard.put_mark(&mut txn, Some(mark))?;
        failpoint::hit_io("target.apply.write")
            .map_err(|cause| doing(Error::io("write", cause)))?;
        failpoint::hit("target.apply.before_commit");
        txn.commit().map_err(doing)?;
        failpoint::hit("target.apply.after_commit");
        Ok(())
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        let doing = |error: Error| error.context(format!("seal operation {}", fence.operation));
        self.seal_shards(fence).map_err(doing)
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let (_, shard) = self.hidden_shard(shard)?;
        read_back::rows(&shard)
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        let doing = |error: Error| error.context(format!("publish operation {}", fence.operation));
        self.publish_tables(fence, how).map_err(doing)
    }

    fn make_room(&self) -> Result<()> {
        self.give_ballast_back()
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        let doing = |error: Error| error.context(format!("discard operation {}", fence.operation));
        self.discard_tables(fence).map_err(doing)
    }
}

impl EmbeddedDatabase {
    /// What an empty database can hold.
    pub const LIMITS: TargetLimits = TargetLimits {
        shards_max: Some(SHARDS_MAX as u64),
        shards_now: 0,
        key_bytes_max: Some(KEY_BYTES_MAX as u64),
    };

    /// A shard that takes rows, or did until it was sealed.
    fn hidden_shard(&self, at: &TargetShard) -> Result<(Arc<HiddenTableRecord>, Arc<Shard>)> {
        let hidden = {
            let txn = self.catalog().read()?;
            self.target_records().hidden_table(&txn, at.operation, &at.table)?
        };
        let found = hidden.filter(|hidden| hidden.complete).and_then(|hidden| {
            let generation = *hidden.generations.get(at.shard.0 as usize)?;
            Some((hidden, generation))
        });
        let Some((hidden, generation)) = found else {
            let message = format!(
                "operation {} has no hidden table `{}` with a shard {}: it was published or \
                 discarded, or never completely prepared",
                at.operation, at.table, at.shard
            );
            return Err(Error::new(Kind::NotFound, message));
        };
        Ok((hidden, self.open_shard(generation)?))
    }

    /// Whether a copy is no longer what the operation that made it left there.
    ///
    /// The answer lasts as long as the caller keeps writers out.
    fn is_written_to(&self, copy: &TableRecord) -> Result<bool> {
        if copy.copy.as_ref().is_some_and(|copy| copy.altered) {
            return Ok(true);
        }
        for shard in &copy.shards {
            let shard = self.open_shard(shard.generation)?;
            if shard.meta(&*shard.read()?)?.user_writes > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the operation stands, as long as no newer epoch was shown.
    ///
    /// # Errors
    /// [`Kind::Fenced`].
    fn standing(
        &self,
        txn: &heed::RoTxn<'_>,
        fence: Fence,
    ) -> Result<Option<TargetOperationRecord>> {
        let found = self.target_records().operation(txn, fence.operation)?;
        match found {
            Some(found) if found.epoch > fence.epoch => {
                let message = format!(
                    "epoch {} came too late: epoch {} holds the operation",
                    fence.epoch, found.epoch
                );
                Err(Error::new(Kind::Fenced, message))
            }
            found => Ok(found),
        }
    }
}

fn fenced(fence: Fence, current: ShardFence) -> Error {
    let what = if current.sealed { "it is sealed with epoch" } else { "it is held with epoch" };
    let message = format!("epoch {} may not write here: {what} {}", fence.epoch, current.epoch);
    Error::new(Kind::Fenced, message)
}

fn discarded() -> Error {
    Error::new(Kind::Fenced, "it was discarded")
}

fn unprepared() -> Error {
    Error::new(Kind::NotFound, "it prepared nothing in this database")
}

/// Whether the state is one that has hidden tables.
fn is_unfinished(state: TargetOperationState) -> bool {
    match state {
        TargetOperationState::Open | TargetOperationState::Sealed => true,
        TargetOperationState::Published | TargetOperationState::Discarded => false,
    }
}

#[cfg(test)]
mod tests;
