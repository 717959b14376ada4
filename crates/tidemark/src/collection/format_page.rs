//! Holds `docs/format.md` against the code: its examples and test vectors are ours.

use serde_json::Map;

use super::document;
use super::fixture::{NOW_MS, part, table};
use super::layout::{manifest_path, part_name, table_folder};
use super::manifest::{
    BackupKind, CollectionRecord, FormatVersion, LogEntry, Manifest, ParentLink, SourceLink,
    TableMode,
};
use crate::collection::accept::{UnverifiedManifest, totals};
use crate::env::WallTime;
use crate::ids::{CollectionId, CutId, Position, Sequence, TableId, TableName};
use crate::row::digest::RowHasher;
use crate::row::key::encode_key_value;
use crate::row::payload::{begin, put_unchanged, put_value};
use crate::row::value::hex;
use crate::row::{Digest, LogicalType, RowCodec, Schema, Value};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md"));

const COLLECTION: CollectionId = CollectionId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const DIGEST_ID: TableId = TableId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

/// The text between the two comments that frame the block `name`.
fn block(name: &str) -> &'static str {
    let begin = format!("<!-- from the code: {name} -->\n");
    let (_, rest) = PAGE.split_once(&begin).unwrap_or_else(|| panic!("no block `{name}`"));
    rest.split_once("<!-- end -->").expect("a block ends").0
}

#[track_caller]
fn same(name: &str, ours: &str) {
    assert!(block(name) == ours, "docs/format.md, block `{name}`, should be:\n{ours}");
}

fn fenced(bytes: &[u8]) -> String {
    format!("```json\n{}```\n", std::str::from_utf8(bytes).unwrap())
}

#[test]
fn key_vectors_are_what_the_code_writes() {
    let values = [
        (LogicalType::Bool, "false"),
        (LogicalType::Bool, "true"),
        (LogicalType::Int64, "-9223372036854775808"),
        (LogicalType::Int64, "-1"),
        (LogicalType::Int64, "0"),
        (LogicalType::Int64, "258"),
        (LogicalType::Float64, "-Infinity"),
        (LogicalType::Float64, "-1.5"),
        (LogicalType::Float64, "-0"),
        (LogicalType::Float64, "0"),
        (LogicalType::Float64, "1.5"),
        (LogicalType::Float64, "NaN"),
        (LogicalType::Decimal, "-Infinity"),
        (LogicalType::Decimal, "-12.5"),
        (LogicalType::Decimal, "0.00"),
        (LogicalType::Decimal, "0.005"),
        (LogicalType::Decimal, "12.5"),
        (LogicalType::Decimal, "12.50"),
        (LogicalType::Decimal, "NaN"),
        (LogicalType::Text, ""),
        (LogicalType::Text, "caf\u{e9}"),
        (LogicalType::Bytes, "\\x610062"),
        (LogicalType::Date, "1969-12-31"),
        (LogicalType::Date, "2026-01-31"),
        (LogicalType::Timestamp, "2026-01-31 09:30:00"),
        (LogicalType::TimestampTz, "2026-01-31T09:30:00Z"),
        (LogicalType::Uuid, "00112233-4455-6677-8899-aabbccddeeff"),
    ];
    let mut ours = "| type | value | key |\n|---|---|---|\n".to_owned();
    for (logical, text) in values {
        let value = Value::parse(logical, text).unwrap();
        let mut key = Vec::new();
        encode_key_value(&value, &mut key).unwrap();
        let shown = if text.is_empty() { "(empty)".to_owned() } else { format!("`{text}`") };
        ours += &format!("| {} | {shown} | `{}` |\n", logical.name(), hex(&key));
    }
    same("keys", &ours);
}

#[test]
fn payload_and_digest_vectors_are_what_the_code_writes() {
    // Key columns 1 (exact in the key) and 2 (not), then one column of every type.
    let mut columns = vec![("id", LogicalType::Int64), ("price", LogicalType::Decimal)];
    columns.extend(LogicalType::ALL.map(|logical| (logical.name(), logical)));
    let schema = Schema::new(&columns, &["id", "price"]).unwrap();
    let codec = RowCodec::new(&schema);
    let row = |texts: [Option<&str>; 12]| -> Vec<Value> {
        let value = |(text, column): (Option<&str>, &crate::row::Column)| match text {
            None => Value::Null,
            Some(text) => Value::parse(column.logical, text).unwrap(),
        };
        texts.into_iter().zip(&schema.columns).map(value).collect()
    };
    let mut nulls = [None; 12];
    nulls[..2].copy_from_slice(&[Some("7"), Some("1.50")]);
    let mut zeros = nulls;
    zeros[4] = Some("-0");
    let filled = [
        Some("-1"),
        Some("-0.05"),
        Some("true"),
        Some("300"),
        Some("NaN"),
        Some("12.500"),
        Some("a b "),
        Some("\\x00ff"),
        Some("2026-01-31"),
        Some("2026-01-31 09:30:00.000001"),
        Some("2026-01-31T09:30:00Z"),
        Some("00112233-4455-6677-8899-aabbccddeeff"),
    ];
    let mut hasher = RowHasher::new(DIGEST_ID);
    let mut sum = Digest::default();
    let mut ours = String::new();
    for (name, texts) in [("A", nulls), ("B", zeros), ("C", filled)] {
        let row = row(texts);
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        codec.encode_key(&row, &mut key).unwrap();
        codec.encode_payload(&row, &mut payload).unwrap();
        let digest = hasher.row(&key, &payload);
        sum += digest;
        let shown: Vec<String> = texts
            .iter()
            .zip(&schema.columns)
            .filter_map(|(text, column)| Some(format!("{} = `{}`", column.name, (*text)?)))
            .collect();
        ours += &format!("Row {name}: {}\n\n", shown.join(", "));
        ours += &format!("| key | `{}` |\n|---|---|\n", hex(&key));
        ours +=
            &format!("| payload | `{}` |\n| digest | `{:032x}` |\n\n", hex(&payload), digest.sum);
    }
    let mut partial = Vec::new();
    begin(&mut partial);
    put_value(schema.columns[3].id, &Value::Int64(1), &mut partial);
    put_unchanged(schema.columns[6].id, &mut partial);
    ours += &format!(
        "The three rows together: rows 3, sum `{:032x}`.\nA partial update that sets column 4 to \
         1 and leaves column 7 as it was: `{}`.\n",
        sum.sum,
        hex(&partial)
    );
    same("rows", &ours);
}

#[test]
fn name_vectors_are_what_the_code_writes() {
    let long = "n".repeat(210);
    let mut ours = "| schema | table | folder |\n|---|---|---|\n".to_owned();
    for (schema, name) in [
        ("public", "orders"),
        ("public", "Orders"),
        ("stock", "a.b"),
        ("..", "../x"),
        ("caf\u{e9}", "50% off"),
        ("public", &long),
    ] {
        let table = TableName::new(schema, name).unwrap();
        let shown = if name.len() > 20 { "`n` 210 times".to_owned() } else { format!("`{name}`") };
        ours += &format!("| `{schema}` | {shown} | `{}` |\n", table_folder(&table));
    }
    same("names", &ours);
}

#[test]
fn the_documents_shown_are_what_the_code_writes() {
    let record = CollectionRecord {
        format: FormatVersion::CURRENT,
        id: COLLECTION,
        created: WallTime(NOW_MS),
        extra: Map::new(),
    };
    same("collection.json", &fenced(&document::seal(&record)));

    let name = TableName::parse("orders").unwrap();
    let mut orders = table(DIGEST_ID.0, "orders", TableMode::Delta);
    orders.state = Some(Digest { rows: 41, sum: 0xabc });
    orders.parts.push(part(part_name(&name, 0, "1a").unwrap(), 1, 2, b"not really Parquet"));
    let directory = "20260131093001Z_incremental".to_owned();
    let previous = blake3::hash(b"the manifest before").to_hex().to_string();
    let manifest = Manifest {
        format: FormatVersion::CURRENT,
        collection: COLLECTION,
        sequence: Sequence(2),
        kind: BackupKind::Incremental,
        directory: directory.clone(),
        parent: Some(ParentLink {
            sequence: Sequence(1),
            directory: "20260131093000Z_full".to_owned(),
            manifest: previous.clone(),
        }),
        source: SourceLink {
            identity: "embedded:5d1c".to_owned(),
            from: Some(Position(17)),
            to: Position(23),
            cut: Some(CutId(0x1234_5678_9abc_def0_1234_5678_9abc_def0)),
        },
        cut_at: WallTime(NOW_MS + 1000),
        totals: totals(std::slice::from_ref(&orders)).unwrap(),
        tables: vec![orders],
        extra: Map::new(),
    };
    let bytes = document::pretty(&manifest);
    let entry = LogEntry {
        format: FormatVersion::CURRENT,
        sequence: Sequence(2),
        kind: BackupKind::Incremental,
        directory,
        manifest: blake3::hash(&bytes).to_hex().to_string(),
        previous: Some(previous),
        extra: Map::new(),
    };
    UnverifiedManifest::from(manifest).check(COLLECTION, &entry).unwrap();
    same("log entry", &fenced(&document::seal(&entry)));
    same(manifest_path("").trim_start_matches('/'), &fenced(&bytes));
}

#[test]
fn the_page_names_every_limit() {
    let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
    let kibibytes = |bytes: u64| format!("{} KiB", bytes >> 10);
    for limit in [
        mebibytes(super::collection::MANIFEST_BYTES_MAX),
        kibibytes(super::log::LOG_ENTRY_BYTES_MAX),
        kibibytes(super::collection::COLLECTION_BYTES_MAX),
        format!("at most {} bytes", super::layout::PATH_BYTES_MAX),
        format!("longer than {} bytes or end in a dot", super::layout::SEGMENT_BYTES_MAX),
        format!("Longer than {} bytes", super::layout::TABLE_FOLDER_BYTES_MAX),
        format!("its first {}, followed", super::layout::TABLE_FOLDER_BYTES_KEPT),
        format!("1 to {} ASCII letters", super::layout::TICKET_BYTES_MAX),
        format!("Version {}.{}", super::manifest::FORMAT_MAJOR, super::manifest::FORMAT_MINOR),
    ] {
        assert!(PAGE.contains(&limit), "{limit}");
    }
}
