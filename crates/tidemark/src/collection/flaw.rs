//! What is wrong with a collection, told in three parts.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Kind};

/// A flaw of one object: which, what was found, what was expected.
///
/// As an [`Error`] it is [`Kind::Broken`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flaw {
    /// Path of the object inside the collection.
    pub object: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
}

impl Flaw {
    /// A flaw of `object`; `found` and `expected` are clauses.
    pub fn new(
        object: impl Into<String>,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Flaw {
        Flaw { object: object.into(), found: found.to_string(), expected: expected.to_string() }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: found {}, expected {}", self.object, self.found, self.expected)
    }
}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Error {
        Error::new(Kind::Broken, flaw.to_string())
    }
}

/// Why a document could not be had: it is flawed, or it could not be read at all.
#[derive(Debug)]
pub(super) enum ReadFailure {
    Flawed(Flaw),
    Failed(Error),
}

impl From<Flaw> for ReadFailure {
    fn from(flaw: Flaw) -> ReadFailure {
        ReadFailure::Flawed(flaw)
    }
}

impl From<Error> for ReadFailure {
    fn from(error: Error) -> ReadFailure {
        ReadFailure::Failed(error)
    }
}

impl From<ReadFailure> for Error {
    fn from(failure: ReadFailure) -> Error {
        match failure {
            ReadFailure::Flawed(flaw) => flaw.into(),
            ReadFailure::Failed(error) => error,
        }
    }
}

/// Refuses with a [`Flaw`] of `object` unless `holds`.
pub(super) fn expect(
    holds: bool,
    object: &str,
    found: impl fmt::Display,
    expected: impl fmt::Display,
) -> Result<(), Flaw> {
    if holds { Ok(()) } else { Err(Flaw::new(object, found, expected)) }
}
