//! PostgreSQL as a target: every promise of the contract, as a role that may no more than it
//! must, on every server that is installed.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod postgres_server;

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::Transaction;
use postgres_server::{Cluster, Version, Wanted, versions};
use tidemark::database::Target;
use tidemark::database::conformance::{Rows, Subject, TARGET_PROMISES, TargetSubject};
use tidemark::database::postgres::catalog::{self, TableFacts, Which};
use tidemark::database::postgres::error::failed;
use tidemark::database::postgres::types::read::Tuples;
use tidemark::database::postgres::types::{RowReader, RowWriter, native_default};
use tidemark::database::postgres::{PostgresTarget, Purpose, Server, Session, quoted};
use tidemark::error::Result;
use tidemark::ids::TableName;
use tidemark::row::{ChangeOp, RowBatch, Schema};

/// A server with the role `restorer`, which has what docs/postgres.md says that it needs, and
/// the role `reader`, which may read what `restorer` makes.
fn cluster(version: &Version) -> Cluster {
    let cluster = Cluster::start(version, &Wanted::new());
    cluster.sql("CREATE ROLE restorer LOGIN; CREATE ROLE reader LOGIN");
    cluster
}

/// An empty database in it.
fn database(cluster: &Cluster) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("d{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    cluster.sql(&format!("CREATE DATABASE {name}"));
    cluster.sql_in(
        &name,
        &format!(
            "GRANT CREATE ON DATABASE {name} TO restorer; \
             GRANT CREATE ON SCHEMA public TO restorer; \
             ALTER DEFAULT PRIVILEGES FOR ROLE restorer GRANT SELECT ON TABLES TO reader"
        ),
    );
    name
}

/// An empty database as the conformance suite knows it.
struct Empty<'a> {
    cluster: &'a Cluster,
    name: String,
    target: PostgresTarget,
}

impl<'a> Empty<'a> {
    fn new(cluster: &'a Cluster) -> Empty<'a> {
        let name = database(cluster);
        let target = open(cluster, &name);
        Empty { cluster, name, target }
    }

    fn session(&self, user: &str) -> Session {
        let server = Server::parse(&self.cluster.url_of(user, &self.name)).unwrap();
        server.connect(Purpose::Write).unwrap()
    }
}

fn open(cluster: &Cluster, database: &str) -> PostgresTarget {
    let server = Server::parse(&cluster.url_of("restorer", database)).unwrap();
    PostgresTarget::open(server, "").unwrap()
}

fn sql_name(name: &TableName) -> String {
    format!("{}.{}", quoted(name.schema()), quoted(name.name()))
}

fn facts(session: &mut Session, name: &TableName) -> Result<Option<TableFacts>> {
    let tables = catalog::tables(session.client(), Which::OfUsers)?;
    Ok(tables.into_iter().find(|table| table.name == *name))
}

impl Subject for Empty<'_> {
    fn reopen(&mut self) -> Result<()> {
        self.target = open(self.cluster, &self.name);
        Ok(())
    }

    fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()> {
        let column = |column: &tidemark::row::Column| {
            format!("{} {}", quoted(&column.name), native_default(column.logical))
        };
        let columns: Vec<String> = schema.columns.iter().map(column).collect();
        let keys: Vec<String> = schema.key_columns().map(|key| quoted(&key.name)).collect();
        let sql = format!(
            "CREATE TABLE {} ({}, PRIMARY KEY ({}))",
            sql_name(name),
            columns.join(", "),
            keys.join(", ")
        );
        self.session("restorer").client().batch_execute(&sql).map_err(failed("create"))
    }

    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        let mut session = self.session("restorer");
        let facts = facts(&mut session, name)?.expect("the table is there");
        let schema = facts.schema()?;
        let mut writer = RowWriter::new(&schema, &facts.natives(&schema)?);
        let mut transaction = session.client().transaction().unwrap();
        let at = sql_name(name);
        let keys: Vec<String> = schema.key_columns().map(|key| quoted(&key.name)).collect();
        let equal: Vec<String> = keys.iter().map(|key| format!("t.{key} = w.{key}")).collect();
        let sql = format!("CREATE TEMPORARY TABLE w (LIKE {at}) ON COMMIT DROP");
        transaction.batch_execute(&sql).unwrap();
        let mut copy_in = |transaction: &mut Transaction<'_>, into: &str, with_deleted: bool| {
            let mut bytes = Vec::new();
            writer.begin(&mut bytes);
            for row in rows.iter().filter(|row| with_deleted || row.op != ChangeOp::Delete) {
                writer.row(&[], row.key, row.payload, &mut bytes).unwrap();
            }
            writer.end(&mut bytes);
            let copy = format!("COPY {into} FROM STDIN {}", writer.options());
            let mut copying = transaction.copy_in(&copy).unwrap();
            copying.write_all(&bytes).unwrap();
            copying.finish().unwrap();
        };
        copy_in(&mut transaction, "pg_temp.w", true);
        let delete = format!("DELETE FROM {at} t USING pg_temp.w w WHERE {}", equal.join(" AND "));
        transaction.batch_execute(&delete).unwrap();
        copy_in(&mut transaction, &at, false);
        transaction.commit().map_err(failed("write"))
    }

    fn drop_table(&self, name: &TableName) -> Result<()> {
        let sql = format!("DROP TABLE {}", sql_name(name));
        self.session("restorer").client().batch_execute(&sql).map_err(failed("drop"))
    }

    fn rows(&self, name: &TableName) -> Result<Option<Rows>> {
        let mut session = self.session("reader");
        let Some(facts) = facts(&mut session, name)? else { return Ok(None) };
        let schema = facts.schema()?;
        let natives = facts.natives(&schema)?;
        let selected: Vec<String> = natives.iter().map(|native| native.selected()).collect();
        let copy = format!(
            "COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)",
            selected.join(", "),
            sql_name(name)
        );
        let reader = RowReader::new(&schema, &natives);
        let copying = session.client().copy_out(&copy).map_err(failed("read"))?;
        let mut tuples = Tuples::new(copying);
        let mut rows = Rows::new();
        while tuples.next()? {
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            reader.key(&tuples, &mut key)?;
            reader.payload(&tuples, &mut payload)?;
            rows.insert(key, payload);
        }
        Ok(Some(rows))
    }
}

impl TargetSubject for Empty<'_> {
    fn target(&self) -> &dyn Target {
        &self.target
    }
}

/// Checks every `of`-th promise from the one at `from` on; spread over tests that run at once.
fn check(from: usize, of: usize) {
    for version in versions() {
        let cluster = cluster(&version);
        for (_, promise) in TARGET_PROMISES.iter().skip(from).step_by(of) {
            promise(&mut Empty::new(&cluster));
        }
    }
}

#[test]
fn every_promise_of_a_target_is_kept_first_third() {
    check(0, 3);
}

#[test]
fn every_promise_of_a_target_is_kept_second_third() {
    check(1, 3);
}

#[test]
fn every_promise_of_a_target_is_kept_last_third() {
    check(2, 3);
}
