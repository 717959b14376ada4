//! The shards a process has open: bounded, least recently used first out.
//!
//! An open shard costs three descriptors and its reserved address space. Only
//! idle shards are closed; those in use may exceed the bound, since a cut needs
//! all its shards open at once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::GenerationNumber;
use super::shard::{Shard, ShardOptions};
use crate::env::Env;
use crate::error::Result;

/// Open shards of one database.
#[derive(Debug)]
pub(super) struct ShardCache {
    shards: PathBuf,
    open_max: usize,
    open: Mutex<OpenShards>,
}

#[derive(Debug, Default)]
struct OpenShards {
    by_generation: HashMap<GenerationNumber, OpenShard>,
    uses: u64,
}

#[derive(Debug)]
struct OpenShard {
    shard: Arc<Shard>,
    last_use: u64,
}

impl OpenShards {
    /// Closes idle shards, least recently used first, until `count` are left or all are busy.
    fn close_beyond(&mut self, count: usize) {
        while self.by_generation.len() > count {
            let idle = |entry: &OpenShard| Arc::strong_count(&entry.shard) == 1;
            let oldest = self
                .by_generation
                .iter()
                .filter(|(_, entry)| idle(entry))
                .min_by_key(|(_, e)| e.last_use);
            let Some((&oldest, _)) = oldest else { return };
            self.by_generation.remove(&oldest);
        }
    }
}

impl ShardCache {
    /// A cache over the generations in `shards`, keeping about `open_max` of them open.
    pub(super) fn new(shards: PathBuf, open_max: u32) -> ShardCache {
        ShardCache { shards, open_max: open_max.max(1) as usize, open: Mutex::default() }
    }

    /// Directory of all generations.
    pub(super) fn directory(&self) -> &Path {
        &self.shards
    }

    /// The shard, opened if it is not.
    pub(super) fn open(
        &self,
        generation: GenerationNumber,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Arc<Shard>> {
        self.get_or(generation, || Shard::open(&self.shards, generation, options, env))
    }

    /// The shard, made if it is not there.
    pub(super) fn create(
        &self,
        generation: GenerationNumber,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Arc<Shard>> {
        self.get_or(generation, || Shard::create(&self.shards, generation, options, env))
    }

    /// The shard, made as a copy of `base` if it is not there.
    pub(super) fn create_copy(
        &self,
        generation: GenerationNumber,
        base: &Shard,
        options: ShardOptions,
        env: &dyn Env,
    ) -> Result<Arc<Shard>> {
        // Copied before the cache is locked: it takes long, and others need other shards.
        let copy = Shard::create_copy(&self.shards, generation, base, options, env)?;
        self.get_or(generation, || Ok(copy))
    }

    /// Closes the shard if nobody in this process uses it.
    pub(super) fn close_idle(&self, generation: GenerationNumber) {
        let mut open = self.lock();
        let idle = open
            .by_generation
            .get(&generation)
            .is_some_and(|entry| Arc::strong_count(&entry.shard) == 1);
        if idle {
            open.by_generation.remove(&generation);
        }
    }

    fn get_or(
        &self,
        generation: GenerationNumber,
        open_shard: impl FnOnce() -> Result<Shard>,
    ) -> Result<Arc<Shard>> {
        let mut open = self.lock();
        open.uses += 1;
        let last_use = open.uses;
        if let Some(entry) = open.by_generation.get_mut(&generation) {
            entry.last_use = last_use;
            let shard = Arc::clone(&entry.shard);
            // A cut that is over leaves more of them than may stay.
            open.close_beyond(self.open_max);
            return Ok(shard);
        }
        open.close_beyond(self.open_max - 1);
        let shard = Arc::new(open_shard()?);
        let entry = OpenShard { shard: Arc::clone(&shard), last_use };
        open.by_generation.insert(generation, entry);
        Ok(shard)
    }

    fn lock(&self) -> MutexGuard<'_, OpenShards> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::env::SystemEnv;

    #[test]
    fn idle_shards_beyond_the_bound_are_closed_and_busy_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ShardCache::new(dir.path().to_owned(), 2);
        let options = ShardOptions { map_bytes: 1 << 20, lock_wait: Duration::from_secs(5) };
        let create = |number| cache.create(GenerationNumber(number), options, &SystemEnv).unwrap();
        let busy = [create(1), create(2), create(3)];
        assert_eq!(cache.lock().by_generation.len(), 3);
        drop(busy);
        let held = create(3);
        drop(create(4));
        let mut open: Vec<u64> = cache.lock().by_generation.keys().map(|n| n.0).collect();
        open.sort_unstable();
        assert_eq!(open, [3, 4]);
        drop((held, create(5), create(6), create(7)));
        drop(create(7));
        assert!(cache.lock().by_generation.len() <= 2);
    }
}
