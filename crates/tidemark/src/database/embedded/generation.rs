//! Generations of shards: making them, naming them, removing them.

use std::fs;
use std::sync::Arc;

use super::gate::ExclusiveGate;
use super::record::{GenerationNumber, GenerationRecord, TableRecord};
use super::shard::{self, Shard};
use super::{EmbeddedDatabase, SHARDS_MAX};
use crate::database::scratch::remove_dead_scratch;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::TableName;
use crate::lmdb::{FileLock, LockMode, WriteTxn, sync_directory};

const GARBAGE_PREFIX: &str = "garbage-";

impl EmbeddedDatabase {
    /// Numbers for `count` new generations, recorded as `state` by the caller's transaction.
    ///
    /// [`create_shard`](Self::create_shard) makes each of them once the transaction is
    /// committed. A crash leaves records: of an operation, which completes or discards them;
    /// of a builder, which are garbage.
    ///
    /// # Errors
    /// [`Kind::Usage`] when more than [`SHARDS_MAX`] were unfinished at a time.
    pub(crate) fn allocate_generations(
        &self,
        txn: &mut WriteTxn<'_>,
        count: u32,
        state: &GenerationRecord,
    ) -> Result<Vec<GenerationNumber>> {
        let unfinished = |state: &GenerationRecord| match state {
            GenerationRecord::Building | GenerationRecord::Owned { .. } => true,
            GenerationRecord::Live | GenerationRecord::Garbage => false,
        };
        let all = self.catalog().generations(txn)?;
        let before = all.iter().filter(|(_, state)| unfinished(state)).count() as u32;
        if before.saturating_add(count) > SHARDS_MAX {
            return Err(too_many_shards(before, count));
        }
        let mut database = self.catalog().database(txn)?;
        let first = database.next_generation;
        database.next_generation += u64::from(count);
        self.catalog().put_database(txn, &database)?;
        let numbers: Vec<_> = (first..database.next_generation).map(GenerationNumber).collect();
        for number in &numbers {
            self.catalog().put_generation(txn, *number, Some(state))?;
        }
        Ok(numbers)
    }

    /// Makes `count` empty shards that live as long as their builder, or until they are named.
    ///
    /// Dropping them without [`switch_table`](Self::switch_table), or dying, makes them garbage.
    pub(crate) fn build_generations(&self, count: u32) -> Result<Vec<Arc<Shard>>> {
        let mut txn = self.write_catalog()?;
        let numbers = self.allocate_generations(&mut txn, count, &GenerationRecord::Building)?;
        // Locked before anybody can see the records, who would take them for a dead builder's.
        let mut locks = Vec::new();
        for number in &numbers {
            let dir = shard::directory(self.shards.directory(), *number);
            fs::create_dir_all(&dir)
                .map_err(|cause| Error::io(format!("create `{}`", dir.display()), cause))?;
            let path = shard::in_use_path(&dir);
            locks.push(FileLock::acquire(&path, LockMode::Shared, self.env(), self.lock_wait())?);
        }
        txn.commit()?;
        // Each shard takes its own lock before the first one goes.
        numbers.iter().map(|number| self.create_shard(*number)).collect()
    }

    /// Makes `name` stand for `table`, or for nothing; visible when the transaction commits.
    ///
    /// Generations that it names for the first time become live, those that it no longer
    /// names become garbage. Only alone inside the gate: no writer may be on its way to an old
    /// generation.
    ///
    /// # Errors
    /// [`Kind::Usage`] for more than [`SHARDS_MAX`] shards; [`Kind::Broken`] for a generation
    /// that was not made for it. The transaction must be dropped.
    pub(crate) fn switch_table(
        &self,
        _alone: &ExclusiveGate,
        txn: &mut WriteTxn<'_>,
        name: &TableName,
        table: Option<&TableRecord>,
    ) -> Result<()> {
        let generations = |table: Option<&TableRecord>| -> Vec<GenerationNumber> {
            table.iter().flat_map(|table| &table.shards).map(|shard| shard.generation).collect()
        };
        let before = generations(self.catalog().table(txn, name)?.as_ref());
        let after = generations(table);
        for number in after.iter().filter(|number| !before.contains(number)) {
            match self.catalog().generation(txn, *number)? {
                Some(GenerationRecord::Building | GenerationRecord::Owned { .. }) => {}
                found => {
                    let message = format!(
                        "table `{name}` cannot take shard generation {number}: it is {found:?}, \
                         expected one that was built for it"
                    );
                    return Err(Error::new(Kind::Broken, message));
                }
            }
            self.catalog().put_generation(txn, *number, Some(&GenerationRecord::Live))?;
        }
        let left = before.iter().filter(|number| !after.contains(number));
        self.mark_garbage(txn, left.copied())?;

        let mut database = self.catalog().database(txn)?;
        let live = (u64::from(database.live_shards) + after.len() as u64)
            .saturating_sub(before.len() as u64);
        database.live_shards = u32::try_from(live)
            .ok()
            .filter(|live| *live <= SHARDS_MAX)
            .ok_or_else(|| too_many_shards(database.live_shards, after.len() as u32))?;
        self.catalog().put_database(txn, &database)?;
        self.catalog().put_table(txn, name, table)?;
        failpoint::hit("generation.switched");
        Ok(())
    }

    /// Gives generations up; they go after their last reader.
    pub(crate) fn mark_garbage(
        &self,
        txn: &mut WriteTxn<'_>,
        generations: impl IntoIterator<Item = GenerationNumber>,
    ) -> Result<()> {
        for number in generations {
            self.catalog().put_generation(txn, number, Some(&GenerationRecord::Garbage))?;
        }
        Ok(())
    }

    /// Removes what nobody names any more, as far as it can be done now.
    ///
    /// Garbage costs space and nothing else, so that what failed here is left to the next
    /// time, and only told to whoever listens.
    pub(crate) fn tidy(&self) {
        if let Err(error) = self.collect_garbage() {
            tracing::warn!(database = %self.dir().display(), ?error, "garbage stays for now");
        }
    }

    /// Removes generations that nobody names and nobody reads any more, what their removal
    /// left behind earlier, and the scratch files of dead loads. Idempotent; cheap when there
    /// is nothing to do.
    ///
    /// # Errors
    /// [`Kind::Held`] when another process keeps the catalog locked; nothing is lost then.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let removable = |(number, state): (GenerationNumber, GenerationRecord)| match state {
            GenerationRecord::Building | GenerationRecord::Garbage => Some(number),
            GenerationRecord::Owned { .. } | GenerationRecord::Live => None,
        };
        self.catalog_environment().clear_stale_readers()?;
        let all = self.catalog().generations(&*self.catalog().read()?)?;
        let candidates: Vec<_> = all.into_iter().filter_map(removable).collect();
        if !candidates.is_empty() {
            let mut txn = self.write_catalog()?;
            let mut moved = false;
            for number in candidates {
                self.shards.close_idle(number);
                // It may have become live, or gone, since the list was made.
                let state = self.catalog().generation(&txn, number)?;
                let still = state.and_then(|state| removable((number, state))).is_some();
                if still && self.move_aside(number)? {
                    self.catalog().put_generation(&mut txn, number, None)?;
                    moved = true;
                }
            }
            if moved {
                // Or a directory comes back after its record, the only one that names it, went.
                sync_directory(&self.scratch_dir())?;
                sync_directory(self.shards.directory())?;
            }
            txn.commit()?;
        }
        remove_dead_scratch(&self.scratch_dir())?;
        self.empty_scratch()
    }

    /// Moves the directory of a generation to the scratch directory unless it is in use.
    fn move_aside(&self, number: GenerationNumber) -> Result<bool> {
        let dir = shard::directory(self.shards.directory(), number);
        if !dir.exists() {
            return Ok(true);
        }
        let path = shard::in_use_path(&dir);
        let Some(_alone) = FileLock::try_acquire(&path, LockMode::Exclusive)? else {
            return Ok(false);
        };
        let aside = self.scratch_dir().join(format!("{GARBAGE_PREFIX}{number}"));
        failpoint::hit("generation.before_move_aside");
        fs::rename(&dir, &aside)
            .map_err(|cause| Error::io(format!("move `{}` aside", dir.display()), cause))?;
        failpoint::hit("generation.after_move_aside");
        Ok(true)
    }

    fn empty_scratch(&self) -> Result<()> {
        let scratch = self.scratch_dir();
        let looking = |cause| Error::io(format!("look into `{}`", scratch.display()), cause);
        for entry in fs::read_dir(&scratch).map_err(looking)? {
            let entry = entry.map_err(looking)?;
            if entry.file_name().to_string_lossy().starts_with(GARBAGE_PREFIX) {
                match fs::remove_dir_all(entry.path()) {
                    // Another process is faster at the same work.
                    Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
                    removed => removed.map_err(|cause| {
                        Error::io(format!("remove `{}`", entry.path().display()), cause)
                    })?,
                }
            }
        }
        Ok(())
    }
}

fn too_many_shards(before: u32, more: u32) -> Error {
    let message = format!(
        "{before} shards and {more} more are too many: an embedded database has at most \
         {SHARDS_MAX}; use fewer shards per table"
    );
    Error::new(Kind::Usage, message)
}
