//! The same chain restored by other tools: `sqlite3` and DuckDB, driven by `peers.py`.
//!
//! Each restore is a process of its own, ours too, from the same collection (`sqlite3` from a
//! dump and change sets made of it). Time is on the wall; memory is the greatest anonymous
//! memory of the process and its children. Then each is killed after half of its time and the
//! same command runs again, as people would do it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Size;
use crate::data::{Chain, SHARDS};
use crate::machine::{anonymous_bytes_of_family, settle};
use crate::memory::program;
use crate::report::{Goal, Report, Sample};

/// What `peers.py` prints of a table: rows, the sums of two columns.
type Sums = (u64, String, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Folded,
    Stepwise,
    Sqlite,
    DuckDb,
}

impl Tool {
    const ALL: [Tool; 4] = [Tool::Folded, Tool::Stepwise, Tool::Sqlite, Tool::DuckDb];

    fn name(self) -> &'static str {
        match self {
            Tool::Folded => "tidemark, folded and proven",
            Tool::Stepwise => "tidemark, step by step and proven",
            Tool::Sqlite => "sqlite3: dump, then change sets",
            Tool::DuckDb => "DuckDB: parts, then MERGE",
        }
    }
}

struct Bench<'a> {
    python: PathBuf,
    chain: &'a Chain,
    folder: &'a Path,
}

pub(crate) fn measure(chain: &Chain, folder: &Path, size: &Size, report: &mut Report) {
    std::fs::create_dir_all(folder).unwrap();
    let bench = Bench { python: python(), chain, folder };
    println!("making a dump and change sets for sqlite3");
    bench.script(["prepare", path(&chain.collection), path(&folder.join("sqlite"))]);
    let mut seconds: [Sample; 4] = Default::default();
    let mut peaks: [Sample; 4] = Default::default();
    let mut expected = None;
    for _ in 0..size.runs {
        for (at, tool) in Tool::ALL.into_iter().enumerate() {
            bench.clear();
            settle();
            let (spent, peak) = bench.whole(tool);
            seconds[at].push(spent);
            peaks[at].push(peak as f64 / f64::from(1 << 20));
            let held = bench.sums(tool);
            assert_eq!(expected.get_or_insert_with(|| held.clone()), &held, "{tool:?}");
        }
    }
    let expected = expected.expect("at least one turn");
    for (at, tool) in Tool::ALL.into_iter().enumerate() {
        let work = format!("full + 10 increments, {}", tool.name());
        report.figure(&work, "s", seconds[at].clone(), Goal::None);
        report.figure("  peak memory", "MiB", peaks[at].clone(), Goal::None);
        let undisturbed = seconds[at].median();
        let mut again = Sample::default();
        let mut seen = Sample::default();
        for _ in 0..size.runs {
            bench.clear();
            settle();
            let killed = bench.killed(tool, undisturbed / 2.0);
            seen.push(bench.sums(tool).0 as f64);
            let (spent, _) = bench.whole(tool);
            assert_eq!(bench.sums(tool), expected, "{tool:?} after a kill");
            again.push((killed + spent) / undisturbed);
        }
        let work = "  killed half-way and run again, both together";
        report.figure(work, "of the undisturbed time", again, Goal::None);
        report.figure("  rows that readers see after the kill", "rows", seen, Goal::None);
    }
    bench.clear();
}

/// Where `cargo xtask bench peers` put an interpreter with both libraries.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let python = root.join("target/peers/bin/python");
    assert!(python.exists(), "`cargo xtask bench peers` installs what this needs");
    python
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Bench<'_> {
    fn target(&self) -> PathBuf {
        self.folder.join("target")
    }

    fn clear(&self) {
        let target = self.target();
        let removed = match target.is_dir() {
            true => std::fs::remove_dir_all(&target),
            false => std::fs::remove_file(&target),
        };
        assert!(removed.is_ok() || !target.exists());
    }

    fn python(&self) -> Command {
        let mut command = Command::new(&self.python);
        let script = "benches/figures/peers.py";
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script));
        command
    }

    fn script<const N: usize>(&self, args: [&str; N]) -> String {
        let output = self.python().args(args).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn start(&self, tool: Tool) -> Child {
        use std::os::unix::process::CommandExt as _;
        let (collection, target) = (path(&self.chain.collection), self.target());
        let restore = |plan: &str| {
            let mut command = Command::new(program());
            command.args(["restore", collection, "--plan", plan, "--shards", &SHARDS.to_string()]);
            command.args(["--target", &format!("embedded:{}", target.display())]);
            command
        };
        let mut command = match tool {
            Tool::Folded => restore("fold"),
            Tool::Stepwise => restore("sequential"),
            Tool::Sqlite => {
                let mut command = self.python();
                command.args(["sqlite", path(&self.folder.join("sqlite")), path(&target)]);
                command
            }
            Tool::DuckDb => {
                let mut command = self.python();
                command.args(["duckdb", collection, path(&target)]);
                command
            }
        };
        // A group of its own, so that a kill reaches what it starts.
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Seconds and greatest anonymous memory in bytes.
    fn whole(&self, tool: Tool) -> (f64, u64) {
        let begun = Instant::now();
        let mut child = self.start(tool);
        let mut peak = 0;
        let status = loop {
            peak = peak.max(anonymous_bytes_of_family(child.id()));
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{tool:?}: {status}");
        (begun.elapsed().as_secs_f64(), peak)
    }

    /// Kills it after so many seconds; gives how long it ran.
    fn killed(&self, tool: Tool, after: f64) -> f64 {
        let begun = Instant::now();
        let mut child = self.start(tool);
        std::thread::sleep(Duration::from_secs_f64(after));
        rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
        assert!(!child.wait().unwrap().success(), "{tool:?} was done before it was killed");
        begun.elapsed().as_secs_f64()
    }

    /// What readers see.
    fn sums(&self, tool: Tool) -> Sums {
        let target = self.target();
        let printed = match tool {
            Tool::Sqlite => self.script(["look", "sqlite", path(&target)]),
            Tool::DuckDb => self.script(["look", "duckdb", path(&target)]),
            Tool::Folded | Tool::Stepwise => {
                let dump = self.folder.join("dump.parquet");
                let status = Command::new(program())
                    .args(["db", "dump", "--db", path(&target), "--table", "measured"])
                    .args(["--format", "parquet", "--output", path(&dump)])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap();
                if !status.success() {
                    return (0, "0".to_owned(), "0".to_owned());
                }
                let printed = self.script(["sums", path(&dump)]);
                std::fs::remove_file(&dump).unwrap();
                printed
            }
        };
        serde_json::from_str(&printed).unwrap()
    }
}
