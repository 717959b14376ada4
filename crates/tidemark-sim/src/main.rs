//! The command: one run, two runs of one seed, or many seeds.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use tidemark_sim::run::{How, Report, run};
use tidemark_sim::scenario::Scenario;
use tidemark_sim::soak::{seeds, soak};

const USAGE: &str = "\
usage: tidemark-sim COMMAND

  run SCENARIO --seed N [--count M]   run M seeds from N on; one alone prints its log
  meta SCENARIO --seed N              run a seed twice and compare the logs
  soak --minutes M [--seed N]         run every scenario from seed N on until one fails
  list                                the scenarios
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    command(&words).unwrap_or_else(|message| {
        tell(&format!("{message}\n{USAGE}"));
        ExitCode::from(2)
    })
}

fn command(words: &[&str]) -> Result<ExitCode, String> {
    match words {
        ["list"] => {
            Scenario::ALL.iter().for_each(|scenario| say(scenario.name()));
            Ok(ExitCode::SUCCESS)
        }
        ["run", name, options @ ..] => {
            let scenario = scenario(name)?;
            let seed = option(options, "--seed")?.ok_or("a run needs --seed")?;
            match option(options, "--count")? {
                None | Some(1) => Ok(run_one(scenario, seed)),
                Some(count) => Ok(run_many(scenario, seed, count)),
            }
        }
        ["meta", name, options @ ..] => {
            let scenario = scenario(name)?;
            let seed = option(options, "--seed")?.ok_or("meta needs --seed")?;
            Ok(meta(scenario, seed))
        }
        ["soak", options @ ..] => {
            let minutes = option(options, "--minutes")?.ok_or("soak needs --minutes")?;
            let seed = option(options, "--seed")?.unwrap_or(1);
            Ok(run_soak(minutes, seed))
        }
        [] => Err("no command".to_owned()),
        [other, ..] => Err(format!("`{other}` is no command")),
    }
}

fn scenario(name: &str) -> Result<Scenario, String> {
    Scenario::from_name(name).ok_or_else(|| format!("`{name}` is no scenario"))
}

fn option(options: &[&str], name: &str) -> Result<Option<u64>, String> {
    let Some(at) = options.iter().position(|word| *word == name) else { return Ok(None) };
    let value = options.get(at + 1).ok_or_else(|| format!("{name} needs a number"))?;
    value.parse().map(Some).map_err(|_| format!("{name} needs a number, not `{value}`"))
}

fn recorded(scenario: Scenario, seed: u64) -> Report {
    run(scenario, seed, How { is_recording: true, ..How::default() })
}

fn run_one(scenario: Scenario, seed: u64) -> ExitCode {
    let report = recorded(scenario, seed);
    say(report.log.trim_end());
    verdict(&report)
}

fn verdict(report: &Report) -> ExitCode {
    say(&format!(
        "{} after {} steps, {} processes, {} ms",
        report.phase, report.steps, report.processes, report.passed
    ));
    match &report.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            tell(&format!("VIOLATION: {violation}"));
            ExitCode::FAILURE
        }
    }
}

fn run_many(scenario: Scenario, seed: u64, count: u64) -> ExitCode {
    match seeds(scenario, seed, count, How::default()) {
        Ok(()) => {
            say(&format!("{count} seeds of {} from {seed} on: no violation", scenario.name()));
            ExitCode::SUCCESS
        }
        Err(failed) => {
            tell(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

fn meta(scenario: Scenario, seed: u64) -> ExitCode {
    let (first, second) = (recorded(scenario, seed), recorded(scenario, seed));
    if first == second {
        say(&format!("the same {} bytes twice", first.log.len()));
        return verdict(&first);
    }
    let differs = first.log.lines().zip(second.log.lines()).find(|(one, other)| one != other);
    tell(&format!("the runs differ: {differs:?}"));
    ExitCode::FAILURE
}

fn run_soak(minutes: u64, seed: u64) -> ExitCode {
    let told = |scenario: Scenario, first: u64, count: u64| {
        say(&format!("{} seeds {first} to {}", scenario.name(), first + count - 1));
    };
    match soak(Duration::from_secs(minutes * 60), seed, told) {
        Ok(runs) => {
            say(&format!("{runs} runs, no violation"));
            ExitCode::SUCCESS
        }
        Err(failed) => {
            tell(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Writes a line for people; whoever stops reading is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The same, for what went wrong.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
