//! The embedded database: sharded tables on LMDB, without a server.
//!
//! [`EmbeddedDatabase`] is a directory:
//!
//! ```text
//! DIR/tidemark-database.json   marker and format version, read before anything else
//! DIR/catalog/                 LMDB: tables, generations, positions, redo; operations too
//! DIR/shards/<generation>/     LMDB: one shard's rows, change log and record of itself
//! DIR/locks/                   gate, queue, redo
//! DIR/scratch/                 what may be deleted at any time
//! DIR/ballast                  room for undoing what filled the disk
//! ```
//!
//! A table is cut into shards by key range, and each shard is an LMDB environment
//! of its own, so shards are written in parallel. A table's record in the catalog
//! names the *generation* of each shard; a table is replaced by naming others, in
//! one transaction of the catalog.
//!
//! Three invariants carry the rest:
//! - Writers pass a gate shared, cuts and changes of names pass it alone: a
//!   cut sees every write whole or not at all.
//! - A batch over several shards is in the catalog as a redo record before the first
//!   shard changes, and whoever comes next completes it before reading or writing.
//! - Rows, digest and change log of a shard change in one transaction of its environment.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, RowRange, WriteBatch};
//! use tidemark::env::SystemEnv;
//! use tidemark::ids::TableName;
//! use tidemark::row::{LogicalType, Schema, Value};
//!
//! # fn main() -> tidemark::Result<()> {
//! # let place = tempfile::tempdir().unwrap();
//! # let dir = place.path().join("shop");
//! let database =
//!     EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), EmbeddedOptions::default())?;
//! let orders = TableName::parse("orders").unwrap();
//! let schema = Schema::new(&[("id", LogicalType::Int64), ("note", LogicalType::Text)], &["id"])?;
//! // Two shards: keys below 1000, and the others.
//! database.create_table(&orders, &schema, &[vec![Value::Int64(1000)]])?;
//!
//! let mut batch = WriteBatch::new();
//! batch.put(&orders, vec![Value::Int64(1), Value::Text("first".to_owned())]);
//! batch.put(&orders, vec![Value::Int64(2000), Value::Null]);
//! database.write(&batch)?;
//!
//! let row = database.get(&orders, &[Value::Int64(1)])?.expect("it was just written");
//! assert_eq!(row[1], Value::Text("first".to_owned()));
//! let ids: Vec<Value> = database
//!     .scan(&orders, &RowRange::ALL)?
//!     .map(|row| row.map(|row| row[0].clone()))
//!     .collect::<tidemark::Result<_>>()?;
//! assert_eq!(ids, [Value::Int64(1), Value::Int64(2000)]);
//! # Ok(()) }
//! ```

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::{TableName, Txn};
use crate::lmdb::{Environment, WriteTxn};
use crate::row::RowCodec;

mod alter;
mod apply;
mod ballast;
mod build;
mod cache;
mod capture;
pub(crate) mod catalog;
mod dump;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod gate;
mod generation;
mod load;
mod open;
mod read;
mod record;
mod shard;
mod source;
mod table;
mod target;
mod write;

pub use alter::Alteration;
pub use capture::KeptCollection;
pub use dump::{DumpFormat, DumpReport, write_rows};
pub use load::{LoadMode, LoadReport, LoadRequest, SHARDS_DEFAULT, SchemaChange};
pub use read::{RowRange, Scan};
pub use table::TableSummary;
pub use write::{ROW_BYTES_MAX, WRITE_BATCH_BYTES_MAX, WRITE_BATCH_ROWS_MAX, WriteBatch};

#[allow(unused_imports, reason = "the internal surface for targets and loaders")]
pub(crate) use {
    apply::{check_key_length, key_for_people},
    build::{CHUNK_BYTES_MAX, ShardBuilder},
    catalog::Catalog,
    gate::{ExclusiveGate, SharedGate},
    read::{Reads, RowCursor, TableCursor, TableView},
    record::{CopyRecord, DatabaseRecord, GenerationNumber, GenerationRecord},
    record::{ShardMeta, ShardRecord, TableRecord},
    shard::{Shard, ShardView},
    table::TableTotals,
};

use cache::ShardCache;
use shard::ShardOptions;
use target::TargetRecords;

/// Most shards of all tables together.
///
/// A cut has every shard open at once: three descriptors, two memory maps and its
/// reserved address space each. More shards than this help no machine that one
/// process runs on.
pub const SHARDS_MAX: u32 = 4096;

/// Address space that all shards may reserve together; machines offer 47 bits or more.
const ADDRESS_SPACE_BYTES: u64 = 32 << 40;

/// How an embedded database is opened.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// How long to wait for a lock before saying who holds it.
    pub lock_wait: Duration,
    /// Shards kept open while idle.
    pub open_shards_max: u32,
    /// Address space to reserve per shard, in bytes; less when there are very many shards.
    pub shard_map_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            lock_wait: Duration::from_secs(10),
            open_shards_max: 256,
            shard_map_bytes: 64 << 30,
        }
    }
}

/// A sharded database in a directory.
///
/// May be open in any number of threads and processes of one machine at once. What a
/// call returned as done is durable; a call that died in the middle was either done or
/// had no effect, and needs no repair by hand.
///
/// ```
/// use std::sync::Arc;
/// use tidemark::database::embedded::{Alteration, EmbeddedDatabase, EmbeddedOptions};
/// use tidemark::env::SystemEnv;
/// use tidemark::ids::TableName;
/// use tidemark::row::{LogicalType, Schema, Value};
///
/// # fn main() -> tidemark::Result<()> {
/// # let place = tempfile::tempdir().unwrap();
/// # let dir = place.path().join("shop");
/// let open =
///     || EmbeddedDatabase::open_or_create(&dir, Arc::new(SystemEnv), EmbeddedOptions::default());
/// let database = open()?;
/// let items = TableName::parse("items").unwrap();
/// let columns = [("order", LogicalType::Int64), ("line", LogicalType::Int64)];
/// database.create_table(&items, &Schema::new(&columns, &["order", "line"])?, &[])?;
/// database.put(&items, vec![Value::Int64(1), Value::Int64(1)])?;
///
/// // Another handle, in this process or another one, sees it at once.
/// let other = open()?;
/// let key = [Value::Int64(1), Value::Int64(1)];
/// assert!(other.get(&items, &key)?.is_some());
///
/// // A new column costs nothing: no row is written, rows that are there have NULL in it.
/// let logical = LogicalType::Decimal;
/// let price = Alteration::AddColumn { name: "price".to_owned(), logical };
/// other.alter(&items, &[price])?;
/// assert_eq!(database.get(&items, &key)?.unwrap()[2], Value::Null);
///
/// let summary = &database.tables()?[0];
/// assert_eq!((summary.digest.rows, summary.shards.len()), (1, 1));
/// # Ok(()) }
/// ```
pub struct EmbeddedDatabase {
    dir: PathBuf,
    env: Arc<dyn Env>,
    options: EmbeddedOptions,
    identity: String,
    catalog: Catalog,
    target_records: TargetRecords,
    shards: ShardCache,
    tables: Mutex<TableCache>,
}

/// Tables as of one version of the catalog's tables.
#[derive(Debug, Default)]
struct TableCache {
    version: u64,
    by_name: HashMap<TableName, Arc<TableHandle>>,
}

/// A table's record, ready to encode and decode its rows.
#[derive(Debug)]
pub(crate) struct TableHandle {
    /// Name.
    pub(crate) name: TableName,
    /// Record.
    pub(crate) record: TableRecord,
    /// Codec of its schema.
    pub(crate) codec: RowCodec,
}

impl TableHandle {
    /// A handle for a record of the catalog.
    pub(crate) fn new(name: TableName, record: TableRecord) -> TableHandle {
        let codec = RowCodec::new(&record.schema);
        TableHandle { name, record, codec }
    }
}

/// Passed through the gate beside others; position and tables stay as they are.
pub(crate) struct Access {
    /// Lets go when dropped.
    pub(crate) _gate: SharedGate,
    /// The database's record, current as long as the gate is held.
    pub(crate) database: DatabaseRecord,
}

/// Passed through the gate alone.
pub(crate) struct AloneAccess {
    /// Lets go when dropped.
    pub(crate) gate: ExclusiveGate,
    /// The database's record, current until its holder changes it.
    pub(crate) database: DatabaseRecord,
}

impl EmbeddedDatabase {
    /// Directory of the database.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A fresh fencing number, greater than every earlier one of this database.
    ///
    /// # Errors
    /// [`Kind::Held`] when another process keeps the catalog locked.
    pub fn allocate_txn(&self) -> Result<Txn> {
        let mut txn = self.write_catalog()?;
        let allocated = self.catalog.allocate_txn(&mut txn)?;
        txn.commit()?;
        Ok(allocated)
    }

    /// `embedded:` and the identity that was drawn when the database was made.
    pub(crate) fn identity_text(&self) -> String {
        format!("embedded:{}", self.identity)
    }

    /// The catalog's environment, which holds the records of operations as well.
    pub(crate) fn catalog_environment(&self) -> &Arc<Environment> {
        self.catalog.environment()
    }

    /// The database's own records.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Clock, chance and rest.
    pub(crate) fn env(&self) -> &dyn Env {
        &*self.env
    }

    /// How long to wait for locks.
    pub(crate) fn lock_wait(&self) -> Duration {
        self.options.lock_wait
    }

    /// Where files may lie that nobody misses; emptied when opened of `garbage-*`, and of
    /// `load-*` whose process died.
    pub fn scratch_dir(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Where lock files lie.
    pub(crate) fn locks_dir(&self) -> PathBuf {
        self.dir.join("locks")
    }

    /// Begins to change records of the catalog.
    pub(crate) fn write_catalog(&self) -> Result<WriteTxn<'_>> {
        self.catalog.write(self.env(), self.lock_wait())
    }

    /// Begins to change a shard.
    pub(crate) fn write_shard<'s>(&self, shard: &'s Shard) -> Result<WriteTxn<'s>> {
        shard.write(self.env(), self.lock_wait())
    }

    /// Opens a shard that was made.
    pub(crate) fn open_shard(&self, generation: GenerationNumber) -> Result<Arc<Shard>> {
        self.shards.open(generation, self.shard_options()?, self.env())
    }

    /// Opens a shard, and makes it empty if it is not there: for its first writer only.
    pub(crate) fn create_shard(&self, generation: GenerationNumber) -> Result<Arc<Shard>> {
        self.shards.create(generation, self.shard_options()?, self.env())
    }

    /// Opens a shard, and makes it as a copy of `base` if it is not there.
    pub(crate) fn create_shard_copy(
        &self,
        generation: GenerationNumber,
        base: &Shard,
    ) -> Result<Arc<Shard>> {
        self.shards.create_copy(generation, base, self.shard_options()?, self.env())
    }

    /// Records of the operations that restore into this database.
    fn target_records(&self) -> &TargetRecords {
        &self.target_records
    }

    fn shard_options(&self) -> Result<ShardOptions> {
        let count = self.catalog.generation_count(&*self.catalog.read()?)?;
        let share = ADDRESS_SPACE_BYTES / count.max(1);
        Ok(ShardOptions {
            map_bytes: self.options.shard_map_bytes.min(share),
            lock_wait: self.options.lock_wait,
        })
    }

    /// Passes the gate beside others, after completing a batch that somebody left half applied.
    ///
    /// # Errors
    /// [`Kind::Held`], naming the process that is inside alone or applies the batch.
    pub(crate) fn pass_shared(&self) -> Result<Access> {
        let gate = gate::pass_shared(&self.locks_dir(), self.env(), self.lock_wait())?;
        let database = self.complete_redo()?;
        Ok(Access { _gate: gate, database })
    }

    /// Passes the gate alone, after completing a batch that somebody left half applied.
    ///
    /// # Errors
    /// [`Kind::Held`], naming the processes that are inside.
    pub(crate) fn pass_alone(&self) -> Result<AloneAccess> {
        let gate = gate::pass_alone(&self.locks_dir(), self.env(), self.lock_wait())
            .map_err(|error| error.context("wait until nobody writes"))?;
        let database = self.complete_redo()?;
        Ok(AloneAccess { gate, database })
    }

    /// The visible table of that name. `database` comes from an access that is still held.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub(crate) fn resolve(
        &self,
        database: &DatabaseRecord,
        name: &TableName,
    ) -> Result<Arc<TableHandle>> {
        let mut cache = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.version != database.tables_version {
            *cache = TableCache { version: database.tables_version, ..TableCache::default() };
        }
        if let Some(handle) = cache.by_name.get(name) {
            return Ok(Arc::clone(handle));
        }
        let record = self.catalog.table(&*self.catalog.read()?, name)?;
        let Some(record) = record.as_ref().filter(|record| record.is_visible()) else {
            return Err(self.no_table(name, record.as_ref()));
        };
        let record = record.clone();
        let handle = Arc::new(TableHandle::new(name.clone(), record));
        cache.by_name.insert(name.clone(), Arc::clone(&handle));
        Ok(handle)
    }

    /// The error for a name that stands for no visible table; `found` is a held copy.
    fn no_table(&self, name: &TableName, found: Option<&TableRecord>) -> Error {
        let mut message = format!("there is no table `{name}` in `{}`", self.dir.display());
        if found.is_some() {
            message.push_str(&format!(", only {}", table::told_of_held(name)));
        }
        Error::new(Kind::NotFound, message)
    }

    /// All visible tables, by name.
    pub(crate) fn visible_tables(&self) -> Result<Vec<Arc<TableHandle>>> {
        let tables = self.catalog.tables(&*self.catalog.read()?)?;
        let visible = tables.into_iter().filter(|(_, record)| record.is_visible());
        Ok(visible.map(|(name, record)| Arc::new(TableHandle::new(name, record))).collect())
    }
}

impl fmt::Debug for EmbeddedDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedDatabase")
            .field("dir", &self.dir)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
