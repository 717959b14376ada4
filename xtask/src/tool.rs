//! The programs that stages need beside cargo and rustc, and how to get them.
//!
//! No C compiler is looked for: this program could not have been linked without.

use std::path::Path;

use crate::stage::command_in;

/// A program that a stage needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The command that succeeds, and prints the version, where the tool is present.
    pub(crate) probe: &'static [&'static str],
    /// The command that installs it.
    pub(crate) install: &'static [&'static str],
}

pub(crate) const RUSTFMT: Tool = Tool {
    name: "rustfmt",
    probe: &["cargo", "fmt", "--version"],
    install: &["rustup", "component", "add", "rustfmt"],
};

pub(crate) const CLIPPY: Tool = Tool {
    name: "clippy",
    probe: &["cargo", "clippy", "--version"],
    install: &["rustup", "component", "add", "clippy"],
};

/// Runs each test in its own process, with a deadline.
pub(crate) const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    probe: &["cargo", "nextest", "--version"],
    // A fixed version, so that a new release cannot break an old commit.
    install: &["cargo", "install", "--locked", "cargo-nextest", "--version", "0.9.143"],
};

/// Checks `deny.toml`.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    probe: &["cargo", "deny", "--version"],
    install: &["cargo", "install", "--locked", "cargo-deny", "--version", "0.20.2"],
};

impl Tool {
    /// The first line that the tool prints about itself; `None` where it is missing.
    pub(crate) fn version(&self, root: &Path) -> Option<String> {
        let (program, args) = self.probe.split_first()?;
        let output = command_in(root, program).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| text.lines().next().unwrap_or(self.name).to_owned())
    }
}
