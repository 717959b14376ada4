//! Making and opening databases, and refusing what is none.
//!
//! The marker file is written first and read first. What it does not vouch for is
//! not touched; what it vouches for and is not complete yet is completed.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::cache::ShardCache;
use super::catalog::Catalog;
use super::record::{self, DatabaseRecord, MarkerRecord};
use super::target::TargetRecords;
use super::{EmbeddedDatabase, EmbeddedOptions};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::lmdb::{Environment, EnvironmentOptions, make_directory, sync_directory};

/// Address space reserved for the catalog.
const CATALOG_MAP_BYTES: u64 = 64 << 30;

/// Named databases in the catalog: ours, and room for those of operations.
const CATALOG_DATABASES_MAX: u32 = 64;

impl EmbeddedDatabase {
    /// Makes a database in `dir`, which must not exist or be empty.
    ///
    /// A crash leaves a directory that creating or opening it again completes.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when something is there; [`Kind::Blocked`] when nothing can be
    /// written; [`Kind::Unsupported`] on a network file system.
    pub fn create(dir: &Path, env: Arc<dyn Env>, options: EmbeddedOptions) -> Result<Self> {
        let exists = || {
            let message = format!(
                "create a database in `{}`: something is there already; name an empty directory",
                dir.display()
            );
            Error::new(Kind::InTheWay, message)
        };
        if !dir.join(MarkerRecord::FILE).exists() {
            if !is_empty_or_missing(dir)? {
                return Err(exists());
            }
            write_marker(dir, &*env)?;
        }
        check_marker(dir)?;
        match Self::start(dir, env, options)? {
            (database, Started::Created) => Ok(database),
            (_, Started::Found) => Err(exists()),
        }
    }

    /// Opens the database in `dir`, and completes what a crash left half done.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is nothing; [`Kind::Unsupported`] when what is there is
    /// not ours or of a newer format; nothing is touched then. [`Kind::Broken`] when parts are
    /// missing; [`Kind::Blocked`] when it cannot be written; [`Kind::Held`] when another process
    /// keeps a lock for longer than [`EmbeddedOptions::lock_wait`].
    pub fn open(dir: &Path, env: Arc<dyn Env>, options: EmbeddedOptions) -> Result<Self> {
        check_marker(dir)?;
        Ok(Self::start(dir, env, options)?.0)
    }

    /// Opens the database in `dir`, or makes it there.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`create`](Self::create).
    pub fn open_or_create(dir: &Path, env: Arc<dyn Env>, options: EmbeddedOptions) -> Result<Self> {
        if !dir.join(MarkerRecord::FILE).exists() && is_empty_or_missing(dir)? {
            write_marker(dir, &*env)?;
        }
        Self::open(dir, env, options)
    }

    fn start(
        dir: &Path,
        env: Arc<dyn Env>,
        options: EmbeddedOptions,
    ) -> Result<(EmbeddedDatabase, Started)> {
        let catalog_dir = dir.join("catalog");
        let shards_dir = dir.join("shards");
        if !catalog_dir.exists() && !is_empty_or_missing(&shards_dir)? {
            let message = format!(
                "open `{}`: the catalog is missing, there are only shards; restore the database \
                 from a backup",
                dir.display()
            );
            return Err(Error::new(Kind::Broken, message));
        }
        // The marker before what only it vouches for: whoever wrote it may have died before.
        sync_directory(dir)?;
        for part in [&shards_dir, &dir.join("locks"), &dir.join("scratch")] {
            fs::create_dir_all(part)
                .map_err(|cause| Error::io(format!("create `{}`", part.display()), cause))?;
        }
        let environment_options = EnvironmentOptions {
            map_bytes: CATALOG_MAP_BYTES,
            databases_max: CATALOG_DATABASES_MAX,
            ..EnvironmentOptions::default()
        };
        let environment = Environment::create(&catalog_dir, environment_options, &*env)?;
        let target_records = TargetRecords::open(&environment, &*env, options.lock_wait)?;
        let catalog = Catalog::open(environment, &*env, options.lock_wait)?;
        let (record, started) = find_or_create_record(&catalog, &*env, options.lock_wait)?;
        let database = EmbeddedDatabase {
            dir: dir.to_owned(),
            shards: ShardCache::new(shards_dir, options.open_shards_max),
            env,
            options,
            identity: record.identity,
            catalog,
            target_records,
            tables: Mutex::default(),
        };
        database.recover()?;
        database.keep_ballast();
        Ok((database, started))
    }

    /// Completes a recorded batch and removes what nobody names any more.
    fn recover(&self) -> Result<()> {
        let pending = self.catalog.has_redo(&*self.catalog.read()?)?;
        if pending {
            drop(self.pass_shared()?);
        }
        self.tidy();
        Ok(())
    }
}

/// Whether the database was there.
enum Started {
    Found,
    Created,
}

fn find_or_create_record(
    catalog: &Catalog,
    env: &dyn Env,
    wait: Duration,
) -> Result<(DatabaseRecord, Started)> {
    let found = catalog.find_database(&*catalog.read()?)?;
    if let Some(record) = found {
        return Ok((record, Started::Found));
    }
    let mut txn = catalog.write(env, wait)?;
    if let Some(record) = catalog.find_database(&txn)? {
        return Ok((record, Started::Found));
    }
    let record = DatabaseRecord::new(env.random_id());
    catalog.put_database(&mut txn, &record)?;
    txn.commit()?;
    Ok((record, Started::Created))
}

/// How the name of a marker begins before it gets its own. A random rest follows: two
/// processes may write one at once, and each renames its own, whole.
pub(super) const MARKER_STARTED: &str = ".tidemark-database.json.new";

/// Whether nothing is in `dir` but a marker that was never finished.
fn is_empty_or_missing(dir: &Path) -> Result<bool> {
    let looking = |cause| Error::io(format!("look into `{}`", dir.display()), cause);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(cause) => return Err(looking(cause)),
    };
    for entry in entries {
        let name = entry.map_err(looking)?.file_name();
        if !name.to_string_lossy().starts_with(MARKER_STARTED) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the marker whole or not at all.
pub(super) fn write_marker(dir: &Path, env: &dyn Env) -> Result<()> {
    make_directory(dir)?;
    let write = || -> std::io::Result<()> {
        let started = dir.join(format!("{MARKER_STARTED}-{:016x}", env.random()));
        let mut file = fs::File::create_new(&started)?;
        file.write_all(&record::encode(&MarkerRecord { kind: MarkerRecord::KIND.to_owned() }))?;
        file.sync_all()?;
        failpoint::hit("database.before_marker");
        fs::rename(&started, dir.join(MarkerRecord::FILE))?;
        failpoint::hit("database.after_marker");
        Ok(())
    };
    write()
        .map_err(|cause| Error::io(format!("create a database in `{}`", dir.display()), cause))?;
    sync_directory(dir)
}

/// Refuses a directory that is not ours, without touching it.
fn check_marker(dir: &Path) -> Result<()> {
    let path = dir.join(MarkerRecord::FILE);
    let stored = match fs::read(&path) {
        Ok(stored) => stored,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            let (kind, found) = if is_empty_or_missing(dir)? {
                (Kind::NotFound, "there is none")
            } else {
                (Kind::Unsupported, "what is there was not made by tidemark")
            };
            let message = format!("open the database in `{}`: {found}", dir.display());
            return Err(Error::new(kind, message));
        }
        Err(cause) => return Err(Error::io(format!("read `{}`", path.display()), cause)),
    };
    let opening = |error: Error| error.context(format!("open the database in `{}`", dir.display()));
    let marker: MarkerRecord = record::decode(&stored).map_err(opening)?;
    if marker.kind != MarkerRecord::KIND {
        let message = format!("`{}` says it is a {:?}", path.display(), marker.kind);
        return Err(opening(Error::new(Kind::Unsupported, message)));
    }
    Ok(())
}
