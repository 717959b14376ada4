//! What a table is beyond columns and rows: built once all rows are in.
//!
//! A description comes from the catalogs of the source, see
//! [`TableStructure`]. Names of indexes, constraints and sequences follow the table's new name
//! where they began with the old one; what is taken in the end gets a number.

use std::collections::BTreeMap;

use postgres::{GenericClient, Transaction};

use crate::database::TargetTable;
use crate::database::postgres::catalog::{
    ColumnStructure, ConstraintStructure, SequenceStructure, TableStructure,
};
use crate::database::postgres::error::failed;
use crate::database::postgres::target::layout::{key_columns, name_of, sql_name};
use crate::database::postgres::{literal, quoted};
use crate::error::Result;
use crate::ids::TableName;

/// Bytes of a name in the server; longer ones are cut.
const NAME_BYTES_MAX: usize = 63;

/// A table to be built.
pub(super) struct Building<'a> {
    pub(super) plan: &'a TargetTable,
    pub(super) structure: &'a TableStructure,
    /// Where it is now, as SQL.
    pub(super) at: &'a str,
    /// Schema that it is in now.
    pub(super) schema: &'a str,
}

/// Whether the key of the rows is the table's primary key, rather than a unique index.
pub(super) fn has_primary_key(structure: Option<&TableStructure>) -> bool {
    structure.is_none_or(|it| it.constraints.iter().any(|constraint| constraint.kind == "p"))
}

impl Building<'_> {
    /// Builds everything but the key and foreign keys.
    pub(super) fn build(&self, transaction: &mut Transaction<'_>) -> Result<()> {
        for constraint in &self.structure.constraints {
            if matches!(&*constraint.kind, "u" | "x" | "c") {
                self.add_constraint(transaction, constraint)?;
            }
        }
        for index in &self.structure.indexes {
            let name = self.free_name(transaction, &index.name)?;
            let unique = if index.unique { "UNIQUE " } else { "" };
            let sql = format!(
                "CREATE {unique}INDEX {} ON {} {}",
                quoted(&name),
                self.at,
                index.definition
            );
            self.run(transaction, &format!("index `{}`", index.name), &sql)?;
            let at = format!("{}.{}", quoted(self.schema), quoted(&name));
            self.comment(transaction, &format!("INDEX {at}"), index.comment.as_deref())?;
            if index.replica_identity {
                let sql = format!(
                    "ALTER TABLE {} REPLICA IDENTITY USING INDEX {}",
                    self.at,
                    quoted(&name)
                );
                self.run(transaction, "the replica identity", &sql)?;
            }
            if index.clustered {
                let sql = format!("ALTER TABLE {} CLUSTER ON {}", self.at, quoted(&name));
                self.run(transaction, &format!("index `{}`", index.name), &sql)?;
            }
        }
        for column in &self.structure.columns {
            self.build_column(transaction, column)?;
        }
        self.build_table(transaction)
    }

    fn build_table(&self, transaction: &mut Transaction<'_>) -> Result<()> {
        let mut sql = String::new();
        match &*self.structure.replica_identity {
            "f" => sql.push_str(&format!("ALTER TABLE {} REPLICA IDENTITY FULL;", self.at)),
            "n" => sql.push_str(&format!("ALTER TABLE {} REPLICA IDENTITY NOTHING;", self.at)),
            _ => {}
        }
        for option in &self.structure.options {
            if let Some((name, value)) = option.split_once('=') {
                let (name, value) = (quoted(name), literal(value));
                sql.push_str(&format!("ALTER TABLE {} SET ({name} = {value});", self.at));
            }
        }
        if self.structure.row_security {
            // Without its policies, nobody but the owner sees a row.
            sql.push_str(&format!("ALTER TABLE {} ENABLE ROW LEVEL SECURITY;", self.at));
        }
        self.run(transaction, "its options", &sql)?;
        self.comment(
            transaction,
            &format!("TABLE {}", self.at),
            self.structure.comment.as_deref(),
        )?;
        for grant in &self.structure.grants {
            let known = "SELECT $1 = 'PUBLIC' OR EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
            let known =
                transaction.query_one(known, &[&grant.to]).map_err(failed("find a role"))?;
            if !known.get::<_, bool>(0) {
                continue;
            }
            let to = if grant.to == "PUBLIC" { "PUBLIC".to_owned() } else { quoted(&grant.to) };
            let option = if grant.with_option { " WITH GRANT OPTION" } else { "" };
            let sql = format!("GRANT {} ON {} TO {to}{option}", grant.privilege, self.at);
            self.run(transaction, "its grants", &sql)?;
        }
        Ok(())
    }

    fn build_column(
        &self,
        transaction: &mut Transaction<'_>,
        column: &ColumnStructure,
    ) -> Result<()> {
        let at = format!("ALTER TABLE {} ALTER COLUMN {}", self.at, quoted(&column.name));
        let what = format!("column `{}`", column.name);
        let sequence = column.sequence.as_ref();
        if let Some(identity) = &column.identity {
            let always = if identity == "a" { "ALWAYS" } else { "BY DEFAULT" };
            let options = sequence.map(sequence_options).unwrap_or_default();
            let name = match sequence {
                Some(sequence) => self.free_name(transaction, &own_name(&sequence.name))?,
                None => self.free_name(transaction, &format!("{}_seq", column.name))?,
            };
            let name = format!("{}.{}", quoted(self.schema), quoted(&name));
            let sql =
                format!("{at} ADD GENERATED {always} AS IDENTITY (SEQUENCE NAME {name} {options})");
            self.run(transaction, &what, &sql)?;
            self.set_sequence(transaction, &name, sequence)?;
        } else if column.generated.is_none() {
            match (sequence, &column.default) {
                (Some(sequence), Some(_)) => {
                    let name = self.free_name(transaction, &own_name(&sequence.name))?;
                    let name = format!("{}.{}", quoted(self.schema), quoted(&name));
                    let sql = format!(
                        "CREATE SEQUENCE {name} AS {} {}; ALTER SEQUENCE {name} OWNED BY {}.{}; \
                         {at} SET DEFAULT nextval({})",
                        sequence.native,
                        sequence_options(sequence),
                        self.at,
                        quoted(&column.name),
                        literal(&name)
                    );
                    self.run(transaction, &what, &sql)?;
                    self.set_sequence(transaction, &name, Some(sequence))?;
                }
                (_, Some(default)) => {
                    self.run(transaction, &what, &format!("{at} SET DEFAULT {default}"))?;
                }
                (_, None) => {}
            }
        }
        let at = format!("COLUMN {}.{}", self.at, quoted(&column.name));
        self.comment(transaction, &at, column.comment.as_deref())
    }

    fn set_sequence(
        &self,
        transaction: &mut Transaction<'_>,
        name: &str,
        sequence: Option<&SequenceStructure>,
    ) -> Result<()> {
        let Some(last) = sequence.and_then(|sequence| sequence.last) else { return Ok(()) };
        let sql = format!("SELECT setval({}, {last})", literal(name));
        self.run(transaction, "the position of a sequence", &sql)
    }

    fn add_constraint(
        &self,
        transaction: &mut Transaction<'_>,
        constraint: &ConstraintStructure,
    ) -> Result<()> {
        let name = match &*constraint.kind {
            // Those with an index share its names with all tables of the schema.
            "u" | "x" => self.free_name(transaction, &constraint.name)?,
            _ => self.renamed(&constraint.name),
        };
        let sql = format!(
            "ALTER TABLE {} ADD CONSTRAINT {} {}",
            self.at,
            quoted(&name),
            constraint.definition
        );
        self.run(transaction, &format!("constraint `{}`", constraint.name), &sql)?;
        let at = format!("CONSTRAINT {} ON {}", quoted(&name), self.at);
        self.comment(transaction, &at, constraint.comment.as_deref())
    }

    /// Adds the foreign keys to tables of the same operation; those to others are told.
    ///
    /// `hidden` are the tables of the operation by the name that they had in the source.
    pub(super) fn add_foreign_keys(
        &self,
        transaction: &mut Transaction<'_>,
        hidden: &BTreeMap<TableName, String>,
        notices: &mut Vec<String>,
    ) -> Result<()> {
        for constraint in self.structure.constraints.iter().filter(|it| it.kind == "f") {
            let name = self.renamed(&constraint.name);
            let there = "SELECT EXISTS (SELECT FROM pg_constraint \
                         WHERE conrelid = $1::text::regclass AND conname = $2)";
            let there = transaction.query_one(there, &[&self.at, &name]);
            if there.map_err(failed("look for a foreign key"))?.get(0) {
                continue;
            }
            let references = constraint.references.as_ref();
            let inside = references.and_then(|references| hidden.get(references));
            let (Some(references), Some(inside)) = (references, inside) else {
                notices.push(format!(
                    "the foreign key `{}` of `{}` leads to `{}`, which is not restored with it: \
                     it was left out; to have it: ALTER TABLE {} ADD CONSTRAINT {} {}",
                    constraint.name,
                    self.plan.name,
                    references.map_or_else(String::new, TableName::to_string),
                    sql_name(&self.plan.name),
                    quoted(&name),
                    constraint.definition
                ));
                continue;
            };
            let sql = "SELECT format('REFERENCES %I.%I(', $1::text, $2::text)";
            let names = transaction.query_one(sql, &[&references.schema(), &references.name()]);
            let written: String = names.map_err(failed("name a table"))?.get(0);
            let aimed =
                constraint.definition.replacen(&written, &format!("REFERENCES {inside}("), 1);
            let sql = format!("ALTER TABLE {} ADD CONSTRAINT {} {aimed}", self.at, quoted(&name));
            self.run(transaction, &format!("foreign key `{}`", constraint.name), &sql)?;
        }
        Ok(())
    }

    /// What is not carried, for people.
    pub(super) fn told(&self) -> Vec<String> {
        let mut told = Vec::new();
        let name = &self.plan.name;
        if self.structure.row_security {
            told.push(format!(
                "table `{name}` has row-level security, whose policies are not carried: until they \
                 are made again its owner alone sees rows"
            ));
        }
        if !self.structure.left_out.is_empty() {
            let left_out = self.structure.left_out.join("`, `");
            told.push(format!("table `{name}` had what is not carried: `{left_out}`"));
        }
        if self.structure.kind == "p" {
            told.push(format!("table `{name}` was partitioned and is one table now"));
        }
        if self.structure.persistence == "u" {
            told.push(format!("table `{name}` was unlogged and is logged now"));
        }
        told
    }

    /// The name that something of the table gets: after the table's new name.
    fn renamed(&self, name: &str) -> String {
        renamed(self.structure.name.name(), self.plan.name.name(), name)
    }

    fn free_name(&self, transaction: &mut Transaction<'_>, name: &str) -> Result<String> {
        free_name(transaction, self.schema, &self.renamed(name))
    }

    fn comment(
        &self,
        transaction: &mut Transaction<'_>,
        on: &str,
        comment: Option<&str>,
    ) -> Result<()> {
        let Some(comment) = comment else { return Ok(()) };
        self.run(transaction, "a comment", &format!("COMMENT ON {on} IS {}", literal(comment)))
    }

    fn run(&self, transaction: &mut Transaction<'_>, what: &str, sql: &str) -> Result<()> {
        let what = format!("build {what} of `{}`", self.plan.name);
        transaction.batch_execute(sql).map_err(failed(&what))
    }
}

/// A name that nothing in the schema has: the wanted one, or that with a number.
pub(super) fn free_name(
    client: &mut impl GenericClient,
    schema: &str,
    wanted: &str,
) -> Result<String> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1::text AND c.relname = $2::text)";
    let mut name = wanted.to_owned();
    for number in 1u32.. {
        let taken = client.query_one(sql, &[&schema, &name]).map_err(failed("look for a name"))?;
        if !taken.get::<_, bool>(0) {
            break;
        }
        let suffix = format!("_{number}");
        name = cut(wanted.to_owned(), NAME_BYTES_MAX - suffix.len()) + &suffix;
    }
    Ok(name)
}

/// Renames what a table brings into a schema where its name is taken: indexes and sequences.
pub(super) fn make_way(
    transaction: &mut Transaction<'_>,
    oid: u32,
    into_schema: &str,
) -> Result<()> {
    let what = "name what belongs to a table";
    let sql = "SELECT c.oid, c.relkind::text FROM pg_class c WHERE c.oid IN \
               (SELECT indexrelid FROM pg_index WHERE indrelid = $1) OR c.relkind = 'S' AND c.oid \
               IN (SELECT objid FROM pg_depend WHERE refobjid = $1 AND deptype IN ('a', 'i') \
               AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass)";
    for row in transaction.query(sql, &[&oid]).map_err(failed(what))? {
        let Some(at) = name_of(transaction, row.get(0))? else { continue };
        let free = free_name(transaction, into_schema, at.name())?;
        if free != at.name() && at.schema() != into_schema {
            // Where it is now the new name may be taken too, but then by a hidden table's.
            let kind = if row.get::<_, &str>(1) == "S" { "SEQUENCE" } else { "INDEX" };
            let sql = format!("ALTER {kind} {} RENAME TO {}", sql_name(&at), quoted(&free));
            transaction.batch_execute(&sql).map_err(failed(what))?;
        }
    }
    Ok(())
}

/// What would keep the owner from reading the table back, and so comes last.
pub(super) fn force_row_security(
    transaction: &mut Transaction<'_>,
    plan: &TargetTable,
    at: &str,
) -> Result<()> {
    let structure = TableStructure::of(plan.structure.as_ref())?;
    if !structure.is_some_and(|structure| structure.row_security_forced) {
        return Ok(());
    }
    let sql = format!("ALTER TABLE {at} FORCE ROW LEVEL SECURITY");
    transaction.batch_execute(&sql).map_err(failed("force row-level security"))
}

/// Moves the sequences of a copy on to where they stood at its new restore point.
pub(super) fn advance_sequences(
    transaction: &mut Transaction<'_>,
    plan: &TargetTable,
    at: &str,
) -> Result<()> {
    let Some(structure) = TableStructure::of(plan.structure.as_ref())? else { return Ok(()) };
    for column in &structure.columns {
        let Some(last) = column.sequence.as_ref().and_then(|sequence| sequence.last) else {
            continue;
        };
        let what = format!("set the sequence of column `{}`", column.name);
        let sql = "SELECT setval(s, $3) FROM pg_get_serial_sequence($1, $2) s WHERE s IS NOT NULL";
        transaction.query(sql, &[&at, &column.name, &last]).map_err(failed(&what))?;
    }
    Ok(())
}

/// Gives a table the key by which rows are found.
pub(super) fn add_key(
    client: &mut impl GenericClient,
    table: &TargetTable,
    at: &str,
) -> Result<()> {
    let keys = key_columns(table);
    if keys.is_empty() {
        return Ok(());
    }
    let structure = TableStructure::of(table.structure.as_ref())?;
    let sql = if has_primary_key(structure.as_ref()) {
        let primary = structure.iter().flat_map(|it| &it.constraints).find(|it| it.kind == "p");
        let columns = format!("PRIMARY KEY ({})", keys.join(", "));
        let definition = primary.map_or(columns, |it| it.definition.clone());
        format!("ALTER TABLE {at} ADD {definition}")
    } else {
        format!("CREATE UNIQUE INDEX {INTERIM_KEY} ON {at} ({})", keys.join(", "))
    };
    let what = format!("make the key of `{}`", table.name);
    client.batch_execute(&sql).map_err(failed(&what))
}

/// The name that the primary key of a table gets, if nothing else has it.
pub(super) fn primary_key_name(table: &TargetTable) -> Result<String> {
    let structure = TableStructure::of(table.structure.as_ref())?;
    let mut constraints = structure.iter().flat_map(|it| &it.constraints);
    let primary = constraints.find(|it| it.kind == "p");
    Ok(match (&structure, primary) {
        (Some(structure), Some(primary)) => {
            renamed(structure.name.name(), table.name.name(), &primary.name)
        }
        _ => cut(table.name.name().to_owned(), NAME_BYTES_MAX - 5) + "_pkey",
    })
}

/// Index that finds rows of a table without a primary key until its own indexes are there.
const INTERIM_KEY: &str = "tidemark_interim_key";

/// Drops the index that the table did not have, if it was needed.
pub(super) fn drop_interim_key(transaction: &mut Transaction<'_>, oid: u32) -> Result<()> {
    let what = "drop an index that is no longer needed";
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_index x \
               JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE x.indrelid = $1 AND c.relname LIKE 'tidemark\\_interim\\_key%'";
    for row in transaction.query(sql, &[&oid]).map_err(failed(what))? {
        let at = TableName::new(row.get(0), row.get(1)).expect("neither is empty");
        let sql = format!("DROP INDEX {}", sql_name(&at));
        transaction.batch_execute(&sql).map_err(failed(what))?;
    }
    Ok(())
}

fn sequence_options(sequence: &SequenceStructure) -> String {
    format!(
        "START WITH {} INCREMENT BY {} MINVALUE {} MAXVALUE {} CACHE {} {}CYCLE",
        sequence.start,
        sequence.increment,
        sequence.min,
        sequence.max,
        sequence.cache,
        if sequence.cycle { "" } else { "NO " }
    )
}

/// The last part of a qualified name as SQL, without its quotes.
fn own_name(qualified: &str) -> String {
    match qualified.strip_suffix('"') {
        Some(rest) => {
            // Quotes inside are doubled, so a single one before a dot begins the part.
            let start = rest.rfind(".\"").map_or(0, |at| at + 2);
            rest[start..].trim_start_matches('"').replace("\"\"", "\"")
        }
        None => qualified.rsplit('.').next().unwrap_or(qualified).to_owned(),
    }
}

/// The name of something that belongs to a table, after the table's new name.
fn renamed(old: &str, new: &str, name: &str) -> String {
    let rest = name.strip_prefix(old).filter(|rest| rest.starts_with('_'));
    cut(rest.map_or_else(|| name.to_owned(), |rest| format!("{new}{rest}")), NAME_BYTES_MAX)
}

/// Cuts a name to so many bytes, between characters.
fn cut(mut name: String, bytes_max: usize) -> String {
    while name.len() > bytes_max {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_part_of_a_qualified_name_is_found() {
        for (qualified, own) in [
            ("public.a_seq", "a_seq"),
            ("public.\"Größe.x_s_seq\"", "Größe.x_s_seq"),
            ("\"A.b\".\"c\"\"d\"", "c\"d"),
            ("\"A.b\".c", "c"),
        ] {
            assert_eq!(own_name(qualified), own);
        }
    }
}
