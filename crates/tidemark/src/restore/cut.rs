//! Cutting a table into shards of about equal work. Pure.
//!
//! Parts record keys spread evenly over their rows; a shard's share of a part is the share
//! of those keys that lie in its range.

use crate::collection::chain::{TableChain, TableLink};
use crate::collection::manifest::PartEntry;
use crate::operation::Work;
use crate::row::KeyRange;

/// Bytes of rows per shard unless an option says otherwise.
///
/// Large enough that opening a shard costs nothing beside filling it, small enough that two
/// cores have several each and the last one to end is short.
const SHARD_BYTES: u64 = 64 << 20;

/// Shards per table that are chosen without being asked for; more help nobody on one machine.
const SHARDS_CHOSEN_MAX: u64 = 64;

/// Shards for a table of `row_bytes`.
pub(super) fn shard_count(row_bytes: u64) -> u32 {
    row_bytes.div_ceil(SHARD_BYTES).clamp(1, SHARDS_CHOSEN_MAX) as u32
}

/// At most `count` ranges that cover all keys, even by the bytes of the link that carries the
/// table whole. Fewer when the parts do not tell so many keys apart.
pub(super) fn cut(chain: &TableChain<'_>, count: u32) -> Vec<KeyRange> {
    let whole = chain.links.first().expect("a table's chain begins where it is whole");
    let mut samples: Vec<(&[u8], u64)> = Vec::new();
    for part in &whole.entry.parts {
        let weight = part.row_bytes / (part.key_samples.len() as u64).max(1);
        samples.extend(part.key_samples.iter().map(|key| (key.as_slice(), weight.max(1))));
    }
    let total: u64 = samples.iter().map(|(_, weight)| weight).sum();
    let mut splits: Vec<Vec<u8>> = Vec::new();
    let mut before = 0;
    for (at, (key, weight)) in samples.iter().enumerate() {
        let wanted = splits.len() as u64 + 1;
        let is_due =
            u128::from(before) * u128::from(count) >= u128::from(total) * u128::from(wanted);
        let ascends = splits.last().is_none_or(|last| last.as_slice() < *key);
        if at > 0 && wanted < u64::from(count) && is_due && ascends {
            splits.push(key.to_vec());
        }
        before += weight;
    }
    KeyRange::between(&splits)
}

/// Rows and bytes of one link that lie in `range`, estimated.
pub(super) fn work_in(link: &TableLink<'_>, range: &KeyRange) -> Work {
    let mut work = Work::default();
    for part in &link.entry.parts {
        work += part_work_in(part, range);
    }
    work
}

fn part_work_in(part: &PartEntry, range: &KeyRange) -> Work {
    if part.key_samples.is_empty() {
        let inside = range.contains(&part.first_key);
        return if inside {
            Work { rows: part.rows, bytes: part.row_bytes }
        } else {
            Work::default()
        };
    }
    let inside = part.key_samples.iter().filter(|key| range.contains(key)).count() as u128;
    let all = part.key_samples.len() as u128;
    let share = |whole: u64| (u128::from(whole) * inside / all) as u64;
    Work { rows: share(part.rows), bytes: share(part.row_bytes) }
}
