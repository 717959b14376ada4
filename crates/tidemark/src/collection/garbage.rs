//! What crashes and lost races leave behind, and its removal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::collection::Collection;
use super::layout::{BackupDirectory, COLLECTION_FILE, LOG_FOLDER, PROBE_FOLDER, manifest_path};
use super::store::ObjectEntry;
use super::unlisted::UnlistedBackup;
use crate::env::{Env, WallTime};
use crate::error::Result;

/// Proposed grace: longer than any backup should take.
pub const GARBAGE_GRACE_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What becomes of whole backups that no log entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// They stay: their entry may be lost, and come back.
    Kept,
    /// They are garbage like all else that no entry names.
    Removed,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whole backups that no log entry names, and that were kept.
    pub kept: Vec<UnlistedBackup>,
}

impl Collection {
    /// The objects of ours that no log entry leads to and that are older than `grace`,
    /// sorted by path.
    ///
    /// A backup's directory without a log entry is one thing: while anything in it is
    /// younger, all of it may belong to a backup that is still running. A whole backup behind
    /// the end of the log is garbage only where `unlisted` says so: its entry may be lost. What
    /// is not named like an object of ours is never listed.
    ///
    /// # Errors
    /// [`Kind::Broken`](crate::Kind::Broken) when the log or any manifest is damaged: then
    /// nobody knows what is garbage.
    pub fn garbage(
        &self,
        grace: Duration,
        unlisted: Unlisted,
        env: &dyn Env,
    ) -> Result<Vec<ObjectEntry>> {
        Ok(self.sort_out(grace, unlisted, env)?.0)
    }

    /// Garbage, and the whole backups that are kept although no log entry names them.
    fn sort_out(
        &self,
        grace: Duration,
        unlisted: Unlisted,
        env: &dyn Env,
    ) -> Result<(Vec<ObjectEntry>, Vec<UnlistedBackup>)> {
        // Objects first, the log afterwards: what is committed in between is not garbage.
        let mut objects = self.store().list("")?;
        let log = self.log()?;
        let kept = match unlisted {
            Unlisted::Kept => self.unlisted_among(&objects, &log)?,
            Unlisted::Removed => Vec::new(),
        };
        let is_kept = |object: &ObjectEntry| {
            let top = object.path.split('/').next().unwrap_or_default();
            kept.iter().any(|kept| kept.directory == top)
        };
        objects.retain(|object| !is_kept(object));
        let mut live = BTreeMap::new();
        for entry in log {
            let manifest = self.manifest(&entry)?;
            let parts = manifest.tables.iter().flat_map(|table| &table.parts);
            let mut paths: BTreeSet<String> =
                parts.map(|part| format!("{}/{}", entry.directory, part.name)).collect();
            paths.insert(manifest_path(&entry.directory));
            live.insert(entry.directory, paths);
        }
        Ok((find_garbage(objects, &live, grace, env.wall_time()), kept))
    }

    /// Removes what [`garbage`](Self::garbage) lists; `told` hears of each object that is gone.
    ///
    /// A crash in the middle leaves less garbage. `grace` must exceed the time that any
    /// backup pauses between two of its objects.
    ///
    /// # Errors
    /// As [`garbage`](Self::garbage); and what the store says, with some objects removed.
    pub fn remove_garbage(
        &self,
        grace: Duration,
        unlisted: Unlisted,
        env: &dyn Env,
        told: &mut dyn FnMut(&ObjectEntry),
    ) -> Result<Removed> {
        let (garbage, kept) = self.sort_out(grace, unlisted, env)?;
        let mut removed = Removed { kept, ..Removed::default() };
        for object in garbage {
            self.store().delete(&object.path)?;
            removed.objects += 1;
            removed.bytes += object.bytes;
            told(&object);
        }
        Ok(removed)
    }
}

/// `live` has, per directory of a backup that exists, the paths of its objects.
fn find_garbage(
    objects: Vec<ObjectEntry>,
    live: &BTreeMap<String, BTreeSet<String>>,
    grace: Duration,
    now: WallTime,
) -> Vec<ObjectEntry> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let old = |modified: WallTime| modified.0.saturating_add(grace_ms) <= now.0;
    let mut garbage = Vec::new();
    let mut unnamed: BTreeMap<String, Vec<ObjectEntry>> = BTreeMap::new();
    for object in objects {
        let top = object.path.split('/').next().unwrap_or_default().to_owned();
        let ours = match live.get(&top) {
            Some(paths) => !paths.contains(&object.path),
            None if BackupDirectory::parse(&top).is_some() => {
                unnamed.entry(top).or_default().push(object);
                continue;
            }
            None if top == PROBE_FOLDER => true,
            None => object.is_draft() && (top == LOG_FOLDER || top.starts_with(COLLECTION_FILE)),
        };
        if ours && old(object.modified) {
            garbage.push(object);
        }
    }
    for objects in unnamed.into_values() {
        if objects.iter().all(|object| old(object.modified)) {
            garbage.extend(objects);
        }
    }
    garbage.sort_by(|a, b| a.path.cmp(&b.path));
    garbage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str, modified: u64) -> ObjectEntry {
        ObjectEntry { path: path.to_owned(), bytes: 1, modified: WallTime(modified) }
    }

    #[test]
    fn only_what_is_ours_old_and_unnamed_is_garbage() {
        let directory = "20260131093000Z_full";
        let lost = "20260131093001Z_full";
        let running = "20260131093002Z_incremental";
        let named = format!("{directory}/public.t/00000-a.parquet");
        let live = BTreeMap::from([(directory.to_owned(), BTreeSet::from([named.clone()]))]);
        let other_attempt = format!("{directory}/public.t/00000-b.parquet");
        let young_attempt = format!("{directory}/public.t/00000-c.parquet");
        let objects = vec![
            object("README.txt", 0),
            object("collection.json", 0),
            object("collection.json#1", 0),
            object("log/000001.json", 0),
            object("log/000002.json#3", 0),
            object("mine#1", 0),
            object("probe/00", 0),
            object(&named, 0),
            object(&other_attempt, 0),
            object(&young_attempt, 95),
            object(&format!("{lost}/manifest.json"), 10),
            object(&format!("{lost}/public.t/00000-a.parquet#1"), 0),
            object(&format!("{running}/public.t/00000-a.parquet"), 0),
            object(&format!("{running}/public.t/00001-a.parquet"), 91),
        ];
        let found = find_garbage(objects, &live, Duration::from_millis(10), WallTime(100));
        let paths: Vec<&str> = found.iter().map(|object| object.path.as_str()).collect();
        let expected = [
            other_attempt.as_str(),
            &format!("{lost}/manifest.json"),
            &format!("{lost}/public.t/00000-a.parquet#1"),
            "collection.json#1",
            "log/000002.json#3",
            "probe/00",
        ];
        assert_eq!(paths, expected);
    }
}
