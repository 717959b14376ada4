//! `db dump`: the rows of a table in key order, to standard output or a file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tidemark::collection::part::write_table;
use tidemark::database::embedded::{DumpFormat, DumpReport, EmbeddedDatabase};
use tidemark::{Error, Kind, Result};

use crate::args::{DumpArgs, RowFormat};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{bytes, counted};
use crate::place::{open_database, system};

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, Serialize)]
struct DumpView {
    table: String,
    rows: u64,
    bytes: u64,
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &DumpArgs, output: Output) -> Result<Exit> {
    let env = system();
    let output = if args.output.is_some() { output } else { output.beside_rows() };
    let dumped = open_database(&args.db, &env).and_then(|database| match &args.output {
        Some(path) => to_file(&database, args, path).map(Some),
        None => to_stdout(&database, args),
    });
    let report = match dumped {
        Ok(Some(report)) => report,
        // Whoever reads has seen enough.
        Ok(None) => return Ok(Exit::Done),
        Err(error) => return Ok(output.exit_error(&error)),
    };
    let view = DumpView {
        table: args.table.to_string(),
        rows: report.rows,
        bytes: report.bytes,
        output: args.output.clone(),
    };
    if args.output.is_some() || output.is_json() {
        output.summary("db dump", &view, || {
            let to = view.output.as_deref().unwrap_or(Path::new("-")).display();
            let (rows, size) = (counted(view.rows, "row"), bytes(view.bytes));
            format!("dumped {rows} ({size}) of `{}` to `{to}`\n", view.table)
        })?;
    }
    Ok(Exit::Done)
}

/// Writes the rows; `None` when the reader went away.
fn to_stdout(database: &EmbeddedDatabase, args: &DumpArgs) -> Result<Option<DumpReport>> {
    let stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    match dump(database, args, stdout) {
        Ok(report) => Ok(Some(report)),
        Err(error) if is_broken_pipe(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a draft beside the file and renames it when it is whole and durable.
fn to_file(database: &EmbeddedDatabase, args: &DumpArgs, path: &Path) -> Result<DumpReport> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".tidemark-draft");
    let draft = PathBuf::from(draft);
    let writing = |cause| Error::io(format!("write `{}`", path.display()), cause);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if path.is_dir() || path.file_name().is_none() {
        let message = format!("--output: `{}` is a folder; name a file in it", path.display());
        return Err(Error::new(Kind::Usage, message));
    }
    if !folder.is_dir() {
        let message = format!("--output: there is no folder `{}`; make it first", folder.display());
        return Err(Error::new(Kind::Usage, message));
    }
    let dumped = File::create(&draft).map_err(writing).and_then(|file| {
        let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, &file);
        let report = dump(database, args, &mut buffered)?;
        buffered.flush().map_err(writing)?;
        drop(buffered);
        file.sync_all().map_err(writing)?;
        fs::rename(&draft, path).map_err(writing)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(writing)?;
        Ok(report)
    });
    if dumped.is_err() {
        // It may not exist; what is told is the first error.
        let _ = fs::remove_file(&draft);
    }
    dumped
}

fn dump(database: &EmbeddedDatabase, args: &DumpArgs, out: impl Write) -> Result<DumpReport> {
    match args.format {
        RowFormat::Csv => database.dump(&args.table, DumpFormat::Csv, out),
        RowFormat::JsonLines => database.dump(&args.table, DumpFormat::JsonLines, out),
        RowFormat::Parquet => {
            let written =
                database.read_table(&args.table, |schema, rows| write_table(schema, rows, out));
            let dumping = |error: Error| error.context(format!("dump table `{}`", args.table));
            let written = written.map_err(dumping)?;
            Ok(DumpReport { rows: written.rows, bytes: written.bytes })
        }
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}
