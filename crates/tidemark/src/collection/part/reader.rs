//! Streams a key range of one part, or of the parts of one link.

use std::collections::VecDeque;
use std::{fmt, io};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use super::columns::{ColumnCursor, CursorLimits, PartBytes};
use super::footer::{self, GroupExtent, MAGIC, TAIL_BYTES};
use super::layout::{Layout, Physical};
use super::writer::{bytes_fit, encode_inexact_key};
use super::{META_KIND, META_SCHEMA, META_VERSION, PROFILE_VERSION, PartKind, key_text};
use crate::collection::manifest::PartEntry;
use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::key::{encode_key_bytes, encode_key_i32, encode_key_i64};
use crate::row::payload::{begin, put_fixed, put_unchanged, put_variable};
use crate::row::{ChangeOp, KeyRange, LogicalType, RowBatch, RowCodec, RowStream, Schema};

/// Room for what a page holds beside a greatest row: levels, the representative of a
/// decimal key with a huge exponent, the list of an update's unchanged columns.
const PAGE_SLACK_BYTES: u64 = 512 << 10;

/// Footer bytes of a column chunk and of the rest, beyond names and schema.
const FOOTER_CHUNK_BYTES: u64 = 128;
const FOOTER_BASE_BYTES: u64 = 64 << 10;

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

#[derive(Debug)]
struct Group {
    position: usize,
    extent: GroupExtent,
    first_key: Vec<u8>,
    is_last: bool,
}

#[derive(Debug)]
struct ReadColumn {
    /// Position in the file.
    at: usize,
    name: String,
    id: Option<ColumnId>,
    logical: LogicalType,
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
    /// fails with keeps its kind if it is an [`Error`] or [`io::Error`] inside
    /// [`ParquetError::External`].
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
        while batch.len() < self.rows_max && batch.byte_count() < self.bytes_max {
            let Some(group) = self.groups.front() else { return Ok(()) };
            let past_range = self.group_row == 0
                && self.range.end.as_deref().is_some_and(|end| *group.first_key >= *end);
            if past_range || self.ended {
                self.groups.clear();
                return Ok(());
            }
            self.enter_group();
            self.next_row(batch)?;
            self.leave_group_if_done()?;
        }
        Ok(())
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
        self.check_key()?;
        self.group_row += 1;
        std::mem::swap(&mut self.last_key, &mut self.key_buffer);
        self.has_last = true;
        let key = &*self.last_key;
        let before =
            *key < *self.range.start || self.after.as_deref().is_some_and(|after| key <= after);
        if self.range.end.as_deref().is_some_and(|end| key >= end) {
            self.ended = true;
            self.lag += 1;
            return Ok(());
        }
        // Without a key every row is inside: its key is empty, and so is the range's start.
        if before && self.has_key {
            self.lag += 1;
            return Ok(());
        }
        self.read_others()?;
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

    fn check_key(&self) -> Result<()> {
        if !self.has_key {
            return Ok(());
        }
        let group = self.groups.front().expect("a group was entered");
        let key = &self.key_buffer;
        if self.group_row == 0 && *key != group.first_key {
            let message = format!(
                "row group {} begins with key {}, its manifest says {}",
                group.position,
                key_text(key),
                key_text(&group.first_key)
            );
            return Err(self.broken(message));
        }
        if self.has_last && *key <= self.last_key {
            let message = format!(
                "key {} follows {}, keys ascend strictly",
                key_text(key),
                key_text(&self.last_key)
            );
            return Err(self.broken(message));
        }
        if *key > self.entry_last_key {
            let message = format!(
                "key {} is beyond {}, the last one by its manifest",
                key_text(key),
                key_text(&self.entry_last_key)
            );
            return Err(self.broken(message));
        }
        Ok(())
    }

    /// Moves the columns outside the key to the row at hand.
    fn read_others(&mut self) -> Result<()> {
        let lag = std::mem::take(&mut self.lag);
        for at in 0..self.columns.len() {
            let column = &mut self.columns[at];
            if column.in_key {
                continue;
            }
            let mut moved = Ok(());
            if lag > 0 {
                moved = column.cursor.skip(lag, &*self.file);
            }
            let moved = moved.and_then(|()| column.cursor.advance(&*self.file));
            moved.map_err(|error| self.located(error, Some(at)))?;
        }
        Ok(())
    }

    fn append_row(&mut self, batch: &mut RowBatch) -> Result<()> {
        let op = self.read_op()?;
        self.read_unchanged(op)?;
        let bytes_before = batch.byte_count();
        let mut result = Ok(());
        batch.push_with(
            op,
            |out| out.extend_from_slice(&self.last_key),
            |out| result = self.build_payload(op, out),
        );
        if let Err(error) = result {
            batch.pop();
            return Err(error);
        }
        if let Some(whole) = &mut self.whole {
            let row_bytes = batch.byte_count() - bytes_before;
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

    fn read_op(&self) -> Result<ChangeOp> {
        let Some(at) = self.op else { return Ok(ChangeOp::Upsert) };
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

    fn build_payload(&self, op: ChangeOp, out: &mut Vec<u8>) -> Result<()> {
        if op != ChangeOp::Delete {
            begin(out);
        }
        for &at in &self.stored {
            let column = &self.columns[at];
            let id = column.id.expect("stored columns have ids");
            let value = column.cursor.value();
            let misfit = |message: &str| {
                let message = format!("row with key {}: {message}", key_text(&self.last_key));
                self.located(Error::new(Kind::Broken, message), Some(at))
            };
            let is_unchanged = self.unchanged_ids.binary_search(&id).is_ok();
            if op == ChangeOp::Delete || is_unchanged {
                if value.is_some() && !column.in_key {
                    return Err(misfit("a value where the row has none"));
                }
                if is_unchanged {
                    put_unchanged(id, out);
                }
                continue;
            }
            let Some(value) = value else { continue };
            // Key columns were checked when the key was built.
            if !column.in_key && !bytes_fit(column.logical, value) {
                return Err(misfit("bytes that are no value of the type"));
            }
            match column.logical {
                LogicalType::Decimal | LogicalType::Text | LogicalType::Bytes => {
                    put_variable(id, column.logical, value, out);
                }
                // PLAIN is the payload's form of every fixed-width type.
                _ => put_fixed(id, column.logical, value, out),
            }
        }
        Ok(())
    }

    fn broken(&self, message: String) -> Error {
        Error::new(Kind::Broken, format!("read part `{}`: {message}", self.name))
    }

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
        let result = self.fill(batch);
        if result.is_err() {
            self.groups.clear();
            batch.clear();
        }
        result.map(|()| !batch.is_empty())
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

/// Appends the key form of a PLAIN value that fits its type.
fn encode_key(logical: LogicalType, value: &[u8], out: &mut Vec<u8>) {
    let eight = || *value.first_chunk::<8>().expect("the physical type has 8 bytes");
    match logical {
        LogicalType::Bool | LogicalType::Uuid => out.extend_from_slice(value),
        LogicalType::Int64 | LogicalType::Timestamp | LogicalType::TimestampTz => {
            encode_key_i64(i64::from_le_bytes(eight()), out);
        }
        LogicalType::Date => {
            let four = *value.first_chunk::<4>().expect("the physical type has 4 bytes");
            encode_key_i32(i32::from_le_bytes(four), out);
        }
        LogicalType::Text | LogicalType::Bytes => encode_key_bytes(value, out),
        LogicalType::Float64 | LogicalType::Decimal => encode_inexact_key(logical, value, out),
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
        content_bytes_max: page_bytes_max.max(read.part.row_bytes_max) + PAGE_SLACK_BYTES,
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

/// Refuses a manifest entry that contradicts itself.
fn check_entry(read: &PartRead<'_>) -> Result<()> {
    let part = read.part;
    let groups = &part.row_groups;
    let sum = |of: fn(&crate::collection::manifest::RowGroupEntry) -> u64| {
        groups.iter().map(of).try_fold(0u64, u64::checked_add)
    };
    let keyed = !read.schema.key.is_empty();
    let ascending = groups.is_sorted_by(|a, b| !keyed || a.first_key < b.first_key);
    let consistent = groups.first().is_some_and(|group| group.first_key == part.first_key)
        && groups.last().is_some_and(|group| group.first_key <= part.last_key)
        && groups.iter().all(|group| group.rows > 0)
        && ascending
        && sum(|group| group.rows) == Some(part.rows)
        && sum(|group| group.row_bytes) == Some(part.row_bytes)
        && part.row_bytes_max <= part.row_bytes
        && part.tombstones <= part.rows
        && (read.kind == PartKind::Increment || part.tombstones == 0);
    if consistent {
        return Ok(());
    }
    Err(Error::new(Kind::Broken, "its manifest entry contradicts itself"))
}

/// Reads the footer and compares it with the manifest; gives the row groups.
fn read_footer(
    file: &dyn PartBytes,
    read: &PartRead<'_>,
    layout: &Layout,
) -> Result<Vec<GroupExtent>> {
    let broken = |message: String| Error::new(Kind::Broken, message);
    let malformed = || broken("its footer is malformed, or it is no part of ours".to_owned());
    let head_bytes = MAGIC.len() as u64;
    let body_bytes = read.part.bytes.checked_sub(head_bytes + TAIL_BYTES).ok_or_else(malformed)?;
    let tail = file.read(read.part.bytes - TAIL_BYTES, TAIL_BYTES as usize)?;
    let (len, magic) = tail.split_first_chunk::<4>().ok_or_else(malformed)?;
    let len = u64::from(u32::from_le_bytes(*len));
    let head = file.read(0, MAGIC.len())?;
    if magic != MAGIC || *head != *MAGIC || len > body_bytes {
        return Err(malformed());
    }
    let bound = footer_bytes_max(read, layout);
    if len > bound {
        return Err(broken(format!("its footer has {len} bytes, at most {bound} were expected")));
    }
    let start = head_bytes + body_bytes - len;
    let bytes = file.read(start, len as usize)?;
    let footer = footer::decode(&bytes).ok_or_else(malformed)?;

    let version = footer.meta(META_VERSION);
    if version != Some(PROFILE_VERSION) {
        let message = format!(
            "it is a part of version {}, this program reads {PROFILE_VERSION}",
            version.unwrap_or("unknown")
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    if footer.meta(META_KIND) != Some(read.kind.name()) {
        return Err(broken(format!("it is no part of kind {}", read.kind.name())));
    }
    let schema = footer.meta(META_SCHEMA).and_then(|text| serde_json::from_str(text).ok());
    let same = schema.is_some_and(|found: Schema| {
        found.columns == read.schema.columns && found.key == read.schema.key
    });
    if !same {
        return Err(broken("its schema is another than that of its manifest".to_owned()));
    }
    if let Some(difference) = footer.differs_from(layout) {
        return Err(broken(difference));
    }
    check_groups(&footer.groups, start, read, layout)?;
    if footer.rows != read.part.rows {
        let expected = read.part.rows;
        return Err(broken(format!("it has {} rows, its manifest says {expected}", footer.rows)));
    }
    Ok(footer.groups)
}

/// Refuses row groups of other sizes than the manifest has, and chunks that do not lie
/// one behind the other from the magic to the footer.
fn check_groups(
    groups: &[GroupExtent],
    footer_start: u64,
    read: &PartRead<'_>,
    layout: &Layout,
) -> Result<()> {
    let found = groups.iter().map(|group| group.rows);
    if !found.eq(read.part.row_groups.iter().map(|group| group.rows)) {
        let message = "its row groups are others than those of its manifest";
        return Err(Error::new(Kind::Broken, message));
    }
    let mut offset = MAGIC.len() as u64;
    let mut seamless = true;
    for group in groups {
        seamless &= group.chunks.len() == layout.columns.len();
        for chunk in &group.chunks {
            seamless &= chunk.offset == offset && chunk.bytes <= footer_start - offset;
            if !seamless {
                break;
            }
            offset += chunk.bytes;
        }
    }
    if seamless && offset == footer_start {
        return Ok(());
    }
    Err(Error::new(Kind::Broken, "its columns do not lie one behind the other"))
}

/// Bytes a footer of ours has at most, so that a false length allocates nothing.
fn footer_bytes_max(read: &PartRead<'_>, layout: &Layout) -> u64 {
    let columns = layout.columns.len() as u64;
    let text = |column: &super::layout::PartColumn| {
        (column.name.len() + column.native.as_ref().map_or(0, String::len)) as u64
    };
    let texts: u64 = layout.columns.iter().map(text).sum();
    let chunks = read.part.row_groups.len() as u64 * (columns * FOOTER_CHUNK_BYTES + texts);
    // Each column is in the Parquet schema, in the schema's JSON (with every byte escaped
    // at worst), and in Arrow's, in base64.
    chunks + columns * 1024 + texts * 16 + FOOTER_BASE_BYTES
}

/// The row groups that may hold keys of the range.
fn overlapping(groups: Vec<GroupExtent>, read: &PartRead<'_>) -> VecDeque<Group> {
    let entries = &read.part.row_groups;
    let keyed = !read.schema.key.is_empty();
    let last = groups.len() - 1;
    let inside = |position: usize| {
        // The next group's first key is beyond all keys of this one.
        let below = entries.get(position + 1).is_some_and(|next| {
            *next.first_key <= *read.range.start
                || read.after.is_some_and(|after| {
                    // A group that ends with `after` has nothing left either; only its
                    // successor's first key is known.
                    *next.first_key <= *after
                })
        });
        let end = read.range.end.as_deref();
        let beyond = end.is_some_and(|end| *entries[position].first_key >= *end);
        let all_read = position == last
            && (*read.part.last_key < *read.range.start
                || read.after.is_some_and(|after| *read.part.last_key <= *after));
        !keyed || !(below || beyond || all_read)
    };
    groups
        .into_iter()
        .enumerate()
        .filter(|(position, _)| inside(*position))
        .map(|(position, extent)| Group {
            position,
            extent,
            first_key: entries[position].first_key.clone(),
            is_last: position == last,
        })
        .collect()
}

/// A [`ChunkReader`] with our errors.
struct Chunks<R>(R);

impl<R: ChunkReader> PartBytes for Chunks<R> {
    fn read(&self, start: u64, len: usize) -> Result<Bytes> {
        let bytes = self.0.get_bytes(start, len).map_err(error_of)?;
        if bytes.len() != len {
            let message = format!("it ends at {}, expected {len} bytes from {start}", bytes.len());
            return Err(Error::new(Kind::Broken, message));
        }
        Ok(bytes)
    }
}

fn error_of(error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<Error>() {
            Ok(error) => *error,
            Err(cause) => match cause.downcast::<io::Error>() {
                Ok(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                    Error::with_source(Kind::Broken, "it ends too early", *cause)
                }
                Ok(cause) => Error::io("read the object", *cause),
                Err(cause) => Error::with_source(Kind::Fatal, "read the object", cause),
            },
        },
        ParquetError::EOF(_) => Error::with_source(Kind::Broken, "it ends too early", error),
        other => Error::with_source(Kind::Fatal, "read the object", other),
    }
}

/// Opens one part of a link for reading.
pub type OpenPart<'a> = Box<dyn FnMut(&PartEntry) -> Result<Box<dyn RowStream + 'a>> + Send + 'a>;

/// The rows of one link: its parts one after the other, one open at a time.
pub struct LinkReader<'a> {
    parts: VecDeque<PartEntry>,
    open_part: OpenPart<'a>,
    current: Option<Box<dyn RowStream + 'a>>,
}

impl<'a> LinkReader<'a> {
    /// A stream over those of `parts`, in key order, that may hold keys of `range` beyond `after`.
    ///
    /// # Errors
    /// [`Kind::Broken`] if the parts' key ranges overlap or are out of order.
    pub fn new(
        parts: &[PartEntry],
        range: &KeyRange,
        after: Option<&[u8]>,
        open_part: OpenPart<'a>,
    ) -> Result<LinkReader<'a>> {
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].last_key >= pair[1].first_key) {
            // Parts of a table without a key have no keys to compare.
            if !(pair[0].last_key.is_empty() && pair[1].first_key.is_empty()) {
                let message = format!(
                    "part `{}` begins with key {}, but `{}` before it ends with {}",
                    pair[1].name,
                    key_text(&pair[1].first_key),
                    pair[0].name,
                    key_text(&pair[0].last_key)
                );
                return Err(Error::new(Kind::Broken, message));
            }
        }
        let inside = |part: &&PartEntry| {
            range.overlaps(&part.first_key, &part.last_key)
                && after.is_none_or(|after| *part.last_key > *after)
        };
        let parts = parts.iter().filter(inside).cloned().collect();
        Ok(LinkReader { parts, open_part, current: None })
    }
}

impl RowStream for LinkReader<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        loop {
            if let Some(current) = &mut self.current
                && current.next_batch(batch)?
            {
                return Ok(true);
            }
            // Closed before the next one is opened, so that one part's memory is enough.
            self.current = None;
            let Some(part) = self.parts.pop_front() else {
                batch.clear();
                return Ok(false);
            };
            self.current = Some((self.open_part)(&part)?);
        }
    }
}

impl fmt::Debug for LinkReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader").field("parts_left", &self.parts.len()).finish_non_exhaustive()
    }
}
