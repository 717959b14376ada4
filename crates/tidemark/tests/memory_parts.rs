//! Memory of part writers, readers and folds, counted by the allocator.
//!
//! One test, since the counter is the whole process's. What zstd allocates for its
//! contexts is C's and not counted: one of each kind per thread, see `collection::part`.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![expect(clippy::print_stdout, reason = "figures for people who look for them")]

mod counting;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use counting::{Counting, allocations_of, peak_of};
use tidemark::collection::fold::{Fold, FoldMode, FoldOptions};
use tidemark::collection::manifest::PartEntry;
use tidemark::collection::part::{PartKind, PartOptions, PartRead, PartReader, PartWriter};
use tidemark::collection::run::{part_memory_bytes, run_writer_memory_bytes, write_run};
use tidemark::ids::{ColumnId, TableId};
use tidemark::row::payload::{begin, put_unchanged, put_value};
use tidemark::row::{
    ChangeOp, KeyRange, LogicalType, RowBatch, RowCodec, RowRef, RowStream, Schema, Value,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DIGEST_ID: TableId = TableId(5);

/// A mebibyte of text that no codec makes smaller than six bits a character; longer than
/// the window in which zstd looks for repetitions.
fn noise() -> String {
    let mut seed = 1u64;
    let mut text = String::with_capacity(MIB as usize);
    while text.len() < MIB as usize {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Eight characters of the upper bits; the lower ones of such a generator are poor.
        text.extend((16..64).step_by(6).map(|shift| char::from(b'0' + (seed >> shift) as u8 % 64)));
    }
    text
}

/// Text columns behind an integer key.
struct Table {
    schema: Schema,
    codec: RowCodec,
    noise: String,
    noise_at: usize,
}

impl Table {
    fn new(text_columns: u32) -> Table {
        let names: Vec<String> = (0..text_columns).map(|at| format!("column_{at}")).collect();
        let columns: Vec<(&str, LogicalType)> = std::iter::once(("id", LogicalType::Int64))
            .chain(names.iter().map(|name| (&**name, LogicalType::Text)))
            .collect();
        let schema = Schema::new(&columns, &["id"]).unwrap();
        Table { codec: RowCodec::new(&schema), schema, noise: noise(), noise_at: 0 }
    }

    fn text(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len);
        while text.len() < len {
            let piece = &self.noise[self.noise_at..];
            let piece = &piece[..piece.len().min(len - text.len())];
            self.noise_at = (self.noise_at + piece.len()) % self.noise.len();
            text.push_str(piece);
        }
        text
    }

    fn put(&mut self, id: i64, value_bytes: u64, batch: &mut RowBatch) {
        let mut row = vec![Value::Int64(id)];
        for _ in 1..self.schema.columns.len() {
            row.push(Value::Text(self.text(value_bytes as usize)));
        }
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        self.codec.encode_key(&row, &mut key).unwrap();
        self.codec.encode_payload(&row, &mut payload).unwrap();
        batch.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
    }

    fn write(
        &mut self,
        kind: PartKind,
        ids: impl Iterator<Item = i64>,
        value_bytes: u64,
        out: impl Write + Send,
    ) -> PartEntry {
        let options = PartOptions::new(DIGEST_ID);
        let mut writer = PartWriter::new(out, &self.schema, kind, options).unwrap();
        let mut batch = RowBatch::new();
        for id in ids {
            batch.clear();
            self.put(id, value_bytes, &mut batch);
            writer.write(&batch).unwrap();
        }
        writer.finish().unwrap().1.into_entry("part".to_owned())
    }

    fn open(&self, part: &PartEntry, kind: PartKind, path: &Path) -> PartReader {
        let read = PartRead {
            part,
            schema: &self.schema,
            kind,
            wanted: &self.codec,
            range: &KeyRange::ALL,
            after: None,
        };
        PartReader::open(std::fs::File::open(path).unwrap(), &read).unwrap()
    }
}

fn create(path: &Path) -> impl Write + Send + use<> {
    io::BufWriter::new(std::fs::File::create(path).unwrap())
}

fn drain(stream: &mut dyn RowStream) -> u64 {
    let mut batch = RowBatch::new();
    let mut rows = 0;
    while stream.next_batch(&mut batch).unwrap() {
        rows += batch.len() as u64;
    }
    rows
}

#[test]
fn memory_stays_within_what_is_promised() {
    a_writer_holds_a_row_group_and_its_pages();
    readers_stay_within_their_estimate();
    a_value_of_64_mib_costs_a_small_multiple();
    a_fold_and_a_merge_cost_what_their_links_do();
    a_fold_asks_for_memory_by_the_page_and_not_by_the_row();
}

fn a_writer_holds_a_row_group_and_its_pages() {
    let mut table = Table::new(10);
    let (part, peak) = peak_of(|| table.write(PartKind::Full, 0..40_000, 100, io::sink()));
    assert!(part.bytes > 24 * MIB, "{}", part.bytes);
    println!("writer of 10 columns: peak {} KiB", peak / KIB);
    // 8 MiB of finished pages, their vectors' doubling, ten open pages of 256 KiB.
    assert!(peak < 24 * MIB, "{} KiB", peak / KIB);
}

fn readers_stay_within_their_estimate() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("part");
    for (kind, width, rows, value_bytes) in [
        (PartKind::Increment, 100, 10_000, 10),
        (PartKind::Increment, 100, 100, 10),
        (PartKind::Increment, 100, 2, 10),
        (PartKind::Increment, 5, 30_000, 30),
        (PartKind::Increment, 5, 1_000, 30),
        (PartKind::Increment, 1, 40, 300_000),
        (PartKind::Full, 5, 30_000, 100),
        (PartKind::Full, 100, 10_000, 30),
    ] {
        let mut table = Table::new(width);
        let part = table.write(kind, 0..rows, value_bytes, create(&path));
        let estimate = part_memory_bytes(&part, width + 1, kind);
        let (read, peak) = peak_of(|| drain(&mut table.open(&part, kind, &path)));
        assert_eq!(read, rows as u64);
        let told = format!(
            "{kind:?}, {width} columns, {rows} rows: peak {} KiB, estimate {} KiB",
            peak / KIB,
            estimate / KIB
        );
        println!("{told}");
        assert!(peak <= estimate, "{told}");
        // An estimate far off would make runs that nobody needs.
        assert!(estimate <= 4 * peak + 64 * KIB, "{told}");
    }
}

fn a_value_of_64_mib_costs_a_small_multiple() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("part");
    let mut table = Table::new(1);
    let mut batches = [RowBatch::new(), RowBatch::new(), RowBatch::new()];
    (0..500).for_each(|id| table.put(id, 100, &mut batches[0]));
    table.put(500, 64 * MIB, &mut batches[1]);
    (501..1000).for_each(|id| table.put(id, 100, &mut batches[2]));

    let (part, peak) = peak_of(|| {
        let options = PartOptions::new(DIGEST_ID);
        let kind = PartKind::Increment;
        let mut writer = PartWriter::new(create(&path), &table.schema, kind, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap().1.into_entry("part".to_owned())
    });
    println!("64 MiB value: the writer takes {} MiB", peak / MIB);
    // The page, its compressed form, and the digest's copy of the row.
    assert!(peak <= 3 * 64 * MIB + 8 * MIB, "{} MiB", peak / MIB);

    let (rows, peak) = peak_of(|| drain(&mut table.open(&part, PartKind::Increment, &path)));
    assert_eq!(rows, 1000);
    println!("64 MiB value: the reader takes {} MiB", peak / MIB);
    assert!(peak <= part_memory_bytes(&part, 2, PartKind::Increment), "{} MiB", peak / MIB);
    assert!(peak <= 3 * 64 * MIB + 8 * MIB, "{} MiB", peak / MIB);
}

fn a_fold_and_a_merge_cost_what_their_links_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut table = Table::new(100);
    let kind = PartKind::Increment;
    let links: Vec<(PathBuf, PartEntry)> = (0..12)
        .map(|link| {
            let path = directory.path().join(format!("part-{link}"));
            let ids = (0..1_500).map(|n| n * 12 + link);
            let part = table.write(kind, ids, 10, create(&path));
            (path, part)
        })
        .collect();
    let estimate: u64 = links.iter().map(|(_, part)| part_memory_bytes(part, 101, kind)).sum();
    let open = || -> Vec<Box<dyn RowStream>> {
        let open = |(path, part): &(PathBuf, PartEntry)| -> Box<dyn RowStream> {
            Box::new(table.open(part, kind, path))
        };
        links.iter().map(open).collect()
    };
    let options = FoldOptions::new(FoldMode::ToFull);
    let batch_bytes = 2 * options.bytes_max;
    let (rows, peak) = peak_of(|| drain(&mut Fold::new(open(), options)));
    assert_eq!(rows, 18_000);
    println!("12 links of 100 columns: peak {} KiB, estimate {} KiB", peak / KIB, estimate / KIB);
    assert!(peak <= estimate + batch_bytes);

    let writer_bytes = run_writer_memory_bytes(101, links[0].1.row_bytes_max);
    let path = directory.path().join("run");
    let (run, peak) =
        peak_of(|| write_run(open(), &table.schema, DIGEST_ID, &path, &mut |_| Ok(())).unwrap());
    assert_eq!(run.part.unwrap().rows, 18_000);
    println!("merging them: peak {} KiB, writer's estimate {} KiB", peak / KIB, writer_bytes / KIB);
    assert!(peak <= estimate + writer_bytes);
}

/// A full below an increment that replaces every fifth row, changes every fifth in part and
/// deletes every fifth: each way that a row takes through readers and fold.
fn a_fold_asks_for_memory_by_the_page_and_not_by_the_row() {
    const ROWS: i64 = 40_000;
    let directory = tempfile::tempdir().unwrap();
    let mut table = Table::new(2);
    let (full, increment) = (directory.path().join("full"), directory.path().join("increment"));
    let whole = table.write(PartKind::Full, 0..ROWS, 30, create(&full));
    let options = PartOptions::new(DIGEST_ID);
    let kind = PartKind::Increment;
    let mut writer = PartWriter::new(create(&increment), &table.schema, kind, options).unwrap();
    for id in 0..ROWS {
        let mut row = RowBatch::new();
        table.put(id, 30, &mut row);
        let key = row.row(0).key;
        let mut changed = RowBatch::new();
        match id % 5 {
            0 => changed.push(row.row(0)),
            1 => {
                let mut payload = Vec::new();
                begin(&mut payload);
                put_unchanged(ColumnId(2), &mut payload);
                put_value(ColumnId(3), &Value::Text("changed".to_owned()), &mut payload);
                changed.push(RowRef { key, op: ChangeOp::Update, payload: &payload });
            }
            2 => changed.push(RowRef { key, op: ChangeOp::Delete, payload: &[] }),
            _ => {}
        }
        writer.write(&changed).unwrap();
    }
    let changes = writer.finish().unwrap().1.into_entry("part".to_owned());

    let open = |part, kind, path| Box::new(table.open(part, kind, path)) as Box<dyn RowStream>;
    let links =
        vec![open(&whole, PartKind::Full, &full), open(&changes, PartKind::Increment, &increment)];
    let mut fold = Fold::new(links, FoldOptions::new(FoldMode::ToFull));
    let (rows, allocations) = allocations_of(|| drain(&mut fold));
    assert_eq!(rows, ROWS as u64 / 5 * 4);
    println!("a fold of {rows} rows asks for memory {allocations} times");
    assert!(allocations <= 1_000, "{allocations} times for {rows} rows");
}
