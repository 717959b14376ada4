//! Filling a shard with rows in key order, fast.

use std::sync::Arc;

use super::EmbeddedDatabase;
use super::record::ShardMeta;
use super::shard::Shard;
use crate::error::Result;
use crate::ids::TableId;
use crate::row::digest::RowHasher;
use crate::row::{ChangeOp, RowBatch, RowRef};

/// Key and payload bytes after which a transaction is committed: what it dirties stays in
/// memory until then. One row may exceed it.
pub(crate) const CHUNK_BYTES_MAX: u64 = 8 << 20;

/// Appends rows to a shard that nobody else writes, a chunk per transaction.
pub(crate) struct ShardBuilder<'d> {
    database: &'d EmbeddedDatabase,
    shard: Arc<Shard>,
    hasher: RowHasher,
    chunk: RowBatch,
}

impl<'d> ShardBuilder<'d> {
    /// A builder that goes on behind the rows which are there.
    pub(crate) fn new(
        database: &'d EmbeddedDatabase,
        shard: Arc<Shard>,
        digest_id: TableId,
    ) -> ShardBuilder<'d> {
        ShardBuilder { database, shard, hasher: RowHasher::new(digest_id), chunk: RowBatch::new() }
    }

    /// Adds a row behind all others.
    ///
    /// # Errors
    /// [`Kind::Broken`](crate::Kind::Broken) when its key is not greater than the last one;
    /// [`Kind::Usage`](crate::Kind::Usage) when it is too long. Told when its chunk is written.
    pub(crate) fn push(&mut self, key: &[u8], payload: &[u8]) -> Result<()> {
        self.chunk.push(RowRef { key, op: ChangeOp::Upsert, payload });
        if self.chunk.byte_count() >= CHUNK_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Makes the last rows durable, and tells what the shard holds.
    pub(crate) fn finish(mut self) -> Result<ShardMeta> {
        self.flush()?;
        self.shard.meta(&*self.shard.read()?)
    }

    fn flush(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut txn = self.database.write_shard(&self.shard)?;
        self.shard.apply(&mut txn, &self.chunk, &mut self.hasher, None, None)?;
        txn.commit()?;
        self.chunk.clear();
        Ok(())
    }
}
