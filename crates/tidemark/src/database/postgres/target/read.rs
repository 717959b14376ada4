//! Reading hidden tables back.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::database::TargetShard;
use crate::database::postgres::Session;
use crate::database::postgres::error::failed;
use crate::database::postgres::target::hidden::Hidden;
use crate::database::postgres::types::RowReader;
use crate::database::postgres::types::read::Tuples;
use crate::error::{Error, Kind, Result};
use crate::row::key::decode_key_value;
use crate::row::{KeyRange, RowBatch, RowStream, Value};

/// Rows and bytes of a batch at most.
const BATCH_ROWS_MAX: usize = 4096;
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Batches that may wait to be taken.
const BATCHES_WAITING_MAX: usize = 2;

/// The rows of one shard, ascending by key.
pub(super) fn rows(
    session: Session,
    hidden: &Hidden,
    shard: &TargetShard,
) -> Result<Box<dyn RowStream>> {
    let range = hidden.record.plan.shards[shard.shard.0 as usize].clone();
    let keys = hidden.key_natives();
    let ordered: Vec<String> = keys.iter().map(|native| native.ordered()).collect();
    let order = match ordered.is_empty() {
        true => String::new(),
        false => format!(" ORDER BY {}", ordered.join(", ")),
    };
    let copy = format!(
        "COPY (SELECT {} FROM {} t{}{order}) TO STDOUT (FORMAT binary)",
        hidden.selected(),
        hidden.shown(),
        condition(hidden, &range)
    );
    let reader = RowReader::new(&hidden.record.plan.schema, &hidden.natives);
    Ok(Box::new(Reading::begin(session, copy, reader, range)))
}

/// Pages of a part at least: a session for less costs more than it saves.
const PART_PAGES_MIN: i64 = 1024;

/// The queries that together read a table once, each a stretch of its pages.
pub(super) fn parts(
    session: &mut Session,
    hidden: &Hidden,
    parts_max: usize,
) -> Result<Vec<String>> {
    let selected = hidden.selected();
    let read = hidden.below.as_ref().unwrap_or(&hidden.at);
    let sql = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint";
    let row = session.client().query_one(sql, &[read]);
    let pages: i64 = row.map_err(failed("ask for the size of a table"))?.get(0);
    // Older servers read the whole table for each stretch.
    let count = if session.version() < 140_000 { 1 } else { pages / PART_PAGES_MIN };
    let count = count.clamp(1, parts_max.max(1) as i64);
    let staged = match &hidden.below {
        None => String::new(),
        Some(_) => format!(
            " AND NOT EXISTS (SELECT FROM ONLY {} a WHERE {})",
            hidden.at,
            hidden.keys_equal("a", "t")
        ),
    };
    let part = |number: i64| {
        let from = pages * number / count;
        let mut condition = format!("t.ctid >= '({from},0)'");
        // The last one has no end: the table may have grown since it was asked.
        if number + 1 < count {
            condition.push_str(&format!(" AND t.ctid < '({},0)'", pages * (number + 1) / count));
        }
        format!("SELECT {selected} FROM ONLY {read} t WHERE {condition}{staged}")
    };
    let mut parts: Vec<String> = (0..count).map(part).collect();
    if hidden.below.is_some() {
        parts.push(format!("SELECT {selected} FROM ONLY {} WHERE NOT tidemark_gone", hidden.at));
    }
    Ok(parts)
}

/// The rows that one of these queries gives.
pub(super) fn part(session: Session, hidden: &Hidden, query: String) -> Box<dyn RowStream> {
    let copy = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
    let reader = RowReader::new(&hidden.record.plan.schema, &hidden.natives);
    Box::new(Reading::begin(session, copy, reader, KeyRange::ALL))
}

/// What the server can tell of a range of keys; the rest is told by the reader.
///
/// The ends are keys of rows, as a rule; of other bytes the server is not asked.
fn condition(hidden: &Hidden, range: &KeyRange) -> String {
    let keys = hidden.key_natives();
    let schema = &hidden.record.plan.schema;
    let constants = |end: &[u8]| -> Option<String> {
        let mut rest = end;
        let mut values = Vec::new();
        for (column, native) in schema.key_columns().zip(&keys) {
            let value = decode_key_value(column.logical, &mut rest)?;
            // Dates before year 1 and the like print differently there.
            let is_plain = matches!(value, Value::Int64(_) | Value::Text(_) | Value::Uuid(_));
            values.push(is_plain.then(|| native.key_constant(&value.to_text()))?);
        }
        rest.is_empty().then(|| values.join(", "))
    };
    let ordered: Vec<String> = keys.iter().map(|native| native.ordered()).collect();
    let ordered = ordered.join(", ");
    let mut conditions = Vec::new();
    if let Some(start) = constants(&range.start).filter(|start| !start.is_empty()) {
        conditions.push(format!("({ordered}) >= ({start})"));
    }
    if let Some(end) = range.end.as_deref().and_then(constants).filter(|end| !end.is_empty()) {
        conditions.push(format!("({ordered}) < ({end})"));
    }
    match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", conditions.join(" AND ")),
    }
}

/// Rows that a thread of their own reads and translates.
#[derive(Debug)]
pub(super) struct Reading {
    batches: Option<Receiver<Result<RowBatch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reading {
    pub(super) fn begin(
        session: Session,
        copy: String,
        reader: RowReader,
        range: KeyRange,
    ) -> Reading {
        let (sender, batches) = sync_channel(BATCHES_WAITING_MAX);
        let thread = std::thread::spawn(move || {
            if let Err(error) = read_all(session, &copy, &reader, &range, &sender) {
                // Nobody waits for an error any more who took no more rows.
                let _ = sender.send(Err(error));
            }
        });
        Reading { batches: Some(batches), thread: Some(thread) }
    }
}

fn read_all(
    mut session: Session,
    copy: &str,
    reader: &RowReader,
    range: &KeyRange,
    sender: &SyncSender<Result<RowBatch>>,
) -> Result<()> {
    let what = "read rows back";
    let rows = session.client().copy_out(copy).map_err(failed(what))?;
    let mut tuples = Tuples::new(rows);
    let mut batch = RowBatch::new();
    while tuples.next()? {
        reader.push(&tuples, &mut batch)?;
        let key = batch.last().map(|row| row.key);
        if !key.is_some_and(|key| range.contains(key)) {
            batch.pop();
        }
        let is_full = batch.len() >= BATCH_ROWS_MAX || batch.byte_count() >= BATCH_BYTES_MAX;
        if is_full && sender.send(Ok(std::mem::take(&mut batch))).is_err() {
            return Ok(());
        }
    }
    if !batch.is_empty() {
        let _ = sender.send(Ok(batch));
    }
    Ok(())
}

impl RowStream for Reading {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        let next = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        match next {
            Some(Ok(read)) => {
                *batch = read;
                Ok(true)
            }
            Some(Err(error)) => Err(error),
            None => match self.thread.take().map(JoinHandle::join) {
                Some(Err(_)) => Err(Error::new(Kind::Fatal, "a thread that reads rows panicked")),
                _ => Ok(false),
            },
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // The thread notices at its next batch; its session ends with it.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
