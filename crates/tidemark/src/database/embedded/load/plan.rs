//! What a file's columns make of a table's schema; pure.
//!
//! Columns are matched by name. A column that stays keeps its id; one whose type
//! has to change gets a new id, so that no stored value is ever read under
//! another type than it was written with; ids of dropped columns are never used
//! again.

use std::collections::BTreeMap;
use std::fmt;

use crate::csv::infer::ColumnSurvey;
use crate::error::{Error, Kind, Result};
use crate::ids::ColumnId;
use crate::row::{Column, LogicalType, Schema};

/// Names that a backup's own columns have.
const RESERVED_PREFIX: &str = "__tidemark_";

/// The columns a file has and what a person said about them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileColumns<'a> {
    /// The file, for messages.
    pub(super) file: &'a str,
    /// Names in the order of the file.
    pub(super) names: &'a [String],
    /// What was seen in each.
    pub(super) surveys: &'a [ColumnSurvey],
    /// Types that hold whatever was seen.
    pub(super) types: &'a BTreeMap<String, LogicalType>,
    /// Key columns as asked for, in key order.
    pub(super) key: &'a [String],
}

/// One difference between a table's schema and the one it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaChange {
    /// The table had no column of that name.
    Added {
        /// Name.
        column: String,
        /// Type.
        logical: LogicalType,
    },
    /// The file has no column of that name any more.
    Dropped {
        /// Name.
        column: String,
        /// Type it had.
        logical: LogicalType,
    },
    /// The column has another type, because its values no longer print back under
    /// the old one or because it was asked for. Every row that has a value there is rewritten.
    Retyped {
        /// Name.
        column: String,
        /// Type before.
        from: LogicalType,
        /// Type now.
        to: LogicalType,
    },
    /// The same columns stand in another order.
    Reordered,
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaChange::Added { column, logical } => {
                write!(f, "column `{column}` added as {}", logical.name())
            }
            SchemaChange::Dropped { column, logical } => {
                write!(f, "column `{column}` dropped; it was {}", logical.name())
            }
            SchemaChange::Retyped { column, from, to } => {
                write!(f, "column `{column}` is now {}; it was {}", to.name(), from.name())
            }
            SchemaChange::Reordered => f.write_str("columns reordered"),
        }
    }
}

/// The schema of a table that is made from the file.
///
/// # Errors
/// [`Kind::Usage`]: no key, a key or typed column that the file has not, a reserved name.
pub(super) fn plan_new(columns: FileColumns<'_>) -> Result<Schema> {
    columns.check()?;
    if columns.key.is_empty() {
        let message = format!(
            "{}: a new table needs a key; name its column with --key, one of {}",
            columns.file,
            listed(columns.names)
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let typed: Vec<(&str, LogicalType)> =
        columns.each().map(|(name, survey)| (name, columns.type_of_new(name, survey))).collect();
    let key: Vec<&str> = columns.key.iter().map(String::as_str).collect();
    Schema::new(&typed, &key)
}

/// The schema that `table` gets from the file, and how it differs.
///
/// # Errors
/// [`Kind::Usage`]: another key than the table's, a key or typed column that the file has
/// not, a reserved name.
pub(super) fn plan_sync(
    table: &Schema,
    columns: FileColumns<'_>,
) -> Result<(Schema, Vec<SchemaChange>)> {
    columns.check()?;
    let table_key: Vec<String> = table.key_columns().map(|column| column.name.clone()).collect();
    if !columns.key.is_empty() && columns.key != table_key {
        let message = format!(
            "the table's key is {}, --key says {}; leave --key out, or load into another table",
            listed(&table_key),
            listed(columns.key)
        );
        return Err(Error::new(Kind::Usage, message));
    }
    if table_key.is_empty() {
        let message = "the table has no key, so its rows cannot be compared with the file's; load \
                       the file into another table";
        return Err(Error::new(Kind::Usage, message));
    }
    columns.check_key(&table_key)?;

    let mut planned = Schema { columns: Vec::new(), key: Vec::new(), ..table.clone() };
    let mut changes = Vec::new();
    for (name, survey) in columns.each() {
        let (column, change) = columns.plan_column(table, name, survey, &mut planned);
        planned.columns.push(column);
        changes.extend(change);
    }
    planned.key = table_key
        .iter()
        .map(|name| planned.column_named(name).expect("key columns stay: checked").id)
        .collect();
    for column in &table.columns {
        if planned.column_named(&column.name).is_none() {
            let column = (column.name.clone(), column.logical);
            changes.push(SchemaChange::Dropped { column: column.0, logical: column.1 });
        }
    }
    if is_reordered(table, &planned) {
        changes.push(SchemaChange::Reordered);
    }
    planned.check()?;
    Ok((planned, changes))
}

impl<'a> FileColumns<'a> {
    fn each(&self) -> impl Iterator<Item = (&'a str, &'a ColumnSurvey)> {
        self.names.iter().map(String::as_str).zip(self.surveys)
    }

    fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::new(Kind::Usage, message));
        if let Some(name) = self.names.iter().find(|name| name.starts_with(RESERVED_PREFIX)) {
            let message = format!(
                "{}: column `{name}` has a name that backups use for themselves; rename it",
                self.file
            );
            return refuse(message);
        }
        if let Some(name) = self.types.keys().find(|name| !self.names.contains(name)) {
            let message =
                format!("--type names column `{name}`, {} has {}", self.file, listed(self.names));
            return refuse(message);
        }
        self.check_key(self.key)
    }

    fn check_key(&self, key: &[String]) -> Result<()> {
        let Some(name) = key.iter().find(|name| !self.names.contains(name)) else { return Ok(()) };
        let message =
            format!("key column `{name}` is missing: {} has {}", self.file, listed(self.names));
        Err(Error::new(Kind::Usage, message))
    }

    fn type_of_new(&self, name: &str, survey: &ColumnSurvey) -> LogicalType {
        let inferred = if self.key.iter().any(|key| key == name) {
            survey.inferred_key()
        } else {
            survey.inferred()
        };
        self.types.get(name).copied().unwrap_or(inferred)
    }

    /// The column that `name` becomes, and how it differs from the table's; a new
    /// id is taken from `planned`.
    fn plan_column(
        &self,
        table: &Schema,
        name: &str,
        survey: &ColumnSurvey,
        planned: &mut Schema,
    ) -> (Column, Option<SchemaChange>) {
        let column = name.to_owned();
        let (logical, change) = match table.column_named(name) {
            None => {
                let logical = self.type_of_new(name, survey);
                (logical, SchemaChange::Added { column, logical })
            }
            Some(existing) => {
                let from = existing.logical;
                let to = self.types.get(name).copied().unwrap_or_else(|| survey.widened(from));
                if from == to {
                    return (existing.clone(), None);
                }
                (to, SchemaChange::Retyped { column, from, to })
            }
        };
        let id = planned.next_column_id;
        planned.next_column_id = ColumnId(id.0 + 1);
        (Column { id, name: name.to_owned(), logical, native: None }, Some(change))
    }
}

/// Whether the columns that both have stand in another order.
fn is_reordered(before: &Schema, after: &Schema) -> bool {
    let kept = |schema: &'_ Schema, other: &Schema| -> Vec<String> {
        let names = schema.columns.iter().map(|column| &column.name);
        names.filter(|name| other.column_named(name).is_some()).cloned().collect()
    };
    kept(before, after) != kept(after, before)
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::{Reader, Record, Survey};

    /// A file and what a person said about it.
    struct Case<'a> {
        file: &'a str,
        key: &'a [&'a str],
        types: &'a [(&'a str, LogicalType)],
    }

    fn case<'a>(file: &'a str, key: &'a [&'a str]) -> Case<'a> {
        Case { file, key, types: &[] }
    }

    impl Case<'_> {
        fn plan<T>(&self, plan: impl FnOnce(FileColumns<'_>) -> T) -> T {
            let mut reader = Reader::open(self.file.as_bytes(), "t.csv").unwrap();
            let mut survey = Survey::new(reader.header().len());
            let mut record = Record::new();
            while reader.read(&mut record).unwrap() {
                survey.observe(&record);
            }
            let owned = |(name, logical): &(&str, LogicalType)| ((*name).to_owned(), *logical);
            let key: Vec<String> = self.key.iter().map(|name| (*name).to_owned()).collect();
            plan(FileColumns {
                file: "t.csv",
                names: reader.header(),
                surveys: survey.columns(),
                types: &self.types.iter().map(owned).collect(),
                key: &key,
            })
        }

        fn new_table(&self) -> Result<Schema> {
            self.plan(plan_new)
        }

        fn sync(&self, table: &Schema) -> Result<(Schema, Vec<SchemaChange>)> {
            self.plan(|columns| plan_sync(table, columns))
        }
    }

    #[track_caller]
    fn refused<T: fmt::Debug>(result: Result<T>, expected: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains(expected), "{error}");
    }

    fn typed(schema: &Schema) -> Vec<(u32, &str, LogicalType)> {
        let column = |column: &'_ Column| (column.id.0, column.logical);
        schema
            .columns
            .iter()
            .map(|each| (column(each).0, each.name.as_str(), column(each).1))
            .collect()
    }

    #[test]
    fn a_new_table_has_the_files_columns_and_types() {
        let schema = case("id,name\n1,x\n", &["id"]).new_table().unwrap();
        let expected = [(1, "id", LogicalType::Int64), (2, "name", LogicalType::Text)];
        assert_eq!(typed(&schema), expected);
        let types = [("id", LogicalType::Text)];
        let asked = Case { types: &types, ..case("id,name\n1,x\n", &["id"]) };
        assert_eq!(asked.new_table().unwrap().columns[0].logical, LogicalType::Text);
    }

    #[test]
    fn what_the_file_has_not_is_refused_by_name() {
        refused(case("id,name\n", &[]).new_table(), "needs a key");
        refused(case("id,name\n", &["no"]).new_table(), "key column `no` is missing: t.csv has");
        refused(case("id,name\n", &["id", "id"]).new_table(), "named twice");
        refused(case("id,__tidemark_op\n", &["id"]).new_table(), "`__tidemark_op`");
        let types = [("no", LogicalType::Text)];
        let asked = Case { types: &types, ..case("id\n", &["id"]) };
        refused(asked.new_table(), "--type names column `no`, t.csv has `id`");
    }

    #[test]
    fn the_same_header_and_types_change_nothing() {
        let table = case("id,name\n1,x\n", &["id"]).new_table().unwrap();
        for file in ["id,name\n2,y\n", "id,name\n", "id,name\n3,\n"] {
            assert_eq!(case(file, &[]).sync(&table).unwrap(), (table.clone(), Vec::new()));
        }
    }

    #[test]
    fn columns_come_and_go_by_name_and_ids_are_not_used_again() {
        let table = case("id,a,b\n1,x,2\n", &["id"]).new_table().unwrap();
        let (next, changes) = case("b,id,c\n2,1,true\n", &["id"]).sync(&table).unwrap();
        let expected = [
            (3, "b", LogicalType::Int64),
            (1, "id", LogicalType::Int64),
            (4, "c", LogicalType::Bool),
        ];
        assert_eq!(typed(&next), expected);
        let shown: Vec<String> = changes.iter().map(SchemaChange::to_string).collect();
        assert_eq!(
            shown,
            ["column `c` added as bool", "column `a` dropped; it was text", "columns reordered"]
        );
        let (last, _) = case("id,a\n1,x\n", &[]).sync(&next).unwrap();
        assert_eq!(typed(&last), [(1, "id", LogicalType::Int64), (5, "a", LogicalType::Text)]);
    }

    #[test]
    fn a_type_that_must_widen_takes_a_new_id_and_is_told() {
        let table = case("id,n\n1,2\n", &["id"]).new_table().unwrap();
        let (next, changes) = case("id,n\nx,2.5\n", &[]).sync(&table).unwrap();
        let expected = [(3, "id", LogicalType::Text), (4, "n", LogicalType::Decimal)];
        assert_eq!(typed(&next), expected);
        assert_eq!(next.key, [ColumnId(3)]);
        assert_eq!(changes[0].to_string(), "column `id` is now text; it was int64");
        assert!(!next.same_key(&table));
        let (same, changes) = case("id,n\n7,8\n", &[]).sync(&next).unwrap();
        assert_eq!((same, changes), (next, Vec::new()));
    }

    #[test]
    fn a_type_that_is_asked_for_is_taken_even_if_narrower() {
        let table = case("id,n\n1,x\n", &["id"]).new_table().unwrap();
        let types = [("n", LogicalType::Int64)];
        let asked = Case { types: &types, ..case("id,n\n1,2\n", &[]) };
        assert_eq!(asked.sync(&table).unwrap().0.columns[1].logical, LogicalType::Int64);
    }

    #[test]
    fn another_key_is_refused_with_both() {
        let table = case("id,n\n1,x\n", &["id"]).new_table().unwrap();
        let error = case("id,n\n1,x\n", &["n"]).sync(&table);
        refused(error, "the table's key is `id`, --key says `n`");
        refused(case("n\nx\n", &[]).sync(&table), "key column `id` is missing: t.csv has `n`");
    }
}
