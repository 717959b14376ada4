//! What the points do in a test build.
//!
//! [`Plan`] is the parsed variable and pure; [`Armed`] adds the counter and the
//! open logs. There is one of it, made at the first hit.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

pub(super) fn hit(name: &'static str) {
    // Only `hit_io` is asked for an error, see `Plan::applies`.
    let _ = armed().pass(name, Answer::Nothing);
}

pub(super) fn hit_io(name: &'static str) -> io::Result<()> {
    match armed().pass(name, Answer::IoError) {
        None => Ok(()),
        Some(ErrorKind::NoSpace) => Err(rustix::io::Errno::NOSPC.into()),
        Some(ErrorKind::Other) => Err(io::Error::other(format!("failpoint `{name}`"))),
    }
}

pub(super) fn note_chunk(line: &dyn Display) {
    if let Some(log) = &armed().chunk_log {
        log.append(line);
    }
}

/// What a point can answer to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It returns nothing, so it can only be killed or stopped.
    Nothing,
    /// It returns an `io::Result`.
    IoError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    NoSpace,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Wait,
    Fail(ErrorKind),
}

/// What `TIDEMARK_FAILPOINT` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// `None` counts every name.
    name: Option<String>,
    /// The first hit that acts, counted from 1.
    first: NonZeroU64,
    /// The last hit that acts; not below `first`.
    last: NonZeroU64,
    action: Action,
}

impl Plan {
    /// Reads `NAME:HITS` or `NAME:HITS:ACTION`.
    fn parse(text: &str) -> Result<Plan, String> {
        let wrong = |what: &str| format!("`{text}`: {what}, expected NAME:N[-[M]][:ACTION]");
        let mut fields = text.split(':');
        let name = match fields.next() {
            None | Some("") => return Err(wrong("the name is empty")),
            Some("*") => None,
            Some(name) => Some(name.to_owned()),
        };
        let hits = fields.next().ok_or_else(|| wrong("the number of the hit is missing"))?;
        let (first, last) = parse_hits(hits).map_err(|what| wrong(&what))?;
        let action = match fields.next() {
            None | Some("kill") => Action::Kill,
            Some("stop") => Action::Stop,
            Some("wait") => Action::Wait,
            Some("enospc") => Action::Fail(ErrorKind::NoSpace),
            Some("error") => Action::Fail(ErrorKind::Other),
            Some(other) => {
                return Err(wrong(&format!(
                    "`{other}` is none of kill, stop, wait, enospc, error"
                )));
            }
        };
        match fields.next() {
            None => Ok(Plan { name, first, last, action }),
            Some(_) => Err(wrong("a field too many")),
        }
    }

    /// Whether a hit of `name` that can answer `answer` counts.
    fn applies(&self, name: &str, answer: Answer) -> bool {
        let can_act = match self.action {
            Action::Kill | Action::Stop | Action::Wait => true,
            Action::Fail(_) => answer == Answer::IoError,
        };
        can_act && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether the `count`-th of the hits that count acts.
    fn acts_at(&self, count: u64) -> bool {
        (self.first.get()..=self.last.get()).contains(&count)
    }
}

/// Reads `N`, `N-M` or `N-`, counted from 1.
fn parse_hits(text: &str) -> Result<(NonZeroU64, NonZeroU64), String> {
    let number = |text: &str| {
        text.parse::<NonZeroU64>().map_err(|_| format!("`{text}` is not a number from 1 on"))
    };
    let (first, last) = match text.split_once('-') {
        None => (number(text)?, number(text)?),
        Some((first, "")) => (number(first)?, NonZeroU64::MAX),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    if last < first {
        return Err(format!("`{text}` ends before it begins"));
    }
    Ok((first, last))
}

/// The plan of this process, what it has counted, and its logs.
struct Armed {
    plan: Option<Plan>,
    counted: AtomicU64,
    hit_log: Option<Log>,
    chunk_log: Option<Log>,
}

fn armed() -> &'static Armed {
    static ARMED: OnceLock<Armed> = OnceLock::new();
    ARMED.get_or_init(|| Armed {
        plan: variable("TIDEMARK_FAILPOINT")
            .map(|text| Plan::parse(&text).unwrap_or_else(|wrong| abort(&wrong))),
        counted: AtomicU64::new(0),
        hit_log: variable("TIDEMARK_FAILPOINT_LOG").map(Log::open),
        chunk_log: variable("TIDEMARK_CHUNK_LOG").map(Log::open),
    })
}

impl Armed {
    /// Logs the hit, counts it, and acts if it is the one; returns the error to answer.
    fn pass(&self, name: &str, answer: Answer) -> Option<ErrorKind> {
        if let Some(log) = &self.hit_log {
            log.append(&name);
        }
        let plan = self.plan.as_ref()?;
        if !plan.applies(name, answer) {
            return None;
        }
        let count = self.counted.fetch_add(1, Ordering::SeqCst) + 1;
        if !plan.acts_at(count) {
            return None;
        }
        match plan.action {
            Action::Kill => kill_self(),
            Action::Stop => {
                stop_self();
                None
            }
            Action::Wait => {
                wait_at_gate();
                None
            }
            Action::Fail(error) => Some(error),
        }
    }
}

/// Holds this thread, and no other, until somebody removes the gate.
#[expect(clippy::disallowed_methods, reason = "a test decides how long, not a clock")]
fn wait_at_gate() {
    const PAUSE: Duration = Duration::from_millis(2);
    let Some(gate) = variable("TIDEMARK_FAILPOINT_GATE") else {
        abort("to wait takes the variable TIDEMARK_FAILPOINT_GATE");
    };
    while Path::new(&gate).exists() {
        std::thread::sleep(PAUSE);
    }
}

fn kill_self() -> ! {
    // The kernel marks every thread before `kill` returns, so this one runs nothing more.
    match kill_process(getpid(), Signal::KILL) {
        Ok(()) => abort("SIGKILL did not end the process"),
        Err(cause) => abort(&format!("SIGKILL to itself: {cause}")),
    }
}

fn stop_self() {
    if let Err(cause) = kill_process(getpid(), Signal::STOP) {
        abort(&format!("SIGSTOP to itself: {cause}"));
    }
    // The signal is sent to the process, so another thread may be the one that takes it, and
    // this one could run on meanwhile. The kernel takes the signal off the list of pending
    // ones and tells all threads to stop in one step: once it is no longer pending, this
    // thread stops on its way out of the read, or was stopped and continued already.
    while stop_is_pending() {
        std::thread::yield_now();
    }
}

fn stop_is_pending() -> bool {
    const STOP_BIT: u64 = 1 << 18;
    let status = match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => status,
        Err(cause) => abort(&format!("/proc/self/status: {cause}")),
    };
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    match pending.map(|mask| u64::from_str_radix(mask.trim(), 16)) {
        Some(Ok(mask)) => mask & STOP_BIT != 0,
        _ => abort("/proc/self/status has no mask of pending signals"),
    }
}

/// A file that several processes append to, a line at a time.
struct Log {
    path: String,
    file: File,
}

impl Log {
    fn open(path: String) -> Log {
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Log { path, file },
            Err(cause) => abort(&format!("open the log `{path}`: {cause}")),
        }
    }

    /// Appends in one write, so that lines of threads and processes never mix.
    fn append(&self, line: &dyn Display) {
        if let Err(cause) = (&self.file).write_all(format!("{line}\n").as_bytes()) {
            abort(&format!("append to the log `{}`: {cause}", self.path));
        }
    }
}

fn variable(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(text) => Some(text),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => abort(&format!("{name} is not UTF-8")),
    }
}

#[expect(clippy::print_stderr, reason = "a test build that cannot do as told must say so and end")]
fn abort(why: &str) -> ! {
    eprintln!("failpoint: {why}");
    std::process::abort()
}

#[cfg(test)]
mod tests;
