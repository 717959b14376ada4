//! Figures of summaries: what was really read, and by which run.

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::Tidemark;

mod support;

const ROWS: u64 = 60_007;

/// A collection with one full of a table whose rows no estimate divides evenly.
fn collection(folder: &Path) -> Tidemark {
    let rows = (0..ROWS).map(|id| format!("{id},{:040}\n", id * id));
    let text: String = std::iter::once("id,note\n".to_owned()).chain(rows).collect();
    fs::write(folder.join("t.csv"), text).expect("a file can be written");
    let tidemark = Tidemark::new(folder);
    let load = "db load --db shop --table t --key id --type note=text --shards 3 t.csv";
    tidemark.run(load.split(' ')).expect_code(0);
    tidemark.run("backup --source embedded:shop --to backups".split(' ')).expect_code(0);
    tidemark
}

fn summary(lines: &[Value]) -> &Value {
    lines.iter().find(|line| line["message_type"] == "summary").expect("a summary")
}

#[test]
fn a_restore_says_exactly_how_many_rows_it_read() {
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let restore = "restore backups --target embedded:copy --shards 7 --memory 128MiB";
    let outcome = tidemark.run(restore.split(' ')).expect_code(0);
    assert!(outcome.stdout.contains("60,007 rows restored; 60,007 rows and "), "{outcome}");
    assert!(!outcome.stdout.contains("by this run"), "{outcome}");
    assert!(outcome.stderr.contains("at once fit the memory of 128 MiB"), "{outcome}");
    let json = "restore backups --target embedded:other --shards 7 --json";
    let outcome = tidemark.run(json.split(' ')).expect_code(0);
    let lines = outcome.json_lines();
    let summary = summary(&lines);
    assert_eq!(summary["total_rows"], ROWS);
    assert_eq!(summary["rows_this_run"], ROWS);
}

#[cfg(feature = "failpoints")]
#[test]
fn the_rate_after_a_resume_counts_only_what_the_run_itself_did() {
    // Given a restore that was killed when every row was in and none was proven
    let folder = support::temp_folder();
    let tidemark = collection(folder.path());
    let log = folder.path().join("hits");
    let restore = |target: &str| {
        let line = format!(
            "restore backups --target embedded:{target} --shards 4 --shards-in-flight 1 --json"
        );
        line.split(' ').map(str::to_owned).collect::<Vec<String>>()
    };
    tidemark.with_hit_log(&log).run(restore("copy")).expect_code(0);
    let hits = support::log_lines(&log);
    let applied = hits.iter().filter(|hit| *hit == "restore.after_apply").count();
    assert!(applied >= 3, "{hits:?}");
    let killed = tidemark.with_failpoint(&format!("restore.before_apply:{applied}"));
    killed.run(restore("again")).expect_killed();
    // When
    let outcome = tidemark.run(restore("again")).expect_code(0);
    // Then
    let lines = outcome.json_lines();
    let summary = summary(&lines);
    assert_eq!(summary["total_rows"], ROWS);
    let rows = summary["rows_this_run"].as_u64().expect("a number");
    assert!(rows > 0 && rows < ROWS / 2, "{outcome}");
    let rate = rows as f64 / summary["seconds_elapsed"].as_f64().expect("a number");
    let told = summary["rows_per_second"].as_f64().expect("a number");
    assert!((told - rate).abs() <= 1.0 + rate / 100.0, "told {told}, found {rate}");
}
