//! The name of a cut.

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::CutId;

/// One per cut that an increment may follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CutRecord {
    /// Drawn when the cut was taken: another history's cut at the same position has another.
    pub(crate) id: CutId,
}

impl JsonRecord for CutRecord {
    const NAME: &'static str = "cut record";
    const VERSION: u32 = 1;
}

#[test]
fn a_cut_record_reads_back() {
    super::check::json_record(&CutRecord { id: CutId(9) });
}
