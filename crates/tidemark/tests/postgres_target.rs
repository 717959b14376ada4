//! PostgreSQL as a target: every promise of the contract, as a role that may no more than it
//! must, on every server that is installed.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod postgres_server;

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::Transaction;
use postgres_server::{Cluster, Version, Wanted, versions};
use tidemark::database::conformance::{Rows, Subject, TARGET_PROMISES, TargetSubject};
use tidemark::database::postgres::catalog::{self, TableFacts, TableStructure, Which};
use tidemark::database::postgres::error::failed;
use tidemark::database::postgres::types::read::Tuples;
use tidemark::database::postgres::types::{RowReader, RowWriter, native_default};
use tidemark::database::postgres::{PostgresTarget, Purpose, Server, Session, quoted};
use tidemark::database::{
    Disposition, Fence, Mark, Origin, Publish, Target, TargetShard, TargetTable,
};
use tidemark::error::Result;
use tidemark::ids::{CollectionId, Epoch, OperationId, ShardIdx, StepIdx, TableId, TableName};
use tidemark::row::{ChangeOp, KeyRange, RowBatch, Schema};

/// A server with the role `restorer`, which has what docs/postgres.md says that it needs, and
/// the role `reader`, which may read what `restorer` makes.
fn cluster(version: &Version) -> Cluster {
    let cluster = Cluster::start(version, &Wanted::new());
    cluster.sql("CREATE ROLE restorer LOGIN; CREATE ROLE reader LOGIN");
    cluster
}

/// An empty database in it, where `reader` may read what `restorer` makes.
fn shared_database(cluster: &Cluster) -> String {
    let name = database(cluster);
    let grant = "ALTER DEFAULT PRIVILEGES FOR ROLE restorer GRANT SELECT ON TABLES TO reader";
    cluster.sql_in(&name, grant);
    name
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
             GRANT CREATE ON SCHEMA public TO restorer"
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
        let name = shared_database(cluster);
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

/// What tables are like beyond their types: everything that is carried.
const STRUCTURE: &str = r#"
  CREATE SEQUENCE free_seq;
  CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
    code text NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED, up int REFERENCES parent,
    CONSTRAINT code_is_short CHECK (length(code) < 9) NOT VALID) WITH (fillfactor = 70);
  INSERT INTO parent (code) SELECT 'c' || n FROM generate_series(1, 40) n;
  UPDATE parent SET up = 100;
  COMMENT ON TABLE parent IS 'a parent''s comment';
  COMMENT ON COLUMN parent.code IS 'a column''s comment';
  GRANT SELECT, UPDATE ON parent TO reader WITH GRANT OPTION;
  GRANT INSERT ON parent TO PUBLIC;
  CREATE TABLE "Größe, x" ("Schlüssel" uuid NOT NULL DEFAULT '00112233-4455-6677-8899-aabbccddeeff',
    s serial, parent int, b numeric(10,2) DEFAULT 1.5, doubled numeric GENERATED ALWAYS AS (b * 2)
    STORED, c text COLLATE "C", at timestamptz(3) DEFAULT now(),
    n bigint DEFAULT nextval('free_seq'),
    CONSTRAINT "its parent" FOREIGN KEY (parent) REFERENCES parent ON DELETE CASCADE DEFERRABLE,
    CONSTRAINT "Größe, x_pk" PRIMARY KEY ("Schlüssel") INCLUDE (b),
    EXCLUDE USING btree (s WITH =));
  INSERT INTO "Größe, x" ("Schlüssel", parent) SELECT gen_random_uuid(), 100 FROM generate_series(1, 300);
  CREATE UNIQUE INDEX "Größe, x_by_b" ON "Größe, x" (b DESC NULLS LAST, lower(c), s) INCLUDE (n) WHERE s > 2;
  CREATE INDEX hashed ON "Größe, x" USING hash (c);
  ALTER TABLE "Größe, x" REPLICA IDENTITY FULL;
  CREATE TABLE by_index (a int NOT NULL, b text NOT NULL, v int);
  CREATE UNIQUE INDEX by_index_key ON by_index (b, a);
  ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key;
  INSERT INTO by_index SELECT n, 'b' || n % 7, n FROM generate_series(1, 100) n;
"#;

/// Restores tables of one database into another as it would from a backup of them.
fn restore(
    source: &mut Session,
    target: &PostgresTarget,
    operation: u64,
    tables: &[TargetTable],
) -> Vec<String> {
    let fence = Fence { operation: OperationId(operation), epoch: target_epoch(target) };
    target.prepare(fence, tables).unwrap();
    for table in tables {
        let structure = TableStructure::of(table.structure.as_ref()).unwrap().unwrap();
        let facts = facts(source, &structure.name).unwrap().unwrap();
        let natives = facts.natives(&table.schema).unwrap();
        let selected: Vec<String> = natives.iter().map(|native| native.selected()).collect();
        let order: Vec<String> = table
            .schema
            .key_columns()
            .map(|key| natives.iter().find(|it| it.name == key.name).unwrap().ordered())
            .collect();
        let copy = format!(
            "COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT (FORMAT binary)",
            selected.join(", "),
            sql_name(&structure.name),
            order.join(", ")
        );
        let reader = RowReader::new(&table.schema, &natives);
        let mut tuples = Tuples::new(source.client().copy_out(&copy).unwrap());
        let mut rows = RowBatch::new();
        while tuples.next().unwrap() {
            reader.push(&tuples, &mut rows).unwrap();
        }
        let shard = TargetShard {
            operation: fence.operation,
            table: table.name.clone(),
            shard: ShardIdx(0),
        };
        let mut mark = Mark::default().enter_step(StepIdx(0), 1);
        mark.rows = rows.len() as u64;
        mark.last_key = rows.last().map(|row| row.key.to_vec());
        target.apply(fence, &shard, &rows, &mut mark).unwrap();
    }
    target.seal(fence).unwrap();
    let notices = target.notices(fence.operation).unwrap();
    target.publish(fence, Publish::Visible).unwrap();
    notices
}

fn target_epoch(target: &PostgresTarget) -> Epoch {
    Epoch(target.allocate_txn().unwrap().0)
}

/// Tables as a backup describes them, to be restored under names that `rename` gives.
fn described(
    source: &mut Session,
    rename: impl Fn(&TableName) -> TableName,
    selects: impl Fn(&TableName) -> bool,
) -> Vec<TargetTable> {
    let tables = catalog::tables(source.client(), Which::OfUsers).unwrap();
    let tables = tables.iter().filter(|facts| selects(&facts.name));
    let tables = tables.map(|facts| TargetTable {
        name: rename(&facts.name),
        id: TableId(u128::from(facts.oid)),
        digest_id: TableId(u128::from(facts.oid)),
        schema: facts.schema().unwrap(),
        shards: vec![KeyRange::ALL],
        disposition: Disposition::Fresh,
        origin: Origin { collection: CollectionId(1), manifest: "0".repeat(64) },
        structure: Some(facts.structure.carried()),
    });
    tables.collect()
}

/// Descriptions, but for what is another file's.
fn structures(session: &mut Session, schema: &str) -> Vec<TableStructure> {
    let tables = catalog::tables(session.client(), Which::InSchema(schema)).unwrap();
    let structures = tables.into_iter().map(|facts| TableStructure {
        file_node: 0,
        owner: String::new(),
        ..facts.structure
    });
    structures.collect()
}

#[test]
fn a_table_comes_back_with_everything_that_is_carried() {
    for version in versions() {
        // given
        let cluster = cluster(&version);
        let (from, to) = (database(&cluster), database(&cluster));
        cluster.sql_in(&from, STRUCTURE);
        cluster.sql_in(&to, "CREATE SEQUENCE free_seq; GRANT USAGE ON free_seq TO restorer");
        let server = Server::parse(&cluster.url_of("postgres", &from)).unwrap();
        let mut source = server.connect(Purpose::Read).unwrap();
        let target = open(&cluster, &to);
        // when
        let tables = described(&mut source, TableName::clone, |_| true);
        let notices = restore(&mut source, &target, 1, &tables);
        // then
        assert_eq!(notices, Vec::<String>::new());
        let server = Server::parse(&cluster.url_of("postgres", &to)).unwrap();
        let mut there = server.connect(Purpose::Read).unwrap();
        // A column that is dropped is not there: numbers may differ, here they do not.
        assert_eq!(structures(&mut there, "public"), structures(&mut source, "public"));
        for table in ["parent", "\"Größe, x\"", "by_index"] {
            let rows = format!("SELECT t::text FROM {table} t ORDER BY 1");
            assert_eq!(cluster.sql_in(&to, &rows), cluster.sql_in(&from, &rows));
        }
        // What a sequence gives next was not given out before.
        let insert = "INSERT INTO parent (code) VALUES ('next') RETURNING id";
        assert_eq!(cluster.sql_in(&to, insert), "300");
    }
}

#[test]
fn a_table_beside_itself_collides_with_nothing() {
    let version = postgres_server::newest();
    let cluster = cluster(&version);
    let name = database(&cluster);
    cluster.sql_in(&name, STRUCTURE);
    let server = Server::parse(&cluster.url_of("postgres", &name)).unwrap();
    let mut source = server.connect(Purpose::Read).unwrap();
    cluster.sql_in(
        &name,
        "GRANT REFERENCES ON parent TO restorer; GRANT USAGE ON free_seq TO restorer",
    );
    let target = open(&cluster, &name);
    // Renamed beside the live tables, twice, and into a schema under their own names.
    for (operation, suffix) in [(1, "_before"), (2, "_again")] {
        let renamed = |name: &TableName| {
            TableName::new(name.schema(), &format!("{}{suffix}", name.name())).unwrap()
        };
        let tables = described(&mut source, renamed, |name| {
            !name.name().ends_with("_before") && name.schema() == "public"
        });
        restore(&mut source, &target, operation, &tables);
    }
    let elsewhere = |name: &TableName| TableName::new("beside", name.name()).unwrap();
    let live = |name: &TableName| ["parent", "Größe, x"].contains(&name.name());
    let tables = described(&mut source, elsewhere, live);
    restore(&mut source, &target, 3, &tables);
    let count = |table: &str| cluster.sql_in(&name, &format!("SELECT count(*) FROM {table}"));
    for table in ["\"Größe, x_before\"", "\"Größe, x_again\"", "beside.\"Größe, x\""] {
        assert_eq!(count(table), "300");
    }
    // Foreign keys lead to the copy beside, sequences are copies too.
    let key = "SELECT confrelid::regclass FROM pg_constraint WHERE contype = 'f' AND conrelid = ";
    let of = |table: &str| cluster.sql_in(&name, &format!("{key}'{table}'::regclass"));
    assert_eq!(of("\"Größe, x_before\""), "parent_before");
    assert_eq!(of("beside.\"Größe, x\""), "beside.parent");
    let sequence = "SELECT pg_get_serial_sequence('\"Größe, x_before\"', 's')";
    assert_eq!(cluster.sql_in(&name, sequence), "public.\"Größe, x_before_s_seq\"");
    // The live tables are as they were.
    let live = structures(&mut source, "public");
    let live = live.iter().find(|it| it.name.name() == "Größe, x").unwrap();
    let names: Vec<&str> = live.indexes.iter().map(|index| &*index.name).collect();
    assert_eq!(names, ["Größe, x_by_b", "hashed"]);
}

#[test]
fn a_foreign_key_to_a_table_that_is_left_behind_is_told() {
    let version = postgres_server::newest();
    let cluster = cluster(&version);
    let (from, to) = (database(&cluster), database(&cluster));
    cluster.sql_in(&from, STRUCTURE);
    cluster.sql_in(
        &from,
        "ALTER TABLE \"Größe, x\" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; \
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER watch BEFORE INSERT ON \"Größe, x\" FOR EACH ROW EXECUTE FUNCTION nothing(); \
         CREATE POLICY mine ON \"Größe, x\" USING (s > 0)",
    );
    cluster.sql_in(&to, "CREATE SEQUENCE free_seq; GRANT USAGE ON free_seq TO restorer");
    let server = Server::parse(&cluster.url_of("postgres", &from)).unwrap();
    let mut source = server.connect(Purpose::Read).unwrap();
    let target = open(&cluster, &to);
    let tables = described(&mut source, TableName::clone, |name| name.name() == "Größe, x");
    let notices = restore(&mut source, &target, 1, &tables);
    assert!(notices.iter().any(|it| it.contains("`its parent`")), "{notices:?}");
    assert!(notices.iter().any(|it| it.contains("row-level security")), "{notices:?}");
    let left_out = "`policy mine`, `trigger watch`";
    assert!(notices.iter().any(|it| it.contains(left_out)), "{notices:?}");
    let secure = "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class \
                  WHERE relname = 'Größe, x'";
    assert_eq!(cluster.sql_in(&to, secure), "t");
}

#[test]
fn every_type_is_restored_as_what_it_was() {
    for version in versions() {
        let cluster = cluster(&version);
        let (from, to) = (database(&cluster), database(&cluster));
        let zoo = include_str!("postgres_zoo.sql");
        cluster.sql_in(&from, zoo);
        // Types are there already; tables are not.
        let types: Vec<&str> = zoo
            .split_inclusive(";\n")
            .filter(|it| it.contains("CREATE TYPE") || it.contains("CREATE DOMAIN"))
            .collect();
        cluster.sql_in(
            &to,
            &format!("CREATE SCHEMA zoo; GRANT ALL ON SCHEMA zoo TO restorer; {}", types.join("")),
        );
        let server = Server::parse(&cluster.url_of("postgres", &from)).unwrap();
        let mut source = server.connect(Purpose::Read).unwrap();
        // A `regclass` names a table that must be there.
        cluster.sql_in(&from, "UPDATE zoo.printed SET aa = 'pg_class'");
        let target = open(&cluster, &to);
        let tables = described(&mut source, TableName::clone, |_| true);
        restore(&mut source, &target, 1, &tables);
        for table in ["zoo.native", "zoo.printed", "zoo.mixed"] {
            let rows =
                format!("SET extra_float_digits = 3; SELECT t::text FROM {table} t ORDER BY 1");
            assert_eq!(cluster.sql_in(&to, &rows), cluster.sql_in(&from, &rows), "{table}");
        }
        let server = Server::parse(&cluster.url_of("postgres", &to)).unwrap();
        let mut there = server.connect(Purpose::Read).unwrap();
        assert_eq!(structures(&mut there, "zoo"), structures(&mut source, "zoo"));
    }
}
