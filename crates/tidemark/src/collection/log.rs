//! The log: which backups exist, and in which order.
//!
//! A backup exists when its entry does. Entries are numbered from 1 without
//! gaps, are created once and name the manifest of the entry before them, so
//! neither names of directories nor clocks decide the order, and the log cannot
//! fork: of two writers that want one number, one finds it taken.

use std::collections::BTreeMap;

use super::accept::{check_directory, check_hash};
use super::document;
use super::flaw::{Flaw, ReadFailure, expect};
use super::layout::{LOG_FOLDER, log_path, log_sequence};
use super::manifest::LogEntry;
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::ids::Sequence;

/// Largest entry that is read: one has a few hundred bytes.
pub const LOG_ENTRY_BYTES_MAX: u64 = 64 << 10;

/// Reads and checks the whole log of the collection in `store`, in order.
pub(super) fn read_log(store: &Store) -> Result<Vec<LogEntry>, ReadFailure> {
    let mut sequences = Vec::new();
    for object in store.list(LOG_FOLDER)? {
        match log_sequence(&object.path) {
            Some(sequence) if object.bytes > LOG_ENTRY_BYTES_MAX => {
                let found = format!("{} bytes", object.bytes);
                let expected = format!("at most {LOG_ENTRY_BYTES_MAX} in a log entry");
                return Err(Flaw::new(log_path(sequence), found, expected).into());
            }
            Some(sequence) => sequences.push(sequence),
            // Another spelling of a number would be a second entry of that number.
            None if object.path.ends_with(".json") => {
                let expected = format!("entries named like `{}`", log_path(Sequence(1)));
                return Err(Flaw::new(object.path, "a name of no entry", expected).into());
            }
            None => {}
        }
    }
    sequences.sort();
    check_contiguous(&sequences)?;
    let paths: Vec<String> = sequences.iter().map(|sequence| log_path(*sequence)).collect();
    let mut entries = Vec::with_capacity(paths.len());
    for (path, bytes) in paths.iter().zip(store.get_many(&paths, LOG_ENTRY_BYTES_MAX)?) {
        entries.push(document::unseal::<LogEntry>(path, &bytes)?);
    }
    check_log(&entries)?;
    Ok(entries)
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

fn check_contiguous(sequences: &[Sequence]) -> Result<(), Flaw> {
    for (expected, sequence) in (1..).map(Sequence).zip(sequences) {
        if *sequence != expected {
            let found = format!("nothing, while entry {sequence} is there");
            return Err(Flaw::new(log_path(expected), found, "an entry for every number from 1"));
        }
    }
    Ok(())
}

/// Holds the entries of a log against one another: numbers from 1 without a gap, each naming
/// the manifest before it, directories that are backups' and each there once.
///
/// # Errors
/// A [`Flaw`] of the first entry that does not fit.
pub fn check_log(entries: &[LogEntry]) -> Result<(), Flaw> {
    let mut directories: BTreeMap<&str, Sequence> = BTreeMap::new();
    let mut previous: Option<&LogEntry> = None;
    for (sequence, entry) in (1..).map(Sequence).zip(entries) {
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
        expect(entry.previous.as_deref() == before, &object, found, expected)?;
        previous = Some(entry);
    }
    Ok(())
}

/// What a writer says that found its number taken.
pub(super) fn lost_race(sequence: Sequence, by: &str) -> Error {
    let message = format!(
        "commit backup {sequence}: another backup took that number ({by}); nothing of it was \
         touched. Run the same command again: it builds on the newer backup"
    );
    Error::new(Kind::Overtaken, message)
}
