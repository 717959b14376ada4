//! `operation resume`: carries on, whoever began it.

use tidemark::executor::Intent;
use tidemark::operation::{Desired, Request};
use tidemark::{Error, Kind, Result};

use super::{Answer, Look, ask, tell_request, tell_waits, work};
use crate::args::ResumeArgs;
use crate::detach;
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, system};

pub(crate) fn run(args: &ResumeArgs, output: Output) -> Result<Exit> {
    if args.own_session {
        detach::enter_own_session()?;
    }
    let env = system();
    let (place, id) = Place::find_one(&args.one, &env)?;
    let look = Look::at(&place, id)?;
    if look.stored.state.phase.is_terminal()
        && let Some(ended) = look.ended()
    {
        return look.tell(&place, id, &ended, output);
    }
    // One whose lease is over is taken over, as by the command that began the operation.
    if let Some(pid) = look.driver().filter(|_| !look.is_silent()) {
        if !matches!(look.stored.state.desired, Desired::Paused { .. }) {
            let message = format!(
                "operation {id} is being driven by process {pid}; watch it with `{}`",
                place.operation_command("watch", id)
            );
            return Err(Error::new(Kind::Held, message));
        }
        // Its driver is about to stop: it may still change its mind.
        let is_running =
            |stored: &tidemark::catalog::StoredState| stored.state.desired == Desired::Run;
        match ask(&place, id, &Request::Resume, is_running, &*env)? {
            Answer::Taken => {
                let message = format!("operation {id} is carried on by process {pid}");
                return tell_request(id, "resume", true, message, output);
            }
            Answer::LetGo | Answer::Silent => {}
            Answer::Waits => return Ok(tell_waits(id, "resume", &look, output)),
        }
    }
    work::carry_on(&place, id, Intent::CarryOn, &env, output)
}
