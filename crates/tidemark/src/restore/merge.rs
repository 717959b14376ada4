//! The run of one merge: neighbouring increments become a local sorted run.

use std::path::PathBuf;

use super::source::{Input, Parts, Reading};
use crate::collection::run::{open_run, write_run};
use crate::database::{LinkTally, TargetTable};
use crate::error::{Error, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::failpoint;
use crate::operation::Work;
use crate::row::{KeyRange, RowCodec};

/// One attempt of one merge; all of it is one chunk, since a half-made run is worth nothing.
pub(super) struct Merge<'a> {
    pub(super) parts: &'a Parts,
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) codec: &'a RowCodec,
    pub(super) table: &'a TargetTable,
    /// Where the run lies; its folder is made when missing.
    pub(super) path: PathBuf,
    pub(super) planned: Work,
}

impl ShardRun for Merge<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        // An earlier attempt or process may have finished it.
        if open_run(&self.path)?.is_none() {
            let folder = self.path.parent().expect("runs lie in a folder of their own");
            std::fs::create_dir_all(folder).map_err(|cause| {
                Error::io(format!("create the scratch folder `{}`", folder.display()), cause)
            })?;
            let reading = Reading {
                inputs: &self.inputs,
                wanted: self.codec,
                range: &KeyRange::ALL,
                after: None,
            };
            let links = self.parts.open_each(reading)?;
            let mut unobserved = |_: &[LinkTally]| Ok(());
            let schema = &self.table.schema;
            write_run(links, schema, self.table.digest_id, &self.path, &mut unobserved)?;
            failpoint::hit("restore.after_run");
        }
        Ok(ChunkOutcome::Done { done: self.planned })
    }
}
