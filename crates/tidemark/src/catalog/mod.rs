//! The durable state of operations.
//!
//! [`Catalog`] is the contract; `LmdbCatalog` keeps it in an LMDB environment,
//! beside a database's own records or alone. One file per record describes what
//! is stored; the names of the plan are kept:
//!
//! | record | key | holds |
//! |---|---|---|
//! | [`operation`](record::operation) | operation | what was asked; never changes |
//! | `operation_plan` | operation | the verb's own plan, opaque here |
//! | [`restore_state`](record::restore_state) | operation | phase, desired state, totals, version |
//! | [`shard_progress`](record::shard_progress) | operation, **step**, shard | claim, attempt, copy of the mark for display |
//! | [`holder`](record::holder) | operation | who drives it, until when |
//! | [`steering`](record::steering) | operation, number | requests not yet seen by the holder |
//!
//! A commit is conditional on the hold and on the version that was read, so of two
//! drivers one wins. Where rows and catalog differ, the target's marks are right.

mod codec;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod lmdb;
pub mod record;

use std::fmt::Debug;

use crate::env::WallTime;
use crate::error::Result;
use crate::ids::{Epoch, OperationId, ShardIdx, StepIdx, Txn};
use crate::operation::{Changes, Request, ShardProgress, State};

pub use lmdb::LmdbCatalog;
pub use record::operation::{OperationRecord, Verb};

/// Where operations are kept.
pub trait Catalog: Debug + Send + Sync {
    /// Records a new operation with its plan and first state, held by nobody.
    ///
    /// # Errors
    /// [`Kind::Held`](crate::Kind::Held) when an operation of the same identity is unfinished.
    fn create(&self, new: &OperationRecord, plan: &[u8], state: &State) -> Result<OperationId>;

    /// The unfinished operation of that identity: neither done nor cancelled.
    fn unfinished(&self, identity: &str) -> Result<Option<OperationId>>;

    /// The operation that got the number `txn`.
    fn by_txn(&self, txn: Txn) -> Result<Option<OperationId>>;

    /// Every operation, ascending.
    fn list(&self) -> Result<Vec<OperationId>>;

    /// What was asked.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) for an unknown operation; so do all calls below.
    fn operation(&self, id: OperationId) -> Result<OperationRecord>;

    /// The plan's bytes as they were given.
    fn plan(&self, id: OperationId) -> Result<Vec<u8>>;

    /// The state and when it changed.
    fn state(&self, id: OperationId) -> Result<StoredState>;

    /// The shards of one step that have a record, ascending.
    fn shards(&self, id: OperationId, step: StepIdx) -> Result<Vec<(ShardIdx, ShardProgress)>>;

    /// Who holds the operation and whether they can still act.
    fn holder(&self, id: OperationId) -> Result<Holding>;

    /// Keeps other processes from taking the operation until the value is dropped or its
    /// process dies: whoever takes it raises the fence of its rows before it holds it here.
    ///
    /// # Errors
    /// [`Kind::Held`](crate::Kind::Held) while another process is taking it.
    fn taking(&self, id: OperationId) -> Result<Box<dyn Debug>>;

    /// Takes the operation for `epoch`, which is greater than every earlier one.
    ///
    /// At once when nobody holds it or the holder is dead, else only after its lease.
    ///
    /// # Errors
    /// [`Kind::Held`](crate::Kind::Held) naming the holder and the seconds its lease still runs.
    fn hold(&self, id: OperationId, epoch: Epoch) -> Result<Box<dyn Hold>>;

    /// Leaves a request for whoever holds the operation, now or later.
    fn steer(&self, id: OperationId, request: &Request) -> Result<()>;

    /// Removes an ended operation's records.
    ///
    /// # Errors
    /// [`Kind::Held`](crate::Kind::Held) while somebody drives it; [`Kind::Usage`](crate::Kind::Usage) while it
    /// could be resumed and still owns hidden tables: cancel it first.
    fn forget(&self, id: OperationId) -> Result<()>;

    /// A number greater than every one it gave before: epochs of operations without a target.
    fn allocate_epoch(&self) -> Result<Epoch>;

    /// Whether a process that held the operation, and was taken over when it fell silent, may
    /// still live: when it wakes it can finish what it was writing outside of the catalog.
    ///
    /// `true`, the default, where nobody knows.
    fn has_silent_holder(&self, id: OperationId) -> Result<bool> {
        let _ = id;
        Ok(true)
    }
}

/// The right to change one operation, until it is dropped or taken away.
pub trait Hold: Debug + Send {
    /// Epoch of this hold.
    fn epoch(&self) -> Epoch;

    /// Makes a transition durable: all of it, or nothing.
    ///
    /// Requests up to `seen` are removed with it. When `state` is terminal the hold and
    /// the identity are released in the same transaction.
    ///
    /// # Errors
    /// [`Kind::Fenced`](crate::Kind::Fenced) when the hold was taken away: stop, write nothing.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<()>;

    /// Says that the holder lives; called about every two seconds.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    fn renew(&mut self) -> Result<()>;

    /// Requests that nobody has acted upon yet, oldest first, with their numbers.
    fn requests(&self) -> Result<Vec<(u64, Request)>>;
}

/// One transition to be made durable.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// The state afterwards.
    pub state: &'a State,
    /// The shards that change.
    pub changes: &'a Changes,
    /// Greatest number of a request that the state already reflects.
    pub seen: Option<u64>,
    /// What the verb has to say at the end, JSON; kept until `forget`.
    pub outcome: Option<&'a str>,
}

/// A state with what the catalog adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// State.
    pub state: State,
    /// Grows with every commit.
    pub version: u64,
    /// When the operation was created.
    pub created_at: WallTime,
    /// When it was last changed.
    pub changed_at: WallTime,
    /// When it reached a terminal phase.
    pub ended_at: Option<WallTime>,
    /// What the verb said at the end, JSON.
    pub outcome: Option<String>,
}

/// Who drives an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nobody.
    Free,
    /// A process that is gone; it can be taken over at once.
    Dead {
        /// Process id it had.
        pid: u32,
    },
    /// A process that lives.
    Alive {
        /// Process id.
        pid: u32,
        /// Seconds until its lease ends unless it renews.
        lease_seconds: u64,
    },
}
