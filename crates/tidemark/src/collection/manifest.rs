//! What a backup says of itself: `manifest.json` and its entry in the collection's log.
//!
//! Unknown fields are kept where a document is read and written again, and an
//! unknown major version is refused. Nothing in here is trusted before its
//! check: names may be hostile, numbers absurd.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::database::Structure;
use crate::env::WallTime;
use crate::ids::{CollectionId, CutId, Position, Sequence, TableId, TableName};
use crate::row::key::hex_bytes;
use crate::row::{Digest, Schema};

/// Major version of the collection format that this program reads and writes.
pub const FORMAT_MAJOR: u32 = 1;
/// Minor version that this program writes; newer minors only add fields.
pub const FORMAT_MINOR: u32 = 0;

/// Version of the collection format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatVersion {
    /// Another major is refused.
    pub major: u32,
    /// A newer minor is read; fields it adds are kept.
    pub minor: u32,
}

impl FormatVersion {
    /// What this program writes.
    pub const CURRENT: FormatVersion = FormatVersion { major: FORMAT_MAJOR, minor: FORMAT_MINOR };
}

/// Whether a backup holds everything or what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupKind {
    /// Every row.
    Full,
    /// What changed since the parent.
    Incremental,
}

/// `collection.json`: what makes a place a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionRecord {
    /// Format version.
    pub format: FormatVersion,
    /// Identity.
    pub id: CollectionId,
    /// When it was made.
    pub created: WallTime,
    /// Fields of newer minors.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `log/<sequence>.json`: a backup exists when this does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Format version.
    pub format: FormatVersion,
    /// Position in the log; equals the file's name.
    pub sequence: Sequence,
    /// Full or increment.
    pub kind: BackupKind,
    /// Directory of the backup inside the collection.
    pub directory: String,
    /// BLAKE3 of `manifest.json`, hexadecimal.
    pub manifest: String,
    /// BLAKE3 of the manifest of the entry before it; `None` for the first.
    pub previous: Option<String>,
    /// Fields of newer minors.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `manifest.json`: one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version.
    pub format: FormatVersion,
    /// Collection it belongs to.
    pub collection: CollectionId,
    /// Position in the log.
    pub sequence: Sequence,
    /// Full or increment.
    pub kind: BackupKind,
    /// Directory of the backup inside the collection.
    pub directory: String,
    /// Backup it builds on; `None` for a full.
    pub parent: Option<ParentLink>,
    /// Database that was backed up.
    pub source: SourceLink,
    /// When the cut was taken, for people.
    pub cut_at: WallTime,
    /// Tables at the cut, sorted by name.
    pub tables: Vec<TableEntry>,
    /// Sums over the tables.
    pub totals: Totals,
    /// Fields of newer minors.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The backup that an increment builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLink {
    /// Its position in the log.
    pub sequence: Sequence,
    /// Its directory.
    pub directory: String,
    /// BLAKE3 of its manifest, hexadecimal.
    pub manifest: String,
}

/// The database and the span of its history that a backup covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLink {
    /// See [`Source::identity`](crate::database::Source::identity).
    pub identity: String,
    /// Position of the parent's cut; `None` for a full.
    pub from: Option<Position>,
    /// Position of this cut.
    pub to: Position,
    /// Name of this cut, if the source gives one: an increment asks the source for its
    /// parent's. See [`Snapshot::cut_id`](crate::database::Snapshot::cut_id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutId>,
}

/// One table of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// Identity in the chain.
    pub id: TableId,
    /// Identity that its digests carry.
    pub digest_id: TableId,
    /// Name at the cut.
    pub name: TableName,
    /// Schema at the cut.
    pub schema: Schema,
    /// What the parts hold.
    pub mode: TableMode,
    /// Why an increment carries the table whole, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Digest of all rows of the table at the cut, if the source told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Digest>,
    /// What the source's engine says of the table beyond its columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<Structure>,
    /// Parts in key order; their key ranges do not overlap.
    pub parts: Vec<PartEntry>,
    /// Fields of newer minors.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What the parts of a table hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableMode {
    /// What changed since the parent.
    Delta,
    /// Every row: the table begins anew here.
    Whole,
}

/// One Parquet object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Path inside the backup's directory.
    pub name: String,
    /// Size of the object.
    pub bytes: u64,
    /// BLAKE3 of the object, hexadecimal.
    pub blake3: String,
    /// Rows, tombstones included; at least 1.
    pub rows: u64,
    /// Deleted keys among the rows.
    pub tombstones: u64,
    /// Key and payload bytes of all rows: the unit of progress.
    pub row_bytes: u64,
    /// Key and payload bytes of the greatest row: bounds a reader's memory.
    pub row_bytes_max: u64,
    /// Least key.
    #[serde(with = "hex_bytes")]
    pub first_key: Vec<u8>,
    /// Greatest key.
    #[serde(with = "hex_bytes")]
    pub last_key: Vec<u8>,
    /// Digest of the rows that are not tombstones, as they stand in the part.
    pub digest: Digest,
    /// Row groups in order.
    pub row_groups: Vec<RowGroupEntry>,
    /// Keys spread evenly over the part's rows, ascending: where shards can be cut.
    #[serde(with = "hex_bytes::list")]
    pub key_samples: Vec<Vec<u8>>,
    /// Fields of newer minors.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One Parquet row group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGroupEntry {
    /// Rows.
    pub rows: u64,
    /// Key and payload bytes.
    pub row_bytes: u64,
    /// Least key.
    #[serde(with = "hex_bytes")]
    pub first_key: Vec<u8>,
}

/// Sums over the tables of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tables.
    pub tables: u64,
    /// Parts.
    pub parts: u64,
    /// Rows, tombstones included.
    pub rows: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes of the part objects.
    pub bytes: u64,
    /// Key and payload bytes.
    pub row_bytes: u64,
}
