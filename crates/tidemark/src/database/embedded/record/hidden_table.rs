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
    /// The rows of a copy, published or held, without the columns that the plan lacks.
    Projected {
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

    fn flaw(&self) -> Option<String> {
        let shards = self.plan.shards.len();
        let has_all = |generations: &[GenerationNumber]| generations.len() == shards;
        let based = match &self.base {
            HiddenBase::Empty | HiddenBase::InPlace { .. } => true,
            HiddenBase::Copied { generations, .. } | HiddenBase::Projected { generations, .. } => {
                has_all(generations)
            }
        };
        if !has_all(&self.generations) || !based {
            return Some(format!("it has not one generation for each of its {shards} shards"));
        }
        super::flaw_of_table(&self.plan.schema, self.plan.shards.iter())
    }
}

#[cfg(test)]
fn record(base: HiddenBase) -> HiddenTableRecord {
    use crate::database::{Disposition, Origin};
    use crate::ids::{CollectionId, TableName};
    use crate::row::{KeyRange, LogicalType, Schema};

    HiddenTableRecord {
        txn: Txn(3),
        plan: TargetTable {
            name: TableName::parse("s.\"a.b\"").unwrap(),
            id: TableId(1),
            digest_id: TableId(2),
            schema: Schema::new(&[("k", LogicalType::Uuid)], &["k"]).unwrap(),
            shards: KeyRange::between(&[vec![0, 255]]),
            disposition: Disposition::RollForward,
            origin: Origin { collection: CollectionId(8), manifest: "ab".to_owned() },
            structure: None,
        },
        generations: vec![GenerationNumber(5), GenerationNumber(6)],
        base,
        complete: true,
    }
}

#[test]
fn hidden_table_records_read_back() {
    let generations = vec![GenerationNumber(3), GenerationNumber(4)];
    for base in [
        HiddenBase::Empty,
        HiddenBase::Copied { table: TableId(9), generations: generations.clone() },
        HiddenBase::Projected { table: TableId(9), generations },
        HiddenBase::InPlace { table: TableId(9) },
    ] {
        super::check::json_record(&record(base));
    }
}

#[test]
fn a_hidden_table_that_no_operation_could_fill_is_refused() {
    let generations = vec![GenerationNumber(4)];
    for base in [
        HiddenBase::Copied { table: TableId(9), generations: generations.clone() },
        HiddenBase::Projected { table: TableId(9), generations },
    ] {
        super::check::impossible(&record(base), "one generation for each");
    }
    let mut fewer = record(HiddenBase::Empty);
    fewer.generations.pop();
    super::check::impossible(&fewer, "one generation for each");
    let mut keyless = record(HiddenBase::Empty);
    keyless.plan.schema.key = vec![crate::ids::ColumnId(7)];
    super::check::impossible(&keyless, "key column 7");
    let mut uncovered = record(HiddenBase::Empty);
    uncovered.plan.shards[1].start = vec![1];
    super::check::impossible(&uncovered, "do not cover all keys");
}
