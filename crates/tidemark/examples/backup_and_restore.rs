//! A full, two increments, and an earlier point of the chain restored beside the live table.
//!
//! Everything happens in the directory that is given, by default a new one in the
//! directory for temporary files, which is removed at the end.
//!
//! Run it with `cargo run --example backup_and_restore [DIR]`.
#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, RowRange, WriteBatch};
use tidemark::env::{Env, SystemEnv};
use tidemark::executor::{Ended, Intent, Job, Stop, Unobserved, run};
use tidemark::ids::{OperationId, TableName};
use tidemark::operation::WINDOW_DEFAULT;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{RestoreOptions, Room, Route, begin_restore};
use tidemark::row::{LogicalType, Row, Schema, Value};
use tidemark::{Error, Kind, Result};

/// The database, where its operations are recorded, and the collection that its backups go to.
struct Shop {
    database: Arc<EmbeddedDatabase>,
    catalog: LmdbCatalog,
    collection: Arc<Collection>,
}

impl Shop {
    fn create(dir: &Path) -> Result<Shop> {
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let options = EmbeddedOptions::default();
        let database = EmbeddedDatabase::create(&dir.join("shop"), Arc::clone(&env), options)?;
        let database = Arc::new(database);
        let catalog = LmdbCatalog::of_database(&database, env)?;
        let store = Store::open(&dir.join("backups").display().to_string())?;
        let collection = Arc::new(Collection::create(store, &SystemEnv)?);
        Ok(Shop { database, catalog, collection })
    }

    /// Takes a backup, a full at first and increments afterwards, and gives its name.
    fn back_up(&self) -> Result<String> {
        let options = BackupOptions::default();
        let request = BackupRequest {
            source: self.database.clone(),
            source_shown: "embedded:shop",
            collection: Arc::clone(&self.collection),
            collection_shown: "backups",
            options: &options,
            window: WINDOW_DEFAULT,
        };
        let begun = begin_backup(&self.catalog, &request, Arc::new(SystemEnv))?;
        self.drive(begun.id, &begun.job)?;
        let log = self.collection.log()?;
        let newest = log.last().expect("a backup that is done has its entry");
        let manifest = self.collection.manifest(newest)?;
        println!(
            "backup {}: {:?}, {} rows, {} of them deletes",
            newest.sequence, newest.kind, manifest.totals.rows, manifest.totals.tombstones
        );
        Ok(newest.directory.clone())
    }

    /// Restores the table as it was at a backup, under another name, beside the live one.
    fn restore(&self, at: &str, table: &TableName, copy: &TableName) -> Result<()> {
        let options = RestoreOptions {
            at: at.to_owned(),
            renames: vec![(table.to_string(), copy.to_string())],
            ..RestoreOptions::default()
        };
        let room = Room {
            window: WINDOW_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            scratch: self.database.scratch_dir(),
        };
        let begun = begin_restore(
            &self.catalog,
            self.database.clone(),
            Arc::clone(&self.collection),
            Route { collection: "backups", target: "embedded:shop" },
            &options,
            &room,
            &SystemEnv,
        )?;
        self.drive(begun.id, &begun.job)
    }

    /// Drives an operation to its end. What is neither done nor an error can be carried on
    /// by the same call.
    fn drive(&self, id: OperationId, job: &dyn Job) -> Result<()> {
        let never = Stop::default();
        let carry_on = Intent::CarryOn;
        match run(&self.catalog, job, id, carry_on, &SystemEnv, &never, &mut Unobserved)? {
            Ended::Done { .. } => Ok(()),
            Ended::Failed(failure) => Err(Error::new(failure.kind, failure.message)),
            Ended::Paused { why, .. } => Err(Error::new(Kind::Blocked, why)),
            Ended::Cancelled => Err(Error::new(Kind::Fatal, "somebody cancelled it")),
        }
    }

    fn rows(&self, table: &TableName) -> Result<Vec<Row>> {
        self.database.scan(table, &RowRange::ALL)?.collect()
    }
}

fn order(id: i64, city: &str) -> Row {
    vec![Value::Int64(id), Value::Text(city.to_owned())]
}

fn show(dir: &Path) -> Result<()> {
    let shop = Shop::create(dir)?;
    let [orders, before] = ["orders", "orders_before"]
        .map(|name| TableName::parse(name).expect("plain names are table names"));
    let columns = [("id", LogicalType::Int64), ("city", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"])?;
    // Two shards: ids below 500, and the others.
    shop.database.create_table(&orders, &schema, &[vec![Value::Int64(500)]])?;

    let mut batch = WriteBatch::new();
    (0..1000).for_each(|id| batch.put(&orders, order(id, "Berlin")));
    shop.database.write(&batch)?;
    shop.back_up()?;

    let mut batch = WriteBatch::new();
    (400..600).for_each(|id| batch.put(&orders, order(id, "Lima")));
    shop.database.write(&batch)?;
    let point = shop.back_up()?;
    let expected = shop.rows(&orders)?;

    // What should not have happened, and is in the newest backup as well.
    let mut batch = WriteBatch::new();
    (0..700).for_each(|id| batch.delete(&orders, vec![Value::Int64(id)]));
    shop.database.write(&batch)?;
    shop.back_up()?;

    shop.restore(&point, &orders, &before)?;
    let (restored, live) = (shop.rows(&before)?, shop.rows(&orders)?);
    assert_eq!(restored, expected, "the copy is what the table was at that backup");
    println!("`{before}` has the {} rows of {point}; they are the same", restored.len());
    println!("`{orders}` still has its {} rows", live.len());
    Ok(())
}

fn main() -> Result<()> {
    if let Some(dir) = std::env::args_os().nth(1) {
        return show(&PathBuf::from(dir));
    }
    let dir = tempfile::tempdir().map_err(|cause| Error::io("make a directory", cause))?;
    show(dir.path())
}
