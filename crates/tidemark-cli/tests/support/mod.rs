//! What tests of the real binary share: start it, kill it, wait for it with a
//! deadline, read what it printed.
//!
//! [`Tidemark`] says how to start the command; [`Running`] is one process of it;
//! [`Outcome`] is how it ended. No test leaves a process behind: one that is
//! still running when its [`Running`] goes is killed.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary compiles its own copy and uses a part of it"
)]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) mod chain;
pub(crate) mod deadline;
pub(crate) mod disk;
pub(crate) mod process;
pub(crate) mod small_disk;
pub(crate) mod trace;

pub(crate) use process::{Gate, Outcome, Running, Tidemark};

/// A fresh folder on the file system of the build, where fsync and locks are real.
///
/// The system's folder for temporary files may be held in memory.
pub(crate) fn temp_folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("tidemark-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a folder under the target folder")
}

/// The files of a folder of `examples/data`, sorted by name, which is oldest first.
pub(crate) fn revisions(folder: &str) -> Vec<PathBuf> {
    let package = at_run_time("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    let folder = package.join("../../examples/data").join(folder);
    let entries = std::fs::read_dir(&folder)
        .unwrap_or_else(|cause| panic!("read the folder {}: {cause}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    files.sort();
    files
}

/// A path that cargo tells while it runs a test, else the one that it told while it compiled it.
///
/// They differ where a checkout was moved or copied together with its target folder; cargo
/// then takes the compiled test for current, and its paths are those of the other checkout.
pub(crate) fn at_run_time(variable: &str, compiled: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(compiled), PathBuf::from)
}

/// The lines of a log that processes append to; none if no process has begun it.
///
/// A last line without its end is left out: its writer was killed inside the write.
pub(crate) fn log_lines(path: &Path) -> Vec<String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(cause) => panic!("read the log {}: {cause}", path.display()),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole.lines().map(str::to_owned).collect()
}

/// What a database consists of besides its catalog and its locks.
pub(crate) fn files(database: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for part in ["shards", "scratch"] {
        let mut open = vec![database.join(part)];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                files.insert(path);
            }
        }
    }
    files
}
