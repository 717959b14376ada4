//! Promises that hold over a whole restore, on the embedded database behind a target that
//! watches, refuses and lies.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use chain::{backup, database, dump, env, name, restore_done, sp500};
use tidemark::catalog::{Catalog, LmdbCatalog};
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, WriteBatch};
use tidemark::database::{Fence, Mark, Target, TargetLayer, TargetShard};
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::operation::{PausedBy, Phase};
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{BegunRestore, PlanKind, RestoreOptions, Room, Route, begin_restore};
use tidemark::row::{LogicalType, RowBatch, RowStream, Schema, Value};
use tidemark::{Error, Kind, Result};

type Rule<T> = Box<dyn Fn(T) -> Option<Error> + Send + Sync>;

/// The embedded database, with somebody in between.
struct Between {
    database: Arc<EmbeddedDatabase>,
    /// Asked with the number of chunks so far; an error refuses the next one.
    refuses: Rule<usize>,
    /// What was handed over, and the mark if it became durable.
    chunks: Mutex<Vec<Chunk>>,
    /// The last key of a shard is not read back.
    loses_last_row: bool,
}

#[derive(Clone, Debug)]
struct Chunk {
    shard: u32,
    first_key: Option<Vec<u8>>,
    mark: Option<Mark>,
}

impl fmt::Debug for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Between").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Between {
    fn new(database: &Arc<EmbeddedDatabase>) -> Between {
        Between {
            database: Arc::clone(database),
            refuses: Box::new(|_| None),
            chunks: Mutex::default(),
            loses_last_row: false,
        }
    }

    fn chunks(&self) -> Vec<Chunk> {
        self.chunks.lock().unwrap().clone()
    }
}

/// Hands on all rows but the last one.
struct WithoutLast<'a> {
    rows: Box<dyn RowStream + 'a>,
    ahead: Option<RowBatch>,
}

impl RowStream for WithoutLast<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        if self.ahead.is_none() {
            let mut first = RowBatch::new();
            if !self.rows.next_batch(&mut first)? {
                return Ok(false);
            }
            self.ahead = Some(first);
        }
        let mut next = RowBatch::new();
        let more = self.rows.next_batch(&mut next)?;
        let mut ahead = self.ahead.take().expect("it was filled above");
        if more {
            self.ahead = Some(next);
        } else {
            ahead.pop();
            self.ahead = Some(RowBatch::new());
        }
        let is_left = !ahead.is_empty();
        *batch = ahead;
        Ok(is_left)
    }
}

impl TargetLayer for Between {
    fn inner(&self) -> &dyn Target {
        &*self.database
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let mut chunk = Chunk {
            shard: shard.shard.0,
            first_key: rows.iter().next().map(|row| row.key.to_vec()),
            mark: None,
        };
        let mut chunks = self.chunks.lock().unwrap();
        let applied = match (self.refuses)(chunks.len()) {
            Some(refusal) => Err(refusal),
            None => self.database.apply(fence, shard, rows, mark),
        };
        if applied.is_ok() {
            chunk.mark = Some(mark.clone());
        }
        chunks.push(chunk);
        applied
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let rows = self.database.read_back(shard)?;
        if self.loses_last_row && shard.shard.0 == 1 {
            return Ok(Box::new(WithoutLast { rows, ahead: None }));
        }
        Ok(rows)
    }
}

fn begin(
    catalog: &LmdbCatalog,
    target: Arc<dyn Target>,
    database: &EmbeddedDatabase,
    collection: &Arc<Collection>,
    options: &RestoreOptions,
) -> Result<BegunRestore> {
    let room =
        Room { window: 1, memory_bytes: MEMORY_BYTES_DEFAULT, scratch: database.scratch_dir() };
    let route = Route { collection: "collection", target: "embedded:target" };
    begin_restore(catalog, target, Arc::clone(collection), route, options, &room, &SystemEnv)
}

fn drive(catalog: &LmdbCatalog, begun: &BegunRestore, intent: Intent) -> Ended {
    let never = Stop::default();
    run(catalog, &begun.job, begun.id, intent, &SystemEnv, &never, &mut Unobserved).unwrap()
}

fn catalog(database: &EmbeddedDatabase) -> LmdbCatalog {
    LmdbCatalog::of_database(database, env()).unwrap()
}

/// A table of several chunks in each of two shards, and two increments of several chunks.
fn long_chain() -> (tempfile::TempDir, Arc<Collection>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::create(store, &SystemEnv).unwrap());
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    source.create_table(&name("orders"), &schema, &[]).unwrap();
    let row = |id: i64, note: &str| vec![Value::Int64(id), Value::Text(format!("{note:>600}"))];
    let mut batch = WriteBatch::new();
    (0..30_000).for_each(|id| batch.put(&name("orders"), row(id, "full")));
    source.write(&batch).unwrap();
    backup(&source, &collection);
    for increment in 1..=2 {
        let mut batch = WriteBatch::new();
        for id in (0..30_000).step_by(5) {
            if id % 3 == increment {
                batch.delete(&name("orders"), vec![Value::Int64(id)]);
            } else {
                batch.put(&name("orders"), row(id, &format!("changed {increment}")));
            }
        }
        source.write(&batch).unwrap();
        backup(&source, &collection);
    }
    let expected = dump(&source, "orders");
    (folder, collection, expected)
}

#[test]
fn a_resume_begins_behind_each_mark_and_hands_no_other_row_over_again() {
    let (folder, collection, expected) = long_chain();
    // One shard after the other. The fold has 3 chunks a shard; step by step the increments
    // follow with 3 each.
    for (plan, chunks_before) in [(PlanKind::Fold, 2), (PlanKind::Sequential, 7)] {
        let target = database(&folder.path().join(format!("target-{plan:?}")));
        let catalog = catalog(&target);
        let options =
            RestoreOptions { plan: Some(plan), shards: Some(2), ..RestoreOptions::default() };
        let mut full = Between::new(&target);
        full.refuses = Box::new(move |chunks| {
            let is_full = chunks >= chunks_before;
            is_full.then(|| Error::new(Kind::Blocked, "no space left on device"))
        });
        let full = Arc::new(full);
        let begun = begin(&catalog, full.clone(), &target, &collection, &options).unwrap();
        let ended = drive(&catalog, &begun, Intent::CarryOn);
        assert!(matches!(ended, Ended::Paused { by: PausedBy::Obstacle, .. }), "{ended:?}");
        assert!(target.tables().unwrap().is_empty(), "nobody sees half a restore");
        let before = full.chunks();
        let durable: BTreeMap<u32, Mark> =
            before.iter().filter_map(|chunk| Some((chunk.shard, chunk.mark.clone()?))).collect();
        assert!(durable.values().any(|mark| !mark.done), "a shard stands in its middle");

        let room = Arc::new(Between::new(&target));
        let again = begin(&catalog, room.clone(), &target, &collection, &options).unwrap();
        assert_eq!((again.id, again.is_resumed), (begun.id, true));
        assert!(matches!(drive(&catalog, &again, Intent::CarryOn), Ended::Done { .. }));
        let after = room.chunks();
        for (shard, mark) in &durable {
            let next = after.iter().find(|chunk| chunk.shard == *shard);
            match next.and_then(|next| Some((next, next.mark.as_ref()?))) {
                Some((next, now)) if now.step == mark.step => {
                    assert!(!mark.done, "{plan:?}: shard {shard} was done and began again");
                    assert!(next.first_key > mark.last_key, "{plan:?}: shard {shard}");
                }
                _ => assert!(mark.done, "{plan:?}: shard {shard} was given up half-way"),
            }
        }
        let marks = before.iter().chain(&after).filter_map(|chunk| chunk.mark.as_ref());
        for mark in marks.clone() {
            let of_links: u64 = mark.links.iter().map(|link| link.rows).sum();
            assert_eq!(of_links, mark.rows, "the mark tells how far every increment is");
        }
        let read: u64 = marks.filter(|mark| mark.done).map(|mark| mark.rows).sum();
        assert_eq!(read, 30_000 + 2 * 6_000, "{plan:?}: every row of every link once");
        assert_eq!(dump(&target, "orders"), expected, "{plan:?}");

        // Its end is known by its txn as well.
        let Phase::Done { txn } = catalog.state(begun.id).unwrap().state.phase else {
            panic!("it is done");
        };
        assert_eq!(catalog.by_txn(txn).unwrap(), Some(begun.id));
    }
}

#[test]
fn a_row_that_is_not_read_back_is_a_mismatch_that_names_its_range_and_nothing_is_published() {
    let (chain, collection) = sp500([0, 55].into_iter());
    let target = database(&chain.folder.path().join("target"));
    let catalog = catalog(&target);
    let options = RestoreOptions { shards: Some(3), ..RestoreOptions::default() };
    let liar = Between { loses_last_row: true, ..Between::new(&target) };
    let begun = begin(&catalog, Arc::new(liar), &target, &collection, &options).unwrap();
    let Ended::Failed(failure) = drive(&catalog, &begun, Intent::CarryOn) else {
        panic!("what does not read back is never done");
    };
    assert_eq!(failure.kind, Kind::Mismatch);
    for words in ["`sp500`", "shard 1", "key"] {
        assert!(failure.message.contains(words), "`{words}`: {}", failure.message);
    }
    assert!(target.tables().unwrap().is_empty());
    // With somebody who does not lie the same call proves it.
    let honest = Arc::new(Between::new(&target));
    let begun = begin(&catalog, honest.clone(), &target, &collection, &options).unwrap();
    assert!(matches!(drive(&catalog, &begun, Intent::CarryOn), Ended::Done { .. }));
    assert!(honest.chunks().is_empty(), "only the proof was repeated");
    assert_eq!(dump(&target, "sp500"), chain.points[1].1);
}

#[test]
fn a_resume_stays_at_the_point_it_resolved_and_says_how_many_are_newer() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::create(store, &SystemEnv).unwrap());
    let schema = Schema::new(&[("id", LogicalType::Int64)], &["id"]).unwrap();
    source.create_table(&name("orders"), &schema, &[]).unwrap();
    source.put(&name("orders"), vec![Value::Int64(1)]).unwrap();
    backup(&source, &collection);
    let expected = dump(&source, "orders");

    let target = database(&folder.path().join("target"));
    let catalog = catalog(&target);
    let options = RestoreOptions::default();
    let begun = begin(&catalog, target.clone(), &target, &collection, &options).unwrap();
    source.put(&name("orders"), vec![Value::Int64(2)]).unwrap();
    let newer = backup(&source, &collection);

    let again = begin(&catalog, target.clone(), &target, &collection, &options).unwrap();
    assert_eq!((again.id, again.is_resumed), (begun.id, true));
    assert!(again.notices[0].contains("1 newer restore points exist"), "{:?}", again.notices);
    assert!(!again.notices[0].contains(&newer));
    assert!(matches!(drive(&catalog, &again, Intent::CarryOn), Ended::Done { .. }));
    assert_eq!(dump(&target, "orders"), expected);
    // After its end the same command is a new one: for a backup it always was.
    assert_eq!(collection.log().unwrap().len(), 2);
    let error = begin(&catalog, target.clone(), &target, &collection, &options).unwrap_err();
    assert_eq!(error.kind(), Kind::InTheWay);
}

#[test]
fn a_resume_on_another_chain_is_refused_and_names_the_backup_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let place = |name: &str| folder.path().join(name);
    let open = |place: &std::path::Path| {
        Arc::new(Collection::open(Store::open(place.to_str().unwrap()).unwrap()).unwrap())
    };
    let store = Store::open(place("one").to_str().unwrap()).unwrap();
    let one = Arc::new(Collection::create(store, &SystemEnv).unwrap());
    let schema = Schema::new(&[("id", LogicalType::Int64)], &["id"]).unwrap();
    source.create_table(&name("orders"), &schema, &[]).unwrap();
    source.put(&name("orders"), vec![Value::Int64(1)]).unwrap();
    backup(&source, &one);
    // Somebody copies the collection, and both go on.
    copy_folder(&place("one"), &place("other"));
    source.put(&name("orders"), vec![Value::Int64(2)]).unwrap();
    backup(&source, &one);
    source.put(&name("orders"), vec![Value::Int64(3)]).unwrap();
    let other = open(&place("other"));
    backup(&source, &other);

    let target = database(&place("target"));
    let catalog = catalog(&target);
    let options = RestoreOptions::default();
    let begun = begin(&catalog, target.clone(), &target, &one, &options).unwrap();
    let error = begin(&catalog, target.clone(), &target, &other, &options).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    for words in ["the chain is not the one that was planned", "backup #2", "operation cancel"] {
        assert!(error.message().contains(words), "`{words}`: {error}");
    }
    let begun = begin(&catalog, target.clone(), &target, &one, &options)
        .inspect(|again| assert_eq!(again.id, begun.id))
        .unwrap();
    assert!(matches!(drive(&catalog, &begun, Intent::CarryOn), Ended::Done { .. }));
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn any_tables_of_any_size_restore_under_other_names_with_other_shards_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::create(store, &SystemEnv).unwrap());
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    let row = |id: i64, note: &str| vec![Value::Int64(id), Value::Text(note.to_owned())];
    for (table, rows) in [("none", 0), ("one", 1), ("many", 5_000)] {
        let splits = [vec![Value::Int64(10)], vec![Value::Int64(2_000)]];
        source.create_table(&name(table), &schema, &splits).unwrap();
        let mut batch = WriteBatch::new();
        (0..rows).for_each(|id| batch.put(&name(table), row(id, "full")));
        source.write(&batch).unwrap();
    }
    let mut points = Vec::new();
    for change in 0..3 {
        let at = backup(&source, &collection);
        let tables = ["none", "one", "many"];
        points.push((at, tables.map(|table| (table, dump(&source, table)))));
        source.put(&name("many"), row(change, "changed")).unwrap();
        source.delete(&name("many"), &[Value::Int64(4_000 + change)]).unwrap();
    }
    let target = database(&folder.path().join("target"));
    for (at, tables) in &points {
        for (table, expected) in tables {
            for (plan, shards) in [(PlanKind::Fold, 7), (PlanKind::Sequential, 1)] {
                let copy = format!("{table}_{}_{plan:?}", &at[..15]);
                let options = RestoreOptions {
                    at: at.clone(),
                    tables: vec![(*table).to_owned()],
                    renames: vec![((*table).to_owned(), copy.clone())],
                    plan: Some(plan),
                    shards: Some(shards),
                    ..RestoreOptions::default()
                };
                restore_done(&target, &collection, &options);
                assert_eq!(dump(&target, &copy), *expected, "{copy}");
            }
        }
    }
    assert_eq!(target.tables().unwrap().len(), 3 * 3 * 2, "nothing else was restored");
}

#[test]
fn cancelling_a_half_done_restore_leaves_the_target_as_it_was() {
    let (chain, collection) = sp500([0, 55].into_iter());
    let target = database(&chain.folder.path().join("target"));
    restore_done(
        &target,
        &collection,
        &RestoreOptions { at: "1".to_owned(), ..Default::default() },
    );
    let before = (target.tables().unwrap(), dump(&target, "sp500"));
    let catalog = catalog(&target);
    let options = RestoreOptions { replace: true, shards: Some(4), ..RestoreOptions::default() };
    let mut full = Between::new(&target);
    full.refuses = Box::new(|chunks| {
        (chunks >= 2).then(|| Error::new(Kind::Blocked, "no space left on device"))
    });
    let begun = begin(&catalog, Arc::new(full), &target, &collection, &options).unwrap();
    assert!(matches!(drive(&catalog, &begun, Intent::CarryOn), Ended::Paused { .. }));
    let begun = begin(&catalog, target.clone(), &target, &collection, &options).unwrap();
    assert_eq!(drive(&catalog, &begun, Intent::Cancel), Ended::Cancelled);
    assert_eq!((target.tables().unwrap(), dump(&target, "sp500")), before);
    // And its name is free for the same command again.
    restore_done(&target, &collection, &options);
    assert_eq!(dump(&target, "sp500"), chain.points[1].1);
}

#[test]
fn operations_on_one_target_never_meet_wherever_they_are_recorded() {
    let (chain, collection) = sp500([0, 55].into_iter());
    let target = database(&chain.folder.path().join("target"));
    // Operation 1 of the target itself, and an operation of each of two other places.
    restore_done(&target, &collection, &RestoreOptions::default());
    let mut ids = vec![catalog(&target).list().unwrap()[0]];
    for place in ["here", "there"] {
        let state = chain.folder.path().join(place);
        let catalog = LmdbCatalog::of_directory_for(&state, &target, env()).unwrap();
        let renames = vec![("sp500".to_owned(), place.to_owned())];
        let options = RestoreOptions { renames, ..RestoreOptions::default() };
        let begun = begin(&catalog, target.clone(), &target, &collection, &options).unwrap();
        let again = begin(&catalog, target.clone(), &target, &collection, &options).unwrap();
        assert_eq!((again.id, again.is_resumed), (begun.id, true));
        assert!(!ids.contains(&begun.id), "{ids:?} {}", begun.id);
        ids.push(begun.id);
        assert!(matches!(drive(&catalog, &again, Intent::CarryOn), Ended::Done { .. }));
        assert_eq!(dump(&target, place), chain.points[1].1);
    }
    // And the target's own go on behind them.
    let options = RestoreOptions { replace: true, ..RestoreOptions::default() };
    restore_done(&target, &collection, &options);
    let own = catalog(&target).list().unwrap();
    assert!(!ids[1..].contains(own.last().unwrap()), "{ids:?} {own:?}");
}
