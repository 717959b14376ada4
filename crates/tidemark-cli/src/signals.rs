//! Interrupts: the first pauses, the second ends at once. And a limit that only says no.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use tidemark::executor::Stop;
use tidemark::{Error, Kind, Result};

use crate::exit::Exit;

/// What the first SIGINT or SIGTERM asks to stop; after the second the process is gone,
/// with code 130, and everything that was durable stays. A SIGHUP asks as well, but no second
/// one ends it, since a terminal that closes may send more than one.
///
/// # Errors
/// [`Kind::Fatal`] when the operating system takes no handler.
pub(crate) fn interrupt() -> Result<Stop> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in the order of registration: this one sees only what came before.
        flag::register_conditional_shutdown(
            signal,
            i32::from(Exit::Interrupted.code()),
            Arc::clone(&interrupted),
        )
        .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
        .map_err(|cause| Error::with_source(Kind::Fatal, "catch interrupts", cause))?;
    }
    if !ignores_hangup() {
        flag::register(SIGHUP, Arc::clone(&interrupted))
            .map_err(|cause| Error::with_source(Kind::Fatal, "catch interrupts", cause))?;
    }
    Ok(Stop::from(interrupted))
}

/// Whether whoever started this process (`nohup`) wants it to outlive its terminal.
fn ignores_hangup() -> bool {
    // The line is a mask in hexadecimal, whose last bit stands for signal 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Makes a write beyond the limit of a file's size (`ulimit -f`) an error, as a full disk is
/// one, where it would end the process.
///
/// # Errors
/// [`Kind::Fatal`] when the operating system takes no handler.
pub(crate) fn survive_file_limits() -> Result<()> {
    // A handler that does nothing of use: the write then fails with EFBIG.
    flag::register(SIGXFSZ, Arc::default())
        .map(|_| ())
        .map_err(|cause| Error::with_source(Kind::Fatal, "catch the limit of file sizes", cause))
}
