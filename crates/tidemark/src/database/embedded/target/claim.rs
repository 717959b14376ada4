//! Raising the fences of shards: takeover, seal and discard.

use super::{TargetOperationState, discarded, fenced, unprepared};
use crate::database::embedded::record::{HiddenBase, HiddenTableRecord, ShardFence};
use crate::database::embedded::{EmbeddedDatabase, Shard};
use crate::database::{Fence, Mark};
use crate::error::{Error, Kind, Result};
use crate::failpoint;

impl EmbeddedDatabase {
    /// Raises the fence of every shard of a hidden table; nothing is written where it stands already.
    ///
    /// A crash leaves some shards claimed; the call may be repeated.
    ///
    /// # Errors
    /// [`Kind::Fenced`] at the first shard that a newer epoch or a later operation holds.
    pub(super) fn claim_shards(
        &self,
        fence: Fence,
        hidden: &HiddenTableRecord,
        wanted: ShardFence,
    ) -> Result<()> {
        for generation in &hidden.generations {
            self.claim_shard(fence, hidden, &*self.open_shard(*generation)?, wanted)?;
        }
        Ok(())
    }

    /// Waits until nobody writes to the shards that [`claim_shards`](Self::claim_shards) would
    /// write to.
    ///
    /// # Errors
    /// [`Kind::Held`], naming the process that has kept one locked for too long.
    pub(super) fn await_writers(&self, fence: Fence, hidden: &HiddenTableRecord) -> Result<()> {
        let wanted = ShardFence::open(hidden.txn, fence.epoch);
        for generation in &hidden.generations {
            let shard = self.open_shard(*generation)?;
            if shard.meta(&*shard.read()?)?.fence != wanted {
                drop(self.write_shard(&shard)?);
            }
        }
        Ok(())
    }

    /// Raises the fence of one shard.
    pub(super) fn claim_shard(
        &self,
        fence: Fence,
        hidden: &HiddenTableRecord,
        shard: &Shard,
        wanted: ShardFence,
    ) -> Result<()> {
        if shard.meta(&*shard.read()?)?.fence == wanted {
            return Ok(());
        }
        let mut txn = self.write_shard(shard)?;
        let mut meta = shard.meta(&txn)?;
        let current = meta.fence;
        let is_ours = (current.txn, current.epoch) == (wanted.txn, wanted.epoch);
        if current == wanted || (is_ours && current.sealed) {
            // Preparing again does not open what the same epoch sealed.
            return Ok(());
        }
        if current > wanted {
            return Err(fenced(fence, current));
        }
        if current.txn != wanted.txn && hidden.base != HiddenBase::Empty {
            // The ranges still say what the shard holds; the position was another operation's.
            let ranges = shard.mark(&txn)?.map(|mark| mark.ranges).unwrap_or_default();
            shard.put_mark(&mut txn, Some(&Mark { ranges, ..Mark::default() }))?;
        }
        meta.fence = wanted;
        shard.put_meta(&mut txn, &meta)?;
        failpoint::hit("target.claim.before_commit");
        txn.commit()?;
        failpoint::hit("target.claim.after_commit");
        Ok(())
    }

    /// See [`Target::seal`](crate::database::Target::seal).
    pub(super) fn seal_shards(&self, fence: Fence) -> Result<()> {
        let (operation, tables) = {
            let txn = self.catalog().read()?;
            let operation = self.standing(&txn, fence)?.ok_or_else(unprepared)?;
            (operation, self.target_records().hidden_tables(&txn, fence.operation)?)
        };
        match operation.state {
            TargetOperationState::Open | TargetOperationState::Sealed => {}
            TargetOperationState::Published => return Ok(()),
            TargetOperationState::Discarded => return Err(discarded()),
        }
        for hidden in &tables {
            if !hidden.complete {
                let message = format!(
                    "table `{}` is not completely prepared; prepare again",
                    hidden.plan.name
                );
                return Err(Error::new(Kind::Usage, message));
            }
            self.claim_shards(fence, hidden, ShardFence::sealed(hidden.txn, fence.epoch))?;
        }
        let mut txn = self.write_catalog()?;
        let mut operation = self.standing(&txn, fence)?.ok_or_else(unprepared)?;
        if !super::is_unfinished(operation.state) {
            // Another call of the same epoch was faster.
            return Ok(());
        }
        operation.epoch = fence.epoch;
        operation.state = TargetOperationState::Sealed;
        self.target_records().put_operation(&mut txn, fence.operation, &operation)?;
        failpoint::hit("target.seal.before_commit");
        txn.commit()?;
        failpoint::hit("target.seal.after_commit");
        Ok(())
    }
}
