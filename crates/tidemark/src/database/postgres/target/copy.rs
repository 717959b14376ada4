//! What stands under a name, and whether a restored copy was written to since.

use postgres::GenericClient;

use crate::database::postgres::Session;
use crate::database::postgres::catalog::{self, DatabaseFacts, TableFacts, Which};
use crate::database::postgres::error::failed;
use crate::database::postgres::target::layout::{name_of, sql_name};
use crate::database::{CopyState, ExistingTable, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::ids::TableName;
use crate::row::KeyRange;

/// Transactions after which a row's transaction no longer tells its age.
const XIDS_MAX: i64 = 1 << 31;

/// What stands under a name.
#[derive(Debug)]
pub(super) enum Standing {
    /// A table with this number.
    Table(u32),
    /// A copy that is hidden.
    Held(CopyRecord),
    /// Something else, of this kind.
    Other(&'static str),
}

impl Standing {
    pub(super) fn in_the_way(&self, name: &TableName) -> Error {
        let what = match self {
            Standing::Table(_) => "exists already",
            Standing::Held(_) => "is a copy that is held",
            Standing::Other(kind) => {
                return Error::new(Kind::InTheWay, format!("`{name}` is a {kind} already"));
            }
        };
        Error::new(Kind::InTheWay, format!("`{name}` {what}"))
    }
}

/// Looks what stands under a name, hidden copies included.
pub(super) fn standing(
    client: &mut impl GenericClient,
    name: &TableName,
) -> Result<Option<Standing>> {
    if let Some(visible) = visible(client, name)? {
        return Ok(Some(visible));
    }
    let held = format!("{COPY} WHERE held AND name = $1 AND {THERE}");
    let row = client
        .query_opt(&held, &[&name.to_string()])
        .map_err(failed("look for copies that are held"))?;
    row.map(|row| CopyRecord::read(&row).map(Standing::Held)).transpose()
}

/// What everybody sees under a name.
fn visible(client: &mut impl GenericClient, name: &TableName) -> Result<Option<Standing>> {
    let sql = "SELECT c.oid, c.relkind::text FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1::text AND c.relname = $2::text";
    let what = format!("look what stands under `{name}`");
    let row = client.query_opt(sql, &[&name.schema(), &name.name()]).map_err(failed(&what))?;
    Ok(row.map(|row| match row.get(1) {
        "r" | "p" => Standing::Table(row.get(0)),
        "f" => Standing::Other("foreign table"),
        "v" => Standing::Other("view"),
        "m" => Standing::Other("materialised view"),
        "S" => Standing::Other("sequence"),
        "c" => Standing::Other("composite type"),
        _ => Standing::Other("index"),
    }))
}

/// See [`Target::existing`](crate::database::Target::existing).
pub(super) fn existing(
    session: &mut Session,
    database: &DatabaseFacts,
    name: &TableName,
    has_records: bool,
) -> Result<Option<ExistingTable>> {
    let client = session.client();
    let standing = if has_records { standing(client, name)? } else { visible(client, name)? };
    let found = match standing {
        None => return Ok(None),
        Some(other @ Standing::Other(_)) => return Err(other.in_the_way(name)),
        Some(Standing::Held(found)) => found,
        Some(Standing::Table(oid)) if !has_records => {
            return existing_table(client, database, oid);
        }
        Some(Standing::Table(oid)) => match CopyRecord::of_table(client, oid)? {
            Some(found) => found,
            None => return existing_table(client, database, oid),
        },
    };
    let now = found.state(client)?;
    let copy = CopyState {
        origin: found.plan.origin.clone(),
        held: found.held,
        written_to: now.written_to,
    };
    Ok(Some(ExistingTable {
        id: database.table_id(found.oid),
        digest_id: found.plan.digest_id,
        schema: found.plan.schema,
        shards: found.plan.shards,
        rows: now.rows,
        copy: Some(copy),
    }))
}

/// A table of others; how many rows it has is the planner's guess.
fn existing_table(
    client: &mut impl GenericClient,
    database: &DatabaseFacts,
    oid: u32,
) -> Result<Option<ExistingTable>> {
    let tables = catalog::tables(client, Which::Numbered(oid))?;
    let Some(facts) = tables.first() else { return Ok(None) };
    let id = database.table_id(oid);
    Ok(Some(ExistingTable {
        id,
        digest_id: id,
        schema: facts.schema()?,
        shards: vec![KeyRange::ALL],
        rows: facts.rows_estimated.max(0.0) as u64,
        copy: None,
    }))
}

/// A restored copy.
#[derive(Clone, Debug)]
pub(super) struct CopyRecord {
    pub(super) oid: u32,
    pub(super) held: bool,
    pub(super) plan: TargetTable,
    /// Marks that say what each shard holds, and nothing else.
    pub(super) marks: Vec<Vec<u8>>,
    columns: String,
    rows: i64,
    own_xid: i64,
    seen_before: i64,
    unseen: Vec<i64>,
    written_to: bool,
}

/// A copy as it is now.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyNow {
    pub(super) written_to: bool,
    pub(super) rows: u64,
}

const COPY: &str = "SELECT oid, held, plan, marks, columns, rows, own_xid, seen_before, unseen, \
                    written_to FROM tidemark.copy";
const THERE: &str = "EXISTS (SELECT FROM pg_class c WHERE c.oid = tidemark.copy.oid)";

impl CopyRecord {
    /// The record of a visible table, if it is a copy.
    pub(super) fn of_table(
        client: &mut impl GenericClient,
        oid: u32,
    ) -> Result<Option<CopyRecord>> {
        let sql = format!("{COPY} WHERE oid = $1 AND NOT held");
        let row = client.query_opt(&sql, &[&oid]).map_err(failed("look for a copy"))?;
        row.map(|row| CopyRecord::read(&row)).transpose()
    }

    fn read(row: &postgres::Row) -> Result<CopyRecord> {
        let plan = serde_json::from_str(row.get(2)).map_err(|cause| {
            Error::with_source(Kind::Broken, "a recorded plan of a copy", cause)
        })?;
        Ok(CopyRecord {
            oid: row.get(0),
            held: row.get(1),
            plan,
            marks: row.get(3),
            columns: row.get(4),
            rows: row.get(5),
            own_xid: row.get(6),
            seen_before: row.get(7),
            unseen: row.get(8),
            written_to: row.get(9),
        })
    }

    /// Records that the table with number `oid` is a copy as of this transaction, in which
    /// its last rows were written and which keeps everybody else from it.
    pub(super) fn put(
        client: &mut impl GenericClient,
        oid: u32,
        held: bool,
        plan: &TargetTable,
        marks: &[Vec<u8>],
        rows: u64,
    ) -> Result<()> {
        let what = "record a copy";
        let tables = catalog::tables(client, Which::Numbered(oid))?;
        let facts = tables.first().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("the table of `{}` is gone", plan.name))
        })?;
        let columns = signature(facts);
        let plan_text = serde_json::to_string(plan).expect("a plan is plain data");
        let name = plan.name.to_string();
        let sql = "INSERT INTO tidemark.copy (oid, name, held, plan, columns, marks, rows, own_xid, \
                   seen_before, unseen) \
                   SELECT $1, $2, $3, $4, $5, $6, $7, pg_current_xact_id()::text::bigint, \
                   pg_snapshot_xmax(s)::text::bigint, \
                   ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x) \
                   FROM pg_current_snapshot() s \
                   ON CONFLICT (oid) DO UPDATE SET name = EXCLUDED.name, held = EXCLUDED.held, \
                   plan = EXCLUDED.plan, columns = EXCLUDED.columns, marks = EXCLUDED.marks, \
                   rows = EXCLUDED.rows, own_xid = EXCLUDED.own_xid, \
                   seen_before = EXCLUDED.seen_before, unseen = EXCLUDED.unseen, \
                   written_to = false";
        let rows = rows as i64;
        client
            .execute(sql, &[&oid, &name, &held, &plan_text, &columns, &marks, &rows])
            .map_err(failed(what))?;
        Ok(())
    }

    /// Removes the records of a table.
    pub(super) fn forget(client: &mut impl GenericClient, oid: u32) -> Result<()> {
        let sql = "DELETE FROM tidemark.copy WHERE oid = $1";
        client.execute(sql, &[&oid]).map_err(failed("forget a copy"))?;
        Ok(())
    }

    /// Says that rows of a held copy were changed by an operation that was given up.
    pub(super) fn note_written(client: &mut impl GenericClient, oid: u32) -> Result<()> {
        let sql = "UPDATE tidemark.copy SET written_to = true WHERE oid = $1";
        client.execute(sql, &[&oid]).map_err(failed("note that a copy was changed"))?;
        Ok(())
    }

    /// Looks at every row's transaction, and counts them: one scan, on the server.
    pub(super) fn state(&self, client: &mut impl GenericClient) -> Result<CopyNow> {
        let what = format!("look whether `{}` was written to", self.plan.name);
        let name = name_of(client, self.oid)?;
        let tables = catalog::tables(client, Which::Numbered(self.oid))?;
        let (Some(name), Some(facts)) = (name, tables.first()) else {
            return Ok(CopyNow { written_to: true, rows: 0 });
        };
        // Numbers of transactions on rows have 32 bits; they are compared by their age.
        let xid = |number: i64| format!("'{}'::xid", number as u64 % (1 << 32));
        let unseen: Vec<String> = self.unseen.iter().map(|number| xid(*number)).collect();
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE xmin <> {} \
             AND (age(xmin) <= age({}) OR xmin = ANY (ARRAY[{}]::xid[]))), \
             pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM ONLY {}",
            xid(self.own_xid),
            xid(self.seen_before),
            unseen.join(", "),
            sql_name(&name)
        );
        let row = client.query_one(&sql, &[]).map_err(failed(&what))?;
        let (rows, foreign, now): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let too_old = now - self.seen_before.min(self.own_xid) >= XIDS_MAX;
        let written_to = self.written_to
            || foreign > 0
            || rows != self.rows
            || too_old
            || signature(facts) != self.columns;
        Ok(CopyNow { written_to, rows: rows as u64 })
    }
}

/// Names and types of all columns: another one means that somebody altered the table.
fn signature(facts: &TableFacts) -> String {
    let column = |column: &crate::database::postgres::catalog::ColumnFacts| {
        format!("{} {:?} {}", column.native.number, column.native.name, column.native.native)
    };
    facts.columns.iter().map(column).collect::<Vec<String>>().join("\n")
}
