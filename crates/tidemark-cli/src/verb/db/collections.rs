//! `db collections`: for whom a database keeps its changes, and no longer.

use serde::Serialize;
use tidemark::{Error, Kind, Result};

use crate::args::CollectionsArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{self, Align, count};
use crate::place::{open_database, system};
use crate::shell::word;

#[derive(Debug, Serialize)]
struct CollectionsView {
    collections: Vec<CollectionView>,
    /// Whether a collection was forgotten, which is not among them any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten: Option<String>,
}

#[derive(Debug, Serialize)]
struct CollectionView {
    id: String,
    /// The cut that its next increment begins at.
    position: u64,
    /// Cuts after that one.
    cuts_since: u64,
}

pub(crate) fn run(args: &CollectionsArgs, output: Output) -> Result<Exit> {
    let database = open_database(&args.db, &system())?;
    if let Some(id) = args.forget {
        if database.collections()?.iter().all(|kept| kept.id != id) {
            let message = format!(
                "no changes are kept for a collection {id}; `tidemark db collections --db {}` lists \
                 those that they are kept for",
                word(&args.db.display().to_string())
            );
            return Err(Error::new(Kind::NotFound, message));
        }
        database.forget_collection(id)?;
    }
    let collections = database.collections()?;
    let collections = collections.iter().map(|kept| CollectionView {
        id: kept.id.to_string(),
        position: kept.position.0,
        cuts_since: kept.cuts_since,
    });
    let forgotten = args.forget.map(|id| id.to_string());
    let view = CollectionsView { collections: collections.collect(), forgotten };
    output.summary("db collections", &view, || text(&view))?;
    Ok(Exit::Done)
}

fn text(view: &CollectionsView) -> String {
    let mut text = String::new();
    if let Some(id) = &view.forgotten {
        text.push_str(&format!("collection {id} is forgotten: no changes are kept for it\n"));
    }
    if view.collections.is_empty() {
        text.push_str("changes are kept for no collection\n");
        return text;
    }
    let rows: Vec<Vec<String>> = view
        .collections
        .iter()
        .map(|kept| vec![kept.id.clone(), count(kept.position), count(kept.cuts_since)])
        .collect();
    let columns =
        [("collection", Align::Left), ("cut", Align::Right), ("cuts since", Align::Right)];
    text.push_str(&human::table(&columns, &rows));
    text
}
