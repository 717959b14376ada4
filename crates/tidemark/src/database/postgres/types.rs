//! How columns travel: which types have an exact twin here, and which go as text.
//!
//! A type with a twin is read and written in the binary form of `COPY`. Every other one is
//! read through its own output function and written through its own input function, as text
//! that the pinned settings of a [`Session`](super::Session) make exact; its name is kept in
//! [`Column::native`](crate::row::Column::native), so that it comes back as what it was.
//!
//! Timestamps reach from 4713 BC to 294246 AD here, thirty years less than PostgreSQL's: those
//! years do not fit into 64 bits of microseconds since 1970, and a row of then is refused.

pub mod numeric;
pub mod read;
pub mod write;

use crate::database::postgres::{literal, quoted};
use crate::row::LogicalType;

pub use read::RowReader;
pub use write::RowWriter;

/// Days from 1970-01-01 to 2000-01-01, from which PostgreSQL counts.
pub(crate) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(crate) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The form in which values of a column cross the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// One byte.
    Bool,
    /// Two bytes.
    Int2,
    /// Four bytes.
    Int4,
    /// Eight bytes.
    Int8,
    /// Four bytes; every one is a double too.
    Float4,
    /// Eight bytes.
    Float8,
    /// Digits of base 10,000.
    Numeric,
    /// The text itself: also names, enumerations, `json`.
    Text,
    /// A version byte and the text.
    Jsonb,
    /// The bytes themselves.
    Bytea,
    /// Days since 2000-01-01.
    Date,
    /// Microseconds since 2000-01-01.
    Timestamp,
    /// The same, in UTC.
    TimestampTz,
    /// 16 bytes.
    Uuid,
    /// What the type's output function prints.
    Printed,
}

impl Wire {
    /// The form of a type that is no domain, by its number in `pg_type` and its kind
    /// (`typtype`).
    ///
    /// Numbers below 16,384 are the server's own types and never change.
    pub fn of_type(oid: u32, kind: char) -> Wire {
        match (oid, kind) {
            (16, _) => Wire::Bool,
            (21, _) => Wire::Int2,
            (23, _) => Wire::Int4,
            (20, _) => Wire::Int8,
            (700, _) => Wire::Float4,
            (701, _) => Wire::Float8,
            (1700, _) => Wire::Numeric,
            (19 | 25 | 114 | 1042 | 1043, _) | (_, 'e') => Wire::Text,
            (3802, _) => Wire::Jsonb,
            (17, _) => Wire::Bytea,
            (1082, _) => Wire::Date,
            (1114, _) => Wire::Timestamp,
            (1184, _) => Wire::TimestampTz,
            (2950, _) => Wire::Uuid,
            _ => Wire::Printed,
        }
    }

    /// The type that every engine understands.
    pub fn logical(self) -> LogicalType {
        match self {
            Wire::Bool => LogicalType::Bool,
            Wire::Int2 | Wire::Int4 | Wire::Int8 => LogicalType::Int64,
            Wire::Float4 | Wire::Float8 => LogicalType::Float64,
            Wire::Numeric => LogicalType::Decimal,
            Wire::Text | Wire::Jsonb | Wire::Printed => LogicalType::Text,
            Wire::Bytea => LogicalType::Bytes,
            Wire::Date => LogicalType::Date,
            Wire::Timestamp => LogicalType::Timestamp,
            Wire::TimestampTz => LogicalType::TimestampTz,
            Wire::Uuid => LogicalType::Uuid,
        }
    }
}

/// The native type that stands for a logical one where the source says nothing.
pub fn native_default(logical: LogicalType) -> &'static str {
    match logical {
        LogicalType::Bool => "boolean",
        LogicalType::Int64 => "bigint",
        LogicalType::Float64 => "double precision",
        LogicalType::Decimal => "numeric",
        LogicalType::Text => "text",
        LogicalType::Bytes => "bytea",
        LogicalType::Date => "date",
        LogicalType::Timestamp => "timestamp without time zone",
        LogicalType::TimestampTz => "timestamp with time zone",
        LogicalType::Uuid => "uuid",
    }
}

/// A column as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeColumn {
    /// Name, exact.
    pub name: String,
    /// `attnum`: never used again by the table.
    pub number: i16,
    /// Its type with modifiers, qualified unless it is the server's own.
    pub native: String,
    /// Form on the wire.
    pub wire: Wire,
    /// The output function of the type, as SQL.
    pub output: String,
}

impl NativeColumn {
    /// What to select so that the value comes in its form.
    pub fn selected(&self) -> String {
        self.in_its_form(&quoted(&self.name))
    }

    /// The same from one of several tables, by its alias.
    pub fn selected_of(&self, alias: &str) -> String {
        self.in_its_form(&format!("{alias}.{}", quoted(&self.name)))
    }

    fn in_its_form(&self, value: &str) -> String {
        match self.wire {
            // Not a cast: casts of `inet`, `"char"` and of users' types print something else.
            // Both functions give NULL for NULL, also for a composite of NULLs, which
            // `IS NULL` would not tell from NULL.
            Wire::Printed => format!("textin({}({value}))", self.output),
            _ => value.to_owned(),
        }
    }

    /// An expression that sorts as the canonical key does.
    pub fn ordered(&self) -> String {
        match self.wire {
            // Bytes of UTF-8, whatever the column's collation or an enumeration's order says.
            Wire::Text | Wire::Jsonb | Wire::Printed => {
                format!("textin({}({})) COLLATE \"C\"", self.output, quoted(&self.name))
            }
            _ => quoted(&self.name),
        }
    }

    /// A value of the column as SQL, to be compared with [`ordered`](Self::ordered).
    pub fn key_constant(&self, text: &str) -> String {
        match self.wire {
            Wire::Text | Wire::Jsonb | Wire::Printed => literal(text),
            // `bigint` also for narrower integers, which a bound may lie beyond.
            Wire::Int2 | Wire::Int4 | Wire::Int8 => format!("{}::int8", literal(text)),
            _ => format!("{}::{}", literal(text), self.native),
        }
    }
}
