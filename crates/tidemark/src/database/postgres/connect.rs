//! From a URL to a session: who is asked, how it is checked, what is pinned.

use std::fmt;
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::{CancelToken, Client, Config, NoTls};

use crate::database::postgres::error::{connecting, failed};
use crate::database::postgres::pgpass;
use crate::database::postgres::tls::{Tls, Trust};
use crate::error::{Error, Kind, Result};
use crate::percent;

/// How long a connection may take to come about; a URL's `connect_timeout` wins.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sent bytes may stay unacknowledged before the connection counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence after which the other end is asked whether it is still there.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(20);
/// Where a server listens that no host is named for, as Debian and Red Hat build it.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// Oldest server that is spoken to: older ones are no longer maintained.
const VERSION_MIN: u32 = 130_000;

/// What values look like and mean depends on these, so they are the same in every session,
/// whatever server, database and role say.
///
/// An empty `search_path` would also let a name of `pg_catalog` win; naming it says so.
const PINNED: &str = "
    SET search_path = pg_catalog;
    SET client_encoding = 'UTF8';
    SET standard_conforming_strings = on;
    SET TimeZone = 'UTC';
    SET DateStyle = 'ISO, YMD';
    SET IntervalStyle = 'postgres';
    SET extra_float_digits = 3;
    SET bytea_output = 'hex';
    SET lc_monetary = 'C';
    SET lc_numeric = 'C';
    SET xmloption = 'content';
    SET array_nulls = on;
    SET quote_all_identifiers = off;
    SET statement_timeout = 0;
    SET client_min_messages = warning;
";

/// A read of everything or an error: rows that a policy hides would be missing in the backup.
const PINNED_READ: &str = "
    SET row_security = off;
    SET default_transaction_read_only = on;
    SET lock_timeout = '30s';
    SET idle_in_transaction_session_timeout = 0;
";

/// A commit that is reported is durable, and a writer that stops in the middle of its
/// transaction lets go of its locks.
const PINNED_WRITE: &str = "
    SET row_security = off;
    SET default_transaction_read_only = off;
    SET synchronous_commit = on;
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '60s';
";

/// What a session is for: decides what is pinned besides the look of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Backup and proof. Cannot write; may stay in one transaction for hours.
    Read,
    /// Restore. Durable commits; never idle in a transaction for long.
    Write,
}

/// A database on a server, as a URL names it.
///
/// The password comes from the URL, from `PGPASSWORD` or from the password file, as with
/// `psql`, and is in no text that this type gives.
#[derive(Clone)]
pub struct Server {
    config: Config,
    trust: Trust,
    shown: String,
}

impl Server {
    /// Whether `text` looks like the URL of such a server.
    pub fn is_url(text: &str) -> bool {
        text.starts_with("postgres://") || text.starts_with("postgresql://")
    }

    /// Reads `postgres://user@host:port/database?sslmode=verify-full&sslrootcert=FILE`.
    ///
    /// `sslmode` and `sslrootcert` mean what they mean for `psql`: `require` encrypts and
    /// asks for nothing unless a root certificate is named, `verify-ca` checks who signed
    /// the server's certificate, `verify-full` its name too. `sslrootcert=system` stands for
    /// the certificates of the machine. Without a host, the socket in `/var/run/postgresql`.
    ///
    /// # Errors
    /// [`Kind::Usage`]: no URL, an unknown parameter or value, or a root certificate that
    /// cannot be read. The message never repeats the URL, since it may hold a password.
    pub fn parse(url: &str) -> Result<Server> {
        let (url, asked) = split_tls(url)?;
        let mut config: Config = url.parse().map_err(|_| {
            usage(
                "the URL of the server cannot be read; expected \
                 postgres://USER@HOST:PORT/DATABASE?sslmode=MODE, with `%40` for `@`, `%2F` for \
                 `/` and the like in names and passwords, and no parameters but those of the \
                 manual",
            )
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            match std::env::var("PGHOST") {
                Ok(host) if !host.is_empty() => config.host(&host),
                _ => config.host(SOCKET_DIRECTORY),
            };
        }
        if config.get_user().is_none()
            && let Ok(user) = std::env::var("PGUSER")
            && !user.is_empty()
        {
            config.user(&user);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        config.keepalives_idle(KEEPALIVES_IDLE);
        if config.get_application_name().is_none() {
            config.application_name("tidemark");
        }
        let (mode, trust) = asked.resolve()?;
        config.ssl_mode(mode);
        let shown = shown(&config);
        if config.get_password().is_none()
            && let Some(password) = pgpass::password(&config)?
        {
            config.password(password);
        }
        // Notices are for people at a prompt; errors say what we need.
        config.notice_callback(|_| {});
        Ok(Server { config, trust, shown })
    }

    /// A URL without its password, to be shown, recorded and opened again; whatever it looks like.
    ///
    /// Parameters stay: whoever opens it again must not trust anybody else.
    pub fn without_password(url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
        // As the client library reads it: what stands before the first `@`, slashes and all.
        let (user, rest) = match rest.split_once('@') {
            Some((credentials, rest)) => {
                (Some(credentials.split(':').next().unwrap_or_default()), rest)
            }
            None => (None, rest),
        };
        let (base, query) = match rest.split_once('?') {
            Some((base, query)) => (base, Some(query)),
            None => (rest, None),
        };
        let mut shown = format!("{scheme}://");
        if let Some(user) = user {
            shown.push_str(&format!("{user}@"));
        }
        shown.push_str(base);
        let kept = query.unwrap_or_default().split('&');
        let kept: Vec<&str> =
            kept.filter(|pair| !pair.is_empty() && !pair.starts_with("password=")).collect();
        if !kept.is_empty() {
            shown.push_str(&format!("?{}", kept.join("&")));
        }
        shown
    }

    /// The password that the URL itself has, if any; not that of the environment.
    pub fn password_of(url: &str) -> Option<String> {
        let (url, _) = split_tls(url).ok()?;
        let config: Config = url.parse().ok()?;
        config.get_password().and_then(|it| String::from_utf8(it.to_vec()).ok())
    }

    /// The URL without its password and parameters, for people.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The parsed URL, for what speaks the protocol itself.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whose certificates are accepted.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Ends what a session is doing, if it still does it.
    pub(super) fn cancel(&self, token: &CancelToken) {
        // It is best effort: the server need not hear of it in time.
        let _ = match (self.config.get_ssl_mode(), Tls::new(&self.trust)) {
            (SslMode::Disable, _) | (_, Err(_)) => token.cancel_query(NoTls),
            (_, Ok(tls)) => token.cancel_query(tls),
        };
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`Kind::Transient`] when nobody answers or the server is starting or full,
    /// [`Kind::Blocked`] when it does not let us in or its certificate is not the one that is
    /// trusted, [`Kind::NotFound`] without that database, [`Kind::Unsupported`] for a server
    /// that is too old.
    pub fn connect(&self, purpose: Purpose) -> Result<Session> {
        let what = format!("connect to `{}`", self.shown);
        let client = match self.config.get_ssl_mode() {
            SslMode::Disable => self.config.connect(NoTls),
            _ => self.config.connect(Tls::new(&self.trust)?),
        };
        let mut client = client.map_err(connecting(&what))?;
        let purposed = match purpose {
            Purpose::Read => PINNED_READ,
            Purpose::Write => PINNED_WRITE,
        };
        let pinned = format!("{PINNED}{purposed}");
        client.batch_execute(&pinned).map_err(failed("set up a session"))?;
        let facts = "SELECT current_setting('server_version_num')::int, pg_backend_pid(), \
                     current_setting('server_version')";
        let facts = client.query_one(facts, &[]).map_err(failed("ask for the version"))?;
        let version: i32 = facts.get(0);
        let version = u32::try_from(version).unwrap_or(0);
        if version < VERSION_MIN {
            let found: String = facts.get(2);
            let message = format!(
                "`{}` is PostgreSQL {found}; version {} or newer is needed",
                self.shown,
                VERSION_MIN / 10_000
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        Ok(Session { client, version, backend: facts.get(1), name: String::new() })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.shown).finish()
    }
}

/// One connection, with everything pinned that values depend on.
pub struct Session {
    client: Client,
    version: u32,
    backend: i32,
    name: String,
}

impl Session {
    /// The client's own interface; give its errors to [`failed`].
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// `server_version_num`: 150004 is 15.4.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The server's process of this session.
    pub fn backend(&self) -> i32 {
        self.backend
    }

    /// What the session was [called](Self::set_name) last; empty at first.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Remembers what the session calls itself now.
    pub(crate) fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Whether the connection is known to be lost.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// `sslmode` and `sslrootcert` as they were typed.
#[derive(Default)]
struct AskedTls {
    mode: Option<String>,
    root: Option<String>,
}

impl AskedTls {
    fn resolve(self) -> Result<(SslMode, Trust)> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let root = self.root.or_else(|| variable("PGSSLROOTCERT"));
        let asked = self.mode.or_else(|| variable("PGSSLMODE"));
        let system = root.as_deref() == Some("system");
        let mode = asked.as_deref().unwrap_or(if system { "verify-full" } else { "prefer" });
        let named = |verify_name: bool| {
            let Some(root) = &root else {
                return Err(usage(format!(
                    "`sslmode={mode}` needs to know whom to trust: add `sslrootcert=FILE`, or \
                     `sslrootcert=system` for the certificates of this machine"
                )));
            };
            Trust::roots(root, verify_name)
        };
        Ok(match mode {
            "disable" => (SslMode::Disable, Trust::Anyone),
            "prefer" | "allow" => (SslMode::Prefer, Trust::Anyone),
            // As `psql` does it: a root certificate that is named is also looked at.
            "require" if root.is_some() => (SslMode::Require, named(false)?),
            "require" => (SslMode::Require, Trust::Anyone),
            "verify-ca" if system => {
                let message = "`sslrootcert=system` needs `sslmode=verify-full`: anybody can get \
                               a certificate that this machine trusts, for another name";
                return Err(usage(message));
            }
            "verify-ca" => (SslMode::Require, named(false)?),
            "verify-full" => (SslMode::Require, named(true)?),
            // Not repeated: a URL that is put together wrongly may have a password here.
            _ => {
                let message = "unknown `sslmode`; there are disable, allow, prefer, require, \
                               verify-ca, verify-full";
                return Err(usage(message));
            }
        })
    }
}

/// Takes the parameters out of a URL that the client library does not know.
fn split_tls(url: &str) -> Result<(String, AskedTls)> {
    if !Server::is_url(url) {
        return Err(usage("the URL of a PostgreSQL server begins with `postgres://`"));
    }
    let mut asked = AskedTls::default();
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), asked)) };
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => asked.mode = Some(decoded(value)?),
            Some(("sslrootcert", value)) => asked.root = Some(decoded(value)?),
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    Ok((format!("{base}{query}"), asked))
}

fn decoded(text: &str) -> Result<String> {
    percent::decode(text)
        .ok_or_else(|| usage("a parameter of the URL has a `%` that is not followed by two digits"))
}

/// `postgres://user@host:port/database`, with what was left out left out.
fn shown(config: &Config) -> String {
    let mut text = "postgres://".to_owned();
    if let Some(user) = config.get_user() {
        text.push_str(&format!("{user}@"));
    }
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| match host {
        Host::Tcp(host) => format!("{host}:{}", port(at)),
        Host::Unix(path) => format!("{}:{}", path.display(), port(at)),
    });
    text.push_str(&hosts.collect::<Vec<String>>().join(","));
    if let Some(database) = config.get_dbname() {
        text.push_str(&format!("/{database}"));
    }
    text
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_server_has_its_password() {
        let url = "postgres://me:s%40cret@h.example:5433/db?sslmode=disable";
        let server = Server::parse(url).unwrap();
        assert_eq!(server.shown(), "postgres://me@h.example:5433/db");
        let all = format!("{server:?} {} {:?}", server.shown(), server.config());
        assert!(!all.contains("s@cret") && !all.contains("s%40cret"), "{all}");
    }

    #[test]
    fn a_url_is_written_down_without_its_password_and_reads_back() {
        for (url, written) in [
            ("postgres://me:pw@h:1/db?sslmode=disable", "postgres://me@h:1/db?sslmode=disable"),
            ("postgres://me@h/db", "postgres://me@h/db"),
            ("postgres://h/db?password=pw&user=me", "postgres://h/db?user=me"),
            ("postgres:///db", "postgres:///db"),
        ] {
            assert_eq!(Server::without_password(url), written);
            assert!(Server::parse(written).is_ok());
        }
        assert_eq!(Server::password_of("postgres://me:p%40w@h/db"), Some("p@w".to_owned()));
        assert_eq!(Server::password_of("postgres://me@h/db"), None);
    }

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for url in [
            "postgres://me:secret@h:port/db",
            "postgres://me:secret@h/db?sslmode=secret",
            "postgres://me:secret@h/db?secret=1",
            "postgres://me:secret@h/db?sslrootcert=%zz&secret",
            "mysql://me:secret@h/db",
        ] {
            let error = Server::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{url}");
            assert!(!error.chain().contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_password_and_opens_the_same_server() {
        for (url, shown) in [
            (
                "postgres://me:secret@h:5433/db?sslmode=disable",
                "postgres://me@h:5433/db?sslmode=disable",
            ),
            ("postgres://me:sec/ret@h/db", "postgres://me@h/db"),
            ("postgres://:secret@h/db", "postgres://@h/db"),
            (
                "postgres://me@h/db?password=secret&sslmode=require",
                "postgres://me@h/db?sslmode=require",
            ),
            ("postgresql://h/db?password=secret", "postgresql://h/db"),
            ("postgres:///db", "postgres:///db"),
            ("embedded:a", "embedded:a"),
        ] {
            assert_eq!(Server::without_password(url), shown);
        }
    }

    #[test]
    fn verification_needs_somebody_to_trust() {
        for mode in ["verify-ca", "verify-full"] {
            let error = Server::parse(&format!("postgres://h/db?sslmode={mode}")).unwrap_err();
            assert!(error.message().contains("sslrootcert"), "{error}");
        }
        let missing = "postgres://h/db?sslmode=verify-full&sslrootcert=/no/such/file";
        assert_eq!(Server::parse(missing).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn without_a_host_the_socket_is_meant() {
        let server = Server::parse("postgres:///db?sslmode=disable").unwrap();
        if std::env::var_os("PGHOST").is_none() {
            assert!(server.shown().contains(SOCKET_DIRECTORY), "{}", server.shown());
        }
    }
}
