//! Exit codes: what a script learns without reading a line.

use std::process::ExitCode;

use tidemark::Kind;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done, and proven where there is something to prove.
    Done = 0,
    /// Failed; what was done is kept.
    Failed = 1,
    /// The command line, or a file it names, is wrong.
    Usage = 2,
    /// Done, and there is something people should know.
    Warnings = 3,
    /// Read back, the rows are not what the backup says.
    Mismatch = 4,
    /// Stopped; the same command carries on.
    Stopped = 5,
    /// No such collection, backup, table or operation.
    NotFound = 10,
    /// Another process holds it.
    Held = 11,
    /// The chain of backups is broken.
    Broken = 13,
    /// Something in the target is in the way.
    InTheWay = 14,
    /// Interrupted a second time.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// How a command ends whose work ended with an error of that kind.
pub(crate) fn of_kind(kind: Kind) -> Exit {
    match kind {
        // A person acts or time passes, and then the same command goes on.
        Kind::Transient | Kind::Blocked => Exit::Stopped,
        Kind::Usage => Exit::Usage,
        Kind::NotFound => Exit::NotFound,
        // Fenced: another process took the operation over and carries on with it.
        Kind::Held | Kind::Overtaken | Kind::Fenced => Exit::Held,
        Kind::InTheWay => Exit::InTheWay,
        Kind::Broken => Exit::Broken,
        Kind::Mismatch => Exit::Mismatch,
        Kind::Unsupported | Kind::Fatal => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_exit_code() {
        let table = [
            (Kind::Transient, 5),
            (Kind::Blocked, 5),
            (Kind::Usage, 2),
            (Kind::NotFound, 10),
            (Kind::Held, 11),
            (Kind::Overtaken, 11),
            (Kind::InTheWay, 14),
            (Kind::Broken, 13),
            (Kind::Mismatch, 4),
            (Kind::Fenced, 11),
            (Kind::Unsupported, 1),
            (Kind::Fatal, 1),
        ];
        assert_eq!(table.map(|(kind, _)| kind), Kind::ALL);
        for (kind, code) in table {
            assert_eq!(of_kind(kind).code(), code, "{kind:?}");
        }
    }
}
