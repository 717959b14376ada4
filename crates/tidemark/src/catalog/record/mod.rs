//! The stored records, one file each, with their layouts.

pub mod holder;
pub mod operation;
pub mod restore_state;
pub mod shard_progress;
pub mod steering;
