//! A restore that is killed half-way with SIGKILL, and the same call that carries on.
//!
//! The program runs itself as a child, which restores a table and kills itself inside the
//! chunk that would pass the middle. Then the parent makes the very same call. A target that
//! counts stands between the restore and the database, so that both processes together tell
//! how many rows were handed over twice.
//!
//! Run it with `cargo run --example resume_after_kill [DIR]`.
#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use tidemark::backup::{BackupOptions, BackupRequest, begin_backup};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use tidemark::database::{Fence, Mark, Target, TargetLayer, TargetShard};
use tidemark::env::{Env, SystemEnv};
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::TableName;
use tidemark::operation::WINDOW_DEFAULT;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{RestoreOptions, Room, Route, begin_restore};
use tidemark::row::{LogicalType, RowBatch, Schema, Value};
use tidemark::{Error, Kind, Result};

/// Rows of the table.
const ROWS: u64 = 80_000;
/// Bytes of text in each: the table is then several chunks of 4 MiB in each shard.
const TEXT_BYTES: usize = 400;
/// First argument of the child.
const CHILD: &str = "child";

/// The database, with a count of the rows that are handed over, kept in a file.
#[derive(Debug)]
struct Counted {
    database: Arc<EmbeddedDatabase>,
    count: PathBuf,
    rows: AtomicU64,
    /// Rows after which the process is killed.
    dies_after: Option<u64>,
}

impl TargetLayer for Counted {
    fn inner(&self) -> &dyn Target {
        &*self.database
    }

    /// Counts a chunk, then lets the database apply it, or dies before it could.
    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let handed_over = rows.len() as u64;
        let mut count = OpenOptions::new().create(true).append(true).open(&self.count);
        count.as_mut().map_err(|cause| Error::new(Kind::Fatal, cause.to_string())).and_then(
            |file| writeln!(file, "{handed_over}").map_err(|cause| Error::io("count", cause)),
        )?;
        let before = self.rows.fetch_add(handed_over, Ordering::Relaxed);
        if self.dies_after.is_some_and(|limit| before + handed_over > limit) {
            // Nothing after this line runs: no destructor, no clean-up.
            let _ = kill_process(getpid(), Signal::KILL);
        }
        self.database.apply(fence, shard, rows, mark)
    }
}

/// The same call for the child and for the parent: begins the restore, or carries it on.
fn restore(dir: &Path, dies_after: Option<u64>) -> Result<()> {
    let database = open(&dir.join("copy"))?;
    let catalog = LmdbCatalog::of_database(&database, Arc::new(SystemEnv))?;
    let room = Room {
        window: WINDOW_DEFAULT,
        memory_bytes: MEMORY_BYTES_DEFAULT,
        scratch: database.scratch_dir(),
    };
    let count = dir.join("rows-handed-over");
    let target = Arc::new(Counted { database, count, rows: AtomicU64::new(0), dies_after });
    let store = Store::open(&dir.join("backups").display().to_string())?;
    let begun = begin_restore(
        &catalog,
        target,
        Arc::new(Collection::open(store)?),
        Route { collection: "backups", target: "embedded:copy" },
        &RestoreOptions { shards: Some(2), ..RestoreOptions::default() },
        &room,
        &SystemEnv,
    )?;
    let id = begun.id;
    println!("{} restore {id}", if begun.is_resumed { "carrying on" } else { "beginning" });
    let never = Stop::default();
    let carry_on = Intent::CarryOn;
    match run(&catalog, &begun.job, id, carry_on, &SystemEnv, &never, &mut Unobserved)? {
        Ended::Done { .. } => Ok(()),
        ended => Err(Error::new(Kind::Fatal, format!("it ended otherwise: {ended:?}"))),
    }
}

/// A table with a full backup.
fn prepare(dir: &Path) -> Result<()> {
    let database = open(&dir.join("shop"))?;
    let table = TableName::parse("events").map_err(|text| Error::new(Kind::Usage, text))?;
    let columns = [("id", LogicalType::Int64), ("text", LogicalType::Text)];
    database.create_table(&table, &Schema::new(&columns, &["id"])?, &[])?;
    let ids: Vec<u64> = (0..ROWS).collect();
    for ids in ids.chunks(20_000) {
        let mut batch = WriteBatch::new();
        for id in ids {
            let text = format!("{id:0TEXT_BYTES$}");
            batch.put(&table, vec![Value::Int64(*id as i64), Value::Text(text)]);
        }
        database.write(&batch)?;
    }
    let store = Store::open(&dir.join("backups").display().to_string())?;
    let catalog = LmdbCatalog::of_database(&database, Arc::new(SystemEnv))?;
    let request = BackupRequest {
        source: database,
        source_shown: "embedded:shop",
        collection: Arc::new(Collection::create(store, &SystemEnv)?),
        collection_shown: "backups",
        options: &BackupOptions::default(),
        window: WINDOW_DEFAULT,
    };
    let begun = begin_backup(&catalog, &request, Arc::new(SystemEnv))?;
    let never = Stop::default();
    let carry_on = Intent::CarryOn;
    run(&catalog, &begun.job, begun.id, carry_on, &SystemEnv, &never, &mut Unobserved)?;
    Ok(())
}

fn open(dir: &Path) -> Result<Arc<EmbeddedDatabase>> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    Ok(Arc::new(EmbeddedDatabase::open_or_create(dir, env, EmbeddedOptions::default())?))
}

fn show(dir: &Path) -> Result<()> {
    prepare(dir)?;
    let program = std::env::current_exe().map_err(|cause| Error::io("find myself", cause))?;
    let child = Command::new(program).arg(CHILD).arg(dir).status();
    let child = child.map_err(|cause| Error::io("start the child", cause))?;
    println!("the child ended: {child}");
    assert!(child.code().is_none(), "a signal ended it");

    let copied = |table: &TableName| {
        let tables = open(&dir.join("copy"))?.tables()?;
        Ok::<_, Error>(tables.into_iter().find(|found| found.name == *table))
    };
    let table = TableName::parse("events").map_err(|text| Error::new(Kind::Usage, text))?;
    assert!(copied(&table)?.is_none(), "nobody sees half a restore");

    restore(dir, None)?;

    let original = open(&dir.join("shop"))?.tables()?.remove(0);
    let copy = copied(&table)?.expect("the restore is done");
    assert_eq!(copy.digest, original.digest, "the copy holds the same rows");
    let count = std::fs::read_to_string(dir.join("rows-handed-over"))
        .map_err(|cause| Error::io("read the count", cause))?;
    let chunks: Vec<u64> = count.lines().filter_map(|line| line.parse().ok()).collect();
    let handed_over: u64 = chunks.iter().sum();
    let chunk_max = chunks.iter().max().copied().unwrap_or(0);
    let again = handed_over - copy.digest.rows;
    println!("the table has {} rows, {again} of them were handed over twice", copy.digest.rows);
    assert!(again <= 2 * chunk_max, "at most one chunk of each of the two shards in flight");
    println!("that is at most one chunk, here {chunk_max} rows, of each of the two shards");
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match arguments.as_slice() {
        [word, dir] if word.as_os_str() == CHILD => restore(dir, Some(ROWS / 2)),
        [dir] => show(dir),
        _ => {
            let dir = tempfile::tempdir().map_err(|cause| Error::io("make a directory", cause))?;
            show(dir.path())
        }
    }
}
