//! One cut, one winner, one entry: what a backup promises, on the embedded database.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::{Obstructed, World, begin_with, database, drive, env, name, put, rows};
use super::*;
use crate::catalog::{Catalog, LmdbCatalog};
use crate::collection::manifest::{Manifest, TableMode};
use crate::database::{Snapshot, Source};
use crate::env::SystemEnv;
use crate::error::{Kind, Result};
use crate::executor::{Ended, Intent};
use crate::ids::{Position, TableName};
use crate::restore::options::MEMORY_BYTES_DEFAULT;
use crate::restore::{RestoreOptions, Room, Route, begin_restore};
use crate::row::Value;

impl World {
    /// What the backup at a position of the log holds of table `t`, restored elsewhere.
    fn restored(&self, backup: usize) -> Vec<Vec<Value>> {
        let at = format!("#{}", backup + 1);
        let dir = self.folder.path().join(format!("copy-{backup}"));
        let target = database(&dir);
        let catalog = LmdbCatalog::of_database(&target, env()).unwrap();
        let options =
            RestoreOptions { at, tables: vec!["t".to_owned()], ..RestoreOptions::default() };
        let scratch = target.scratch_dir();
        let room = Room { window: 4, memory_bytes: MEMORY_BYTES_DEFAULT, scratch };
        let route = Route { collection: "collection", target: "embedded:copy" };
        let collection = Arc::clone(&self.collection);
        let begun = begin_restore(
            &catalog,
            Arc::clone(&target) as Arc<_>,
            collection,
            route,
            &options,
            &room,
            &SystemEnv,
        )
        .unwrap();
        let ended = drive(&catalog, &begun.job, begun.id, Intent::CarryOn);
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
        rows(&target, "t")
    }

    fn manifest(&self, backup: usize) -> Manifest {
        self.collection.manifest(&self.collection.log().unwrap()[backup]).unwrap()
    }

    /// Parts of the collection that no manifest names.
    fn garbage(&self) -> Vec<String> {
        let backups = self.collection.log().unwrap().len();
        let named: Vec<String> = (0..backups).flat_map(|backup| self.parts(backup)).collect();
        let objects = self.objects().into_iter().filter(|object| object.ends_with(".parquet"));
        objects.filter(|object| !named.contains(object)).collect()
    }
}

fn world() -> World {
    let world = World::new();
    world.create("t");
    world.put("t", (0..300).map(|id| (id, 0)));
    world
}

#[test]
fn every_backup_is_one_cut_while_writers_run() {
    // Given writers that move amounts between shards, in one batch each
    let world = world();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2i64 {
            let (source, is_over) = (Arc::clone(&world.source), &is_over);
            scope.spawn(move || {
                for amount in 1i64.. {
                    put(&source, "t", [(writer, -amount), (150 + writer, amount)]);
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        // When
        world.back_up(BackupChoice::Full);
        (0..4).for_each(|_| world.back_up(BackupChoice::Incremental));
        is_over.store(true, Ordering::Relaxed);
    });
    // Then the sum is the same in each
    for backup in 0..5 {
        let amounts = world.restored(backup).into_iter().map(|row| match row[1] {
            Value::Int64(amount) => amount,
            ref other => panic!("{other:?} is no amount"),
        });
        assert_eq!(amounts.sum::<i64>(), 0, "backup {backup}");
    }
}

#[test]
fn a_lost_cut_starts_over_at_a_new_one_and_leaves_nothing_behind() {
    // Given a backup whose process was lost when one of three shards was written
    let world = world();
    let begun = world.begin(BackupChoice::Full, &[]).unwrap();
    let id = begun.id;
    let ended = drive(&world.catalog, &Obstructed::after(&begun.job, 1), id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    drop(begun);
    assert_eq!(world.collection.log().unwrap().len(), 0);
    let garbage = world.garbage();
    assert_eq!(garbage.len(), 1, "{garbage:?}");
    // When rows are written, and the same command comes again
    world.put("t", (0..300).step_by(3).map(|id| (id, 7)));
    let resumed = world.begin(BackupChoice::Full, &[]).unwrap();
    assert_eq!((resumed.id, resumed.is_resumed), (id, true));
    let ended = drive(&world.catalog, &resumed.job, id, Intent::CarryOn);
    // Then there is one backup, of what the source holds now, and nothing of it is of before
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    assert_eq!(world.collection.log().unwrap().len(), 1);
    assert_eq!(world.garbage(), Vec::<String>::new());
    assert_eq!(world.restored(0), rows(&world.source, "t"));
}

#[test]
fn a_pause_that_the_process_survives_keeps_the_cut() {
    let world = world();
    let before = rows(&world.source, "t");
    let begun = world.begin(BackupChoice::Full, &[]).unwrap();
    let ended = drive(&world.catalog, &Obstructed::after(&begun.job, 1), begun.id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    world.put("t", [(0, 9)]);
    let ended = drive(&world.catalog, &begun.job, begun.id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    assert_eq!(world.restored(0), before);
    assert_eq!(world.garbage(), Vec::<String>::new());
}

#[test]
fn an_increment_on_a_chain_that_lost_an_object_is_refused_before_anything_is_recorded() {
    let world = world();
    world.back_up(BackupChoice::Full);
    world.put("t", [(1, 1)]);
    world.back_up(BackupChoice::Incremental);
    world.put("t", [(2, 2)]);
    let lost = [world.parts(0).remove(1), world.parts(1).remove(0)];
    let directory = world.manifest(0).directory;
    for object in lost.into_iter().chain([format!("{directory}/manifest.json")]) {
        let sound = fs::read(world.path(&object)).unwrap();
        for damaged in [None, Some(sound[..sound.len() - 3].to_vec())] {
            match damaged {
                Some(bytes) => fs::write(world.path(&object), bytes).unwrap(),
                None => fs::remove_file(world.path(&object)).unwrap(),
            }
            let refused = world.begin(BackupChoice::Incremental, &[]).unwrap_err();
            assert_eq!(refused.kind(), Kind::Broken, "{object}: {refused}");
            assert!(refused.chain().contains(&object), "{object}: {}", refused.chain());
        }
        fs::write(world.path(&object), sound).unwrap();
    }
    assert_eq!(world.catalog.list().unwrap().len(), 2);
    world.back_up(BackupChoice::Incremental);
}

#[test]
fn taking_an_increment_reads_no_content_of_the_chain() {
    // Given a part of the full that has its size and other bytes
    let world = world();
    world.back_up(BackupChoice::Full);
    let part = world.path(&world.parts(0)[0]);
    let bytes = vec![0; fs::read(&part).unwrap().len()];
    fs::write(&part, bytes).unwrap();
    // When, then
    world.put("t", [(1, 1)]);
    world.back_up(BackupChoice::Incremental);
}

#[test]
fn the_loser_of_a_race_for_a_number_is_told_and_deletes_nothing() {
    // Given two backups of two databases that saw the same log
    let world = world();
    let other = database(&world.folder.path().join("other"));
    let elsewhere = LmdbCatalog::open_or_create(&world.folder.path().join("far"), env()).unwrap();
    let winner = world.begin(BackupChoice::Full, &[]).unwrap();
    let full = BackupChoice::Full;
    let loser = begin_with(&elsewhere, &other, &world.collection, full, &[]).unwrap();
    // When the first is done before the other
    let ended = drive(&world.catalog, &winner.job, winner.id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    let objects = world.objects();
    let ended = drive(&elsewhere, &loser.job, loser.id, Intent::CarryOn);
    // Then
    let Ended::Failed(failure) = ended else { panic!("{ended:?}") };
    assert_eq!(failure.kind, Kind::Overtaken, "{}", failure.message);
    let after = world.objects();
    assert!(objects.iter().all(|object| after.contains(object)));
    assert_eq!(world.collection.log().unwrap().len(), 1);
    // And carrying on starts over behind the winner
    let ended = drive(&elsewhere, &loser.job, loser.id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    assert_eq!(world.collection.log().unwrap().len(), 2);
}

#[test]
fn the_kind_that_nobody_asked_for_is_what_can_be_built_on() {
    let world = world();
    assert_eq!(world.begin(BackupChoice::Incremental, &[]).unwrap_err().kind(), Kind::NotFound);
    world.back_up(BackupChoice::Auto);
    world.back_up(BackupChoice::Auto);
    // Another selection cannot follow, nor can another database
    let other = world.begin(BackupChoice::Auto, &["t*"]).unwrap();
    assert!(other.notices[0].starts_with("taking a full backup: "), "{:?}", other.notices);
    drive(&world.catalog, &other.job, other.id, Intent::CarryOn);
    let refused = world.begin(BackupChoice::Incremental, &[]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    let kinds: Vec<BackupKind> =
        world.collection.log().unwrap().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [BackupKind::Full, BackupKind::Incremental, BackupKind::Full]);
}

#[test]
fn patterns_select_tables_and_a_pattern_without_a_table_is_refused() {
    let world = world();
    world.create("orders");
    world.create("orders_old");
    let refused = world.begin(BackupChoice::Full, &["nothing*"]).unwrap_err();
    assert_eq!(refused.kind(), Kind::NotFound, "{refused}");
    let begun = world.begin(BackupChoice::Full, &["orders*"]).unwrap();
    drive(&world.catalog, &begun.job, begun.id, Intent::CarryOn);
    let names: Vec<TableName> =
        world.manifest(0).tables.into_iter().map(|table| table.name).collect();
    assert_eq!(names, [name("orders"), name("orders_old")]);
}

#[test]
fn an_increment_carries_a_table_whole_only_with_a_reason() {
    // Given a table that stays, one that is made again, one that is emptied, and one that goes
    let world = world();
    for table in ["again", "emptied", "gone"] {
        world.create(table);
        world.put(table, [(1, 1)]);
    }
    world.back_up(BackupChoice::Full);
    world.put("t", [(3, 3)]);
    world.source.drop_table(&name("again")).unwrap();
    world.create("again");
    world.source.truncate(&name("emptied")).unwrap();
    world.source.drop_table(&name("gone")).unwrap();
    world.create("new");
    // When
    world.back_up(BackupChoice::Incremental);
    // Then
    let manifest = world.manifest(1);
    let modes: Vec<(String, TableMode, bool)> = manifest
        .tables
        .iter()
        .map(|table| (table.name.to_string(), table.mode, table.reason.is_some()))
        .collect();
    let (whole, delta) = (TableMode::Whole, TableMode::Delta);
    let expected = [
        ("again", whole, true),
        ("emptied", whole, true),
        ("new", whole, true),
        ("t", delta, false),
    ];
    assert_eq!(modes, expected.map(|(name, mode, reason)| (name.to_owned(), mode, reason)));
    assert_eq!(manifest.totals.rows, 1);
}

#[test]
fn an_increment_without_changes_is_a_restore_point() {
    let world = world();
    world.back_up(BackupChoice::Full);
    world.back_up(BackupChoice::Incremental);
    let totals = world.manifest(1).totals;
    assert_eq!((totals.rows, totals.parts), (0, 0));
    assert_eq!(world.restored(1), rows(&world.source, "t"));
}

/// A source that notes how many backups the collection had whenever it was told of one.
#[derive(Debug)]
struct Told {
    source: Arc<dyn Source>,
    collection: Arc<Collection>,
    heard: std::sync::Mutex<Vec<(Position, Option<Position>)>>,
}

impl Source for Told {
    fn identity(&self) -> Result<String> {
        self.source.identity()
    }

    fn snapshot(&self, collection: CollectionId) -> Result<Arc<dyn Snapshot>> {
        self.source.snapshot(collection)
    }

    fn advance(&self, collection: CollectionId, to: Position) -> Result<()> {
        let newest = self.collection.log()?.last().cloned();
        let newest = newest.map(|entry| self.collection.manifest(&entry)).transpose()?;
        self.heard.lock().unwrap().push((to, newest.map(|manifest| manifest.source.to)));
        self.source.advance(collection, to)
    }
}

#[test]
fn the_source_is_told_only_of_backups_that_are_in_the_log() {
    let world = world();
    let told = Arc::new(Told {
        source: Arc::clone(&world.source) as Arc<_>,
        collection: Arc::clone(&world.collection),
        heard: std::sync::Mutex::default(),
    });
    for round in 0..3 {
        world.put("t", [(round, round)]);
        let request = BackupRequest {
            source: Arc::clone(&told) as Arc<_>,
            source_shown: "embedded:source",
            collection: Arc::clone(&world.collection),
            collection_shown: "collection",
            options: &BackupOptions::default(),
            window: 2,
        };
        let begun = begin_backup(&world.catalog, &request, env()).unwrap();
        assert_eq!(told.heard.lock().unwrap().len(), round as usize);
        let ended = drive(&world.catalog, &begun.job, begun.id, Intent::CarryOn);
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    }
    let heard = told.heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 3);
    assert!(heard.iter().all(|(to, newest)| *newest == Some(*to)), "{heard:?}");
}

#[test]
fn a_cancelled_backup_leaves_neither_entry_nor_parts() {
    let world = world();
    let begun = world.begin(BackupChoice::Full, &[]).unwrap();
    let ended = drive(&world.catalog, &Obstructed::after(&begun.job, 2), begun.id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    assert_eq!(world.garbage().len(), 2);
    assert_eq!(drive(&world.catalog, &begun.job, begun.id, Intent::Cancel), Ended::Cancelled);
    assert_eq!(world.objects(), ["collection.json"]);
    // And the next backup is a new one
    world.back_up(BackupChoice::Auto);
    assert_eq!(world.collection.log().unwrap().len(), 1);
}
