//! The work of a recorded operation, opened again from what was recorded.

use std::sync::Arc;

use tidemark::backup::{resolved_backup, resume_backup};
use tidemark::catalog::{Catalog, Verb};
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::env::Env;
use tidemark::executor::{Intent, Undo, begin};
use tidemark::ids::OperationId;
use tidemark::operation::TaskOutcome;
use tidemark::restore::options::ResolvedRestore;
use tidemark::restore::{resume_restore, undo_restore};
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
            let target = database(place, &resolved.target_shown, env)?;
            if intent == Intent::Cancel {
                let scratch = target.scratch_dir();
                let job = &undo_restore(target, &scratch);
                return drive(&Drive { place, id, job, intent, notices: &[] }, env, output);
            }
            let collection = collection(&resolved.collection_shown)?;
            let scratch = target.scratch_dir();
            let begun = resume_restore(&place.catalog, id, target, collection, &scratch)?;
            let (job, notices) = (&begun.job, &begun.notices);
            drive(&Drive { place, id, job, intent, notices }, env, output)
        }
        Verb::Backup => {
            let resolved = resolved_backup(&record)?;
            let collection = match collection(&resolved.collection) {
                // What it wrote is gone with the collection.
                Err(error) if intent == Intent::Cancel && error.kind() == Kind::NotFound => {
                    let allocate = || place.catalog.allocate_epoch();
                    let job = &Undo::new(allocate, |_| Ok(TaskOutcome::Discarded));
                    return drive(&Drive { place, id, job, intent, notices: &[] }, env, output);
                }
                opened => opened?,
            };
            let source = database(place, &resolved.source, env)?;
            let begun = resume_backup(&place.catalog, id, source, collection, Arc::clone(env))?;
            let (job, notices) = (&begun.job, &begun.notices);
            drive(&Drive { place, id, job, intent, notices }, env, output)
        }
        Verb::Verify => {
            let message =
                format!("operation {id} is a {}, which this build cannot drive", record.title);
            Err(Error::new(Kind::Unsupported, message))
        }
    }
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

fn collection(shown: &str) -> Result<Arc<Collection>> {
    Collection::open(Store::open(shown)?).map(Arc::new)
}
