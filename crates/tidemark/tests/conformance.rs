//! The conformance suite notices: each driver here breaks one promise, and is told which.

#[path = "../examples/own_driver.rs"]
#[allow(dead_code, reason = "only the example runs its `main`")]
mod own_driver;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use own_driver::OwnDatabase;
use tidemark::database::conformance::{Rows, Subject, TARGET_PROMISES, TargetSubject};
use tidemark::database::{
    Disposition, ExistingTable, Fence, Mark, Publish, Target, TargetLayer, TargetShard, TargetTable,
};
use tidemark::ids::{Epoch, OperationId, TableName, Txn};
use tidemark::row::{RowBatch, RowStream, Schema};
use tidemark::{Kind, Result};

/// What a careless driver gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    TxnStartsAgain,
    IgnoresEpoch,
    IgnoresUnclaimedEpoch,
    IgnoresSeal,
    ForgetsMark,
    StoresMarkFirst,
    TakesDoubledChunk,
    CountsTwice,
    LosesLastRow,
    ShowsHidden,
    PublishesTwiceOver,
    KeepsHeldVisible,
    DiscardsNothing,
    ReservesNothing,
    ReplacesEverything,
    OverlooksWrites,
    SkipsMissingTable,
    KeepsLostColumns,
    HidesVisible,
}

/// A promise that each fault breaks.
const FAULTS: &[(Fault, &str)] = &[
    (Fault::TxnStartsAgain, "txn_grows_and_survives_reopening"),
    (Fault::IgnoresEpoch, "a_stale_epoch_changes_nothing"),
    (Fault::IgnoresUnclaimedEpoch, "an_unclaimed_epoch_changes_nothing"),
    (Fault::IgnoresSeal, "a_sealed_shard_takes_no_rows"),
    (Fault::ForgetsMark, "prepare_is_idempotent_and_keeps_marks"),
    (Fault::StoresMarkFirst, "rows_and_mark_are_one_transaction"),
    (Fault::TakesDoubledChunk, "a_doubled_chunk_is_refused"),
    (Fault::CountsTwice, "the_digest_is_that_of_the_rows"),
    (Fault::LosesLastRow, "read_back_is_ascending_and_complete"),
    (Fault::ShowsHidden, "hidden_tables_are_invisible"),
    (Fault::PublishesTwiceOver, "publish_is_idempotent"),
    (Fault::KeepsHeldVisible, "a_held_copy_rolls_forward"),
    (Fault::DiscardsNothing, "a_discarded_operation_makes_nothing_anew"),
    (Fault::ReservesNothing, "a_reserved_name_is_refused_to_others"),
    (Fault::ReplacesEverything, "an_existing_table_is_in_the_way"),
    (Fault::OverlooksWrites, "publish_shows_all_tables"),
    (Fault::SkipsMissingTable, "a_missing_hidden_table_is_told"),
    (Fault::HidesVisible, "holding_hides_nothing_that_is_seen"),
    (Fault::KeepsLostColumns, "a_copy_loses_the_columns_that_went"),
];

/// The example's driver with one fault built in.
#[derive(Debug)]
struct Faulty {
    inner: OwnDatabase,
    fault: Fault,
    /// Tables as they were prepared, for faults that need them.
    prepared: Mutex<Vec<TargetTable>>,
    /// Fencing numbers given since the database was opened.
    txns: AtomicU64,
    /// Whether publish was called before.
    published: AtomicBool,
}

impl Faulty {
    fn new(inner: OwnDatabase, fault: Fault) -> Faulty {
        let (prepared, txns, published) = Default::default();
        Faulty { inner, fault, prepared, txns, published }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn remembered(&self) -> Vec<TargetTable> {
        self.prepared.lock().expect("no call panics").clone()
    }
}

impl TargetLayer for Faulty {
    fn inner(&self) -> &dyn Target {
        &self.inner
    }

    fn allocate_txn(&self) -> Result<Txn> {
        if self.has(Fault::TxnStartsAgain) {
            return Ok(Txn(self.txns.fetch_add(1, Relaxed)));
        }
        self.inner.allocate_txn()
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        let mut found = self.inner.existing(name)?;
        if self.has(Fault::ShowsHidden) && found.is_none() {
            found = self.remembered().into_iter().find(|plan| plan.name == *name).map(|plan| {
                ExistingTable {
                    id: plan.id,
                    digest_id: plan.digest_id,
                    schema: plan.schema,
                    shards: plan.shards,
                    rows: 0,
                    copy: None,
                }
            });
        }
        if let Some(copy) = found.as_mut().and_then(|found| found.copy.as_mut()) {
            copy.written_to &= !self.has(Fault::OverlooksWrites);
            copy.held &= !self.has(Fault::KeepsHeldVisible);
        }
        Ok(found)
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        self.prepared.lock().expect("no call panics").extend_from_slice(tables);
        let mut tables = tables.to_vec();
        if self.has(Fault::ReplacesEverything) {
            tables.iter_mut().for_each(|plan| plan.disposition = Disposition::Replace);
        }
        if self.has(Fault::KeepsLostColumns) {
            for plan in &mut tables {
                let found = self.inner.existing(&plan.name)?;
                plan.schema = found.map_or(plan.schema.clone(), |found| found.schema);
            }
        }
        if self.has(Fault::ReservesNothing) {
            return self.inner.prepare(fence, &tables).or_else(|_| {
                self.inner.discard(Fence { operation: OperationId(4711), ..fence })?;
                self.inner.prepare(fence, &tables)
            });
        }
        self.inner.prepare(fence, &tables)
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        match self.inner.mark(shard) {
            Ok(_) if self.has(Fault::ForgetsMark) => Ok(None),
            Err(_) if self.has(Fault::SkipsMissingTable) => Ok(None),
            other => other,
        }
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let result = self.inner.apply(fence, shard, rows, mark);
        let kind = result.as_ref().err().map(tidemark::Error::kind);
        match (self.fault, kind) {
            (Fault::IgnoresEpoch, Some(Kind::Fenced)) => {
                let current = (0..10).map(|epoch| Fence { epoch: Epoch(epoch), ..fence });
                current.fold(result, |result, fence| {
                    result.or_else(|_| self.inner.apply(fence, shard, rows, mark))
                })
            }
            (Fault::IgnoresUnclaimedEpoch, Some(Kind::Fenced)) => {
                self.inner.prepare(fence, &[])?;
                self.inner.apply(fence, shard, rows, mark)
            }
            (Fault::IgnoresSeal, Some(Kind::Fenced)) => {
                let later = Fence { epoch: Epoch(fence.epoch.0 + 1), ..fence };
                self.inner.prepare(later, &[])?;
                self.inner.apply(later, shard, rows, mark)
            }
            (Fault::StoresMarkFirst, Some(Kind::Broken)) => {
                self.inner.apply(fence, shard, &RowBatch::new(), mark)?;
                result
            }
            (Fault::TakesDoubledChunk, Some(Kind::Transient)) => Ok(()),
            (Fault::CountsTwice, None) => {
                mark.ranges.extend(mark.ranges.clone());
                Ok(())
            }
            _ => result,
        }
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let stream = self.inner.read_back(shard)?;
        if self.has(Fault::LosesLastRow) {
            return Ok(Box::new(Shortened(stream)));
        }
        Ok(stream)
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        if self.has(Fault::PublishesTwiceOver) && self.published.swap(true, Relaxed) {
            return Err(tidemark::Error::new(Kind::InTheWay, "the tables are there already"));
        }
        let published = self.inner.publish(fence, how);
        if self.has(Fault::HidesVisible) {
            return published.or_else(|_| self.inner.publish(fence, Publish::Visible));
        }
        published
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        if self.has(Fault::DiscardsNothing) { Ok(()) } else { self.inner.discard(fence) }
    }
}

/// A stream without the last row of each batch.
struct Shortened<'a>(Box<dyn RowStream + 'a>);

impl RowStream for Shortened<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        self.0.next_batch(batch)?;
        batch.pop();
        Ok(!batch.is_empty())
    }
}

impl Subject for Faulty {
    fn reopen(&mut self) -> Result<()> {
        self.txns = Default::default();
        Ok(())
    }

    fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()> {
        self.inner.create_table(name, schema)
    }

    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        self.inner.write(name, rows)
    }

    fn drop_table(&self, name: &TableName) -> Result<()> {
        self.inner.drop_table(name)
    }

    fn rows(&self, name: &TableName) -> Result<Option<Rows>> {
        Ok(self.inner.rows(name))
    }
}

impl TargetSubject for Faulty {
    fn target(&self) -> &dyn Target {
        self
    }
}

#[test]
fn every_fault_breaks_its_promise_by_name() {
    // The panics are expected; their traces would only hide a real one.
    std::panic::set_hook(Box::new(|_| {}));
    let told: Vec<Option<String>> = FAULTS
        .iter()
        .map(|(fault, name)| {
            let (_, promise) = TARGET_PROMISES.iter().find(|(found, _)| found == name)?;
            let mut subject = Faulty::new(OwnDatabase::new("faulty"), *fault);
            let panic = catch_unwind(AssertUnwindSafe(|| promise(&mut subject))).err()?;
            panic.downcast_ref::<String>().cloned()
        })
        .collect();
    let _ = std::panic::take_hook();
    for ((fault, name), told) in FAULTS.iter().zip(&told) {
        let opening = format!("promise `{name}` does not hold: ");
        let named = told.as_ref().is_some_and(|told| told.starts_with(&opening));
        assert!(named, "{fault:?} should break `{name}`: {told:?}");
    }
}
