//! The payload encoding: every column of a row that its key does not hold exactly.
//!
//! | bytes | |
//! |---|---|
//! | 1 | version, [`PAYLOAD_VERSION`] |
//! | then per column that is not NULL, in ascending column id | |
//! | 1–5 | column id, LEB128 |
//! | 1 | tag: the type's number, or [`TAG_UNCHANGED`] |
//! | n | value |
//!
//! Values: bool 1; int64, float64, timestamp, timestamp_tz 8 little-endian; date
//! 4 little-endian; uuid 16 big-endian; decimal, text and bytes a LEB128 length
//! (1–10) and that many bytes; unchanged none. A NaN is `7ff8000000000000`.
//!
//! Key columns whose type is exact in the key ([`LogicalType::key_is_exact`])
//! are left out. A column that is missing is NULL, so a new column needs no row
//! rewritten; a column that the schema lost is skipped.

use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::key::{decode_key_value, encode_key_value};
use crate::row::schema::{LogicalType, Schema};
use crate::row::value::{Row, Value, is_decimal};

/// First byte of every payload.
pub const PAYLOAD_VERSION: u8 = 1;

/// Tag of a column that a partial update leaves as it was.
pub const TAG_UNCHANGED: u8 = 0xff;

/// One column inside a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Column.
    pub id: ColumnId,
    /// Type number, or [`TAG_UNCHANGED`].
    pub tag: u8,
    /// The value, without the length of variable types.
    pub value: &'a [u8],
    /// The whole field as it stands in the payload.
    pub raw: &'a [u8],
}

/// The fields of a payload in order; ends with an error where the bytes make no sense.
pub fn fields(payload: &[u8]) -> Fields<'_> {
    match payload.split_first() {
        Some((&PAYLOAD_VERSION, rest)) => Fields { rest, state: FieldsState::Reading },
        _ => Fields { rest: payload, state: FieldsState::BadVersion },
    }
}

/// See [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    state: FieldsState,
}

#[derive(Clone, Copy, Debug)]
enum FieldsState {
    BadVersion,
    Reading,
    Ended,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Result<Field<'a>>> {
        match self.state {
            FieldsState::Reading if self.rest.is_empty() => None,
            FieldsState::Reading => Some(take_field(&mut self.rest).ok_or_else(|| {
                self.state = FieldsState::Ended;
                Error::new(Kind::Broken, "a row's payload is truncated or malformed")
            })),
            FieldsState::BadVersion => {
                self.state = FieldsState::Ended;
                let found = self.rest.first().map_or("nothing".to_owned(), u8::to_string);
                let message = format!(
                    "a row's payload has version {found}, this program reads {PAYLOAD_VERSION}"
                );
                Some(Err(Error::new(Kind::Unsupported, message)))
            }
            FieldsState::Ended => None,
        }
    }
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let from = *rest;
    let id = ColumnId(u32::try_from(take_varint(rest)?).ok()?);
    let (&tag, after) = rest.split_first()?;
    *rest = after;
    let len = match LogicalType::from_number(tag) {
        None if tag == TAG_UNCHANGED => 0,
        None => return None,
        Some(LogicalType::Bool) => 1,
        Some(LogicalType::Date) => 4,
        Some(LogicalType::Uuid) => 16,
        Some(
            LogicalType::Int64
            | LogicalType::Float64
            | LogicalType::Timestamp
            | LogicalType::TimestampTz,
        ) => 8,
        Some(LogicalType::Decimal | LogicalType::Text | LogicalType::Bytes) => {
            usize::try_from(take_varint(rest)?).ok()?
        }
    };
    let (value, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(Field { id, tag, value, raw: &from[..from.len() - after.len()] })
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
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

fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Starts a payload; fields follow in ascending column id.
pub fn begin(out: &mut Vec<u8>) {
    out.push(PAYLOAD_VERSION);
}

/// What stands before every value of one column, made once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldHead {
    bytes: [u8; FieldHead::BYTES_MAX],
    len: usize,
    is_variable: bool,
}

impl FieldHead {
    /// A column id of five bytes, and the tag.
    const BYTES_MAX: usize = 6;

    pub(crate) fn new(id: ColumnId, logical: LogicalType) -> FieldHead {
        let mut head = Vec::with_capacity(FieldHead::BYTES_MAX);
        put_varint(u64::from(id.0), &mut head);
        head.push(logical as u8);
        let mut bytes = [0; FieldHead::BYTES_MAX];
        bytes[..head.len()].copy_from_slice(&head);
        let is_variable =
            matches!(logical, LogicalType::Decimal | LogicalType::Text | LogicalType::Bytes);
        FieldHead { bytes, len: head.len(), is_variable }
    }

    /// Appends the field with that value, which is as [`put_fixed`] or [`put_variable`] take it.
    #[inline]
    pub(crate) fn put(&self, value: &[u8], out: &mut Vec<u8>) {
        // Copies of a length that the compiler knows are a few instructions, others a call.
        let end = out.len() + self.len;
        out.extend_from_slice(&self.bytes);
        out.truncate(end);
        if self.is_variable {
            put_varint(value.len() as u64, out);
            out.extend_from_slice(value);
            return;
        }
        if let Ok(value) = <&[u8; 8]>::try_from(value) {
            out.extend_from_slice(value);
        } else if let Ok(value) = <&[u8; 16]>::try_from(value) {
            out.extend_from_slice(value);
        } else {
            out.extend_from_slice(value);
        }
    }
}

/// Appends a fixed-width field: `value` has the width its type asks for.
pub fn put_fixed(id: ColumnId, logical: LogicalType, value: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(id.0), out);
    out.push(logical as u8);
    out.extend_from_slice(value);
}

/// Appends a decimal, text or bytes field.
pub fn put_variable(id: ColumnId, logical: LogicalType, value: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(id.0), out);
    out.push(logical as u8);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Appends a field that says: this column keeps its older value.
pub fn put_unchanged(id: ColumnId, out: &mut Vec<u8>) {
    put_varint(u64::from(id.0), out);
    out.push(TAG_UNCHANGED);
}

/// Appends a field for `value`; nothing for NULL.
pub fn put_value(id: ColumnId, value: &Value, out: &mut Vec<u8>) {
    let Some(logical) = value.logical() else { return };
    match value {
        Value::Null => {}
        Value::Bool(value) => put_fixed(id, logical, &[u8::from(*value)], out),
        Value::Int64(value) | Value::Timestamp(value) | Value::TimestampTz(value) => {
            put_fixed(id, logical, &value.to_le_bytes(), out);
        }
        Value::Float64(value) => put_fixed(id, logical, &canonical_f64(*value).to_le_bytes(), out),
        Value::Date(days) => put_fixed(id, logical, &days.to_le_bytes(), out),
        Value::Uuid(bits) => put_fixed(id, logical, &bits.to_be_bytes(), out),
        Value::Decimal(text) | Value::Text(text) => put_variable(id, logical, text.as_bytes(), out),
        Value::Bytes(bytes) => put_variable(id, logical, bytes, out),
    }
}

/// The float with its one NaN pattern.
pub fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { value }
}

/// The value of a field.
///
/// # Errors
/// [`Kind::Broken`] if the bytes are no value of the field's type.
pub fn field_value(field: &Field<'_>) -> Result<Value> {
    let broken = || {
        Error::new(
            Kind::Broken,
            format!("column {} of a row holds bytes that are no value", field.id),
        )
    };
    let logical = LogicalType::from_number(field.tag).ok_or_else(broken)?;
    let eight = || <[u8; 8]>::try_from(field.value).map_err(|_| broken());
    let text = || String::from_utf8(field.value.to_vec()).map_err(|_| broken());
    Ok(match logical {
        LogicalType::Bool => match field.value {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(broken()),
        },
        LogicalType::Int64 => Value::Int64(i64::from_le_bytes(eight()?)),
        LogicalType::Float64 => Value::Float64(f64::from_le_bytes(eight()?)),
        LogicalType::Timestamp => Value::Timestamp(i64::from_le_bytes(eight()?)),
        LogicalType::TimestampTz => Value::TimestampTz(i64::from_le_bytes(eight()?)),
        LogicalType::Date => {
            let bytes = <[u8; 4]>::try_from(field.value).map_err(|_| broken())?;
            Value::Date(i32::from_le_bytes(bytes))
        }
        LogicalType::Uuid => {
            let bytes = <[u8; 16]>::try_from(field.value).map_err(|_| broken())?;
            Value::Uuid(u128::from_be_bytes(bytes))
        }
        LogicalType::Decimal => {
            Value::Decimal(text().ok().filter(|text| is_decimal(text)).ok_or_else(broken)?)
        }
        LogicalType::Text => Value::Text(text()?),
        LogicalType::Bytes => Value::Bytes(field.value.to_vec()),
    })
}

/// Whether a payload leaves any column as it was.
pub fn is_partial(payload: &[u8]) -> Result<bool> {
    for field in fields(payload) {
        if field?.tag == TAG_UNCHANGED {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes `newer` with the columns it leaves unchanged taken from `older`.
///
/// `older` may itself be partial; then so is the result, in those columns.
pub fn overlay(newer: &[u8], older: &[u8], out: &mut Vec<u8>) -> Result<()> {
    begin(out);
    let mut older = fields(older).peekable();
    for field in fields(newer) {
        let field = field?;
        if field.tag != TAG_UNCHANGED {
            out.extend_from_slice(field.raw);
            continue;
        }
        while let Some(below) =
            older.next_if(|below| below.as_ref().is_ok_and(|below| below.id < field.id))
        {
            below?;
        }
        match older.next_if(|below| below.as_ref().is_ok_and(|below| below.id == field.id)) {
            Some(below) => out.extend_from_slice(below?.raw),
            None => {
                if let Some(Err(error)) = older.next_if(Result::is_err) {
                    return Err(error);
                }
                // Missing below: the column was NULL and stays so.
            }
        }
    }
    Ok(())
}

/// Encodes and decodes the rows of one table under one schema.
#[derive(Clone, Debug)]
pub struct RowCodec {
    schema: Schema,
    /// Positions in `schema.columns` of the key columns, in key order.
    key: Vec<usize>,
    /// Positions of the columns that payloads hold, in ascending column id.
    stored: Vec<usize>,
}

impl RowCodec {
    /// A codec for `schema`, which must have passed [`Schema::check`].
    pub fn new(schema: &Schema) -> RowCodec {
        let position = |id: ColumnId| {
            schema
                .columns
                .iter()
                .position(|column| column.id == id)
                .expect("key columns exist: checked")
        };
        let key: Vec<usize> = schema.key.iter().map(|id| position(*id)).collect();
        let mut stored: Vec<usize> = (0..schema.columns.len())
            .filter(|at| !key.contains(at) || !schema.columns[*at].logical.key_is_exact())
            .collect();
        stored.sort_by_key(|at| schema.columns[*at].id);
        RowCodec { schema: schema.clone(), key, stored }
    }

    /// The schema rows are encoded under.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Positions in the schema's columns of those that payloads hold, in ascending column id.
    pub fn stored_columns(&self) -> &[usize] {
        &self.stored
    }

    /// Whether the schema still has the column of a field, with the field's type.
    pub fn keeps(&self, field: &Field<'_>) -> bool {
        let column = self
            .stored
            .binary_search_by_key(&field.id, |at| self.schema.columns[*at].id)
            .map(|found| &self.schema.columns[self.stored[found]]);
        column.is_ok_and(|column| field.tag == TAG_UNCHANGED || column.logical as u8 == field.tag)
    }

    /// Writes `payload` without the columns that the schema no longer has.
    pub fn project(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        begin(out);
        for field in fields(payload) {
            let field = field?;
            if self.keeps(&field) {
                out.extend_from_slice(field.raw);
            }
        }
        Ok(())
    }

    /// Appends the key of `row`, whose values are in schema order.
    ///
    /// # Errors
    /// [`Kind::Usage`]: another number of values, a NULL in the key, a value of
    /// another type than its column's. `out` is then unspecified.
    pub fn encode_key(&self, row: &[Value], out: &mut Vec<u8>) -> Result<()> {
        self.check_row(row)?;
        for &at in &self.key {
            encode_key_value(&row[at], out).map_err(|error| {
                error.context(format!("column `{}`", self.schema.columns[at].name))
            })?;
        }
        Ok(())
    }

    /// Appends the key of the given key values, in key order.
    ///
    /// # Errors
    /// As [`encode_key`](Self::encode_key); fewer values than key columns make a prefix.
    pub fn encode_key_values(&self, values: &[Value], out: &mut Vec<u8>) -> Result<()> {
        if values.len() > self.key.len() {
            let message = format!(
                "the key has {} columns, {} values were given",
                self.key.len(),
                values.len()
            );
            return Err(Error::new(Kind::Usage, message));
        }
        for (&at, value) in self.key.iter().zip(values) {
            self.check_value(at, value)?;
            encode_key_value(value, out).map_err(|error| {
                error.context(format!("column `{}`", self.schema.columns[at].name))
            })?;
        }
        Ok(())
    }

    /// Appends the payload of `row`.
    ///
    /// # Errors
    /// As [`encode_key`](Self::encode_key).
    pub fn encode_payload(&self, row: &[Value], out: &mut Vec<u8>) -> Result<()> {
        self.check_row(row)?;
        begin(out);
        for &at in &self.stored {
            put_value(self.schema.columns[at].id, &row[at], out);
        }
        Ok(())
    }

    /// The row of that key and payload, in schema order.
    ///
    /// # Errors
    /// [`Kind::Broken`] if the bytes are no row of this table.
    pub fn decode(&self, key: &[u8], payload: &[u8]) -> Result<Row> {
        let mut row = vec![Value::Null; self.schema.columns.len()];
        let mut rest = key;
        for &at in &self.key {
            row[at] =
                decode_key_value(self.schema.columns[at].logical, &mut rest).ok_or_else(|| {
                    let name = &self.schema.columns[at].name;
                    Error::new(
                        Kind::Broken,
                        format!("a row's key holds no value for column `{name}`"),
                    )
                })?;
        }
        if !rest.is_empty() {
            return Err(Error::new(Kind::Broken, "a row's key is longer than its columns"));
        }
        for field in fields(payload) {
            let field = field?;
            if self.keeps(&field) && field.tag != TAG_UNCHANGED {
                let found = self
                    .stored
                    .binary_search_by_key(&field.id, |at| self.schema.columns[*at].id)
                    .expect("the column is kept: checked");
                row[self.stored[found]] = field_value(&field)?;
            }
        }
        Ok(row)
    }

    fn check_row(&self, row: &[Value]) -> Result<()> {
        let columns = &self.schema.columns;
        if row.len() != columns.len() {
            let message =
                format!("a row has {} values, the table has {} columns", row.len(), columns.len());
            return Err(Error::new(Kind::Usage, message));
        }
        row.iter().enumerate().try_for_each(|(at, value)| self.check_value(at, value))
    }

    fn check_value(&self, at: usize, value: &Value) -> Result<()> {
        let column = &self.schema.columns[at];
        let fits = value.logical().is_none_or(|logical| logical == column.logical)
            && !matches!(value, Value::Decimal(text) if !is_decimal(text));
        if fits {
            return Ok(());
        }
        let message =
            format!("column `{}` is {}, found {value:?}", column.name, column.logical.name());
        Err(Error::new(Kind::Usage, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schema() -> Schema {
        Schema::new(
            &[
                ("name", LogicalType::Text),
                ("price", LogicalType::Decimal),
                ("id", LogicalType::Int64),
                ("seen", LogicalType::Timestamp),
                ("weight", LogicalType::Float64),
            ],
            &["id", "price"],
        )
        .unwrap()
    }

    fn encode(codec: &RowCodec, row: &[Value]) -> (Vec<u8>, Vec<u8>) {
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        codec.encode_key(row, &mut key).unwrap();
        codec.encode_payload(row, &mut payload).unwrap();
        (key, payload)
    }

    fn row(name: &str, price: &str, id: i64) -> Row {
        vec![
            Value::Text(name.to_owned()),
            Value::Decimal(price.to_owned()),
            Value::Int64(id),
            Value::Null,
            Value::Float64(-0.0),
        ]
    }

    #[test]
    fn a_row_reads_back_with_the_scale_of_its_key() {
        let codec = RowCodec::new(&schema());
        let row = row("a", "1.50", 7);
        let (key, payload) = encode(&codec, &row);
        assert_eq!(codec.decode(&key, &payload).unwrap(), row);
    }

    #[test]
    fn every_truncated_row_is_refused_or_lacks_whole_columns() {
        let codec = RowCodec::new(&schema());
        let (key, payload) = encode(&codec, &row("name", "1.50", 7));
        for len in 0..key.len() {
            assert_eq!(codec.decode(&key[..len], &payload).unwrap_err().kind(), Kind::Broken);
        }
        let whole: Vec<usize> = fields(&payload)
            .scan(1, |end, field| {
                *end += field.unwrap().raw.len();
                Some(*end)
            })
            .chain([1])
            .collect();
        for len in (0..payload.len()).filter(|len| !whole.contains(len)) {
            assert!(codec.decode(&key, &payload[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_dropped_column_is_skipped_and_a_new_one_is_null() {
        let old = RowCodec::new(&schema());
        let (key, payload) = encode(&old, &row("a", "2", 7));
        let mut changed = schema();
        changed.columns.remove(0);
        changed.columns.push(crate::row::Column {
            id: ColumnId(6),
            name: "note".to_owned(),
            logical: LogicalType::Text,
            native: None,
        });
        changed.next_column_id = ColumnId(7);
        let new = RowCodec::new(&changed);
        let read = new.decode(&key, &payload).unwrap();
        assert_eq!(read[4], Value::Null);
        let mut projected = Vec::new();
        new.project(&payload, &mut projected).unwrap();
        assert_eq!(encode(&new, &read).1, projected);
    }

    #[test]
    fn values_of_another_type_are_refused_by_name() {
        let codec = RowCodec::new(&schema());
        let mut wrong = row("a", "1", 7);
        wrong[0] = Value::Int64(1);
        let error = codec.encode_payload(&wrong, &mut Vec::new()).unwrap_err();
        assert!(error.message().contains("`name` is text"), "{error}");
    }

    #[test]
    fn an_unchanged_column_keeps_its_older_value() {
        let codec = RowCodec::new(&schema());
        let (_, older) = encode(&codec, &row("kept", "1", 7));
        let mut newer = Vec::new();
        begin(&mut newer);
        put_unchanged(ColumnId(1), &mut newer);
        put_value(ColumnId(2), &Value::Decimal("1".to_owned()), &mut newer);
        put_unchanged(ColumnId(4), &mut newer);
        let mut merged = Vec::new();
        overlay(&newer, &older, &mut merged).unwrap();
        let found: Vec<Value> =
            fields(&merged).map(|field| field_value(&field.unwrap()).unwrap()).collect();
        assert_eq!(found, [Value::Text("kept".to_owned()), Value::Decimal("1".to_owned())]);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(key: Vec<u8>, mut payload: Vec<u8>, version: bool) {
            if version { payload.insert(0, PAYLOAD_VERSION); }
            let _ = RowCodec::new(&schema()).decode(&key, &payload);
            let mut out = Vec::new();
            let _ = overlay(&payload, &key, &mut out);
        }
    }
}
