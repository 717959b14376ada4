//! Shutting all writers out, and building what waits for all rows.

use crate::database::Fence;
use crate::database::postgres::Session;
use crate::database::postgres::error::failed;
use crate::database::postgres::target::layout::{name_of, sql_name};
use crate::database::postgres::target::prepare::add_key;
use crate::database::postgres::target::records::{
    Base, HiddenRecord, State, claim, fenced, hidden_tables, lock_operation, put_operation,
};
use crate::error::{Error, Kind, Result};
use crate::failpoint;

/// See [`Target::seal`](crate::database::Target::seal).
///
/// Sealing is durable before anything is built, so what is built is of all rows; what was
/// built before a crash is found again.
pub(super) fn seal(session: &mut Session, key: &str, fence: Fence) -> Result<()> {
    let what = "seal hidden tables";
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
    hidden.iter().try_for_each(|hidden| build(session, key, hidden))
}

/// Builds what a table lacks until it can be shown.
fn build(session: &mut Session, key: &str, hidden: &HiddenRecord) -> Result<()> {
    if hidden.base != Base::Empty {
        return Ok(());
    }
    let name = &hidden.plan.name;
    let Some(at) = name_of(session.client(), hidden.oid)? else {
        let message = format!("the hidden table of `{name}` is no longer there");
        return Err(Error::new(Kind::NotFound, message));
    };
    let at = sql_name(&at);
    if !hidden.has_key {
        let what = format!("make the key of `{name}`");
        let mut transaction = session.client().transaction().map_err(failed(&what))?;
        let sql = "SELECT has_key FROM tidemark.hidden WHERE operation = $1 AND name = $2 \
                   FOR UPDATE";
        let row = transaction.query_one(sql, &[&key, &name.to_string()]).map_err(failed(&what))?;
        if !row.get::<_, bool>(0) {
            add_key(&mut transaction, &hidden.plan, &at)?;
            let sql = "UPDATE tidemark.hidden SET has_key = true \
                       WHERE operation = $1 AND name = $2";
            transaction.execute(sql, &[&key, &name.to_string()]).map_err(failed(&what))?;
        }
        transaction.commit().map_err(failed(&what))?;
    }
    let what = format!("gather statistics of `{name}`");
    session.client().batch_execute(&format!("ANALYZE {at}")).map_err(failed(&what))
}
