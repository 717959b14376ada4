//! The figures of `docs/performance.md`: each beside its reference, in one run.
//!
//! ```text
//! cargo xtask bench                              everything, 5,000,000 rows
//! cargo xtask bench restore backup --rows 1000000 --runs 3
//! ```
//!
//! Ours and the reference run in turns, so that both meet the same machine; a ratio is
//! formed within each turn, and its median is what a goal is compared with. All data is
//! random: storage and codecs make short work of zeros.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark measures time, talks to people, and has nothing to save when it fails"
)]

mod data;
mod encoding;
mod machine;
mod memory;
mod peers;
mod raw;
mod report;
mod restore;
mod resume;
mod schedule;
mod watched;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::Report;

const USAGE: &str = "\
usage: cargo xtask bench [WHAT...] [--rows N] [--runs N] [--dir DIR]

  restore    a full, a folded and a step-by-step chain beside raw LMDB; proof and marks
  backup     a full backup and a verification beside Parquet alone
  resume     a restore that is killed half-way beside an undisturbed one
  schedule   events and restart of an operation of up to 1,000,000 shards
  memory     peak memory of the program for long, wide and large data
  peers      sqlite3 and DuckDB on the same chain; only when named, since it installs them

  --rows N   rows of the table [default: 5000000]
  --runs N   turns of each comparison [default: 5]
  --dir DIR  folder for the data, on the disk to be measured [default: in the target folder]
  --keep     leave the data there, to look closer
";

const PARTS: [&str; 5] = ["schedule", "restore", "backup", "resume", "memory"];
/// Other tools on the same data.
const PEERS: &str = "peers";

/// How much is measured.
#[derive(Clone, Debug)]
struct Size {
    rows: u64,
    runs: u32,
}

#[derive(Debug)]
struct Args {
    parts: Vec<String>,
    size: Size,
    dir: PathBuf,
    keep: bool,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Args> {
        let mut args = Args {
            parts: Vec::new(),
            size: Size { rows: 5_000_000, runs: 5 },
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            keep: false,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                // What cargo passes to every benchmark.
                "--bench" => {}
                "--keep" => args.keep = true,
                "--rows" => args.size.rows = words.next()?.parse().ok().filter(|rows| *rows > 0)?,
                "--runs" => args.size.runs = words.next()?.parse().ok().filter(|runs| *runs > 0)?,
                "--dir" => args.dir = PathBuf::from(words.next()?),
                part if part == PEERS || PARTS.contains(&part) => args.parts.push(word),
                _ => return None,
            }
        }
        if args.parts.is_empty() {
            args.parts = PARTS.map(str::to_owned).to_vec();
        }
        Some(args)
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(resume::CHILD) {
        return resume::run_child(&words.collect::<Vec<String>>());
    }
    let Some(args) = Args::parse(std::env::args().skip(1)) else {
        print!("{USAGE}");
        return ExitCode::from(2);
    };
    std::fs::create_dir_all(&args.dir).unwrap();
    let mut folder = tempfile::tempdir_in(&args.dir).unwrap();
    folder.disable_cleanup(args.keep);
    machine::describe();
    let mut report = Report::default();
    measure(&args, folder.path(), &mut report);
    report.print();
    machine::describe_load("at the end");
    if args.keep {
        println!("the data is in `{}`", folder.path().display());
    }
    ExitCode::SUCCESS
}

/// In an order in which the memory of one part does not count for the next.
fn measure(args: &Args, folder: &Path, report: &mut Report) {
    let is_wanted = |part: &str| args.parts.iter().any(|wanted| wanted == part);
    if is_wanted("schedule") {
        schedule::measure(report);
    }
    if ["restore", "backup", "resume", PEERS].iter().any(|part| is_wanted(part)) {
        let chain = data::chain(&folder.join("chain"), args.size.rows);
        if is_wanted("restore") {
            restore::measure(&chain, &folder.join("restore"), &args.size, report);
        }
        if is_wanted("backup") {
            encoding::measure(&chain, &folder.join("backup"), &args.size, report);
        }
        if is_wanted("resume") {
            resume::measure(&chain, &folder.join("resume"), &args.size, report);
        }
        if is_wanted(PEERS) {
            peers::measure(&chain, &folder.join("peers"), &args.size, report);
        }
    }
    if is_wanted("memory") {
        memory::measure(&folder.join("memory"), report);
    }
}
