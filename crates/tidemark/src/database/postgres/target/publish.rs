//! Making all tables of an operation visible, in one transaction.

use postgres::Transaction;

use crate::database::postgres::Session;
use crate::database::postgres::catalog::{self, DatabaseFacts, Which};
use crate::database::postgres::error::{Refused, failed};
use crate::database::postgres::quoted;
use crate::database::postgres::target::copy::{self, CopyRecord, Standing};
use crate::database::postgres::target::layout::{
    hidden_schema, key_columns, name_of, old_schema, sql_name,
};
use crate::database::postgres::target::prepare::{check_replaced, check_rolled};
use crate::database::postgres::target::records::{
    Base, HiddenRecord, State, fenced, forget_hidden, hidden_tables, lock_names, lock_operation,
    marks_of, name_session, put_operation,
};
use crate::database::postgres::target::structure::{
    advance_sequences, force_row_security, free_name, make_way, primary_key_name,
};
use crate::database::{Disposition, Fence, Mark, Publish, TargetTable, holding_would_hide};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::TableName;

/// See [`Target::publish`](crate::database::Target::publish).
pub(super) fn publish(
    session: &mut Session,
    database: &DatabaseFacts,
    key: &str,
    fence: Fence,
    how: Publish,
) -> Result<()> {
    let what = "publish the tables";
    name_session(session, key, fence.epoch)?;
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    lock_names(&mut transaction)?;
    match lock_operation(&mut transaction, key, fence)? {
        None => {
            let message = format!("operation {} prepared nothing here", fence.operation);
            return Err(Error::new(Kind::NotFound, message));
        }
        Some((_, State::Published)) => return Ok(()),
        Some((_, State::Discarded)) => return Err(fenced(fence, "it was discarded")),
        Some((epoch, _)) if epoch != fence.epoch => {
            return Err(fenced(fence, &format!("it is held with epoch {epoch}")));
        }
        Some((_, State::Open)) => {
            let message = format!("operation {} is not sealed", fence.operation);
            return Err(Error::new(Kind::Usage, message));
        }
        Some((_, State::Sealed)) => {}
    }
    let tables = hidden_tables(&mut transaction, key)?;
    let relaxed = relax(&mut transaction, &tables)?;
    for table in &tables {
        publish_table(&mut transaction, database, key, table, how)
            .map_err(|error| error.context(format!("publish `{}`", table.plan.name)))?;
    }
    tighten(&mut transaction, &relaxed)?;
    forget_hidden(&mut transaction, key)?;
    put_operation(&mut transaction, key, fence.epoch, State::Published)?;
    drop_if_empty(&mut transaction, &hidden_schema(key))?;
    failpoint::hit("postgres.published");
    transaction.commit().map_err(failed(what))?;
    failpoint::hit("postgres.published_durably");
    Ok(())
}

/// A foreign key of a copy that is merged, as it is to be again.
struct Relaxed {
    table: u32,
    name: String,
    again: Again,
}

enum Again {
    /// It was checked at the end of each statement, or could be put off.
    Checked(&'static str),
    /// It restricts, which cannot be put off, and was dropped.
    Added(String),
}

/// Puts off the foreign keys of the copies that are merged, which go from one point to the
/// next together: on the way a row may lead to one that comes later.
fn relax(transaction: &mut Transaction<'_>, tables: &[HiddenRecord]) -> Result<Vec<Relaxed>> {
    let what = "put off the foreign keys of the copies";
    let merged: Vec<u32> = tables
        .iter()
        .filter_map(|hidden| match hidden.base {
            Base::Beside(oid) => Some(oid),
            Base::Empty | Base::InPlace(_) => None,
        })
        .collect();
    let sql = "SELECT conrelid, conname::text, condeferrable, condeferred, \
               confdeltype::text = 'r' OR confupdtype::text = 'r', pg_get_constraintdef(oid) \
               FROM pg_constraint WHERE contype = 'f' AND conrelid = ANY ($1) AND conparentid = 0";
    let rows = transaction.query(sql, &[&merged]).map_err(failed(what))?;
    let mut relaxed = Vec::new();
    for row in rows {
        let (table, name): (u32, String) = (row.get(0), row.get(1));
        let Some(at) = name_of(transaction, table)? else { continue };
        let (at, constraint) = (sql_name(&at), quoted(&name));
        let again = match (row.get(4), row.get(2), row.get(3)) {
            (true, _, _) => Again::Added(row.get(5)),
            (false, false, _) => Again::Checked("NOT DEFERRABLE"),
            (false, true, false) => Again::Checked("DEFERRABLE INITIALLY IMMEDIATE"),
            (false, true, true) => Again::Checked("DEFERRABLE INITIALLY DEFERRED"),
        };
        let sql = match again {
            Again::Added(_) => format!("ALTER TABLE {at} DROP CONSTRAINT {constraint}"),
            Again::Checked(_) => format!(
                "ALTER TABLE {at} ALTER CONSTRAINT {constraint} DEFERRABLE INITIALLY DEFERRED"
            ),
        };
        transaction.batch_execute(&sql).map_err(failed(what))?;
        relaxed.push(Relaxed { table, name, again });
    }
    transaction.batch_execute("SET CONSTRAINTS ALL DEFERRED").map_err(failed(what))?;
    Ok(relaxed)
}

/// Checks what was put off, and makes the foreign keys what they were.
fn tighten(transaction: &mut Transaction<'_>, relaxed: &[Relaxed]) -> Result<()> {
    let what = "check the foreign keys of the copies";
    transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").map_err(failed(what))?;
    for Relaxed { table, name, again } in relaxed {
        // A copy may have been replaced by a table with keys of its own.
        let Some(at) = name_of(transaction, *table)? else { continue };
        let (at, constraint) = (sql_name(&at), quoted(name));
        let sql = match again {
            Again::Checked(how) => format!("ALTER TABLE {at} ALTER CONSTRAINT {constraint} {how}"),
            Again::Added(definition) => {
                format!("ALTER TABLE {at} ADD CONSTRAINT {constraint} {definition}")
            }
        };
        transaction.batch_execute(&sql).map_err(failed(what))?;
    }
    Ok(())
}

fn publish_table(
    transaction: &mut Transaction<'_>,
    database: &DatabaseFacts,
    key: &str,
    hidden: &HiddenRecord,
    how: Publish,
) -> Result<()> {
    let plan = &hidden.plan;
    let (marks, rows) = held_digests(transaction, key, hidden)?;
    let standing = copy::standing(transaction, &plan.name)?;
    if how == Publish::Held && matches!(standing, Some(Standing::Table(_))) {
        return Err(holding_would_hide(&plan.name));
    }
    let oid = match hidden.base {
        Base::Empty => {
            make_room(transaction, database, key, hidden, standing)?;
            hidden.oid
        }
        Base::Beside(oid) => {
            let is_it = matches!(standing, Some(Standing::Table(found)) if found == oid);
            let at = name_of(transaction, oid)?.filter(|_| is_it).ok_or_else(|| {
                Error::new(Kind::InTheWay, "the copy was dropped or renamed meanwhile")
            })?;
            // From here on nobody writes to it, and so nobody did whom the check does not see.
            let lock = format!("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE", sql_name(&at));
            transaction.batch_execute(&lock).map_err(failed("lock the copy"))?;
            check_rolled(transaction, plan, standing)?;
            merge(transaction, hidden, &at)?;
            advance_sequences(transaction, plan, &sql_name(&at))?;
            oid
        }
        Base::InPlace(oid) => oid,
    };
    if how == Publish::Visible && !matches!(hidden.base, Base::Beside(_)) {
        show(transaction, oid, plan)?;
    }
    let held = how == Publish::Held && !matches!(hidden.base, Base::Beside(_));
    CopyRecord::put(transaction, oid, held, plan, &marks, rows)
}

/// Marks that say what the shards hold and nothing else, and how many rows that is.
fn held_digests(
    transaction: &mut Transaction<'_>,
    key: &str,
    hidden: &HiddenRecord,
) -> Result<(Vec<Vec<u8>>, u64)> {
    let mut rows = 0;
    let marks = marks_of(transaction, key, &hidden.plan.name)?.into_iter().map(|mark| {
        let held = Mark { ranges: mark.unwrap_or_default().ranges, ..Mark::default() };
        rows += held.digest().rows;
        let mut bytes = Vec::new();
        held.encode(&mut bytes);
        bytes
    });
    let marks = marks.collect();
    Ok((marks, rows))
}

/// Frees the name of a table that was made anew.
fn make_room(
    transaction: &mut Transaction<'_>,
    database: &DatabaseFacts,
    key: &str,
    hidden: &HiddenRecord,
    standing: Option<Standing>,
) -> Result<()> {
    let name = &hidden.plan.name;
    match (hidden.plan.disposition, standing) {
        (Disposition::ReplaceCopy { table }, standing) => {
            if let Some(Standing::Table(oid)) = &standing {
                lock_out(transaction, *oid)?;
            }
            let oid = match &standing {
                Some(Standing::Table(oid)) => Some(*oid),
                Some(Standing::Held(found)) => Some(found.oid),
                _ => None,
            };
            check_replaced(transaction, database, name, table, standing)?;
            oid.map_or(Ok(()), |oid| remove(transaction, key, oid))
        }
        (_, None) => Ok(()),
        (Disposition::Replace, Some(Standing::Table(oid))) => {
            lock_out(transaction, oid)?;
            set_aside(transaction, key, oid)
        }
        (Disposition::Replace, Some(Standing::Held(found))) => {
            set_aside(transaction, key, found.oid)
        }
        (_, Some(standing)) => Err(standing.in_the_way(name)),
    }
}

fn lock_out(transaction: &mut Transaction<'_>, oid: u32) -> Result<()> {
    let Some(at) = name_of(transaction, oid)? else { return Ok(()) };
    let sql = format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", sql_name(&at));
    transaction.batch_execute(&sql).map_err(failed("lock the table that is replaced"))
}

/// Moves a table that was replaced to where people find it again.
fn set_aside(transaction: &mut Transaction<'_>, key: &str, oid: u32) -> Result<()> {
    CopyRecord::forget(transaction, oid)?;
    let Some(at) = name_of(transaction, oid)? else { return Ok(()) };
    let schema = quoted(&old_schema(key));
    let what = "set the table aside that is replaced";
    let sql = format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; ALTER TABLE {} SET SCHEMA {schema}",
        sql_name(&at)
    );
    transaction.batch_execute(&sql).map_err(failed(what))
}

/// Drops an untouched copy, whose rows the chain has; if something depends on it, it is set
/// aside.
fn remove(transaction: &mut Transaction<'_>, key: &str, oid: u32) -> Result<()> {
    let Some(at) = name_of(transaction, oid)? else { return Ok(()) };
    let what = "drop the copy that is replaced";
    let mut attempt = transaction.transaction().map_err(failed(what))?;
    let dropped = attempt.batch_execute(&format!("DROP TABLE {}", sql_name(&at)));
    match dropped.map_err(failed(what)) {
        Ok(()) => {
            attempt.commit().map_err(failed(what))?;
            CopyRecord::forget(transaction, oid)
        }
        Err(error) if Refused::code_of(&error) == Some("2BP01") => {
            attempt.rollback().map_err(failed(what))?;
            set_aside(transaction, key, oid)
        }
        Err(error) => Err(error),
    }
}

/// Gives a hidden table its name.
fn show(transaction: &mut Transaction<'_>, oid: u32, plan: &TargetTable) -> Result<()> {
    let name = &plan.name;
    let Some(at) = name_of(transaction, oid)? else {
        return Err(Error::new(Kind::NotFound, "the hidden table is no longer there"));
    };
    let schema = quoted(name.schema());
    let sql = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1::text)";
    let there =
        transaction.query_one(sql, &[&name.schema()]).map_err(failed("look for a schema"))?;
    if !there.get::<_, bool>(0) {
        let sql = format!("CREATE SCHEMA {schema}");
        transaction.batch_execute(&sql).map_err(failed("make the schema of a table"))?;
    }
    let here = TableName::new(at.schema(), name.name()).expect("neither is empty");
    let mut sql = String::new();
    if at.name() != name.name() {
        sql.push_str(&format!("ALTER TABLE {} RENAME TO {};", sql_name(&at), quoted(name.name())));
    }
    if at.schema() != name.schema() {
        make_way(transaction, oid, name.schema())?;
        sql.push_str(&format!("ALTER TABLE {} SET SCHEMA {schema};", sql_name(&here)));
    }
    transaction.batch_execute(&sql).map_err(failed("give the table its name"))?;
    force_row_security(transaction, plan, &sql_name(name))?;
    name_key(transaction, oid, plan)
}

/// Names the primary key as it was called, or as the server would have called it.
fn name_key(transaction: &mut Transaction<'_>, oid: u32, plan: &TargetTable) -> Result<()> {
    let (what, name) = ("name the key", &plan.name);
    let sql = "SELECT conname::text FROM pg_constraint WHERE conrelid = $1 AND contype = 'p' \
               AND conname LIKE 'tidemark\\_hidden\\_%'";
    let Some(row) = transaction.query_opt(sql, &[&oid]).map_err(failed(what))? else {
        return Ok(());
    };
    let old: String = row.get(0);
    let wanted = free_name(transaction, name.schema(), &primary_key_name(plan)?)?;
    let sql = format!(
        "ALTER TABLE {} RENAME CONSTRAINT {} TO {}",
        sql_name(name),
        quoted(&old),
        quoted(&wanted)
    );
    transaction.batch_execute(&sql).map_err(failed(what))
}

/// Merges what lies beside a published copy into it, without the triggers of its users.
fn merge(transaction: &mut Transaction<'_>, hidden: &HiddenRecord, at: &TableName) -> Result<()> {
    let plan = &hidden.plan;
    let Some(beside) = name_of(transaction, hidden.oid)? else {
        return Err(Error::new(Kind::NotFound, "what was to be merged is no longer there"));
    };
    let (at, beside) = (sql_name(at), sql_name(&beside));
    let what = "merge the changes into the copy";
    let sql = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1::text::regclass \
               AND NOT tgisinternal AND tgenabled <> 'D'";
    let triggers = transaction.query(sql, &[&at]).map_err(failed(what))?;
    let triggers: Vec<String> = triggers.iter().map(|row| quoted(row.get(0))).collect();
    let switch = |word: &str| -> String {
        triggers.iter().map(|it| format!("ALTER TABLE {at} {word} TRIGGER {it};")).collect()
    };
    let keys = key_columns(plan);
    let equal: Vec<String> = keys.iter().map(|key| format!("t.{key} = s.{key}")).collect();
    let columns: Vec<String> =
        plan.schema.columns.iter().map(|column| quoted(&column.name)).collect();
    let facts = catalog::tables(transaction, Which::Numbered(hidden_base(hidden)))?;
    let always: Vec<&str> = facts
        .iter()
        .flat_map(|facts| &facts.structure.columns)
        .filter(|column| column.identity.as_deref() == Some("a"))
        .map(|column| &*column.name)
        .collect();
    let changed: Vec<String> = plan
        .schema
        .columns
        .iter()
        .filter(|column| !plan.schema.key.contains(&column.id))
        .map(|column| quoted(&column.name))
        .collect();
    let cannot_update = plan
        .schema
        .columns
        .iter()
        .any(|column| always.contains(&&*column.name) && !plan.schema.key.contains(&column.id));
    let list = columns.join(", ");
    let (gone, conflict) = if cannot_update {
        // Such a column takes no other value; the row is made anew.
        ("true", String::new())
    } else if changed.is_empty() {
        ("s.tidemark_gone", format!("ON CONFLICT ({}) DO NOTHING", keys.join(", ")))
    } else {
        let set: Vec<String> = changed.iter().map(|it| format!("{it} = EXCLUDED.{it}")).collect();
        let update = format!("ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), set.join(", "));
        ("s.tidemark_gone", update)
    };
    let sql = format!(
        "{} DELETE FROM ONLY {at} t USING {beside} s WHERE {gone} AND {}; \
         INSERT INTO {at} ({list}) OVERRIDING SYSTEM VALUE \
         SELECT {list} FROM {beside} s WHERE NOT s.tidemark_gone {conflict}; \
         {} DROP TABLE {beside}",
        switch("DISABLE"),
        equal.join(" AND "),
        switch("ENABLE")
    );
    transaction.batch_execute(&sql).map_err(failed(what))
}

fn hidden_base(hidden: &HiddenRecord) -> u32 {
    match hidden.base {
        Base::Beside(oid) | Base::InPlace(oid) => oid,
        Base::Empty => hidden.oid,
    }
}

/// Drops a schema that holds nothing any more.
pub(super) fn drop_if_empty(transaction: &mut Transaction<'_>, schema: &str) -> Result<()> {
    let what = "drop the schema of hidden tables";
    let sql = "SELECT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = $1::text AND NOT EXISTS \
               (SELECT FROM pg_class c WHERE c.relnamespace = n.oid))";
    let is_empty = transaction.query_one(sql, &[&schema]).map_err(failed(what))?;
    if is_empty.get(0) {
        let sql = format!("DROP SCHEMA {}", quoted(schema));
        transaction.batch_execute(&sql).map_err(failed(what))?;
    }
    Ok(())
}
