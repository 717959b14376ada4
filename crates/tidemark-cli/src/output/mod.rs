//! What the command says: results on standard output, everything else on standard error.
//!
//! With `--json` every message is one line with a `message_type`, on standard output:
//! `status`, `error`, `summary`, `exit_error`. A reader that goes away is no error.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};
use tidemark::{Error, Result};

use crate::exit::{self, Exit};
use crate::shell;

pub(crate) mod human;
pub(crate) mod log;
pub(crate) mod operation;
pub(crate) mod status;
pub(crate) mod usage;
pub(crate) mod verify;

/// Where and how messages go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    /// Whether standard output carries rows, so that messages must not.
    rows_on_stdout: bool,
    /// Where the operations of this command are recorded; see [`shell::located`].
    locator: &'static [String],
}

impl Output {
    /// Messages as text, or as JSON lines; `locator` as for [`shell::located`].
    pub(crate) fn new(json: bool, locator: Vec<String>) -> Output {
        // One for the process, which ends with it.
        Output { json, rows_on_stdout: false, locator: locator.leak() }
    }

    /// The same, with standard output left to rows.
    #[must_use]
    pub(crate) fn beside_rows(self) -> Output {
        Output { rows_on_stdout: true, ..self }
    }

    /// Whether messages are JSON lines.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// The result: `view` as JSON with `verb`, or the text that `human` makes of it.
    ///
    /// # Errors
    /// When standard output cannot be written, other than for want of a reader.
    pub(crate) fn summary(
        self,
        verb: &str,
        view: &impl Serialize,
        human: impl FnOnce() -> String,
    ) -> Result<()> {
        if !self.json {
            return self.print(&human());
        }
        let mut message = json!({"message_type": "summary", "verb": verb});
        if let (Some(message), Value::Object(fields)) = (message.as_object_mut(), plain(view)) {
            let is_free = |name: &&str| !fields.contains_key(*name);
            debug_assert!(["message_type", "verb"].iter().all(is_free), "a view of `{verb}`");
            message.extend(fields);
        }
        self.print(&line(&message))
    }

    /// How far an operation is; only as JSON, people see bars.
    ///
    /// # Errors
    /// As [`summary`](Self::summary).
    pub(crate) fn status(self, view: &status::StatusView) -> Result<()> {
        let mut message = json!({"message_type": "status"});
        if let (Some(message), Value::Object(fields)) = (message.as_object_mut(), plain(view)) {
            message.extend(fields);
        }
        self.print(&line(&message))
    }

    /// Something people should know, and nothing to be alarmed about; a status message that
    /// has nothing but a `notice`.
    pub(crate) fn notice(self, message: &str) {
        let message = &shell::located(message, self.locator);
        if self.json {
            // A result that cannot be written is told when it is written.
            let _ = self.print(&line(&json!({"message_type": "status", "notice": message})));
        } else {
            self.aside(message);
        }
    }

    /// Trouble that is being dealt with. Text goes to standard error, where it may fail to
    /// arrive without stopping anything.
    pub(crate) fn trouble(self, message: &str) {
        let message = &shell::located(message, self.locator);
        if self.json {
            let message = json!({"message_type": "error", "message": message});
            // A result that cannot be written is told when it is written.
            let _ = self.print(&line(&message));
        } else {
            self.aside(message);
        }
    }

    /// A line for people only, on standard error.
    pub(crate) fn note(self, message: &str) {
        if !self.json {
            self.aside(message);
        }
    }

    /// Says what ended the command, and gives the code that it ends with.
    pub(crate) fn exit_error(self, error: &Error) -> Exit {
        self.exit_with(exit::of_kind(error.kind()), error.kind().name(), &error.chain())
    }

    /// The same in other words than an error's.
    pub(crate) fn exit_with(self, exit: Exit, kind: &str, message: &str) -> Exit {
        let message = &shell::located(message, self.locator);
        if self.json {
            let message = json!({
                "message_type": "exit_error",
                "code": exit.code(),
                "kind": kind,
                "message": message,
            });
            // There is nobody left to tell.
            let _ = self.print(&line(&message));
        } else {
            self.aside(&format!("tidemark: {message}"));
        }
        exit
    }

    fn print(self, text: &str) -> Result<()> {
        let written = if self.rows_on_stdout {
            write_all(io::stderr().lock(), text)
        } else {
            write_all(io::stdout().lock(), text)
        };
        written.map_err(|cause| Error::io("write the result to standard output", cause))
    }

    fn aside(self, text: &str) {
        // Without a standard error there is nobody to tell.
        let _ = write_all(io::stderr().lock(), &format!("{text}\n"));
    }
}

/// Writes it all; nobody reading on is as good as everybody having read.
fn write_all(mut stream: impl Write, text: &str) -> io::Result<()> {
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn plain(view: &impl Serialize) -> Value {
    serde_json::to_value(view).expect("a view is plain data")
}

fn line(message: &Value) -> String {
    format!("{message}\n")
}
