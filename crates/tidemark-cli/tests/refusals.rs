//! What a restore refuses because something else is in the way: another restore, other
//! options, a target that is not what it was. Nothing is skipped, and nothing is lost.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use support::chain::{make_chain, open, table};
use support::{Gate, Outcome, Running, Tidemark};
use tempfile::TempDir;
use tidemark::row::Value;

mod support;

const RESTORE: [&str; 6] = ["restore", "backups", "--target", "embedded:copy", "--shards", "3"];
const CONTINUE: [&str; 5] = ["restore", "backups", "--target", "embedded:copy", "--continue"];
const FIRST_CHUNK: &str = "restore.before_apply:1";

struct Stage {
    folder: TempDir,
    tidemark: Tidemark,
}

impl Stage {
    fn new() -> Stage {
        let folder = support::temp_folder();
        let tidemark = Tidemark::new(folder.path());
        make_chain(folder.path(), 300, 2);
        Stage { folder, tidemark }
    }

    fn held_at(&self, point: &str, args: &[&str]) -> (Running, Gate) {
        let gate = Gate::close(self.folder.path(), "gate");
        let running = self.tidemark.held_at(point, &gate).spawn(args);
        gate.wait_for(point);
        (running, gate)
    }

    /// Runs `args` until it has begun to apply, and pauses it there.
    fn pause(&self, args: &[&str], id: &str) {
        let (running, gate) = self.held_at(FIRST_CHUNK, args);
        let pause = ["operation", "pause", id, "--target", "embedded:copy"];
        self.tidemark.run(pause).expect_code(0);
        gate.open();
        running.wait().expect_code(5);
    }

    fn with(&self, more: &[&str]) -> Outcome {
        self.tidemark.run([&RESTORE[..], more].concat())
    }

    fn dump(&self, db: &str, table: &str) -> String {
        self.tidemark.run(["db", "dump", "--db", db, "--table", table]).expect_code(0).stdout
    }

    fn tables(&self) -> String {
        self.tidemark.run(["db", "tables", "--db", "copy"]).expect_code(0).stdout
    }
}

#[track_caller]
fn expect_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

#[test]
fn a_restore_of_a_chain_that_lost_a_part_is_refused_before_anything_is_recorded() {
    let stage = Stage::new();
    let backups = stage.folder.path().join("backups");
    let full = std::fs::read_dir(&backups).unwrap().map(|entry| entry.unwrap().path());
    let full = full.filter(|path| path.to_str().unwrap().ends_with("_full")).min().unwrap();
    let table = std::fs::read_dir(full).unwrap().map(|entry| entry.unwrap().path());
    let table = table.filter(|path| path.is_dir()).min().unwrap();
    let part = std::fs::read_dir(table).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&part).unwrap();
    let name = part.file_name().unwrap().to_str().unwrap();
    for more in [&["--dry-run"][..], &[]] {
        expect_words(&stage.with(more).expect_code(13).stderr, &[name]);
        assert!(!stage.folder.path().join("copy").exists());
    }
    // The same where the target is there.
    open(&stage.folder.path().join("copy"));
    for more in [&["--dry-run"][..], &[]] {
        expect_words(&stage.with(more).expect_code(13).stderr, &[name]);
    }
    let listed = stage.tidemark.run(["operation", "list", "--target", "embedded:copy"]);
    expect_words(&listed.expect_code(0).stdout, &["no operations"]);
}

#[test]
fn a_second_restore_of_the_same_table_is_refused_and_a_disjoint_one_runs_beside_the_first() {
    let stage = Stage::new();
    let (running, gate) = stage.held_at(FIRST_CHUNK, &RESTORE);
    // Named by its pattern it is another operation, of the same table.
    let overlapping = stage.with(&["--table", "orders"]).expect_code(14);
    expect_words(&overlapping.stderr, &["`orders`", "reserved by operation 1"]);
    // Neither is it recorded, nor is it planned.
    assert!(!overlapping.stderr.contains("what was done is kept"), "{overlapping}");
    stage.with(&["--table", "orders", "--dry-run"]).expect_code(14);
    let listed = stage.tidemark.run(["operation", "list", "--target", "embedded:copy", "--json"]);
    assert_eq!(listed.json_lines()[0]["operations"].as_array().unwrap().len(), 1, "{listed}");
    stage.with(&["--rename", "orders=other"]).expect_code(0);
    assert!(stage.dump("copy", "other") == stage.dump("source", "orders"));
    assert!(!stage.tables().contains("orders"), "{}", stage.tables());
    gate.open();
    running.wait().expect_code(0);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn resuming_with_other_options_is_refused_and_the_window_may_change() {
    let stage = Stage::new();
    stage.pause(&RESTORE, "1");
    let ways_out = ["tidemark operation resume 1", "tidemark operation cancel 1"];
    let others: [(&[&str], &str); 5] = [
        (&["--at", "1"], "`at` was \"latest\", now it is \"1\""),
        (&["--plan", "sequential"], "`plan` was null, now it is \"sequential\""),
        (&["--replace"], "`replace` was false, now it is true"),
        (&["--hold"], "`hold` was false, now it is true"),
        (&["--shards", "5"], "`shards` was 3, now it is 5"),
    ];
    for (more, difference) in others {
        // An option may be given once.
        let kept = if more[0] == "--shards" { &RESTORE[..4] } else { &RESTORE[..] };
        let refused = stage.tidemark.run([kept, more].concat()).expect_code(2);
        expect_words(&refused.stderr, &[difference, ways_out[0], ways_out[1]]);
    }
    stage.with(&["--shards-in-flight", "2"]).expect_code(0);
    let args = ["operation", "get", "1", "--target", "embedded:copy", "--json"];
    let got = stage.tidemark.run(args).expect_code(0).json_lines().remove(0);
    assert_eq!(got["shards_in_flight_max"], 2);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn a_resumed_restore_is_pinned_to_the_point_it_began_with() {
    let stage = Stage::new();
    let expected = stage.dump("source", "orders");
    stage.pause(&RESTORE, "1");
    let source = open(&stage.folder.path().join("source"));
    support::chain::change(&source, &table("orders"), 300, 9);
    stage.tidemark.run(support::chain::BACKUP).expect_code(0);
    let resumed = stage.with(&[]).expect_code(0);
    expect_words(&resumed.stderr, &["resuming 1, pinned to", "1 newer restore point"]);
    assert!(stage.dump("copy", "orders") == expected);
    stage.tidemark.run(CONTINUE).expect_code(0);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn a_hidden_shard_that_was_removed_while_shards_wait_is_refused_and_can_be_cancelled() {
    let one_by_one = [&RESTORE[..], &["--shards-in-flight", "1"]].concat();
    check_removed_shards(&one_by_one);
}

#[test]
fn a_hidden_shard_that_was_removed_when_all_are_done_is_refused_and_can_be_cancelled() {
    check_removed_shards(&RESTORE);
}

fn check_removed_shards(args: &[&str]) {
    let stage = Stage::new();
    stage.pause(args, "1");
    let shards = stage.folder.path().join("copy/shards");
    for entry in std::fs::read_dir(shards).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    for _ in 0..2 {
        let refused = stage.with(&[]).expect_code(13);
        expect_words(&refused.stderr, &["is missing"]);
    }
    assert!(!stage.tables().contains("orders"), "{}", stage.tables());
    stage.tidemark.run(["operation", "cancel", "1", "--target", "embedded:copy"]).expect_code(0);
    stage.with(&[]).expect_code(0);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn a_target_that_was_dropped_during_a_pause_is_restored_anew() {
    let stage = Stage::new();
    stage.pause(&RESTORE, "1");
    std::fs::remove_dir_all(stage.folder.path().join("copy")).unwrap();
    let anew = stage.with(&[]).expect_code(0);
    assert!(!anew.stderr.contains("resuming"), "{anew}");
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn a_copy_that_was_written_to_during_a_pause_is_not_rolled_forward() {
    let stage = Stage::new();
    stage.with(&["--at", "1"]).expect_code(0);
    stage.pause(&CONTINUE, "2");
    let row = vec![Value::Int64(-1), Value::Int64(-1), Value::Text("mine".to_owned())];
    open(&stage.folder.path().join("copy")).put(&table("orders"), row).unwrap();
    let written = stage.dump("copy", "orders");
    let refused = stage.tidemark.run(CONTINUE).expect_code(14);
    expect_words(&refused.stderr, &["`orders`", "was written to"]);
    assert!(stage.dump("copy", "orders") == written, "what was written is still there");
}

#[test]
fn a_copy_that_is_rolled_forward_cannot_be_dropped_during_a_pause() {
    let stage = Stage::new();
    stage.with(&["--at", "1"]).expect_code(0);
    stage.pause(&CONTINUE, "2");
    let copy = open(&stage.folder.path().join("copy"));
    let refused = copy.drop_table(&table("orders")).unwrap_err();
    assert_eq!(refused.kind(), tidemark::Kind::InTheWay);
    expect_words(refused.message(), &["`orders`", "operation 2"]);
    drop(copy);
    stage.tidemark.run(CONTINUE).expect_code(0);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn a_name_cannot_be_taken_during_a_pause() {
    let stage = Stage::new();
    stage.pause(&RESTORE, "1");
    std::fs::write(stage.folder.path().join("mine.csv"), "id\n1\n").unwrap();
    let load = ["db", "load", "--db", "copy", "--table", "orders", "--key", "id", "mine.csv"];
    let refused = stage.tidemark.run(load).expect_code(14);
    expect_words(&refused.stderr, &["`orders`", "operation 1"]);
    stage.with(&[]).expect_code(0);
    assert!(stage.dump("copy", "orders") == stage.dump("source", "orders"));
}

#[test]
fn too_little_memory_is_refused_with_the_least_that_suffices() {
    let stage = Stage::new();
    let refused = stage.with(&["--dry-run", "--memory", "40MiB"]).expect_code(2);
    let least = refused.stderr.split_whitespace().rfind(|word| word.ends_with("MiB"));
    let least = least.unwrap_or_else(|| panic!("it does not say: {refused}"));
    stage.with(&["--dry-run", "--memory", least]).expect_code(0);
    let mib: u32 = least.trim_end_matches("MiB").parse().unwrap();
    let less = format!("{}MiB", mib - 1);
    stage.with(&["--dry-run", "--memory", &less]).expect_code(2);
}

#[test]
fn what_cannot_be_found_or_written_is_told_with_what_to_do() {
    let stage = Stage::new();
    let no_store = stage.tidemark.run(["backups", "s3://bucket/x"]).expect_code(2);
    expect_words(&no_store.stderr, &["object stores", "file://"]);
    assert!(!no_store.stderr.contains("feature"), "{no_store}");
    let dump = ["db", "dump", "--db", "source", "--table", "orders", "--output"];
    for output in ["nowhere/x", "backups"] {
        let refused = stage.tidemark.run([&dump[..], &[output]].concat()).expect_code(2);
        expect_words(&refused.stderr, &["--output", "folder"]);
    }
    let load =
        ["db", "load", "--db", "source", "--table", "orders", "--sync", "--shards", "9", "x"];
    expect_words(&stage.tidemark.run(load).stderr, &["--shards 9", "stays cut into 2 shards"]);
    // The document that makes a folder a collection is emptied, then lost.
    let document = stage.folder.path().join("backups/collection.json");
    std::fs::write(&document, "").unwrap();
    let emptied = stage.tidemark.run(["backups", "backups"]).expect_code(13);
    expect_words(&emptied.stderr, &["collection.json", "Put the object back"]);
    std::fs::remove_file(&document).unwrap();
    let lost = stage.tidemark.run(["backups", "backups"]).expect_code(13);
    expect_words(&lost.stderr, &["collection.json", "Put the object back"]);
}
