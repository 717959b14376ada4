//! The gate: what lets a cut see every write either whole or not at all.
//!
//! Writers pass it shared, from reading the position until their commit. Whoever
//! takes a cut, or changes what a table's name stands for, passes it alone. The
//! queue in front of it makes new writers wait behind one who wants to be alone,
//! who would otherwise wait for ever among writers that overlap.

use std::path::Path;
use std::time::Duration;

use crate::env::Env;
use crate::error::Result;
use crate::lmdb::{FileLock, LockMode};

const QUEUE_FILE: &str = "queue";
const GATE_FILE: &str = "gate";

/// Inside together with other writers: the position and the tables stay as they are.
#[derive(Debug)]
pub(crate) struct SharedGate {
    _lock: FileLock,
}

/// Inside alone: nobody writes, and no batch is half applied.
#[derive(Debug)]
pub(crate) struct ExclusiveGate {
    _lock: FileLock,
}

/// Passes the gate of the database whose locks lie in `locks`, beside others.
///
/// # Errors
/// [`Kind::Held`](crate::Kind::Held), naming the process that is inside alone.
pub(super) fn pass_shared(locks: &Path, env: &dyn Env, wait: Duration) -> Result<SharedGate> {
    pass(locks, LockMode::Shared, env, wait).map(|lock| SharedGate { _lock: lock })
}

/// Passes the gate when everybody else has left it.
///
/// # Errors
/// [`Kind::Held`](crate::Kind::Held), naming the processes that are inside.
pub(super) fn pass_alone(locks: &Path, env: &dyn Env, wait: Duration) -> Result<ExclusiveGate> {
    pass(locks, LockMode::Exclusive, env, wait).map(|lock| ExclusiveGate { _lock: lock })
}

fn pass(locks: &Path, mode: LockMode, env: &dyn Env, wait: Duration) -> Result<FileLock> {
    let _queue = FileLock::acquire(&locks.join(QUEUE_FILE), mode, env, wait)?;
    FileLock::acquire(&locks.join(GATE_FILE), mode, env, wait)
}
