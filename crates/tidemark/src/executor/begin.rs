//! What "the same command" means: an unfinished operation of the same identity is carried on.
//!
//! The identity is verb, collection, database, tables and renames as typed. Options beside it
//! must be the same as the first time; window and rate, which change nothing about the
//! result, are not among them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::catalog::{Catalog, OperationRecord, Verb};
use crate::env::WallTime;
use crate::error::{Error, Kind, Result};
use crate::ids::OperationId;
use crate::operation::State;

/// An unfinished operation that the same command carries on.
#[derive(Clone, Debug)]
pub struct Unfinished<R> {
    /// Its number.
    pub id: OperationId,
    /// What was resolved the first time: the restore point and the like.
    pub resolved: R,
    /// Its record.
    pub record: OperationRecord,
}

/// What a verb is asked for, in the two parts that resuming tells apart.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a, O, R> {
    /// As typed; a resume with others is refused.
    pub options: &'a O,
    /// As it was found the first time; a resume keeps it.
    pub resolved: &'a R,
}

const OPTIONS: &str = "options";
const RESOLVED: &str = "resolved";

/// The unfinished operation of that identity, if there is one, with the same options.
///
/// # Errors
/// [`Kind::Usage`] when the options differ: names each difference and the two ways out.
pub fn unfinished<O: Serialize, R: DeserializeOwned>(
    catalog: &dyn Catalog,
    identity: &str,
    options: &O,
) -> Result<Option<Unfinished<R>>> {
    let Some(id) = catalog.unfinished(identity)? else { return Ok(None) };
    let record = catalog.operation(id)?;
    check_options(id, &record, options)?;
    let resolved = resolved(&record)?;
    Ok(Some(Unfinished { id, resolved, record }))
}

/// What an operation resolved the first time.
///
/// # Errors
/// [`Kind::Broken`] when the record does not say.
pub fn resolved<R: DeserializeOwned>(record: &OperationRecord) -> Result<R> {
    part(record, RESOLVED)
}

/// The options an operation was started with.
///
/// # Errors
/// [`Kind::Broken`] when the record does not say.
pub fn options<O: DeserializeOwned>(record: &OperationRecord) -> Result<O> {
    part(record, OPTIONS)
}

fn part<T: DeserializeOwned>(record: &OperationRecord, name: &str) -> Result<T> {
    let part = record.request.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(part).map_err(|cause| {
        let message = format!("the record of {} holds no readable {name}", record.title);
        Error::with_source(Kind::Broken, message, cause)
    })
}

/// A new operation, before it is recorded.
#[derive(Clone, Debug)]
pub struct NewOperation<'a> {
    /// What it does.
    pub verb: Verb,
    /// See [`OperationRecord::identity`].
    pub identity: &'a str,
    /// See [`OperationRecord::title`].
    pub title: &'a str,
    /// The plan's bytes; opaque to the catalog, hashed into the record.
    pub plan: &'a [u8],
    /// Steps of the plan; at least 1.
    pub step_count: u32,
    /// When it was asked.
    pub at: WallTime,
}

/// Records a new operation.
///
/// # Errors
/// [`Kind::Held`] when another process recorded one of the same identity meanwhile.
pub fn record<O: Serialize, R: Serialize>(
    catalog: &dyn Catalog,
    new: &NewOperation<'_>,
    asked: Asked<'_, O, R>,
    state: &State,
) -> Result<OperationId> {
    let mut request = Map::new();
    request.insert(OPTIONS.to_owned(), json(asked.options));
    request.insert(RESOLVED.to_owned(), json(asked.resolved));
    let record = OperationRecord {
        verb: new.verb,
        identity: new.identity.to_owned(),
        title: new.title.to_owned(),
        request: Value::Object(request),
        plan_hash: blake3::hash(new.plan).to_hex().to_string(),
        step_count: new.step_count,
        created_at: new.at,
    };
    catalog.create(&record, new.plan, state)
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("options are plain data")
}

fn check_options(
    id: OperationId,
    record: &OperationRecord,
    options: &impl Serialize,
) -> Result<()> {
    let stored = record.request.get(OPTIONS).cloned().unwrap_or(Value::Null);
    let differences = differences(&stored, &json(options));
    if differences.is_empty() {
        return Ok(());
    }
    Err(other_options(id, record, &differences))
}

/// Refuses to carry on an unfinished operation with other options; the clauses say which.
pub(crate) fn other_options(
    id: OperationId,
    record: &OperationRecord,
    differences: &[String],
) -> Error {
    let message = format!(
        "{} is unfinished as operation {id}, with other options: {}; carry on as it was with \
         `tidemark operation resume {id}`, or give it up with `tidemark operation cancel {id}` \
         and run this command again",
        record.title,
        differences.join("; ")
    );
    Error::new(Kind::Usage, message)
}

/// The fields that differ, as clauses for people.
fn differences(stored: &Value, asked: &Value) -> Vec<String> {
    let (Value::Object(stored), Value::Object(asked)) = (stored, asked) else {
        return if stored == asked { Vec::new() } else { vec!["everything".to_owned()] };
    };
    let names: std::collections::BTreeSet<&String> = stored.keys().chain(asked.keys()).collect();
    let field = |of: &Map<String, Value>, name: &str| of.get(name).cloned().unwrap_or(Value::Null);
    names
        .into_iter()
        .filter(|name| field(stored, name) != field(asked, name))
        .map(|name| {
            format!("`{name}` was {}, now it is {}", field(stored, name), field(asked, name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::LmdbCatalog;
    use crate::env::SystemEnv;
    use crate::operation::Planned;

    #[test]
    fn resuming_with_other_options_is_refused_with_the_difference_and_two_ways_out() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = LmdbCatalog::open_or_create(dir.path(), Arc::new(SystemEnv)).unwrap();
        let options = serde_json::json!({"shards": 4, "plan": "fold"});
        let new = NewOperation {
            verb: Verb::Restore,
            identity: "same",
            title: "restore of `c`",
            plan: b"plan",
            step_count: 1,
            at: WallTime(0),
        };
        let asked = Asked { options: &options, resolved: &7u32 };
        let id = record(&catalog, &new, asked, &State::new(Planned::default(), 1)).unwrap();
        let same = unfinished::<_, u32>(&catalog, "same", &options).unwrap().unwrap();
        assert_eq!((same.id, same.resolved), (id, 7));
        let other = serde_json::json!({"shards": 8, "plan": "fold"});
        let error = unfinished::<_, u32>(&catalog, "same", &other).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        for words in ["`shards` was 4, now it is 8", "operation resume 1", "operation cancel 1"] {
            assert!(error.message().contains(words), "{error}");
        }
        assert!(unfinished::<_, u32>(&catalog, "another", &other).unwrap().is_none());
    }
}
