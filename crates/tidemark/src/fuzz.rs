//! What fuzzers call: every parser of bytes that come from outside, behind one signature.
//!
//! A [`Target`] takes any bytes and returns. It panics where a promise does not hold: a parser
//! that crashes, a value that was believed and cannot be used, one that does not read back as
//! itself. Errors are no failures: most bytes are refused. A caller that counts allocations
//! holds each run against [`memory_bytes_max`].
//!
//! Checksums would stop every changed byte at the door, so targets behind one seal their input
//! themselves; the unsealed form is parsed as well.
//!
//! `cargo xtask fuzz` runs the targets under libFuzzer, `tests/fuzzing.rs` over the corpus and
//! some thousand mutations of it.

use crate::csv::{self, Record, Survey, parse_field};
use crate::database::mark::{LinkTally, Mark};
use crate::ids::{ColumnId, StepIdx};
use crate::row::payload::{PAYLOAD_VERSION, fields, is_partial, overlay};
use crate::row::{Digest, LogicalType, Row, RowCodec, Schema, Value};

/// One parser, or a few that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the target, and of its folder in the corpus.
    pub name: &'static str,
    /// Parses any bytes.
    pub run: fn(&[u8]),
    /// Inputs to begin with: what the writers of today write.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Everything that parses bytes from outside.
pub const TARGETS: &[Target] = &[
    Target { name: "row", run: row, seeds: row_seeds },
    Target { name: "mark", run: mark, seeds: mark_seeds },
    Target { name: "csv", run: read_csv, seeds: csv_seeds },
    Target {
        name: "catalog_record",
        run: crate::catalog::fuzz::record,
        seeds: crate::catalog::fuzz::record_seeds,
    },
    Target {
        name: "database_record",
        run: crate::database::embedded::fuzz::record,
        seeds: crate::database::embedded::fuzz::record_seeds,
    },
    Target {
        name: "pgoutput",
        run: crate::database::postgres::pgoutput::fuzz::message,
        seeds: crate::database::postgres::pgoutput::fuzz::message_seeds,
    },
    Target {
        name: "restore_plan",
        run: crate::restore::fuzz::plan,
        seeds: crate::restore::fuzz::plan_seeds,
    },
    Target {
        name: "log",
        run: crate::collection::fuzz::log,
        seeds: crate::collection::fuzz::log_seeds,
    },
    Target {
        name: "manifest",
        run: crate::collection::fuzz::manifest,
        seeds: crate::collection::fuzz::manifest_seeds,
    },
    Target {
        name: "name",
        run: crate::collection::fuzz::name,
        seeds: crate::collection::fuzz::name_seeds,
    },
    Target {
        name: "part_footer",
        run: crate::collection::part::fuzz::footer,
        seeds: crate::collection::part::fuzz::footer_seeds,
    },
    Target {
        name: "part_page",
        run: crate::collection::part::fuzz::page,
        seeds: crate::collection::part::fuzz::page_seeds,
    },
    Target {
        name: "part_columns",
        run: crate::collection::part::fuzz::columns,
        seeds: crate::collection::part::fuzz::columns_seeds,
    },
    Target {
        name: "part_file",
        run: crate::collection::part::fuzz::file,
        seeds: crate::collection::part::fuzz::file_seeds,
    },
];

/// Bytes that a target may hold at once over an input of `input_bytes`.
///
/// The constant is what bounded buffers take together: windows and pages of a part's columns,
/// the buffer of a CSV reader, a decimal key of 200,000 places in every column. The factor is
/// what JSON takes as a tree.
pub const fn memory_bytes_max(input_bytes: usize) -> u64 {
    (16 << 20) + 64 * input_bytes as u64
}

/// A table of every type; those of `key` are its key, in that order.
pub(crate) fn schema_of_all_types(key: &[&str]) -> Schema {
    let columns = LogicalType::ALL.map(|logical| (logical.name(), logical));
    Schema::new(&columns, key).expect("names of types are plain and differ")
}

/// Row number `at` of a table of [`schema_of_all_types`]; rows ascend in every column but a few.
pub(crate) fn row_of_all_types(at: u32) -> Row {
    let number = i64::from(at) - 1;
    vec![
        Value::Bool(at > 1),
        Value::Int64(number * 1_000_003),
        Value::Float64(number as f64 * 0.5),
        Value::Decimal(format!("{at}.50")),
        Value::Text(format!("row \0 {at} \u{e9}")),
        Value::Bytes(vec![at as u8, 0, 0xff]),
        Value::Date(20_000 + at as i32),
        Value::Timestamp(1_700_000_000_000_000 + number),
        Value::TimestampTz(-number),
        Value::Uuid(u128::from(at) << 64 | 7),
    ]
}

const ROW_KEYS: [&[&str]; 4] = [
    &["int64"],
    &["decimal", "text"],
    &["bool", "float64", "bytes", "date", "timestamp", "timestamp_tz", "uuid"],
    &[],
];

/// `u8` which key, `u16` little-endian length of the key, the key, a payload.
fn row(input: &[u8]) {
    let Some((which, rest)) = input.split_first() else { return };
    let Some((len, rest)) = rest.split_first_chunk::<2>() else { return };
    let Some((key, payload)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else {
        return;
    };
    let codec = RowCodec::new(&schema_of_all_types(ROW_KEYS[usize::from(*which) % 4]));
    if let Ok(row) = codec.decode(key, payload) {
        read_back(&codec, &row);
    }

    // The key alone: a payload may hold another version of a number.
    if let Ok(row) = codec.decode(key, &[PAYLOAD_VERSION]) {
        let mut written = Vec::new();
        codec.encode_key(&row, &mut written).expect("what was read is a row");
        assert_eq!(written, key, "a row has two keys");
    }

    let _ = is_partial(payload);
    let mut projected = Vec::new();
    if codec.project(payload, &mut projected).is_ok() {
        assert!(fields(&projected).all(|field| field.is_ok()), "what was projected has no form");
    }
    // Any two payloads may meet in a fold.
    let (newer, older) = payload.split_at(payload.len() / 2);
    for (newer, older) in [(newer, older), (payload, &projected)] {
        let mut merged = Vec::new();
        if overlay(newer, older, &mut merged).is_ok() {
            assert!(fields(&merged).all(|field| field.is_ok()), "what was merged has no form");
        }
    }
}

/// Holds that a row which was read can be written, and then reads as the same.
#[track_caller]
pub(crate) fn read_back(codec: &RowCodec, row: &[Value]) {
    let encode = |row: &[Value]| {
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        codec.encode_key(row, &mut key).expect("what was read is a row");
        codec.encode_payload(row, &mut payload).expect("what was read is a row");
        (key, payload)
    };
    let (key, payload) = encode(row);
    let again = codec.decode(&key, &payload).expect("what was written reads back");
    // Not the values themselves: a NaN is none's equal.
    assert_eq!(encode(&again), (key, payload), "a row reads back as another");
}

fn row_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (which, key_columns) in ROW_KEYS.iter().enumerate() {
        let codec = RowCodec::new(&schema_of_all_types(key_columns));
        for at in 0..2 {
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            let row = row_of_all_types(at);
            codec.encode_key(&row, &mut key).expect("the row fits its table");
            codec.encode_payload(&row, &mut payload).expect("the row fits its table");
            crate::row::payload::put_unchanged(ColumnId(11), &mut payload);
            let len = (key.len() as u16).to_le_bytes();
            seeds.push([&[which as u8], &len[..], &key, &payload].concat());
        }
    }
    seeds
}

fn mark(input: &[u8]) {
    let Ok(read) = Mark::decode(input) else { return };
    let mut written = Vec::new();
    read.encode(&mut written);
    assert_eq!(Mark::decode(&written).ok(), Some(read), "a mark reads back as another");
}

fn mark_seeds() -> Vec<Vec<u8>> {
    let mut mark = Mark::default().enter_step(StepIdx(3), 2);
    let mut seeds = Vec::new();
    for at in 0..3u32 {
        let mut stored = Vec::new();
        mark.encode(&mut stored);
        seeds.push(stored);
        mark.last_key = Some(at.to_be_bytes().to_vec());
        mark.done = at == 1;
        mark.rows += 1;
        mark.links[0] = LinkTally { rows: 300, bytes: 70_000 };
        mark.account(&at.to_be_bytes(), None, Some(Digest { rows: 1, sum: u128::MAX / 3 }));
    }
    seeds
}

/// A file as `db load` reads it: every record, its types, and then the values.
fn read_csv(input: &[u8]) {
    let open = || csv::Reader::open(input, "f.csv");
    let Ok(mut reader) = open() else { return };
    let mut survey = Survey::new(reader.header().len());
    let mut record = Record::new();
    let mut records = 0u32;
    let whole = loop {
        match reader.read(&mut record) {
            Ok(true) => survey.observe(&record),
            Ok(false) => break true,
            Err(_) => break false,
        }
        records += 1;
        for field in record.fields() {
            for logical in LogicalType::ALL {
                if let Ok(value) = parse_field(field, logical) {
                    value.to_text();
                }
            }
        }
    };
    if !whole {
        return;
    }
    let types: Vec<LogicalType> = survey.columns().iter().map(|seen| seen.inferred()).collect();
    let mut reader = open().expect("it was read before");
    let mut writer = csv::Writer::new(Vec::new());
    writer.header(reader.header().iter().map(String::as_str)).expect("memory takes it");
    while reader.read(&mut record).expect("it was read before") {
        let values: Vec<Value> = record
            .fields()
            .zip(&types)
            .map(|(field, logical)| {
                let value = parse_field(field, *logical).expect("the survey found the type");
                assert_eq!(value.to_text(), field.text, "a value prints back as another");
                value
            })
            .collect();
        writer.row(&values).expect("memory takes it");
        records -= 1;
    }
    assert_eq!(records, 0, "a second reading finds other records");
}

fn csv_seeds() -> Vec<Vec<u8>> {
    let all = "bool,int64,float64,decimal,text,bytes,date,timestamp,timestamp_tz,uuid\n\
        true,-7,1e300,1.50,\"a \"\"b\"\", \u{e9}\",\\x00ff,2024-02-29,2024-02-29 12:34:56.789,\
        2024-02-29 12:34:56+00,00112233-4455-6677-8899-aabbccddeeff\n\
        f,0,NaN,-0.001,\"\",\\x,-infinity,infinity,2024-02-29T12:34:56+05:30,\n";
    // The first records of an example, as far as they fit a seed.
    let example = "Symbol,Name,Sector\r\nMMM,3M Co,Industrials\r\nABT,Abbott Laboratories,Health \
        Care\r\nANF,\"Abercrombie & Fitch Company, A\",\r\n";
    let marked = "\u{feff}a,b\n1,2\n\n";
    [all, example, marked].map(|text| text.as_bytes().to_vec()).into()
}
