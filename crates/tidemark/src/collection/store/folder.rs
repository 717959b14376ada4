//! A local folder as a store.
//!
//! An object becomes visible by a hard link from a finished, synced draft
//! `<name>#<n>` beside it, so it is there whole or not at all and never
//! replaced. Files and every directory entry that leads to them are synced
//! before a write is acknowledged; object_store's own local store syncs only
//! the directories that it made in the same call, which a process that died in
//! between leaves unsynced.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::{ObjectEntry, PutOutcome};
use crate::env::{self, WallTime, sync_folder};
use crate::failpoint;

/// Deepest folder that is listed: a collection has three levels; a loop of links has no end.
const DEPTH_MAX: u32 = 16;

/// Drafts of one name that are tried before giving up; each is left by one crash.
const DRAFTS_MAX: u32 = 10_000;

/// Bytes that are written before they begin their way to the disk. They go while more is
/// encoded; without that the disk would idle until the end, and its writer then.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;

/// Separates an object's name from the number of its draft.
const DRAFT_MARK: char = '#';

/// A folder on this machine.
#[derive(Debug)]
pub(super) struct LocalFolder {
    root: PathBuf,
    /// Folders whose entries are known to be synced, all the way up.
    synced: Mutex<BTreeSet<PathBuf>>,
}

impl LocalFolder {
    pub(super) fn new(root: PathBuf) -> LocalFolder {
        LocalFolder { root, synced: Mutex::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where `path` lies; it has passed [`check_relative`](crate::collection::layout::check_relative).
    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The whole object, or its size if that is more than `bytes_max`.
    pub(super) fn read(&self, path: &str, bytes_max: u64) -> io::Result<Result<Vec<u8>, u64>> {
        let file = File::open(self.place(path))?;
        let size = file.metadata()?.len();
        let mut bytes = Vec::new();
        if size <= bytes_max {
            file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        }
        let found = size.max(bytes.len() as u64);
        Ok(if found > bytes_max { Err(found) } else { Ok(bytes) })
    }

    pub(super) fn open(&self, path: &str) -> io::Result<(File, u64)> {
        let file = File::open(self.place(path))?;
        let status = file.metadata()?;
        if !status.is_file() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok((file, status.len()))
    }

    /// Whether a read can hang for ever in the kernel, as on a network file system whose
    /// server went away. Such reads are made on another thread, under the deadline.
    pub(super) fn reads_can_hang(&self) -> bool {
        is_remote(&self.root)
    }

    pub(super) fn draft(&self, path: &str) -> io::Result<LocalDraft> {
        let place = self.place(path);
        let folder = place.parent().unwrap_or(&self.root).to_path_buf();
        for number in 1..=DRAFTS_MAX {
            self.make_folder(&folder)?;
            let draft = draft_path(&place, number);
            match OpenOptions::new().write(true).create_new(true).open(&draft) {
                Ok(file) => return Ok(LocalDraft::new(file, place, draft)),
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                // Somebody removed the emptied folder meanwhile.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => self.forget(&folder),
                Err(cause) => return Err(cause),
            }
        }
        Err(io::Error::other(format!("more than {DRAFTS_MAX} drafts of {}", place.display())))
    }

    /// Makes `folder`, durable as all that leads to it.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if self.synced.lock().expect("no panic while held").contains(folder) && folder.is_dir() {
            return Ok(());
        }
        env::make_folder(folder)?;
        self.synced.lock().expect("no panic while held").insert(folder.to_path_buf());
        Ok(())
    }

    /// Syncs the name of an object; its bytes were synced before it had one.
    pub(super) fn settle(&self, path: &str) -> io::Result<()> {
        let place = self.place(path);
        sync_folder(place.parent().unwrap_or(&self.root))
    }

    fn forget(&self, folder: &Path) {
        self.synced.lock().expect("no panic while held").remove(folder);
    }

    /// Every file below `prefix`, drafts among them, in no order. Names that are not UTF-8
    /// are left out: nothing of ours has one.
    pub(super) fn list(&self, prefix: &str) -> io::Result<Vec<ObjectEntry>> {
        let mut found = Vec::new();
        let start = if prefix.is_empty() { self.root.clone() } else { self.place(prefix) };
        let mut open = vec![(start, prefix.to_owned(), 0)];
        while let Some((folder, name, depth)) = open.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(cause),
            };
            for entry in entries {
                let entry = entry?;
                let Ok(last) = entry.file_name().into_string() else { continue };
                let path = if name.is_empty() { last } else { format!("{name}/{last}") };
                let status = match fs::metadata(entry.path()) {
                    Ok(status) => status,
                    // Gone since, or a link to nowhere.
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
                    Err(cause) => return Err(cause),
                };
                if !status.is_dir() {
                    let modified = WallTime(u64::try_from(status.mtime()).unwrap_or(0) * 1000);
                    found.push(ObjectEntry { path, bytes: status.len(), modified });
                } else if depth < DEPTH_MAX {
                    open.push((entry.path(), path, depth + 1));
                } else {
                    let text = format!("folders are nested deeper than {DEPTH_MAX} at `{path}`");
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(found)
    }

    /// Names directly below the root, folders included; `None` if there is no such folder.
    pub(super) fn top_level(&self) -> io::Result<Option<Vec<String>>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(cause),
        };
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect::<io::Result<Vec<String>>>().map(Some)
    }

    /// Removes the file and the folders that it leaves empty, the root excepted.
    pub(super) fn delete(&self, path: &str) -> io::Result<()> {
        let place = self.place(path);
        fs::remove_file(&place)?;
        for folder in place.ancestors().skip(1).take_while(|folder| *folder != self.root) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
            self.forget(folder);
        }
        Ok(())
    }
}

/// Whether `path` is what a crash in the middle of a write leaves in a local folder.
pub(super) fn is_draft(path: &str) -> bool {
    path.rsplit_once(DRAFT_MARK).is_some_and(|(_, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn draft_path(place: &Path, number: u32) -> PathBuf {
    let mut draft = place.as_os_str().to_owned();
    draft.push(format!("{DRAFT_MARK}{number}"));
    draft.into()
}

/// A file that is being written and that nobody sees under its name yet.
///
/// Dropped before [`publish`](Self::publish), it removes itself; a crash leaves the draft.
#[derive(Debug)]
pub(super) struct LocalDraft {
    file: Arc<File>,
    place: PathBuf,
    draft: PathBuf,
    published: bool,
    /// Bytes written since the last sync began.
    behind_bytes: u64,
    /// The sync that runs beside the writing. Its error must be heard: the kernel tells an open
    /// file of a lost write once.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl LocalDraft {
    fn new(file: File, place: PathBuf, draft: PathBuf) -> LocalDraft {
        let file = Arc::new(file);
        LocalDraft { file, place, draft, published: false, behind_bytes: 0, syncing: None }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        failpoint::hit_io("store.write")?;
        (&*self.file).write_all(bytes)?;
        self.behind_bytes += bytes.len() as u64;
        if self.behind_bytes >= WRITE_BEHIND_BYTES {
            self.settle()?;
            self.behind_bytes = 0;
            let file = Arc::clone(&self.file);
            // Where there is no thread for it, the sync at the end does it all.
            self.syncing = thread::Builder::new().spawn(move || file.sync_data()).ok();
        }
        Ok(())
    }

    /// Waits for the sync that runs.
    fn settle(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Makes the file durable and visible under its name, unless something has the name.
    pub(super) fn publish(mut self) -> io::Result<PutOutcome> {
        self.settle()?;
        self.file.sync_all()?;
        failpoint::hit("store.before_object");
        let folder = self.place.parent().expect("a draft lies in a folder").to_path_buf();
        let outcome = match fs::hard_link(&self.draft, &self.place) {
            Ok(()) => PutOutcome::Created,
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                // A network file system may have made the link and lost the answer.
                let (ours, there) = (self.file.metadata()?, fs::metadata(&self.place)?);
                let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
                if same { PutOutcome::Created } else { PutOutcome::Exists }
            }
            Err(cause) => return Err(cause),
        };
        // In both cases: who is told `Exists` may rely on it as much as its writer.
        sync_folder(&folder)?;
        failpoint::hit("store.after_object");
        // A draft that stays costs space until the garbage is removed, nothing else.
        let _ = fs::remove_file(&self.draft);
        self.published = true;
        Ok(outcome)
    }
}

impl Drop for LocalDraft {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.draft);
        }
    }
}

/// Fills `buffer` from `offset`, or fails: objects do not shrink.
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

#[cfg(target_os = "linux")]
fn is_remote(root: &Path) -> bool {
    // Magic numbers of linux/magic.h: NFS, SMB, CIFS, SMB2, FUSE, 9P, Ceph, AFS, Lustre.
    const REMOTE: [u64; 9] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
        0x0bd0_0bd0,
    ];
    rustix::fs::statfs(root)
        .is_ok_and(|status| REMOTE.contains(&(status.f_type as u64 & 0xffff_ffff)))
}

#[cfg(not(target_os = "linux"))]
fn is_remote(_root: &Path) -> bool {
    false
}
