//! Every flaw is found by the level that looks there, named, and told beside the others.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::backup::BackupChoice;
use crate::backup::fixture::{Obstructed, World, drive};
use crate::env::SystemEnv;
use crate::error::Kind;
use crate::executor::{Ended, Intent};
use crate::ids::{ShardIdx, StepIdx};

/// A full and an increment of a table of three shards.
fn world() -> World {
    let world = World::new();
    world.create("t");
    world.put("t", (0..300).map(|id| (id, id)));
    world.back_up(BackupChoice::Full);
    world.put("t", (0..300).step_by(7).map(|id| (id, -id)));
    world.back_up(BackupChoice::Incremental);
    world
}

fn begin(world: &World, level: Level) -> BegunVerify<'_> {
    let options = VerifyOptions { level, at: None };
    let scratch = world.folder.path().join("scratch");
    let room = Room { window: 1, memory_bytes: 256 << 20, scratch };
    let request = VerifyRequest {
        collection: Arc::clone(&world.collection),
        collection_shown: "collection",
        options: &options,
        room: &room,
    };
    begin_verify(&world.catalog, &request, &SystemEnv).unwrap()
}

fn verify(world: &World, level: Level) -> (Ended, VerifyOutcome) {
    let begun = begin(world, level);
    let ended = drive(&world.catalog, &begun.job, begun.id, Intent::CarryOn);
    (ended, begun.job.verdict().expect("a verification that ran to its end has a verdict"))
}

fn objects(outcome: &VerifyOutcome) -> Vec<&str> {
    outcome.findings.iter().map(|finding| finding.object.as_str()).collect()
}

/// Gives the manifest of the only backup another state digest, and the log entry its hash.
fn forge_state(world: &World) {
    let directory = world.collection.log().unwrap()[0].directory.clone();
    let (manifest, log) =
        (world.path(&format!("{directory}/manifest.json")), world.path("log/000001.json"));
    let text = fs::read_to_string(&manifest).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sum = document["tables"][0]["state"]["sum"].as_str().unwrap();
    let forged = text.replacen(sum, &"0".repeat(32), 1);
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let entry = fs::read_to_string(&log).unwrap().replace(&hash(&text), &hash(&forged));
    let (body, _) = entry.rsplit_once(",\n  \"checksum\"").unwrap();
    fs::write(manifest, &forged).unwrap();
    fs::write(log, format!("{body},\n  \"checksum\": \"{}\"\n}}\n", hash(body))).unwrap();
}

#[test]
fn a_sound_collection_has_no_flaw_at_any_level() {
    let world = world();
    for level in Level::ALL {
        let (ended, outcome) = verify(&world, level);
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
        assert_eq!((outcome.backups, outcome.findings.len()), (2, 0));
        assert_eq!(outcome.parts, if level >= Level::Parts { 6 } else { 0 });
        assert_eq!(outcome.folds, u64::from(level == Level::Rows));
    }
}

#[test]
fn every_kind_of_damage_is_found_by_the_levels_that_look_there_and_named() {
    type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;
    let flipped: Damage = |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    };
    let truncated: Damage = |mut bytes| {
        // Not only the line end, which a document may lack.
        bytes.truncate(bytes.len() - 3);
        Some(bytes)
    };
    let grown: Damage = |mut bytes| {
        bytes.push(0);
        Some(bytes)
    };
    let missing: Damage = |_| None;
    let all =
        [("flipped", flipped), ("truncated", truncated), ("grown", grown), ("missing", missing)];
    let world = world();
    let log = world.collection.log().unwrap();
    let mut damaged = vec!["log/000002.json".to_owned()];
    damaged.extend(log.iter().map(|entry| format!("{}/manifest.json", entry.directory)));
    damaged.extend([world.parts(0).remove(1), world.parts(1).remove(2)]);
    for object in damaged {
        let (path, is_part) = (world.path(&object), object.ends_with(".parquet"));
        let sound = fs::read(&path).unwrap();
        for (what, damage) in all {
            // The log ends where an entry is missing: a lost newest link is noticed by whoever
            // knows of it, and is no flaw of what is left.
            if object.starts_with("log/") && what == "missing" {
                continue;
            }
            match damage(sound.clone()) {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            for level in Level::ALL {
                let (ended, outcome) = verify(&world, level);
                let is_seen = !(is_part && what == "flipped" && level == Level::Manifest);
                let context = format!("{object} {what} at {}: {outcome:?}", level.name());
                if !is_seen {
                    assert!(matches!(ended, Ended::Done { .. }), "{context}");
                    continue;
                }
                let Ended::Failed(failure) = ended else { panic!("{context}") };
                assert_eq!(failure.kind, Kind::Broken, "{context}");
                assert!(objects(&outcome).contains(&object.as_str()), "{context}");
                let once = objects(&outcome).iter().filter(|found| **found == object).count();
                assert_eq!(once, 1, "{context}");
                assert!(failure.message.contains(&object), "{context}");
            }
            fs::write(&path, &sound).unwrap();
        }
    }
    assert!(matches!(verify(&world, Level::Rows).0, Ended::Done { .. }));
}

#[test]
fn several_flaws_are_all_told() {
    let world = world();
    let (full, increment) = (world.parts(0), world.parts(1));
    fs::remove_file(world.path(&full[0])).unwrap();
    let mut bytes = fs::read(world.path(&full[2])).unwrap();
    bytes[30] ^= 0x80;
    fs::write(world.path(&full[2]), bytes).unwrap();
    fs::write(world.path(&increment[1]), b"PAR1").unwrap();
    let (ended, outcome) = verify(&world, Level::Rows);
    assert_eq!(objects(&outcome), [&full[0], &increment[1], &full[2]]);
    let Ended::Failed(failure) = ended else { panic!("{ended:?}") };
    for object in objects(&outcome) {
        assert!(failure.message.contains(object), "{}", failure.message);
    }
    // A chain with a flawed part leads nowhere, which is not a flaw of its own.
    assert_eq!((outcome.folds, outcome.unfolded.len()), (0, 1));
}

#[test]
fn whole_objects_that_fold_to_other_rows_than_the_source_had_are_a_mismatch() {
    let world = World::new();
    world.create("t");
    world.put("t", (0..300).map(|id| (id, id)));
    world.back_up(BackupChoice::Full);
    forge_state(&world);
    assert!(matches!(verify(&world, Level::Parts).0, Ended::Done { .. }));
    let (ended, outcome) = verify(&world, Level::Rows);
    let Ended::Failed(failure) = ended else { panic!("{ended:?}") };
    assert_eq!((failure.kind, outcome.findings[0].kind), (Kind::Mismatch, Kind::Mismatch));
    assert!(outcome.findings[0].object.ends_with("table t"), "{outcome:?}");
}

#[test]
fn an_interrupted_verification_does_not_read_clean_parts_again() {
    // Given a verification that was stopped after two clean parts
    let world = world();
    let begun = begin(&world, Level::Parts);
    let id = begun.id;
    let obstructed = Obstructed::after(&begun.job, 2);
    let ended = drive(&world.catalog, &obstructed, id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    drop(begun);
    let verified: Vec<ShardIdx> = crate::catalog::Catalog::shards(&world.catalog, id, StepIdx(0))
        .unwrap()
        .into_iter()
        .filter(|(_, shard)| shard.done.bytes > 0)
        .map(|(shard, _)| shard)
        .collect();
    assert_eq!(verified.len(), 2);
    // When those two are damaged without a sign, and one that was not read yet
    let all = [world.parts(0), world.parts(1)].concat();
    let unread = (0..6).find(|at| !verified.contains(&ShardIdx(*at))).unwrap();
    for at in verified.iter().map(|shard| shard.0).chain([unread]) {
        let path = world.path(&all[at as usize]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[30] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let resumed = begin(&world, Level::Parts);
    assert_eq!((resumed.id, resumed.is_resumed), (id, true));
    let ended = drive(&world.catalog, &resumed.job, id, Intent::CarryOn);
    // Then only the one that was read now is told
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");
    let outcome = resumed.job.verdict().unwrap();
    assert_eq!(objects(&outcome), [&all[unread as usize]]);
    // And a new verification finds all three
    assert_eq!(verify(&world, Level::Parts).1.findings.len(), 3);
}

#[test]
fn flaws_that_a_lost_process_had_found_are_told_by_the_next() {
    // Given a verification that found a flaw in its first part, and whose process was lost
    let world = world();
    let part = world.parts(0).remove(0);
    let mut bytes = fs::read(world.path(&part)).unwrap();
    bytes[30] ^= 1;
    fs::write(world.path(&part), bytes).unwrap();
    let begun = begin(&world, Level::Parts);
    let id = begun.id;
    let ended = drive(&world.catalog, &Obstructed::after(&begun.job, 5), id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Paused { .. }), "{ended:?}");
    drop(begun);
    // When, then
    let resumed = begin(&world, Level::Parts);
    assert_eq!(resumed.id, id);
    let ended = drive(&world.catalog, &resumed.job, id, Intent::CarryOn);
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");
    assert_eq!(objects(&resumed.job.verdict().unwrap()), [&part]);
}
