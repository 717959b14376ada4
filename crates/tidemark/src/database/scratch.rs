//! Scratch directories, gone with their process.
//!
//! `load-<16 hex digits>` belongs to whoever holds the lock on the file of the same name with
//! `.lock` behind it. The lock is taken before the directory is made, so a directory without a
//! holder is a dead one's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::lmdb::{FileLock, LockMode};

const PREFIX: &str = "load-";

/// A directory that is removed when this is dropped, or after its process died.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    // Let go after the directory is gone.
    _lock: FileLock,
}

impl Scratch {
    /// Makes a directory nobody else uses in the folder `around`, which exists.
    pub(crate) fn create(around: &Path, env: &dyn Env) -> Result<Scratch> {
        let dir = around.join(format!("{PREFIX}{:016x}", env.random()));
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
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by `remove_dead_scratch`.
        let _ = remove(&self.dir);
    }
}

/// Removes the scratch directories in `around` whose process died.
pub(crate) fn remove_dead_scratch(around: &Path) -> Result<()> {
    let looking = |cause| Error::io(format!("look into `{}`", around.display()), cause);
    for entry in fs::read_dir(around).map_err(looking)? {
        let entry = entry.map_err(looking)?;
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_ours || !entry.file_type().map_err(looking)?.is_dir() {
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
