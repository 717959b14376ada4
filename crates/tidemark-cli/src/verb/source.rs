//! `source`: what increments of a server need.

use std::time::Duration;

use serde::Serialize;
use tidemark::backup::TablePatterns;
use tidemark::collection::{Collection, Store};
use tidemark::database::postgres::setup::{CaptureStatus, drop_capture, set_up, status};
use tidemark::ids::{CollectionId, TableName};
use tidemark::{Error, Kind, Result};

use crate::args::{CapturedArgs, SetupArgs, SourceArgs};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{bytes, counted};
use crate::place::{DatabaseUrl, absolute_collection, system};
use crate::shell::word;

pub(crate) fn run(args: &SourceArgs, output: Output) -> Result<Exit> {
    match args {
        SourceArgs::Setup(args) => setup(args, output),
        SourceArgs::Status(args) => show(args, output),
        SourceArgs::Drop(args) => remove(args, output),
    }
}

/// How a server captures changes for a collection.
#[derive(Debug, Serialize)]
struct StatusView {
    collection: String,
    slot: Option<SlotView>,
    is_published: bool,
    /// Tables that increments carry as changes.
    captured: Vec<TableName>,
    /// Tables that they carry whole, and why.
    whole: Vec<WholeView>,
    wal_level: String,
    /// `max_slot_wal_keep_size`; none for no limit.
    wal_kept_bytes_max: Option<u64>,
    /// What somebody must look at.
    warnings: Vec<String>,
    /// The command that removes it all.
    drop: String,
}

#[derive(Debug, Serialize)]
struct SlotView {
    name: String,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    wal_status: Option<String>,
    /// Bytes of the log that are kept for it.
    retained_bytes: u64,
    /// Bytes that can still be written before it is lost.
    safe_bytes: Option<i64>,
    /// What is wrong with it.
    flaw: Option<String>,
}

#[derive(Debug, Serialize)]
struct WholeView {
    table: TableName,
    reason: String,
}

#[derive(Debug, Serialize)]
struct SetupView {
    added: Vec<TableName>,
    removed: Vec<TableName>,
    made_slot: bool,
    #[serde(flatten)]
    status: StatusView,
}

#[derive(Debug, Serialize)]
struct DropView {
    slot: bool,
    publication: bool,
}

fn setup(args: &SetupArgs, output: Output) -> Result<Exit> {
    let server = args.source.server()?;
    let shown = absolute_collection(&args.collection)?;
    let mut patterns = TablePatterns::new(&args.selection.patterns())?;
    let nobody = CollectionId(0);
    let before = status(&server, nobody)?;
    let tables = before.captured.iter().chain(before.whole.iter().map(|(table, _)| table));
    if tables.filter(|table| patterns.selects(table)).count() == 0 {
        let message = format!("no table of `{}` is selected", args.source);
        return Err(Error::new(Kind::NotFound, message));
    }
    // What is refused must not leave an empty collection behind.
    let is_possible = before.wal_level == "logical" && !before.is_standby;
    let collection = match is_possible {
        true => Collection::open_or_create(Store::open(&shown)?, &*system())?.id(),
        false => nobody,
    };
    if is_possible && status(&server, collection)?.slot.is_none() {
        // Said before it is made.
        let drop = drop_command(&args.source, collection);
        output.notice(&keeping(&before, &drop));
    }
    let wait = Duration::from_secs(u64::from(args.wait));
    let done = set_up(&server, collection, &mut |name| patterns.selects(name), wait)?;
    let status = view(&args.source, collection, &done.status);
    let view =
        SetupView { added: done.added, removed: done.removed, made_slot: done.made_slot, status };
    output.summary("source setup", &view, || {
        let mut text = match view.made_slot {
            true => format!("changes are kept from now on, for collection {collection}\n"),
            false => format!("changes are kept as before, for collection {collection}\n"),
        };
        let some = |what: &str, tables: &[TableName]| {
            let tables: Vec<String> = tables.iter().map(|name| format!("`{name}`")).collect();
            let lines = (!tables.is_empty()).then(|| format!("  {what}: {}\n", tables.join(", ")));
            lines.unwrap_or_default()
        };
        text.push_str(&some("added", &view.added));
        text.push_str(&some("taken out", &view.removed));
        text.push_str(&status_text(&view.status));
        text
    })?;
    Ok(Exit::Done)
}

fn show(args: &CapturedArgs, output: Output) -> Result<Exit> {
    let (server, collection) = (args.source.server()?, collection_of(args)?);
    let view = view(&args.source, collection, &status(&server, collection)?);
    output.summary("source status", &view, || status_text(&view))?;
    let is_well = view.slot.as_ref().is_none_or(|slot| slot.flaw.is_none());
    Ok(if is_well { Exit::Done } else { Exit::Warnings })
}

fn remove(args: &CapturedArgs, output: Output) -> Result<Exit> {
    let (server, collection) = (args.source.server()?, collection_of(args)?);
    let dropped = drop_capture(&server, collection)?;
    let view = DropView { slot: dropped.slot, publication: dropped.publication };
    output.summary("source drop", &view, || match (view.slot, view.publication) {
        (false, false) => format!("nothing was kept for collection {collection}\n"),
        _ => format!(
            "nothing is kept for collection {collection} any more; its next increment needs \
             `tidemark source setup` and a full backup\n"
        ),
    })?;
    Ok(Exit::Done)
}

fn collection_of(args: &CapturedArgs) -> Result<CollectionId> {
    match (&args.id, &args.collection) {
        (Some(id), _) => Ok(*id),
        (None, Some(collection)) => {
            Ok(Collection::open(Store::open(&absolute_collection(collection)?)?)?.id())
        }
        (None, None) => Err(Error::new(Kind::Usage, "name the collection with --to or --id")),
    }
}

fn drop_command(source: &DatabaseUrl, collection: CollectionId) -> String {
    format!("tidemark source drop --source {} --id {collection}", word(&source.to_string()))
}

/// What a slot means for the server.
fn keeping(status: &CaptureStatus, drop: &str) -> String {
    let limit = match status.wal_kept_bytes_max {
        Some(max) => format!(
            "at most {} are kept (max_slot_wal_keep_size); if more is written between two \
             increments, the slot is lost and a full backup is needed",
            bytes(max)
        ),
        None => "max_slot_wal_keep_size is not set, so there is no limit: if no increment is \
                 taken for long, the server's disk fills up and the server stops"
            .to_owned(),
    };
    format!(
        "the slot makes the server keep its log from one increment to the next; {limit}. It is \
         removed with `{drop}`"
    )
}

fn view(source: &DatabaseUrl, collection: CollectionId, status: &CaptureStatus) -> StatusView {
    let drop = drop_command(source, collection);
    let mut warnings = Vec::new();
    if let (Some(slot), None) = (&status.slot, status.wal_kept_bytes_max) {
        warnings.push(format!(
            "nothing limits what the server keeps for `{}` (now {}): set max_slot_wal_keep_size, \
             or watch the disk",
            slot.name,
            bytes(slot.retained_bytes)
        ));
    }
    if let Some(flaw) = &status.slot_flaw {
        warnings.push(format!(
            "the slot cannot tell what changed: {flaw}. Remove it with `{drop}`, set up again and \
             take a full backup"
        ));
    }
    let slot = status.slot.as_ref().map(|slot| SlotView {
        name: slot.name.clone(),
        wal_status: slot.wal_status.clone(),
        retained_bytes: slot.retained_bytes,
        safe_bytes: slot.safe_bytes,
        flaw: status.slot_flaw.clone(),
    });
    let whole = status.whole.iter();
    StatusView {
        collection: collection.to_string(),
        slot,
        is_published: status.is_published,
        captured: status.captured.clone(),
        whole: whole
            .map(|(table, reason)| WholeView { table: table.clone(), reason: reason.clone() })
            .collect(),
        wal_level: status.wal_level.clone(),
        wal_kept_bytes_max: status.wal_kept_bytes_max,
        warnings,
        drop,
    }
}

fn status_text(view: &StatusView) -> String {
    let mut text = match &view.slot {
        None => "no slot: changes are not kept, and increments cannot be taken\n".to_owned(),
        Some(slot) => {
            let safe = match slot.safe_bytes.and_then(|safe| u64::try_from(safe).ok()) {
                Some(safe) => format!(", {} more until it is lost", bytes(safe)),
                None => String::new(),
            };
            let status = slot.wal_status.as_deref().unwrap_or("unknown");
            format!(
                "slot `{}`: {status}, {} of the log are kept{safe}\n",
                slot.name,
                bytes(slot.retained_bytes)
            )
        }
    };
    let captured = counted(view.captured.len() as u64, "table");
    text.push_str(&format!("increments carry the changes of {captured}\n"));
    for whole in &view.whole {
        text.push_str(&format!("  `{}` is carried whole: {}\n", whole.table, whole.reason));
    }
    for warning in &view.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if view.slot.is_some() || view.is_published {
        text.push_str(&format!("removed with: {}\n", view.drop));
    }
    text
}
