//! Collections: named places, local or in an object store, that hold backups.
//!
//! `docs/format.md` is the contract of what lies there. Reading order: a
//! [`Store`] keeps objects by name, [`layout`] says which names,
//! [`manifest`] what the JSON in them says, [`accept`] which
//! manifests are believed; a [`Collection`] ties them
//! together, a [`Chain`] is what leads to one restore point, and
//! [`check`] looks whether all of it still stands.

pub mod accept;
pub mod chain;
pub mod check;
#[expect(clippy::module_inception, reason = "the collection is what this module is about")]
pub mod collection;
mod document;
#[cfg(test)]
mod fixture;
pub mod flaw;
pub mod fold;
#[cfg(test)]
mod format_page;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub mod garbage;
pub mod layout;
pub mod log;
pub mod manifest;
pub mod part;
pub mod run;
pub mod store;
#[cfg(test)]
mod tests;
pub mod unlisted;

pub use chain::{Chain, RestorePoint};
pub use collection::{Collection, NewBackup};
pub use store::Store;
