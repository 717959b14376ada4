//! Backups and verifications beside encoding and decoding alone.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tidemark::backup::BackupChoice;
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::RestorePoint;
use tidemark::collection::check::Level;
use tidemark::collection::part::{PartKind, PartOptions, PartRead, PartReader, PartWriter};
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::TableId;
use tidemark::restore::Room;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::row::{KeyRange, RowBatch, RowCodec, RowStream};
use tidemark::verify::{VerifyOptions, VerifyRequest, begin_verify};

use crate::Size;
use crate::data::{self, Chain, THREADS};
use crate::machine::settle;
use crate::raw::on_threads;
use crate::report::{Clock, Goal, Report, Spent, Turn};

pub(crate) fn measure(chain: &Chain, folder: &Path, size: &Size, report: &mut Report) {
    let ranges = data::shard_ranges(size.rows);
    let batches = |batch: &RowBatch| batch.byte_count() >= 512 << 10;
    let whole = data::collection(&chain.whole);
    let decoded = data::decode(&whole, 0, &ranges, batches);
    let files = part_files(&chain.whole);
    let arrow = arrow_batches(&files);

    let mut turns: [Vec<Turn>; 6] = Default::default();
    for _ in 0..size.runs {
        let encoding = encode(&decoded);
        let arrow_encoding = encode_arrow(&arrow);
        let (backup, writing) = backup(chain, &folder.join("collection"));
        turns[0].push(Turn { ours: backup, reference: encoding });
        turns[1].push(Turn { ours: backup, reference: arrow_encoding });
        turns[2].push(Turn { ours: writing, reference: encoding });

        let decoding = decode(chain);
        let arrow_decoding = decode_arrow(&files);
        let verifying = verify(chain, &folder.join("state"));
        turns[3].push(Turn { ours: verifying, reference: decoding });
        turns[4].push(Turn { ours: verifying, reference: arrow_decoding });
        turns[5].push(Turn { ours: decoding, reference: arrow_decoding });
    }
    let ours = "encoding alone, our writer";
    let crates = "encoding alone, the parquet crate";
    report.rate("full backup", ours, &turns[0], Goal::AtLeast(0.7));
    report.rate("full backup", crates, &turns[1], Goal::None);
    report.rate("  its parts alone, without reading them back", ours, &turns[2], Goal::None);
    let ours = "decoding alone, our reader";
    let crates = "decoding alone, the parquet crate";
    report.rate("verification at level rows", ours, &turns[3], Goal::AtLeast(0.7));
    report.rate("verification at level rows", crates, &turns[4], Goal::None);
    report.rate("our reader", crates, &turns[5], Goal::None);
}

/// A full backup into a new collection, which is removed again: all of it, and its parts.
fn backup(chain: &Chain, path: &Path) -> (Spent, Spent) {
    let collection = data::collection(path);
    settle();
    let begun = Clock::start();
    let parts = data::backup(&chain.source, &collection, BackupChoice::Full);
    let whole = begun.spent();
    fs::remove_dir_all(path).unwrap();
    (whole, parts)
}

fn verify(chain: &Chain, state: &Path) -> Spent {
    let catalog = LmdbCatalog::open_or_create(state, data::env()).unwrap();
    let room = Room {
        window: THREADS,
        memory_bytes: MEMORY_BYTES_DEFAULT,
        scratch: state.join("scratch"),
    };
    let request = VerifyRequest {
        collection: data::collection(&chain.whole),
        collection_shown: "collection",
        options: &VerifyOptions { level: Level::Rows, at: None },
        room: &room,
    };
    settle();
    let begun = Clock::start();
    let verify = begin_verify(&catalog, &request, &SystemEnv).unwrap();
    let stop = Stop::default();
    let ended =
        run(&catalog, &verify.job, verify.id, Intent::CarryOn, &SystemEnv, &stop, &mut Unobserved);
    let whole = begun.spent();
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
    whole
}

/// Rows in memory to Parquet that nobody keeps, by the writer that backups use.
fn encode(decoded: &data::Decoded) -> Spent {
    settle();
    let begun = Clock::start();
    on_threads(&decoded.shards, |_, batches| {
        let options = PartOptions::new(TableId(7));
        let schema = &decoded.schema;
        let mut writer = PartWriter::new(io::sink(), schema, PartKind::Full, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
    });
    begun.spent()
}

/// The same columns, as Arrow arrays, by the parquet crate with zstd at level 1.
fn encode_arrow(files: &[Vec<RecordBatch>]) -> Spent {
    settle();
    let begun = Clock::start();
    on_threads(files, |_, batches| {
        let zstd = Compression::ZSTD(ZstdLevel::try_new(1).unwrap());
        let properties = WriterProperties::builder()
            .set_compression(zstd)
            .set_dictionary_enabled(false)
            .set_max_row_group_row_count(Some(1 << 16))
            .build();
        let schema = batches[0].schema();
        let mut writer = ArrowWriter::try_new(io::sink(), schema, Some(properties)).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.close().unwrap();
    });
    begun.spent()
}

/// Parts to key and payload bytes, by the reader that restores use.
fn decode(chain: &Chain) -> Spent {
    let collection = data::collection(&chain.whole);
    let found = collection.chain(&RestorePoint::parse("latest").unwrap()).unwrap();
    let tables = found.tables(&[]).unwrap();
    let link = &tables[0].links[0];
    let codec = RowCodec::new(&link.entry.schema);
    settle();
    let begun = Clock::start();
    on_threads(&link.entry.parts, |_, part| {
        let read = PartRead {
            part,
            schema: &link.entry.schema,
            kind: PartKind::Full,
            wanted: &codec,
            range: &KeyRange::ALL,
            after: None,
        };
        let object = collection.open_part(link.directory, part).unwrap();
        let mut reader = PartReader::open(object, &read).unwrap();
        let mut batch = RowBatch::new();
        while reader.next_batch(&mut batch).unwrap() {}
    });
    begun.spent()
}

/// Parts to Arrow arrays that nobody keeps, by the parquet crate.
fn decode_arrow(files: &[std::path::PathBuf]) -> Spent {
    settle();
    let begun = Clock::start();
    on_threads(files, |_, path| {
        let file = Arc::new(fs::File::open(path).unwrap());
        let builder = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
        let reader = builder.with_batch_size(4096).build().unwrap();
        reader.for_each(|batch| drop(batch.unwrap()));
    });
    begun.spent()
}

fn part_files(collection: &Path) -> Vec<std::path::PathBuf> {
    let collection_of = data::collection(collection);
    let found = collection_of.chain(&RestorePoint::parse("latest").unwrap()).unwrap();
    let tables = found.tables(&[]).unwrap();
    let link = &tables[0].links[0];
    link.entry.parts.iter().map(|part| collection.join(link.part_path(part))).collect()
}

fn arrow_batches(files: &[std::path::PathBuf]) -> Vec<Vec<RecordBatch>> {
    let read = |path: &std::path::PathBuf| {
        let file = fs::File::open(path).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        builder.with_batch_size(4096).build().unwrap().map(|batch| batch.unwrap()).collect()
    };
    files.iter().map(read).collect()
}
