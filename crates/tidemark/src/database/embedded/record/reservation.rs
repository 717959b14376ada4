//! A table name that an operation will publish under.

use serde::{Deserialize, Serialize};

use super::JsonRecord;
use crate::ids::OperationId;

/// One per reserved name; made and removed together with its hidden table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReservationRecord {
    /// Who reserved it.
    pub(crate) operation: OperationId,
}

impl JsonRecord for ReservationRecord {
    const NAME: &'static str = "reservation of a table name";
    const VERSION: u32 = 1;
}

#[test]
fn a_reservation_reads_back() {
    super::check::json_record(&ReservationRecord { operation: OperationId(42) });
}
