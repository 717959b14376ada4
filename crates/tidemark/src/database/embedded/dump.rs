//! Writes a table's rows in key order, as CSV or as JSON lines.
//!
//! CSV reads back as it was: a dump that is loaded into a table of the same types
//! makes the same rows. JSON lines carry one object per row, its members in column
//! order: booleans, integers and finite floats as JSON has them, NULL as `null`,
//! and everything else as its text form, decimals included, since most readers
//! would round a long number.

use std::io::Write;

use super::EmbeddedDatabase;
use super::read::Reads;
use super::source::CutStream;
use crate::csv::Writer;
use crate::error::{Error, Result};
use crate::ids::TableName;
use crate::row::{KeyRange, RowBatch, RowCodec, RowStream, Schema, Value};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpFormat {
    /// RFC 4180 with a header and line feeds; NULL is nothing, the empty text is `""`.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpReport {
    /// Rows.
    pub rows: u64,
    /// Bytes, header included.
    pub bytes: u64,
}

impl EmbeddedDatabase {
    /// Writes the rows of a table in key order, as they all stood at one moment of this call.
    ///
    /// `output` should be buffered.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) without such a table;
    /// [`Kind::Held`](crate::Kind::Held) when writers do not let go in time; those of the
    /// output: what was written before stays.
    pub fn dump(
        &self,
        table: &TableName,
        format: DumpFormat,
        output: impl Write,
    ) -> Result<DumpReport> {
        self.read_table(table, |schema, rows| write_rows(schema, rows, format, output))
            .map_err(|error| error.context(format!("dump table `{table}`")))
    }

    /// Hands the rows of a table to `read` in key order, as they all stood at one moment of
    /// this call, with their schema.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) without such a table;
    /// [`Kind::Held`](crate::Kind::Held) when writers do not let go in time; those of `read`.
    pub fn read_table<T>(
        &self,
        table: &TableName,
        read: impl FnOnce(&Schema, &mut dyn RowStream) -> Result<T>,
    ) -> Result<T> {
        let view = self.view_at_one_moment(table)?;
        let mut rows = CutStream::new(&view, &KeyRange::ALL, Reads::Rows);
        read(&view.table.record.schema, &mut rows)
    }
}

/// Writes the rows of `stream`, which are rows of `schema`, in its order.
///
/// # Errors
/// Those of the stream and of the output; what was written before stays.
pub fn write_rows(
    schema: &Schema,
    stream: &mut dyn RowStream,
    format: DumpFormat,
    output: impl Write,
) -> Result<DumpReport> {
    let codec = RowCodec::new(schema);
    let mut sink = Sink::begin(schema, format, output)?;
    let mut rows = 0;
    let mut batch = RowBatch::new();
    while stream.next_batch(&mut batch)? {
        for row in batch.iter() {
            // The key of a table without key columns only numbers its rows.
            let key = if schema.key.is_empty() { &[] } else { row.key };
            sink.row(schema, &codec.decode(key, row.payload)?)?;
            rows += 1;
        }
    }
    Ok(DumpReport { rows, bytes: sink.finish()? })
}

enum Sink<W: Write> {
    Csv(Writer<W>),
    JsonLines { output: W, line: Vec<u8>, byte_count: u64 },
}

impl<W: Write> Sink<W> {
    fn begin(schema: &Schema, format: DumpFormat, output: W) -> Result<Sink<W>> {
        match format {
            DumpFormat::Csv => {
                let mut writer = Writer::new(output);
                writer.header(schema.columns.iter().map(|column| column.name.as_str()))?;
                Ok(Sink::Csv(writer))
            }
            DumpFormat::JsonLines => {
                Ok(Sink::JsonLines { output, line: Vec::new(), byte_count: 0 })
            }
        }
    }

    fn row(&mut self, schema: &Schema, row: &[Value]) -> Result<()> {
        match self {
            Sink::Csv(writer) => writer.row(row),
            Sink::JsonLines { output, line, byte_count } => {
                line.clear();
                put_object(schema, row, line);
                line.push(b'\n');
                *byte_count += line.len() as u64;
                output.write_all(line).map_err(write_error)
            }
        }
    }

    fn finish(self) -> Result<u64> {
        match self {
            Sink::Csv(writer) => writer.finish(),
            Sink::JsonLines { mut output, byte_count, .. } => {
                output.flush().map_err(write_error)?;
                Ok(byte_count)
            }
        }
    }
}

fn put_object(schema: &Schema, row: &[Value], line: &mut Vec<u8>) {
    let mut before = b'{';
    for (column, value) in schema.columns.iter().zip(row) {
        line.push(before);
        before = b',';
        put_json(&column.name, line);
        line.push(b':');
        match value {
            Value::Null => line.extend_from_slice(b"null"),
            Value::Bool(_) | Value::Int64(_) => line.extend_from_slice(value.to_text().as_bytes()),
            // Rust prints a whole float without a point, and JSON takes either.
            Value::Float64(number) if number.is_finite() => {
                line.extend_from_slice(value.to_text().as_bytes());
            }
            value => put_json(&value.to_text(), line),
        }
    }
    line.push(b'}');
}

fn put_json(text: &str, line: &mut Vec<u8>) {
    serde_json::to_writer(line, text).expect("a text is always JSON, and memory takes it");
}

fn write_error(cause: std::io::Error) -> Error {
    Error::io("write JSON lines", cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{ChangeOp, LogicalType, Row, RowRef};

    /// Rows in memory.
    struct Rows(Option<RowBatch>);

    impl RowStream for Rows {
        fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
            *batch = self.0.take().unwrap_or_default();
            Ok(!batch.is_empty())
        }
    }

    const COLUMNS: [(&str, LogicalType); 6] = [
        ("id", LogicalType::Int64),
        ("te\"xt", LogicalType::Text),
        ("ok", LogicalType::Bool),
        ("price", LogicalType::Decimal),
        ("weight", LogicalType::Float64),
        ("day", LogicalType::Date),
    ];

    fn rows() -> [Row; 2] {
        let text = |text: &str| Value::Text(text.to_owned());
        let decimal = |text: &str| Value::Decimal(text.to_owned());
        [
            vec![
                Value::Int64(1),
                text("a,\n\"b\""),
                Value::Bool(true),
                decimal("1.50"),
                Value::Float64(0.5),
                Value::Date(0),
            ],
            vec![
                Value::Int64(2),
                text(""),
                Value::Null,
                decimal("NaN"),
                Value::Float64(f64::INFINITY),
                Value::Null,
            ],
        ]
    }

    fn dumped(format: DumpFormat) -> String {
        let schema = Schema::new(&COLUMNS, &["id"]).unwrap();
        let codec = RowCodec::new(&schema);
        let mut batch = RowBatch::new();
        for row in rows() {
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            codec.encode_key(&row, &mut key).unwrap();
            codec.encode_payload(&row, &mut payload).unwrap();
            batch.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
        }
        let mut out = Vec::new();
        let report = write_rows(&schema, &mut Rows(Some(batch)), format, &mut out).unwrap();
        assert_eq!(report, DumpReport { rows: 2, bytes: out.len() as u64 });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn csv_has_a_header_and_as_few_quotes_as_can_be() {
        assert_eq!(
            dumped(DumpFormat::Csv),
            "id,\"te\"\"xt\",ok,price,weight,day\n\
             1,\"a,\n\"\"b\"\"\",true,1.50,0.5,1970-01-01\n\
             2,\"\",,NaN,Infinity,\n"
        );
    }

    #[test]
    fn every_json_line_is_an_object_that_keeps_the_values() {
        let dumped = dumped(DumpFormat::JsonLines);
        assert_eq!(
            dumped,
            "{\"id\":1,\"te\\\"xt\":\"a,\\n\\\"b\\\"\",\"ok\":true,\"price\":\"1.50\",\"weight\":0.5,\"day\":\"1970-01-01\"}\n\
             {\"id\":2,\"te\\\"xt\":\"\",\"ok\":null,\"price\":\"NaN\",\"weight\":\"Infinity\",\"day\":null}\n"
        );
        for line in dumped.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}
