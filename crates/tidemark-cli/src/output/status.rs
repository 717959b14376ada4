//! How far an operation is: what status lines and progress bars show.

use std::time::Duration;

use serde::Serialize;
use tidemark::catalog::StoredState;
use tidemark::executor::TableProgress;
use tidemark::ids::{ShardIdx, StepIdx};
use tidemark::operation::{
    ApplyStage, Operation, Percent, Phase, ShardProgress, ShardStatus, State, Work, Working,
};

/// Most shards that are named because they do not move.
const STALLED_MAX: usize = 8;

/// Shards up to which those that do not move are looked for.
const STALLED_LOOK_MAX: u64 = 10_000;

/// One look at an operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct StatusView {
    /// Number of the operation.
    pub(crate) operation: u64,
    /// Phase.
    pub(crate) phase: &'static str,
    /// How far applying is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<&'static str>,
    /// Step being worked at, from 1; `None` before the first and after the last.
    pub(crate) step: Option<u32>,
    /// Steps of the plan.
    pub(crate) steps: u32,
    /// Since this command began.
    pub(crate) seconds_elapsed: f64,
    /// At the rate since this command began; `None` until there is one.
    pub(crate) seconds_remaining: Option<f64>,
    /// A fraction of 1; never goes backwards, and 1 means published and proven.
    pub(crate) percent_done: f64,
    /// Of the whole plan, the proof included.
    pub(crate) bytes_done: u64,
    /// Of the whole plan, the proof included.
    pub(crate) total_bytes: u64,
    /// Of the whole plan.
    pub(crate) rows_done: u64,
    /// Of the whole plan.
    pub(crate) total_rows: u64,
    /// Of the current step.
    pub(crate) shards_done: u64,
    /// Of the current step; `None` while looking from outside, where only the plan knows it.
    pub(crate) total_shards: Option<u64>,
    /// Running now.
    pub(crate) shards_in_flight: u32,
    /// Tables of the current step.
    pub(crate) tables: Vec<TableView>,
    /// Shards that wait after a failure, at most a few of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stalled: Vec<StalledView>,
    /// What is tried again for the operation as a whole, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retrying: Option<RetryView>,
    /// Something people should know, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) notice: Option<String>,
}

/// One table of the current step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TableView {
    /// Name.
    pub(crate) table: String,
    /// Rows.
    pub(crate) rows_done: u64,
    /// Rows.
    pub(crate) total_rows: u64,
    /// Bytes.
    pub(crate) bytes_done: u64,
    /// Bytes.
    pub(crate) total_bytes: u64,
}

/// A shard that does not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StalledView {
    /// Its position in the step.
    pub(crate) shard: u32,
    /// Attempts so far.
    pub(crate) attempt: u32,
    /// What the last one ended with.
    pub(crate) reason: String,
}

/// What an operation does between its shards' work, such as publishing, and tries again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RetryView {
    /// Attempts so far.
    pub(crate) attempt: u32,
    /// What the last one ended with.
    pub(crate) reason: String,
}

impl RetryView {
    /// A view; `None` while nothing failed, and when nothing is tried any more.
    pub(crate) fn new(state: &State) -> Option<RetryView> {
        let reason = state.task.reason.clone()?;
        matches!(state.phase, Phase::Working(_) | Phase::Reverting { .. })
            .then_some(RetryView { attempt: state.task.attempt.0, reason })
    }
}

/// How far applying is; `None` in every other phase.
pub(crate) fn stage_name(phase: &Phase) -> Option<&'static str> {
    match phase {
        Phase::Working(Working::Applying { stage, .. })
        | Phase::Failed { was: Working::Applying { stage, .. }, .. } => Some(match stage {
            ApplyStage::Sealing => "sealing",
            ApplyStage::Proving => "proving",
            ApplyStage::Publishing => "publishing",
        }),
        Phase::Working(
            Working::Allocating | Working::Proposing { .. } | Working::Waiting { .. },
        )
        | Phase::Failed {
            was: Working::Allocating | Working::Proposing { .. } | Working::Waiting { .. },
            ..
        }
        | Phase::Reverting { .. }
        | Phase::Done { .. }
        | Phase::Cancelled { .. } => None,
    }
}

/// Turns looks into views; remembers where this command found the operation, for the rate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rate {
    /// Bytes done and time of the first look at which work was under way.
    first: Option<(u64, Duration)>,
}

impl Rate {
    /// Time that is left at the rate since the first look.
    ///
    /// Little of it is believed before a second has passed.
    fn remaining(&mut self, done: u64, total: u64, elapsed: Duration) -> Option<Duration> {
        let (first_done, first_elapsed) = *self.first.get_or_insert((done, elapsed));
        let gained = done.checked_sub(first_done).filter(|gained| *gained > 0)?;
        let spent = elapsed.saturating_sub(first_elapsed);
        if spent < Duration::from_secs(1) {
            return None;
        }
        let left = total.saturating_sub(done);
        Duration::try_from_secs_f64(spent.as_secs_f64() * left as f64 / gained as f64).ok()
    }
}

/// A view of an operation that this process drives.
pub(crate) fn of_driven(
    operation: &Operation,
    tables: &[TableProgress],
    steps: u32,
    elapsed: Duration,
    rate: &mut Rate,
) -> StatusView {
    let state = operation.state();
    let has_shards = state.phase.has_shards();
    let shard_count = if has_shards { operation.shard_count() } else { 0 };
    let stalled = if shard_count <= STALLED_LOOK_MAX {
        let shards = (0..shard_count as u32).map(ShardIdx);
        stalled(shards.map(|shard| (shard, operation.shard_progress(shard))))
    } else {
        Vec::new()
    };
    let total = state.planned.total();
    let done = whole_if_done(&state.phase, operation.done(), total);
    let tables = if has_shards { tables } else { &[] };
    StatusView {
        operation: operation.id().0,
        phase: state.phase.name(),
        stage: stage_name(&state.phase),
        step: step_number(state.phase.step()),
        steps,
        seconds_elapsed: seconds(elapsed),
        seconds_remaining: rate.remaining(done.bytes, total.bytes, elapsed).map(seconds),
        percent_done: fraction(&state.phase, state.percent),
        bytes_done: done.bytes.min(total.bytes),
        total_bytes: total.bytes,
        rows_done: done.rows.min(total.rows),
        total_rows: total.rows,
        shards_done: if has_shards { operation.shards_done() } else { 0 },
        total_shards: Some(shard_count),
        shards_in_flight: if has_shards { operation.in_flight_count() } else { 0 },
        tables: tables.iter().map(table_view).collect(),
        stalled,
        retrying: RetryView::new(state),
        notice: None,
    }
}

/// A view of an operation that another process drives, from what that one made durable.
///
/// `shards` are the records of the current step; shards without one have not begun.
pub(crate) fn of_stored(
    operation: u64,
    stored: &StoredState,
    steps: u32,
    shards: &[(ShardIdx, ShardProgress)],
    elapsed: Duration,
    rate: &mut Rate,
) -> StatusView {
    let state = &stored.state;
    let total = state.planned.total();
    let mut done = state.finished;
    shards.iter().for_each(|(_, shard)| done += shard.done);
    let done = whole_if_done(&state.phase, done, total);
    let has = |status: fn(&ShardStatus) -> bool| {
        shards.iter().filter(|(_, shard)| status(&shard.status)).count()
    };
    StatusView {
        operation,
        phase: state.phase.name(),
        stage: stage_name(&state.phase),
        step: step_number(state.phase.step()),
        steps,
        seconds_elapsed: seconds(elapsed),
        seconds_remaining: rate.remaining(done.bytes, total.bytes, elapsed).map(seconds),
        percent_done: fraction(&state.phase, state.percent),
        bytes_done: done.bytes.min(total.bytes),
        total_bytes: total.bytes,
        rows_done: done.rows.min(total.rows),
        total_rows: total.rows,
        shards_done: has(|status| *status == ShardStatus::Done) as u64,
        total_shards: None,
        shards_in_flight: has(|status| *status == ShardStatus::InFlight) as u32,
        tables: Vec::new(),
        stalled: stalled(shards.iter().cloned()),
        retrying: RetryView::new(state),
        notice: None,
    }
}

fn stalled(shards: impl Iterator<Item = (ShardIdx, ShardProgress)>) -> Vec<StalledView> {
    let waiting = shards.filter_map(|(shard, progress)| {
        let reason = progress.reason?;
        matches!(progress.status, ShardStatus::Resting { .. } | ShardStatus::InFlight)
            .then_some(StalledView { shard: shard.0, attempt: progress.attempt.0, reason })
    });
    waiting.take(STALLED_MAX).collect()
}

fn table_view(table: &TableProgress) -> TableView {
    TableView {
        table: table.name.to_string(),
        rows_done: table.done.rows,
        total_rows: table.planned.rows,
        bytes_done: table.done.bytes,
        total_bytes: table.planned.bytes,
    }
}

fn whole_if_done(phase: &Phase, done: Work, total: Work) -> Work {
    if matches!(phase, Phase::Done { .. }) { total } else { done }
}

fn fraction(phase: &Phase, percent: Percent) -> f64 {
    if matches!(phase, Phase::Done { .. }) { 1.0 } else { percent.fraction() }
}

fn step_number(step: Option<StepIdx>) -> Option<u32> {
    step.map(|step| step.0 + 1)
}

/// With milliseconds and nothing finer, which would be noise.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use tidemark::Kind;
    use tidemark::ids::Attempt;
    use tidemark::operation::{Failure, Planned};

    use super::*;

    #[test]
    fn the_time_left_follows_the_rate_since_the_first_look() {
        let mut rate = Rate::default();
        let at = Duration::from_secs;
        assert_eq!(rate.remaining(500, 1000, at(5)), None);
        assert_eq!(rate.remaining(500, 1000, at(6)), None, "nothing was gained");
        // What an earlier run did does not count: 100 in 10 s, 400 are left.
        assert_eq!(rate.remaining(600, 1000, at(15)), Some(at(40)));
        assert_eq!(rate.remaining(1000, 1000, at(55)), Some(at(0)));
    }

    #[test]
    fn what_is_tried_again_is_told_until_it_is_given_up() {
        let mut state = State::new(Planned::default(), 1);
        assert_eq!(RetryView::new(&state), None);
        state.task.attempt = Attempt(2);
        state.task.reason = Some("a writer does not let go".to_owned());
        let told = RetryView::new(&state).unwrap();
        assert_eq!((told.attempt, told.reason.as_str()), (2, "a writer does not let go"));
        let failure = Failure { kind: Kind::Transient, message: "gave up".to_owned() };
        state.phase = Phase::Failed { was: Working::Allocating, failure };
        assert_eq!(RetryView::new(&state), None);
    }
}
