//! The one place that decides what a store's failure means for the caller.

use std::error::Error as StdError;
use std::io;

use crate::error::{Error, Kind, advised, kind_of_io};

/// What the caller can do about `cause`, looking through whatever wraps it:
/// Parquet's errors, an [`io::Error`] of a reader of ours, object_store's own.
///
/// `None` when nothing in it came from a store.
pub fn kind_of_cause(cause: &(dyn StdError + 'static)) -> Option<Kind> {
    let mut next = Some(cause);
    let mut store_name = None;
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours.kind());
        }
        if let Some(store) = error.downcast_ref::<object_store::Error>() {
            match kind_of_store(store) {
                Some(kind) => return Some(kind),
                None => store_name = generic_store(store),
            }
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // `source()` of an io::Error skips the error it carries.
            let carried = io.get_ref().and_then(|carried| kind_of_cause(carried));
            return Some(carried.unwrap_or_else(|| kind_of_disk(io)));
        }
        next = error.source();
    }
    // What a remote store reports without a cause of its own is a throttled, broken or
    // overloaded service after the client's own retries; memory has no such days.
    store_name.map(|name| if name == "InMemory" { Kind::Fatal } else { Kind::Transient })
}

fn generic_store(error: &object_store::Error) -> Option<&'static str> {
    match error {
        object_store::Error::Generic { store, .. } => Some(store),
        _ => None,
    }
}

/// `None` where only the cause tells.
fn kind_of_store(error: &object_store::Error) -> Option<Kind> {
    use object_store::Error::{
        AlreadyExists, InvalidPath, NotFound, NotImplemented, NotSupported, PermissionDenied,
        Precondition, Unauthenticated, UnknownConfigurationKey,
    };
    match error {
        NotFound { .. } => Some(Kind::NotFound),
        AlreadyExists { .. } | Precondition { .. } => Some(Kind::Held),
        PermissionDenied { .. } | Unauthenticated { .. } => Some(Kind::Blocked),
        NotSupported { .. } | NotImplemented { .. } => Some(Kind::Unsupported),
        InvalidPath { .. } | UnknownConfigurationKey { .. } => Some(Kind::Usage),
        _ => None,
    }
}

fn kind_of_disk(cause: &io::Error) -> Kind {
    use io::ErrorKind::{
        AlreadyExists, BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset,
        HostUnreachable, IsADirectory, NetworkDown, NetworkUnreachable, NotADirectory,
        NotConnected, StaleNetworkFileHandle, UnexpectedEof,
    };
    match cause.kind() {
        ConnectionRefused
        | ConnectionReset
        | ConnectionAborted
        | NotConnected
        | BrokenPipe
        | NetworkDown
        | NetworkUnreachable
        | HostUnreachable
        | StaleNetworkFileHandle
        | UnexpectedEof => Kind::Transient,
        AlreadyExists => Kind::Held,
        // A file where the layout has a folder, or the reverse.
        NotADirectory | IsADirectory => Kind::Broken,
        _ => kind_of_io(cause),
    }
}

/// The error of a store that failed while doing `what`.
pub(super) fn failure(
    what: impl Into<String>,
    cause: impl StdError + Send + Sync + 'static,
) -> Error {
    let kind = kind_of_cause(&cause).unwrap_or(Kind::Fatal);
    let mut what = what.into();
    let mut next: Option<&(dyn StdError + 'static)> = Some(&cause);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            what = advised(what, io);
            break;
        }
        next = error.source();
    }
    Error::with_source(kind, what, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn means(cause: impl StdError + 'static, kind: Kind) {
        assert_eq!(kind_of_cause(&cause), Some(kind), "{cause}");
    }

    fn generic(store: &'static str, cause: io::Error) -> object_store::Error {
        object_store::Error::Generic { store, source: Box::new(cause) }
    }

    #[test]
    fn every_failure_of_a_store_says_what_to_do() {
        let text = |text: &str| -> Box<dyn StdError + Send + Sync> { text.to_owned().into() };
        let path = || "log/000001.json".to_owned();
        means(object_store::Error::NotFound { path: path(), source: text("gone") }, Kind::NotFound);
        means(
            object_store::Error::AlreadyExists { path: path(), source: text("there") },
            Kind::Held,
        );
        means(object_store::Error::Precondition { path: path(), source: text("") }, Kind::Held);
        means(
            object_store::Error::PermissionDenied { path: path(), source: text("") },
            Kind::Blocked,
        );
        means(
            object_store::Error::Generic { store: "S3", source: text("503 Slow Down") },
            Kind::Transient,
        );
        means(generic("S3", io::ErrorKind::ConnectionReset.into()), Kind::Transient);
        means(generic("S3", io::ErrorKind::TimedOut.into()), Kind::Transient);
        means(io::Error::from_raw_os_error(28), Kind::Blocked);
        means(io::Error::from_raw_os_error(24), Kind::Blocked);
        means(io::Error::from(io::ErrorKind::PermissionDenied), Kind::Blocked);
    }

    #[test]
    fn a_kind_survives_being_wrapped_by_readers_and_parquet() {
        let ours = Error::new(Kind::Transient, "no answer");
        let wrapped = parquet::errors::ParquetError::from(io::Error::other(ours));
        means(wrapped, Kind::Transient);
    }

    #[test]
    fn what_no_store_said_is_not_guessed() {
        let other = parquet::errors::ParquetError::General("bad page".to_owned());
        assert_eq!(kind_of_cause(&other), None);
    }

    #[test]
    fn too_many_open_files_say_what_to_do() {
        let cause = io::Error::from_raw_os_error(24);
        let error = failure("open `part`", cause);
        assert!(error.message().contains("ulimit -n"), "{error}");
    }
}
