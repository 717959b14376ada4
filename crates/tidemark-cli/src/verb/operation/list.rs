//! `operation list`.

use serde::Serialize;
use tidemark::catalog::Catalog;
use tidemark::{Kind, Result};

use super::Look;
use crate::args::LocationArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::operation::{ListedView, list_text};
use crate::place::{Place, system};

#[derive(Debug, Serialize)]
struct ListView {
    operations: Vec<ListedView>,
}

pub(crate) fn run(location: &LocationArgs, output: Output) -> Result<Exit> {
    let mut operations = Vec::new();
    if let Some(place) = Place::find(location, &system())? {
        for id in place.catalog.list()? {
            match Look::at(&place, id) {
                Ok(Look { record, stored, holding }) => {
                    operations.push(ListedView::new(id, &record, &stored, holding));
                }
                // Forgotten since the list was read.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    let view = ListView { operations };
    output.summary("operation list", &view, || list_text(&view.operations))?;
    Ok(Exit::Done)
}
