//! The sorted runs of a process: each is checked once, and made again when it is lost.
//!
//! Runs lie in a folder that anybody may empty. A reader that has one open reads on; the
//! next one that asks finds it gone, and makes it anew from the chain.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::collection::run::{SortedRun, open_run};
use crate::error::{Error, Result};

/// What this process knows of each run, by its path.
#[derive(Debug, Default)]
pub(super) struct Runs {
    known: Mutex<HashMap<PathBuf, Arc<Mutex<Option<SortedRun>>>>>,
}

impl Runs {
    /// The run at `path`, which `make` makes if it is not there or not intact.
    ///
    /// Its bytes are compared with their hash the first time only. Others who ask for the same
    /// run wait meanwhile; `make` may ask for older ones.
    ///
    /// # Errors
    /// Those of `make`, and the kinds of [`Error::io`] when the files cannot be read.
    pub(super) fn open(
        &self,
        path: &Path,
        make: impl FnOnce() -> Result<SortedRun>,
    ) -> Result<SortedRun> {
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(path.to_owned()).or_default())
        };
        let mut checked = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = checked.as_ref()
            && is_there(path, run)?
        {
            return Ok(run.clone());
        }
        let run = match open_run(path)? {
            Some(run) => run,
            None => {
                tracing::info!(run = %path.display(), "a sorted run is gone; it is made again");
                make()?
            }
        };
        *checked = Some(run.clone());
        Ok(run)
    }
}

/// Whether the file of a checked run is there; runs are replaced whole, never changed.
fn is_there(path: &Path, run: &SortedRun) -> Result<bool> {
    let Some(part) = &run.part else { return Ok(true) };
    match fs::metadata(path) {
        Ok(file) => Ok(file.len() == part.bytes),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(Error::io(format!("open the sorted run {}", path.display()), cause)),
    }
}
