//! Operations as people and programs see them: lists, one in detail, how it ended.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tidemark::backup::BackupOutcome;
use tidemark::catalog::{Holding, OperationRecord, StoredState, Verb};
use tidemark::collection::chain::show_time;
use tidemark::collection::manifest::BackupKind;
use tidemark::database::Publish;
use tidemark::env::BootTime;
use tidemark::ids::{OperationId, ShardIdx};
use tidemark::operation::{Desired, Failure, PausedBy, Phase, ShardProgress, ShardStatus};
use tidemark::restore::job::RestoreOutcome;

use super::human::{self, Align, bytes, count, counted, duration};
use super::status::{RetryView, stage_name};
use super::verify;
use crate::drive::Run;
use crate::exit::Exit;

/// An operation that has ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct EndView {
    /// Number.
    operation: u64,
    /// Fencing number.
    txn: Option<u64>,
    /// `done` or `cancelled`.
    ended: &'static str,
    /// What it was, for people.
    title: String,
    /// Since this command began to drive it, or since it was recorded.
    seconds_elapsed: f64,
    /// Rows that were planned and, when done, read.
    total_rows: u64,
    /// Bytes of rows that were planned and, when done, read; the proof's weight included.
    total_bytes: u64,
    /// The same without it.
    row_bytes: u64,
    /// Rows that this command read; the others were read by commands before it.
    rows_this_run: Option<u64>,
    /// What that is in a second.
    rows_per_second: Option<u64>,
    /// What people were told at the beginning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
    /// What the verb had to say.
    outcome: Option<Value>,
}

impl EndView {
    /// A view; `run` is what the command that drove it did.
    pub(crate) fn new(
        id: OperationId,
        ended: &'static str,
        record: &OperationRecord,
        stored: &StoredState,
        run: Option<Run>,
        outcome: Option<Value>,
    ) -> EndView {
        let total = stored.state.planned.total();
        let whole = || {
            let until = stored.ended_at.unwrap_or(stored.changed_at);
            Duration::from_millis(until.0.saturating_sub(stored.created_at.0))
        };
        EndView {
            operation: id.0,
            txn: stored.state.phase.txn().map(|txn| txn.0),
            ended,
            title: record.title.clone(),
            seconds_elapsed: run.map_or_else(whole, |run| run.elapsed).as_millis() as f64 / 1000.0,
            total_rows: total.rows,
            total_bytes: total.bytes,
            row_bytes: total.bytes.saturating_sub(stored.state.planned.proof_bytes),
            rows_this_run: run.map(|run| run.rows),
            rows_per_second: run.and_then(|run| human::per_second(run.rows, run.elapsed)),
            notices: Vec::new(),
            outcome,
        }
    }

    /// The same with what people were told at the beginning.
    #[must_use]
    pub(crate) fn with_notices(self, notices: &[String]) -> EndView {
        EndView { notices: notices.to_vec(), ..self }
    }
}

/// What an outcome means for whoever runs the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DoneVerdict {
    /// The code to exit with.
    pub(crate) exit: Exit,
    /// Kind of what is wrong, where the code is that of a failure.
    pub(crate) kind: &'static str,
    /// The same as a sentence.
    pub(crate) message: String,
    /// What people should know.
    pub(crate) warnings: Vec<String>,
}

/// Judges what an operation that is done had to say.
pub(crate) fn verdict(verb: Verb, outcome: Option<&Value>) -> DoneVerdict {
    let warnings = match (verb, outcome) {
        (Verb::Verify, Some(outcome)) => verify::warnings(outcome),
        (Verb::Restore | Verb::Backup, Some(outcome)) => outcome
            .get("warnings")
            .and_then(|warnings| serde_json::from_value(warnings.clone()).ok())
            .unwrap_or_default(),
        (_, None) => Vec::new(),
    };
    let exit = if warnings.is_empty() { Exit::Done } else { Exit::Warnings };
    DoneVerdict { exit, kind: "", message: String::new(), warnings }
}

/// The summary for people, line ends included.
pub(crate) fn done_text(view: &EndView, record: &OperationRecord, verdict: &DoneVerdict) -> String {
    let time = Duration::try_from_secs_f64(view.seconds_elapsed).unwrap_or_default();
    let outcome = view.outcome.clone().unwrap_or_default();
    let mut text = match record.verb {
        Verb::Restore => serde_json::from_value(outcome)
            .map_or_else(|_| plain_text(view, time), |outcome| restore_text(view, &outcome, time)),
        Verb::Backup => serde_json::from_value(outcome)
            .map_or_else(|_| plain_text(view, time), |outcome| backup_text(view, &outcome, time)),
        Verb::Verify => serde_json::from_value(outcome).map_or_else(
            |_| plain_text(view, time),
            |outcome| {
                let (id, time) = (view.operation, duration(time));
                format!("verify {id} done in {time}\n{}", verify::text(&outcome))
            },
        ),
    };
    for warning in &verdict.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

/// What can be said of an outcome that another version wrote.
fn plain_text(view: &EndView, time: Duration) -> String {
    format!("operation {} done in {}: {}\n", view.operation, duration(time), view.title)
}

fn restore_text(view: &EndView, outcome: &RestoreOutcome, time: Duration) -> String {
    let published = match outcome.published {
        Publish::Visible => "published",
        Publish::Held => "held back, to be moved on with --continue",
    };
    let mut text = format!(
        "restore {} done in {}: {} at `{}`, {published}\n",
        view.operation,
        duration(time),
        counted(outcome.tables.len() as u64, "table"),
        outcome.backup
    );
    let rows: Vec<Vec<String>> = outcome
        .tables
        .iter()
        .map(|proof| {
            let agrees = match (proof.equals_chain, proof.equals_source) {
                (true, true) => "equals chain and source",
                (true, false) => "equals chain",
                (false, true) => "equals source",
                (false, false) => "not compared",
            };
            vec![
                format!("  {}", proof.table),
                count(proof.digest.rows),
                format!("{:032x}", proof.digest.sum),
                agrees.to_owned(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let columns = [
            ("  table", Align::Left),
            ("rows", Align::Right),
            ("digest, as read back", Align::Left),
            ("proof", Align::Left),
        ];
        text.push_str(&human::table(&columns, &rows));
    }
    let restored: u64 = outcome.tables.iter().map(|proof| proof.digest.rows).sum();
    text.push_str(&format!("{} restored", counted(restored, "row")));
    text.push_str(&rate_text(view));
    // What was told at the beginning is not told again.
    for notice in outcome.notices.iter().filter(|notice| !view.notices.contains(notice)) {
        text.push_str(&format!("note: {notice}\n"));
    }
    text
}

fn backup_text(view: &EndView, outcome: &BackupOutcome, time: Duration) -> String {
    let kind = match (&outcome.kind, &outcome.parent) {
        (BackupKind::Full, _) => "full".to_owned(),
        (BackupKind::Incremental, Some(parent)) => format!("increment on `{parent}`"),
        (BackupKind::Incremental, None) => "increment".to_owned(),
    };
    let mut text = format!(
        "backup {} done in {}: #{} `{}`, {kind}, cut at {}\n",
        view.operation,
        duration(time),
        outcome.sequence,
        outcome.directory,
        show_time(outcome.cut_at)
    );
    text.push_str(&format!(
        "{}, {} ({} deleted), {} in {}\n",
        counted(outcome.tables, "table"),
        counted(outcome.rows, "row"),
        count(outcome.tombstones),
        bytes(outcome.bytes),
        counted(outcome.parts, "part"),
    ));
    let rehashed = counted(outcome.proof.parts_rehashed, "part");
    text.push_str(&format!("proof: {rehashed} read back with their BLAKE3"));
    if outcome.proof.digests_compared > 0 {
        let digests = counted(outcome.proof.digests_compared, "table digest");
        text.push_str(&format!(", {digests} equal to the source's"));
    }
    text.push('\n');
    for whole in &outcome.whole {
        text.push_str(&format!("table `{}` is carried whole: {}\n", whole.table, whole.reason));
    }
    text
}

/// `; 1,234 rows and 5 MiB read, 99 rows/s` and a line end.
fn rate_text(view: &EndView) -> String {
    let mut text =
        format!("; {} and {} read", counted(view.total_rows, "row"), bytes(view.row_bytes));
    if let Some(rows) = view.rows_this_run.filter(|rows| *rows < view.total_rows) {
        text.push_str(&format!(", {} of them by this run", count(rows)));
    }
    if let Some(rate) = view.rows_per_second.filter(|rate| *rate > 0) {
        text.push_str(&format!(", {} rows/s", count(rate)));
    }
    text.push('\n');
    text
}

/// One operation in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ListedView {
    /// Number.
    pub(crate) operation: u64,
    /// Fencing number.
    pub(crate) txn: Option<u64>,
    /// What it does.
    pub(crate) operation_verb: &'static str,
    /// What it does, for people.
    pub(crate) title: String,
    /// Phase.
    pub(crate) phase: &'static str,
    /// How far applying is.
    pub(crate) stage: Option<&'static str>,
    /// What is wanted of it: `run`, `paused` or `cancelled`.
    pub(crate) desired: &'static str,
    /// A fraction of 1.
    pub(crate) percent_done: f64,
    /// Who drives it.
    pub(crate) holder: HolderView,
    /// When it was recorded, RFC 3339.
    pub(crate) created: String,
    /// When it last changed, RFC 3339.
    pub(crate) changed: String,
    /// When it ended, RFC 3339.
    pub(crate) ended: Option<String>,
}

/// Who drives an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum HolderView {
    /// Nobody.
    Free,
    /// A process that is gone.
    Dead {
        /// Its number.
        pid: u32,
    },
    /// A process that lives.
    Alive {
        /// Its number.
        pid: u32,
        /// Until its lease ends unless it is renewed.
        lease_seconds: u64,
    },
}

impl From<Holding> for HolderView {
    fn from(holding: Holding) -> HolderView {
        match holding {
            Holding::Free => HolderView::Free,
            Holding::Dead { pid } => HolderView::Dead { pid },
            Holding::Alive { pid, lease_seconds } => HolderView::Alive { pid, lease_seconds },
        }
    }
}

impl HolderView {
    fn shown(&self) -> String {
        match self {
            HolderView::Free => "nobody".to_owned(),
            HolderView::Dead { pid } => format!("process {pid}, which is gone"),
            HolderView::Alive { pid, lease_seconds } => {
                format!("process {pid}, lease {lease_seconds} s")
            }
        }
    }
}

impl ListedView {
    /// A view of what the catalog holds.
    pub(crate) fn new(
        id: OperationId,
        record: &OperationRecord,
        stored: &StoredState,
        holding: Holding,
    ) -> ListedView {
        let state = &stored.state;
        let is_done = matches!(state.phase, Phase::Done { .. });
        ListedView {
            operation: id.0,
            txn: state.phase.txn().map(|txn| txn.0),
            operation_verb: record.verb.name(),
            title: record.title.clone(),
            phase: state.phase.name(),
            stage: stage_name(&state.phase),
            desired: match state.desired {
                Desired::Run => "run",
                Desired::Paused { .. } => "paused",
                Desired::Cancelled => "cancelled",
            },
            percent_done: if is_done { 1.0 } else { state.percent.fraction() },
            holder: holding.into(),
            created: show_time(stored.created_at),
            changed: show_time(stored.changed_at),
            ended: stored.ended_at.map(show_time),
        }
    }

    /// Phase and what stands beside it, for people.
    fn standing(&self) -> String {
        let ended = matches!(self.phase, "done" | "cancelled" | "failed");
        let mut text = self.stage.unwrap_or(self.phase).to_owned();
        if self.phase == "failed" {
            text = self.phase.to_owned();
        } else if self.desired == "paused" && !ended {
            text.push_str(", paused");
        } else if self.desired == "cancelled" && !ended {
            text.push_str(", cancelling");
        } else if !ended && !matches!(self.holder, HolderView::Alive { .. }) {
            text.push_str(", nobody drives it");
        }
        text
    }
}

/// A list for people.
pub(crate) fn list_text(operations: &[ListedView]) -> String {
    if operations.is_empty() {
        return "no operations\n".to_owned();
    }
    let rows: Vec<Vec<String>> = operations
        .iter()
        .map(|operation| {
            vec![
                operation.operation.to_string(),
                operation.txn.map_or_else(|| "-".to_owned(), |txn| txn.to_string()),
                operation.standing(),
                format!("{:.1} %", operation.percent_done * 100.0),
                operation.changed.clone(),
                human::from_here(&operation.title),
            ]
        })
        .collect();
    let columns = [
        ("id", Align::Right),
        ("txn", Align::Right),
        ("phase", Align::Left),
        ("done", Align::Right),
        ("changed", Align::Left),
        ("operation", Align::Left),
    ];
    human::table(&columns, &rows)
}

/// One operation in detail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DetailView {
    /// What a list shows of it.
    #[serde(flatten)]
    pub(crate) listed: ListedView,
    /// Step being worked at, from 1.
    pub(crate) step: Option<u32>,
    /// Steps of the plan.
    pub(crate) steps: u32,
    /// Shards that may run at once.
    pub(crate) shards_in_flight_max: u32,
    /// Why it is paused.
    pub(crate) paused: Option<PausedView>,
    /// Why it failed.
    pub(crate) failure: Option<FailureView>,
    /// What is tried again for the operation as a whole.
    pub(crate) retrying: Option<RetryView>,
    /// Planned rows of all steps.
    pub(crate) total_rows: u64,
    /// Planned bytes of all steps and the proof.
    pub(crate) total_bytes: u64,
    /// Shards of the current step of which something is recorded.
    pub(crate) shards: Vec<ShardView>,
    /// What was asked.
    pub(crate) request: Value,
    /// What the verb had to say at the end.
    pub(crate) outcome: Option<Value>,
}

/// Why an operation is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PausedView {
    /// `person` or `obstacle`.
    pub(crate) by: &'static str,
    /// A sentence.
    pub(crate) why: String,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FailureView {
    /// Kind.
    pub(crate) kind: &'static str,
    /// A sentence.
    pub(crate) message: String,
}

/// What the catalog has of one shard; the mark itself is in the target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ShardView {
    /// Its position in the step.
    pub(crate) shard: u32,
    /// `pending`, `resting`, `in_flight` or `done`.
    pub(crate) state: &'static str,
    /// For a resting one: until it may start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rests_seconds: Option<f64>,
    /// Attempts so far.
    pub(crate) attempt: u32,
    /// Failures since it last advanced.
    pub(crate) failures: u32,
    /// Copy of the mark.
    pub(crate) rows_done: u64,
    /// Copy of the mark.
    pub(crate) bytes_done: u64,
    /// Copy of the mark, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_key: Option<String>,
    /// Why it does not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl ShardView {
    /// A view at the time `now`.
    pub(crate) fn new(shard: ShardIdx, progress: &ShardProgress, now: BootTime) -> ShardView {
        let (state, rests) = match progress.status {
            ShardStatus::Pending => ("pending", None),
            ShardStatus::Resting { until } => ("resting", Some(until.since(now))),
            ShardStatus::InFlight => ("in_flight", None),
            ShardStatus::Done => ("done", None),
        };
        let hex = |key: &Vec<u8>| key.iter().map(|byte| format!("{byte:02x}")).collect();
        ShardView {
            shard: shard.0,
            state,
            rests_seconds: rests.map(|rests| rests.as_millis() as f64 / 1000.0),
            attempt: progress.attempt.0,
            failures: progress.failures,
            rows_done: progress.done.rows,
            bytes_done: progress.done.bytes,
            last_key: progress.last_key.as_ref().map(hex),
            reason: progress.reason.clone(),
        }
    }
}

impl DetailView {
    /// A view of what the catalog holds.
    pub(crate) fn new(
        listed: ListedView,
        record: &OperationRecord,
        stored: &StoredState,
        shards: Vec<ShardView>,
    ) -> DetailView {
        let state = &stored.state;
        let total = state.planned.total();
        let paused = match &state.desired {
            Desired::Paused { by, why } => Some(PausedView {
                by: match by {
                    PausedBy::Person => "person",
                    PausedBy::Obstacle => "obstacle",
                },
                why: why.clone(),
            }),
            Desired::Run | Desired::Cancelled => None,
        };
        let failure = match &state.phase {
            Phase::Failed { failure: Failure { kind, message }, .. } => {
                Some(FailureView { kind: kind.name(), message: message.clone() })
            }
            Phase::Working(_)
            | Phase::Reverting { .. }
            | Phase::Done { .. }
            | Phase::Cancelled { .. } => None,
        };
        DetailView {
            listed,
            step: state.phase.step().map(|step| step.0 + 1),
            steps: record.step_count,
            shards_in_flight_max: state.window,
            paused,
            failure,
            retrying: RetryView::new(state),
            total_rows: total.rows,
            total_bytes: total.bytes,
            shards,
            request: record.request.clone(),
            outcome: stored.outcome.as_deref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }

    /// The same for people.
    pub(crate) fn text(&self, record: &OperationRecord, end: Option<&str>) -> String {
        let listed = &self.listed;
        let mut lines = vec![format!("operation {}: {}", listed.operation, listed.title)];
        let mut field = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
        field("phase", listed.standing());
        if let Some(step) = self.step {
            field("step", format!("{step} of {}", self.steps));
        }
        field("txn", listed.txn.map_or_else(|| "none yet".to_owned(), |txn| txn.to_string()));
        field("done", format!("{:.2} %", listed.percent_done * 100.0));
        field(
            "planned",
            format!("{}, {}", counted(self.total_rows, "row"), bytes(self.total_bytes)),
        );
        field("driven by", listed.holder.shown());
        field(
            "window",
            format!("{} in flight", counted(u64::from(self.shards_in_flight_max), "shard")),
        );
        field("recorded", show_time(record.created_at));
        field("changed", listed.changed.clone());
        if let Some(ended) = &listed.ended {
            field("ended", ended.clone());
        }
        if let Some(paused) = &self.paused {
            field("paused by", format!("{}: {}", paused.by, paused.why));
        }
        if let Some(failure) = &self.failure {
            field("failure", format!("{}: {}", failure.kind, failure.message));
        }
        if let Some(retry) = &self.retrying {
            field("retrying", format!("attempt {}: {}", retry.attempt, retry.reason));
        }
        let mut text = lines.join("\n");
        text.push('\n');
        if !self.shards.is_empty() {
            text.push_str(&shards_text(&self.shards));
        }
        text.push_str(end.unwrap_or_default());
        text
    }
}

fn shards_text(shards: &[ShardView]) -> String {
    let rows: Vec<Vec<String>> = shards
        .iter()
        .map(|shard| {
            let reason = match (&shard.reason, shard.rests_seconds) {
                (Some(reason), Some(rests)) => format!("{reason} (again in {rests:.1} s)"),
                (Some(reason), None) => reason.clone(),
                (None, _) => String::new(),
            };
            vec![
                format!("  {}", shard.shard),
                shard.state.replace('_', " "),
                shard.attempt.to_string(),
                count(shard.rows_done),
                bytes(shard.bytes_done),
                shard.last_key.clone().unwrap_or_else(|| "-".to_owned()),
                reason,
            ]
        })
        .collect();
    let columns = [
        ("  shard", Align::Right),
        ("state", Align::Left),
        ("attempt", Align::Right),
        ("rows", Align::Right),
        ("bytes", Align::Right),
        ("last key", Align::Left),
        ("reason", Align::Left),
    ];
    human::table(&columns, &rows)
}

/// The end of an operation that is looked at later, for [`DetailView::text`].
pub(crate) fn end_text(
    id: OperationId,
    record: &OperationRecord,
    stored: &StoredState,
) -> Option<String> {
    if !matches!(stored.state.phase, Phase::Done { .. }) {
        return None;
    }
    let outcome = stored.outcome.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let verdict = verdict(record.verb, outcome.as_ref());
    let view = EndView::new(id, "done", record, stored, None, outcome);
    Some(done_text(&view, record, &verdict))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn warnings_of_an_outcome_are_told_by_the_code() {
        let outcome = json!({"warnings": ["the table has no key"]});
        let judged = verdict(Verb::Restore, Some(&outcome));
        assert_eq!((judged.exit, judged.warnings.len()), (Exit::Warnings, 1));
        assert_eq!(verdict(Verb::Restore, Some(&json!({}))).exit, Exit::Done);
        assert_eq!(verdict(Verb::Backup, None).exit, Exit::Done);
    }

    #[test]
    fn a_shard_that_rests_says_why_and_how_long() {
        let progress = ShardProgress {
            status: ShardStatus::Resting { until: BootTime(3_500) },
            reason: Some("throttled".to_owned()),
            last_key: Some(vec![0, 0xff]),
            ..ShardProgress::default()
        };
        let view = ShardView::new(ShardIdx(4), &progress, BootTime(1_000));
        let shown = shards_text(&[view]);
        assert!(shown.contains("00ff"), "{shown}");
        assert!(shown.contains("throttled (again in 2.5 s)"), "{shown}");
    }
}
