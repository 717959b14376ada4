//! A target that does what another one does, and tells a test about every chunk.

use std::fmt;
use std::sync::Arc;

use tidemark::Result;
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::database::{
    ExistingTable, Fence, Mark, Publish, Target, TargetLimits, TargetShard, TargetTable,
};
use tidemark::ids::{TableName, Txn};
use tidemark::row::{RowBatch, RowStream};

/// Called around every chunk: with the chunk, and with what applies it.
pub type OnApply = Box<dyn Fn(&TargetShard, &RowBatch, &mut dyn FnMut()) + Send + Sync>;

pub struct Watched {
    pub inner: Arc<EmbeddedDatabase>,
    pub on_apply: OnApply,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Target for Watched {
    fn identity(&self) -> Result<String> {
        Target::identity(&*self.inner)
    }

    fn allocate_txn(&self) -> Result<Txn> {
        Target::allocate_txn(&*self.inner)
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        self.inner.existing(name)
    }

    fn limits(&self) -> Result<TargetLimits> {
        self.inner.limits()
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        self.inner.prepare(fence, tables)
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        self.inner.mark(shard)
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let mut applied = Ok(());
        (self.on_apply)(shard, rows, &mut || applied = self.inner.apply(fence, shard, rows, mark));
        applied
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        self.inner.seal(fence)
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        self.inner.read_back(shard)
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        self.inner.publish(fence, how)
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        self.inner.discard(fence)
    }
}
