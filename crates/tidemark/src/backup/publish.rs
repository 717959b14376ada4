//! Making the backup exist: manifest, log entry, and the word to the source.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::cut::{Cut, ticket_mark};
use super::job::{BackupJob, JobParts};
use super::outcome::BackupOutcome;
use super::parent::selection;
use super::{MADE_BY, SELECTION};
use crate::collection::accept::totals;
use crate::collection::collection::MANIFEST_BYTES_MAX;
use crate::collection::layout::{BackupDirectory, log_path, manifest_path, part_ticket};
use crate::collection::manifest::{FormatVersion, LogEntry, Manifest, SourceLink};
use crate::error::{Error, Kind, Result};
use crate::failpoint;

impl BackupJob<'_> {
    /// Commits the backup, unless this operation has made one already, and tells the source.
    ///
    /// May be run again after a crash or an error anywhere in it. A crash before the log entry
    /// leaves garbage, after it a backup whose source keeps changes that it need not keep.
    ///
    /// # Errors
    /// [`Kind::Overtaken`] when another backup took the number: nothing of it is touched, and
    /// carrying on starts over. What the store and the source say otherwise.
    pub(super) fn publish(&self) -> Result<()> {
        let manifest = match self.find_own()? {
            Some((entry, manifest)) => {
                // Of a process that died, maybe before the entry was durable.
                self.parts.collection.store().settle(&log_path(entry.sequence))?;
                manifest
            }
            None => self.commit()?,
        };
        self.remove_strays(&manifest);
        let parts = &self.parts;
        failpoint::hit("backup.before_advance");
        parts.source.advance(parts.collection.id(), manifest.source.to)?;
        failpoint::hit("backup.after_advance");
        self.say(BackupOutcome::of(&manifest));
        Ok(())
    }

    fn commit(&self) -> Result<Manifest> {
        let cut = self.needed_cut()?;
        let manifest = self.manifest(cut)?;
        match cut.new.commit(&self.parts.collection, &manifest) {
            Ok(_) => Ok(manifest),
            Err(error) => {
                if error.kind() == Kind::Overtaken {
                    cut.spend();
                }
                Err(error)
            }
        }
    }

    /// The manifest of a cut: always the same bytes for the same parts.
    fn manifest(&self, cut: &Cut) -> Result<Manifest> {
        let tables = cut.finished_tables()?;
        let totals = totals(&tables).ok_or_else(|| {
            Error::new(Kind::Fatal, "the counts of the backup do not fit 64 bits")
        })?;
        let parts = &self.parts;
        let made_by = format!("{}/{}/{}", parts.resolved.mark, parts.id, cut.position());
        let mut extra = Map::new();
        extra.insert(SELECTION.to_owned(), Value::from(selection(&parts.options.tables)));
        extra.insert(MADE_BY.to_owned(), Value::from(made_by));
        let new = &cut.new;
        Ok(Manifest {
            format: FormatVersion::CURRENT,
            collection: new.collection,
            sequence: new.sequence,
            kind: new.kind,
            directory: new.directory.clone(),
            parent: new.parent.clone(),
            source: SourceLink {
                identity: parts.resolved.source_identity.clone(),
                from: cut.parent_position,
                to: cut.position(),
                cut: cut.id(),
            },
            cut_at: cut.cut_at,
            tables,
            totals,
            extra,
        })
    }

    /// The backup that this operation has made, in whatever process.
    ///
    /// A damaged manifest is taken for somebody else's: it cannot say, and what is built on
    /// it is refused anyway.
    pub(super) fn find_own(&self) -> Result<Option<(LogEntry, Manifest)>> {
        let parts = &self.parts;
        let before = parts.resolved.log_length;
        for entry in parts.collection.log()?.into_iter().rev() {
            if entry.sequence.0 <= before {
                break;
            }
            let manifest = match parts.collection.manifest(&entry) {
                Ok(manifest) => manifest,
                Err(error) if error.kind() == Kind::Broken => continue,
                Err(error) => return Err(error),
            };
            let made_by = manifest.extra.get(MADE_BY).and_then(Value::as_str);
            if self.is_own(made_by) {
                return Ok(Some((entry, manifest)));
            }
        }
        Ok(None)
    }

    /// Removes what this operation wrote and did not make a backup: the cuts of this process,
    /// and the parts of earlier ones, which carry the operation's mark in their names.
    ///
    /// Parts of an earlier process stay while it may still live: it was taken over when it
    /// fell silent, and could wake with its hand on the log entry. They go once a backup of
    /// this operation is in the log, since then its number is taken.
    ///
    /// # Errors
    /// When the log cannot be read, since it may name a directory of ours; and what listing
    /// gives. What cannot be deleted is left as garbage.
    pub(super) fn remove_unmade(&self) -> Result<()> {
        if self.has_past && !self.parts.catalog.has_silent_holder(self.parts.id)? {
            return self.remove_marked();
        }
        self.remove_own_cuts()
    }

    /// The same for the cuts of this process only.
    fn remove_own_cuts(&self) -> Result<()> {
        let log = self.parts.collection.log()?;
        let named: BTreeSet<&str> = log.iter().map(|entry| entry.directory.as_str()).collect();
        for cut in self.cuts().filter(|cut| !named.contains(cut.new.directory.as_str())) {
            self.remove(cut.objects());
        }
        Ok(())
    }

    /// Removes everything with the operation's mark in directories that no log entry names.
    fn remove_marked(&self) -> Result<()> {
        let JobParts { collection, resolved, .. } = &self.parts;
        // Objects first, the log afterwards: what is committed in between is named by then.
        let listed = collection.store().list("")?;
        let log = collection.log()?;
        let named: BTreeSet<&str> = log.iter().map(|entry| entry.directory.as_str()).collect();
        let mark = ticket_mark(&resolved.mark);
        let mut unmade = BTreeSet::new();
        for object in listed {
            let directory = object.path.split('/').next().unwrap_or_default();
            if BackupDirectory::parse(directory).is_none() || named.contains(directory) {
                continue;
            }
            if part_ticket(&object.path).is_some_and(|ticket| ticket.starts_with(&mark))
                || object.path == manifest_path(directory) && self.is_own_manifest(&object.path)
            {
                unmade.insert(object.path);
            }
        }
        self.remove(unmade);
        Ok(())
    }

    fn is_own_manifest(&self, path: &str) -> bool {
        let store = self.parts.collection.store();
        let manifest = store.get(path, MANIFEST_BYTES_MAX).ok();
        let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let made_by = manifest.as_ref().and_then(|manifest| manifest.get(MADE_BY)?.as_str());
        self.is_own(made_by)
    }

    /// Whether a manifest says that this operation made it.
    fn is_own(&self, made_by: Option<&str>) -> bool {
        let mark = made_by.and_then(|made_by| made_by.split('/').next());
        mark == Some(self.parts.resolved.mark.as_str())
    }

    /// Removes what attempts that were given up wrote beside the backup, and other cuts.
    ///
    /// Best effort: the backup exists, and what stays is garbage like any other.
    fn remove_strays(&self, manifest: &Manifest) {
        let parts = manifest.tables.iter().flat_map(|table| &table.parts);
        let mut live: BTreeSet<String> =
            parts.map(|part| format!("{}/{}", manifest.directory, part.name)).collect();
        live.insert(manifest_path(&manifest.directory));
        let own = self.cuts().filter(|cut| cut.new.directory == manifest.directory);
        for cut in own {
            self.remove(cut.objects().difference(&live).cloned().collect());
        }
        // Nobody can make another backup of this operation now, however it wakes.
        let _ = if self.has_past { self.remove_marked() } else { self.remove_own_cuts() };
    }

    fn remove(&self, objects: BTreeSet<String>) {
        for object in objects {
            // What cannot be removed now is found by the collection's own garbage collection.
            let _ = self.parts.collection.store().delete(&object);
        }
    }
}
