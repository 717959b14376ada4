//! Folding one table at the end of its chain, and comparing it with what the source had.

use std::fs::File;
use std::path::PathBuf;

use super::job::VerifyJob;
use super::outcome::Finding;
use super::part::finding_of;
use super::plan::FOLDS;
use crate::collection::chain::{TableChain, TableLink};
use crate::collection::fold::{Fold, FoldMode, FoldOptions};
use crate::collection::manifest::{PartEntry, TableMode};
use crate::collection::part::{LinkReader, OpenPart, PartKind, PartRead, PartReader};
use crate::collection::run::{
    LinkCost, RunBudget, RunInput, RunPlan, SortedRun, part_memory_bytes, plan_runs,
    run_writer_memory_bytes, write_run,
};
use crate::database::LinkTally;
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::ids::{Attempt, ShardIdx};
use crate::operation::Work;
use crate::row::digest::RowHasher;
use crate::row::{Digest, KeyRange, RowBatch, RowCodec, RowStream};

/// Key and payload bytes of result between two reports of progress.
const CHUNK_BYTES: u64 = 4 << 20;

/// Memory of the process besides its folds.
pub(super) const PROCESS_BYTES: u64 = 32 << 20;

/// One attempt of one table.
pub(super) struct FoldRun<'a> {
    job: &'a VerifyJob<'a>,
    shard: ShardIdx,
    object: String,
    planned: Work,
    stage: Stage<'a>,
}

/// What an attempt stands at.
enum Stage<'a> {
    /// It could not be begun.
    Refused(Option<Error>),
    /// One link carries the table whole: its parts, each compared with its rows by then, say
    /// what it holds.
    Known {
        digest: Digest,
        state: Digest,
    },
    /// Increments are merged until the rest fits the memory.
    Merging(Merging<'a>),
    Folding(Box<Folding<'a>>),
}

struct Merging<'a> {
    chain: TableChain<'a>,
    plan: RunPlan,
    runs: Vec<(PathBuf, SortedRun)>,
    folder: PathBuf,
}

struct Folding<'a> {
    fold: Fold<'a>,
    hasher: RowHasher,
    batch: RowBatch,
    digest: Digest,
    /// What the source had.
    state: Digest,
    folder: PathBuf,
}

impl<'a> FoldRun<'a> {
    pub(super) fn start(
        job: &'a VerifyJob<'_>,
        shard: ShardIdx,
        attempt: Attempt,
    ) -> Result<FoldRun<'a>> {
        let planned = job.plan.planned_shard(FOLDS, shard).ok_or_else(|| {
            Error::new(Kind::Fatal, format!("the verification has no fold {shard}"))
        })?;
        let object = job.plan.object(FOLDS, shard);
        let stage = match job.plan.fold(shard) {
            Err(error) => Stage::Refused(Some(error)),
            Ok(None) => {
                let message = format!("{object} is not in its chain");
                Stage::Refused(Some(Error::new(Kind::Broken, message)))
            }
            Ok(Some((_, chain))) if is_told_by_parts(&chain) => {
                let digest = chain.links[0].entry.parts.iter().map(|part| part.digest).sum();
                Stage::Known { digest, state: chain.table.state.unwrap_or_default() }
            }
            Ok(Some((_, chain))) => {
                let folds = u64::from(job.room.window.max(1)).min(job.plan.fold_count()).max(1);
                let bytes = job.room.memory_bytes.saturating_sub(PROCESS_BYTES) / folds;
                match plan_merges(&chain, bytes) {
                    Ok(plan) => Stage::Merging(Merging {
                        chain,
                        plan,
                        runs: Vec::new(),
                        folder: job.scratch(shard, attempt),
                    }),
                    Err(error) => Stage::Refused(Some(error)),
                }
            }
        };
        Ok(FoldRun { job, shard, object, planned, stage })
    }

    /// Goes on; `Some` with the verdict at the end.
    fn step(&mut self) -> Result<Option<Option<Finding>>> {
        let job = self.job;
        match &mut self.stage {
            Stage::Refused(error) => {
                let error = error.take().unwrap_or_else(|| Error::new(Kind::Fatal, "ended"));
                Err(error)
            }
            Stage::Known { digest, state } => Ok(Some(compare(*digest, *state, &self.object))),
            Stage::Merging(merging) => {
                if merging.runs.len() < merging.plan.runs.len() {
                    merging.merge_next(job)?;
                } else {
                    self.stage = Stage::Folding(Box::new(merging.fold(job)?));
                }
                Ok(None)
            }
            Stage::Folding(folding) => {
                if folding.read()? {
                    return Ok(None);
                }
                let _ = std::fs::remove_dir_all(&folding.folder);
                Ok(Some(compare(folding.digest, folding.state, &self.object)))
            }
        }
    }

    fn done(&self) -> Work {
        let Stage::Folding(folding) = &self.stage else { return Work::default() };
        let consumed = folding.fold.tallies().iter();
        let rows = consumed.fold(0u64, |rows, tally| rows.saturating_add(tally.rows));
        let bytes = u128::from(self.planned.bytes) * u128::from(rows)
            / u128::from(self.planned.rows.max(1));
        Work { rows, bytes: u64::try_from(bytes).unwrap_or(u64::MAX) }
    }
}

impl ShardRun for FoldRun<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        let found = match self.step() {
            Ok(None) => {
                return Ok(ChunkOutcome::Advanced { done: self.done(), last_key: None });
            }
            Ok(Some(found)) => found,
            // The plan of merges says how much memory would be enough.
            Err(error) if error.kind() == Kind::Usage => {
                let why = format!("{} was not folded: {}", self.object, error.message());
                return Ok(self.job.leave_unfolded(self.shard, why));
            }
            Err(error) => Some(finding_of(self.object.clone(), error)?),
        };
        Ok(self.job.conclude(FOLDS, self.shard, found, self.planned))
    }
}

impl<'a> Merging<'a> {
    /// Makes the next run; all of it is one piece, since a half-made run is worth nothing.
    fn merge_next(&mut self, job: &'a VerifyJob<'_>) -> Result<()> {
        let at = self.runs.len();
        std::fs::create_dir_all(&self.folder).map_err(|cause| {
            Error::io(format!("create the scratch folder `{}`", self.folder.display()), cause)
        })?;
        let path = self.folder.join(format!("run-{at}"));
        let inputs = self.open(job, &self.plan.runs[at].inputs)?;
        let table = self.chain.table;
        let mut unobserved = |_: &[LinkTally]| Ok(());
        let run = write_run(inputs, &table.schema, table.digest_id, &path, &mut unobserved)?;
        self.runs.push((path, run));
        Ok(())
    }

    fn fold(&self, job: &'a VerifyJob<'_>) -> Result<Folding<'a>> {
        let table = self.chain.table;
        let inputs = self.open(job, &self.plan.last)?;
        Ok(Folding {
            fold: Fold::new(inputs, FoldOptions::new(FoldMode::ToFull)),
            hasher: RowHasher::new(table.digest_id),
            batch: RowBatch::new(),
            digest: Digest::default(),
            state: table.state.unwrap_or_default(),
            folder: self.folder.clone(),
        })
    }

    fn open(
        &self,
        job: &'a VerifyJob<'_>,
        inputs: &[RunInput],
    ) -> Result<Vec<Box<dyn RowStream + 'a>>> {
        let open = |input: &RunInput| -> Result<Box<dyn RowStream + 'a>> {
            let position = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
            let stream = match *input {
                RunInput::Link(link) => {
                    let link = self.chain.links.get(position(link.0));
                    self.open_link(job, *link.ok_or_else(lost_input)?)?
                }
                RunInput::Run(run) => {
                    let run = self.runs.get(position(run));
                    self.open_run(run.ok_or_else(lost_input)?)?
                }
            };
            Ok(Box::new(stream))
        };
        inputs.iter().map(open).collect()
    }

    fn open_link(&self, job: &'a VerifyJob<'_>, link: TableLink<'a>) -> Result<LinkReader<'a>> {
        let wanted = RowCodec::new(&self.chain.table.schema);
        let open_part: OpenPart<'a> = Box::new(move |part: &PartEntry| {
            let object = job.collection.open_part(link.directory, part)?;
            let read = PartRead {
                part,
                schema: &link.entry.schema,
                kind: kind_of(&link),
                wanted: &wanted,
                range: &KeyRange::ALL,
                after: None,
            };
            Ok(Box::new(PartReader::open(object, &read)?) as Box<dyn RowStream + 'a>)
        });
        LinkReader::new(&link.entry.parts, &KeyRange::ALL, None, open_part)
    }

    fn open_run(&self, (path, run): &(PathBuf, SortedRun)) -> Result<LinkReader<'a>> {
        let path = path.clone();
        let schema = self.chain.table.schema.clone();
        let wanted = RowCodec::new(&schema);
        let open_part: OpenPart<'a> = Box::new(move |part: &PartEntry| {
            let file = File::open(&path).map_err(|cause| {
                Error::io(format!("open the sorted run `{}`", path.display()), cause)
            })?;
            let read = PartRead {
                part,
                schema: &schema,
                kind: PartKind::Increment,
                wanted: &wanted,
                range: &KeyRange::ALL,
                after: None,
            };
            Ok(Box::new(PartReader::open(file, &read)?) as Box<dyn RowStream + 'a>)
        });
        let parts = run.part.as_slice();
        LinkReader::new(parts, &KeyRange::ALL, None, open_part)
    }
}

impl Folding<'_> {
    /// Reads on; `false` at the end.
    fn read(&mut self) -> Result<bool> {
        let mut read = 0;
        while read < CHUNK_BYTES {
            if !self.fold.next_batch(&mut self.batch)? {
                return Ok(false);
            }
            self.digest += self.hasher.sum(self.batch.iter());
            read += self.batch.byte_count();
        }
        Ok(true)
    }
}

fn compare(digest: Digest, state: Digest, object: &str) -> Option<Finding> {
    (digest != state).then(|| {
        let found = format!("rows with digest {digest}");
        let expected = format!("{state}, which the source had at the cut");
        Finding::mismatch(object.to_owned(), found, expected)
    })
}

/// Whether a table needs no fold: a single link carries it, under the schema that it ends with.
///
/// The step before has compared every part with its digest, row by row, and says so where
/// they differ.
pub(super) fn is_told_by_parts(chain: &TableChain<'_>) -> bool {
    let [link] = chain.links.as_slice() else { return false };
    link.entry.mode == TableMode::Whole && link.entry.schema == chain.table.schema
}

fn kind_of(link: &TableLink<'_>) -> PartKind {
    match link.entry.mode {
        TableMode::Whole => PartKind::Full,
        TableMode::Delta => PartKind::Increment,
    }
}

fn lost_input() -> Error {
    Error::new(Kind::Fatal, "a plan of merges names an input that is not there; this is a bug")
}

/// Plans merges until a fold of the rest fits `bytes`.
fn plan_merges(chain: &TableChain<'_>, bytes: u64) -> Result<RunPlan> {
    let costs: Vec<LinkCost> = chain.links.iter().map(link_cost).collect();
    let columns =
        chain.links.iter().map(|link| link.entry.schema.columns.len()).max().unwrap_or_default();
    let increments = chain.links.iter().filter(|link| link.entry.mode == TableMode::Delta);
    let greatest = increments.flat_map(|link| &link.entry.parts).map(|part| part.row_bytes_max);
    let budget = RunBudget {
        bytes,
        writer_bytes: run_writer_memory_bytes(columns as u32, greatest.max().unwrap_or(0)),
        reader_bytes_max: costs.iter().map(|cost| cost.open_bytes).max().unwrap_or(0),
    };
    plan_runs(&costs, budget)
}

fn link_cost(link: &TableLink<'_>) -> LinkCost {
    let (kind, columns) = (kind_of(link), link.entry.schema.columns.len() as u32);
    let parts = &link.entry.parts;
    let open_bytes = parts.iter().map(|part| part_memory_bytes(part, columns, kind)).max();
    LinkCost {
        kind,
        open_bytes: open_bytes.unwrap_or(0),
        row_bytes: parts.iter().map(|part| part.row_bytes).sum(),
    }
}
