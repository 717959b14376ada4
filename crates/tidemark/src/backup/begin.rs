//! Recording a backup, or finding the unfinished one that the same command carries on.

use std::sync::Arc;

use super::cut::{Cut, CutRequest};
use super::job::{BackupJob, JobParts};
use super::parent::choose_kind;
use super::{BackupOptions, BackupRequest, BegunBackup, ResolvedBackup};
use crate::catalog::{Catalog, OperationRecord, Verb};
use crate::collection::manifest::{BackupKind, LogEntry};
use crate::collection::{Collection, chain};
use crate::database::Source;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::executor::begin::{Asked, NewOperation, Unfinished};
use crate::executor::{self};
use crate::ids::{CollectionId, OperationId};
use crate::operation::retry::{Decision, decide};
use crate::operation::{Planned, State, Work};

/// Key and payload bytes that take a byte of a part, where no backup tells: what zstd makes
/// of typed rows of ordinary tables.
const ROW_BYTES_PER_PART_BYTE: u64 = 3;

/// Records a backup and takes its cut, or carries on the unfinished one of the same source,
/// collection and tables.
///
/// What is wrong with the request is told before anything is recorded. A cut that could not
/// be taken for reasons that pass (a writer that does not let go) is left to the operation.
///
/// # Errors
/// [`Kind::NotFound`]: an increment into an empty collection, a pattern that selects no table.
/// [`Kind::Usage`]: an increment on top of another database's backup or of another selection,
/// or options other than those of the unfinished backup. [`Kind::Broken`]: the collection is
/// damaged in a way that the backup would build on. [`Kind::Unsupported`]: a table without a
/// key, or a store that cannot be written to safely.
pub fn begin_backup<'c>(
    catalog: &'c dyn Catalog,
    request: &BackupRequest<'_>,
    env: Arc<dyn Env>,
) -> Result<BegunBackup<'c>> {
    let source_identity = request.source.identity()?;
    let identity = identity_of(request.collection.id(), &source_identity, &request.options.tables);
    let found = executor::begin::unfinished(catalog, &identity, request.options)?;
    if let Some(unfinished) = found {
        let Unfinished { id, resolved, record } = unfinished;
        let parts = JobParts {
            catalog,
            id,
            source: Arc::clone(&request.source),
            collection: Arc::clone(&request.collection),
            env,
            options: request.options.clone(),
            resolved,
        };
        return Ok(carried_on(parts, &record));
    }

    let log = request.collection.log()?;
    let chosen = choose_kind(&request.collection, &log, &source_identity, request.options)?;
    let proof_bytes = bytes_of_last(&request.collection, &log, chosen.kind);
    let mut resolved = ResolvedBackup {
        source: request.source_shown.to_owned(),
        source_identity,
        collection: request.collection_shown.to_owned(),
        collection_id: request.collection.id(),
        kind: chosen.kind,
        mark: format!("{:032x}", env.random_id()),
        log_length: log.len() as u64,
        proof_bytes,
    };
    let cut = first_cut(request, &resolved, &*env)?;
    if resolved.proof_bytes == 0 {
        let planned = cut.iter().flat_map(Cut::planned).map(|shard| shard.bytes);
        resolved.proof_bytes = planned.fold(0, u64::saturating_add) / ROW_BYTES_PER_PART_BYTE;
    }
    let id = record(catalog, &identity, request, &resolved, cut.as_ref(), &*env)?;
    let mut notices: Vec<String> = chosen.notice.into_iter().collect();
    notices.extend(cut.iter().flat_map(Cut::notices));
    let parts = JobParts {
        catalog,
        id,
        source: Arc::clone(&request.source),
        collection: Arc::clone(&request.collection),
        env,
        options: request.options.clone(),
        resolved,
    };
    Ok(BegunBackup { id, is_resumed: false, job: BackupJob::new(parts, cut), notices })
}

/// Carries on backup `id`, whatever its state: for `operation resume` and `operation cancel`.
///
/// # Errors
/// [`Kind::Usage`] when `id` is no backup, or of another source or collection than given.
pub fn resume_backup<'c>(
    catalog: &'c dyn Catalog,
    id: OperationId,
    source: Arc<dyn Source>,
    collection: Arc<Collection>,
    env: Arc<dyn Env>,
) -> Result<BegunBackup<'c>> {
    let record = catalog.operation(id)?;
    let resolved = resolved_backup(&record)?;
    let options: BackupOptions = executor::begin::options(&record)?;
    let found = source.identity()?;
    let differs = |what: &str, found: String, expected: String| {
        let title = &record.title;
        let message =
            format!("operation {id} is a {title}: the {what} given is {found}, not {expected}");
        Err(Error::new(Kind::Usage, message))
    };
    if found != resolved.source_identity {
        return differs("source", found, resolved.source_identity);
    }
    if collection.id() != resolved.collection_id {
        let (found, expected) = (collection.id().to_string(), resolved.collection_id.to_string());
        return differs("collection", found, expected);
    }
    let parts = JobParts { catalog, id, source, collection, env, options, resolved };
    Ok(carried_on(parts, &record))
}

/// What a backup resolved when it was recorded: its places, to open them again.
///
/// # Errors
/// [`Kind::Usage`] for an operation that is no backup; [`Kind::Broken`] for a damaged record.
pub fn resolved_backup(record: &OperationRecord) -> Result<ResolvedBackup> {
    if record.verb != Verb::Backup {
        let message = format!("a {} is no backup", record.title);
        return Err(Error::new(Kind::Usage, message));
    }
    executor::begin::resolved(record)
}

fn carried_on<'c>(parts: JobParts<'c>, record: &OperationRecord) -> BegunBackup<'c> {
    let notice = format!(
        "carrying on operation {}, begun {}; if its snapshot is gone, it starts over at a new one",
        parts.id,
        chain::show_time(record.created_at)
    );
    let id = parts.id;
    BegunBackup { id, is_resumed: true, job: BackupJob::new(parts, None), notices: vec![notice] }
}

/// Takes the cut of a new backup; `None` when it is worth trying again.
fn first_cut(
    request: &BackupRequest<'_>,
    resolved: &ResolvedBackup,
    env: &dyn Env,
) -> Result<Option<Cut>> {
    let cut = Cut::take(&CutRequest {
        source: &*request.source,
        collection: &request.collection,
        kind: resolved.kind,
        source_identity: &resolved.source_identity,
        tables: &request.options.tables,
        mark: &resolved.mark,
        env,
    });
    match cut {
        Ok(cut) => Ok(Some(cut)),
        Err(error) if decide(error.kind()) == Decision::Fail => Err(error),
        Err(_) => Ok(None),
    }
}

fn record(
    catalog: &dyn Catalog,
    identity: &str,
    request: &BackupRequest<'_>,
    resolved: &ResolvedBackup,
    cut: Option<&Cut>,
    env: &dyn Env,
) -> Result<OperationId> {
    let title = format!("backup of `{}` into `{}`", resolved.source, resolved.collection);
    let plan = serde_json::to_vec(resolved).expect("what was resolved is plain data");
    let mut work = Work::default();
    cut.into_iter().flat_map(Cut::planned).for_each(|shard| work += shard);
    let planned = Planned { steps: vec![work], proof_bytes: resolved.proof_bytes };
    let new = NewOperation {
        verb: Verb::Backup,
        identity,
        title: &title,
        plan: &plan,
        step_count: 1,
        at: env.wall_time(),
    };
    let asked = Asked { options: request.options, resolved };
    executor::begin::record(catalog, &new, asked, &State::new(planned, request.window))
}

fn identity_of(collection: CollectionId, source_identity: &str, tables: &[String]) -> String {
    let tables = serde_json::to_string(tables).expect("texts are plain data");
    format!("backup|{collection}|{source_identity}|{tables}")
}

/// Bytes of the parts of the newest backup of that kind: the best guess at what this one's
/// proof will read. 0 when there is none, or it cannot be read: then the cut tells.
fn bytes_of_last(collection: &Collection, log: &[LogEntry], kind: BackupKind) -> u64 {
    let last = log.iter().rev().find(|entry| entry.kind == kind);
    last.and_then(|entry| collection.manifest(entry).ok())
        .map_or(0, |manifest| manifest.totals.bytes)
}
