//! PostgreSQL servers on the command line: the whole way of a new user, and no password told.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

#[path = "../../tidemark/tests/postgres_server/mod.rs"]
mod postgres_server;
mod support;

use std::path::Path;

use postgres_server::{Cluster, Wanted, newest};
use serde_json::Value;
use support::{Outcome, Tidemark, temp_folder};

const SECRET: &str = "s3cret-of-keeper";

/// A server on which `keeper` needs a password, and may read and replicate.
fn cluster() -> Cluster {
    let hba = "local all keeper scram-sha-256\nlocal all all trust\n";
    let cluster = Cluster::start(&newest(), &Wanted::new().with_hba(hba));
    cluster.sql(&format!(
        "CREATE TABLE orders (id int PRIMARY KEY, what text); \
         INSERT INTO orders VALUES (1, 'tea'), (2, 'rice'); \
         CREATE SCHEMA other; CREATE TABLE other.kept_out (id int PRIMARY KEY); \
         CREATE ROLE keeper LOGIN REPLICATION PASSWORD '{SECRET}'; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO keeper"
    ));
    cluster
}

/// The URL with the password of `keeper` in it.
fn secret_url(cluster: &Cluster) -> String {
    cluster.url_of(&format!("keeper:{SECRET}"), "postgres")
}

#[track_caller]
fn tells_no_secret(outcome: &Outcome) {
    for said in [&outcome.stdout, &outcome.stderr] {
        assert!(!said.contains(SECRET), "{said}");
    }
}

/// Refuses a secret in any file below a folder.
fn keeps_no_secret(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            keeps_no_secret(&path);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

fn summary(outcome: &Outcome) -> Value {
    serde_json::from_str(outcome.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn a_new_user_goes_the_whole_way() {
    let (cluster, folder) = (cluster(), temp_folder());
    let tidemark = Tidemark::new(folder.path());
    let (owner, keeper) = (cluster.url(), secret_url(&cluster));
    let backup = |more: &[&str]| {
        let args = ["backup", "--to", "backups", "--schema", "public", "--source", &keeper];
        let outcome = tidemark.run([&args, more].concat());
        tells_no_secret(&outcome);
        outcome
    };
    // A full needs nothing; an increment says what it needs.
    backup(&["--full"]).expect_code(0);
    let refused = backup(&["--incremental"]).expect_code(2);
    assert!(refused.stderr.contains("tidemark source setup"), "{}", refused.stderr);

    // Somebody who owns the tables sets up, and is told what that means.
    let setup = ["source", "setup", "--to", "backups", "--schema", "public", "--source", &owner];
    let set_up = tidemark.run(setup).expect_code(0);
    for told in ["max_slot_wal_keep_size", "tidemark source drop"] {
        assert!(set_up.stderr.contains(told), "{}", set_up.stderr);
    }
    assert!(set_up.stdout.contains("added: `orders`"), "{}", set_up.stdout);
    let again = summary(&tidemark.run([&setup[..], &["--json"]].concat()).expect_code(0));
    assert_eq!((&again["made_slot"], &again["captured"][0]), (&false.into(), &"orders".into()));

    // The first increment begins to carry changes, the next ones do.
    let whole = backup(&["--incremental"]).expect_code(0);
    assert!(whole.stderr.contains("`orders` is carried whole"), "{}", whole.stderr);
    cluster.sql("INSERT INTO orders VALUES (3, 'salt'); DELETE FROM orders WHERE id = 1");
    let delta = backup(&["--incremental", "--attest", "--json"]).expect_code(0);
    let outcome = &summary(&delta)["outcome"];
    assert_eq!(outcome["rows"], 2, "{outcome}");

    // What is kept is shown.
    let status = ["source", "status", "--to", "backups", "--source", &keeper];
    let shown = tidemark.run(status).expect_code(0);
    tells_no_secret(&shown);
    assert!(shown.stdout.contains("reserved"), "{}", shown.stdout);
    assert!(shown.stdout.contains("`other.kept_out` is carried whole"), "{}", shown.stdout);

    // Every backup is recorded in the state directory, and found by the server too.
    let list = ["operation", "list", "--source", &keeper];
    let listed = tidemark.run(list).expect_code(0);
    tells_no_secret(&listed);
    assert!(listed.stdout.contains("backup of `postgres://keeper@"), "{}", listed.stdout);

    // Any point comes back, here into an embedded database.
    let restore = ["restore", "backups", "--target", "embedded:copy"];
    tidemark.run(restore).expect_code(0);
    let dump = tidemark.run(["db", "dump", "--db", "copy", "--table", "orders"]).expect_code(0);
    assert_eq!(dump.stdout, "id,what\n2,rice\n3,salt\n");
    tidemark.run(["verify", "backups"]).expect_code(0);

    // And nothing is left.
    let id = again["collection"].as_str().unwrap();
    let drop = ["source", "drop", "--id", id, "--source", &owner];
    let dropped = tidemark.run(drop).expect_code(0);
    assert!(dropped.stdout.contains("any more"), "{}", dropped.stdout);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + count(*) FROM pg_publication";
    assert_eq!(cluster.sql(left), "0");
    tidemark.run(drop).expect_code(0);
    keeps_no_secret(folder.path());
}

#[test]
fn no_password_is_told_whatever_goes_wrong() {
    let (cluster, folder) = (cluster(), temp_folder());
    let tidemark = Tidemark::new(folder.path());
    let right = secret_url(&cluster);
    let wrong = right.replace(SECRET, &format!("{SECRET}-mistyped"));
    let malformed = format!("postgres://keeper:{SECRET}@host:port/db");
    let unknown = format!("{right}&unknown=1");
    for (url, code) in [(&wrong, 5), (&malformed, 2), (&unknown, 2)] {
        for json in [&[][..], &["--json"]] {
            let args = ["backup", "--to", "backups", "--source", url];
            let refused = tidemark.run([&args, json].concat()).expect_code(code);
            tells_no_secret(&refused);
            let joined = format!("--source={url}");
            let refused = tidemark.run([&["backup", "--to", "b", &joined], json].concat());
            tells_no_secret(&refused.expect_code(code));
        }
    }
    // Nothing was made for what was refused.
    assert!(!folder.path().join("backups").exists());
    // A password that is not in the URL is found as `psql` finds it.
    let url = cluster.url_of("keeper", "postgres");
    let with_password = tidemark.with_variable("PGPASSWORD", SECRET);
    let args = ["backup", "--to", "backups", "--table", "orders", "--source", &url];
    with_password.run(args).expect_code(0);
    keeps_no_secret(folder.path());
}

#[test]
fn an_unfinished_backup_of_a_server_is_carried_on_by_its_number() {
    let (cluster, folder) = (cluster(), temp_folder());
    let tidemark = Tidemark::new(folder.path());
    let url = cluster.url_of("keeper", "postgres");
    // Without the right to read, the backup waits for somebody who gives it.
    cluster.sql("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM keeper");
    let tidemark = tidemark.with_variable("PGPASSWORD", SECRET);
    let args = ["backup", "--to", "backups", "--table", "orders", "--source", &url];
    let stopped = tidemark.run(args).expect_code(5);
    assert!(stopped.stderr.contains("permission"), "{}", stopped.stderr);
    cluster.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO keeper");
    tidemark.run(["operation", "resume", "1"]).expect_code(0);
    tidemark.run(["verify", "backups"]).expect_code(0);
}

/// Commands of a page: lines of its blocks that begin with the command's name, also behind the
/// times of cron, with their continuations.
fn commands(page: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in page.lines() {
        if goes_on {
            commands.last_mut().unwrap().push_str(line.trim_end_matches('\\'));
        } else if let Some(at) = line
            .find("tidemark ")
            .filter(|at| *at == 0 || line.starts_with(['*', '0']) && line[..*at].ends_with(' '))
        {
            commands.push(line[at..].trim_end_matches('\\').to_owned());
        }
        goes_on = (goes_on || commands.last().is_some_and(|it| line.contains(it.as_str())))
            && line.ends_with('\\');
    }
    commands
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    let (cluster, folder) = (cluster(), temp_folder());
    let package = support::at_run_time("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(package.join("../../docs/postgres.md")).expect("the page");
    cluster.sql("CREATE ROLE owner LOGIN SUPERUSER");
    let tidemark = Tidemark::new(folder.path()).with_variable("PGPASSWORD", SECRET);
    let commands = commands(&page);
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        // Where the page's server is: its names stand for this one.
        let local = |user: &str| cluster.url_of(user, "postgres");
        let command = command
            .replace(
                "'postgres://keeper@db.example/shop?sslmode=verify-full&sslrootcert=system'",
                &local("keeper"),
            )
            .replace("postgres://keeper@db.example/shop", &local("keeper"))
            .replace("postgres://owner@db.example/shop", &local("owner"))
            .replace("/backups/shop", "backups/shop")
            .replace("backupsbackups/shop", "backups/shop");
        let args: Vec<&str> = command.split_whitespace().skip(1).collect();
        tidemark.run(args).expect_code(0);
        cluster.sql("INSERT INTO orders SELECT max(id) + 1, 'more' FROM orders");
    }
}
