//! `backup`: a full or an increment, carried on by the same command.

use std::sync::Arc;

use tidemark::Result;
use tidemark::backup::{BackupChoice, BackupOptions, BackupRequest, begin_backup, check_selection};
use tidemark::collection::store::Place as StorePlace;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::executor::Intent;

use crate::args::BackupArgs;
use crate::drive::{Drive, drive};
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{OpenSource, absolute_collection, system};

pub(crate) fn run(args: &BackupArgs, output: Output) -> Result<Exit> {
    let env = system();
    let source_shown = args.source.absolute()?;
    let options = BackupOptions {
        kind: match (args.full, args.incremental) {
            (true, _) => BackupChoice::Full,
            (false, true) => BackupChoice::Incremental,
            (false, false) => BackupChoice::Auto,
        },
        tables: args.selection.patterns(),
        attest: args.attest,
    };
    let state = args.drive.state.as_deref();
    let (database, place) = source_shown.source_and_place(state, &options, &env)?;
    let collection_shown = absolute_collection(&args.collection)?;
    let store = Store::open(&collection_shown)?;
    let collection = if args.incremental {
        // There is nothing in a new collection that an increment could build on.
        Collection::open(store)?
    } else {
        if !matches!(store.place()?, StorePlace::Occupied(_)) {
            // What is refused must not leave an empty collection behind.
            let tables = database.tables()?;
            let tables = tables.iter().map(|(name, schema)| (name, schema));
            check_selection(&options.tables, tables)?;
        }
        Collection::open_or_create(store, &*env)?
    };
    let held = match &database {
        OpenSource::Embedded(database) => held_notice(database)?,
        #[cfg(feature = "postgres")]
        OpenSource::Postgres(_) => None,
    };
    let request = BackupRequest {
        source: database.source(),
        source_shown: &source_shown.to_string(),
        collection: Arc::new(collection),
        collection_shown: &collection_shown,
        options: &options,
        window: args.drive.window(),
    };
    let begun = begin_backup(&place.catalog, &request, Arc::clone(&env))?;
    if begun.is_resumed {
        place.keep_window(begun.id, args.drive.shards_in_flight)?;
    }
    let mut notices = begun.notices;
    notices.extend(held);
    let (place, id, job, notices) = (&place, begun.id, &begun.job, &notices);
    let work = Drive { place, id, job, intent: Intent::CarryOn, notices };
    drive(&work, &env, output)
}

/// What to say of held copies where there is nothing else.
fn held_notice(source: &EmbeddedDatabase) -> Result<Option<String>> {
    if !source.tables()?.is_empty() {
        return Ok(None);
    }
    let held = source.held_copies()?;
    let names: Vec<String> = held.iter().map(|copy| format!("`{}`", copy.name)).collect();
    let notice = format!(
        "the source has held copies only, which no backup includes ({}); `tidemark restore \
         --continue` shows them",
        names.join(", ")
    );
    Ok((!names.is_empty()).then_some(notice))
}
