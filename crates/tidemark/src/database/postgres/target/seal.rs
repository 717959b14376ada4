//! Shutting all writers out, and building what waits for all rows.

use std::collections::BTreeMap;

use crate::database::Fence;
use crate::database::postgres::Session;
use crate::database::postgres::catalog::TableStructure;
use crate::database::postgres::error::failed;
use crate::database::postgres::target::layout::{name_of, sql_name};
use crate::database::postgres::target::records::{
    Base, HiddenRecord, State, claim, fenced, hidden_tables, lock_operation, put_notices,
    put_operation, take_over,
};
use crate::database::postgres::target::structure::{
    Building, add_key, drop_interim_key, has_primary_key,
};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::TableName;

/// See [`Target::seal`](crate::database::Target::seal).
///
/// Sealing is durable before anything is built, so what is built is of all rows; what was
/// built before a crash is found again.
pub(super) fn seal(session: &mut Session, key: &str, fence: Fence) -> Result<()> {
    let what = "seal hidden tables";
    take_over(session, key, fence.epoch)?;
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    match lock_operation(&mut transaction, key, fence)? {
        None => {
            let message = format!("operation {} prepared nothing here", fence.operation);
            return Err(Error::new(Kind::NotFound, message));
        }
        Some((_, State::Published)) => {
            // Who comes later knows of the end.
            put_operation(&mut transaction, key, fence.epoch, State::Published)?;
            return transaction.commit().map_err(failed(what));
        }
        Some((_, State::Discarded)) => return Err(fenced(fence, "it was discarded")),
        Some((_, State::Open | State::Sealed)) => {}
    }
    put_operation(&mut transaction, key, fence.epoch, State::Sealed)?;
    claim(&mut transaction, key, fence.epoch, true)?;
    let hidden = hidden_tables(&mut transaction, key)?;
    transaction.commit().map_err(failed(what))?;
    failpoint::hit("postgres.sealed");
    hidden.iter().try_for_each(|hidden| build(session, key, hidden))?;
    relate(session, key, &hidden)?;
    hidden.iter().try_for_each(|hidden| analyze(session, hidden))
}

/// Where a hidden table is.
fn place(session: &mut Session, hidden: &HiddenRecord) -> Result<TableName> {
    name_of(session.client(), hidden.oid)?.ok_or_else(|| {
        let name = &hidden.plan.name;
        Error::new(Kind::NotFound, format!("the hidden table of `{name}` is no longer there"))
    })
}

/// Builds what a table lacks until it can be shown: all of it, or nothing.
fn build(session: &mut Session, key: &str, hidden: &HiddenRecord) -> Result<()> {
    if hidden.base != Base::Empty {
        return Ok(());
    }
    let name = &hidden.plan.name;
    let at = place(session, hidden)?;
    let sql_at = sql_name(&at);
    let what = format!("build `{name}`");
    let mut transaction = session.client().transaction().map_err(failed(&what))?;
    let sql = "SELECT has_key, built FROM tidemark.hidden WHERE operation = $1 AND name = $2 \
               FOR UPDATE";
    let row = transaction.query_one(sql, &[&key, &name.to_string()]).map_err(failed(&what))?;
    let (has_key, built): (bool, bool) = (row.get(0), row.get(1));
    if built {
        return Ok(());
    }
    let structure = TableStructure::of(hidden.plan.structure.as_ref())?;
    if !has_key && has_primary_key(structure.as_ref()) {
        add_key(&mut transaction, &hidden.plan, &sql_at)?;
    }
    if let Some(structure) = &structure {
        let building = Building { plan: &hidden.plan, structure, at: &sql_at, schema: at.schema() };
        building.build(&mut transaction)?;
        drop_interim_key(&mut transaction, hidden.oid)?;
        put_notices(&mut transaction, key, &building.told())?;
    }
    let sql = "UPDATE tidemark.hidden SET has_key = true, built = true \
               WHERE operation = $1 AND name = $2";
    transaction.execute(sql, &[&key, &name.to_string()]).map_err(failed(&what))?;
    transaction.commit().map_err(failed(&what))
}

/// Adds the foreign keys between the tables, once each of them has its keys.
fn relate(session: &mut Session, key: &str, hidden: &[HiddenRecord]) -> Result<()> {
    let mut places = BTreeMap::new();
    let mut built = Vec::new();
    for hidden in hidden.iter().filter(|hidden| hidden.base == Base::Empty) {
        let at = place(session, hidden)?;
        if let Some(structure) = TableStructure::of(hidden.plan.structure.as_ref())? {
            places.insert(structure.name.clone(), sql_name(&at));
            built.push((&hidden.plan, structure, at));
        }
    }
    for (plan, structure, at) in &built {
        let what = format!("relate `{}`", plan.name);
        let sql_at = sql_name(at);
        let building = Building { plan, structure, at: &sql_at, schema: at.schema() };
        let mut transaction = session.client().transaction().map_err(failed(&what))?;
        let mut notices = Vec::new();
        building.add_foreign_keys(&mut transaction, &places, &mut notices)?;
        put_notices(&mut transaction, key, &notices)?;
        transaction.commit().map_err(failed(&what))?;
    }
    Ok(())
}

fn analyze(session: &mut Session, hidden: &HiddenRecord) -> Result<()> {
    if matches!(hidden.base, Base::Beside(_)) {
        return Ok(());
    }
    let at = sql_name(&place(session, hidden)?);
    let what = format!("gather statistics of `{}`", hidden.plan.name);
    session.client().batch_execute(&format!("ANALYZE {at}")).map_err(failed(&what))
}
