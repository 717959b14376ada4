//! What columns a table has, and which of them are its key.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;

/// The type of a column, as every engine understands it.
///
/// The number is stored (payload tag, digest, catalog) and never changes its
/// meaning. A native type without a twin here is carried as [`Text`](Self::Text)
/// with its name in [`Column::native`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LogicalType {
    /// True or false.
    Bool = 1,
    /// 64-bit signed integer; narrower native integers widen without loss.
    Int64 = 2,
    /// IEEE 754 double; NaN has one pattern, `-0.0` stays apart from `0.0`.
    Float64 = 3,
    /// Exact decimal with its scale: `1.50` is not `1.5`.
    Decimal = 4,
    /// UTF-8.
    Text = 5,
    /// Any bytes.
    Bytes = 6,
    /// Days since 1970-01-01.
    Date = 7,
    /// Microseconds since 1970-01-01T00:00:00, of no time zone.
    Timestamp = 8,
    /// Microseconds since 1970-01-01T00:00:00Z.
    TimestampTz = 9,
    /// 128 bits.
    Uuid = 10,
}

impl LogicalType {
    /// Every type, in the order of their numbers.
    pub const ALL: [LogicalType; 10] = [
        LogicalType::Bool,
        LogicalType::Int64,
        LogicalType::Float64,
        LogicalType::Decimal,
        LogicalType::Text,
        LogicalType::Bytes,
        LogicalType::Date,
        LogicalType::Timestamp,
        LogicalType::TimestampTz,
        LogicalType::Uuid,
    ];

    /// The name used in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            LogicalType::Bool => "bool",
            LogicalType::Int64 => "int64",
            LogicalType::Float64 => "float64",
            LogicalType::Decimal => "decimal",
            LogicalType::Text => "text",
            LogicalType::Bytes => "bytes",
            LogicalType::Date => "date",
            LogicalType::Timestamp => "timestamp",
            LogicalType::TimestampTz => "timestamp_tz",
            LogicalType::Uuid => "uuid",
        }
    }

    /// The type of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<LogicalType> {
        LogicalType::ALL.into_iter().find(|logical| logical.name() == name)
    }

    /// The type of that number.
    pub fn from_number(number: u8) -> Option<LogicalType> {
        LogicalType::ALL.into_iter().find(|logical| *logical as u8 == number)
    }

    /// Whether a key column of this type can be read back from the key encoding.
    ///
    /// It cannot where distinct values are one key: `1.0` and `1.00`, `0.0` and
    /// `-0.0`. Such a key column is in the payload as well.
    pub fn key_is_exact(self) -> bool {
        !matches!(self, LogicalType::Float64 | LogicalType::Decimal)
    }
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Stable identity; a rename keeps it, a change of type takes a new one.
    pub id: ColumnId,
    /// Name, exact.
    pub name: String,
    /// Type.
    #[serde(rename = "type")]
    pub logical: LogicalType,
    /// The source's own name of the type, where it says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<String>,
}

/// The columns of a table in display order, and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Columns in display order; ids and names are unique.
    pub columns: Vec<Column>,
    /// Key columns in key order; empty for a table without a key.
    pub key: Vec<ColumnId>,
    /// First id that was never used by this table.
    pub next_column_id: ColumnId,
}

impl Schema {
    /// A new table's schema: columns numbered from 1 in the given order.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what [`check`](Self::check) refuses, or a key that
    /// names no column.
    pub fn new(columns: &[(&str, LogicalType)], key: &[&str]) -> Result<Schema> {
        let columns: Vec<Column> = (1..)
            .zip(columns)
            .map(|(id, &(name, logical))| Column {
                id: ColumnId(id),
                name: name.to_owned(),
                logical,
                native: None,
            })
            .collect();
        let key_id = |name: &&str| {
            columns.iter().find(|column| column.name == *name).map(|column| column.id).ok_or_else(
                || {
                    let names: Vec<&str> =
                        columns.iter().map(|column| column.name.as_str()).collect();
                    Error::new(
                        Kind::Usage,
                        format!(
                            "key column `{name}` is not a column of the table: it has {names:?}"
                        ),
                    )
                },
            )
        };
        let key = key.iter().map(key_id).collect::<Result<Vec<ColumnId>>>()?;
        let next_column_id = ColumnId(columns.len() as u32 + 1);
        let schema = Schema { columns, key, next_column_id };
        schema.check()?;
        Ok(schema)
    }

    /// Refuses a schema that contradicts itself; data from outside goes through here.
    ///
    /// # Errors
    /// [`Kind::Usage`]: no column, a doubled name or id, a key column that is
    /// missing or doubled, an id that is not below `next_column_id`.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::new(Kind::Usage, message));
        if self.columns.is_empty() {
            return refuse("a table has at least one column; found none".to_owned());
        }
        let mut names = std::collections::BTreeSet::new();
        let mut ids = std::collections::BTreeSet::new();
        for column in &self.columns {
            if column.name.is_empty() {
                return refuse(format!("column {} has no name", column.id));
            }
            if !names.insert(column.name.as_str()) {
                return refuse(format!("column `{}` is there twice", column.name));
            }
            if !ids.insert(column.id) || column.id >= self.next_column_id || column.id.0 == 0 {
                return refuse(format!(
                    "column `{}` has the impossible id {}",
                    column.name, column.id
                ));
            }
        }
        let mut keys = std::collections::BTreeSet::new();
        for id in &self.key {
            if !ids.contains(id) || !keys.insert(*id) {
                return refuse(format!("key column {id} is missing or named twice"));
            }
        }
        Ok(())
    }

    /// The column of that id.
    pub fn column(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|column| column.id == id)
    }

    /// The column of that name.
    pub fn column_named(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Key columns in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|id| self.column(*id).expect("key columns exist: checked"))
    }

    /// Whether every column of `older` is still there with its type, so that its rows are rows
    /// of this schema as they stand.
    pub fn has_all_of(&self, older: &Schema) -> bool {
        let keeps = |old: &Column| self.column(old.id).is_some_and(|c| c.logical == old.logical);
        older.columns.iter().all(keeps)
    }

    /// Whether a row of this table has the same key bytes under `other`:
    /// same key column ids, types and order.
    pub fn same_key(&self, other: &Schema) -> bool {
        let key = |schema: &Schema| -> Vec<(ColumnId, LogicalType)> {
            schema.key_columns().map(|column| (column.id, column.logical)).collect()
        };
        key(self) == key(other)
    }
}
