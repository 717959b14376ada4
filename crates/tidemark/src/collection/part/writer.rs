//! Writes one part: rows in key order to columns, pages, row groups, footer.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::ops::Range;

use parquet::arrow::{ARROW_SCHEMA_META_KEY, encode_arrow_schema};

use super::columns::ColumnEncoder;
use super::footer::{self, GroupExtent, MAGIC};
use super::layout::{Layout, PartColumn};
use super::values::{bytes_fit, encode_key, skip_key_decimal, take_key_bytes};
use super::{
    HashingWriter, META_KIND, META_SCHEMA, META_VERSION, PROFILE_VERSION, PartKind, key_text,
};
use crate::collection::manifest::{PartEntry, RowGroupEntry};
use crate::error::{Error, Kind, Result};
use crate::ids::TableId;
use crate::row::digest::RowHasher;
use crate::row::key::{decode_key_value, encode_key_value};
use crate::row::payload::{Field, TAG_UNCHANGED, canonical_f64, fields};
use crate::row::{ChangeOp, Digest, LogicalType, RowBatch, RowRef, Schema, Value};

/// Rows of a row group at most.
const GROUP_ROWS_MAX: u64 = 65_536;

/// Bytes of a row group that are held before they are written, about: what a writer's
/// memory is made of. Larger groups would not be read any faster, since readers go by page.
const GROUP_BYTES_MAX: u64 = 8 << 20;

/// Rows between two looks at how much is held, unless they are large.
const ROWS_PER_LOOK: u64 = 64;
/// A row from this size on is followed by a look.
const LARGE_ROW_BYTES: u64 = 16 << 10;

/// Key samples of a part at most.
const KEY_SAMPLES_MAX: usize = 64;

/// What a part's writer must know besides its schema.
#[derive(Clone, Copy, Debug)]
pub struct PartOptions {
    /// Identity that the table's digests carry.
    pub digest_id: TableId,
    /// Bytes of a page before compression; `None` for [`PartKind::page_bytes_max`].
    pub page_bytes_max: Option<u64>,
    /// Rows of a row group.
    pub group_rows_max: u64,
    /// Compressed bytes of a row group, about.
    pub group_bytes_max: u64,
}

impl PartOptions {
    /// The ordinary sizes.
    pub fn new(digest_id: TableId) -> PartOptions {
        PartOptions {
            digest_id,
            page_bytes_max: None,
            group_rows_max: GROUP_ROWS_MAX,
            group_bytes_max: GROUP_BYTES_MAX,
        }
    }
}

/// Writes one part to `W`, front to back.
///
/// Holds a row group of about 8 MiB, an open page per column, and a row: a value of
/// `n` bytes costs about `2 n` while its page is made. A crash or an error leaves an
/// unfinished object that no reader accepts, since its end is missing.
pub struct PartWriter<W> {
    out: HashingWriter<W>,
    schema: Schema,
    kind: PartKind,
    options: PartOptions,
    layout: Layout,
    encoders: Vec<ColumnEncoder>,
    hasher: RowHasher,
    groups: Vec<GroupExtent>,
    summary: PartSummary,
    sample_step: u64,
    rows_since_look: u64,
    /// Where each inexact key column's bytes lie in the key of the row at hand.
    key_pieces: Vec<(usize, Range<usize>)>,
    scratch: Vec<u8>,
    unchanged: String,
}

/// What a finished part is: its manifest entry without the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSummary {
    /// See [`PartEntry`] for all of them.
    pub bytes: u64,
    /// BLAKE3 of the object, hexadecimal.
    pub blake3: String,
    /// Rows, tombstones included.
    pub rows: u64,
    /// Deleted keys.
    pub tombstones: u64,
    /// Key and payload bytes of all rows.
    pub row_bytes: u64,
    /// Key and payload bytes of the greatest row.
    pub row_bytes_max: u64,
    /// Least key.
    pub first_key: Vec<u8>,
    /// Greatest key.
    pub last_key: Vec<u8>,
    /// Digest of the rows that are not tombstones.
    pub digest: Digest,
    /// Row groups in order.
    pub row_groups: Vec<RowGroupEntry>,
    /// At most 64 keys, evenly spread.
    pub key_samples: Vec<Vec<u8>>,
}

impl PartSummary {
    /// The manifest entry of the part under `name`.
    pub fn into_entry(self, name: String) -> PartEntry {
        PartEntry {
            name,
            bytes: self.bytes,
            blake3: self.blake3,
            rows: self.rows,
            tombstones: self.tombstones,
            row_bytes: self.row_bytes,
            row_bytes_max: self.row_bytes_max,
            first_key: self.first_key,
            last_key: self.last_key,
            digest: self.digest,
            row_groups: self.row_groups,
            key_samples: self.key_samples,
            extra: serde_json::Map::new(),
        }
    }
}

impl<W: Write> PartWriter<W> {
    /// Begins a part of `kind` with rows under `schema`.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a schema that contradicts itself or has a column of a name that
    /// increments use themselves; the kinds of [`Error::io`] when `out` fails.
    pub fn new(
        out: W,
        schema: &Schema,
        kind: PartKind,
        options: PartOptions,
    ) -> Result<PartWriter<W>> {
        let layout = Layout::new(schema, kind)?;
        let page_bytes_max = options
            .page_bytes_max
            .unwrap_or_else(|| kind.page_bytes_max(layout.columns.len() as u32));
        let encoders = layout
            .columns
            .iter()
            .map(|column| ColumnEncoder::new(column.required, page_bytes_max))
            .collect();
        let mut writer = PartWriter {
            out: HashingWriter::new(out),
            schema: schema.clone(),
            kind,
            options,
            layout,
            encoders,
            hasher: RowHasher::new(options.digest_id),
            groups: Vec::new(),
            summary: PartSummary {
                bytes: 0,
                blake3: String::new(),
                rows: 0,
                tombstones: 0,
                row_bytes: 0,
                row_bytes_max: 0,
                first_key: Vec::new(),
                last_key: Vec::new(),
                digest: Digest::default(),
                row_groups: Vec::new(),
                key_samples: Vec::new(),
            },
            sample_step: 1,
            rows_since_look: 0,
            key_pieces: Vec::new(),
            scratch: Vec::new(),
            unchanged: String::new(),
        };
        writer.write_out(MAGIC)?;
        Ok(writer)
    }

    /// Appends rows, which ascend strictly in key, also across calls. The rows of a table
    /// without a key have empty keys.
    ///
    /// # Errors
    /// [`Kind::Fatal`]: rows out of order, or a row that is none of this schema: our
    /// source's mistake, told with column and key. [`Kind::Usage`]: a value beyond 2 GiB.
    /// The kinds of [`Error::io`] when the output fails. The part is then lost.
    pub fn write(&mut self, rows: &RowBatch) -> Result<()> {
        for row in rows.iter() {
            self.write_row(row).map_err(|error| {
                error.context(format!("write a part: row with key {}", key_text(row.key)))
            })?;
        }
        Ok(())
    }

    /// Rows written.
    pub fn rows(&self) -> u64 {
        self.summary.rows
    }

    /// Bytes written and held: what decides when the next part begins.
    pub fn bytes(&self) -> u64 {
        self.out.bytes() + self.buffered_bytes()
    }

    /// Writes what is held and the footer; gives the output back, flushed but not synced,
    /// and what the part is.
    ///
    /// # Errors
    /// [`Kind::Fatal`] if no row was written, which makes no part; as
    /// [`write`](Self::write) otherwise.
    pub fn finish(self) -> Result<(W, PartSummary)> {
        if self.summary.rows == 0 {
            return Err(Error::new(Kind::Fatal, "write a part: it has no row"));
        }
        self.finish_with_any_rows()
    }

    /// The same for what is no part of a backup, and may have no row.
    pub(super) fn finish_with_any_rows(mut self) -> Result<(W, PartSummary)> {
        self.flush_group()?;
        let schema = serde_json::to_string(&self.schema)
            .map_err(|cause| Error::with_source(Kind::Fatal, "write a part's schema", cause))?;
        let metadata = [
            (META_VERSION, PROFILE_VERSION.to_owned()),
            (META_KIND, self.kind.name().to_owned()),
            (META_SCHEMA, schema),
            (ARROW_SCHEMA_META_KEY, encode_arrow_schema(&self.layout.arrow_schema())),
        ];
        let footer = footer::encode(&self.layout, &self.groups, &metadata);
        self.write_out(&footer)?;
        self.out.flush().map_err(|cause| Error::io("flush a part", cause))?;
        let (out, bytes, blake3) = self.out.finish();
        Ok((out, PartSummary { bytes, blake3, ..self.summary }))
    }

    fn write_row(&mut self, row: RowRef<'_>) -> Result<()> {
        self.check_order(row.key)?;
        if self.kind == PartKind::Full && row.op != ChangeOp::Upsert {
            return Err(fatal(format!("a full holds whole rows, found a row of {:?}", row.op)));
        }
        self.write_key(row)?;
        self.write_payload(row)?;
        if let Some(op) = self.layout.op {
            self.encoders[op].put_bytes(op_name(row.op).as_bytes())?;
        }
        self.account(row);
        self.rows_since_look += 1;
        if self.rows_since_look >= ROWS_PER_LOOK || row.byte_count() >= LARGE_ROW_BYTES {
            self.rows_since_look = 0;
            if self.buffered_bytes() >= self.options.group_bytes_max {
                return self.flush_group();
            }
        }
        if self.group_rows() >= self.options.group_rows_max {
            return self.flush_group();
        }
        Ok(())
    }

    fn check_order(&self, key: &[u8]) -> Result<()> {
        if self.schema.key.is_empty() {
            return match key {
                [] => Ok(()),
                _ => Err(fatal("the table has no key, its rows have an empty one".to_owned())),
            };
        }
        if self.summary.rows > 0 && *key <= *self.summary.last_key {
            let last = key_text(&self.summary.last_key);
            return Err(fatal(format!("keys ascend, and the one before is {last}")));
        }
        Ok(())
    }

    /// Appends the exact key columns, and notes where the others lie in the key.
    fn write_key(&mut self, row: RowRef<'_>) -> Result<()> {
        let mut rest = row.key;
        self.key_pieces.clear();
        for &at in &self.layout.key {
            let column = &self.layout.columns[at];
            let start = row.key.len() - rest.len();
            let encoder = &mut self.encoders[at];
            let taken = match column.logical {
                // Their digits are in the payload; here only where the key's form of them ends.
                LogicalType::Float64 => rest.split_off(..8).map(|_| ()),
                LogicalType::Decimal => skip_key_decimal(&mut rest),
                LogicalType::Text | LogicalType::Bytes => {
                    self.scratch.clear();
                    let taken = take_key_bytes(&mut rest, &mut self.scratch);
                    check_bytes(column, &self.scratch)?;
                    encoder.put_bytes(&self.scratch)?;
                    taken
                }
                _ => match decode_key_value(column.logical, &mut rest) {
                    Some(value) => {
                        put_value(encoder, &value)?;
                        Some(())
                    }
                    None => None,
                },
            };
            taken.ok_or_else(|| malformed_key(column))?;
            if !column.logical.key_is_exact() {
                self.key_pieces.push((at, start..row.key.len() - rest.len()));
            }
        }
        if !rest.is_empty() {
            return Err(fatal("the key is longer than its columns".to_owned()));
        }
        Ok(())
    }

    fn write_payload(&mut self, row: RowRef<'_>) -> Result<()> {
        if row.op == ChangeOp::Delete {
            return self.write_delete(row);
        }
        let mut rest = fields(row.payload);
        let mut next = rest.next().transpose()?;
        let mut unchanged = std::mem::take(&mut self.unchanged);
        unchanged.clear();
        for position in 0..self.layout.stored.len() {
            let at = self.layout.stored[position];
            let id = self.layout.columns[at].id.expect("stored columns have ids");
            let Some(field) = next.filter(|field| field.id == id) else {
                self.write_missing(at)?;
                continue;
            };
            if field.tag == TAG_UNCHANGED {
                if !unchanged.is_empty() {
                    unchanged.push(',');
                }
                write!(unchanged, "{id}").expect("writing to a String cannot fail");
                self.write_unchanged(at, row)?;
            } else {
                self.write_field(at, &field, row)?;
            }
            next = rest.next().transpose()?;
        }
        if let Some(field) = next {
            return Err(fatal(format!(
                "its payload has column {}, which the schema has not, or not in that place",
                field.id
            )));
        }
        if !unchanged.is_empty() && row.op != ChangeOp::Update {
            return Err(fatal("a whole row leaves columns unchanged".to_owned()));
        }
        match self.layout.unchanged {
            Some(at) if unchanged.is_empty() => self.encoders[at].put_null()?,
            Some(at) => self.encoders[at].put_bytes(unchanged.as_bytes())?,
            None => {}
        }
        self.unchanged = unchanged;
        Ok(())
    }

    fn write_delete(&mut self, row: RowRef<'_>) -> Result<()> {
        if !row.payload.is_empty() {
            return Err(fatal("a delete has a payload".to_owned()));
        }
        for position in 0..self.layout.stored.len() {
            let at = self.layout.stored[position];
            match self.key_piece(at) {
                Some(_) => self.write_unchanged(at, row)?,
                None => self.encoders[at].put_null()?,
            }
        }
        let at = self.layout.unchanged.expect("increments have the column: deletes are in no full");
        self.encoders[at].put_null()
    }

    fn write_missing(&mut self, at: usize) -> Result<()> {
        if self.layout.columns[at].required {
            let name = &self.layout.columns[at].name;
            return Err(fatal(format!("its payload has no value for key column `{name}`")));
        }
        self.encoders[at].put_null()
    }

    /// Appends what stands where the payload has no value: NULL, or in a key column the
    /// representative of its key.
    fn write_unchanged(&mut self, at: usize, row: RowRef<'_>) -> Result<()> {
        let Some(piece) = self.key_piece(at) else { return self.encoders[at].put_null() };
        let piece = &row.key[piece];
        let column = &self.layout.columns[at];
        self.scratch.clear();
        let value = decode_key_value(column.logical, &mut &*piece).filter(|value| {
            encode_key_value(value, &mut self.scratch).is_ok() && self.scratch == piece
        });
        let value = value.ok_or_else(|| malformed_key(column))?;
        put_value(&mut self.encoders[at], &value)
    }

    fn write_field(&mut self, at: usize, field: &Field<'_>, row: RowRef<'_>) -> Result<()> {
        let column = &self.layout.columns[at];
        if field.tag != column.logical as u8 {
            return Err(fatal(format!(
                "column `{}` is {}, its payload has type number {}",
                column.name,
                column.logical.name(),
                field.tag
            )));
        }
        check_bytes(column, field.value)?;
        if let Some(piece) = self.key_piece(at) {
            self.scratch.clear();
            encode_key(column.logical, field.value, &mut self.scratch);
            if self.scratch != row.key[piece] {
                let name = &column.name;
                return Err(fatal(format!("key and payload differ in column `{name}`")));
            }
        }
        let encoder = &mut self.encoders[at];
        match column.logical {
            LogicalType::Bool => encoder.put_bool(field.value == [1]),
            LogicalType::Decimal | LogicalType::Text | LogicalType::Bytes => {
                encoder.put_bytes(field.value)
            }
            // The payload's form of a fixed-width value is the PLAIN one.
            _ => encoder.put_fixed(field.value),
        }
    }

    fn key_piece(&self, at: usize) -> Option<Range<usize>> {
        self.key_pieces.iter().find(|(column, _)| *column == at).map(|(_, piece)| piece.clone())
    }

    /// Counts a row that was appended to the open row group.
    fn account(&mut self, row: RowRef<'_>) {
        let row_bytes = row.byte_count();
        let summary = &mut self.summary;
        // An entry is there from a group's first row on, its extent from its flush on.
        if self.groups.len() == summary.row_groups.len() {
            let first_key = row.key.to_vec();
            summary.row_groups.push(RowGroupEntry { rows: 0, row_bytes: 0, first_key });
        }
        let group = summary.row_groups.last_mut().expect("a group was opened");
        group.rows += 1;
        group.row_bytes += row_bytes;
        if summary.rows == 0 {
            summary.first_key.extend_from_slice(row.key);
        }
        summary.last_key.clear();
        summary.last_key.extend_from_slice(row.key);
        if summary.rows.is_multiple_of(self.sample_step) {
            if summary.key_samples.len() == KEY_SAMPLES_MAX {
                let mut keep = false;
                summary.key_samples.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.sample_step *= 2;
            }
            if summary.rows.is_multiple_of(self.sample_step) {
                summary.key_samples.push(row.key.to_vec());
            }
        }
        summary.rows += 1;
        summary.row_bytes += row_bytes;
        summary.row_bytes_max = summary.row_bytes_max.max(row_bytes);
        if row.op == ChangeOp::Delete {
            summary.tombstones += 1;
        } else {
            summary.digest += self.hasher.row(row.key, row.payload);
        }
    }

    fn group_rows(&self) -> u64 {
        let is_open = self.groups.len() < self.summary.row_groups.len();
        self.summary.row_groups.last().filter(|_| is_open).map_or(0, |group| group.rows)
    }

    fn buffered_bytes(&self) -> u64 {
        self.encoders.iter().map(ColumnEncoder::buffered_bytes).sum()
    }

    fn flush_group(&mut self) -> Result<()> {
        let rows = self.group_rows();
        if rows == 0 {
            return Ok(());
        }
        let mut chunks = Vec::with_capacity(self.encoders.len());
        for encoder in &mut self.encoders {
            chunks.push(encoder.finish(self.out.bytes())?);
            self.out
                .write_all(encoder.chunk())
                .map_err(|cause| Error::io("write a part", cause))?;
            encoder.clear();
        }
        self.groups.push(GroupExtent { rows, chunks });
        self.rows_since_look = 0;
        Ok(())
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|cause| Error::io("write a part", cause))
    }
}

/// The word that [`OP_COLUMN`](super::OP_COLUMN) has for `op`.
pub(super) fn op_name(op: ChangeOp) -> &'static str {
    match op {
        ChangeOp::Upsert => "upsert",
        ChangeOp::Update => "update",
        ChangeOp::Delete => "delete",
    }
}

impl<W> fmt::Debug for PartWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartWriter")
            .field("kind", &self.kind)
            .field("rows", &self.summary.rows)
            .finish_non_exhaustive()
    }
}

fn fatal(message: String) -> Error {
    Error::new(Kind::Fatal, message)
}

fn malformed_key(column: &PartColumn) -> Error {
    fatal(format!("the key holds no value for column `{}`", column.name))
}

/// Refuses bytes that are no value of the column; `value` is in payload form.
fn check_bytes(column: &PartColumn, value: &[u8]) -> Result<()> {
    match bytes_fit(column.logical, value) {
        true => Ok(()),
        false => Err(fatal(format!(
            "column `{}` holds bytes that are no {}",
            column.name,
            column.logical.name()
        ))),
    }
}

fn put_value(encoder: &mut ColumnEncoder, value: &Value) -> Result<()> {
    match value {
        Value::Null => encoder.put_null(),
        Value::Bool(value) => encoder.put_bool(*value),
        Value::Int64(value) | Value::Timestamp(value) | Value::TimestampTz(value) => {
            encoder.put_fixed(&value.to_le_bytes())
        }
        Value::Float64(value) => encoder.put_fixed(&canonical_f64(*value).to_le_bytes()),
        Value::Date(days) => encoder.put_fixed(&days.to_le_bytes()),
        Value::Uuid(bits) => encoder.put_fixed(&bits.to_be_bytes()),
        Value::Decimal(text) | Value::Text(text) => encoder.put_bytes(text.as_bytes()),
        Value::Bytes(bytes) => encoder.put_bytes(bytes),
    }
}
