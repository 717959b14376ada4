//! A target around another one: what it does not say itself, the inner one does.

use std::fmt::Debug;

use super::{
    ChangesMax, ExistingTable, Fence, Mark, Publish, Target, TargetLimits, TargetShard, TargetTable,
};
use crate::error::Result;
use crate::ids::{OperationId, TableName, Txn};
use crate::row::{RowBatch, RowStream};

/// A [`Target`] around another one, to count, to watch or to disturb what is asked of it.
///
/// Whoever implements it is a [`Target`]; each method hands on to [`inner`](Self::inner)
/// unless it is written anew, so that no call is forgotten. What a call promises is written
/// at [`Target`]; a layer keeps it. Only [`Target::read_back_table`] is not handed on, so that
/// every row that is read back goes through [`read_back`](Self::read_back).
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use tidemark::Result;
/// use tidemark::database::{Fence, Mark, Target, TargetLayer, TargetShard};
/// use tidemark::row::RowBatch;
///
/// /// Counts the rows that a restore hands over.
/// #[derive(Debug)]
/// struct Counted {
///     inner: Arc<dyn Target>,
///     rows: AtomicU64,
/// }
///
/// impl TargetLayer for Counted {
///     fn inner(&self) -> &dyn Target {
///         &*self.inner
///     }
///
///     fn apply(
///         &self,
///         fence: Fence,
///         shard: &TargetShard,
///         rows: &RowBatch,
///         mark: &mut Mark,
///     ) -> Result<()> {
///         self.rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
///         self.inner.apply(fence, shard, rows, mark)
///     }
/// }
/// ```
pub trait TargetLayer: Debug + Send + Sync {
    /// The target that does the work.
    fn inner(&self) -> &dyn Target;

    /// See [`Target::identity`].
    fn identity(&self) -> Result<String> {
        self.inner().identity()
    }

    /// See [`Target::allocate_txn`].
    fn allocate_txn(&self) -> Result<Txn> {
        self.inner().allocate_txn()
    }

    /// See [`Target::existing`].
    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        self.inner().existing(name)
    }

    /// See [`Target::check_unreserved`].
    fn check_unreserved(&self, name: &TableName) -> Result<()> {
        self.inner().check_unreserved(name)
    }

    /// See [`Target::limits`].
    fn limits(&self) -> Result<TargetLimits> {
        self.inner().limits()
    }

    /// See [`Target::changes_max`].
    fn changes_max(&self) -> ChangesMax {
        self.inner().changes_max()
    }

    /// See [`Target::prepare`].
    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        self.inner().prepare(fence, tables)
    }

    /// See [`Target::mark`].
    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        self.inner().mark(shard)
    }

    /// See [`Target::apply`].
    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        self.inner().apply(fence, shard, rows, mark)
    }

    /// See [`Target::seal`].
    fn seal(&self, fence: Fence) -> Result<()> {
        self.inner().seal(fence)
    }

    /// See [`Target::read_back`].
    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        self.inner().read_back(shard)
    }

    /// See [`Target::notices`].
    fn notices(&self, operation: OperationId) -> Result<Vec<String>> {
        self.inner().notices(operation)
    }

    /// See [`Target::publish`].
    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        self.inner().publish(fence, how)
    }

    /// See [`Target::make_room`].
    fn make_room(&self) -> Result<()> {
        self.inner().make_room()
    }

    /// See [`Target::discard`].
    fn discard(&self, fence: Fence) -> Result<()> {
        self.inner().discard(fence)
    }
}

impl<L: TargetLayer> Target for L {
    fn identity(&self) -> Result<String> {
        TargetLayer::identity(self)
    }

    fn allocate_txn(&self) -> Result<Txn> {
        TargetLayer::allocate_txn(self)
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        TargetLayer::existing(self, name)
    }

    fn check_unreserved(&self, name: &TableName) -> Result<()> {
        TargetLayer::check_unreserved(self, name)
    }

    fn limits(&self) -> Result<TargetLimits> {
        TargetLayer::limits(self)
    }

    fn changes_max(&self) -> ChangesMax {
        TargetLayer::changes_max(self)
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        TargetLayer::prepare(self, fence, tables)
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        TargetLayer::mark(self, shard)
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        TargetLayer::apply(self, fence, shard, rows, mark)
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        TargetLayer::seal(self, fence)
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        TargetLayer::read_back(self, shard)
    }

    fn notices(&self, operation: OperationId) -> Result<Vec<String>> {
        TargetLayer::notices(self, operation)
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        TargetLayer::publish(self, fence, how)
    }

    fn make_room(&self) -> Result<()> {
        TargetLayer::make_room(self)
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        TargetLayer::discard(self, fence)
    }
}
