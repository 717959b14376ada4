//! `cargo xtask`: all that continuous integration runs, on a machine that has
//! rustup and a C compiler.
//!
//! A task is a list of stages. Every stage runs, also after one failed, so that
//! one run shows all there is to mend; the exit code is 0 only if all passed.
//! Nothing is skipped because a tool is missing: tools are installed first, and
//! a stage whose tool could not be installed fails.

use std::path::PathBuf;
use std::process::ExitCode;

use stage::Stage;

mod stage;
mod tool;

const USAGE: &str = "\
usage: cargo xtask TASK

  test         everything that continuous integration runs
  check        format and lints only
  advisories   known vulnerabilities of dependencies; needs the network
  fuzz [SECS]  every parser under libFuzzer, for 60 seconds each unless told otherwise; nightly
  bench ARGS   figures beside their references; `bench --help` lists ARGS
  help         this text
";

#[derive(Debug, PartialEq, Eq)]
enum Task {
    Test,
    Check,
    Advisories,
    Fuzz(u32),
    Bench(Vec<String>),
    Help,
}

impl Task {
    fn parse(args: &[&str]) -> Option<Task> {
        match args {
            ["test"] => Some(Task::Test),
            ["check"] => Some(Task::Check),
            ["advisories"] => Some(Task::Advisories),
            ["fuzz"] => Some(Task::Fuzz(FUZZ_SECONDS)),
            ["fuzz", seconds] => seconds.parse().ok().filter(|s| *s > 0).map(Task::Fuzz),
            ["bench", rest @ ..] => Some(Task::Bench(rest.iter().map(|&arg| arg.into()).collect())),
            ["help" | "--help" | "-h"] => Some(Task::Help),
            _ => None,
        }
    }

    fn stages(self) -> Vec<Stage> {
        match self {
            Task::Test => vec![
                Stage::tools(&[
                    tool::RUSTFMT,
                    tool::CLIPPY,
                    tool::NEXTEST,
                    tool::DENY,
                    tool::STRACE,
                    tool::POSTGRES,
                ]),
                fmt(),
                clippy_all_features(),
                clippy_default_features(),
                // Advisories are a task of their own: they need a clone of a database, and change
                // without the project changing.
                Stage::cargo(
                    "deny",
                    &["deny", LOCKED, "check", HIDE_GRAPH, "bans", "licenses", "sources"],
                ),
                docs(),
                // Both kinds of test use one build: the failpoints are in it, but none is armed.
                Stage::cargo("doc tests", &["test", "--doc", WORKSPACE, ALL_FEATURES, LOCKED]),
                // Last, so that the summary of the tests ends the output.
                Stage::cargo("tests", &NEXTEST_RUN),
            ],
            Task::Check => vec![
                Stage::tools(&[tool::RUSTFMT, tool::CLIPPY]),
                fmt(),
                clippy_all_features(),
                clippy_default_features(),
            ],
            Task::Advisories => vec![
                Stage::tools(&[tool::DENY]),
                Stage::cargo("advisories", &["deny", LOCKED, "check", HIDE_GRAPH, "advisories"]),
            ],
            Task::Fuzz(seconds) => vec![
                Stage::tools(&[tool::RUSTFMT]),
                Stage::cargo("fmt", &["fmt", "--manifest-path", FUZZ_MANIFEST, "--check"]),
                fuzz(seconds),
            ],
            Task::Bench(rest) => {
                let mut args = vec!["bench", "--package", "tidemark", "--bench", "figures", LOCKED];
                args.push("--");
                args.extend(rest.iter().map(String::as_str));
                let mut stages = vec![
                    // Peak memory is that of the program as people get it.
                    Stage::cargo("program", &["build", "--release", LOCKED]),
                    Stage::cargo("bench", &args),
                ];
                if rest.iter().any(|word| word == "peers") {
                    stages.insert(0, Stage::tools(&[tool::SQLITE, tool::PEERS]));
                }
                stages
            }
            Task::Help => Vec::new(),
        }
    }
}

const FUZZ_SECONDS: u32 = 60;
const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";
/// What libFuzzer needs to see where an input leads: counters of edges and operands of
/// comparisons. All of it is in the stable compiler; nothing of `-Zsanitizer` is needed.
const COVERAGE_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0";
const WORKSPACE: &str = "--workspace";
const ALL_FEATURES: &str = "--all-features";
/// A `Cargo.lock` that does not fit the manifests is an error, not mended on the way.
const LOCKED: &str = "--locked";
/// The tree above a doubled crate hides the message.
const HIDE_GRAPH: &str = "--hide-inclusion-graph";
/// Names the tests that fail or are slow; a line for each that passes hides those.
const NEXTEST_RUN: [&str; 7] =
    ["nextest", "run", WORKSPACE, ALL_FEATURES, LOCKED, "--no-fail-fast", "--status-level=slow"];

fn fuzz(seconds: u32) -> Stage {
    let seconds = seconds.to_string();
    // With a target named, the flags are not those of build scripts, which link no libFuzzer.
    let build = ["run", "--manifest-path", FUZZ_MANIFEST, "--release", LOCKED];
    let run = ["--target", "host-tuple", "--", "all", &seconds, "target/fuzz/work", "fuzz/corpus"];
    Stage::cargo("fuzz", &[&build[..], &run[..]].concat())
        .env("RUSTFLAGS", COVERAGE_FLAGS)
        .env("CARGO_TARGET_DIR", "target/fuzz")
}

fn fmt() -> Stage {
    Stage::cargo("fmt", &["fmt", "--all", "--check"])
}

fn clippy_all_features() -> Stage {
    let args = ["clippy", WORKSPACE, "--all-targets", ALL_FEATURES, LOCKED];
    Stage::cargo("clippy", &[&args[..], &["--", "-D", "warnings"]].concat())
}

/// What people get is built without the failpoints; nothing else here compiles that.
fn clippy_default_features() -> Stage {
    let args = ["clippy", WORKSPACE, LOCKED, "--", "-D", "warnings"];
    Stage::cargo("clippy, default features", &args)
}

fn docs() -> Stage {
    Stage::cargo("docs", &["doc", WORKSPACE, "--no-deps", ALL_FEATURES, LOCKED])
        .env("RUSTDOCFLAGS", "-D warnings")
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to people")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match Task::parse(&args) {
        None => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
        Some(Task::Help) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Some(task) => stage::run_all(&root(), task.stages()),
    }
}

/// The root of the workspace; cargo may have been started in a folder below it.
fn root() -> PathBuf {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().map_or_else(|| manifest_dir.clone(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::{Task, USAGE};

    #[test]
    fn every_task_in_the_usage_is_understood() {
        for word in ["test", "check", "advisories", "fuzz", "bench", "help"] {
            assert!(USAGE.contains(&format!("\n  {word} ")), "{word}");
            assert!(Task::parse(&[word]).is_some(), "{word}");
        }
    }

    #[test]
    fn an_unknown_argument_is_no_task() {
        for args in [
            &[][..],
            &["tests"],
            &["test", "--quick"],
            &["check", "x"],
            &["fuzz", "0"],
            &["--version"],
        ] {
            assert_eq!(Task::parse(args), None, "{args:?}");
        }
    }

    #[test]
    fn what_follows_bench_goes_to_the_benchmark() {
        let task = Task::parse(&["bench", "restore", "--rows", "1000"]).expect("a task");
        let stages = task.stages();
        let command = stages.last().expect("stages").command();
        assert!(command.starts_with("cargo bench "), "{command}");
        assert!(command.ends_with(" -- restore --rows 1000"), "{command}");
    }

    #[test]
    fn fuzzing_takes_a_minute_for_each_parser_unless_told_otherwise() {
        for (args, seconds) in [(&["fuzz"][..], " all 60 "), (&["fuzz", "7"], " all 7 ")] {
            let stages = Task::parse(args).expect("a task").stages();
            let command = stages.last().expect("stages").command();
            assert!(command.contains("--manifest-path fuzz/Cargo.toml"), "{command}");
            assert!(command.contains(seconds), "{command}");
        }
    }

    #[test]
    fn the_tests_end_the_output_of_the_whole_run() {
        let stages = Task::Test.stages();
        let last = stages.last().expect("stages");
        assert!(last.command().starts_with("cargo nextest run"), "{}", last.command());
    }
}
