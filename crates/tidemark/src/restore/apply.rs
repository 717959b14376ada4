//! The run of one shard: read, apply, mark, again.
//!
//! The mark in the target is the only truth about where the shard stands; this reads it
//! first and believes nothing else. Rows are in memory before the target's transaction
//! begins, so no read waits inside it.

use super::source::{Input, LinkStream, Parts, Reading};
use crate::database::{Fence, Mark, Target, TargetShard};
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::failpoint;
use crate::operation::{Ticket, Work};
use crate::planted::{self, Bug};
use crate::row::{KeyRange, RowBatch, RowCodec, RowStream};

/// Bytes of rows in a chunk that is appended: about what one transaction dirties.
const APPENDED_BYTES_MAX: u64 = 4 << 20;
/// Rows and bytes in a chunk that changes rows in place: each row dirties a page, and another
/// when it splits the first, so that a chunk stays below 8 MiB.
const CHANGED_ROWS_MAX: usize = 768;
const CHANGED_BYTES_MAX: u64 = 1 << 20;
/// Rows that a chunk of changes grows by; it ends where the next piece might not fit.
const PIECE_ROWS_MAX: u32 = 256;
/// Bytes of a piece; its last row may exceed them.
const PIECE_BYTES_MAX: u64 = 256 << 10;

/// What a shard's run works on.
pub(super) struct ShardWork<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) parts: &'a Parts,
    pub(super) fence: Fence,
    pub(super) ticket: Ticket,
    pub(super) shard: TargetShard,
    pub(super) range: &'a KeyRange,
    /// What the step merges for the table, oldest first; may be empty.
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) codec: &'a RowCodec,
    /// Whether the step begins an empty shard, so that rows are appended.
    pub(super) is_fresh: bool,
    /// Rows of a chunk at most, where nothing else ends it before.
    pub(super) chunk_rows_max: u32,
}

/// One attempt.
pub(super) struct ShardApply<'a> {
    work: ShardWork<'a>,
    mark: Mark,
    stream: Option<LinkStream<'a>>,
    /// Tallies of the mark when the stream was opened; the stream counts from zero.
    base: Mark,
    batch: RowBatch,
    chunk: RowBatch,
}

impl<'a> ShardApply<'a> {
    /// Reads the mark and opens the chain where it stands.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the hidden table is gone; [`Kind::Broken`] when the mark says
    /// that an earlier step is unfinished, which the barrier excludes.
    pub(super) fn open(work: ShardWork<'a>) -> Result<ShardApply<'a>> {
        let mark = entered(&work)?;
        let mut apply = ShardApply {
            base: mark.clone(),
            mark,
            stream: None,
            batch: RowBatch::new(),
            chunk: RowBatch::new(),
            work,
        };
        if !apply.mark.done && !apply.work.inputs.is_empty() {
            apply.stream = Some(apply.open_stream()?);
        }
        Ok(apply)
    }

    fn open_stream(&self) -> Result<LinkStream<'a>> {
        let work = &self.work;
        let after = self.mark.last_key.as_deref();
        let reading =
            Reading { inputs: &work.inputs, wanted: work.codec, range: work.range, after };
        let rows_max = PIECE_ROWS_MAX.min(work.chunk_rows_max);
        if work.is_fresh && rows_max == PIECE_ROWS_MAX {
            work.parts.open(reading)
        } else {
            work.parts.open_in_pieces(reading, rows_max, PIECE_BYTES_MAX)
        }
    }

    fn done(&self) -> Work {
        Work { rows: self.mark.rows, bytes: self.mark.bytes }
    }

    /// Gathers the next chunk; `false` when the stream has ended.
    fn gather(&mut self) -> Result<bool> {
        self.chunk.clear();
        let Some(stream) = &mut self.stream else { return Ok(false) };
        loop {
            if !stream.next_batch(&mut self.batch)? {
                return Ok(false);
            }
            self.chunk.append(&self.batch);
            let is_full = if self.work.is_fresh {
                self.chunk.byte_count() >= APPENDED_BYTES_MAX
            } else {
                self.chunk.len() + PIECE_ROWS_MAX as usize > CHANGED_ROWS_MAX
                    || self.chunk.byte_count() + PIECE_BYTES_MAX > CHANGED_BYTES_MAX
            };
            if is_full || self.chunk.len() >= self.work.chunk_rows_max as usize {
                return Ok(true);
            }
        }
    }

    /// Moves the mark to where the stream stands.
    fn advance_mark(&mut self, more: bool) {
        if let Some(stream) = &self.stream {
            if let Some(key) = stream.last_key_consumed() {
                self.mark.last_key = Some(key.to_vec());
            }
            let tallies = stream.tallies();
            self.mark.links.clone_from(&self.base.links);
            self.mark.rows = self.base.rows;
            self.mark.bytes = self.base.bytes;
            for (link, consumed) in self.mark.links.iter_mut().zip(&tallies) {
                link.rows += consumed.rows;
                link.bytes += consumed.bytes;
                self.mark.rows += consumed.rows;
                self.mark.bytes += consumed.bytes;
            }
        }
        self.mark.done = !more;
    }
}

impl ShardRun for ShardApply<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        if self.mark.done {
            return Ok(ChunkOutcome::Done { done: self.done() });
        }
        let from = self.mark.rows;
        let more = self.gather().map_err(|error| error.context(self.place()))?;
        self.advance_mark(more);
        if planted::is(Bug::DoneBeforeApply) && !more {
            return Ok(ChunkOutcome::Done { done: self.done() });
        }
        if planted::is(Bug::MarkBeyondRows) {
            self.chunk.pop();
        }
        failpoint::hit("restore.before_apply");
        let work = &self.work;
        work.target
            .apply(work.fence, &work.shard, &self.chunk, &mut self.mark)
            .map_err(|error| error.context(self.place()))?;
        failpoint::hit("restore.after_apply");
        failpoint::note_chunk(format_args!(
            "{} {} {} {from} {}",
            work.ticket.step, work.shard.table, work.shard.shard, self.mark.rows
        ));
        if more {
            let last_key = self.mark.last_key.clone();
            Ok(ChunkOutcome::Advanced { done: self.done(), last_key })
        } else {
            Ok(ChunkOutcome::Done { done: self.done() })
        }
    }
}

impl ShardApply<'_> {
    fn place(&self) -> String {
        let TargetShard { operation, table, shard } = &self.work.shard;
        format!("restore {operation}: step {} of shard {shard} of `{table}`", self.work.ticket.step)
    }
}

/// The shard's mark, inside the ticket's step.
fn entered(work: &ShardWork<'_>) -> Result<Mark> {
    let step = work.ticket.step;
    let link_count = work.inputs.len();
    let mark = work.target.mark(&work.shard)?.unwrap_or_default();
    // A copy that is rolled forward has the digests of its rows from the start, and no step.
    let is_untouched = mark.last_key.is_none() && !mark.done && mark.links.is_empty();
    if is_untouched {
        return Ok(mark.enter_step(step, link_count));
    }
    if planted::is(Bug::RetryFromZero) && mark.step == step && !mark.done {
        return Ok(mark.enter_step(step, link_count));
    }
    if mark.step == step {
        return Ok(mark);
    }
    if mark.step > step || !mark.done {
        let message = format!(
            "shard {} of `{}` stands in step {} ({}), but step {step} is to be applied; the target \
             was changed from outside: cancel and restore anew",
            work.shard.shard,
            work.shard.table,
            mark.step,
            if mark.done { "done" } else { "unfinished" }
        );
        return Err(Error::new(Kind::Broken, message));
    }
    Ok(mark.enter_step(step, link_count))
}
