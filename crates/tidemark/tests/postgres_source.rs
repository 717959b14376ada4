//! PostgreSQL as a source of backups: the promises of the contract, and what only it has.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod postgres_server;

use std::sync::Arc;
use std::time::Duration;

use postgres_server::{Cluster, Wanted, versions};
use tidemark::Result;
use tidemark::database::Source;
use tidemark::database::conformance::{Capture, Rows, SOURCE_PROMISES, SourceSubject, Subject};
use tidemark::database::postgres::setup::{drop_capture, set_up};
use tidemark::database::postgres::source::{PostgresSource, SourceOptions};
use tidemark::database::postgres::{Purpose, Server, literal, quoted};
use tidemark::env::SystemEnv;
use tidemark::ids::{CollectionId, TableName};
use tidemark::row::{ChangeOp, LogicalType, RowBatch, RowCodec, Schema, Value};

/// Those that the checks take backups for.
const COLLECTIONS: [CollectionId; 2] = [CollectionId(1), CollectionId(2)];

const WAIT: Duration = Duration::from_secs(30);

fn open(server: &Server, scratch: &tempfile::TempDir) -> PostgresSource {
    let options = SourceOptions::new(scratch.path().join("scratch"));
    PostgresSource::open(server.clone(), options, Arc::new(SystemEnv)).unwrap()
}

/// A database of its own on a server that several of them share.
#[derive(Debug)]
struct PostgresSubject {
    server: Server,
    source: PostgresSource,
    scratch: tempfile::TempDir,
}

impl PostgresSubject {
    fn new(cluster: &Cluster, database: &str) -> PostgresSubject {
        cluster.sql(&format!("CREATE DATABASE {database}"));
        let server = Server::parse(&cluster.url_of("postgres", database)).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let source = open(&server, &scratch);
        let subject = PostgresSubject { server, source, scratch };
        subject.set_up();
        subject
    }

    fn set_up(&self) {
        for collection in COLLECTIONS {
            set_up(&self.server, collection, &mut |_| true, WAIT).unwrap();
        }
    }

    fn run(&self, sql: &str) {
        let mut session = self.server.connect(Purpose::Write).unwrap();
        session.client().batch_execute(sql).unwrap();
    }
}

impl Drop for PostgresSubject {
    fn drop(&mut self) {
        for collection in COLLECTIONS {
            let dropped = drop_capture(&self.server, collection);
            assert!(std::thread::panicking() || dropped.is_ok(), "{dropped:?}");
        }
    }
}

fn sql_name(name: &TableName) -> String {
    format!("{}.{}", quoted(name.schema()), quoted(name.name()))
}

impl Subject for PostgresSubject {
    fn reopen(&mut self) -> Result<()> {
        self.source = open(&self.server, &self.scratch);
        Ok(())
    }

    fn create_table(&self, name: &TableName, _: &Schema) -> Result<()> {
        let sql = "(id bigint PRIMARY KEY, name text, note text)";
        self.run(&format!("CREATE TABLE {} {sql}", sql_name(name)));
        self.set_up();
        Ok(())
    }

    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        let columns =
            [("id", LogicalType::Int64), ("name", LogicalType::Text), ("note", LogicalType::Text)];
        let codec = RowCodec::new(&Schema::new(&columns, &["id"]).unwrap());
        let table = sql_name(name);
        let mut sql = "BEGIN;".to_owned();
        for row in rows.iter() {
            let empty = [1];
            let payload = if row.op == ChangeOp::Delete { &empty[..] } else { row.payload };
            let values = codec.decode(row.key, payload).unwrap();
            let shown = |value: &Value| match value {
                Value::Null => "NULL".to_owned(),
                value => literal(&value.to_text()),
            };
            let [id, name, note] = [0, 1, 2].map(|at| shown(&values[at]));
            sql.push_str(&match row.op {
                ChangeOp::Delete => format!("DELETE FROM {table} WHERE id = {id};"),
                ChangeOp::Upsert | ChangeOp::Update => format!(
                    "INSERT INTO {table} VALUES ({id}, {name}, {note}) ON CONFLICT (id) \
                     DO UPDATE SET name = excluded.name, note = excluded.note;"
                ),
            });
        }
        self.run(&format!("{sql} COMMIT"));
        Ok(())
    }

    fn drop_table(&self, name: &TableName) -> Result<()> {
        self.run(&format!("DROP TABLE {}", sql_name(name)));
        Ok(())
    }

    fn rows(&self, _: &TableName) -> Result<Option<Rows>> {
        unreachable!("the promises of sources read through their snapshots")
    }
}

impl SourceSubject for PostgresSubject {
    fn source(&self) -> &dyn Source {
        &self.source
    }
}

#[test]
fn every_promise_of_a_source_holds() {
    for version in versions() {
        let cluster = Cluster::start(&version, &Wanted::new());
        for (at, (_, promise)) in SOURCE_PROMISES.iter().enumerate() {
            let mut subject = PostgresSubject::new(&cluster, &format!("promise_{at}"));
            promise(&mut subject, Capture::Changes);
        }
    }
}
