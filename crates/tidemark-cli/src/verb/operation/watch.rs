//! `operation watch`: the progress of an operation that another process drives.

use std::sync::Arc;
use std::time::Duration;

use tidemark::Result;
use tidemark::catalog::Catalog;

use super::Look;
use crate::args::OneArgs;
use crate::exit::Exit;
use crate::output::{Output, status};
use crate::place::{Place, system};
use crate::progress::Progress;

/// Between two looks; the driver writes what is looked at about once a second.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(one, &env)?;
    let record = place.catalog.operation(id)?;
    output.note(&format!("operation {id}: {}", record.title));
    let name = format!("{} {id}", record.verb.name());
    let mut progress = Progress::new(output, Arc::clone(&env), &name, record.step_count);
    loop {
        let look = Look::at(&place, id)?;
        let step = look.stored.state.phase.step();
        let shards = match step {
            Some(step) if look.stored.state.phase.has_shards() => place.catalog.shards(id, step)?,
            _ => Vec::new(),
        };
        let (steps, elapsed) = (record.step_count, progress.elapsed());
        let view = status::of_stored(id.0, &look.stored, steps, &shards, elapsed, progress.rate());
        progress.show(&view);
        if let Some(ended) = look.ended() {
            progress.finish();
            return look.tell(&place, id, &ended, output);
        }
        if look.driver().is_none() {
            progress.finish();
            return Ok(look.tell_idle(&place, id, output));
        }
        env.sleep(LOOK);
    }
}
