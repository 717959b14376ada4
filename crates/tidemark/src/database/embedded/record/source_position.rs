//! How far a collection has been served.

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::Position;

/// One per collection that took a cut of this database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourcePositionRecord {
    /// The collection's next increment begins here: later changes are kept for it.
    pub(crate) position: Position,
}

impl JsonRecord for SourcePositionRecord {
    const NAME: &'static str = "source position";
    const VERSION: u32 = 1;
}

#[test]
fn a_source_position_reads_back() {
    super::check::json_record(&SourcePositionRecord { position: Position(9) });
}
