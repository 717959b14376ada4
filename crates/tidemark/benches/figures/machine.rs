//! What the figures were measured on.

use std::fs;

/// Prints processor, memory, kernel and load.
pub(crate) fn describe() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&cpu, "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("machine: {cores} cores, {model}; memory {memory}; Linux {}", kernel.trim());
    describe_load("at the start");
}

/// Prints the load average: who else was at work.
pub(crate) fn describe_load(when: &str) {
    println!("load average {when}: {}", load());
}

/// The load averages of 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<&str>>().join(" ")
}

/// Waits until what was written is on the disk, so that nobody pays for another's writes.
pub(crate) fn settle() {
    let synced = std::process::Command::new("sync").status();
    assert!(synced.is_ok_and(|status| status.success()), "`sync` is part of every system");
}

/// Anonymous memory of a process now, in bytes; `None` when it is gone.
pub(crate) fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The same of a process and of all that it started, as far as they live.
pub(crate) fn anonymous_bytes_of_family(pid: u32) -> u64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    anonymous_bytes(pid).unwrap_or(0) + children.map(anonymous_bytes_of_family).sum::<u64>()
}
