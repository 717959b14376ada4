//! Running this binary as a command of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tidemark::{Error, Kind, Result};

use super::Stage;
use crate::shell::word;

/// Looks below which nothing can be said of a progress.
const LOOKS_MIN: usize = 10;

/// What a command said of its progress, and when.
#[derive(Debug, Default)]
pub(super) struct Looks {
    at: Vec<(Duration, f64)>,
    duration: Duration,
}

impl Looks {
    pub(super) fn count(&self) -> usize {
        self.at.len()
    }

    /// From the start of the command to its end.
    pub(super) fn duration(&self) -> Duration {
        self.duration
    }

    /// The furthest that the progress was from the share of time that had passed, in
    /// percentage points; `None` if it was looked at too few times.
    pub(super) fn deviation_max(&self) -> Option<f64> {
        if self.at.len() < LOOKS_MIN {
            return None;
        }
        let whole = self.duration.as_secs_f64();
        let deviation = |(at, done): &(Duration, f64)| (done - at.as_secs_f64() / whole).abs();
        self.at.iter().map(deviation).max_by(f64::total_cmp).map(|share| share * 100.0)
    }
}

/// The share of its work that a line of a command's output says is done; `None` if it is no status.
fn share_done(line: &str) -> Option<f64> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["message_type"] != "status" {
        return None;
    }
    message["percent_done"].as_f64()
}

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
            let Some(done) = share_done(&line) else { continue };
            if (share..1.0).contains(&done) {
                child.kill().map_err(|cause| Error::io("kill the command", cause))?;
                killed_at = Some(done * 100.0);
                break;
            }
        }
        child.wait().map_err(|cause| Error::io("wait for the command", cause))?;
        Ok(killed_at)
    }

    /// Runs a command, expects it to succeed, and notes its progress.
    pub(super) fn command_watched(&self, args: &[&str]) -> Result<Looks> {
        self.show(args);
        let mut command = self.itself(args)?;
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null());
        let began = self.env.boot_time();
        let mut child = command.spawn().map_err(|cause| Error::io("start a command", cause))?;
        let lines = child.stdout.take().map(BufReader::new).expect("standard output is piped");
        let mut looks = Looks::default();
        for line in lines.lines() {
            let line = line.map_err(|cause| Error::io("read a command's progress", cause))?;
            if let Some(done) = share_done(&line) {
                looks.at.push((self.env.boot_time().since(began), done));
            }
        }
        let status = child.wait().map_err(|cause| Error::io("wait for the command", cause))?;
        looks.duration = self.env.boot_time().since(began);
        if status.success() {
            return Ok(looks);
        }
        let message = format!("`tidemark {}` ended with {status}", args.join(" "));
        Err(Error::new(Kind::Fatal, message))
    }

    fn show(&self, args: &[&str]) {
        let words: Vec<String> = args.iter().map(|arg| word(arg)).collect();
        self.say(&format!("$ tidemark {}", words.join(" ")));
    }

    fn itself(&self, args: &[&str]) -> Result<Command> {
        let program = std::env::current_exe()
            .map_err(|cause| Error::io("find the program that is running", cause))?;
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.folder).stdin(Stdio::null());
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_the_greatest_distance_from_the_clock() {
        let at = |tenth: u64, done: f64| (Duration::from_millis(tenth * 100), done);
        let mut looks = Looks { at: Vec::new(), duration: Duration::from_secs(1) };
        assert_eq!(looks.deviation_max(), None);
        looks.at = (0..10).map(|tenth| at(tenth, tenth as f64 / 10.0)).collect();
        assert_eq!(looks.deviation_max().map(f64::round), Some(0.0));
        looks.at[3].1 = 0.05;
        assert_eq!(looks.deviation_max().map(f64::round), Some(25.0));
    }

    #[test]
    fn only_status_messages_tell_a_share() {
        assert_eq!(share_done(r#"{"message_type":"status","percent_done":0.5}"#), Some(0.5));
        assert_eq!(share_done(r#"{"message_type":"summary","percent_done":0.5}"#), None);
        assert_eq!(share_done("no JSON"), None);
    }
}
