//! A target that does what another one does, and tells a test about every chunk.

use std::fmt;
use std::sync::Arc;

use tidemark::Result;
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::database::{Fence, Mark, Target, TargetLayer, TargetShard};
use tidemark::row::RowBatch;

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

impl TargetLayer for Watched {
    fn inner(&self) -> &dyn Target {
        &*self.inner
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
}
