//! From rows to `COPY … FROM STDIN`, in binary or as text.

use std::fmt::Write as _;

use crate::database::postgres::types::read::HEADER;
use crate::database::postgres::types::{EPOCH_DAYS, EPOCH_MICROS, NativeColumn, Wire, numeric};
use crate::error::{Error, Kind, Result};
use crate::row::key::decode_key_value;
use crate::row::payload::{self, TAG_UNCHANGED, put_value};
use crate::row::value::hex;
use crate::row::{LogicalType, RowCodec, Schema, Value};

/// The two forms of `COPY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every column has a binary form here.
    Binary,
    /// Some columns go through their type's input function.
    Text,
}

/// Translates rows of a schema into the lines or tuples of a `COPY`, columns in the order of
/// the schema.
#[derive(Clone, Debug)]
pub struct RowWriter {
    codec: RowCodec,
    wires: Vec<Wire>,
    form: Form,
    /// Positions of key columns that only the key holds, in key order, with all others.
    key: Vec<usize>,
    /// Where each column's value is: tag and range in `scratch` or the payload.
    cells: Vec<Cell>,
    scratch: Vec<u8>,
    text: String,
}

#[derive(Clone, Copy, Debug)]
enum Cell {
    Null,
    /// The older value stays: only in partial updates.
    Unchanged,
    Key(usize, usize),
    Payload(usize, usize),
}

impl RowWriter {
    /// A writer for `schema`, whose columns the server has as `natives`, in the same order.
    ///
    /// # Panics
    /// If there are not as many of them.
    pub fn new(schema: &Schema, natives: &[NativeColumn]) -> RowWriter {
        assert_eq!(schema.columns.len(), natives.len(), "one native column for each");
        let wires: Vec<Wire> = natives.iter().map(|native| native.wire).collect();
        let form = if wires.contains(&Wire::Printed) { Form::Text } else { Form::Binary };
        let key = schema.key.iter().map(|id| {
            let at = schema.columns.iter().position(|column| column.id == *id);
            at.expect("key columns exist: checked")
        });
        RowWriter {
            codec: RowCodec::new(schema),
            key: key.collect(),
            cells: Vec::with_capacity(wires.len()),
            wires,
            form,
            scratch: Vec::new(),
            text: String::new(),
        }
    }

    /// Which form is written.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The options of the `COPY` that takes it.
    pub fn options(&self) -> &'static str {
        match self.form {
            Form::Binary => "(FORMAT binary)",
            Form::Text => "(FORMAT text)",
        }
    }

    /// Appends what comes before the first row.
    pub fn begin(&self, out: &mut Vec<u8>) {
        if self.form == Form::Binary {
            out.extend_from_slice(HEADER);
        }
    }

    /// Appends what comes after the last row.
    pub fn end(&self, out: &mut Vec<u8>) {
        if self.form == Form::Binary {
            out.extend_from_slice(&(-1i16).to_be_bytes());
        }
    }

    /// Appends a row: `before` first, which are columns of the caller's own as
    /// [`Own`] says, then those of the schema.
    ///
    /// A column that a partial update leaves as it was goes as NULL; the caller says which
    /// ones in a column of its own: see [`unchanged`](Self::unchanged).
    ///
    /// # Errors
    /// [`Kind::Broken`] if the bytes are no row of this table, [`Kind::Unsupported`] for a
    /// value that does not fit the native type, naming the column.
    pub fn row(&mut self, before: &[Own], key: &[u8], row: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.find(key, row)?;
        let count = before.len() + self.wires.len();
        if self.form == Form::Binary {
            let count = i16::try_from(count).map_err(|_| {
                Error::new(Kind::Unsupported, format!("a row of {count} columns is too wide"))
            })?;
            out.extend_from_slice(&count.to_be_bytes());
        }
        for own in before {
            own.write(self.form, out);
        }
        for at in 0..self.wires.len() {
            // The caller's own columns end with their separator.
            if self.form == Form::Text && at > 0 {
                out.push(b'\t');
            }
            let (tag, value) = match self.cells[at] {
                Cell::Null | Cell::Unchanged => {
                    match self.form {
                        Form::Binary => out.extend_from_slice(&(-1i32).to_be_bytes()),
                        Form::Text => out.extend_from_slice(b"\\N"),
                    }
                    continue;
                }
                Cell::Key(start, end) => (self.wires[at].logical(), &self.scratch[start..end]),
                Cell::Payload(start, end) => (self.wires[at].logical(), &row[start..end]),
            };
            let written = match self.form {
                Form::Binary => binary(self.wires[at], tag, value, out),
                Form::Text => {
                    self.text.clear();
                    let printed = print(self.wires[at], tag, value, &mut self.text);
                    escape(self.text.as_bytes(), out);
                    printed
                }
            };
            if written.is_none() {
                let column = &self.codec.schema().columns[at];
                let message = format!(
                    "column `{}` holds a value that its type `{}` cannot hold",
                    column.name,
                    column.native.as_deref().unwrap_or(column.logical.name())
                );
                return Err(Error::new(Kind::Unsupported, message));
            }
        }
        if self.form == Form::Text {
            out.push(b'\n');
        }
        Ok(())
    }

    /// Positions in the schema's columns of those that a partial update leaves as they were.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn unchanged(&mut self, key: &[u8], row: &[u8]) -> Result<Vec<usize>> {
        self.find(key, row)?;
        let unchanged = |at: &usize| matches!(self.cells[*at], Cell::Unchanged);
        Ok((0..self.cells.len()).filter(unchanged).collect())
    }

    fn find(&mut self, key: &[u8], row: &[u8]) -> Result<()> {
        let columns = &self.codec.schema().columns;
        self.cells.clear();
        self.cells.resize(columns.len(), Cell::Null);
        self.scratch.clear();
        let mut rest = key;
        for &at in &self.key {
            let value = decode_key_value(columns[at].logical, &mut rest).ok_or_else(|| {
                let message = format!("a row's key holds no value for `{}`", columns[at].name);
                Error::new(Kind::Broken, message)
            })?;
            let start = self.scratch.len();
            raw(&value, &mut self.scratch);
            self.cells[at] = Cell::Key(start, self.scratch.len());
        }
        if !rest.is_empty() {
            return Err(Error::new(Kind::Broken, "a row's key is longer than its columns"));
        }
        if row.is_empty() {
            // A delete has a key alone.
            return Ok(());
        }
        let stored = self.codec.stored_columns();
        for field in payload::fields(row) {
            let field = field?;
            if !self.codec.keeps(&field) {
                continue;
            }
            let found = stored.binary_search_by_key(&field.id, |at| columns[*at].id);
            let at = stored[found.expect("the column is kept: checked")];
            let start = field.value.as_ptr() as usize - row.as_ptr() as usize;
            self.cells[at] = match field.tag {
                TAG_UNCHANGED => Cell::Unchanged,
                _ => Cell::Payload(start, start + field.value.len()),
            };
        }
        Ok(())
    }
}

/// A column that the writer's user puts in front of a row.
#[derive(Clone, Debug)]
pub enum Own {
    /// `bigint`.
    Int8(i64),
    /// `boolean`.
    Bool(bool),
    /// `bytea`.
    Bytea(Vec<u8>),
}

impl Own {
    fn write(&self, form: Form, out: &mut Vec<u8>) {
        match form {
            Form::Binary => {
                let put = |bytes: &[u8], out: &mut Vec<u8>| {
                    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                    out.extend_from_slice(bytes);
                };
                match self {
                    Own::Int8(number) => put(&number.to_be_bytes(), out),
                    Own::Bool(truth) => put(&[u8::from(*truth)], out),
                    Own::Bytea(bytes) => put(bytes, out),
                }
            }
            Form::Text => {
                match self {
                    Own::Int8(number) => out.extend_from_slice(number.to_string().as_bytes()),
                    Own::Bool(truth) => out.push(if *truth { b't' } else { b'f' }),
                    Own::Bytea(bytes) => {
                        out.extend_from_slice(b"\\\\x");
                        out.extend_from_slice(hex(bytes).as_bytes());
                    }
                }
                out.push(b'\t');
            }
        }
    }
}

/// The bytes that a payload holds for `value`.
fn raw(value: &Value, out: &mut Vec<u8>) {
    let mut field = vec![payload::PAYLOAD_VERSION];
    put_value(crate::ids::ColumnId(1), value, &mut field);
    if let Some(Ok(field)) = payload::fields(&field).next() {
        out.extend_from_slice(field.value);
    }
}

/// Appends length and bytes of a value; `None` if the native type cannot hold it.
fn binary(wire: Wire, logical: LogicalType, value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    match (wire, logical) {
        (Wire::Bool, _) | (Wire::Text, _) | (Wire::Bytea, _) | (Wire::Uuid, _) => {
            out.extend_from_slice(value);
        }
        (Wire::Jsonb, _) => {
            out.push(1);
            out.extend_from_slice(value);
        }
        (Wire::Int2, _) => {
            out.extend_from_slice(&i16::try_from(int(value)?).ok()?.to_be_bytes());
        }
        (Wire::Int4, _) => {
            out.extend_from_slice(&i32::try_from(int(value)?).ok()?.to_be_bytes());
        }
        (Wire::Int8, _) => out.extend_from_slice(&int(value)?.to_be_bytes()),
        (Wire::Float4, _) => out.extend_from_slice(&single(value)?.to_be_bytes()),
        (Wire::Float8, _) => out.extend_from_slice(&double(value)?.to_be_bytes()),
        (Wire::Numeric, _) => numeric::write(std::str::from_utf8(value).ok()?, out)?,
        (Wire::Date, _) => {
            let days = match i32::from_le_bytes(value.try_into().ok()?) {
                end @ (i32::MIN | i32::MAX) => end,
                days => days.checked_sub(EPOCH_DAYS).filter(|days| *days != i32::MIN)?,
            };
            out.extend_from_slice(&days.to_be_bytes());
        }
        (Wire::Timestamp | Wire::TimestampTz, _) => {
            let micros = match int(value)? {
                end @ (i64::MIN | i64::MAX) => end,
                micros => micros.checked_sub(EPOCH_MICROS).filter(|it| *it != i64::MIN)?,
            };
            out.extend_from_slice(&micros.to_be_bytes());
        }
        (Wire::Printed, _) => return None,
    }
    let len = i32::try_from(out.len() - at - 4).ok()?;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    Some(())
}

/// Appends what the type's input function takes; `None` if it cannot hold the value.
fn print(wire: Wire, logical: LogicalType, value: &[u8], out: &mut String) -> Option<()> {
    match logical {
        LogicalType::Bool => out.push(if *value == [1] { 't' } else { 'f' }),
        LogicalType::Int64 => write!(out, "{}", int(value)?).ok()?,
        LogicalType::Float64 if wire == Wire::Float4 => print_float(single(value)?, out)?,
        LogicalType::Float64 => print_float(double(value)?, out)?,
        LogicalType::Decimal | LogicalType::Text => out.push_str(std::str::from_utf8(value).ok()?),
        LogicalType::Bytes => {
            out.push_str("\\x");
            out.push_str(&hex(value));
        }
        LogicalType::Date => {
            let days = i32::from_le_bytes(value.try_into().ok()?);
            print_before_christ(&Value::Date(days).to_text(), "", out)?;
        }
        LogicalType::Timestamp => {
            print_before_christ(&Value::Timestamp(int(value)?).to_text(), "", out)?;
        }
        LogicalType::TimestampTz => {
            let text = Value::Timestamp(int(value)?).to_text();
            let zone = if text.ends_with("infinity") { "" } else { "+00" };
            print_before_christ(&text, zone, out)?;
        }
        LogicalType::Uuid => {
            let bits = u128::from_be_bytes(value.try_into().ok()?);
            Value::Uuid(bits).print(out);
        }
    }
    Some(())
}

/// Appends a date or time; years before 1, which count through 0 here, get their `BC`.
fn print_before_christ(text: &str, zone: &str, out: &mut String) -> Option<()> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) if rest.starts_with(|first: char| first.is_ascii_digit()) => (true, rest),
        _ => (false, text),
    };
    let year_end = rest.find('-').unwrap_or(rest.len());
    match rest[..year_end].parse::<i64>() {
        Ok(year) if negative || year == 0 => {
            write!(out, "{:04}{}{zone} BC", year + 1, &rest[year_end..]).ok()
        }
        _ => write!(out, "{text}{zone}").ok(),
    }
}

fn print_float(value: impl Into<f64> + Copy + std::fmt::LowerExp, out: &mut String) -> Option<()> {
    let double: f64 = value.into();
    match double {
        double if double.is_nan() => out.push_str("NaN"),
        f64::INFINITY => out.push_str("Infinity"),
        f64::NEG_INFINITY => out.push_str("-Infinity"),
        // The shortest digits that read back as the same number.
        _ => write!(out, "{value:e}").ok()?,
    }
    Some(())
}

fn int(value: &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(value.try_into().ok()?))
}

fn double(value: &[u8]) -> Option<f64> {
    Some(f64::from_le_bytes(value.try_into().ok()?))
}

fn single(value: &[u8]) -> Option<f32> {
    let double = double(value)?;
    let single = double as f32;
    (f64::from(single) == double || double.is_nan()).then_some(single)
}

/// Appends text as `COPY` reads it.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => out.push(byte),
        }
    }
}
