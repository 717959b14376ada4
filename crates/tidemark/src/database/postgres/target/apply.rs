//! One chunk: rows first, the mark last, both or neither.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::Ordering;

use postgres::Transaction;

use crate::database::mark::RangeDigest;
use crate::database::postgres::Session;
use crate::database::postgres::error::{copying, failed};
use crate::database::postgres::quoted;
use crate::database::postgres::target::hidden::Hidden;
use crate::database::postgres::target::records::{self, Base, fenced, name_session};
use crate::database::postgres::target::structure::add_key;
use crate::database::postgres::types::read::Tuples;
use crate::database::postgres::types::write::Own;
use crate::database::postgres::types::{NativeColumn, RowReader, RowWriter};
use crate::database::{Fence, Mark, TargetShard};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::row::digest::RowHasher;
use crate::row::value::hex;
use crate::row::{ChangeOp, RowBatch, RowRef, Schema, payload};

/// See [`Target::apply`](crate::database::Target::apply).
pub(super) fn apply(
    session: &mut Session,
    hidden: &Hidden,
    fence: Fence,
    shard: &TargetShard,
    rows: &RowBatch,
    mark: &mut Mark,
) -> Result<()> {
    let plan = &hidden.record.plan;
    name_session(session, &hidden.key, fence.epoch)?;
    let stored = records::mark(session.client(), &hidden.key, shard)?;
    let refused = |stored: &records::MarkRecord| {
        let why = match stored.sealed {
            true => "its tables are sealed".to_owned(),
            false => {
                format!("shard {} of `{}` belongs to {}", shard.shard, shard.table, stored.epoch)
            }
        };
        Err(fenced(fence, &why))
    };
    if stored.sealed || stored.epoch != fence.epoch {
        return refused(&stored);
    }
    mark.check_follows(stored.mark.as_ref(), rows)?;
    let range = plan.shards.get(shard.shard.0 as usize).ok_or_else(|| {
        let message = format!("`{}` has no shard {}", shard.table, shard.shard);
        Error::new(Kind::NotFound, message)
    })?;
    rows.check_inside(range)?;

    mark.ranges = stored.mark.map(|mark| mark.ranges).unwrap_or_default();
    let appended_from = first_appended(rows, mark.ranges.last());
    if appended_from > 0 && !hidden.has_key.load(Ordering::Acquire) {
        ensure_key(session, hidden)?;
        hidden.has_key.store(true, Ordering::Release);
    }
    let what = "apply a chunk";
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    let mut new = RowBatch::new();
    let mut gone = Vec::new();
    let mut hasher = RowHasher::new(plan.digest_id);
    if appended_from > 0 {
        let old = take_old(&mut transaction, hidden, rows, appended_from)?;
        for row in (0..appended_from).map(|at| rows.row(at)) {
            let old = old.get(row.key);
            let old_digest = old.map(|payload| hasher.row(row.key, payload));
            let before = new.len();
            match row.op {
                ChangeOp::Upsert => new.push(row),
                ChangeOp::Update => overlay(row, old, &mut new)?,
                ChangeOp::Delete => gone.push(row.key),
            }
            let added = (new.len() > before).then(|| new.row(before));
            let new_digest = added.map(|added| hasher.row(added.key, added.payload));
            mark.account(row.key, old_digest, new_digest);
        }
    }
    for row in (appended_from..rows.len()).map(|at| rows.row(at)) {
        match row.op {
            ChangeOp::Upsert => {
                new.push(row);
                mark.account(row.key, None, Some(hasher.row(row.key, row.payload)));
            }
            ChangeOp::Update => overlay(row, None, &mut new)?,
            // Nothing stands there.
            ChangeOp::Delete => mark.account(row.key, None, None),
        }
    }
    copy_in(&mut transaction, hidden, &new, &gone)?;
    failpoint::hit("postgres.rows_written");
    let mut bytes = Vec::new();
    mark.encode(&mut bytes);
    let sql = "UPDATE tidemark.mark SET mark = $1 WHERE operation = $2 AND name = $3 \
               AND shard = $4 AND epoch = $5 AND NOT sealed AND mark IS NOT DISTINCT FROM $6";
    let (name, number) = (shard.table.to_string(), shard.shard.0 as i32);
    let epoch = fence.epoch.0 as i64;
    let moved = transaction
        .execute(sql, &[&bytes, &hidden.key, &name, &number, &epoch, &stored.bytes])
        .map_err(failed("move the mark"))?;
    if moved == 1 {
        failpoint::hit("postgres.mark_moved");
        return transaction.commit().map_err(failed("commit a chunk"));
    }
    drop(transaction);
    let stored = records::mark(session.client(), &hidden.key, shard)?;
    if stored.sealed || stored.epoch != fence.epoch {
        return refused(&stored);
    }
    let message = "somebody else moved the shard's mark; read it and carry on from there";
    Err(Error::new(Kind::Transient, message))
}

/// Position of the first row that lies beyond everything that the shard holds.
fn first_appended(rows: &RowBatch, last: Option<&RangeDigest>) -> usize {
    let Some(last) = last else { return 0 };
    (0..rows.len()).find(|at| *rows.row(*at).key > *last.last_key).unwrap_or(rows.len())
}

/// Makes the key of a table that was loaded without one, once.
fn ensure_key(session: &mut Session, hidden: &Hidden) -> Result<()> {
    let what = "make the key of a hidden table";
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    let name = hidden.record.plan.name.to_string();
    let sql = "SELECT has_key FROM tidemark.hidden WHERE operation = $1 AND name = $2 FOR UPDATE";
    let row = transaction.query_opt(sql, &[&hidden.key, &name]).map_err(failed(what))?;
    if row.is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    add_key(&mut transaction, &hidden.record.plan, &hidden.at)?;
    let sql = "UPDATE tidemark.hidden SET has_key = true WHERE operation = $1 AND name = $2";
    transaction.execute(sql, &[&hidden.key, &name]).map_err(failed(what))?;
    transaction.commit().map_err(failed(what))
}

/// The rows that stand under the first `count` keys, which are removed from the table.
fn take_old(
    transaction: &mut Transaction<'_>,
    hidden: &Hidden,
    rows: &RowBatch,
    count: usize,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    stage_keys(transaction, hidden, rows, count)?;
    let what = "read the rows that a chunk changes";
    let keys = staging(hidden);
    let copy = format!("COPY ({}) TO STDOUT (FORMAT binary)", hidden.standing_under(&keys));
    let reader = RowReader::new(&hidden.record.plan.schema, &hidden.natives);
    let mut old = BTreeMap::new();
    {
        let mut tuples = Tuples::new(transaction.copy_out(&copy).map_err(failed(what))?);
        while tuples.next()? {
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            reader.key(&tuples, &mut key)?;
            reader.payload(&tuples, &mut payload)?;
            old.insert(key, payload);
        }
    }
    let sql = format!(
        "DELETE FROM ONLY {} t USING {keys} k WHERE {}",
        hidden.at,
        hidden.keys_equal("k", "t")
    );
    transaction.batch_execute(&sql).map_err(failed("remove the rows that a chunk changes"))?;
    Ok(old)
}

/// The session's table of keys, emptied at the end of each transaction.
///
/// One for each hidden table and session: making one for every chunk would fill the catalogs.
fn staging(hidden: &Hidden) -> String {
    format!("pg_temp.tidemark_keys_{}", hidden.record.oid)
}

/// Fills the staging table with the first `count` keys.
fn stage_keys(
    transaction: &mut Transaction<'_>,
    hidden: &Hidden,
    rows: &RowBatch,
    count: usize,
) -> Result<()> {
    let what = "stage the keys of a chunk";
    let natives: Vec<NativeColumn> = hidden.key_natives().into_iter().cloned().collect();
    let column = |native: &NativeColumn| format!("{} {}", quoted(&native.name), native.native);
    let columns: Vec<String> = natives.iter().map(column).collect();
    let staging = staging(hidden);
    // With the plan pinned: from some hundred keys on the planner would rather read all rows.
    let sql = format!(
        "SET LOCAL client_min_messages = error; \
         CREATE TEMPORARY TABLE IF NOT EXISTS {staging} ({}) ON COMMIT DELETE ROWS; \
         SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off",
        columns.join(", ")
    );
    transaction.batch_execute(&sql).map_err(failed(what))?;
    let mut writer = RowWriter::new(&key_schema(&hidden.record.plan.schema), &natives);
    let names: Vec<String> = natives.iter().map(|native| quoted(&native.name)).collect();
    let copy = format!("COPY {staging} ({}) FROM STDIN {}", names.join(", "), writer.options());
    let mut bytes = Vec::new();
    writer.begin(&mut bytes);
    for row in (0..count).map(|at| rows.row(at)) {
        writer.row(&[], row.key, &[], &mut bytes)?;
    }
    writer.end(&mut bytes);
    let mut copying_in = transaction.copy_in(&copy).map_err(failed(what))?;
    copying_in.write_all(&bytes).map_err(copying(what))?;
    copying_in.finish().map_err(failed(what))?;
    Ok(())
}

/// The key columns alone.
fn key_schema(schema: &Schema) -> Schema {
    let columns = schema.key_columns().cloned().collect();
    Schema { columns, key: schema.key.clone(), next_column_id: schema.next_column_id }
}

/// Appends the whole row that a partial update makes of what stood there.
fn overlay(row: RowRef<'_>, old: Option<&Vec<u8>>, new: &mut RowBatch) -> Result<()> {
    let Some(old) = old else {
        let message = format!(
            "the chain updates the row at key 0x{}, which is not there; an earlier backup lacks it",
            hex(row.key)
        );
        return Err(Error::new(Kind::Broken, message));
    };
    let mut overlaid = Ok(());
    new.push_with(
        ChangeOp::Upsert,
        |out| out.extend_from_slice(row.key),
        |out| overlaid = payload::overlay(row.payload, old, out),
    );
    overlaid
}

/// Copies whole rows in; beside a published copy also the keys of those that are gone.
fn copy_in(
    transaction: &mut Transaction<'_>,
    hidden: &Hidden,
    new: &RowBatch,
    gone: &[&[u8]],
) -> Result<()> {
    let is_beside = matches!(hidden.record.base, Base::Beside(_));
    if new.is_empty() && (gone.is_empty() || !is_beside) {
        return Ok(());
    }
    let what = "copy rows in";
    let mut writer = RowWriter::new(&hidden.record.plan.schema, &hidden.natives);
    let before = if is_beside { "tidemark_gone, " } else { "" };
    let copy = format!(
        "COPY {} ({before}{}) FROM STDIN {}",
        hidden.at,
        hidden.column_list(),
        writer.options()
    );
    let mut bytes = Vec::with_capacity(new.byte_count() as usize * 5 / 4 + 64);
    writer.begin(&mut bytes);
    let (stays, goes): (&[Own], &[Own]) =
        if is_beside { (&[Own::Bool(false)], &[Own::Bool(true)]) } else { (&[], &[]) };
    for row in new.iter() {
        writer.row(stays, row.key, row.payload, &mut bytes)?;
    }
    if is_beside {
        for key in gone {
            writer.row(goes, key, &[], &mut bytes)?;
        }
    }
    writer.end(&mut bytes);
    let mut copying_in = transaction.copy_in(&copy).map_err(failed(what))?;
    copying_in.write_all(&bytes).map_err(copying(what))?;
    copying_in.finish().map_err(failed(what))?;
    Ok(())
}
