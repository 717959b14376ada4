//! The command line: every verb, option and help text.
//!
//! [`Cli`] is what was typed. Values are parsed into the types of the library
//! right here, so that a malformed one is a usage error with its option's name.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidemark::collection::RestorePoint;
use tidemark::collection::check::Level;
use tidemark::ids::{CollectionId, TableName};
use tidemark::operation::{WINDOW_DEFAULT, WINDOW_MAX};
use tidemark::restore::PlanKind;
use tidemark::row::LogicalType;

use crate::place::DatabaseUrl;

const JSON_AND_EXIT_CODES: &str = "\
JSON lines are objects with `message_type`: `status` while work goes on (`percent_done` is a
fraction from 0 to 1), `error` for trouble that is being dealt with, `summary` for the result,
`exit_error` for what ended the command. What is good to know is `notice` of a status and again
in `notices` of the summary; what somebody must look at is in `warnings` of the outcome, and the
exit code is 3 then.

Exit codes:
  0    done
  1    failed
  2    the command line or a file it names is wrong
  3    done, with warnings
  4    read back, the rows are not what the backup says
  5    stopped; run the same command to carry on
  10   no such collection, backup, table or operation
  11   held by another process
  13   the chain of backups is broken
  14   something in the target is in the way
  130  interrupted twice";

/// What was typed.
#[derive(Debug, Parser)]
#[command(
    name = "tidemark",
    version,
    about = "Incremental backup and restore of sharded tables, with progress that survives",
    long_about = "Incremental backup and restore of sharded tables, with progress that survives.\n\n\
        A collection is a folder that holds backups: a full, and increments that hold what changed \
        since. Any of them can be restored, shard by shard and in parallel. Every shard's position \
        is stored together with its rows, so after a crash, a kill or a full disk the same command \
        carries on where it was; and a restore is done only after its rows were read back and \
        proven to be those of the backup.",
    after_help = "Run `tidemark help VERB` for the options and examples of a verb.",
    after_long_help = JSON_AND_EXIT_CODES,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs"
)]
pub(crate) struct Cli {
    /// Print JSON lines instead of text; `tidemark --help` tells of them
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,

    /// Log what happens inside, on standard error
    #[arg(
        long,
        global = true,
        value_name = "off|error|warn|info|debug",
        env = "TIDEMARK_LOG",
        hide_env = true,
        default_value = "warn",
        hide_possible_values = true,
        display_order = 901
    )]
    pub(crate) log: LogLevel,

    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: VerbArgs,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    Error,
    /// What may matter.
    Warn,
    /// What happens.
    Info,
    /// Everything.
    Debug,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum VerbArgs {
    /// Watch the whole job: load, back up, drop, restore, kill, resume, prove
    #[command(long_about = "Watch the whole job.\n\n\
        Backs up every published revision of the list of S&P 500 companies and restores three of \
        its 181 restore points; then grows a table, backs it up as a full and increments, drops \
        it, restores it, kills that restore half-way with SIGKILL, carries on, and prints what \
        was compared. Needs about three times the size of the table in the folder it works in.")]
    Demo(DemoArgs),

    /// Load, dump and list tables of an embedded database
    #[command(subcommand, subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
    Db(DbArgs),

    /// Take a full or incremental backup
    #[command(long_about = "Take a full or incremental backup.\n\n\
        The tables are read at one consistent cut. An increment holds what changed since the \
        newest backup of the collection, and is taken only while the whole chain below it is \
        there. The backup exists from the moment it is whole. Without --full and --incremental \
        the first backup of a collection is a full and all others are increments.")]
    Backup(BackupArgs),

    /// Set up what increments of a server need, look at it, remove it
    #[cfg(feature = "postgres")]
    #[command(subcommand, subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
    #[command(long_about = "Set up what increments of a server need, look at it, remove it.\n\n\
        A full backup of a server needs nothing. An increment needs the server to keep its \
        changes: a publication that says of which tables, and a replication slot that keeps them \
        until they were taken. Both belong to one collection.")]
    Source(SourceArgs),

    /// List the backups of a collection
    #[command(
        long_about = "List the backups of a collection: chains, restore points, sizes, what changed.\n\n\
        Any name, number or time in the list can be given to `restore --at`."
    )]
    Backups(BackupsArgs),

    /// Restore any point of a chain
    #[command(long_about = "Restore any point of a chain.\n\n\
        Tables are built hidden, read back and compared with the backup, and then made visible \
        all together. Cancelling leaves the target as it was. Interrupted, killed or stopped by a \
        full disk, the same command carries on from where every shard was, at the restore point \
        it resolved the first time.")]
    Restore(RestoreArgs),

    /// Check that a collection still holds what it says
    #[command(long_about = "Check that a collection still holds what it says.\n\n\
        Everything that is wrong is told, each flaw on a line of its own: what, where, what was \
        found and expected, and what to do. Exits with 13 when an object is missing or damaged, \
        with 4 when every object is whole and a chain still leads to other rows than its source \
        had. Interrupted or killed, the same command carries on; what was clean is not read again.")]
    Verify(VerifyArgs),

    /// List, watch, pause, resume and cancel operations
    #[command(subcommand, subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
    #[command(long_about = "List, watch, pause, resume and cancel operations.\n\n\
            Backups, restores and verifications are operations: they are recorded with a number \
            before they begin, so any terminal can look at them and steer them. Restores are \
            recorded in their target, backups beside an embedded source, backups of servers and \
            verifications in the state directory ($XDG_STATE_HOME/tidemark, or \
            ~/.local/state/tidemark); `--state` of those commands puts them elsewhere.")]
    Operation(OperationArgs),
}

/// `demo`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  tidemark demo --rows 500000")]
pub(crate) struct DemoArgs {
    /// Rows of the table that grows
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub(crate) rows: u64,
    /// Increments of the table that grows
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) increments: u32,
    /// Folder to work in, new or empty; a temporary one if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Folder with the published revisions; the example data if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Leave the folder there at the end
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Tables of an embedded database.
#[derive(Debug, Subcommand)]
pub(crate) enum DbArgs {
    /// Load a CSV file into a table
    #[command(long_about = "Load a CSV file into a table, all of it or nothing.\n\n\
        The file begins with a line of column names. A column gets a type only if every value \
        prints back as it was, else it is text; `--type` decides otherwise. Nothing without \
        quotes is NULL, \"\" is the empty text. A file with anything wrong in it is refused with \
        file and line, and the table stays as it was. The database is made if it is not there.")]
    Load(LoadArgs),
    /// Write the rows of a table in key order
    #[command(
        long_about = "Write the rows of a table in key order, as they stood at one moment.\n\n\
        Without --output the rows go to standard output; messages, also those of --json, then go \
        to standard error. With --output the file appears when it is whole.\n\n\
        csv reads back as it was; jsonl has an object a line; parquet has real column types, and \
        decimals as text, since each value has digits of its own."
    )]
    Dump(DumpArgs),
    /// List the tables
    #[command(long_about = "List the tables, and the held copies.\n\n\
        A held copy is what `restore --hold` left: no reader sees it and no backup includes it, \
        until `restore --continue` shows it. Its name is taken until then, or until `db drop` \
        removes it.")]
    Tables(TablesArgs),
    /// Drop a table or a held copy, with its rows
    #[command(long_about = "Drop a table or a held copy, with its rows; nothing is asked.\n\n\
        Whoever reads its rows at that moment reads on to the end. The next backup does not have \
        the table, older ones keep it. Refused while a restore is to replace it or to move it on.")]
    Drop(DropArgs),
    /// List or forget the collections that changes are kept for
    Collections(CollectionsArgs),
}

/// `db load`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        tidemark db load --db shop --table orders --key id orders.csv\n  \
        tidemark db load --db shop --table orders --key id --sync orders-today.csv\n  \
        tidemark db load --db shop --table items --key order_id,line --type code=text items.csv")]
pub(crate) struct LoadArgs {
    /// Directory of the database; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) db: PathBuf,
    /// Table to make, or with --sync to bring up to date
    #[arg(long, value_name = "TABLE", value_parser = table_name)]
    pub(crate) table: TableName,
    /// Key columns in key order; with --sync those of the table if left out
    #[arg(long, value_name = "COL[,COL]", value_delimiter = ',', required_unless_present = "sync")]
    pub(crate) key: Vec<String>,
    /// Make a table that exists equal to the file: rows and columns are added, changed, dropped
    #[arg(long)]
    pub(crate) sync: bool,
    /// Shards of a new table; one that exists stays as it is cut [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) shards: Option<u32>,
    /// Type of a column, instead of finding it out; may be given several times
    #[arg(long = "type", value_name = "COL=TYPE", value_parser = column_type)]
    pub(crate) types: Vec<(String, LogicalType)>,
    /// The file
    #[arg(value_name = "FILE.csv")]
    pub(crate) file: PathBuf,
}

/// `db dump`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        tidemark db dump --db shop --table orders | head\n  \
        tidemark db dump --db shop --table orders --format parquet --output orders.parquet")]
pub(crate) struct DumpArgs {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub(crate) db: PathBuf,
    /// Table to write
    #[arg(long, value_name = "TABLE", value_parser = table_name)]
    pub(crate) table: TableName,
    /// How rows are written
    #[arg(long, value_name = "FORMAT", default_value = "csv", value_parser = dump_format())]
    pub(crate) format: RowFormat,
    /// File to write, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// How a dump writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFormat {
    /// See [`DumpFormat::Csv`](tidemark::database::embedded::DumpFormat::Csv).
    Csv,
    /// See [`DumpFormat::JsonLines`](tidemark::database::embedded::DumpFormat::JsonLines).
    JsonLines,
    /// One file of the profile that parts of backups have.
    Parquet,
}

/// `db tables`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  tidemark db tables --db shop")]
pub(crate) struct TablesArgs {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub(crate) db: PathBuf,
}

/// `db drop`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  tidemark db drop --db copy --table orders_before")]
pub(crate) struct DropArgs {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub(crate) db: PathBuf,
    /// Table or held copy to remove, by its whole name
    #[arg(long, value_name = "TABLE", value_parser = table_name)]
    pub(crate) table: TableName,
}

/// `db collections`.
#[derive(Args, Debug)]
#[command(
    long_about = "List or forget the collections that changes are kept for.\n\n\
        From its first backup on a database notes which rows change, and keeps that for each \
        collection until its next increment is taken. A collection that is gone, or is not \
        backed up to any more, should be forgotten, or its changes are kept for ever. If a \
        forgotten one is backed up to again, that backup carries every table whole.",
    after_help = "Examples:\n  \
        tidemark db collections --db shop\n  \
        tidemark db collections --db shop --forget 0123456789abcdef0123456789abcdef"
)]
pub(crate) struct CollectionsArgs {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub(crate) db: PathBuf,
    /// Forget the collection of that id, as the list and `backups --json` show it
    #[arg(long, value_name = "ID", value_parser = collection_id)]
    pub(crate) forget: Option<CollectionId>,
}

/// `backup`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        tidemark backup --source embedded:shop --to backups/shop --full\n  \
        tidemark backup --source embedded:shop --to backups/shop --incremental\n  \
        tidemark backup --source embedded:shop --to backups/shop --full --table 'orders*'\n  \
        tidemark backup --source postgres://keeper@db.example/shop --to backups/shop")]
pub(crate) struct BackupArgs {
    /// Database to back up, for example embedded:DIR or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DATABASE")]
    pub(crate) source: DatabaseUrl,
    /// Collection to add to, a path or file:// URL; made if it is missing
    #[arg(long = "to", value_name = "COLLECTION")]
    pub(crate) collection: String,
    /// Take every row
    #[arg(long, conflicts_with = "incremental")]
    pub(crate) full: bool,
    /// Take what changed since the newest backup
    #[arg(long)]
    pub(crate) incremental: bool,
    /// Let a server's rows be read once more, to prove what is restored against them
    ///
    /// An embedded database keeps the digests of its tables and always gives them. A server
    /// computes them by reading every row at the cut.
    #[arg(long)]
    pub(crate) attest: bool,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
}

/// Which tables.
#[derive(Args, Debug)]
pub(crate) struct SelectionArgs {
    /// Only tables of that name or pattern; may be given several times
    #[arg(long = "table", value_name = "GLOB")]
    tables: Vec<String>,
    /// Only tables of schemas of that name or pattern; may be given several times
    #[arg(long = "schema", value_name = "GLOB")]
    schemas: Vec<String>,
}

impl SelectionArgs {
    /// Both as patterns of tables; none for all.
    pub(crate) fn patterns(&self) -> Vec<String> {
        let schemas = self.schemas.iter().map(|schema| format!("{schema}.*"));
        self.tables.iter().cloned().chain(schemas).collect()
    }
}

/// What increments of a server need.
#[cfg(feature = "postgres")]
#[derive(Debug, Subcommand)]
pub(crate) enum SourceArgs {
    /// Publish the changes of tables and keep them for a collection
    #[command(
        long_about = "Publish the changes of tables and keep them for a collection.\n\n\
        Makes a publication of the tables whose rows the server's log identifies, then a \
        replication slot that keeps the log until the next increment has been taken. Needs \
        `wal_level = logical`, a role that may replicate, and for the publication the owner of \
        the tables; with a publication that is there already, the first two are enough. Run it \
        again when tables were made: the list is brought up to date, the slot stays.\n\n\
        A slot that nobody reads from keeps the log for ever, until the server's disk is full, \
        unless max_slot_wal_keep_size says otherwise. `tidemark source status` shows how much is \
        kept, `tidemark source drop` removes it.",
        after_help = "Example:\n  \
        tidemark source setup --source postgres://owner@db.example/shop --to backups/shop"
    )]
    Setup(SetupArgs),
    /// Show what is kept for a collection, and of which tables
    #[command(after_help = "Example:\n  \
        tidemark source status --source postgres://keeper@db.example/shop --to backups/shop")]
    Status(CapturedArgs),
    /// Remove publication and slot of a collection; what was kept goes
    #[command(after_help = "Example:\n  \
        tidemark source drop --source postgres://owner@db.example/shop --to backups/shop")]
    Drop(CapturedArgs),
}

/// `source setup`.
#[cfg(feature = "postgres")]
#[derive(Args, Debug)]
pub(crate) struct SetupArgs {
    /// Server to set up, for example postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DATABASE")]
    pub(crate) source: DatabaseUrl,
    /// Collection that its backups go into, a path or file:// URL; made if it is missing
    #[arg(long = "to", value_name = "COLLECTION")]
    pub(crate) collection: String,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// How long transactions that have written are waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) wait: u32,
}

/// `source status` and `source drop`.
#[cfg(feature = "postgres")]
#[derive(Args, Debug)]
pub(crate) struct CapturedArgs {
    /// Server, for example postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DATABASE")]
    pub(crate) source: DatabaseUrl,
    /// Collection, a path or file:// URL
    #[arg(long = "to", value_name = "COLLECTION", required_unless_present = "id")]
    pub(crate) collection: Option<String>,
    /// The collection's id instead, for one that is gone; it is in the name of its slot
    #[arg(long, value_name = "ID", value_parser = collection_id, conflicts_with = "collection")]
    pub(crate) id: Option<CollectionId>,
}

/// `backups`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  tidemark backups backups/shop\n  \
        tidemark backups backups/shop --remove-garbage")]
pub(crate) struct BackupsArgs {
    /// Collection, a path or file:// URL
    pub(crate) collection: String,
    /// Instead of listing, remove what unfinished backups left and no backup needs
    ///
    /// A backup that did not get through is cleaned up by whoever carries it on or cancels it;
    /// this is for those that nobody came back to.
    #[arg(long)]
    pub(crate) remove_garbage: bool,
    /// Age at which it is garbage: what is younger may belong to a backup that still runs
    #[arg(long, value_name = "DAYS", default_value_t = 7, requires = "remove_garbage")]
    pub(crate) older_than: u32,
    /// Also remove whole backups that no log entry names
    ///
    /// Without it they are kept and told, since it may be their log entry that is lost.
    #[arg(long, requires = "remove_garbage")]
    pub(crate) include_unlisted: bool,
}

/// `restore`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        tidemark restore backups/shop --target embedded:copy\n  \
        tidemark restore backups/shop --target embedded:shop --rename orders=orders_before\n  \
        tidemark restore backups/shop --target embedded:copy --at 2026-01-31T09:30:00Z\n  \
        tidemark restore backups/shop --target embedded:copy --continue\n  \
        tidemark restore backups/shop --target embedded:copy --dry-run\n  \
        tidemark restore backups/shop --target postgres://me@host/shop --into-schema yesterday")]
pub(crate) struct RestoreArgs {
    /// Collection, a path or file:// URL
    pub(crate) collection: String,
    /// Database to restore into: embedded:DIR, made if it is missing, or
    /// postgres://USER@HOST:PORT/DATABASE, with the password in PGPASSWORD or ~/.pgpass
    #[arg(long, value_name = "DATABASE")]
    pub(crate) target: DatabaseUrl,
    /// Restore point: a backup's name or number, latest, or a time (the newest before it)
    #[arg(long, value_name = "POINT", default_value = "latest", value_parser = restore_point)]
    pub(crate) at: String,
    /// Only tables of that name or pattern; may be given several times
    #[arg(long = "table", value_name = "GLOB")]
    pub(crate) tables: Vec<String>,
    /// Restore table A under the name B; may be given several times
    #[arg(long = "rename", value_name = "A=B", value_parser = rename)]
    pub(crate) renames: Vec<(String, String)>,
    /// Restore every table into that schema, under its own name
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) into_schema: Option<String>,
    /// Shards per table [default: by size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) shards: Option<u32>,
    /// One pass over the whole chain, or one step per backup [default: fold, for --continue
    /// sequential]
    #[arg(long, value_parser = plan_kind())]
    pub(crate) plan: Option<PlanKind>,
    /// Memory to use, for example 256MiB
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = byte_count)]
    pub(crate) memory: u64,
    /// Take the place of tables that exist, at the moment the new ones are published; not with
    /// --hold
    #[arg(long, conflicts_with = "roll_forward")]
    pub(crate) replace: bool,
    /// Leave the result hidden, to be moved on and shown with --continue
    ///
    /// With --continue the copy stays hidden; without --hold it is shown, also when no newer
    /// backup moves it on. `db tables` lists held copies, `db drop` removes one. What is visible
    /// is never hidden.
    #[arg(long)]
    pub(crate) hold: bool,
    /// Move copies that were restored earlier on to the restore point
    #[arg(long = "continue", conflicts_with = "shards")]
    pub(crate) roll_forward: bool,
    /// Print the plan and do nothing
    #[arg(long, conflicts_with = "detach")]
    pub(crate) dry_run: bool,
    /// Work in the background; print the operation's number and return
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
}

/// `verify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        tidemark verify backups/shop\n  \
        tidemark verify backups/shop --level manifest\n  \
        tidemark verify backups/shop --at latest")]
pub(crate) struct VerifyArgs {
    /// Collection, a path or file:// URL
    pub(crate) collection: String,
    /// How much is looked at; each level includes those before it
    ///
    /// manifest: the log, every manifest, how they follow one another, and that every object is
    /// there with its size. parts: also every byte of every object. rows: also every row, and
    /// that each chain leads to the rows that its source had.
    #[arg(
        long,
        default_value = "rows",
        value_parser = level(),
        hide_possible_values = true,
        value_name = "manifest|parts|rows"
    )]
    pub(crate) level: Level,
    /// Only the chain that leads to that restore point [default: every backup]
    #[arg(long, value_name = "POINT", value_parser = restore_point)]
    pub(crate) at: Option<String>,
    /// Memory to use, for example 256MiB
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = byte_count)]
    pub(crate) memory: u64,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
}

/// Options of every verb that drives an operation.
#[derive(Args, Debug)]
pub(crate) struct DriveArgs {
    /// Shards worked at together; `operation set` changes it while it runs [default: 10]
    ///
    /// An operation that is carried on keeps its own unless this is given.
    #[arg(long, value_name = "N", value_parser = window())]
    pub(crate) shards_in_flight: Option<u32>,
    /// Directory that keeps the operation's state, instead of the usual place
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// Shards that can be worked at together.
fn window() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(WINDOW_MAX))
}

impl DriveArgs {
    /// Shards worked at together in a new operation.
    pub(crate) fn window(&self) -> u32 {
        self.shards_in_flight.unwrap_or(WINDOW_DEFAULT)
    }
}

/// Operations.
#[derive(Debug, Subcommand)]
pub(crate) enum OperationArgs {
    /// List operations
    #[command(after_help = "Examples:\n  \
        tidemark operation list --target embedded:copy\n  \
        tidemark operation list --source embedded:shop")]
    List(LocationArgs),
    /// Show one operation: phase, shards, outcome
    #[command(after_help = "Example:\n  tidemark operation get 7 --target embedded:copy")]
    Get(OneArgs),
    /// Follow the progress of an operation to its end; interrupting stops only the watching
    Watch(OneArgs),
    /// Wait until an operation ends or stands still, and exit with its code
    Wait(OneArgs),
    /// Ask the process that drives an operation to stop between two chunks
    Pause(OneArgs),
    /// Carry on with an operation that was paused, failed, or lost its process
    Resume(ResumeArgs),
    /// Undo an operation; the target is then as it was before
    Cancel(OneArgs),
    /// Remove the record of an operation that has ended
    Forget(OneArgs),
    /// Change how many shards are worked at together
    #[command(after_help = "Example:\n  \
        tidemark operation set 7 --shards-in-flight 2 --target embedded:copy")]
    Set(SetArgs),
}

impl VerbArgs {
    /// What finds the operations of this command from any directory, as arguments of
    /// `operation …`; empty where they are in the usual place, or it has none.
    pub(crate) fn locator(&self) -> Vec<String> {
        let by = |option: &str, database: &DatabaseUrl| {
            let shown = database.absolute().unwrap_or_else(|_| database.clone());
            vec![option.to_owned(), shown.to_string()]
        };
        let in_state = |dir: &PathBuf| vec!["--state".to_owned(), dir.display().to_string()];
        let embedded = |dir: &PathBuf| by("--target", &DatabaseUrl::Embedded(dir.clone()));
        let drive = |drive: &DriveArgs| drive.state.as_ref().map(in_state);
        match self {
            VerbArgs::Db(DbArgs::Load(args)) => embedded(&args.db),
            VerbArgs::Db(DbArgs::Dump(args)) => embedded(&args.db),
            VerbArgs::Db(DbArgs::Tables(args)) => embedded(&args.db),
            VerbArgs::Db(DbArgs::Drop(args)) => embedded(&args.db),
            VerbArgs::Db(DbArgs::Collections(args)) => embedded(&args.db),
            VerbArgs::Backup(args) => {
                drive(&args.drive).unwrap_or_else(|| by("--source", &args.source))
            }
            VerbArgs::Restore(args) => {
                drive(&args.drive).unwrap_or_else(|| by("--target", &args.target))
            }
            VerbArgs::Verify(args) => drive(&args.drive).unwrap_or_default(),
            #[cfg(feature = "postgres")]
            VerbArgs::Source(_) => Vec::new(),
            VerbArgs::Backups(_) | VerbArgs::Demo(_) => Vec::new(),
            VerbArgs::Operation(verb) => match verb.location() {
                LocationArgs { target: Some(database), .. } => by("--target", database),
                LocationArgs { source: Some(database), .. } => by("--source", database),
                LocationArgs { state: Some(dir), .. } => in_state(dir),
                LocationArgs { target: None, source: None, state: None } => Vec::new(),
            },
        }
    }
}

impl OperationArgs {
    fn location(&self) -> &LocationArgs {
        match self {
            OperationArgs::List(location) => location,
            OperationArgs::Get(one)
            | OperationArgs::Watch(one)
            | OperationArgs::Wait(one)
            | OperationArgs::Pause(one)
            | OperationArgs::Cancel(one)
            | OperationArgs::Forget(one) => &one.location,
            OperationArgs::Resume(args) => &args.one.location,
            OperationArgs::Set(args) => &args.one.location,
        }
    }
}

/// Which operation.
#[derive(Args, Clone, Debug)]
pub(crate) struct OneArgs {
    /// Number of the operation
    #[arg(value_name = "ID")]
    pub(crate) id: u64,
    /// The number is the operation's txn, not its id
    #[arg(long)]
    pub(crate) txn: bool,
    #[command(flatten)]
    pub(crate) location: LocationArgs,
}

/// `operation resume`.
#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// Leave the terminal's session; set by `restore --detach`.
    #[arg(long, hide = true)]
    pub(crate) own_session: bool,
}

/// `operation set`.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// Shards worked at together
    #[arg(long, value_name = "N", value_parser = window())]
    pub(crate) shards_in_flight: u32,
}

/// Where operations are recorded.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub(crate) struct LocationArgs {
    /// Operations of the database that is restored into
    #[arg(long, value_name = "DATABASE")]
    pub(crate) target: Option<DatabaseUrl>,
    /// Operations of the database that is backed up
    #[arg(long, value_name = "DATABASE")]
    pub(crate) source: Option<DatabaseUrl>,
    /// Operations of that directory [default: $XDG_STATE_HOME/tidemark]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

fn table_name(text: &str) -> Result<TableName, String> {
    TableName::parse(text)
}

fn collection_id(text: &str) -> Result<CollectionId, String> {
    CollectionId::try_from(text.to_owned())
}

fn column_type(text: &str) -> Result<(String, LogicalType), String> {
    let (column, name) = text
        .rsplit_once('=')
        .filter(|(column, _)| !column.is_empty())
        .ok_or_else(|| "expected COLUMN=TYPE".to_owned())?;
    let logical = LogicalType::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = LogicalType::ALL.iter().map(|logical| logical.name()).collect();
        format!("`{name}` is not a type; there are {}", names.join(", "))
    })?;
    Ok((column.to_owned(), logical))
}

fn rename(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or_else(|| "expected A=B".to_owned())?;
    TableName::parse(from)?;
    TableName::parse(to)?;
    Ok((from.to_owned(), to.to_owned()))
}

/// Refuses what is no restore point; it is kept as typed, because a resume compares it.
fn restore_point(text: &str) -> Result<String, String> {
    RestorePoint::parse(text).map(|_| text.to_owned()).map_err(|error| error.chain())
}

fn dump_format() -> impl clap::builder::TypedValueParser<Value = RowFormat> {
    named(&[
        ("csv", RowFormat::Csv),
        ("jsonl", RowFormat::JsonLines),
        ("parquet", RowFormat::Parquet),
    ])
}

fn plan_kind() -> impl clap::builder::TypedValueParser<Value = PlanKind> {
    named(&[("fold", PlanKind::Fold), ("sequential", PlanKind::Sequential)])
}

fn level() -> impl clap::builder::TypedValueParser<Value = Level> {
    named(&Level::ALL.map(|level| (level.name(), level)))
}

/// A parser that knows its values by name and lists them in the help.
fn named<T: Copy + Send + Sync + 'static>(
    values: &[(&'static str, T)],
) -> impl clap::builder::TypedValueParser<Value = T> + use<T> {
    use clap::builder::TypedValueParser;
    let values = values.to_vec();
    clap::builder::PossibleValuesParser::new(values.iter().map(|(name, _)| *name)).map(
        move |text| {
            let found = values.iter().find(|(name, _)| *name == text);
            found.expect("clap let only the listed names through").1
        },
    )
}

/// Reads `1048576`, `512KiB`, `256MiB`, `2GiB` or `2GB`.
fn byte_count(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err("expected a number of bytes such as 268435456 or 256MiB".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a number of bytes such as 268435456 or 256MiB".to_owned())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_fits_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_verb_says_more_than_its_line_in_the_list() {
        let command = Cli::command();
        let loading = command.find_subcommand("db").and_then(|db| db.find_subcommand("load"));
        let verbs = ["demo", "backup", "backups", "restore", "verify", "operation"];
        let verbs = verbs.into_iter().map(|verb| command.find_subcommand(verb));
        for verb in verbs.chain([loading]).map(|verb| verb.expect("a verb")) {
            let (line, page) = (verb.get_about(), verb.get_long_about());
            let (line, page) = (line.expect("a line").to_string(), page.map(ToString::to_string));
            assert!(page.is_some_and(|page| page.len() > line.len()), "{}", verb.get_name());
        }
    }

    #[test]
    fn byte_counts_have_units_and_bounds() {
        assert_eq!(byte_count("268435456"), Ok(256 << 20));
        assert_eq!(byte_count("256MiB"), Ok(256 << 20));
        assert_eq!(byte_count("2 gb"), Ok(2_000_000_000));
        for text in ["", "0", "MiB", "-1", "1.5GiB", "1XB", "99999999999GiB"] {
            assert!(byte_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_columns_type_is_behind_the_last_sign() {
        assert_eq!(column_type("a=b=text"), Ok(("a=b".to_owned(), LogicalType::Text)));
        assert!(column_type("a").is_err());
        assert!(column_type("=text").is_err());
        assert!(column_type("a=varchar").unwrap_err().contains("timestamp_tz"));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for line in [
            "tidemark backup --source embedded:a --to b --full --incremental",
            "tidemark restore c --target embedded:a --continue --replace",
            "tidemark restore c --target embedded:a --continue --shards 3",
            "tidemark restore c --target embedded:a --dry-run --detach",
            "tidemark restore c --target embedded:a --shards-in-flight 0",
            "tidemark restore c --target embedded:a --shards-in-flight 1025",
            "tidemark operation set 1 --shards-in-flight 1025",
            "tidemark operation list --target embedded:a --source embedded:a",
            "tidemark operation list --target embedded:a --state b",
            "tidemark source setup --source postgres://host/db",
            "tidemark source drop --source postgres://host/db --to c --id 00",
            "tidemark restore c --target elsewhere",
            "tidemark restore c --target embedded:a --at yesterday",
            "tidemark verify c --level everything",
            "tidemark verify c --at yesterday",
            "tidemark verify",
            "tidemark db load --db d --table t f.csv",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
