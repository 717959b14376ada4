//! Copying a whole environment.

use std::fs;
use std::path::Path;

use heed::CompactionOption;

use super::{DATA_FILE, Environment, LmdbContext, sync_directory};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::failpoint;

/// Ends the name of a copy that is being written.
const COPYING_SUFFIX: &str = ".copying";

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
        let unfinished = dir.join(format!("{DATA_FILE}.{:032x}{COPYING_SUFFIX}", env.random_id()));
        let doing = || format!("copy `{}` to `{}`", self.dir.display(), dir.display());
        // Compacting goes through an ordinary view; a plain copy would hold LMDB's writer
        // mutex, which cannot be waited for with a limit.
        failpoint::hit_io("lmdb.copy").map_err(|cause| Error::io(doing(), cause))?;
        let copied =
            self.inner.copy_to_path(&unfinished, CompactionOption::Enabled).during(doing)?;
        copied.sync_all().map_err(|cause| Error::io(doing(), cause))?;
        // A link is refused when the name is taken, where a rename would put an empty start
        // over a copy that somebody already writes to.
        failpoint::hit("lmdb.before_copy_link");
        match fs::hard_link(&unfinished, &file) {
            Err(_) if file.exists() => {}
            linked => linked.map_err(|cause| Error::io(doing(), cause))?,
        }
        failpoint::hit("lmdb.after_copy_link");
        remove_unfinished(dir)?;
        sync_directory(dir)
    }
}

fn remove_unfinished(dir: &Path) -> Result<()> {
    let looking = |cause| Error::io(format!("look into `{}`", dir.display()), cause);
    for entry in fs::read_dir(dir).map_err(looking)? {
        let entry = entry.map_err(looking)?;
        if entry.file_name().to_string_lossy().ends_with(COPYING_SUFFIX) {
            match fs::remove_file(entry.path()) {
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|cause| {
                    Error::io(format!("remove `{}`", entry.path().display()), cause)
                })?,
            }
        }
    }
    Ok(())
}
