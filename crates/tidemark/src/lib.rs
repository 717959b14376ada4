//! Incremental backup and restore of sharded tables, with progress that survives.
//!
//! Modules in reading order; ARCHITECTURE.md at the root has the map and the glossary.

pub mod backup;
pub mod catalog;
pub mod collection;
pub mod csv;
pub mod database;
pub mod env;
pub mod error;
pub mod executor;
pub mod failpoint;
pub mod ids;
pub(crate) mod lmdb;
pub mod operation;
pub mod restore;
pub mod row;
pub mod verify;

pub use error::{Error, Kind, Result};
