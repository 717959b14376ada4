//! The database's own record: who it is, and its counters.

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::Position;

/// One per database, under the key `record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatabaseRecord {
    /// 128 random bits as 32 hexadecimal digits, for the life of the database.
    pub(crate) identity: String,
    /// Next fencing number of an operation, from 1.
    pub(crate) next_txn: u64,
    /// Next generation number, from 1; numbers are never used again.
    pub(crate) next_generation: u64,
    /// Next sequence number of a redo record, from 1.
    pub(crate) next_redo: u64,
    /// Raised by every change of a table's record, so that readers know when to read it again.
    pub(crate) tables_version: u64,
    /// Shards that tables name, hidden ones too.
    pub(crate) live_shards: u32,
    /// The last cut; a write that is committed now is seen by the cut after it.
    pub(crate) position: Position,
    /// First cut ever: changes after it are noted.
    pub(crate) capture_since: Option<Position>,
    /// Changes up to here may have been forgotten.
    pub(crate) trimmed_to: Position,
}

impl DatabaseRecord {
    /// The record of a new database.
    pub(crate) fn new(identity: u128) -> DatabaseRecord {
        DatabaseRecord {
            identity: format!("{identity:032x}"),
            next_txn: 1,
            next_generation: 1,
            next_redo: 1,
            tables_version: 1,
            live_shards: 0,
            position: Position(0),
            capture_since: None,
            trimmed_to: Position(0),
        }
    }

    /// The cut that will see what is committed now.
    pub(crate) fn next_cut(&self) -> Position {
        Position(self.position.0 + 1)
    }

    /// What a writer stamps changed keys with; `None` before the first cut.
    pub(crate) fn capture(&self) -> Option<Position> {
        self.capture_since.map(|_| self.next_cut())
    }
}

impl JsonRecord for DatabaseRecord {
    const NAME: &'static str = "database record";
    const VERSION: u32 = 1;
}

#[test]
fn a_database_record_reads_back() {
    let mut record = DatabaseRecord::new(7);
    super::check::json_record(&record);
    record.capture_since = Some(Position(3));
    record.position = Position(u64::MAX - 1);
    super::check::json_record(&record);
}
