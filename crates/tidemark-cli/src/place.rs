//! Databases and state directories: where operations are recorded, and how they are opened.
//!
//! A restore is recorded in its target, a backup beside its source where these are embedded;
//! what is done with servers, and a verification, in the state directory; `--state` overrides
//! all of them. [`Place`] is one of these, opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tidemark::backup::BackupOptions;
use tidemark::catalog::{Catalog, LmdbCatalog};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
#[cfg(feature = "postgres")]
use tidemark::database::postgres::{PostgresSource, PostgresTarget, Server, SourceOptions};
use tidemark::database::{Source, Target};
use tidemark::env::{Env, SystemEnv};
use tidemark::ids::{OperationId, TableName, Txn};
use tidemark::operation::Request;
use tidemark::row::Schema;
use tidemark::{Error, Kind, Result};

use crate::args::{LocationArgs, OneArgs};
use crate::shell::word;

/// A database as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseUrl {
    /// `embedded:DIR`.
    Embedded(PathBuf),
    /// `postgres://USER@HOST:PORT/DATABASE`.
    Postgres(PostgresUrl),
}

/// The URL of a PostgreSQL database; shown without its password.
///
/// Nothing of it is checked before it is used: whoever refuses an argument repeats it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PostgresUrl(String);

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<DatabaseUrl, String> {
        if let Some(dir) = text.strip_prefix("embedded:") {
            return match dir {
                "" => Err("the directory is missing: expected embedded:DIR".to_owned()),
                dir => Ok(DatabaseUrl::Embedded(PathBuf::from(dir))),
            };
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            if cfg!(feature = "postgres") {
                return Ok(DatabaseUrl::Postgres(PostgresUrl(text.to_owned())));
            }
            let message = "this build has no PostgreSQL driver; it knows embedded:DIR";
            return Err(message.to_owned());
        }
        Err("not a database: expected embedded:DIR or postgres://USER@HOST:PORT/DATABASE"
            .to_owned())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
            DatabaseUrl::Postgres(url) => fmt::Display::fmt(url, f),
        }
    }
}

impl DatabaseUrl {
    /// The same database, named so that it is found from any directory.
    ///
    /// # Errors
    /// [`Kind::Fatal`] when the current directory is gone.
    pub(crate) fn absolute(&self) -> Result<DatabaseUrl> {
        Ok(match self {
            DatabaseUrl::Embedded(dir) => DatabaseUrl::Embedded(absolute(dir)?),
            DatabaseUrl::Postgres(url) => DatabaseUrl::Postgres(url.clone()),
        })
    }

    /// The directory of an embedded database.
    ///
    /// # Errors
    /// [`Kind::Usage`] for another one.
    fn directory(&self) -> Result<&Path> {
        match self {
            DatabaseUrl::Embedded(dir) => Ok(dir),
            DatabaseUrl::Postgres(_) => {
                let message = format!("`{self}` is no embedded database, which this needs");
                Err(Error::new(Kind::Usage, message))
            }
        }
    }

    /// Opens an embedded database that is there.
    ///
    /// # Errors
    /// As [`EmbeddedDatabase::open`]; [`Kind::Usage`] for another database.
    pub(crate) fn open(&self, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
        open_database(self.directory()?, env)
    }

    /// Opens the embedded database, or makes it.
    ///
    /// # Errors
    /// As [`EmbeddedDatabase::open_or_create`]; [`Kind::Usage`] for another database.
    pub(crate) fn open_or_create(&self, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
        let options = EmbeddedOptions::default();
        let dir = self.directory()?;
        EmbeddedDatabase::open_or_create(dir, Arc::clone(env), options).map(Arc::new)
    }

    /// Whether nothing is where the database would be.
    pub(crate) fn is_missing(&self) -> bool {
        // A server's database is somebody else's to make.
        let DatabaseUrl::Embedded(dir) = self else { return false };
        std::fs::read_dir(dir).map_or_else(
            |cause| cause.kind() == std::io::ErrorKind::NotFound,
            |mut entries| entries.next().is_none(),
        )
    }
}

/// A database that a restore goes into, and where the restore is recorded.
pub(crate) struct OpenTarget {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) place: Place,
    /// Folder for what an operation does not keep in memory.
    pub(crate) scratch: PathBuf,
}

impl DatabaseUrl {
    /// Opens a target, an embedded one made if it is missing; `state` is `--state`.
    ///
    /// # Errors
    /// What opening the database or the state gives.
    pub(crate) fn open_target(
        &self,
        state: Option<&Path>,
        env: &Arc<dyn Env>,
    ) -> Result<OpenTarget> {
        match self {
            DatabaseUrl::Embedded(_) => {
                let shown = self.absolute()?;
                let database = self.open_or_create(env)?;
                let place = Place::of_database(&database, "--target", &shown, state, env)?;
                let scratch = database.scratch_dir();
                Ok(OpenTarget { target: database, place, scratch })
            }
            DatabaseUrl::Postgres(url) => {
                let place = Place::of_state(state, env)?.with_password_of(url);
                let target = url.target(&place, env)?;
                let scratch = place.scratch();
                Ok(OpenTarget { target, place, scratch })
            }
        }
    }
}

#[cfg(feature = "postgres")]
impl PostgresUrl {
    /// Opens the database as a target of the operations in `place`.
    ///
    /// # Errors
    /// What connecting gives.
    pub(crate) fn target(&self, place: &Place, env: &Arc<dyn Env>) -> Result<Arc<dyn Target>> {
        let server = Server::parse(&self.0)?;
        Ok(Arc::new(PostgresTarget::open(server, &place.scope(&**env)?)?))
    }

    /// Opens the database to be backed up.
    ///
    /// # Errors
    /// As [`PostgresSource::open`].
    fn source(
        &self,
        scratch: PathBuf,
        options: &BackupOptions,
        env: &Arc<dyn Env>,
    ) -> Result<OpenSource> {
        let chosen = SourceOptions { attests: options.attest, ..SourceOptions::new(scratch) };
        let source = PostgresSource::open(Server::parse(&self.0)?, chosen, Arc::clone(env))?;
        Ok(OpenSource::Postgres(Arc::new(source)))
    }

    fn password(&self) -> Option<String> {
        Server::password_of(&self.0)
    }
}

#[cfg(feature = "postgres")]
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Server::without_password(&self.0))
    }
}

/// Without the driver no such URL is ever read.
#[cfg(not(feature = "postgres"))]
impl PostgresUrl {
    pub(crate) fn target(&self, _: &Place, _: &Arc<dyn Env>) -> Result<Arc<dyn Target>> {
        Err(Error::new(Kind::Unsupported, "this build has no PostgreSQL driver"))
    }

    fn source(&self, _: PathBuf, _: &BackupOptions, _: &Arc<dyn Env>) -> Result<OpenSource> {
        Err(Error::new(Kind::Unsupported, "this build has no PostgreSQL driver"))
    }

    fn password(&self) -> Option<String> {
        None
    }
}

#[cfg(not(feature = "postgres"))]
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")
    }
}

/// A database that is opened to be backed up.
#[derive(Debug)]
pub(crate) enum OpenSource {
    /// On this machine.
    Embedded(Arc<EmbeddedDatabase>),
    /// On a server.
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresSource>),
}

impl OpenSource {
    /// What backups read from.
    pub(crate) fn source(&self) -> Arc<dyn Source> {
        match self {
            OpenSource::Embedded(database) => Arc::<EmbeddedDatabase>::clone(database),
            #[cfg(feature = "postgres")]
            OpenSource::Postgres(source) => Arc::<PostgresSource>::clone(source),
        }
    }

    /// Its tables.
    ///
    /// # Errors
    /// Those of reading them.
    pub(crate) fn tables(&self) -> Result<Vec<(TableName, Schema)>> {
        match self {
            OpenSource::Embedded(database) => {
                let tables = database.tables()?;
                Ok(tables.into_iter().map(|table| (table.name, table.schema)).collect())
            }
            #[cfg(feature = "postgres")]
            OpenSource::Postgres(source) => source.tables(),
        }
    }
}

impl DatabaseUrl {
    /// Opens it to be backed up as `options` say, with a folder for what does not fit memory.
    ///
    /// # Errors
    /// As [`EmbeddedDatabase::open`] and `PostgresSource::open`.
    pub(crate) fn source(
        &self,
        scratch: PathBuf,
        options: &BackupOptions,
        env: &Arc<dyn Env>,
    ) -> Result<OpenSource> {
        match self {
            DatabaseUrl::Embedded(dir) => open_database(dir, env).map(OpenSource::Embedded),
            DatabaseUrl::Postgres(url) => url.source(scratch, options, env),
        }
    }

    /// The same, with the place where the backup is recorded.
    ///
    /// # Errors
    /// Those of both.
    pub(crate) fn source_and_place(
        &self,
        state: Option<&Path>,
        options: &BackupOptions,
        env: &Arc<dyn Env>,
    ) -> Result<(OpenSource, Place)> {
        match self {
            DatabaseUrl::Embedded(dir) => {
                let database = open_database(dir, env)?;
                let place = Place::of_database(&database, "--source", self, state, env)?;
                Ok((OpenSource::Embedded(database), place))
            }
            DatabaseUrl::Postgres(url) => {
                let place = Place::of_state(state, env)?.with_password_of(url);
                Ok((self.source(place.scratch(), options, env)?, place))
            }
        }
    }

    /// The server.
    ///
    /// # Errors
    /// [`Kind::Usage`] for an embedded database, or a URL that cannot be read.
    #[cfg(feature = "postgres")]
    pub(crate) fn server(&self) -> Result<Server> {
        match self {
            DatabaseUrl::Postgres(url) => Server::parse(&url.0),
            DatabaseUrl::Embedded(_) => {
                let message = format!(
                    "`{self}` needs no setting up: an embedded database keeps its changes by \
                     itself; see `tidemark db collections`"
                );
                Err(Error::new(Kind::Usage, message))
            }
        }
    }
}

/// Opens the embedded database in `dir`.
///
/// # Errors
/// As [`EmbeddedDatabase::open`].
pub(crate) fn open_database(dir: &Path, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
    EmbeddedDatabase::open(dir, Arc::clone(env), EmbeddedOptions::default()).map(Arc::new)
}

/// The real machine.
pub(crate) fn system() -> Arc<dyn Env> {
    Arc::new(SystemEnv)
}

/// A collection's path or URL, named so that it is found from any directory.
///
/// # Errors
/// [`Kind::Fatal`] when the current directory is gone.
pub(crate) fn absolute_collection(path_or_url: &str) -> Result<String> {
    if path_or_url.contains("://") || path_or_url.is_empty() {
        return Ok(path_or_url.to_owned());
    }
    Ok(absolute(Path::new(path_or_url))?.display().to_string())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|cause| Error::io(format!("find `{}`", path.display()), cause))
}

/// A catalog of operations, and how people name it.
#[derive(Debug)]
pub(crate) struct Place {
    /// The operations.
    pub(crate) catalog: LmdbCatalog,
    /// The database that they are recorded in, if it is one.
    pub(crate) database: Option<Arc<EmbeddedDatabase>>,
    /// Directory for the logs of detached operations.
    pub(crate) logs: PathBuf,
    /// The directory itself: the state's or the database's.
    dir: PathBuf,
    /// What to add to `tidemark operation …`: `--target embedded:DIR`; empty for the default.
    locator: Vec<String>,
    password: Option<Secret>,
}

/// What nobody is shown.
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Digits of a scope.
#[cfg(feature = "postgres")]
const SCOPE_LEN: usize = 8;

impl Place {
    /// Where an operation on `database` is recorded, unless `state` says otherwise.
    ///
    /// `option` is the one that names the database: `--target` or `--source`.
    ///
    /// # Errors
    /// Those of opening the catalog.
    pub(crate) fn of_database(
        database: &Arc<EmbeddedDatabase>,
        option: &str,
        url: &DatabaseUrl,
        state: Option<&Path>,
        env: &Arc<dyn Env>,
    ) -> Result<Place> {
        if let Some(dir) = state {
            // The database knows operations by their numbers, also those that it does not record.
            let catalog = LmdbCatalog::of_directory_for(dir, database, Arc::clone(env));
            let place = Place::in_directory(dir, state_locator(dir), catalog)?;
            return Ok(Place { database: Some(Arc::clone(database)), ..place });
        }
        let dir = url.directory()?.to_owned();
        Ok(Place {
            catalog: LmdbCatalog::of_database(database, Arc::clone(env))?,
            database: Some(Arc::clone(database)),
            logs: dir.join("locks"),
            dir,
            locator: vec![option.to_owned(), url.to_string()],
            password: None,
        })
    }

    /// The state directory: `state`, or the usual one; made when it is missing.
    ///
    /// # Errors
    /// [`Kind::Usage`] when neither XDG_STATE_HOME nor HOME says where that is.
    pub(crate) fn of_state(state: Option<&Path>, env: &Arc<dyn Env>) -> Result<Place> {
        let (dir, locator) = match state {
            Some(dir) => (dir.to_owned(), state_locator(dir)),
            None => (state_home()?, Vec::new()),
        };
        Place::in_directory(&dir, locator, LmdbCatalog::open_or_create(&dir, Arc::clone(env)))
    }

    /// The place that `location` names; `None` if it is a state directory in which nothing
    /// was ever recorded.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a database that is not there.
    pub(crate) fn find(location: &LocationArgs, env: &Arc<dyn Env>) -> Result<Option<Place>> {
        for (option, url) in [("--target", &location.target), ("--source", &location.source)] {
            if let Some(DatabaseUrl::Postgres(url)) = url {
                // Of these the state directory keeps the operations.
                let found = Place::find_in_state(location.state.as_deref(), env)?;
                return Ok(found.map(|place| place.with_password_of(url)));
            }
            if let Some(url) = url {
                let database = url.open(env)?;
                return Place::of_database(&database, option, url, None, env).map(Some);
            }
        }
        Place::find_in_state(location.state.as_deref(), env)
    }

    fn find_in_state(state: Option<&Path>, env: &Arc<dyn Env>) -> Result<Option<Place>> {
        let dir = match state {
            Some(dir) => dir.to_owned(),
            None => state_home()?,
        };
        // Looking must not leave a directory behind.
        if !dir.join("data.mdb").exists() {
            return Ok(None);
        }
        Place::of_state(state, env).map(Some)
    }

    /// The same, so that processes in the background get the password of `url`.
    #[must_use]
    pub(crate) fn with_password_of(mut self, url: &PostgresUrl) -> Place {
        self.password = url.password().map(Secret);
        self
    }

    /// A password that was in a URL, for the environment of processes in the background: their
    /// arguments are seen by everybody.
    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|Secret(password)| &**password)
    }

    /// A name that no other directory of operations has: their numbers begin with 1 in each.
    ///
    /// # Errors
    /// When it cannot be written down.
    #[cfg(feature = "postgres")]
    pub(crate) fn scope(&self, env: &dyn Env) -> Result<String> {
        let path = self.dir.join("scope");
        let failed = |cause| Error::io(format!("name the state in `{}`", path.display()), cause);
        loop {
            match std::fs::read_to_string(&path) {
                Ok(scope) if scope.len() == SCOPE_LEN => return Ok(scope),
                // Half written by a process that died: no restore was begun with it.
                Ok(_) => std::fs::remove_file(&path).map_err(failed)?,
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
                Err(cause) => return Err(failed(cause)),
            }
            let scope = format!("{:08x}", env.random() as u32);
            let new = self.dir.join(format!("scope.{}", std::process::id()));
            std::fs::write(&new, &scope).map_err(failed)?;
            std::fs::File::open(&new).and_then(|file| file.sync_all()).map_err(failed)?;
            // Of two that come at once the first one's stays.
            match std::fs::hard_link(&new, &path) {
                Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(failed(cause));
                }
                _ => std::fs::remove_file(&new).map_err(failed)?,
            }
            let dir = std::fs::File::open(&self.dir).map_err(failed)?;
            dir.sync_all().map_err(failed)?;
        }
    }

    /// The place and the operation that `one` names.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such operation, saying where it was looked for.
    pub(crate) fn find_one(one: &OneArgs, env: &Arc<dyn Env>) -> Result<(Place, OperationId)> {
        let place = Place::find(&one.location, env)?;
        let found = match &place {
            None => None,
            Some(place) if one.txn => place.catalog.by_txn(Txn(one.id))?,
            Some(place) => {
                let id = OperationId(one.id);
                place.catalog.list()?.binary_search(&id).is_ok().then_some(id)
            }
        };
        match (place, found) {
            (Some(place), Some(id)) => Ok((place, id)),
            _ => Err(no_such_operation(one)),
        }
    }

    fn in_directory(
        dir: &Path,
        locator: Vec<String>,
        catalog: Result<LmdbCatalog>,
    ) -> Result<Place> {
        let catalog = catalog
            .map_err(|error| error.context(format!("open the state in `{}`", dir.display())))?;
        let (logs, dir) = (dir.join("locks"), dir.to_owned());
        Ok(Place { catalog, database: None, logs, dir, locator, password: None })
    }

    /// Folder for what an operation does not keep in memory; made when it is needed.
    pub(crate) fn scratch(&self) -> PathBuf {
        match &self.database {
            Some(database) => database.scratch_dir(),
            None => self.dir.join("scratch"),
        }
    }

    /// Leaves an operation that is carried on its window, unless another is asked for.
    ///
    /// # Errors
    /// Those of the catalog.
    pub(crate) fn keep_window(&self, id: OperationId, asked: Option<u32>) -> Result<()> {
        match asked {
            Some(window) if self.catalog.state(id)?.state.window != window => {
                // Whoever drives the operation takes the request first.
                self.catalog.steer(id, &Request::Window(window))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// `operation VERB ID` with what it takes to find the operation, as arguments.
    pub(crate) fn operation_args(&self, verb: &str, id: OperationId) -> Vec<String> {
        let mut words = ["operation", verb].map(str::to_owned).to_vec();
        words.push(id.to_string());
        words.extend(self.locator.iter().cloned());
        words
    }

    /// The same as one would type it.
    pub(crate) fn operation_command(&self, verb: &str, id: OperationId) -> String {
        let words = self.operation_args(verb, id);
        let words: Vec<String> = words.iter().map(|text| word(text)).collect();
        format!("tidemark {}", words.join(" "))
    }
}

fn no_such_operation(one: &OneArgs) -> Error {
    let LocationArgs { target, source, state } = &one.location;
    let url = target.as_ref().or(source.as_ref());
    let (place, hint) = match (url, state) {
        (Some(url), _) => (format!("`{url}`"), ""),
        (None, Some(dir)) => (format!("`{}`", dir.display()), ""),
        (None, None) => (
            "the state directory".to_owned(),
            "; restores are recorded in their target (--target embedded:DIR), backups beside \
             their source (--source embedded:DIR)",
        ),
    };
    let what = if one.txn { "operation with txn" } else { "operation" };
    Error::new(Kind::NotFound, format!("there is no {what} {} in {place}{hint}", one.id))
}

/// `$XDG_STATE_HOME/tidemark`, by default `~/.local/state/tidemark`.
///
/// A relative XDG_STATE_HOME is ignored, as the XDG base directory specification asks.
fn state_home() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let base = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("tidemark")).ok_or_else(|| {
        let message = "where to keep state is not known: neither XDG_STATE_HOME nor HOME is set; \
                       name a directory with --state";
        Error::new(Kind::Usage, message)
    })
}

fn state_locator(dir: &Path) -> Vec<String> {
    vec!["--state".to_owned(), dir.display().to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_urls_read_back_and_others_are_refused_with_what_is_known() {
        let url: DatabaseUrl = "embedded:a b/c".parse().unwrap();
        assert_eq!(url, DatabaseUrl::Embedded(PathBuf::from("a b/c")));
        assert_eq!(url.to_string(), "embedded:a b/c");
        for text in ["embedded:", "shop", "mysql://x"] {
            let refusal = text.parse::<DatabaseUrl>().unwrap_err();
            assert!(refusal.contains("embedded:DIR"), "{refusal}");
        }
    }

    #[test]
    #[cfg(feature = "postgres")]
    fn a_password_in_a_url_is_never_shown() {
        let url: DatabaseUrl = "postgres://me:secret@h/db?sslmode=disable".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://me@h/db?sslmode=disable");
        assert!(!format!("{url:?} {:?}", url.absolute().unwrap()).contains("secret"));
        // Also where it makes no sense: what refuses an argument repeats it.
        assert!("postgres://me:secret@h:port/?x".parse::<DatabaseUrl>().is_ok());
    }

    #[test]
    fn looking_for_operations_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let location = LocationArgs { target: None, source: None, state: Some(state.clone()) };
        assert!(Place::find(&location, &system()).unwrap().is_none());
        assert!(!state.exists());
        let one = OneArgs { id: 7, txn: false, location };
        let error = Place::find_one(&one, &system()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("operation 7"), "{error}");
    }
}
