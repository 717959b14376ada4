//! The examples run, and show what they say.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// Runs an example that this build has made and gives what it printed.
fn run(example: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let folder = this.ancestors().nth(2).unwrap().join("examples");
    let program = folder.join(example);
    let output = Command::new(&program).output().unwrap_or_else(|error| {
        panic!("`{}`: {error}; a build of all targets makes it", program.display())
    });
    let printed = String::from_utf8(output.stdout).unwrap();
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {}\n{printed}{trouble}", output.status);
    printed
}

#[test]
fn every_example_is_run_here() {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let found: BTreeSet<String> = std::fs::read_dir(manifest.join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let here = ["backup_and_restore", "own_driver", "resume_after_kill"];
    assert_eq!(found, here.map(str::to_owned).into());
}

#[test]
fn an_earlier_point_is_restored_beside_the_live_table() {
    let printed = run("backup_and_restore");
    for line in [
        "backup 1: Full, 1000 rows, 0 of them deletes\n",
        "backup 2: Incremental, 200 rows, 0 of them deletes\n",
        "backup 3: Incremental, 700 rows, 700 of them deletes\n",
        "`orders_before` has the 1000 rows of ",
        "`orders` still has its 300 rows\n",
    ] {
        assert!(printed.contains(line), "`{line}` is not in:\n{printed}");
    }
}

#[test]
fn a_killed_restore_is_carried_on_by_the_same_call() {
    let printed = run("resume_after_kill");
    for line in [
        "beginning restore 1\n",
        "the child ended: signal: 9 (SIGKILL)\n",
        "carrying on restore 1\n",
        "the table has 80000 rows, ",
    ] {
        assert!(printed.contains(line), "`{line}` is not in:\n{printed}");
    }
}

#[test]
fn a_holder_who_wakes_up_late_is_refused() {
    let printed = run("own_driver");
    assert!(printed.contains("the first holder wakes up and is refused"), "{printed}");
}
