//! Promises about hidden tables: rows, marks and what they mean.

use super::bench::{
    Change, Dice, FIRST, SECOND, SPLIT, apply, apply_all, by_shard, chunk, digest, expect_changes,
    fence, invisible, key, next_mark, read_back, read_back_all, rows_of, shard, table, upserts,
};
use super::{Promise, Rows, TargetSubject};
use crate::database::{Disposition, LinkTally, Mark};
use crate::error::Kind;
use crate::ids::StepIdx;
use crate::row::{RowBatch, RowStream};

pub(super) fn txn_grows_and_survives_reopening(subject: &mut dyn TargetSubject) {
    let promise = Promise("txn_grows_and_survives_reopening");
    let identity = promise.ok("identity", subject.target().identity());
    let mut last = None;
    for _ in 0..3 {
        for _ in 0..3 {
            let txn = promise.ok("allocate_txn", subject.target().allocate_txn());
            promise.holds(last < Some(txn), format!("{txn} came after {last:?}"));
            last = Some(txn);
        }
        promise.ok("reopen", subject.reopen());
    }
    let again = promise.ok("identity", subject.target().identity());
    promise.equal("identity after reopening", &again, &identity);
}

pub(super) fn prepare_is_idempotent_and_keeps_marks(subject: &mut dyn TargetSubject) {
    let promise = Promise("prepare_is_idempotent_and_keeps_marks");
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Fresh)];
    let fence = fence(FIRST, 1);
    let at = shard(FIRST, &tables[0], 0);
    promise.ok("prepare", subject.target().prepare(fence, &tables[..1]));
    let mark = promise.ok("mark", subject.target().mark(&at));
    promise.equal("mark before the first chunk", &mark, &None);

    let changes = upserts(0..10, "x");
    let mark = promise.ok("apply", apply(subject.target(), fence, &at, 0, &changes));
    // The second call completes what a crash may have left undone.
    for _ in 0..2 {
        promise.ok("prepare again", subject.target().prepare(fence, &tables));
        let kept = promise.ok("mark", subject.target().mark(&at));
        promise.equal("mark after preparing again", &kept, &Some(mark.clone()));
        let other = promise.ok("mark", subject.target().mark(&shard(FIRST, &tables[1], 1)));
        promise.equal("mark of the second table", &other, &None);
        promise.ok("reopen", subject.reopen());
    }
    let rows = read_back(promise, subject.target(), &at);
    promise.equal("rows", &rows, &rows_of(&changes));

    let mut changed = tables[0].clone();
    changed.shards.truncate(1);
    changed.shards[0].end = None;
    let what = "prepare with another cut";
    promise.refused(what, subject.target().prepare(fence, &[changed]), Kind::Usage);
}

pub(super) fn hidden_tables_are_invisible(subject: &mut dyn TargetSubject) {
    let promise = Promise("hidden_tables_are_invisible");
    let table = table("a", Disposition::Fresh);
    let fence = fence(FIRST, 1);
    let check = |subject: &dyn TargetSubject| {
        let found = promise.ok("existing", subject.target().existing(&table.name));
        promise.equal("existing", &found, &None);
        invisible(promise, subject, &table.name);
    };
    check(subject);
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    check(subject);
    apply_all(promise, subject.target(), fence, &table, 0, &upserts(0..1000, "x"));
    check(subject);
    promise.ok("reopen", subject.reopen());
    check(subject);
    promise.ok("seal", subject.target().seal(fence));
    check(subject);
}

pub(super) fn rows_and_mark_are_one_transaction(subject: &mut dyn TargetSubject) {
    let promise = Promise("rows_and_mark_are_one_transaction");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 0));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let before = upserts(0..10, "before");
    let mark = promise.ok("apply", apply(subject.target(), fence, &at, 0, &before));

    // The last row cannot be applied; the rows before it must not stay.
    let mut broken = upserts(10..20, "broken");
    broken.push(Change::update(20, "there is no row 20"));
    let result = apply(subject.target(), fence, &at, 0, &broken);
    promise.refused("apply of an update without its row", result, Kind::Broken);
    for _ in 0..2 {
        let rows = read_back(promise, subject.target(), &at);
        promise.equal("rows after the refusal", &rows, &rows_of(&before));
        let kept = promise.ok("mark", subject.target().mark(&at));
        promise.equal("mark after the refusal", &kept, &Some(mark.clone()));
        promise.ok("reopen", subject.reopen());
    }

    // What was refused left no trace: the same keys go in, and the digest agrees.
    let after = upserts(10..21, "after");
    let mark = promise.ok("apply", apply(subject.target(), fence, &at, 0, &after));
    let mut rows = rows_of(&before);
    expect_changes(&mut rows, &after);
    promise.equal("digest", &mark.digest(), &digest(table.digest_id, &rows));
    promise.equal("rows", &read_back(promise, subject.target(), &at), &rows);
}

pub(super) fn a_mark_reads_back_as_apply_returned_it(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_mark_reads_back_as_apply_returned_it");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 1));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let changes = upserts(SPLIT..SPLIT + 100, "x");
    let mut mark = next_mark(None, 7, &changes);
    mark.links.resize(400, LinkTally { rows: u64::MAX, bytes: 1 });
    mark.bytes = u64::MAX;
    // A fold may have consumed keys beyond the last row that survived.
    mark.last_key = Some(key(SPLIT + 500));
    let sent = mark.clone();
    promise.ok("apply", subject.target().apply(fence, &at, &chunk(&changes), &mut mark));
    let position = Mark { ranges: Vec::new(), ..mark.clone() };
    promise.equal("position that apply returned", &position, &sent);
    promise.equal("digest", &mark.digest(), &digest(table.digest_id, &rows_of(&changes)));
    for _ in 0..2 {
        let stored = promise.ok("mark", subject.target().mark(&at));
        promise.equal("mark", &stored, &Some(mark.clone()));
        promise.ok("reopen", subject.reopen());
    }
    // A chunk without rows moves the mark too: that is how a shard says that it is done.
    mark.done = true;
    promise.ok("apply nothing", subject.target().apply(fence, &at, &chunk(&[]), &mut mark));
    promise.ok("reopen", subject.reopen());
    promise.equal("mark", &promise.ok("mark", subject.target().mark(&at)), &Some(mark));
}

pub(super) fn work_continues_after_reopening(subject: &mut dyn TargetSubject) {
    let promise = Promise("work_continues_after_reopening");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 0));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    for from in (0..100).step_by(10) {
        let changes = upserts(from..from + 10, "x");
        promise.ok("apply", apply(subject.target(), fence, &at, 0, &changes));
        promise.ok("reopen", subject.reopen());
    }
    let rows = rows_of(&upserts(0..100, "x"));
    promise.equal("rows", &read_back(promise, subject.target(), &at), &rows);
    let mark = promise.ok("mark", subject.target().mark(&at)).unwrap_or_default();
    promise.equal("rows of the mark", &mark.rows, &100);
    promise.equal("digest", &mark.digest(), &digest(table.digest_id, &rows));
}

pub(super) fn changes_mean_what_they_say(subject: &mut dyn TargetSubject) {
    let promise = Promise("changes_mean_what_they_say");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 0));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let mut rows = Rows::new();
    let steps = [
        upserts(0..10, "first"),
        vec![
            Change::upsert(1, "overwritten"),
            Change::update(2, "renamed, with its note kept"),
            Change::Delete(3),
            Change::Delete(100),
        ],
        vec![
            Change::upsert(1, "overwritten"),
            Change::update(2, "renamed again"),
            Change::upsert(3, "back"),
            Change::Delete(9),
        ],
    ];
    for (step, changes) in (0..).zip(&steps) {
        let mark = promise.ok("apply", apply(subject.target(), fence, &at, step, changes));
        expect_changes(&mut rows, changes);
        promise.equal("rows", &read_back(promise, subject.target(), &at), &rows);
        promise.equal("digest", &mark.digest(), &digest(table.digest_id, &rows));
        promise.equal("step", &mark.step, &StepIdx(step));
    }
}

pub(super) fn an_update_without_its_row_is_refused(subject: &mut dyn TargetSubject) {
    let promise = Promise("an_update_without_its_row_is_refused");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 0));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let result = apply(subject.target(), fence, &at, 0, &[Change::update(77, "x")]);
    let error = promise.refused("apply", result, Kind::Broken);
    let hex = crate::row::value::hex(&key(77));
    let named = error.message().contains(&hex) || error.message().contains("77");
    promise.holds(named, format!("the error does not name the key `{hex}`: {error}"));
    promise.equal("mark", &promise.ok("mark", subject.target().mark(&at)), &None);
}

pub(super) fn a_doubled_chunk_is_refused(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_doubled_chunk_is_refused");
    let table = table("a", Disposition::Fresh);
    let (fence, at) = (fence(FIRST, 1), shard(FIRST, &table, 0));
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let first = upserts(0..10, "first");
    let mut early = next_mark(None, 1, &first);
    promise.ok("apply", subject.target().apply(fence, &at, &chunk(&first), &mut early));
    let second = upserts(10..20, "second");
    let mut late = next_mark(Some(early.clone()), 1, &second);
    promise.ok("apply", subject.target().apply(fence, &at, &chunk(&second), &mut late));

    let again = upserts(0..10, "again");
    let overlapping = upserts(19..30, "again");
    let nothing: Vec<Change> = Vec::new();
    let doubled = [
        ("the first chunk again", next_mark(None, 1, &again), &again),
        ("a chunk that overlaps", next_mark(Some(early.clone()), 1, &overlapping), &overlapping),
        ("an older mark without rows", early.clone(), &nothing),
        ("an earlier step", next_mark(None, 0, &again), &again),
    ];
    for (what, mut mark, changes) in doubled {
        let result = subject.target().apply(fence, &at, &chunk(changes), &mut mark);
        promise.refused(what, result, Kind::Transient);
        let stored = promise.ok("mark", subject.target().mark(&at));
        promise.equal("mark after a refusal", &stored, &Some(late.clone()));
    }
    let mut rows = rows_of(&first);
    expect_changes(&mut rows, &second);
    promise.equal("rows", &read_back(promise, subject.target(), &at), &rows);
}

pub(super) fn misplaced_rows_are_refused(subject: &mut dyn TargetSubject) {
    let promise = Promise("misplaced_rows_are_refused");
    let table = table("a", Disposition::Fresh);
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let misplaced = [
        ("a row behind the shard", 0, upserts([0, SPLIT], "x")),
        ("a row before the shard", 1, upserts([SPLIT - 1, SPLIT], "x")),
        ("rows that descend", 0, upserts([2, 1], "x")),
        ("one key twice", 0, upserts([1, 1], "x")),
    ];
    for (what, at, changes) in misplaced {
        let at = shard(FIRST, &table, at);
        let result = apply(subject.target(), fence, &at, 0, &changes);
        promise.refused(what, result, Kind::Usage);
        promise.equal("mark", &promise.ok("mark", subject.target().mark(&at)), &None);
    }
}

pub(super) fn the_digest_is_that_of_the_rows(subject: &mut dyn TargetSubject) {
    let promise = Promise("the_digest_is_that_of_the_rows");
    for seed in 0..6u64 {
        let table = table(&format!("t{seed}"), Disposition::Fresh);
        let fence = fence(crate::ids::OperationId(seed + 1), 1);
        promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
        let at = shard(fence.operation, &table, 0);
        let mut dice = Dice(seed);
        let mut rows = Rows::new();
        for step in 0..4u32 {
            let mut from = 0;
            while from < SPLIT {
                let to = (from + 1 + dice.below(80) as i64).min(SPLIT);
                let changes = dice.changes(&rows, from, to);
                from = to;
                let applied = apply(subject.target(), fence, &at, step, &changes);
                let mark = promise.ok(&format!("apply, seed {seed}"), applied);
                expect_changes(&mut rows, &changes);
                let expected = digest(table.digest_id, &rows);
                promise.equal(&format!("digest, seed {seed}"), &mark.digest(), &expected);
                if dice.below(40) == 0 {
                    promise.ok("reopen", subject.reopen());
                }
            }
            let back = read_back(promise, subject.target(), &at);
            promise.equal(&format!("rows, seed {seed}"), &back, &rows);
        }
    }
}

pub(super) fn read_back_is_ascending_and_complete(subject: &mut dyn TargetSubject) {
    let promise = Promise("read_back_is_ascending_and_complete");
    let table = table("a", Disposition::Fresh);
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let nothing = read_back_all(promise, subject.target(), FIRST, &table);
    promise.equal("rows before the first chunk", &nothing, &Rows::new());
    // Negative ids come first in key order; long names need more than one batch.
    let changes = upserts(-3000..3000, &"long ".repeat(40));
    let [low, high] = by_shard(&changes);
    for part in low.chunks(700) {
        promise.ok("apply", apply(subject.target(), fence, &shard(FIRST, &table, 0), 0, part));
    }
    for part in high.chunks(900) {
        promise.ok("apply", apply(subject.target(), fence, &shard(FIRST, &table, 1), 0, part));
    }
    let expected = rows_of(&changes);
    for _ in 0..2 {
        let rows = read_back_all(promise, subject.target(), FIRST, &table);
        promise.holds(rows == expected, format!("read {} of {} rows", rows.len(), expected.len()));
        promise.ok("seal", subject.target().seal(fence));
        promise.ok("reopen", subject.reopen());
    }
}

pub(super) fn a_whole_table_reads_back_as_its_shards(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_whole_table_reads_back_as_its_shards");
    let table = table("a", Disposition::Fresh);
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, std::slice::from_ref(&table)));
    let changes = upserts(-1500..1500, &"long ".repeat(60));
    let check = |subject: &dyn TargetSubject, expected: &Rows| {
        for parts_max in [1, 3] {
            let target = subject.target();
            let streams = promise
                .ok("read_back_table", target.read_back_table(FIRST, &table.name, parts_max));
            let Some(streams) = streams else { return };
            let mut rows = Rows::new();
            for mut stream in streams {
                let mut batch = RowBatch::new();
                while promise.ok("next_batch", stream.next_batch(&mut batch)) {
                    for row in batch.iter() {
                        let before = rows.insert(row.key.to_vec(), row.payload.to_vec());
                        promise.holds(before.is_none(), "a row was read twice");
                    }
                }
            }
            promise.holds(
                rows == *expected,
                format!("read {} of {} rows", rows.len(), expected.len()),
            );
        }
    };
    check(subject, &Rows::new());
    for (at, part) in (0..).zip(by_shard(&changes)) {
        promise.ok("apply", apply(subject.target(), fence, &shard(FIRST, &table, at), 0, &part));
    }
    let mut expected = rows_of(&changes);
    check(subject, &expected);
    let later = vec![Change::Delete(1), Change::upsert(2, "other"), Change::upsert(499, "other")];
    promise.ok("apply", apply(subject.target(), fence, &shard(FIRST, &table, 0), 1, &later));
    expect_changes(&mut expected, &later);
    check(subject, &expected);
    promise.ok("seal", subject.target().seal(fence));
    promise.ok("reopen", subject.reopen());
    check(subject, &expected);
}

pub(super) fn a_missing_hidden_table_is_told(subject: &mut dyn TargetSubject) {
    let promise = Promise("a_missing_hidden_table_is_told");
    let tables = [table("a", Disposition::Fresh), table("b", Disposition::Fresh)];
    let fence = fence(FIRST, 1);
    promise.ok("prepare", subject.target().prepare(fence, &tables[..1]));
    let missing = [
        ("another table", shard(FIRST, &tables[1], 0)),
        ("another operation", shard(SECOND, &tables[0], 0)),
        ("a shard beyond the last", shard(FIRST, &tables[0], 2)),
    ];
    let changes = upserts(0..3, "x");
    for (what, at) in &missing {
        let target = subject.target();
        promise.refused(&format!("mark of {what}"), target.mark(at), Kind::NotFound);
        let back = target.read_back(at).map(drop);
        promise.refused(&format!("read_back of {what}"), back, Kind::NotFound);
        let mut mark = next_mark(None, 0, &changes);
        let own = super::bench::fence(at.operation, 1);
        let result = target.apply(own, at, &chunk(&changes), &mut mark);
        promise.refused(&format!("apply to {what}"), result, Kind::NotFound);
    }
    promise.ok("discard", subject.target().discard(fence));
    promise.ok("reopen", subject.reopen());
    let at = shard(FIRST, &tables[0], 0);
    promise.refused("mark after discard", subject.target().mark(&at), Kind::NotFound);
    let back = subject.target().read_back(&at).map(drop);
    promise.refused("read_back after discard", back, Kind::NotFound);
}
