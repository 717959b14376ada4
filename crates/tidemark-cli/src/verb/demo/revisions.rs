//! The first half: a real table, backed up as one full and 180 increments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, LoadMode, LoadRequest};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run as drive};
use tidemark::{Error, Kind, Result};

use super::{Stage, check_equal, dump, example_data, table};
use crate::args::DemoArgs;
use crate::output::human::counted;

const TABLE: &str = "sp500";
const KEY: &str = "Symbol";

pub(super) fn run(stage: &mut Stage, args: &DemoArgs) -> Result<()> {
    let files = files(args)?;
    stage.say("\n1. every published revision of the list of S&P 500 companies, real mess included");
    let source = stage.database("shop")?;
    back_up_each(stage, &source, &files)?;
    let mut places = vec![(0, "first"), (files.len() / 2, "half-way"), (files.len() - 1, "last")];
    places.dedup_by_key(|(at, _)| *at);
    stage.say(&format!(
        "the table is dropped; coming back: {} of its chain",
        counted(places.len() as u64, "point")
    ));
    source.drop_table(&table(TABLE))?;
    for (at, called) in places {
        let (point, copy) = (format!("#{}", at + 1), format!("sp500_{}", at + 1));
        let rename = format!("{TABLE}={copy}");
        let restore = ["restore", "backups", "--target", "embedded:shop", "--at", &point];
        stage.command(&[&restore[..], &["--rename", &rename]].concat())?;
        check_equal(&copy, &dump(&source, &copy)?, &by_key(&files[at])?)?;
        let file = files[at].file_name().unwrap_or_default().to_string_lossy().into_owned();
        stage.prove(
            format!("{called} revision"),
            format!("point #{} of {} equals {file}, byte for byte", at + 1, files.len()),
        );
    }
    Ok(())
}

/// Makes the table equal to each file in turn, and takes a backup of each.
fn back_up_each(stage: &Stage, source: &Arc<EmbeddedDatabase>, files: &[PathBuf]) -> Result<()> {
    let began = stage.env.boot_time();
    let store = Store::open(&stage.path("backups"))?;
    let collection = Arc::new(Collection::open_or_create(store, &*stage.env)?);
    let catalog = LmdbCatalog::of_database(source, Arc::clone(&stage.env))?;
    let options = BackupOptions::default();
    let mut schema_changes = 0;
    for file in files {
        let request = LoadRequest {
            table: table(TABLE),
            file: file.clone(),
            key: vec![KEY.to_owned()],
            mode: LoadMode::Sync,
            shards: None,
            types: BTreeMap::new(),
        };
        schema_changes += u64::from(!source.load(&request)?.schema_changes.is_empty());
        let request = BackupRequest {
            source: Arc::clone(source) as Arc<_>,
            source_shown: &format!("embedded:{}", stage.path("shop")),
            collection: Arc::clone(&collection),
            collection_shown: &stage.path("backups"),
            options: &options,
            window: 4,
        };
        let begun = begin_backup(&catalog, &request, Arc::clone(&stage.env))?;
        let (id, env) = (begun.id, &*stage.env);
        let stop = Stop::default();
        let carry_on = Intent::CarryOn;
        let ended = drive(&catalog, &begun.job, id, carry_on, env, &stop, &mut Unobserved)?;
        if !matches!(ended, Ended::Done { .. }) {
            return Err(Error::new(Kind::Fatal, format!("backup {id} ended as {ended:?}")));
        }
    }
    let seconds = stage.env.boot_time().since(began).as_secs_f64();
    stage.say(&format!(
        "{} times `tidemark db load --sync` and `tidemark backup`: one full, {}, {}, {seconds:.1} s",
        files.len(),
        counted(files.len() as u64 - 1, "increment"),
        counted(schema_changes, "schema change"),
    ));
    Ok(())
}

fn files(args: &DemoArgs) -> Result<Vec<PathBuf>> {
    let folder = example_data(args.data.as_deref())?;
    let doing = || format!("read the folder `{}`", folder.display());
    let entries = std::fs::read_dir(&folder).map_err(|cause| Error::io(doing(), cause))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|cause| Error::io(doing(), cause))?.path();
        if path.extension().is_some_and(|extension| extension == "csv") {
            files.push(path);
        }
    }
    files.sort();
    match files.as_slice() {
        [] => Err(Error::new(Kind::NotFound, format!("{}: there is no CSV file in it", doing()))),
        _ => Ok(files),
    }
}

/// A published file as a dump has it: the header, then the rows by key.
fn by_key(file: &std::path::Path) -> Result<Vec<u8>> {
    let doing = format!("read `{}`", file.display());
    let text = std::fs::read_to_string(file).map_err(|cause| Error::io(doing, cause))?;
    let (header, rows) = text.split_once('\n').unwrap_or((&text, ""));
    // No field of these files holds a line end, and no key a quote or a comma.
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_by_key(|row| row.split(',').next());
    Ok(std::iter::once(header).chain(rows).flat_map(|line| [line, "\n"]).collect::<String>().into())
}
