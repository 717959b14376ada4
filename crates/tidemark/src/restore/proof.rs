//! The proof: what the target really holds, read back, against what the chain says.
//!
//! Per shard and key sub-range, the digest of the rows read back must be the one the mark
//! accumulated from the chain. Per table, the sum must be the digest that the source
//! recorded at that cut; where a backup has none, the chain is folded once more without
//! writing anything. A mismatch names table, shard and key range.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::database::{Mark, Target, TargetShard, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::executor::Stop;
use crate::ids::TableName;
use crate::row::digest::RowHasher;
use crate::row::value::hex;
use crate::row::{Digest, RowBatch, RowStream};

/// Threads that read back at once; each is bound by one core and one shard's pages.
const READERS_MAX: usize = 8;

/// What was proven of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProof {
    /// Name in the target.
    pub table: TableName,
    /// Rows and digest, as read back.
    pub digest: Digest,
    /// Against the digest that the source recorded at the cut.
    pub equals_source: bool,
    /// Against the fold of the chain.
    pub equals_chain: bool,
}

/// One shard to be read back.
pub(super) struct ShardClaim<'a> {
    pub(super) table: &'a TargetTable,
    pub(super) shard: TargetShard,
    /// Its mark; `None` if nothing was to be applied to it.
    pub(super) mark: Option<Mark>,
}

impl ShardClaim<'_> {
    /// Rows that its mark says it holds.
    pub(super) fn rows(&self) -> u64 {
        let ranges = self.mark.iter().flat_map(|mark| &mark.ranges);
        ranges.map(|range| range.digest.rows).sum()
    }
}

/// How many shards are read back at once on this machine.
pub(super) fn readers_max() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(READERS_MAX)
}

/// Reads shards back.
#[derive(Clone, Copy)]
pub(super) struct ReadingBack<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) stop: &'a Stop,
    /// Is told how many rows were read so far.
    pub(super) advanced: &'a (dyn Fn(u64) + Sync),
}

impl ReadingBack<'_> {
    /// Reads all shards back, at most `readers_max` at once, and returns their digests in order.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] naming table, shard and key range; [`Kind::Transient`] when stopped.
    pub(super) fn run(&self, claims: &[ShardClaim<'_>], readers_max: usize) -> Result<Vec<Digest>> {
        let mut digests = Vec::with_capacity(claims.len());
        let rows_read = AtomicU64::new(0);
        let mut rest = claims;
        while let Some(first) = rest.first() {
            let same = |claim: &&ShardClaim<'_>| claim.shard.table == first.shard.table;
            let (of_table, after) = rest.split_at(rest.iter().take_while(same).count());
            let (operation, name) = (first.shard.operation, &first.shard.table);
            match self.target.read_back_table(operation, name, readers_max)? {
                Some(streams) => {
                    digests.extend(self.run_table(of_table, streams, &rows_read)?);
                    rest = after;
                }
                // Then of no other table either.
                None => {
                    digests.extend(self.run_shards(rest, readers_max, &rows_read)?);
                    break;
                }
            }
        }
        Ok(digests)
    }

    /// Reads a table as it lies, each stream by a thread, and assigns its rows to shards.
    fn run_table(
        &self,
        claims: &[ShardClaim<'_>],
        streams: Vec<Box<dyn RowStream + '_>>,
        rows_read: &AtomicU64,
    ) -> Result<Vec<Digest>> {
        let read = |mut rows: Box<dyn RowStream + '_>| -> Result<Vec<Vec<Digest>>> {
            let mut hasher = RowHasher::new(claims[0].table.digest_id);
            let mut sums = empty_sums(claims);
            let mut batch = RowBatch::new();
            while rows.next_batch(&mut batch)? {
                if self.stop.is_asked() {
                    return Err(stopped());
                }
                for row in batch.iter() {
                    let (shard, range) = place_of(claims, row.key);
                    sums[shard][range] += hasher.row(row.key, row.payload);
                }
                let read = batch.len() as u64;
                (self.advanced)(rows_read.fetch_add(read, Ordering::Relaxed) + read);
            }
            Ok(sums)
        };
        let read: Vec<Result<Vec<Vec<Digest>>>> = std::thread::scope(|scope| {
            let read = &read;
            let threads: Vec<_> =
                streams.into_iter().map(|stream| scope.spawn(move || read(stream))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no reader panics")).collect()
        });
        let mut sums = empty_sums(claims);
        for part in read {
            for (shard, part) in sums.iter_mut().zip(part?) {
                shard.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        claims.iter().zip(sums).map(|(claim, sums)| check_sums(claim, &sums)).collect()
    }

    fn run_shards(
        &self,
        claims: &[ShardClaim<'_>],
        readers_max: usize,
        rows_read: &AtomicU64,
    ) -> Result<Vec<Digest>> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Digest>>>> =
            Mutex::new(claims.iter().map(|_| None).collect());
        let read_on = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(claim) = claims.get(at) else { return };
                let count = |read: u64| {
                    (self.advanced)(rows_read.fetch_add(read, Ordering::Relaxed) + read);
                };
                let digest = read_shard(self.target, claim, self.stop, &count);
                let failed = digest.is_err();
                results.lock().expect("no reader panics")[at] = Some(digest);
                if failed {
                    next.store(claims.len(), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..readers_max.min(claims.len()) {
                scope.spawn(read_on);
            }
            read_on();
        });
        let results = results.into_inner().expect("no reader panics");
        results.into_iter().flatten().collect()
    }
}

fn read_shard(
    target: &dyn Target,
    claim: &ShardClaim<'_>,
    stop: &Stop,
    count: &dyn Fn(u64),
) -> Result<Digest> {
    let mut hasher = RowHasher::new(claim.table.digest_id);
    let mut rows = target.read_back(&claim.shard)?;
    let mut batch = RowBatch::new();
    let mut ranges = RangeSums::new(claim);
    while rows.next_batch(&mut batch)? {
        if stop.is_asked() {
            return Err(stopped());
        }
        hasher.rows(batch.iter(), |row, digest| ranges.add(row.key, digest))?;
        count(batch.len() as u64);
    }
    ranges.finish()
}

fn stopped() -> Error {
    Error::new(Kind::Transient, "the proof was asked to stop")
}

/// A sum for each range of each shard's mark; one for a shard without any.
fn empty_sums(claims: &[ShardClaim<'_>]) -> Vec<Vec<Digest>> {
    let ranges = |claim: &ShardClaim<'_>| claim.mark.as_ref().map_or(0, |mark| mark.ranges.len());
    claims.iter().map(|claim| vec![Digest::default(); ranges(claim).max(1)]).collect()
}

/// The shard of a key, and the range of its mark; a key beyond all belongs to the last one.
fn place_of(claims: &[ShardClaim<'_>], key: &[u8]) -> (usize, usize) {
    let begins =
        |claim: &ShardClaim<'_>| *claim.table.shards[claim.shard.shard.0 as usize].start <= *key;
    let shard = claims.partition_point(begins).saturating_sub(1);
    let ranges = claims[shard].mark.as_ref().map_or(&[][..], |mark| &mark.ranges);
    let range = ranges.partition_point(|range| *range.last_key < *key);
    (shard, range.min(ranges.len().saturating_sub(1)))
}

/// Compares what was summed of one shard with its mark.
fn check_sums(claim: &ShardClaim<'_>, sums: &[Digest]) -> Result<Digest> {
    let mut ranges = RangeSums::new(claim);
    ranges.total = sums.iter().copied().sum();
    if let Some(mark) = claim.mark.as_ref().filter(|mark| !mark.ranges.is_empty()) {
        for sum in sums {
            ranges.sum = *sum;
            ranges.close_range(mark)?;
        }
    }
    ranges.finish()
}

/// Sums what is read back along the ranges of a mark.
struct RangeSums<'a> {
    claim: &'a ShardClaim<'a>,
    range: usize,
    sum: Digest,
    total: Digest,
}

impl<'a> RangeSums<'a> {
    fn new(claim: &'a ShardClaim<'a>) -> RangeSums<'a> {
        RangeSums { claim, range: 0, sum: Digest::default(), total: Digest::default() }
    }

    fn add(&mut self, key: &[u8], row: Digest) -> Result<()> {
        while let Some(mark) = &self.claim.mark
            && mark.ranges.get(self.range).is_some_and(|range| *range.last_key < *key)
            && self.range + 1 < mark.ranges.len()
        {
            self.close_range(mark)?;
        }
        self.sum += row;
        self.total += row;
        Ok(())
    }

    fn finish(mut self) -> Result<Digest> {
        if let Some(mark) = &self.claim.mark {
            while self.range < mark.ranges.len() {
                self.close_range(mark)?;
            }
            if mark.ranges.is_empty() && self.total != Digest::default() {
                return Err(self.mismatch("an empty shard", self.total, Digest::default()));
            }
        }
        Ok(self.total)
    }

    fn close_range(&mut self, mark: &Mark) -> Result<()> {
        let range = &mark.ranges[self.range];
        if self.sum != range.digest {
            let first = self.range.checked_sub(1).map_or_else(
                || "its first key".to_owned(),
                |before| format!("after 0x{}", hex(&mark.ranges[before].last_key)),
            );
            let last = if self.range + 1 == mark.ranges.len() {
                "its last key".to_owned()
            } else {
                format!("0x{}", hex(&range.last_key))
            };
            let place = format!("keys from {first} to {last}");
            return Err(self.mismatch(&place, self.sum, range.digest));
        }
        self.range += 1;
        self.sum = Digest::default();
        Ok(())
    }

    fn mismatch(&self, place: &str, found: Digest, expected: Digest) -> Error {
        let TargetShard { operation, table, shard } = &self.claim.shard;
        let message = format!(
            "restore {operation}: shard {shard} of `{table}`, {place}: read back {found}, the chain \
             says {expected}; nothing was published, cancel it and restore anew"
        );
        Error::new(Kind::Mismatch, message)
    }
}
