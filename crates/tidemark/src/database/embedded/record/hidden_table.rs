//! A table that an operation fills and nobody else sees.

use serde::{Deserialize, Serialize};

use super::{GenerationNumber, JsonRecord};
use crate::database::TargetTable;
use crate::ids::{TableId, Txn};

/// One per hidden table, under operation and name; goes when the operation ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HiddenTableRecord {
    /// Fencing number of the operation in the shards.
    pub(crate) txn: Txn,
    /// What was asked for.
    pub(crate) plan: TargetTable,
    /// Generation per shard of the plan, in its order.
    pub(crate) generations: Vec<GenerationNumber>,
    /// What the shards begin with.
    pub(crate) base: HiddenBase,
    /// Whether all generations exist and are claimed. Rows are taken only then.
    pub(crate) complete: bool,
}

/// What the shards of a hidden table begin with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum HiddenBase {
    /// Nothing.
    Empty,
    /// Copies of the shards of a published copy, which readers go on using.
    Copied {
        /// The copy.
        table: TableId,
        /// Its generations.
        generations: Vec<GenerationNumber>,
    },
    /// The shards of a held copy themselves: nobody reads them.
    InPlace {
        /// The copy.
        table: TableId,
    },
}

impl JsonRecord for HiddenTableRecord {
    const NAME: &'static str = "record of a hidden table";
    const VERSION: u32 = 1;
}

#[test]
fn hidden_table_records_read_back() {
    use crate::database::{Disposition, Origin};
    use crate::ids::{CollectionId, TableName};
    use crate::row::{KeyRange, LogicalType, Schema};

    for base in [
        HiddenBase::Empty,
        HiddenBase::Copied { table: TableId(9), generations: vec![GenerationNumber(4)] },
        HiddenBase::InPlace { table: TableId(9) },
    ] {
        super::check::json_record(&HiddenTableRecord {
            txn: Txn(3),
            plan: TargetTable {
                name: TableName::parse("s.\"a.b\"").unwrap(),
                id: TableId(1),
                digest_id: TableId(2),
                schema: Schema::new(&[("k", LogicalType::Uuid)], &["k"]).unwrap(),
                shards: KeyRange::between(&[vec![0, 255]]),
                disposition: Disposition::RollForward,
                origin: Origin { collection: CollectionId(8), manifest: "ab".to_owned() },
            },
            generations: vec![GenerationNumber(5), GenerationNumber(6)],
            base,
            complete: true,
        });
    }
}
