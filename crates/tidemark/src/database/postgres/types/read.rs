//! From `COPY … TO STDOUT (FORMAT binary)` to rows.

use std::io::BufRead;
use std::ops::Range;

use crate::database::postgres::error::copying;
use crate::database::postgres::types::{EPOCH_DAYS, EPOCH_MICROS, NativeColumn, Wire, numeric};
use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::key::encode_key_value;
use crate::row::payload::{self, canonical_f64};
use crate::row::{ChangeOp, LogicalType, RowBatch, Schema, Value};

/// What a binary `COPY` begins with: a signature, then flags and extension, both empty.
pub(crate) const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Tuples of a binary `COPY`, one after the other.
///
/// Holds one tuple and what the server sent with it.
#[derive(Debug)]
pub struct Tuples<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    fields: Vec<Option<Range<usize>>>,
    begun: bool,
    ended: bool,
}

impl<R: BufRead> Tuples<R> {
    /// The tuples that `input` carries.
    pub fn new(input: R) -> Tuples<R> {
        Tuples { input, buffer: Vec::new(), at: 0, fields: Vec::new(), begun: false, ended: false }
    }

    /// Reads the next tuple; `false` at the end.
    ///
    /// # Errors
    /// [`Kind::Transient`] when the connection is lost, [`Kind::Broken`] for bytes that are no
    /// such stream.
    #[expect(clippy::should_implement_trait, reason = "the tuple is lent, not given")]
    pub fn next(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if !self.begun {
            if self.take(HEADER.len())? != (0..HEADER.len()) || self.buffer[..11] != HEADER[..11] {
                return Err(malformed());
            }
            self.begun = true;
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        let count = self.take(2)?;
        let count = i16::from_be_bytes([self.buffer[count.start], self.buffer[count.start + 1]]);
        self.fields.clear();
        if count == -1 {
            self.ended = true;
            self.drain()?;
            return Ok(false);
        }
        for _ in 0..count {
            let at = self.take(4)?;
            let len = self.buffer[at].try_into().expect("four bytes were taken");
            match i32::from_be_bytes(len) {
                -1 => self.fields.push(None),
                len => {
                    let len = usize::try_from(len).map_err(|_| malformed())?;
                    let field = self.take(len)?;
                    self.fields.push(Some(field));
                }
            }
        }
        Ok(true)
    }

    /// Number of fields of the tuple.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether the tuple has no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// A field of the tuple; `None` for NULL.
    pub fn field(&self, at: usize) -> Option<&[u8]> {
        self.fields.get(at)?.clone().map(|range| &self.buffer[range])
    }

    /// Reads on to the server's word that the command is complete, without which an error at
    /// its end would be missed.
    fn drain(&mut self) -> Result<()> {
        loop {
            let len = self.input.fill_buf().map_err(copying("read the end of rows"))?.len();
            if len == 0 {
                return Ok(());
            }
            self.input.consume(len);
        }
    }

    fn take(&mut self, len: usize) -> Result<Range<usize>> {
        while self.buffer.len() - self.at < len {
            let more = self.input.fill_buf().map_err(copying("read rows"))?;
            if more.is_empty() {
                return Err(malformed());
            }
            let more_len = more.len();
            self.buffer.extend_from_slice(more);
            self.input.consume(more_len);
        }
        let taken = self.at..self.at + len;
        self.at += len;
        Ok(taken)
    }
}

fn malformed() -> Error {
    Error::new(Kind::Broken, "the server's rows end too early or are no binary copy")
}

/// Translates tuples, whose fields are the columns of a schema in its order, into rows.
#[derive(Clone, Debug)]
pub struct RowReader {
    columns: Vec<ReadColumn>,
    /// Positions of the key columns, in key order.
    key: Vec<usize>,
    /// Positions of the columns in payloads, in ascending column id.
    stored: Vec<usize>,
}

#[derive(Clone, Debug)]
struct ReadColumn {
    id: ColumnId,
    name: String,
    logical: LogicalType,
    wire: Wire,
}

impl RowReader {
    /// A reader for `schema`, whose columns the server has as `natives`, in the same order.
    ///
    /// # Panics
    /// If there are not as many of them.
    pub fn new(schema: &Schema, natives: &[NativeColumn]) -> RowReader {
        assert_eq!(schema.columns.len(), natives.len(), "one native column for each");
        let columns = schema.columns.iter().zip(natives);
        let codec = crate::row::RowCodec::new(schema);
        let key = schema.key.iter().map(|id| {
            let at = schema.columns.iter().position(|column| column.id == *id);
            at.expect("key columns exist: checked")
        });
        RowReader {
            columns: columns
                .map(|(column, native)| ReadColumn {
                    id: column.id,
                    name: column.name.clone(),
                    logical: column.logical,
                    wire: native.wire,
                })
                .collect(),
            key: key.collect(),
            stored: codec.stored_columns().to_vec(),
        }
    }

    /// Appends the tuple as an upsert.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a value that has no form here, naming the column.
    pub fn push<R: BufRead>(&self, tuple: &Tuples<R>, batch: &mut RowBatch) -> Result<()> {
        if tuple.len() != self.columns.len() {
            return Err(malformed());
        }
        let mut key = Ok(());
        let mut payload = Ok(());
        batch.push_with(
            ChangeOp::Upsert,
            |out| key = self.key(tuple, out),
            |out| payload = self.payload(tuple, out),
        );
        key.and(payload)
    }

    /// Appends the key of a tuple.
    pub fn key<R: BufRead>(&self, tuple: &Tuples<R>, out: &mut Vec<u8>) -> Result<()> {
        for &at in &self.key {
            let column = &self.columns[at];
            let value = match tuple.field(at) {
                Some(bytes) => value(column.wire, bytes).map_err(|why| column.refuse(why))?,
                None => Value::Null,
            };
            encode_key_value(&value, out)
                .map_err(|error| error.context(format!("column `{}`", column.name)))?;
        }
        Ok(())
    }

    /// Appends the payload of a tuple.
    pub fn payload<R: BufRead>(&self, tuple: &Tuples<R>, out: &mut Vec<u8>) -> Result<()> {
        payload::begin(out);
        for &at in &self.stored {
            let column = &self.columns[at];
            if let Some(bytes) = tuple.field(at) {
                put(column, bytes, out).map_err(|why| column.refuse(why))?;
            }
        }
        Ok(())
    }
}

impl ReadColumn {
    fn refuse(&self, why: &'static str) -> Error {
        Error::new(Kind::Unsupported, format!("column `{}` holds {why}", self.name))
    }
}

const NO_VALUE: &str = "bytes that are no value of its type";
const NOT_UTF8: &str = "text that is not UTF-8; the database's encoding does not say what it means";
const TOO_LATE: &str = "a time after the year 294246, which cannot be carried";

/// Appends one field of a payload.
fn put(column: &ReadColumn, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let (id, logical) = (column.id, column.logical);
    match column.wire {
        Wire::Bool => match bytes {
            [0 | 1] => payload::put_fixed(id, logical, bytes, out),
            _ => return Err(NO_VALUE),
        },
        Wire::Int2 | Wire::Int4 | Wire::Int8 => {
            payload::put_fixed(id, logical, &integer(bytes)?.to_le_bytes(), out);
        }
        Wire::Float4 | Wire::Float8 => {
            let float = canonical_f64(float(column.wire, bytes)?);
            payload::put_fixed(id, logical, &float.to_le_bytes(), out);
        }
        Wire::Numeric => {
            let mut text = String::new();
            numeric::print(bytes, &mut text).ok_or(NO_VALUE)?;
            payload::put_variable(id, logical, text.as_bytes(), out);
        }
        Wire::Text | Wire::Printed => {
            payload::put_variable(id, logical, text(bytes)?.as_bytes(), out);
        }
        Wire::Jsonb => payload::put_variable(id, logical, jsonb(bytes)?.as_bytes(), out),
        Wire::Bytea => payload::put_variable(id, logical, bytes, out),
        Wire::Date => payload::put_fixed(id, logical, &date(bytes)?.to_le_bytes(), out),
        Wire::Timestamp | Wire::TimestampTz => {
            payload::put_fixed(id, logical, &timestamp(bytes)?.to_le_bytes(), out);
        }
        Wire::Uuid if bytes.len() == 16 => payload::put_fixed(id, logical, bytes, out),
        Wire::Uuid => return Err(NO_VALUE),
    }
    Ok(())
}

/// The value that a field in the given form holds.
///
/// # Errors
/// A clause that says what is wrong with it.
pub fn value(wire: Wire, bytes: &[u8]) -> Result<Value, &'static str> {
    Ok(match wire {
        Wire::Bool => match bytes {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(NO_VALUE),
        },
        Wire::Int2 | Wire::Int4 | Wire::Int8 => Value::Int64(integer(bytes)?),
        Wire::Float4 | Wire::Float8 => Value::Float64(float(wire, bytes)?),
        Wire::Numeric => {
            let mut text = String::new();
            numeric::print(bytes, &mut text).ok_or(NO_VALUE)?;
            Value::Decimal(text)
        }
        Wire::Text | Wire::Printed => Value::Text(text(bytes)?.to_owned()),
        Wire::Jsonb => Value::Text(jsonb(bytes)?.to_owned()),
        Wire::Bytea => Value::Bytes(bytes.to_vec()),
        Wire::Date => Value::Date(date(bytes)?),
        Wire::Timestamp => Value::Timestamp(timestamp(bytes)?),
        Wire::TimestampTz => Value::TimestampTz(timestamp(bytes)?),
        Wire::Uuid => Value::Uuid(u128::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?)),
    })
}

fn integer(bytes: &[u8]) -> Result<i64, &'static str> {
    Ok(match *bytes {
        [a, b] => i64::from(i16::from_be_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
        _ => i64::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?),
    })
}

fn float(wire: Wire, bytes: &[u8]) -> Result<f64, &'static str> {
    Ok(match wire {
        Wire::Float4 => f64::from(f32::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?)),
        _ => f64::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?),
    })
}

fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes).map_err(|_| NOT_UTF8)
}

fn jsonb(bytes: &[u8]) -> Result<&str, &'static str> {
    match bytes.split_first() {
        Some((1, json)) => text(json),
        _ => Err("jsonb of an unknown version"),
    }
}

fn date(bytes: &[u8]) -> Result<i32, &'static str> {
    let days = i32::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?);
    // The ends stand for the infinities, there as here.
    Ok(match days {
        i32::MIN | i32::MAX => days,
        days => days.checked_add(EPOCH_DAYS).filter(|days| *days != i32::MAX).ok_or(TOO_LATE)?,
    })
}

fn timestamp(bytes: &[u8]) -> Result<i64, &'static str> {
    let micros = i64::from_be_bytes(bytes.try_into().map_err(|_| NO_VALUE)?);
    Ok(match micros {
        i64::MIN | i64::MAX => micros,
        micros => {
            micros.checked_add(EPOCH_MICROS).filter(|micros| *micros != i64::MAX).ok_or(TOO_LATE)?
        }
    })
}
