//! Taking a backup: an operation of one step.
//!
//! ```text
//! Proposing   take the cut, decide what each table carries, cut shards     (snapshot)
//! Waiting     shards stream rows into parts                                (parts)
//! Applying    read the parts back and compare; manifest; log entry; tell the source
//! ```
//!
//! [`begin_backup`] records the operation or finds the one to carry on, and gives the
//! [`BackupJob`] that [`executor::run`](crate::executor::run) drives. A `cut` lives as long
//! as its process: whoever resumes a backup after a crash starts over at a new cut, unless
//! the log already has an entry of this operation; then only the source is told.
//!
//! Invariants: a backup exists when its log entry does, and the entry is made only after
//! every part was read back. An operation makes at most one entry: its manifest carries the
//! mark that was drawn when the operation was recorded. Nothing that a log entry names is
//! ever removed. Parts carry the mark in their names, so that whoever carries an operation on,
//! or cancels it, removes what processes before it wrote.

mod begin;
mod cut;
mod job;
mod outcome;
mod parent;
mod prove;
mod publish;
mod shard;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::collection::Collection;
use crate::collection::manifest::BackupKind;
use crate::database::Source;
use crate::ids::{CollectionId, OperationId};

pub use begin::{begin_backup, resolved_backup, resume_backup};
pub use cut::{TablePatterns, check_selection};
pub use job::BackupJob;
pub use outcome::{BackupOutcome, BackupProof, WholeTable};

/// Key of [`Manifest::extra`](crate::collection::manifest::Manifest::extra): the tables that
/// were asked for, as sorted names and globs; an empty list means all.
pub const SELECTION: &str = "selection";

/// Key of [`Manifest::extra`](crate::collection::manifest::Manifest::extra): which operation
/// made the backup, `<mark>/<operation>/<position of the cut>`.
pub const MADE_BY: &str = "made_by";

/// What a backup is asked for, as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOptions {
    /// Full, increment, or whatever is possible.
    pub kind: BackupChoice,
    /// Names and globs of tables; empty for all.
    pub tables: Vec<String>,
    /// Whether a source that keeps no digests computes them at the cut; it is the source that
    /// does it, so whoever opens one looks here.
    #[serde(default)]
    pub attest: bool,
}

/// Which kind of backup is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupChoice {
    /// Every row.
    Full,
    /// What changed since the newest backup of the collection.
    Incremental,
    /// An increment if the newest backup is of this selection, else a full; never on top of
    /// another database's.
    #[default]
    Auto,
}

/// Where from, where to, and how.
#[derive(Clone, Debug)]
pub struct BackupRequest<'r> {
    /// Database to back up.
    pub source: Arc<dyn Source>,
    /// Its URL as typed: how a resume opens it again.
    pub source_shown: &'r str,
    /// Collection that the backup goes into.
    pub collection: Arc<Collection>,
    /// Its URL or path as typed.
    pub collection_shown: &'r str,
    /// What is asked for.
    pub options: &'r BackupOptions,
    /// Shards that run at once; one that is carried on keeps its own.
    pub window: u32,
}

/// What was found the first time, kept with the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedBackup {
    /// URL of the source as typed.
    pub source: String,
    /// Identity of the source; a resume with another is refused.
    pub source_identity: String,
    /// URL or path of the collection as typed.
    pub collection: String,
    /// Identity of the collection; a resume with another is refused.
    pub collection_id: CollectionId,
    /// Full or increment; stays so when the backup starts over.
    pub kind: BackupKind,
    /// 128 random bits, hexadecimal: the manifest of this operation's backup carries them.
    pub mark: String,
    /// Entries in the log when the operation was recorded: its own comes later.
    pub log_length: u64,
    /// Bytes that the proof counts for in the progress: parts of the backup before.
    pub proof_bytes: u64,
}

/// A backup ready to be driven.
#[derive(Debug)]
pub struct BegunBackup<'c> {
    /// Its number in the catalog.
    pub id: OperationId,
    /// Whether an unfinished one is carried on.
    pub is_resumed: bool,
    /// What [`executor::run`](crate::executor::run) drives.
    pub job: BackupJob<'c>,
    /// What people should know, a sentence each.
    pub notices: Vec<String>,
}
