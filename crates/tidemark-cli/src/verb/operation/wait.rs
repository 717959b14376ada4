//! `operation wait`: nothing to see until it ends, and then its exit code.

use tidemark::Result;

use super::{LOOK, Look};
use crate::args::OneArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{Place, system};

pub(crate) fn run(one: &OneArgs, output: Output) -> Result<Exit> {
    let env = system();
    let (place, id) = Place::find_one(one, &env)?;
    loop {
        let look = Look::at(&place, id)?;
        if let Some(ended) = look.ended() {
            return look.tell(&place, id, &ended, output);
        }
        if look.driver().is_none() {
            return Ok(look.tell_idle(&place, id, output));
        }
        env.sleep(LOOK);
    }
}
