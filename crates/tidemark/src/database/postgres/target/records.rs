//! What the database remembers of restores, in its schema `tidemark`.
//!
//! | table | one row for each | |
//! |---|---|---|
//! | `layout` | database | `version` of these tables |
//! | `operation` | operation, for ever | `epoch` of its holder, `state`: open, sealed, published, discarded |
//! | `hidden` | hidden table, until its end | `name` it will have, which reserves the name; the `plan` as JSON; where it is |
//! | `mark` | shard of a hidden table | `epoch` that may write, `sealed`, the [`Mark`] |
//! | `notice` | thing that people are told of an operation | its `text` |
//! | `copy` | restored copy | its plan, the digests of its shards, and the snapshot that tells later writes |
//!
//! The sequence `txn` counts fencing numbers.

use postgres::GenericClient;

use crate::database::postgres::Session;
use crate::database::postgres::error::{Refused, failed};
use crate::database::{Fence, Mark, TargetShard, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::ids::{Epoch, TableName};

/// Version of the layout below; another one is refused.
const VERSION: i32 = 1;

const LAYOUT: &str = "
    CREATE SCHEMA IF NOT EXISTS tidemark;
    CREATE TABLE tidemark.layout (version int NOT NULL);
    INSERT INTO tidemark.layout VALUES (1);
    CREATE SEQUENCE tidemark.txn;
    CREATE TABLE tidemark.operation (
        operation text PRIMARY KEY,
        epoch bigint NOT NULL,
        state text NOT NULL);
    CREATE TABLE tidemark.hidden (
        name text PRIMARY KEY,
        operation text NOT NULL REFERENCES tidemark.operation,
        position int NOT NULL,
        plan text NOT NULL,
        base text NOT NULL,
        copied oid,
        oid oid NOT NULL,
        has_key boolean NOT NULL DEFAULT false,
        built boolean NOT NULL DEFAULT false);
    CREATE INDEX ON tidemark.hidden (operation, position);
    CREATE TABLE tidemark.mark (
        operation text NOT NULL,
        name text NOT NULL,
        shard int NOT NULL,
        epoch bigint NOT NULL,
        sealed boolean NOT NULL DEFAULT false,
        mark bytea,
        PRIMARY KEY (operation, name, shard)) WITH (fillfactor = 50);
    CREATE TABLE tidemark.notice (
        operation text NOT NULL,
        number bigint GENERATED ALWAYS AS IDENTITY,
        text text NOT NULL,
        PRIMARY KEY (operation, text));
    CREATE TABLE tidemark.copy (
        oid oid PRIMARY KEY,
        name text NOT NULL,
        held boolean NOT NULL,
        plan text NOT NULL,
        columns text NOT NULL,
        marks bytea[] NOT NULL,
        rows bigint NOT NULL,
        own_xid bigint NOT NULL,
        seen_before bigint NOT NULL,
        unseen bigint[] NOT NULL,
        written_to boolean NOT NULL DEFAULT false);
";

/// Whether the schema is there, with a layout that this program knows.
///
/// # Errors
/// [`Kind::Unsupported`] for another layout.
pub(super) fn are_there(session: &mut Session) -> Result<bool> {
    let found = version(session)?;
    found.map_or(Ok(false), |found| check(found).map(|()| true))
}

fn version(session: &mut Session) -> Result<Option<i32>> {
    let there = "SELECT to_regclass('tidemark.layout') IS NOT NULL";
    let what = "look for the schema `tidemark`";
    let there: bool = session.client().query_one(there, &[]).map_err(failed(what))?.get(0);
    if !there {
        return Ok(None);
    }
    let sql = "SELECT version FROM tidemark.layout";
    let row = session.client().query_one(sql, &[]).map_err(failed(what))?;
    Ok(Some(row.get(0)))
}

fn check(found: i32) -> Result<()> {
    if found == VERSION {
        return Ok(());
    }
    let message = format!(
        "the schema `tidemark` of this database has layout {found}, this program knows {VERSION}"
    );
    Err(Error::new(Kind::Unsupported, message))
}

/// Makes the schema and its tables, unless they are there.
///
/// # Errors
/// [`Kind::Blocked`] for a role that may not; [`Kind::Unsupported`] for a newer layout.
pub(super) fn create(session: &mut Session) -> Result<()> {
    if are_there(session)? {
        return Ok(());
    }
    let what = "make the schema `tidemark`, which needs CREATE on the database";
    let mut transaction = session.client().transaction().map_err(failed(what))?;
    // Two that come at once: the second one waits here, and finds it made.
    let lock = "SELECT pg_advisory_xact_lock(7235388362)";
    transaction.query_one(lock, &[]).map_err(failed(what))?;
    let there = "SELECT to_regclass('tidemark.layout') IS NOT NULL";
    let there: bool = transaction.query_one(there, &[]).map_err(failed(what))?.get(0);
    if !there {
        transaction.batch_execute(LAYOUT).map_err(failed(what))?;
    }
    transaction.commit().map_err(failed(what))?;
    are_there(session).map(|_| ())
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Sealed,
    Published,
    Discarded,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Sealed => "sealed",
            State::Published => "published",
            State::Discarded => "discarded",
        }
    }

    fn from_name(name: &str) -> Result<State> {
        let all = [State::Open, State::Sealed, State::Published, State::Discarded];
        let found = all.into_iter().find(|state| state.name() == name);
        found.ok_or_else(|| {
            Error::new(Kind::Broken, format!("an operation of the target is `{name}`"))
        })
    }
}

/// Locks the record of an operation, and gives it if `fence` is not older than it.
///
/// # Errors
/// [`Kind::Fenced`] for an older epoch.
pub(super) fn lock_operation(
    client: &mut impl GenericClient,
    key: &str,
    fence: Fence,
) -> Result<Option<(Epoch, State)>> {
    let sql = "SELECT epoch, state FROM tidemark.operation WHERE operation = $1 FOR UPDATE";
    let found = client.query_opt(sql, &[&key]).map_err(failed("lock the operation"))?;
    let Some(row) = found else { return Ok(None) };
    let epoch = Epoch(row.get::<_, i64>(0) as u64);
    if fence.epoch < epoch {
        return Err(fenced(fence, &format!("it is held with epoch {epoch}")));
    }
    Ok(Some((epoch, State::from_name(row.get(1))?)))
}

/// Writes the record of an operation, new or not.
pub(super) fn put_operation(
    client: &mut impl GenericClient,
    key: &str,
    epoch: Epoch,
    state: State,
) -> Result<()> {
    let sql = "INSERT INTO tidemark.operation VALUES ($1, $2, $3) \
               ON CONFLICT (operation) DO UPDATE SET epoch = EXCLUDED.epoch, state = EXCLUDED.state";
    let epoch = epoch.0 as i64;
    client.execute(sql, &[&key, &epoch, &state.name()]).map_err(failed("record the operation"))?;
    Ok(())
}

/// Gives every shard of an operation to `epoch`, or shuts all writers out.
pub(super) fn claim(
    client: &mut impl GenericClient,
    key: &str,
    epoch: Epoch,
    sealed: bool,
) -> Result<()> {
    let sql = "UPDATE tidemark.mark SET epoch = $2, sealed = $3 WHERE operation = $1";
    let epoch = epoch.0 as i64;
    client.execute(sql, &[&key, &epoch, &sealed]).map_err(failed("claim the shards"))?;
    Ok(())
}

/// Begins a call that may take an operation over: the session gets its name, and sessions of
/// older epochs that are inside a transaction are ended, so that a holder that stopped there
/// keeps nobody waiting for its locks.
pub(super) fn take_over(session: &mut Session, key: &str, epoch: Epoch) -> Result<()> {
    name_session(session, key, epoch)?;
    let sql = "SELECT pid, application_name FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() \
               AND xact_start IS NOT NULL AND application_name LIKE 'tidemark %'";
    let rows = session.client().query(sql, &[]).map_err(failed("look for older sessions"))?;
    for row in rows {
        let name: String = row.get(1);
        let older = name.strip_prefix(&format!("tidemark {key} ")).and_then(|it| it.parse().ok());
        if older.is_some_and(|older: u64| older < epoch.0) {
            let pid: i32 = row.get(0);
            let sql = "SELECT pg_terminate_backend($1)";
            session.client().query(sql, &[&pid]).map_err(failed("end an older session"))?;
        }
    }
    Ok(())
}

/// Names the session after operation and epoch, so that whoever takes over finds it.
pub(super) fn name_session(session: &mut Session, key: &str, epoch: Epoch) -> Result<()> {
    let name = format!("tidemark {key} {epoch}");
    if session.name() == name {
        return Ok(());
    }
    let sql = "SELECT set_config('application_name', $1, false)";
    session.client().query(sql, &[&name]).map_err(failed("name the session"))?;
    session.set_name(&name);
    Ok(())
}

/// What a hidden table begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing.
    Empty,
    /// The published copy with this number, which is not touched before the end.
    Beside(u32),
    /// The held copy itself: nobody reads it.
    InPlace(u32),
}

/// A hidden table.
#[derive(Clone, Debug)]
pub(super) struct HiddenRecord {
    pub(super) plan: TargetTable,
    pub(super) base: Base,
    /// Number of the table that takes the rows.
    pub(super) oid: u32,
    /// Whether rows are found by key.
    pub(super) has_key: bool,
}

impl HiddenRecord {
    fn read(row: &postgres::Row) -> Result<HiddenRecord> {
        let plan: &str = row.get(0);
        let plan = serde_json::from_str(plan).map_err(|cause| {
            Error::with_source(Kind::Broken, "a recorded plan of a hidden table", cause)
        })?;
        let base = match (row.get(1), row.get(2)) {
            ("beside", Some(oid)) => Base::Beside(oid),
            ("in_place", Some(oid)) => Base::InPlace(oid),
            _ => Base::Empty,
        };
        Ok(HiddenRecord { plan, base, oid: row.get(3), has_key: row.get(4) })
    }

    pub(super) fn put(
        &self,
        client: &mut impl GenericClient,
        key: &str,
        position: i32,
    ) -> Result<()> {
        let (base, copied) = match self.base {
            Base::Empty => ("empty", None),
            Base::Beside(oid) => ("beside", Some(oid)),
            Base::InPlace(oid) => ("in_place", Some(oid)),
        };
        let plan = serde_json::to_string(&self.plan).expect("a plan is plain data");
        let name = self.plan.name.to_string();
        let sql = "INSERT INTO tidemark.hidden (name, operation, position, plan, base, copied, \
                   oid, has_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let done = client.execute(
            sql,
            &[&name, &key, &position, &plan, &base, &copied, &self.oid, &self.has_key],
        );
        done.map_err(failed("reserve a name")).map_err(|error| match Refused::code_of(&error) {
            Some("23505") => {
                let message = format!("`{name}` is reserved by another operation");
                Error::new(Kind::InTheWay, message)
            }
            _ => error,
        })?;
        Ok(())
    }
}

const HIDDEN: &str = "SELECT plan, base, copied, oid, has_key FROM tidemark.hidden";

/// The hidden tables of an operation, in the order in which they were prepared.
pub(super) fn hidden_tables(
    client: &mut impl GenericClient,
    key: &str,
) -> Result<Vec<HiddenRecord>> {
    let sql = format!("{HIDDEN} WHERE operation = $1 ORDER BY position");
    let rows = client.query(&sql, &[&key]).map_err(failed("read the hidden tables"))?;
    rows.iter().map(HiddenRecord::read).collect()
}

/// One of them.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub(super) fn hidden_table(
    client: &mut impl GenericClient,
    key: &str,
    name: &TableName,
) -> Result<HiddenRecord> {
    let sql = format!("{HIDDEN} WHERE operation = $1 AND name = $2");
    let name = name.to_string();
    let row = client.query_opt(&sql, &[&key, &name]).map_err(failed("look for a hidden table"))?;
    let row = row.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("operation {key} has no hidden table `{name}`"))
    })?;
    HiddenRecord::read(&row)
}

/// Which operation has reserved a name.
pub(super) fn reserved_by(
    client: &mut impl GenericClient,
    name: &TableName,
) -> Result<Option<String>> {
    let sql = "SELECT operation FROM tidemark.hidden WHERE name = $1";
    let row = client.query_opt(sql, &[&name.to_string()]).map_err(failed("look for a name"))?;
    Ok(row.map(|row| row.get(0)))
}

/// A shard's record.
#[derive(Clone, Debug)]
pub(super) struct MarkRecord {
    pub(super) epoch: Epoch,
    pub(super) sealed: bool,
    /// As it is stored.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) mark: Option<Mark>,
}

/// Reads a shard's record.
///
/// # Errors
/// [`Kind::NotFound`] when there is none, or the hidden table itself is gone.
pub(super) fn mark(
    client: &mut impl GenericClient,
    key: &str,
    shard: &TargetShard,
) -> Result<MarkRecord> {
    let sql = "SELECT m.epoch, m.sealed, m.mark, \
               EXISTS (SELECT FROM pg_class c WHERE c.oid = h.oid) \
               AND (h.copied IS NULL OR EXISTS (SELECT FROM pg_class c WHERE c.oid = h.copied)) \
               FROM tidemark.mark m JOIN tidemark.hidden h \
               ON h.operation = m.operation AND h.name = m.name \
               WHERE m.operation = $1 AND m.name = $2 AND m.shard = $3";
    let (name, number) = (shard.table.to_string(), shard.shard.0 as i32);
    let row = client.query_opt(sql, &[&key, &name, &number]).map_err(failed("read a mark"))?;
    let there = row.filter(|row| row.get(3));
    let row = there.ok_or_else(|| {
        let message = format!(
            "operation {} has no hidden shard {} of `{}`",
            shard.operation, shard.shard, shard.table
        );
        Error::new(Kind::NotFound, message)
    })?;
    let bytes: Option<Vec<u8>> = row.get(2);
    let mark = bytes.as_deref().map(Mark::decode).transpose()?;
    Ok(MarkRecord { epoch: Epoch(row.get::<_, i64>(0) as u64), sealed: row.get(1), bytes, mark })
}

/// Every mark of a hidden table, in the order of its shards.
pub(super) fn marks_of(
    client: &mut impl GenericClient,
    key: &str,
    name: &TableName,
) -> Result<Vec<Option<Mark>>> {
    let sql = "SELECT mark FROM tidemark.mark WHERE operation = $1 AND name = $2 ORDER BY shard";
    let rows = client.query(sql, &[&key, &name.to_string()]).map_err(failed("read the marks"))?;
    let mark = |row: &postgres::Row| {
        row.get::<_, Option<Vec<u8>>>(0).as_deref().map(Mark::decode).transpose()
    };
    rows.iter().map(mark).collect()
}

/// Makes the records of a table's shards.
pub(super) fn put_marks(
    client: &mut impl GenericClient,
    key: &str,
    table: &TargetTable,
    epoch: Epoch,
    marks: &[Option<Vec<u8>>],
) -> Result<()> {
    let sql = "INSERT INTO tidemark.mark (operation, name, shard, epoch, mark) \
               SELECT $1, $2, (n - 1)::int, $3, m FROM unnest($4::bytea[]) WITH ORDINALITY u (m, n)";
    let (name, epoch) = (table.name.to_string(), epoch.0 as i64);
    client.execute(sql, &[&key, &name, &epoch, &marks]).map_err(failed("make the marks"))?;
    Ok(())
}

/// Removes the records of an operation's hidden tables, but not its own.
pub(super) fn forget_hidden(client: &mut impl GenericClient, key: &str) -> Result<()> {
    for table in ["hidden", "mark"] {
        let sql = format!("DELETE FROM tidemark.{table} WHERE operation = $1");
        client.execute(&sql, &[&key]).map_err(failed("remove the records of hidden tables"))?;
    }
    Ok(())
}

/// Keeps what people are to be told at the end.
pub(super) fn put_notices(
    client: &mut impl GenericClient,
    key: &str,
    notices: &[String],
) -> Result<()> {
    let sql = "INSERT INTO tidemark.notice (operation, text) SELECT $1, unnest($2::text[]) \
               ON CONFLICT DO NOTHING";
    client.execute(sql, &[&key, &notices]).map_err(failed("keep what people are told"))?;
    Ok(())
}

/// What people are to be told of an operation.
pub(super) fn notices(client: &mut impl GenericClient, key: &str) -> Result<Vec<String>> {
    let sql = "SELECT text FROM tidemark.notice WHERE operation = $1 ORDER BY number";
    let rows = client.query(sql, &[&key]).map_err(failed("read what people are told"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Lets nobody else prepare, publish or discard until the transaction ends.
pub(super) fn lock_names(client: &mut impl GenericClient) -> Result<()> {
    let sql = "LOCK TABLE tidemark.hidden IN SHARE ROW EXCLUSIVE MODE";
    client.batch_execute(sql).map_err(failed("wait for other restores to prepare or publish"))
}

/// A refusal of a fence.
pub(super) fn fenced(fence: Fence, why: &str) -> Error {
    let message = format!("operation {} with epoch {}: {why}", fence.operation, fence.epoch);
    Error::new(Kind::Fenced, message)
}
