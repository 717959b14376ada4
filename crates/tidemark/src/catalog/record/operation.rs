//! `operation`: what was asked. Written once, never changed, kept until `forget`.
//!
//! Key: operation, `u64` big-endian. Value, version 1: the version byte, then the
//! record as JSON with the fields of [`OperationRecord`]; JSON because its content
//! is the verb's own and people read it when something went wrong.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::WallTime;
use crate::error::{Error, Kind, Result};

const VERSION: u8 = 1;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Takes a backup.
    Backup,
    /// Restores a point of a chain, or rolls a copy forward.
    Restore,
    /// Checks a collection.
    Verify,
}

impl Verb {
    /// Name in commands and listings.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Backup => "backup",
            Verb::Restore => "restore",
            Verb::Verify => "verify",
        }
    }
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// What it does.
    pub verb: Verb,
    /// Verb, collection, database, tables and renames as typed: an unfinished operation of
    /// the same identity is resumed by the same command.
    pub identity: String,
    /// The same for people: "restore of `x` into `y`".
    pub title: String,
    /// Everything the verb was asked for, as it was resolved the first time.
    pub request: Value,
    /// BLAKE3 of the plan, hexadecimal; a resume whose inputs give another plan is refused.
    pub plan_hash: String,
    /// Steps of the plan; at least 1.
    pub step_count: u32,
    /// When it was asked.
    pub created_at: WallTime,
}

impl OperationRecord {
    pub(in crate::catalog) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).expect("a record is valid JSON");
        bytes
    }

    pub(in crate::catalog) fn decode(bytes: &[u8]) -> Result<OperationRecord> {
        match bytes.split_first() {
            Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|cause| {
                Error::with_source(Kind::Broken, "an operation record is malformed", cause)
            }),
            Some((version, _)) => {
                let message = format!(
                    "an operation record has version {version}, this program reads {VERSION}"
                );
                Err(Error::new(Kind::Unsupported, message))
            }
            None => Err(Error::new(Kind::Broken, "an operation record is empty")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::codec::check_codec;

    #[test]
    fn an_operation_reads_back_and_every_prefix_is_refused() {
        let record = OperationRecord {
            verb: Verb::Restore,
            identity: "restore|x".to_owned(),
            title: "restore of `c` into `d`".to_owned(),
            request: serde_json::json!({"at": "latest"}),
            plan_hash: "ab".to_owned(),
            step_count: 3,
            created_at: WallTime(5),
        };
        check_codec(&record, OperationRecord::encode, OperationRecord::decode);
    }
}
