//! `tidemark-database.json`: what makes a directory an embedded database.
//!
//! It is written before anything else and read before anything else is touched,
//! so that a foreign or newer directory stays as it is.

use serde::{Deserialize, Serialize};

use super::JsonRecord;

/// The marker file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MarkerRecord {
    /// Always [`KIND`](Self::KIND).
    pub(crate) kind: String,
}

impl MarkerRecord {
    /// Name of the file in the database's directory.
    pub(crate) const FILE: &'static str = "tidemark-database.json";
    /// Tells the file from any other JSON.
    pub(crate) const KIND: &'static str = "tidemark embedded database";
}

impl JsonRecord for MarkerRecord {
    const NAME: &'static str = "marker of an embedded database";
    /// Version of the whole directory's format.
    const VERSION: u32 = 1;
}

#[test]
fn a_marker_reads_back() {
    super::check::json_record(&MarkerRecord { kind: MarkerRecord::KIND.to_owned() });
}
