//! Backups as operations: races, sources that went back in time, and what is left behind.

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
        let options = BackupOptions { kind, tables: Vec::new() };
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
