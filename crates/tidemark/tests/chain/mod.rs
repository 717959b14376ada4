//! Chains of real data on the embedded database, for integration tests.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses a part of it")]

pub mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark::backup::{BackupChoice, BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{
    DumpFormat, EmbeddedDatabase, EmbeddedOptions, LoadMode, LoadRequest,
};
use tidemark::database::{Source, Target};
use tidemark::env::{Env, SystemEnv};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::TableName;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{BegunRestore, RestoreOptions, Room, Route, begin_restore};

/// A source, its collection, and what the source held at each backup.
pub struct Chain {
    pub folder: tempfile::TempDir,
    pub points: Vec<(String, Vec<u8>)>,
}

pub fn env() -> Arc<dyn Env> {
    Arc::new(SystemEnv)
}

pub fn database(path: &Path) -> Arc<EmbeddedDatabase> {
    let opened = EmbeddedDatabase::open_or_create(path, env(), EmbeddedOptions::default());
    Arc::new(opened.unwrap())
}

pub fn name(text: &str) -> TableName {
    TableName::parse(text).unwrap()
}

pub fn dump(database: &EmbeddedDatabase, table: &str) -> Vec<u8> {
    let mut out = Vec::new();
    database.dump(&name(table), DumpFormat::Csv, &mut out).unwrap();
    out
}

pub fn sync(database: &EmbeddedDatabase, table: &str, key: &str, file: &Path) {
    let request = LoadRequest {
        table: name(table),
        file: file.to_owned(),
        key: vec![key.to_owned()],
        mode: LoadMode::Sync,
        shards: Some(3),
        types: BTreeMap::new(),
    };
    database.load(&request).unwrap();
}

pub fn backup(database: &Arc<EmbeddedDatabase>, collection: &Arc<Collection>) -> String {
    let catalog = LmdbCatalog::of_database(database, env()).unwrap();
    let options = BackupOptions::default();
    let request = BackupRequest {
        source: database.clone(),
        source_shown: "embedded:source",
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &options,
        window: 4,
    };
    let begun = begin_backup(&catalog, &request, env()).unwrap();
    let ended = run(
        &catalog,
        &begun.job,
        begun.id,
        Intent::CarryOn,
        &SystemEnv,
        &Stop::default(),
        &mut Unobserved,
    );
    assert!(matches!(ended.unwrap(), Ended::Done { .. }));
    collection.log().unwrap().last().unwrap().directory.clone()
}

/// Takes a backup of any source, recorded in the folder `state`.
pub fn backup_of(
    source: &Arc<dyn Source>,
    state: &Path,
    collection: &Arc<Collection>,
    kind: BackupChoice,
    tables: Vec<String>,
) -> tidemark::Result<Ended> {
    let catalog = LmdbCatalog::open_or_create(state, env()).unwrap();
    let options = BackupOptions { kind, tables, attest: false };
    let request = BackupRequest {
        source: Arc::clone(source),
        source_shown: "source",
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &options,
        window: 4,
    };
    let begun = begin_backup(&catalog, &request, env())?;
    let (intent, stop) = (Intent::CarryOn, Stop::default());
    run(&catalog, &begun.job, begun.id, intent, &SystemEnv, &stop, &mut Unobserved)
}

pub fn restore(
    target: &Arc<EmbeddedDatabase>,
    collection: &Arc<Collection>,
    options: &RestoreOptions,
    memory_bytes: u64,
) -> tidemark::Result<Ended> {
    let catalog = LmdbCatalog::of_database(target, env()).unwrap();
    let begun =
        begin(&catalog, target.clone(), collection, options, memory_bytes, &target.scratch_dir())?;
    drive(&catalog, &begun)
}

/// Records a restore, or finds the unfinished one.
pub fn begin(
    catalog: &LmdbCatalog,
    target: Arc<dyn Target>,
    collection: &Arc<Collection>,
    options: &RestoreOptions,
    memory_bytes: u64,
    scratch: &Path,
) -> tidemark::Result<BegunRestore> {
    let route = Route { collection: "collection", target: "embedded:target" };
    let room = Room { window: 10, memory_bytes, scratch: scratch.to_owned() };
    let collection = Arc::clone(collection);
    begin_restore(catalog, target, collection, route, options, &room, &SystemEnv)
}

/// Drives a restore to where it rests.
pub fn drive(catalog: &LmdbCatalog, begun: &BegunRestore) -> tidemark::Result<Ended> {
    let (intent, stop) = (Intent::CarryOn, Stop::default());
    run(catalog, &begun.job, begun.id, intent, &SystemEnv, &stop, &mut Unobserved)
}

#[track_caller]
pub fn restore_done(
    target: &Arc<EmbeddedDatabase>,
    collection: &Arc<Collection>,
    options: &RestoreOptions,
) {
    let ended = restore(target, collection, options, MEMORY_BYTES_DEFAULT).unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
}

pub fn data(folder: &str) -> Vec<PathBuf> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let folder = Path::new(&manifest).join("../../examples/data").join(folder);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A fresh folder, in memory where the system has such a place.
///
/// These tests restore hundreds of points step by step, and none of them ends the machine:
/// waiting for a disk to sync each of some hundred thousand commits would tell nothing.
pub fn folder() -> tempfile::TempDir {
    let in_memory = Path::new("/dev/shm");
    let place = if in_memory.is_dir() { in_memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("tidemark-").tempdir_in(place).unwrap()
}

/// The published revisions of the S&P 500 list: one full and 180 increments, two schema changes.
pub fn sp500(revisions: impl Iterator<Item = usize>) -> (Chain, Arc<Collection>) {
    let files = data("sp500");
    let folder = folder();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let mut points = Vec::new();
    for revision in revisions {
        sync(&source, "sp500", "Symbol", &files[revision]);
        let directory = backup(&source, &collection);
        points.push((directory, dump(&source, "sp500")));
    }
    (Chain { folder, points }, collection)
}
