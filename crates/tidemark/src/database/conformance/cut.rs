//! Promises of [`Source`](crate::database::Source): cuts, and what changed between them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::bench::{
    Change, Dice, SPLIT, chunk, collect, digest, expect_changes, key, name, rows_of, schema,
    upserts,
};
use super::{Promise, Rows, SourceSubject};
use crate::database::{Delta, ParentTable, Snapshot, SourceTable};
use crate::ids::{CollectionId, Position, TableName};
use crate::row::payload;
use crate::row::{ChangeOp, KeyRange, RowBatch};

const NIGHTLY: CollectionId = CollectionId(1);
const WEEKLY: CollectionId = CollectionId(2);

/// Whether a driver carries increments as changes, or tables whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Tables that lived on since the parent must be [`Delta::Known`].
    Changes,
    /// [`Delta::Whole`] is always an answer.
    Whole,
}

/// One promise of [`Source`](crate::database::Source), checked on an empty database.
pub type SourcePromise = fn(&mut dyn SourceSubject, Capture);

/// Every promise of [`Source`](crate::database::Source), by name.
pub const SOURCE_PROMISES: &[(&str, SourcePromise)] = &[
    ("an_identity_is_for_ever", an_identity_is_for_ever),
    ("a_snapshot_is_one_cut", a_snapshot_is_one_cut),
    ("a_snapshot_stands_still", a_snapshot_stands_still),
    ("shards_cover_every_key_once", shards_cover_every_key_once),
    ("positions_grow", positions_grow),
    ("changes_lead_from_cut_to_cut", changes_lead_from_cut_to_cut),
    ("a_table_made_anew_is_whole", a_table_made_anew_is_whole),
    ("advance_serves_each_collection", advance_serves_each_collection),
];

/// Checks every promise of [`Source`](crate::database::Source), each on an empty
/// database that `make` gives.
///
/// # Panics
/// At the first promise that does not hold, with its name.
pub fn check_source(make: &dyn Fn() -> Box<dyn SourceSubject>, capture: Capture) {
    for (_, promise) in SOURCE_PROMISES {
        promise(&mut *make(), capture);
    }
}

#[track_caller]
fn create(promise: Promise, subject: &dyn SourceSubject, table: &TableName) {
    promise.ok("create a table", subject.create_table(table, &schema()));
}

#[track_caller]
fn write(promise: Promise, subject: &dyn SourceSubject, table: &TableName, changes: &[Change]) {
    promise.ok("write to a table", subject.write(table, &chunk(changes)));
}

#[track_caller]
fn position_of(promise: Promise, snapshot: &dyn Snapshot, table: &TableName) -> usize {
    let found = snapshot.tables().iter().position(|found| found.name == *table);
    found.unwrap_or_else(|| promise.broken(format!("the cut has no table `{table}`")))
}

/// All rows of a table of a cut, read shard by shard.
#[track_caller]
fn scan(promise: Promise, snapshot: &dyn Snapshot, table: &TableName) -> Rows {
    let at = position_of(promise, snapshot, table);
    let mut rows = Rows::new();
    for shard in &snapshot.tables()[at].shards {
        let part = collect(promise, promise.ok("scan", snapshot.scan(at, &shard.range)));
        let inside = part.keys().all(|key| shard.range.contains(key));
        promise.holds(inside, format!("a scan of {} left the range", shard.range));
        rows.extend(part);
    }
    let found = &snapshot.tables()[at];
    if let Some(told) = found.digest {
        promise.equal("digest of the cut", &told, &digest(found.digest_id, &rows));
    }
    rows
}

fn parent(table: &SourceTable, position: Position) -> ParentTable {
    ParentTable {
        id: table.id,
        schema: table.schema.clone(),
        position,
        structure: table.structure.clone(),
    }
}

fn an_identity_is_for_ever(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("an_identity_is_for_ever");
    let first = promise.ok("identity", subject.source().identity());
    promise.holds(!first.is_empty(), "the identity is empty");
    promise.ok("reopen", subject.reopen());
    create(promise, subject, &name("a"));
    let again = promise.ok("identity", subject.source().identity());
    promise.equal("identity", &again, &first);
}

/// Two rows far apart are always written together; no cut may tear them.
fn a_snapshot_is_one_cut(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("a_snapshot_is_one_cut");
    let table = name("a");
    create(promise, subject, &table);
    let pair = |text: &str| upserts([0, SPLIT * 2], text);
    write(promise, subject, &table, &pair("0"));
    let subject = &*subject;
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut round = 0u32;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                write(promise, subject, &table, &pair(&round.to_string()));
            }
        });
        // The writer must stop even when a promise breaks, or the scope never ends.
        let stopped = StopOnDrop(&stop);
        for _ in 0..20 {
            let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
            let rows = scan(promise, &*snapshot, &table);
            let text = |id: i64| {
                let payload = rows.get(&key(id)).unwrap_or_else(|| promise.broken("a row is lost"));
                let name = payload::fields(payload).next().map(|field| promise.ok("field", field));
                name.map(|name| name.value.to_vec())
            };
            promise.equal("the row that was written together", &text(SPLIT * 2), &text(0));
        }
        drop(stopped);
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_snapshot_stands_still(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("a_snapshot_stands_still");
    let (a, b) = (name("a"), name("b"));
    create(promise, subject, &a);
    let before = upserts(0..1000, "before");
    write(promise, subject, &a, &before);
    let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
    write(promise, subject, &a, &upserts(500..1500, "after"));
    write(promise, subject, &a, &[Change::Delete(1)]);
    create(promise, subject, &b);
    let names: Vec<&TableName> = snapshot.tables().iter().map(|table| &table.name).collect();
    promise.equal("tables of the cut", &names, &vec![&a]);
    promise.equal("rows of the cut", &scan(promise, &*snapshot, &a), &rows_of(&before));
    // Any range can be read, not only a shard's.
    let range = KeyRange { start: key(10), end: Some(key(20)) };
    let part = collect(promise, promise.ok("scan", snapshot.scan(0, &range)));
    promise.equal("rows of a range", &part, &rows_of(&upserts(10..20, "before")));
    drop(snapshot);
    let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
    let names: Vec<&TableName> = snapshot.tables().iter().map(|table| &table.name).collect();
    promise.equal("tables of the next cut", &names, &vec![&a, &b]);
    let mut after = rows_of(&before);
    expect_changes(&mut after, &upserts(500..1500, "after"));
    expect_changes(&mut after, &[Change::Delete(1)]);
    promise.equal("rows of the next cut", &scan(promise, &*snapshot, &a), &after);
}

fn shards_cover_every_key_once(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("shards_cover_every_key_once");
    create(promise, subject, &name("full"));
    create(promise, subject, &name("empty"));
    write(promise, subject, &name("full"), &upserts(-2000..2000, "x"));
    let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
    for table in snapshot.tables() {
        let mut next = Some(Vec::new());
        for shard in &table.shards {
            promise.equal("start of a shard", &Some(&shard.range.start), &next.as_ref());
            next = shard.range.end.clone();
        }
        promise.equal("end of the last shard", &next, &None);
    }
    promise.equal("rows", &scan(promise, &*snapshot, &name("empty")), &Rows::new());
    let rows = scan(promise, &*snapshot, &name("full"));
    promise.holds(rows == rows_of(&upserts(-2000..2000, "x")), "rows are missing or too many");
}

fn positions_grow(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("positions_grow");
    create(promise, subject, &name("a"));
    let mut last = None;
    for id in 0..6 {
        write(promise, subject, &name("a"), &upserts([id], "x"));
        let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
        let position = snapshot.position();
        promise.holds(last < Some(position), format!("{position} came after {last:?}"));
        last = Some(position);
        drop(snapshot);
        if id % 2 == 0 {
            promise.ok("reopen", subject.reopen());
        }
    }
}

/// Reads the changes of every shard, refuses what is no collapsed change, and applies them.
#[track_caller]
fn apply_changes(
    promise: Promise,
    snapshot: &dyn Snapshot,
    at: usize,
    from: Position,
    rows: &mut Rows,
) {
    for shard in &snapshot.tables()[at].shards {
        let mut stream = promise.ok("changes", snapshot.changes(at, &shard.range, from));
        let mut batch = RowBatch::new();
        let mut last: Option<Vec<u8>> = None;
        while promise.ok("next_batch", stream.next_batch(&mut batch)) {
            for change in batch.iter() {
                let ascends = last.as_deref().is_none_or(|last| last < change.key);
                promise.holds(ascends, "changes do not ascend, or a key comes twice");
                promise.holds(shard.range.contains(change.key), "a change left the range");
                last = Some(change.key.to_vec());
                match change.op {
                    ChangeOp::Upsert => {
                        rows.insert(change.key.to_vec(), change.payload.to_vec());
                    }
                    ChangeOp::Update => {
                        let older = rows.get(change.key).cloned();
                        let older = older.unwrap_or_else(|| promise.broken("update without a row"));
                        let mut whole = Vec::new();
                        let overlaid = payload::overlay(change.payload, &older, &mut whole);
                        promise.ok("overlay", overlaid);
                        rows.insert(change.key.to_vec(), whole);
                    }
                    ChangeOp::Delete => {
                        rows.remove(change.key);
                    }
                }
            }
        }
    }
}

/// Rows at `snapshot`, made of those at the parent; read whole where the driver says so.
#[track_caller]
fn follow(
    promise: Promise,
    snapshot: &dyn Snapshot,
    table: &TableName,
    parent: &ParentTable,
    mut rows: Rows,
    capture: Capture,
) -> Rows {
    let at = position_of(promise, snapshot, table);
    match promise.ok("delta", snapshot.delta(at, parent)) {
        Delta::Known { .. } => {
            apply_changes(promise, snapshot, at, parent.position, &mut rows);
            rows
        }
        Delta::Whole { reason } => {
            promise.holds(!reason.is_empty(), "a table is whole without a reason");
            let allowed = capture == Capture::Whole;
            promise.holds(allowed, format!("changes were not captured: {reason}"));
            scan(promise, snapshot, table)
        }
    }
}

fn changes_lead_from_cut_to_cut(subject: &mut dyn SourceSubject, capture: Capture) {
    let promise = Promise("changes_lead_from_cut_to_cut");
    let table = name("a");
    create(promise, subject, &table);
    let mut dice = Dice(7);
    let mut rows = Rows::new();
    let mut chain: Option<(ParentTable, Rows)> = None;
    for round in 0..8 {
        for _ in 0..dice.below(4) {
            let mut changes = dice.changes(&rows, 0, 1000);
            changes.retain(|change| !matches!(change, Change::Update(..)) && dice.below(8) == 0);
            write(promise, subject, &table, &changes);
            expect_changes(&mut rows, &changes);
            if dice.below(4) == 0 {
                promise.ok("reopen", subject.reopen());
            }
        }
        let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
        promise.holds(scan(promise, &*snapshot, &table) == rows, "the cut has other rows");
        if let Some((parent, older)) = chain.take() {
            let followed = follow(promise, &*snapshot, &table, &parent, older, capture);
            promise.holds(followed == rows, format!("round {round}: the changes lead elsewhere"));
        }
        let found = &snapshot.tables()[position_of(promise, &*snapshot, &table)];
        chain = Some((parent(found, snapshot.position()), rows.clone()));
        let position = snapshot.position();
        drop(snapshot);
        promise.ok("advance", subject.source().advance(NIGHTLY, position));
    }
}

fn a_table_made_anew_is_whole(subject: &mut dyn SourceSubject, _: Capture) {
    let promise = Promise("a_table_made_anew_is_whole");
    let table = name("a");
    create(promise, subject, &table);
    write(promise, subject, &table, &upserts(0..10, "old"));
    let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
    let older = parent(&snapshot.tables()[0], snapshot.position());
    drop(snapshot);
    promise.ok("drop", subject.drop_table(&table));
    create(promise, subject, &table);
    write(promise, subject, &table, &upserts(5..15, "new"));
    let snapshot = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
    promise.holds(snapshot.tables()[0].id != older.id, "a new table has the old one's identity");
    match promise.ok("delta", snapshot.delta(0, &older)) {
        Delta::Known { .. } => promise.broken("changes of another table are no delta"),
        Delta::Whole { reason } => promise.holds(!reason.is_empty(), "whole without a reason"),
    }
    let rows = scan(promise, &*snapshot, &table);
    promise.equal("rows", &rows, &rows_of(&upserts(5..15, "new")));
}

/// A collection that is slow keeps its changes, however far another one moves.
fn advance_serves_each_collection(subject: &mut dyn SourceSubject, capture: Capture) {
    let promise = Promise("advance_serves_each_collection");
    let table = name("a");
    create(promise, subject, &table);
    write(promise, subject, &table, &upserts(0..10, "0"));
    let weekly = promise.ok("snapshot", subject.source().snapshot(WEEKLY));
    let older = parent(&weekly.tables()[0], weekly.position());
    let before = scan(promise, &*weekly, &table);
    drop(weekly);
    let mut rows = before.clone();
    for round in 1..4 {
        let changes = [Change::upsert(round, "changed"), Change::Delete(9 - round)];
        write(promise, subject, &table, &changes);
        expect_changes(&mut rows, &changes);
        let nightly = promise.ok("snapshot", subject.source().snapshot(NIGHTLY));
        let position = nightly.position();
        drop(nightly);
        promise.ok("advance", subject.source().advance(NIGHTLY, position));
        // Again, and back: neither does any harm.
        promise.ok("advance again", subject.source().advance(NIGHTLY, position));
        promise.ok("advance back", subject.source().advance(NIGHTLY, older.position));
        promise.ok("reopen", subject.reopen());
    }
    let weekly = promise.ok("snapshot", subject.source().snapshot(WEEKLY));
    let followed = follow(promise, &*weekly, &table, &older, before, capture);
    promise.equal("rows", &followed, &rows);
}
