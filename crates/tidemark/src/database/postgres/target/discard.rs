//! Removing the hidden tables of an operation that was given up.

use crate::database::Fence;
use crate::database::postgres::Session;
use crate::database::postgres::error::failed;
use crate::database::postgres::target::copy::CopyRecord;
use crate::database::postgres::target::layout::{hidden_schema, name_of, sql_name};
use crate::database::postgres::target::publish::drop_if_empty;
use crate::database::postgres::target::records::{
    Base, State, claim, forget_hidden, hidden_tables, lock_names, lock_operation, marks_of,
    put_operation, take_over,
};
use crate::error::{Error, Kind, Result};

/// See [`Target::discard`](crate::database::Target::discard). All of it is one transaction.
pub(super) fn discard(session: &mut Session, key: &str, fence: Fence) -> Result<()> {
    let what = "discard hidden tables";
    take_over(session, key, fence.epoch)?;
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    lock_names(&mut transaction)?;
    match lock_operation(&mut transaction, key, fence)? {
        Some((_, State::Published)) => {
            let message = format!("operation {} was published already", fence.operation);
            return Err(Error::new(Kind::Usage, message));
        }
        Some(_) => claim(&mut transaction, key, fence.epoch, true)?,
        None => {}
    }
    for hidden in hidden_tables(&mut transaction, key)? {
        if let Base::InPlace(oid) = hidden.base {
            let marks = marks_of(&mut transaction, key, &hidden.plan.name)?;
            let took_rows = |mark: &crate::database::Mark| mark.last_key.is_some() || mark.rows > 0;
            if marks.iter().flatten().any(took_rows) {
                CopyRecord::note_written(&mut transaction, oid)?;
            }
            continue;
        }
        if let Some(at) = name_of(&mut transaction, hidden.oid)? {
            let sql = format!("DROP TABLE {}", sql_name(&at));
            transaction.batch_execute(&sql).map_err(failed("drop a hidden table"))?;
        }
    }
    forget_hidden(&mut transaction, key)?;
    put_operation(&mut transaction, key, fence.epoch, State::Discarded)?;
    drop_if_empty(&mut transaction, &hidden_schema(key))?;
    transaction.commit().map_err(failed(what))
}
