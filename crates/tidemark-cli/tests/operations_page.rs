//! The examples of `docs/operations.md`, run one after the other as people would type them.

use std::process::Command;

mod support;

/// Verbs that the page shows on an operation that has ended by then: there is nothing to do.
const TOO_LATE: [&str; 3] = ["operation pause 1", "operation cancel 1", "operation set 1"];

#[test]
fn every_example_of_the_page_does_what_it_says() {
    let package = support::at_run_time("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    let root = package.join("../..");
    let page = std::fs::read_to_string(root.join("docs/operations.md")).expect("the page");
    let binary = support::at_run_time("CARGO_BIN_EXE_tidemark", env!("CARGO_BIN_EXE_tidemark"));
    let folder = support::temp_folder();
    let path = std::env::var("PATH").expect("a path to look for commands");
    let binaries = binary.parent().expect("a file lies in a folder").display();
    let examples: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        let output = Command::new("sh")
            .args(["-c", example])
            .current_dir(folder.path())
            .env("PATH", format!("{binaries}:{path}"))
            .env("XDG_STATE_HOME", folder.path().join("state"))
            .output()
            .expect("a shell");
        let expected = i32::from(TOO_LATE.iter().any(|verb| example.contains(verb)));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{example}\n{said}");
    }
}
