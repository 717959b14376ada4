//! Named points at which a test build ends, stops or fails its own process.
//!
//! The code calls [`hit`] wherever a crash must leave something well defined,
//! and [`hit_io`] in front of a write that a full disk could refuse. Without
//! the feature `failpoints`, which no release has, all functions here are empty.
//!
//! A test arms one point in the environment of the process that it starts:
//!
//! | variable | meaning |
//! |---|---|
//! | `TIDEMARK_FAILPOINT=NAME:N` | SIGKILL the process at the N-th hit of NAME, counted from 1 |
//! | `…=NAME:N:stop` | SIGSTOP it there; it goes on after a SIGCONT |
//! | `…=NAME:N:wait` | hold the thread that hits it as long as the file `TIDEMARK_FAILPOINT_GATE` is there |
//! | `…=NAME:N:enospc` | the N-th [`hit_io`] of NAME answers "no space left on device" |
//! | `…=NAME:N:error` | the N-th [`hit_io`] of NAME answers an error without a number |
//! | `…=*:N…` | the same, counted over all names |
//! | `…=NAME:N-M…`, `NAME:N-…` | from the N-th hit to the M-th, or to the end of the process |
//! | `TIDEMARK_FAILPOINT_LOG=PATH` | append the name of every hit, one line each, before acting on it |
//! | `TIDEMARK_CHUNK_LOG=PATH` | append what [`note_chunk`] is given, one line each |
//!
//! So a test first counts the hits of an undisturbed run in the log, then runs
//! the same work once for each of them. `enospc` and `error` count only the hits
//! that can answer an error. Counts are per process and begin again with it. A
//! malformed variable, or a log that cannot be written, aborts the process: a
//! crash test whose crash did not happen must not pass.

use std::fmt::Display;
use std::io;

#[cfg(feature = "failpoints")]
mod armed;

/// A point at which the process may be killed or stopped.
#[inline]
pub fn hit(name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::hit(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// A point at which the process may be killed or stopped, or the disk be full.
///
/// # Errors
/// The armed error, in a build with the feature `failpoints`; never otherwise.
#[inline]
pub fn hit_io(name: &'static str) -> io::Result<()> {
    #[cfg(feature = "failpoints")]
    return armed::hit_io(name);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        Ok(())
    }
}

/// Notes that a chunk was applied, for tests that count how many were repeated.
///
/// Call it after the chunk's transaction is durable; pass `format_args!(..)`,
/// which costs nothing when nobody counts. `line` must not hold a line end.
#[inline]
pub fn note_chunk(line: impl Display) {
    #[cfg(feature = "failpoints")]
    armed::note_chunk(&line);
    #[cfg(not(feature = "failpoints"))]
    let _ = line;
}
