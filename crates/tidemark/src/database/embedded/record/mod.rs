//! The durable records of an embedded database, one file per record.
//!
//! | named database | key | record |
//! |---|---|---|
//! | `database` | `record` | [`DatabaseRecord`] |
//! | `tables` | table name as text | [`TableRecord`] |
//! | `generations` | generation number, `u64` big-endian | [`GenerationRecord`] |
//! | `source_positions` | collection id, `u128` big-endian | [`SourcePositionRecord`] |
//! | `cuts` | position, `u64` big-endian | [`CutRecord`] |
//! | `redo` | sequence number, `u64` big-endian | [`RedoRecord`], binary |
//! | `target_operations` | operation, `u64` big-endian | [`TargetOperationRecord`] |
//! | `hidden_tables` | operation, `u64` big-endian; table name as text | [`HiddenTableRecord`] |
//! | `reservations` | table name as text | [`ReservationRecord`] |
//! | `meta`, in each shard | `shard` | [`ShardMeta`], binary, with a [`ShardFence`] |
//!
//! What is not binary is one JSON object with a field `version`. A field that an
//! older program does not know is ignored by it, so a change that an older
//! program must not ignore takes a new version, which it refuses.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::row::{KeyRange, Schema};

mod cut;
mod database;
mod generation;
mod hidden_table;
mod marker;
mod redo;
mod reservation;
mod shard_fence;
mod shard_meta;
mod source_position;
mod table;
mod target_operation;

pub(crate) use cut::CutRecord;
pub(crate) use database::DatabaseRecord;
pub(crate) use generation::{GenerationNumber, GenerationRecord};
pub(crate) use hidden_table::{HiddenBase, HiddenTableRecord};
pub(crate) use marker::MarkerRecord;
pub(crate) use redo::{RedoRecord, RedoShard};
pub(crate) use reservation::ReservationRecord;
pub(crate) use shard_fence::ShardFence;
pub(crate) use shard_meta::ShardMeta;
pub(crate) use source_position::SourcePositionRecord;
pub(crate) use table::{CopyRecord, ShardRecord, TableRecord};
pub(crate) use target_operation::{TargetOperationRecord, TargetOperationState};

/// A record that is stored as JSON.
pub(crate) trait JsonRecord: Serialize + DeserializeOwned {
    /// What people call it.
    const NAME: &'static str;
    /// Version that is written; a newer one is refused.
    const VERSION: u32;

    /// What is impossible about a record that has the right form; `None` if nothing is.
    ///
    /// What is read from it afterwards need not be looked at again.
    fn flaw(&self) -> Option<String> {
        None
    }
}

#[derive(Serialize)]
struct Stored<'a, R> {
    version: u32,
    #[serde(flatten)]
    record: &'a R,
}

#[derive(Deserialize)]
struct StoredVersion {
    version: u32,
}

/// The stored form of `record`.
pub(crate) fn encode<R: JsonRecord>(record: &R) -> Vec<u8> {
    let stored = Stored { version: R::VERSION, record };
    serde_json::to_vec(&stored).expect("records have text keys and no failing serializer")
}

/// Reads a stored form.
///
/// # Errors
/// [`Kind::Unsupported`] for a newer version, [`Kind::Broken`] for what is no such record.
pub(crate) fn decode<R: JsonRecord>(stored: &[u8]) -> Result<R> {
    let broken = |cause| {
        let message = format!("the stored {} is malformed; the catalog is damaged", R::NAME);
        Error::with_source(Kind::Broken, message, cause)
    };
    let StoredVersion { version } = serde_json::from_slice(stored).map_err(broken)?;
    if version > R::VERSION {
        let message = format!(
            "the stored {} has version {version}, this program reads up to {}; use a newer \
             tidemark",
            R::NAME,
            R::VERSION
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    let record: R = serde_json::from_slice(stored).map_err(broken)?;
    match record.flaw() {
        None => Ok(record),
        Some(flaw) => {
            let message =
                format!("the stored {} is impossible: {flaw}; the catalog is damaged", R::NAME);
            Err(Error::new(Kind::Broken, message))
        }
    }
}

/// What is impossible about a table of `schema` that is cut into `ranges`.
fn flaw_of_table<'a>(
    schema: &Schema,
    ranges: impl Iterator<Item = &'a KeyRange>,
) -> Option<String> {
    if let Err(error) = schema.check() {
        return Some(error.message().to_owned());
    }
    let covered = KeyRange::cover_all(ranges);
    (!covered).then(|| "its shards do not cover all keys, each once".to_owned())
}

#[cfg(test)]
pub(crate) mod check {
    use std::fmt::Debug;

    use super::{JsonRecord, decode, encode};
    use crate::error::Kind;

    /// Round trip, every truncated prefix, a newer version, an added field.
    #[track_caller]
    pub(crate) fn json_record<R: JsonRecord + PartialEq + Debug>(record: &R) {
        let stored = encode(record);
        assert_eq!(&decode::<R>(&stored).unwrap(), record);
        for len in 0..stored.len() {
            assert_eq!(decode::<R>(&stored[..len]).unwrap_err().kind(), Kind::Broken, "{len}");
        }
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&stored).unwrap();
        object.insert("of_a_later_minor".to_owned(), true.into());
        let added = serde_json::to_vec(&object).unwrap();
        assert_eq!(&decode::<R>(&added).unwrap(), record);
        object.insert("version".to_owned(), (R::VERSION + 1).into());
        let newer = serde_json::to_vec(&object).unwrap();
        assert_eq!(decode::<R>(&newer).unwrap_err().kind(), Kind::Unsupported);
    }

    /// A record that contradicts itself is refused, saying `flaw`.
    #[track_caller]
    pub(crate) fn impossible<R: JsonRecord + Debug>(record: &R, flaw: &str) {
        let error = decode::<R>(&encode(record)).unwrap_err();
        assert_eq!(error.kind(), Kind::Broken);
        assert!(error.message().contains(flaw), "{error}");
    }
}
