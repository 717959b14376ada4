//! Room that is kept for the day on which the disk is full.
//!
//! What an operation made can only be removed by writing that it is removed, and on a full disk
//! nothing is written. So a file keeps some room, which is given back when something is undone;
//! undoing then frees more, and the file is made again when the database is opened next.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::EmbeddedDatabase;
use crate::error::{Error, Result};

/// Name of the file; no byte of it means anything.
const BALLAST_FILE: &str = "ballast";

/// What undoing the greatest operation writes into the catalog, 4,096 shards of which nothing
/// stays: a few hundred pages.
const BALLAST_BYTES: u64 = 1 << 20;

/// Room beside the ballast without which it is not made: rows have more use for so little.
const ROOM_BESIDE_BYTES: u64 = 8 << 20;

impl EmbeddedDatabase {
    /// Makes the ballast unless it is there, or there is little room, or the disk cannot.
    pub(super) fn keep_ballast(&self) {
        if let Err(cause) = make(self.dir()) {
            tracing::debug!(database = %self.dir().display(), %cause, "no room is kept");
        }
    }

    /// Gives the ballast back if there is less room than it is for.
    ///
    /// # Errors
    /// The kinds of [`Error::io`].
    pub(super) fn give_ballast_back(&self) -> Result<()> {
        let path = self.dir().join(BALLAST_FILE);
        let doing =
            |cause| Error::io(format!("give room back: remove `{}`", path.display()), cause);
        if free_bytes(self.dir()).map_err(doing)? >= BALLAST_BYTES {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(doing(cause)),
            _ => Ok(()),
        }
    }
}

fn make(dir: &Path) -> io::Result<()> {
    let path = dir.join(BALLAST_FILE);
    let is_there = fs::metadata(&path).is_ok_and(|found| found.len() == BALLAST_BYTES);
    if is_there || free_bytes(dir)? < ROOM_BESIDE_BYTES {
        return Ok(());
    }
    let file = File::options().write(true).create(true).truncate(false).open(&path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES) {
        Ok(()) => Ok(()),
        Err(cause) => {
            // A part of it would be taken for nothing.
            fs::remove_file(&path)?;
            Err(cause.into())
        }
    }
}

/// Room for those who are not root.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
