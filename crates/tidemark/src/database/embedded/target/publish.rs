//! The end of an operation: its tables get their names, or everything goes.

use super::prepare::{check_replaced, exists, gone};
use super::{TargetOperationState, discarded, is_unfinished, unprepared};
use crate::database::embedded::record::{
    CopyRecord, HiddenBase, HiddenTableRecord, ShardFence, ShardRecord, TableRecord,
};
use crate::database::embedded::{DatabaseRecord, EmbeddedDatabase};
use crate::database::{Disposition, Fence, Mark, Publish, holding_would_hide};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::TableId;

impl EmbeddedDatabase {
    /// See [`Target::publish`](crate::database::Target::publish).
    pub(super) fn publish_tables(&self, fence: Fence, how: Publish) -> Result<()> {
        if self.is_published(fence)? {
            return Ok(());
        }
        // Alone: no writer is on its way to a generation that gives way, and no cut sees one
        // table of the operation without the others.
        let alone = self.pass_alone()?;
        let tables = {
            let txn = self.catalog().read()?;
            self.target_records().hidden_tables(&txn, fence.operation)?
        };
        let untouched = self.find_untouched_copies(tables.iter().map(|hidden| &hidden.plan))?;

        let mut txn = self.write_catalog()?;
        let mut operation = self.standing(&txn, fence)?.ok_or_else(unprepared)?;
        match operation.state {
            TargetOperationState::Published => return Ok(()),
            TargetOperationState::Discarded => return Err(discarded()),
            _ if operation.epoch != fence.epoch => {
                let message = format!(
                    "epoch {} never claimed the operation, epoch {} holds it",
                    fence.epoch, operation.epoch
                );
                return Err(Error::new(Kind::Fenced, message));
            }
            TargetOperationState::Open => {
                let message = "its shards are not sealed; seal, prove, then publish";
                return Err(Error::new(Kind::Usage, message));
            }
            TargetOperationState::Sealed => {}
        }
        if self.target_records().hidden_tables(&txn, fence.operation)? != tables {
            let message = "another call of the same holder changed its tables; try again";
            return Err(Error::new(Kind::Transient, message));
        }
        for hidden in &tables {
            let name = &hidden.plan.name;
            let found = self.catalog().table(&txn, name)?;
            if how == Publish::Held && found.as_ref().is_some_and(TableRecord::is_visible) {
                return Err(holding_would_hide(name));
            }
            let id = self.published_id(hidden, found.as_ref(), untouched.get(name))?;
            let table = published_record(&alone.database, fence, hidden, how, id);
            self.switch_table(&alone.gate, &mut txn, name, Some(&table))?;
            self.target_records().remove_hidden_table(&mut txn, fence.operation, name)?;
        }
        operation.state = TargetOperationState::Published;
        self.target_records().put_operation(&mut txn, fence.operation, &operation)?;
        failpoint::hit("target.publish.before_commit");
        txn.commit()?;
        failpoint::hit("target.publish.after_commit");
        drop(alone);
        self.tidy();
        Ok(())
    }

    fn is_published(&self, fence: Fence) -> Result<bool> {
        let operation = self.standing(&*self.catalog().read()?, fence)?;
        Ok(operation.is_some_and(|found| found.state == TargetOperationState::Published))
    }

    /// The identity that the table will have, if it can still have its name.
    ///
    /// # Errors
    /// [`Kind::InTheWay`].
    fn published_id(
        &self,
        hidden: &HiddenTableRecord,
        found: Option<&TableRecord>,
        untouched: Option<&TableRecord>,
    ) -> Result<TableId> {
        let name = &hidden.plan.name;
        match &hidden.base {
            HiddenBase::Empty
                if let Disposition::ReplaceCopy { table } = hidden.plan.disposition =>
            {
                check_replaced(name, table, found, untouched)?;
                Ok(TableId(self.env().random_id()))
            }
            HiddenBase::Empty
                if hidden.plan.disposition == Disposition::Fresh
                    && let Some(found) = found =>
            {
                Err(exists(name, found))
            }
            HiddenBase::Empty => Ok(TableId(self.env().random_id())),
            HiddenBase::Copied { table, .. }
            | HiddenBase::Projected { table, .. }
            | HiddenBase::InPlace { table } => {
                let stands =
                    found.is_some_and(|found| found.id == *table && stands_on(found, hidden));
                if stands && found == untouched { Ok(*table) } else { Err(gone(name)) }
            }
        }
    }

    /// See [`Target::discard`](crate::database::Target::discard).
    pub(super) fn discard_tables(&self, fence: Fence) -> Result<()> {
        let (operation, tables) = {
            let txn = self.catalog().read()?;
            let operation = self.standing(&txn, fence)?;
            (operation, self.target_records().hidden_tables(&txn, fence.operation)?)
        };
        let state = operation.map(|operation| operation.state);
        if state == Some(TargetOperationState::Published) {
            return Err(published());
        }
        for hidden in tables.iter().filter(|hidden| hidden.complete) {
            self.seal_discarded(fence, hidden)?;
        }
        let mut txn = self.write_catalog()?;
        let mut operation = match self.standing(&txn, fence)? {
            Some(found) => found,
            None => self.new_operation(&mut txn, fence)?,
        };
        if operation.state == TargetOperationState::Published {
            return Err(published());
        }
        if is_unfinished(operation.state) {
            for hidden in self.target_records().hidden_tables(&txn, fence.operation)? {
                let name = &hidden.plan.name;
                self.target_records().remove_hidden_table(&mut txn, fence.operation, name)?;
            }
            let owned = self.catalog().generations_owned(&txn, fence.operation)?;
            self.mark_garbage(&mut txn, owned)?;
        }
        operation.epoch = fence.epoch;
        operation.state = TargetOperationState::Discarded;
        self.target_records().put_operation(&mut txn, fence.operation, &operation)?;
        failpoint::hit("target.discard.before_commit");
        txn.commit()?;
        failpoint::hit("target.discard.after_commit");
        self.tidy();
        Ok(())
    }

    /// Seals the shards of a table that is given up, so that no late chunk reaches them.
    ///
    /// A held copy that took rows in place counts as written to from here on.
    pub(super) fn seal_discarded(&self, fence: Fence, hidden: &HiddenTableRecord) -> Result<()> {
        let wanted = ShardFence::sealed(hidden.txn, fence.epoch);
        for generation in &hidden.generations {
            let in_place = matches!(hidden.base, HiddenBase::InPlace { .. });
            let shard = match self.open_shard(*generation) {
                // A shard that somebody deleted takes no rows.
                Err(error) if error.kind() == Kind::Broken && !in_place => continue,
                opened => opened?,
            };
            match self.claim_shard(fence, hidden, &shard, wanted) {
                // A full disk takes no late chunk either, and once there is room again, a shard
                // that nothing names: whoever writes to it looks for its name first.
                Err(error) if error.kind() == Kind::Blocked && !in_place => continue,
                claimed => claimed?,
            }
            if in_place {
                let mut txn = self.write_shard(&shard)?;
                let mut meta = shard.meta(&txn)?;
                let mark = shard.mark(&txn)?.unwrap_or_default();
                let took_rows = mark != Mark { ranges: mark.ranges.clone(), ..Mark::default() };
                if took_rows && meta.user_writes == 0 {
                    meta.user_writes = 1;
                    shard.put_meta(&mut txn, &meta)?;
                    txn.commit()?;
                }
            }
        }
        Ok(())
    }
}

/// The record that the name of a hidden table will have.
fn published_record(
    database: &DatabaseRecord,
    fence: Fence,
    hidden: &HiddenTableRecord,
    how: Publish,
    id: TableId,
) -> TableRecord {
    let plan = &hidden.plan;
    let shards = plan.shards.iter().cloned().zip(hidden.generations.iter().copied());
    let shards = shards.map(|(range, generation)| ShardRecord { range, generation });
    TableRecord {
        id,
        digest_id: plan.digest_id,
        schema: plan.schema.clone(),
        shards: shards.collect(),
        base_position: database.next_cut(),
        created_by: Some(fence.operation),
        copy: Some(CopyRecord {
            origin: plan.origin.clone(),
            held: how == Publish::Held,
            altered: false,
        }),
    }
}

/// Whether the copy still has the shards that the hidden table was made of.
fn stands_on(found: &TableRecord, hidden: &HiddenTableRecord) -> bool {
    let base = match &hidden.base {
        HiddenBase::Empty => return true,
        HiddenBase::Copied { generations, .. } | HiddenBase::Projected { generations, .. } => {
            generations
        }
        HiddenBase::InPlace { .. } => &hidden.generations,
    };
    found.shards.iter().map(|shard| &shard.generation).eq(base)
}

fn published() -> Error {
    let message = "it has published its tables, which is the point of no return; drop them instead";
    Error::new(Kind::Usage, message)
}
