//! The shards of one step: which run, which rest, which come next.
//!
//! Largest shard first, so that no long one is left for the end; every change
//! costs O(log shards). About 70 bytes a shard in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::event::Work;
use crate::env::BootTime;
use crate::ids::{Attempt, ShardIdx};

/// Where one shard of the current step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardStatus {
    /// Waiting for a place in the window. Needs no record while nothing happened.
    Pending,
    /// Failed; waits until the time given.
    Resting {
        /// When it may start again.
        until: BootTime,
    },
    /// Handed to a worker. A restart finds it pending again.
    InFlight,
    /// Every row of the step is durable on it.
    Done,
}

/// What the catalog keeps of a shard: claim, attempt, and a copy of its mark for display,
/// which recovery never believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardProgress {
    /// Where it stands.
    pub status: ShardStatus,
    /// Attempts started in this step.
    pub attempt: Attempt,
    /// Failures since it last advanced.
    pub failures: u32,
    /// Copy of the work done in this step.
    pub done: Work,
    /// Copy of the mark's last key; none once the shard is done.
    pub last_key: Option<Vec<u8>>,
    /// Why it does not move, or why it last failed.
    pub reason: Option<String>,
}

impl Default for ShardProgress {
    fn default() -> ShardProgress {
        ShardProgress {
            status: ShardStatus::Pending,
            attempt: Attempt(0),
            failures: 0,
            done: Work::default(),
            last_key: None,
            reason: None,
        }
    }
}

/// A running shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) last_heard: BootTime,
    /// Whether the catalog's copy is older than what is known here.
    pub(super) is_newer: bool,
}

#[derive(Clone, Copy, Debug)]
struct Shard {
    planned: Work,
    done: Work,
    attempt: Attempt,
    failures: u32,
    status: ShardStatus,
}

/// All shards of one step.
#[derive(Clone, Debug, Default)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    pending: BinaryHeap<(u64, Reverse<u32>)>,
    resting: BTreeSet<(BootTime, u32)>,
    running: BTreeMap<u32, Running>,
    reasons: BTreeMap<u32, String>,
    /// Of shards that have begun and are not done.
    last_keys: BTreeMap<u32, Vec<u8>>,
    done_count: u64,
    planned: Work,
    done: Work,
}

impl Shards {
    /// Shards as the catalog has them: those in `stored` as recorded, the rest untouched.
    pub(super) fn new(
        planned: &[Work],
        stored: impl IntoIterator<Item = (ShardIdx, ShardProgress)>,
    ) -> Shards {
        let fresh = |planned: &Work| Shard {
            planned: *planned,
            done: Work::default(),
            attempt: Attempt(0),
            failures: 0,
            status: ShardStatus::Pending,
        };
        let mut set = Shards { shards: planned.iter().map(fresh).collect(), ..Shards::default() };
        for (idx, progress) in stored {
            let Some(shard) = set.shards.get_mut(idx.0 as usize) else { continue };
            shard.done = progress.done;
            shard.attempt = progress.attempt;
            shard.failures = progress.failures;
            shard.status = match progress.status {
                // Nobody runs it any more: whoever did is gone, or is about to be fenced.
                ShardStatus::InFlight => ShardStatus::Pending,
                status => status,
            };
            if let Some(reason) = progress.reason {
                set.reasons.insert(idx.0, reason);
            }
            if let Some(last_key) = progress.last_key {
                set.last_keys.insert(idx.0, last_key);
            }
        }
        let mut pending = Vec::new();
        for (idx, shard) in (0u32..).zip(&set.shards) {
            set.planned += shard.planned;
            set.done += shard.shown();
            match shard.status {
                ShardStatus::Pending => pending.push((shard.planned.bytes, Reverse(idx))),
                ShardStatus::Resting { until } => {
                    set.resting.insert((until, idx));
                }
                ShardStatus::Done => set.done_count += 1,
                ShardStatus::InFlight => unreachable!("made pending above"),
            }
        }
        set.pending = pending.into();
        set
    }

    pub(super) fn count(&self) -> u64 {
        self.shards.len() as u64
    }

    pub(super) fn done_count(&self) -> u64 {
        self.done_count
    }

    pub(super) fn in_flight_count(&self) -> u32 {
        self.running.len() as u32
    }

    pub(super) fn are_all_done(&self) -> bool {
        self.done_count == self.count()
    }

    /// Planned over all shards.
    pub(super) fn planned(&self) -> Work {
        self.planned
    }

    /// Done over all shards; a finished shard counts as planned.
    pub(super) fn done(&self) -> Work {
        self.done
    }

    /// Done over all shards as they themselves said.
    pub(super) fn really_done(&self) -> Work {
        let mut done = Work::default();
        self.shards.iter().for_each(|shard| done += shard.done);
        done
    }

    pub(super) fn is_running(&self, idx: ShardIdx, attempt: Attempt) -> bool {
        self.running.contains_key(&idx.0) && self.shards[idx.0 as usize].attempt == attempt
    }

    /// Attempts started of a shard of this step; `None` if there is no such shard.
    pub(super) fn attempt(&self, idx: ShardIdx) -> Option<Attempt> {
        self.shards.get(idx.0 as usize).map(|shard| shard.attempt)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (ShardIdx, Attempt, &Running)> {
        self.running
            .iter()
            .map(|(idx, running)| (ShardIdx(*idx), self.shards[*idx as usize].attempt, running))
    }

    /// Starts the largest shard that may run; `None` if none may now.
    pub(super) fn start_next(
        &mut self,
        now: BootTime,
        is_due: impl Fn(BootTime) -> bool,
    ) -> Option<(ShardIdx, Attempt)> {
        let idx = match self.resting.first() {
            Some(&(until, idx)) if is_due(until) => {
                self.resting.remove(&(until, idx));
                idx
            }
            _ => self.pending.pop()?.1.0,
        };
        let shard = &mut self.shards[idx as usize];
        shard.status = ShardStatus::InFlight;
        shard.attempt.0 += 1;
        self.running.insert(idx, Running { last_heard: now, is_newer: false });
        Some((ShardIdx(idx), shard.attempt))
    }

    /// When the next resting shard may start.
    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.resting.first().map(|(until, _)| *until)
    }

    pub(super) fn advance(
        &mut self,
        idx: ShardIdx,
        done: Work,
        last_key: Option<Vec<u8>>,
        now: BootTime,
    ) {
        let shard = &mut self.shards[idx.0 as usize];
        let before = shard.shown();
        shard.done = done;
        shard.failures = 0;
        let after = shard.shown();
        self.replace_done(before, after);
        self.reasons.remove(&idx.0);
        if let Some(last_key) = last_key {
            self.last_keys.insert(idx.0, last_key);
        }
        if let Some(running) = self.running.get_mut(&idx.0) {
            *running = Running { last_heard: now, is_newer: true };
        }
    }

    pub(super) fn finish(&mut self, idx: ShardIdx, done: Work) {
        self.running.remove(&idx.0);
        self.reasons.remove(&idx.0);
        self.last_keys.remove(&idx.0);
        let shard = &mut self.shards[idx.0 as usize];
        let before = shard.shown();
        shard.done = done;
        shard.status = ShardStatus::Done;
        let after = shard.shown();
        self.replace_done(before, after);
        self.done_count += 1;
    }

    /// Puts a running shard back into the queue, with no failure counted.
    pub(super) fn put_back(&mut self, idx: ShardIdx) {
        if self.running.remove(&idx.0).is_some() {
            let shard = &mut self.shards[idx.0 as usize];
            shard.status = ShardStatus::Pending;
            self.pending.push((shard.planned.bytes, Reverse(idx.0)));
        }
    }

    /// Counts a failure of a running shard and returns how many there were in a row.
    pub(super) fn count_failure(&mut self, idx: ShardIdx, reason: &str) -> u32 {
        self.reasons.insert(idx.0, reason.to_owned());
        let shard = &mut self.shards[idx.0 as usize];
        shard.failures += 1;
        shard.failures
    }

    pub(super) fn rest(&mut self, idx: ShardIdx, until: BootTime) {
        self.running.remove(&idx.0);
        self.shards[idx.0 as usize].status = ShardStatus::Resting { until };
        self.resting.insert((until, idx.0));
    }

    /// Gives every shard its whole budget of failures and lets the resting start at once.
    /// Returns the shards that changed.
    pub(super) fn forgive(&mut self) -> Vec<ShardIdx> {
        let mut changed = Vec::new();
        for (idx, shard) in (0u32..).zip(&mut self.shards) {
            let rests = matches!(shard.status, ShardStatus::Resting { .. });
            if rests {
                shard.status = ShardStatus::Pending;
                self.pending.push((shard.planned.bytes, Reverse(idx)));
            }
            if rests || shard.failures > 0 {
                shard.failures = 0;
                changed.push(ShardIdx(idx));
            }
        }
        self.resting.clear();
        changed
    }

    /// Running shards whose stored copy is out of date; it counts as written now.
    pub(super) fn take_newer(&mut self) -> Vec<ShardIdx> {
        let newer = self.running.iter_mut().filter(|(_, running)| running.is_newer);
        newer
            .map(|(idx, running)| {
                running.is_newer = false;
                ShardIdx(*idx)
            })
            .collect()
    }

    /// What the catalog keeps of a shard.
    pub(super) fn progress(&self, idx: ShardIdx) -> ShardProgress {
        let shard = &self.shards[idx.0 as usize];
        ShardProgress {
            status: shard.status,
            attempt: shard.attempt,
            failures: shard.failures,
            done: shard.done,
            last_key: self.last_keys.get(&idx.0).cloned(),
            reason: self.reasons.get(&idx.0).cloned(),
        }
    }

    /// Planned and done work of one shard, as progress counts it.
    pub(super) fn work(&self, idx: ShardIdx) -> (Work, Work) {
        let shard = &self.shards[idx.0 as usize];
        (shard.planned, shard.shown())
    }

    fn replace_done(&mut self, before: Work, after: Work) {
        self.done.rows = self.done.rows - before.rows + after.rows;
        self.done.bytes = self.done.bytes - before.bytes + after.bytes;
    }
}

impl Shard {
    /// Work done as progress counts it: never beyond the plan, and all of it when done.
    fn shown(&self) -> Work {
        match self.status {
            ShardStatus::Done => self.planned,
            ShardStatus::Pending | ShardStatus::Resting { .. } | ShardStatus::InFlight => Work {
                rows: self.done.rows.min(self.planned.rows),
                bytes: self.done.bytes.min(self.planned.bytes),
            },
        }
    }
}
