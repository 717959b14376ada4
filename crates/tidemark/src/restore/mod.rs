//! Restore: any point of a chain into hidden tables, proven, then published together.
//!
//! [`options`] is what was asked, [`plan`] turns it and the manifests into steps and
//! shards without any I/O, [`job`] is the executor's view, `apply` the run of one
//! shard (read, apply, mark), `proof` the reading back, `undo` the giving up.
//!
//! Two plans, one machine. `fold` has one step: every shard merges the full and all
//! increments and writes each surviving row once. `sequential` has a step per backup,
//! with a barrier between them; it is what rolls an earlier copy forward.

mod apply;
pub mod begin;
mod chain_proof;
mod cut;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub mod job;
mod limits;
mod memory;
mod merge;
pub mod options;
pub mod plan;
mod proof;
mod runs;
mod source;
mod undo;

pub use begin::{BegunRestore, Room, Route, begin_restore, plan_restore, resume_restore};
pub use job::RestoreJob;
pub use options::{PlanKind, RestoreOptions};
pub use plan::RestorePlan;
pub use undo::undo_restore;
