//! Verifying a collection: an operation of one or two steps.
//!
//! ```text
//! step 0   every part is read: its BLAKE3, and at level `rows` every row       a shard per part
//! step 1   at level `rows` every chain is folded at its end, and each table    a shard per table
//!          compared with the digest that the source had of it at that cut
//! proof    the verdict: documents, presence, and what the shards found
//! ```
//!
//! [`begin_verify`] records the operation, pinned to the backups that there are now, or finds
//! the one to carry on; [`VerifyJob`] is what [`executor::run`](crate::executor::run) drives.
//!
//! Invariants: flaws are gathered, not stumbled over: a shard that found one is done like
//! any other. What it verified is recorded as nothing, so that a process that comes after a
//! crash knows which shards to look at again for what they found; those that were clean are
//! not read again. A verification that found flaws ends as failed, with all of them.

mod begin;
mod fold;
mod job;
mod outcome;
mod part;
mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::collection::Collection;
use crate::collection::check::Level;
use crate::ids::{CollectionId, OperationId, Sequence};
use crate::restore::Room;

pub use begin::{begin_verify, resolved_verify, resume_verify};
pub use job::VerifyJob;
pub use outcome::{Finding, VerifyOutcome};

/// What a verification is asked for, as typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOptions {
    /// How much is looked at.
    pub level: Level,
    /// Restore point whose chain is looked at, see
    /// [`RestorePoint::parse`](crate::collection::RestorePoint::parse); `None` for every backup.
    pub at: Option<String>,
}

/// What is verified, and with what.
#[derive(Clone, Debug)]
pub struct VerifyRequest<'r> {
    /// Collection.
    pub collection: Arc<Collection>,
    /// Its URL or path as typed: how a resume opens it again.
    pub collection_shown: &'r str,
    /// What is asked for.
    pub options: &'r VerifyOptions,
    /// Shards at once, memory for them, and a folder for what does not fit it.
    pub room: &'r Room,
}

/// What was found the first time, kept with the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedVerify {
    /// URL or path of the collection as typed.
    pub collection: String,
    /// Identity of the collection; a resume with another is refused.
    pub collection_id: CollectionId,
    /// First backup that is looked at.
    pub first: Sequence,
    /// Last backup that is looked at; newer ones are not. Below `first` if there is none.
    pub last: Sequence,
}

/// A verification ready to be driven.
#[derive(Debug)]
pub struct BegunVerify<'c> {
    /// Its number in the catalog.
    pub id: OperationId,
    /// Whether an unfinished one is carried on.
    pub is_resumed: bool,
    /// What [`executor::run`](crate::executor::run) drives.
    pub job: VerifyJob<'c>,
    /// What people should know, a sentence each.
    pub notices: Vec<String>,
}
