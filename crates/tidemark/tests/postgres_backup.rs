//! Backups of live PostgreSQL servers: every restore point is what the source showed at its cut.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;
mod postgres_server;
mod postgres_world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chain::{database, name, restore_done};
use postgres_server::{Cluster, Wanted, versions};
use postgres_world::{WAIT, World};
use tidemark::Kind;
use tidemark::backup::BackupChoice;
use tidemark::collection::manifest::{Manifest, TableMode};
use tidemark::database::Source;
use tidemark::database::postgres::Session;
use tidemark::database::postgres::setup::{self, set_up};
use tidemark::executor::Ended;
use tidemark::restore::RestoreOptions;
use tidemark::row::{KeyRange, RowBatch};

#[track_caller]
fn mode_of<'m>(manifest: &'m Manifest, table: &str) -> (TableMode, Option<&'m str>) {
    let entry = manifest.tables.iter().find(|entry| entry.name == name(table)).unwrap();
    (entry.mode, entry.reason.as_deref())
}

#[track_caller]
fn is_whole(manifest: &Manifest, table: &str, because: &str) {
    let (mode, reason) = mode_of(manifest, table);
    let reason = reason.unwrap_or_default();
    assert!(mode == TableMode::Whole && reason.contains(because), "{table}: {mode:?} {reason}");
}

#[track_caller]
fn is_delta(manifest: &Manifest, table: &str) {
    assert_eq!(mode_of(manifest, table), (TableMode::Delta, None), "{table}");
}

const TABLES: &str = r#"
CREATE TABLE plain (id int PRIMARY KEY, name text, sum numeric, at timestamptz);
CREATE TABLE large (id bigint PRIMARY KEY, small int, body text, more bytea);
ALTER TABLE large ALTER body SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL;
CREATE TABLE words (word text PRIMARY KEY, count int, body text);
ALTER TABLE words ALTER body SET STORAGE EXTERNAL;
CREATE TABLE pairs (a int, b text, v jsonb, PRIMARY KEY (b, a));
CREATE TABLE told_whole (id uuid PRIMARY KEY, n double precision, body text);
ALTER TABLE told_whole REPLICA IDENTITY FULL;
ALTER TABLE told_whole ALTER body SET STORAGE EXTERNAL;
CREATE TABLE by_index (n numeric NOT NULL, d date, twice numeric GENERATED ALWAYS AS (n * 2) STORED);
CREATE UNIQUE INDEX by_n ON by_index (n);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_n;
CREATE TABLE parted (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_n PARTITION OF parted FOR VALUES IN ('n');
CREATE TABLE parted_s PARTITION OF parted FOR VALUES IN ('s');
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, v int);
CREATE SCHEMA "Läden";
CREATE TABLE "Läden"."Wei""rd.name" ("sch lüssel" int PRIMARY KEY, "select" text);
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE typed (m mood, p positive, PRIMARY KEY (m, p), r int4range, l int[], i interval, b bit(5));
"#;

/// xorshift64*: any generator will do, if it replays.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A text, now and then too large to be stored in its row.
    fn text(&mut self) -> String {
        match self.below(6) {
            0 => "NULL".to_owned(),
            1 | 2 => {
                let (letter, times) = (self.below(26) as u8 + b'a', 3000 + self.below(3000));
                format!("repeat('{}{}', {times})", letter as char, self.below(100))
            }
            _ => format!("'text {}'", self.below(1000)),
        }
    }

    /// One statement that changes some rows.
    fn change(&mut self) -> String {
        let (id, other, n) = (self.below(40), self.below(40), self.below(1000));
        let text = self.text();
        let region = self.of(&["n", "s"]);
        let mood = self.of(&["sad", "glad"]);
        match self.below(26) {
            0 => format!(
                "INSERT INTO plain VALUES ({id}, {text}, {n}.50, now()) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
            ),
            1 => format!("UPDATE plain SET sum = sum + {n} WHERE id = {id}"),
            2 => format!(
                "UPDATE plain SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM plain WHERE id = {other})"
            ),
            3 => format!("DELETE FROM plain WHERE id = {id}"),
            4 | 5 => format!(
                "INSERT INTO large VALUES ({id}, {n}, {text}, convert_to({text}, 'UTF8')) ON CONFLICT (id) DO UPDATE SET small = {n}"
            ),
            6 => format!("UPDATE large SET small = {n} WHERE id = {id}"),
            7 => format!("UPDATE large SET body = {text} WHERE id = {id}"),
            8 => format!(
                "UPDATE large SET id = {other}, small = {n} WHERE id = {id} AND NOT EXISTS (SELECT FROM large WHERE id = {other})"
            ),
            9 => format!("DELETE FROM large WHERE id % 7 = {}", id % 7),
            10 => format!(
                "INSERT INTO words VALUES ('Wört-{id}', {n}, {text}) ON CONFLICT (word) DO UPDATE SET count = words.count + 1"
            ),
            11 => format!(
                "UPDATE words SET word = 'w{other}' WHERE word = 'Wört-{id}' AND NOT EXISTS (SELECT FROM words WHERE word = 'w{other}')"
            ),
            12 => format!("DELETE FROM words WHERE count % 5 = {}", n % 5),
            13 => format!(
                "INSERT INTO pairs VALUES ({id}, 'b{}', '{{\"n\": {n}}}') ON CONFLICT (b, a) DO UPDATE SET v = excluded.v",
                other % 5
            ),
            14 => format!("DELETE FROM pairs WHERE a = {id}"),
            15 | 16 => format!(
                "INSERT INTO told_whole VALUES (('00000000-0000-0000-0000-0000000000' || lpad('{id}', 2, '0'))::uuid, {n} / 7.0, {text}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
            ),
            17 => format!(
                "UPDATE told_whole SET id = ('10000000-0000-0000-0000-0000000000' || lpad('{id}', 2, '0'))::uuid WHERE id::text LIKE '0%{id}' AND NOT EXISTS (SELECT FROM told_whole WHERE id::text LIKE '1%{id}')"
            ),
            18 => "DELETE FROM told_whole WHERE n < 10".to_owned(),
            19 => format!(
                "INSERT INTO by_index (n, d) VALUES ({id}.{}0, date '2020-01-01' + {n}) ON CONFLICT (n) DO UPDATE SET d = excluded.d",
                n % 10
            ),
            20 => format!("UPDATE by_index SET n = n + 100 WHERE n < {id}"),
            21 => format!(
                "INSERT INTO parted VALUES ({id}, '{region}', {n}) ON CONFLICT (id, region) DO UPDATE SET v = excluded.v"
            ),
            22 => format!(
                "UPDATE parted SET region = '{region}' WHERE id = {id} AND NOT EXISTS (SELECT FROM parted p WHERE p.id = {id} AND p.region = '{region}')"
            ),
            23 => format!(
                "INSERT INTO fleeting VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
            ),
            24 => format!(
                "INSERT INTO \"Läden\".\"Wei\"\"rd.name\" VALUES ({id}, {text}) ON CONFLICT (\"sch lüssel\") DO UPDATE SET \"select\" = excluded.\"select\""
            ),
            _ => format!(
                "INSERT INTO typed VALUES ('{mood}', {}, '[{id},{})', '{{1,NULL,{n}}}', '{n} minutes', B'10101') ON CONFLICT (m, p) DO UPDATE SET l = excluded.l",
                id + 1,
                id + 5
            ),
        }
    }

    /// One statement that changes a table's form, or everything in it.
    fn reshape(&mut self) -> String {
        let n = self.below(1000);
        match self.below(10) {
            0 => "TRUNCATE pairs".to_owned(),
            1 => "TRUNCATE plain, words".to_owned(),
            2 => format!("ALTER TABLE plain ADD COLUMN c{n} int DEFAULT {n}"),
            3 => "ALTER TABLE plain ALTER COLUMN sum TYPE numeric USING sum + 1".to_owned(),
            4 => "ALTER TABLE large RENAME COLUMN small TO tiny; ALTER TABLE large RENAME COLUMN tiny TO small".to_owned(),
            5 => "DROP TABLE pairs; CREATE TABLE pairs (a int, b text, v jsonb, PRIMARY KEY (b, a))".to_owned(),
            6 => "ALTER TABLE words REPLICA IDENTITY FULL".to_owned(),
            7 => "ALTER TABLE words REPLICA IDENTITY DEFAULT".to_owned(),
            8 => format!("CREATE TABLE IF NOT EXISTS new_{n} (id int PRIMARY KEY); INSERT INTO new_{n} VALUES ({n}) ON CONFLICT DO NOTHING"),
            _ => "ALTER TABLE told_whole ALTER COLUMN n TYPE real; ALTER TABLE told_whole ALTER COLUMN n TYPE double precision".to_owned(),
        }
    }
}

/// Changes a server's tables until told to stop, in transactions of some statements.
fn write_until(session: &mut Session, dice: &mut Dice, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        write_some(session, dice);
    }
}

fn write_some(session: &mut Session, dice: &mut Dice) {
    let statements: Vec<String> = (0..1 + dice.below(5)).map(|_| dice.change()).collect();
    let end = if dice.below(8) == 0 { "ROLLBACK" } else { "COMMIT" };
    let sql = format!("BEGIN; {}; {end}", statements.join("; "));
    // A deadlock with the cut's locks or a reshaped table is the application's to repeat.
    if session.client().batch_execute(&sql).is_err() {
        session.client().batch_execute("ROLLBACK").unwrap();
    }
}

fn check_a_chain_under_load(seed: u64, world: &World) {
    world.cluster.sql(TABLES);
    let mut dice = Dice(seed);
    let mut session = world.session();
    (0..200).for_each(|_| write_some(&mut session, &mut dice));
    world.set_up();
    let mut deltas = 0;
    for round in 0..8u64 {
        let stop = AtomicBool::new(false);
        let mut writers_dice = Dice(seed * 1000 + round + 1);
        let mut writer = world.session();
        let manifest = std::thread::scope(|threads| {
            threads.spawn(|| write_until(&mut writer, &mut writers_dice, &stop));
            // The writer must stop even when a backup fails, or the scope never ends.
            let stopped = StopOnDrop(&stop);
            if round > 0 && dice.below(2) == 0 {
                let _ = session.client().batch_execute(&dice.reshape());
            }
            (0..20 + dice.below(60)).for_each(|_| write_some(&mut session, &mut dice));
            if dice.below(3) == 0 {
                world.set_up();
            }
            let manifest = world.backup(BackupChoice::Auto);
            drop(stopped);
            manifest
        });
        deltas += manifest.tables.iter().filter(|table| table.mode == TableMode::Delta).count();
    }
    assert!(deltas > 20, "{deltas} deltas: too few to tell anything");
    world.check_every_point();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_restore_point_is_what_a_server_under_load_showed() {
    for (seed, version) in (1..).zip(versions()) {
        check_a_chain_under_load(seed, &World::on(Cluster::start(&version, &Wanted::new())));
    }
}

#[test]
fn a_load_that_is_read_in_many_slices_is_restored_as_well() {
    let mut world = World::on(Cluster::newest());
    world.choose(|options| options.slice_bytes = 1);
    check_a_chain_under_load(77, &world);
}

/// The text of a column of one row of the newest restore point.
#[track_caller]
fn restored(world: &World, table: &str) -> Vec<u8> {
    let target = database(&tempfile::tempdir_in(world.folder.path()).unwrap().keep());
    restore_done(&target, &world.collection, &RestoreOptions::default());
    chain::dump(&target, table)
}

#[test]
fn a_full_needs_no_slot_and_leaves_the_server_as_it_was() {
    let mut world = World::new(&Wanted::new().with("wal_level", "replica"));
    world.cluster.sql(TABLES);
    world.cluster.sql(
        "INSERT INTO plain SELECT n, 'name ' || n, n / 3.0, now() FROM generate_series(1, 5000) n; \
         INSERT INTO words SELECT md5(n::text), n FROM generate_series(1, 3000) n; \
         INSERT INTO pairs SELECT n, chr(97 + n % 26), '{}' FROM generate_series(1, 3000) n; \
         ANALYZE",
    );
    // Small enough that every table is read by several workers.
    world.choose(|options| options.shard_bytes = 64 << 10);
    let manifest = world.backup(BackupChoice::Full);
    let plain = manifest.tables.iter().find(|table| table.name == name("plain")).unwrap();
    assert!(plain.parts.len() > 3, "{} parts", plain.parts.len());
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(world.cluster.sql(slots), "0");
    world.check_every_point();

    // An increment says what it needs.
    let refused = world.try_backup(BackupChoice::Incremental, &[]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.message().contains("tidemark source setup"), "{refused}");
    let set_up = set_up(&world.server(), world.collection.id(), &mut |_| true, WAIT);
    let refused = set_up.unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.message().contains("wal_level"), "{refused}");
}

#[test]
fn a_restored_table_is_by_value_what_copy_prints() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, name text, empty text, n numeric, at timestamptz, \
           d date, ok boolean); \
         INSERT INTO t SELECT n, CASE WHEN n % 5 > 0 THEN 'a \"quoted\", ' || n END, '', \
           n / 8.0, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 minute', \
           date '0001-02-05 BC' + n, n % 2 = 0 FROM generate_series(-20, 40) n",
    );
    world.backup(BackupChoice::Full);
    let dumped = String::from_utf8(restored(&world, "t")).unwrap();
    // Our text of a time is another than the server's, and so is that of a year before 1.
    let printed = world.cluster.sql(
        "SET timezone = 'UTC'; COPY (SELECT id, name, empty, n, \
           to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at, \
           CASE WHEN d < date '0001-01-01' THEN '0000-' || to_char(d, 'MM-DD') \
             ELSE to_char(d, 'YYYY-MM-DD') END AS d, \
           CASE WHEN ok THEN 'true' ELSE 'false' END AS ok FROM t ORDER BY id) \
         TO STDOUT (FORMAT csv, HEADER)",
    );
    assert_eq!(dumped.trim_end(), printed);
}

#[test]
fn unchanged_values_out_of_line_are_kept_and_moved_rows_are_read_from_the_cut() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(TABLES);
    world.cluster.sql(
        "INSERT INTO large SELECT n, 0, repeat('x', 9000 + n), decode(repeat('ab', 5000), 'hex') \
         FROM generate_series(1, 20) n",
    );
    world.set_up();
    world.backup(BackupChoice::Full);
    // One stays where it is, one moves, one moves and changes, one moves twice, and one goes
    // to where another was.
    world.cluster.sql(
        "UPDATE large SET small = 1 WHERE id = 1; \
         UPDATE large SET id = 102 WHERE id = 2; \
         UPDATE large SET id = 103, body = 'new' WHERE id = 3; \
         UPDATE large SET id = 104 WHERE id = 4; UPDATE large SET id = 204 WHERE id = 104; \
         DELETE FROM large WHERE id = 5; UPDATE large SET id = 5 WHERE id = 6; \
         UPDATE large SET id = 107 WHERE id = 7; UPDATE large SET small = 7 WHERE id = 107",
    );
    let manifest = world.backup(BackupChoice::Incremental);
    is_delta(&manifest, "large");
    let large = manifest.tables.iter().find(|table| table.name == name("large")).unwrap();
    let rows: u64 = large.parts.iter().map(|part| part.rows).sum();
    let tombstones: u64 = large.parts.iter().map(|part| part.tombstones).sum();
    // Deleted are 2, 3, 4, 104, 6 and 7; written are 1, 102, 103, 204, 5 and 107.
    assert_eq!((rows, tombstones), (12, 6));
    world.check_every_point();
}

#[test]
fn what_cannot_be_a_delta_is_whole_and_says_why() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(TABLES);
    world.cluster.sql(
        "CREATE TABLE filtered (id int PRIMARY KEY); CREATE TABLE listed (id int PRIMARY KEY, v int); \
         CREATE TABLE late (id int PRIMARY KEY); CREATE TABLE vacuumed (id int PRIMARY KEY); \
         CREATE TABLE rewritten (id int PRIMARY KEY, v int); INSERT INTO rewritten VALUES (1, 1); \
         CREATE TABLE renamed (id int PRIMARY KEY, v int); \
         CREATE TABLE back_and_forth (id int PRIMARY KEY, v int); \
         CREATE TABLE put_back (id int PRIMARY KEY); CREATE TABLE nameless (id int PRIMARY KEY); \
         CREATE TABLE blind (id int PRIMARY KEY); ALTER TABLE blind REPLICA IDENTITY NOTHING",
    );
    world.set_up();
    let publication = format!("tidemark_{}", world.collection.id());
    let full = |world: &World| world.backup(BackupChoice::Full);
    full(&world);
    let alter = |sql: &str| world.cluster.sql(&sql.replace("%P", &publication));
    // Filters of rows and columns came with version 15.
    let has_filters = world.cluster.version().major >= 15;
    if has_filters {
        alter(
            "ALTER PUBLICATION %P DROP TABLE filtered, listed; \
             ALTER PUBLICATION %P ADD TABLE filtered WHERE (id > 5), listed (id)",
        );
    }
    alter("ALTER PUBLICATION %P DROP TABLE late, nameless, put_back");
    world.cluster.sql("INSERT INTO put_back VALUES (1)");
    alter("ALTER PUBLICATION %P ADD TABLE put_back");
    world.cluster.sql(
        "TRUNCATE plain; ALTER TABLE rewritten ALTER v TYPE int USING v + 1; \
         INSERT INTO vacuumed VALUES (1); VACUUM FULL vacuumed; \
         ALTER TABLE renamed RENAME v TO w; \
         INSERT INTO late VALUES (1); INSERT INTO fleeting VALUES (1); INSERT INTO blind VALUES (1); \
         ALTER TABLE back_and_forth RENAME v TO w; INSERT INTO back_and_forth VALUES (1, 2); \
         ALTER TABLE back_and_forth RENAME w TO v; \
         DROP TABLE pairs; CREATE TABLE pairs (a int PRIMARY KEY); INSERT INTO pairs VALUES (7)",
    );
    let manifest = world.backup(BackupChoice::Incremental);
    is_whole(&manifest, "plain", "truncated");
    is_whole(&manifest, "rewritten", "rewritten");
    is_whole(&manifest, "vacuumed", "rewritten");
    is_whole(&manifest, "renamed", "columns changed");
    is_whole(&manifest, "back_and_forth", "columns changed after the parent, and back");
    is_whole(&manifest, "put_back", "put back");
    is_whole(&manifest, "fleeting", "unlogged");
    is_whole(&manifest, "blind", "replica identity");
    is_whole(&manifest, "pairs", "made again");
    is_whole(&manifest, "late", "not in the publication");
    if has_filters {
        is_whole(&manifest, "filtered", "filters its rows");
        is_whole(&manifest, "listed", "leaves out columns");
    }
    for table in ["large", "words", "told_whole", "by_index", "parted_n", "typed"] {
        is_delta(&manifest, table);
    }
    // Once it is known again what there was, changes are enough.
    world.cluster.sql("INSERT INTO rewritten VALUES (2, 2); INSERT INTO put_back VALUES (2)");
    let manifest = world.backup(BackupChoice::Incremental);
    for table in ["plain", "rewritten", "vacuumed", "renamed", "back_and_forth", "put_back"] {
        is_delta(&manifest, table);
    }
    world.check_every_point();
}

#[test]
fn after_setting_up_every_table_can_still_be_written_by_an_ordinary_user() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(TABLES);
    world.cluster.sql(
        "CREATE ROLE app LOGIN; CREATE TABLE keyless (v int); INSERT INTO keyless VALUES (1); \
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE); INSERT INTO deferred VALUES (1); \
         CREATE TABLE blind (id int PRIMARY KEY); ALTER TABLE blind REPLICA IDENTITY NOTHING; \
         INSERT INTO blind VALUES (1); INSERT INTO plain VALUES (1); \
         GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
    );
    world.set_up();
    for sql in [
        "UPDATE keyless SET v = 2; DELETE FROM keyless",
        "UPDATE deferred SET id = 2; DELETE FROM deferred",
        "UPDATE blind SET id = 2; DELETE FROM blind",
        "UPDATE plain SET id = 2; DELETE FROM plain",
        "INSERT INTO parted VALUES (1, 'n', 1); UPDATE parted SET region = 's'; DELETE FROM parted",
    ] {
        let output = world.cluster.psql("app", "postgres", sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_slot_that_is_lost_moved_or_somebody_elses_breaks_the_chain_and_says_what_to_do() {
    let slot = |world: &World| format!("tidemark_{}", world.collection.id());
    let refused = |world: &World| world.try_backup(BackupChoice::Incremental, &[]).unwrap_err();

    let world = World::new(&Wanted::new());
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    world.set_up();
    world.backup(BackupChoice::Full);
    world.cluster.sql("INSERT INTO t VALUES (1)");
    let moved =
        format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", slot(&world));
    world.cluster.sql(&moved);
    let error = refused(&world);
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains("--full"), "{error}");
    // A full begins a new chain with the same slot.
    world.backup(BackupChoice::Full);
    world.cluster.sql("INSERT INTO t VALUES (2)");
    is_delta(&world.backup(BackupChoice::Incremental), "t");

    // Dropped and made again by somebody else, with another plugin.
    let other = format!(
        "SELECT pg_drop_replication_slot('{0}'); \
         SELECT pg_create_logical_replication_slot('{0}', 'test_decoding')",
        slot(&world)
    );
    world.cluster.sql(&other);
    let error = refused(&world);
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains("test_decoding"), "{error}");
    assert!(error.message().contains("tidemark source drop"), "{error}");

    // Made again as it was, it begins later than the parent.
    world.cluster.sql(&format!("SELECT pg_drop_replication_slot('{}')", slot(&world)));
    world.set_up();
    assert_eq!(refused(&world).kind(), Kind::Broken);
    world.check_every_point();
}

#[test]
fn a_slot_whose_log_the_server_removed_is_told() {
    let world = World::new(
        &Wanted::new()
            .with("max_slot_wal_keep_size", "1MB")
            .with("min_wal_size", "32MB")
            .with("max_wal_size", "32MB"),
    );
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    world.set_up();
    world.backup(BackupChoice::Full);
    for _ in 0..6 {
        world.cluster.sql(
            "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n; \
             DELETE FROM t; SELECT pg_switch_wal(); CHECKPOINT",
        );
    }
    let error = world.try_backup(BackupChoice::Incremental, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains("tidemark source drop"), "{error}");
    let status = setup::status(&world.server(), world.collection.id()).unwrap();
    assert!(status.slot_flaw.is_some(), "{status:?}");
    // The way out that the message names.
    setup::drop_capture(&world.server(), world.collection.id()).unwrap();
    world.set_up();
    world.backup(BackupChoice::Full);
    world.cluster.sql("INSERT INTO t VALUES (1, 'x')");
    is_delta(&world.backup(BackupChoice::Incremental), "t");
    world.check_every_point();
}

#[test]
fn a_chain_may_begin_before_it_is_set_up() {
    let world = World::new(&Wanted::new());
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    world.backup(BackupChoice::Full);
    world.set_up();
    world.cluster.sql("INSERT INTO t VALUES (2)");
    is_whole(&world.backup(BackupChoice::Incremental), "t", "not captured yet");
    world.cluster.sql("INSERT INTO t VALUES (3)");
    is_delta(&world.backup(BackupChoice::Incremental), "t");
    world.check_every_point();
}

#[test]
fn a_cut_that_has_to_wait_says_for_whom() {
    let mut world = World::new(&Wanted::new());
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    world.set_up();
    world.choose(|options| options.cut_wait = Duration::from_millis(1500));
    let mut open = world.session();
    let begin = "SET application_name = 'nightly report'; BEGIN; INSERT INTO t VALUES (1)";
    open.client().batch_execute(begin).unwrap();
    let error = world.source.snapshot(world.collection.id()).unwrap_err();
    assert_eq!(error.kind(), Kind::Held);
    let named = [format!("process {}", open.backend()), "nightly report".to_owned()];
    assert!(named.iter().all(|named| error.message().contains(named)), "{error}");
    // Nobody goes on waiting, and nothing is left.
    let left = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'tidemark_cut%'";
    let gone = postgres_server::poll(|| (world.cluster.sql(left) == "0").then_some(()));
    assert!(gone.is_some());
    open.client().batch_execute("COMMIT").unwrap();
    world.backup(BackupChoice::Full);
    world.check_every_point();
}

#[test]
fn the_least_privileges_are_enough_and_less_is_refused() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(TABLES);
    world.cluster.sql(
        "INSERT INTO plain VALUES (1), (2); INSERT INTO \"Läden\".\"Wei\"\"rd.name\" VALUES (1)",
    );
    // Somebody who owns the tables sets up once.
    world.set_up();
    world.cluster.sql("CREATE ROLE keeper LOGIN");
    let url = world.cluster.url_of("keeper", "postgres");
    let open = |world: &World| World::open(&url, &world.folder, |_| {});
    let mut limited = World { source: open(&world), ..world };
    // It waits for the permission, and the same command carries on afterwards.
    let paused = format!("{:?}", limited.try_backup(BackupChoice::Full, &[]).unwrap());
    assert!(paused.contains("Paused") && paused.contains("replication role"), "{paused}");
    limited.cluster.sql(
        "ALTER ROLE keeper REPLICATION; \
         GRANT USAGE ON SCHEMA public, \"Läden\" TO keeper; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public, \"Läden\" TO keeper",
    );
    limited.source = open(&limited);
    limited.backup(BackupChoice::Full);
    limited.cluster.sql("INSERT INTO plain VALUES (3)");
    is_delta(&limited.backup(BackupChoice::Incremental), "plain");
    // Rows that a policy hides would be missing: an error is better.
    limited.cluster.sql(
        "ALTER TABLE plain ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON plain USING (id > 1)",
    );
    let cut = limited.source.source.snapshot(limited.collection.id()).unwrap();
    let plain = cut.tables().iter().position(|table| table.name == name("plain")).unwrap();
    let mut rows = cut.scan(plain, &KeyRange::ALL).unwrap();
    let refused = rows.next_batch(&mut RowBatch::new()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Blocked);
    assert!(refused.message().contains("row-level security"), "{refused}");
}

#[test]
fn a_reader_whose_server_process_is_ended_reads_on() {
    let mut world = World::new(&Wanted::new());
    world.cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); \
         INSERT INTO t SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) n; ANALYZE",
    );
    world.choose(|options| options.shard_bytes = 4 << 20);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let ending = threads.spawn(|| {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE query LIKE 'COPY (SELECT%' AND state = 'active'";
            let mut ended = 0;
            // The rows that everything is compared with were read undisturbed.
            let is_remembered = || world.source.cuts.lock().unwrap().len() == 1;
            postgres_server::poll(|| is_remembered().then_some(())).expect("a cut");
            while !stop.load(Ordering::Relaxed) && ended < 2 {
                ended += world.cluster.sql(end).parse::<u32>().unwrap();
            }
            ended
        });
        let stopped = StopOnDrop(&stop);
        let ended = world.try_backup(BackupChoice::Full, &[]).unwrap();
        drop(stopped);
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
        assert!(ending.join().unwrap() > 0, "nobody was ended");
    });
    world.check_every_point();
}

#[test]
fn an_attested_increment_is_proven_against_the_source() {
    let mut world = World::new(&Wanted::new());
    world.cluster.sql(TABLES);
    world.set_up();
    world.choose(|options| options.attests = true);
    let mut session = world.session();
    let mut dice = Dice(5);
    for kind in [BackupChoice::Full, BackupChoice::Incremental] {
        (0..100).for_each(|_| write_some(&mut session, &mut dice));
        let manifest = world.backup(kind);
        for table in &manifest.tables {
            let rows = &world.source.cuts.lock().unwrap()[&manifest.source.to][&table.name];
            assert_eq!(table.state.unwrap().rows, rows.len() as u64, "{}", table.name);
        }
    }
    world.check_every_point();
}

#[test]
fn a_selection_reads_nothing_else() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE keyless (v int); \
         CREATE SCHEMA other; CREATE TABLE other.b (id int PRIMARY KEY)",
    );
    let refused = world.try_backup(BackupChoice::Full, &[]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.message().contains("keyless"), "{refused}");
    let ended = world.try_backup(BackupChoice::Full, &["other.*"]).unwrap();
    assert!(matches!(ended, Ended::Done { .. }));
    let log = world.collection.log().unwrap();
    let manifest = world.collection.manifest(&log[0]).unwrap();
    let names: Vec<String> = manifest.tables.iter().map(|table| table.name.to_string()).collect();
    assert_eq!(names, ["other.b"]);
}
