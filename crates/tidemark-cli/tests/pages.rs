//! The examples of the pages, run one after the other as people would type them.

use std::path::{Path, PathBuf};
use std::process::Command;

mod support;

/// Verbs that the page shows on an operation that has ended by then: there is nothing to do.
const TOO_LATE: [&str; 3] = ["operation pause 1", "operation cancel 1", "operation set 1"];

fn root() -> PathBuf {
    support::at_run_time("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("the page")
}

/// Runs a line in a shell that finds the program; gives what it printed.
#[track_caller]
fn type_in(folder: &Path, line: &str, expected: i32) -> String {
    let binary = support::at_run_time("CARGO_BIN_EXE_tidemark", env!("CARGO_BIN_EXE_tidemark"));
    let path = std::env::var("PATH").expect("a path to look for commands");
    let binaries = binary.parent().expect("a file lies in a folder").display();
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{binaries}:{path}"))
        .env("XDG_STATE_HOME", folder.join("state"))
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(expected), "{line}\n{said}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_example_of_the_page_of_operations_does_what_it_says() {
    let page = page("docs/operations.md");
    let folder = support::temp_folder();
    let examples: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        let expected = i32::from(TOO_LATE.iter().any(|verb| example.contains(verb)));
        type_in(folder.path(), example, expected);
    }
}

#[test]
fn six_commands_of_the_readme_restore_a_table_beside_the_live_one() {
    let page = page("README.md");
    let mut blocks = page.split("```\n").skip(1).step_by(2);
    let block: Vec<&str> =
        blocks.next().expect("the README begins with commands").lines().collect();
    let [install, commands @ ..] = &block[..] else { panic!("{block:?}") };
    assert_eq!(*install, "cargo install --path crates/tidemark-cli");
    assert!(commands.len() <= 5, "{commands:?}");
    let folder = support::temp_folder();
    std::os::unix::fs::symlink(root().join("examples"), folder.path().join("examples"))
        .expect("a link to the data");
    for command in commands {
        assert!(command.starts_with("tidemark "), "{command}");
        type_in(folder.path(), command, 0);
    }

    let dump = "tidemark db dump --db shop --table ";
    let restored = type_in(folder.path(), &format!("{dump}companies_last_night"), 0);
    let live = type_in(folder.path(), &format!("{dump}companies"), 0);
    // The files are sorted by another order than bytes.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let file = |prefix: &str| {
        let line = commands.iter().find(|line| line.contains(prefix)).expect("a load");
        let name = line.split(' ').next_back().expect("its file");
        std::fs::read_to_string(root().join(name)).expect("the data")
    };
    assert_eq!(sorted(&restored), sorted(&file("--key")));
    assert_eq!(sorted(&live), sorted(&file("--sync")));
}
