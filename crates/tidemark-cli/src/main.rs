//! The `tidemark` command.
//!
//! [`args`] is what can be typed, [`verb`] has one file per verb, [`drive`] runs an
//! operation with [`progress`] in front of it, [`output`] is what people and programs read,
//! [`exit`] what scripts learn.

use std::process::ExitCode;

mod allocator;
mod args;
mod descriptors;
mod detach;
mod drive;
mod exit;
mod output;
mod place;
mod progress;
mod shell;
mod signals;
mod verb;

fn main() -> ExitCode {
    allocator::keep_little();
    let cli = match output::usage::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    output::log::start(cli.log);
    descriptors::raise_limit();
    let output = output::Output::new(cli.json, cli.verb.locator());
    let ran = signals::survive_file_limits().and_then(|()| verb::run(cli.verb, output));
    let exit = match ran {
        Ok(exit) => exit,
        Err(error) => output.exit_error(&error),
    };
    exit.into()
}
