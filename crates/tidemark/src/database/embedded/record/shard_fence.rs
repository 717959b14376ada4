//! Who may write to a shard as an operation: part of what the shard knows of itself.
//!
//! Layout, 17 bytes inside [`ShardMeta`](super::ShardMeta); integers little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | fencing number of the operation, `u64`; 0 before any |
//! | 8 | 8 | epoch of its holder, `u64` |
//! | 16 | 1 | 1 when sealed, else 0 |
//!
//! Fences are ordered by these three in turn and only ever rise, in the shard's own
//! transactions. So whoever was frozen for a while finds out, whether the same operation
//! was taken over, or a later one works on the same shard. A sealed fence is the epoch
//! that nobody holds: rows need an equal fence that is open.

use crate::ids::{Epoch, Txn};

/// See the module. The derived order is the order in which fences follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShardFence {
    /// Fencing number of the operation: the database's counter, so a later operation has a
    /// greater one.
    pub(crate) txn: Txn,
    /// Epoch of its holder.
    pub(crate) epoch: Epoch,
    /// Whether nobody may write.
    pub(crate) sealed: bool,
}

impl ShardFence {
    /// Bytes of the stored form.
    pub(crate) const LEN: usize = 17;

    /// The fence of a holder who writes.
    pub(crate) fn open(txn: Txn, epoch: Epoch) -> ShardFence {
        ShardFence { txn, epoch, sealed: false }
    }

    /// The fence behind which nobody writes until a later epoch.
    pub(crate) fn sealed(txn: Txn, epoch: Epoch) -> ShardFence {
        ShardFence { txn, epoch, sealed: true }
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.txn.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[16] = u8::from(self.sealed);
        out
    }

    /// Reads a stored form; `None` if it is none.
    pub(crate) fn decode(stored: &[u8; Self::LEN]) -> Option<ShardFence> {
        let (txn, rest) = stored.split_first_chunk::<8>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let sealed = match rest {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        Some(ShardFence {
            txn: Txn(u64::from_le_bytes(*txn)),
            epoch: Epoch(u64::from_le_bytes(*epoch)),
            sealed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_reads_back_and_other_bytes_are_refused() {
        for fence in [
            ShardFence::default(),
            ShardFence::open(Txn(1), Epoch(u64::MAX)),
            ShardFence::sealed(Txn(u64::MAX), Epoch(1)),
        ] {
            let mut stored = fence.encode();
            assert_eq!(ShardFence::decode(&stored), Some(fence));
            stored[16] = 2;
            assert_eq!(ShardFence::decode(&stored), None);
        }
    }

    #[test]
    fn a_seal_a_takeover_and_a_later_operation_rise() {
        let order = [
            ShardFence::default(),
            ShardFence::open(Txn(1), Epoch(1)),
            ShardFence::sealed(Txn(1), Epoch(1)),
            ShardFence::open(Txn(1), Epoch(2)),
            ShardFence::open(Txn(2), Epoch(1)),
        ];
        assert!(order.is_sorted_by(|before, after| before < after));
    }
}
