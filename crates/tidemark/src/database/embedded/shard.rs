//! One shard: an LMDB environment with its rows, its change log and what it knows of itself.
//!
//! | named database | key | value |
//! |---|---|---|
//! | `rows` | canonical key | payload, as [`row::payload`](crate::row::payload) writes it |
//! | `changes` | canonical key | `u64` little-endian: the first cut that sees the key's last change |
//! | `meta` | `shard`, `mark` | [`ShardMeta`]; the [`Mark`] of the operation that fills it |
//!
//! All three change in one transaction. Beside the environment lies the lock file
//! `in-use`: whoever has the shard open holds it shared, so that nobody removes
//! the directory below.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heed::{RoTxn, RwTxn, WithoutTls};

use super::record::{GenerationNumber, ShardMeta};
use crate::database::Mark;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::lmdb::{
    Environment, EnvironmentOptions, FileLock, LmdbContext, LockMode, NamedDatabase, ReadTxn,
    WriteTxn, make_directory,
};

const IN_USE_FILE: &str = "in-use";
const META_KEY: &[u8] = b"shard";
const MARK_KEY: &[u8] = b"mark";
const DATABASES: [&str; 3] = ["rows", "changes", "meta"];

/// How shards are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardOptions {
    /// See [`EnvironmentOptions::map_bytes`].
    pub(crate) map_bytes: u64,
    /// How long to wait for locks.
    pub(crate) lock_wait: Duration,
}

/// An open shard. As long as it is open, its generation is not removed.
pub(crate) struct Shard {
    generation: GenerationNumber,
    rows: NamedDatabase,
    changes: NamedDatabase,
    meta: NamedDatabase,
    // Declared before the lock, so that it closes before the directory may go.
    environment: Arc<Environment>,
    _in_use: FileLock,
}

impl Shard {
    /// Makes the shard's directory and environment, empty; keeps what is there already.
    ///
    /// A crash leaves a directory that the next call completes.
    pub(crate) fn create(
        shards: &Path,
        generation: GenerationNumber,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Shard> {
        let dir = directory(shards, generation);
        make_directory(&dir)?;
        let in_use = lock_in_use(&dir, options, env)?;
        let environment = Environment::create(&dir, environment_options(options), env)?;
        let [rows, changes, meta] =
            environment.create_databases(DATABASES, env, options.lock_wait)?;
        let shard = Shard { generation, rows, changes, meta, environment, _in_use: in_use };
        shard.put_first_meta(env, options.lock_wait)?;
        Ok(shard)
    }

    fn put_first_meta(&self, env: &dyn Env, wait: Duration) -> Result<()> {
        let mut txn = self.write(env, wait)?;
        if self.meta.get(&txn, META_KEY).during(|| self.doing("read"))?.is_some() {
            return Ok(());
        }
        self.put_meta(&mut txn, &ShardMeta::default())?;
        txn.commit()
    }

    /// Makes the shard as a copy of the last commit of `base`; keeps what is there already.
    ///
    /// A crash leaves a directory that the next call completes.
    pub(crate) fn create_copy(
        shards: &Path,
        generation: GenerationNumber,
        base: &Shard,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Shard> {
        let dir = directory(shards, generation);
        make_directory(&dir)?;
        // Held until the copy is open, so that nobody takes the directory for garbage.
        let _in_use = lock_in_use(&dir, options, env)?;
        base.environment.copy_into(&dir, env)?;
        Shard::open(shards, generation, options, env)
    }

    /// Opens a shard that was made.
    ///
    /// # Errors
    /// [`Kind::Broken`] when it is not there: something else removed it.
    pub(crate) fn open(
        shards: &Path,
        generation: GenerationNumber,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Shard> {
        let dir = directory(shards, generation);
        let missing = |error: Error| match error.kind() {
            Kind::NotFound => {
                let message = format!(
                    "open shard generation {generation}: `{}` is missing or incomplete, the \
                     catalog names it; restore the database from a backup",
                    dir.display()
                );
                Error::with_source(Kind::Broken, message, error)
            }
            _ => error,
        };
        let in_use = lock_in_use(&dir, options, env).map_err(missing)?;
        let environment =
            Environment::open(&dir, environment_options(options), env).map_err(missing)?;
        let databases = environment.open_databases(DATABASES)?;
        let [rows, changes, meta] = databases.ok_or_else(|| {
            missing(Error::new(Kind::NotFound, "its databases were never completed"))
        })?;
        Ok(Shard { generation, rows, changes, meta, environment, _in_use: in_use })
    }

    /// Its generation.
    pub(crate) fn generation(&self) -> GenerationNumber {
        self.generation
    }

    /// Keys to payloads.
    pub(crate) fn rows(&self) -> NamedDatabase {
        self.rows
    }

    /// Keys to the first cut that sees their last change.
    pub(crate) fn changes(&self) -> NamedDatabase {
        self.changes
    }

    /// A view of the last commit.
    pub(crate) fn read(&self) -> Result<RoTxn<'_, WithoutTls>> {
        self.environment.read()
    }

    /// The same, to be kept and shared.
    pub(crate) fn view(self: &Arc<Self>) -> Result<ShardView> {
        let txn = Mutex::new(self.environment.read_owned()?);
        Ok(ShardView { txn, shard: Arc::clone(self) })
    }

    /// Begins to write; see [`Environment::write`].
    pub(crate) fn write(&self, env: &dyn Env, wait: Duration) -> Result<WriteTxn<'_>> {
        self.environment.write(env, wait)
    }

    /// What the shard knows of itself.
    pub(crate) fn meta(&self, txn: &RoTxn<'_>) -> Result<ShardMeta> {
        let stored = self.meta.get(txn, META_KEY).during(|| self.doing("read"))?;
        let stored = stored.ok_or_else(|| {
            let message = format!("shard generation {} has no record of itself", self.generation);
            Error::new(Kind::Broken, message)
        })?;
        ShardMeta::decode(stored)
            .map_err(|error| error.context(format!("shard generation {}", self.generation)))
    }

    /// Stores what the shard knows of itself.
    pub(crate) fn put_meta(&self, txn: &mut RwTxn<'_>, meta: &ShardMeta) -> Result<()> {
        self.meta.put(txn, META_KEY, &meta.encode()).during(|| self.doing("write"))
    }

    /// The mark of the operation that fills the shard; `None` before its first chunk.
    pub(crate) fn mark(&self, txn: &RoTxn<'_>) -> Result<Option<Mark>> {
        let stored = self.meta.get(txn, MARK_KEY).during(|| self.doing("read"))?;
        stored
            .map(Mark::decode)
            .transpose()
            .map_err(|error| error.context(format!("shard generation {}", self.generation)))
    }

    /// Stores the mark; `None` removes it.
    pub(crate) fn put_mark(&self, txn: &mut RwTxn<'_>, mark: Option<&Mark>) -> Result<()> {
        match mark {
            Some(mark) => {
                let mut stored = Vec::new();
                mark.encode(&mut stored);
                self.meta.put(txn, MARK_KEY, &stored).during(|| self.doing("write"))
            }
            None => self.meta.delete(txn, MARK_KEY).during(|| self.doing("write")).map(|_| ()),
        }
    }

    /// Frees the reader slots of dead processes.
    pub(crate) fn clear_stale_readers(&self) -> Result<()> {
        self.environment.clear_stale_readers()
    }

    /// For errors: "write shard generation 7".
    pub(crate) fn doing(&self, verb: &str) -> String {
        format!("{verb} shard generation {}", self.generation)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shard({})", self.generation)
    }
}

/// A shard as one commit left it.
pub(crate) struct ShardView {
    // Declared before the shard, whose lock must outlive it.
    txn: Mutex<ReadTxn>,
    shard: Arc<Shard>,
}

impl ShardView {
    /// The shard.
    pub(crate) fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// The transaction; one thread at a time reads through it.
    pub(crate) fn txn(&self) -> MutexGuard<'_, ReadTxn> {
        // A reader that panicked changed nothing.
        self.txn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the shard knew of itself then.
    pub(crate) fn meta(&self) -> Result<ShardMeta> {
        self.shard.meta(&self.txn())
    }
}

impl fmt::Debug for ShardView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardView({})", self.shard.generation)
    }
}

/// Where a generation lies.
pub(super) fn directory(shards: &Path, generation: GenerationNumber) -> PathBuf {
    shards.join(generation.to_string())
}

/// The lock that keeps a generation's directory; held shared by whoever has it open.
pub(super) fn in_use_path(dir: &Path) -> PathBuf {
    dir.join(IN_USE_FILE)
}

fn lock_in_use(dir: &Path, options: ShardOptions, env: &dyn Env) -> Result<FileLock> {
    FileLock::acquire(&in_use_path(dir), LockMode::Shared, env, options.lock_wait)
}

fn environment_options(options: ShardOptions) -> EnvironmentOptions {
    EnvironmentOptions {
        map_bytes: options.map_bytes,
        databases_max: DATABASES.len() as u32,
        ..EnvironmentOptions::default()
    }
}
