//! Restores into a real PostgreSQL server by the real binary, which is killed, whose sessions
//! are ended, whose server is killed, and which meets tables of others.
#![cfg(all(feature = "failpoints", feature = "postgres"))]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::path::Path;

use postgres_server::Cluster;
use rustix::process::Signal;
use support::chain::{BACKUP, change, make_chain, open, table};
use support::{Gate, Tidemark};
use tidemark::database::postgres::{PostgresTarget, Server};
use tidemark::database::{Fence, Target, TargetShard};
use tidemark::ids::{Epoch, OperationId, ShardIdx};

#[path = "../../tidemark/tests/postgres_server/mod.rs"]
mod postgres_server;
mod support;

const ROWS: u64 = 1200;

/// A server with the role `restorer`, and a chain that is to be restored into it.
struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl World {
    fn new(rows: u64, increments: u64) -> World {
        let cluster = Cluster::newest();
        cluster.sql(
            "CREATE ROLE restorer LOGIN; GRANT CREATE ON DATABASE postgres TO restorer; \
             GRANT CREATE ON SCHEMA public TO restorer",
        );
        let folder = support::temp_folder();
        make_chain(folder.path(), rows, increments);
        World { cluster, folder }
    }

    fn tidemark(&self) -> Tidemark {
        Tidemark::new(self.folder.path())
    }

    fn url(&self) -> String {
        self.cluster.url_of("restorer", "postgres")
    }

    fn restore(&self, more: &[&str]) -> Vec<String> {
        let url = self.url();
        let begin = ["restore", "backups", "--target", &url, "--shards", "3", "--json"];
        begin.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    /// The rows of a table there, as CSV sorted by key.
    fn rows(&self, table: &str) -> String {
        let sql = format!("COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT (FORMAT csv)");
        self.cluster.sql(&sql)
    }

    /// The rows of the source, alike.
    fn source_rows(&self) -> String {
        let args = ["db", "dump", "--db", "source", "--table", "orders"];
        let dump = self.tidemark().run(args).expect_code(0).stdout;
        dump.split_once('\n').unwrap().1.trim_end().to_owned()
    }

    fn nothing_is_left(&self) {
        let sql = "SELECT string_agg(nspname, ' ') FROM pg_namespace WHERE nspname LIKE \
                   'tidemark\\_%'";
        assert_eq!(self.cluster.sql(sql), "");
        assert_eq!(self.cluster.sql("SELECT count(*) FROM tidemark.hidden"), "0");
        assert_eq!(self.cluster.sql("SELECT count(*) FROM tidemark.mark"), "0");
    }
}

fn lines(path: &Path) -> Vec<String> {
    support::log_lines(path)
}

#[test]
fn a_chain_is_restored_into_a_server_beside_a_table_and_in_its_place() {
    let world = World::new(ROWS, 2);
    let expected = world.source_rows();
    // given a table of the same name
    world.cluster.sql("SET ROLE restorer; CREATE TABLE public.orders (mine int)");
    let refused = world.tidemark().run(world.restore(&[])).expect_code(14);
    assert!(refused.stdout.contains("--replace"), "{refused}");
    // when restored beside it, as a dry run, and in its place
    world.tidemark().run(world.restore(&["--into-schema", "before", "--dry-run"])).expect_code(0);
    assert_eq!(world.cluster.sql("SELECT to_regclass('before.orders') IS NULL"), "t");
    world.tidemark().run(world.restore(&["--into-schema", "before"])).expect_code(0);
    world.tidemark().run(world.restore(&["--replace"])).expect_code(0);
    // then
    assert_eq!(world.rows("before.orders"), expected);
    assert_eq!(world.rows("public.orders"), expected);
    let old = "SELECT n.nspname LIKE 'tidemark\\_old\\_%' FROM pg_attribute a JOIN pg_class c ON \
               c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE a.attname = 'mine'";
    assert_eq!(world.cluster.sql(old), "t");
    let key = "SELECT conname FROM pg_constraint WHERE conrelid = 'public.orders'::regclass";
    assert_eq!(world.cluster.sql(key), "orders_pkey");
}

#[test]
fn a_warm_copy_is_rolled_forward_and_one_that_was_written_to_is_refused() {
    let world = World::new(ROWS, 1);
    world.tidemark().run(world.restore(&[])).expect_code(0);
    let source = open(&world.folder.path().join("source"));
    for generation in 7..9 {
        change(&source, &table("orders"), ROWS, generation);
        world.tidemark().run(BACKUP).expect_code(0);
    }
    let url = world.url();
    let onwards = ["restore", "backups", "--target", &url, "--continue", "--json"];
    world.tidemark().run(onwards).expect_code(0);
    assert_eq!(world.rows("orders"), world.source_rows());
    world.nothing_is_left();

    change(&source, &table("orders"), ROWS, 10);
    world.tidemark().run(BACKUP).expect_code(0);
    let before = world.rows("orders");
    world.cluster.sql("DELETE FROM orders WHERE id = (SELECT min(id) FROM orders)");
    let refused = world.tidemark().run(onwards).expect_code(14);
    assert!(refused.stdout.contains("written to"), "{refused}");
    assert_ne!(world.rows("orders"), before);
}

#[test]
fn an_increment_of_a_thousand_rows_is_one_chunk() {
    let rows = 6 * ROWS;
    let world = World::new(rows, 0);
    let url = world.url();
    let whole = ["restore", "backups", "--target", &url, "--shards", "1", "--json"];
    world.tidemark().run(whole).expect_code(0);
    let source = open(&world.folder.path().join("source"));
    change(&source, &table("orders"), rows, 5);
    world.tidemark().run(BACKUP).expect_code(0);
    let chunks = world.folder.path().join("chunks");
    let onwards = ["restore", "backups", "--target", &url, "--continue", "--json"];
    world.tidemark().with_chunk_log(&chunks).run(onwards).expect_code(0);
    assert_eq!(lines(&chunks).len(), 1, "{:?}", lines(&chunks));
    assert_eq!(world.rows("orders"), world.source_rows());
}

#[test]
fn a_restore_that_is_killed_anywhere_carries_on_and_repeats_no_chunk() {
    let world = World::new(ROWS, 2);
    let expected = world.source_rows();
    let count = world.folder.path().join("hits");
    world.tidemark().with_hit_log(&count).run(world.restore(&[])).expect_code(0);
    assert_eq!(world.rows("orders"), expected);
    let hits = lines(&count);
    let named = |name: &str| hits.iter().filter(|hit| *hit == name).count();
    assert!(named("postgres.mark_moved") >= 3 && named("postgres.published") == 1, "{hits:?}");
    for point in [
        "postgres.prepared:1",
        "postgres.rows_written:1",
        "postgres.mark_moved:2",
        "restore.after_apply:2",
        "postgres.sealed:1",
        "postgres.published:1",
        "postgres.published_durably:1",
    ] {
        // given
        let name = point.replace(['.', ':'], "_");
        let args = world.restore(&["--into-schema", &name]);
        let chunks = world.folder.path().join(format!("{name}.chunks"));
        let killed = world.tidemark().with_failpoint(&format!("{point}:kill"));
        let killed = killed.with_chunk_log(&chunks).run(&args);
        assert_eq!(killed.signal, Some(9), "{point}: {killed}");
        // when
        world.tidemark().with_chunk_log(&chunks).run(&args).expect_code(0);
        // then
        assert_eq!(world.rows(&format!("{name}.orders")), expected, "{point}");
        let chunks = lines(&chunks);
        let distinct: std::collections::BTreeSet<&String> = chunks.iter().collect();
        assert_eq!(distinct.len(), chunks.len(), "{point}: {chunks:?}");
    }
    world.nothing_is_left();
}

#[test]
fn a_session_that_is_ended_in_a_chunk_is_no_failure() {
    let world = World::new(ROWS, 1);
    let gate = Gate::close(world.folder.path(), "gate");
    let held = world.tidemark().held_at("postgres.rows_written:2", &gate);
    let running = held.spawn(world.restore(&[]));
    gate.wait_for("postgres.rows_written:2");
    let sql = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity \
               WHERE usename = 'restorer'";
    assert_eq!(world.cluster.sql(sql), "t");
    gate.open();
    running.wait().expect_code(0);
    assert_eq!(world.rows("orders"), world.source_rows());
    world.nothing_is_left();
}

#[test]
fn a_connection_that_breaks_while_publishing_publishes_once() {
    let world = World::new(ROWS, 1);
    let gate = Gate::close(world.folder.path(), "gate");
    let held = world.tidemark().held_at("postgres.published:1", &gate);
    let running = held.spawn(world.restore(&[]));
    gate.wait_for("postgres.published:1");
    assert_eq!(world.cluster.sql("SELECT to_regclass('public.orders') IS NULL"), "t");
    world
        .cluster
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'restorer'");
    gate.open();
    running.wait().expect_code(0);
    assert_eq!(world.rows("orders"), world.source_rows());
    world.nothing_is_left();
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_waited_for() {
    let mut world = World::new(ROWS, 1);
    let expected = world.source_rows();
    let gate = Gate::close(world.folder.path(), "gate");
    let held = world.tidemark().held_at("postgres.rows_written:2", &gate);
    let running = held.spawn(world.restore(&[]));
    gate.wait_for("postgres.rows_written:2");
    world.cluster.kill_9();
    gate.open();
    world.cluster.start_again();
    running.wait().expect_code(0);
    assert_eq!(world.rows("orders"), expected);
    world.nothing_is_left();
}

/// Stops the command inside a transaction and lets somebody take over.
fn stopped(point: &str) {
    let world = World::new(ROWS, 1);
    let stopping = world.tidemark().with_failpoint(&format!("{point}:stop"));
    let mut running = stopping.spawn(world.restore(&[]));
    running.wait_until_stopped();
    let locked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'restorer' \
                  AND state = 'idle in transaction'";
    assert_eq!(world.cluster.sql(locked), "t");
    // when somebody takes over, as its next holder does
    let scope = world.folder.path().join("state/tidemark/scope");
    let scope = std::fs::read_to_string(scope).unwrap();
    let server = Server::parse(&world.url()).unwrap();
    let target = PostgresTarget::open(server, &scope).unwrap();
    let at = |shard: u32| TargetShard {
        operation: OperationId(1),
        table: table("orders"),
        shard: ShardIdx(shard),
    };
    let marks = || [0, 1, 2].map(|shard| target.mark(&at(shard)).unwrap());
    let before = marks();
    let epoch = Epoch(target.allocate_txn().unwrap().0);
    target.seal(Fence { operation: OperationId(1), epoch }).unwrap();
    // then: the taker waited for nobody, and what was in flight never became durable
    assert_eq!(marks(), before);
    assert_eq!(world.cluster.sql("SELECT to_regclass('public.orders') IS NULL"), "t");
    running.signal(Signal::CONT);
    // Its catalog still calls it the holder: refused, it claims the shards anew and goes on.
    let woken = running.wait().expect_code(0);
    let in_a_shard = point.starts_with("postgres.mark_moved");
    assert_eq!(woken.stdout.contains("its tables are sealed"), in_a_shard, "{woken}");
    assert_eq!(world.rows("orders"), world.source_rows());
    world.nothing_is_left();
}

#[test]
fn a_holder_that_is_stopped_inside_its_transaction_blocks_nobody() {
    stopped("postgres.mark_moved:1");
}

#[test]
fn a_holder_that_is_stopped_while_publishing_blocks_nobody() {
    stopped("postgres.published:1");
}

#[test]
fn a_table_that_somebody_makes_meanwhile_is_kept_and_stops_the_publishing() {
    let world = World::new(ROWS, 1);
    let gate = Gate::close(world.folder.path(), "gate");
    let held = world.tidemark().held_at("postgres.sealed:1", &gate);
    let running = held.spawn(world.restore(&[]));
    gate.wait_for("postgres.sealed:1");
    world.cluster.sql("CREATE TABLE public.orders (theirs int)");
    gate.open();
    let refused = running.wait().expect_code(14);
    assert!(refused.stdout.contains("exists already"), "{refused}");
    assert_eq!(world.cluster.sql("SELECT count(*) FROM orders"), "0");
    // It goes on where it was once the name is free.
    world.cluster.sql("DROP TABLE public.orders");
    world.tidemark().run(world.restore(&[])).expect_code(0);
    assert_eq!(world.rows("orders"), world.source_rows());
}

#[test]
fn a_password_is_in_no_output_no_record_and_no_list_of_processes() {
    let world = World::new(60, 0);
    world.cluster.sql("ALTER ROLE restorer PASSWORD 'pass-word'");
    let socket = world.url();
    let with_password = socket.replacen("restorer@", "restorer:pass-word@", 1);
    let seen = |text: &str| assert!(!text.contains("pass-word"), "{text}");
    // when: run, refused, and in the background
    let args = ["restore", "backups", "--target", &with_password];
    let done = world.tidemark().run(args).expect_code(0);
    let refused = world.tidemark().run(args).expect_code(14);
    let other = [&args[..], &["--into-schema", "b", "--detach"]].concat();
    let detached = world.tidemark().run(&other).expect_code(0);
    world.tidemark().run(["operation", "wait", "2"]).expect_code(0);
    let listed = world.tidemark().run(["operation", "list", "--json"]).expect_code(0);
    let wrong = ["restore", "backups", "--target", "postgres://a:pass-word@h:port/x"];
    let wrong = world.tidemark().run(wrong);
    assert_ne!(wrong.code, Some(0));
    for outcome in [done, refused, detached, listed, wrong] {
        seen(&outcome.stdout);
        seen(&outcome.stderr);
    }
    // then
    let state = world.folder.path().join("state/tidemark");
    let mut files = vec![state];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(9).any(|it| it == b"pass-word"), "{}", path.display());
        }
    }
    assert_eq!(
        world.cluster.sql("SELECT count(*) FROM tidemark.hidden WHERE plan LIKE '%pass-word%'"),
        "0"
    );
}

#[test]
fn a_role_that_may_not_make_schemas_is_told_what_it_needs() {
    let world = World::new(60, 0);
    world.cluster.sql("CREATE ROLE poor LOGIN");
    let url = world.cluster.url_of("poor", "postgres");
    let refused = world.tidemark().run(["restore", "backups", "--target", &url]);
    assert!(refused.stderr.contains("CREATE on the database"), "{refused}");
    assert_eq!(world.cluster.sql("SELECT to_regnamespace('tidemark') IS NULL"), "t");
}

#[test]
fn a_restore_can_be_cancelled_at_any_moment_before_publishing() {
    let world = World::new(ROWS, 1);
    for (number, point) in (1..).zip(["postgres.rows_written:2", "postgres.sealed:1"]) {
        let killed = world.tidemark().with_failpoint(&format!("{point}:kill"));
        assert_eq!(killed.run(world.restore(&[])).signal, Some(9));
        let number = i32::to_string(&number);
        world.tidemark().run(["operation", "cancel", &number]).expect_code(0);
        world.nothing_is_left();
        assert_eq!(world.cluster.sql("SELECT to_regclass('public.orders') IS NULL"), "t");
    }
}

#[test]
fn a_row_that_somebody_changes_before_the_proof_is_found_with_its_shard_and_keys() {
    let world = World::new(ROWS, 1);
    let tampers = [("changed", "UPDATE X SET generation = 99"), ("gone", "DELETE FROM X")];
    for (number, (name, tamper)) in (1..).zip(tampers) {
        let gate = Gate::close(world.folder.path(), name);
        let held = world.tidemark().held_at("postgres.sealed:1", &gate);
        let running = held.spawn(world.restore(&[]));
        gate.wait_for("postgres.sealed:1");
        let hidden = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN \
                      pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND \
                      n.nspname LIKE 'tidemark\\_new\\_%'";
        let hidden = world.cluster.sql(hidden);
        let id =
            world.cluster.sql(&format!("SELECT id FROM {hidden} ORDER BY id OFFSET 700 LIMIT 1"));
        world.cluster.sql(&format!("{} WHERE id = {id}", tamper.replace('X', &hidden)));
        gate.open();
        let found = running.wait().expect_code(4);
        assert!(found.stdout.contains("shard 1 of `orders`, keys from"), "{found}");
        let number = i32::to_string(&number);
        world.tidemark().run(["operation", "cancel", &number]).expect_code(0);
        world.nothing_is_left();
    }
}
