//! The log: which backups exist, and in which order.
//!
//! A backup exists when its entry does. Entries are numbered from 1 without
//! gaps, are created once and name the manifest of the entry before them, so
//! neither names of directories nor clocks decide the order, and the log cannot
//! fork: of two writers that want one number, one finds it taken.

use std::collections::BTreeMap;

use super::accept::{check_directory, check_hash};
use super::document;
use super::flaw::{Flaw, ReadFailure, Remedy, expect};
use super::layout::{LOG_FOLDER, log_path, log_sequence};
use super::manifest::LogEntry;
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::ids::Sequence;

/// Largest entry that is read: one has a few hundred bytes.
pub const LOG_ENTRY_BYTES_MAX: u64 = 64 << 10;

/// What a log says up to its first flaw.
///
/// Every entry names the manifest of the one before it, so that the entries before a flaw
/// prove one another as well as those of a whole log do.
#[derive(Debug)]
pub(crate) struct LogToFlaw {
    /// The entries before it, from number 1 without a gap.
    pub(crate) entries: Vec<LogEntry>,
    /// What is wrong; `None` if the log is whole.
    pub(crate) flaw: Option<Flaw>,
}

/// Reads and checks the log of the collection in `store` up to its first flaw.
pub(super) fn read_log_to_flaw(store: &Store) -> Result<LogToFlaw, ReadFailure> {
    let mut flaw = None;
    let mut sequences = Vec::new();
    for object in store.list(LOG_FOLDER)? {
        match log_sequence(&object.path) {
            Some(sequence) => sequences.push((sequence, object.bytes)),
            // Another spelling of a number would be a second entry of that number.
            None if object.path.ends_with(".json") => {
                let expected = format!("entries named like `{}`", log_path(Sequence(1)));
                let stray = Flaw::new(object.path, "a name of no entry", expected);
                flaw = Some(stray.mended_by(Remedy::NameOrRemove));
            }
            None => {}
        }
    }
    sequences.sort();
    let mut paths = Vec::with_capacity(sequences.len());
    for (expected, (sequence, bytes)) in (1..).map(Sequence).zip(sequences) {
        if sequence != expected {
            let found = format!("nothing, while entry {sequence} is there");
            let every = "an entry for every number from 1";
            flaw = Some(Flaw::new(log_path(expected), found, every));
            break;
        }
        if bytes > LOG_ENTRY_BYTES_MAX {
            let found = format!("{bytes} bytes");
            let expected = format!("at most {LOG_ENTRY_BYTES_MAX} in a log entry");
            flaw = Some(Flaw::new(log_path(sequence), found, expected));
            break;
        }
        paths.push(log_path(sequence));
    }
    let mut entries = Vec::with_capacity(paths.len());
    for (path, bytes) in paths.iter().zip(store.get_many(&paths, LOG_ENTRY_BYTES_MAX)?) {
        match document::unseal::<LogEntry>(path, &bytes) {
            Ok(entry) => entries.push(entry),
            Err(ReadFailure::Flawed(found)) => {
                flaw = Some(found);
                break;
            }
            Err(failed) => return Err(failed),
        }
    }
    let (whole, found) = check_entries(&entries);
    entries.truncate(whole);
    let flaw = found.or(flaw).map(|flaw| match flaw.remedy {
        Remedy::PutBack => flaw.mended_by(Remedy::PutEntryBack),
        Remedy::PutEntryBack | Remedy::NameOrRemove => flaw,
    });
    Ok(LogToFlaw { entries, flaw })
}

/// Reads one entry; `None` if there is none of that number.
pub(super) fn read_entry(store: &Store, sequence: Sequence) -> Result<Option<LogEntry>> {
    let path = log_path(sequence);
    match store.get(&path, LOG_ENTRY_BYTES_MAX) {
        Ok(bytes) => Ok(Some(document::unseal(&path, &bytes)?)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Holds the entries of a log against one another: numbers from 1 without a gap, each naming
/// the manifest before it, directories that are backups' and each there once.
///
/// # Errors
/// A [`Flaw`] of the first entry that does not fit.
pub fn check_log(entries: &[LogEntry]) -> Result<(), Flaw> {
    check_entries(entries).1.map_or(Ok(()), Err)
}

/// How many entries come before the first that does not fit, and what is wrong with that.
fn check_entries(entries: &[LogEntry]) -> (usize, Option<Flaw>) {
    let mut directories: BTreeMap<&str, Sequence> = BTreeMap::new();
    let mut previous: Option<&LogEntry> = None;
    for (at, entry) in entries.iter().enumerate() {
        let sequence = Sequence(at as u64 + 1);
        if let Err(flaw) = check_entry(sequence, entry, previous, &mut directories) {
            return (at, Some(flaw));
        }
        previous = Some(entry);
    }
    (entries.len(), None)
}

fn check_entry<'e>(
    sequence: Sequence,
    entry: &'e LogEntry,
    previous: Option<&LogEntry>,
    directories: &mut BTreeMap<&'e str, Sequence>,
) -> Result<(), Flaw> {
    let object = log_path(sequence);
    let found = format!("sequence {}", entry.sequence);
    expect(entry.sequence == sequence, &object, found, format!("sequence {sequence}"))?;
    check_directory(&object, entry)?;
    check_hash(&object, "the manifest", &entry.manifest)?;
    if let Some(other) = directories.insert(&entry.directory, sequence) {
        let found = format!("directory `{}`, which is backup {other}", entry.directory);
        return Err(Flaw::new(object, found, "a directory of its own"));
    }
    let before = previous.map(|previous| previous.manifest.as_str());
    let found = format!("previous manifest {:?}", entry.previous);
    let expected = format!("{before:?}, the manifest of the entry before");
    expect(entry.previous.as_deref() == before, &object, found, expected)
}

/// What a writer says that found its number taken.
pub(super) fn lost_race(sequence: Sequence, by: &str) -> Error {
    let message = format!(
        "commit backup {sequence}: another backup took that number ({by}); nothing of it was \
         touched. Run the same command again: it starts over at a new cut, behind the newer \
         backup"
    );
    Error::new(Kind::Overtaken, message)
}
