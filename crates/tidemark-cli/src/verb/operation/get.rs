//! `operation get`: everything that is recorded of one operation.

use tidemark::Result;
use tidemark::catalog::Catalog;

use super::Look;
use crate::args::OneArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::operation::{DetailView, ListedView, ShardView, end_text};
use crate::place::{Place, system};

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(one, &env)?;
    let Look { record, stored, holding } = Look::at(&place, id)?;
    let shards = match stored.state.phase.step() {
        Some(step) => place.catalog.shards(id, step)?,
        None => Vec::new(),
    };
    let now = env.boot_time();
    let shards = shards.iter().map(|(shard, progress)| ShardView::new(*shard, progress, now));
    let shards = shards.collect();
    let listed = ListedView::new(id, &record, &stored, holding);
    let view = DetailView::new(listed, &record, &stored, shards);
    let end = end_text(id, &record, &stored);
    output.summary("operation get", &view, || view.text(&record, end.as_deref()))?;
    Ok(Exit::Done)
}
