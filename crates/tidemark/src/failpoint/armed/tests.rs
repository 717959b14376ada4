use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::{Action, Answer, ErrorKind, Plan};

fn plan(text: &str) -> Plan {
    Plan::parse(text).expect("a well-formed plan")
}

fn hits(plan: &Plan) -> (u64, u64) {
    (plan.first.get(), plan.last.get())
}

#[test]
fn a_name_and_a_number_mean_kill_at_that_hit() {
    let plan = plan("apply.committed:3");
    assert_eq!(plan.name.as_deref(), Some("apply.committed"));
    assert_eq!(hits(&plan), (3, 3));
    assert_eq!(plan.action, Action::Kill);
}

#[test]
fn every_action_has_its_word() {
    for (word, action) in [
        ("kill", Action::Kill),
        ("stop", Action::Stop),
        ("enospc", Action::Fail(ErrorKind::NoSpace)),
        ("error", Action::Fail(ErrorKind::Other)),
    ] {
        assert_eq!(plan(&format!("a:1:{word}")).action, action, "{word}");
    }
}

#[test]
fn ranges_are_inclusive_and_may_be_open() {
    assert_eq!(hits(&plan("a:2-5")), (2, 5));
    assert_eq!(hits(&plan("a:2-2:stop")), (2, 2));
    assert_eq!(hits(&plan("a:2-:error")), (2, u64::MAX));
    let acting: Vec<u64> = (0..8).filter(|count| plan("a:2-5").acts_at(*count)).collect();
    assert_eq!(acting, [2, 3, 4, 5]);
}

#[test]
fn malformed_plans_are_refused() {
    for text in [
        "",
        ":",
        ":1",
        "a",
        "a:",
        "a:0",
        "a:-1",
        "a:x",
        "a:1.5",
        "a:5-2",
        "a:0-3",
        "a:1-x",
        "a: 1",
        "a:1:",
        "a:1:explode",
        "a:1:kill:",
        "a:1:kill:again",
    ] {
        let refused = Plan::parse(text).expect_err(text);
        assert!(refused.contains(&format!("`{text}`")), "{refused}");
    }
}

#[test]
fn a_plan_counts_its_own_name_and_a_star_counts_all() {
    assert!(plan("a:1").applies("a", Answer::Nothing));
    assert!(!plan("a:1").applies("ab", Answer::Nothing));
    assert!(!plan("a:1").applies("*", Answer::Nothing));
    assert!(plan("*:1").applies("a", Answer::Nothing));
    assert!(plan("*:1").applies("ab", Answer::IoError));
}

#[test]
fn an_error_counts_only_hits_that_can_answer_it() {
    assert!(!plan("*:1:enospc").applies("a", Answer::Nothing));
    assert!(plan("*:1:enospc").applies("a", Answer::IoError));
    assert!(!plan("a:1:error").applies("a", Answer::Nothing));
    assert!(plan("a:1:stop").applies("a", Answer::Nothing));
}

/// Also the work of the processes that the tests below start, armed.
#[test]
fn unarmed_points_answer_nothing() {
    let unarmed = std::env::var_os("TIDEMARK_FAILPOINT").is_none();
    for chunk in 1..=3 {
        crate::failpoint::hit("read");
        let written = crate::failpoint::hit_io("write");
        let outcome = match &written {
            Ok(()) => "written".to_owned(),
            Err(cause) => format!("{:?}", cause.kind()),
        };
        assert!(written.is_ok() || !unarmed);
        crate::failpoint::note_chunk(format_args!("{chunk} {outcome}"));
    }
}

/// Runs that work in a process of its own; returns how it ended and its two logs.
fn run_armed(plan: &str, folder: &Path) -> (ExitStatus, Vec<String>, Vec<String>) {
    let status = armed_command(plan, folder).status().expect("the test binary starts again");
    (status, lines(&folder.join("hits")), lines(&folder.join("chunks")))
}

fn armed_command(plan: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
    command
        .args([
            "--exact",
            "failpoint::armed::tests::unarmed_points_answer_nothing",
            "--test-threads=1",
        ])
        .env("TIDEMARK_FAILPOINT_LOG", folder.join("hits"))
        .env("TIDEMARK_CHUNK_LOG", folder.join("chunks"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env_remove("TIDEMARK_FAILPOINT_GATE");
    if plan.is_empty() {
        command.env_remove("TIDEMARK_FAILPOINT");
    } else {
        command.env("TIDEMARK_FAILPOINT", plan);
    }
    command
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn an_undisturbed_run_logs_every_hit_and_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let (status, hits, chunks) = run_armed("", folder.path());
    assert!(status.success());
    assert_eq!(hits, ["read", "write", "read", "write", "read", "write"]);
    assert_eq!(chunks, ["1 written", "2 written", "3 written"]);
}

#[test]
fn the_process_is_killed_at_exactly_the_hit_that_was_named() {
    for (plan, hits_passed, chunks_done) in
        [("read:1", 1, 0), ("write:2", 4, 1), ("*:5", 5, 2), ("*:6:kill", 6, 2)]
    {
        let folder = tempfile::tempdir().unwrap();
        let (status, hits, chunks) = run_armed(plan, folder.path());
        assert_eq!(status.signal(), Some(9), "{plan}");
        assert_eq!(hits.len(), hits_passed, "{plan}: {hits:?}");
        assert_eq!(chunks.len(), chunks_done, "{plan}: {chunks:?}");
    }
}

#[test]
fn an_armed_error_is_answered_for_its_hits_only() {
    let folder = tempfile::tempdir().unwrap();
    let (status, _, chunks) = run_armed("write:2:enospc", folder.path());
    assert!(status.success());
    assert_eq!(chunks, ["1 written", "2 StorageFull", "3 written"]);

    let folder = tempfile::tempdir().unwrap();
    let (_, _, chunks) = run_armed("*:2-:error", folder.path());
    assert_eq!(chunks, ["1 written", "2 Other", "3 Other"]);
}

#[test]
fn a_malformed_variable_ends_the_process_instead_of_passing() {
    let folder = tempfile::tempdir().unwrap();
    let (status, _, chunks) = run_armed("write:never", folder.path());
    assert_eq!(status.signal(), Some(6));
    assert_eq!(chunks, [""; 0]);
}

#[test]
fn a_held_thread_goes_on_when_its_gate_opens() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    std::fs::write(&gate, "").unwrap();
    let mut command = armed_command("write:2:wait", folder.path());
    let mut child = command.env("TIDEMARK_FAILPOINT_GATE", &gate).spawn().unwrap();
    while lines(&folder.path().join("hits")).len() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "it ended without waiting");
        std::thread::yield_now();
    }
    assert_eq!(lines(&folder.path().join("chunks")), ["1 written"]);
    std::fs::remove_file(&gate).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&folder.path().join("chunks")), ["1 written", "2 written", "3 written"]);

    let folder = tempfile::tempdir().unwrap();
    let (status, ..) = run_armed("write:2:wait", folder.path());
    assert_eq!(status.signal(), Some(6), "without a gate it is a mistake of the test");
}

#[test]
fn a_stopped_process_has_done_nothing_past_the_point_and_goes_on_when_continued() {
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

    let folder = tempfile::tempdir().unwrap();
    let mut child = armed_command("write:2:stop", folder.path()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    // Returns when the child has stopped, or at once if it ended without.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let stopped = waitid(WaitId::Pid(pid), options).unwrap().expect("the child changed state");
    assert_eq!(stopped.stopping_signal(), Some(19));
    assert_eq!(lines(&folder.path().join("chunks")), ["1 written"]);

    kill_process(pid, Signal::CONT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&folder.path().join("chunks")), ["1 written", "2 written", "3 written"]);
}
