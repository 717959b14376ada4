//! A restore that is killed half-way and carried on, beside an undisturbed one.
//!
//! Each restore is a process of its own. The one to be killed sends itself SIGKILL inside
//! a call to the target, once half of the rows were handed to it. Work is counted as the
//! rows handed to the target: those of a chunk that the kill destroyed count twice.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidemark::Result;
use tidemark::database::{Fence, Mark, Target, TargetLayer, TargetShard};
use tidemark::restore::PlanKind;
use tidemark::row::RowBatch;

use crate::Size;
use crate::data::Chain;
use crate::machine::settle;
use crate::report::{Goal, Report, Sample, Spent, Turn};
use crate::restore::restore_into;

/// First argument of a process that only restores.
pub(crate) const CHILD: &str = "--child-restore";

pub(crate) fn measure(chain: &Chain, folder: &Path, size: &Size, report: &mut Report) {
    let mut turns = Vec::new();
    let mut rows = Sample::default();
    fs::create_dir_all(folder).unwrap();
    for _ in 0..size.runs {
        let target = folder.join("target");
        let whole = child(&chain.collection, &target, u64::MAX);
        fs::remove_dir_all(&target).unwrap();
        let killed = child(&chain.collection, &target, whole.rows / 2);
        let resumed = child(&chain.collection, &target, u64::MAX);
        fs::remove_dir_all(&target).unwrap();
        assert!(killed.rows < whole.rows, "the first process was killed before its end");
        turns.push(Turn { ours: killed.spent + resumed.spent, reference: whole.spent });
        rows.push((killed.rows + resumed.rows) as f64 / whole.rows as f64);
    }
    report.figure("killed half-way and carried on, rows applied", "x", rows, Goal::AtMost(1.02));
    let reference = "an undisturbed process";
    report.time("killed half-way and carried on, time", reference, &turns, Goal::None);
}

struct Done {
    rows: u64,
    spent: Spent,
}

fn child(collection: &Path, target: &Path, kill_after: u64) -> Done {
    settle();
    let begun = Instant::now();
    let output = Command::new(std::env::current_exe().unwrap())
        .arg(CHILD)
        .args([collection, target])
        .arg(kill_after.to_string())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    // Processor time is the other process's and not known here.
    let spent = Spent { wall: begun.elapsed().as_secs_f64(), cpu: f64::NAN };
    assert_eq!(output.status.success(), kill_after == u64::MAX, "{:?}", output.status);
    // The last line is how many rows were handed to the target until then.
    let rows = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().parse().unwrap();
    Done { rows, spent }
}

/// Restores, says how many rows were applied, and dies early if asked to.
pub(crate) fn run_child(args: &[String]) -> ExitCode {
    let [collection, target, kill_after] = args else { return ExitCode::from(2) };
    let counted = Arc::new(AtomicU64::new(0));
    let (rows, kill_after) = (Arc::clone(&counted), kill_after.parse().unwrap());
    let wrap = |inner| -> Arc<dyn Target> { Arc::new(Counted { inner, rows, kill_after }) };
    restore_into(Path::new(collection), Path::new(target), "latest", PlanKind::Fold, wrap);
    println!("{}", counted.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

/// Counts the rows that are applied; kills the process when there are enough.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Target>,
    rows: Arc<AtomicU64>,
    kill_after: u64,
}

impl TargetLayer for Counted {
    fn inner(&self) -> &dyn Target {
        &*self.inner
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let count = self.rows.fetch_add(rows.len() as u64, Ordering::Relaxed) + rows.len() as u64;
        if count > self.kill_after {
            println!("{count}");
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
        }
        self.inner.apply(fence, shard, rows, mark)
    }
}
