//! File locks between threads and processes, waited for with a limit.
//!
//! Each acquisition opens the file anew, so that threads of one process exclude
//! one another as well; the kernel lets go when the holder dies. The file holds
//! the process id of its last taker as text, right-aligned in 10 bytes and a
//! line feed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::env::Env;
use crate::error::{Error, Kind, Result};

/// First and longest pause between two tries.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Whether others may hold the lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockMode {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock that is held until this is dropped, or its process dies.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Closing the file lets the lock go.
    _file: File,
}

impl FileLock {
    /// Takes the lock on the file at `path`, which is made when missing.
    ///
    /// # Errors
    /// [`Kind::Held`] when others hold it for longer than `wait`, naming their processes.
    pub(crate) fn acquire(
        path: &Path,
        mode: LockMode,
        env: &dyn Env,
        wait: Duration,
    ) -> Result<FileLock> {
        let file = open(path)?;
        let deadline = env.boot_time().after(wait);
        let mut pause = PAUSE_MIN;
        while !try_lock(&file, path, mode)? {
            if env.boot_time() >= deadline {
                let message = format!(
                    "`{}` is held by {} for longer than {} ms; it goes on when that process ends \
                     or lets go",
                    path.display(),
                    holder(&file),
                    wait.as_millis()
                );
                return Err(Error::new(Kind::Held, message));
            }
            env.sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        sign(&file, path)?;
        Ok(FileLock { _file: file })
    }

    /// Takes the lock if nobody is in the way.
    pub(crate) fn try_acquire(path: &Path, mode: LockMode) -> Result<Option<FileLock>> {
        let file = open(path)?;
        if !try_lock(&file, path, mode)? {
            return Ok(None);
        }
        sign(&file, path)?;
        Ok(Some(FileLock { _file: file }))
    }

    /// Whether somebody holds the lock alone. A look: nothing is made or signed, and those who
    /// look at the same time do not see one another.
    ///
    /// # Errors
    /// The kinds of [`Error::io`]; a file that is not there is held by nobody.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        match File::open(path) {
            Ok(file) => Ok(!try_lock(&file, path, LockMode::Shared)?),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(Error::io(format!("look at the lock `{}`", path.display()), cause)),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|cause| Error::io(format!("open the lock `{}`", path.display()), cause))
}

fn try_lock(file: &File, path: &Path, mode: LockMode) -> Result<bool> {
    let tried = match mode {
        LockMode::Shared => file.try_lock_shared(),
        LockMode::Exclusive => file.try_lock(),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(cause)) => {
            Err(Error::io(format!("lock `{}`", path.display()), cause))
        }
    }
}

fn sign(file: &File, path: &Path) -> Result<()> {
    let text = format!("{:>10}\n", std::process::id());
    let signed = file.write_all_at(text.as_bytes(), 0);
    signed.map_err(|cause| Error::io(format!("sign the lock `{}`", path.display()), cause))
}

/// Who holds the lock, for people.
fn holder(file: &File) -> String {
    let listed = fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut pids = file.metadata().map_or(Vec::new(), |file| pids_of(&listed, file.ino()));
    // A lock that was inherited is listed under the process that took it, which may be gone.
    pids.retain(|pid| Path::new("/proc").join(pid.to_string()).exists());
    pids.sort_unstable();
    pids.dedup();
    if !pids.is_empty() {
        let names: Vec<String> = pids.iter().map(u32::to_string).collect();
        return format!("process {}", names.join(", "));
    }
    // Where the kernel's list is hidden, the last taker is the best guess; for an exclusive
    // lock it is the holder.
    let mut text = [0; 10];
    match file.read_exact_at(&mut text, 0) {
        Ok(()) => format!("process {}", String::from_utf8_lossy(&text).trim()),
        Err(_) => "a process that has not signed yet".to_owned(),
    }
}

/// Holders of locks on `inode` in the format of `/proc/locks`.
fn pids_of(listed: &str, inode: u64) -> Vec<u32> {
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words[..] else { return None };
        let on = file.rsplit(':').next()?.parse::<u64>().ok()?;
        pid.parse().ok().filter(|pid| on == inode && *pid != 0)
    };
    listed.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemEnv;

    #[test]
    fn shared_locks_keep_an_exclusive_one_out_and_name_their_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        let wait = Duration::from_millis(1);
        let first = FileLock::acquire(&path, LockMode::Shared, &SystemEnv, wait).unwrap();
        let second = FileLock::acquire(&path, LockMode::Shared, &SystemEnv, wait).unwrap();
        drop(first);
        let error = FileLock::acquire(&path, LockMode::Exclusive, &SystemEnv, wait).unwrap_err();
        assert_eq!(error.kind(), Kind::Held);
        assert!(error.message().contains(&std::process::id().to_string()), "{error}");
        drop(second);
        let alone = FileLock::try_acquire(&path, LockMode::Exclusive).unwrap();
        assert!(alone.is_some());
        assert!(FileLock::try_acquire(&path, LockMode::Shared).unwrap().is_none());
    }

    #[test]
    fn holders_are_read_from_the_kernels_list_and_waiters_are_not() {
        let listed = "1: FLOCK  ADVISORY  WRITE 1234 08:01:42 0 EOF\n\
                      1: -> FLOCK  ADVISORY  WRITE 99 08:01:42 0 EOF\n\
                      2: POSIX  ADVISORY  WRITE 55 08:01:42 0 EOF\n\
                      3: FLOCK  ADVISORY  READ  77 08:01:43 0 EOF\n";
        assert_eq!(pids_of(listed, 42), [1234]);
        assert_eq!(pids_of(listed, 43), [77]);
    }
}
