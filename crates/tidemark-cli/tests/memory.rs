//! Memory of the program itself, as the system counts it.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod support;
#[path = "../../tidemark/tests/wide/mod.rs"]
mod wide;

use std::fs;

use support::Tidemark;
use support::deadline::{WAIT_MAX, poll};

/// What a restore may hold unless `--memory` says otherwise.
const MEMORY_KIB: u64 = 256 << 10;

/// How anonymous memory rose is sampled: a peak between two looks may be missed, but none
/// is seen that is not there.
#[test]
fn a_hundred_columns_and_four_hundred_links_into_eight_shards_stay_within_256_mib() {
    let folder = support::temp_folder();
    wide::chain(&folder.path().join("collection"), 4_000, 80);
    let tidemark = Tidemark::new(folder.path());
    let args = ["restore", "collection", "--target", "embedded:copy", "--shards", "8"];
    let running = tidemark.spawn(args);
    let mut peak_kib = 0;
    poll(WAIT_MAX, || match anonymous_kib(running.pid()) {
        Some(kib) => {
            peak_kib = peak_kib.max(kib);
            None
        }
        None => Some(()),
    });
    running.wait().expect_code(0);
    assert!(peak_kib > 0, "it was looked at while it ran");
    assert!(peak_kib <= MEMORY_KIB, "{peak_kib} KiB");
}

/// Anonymous memory of a process; `None` once it has ended.
fn anonymous_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
