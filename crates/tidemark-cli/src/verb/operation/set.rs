//! `operation set`: changes what may change while an operation runs.

use tidemark::Result;
use tidemark::catalog::Catalog;
use tidemark::operation::Request;

use super::{Answer, Look, ask, tell_ended, tell_request, tell_silent, tell_waits};
use crate::args::SetArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::counted;
use crate::place::{Place, system};

pub(crate) fn run(args: &SetArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(&args.one, &env)?;
    let look = Look::at(&place, id)?;
    if look.stored.state.phase.is_terminal() {
        return Ok(tell_ended(id, "set", &look, output));
    }
    let window = args.shards_in_flight;
    let request = Request::Window(window);
    let shards = counted(u64::from(window), "shard");
    let Some(pid) = look.driver() else {
        place.catalog.steer(id, &request)?;
        let message =
            format!("operation {id} works at {shards} together as soon as somebody drives it");
        return tell_request(id, "set", false, message, output);
    };
    match ask(&place, id, &request, |stored| stored.state.window == window, &*env)? {
        Answer::Taken => {
            let message =
                format!("operation {id}, driven by process {pid}, works at {shards} together");
            tell_request(id, "set", true, message, output)
        }
        Answer::LetGo => {
            let look = Look::at(&place, id)?;
            if look.stored.state.phase.is_terminal() {
                return Ok(tell_ended(id, "set", &look, output));
            }
            let message = format!(
                "process {pid} has let go of operation {id}; it works at {shards} together as soon \
                 as somebody drives it again"
            );
            tell_request(id, "set", false, message, output)
        }
        Answer::Silent => Ok(tell_silent(&place, id, "set", &look, output)),
        Answer::Waits => Ok(tell_waits(id, "set", &look, output)),
    }
}
