//! What a shard knows of itself, changed in the transaction that changes its rows.
//!
//! Layout, version 1; integers little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | version |
//! | 1 | 1 | version of the rows' payloads |
//! | 2 | 17 | [`ShardFence`] |
//! | 19 | 8 | sequence number of the last redo record applied, `u64` |
//! | 27 | 8 | transactions of users since the rows were put there by an operation, `u64` |
//! | 35 | 24 | [`Digest`] of the rows |
//! | 59 | 8 | key and payload bytes of the rows, `u64` |

use super::ShardFence;
use crate::error::{Error, Kind, Result};
use crate::row::Digest;
use crate::row::payload::PAYLOAD_VERSION;

const VERSION: u8 = 1;

/// One per shard, under the key `shard` of its database `meta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardMeta {
    /// Who may write as an operation.
    pub(crate) fence: ShardFence,
    /// Last redo record applied: an older one is not applied again.
    pub(crate) redo_applied: u64,
    /// Transactions of users; 0 as long as the rows are what an operation put there.
    pub(crate) user_writes: u64,
    /// Number and hash of the rows.
    pub(crate) digest: Digest,
    /// Key and payload bytes of the rows.
    pub(crate) row_bytes: u64,
}

impl ShardMeta {
    /// Bytes of the stored form.
    pub(crate) const LEN: usize = 67;

    /// The stored form.
    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = VERSION;
        out[1] = PAYLOAD_VERSION;
        out[2..19].copy_from_slice(&self.fence.encode());
        out[19..27].copy_from_slice(&self.redo_applied.to_le_bytes());
        out[27..35].copy_from_slice(&self.user_writes.to_le_bytes());
        out[35..59].copy_from_slice(&self.digest.to_bytes());
        out[59..].copy_from_slice(&self.row_bytes.to_le_bytes());
        out
    }

    /// Reads a stored form.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another version, [`Kind::Broken`] for malformed bytes.
    pub(crate) fn decode(stored: &[u8]) -> Result<ShardMeta> {
        let Ok(stored) = <&[u8; Self::LEN]>::try_from(stored) else {
            let message =
                format!("a shard's record has {} bytes, expected {}", stored.len(), Self::LEN);
            return Err(Error::new(Kind::Broken, message));
        };
        if stored[0] != VERSION || stored[1] != PAYLOAD_VERSION {
            let message = format!(
                "a shard has version {} with rows of version {}, this program reads {VERSION} with \
                 {PAYLOAD_VERSION}",
                stored[0], stored[1]
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        let number = |at: usize| {
            u64::from_le_bytes(stored[at..at + 8].try_into().expect("8 bytes of a fixed layout"))
        };
        let fence = stored[2..19].try_into().expect("17 bytes of a fixed layout");
        let fence = ShardFence::decode(fence)
            .ok_or_else(|| Error::new(Kind::Broken, "a shard's fence is malformed"))?;
        let digest = stored[35..59].try_into().expect("24 bytes of a fixed layout");
        Ok(ShardMeta {
            fence,
            redo_applied: number(19),
            user_writes: number(27),
            digest: Digest::from_bytes(digest),
            row_bytes: number(59),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Txn};

    fn meta() -> ShardMeta {
        ShardMeta {
            fence: ShardFence::sealed(Txn(1), Epoch(7)),
            redo_applied: 2,
            user_writes: 3,
            digest: Digest { rows: 4, sum: u128::MAX - 5 },
            row_bytes: 6,
        }
    }

    #[test]
    fn a_shards_record_reads_back() {
        assert_eq!(ShardMeta::decode(&meta().encode()).unwrap(), meta());
    }

    #[test]
    fn every_truncated_longer_or_newer_record_is_refused() {
        let stored = meta().encode();
        for len in 0..stored.len() {
            assert_eq!(ShardMeta::decode(&stored[..len]).unwrap_err().kind(), Kind::Broken);
        }
        let longer = [&stored[..], &[0]].concat();
        assert_eq!(ShardMeta::decode(&longer).unwrap_err().kind(), Kind::Broken);
        for at in 0..2 {
            let mut newer = stored;
            newer[at] += 1;
            assert_eq!(ShardMeta::decode(&newer).unwrap_err().kind(), Kind::Unsupported);
        }
    }
}
