//! An operation as the target knows it, from its first call on and for ever.
//!
//! ```text
//! (absent) --> Open <--> Sealed --> Published
//!    |           |         |
//!    +-----------+---------+-----> Discarded
//! ```

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::{Epoch, Txn};

/// One per operation, under its number. Kept when it ends, so that a holder who comes late
/// makes nothing anew; about a hundred bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetOperationRecord {
    /// Fencing number of the operation in its shards; see [`ShardFence`](super::ShardFence).
    pub(crate) txn: Txn,
    /// Highest epoch that was shown; written to the shards before it is written here.
    pub(crate) epoch: Epoch,
    /// Where the operation stands.
    pub(crate) state: TargetOperationState,
}

/// Where an operation stands in its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TargetOperationState {
    /// Names are reserved; hidden tables exist or are being made. Its holder writes.
    Open,
    /// Every shard is sealed with this epoch.
    Sealed,
    /// Its tables have their names; hidden tables and reservations are gone.
    Published,
    /// Hidden tables and reservations are gone.
    Discarded,
}

impl JsonRecord for TargetOperationRecord {
    const NAME: &'static str = "record of an operation";
    const VERSION: u32 = 1;
}

#[test]
fn target_operation_records_read_back() {
    for state in [
        TargetOperationState::Open,
        TargetOperationState::Sealed,
        TargetOperationState::Published,
        TargetOperationState::Discarded,
    ] {
        let record = TargetOperationRecord { txn: Txn(7), epoch: Epoch(u64::MAX), state };
        super::check::json_record(&record);
    }
}
