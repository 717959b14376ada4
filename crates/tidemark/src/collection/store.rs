//! Objects by name: a local folder or an object store behind one synchronous face.
//!
//! A [`Store`] is rooted at its collection; paths in it are relative, with `/`
//! between segments, and pass [`check_relative`].
//! Objects are created once and never replaced, and a write that returned is
//! durable. Asynchronous work runs on one runtime that belongs to this module;
//! calls block, so they must not come from inside an asynchronous task.

mod failure;
mod folder;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

pub use failure::kind_of_cause;
pub use read::{ObjectReader, ReadObject};
pub use write::ObjectWriter;

use self::failure::failure;
use self::folder::LocalFolder;
use super::layout::{self, check_relative};
use crate::env::{Env, WallTime};
use crate::error::{Error, Kind, Result};

/// Longest wait for one answer, unless the store is told otherwise: an answer carries a few
/// megabytes at most, so a minute means that the other side hangs.
pub const REQUEST_DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// Requests that [`Store::get_many`] has on the way at once.
const GETS_IN_FLIGHT_MAX: usize = 16;

/// Bytes hashed per read by [`Store::hash`].
const HASH_BYTES: u64 = 1 << 20;

/// Bytes of one read of a local file while it is hashed: what stays in the processor's cache
/// until the hash has seen it.
const HASH_NEAR_BYTES: u64 = 128 << 10;

/// A place for objects; clones are the same place.
#[derive(Clone)]
pub struct Store {
    shown: Arc<str>,
    backend: Backend,
    request_deadline: Duration,
    /// Whether this store has shown that it honours create-only.
    create_only: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Backend {
    Folder(Arc<LocalFolder>),
    Objects(Arc<dyn ObjectStore>),
}

/// What became of a create-only write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there now, durable.
    Created,
    /// An object of that name was there; it is untouched.
    Exists,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Path inside the store.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// When it was last written, by the store's clock.
    pub modified: WallTime,
}

impl ObjectEntry {
    /// Whether it is what a crash in the middle of a write left in a local folder.
    pub fn is_draft(&self) -> bool {
        folder::is_draft(&self.path)
    }
}

/// Size and hash of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHash {
    /// Size.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// Hashes an object from its beginning on, a piece at a time.
#[derive(Clone, Debug)]
pub struct ObjectHasher {
    object: ReadObject,
    hasher: Box<blake3::Hasher>,
    offset: u64,
    buffer: Vec<u8>,
}

impl ObjectHasher {
    /// Reads at most `bytes_max` more, at least one; the number of bytes read, `None` at the end.
    ///
    /// # Errors
    /// What the store says; reading goes on at the same place then.
    pub fn read(&mut self, bytes_max: u64) -> Result<Option<u64>> {
        let len = bytes_max.max(1).min(self.object.byte_count() - self.offset);
        if len == 0 {
            return Ok(None);
        }
        let piece = if self.object.is_near() { len.min(HASH_NEAR_BYTES) } else { len };
        self.buffer.resize(piece as usize, 0);
        let end = self.offset + len;
        while self.offset < end {
            let piece = piece.min(end - self.offset);
            let piece = &mut self.buffer[..piece as usize];
            self.object.read_into(self.offset, piece)?;
            self.hasher.update(piece);
            self.offset += piece.len() as u64;
        }
        Ok(Some(len))
    }

    /// Size of the object, and BLAKE3 of what was read.
    pub fn finish(&self) -> ObjectHash {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        ObjectHash { bytes: self.object.byte_count(), blake3 }
    }
}

/// What lies at a store's root: names beginning with a dot, `lost+found` and what a crash
/// leaves before a collection is made do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is no such folder.
    Missing,
    /// Nothing.
    Empty,
    /// These names, sorted.
    Occupied(Vec<String>),
}

impl Store {
    /// The store at a path, a `file://` URL or an object store's URL. Nothing is read or
    /// made yet, so the place need not exist.
    ///
    /// # Errors
    /// [`Kind::Usage`]: a scheme that this build does not have, a path that is no folder's.
    pub fn open(url_or_path: &str) -> Result<Store> {
        let path = match layout::split_scheme(url_or_path) {
            None => PathBuf::from(url_or_path),
            Some(("file", rest)) => layout::file_url_path(rest).ok_or_else(|| {
                let message = format!(
                    "`{url_or_path}` is not a file URL: expected file:///absolute/path, with \
                     other characters percent-encoded"
                );
                Error::new(Kind::Usage, message)
            })?,
            Some((scheme, _)) => return Err(missing_scheme(scheme, url_or_path)),
        };
        if path.as_os_str().is_empty() {
            return Err(Error::new(Kind::Usage, "the path of a collection is empty"));
        }
        let root = std::path::absolute(&path)
            .map_err(|cause| Error::io(format!("find the folder `{}`", path.display()), cause))?;
        if root.is_file() {
            let message = format!("`{}` is a file; a collection is a folder", root.display());
            return Err(Error::new(Kind::Usage, message));
        }
        let backend = Backend::Folder(Arc::new(LocalFolder::new(root)));
        Ok(Store::new(&path.display().to_string(), backend))
    }

    /// An empty store in memory, for tests; clones share it.
    pub fn in_memory() -> Store {
        Store::over("memory", Arc::new(InMemory::new()))
    }

    /// The store that keeps its objects in `objects`, whose root is the collection.
    pub fn over(shown: &str, objects: Arc<dyn ObjectStore>) -> Store {
        Store::new(shown, Backend::Objects(objects))
    }

    fn new(shown: &str, backend: Backend) -> Store {
        Store {
            shown: shown.into(),
            backend,
            request_deadline: REQUEST_DEADLINE_DEFAULT,
            create_only: Arc::default(),
        }
    }

    /// The same store, waiting at most `deadline` for one answer.
    #[must_use]
    pub fn with_request_deadline(mut self, deadline: Duration) -> Store {
        self.request_deadline = deadline;
        self
    }

    /// Writes a new object; on return it is durable, directory entries included.
    ///
    /// A crash leaves the whole object or none, and at most a draft beside it.
    ///
    /// # Errors
    /// What the store says; [`Kind::Blocked`] for a full disk and the like. After an error the
    /// object may or may not be there; trying again tells.
    pub fn put_new(&self, path: &str, bytes: &[u8]) -> Result<PutOutcome> {
        check_relative(path)?;
        match &self.backend {
            Backend::Folder(folder) => {
                let put = || {
                    let mut draft = folder.draft(path)?;
                    draft.write_all(bytes)?;
                    draft.publish()
                };
                put().map_err(|cause| failure(self.doing("write", path), cause))
            }
            Backend::Objects(objects) => {
                self.put_object(objects, &object_path(path)?, bytes.to_vec())
            }
        }
    }

    /// Makes sure that an object which is there is durable: its writer may have died between
    /// making it visible and making its name durable.
    ///
    /// # Errors
    /// What the store says.
    pub fn settle(&self, path: &str) -> Result<()> {
        check_relative(path)?;
        match &self.backend {
            Backend::Folder(folder) => {
                folder.settle(path).map_err(|cause| failure(self.doing("sync", path), cause))
            }
            Backend::Objects(_) => Ok(()),
        }
    }

    fn put_object(
        &self,
        objects: &Arc<dyn ObjectStore>,
        path: &Path,
        bytes: Vec<u8>,
    ) -> Result<PutOutcome> {
        let options = PutOptions::from(PutMode::Create);
        let put = objects.put_opts(path, bytes.into(), options);
        match self.run(|| self.doing("write", path.as_ref()), put) {
            Ok(_) => Ok(PutOutcome::Created),
            Err(error) if error.kind() == Kind::Held => Ok(PutOutcome::Exists),
            Err(error) => Err(error),
        }
    }

    /// A writer for a new object that is too large for memory.
    pub fn create(&self, path: &str) -> Result<ObjectWriter> {
        check_relative(path)?;
        match &self.backend {
            Backend::Folder(folder) => {
                let draft = folder.draft(path);
                let draft = draft.map_err(|cause| failure(self.doing("create", path), cause))?;
                Ok(ObjectWriter::draft(self.clone(), path, draft))
            }
            Backend::Objects(objects) => Ok(ObjectWriter::upload(
                self.clone(),
                path,
                Arc::clone(objects),
                object_path(path)?,
            )),
        }
    }

    /// Copies `source` into a new object, with bounded memory; gives its size.
    ///
    /// # Errors
    /// As [`ObjectWriter::finish`], and what reading `source` gives.
    pub fn upload_from(&self, path: &str, source: &mut impl io::Read) -> Result<u64> {
        let mut writer = self.create(path)?;
        io::copy(source, &mut writer).map_err(|cause| failure(self.doing("write", path), cause))?;
        writer.finish()
    }

    /// The whole of a small object.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Broken`] when it is larger than `bytes_max`, before it is
    /// read; [`Kind::Transient`] after the deadline.
    pub fn get(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>> {
        check_relative(path)?;
        let what = || self.doing("read", path);
        let read = match &self.backend {
            Backend::Folder(folder) => {
                let (folder, path) = (Arc::clone(folder), path.to_owned());
                self.run_on_disk(what, move || folder.read(&path, bytes_max))?
            }
            Backend::Objects(objects) => {
                let location = object_path(path)?;
                self.run(what, get_object(objects, &location, bytes_max))?.map(Vec::from)
            }
        };
        read.map_err(|found| too_large(&what(), found, bytes_max))
    }

    /// The same for many objects, several at once over a network; in the order asked for.
    pub fn get_many(&self, paths: &[String], bytes_max: u64) -> Result<Vec<Vec<u8>>> {
        let Backend::Objects(objects) = &self.backend else {
            return paths.iter().map(|path| self.get(path, bytes_max)).collect();
        };
        let mut gathered = Vec::with_capacity(paths.len());
        for window in paths.chunks(GETS_IN_FLIGHT_MAX) {
            let mut locations = Vec::new();
            for path in window {
                check_relative(path)?;
                locations.push(object_path(path)?);
            }
            let answers = self.run(
                || format!("read {} objects from `{}` of {self}", window.len(), window[0]),
                get_window(objects, locations, bytes_max),
            )?;
            for (path, answer) in window.iter().zip(answers) {
                let what = || self.doing("read", path);
                let bytes = answer.map_err(|cause| failure(what(), cause))?;
                let bytes = bytes.map_err(|found| too_large(&what(), found, bytes_max))?;
                gathered.push(Vec::from(bytes));
            }
        }
        Ok(gathered)
    }

    /// Opens an object for reading at random.
    ///
    /// # Errors
    /// [`Kind::NotFound`], and what the store says.
    pub fn open_for_reading(&self, path: &str) -> Result<ReadObject> {
        check_relative(path)?;
        match &self.backend {
            Backend::Folder(folder) => {
                let (opened, name) = (Arc::clone(folder), path.to_owned());
                let (file, bytes) =
                    self.run_on_disk(|| self.doing("open", path), move || opened.open(&name))?;
                let can_hang = folder.reads_can_hang();
                Ok(ReadObject::local(self.clone(), path, file, bytes, can_hang))
            }
            Backend::Objects(_) => match self.size(path)? {
                Some(bytes) => Ok(ReadObject::remote(self.clone(), path, bytes)),
                None => {
                    let message = format!("{}: there is no such object", self.doing("open", path));
                    Err(Error::new(Kind::NotFound, message))
                }
            },
        }
    }

    /// Size of an object; `None` if there is none.
    pub fn size(&self, path: &str) -> Result<Option<u64>> {
        check_relative(path)?;
        let what = || self.doing("look at", path);
        let size = match &self.backend {
            Backend::Folder(folder) => {
                let (folder, path) = (Arc::clone(folder), path.to_owned());
                self.run_on_disk(what, move || folder.open(&path).map(|(_, bytes)| bytes))
            }
            Backend::Objects(objects) => {
                let location = object_path(path)?;
                self.run(what, objects.head(&location)).map(|found| found.size)
            }
        };
        match size {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Size and BLAKE3 of an object, read as a stream.
    pub fn hash(&self, path: &str) -> Result<ObjectHash> {
        let mut hasher = self.hasher(path)?;
        while hasher.read(HASH_BYTES)?.is_some() {}
        Ok(hasher.finish())
    }

    /// The same, a piece at a time.
    ///
    /// # Errors
    /// [`Kind::NotFound`], and what the store says.
    pub fn hasher(&self, path: &str) -> Result<ObjectHasher> {
        let object = self.open_for_reading(path)?;
        Ok(ObjectHasher { object, hasher: Box::default(), offset: 0, buffer: Vec::new() })
    }

    /// Everything below the folder `prefix` (empty: everything), drafts among it, sorted by
    /// path; nothing if there is no such folder.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>> {
        if !prefix.is_empty() {
            check_relative(prefix)?;
        }
        let what = || format!("list `{prefix}` of {self}");
        let mut found = match &self.backend {
            Backend::Folder(folder) => {
                let (folder, prefix) = (Arc::clone(folder), prefix.to_owned());
                self.run_on_disk(what, move || folder.list(&prefix))?
            }
            Backend::Objects(objects) => {
                let prefix = (!prefix.is_empty()).then(|| object_path(prefix)).transpose()?;
                self.list_objects(objects, prefix.as_ref(), what)?
            }
        };
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn list_objects(
        &self,
        objects: &Arc<dyn ObjectStore>,
        prefix: Option<&Path>,
        what: impl Fn() -> String,
    ) -> Result<Vec<ObjectEntry>> {
        let mut stream = objects.list(prefix);
        let mut found = Vec::new();
        loop {
            // The deadline is for each answer, not for all: a listing may be long.
            let next = std::future::poll_fn(|context| stream.as_mut().poll_next(context));
            let Some(meta) = self.run(&what, async { next.await.transpose() })? else {
                return Ok(found);
            };
            let modified = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
            found.push(ObjectEntry {
                path: meta.location.to_string(),
                bytes: meta.size,
                modified: WallTime(modified),
            });
        }
    }

    /// What lies at the root.
    pub fn place(&self) -> Result<Place> {
        let what = || format!("look at {self}");
        let names = match &self.backend {
            Backend::Folder(folder) => {
                let folder = Arc::clone(folder);
                self.run_on_disk(what, move || folder.top_level())?
            }
            Backend::Objects(objects) => {
                let listed = self.run(what, objects.list_with_delimiter(None))?;
                let files = listed.objects.into_iter().map(|object| object.location.to_string());
                let folders = listed.common_prefixes.into_iter().map(|path| path.to_string());
                Some(files.chain(folders).collect())
            }
        };
        let Some(mut names) = names else { return Ok(Place::Missing) };
        names.retain(|name| {
            let left_by_crash = name == layout::PROBE_FOLDER || folder::is_draft(name);
            !name.starts_with('.') && name != "lost+found" && !left_by_crash
        });
        names.sort();
        Ok(if names.is_empty() { Place::Empty } else { Place::Occupied(names) })
    }

    /// Removes an object; one that is gone already is no error.
    ///
    /// A crash may bring it back: a removal is not synced.
    pub fn delete(&self, path: &str) -> Result<()> {
        check_removable(path)?;
        let what = || self.doing("remove", path);
        let deleted = match &self.backend {
            Backend::Folder(folder) => {
                let (folder, path) = (Arc::clone(folder), path.to_owned());
                self.run_on_disk(what, move || folder.delete(&path))
            }
            Backend::Objects(objects) => {
                let location = object_path(path)?;
                self.run(what, objects.delete(&location))
            }
        };
        match deleted {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Makes sure that the store refuses to create what exists; asked once, then remembered.
    ///
    /// The answer decides races between backups, and some servers ignore the condition and
    /// say that all is well. So two writes of one name are tried. A crash leaves the probe,
    /// which is garbage.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a store that replaces objects; it may be read, not written.
    pub fn prove_create_only(&self, env: &dyn Env) -> Result<()> {
        if self.create_only.load(Ordering::Acquire) {
            return Ok(());
        }
        let path = format!("{}/{:032x}", layout::PROBE_FOLDER, env.random_id());
        let first = self.put_new(&path, b"first")?;
        let second = self.put_new(&path, b"second");
        let kept = self.get(&path, 16);
        self.delete(&path)?;
        let honoured = first == PutOutcome::Created
            && second? == PutOutcome::Exists
            && kept?.as_slice() == b"first";
        if !honoured {
            let message = format!(
                "{self} replaces objects although it was told to create new ones only, so two \
                 backups at once could destroy each other; backups can be read from it, but not \
                 written. Use a store that honours conditional writes (`If-None-Match: *`)"
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        self.create_only.store(true, Ordering::Release);
        Ok(())
    }

    fn doing(&self, verb: &str, path: &str) -> String {
        format!("{verb} `{path}` of {self}")
    }

    /// Waits for one answer, at most until the deadline.
    fn run<T>(
        &self,
        what: impl Fn() -> String,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        let deadline = self.request_deadline;
        let bounded = async { tokio::time::timeout(deadline, request).await };
        match runtime()?.block_on(bounded) {
            Ok(answer) => answer.map_err(|cause| failure(what(), cause)),
            Err(_) => Err(Error::new(
                Kind::Transient,
                format!("{}: no answer within {} ms", what(), deadline.as_millis()),
            )),
        }
    }

    /// The same for a call to the file system, which nothing but the kernel can end: after
    /// the deadline it is left behind on its thread.
    fn run_on_disk<T: Send + 'static>(
        &self,
        what: impl Fn() -> String,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let task = runtime()?.spawn_blocking(call);
        let answer = self.run(&what, async { Ok(task.await?) })?;
        answer.map_err(|cause| failure(what(), cause))
    }
}

impl Store {
    /// Path or URL as it was given.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.shown)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = match &self.backend {
            Backend::Folder(folder) => folder.root().display().to_string(),
            Backend::Objects(objects) => objects.to_string(),
        };
        write!(f, "Store({root})")
    }
}

type Fetched = object_store::Result<std::result::Result<Bytes, u64>>;

/// The object, or its size if that is more than `bytes_max`.
async fn get_object(objects: &Arc<dyn ObjectStore>, path: &Path, bytes_max: u64) -> Fetched {
    let found = objects.get(path).await?;
    if found.meta.size > bytes_max {
        return Ok(Err(found.meta.size));
    }
    found.bytes().await.map(Ok)
}

async fn get_window(
    objects: &Arc<dyn ObjectStore>,
    paths: Vec<Path>,
    bytes_max: u64,
) -> object_store::Result<Vec<Fetched>> {
    let mut tasks = JoinSet::new();
    let mut answers: Vec<Option<Fetched>> = paths.iter().map(|_| None).collect();
    for (at, path) in paths.into_iter().enumerate() {
        let objects = Arc::clone(objects);
        tasks.spawn(async move { (at, get_object(&objects, &path, bytes_max).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (at, answer) = done?;
        answers[at] = Some(answer);
    }
    Ok(answers.into_iter().map(|answer| answer.expect("every task was joined")).collect())
}

fn too_large(what: &str, found: u64, bytes_max: u64) -> Error {
    let message = format!("{what}: found {found} bytes, expected at most {bytes_max}");
    Error::new(Kind::Broken, message)
}

fn missing_scheme(scheme: &str, url: &str) -> Error {
    let refused = match scheme {
        "s3" | "s3a" | "gs" | "gcs" | "az" | "azure" | "abfs" | "abfss" | "http" | "https" => {
            "object stores cannot be reached yet"
        }
        _ => "that is no place for a collection",
    };
    let message = format!("`{url}`: {refused}; expected a path or file:// of a local folder");
    Error::new(Kind::Usage, message)
}

/// Drafts may be removed although nothing else may name them.
fn check_removable(path: &str) -> Result<()> {
    match path.rsplit_once('#') {
        Some((name, _)) if folder::is_draft(path) => check_relative(name),
        _ => check_relative(path),
    }
}

fn object_path(path: &str) -> Result<Path> {
    Path::parse(path).map_err(|cause| {
        Error::with_source(Kind::Usage, format!("`{path}` is no path of an object"), cause)
    })
}

/// The runtime of every store of this process; it lives as long as the process.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tidemark-store")
            .enable_all()
            .build()
    });
    runtime.as_ref().map_err(|cause| {
        let what = format!("start the threads that talk to stores: {cause}");
        Error::new(Kind::Blocked, what)
    })
}
