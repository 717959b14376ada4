//! Fuzz target of the records of an embedded database.

use super::record::{
    self, CopyRecord, CutRecord, DatabaseRecord, GenerationNumber, GenerationRecord, HiddenBase,
    HiddenTableRecord, JsonRecord, MarkerRecord, RedoRecord, RedoShard, ReservationRecord,
    ShardFence, ShardMeta, ShardRecord, SourcePositionRecord, TableRecord, TargetOperationRecord,
};
use crate::database::{Disposition, Origin, TargetTable};
use crate::fuzz::schema_of_all_types;
use crate::ids::{CollectionId, CutId, Epoch, OperationId, Position, TableId, TableName, Txn};
use crate::row::{ChangeOp, KeyRange, RowBatch, RowCodec, RowRef};

/// `u8` which record, then its stored form.
pub(crate) fn record(input: &[u8]) {
    let Some((which, stored)) = input.split_first() else { return };
    match which % 11 {
        0 => {
            if let Some(table) = json::<TableRecord>(stored) {
                // What every reader of the table does with it.
                RowCodec::new(&table.schema);
                table.schema.key_columns().count();
                let shard = table.shards.get(table.shard_of(stored));
                assert!(shard.is_some(), "a table without a shard for a key");
            }
        }
        1 => {
            if let Some(hidden) = json::<HiddenTableRecord>(stored) {
                RowCodec::new(&hidden.plan.schema);
                assert_eq!(hidden.generations.len(), hidden.plan.shards.len());
            }
        }
        2 => drop(json::<DatabaseRecord>(stored)),
        3 => drop(json::<GenerationRecord>(stored)),
        4 => drop(json::<SourcePositionRecord>(stored)),
        5 => drop(json::<CutRecord>(stored)),
        6 => drop(json::<TargetOperationRecord>(stored)),
        7 => drop(json::<ReservationRecord>(stored)),
        8 => drop(json::<MarkerRecord>(stored)),
        9 => {
            if let Ok(redo) = RedoRecord::decode(stored) {
                assert_eq!(redo.encode(), stored, "a redo record reads back as another");
            }
        }
        _ => {
            if let Ok(meta) = ShardMeta::decode(stored) {
                assert_eq!(meta.encode(), stored, "a shard's record reads back as another");
            }
            let _ = super::read::decode_stamp(stored);
        }
    }
}

fn json<R: JsonRecord>(stored: &[u8]) -> Option<R> {
    let read = record::decode::<R>(stored).ok()?;
    let written = record::encode(&read);
    let again = record::decode::<R>(&written).expect("what was written reads back");
    assert_eq!(record::encode(&again), written, "a record reads back as another");
    Some(read)
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let ranges = KeyRange::between(&[vec![5], vec![9, 0]]);
    let schema = schema_of_all_types(&["decimal", "text"]);
    let origin = Origin { collection: CollectionId(8), manifest: "ab".repeat(32) };
    let table = TableRecord {
        id: TableId(1),
        digest_id: TableId(2),
        schema: schema.clone(),
        shards: (1..)
            .map(GenerationNumber)
            .zip(ranges.clone())
            .map(|(generation, range)| ShardRecord { range, generation })
            .collect(),
        base_position: Position(4),
        created_by: Some(OperationId(3)),
        copy: Some(CopyRecord { origin: origin.clone(), held: true, altered: false }),
    };
    let hidden = HiddenTableRecord {
        txn: Txn(3),
        plan: TargetTable {
            name: TableName::parse("s.\"a.b\"").expect("a table's name"),
            id: TableId(1),
            digest_id: TableId(2),
            schema,
            shards: ranges,
            disposition: Disposition::RollForward,
            origin,
            structure: None,
        },
        generations: vec![GenerationNumber(5); 3],
        base: HiddenBase::Copied { table: TableId(9), generations: vec![GenerationNumber(4); 3] },
        complete: true,
    };
    let mut rows = RowBatch::new();
    rows.push(RowRef { key: b"a", op: ChangeOp::Upsert, payload: b"\x01payload" });
    rows.push(RowRef { key: b"b", op: ChangeOp::Delete, payload: b"" });
    let shard = RedoShard { generation: GenerationNumber(3), digest_id: TableId(5), rows };
    let redo = RedoRecord { shards: vec![shard.clone(), shard] };
    let fence = ShardFence::sealed(Txn(1), Epoch(7));
    let meta = ShardMeta { fence, redo_applied: 2, user_writes: 3, ..ShardMeta::default() };
    let marker = MarkerRecord { kind: MarkerRecord::KIND.to_owned() };
    let seed = |which: u8, stored: &[u8]| [&[which], stored].concat();
    vec![
        seed(0, &record::encode(&table)),
        seed(1, &record::encode(&hidden)),
        seed(2, &record::encode(&DatabaseRecord::new(7))),
        seed(4, &record::encode(&SourcePositionRecord { position: Position(7) })),
        seed(5, &record::encode(&CutRecord { id: CutId(7) })),
        seed(7, &record::encode(&ReservationRecord { operation: OperationId(7) })),
        seed(8, &record::encode(&marker)),
        seed(9, &redo.encode()),
        seed(10, &meta.encode()),
    ]
}
