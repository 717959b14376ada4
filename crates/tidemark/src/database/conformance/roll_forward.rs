//! Promises about copies that move on to a later restore point.

use super::bench::{
    Change, FIRST, SECOND, SPLIT, apply, apply_all, apply_chunk, chunk, create, digest, existing,
    expect_changes, fence, invisible, key, name, origin, read_back_all, restore, rows_of, schema,
    shard, table, upserts, visible,
};
use super::{Promise, Rows, TargetSubject};
use crate::database::{CopyState, Disposition, Publish, TargetTable};
use crate::error::Kind;
use crate::ids::{ColumnId, StepIdx};
use crate::row::{
    ChangeOp, Column, KeyRange, LogicalType, RowBatch, RowCodec, RowRef, Schema, Value,
};

/// Restores a copy at point 1 and gives what it holds.
fn restored(promise: Promise, subject: &dyn TargetSubject, how: Publish) -> Rows {
    let fresh = table("a", Disposition::Fresh);
    let full = upserts((0..100).chain(SPLIT..600), "full");
    restore(promise, subject.target(), fence(FIRST, 1), &fresh, &full, how);
    rows_of(&full)
}

/// The same table, to be rolled forward to point 2.
fn onwards() -> TargetTable {
    TargetTable { origin: origin(2), ..table("a", Disposition::RollForward) }
}

fn increment() -> Vec<Change> {
    vec![
        Change::upsert(-5, "new"),
        Change::update(3, "renamed"),
        Change::Delete(4),
        Change::Delete(400),
        Change::upsert(550, "overwritten"),
        Change::upsert(900, "new"),
    ]
}

/// Applies the increment chunk by chunk, with restarts, and gives what must be there then.
fn roll(promise: Promise, subject: &mut dyn TargetSubject, before: &Rows) -> Rows {
    let (fence, table) = (fence(SECOND, 1), onwards());
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    for at in 0..2 {
        let at = shard(SECOND, &table, at);
        let mark = promise.ok("mark", subject.target().mark(&at)).unwrap_or_else(|| {
            promise.broken("a copy to roll forward has no mark that says what it holds")
        });
        let fresh = (mark.step, mark.done, &mark.last_key, mark.rows, mark.bytes, &mark.links);
        let expected = (StepIdx(0), false, &None, 0, 0, &Vec::new());
        promise.equal("position before the first chunk", &fresh, &expected);
    }
    let rows = read_back_all(promise, subject.target(), SECOND, &table);
    promise.equal("rows before the first chunk", &rows, before);
    let mut after = before.clone();
    for change in increment() {
        let changes = std::slice::from_ref(&change);
        let low = matches!(change, Change::Upsert(id, _) | Change::Update(id, _) | Change::Delete(id) if id < SPLIT);
        let at = shard(SECOND, &table, u32::from(!low));
        promise.ok("apply", apply(subject.target(), fence, &at, 0, changes));
        promise.ok("reopen", subject.reopen());
        promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
        expect_changes(&mut after, changes);
    }
    let rows = read_back_all(promise, subject.target(), SECOND, &table);
    promise.equal("rows after the increment", &rows, &after);
    let held = [0, 1].map(|at| {
        let mark = promise.ok("mark", subject.target().mark(&shard(SECOND, &table, at)));
        mark.unwrap_or_default().digest()
    });
    let digest = digest(table.digest_id, &after);
    promise.equal("digest", &held.into_iter().sum(), &digest);
    promise.ok("seal", subject.target().seal(fence));
    after
}

#[track_caller]
fn stands(promise: Promise, subject: &dyn TargetSubject, point: u32, held: bool) {
    let found = existing(promise, subject.target(), &name("a"));
    let copy = CopyState { origin: origin(point), held, written_to: false };
    promise.equal("copy", &found.copy, &Some(copy));
}

pub(super) fn a_published_copy_rolls_forward(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_published_copy_rolls_forward");
    let before = restored(promise, subject, Publish::Visible);
    let copy = existing(promise, subject.target(), &name("a"));
    let after = roll(promise, subject, &before);
    promise.equal("rows until publishing", &visible(promise, subject, &name("a")), &before);
    stands(promise, subject, 1, false);
    promise.ok("publish", subject.target().publish(fence(SECOND, 1), Publish::Visible));
    for _ in 0..2 {
        promise.equal("rows", &visible(promise, subject, &name("a")), &after);
        stands(promise, subject, 2, false);
        let found = existing(promise, subject.target(), &name("a"));
        promise.equal("row count", &found.rows, &(after.len() as u64));
        promise.equal("digest id", &found.digest_id, &copy.digest_id);
        promise.ok("publish again", subject.target().publish(fence(SECOND, 1), Publish::Visible));
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_held_copy_rolls_forward(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_held_copy_rolls_forward");
    let before = restored(promise, subject, Publish::Held);
    for _ in 0..2 {
        invisible(promise, subject, &name("a"));
        stands(promise, subject, 1, true);
        promise.ok("reopen", subject.reopen());
    }
    // Its name is taken all the same.
    let fresh = table("a", Disposition::Fresh);
    let other = fence(crate::ids::OperationId(9), 1);
    promise.refused("prepare", subject.target().prepare(other, &[fresh]), Kind::InTheWay);

    let after = roll(promise, subject, &before);
    promise.ok("publish", subject.target().publish(fence(SECOND, 1), Publish::Held));
    invisible(promise, subject, &name("a"));
    stands(promise, subject, 2, true);

    // Rolled forward by nothing, it is shown as it is.
    let last = fence(crate::ids::OperationId(3), 1);
    let table = TargetTable { origin: origin(2), ..onwards() };
    restore(promise, subject.target(), last, &table, &[], Publish::Visible);
    promise.equal("rows", &visible(promise, subject, &name("a")), &after);
    stands(promise, subject, 2, false);
}

/// The schema after `note` was dropped and `name` renamed, and `rank` came.
fn narrower() -> Schema {
    let mut schema = schema();
    schema.columns.retain(|column| column.name != "note");
    schema.columns[1].name = "title".to_owned();
    let (id, name) = (schema.next_column_id, "rank".to_owned());
    schema.columns.push(Column { id, name, logical: LogicalType::Int64, native: None });
    schema.next_column_id = ColumnId(id.0 + 1);
    schema
}

/// Rolls a copy forward to a schema that lacks a column, with restarts, and gives what must be
/// there then; `None` when the target says that it cannot, and leaves everything as it was.
fn narrow(promise: Promise, subject: &mut dyn TargetSubject, before: &Rows) -> Option<Rows> {
    let schema = narrower();
    let codec = RowCodec::new(&schema);
    // Given up before it began, it leaves the copy with all its columns.
    let copy = existing(promise, subject.target(), &name("a"));
    let (given_up, table) =
        (fence(crate::ids::OperationId(7), 1), TargetTable { schema: schema.clone(), ..onwards() });
    let prepared = subject.target().prepare(given_up, &[table]);
    if prepared.as_ref().is_err_and(|error| error.kind() == Kind::Unsupported) {
        promise.equal("copy", &existing(promise, subject.target(), &name("a")), &copy);
        return None;
    }
    promise.ok("prepare", prepared);
    promise.ok("discard", subject.target().discard(given_up));
    promise.equal("copy", &existing(promise, subject.target(), &name("a")), &copy);
    let (fence, table) = (fence(SECOND, 1), TargetTable { schema, ..onwards() });
    let mut after = Rows::new();
    for (key, row) in before {
        let mut payload = Vec::new();
        promise.ok("project", codec.project(row, &mut payload));
        after.insert(key.clone(), payload);
    }
    for _ in 0..2 {
        promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
        let rows = read_back_all(promise, subject.target(), SECOND, &table);
        promise.equal("rows before the first chunk", &rows, &after);
        let held = [0, 1].map(|at| {
            let mark = promise.ok("mark", subject.target().mark(&shard(SECOND, &table, at)));
            mark.unwrap_or_default().digest()
        });
        let digest = digest(table.digest_id, &after);
        promise.equal("digest before the first chunk", &held.into_iter().sum(), &digest);
        promise.ok("reopen", subject.reopen());
    }
    for (at, id) in [(0, 5), (1, 550), (1, 900)] {
        let mut payload = Vec::new();
        let row = [Value::Int64(id), Value::Text("new".to_owned()), Value::Int64(7)];
        promise.ok("encode", codec.encode_payload(&row, &mut payload));
        let mut changes = RowBatch::new();
        changes.push(RowRef { key: &key(id), op: ChangeOp::Upsert, payload: &payload });
        let at = shard(SECOND, &table, at);
        promise.ok("apply", apply_chunk(subject.target(), fence, &at, 0, &changes));
        after.insert(key(id), payload);
        promise.ok("reopen", subject.reopen());
        promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    }
    let rows = read_back_all(promise, subject.target(), SECOND, &table);
    promise.equal("rows after the increment", &rows, &after);
    Some(after)
}

pub(super) fn a_copy_loses_the_columns_that_went(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_copy_loses_the_columns_that_went");
    let before = restored(promise, subject, Publish::Visible);
    let after = narrow(promise, subject, &before);
    promise.equal("rows until publishing", &visible(promise, subject, &name("a")), &before);
    let Some(after) = after else { return };
    promise.equal(
        "schema until publishing",
        &existing(promise, subject.target(), &name("a")).schema,
        &schema(),
    );
    promise.ok("seal", subject.target().seal(fence(SECOND, 1)));
    promise.ok("publish", subject.target().publish(fence(SECOND, 1), Publish::Visible));
    for _ in 0..2 {
        promise.equal("rows", &visible(promise, subject, &name("a")), &after);
        let found = existing(promise, subject.target(), &name("a"));
        promise.equal("schema", &found.schema, &narrower());
        stands(promise, subject, 2, false);
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_held_copy_loses_them_too(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_held_copy_loses_them_too");
    let before = restored(promise, subject, Publish::Held);
    let Some(after) = narrow(promise, subject, &before) else { return };
    promise.ok("seal", subject.target().seal(fence(SECOND, 1)));
    promise.ok("publish", subject.target().publish(fence(SECOND, 1), Publish::Held));
    invisible(promise, subject, &name("a"));
    stands(promise, subject, 2, true);

    let last = fence(crate::ids::OperationId(3), 1);
    let table = TargetTable { schema: narrower(), ..onwards() };
    restore(promise, subject.target(), last, &table, &[], Publish::Visible);
    promise.equal("rows", &visible(promise, subject, &name("a")), &after);
    stands(promise, subject, 2, false);
}

pub(super) fn a_copy_written_to_is_refused(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_copy_written_to_is_refused");
    let mut before = restored(promise, subject, Publish::Visible);
    let theirs = vec![Change::upsert(7, "by a user")];
    promise.ok("write", subject.write(&name("a"), &chunk(&theirs)));
    expect_changes(&mut before, &theirs);
    for _ in 0..2 {
        let found = existing(promise, subject.target(), &name("a"));
        promise.holds(found.copy.is_some_and(|copy| copy.written_to), "a write went unnoticed");
        let result = subject.target().prepare(fence(SECOND, 1), &[onwards()]);
        promise.refused("prepare", result, Kind::InTheWay);
        promise.equal("rows", &visible(promise, subject, &name("a")), &before);
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_copy_written_to_meanwhile_is_kept(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_copy_written_to_meanwhile_is_kept");
    let mut before = restored(promise, subject, Publish::Visible);
    roll(promise, subject, &before);
    let theirs = vec![Change::upsert(7, "by a user")];
    promise.ok("write", subject.write(&name("a"), &chunk(&theirs)));
    expect_changes(&mut before, &theirs);
    for _ in 0..2 {
        let result = subject.target().publish(fence(SECOND, 1), Publish::Visible);
        promise.refused("publish", result, Kind::InTheWay);
        promise.equal("rows", &visible(promise, subject, &name("a")), &before);
        promise.ok("reopen", subject.reopen());
    }
    promise.ok("discard", subject.target().discard(fence(SECOND, 1)));
    promise.equal("rows", &visible(promise, subject, &name("a")), &before);
}

/// A table whole, in the place of the copy that stands there.
fn replacement(promise: Promise, subject: &dyn TargetSubject) -> TargetTable {
    let copy = existing(promise, subject.target(), &name("a"));
    let disposition = Disposition::ReplaceCopy { table: copy.id };
    TargetTable { origin: origin(2), ..table("a", disposition) }
}

pub(super) fn a_copy_written_to_while_it_is_replaced_is_kept(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_copy_written_to_while_it_is_replaced_is_kept");
    let mut before = restored(promise, subject, Publish::Visible);
    let (second, table) = (fence(SECOND, 1), replacement(promise, subject));
    promise.ok("prepare", subject.target().prepare(second, std::slice::from_ref(&table)));
    apply_all(promise, subject.target(), second, &table, 0, &upserts(0..9, "newer"));
    promise.ok("seal", subject.target().seal(second));
    let theirs = vec![Change::upsert(7, "by a user")];
    promise.ok("write", subject.write(&name("a"), &chunk(&theirs)));
    expect_changes(&mut before, &theirs);
    for _ in 0..2 {
        let result = subject.target().publish(second, Publish::Visible);
        promise.refused("publish", result, Kind::InTheWay);
        promise.equal("rows", &visible(promise, subject, &name("a")), &before);
        promise.ok("reopen", subject.reopen());
    }
    promise.ok("discard", subject.target().discard(second));
    let third = fence(crate::ids::OperationId(3), 1);
    let result = subject.target().prepare(third, std::slice::from_ref(&table));
    promise.refused("prepare", result, Kind::InTheWay);
    promise.ok("drop", subject.drop_table(&name("a")));
    let result = subject.target().prepare(third, std::slice::from_ref(&table));
    promise.refused("prepare over nothing", result, Kind::InTheWay);
    create(promise, subject, &name("a"), &theirs);
    let result = subject.target().prepare(third, &[table]);
    promise.refused("prepare over a table of others", result, Kind::InTheWay);
    promise.equal("rows", &visible(promise, subject, &name("a")), &rows_of(&theirs));
}

pub(super) fn holding_hides_nothing_that_is_seen(subject: &mut dyn TargetSubject) {
    let promise = Promise("holding_hides_nothing_that_is_seen");
    let before = restored(promise, subject, Publish::Visible);
    let copy =
        Disposition::ReplaceCopy { table: existing(promise, subject.target(), &name("a")).id };
    for (at, disposition) in (2..).zip([Disposition::Replace, copy, Disposition::RollForward]) {
        let fence = fence(crate::ids::OperationId(at), 1);
        let table = TargetTable { disposition, ..onwards() };
        promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
        promise.ok("seal", subject.target().seal(fence));
        for _ in 0..2 {
            let result = subject.target().publish(fence, Publish::Held);
            promise.refused("publish", result, Kind::InTheWay);
            promise.equal("rows", &visible(promise, subject, &name("a")), &before);
            stands(promise, subject, 1, false);
            promise.ok("reopen", subject.reopen());
        }
        promise.ok("discard", subject.target().discard(fence));
    }
}

pub(super) fn an_untouched_copy_is_replaced(subject: &mut dyn TargetSubject) {
    let promise = Promise("an_untouched_copy_is_replaced");
    restored(promise, subject, Publish::Visible);
    let table = replacement(promise, subject);
    let newer = upserts(0..9, "newer");
    restore(promise, subject.target(), fence(SECOND, 1), &table, &newer, Publish::Visible);
    for _ in 0..2 {
        promise.equal("rows", &visible(promise, subject, &name("a")), &rows_of(&newer));
        stands(promise, subject, 2, false);
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_copy_cut_differently_is_refused(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_copy_cut_differently_is_refused");
    restored(promise, subject, Publish::Visible);
    let whole = TargetTable { shards: vec![KeyRange::ALL], ..onwards() };
    let result = subject.target().prepare(fence(SECOND, 1), &[whole]);
    promise.refused("prepare", result, Kind::Usage);
}

pub(super) fn what_is_no_copy_is_not_rolled_forward(subject: &mut dyn TargetSubject) {
    let promise = Promise("what_is_no_copy_is_not_rolled_forward");
    let result = subject.target().prepare(fence(FIRST, 1), &[onwards()]);
    promise.refused("prepare over nothing", result, Kind::InTheWay);
    create(promise, subject, &name("a"), &upserts(0..3, "theirs"));
    let result = subject.target().prepare(fence(SECOND, 1), &[onwards()]);
    promise.refused("prepare over a table of others", result, Kind::InTheWay);
}

pub(super) fn discard_keeps_a_published_copy(subject: &mut dyn TargetSubject) {
    let promise = Promise("discard_keeps_a_published_copy");
    let before = restored(promise, subject, Publish::Visible);
    roll(promise, subject, &before);
    for _ in 0..2 {
        promise.ok("discard", subject.target().discard(fence(SECOND, 1)));
        promise.equal("rows", &visible(promise, subject, &name("a")), &before);
        stands(promise, subject, 1, false);
        promise.ok("reopen", subject.reopen());
    }
    // And it can still be rolled forward.
    let third = fence(crate::ids::OperationId(3), 1);
    let table = onwards();
    promise.ok("prepare", subject.target().prepare(third, std::slice::from_ref(&table)));
    apply_all(promise, subject.target(), third, &table, 0, &increment());
}

pub(super) fn discard_keeps_an_untouched_held_copy(subject: &mut dyn TargetSubject) {
    let promise = Promise("discard_keeps_an_untouched_held_copy");
    let before = restored(promise, subject, Publish::Held);
    let second = fence(SECOND, 1);
    promise.ok("prepare", subject.target().prepare(second, &[onwards()]));
    for _ in 0..2 {
        promise.ok("discard", subject.target().discard(second));
        stands(promise, subject, 1, true);
        promise.ok("reopen", subject.reopen());
    }
    let third = fence(crate::ids::OperationId(3), 1);
    restore(promise, subject.target(), third, &onwards(), &[], Publish::Visible);
    promise.equal("rows", &visible(promise, subject, &name("a")), &before);
}

pub(super) fn a_half_rolled_held_copy_is_told(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_half_rolled_held_copy_is_told");
    let before = restored(promise, subject, Publish::Held);
    let (second, table) = (fence(SECOND, 1), onwards());
    promise.ok("prepare", subject.target().prepare(second, std::slice::from_ref(&table)));
    apply_all(promise, subject.target(), second, &table, 0, &increment());
    promise.ok("discard", subject.target().discard(second));
    promise.ok("reopen", subject.reopen());
    invisible(promise, subject, &name("a"));
    let copy = existing(promise, subject.target(), &name("a")).copy;
    let third = fence(crate::ids::OperationId(3), 1);
    let prepared = subject.target().prepare(third, std::slice::from_ref(&table));
    if copy.is_some_and(|copy| copy.written_to) {
        promise.refused("prepare", prepared, Kind::InTheWay);
    } else {
        promise.ok("prepare", prepared);
        let rows = read_back_all(promise, subject.target(), third.operation, &table);
        promise.equal("rows of a copy that counts as untouched", &rows, &before);
    }
}
