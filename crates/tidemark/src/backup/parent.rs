//! Whether an increment can be taken on top of what the collection has.

use serde_json::Value;

use super::{BackupChoice, BackupOptions, SELECTION};
use crate::collection::Collection;
use crate::collection::manifest::{BackupKind, LogEntry, Manifest};
use crate::error::{Error, Kind, Result};

/// The kind of backup that is taken, and why if nobody asked for it.
#[derive(Debug)]
pub(super) struct ChosenKind {
    pub(super) kind: BackupKind,
    pub(super) notice: Option<String>,
}

/// Decides between full and increment.
///
/// # Errors
/// [`Kind::NotFound`]: an increment into an empty collection. [`Kind::Usage`]: the newest backup
/// is of another database and no full is asked for, or an increment is and it is of another
/// selection. [`Kind::Broken`]: the log, or the
/// newest manifest unless a full is asked for, is damaged.
pub(super) fn choose_kind(
    collection: &Collection,
    log: &[LogEntry],
    source_identity: &str,
    options: &BackupOptions,
) -> Result<ChosenKind> {
    let chosen = |kind, notice| Ok(ChosenKind { kind, notice });
    let newest = match (options.kind, log.last()) {
        (BackupChoice::Full, _) => return chosen(BackupKind::Full, None),
        (BackupChoice::Auto, None) => {
            let notice = "taking a full backup: the collection has none yet".to_owned();
            return chosen(BackupKind::Full, Some(notice));
        }
        (BackupChoice::Incremental, None) => {
            let message = format!(
                "take an increment into {}: the collection has no backup to build on; take a \
                 full backup first",
                collection.store()
            );
            return Err(Error::new(Kind::NotFound, message));
        }
        (BackupChoice::Auto | BackupChoice::Incremental, Some(newest)) => newest,
    };
    let newest = collection.manifest(newest)?;
    // Another database's rows are mixed into a collection only if somebody says so.
    check_source(&newest, source_identity)?;
    match (options.kind, check_selection_of(&newest, &options.tables)) {
        (_, Ok(())) => chosen(BackupKind::Incremental, None),
        (BackupChoice::Incremental, Err(refused)) => Err(refused),
        (BackupChoice::Auto | BackupChoice::Full, Err(refused)) => {
            let notice = format!("taking a full backup: {}", refused.message());
            chosen(BackupKind::Full, Some(notice))
        }
    }
}

/// Refuses to build an increment on `parent` unless it is of the same source and selection.
///
/// # Errors
/// [`Kind::Usage`], naming what differs and what to do.
pub(super) fn check_parent(
    parent: &Manifest,
    source_identity: &str,
    tables: &[String],
) -> Result<()> {
    check_source(parent, source_identity)?;
    check_selection_of(parent, tables)
}

fn check_source(parent: &Manifest, source_identity: &str) -> Result<()> {
    if parent.source.identity == source_identity {
        return Ok(());
    }
    let message = format!(
        "the newest backup `{}` is of another database ({}, this is {source_identity}); an \
         increment can only follow a backup of the same one. Back up into another collection, or \
         begin a chain of this database in this one with --full",
        parent.directory, parent.source.identity
    );
    Err(Error::new(Kind::Usage, message))
}

fn check_selection_of(parent: &Manifest, tables: &[String]) -> Result<()> {
    let (before, now) = (selection_of(parent), selection(tables));
    if before != now {
        let message = format!(
            "the newest backup `{}` is of {}, this one is to be of {}; an increment can only \
             follow a backup of the same tables, so ask for those, or take a full backup",
            parent.directory,
            shown(&before),
            shown(&now)
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(())
}

/// The selection in its stored form: sorted, each once.
pub(super) fn selection(tables: &[String]) -> Vec<String> {
    let mut selection = tables.to_vec();
    selection.sort();
    selection.dedup();
    selection
}

/// The selection that a manifest tells; none means all.
pub(super) fn selection_of(manifest: &Manifest) -> Vec<String> {
    let patterns = manifest.extra.get(SELECTION).and_then(Value::as_array);
    let texts = patterns.into_iter().flatten().filter_map(Value::as_str);
    selection(&texts.map(str::to_owned).collect::<Vec<String>>())
}

fn shown(selection: &[String]) -> String {
    if selection.is_empty() {
        return "all tables".to_owned();
    }
    selection.iter().map(|pattern| format!("`{pattern}`")).collect::<Vec<String>>().join(", ")
}
