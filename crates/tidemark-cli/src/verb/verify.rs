//! `verify`: whether a collection still holds what it says, carried on by the same command.

use std::sync::Arc;

use tidemark::Result;
use tidemark::collection::{Collection, Store};
use tidemark::executor::Intent;
use tidemark::restore::Room;
use tidemark::verify::{VerifyOptions, VerifyRequest, begin_verify};

use crate::args::VerifyArgs;
use crate::drive::{Drive, drive};
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, absolute_collection, system};

pub(crate) fn run(args: &VerifyArgs, output: Output) -> Result<Exit> {
    let env = system();
    let shown = absolute_collection(&args.collection)?;
    // Before the state directory is made: a mistyped path must leave nothing behind.
    let collection = Arc::new(Collection::open(Store::open(&shown)?)?);
    let place = Place::of_state(args.drive.state.as_deref(), &env)?;
    let options = VerifyOptions { level: args.level, at: args.at.clone() };
    let room =
        Room { window: args.drive.window(), memory_bytes: args.memory, scratch: place.scratch() };
    let request =
        VerifyRequest { collection, collection_shown: &shown, options: &options, room: &room };
    let begun = begin_verify(&place.catalog, &request, &*env)?;
    let work = Drive {
        place: &place,
        id: begun.id,
        job: &begun.job,
        intent: Intent::CarryOn,
        notices: &begun.notices,
    };
    drive(&work, &env, output)
}
