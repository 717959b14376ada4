//! Copying a shard of a copy that is moved on, without the columns that went since.
//!
//! A source that drops a column writes every row, and none of them is a change of its own: the
//! increment holds nothing of it. So the rows lose the column here.

use std::sync::Arc;

use super::fenced;
use super::prepare::written_to;
use crate::database::embedded::build::CHUNK_BYTES_MAX;
use crate::database::embedded::record::{HiddenTableRecord, ShardFence};
use crate::database::embedded::{EmbeddedDatabase, RowCursor, Shard};
use crate::database::{Fence, Mark};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::lmdb::LmdbContext;
use crate::row::digest::RowHasher;
use crate::row::{RowBatch, RowCodec, RowRef};

impl EmbeddedDatabase {
    /// Appends to `new` the rows of `base` that it lacks, as the plan's schema has them, and
    /// accounts them in its mark; each chunk is one transaction behind the fence.
    ///
    /// A crash leaves the first rows; calling again goes on behind them. That is right as long
    /// as nobody writes to `base`, which is looked at each time.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when `base` was written to; [`Kind::Fenced`] when a newer holder took
    /// `new` over; [`Kind::Transient`] when another call of the same holder fills it.
    pub(super) fn fill_projected(
        &self,
        fence: Fence,
        hidden: &HiddenTableRecord,
        base: &Arc<Shard>,
        new: &Shard,
    ) -> Result<()> {
        let view = base.view()?;
        if view.meta()?.user_writes > 0 {
            return Err(written_to(&hidden.plan.name));
        }
        let wanted = ShardFence::open(hidden.txn, fence.epoch);
        let codec = RowCodec::new(&hidden.plan.schema);
        let mut hasher = RowHasher::new(hidden.plan.digest_id);
        let mut behind = last_key(new)?;
        let mut cursor = RowCursor::behind(behind.clone());
        let (mut read, mut chunk, mut payload) = (RowBatch::new(), RowBatch::new(), Vec::new());
        let mut more = true;
        while more {
            chunk.clear();
            while more && chunk.byte_count() < CHUNK_BYTES_MAX {
                read.clear();
                more = cursor.read_rows(&view, &mut read)?;
                for row in read.iter() {
                    payload.clear();
                    codec.project(row.payload, &mut payload)?;
                    chunk.push(RowRef { payload: &payload, ..row });
                }
            }
            let Some(last) = chunk.last().map(|row| row.key.to_vec()) else { break };
            let mut txn = self.write_shard(new)?;
            let current = new.meta(&txn)?.fence;
            if current != wanted {
                return Err(fenced(fence, current));
            }
            let stored = new.rows().last(&txn).during(|| new.doing("read"))?;
            let mut mark = new.mark(&txn)?.unwrap_or_default();
            let took_changes = mark != Mark { ranges: mark.ranges.clone(), ..Mark::default() };
            if took_changes || stored.map(|(key, _)| key) != behind.as_deref() {
                let message = "another call of the same holder copies its rows; try again";
                return Err(Error::new(Kind::Transient, message));
            }
            new.apply(&mut txn, &chunk, &mut hasher, None, Some(&mut mark))?;
            new.put_mark(&mut txn, Some(&mark))?;
            failpoint::hit("target.project.before_commit");
            txn.commit()?;
            failpoint::hit("target.project.after_commit");
            behind = Some(last);
        }
        Ok(())
    }
}

fn last_key(shard: &Shard) -> Result<Option<Vec<u8>>> {
    let last = shard.read()?;
    let last = shard.rows().last(&last).during(|| shard.doing("read"))?;
    Ok(last.map(|(key, _)| key.to_vec()))
}
