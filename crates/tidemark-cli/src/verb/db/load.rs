//! `db load`: a CSV file into a table, all of it or nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tidemark::database::embedded::{EmbeddedDatabase, LoadMode, LoadReport, LoadRequest};
use tidemark::ids::TableName;
use tidemark::row::LogicalType;
use tidemark::{Error, Kind, Result};

use crate::args::LoadArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{bytes, count, counted, duration};
use crate::place::{DatabaseUrl, system};

#[derive(Debug, Serialize)]
struct LoadView {
    table: String,
    rows: u64,
    inserted: u64,
    updated: u64,
    deleted: u64,
    unchanged: u64,
    schema_changes: Vec<String>,
    bytes: u64,
    seconds_elapsed: f64,
}

pub(crate) fn run(args: LoadArgs, output: Output) -> Result<Exit> {
    let env = system();
    let begun = env.boot_time();
    let request = LoadRequest {
        table: args.table,
        file: args.file,
        key: args.key,
        mode: if args.sync { LoadMode::Sync } else { LoadMode::Create },
        shards: args.shards,
        types: types(args.types)?,
    };
    let url = DatabaseUrl::Embedded(args.db);
    if url.is_missing() {
        // A file that is refused must not leave an empty database behind.
        request.check()?;
    }
    let database = url.open_or_create(&env)?;
    kept_cut(&database, &request)?.into_iter().for_each(|notice| output.notice(&notice));
    let report = database.load(&request)?;
    let elapsed = env.boot_time().since(begun);
    let view = view(&request.table, &report, elapsed);
    output.summary("db load", &view, || text(&view, args.sync, elapsed))?;
    Ok(Exit::Done)
}

/// What there is to know when another number of shards is asked for than a table has.
fn kept_cut(database: &EmbeddedDatabase, request: &LoadRequest) -> Result<Option<String>> {
    let (LoadMode::Sync, Some(asked)) = (request.mode, request.shards) else { return Ok(None) };
    let tables = database.tables()?;
    let found = tables.iter().find(|table| table.name == request.table);
    let other = found.map(|table| table.shards.len() as u64).filter(|cut| *cut != u64::from(asked));
    Ok(other.map(|cut| {
        let (table, cut) = (&request.table, counted(cut, "shard"));
        format!("`--shards {asked}` is left out of account: table `{table}` stays cut into {cut}")
    }))
}

fn types(given: Vec<(String, LogicalType)>) -> Result<BTreeMap<String, LogicalType>> {
    let mut types = BTreeMap::new();
    for (column, logical) in given {
        if let Some(before) = types.insert(column.clone(), logical) {
            let message = format!(
                "--type: column `{column}` is said to be {} and {}",
                before.name(),
                logical.name()
            );
            return Err(Error::new(Kind::Usage, message));
        }
    }
    Ok(types)
}

fn view(table: &TableName, report: &LoadReport, elapsed: Duration) -> LoadView {
    LoadView {
        table: table.to_string(),
        rows: report.rows,
        inserted: report.inserted,
        updated: report.updated,
        deleted: report.deleted,
        unchanged: report.unchanged,
        schema_changes: report.schema_changes.iter().map(ToString::to_string).collect(),
        bytes: report.bytes,
        seconds_elapsed: elapsed.as_millis() as f64 / 1000.0,
    }
}

fn text(view: &LoadView, is_sync: bool, elapsed: Duration) -> String {
    let mut text = format!(
        "loaded {} ({}) into `{}` in {}",
        counted(view.rows, "row"),
        bytes(view.bytes),
        view.table,
        duration(elapsed)
    );
    if is_sync {
        text.push_str(&format!(
            ": {} inserted, {} updated, {} deleted, {} unchanged",
            count(view.inserted),
            count(view.updated),
            count(view.deleted),
            count(view.unchanged)
        ));
    }
    text.push('\n');
    for change in &view.schema_changes {
        text.push_str(&format!("  {change}\n"));
    }
    text
}
