//! Connecting to PostgreSQL, what its tables are said to be, and values that come back as
//! they were, against real servers.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod postgres_server;

use std::io::Write;

use postgres_server::{Cluster, Wanted, newest, versions};
use tidemark::Kind;
use tidemark::database::postgres::catalog::{self, TableFacts, TableStructure, Which};
use tidemark::database::postgres::types::read::Tuples;
use tidemark::database::postgres::types::{RowReader, RowWriter};
use tidemark::database::postgres::{Purpose, Server, Session, quoted};
use tidemark::ids::ColumnId;
use tidemark::row::{LogicalType, RowBatch, Value};

fn session(cluster: &Cluster, purpose: Purpose) -> Session {
    Server::parse(&cluster.url()).unwrap().connect(purpose).unwrap()
}

fn table(session: &mut Session, name: &str) -> TableFacts {
    let tables = catalog::tables(session.client(), Which::OfUsers).unwrap();
    let found = tables.into_iter().find(|table| table.name.to_string() == name);
    found.unwrap_or_else(|| panic!("no table `{name}`"))
}

fn qualified(facts: &TableFacts) -> String {
    format!("{}.{}", quoted(facts.name.schema()), quoted(facts.name.name()))
}

/// Every row of a table.
fn rows_of(session: &mut Session, facts: &TableFacts) -> RowBatch {
    let schema = facts.schema().unwrap();
    let natives = facts.natives(&schema).unwrap();
    let selected: Vec<String> = natives.iter().map(|native| native.selected()).collect();
    let order: Vec<String> = schema
        .key
        .iter()
        .map(|id| natives.iter().find(|it| ColumnId(it.number as u32) == *id).unwrap().ordered())
        .collect();
    let order =
        if order.is_empty() { String::new() } else { format!("ORDER BY {}", order.join(", ")) };
    let copy = format!(
        "COPY (SELECT {} FROM ONLY {} {order}) TO STDOUT (FORMAT binary)",
        selected.join(", "),
        qualified(facts)
    );
    let reader = RowReader::new(&schema, &natives);
    let mut tuples = Tuples::new(session.client().copy_out(&copy).unwrap());
    let mut batch = RowBatch::new();
    while tuples.next().unwrap() {
        reader.push(&tuples, &mut batch).unwrap();
    }
    batch
}

/// Writes rows into another table of the same columns.
fn write_rows(session: &mut Session, facts: &TableFacts, into: &str, rows: &RowBatch) {
    let schema = facts.schema().unwrap();
    let natives = facts.natives(&schema).unwrap();
    let mut writer = RowWriter::new(&schema, &natives);
    let names: Vec<String> = natives.iter().map(|native| quoted(&native.name)).collect();
    let copy = format!("COPY {into} ({}) FROM STDIN {}", names.join(", "), writer.options());
    let mut bytes = Vec::new();
    writer.begin(&mut bytes);
    for row in rows.iter() {
        writer.row(&[], row.key, row.payload, &mut bytes).unwrap();
    }
    writer.end(&mut bytes);
    let mut copying = session.client().copy_in(&copy).unwrap();
    copying.write_all(&bytes).unwrap();
    copying.finish().unwrap();
}

const ZOO: &str = include_str!("postgres_zoo.sql");

#[test]
fn every_type_comes_back_as_it_was() {
    for version in versions() {
        let cluster = Cluster::start(&version, &Wanted::new());
        cluster.sql(ZOO);
        let mut read = session(&cluster, Purpose::Read);
        let mut write = session(&cluster, Purpose::Write);
        for name in ["zoo.native", "zoo.printed", "zoo.mixed"] {
            // given
            let facts = table(&mut read, name);
            let rows = rows_of(&mut read, &facts);
            assert!(rows.len() > 1, "{name}");
            // when
            let copy = format!("zoo.copy_of_{}", facts.name.name());
            cluster.sql(&format!("CREATE TABLE {copy} (LIKE {name} INCLUDING ALL)"));
            write_rows(&mut write, &facts, &copy, &rows);
            // then: the server prints both alike, and they read alike
            let print = |table: &str| {
                cluster.sql(&format!(
                    "SET extra_float_digits = 3; SELECT t::text FROM {table} t ORDER BY 1"
                ))
            };
            assert_eq!(print(&copy), print(name), "{name} on {}", version.major);
            let copied = table(&mut read, &copy);
            let again = rows_of(&mut read, &copied);
            let bytes = |rows: &RowBatch| -> Vec<(Vec<u8>, Vec<u8>)> {
                rows.iter().map(|row| (row.key.to_vec(), row.payload.to_vec())).collect()
            };
            assert_eq!(bytes(&again), bytes(&rows), "{name} on {}", version.major);
        }
    }
}

#[test]
fn a_time_that_does_not_fit_is_refused_by_its_column() {
    let cluster = Cluster::newest();
    cluster.sql("CREATE TABLE late (id int PRIMARY KEY, at timestamp)");
    cluster.sql("INSERT INTO late VALUES (1, '294276-12-31 23:59:59')");
    let mut session = session(&cluster, Purpose::Read);
    let facts = table(&mut session, "late");
    let schema = facts.schema().unwrap();
    let reader = RowReader::new(&schema, &facts.natives(&schema).unwrap());
    let copy = "COPY public.late TO STDOUT (FORMAT binary)";
    let mut tuples = Tuples::new(session.client().copy_out(copy).unwrap());
    assert!(tuples.next().unwrap());
    let error = reader.push(&tuples, &mut RowBatch::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("`at`"), "{error}");
}

#[test]
fn tables_are_described_as_they_are() {
    for version in versions() {
        let cluster = Cluster::start(&version, &Wanted::new());
        cluster.sql(
            "CREATE TABLE \"Größe.x\" (a int GENERATED ALWAYS AS IDENTITY, gone int, \
               b numeric(10,2) NOT NULL DEFAULT 1.5, c text COLLATE \"C\", \
               d int GENERATED ALWAYS AS (a * 2) STORED, s serial, \
               CONSTRAINT pos CHECK (b > 0), PRIMARY KEY (c, a)); \
             ALTER TABLE \"Größe.x\" DROP COLUMN gone; \
             CREATE UNIQUE INDEX by_b ON \"Größe.x\" (b DESC, lower(c)) INCLUDE (s) WHERE b > 2; \
             COMMENT ON TABLE \"Größe.x\" IS 'a comment'",
        );
        let mut session = session(&cluster, Purpose::Read);
        let facts = table(&mut session, "\"Größe.x\"");
        let schema = facts.schema().unwrap();
        let names: Vec<&str> = schema.columns.iter().map(|column| &*column.name).collect();
        assert_eq!(names, ["a", "b", "c", "s"]);
        assert_eq!(schema.key, [ColumnId(4), ColumnId(1)]);
        assert_eq!(schema.column_named("b").unwrap().native.as_deref(), Some("numeric(10,2)"));
        assert_eq!(schema.column_named("c").unwrap().native, None);
        assert_eq!(schema.column_named("a").unwrap().logical, LogicalType::Int64);
        let structure = TableStructure::of(Some(&facts.structure.carried())).unwrap().unwrap();
        assert_eq!(structure, facts.structure);
        let index = &structure.indexes[0];
        assert_eq!(index.name, "by_b");
        assert!(index.definition.starts_with("USING btree (b DESC, lower(c)"), "{index:?}");
        assert!(index.definition.contains("INCLUDE (s) WHERE (b > "), "{index:?}");
        let check = structure.constraints.iter().find(|it| it.name == "pos").unwrap();
        assert!(check.definition.starts_with("CHECK ((b > "), "{check:?}");
        let column = |name: &str| structure.columns.iter().find(|it| it.name == name).unwrap();
        assert_eq!(column("a").identity.as_deref(), Some("a"));
        assert_eq!(column("c").collation.as_deref(), Some("pg_catalog.\"C\""));
        assert_eq!(column("d").generated.as_deref(), Some("s"));
        assert_eq!(column("s").sequence.as_ref().unwrap().name, "public.\"Größe.x_s_seq\"");
        assert_eq!(structure.comment.as_deref(), Some("a comment"));
        let database = catalog::database(&mut session).unwrap();
        assert!(!database.is_standby);
        assert!(database.identity().starts_with("postgresql:"));
    }
}

#[test]
fn what_values_look_like_does_not_depend_on_the_server() {
    let cluster = Cluster::newest();
    cluster.sql(
        "ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'; \
         ALTER DATABASE postgres SET IntervalStyle = 'iso_8601'; \
         ALTER DATABASE postgres SET extra_float_digits = -5; \
         ALTER DATABASE postgres SET TimeZone = 'Asia/Kathmandu'; \
         ALTER DATABASE postgres SET row_security = on; \
         ALTER DATABASE postgres SET search_path = 'evil'; \
         ALTER ROLE postgres SET bytea_output = 'escape'",
    );
    let mut session = session(&cluster, Purpose::Read);
    let row = session
        .client()
        .query_one(
            "SELECT '2024-02-01'::date::text, '1 day 2 hours'::interval::text, \
             (1::float8/3)::text, '2024-01-01T00:00:00Z'::timestamptz::text, \
             current_setting('row_security'), '\\x00'::bytea::text",
            &[],
        )
        .unwrap();
    let found: Vec<String> = (0..row.len()).map(|at| row.get(at)).collect();
    let expected = [
        "2024-02-01",
        "1 day 02:00:00",
        "0.3333333333333333",
        "2024-01-01 00:00:00+00",
        "off",
        "\\x00",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_session_for_reading_writes_nothing() {
    let cluster = Cluster::newest();
    cluster.sql("CREATE TABLE t (a int)");
    let mut session = session(&cluster, Purpose::Read);
    let refused = session.client().execute("INSERT INTO public.t VALUES (1)", &[]);
    let error = refused.map_err(tidemark::database::postgres::error::failed("insert")).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
}

#[test]
fn a_wrong_password_is_told_without_it() {
    let hba = "local all postgres trust\nlocal all all scram-sha-256\n";
    let cluster = Cluster::start(&newest(), &Wanted::new().with_hba(hba));
    cluster.sql("CREATE ROLE ann LOGIN PASSWORD 'right-word'");
    let with = |password: &str| {
        let url = cluster.url_of(&format!("ann:{password}"), "postgres");
        Server::parse(&url).unwrap().connect(Purpose::Read)
    };
    assert!(with("right-word").is_ok());
    let error = with("wrong-word").unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert!(!format!("{error:?}").contains("wrong-word"), "{error:?}");
    assert!(error.message().contains("ann"), "{error}");
}

#[test]
fn who_is_not_there_may_come_back() {
    let mut cluster = Cluster::newest();
    let server = Server::parse(&cluster.url()).unwrap();
    let missing = Server::parse(&cluster.url_of("postgres", "nowhere")).unwrap();
    assert_eq!(missing.connect(Purpose::Read).unwrap_err().kind(), Kind::NotFound);
    let mut session = server.connect(Purpose::Read).unwrap();
    cluster.kill_9();
    let lost = session.client().query_one("SELECT 1", &[]);
    let lost = lost.map_err(tidemark::database::postgres::error::failed("ask")).unwrap_err();
    assert_eq!(lost.kind(), Kind::Transient, "{lost:?}");
    assert_eq!(server.connect(Purpose::Read).unwrap_err().kind(), Kind::Transient);
    cluster.start_again();
    assert!(server.connect(Purpose::Read).is_ok());
}

#[test]
fn a_certificate_is_checked_as_far_as_it_is_asked_for() {
    let cluster = Cluster::start(&newest(), &Wanted::new().with_tls());
    let other = Cluster::start(&newest(), &Wanted::new().with_tls());
    let encrypted = |host: &str, parameters: &str| {
        let url = format!("postgres://postgres@{host}:{}/postgres?{parameters}", cluster.port());
        let mut session = Server::parse(&url)?.connect(Purpose::Read)?;
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Ok::<bool, tidemark::Error>(session.client().query_one(sql, &[]).unwrap().get(0))
    };
    let root = |cluster: &Cluster| cluster.root_certificate().display().to_string();
    let (own, strange) = (root(&cluster), root(&other));
    let kind = |host: &str, parameters: &str| encrypted(host, parameters).map_err(|it| it.kind());
    assert_eq!(kind("127.0.0.1", "sslmode=disable"), Ok(false));
    assert_eq!(kind("127.0.0.1", "sslmode=prefer"), Ok(true));
    assert_eq!(kind("127.0.0.1", "sslmode=require"), Ok(true));
    let verify = |host: &str, mode: &str, root: &str| {
        kind(host, &format!("sslmode={mode}&sslrootcert={root}"))
    };
    assert_eq!(verify("localhost", "verify-full", &own), Ok(true));
    assert_eq!(verify("127.0.0.1", "verify-ca", &own), Ok(true));
    // The certificate is for `localhost`.
    assert_eq!(verify("127.0.0.1", "verify-full", &own), Err(Kind::Blocked));
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(verify("localhost", mode, &strange), Err(Kind::Blocked), "{mode}");
    }
    let plain = Cluster::start(&newest(), &Wanted::new().on_tcp());
    let url = format!(
        "postgres://postgres@localhost:{}/postgres?sslmode=verify-full&sslrootcert={own}",
        plain.port()
    );
    let error = Server::parse(&url).unwrap().connect(Purpose::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked, "{error:?}");
}

#[test]
fn keys_sort_as_their_bytes_do() {
    let cluster = Cluster::newest();
    cluster.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'happy', 'angry'); \
         CREATE TABLE k (m mood, t text, n numeric, PRIMARY KEY (m, t, n)); \
         INSERT INTO k SELECT m, t, n FROM unnest(enum_range(NULL::mood)) m, \
           unnest(ARRAY['a', 'B', 'ä', '', 'a b']) t, unnest(ARRAY[1.0, -5, 'NaN', 100]) n",
    );
    let mut session = session(&cluster, Purpose::Read);
    let facts = table(&mut session, "k");
    let rows = rows_of(&mut session, &facts);
    assert_eq!(rows.len(), 60);
    rows.check_inside(&tidemark::row::KeyRange::ALL).unwrap();
    let codec = tidemark::row::RowCodec::new(&facts.schema().unwrap());
    let first = codec.decode(rows.row(0).key, rows.row(0).payload).unwrap();
    assert_eq!(first[0], Value::Text("angry".to_owned()));
}
