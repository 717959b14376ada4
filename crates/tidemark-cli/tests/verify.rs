//! `tidemark verify`: what it says of sound and of damaged collections, and with which code.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::Tidemark;
use tidemark::collection::{Collection, Store};
use tidemark::env::SystemEnv;

mod support;

/// A collection `backups` with a full and an increment of table `t` of four shards.
fn collection(folder: &Path) -> Tidemark {
    let tidemark = Tidemark::new(folder);
    load(&tidemark, folder, 0);
    back_up(&tidemark);
    load(&tidemark, folder, 1);
    back_up(&tidemark);
    tidemark
}

fn load(tidemark: &Tidemark, folder: &Path, revision: u32) {
    let rows = (0..200).map(|id| format!("{id},{}\n", id * (revision + 1)));
    let text: String = std::iter::once("id,amount\n".to_owned()).chain(rows).collect();
    fs::write(folder.join("t.csv"), text).expect("a file can be written");
    let args = ["db", "load", "--db", "shop", "--table", "t", "--key", "id", "--sync", "t.csv"];
    tidemark.run(args).expect_code(0);
}

fn back_up(tidemark: &Tidemark) {
    tidemark.run(["backup", "--source", "embedded:shop", "--to", "backups"]).expect_code(0);
}

/// Parts of the backups, oldest first.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let mut parts = Vec::new();
    let mut folders = vec![folder.join("backups")];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).expect("a folder of the collection") {
            let path = entry.expect("an entry of the folder").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "parquet" => parts.push(path),
                _ => {}
            }
        }
    }
    parts.sort();
    parts
}

fn summary(lines: &[Value]) -> &Value {
    lines.iter().find(|line| line["message_type"] == "summary").expect("a summary")
}

#[test]
fn a_sound_collection_is_proven_as_far_as_the_level_looks() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let proven = [
        ("manifest", "proven: nothing is missing\n"),
        ("parts", "proven: nothing is missing, and no byte has changed\n"),
        ("rows", "1 table at the ends of their chains equal their source\n"),
    ];
    for (level, expected) in proven {
        let outcome = tidemark.run(["verify", "backups", "--level", level]).expect_code(0);
        assert!(outcome.stdout.ends_with(expected), "{outcome}");
    }
    let outcome = tidemark.run(["verify", "backups", "--at", "#1", "--json"]).expect_code(0);
    let lines = outcome.json_lines();
    let summary = summary(&lines);
    assert_eq!((&summary["ended"], &summary["outcome"]["backups"]), (&"done".into(), &1.into()));
    assert_eq!(summary["outcome"]["folds"], 1, "{outcome}");
    let listed = tidemark.run(["operation", "list"]).expect_code(0);
    assert_eq!(listed.stdout.matches("verification of").count(), 4, "{listed}");
}

#[test]
fn every_flaw_is_told_once_on_a_line_of_its_own_and_the_chain_is_broken() {
    // Given a part that is missing and one that has another byte
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let parts = parts(folder.path());
    let (changed, missing) = (&parts[0], parts.last().unwrap());
    let mut bytes = fs::read(changed).unwrap();
    bytes[40] ^= 1;
    fs::write(changed, bytes).unwrap();
    fs::remove_file(missing).unwrap();
    // When
    let outcome = tidemark.run(["verify", "backups"]).expect_code(13);
    // Then
    assert!(outcome.stdout.contains("found 2 flaws:\n"), "{outcome}");
    for part in [changed, missing] {
        let name = part.file_name().unwrap().to_str().unwrap();
        let line = outcome
            .stdout
            .lines()
            .find(|line| line.starts_with("  broken: `") && line.contains(name));
        let line = line.unwrap_or_else(|| panic!("no line tells of {name}: {outcome}"));
        for words in ["found ", "expected ", "put it back"] {
            assert_eq!(line.matches(words).count(), 1, "{line}");
        }
    }
    // And programs learn the same
    let outcome = tidemark.run(["verify", "backups", "--json"]).expect_code(13);
    let lines = outcome.json_lines();
    assert_eq!(summary(&lines)["ended"], "flawed");
    let findings = summary(&lines)["outcome"]["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 2, "{outcome}");
    let fields = |finding: &Value| {
        ["object", "found", "expected", "remedy"]
            .map(|field| finding[field].as_str().is_some_and(|text| !text.is_empty()))
    };
    assert!(findings.iter().all(|finding| fields(finding) == [true; 4]), "{outcome}");
    assert_eq!(lines.last().unwrap()["code"], 13);
    // And a look at the presence alone finds only the missing one
    let outcome = tidemark.run(["verify", "backups", "--level", "manifest"]).expect_code(13);
    assert!(outcome.stdout.contains("found 1 flaw:\n"), "{outcome}");
}

/// Removes the newest log entry and gives its text.
fn lose_newest_entry(folder: &Path) -> String {
    let entry = folder.join("backups/log/000002.json");
    let text = fs::read_to_string(&entry).expect("the entry is there");
    fs::remove_file(entry).expect("the entry is there");
    text
}

#[test]
fn a_lost_newest_log_entry_is_told_and_its_backup_is_no_garbage() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let (before, entry) = (parts(folder.path()), lose_newest_entry(folder.path()));
    let words = ["warning: ", "#2", "no log entry names", "log/000002.json"];
    for args in [&["verify", "backups"][..], &["backups", "backups"]] {
        let outcome = tidemark.run(args).expect_code(3);
        for words in words {
            assert!(outcome.stdout.contains(words), "`{words}` is missing in {outcome}");
        }
    }
    let listed = tidemark.run(["backups", "backups", "--json"]).expect_code(3).json_lines();
    assert_eq!(listed[0]["unlisted"][0]["sequence"], 2);
    let verified = tidemark.run(["verify", "backups", "--json"]).expect_code(3).json_lines();
    assert_eq!(summary(&verified)["outcome"]["unlisted"].as_array().unwrap().len(), 1);
    // When garbage is removed, then it stays, and is whole once its entry is back
    let garbage = ["backups", "backups", "--remove-garbage", "--older-than", "0"];
    let removed = tidemark.run(garbage).expect_code(3);
    assert!(removed.stdout.contains("kept: "), "{removed}");
    assert!(removed.stdout.contains("--include-unlisted"), "{removed}");
    assert_eq!(parts(folder.path()), before);
    fs::write(folder.path().join("backups/log/000002.json"), entry).unwrap();
    tidemark.run(["verify", "backups"]).expect_code(0);
    // And it goes when that is asked for
    lose_newest_entry(folder.path());
    tidemark.run([&garbage[..], &["--include-unlisted"]].concat()).expect_code(0);
    assert!(parts(folder.path()).len() < before.len());
    tidemark.run(["verify", "backups"]).expect_code(0);
}

#[test]
fn a_flaw_of_the_log_hides_no_backup_before_it_and_its_remedy_is_its_own() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let verify = ["verify", "backups", "--json"];
    let outcome = |code: i32| {
        let lines = tidemark.run(verify).expect_code(code).json_lines();
        summary(&lines)["outcome"].clone()
    };
    let whole = outcome(0);
    back_up(&tidemark);
    // Given a gap: what lies before it is looked at, changed bytes and all
    let log = folder.path().join("backups/log");
    let entry = fs::read(log.join("000002.json")).unwrap();
    fs::remove_file(log.join("000002.json")).unwrap();
    let gap = outcome(13);
    assert_eq!((&gap["backups"], &gap["folds"]), (&1.into(), &1.into()), "{gap}");
    assert!(gap["parts"].as_u64() > Some(0), "{gap}");
    let remedy = gap["findings"][0]["remedy"].as_str().unwrap();
    assert!(remedy.contains("put it back") && remedy.contains("new collection"), "{remedy}");
    tidemark.run(["verify", "backups", "--at", "#3"]).expect_code(13);
    fs::write(log.join("000002.json"), entry).unwrap();
    // Given a stray name: nothing is hidden, and nothing is to be put back
    fs::copy(log.join("000001.json"), log.join("4.json")).unwrap();
    let stray = outcome(13);
    assert_eq!(stray["backups"], 3, "{stray}");
    assert!(stray["parts"].as_u64() >= whole["parts"].as_u64(), "{stray}");
    let remedy = stray["findings"][0]["remedy"].as_str().unwrap();
    assert!(remedy.contains("remove it") && !remedy.contains("put it back"), "{remedy}");
    let listed = tidemark.run(["backups", "backups"]).expect_code(13);
    assert!(!listed.stderr.contains("Put the object back"), "{listed}");
    // When it is gone, then all is proven
    fs::remove_file(log.join("4.json")).unwrap();
    assert_eq!(outcome(0)["backups"], 3);
}

#[test]
fn whole_objects_that_lead_to_other_rows_are_a_mismatch() {
    // Given a collection whose documents agree with each other, and not with its rows
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    load(&tidemark, folder.path(), 0);
    back_up(&tidemark);
    let directory = parts(folder.path())[0].parent().unwrap().parent().unwrap().to_owned();
    let manifest = directory.join("manifest.json");
    let log = folder.path().join("backups/log/000001.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let sum = document["tables"][0]["state"]["sum"].as_str().unwrap();
    let (before, after) = text.split_once(sum).unwrap();
    let forged = format!("{before}{}{after}", "0".repeat(32));
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let entry = fs::read_to_string(&log).unwrap().replace(&hash(&text), &hash(&forged));
    let (body, _) = entry.rsplit_once(",\n  \"checksum\"").unwrap();
    fs::write(&manifest, &forged).unwrap();
    fs::write(&log, format!("{body},\n  \"checksum\": \"{}\"\n}}\n", hash(body))).unwrap();
    // When
    tidemark.run(["verify", "backups", "--level", "parts"]).expect_code(0);
    let outcome = tidemark.run(["verify", "backups"]).expect_code(4);
    // Then
    assert!(outcome.stdout.contains("found 1 flaw:\n  mismatch: "), "{outcome}");
    assert!(outcome.stdout.contains(&"0".repeat(32)), "{outcome}");
}

#[test]
fn what_is_not_there_leaves_nothing_behind_and_what_is_empty_proves_nothing() {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    tidemark.run(["verify", "nowhere"]).expect_code(10);
    assert!(!folder.path().join("state").exists());
    // Given a collection that no backup was ever taken into
    let store = Store::open(folder.path().join("backups").to_str().unwrap()).unwrap();
    Collection::create(store, &SystemEnv).unwrap();
    // When, then
    let outcome = tidemark.run(["verify", "backups"]).expect_code(3);
    assert!(outcome.stdout.contains("warning: the collection has no backup yet"), "{outcome}");
    tidemark.run(["verify", "backups", "--at", "#7"]).expect_code(10);
}

#[cfg(feature = "failpoints")]
#[test]
fn the_same_command_carries_on_after_a_kill_at_any_commit() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let mut carried_on = 0;
    for commit in 1.. {
        // When
        let armed = tidemark.with_failpoint(&format!("catalog.after_commit:{commit}"));
        let outcome = armed.run(["verify", "backups"]);
        if outcome.code == Some(0) {
            break;
        }
        outcome.expect_killed();
        let outcome = tidemark.run(["verify", "backups"]).expect_code(0);
        // Then it goes on, unless the verdict was the last thing that became durable
        carried_on += usize::from(outcome.stderr.contains("carrying on operation"));
        let listed = tidemark.run(["operation", "list"]).expect_code(0);
        assert!(!listed.stdout.contains("nobody drives it"), "{listed}");
    }
    // Answers that come together are one commit, so their number varies a little.
    assert!(carried_on >= 4, "only {carried_on}");
}

#[test]
fn operations_of_the_state_directory_are_shown_and_resumed_by_number() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let missing = parts(folder.path()).pop().unwrap();
    let kept = folder.path().join("kept");
    fs::rename(&missing, &kept).unwrap();
    tidemark.run(["verify", "backups", "--state", "other"]).expect_code(13);
    assert!(!folder.path().join("state").exists());
    // When the part is put back
    fs::rename(&kept, &missing).unwrap();
    let outcome = tidemark.run(["operation", "resume", "1", "--state", "other"]).expect_code(0);
    // Then only what was flawed was looked at again, and it is sound
    assert!(outcome.stdout.contains("proven:"), "{outcome}");
    let shown = tidemark.run(["operation", "get", "1", "--state", "other"]).expect_code(0);
    assert!(shown.stdout.contains("proven:"), "{shown}");
}
