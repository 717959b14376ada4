//! PostgreSQL: the server, its types and its catalogs.
//!
//! A [`Server`] is a parsed URL, a [`Session`] one connection with the settings that values
//! depend on pinned. [`catalog`] reads what tables there are; [`types`] decides how each
//! column travels and translates rows from and to the two forms of `COPY`. [`PostgresTarget`]
//! is the database as a target of restores.

pub mod catalog;
pub mod connect;
pub mod error;
pub(crate) mod pgpass;
pub mod target;
mod tls;
pub mod types;

pub use connect::{Purpose, Server, Session};
pub use target::PostgresTarget;

/// What [`Structure::engine`](crate::database::Structure::engine) says for this engine.
pub const ENGINE: &str = "postgresql";

/// An identifier as SQL, always in quotes.
pub fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A string constant as SQL, whatever `standard_conforming_strings` says: sessions pin it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
