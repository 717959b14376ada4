//! Running this binary as a command of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;
use tidemark::{Error, Kind, Result};

use super::Stage;
use crate::shell::word;

impl Stage {
    /// Prints a command as it could be typed, runs it, and expects it to succeed.
    pub(super) fn command(&self, args: &[&str]) -> Result<()> {
        self.show(args);
        let mut command = self.itself(args)?;
        if self.output.is_json() {
            // This command's own lines are the result; those of its steps would be mixed in.
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let status = command.status().map_err(|cause| Error::io("start a command", cause))?;
        if status.success() {
            return Ok(());
        }
        let message = format!("`tidemark {}` ended with {status}", args.join(" "));
        Err(Error::new(Kind::Fatal, message))
    }

    /// Runs a command and kills it with SIGKILL once `share` of its work is done; the
    /// percentage at which it died, or `None` if it was done before.
    pub(super) fn command_killed_at(&self, args: &[&str], share: f64) -> Result<Option<f64>> {
        self.show(args);
        let mut command = self.itself(args)?;
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|cause| Error::io("start a command", cause))?;
        let lines = child.stdout.take().map(BufReader::new).expect("standard output is piped");
        let mut killed_at = None;
        for line in lines.lines() {
            let line = line.map_err(|cause| Error::io("read a command's progress", cause))?;
            let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
            let done = message.get("percent_done").and_then(Value::as_f64).unwrap_or(0.0);
            if message["message_type"] == "status" && (share..1.0).contains(&done) {
                child.kill().map_err(|cause| Error::io("kill the command", cause))?;
                killed_at = Some(done * 100.0);
                break;
            }
        }
        child.wait().map_err(|cause| Error::io("wait for the command", cause))?;
        Ok(killed_at)
    }

    fn show(&self, args: &[&str]) {
        let words: Vec<String> = args.iter().map(|arg| word(arg)).collect();
        self.say(&format!("$ tidemark {}", words.join(" ")));
    }

    fn itself(&self, args: &[&str]) -> Result<Command> {
        let program = std::env::current_exe()
            .map_err(|cause| Error::io("find the program that is running", cause))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        Ok(command)
    }
}
