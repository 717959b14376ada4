//! The two passes over the file: what it is, then its rows, sorted.
//!
//! [`survey`] reads all of it and knows its columns and their types; [`stage`]
//! reads it again as rows of a schema, sorted by key. Between them they refuse
//! whatever is wrong with a file, and touch no table.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::csv::infer::ColumnSurvey;
use crate::csv::{Reader, Record, Survey, parse_field};
use crate::database::sorter::{DoubleKey, RowSorter, SortedRows};
use crate::error::{Error, Kind, Result};
use crate::lmdb::KEY_BYTES_MAX;
use crate::row::key::decode_key_value;
use crate::row::{Row, RowCodec, Schema, Value};

/// A file whose every record was read and is well formed.
#[derive(Debug)]
pub(super) struct SurveyedFile {
    path: PathBuf,
    /// How messages name it.
    pub(super) shown: String,
    /// Column names, in order.
    pub(super) names: Vec<String>,
    /// What was seen in each column.
    pub(super) surveys: Vec<ColumnSurvey>,
    /// What was read, to notice that it is no longer the same.
    content: Fingerprint,
}

/// Length and hash of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    byte_count: u64,
    hash: u128,
}

/// Rows of a file, sorted by key, and where to cut them.
#[derive(Debug)]
pub(super) struct StagedFile {
    /// The rows.
    pub(super) rows: SortedRows,
    /// Keys at which the shards after the first begin, ascending.
    pub(super) splits: Vec<Vec<u8>>,
}

/// Reads the file once, from its header to its last record.
///
/// # Errors
/// [`Kind::Usage`] without a file that can be read, for what is no regular file and for
/// whatever [`Reader`] refuses, with file and line.
pub(super) fn survey(path: &Path) -> Result<SurveyedFile> {
    let shown = path.display().to_string();
    let mut reader = open(path, &shown)?;
    let mut survey = Survey::new(reader.header().len());
    let mut record = Record::new();
    while reader.read(&mut record)? {
        survey.observe(&record);
    }
    Ok(SurveyedFile {
        path: path.to_owned(),
        names: reader.header().to_vec(),
        surveys: survey.columns().to_vec(),
        content: reader.input().fingerprint(),
        shown,
    })
}

/// Reads the file again as rows under `schema`, whose columns are the file's in its order,
/// and sorts them, with scratch files in the folder `scratch`.
///
/// # Errors
/// [`Kind::Usage`], with file, line and column: a value that its column's type does not
/// take, a NULL in the key, a key that the database cannot store, two rows with one key
/// (both lines), a file that changed since it was surveyed.
pub(super) fn stage(
    file: &SurveyedFile,
    schema: &Schema,
    scratch: &Path,
    sort_bytes_max: u64,
    shards: u32,
) -> Result<StagedFile> {
    let codec = RowCodec::new(schema);
    let mut sorter = RowSorter::new(scratch, sort_bytes_max);
    let mut reader = open(&file.path, &file.shown)?;
    if reader.header() != file.names {
        return Err(changed(file));
    }
    let mut record = Record::new();
    while reader.read(&mut record)? {
        let at_line =
            |error: Error| error.context(format!("{}, line {}", file.shown, record.line()));
        let row = parse_row(schema, &record).map_err(at_line)?;
        sorter.push_with(
            record.line(),
            |out| put_key(&codec, &row, out).map_err(at_line),
            |out| codec.encode_payload(&row, out).map_err(at_line),
        )?;
    }
    if reader.input().fingerprint() != file.content {
        return Err(changed(file));
    }

    let mut cuts = cuts(sorter.row_count(), shards).into_iter().peekable();
    let mut splits = Vec::new();
    let sorted = sorter.finish(|position, key| {
        if cuts.next_if_eq(&position).is_some() {
            splits.push(key.to_vec());
        }
    })?;
    match sorted {
        Ok(rows) => Ok(StagedFile { rows, splits }),
        Err(double) => Err(doubled(file, schema, &double)),
    }
}

/// Positions of the first rows of all shards but the first, ascending: shards differ by
/// one row at most, and there is none without a row beside others.
fn cuts(row_count: u64, shards: u32) -> Vec<u64> {
    let shards = u64::from(shards).min(row_count).max(1);
    let (each, longer) = (row_count / shards, row_count % shards);
    (1..shards).map(|shard| shard * each + shard.min(longer)).collect()
}

fn parse_row(schema: &Schema, record: &Record) -> Result<Row> {
    let typed = record.fields().zip(&schema.columns);
    typed
        .map(|(field, column)| {
            parse_field(field, column.logical)
                .map_err(|error| error.context(format!("column `{}`", column.name)))
        })
        .collect()
}

fn put_key(codec: &RowCodec, row: &[Value], out: &mut Vec<u8>) -> Result<()> {
    let schema = codec.schema();
    let start = out.len();
    let null = |id| {
        let at = schema.columns.iter().position(|column| column.id == id);
        at.filter(|at| row[*at] == Value::Null)
    };
    if let Some(at) = schema.key.iter().find_map(|id| null(*id)) {
        let message = format!(
            "column `{}` is NULL (an empty field without quotes), expected a value: it is part of the key",
            schema.columns[at].name
        );
        return Err(Error::new(Kind::Usage, message));
    }
    codec.encode_key(row, out)?;
    let len = out.len() - start;
    if len > KEY_BYTES_MAX {
        let message = format!(
            "the key takes {len} bytes, the database takes {KEY_BYTES_MAX} at most; choose other key columns (now {})",
            key_names(schema)
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(())
}

fn doubled(file: &SurveyedFile, schema: &Schema, double: &DoubleKey) -> Error {
    let message = format!(
        "{}, lines {} and {} have the same key: {} = {}",
        file.shown,
        double.first,
        double.second,
        key_names(schema),
        key_text(schema, &double.key)
    );
    Error::new(Kind::Usage, message)
}

fn key_names(schema: &Schema) -> String {
    let names: Vec<&str> = schema.key_columns().map(|column| column.name.as_str()).collect();
    names.join(", ")
}

fn key_text(schema: &Schema, mut key: &[u8]) -> String {
    let values = schema.key_columns().map(|column| {
        let value = decode_key_value(column.logical, &mut key);
        value.map_or_else(|| "?".to_owned(), |value| format!("`{}`", value.to_text()))
    });
    values.collect::<Vec<String>>().join(", ")
}

fn changed(file: &SurveyedFile) -> Error {
    let message =
        format!("{} changed while it was read; load it again when nobody writes to it", file.shown);
    Error::new(Kind::Usage, message)
}

fn open(path: &Path, shown: &str) -> Result<Reader<Fingerprinting>> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_regular, file) = opened.map_err(|cause| match cause.kind() {
        // The request names the wrong file: no disk has to be emptied, no table is missing.
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory => {
            Error::with_source(Kind::Usage, format!("the file {shown} cannot be read"), cause)
        }
        _ => Error::io(format!("open {shown}"), cause),
    })?;
    if !is_regular {
        let message = format!("{shown} is no regular file; a load reads its file twice");
        return Err(Error::new(Kind::Usage, message));
    }
    Reader::open(Fingerprinting { file, byte_count: 0, hash: Xxh3::new() }, shown)
}

impl SurveyedFile {
    /// Length of the file.
    pub(super) fn byte_count(&self) -> u64 {
        self.content.byte_count
    }
}

/// A file that hashes what is read of it.
struct Fingerprinting {
    file: File,
    byte_count: u64,
    hash: Xxh3,
}

impl Fingerprinting {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { byte_count: self.byte_count, hash: self.hash.digest128() }
    }
}

impl Read for Fingerprinting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        self.byte_count += count as u64;
        self.hash.update(&out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{LogicalType, RowBatch, RowStream};

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            World { dir: tempfile::tempdir().unwrap() }
        }

        fn survey(&self, text: &str) -> Result<SurveyedFile> {
            let path = self.dir.path().join("t.csv");
            std::fs::write(&path, text).unwrap();
            survey(&path)
        }

        fn stage(
            &self,
            text: &str,
            types: &[(&str, LogicalType)],
            key: &[&str],
        ) -> Result<StagedFile> {
            let file = self.survey(text)?;
            let scratch = tempfile::tempdir().unwrap();
            stage(&file, &Schema::new(types, key).unwrap(), scratch.path(), 1 << 20, 3)
        }
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains(expected), "{error}");
    }

    const ID_N: [(&str, LogicalType); 2] = [("id", LogicalType::Int64), ("n", LogicalType::Int64)];

    #[test]
    fn rows_are_staged_in_key_order_and_cut_evenly() {
        let staged = World::new().stage("id,n\n9,1\n-3,2\n4,3\n5,\n", &ID_N, &["id"]).unwrap();
        let codec = RowCodec::new(&Schema::new(&ID_N, &["id"]).unwrap());
        let (mut batch, mut ids) = (RowBatch::new(), Vec::new());
        let mut stream = staged.rows.stream().unwrap();
        while stream.next_batch(&mut batch).unwrap() {
            for row in batch.iter() {
                ids.push(codec.decode(row.key, row.payload).unwrap()[0].to_text());
            }
        }
        assert_eq!(ids, ["-3", "4", "5", "9"]);
        let key = |id: i64| {
            let mut key = Vec::new();
            codec.encode_key_values(&[Value::Int64(id)], &mut key).unwrap();
            key
        };
        assert_eq!(staged.splits, [key(5), key(9)]);
    }

    #[test]
    fn shards_are_as_even_as_their_rows_allow() {
        assert_eq!(cuts(10, 4), [3, 6, 8]);
        assert_eq!(cuts(8, 4), [2, 4, 6]);
        assert_eq!(cuts(2, 4), [1]);
        assert_eq!(cuts(1, 4), [0u64; 0]);
        assert_eq!(cuts(0, 4), [0u64; 0]);
        for rows in 0..50 {
            for shards in 1..9 {
                let ends: Vec<u64> = cuts(rows, shards).into_iter().chain([rows]).collect();
                let sizes =
                    ends.iter().scan(0, |start, end| Some(end - std::mem::replace(start, *end)));
                let sizes: Vec<u64> = sizes.collect();
                assert!(
                    sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1,
                    "{sizes:?}"
                );
            }
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_with_line_and_column() {
        let staged = World::new().stage("id,n\n1,2\n2,x\n", &ID_N, &["id"]);
        refused(staged, "t.csv, line 3: column `n`: found `x`, expected a value of type int64");
    }

    #[test]
    fn two_rows_with_one_key_are_refused_with_both_lines() {
        let staged = World::new().stage("id,n\n7,1\n8,\"2\"\n7,3\n", &ID_N, &["id"]);
        refused(staged, "t.csv, lines 2 and 4 have the same key: id = `7`");
    }

    #[test]
    fn a_null_in_the_key_is_refused_with_its_line() {
        let staged = World::new().stage("id,n\n1,1\n2,\n", &ID_N, &["id", "n"]);
        refused(staged, "t.csv, line 3: column `n` is NULL");
    }

    #[test]
    fn a_key_longer_than_the_database_takes_is_refused_with_its_line() {
        let types = [("name", LogicalType::Text)];
        let fits = "x".repeat(KEY_BYTES_MAX - 2);
        assert!(World::new().stage(&format!("name\n{fits}\n"), &types, &["name"]).is_ok());
        let staged = World::new().stage(&format!("name\na\n{fits}x\n"), &types, &["name"]);
        refused(staged, "t.csv, line 3: the key takes 512 bytes, the database takes 511 at most");
    }

    #[test]
    fn a_file_that_changes_between_the_passes_is_refused() {
        let world = World::new();
        let schema = Schema::new(&ID_N, &["id"]).unwrap();
        for changed in ["id,n\n1,3\n", "id,m\n1,2\n", "id,n\n1,2\n3,4\n", "id,n\n"] {
            let file = world.survey("id,n\n1,2\n").unwrap();
            std::fs::write(world.dir.path().join("t.csv"), changed).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let staged = stage(&file, &schema, scratch.path(), 1 << 20, 1);
            refused(staged, "t.csv changed while it was read");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let world = World::new();
        refused(survey(world.dir.path()), "no regular file");
        let missing = survey(&world.dir.path().join("no.csv")).unwrap_err();
        assert_eq!(missing.kind(), Kind::Usage);
    }
}
