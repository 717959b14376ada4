//! One attempt of one shard: rows from the cut into parts.

use super::cut::{Cut, CutShard};
use super::job::BackupJob;
use crate::collection::manifest::TableMode;
use crate::collection::part::{PartKind, PartOptions, PartWriter};
use crate::collection::store::ObjectWriter;
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::failpoint;
use crate::ids::{Attempt, ShardIdx};
use crate::operation::Work;
use crate::row::{RowBatch, RowStream};

/// Key and payload bytes between two reports of progress.
const CHUNK_BYTES: u64 = 2 << 20;

/// Streams a shard into parts, one open at a time.
///
/// Holds a batch of the source and one part's writer. Dropped in the middle, the part at
/// hand is taken back; parts that are durable stay, and the next attempt begins behind them.
pub(super) struct BackupShard<'a> {
    job: &'a BackupJob<'a>,
    cut: &'a Cut,
    idx: ShardIdx,
    shard: &'a CutShard,
    attempt: Attempt,
    /// `None` when earlier attempts have done it all.
    stream: Option<Box<dyn RowStream + 'a>>,
    batch: RowBatch,
    output: Option<PartOutput>,
    /// Parts begun in this attempt.
    part_count: u32,
    done: Work,
    last_key: Option<Vec<u8>>,
}

/// A part being written.
struct PartOutput {
    name: String,
    writer: PartWriter<ObjectWriter>,
    row_bytes: u64,
}

impl<'a> BackupShard<'a> {
    /// Begins where durable parts of earlier attempts end.
    pub(super) fn start(
        job: &'a BackupJob<'_>,
        cut: &'a Cut,
        idx: ShardIdx,
        attempt: Attempt,
    ) -> Result<BackupShard<'a>> {
        let shard = cut
            .shard(idx)
            .ok_or_else(|| Error::new(Kind::Fatal, format!("the cut has no shard {idx}")))?;
        let start = cut.start_shard(idx, attempt)?;
        let stream = match start.is_complete {
            true => None,
            false => Some(cut.stream(shard.table, &start.range)?),
        };
        Ok(BackupShard {
            job,
            cut,
            idx,
            shard,
            attempt,
            stream,
            batch: RowBatch::new(),
            output: None,
            part_count: 0,
            done: start.done,
            last_key: None,
        })
    }

    fn run_chunk(&mut self) -> Result<ChunkOutcome> {
        let mut chunk_bytes = 0;
        while chunk_bytes < CHUNK_BYTES {
            let Some(stream) = &mut self.stream else {
                return Ok(ChunkOutcome::Done { done: self.done });
            };
            if !stream.next_batch(&mut self.batch)? {
                self.close_part()?;
                self.cut.complete_shard(self.idx, self.attempt)?;
                self.stream = None;
                return Ok(ChunkOutcome::Done { done: self.done });
            }
            chunk_bytes += self.batch.byte_count();
            self.write_batch()?;
        }
        Ok(ChunkOutcome::Advanced { done: self.done, last_key: self.last_key.clone() })
    }

    fn write_batch(&mut self) -> Result<()> {
        let Some(last) = self.batch.last() else { return Ok(()) };
        self.last_key = Some(last.key.to_vec());
        let bytes = self.batch.byte_count();
        if self.output.is_none() {
            self.output = Some(self.open_part()?);
        }
        let output = self.output.as_mut().expect("opened above");
        output.writer.write(&self.batch)?;
        output.row_bytes += bytes;
        let is_full = output.row_bytes >= self.job.part_row_bytes_max;
        self.done += Work { rows: self.batch.len() as u64, bytes };
        if is_full { self.close_part() } else { Ok(()) }
    }

    fn open_part(&mut self) -> Result<PartOutput> {
        let table = self.cut.table(self.shard.table);
        let name = self.cut.part_name(self.shard, self.attempt, self.part_count)?;
        self.part_count += 1;
        let kind = match table.mode {
            TableMode::Whole => PartKind::Full,
            TableMode::Delta => PartKind::Increment,
        };
        let object = self.cut.new.create_part(&self.job.parts.collection, &name)?;
        let options = PartOptions::new(table.digest_id);
        let writer = PartWriter::new(object, &table.schema, kind, options)?;
        Ok(PartOutput { name, writer, row_bytes: 0 })
    }

    /// Makes the open part durable and takes it.
    fn close_part(&mut self) -> Result<()> {
        let Some(output) = self.output.take() else { return Ok(()) };
        let (object, summary) = output.writer.finish()?;
        self.cut.note_object(self.cut.new.part_path(&output.name));
        failpoint::hit("backup.before_part");
        let written = object.finish().inspect_err(|error| {
            if error.kind() == Kind::Held {
                // Somebody else's object has that name: it is not ours to remove.
                self.cut.forget_object(&self.cut.new.part_path(&output.name));
            }
        })?;
        failpoint::hit("backup.after_part");
        if written != summary.bytes {
            let message = format!(
                "part `{}`: {} bytes were written, the store took {written}",
                output.name, summary.bytes
            );
            return Err(Error::new(Kind::Fatal, message));
        }
        self.cut.keep_part(self.idx, self.attempt, summary.into_entry(output.name))
    }
}

impl ShardRun for BackupShard<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        self.run_chunk().map_err(|error| {
            let table = &self.cut.table(self.shard.table).name;
            error.context(format!("back up shard {} of table `{table}`", self.shard.number))
        })
    }
}
