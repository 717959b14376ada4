//! The error every fallible function of this crate returns.
//!
//! An [`Error`] has a [`Kind`], which says what the caller does next, and a
//! sentence for people: what was being done, to what, what was found, what was
//! expected, what to do. The cause travels as `source`, unformatted.

use std::error::Error as StdError;
use std::{fmt, io};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
///
/// Whether the executor retries, pauses or fails is decided from the kind, in
/// `operation/retry.rs` and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Likely to pass by itself: a lost connection, a throttled store. Retry from the mark.
    Transient,
    /// A person must act first, and then the same work goes on: disk full, credentials lost.
    Blocked,
    /// The request is wrong: unknown column, bad value, an option that contradicts another.
    Usage,
    /// What was named does not exist: collection, backup, table, operation.
    NotFound,
    /// Someone else holds it: a lock, a lease, an operation, a log entry.
    Held,
    /// Somebody else was faster, and what was made here can never be published: another backup
    /// took the number. Nothing of theirs was touched; starting over builds on what they made.
    Overtaken,
    /// The target is in the way: the name exists, the copy was written to.
    InTheWay,
    /// The chain is broken: a missing, changed, truncated or contradictory file.
    Broken,
    /// Read back, the rows are not what the chain says.
    Mismatch,
    /// The ticket's fence is no longer current; another holder carries on. Stop, write nothing.
    Fenced,
    /// Stored data that this version cannot read: newer, or not ours.
    Unsupported,
    /// Anything else; the operation fails and its marks stay.
    Fatal,
}

impl Kind {
    /// Stable lower-case name, stored and shown in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Transient => "transient",
            Kind::Blocked => "blocked",
            Kind::Usage => "usage",
            Kind::NotFound => "not_found",
            Kind::Held => "held",
            Kind::Overtaken => "overtaken",
            Kind::InTheWay => "in_the_way",
            Kind::Broken => "broken",
            Kind::Mismatch => "mismatch",
            Kind::Fenced => "fenced",
            Kind::Unsupported => "unsupported",
            Kind::Fatal => "fatal",
        }
    }

    /// The kind with that [`name`](Kind::name).
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Every kind.
    pub const ALL: [Kind; 12] = [
        Kind::Transient,
        Kind::Blocked,
        Kind::Usage,
        Kind::NotFound,
        Kind::Held,
        Kind::Overtaken,
        Kind::InTheWay,
        Kind::Broken,
        Kind::Mismatch,
        Kind::Fenced,
        Kind::Unsupported,
        Kind::Fatal,
    ];
}

/// An error with its kind, its sentence and its cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is a sentence without a full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// The same, carrying the cause.
    pub fn with_source(
        kind: Kind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// An input or output error while doing `what`; a full disk and the like are
    /// [`Kind::Blocked`], and the sentence says what a person has to do.
    pub fn io(what: impl Into<String>, cause: io::Error) -> Error {
        Error::with_source(kind_of_io(&cause), advised(what.into(), &cause), cause)
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence, without the causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The same error, with what was being done in front: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// The sentence and all its causes, joined by `: `.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What to do about an operating system's error; one that carries an error of ours is of its kind.
pub(crate) fn kind_of_io(cause: &io::Error) -> Kind {
    use io::ErrorKind::*;
    if let Some(ours) = cause.get_ref().and_then(|carried| carried.downcast_ref::<Error>()) {
        return ours.kind();
    }
    if is_too_many_files(cause) {
        return Kind::Blocked;
    }
    match cause.kind() {
        StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied | FileTooLarge => {
            Kind::Blocked
        }
        NotFound => Kind::NotFound,
        Interrupted | TimedOut | WouldBlock | ResourceBusy => Kind::Transient,
        _ => Kind::Fatal,
    }
}

/// Numbers of the operating system that `io::ErrorKind` has no stable name for.
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// Whether the machine or this process has no descriptor left.
pub(crate) fn is_too_many_files(cause: &io::Error) -> bool {
    cause.raw_os_error().is_some_and(|code| TOO_MANY_OPEN_FILES.contains(&code))
}

/// `what` with what a person has to do about `cause` before the work can go on, where that is
/// known.
pub(crate) fn advised(what: String, cause: &io::Error) -> String {
    match advice_on_io(cause) {
        Some(advice) => format!("{what}: {advice}"),
        None => what,
    }
}

/// What a person has to do about an operating system's error before the work can go on.
pub(crate) fn advice_on_io(cause: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::*;
    if is_too_many_files(cause) {
        return Some(
            "too many files are open; raise the limit (`ulimit -n`), or let fewer shards run at \
             once (`--shards-in-flight`), then run the same command again",
        );
    }
    match cause.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            Some("free space is needed here; the same command carries on afterwards")
        }
        ReadOnlyFilesystem | PermissionDenied => {
            Some("permission is needed here; the same command carries on afterwards")
        }
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_from_its_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
    }

    #[test]
    fn a_full_disk_asks_for_a_person() {
        let full = io::Error::from_raw_os_error(28);
        let error = Error::io("write the mark", full);
        assert_eq!(error.kind(), Kind::Blocked);
        assert!(error.message().contains("free space"), "{error}");
    }

    #[test]
    fn too_many_open_files_ask_for_a_person_and_say_what_to_do() {
        for code in [23, 24] {
            let error = Error::io("open `part`", io::Error::from_raw_os_error(code));
            assert_eq!(error.kind(), Kind::Blocked);
            assert!(error.message().contains("ulimit -n"), "{error}");
        }
    }
}
