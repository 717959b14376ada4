//! CSV as RFC 4180 has it: reading, writing, and guessing types from it.
//!
//! [`Reader`] streams [`Record`]s and says of every field whether it was quoted,
//! since an empty field without quotes is NULL and one with quotes is the empty
//! text. [`Survey`] looks at every record of a file and tells which types keep
//! each column's text; [`Writer`] writes with as few quotes as can be.
//!
//! The invariant between the three: what a [`Survey`] types, [`Writer`] prints
//! back byte for byte, as long as the source itself quotes no more than it must.

pub mod infer;
pub mod read;
pub mod write;

pub use infer::{Survey, parse_field};
pub use read::{Field, Reader, Record};
pub use write::Writer;

#[cfg(test)]
mod tests;
