//! Fuzz targets of parts: footer, page, the pages of every column, the whole file.

use std::sync::LazyLock;

use bytes::Bytes;

use super::footer::{self, GroupExtent, MAGIC, TAIL_BYTES};
use super::layout::{Layout, Physical};
use super::page::{PageHeader, append_page, decompress, take_levels};
use super::values::{bytes_fit, encode_key};
use super::{
    META_KIND, META_SCHEMA, META_VERSION, PAGE_ROWS_MAX, PROFILE_VERSION, PartKind, PartOptions,
    PartRead, PartReader, PartWriter,
};
use crate::collection::manifest::{PartEntry, RowGroupEntry};
use crate::error::Result;
use crate::fuzz::{read_back, row_of_all_types, schema_of_all_types};
use crate::ids::TableId;
use crate::row::payload::{put_unchanged, put_value};
use crate::row::{ChangeOp, KeyRange, RowBatch, RowCodec, RowRef, RowStream, Schema};

/// A part that the writer made.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Number of its table.
    pub(crate) number: u128,
    pub(crate) schema: Schema,
    pub(crate) kind: PartKind,
    pub(crate) entry: PartEntry,
    codec: RowCodec,
    layout: Layout,
    file: Vec<u8>,
}

impl Sample {
    pub(crate) fn has_key(&self) -> bool {
        !self.schema.key.is_empty()
    }

    fn new(number: u128, key: &[&str], kind: PartKind) -> Sample {
        let schema = schema_of_all_types(key);
        let codec = RowCodec::new(&schema);
        let mut batch = RowBatch::new();
        for at in 0..7 {
            let row = row_of_all_types(at);
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            codec.encode_key(&row, &mut key).expect("the row fits its table");
            codec.encode_payload(&row, &mut payload).expect("the row fits its table");
            let mut op = ChangeOp::Upsert;
            if kind == PartKind::Increment && at == 2 {
                (op, payload) = (ChangeOp::Delete, Vec::new());
            } else if kind == PartKind::Increment && at == 3 {
                op = ChangeOp::Update;
                payload = vec![crate::row::payload::PAYLOAD_VERSION];
                codec.stored_columns().iter().for_each(|at| {
                    let column = &schema.columns[*at];
                    if schema.key.contains(&column.id) {
                        put_value(column.id, &row[*at], &mut payload);
                    } else {
                        put_unchanged(column.id, &mut payload);
                    }
                });
            }
            batch.push(RowRef { key: &key, op, payload: &payload });
        }
        // Several row groups, some of several pages.
        let options = PartOptions {
            page_bytes_max: Some(64),
            group_rows_max: 4,
            ..PartOptions::new(TableId(number))
        };
        let mut writer =
            PartWriter::new(Vec::new(), &schema, kind, options).expect("a possible schema");
        writer.write(&batch).expect("the rows fit");
        let (file, summary) = writer.finish().expect("memory takes it");
        let layout = Layout::new(&schema, kind).expect("a possible schema");
        let entry = summary.into_entry(format!("public.t{number:02}/00000-1a.parquet"));
        Sample { number, schema, kind, entry, codec, layout, file }
    }
}

/// Parts of all kinds and kinds of keys.
pub(crate) fn samples() -> &'static [Sample] {
    static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
        vec![
            Sample::new(1, &["int64"], PartKind::Full),
            Sample::new(1, &["int64"], PartKind::Increment),
            Sample::new(2, &["decimal", "text"], PartKind::Full),
            Sample::new(2, &["decimal", "text"], PartKind::Increment),
            Sample::new(3, &[], PartKind::Full),
        ]
    });
    &SAMPLES
}

/// A sample by the first byte of an input, and the rest of it.
fn take_sample(input: &[u8]) -> Option<(&'static Sample, &[u8])> {
    let (which, rest) = input.split_first()?;
    let samples = samples();
    Some((&samples[usize::from(*which) % samples.len()], rest))
}

/// `u8` which sample, then the metadata of a footer.
pub(crate) fn footer(input: &[u8]) {
    let Some((sample, bytes)) = take_sample(input) else { return };
    let Some(footer) = footer::decode(bytes) else { return };
    footer.differs_from(&sample.layout);
    footer.meta(META_SCHEMA);
}

pub(crate) fn footer_seeds() -> Vec<Vec<u8>> {
    let seed = |(which, sample): (usize, &Sample)| {
        let end = sample.file.len() - TAIL_BYTES as usize;
        let (body, tail) = sample.file.split_at(end);
        let len = tail.first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        [&[which as u8], &body[end - len..]].concat()
    };
    samples().iter().enumerate().map(seed).collect()
}

/// `u8` with what to do in its lowest bits, then a header, a frame, or the content of a page.
pub(crate) fn page(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    let mut content = Vec::new();
    let mut present = Vec::new();
    match which % 3 {
        0 => {
            let Some((header, len)) = PageHeader::take(bytes) else { return };
            let content_bytes = header.content_bytes.min(1 << 20);
            if decompress(&bytes[len..], content_bytes, &mut content).is_ok() {
                take_levels(&content, header.rows.min(PAGE_ROWS_MAX), &mut present);
            }
        }
        1 => {
            let _ = decompress(bytes, 1 << 20, &mut content);
        }
        _ => {
            let Some((rows, bytes)) = bytes.split_first_chunk::<2>() else { return };
            let rows = u32::from(u16::from_le_bytes(*rows)).clamp(1, PAGE_ROWS_MAX);
            if let Some(levels) = take_levels(bytes, rows, &mut present) {
                let present_count: u32 = present.iter().map(|byte| byte.count_ones()).sum();
                assert!(levels.end <= bytes.len() && levels.value_count <= rows as usize);
                assert!(present.len() == rows.div_ceil(8) as usize);
                assert!(present_count as usize == levels.value_count);
            }
        }
    }
}

pub(crate) fn page_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for sample in samples() {
        for (chunk, column) in pages_of(sample) {
            let Some((_, header_len)) = PageHeader::take(chunk) else { continue };
            seeds.push([&[0], chunk].concat());
            seeds.push([&[1], &chunk[header_len..]].concat());
            if !sample.layout.columns[column].required {
                let (rows, content) = content_of(chunk);
                seeds.push([&[2], &(rows as u16).to_le_bytes()[..], &content].concat());
            }
        }
    }
    seeds.truncate(60);
    seeds
}

/// The column chunks of a sample's first row group; the first page of each is in front.
fn pages_of(sample: &Sample) -> Vec<(&[u8], usize)> {
    let footer = footer_seeds_of(sample);
    let group = &footer[0];
    let chunk = |(column, extent): (usize, &footer::ChunkExtent)| {
        let start = extent.offset as usize;
        (&sample.file[start..start + extent.bytes as usize], column)
    };
    group.chunks.iter().enumerate().map(chunk).collect()
}

fn footer_seeds_of(sample: &Sample) -> Vec<GroupExtent> {
    let end = sample.file.len() - TAIL_BYTES as usize;
    let len = sample.file[end..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
    footer::decode(&sample.file[end - len..end]).expect("our own footer").groups
}

/// Rows and content of the page in front of a column chunk.
fn content_of(chunk: &[u8]) -> (u32, Vec<u8>) {
    let (header, len) = PageHeader::take(chunk).expect("our own page");
    let frame = &chunk[len..len + header.frame_bytes as usize];
    let mut content = Vec::new();
    decompress(frame, header.content_bytes, &mut content).expect("our own page");
    (header.rows, content)
}

/// `u8` which sample, `u16` rows, then per column `u16` length and content of its only page;
/// a part of one row group with these pages, their checksums right.
pub(crate) fn columns(input: &[u8]) {
    let Some((sample, rest)) = take_sample(input) else { return };
    let Some((rows, mut rest)) = rest.split_first_chunk::<2>() else { return };
    let rows = u32::from(u16::from_le_bytes(*rows)).clamp(1, PAGE_ROWS_MAX);
    let mut contents = Vec::new();
    for _ in &sample.layout.columns {
        let (len, after) = rest.split_first_chunk::<2>().unwrap_or((&[0, 0], &[]));
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        contents.push(&after[..len]);
        rest = &after[len..];
    }
    let mut file = MAGIC.to_vec();
    let mut chunks = Vec::new();
    for content in &contents {
        let offset = file.len() as u64;
        append_page(content, rows, &mut file).expect("a page of 64 KiB at most");
        let bytes = file.len() as u64 - offset;
        let content_bytes = content.len() as u64;
        chunks.push(footer::ChunkExtent { offset, bytes, content_bytes });
    }
    let groups = [GroupExtent { rows: u64::from(rows), chunks }];
    let schema = serde_json::to_string(&sample.schema).expect("a schema is plain data");
    let metadata = [
        (META_VERSION, PROFILE_VERSION.to_owned()),
        (META_KIND, sample.kind.name().to_owned()),
        (META_SCHEMA, schema),
    ];
    file.extend_from_slice(&footer::encode(&sample.layout, &groups, &metadata));

    let Some((first_key, last_key)) = ends_of(sample, &contents, rows) else { return };
    let rows = u64::from(rows);
    let row_bytes = file.len() as u64;
    let group = RowGroupEntry { rows, row_bytes, first_key: first_key.clone() };
    let entry = PartEntry {
        bytes: file.len() as u64,
        rows,
        tombstones: 0,
        row_bytes,
        row_bytes_max: row_bytes,
        first_key,
        last_key,
        row_groups: vec![group],
        ..sample.entry.clone()
    };
    // Beyond the empty key is every key, but no longer a whole part with all its sums.
    let _ = read_all(sample, &entry, Bytes::from(file), &KeyRange::ALL, Some(&[]));
}

/// The first and last key that key columns of these contents have.
fn ends_of(sample: &Sample, contents: &[&[u8]], rows: u32) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut rests = contents.to_vec();
    let (mut first, mut last) = (None, Vec::new());
    for _ in 0..rows {
        last.clear();
        for at in &sample.layout.key {
            let logical = sample.layout.columns[*at].logical;
            let rest = &mut rests[*at];
            let len = match Physical::of(logical).width() {
                Some(width) => width,
                None => {
                    let (len, after) = rest.split_first_chunk::<4>()?;
                    *rest = after;
                    u32::from_le_bytes(*len) as usize
                }
            };
            let (value, after) = rest.split_at_checked(len)?;
            *rest = after;
            if !bytes_fit(logical, value) {
                return None;
            }
            encode_key(logical, value, &mut last);
        }
        first.get_or_insert_with(|| last.clone());
    }
    Some((first?, last))
}

pub(crate) fn columns_seeds() -> Vec<Vec<u8>> {
    let seed = |(which, sample): (usize, &Sample)| {
        // Columns of wide values have pages of fewer rows: as many as all of them have.
        let pages: Vec<(u32, Vec<u8>)> =
            pages_of(sample).iter().map(|(chunk, _)| content_of(chunk)).collect();
        let rows = pages.iter().map(|(rows, _)| *rows).min().unwrap_or(1);
        let mut seed = vec![which as u8];
        seed.extend_from_slice(&(rows as u16).to_le_bytes());
        for (_, content) in &pages {
            seed.extend_from_slice(&(content.len() as u16).to_le_bytes());
            seed.extend_from_slice(content);
        }
        seed
    };
    samples().iter().enumerate().map(seed).collect()
}

/// `u8` which sample, then a whole file in its place; read whole, in part, and from its middle.
pub(crate) fn file(input: &[u8]) {
    let Some((sample, file)) = take_sample(input) else { return };
    let file = Bytes::copy_from_slice(file);
    let entry = PartEntry { bytes: file.len() as u64, ..sample.entry.clone() };
    let whole = read_all(sample, &entry, file.clone(), &KeyRange::ALL, None);
    if whole.is_ok() {
        assert_eq!(whole.ok(), Some(sample.entry.rows), "rows are missing without an error");
    }
    let middle = sample.entry.row_groups.last().map(|group| group.first_key.clone());
    let range = KeyRange { start: middle.unwrap_or_default(), end: None };
    let _ = read_all(sample, &entry, file.clone(), &range, None);
    let all = KeyRange::ALL;
    let read = part_read(sample, &entry, &all, None);
    if let Ok(mut reader) = PartReader::open(file, &read)
        && reader.skip_rows(3).is_ok()
    {
        let _ = drain(sample, &mut reader);
    }
}

pub(crate) fn file_seeds() -> Vec<Vec<u8>> {
    let seed = |(which, sample): (usize, &Sample)| [&[which as u8], &sample.file[..]].concat();
    samples().iter().enumerate().map(seed).collect()
}

fn part_read<'a>(
    sample: &'a Sample,
    part: &'a PartEntry,
    range: &'a KeyRange,
    after: Option<&'a [u8]>,
) -> PartRead<'a> {
    let (schema, kind, wanted) = (&sample.schema, sample.kind, &sample.codec);
    PartRead { part, schema, kind, wanted, range, after }
}

fn read_all(
    sample: &Sample,
    entry: &PartEntry,
    file: Bytes,
    range: &KeyRange,
    after: Option<&[u8]>,
) -> Result<u64> {
    let mut reader = PartReader::open(file, &part_read(sample, entry, range, after))?;
    drain(sample, &mut reader)
}

/// Counts the rows; each of them is one.
fn drain(sample: &Sample, reader: &mut PartReader) -> Result<u64> {
    let mut batch = RowBatch::new();
    let mut rows = 0;
    while reader.next_batch(&mut batch)? {
        for row in batch.iter() {
            rows += 1;
            if row.op == ChangeOp::Delete {
                continue;
            }
            let values = sample.codec.decode(row.key, row.payload).expect("a row was believed");
            read_back(&sample.codec, &values);
        }
    }
    Ok(rows)
}
