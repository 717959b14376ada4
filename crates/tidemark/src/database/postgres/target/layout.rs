//! Hidden tables as SQL: their columns, types and names.

use postgres::GenericClient;

use crate::database::TargetTable;
use crate::database::postgres::catalog::{ColumnStructure, TableStructure};
use crate::database::postgres::error::{Refused, failed};
use crate::database::postgres::quoted;
use crate::database::postgres::types::native_default;
use crate::error::{Error, Kind, Result};
use crate::ids::TableName;
use crate::row::Column;

/// Name of the schema that holds the hidden tables of an operation.
pub(super) fn hidden_schema(key: &str) -> String {
    format!("tidemark_new_{key}")
}

/// Name of the schema that takes what an operation replaced.
pub(super) fn old_schema(key: &str) -> String {
    format!("tidemark_old_{key}")
}

/// Name of a hidden table inside its schema.
pub(super) fn hidden_name(position: i32) -> String {
    format!("tidemark_hidden_{position}")
}

/// A name as SQL.
pub(super) fn sql_name(name: &TableName) -> String {
    format!("{}.{}", quoted(name.schema()), quoted(name.name()))
}

/// The name of a table by its number, as SQL; `None` if it is gone.
pub(super) fn name_of(client: &mut impl GenericClient, oid: u32) -> Result<Option<TableName>> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let row = client.query_opt(sql, &[&oid]).map_err(failed("look for a table"))?;
    Ok(row.and_then(|row| TableName::new(row.get(0), row.get(1))))
}

/// The columns of a table as `CREATE TABLE` takes them, generated ones too.
///
/// # Errors
/// [`Kind::NotFound`] for a type that this database does not have.
pub(super) fn columns(client: &mut impl GenericClient, table: &TargetTable) -> Result<Vec<String>> {
    let structure = TableStructure::of(table.structure.as_ref())?;
    let described = |column: &Column| -> Option<&ColumnStructure> {
        let number = i16::try_from(column.id.0).ok()?;
        structure.as_ref()?.columns.iter().find(|it| it.number == number)
    };
    let mut made = Vec::new();
    for column in &table.schema.columns {
        let described = described(column);
        let native = native_type(client, table, column, described.is_some())?;
        let mut text = format!("{} {native}", quoted(&column.name));
        if let Some(collation) = described.and_then(|it| it.collation.as_ref()) {
            text.push_str(&format!(" COLLATE {collation}"));
        }
        let is_key = table.schema.key.contains(&column.id);
        if is_key || described.is_some_and(|it| it.not_null) {
            text.push_str(" NOT NULL");
        }
        let number = described.map_or(i64::from(column.id.0), |it| i64::from(it.number));
        made.push((number, text));
    }
    for column in structure.iter().flat_map(|structure| &structure.columns) {
        let (Some("s"), Some(expression)) = (column.generated.as_deref(), &column.default) else {
            continue;
        };
        let mut text = format!("{} {}", quoted(&column.name), column.native);
        if let Some(collation) = &column.collation {
            text.push_str(&format!(" COLLATE {collation}"));
        }
        text.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
        if column.not_null {
            text.push_str(" NOT NULL");
        }
        made.push((i64::from(column.number), text));
    }
    if structure.is_some() {
        // The order that the table had; numbers are those of its columns.
        made.sort_by_key(|(number, _)| *number);
    }
    Ok(made.into_iter().map(|(_, text)| text).collect())
}

/// The type of a column here.
fn native_type(
    client: &mut impl GenericClient,
    table: &TargetTable,
    column: &Column,
    is_ours: bool,
) -> Result<String> {
    let default = native_default(column.logical);
    let Some(native) = &column.native else { return Ok(default.to_owned()) };
    // The server reads it as the name of a type and nothing else, so nothing else can be in it.
    let known = client.query_one("SELECT to_regtype($1) IS NOT NULL", &[native]);
    let known = match known.map_err(failed("look for a type")) {
        Ok(row) => row.get(0),
        Err(error) if Refused::code_of(&error).is_some() => false,
        Err(error) => return Err(error),
    };
    match (known, is_ours) {
        (true, _) => Ok(native.clone()),
        // Another engine's own name: the rows are of the logical type.
        (false, false) => Ok(default.to_owned()),
        (false, true) => {
            let message = format!(
                "column `{}` of `{}` has the type `{native}`, which this database does not have; \
                 create it, then run the same command again",
                column.name, table.name
            );
            Err(Error::new(Kind::NotFound, message))
        }
    }
}

/// The key columns as SQL, in key order.
pub(super) fn key_columns(table: &TargetTable) -> Vec<String> {
    table.schema.key_columns().map(|column| quoted(&column.name)).collect()
}
