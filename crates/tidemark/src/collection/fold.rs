//! The fold: one ordered pass over a full and its increments.
//!
//! [`Fold`] merges the streams of all links by key. For each key the newest link
//! decides: a delete drops the row, an upsert is the row, a partial update is laid
//! over the next older state. So every surviving row comes out once, whatever the
//! length of the chain, and memory is one batch per link.
//!
//! Invariant: keys are consumed whole. After every batch the tallies count exactly
//! the rows of all links whose key is at most [`Fold::last_key_consumed`].

use std::fmt;

use crate::collection::part::key_text;
use crate::database::LinkTally;
use crate::error::{Error, Kind, Result};
use crate::planted::{self, Bug};
use crate::row::key::compare_keys;
use crate::row::payload::overlay;
use crate::row::{ChangeOp, RowBatch, RowRef, RowStream};

/// What a fold makes of its links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldMode {
    /// The oldest link holds every row: deletes vanish, updates become whole rows.
    ToFull,
    /// The links are increments whose parent is not here: deletes are kept, and an update
    /// without an older state stays one. The result is again an increment.
    ToIncrement,
}

/// How a fold works.
#[derive(Clone, Copy, Debug)]
pub struct FoldOptions {
    /// What it makes.
    pub mode: FoldMode,
    /// A batch ends with the row that makes it so long,
    pub rows_max: u32,
    /// or so many bytes.
    pub bytes_max: u64,
}

impl FoldOptions {
    /// Batches of 4,096 rows or 1 MiB.
    pub fn new(mode: FoldMode) -> FoldOptions {
        FoldOptions { mode, rows_max: 4096, bytes_max: 1 << 20 }
    }
}

/// A k-way merge of links, oldest first; itself a stream of rows.
pub struct Fold<'a> {
    options: FoldOptions,
    links: Vec<Link<'a>>,
    tallies: Vec<LinkTally>,
    /// Links that have a row, as a binary heap: least key first, newest link first among equals.
    heap: Vec<u32>,
    started: bool,
    last_key: Vec<u8>,
    any_consumed: bool,
    /// The state of the key at hand, while more than one row makes it.
    key: Vec<u8>,
    payload: Vec<u8>,
    overlaid: Vec<u8>,
}

/// One link's stream and its row that comes next.
struct Link<'a> {
    stream: Box<dyn RowStream + 'a>,
    batch: RowBatch,
    at: usize,
}

impl Link<'_> {
    fn row(&self) -> RowRef<'_> {
        self.batch.row(self.at)
    }

    /// Reads the next batch; `false` at the end.
    fn refill(&mut self) -> Result<bool> {
        self.at = 0;
        // A stream may answer with an empty batch; only `false` is its end.
        loop {
            let more = self.stream.next_batch(&mut self.batch)?;
            if !more || !self.batch.is_empty() {
                return Ok(more);
            }
        }
    }
}

impl<'a> Fold<'a> {
    /// A fold of `links`, oldest first, each ascending by key.
    pub fn new(links: Vec<Box<dyn RowStream + 'a>>, options: FoldOptions) -> Fold<'a> {
        let links: Vec<Link<'a>> = links
            .into_iter()
            .map(|stream| Link { stream, batch: RowBatch::new(), at: 0 })
            .collect();
        Fold {
            options,
            tallies: vec![LinkTally::default(); links.len()],
            heap: Vec::with_capacity(links.len()),
            links,
            started: false,
            last_key: Vec::new(),
            any_consumed: false,
            key: Vec::new(),
            payload: Vec::new(),
            overlaid: Vec::new(),
        }
    }

    /// Consumed per link since the fold began, in the order of the links.
    ///
    /// After a batch, and after the end, it counts exactly the rows with keys up to
    /// [`last_key_consumed`](Self::last_key_consumed).
    pub fn tallies(&self) -> &[LinkTally] {
        &self.tallies
    }

    /// The greatest key consumed so far, deletes included; `None` before the first.
    ///
    /// At least the key of the last row handed out: rows that vanish behind it are covered,
    /// too. It is what a mark takes as its last key.
    pub fn last_key_consumed(&self) -> Option<&[u8]> {
        self.any_consumed.then_some(&self.last_key)
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        for at in 0..self.links.len() {
            if self.links[at].refill()? {
                self.heap.push(at as u32);
            }
        }
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut RowBatch) -> Result<()> {
        if !self.started {
            self.start()?;
        }
        while let Some(&top) = self.heap.first() {
            let top = top as usize;
            if !self.pass_through(top, out)? {
                if self.is_shared(top) || !self.stands_alone(self.links[top].row().op) {
                    self.resolve_key(out)?;
                } else {
                    self.copy_run(top, out)?;
                }
            }
            if self.is_enough(out) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_enough(&self, out: &RowBatch) -> bool {
        out.len() >= self.options.rows_max as usize || out.byte_count() >= self.options.bytes_max
    }

    /// Whether a row of that operation is handed on as it is if no other link has its key.
    fn stands_alone(&self, op: ChangeOp) -> bool {
        op == ChangeOp::Upsert || self.options.mode == FoldMode::ToIncrement
    }

    /// The least key of the other links.
    fn rival(&self) -> Option<&[u8]> {
        let child = |at: usize| self.heap.get(at).map(|link| self.links[*link as usize].row().key);
        match (child(1), child(2)) {
            (Some(left), Some(right)) => {
                Some(if compare_keys(left, right).is_le() { left } else { right })
            }
            (left, right) => left.or(right),
        }
    }

    /// Whether another link has the top's key as well.
    fn is_shared(&self, top: usize) -> bool {
        self.rival().is_some_and(|rival| rival == self.links[top].row().key)
    }

    /// Copies the top link's whole batch, if no other link has a row among its keys and the
    /// output takes it: what happens most, and always when there is one link.
    fn pass_through(&mut self, top: usize, out: &mut RowBatch) -> Result<bool> {
        let link = &self.links[top];
        let fits = out.len() + link.batch.len() <= self.options.rows_max as usize
            && out.byte_count() + link.batch.byte_count() <= self.options.bytes_max;
        let Some(last) = link.batch.last().filter(|_| link.at == 0 && fits) else {
            return Ok(false);
        };
        let alone = self.rival().is_none_or(|rival| last.key < rival);
        if !alone || link.batch.iter().any(|row| !self.stands_alone(row.op)) {
            return Ok(false);
        }
        self.note_key(top, link.batch.len() - 1);
        let link = &mut self.links[top];
        self.tallies[top].rows += link.batch.len() as u64;
        self.tallies[top].bytes += link.batch.byte_count();
        // No exchange of buffers: the output's is greater than a link may keep.
        out.append(&link.batch);
        self.refill_top(top)?;
        Ok(true)
    }

    /// Copies rows of the top link up to the next key of another link, a row that does not
    /// stand alone, the end of its batch, or a full output.
    fn copy_run(&mut self, top: usize, out: &mut RowBatch) -> Result<()> {
        let rival = self.rival();
        let link = &self.links[top];
        let rows_left = (self.options.rows_max as usize).saturating_sub(out.len());
        let bytes_left = self.options.bytes_max.saturating_sub(out.byte_count());
        let end = link.batch.len().min(link.at + rows_left.max(1));
        let mut at = link.at;
        let mut bytes = 0;
        while at < end {
            let row = link.batch.row(at);
            let ours = rival.is_none_or(|rival| compare_keys(row.key, rival).is_lt());
            if !ours || !self.stands_alone(row.op) {
                break;
            }
            bytes += row.byte_count();
            at += 1;
            if bytes >= bytes_left {
                break;
            }
        }
        out.append_rows(&link.batch, link.at..at);
        self.note_key(top, at - 1);
        self.tallies[top].rows += (at - self.links[top].at) as u64;
        self.tallies[top].bytes += bytes;
        self.links[top].at = at;
        self.settle_top(top)
    }

    fn note_key(&mut self, link: usize, at: usize) {
        self.last_key.clear();
        self.last_key.extend_from_slice(self.links[link].batch.row(at).key);
        self.any_consumed = true;
    }

    /// Consumes the least key in all links and appends what the newest make of it.
    fn resolve_key(&mut self, out: &mut RowBatch) -> Result<()> {
        let newest = self.heap[0] as usize;
        let row = self.links[newest].row();
        let mut op = row.op;
        self.key.clear();
        self.key.extend_from_slice(row.key);
        self.payload.clear();
        self.payload.extend_from_slice(row.payload);
        self.consume_top()?;
        while let Some(&next) = self.heap.first() {
            let row = self.links[next as usize].row();
            if row.key != self.key {
                break;
            }
            // Only an update looks further down; everything else hides what is older.
            if op == ChangeOp::Update {
                if row.op == ChangeOp::Delete {
                    return Err(self.without_older("a deleted row"));
                }
                self.overlaid.clear();
                overlay(&self.payload, row.payload, &mut self.overlaid)?;
                op = row.op;
                std::mem::swap(&mut self.payload, &mut self.overlaid);
            }
            self.consume_top()?;
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(&self.key);
        self.any_consumed = true;
        match (op, self.options.mode) {
            (ChangeOp::Delete, FoldMode::ToFull) => return Ok(()),
            (ChangeOp::Update, FoldMode::ToFull) => return Err(self.without_older("no older row")),
            (ChangeOp::Upsert, _) | (_, FoldMode::ToIncrement) => {}
        }
        out.push(RowRef { key: &self.key, op, payload: &self.payload });
        Ok(())
    }

    fn without_older(&self, found: &str) -> Error {
        let message = format!(
            "fold the chain: key {} is updated in part, and the older links have {found}",
            key_text(&self.key)
        );
        Error::new(Kind::Broken, message)
    }

    /// Counts the top's row as consumed and moves on.
    fn consume_top(&mut self) -> Result<()> {
        let top = self.heap[0] as usize;
        self.tallies[top].rows += 1;
        self.tallies[top].bytes += self.links[top].row().byte_count();
        self.links[top].at += 1;
        self.settle_top(top)
    }

    /// Puts the top link where its next row belongs.
    fn settle_top(&mut self, top: usize) -> Result<()> {
        if self.links[top].at == self.links[top].batch.len() {
            return self.refill_top(top);
        }
        self.sift_down(0);
        Ok(())
    }

    fn refill_top(&mut self, top: usize) -> Result<()> {
        if !self.links[top].refill()? {
            // Its memory goes, too: the other links may run on for long.
            self.links[top].batch = RowBatch::new();
            self.heap.swap_remove(0);
        } else if self.any_consumed && *self.links[top].row().key < *self.last_key {
            let message = format!(
                "fold the chain: link {top} has key {} after {}",
                key_text(self.links[top].row().key),
                key_text(&self.last_key)
            );
            return Err(Error::new(Kind::Broken, message));
        }
        self.sift_down(0);
        Ok(())
    }

    /// Whether link `a` comes before link `b`.
    fn precedes(&self, a: u32, b: u32) -> bool {
        let (key_a, key_b) = (self.links[a as usize].row().key, self.links[b as usize].row().key);
        // Links are numbered oldest first; the newest one decides, so it comes first.
        let newest_first = if planted::is(Bug::FoldOldestWins) { a.cmp(&b) } else { b.cmp(&a) };
        compare_keys(key_a, key_b).then(newest_first).is_lt()
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.precedes(self.heap[child], self.heap[least]) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}

impl RowStream for Fold<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        self.append_batch(batch).inspect_err(|_| batch.clear())
    }

    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        let before = batch.len();
        self.fill(batch).inspect_err(|_| self.heap.clear())?;
        Ok(batch.len() > before)
    }
}

impl fmt::Debug for Fold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fold")
            .field("options", &self.options)
            .field("tallies", &self.tallies)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
