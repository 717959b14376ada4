//! Kills of the real binary with SIGKILL, at chosen and at random points, and the same
//! command again: the result is that of an undisturbed run, and no chunk was applied twice.
//!
//! A chosen point is one side of a commit: an undisturbed run tells which there are, and the
//! same work is killed once at each of them. Larger runs are killed at random ones, and from
//! outside.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![expect(clippy::print_stdout, reason = "the seed of a failure")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value as Json;
use support::chain::{BACKUP, Rng, make_chain, make_table, open, table};
use support::deadline::wait_until;
use support::{Outcome, Tidemark, files};
use tidemark::database::embedded::{Alteration, EmbeddedDatabase, RowRange, WriteBatch};
use tidemark::ids::TableName;
use tidemark::row::{LogicalType, Schema, Value};

mod support;

const SHARDS: u64 = 3;
const RESTORE: [&str; 7] = ["restore", "backups", "--target", "TARGET", "--shards", "3", "--json"];
const CONTINUE: [&str; 6] = ["restore", "backups", "--target", "TARGET", "--continue", "--json"];

/// Rows of a chain whose every commit is killed, and of one that has many chunks.
const FEW: u64 = 900;
const MANY: u64 = 18_000;

/// Memory and length of a chain that is merged before it is folded.
const MERGING_MEMORY: &str = "62MiB";
const MERGING_INCREMENTS: u64 = 26;

/// Points at which something has just become durable, or is just about to.
const COMMITS: [&str; 6] = [
    "lmdb.before_commit",
    "lmdb.after_commit",
    "store.before_object",
    "store.after_object",
    "run.before_rename",
    "run.after_rename",
];

/// The first hit of every point of a run, and every hit of those around a commit.
fn chosen_points(hits: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    hits.iter().for_each(|name| *counts.entry(name).or_default() += 1);
    let mut points = Vec::new();
    for (name, count) in counts {
        let last = if COMMITS.contains(&name) { count } else { 1 };
        points.extend((1..=last).map(|hit| format!("{name}:{hit}:kill")));
    }
    points
}

/// The same with one side of each commit: of odd ones before it, of even ones after it.
fn one_side_of_each(points: Vec<String>) -> Vec<String> {
    let is_kept = |point: &String| {
        let (name, rest) = point.split_once(':').expect("NAME:HIT:kill");
        let hit: u64 = rest.trim_end_matches(":kill").parse().expect("a number");
        !COMMITS.contains(&name) || name.contains("before") == (hit % 2 == 1)
    };
    points.into_iter().filter(is_kept).collect()
}

fn random_point(hits: &[String], rng: &mut Rng) -> String {
    format!("*:{}:kill", 1 + rng.below(hits.len() as u64))
}

/// Whether SIGKILL ended it; panics if it ended by itself in any other way than well.
fn was_killed(outcome: &Outcome, point: &str) -> bool {
    assert!(outcome.code == Some(0) || outcome.signal == Some(9), "{point}: {outcome}");
    outcome.signal.is_some()
}

fn dump(tidemark: &Tidemark, target: &str) -> String {
    tidemark.run(["db", "dump", "--db", target, "--table", "orders"]).expect_code(0).stdout
}

/// One way of restoring, to be disturbed.
struct Disturbed {
    folder: tempfile::TempDir,
    args: Vec<String>,
    /// Prepares a new target before the first run.
    prepare: Vec<String>,
    expected: Expected,
    hits: Vec<String>,
}

/// What an undisturbed run leaves.
#[derive(Debug, Default)]
struct Expected {
    rows: String,
    /// Digest and proof of each table.
    tables: Json,
    chunks_begun: usize,
}

impl Disturbed {
    fn new(rows: u64, increments: u64, prepare: &[&str], args: &[&str]) -> Disturbed {
        let folder = support::temp_folder();
        make_chain(folder.path(), rows, increments);
        Disturbed::on(folder, prepare, args)
    }

    fn on(folder: tempfile::TempDir, prepare: &[&str], args: &[&str]) -> Disturbed {
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        let (args, prepare) = (owned(args), owned(prepare));
        let expected = Expected::default();
        let mut disturbed = Disturbed { folder, args, prepare, expected, hits: Vec::new() };
        let log = disturbed.path("hits");
        disturbed.begin("undisturbed");
        let tidemark = disturbed.tidemark().with_hit_log(&log);
        tidemark.run(disturbed.command("undisturbed")).expect_code(0);
        disturbed.hits = support::log_lines(&log);
        assert!(disturbed.hits.len() > 30, "{:?}", disturbed.hits);
        disturbed.expected = Expected {
            rows: disturbed.rows("undisturbed"),
            tables: disturbed.tables("undisturbed"),
            chunks_begun: chunks_begun(&disturbed.hits),
        };
        disturbed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tidemark(&self) -> Tidemark {
        Tidemark::new(self.folder.path())
    }

    fn with_target(args: &[String], target: &str) -> Vec<String> {
        args.iter().map(|arg| arg.replace("TARGET", &format!("embedded:{target}"))).collect()
    }

    fn command(&self, target: &str) -> Vec<String> {
        Disturbed::with_target(&self.args, target)
    }

    fn begin(&self, target: &str) {
        if !self.prepare.is_empty() {
            self.tidemark().run(Disturbed::with_target(&self.prepare, target)).expect_code(0);
        }
    }

    /// Number of the operation: the first one, unless the target had to be prepared.
    fn operation(&self) -> &'static str {
        if self.prepare.is_empty() { "1" } else { "2" }
    }

    fn rows(&self, target: &str) -> String {
        dump(&self.tidemark(), target)
    }

    /// What the operation says it has proven.
    fn tables(&self, target: &str) -> Json {
        let found = self.get(target).expect_code(0).json_lines().remove(0);
        let tables = found["outcome"]["tables"].clone();
        assert_eq!(tables[0]["table"], "orders", "{found}");
        assert_eq!(tables[0]["equals_source"], true, "{found}");
        tables
    }

    /// Whether the operation has been recorded as done.
    fn is_done(&self, target: &str) -> bool {
        let outcome = self.get(target);
        outcome.code == Some(0) && outcome.json_lines()[0]["phase"] == "done"
    }

    fn get(&self, target: &str) -> Outcome {
        let url = format!("embedded:{target}");
        let args = ["operation", "get", self.operation(), "--target", &url, "--json"];
        self.tidemark().run(args)
    }

    /// Kills the command at each of `points` in turn, lets it finish, and compares; how often
    /// it was killed.
    fn check(&self, points: &[String]) -> u64 {
        let target = format!("killed-{}", points.join("-").replace([':', '*'], "_"));
        let tidemark = self.tidemark();
        let tidemark = tidemark.with_hit_log(&self.path(&format!("{target}-hits")));
        let tidemark = tidemark.with_chunk_log(&self.path(&format!("{target}-chunks")));
        self.begin(&target);
        let mut kills = 0;
        let mut is_done = false;
        for point in points {
            let outcome = tidemark.with_failpoint(point).run(self.command(&target));
            // A later run has fewer points left than the undisturbed one, and may reach its end.
            let killed = was_killed(&outcome, point);
            kills += u64::from(killed);
            is_done = !killed || self.is_done(&target);
            if is_done {
                break;
            }
        }
        if !is_done {
            tidemark.run(self.command(&target)).expect_code(0);
        }
        self.compare(&target, kills, &points.join(" "));
        kills
    }

    fn compare(&self, target: &str, kills: u64, how: &str) {
        assert!(self.rows(target) == self.expected.rows, "{how}: the rows differ");
        assert_eq!(self.tables(target), self.expected.tables, "{how}: digest and proof");
        let applied = support::log_lines(&self.path(&format!("{target}-chunks")));
        assert_disjoint(&applied, how);
        let begun = chunks_begun(&support::log_lines(&self.path(&format!("{target}-hits"))));
        let most = self.expected.chunks_begun + (kills * SHARDS) as usize;
        assert!(begun <= most, "{how}: {begun} chunks were begun, at most {most} expected");
        std::fs::remove_dir_all(self.path(target)).unwrap();
    }

    fn check_chosen(&self) {
        self.check_each(&chosen_points(&self.hits));
    }

    fn check_each(&self, points: &[String]) {
        let kills: u64 = points.iter().map(|point| self.check(std::slice::from_ref(point))).sum();
        // The lease is renewed by the clock, so that the last few points may not be reached.
        assert!(kills + 8 >= points.len() as u64, "{kills} kills at {} points", points.len());
    }

    fn check_random(&self, seeds: std::ops::Range<u64>) {
        for seed in seeds {
            println!("seed {seed}");
            let mut rng = Rng(seed);
            let kills = 1 + rng.below(4);
            let points: Vec<String> =
                (0..kills).map(|_| random_point(&self.hits, &mut rng)).collect();
            self.check(&points);
        }
    }

    /// Kills from outside, whenever the log of hits has reached a random length.
    fn check_from_outside(&self, seed: u64) {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let target = format!("outside-{seed}");
        let log = self.path(&format!("{target}-hits"));
        let tidemark = self.tidemark().with_hit_log(&log);
        let tidemark = tidemark.with_chunk_log(&self.path(&format!("{target}-chunks")));
        self.begin(&target);
        let mut kills = 0;
        while kills < 3 && !self.is_done(&target) {
            let more = 1 + rng.below(self.hits.len() as u64 / 2) as usize;
            let wanted = support::log_lines(&log).len() + more;
            let running = tidemark.spawn(self.command(&target));
            let pid = running.pid();
            wait_until("the run to get somewhere", || {
                support::log_lines(&log).len() >= wanted || has_ended(pid)
            });
            running.kill();
            kills += 1;
        }
        if !self.is_done(&target) {
            tidemark.run(self.command(&target)).expect_code(0);
        }
        self.compare(&target, kills, &format!("seed {seed}"));
    }
}

fn chunks_begun(hits: &[String]) -> usize {
    hits.iter().filter(|name| *name == "restore.before_apply").count()
}

/// Panics when a row was applied by two chunks: a chunk is noted as step, table, shard, and
/// the rows that were consumed before and after it.
fn assert_disjoint(chunks: &[String], how: &str) {
    let mut by_shard: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for line in chunks {
        let words: Vec<&str> = line.split(' ').collect();
        let &[step, table, shard, from, to] = words.as_slice() else { panic!("{line}") };
        let at = format!("step {step}, shard {shard} of {table}");
        by_shard.entry(at).or_default().push((from.parse().unwrap(), to.parse().unwrap()));
    }
    for (at, mut spans) in by_shard {
        spans.sort_unstable();
        let overlap = spans.windows(2).find(|pair| pair[1].0 < pair[0].1);
        assert!(overlap.is_none(), "{how}: rows of {at} were applied twice: {overlap:?}");
    }
}

/// Whether a child is a zombie or gone.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z') || rest.is_empty())
}

#[test]
fn a_folded_restore_survives_sigkill_around_every_commit() {
    Disturbed::new(FEW, 2, &[], &RESTORE).check_chosen();
}

#[test]
fn a_folded_restore_survives_sigkill_anywhere_and_repeats_no_chunk() {
    let disturbed = Disturbed::new(MANY, 3, &[], &RESTORE);
    assert!(disturbed.expected.chunks_begun >= 6, "{}", disturbed.expected.chunks_begun);
    disturbed.check_random(0..12);
    (0..4).for_each(|seed| disturbed.check_from_outside(seed));
}

#[test]
fn a_restore_step_by_step_survives_sigkill_around_every_commit() {
    let args = [&RESTORE[..], &["--plan", "sequential"]].concat();
    let disturbed = Disturbed::new(FEW, 2, &[], &args);
    disturbed.check_chosen();
}

#[test]
fn a_restore_step_by_step_survives_sigkill_anywhere_and_repeats_no_chunk() {
    let args = [&RESTORE[..], &["--plan", "sequential"]].concat();
    let disturbed = Disturbed::new(MANY, 3, &[], &args);
    assert!(disturbed.expected.chunks_begun >= 15, "{}", disturbed.expected.chunks_begun);
    disturbed.check_random(0..12);
    (0..4).for_each(|seed| disturbed.check_from_outside(seed));
}

#[test]
fn a_restore_with_merges_survives_sigkill_around_every_run() {
    let args = [&RESTORE[..], &["--memory", MERGING_MEMORY]].concat();
    let disturbed = Disturbed::new(FEW, MERGING_INCREMENTS, &[], &args);
    let runs = disturbed.hits.iter().filter(|name| *name == "restore.after_run").count();
    assert!(runs > 0, "no merge is planned");
    // The commits of LMDB are those of any folded restore.
    let mut points = chosen_points(&disturbed.hits);
    points.retain(|point| !point.starts_with("lmdb.") || point.ends_with(":1:kill"));
    disturbed.check_each(&points);
    disturbed.check_random(0..4);
}

#[test]
fn rolling_a_copy_forward_survives_sigkill_around_every_commit() {
    let prepare = [&RESTORE[..], &["--at", "2"]].concat();
    Disturbed::new(FEW, 3, &prepare, &CONTINUE).check_chosen();
}

#[test]
fn rolling_a_copy_forward_survives_sigkill_anywhere_and_repeats_no_chunk() {
    let prepare = [&RESTORE[..], &["--at", "2"]].concat();
    let disturbed = Disturbed::new(MANY, 3, &prepare, &CONTINUE);
    disturbed.check_random(0..8);
    (0..2).for_each(|seed| disturbed.check_from_outside(seed));
}

#[test]
fn a_held_copy_rolled_forward_survives_sigkill_around_every_commit() {
    let prepare = [&RESTORE[..], &["--at", "2", "--hold"]].concat();
    let disturbed = Disturbed::new(FEW, 3, &prepare, &CONTINUE);
    disturbed.check_chosen();
    disturbed.check_random(0..4);
}

/// A chain whose second increment comes after a column was dropped.
fn chain_that_narrows(rows: u64) -> tempfile::TempDir {
    let folder = support::temp_folder();
    make_chain(folder.path(), rows, 1);
    let (source, orders) = (open(&folder.path().join("source")), table("orders"));
    let dropped = Alteration::DropColumn { name: "generation".to_owned() };
    source.alter(&orders, &[dropped]).unwrap();
    let mut batch = WriteBatch::new();
    for id in (0..rows).step_by(3) {
        batch.put(&orders, vec![Value::Int64(id as i64), Value::Text("changed".to_owned())]);
    }
    source.write(&batch).unwrap();
    drop(source);
    Tidemark::new(folder.path()).run(BACKUP).expect_code(0);
    folder
}

#[test]
fn rolling_a_copy_over_a_dropped_column_survives_sigkill_around_every_copied_chunk() {
    let prepare = [&RESTORE[..4], &["--shards", "1", "--at", "2", "--json"]].concat();
    let disturbed = Disturbed::on(chain_that_narrows(MANY), &prepare, &CONTINUE);
    let copied = |hit: &&String| *hit == "target.project.before_commit";
    let chunks = disturbed.hits.iter().filter(copied).count();
    assert!(chunks > 1, "{chunks} chunks are copied");
    let points = (1..=chunks).flat_map(|hit| {
        ["before", "after"].map(|side| format!("target.project.{side}_commit:{hit}:kill"))
    });
    disturbed.check_each(&points.collect::<Vec<_>>());
    disturbed.check_random(0..2);
}

const ACCOUNTS: u64 = 1_200;
const BALANCE: i64 = 100;

/// Moves money between accounts until told to stop; the sum never changes.
fn transfer(source: &EmbeddedDatabase, accounts: &TableName, stop: &AtomicBool, moved: &AtomicU64) {
    let mut rng = Rng(7);
    let mut balances = vec![BALANCE; ACCOUNTS as usize];
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
        if from == to {
            continue;
        }
        balances[from as usize] -= 1;
        balances[to as usize] += 1;
        let mut batch = WriteBatch::new();
        for account in [from, to] {
            let balance = Value::Int64(balances[account as usize]);
            batch.put(accounts, vec![Value::Int64(account as i64), balance]);
        }
        source.write(&batch).unwrap();
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

fn sum(database: &EmbeddedDatabase, accounts: &TableName) -> (u64, i64) {
    let (mut rows, mut total) = (0, 0);
    for row in database.scan(accounts, &RowRange::ALL).unwrap() {
        let Value::Int64(balance) = row.unwrap()[1] else { panic!("a balance is a number") };
        rows += 1;
        total += balance;
    }
    (rows, total)
}

#[test]
fn backups_killed_while_writers_run_hold_one_cut_each() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    let accounts = table("accounts");
    let source = open(&folder.path().join("source"));
    let columns = [("id", LogicalType::Int64), ("balance", LogicalType::Int64)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    let third = |part: u64| vec![Value::Int64((ACCOUNTS * part / 3) as i64)];
    source.create_table(&accounts, &schema, &[third(1), third(2)]).unwrap();
    let mut batch = WriteBatch::new();
    for id in 0..ACCOUNTS as i64 {
        batch.put(&accounts, vec![Value::Int64(id), Value::Int64(BALANCE)]);
    }
    source.write(&batch).unwrap();

    // The first backup makes the collection; the points of the second are those of all others.
    let first_log = folder.path().join("first-hits");
    tidemark.with_hit_log(&first_log).run(["backup", "--source", "embedded:source", "--to", "x"]);
    let first_hits = support::log_lines(&first_log);
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut kills = 0;
    let points = std::thread::scope(|scope| {
        let writer = scope.spawn(|| transfer(&source, &accounts, &stop, &moved));
        let mut points = chosen_points(&first_hits);
        let mut rng = Rng(3);
        points.extend((0..10).map(|_| random_point(&first_hits, &mut rng)));
        for point in &points {
            let before = moved.load(Ordering::Relaxed);
            kills += u32::from(was_killed(&tidemark.with_failpoint(point).run(BACKUP), point));
            tidemark.run(BACKUP).expect_code(0);
            wait_until("the writer goes on", || {
                moved.load(Ordering::Relaxed) > before || writer.is_finished()
            });
        }
        stop.store(true, Ordering::Relaxed);
        points.len()
    });
    assert!(kills as usize * 4 > points * 3, "{kills} kills at {points} points");

    // Every restore point is one cut: its restore is proven against the source's own digest,
    // and no transfer is half in it.
    let target = folder.path().join("target");
    let listed = tidemark.run(["backups", "backups", "--json"]).expect_code(0).json_lines();
    let count = listed[0]["restore_points"].as_u64().expect("a number");
    assert!(count >= points as u64, "{count}");
    for point in 1..=count {
        let at = point.to_string();
        let args = [
            "restore",
            "backups",
            "--target",
            "embedded:target",
            "--replace",
            "--at",
            &at,
            "--json",
        ];
        let lines = tidemark.run(args).expect_code(0).json_lines();
        let tables = &lines.last().expect("a summary")["outcome"]["tables"];
        assert_eq!(tables[0]["equals_source"], true, "#{at}: {tables}");
        assert_eq!(sum(&open(&target), &accounts), (ACCOUNTS, ACCOUNTS as i64 * BALANCE), "#{at}");
    }
}

#[test]
fn cancelling_after_a_kill_leaves_the_target_as_it_was() {
    let disturbed = Disturbed::new(FEW, 2, &[], &RESTORE);
    let tidemark = disturbed.tidemark();
    let points = one_side_of_each(chosen_points(&disturbed.hits));
    let mut cancelled = 0;
    for (number, point) in points.iter().enumerate() {
        // A target with a table of its own, which has to stay as it is.
        let target = format!("cancelled-{number}");
        let (url, path) = (format!("embedded:{target}"), disturbed.path(&target));
        make_table(&open(&path), &table("kept"), 10);
        let before = files(&path);
        let killed = tidemark.with_failpoint(point).run(disturbed.command(&target));
        if !was_killed(&killed, point) {
            continue;
        }
        let args = ["operation", "get", "1", "--target", &url, "--json"];
        let found = tidemark.run(args);
        let cancel = tidemark.run(["operation", "cancel", "1", "--target", &url]);
        if found.code == Some(10) {
            // Killed before the operation was recorded: there is nothing to undo.
            cancel.expect_code(10);
        } else {
            let found = found.expect_code(0).json_lines().remove(0);
            // Whether publishing had succeeded is for the target to say, and cancelling asks it.
            let is_published = files(&path).len() != before.len() && cancel.code == Some(1);
            if found["phase"] == "done" || found["stage"] == "publishing" && is_published {
                cancel.expect_code(1);
                assert!(dump(&tidemark, &target) == disturbed.expected.rows, "{point}");
                continue;
            }
            cancel.expect_code(0);
            cancelled += 1;
        }
        assert_eq!(files(&path), before, "{point}");
        // And its name is free again.
        if number % 4 == 0 {
            tidemark.run(disturbed.command(&target)).expect_code(0);
            assert!(dump(&tidemark, &target) == disturbed.expected.rows, "{point}");
        }
    }
    assert!(cancelled > 20, "{cancelled}");
}

/// A way of loading a file, killed around every commit: the table is then as it was or as
/// the file says, and the same command makes it as the file says.
fn check_load(before: Option<&str>, after: &str) {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("after.csv", after);
    let begin = |db: &str| {
        if let Some(before) = before {
            write("before.csv", before);
            tidemark.run(load(db, "before.csv")).expect_code(0);
        }
    };
    begin("undisturbed");
    let log = folder.path().join("hits");
    tidemark.with_hit_log(&log).run(load("undisturbed", "after.csv")).expect_code(0);
    assert_eq!(dump(&tidemark, "undisturbed"), after);
    let points = chosen_points(&support::log_lines(&log));
    assert!(points.len() > 8, "{points:?}");
    for (number, point) in points.iter().enumerate() {
        let db = format!("db-{number}");
        begin(&db);
        let killed = tidemark.with_failpoint(point).run(load(&db, "after.csv"));
        assert!(was_killed(&killed, point), "{point}: {killed}");
        let found = tidemark.run(["db", "dump", "--db", &db, "--table", "orders"]);
        match before {
            // Neither the table nor, before the first commit, the database.
            None if found.code == Some(10) => {}
            before => {
                let found = found.expect_code(0).stdout;
                assert!(Some(found.as_str()) == before || found == after, "{point}: {found}");
            }
        }
        tidemark.run(load(&db, "after.csv")).expect_code(0);
        assert_eq!(dump(&tidemark, &db), after, "{point}");
        let scratch = std::fs::read_dir(folder.path().join(&db).join("scratch")).unwrap();
        assert_eq!(scratch.count(), 0, "{point}: scratch files stay");
    }
}

fn load<'a>(db: &'a str, file: &'a str) -> [&'a str; 10] {
    ["db", "load", "--db", db, "--table", "orders", "--key", "id", "--sync", file]
}

fn lines(count: u64, text: impl Fn(u64) -> String) -> String {
    let rows: String = (0..count).map(|id| format!("{},{}\n", 1000 + id, text(id))).collect();
    format!("id,text\n{rows}")
}

#[test]
fn a_load_survives_sigkill_around_every_commit() {
    check_load(None, &lines(300, |id| format!("row {id}")));
}

#[test]
fn a_load_that_changes_a_few_rows_survives_sigkill_around_every_commit() {
    let before = lines(300, |id| format!("row {id}"));
    let after = lines(299, |id| format!("row {}", if id % 40 == 0 { id + 7 } else { id }));
    check_load(Some(&before), &after);
}

#[test]
fn a_load_that_rebuilds_its_shards_survives_sigkill_around_every_commit() {
    // The column of numbers becomes one of text, so that every row is another one.
    let before = lines(300, |id| id.to_string());
    check_load(Some(&before), &lines(400, |id| format!("row {id}")));
}
