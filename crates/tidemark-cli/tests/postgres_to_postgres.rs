//! The whole way from a live server back into it: every restore point, beside the live tables,
//! with types and structure as they were.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeMap;

use postgres_server::{Cluster, Wanted, versions};
use support::{Outcome, Tidemark};

#[path = "../../tidemark/tests/postgres_server/mod.rs"]
mod postgres_server;
mod support;

const ZOO: &str = include_str!("../../tidemark/tests/postgres_zoo.sql");

const SHOP: &str = r#"
  CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE,
    up int REFERENCES parent, CHECK (length(code) < 20));
  INSERT INTO parent (code) SELECT 'c' || n FROM generate_series(1, 500) n;
  CREATE TABLE child (k1 text COLLATE "C", k2 numeric(12,2), parent int REFERENCES parent ON DELETE
    CASCADE, twice numeric GENERATED ALWAYS AS (k2 * 2) STORED, big text, s serial, v int[],
    PRIMARY KEY (k1, k2));
  ALTER TABLE child ALTER big SET STORAGE EXTERNAL;
  INSERT INTO child (k1, k2, parent, big, v) SELECT 'k' || n % 50, n, 1 + n % 500,
    repeat('x' || n, 1500), ARRAY[n, NULL] FROM generate_series(1, 400) n;
  CREATE TABLE z_owner (id int PRIMARY KEY, name text);
  CREATE TABLE a_item (id int PRIMARY KEY, owner int NOT NULL REFERENCES z_owner,
    strict int REFERENCES z_owner ON DELETE RESTRICT, next int REFERENCES a_item DEFERRABLE);
  INSERT INTO z_owner SELECT n, 'o' || n FROM generate_series(1, 60) n;
  INSERT INTO a_item SELECT n, n, n, 1 FROM generate_series(1, 60) n;
  CREATE INDEX child_by_parent ON child (parent DESC) INCLUDE (s) WHERE parent > 3;
"#;

/// What happens to the tables between two backups, each as one transaction.
const CHANGES: [&str; 3] = [
    "UPDATE child SET v = ARRAY[7] WHERE k2 % 3 = 0; \
     UPDATE child SET k2 = k2 + 0.5, k1 = 'moved' WHERE k2 % 10 = 0; \
     DELETE FROM parent WHERE id % 7 = 0; \
     INSERT INTO z_owner VALUES (100, 'new'); \
     INSERT INTO a_item VALUES (100, 100, 100, 100); DELETE FROM a_item WHERE id = 60; \
     DELETE FROM z_owner WHERE id = 60; UPDATE zoo.printed SET a = '{9}' WHERE id = 1; DELETE FROM zoo.native WHERE id = 2; \
     UPDATE zoo.mixed SET c = 'Infinity' WHERE k1 = 'z'",
    "INSERT INTO parent (code, up) SELECT 'later ' || n, 1 FROM generate_series(1, 90) n; \
     ALTER TABLE child ADD note text DEFAULT 'new'; ALTER TABLE child RENAME v TO w; \
     UPDATE child SET note = 'set' WHERE parent < 20",
    "INSERT INTO z_owner VALUES (101, 'newer'); UPDATE a_item SET owner = 101, strict = 101 \
     WHERE id = 59; DELETE FROM z_owner WHERE id = 59; TRUNCATE zoo.native; INSERT INTO zoo.native (id, i) VALUES (77, 'after'); \
     DELETE FROM child WHERE k1 = 'k1'; UPDATE child SET big = 'short' WHERE k1 = 'k2'",
];

const TABLES: [&str; 7] = [
    "public.parent",
    "public.child",
    "public.z_owner",
    "public.a_item",
    "zoo.native",
    "zoo.printed",
    "zoo.mixed",
];

struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl World {
    fn run(&self, args: &[&str]) -> Outcome {
        Tidemark::new(self.folder.path()).run(args)
    }

    fn backup(&self, more: &[&str]) {
        let url = self.cluster.url();
        let args = [
            "backup", "--source", &url, "--to", "backups", "--schema", "public", "--schema", "zoo",
        ];
        let outcome = self.run(&[&args[..], more].concat());
        assert!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    }

    fn restore(&self, more: &[&str]) {
        let url = self.cluster.url_of("restorer", "postgres");
        let args = ["restore", "backups", "--target", &url];
        let outcome = self.run(&[&args[..], more].concat());
        assert!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    }

    /// What every table shows, in `schema` or where it is.
    fn shown(&self, schema: Option<&str>) -> BTreeMap<&'static str, String> {
        let show = |table: &'static str| {
            let (own, name) = table.split_once('.').unwrap();
            let at = format!("{}.{name}", schema.unwrap_or(own));
            let sql = format!(
                "SET extra_float_digits = 3; SELECT to_jsonb(t)::text, t::text FROM {at} t ORDER BY 2"
            );
            (table, self.cluster.sql(&sql))
        };
        TABLES.into_iter().map(show).collect()
    }

    /// Every index and constraint of four tables, without the schema's name.
    fn structure(&self, schema: &str) -> String {
        let named = ["parent", "child", "z_owner", "a_item"];
        let named = named.map(|name| format!("'{schema}.{name}'::regclass")).join(", ");
        let of = format!("IN ({named})");
        let indexes = format!(
            "SELECT replace(pg_get_indexdef(indexrelid), '{schema}.', '') FROM pg_index \
             WHERE indrelid {of} ORDER BY 1"
        );
        let constraints = format!(
            "SELECT conname || ' ' || replace(pg_get_constraintdef(oid), '{schema}.', '') \
             FROM pg_constraint WHERE conrelid {of} ORDER BY 1"
        );
        self.cluster.sql(&indexes) + &self.cluster.sql(&constraints)
    }
}

#[test]
fn every_point_of_a_live_server_comes_back_beside_its_tables() {
    for version in versions() {
        // given a full and an increment for each change
        let cluster = Cluster::start(&version, &Wanted::new());
        cluster.sql(&format!(
            "{ZOO} {SHOP} CREATE ROLE restorer LOGIN; GRANT CREATE ON DATABASE postgres TO \
             restorer; GRANT USAGE ON SCHEMA zoo TO restorer"
        ));
        let world = World { cluster, folder: support::temp_folder() };
        world.backup(&["--full"]);
        let url = world.cluster.url();
        let setup = ["source", "setup", "--source", &url, "--to", "backups", "--schema", "public"];
        world.run(&[&setup[..], &["--schema", "zoo"]].concat()).expect_code(0);
        world.backup(&["--incremental"]);
        let mut points = vec![world.shown(None)];
        for changes in CHANGES {
            world.cluster.sql(&format!("BEGIN; {changes}; COMMIT"));
            points.push(world.shown(None));
            world.backup(&["--incremental"]);
        }
        // when every point is restored beside the live tables
        for (number, expected) in (2..).zip(&points) {
            let (at, schema) = (format!("#{number}"), format!("at_{number}"));
            world.restore(&["--at", &at, "--into-schema", &schema, "--shards", "2"]);
            // then
            let found = world.shown(Some(&schema));
            for table in TABLES {
                assert_eq!(found[table], expected[table], "{table} at {at} on {}", version.major);
            }
        }
        let last = format!("at_{}", points.len() + 1);
        assert_eq!(world.structure(&last), world.structure("public"));
        // and when the first copy is moved on
        world.restore(&["--at", "latest", "--into-schema", "at_2", "--continue"]);
        let found = world.shown(Some("at_2"));
        let expected = points.last().unwrap();
        for table in TABLES {
            assert_eq!(found[table], expected[table], "{table} moved on, on {}", version.major);
        }
        let related = |schema: &str| {
            let sql = format!(
                "SELECT conname || ' ' || replace(pg_get_constraintdef(oid), '{schema}.', '') \
                 FROM pg_constraint WHERE conrelid = '{schema}.a_item'::regclass ORDER BY 1"
            );
            world.cluster.sql(&sql)
        };
        assert_eq!(related("at_2"), related("public"));
        // The live tables were never touched.
        assert_eq!(world.shown(None), *expected);
    }
}
