//! The tests of the real binary rest on `support`; these test it, on a shell.

use std::path::Path;

use rustix::process::{Pid, Signal, test_kill_process};
use support::Tidemark;
use support::deadline::wait_until;

mod support;

fn shell(folder: &Path) -> Tidemark {
    Tidemark::of_program(Path::new("/bin/sh"), folder)
}

#[test]
fn the_binary_of_this_build_is_the_one_that_starts() {
    let folder = support::temp_folder();
    let outcome = Tidemark::new(folder.path()).run(["--help"]).expect_code(0);
    assert_eq!(outcome.signal, None);
}

#[test]
fn an_outcome_has_the_code_and_both_streams() {
    let folder = support::temp_folder();
    let outcome = shell(folder.path()).run(["-c", "echo out; echo err >&2; exit 5"]);
    let outcome = outcome.expect_code(5);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(outcome.signal, None);
}

#[test]
fn another_code_than_expected_panics_with_what_was_printed() {
    let folder = support::temp_folder();
    let outcome = shell(folder.path()).run(["-c", "echo the reason >&2; exit 1"]);
    let panic = std::panic::catch_unwind(|| outcome.expect_code(0)).expect_err("code 1 is not 0");
    let message = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(message.contains("the reason"), "{message}");
}

#[test]
fn a_killed_process_has_a_signal_and_no_code() {
    let folder = support::temp_folder();
    let mut running = shell(folder.path()).spawn(["-c", "echo begun; exec tail -f /dev/null"]);
    running.wait_for_line(|line| line == "begun");
    let outcome = running.kill().expect_killed();
    assert_eq!(outcome.code, None);
    assert_eq!(outcome.stdout, "begun\n");
}

#[test]
fn a_line_that_never_comes_ends_the_wait_with_the_output() {
    let folder = support::temp_folder();
    let mut running = shell(folder.path()).spawn(["-c", "echo something else"]);
    let waiting = std::panic::AssertUnwindSafe(|| running.wait_for_line(|line| line == "begun"));
    assert!(std::panic::catch_unwind(waiting).is_err());
}

#[test]
fn a_stopped_process_is_seen_and_goes_on() {
    let folder = support::temp_folder();
    let mut running = shell(folder.path()).spawn(["-c", "kill -STOP $$; echo continued"]);
    running.wait_until_stopped();
    running.signal(Signal::CONT);
    assert_eq!(running.wait().expect_code(0).stdout, "continued\n");
}

#[test]
fn a_process_that_is_let_go_is_killed() {
    let folder = support::temp_folder();
    let mut running = shell(folder.path()).spawn(["-c", "echo begun; exec tail -f /dev/null"]);
    running.wait_for_line(|line| line == "begun");
    let pid = Pid::from_raw(i32::try_from(running.pid()).unwrap()).unwrap();
    drop(running);
    wait_until("the process is gone", || test_kill_process(pid).is_err());
}

#[test]
fn variables_reach_the_process_and_those_of_the_caller_do_not() {
    let folder = support::temp_folder();
    let log = folder.path().join("hits");
    let script = "echo $TIDEMARK_FAILPOINT $TIDEMARK_FAILPOINT_LOG $TIDEMARK_CHUNK_LOG";
    let plain = shell(folder.path());
    assert_eq!(plain.run(["-c", script]).expect_code(0).stdout, "\n");
    let armed = plain.with_failpoint("a:1").with_hit_log(&log).with_chunk_log(&log);
    let expected = format!("a:1 {log} {log}\n", log = log.display());
    assert_eq!(armed.run(["-c", script]).expect_code(0).stdout, expected);
}

#[test]
fn a_torn_last_line_of_a_log_is_left_out() {
    let folder = support::temp_folder();
    let log = folder.path().join("chunks");
    assert_eq!(support::log_lines(&log), [""; 0]);
    std::fs::write(&log, "one\ntwo\nthr").unwrap();
    assert_eq!(support::log_lines(&log), ["one", "two"]);
    std::fs::write(&log, "one\n\n").unwrap();
    assert_eq!(support::log_lines(&log), ["one", ""]);
}

#[test]
fn json_lines_are_read_and_other_lines_refused() {
    let folder = support::temp_folder();
    let outcome = shell(folder.path()).run(["-c", r#"printf '{"a":1}\n{"a":2}\n'"#]);
    assert_eq!(outcome.json_lines()[1]["a"], 2);
    let outcome = shell(folder.path()).run(["-c", "echo done"]);
    assert!(std::panic::catch_unwind(|| outcome.json_lines()).is_err());
}

#[test]
fn the_example_chain_is_found_oldest_first() {
    let names: Vec<String> = support::revisions("sp500")
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 181);
    assert!(names[0].starts_with("009_") && names[180].starts_with("189_"), "{names:?}");
    assert_eq!(support::revisions("sp500-ragged").len(), 7);
}
