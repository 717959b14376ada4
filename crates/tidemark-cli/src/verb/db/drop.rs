//! `db drop`: a table or a held copy goes, with its rows.

use serde::Serialize;
use tidemark::Result;

use crate::args::DropArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::counted;
use crate::place::{open_database, system};

#[derive(Debug, Serialize)]
struct DropView {
    table: String,
    /// Whether it was a held copy.
    held: bool,
    rows: u64,
}

pub(crate) fn run(args: &DropArgs, output: Output) -> Result<Exit> {
    let database = open_database(&args.db, &system())?;
    let held = database.held_copies()?;
    let held = held.iter().find(|copy| copy.name == args.table);
    let tables = database.tables()?;
    let found = held.or_else(|| tables.iter().find(|table| table.name == args.table));
    database.drop_table(&args.table)?;
    let view = DropView {
        table: args.table.to_string(),
        held: held.is_some(),
        rows: found.map_or(0, |found| found.digest.rows),
    };
    output.summary("db drop", &view, || {
        let what = if view.held { "the held copy" } else { "table" };
        format!("dropped {what} `{}` with {}\n", view.table, counted(view.rows, "row"))
    })?;
    Ok(Exit::Done)
}
