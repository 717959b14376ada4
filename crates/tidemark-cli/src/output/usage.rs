//! Parsing the command line, and saying what is wrong with it.

use clap::Parser;

use super::Output;
use crate::args::Cli;
use crate::exit::Exit;
use crate::shell::without_password;

/// What was typed; or, once help or a refusal was printed, how to end.
pub(crate) fn parse() -> Result<Cli, Exit> {
    Cli::try_parse().map_err(|refusal| {
        if !refusal.use_stderr() {
            // Help that nobody reads to the end is no failure.
            let _ = refusal.print();
            return Exit::Done;
        }
        let has_secrets = typed().any(|arg| without_password(&arg) != arg);
        // What was typed could not be parsed, so this option is looked for by its letters.
        if std::env::args_os().any(|arg| arg == "--json") {
            let message = unsecret(&refusal.to_string());
            let message = message.trim_end();
            let message = message.strip_prefix("error: ").unwrap_or(message);
            return Output::new(true, Vec::new()).exit_with(Exit::Usage, "usage", message);
        }
        if has_secrets {
            // Without colours: a refusal repeats what it refuses.
            Output::new(false, Vec::new()).note(unsecret(&refusal.to_string()).trim_end());
            return Exit::Usage;
        }
        let _ = refusal.print();
        Exit::Usage
    })
}

fn typed() -> impl Iterator<Item = String> {
    std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())
}

/// A refusal without the passwords in what it repeats.
fn unsecret(refusal: &str) -> String {
    typed().fold(refusal.to_owned(), |text, arg| {
        let secret = arg.find("postgres").map_or("", |at| &arg[at..]);
        match secret.is_empty() {
            true => text,
            false => text.replace(secret, &without_password(secret)),
        }
    })
}
