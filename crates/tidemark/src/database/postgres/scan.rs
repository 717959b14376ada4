//! Rows of a table of a cut, in the order of their canonical keys.
//!
//! Where the server's own order of the key is the canonical one, it reads along the key;
//! otherwise rows come in any order and are sorted here, in bounded memory. Each scan has a
//! thread of its own that reads from the server while its caller writes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::database::postgres::collapse::{Collapsed, CollapsedRows, Collapser, RowState};
use crate::database::postgres::cut::CutSessions;
use crate::database::postgres::error::failed;
use crate::database::postgres::types::read::Tuples;
use crate::database::postgres::types::{NativeColumn, RowReader, Wire};
use crate::database::postgres::{Session, literal};
use crate::database::scratch::Scratch;
use crate::error::{Error, Kind, Result};
use crate::row::key::decode_key_value;
use crate::row::{ChangeOp, KeyRange, LogicalType, RowBatch, RowRef, RowStream, Schema, Value};

/// Bytes and rows of a batch that is handed over.
const BATCH_BYTES: u64 = 512 << 10;
const BATCH_ROWS: usize = 4096;

/// Batches that wait for their reader.
const BATCHES_WAITING: usize = 2;

/// Memory of one scan for rows that wait to be sorted: several scans run at once.
const SORT_BYTES_MAX: u64 = 24 << 20;

/// What a scan reads.
#[derive(Clone, Debug)]
pub(super) struct ScannedTable {
    /// Its name as SQL.
    pub(super) name: String,
    pub(super) schema: Schema,
    /// Columns in the order of the schema.
    pub(super) natives: Vec<NativeColumn>,
}

impl ScannedTable {
    /// Key columns in key order.
    pub(super) fn key(&self) -> impl Iterator<Item = &NativeColumn> {
        self.schema.key.iter().map(|id| {
            let at = self.schema.columns.iter().position(|column| column.id == *id);
            &self.natives[at.expect("key columns exist: checked")]
        })
    }

    /// Whether the server can read along the key without sorting all of it.
    pub(super) fn is_ordered_by_server(&self) -> bool {
        // Behind the first column, few rows are sorted at a time.
        self.key().next().is_some_and(|first| has_canonical_order(first.wire))
    }

    /// What is selected, in the order of the schema.
    fn selected(&self) -> String {
        let columns: Vec<String> = self.natives.iter().map(NativeColumn::selected).collect();
        columns.join(", ")
    }

    /// The query of the rows in `range` and maybe some more.
    fn query(&self, range: &KeyRange) -> String {
        let mut sql = format!("SELECT {} FROM ONLY {}", self.selected(), self.name);
        if !self.is_ordered_by_server() {
            return sql;
        }
        let bounds = [
            (!range.start.is_empty()).then(|| self.bound(&range.start, [">=", ">="])).flatten(),
            // Keys that begin with what is left of the end are before it or not.
            range.end.as_ref().and_then(|end| self.bound(end, ["<", "<="])),
        ];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        if !bounds.is_empty() {
            sql.push_str(&format!(" WHERE {}", bounds.join(" AND ")));
        }
        let order: Vec<String> = self.key().map(NativeColumn::ordered).collect();
        sql.push_str(&format!(" ORDER BY {}", order.join(", ")));
        sql
    }

    /// A condition that every key on one side of `key` meets; `None` if it tells no value.
    ///
    /// `compared` is how, if `key` is exactly the values that it begins with, and if not.
    fn bound(&self, key: &[u8], compared: [&str; 2]) -> Option<String> {
        let (mut columns, mut values) = (Vec::new(), Vec::new());
        let mut rest = key;
        for native in self.key() {
            let before = rest;
            let Some(value) = decode_key_value(native.wire.logical(), &mut rest) else {
                rest = before;
                break;
            };
            columns.push(native.ordered());
            values.push(native.key_constant(&printed(&value)));
        }
        if columns.is_empty() {
            return None;
        }
        let [exact, inexact] = compared;
        let compared = if rest.is_empty() { exact } else { inexact };
        Some(format!("({}) {compared} ({})", columns.join(", "), values.join(", ")))
    }

    /// The query of the rows with these canonical keys, and maybe some more.
    ///
    /// # Errors
    /// [`Kind::Fatal`] for bytes that are no key.
    pub(super) fn query_of(&self, keys: &[&[u8]]) -> Result<String> {
        let columns: Vec<String> =
            self.key().map(|native| crate::database::postgres::quoted(&native.name)).collect();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let mut rest = *key;
            let values = self.key().map(|native| {
                let value = decode_key_value(native.wire.logical(), &mut rest);
                value.map(|value| literal(&printed(&value)))
            });
            let values: Option<Vec<String>> = values.collect();
            let values = values.ok_or_else(|| {
                Error::new(Kind::Fatal, "a changed row has a key that is none of its table")
            })?;
            rows.push(format!("({})", values.join(", ")));
        }
        Ok(format!(
            "SELECT {} FROM ONLY {} WHERE ({}) IN ({})",
            self.selected(),
            self.name,
            columns.join(", "),
            rows.join(", ")
        ))
    }
}

/// Whether the server compares values as their canonical keys compare.
fn has_canonical_order(wire: Wire) -> bool {
    match wire {
        Wire::Bool
        | Wire::Int2
        | Wire::Int4
        | Wire::Int8
        | Wire::Float4
        | Wire::Float8
        | Wire::Numeric
        | Wire::Bytea
        | Wire::Date
        | Wire::Timestamp
        | Wire::TimestampTz
        | Wire::Uuid => true,
        // Collations, orders of enumerations, and types of which we know the text only.
        Wire::Text | Wire::Jsonb | Wire::Printed => false,
    }
}

/// A value as the server reads it: like ours, but for years before the common era.
pub(super) fn printed(value: &Value) -> String {
    let text = value.to_text();
    let is_time = matches!(
        value.logical(),
        Some(LogicalType::Date | LogicalType::Timestamp | LogicalType::TimestampTz)
    );
    let Some((year, rest)) = is_time.then(|| split_year(&text)).flatten() else { return text };
    match year {
        1.. => text,
        _ => format!("{:04}-{rest} BC", 1 - year),
    }
}

/// The year of a date and what follows; `None` for the infinities.
fn split_year(text: &str) -> Option<(i64, &str)> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (-1, unsigned),
        None => (1, text),
    };
    let (year, rest) = unsigned.split_once('-')?;
    Some((sign * year.parse::<i64>().ok()?, rest))
}

/// Rows of a range of a table, as upserts in ascending key order.
pub(super) fn scan(
    sessions: &Arc<CutSessions>,
    table: &Arc<ScannedTable>,
    range: &KeyRange,
) -> Box<dyn RowStream> {
    let rows = ScannedRows::begin(sessions, Arc::clone(table), range.clone());
    match table.is_ordered_by_server() {
        true => Box::new(rows),
        false => Box::new(SortedScan::Reading { rows, sessions: Arc::clone(sessions) }),
    }
}

/// Rows as the server sends them; `None` behind the last ones.
///
/// A thread that ends without a word has not read everything.
type Batches = Result<Option<RowBatch>>;

/// Rows of one scan, from its thread.
pub(super) struct ScannedRows {
    batches: Receiver<Batches>,
    is_ended: bool,
}

impl ScannedRows {
    fn begin(
        sessions: &Arc<CutSessions>,
        table: Arc<ScannedTable>,
        range: KeyRange,
    ) -> ScannedRows {
        let (sender, batches) = sync_channel(BATCHES_WAITING);
        let sessions = Arc::clone(sessions);
        std::thread::spawn(move || {
            if let Err(error) = read_rows(&sessions, &table, &range, &sender) {
                // Whoever has gone need not hear of it.
                let _ = sender.send(Err(error));
            }
        });
        ScannedRows { batches, is_ended: false }
    }
}

impl RowStream for ScannedRows {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        if self.is_ended {
            return Ok(false);
        }
        let lost = |_| Error::new(Kind::Fatal, "the thread that reads rows ended before they did");
        match self.batches.recv().map_err(lost)?? {
            Some(rows) => *batch = rows,
            None => self.is_ended = true,
        }
        Ok(!self.is_ended)
    }
}

/// Reads and sends; ends early when nobody takes the rows any more.
fn read_rows(
    sessions: &Arc<CutSessions>,
    table: &ScannedTable,
    range: &KeyRange,
    to: &SyncSender<Batches>,
) -> Result<()> {
    let mut session = sessions.take()?;
    let cancel = session.client().cancel_token();
    let sent = send_rows(&mut session, table, range, to);
    if matches!(sent, Ok(true)) {
        sessions.give_back(session);
    } else {
        // Otherwise closing the session would wait for all the rows that are left.
        sessions.cancel(&cancel);
    }
    sent.map(drop)
}

/// Sends all rows; whether they were taken.
fn send_rows(
    session: &mut Session,
    table: &ScannedTable,
    range: &KeyRange,
    to: &SyncSender<Batches>,
) -> Result<bool> {
    let reader = RowReader::new(&table.schema, &table.natives);
    let sql = format!("COPY ({}) TO STDOUT (FORMAT binary)", table.query(range));
    let what = format!("read the rows of {}", table.name);
    let output = session.client().copy_out(&sql).map_err(failed(&what))?;
    let mut tuples = Tuples::new(output);
    let mut batch = RowBatch::new();
    while tuples.next()? {
        reader.push(&tuples, &mut batch)?;
        if !range.contains(batch.last().expect("a row was pushed").key) {
            batch.pop();
            continue;
        }
        if batch.byte_count() >= BATCH_BYTES || batch.len() >= BATCH_ROWS {
            let full = std::mem::take(&mut batch);
            if to.send(Ok(Some(full))).is_err() {
                return Ok(false);
            }
        }
    }
    let is_taken = batch.is_empty() || to.send(Ok(Some(batch))).is_ok();
    Ok(is_taken && to.send(Ok(None)).is_ok())
}

/// Rows that come in another order, sorted.
enum SortedScan {
    /// Nothing was read yet.
    Reading { rows: ScannedRows, sessions: Arc<CutSessions> },
    /// All were.
    Sorted { rows: CollapsedRows, _file: Box<(Collapsed, Scratch)> },
    /// An error ended it.
    Spent,
}

impl RowStream for SortedScan {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        loop {
            match std::mem::replace(self, SortedScan::Spent) {
                SortedScan::Reading { rows, sessions } => *self = sort(rows, &sessions)?,
                SortedScan::Sorted { mut rows, _file } => {
                    batch.clear();
                    while batch.byte_count() < BATCH_BYTES && batch.len() < BATCH_ROWS {
                        let is_more = rows.next(|_, key, payload| {
                            batch.push(RowRef { key, op: ChangeOp::Upsert, payload });
                        })?;
                        if !is_more {
                            break;
                        }
                    }
                    *self = SortedScan::Sorted { rows, _file };
                    return Ok(!batch.is_empty());
                }
                SortedScan::Spent => {
                    return Err(Error::new(Kind::Fatal, "a scan that failed is read on"));
                }
            }
        }
    }
}

fn sort(mut rows: ScannedRows, sessions: &CutSessions) -> Result<SortedScan> {
    let scratch = sessions.scratch()?;
    let mut sorter = Collapser::new(scratch.dir(), 1, SORT_BYTES_MAX);
    let mut batch = RowBatch::new();
    while rows.next_batch(&mut batch)? {
        for row in batch.iter() {
            let put = |bytes: &[u8], out: &mut Vec<u8>| {
                out.extend_from_slice(bytes);
                Ok(())
            };
            let payload = |out: &mut Vec<u8>| put(row.payload, out);
            sorter.push(0, RowState::Upsert, |out| put(row.key, out), payload)?;
        }
    }
    let row_count = sorter.change_count();
    let sorted = sorter.finish()?;
    let distinct = sorted.table(0).rows;
    if distinct != row_count {
        let message = format!(
            "{} of {row_count} rows have a key that another row has, in its canonical form",
            row_count - distinct
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    let rows = sorted.read(0, &KeyRange::ALL)?;
    Ok(SortedScan::Sorted { rows, _file: Box::new((sorted, scratch)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{RowCodec, Schema};

    #[test]
    fn a_thread_that_ends_without_a_word_is_no_end_of_rows() {
        let rows = |said: Vec<Batches>| {
            let (sender, batches) = sync_channel(said.len());
            said.into_iter().for_each(|batch| sender.send(batch).unwrap());
            ScannedRows { batches, is_ended: false }
        };
        let mut batch = RowBatch::new();
        let mut whole = rows(vec![Ok(Some(RowBatch::new())), Ok(None)]);
        assert!(whole.next_batch(&mut batch).unwrap());
        assert!(!whole.next_batch(&mut batch).unwrap());
        assert!(!whole.next_batch(&mut batch).unwrap());
        let mut torn = rows(vec![Ok(Some(RowBatch::new()))]);
        assert!(torn.next_batch(&mut batch).unwrap());
        assert_eq!(torn.next_batch(&mut batch).unwrap_err().kind(), Kind::Fatal);
    }

    fn table(key: &[(&str, LogicalType, Wire, &str)]) -> ScannedTable {
        let columns: Vec<(&str, LogicalType)> =
            key.iter().map(|(name, logical, ..)| (*name, *logical)).collect();
        let names: Vec<&str> = key.iter().map(|(name, ..)| *name).collect();
        let natives = (1..).zip(key).map(|(number, (name, _, wire, native))| NativeColumn {
            name: (*name).to_owned(),
            number,
            native: (*native).to_owned(),
            wire: *wire,
            output: "pg_catalog.out".to_owned(),
        });
        ScannedTable {
            name: "\"public\".\"t\"".to_owned(),
            schema: Schema::new(&columns, &names).unwrap(),
            natives: natives.collect(),
        }
    }

    fn int_and_text() -> ScannedTable {
        table(&[
            ("a", LogicalType::Int64, Wire::Int8, "bigint"),
            ("b", LogicalType::Text, Wire::Text, "text"),
        ])
    }

    fn key(table: &ScannedTable, values: &[Value]) -> Vec<u8> {
        let mut key = Vec::new();
        RowCodec::new(&table.schema).encode_key_values(values, &mut key).unwrap();
        key
    }

    #[test]
    fn a_range_is_asked_for_by_the_values_that_its_ends_begin_with() {
        let table = int_and_text();
        let (seven, nine) = (Value::Int64(7), Value::Int64(9));
        let text = |text: &str| Value::Text(text.to_owned());
        let start = key(&table, &[seven.clone(), text("x")]);
        // As a shard is read on behind its last row.
        let behind = [&start[..], &[0]].concat();
        let end = key(&table, &[nine]);
        let sql = table.query(&KeyRange { start: behind, end: Some(end.clone()) });
        let order = "textin(pg_catalog.out(\"b\")) COLLATE \"C\"";
        assert_eq!(
            sql,
            format!(
                "SELECT \"a\", \"b\" FROM ONLY \"public\".\"t\" \
                 WHERE (\"a\", {order}) >= ('7'::int8, 'x') AND (\"a\") < ('9'::int8) \
                 ORDER BY \"a\", {order}"
            )
        );
        // What is left of the end belongs to keys on both of its sides.
        let inside = [&end[..], b"y"].concat();
        let sql = table.query(&KeyRange { start: vec![0], end: Some(inside) });
        assert!(sql.contains("WHERE (\"a\") <= ('9'::int8) ORDER BY"), "{sql}");
        assert!(!table.query(&KeyRange::ALL).contains("WHERE"));
    }

    #[test]
    fn keys_whose_order_is_another_are_read_as_they_lie() {
        let table = table(&[("b", LogicalType::Text, Wire::Text, "text")]);
        let sql = table.query(&KeyRange { start: vec![7], end: None });
        assert_eq!(sql, "SELECT \"b\" FROM ONLY \"public\".\"t\"");
    }

    #[test]
    fn rows_are_asked_for_by_their_keys() {
        let table = int_and_text();
        let keys = [1, 2].map(|at| key(&table, &[Value::Int64(at), Value::Text("it's".into())]));
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let sql = table.query_of(&keys).unwrap();
        let rows = "(('1', 'it''s'), ('2', 'it''s'))";
        assert!(sql.ends_with(&format!("WHERE (\"a\", \"b\") IN {rows}")), "{sql}");
        assert_eq!(table.query_of(&[b"x"]).unwrap_err().kind(), Kind::Fatal);
    }

    #[test]
    fn years_before_the_common_era_are_written_as_the_server_reads_them() {
        let date = |text| printed(&Value::parse(LogicalType::Date, text).unwrap());
        assert_eq!(date("2024-02-29"), "2024-02-29");
        assert_eq!(date("0000-01-01"), "0001-01-01 BC");
        assert_eq!(date("-0043-03-15"), "0044-03-15 BC");
        assert_eq!(date("-infinity"), "-infinity");
        assert_eq!(date("infinity"), "infinity");
        let time = Value::parse(LogicalType::Timestamp, "-0043-03-15 10:00:00").unwrap();
        assert_eq!(printed(&time), "0044-03-15 10:00:00 BC");
        assert_eq!(printed(&Value::Int64(-5)), "-5");
    }
}
