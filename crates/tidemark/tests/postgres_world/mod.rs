//! A server, a collection of its backups, and what every cut showed.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark::Result;
use tidemark::backup::BackupChoice;
use tidemark::collection::manifest::Manifest;
use tidemark::collection::{Collection, Store};
use tidemark::database::postgres::setup::set_up;
use tidemark::database::postgres::source::{PostgresSource, SourceOptions};
use tidemark::database::postgres::{Purpose, Server, Session};
use tidemark::database::{Snapshot, Source};
use tidemark::env::SystemEnv;
use tidemark::executor::Ended;
use tidemark::ids::{CollectionId, Position, TableName};
use tidemark::restore::RestoreOptions;
use tidemark::row::{KeyRange, RowBatch};

use crate::chain::{backup_of, database, env, folder, restore_done};
use crate::postgres_server::{Cluster, Wanted, newest};

pub const WAIT: Duration = Duration::from_secs(30);

/// Rows by key, by table.
pub type Tables = BTreeMap<TableName, BTreeMap<Vec<u8>, Vec<u8>>>;

/// All rows of a cut, read by scanning it.
pub fn rows_of(snapshot: &dyn Snapshot) -> Tables {
    let mut tables = Tables::new();
    for (at, table) in snapshot.tables().iter().enumerate() {
        let rows = tables.entry(table.name.clone()).or_default();
        let mut stream = snapshot.scan(at, &KeyRange::ALL).unwrap();
        let mut batch = RowBatch::new();
        while stream.next_batch(&mut batch).unwrap() {
            rows.extend(batch.iter().map(|row| (row.key.to_vec(), row.payload.to_vec())));
        }
    }
    tables
}

/// The source, which remembers what each of its cuts showed.
#[derive(Debug)]
pub struct Remembering {
    pub source: PostgresSource,
    pub cuts: Mutex<BTreeMap<Position, Tables>>,
}

impl Source for Remembering {
    fn identity(&self) -> Result<String> {
        self.source.identity()
    }

    fn snapshot(&self, collection: CollectionId) -> Result<Arc<dyn Snapshot>> {
        self.snapshot_of(collection, &mut |_| true)
    }

    fn snapshot_of(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<Arc<dyn Snapshot>> {
        let snapshot = self.source.snapshot_of(collection, selects)?;
        self.cuts.lock().unwrap().insert(snapshot.position(), rows_of(&*snapshot));
        Ok(snapshot)
    }

    fn advance(&self, collection: CollectionId, to: Position) -> Result<()> {
        self.source.advance(collection, to)
    }
}

/// A server, a collection of its backups, and a folder for everything else.
pub struct World {
    pub cluster: Cluster,
    pub folder: tempfile::TempDir,
    pub collection: Arc<Collection>,
    pub source: Arc<Remembering>,
}

impl World {
    pub fn new(wanted: &Wanted) -> World {
        World::on(Cluster::start(&newest(), wanted))
    }

    pub fn on(cluster: Cluster) -> World {
        let folder = folder();
        let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
        let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
        let source = World::open(&cluster.url(), &folder, |_| {});
        World { cluster, folder, collection, source }
    }

    pub fn open(
        url: &str,
        folder: &tempfile::TempDir,
        choose: impl FnOnce(&mut SourceOptions),
    ) -> Arc<Remembering> {
        let mut options = SourceOptions::new(folder.path().join("scratch"));
        choose(&mut options);
        let source = PostgresSource::open(Server::parse(url).unwrap(), options, env()).unwrap();
        Arc::new(Remembering { source, cuts: Mutex::default() })
    }

    /// The same world with other options.
    pub fn choose(&mut self, choose: impl FnOnce(&mut SourceOptions)) {
        self.source = World::open(&self.cluster.url(), &self.folder, choose);
    }

    pub fn server(&self) -> Server {
        Server::parse(&self.cluster.url()).unwrap()
    }

    pub fn session(&self) -> Session {
        let mut session = self.server().connect(Purpose::Write).unwrap();
        session.client().batch_execute("SET search_path = public, pg_catalog").unwrap();
        session
    }

    pub fn set_up(&self) {
        set_up(&self.server(), self.collection.id(), &mut |_| true, WAIT).unwrap();
    }

    pub fn try_backup(&self, kind: BackupChoice, tables: &[&str]) -> Result<Ended> {
        let state = self.folder.path().join("state");
        let tables = tables.iter().map(|table| (*table).to_owned()).collect();
        let source: Arc<dyn Source> = self.source.clone();
        backup_of(&source, &state, &self.collection, kind, tables)
    }

    #[track_caller]
    pub fn backup(&self, kind: BackupChoice) -> Manifest {
        let ended = self.try_backup(kind, &[]).unwrap();
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
        let log = self.collection.log().unwrap();
        self.collection.manifest(log.last().unwrap()).unwrap()
    }

    /// Restores every backup and compares it with what the source showed.
    pub fn check_every_point(&self) {
        let cuts = self.source.cuts.lock().unwrap();
        for entry in self.collection.log().unwrap() {
            let manifest = self.collection.manifest(&entry).unwrap();
            let shown = &cuts[&manifest.source.to];
            let target = database(&self.folder.path().join(format!("restored-{}", entry.sequence)));
            let at = entry.directory.clone();
            restore_done(&target, &self.collection, &RestoreOptions { at, ..Default::default() });
            let restored = rows_of(&*target.snapshot(CollectionId(7)).unwrap());
            let count = |tables: &Tables| -> Vec<(TableName, usize)> {
                tables.iter().map(|(name, rows)| (name.clone(), rows.len())).collect()
            };
            assert_eq!(count(&restored), count(shown), "{}", entry.directory);
            assert!(restored == *shown, "other rows at {}", entry.directory);
        }
    }
}
