//! Where an operation stands, and what people want of it.

use crate::error::Kind;
use crate::ids::{StepIdx, Txn};

/// Where an operation stands.
///
/// ```text
/// Allocating ─▶ Proposing ─▶ Waiting ─▶ Applying ─▶ Done
///                   ▲           │          sealing, proving, publishing
///                   └─ next step┘
///
/// Allocating, Proposing, Waiting, Applying ──▶ Failed      a failure that no retry mends
/// Failed ──▶ where it was                                   `operation resume`
/// any of these, until the target has published ──▶ Reverting ──▶ Cancelled
/// ```
///
/// A phase carries what is meaningful while it lasts and nothing else. "No such
/// operation" is the absence of its record, not a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being worked at. Durable: everything that led here.
    Working(Working),
    /// Stopped by a failure. Marks and hidden tables are kept; resuming goes back to `was`.
    Failed {
        /// Where it stopped.
        was: Working,
        /// Why.
        failure: Failure,
    },
    /// Undoing on request: hidden tables go, reservations are given back. If it turns out that
    /// the target had published already, the operation is done instead. Paused before an
    /// obstacle it stands still, and a cancel or a resume tries again.
    Reverting {
        /// The operation's number, if it ever got one.
        txn: Option<Txn>,
    },
    /// Published and proven. Terminal.
    Done {
        /// The operation's number.
        txn: Txn,
    },
    /// The target is as it was. Terminal.
    Cancelled {
        /// The operation's number, if it ever got one.
        txn: Option<Txn>,
    },
}

/// The phases in which work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Working {
    /// Recorded; waiting for its fencing number.
    Allocating,
    /// The target is asked to accept `step`: hidden tables, schema and conflicts, shards.
    Proposing {
        /// The operation's number.
        txn: Txn,
        /// Step being proposed.
        step: StepIdx,
    },
    /// Shards of `step` run inside the window.
    Waiting {
        /// The operation's number.
        txn: Txn,
        /// Step being worked at.
        step: StepIdx,
    },
    /// Every row is in; the result is sealed, proven and published.
    Applying {
        /// The operation's number.
        txn: Txn,
        /// How far.
        stage: ApplyStage,
    },
}

/// The stages of applying, in order. Each is durable before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApplyStage {
    /// Indexes are built and every shard gets an epoch that nobody holds.
    Sealing,
    /// What the target holds is read back and compared.
    Proving,
    /// The result becomes visible. Once the target has done that there is no way back; until
    /// then, and after it was refused, there is.
    Publishing,
}

/// What people want of an operation; stands beside the phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Carry on.
    Run,
    /// Stand still; nothing is lost.
    Paused {
        /// Who asked.
        by: PausedBy,
        /// Why, for people.
        why: String,
    },
    /// Undo and end.
    Cancelled,
}

/// Who paused an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedBy {
    /// Somebody who runs or watches it.
    Person,
    /// The operation itself: a disk is full, credentials are gone.
    Obstacle,
}

/// Why an attempt ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What can be done about it.
    pub kind: Kind,
    /// The whole sentence, with causes.
    pub message: String,
}

impl Phase {
    /// How every operation begins.
    pub const FIRST: Phase = Phase::Working(Working::Allocating);

    /// Name shown to people; the stored form is numbered in the catalog's record.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Working(Working::Allocating) => "allocating",
            Phase::Working(Working::Proposing { .. }) => "proposing",
            Phase::Working(Working::Waiting { .. }) => "waiting",
            Phase::Working(Working::Applying { .. }) => "applying",
            Phase::Failed { .. } => "failed",
            Phase::Reverting { .. } => "reverting",
            Phase::Done { .. } => "done",
            Phase::Cancelled { .. } => "cancelled",
        }
    }

    /// Whether nothing can happen any more.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Phase::Done { .. } | Phase::Cancelled { .. })
    }

    /// The operation's number, once it has one.
    pub fn txn(&self) -> Option<Txn> {
        match self {
            Phase::Working(working) | Phase::Failed { was: working, .. } => working.txn(),
            Phase::Reverting { txn } | Phase::Cancelled { txn } => *txn,
            Phase::Done { txn } => Some(*txn),
        }
    }

    /// The step being proposed or worked at; `None` before the first and after the last.
    pub fn step(&self) -> Option<StepIdx> {
        match self {
            Phase::Working(working) | Phase::Failed { was: working, .. } => working.step(),
            Phase::Reverting { .. } | Phase::Done { .. } | Phase::Cancelled { .. } => None,
        }
    }

    /// Whether the shards of the current step have been cut and some may be unfinished.
    pub fn has_shards(&self) -> bool {
        matches!(
            self,
            Phase::Working(Working::Waiting { .. })
                | Phase::Failed { was: Working::Waiting { .. }, .. }
        )
    }
}

impl Working {
    /// The operation's number, once it has one.
    pub fn txn(&self) -> Option<Txn> {
        match *self {
            Working::Allocating => None,
            Working::Proposing { txn, .. }
            | Working::Waiting { txn, .. }
            | Working::Applying { txn, .. } => Some(txn),
        }
    }

    /// The step being proposed or worked at.
    pub fn step(&self) -> Option<StepIdx> {
        match *self {
            Working::Proposing { step, .. } | Working::Waiting { step, .. } => Some(step),
            Working::Allocating | Working::Applying { .. } => None,
        }
    }
}
