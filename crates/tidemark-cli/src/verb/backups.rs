//! `backups`: the chains of a collection and the points that can be restored.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tidemark::collection::chain::show_time;
use tidemark::collection::garbage::Unlisted;
use tidemark::collection::manifest::{BackupKind, LogEntry, Manifest};
use tidemark::collection::unlisted::UnlistedBackup;
use tidemark::collection::{Collection, Store};
use tidemark::{Error, Kind, Result};

use crate::args::BackupsArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{self, Align, bytes, count, counted};
use crate::place::system;

#[derive(Debug, Serialize)]
struct BackupsView {
    collection: String,
    id: String,
    created: String,
    restore_points: u64,
    total_bytes: u64,
    chains: Vec<ChainView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unlisted: Vec<UnlistedView>,
}

/// A whole backup that no log entry names.
#[derive(Debug, Serialize)]
struct UnlistedView {
    sequence: u64,
    backup: String,
    kind: BackupKind,
    warning: String,
}

/// A full and the increments that build on it.
#[derive(Debug, Serialize)]
struct ChainView {
    total_bytes: u64,
    backups: Vec<BackupView>,
}

#[derive(Debug, Serialize)]
struct BackupView {
    sequence: u64,
    backup: String,
    kind: BackupKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    #[serde(flatten)]
    content: Option<ContentView>,
}

#[derive(Debug, Serialize)]
struct ContentView {
    cut_at: String,
    source: String,
    /// Rows that the backup carries: all of them, or what changed; deleted ones included.
    rows: u64,
    deleted: u64,
    /// Rows of all tables at the restore point; `None` if a source did not say.
    rows_at_point: Option<u64>,
    parts: u64,
    bytes: u64,
    tables: Vec<TableView>,
}

#[derive(Debug, Serialize)]
struct TableView {
    table: String,
    mode: tidemark::collection::manifest::TableMode,
    rows: u64,
    deleted: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What `--remove-garbage` removed.
#[derive(Debug, Serialize)]
struct RemovedView {
    collection: String,
    older_than_days: u32,
    objects: u64,
    bytes: u64,
    /// By folder of the collection.
    folders: Vec<RemovedFolderView>,
    /// Whole backups that no log entry names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<UnlistedView>,
}

#[derive(Debug, Serialize)]
struct RemovedFolderView {
    folder: String,
    objects: u64,
    bytes: u64,
}

fn remove_garbage(args: &BackupsArgs, collection: &Collection, output: Output) -> Result<Exit> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let grace = DAY.saturating_mul(args.older_than);
    let mut folders: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let unlisted = if args.include_unlisted { Unlisted::Removed } else { Unlisted::Kept };
    let removed = collection.remove_garbage(grace, unlisted, &*system(), &mut |object| {
        let folder = object.path.split('/').next().unwrap_or_default().to_owned();
        let (objects, bytes) = folders.entry(folder).or_default();
        *objects += 1;
        *bytes += object.bytes;
    })?;
    let folders = folders
        .into_iter()
        .map(|(folder, (objects, bytes))| RemovedFolderView { folder, objects, bytes })
        .collect();
    let view = RemovedView {
        collection: args.collection.clone(),
        older_than_days: args.older_than,
        objects: removed.objects,
        bytes: removed.bytes,
        folders,
        kept: unlisted_views(removed.kept),
    };
    output.summary("backups", &view, || removed_text(&view))?;
    Ok(if view.kept.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn removed_text(view: &RemovedView) -> String {
    let mut text = format!(
        "collection `{}`: removed {}, {}, that no backup needs and that were older than {}\n",
        view.collection,
        counted(view.objects, "object"),
        bytes(view.bytes),
        counted(u64::from(view.older_than_days), "day")
    );
    for folder in &view.folders {
        let objects = counted(folder.objects, "object");
        text.push_str(&format!("  {}: {objects}, {}\n", folder.folder, bytes(folder.bytes)));
    }
    for kept in &view.kept {
        text.push_str(&format!(
            "warning: kept: {}; `--include-unlisted` removes it as well\n",
            kept.warning
        ));
    }
    text
}

fn unlisted_views(unlisted: Vec<UnlistedBackup>) -> Vec<UnlistedView> {
    let view = |unlisted: UnlistedBackup| UnlistedView {
        warning: unlisted.to_string(),
        sequence: unlisted.sequence.0,
        backup: unlisted.directory,
        kind: unlisted.kind,
    };
    unlisted.into_iter().map(view).collect()
}

pub(crate) fn run(args: &BackupsArgs, output: Output) -> Result<Exit> {
    let collection = Collection::open(Store::open(&args.collection)?)?;
    if args.remove_garbage {
        return remove_garbage(args, &collection, output);
    }
    let (log, flaw) = collection.log_to_flaw()?;
    let mut backups = Vec::new();
    // One damaged object must not hide the backups beside it.
    let mut damaged: Option<Error> = flaw;
    for entry in &log {
        let read = collection.manifest(entry);
        let damage = read.as_ref().err().map(Error::chain);
        match read {
            Ok(manifest) => backups.push(backup_view(entry, Some(&manifest), damage)),
            Err(error) if matches!(error.kind(), Kind::Broken | Kind::Unsupported) => {
                backups.push(backup_view(entry, None, damage));
                damaged.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let chains = chains(backups);
    // Behind a flaw nothing is listed, and that is told already.
    let unlisted = match &damaged {
        None => unlisted_views(collection.unlisted_backups()?),
        Some(_) => Vec::new(),
    };
    let view = BackupsView {
        collection: args.collection.clone(),
        id: collection.id().to_string(),
        created: show_time(collection.record().created),
        restore_points: log.len() as u64,
        total_bytes: chains.iter().map(|chain| chain.total_bytes).sum(),
        chains,
        unlisted,
    };
    output.summary("backups", &view, || text(&view))?;
    match damaged {
        None if view.unlisted.is_empty() => Ok(Exit::Done),
        None => Ok(Exit::Warnings),
        Some(error) => Err(error),
    }
}

fn backup_view(
    entry: &LogEntry,
    manifest: Option<&Manifest>,
    damage: Option<String>,
) -> BackupView {
    BackupView {
        sequence: entry.sequence.0,
        backup: entry.directory.clone(),
        kind: entry.kind,
        damage,
        content: manifest.map(content_view),
    }
}

fn content_view(manifest: &Manifest) -> ContentView {
    let states = manifest.tables.iter().map(|table| table.state.map(|state| state.rows));
    ContentView {
        cut_at: show_time(manifest.cut_at),
        source: manifest.source.identity.clone(),
        rows: manifest.totals.rows,
        deleted: manifest.totals.tombstones,
        rows_at_point: states.sum(),
        parts: manifest.totals.parts,
        bytes: manifest.totals.bytes,
        tables: manifest
            .tables
            .iter()
            .map(|table| TableView {
                table: table.name.to_string(),
                mode: table.mode,
                rows: table.parts.iter().map(|part| part.rows).sum(),
                deleted: table.parts.iter().map(|part| part.tombstones).sum(),
                bytes: table.parts.iter().map(|part| part.bytes).sum(),
                reason: table.reason.clone(),
            })
            .collect(),
    }
}

/// A chain begins at every full.
fn chains(backups: Vec<BackupView>) -> Vec<ChainView> {
    let mut chains: Vec<ChainView> = Vec::new();
    for backup in backups {
        let bytes = backup.content.as_ref().map_or(0, |content| content.bytes);
        match chains.last_mut() {
            Some(chain) if backup.kind == BackupKind::Incremental => {
                chain.total_bytes += bytes;
                chain.backups.push(backup);
            }
            _ => chains.push(ChainView { total_bytes: bytes, backups: vec![backup] }),
        }
    }
    chains
}

fn text(view: &BackupsView) -> String {
    let mut text = format!(
        "collection `{}`: {}, {}, {}\n",
        view.collection,
        counted(view.chains.len() as u64, "chain"),
        counted(view.restore_points, "restore point"),
        bytes(view.total_bytes)
    );
    for (number, chain) in (1..).zip(&view.chains) {
        text.push_str(&format!("\nchain {number}, {}\n", bytes(chain.total_bytes)));
        text.push_str(&chain_text(chain));
    }
    for unlisted in &view.unlisted {
        text.push_str(&format!("warning: {}\n", unlisted.warning));
    }
    text
}

fn chain_text(chain: &ChainView) -> String {
    let rows: Vec<Vec<String>> = chain
        .backups
        .iter()
        .map(|backup| {
            let dash = || "-".to_owned();
            let content = backup.content.as_ref();
            let shown = |cell: fn(&ContentView) -> String| content.map_or_else(dash, cell);
            vec![
                format!("  #{}", backup.sequence),
                backup.backup.clone(),
                shown(|content| content.cut_at.clone()),
                shown(|content| count(content.tables.len() as u64)),
                shown(|content| content.rows_at_point.map_or_else(|| "-".to_owned(), count)),
                shown(|content| count(content.rows - content.deleted)),
                shown(|content| count(content.deleted)),
                shown(|content| bytes(content.bytes)),
            ]
        })
        .collect();
    let columns = [
        ("  #", Align::Right),
        ("restore point", Align::Left),
        ("cut", Align::Left),
        ("tables", Align::Right),
        ("rows", Align::Right),
        ("written", Align::Right),
        ("deleted", Align::Right),
        ("size", Align::Right),
    ];
    let mut text = human::table(&columns, &rows);
    for backup in &chain.backups {
        if let Some(damage) = &backup.damage {
            text.push_str(&format!("  #{} is damaged: {damage}\n", backup.sequence));
        }
        let tables = backup.content.iter().flat_map(|content| &content.tables);
        for (table, reason) in tables.filter_map(|table| Some((table, table.reason.as_ref()?))) {
            let number = backup.sequence;
            text.push_str(&format!("  #{number} carries `{}` whole: {reason}\n", table.table));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(sequence: u64, kind: BackupKind) -> BackupView {
        let backup = format!("b{sequence}");
        BackupView { sequence, backup, kind, damage: None, content: None }
    }

    #[test]
    fn a_chain_begins_at_every_full() {
        use BackupKind::{Full, Incremental};
        let kinds = [Full, Incremental, Incremental, Full, Full, Incremental];
        let backups = (1..).zip(kinds).map(|(sequence, kind)| backup(sequence, kind)).collect();
        let lengths: Vec<usize> = chains(backups).iter().map(|chain| chain.backups.len()).collect();
        assert_eq!(lengths, [3, 1, 2]);
    }
}
