//! `db tables`: what an embedded database holds.

use serde::Serialize;
use tidemark::Result;
use tidemark::database::embedded::TableSummary;

use crate::args::TablesArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{self, Align, bytes, count};
use crate::place::{open_database, system};

#[derive(Debug, Serialize)]
struct TablesView {
    tables: Vec<TableView>,
}

#[derive(Debug, Serialize)]
struct TableView {
    table: String,
    /// Whether it is a held copy, which no reader sees.
    held: bool,
    rows: u64,
    row_bytes: u64,
    shards: u64,
    key: Vec<String>,
    columns: Vec<ColumnView>,
    digest: String,
}

#[derive(Debug, Serialize)]
struct ColumnView {
    name: String,
    #[serde(rename = "type")]
    logical: &'static str,
}

pub(crate) fn run(args: &TablesArgs, output: Output) -> Result<Exit> {
    let database = open_database(&args.db, &system())?;
    let mut tables: Vec<TableView> =
        database.tables()?.iter().map(|table| TableView::new(table, false)).collect();
    tables.extend(database.held_copies()?.iter().map(|copy| TableView::new(copy, true)));
    let view = TablesView { tables };
    output.summary("db tables", &view, || text(&view.tables))?;
    Ok(Exit::Done)
}

impl TableView {
    fn new(table: &TableSummary, held: bool) -> TableView {
        let columns = &table.schema.columns;
        let name_of = |id| columns.iter().find(|column| column.id == id).map(|it| it.name.clone());
        TableView {
            table: table.name.to_string(),
            held,
            rows: table.digest.rows,
            row_bytes: table.row_bytes,
            shards: table.shards.len() as u64,
            key: table.schema.key.iter().filter_map(|id| name_of(*id)).collect(),
            columns: columns
                .iter()
                .map(|column| ColumnView {
                    name: column.name.clone(),
                    logical: column.logical.name(),
                })
                .collect(),
            digest: format!("{:032x}", table.digest.sum),
        }
    }
}

fn text(tables: &[TableView]) -> String {
    if tables.is_empty() {
        return "no tables\n".to_owned();
    }
    let rows: Vec<Vec<String>> = tables
        .iter()
        .map(|table| {
            let shown = |column: &ColumnView| format!("{} {}", column.name, column.logical);
            let columns: Vec<String> = table.columns.iter().map(shown).collect();
            let held = if table.held { " (held)" } else { "" };
            vec![
                format!("{}{held}", table.table),
                count(table.rows),
                bytes(table.row_bytes),
                count(table.shards),
                table.key.join(", "),
                columns.join(", "),
            ]
        })
        .collect();
    let columns = [
        ("table", Align::Left),
        ("rows", Align::Right),
        ("size", Align::Right),
        ("shards", Align::Right),
        ("key", Align::Left),
        ("columns", Align::Left),
    ];
    human::table(&columns, &rows)
}
