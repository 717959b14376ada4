//! `operation pause`: asks the driver to stop between two chunks.

use tidemark::Result;
use tidemark::catalog::Verb;
use tidemark::operation::{Desired, PausedBy, Request};

use super::{Answer, Look, ask, tell_ended, tell_request, tell_silent, tell_waits};
use crate::args::OneArgs;
use crate::drive::STARTS_OVER;
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, system};

const WHY: &str = "asked for with `operation pause`";

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(one, &env)?;
    let look = Look::at(&place, id)?;
    if look.stored.state.phase.is_terminal() {
        return Ok(tell_ended(id, "pause", &look, output));
    }
    let resume = place.operation_command("resume", id);
    let Some(pid) = look.driver() else {
        let message =
            format!("operation {id} stands still, nobody drives it; `{resume}` carries on");
        return tell_request(id, "pause", false, message, output);
    };
    let request = Request::Pause { by: PausedBy::Person, why: WHY.to_owned() };
    let is_paused = |stored: &tidemark::catalog::StoredState| {
        matches!(stored.state.desired, Desired::Paused { .. })
    };
    match ask(&place, id, &request, is_paused, &*env)? {
        Answer::Taken => {
            let how = match look.record.verb {
                Verb::Restore | Verb::Verify => "carries on".to_owned(),
                Verb::Backup => format!("begins it anew, {STARTS_OVER}"),
            };
            let message = format!(
                "operation {id} is paused: process {pid} stops after the chunks in flight; \
                 `{resume}` {how}"
            );
            tell_request(id, "pause", true, message, output)
        }
        Answer::LetGo => Ok(tell_ended(id, "pause", &Look::at(&place, id)?, output)),
        Answer::Silent => Ok(tell_silent(&place, id, "pause", &look, output)),
        Answer::Waits => Ok(tell_waits(id, "pause", &look, output)),
    }
}
