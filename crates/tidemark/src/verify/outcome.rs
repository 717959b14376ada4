//! What a verification says when it is done, or has failed.

use serde::{Deserialize, Serialize};

use crate::collection::check::Level;
use crate::collection::flaw::{Flaw, Remedy};
use crate::error::{Error, Kind};

/// Findings told in full in the failure's sentence; the outcome has all of them.
const TOLD_MAX: usize = 10;

/// What was looked at and what was found; kept with the operation as JSON if it is clean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOutcome {
    /// How much was looked at.
    pub level: Level,
    /// Backups whose documents were checked.
    pub backups: u64,
    /// Parts that were read.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows, tombstones included; decoded at level `rows` only.
    pub rows: u64,
    /// Tables at ends of chains whose fold was compared with the source's digest.
    pub folds: u64,
    /// Tables whose fold was not compared, each with the reason; sentences.
    pub unfolded: Vec<String>,
    /// Whole backups that no log entry names: sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<String>,
    /// What is wrong: documents, then parts, then folds. Empty if all is well.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// [`Kind::Broken`] for an object that is not what it should be, [`Kind::Mismatch`] for
    /// rows that are not what the source had.
    #[serde(with = "kind_name")]
    pub kind: Kind,
    /// Path of the object inside the collection; for rows the backup and table.
    pub object: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// What to do about it; a clause.
    pub remedy: String,
}

impl Finding {
    /// A flaw of an object.
    pub(super) fn flaw(flaw: Flaw) -> Finding {
        let Flaw { object, found, expected, remedy } = flaw;
        let remedy = match remedy {
            Remedy::PutBack => {
                "put it back from another copy of the collection; else restore points before it, \
                 and take a full backup now"
            }
            Remedy::PutEntryBack => {
                "put it back from another copy of the collection: what comes after it is not known \
                 without it; else restore the backups before it by name or number, and begin a new \
                 collection for new backups"
            }
            Remedy::NameOrRemove => {
                "give it its right name if no entry has that, else remove it; until then no backup \
                 can be added, and the others are restored by name or number"
            }
        };
        Finding { kind: Kind::Broken, object, found, expected, remedy: remedy.to_owned() }
    }

    /// Rows that are not what the source had, although every object is whole.
    pub(super) fn mismatch(object: String, found: String, expected: String) -> Finding {
        let remedy = "take a full backup now, and trust no later point of this chain; the newest \
                      good one is found by `verify --at`";
        Finding { kind: Kind::Mismatch, object, found, expected, remedy: remedy.to_owned() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: found {}, expected {}", self.object, self.found, self.expected)
    }
}

impl VerifyOutcome {
    /// The failure that the findings are; `None` if there is none.
    ///
    /// It is broken if any object is, and a mismatch if only rows are; the first comes first.
    pub(super) fn failure(&self) -> Option<Error> {
        let first = self.findings.first()?;
        let is_broken = self.findings.iter().any(|finding| finding.kind == Kind::Broken);
        let kind = if is_broken { Kind::Broken } else { Kind::Mismatch };
        let mut message = first.to_string();
        let others = &self.findings[1..];
        if !others.is_empty() {
            let told: Vec<String> = others.iter().take(TOLD_MAX).map(Finding::to_string).collect();
            message.push_str(&format!("; and {} more: {}", others.len(), told.join("; ")));
        }
        if others.len() > TOLD_MAX {
            message.push_str("; ...");
        }
        Some(Error::new(kind, message))
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an outcome is plain data")
    }
}

mod kind_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::error::Kind;

    pub(super) fn serialize<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        let name = String::deserialize(from)?;
        Kind::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("`{name}` is no kind of error")))
    }
}
