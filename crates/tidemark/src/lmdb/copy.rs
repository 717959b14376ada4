//! Environments that are there whole or not at all: empty ones, and copies.
//!
//! LMDB begins a file by writing it in place, without a sync. A power loss then leaves a part
//! of it, or zeros, which LMDB takes for a damaged file ever after. So a file gets its name
//! only when it is whole and durable.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use heed::CompactionOption;

use super::{DATA_FILE, Environment, EnvironmentOptions, LmdbContext, open_heed, sync_directory};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::failpoint;

/// Ends the name of what is being written.
const UNFINISHED_SUFFIX: &str = ".unfinished";

/// Makes an empty environment in `dir`, which exists, unless one is there.
///
/// A crash leaves a directory that the next call for `dir` removes. Several callers at once
/// make one environment.
///
/// # Errors
/// [`Kind::Blocked`](crate::Kind::Blocked) when nothing can be written.
pub(super) fn make_empty(dir: &Path, options: EnvironmentOptions, env: &dyn Env) -> Result<()> {
    let file = dir.join(DATA_FILE);
    if !file.exists() {
        let doing = || format!("create `{}`", file.display());
        let unfinished = unfinished_path(dir, env);
        let made = make_synced(&unfinished, options).during(doing);
        match made
            .and_then(|made| give_name(&made, &file).map_err(|cause| Error::io(doing(), cause)))
        {
            // Another is faster, and has removed what was not finished.
            Err(_) if file.exists() => {}
            named => named?,
        }
    }
    remove_unfinished(dir)?;
    // Whoever made it may have died before its name was durable.
    sync_directory(dir)
}

/// Makes an environment in a new directory `dir`, and gives its file, durable.
fn make_synced(dir: &Path, options: EnvironmentOptions) -> heed::Result<PathBuf> {
    fs::create_dir(dir)?;
    // Its one reader's file stays behind.
    let options = EnvironmentOptions { readers_max: 1, ..options };
    open_heed(dir, options)?.prepare_for_closing().wait();
    let file = dir.join(DATA_FILE);
    File::open(&file)?.sync_all()?;
    Ok(file)
}

impl Environment {
    /// Copies the last commit into `dir`, which exists, unless an environment is there.
    ///
    /// Reads one view and blocks nobody. The copy gets its name only when it is whole and
    /// durable; a crash leaves a file that the next call for `dir` removes. Several callers
    /// at once make one copy.
    ///
    /// # Errors
    /// [`Kind::Blocked`](crate::Kind::Blocked) for a full disk; nothing is left then.
    pub(crate) fn copy_into(&self, dir: &Path, env: &dyn Env) -> Result<()> {
        let file = dir.join(DATA_FILE);
        if file.exists() {
            // Whoever made it may have died before its name was durable.
            return sync_directory(dir);
        }
        remove_unfinished(dir)?;
        let unfinished = unfinished_path(dir, env);
        let doing = || format!("copy `{}` to `{}`", self.dir.display(), dir.display());
        // Compacting goes through an ordinary view; a plain copy would hold LMDB's writer
        // mutex, which cannot be waited for with a limit.
        failpoint::hit_io("lmdb.copy").map_err(|cause| Error::io(doing(), cause))?;
        let copied =
            self.inner.copy_to_path(&unfinished, CompactionOption::Enabled).during(doing)?;
        copied.sync_all().map_err(|cause| Error::io(doing(), cause))?;
        failpoint::hit("lmdb.before_copy_link");
        give_name(&unfinished, &file).map_err(|cause| Error::io(doing(), cause))?;
        failpoint::hit("lmdb.after_copy_link");
        remove_unfinished(dir)?;
        sync_directory(dir)
    }
}

fn unfinished_path(dir: &Path, env: &dyn Env) -> PathBuf {
    dir.join(format!("{DATA_FILE}.{:032x}{UNFINISHED_SUFFIX}", env.random_id()))
}

/// Makes a finished file known as `file`, unless another is.
///
/// A link is refused when the name is taken, where a rename would put an empty start over
/// what somebody already writes to.
fn give_name(finished: &Path, file: &Path) -> io::Result<()> {
    match fs::hard_link(finished, file) {
        Err(_) if file.exists() => Ok(()),
        linked => linked,
    }
}

fn remove_unfinished(dir: &Path) -> Result<()> {
    let looking = |cause| Error::io(format!("look into `{}`", dir.display()), cause);
    for entry in fs::read_dir(dir).map_err(looking)? {
        let entry = entry.map_err(looking)?;
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED_SUFFIX) {
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
            match removed {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                // Its maker is at work in it still, or removes it as well: whatever stays goes
                // with that one's own removal, or with the next call.
                Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => removed.map_err(|cause| {
                    Error::io(format!("remove `{}`", entry.path().display()), cause)
                })?,
            }
        }
    }
    Ok(())
}
