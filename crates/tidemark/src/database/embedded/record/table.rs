//! A table: its identity, its schema, and the generations that hold its shards.

use serde::{Deserialize, Serialize};

use super::{GenerationNumber, JsonRecord};
use crate::database::Origin;
use crate::ids::{OperationId, Position, TableId};
use crate::row::{KeyRange, Schema};

/// One per table, under its name. The only place where names become generations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableRecord {
    /// Identity for the life of the table.
    pub(crate) id: TableId,
    /// Identity that its digests carry.
    pub(crate) digest_id: TableId,
    /// Columns and key.
    pub(crate) schema: Schema,
    /// Shards in key order; their ranges cover all keys.
    pub(crate) shards: Vec<ShardRecord>,
    /// First cut that sees the content as it was made or replaced in bulk: an increment
    /// from an earlier cut has to carry the whole table.
    pub(crate) base_position: Position,
    /// Operation that made the table, if one did.
    pub(crate) created_by: Option<OperationId>,
    /// Where it came from, if it is a restored copy.
    pub(crate) copy: Option<CopyRecord>,
}

/// One shard of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    /// Keys.
    pub(crate) range: KeyRange,
    /// Generation that holds them.
    pub(crate) generation: GenerationNumber,
}

/// What a restored copy remembers. Whether its rows were written to since is told by
/// [`ShardMeta::user_writes`](super::ShardMeta).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyRecord {
    /// Restore point it was made from.
    pub(crate) origin: Origin,
    /// Whether it is hidden: only an operation sees it.
    pub(crate) held: bool,
    /// Whether its schema was changed since.
    pub(crate) altered: bool,
}

impl TableRecord {
    /// Position in `shards` of the one that holds `key`.
    pub(crate) fn shard_of(&self, key: &[u8]) -> usize {
        self.shards.partition_point(|shard| *shard.range.start <= *key).saturating_sub(1)
    }

    /// Whether readers and writers see it under its name.
    pub(crate) fn is_visible(&self) -> bool {
        !self.copy.as_ref().is_some_and(|copy| copy.held)
    }
}

impl JsonRecord for TableRecord {
    const NAME: &'static str = "table record";
    const VERSION: u32 = 1;

    fn flaw(&self) -> Option<String> {
        super::flaw_of_table(&self.schema, self.shards.iter().map(|shard| &shard.range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CollectionId;
    use crate::row::LogicalType;

    fn record() -> TableRecord {
        let ranges = KeyRange::between(&[vec![5], vec![9]]);
        let shards = (1..).map(GenerationNumber).zip(ranges);
        TableRecord {
            id: TableId(1),
            digest_id: TableId(2),
            schema: Schema::new(&[("k", LogicalType::Text)], &["k"]).unwrap(),
            shards: shards.map(|(generation, range)| ShardRecord { range, generation }).collect(),
            base_position: Position(4),
            created_by: Some(OperationId(3)),
            copy: Some(CopyRecord {
                origin: Origin { collection: CollectionId(8), manifest: "ab".to_owned() },
                held: true,
                altered: false,
            }),
        }
    }

    #[test]
    fn a_table_record_reads_back() {
        super::super::check::json_record(&record());
        super::super::check::json_record(&TableRecord { created_by: None, copy: None, ..record() });
    }

    #[test]
    fn a_table_that_no_reader_could_use_is_refused() {
        let (mut keyless, mut doubled) = (record(), record());
        keyless.schema.key = vec![crate::ids::ColumnId(7)];
        super::super::check::impossible(&keyless, "key column 7");
        doubled.schema.columns.push(doubled.schema.columns[0].clone());
        super::super::check::impossible(&doubled, "there twice");
        for wrong in [0, 1, 2] {
            let mut record = record();
            record.shards.remove(wrong);
            super::super::check::impossible(&record, "do not cover all keys");
        }
        super::super::check::impossible(&TableRecord { shards: Vec::new(), ..record() }, "cover");
    }

    #[test]
    fn every_key_lies_in_the_shard_whose_range_holds_it() {
        let record = record();
        for key in 0..=10u8 {
            assert!(record.shards[record.shard_of(&[key])].range.contains(&[key]), "{key}");
        }
    }
}
