//! Promises about epochs: who may write, and who no longer may.

use super::bench::{
    FIRST, apply, apply_all, chunk, digest, expect_changes, fence, next_mark, read_back_all,
    rows_of, shard, table, upserts, visible,
};
use super::{Promise, TargetSubject};
use crate::database::{Disposition, Publish};
use crate::error::Kind;

pub(super) fn a_stale_epoch_changes_nothing(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_stale_epoch_changes_nothing");
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Fresh)];
    let (old, new) = (fence(FIRST, 3), fence(FIRST, 5));
    let at = shard(FIRST, &tables[0], 0);
    promise.ok("prepare", subject.target().prepare(old, &tables));
    let before = upserts(0..10, "before");
    let mark = promise.ok("apply", apply(subject.target(), old, &at, 0, &before));
    promise.ok("takeover", subject.target().prepare(new, &tables));

    let stale = upserts(10..20, "stale");
    for _ in 0..2 {
        let target = subject.target();
        let result = apply(target, old, &at, 0, &stale);
        promise.refused("apply", result, Kind::Fenced);
        // Not only on the shard that saw a chunk.
        let other = shard(FIRST, &tables[1], 0);
        promise.refused("apply", apply(target, old, &other, 0, &stale), Kind::Fenced);
        promise.refused("prepare", target.prepare(old, &tables), Kind::Fenced);
        promise.refused("seal", target.seal(old), Kind::Fenced);
        promise.refused("publish", target.publish(old, Publish::Visible), Kind::Fenced);
        promise.refused("discard", target.discard(old), Kind::Fenced);
        let kept = promise.ok("mark", target.mark(&at));
        promise.equal("mark", &kept, &Some(mark.clone()));
        promise.equal("mark", &promise.ok("mark", target.mark(&other)), &None);
        let rows = read_back_all(promise, target, FIRST, &tables[0]);
        promise.equal("rows", &rows, &rows_of(&before));
        promise.ok("reopen", subject.reopen());
    }

    // Nothing was sealed or lost on the way: the new holder carries on from the mark.
    let after = upserts(10..20, "after");
    let mark = promise.ok("apply", apply(subject.target(), new, &at, 0, &after));
    let mut rows = rows_of(&before);
    expect_changes(&mut rows, &after);
    promise.equal("digest", &mark.digest(), &digest(tables[0].digest_id, &rows));

    promise.ok("seal", subject.target().seal(new));
    let early = subject.target().publish(old, Publish::Visible);
    promise.refused("publish after the seal", early, Kind::Fenced);
    promise.ok("publish", subject.target().publish(new, Publish::Visible));
    promise.equal("published rows", &visible(promise, subject, &tables[0].name), &rows);
    promise.refused("discard", subject.target().discard(old), Kind::Fenced);
}

pub(super) fn an_unclaimed_epoch_changes_nothing(subject: &mut dyn TargetSubject) {
    let promise = Promise("an_unclaimed_epoch_changes_nothing");
    let table = table("a", Disposition::Fresh);
    let (claimed, unclaimed) = (fence(FIRST, 1), fence(FIRST, 2));
    let at = shard(FIRST, &table, 0);
    promise.ok("prepare", subject.target().prepare(claimed, std::slice::from_ref(&table)));
    let result = apply(subject.target(), unclaimed, &at, 0, &upserts(0..10, "x"));
    promise.refused("apply", result, Kind::Fenced);
    promise.equal("mark", &promise.ok("mark", subject.target().mark(&at)), &None);
    promise.ok("apply", apply(subject.target(), claimed, &at, 0, &upserts(0..10, "x")));
    promise.ok("seal", subject.target().seal(claimed));
    let result = subject.target().publish(unclaimed, Publish::Visible);
    promise.refused("publish", result, Kind::Fenced);
    promise.ok("publish", subject.target().publish(claimed, Publish::Visible));
}

pub(super) fn a_sealed_shard_takes_no_rows(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_sealed_shard_takes_no_rows");
    let table = table("a", Disposition::Fresh);
    let (first, next) = (fence(FIRST, 1), fence(FIRST, 2));
    promise.ok("prepare", subject.target().prepare(first, std::slice::from_ref(&table)));
    let before = upserts((0..10).chain(600..610), "before");
    apply_all(promise, subject.target(), first, &table, 0, &before);
    promise.ok("seal", subject.target().seal(first));
    let late = [upserts(10..20, "late"), upserts(610..620, "late")];
    for _ in 0..2 {
        for (at, changes) in (0..).zip(&late) {
            let at = shard(FIRST, &table, at);
            let stored = promise.ok("mark", subject.target().mark(&at));
            let mut mark = next_mark(stored, 0, changes);
            let result = subject.target().apply(first, &at, &chunk(changes), &mut mark);
            promise.refused("apply after the seal", result, Kind::Fenced);
        }
        let rows = read_back_all(promise, subject.target(), FIRST, &table);
        promise.equal("rows", &rows, &rows_of(&before));
        promise.ok("reopen", subject.reopen());
        // Neither of these opens it again: the epoch is the same.
        promise.ok("seal again", subject.target().seal(first));
        let again = subject.target().prepare(first, std::slice::from_ref(&table));
        promise.ok("prepare again", again);
        let more = [super::bench::table("b", Disposition::Fresh)];
        let result = subject.target().prepare(first, &more);
        promise.refused("prepare of one more table after the seal", result, Kind::Usage);
    }

    // A holder that takes over while the proof runs may seal at once, or open and seal.
    promise.ok("seal by the next holder", subject.target().seal(next));
    let at = shard(FIRST, &table, 0);
    for holder in [first, next] {
        let result = apply(subject.target(), holder, &at, 0, &late[0]);
        promise.refused("apply after the second seal", result, Kind::Fenced);
    }
    let last = fence(FIRST, 3);
    promise.ok("prepare", subject.target().prepare(last, std::slice::from_ref(&table)));
    promise.ok("apply", apply(subject.target(), last, &at, 0, &late[0]));
    promise.ok("seal", subject.target().seal(last));
    promise.ok("publish", subject.target().publish(last, Publish::Visible));
    let mut rows = rows_of(&before);
    expect_changes(&mut rows, &late[0]);
    promise.equal("published rows", &visible(promise, subject, &table.name), &rows);
}

pub(super) fn a_discarded_operation_makes_nothing_anew(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_discarded_operation_makes_nothing_anew");
    let table = table("a", Disposition::Fresh);
    // Once after preparing, once by a canceller that came before anything was prepared.
    for operation in [FIRST, super::bench::SECOND] {
        let (holder, canceller) = (fence(operation, 1), fence(operation, 2));
        if operation == FIRST {
            let prepared = subject.target().prepare(holder, std::slice::from_ref(&table));
            promise.ok("prepare", prepared);
        }
        for _ in 0..2 {
            promise.ok("discard", subject.target().discard(canceller));
            promise.ok("reopen", subject.reopen());
        }
        for late in [holder, canceller, fence(operation, 9)] {
            let result = subject.target().prepare(late, std::slice::from_ref(&table));
            promise.refused("prepare after the discard", result, Kind::Fenced);
        }
    }
    // Its name is free again.
    let other = fence(crate::ids::OperationId(3), 1);
    promise.ok("prepare", subject.target().prepare(other, &[table]));
}
