//! Parsing the command line, and saying what is wrong with it.

use clap::Parser;

use super::Output;
use crate::args::Cli;
use crate::exit::Exit;

/// What was typed; or, once help or a refusal was printed, how to end.
pub(crate) fn parse() -> Result<Cli, Exit> {
    Cli::try_parse().map_err(|refusal| {
        if !refusal.use_stderr() {
            // Help that nobody reads to the end is no failure.
            let _ = refusal.print();
            return Exit::Done;
        }
        // What was typed could not be parsed, so this option is looked for by its letters.
        if std::env::args_os().any(|arg| arg == "--json") {
            let message = refusal.to_string();
            let message = message.trim_end();
            let message = message.strip_prefix("error: ").unwrap_or(message);
            return Output::new(true, Vec::new()).exit_with(Exit::Usage, "usage", message);
        }
        let _ = refusal.print();
        Exit::Usage
    })
}
