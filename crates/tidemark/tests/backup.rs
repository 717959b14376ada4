//! Backups as operations: races, sources that went back in time, and what is left behind.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tidemark::Kind;
use tidemark::backup::{
    BackupChoice, BackupOptions, BackupRequest, BegunBackup, begin_backup, resume_backup,
};
use tidemark::catalog::{Catalog, LmdbCatalog};
use tidemark::collection::{Collection, RestorePoint, Store};
use tidemark::database::Source;
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::operation::Phase;

use chain::{database, env, folder, sync};

/// A source, an empty collection, and a folder for everything else.
struct World {
    folder: tempfile::TempDir,
    source: Arc<EmbeddedDatabase>,
    collection: Arc<Collection>,
}

impl World {
    fn new() -> World {
        let folder = folder();
        let source = database(&folder.path().join("source"));
        let collection = folder.path().join("collection");
        let store = Store::open(collection.to_str().unwrap()).unwrap();
        let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
        let world = World { folder, source, collection };
        world.write(0..100);
        world
    }

    /// Makes table `t` of the source equal to these keys.
    fn write(&self, keys: std::ops::Range<u32>) {
        write(&self.source, self.folder.path(), keys);
    }

    fn catalog(&self, name: &str) -> LmdbCatalog {
        LmdbCatalog::open_or_create(&self.folder.path().join(name), env()).unwrap()
    }

    fn begin<'c>(&self, catalog: &'c LmdbCatalog, kind: BackupChoice) -> BegunBackup<'c> {
        self.try_begin(&self.source, catalog, kind).unwrap()
    }

    fn try_begin<'c>(
        &self,
        source: &Arc<EmbeddedDatabase>,
        catalog: &'c LmdbCatalog,
        kind: BackupChoice,
    ) -> tidemark::Result<BegunBackup<'c>> {
        let options = BackupOptions { kind, ..BackupOptions::default() };
        let request = BackupRequest {
            source: source.clone(),
            source_shown: "embedded:source",
            collection: Arc::clone(&self.collection),
            collection_shown: "collection",
            options: &options,
            window: 4,
        };
        begin_backup(catalog, &request, env())
    }

    /// Paths of all objects of the collection.
    fn objects(&self) -> BTreeSet<String> {
        self.collection.store().list("").unwrap().into_iter().map(|object| object.path).collect()
    }
}

fn write(source: &EmbeddedDatabase, folder: &Path, keys: std::ops::Range<u32>) {
    let file = folder.join("t.csv");
    let rows: String = keys.map(|key| format!("{key},value of {key}\n")).collect();
    std::fs::write(&file, format!("k,v\n{rows}")).unwrap();
    sync(source, "t", "k", &file);
}

fn drive(catalog: &LmdbCatalog, begun: &BegunBackup<'_>, intent: Intent) -> Ended {
    let (stop, observer) = (Stop::default(), &mut Unobserved);
    run(catalog, &begun.job, begun.id, intent, &SystemEnv, &stop, observer).unwrap()
}

#[track_caller]
fn done(catalog: &LmdbCatalog, begun: &BegunBackup<'_>) {
    let ended = drive(catalog, begun, Intent::CarryOn);
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
}

/// Two backups of one number; the first has won, the second has been told.
fn lost_race<'c>(world: &World, one: &LmdbCatalog, other: &'c LmdbCatalog) -> BegunBackup<'c> {
    let winner = world.begin(one, BackupChoice::Full);
    let loser = world.begin(other, BackupChoice::Full);
    done(one, &winner);
    let before = world.objects();
    let Ended::Failed(failure) = drive(other, &loser, Intent::CarryOn) else {
        panic!("the second backup of one number was made");
    };
    assert_eq!(failure.kind, Kind::Overtaken);
    assert!(failure.message.contains("another backup took that number"), "{}", failure.message);
    assert!(failure.message.contains("same command again"), "{}", failure.message);
    assert!(before.is_subset(&world.objects()));
    loser
}

#[test]
fn the_loser_of_a_race_is_told_so_and_succeeds_when_it_is_carried_on() {
    let world = World::new();
    let (one, other) = (world.catalog("one"), world.catalog("other"));
    let loser = lost_race(&world, &one, &other);

    // Also from a process that knows nothing of the lost cut.
    let id = loser.id;
    drop(loser);
    let (source, collection) = (world.source.clone(), Arc::clone(&world.collection));
    let again = resume_backup(&other, id, source, collection, env()).unwrap();
    done(&other, &again);

    assert_eq!(world.collection.log().unwrap().len(), 2);
    let chain = world.collection.chain(&RestorePoint::Latest).unwrap();
    world.collection.check_present(&chain).unwrap();
}

#[test]
fn a_backup_that_lost_a_race_can_be_cancelled() {
    let world = World::new();
    let (one, other) = (world.catalog("one"), world.catalog("other"));
    let loser = lost_race(&world, &one, &other);

    assert_eq!(drive(&other, &loser, Intent::Cancel), Ended::Cancelled);

    let phase = other.state(loser.id).unwrap().state.phase;
    assert!(matches!(phase, Phase::Cancelled { .. }), "{phase:?}");
    let chain = world.collection.chain(&RestorePoint::Latest).unwrap();
    world.collection.check_present(&chain).unwrap();
    let only = &world.collection.log().unwrap()[0].directory;
    let strays: Vec<String> = world.objects().into_iter().collect();
    let ours = |path: &String| path.ends_with(".parquet") && !path.starts_with(only.as_str());
    assert!(!strays.iter().any(ours), "{strays:?}");
}

/// Copies a database that nobody has open.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// A collection whose newest backup, an increment, was taken of another history than that of
/// the source that is given: of a copy, or of what a rollback undid.
fn forked() -> (World, Arc<EmbeddedDatabase>) {
    let world = World::new();
    let catalog = world.catalog("operations");
    done(&catalog, &world.begin(&catalog, BackupChoice::Full));
    let place = world.folder.path().join("source");
    let elsewhere = world.folder.path().join("elsewhere");
    let World { folder, source, collection } = world;
    drop(source);
    copy(&place, &elsewhere);
    let world = World { folder, source: database(&place), collection };
    world.write(50..150);
    done(&catalog, &world.begin(&catalog, BackupChoice::Incremental));
    (world, database(&elsewhere))
}

#[test]
fn an_increment_of_a_source_that_was_rolled_back_or_copied_is_refused() {
    let (world, other) = forked();
    let catalog = world.catalog("operations of the other");
    write(&other, world.folder.path(), 0..300);
    for cuts_before in [0, 1, 2] {
        for kind in [BackupChoice::Incremental, BackupChoice::Auto] {
            let refused = world.try_begin(&other, &catalog, kind).unwrap_err();
            assert_eq!(refused.kind(), Kind::Broken, "after {cuts_before} cuts: {refused}");
            assert!(refused.message().contains("rolled back"), "{refused}");
            assert!(refused.message().contains("--full"), "{refused}");
        }
    }
    assert_eq!(world.collection.log().unwrap().len(), 2);

    let full = world.try_begin(&other, &catalog, BackupChoice::Full).unwrap();
    done(&catalog, &full);
    write(&other, world.folder.path(), 10..310);
    let next = world.try_begin(&other, &catalog, BackupChoice::Incremental).unwrap();
    done(&catalog, &next);
    let target = database(&world.folder.path().join("target"));
    chain::restore_done(&target, &world.collection, &tidemark::restore::RestoreOptions::default());
    assert_eq!(chain::dump(&target, "t"), chain::dump(&other, "t"));
}

#[test]
fn another_database_is_not_mixed_in_unasked() {
    let world = World::new();
    let catalog = world.catalog("operations");
    done(&catalog, &world.begin(&catalog, BackupChoice::Full));
    let other = database(&world.folder.path().join("other"));
    write(&other, world.folder.path(), 0..5);

    let refused = world.try_begin(&other, &catalog, BackupChoice::Auto).unwrap_err();

    assert_eq!(refused.kind(), Kind::Usage);
    for words in ["another database", "another collection", "--full"] {
        assert!(refused.message().contains(words), "{refused}");
    }
    assert_eq!(world.collection.log().unwrap().len(), 1);
    done(&catalog, &world.try_begin(&other, &catalog, BackupChoice::Full).unwrap());
}

#[test]
fn a_pattern_that_selects_no_table_any_more_is_a_warning_of_the_increment() {
    let world = World::new();
    let catalog = world.catalog("operations");
    sync(&world.source, "gone", "k", &world.folder.path().join("t.csv"));
    let options = BackupOptions {
        tables: vec!["t".to_owned(), "go*".to_owned()],
        ..BackupOptions::default()
    };
    let take = || {
        let request = BackupRequest {
            source: world.source.clone(),
            source_shown: "embedded:source",
            collection: Arc::clone(&world.collection),
            collection_shown: "collection",
            options: &options,
            window: 4,
        };
        let begun = begin_backup(&catalog, &request, env()).unwrap();
        let Ended::Done { outcome: Some(outcome) } = drive(&catalog, &begun, Intent::CarryOn)
        else {
            panic!("no backup");
        };
        serde_json::from_str::<tidemark::backup::BackupOutcome>(&outcome).unwrap().warnings
    };
    assert_eq!(take(), [""; 0]);
    world.source.drop_table(&chain::name("gone")).unwrap();
    assert_eq!(take(), ["`go*` selects no table any more"]);
}

/// Three backups, of which object `lost` of the log or of backup 2 is removed.
fn damaged(world: &World, catalog: &LmdbCatalog, lost: impl Fn(&str) -> String) {
    for kind in [BackupChoice::Full, BackupChoice::Incremental, BackupChoice::Incremental] {
        done(catalog, &world.begin(catalog, kind));
        world.write(50..150);
    }
    let second = world.collection.log().unwrap()[1].directory.clone();
    world.collection.store().delete(&lost(&second)).unwrap();
}

#[test]
fn points_before_a_gap_in_the_log_can_be_restored_and_the_rest_says_what_to_do() {
    let world = World::new();
    let catalog = world.catalog("operations");
    damaged(&world, &catalog, |_| "log/000002.json".to_owned());
    let collection = &world.collection;

    let (before, flaw) = collection.log_to_flaw().unwrap();
    assert_eq!(before.len(), 1);
    for told in [
        flaw.unwrap(),
        collection.log().unwrap_err(),
        collection.chain(&RestorePoint::Latest).unwrap_err(),
        collection.chain(&RestorePoint::parse("3").unwrap()).unwrap_err(),
        world.try_begin(&world.source, &catalog, BackupChoice::Full).unwrap_err(),
    ] {
        assert_eq!(told.kind(), Kind::Broken);
        for words in ["log/000002.json", "from a copy", "#1", "new collection", "tidemark verify"] {
            assert!(told.message().contains(words), "expected {words:?} in: {told}");
        }
    }

    let target = database(&world.folder.path().join("target"));
    for at in ["1", before[0].directory.as_str()] {
        let options = tidemark::restore::RestoreOptions {
            at: at.to_owned(),
            replace: true,
            ..tidemark::restore::RestoreOptions::default()
        };
        chain::restore_done(&target, collection, &options);
    }
}

#[test]
fn a_lost_manifest_says_what_to_do_and_a_new_full_is_possible() {
    let world = World::new();
    let catalog = world.catalog("operations");
    damaged(&world, &catalog, |second| format!("{second}/manifest.json"));
    let collection = &world.collection;

    for told in [
        collection.chain(&RestorePoint::Latest).unwrap_err(),
        world.try_begin(&world.source, &catalog, BackupChoice::Auto).unwrap_err(),
    ] {
        assert_eq!(told.kind(), Kind::Broken);
        for words in ["manifest.json", "from a copy", "--full", "tidemark verify"] {
            assert!(told.message().contains(words), "expected {words:?} in: {told}");
        }
    }

    collection.chain(&RestorePoint::parse("1").unwrap()).unwrap();
    done(&catalog, &world.begin(&catalog, BackupChoice::Full));
    collection.chain(&RestorePoint::Latest).unwrap();
}

#[test]
fn a_cut_opens_the_shards_of_the_selected_tables_only() {
    let world = World::new();
    let file = world.folder.path().join("t.csv");
    (0..5).for_each(|number| sync(&world.source, &format!("other{number}"), "k", &file));
    let collection = world.collection.id();

    let snapshot = world.source.snapshot_of(collection, &mut |name| name.name() == "t").unwrap();

    let tables: Vec<String> =
        snapshot.tables().iter().map(|table| table.name.to_string()).collect();
    assert_eq!(tables, ["t"]);
    assert_eq!(snapshot.table_names().len(), 6);
}

#[test]
fn the_proof_of_a_first_full_has_a_weight() {
    let world = World::new();
    let catalog = world.catalog("operations");
    let first = world.begin(&catalog, BackupChoice::Full);
    let planned = catalog.state(first.id).unwrap().state.planned;
    let row_bytes: u64 = planned.steps.iter().map(|step| step.bytes).sum();
    assert!(planned.proof_bytes > 0 && planned.proof_bytes < row_bytes, "{planned:?}");
    done(&catalog, &first);
}
