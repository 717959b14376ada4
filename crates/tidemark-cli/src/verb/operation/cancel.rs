//! `operation cancel`: undoes an operation.

use tidemark::Result;
use tidemark::env::Env;
use tidemark::executor::Intent;
use tidemark::ids::OperationId;
use tidemark::operation::{ApplyStage, Desired, Phase, Request, Working};

use super::{Answer, LOOK, Look, ask, tell_ended, tell_request, tell_waits, work};
use crate::args::OneArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, system};

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(one, &env)?;
    let look = Look::at(&place, id)?;
    if look.stored.state.phase.is_terminal() {
        return Ok(tell_ended(id, "cancel", &look, output));
    }
    if let Some(pid) = look.driver() {
        if is_publishing(&look.stored.state.phase) && !look.is_silent() {
            let message = format!(
                "operation {id} cannot be cancelled now: process {pid} is publishing its result; \
                 `{}` waits for its end",
                place.operation_command("wait", id)
            );
            return Ok(output.exit_with(Exit::Failed, "point_of_no_return", &message));
        }
        let is_taken = |stored: &tidemark::catalog::StoredState| {
            stored.state.desired == Desired::Cancelled
                || matches!(stored.state.phase, Phase::Reverting { .. } | Phase::Cancelled { .. })
        };
        match ask(&place, id, &Request::Cancel, is_taken, &*env)? {
            Answer::Taken => {
                if let Some(exit) = follow(&place, id, pid, &*env, output)? {
                    return Ok(exit);
                }
            }
            Answer::LetGo => {
                let look = Look::at(&place, id)?;
                if look.stored.state.phase.is_terminal() {
                    return Ok(tell_ended(id, "cancel", &look, output));
                }
            }
            // It is taken over, and refused by the database should it wake.
            Answer::Silent => {}
            Answer::Waits => return Ok(tell_waits(id, "cancel", &look, output)),
        }
    }
    work::carry_on(&place, id, Intent::Cancel, &env, output)
}

fn is_publishing(phase: &Phase) -> bool {
    matches!(phase, Phase::Working(Working::Applying { stage: ApplyStage::Publishing, .. }))
}

/// Waits until the driver has undone it; `None` if the driver dies or falls silent over it.
fn follow(
    place: &Place,
    id: OperationId,
    pid: u32,
    env: &dyn Env,
    output: Output,
) -> Result<Option<Exit>> {
    loop {
        let look = Look::at(place, id)?;
        match look.stored.state.phase {
            Phase::Cancelled { .. } => {
                let message = format!(
                    "operation {id} is cancelled, process {pid} has undone it: {}",
                    look.record.title
                );
                return tell_request(id, "cancel", true, message, output).map(Some);
            }
            Phase::Done { .. } => return Ok(Some(tell_ended(id, "cancel", &look, output))),
            Phase::Working(_) | Phase::Failed { .. } | Phase::Reverting { .. } => {}
        }
        if look.driver().is_none() || look.is_silent() {
            return Ok(None);
        }
        env.sleep(LOOK);
    }
}
