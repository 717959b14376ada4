//! Databases and state directories: where operations are recorded, and how they are opened.
//!
//! A restore is recorded in its target, a backup beside its source, a verification in the
//! state directory; `--state` overrides all of them. [`Place`] is one of these, opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tidemark::catalog::{Catalog, LmdbCatalog};
use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions};
use tidemark::env::{Env, SystemEnv};
use tidemark::ids::{OperationId, Txn};
use tidemark::operation::Request;
use tidemark::{Error, Kind, Result};

use crate::args::{LocationArgs, OneArgs};
use crate::shell::word;

/// A database as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseUrl {
    /// `embedded:DIR`.
    Embedded(PathBuf),
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
            let message = "this build has no PostgreSQL driver yet; it knows embedded:DIR";
            return Err(message.to_owned());
        }
        Err("not a database: expected embedded:DIR".to_owned())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
        }
    }
}

impl DatabaseUrl {
    /// The same database, named so that it is found from any directory.
    ///
    /// # Errors
    /// [`Kind::Fatal`] when the current directory is gone.
    pub(crate) fn absolute(&self) -> Result<DatabaseUrl> {
        let DatabaseUrl::Embedded(dir) = self;
        Ok(DatabaseUrl::Embedded(absolute(dir)?))
    }

    /// Opens a database that is there.
    ///
    /// # Errors
    /// As [`EmbeddedDatabase::open`].
    pub(crate) fn open(&self, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
        let DatabaseUrl::Embedded(dir) = self;
        open_database(dir, env)
    }

    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// As [`EmbeddedDatabase::open_or_create`].
    pub(crate) fn open_or_create(&self, env: &Arc<dyn Env>) -> Result<Arc<EmbeddedDatabase>> {
        let DatabaseUrl::Embedded(dir) = self;
        let options = EmbeddedOptions::default();
        EmbeddedDatabase::open_or_create(dir, Arc::clone(env), options).map(Arc::new)
    }

    /// Whether nothing is where the database would be.
    pub(crate) fn is_missing(&self) -> bool {
        let DatabaseUrl::Embedded(dir) = self;
        std::fs::read_dir(dir).map_or_else(
            |cause| cause.kind() == std::io::ErrorKind::NotFound,
            |mut entries| entries.next().is_none(),
        )
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
}

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
        let DatabaseUrl::Embedded(dir) = url;
        Ok(Place {
            catalog: LmdbCatalog::of_database(database, Arc::clone(env))?,
            database: Some(Arc::clone(database)),
            logs: dir.join("locks"),
            dir: dir.clone(),
            locator: vec![option.to_owned(), url.to_string()],
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
            if let Some(url) = url {
                let database = url.open(env)?;
                return Place::of_database(&database, option, url, None, env).map(Some);
            }
        }
        let dir = match &location.state {
            Some(dir) => dir.clone(),
            None => state_home()?,
        };
        // Looking must not leave a directory behind.
        if !dir.join("data.mdb").exists() {
            return Ok(None);
        }
        Place::of_state(location.state.as_deref(), env).map(Some)
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
        Ok(Place { catalog, database: None, logs, dir, locator })
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
        for text in ["embedded:", "shop", "mysql://x", "postgres://x", "postgresql://x/y"] {
            let refusal = text.parse::<DatabaseUrl>().unwrap_err();
            assert!(refusal.contains("embedded:DIR"), "{refusal}");
        }
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
