//! `operation forget`: removes the record of an operation that has ended.

use tidemark::Result;
use tidemark::catalog::Catalog;

use super::tell_request;
use crate::args::OneArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, system};

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let (place, id) = Place::find_one(one, &system())?;
    let title = place.catalog.operation(id)?.title;
    place.catalog.forget(id)?;
    tell_request(id, "forget", true, format!("operation {id} is forgotten: {title}"), output)
}
