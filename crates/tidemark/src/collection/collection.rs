//! A collection: opening, reading what it holds, and adding a backup to it.
//!
//! A backup becomes part of the collection in three steps, each durable before
//! the next: its parts, its manifest, its log entry. Only the last one counts.
//! A crash before it leaves garbage that nothing leads to; a crash after it
//! leaves a backup. Committing again with the same content succeeds.

use serde::{Deserialize, Serialize};

use super::accept::{UnverifiedManifest, check_link};
use super::chain::{Chain, RestorePoint};
use super::document;
use super::flaw::{Flaw, ReadFailure, Remedy};
use super::layout::{self, BackupDirectory, COLLECTION_FILE, LOG_FOLDER, log_path, manifest_path};
use super::log::{LogToFlaw, lost_race, read_entry, read_log_to_flaw};
use super::manifest::{
    BackupKind, CollectionRecord, FormatVersion, LogEntry, Manifest, ParentLink, PartEntry,
};
use super::store::{ObjectEntry, ObjectWriter, Place, PutOutcome, ReadObject, Store};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{CollectionId, Sequence, TableName};

/// Largest manifest that is read: about a million parts. It must fit in memory.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Largest `collection.json` that is read: it has a few hundred bytes.
pub(super) const COLLECTION_BYTES_MAX: u64 = 64 << 10;

/// A place that holds backups; clones are the same place.
#[derive(Clone, Debug)]
pub struct Collection {
    store: Store,
    record: CollectionRecord,
}

impl Collection {
    /// Makes a new, empty collection; durable on return.
    ///
    /// A crash leaves nothing or the collection.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when something is there already, a collection or not;
    /// [`Kind::Unsupported`] for a store that cannot be written to safely.
    pub fn create(store: Store, env: &dyn Env) -> Result<Collection> {
        if let Place::Occupied(names) = store.place()? {
            let found = if names.iter().any(|name| name == COLLECTION_FILE) {
                "it is a collection already".to_owned()
            } else {
                format!("it holds {}", show_names(&names))
            };
            let message = format!(
                "make a collection at {store}: {found}; name a folder that is empty or not \
                 there yet"
            );
            return Err(Error::new(Kind::InTheWay, message));
        }
        store.prove_create_only(env)?;
        let record = CollectionRecord {
            format: FormatVersion::CURRENT,
            id: CollectionId(env.random_id()),
            created: env.wall_time(),
            extra: serde_json::Map::new(),
        };
        match store.put_new(COLLECTION_FILE, &document::seal(&record))? {
            PutOutcome::Created => Ok(Collection { store, record }),
            PutOutcome::Exists => {
                let message =
                    format!("make a collection at {store}: somebody else made one just now");
                Err(Error::new(Kind::InTheWay, message))
            }
        }
    }

    /// Opens the collection in `store`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none, saying whether the folder is missing, empty or
    /// holds something else; [`Kind::Broken`] when `collection.json` is damaged, or gone
    /// while there is a log; [`Kind::Unsupported`] when it is of another major version.
    pub fn open(store: Store) -> Result<Collection> {
        let bytes = match store.get(COLLECTION_FILE, COLLECTION_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == Kind::NotFound => return Err(not_a_collection(&store)?),
            Err(error) => return Err(error),
        };
        let record = document::unseal::<CollectionRecord>(COLLECTION_FILE, &bytes);
        let record = record.map_err(|failure| match failure {
            ReadFailure::Flawed(flaw) => unknown_collection(&store, &flaw),
            failed @ ReadFailure::Failed(_) => in_place(&store, failed),
        })?;
        Ok(Collection { store, record })
    }

    /// Opens the collection, or makes it where nothing is.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`create`](Self::create); two who make it at once both get it.
    pub fn open_or_create(store: Store, env: &dyn Env) -> Result<Collection> {
        match Collection::open(store.clone()) {
            Err(error) if error.kind() == Kind::NotFound => {}
            other => return other,
        }
        match Collection::create(store.clone(), env) {
            // It may be there since a moment ago; if it is not, the refusal stands.
            Err(refused) if refused.kind() == Kind::InTheWay => {
                Collection::open(store).map_err(|error| match error.kind() {
                    Kind::NotFound => refused,
                    _ => error,
                })
            }
            other => other,
        }
    }

    /// Identity.
    pub fn id(&self) -> CollectionId {
        self.record.id
    }

    /// What `collection.json` says.
    pub fn record(&self) -> &CollectionRecord {
        &self.record
    }

    /// Where it lies.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The backups that exist, in order, numbered from 1 without a gap.
    ///
    /// # Errors
    /// [`Kind::Broken`] for a missing, changed, doubled or re-ordered entry, naming it;
    /// [`Kind::Unsupported`] for an entry of another major version.
    pub fn log(&self) -> Result<Vec<LogEntry>> {
        let (entries, flaw) = self.log_to_flaw()?;
        flaw.map_or(Ok(entries), Err)
    }

    /// The backups up to the first flaw of the log, and what is wrong there and what to do:
    /// those backups can be restored, and nothing can be added to the log.
    ///
    /// # Errors
    /// As [`log`](Self::log), but not for a flaw.
    pub fn log_to_flaw(&self) -> Result<(Vec<LogEntry>, Option<Error>)> {
        let reading = read_log_to_flaw(&self.store);
        let LogToFlaw { entries, flaw } =
            reading.map_err(|failure| in_place(&self.store, failure))?;
        let told = flaw.map(|flaw| {
            let whole = match entries.len() {
                0 => "no backup can be restored without it".to_owned(),
                1 => "backup #1, before it, can still be restored by its name".to_owned(),
                last => format!(
                    "backups #1 to #{last}, before it, can still be restored by name or number"
                ),
            };
            let mend = match flaw.remedy {
                Remedy::PutBack | Remedy::PutEntryBack => {
                    "Put the object back from a copy of the collection"
                }
                Remedy::NameOrRemove => {
                    "Give it its right name if no entry has that, else remove it"
                }
            };
            let message = format!(
                "{flaw}. {mend}; until then {whole}, and no backup can be added, since nothing \
                 would prove what comes before it: begin a new collection for new backups. {}",
                self.see_all()
            );
            in_place(&self.store, Error::new(Kind::Broken, message).into())
        });
        Ok((entries, told))
    }

    fn see_all(&self) -> String {
        format!("`tidemark verify {}` tells all that is wrong", self.store.shown())
    }

    /// The manifest that `entry` names, checked against it and against itself.
    ///
    /// # Errors
    /// [`Kind::Broken`] when it is missing, has another BLAKE3, or contradicts itself.
    pub fn manifest(&self, entry: &LogEntry) -> Result<Manifest> {
        self.read_manifest(entry).map_err(|failure| match failure {
            ReadFailure::Flawed(flaw) => {
                let message = format!(
                    "{flaw}. Put the object back from a copy of the collection, or take a new \
                     full backup (--full); restore points before `{}` are not affected, nor are \
                     those of a later full. {}",
                    entry.directory,
                    self.see_all()
                );
                in_place(&self.store, Error::new(Kind::Broken, message).into())
            }
            failed @ ReadFailure::Failed(_) => in_place(&self.store, failed),
        })
    }

    pub(super) fn read_manifest(&self, entry: &LogEntry) -> Result<Manifest, ReadFailure> {
        let object = manifest_path(&entry.directory);
        let bytes = match self.store.get(&object, MANIFEST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == Kind::NotFound => {
                let expected = format!("the manifest of backup {}", entry.sequence);
                return Err(Flaw::new(object, "nothing", expected).into());
            }
            Err(error) => return Err(error.into()),
        };
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != entry.manifest {
            let found = format!("BLAKE3 `{found}` of {} bytes", bytes.len());
            let expected = format!("`{}` as `{}` says", entry.manifest, log_path(entry.sequence));
            return Err(Flaw::new(object, found, expected).into());
        }
        let unverified = UnverifiedManifest::parse(&object, &bytes)?;
        Ok(unverified.check(self.record.id, entry)?)
    }

    /// What leads to `point`, every manifest read and checked. A log that is damaged behind a
    /// point that is named is no obstacle.
    ///
    /// # Errors
    /// As [`log`](Self::log), [`manifest`](Self::manifest) and [`Chain::resolve`].
    pub fn chain(&self, point: &RestorePoint) -> Result<Chain> {
        let (log, flaw) = self.log_to_flaw()?;
        let is_before_flaw = match point {
            RestorePoint::Directory(name) => log.iter().any(|entry| entry.directory == *name),
            RestorePoint::Sequence(sequence) => sequence.0 <= log.len() as u64,
            // What is meant may lie behind the flaw.
            RestorePoint::Latest | RestorePoint::Time(_) => false,
        };
        if let Some(flaw) = flaw.filter(|_| !is_before_flaw) {
            return Err(flaw);
        }
        let resolved = Chain::resolve(&log, point, &mut |entry| self.manifest(entry));
        resolved.map_err(|error| match error.message().starts_with("collection ") {
            true => error,
            false => error.context(format!("collection {}", self.store)),
        })
    }

    /// Makes sure that every object of the chain is there with its recorded size; reads none.
    ///
    /// Taken before an increment is begun and before a restore starts: an increment on top of
    /// a chain that lost an object could never be restored.
    ///
    /// # Errors
    /// [`Kind::Broken`], naming the first object, how many more there are, and what to do.
    pub fn check_present(&self, chain: &Chain) -> Result<()> {
        let mut flaws = Vec::new();
        for link in chain.links() {
            flaws.extend(self.presence_flaws(&link.manifest)?);
        }
        let Some(first) = flaws.first() else { return Ok(()) };
        let more = match flaws.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more objects)"),
        };
        let message = format!(
            "collection {}: {first}{more}; put the object back from a copy of the collection, or \
             take a new full backup (restore points before backup `{}` are not affected)",
            self.store,
            first.object.split('/').next().unwrap_or_default()
        );
        Err(Error::new(Kind::Broken, message))
    }

    /// The objects of one backup that are missing or have another size.
    pub(super) fn presence_flaws(&self, manifest: &Manifest) -> Result<Vec<Flaw>> {
        let listed = self.store.list(&manifest.directory)?;
        let size_of = |path: &str| {
            let found = listed.binary_search_by(|object| object.path.as_str().cmp(path));
            found.ok().map(|at| &listed[at]).map(|object: &ObjectEntry| object.bytes)
        };
        let mut flaws = Vec::new();
        let document = manifest_path(&manifest.directory);
        if size_of(&document).is_none() {
            let expected = format!("the manifest of backup {}", manifest.sequence);
            flaws.push(Flaw::new(document, "nothing", expected));
        }
        for part in manifest.tables.iter().flat_map(|table| &table.parts) {
            let path = format!("{}/{}", manifest.directory, part.name);
            let size = size_of(&path);
            if size != Some(part.bytes) {
                flaws.push(size_flaw(path, size, part.bytes));
            }
        }
        Ok(flaws)
    }

    /// Opens a part of the backup in `directory`, if it has its recorded size.
    ///
    /// # Errors
    /// [`Kind::Broken`] when it is missing or has another size.
    pub fn open_part(&self, directory: &str, part: &PartEntry) -> Result<ReadObject> {
        let path = format!("{directory}/{}", part.name);
        let flawed =
            |size| Err(in_place(&self.store, size_flaw(path.clone(), size, part.bytes).into()));
        match self.store.open_for_reading(&path) {
            Ok(object) if object.byte_count() == part.bytes => Ok(object),
            Ok(object) => flawed(Some(object.byte_count())),
            Err(error) if error.kind() == Kind::NotFound => flawed(None),
            Err(error) => Err(error),
        }
    }

    /// Chooses number, directory and parent of a new backup. Nothing is written.
    ///
    /// For an increment the whole chain below it is resolved and checked to be present.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: an increment in a collection without a backup. [`Kind::Broken`]: the
    /// log is damaged, or, for an increment, anything of its chain.
    /// [`Kind::Unsupported`]: a store that cannot be written to safely.
    pub fn begin_backup(&self, kind: BackupKind, env: &dyn Env) -> Result<NewBackup> {
        self.store.prove_create_only(env)?;
        let log = self.log()?;
        let parent = match (kind, log.last()) {
            (BackupKind::Full, _) => None,
            (BackupKind::Incremental, None) => {
                let message = format!(
                    "take an increment into {}: the collection has no backup to build on; take a \
                     full backup first",
                    self.store
                );
                return Err(Error::new(Kind::NotFound, message));
            }
            (BackupKind::Incremental, Some(newest)) => {
                let chain =
                    Chain::resolve(&log, &RestorePoint::Latest, &mut |entry| self.manifest(entry))?;
                self.check_present(&chain)?;
                Some(ParentLink {
                    sequence: newest.sequence,
                    directory: newest.directory.clone(),
                    manifest: newest.manifest.clone(),
                })
            }
        };
        let names = log.iter().filter_map(|entry| BackupDirectory::parse(&entry.directory));
        let newest = names.max_by_key(|name| name.second());
        let mut directory = BackupDirectory::after(newest, kind, env.wall_time())?;
        // A backup that died after its manifest keeps its directory for ever: manifests are
        // not replaced, so we must not choose it again.
        while !self.store.list(&directory.to_string())?.is_empty() {
            directory = BackupDirectory::after(Some(directory), kind, env.wall_time())?;
        }
        Ok(NewBackup {
            collection: self.record.id,
            sequence: Sequence(log.len() as u64 + 1),
            kind,
            directory: directory.to_string(),
            parent,
            previous: log.last().map(|newest| newest.manifest.clone()),
        })
    }
}

/// A backup on its way: everything of it that was decided when it began.
///
/// It is stored with its operation, so that a restart writes to the same directory and can
/// tell whether its commit got through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBackup {
    /// Collection it goes into.
    pub collection: CollectionId,
    /// Number it will have, unless somebody else gets it first.
    pub sequence: Sequence,
    /// Full or increment.
    pub kind: BackupKind,
    /// Its directory inside the collection.
    pub directory: String,
    /// The backup it builds on; `None` for a full.
    pub parent: Option<ParentLink>,
    /// BLAKE3 of the manifest of the entry before it; `None` for the first.
    pub previous: Option<String>,
}

impl NewBackup {
    /// Name of a part for its [`PartEntry`], inside the backup's directory.
    ///
    /// # Errors
    /// As [`layout::part_name`].
    pub fn part_name(&self, table: &TableName, number: u32, ticket: &str) -> Result<String> {
        layout::part_name(table, number, ticket)
    }

    /// Path inside the collection of a part of that name.
    pub fn part_path(&self, part_name: &str) -> String {
        format!("{}/{part_name}", self.directory)
    }

    /// A writer for the part of that name.
    pub fn create_part(&self, collection: &Collection, part_name: &str) -> Result<ObjectWriter> {
        collection.store.create(&self.part_path(part_name))
    }

    /// Makes the backup exist: writes its manifest, then its log entry, both create-only.
    ///
    /// Its parts must be durable. May be called again with the same manifest, after a crash
    /// or an error: it succeeds if the backup got through before.
    ///
    /// A crash before the log entry leaves garbage; after it, the backup exists.
    ///
    /// # Errors
    /// [`Kind::Overtaken`]: another backup took the number; nothing is removed and nothing of the
    /// other touched. [`Kind::Broken`]: the manifest contradicts itself, its parent or the
    /// parts that are there.
    pub fn commit(&self, collection: &Collection, manifest: &Manifest) -> Result<LogEntry> {
        let context = |error: Error| {
            let store = &collection.store;
            error.context(format!("commit backup {} into {store}", self.sequence))
        };
        let bytes = document::pretty(manifest);
        let entry = LogEntry {
            format: FormatVersion::CURRENT,
            sequence: self.sequence,
            kind: self.kind,
            directory: self.directory.clone(),
            manifest: blake3::hash(&bytes).to_hex().to_string(),
            previous: self.previous.clone(),
            extra: serde_json::Map::new(),
        };
        self.check_manifest(collection, manifest, &entry, bytes.len() as u64).map_err(context)?;
        match read_entry(&collection.store, self.sequence)? {
            Some(taken) if taken != entry => {
                return Err(lost_race(self.sequence, &taken.directory));
            }
            // Ours, from before a crash: writing it once more finds it and makes sure of it.
            Some(_) => return self.put_entry(collection, entry),
            None => {}
        }
        failpoint::hit("backup.before_manifest");
        self.put_manifest(collection, &bytes)?;
        failpoint::hit("backup.after_manifest");
        // After the manifest: its fresh date keeps the directory from being taken for garbage.
        if let Some(flaw) = collection.presence_flaws(manifest)?.into_iter().next() {
            return Err(context(flaw.into()));
        }
        self.put_entry(collection, entry)
    }

    fn check_manifest(
        &self,
        collection: &Collection,
        manifest: &Manifest,
        entry: &LogEntry,
        bytes: u64,
    ) -> Result<()> {
        let object = manifest_path(&self.directory);
        if bytes > MANIFEST_BYTES_MAX {
            let expected = format!("at most {MANIFEST_BYTES_MAX}; use fewer or larger parts");
            return Err(Flaw::new(object, format!("{bytes} bytes"), expected).into());
        }
        if self.collection != collection.id() {
            let expected = format!("collection {}", collection.id());
            return Err(
                Flaw::new(object, format!("collection {}", self.collection), expected).into()
            );
        }
        UnverifiedManifest::from(manifest.clone()).check(self.collection, entry)?;
        let Some(before) = self.sequence.0.checked_sub(1).filter(|before| *before > 0) else {
            return Ok(());
        };
        let before = read_entry(&collection.store, Sequence(before))?.ok_or_else(|| {
            Flaw::new(log_path(Sequence(before)), "nothing", "the entry before the new one")
        })?;
        if self.previous.as_ref() != Some(&before.manifest) {
            let found = format!("manifest `{}`", before.manifest);
            let expected = format!("{:?} as when the backup began", self.previous);
            return Err(Flaw::new(log_path(before.sequence), found, expected).into());
        }
        if self.kind == BackupKind::Incremental {
            check_link(&collection.manifest(&before)?, manifest)?;
        }
        Ok(())
    }

    fn put_manifest(&self, collection: &Collection, bytes: &[u8]) -> Result<()> {
        let path = manifest_path(&self.directory);
        match collection.store.put_new(&path, bytes)? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => {
                let there = collection.store.get(&path, MANIFEST_BYTES_MAX)?;
                if there == bytes {
                    return Ok(());
                }
                let by = format!("`{}` holds another manifest", self.directory);
                Err(lost_race(self.sequence, &by))
            }
        }
    }

    fn put_entry(&self, collection: &Collection, entry: LogEntry) -> Result<LogEntry> {
        let path = log_path(self.sequence);
        failpoint::hit("backup.before_log_entry");
        let put = collection.store.put_new(&path, &document::seal(&entry))?;
        failpoint::hit("backup.after_log_entry");
        match put {
            PutOutcome::Created => Ok(entry),
            // A store may retry a request that had succeeded, and then say that it is there.
            PutOutcome::Exists => match read_entry(&collection.store, self.sequence)? {
                Some(there) if there == entry => Ok(entry),
                Some(there) => Err(lost_race(self.sequence, &there.directory)),
                None => {
                    let message =
                        format!("commit backup {}: `{path}` came and went", self.sequence);
                    Err(Error::new(Kind::Transient, message))
                }
            },
        }
    }
}

pub(super) fn size_flaw(path: String, found: Option<u64>, expected: u64) -> Flaw {
    let found = found.map_or_else(|| "nothing".to_owned(), |bytes| format!("{bytes} bytes"));
    Flaw::new(path, found, format!("{expected} bytes as its manifest says"))
}

fn in_place(store: &Store, failure: ReadFailure) -> Error {
    Error::from(failure).context(format!("collection {store}"))
}

/// Backups may be there, but not what they are held against.
fn unknown_collection(store: &Store, flaw: &Flaw) -> Error {
    let message = format!(
        "collection {store}: {flaw}. Put the object back from another copy of the collection, where \
         it is the same; until then nothing here can be read, and nothing is lost"
    );
    Error::new(Kind::Broken, message)
}

fn not_a_collection(store: &Store) -> Result<Error> {
    let found = match store.place()? {
        Place::Missing => "the folder does not exist".to_owned(),
        Place::Empty => "it is empty; nothing was ever backed up to it".to_owned(),
        Place::Occupied(names) => {
            if names.iter().any(|name| name == LOG_FOLDER) {
                let expected = "the document that every collection begins with";
                let flaw = Flaw::new(COLLECTION_FILE, "nothing, while there is a log", expected);
                return Ok(unknown_collection(store, &flaw));
            }
            format!("it holds {} but no `{COLLECTION_FILE}`", show_names(&names))
        }
    };
    Ok(Error::new(Kind::NotFound, format!("{store} is not a collection: {found}")))
}

fn show_names(names: &[String]) -> String {
    const SHOWN_MAX: usize = 3;
    let shown: Vec<String> = names.iter().take(SHOWN_MAX).map(|name| format!("{name:?}")).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
