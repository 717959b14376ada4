//! Whether a collection still holds what it says, in three levels.
//!
//! | level | looks at |
//! |---|---|
//! | `manifest` | the log, every manifest, how they follow one another, and that every object is there with its size |
//! | `parts` | also the BLAKE3 of every part |
//! | `rows` | also every row: decoded, in order, and with the digest that the manifest says |
//!
//! The first is [`check_manifests`]. It hands out a [`PartCheck`] for every part,
//! always in the same order, so that an operation can run them in parallel and
//! resume; the third level reads the parts through the restore's own reader.
//! Flaws are gathered; only what keeps us from looking is an error.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::accept::check_link;
use super::chain::{RestorePoint, point_position};
use super::collection::{Collection, size_flaw};
use super::flaw::{Flaw, ReadFailure};
use super::layout::{LOG_FOLDER, log_path, manifest_path};
use super::log::{LogToFlaw, read_log_to_flaw};
use super::manifest::{BackupKind, LogEntry, Manifest, PartEntry, TableEntry};
use crate::error::{Kind, Result};
use crate::ids::{Sequence, TableId, TableName};

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Documents, and that every object is there.
    Manifest,
    /// Also every byte of every part.
    Parts,
    /// Also every row.
    Rows,
}

impl Level {
    /// Every level, least first.
    pub const ALL: [Level; 3] = [Level::Manifest, Level::Parts, Level::Rows];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Manifest => "manifest",
            Level::Parts => "parts",
            Level::Rows => "rows",
        }
    }

    /// The level of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// What [`check_manifests`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestReport {
    /// Backups looked at.
    pub backups: u64,
    /// What is wrong, in the order of the backups.
    pub flaws: Vec<Flaw>,
    /// Every part of every readable manifest that is there with its size, in order.
    pub parts: Vec<PartCheck>,
}

/// Checks documents and presence of the chain that leads to `point`, or of all backups.
///
/// # Errors
/// What keeps us from looking: the store fails, a document is of another major version, or
/// there is no such point.
pub fn check_manifests(
    collection: &Collection,
    point: Option<&RestorePoint>,
) -> Result<ManifestReport> {
    let LogToFlaw { entries, flaw } = check_log(collection)?;
    let range = checked_range(collection, &entries, flaw.as_ref(), point)?;
    let mut report = check_entries(collection, &entries[range], &mut |_| {})?;
    report.flaws.splice(0..0, flaw);
    Ok(report)
}

/// The positions in `log` of the chain that leads to `point`, or of all backups; none for a
/// point that may lie behind the flaw of a damaged log.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such point, and what reading manifests for it gives.
pub(crate) fn checked_range(
    collection: &Collection,
    log: &[LogEntry],
    flaw: Option<&Flaw>,
    point: Option<&RestorePoint>,
) -> Result<Range<usize>> {
    let Some(point) = point else { return Ok(0..log.len()) };
    let end = match point_position(log, point, &mut |entry| collection.manifest(entry)) {
        Err(error) if error.kind() == Kind::NotFound && flaw.is_some() => return Ok(0..0),
        found => found? + 1,
    };
    let start = log[..end].iter().rposition(|entry| entry.kind == BackupKind::Full);
    Ok(start.unwrap_or(0)..end)
}

/// Checks documents and presence of neighbouring backups, and hands on every manifest that
/// can be read, in order.
///
/// # Errors
/// As [`check_manifests`].
pub(crate) fn check_entries(
    collection: &Collection,
    entries: &[LogEntry],
    readable: &mut dyn FnMut(Manifest),
) -> Result<ManifestReport> {
    let mut report = ManifestReport::default();
    let full = |entry: &LogEntry| entry.kind == BackupKind::Full;
    let mut previous: Option<Manifest> = None;
    for entry in entries {
        report.backups += 1;
        if entry.kind == BackupKind::Incremental && entry.sequence == Sequence(1) {
            let found = "an increment as the first backup";
            report.flaws.push(Flaw::new(log_path(entry.sequence), found, "a full"));
        }
        let manifest = match collection.read_manifest(entry) {
            Ok(manifest) => manifest,
            Err(failure) => {
                report.flaws.push(flaw_of(failure, &manifest_path(&entry.directory))?);
                if let Some(previous) = previous.take() {
                    readable(previous);
                }
                continue;
            }
        };
        // Without a readable parent there is nothing to hold it against; that is told already.
        if let Some(parent) = previous.as_ref().filter(|_| !full(entry)) {
            report.flaws.extend(check_link(parent, &manifest).err());
        }
        let absent = collection.presence_flaws(&manifest)?;
        let missing: BTreeSet<&str> = absent.iter().map(|flaw| flaw.object.as_str()).collect();
        for table in &manifest.tables {
            let checks = table.parts.iter().map(|part| PartCheck::new(&manifest, table, part));
            report.parts.extend(checks.filter(|check| !missing.contains(check.path.as_str())));
        }
        report.flaws.extend(absent);
        if let Some(previous) = previous.replace(manifest) {
            readable(previous);
        }
    }
    if let Some(previous) = previous {
        readable(previous);
    }
    Ok(report)
}

/// Reads the log up to its first flaw.
pub(crate) fn check_log(collection: &Collection) -> Result<LogToFlaw> {
    match read_log_to_flaw(collection.store()) {
        Ok(log) => Ok(log),
        Err(failure) => {
            let flaw = Some(flaw_of(failure, LOG_FOLDER)?);
            Ok(LogToFlaw { entries: Vec::new(), flaw })
        }
    }
}

/// A document that cannot be read because it is damaged is a flaw; anything else ends the check.
fn flaw_of(failure: ReadFailure, object: &str) -> Result<Flaw> {
    match failure {
        ReadFailure::Flawed(flaw) => Ok(flaw),
        ReadFailure::Failed(error) if error.kind() == Kind::Broken => {
            Ok(Flaw::new(object, error.message(), "a readable document"))
        }
        ReadFailure::Failed(error) => Err(error),
    }
}

/// One part to be checked: a piece of work of known size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCheck {
    /// Path inside the collection.
    pub path: String,
    /// Backup that it belongs to.
    pub sequence: Sequence,
    /// Table that it belongs to.
    pub table: TableName,
    /// Identity of that table.
    pub table_id: TableId,
    /// Bytes to be read.
    pub bytes: u64,
    /// BLAKE3 that its manifest says, hexadecimal.
    pub blake3: String,
}

impl PartCheck {
    fn new(manifest: &Manifest, table: &TableEntry, part: &PartEntry) -> PartCheck {
        PartCheck {
            path: format!("{}/{}", manifest.directory, part.name),
            sequence: manifest.sequence,
            table: table.name.clone(),
            table_id: table.id,
            bytes: part.bytes,
            blake3: part.blake3.clone(),
        }
    }

    /// Reads the part and holds its BLAKE3 against the manifest's; `None` if they agree.
    ///
    /// # Errors
    /// What keeps us from reading it. May be run again.
    pub fn run(&self, collection: &Collection) -> Result<Option<Flaw>> {
        let found = match collection.store().hash(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::NotFound => {
                return Ok(Some(size_flaw(self.path.clone(), None, self.bytes)));
            }
            Err(error) => return Err(error),
        };
        if found.bytes != self.bytes {
            return Ok(Some(size_flaw(self.path.clone(), Some(found.bytes), self.bytes)));
        }
        Ok((found.blake3 != self.blake3).then(|| {
            let expected = format!("`{}` as its manifest says", self.blake3);
            Flaw::new(&self.path, format!("BLAKE3 `{}`", found.blake3), expected)
        }))
    }
}
