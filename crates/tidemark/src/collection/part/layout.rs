//! Which columns a part has, and how Parquet and Arrow call their types.

use std::collections::HashMap;

use arrow_schema::{DataType, Field, TimeUnit};

use super::{
    META_COLUMN_ID, META_COLUMN_NATIVE, META_COLUMN_TYPE, OP_COLUMN, PartKind, UNCHANGED_COLUMN,
};
use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::{Column, LogicalType, Schema};

/// Parquet's physical types; the values are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Physical {
    Boolean = 0,
    Int32 = 1,
    Int64 = 2,
    Double = 5,
    ByteArray = 6,
    /// FIXED_LEN_BYTE_ARRAY, here always of 16 bytes.
    Fixed16 = 7,
}

impl Physical {
    pub(super) fn of(logical: LogicalType) -> Physical {
        match logical {
            LogicalType::Bool => Physical::Boolean,
            LogicalType::Int64 | LogicalType::Timestamp | LogicalType::TimestampTz => {
                Physical::Int64
            }
            LogicalType::Float64 => Physical::Double,
            LogicalType::Decimal | LogicalType::Text | LogicalType::Bytes => Physical::ByteArray,
            LogicalType::Date => Physical::Int32,
            LogicalType::Uuid => Physical::Fixed16,
        }
    }

    /// Bytes of a PLAIN value; `None` for booleans, which are bits, and byte arrays.
    pub(super) fn width(self) -> Option<usize> {
        match self {
            Physical::Boolean | Physical::ByteArray => None,
            Physical::Int32 => Some(4),
            Physical::Int64 | Physical::Double => Some(8),
            Physical::Fixed16 => Some(16),
        }
    }
}

/// One leaf column of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartColumn {
    pub(super) name: String,
    /// `None` for the columns that increments add.
    pub(super) id: Option<ColumnId>,
    pub(super) logical: LogicalType,
    pub(super) native: Option<String>,
    /// Whether no row may be NULL in it.
    pub(super) required: bool,
}

/// The columns of a part in file order, and what each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) columns: Vec<PartColumn>,
    /// Positions of the key columns, in key order.
    pub(super) key: Vec<usize>,
    /// Positions of the columns that payloads hold, in ascending id; key columns that are
    /// not exact in the key are among them.
    pub(super) stored: Vec<usize>,
    pub(super) op: Option<usize>,
    pub(super) unchanged: Option<usize>,
}

impl Layout {
    /// The layout of parts of `kind` under `schema`.
    ///
    /// # Errors
    /// [`Kind::Usage`]: the schema contradicts itself, or a column has a name that
    /// increments need for themselves.
    pub(super) fn new(schema: &Schema, kind: PartKind) -> Result<Layout> {
        schema.check()?;
        let reserved = |column: &&Column| [OP_COLUMN, UNCHANGED_COLUMN].contains(&&*column.name);
        if let Some(column) = schema.columns.iter().find(reserved) {
            let message = format!(
                "column `{}` has a name that backups keep for themselves; rename it",
                column.name
            );
            return Err(Error::new(Kind::Usage, message));
        }
        let mut columns: Vec<PartColumn> = schema
            .columns
            .iter()
            .map(|column| PartColumn {
                name: column.name.clone(),
                id: Some(column.id),
                logical: column.logical,
                native: column.native.clone(),
                required: schema.key.contains(&column.id),
            })
            .collect();
        let position = |id: &ColumnId| {
            let found = schema.columns.iter().position(|column| column.id == *id);
            found.expect("key columns exist: checked")
        };
        let key: Vec<usize> = schema.key.iter().map(position).collect();
        let mut stored: Vec<usize> = (0..columns.len())
            .filter(|at| !key.contains(at) || !columns[*at].logical.key_is_exact())
            .collect();
        stored.sort_by_key(|at| columns[*at].id);
        let (mut op, mut unchanged) = (None, None);
        if kind == PartKind::Increment {
            let added = |name: &str, required| PartColumn {
                name: name.to_owned(),
                id: None,
                logical: LogicalType::Text,
                native: None,
                required,
            };
            op = Some(columns.len());
            columns.push(added(OP_COLUMN, true));
            unchanged = Some(columns.len());
            columns.push(added(UNCHANGED_COLUMN, false));
        }
        Ok(Layout { columns, key, stored, op, unchanged })
    }

    /// The same columns for Arrow, with ids and types in the fields' metadata.
    pub(super) fn arrow_schema(&self) -> arrow_schema::Schema {
        let field = |column: &PartColumn| {
            let mut metadata = HashMap::new();
            if let Some(id) = column.id {
                metadata.insert(META_COLUMN_ID.to_owned(), id.to_string());
                metadata.insert(META_COLUMN_TYPE.to_owned(), column.logical.name().to_owned());
            }
            if let Some(native) = &column.native {
                metadata.insert(META_COLUMN_NATIVE.to_owned(), native.clone());
            }
            Field::new(&column.name, arrow_type(column.logical), !column.required)
                .with_metadata(metadata)
        };
        arrow_schema::Schema::new(self.columns.iter().map(field).collect::<Vec<Field>>())
    }
}

fn arrow_type(logical: LogicalType) -> DataType {
    match logical {
        LogicalType::Bool => DataType::Boolean,
        LogicalType::Int64 => DataType::Int64,
        LogicalType::Float64 => DataType::Float64,
        // Arrow's decimals have one scale per column; ours have one per value.
        LogicalType::Decimal | LogicalType::Text => DataType::Utf8,
        LogicalType::Bytes => DataType::Binary,
        LogicalType::Date => DataType::Date32,
        LogicalType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        LogicalType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        LogicalType::Uuid => DataType::FixedSizeBinary(16),
    }
}
