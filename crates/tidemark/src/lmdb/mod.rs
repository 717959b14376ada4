//! The thin layer over LMDB: environments, transactions, locks and errors.
//!
//! [`Environment`] is one LMDB file, open at most once in a process however many
//! ask for it. [`WriteTxn`] is its only way to write: a file lock beside the
//! data is taken *before* LMDB's own mutex, because the file lock can be waited
//! for with a limit, names its holder, and is let go by the kernel when the
//! holder dies; LMDB's mutex would wait for a frozen process for ever.
//! [`LmdbContext`] is the one place where LMDB's errors get their [`Kind`].
//!
//! Order that every writer keeps: file lock, LMDB transaction, commit, file
//! unlock. Input and output that may wait happen before the first.

use std::collections::HashMap;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::failpoint;

mod copy;
mod error;
mod file_system;
mod lock;
mod readers_file;

pub(crate) use error::LmdbContext;
pub(crate) use file_system::{make_directory, sync_directory};
pub(crate) use lock::{FileLock, LockMode};

/// A named database of an [`Environment`]: raw bytes to raw bytes, ordered by `memcmp`.
pub(crate) type NamedDatabase = heed::Database<'static, Bytes, Bytes>;

/// Longest key LMDB stores, in bytes; an empty key is refused as well.
pub(crate) const KEY_BYTES_MAX: usize = 511;

/// LMDB's data file inside an environment's directory.
const DATA_FILE: &str = "data.mdb";

/// The lock that orders writers; LMDB's own `lock.mdb` must not be opened by anybody else
/// in a process that has the environment open, since closing it would drop LMDB's locks.
const WRITE_LOCK_FILE: &str = "write.lock";

/// How long an opener waits for another that is closing the same path, or dying.
const OPEN_WAIT: Duration = Duration::from_secs(2);

/// How an environment is opened; the first opener in a process decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EnvironmentOptions {
    /// Address space to reserve. Costs nothing until rows fill it; a file that already fills
    /// half of it gets twice its own size instead, so that opening again lets it grow.
    pub(crate) map_bytes: u64,
    /// Named databases that can be open.
    pub(crate) databases_max: u32,
    /// Read transactions at a time, over all processes.
    pub(crate) readers_max: u32,
}

impl Default for EnvironmentOptions {
    fn default() -> EnvironmentOptions {
        EnvironmentOptions { map_bytes: 64 << 30, databases_max: 8, readers_max: 1024 }
    }
}

/// One LMDB environment, open once per process.
#[derive(Debug)]
pub(crate) struct Environment {
    inner: heed::Env<WithoutTls>,
    dir: PathBuf,
    databases_max: u32,
}

/// Environments of this process by canonical path: LMDB forbids opening one twice.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Environment>>>> = LazyLock::new(Mutex::default);

impl Environment {
    /// Opens the environment in `dir`, or gives the one this process has open already.
    ///
    /// Clears the reader slots of dead processes.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none; [`Kind::Unsupported`] on a network file system or
    /// for a file of another LMDB; [`Kind::Broken`] for a damaged one; [`Kind::Blocked`] when
    /// the directory cannot be written. Nothing is created.
    pub(crate) fn open(
        dir: &Path,
        options: EnvironmentOptions,
        env: &dyn Env,
    ) -> Result<Arc<Environment>> {
        if !dir.join(DATA_FILE).exists() {
            let message = format!("open `{}`: there is no {DATA_FILE} in it", dir.display());
            return Err(Error::new(Kind::NotFound, message));
        }
        open_registered(dir, options, env)
    }

    /// The same, and makes directory and environment when they are missing.
    ///
    /// Idempotent; on return all is durable. A crash leaves an empty directory or an empty
    /// environment.
    pub(crate) fn create(
        dir: &Path,
        options: EnvironmentOptions,
        env: &dyn Env,
    ) -> Result<Arc<Environment>> {
        make_directory(dir)?;
        file_system::refuse_network(dir)?;
        copy::make_empty(dir, options, env)?;
        open_registered(dir, options, env)
    }

    /// A view of the last commit. Short-lived: pages it can see are not used again.
    ///
    /// # Errors
    /// [`Kind::Transient`] when all reader slots are taken.
    pub(crate) fn read(&self) -> Result<RoTxn<'_, WithoutTls>> {
        self.inner.read_txn().during(|| format!("begin to read `{}`", self.dir.display()))
    }

    /// The same, owning the environment, so that it can be kept and sent to other threads.
    pub(crate) fn read_owned(self: &Arc<Self>) -> Result<ReadTxn> {
        let txn = self.inner.clone().static_read_txn();
        let txn = txn.during(|| format!("begin to read `{}`", self.dir.display()))?;
        Ok(ReadTxn { txn, _environment: Arc::clone(self) })
    }

    /// Begins to write, alone among all threads and processes.
    ///
    /// Nothing that waits belongs between here and [`WriteTxn::commit`]. Dropping the
    /// transaction, or dying, leaves the environment as it was.
    ///
    /// # Errors
    /// [`Kind::Held`] when another holds it for longer than `wait`, naming its process.
    pub(crate) fn write(&self, env: &dyn Env, wait: Duration) -> Result<WriteTxn<'_>> {
        let path = self.dir.join(WRITE_LOCK_FILE);
        let lock = FileLock::acquire(&path, LockMode::Exclusive, env, wait)
            .map_err(|error| error.context(format!("write to `{}`", self.dir.display())))?;
        let txn = self.inner.write_txn();
        let txn = txn.during(|| format!("begin to write `{}`", self.dir.display()))?;
        Ok(WriteTxn { txn, lock, dir: &self.dir, one_thread: std::marker::PhantomData })
    }

    /// The named databases, in the order of `names`; made when they are missing.
    ///
    /// Open them before the transactions that use them: an older transaction does not know them.
    pub(crate) fn create_databases<const N: usize>(
        &self,
        names: [&str; N],
        env: &dyn Env,
        wait: Duration,
    ) -> Result<[NamedDatabase; N]> {
        if let Some(databases) = self.open_databases(names)? {
            return Ok(databases);
        }
        let WriteTxn { txn, lock, .. } = self.write(env, wait)?;
        failpoint::hit("lmdb.before_commit");
        let created = self.inner.create_databases_and_commit(txn, |opener, txn| {
            let mut databases = Vec::with_capacity(N);
            for name in names {
                databases.push(opener.create_database::<Bytes, Bytes>(txn, Some(name))?);
            }
            let databases: [_; N] = databases.try_into().expect("one database per name");
            heed::Result::Ok(CommitOrAbort::<_, ()>::Commit(databases))
        });
        drop(lock);
        failpoint::hit("lmdb.after_commit");
        let created = created.during(|| format!("create databases in `{}`", self.dir.display()))?;
        Ok(created.commit().expect("the closure commits"))
    }

    /// The named databases, or `None` when one is missing.
    pub(crate) fn open_databases<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<Option<[NamedDatabase; N]>> {
        let txn = self.read()?;
        let opened = self.inner.open_databases_and_commit(txn, |opener, txn| {
            let mut databases = Vec::with_capacity(N);
            for name in names {
                match opener.open_database::<Bytes, Bytes>(txn, Some(name))? {
                    Some(database) => databases.push(database),
                    None => return heed::Result::Ok(CommitOrAbort::Abort(())),
                }
            }
            let databases: [_; N] = databases.try_into().expect("one database per name");
            Ok(CommitOrAbort::Commit(databases))
        });
        let opened = opened.during(|| format!("open databases in `{}`", self.dir.display()))?;
        Ok(opened.commit())
    }

    /// Frees the reader slots of dead processes, whose views would keep pages for ever.
    pub(crate) fn clear_stale_readers(&self) -> Result<()> {
        let cleared = self.inner.clear_stale_readers();
        cleared.during(|| format!("clear readers of `{}`", self.dir.display()))?;
        Ok(())
    }
}

/// A view of one commit that owns its environment.
pub(crate) struct ReadTxn {
    // Declared first, so that it ends before the environment can close.
    txn: RoTxn<'static, WithoutTls>,
    _environment: Arc<Environment>,
}

impl Deref for ReadTxn {
    type Target = RoTxn<'static, WithoutTls>;

    fn deref(&self) -> &Self::Target {
        &self.txn
    }
}

/// The only writer of an environment; see [`Environment::write`].
pub(crate) struct WriteTxn<'e> {
    // Declared before the lock, so that LMDB's mutex is free when the next writer comes.
    txn: RwTxn<'e>,
    lock: FileLock,
    dir: &'e Path,
    // LMDB's mutex belongs to the thread that took it.
    one_thread: std::marker::PhantomData<*const ()>,
}

impl WriteTxn<'_> {
    /// Makes everything durable, all of it or nothing.
    ///
    /// # Errors
    /// [`Kind::Blocked`] for a full disk or map; nothing was written then.
    pub(crate) fn commit(self) -> Result<()> {
        let WriteTxn { txn, lock, dir, .. } = self;
        failpoint::hit("lmdb.before_commit");
        // A refused transaction is dropped, as LMDB drops one that it cannot write.
        let writable = failpoint::hit_io("lmdb.commit").map_err(heed::Error::Io);
        let committed = writable.and_then(|()| txn.commit());
        drop(lock);
        failpoint::hit("lmdb.after_commit");
        committed.during(|| format!("commit to `{}`", dir.display()))
    }
}

impl<'e> Deref for WriteTxn<'e> {
    type Target = RwTxn<'e>;

    fn deref(&self) -> &Self::Target {
        &self.txn
    }
}

impl DerefMut for WriteTxn<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.txn
    }
}

fn open_registered(
    dir: &Path,
    options: EnvironmentOptions,
    env: &dyn Env,
) -> Result<Arc<Environment>> {
    let canonical = dir
        .canonicalize()
        .map_err(|cause| Error::io(format!("open `{}`", dir.display()), cause))?;
    file_system::refuse_network(&canonical)?;
    let deadline = env.boot_time().after(OPEN_WAIT);
    loop {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = open.get(&canonical).and_then(Weak::upgrade) {
            return check_fits(environment, options);
        }
        match open_heed(&canonical, options) {
            Ok(inner) => {
                let databases_max = options.databases_max;
                let environment =
                    Arc::new(Environment { inner, dir: canonical.clone(), databases_max });
                open.retain(|_, environment| environment.strong_count() > 0);
                open.insert(canonical, Arc::downgrade(&environment));
                drop(open);
                environment.clear_stale_readers()?;
                return Ok(environment);
            }
            // The last owner is just letting go, or a dying process still has the lock.
            Err(cause) if error::is_busy(&cause) && env.boot_time() < deadline => {
                drop(open);
                env.sleep(Duration::from_millis(5));
            }
            Err(cause) => {
                return Err(cause).during(|| format!("open `{}`", canonical.display()));
            }
        }
    }
}

fn check_fits(
    environment: Arc<Environment>,
    options: EnvironmentOptions,
) -> Result<Arc<Environment>> {
    if environment.databases_max < options.databases_max {
        let message = format!(
            "open `{}`: it is open already with room for {} databases, {} were asked for",
            environment.dir.display(),
            environment.databases_max,
            options.databases_max
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(environment)
}

fn open_heed(dir: &Path, options: EnvironmentOptions) -> heed::Result<heed::Env<WithoutTls>> {
    let file_bytes = fs::metadata(dir.join(DATA_FILE)).map_or(0, |file| file.len());
    let map_bytes = map_bytes(file_bytes, options.map_bytes);
    let mut open = EnvOpenOptions::new().read_txn_without_tls();
    // Only where this process has it closed; where it is about to close it, heed says so below.
    if heed::env_closing_event(dir).is_none() {
        readers_file::allocate(dir, options.readers_max)?;
    }
    open.map_size(usize::try_from(map_bytes).unwrap_or(usize::MAX & !(MAP_UNIT as usize - 1)))
        .max_dbs(options.databases_max)
        .max_readers(options.readers_max);
    // SAFETY: the file is only ever changed through LMDB, `OPEN` keeps it open once per
    // process, and network file systems, on which the map is not coherent, are refused.
    unsafe { open.open(dir) }
}

/// Map sizes are multiples of this: above every page size in use.
const MAP_UNIT: u64 = 1 << 20;

/// Address space to reserve for a file of `file_bytes`.
fn map_bytes(file_bytes: u64, reserved: u64) -> u64 {
    let bytes = if file_bytes > reserved / 2 { file_bytes.saturating_mul(2) } else { reserved };
    bytes.clamp(MAP_UNIT, 1 << 46).next_multiple_of(MAP_UNIT)
}

#[cfg(test)]
mod tests;
