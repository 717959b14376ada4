//! Whole backups that no log entry names.
//!
//! A lost entry in the middle of a log leaves a gap. One at its end leaves nothing but the
//! backup itself, which looks like one that died just before its entry was written: nobody can
//! tell them apart, so both are told and neither is taken for garbage.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::accept::UnverifiedManifest;
use super::collection::{Collection, MANIFEST_BYTES_MAX};
use super::flaw::ReadFailure;
use super::layout::{BackupDirectory, log_path, manifest_path};
use super::manifest::{BackupKind, LogEntry};
use super::store::ObjectEntry;
use crate::error::{Kind, Result};
use crate::ids::Sequence;

/// A directory with a good manifest of a number that the log has not reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlistedBackup {
    /// Its directory.
    pub directory: String,
    /// The number that its entry would have.
    pub sequence: Sequence,
    /// What it is.
    pub kind: BackupKind,
}

impl fmt::Display for UnlistedBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnlistedBackup { directory, sequence, .. } = self;
        write!(
            f,
            "`{directory}` is a whole backup #{sequence} that no log entry names: either \
             `{}` is lost, then put it back from another copy of the collection; or its backup \
             has not got through, then the same command carries on with it",
            log_path(*sequence)
        )
    }
}

impl Collection {
    /// The whole backups behind the end of the log, by directory.
    ///
    /// One that is about to be committed may be among them.
    ///
    /// # Errors
    /// As [`log`](Self::log), and what the store says.
    pub fn unlisted_backups(&self) -> Result<Vec<UnlistedBackup>> {
        // Objects first, the log afterwards: what is committed in between is listed.
        let objects = self.store().list("")?;
        self.unlisted_among(&objects, &self.log()?)
    }

    /// The same among `objects`, which were listed before the whole `log` was read.
    pub(super) fn unlisted_among(
        &self,
        objects: &[ObjectEntry],
        log: &[LogEntry],
    ) -> Result<Vec<UnlistedBackup>> {
        let listed: BTreeSet<&str> = log.iter().map(|entry| entry.directory.as_str()).collect();
        let mut unlisted = Vec::new();
        for object in objects {
            let directory = object.path.split('/').next().unwrap_or_default();
            let is_candidate = object.path == manifest_path(directory)
                && BackupDirectory::parse(directory).is_some()
                && !listed.contains(directory);
            if !is_candidate {
                continue;
            }
            let bytes = match self.store().get(&object.path, MANIFEST_BYTES_MAX) {
                // Its backup was given up just now.
                Err(error) if error.kind() == Kind::NotFound => continue,
                read => read?,
            };
            let Some(entry) = self.entry_of(directory, &object.path, &bytes)? else { continue };
            // Of a number that the log has, it is what lost the race for it.
            if entry.sequence.0 > log.len() as u64 {
                unlisted.push(UnlistedBackup {
                    directory: entry.directory,
                    sequence: entry.sequence,
                    kind: entry.kind,
                });
            }
        }
        unlisted.sort_by(|a, b| a.directory.cmp(&b.directory));
        Ok(unlisted)
    }

    /// The entry that would name the manifest; `None` for one that no entry could.
    fn entry_of(&self, directory: &str, object: &str, bytes: &[u8]) -> Result<Option<LogEntry>> {
        let manifest = match UnverifiedManifest::parse(object, bytes) {
            Ok(manifest) => manifest,
            Err(ReadFailure::Flawed(_)) => return Ok(None),
            // Of another major version: nobody here knows that it is garbage.
            Err(ReadFailure::Failed(error)) => return Err(error),
        };
        let entry = manifest.entry_in(directory, bytes);
        Ok(manifest.check(self.id(), &entry).is_ok().then_some(entry))
    }
}
