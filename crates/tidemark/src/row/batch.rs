//! Rows on the move: batches of keys and payloads in one buffer, and streams of them.

use std::ops::Range;

use crate::error::{Error, Kind, Result};
use crate::row::key::{KeyRange, compare_keys};
use crate::row::value::hex;

/// What happened to a row since the parent backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeOp {
    /// The payload is the whole row. Every row of a full is one.
    Upsert = 0,
    /// The payload misses columns that keep their older value; it names them.
    Update = 1,
    /// The row is gone; the payload is empty.
    Delete = 2,
}

/// One row or change inside a [`RowBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef<'a> {
    /// Canonical key bytes.
    pub key: &'a [u8],
    /// What happened.
    pub op: ChangeOp,
    /// Payload bytes, version byte included; empty for a delete.
    pub payload: &'a [u8],
}

impl RowRef<'_> {
    /// Bytes of key and payload: the unit of planned and done work.
    pub fn byte_count(&self) -> u64 {
        (self.key.len() + self.payload.len()) as u64
    }
}

/// Rows in one buffer, in ascending key order.
#[derive(Clone, Debug, Default)]
pub struct RowBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key_end: u64,
    payload_end: u64,
    op: ChangeOp,
}

impl RowBatch {
    /// An empty batch.
    pub fn new() -> RowBatch {
        RowBatch::default()
    }

    /// Forgets the rows and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    /// Appends a row.
    pub fn push(&mut self, row: RowRef<'_>) {
        self.push_with(
            row.op,
            |out| out.extend_from_slice(row.key),
            |out| {
                out.extend_from_slice(row.payload);
            },
        );
    }

    /// Appends all rows of another batch.
    pub fn append(&mut self, other: &RowBatch) {
        self.append_rows(other, 0..other.len());
    }

    /// Appends those rows of another batch; panics beyond its end.
    pub fn append_rows(&mut self, other: &RowBatch, rows: Range<usize>) {
        let (from, to) = (other.start_of(rows.start), other.start_of(rows.end));
        let start = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&other.bytes[from..to]);
        let moved = |end: u64| start + (end - from as u64);
        self.entries.extend(other.entries[rows].iter().map(|entry| Entry {
            key_end: moved(entry.key_end),
            payload_end: moved(entry.payload_end),
            op: entry.op,
        }));
    }

    /// Appends a row that `write` appends to the bytes, key first; gives its bytes.
    ///
    /// # Errors
    /// Those of `write`, which otherwise gives the length of the key; the row is not there then.
    pub(crate) fn try_push_with(
        &mut self,
        op: ChangeOp,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize>,
    ) -> Result<u64> {
        let start = self.bytes.len();
        match write(&mut self.bytes) {
            Ok(key_bytes) => {
                let (key_end, payload_end) = ((start + key_bytes) as u64, self.bytes.len() as u64);
                self.entries.push(Entry { key_end, payload_end, op });
                Ok(payload_end - start as u64)
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// Appends a row whose key and payload are written in place.
    pub fn push_with(
        &mut self,
        op: ChangeOp,
        write_key: impl FnOnce(&mut Vec<u8>),
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) {
        write_key(&mut self.bytes);
        let key_end = self.bytes.len() as u64;
        write_payload(&mut self.bytes);
        self.entries.push(Entry { key_end, payload_end: self.bytes.len() as u64, op });
    }

    /// Takes the last row back.
    pub fn pop(&mut self) {
        self.entries.pop();
        let end = self.entries.last().map_or(0, |entry| entry.payload_end);
        self.bytes.truncate(end as usize);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all keys and payloads.
    pub fn byte_count(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The row at `at`; panics beyond the end.
    pub fn row(&self, at: usize) -> RowRef<'_> {
        let start = self.start_of(at);
        let entry = self.entries[at];
        let key_end = entry.key_end as usize;
        RowRef {
            key: &self.bytes[start..key_end],
            op: entry.op,
            payload: &self.bytes[key_end..entry.payload_end as usize],
        }
    }

    /// Where the bytes of row `at` begin, or those of all rows end.
    fn start_of(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.entries[before].payload_end as usize)
    }

    /// Refuses rows that do not ascend strictly by key or lie outside `range`.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the key.
    pub fn check_inside(&self, range: &KeyRange) -> Result<()> {
        let mut before: Option<&[u8]> = None;
        for at in 0..self.entries.len() {
            let key = self.row(at).key;
            if before.is_some_and(|before| compare_keys(before, key).is_ge()) {
                let message = format!("rows do not ascend by key at 0x{}", hex(key));
                return Err(Error::new(Kind::Usage, message));
            }
            before = Some(key);
        }
        // The rows ascend: if both ends are inside, all are.
        let ends = [self.entries.first().map(|_| self.row(0).key), before];
        match ends.into_iter().flatten().find(|key| !range.contains(key)) {
            Some(key) => {
                let message = format!("the row at key 0x{} lies outside of {range}", hex(key));
                Err(Error::new(Kind::Usage, message))
            }
            None => Ok(()),
        }
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = RowRef<'_>> {
        (0..self.entries.len()).map(|at| self.row(at))
    }

    /// The last row.
    pub fn last(&self) -> Option<RowRef<'_>> {
        self.entries.len().checked_sub(1).map(|at| self.row(at))
    }
}

/// Rows in strictly ascending key order, a batch at a time.
pub trait RowStream: Send {
    /// Replaces `batch` by the next rows; `false`, with an empty batch, at the end.
    ///
    /// After an error the stream is spent: it is opened again from the mark.
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool>;

    /// Appends the next rows to `batch`, which counts as a whole where the stream has a bound
    /// for its batches; `false` at the end. After an error `batch` means nothing.
    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        let mut next = RowBatch::new();
        let more = self.next_batch(&mut next)?;
        batch.append(&next);
        Ok(more)
    }
}

impl<T: RowStream + ?Sized> RowStream for Box<T> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        (**self).next_batch(batch)
    }

    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        (**self).append_batch(batch)
    }
}
