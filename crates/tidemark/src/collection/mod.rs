//! Collections: named places, local or in an object store, that hold backups.
//!
//! `docs/format.md` is the contract of what lies there.

pub mod manifest;
pub mod part;
