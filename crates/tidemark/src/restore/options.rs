//! What a restore is asked for, and what was resolved the first time.

use serde::{Deserialize, Serialize};

use crate::collection::chain::Link;
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, Sequence, TableName};

/// Memory that a restore may use unless an option says otherwise.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// Options as typed; a resume with others is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOptions {
    /// Restore point: see [`RestorePoint::parse`](crate::collection::RestorePoint::parse).
    pub at: String,
    /// Names or globs of tables; all if empty.
    pub tables: Vec<String>,
    /// Pairs of a table's name in the backup and the name it gets.
    pub renames: Vec<(String, String)>,
    /// Schema that every table without a rename of its own goes into, under its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into_schema: Option<String>,
    /// Shards per table; by size if none.
    pub shards: Option<u32>,
    /// How; `fold` for a new copy and `sequential` for rolling forward if none.
    pub plan: Option<PlanKind>,
    /// Take the place of tables that exist.
    pub replace: bool,
    /// Keep the result hidden, to be rolled forward; never in the place of what is visible.
    pub hold: bool,
    /// Move copies that were restored earlier on to the restore point.
    pub roll_forward: bool,
}

impl Default for RestoreOptions {
    fn default() -> RestoreOptions {
        RestoreOptions {
            at: "latest".to_owned(),
            tables: Vec::new(),
            renames: Vec::new(),
            into_schema: None,
            shards: None,
            plan: None,
            replace: false,
            hold: false,
            roll_forward: false,
        }
    }
}

/// How the chain is turned into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanKind {
    /// One step that merges everything.
    Fold,
    /// One step per backup, in order.
    Sequential,
}

/// What the first run resolved; a resume keeps to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedRestore {
    /// The collection as it was named.
    pub collection_shown: String,
    /// The target as it was named.
    pub target_shown: String,
    /// The collection's identity.
    pub collection: CollectionId,
    /// The restore point.
    pub point: PlanLink,
    /// Memory that the plan reckons with.
    pub memory_bytes: u64,
}

/// One backup of the chain, as a plan pins it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanLink {
    /// Number in the log.
    pub sequence: Sequence,
    /// Directory.
    pub directory: String,
    /// BLAKE3 of its manifest, hexadecimal.
    pub manifest: String,
}

impl From<&Link> for PlanLink {
    fn from(link: &Link) -> PlanLink {
        PlanLink {
            sequence: link.entry.sequence,
            directory: link.entry.directory.clone(),
            manifest: link.entry.manifest.clone(),
        }
    }
}

impl RestoreOptions {
    /// Refuses options that contradict one another.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming them.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::new(Kind::Usage, message));
        if self.roll_forward && self.replace {
            return refuse(
                "--continue moves a copy on and --replace takes its place: choose one of them",
            );
        }
        if self.replace && self.hold {
            return refuse(
                "--replace takes the place of a table and --hold leaves the result hidden, so that \
                 its readers would find nothing: hold it under another name with --rename, or \
                 leave one of the two out; `tidemark db drop` removes a held copy that is in the way",
            );
        }
        if self.roll_forward && self.shards.is_some() {
            return refuse(
                "--continue keeps the shards of the copy; leave --shards out, or restore anew",
            );
        }
        if self.shards == Some(0) {
            return refuse("--shards is at least 1");
        }
        if self.into_schema.as_deref().is_some_and(|schema| TableName::new(schema, "t").is_none()) {
            return refuse("--into-schema: the name of a schema is not empty");
        }
        self.parsed_renames().map(|_| ())
    }

    /// The renames as names.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a malformed name, or one that is renamed twice.
    pub fn parsed_renames(&self) -> Result<Vec<(TableName, TableName)>> {
        let mut renames: Vec<(TableName, TableName)> = Vec::new();
        for (from, to) in &self.renames {
            let parse = |name: &str| {
                TableName::parse(name)
                    .map_err(|message| Error::new(Kind::Usage, format!("--rename: {message}")))
            };
            let (from, to) = (parse(from)?, parse(to)?);
            if renames.iter().any(|(earlier, _)| *earlier == from) {
                let message = format!("--rename: table `{from}` is renamed twice");
                return Err(Error::new(Kind::Usage, message));
            }
            renames.push((from, to));
        }
        Ok(renames)
    }
}
