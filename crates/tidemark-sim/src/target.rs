//! The target as the real code meets it: the database behind a world in which calls fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark::database::{ExistingTable, Fence, Mark, Publish, Target, TargetShard, TargetTable};
use tidemark::ids::{Epoch, OperationId, TableName, Txn};
use tidemark::row::{RowBatch, RowStream};
use tidemark::{Kind, Result};

use crate::database::{Database, Standing};
use crate::world::{Touch, World};

/// A [`Target`] in a world.
#[derive(Clone, Debug)]
pub struct SimTarget {
    database: Database,
    world: Arc<World>,
    watch: Arc<Mutex<Watch>>,
}

/// What is known of the calls, independently of what the database remembers.
#[derive(Debug, Default)]
struct Watch {
    /// The greatest epoch that was ever shown.
    claimed: BTreeMap<OperationId, Epoch>,
    /// Shards that were read to their end since their last chunk.
    read_back: BTreeSet<(OperationId, TableName, u32)>,
    /// Number of the last chunk of each shard, counted over all, and whose it was.
    applied: BTreeMap<(OperationId, TableName, u32), (u64, u64)>,
    chunks: u64,
    /// The worker that acts, and the number of the last chunk when it opened its shard.
    worker: Option<(u64, u64)>,
}

impl SimTarget {
    /// The target over `database`.
    pub fn new(database: Database, world: Arc<World>) -> SimTarget {
        SimTarget { database, world, watch: Arc::default() }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chunks applied so far.
    pub fn chunks(&self) -> u64 {
        self.watch().chunks
    }

    /// Says which worker acts from here on, and how many chunks there were when it opened.
    pub fn enter(&self, worker: Option<(u64, u64)>) {
        self.watch().worker = worker;
    }

    fn claim(&self, fence: Fence) {
        let mut watch = self.watch();
        let claimed = watch.claimed.entry(fence.operation).or_default();
        *claimed = (*claimed).max(fence.epoch);
    }

    /// A write that went through must be of the newest holder.
    fn check_newest(&self, call: &str, fence: Fence) {
        let claimed = self.watch().claimed.get(&fence.operation).copied().unwrap_or_default();
        if fence.epoch < claimed {
            self.world.violate(format!(
                "two holders can write: {call} of epoch {} took effect, epoch {claimed} had claimed",
                fence.epoch
            ));
        }
    }

    /// A chunk may be refused as doubled only when another attempt was there meanwhile.
    fn check_refusal(&self, shard: &TargetShard) {
        let watch = self.watch();
        let Some((worker, opened)) = watch.worker else { return };
        let at = (shard.operation, shard.table.clone(), shard.shard.0);
        let last = watch.applied.get(&at).copied();
        drop(watch);
        if last.is_none_or(|(number, by)| by == worker || number <= opened) {
            self.world.violate(format!(
                "shard {} of `{}` was begun behind its mark",
                shard.shard, shard.table
            ));
        }
    }
}

impl Target for SimTarget {
    fn identity(&self) -> Result<String> {
        self.database.identity()
    }

    fn allocate_txn(&self) -> Result<Txn> {
        let pass = self.world.gate("target.allocate_txn", Touch::Writes)?;
        self.world.answer(pass, self.database.allocate_txn())
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        let pass = self.world.gate("target.existing", Touch::Reads)?;
        self.world.answer(pass, self.database.existing(name))
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        let pass = self.world.gate("target.prepare", Touch::Writes)?;
        let prepared = self.database.prepare(fence, tables);
        if prepared.is_ok() {
            self.claim(fence);
        }
        self.world.say(|| format!("target.prepare epoch {}: {prepared:?}", fence.epoch));
        self.world.answer(pass, prepared)
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        let pass = self.world.gate("target.mark", Touch::Reads)?;
        self.world.answer(pass, self.database.mark(shard))
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let pass = self.world.gate("target.apply", Touch::Writes)?;
        let stored = self.database.mark(shard).ok().flatten();
        let between = || self.world.crash_point("the middle of target.apply");
        let applied = self.database.apply_around(fence, shard, rows, mark, &between);
        self.world.say(|| {
            format!(
                "target.apply epoch {} shard {} of `{}`: {} rows, step {} rows {} done {}: {:?}",
                fence.epoch,
                shard.shard,
                shard.table,
                rows.len(),
                mark.step,
                mark.rows,
                mark.done,
                applied.as_ref().map_err(|error| error.kind())
            )
        });
        match &applied {
            Ok(()) => {
                self.check_newest("apply", fence);
                let first = (!rows.is_empty()).then(|| rows.row(0).key);
                let is_behind = stored.is_some_and(|stored| {
                    stored.step == mark.step
                        && first.is_some()
                        && first <= stored.last_key.as_deref()
                });
                if is_behind {
                    self.world.violate(format!(
                        "a chunk behind the mark of shard {} of `{}` took effect",
                        shard.shard, shard.table
                    ));
                }
                let at = (shard.operation, shard.table.clone(), shard.shard.0);
                let mut watch = self.watch();
                watch.chunks += 1;
                watch.read_back.remove(&at);
                let worker = watch.worker.map_or(0, |(worker, _)| worker);
                let number = watch.chunks;
                watch.applied.insert(at, (number, worker));
            }
            Err(error) if error.kind() == Kind::Transient => self.check_refusal(shard),
            Err(_) => {}
        }
        self.world.answer(pass, applied)
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        let pass = self.world.gate("target.seal", Touch::Writes)?;
        let sealed = self.database.seal(fence);
        if sealed.is_ok() {
            self.claim(fence);
        }
        self.world.say(|| format!("target.seal epoch {}: {sealed:?}", fence.epoch));
        self.world.answer(pass, sealed)
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let pass = self.world.gate("target.read_back", Touch::Reads)?;
        let rows = self.database.read_back(shard)?;
        let at = (shard.operation, shard.table.clone(), shard.shard.0);
        self.world.answer(pass, Ok(Box::new(ReadBack { target: self, at, rows })))
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        let pass = self.world.gate("target.publish", Touch::Writes)?;
        let was = self.database.standing(fence.operation);
        let seen_before = self.database.tables();
        let between = || {
            // A reader may look at any time.
            if self.database.look_at_tables(|tables| *tables != seen_before) {
                self.world.violate("readers see some of the tables and not the others");
            }
            self.world.crash_point("the middle of target.publish")
        };
        let published = self.database.publish_around(fence, how, &between);
        self.world.say(|| format!("target.publish epoch {}: {published:?}", fence.epoch));
        if published.is_ok() && was == Standing::Hidden {
            self.check_newest("publish", fence);
            let watch = self.watch();
            let unread = watch
                .applied
                .keys()
                .find(|at| at.0 == fence.operation && !watch.read_back.contains(*at));
            if let Some((_, table, shard)) = unread {
                self.world.violate(format!(
                    "published before the proof: shard {shard} of `{table}` was not read back"
                ));
            }
        }
        self.world.answer(pass, published)
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        let pass = self.world.gate("target.discard", Touch::Writes)?;
        let discarded = self.database.discard(fence);
        if discarded.is_ok() {
            self.claim(fence);
        }
        self.world.say(|| format!("target.discard epoch {}: {discarded:?}", fence.epoch));
        self.world.answer(pass, discarded)
    }
}

/// Notes when a shard was read to its end.
struct ReadBack<'a> {
    target: &'a SimTarget,
    at: (OperationId, TableName, u32),
    rows: Box<dyn RowStream + 'a>,
}

impl RowStream for ReadBack<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        let more = self.rows.next_batch(batch)?;
        if !more {
            self.target.watch().read_back.insert(self.at.clone());
        }
        Ok(more)
    }
}
