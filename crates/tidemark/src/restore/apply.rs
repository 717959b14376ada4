//! The run of one shard: read, apply, mark, again.
//!
//! The mark in the target is the only truth about where the shard stands; this reads it
//! first and believes nothing else. Rows are in memory before the target's transaction
//! begins, so no read waits inside it. While it writes and waits for the disk, the next
//! chunk is read and decoded.

use std::mem;
use std::panic::resume_unwind;
use std::thread;

use super::source::{BatchMax, Input, LinkStream, Parts, Reading};
use crate::database::{Fence, LinkTally, Mark, Target, TargetShard};
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::failpoint;
use crate::operation::{Ticket, Work};
use crate::planted::{self, Bug};
use crate::row::{KeyRange, RowBatch, RowCodec, RowStream};

/// A chunk that is appended; its bytes are about what one transaction dirties, and with its last
/// row still below a power of two, which is how its buffer grows.
const APPENDED: BatchMax = BatchMax { rows: 64 << 10, bytes: (4 << 20) - (64 << 10) };
/// Bytes of a chunk beside which nothing is read: it holds a huge row, and the next may, too.
const HUGE_BYTES: u64 = 2 * APPENDED.bytes;

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
    /// Whether the next chunk is read while one is applied, by two threads.
    pub(super) reads_ahead: bool,
}

/// One attempt.
pub(super) struct ShardApply<'a> {
    work: ShardWork<'a>,
    mark: Mark,
    /// Tallies of the mark when the stream was opened; the stream counts from zero.
    base: Mark,
    gathering: Option<Gathering<'a>>,
    chunk: Chunk,
    /// The chunk behind the one that is applied.
    next: Chunk,
    /// What became of reading `next`, once that was tried.
    ahead: Option<Result<()>>,
}

/// Rows of one transaction, and where the stream stands behind them.
#[derive(Default)]
struct Chunk {
    rows: RowBatch,
    last_key: Option<Vec<u8>>,
    /// Consumed since the stream was opened.
    tallies: Vec<LinkTally>,
    more: bool,
}

/// The stream, and where its chunks end.
struct Gathering<'a> {
    stream: LinkStream<'a>,
    chunk_max: BatchMax,
}

impl<'a> ShardApply<'a> {
    /// Reads the mark and opens the chain where it stands.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the hidden table is gone; [`Kind::Broken`] when the mark says
    /// that an earlier step is unfinished, which the barrier excludes.
    pub(super) fn open(work: ShardWork<'a>) -> Result<ShardApply<'a>> {
        let mark = entered(&work)?;
        let is_open = !mark.done && !work.inputs.is_empty();
        let gathering = is_open.then(|| Gathering::open(&work, &mark)).transpose()?;
        Ok(ShardApply {
            base: mark.clone(),
            mark,
            gathering,
            chunk: Chunk::default(),
            next: Chunk::default(),
            ahead: None,
            work,
        })
    }

    fn done(&self) -> Work {
        Work { rows: self.mark.rows, bytes: self.mark.bytes }
    }

    /// Makes the next chunk the one at hand.
    fn take_next(&mut self) -> Result<()> {
        match (self.ahead.take(), &mut self.gathering) {
            (Some(read), _) => read?,
            (None, Some(gathering)) => gathering.fill(&mut self.next)?,
            (None, None) => {}
        }
        mem::swap(&mut self.chunk, &mut self.next);
        Ok(())
    }

    /// Moves the mark to where the stream stood behind the chunk.
    fn advance_mark(&mut self) {
        if self.gathering.is_some() {
            if self.chunk.last_key.is_some() {
                self.mark.last_key.clone_from(&self.chunk.last_key);
            }
            self.mark.links.clone_from(&self.base.links);
            self.mark.rows = self.base.rows;
            self.mark.bytes = self.base.bytes;
            for (link, consumed) in self.mark.links.iter_mut().zip(&self.chunk.tallies) {
                link.rows += consumed.rows;
                link.bytes += consumed.bytes;
                self.mark.rows += consumed.rows;
                self.mark.bytes += consumed.bytes;
            }
        }
        self.mark.done = !self.chunk.more;
    }

    /// Applies the chunk; meanwhile the next one is read, if there is one.
    fn apply(&mut self) -> Result<()> {
        let ShardApply { work, mark, chunk, .. } = self;
        let rows = &chunk.rows;
        let mut apply = || work.target.apply(work.fence, &work.shard, rows, mark);
        let reads = work.reads_ahead && chunk.more && rows.byte_count() < HUGE_BYTES;
        let Some(gathering) = self.gathering.as_mut().filter(|_| reads) else { return apply() };
        thread::scope(|scope| {
            // The target gets the new thread: this one has the buffers of the decoder.
            let applying = scope.spawn(apply);
            self.ahead = Some(gathering.fill(&mut self.next));
            applying.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl<'a> Gathering<'a> {
    fn open(work: &ShardWork<'a>, mark: &Mark) -> Result<Gathering<'a>> {
        let changed = || {
            let max = work.target.changes_max();
            BatchMax { rows: max.rows, bytes: max.bytes }
        };
        let BatchMax { rows, bytes } = if work.is_fresh { APPENDED } else { changed() };
        let chunk_max = BatchMax { rows: rows.min(work.chunk_rows_max), bytes };
        let reading = Reading {
            inputs: &work.inputs,
            wanted: work.codec,
            range: work.range,
            after: mark.last_key.as_deref(),
        };
        Ok(Gathering { stream: work.parts.open(reading, chunk_max)?, chunk_max })
    }

    /// Replaces `chunk` by what comes next.
    fn fill(&mut self, chunk: &mut Chunk) -> Result<()> {
        let rows = &mut chunk.rows;
        if rows.byte_count() >= HUGE_BYTES {
            *rows = RowBatch::new();
        }
        rows.clear();
        chunk.more = true;
        while chunk.more
            && rows.len() < self.chunk_max.rows as usize
            && rows.byte_count() < self.chunk_max.bytes
        {
            chunk.more = self.stream.append_batch(rows)?;
        }
        chunk.last_key = self.stream.last_key_consumed().map(<[u8]>::to_vec);
        chunk.tallies.clear();
        chunk.tallies.extend_from_slice(self.stream.tallies());
        Ok(())
    }
}

impl ShardRun for ShardApply<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        if self.mark.done {
            return Ok(ChunkOutcome::Done { done: self.done() });
        }
        let from = self.mark.rows;
        self.take_next().map_err(|error| error.context(self.place()))?;
        self.advance_mark();
        let more = self.chunk.more;
        if planted::is(Bug::DoneBeforeApply) && !more {
            return Ok(ChunkOutcome::Done { done: self.done() });
        }
        if planted::is(Bug::MarkBeyondRows) {
            self.chunk.rows.pop();
        }
        failpoint::hit("restore.before_apply");
        self.apply().map_err(|error| error.context(self.place()))?;
        failpoint::hit("restore.after_apply");
        let work = &self.work;
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
