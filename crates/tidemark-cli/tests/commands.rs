//! What the real binary says and leaves behind when something is in its way.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use support::Tidemark;

mod support;

/// A folder with a database `shop` of one table, and a command that is started there.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { folder: support::temp_folder() };
        world.write("orders", 200);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tidemark(&self) -> Tidemark {
        Tidemark::new(self.folder.path())
    }

    /// Makes a table of `shop` equal to a file of so many rows.
    fn write(&self, table: &str, rows: u32) {
        self.write_into("shop", table, rows);
    }

    fn write_into(&self, db: &str, table: &str, rows: u32) {
        let file = self.path("rows.csv");
        let text: String = (0..rows).map(|key| format!("{key},note {key}\n")).collect();
        std::fs::write(&file, format!("id,note\n{text}")).unwrap();
        let args = ["--db", db, "--table", table, "--key", "id", "--sync", "rows.csv"];
        self.tidemark().run(["db", "load"].into_iter().chain(args)).expect_code(0);
    }

    /// The objects of the collection, without those that every collection has.
    fn objects(&self, collection: &str) -> BTreeSet<String> {
        let root = self.path(collection);
        let mut found = BTreeSet::new();
        files(&root, &root, &mut found);
        found
    }

    /// The objects that its log leads to.
    fn named(&self, collection: &str) -> BTreeSet<String> {
        let mut named = BTreeSet::from(["collection.json".to_owned()]);
        for object in self.objects(collection) {
            if !object.starts_with("log/") {
                continue;
            }
            let entry = json(&self.path(collection).join(&object));
            let directory = entry["directory"].as_str().unwrap().to_owned();
            let path = self.path(collection).join(&directory).join("manifest.json");
            let manifest = json(&path);
            for table in manifest["tables"].as_array().unwrap() {
                for part in table["parts"].as_array().unwrap() {
                    named.insert(format!("{directory}/{}", part["name"].as_str().unwrap()));
                }
            }
            named.insert(format!("{directory}/manifest.json"));
            named.insert(object);
        }
        named
    }
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn files(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else {
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

const BACKUP: [&str; 5] = ["backup", "--source", "embedded:shop", "--to", "backups"];

#[cfg(feature = "failpoints")]
const DEATHS: [&str; 4] = [
    "backup.before_part:1:kill",
    "backup.after_part:3:kill",
    "backup.before_manifest:1:kill",
    "backup.before_log_entry:1:kill",
];

#[cfg(feature = "failpoints")]
#[test]
fn a_killed_backup_leaves_nothing_once_it_is_carried_on() {
    for death in DEATHS {
        let world = World::new();
        world.tidemark().with_failpoint(death).run(BACKUP).expect_killed();

        world.tidemark().run(BACKUP).expect_code(0);

        assert_eq!(world.objects("backups"), world.named("backups"), "{death}");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn cancelling_a_killed_backup_leaves_the_collection_as_it_was() {
    for death in DEATHS {
        let world = World::new();
        world.tidemark().run(BACKUP).expect_code(0);
        let before = world.objects("backups");
        let full = BACKUP.into_iter().chain(["--full"]);
        world.tidemark().with_failpoint(death).run(full).expect_killed();
        assert_ne!(world.objects("backups"), before, "{death}");

        let cancel = ["operation", "cancel", "2", "--source", "embedded:shop"];
        world.tidemark().run(cancel).expect_code(0);

        assert_eq!(world.objects("backups"), before, "{death}");
    }
}

/// A process that was taken over may wake with its hand on the log entry: until that entry
/// is taken nobody removes what it would name.
#[cfg(feature = "failpoints")]
#[test]
fn parts_of_a_silent_process_go_only_when_it_cannot_name_them_any_more() {
    use rustix::process::Signal;

    let world = World::new();
    let stopped = world.tidemark().with_failpoint("backup.before_log_entry:1:stop");
    let mut silent = stopped.spawn(BACKUP);
    silent.wait_until_stopped();
    let written = world.objects("backups");

    let taken_over = world.tidemark().with_failpoint("backup.before_log_entry:1:kill");
    taken_over.run(BACKUP).expect_killed();
    assert!(written.is_subset(&world.objects("backups")), "removed under a process that lives");

    world.tidemark().run(BACKUP).expect_code(0);
    assert_eq!(world.objects("backups"), world.named("backups"));
    silent.signal(Signal::CONT);
    silent.wait().expect_code(11);
    assert_eq!(world.objects("backups"), world.named("backups"));
}

#[test]
fn garbage_that_nobody_came_back_to_is_removed_on_request() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    let before = world.objects("backups");
    let dead = world.path("backups/20200101000000Z_full/public.orders");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("00000-aa.parquet"), b"PAR1").unwrap();

    let young = world.tidemark().run(["backups", "backups", "--remove-garbage"]).expect_code(0);
    assert!(young.stdout.contains("removed 0 objects"), "{young}");
    let args = ["backups", "backups", "--remove-garbage", "--older-than", "0", "--json"];
    let removed = world.tidemark().run(args).expect_code(0);

    let summary = removed.json_lines().pop().unwrap();
    assert_eq!(summary["objects"], 1);
    assert_eq!(summary["bytes"], 4);
    assert_eq!(summary["folders"][0]["folder"], "20200101000000Z_full");
    assert_eq!(world.objects("backups"), before);
}

/// Runs what is to be refused with `code` and `words`, and finds nothing made by it.
#[track_caller]
fn refused(world: &World, args: &[&str], code: i32, words: &str, unmade: &str) {
    let outcome = world.tidemark().run(args).expect_code(code);
    assert!(outcome.stderr.contains(words), "expected {words:?} of {outcome}");
    assert!(!world.path(unmade).exists(), "`{unmade}` is left by {outcome}");
}

#[test]
fn a_csv_file_that_cannot_be_read_ends_with_2_and_its_name() {
    let world = World::new();
    let load = |file| {
        ["db", "load", "--db", "new", "--table", "t", "--key", "id", file].map(str::to_owned)
    };
    for (file, text) in [("ragged.csv", "id,a\n1,2\n3\n"), ("odd.csv", "id,id\n1,2\n")] {
        std::fs::write(world.path(file), text).unwrap();
    }
    for file in ["missing.csv", "ragged.csv", "odd.csv", "rows.csv/x.csv"] {
        let args = load(file);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&world, &args, 2, file, "new");
    }
    let into_old = ["db", "load", "--db", "shop", "--table", "t", "--key", "id", "missing.csv"];
    let outcome = world.tidemark().run(into_old).expect_code(2);
    assert!(outcome.stderr.contains("missing.csv"), "{outcome}");
}

#[test]
fn a_refused_command_leaves_no_new_database_and_no_new_collection() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    let backup = ["backup", "--source", "embedded:shop", "--to", "new", "--table", "nosuch"];
    refused(&world, &backup, 10, "`nosuch`", "new");
    let restore = ["restore", "backups", "--target", "embedded:new"];
    let with = |more: [&'static str; 2]| restore.into_iter().chain(more).collect::<Vec<&str>>();
    refused(&world, &with(["--at", "7"]), 10, "7", "new");
    refused(&world, &with(["--table", "nosuch"]), 10, "nosuch", "new");
}

#[test]
fn a_look_at_an_operation_is_no_end_of_one() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    let get = ["operation", "get", "1", "--source", "embedded:shop", "--json"];

    let summary = world.tidemark().run(get).expect_code(0).json_lines().pop().unwrap();

    assert_eq!(summary["verb"], "operation get");
    assert_eq!(summary["operation_verb"], "backup");
}

/// The commands that a text names between backticks, split at their spaces.
fn commands(text: &str) -> Vec<Vec<String>> {
    let quoted = text.split('`').skip(1).step_by(2);
    let commands = quoted.filter_map(|quoted| quoted.strip_prefix("tidemark "));
    commands.map(|command| command.split(' ').map(str::to_owned).collect()).collect()
}

#[cfg(feature = "failpoints")]
#[test]
fn the_ways_out_of_an_unfinished_operation_can_be_pasted() {
    for state in [&[][..], &["--state", "my-state"]] {
        let world = World::new();
        let backup = BACKUP.iter().chain(state).copied();
        let killed = world.tidemark().with_failpoint("backup.after_part:1:kill");
        killed.run(backup.clone()).expect_killed();

        let refused = world.tidemark().run(backup.chain(["--full"])).expect_code(2);

        let ways = commands(&refused.stderr);
        assert_eq!(ways.len(), 2, "{refused}");
        world.tidemark().run(&ways[0]).expect_code(0);
        let gone = world.tidemark().run(&ways[1]);
        assert!(gone.stderr.contains("is done: there is nothing to cancel"), "{gone}");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_stopped_backup_says_that_it_starts_over() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    let full = BACKUP.into_iter().chain(["--full"]);
    let full_disk = world.tidemark().with_failpoint("store.write:4-:enospc");
    let stopped = full_disk.run(full.clone()).expect_code(5);
    assert!(stopped.stderr.contains("at a new snapshot"), "{stopped}");
    assert!(!stopped.stderr.contains("nothing is lost"), "{stopped}");

    world.tidemark().run(full).expect_code(0);
    assert_eq!(world.objects("backups"), world.named("backups"));
}

#[test]
fn what_is_good_to_know_is_no_error_in_json() {
    let world = World::new();
    let lines = world.tidemark().run(BACKUP.into_iter().chain(["--json"])).expect_code(0);

    let lines = lines.json_lines();
    let words = "taking a full backup: the collection has none yet";
    assert!(lines.iter().all(|line| line["message_type"] != "error"), "{lines:?}");
    let told = lines.iter().filter(|line| line["notice"] == words);
    let told: Vec<&serde_json::Value> = told.collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    assert_eq!(told[0]["message_type"], "status");
    assert_eq!(lines.last().unwrap()["notices"], serde_json::json!([words]));
}

#[test]
fn every_operation_on_a_database_is_found_by_a_txn_of_its_own() {
    let world = World::new();
    let tidemark = world.tidemark();
    tidemark.run(["backup", "--source", "embedded:shop", "--to", "backups"]).expect_code(0);
    let restore = ["restore", "backups", "--target", "embedded:shop", "--rename", "orders=again"];
    tidemark.run(restore).expect_code(0);
    let restore = ["restore", "backups", "--target", "embedded:shop", "--rename", "orders=third"];
    tidemark.run(restore.iter().chain(&["--state", "state"])).expect_code(0);
    let mut txns = BTreeSet::new();
    for (id, place) in [
        ("1", ["--target", "embedded:shop"]),
        ("2", ["--source", "embedded:shop"]),
        ("3", ["--state", "state"]),
    ] {
        let get = |id: &str, by: &[&str]| {
            let args = [&["operation", "get", id, "--json"][..], &place, by].concat();
            tidemark.run(args).expect_code(0).json_lines()[0].clone()
        };
        let txn = get(id, &[])["txn"].to_string();
        assert_eq!(get(&txn, &["--txn"])["operation"].to_string(), id, "txn {txn}");
        assert!(txns.insert(txn), "{txns:?}");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_window_that_was_set_survives_the_same_command() {
    let world = World::new();
    world.tidemark().with_failpoint("backup.after_part:1:kill").run(BACKUP).expect_killed();
    let at = ["1", "--source", "embedded:shop"];
    let set = ["operation", "set"].into_iter().chain(at).chain(["--shards-in-flight", "3"]);
    world.tidemark().run(set).expect_code(0);
    let window = || {
        let get = ["operation", "get"].into_iter().chain(at).chain(["--json"]);
        world.tidemark().run(get).json_lines().pop().unwrap()["shards_in_flight_max"].clone()
    };

    world.tidemark().with_failpoint("backup.after_part:1:kill").run(BACKUP).expect_killed();
    assert_eq!(window(), 3);
    world.tidemark().run(BACKUP.into_iter().chain(["--shards-in-flight", "2"])).expect_code(0);
    assert_eq!(window(), 2);
}

#[cfg(feature = "failpoints")]
#[test]
fn another_memory_on_resume_is_told() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    let restore = ["restore", "backups", "--target", "embedded:copy"];
    let killed = world.tidemark().with_failpoint("restore.before_apply:1:kill");
    killed.run(restore).expect_killed();

    let other = restore.into_iter().chain(["--memory", "512MiB"]);
    let refused = world.tidemark().run(other).expect_code(2);
    assert!(refused.stderr.contains("`memory` was"), "{refused}");
    world.tidemark().run(restore).expect_code(0);
}

#[test]
fn a_collection_that_is_gone_can_be_forgotten() {
    let world = World::new();
    for collection in ["gone", "backups"] {
        let backup = ["backup", "--source", "embedded:shop", "--to", collection];
        world.tidemark().run(backup).expect_code(0);
    }
    let gone = json(&world.path("gone/collection.json"))["id"].as_str().unwrap().to_owned();
    std::fs::remove_dir_all(world.path("gone")).unwrap();
    let list = ["db", "collections", "--db", "shop"];
    let kept = |args: &[&str]| {
        let args = list.iter().chain(args).chain(&["--json"]);
        let lines = world.tidemark().run(args).expect_code(0).json_lines();
        let kept = lines.last().unwrap()["collections"].as_array().unwrap().clone();
        kept.iter().map(|kept| kept["id"].as_str().unwrap().to_owned()).collect::<Vec<String>>()
    };
    assert_eq!(kept(&[]).len(), 2);

    let left = kept(&["--forget", &gone]);

    assert_eq!(left.len(), 1);
    assert!(!left.contains(&gone));
    let again = list.into_iter().chain(["--forget", gone.as_str()]);
    world.tidemark().run(again).expect_code(10);
    world.write("orders", 250);
    let next = world.tidemark().run(BACKUP).expect_code(0);
    assert!(next.stdout.contains("increment on"), "{next}");
}

const HOLD: [&str; 5] = ["restore", "backups", "--target", "embedded:copy", "--hold"];

/// The tables of `copy` by name, each with whether it is held.
fn tables_of_copy(world: &World) -> Vec<(String, bool)> {
    let args = ["db", "tables", "--db", "copy", "--json"];
    let summary = world.tidemark().run(args).expect_code(0).json_lines().pop().unwrap();
    let tables = summary["tables"].as_array().unwrap().iter();
    tables
        .map(|table| {
            (table["table"].as_str().unwrap().to_owned(), table["held"].as_bool().unwrap())
        })
        .collect()
}

#[test]
fn a_held_copy_is_listed_named_where_it_is_in_the_way_and_can_be_dropped() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.tidemark().run(HOLD).expect_code(0);
    assert_eq!(tables_of_copy(&world), [("orders".to_owned(), true)]);
    let list = world.tidemark().run(["db", "tables", "--db", "copy"]).expect_code(0);
    assert!(list.stdout.contains("orders (held)"), "{list}");

    let load = ["db", "load", "--db", "copy", "--table", "orders", "--key", "id", "rows.csv"];
    let dump = ["db", "dump", "--db", "copy", "--table", "orders"];
    for (args, code) in [(&HOLD[..4], 14), (&load[..], 14), (&dump[..], 10)] {
        let refused = world.tidemark().run(args).expect_code(code);
        for words in ["held copy `orders`", "--continue", "db drop"] {
            assert!(refused.stderr.contains(words), "{refused}");
        }
    }

    let drop = ["db", "drop", "--db", "copy", "--table", "orders"];
    let dropped = world.tidemark().run(drop).expect_code(0);
    assert_eq!(dropped.stdout, "dropped the held copy `orders` with 200 rows\n");
    assert_eq!(tables_of_copy(&world), []);
    world.tidemark().run(drop).expect_code(10);
    world.tidemark().run(&HOLD[..4]).expect_code(0);
    let dropped = world.tidemark().run(drop).expect_code(0);
    assert_eq!(dropped.stdout, "dropped table `orders` with 200 rows\n");
}

#[test]
fn a_live_table_is_never_hidden_by_hold() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.write_into("copy", "orders", 3);
    let replace = world.tidemark().run(HOLD.into_iter().chain(["--replace"])).expect_code(2);
    for words in ["--replace", "--hold", "--rename", "leave one"] {
        assert!(replace.stderr.contains(words), "{replace}");
    }
    assert_eq!(tables_of_copy(&world), [("orders".to_owned(), false)]);

    world.tidemark().run(HOLD[..4].iter().chain(&["--replace"])).expect_code(0);
    world.write("orders", 250);
    world.tidemark().run(BACKUP).expect_code(0);
    let hide = world.tidemark().run(HOLD.into_iter().chain(["--continue"])).expect_code(14);
    assert!(hide.stderr.contains("is visible"), "{hide}");
    assert_eq!(tables_of_copy(&world), [("orders".to_owned(), false)]);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_held_copy_is_shown_by_continue_without_a_newer_backup_also_after_a_kill() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.tidemark().run(HOLD).expect_code(0);
    let show: Vec<&str> = HOLD[..4].iter().copied().chain(["--continue", "--at", "1"]).collect();
    let plan = world.tidemark().run(show.iter().chain(&["--dry-run"])).expect_code(0);
    assert!(plan.stdout.contains("shows the held copy"), "{plan}");
    for death in ["target.seal.before_commit:1:kill", "target.publish.before_commit:1:kill"] {
        world.tidemark().with_failpoint(death).run(&show).expect_killed();
        assert_eq!(tables_of_copy(&world), [("orders".to_owned(), true)]);
    }

    let shown = world.tidemark().run(&show).expect_code(0);

    assert!(shown.stdout.contains("1 table at"), "{shown}");
    assert!(shown.stdout.contains("equals source"), "{shown}");
    assert_eq!(tables_of_copy(&world), [("orders".to_owned(), false)]);
}

#[test]
fn a_restore_that_went_through_before_is_told_with_its_operation() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.tidemark().run(&HOLD[..4]).expect_code(0);

    let again = world.tidemark().run(&HOLD[..4]).expect_code(14);

    assert!(again.stderr.contains("operation 1 restored `"), "{again}");
    assert!(again.stderr.contains("_full` under the same names, and was done at 20"), "{again}");
    assert!(again.stderr.contains("a table `orders` exists in the target"), "{again}");
    let wait = ["operation", "wait", "1", "--target", "embedded:copy"];
    world.tidemark().run(wait).expect_code(0);
    let elsewhere = ["--rename", "orders=shop"];
    world.tidemark().run(HOLD[..4].iter().chain(&elsewhere)).expect_code(0);
    let other = ["--rename", "orders=shop", "--table", "ord*"];
    let refused = world.tidemark().run(HOLD[..4].iter().chain(&other)).expect_code(14);
    assert!(!refused.stderr.contains("was done"), "{refused}");
}

#[test]
fn titles_tell_restores_apart() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.write("orders", 250);
    world.tidemark().run(BACKUP).expect_code(0);
    let restores = [
        (&[][..], "restore of `backups` at #2 into `embedded:copy`"),
        (
            &["--at", "1", "--rename", "orders=before"],
            "restore of `backups` at #1 into `embedded:copy`, `orders` as `before`",
        ),
        (
            &["--table", "ord*", "--rename", "orders=again"],
            "restore of `backups` at #2 into `embedded:copy`, `ord*`, `orders` as `again`",
        ),
    ];
    for (args, _) in restores {
        world.tidemark().run(HOLD[..4].iter().chain(args)).expect_code(0);
    }

    let list = ["operation", "list", "--target", "embedded:copy"];
    let list = world.tidemark().run(list).expect_code(0).stdout;

    for (_, title) in restores {
        assert_eq!(list.lines().filter(|line| line.ends_with(title)).count(), 1, "{title}: {list}");
    }
}

#[test]
fn a_notice_is_told_once_to_people() {
    let world = World::new();
    world.write("few", 3);
    world.tidemark().run(BACKUP.iter().chain(&["--table", "few"])).expect_code(0);
    let done = HOLD[..4].iter().chain(&["--shards", "9"]);
    let done = world.tidemark().run(done).expect_code(0);
    let told = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(told.matches("its backup tells no more keys apart").count(), 1, "{done}");
}

#[test]
fn backing_up_nothing_is_a_warning_that_tells_of_held_copies() {
    let world = World::new();
    world.tidemark().run(BACKUP).expect_code(0);
    world.tidemark().run(HOLD).expect_code(0);
    let backup = ["backup", "--source", "embedded:copy", "--to", "of-copy"];
    let nothing = world.tidemark().run(backup).expect_code(3);
    assert!(nothing.stdout.contains("warning: nothing was backed up"), "{nothing}");
    for words in ["held copies only", "`orders`", "--continue"] {
        assert!(nothing.stderr.contains(words), "{nothing}");
    }

    world.tidemark().run(["db", "drop", "--db", "copy", "--table", "orders"]).expect_code(0);
    let nothing = world.tidemark().run(backup.iter().chain(&["--json"])).expect_code(3);
    let summary = nothing.json_lines().pop().unwrap();
    let warning = summary["outcome"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("no table that readers see"), "{nothing}");
    assert!(!nothing.stdout.contains("held copies"), "{nothing}");
}
