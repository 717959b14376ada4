//! Peak memory of the program itself, as people get it.
//!
//! What counts is anonymous memory: the map of LMDB is pages of files, which the system
//! takes back when it needs them. It is sampled every millisecond from outside. Then the
//! same restore runs again under a limit of [`LIMIT_BYTES`] on all private memory that the
//! process may write to (`RLIMIT_DATA`). That counts also what is only reserved, so stacks
//! are made as small as they need to be; it is stricter than a limit on what is resident.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidemark::backup::BackupChoice;
use tidemark::database::embedded::{EmbeddedDatabase, WriteBatch};
use tidemark::ids::TableName;
use tidemark::row::{LogicalType, Row, Schema, Value};

use crate::data;
use crate::machine::anonymous_bytes;
use crate::report::{Goal, Report, Sample};

const LIMIT_BYTES: u64 = 256 << 20;
const MIB: f64 = (1 << 20) as f64;

/// Restores of which the greatest peak counts, and runs under the limit.
const RUNS: usize = 5;

/// Bytes that each thread reserves for its stack under the limit.
const STACK_BYTES: u64 = 512 << 10;

/// Increments behind the full of the long chains.
const INCREMENTS: u64 = 399;
const LONG_ROWS: u64 = 200_000;
const LONG_CHANGES: u64 = 2_000;

const WIDE_COLUMNS: usize = 100;
const WIDE_ROWS: i64 = 20_000;
const WIDE_CHANGES: u64 = 200;

const LARGE_VALUE_BYTES: usize = 64 << 20;
/// A restore holds a value of this size so many times, besides what it holds anyway.
const LARGE_FACTOR: f64 = 6.0;

pub(crate) fn measure(folder: &Path, report: &mut Report) {
    let program = program();
    long(&program, &folder.join("long"), report);
    wide(&program, &folder.join("wide"), report);
    large(&program, &folder.join("large"), report);
}

/// The release build that lies beside this benchmark's own.
pub(crate) fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent().unwrap().parent().unwrap().join("tidemark");
    assert!(program.exists(), "build the program first: cargo xtask bench does");
    program
}

fn long(program: &Path, folder: &Path, report: &mut Report) {
    let source = data::database(&folder.join("source"));
    let collection = folder.join("collection");
    println!("making {LONG_ROWS} rows, {INCREMENTS} increments of {LONG_CHANGES} changes");
    data::fill(&source, LONG_ROWS);
    back_up_chain(&source, &collection, |generation| {
        data::change(&source, LONG_ROWS, LONG_CHANGES, generation);
    });
    for links in [1, 10, 100, 400] {
        let at = format!("#{links}");
        let options = ["--at", &at, "--shards", "4"];
        let restore = Restore { program, collection: &collection, folder, options: &options };
        restore.measure(&format!("{links} links"), report);
    }
}

fn wide(program: &Path, folder: &Path, report: &mut Report) {
    let source = data::database(&folder.join("source"));
    let collection = folder.join("collection");
    println!("making {WIDE_COLUMNS} columns, {WIDE_ROWS} rows, {INCREMENTS} increments");
    let names: Vec<String> = (0..WIDE_COLUMNS).map(|column| format!("c{column}")).collect();
    let columns: Vec<(&str, LogicalType)> =
        names.iter().map(|name| (name.as_str(), LogicalType::Int64)).collect();
    let schema = Schema::new(&columns, &["c0"]).unwrap();
    source.create_table(&table("wide"), &schema, &[]).unwrap();
    let put = |ids: &mut dyn Iterator<Item = i64>, random: &mut data::Random| {
        let mut batch = WriteBatch::new();
        for id in ids {
            let rest = (1..WIDE_COLUMNS).map(|_| Value::Int64(random.next() as i64));
            batch.put(&table("wide"), std::iter::once(Value::Int64(id)).chain(rest).collect());
        }
        source.write(&batch).unwrap();
    };
    put(&mut (0..WIDE_ROWS), &mut data::Random(0));
    back_up_chain(&source, &collection, |generation| {
        let mut ids = data::Random(generation << 32);
        let mut ids = (0..WIDE_CHANGES).map(|_| (ids.next() % WIDE_ROWS as u64) as i64);
        put(&mut ids, &mut data::Random(generation));
    });
    let options = ["--shards", "8", "--shards-in-flight", "8"];
    let restore = Restore { program, collection: &collection, folder, options: &options };
    restore.measure("100 columns, 400 links, 8 shards", report);
}

fn large(program: &Path, folder: &Path, report: &mut Report) {
    let source = data::database(&folder.join("source"));
    let collection = folder.join("collection");
    println!("making one value of {} MiB", LARGE_VALUE_BYTES >> 20);
    let columns = [("id", LogicalType::Int64), ("value", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    source.create_table(&table("large"), &schema, &[]).unwrap();
    for id in 0..3 {
        source
            .put(&table("large"), large_row(id, if id == 1 { LARGE_VALUE_BYTES } else { 100 }))
            .unwrap();
    }
    data::backup(&source, &data::collection(&collection), BackupChoice::Full);
    let restore = Restore { program, collection: &collection, folder, options: &[] };
    let peak = restore.peak_bytes();
    let factor = Sample::from_iter([peak as f64 / LARGE_VALUE_BYTES as f64]);
    let work = "restore of one value of 64 MiB";
    report.figure(work, "times its size", factor, Goal::NeverAbove(LARGE_FACTOR));
}

fn large_row(id: i64, bytes: usize) -> Row {
    let mut random = data::Random(id as u64);
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        let bits = random.next();
        let letters = (0..60).step_by(6).map(|shift| char::from(b'0' + (bits >> shift) as u8 % 64));
        text.extend(letters.take(bytes - text.len()));
    }
    vec![Value::Int64(id), Value::Text(text)]
}

fn table(name: &str) -> TableName {
    TableName::parse(name).unwrap()
}

fn back_up_chain(source: &Arc<EmbeddedDatabase>, collection: &Path, change: impl Fn(u64)) {
    let to = data::collection(collection);
    data::backup(source, &to, BackupChoice::Full);
    for generation in 1..=INCREMENTS {
        change(generation);
        data::backup(source, &to, BackupChoice::Incremental);
    }
}

/// One restore, as a command.
struct Restore<'a> {
    program: &'a Path,
    collection: &'a Path,
    folder: &'a Path,
    options: &'a [&'a str],
}

impl Restore<'_> {
    fn measure(&self, what: &str, report: &mut Report) {
        let peaks: Sample = (0..RUNS).map(|_| self.peak_bytes() as f64 / MIB).collect();
        let work = format!("peak memory, {what}");
        report.figure(&work, "MiB", peaks, Goal::NeverAbove(LIMIT_BYTES as f64 / MIB));
        let passes = (0..RUNS).filter(|_| self.fits_limit()).count() as f64;
        let work = format!("  under a limit of {} MiB, {what}", LIMIT_BYTES >> 20);
        let unit = format!("of {RUNS} done");
        let goal = Goal::AtLeast(RUNS as f64);
        report.figure(&work, &unit, Sample::from_iter([passes]), goal);
    }

    fn arguments(&self, target: &Path) -> Vec<String> {
        let mut words = vec!["restore".to_owned(), self.collection.to_str().unwrap().to_owned()];
        words.extend(["--target".to_owned(), format!("embedded:{}", target.display())]);
        words.extend(self.options.iter().map(|&word| word.to_owned()));
        words
    }

    fn peak_bytes(&self) -> u64 {
        let target = self.folder.join("target");
        let mut command = Command::new(self.program);
        command.args(self.arguments(&target)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut peak = 0;
        let status = loop {
            if let Some(bytes) = anonymous_bytes(child.id()) {
                peak = peak.max(bytes);
            }
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success(), "{status}");
        std::fs::remove_dir_all(&target).unwrap();
        peak
    }

    /// Whether the restore ends well when the system gives it no more than the limit.
    fn fits_limit(&self) -> bool {
        let target = self.folder.join("target");
        let limited = format!("ulimit -d {} && exec \"$0\" \"$@\"", LIMIT_BYTES >> 10);
        let mut command = Command::new("sh");
        command.args(["-c", &limited]).arg(self.program).args(self.arguments(&target));
        command.env("RUST_MIN_STACK", STACK_BYTES.to_string());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        std::fs::remove_dir_all(&target).unwrap();
        status.success()
    }
}
