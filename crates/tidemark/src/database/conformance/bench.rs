//! What the checks work with: a small table, changes to it, and a plain map that knows better.

use super::{Promise, Rows, TargetSubject};
use crate::database::{
    Disposition, ExistingTable, Fence, Mark, Origin, Publish, Target, TargetShard, TargetTable,
};
use crate::error::Result;
use crate::ids::{CollectionId, Epoch, OperationId, ShardIdx, StepIdx, TableId, TableName};
use crate::row::digest::RowHasher;
use crate::row::payload;
use crate::row::{
    ChangeOp, Digest, KeyRange, LogicalType, RowBatch, RowCodec, RowRef, RowStream, Schema, Value,
};

/// Ids below go to shard 0, the others to shard 1.
pub(super) const SPLIT: i64 = 500;

/// Operation of most checks.
pub(super) const FIRST: OperationId = OperationId(1);
/// A later one.
pub(super) const SECOND: OperationId = OperationId(2);

pub(super) fn fence(operation: OperationId, epoch: u64) -> Fence {
    Fence { operation, epoch: Epoch(epoch) }
}

pub(super) fn name(text: &str) -> TableName {
    TableName::parse(text).expect("the checks use valid names")
}

pub(super) fn schema() -> Schema {
    let columns =
        [("id", LogicalType::Int64), ("name", LogicalType::Text), ("note", LogicalType::Text)];
    Schema::new(&columns, &["id"]).expect("the schema is valid")
}

pub(super) fn key(id: i64) -> Vec<u8> {
    let mut key = Vec::new();
    RowCodec::new(&schema())
        .encode_key_values(&[Value::Int64(id)], &mut key)
        .expect("an id is a key");
    key
}

/// The whole row that an upsert of `id` with `text` makes.
pub(super) fn row(id: i64, text: &str) -> Vec<u8> {
    let note = Value::Text(format!("note of {id}"));
    let values = [Value::Int64(id), Value::Text(text.to_owned()), note];
    let mut payload = Vec::new();
    RowCodec::new(&schema()).encode_payload(&values, &mut payload).expect("the row is valid");
    payload
}

/// A change of one row.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// The whole row, with this name.
    Upsert(i64, String),
    /// The name; the note stays.
    Update(i64, String),
    /// No row.
    Delete(i64),
}

impl Change {
    pub(super) fn upsert(id: i64, text: &str) -> Change {
        Change::Upsert(id, text.to_owned())
    }

    pub(super) fn update(id: i64, text: &str) -> Change {
        Change::Update(id, text.to_owned())
    }
}

/// The changes as a chunk, in the given order.
pub(super) fn chunk(changes: &[Change]) -> RowBatch {
    let schema = schema();
    let column = |text: &str| schema.column_named(text).expect("the column exists").id;
    let mut batch = RowBatch::new();
    for change in changes {
        let (id, op, bytes) = match change {
            Change::Upsert(id, text) => (*id, ChangeOp::Upsert, row(*id, text)),
            Change::Update(id, text) => {
                let mut partial = Vec::new();
                payload::begin(&mut partial);
                payload::put_value(column("name"), &Value::Text(text.clone()), &mut partial);
                payload::put_unchanged(column("note"), &mut partial);
                (*id, ChangeOp::Update, partial)
            }
            Change::Delete(id) => (*id, ChangeOp::Delete, Vec::new()),
        };
        batch.push(RowRef { key: &key(id), op, payload: &bytes });
    }
    batch
}

/// The rows after `changes`, as a plain map has them.
pub(super) fn expect_changes(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Upsert(id, text) | Change::Update(id, text) => {
                rows.insert(key(*id), row(*id, text));
            }
            Change::Delete(id) => {
                rows.remove(&key(*id));
            }
        }
    }
}

/// Upserts of the ids, each named `text`.
pub(super) fn upserts(ids: impl IntoIterator<Item = i64>, text: &str) -> Vec<Change> {
    ids.into_iter().map(|id| Change::upsert(id, text)).collect()
}

/// The rows that these changes make of nothing.
pub(super) fn rows_of(changes: &[Change]) -> Rows {
    let mut rows = Rows::new();
    expect_changes(&mut rows, changes);
    rows
}

pub(super) fn origin(point: u32) -> Origin {
    Origin { collection: CollectionId(0xc0), manifest: format!("{point:064x}") }
}

/// A table in two shards, to be restored at restore point 1.
pub(super) fn table(text: &str, disposition: Disposition) -> TargetTable {
    let id = text.bytes().fold(1u128, |id, byte| id * 257 + u128::from(byte));
    TargetTable {
        name: name(text),
        id: TableId(id),
        digest_id: TableId(id + 1),
        schema: schema(),
        shards: KeyRange::between(&[key(SPLIT)]),
        disposition,
        origin: origin(1),
        structure: None,
    }
}

pub(super) fn shard(operation: OperationId, table: &TargetTable, shard: u32) -> TargetShard {
    TargetShard { operation, table: table.name.clone(), shard: ShardIdx(shard) }
}

/// The position after `changes` in `step`, from what the shard stands at.
pub(super) fn next_mark(stored: Option<Mark>, step: u32, changes: &[Change]) -> Mark {
    mark_after(stored, step, &chunk(changes))
}

/// The same for changes of any schema.
fn mark_after(stored: Option<Mark>, step: u32, batch: &RowBatch) -> Mark {
    let mut mark = match stored {
        Some(mark) if mark.step == StepIdx(step) && !mark.links.is_empty() => mark,
        stored => stored.unwrap_or_default().enter_step(StepIdx(step), 1),
    };
    mark.rows += batch.len() as u64;
    mark.bytes += batch.byte_count();
    mark.links[0].rows = mark.rows;
    mark.links[0].bytes = mark.bytes;
    if let Some(last) = batch.last() {
        mark.last_key = Some(last.key.to_vec());
    }
    mark
}

/// Applies `changes` in `step` from where the shard stands, and gives the mark that apply returned.
pub(super) fn apply(
    target: &dyn Target,
    fence: Fence,
    shard: &TargetShard,
    step: u32,
    changes: &[Change],
) -> Result<Mark> {
    apply_chunk(target, fence, shard, step, &chunk(changes))
}

/// The same for changes of any schema.
pub(super) fn apply_chunk(
    target: &dyn Target,
    fence: Fence,
    shard: &TargetShard,
    step: u32,
    batch: &RowBatch,
) -> Result<Mark> {
    let mut mark = mark_after(target.mark(shard)?, step, batch);
    target.apply(fence, shard, batch, &mut mark)?;
    Ok(mark)
}

/// The changes of each shard of a table in two shards.
pub(super) fn by_shard(changes: &[Change]) -> [Vec<Change>; 2] {
    let below = |change: &&Change| match change {
        Change::Upsert(id, _) | Change::Update(id, _) | Change::Delete(id) => *id < SPLIT,
    };
    let (low, high): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(below);
    [low.into_iter().cloned().collect(), high.into_iter().cloned().collect()]
}

/// Applies `changes` to both shards of a table, one chunk each.
#[track_caller]
pub(super) fn apply_all(
    promise: Promise,
    target: &dyn Target,
    fence: Fence,
    table: &TargetTable,
    step: u32,
    changes: &[Change],
) {
    for (at, changes) in (0..).zip(by_shard(changes)) {
        let shard = shard(fence.operation, table, at);
        promise.ok("apply", apply(target, fence, &shard, step, &changes));
    }
}

/// Prepares, loads, seals and publishes one table.
#[track_caller]
pub(super) fn restore(
    promise: Promise,
    target: &dyn Target,
    fence: Fence,
    table: &TargetTable,
    changes: &[Change],
    how: Publish,
) {
    promise.ok("prepare", target.prepare(fence, std::slice::from_ref(table)));
    apply_all(promise, target, fence, table, 0, changes);
    promise.ok("seal", target.seal(fence));
    promise.ok("publish", target.publish(fence, how));
}

/// Creates a table with rows, as an ordinary user.
#[track_caller]
pub(super) fn create(
    promise: Promise,
    subject: &dyn TargetSubject,
    table: &TableName,
    changes: &[Change],
) {
    promise.ok("create a table", subject.create_table(table, &schema()));
    promise.ok("write to a table", subject.write(table, &chunk(changes)));
}

/// What ordinary readers see of a table that must be there.
#[track_caller]
pub(super) fn visible(promise: Promise, subject: &dyn TargetSubject, table: &TableName) -> Rows {
    promise
        .ok("read a table", subject.rows(table))
        .unwrap_or_else(|| promise.broken(format!("readers find no table `{table}`")))
}

#[track_caller]
pub(super) fn invisible(promise: Promise, subject: &dyn TargetSubject, table: &TableName) {
    let seen = promise.ok("look for a table", subject.rows(table));
    promise.holds(seen.is_none(), format!("readers see table `{table}`"));
}

/// What `existing` says of a table that must be there.
#[track_caller]
pub(super) fn existing(promise: Promise, target: &dyn Target, table: &TableName) -> ExistingTable {
    promise
        .ok("existing", target.existing(table))
        .unwrap_or_else(|| promise.broken(format!("`existing` finds no table `{table}`")))
}

/// Reads a shard back; refuses rows that do not ascend or are no upserts.
#[track_caller]
pub(super) fn read_back(promise: Promise, target: &dyn Target, shard: &TargetShard) -> Rows {
    let stream = promise.ok("read_back", target.read_back(shard));
    collect(promise, stream)
}

/// All rows of a stream; refuses rows that do not ascend or are no upserts.
#[track_caller]
pub(super) fn collect(promise: Promise, mut stream: Box<dyn RowStream + '_>) -> Rows {
    let mut rows = Rows::new();
    let mut batch = RowBatch::new();
    while promise.ok("next_batch", stream.next_batch(&mut batch)) {
        promise.holds(!batch.is_empty(), "a stream gave an empty batch before its end");
        for row in batch.iter() {
            promise.holds(row.op == ChangeOp::Upsert, "a stream of rows gave a change");
            let ascends = rows.last_key_value().is_none_or(|(last, _)| **last < *row.key);
            promise.holds(ascends, "rows do not ascend by key");
            rows.insert(row.key.to_vec(), row.payload.to_vec());
        }
    }
    promise.holds(batch.is_empty(), "a stream left rows in the batch at its end");
    rows
}

/// Both shards of a table, read back together.
#[track_caller]
pub(super) fn read_back_all(
    promise: Promise,
    target: &dyn Target,
    operation: OperationId,
    table: &TargetTable,
) -> Rows {
    let mut rows = read_back(promise, target, &shard(operation, table, 0));
    rows.extend(read_back(promise, target, &shard(operation, table, 1)));
    rows
}

/// The digest of rows of a table.
pub(super) fn digest(digest_id: TableId, rows: &Rows) -> Digest {
    let mut hasher = RowHasher::new(digest_id);
    rows.iter().map(|(key, payload)| hasher.row(key, payload)).sum()
}

/// Numbers that a seed reproduces: SplitMix64, by Steele, Lea and Flood (2014).
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Changes of ids from `from` up to but without `to`, ascending, each possible on `rows`.
    pub(super) fn changes(&mut self, rows: &Rows, from: i64, to: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in from..to {
            let text = format!("n{}", self.below(1000));
            match self.below(6) {
                0 => changes.push(Change::Upsert(id, text)),
                1 if rows.contains_key(&key(id)) => changes.push(Change::Update(id, text)),
                2 => changes.push(Change::Delete(id)),
                _ => {}
            }
        }
        changes
    }
}
