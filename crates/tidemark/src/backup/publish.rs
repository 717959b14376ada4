//! Making the backup exist: manifest, log entry, and the word to the source.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::cut::Cut;
use super::job::BackupJob;
use super::outcome::BackupOutcome;
use super::parent::selection;
use super::{MADE_BY, SELECTION};
use crate::collection::accept::totals;
use crate::collection::layout::manifest_path;
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
            Some((_, manifest)) => manifest,
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
            let mark = made_by.and_then(|made_by| made_by.split('/').next());
            if mark == Some(parts.resolved.mark.as_str()) {
                return Ok(Some((entry, manifest)));
            }
        }
        Ok(None)
    }

    /// Removes what the cuts of this process wrote, as far as no log entry leads there.
    ///
    /// Best effort: what stays is garbage like any other. Nothing is removed while the log
    /// cannot be read, since it may name a directory of ours.
    pub(super) fn remove_own_garbage(&self) {
        let Ok(log) = self.parts.collection.log() else { return };
        let named: BTreeSet<&str> = log.iter().map(|entry| entry.directory.as_str()).collect();
        for cut in self.cuts().filter(|cut| !named.contains(cut.new.directory.as_str())) {
            self.remove(cut.objects());
        }
    }

    /// Removes what attempts that were given up wrote beside the backup, and other cuts.
    fn remove_strays(&self, manifest: &Manifest) {
        let parts = manifest.tables.iter().flat_map(|table| &table.parts);
        let mut live: BTreeSet<String> =
            parts.map(|part| format!("{}/{}", manifest.directory, part.name)).collect();
        live.insert(manifest_path(&manifest.directory));
        let own = self.cuts().filter(|cut| cut.new.directory == manifest.directory);
        for cut in own {
            self.remove(cut.objects().difference(&live).cloned().collect());
        }
        self.remove_own_garbage();
    }

    fn remove(&self, objects: BTreeSet<String>) {
        for object in objects {
            // What cannot be removed now is found by the collection's own garbage collection.
            let _ = self.parts.collection.store().delete(&object);
        }
    }
}
