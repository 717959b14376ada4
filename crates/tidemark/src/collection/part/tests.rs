//! Parts read back as what was written, bounded, and refuse what was not.

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::column::page::PageReader;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use super::*;
use crate::collection::manifest::PartEntry;
use crate::error::{Kind, Result};
use crate::ids::{ColumnId, TableId};
use crate::row::digest::RowHasher;
use crate::row::payload::{begin, put_unchanged, put_value};
use crate::row::{
    ChangeOp, Column, Digest, KeyRange, LogicalType, Row, RowBatch, RowCodec, RowRef, RowStream,
    Schema, Value,
};

const DIGEST_ID: TableId = TableId(7);

/// A change as plain bytes: key, operation, payload.
type Change = (Vec<u8>, ChangeOp, Vec<u8>);

fn all_types() -> Schema {
    let columns: Vec<(&str, LogicalType)> =
        LogicalType::ALL.into_iter().map(|logical| (logical.name(), logical)).collect();
    Schema::new(&columns, &["int64", "text"]).unwrap()
}

fn change(codec: &RowCodec, op: ChangeOp, row: &[Value]) -> Change {
    let (mut key, mut payload) = (Vec::new(), Vec::new());
    codec.encode_key(row, &mut key).unwrap();
    if op != ChangeOp::Delete {
        codec.encode_payload(row, &mut payload).unwrap();
    }
    (key, op, payload)
}

fn batch_of(changes: &[Change]) -> RowBatch {
    let mut batch = RowBatch::new();
    for (key, op, payload) in changes {
        batch.push(RowRef { key, op: *op, payload });
    }
    batch
}

fn write(
    schema: &Schema,
    kind: PartKind,
    options: PartOptions,
    changes: &[Change],
) -> (Bytes, PartEntry) {
    let mut writer = PartWriter::new(Vec::new(), schema, kind, options).unwrap();
    for changes in changes.chunks(100) {
        writer.write(&batch_of(changes)).unwrap();
    }
    let (bytes, summary) = writer.finish().unwrap();
    (Bytes::from(bytes), summary.into_entry("t/00000-1.parquet".to_owned()))
}

fn small_groups() -> PartOptions {
    PartOptions { group_rows_max: 100, page_bytes_max: Some(600), ..PartOptions::new(DIGEST_ID) }
}

/// Everything that a part is read by; tests change one thing.
struct Reading<'a> {
    bytes: Bytes,
    part: PartEntry,
    schema: &'a Schema,
    kind: PartKind,
    wanted: RowCodec,
    range: KeyRange,
    after: Option<Vec<u8>>,
}

impl<'a> Reading<'a> {
    fn of(schema: &'a Schema, kind: PartKind, (bytes, part): (Bytes, PartEntry)) -> Reading<'a> {
        let wanted = RowCodec::new(schema);
        Reading { bytes, part, schema, kind, wanted, range: KeyRange::ALL, after: None }
    }

    fn open(&self) -> Result<PartReader> {
        let read = PartRead {
            part: &self.part,
            schema: self.schema,
            kind: self.kind,
            wanted: &self.wanted,
            range: &self.range,
            after: self.after.as_deref(),
        };
        PartReader::open(self.bytes.clone(), &read)
    }

    fn read(&self) -> Result<Vec<Change>> {
        collect(&mut self.open()?)
    }
}

fn collect(stream: &mut dyn RowStream) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut batch = RowBatch::new();
    while stream.next_batch(&mut batch)? {
        assert!(!batch.is_empty());
        changes.extend(batch.iter().map(|row| (row.key.to_vec(), row.op, row.payload.to_vec())));
    }
    assert!(batch.is_empty());
    Ok(changes)
}

fn extremes() -> Vec<Row> {
    let decimal = |text: &str| Value::Decimal(text.to_owned());
    let text = |text: &str| Value::Text(text.to_owned());
    let row = |id: i64, key: &str, rest: [Value; 8]| -> Row {
        let [bool, float, dec, bytes, date, stamp, stamp_tz, uuid] = rest;
        vec![bool, Value::Int64(id), float, dec, text(key), bytes, date, stamp, stamp_tz, uuid]
    };
    let null = || std::array::from_fn(|_| Value::Null);
    vec![
        row(i64::MIN, "", null()),
        row(
            -1,
            "nul \0 in the key",
            [
                Value::Bool(true),
                Value::Float64(f64::NAN),
                decimal("-12345678901234567890.1234567890"),
                Value::Bytes(vec![]),
                Value::Date(i32::MIN),
                Value::Timestamp(i64::MIN),
                Value::TimestampTz(i64::MIN),
                Value::Uuid(u128::MAX),
            ],
        ),
        row(
            0,
            "",
            [
                Value::Bool(false),
                Value::Float64(-0.0),
                decimal("0.00"),
                Value::Bytes(vec![0, 255, 0]),
                Value::Date(i32::MAX),
                Value::Timestamp(i64::MAX),
                Value::TimestampTz(i64::MAX),
                Value::Uuid(0),
            ],
        ),
        row(
            0,
            "\u{10ffff}",
            [
                Value::Null,
                Value::Float64(f64::NEG_INFINITY),
                decimal("NaN"),
                Value::Null,
                Value::Date(0),
                Value::Null,
                Value::TimestampTz(-1),
                Value::Null,
            ],
        ),
        row(i64::MAX, "z", null()),
    ]
}

#[test]
fn every_type_reads_back_with_its_extremes() {
    let schema = all_types();
    let codec = RowCodec::new(&schema);
    let changes: Vec<Change> =
        extremes().iter().map(|row| change(&codec, ChangeOp::Upsert, row)).collect();
    for kind in [PartKind::Full, PartKind::Increment] {
        let reading =
            Reading::of(&schema, kind, write(&schema, kind, PartOptions::new(DIGEST_ID), &changes));
        assert_eq!(reading.read().unwrap(), changes);

        let mut hasher = RowHasher::new(DIGEST_ID);
        let digest: Digest = changes.iter().map(|(key, _, payload)| hasher.row(key, payload)).sum();
        let row_bytes: u64 =
            changes.iter().map(|(key, _, payload)| (key.len() + payload.len()) as u64).sum();
        let part = &reading.part;
        assert_eq!((part.digest, part.rows, part.row_bytes), (digest, 5, row_bytes));
        assert_eq!(part.bytes, reading.bytes.len() as u64);
        assert_eq!(part.blake3, blake3::hash(&reading.bytes).to_hex().as_str());
        assert_eq!((&part.first_key, &part.last_key), (&changes[0].0, &changes[4].0));
    }
}

/// What any other Parquet reader sees.
fn as_others_see(bytes: &Bytes) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
    assert_eq!(batches.len(), 1);
    batches.into_iter().next().unwrap()
}

#[test]
fn other_readers_see_real_types_and_the_same_values() {
    let schema = all_types();
    let codec = RowCodec::new(&schema);
    let mut changes: Vec<Change> =
        extremes().iter().map(|row| change(&codec, ChangeOp::Upsert, row)).collect();
    changes[0].1 = ChangeOp::Delete;
    changes[0].2.clear();
    let (bytes, _) = write(&schema, PartKind::Increment, PartOptions::new(DIGEST_ID), &changes);
    let batch = as_others_see(&bytes);
    assert_eq!((batch.num_rows(), batch.num_columns()), (5, 12));

    let field = batch.schema_ref().field_with_name("timestamp_tz").unwrap().clone();
    assert_eq!(field.metadata()[META_COLUMN_ID], "9");
    assert_eq!(field.metadata()[META_COLUMN_TYPE], "timestamp_tz");
    assert_eq!(field.data_type().to_string(), "Timestamp(µs, \"UTC\")");

    let column = |name: &str| batch.column_by_name(name).unwrap();
    assert_eq!(
        column("bool").as_boolean().iter().collect::<Vec<_>>()[1..3],
        [Some(true), Some(false)]
    );
    let ids: Vec<i64> = column("int64").as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(ids, [i64::MIN, -1, 0, 0, i64::MAX]);
    let floats = column("float64").as_primitive::<Float64Type>();
    assert!(floats.value(1).is_nan() && floats.is_null(0));
    assert_eq!(floats.value(2).to_bits(), (-0.0f64).to_bits());
    assert_eq!(column("decimal").as_string::<i32>().value(2), "0.00");
    assert_eq!(column("text").as_string::<i32>().value(1), "nul \0 in the key");
    assert_eq!(column("bytes").as_binary::<i32>().value(2), [0, 255, 0]);
    assert_eq!(column("date").as_primitive::<Date32Type>().value(1), i32::MIN);
    let stamps = column("timestamp_tz").as_primitive::<TimestampMicrosecondType>();
    assert_eq!(stamps.value(3), -1);
    assert_eq!(column("uuid").as_fixed_size_binary().value(1), [0xff; 16]);
    assert_eq!(column(OP_COLUMN).as_string::<i32>().value(0), "delete");
    assert!(column(UNCHANGED_COLUMN).is_null(0));
}

fn priced() -> Schema {
    Schema::new(
        &[
            ("note", LogicalType::Text),
            ("price", LogicalType::Decimal),
            ("id", LogicalType::Int64),
            ("weight", LogicalType::Float64),
            ("seen", LogicalType::Bool),
        ],
        &["price", "weight", "id"],
    )
    .unwrap()
}

#[test]
fn changes_read_back_also_where_the_key_is_not_exact() {
    let schema = priced();
    let codec = RowCodec::new(&schema);
    let row = |price: &str, weight: f64, id: i64| -> Row {
        vec![
            Value::Text("n".to_owned()),
            Value::Decimal(price.to_owned()),
            Value::Int64(id),
            Value::Float64(weight),
            Value::Bool(id % 2 == 0),
        ]
    };
    let mut changes = vec![
        change(&codec, ChangeOp::Delete, &row("-1.500", -0.0, 1)),
        change(&codec, ChangeOp::Upsert, &row("0.00", -0.0, 2)),
        change(&codec, ChangeOp::Upsert, &row("1.10", f64::NAN, 3)),
        change(&codec, ChangeOp::Delete, &row("10.0", 2.5, 4)),
    ];
    // A partial update that gives the exact price, and one that leaves everything.
    let (key, _, _) = change(&codec, ChangeOp::Upsert, &row("20.0", 1.0, 5));
    let mut payload = Vec::new();
    begin(&mut payload);
    put_unchanged(ColumnId(1), &mut payload);
    put_value(ColumnId(2), &Value::Decimal("20.0".to_owned()), &mut payload);
    put_value(ColumnId(4), &Value::Float64(1.0), &mut payload);
    put_unchanged(ColumnId(5), &mut payload);
    changes.push((key, ChangeOp::Update, payload));
    let (key, _, _) = change(&codec, ChangeOp::Upsert, &row("30.000", 1.0, 6));
    let mut payload = Vec::new();
    begin(&mut payload);
    [1, 2, 4, 5].into_iter().for_each(|id| put_unchanged(ColumnId(id), &mut payload));
    changes.push((key, ChangeOp::Update, payload));

    let part = write(&schema, PartKind::Increment, PartOptions::new(DIGEST_ID), &changes);
    let batch = as_others_see(&part.0);
    let prices: Vec<Option<&str>> = batch.column(1).as_string::<i32>().iter().collect();
    assert_eq!(
        prices,
        [Some("-1.5"), Some("0.00"), Some("1.10"), Some("10"), Some("20.0"), Some("30")]
    );
    let unchanged: Vec<Option<&str>> = batch.column(6).as_string::<i32>().iter().collect();
    assert_eq!(unchanged[3..], [None, Some("1,5"), Some("1,2,4,5")]);

    let reading = Reading::of(&schema, PartKind::Increment, part);
    assert_eq!(reading.part.tombstones, 2);
    assert_eq!(reading.read().unwrap(), changes);
}

fn numbered() -> Schema {
    Schema::new(
        &[("id", LogicalType::Int64), ("name", LogicalType::Text), ("flag", LogicalType::Bool)],
        &["id"],
    )
    .unwrap()
}

fn numbered_row(id: i64) -> Row {
    let name = match id % 5 {
        0 => Value::Null,
        _ => Value::Text("n".repeat((id.unsigned_abs() % 31) as usize)),
    };
    vec![Value::Int64(id), name, Value::Bool(id % 3 == 0)]
}

fn numbered_changes(ids: impl Iterator<Item = i64>) -> Vec<Change> {
    let codec = RowCodec::new(&numbered());
    ids.map(|id| change(&codec, ChangeOp::Upsert, &numbered_row(id))).collect()
}

#[test]
fn every_range_and_resume_reads_what_a_filter_leaves() {
    let schema = numbered();
    let changes = numbered_changes((0..450).map(|n| n * 10));
    let mut reading = Reading::of(
        &schema,
        PartKind::Full,
        write(&schema, PartKind::Full, small_groups(), &changes),
    );
    assert_eq!(reading.part.row_groups.len(), 5);
    let key = |id: i64| numbered_changes(std::iter::once(id)).remove(0).0;
    let ids = [-5, 0, 5, 10, 990, 995, 1000, 1001, 2345, 4480, 4490, 4495];
    let ends: Vec<Option<i64>> = ids.into_iter().map(Some).chain([None]).collect();
    for start in ids {
        for end in ends.iter().filter(|end| end.is_none_or(|end| end > start)) {
            for after in &ends {
                reading.range = KeyRange { start: key(start), end: end.map(key) };
                reading.after = after.map(key);
                let inside = |change: &&Change| {
                    reading.range.contains(&change.0)
                        && reading.after.as_ref().is_none_or(|after| change.0 > *after)
                };
                let expected: Vec<Change> = changes.iter().filter(inside).cloned().collect();
                assert_eq!(reading.read().unwrap(), expected, "{start} {end:?} {after:?}");
            }
        }
    }
}

#[test]
fn batches_end_with_the_row_that_reaches_a_bound() {
    let schema = numbered();
    let changes = numbered_changes(0..250);
    let reading = Reading::of(
        &schema,
        PartKind::Full,
        write(&schema, PartKind::Full, small_groups(), &changes),
    );
    let mut batch = RowBatch::new();
    let mut reader = reading.open().unwrap().with_batch_max(7, u64::MAX);
    assert!(reader.next_batch(&mut batch).unwrap());
    assert_eq!(batch.len(), 7);
    let mut reader = reading.open().unwrap().with_batch_max(1000, 100);
    assert!(reader.next_batch(&mut batch).unwrap());
    let last = batch.last().unwrap().byte_count();
    assert!((100..100 + last).contains(&batch.byte_count()));
}

#[test]
fn a_dropped_column_is_not_read_and_a_new_one_is_null() {
    let schema = numbered();
    let changes = numbered_changes(0..250);
    let mut reading = Reading::of(
        &schema,
        PartKind::Full,
        write(&schema, PartKind::Full, small_groups(), &changes),
    );
    let mut later = schema.clone();
    later.columns.remove(1);
    later.columns.push(Column {
        id: ColumnId(4),
        name: "added".to_owned(),
        logical: LogicalType::Text,
        native: None,
    });
    later.next_column_id = ColumnId(5);
    reading.wanted = RowCodec::new(&later);
    let expected: Vec<Change> = (0..250)
        .map(|id| {
            let row = [Value::Int64(id), Value::Bool(id % 3 == 0), Value::Null];
            change(&reading.wanted, ChangeOp::Upsert, &row)
        })
        .collect();
    assert_eq!(reading.read().unwrap(), expected);

    let other_key = Schema::new(&[("id", LogicalType::Text)], &["id"]).unwrap();
    reading.wanted = RowCodec::new(&other_key);
    assert_eq!(reading.open().unwrap_err().kind(), Kind::Broken);
}

#[test]
fn a_table_without_a_key_reads_back_and_is_resumed_by_row() {
    let schema = Schema::new(&[("name", LogicalType::Text)], &[]).unwrap();
    let codec = RowCodec::new(&schema);
    let changes: Vec<Change> = (0..350)
        .map(|n| change(&codec, ChangeOp::Upsert, &[Value::Text(format!("row {}", n % 7))]))
        .collect();
    let reading = Reading::of(
        &schema,
        PartKind::Full,
        write(&schema, PartKind::Full, small_groups(), &changes),
    );
    for passed in [0, 1, 99, 100, 101, 349, 350, 1000] {
        let mut reader = reading.open().unwrap();
        reader.skip_rows(passed).unwrap();
        let rest = changes.get(passed as usize..).unwrap_or_default();
        assert_eq!(collect(&mut reader).unwrap(), rest, "{passed}");
    }
}

#[test]
fn samples_are_few_and_spread_evenly() {
    let schema = numbered();
    let changes = numbered_changes(0..1000);
    let (_, part) = write(&schema, PartKind::Full, small_groups(), &changes);
    let keys: Vec<Vec<u8>> = changes.iter().step_by(16).map(|change| change.0.clone()).collect();
    assert_eq!(part.key_samples, keys);
}

#[test]
fn rows_that_are_none_of_the_table_are_refused() {
    let schema = numbered();
    let codec = RowCodec::new(&schema);
    let good = |id| change(&codec, ChangeOp::Upsert, &numbered_row(id));
    let refused = |kind, changes: &[Change]| {
        let mut writer =
            PartWriter::new(Vec::new(), &schema, kind, PartOptions::new(DIGEST_ID)).unwrap();
        let error = writer.write(&batch_of(changes)).unwrap_err();
        assert_eq!(error.kind(), Kind::Fatal, "{error}");
        error.to_string()
    };
    let full = PartKind::Full;
    assert!(refused(full, &[good(2), good(1)]).contains("keys ascend"));
    assert!(refused(full, &[good(2), good(2)]).contains("keys ascend"));
    let mut delete = good(1);
    delete.1 = ChangeOp::Delete;
    assert!(refused(full, &[delete.clone()]).contains("whole rows"));
    assert!(refused(PartKind::Increment, &[delete]).contains("has a payload"));
    let mut short = good(1);
    short.0.pop();
    assert!(refused(full, &[short]).contains("`id`"));
    let with = |id, value| {
        let mut changed = good(1);
        begin({
            changed.2.clear();
            &mut changed.2
        });
        put_value(ColumnId(id), &value, &mut changed.2);
        changed
    };
    assert!(refused(full, &[with(9, Value::Int64(1))]).contains("column 9"));
    assert!(refused(full, &[with(2, Value::Int64(1))]).contains("`name` is text"));
    let mut partial = good(1);
    put_unchanged(ColumnId(3), {
        partial.2.truncate(1);
        &mut partial.2
    });
    assert!(refused(PartKind::Increment, &[partial]).contains("unchanged"));
    let mut invalid = with(2, Value::Text("x".to_owned()));
    *invalid.2.last_mut().unwrap() = 0xff;
    assert!(refused(full, &[invalid]).contains("no text"));

    let writer = PartWriter::new(Vec::new(), &schema, full, PartOptions::new(DIGEST_ID)).unwrap();
    assert_eq!(writer.finish().unwrap_err().kind(), Kind::Fatal);
}

#[test]
fn key_and_payload_must_say_the_same() {
    let schema = priced();
    let codec = RowCodec::new(&schema);
    let row = |price: &str| {
        let price = Value::Decimal(price.to_owned());
        [Value::Null, price, Value::Int64(1), Value::Float64(0.0), Value::Null]
    };
    let (key, op, _) = change(&codec, ChangeOp::Upsert, &row("1.0"));
    let (_, _, payload) = change(&codec, ChangeOp::Upsert, &row("1.5"));
    let mut writer =
        PartWriter::new(Vec::new(), &schema, PartKind::Full, PartOptions::new(DIGEST_ID)).unwrap();
    let error = writer.write(&batch_of(&[(key, op, payload)])).unwrap_err();
    assert!(error.to_string().contains("differ in column `price`"), "{error}");
}

#[test]
fn names_that_increments_need_are_refused_in_time() {
    for name in [OP_COLUMN, UNCHANGED_COLUMN] {
        let schema = Schema::new(&[("id", LogicalType::Int64), (name, LogicalType::Text)], &["id"]);
        let options = PartOptions::new(DIGEST_ID);
        let error =
            PartWriter::new(Vec::new(), &schema.unwrap(), PartKind::Full, options).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn pages_stay_within_their_bound_unless_one_value_is_greater() {
    let schema = numbered();
    let codec = RowCodec::new(&schema);
    let mut seed = 1u64;
    let changes: Vec<Change> = (0..20_000)
        .map(|id| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let len = if id % 5000 == 17 { 100_000 } else { (seed >> 40) % 900 };
            let letter = char::from(b'a' + (seed >> 33) as u8 % 26);
            let text = Value::Text(String::from(letter).repeat(len as usize));
            change(&codec, ChangeOp::Upsert, &[Value::Int64(id), text, Value::Null])
        })
        .collect();
    let (bytes, _) = write(&schema, PartKind::Increment, PartOptions::new(DIGEST_ID), &changes);
    let file = SerializedFileReader::new(bytes).unwrap();
    let (mut pages, mut large) = (0, 0);
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).unwrap();
        for column in 0..group.num_columns() {
            let mut reader: Box<dyn PageReader> = group.get_column_page_reader(column).unwrap();
            while let Some(page) = reader.get_next_page().unwrap() {
                assert!(page.num_values() <= PAGE_ROWS_MAX);
                pages += 1;
                if page.buffer().len() > 64 << 10 {
                    assert_eq!(page.num_values(), 1);
                    large += 1;
                }
            }
        }
    }
    assert!(pages > 100, "{pages}");
    assert_eq!(large, 4);
}

#[test]
fn wide_tables_have_small_pages() {
    assert_eq!(PartKind::Increment.page_bytes_max(5), 64 << 10);
    assert_eq!(PartKind::Increment.page_bytes_max(100), 10_485);
    assert_eq!(PartKind::Increment.page_bytes_max(1000), 8 << 10);
    assert_eq!(PartKind::Full.page_bytes_max(0), 256 << 10);
}

#[test]
fn groups_end_when_enough_is_held() {
    let schema = numbered();
    let codec = RowCodec::new(&schema);
    let mut seed = 1u64;
    let changes: Vec<Change> = (0..300)
        .map(|id| {
            let mut text = String::new();
            for _ in 0..4000 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                text.push(char::from(b' ' + (seed >> 33) as u8 % 94));
            }
            change(&codec, ChangeOp::Upsert, &[Value::Int64(id), Value::Text(text), Value::Null])
        })
        .collect();
    let options = PartOptions { group_bytes_max: 300_000, ..PartOptions::new(DIGEST_ID) };
    let (bytes, part) = write(&schema, PartKind::Full, options, &changes);
    assert!((3..10).contains(&part.row_groups.len()), "{}", part.row_groups.len());
    let reading = Reading::of(&schema, PartKind::Full, (bytes, part));
    assert_eq!(reading.read().unwrap(), changes);
}

/// A part of both kinds of values, pages and groups, small enough to break exhaustively.
fn small_part(schema: &Schema) -> (Vec<Change>, (Bytes, PartEntry)) {
    let mut changes = numbered_changes(0..60);
    changes[7].1 = ChangeOp::Delete;
    changes[7].2.clear();
    let options = PartOptions {
        group_rows_max: 25,
        page_bytes_max: Some(2300),
        ..PartOptions::new(DIGEST_ID)
    };
    let part = write(schema, PartKind::Increment, options, &changes);
    (changes, part)
}

#[test]
fn a_flipped_bit_gives_an_error_or_changes_nothing() {
    let schema = numbered();
    let (changes, part) = small_part(&schema);
    let mut reading = Reading::of(&schema, PartKind::Increment, part);
    let original = reading.bytes.to_vec();
    let mut refused = 0;
    for at in 0..original.len() {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at * 5 % 8);
        reading.bytes = Bytes::from(bytes);
        match reading.read() {
            Ok(read) => assert_eq!(read, changes, "byte {at}"),
            Err(error) => {
                assert!(matches!(error.kind(), Kind::Broken | Kind::Unsupported), "{error:?}");
                assert!(error.to_string().contains("00000-1.parquet"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 500, "{refused} of {}", original.len());
}

#[test]
fn every_truncated_part_is_refused() {
    let schema = numbered();
    let (_, part) = small_part(&schema);
    let mut reading = Reading::of(&schema, PartKind::Increment, part);
    let original = reading.bytes.clone();
    for len in 0..original.len() {
        reading.bytes = original.slice(..len);
        assert_eq!(reading.open().unwrap_err().kind(), Kind::Broken, "{len}");
        // The same with a manifest that has the false size.
        reading.part.bytes = len as u64;
        assert!(reading.read().is_err(), "{len}");
        reading.part.bytes = original.len() as u64;
    }
}

#[test]
fn a_part_that_is_not_what_its_manifest_says_is_refused() {
    let schema = numbered();
    let (_, part) = small_part(&schema);
    let original = Reading::of(&schema, PartKind::Increment, part);
    let refused = |change: &dyn Fn(&mut PartEntry), words: &str| {
        let mut part = original.part.clone();
        change(&mut part);
        let bytes = original.bytes.clone();
        let error = Reading::of(&schema, PartKind::Increment, (bytes, part)).read().unwrap_err();
        assert_eq!(error.kind(), Kind::Broken, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&|part| part.bytes += 1, "bytes, its manifest says");
    refused(&|part| part.rows += 1, "contradicts itself");
    refused(&|part| part.tombstones = 100, "contradicts itself");
    refused(&|part| part.tombstones = 0, "more tombstones");
    refused(&|part| part.tombstones = 2, "lacks 1 tombstones");
    refused(&|part| part.row_groups.clear(), "contradicts itself");
    refused(&|part| part.first_key.clear(), "contradicts itself");
    refused(
        &|part| {
            part.row_groups[0].rows += 1;
            part.row_groups[1].rows -= 1;
        },
        "row groups",
    );
    refused(&|part| part.last_key.push(0), "ends with key");
    refused(&|part| part.last_key = part.row_groups[2].first_key.clone(), "is beyond");
    refused(&|part| part.row_groups[1].first_key.push(0), "begins with key");
    refused(
        &|part| {
            part.row_groups[1].row_bytes += 1;
            part.row_bytes += 1;
        },
        "lacks 0 tombstones and 1 bytes",
    );

    let bytes = || (original.bytes.clone(), original.part.clone());
    let error = Reading::of(&schema, PartKind::Full, bytes()).read().unwrap_err();
    assert!(error.to_string().contains("contradicts itself"), "{error}");
    let mut renamed = schema.clone();
    renamed.columns[1].name = "title".to_owned();
    let error = Reading::of(&renamed, PartKind::Increment, bytes()).read().unwrap_err();
    assert!(error.to_string().contains("its schema"), "{error}");
}

#[test]
fn a_part_whose_greatest_row_is_endless_is_read_without_overflow() {
    let schema = numbered();
    let (changes, (bytes, mut part)) = small_part(&schema);
    part.row_bytes_max = u64::MAX;
    let read = Reading::of(&schema, PartKind::Increment, (bytes, part)).read();
    if let Ok(read) = read {
        assert_eq!(read, changes);
    }
}

#[test]
fn a_failing_store_keeps_its_kind() {
    struct Failing(Bytes);
    impl parquet::file::reader::Length for Failing {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
    }
    impl parquet::file::reader::ChunkReader for Failing {
        type T = std::io::Empty;

        fn get_read(&self, _: u64) -> parquet::errors::Result<Self::T> {
            Ok(std::io::empty())
        }

        fn get_bytes(&self, start: u64, len: usize) -> parquet::errors::Result<Bytes> {
            if start == 4 {
                let error = crate::Error::new(Kind::Transient, "the store is away");
                return Err(parquet::errors::ParquetError::External(Box::new(error)));
            }
            self.0.get_bytes(start, len)
        }
    }
    let schema = numbered();
    let (_, (bytes, part)) = small_part(&schema);
    let wanted = RowCodec::new(&schema);
    let read = PartRead {
        part: &part,
        schema: &schema,
        kind: PartKind::Increment,
        wanted: &wanted,
        range: &KeyRange::ALL,
        after: None,
    };
    let mut reader = PartReader::open(Failing(bytes), &read).unwrap();
    let error = reader.next_batch(&mut RowBatch::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert!(!reader.next_batch(&mut RowBatch::new()).unwrap(), "a failed stream is spent");
}

#[test]
fn a_link_reads_its_parts_in_order_and_only_those_in_range() {
    let schema = numbered();
    let parts: Vec<(Bytes, PartEntry)> = [0..100, 100..200, 200..300]
        .into_iter()
        .map(|ids| write(&schema, PartKind::Full, small_groups(), &numbered_changes(ids)))
        .collect();
    let entries: Vec<PartEntry> = parts.iter().map(|(_, part)| part.clone()).collect();
    let key = |id: i64| numbered_changes(std::iter::once(id)).remove(0).0;
    let range = KeyRange { start: key(120), end: Some(key(250)) };
    let after = Some(key(150));
    let mut opened = 0;
    let open: OpenPart<'_> = Box::new(|entry| {
        opened += 1;
        let (bytes, _) = parts.iter().find(|(_, part)| part.first_key == entry.first_key).unwrap();
        let mut reading = Reading::of(&schema, PartKind::Full, (bytes.clone(), entry.clone()));
        (reading.range, reading.after) = (range.clone(), after.clone());
        Ok(Box::new(reading.open()?))
    });
    let mut link = LinkReader::new(&entries, &range, after.as_deref(), open).unwrap();
    assert_eq!(collect(&mut link).unwrap(), numbered_changes(151..250));
    drop(link);
    assert_eq!(opened, 2);

    let swapped: Vec<PartEntry> = entries.iter().rev().cloned().collect();
    let open: OpenPart<'_> = Box::new(|_| unreachable!("nothing is opened"));
    let error = LinkReader::new(&swapped, &KeyRange::ALL, None, open).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
}

fn value_of(logical: LogicalType) -> BoxedStrategy<Value> {
    match logical {
        LogicalType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        LogicalType::Int64 => any::<i64>().prop_map(Value::Int64).boxed(),
        LogicalType::Float64 => any::<u64>()
            .prop_map(|bits| {
                Value::Float64(crate::row::payload::canonical_f64(f64::from_bits(bits)))
            })
            .boxed(),
        LogicalType::Decimal => {
            "(0|-?[1-9][0-9]{0,20}(\\.[0-9]{1,10})?|NaN|Infinity)".prop_map(Value::Decimal).boxed()
        }
        LogicalType::Text => any::<String>().prop_map(Value::Text).boxed(),
        LogicalType::Bytes => any::<Vec<u8>>().prop_map(Value::Bytes).boxed(),
        LogicalType::Date => any::<i32>().prop_map(Value::Date).boxed(),
        LogicalType::Timestamp => any::<i64>().prop_map(Value::Timestamp).boxed(),
        LogicalType::TimestampTz => any::<i64>().prop_map(Value::TimestampTz).boxed(),
        LogicalType::Uuid => any::<u128>().prop_map(Value::Uuid).boxed(),
    }
}

fn row_of_all_types() -> impl Strategy<Value = Row> {
    let values: Vec<BoxedStrategy<Value>> = LogicalType::ALL
        .into_iter()
        .map(|logical| match logical {
            // They are in one of the keys below.
            LogicalType::Bool | LogicalType::Bytes => value_of(logical),
            _ => prop_oneof![1 => Just(Value::Null), 3 => value_of(logical)].boxed(),
        })
        .collect();
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_rows_read_back_under_any_key(
        rows in prop::collection::vec(row_of_all_types(), 1..80),
        keys in prop::sample::subsequence(
            LogicalType::ALL.map(LogicalType::name).to_vec(), 1..=10),
        page_bytes in 2100u64..4000,
        group_rows in 1u64..60,
    ) {
        let columns: Vec<(&str, LogicalType)> =
            LogicalType::ALL.into_iter().map(|logical| (logical.name(), logical)).collect();
        let schema = Schema::new(&columns, &keys).unwrap();
        let codec = RowCodec::new(&schema);
        let has_key = |row: &&Row| {
            schema.columns.iter().zip(*row)
                .all(|(column, value)| *value != Value::Null || !schema.key.contains(&column.id))
        };
        let changes: std::collections::BTreeMap<Vec<u8>, Change> = rows.iter().filter(has_key)
            .map(|row| change(&codec, ChangeOp::Upsert, row))
            .map(|change| (change.0.clone(), change))
            .collect();
        let changes: Vec<Change> = changes.into_values().collect();
        prop_assume!(!changes.is_empty());
        let options = PartOptions {
            page_bytes_max: Some(page_bytes),
            group_rows_max: group_rows,
            ..PartOptions::new(DIGEST_ID)
        };
        let part = write(&schema, PartKind::Full, options, &changes);
        prop_assert_eq!(Reading::of(&schema, PartKind::Full, part).read().unwrap(), changes);
    }

    #[test]
    fn no_broken_bytes_break_the_reader(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let schema = numbered();
        let (_, part) = small_part(&schema);
        let mut reading = Reading::of(&schema, PartKind::Increment, part);
        let mut bytes = reading.bytes.to_vec();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        reading.bytes = Bytes::from(bytes);
        let _ = reading.read();
    }
}
