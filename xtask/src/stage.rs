//! One stage: what it runs, how long that took, whether it passed.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::tool::{Machine, Tool};

/// One line of the report.
#[derive(Debug)]
pub(crate) struct Stage {
    name: &'static str,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Tools(Vec<Tool>),
    Run { program: &'static str, args: Vec<String>, env: Vec<(&'static str, &'static str)> },
}

impl Stage {
    /// Finds the tools and installs those that are missing.
    pub(crate) fn tools(tools: &[Tool]) -> Stage {
        Stage { name: "tools", work: Work::Tools(tools.to_vec()) }
    }

    /// Runs cargo with `args`.
    pub(crate) fn cargo(name: &'static str, args: &[&str]) -> Stage {
        let args = args.iter().map(|&arg| arg.into()).collect();
        Stage { name, work: Work::Run { program: "cargo", args, env: Vec::new() } }
    }

    /// The same stage with a variable in its environment.
    pub(crate) fn env(mut self, variable: &'static str, value: &'static str) -> Stage {
        if let Work::Run { env, .. } = &mut self.work {
            env.push((variable, value));
        }
        self
    }

    /// What a person would type.
    pub(crate) fn command(&self) -> String {
        match &self.work {
            Work::Tools(tools) => {
                let names: Vec<&str> = tools.iter().map(|tool| tool.name).collect();
                format!("find {}", names.join(", "))
            }
            Work::Run { program, args, env } => {
                let mut words: Vec<String> =
                    env.iter().map(|(variable, value)| format!("{variable}='{value}'")).collect();
                words.push((*program).into());
                words.extend(args.iter().cloned());
                words.join(" ")
            }
        }
    }

    fn run(&self, root: &Path) -> Result<(), String> {
        match &self.work {
            Work::Tools(tools) => install_missing(root, tools),
            Work::Run { program, args, env } => {
                let mut command = command_in(root, program);
                command.args(args).envs(env.iter().copied());
                run(command)
            }
        }
    }
}

/// Runs every stage in order and reports; succeeds only if all of them passed.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run_all(root: &Path, stages: Vec<Stage>) -> ExitCode {
    let begun = Clock::start();
    let mut report = Vec::new();
    for stage in &stages {
        println!("\n== {}: {}", stage.name, stage.command());
        let clock = Clock::start();
        let outcome = stage.run(root);
        let line = Line { name: stage.name, outcome, elapsed: clock.elapsed() };
        println!("== {line}");
        report.push(line);
    }
    println!();
    for line in &report {
        println!("xtask: {line}");
    }
    let failed = report.iter().filter(|line| line.outcome.is_err()).count();
    let verdict = match failed {
        0 => "every stage passed".to_owned(),
        _ => format!("{failed} of {} stages FAILED", report.len()),
    };
    println!("xtask: total {:.1} s, {verdict}", begun.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Line {
    name: &'static str,
    outcome: Result<(), String>,
    elapsed: Duration,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        match &self.outcome {
            Ok(()) => write!(f, "{}: ok, {seconds:.1} s", self.name),
            Err(why) => write!(f, "{}: FAILED after {seconds:.1} s, {why}", self.name),
        }
    }
}

/// Installs what is missing; tries every tool before it answers.
#[expect(clippy::print_stdout, reason = "says what it adds to the machine")]
fn install_missing(root: &Path, tools: &[Tool]) -> Result<(), String> {
    let mut missing = Vec::new();
    for tool in tools {
        if let Some(version) = tool.version(root) {
            println!("found {version}");
            continue;
        }
        let installed = install(root, tool);
        match (installed, tool.version(root)) {
            (Ok(()), Some(version)) => println!("installed {version}"),
            (Ok(()), None) => {
                missing.push(format!("{} is not found after its installation", tool.name))
            }
            (Err(why), _) => missing.push(format!("{} could not be installed: {why}", tool.name)),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

/// Runs the commands that install a tool, up to the first that fails.
#[expect(clippy::print_stdout, reason = "says what it adds to the machine")]
fn install(root: &Path, tool: &Tool) -> Result<(), String> {
    for words in tool.install_commands(&Machine::look())? {
        println!("{} is missing, installing it: {}", tool.name, words.join(" "));
        let (program, args) = words.split_first().expect("a command has a program");
        let mut command = command_in(root, program);
        command.args(args);
        run(command)?;
    }
    Ok(())
}

/// A command at the root of the workspace; the cargo that runs us stands for `cargo`.
pub(crate) fn command_in(root: &Path, program: &str) -> Command {
    let program = match program {
        "cargo" => std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")),
        other => OsString::from(other),
    };
    let mut command = Command::new(program);
    command.current_dir(root);
    command
}

fn run(mut command: Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(cause) => {
            Err(format!("{} does not start: {cause}", command.get_program().to_string_lossy()))
        }
    }
}

struct Clock(Instant);

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "stages are timed for people; no test depends on it"
    )]
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::ExitCode;

    use super::{Stage, Work, run_all};
    use crate::tool::{Install, Tool};

    fn program(program: &'static str) -> Stage {
        Stage { name: program, work: Work::Run { program, args: Vec::new(), env: Vec::new() } }
    }

    fn passes(stages: Vec<Stage>) -> bool {
        let code = run_all(Path::new("."), stages);
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn one_failed_stage_fails_the_run_wherever_it_stands() {
        assert!(passes(vec![program("true"), program("true")]));
        assert!(!passes(vec![program("false"), program("true")]));
        assert!(!passes(vec![program("true"), program("false")]));
    }

    #[test]
    fn a_program_that_does_not_exist_fails_the_run() {
        assert!(!passes(vec![program("no-such-program-anywhere")]));
    }

    #[test]
    fn a_stage_runs_although_an_earlier_one_failed() {
        let folder = std::env::temp_dir().join(format!("xtask-stage-{}", std::process::id()));
        let touched = folder.join("touched");
        std::fs::create_dir_all(&folder).unwrap();
        let args = vec![touched.to_str().unwrap().to_owned()];
        let touch =
            Stage { name: "touch", work: Work::Run { program: "touch", args, env: Vec::new() } };
        assert!(!passes(vec![program("false"), touch]));
        assert!(touched.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_tool_that_cannot_be_installed_fails_the_run() {
        let unknown = Tool {
            name: "unknown",
            probe: &["no-such-program-anywhere"],
            install: Install::Commands(&[&["false"]]),
        };
        let not_there = Tool {
            name: "not there",
            probe: &["no-such-program-anywhere"],
            install: Install::Commands(&[&["true"]]),
        };
        assert!(!passes(vec![Stage::tools(&[unknown])]));
        assert!(!passes(vec![Stage::tools(&[not_there])]));
    }
}
