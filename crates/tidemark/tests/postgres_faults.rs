//! Servers that go away, roll on and hide behind encryption while they are backed up.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;
mod postgres_server;
mod postgres_world;

use std::sync::Arc;

use chain::{backup_of, database, restore_done};
use postgres_server::{Cluster, Wanted, newest, poll};
use postgres_world::{WAIT, World};
use tidemark::Kind;
use tidemark::backup::BackupChoice;
use tidemark::collection::manifest::TableMode;
use tidemark::database::postgres::Server;
use tidemark::database::postgres::setup::set_up;
use tidemark::database::{Snapshot, Source};
use tidemark::executor::Ended;
use tidemark::ids::{CollectionId, Position, TableName};
use tidemark::restore::RestoreOptions;
use tidemark::row::{KeyRange, RowBatch};

const LARGE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); \
    INSERT INTO t SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) n; ANALYZE";

#[track_caller]
fn is_done(ended: tidemark::Result<Ended>) {
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
}

#[test]
fn a_server_that_is_killed_takes_its_cut_along_and_the_same_command_takes_another() {
    let mut world = World::new(&Wanted::new());
    world.cluster.sql(LARGE);
    world.choose(|options| options.shard_bytes = 4 << 20);
    let source = Arc::clone(&world.source);
    let (folder, collection) = (world.folder.path().join("state"), world.collection.clone());
    let ended = std::thread::scope(|threads| {
        let backup = threads.spawn(move || {
            let source: Arc<dyn Source> = source;
            backup_of(&source, &folder, &collection, BackupChoice::Full, Vec::new())
        });
        let is_begun = || world.source.cuts.lock().unwrap().len() == 1;
        poll(|| is_begun().then_some(())).expect("a cut");
        world.cluster.kill_9();
        world.cluster.start_again();
        backup.join().unwrap()
    });
    // It was over before the server was killed, or its cut went with the server.
    if !matches!(ended, Ok(Ended::Done { .. })) {
        let told = format!("{ended:?}");
        assert!(told.contains("the cut"), "{told}");
        is_done(world.try_backup(BackupChoice::Full, &[]));
    }
    world.check_every_point();
}

#[test]
fn a_cut_whose_session_is_ended_is_told_and_taken_again() {
    let world = World::new(&Wanted::new());
    world.cluster.sql(LARGE);
    let cut = world.source.source.snapshot(world.collection.id()).unwrap();
    // What reads already reads on; nobody else can begin.
    let mut reading = cut.scan(0, &KeyRange::ALL).unwrap();
    let mut batch = RowBatch::new();
    assert!(reading.next_batch(&mut batch).unwrap());
    let mut rows = batch.len();
    world.cluster.sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
         WHERE state = 'idle in transaction' AND application_name = 'tidemark'",
    );
    let refused = cut.scan(0, &KeyRange::ALL).unwrap().next_batch(&mut batch).unwrap_err();
    assert_eq!(refused.kind(), Kind::Fatal);
    assert!(refused.message().contains("takes a new cut"), "{refused}");
    while reading.next_batch(&mut batch).unwrap() {
        rows += batch.len();
    }
    assert_eq!(rows, 60_000);
}

/// A source that forgets to say what is durable, as a process that is killed there does.
#[derive(Debug)]
struct Forgetful(Arc<dyn Source>);

impl Source for Forgetful {
    fn identity(&self) -> tidemark::Result<String> {
        self.0.identity()
    }

    fn snapshot(&self, collection: CollectionId) -> tidemark::Result<Arc<dyn Snapshot>> {
        self.0.snapshot(collection)
    }

    fn snapshot_of(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> tidemark::Result<Arc<dyn Snapshot>> {
        self.0.snapshot_of(collection, selects)
    }

    fn advance(&self, _: CollectionId, _: Position) -> tidemark::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_slot_tells_again_after_a_crash_is_not_taken_again() {
    let world = World::new(&Wanted::new());
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v int)");
    world.set_up();
    let forgetful: Arc<dyn Source> = Arc::new(Forgetful(world.source.clone()));
    let state = world.folder.path().join("state");
    let increment = |sql: &str| {
        world.cluster.sql(sql);
        let (collection, kind) = (&world.collection, BackupChoice::Auto);
        is_done(backup_of(&forgetful, &state, collection, kind, Vec::new()));
        let log = world.collection.log().unwrap();
        let manifest = world.collection.manifest(log.last().unwrap()).unwrap();
        (manifest.tables[0].mode, manifest.totals.rows)
    };
    increment("INSERT INTO t SELECT n, n FROM generate_series(1, 10) n");
    // The slot tells all of it every time; an increment has what is new.
    assert_eq!(increment("UPDATE t SET v = 0 WHERE id = 1"), (TableMode::Delta, 1));
    assert_eq!(increment("DELETE FROM t WHERE id < 3"), (TableMode::Delta, 2));
    assert_eq!(increment("UPDATE t SET id = id + 100 WHERE id = 10"), (TableMode::Delta, 2));
    assert_eq!(increment("SELECT 1"), (TableMode::Delta, 0));
    world.check_every_point();
}

#[test]
fn cuts_and_increments_are_taken_through_verified_encryption() {
    let hba = "local all all trust\nhostssl all keeper 127.0.0.1/32 scram-sha-256\n";
    let cluster = Cluster::start(&newest(), &Wanted::new().with_tls().with_hba(hba));
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); \
         CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'p'; GRANT SELECT ON t TO keeper",
    );
    let root = cluster.root_certificate().display().to_string();
    let url = format!(
        "postgres://keeper:p@localhost:{}/postgres?sslmode=verify-full&sslrootcert={}",
        cluster.port(),
        root.replace('/', "%2F")
    );
    let world = World::on(cluster);
    world.set_up();
    let world = World { source: World::open(&url, &world.folder, |_| {}), ..world };
    world.backup(BackupChoice::Full);
    world.cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(world.backup(BackupChoice::Incremental).tables[0].mode, TableMode::Delta);
    world.check_every_point();

    // Somebody else's certificate is not accepted, for slots neither.
    let other = Cluster::start(&newest(), &Wanted::new().with_tls());
    let wrong = url.replace(
        &root.replace('/', "%2F"),
        &other.root_certificate().display().to_string().replace('/', "%2F"),
    );
    let refused = Server::parse(&wrong).unwrap();
    let refused = refused.connect(tidemark::database::postgres::Purpose::Read).unwrap_err();
    assert_eq!(refused.kind(), Kind::Blocked);
}

#[test]
fn every_point_of_a_chain_taken_while_pgbench_writes_is_one_moment() {
    let world = World::new(&Wanted::new());
    let pgbench = |args: &[&str]| {
        let output = world.cluster.program("pgbench").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    pgbench(&["-i", "-s", "1", "-q"]);
    world.cluster.sql("DELETE FROM pgbench_accounts WHERE aid > 20000");
    world.set_up();
    let tables = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers"];
    // A transfer adds the same amount to a row of each table: the sums are equal at any moment.
    let script = world.folder.path().join("transfer.sql");
    std::fs::write(
        &script,
        "\\set aid random(1, 20000)\n\\set tid random(1, 10)\n\\set delta random(-5000, 5000)\n\
         BEGIN;\nUPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n\
         UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;\n\
         UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;\nEND;\n",
    )
    .unwrap();
    let script = script.display().to_string();
    std::thread::scope(|threads| {
        let writing = threads.spawn(|| pgbench(&["-n", "-c", "2", "-t", "1500", "-f", &script]));
        for _ in 0..4 {
            is_done(world.try_backup(BackupChoice::Auto, &tables));
        }
        writing.join().unwrap();
    });
    is_done(world.try_backup(BackupChoice::Auto, &tables));
    world.check_every_point();
    for entry in world.collection.log().unwrap() {
        let target = tempfile::tempdir_in(world.folder.path()).unwrap().keep();
        let target = database(&target);
        let at = entry.directory.clone();
        restore_done(&target, &world.collection, &RestoreOptions { at, ..Default::default() });
        let sum = |table: &str, column: usize| -> i64 {
            let dump = String::from_utf8(chain::dump(&target, table)).unwrap();
            let cells = dump.lines().skip(1).map(|line| line.split(',').nth(column).unwrap());
            cells.map(|cell| cell.parse::<i64>().unwrap()).sum()
        };
        let accounts = sum("pgbench_accounts", 2);
        assert_eq!(accounts, sum("pgbench_branches", 1), "{}", entry.directory);
        assert_eq!(accounts, sum("pgbench_tellers", 2), "{}", entry.directory);
    }
}

#[test]
fn a_server_that_was_set_back_to_older_files_is_told() {
    let mut world = World::new(&Wanted::new());
    world.cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    world.set_up();
    world.backup(BackupChoice::Full);
    let (data, older) = (world.cluster.data(), world.cluster.folder().join("older"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
        assert!(copied.success());
    };
    world.cluster.stop();
    copy(&data, &older);
    world.cluster.start_again();
    world.cluster.sql("INSERT INTO t VALUES (1)");
    world.backup(BackupChoice::Incremental);
    world.cluster.stop();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&older, &data);
    world.cluster.start_again();
    // What happens where the lost history was: its places in the log are passed again.
    let newest = world.collection.log().unwrap().pop().unwrap();
    let newest = world.collection.manifest(&newest).unwrap().source.to;
    let place = || world.cluster.sql("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn");
    world.cluster.sql("INSERT INTO t VALUES (2)");
    let is_beyond = || place().parse::<u64>().unwrap() > newest.0;
    let filler = "SELECT pg_logical_emit_message(true, 'filler', repeat('x', 1000))";
    while !is_beyond() {
        world.cluster.sql(filler);
    }
    world.cluster.sql("INSERT INTO t VALUES (3)");
    let refused = world.try_backup(BackupChoice::Incremental, &[]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Broken, "{refused}");
    assert!(refused.message().contains("older files"), "{refused}");
    // A new chain begins with a full.
    world.backup(BackupChoice::Full);
    world.cluster.sql("INSERT INTO t VALUES (4)");
    assert_eq!(world.backup(BackupChoice::Incremental).tables[0].mode, TableMode::Delta);
    world.check_every_point();
}

#[test]
fn a_standby_gives_fulls_and_says_where_increments_are_taken() {
    let primary = Cluster::start(&newest(), &Wanted::new());
    primary.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)");
    let standby = primary.standby();
    poll(|| (standby.sql("SELECT count(*) FROM t") == "2").then_some(())).expect("the rows");
    let world = World::on(standby);
    world.backup(BackupChoice::Full);
    world.check_every_point();
    let refused = world.try_backup(BackupChoice::Incremental, &[]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.message().contains("from the primary"), "{refused}");
    let id = world.collection.id();
    let refused = set_up(&world.server(), id, &mut |_| true, WAIT).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.message().contains("standby"), "{refused}");
}
