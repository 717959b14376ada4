//! Reserving names and making hidden tables.

use std::collections::HashMap;

use super::{TargetOperationState, discarded};
use crate::database::embedded::EmbeddedDatabase;
use crate::database::embedded::record::{
    GenerationNumber, GenerationRecord, HiddenBase, HiddenTableRecord, ShardFence, TableRecord,
    TargetOperationRecord,
};
use crate::database::{Disposition, Fence, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{TableId, TableName, Txn};
use crate::lmdb::WriteTxn;
use crate::row::KeyRange;

impl EmbeddedDatabase {
    /// See [`Target::prepare`](crate::database::Target::prepare).
    pub(super) fn prepare_tables(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        let (operation, known) = {
            let txn = self.catalog().read()?;
            let known = self.target_records().hidden_tables(&txn, fence.operation)?;
            (self.standing(&txn, fence)?, known)
        };
        match operation.map(|operation| operation.state) {
            Some(TargetOperationState::Published) => return Ok(()),
            Some(TargetOperationState::Discarded) => return Err(discarded()),
            Some(TargetOperationState::Open | TargetOperationState::Sealed) | None => {}
        }
        // A takeover: the shards first. One that is locked by a frozen holder is met before the
        // first fence is raised, so that the holder is as it was should it wake.
        for hidden in known.iter().filter(|hidden| hidden.complete) {
            self.await_writers(fence, hidden)?;
        }
        for hidden in known.iter().filter(|hidden| hidden.complete) {
            self.claim_shards(fence, hidden, ShardFence::open(hidden.txn, fence.epoch))?;
        }
        failpoint::hit("target.prepare.after_takeover");
        // Publishing looks again, so a write that comes after this is not lost.
        let is_new = |plan: &&TargetTable| known.iter().all(|known| known.plan.name != plan.name);
        let access = self.pass_shared()?;
        let untouched = self.find_untouched_copies(tables.iter().filter(is_new))?;
        drop(access);
        let hidden = self.reserve(fence, tables, &untouched)?;
        if self.complete(fence, &hidden)? {
            self.record_complete(fence)?;
        }
        Ok(())
    }

    /// The copies that are to be rolled forward or replaced, as they are while the caller is in the gate.
    ///
    /// Looks into every shard, so it is called before the catalog is locked.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] for one that somebody wrote to.
    pub(super) fn find_untouched_copies<'t>(
        &self,
        plans: impl IntoIterator<Item = &'t TargetTable>,
    ) -> Result<HashMap<TableName, TableRecord>> {
        let mut untouched = HashMap::new();
        for plan in plans {
            match plan.disposition {
                Disposition::RollForward | Disposition::ReplaceCopy { .. } => {}
                Disposition::Fresh | Disposition::Replace => continue,
            }
            let record = self.catalog().table(&*self.catalog().read()?, &plan.name)?;
            let Some(record) = record else { continue };
            if self.is_written_to(&record)? {
                return Err(written_to(&plan.name));
            }
            untouched.insert(plan.name.clone(), record);
        }
        Ok(untouched)
    }

    /// Records the operation, its hidden tables and its reservations, in one transaction.
    ///
    /// Gives all hidden tables that the operation has then.
    pub(super) fn reserve(
        &self,
        fence: Fence,
        tables: &[TargetTable],
        untouched: &HashMap<TableName, TableRecord>,
    ) -> Result<Vec<HiddenTableRecord>> {
        let records = self.target_records();
        let mut txn = self.write_catalog()?;
        let mut operation = match self.standing(&txn, fence)? {
            Some(found) => found,
            None => self.new_operation(&mut txn, fence)?,
        };
        if fence.epoch > operation.epoch {
            operation.epoch = fence.epoch;
            operation.state = TargetOperationState::Open;
        }
        for plan in tables {
            match records.hidden_table(&txn, fence.operation, &plan.name)? {
                Some(known) if known.plan == *plan => {}
                Some(_) => {
                    let message = format!(
                        "table `{}` was prepared differently before; carry on with that plan, or \
                         cancel the operation and start anew",
                        plan.name
                    );
                    return Err(Error::new(Kind::Usage, message));
                }
                None if operation.state == TargetOperationState::Sealed => {
                    let message =
                        format!("table `{}` comes too late: the operation is sealed", plan.name);
                    return Err(Error::new(Kind::Usage, message));
                }
                None => {
                    let hidden =
                        self.new_hidden_table(&mut txn, fence, operation.txn, plan, untouched)?;
                    records.put_hidden_table(&mut txn, fence.operation, &hidden)?;
                }
            }
        }
        records.put_operation(&mut txn, fence.operation, &operation)?;
        let hidden = records.hidden_tables(&txn, fence.operation)?;
        failpoint::hit("target.prepare.before_reserve_commit");
        txn.commit()?;
        failpoint::hit("target.prepare.after_reserve_commit");
        Ok(hidden)
    }

    /// The record of an operation that comes for the first time, with its fencing number.
    pub(super) fn new_operation(
        &self,
        txn: &mut WriteTxn<'_>,
        fence: Fence,
    ) -> Result<TargetOperationRecord> {
        let mut database = self.catalog().database(txn)?;
        let number = Txn(database.next_txn);
        database.next_txn += 1;
        self.catalog().put_database(txn, &database)?;
        let state = TargetOperationState::Open;
        Ok(TargetOperationRecord { txn: number, epoch: fence.epoch, state })
    }

    /// Checks that the plan may have its name, and gives its shards their generations.
    fn new_hidden_table(
        &self,
        txn: &mut WriteTxn<'_>,
        fence: Fence,
        number: Txn,
        plan: &TargetTable,
        untouched: &HashMap<TableName, TableRecord>,
    ) -> Result<HiddenTableRecord> {
        let name = &plan.name;
        self.refuse_reserved(txn, name)?;
        check_cut(plan)?;
        let found = self.catalog().table(txn, name)?;
        let base = match (plan.disposition, found) {
            (Disposition::Replace, _) | (Disposition::Fresh, None) => HiddenBase::Empty,
            (Disposition::Fresh, Some(found)) => return Err(exists(name, &found)),
            (Disposition::ReplaceCopy { table }, found) => {
                check_replaced(name, table, found.as_ref(), untouched.get(name))?;
                HiddenBase::Empty
            }
            (Disposition::RollForward, found) => base_of(plan, found, untouched.get(name))?,
        };
        let generations = match &base {
            HiddenBase::Empty | HiddenBase::Copied { .. } | HiddenBase::Projected { .. } => {
                let owned = GenerationRecord::Owned { operation: fence.operation };
                self.allocate_generations(txn, plan.shards.len() as u32, &owned)?
            }
            HiddenBase::InPlace { .. } => {
                let held = untouched.get(name).into_iter().flat_map(|copy| &copy.shards);
                held.map(|shard| shard.generation).collect()
            }
        };
        Ok(HiddenTableRecord {
            txn: number,
            plan: plan.clone(),
            generations,
            base,
            complete: false,
        })
    }

    /// Refuses a table name that an operation will publish under, to whoever would make, drop
    /// or reshape what stands there; that lasts as long as the transaction.
    ///
    /// # Errors
    /// [`Kind::InTheWay`], naming the operation.
    pub(in crate::database::embedded) fn refuse_reserved(
        &self,
        txn: &heed::RoTxn<'_>,
        name: &TableName,
    ) -> Result<()> {
        let Some(by) = self.target_records().reserved_by(txn, name)? else { return Ok(()) };
        let message = format!(
            "the table name `{name}` is reserved by operation {by}, which restores under it; wait \
             for its end with `tidemark operation wait {by}`, or give it up with `tidemark \
             operation cancel {by}`"
        );
        Err(Error::new(Kind::InTheWay, message))
    }

    /// Makes and claims the shards of all hidden tables; whether any was not recorded as complete.
    pub(super) fn complete(&self, fence: Fence, hidden: &[HiddenTableRecord]) -> Result<bool> {
        for hidden in hidden {
            let wanted = ShardFence::open(hidden.txn, fence.epoch);
            if hidden.complete {
                // One that another call of this operation completed in the meantime.
                self.claim_shards(fence, hidden, wanted)?;
                continue;
            }
            for (at, generation) in hidden.generations.iter().enumerate() {
                let shard = match &hidden.base {
                    HiddenBase::Empty => self.create_shard(*generation)?,
                    HiddenBase::Projected { generations, .. } => {
                        let base = self.open_base(&hidden.plan.name, generations[at])?;
                        let new = self.create_shard(*generation)?;
                        self.claim_shard(fence, hidden, &new, wanted)?;
                        self.fill_projected(fence, hidden, &base, &new)?;
                        new
                    }
                    HiddenBase::InPlace { .. } => self.open_shard(*generation)?,
                    HiddenBase::Copied { generations, .. } => {
                        let base = self.open_base(&hidden.plan.name, generations[at])?;
                        let copy = self.create_shard_copy(*generation, &base)?;
                        if copy.meta(&*copy.read()?)?.user_writes > 0 {
                            return Err(written_to(&hidden.plan.name));
                        }
                        copy
                    }
                };
                self.claim_shard(fence, hidden, &shard, wanted)?;
                failpoint::hit("target.prepare.after_shard");
            }
        }
        Ok(hidden.iter().any(|hidden| !hidden.complete))
    }

    /// A shard of the copy that is rolled forward.
    fn open_base(
        &self,
        name: &TableName,
        generation: GenerationNumber,
    ) -> Result<std::sync::Arc<super::Shard>> {
        let state = self.catalog().generation(&*self.catalog().read()?, generation)?;
        match state {
            Some(GenerationRecord::Live) => self.open_shard(generation),
            _ => Err(gone(name)),
        }
    }

    /// Records that every hidden table of the operation takes rows.
    fn record_complete(&self, fence: Fence) -> Result<()> {
        let records = self.target_records();
        let mut txn = self.write_catalog()?;
        if self.standing(&txn, fence)?.is_none_or(|found| !super::is_unfinished(found.state)) {
            return Err(discarded());
        }
        for mut hidden in records.hidden_tables(&txn, fence.operation)? {
            hidden.complete = true;
            records.put_hidden_table(&mut txn, fence.operation, &hidden)?;
        }
        failpoint::hit("target.prepare.before_complete_commit");
        txn.commit()?;
        failpoint::hit("target.prepare.after_complete_commit");
        Ok(())
    }
}

/// Refuses shards that do not cover all keys in order.
fn check_cut(plan: &TargetTable) -> Result<()> {
    if !KeyRange::cover_all(plan.shards.iter()) {
        let message = format!("the shards of `{}` do not cover every key once", plan.name);
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(())
}

/// What a copy that stands under the name gives to be rolled forward.
fn base_of(
    plan: &TargetTable,
    found: Option<TableRecord>,
    untouched: Option<&TableRecord>,
) -> Result<HiddenBase> {
    let name = &plan.name;
    let in_the_way = |what: &str| Err(Error::new(Kind::InTheWay, format!("table `{name}` {what}")));
    let Some(record) = found else {
        return in_the_way("does not exist, so there is no copy to roll forward");
    };
    let Some(copy) = &record.copy else {
        return in_the_way("is no restored copy; only a copy can be rolled forward");
    };
    if untouched != Some(&record) {
        return in_the_way("was changed while it was being looked at; try again");
    }
    if record.digest_id != plan.digest_id {
        return in_the_way("is a copy of another table");
    }
    if !record.shards.iter().map(|shard| &shard.range).eq(&plan.shards) {
        let message = format!(
            "table `{name}` is cut into {} shards, the plan has {} others; a copy that is rolled \
             forward keeps its shards",
            record.shards.len(),
            plan.shards.len()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let (table, is_held) = (record.id, copy.held);
    let generations = || record.shards.iter().map(|shard| shard.generation).collect();
    Ok(if !plan.schema.has_all_of(&record.schema) {
        // In place, neither a crash nor giving up could be undone: the column is in no backup's
        // changes.
        HiddenBase::Projected { table, generations: generations() }
    } else if is_held {
        HiddenBase::InPlace { table }
    } else {
        HiddenBase::Copied { table, generations: generations() }
    })
}

/// Refuses to replace another table than the copy that was planned with, as it was then.
///
/// # Errors
/// [`Kind::InTheWay`].
pub(super) fn check_replaced(
    name: &TableName,
    copy: TableId,
    found: Option<&TableRecord>,
    untouched: Option<&TableRecord>,
) -> Result<()> {
    let stands = found.is_some_and(|found| found.id == copy && found.copy.is_some());
    if stands && found == untouched { Ok(()) } else { Err(gone(name)) }
}

pub(super) fn exists(name: &TableName, found: &TableRecord) -> Error {
    let what = if found.is_visible() { "table" } else { "a held copy" };
    let message =
        format!("{what} `{name}` exists already; restore under another name, or replace it");
    Error::new(Kind::InTheWay, message)
}

pub(super) fn written_to(name: &TableName) -> Error {
    let message = format!(
        "the copy `{name}` was written to since it was restored; moving it on would lose that, so \
         restore it anew or under another name"
    );
    Error::new(Kind::InTheWay, message)
}

pub(super) fn gone(name: &TableName) -> Error {
    let message = format!("the copy `{name}` was dropped or replaced meanwhile");
    Error::new(Kind::InTheWay, message)
}
