//! Streams a key range of one part.

use std::collections::VecDeque;
use std::fmt;

use parquet::file::reader::ChunkReader;

use super::columns::{ColumnCursor, CursorLimits, PartBytes};
use super::footer::GroupExtent;
use super::layout::{Layout, Physical};
use super::open::{Chunks, check_entry, overlapping, read_footer};
use super::values::{bytes_fit, encode_key};
use super::{PartKind, key_text};
use crate::collection::manifest::PartEntry;
use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::key::compare_keys;
use crate::row::payload::{FieldHead, begin, put_unchanged};
use crate::row::{ChangeOp, KeyRange, LogicalType, RowBatch, RowCodec, RowStream, Schema};

/// Room for what a page holds beside a greatest row: levels, the representative of a
/// decimal key with a huge exponent, the list of an update's unchanged columns.
const PAGE_SLACK_BYTES: u64 = 512 << 10;

/// What is read, and as what.
#[derive(Clone, Copy, Debug)]
pub struct PartRead<'a> {
    /// The part, as its manifest has it.
    pub part: &'a PartEntry,
    /// Schema of the part's table in that manifest.
    pub schema: &'a Schema,
    /// Full for a full and for a table that an increment carries whole.
    pub kind: PartKind,
    /// The rows come in its encoding: columns are matched by id and type, those that it
    /// has not are dropped, those that the part has not are NULL.
    pub wanted: &'a RowCodec,
    /// Keys that are read.
    pub range: &'a KeyRange,
    /// Only keys beyond this one: where an earlier reader of the same range stopped.
    pub after: Option<&'a [u8]>,
}

/// The rows of one part inside a key range, ascending, page by page.
///
/// Holds a page and a fetched window per column that is read. Nothing in the file is
/// believed: it is compared with the manifest and with itself, and whatever does not
/// agree is [`Kind::Broken`] with the part's name.
pub struct PartReader {
    file: Box<dyn PartBytes>,
    name: String,
    rows_max: usize,
    bytes_max: u64,
    /// Row groups that overlap the range and are not finished, the one being read in front.
    groups: VecDeque<Group>,
    /// Row of the front group that comes next.
    group_row: u64,
    columns: Vec<ReadColumn>,
    /// Positions in `columns`: key columns in key order.
    key: Vec<usize>,
    /// Positions in `columns` of what payloads get, in ascending id.
    stored: Vec<usize>,
    op: Option<usize>,
    unchanged: Option<usize>,
    /// Ids that an unchanged list may name, ascending; the second says whether they are read.
    stored_ids: Vec<ColumnId>,
    has_key: bool,
    range: KeyRange,
    after: Option<Vec<u8>>,
    last_key: Vec<u8>,
    /// Whether `last_key` is the key before the one at hand.
    has_last: bool,
    entry_last_key: Vec<u8>,
    /// Keys below it are neither beyond the part nor beyond the range.
    safe_end: Vec<u8>,
    /// Whether a key was inside the range: none before it comes any more.
    has_begun: bool,
    /// Rows that the columns outside the key are behind it.
    lag: u64,
    key_buffer: Vec<u8>,
    unchanged_ids: Vec<ColumnId>,
    ended: bool,
    whole: Option<WholeCheck>,
}

/// What must come out when a part is read from end to end with all its columns.
#[derive(Debug)]
struct WholeCheck {
    tombstones_left: u64,
    row_bytes_left: u64,
}

/// A row group still to be read.
#[derive(Debug)]
pub(super) struct Group {
    /// Position in the part.
    pub(super) position: usize,
    pub(super) extent: GroupExtent,
    pub(super) first_key: Vec<u8>,
    /// Whether it is the part's last one.
    pub(super) is_last: bool,
}

#[derive(Debug)]
struct ReadColumn {
    /// Position in the file.
    at: usize,
    name: String,
    id: Option<ColumnId>,
    logical: LogicalType,
    /// In front of its values in a payload; means nothing for a column that is in none.
    head: FieldHead,
    in_key: bool,
    cursor: ColumnCursor,
}

impl PartReader {
    /// Opens a part for reading; reads and checks its footer.
    ///
    /// The reader must be the only one on its `file`: a [`std::fs::File`] that several
    /// share has one position.
    ///
    /// # Errors
    /// [`Kind::Broken`], naming the part: size, magic, schema, row groups or layout are
    /// not what the manifest says, or the manifest contradicts itself. Whatever `file`
    /// fails with keeps its kind if it is an [`Error`] or [`std::io::Error`] inside
    /// [`ParquetError::External`](parquet::errors::ParquetError::External).
    pub fn open<R: ChunkReader + 'static>(file: R, read: &PartRead<'_>) -> Result<PartReader> {
        let name = read.part.name.clone();
        open_checked(file, read).map_err(|error| error.context(format!("read part `{name}`")))
    }

    /// The same with other bounds of a batch: it ends with the row that reaches one of them.
    #[must_use]
    pub fn with_batch_max(mut self, rows: u32, bytes: u64) -> PartReader {
        self.rows_max = rows.max(1) as usize;
        self.bytes_max = bytes;
        self
    }

    /// Passes the next `count` rows, or all if there are fewer: how a table without a key
    /// is resumed.
    ///
    /// # Errors
    /// As [`RowStream::next_batch`].
    pub fn skip_rows(&mut self, mut count: u64) -> Result<()> {
        self.whole = None;
        while count > 0 {
            let Some(group) = self.groups.front() else { return Ok(()) };
            let rows = (group.extent.rows - self.group_row).min(count);
            if self.group_row == 0 && rows == group.extent.rows {
                self.groups.pop_front();
            } else {
                self.enter_group();
                for column in 0..self.columns.len() {
                    if self.columns[column].in_key {
                        let skipped = self.columns[column].cursor.skip(rows, &*self.file);
                        skipped.map_err(|error| self.located(error, Some(column)))?;
                    }
                }
                self.lag += rows;
                self.group_row += rows;
                self.leave_group_if_done()?;
            }
            count -= rows;
        }
        Ok(())
    }

    fn fill(&mut self, batch: &mut RowBatch) -> Result<()> {
        while !self.is_enough(batch) {
            let Some(group) = self.groups.front() else { return Ok(()) };
            let rows = group.extent.rows;
            let past_range = self.group_row == 0
                && self.range.end.as_deref().is_some_and(|end| *group.first_key >= *end);
            if past_range || self.ended {
                self.groups.clear();
                return Ok(());
            }
            self.enter_group();
            while self.group_row < rows && !self.ended && !self.is_enough(batch) {
                self.next_row(batch)?;
            }
            self.leave_group_if_done()?;
        }
        Ok(())
    }

    fn is_enough(&self, batch: &RowBatch) -> bool {
        batch.len() >= self.rows_max || batch.byte_count() >= self.bytes_max
    }

    /// Puts the cursors before the front group's first row, unless it was entered.
    fn enter_group(&mut self) {
        if self.group_row > 0 {
            return;
        }
        let Some(group) = self.groups.front() else { return };
        for column in &mut self.columns {
            column.cursor.enter(group.extent.chunks[column.at], group.extent.rows);
        }
        self.lag = 0;
    }

    fn leave_group_if_done(&mut self) -> Result<()> {
        let Some(group) = self.groups.front() else { return Ok(()) };
        if self.group_row < group.extent.rows {
            return Ok(());
        }
        let wrong_end = self.has_key
            && self.has_last
            && match self.groups.get(1) {
                Some(next) => self.last_key >= next.first_key,
                None => group.is_last && self.last_key != self.entry_last_key,
            };
        if wrong_end {
            let message = format!(
                "row group {} ends with key {}, which its manifest contradicts",
                group.position,
                key_text(&self.last_key)
            );
            return Err(self.broken(message));
        }
        self.group_row = 0;
        self.groups.pop_front();
        if self.groups.is_empty() {
            self.check_whole()?;
        }
        Ok(())
    }

    fn check_whole(&self) -> Result<()> {
        match &self.whole {
            Some(WholeCheck { tombstones_left: 0, row_bytes_left: 0 }) | None => Ok(()),
            Some(left) => {
                let message = format!(
                    "it lacks {} tombstones and {} bytes that its manifest has",
                    left.tombstones_left, left.row_bytes_left
                );
                Err(self.broken(message))
            }
        }
    }

    /// Takes one row of the front group, and appends it if it is inside the range.
    fn next_row(&mut self, batch: &mut RowBatch) -> Result<()> {
        self.read_key()?;
        // Without a key every row is inside: its key is empty, and so is the range's start.
        let is_inside = !self.has_key || self.check_key()?;
        self.group_row += 1;
        std::mem::swap(&mut self.last_key, &mut self.key_buffer);
        self.has_last = true;
        if !is_inside {
            self.lag += 1;
            return Ok(());
        }
        if self.lag > 0 {
            self.catch_up()?;
        }
        self.append_row(batch)
    }

    /// Moves the key columns on and builds the row's key.
    fn read_key(&mut self) -> Result<()> {
        self.key_buffer.clear();
        for position in 0..self.key.len() {
            let at = self.key[position];
            let column = &mut self.columns[at];
            if let Err(error) = column.cursor.advance(&*self.file) {
                return Err(self.located(error, Some(at)));
            }
            let column = &self.columns[at];
            let value = column.cursor.value().filter(|value| bytes_fit(column.logical, value));
            match value {
                Some(value) => encode_key(column.logical, value, &mut self.key_buffer),
                None => {
                    let error = Error::new(Kind::Broken, "a key is NULL or no value of its type");
                    return Err(self.located(error, Some(at)));
                }
            }
        }
        Ok(())
    }

    /// Refuses a key that is out of place; gives whether it is inside the range.
    ///
    /// One look behind and one ahead are enough for most keys, since they ascend.
    fn check_key(&mut self) -> Result<bool> {
        let key = &*self.key_buffer;
        if self.group_row == 0 {
            self.check_first_key()?;
        }
        if self.has_last && compare_keys(key, &self.last_key).is_le() {
            let message = format!(
                "key {} follows {}, keys ascend strictly",
                key_text(key),
                key_text(&self.last_key)
            );
            return Err(self.broken(message));
        }
        if compare_keys(key, &self.safe_end).is_ge() {
            if *key > *self.entry_last_key {
                let message = format!(
                    "key {} is beyond {}, the last one by its manifest",
                    key_text(key),
                    key_text(&self.entry_last_key)
                );
                return Err(self.broken(message));
            }
            if self.range.end.as_deref().is_some_and(|end| key >= end) {
                self.ended = true;
                return Ok(false);
            }
        }
        if !self.has_begun {
            let is_before =
                *key < *self.range.start || self.after.as_deref().is_some_and(|after| key <= after);
            self.has_begun = !is_before;
        }
        Ok(self.has_begun)
    }

    fn check_first_key(&self) -> Result<()> {
        let group = self.groups.front().expect("a group was entered");
        if self.key_buffer == group.first_key {
            return Ok(());
        }
        let message = format!(
            "row group {} begins with key {}, its manifest says {}",
            group.position,
            key_text(&self.key_buffer),
            key_text(&group.first_key)
        );
        Err(self.broken(message))
    }

    /// Moves the columns outside the key over the rows that were passed.
    #[cold]
    fn catch_up(&mut self) -> Result<()> {
        let lag = std::mem::take(&mut self.lag);
        for at in 0..self.columns.len() {
            if !self.columns[at].in_key {
                let passed = self.columns[at].cursor.skip(lag, &*self.file);
                passed.map_err(|error| self.located(error, Some(at)))?;
            }
        }
        Ok(())
    }

    /// Moves a column to the row at hand, unless its key did.
    #[inline]
    fn advance(&mut self, at: usize) -> Result<()> {
        let column = &mut self.columns[at];
        if column.in_key {
            return Ok(());
        }
        column.cursor.advance(&*self.file).map_err(|error| self.located(error, Some(at)))
    }

    fn append_row(&mut self, batch: &mut RowBatch) -> Result<()> {
        let op = self.read_op()?;
        self.read_unchanged(op)?;
        let row_bytes = batch.try_push_with(op, |out| {
            out.extend_from_slice(&self.last_key);
            self.build_payload(op, out)?;
            Ok(self.last_key.len())
        })?;
        if let Some(whole) = &mut self.whole {
            let tombstones = u64::from(op == ChangeOp::Delete);
            match (
                whole.row_bytes_left.checked_sub(row_bytes),
                whole.tombstones_left.checked_sub(tombstones),
            ) {
                (Some(row_bytes_left), Some(tombstones_left)) => {
                    *whole = WholeCheck { tombstones_left, row_bytes_left };
                }
                _ => {
                    let message = "it has more tombstones or bytes than its manifest says";
                    return Err(self.broken(message.to_owned()));
                }
            }
        }
        Ok(())
    }

    fn read_op(&mut self) -> Result<ChangeOp> {
        let Some(at) = self.op else { return Ok(ChangeOp::Upsert) };
        self.advance(at)?;
        match self.columns[at].cursor.value() {
            Some(b"upsert") => Ok(ChangeOp::Upsert),
            Some(b"update") => Ok(ChangeOp::Update),
            Some(b"delete") => Ok(ChangeOp::Delete),
            other => {
                let found = other.map_or("NULL".into(), |other| {
                    String::from_utf8_lossy(&other[..other.len().min(32)])
                });
                let message = format!("the operation is {found}; upsert, update and delete exist");
                Err(self.located(Error::new(Kind::Broken, message), Some(at)))
            }
        }
    }

    /// Reads which columns the row leaves as they were.
    fn read_unchanged(&mut self, op: ChangeOp) -> Result<()> {
        self.unchanged_ids.clear();
        let Some(at) = self.unchanged else { return Ok(()) };
        self.advance(at)?;
        let Some(list) = self.columns[at].cursor.value() else { return Ok(()) };
        let ids = &mut self.unchanged_ids;
        let well_formed = op == ChangeOp::Update
            && list.split(|byte| *byte == b',').all(|digits| {
                let id = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
                let Some(id) = id.map(ColumnId) else { return false };
                let ascends = ids.last().is_none_or(|last| *last < id);
                ids.push(id);
                ascends && self.stored_ids.binary_search(&id).is_ok()
            });
        if well_formed {
            return Ok(());
        }
        let message = "the list of unchanged columns is malformed, or not that of an update";
        Err(self.located(Error::new(Kind::Broken, message), Some(at)))
    }

    /// Moves the stored columns on and appends what they hold of the row.
    fn build_payload(&mut self, op: ChangeOp, out: &mut Vec<u8>) -> Result<()> {
        if op != ChangeOp::Delete {
            begin(out);
        }
        for position in 0..self.stored.len() {
            let at = self.stored[position];
            self.advance(at)?;
            let column = &self.columns[at];
            let value = column.cursor.value();
            if op != ChangeOp::Upsert {
                let id = column.id.expect("stored columns have ids");
                let is_unchanged = self.unchanged_ids.binary_search(&id).is_ok();
                if op == ChangeOp::Delete || is_unchanged {
                    if value.is_some() && !column.in_key {
                        return Err(self.misfit(at, "a value where the row has none"));
                    }
                    if is_unchanged {
                        put_unchanged(id, out);
                    }
                    continue;
                }
            }
            let Some(value) = value else { continue };
            // Key columns were checked when the key was built.
            if !column.in_key && !bytes_fit(column.logical, value) {
                return Err(self.misfit(at, "bytes that are no value of the type"));
            }
            // PLAIN is the payload's form of every fixed-width type.
            column.head.put(value, out);
        }
        Ok(())
    }

    #[cold]
    fn misfit(&self, column: usize, message: &str) -> Error {
        let message = format!("row with key {}: {message}", key_text(&self.last_key));
        self.located(Error::new(Kind::Broken, message), Some(column))
    }

    #[cold]
    fn broken(&self, message: String) -> Error {
        Error::new(Kind::Broken, format!("read part `{}`: {message}", self.name))
    }

    #[cold]
    fn located(&self, error: Error, column: Option<usize>) -> Error {
        let column =
            column.map_or(String::new(), |at| format!(", column `{}`", self.columns[at].name));
        let group = self.groups.front().map_or(0, |group| group.position);
        error.context(format!("read part `{}`, row group {group}{column}", self.name))
    }
}

impl RowStream for PartReader {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        self.append_batch(batch).inspect_err(|_| batch.clear())
    }

    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        let before = batch.len();
        self.fill(batch).inspect_err(|_| self.groups.clear())?;
        Ok(batch.len() > before)
    }
}

impl fmt::Debug for PartReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartReader")
            .field("name", &self.name)
            .field("groups_left", &self.groups.len())
            .finish_non_exhaustive()
    }
}

fn open_checked<R: ChunkReader + 'static>(file: R, read: &PartRead<'_>) -> Result<PartReader> {
    let broken = |message: String| Error::new(Kind::Broken, message);
    check_entry(read)?;
    let layout = Layout::new(read.schema, read.kind)
        .map_err(|error| broken(format!("its schema is impossible: {}", error.message())))?;
    if !read.schema.same_key(read.wanted.schema()) {
        return Err(broken("the key of its table is another than the one wanted".to_owned()));
    }
    let file_bytes = file.len();
    if file_bytes != read.part.bytes {
        let expected = read.part.bytes;
        return Err(broken(format!("it has {file_bytes} bytes, its manifest says {expected}")));
    }
    let file = Chunks(file);
    let groups = read_footer(&file, read, &layout)?;

    let whole_range = read.after.is_none()
        && *read.range.start <= *read.part.first_key
        && read.range.end.as_deref().is_none_or(|end| *read.part.last_key < *end);
    let mut reader = PartReader {
        file: Box::new(file),
        name: read.part.name.clone(),
        rows_max: 0,
        bytes_max: 0,
        groups: overlapping(groups, read),
        group_row: 0,
        columns: Vec::new(),
        key: Vec::new(),
        stored: Vec::new(),
        op: None,
        unchanged: None,
        stored_ids: Vec::new(),
        has_key: !read.schema.key.is_empty(),
        range: read.range.clone(),
        after: read.after.map(<[u8]>::to_vec),
        last_key: Vec::new(),
        has_last: false,
        entry_last_key: read.part.last_key.clone(),
        safe_end: match &read.range.end {
            Some(end) => end.min(&read.part.last_key).clone(),
            None => read.part.last_key.clone(),
        },
        has_begun: false,
        lag: 0,
        key_buffer: Vec::new(),
        unchanged_ids: Vec::new(),
        ended: false,
        whole: None,
    };
    reader = reader.with_batch_max(read.kind.batch_rows_max(), read.kind.batch_bytes_max());
    add_columns(&mut reader, read, &layout);
    let all_columns = layout.stored.len() == reader.stored.len();
    reader.whole = (whole_range && all_columns).then_some(WholeCheck {
        tombstones_left: read.part.tombstones,
        row_bytes_left: read.part.row_bytes,
    });
    Ok(reader)
}

/// Chooses the columns that are read: the key, the operation, what is stored and wanted.
fn add_columns(reader: &mut PartReader, read: &PartRead<'_>, layout: &Layout) {
    let page_bytes_max = read.kind.page_bytes_max(layout.columns.len() as u32);
    let limits = CursorLimits {
        content_bytes_max: page_bytes_max
            .max(read.part.row_bytes_max)
            .saturating_add(PAGE_SLACK_BYTES),
        window_bytes: read.kind.window_bytes(layout.columns.len() as u32) as usize,
    };
    let wanted = |at: usize| {
        let column = &layout.columns[at];
        let kept = column.id.and_then(|id| read.wanted.schema().column(id));
        kept.is_some_and(|kept| kept.logical == column.logical)
    };
    let mut positions = vec![None; layout.columns.len()];
    for (at, column) in layout.columns.iter().enumerate() {
        let in_key = layout.key.contains(&at);
        let is_added = column.id.is_none();
        if !(in_key || is_added || wanted(at)) {
            continue;
        }
        positions[at] = Some(reader.columns.len());
        reader.columns.push(ReadColumn {
            at,
            name: column.name.clone(),
            id: column.id,
            logical: column.logical,
            head: FieldHead::new(column.id.unwrap_or_default(), column.logical),
            in_key,
            cursor: ColumnCursor::new(Physical::of(column.logical), column.required, limits),
        });
    }
    let position = |at: &usize| positions[*at];
    reader.key = layout.key.iter().filter_map(position).collect();
    reader.stored = layout.stored.iter().filter_map(position).collect();
    reader.op = layout.op.as_ref().and_then(position);
    reader.unchanged = layout.unchanged.as_ref().and_then(position);
    reader.stored_ids = layout.stored.iter().filter_map(|at| layout.columns[*at].id).collect();
}
