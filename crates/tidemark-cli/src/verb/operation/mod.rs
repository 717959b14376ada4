//! Looking at operations and steering them, from any terminal.
//!
//! What a live process drives is asked by a request that is left in the catalog, and the
//! verb says whether it was taken. What nobody drives, `resume` and `cancel` drive themselves.

use std::time::Duration;

use tidemark::catalog::{Catalog, Holding, OperationRecord, StoredState, Verb};
use tidemark::env::Env;
use tidemark::executor::{Ended, Intent};
use tidemark::ids::OperationId;
use tidemark::operation::{Desired, Request};
use tidemark::{Kind, Result};

use crate::drive::{STARTS_OVER, Verdict, ended_as_stored};
use crate::exit::Exit;
use crate::output::Output;
use crate::place::Place;

pub(crate) mod cancel;
pub(crate) mod forget;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod pause;
pub(crate) mod resume;
pub(crate) mod set;
pub(crate) mod wait;
pub(crate) mod watch;
mod work;

/// How long a request may take to be seen: a driver looks ten times a second, unless it is
/// writing, and one that is silent for longer than its lease is not waited for.
const TAKEN_MAX: Duration = Duration::from_secs(20);
/// Between two looks at a catalog.
const LOOK: Duration = Duration::from_millis(100);

/// One look at an operation.
struct Look {
    record: OperationRecord,
    stored: StoredState,
    holding: Holding,
}

impl Look {
    /// Looks; the holder first, so that whoever let go has made everything durable that is
    /// seen after.
    fn at(place: &Place, id: OperationId) -> Result<Look> {
        let holding = place.catalog.holder(id)?;
        let record = place.catalog.operation(id)?;
        let stored = place.catalog.state(id)?;
        Ok(Look { record, stored, holding })
    }

    /// The process that drives it.
    fn driver(&self) -> Option<u32> {
        match self.holding {
            Holding::Alive { pid, .. } => Some(pid),
            Holding::Free | Holding::Dead { .. } => None,
        }
    }

    /// Whether its process has been silent for so long that it may be taken over.
    fn is_silent(&self) -> bool {
        matches!(self.holding, Holding::Alive { lease_seconds: 0, .. })
    }

    /// How it ended or why it stands still; `None` while somebody drives it on, and while
    /// nobody does although it is to run.
    fn ended(&self) -> Option<Ended> {
        let is_coming_to_rest = matches!(self.stored.state.desired, Desired::Paused { .. })
            && !self.stored.state.phase.is_terminal()
            && self.driver().is_some();
        if is_coming_to_rest { None } else { ended_as_stored(&self.stored) }
    }

    /// Says how it ended, and gives the code to exit with.
    fn tell(&self, place: &Place, id: OperationId, ended: &Ended, output: Output) -> Result<Exit> {
        let (record, stored) = (&self.record, &self.stored);
        Verdict { place, id, record, stored, run: None, notices: &[] }.tell(
            ended,
            Intent::CarryOn,
            output,
        )
    }

    /// Says that it is to run and nobody drives it.
    fn tell_idle(&self, place: &Place, id: OperationId, output: Output) -> Exit {
        let gone = match self.holding {
            Holding::Dead { pid } => format!("process {pid}, which drove it, is gone"),
            Holding::Free | Holding::Alive { .. } => "nobody drives it".to_owned(),
        };
        let carry_on = match self.record.verb {
            Verb::Restore | Verb::Verify => "carry on with".to_owned(),
            Verb::Backup => format!("begin it anew, {STARTS_OVER}, with"),
        };
        let message = format!(
            "operation {id} stands still at {}: {gone}; {carry_on} `{}`",
            self.stored.state.percent,
            place.operation_command("resume", id)
        );
        output.exit_with(Exit::Stopped, "idle", &message)
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The driver has taken it.
    Taken,
    /// The operation ended before, or the driver let go of it.
    LetGo,
    /// The driver has been silent for longer than its lease; the request stays.
    Silent,
    /// The driver has not looked yet, although it lives; the request stays.
    Waits,
}

/// Leaves a request for the driver and waits a while until it is taken.
fn ask(
    place: &Place,
    id: OperationId,
    request: &Request,
    is_taken: impl Fn(&StoredState) -> bool,
    env: &dyn Env,
) -> Result<Answer> {
    place.catalog.steer(id, request)?;
    let deadline = env.boot_time().after(TAKEN_MAX);
    loop {
        let look = Look::at(place, id)?;
        if is_taken(&look.stored) {
            return Ok(Answer::Taken);
        }
        if look.driver().is_none() || look.stored.state.phase.is_terminal() {
            return Ok(Answer::LetGo);
        }
        if look.is_silent() {
            return Ok(Answer::Silent);
        }
        if env.boot_time() >= deadline {
            return Ok(Answer::Waits);
        }
        env.sleep(LOOK);
    }
}

/// What a request came to, for people and programs.
#[derive(Debug, serde::Serialize)]
struct RequestView {
    operation: u64,
    request: &'static str,
    taken: bool,
    message: String,
}

/// Says what a request came to, when it was taken or nothing is left to do.
fn tell_request(
    id: OperationId,
    request: &'static str,
    taken: bool,
    message: String,
    output: Output,
) -> Result<Exit> {
    let view = RequestView { operation: id.0, request, taken, message };
    output.summary(&format!("operation {request}"), &view, || format!("{}\n", view.message))?;
    Ok(Exit::Done)
}

/// Says that the driver has not taken a request yet.
fn tell_waits(id: OperationId, request: &'static str, look: &Look, output: Output) -> Exit {
    let pid = look.driver().map_or_else(String::new, |pid| format!(" {pid}"));
    let message = format!(
        "the request to {request} operation {id} is left for process{pid}, which has not taken it \
         within {} s",
        TAKEN_MAX.as_secs()
    );
    output.exit_with(Exit::Held, Kind::Held.name(), &message)
}

/// Says that the driver is silent, where only it could do what was asked.
fn tell_silent(
    place: &Place,
    id: OperationId,
    request: &'static str,
    look: &Look,
    output: Output,
) -> Exit {
    let pid = look.driver().map_or_else(String::new, |pid| format!(" {pid}"));
    let message = format!(
        "process{pid}, which drives operation {id}, is silent, and its lease is over: nothing was \
         done, the request to {request} is left for it, should it wake; `{}` takes the operation \
         over, `{}` undoes it",
        place.operation_command("resume", id),
        place.operation_command("cancel", id)
    );
    output.exit_with(Exit::Held, Kind::Held.name(), &message)
}

/// Says that an operation has ended, where a request presumes that it has not.
fn tell_ended(id: OperationId, request: &'static str, look: &Look, output: Output) -> Exit {
    let phase = look.stored.state.phase.name();
    let message = format!("operation {id} is {phase}: there is nothing to {request}");
    output.exit_with(Exit::Failed, "ended", &message)
}
