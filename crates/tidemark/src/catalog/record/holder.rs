//! `holder`: who drives an operation. Renewed about every two seconds.
//!
//! Key: operation, `u64` big-endian. Value, version 1: epoch varint, process id varint,
//! boot id `u128` little-endian, end of the lease varint (boot ms).
//!
//! The holder also keeps an OS lock on a file named after operation and epoch; when its
//! process dies the kernel lets go of it, and the lease need not run out.

use crate::catalog::codec::{Reader, Writer};
use crate::env::BootTime;
use crate::error::Result;
use crate::ids::Epoch;

const NAME: &str = "holder";
const VERSION: u8 = 1;

/// Who drives an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderRecord {
    /// Epoch of the hold.
    pub epoch: Epoch,
    /// Process.
    pub pid: u32,
    /// Boot of the machine that the lease's clock belongs to.
    pub boot_id: u128,
    /// End of the lease.
    pub lease_until: BootTime,
}

impl HolderRecord {
    pub(in crate::catalog) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VERSION);
        out.varint(self.epoch.0).varint(u64::from(self.pid));
        out.u128(self.boot_id).varint(self.lease_until.0);
        out.finish()
    }

    pub(in crate::catalog) fn decode(bytes: &[u8]) -> Result<HolderRecord> {
        let mut from = Reader::new(NAME, VERSION, bytes)?;
        let record = HolderRecord {
            epoch: Epoch(from.varint()?),
            pid: from.u32()?,
            boot_id: from.u128()?,
            lease_until: BootTime(from.varint()?),
        };
        from.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::codec::check_codec;

    #[test]
    fn a_holder_reads_back_and_every_prefix_is_refused() {
        let record = HolderRecord {
            epoch: Epoch(900),
            pid: 4_194_303,
            boot_id: u128::MAX / 3,
            lease_until: BootTime(123_456_789),
        };
        check_codec(&record, HolderRecord::encode, HolderRecord::decode);
    }
}
