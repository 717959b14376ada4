//! A load's scratch directory, gone with its process.
//!
//! `scratch/load-<16 hex digits>` belongs to whoever holds the lock on the file of
//! the same name with `.lock` behind it. The lock is taken before the directory is
//! made, so a directory without a holder is a dead one's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::database::embedded::EmbeddedDatabase;
use crate::error::{Error, Kind, Result};
use crate::lmdb::{FileLock, LockMode};

const PREFIX: &str = "load-";

/// A directory that is removed when this is dropped, or after its process died.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
    // Let go after the directory is gone.
    _lock: FileLock,
}

impl Scratch {
    /// Makes a directory nobody else uses.
    pub(super) fn create(database: &EmbeddedDatabase) -> Result<Scratch> {
        let name = format!("{PREFIX}{:016x}", database.env().random());
        let dir = database.scratch_dir().join(name);
        let lock = FileLock::try_acquire(&lock_path(&dir), LockMode::Exclusive)?;
        let lock = lock.ok_or_else(|| {
            let message = format!("`{}` is in use; try again", dir.display());
            Error::new(Kind::Transient, message)
        })?;
        fs::create_dir(&dir)
            .map_err(|cause| Error::io(format!("create `{}`", dir.display()), cause))?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the database is opened next.
        let _ = remove(&self.dir);
    }
}

/// Removes the scratch directories of loads whose process died.
pub(in super::super) fn remove_dead_scratch(scratch: &Path) -> Result<()> {
    let looking = |cause| Error::io(format!("look into `{}`", scratch.display()), cause);
    for entry in fs::read_dir(scratch).map_err(looking)? {
        let entry = entry.map_err(looking)?;
        let is_load = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_load || !entry.file_type().map_err(looking)?.is_dir() {
            continue;
        }
        let dir = entry.path();
        if let Some(_dead) = FileLock::try_acquire(&lock_path(&dir), LockMode::Exclusive)? {
            remove(&dir)
                .map_err(|cause| Error::io(format!("remove `{}`", dir.display()), cause))?;
        }
    }
    Ok(())
}

/// Removes directory and lock file; whoever is faster at the same work is no error.
fn remove(dir: &Path) -> std::io::Result<()> {
    let gone = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(cause),
    };
    fs::remove_dir_all(dir).or_else(gone)?;
    fs::remove_file(lock_path(dir)).or_else(gone)
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}
