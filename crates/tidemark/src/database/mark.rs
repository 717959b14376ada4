//! A shard's durable position, stored by the target in the chunk's own transaction.
//!
//! Layout, version 1; integers little-endian, `varint` is LEB128:
//!
//! | bytes | |
//! |---|---|
//! | 1 | version |
//! | 4 | step, `u32` |
//! | 1 | flags: 1 the step is done, 2 a last key follows |
//! | 8, 8 | rows and bytes applied in this step, `u64` |
//! | varint, n | last key applied in this step, if flagged |
//! | varint | number of links, then per link: rows, bytes, both varint |
//! | varint | number of ranges, then per range: varint and n of its last key, 24 of its [`Digest`] |

use crate::error::{Error, Kind, Result};
use crate::ids::StepIdx;
use crate::row::{Digest, RowBatch};

/// Most key sub-ranges a mark tells apart; neighbours are merged beyond it.
///
/// A mismatch is then narrowed to about a sixty-fourth of its shard, and a mark
/// stays within a few kilobytes.
pub const MARK_RANGES_MAX: usize = 64;

/// Rows after which a fold opens a new sub-range, before merging doubles it.
pub const MARK_RANGE_ROWS: u64 = 1024;

const VERSION: u8 = 1;
const FLAG_DONE: u8 = 1;
const FLAG_KEY: u8 = 2;

/// How far a shard is, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Step that the position belongs to.
    pub step: StepIdx,
    /// Whether every row of the step is in.
    pub done: bool,
    /// Last key consumed in this step, deletes included.
    pub last_key: Option<Vec<u8>>,
    /// Rows applied in this step.
    pub rows: u64,
    /// Key and payload bytes consumed in this step.
    pub bytes: u64,
    /// Consumed per link of the step, in chain order.
    pub links: Vec<LinkTally>,
    /// Digests of what the shard holds, over all steps; the last range has no end.
    pub ranges: Vec<RangeDigest>,
}

/// Consumed from one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkTally {
    /// Rows, tombstones included.
    pub rows: u64,
    /// Key and payload bytes.
    pub bytes: u64,
}

/// Rows of one key sub-range of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDigest {
    /// Greatest key of the sub-range.
    pub last_key: Vec<u8>,
    /// Its rows.
    pub digest: Digest,
}

impl Mark {
    /// The mark at the beginning of `step`, keeping the digests of the steps before.
    #[must_use]
    pub fn enter_step(mut self, step: StepIdx, link_count: usize) -> Mark {
        self.step = step;
        self.done = false;
        self.last_key = None;
        self.rows = 0;
        self.bytes = 0;
        self.links = vec![LinkTally::default(); link_count];
        self
    }

    /// Checks that this position, reached by applying `rows`, lies beyond `stored`.
    ///
    /// # Errors
    /// [`Kind::Transient`] when the stored mark is already there or further: a doubled or
    /// late chunk. [`Kind::Usage`] when the chunk ends behind its own mark.
    pub fn check_follows(&self, stored: Option<&Mark>, rows: &RowBatch) -> Result<()> {
        let last = rows.last().map(|row| row.key);
        if last.is_some() && last > self.last_key.as_deref() {
            let message = "a chunk holds rows behind the last key of its own mark";
            return Err(Error::new(Kind::Usage, message));
        }
        let Some(stored) = stored.filter(|stored| stored.step >= self.step) else { return Ok(()) };
        let first = (!rows.is_empty()).then(|| rows.row(0).key);
        let doubled = stored.step > self.step
            || stored.last_key > self.last_key
            || (stored.last_key.is_some()
                && first.is_some()
                && first <= stored.last_key.as_deref())
            || (stored.done && (!self.done || first.is_some()));
        if doubled {
            let message = format!(
                "the shard already stands in step {} after {} rows, beyond a chunk of step {} that \
                 ends after {} rows; read its mark and carry on from there",
                stored.step, stored.rows, self.step, self.rows
            );
            return Err(Error::new(Kind::Transient, message));
        }
        Ok(())
    }

    /// Accounts that `old` at `key` became `new`; `None` stands for no row.
    ///
    /// Rows appended behind every range open new ranges as they go; rows inside
    /// adjust the range that their key lies in.
    pub fn account(&mut self, key: &[u8], old: Option<Digest>, new: Option<Digest>) {
        let change = new.unwrap_or_default() - old.unwrap_or_default();
        let appends = self.ranges.last().is_none_or(|last| *last.last_key < *key);
        if !appends {
            let at = self.ranges.partition_point(|range| *range.last_key < *key);
            self.ranges[at].digest += change;
            return;
        }
        let range_rows_max = self.range_rows_max();
        match self.ranges.last_mut() {
            Some(last) if last.digest.rows < range_rows_max => {
                last.digest += change;
                last.last_key.clear();
                last.last_key.extend_from_slice(key);
            }
            _ => {
                self.ranges.push(RangeDigest { last_key: key.to_vec(), digest: change });
                if self.ranges.len() > MARK_RANGES_MAX {
                    self.merge_neighbours();
                }
            }
        }
    }

    /// Accounts rows that come in ascending order behind all that the shard holds: as
    /// [`account`](Self::account) row by row, but faster.
    pub fn appending(&mut self) -> Appending<'_, '_> {
        Appending { mark: self, last_key: None, sum: Digest::default(), room: 0 }
    }

    /// Everything the shard holds.
    pub fn digest(&self) -> Digest {
        self.ranges.iter().map(|range| range.digest).sum()
    }

    fn range_rows_max(&self) -> u64 {
        // Ranges double by merging, the first one first; new ones grow to its size.
        self.ranges.first().map_or(0, |first| first.digest.rows).max(MARK_RANGE_ROWS)
    }

    /// Rows that the range at the end takes, or the one that would be opened behind it.
    fn room(&self) -> u64 {
        let range_rows_max = self.range_rows_max();
        let held = self.ranges.last().map_or(0, |last| last.digest.rows);
        range_rows_max.checked_sub(held).filter(|room| *room > 0).unwrap_or(range_rows_max)
    }

    fn merge_neighbours(&mut self) {
        let merged = self.ranges.chunks(2).map(|pair| RangeDigest {
            last_key: pair[pair.len() - 1].last_key.clone(),
            digest: pair.iter().map(|range| range.digest).sum(),
        });
        self.ranges = merged.collect();
    }

    /// Appends the stored form; see the module for its layout.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&self.step.0.to_le_bytes());
        let key_flag = if self.last_key.is_some() { FLAG_KEY } else { 0 };
        out.push(key_flag | if self.done { FLAG_DONE } else { 0 });
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        if let Some(key) = &self.last_key {
            put_bytes(key, out);
        }
        put_varint(self.links.len() as u64, out);
        for link in &self.links {
            put_varint(link.rows, out);
            put_varint(link.bytes, out);
        }
        put_varint(self.ranges.len() as u64, out);
        for range in &self.ranges {
            put_bytes(&range.last_key, out);
            out.extend_from_slice(&range.digest.to_bytes());
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another version, [`Kind::Broken`] for anything that is
    /// truncated, too long or impossible.
    pub fn decode(bytes: &[u8]) -> Result<Mark> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(version) => {
                let message = format!("a mark has version {version}, this program reads {VERSION}");
                return Err(Error::new(Kind::Unsupported, message));
            }
            None => return Err(broken()),
        }
        let mut rest = &bytes[1..];
        let mark = take_mark(&mut rest).filter(|_| rest.is_empty());
        mark.ok_or_else(broken)
    }
}

/// Rows on their way into a mark, summed a range at a time; see [`Mark::appending`].
#[derive(Debug)]
pub struct Appending<'m, 'k> {
    mark: &'m mut Mark,
    /// Of the rows in the sum.
    last_key: Option<&'k [u8]>,
    sum: Digest,
    /// Rows that the sum takes before it is accounted; nothing before the first row.
    room: u64,
}

impl<'k> Appending<'_, 'k> {
    /// Accounts a row.
    pub fn add(&mut self, key: &'k [u8], row: Digest) {
        if self.room == 0 {
            // Rows that are gone again may have left a range that reaches further.
            if self.mark.ranges.last().is_some_and(|last| *last.last_key >= *key) {
                self.mark.account(key, None, Some(row));
                return;
            }
            self.room = self.mark.room();
        }
        self.sum += row;
        self.last_key = Some(key);
        if self.sum.rows == self.room {
            self.settle();
            self.room = self.mark.room();
        }
    }

    /// Ends it; without this the last rows are not accounted.
    pub fn finish(mut self) {
        self.settle();
    }

    fn settle(&mut self) {
        if let Some(key) = self.last_key.take() {
            self.mark.account(key, None, Some(std::mem::take(&mut self.sum)));
        }
    }
}

fn broken() -> Error {
    Error::new(Kind::Broken, "a stored mark is truncated or malformed")
}

fn take_mark(rest: &mut &[u8]) -> Option<Mark> {
    let step = StepIdx(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?));
    let flags = take(rest, 1)?[0];
    if flags & !(FLAG_DONE | FLAG_KEY) != 0 {
        return None;
    }
    let rows = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    let bytes = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    let last_key = if flags & FLAG_KEY != 0 { Some(take_bytes(rest)?.to_vec()) } else { None };
    let link_count = take_varint(rest)?;
    let mut links = Vec::new();
    for _ in 0..link_count {
        links.push(LinkTally { rows: take_varint(rest)?, bytes: take_varint(rest)? });
    }
    let range_count = take_varint(rest)?;
    let mut ranges = Vec::new();
    for _ in 0..range_count {
        let last_key = take_bytes(rest)?.to_vec();
        let digest = Digest::from_bytes(take(rest, Digest::LEN)?.try_into().ok()?);
        ranges.push(RangeDigest { last_key, digest });
    }
    Some(Mark { step, done: flags & FLAG_DONE != 0, last_key, rows, bytes, links, ranges })
}

fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        number |= low << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(rest)?).ok()?;
    take(rest, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{ChangeOp, RowRef};

    fn one(sum: u128) -> Option<Digest> {
        Some(Digest { rows: 1, sum })
    }

    fn mark() -> Mark {
        let mut mark = Mark::default().enter_step(StepIdx(3), 2);
        mark.last_key = Some(b"k".to_vec());
        mark.rows = 5;
        mark.links[1] = LinkTally { rows: 300, bytes: 70_000 };
        mark.account(b"a", None, one(7));
        mark
    }

    #[test]
    fn a_mark_reads_back() {
        let mut bytes = Vec::new();
        mark().encode(&mut bytes);
        assert_eq!(Mark::decode(&bytes).unwrap(), mark());
    }

    #[test]
    fn every_truncated_or_longer_mark_is_refused() {
        let mut bytes = Vec::new();
        mark().encode(&mut bytes);
        for len in 0..bytes.len() {
            assert!(Mark::decode(&bytes[..len]).is_err(), "{len}");
        }
        bytes.push(0);
        assert_eq!(Mark::decode(&bytes).unwrap_err().kind(), Kind::Broken);
        bytes[0] = 9;
        assert_eq!(Mark::decode(&bytes).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn only_a_chunk_beyond_the_stored_mark_follows_it() {
        let rows = |keys: &[&[u8]]| {
            let mut batch = RowBatch::new();
            for key in keys {
                batch.push(RowRef { key, op: ChangeOp::Delete, payload: &[] });
            }
            batch
        };
        let at = |step, key: &[u8], done| Mark {
            step: StepIdx(step),
            done,
            last_key: Some(key.to_vec()),
            ..Mark::default()
        };
        let (stored, done) = (at(1, b"k", false), at(1, b"k", true));
        let check = |mark: &Mark, stored: &Mark, keys: &[&[u8]]| {
            mark.check_follows(Some(stored), &rows(keys)).map_err(|error| error.kind())
        };
        assert_eq!(check(&at(1, b"m", false), &stored, &[b"l", b"m"]), Ok(()));
        assert_eq!(check(&at(1, b"k", true), &stored, &[]), Ok(()));
        assert_eq!(check(&at(2, b"a", false), &done, &[b"a"]), Ok(()));
        assert_eq!(check(&done, &done, &[]), Ok(()));
        assert_eq!(check(&at(1, b"m", false), &stored, &[b"k", b"m"]), Err(Kind::Transient));
        assert_eq!(check(&at(1, b"j", false), &stored, &[]), Err(Kind::Transient));
        assert_eq!(check(&at(0, b"z", true), &stored, &[b"z"]), Err(Kind::Transient));
        assert_eq!(check(&at(1, b"m", true), &done, &[b"m"]), Err(Kind::Transient));
        assert_eq!(check(&at(1, b"m", false), &done, &[]), Err(Kind::Transient));
        assert_eq!(check(&at(1, b"m", false), &stored, &[b"n"]), Err(Kind::Usage));
        assert!(at(0, b"m", false).check_follows(None, &rows(&[b"m"])).is_ok());
    }

    #[test]
    fn ranges_stay_bounded_and_sum_to_the_whole() {
        let mut mark = Mark::default();
        let mut expected = Digest::default();
        for key in 0..200_000u32 {
            mark.account(&key.to_be_bytes(), None, one(u128::from(key)));
            expected += one(u128::from(key)).unwrap();
        }
        assert!(mark.ranges.len() <= MARK_RANGES_MAX);
        assert!(mark.ranges.len() > MARK_RANGES_MAX / 4, "{}", mark.ranges.len());
        assert_eq!(mark.digest(), expected);
    }

    #[test]
    fn rows_appended_together_are_accounted_as_one_by_one() {
        for chunk_rows in [1, 7, 1000, 1024, 5000, 300_000] {
            let (mut together, mut singly) = (mark(), mark());
            // The mark's one range ends at `a`; some keys lie before it.
            let keys: Vec<[u8; 5]> = (0..300_000u32)
                .map(|at| {
                    let [a, b, c, d] = at.to_be_bytes();
                    [if at < 10 { b'Z' } else { b'b' }, a, b, c, d]
                })
                .collect();
            for chunk in keys.chunks(chunk_rows) {
                let mut appending = together.appending();
                for key in chunk {
                    let row = one(u128::from(key[4]) + 1);
                    appending.add(key, row.unwrap());
                    singly.account(key, None, row);
                }
                appending.finish();
            }
            assert_eq!(together, singly, "{chunk_rows}");
        }
    }

    #[test]
    fn a_later_step_adjusts_the_range_its_key_lies_in() {
        let mut mark = Mark::default();
        for key in 0..10_000u32 {
            mark.account(&key.to_be_bytes(), None, one(1));
        }
        let before = mark.clone();
        mark.account(&5_000u32.to_be_bytes(), one(1), None);
        let changed: Vec<usize> =
            (0..mark.ranges.len()).filter(|at| mark.ranges[*at] != before.ranges[*at]).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(mark.digest().rows, 9_999);
    }
}
