//! The run of one merge: neighbouring increments become a local sorted run.

use std::path::{Path, PathBuf};

use super::source::{Input, Parts, Reading};
use crate::collection::run::{RunWriter, open_run};
use crate::database::TargetTable;
use crate::error::{Error, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::failpoint;
use crate::ids::Attempt;
use crate::operation::Work;
use crate::row::{KeyRange, RowCodec};

/// Bytes merged between two words about progress, and between two looks at whether to stop.
const ADVANCE_BYTES: u64 = 8 << 20;

static EVERY_KEY: KeyRange = KeyRange::ALL;

/// What a merge works on.
pub(super) struct MergeWork<'a> {
    pub(super) parts: &'a Parts,
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) codec: &'a RowCodec,
    pub(super) table: &'a TargetTable,
    /// Where the run lies; its folder is made when missing.
    pub(super) path: PathBuf,
    pub(super) planned: Work,
    pub(super) attempt: Attempt,
}

/// One attempt. It says how far it is, but a half-made run is worth nothing: a later attempt
/// begins anew.
pub(super) struct Merge<'a> {
    planned: Work,
    path: PathBuf,
    /// None when an earlier attempt or process had finished it.
    writer: Option<RunWriter<'a>>,
}

impl<'a> Merge<'a> {
    pub(super) fn open(work: MergeWork<'a>) -> Result<Merge<'a>> {
        let MergeWork { parts, inputs, codec, table, path, planned, attempt } = work;
        let mut merge = Merge { planned, path, writer: None };
        if open_run(&merge.path)?.is_none() {
            make_folder_of(&merge.path)?;
            let reading =
                Reading { inputs: &inputs, wanted: codec, range: &EVERY_KEY, after: None };
            let links = parts.open_each(reading)?;
            let (schema, digest_id) = (&table.schema, table.digest_id);
            merge.writer = Some(RunWriter::new(links, schema, digest_id, &merge.path, attempt));
        }
        Ok(merge)
    }
}

/// Makes the folder that a run lies in.
pub(super) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().expect("runs lie in a folder of their own");
    std::fs::create_dir_all(folder).map_err(|cause| {
        Error::io(format!("create the scratch folder `{}`", folder.display()), cause)
    })
}

/// Bytes that were consumed of all links; rows are not counted, the plan has none of merges.
fn consumed(writer: &RunWriter<'_>) -> u64 {
    writer.tallies().iter().map(|link| link.bytes).sum()
}

impl ShardRun for Merge<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        if let Some(writer) = &mut self.writer {
            let enough = consumed(writer).saturating_add(ADVANCE_BYTES);
            while writer.advance()? {
                let bytes = consumed(writer);
                if bytes >= enough {
                    let done = Work { rows: 0, bytes };
                    return Ok(ChunkOutcome::Advanced { done, last_key: None });
                }
            }
        }
        if let Some(writer) = self.writer.take() {
            failpoint::hit("restore.before_run");
            writer.finish()?;
            failpoint::hit("restore.after_run");
        }
        Ok(ChunkOutcome::Done { done: self.planned })
    }
}
