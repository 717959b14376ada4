//! What an error of the server or the connection means for the caller.

use postgres::error::{DbError, SqlState};

use crate::error::{Error, Kind};

/// Turns the client's error into ours: `call.map_err(failed("move the mark"))`.
pub fn failed(what: &str) -> impl FnOnce(postgres::Error) -> Error {
    move |error| match error.as_db_error() {
        Some(db) => of_server(what, db),
        // Whatever else goes wrong between two calls is the connection.
        None if is_connection(&error) => {
            Error::with_source(Kind::Transient, format!("{what}: the connection is lost"), error)
        }
        None => Error::with_source(Kind::Fatal, what.to_owned(), error),
    }
}

/// The same for an error while a connection is made.
pub fn connecting(what: &str) -> impl FnOnce(postgres::Error) -> Error {
    move |error| match error.as_db_error() {
        Some(db) => of_server(what, db),
        None if causes(&error).any(|cause| cause.is::<rustls::Error>()) => {
            let message = format!(
                "{what}: the server's certificate or encryption is not accepted; see `sslmode` and \
                 `sslrootcert`"
            );
            Error::with_source(Kind::Blocked, message, error)
        }
        None if causes(&error).any(|cause| cause.is::<std::io::Error>()) => {
            Error::with_source(Kind::Transient, format!("{what}: nobody answers"), error)
        }
        // A password is missing, or the server has no encryption: a person decides.
        None => Error::with_source(Kind::Blocked, what.to_owned(), error),
    }
}

/// An error of reading or writing a `COPY`, which arrives as one of input and output.
pub fn copying(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| match error.downcast::<postgres::Error>() {
        Ok(error) => failed(what)(error),
        Err(error) => {
            Error::with_source(Kind::Transient, format!("{what}: the connection is lost"), error)
        }
    }
}

fn is_connection(error: &postgres::Error) -> bool {
    error.is_closed() || causes(error).any(|cause| cause.is::<std::io::Error>())
}

fn causes(error: &postgres::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| {
        // An error of TLS travels inside one of input and output.
        let carried = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .map(|carried| carried as &(dyn std::error::Error + 'static));
        carried.or_else(|| error.source())
    })
}

/// The server's own words, with what they mean for the caller.
fn of_server(what: &str, db: &DbError) -> Error {
    let (kind, advice) = meaning(db.code());
    let mut message = format!("{what}: the server says: {}", db.message());
    for more in [db.detail(), db.hint()].into_iter().flatten() {
        message.push_str(&format!(" ({})", more.trim_end_matches('.')));
    }
    if let Some(advice) = advice {
        message.push_str(&format!("; {advice}"));
    }
    Error::with_source(kind, message, Refused { code: db.code().code().to_owned() })
}

/// The code of a server's error, which its sentence does not have.
#[derive(Debug)]
pub struct Refused {
    code: String,
}

impl Refused {
    /// The code of the error, if it is one of a server.
    pub fn code_of(error: &Error) -> Option<&str> {
        let source = std::error::Error::source(error)?;
        source.downcast_ref::<Refused>().map(|refused| refused.code.as_str())
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SQLSTATE {}", self.code)
    }
}

impl std::error::Error for Refused {}

const CARRIES_ON: &str = "the same command carries on afterwards";

/// Kind of a code, and what a person does about it.
///
/// The codes are those of the manual's appendix on errors.
fn meaning(code: &SqlState) -> (Kind, Option<&'static str>) {
    match code.code() {
        "53100" => {
            (Kind::Blocked, Some("the server needs free space; the same command carries on"))
        }
        "53300" => {
            (Kind::Transient, Some("let fewer shards run at once, or allow more connections"))
        }
        "53400" => (Kind::Blocked, Some(CARRIES_ON)),
        "28000" | "28P01" => (Kind::Blocked, Some("see user, password and pg_hba.conf")),
        "42501" => {
            (Kind::Blocked, Some("the role needs that permission; the same command carries on"))
        }
        "25006" => (Kind::Blocked, Some("a standby or a read-only database takes no writes")),
        "3D000" | "42P01" | "3F000" | "42704" => (Kind::NotFound, None),
        "42P07" | "42P06" | "42710" => (Kind::InTheWay, None),
        "0A000" => (Kind::Unsupported, None),
        // A lock that did not come, a deadlock, a statement that somebody ended.
        "40001" | "40P01" | "55P03" | "57014" => (Kind::Transient, None),
        // The session or the server was ended, or is not yet there.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => (Kind::Transient, None),
        code if code.starts_with("08") => (Kind::Transient, None),
        code if code.starts_with("53") => (Kind::Transient, None),
        _ => (Kind::Fatal, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_to_do() {
        for (code, kind) in [
            ("57P01", Kind::Transient),
            ("08006", Kind::Transient),
            ("40P01", Kind::Transient),
            ("53200", Kind::Transient),
            ("53100", Kind::Blocked),
            ("28P01", Kind::Blocked),
            ("42501", Kind::Blocked),
            ("3D000", Kind::NotFound),
            ("42P07", Kind::InTheWay),
            ("23505", Kind::Fatal),
            ("22P02", Kind::Fatal),
        ] {
            assert_eq!(meaning(&SqlState::from_code(code)).0, kind, "{code}");
        }
    }
}
