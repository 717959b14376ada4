//! Making hidden tables and claiming their shards.

use postgres::Transaction;

use crate::database::postgres::Session;
use crate::database::postgres::catalog::DatabaseFacts;
use crate::database::postgres::error::failed;
use crate::database::postgres::quoted;
use crate::database::postgres::target::copy::{self, CopyRecord, Standing};
use crate::database::postgres::target::layout::{columns, hidden_name, hidden_schema, sql_name};
use crate::database::postgres::target::records::{
    self, Base, HiddenRecord, State, claim, fenced, hidden_tables, lock_names, lock_operation,
    put_marks, put_operation, take_over,
};
use crate::database::postgres::target::structure::add_key;
use crate::database::{Disposition, Fence, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::TableName;

/// See [`Target::prepare`](crate::database::Target::prepare). All of it is one transaction.
pub(super) fn prepare(
    session: &mut Session,
    database: &DatabaseFacts,
    key: &str,
    fence: Fence,
    tables: &[TargetTable],
) -> Result<()> {
    let what = "prepare hidden tables";
    take_over(session, key, fence.epoch)?;
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    lock_names(&mut transaction)?;
    let known = lock_operation(&mut transaction, key, fence)?;
    match known {
        Some((_, State::Published)) => return Ok(()),
        Some((_, State::Discarded)) => return Err(fenced(fence, "it was discarded")),
        Some((_, State::Open | State::Sealed)) | None => {}
    }
    let prepared = hidden_tables(&mut transaction, key)?;
    let mut missing = Vec::new();
    for table in tables {
        match prepared.iter().find(|hidden| hidden.plan.name == table.name) {
            Some(hidden) if hidden.plan == *table => {}
            Some(_) => {
                let message = format!("`{}` was prepared differently before", table.name);
                return Err(Error::new(Kind::Usage, message));
            }
            None => missing.push(table),
        }
    }
    let stays_sealed = known == Some((fence.epoch, State::Sealed));
    if stays_sealed && !missing.is_empty() {
        let message = format!("operation {} takes no more tables", fence.operation);
        return Err(Error::new(Kind::Usage, message));
    }
    let state = if stays_sealed { State::Sealed } else { State::Open };
    put_operation(&mut transaction, key, fence.epoch, state)?;
    let is_taken_over = known.is_some_and(|(epoch, _)| epoch < fence.epoch);
    if is_taken_over {
        claim(&mut transaction, key, fence.epoch, false)?;
    }
    if !missing.is_empty() {
        let schema = quoted(&hidden_schema(key));
        let sql = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
        transaction.batch_execute(&sql).map_err(failed(
            "make a schema for hidden tables, which needs CREATE on the database",
        ))?;
    }
    for (table, position) in missing.iter().zip(prepared.len() as i32..) {
        let hidden = make(&mut transaction, database, key, table, position)?;
        hidden.record.put(&mut transaction, key, position)?;
        put_marks(&mut transaction, key, table, fence.epoch, &hidden.marks)?;
    }
    transaction.commit().map_err(failed(what))?;
    failpoint::hit("postgres.prepared");
    Ok(())
}

/// A hidden table that was made, and the marks that its shards begin with.
struct Made {
    record: HiddenRecord,
    marks: Vec<Option<Vec<u8>>>,
}

fn make(
    transaction: &mut Transaction<'_>,
    database: &DatabaseFacts,
    key: &str,
    table: &TargetTable,
    position: i32,
) -> Result<Made> {
    if let Some(other) = records::reserved_by(transaction, &table.name)? {
        let message = format!("`{}` is reserved by operation {other}", table.name);
        return Err(Error::new(Kind::InTheWay, message));
    }
    let standing = copy::standing(transaction, &table.name)?;
    let at = TableName::new(&hidden_schema(key), &hidden_name(position));
    let at = sql_name(&at.expect("neither is empty"));
    let empty = |transaction: &mut Transaction<'_>| -> Result<Made> {
        let oid = create(transaction, table, &at, "")?;
        let record = HiddenRecord { plan: table.clone(), base: Base::Empty, oid, has_key: false };
        Ok(Made { record, marks: vec![None; table.shards.len()] })
    };
    match table.disposition {
        Disposition::Fresh => match standing {
            None => empty(transaction),
            Some(standing) => Err(standing.in_the_way(&table.name)),
        },
        Disposition::Replace => empty(transaction),
        Disposition::ReplaceCopy { table: copy } => {
            check_replaced(transaction, database, &table.name, copy, standing)?;
            empty(transaction)
        }
        Disposition::RollForward => {
            let found = check_rolled(transaction, table, standing)?;
            let marks = found.marks.iter().cloned().map(Some).collect();
            let (base, oid, has_key) = if found.held {
                (Base::InPlace(found.oid), found.oid, true)
            } else {
                let gone = "tidemark_gone boolean NOT NULL, ";
                let oid = create(transaction, table, &at, gone)?;
                // Of a copy that lies beside another one nothing but the key is needed.
                let plain = TargetTable { structure: None, ..table.clone() };
                add_key(transaction, &plain, &at)?;
                (Base::Beside(found.oid), oid, true)
            };
            Ok(Made { record: HiddenRecord { plan: table.clone(), base, oid, has_key }, marks })
        }
    }
}

/// Refuses to replace anything but the untouched copy that was planned with.
pub(super) fn check_replaced(
    transaction: &mut Transaction<'_>,
    database: &DatabaseFacts,
    name: &TableName,
    copy: crate::ids::TableId,
    standing: Option<Standing>,
) -> Result<()> {
    let found = match standing {
        Some(Standing::Table(oid)) => CopyRecord::of_table(transaction, oid)?,
        Some(Standing::Held(found)) => Some(found),
        Some(Standing::Other(_)) | None => None,
    };
    let found = found.filter(|found| database.table_id(found.oid) == copy);
    let is_it = match found {
        Some(found) => !found.state(transaction)?.written_to,
        None => false,
    };
    if is_it {
        return Ok(());
    }
    let message =
        format!("the copy `{name}` was written to, dropped or replaced since it was restored");
    Err(Error::new(Kind::InTheWay, message))
}

/// The copy that is to be rolled forward, untouched.
pub(super) fn check_rolled(
    transaction: &mut Transaction<'_>,
    table: &TargetTable,
    standing: Option<Standing>,
) -> Result<CopyRecord> {
    let name = &table.name;
    let in_the_way = |what: &str| Err(Error::new(Kind::InTheWay, format!("`{name}` {what}")));
    let found = match standing {
        None => return in_the_way("does not exist, so there is nothing to roll forward"),
        Some(Standing::Other(kind)) => {
            return in_the_way(&format!("is a {kind}, no restored copy"));
        }
        Some(Standing::Held(found)) => Some(found),
        Some(Standing::Table(oid)) => CopyRecord::of_table(transaction, oid)?,
    };
    let Some(found) = found else { return in_the_way("is no restored copy") };
    if found.state(transaction)?.written_to {
        return in_the_way("was written to since it was restored");
    }
    if found.plan.digest_id != table.digest_id {
        return in_the_way("is a copy of another table");
    }
    if found.plan.shards != table.shards {
        let message = format!("`{name}` is cut into other shards than the plan says");
        return Err(Error::new(Kind::Usage, message));
    }
    let columns = |table: &TargetTable| -> Vec<String> {
        let said = |column: &crate::row::Column| format!("{column:?}");
        table.schema.columns.iter().map(said).collect()
    };
    if columns(&found.plan) != columns(table) || found.plan.schema.key != table.schema.key {
        let message = format!(
            "`{name}` has other columns than the backup, which a copy on a server cannot be moved \
             on to; restore it anew"
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(found)
}

fn create(
    transaction: &mut Transaction<'_>,
    table: &TargetTable,
    at: &str,
    before: &str,
) -> Result<u32> {
    // Beside a copy, rows that are gone have their key alone.
    let made = match before {
        "" => columns(transaction, table)?,
        _ => loose_columns(transaction, table)?,
    };
    let sql = format!("CREATE TABLE {at} ({before}{})", made.join(", "));
    let what = format!("make the hidden table of `{}`", table.name);
    transaction.batch_execute(&sql).map_err(failed(&what))?;
    let sql = "SELECT $1::text::regclass::oid";
    let row = transaction.query_one(sql, &[&at]).map_err(failed(&what))?;
    Ok(row.get(0))
}

/// The columns without what rows must obey; the key is added as such.
fn loose_columns(transaction: &mut Transaction<'_>, table: &TargetTable) -> Result<Vec<String>> {
    let plain = TargetTable { structure: None, ..table.clone() };
    let mut made = Vec::new();
    for (column, text) in table.schema.columns.iter().zip(columns(transaction, &plain)?) {
        let is_key = table.schema.key.contains(&column.id);
        made.push(match text.strip_suffix(" NOT NULL") {
            Some(loose) if !is_key => loose.to_owned(),
            _ => text,
        });
    }
    Ok(made)
}
