//! PostgreSQL: the server, its types and its catalogs.
//!
//! A [`Server`] is a parsed URL, a [`Session`] one connection with the settings that values
//! depend on pinned. [`catalog`] reads what tables there are; [`types`] decides how each
//! column travels and translates rows from and to the two forms of `COPY`. [`PostgresSource`]
//! is the database as a source of backups, [`PostgresTarget`] as a target of restores.

mod capture;
pub mod catalog;
mod changes;
mod collapse;
pub mod connect;
mod cut;
pub mod error;
pub(crate) mod pgoutput;
pub(crate) mod pgpass;
mod replication;
mod scan;
pub mod setup;
pub mod slot;
pub mod source;
pub mod target;
mod text;
mod tls;
pub mod types;

pub use connect::{Purpose, Server, Session};
pub use source::{PostgresSource, SourceOptions};
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
