//! Identifiers and quantities that must not be confused with one another.
//!
//! Every id that is stored or shown is a newtype here; `u32` and `u64` only,
//! since stored widths do not depend on the machine.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Public number of an operation, unique in its catalog, from 1.
    OperationId(u64)
}
number! {
    /// Fencing number of an operation, from the counter of the database that holds its rows.
    Txn(u64)
}
number! {
    /// Position of a step in its plan, 0-based.
    StepIdx(u32)
}
number! {
    /// Position of a shard in its step, 0-based.
    ShardIdx(u32)
}
number! {
    /// Times a shard has been started in one step, 1-based.
    Attempt(u32)
}
number! {
    /// Who may write: raised by every takeover, so that an older holder is refused.
    Epoch(u64)
}
number! {
    /// Position of a backup in its chain: 0 is the full.
    LinkIdx(u32)
}
number! {
    /// Position of a backup in its collection's log, from 1.
    Sequence(u64)
}
number! {
    /// Number of a column, stable for the life of its table, never reused.
    ColumnId(u32)
}
number! {
    /// A source's position: everything that was committed up to and including it.
    ///
    /// The embedded database counts cuts; PostgreSQL has LSNs.
    Position(u64)
}

/// Identity of a table, chosen when it is created; 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableId(pub u128);

/// Identity of a collection, chosen when it is created; 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollectionId(pub u128);

/// A cut of a source, named by 128 random bits: positions repeat in a database that was rolled
/// back and in a copy of it, this does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CutId(pub u128);

macro_rules! hex_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                if text.len() != 32 || !text.bytes().all(lower_hex) {
                    return Err(format!("`{text}` is not an id: expected 32 hexadecimal digits"));
                }
                u128::from_str_radix(&text, 16).map($name).map_err(|cause| cause.to_string())
            }
        }
    };
}

hex_id!(TableId);
hex_id!(CollectionId);
hex_id!(CutId);

/// A table's name as its database knows it: schema and name, both exact.
///
/// Written `schema.name`; `public.` is left out, and a dot or quote inside a
/// part makes that part quoted, so that every name reads back as itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    schema: String,
    name: String,
}

/// Schema of a table whose name does not say.
pub const SCHEMA_DEFAULT: &str = "public";

impl TableName {
    /// A name with an explicit schema; `None` if either part is empty or holds a NUL.
    pub fn new(schema: &str, name: &str) -> Option<TableName> {
        let valid = |part: &str| !part.is_empty() && !part.contains('\0');
        (valid(schema) && valid(name))
            .then(|| TableName { schema: schema.to_owned(), name: name.to_owned() })
    }

    /// Reads `name` or `schema.name`, with `"…"` around parts that need it.
    pub fn parse(text: &str) -> Result<TableName, String> {
        let bad = || {
            format!(
                "`{text}` is not a table name: expected NAME or SCHEMA.NAME, of any characters; a \
                 part with a dot or a double quote in it stands in double quotes, and a quote in \
                 that is doubled"
            )
        };
        let mut parts: Vec<String> = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = match rest.strip_prefix('"') {
                Some(quoted) => read_quoted(quoted).ok_or_else(bad)?,
                None => {
                    let end = rest.find('.').unwrap_or(rest.len());
                    if rest[..end].contains('"') {
                        return Err(bad());
                    }
                    (rest[..end].to_owned(), &rest[end..])
                }
            };
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(bad()),
            }
        }
        match parts.as_slice() {
            [name] => TableName::new(SCHEMA_DEFAULT, name).ok_or_else(bad),
            [schema, name] => TableName::new(schema, name).ok_or_else(bad),
            _ => Err(bad()),
        }
    }

    /// The schema, unquoted.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The name inside its schema, unquoted.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Reads up to the closing quote; `""` inside stands for one quote.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, ch)) = chars.next() {
        match (ch, chars.peek()) {
            ('"', Some((_, '"'))) => {
                part.push('"');
                chars.next();
            }
            ('"', _) => return Some((part, &text[at + 1..])),
            _ => part.push(ch),
        }
    }
    None
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |part: &str| {
            if part.contains(['.', '"']) {
                format!("\"{}\"", part.replace('"', "\"\""))
            } else {
                part.to_owned()
            }
        };
        if self.schema != SCHEMA_DEFAULT {
            write!(f, "{}.", quoted(&self.schema))?;
        }
        f.write_str(&quoted(&self.name))
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableName({self})")
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for TableName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        TableName::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_name_reads_back_as_itself() {
        for (schema, name) in
            [("public", "orders"), ("a.b", "c"), ("s", "x\"y"), ("public", "a.b"), ("über", "t")]
        {
            let table = TableName::new(schema, name).unwrap();
            assert_eq!(TableName::parse(&table.to_string()), Ok(table));
        }
    }

    #[test]
    fn malformed_table_names_are_refused() {
        for text in ["", ".", "a.", ".a", "a.b.c", "\"a", "a\"b", "\"a\"b"] {
            assert!(TableName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_read_back_and_refuse_other_text() {
        let id = TableId(0xabc);
        assert_eq!(TableId::try_from(id.to_string()), Ok(id));
        assert!(TableId::try_from("+0000000000000000000000000000abc".to_owned()).is_err());
    }
}
