//! Driving an operation from the terminal: progress while it runs, a verdict at its end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidemark::catalog::{Catalog, OperationRecord, StoredState, Verb};
use tidemark::env::Env;
use tidemark::executor::{self, Ended, Intent, Job, begin};
use tidemark::ids::OperationId;
use tidemark::operation::{Desired, Failure, PausedBy, Phase};
use tidemark::restore::options::ResolvedRestore;
use tidemark::verify::VerifyOutcome;
use tidemark::{Error, Kind, Result};

use crate::exit::{self, Exit};
use crate::output::Output;
use crate::output::human::{counted, from_here};
use crate::output::operation::{self, EndView};
use crate::output::verify;
use crate::place::Place;
use crate::progress::Progress;
use crate::{shell, signals};

/// An operation that this process is to drive.
pub(crate) struct Drive<'a> {
    /// Where it is recorded.
    pub(crate) place: &'a Place,
    /// Which.
    pub(crate) id: OperationId,
    /// Its work.
    pub(crate) job: &'a dyn Job,
    /// Carry on, or cancel.
    pub(crate) intent: Intent,
    /// What people should know at the beginning.
    pub(crate) notices: &'a [String],
}

/// Drives it until it ends or stands still, says how, and gives the code to exit with.
///
/// The first interrupt pauses it, the second ends the process at once with 130.
///
/// # Errors
/// As [`executor::run`]; everything stays resumable.
pub(crate) fn drive(drive: &Drive<'_>, env: &Arc<dyn Env>, output: Output) -> Result<Exit> {
    let Drive { place, id, job, intent, notices } = *drive;
    let record = place.catalog.operation(id)?;
    let interrupted = signals::interrupt()?;
    output.note(&format!("operation {id}: {}", from_here(&record.title)));
    let name = format!("{} {id}", record.verb.name());
    let mut progress = Progress::new(output, Arc::clone(env), &name, record.step_count);
    notices.iter().for_each(|notice| progress.notice(notice));
    let before = rows_done(place, id)?;
    let ended = executor::run(&place.catalog, job, id, intent, &**env, &interrupted, &mut progress);
    let elapsed = progress.elapsed();
    progress.finish();
    let ended = match ended {
        // Not even its state could be written, so that nobody else will say what comes next.
        Err(error) if error.kind() == Kind::Blocked => {
            let verb = if intent == Intent::Cancel { "cancel" } else { "resume" };
            let command = place.operation_command(verb, id);
            let message = format!("{name}: {}; `{command}` carries on as well", error.chain());
            return Ok(output.exit_with(
                exit::of_kind(error.kind()),
                error.kind().name(),
                &message,
            ));
        }
        ended => ended.map_err(|error| error.context(&name))?,
    };
    let stored = place.catalog.state(id)?;
    let rows = rows_done(place, id)?.saturating_sub(before);
    let run = Some(Run { elapsed, rows });
    let (record, stored) = (&record, &stored);
    let verdict = Verdict { place, id, record, stored, run, notices };
    if let (Verb::Verify, Ended::Failed(failure)) = (record.verb, &ended)
        && let Some(outcome) = job.outcome()
    {
        return verdict.tell_flaws(failure, &outcome, output);
    }
    verdict.tell(&ended, intent, output)
}

/// How an operation that was recorded stands, if it stands still by what is recorded.
///
/// A pause is still to come to rest while a process holds the operation.
pub(crate) fn ended_as_stored(stored: &StoredState) -> Option<Ended> {
    match (&stored.state.phase, &stored.state.desired) {
        (Phase::Done { .. }, _) => Some(Ended::Done { outcome: stored.outcome.clone() }),
        (Phase::Cancelled { .. }, _) => Some(Ended::Cancelled),
        (Phase::Failed { failure, .. }, _) => Some(Ended::Failed(failure.clone())),
        (Phase::Working(_) | Phase::Reverting { .. }, Desired::Paused { by, why }) => {
            Some(Ended::Paused { by: *by, why: why.clone() })
        }
        (Phase::Working(_) | Phase::Reverting { .. }, Desired::Run | Desired::Cancelled) => None,
    }
}

/// What there is to say when an operation ended or stands still.
pub(crate) struct Verdict<'a> {
    /// Where it is recorded.
    pub(crate) place: &'a Place,
    /// Which.
    pub(crate) id: OperationId,
    /// What was asked.
    pub(crate) record: &'a OperationRecord,
    /// How it stands.
    pub(crate) stored: &'a StoredState,
    /// What this command did of it; `None` for one that only looked.
    pub(crate) run: Option<Run>,
    /// What people were told at the beginning.
    pub(crate) notices: &'a [String],
}

/// What one command did of an operation; commands before it may have done the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// How long it drove.
    pub(crate) elapsed: Duration,
    /// Rows that it took from their sources.
    pub(crate) rows: u64,
}

/// Rows of an operation that are done, as its catalog has them.
fn rows_done(place: &Place, id: OperationId) -> Result<u64> {
    let state = place.catalog.state(id)?.state;
    let mut rows = state.finished.rows;
    if let Some(step) = state.phase.step().filter(|_| state.phase.has_shards()) {
        let shards = place.catalog.shards(id, step)?;
        rows += shards.iter().map(|(_, shard)| shard.done.rows).sum::<u64>();
    }
    Ok(rows)
}

impl Verdict<'_> {
    /// Says it, and gives the code to exit with.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn tell(&self, ended: &Ended, intent: Intent, output: Output) -> Result<Exit> {
        let Verdict { place, id, record, .. } = *self;
        let name = format!("{} {id}", record.verb.name());
        let resume = place.operation_command("resume", id);
        match ended {
            Ended::Done { .. } if intent == Intent::Cancel => {
                let message =
                    format!("{name} was published before it could be cancelled: it is done");
                Ok(output.exit_with(Exit::Failed, "point_of_no_return", &message))
            }
            Ended::Done { outcome } => self.tell_done(outcome.as_deref(), output),
            Ended::Cancelled if intent == Intent::Cancel => {
                let view = self.view("cancelled", None);
                let human = || format!("{name} is cancelled; {} is as it was\n", touched(record));
                output.summary(record.verb.name(), &view, human)?;
                Ok(Exit::Done)
            }
            Ended::Cancelled => {
                let message = format!("{name} was cancelled; {} is as it was", touched(record));
                Ok(output.exit_with(Exit::Failed, "cancelled", &message))
            }
            Ended::Failed(failure) => {
                let cancel = place.operation_command("cancel", id);
                let ways = match record.verb {
                    Verb::Restore if failure.kind == Kind::Broken => format!(
                        "what was done is kept; {}put the object back from another copy of the \
                         collection, then `{resume}` carries on; `{cancel}` undoes it",
                        self.see_all()
                    ),
                    Verb::Restore => format!(
                        "what was done is kept, and once the cause is mended `{resume}` carries \
                         on; `{cancel}` undoes it"
                    ),
                    Verb::Backup => format!(
                        "once the cause is mended `{resume}` begins it anew, {STARTS_OVER}; \
                         `{cancel}` removes what it wrote"
                    ),
                    Verb::Verify => format!(
                        "what was clean is not read again, and once the cause is mended \
                         `{resume}` carries on; `{cancel}` gives it up"
                    ),
                };
                // Its message may begin with the name as well.
                let told = failure.message.strip_prefix(&format!("{name}: "));
                let told = told.unwrap_or(&failure.message);
                let message = format!("{name} failed: {told}; {ways}");
                Ok(output.exit_with(exit::of_kind(failure.kind), failure.kind.name(), &message))
            }
            Ended::Paused { by: PausedBy::Obstacle, why }
                if matches!(self.stored.state.phase, Phase::Reverting { .. }) =>
            {
                let cancel = place.operation_command("cancel", id);
                let message = format!(
                    "{name} cannot be undone now: {why}; once the cause is mended `{cancel}` \
                     carries on with that, and until then its names stay reserved"
                );
                Ok(output.exit_with(Exit::Stopped, "paused", &message))
            }
            Ended::Paused { by, why } => {
                let stopped = match by {
                    PausedBy::Person => format!("{name} is paused ({why})"),
                    PausedBy::Obstacle => format!("{name} stopped before an obstacle: {why}"),
                };
                let ways = match record.verb {
                    Verb::Restore | Verb::Verify => "nothing is lost, carry on with".to_owned(),
                    Verb::Backup => format!("begin it anew, {STARTS_OVER}, with"),
                };
                let message = format!(
                    "{stopped} at {}; {ways} {}",
                    self.stored.state.percent,
                    self.ways_on(&resume)
                );
                Ok(output.exit_with(Exit::Stopped, "paused", &message))
            }
        }
    }

    /// How to learn all that is wrong with the collection of a restore.
    fn see_all(&self) -> String {
        begin::resolved::<ResolvedRestore>(self.record).map_or_else(
            |_| String::new(),
            |resolved| {
                let collection = shell::word(&from_here(&resolved.collection_shown));
                format!("`tidemark verify {collection}` tells all that is wrong, ")
            },
        )
    }

    /// The commands that carry on: the one that was typed, if it drove the operation.
    fn ways_on(&self, resume: &str) -> String {
        let this = shell::this_command();
        if self.run.is_none() || this.contains(" operation ") {
            return format!("`{resume}`");
        }
        format!("the same command, `{this}`, or with `{resume}`")
    }

    /// Says what a verification found: all of it, which a failure's sentence has no room for.
    fn tell_flaws(&self, failure: &Failure, outcome: &str, output: Output) -> Result<Exit> {
        let found: VerifyOutcome = serde_json::from_value(self.outcome(outcome)?)
            .map_err(|cause| Error::with_source(Kind::Fatal, "read the verdict", cause))?;
        let view = self.view("flawed", Some(self.outcome(outcome)?));
        output.summary(self.record.verb.name(), &view, || verify::text(&found))?;
        let message = format!(
            "verify {}: {} found; once mended, the same command verifies anew",
            self.id,
            counted(found.findings.len() as u64, "flaw"),
        );
        Ok(output.exit_with(exit::of_kind(failure.kind), failure.kind.name(), &message))
    }

    fn outcome(&self, text: &str) -> Result<Value> {
        serde_json::from_str(text).map_err(|cause| {
            let message = format!("the outcome of operation {} is malformed", self.id);
            Error::with_source(Kind::Broken, message, cause)
        })
    }

    fn tell_done(&self, outcome: Option<&str>, output: Output) -> Result<Exit> {
        let outcome = outcome.map(|text| self.outcome(text)).transpose()?;
        let verdict = operation::verdict(self.record.verb, outcome.as_ref());
        let view = self.view("done", outcome);
        output.summary(self.record.verb.name(), &view, || {
            operation::done_text(&view, self.record, &verdict)
        })?;
        if verdict.exit != Exit::Done && verdict.exit != Exit::Warnings {
            let exit = output.exit_with(verdict.exit, verdict.kind, &verdict.message);
            return Ok(exit);
        }
        Ok(verdict.exit)
    }

    fn view(&self, ended: &'static str, outcome: Option<Value>) -> EndView {
        EndView::new(self.id, ended, self.record, self.stored, self.run, outcome)
            .with_notices(self.notices)
    }
}

/// What becomes of a backup that is carried on: its snapshot lived in the process that is gone.
pub(crate) const STARTS_OVER: &str = "at a new snapshot, since the old one ended with its process";

/// What a verb changes, for people.
fn touched(record: &OperationRecord) -> &'static str {
    match record.verb {
        Verb::Restore => "the target",
        Verb::Backup | Verb::Verify => "the collection",
    }
}
