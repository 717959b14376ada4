//! Reading a hidden shard back, for the proof.

use std::sync::Arc;

use crate::database::embedded::{RowCursor, Shard, ShardView};
use crate::error::Result;
use crate::row::{KeyRange, RowBatch, RowStream};

/// All rows of a shard as its last commit left them.
///
/// The stream owns its view; it may be kept as long as reading takes.
pub(super) fn rows(shard: &Arc<Shard>) -> Result<Box<dyn RowStream>> {
    Ok(Box::new(ShardRows { view: shard.view()?, cursor: RowCursor::new(&KeyRange::ALL) }))
}

struct ShardRows {
    view: ShardView,
    cursor: RowCursor,
}

impl RowStream for ShardRows {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        self.cursor.read_rows(&self.view, batch)
    }
}
