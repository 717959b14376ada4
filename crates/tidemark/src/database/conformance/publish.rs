//! Promises about the end of an operation: publishing, discarding, and the names they need.

use super::bench::{
    Change, Dice, FIRST, SECOND, SPLIT, apply, apply_all, create, digest, existing, expect_changes,
    fence, invisible, name, read_back, restore, rows_of, schema, shard, table, upserts, visible,
};
use super::{Promise, Rows, TargetSubject};
use crate::database::{CopyState, Disposition, Fence, Publish, TargetTable};
use crate::error::Kind;
use crate::ids::{Epoch, OperationId};

pub(super) fn publish_shows_all_tables(subject: &mut dyn TargetSubject) {
    let promise = Promise("publish_shows_all_tables");
    let full = table("full", Disposition::Fresh);
    let empty = table("empty", Disposition::Fresh);
    let fence = fence(FIRST, 1);
    let tables = [full.clone(), empty.clone()];
    promise.ok("prepare", subject.target().prepare(fence, &tables));
    let changes = upserts((0..300).chain(SPLIT..800), "x");
    apply_all(promise, subject.target(), fence, &full, 0, &changes);
    promise.ok("seal", subject.target().seal(fence));
    promise.ok("publish", subject.target().publish(fence, Publish::Visible));
    for _ in 0..2 {
        promise.equal("rows", &visible(promise, subject, &full.name), &rows_of(&changes));
        promise.equal("rows", &visible(promise, subject, &empty.name), &Rows::new());
        for table in &tables {
            let found = existing(promise, subject.target(), &table.name);
            promise.equal("schema", &found.schema, &table.schema);
            promise.equal("digest id", &found.digest_id, &table.digest_id);
            promise.equal("cut", &found.shards, &table.shards);
            let copy = CopyState { origin: table.origin.clone(), held: false, written_to: false };
            promise.equal("copy", &found.copy, &Some(copy));
        }
        let found = existing(promise, subject.target(), &full.name);
        promise.equal("row count", &found.rows, &600);
        promise.ok("reopen", subject.reopen());
    }
    // It is a table like any other now.
    let more = upserts(1000..1001, "by a user");
    promise.ok("write", subject.write(&full.name, &super::bench::chunk(&more)));
    let found = existing(promise, subject.target(), &full.name);
    promise.holds(found.copy.is_some_and(|copy| copy.written_to), "a write went unnoticed");
}

pub(super) fn publish_is_idempotent(subject: &mut dyn TargetSubject) {
    let promise = Promise("publish_is_idempotent");
    let table = table("a", Disposition::Fresh);
    let changes = upserts(0..10, "x");
    let first = fence(FIRST, 1);
    restore(promise, subject.target(), first, &table, &changes, Publish::Visible);
    for _ in 0..2 {
        promise.ok("publish again", subject.target().publish(first, Publish::Visible));
        promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&changes));
        promise.ok("reopen", subject.reopen());
    }
    // A holder that takes over does not know yet that it is over.
    let next = fence(FIRST, 2);
    promise.ok("prepare", subject.target().prepare(next, std::slice::from_ref(&table)));
    promise.ok("seal", subject.target().seal(next));
    promise.ok("publish again", subject.target().publish(next, Publish::Visible));
    promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&changes));
    let at = shard(FIRST, &table, 0);
    promise.refused("mark of what was published", subject.target().mark(&at), Kind::NotFound);

    promise.ok("drop", subject.drop_table(&table.name));
    promise.ok("publish again", subject.target().publish(next, Publish::Visible));
    invisible(promise, subject, &table.name);
}

pub(super) fn publish_needs_a_seal(subject: &mut dyn TargetSubject) {
    let promise = Promise("publish_needs_a_seal");
    let table = table("a", Disposition::Fresh);
    let (first, next) = (fence(FIRST, 1), fence(FIRST, 2));
    let nothing = subject.target().publish(first, Publish::Visible);
    promise.refused("publish of nothing", nothing, Kind::NotFound);
    promise.refused("seal of nothing", subject.target().seal(first), Kind::NotFound);
    promise.ok("prepare", subject.target().prepare(first, std::slice::from_ref(&table)));
    let unsealed = subject.target().publish(first, Publish::Visible);
    promise.refused("publish without a seal", unsealed, Kind::Usage);
    promise.ok("seal", subject.target().seal(first));
    promise.ok("takeover", subject.target().prepare(next, std::slice::from_ref(&table)));
    let opened = subject.target().publish(next, Publish::Visible);
    promise.refused("publish after the shards were opened again", opened, Kind::Usage);
    invisible(promise, subject, &table.name);
}

pub(super) fn a_name_taken_meanwhile_stops_publish(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_name_taken_meanwhile_stops_publish");
    let tables =
        ["a", "b", "c"].map(|text| table(text, Disposition::Fresh)).into_iter().collect::<Vec<_>>();
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, &tables));
    let changes = upserts(0..10, "x");
    for table in &tables {
        apply_all(promise, subject.target(), fence, table, 0, &changes);
    }
    promise.ok("seal", subject.target().seal(fence));
    match subject.create_table(&tables[1].name, &schema()) {
        Err(error) => {
            // A database that guards reserved names against its users needs no more.
            promise.equal("kind of the refusal", &error.kind(), &Kind::InTheWay);
        }
        Ok(()) => {
            for _ in 0..2 {
                let result = subject.target().publish(fence, Publish::Visible);
                promise.refused("publish", result, Kind::InTheWay);
                for other in [&tables[0], &tables[2]] {
                    invisible(promise, subject, &other.name);
                    let found = promise.ok("existing", subject.target().existing(&other.name));
                    promise.equal("existing", &found, &None);
                }
                let theirs = visible(promise, subject, &tables[1].name);
                promise.equal("rows of the table in the way", &theirs, &Rows::new());
                promise.ok("reopen", subject.reopen());
            }
            promise.ok("drop", subject.drop_table(&tables[1].name));
        }
    }
    promise.ok("publish", subject.target().publish(fence, Publish::Visible));
    for table in &tables {
        promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&changes));
    }
}

pub(super) fn an_existing_table_is_in_the_way(subject: &mut dyn TargetSubject) {
    let promise = Promise("an_existing_table_is_in_the_way");
    let theirs = upserts(0..5, "theirs");
    create(promise, subject, &name("b"), &theirs);
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Fresh)];
    let error = promise.refused(
        "prepare",
        subject.target().prepare(fence(FIRST, 1), &tables),
        Kind::InTheWay,
    );
    promise.holds(error.message().contains('b'), format!("the error names no table: {error}"));
    promise.ok("discard", subject.target().discard(fence(FIRST, 1)));
    promise.equal("rows", &visible(promise, subject, &name("b")), &rows_of(&theirs));
    // No reservation stayed behind.
    promise.ok("prepare", subject.target().prepare(fence(SECOND, 1), &tables[..1]));
}

pub(super) fn replace_swaps(subject: &mut dyn TargetSubject) {
    let promise = Promise("replace_swaps");
    let table = table("a", Disposition::Replace);
    let old = upserts(0..50, "old");
    create(promise, subject, &table.name, &old);
    let before = existing(promise, subject.target(), &table.name);
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let new = upserts((20..30).chain(700..720), "new");
    apply_all(promise, subject.target(), fence, &table, 0, &new);
    promise.ok("seal", subject.target().seal(fence));
    promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&old));
    promise.ok("publish", subject.target().publish(fence, Publish::Visible));
    for _ in 0..2 {
        promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&new));
        let after = existing(promise, subject.target(), &table.name);
        promise.holds(after.id != before.id, "the new table has the old one's identity");
        promise.equal("row count", &after.rows, &30);
        promise.ok("reopen", subject.reopen());
    }
    // Where nothing stands, there is nothing to replace, and that is no error.
    let other = super::bench::table("b", Disposition::Replace);
    let fence = super::bench::fence(SECOND, 1);
    restore(promise, subject.target(), fence, &other, &new, Publish::Visible);
    promise.equal("rows", &visible(promise, subject, &other.name), &rows_of(&new));
}

pub(super) fn discard_leaves_the_target_as_it_was(subject: &mut dyn TargetSubject) {
    let promise = Promise("discard_leaves_the_target_as_it_was");
    let old = upserts(0..50, "old");
    create(promise, subject, &name("b"), &old);
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Replace)];
    let before = existing(promise, subject.target(), &tables[1].name);
    for (operation, sealed) in [(FIRST, false), (SECOND, true)] {
        let fence = fence(operation, 1);
        promise.ok("prepare", subject.target().prepare(fence, &tables));
        for table in &tables {
            apply_all(promise, subject.target(), fence, table, 0, &upserts(0..100, "new"));
        }
        if sealed {
            promise.ok("seal", subject.target().seal(fence));
        }
        for _ in 0..2 {
            promise.ok("discard", subject.target().discard(fence));
            invisible(promise, subject, &tables[0].name);
            let gone = promise.ok("existing", subject.target().existing(&tables[0].name));
            promise.equal("existing", &gone, &None);
            let kept = existing(promise, subject.target(), &tables[1].name);
            promise.equal("existing", &kept, &before);
            let rows = visible(promise, subject, &tables[1].name);
            promise.equal("rows", &rows, &rows_of(&old));
            promise.ok("reopen", subject.reopen());
        }
    }
}

pub(super) fn discard_is_refused_after_publishing(subject: &mut dyn TargetSubject) {
    let promise = Promise("discard_is_refused_after_publishing");
    let table = table("a", Disposition::Fresh);
    let changes = upserts(0..10, "x");
    let held = fence(FIRST, 1);
    restore(promise, subject.target(), held, &table, &changes, Publish::Visible);
    for epoch in [1, 2] {
        let result = subject.target().discard(fence(FIRST, epoch));
        promise.refused("discard", result, Kind::Usage);
        promise.equal("rows", &visible(promise, subject, &table.name), &rows_of(&changes));
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_reserved_name_is_refused_to_others(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_reserved_name_is_refused_to_others");
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Fresh)];
    let (first, second) = (fence(OperationId(4711), 1), fence(SECOND, 1));
    promise.ok("prepare", subject.target().prepare(first, &tables[..1]));
    for _ in 0..2 {
        for disposition in [Disposition::Fresh, Disposition::Replace] {
            let wanted = [tables[1].clone(), TargetTable { disposition, ..tables[0].clone() }];
            let result = subject.target().prepare(second, &wanted);
            let error = promise.refused("prepare by another", result, Kind::InTheWay);
            let named = error.message().contains("4711");
            promise.holds(named, format!("the error does not name operation 4711: {error}"));
        }
        promise.ok("reopen", subject.reopen());
    }
    promise.ok("discard", subject.target().discard(first));
    promise.ok("prepare", subject.target().prepare(second, &tables));
}

pub(super) fn disjoint_operations_are_independent(subject: &mut dyn TargetSubject) {
    let promise = Promise("disjoint_operations_are_independent");
    let (a, b) = (table("a", Disposition::Fresh), table("b", Disposition::Fresh));
    let (first, second) = (fence(FIRST, 7), fence(SECOND, 1));
    promise.ok("prepare", subject.target().prepare(first, std::slice::from_ref(&a)));
    promise.ok("prepare", subject.target().prepare(second, std::slice::from_ref(&b)));
    let (for_a, for_b) = (upserts(0..10, "a"), upserts(0..20, "b"));
    apply_all(promise, subject.target(), first, &a, 0, &for_a);
    apply_all(promise, subject.target(), second, &b, 0, &for_b);
    promise.ok("discard", subject.target().discard(first));
    promise.ok("reopen", subject.reopen());
    let rows = read_back(promise, subject.target(), &shard(SECOND, &b, 0));
    promise.equal("rows", &rows, &rows_of(&for_b));
    promise.ok("seal", subject.target().seal(second));
    promise.ok("publish", subject.target().publish(second, Publish::Visible));
    invisible(promise, subject, &a.name);
    promise.equal("rows", &visible(promise, subject, &b.name), &rows_of(&for_b));
}

/// Random schedules of chunks, restarts, takeovers, cancels and publishing against a plain map.
pub(super) fn any_call_may_be_the_last(subject: &mut dyn TargetSubject) {
    let promise = Promise("any_call_may_be_the_last_before_a_restart");
    let mut published: Rows = Rows::new();
    let table = table("a", Disposition::Replace);
    for seed in 0..12u64 {
        let note = format!("seed {seed}");
        let mut dice = Dice(seed);
        let mut holder = Fence { operation: OperationId(seed + 1), epoch: Epoch(1) };
        let tables = std::slice::from_ref(&table);
        promise.ok(&note, subject.target().prepare(holder, tables));
        let mut restart = |dice: &mut Dice, subject: &mut dyn TargetSubject| {
            if dice.below(2) == 0 {
                promise.ok(&note, subject.reopen());
            }
            if dice.below(3) == 0 {
                holder.epoch.0 += 1;
                promise.ok(&note, subject.target().prepare(holder, tables));
            }
            holder
        };
        let mut rows = Rows::new();
        for from in (0..1000).step_by(100) {
            let holder = restart(&mut dice, subject);
            let changes: Vec<Change> = dice.changes(&rows, from, from + 100);
            let at = shard(holder.operation, &table, u32::from(from >= SPLIT));
            let mark = promise.ok(&note, apply(subject.target(), holder, &at, 0, &changes));
            expect_changes(&mut rows, &changes);
            let stored = read_back(promise, subject.target(), &at);
            promise.equal(&note, &mark.digest(), &digest(table.digest_id, &stored));
        }
        let holder = restart(&mut dice, subject);
        let cancelled = dice.below(3) == 0;
        if cancelled {
            promise.ok(&note, subject.target().discard(holder));
        } else {
            promise.ok(&note, subject.target().seal(holder));
            promise.ok(&note, subject.reopen());
            promise.ok(&note, subject.target().publish(holder, Publish::Visible));
            published = rows;
        }
        if dice.below(2) == 0 {
            promise.ok(&note, subject.reopen());
        }
        let seen = promise.ok(&note, subject.rows(&table.name)).unwrap_or_default();
        promise.equal(&note, &seen, &published);
    }
}
