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
    /// What mends it.
    #[serde(skip)]
    pub remedy: Remedy,
}

/// What mends a flaw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remedy {
    /// The object as it was, from another copy of the collection.
    #[default]
    PutBack,
    /// The same of a log entry: what comes after it is not known without it.
    PutEntryBack,
    /// Its own name, or none: it lies where only objects of other names do.
    NameOrRemove,
}

impl Flaw {
    /// A flaw of `object`; `found` and `expected` are clauses.
    pub fn new(
        object: impl Into<String>,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Flaw {
        Flaw {
            object: object.into(),
            found: found.to_string(),
            expected: expected.to_string(),
            remedy: Remedy::default(),
        }
    }

    /// The same with another remedy.
    #[must_use]
    pub fn mended_by(self, remedy: Remedy) -> Flaw {
        Flaw { remedy, ..self }
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
