//! The proof of a backup: its parts are read back before its log entry is made.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::job::{BackupJob, lock};
use crate::collection::Collection;
use crate::collection::manifest::{PartEntry, TableEntry, TableMode};
use crate::error::{Error, Kind, Result};
use crate::executor::Stop;
use crate::ids::TableName;
use crate::row::Digest;

/// Threads that read back: one waits for the store while the other hashes.
const THREADS: usize = 2;

/// Bytes between two looks at whether to stop.
const PIECE_BYTES: u64 = 1 << 20;

impl BackupJob<'_> {
    /// Reads every part back and compares whole tables with the source's digests.
    ///
    /// # Errors
    /// [`Kind::Mismatch`], naming table and part: the cut is spent then, and carrying on
    /// starts over. [`Kind::Transient`] when asked to stop.
    pub(super) fn prove(&self, stop: &Stop, advanced: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let Some(cut) = self.live_cut() else {
            return match self.find_own()? {
                // It was proven before its log entry was made.
                Some(_) => Ok(()),
                None => self.needed_cut().map(|_| ()),
            };
        };
        let tables = cut.finished_tables()?;
        let total: u64 = tables.iter().flat_map(|table| &table.parts).map(|part| part.bytes).sum();
        // The progress knows the proof by the weight that was declared for it.
        let weight = self.parts.resolved.proof_bytes;
        let weighted = |bytes: u64| {
            let share = u128::from(bytes) * u128::from(weight) / u128::from(total.max(1));
            advanced(u64::try_from(share).unwrap_or(u64::MAX));
        };
        let proven = compare_digests(&tables).and_then(|()| {
            let rehash =
                Rehash { collection: &self.parts.collection, directory: &cut.new.directory, stop };
            rehash.run(&tables, &weighted)
        });
        proven.inspect_err(|error| {
            if error.kind() == Kind::Mismatch {
                cut.spend();
            }
        })
    }
}

/// Holds the rows that were written against what the source says it has.
fn compare_digests(tables: &[TableEntry]) -> Result<()> {
    for table in tables.iter().filter(|table| table.mode == TableMode::Whole) {
        let written: Digest = table.parts.iter().map(|part| part.digest).sum();
        if table.state.is_some_and(|state| state != written) {
            let state = table.state.unwrap_or_default();
            let message = format!(
                "table `{}`: the parts hold rows with digest {written}, the source had {state} \
                 at the cut",
                table.name
            );
            return Err(Error::new(Kind::Mismatch, message));
        }
    }
    Ok(())
}

/// Reading parts back in a few threads.
struct Rehash<'a> {
    collection: &'a Collection,
    directory: &'a str,
    stop: &'a Stop,
}

impl Rehash<'_> {
    fn run(&self, tables: &[TableEntry], advanced: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let parts: Vec<(&TableName, &PartEntry)> = tables
            .iter()
            .flat_map(|table| table.parts.iter().map(|part| (&table.name, part)))
            .collect();
        let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
        let failed: Mutex<Option<Error>> = Mutex::default();
        let work = || {
            while let Some((table, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let checked = self.check_part(table, part, &mut |bytes| {
                    advanced(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
                    lock(&failed).is_none()
                });
                if let Err(error) = checked {
                    lock(&failed).get_or_insert(error);
                }
                if lock(&failed).is_some() {
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS.min(parts.len()) {
                scope.spawn(work);
            }
        });
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Reads one part; `heard` takes bytes as they are read and says whether to go on.
    fn check_part(
        &self,
        table: &TableName,
        part: &PartEntry,
        heard: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let path = format!("{}/{}", self.directory, part.name);
        let mismatch = |found: String| {
            let message = format!(
                "table `{table}`: part `{path}` reads back as {found}, {} bytes with BLAKE3 {} \
                 were written",
                part.bytes, part.blake3
            );
            Error::new(Kind::Mismatch, message)
        };
        let mut hasher = match self.collection.store().hasher(&path) {
            Ok(hasher) => hasher,
            Err(error) if error.kind() == Kind::NotFound => {
                return Err(mismatch("nothing".to_owned()));
            }
            Err(error) => return Err(error),
        };
        while let Some(bytes) = hasher.read(PIECE_BYTES)? {
            if self.stop.is_asked() || !heard(bytes) {
                return Err(Error::new(Kind::Transient, "the proof was asked to stop"));
            }
        }
        let found = hasher.finish();
        if found.bytes == part.bytes && found.blake3 == part.blake3 {
            return Ok(());
        }
        Err(mismatch(format!("{} bytes with BLAKE3 {}", found.bytes, found.blake3)))
    }
}
