//! Sorts rows by key in bounded memory: the external sort behind every load and every source
//! whose own order is another.
//!
//! Rows are collected in one buffer; when it is full it is sorted and becomes a
//! *run*, a scratch file. Once [`RUNS_PER_LEVEL`] runs of a level are there, they
//! become one run of the next, so that few files are ever open. Rows that fit in
//! the buffer never touch the disk. Every row carries its *origin*, the line of
//! the file it came from, so that two rows with one key can both be named.
//!
//! A run is rows one after another, in ascending key, then origin:
//!
//! | bytes | |
//! |---|---|
//! | 8, 4, 8 | origin, key length, payload length, little-endian |
//! | n, m | key, payload |
//!
//! Scratch files are read by the process that wrote them and by nobody else; what
//! a crash leaves is removed with the folder.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::row::{ChangeOp, RowBatch, RowRef, RowStream};

/// Memory for rows that wait to be sorted, in bytes.
///
/// A quarter of the budget of 256 MiB: the rest is for the merge and for LMDB.
pub(crate) const SORT_BYTES_MAX: u64 = 64 << 20;

/// Runs of one level that are merged into one of the next.
///
/// With buffers of [`READ_BYTES`] a merge holds 16 MiB.
const RUNS_PER_LEVEL: usize = 64;
const READ_BYTES: usize = 256 << 10;

/// Rows and bytes after which a batch of the sorted stream is handed out.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: u64 = 1 << 20;

const HEADER_LEN: usize = 20;
/// What a waiting row costs beside its bytes.
const ENTRY_BYTES: u64 = std::mem::size_of::<Entry>() as u64;

/// Collects rows in any order; [`finish`](RowSorter::finish) gives them sorted.
#[derive(Debug)]
pub(crate) struct RowSorter {
    scratch: PathBuf,
    bytes_max: u64,
    waiting: Waiting,
    /// Runs by level; a run of level n holds the rows of 64^n buffers.
    levels: Vec<Vec<PathBuf>>,
    runs_made: u64,
    row_count: u64,
}

/// Rows in one buffer.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    origin: u64,
    payload_len: u64,
    key_len: u32,
}

/// Rows sorted by key, then origin; read as often as needed.
#[derive(Debug)]
pub(crate) struct SortedRows {
    waiting: Waiting,
    runs: Vec<PathBuf>,
    row_count: u64,
}

/// Two rows with the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DoubleKey {
    /// Their key.
    pub(crate) key: Vec<u8>,
    /// Origin of the earlier one.
    pub(crate) first: u64,
    /// Origin of the later one.
    pub(crate) second: u64,
}

impl RowSorter {
    /// A sorter with its runs in the folder `scratch`, which exists and is its own.
    pub(crate) fn new(scratch: &Path, bytes_max: u64) -> RowSorter {
        RowSorter {
            scratch: scratch.to_owned(),
            bytes_max,
            waiting: Waiting::default(),
            levels: Vec::new(),
            runs_made: 0,
            row_count: 0,
        }
    }

    /// Adds a row that `write_key` and `write_payload` append in place.
    ///
    /// # Errors
    /// Theirs, and those of writing a run; the sorter is spent then.
    pub(crate) fn push_with(
        &mut self,
        origin: u64,
        write_key: impl FnOnce(&mut Vec<u8>) -> Result<()>,
        write_payload: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let waiting = &mut self.waiting;
        let start = waiting.bytes.len();
        write_key(&mut waiting.bytes)?;
        let key_end = waiting.bytes.len();
        write_payload(&mut waiting.bytes)?;
        let end = waiting.bytes.len();
        waiting.entries.push(Entry {
            start: start as u64,
            origin,
            payload_len: (end - key_end) as u64,
            key_len: u32::try_from(key_end - start).expect("keys are bounded: checked in push"),
        });
        self.row_count += 1;
        if waiting.cost() > self.bytes_max {
            self.spill()?;
        }
        Ok(())
    }

    /// Rows so far.
    pub(crate) fn row_count(&self) -> u64 {
        self.row_count
    }

    /// Sorts what is left, and makes sure that every key is there once.
    ///
    /// `on_row` sees every row, in order, with its 0-based position.
    pub(crate) fn finish(
        self,
        mut on_row: impl FnMut(u64, &[u8]),
    ) -> Result<Result<SortedRows, DoubleKey>> {
        let sorted = self.finish_all()?;
        let double = sorted.find_double(&mut on_row)?;
        Ok(double.map_or(Ok(sorted), Err))
    }

    /// Sorts what is left; rows with one key follow one another by origin.
    pub(crate) fn finish_all(mut self) -> Result<SortedRows> {
        self.waiting.sort();
        if !self.levels.is_empty() {
            self.spill()?;
            let mut level = 0;
            while self.levels.iter().map(Vec::len).sum::<usize>() > RUNS_PER_LEVEL {
                self.merge_level(level)?;
                level += 1;
            }
        }
        let runs = self.levels.into_iter().flatten().collect();
        Ok(SortedRows { waiting: self.waiting, runs, row_count: self.row_count })
    }

    fn spill(&mut self) -> Result<()> {
        if self.waiting.entries.is_empty() {
            return Ok(());
        }
        self.waiting.sort();
        let path = self.next_run();
        let mut run = RunWriter::create(&path)?;
        for entry in &self.waiting.entries {
            let (key, payload) = self.waiting.row(entry);
            run.push(entry.origin, key, payload)?;
        }
        run.finish()?;
        self.waiting.clear();
        self.add_run(0, path);
        let mut level = 0;
        while self.levels[level].len() >= RUNS_PER_LEVEL {
            self.merge_level(level)?;
            level += 1;
        }
        Ok(())
    }

    /// Merges the runs of a level into one of the next.
    fn merge_level(&mut self, level: usize) -> Result<()> {
        let runs = std::mem::take(&mut self.levels[level]);
        let path = self.next_run();
        let mut run = RunWriter::create(&path)?;
        let mut merge = Merge::open(&runs)?;
        while let Some(row) = merge.next()? {
            run.push(row.origin, &row.key, &row.payload)?;
        }
        run.finish()?;
        for run in &runs {
            std::fs::remove_file(run).map_err(|cause| scratch_error("remove", run, cause))?;
        }
        self.add_run(level + 1, path);
        Ok(())
    }

    fn add_run(&mut self, level: usize, path: PathBuf) {
        if self.levels.len() <= level {
            self.levels.resize(level + 1, Vec::new());
        }
        self.levels[level].push(path);
    }

    fn next_run(&mut self) -> PathBuf {
        self.runs_made += 1;
        self.scratch.join(format!("run-{:06}", self.runs_made))
    }
}

impl Waiting {
    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + self.entries.len() as u64 * ENTRY_BYTES
    }

    fn row(&self, entry: &Entry) -> (&[u8], &[u8]) {
        let row = &self.bytes[entry.start as usize..];
        row[..entry.key_len as usize + entry.payload_len as usize].split_at(entry.key_len as usize)
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |entry: &Entry| {
            let start = entry.start as usize;
            &bytes[start..start + entry.key_len as usize]
        };
        self.entries.sort_unstable_by(|a, b| key(a).cmp(key(b)).then(a.origin.cmp(&b.origin)));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}

impl SortedRows {
    /// Number of rows.
    pub(crate) fn row_count(&self) -> u64 {
        self.row_count
    }

    /// The rows from the first key on, all upserts; for rows whose keys are there once.
    ///
    /// # Errors
    /// Those of opening a run.
    pub(crate) fn stream(&self) -> Result<SortedStream<'_>> {
        Ok(SortedStream { rows: self.rows()? })
    }

    /// The rows with their origins.
    ///
    /// # Errors
    /// Those of opening a run.
    pub(crate) fn rows(&self) -> Result<Rows<'_>> {
        Ok(Rows(if self.runs.is_empty() {
            RowsFrom::Waiting { waiting: &self.waiting, at: 0 }
        } else {
            RowsFrom::Runs(Merge::open(&self.runs)?)
        }))
    }

    fn find_double(&self, on_row: &mut impl FnMut(u64, &[u8])) -> Result<Option<DoubleKey>> {
        let mut rows = self.rows()?;
        let mut last: Option<(Vec<u8>, u64)> = None;
        let mut position = 0;
        let mut double = None;
        while double.is_none()
            && rows.next(|origin, key, _| {
                match &mut last {
                    Some((last_key, first)) if *last_key == key => {
                        double =
                            Some(DoubleKey { key: key.to_vec(), first: *first, second: origin });
                    }
                    Some((last_key, first)) => {
                        last_key.clear();
                        last_key.extend_from_slice(key);
                        *first = origin;
                    }
                    None => last = Some((key.to_vec(), origin)),
                }
                on_row(position, key);
                position += 1;
            })?
        {}
        Ok(double)
    }
}

/// The rows of [`SortedRows`], a batch at a time.
#[derive(Debug)]
pub(crate) struct SortedStream<'a> {
    rows: Rows<'a>,
}

impl RowStream for SortedStream<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        while batch.len() < BATCH_ROWS
            && batch.byte_count() < BATCH_BYTES
            && self.rows.next(|_, key, payload| {
                batch.push(RowRef { key, op: ChangeOp::Upsert, payload });
            })?
        {}
        Ok(!batch.is_empty())
    }
}

/// Sorted rows, from memory or from runs.
#[derive(Debug)]
pub(crate) struct Rows<'a>(RowsFrom<'a>);

#[derive(Debug)]
enum RowsFrom<'a> {
    Waiting { waiting: &'a Waiting, at: usize },
    Runs(Merge),
}

impl Rows<'_> {
    /// Shows the next row as origin, key and payload; `false` at the end.
    pub(crate) fn next(&mut self, mut show: impl FnMut(u64, &[u8], &[u8])) -> Result<bool> {
        match &mut self.0 {
            RowsFrom::Waiting { waiting, at } => {
                let Some(entry) = waiting.entries.get(*at) else { return Ok(false) };
                *at += 1;
                let (key, payload) = waiting.row(entry);
                show(entry.origin, key, payload);
                Ok(true)
            }
            RowsFrom::Runs(merge) => {
                let Some(row) = merge.next()? else { return Ok(false) };
                show(row.origin, &row.key, &row.payload);
                Ok(true)
            }
        }
    }
}

/// One row of a run. The order of the fields is the order of the merge.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct RunRow {
    key: Vec<u8>,
    origin: u64,
    payload: Vec<u8>,
}

/// Merges runs by key, then origin.
#[derive(Debug)]
struct Merge {
    runs: Vec<RunReader>,
    /// The next row of every run that is not at its end, and which run that is.
    heads: BinaryHeap<Reverse<(RunRow, usize)>>,
    /// The row that was shown last; its memory serves the next one of its run.
    shown: Option<(RunRow, usize)>,
}

impl Merge {
    fn open(runs: &[PathBuf]) -> Result<Merge> {
        let mut runs =
            runs.iter().map(|path| RunReader::open(path)).collect::<Result<Vec<RunReader>>>()?;
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (at, run) in runs.iter_mut().enumerate() {
            let mut row = RunRow::default();
            if run.read(&mut row)? {
                heads.push(Reverse((row, at)));
            }
        }
        Ok(Merge { runs, heads, shown: None })
    }

    fn next(&mut self) -> Result<Option<&RunRow>> {
        if let Some((mut row, at)) = self.shown.take()
            && self.runs[at].read(&mut row)?
        {
            self.heads.push(Reverse((row, at)));
        }
        self.shown = self.heads.pop().map(|Reverse(head)| head);
        Ok(self.shown.as_ref().map(|(row, _)| row))
    }
}

#[derive(Debug)]
struct RunWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl RunWriter {
    fn create(path: &Path) -> Result<RunWriter> {
        let file = File::create_new(path).map_err(|cause| scratch_error("create", path, cause))?;
        let file = BufWriter::with_capacity(READ_BYTES, file);
        Ok(RunWriter { path: path.to_owned(), file })
    }

    fn push(&mut self, origin: u64, key: &[u8], payload: &[u8]) -> Result<()> {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&origin.to_le_bytes());
        header[8..12].copy_from_slice(&(key.len() as u32).to_le_bytes());
        header[12..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        let pieces = [&header[..], key, payload];
        let mut written = pieces.into_iter().map(|piece| self.file.write_all(piece));
        written
            .try_for_each(|result| result)
            .map_err(|cause| scratch_error("write", &self.path, cause))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|cause| scratch_error("write", &self.path, cause))
    }
}

#[derive(Debug)]
struct RunReader {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes of the file that were not read yet.
    left: u64,
}

impl RunReader {
    fn open(path: &Path) -> Result<RunReader> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (left, file) = opened.map_err(|cause| scratch_error("open", path, cause))?;
        Ok(RunReader {
            path: path.to_owned(),
            file: BufReader::with_capacity(READ_BYTES, file),
            left,
        })
    }

    /// Replaces `row` by the next one; `false` at the end.
    fn read(&mut self, row: &mut RunRow) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let mut header = [0; HEADER_LEN];
        self.take(HEADER_LEN as u64, |file| file.read_exact(&mut header))?;
        let (origin, lengths) = header.split_at(8);
        let (key_len, payload_len) = lengths.split_at(4);
        row.origin = u64::from_le_bytes(origin.try_into().expect("8 bytes"));
        let key_len = u64::from(u32::from_le_bytes(key_len.try_into().expect("4 bytes")));
        let payload_len = u64::from_le_bytes(payload_len.try_into().expect("8 bytes"));
        for (bytes, len) in [(&mut row.key, key_len), (&mut row.payload, payload_len)] {
            self.take(len, |file| {
                bytes.resize(len as usize, 0);
                file.read_exact(bytes)
            })?;
        }
        Ok(true)
    }

    /// Reads `len` bytes, unless the file says of itself that it has no more.
    fn take(
        &mut self,
        len: u64,
        read: impl FnOnce(&mut BufReader<File>) -> std::io::Result<()>,
    ) -> Result<()> {
        self.left = self.left.checked_sub(len).ok_or_else(|| {
            let message = format!("scratch run {} is truncated or malformed", self.path.display());
            Error::new(Kind::Fatal, message)
        })?;
        read(&mut self.file).map_err(|cause| scratch_error("read", &self.path, cause))
    }
}

fn scratch_error(what: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::io(format!("{what} scratch run {}", path.display()), cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn push(sorter: &mut RowSorter, origin: u64, key: &[u8], payload: &[u8]) {
        let append = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        sorter.push_with(origin, |out| append(key, out), |out| append(payload, out)).unwrap();
    }

    fn drain(sorted: &SortedRows) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut batch, mut rows) = (RowBatch::new(), Vec::new());
        let mut stream = sorted.stream().unwrap();
        while stream.next_batch(&mut batch).unwrap() {
            rows.extend(batch.iter().map(|row| (row.key.to_vec(), row.payload.to_vec())));
        }
        rows
    }

    #[test]
    fn rows_that_fit_in_memory_leave_no_file() {
        let scratch = tempfile::tempdir().unwrap();
        let mut sorter = RowSorter::new(scratch.path(), SORT_BYTES_MAX);
        push(&mut sorter, 2, b"b", b"2");
        push(&mut sorter, 3, b"a", b"1");
        let sorted = sorter.finish(|_, _| {}).unwrap().unwrap();
        let row = |key: &[u8], payload: &[u8]| (key.to_vec(), payload.to_vec());
        assert_eq!(drain(&sorted), [row(b"a", b"1"), row(b"b", b"2")]);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert_eq!(sorted.row_count(), 2);
    }

    #[test]
    fn more_runs_than_a_level_holds_are_merged_and_few_files_stay() {
        let scratch = tempfile::tempdir().unwrap();
        let mut sorter = RowSorter::new(scratch.path(), 1);
        let count = (RUNS_PER_LEVEL * RUNS_PER_LEVEL + RUNS_PER_LEVEL + 7) as u32;
        for at in 0..count {
            let key = at.wrapping_mul(2_654_435_761).to_be_bytes();
            push(&mut sorter, u64::from(at), &key, &at.to_be_bytes());
        }
        let mut seen = Vec::new();
        let sorted = sorter
            .finish(|position, key| {
                assert_eq!(position, seen.len() as u64);
                seen.push(key.to_vec());
            })
            .unwrap()
            .unwrap();
        let keys: Vec<Vec<u8>> = drain(&sorted).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), count as usize);
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert_eq!(keys, seen);
        assert!(std::fs::read_dir(scratch.path()).unwrap().count() <= RUNS_PER_LEVEL);
    }

    #[test]
    fn a_double_key_is_found_across_runs_with_both_origins() {
        for bytes_max in [1, 40, SORT_BYTES_MAX] {
            let scratch = tempfile::tempdir().unwrap();
            let mut sorter = RowSorter::new(scratch.path(), bytes_max);
            for (origin, key) in [(9, b"x"), (2, b"b"), (3, b"a"), (4, b"x"), (5, b"c"), (6, b"x")]
            {
                push(&mut sorter, origin, key, b"");
            }
            let double = sorter.finish(|_, _| {}).unwrap().unwrap_err();
            assert_eq!(double, DoubleKey { key: b"x".to_vec(), first: 4, second: 6 });
        }
    }

    #[test]
    fn every_truncated_run_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run");
        let mut run = RunWriter::create(&path).unwrap();
        run.push(1, b"key", b"payload").unwrap();
        run.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for len in 1..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let read = RunReader::open(&path).unwrap().read(&mut RunRow::default());
            assert_eq!(read.unwrap_err().kind(), Kind::Fatal, "{len}");
        }
    }

    proptest! {
        #[test]
        fn sorting_is_what_a_map_does(
            rows in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..4), prop::collection::vec(any::<u8>(), 0..9), 0..200),
            bytes_max in 1u64..4000,
            seed: u64,
        ) {
            let mut shuffled: Vec<(&Vec<u8>, &Vec<u8>)> = rows.iter().collect();
            shuffled.sort_by_key(|(key, _)| xxhash_rust::xxh3::xxh3_64_with_seed(key, seed));
            let scratch = tempfile::tempdir().unwrap();
            let mut sorter = RowSorter::new(scratch.path(), bytes_max);
            for (origin, (key, payload)) in (0..).zip(shuffled) {
                push(&mut sorter, origin, key, payload);
            }
            let sorted = sorter.finish(|_, _| {}).unwrap().unwrap();
            prop_assert_eq!(drain(&sorted).into_iter().collect::<BTreeMap<_, _>>(), rows);
        }
    }
}
