//! What a backup says when it is done.

use serde::{Deserialize, Serialize};

use super::parent::selection_of;
use crate::collection::chain::Pattern;
use crate::collection::manifest::{BackupKind, Manifest, TableMode};
use crate::env::WallTime;
use crate::ids::{Position, Sequence, TableName};

/// The backup that an operation made; kept with the operation as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOutcome {
    /// Name of the backup: its directory in the collection.
    pub directory: String,
    /// Position in the log.
    pub sequence: Sequence,
    /// Full or increment.
    pub kind: BackupKind,
    /// Directory of the backup that it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When the cut was taken.
    pub cut_at: WallTime,
    /// Position of the cut in the source.
    pub position: Position,
    /// Tables.
    pub tables: u64,
    /// Rows, tombstones included.
    pub rows: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Part objects.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Key and payload bytes.
    pub row_bytes: u64,
    /// Tables that an increment carries whole, each with the reason.
    pub whole: Vec<WholeTable>,
    /// What somebody should look at: patterns that select no table any more, a backup of
    /// nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was compared before the backup was made visible.
    pub proof: BackupProof,
}

/// A table that an increment carries whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeTable {
    /// Table.
    pub table: TableName,
    /// A clause: "it was made after the parent".
    pub reason: String,
}

/// What was compared before the backup was made visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProof {
    /// Parts whose size and BLAKE3 were read back from the store.
    pub parts_rehashed: u64,
    /// Whole tables whose rows add up to the digest that the source has of them.
    pub digests_compared: u64,
}

impl BackupOutcome {
    /// What is to be said of the backup with that manifest.
    ///
    /// The manifest is written only after the proof, so it tells what the proof covered,
    /// also to a process that came after a crash.
    pub(super) fn of(manifest: &Manifest) -> BackupOutcome {
        let whole = manifest.tables.iter().filter_map(|table| {
            let reason = table.reason.clone()?;
            Some(WholeTable { table: table.name.clone(), reason })
        });
        let is_compared = |table: &&crate::collection::manifest::TableEntry| {
            table.mode == TableMode::Whole && table.state.is_some()
        };
        let totals = manifest.totals;
        BackupOutcome {
            directory: manifest.directory.clone(),
            sequence: manifest.sequence,
            kind: manifest.kind,
            parent: manifest.parent.as_ref().map(|parent| parent.directory.clone()),
            cut_at: manifest.cut_at,
            position: manifest.source.to,
            tables: totals.tables,
            rows: totals.rows,
            tombstones: totals.tombstones,
            parts: totals.parts,
            bytes: totals.bytes,
            row_bytes: totals.row_bytes,
            whole: whole.collect(),
            warnings: warnings(manifest),
            proof: BackupProof {
                parts_rehashed: totals.parts,
                digests_compared: manifest.tables.iter().filter(is_compared).count() as u64,
            },
        }
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an outcome is plain data")
    }
}

fn warnings(manifest: &Manifest) -> Vec<String> {
    let mut warnings: Vec<String> = selecting_nothing(manifest)
        .map(|pattern| format!("`{pattern}` selects no table any more"))
        .collect();
    if manifest.tables.is_empty() && warnings.is_empty() {
        warnings.push("nothing was backed up: the source has no table that readers see".to_owned());
    }
    warnings
}

/// The patterns of the selection that none of the backup's tables fits.
fn selecting_nothing(manifest: &Manifest) -> impl Iterator<Item = String> {
    selection_of(manifest).into_iter().filter(|text| {
        let Ok(mut pattern) = Pattern::new(text) else { return false };
        !manifest.tables.iter().any(|table| pattern.selects(&table.name))
    })
}
