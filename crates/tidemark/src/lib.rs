//! Incremental backup and restore of sharded tables, with progress that survives.
//!
//! Tidemark takes full and incremental backups of sharded tables and restores any point of
//! such a chain, shard by shard and in parallel. A shard's position is a durable mark, written
//! in the transaction of its rows, so a crash costs at most the chunk in flight of each shard;
//! and a restore is done only after its rows were read back and are those of the backup.
//!
//! There are three things to do with this crate.
//!
//! # Embed the database
//!
//! [`database::embedded`] is a sharded store in a directory, on LMDB, without a server: typed
//! tables, batches that are atomic over all shards, scans of one moment, and cuts that know
//! what changed since another cut. Any number of threads and processes use it at once.
//!
//! ```
//! use std::sync::Arc;
//!
//! use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, RowRange, WriteBatch};
//! use tidemark::database::{Delta, ParentTable, Source};
//! use tidemark::env::SystemEnv;
//! use tidemark::ids::{CollectionId, TableName};
//! use tidemark::row::{ChangeOp, KeyRange, LogicalType, RowBatch, Schema, Value};
//!
//! # fn main() -> tidemark::Result<()> {
//! # let place = tempfile::tempdir().unwrap();
//! # let dir = place.path().join("shop");
//! let database =
//!     EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), EmbeddedOptions::default())?;
//! let stock = TableName::parse("stock").unwrap();
//! let columns = [("item", LogicalType::Text), ("count", LogicalType::Int64)];
//! database.create_table(&stock, &Schema::new(&columns, &["item"])?, &[])?;
//! let row = |item: &str, count| vec![Value::Text(item.to_owned()), Value::Int64(count)];
//! let mut batch = WriteBatch::new();
//! batch.put(&stock, row("apples", 3));
//! batch.put(&stock, row("pears", 5));
//! database.write(&batch)?;
//!
//! // A cut over all tables. Whoever takes cuts gives a number that is his own.
//! let collection = CollectionId(7);
//! let before = database.snapshot(collection)?;
//!
//! database.put(&stock, row("apples", 2))?;
//! database.delete(&stock, &[Value::Text("pears".to_owned())])?;
//! assert_eq!(database.scan(&stock, &RowRange::ALL)?.count(), 1);
//!
//! // The earlier cut still has its rows; the later one knows what changed in between.
//! assert_eq!(before.tables()[0].digest.unwrap().rows, 2);
//! let after = database.snapshot(collection)?;
//! let table = &before.tables()[0];
//! let (id, schema, position) = (table.id, table.schema.clone(), before.position());
//! let delta = after.delta(0, &ParentTable { id, schema, position, structure: None })?;
//! assert!(matches!(delta, Delta::Known { rows: 2, .. }));
//! let mut changes = after.changes(0, &KeyRange::ALL, position)?;
//! let mut batch = RowBatch::new();
//! assert!(changes.next_batch(&mut batch)?);
//! let ops: Vec<ChangeOp> = batch.iter().map(|change| change.op).collect();
//! assert_eq!(ops, [ChangeOp::Upsert, ChangeOp::Delete]);
//! # Ok(()) }
//! ```
//!
//! # Back up and restore
//!
//! [`begin_backup`](backup::begin_backup) and [`begin_restore`](restore::begin_restore) record
//! an operation in a [`Catalog`](catalog::Catalog), or find the unfinished one that the same call
//! carries on; [`executor::run`] drives it. A process that dies leaves nothing to clean up: the
//! same two calls carry on.
//!
//! ```
//! # use std::sync::Arc;
//! # use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
//! # use tidemark::env::{Env, SystemEnv};
//! # use tidemark::ids::TableName;
//! # use tidemark::row::{LogicalType, Schema, Value};
//! use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
//! use tidemark::catalog::LmdbCatalog;
//! use tidemark::collection::{Collection, Store};
//! use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
//! use tidemark::restore::{RestoreOptions, Room, Route, begin_restore};
//!
//! # fn main() -> tidemark::Result<()> {
//! # let place = tempfile::tempdir().unwrap();
//! # let env: Arc<dyn Env> = Arc::new(SystemEnv);
//! # let dir = place.path().join("shop");
//! # let database = EmbeddedDatabase::create(&dir, env.clone(), EmbeddedOptions::default())?;
//! # let database = Arc::new(database);
//! # let stock = TableName::parse("stock").unwrap();
//! # let columns = [("item", LogicalType::Text), ("count", LogicalType::Int64)];
//! # database.create_table(&stock, &Schema::new(&columns, &["item"])?, &[])?;
//! # database.put(&stock, vec![Value::Text("apples".to_owned()), Value::Int64(3)])?;
//! // `database` is an Arc<EmbeddedDatabase> with a table `stock`. Its operations are recorded
//! // beside its own records.
//! let catalog = LmdbCatalog::of_database(&database, env.clone())?;
//! # let backups = place.path().join("backups").display().to_string();
//! let collection = Arc::new(Collection::open_or_create(Store::open(&backups)?, &SystemEnv)?);
//!
//! let request = BackupRequest {
//!     source: database.clone(),
//!     source_shown: "embedded:shop",
//!     collection: collection.clone(),
//!     collection_shown: &backups,
//!     options: &BackupOptions::default(),
//!     window: 10,
//! };
//! let begun = begin_backup(&catalog, &request, env.clone())?;
//! let never = Stop::default();
//! let carry_on = Intent::CarryOn;
//! run(&catalog, &begun.job, begun.id, carry_on, &SystemEnv, &never, &mut Unobserved)?;
//!
//! // The newest restore point, beside the live table under another name.
//! let options = RestoreOptions {
//!     renames: vec![("stock".to_owned(), "stock_before".to_owned())],
//!     ..RestoreOptions::default()
//! };
//! let begun = begin_restore(
//!     &catalog,
//!     database.clone(),
//!     collection,
//!     Route { collection: &backups, target: "embedded:shop" },
//!     &options,
//!     &Room { window: 10, memory_bytes: 256 << 20, scratch: database.scratch_dir() },
//!     &SystemEnv,
//! )?;
//! let ended = run(&catalog, &begun.job, begun.id, carry_on, &SystemEnv, &never, &mut Unobserved)?;
//! assert!(matches!(ended, Ended::Done { .. }));
//! assert_eq!(database.tables()?.len(), 2);
//! # Ok(()) }
//! ```
//!
//! `examples/backup_and_restore.rs` shows a chain of three backups, and
//! `examples/resume_after_kill.rs` a restore that is killed half-way and carried on.
//!
//! # Implement a driver
//!
//! A database of another kind is a [`Source`](database::Source) of backups, a
//! [`Target`](database::Target) of restores, or both. This one has one table that never
//! changes; it is enough for full backups.
//!
//! ```
//! use std::sync::Arc;
//!
//! use tidemark::database::{
//!     Delta, ParentTable, Snapshot, Source, SourceShard, SourceTable,
//! };
//! use tidemark::ids::{CollectionId, Position, TableId, TableName};
//! use tidemark::row::{
//!     ChangeOp, KeyRange, LogicalType, RowBatch, RowCodec, RowRef, RowStream, Schema, Value,
//! };
//! use tidemark::{Error, Kind, Result};
//!
//! #[derive(Debug)]
//! struct Planets;
//!
//! #[derive(Debug)]
//! struct Cut(Vec<SourceTable>);
//!
//! struct Rows(Option<RowBatch>);
//!
//! impl Source for Planets {
//!     fn identity(&self) -> Result<String> {
//!         Ok("planets:the only ones".to_owned())
//!     }
//!
//!     fn snapshot(&self, _: CollectionId) -> Result<Arc<dyn Snapshot>> {
//!         let shard = SourceShard { range: KeyRange::ALL, rows: 2, bytes: 40 };
//!         Ok(Arc::new(Cut(vec![SourceTable {
//!             id: TableId(1),
//!             digest_id: TableId(1),
//!             name: TableName::parse("planets").expect("a plain name"),
//!             schema: Schema::new(&[("name", LogicalType::Text)], &["name"])?,
//!             shards: vec![shard],
//!             // None: the proof of a restore folds the chain instead.
//!             digest: None,
//!             structure: None,
//!         }])))
//!     }
//!
//!     fn advance(&self, _: CollectionId, _: Position) -> Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! impl Snapshot for Cut {
//!     fn position(&self) -> Position {
//!         Position(1)
//!     }
//!
//!     fn tables(&self) -> &[SourceTable] {
//!         &self.0
//!     }
//!
//!     fn scan<'a>(&'a self, table: usize, range: &KeyRange) -> Result<Box<dyn RowStream + 'a>> {
//!         let codec = RowCodec::new(&self.0[table].schema);
//!         let mut rows = RowBatch::new();
//!         for name in ["Earth", "Mars"] {
//!             let row = [Value::Text(name.to_owned())];
//!             let (mut key, mut payload) = (Vec::new(), Vec::new());
//!             codec.encode_key(&row, &mut key)?;
//!             codec.encode_payload(&row, &mut payload)?;
//!             if range.contains(&key) {
//!                 rows.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
//!             }
//!         }
//!         Ok(Box::new(Rows(Some(rows))))
//!     }
//!
//!     fn delta(&self, _: usize, _: &ParentTable) -> Result<Delta> {
//!         Ok(Delta::Whole { reason: "changes are not captured".to_owned() })
//!     }
//!
//!     fn changes<'a>(
//!         &'a self,
//!         _: usize,
//!         _: &KeyRange,
//!         _: Position,
//!     ) -> Result<Box<dyn RowStream + 'a>> {
//!         Err(Error::new(Kind::Usage, "the table is always carried whole"))
//!     }
//! }
//!
//! impl RowStream for Rows {
//!     fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
//!         match self.0.take().filter(|rows| !rows.is_empty()) {
//!             None => Ok(false),
//!             Some(rows) => {
//!                 *batch = rows;
//!                 Ok(true)
//!             }
//!         }
//!     }
//! }
//! # use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
//! # use tidemark::catalog::LmdbCatalog;
//! # use tidemark::collection::{Collection, Store};
//! # use tidemark::env::{Env, SystemEnv};
//! # use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
//! # fn main() -> Result<()> {
//! # let place = tempfile::tempdir().unwrap();
//! # let env: Arc<dyn Env> = Arc::new(SystemEnv);
//! # let catalog = LmdbCatalog::open_or_create(&place.path().join("state"), env.clone())?;
//! # let backups = place.path().join("backups").display().to_string();
//! # let collection = Arc::new(Collection::create(Store::open(&backups)?, &SystemEnv)?);
//! # let request = BackupRequest {
//! #     source: Arc::new(Planets),
//! #     source_shown: "planets",
//! #     collection: collection.clone(),
//! #     collection_shown: &backups,
//! #     options: &BackupOptions::default(),
//! #     window: 1,
//! # };
//! # let begun = begin_backup(&catalog, &request, env)?;
//! # let (stop, on) = (Stop::default(), Intent::CarryOn);
//! # let ended = run(&catalog, &begun.job, begun.id, on, &SystemEnv, &stop, &mut Unobserved)?;
//! # assert!(matches!(ended, Ended::Done { .. }));
//! # assert_eq!(collection.manifest(&collection.log()?[0])?.totals.rows, 2);
//! # Ok(()) }
//! ```
//!
//! `examples/own_driver.rs` is a whole driver, in memory, in 700 lines.
//! [`database::conformance`] checks any driver, every promise by its name and on an empty
//! database of its own; `tests/own_driver.rs` shows how it is called.
//!
//! # Modules, in reading order
//!
//! | module | what it is |
//! |---|---|
//! | [`ids`], [`env`](mod@env), [`error`], [`failpoint`] | newtypes of everything that is numbered; clock, chance and rest; errors; points at which test builds die |
//! | [`row`], [`csv`] | rows as keys and payloads, digests; CSV without losing a byte |
//! | [`operation`] | an operation as a pure state machine: no I/O, no clock |
//! | [`database`] | the contract of a driver, its conformance suite, the embedded database |
//! | [`catalog`] | the durable state of operations |
//! | [`collection`] | where backups lie: store, log, manifests, parts, chains, the fold |
//! | [`executor`] | commit, then act: drives operations |
//! | [`backup`], [`restore`], [`verify`] | the three verbs |
//!
//! ARCHITECTURE.md at the root of the repository has the glossary, the invariants and the life
//! of an operation; docs/format.md the formats, byte by byte.
//!
//! # Errors
//!
//! Every fallible function returns an [`Error`]. Its [`Kind`] says what the caller does next,
//! its message is a sentence for people, and its `source` is the cause.
//!
//! ```
//! use tidemark::collection::{Collection, Store};
//! use tidemark::Kind;
//!
//! # let place = tempfile::tempdir().unwrap();
//! # let nowhere = place.path().join("nowhere").display().to_string();
//! let error = Store::open(&nowhere).and_then(Collection::open).unwrap_err();
//! match error.kind() {
//!     Kind::Transient => { /* try again */ }
//!     Kind::Blocked => { /* ask a person, then try again */ }
//!     Kind::Held => { /* somebody else is at it: wait */ }
//!     Kind::NotFound => println!("{}", error.chain()),
//!     _ => { /* the request or the data is wrong: report it */ }
//! }
//! # assert_eq!(error.kind(), Kind::NotFound);
//! ```

pub mod backup;
pub mod byte_size;
pub mod catalog;
pub mod collection;
pub mod csv;
pub mod database;
pub mod env;
pub mod error;
pub mod executor;
pub mod failpoint;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod ids;
pub(crate) mod lmdb;
pub mod operation;
mod percent;
pub mod planted;
pub mod restore;
pub mod row;
pub mod verify;

pub use error::{Error, Kind, Result};
