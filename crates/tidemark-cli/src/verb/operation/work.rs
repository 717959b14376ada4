//! The work of a recorded operation, opened again from what was recorded.

use std::path::PathBuf;
use std::sync::Arc;

use tidemark::backup::{BackupOptions, resolved_backup, resume_backup};
use tidemark::catalog::{Catalog, Verb};
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::database::{Source, Target};
use tidemark::env::Env;
use tidemark::executor::{Intent, Undo, begin};
use tidemark::ids::OperationId;
use tidemark::operation::TaskOutcome;
use tidemark::restore::options::{MEMORY_BYTES_DEFAULT, ResolvedRestore};
use tidemark::restore::{Room, resume_restore, undo_restore};
use tidemark::verify::{resolved_verify, resume_verify};
use tidemark::{Error, Kind, Result};

use crate::drive::{Drive, drive};
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{DatabaseUrl, Place};

/// Drives operation `id` to its end, whatever verb it is of.
///
/// # Errors
/// What opening its collection or database gives, and what driving it gives.
pub(super) fn carry_on(
    place: &Place,
    id: OperationId,
    intent: Intent,
    env: &Arc<dyn Env>,
    output: Output,
) -> Result<Exit> {
    let record = place.catalog.operation(id)?;
    match record.verb {
        Verb::Restore => {
            let resolved: ResolvedRestore = begin::resolved(&record)?;
            let (target, scratch) = target(place, &resolved.target_shown, env)?;
            if intent == Intent::Cancel {
                let job = &undo_restore(target, &scratch);
                return drive(&Drive { place, id, job, intent, notices: &[] }, env, output);
            }
            let collection = collection(&resolved.collection_shown)?;
            let begun = resume_restore(&place.catalog, id, target, collection, &scratch)?;
            let (job, notices) = (&begun.job, &begun.notices);
            drive(&Drive { place, id, job, intent, notices }, env, output)
        }
        Verb::Backup => {
            let resolved = resolved_backup(&record)?;
            let collection = match collection(&resolved.collection) {
                Err(error) if is_moot(&error, intent) => return end(place, id, env, output),
                opened => opened?,
            };
            let options = begin::options(&record)?;
            let source = source(place, &resolved.source, &options, env)?;
            let begun = resume_backup(&place.catalog, id, source, collection, Arc::clone(env))?;
            let (job, notices) = (&begun.job, &begun.notices);
            drive(&Drive { place, id, job, intent, notices }, env, output)
        }
        Verb::Verify => {
            let resolved = resolved_verify(&record)?;
            let collection = match collection(&resolved.collection) {
                Err(error) if is_moot(&error, intent) => return end(place, id, env, output),
                opened => opened?,
            };
            let room = Room {
                window: place.catalog.state(id)?.state.window,
                // How much was allowed is not recorded: it changes nothing about the verdict.
                memory_bytes: MEMORY_BYTES_DEFAULT,
                scratch: place.scratch(),
            };
            let begun = resume_verify(&place.catalog, id, collection, &room)?;
            let (job, notices) = (&begun.job, &begun.notices);
            drive(&Drive { place, id, job, intent, notices }, env, output)
        }
    }
}

/// Whether what was to be undone is gone with its collection.
fn is_moot(error: &Error, intent: Intent) -> bool {
    intent == Intent::Cancel && error.kind() == Kind::NotFound
}

/// Ends an operation of which nothing is left to be undone.
fn end(place: &Place, id: OperationId, env: &Arc<dyn Env>, output: Output) -> Result<Exit> {
    let job = &Undo::new(|| place.catalog.allocate_epoch(), |_| Ok(TaskOutcome::Discarded));
    drive(&Drive { place, id, job, intent: Intent::Cancel, notices: &[] }, env, output)
}

/// The target of a recorded restore, and the folder for what it does not keep in memory.
fn target(place: &Place, shown: &str, env: &Arc<dyn Env>) -> Result<(Arc<dyn Target>, PathBuf)> {
    if let Ok(DatabaseUrl::Postgres(url)) = shown.parse() {
        return Ok((url.target(place, env)?, place.scratch()));
    }
    let database = database(place, shown, env)?;
    let scratch = database.scratch_dir();
    Ok((database, scratch))
}

/// The database that the operation is recorded in, or the one it names.
fn database(place: &Place, shown: &str, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
    if let Some(database) = &place.database {
        return Ok(Arc::clone(database));
    }
    let url: DatabaseUrl = shown.parse().map_err(|refusal| {
        Error::new(Kind::Broken, format!("the operation names the database `{shown}`: {refusal}"))
    })?;
    url.open(env)
}

/// The source that a backup names.
fn source(
    place: &Place,
    shown: &str,
    options: &BackupOptions,
    env: &Arc<dyn Env>,
) -> Result<Arc<dyn Source>> {
    if let Some(database) = &place.database {
        let database: Arc<EmbeddedDatabase> = Arc::clone(database);
        return Ok(database);
    }
    let url: DatabaseUrl = shown.parse().map_err(|refusal| {
        Error::new(Kind::Broken, format!("the operation names the database `{shown}`: {refusal}"))
    })?;
    Ok(url.source(place.scratch(), options, env)?.source())
}

fn collection(shown: &str) -> Result<Arc<Collection>> {
    Collection::open(Store::open(shown)?).map(Arc::new)
}
