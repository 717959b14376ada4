//! What a table's chain says its rows are: folded once more, without writing any.
//!
//! For backups whose source told no digest. The fold begins where the table is whole,
//! wherever the restore began, and keeps to the memory as the restore does: what does not
//! fit at once is merged into sorted runs first.

use std::path::PathBuf;

use super::source::{BatchMax, Input, Parts, Reading};
use crate::collection::chain::TableLink;
use crate::collection::run::{PlannedRun, RunInput, RunPlan, SortedRun, open_run};
use crate::database::{LinkTally, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::executor::Stop;
use crate::row::digest::RowHasher;
use crate::row::{Digest, KeyRange, RowBatch, RowCodec, RowStream};

/// Rows that are summed at a time: enough to make a call's own cost vanish.
const BATCH_MAX: BatchMax = BatchMax { rows: 4096, bytes: 1 << 20 };

/// One table's chain.
pub(super) struct ChainProof<'a> {
    pub(super) parts: &'a Parts,
    /// Every link that holds rows of it, oldest first.
    pub(super) links: Vec<TableLink<'a>>,
    /// How they are merged.
    pub(super) runs: &'a RunPlan,
    pub(super) codec: &'a RowCodec,
    pub(super) table: &'a TargetTable,
    /// Where runs lie: the beginning of their paths.
    pub(super) runs_at: PathBuf,
}

impl<'a> ChainProof<'a> {
    /// The digest of the rows that the fold gives; `advanced` takes the bytes read so far,
    /// those of merges among them.
    ///
    /// # Errors
    /// [`Kind::Transient`] when stopped; those of reading the chain.
    pub(super) fn digest(&self, stop: &Stop, advanced: &dyn Fn(u64)) -> Result<Digest> {
        let mut made: Vec<SortedRun> = Vec::new();
        let mut before = 0;
        for planned in &self.runs.runs {
            let run = self.make(planned, &made, &mut |tallies| {
                advanced(before + bytes_of(tallies));
                go_on(stop)
            })?;
            made.push(run);
            before += planned.row_bytes;
            advanced(before);
        }
        let inputs = self.inputs(&self.runs.last, &made)?;
        let range = &KeyRange::ALL;
        let reading = Reading { inputs: &inputs, wanted: self.codec, range, after: None };
        let mut stream = self.parts.open(reading, BATCH_MAX)?;
        let mut hasher = RowHasher::new(self.table.digest_id);
        let mut batch = RowBatch::new();
        let mut digest = Digest::default();
        while stream.next_batch(&mut batch)? {
            go_on(stop)?;
            digest += hasher.sum(batch.iter());
            advanced(before + bytes_of(stream.tallies()));
        }
        Ok(digest)
    }

    /// Makes the next run, unless an earlier attempt or process did.
    fn make(
        &self,
        planned: &PlannedRun,
        made: &[SortedRun],
        on_batch: &mut dyn FnMut(&[LinkTally]) -> Result<()>,
    ) -> Result<SortedRun> {
        let path = self.run_path(made.len());
        if let Some(run) = open_run(&path)? {
            return Ok(run);
        }
        let inputs = self.inputs(&planned.inputs, made)?;
        self.parts.merge(&inputs, self.codec, self.table, &path, on_batch)
    }

    fn run_path(&self, run: usize) -> PathBuf {
        let mut path = self.runs_at.clone().into_os_string();
        path.push(format!("-{run}.parquet"));
        path.into()
    }

    fn inputs(&self, inputs: &[RunInput], made: &[SortedRun]) -> Result<Vec<Input<'a>>> {
        let input = |input: &RunInput| match input {
            RunInput::Link(link) => self.links.get(link.0 as usize).copied().map(Input::Link),
            RunInput::Run(run) => made.get(*run as usize).map(|found| Input::Run {
                path: self.run_path(*run as usize),
                part: found.part.clone(),
                schema: &self.table.schema,
            }),
        };
        let lacking = || Error::new(Kind::Broken, "a planned merge reads what the chain lacks");
        inputs.iter().map(|each| input(each).ok_or_else(lacking)).collect()
    }
}

fn bytes_of(tallies: &[LinkTally]) -> u64 {
    tallies.iter().map(|link| link.bytes).sum()
}

fn go_on(stop: &Stop) -> Result<()> {
    if stop.is_asked() {
        return Err(Error::new(Kind::Transient, "the proof was asked to stop"));
    }
    Ok(())
}
