//! Loading a CSV file: as a new table, or so that a table becomes equal to the file.
//!
//! [`EmbeddedDatabase::load`] reads the file twice and sorts its rows by key in a
//! scratch directory. Only then is the table looked at, compared with the file in
//! one pass over both, and changed in one transaction of the catalog:
//!
//! ```text
//! survey ─▶ plan ─▶ stage ─▶ compare ─┬─▶ nothing differs: nothing is written
//! (types)  (schema) (sorted)          ├─▶ a little: one recorded batch
//!                                     └─▶ more: new generations of the shards that differ
//! ```
//!
//! Whatever is wrong with the file is told, with file and line, before the first
//! row is written. A crash leaves the table as it was, or as the file says; what
//! lies in the scratch directory then is removed when the database is opened next.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::EmbeddedDatabase;
use super::SHARDS_MAX;
use crate::database::scratch::Scratch;
use crate::database::sorter::SORT_BYTES_MAX;
use crate::error::{Error, Kind, Result};
use crate::ids::TableName;
use crate::row::LogicalType;

mod change_log;
mod compare;
mod create;
mod file;
mod plan;
mod sync;

#[cfg(test)]
mod tests;

pub use plan::SchemaChange;

use compare::Tally;
use file::SurveyedFile;
use plan::FileColumns;

/// Shards of a new table, if nobody says how many: a few more than small machines have
/// cores, so that backups and restores of the table run in parallel.
pub const SHARDS_DEFAULT: u32 = 4;

/// How often a sync begins anew because somebody wrote to the table meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// What to load, and into what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// Table that is made, or made equal to the file.
    pub table: TableName,
    /// File, a regular one: it is read twice.
    pub file: PathBuf,
    /// Key columns in key order. May be empty for a table that exists.
    pub key: Vec<String>,
    /// What may become of a table that exists.
    pub mode: LoadMode,
    /// Shards of a new table, from 1; [`SHARDS_DEFAULT`] without. A table that exists stays
    /// as it is cut, and no shard of a new one is without rows unless it is the only one.
    pub shards: Option<u32>,
    /// Types of columns that are not to be found out: then every value has to parse, and
    /// may print back differently.
    pub types: BTreeMap<String, LogicalType>,
}

impl LoadRequest {
    /// Refuses what a load into a new database would refuse before it sorts the rows: reads the
    /// file once. For callers that would otherwise make a database for nothing.
    ///
    /// # Errors
    /// [`Kind::Usage`], as [`EmbeddedDatabase::load`].
    pub fn check(&self) -> Result<()> {
        let check = || {
            check_shards(self.shards)?;
            let file = file::survey(&self.file)?;
            plan::plan_new(columns(self, &file)).map(|_| ())
        };
        check().map_err(|error: Error| error.context(format!("load table `{}`", self.table)))
    }
}

/// What may become of a table that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadMode {
    /// Nothing: the name must be free.
    Create,
    /// It becomes equal to the file, columns included. A name that is free is fine as well.
    Sync,
}

/// What a load did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Rows of the file, and so of the table.
    pub rows: u64,
    /// Rows that the table did not have.
    pub inserted: u64,
    /// Rows that were stored differently; with a column whose type changed, all that have a
    /// value there.
    pub updated: u64,
    /// Rows that the file does not have.
    pub deleted: u64,
    /// Rows that were as the file has them; nothing was written for them.
    pub unchanged: u64,
    /// How the schema differs from before; empty for a new table.
    pub schema_changes: Vec<SchemaChange>,
    /// Bytes of the file.
    pub bytes: u64,
}

impl LoadReport {
    fn new(file: &SurveyedFile, tally: Tally, schema_changes: Vec<SchemaChange>) -> LoadReport {
        LoadReport {
            rows: tally.file_rows(),
            inserted: tally.inserted,
            updated: tally.updated,
            deleted: tally.deleted,
            unchanged: tally.unchanged,
            schema_changes,
            bytes: file.byte_count(),
        }
    }
}

/// Bounds that tests make small.
#[derive(Clone, Copy, Debug)]
struct LoadBounds {
    /// Memory for rows that wait to be sorted.
    sort_bytes_max: u64,
    /// Most rows and bytes that are changed in place.
    batch_rows_max: u64,
    batch_bytes_max: u64,
}

impl Default for LoadBounds {
    fn default() -> LoadBounds {
        LoadBounds {
            sort_bytes_max: SORT_BYTES_MAX,
            batch_rows_max: super::WRITE_BATCH_ROWS_MAX as u64,
            // What a chunk dirties: beyond it, copying a shard in order costs less than
            // changing it all over.
            batch_bytes_max: super::CHUNK_BYTES_MAX,
        }
    }
}

impl EmbeddedDatabase {
    /// Loads a CSV file as a new table, or makes a table equal to it, all or nothing.
    ///
    /// Types, NULL and quotes are as [`csv`](crate::csv) has them: what is found out for a
    /// new table prints back byte for byte. A table keeps its types as long as the file's
    /// values print back under them, and gets wider ones otherwise; columns come and go by
    /// name. Rows that are as the file has them are not written, and no cut sees them as
    /// changed. Readers and cuts see the table before or after, never between.
    ///
    /// A crash, as an error, leaves the table as it was; after a few errors, which say so, the
    /// change is recorded and the next access to the database completes it.
    ///
    /// # Errors
    /// [`Kind::Usage`] for whatever is wrong with file or request: file, line, what was found
    /// and what was expected. [`Kind::InTheWay`] when the table exists and was to be made, or
    /// a restore reserved the name.
    /// [`Kind::Transient`] when others kept writing to the table. [`Kind::Blocked`] for a full
    /// disk. [`Kind::Held`] when writers do not let go in time.
    pub fn load(&self, request: &LoadRequest) -> Result<LoadReport> {
        self.load_within(request, LoadBounds::default())
            .map_err(|error| error.context(format!("load table `{}`", request.table)))
    }

    fn load_within(&self, request: &LoadRequest, bounds: LoadBounds) -> Result<LoadReport> {
        check_shards(request.shards)?;
        // Told before a large file is read.
        self.find_base(request)?;
        let file = file::survey(&request.file)?;
        for _ in 0..ATTEMPTS_MAX {
            let scratch = Scratch::create(&self.scratch_dir(), self.env())?;
            let load = Load { database: self, request, bounds, file: &file, scratch: &scratch };
            let report = match self.find_base(request)? {
                None => Some(load.create()?),
                Some(base) => load.sync(&base)?,
            };
            if let Some(report) = report {
                self.tidy();
                return Ok(report);
            }
        }
        let message = format!(
            "others wrote to the table during each of {ATTEMPTS_MAX} attempts; nothing was \
             changed, load again when they are done"
        );
        Err(Error::new(Kind::Transient, message))
    }
}

/// One attempt.
struct Load<'a> {
    database: &'a EmbeddedDatabase,
    request: &'a LoadRequest,
    bounds: LoadBounds,
    file: &'a SurveyedFile,
    scratch: &'a Scratch,
}

impl Load<'_> {
    fn columns(&self) -> FileColumns<'_> {
        columns(self.request, self.file)
    }
}

fn columns<'a>(request: &'a LoadRequest, file: &'a SurveyedFile) -> FileColumns<'a> {
    FileColumns {
        file: &file.shown,
        names: &file.names,
        surveys: &file.surveys,
        types: &request.types,
        key: &request.key,
    }
}

fn check_shards(shards: Option<u32>) -> Result<()> {
    match shards {
        Some(shards) if !(1..=SHARDS_MAX).contains(&shards) => {
            let message =
                format!("{shards} shards were asked for, a table has from 1 to {SHARDS_MAX}");
            Err(Error::new(Kind::Usage, message))
        }
        _ => Ok(()),
    }
}
