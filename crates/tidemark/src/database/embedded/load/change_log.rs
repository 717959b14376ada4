//! Notes in a shard that is being built which keys differ from the shard it replaces.

use std::sync::Arc;

use crate::database::embedded::{EmbeddedDatabase, Shard};
use crate::error::Result;
use crate::ids::Position;
use crate::lmdb::LmdbContext;

/// Key bytes that wait for their transaction.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Stamps keys in the change log of a shard that nobody else sees yet.
pub(super) struct ChangeLog<'d> {
    database: &'d EmbeddedDatabase,
    shard: Arc<Shard>,
    /// First cut that will see the changes; `None` when nothing is captured yet.
    stamp: Option<Position>,
    /// Keys one after another, and where each of them ends.
    pending: Vec<u8>,
    ends: Vec<usize>,
}

impl<'d> ChangeLog<'d> {
    pub(super) fn new(
        database: &'d EmbeddedDatabase,
        shard: Arc<Shard>,
        stamp: Option<Position>,
    ) -> ChangeLog<'d> {
        ChangeLog { database, shard, stamp, pending: Vec::new(), ends: Vec::new() }
    }

    /// Notes that the row of `key` differs.
    pub(super) fn note(&mut self, key: &[u8]) -> Result<()> {
        if self.stamp.is_none() {
            return Ok(());
        }
        self.pending.extend_from_slice(key);
        self.ends.push(self.pending.len());
        if self.pending.len() > PENDING_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Makes the last notes durable.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let Some(stamp) = self.stamp.filter(|_| !self.ends.is_empty()) else { return Ok(()) };
        let writing = || self.shard.doing("write the changes of");
        let mut txn = self.database.write_shard(&self.shard)?;
        let mut start = 0;
        for &end in &self.ends {
            let key = &self.pending[start..end];
            self.shard.changes().put(&mut txn, key, &stamp.0.to_le_bytes()).during(writing)?;
            start = end;
        }
        txn.commit()?;
        self.pending.clear();
        self.ends.clear();
        Ok(())
    }
}
