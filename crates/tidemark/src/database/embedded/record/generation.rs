//! Generations: every LMDB environment that holds, held or will hold a shard.
//!
//! ```text
//! Building ──┐                 a crash of its builder makes it garbage
//!            ├─▶ Live ─▶ Garbage ─▶ (directory and record gone)
//! Owned ─────┘     of an operation: kept over crashes until published or discarded
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::OperationId;

/// Number of a generation, from 1, never used again; names its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct GenerationNumber(pub(crate) u64);

impl fmt::Display for GenerationNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a generation is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum GenerationRecord {
    /// Filled by a process that holds its lock; garbage as soon as nobody does.
    Building,
    /// Filled by an operation; kept until the operation publishes or discards it.
    Owned {
        /// The operation.
        operation: OperationId,
    },
    /// Named by a table's record.
    Live,
    /// Named by nobody: removed after its last reader.
    Garbage,
}

impl JsonRecord for GenerationRecord {
    const NAME: &'static str = "generation record";
    const VERSION: u32 = 1;
}

#[test]
fn generation_records_read_back() {
    for record in [
        GenerationRecord::Building,
        GenerationRecord::Owned { operation: OperationId(42) },
        GenerationRecord::Live,
        GenerationRecord::Garbage,
    ] {
        super::check::json_record(&record);
    }
}
