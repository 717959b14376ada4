//! What has to happen to a table's rows so that they are those of a file.
//!
//! Both sides come in key order, so one pass over both tells for every key
//! whether its row is new, gone, different or the same. A stored row counts as it
//! reads under the new schema: a column that was dropped makes no row different.

use std::cmp::Ordering;

use crate::error::Result;
use crate::row::{RowBatch, RowCodec, RowRef, RowStream};

/// What becomes of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<'a> {
    /// Only the file has it.
    Inserted(RowRef<'a>),
    /// Both have it and the row differs; this is the file's.
    Updated(RowRef<'a>),
    /// Both have the same row; this is the file's.
    Unchanged(RowRef<'a>),
    /// Only the table has it.
    Deleted {
        /// Its key.
        key: &'a [u8],
    },
}

/// How many rows had which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
    pub(super) unchanged: u64,
}

impl Tally {
    /// Rows that are not what they were.
    pub(super) fn differences(&self) -> u64 {
        self.inserted + self.updated + self.deleted
    }

    /// Rows of the file.
    pub(super) fn file_rows(&self) -> u64 {
        self.inserted + self.updated + self.unchanged
    }

    pub(super) fn add(&mut self, other: Tally) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.unchanged += other.unchanged;
    }
}

/// A stream that is looked at one row at a time.
pub(super) struct Cursor<S> {
    stream: S,
    batch: RowBatch,
    at: usize,
}

impl<S: RowStream> Cursor<S> {
    /// A cursor before the first row of `stream`.
    pub(super) fn new(stream: S) -> Cursor<S> {
        Cursor { stream, batch: RowBatch::new(), at: 0 }
    }

    /// Makes sure that [`row`](Self::row) is there unless the stream is at its end.
    fn fill(&mut self) -> Result<()> {
        while self.at >= self.batch.len() {
            self.at = 0;
            if !self.stream.next_batch(&mut self.batch)? {
                break;
            }
        }
        Ok(())
    }

    /// Passes over the rows below `start`.
    pub(super) fn skip_below(&mut self, start: &[u8]) -> Result<()> {
        loop {
            self.fill()?;
            if self.row().is_none_or(|row| row.key >= start) {
                return Ok(());
            }
            self.advance();
        }
    }

    fn row(&self) -> Option<RowRef<'_>> {
        (self.at < self.batch.len()).then(|| self.batch.row(self.at))
    }

    fn advance(&mut self) {
        self.at += 1;
    }
}

/// Compares the rows of one shard with those of the file below `end`, and shows the
/// outcome of every key in ascending order.
///
/// `file` is left at the first row that belongs to the next shard. `codec` is that of the
/// schema which the table gets.
///
/// # Errors
/// Those of the streams and of `show`.
pub(super) fn compare<T: RowStream, F: RowStream>(
    table: T,
    file: &mut Cursor<F>,
    end: Option<&[u8]>,
    codec: &RowCodec,
    mut show: impl FnMut(Outcome<'_>) -> Result<()>,
) -> Result<Tally> {
    let mut table = Cursor::new(table);
    let mut tally = Tally::default();
    let mut projected = Vec::new();
    loop {
        table.fill()?;
        file.fill()?;
        let ours = table.row();
        let theirs = file.row().filter(|row| end.is_none_or(|end| row.key < end));
        let order = match (ours, theirs) {
            (None, None) => return Ok(tally),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(ours), Some(theirs)) => ours.key.cmp(theirs.key),
        };
        match (order, ours, theirs) {
            (Ordering::Less, Some(ours), _) => {
                tally.deleted += 1;
                show(Outcome::Deleted { key: ours.key })?;
                table.advance();
            }
            (Ordering::Equal, Some(ours), Some(theirs)) => {
                if is_same(ours.payload, theirs.payload, codec, &mut projected)? {
                    tally.unchanged += 1;
                    show(Outcome::Unchanged(theirs))?;
                } else {
                    tally.updated += 1;
                    show(Outcome::Updated(theirs))?;
                }
                table.advance();
                file.advance();
            }
            (_, _, Some(theirs)) => {
                tally.inserted += 1;
                show(Outcome::Inserted(theirs))?;
                file.advance();
            }
            (_, _, None) => unreachable!("a row that only the table has is less: see above"),
        }
    }
}

fn is_same(
    stored: &[u8],
    theirs: &[u8],
    codec: &RowCodec,
    projected: &mut Vec<u8>,
) -> Result<bool> {
    if stored == theirs {
        return Ok(true);
    }
    projected.clear();
    codec.project(stored, projected)?;
    Ok(projected == theirs)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use super::*;
    use crate::ids::ColumnId;
    use crate::row::{ChangeOp, LogicalType, Schema, Value};
    use proptest::prelude::*;

    /// Rows in memory, in batches of two.
    struct Rows(VecDeque<(Vec<u8>, Vec<u8>)>);

    impl RowStream for Rows {
        fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
            batch.clear();
            for (key, payload) in self.0.drain(..self.0.len().min(2)) {
                batch.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
            }
            Ok(!batch.is_empty())
        }
    }

    type Table = BTreeMap<u8, i64>;

    fn codec() -> RowCodec {
        let columns = [("k", LogicalType::Bytes), ("n", LogicalType::Int64)];
        RowCodec::new(&Schema::new(&columns, &["k"]).unwrap())
    }

    /// The rows; `stale` adds a column that the schema does not have.
    fn rows(table: &Table, stale: bool) -> Rows {
        let row = |(key, number): (&u8, &i64)| {
            let mut payload = Vec::new();
            crate::row::payload::begin(&mut payload);
            crate::row::payload::put_value(ColumnId(2), &Value::Int64(*number), &mut payload);
            if stale {
                crate::row::payload::put_value(ColumnId(7), &Value::Bool(true), &mut payload);
            }
            (vec![*key], payload)
        };
        Rows(table.iter().map(row).collect())
    }

    fn compared(old: &Table, new: &Table, split: u8, stale: bool) -> (Table, Tally) {
        let mut file = Cursor::new(rows(new, false));
        let (mut result, mut total) = (old.clone(), Tally::default());
        let (below, above): (Table, Table) = old.iter().partition(|(key, _)| **key < split);
        for (shard, end) in [(below, Some([split])), (above, None)] {
            let end = end.as_ref().map(|end| &end[..]);
            let new_row = |row: RowRef<'_>| (row.key[0], new[&row.key[0]]);
            let tally = compare(rows(&shard, stale), &mut file, end, &codec(), |outcome| {
                match outcome {
                    Outcome::Inserted(row) => {
                        assert_eq!(result.insert(row.key[0], new_row(row).1), None);
                    }
                    Outcome::Updated(row) => {
                        assert_ne!(result.insert(row.key[0], new_row(row).1), Some(new_row(row).1));
                    }
                    Outcome::Unchanged(row) => {
                        assert_eq!(result.get(&row.key[0]), Some(&new_row(row).1));
                    }
                    Outcome::Deleted { key } => assert!(result.remove(&key[0]).is_some()),
                }
                Ok(())
            });
            total.add(tally.unwrap());
        }
        (result, total)
    }

    proptest! {
        #[test]
        fn the_outcomes_make_the_table_equal_to_the_file(
            old in prop::collection::btree_map(0u8..40, 0i64..3, 0..30),
            new in prop::collection::btree_map(0u8..40, 0i64..3, 0..30),
            split in 0u8..40,
            stale: bool,
        ) {
            let (result, tally) = compared(&old, &new, split, stale);
            prop_assert_eq!(&result, &new);
            prop_assert_eq!(tally.file_rows(), new.len() as u64);
            let same = new.iter().filter(|(key, number)| old.get(key) == Some(number)).count();
            prop_assert_eq!(tally.unchanged, same as u64);
            let gone = old.keys().filter(|key| !new.contains_key(key)).count();
            prop_assert_eq!(tally.deleted, gone as u64);
        }
    }
}
