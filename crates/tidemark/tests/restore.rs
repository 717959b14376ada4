//! Restores of real chains, on the embedded database.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use std::sync::{Arc, Mutex};

use chain::watched::{OnApply, Watched};
use chain::{
    Chain, backup, begin, data, database, drive, dump, env, folder, name, restore, restore_done,
    sp500, sync,
};
use tidemark::Kind;
use tidemark::catalog::{Catalog, LmdbCatalog};
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, WriteBatch};
use tidemark::env::SystemEnv;
use tidemark::executor::Ended;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{PlanKind, RestoreOptions};
use tidemark::row::{LogicalType, Schema, Value};

#[test]
fn points_around_both_schema_changes_restore_in_every_plan() {
    let (chain, collection) = sp500([0, 1, 54, 55, 142, 143].into_iter());
    let target = database(&chain.folder.path().join("target"));
    for (at, (directory, expected)) in chain.points.iter().enumerate() {
        for plan in [PlanKind::Fold, PlanKind::Sequential] {
            for shards in [1, 16] {
                let copy = format!("copy_{at}_{plan:?}_{shards}");
                let options = RestoreOptions {
                    at: directory.clone(),
                    plan: Some(plan),
                    shards: Some(shards),
                    renames: vec![("sp500".to_owned(), copy.clone())],
                    ..RestoreOptions::default()
                };
                restore_done(&target, &collection, &options);
                assert_eq!(dump(&target, &copy), *expected, "{copy}");
            }
        }
    }
}

#[test]
fn a_copy_rolls_forward_through_every_increment() {
    let (chain, collection) = sp500([0, 3, 55, 142, 143, 160].into_iter());
    let target = database(&chain.folder.path().join("target"));
    let first = RestoreOptions { at: "1".to_owned(), ..RestoreOptions::default() };
    restore_done(&target, &collection, &first);
    assert_eq!(dump(&target, "sp500"), chain.points[0].1);
    for (at, (directory, expected)) in chain.points.iter().enumerate().skip(1).step_by(2) {
        let options = RestoreOptions {
            at: directory.clone(),
            roll_forward: true,
            ..RestoreOptions::default()
        };
        restore_done(&target, &collection, &options);
        assert_eq!(dump(&target, "sp500"), *expected, "point {at}");
    }
}

#[test]
fn a_copy_that_was_written_to_is_not_rolled_forward() {
    let (chain, collection) = sp500([0, 1].into_iter());
    let target = database(&chain.folder.path().join("target"));
    let first = RestoreOptions { at: "1".to_owned(), ..RestoreOptions::default() };
    restore_done(&target, &collection, &first);
    target.delete(&name("sp500"), &[Value::Text("MMM".to_owned())]).unwrap();
    let before = dump(&target, "sp500");
    let options = RestoreOptions { roll_forward: true, ..RestoreOptions::default() };
    let error = restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap_err();
    assert_eq!(error.kind(), Kind::InTheWay);
    assert!(error.message().contains("written to"), "{error}");
    assert_eq!(dump(&target, "sp500"), before);
}

#[test]
fn a_copy_written_to_while_it_is_replaced_by_continue_is_kept() {
    let (chain, collection) = sp500([0].into_iter());
    let source = database(&chain.folder.path().join("source"));
    let target = database(&chain.folder.path().join("target"));
    restore_done(&target, &collection, &RestoreOptions::default());
    // Emptied and filled again, the table comes whole in the next backup.
    source.truncate(&name("sp500")).unwrap();
    sync(&source, "sp500", "Symbol", &data("sp500")[1]);
    backup(&source, &collection);
    let options = RestoreOptions { roll_forward: true, ..RestoreOptions::default() };
    let catalog = LmdbCatalog::of_database(&target, env()).unwrap();
    let (memory, scratch) = (MEMORY_BYTES_DEFAULT, target.scratch_dir());
    let begun = begin(&catalog, target.clone(), &collection, &options, memory, &scratch).unwrap();
    assert!(begun.notices.iter().any(|notice| notice.contains("is replaced")));
    target.delete(&name("sp500"), &[Value::Text("MMM".to_owned())]).unwrap();
    let before = dump(&target, "sp500");
    match drive(&catalog, &begun).unwrap() {
        Ended::Failed(failure) => {
            assert_eq!(failure.kind, Kind::InTheWay);
            assert!(failure.message.contains("written to"), "{failure:?}");
        }
        ended => panic!("{ended:?}"),
    }
    assert_eq!(dump(&target, "sp500"), before);
}

/// A hundred columns, of which each increment changes a few rows: readers cost most here.
fn wide_chain(increments: u32) -> (Chain, Arc<Collection>) {
    const COLUMNS: usize = 100;
    let folder = folder();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let names: Vec<String> = (0..COLUMNS).map(|column| format!("c{column}")).collect();
    let columns: Vec<(&str, LogicalType)> =
        names.iter().map(|name| (name.as_str(), LogicalType::Int64)).collect();
    let schema = Schema::new(&columns, &["c0"]).unwrap();
    source.create_table(&name("wide"), &schema, &[]).unwrap();
    let row = |key: i64, value: i64| -> Vec<Value> {
        let rest = (1..COLUMNS as i64).map(|column| Value::Int64(value * 1000 + column));
        std::iter::once(Value::Int64(key)).chain(rest).collect()
    };
    let mut batch = WriteBatch::new();
    (0..2_000).for_each(|key| batch.put(&name("wide"), row(key, key)));
    source.write(&batch).unwrap();
    backup(&source, &collection);
    for increment in 1..=i64::from(increments) {
        let mut batch = WriteBatch::new();
        for at in 0..60 {
            batch.put(&name("wide"), row((at * 37 + increment * 11) % 2_100, increment));
        }
        batch.delete(&name("wide"), vec![Value::Int64(increment * 3)]);
        source.write(&batch).unwrap();
        backup(&source, &collection);
    }
    let points = vec![("latest".to_owned(), dump(&source, "wide"))];
    (Chain { folder, points }, collection)
}

#[test]
fn a_wide_and_long_chain_in_little_memory_is_merged_beforehand_and_restores_the_same() {
    let (chain, collection) = wide_chain(90);
    let target = database(&chain.folder.path().join("target"));
    let options = RestoreOptions { shards: Some(8), ..RestoreOptions::default() };
    let ended = restore(&target, &collection, &options, 80 << 20).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    let catalog = LmdbCatalog::of_database(&target, env()).unwrap();
    let id = catalog.list().unwrap()[0];
    assert!(catalog.operation(id).unwrap().step_count > 1, "merges were planned");
    assert_eq!(dump(&target, "wide"), chain.points[0].1);
    assert_eq!(std::fs::read_dir(target.scratch_dir()).unwrap().count(), 0);
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_recorded() {
    let (chain, collection) = sp500([0].into_iter());
    let target = database(&chain.folder.path().join("target"));
    restore_done(&target, &collection, &RestoreOptions::default());
    let options = RestoreOptions::default();
    let error = restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap_err();
    assert_eq!(error.kind(), Kind::InTheWay);
    for advice in ["--rename", "--replace"] {
        assert!(error.message().contains(advice), "{error}");
    }
    let replace = RestoreOptions { replace: true, ..RestoreOptions::default() };
    restore_done(&target, &collection, &replace);
}

/// A collection with one full backup of the rows `0..count`, in `shards` parts.
fn plain_chain(count: i64, shards: i64, note: &str) -> (Chain, Arc<Collection>) {
    let folder = folder();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    let splits: Vec<Vec<Value>> =
        (1..shards).map(|at| vec![Value::Int64(at * count / shards)]).collect();
    source.create_table(&name("plain"), &schema, &splits).unwrap();
    put(&source, 0..count, note);
    backup(&source, &collection);
    (Chain { folder, points: Vec::new() }, collection)
}

/// Writes the rows of `ids`, in batches of what one may hold.
fn put(database: &EmbeddedDatabase, ids: impl IntoIterator<Item = i64>, note: &str) {
    let ids: Vec<i64> = ids.into_iter().collect();
    for ids in ids.chunks(50_000) {
        let mut batch = WriteBatch::new();
        for id in ids {
            batch.put(&name("plain"), vec![Value::Int64(*id), Value::Text(note.to_owned())]);
        }
        database.write(&batch).unwrap();
    }
}

#[test]
fn too_many_shards_are_refused_before_anything_is_recorded() {
    // 70 parts that tell 64 keys each apart: 4,480 shards, more than a database has.
    let (chain, collection) = plain_chain(70 * 64, 70, "x");
    let target = database(&chain.folder.path().join("target"));
    let options = RestoreOptions { shards: Some(5000), ..RestoreOptions::default() };
    let error = restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    for words in ["4480 shards", "4096", "--shards"] {
        assert!(error.message().contains(words), "{error}");
    }
    let catalog = LmdbCatalog::of_database(&target, env()).unwrap();
    assert_eq!(catalog.list().unwrap(), []);
    // The corrected command is another operation, and nothing stands in its way.
    let options = RestoreOptions { shards: Some(5), ..RestoreOptions::default() };
    restore_done(&target, &collection, &options);
}

#[test]
fn memory_is_told_as_a_limit_only_where_more_shards_would_run() {
    let (chain, collection) = plain_chain(64 * 16, 16, "x");
    let target = database(&chain.folder.path().join("target"));
    let catalog = LmdbCatalog::of_database(&target, env()).unwrap();
    let (memory, scratch) = (128 << 20, target.scratch_dir());
    let limits = |shards: u32, copy: &str| {
        let renames = vec![("plain".to_owned(), copy.to_owned())];
        let options = RestoreOptions { shards: Some(shards), renames, ..RestoreOptions::default() };
        let begun =
            begin(&catalog, target.clone(), &collection, &options, memory, &scratch).unwrap();
        begun.notices.iter().any(|notice| notice.contains("fit the memory"))
    };
    assert!(!limits(2, "few"));
    assert!(limits(16, "many"));
}

/// Bytes that this thread gave to write calls so far.
fn bytes_written_by_this_thread() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn a_chunk_of_changes_dirties_at_most_eight_mebibytes() {
    // Ten rows to a page, and every tenth row changes: each change dirties a page of its own.
    // Two increments are folded, which makes of them batches of a mebibyte.
    let (chain, collection) = plain_chain(60_000, 1, &"x".repeat(350));
    let source = database(&chain.folder.path().join("source"));
    for first in [0, 10] {
        put(&source, (first..60_000).step_by(20), &"y".repeat(350));
        backup(&source, &collection);
    }
    let inner = database(&chain.folder.path().join("target"));
    let first = RestoreOptions { at: "1".to_owned(), ..RestoreOptions::default() };
    restore_done(&inner, &collection, &first);

    let chunks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&chunks);
    let on_apply: OnApply = Box::new(move |_, rows, apply| {
        let before = bytes_written_by_this_thread();
        apply();
        seen.lock().unwrap().push((rows.len(), bytes_written_by_this_thread() - before));
    });
    let target = Arc::new(Watched { inner: Arc::clone(&inner), on_apply });
    let catalog = LmdbCatalog::of_database(&inner, env()).unwrap();
    let plan = Some(PlanKind::Fold);
    let options = RestoreOptions { roll_forward: true, plan, ..RestoreOptions::default() };
    let (memory, scratch) = (MEMORY_BYTES_DEFAULT, inner.scratch_dir());
    let begun = begin(&catalog, target, &collection, &options, memory, &scratch).unwrap();
    let ended = drive(&catalog, &begun).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    let chunks = chunks.lock().unwrap();
    assert_eq!(chunks.iter().map(|(rows, _)| rows).sum::<usize>(), 6_000);
    let greatest = chunks.iter().map(|(_, bytes)| *bytes).max().unwrap();
    assert!(greatest <= 8 << 20, "{greatest} bytes; rows and bytes: {chunks:?}");
    assert!(chunks.len() < 20, "as few commits as that allows: {chunks:?}");
}

#[test]
fn a_lost_sorted_run_is_made_again() {
    let (chain, collection) = wide_chain(60);
    let inner = database(&chain.folder.path().join("target"));
    let scratch = chain.folder.path().join("scratch");
    let losing = Mutex::new(Some(scratch.clone()));
    // With the first chunk, when the merges are done and shards read their runs.
    let on_apply: OnApply = Box::new(move |_, _, apply| {
        if let Some(scratch) = losing.lock().unwrap().take() {
            let folder = std::fs::read_dir(&scratch).unwrap().next().unwrap().unwrap().path();
            let runs = std::fs::read_dir(&folder).unwrap().count();
            assert!(runs > 0, "merges were planned");
            std::fs::remove_dir_all(&scratch).unwrap();
        }
        apply();
    });
    let target = Arc::new(Watched { inner: Arc::clone(&inner), on_apply });
    let catalog = LmdbCatalog::of_database(&inner, env()).unwrap();
    let options = RestoreOptions { shards: Some(8), ..RestoreOptions::default() };
    let begun = begin(&catalog, target, &collection, &options, 72 << 20, &scratch).unwrap();
    let ended = drive(&catalog, &begun).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    assert_eq!(dump(&inner, "wide"), chain.points[0].1);
}
