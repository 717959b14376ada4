//! `tidemark db dump`: what other programs read of it.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use support::Tidemark;
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use tidemark::env::SystemEnv;
use tidemark::ids::TableName;
use tidemark::row::{LogicalType, Row, Schema, Value};

mod support;

/// Rows of a table with a column of each type, key first, in key order.
fn every_type() -> (Schema, Vec<Row>) {
    let others = LogicalType::ALL.into_iter().map(|logical| (logical.name(), logical));
    let columns: Vec<(&str, LogicalType)> =
        std::iter::once(("id", LogicalType::Int64)).chain(others).collect();
    let schema = Schema::new(&columns, &["id"]).expect("a sound schema");
    let values = |logical: LogicalType| -> [Value; 3] {
        let decimal = |text: &str| Value::Decimal(text.to_owned());
        let text = |text: &str| Value::Text(text.to_owned());
        match logical {
            LogicalType::Bool => [Value::Bool(true), Value::Bool(false), Value::Null],
            LogicalType::Int64 => [Value::Int64(i64::MIN), Value::Int64(i64::MAX), Value::Null],
            LogicalType::Float64 => [Value::Float64(-0.0), Value::Float64(1e300), Value::Null],
            LogicalType::Decimal => {
                [decimal("-12345678901234567890.10"), decimal("NaN"), Value::Null]
            }
            LogicalType::Text => [text(""), text("\u{10ffff} \"a\",\n"), Value::Null],
            LogicalType::Bytes => {
                [Value::Bytes(Vec::new()), Value::Bytes(vec![0, 255]), Value::Null]
            }
            LogicalType::Date => [Value::Date(i32::MIN), Value::Date(20_000), Value::Null],
            LogicalType::Timestamp => {
                [Value::Timestamp(-1), Value::Timestamp(i64::MAX), Value::Null]
            }
            LogicalType::TimestampTz => {
                [Value::TimestampTz(i64::MIN), Value::TimestampTz(7), Value::Null]
            }
            LogicalType::Uuid => [Value::Uuid(0), Value::Uuid(u128::MAX), Value::Null],
        }
    };
    let row = |id: i64| {
        // Every column is NULL in other rows than its neighbour.
        let value = |(at, logical): (usize, LogicalType)| {
            values(logical)[(id.unsigned_abs() as usize + at) % 3].clone()
        };
        std::iter::once(Value::Int64(id))
            .chain(LogicalType::ALL.into_iter().enumerate().map(value))
            .collect()
    };
    (schema, (-40..40).map(row).collect())
}

fn table(folder: &Path, schema: &Schema, rows: &[Row]) -> Tidemark {
    let database = EmbeddedDatabase::open_or_create(
        &folder.join("shop"),
        Arc::new(SystemEnv),
        EmbeddedOptions::default(),
    );
    let database = database.expect("a new database");
    let name = TableName::parse("t").expect("a name");
    let splits = [vec![Value::Int64(-20)], vec![Value::Int64(0)], vec![Value::Int64(20)]];
    database.create_table(&name, schema, &splits).expect("a new table");
    let mut batch = WriteBatch::new();
    rows.iter().rev().for_each(|row| batch.put(&name, row.clone()));
    database.write(&batch).expect("rows are written");
    Tidemark::new(folder)
}

fn batches(path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).expect("the dump");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a Parquet file");
    let reader = reader.build().expect("a reader");
    reader.map(|batch| batch.expect("rows")).collect()
}

/// The value that the parquet crate's reader has at `row` of a column.
fn value(column: &ArrayRef, logical: LogicalType, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    let micros = || column.as_primitive::<TimestampMicrosecondType>().value(row);
    match logical {
        LogicalType::Bool => Value::Bool(column.as_boolean().value(row)),
        LogicalType::Int64 => Value::Int64(column.as_primitive::<Int64Type>().value(row)),
        LogicalType::Float64 => Value::Float64(column.as_primitive::<Float64Type>().value(row)),
        LogicalType::Decimal => Value::Decimal(column.as_string::<i32>().value(row).to_owned()),
        LogicalType::Text => Value::Text(column.as_string::<i32>().value(row).to_owned()),
        LogicalType::Bytes => Value::Bytes(column.as_binary::<i32>().value(row).to_vec()),
        LogicalType::Date => Value::Date(column.as_primitive::<Date32Type>().value(row)),
        LogicalType::Timestamp => Value::Timestamp(micros()),
        LogicalType::TimestampTz => Value::TimestampTz(micros()),
        LogicalType::Uuid => {
            let bytes = column.as_fixed_size_binary().value(row);
            Value::Uuid(u128::from_be_bytes(bytes.try_into().expect("16 bytes")))
        }
    }
}

#[test]
fn another_reader_finds_every_value_of_every_type_in_a_parquet_dump() {
    // Given
    let folder = support::temp_folder();
    let (schema, rows) = every_type();
    let tidemark = table(folder.path(), &schema, &rows);
    // When
    let dump = ["db", "dump", "--db", "shop", "--table", "t", "--format", "parquet"];
    let to_file = ["--output", "t.parquet", "--json"];
    let outcome = tidemark.run(dump.iter().chain(&to_file)).expect_code(0);
    // Then
    let path = folder.path().join("t.parquet");
    let summary = &outcome.json_lines()[0];
    assert_eq!(
        (summary["rows"].as_u64(), summary["bytes"].as_u64()),
        (Some(80), Some(fs::metadata(&path).unwrap().len()))
    );
    let mut found = Vec::new();
    for batch in batches(&path) {
        assert_eq!(batch.num_columns(), schema.columns.len());
        for row in 0..batch.num_rows() {
            let values = schema.columns.iter().map(|column| {
                value(batch.column_by_name(&column.name).unwrap(), column.logical, row)
            });
            found.push(values.collect::<Row>());
        }
    }
    assert_eq!(found, rows);
}

#[test]
fn a_parquet_dump_to_standard_output_is_the_same_file() {
    let folder = support::temp_folder();
    let (schema, rows) = every_type();
    table(folder.path(), &schema, &rows);
    let shell = Tidemark::of_program(Path::new("/bin/sh"), folder.path());
    let program = support::at_run_time("NEXTEST_BIN_EXE_tidemark", env!("CARGO_BIN_EXE_tidemark"));
    let command = format!(
        "'{0}' db dump --db shop --table t --format parquet > piped.parquet; \
         '{0}' db dump --db shop --table t --format parquet --output t.parquet",
        program.display()
    );
    shell.run(["-c", &command]).expect_code(0);
    let read = |name| fs::read(folder.path().join(name)).unwrap();
    assert!(read("piped.parquet") == read("t.parquet"));
}

#[test]
fn a_table_without_rows_is_a_parquet_file_without_rows() {
    let folder = support::temp_folder();
    let (schema, _) = every_type();
    let tidemark = table(folder.path(), &schema, &[]);
    let dump = ["db", "dump", "--db", "shop", "--table", "t", "--format", "parquet"];
    tidemark.run(dump.iter().chain(&["--output", "t.parquet"])).expect_code(0);
    assert_eq!(batches(&folder.path().join("t.parquet")).len(), 0);
}
