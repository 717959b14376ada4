//! Whatever became of an operation, its target and its collection: it can be cancelled.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![cfg(feature = "failpoints")]

use std::path::Path;

use support::{Outcome, Tidemark};
use tempfile::TempDir;

mod support;

const BACKUP: [&str; 5] = ["backup", "--source", "embedded:shop", "--to", "backups"];
const RESTORE: [&str; 4] = ["restore", "backups", "--target", "embedded:copy"];
const CANCEL: [&str; 5] = ["operation", "cancel", "1", "--target", "embedded:copy"];

/// A folder with a table in `shop`, backed up once in `backups`.
fn backed_up() -> (TempDir, Tidemark) {
    let folder = support::temp_folder();
    let tidemark = Tidemark::new(folder.path());
    load(&tidemark, folder.path(), "shop", "id,item\n1,tea\n2,salt\n");
    tidemark.run(BACKUP).expect_code(0);
    (folder, tidemark)
}

fn load(tidemark: &Tidemark, folder: &Path, db: &str, text: &str) {
    std::fs::write(folder.join("orders.csv"), text).unwrap();
    let args = ["db", "load", "--sync", "--db", db, "--table", "orders", "--key", "id"];
    tidemark.run(args.iter().chain(&["orders.csv"])).expect_code(0);
}

fn tables(tidemark: &Tidemark) -> String {
    tidemark.run(["db", "tables", "--db", "copy"]).expect_code(0).stdout
}

fn interrupted(tidemark: &Tidemark, point: &str) {
    tidemark.with_failpoint(point).run(RESTORE).expect_killed();
}

fn expect_cancelled(outcome: Outcome, tidemark: &Tidemark) {
    let outcome = outcome.expect_code(0);
    assert!(outcome.stdout.contains("cancelled"), "{outcome}");
    // Everything is as it was: the name is free again.
    tidemark.run(RESTORE).expect_code(0);
}

#[test]
fn an_operation_whose_collection_is_gone_can_be_cancelled() {
    let (folder, tidemark) = backed_up();
    interrupted(&tidemark, "restore.before_apply:1");
    let (backups, elsewhere) = (folder.path().join("backups"), folder.path().join("elsewhere"));
    std::fs::rename(&backups, &elsewhere).unwrap();
    let cancelled = tidemark.run(CANCEL);
    std::fs::rename(&elsewhere, &backups).unwrap();
    expect_cancelled(cancelled, &tidemark);
}

#[test]
fn an_operation_whose_hidden_shards_are_gone_can_be_cancelled() {
    for point in ["restore.before_apply:1", "target.publish.before_commit:1"] {
        let (folder, tidemark) = backed_up();
        interrupted(&tidemark, point);
        for shard in std::fs::read_dir(folder.path().join("copy/shards")).unwrap() {
            std::fs::remove_dir_all(shard.unwrap().path()).unwrap();
        }
        let refused = tidemark.run(RESTORE);
        assert!(matches!(refused.code, Some(1 | 13)), "nothing is made anew: {refused}");
        expect_cancelled(tidemark.run(CANCEL), &tidemark);
    }
}

#[test]
fn a_copy_written_to_while_it_rolls_forward_can_be_given_up() {
    let (folder, tidemark) = backed_up();
    tidemark.run(RESTORE).expect_code(0);
    load(&tidemark, folder.path(), "shop", "id,item\n1,tea\n2,pepper\n");
    tidemark.run(BACKUP).expect_code(0);
    let go_on = RESTORE.iter().chain(&["--continue"]);
    let before_publish = tidemark.with_failpoint("target.publish.before_commit:1");
    before_publish.run(go_on.clone()).expect_killed();
    let copy = tidemark_database(&folder.path().join("copy"));
    write_one(&copy);
    drop(copy);

    let refused = tidemark.run(go_on).expect_code(14);
    assert!(refused.stderr.contains("written to"), "{refused}");
    let args = ["operation", "cancel", "2", "--target", "embedded:copy"];
    let cancelled = tidemark.run(args).expect_code(0);
    assert!(cancelled.stdout.contains("cancelled"), "{cancelled}");
    assert!(tables(&tidemark).contains("orders"), "the copy is still there");
}

fn tidemark_database(dir: &Path) -> tidemark::database::embedded::EmbeddedDatabase {
    use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
    let env: std::sync::Arc<dyn tidemark::env::Env> = std::sync::Arc::new(tidemark::env::SystemEnv);
    EmbeddedDatabase::open(dir, env, EmbeddedOptions::default()).unwrap()
}

fn write_one(database: &tidemark::database::embedded::EmbeddedDatabase) {
    use tidemark::row::Value;
    let table = tidemark::ids::TableName::parse("orders").unwrap();
    database.delete(&table, &[Value::Int64(1)]).unwrap();
}

#[test]
fn a_cancel_after_publishing_is_told_that_it_is_done() {
    let (_folder, tidemark) = backed_up();
    interrupted(&tidemark, "target.publish.after_commit:1");
    let told = tidemark.run(CANCEL).expect_code(1);
    assert!(told.stderr.contains("published before it could be cancelled"), "{told}");
    assert!(tables(&tidemark).contains("orders"));
    let args = ["operation", "get", "1", "--target", "embedded:copy"];
    assert!(tidemark.run(args).expect_code(0).stdout.contains("done"));
}

#[test]
fn a_backup_that_was_killed_can_be_cancelled_until_it_has_its_log_entry() {
    for (point, code) in [("backup.before_log_entry:1", 0), ("backup.after_log_entry:1", 1)] {
        let folder = support::temp_folder();
        let tidemark = Tidemark::new(folder.path());
        load(&tidemark, folder.path(), "shop", "id,item\n1,tea\n");
        tidemark.with_failpoint(point).run(BACKUP).expect_killed();
        let args = ["operation", "cancel", "1", "--source", "embedded:shop"];
        tidemark.run(args).expect_code(code);
        let listed = tidemark.run(["backups", "backups", "--json"]);
        assert_eq!(listed.stdout.contains("_full"), code == 1, "{point}: {listed}");
    }
}
