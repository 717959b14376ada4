//! Whole collections: good ones, damaged ones, and races.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::accept::totals;
use super::chain::{Chain, RestorePoint};
use super::check::{ManifestReport, check_manifests};
use super::collection::{Collection, NewBackup};
use super::document;
use super::fixture::{NOW_MS, TestEnv, manifest, small_collection, tables, take, write_parts};
use super::garbage::Unlisted;
use super::layout::{log_path, manifest_path};
use super::manifest::{BackupKind, LogEntry, Manifest, TableMode};
use super::store::Store;
use crate::env::WallTime;
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, Position, Sequence};

const FULL: BackupKind = BackupKind::Full;
const INCREMENT: BackupKind = BackupKind::Incremental;

fn at(path: &Path) -> Store {
    Store::open(path.to_str().unwrap()).unwrap()
}

/// Everything that the documents of a collection say.
#[derive(Debug, PartialEq)]
struct Reading {
    id: CollectionId,
    created: WallTime,
    log: Vec<LogEntry>,
    manifests: Vec<Manifest>,
    chain: Chain,
}

fn read(store: &Store) -> Result<Reading> {
    let collection = Collection::open(store.clone())?;
    let log = collection.log()?;
    let manifests = log.iter().map(|entry| collection.manifest(entry)).collect::<Result<_>>()?;
    let chain = collection.chain(&RestorePoint::Latest)?;
    collection.check_present(&chain)?;
    let record = collection.record();
    Ok(Reading { id: record.id, created: record.created, log, manifests, chain })
}

/// A small collection in a folder, to be damaged.
fn on_disk(increments: u32) -> (tempfile::TempDir, Collection) {
    let dir = tempfile::tempdir().unwrap();
    let collection = small_collection(at(dir.path()), increments);
    (dir, collection)
}

/// Damages a fresh collection, and expects that reading it is refused as broken, naming `object`.
#[track_caller]
fn refused(object: &str, damage: impl FnOnce(&Path, &[LogEntry])) -> Error {
    let (dir, collection) = on_disk(2);
    damage(dir.path(), &collection.log().unwrap());
    let error = read(&at(dir.path())).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken, "{error:?}");
    assert!(error.message().contains(object), "{error}");
    assert!(error.message().contains("found"), "{error}");
    assert!(error.message().contains("expected"), "{error}");
    let report = check_manifests(&collection, None).unwrap();
    if object != "collection.json" {
        assert!(report.flaws.iter().any(|flaw| flaw.object.contains(object)), "{report:?}");
    }
    error
}

/// Writes a document in place of the one at `path`, properly sealed.
fn rewrite(path: &Path, change: impl FnOnce(&mut LogEntry)) {
    let mut entry = document::unseal("x", &fs::read(path).unwrap()).map_err(Error::from).unwrap();
    change(&mut entry);
    fs::write(path, document::seal(&entry)).unwrap();
}

/// Replaces the newest manifest by a changed one and makes its log entry name that.
fn forge(objects: &InMemory, collection: &Collection, change: impl FnOnce(&mut Manifest)) {
    let mut newest = collection.log().unwrap().pop().unwrap();
    let mut manifest = collection.manifest(&newest).unwrap();
    change(&mut manifest);
    let bytes = document::pretty(&manifest);
    overwrite(objects, &manifest_path(&newest.directory), &bytes);
    newest.manifest = blake3::hash(&bytes).to_hex().to_string();
    overwrite(objects, &log_path(newest.sequence), &document::seal(&newest));
}

#[test]
fn a_collection_reads_back_what_was_committed() {
    for store in [Store::in_memory(), at(tempfile::tempdir().unwrap().path())] {
        let collection = small_collection(store.clone(), 3);
        let reading = read(&store).unwrap();
        assert_eq!(reading.id, collection.id());
        assert_eq!(reading.created, WallTime(NOW_MS));
        assert_eq!(reading.log.len(), 4);
        assert_eq!(reading.chain.links().len(), 4);
        let report = check_manifests(&collection, None).unwrap();
        assert_eq!((report.backups, report.parts.len()), (4, 8));
        assert!(report.flaws.is_empty(), "{report:?}");
        for check in &report.parts {
            assert_eq!(check.run(&collection).unwrap(), None);
        }
        let point = RestorePoint::Sequence(Sequence(2));
        assert_eq!(check_manifests(&collection, Some(&point)).unwrap().backups, 2);
    }
}

#[test]
fn backups_within_one_second_have_increasing_names() {
    let (_dir, collection) = on_disk(3);
    let log = collection.log().unwrap();
    let names: Vec<&str> = log.iter().map(|entry| entry.directory.as_str()).collect();
    assert_eq!(
        names,
        [
            "20260131093000Z_full",
            "20260131093001Z_incremental",
            "20260131093002Z_incremental",
            "20260131093003Z_incremental",
        ]
    );
}

#[test]
fn what_is_not_a_collection_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let says = |name: &str, kind: Kind, text: &str| {
        let error = Collection::open(at(&dir.path().join(name))).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(text), "{error}");
    };
    says("none", Kind::NotFound, "the folder does not exist");
    fs::create_dir_all(dir.path().join("empty")).unwrap();
    says("empty", Kind::NotFound, "it is empty");
    fs::create_dir_all(dir.path().join("letters/old")).unwrap();
    says("letters", Kind::NotFound, "\"old\"");
    fs::create_dir_all(dir.path().join("lost/log")).unwrap();
    says("lost", Kind::Broken, "collection.json");
    fs::write(dir.path().join("letters/collection.json"), b"{\"a\":").unwrap();
    says("letters", Kind::Broken, "collection.json");
    fs::write(dir.path().join("letters/collection.json"), b"{\"format\":{\"major\":2}}").unwrap();
    says("letters", Kind::Unsupported, "format 2");
    fs::write(dir.path().join("letters/collection.json"), vec![b' '; 65 << 10]).unwrap();
    says("letters", Kind::Broken, "at most 65536");
}

#[test]
fn a_collection_is_made_only_where_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let env = TestEnv::new();
    fs::write(dir.path().join("letter"), b"").unwrap();
    let taken = Collection::open_or_create(at(dir.path()), &env).unwrap_err();
    assert_eq!(taken.kind(), Kind::InTheWay);
    assert!(taken.message().contains("letter"), "{taken}");

    let place = dir.path().join("new/place");
    let made = Collection::open_or_create(at(&place), &env).unwrap();
    let opened = Collection::open_or_create(at(&place), &env).unwrap();
    assert_eq!(made.id(), opened.id());
    assert_eq!(Collection::create(at(&place), &env).unwrap_err().kind(), Kind::InTheWay);
    assert!(opened.log().unwrap().is_empty());
    let names: Vec<_> =
        fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["collection.json"]);
    assert_eq!(opened.chain(&RestorePoint::Latest).unwrap_err().kind(), Kind::NotFound);
    let error = opened.begin_backup(INCREMENT, &env).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("full backup first"), "{error}");
}

#[test]
fn two_who_make_a_collection_at_once_get_the_same() {
    let dir = tempfile::tempdir().unwrap();
    // What others left who died while they tried the store out.
    fs::create_dir(dir.path().join("probe")).unwrap();
    fs::write(dir.path().join("probe/00"), b"first").unwrap();
    fs::write(dir.path().join("collection.json#1"), b"{").unwrap();
    let barrier = Barrier::new(4);
    let ids: Vec<CollectionId> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let env = crate::env::SystemEnv;
                    Collection::open_or_create(at(dir.path()), &env).unwrap().id()
                })
            })
            .collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

/// A collection whose objects a test can exchange at will, and quickly.
fn in_hand(increments: u32) -> (Arc<InMemory>, Collection) {
    let objects = Arc::new(InMemory::new());
    let store = Store::over("memory", Arc::clone(&objects) as Arc<dyn ObjectStore>);
    (objects, small_collection(store, increments))
}

fn overwrite(objects: &InMemory, path: &str, bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let path = path.into();
    let put = objects.put(&path, PutPayload::from(bytes.to_vec()));
    runtime.block_on(put).unwrap();
}

#[test]
fn a_changed_byte_in_any_document_is_an_error_or_changes_nothing() {
    let (objects, collection) = in_hand(1);
    let store = collection.store();
    let before = read(store).unwrap();
    let mut harmless = 0;
    for object in store.list("").unwrap().iter().filter(|object| object.path.ends_with(".json")) {
        let bytes = store.get(&object.path, u64::MAX).unwrap();
        for at in 0..bytes.len() {
            // A bit, white space, the case of a letter, another digit; a manifest, whose hash
            // stands elsewhere, tells every change from every other in the same way.
            let others = [bytes[at] ^ 1, b' ', bytes[at] ^ 0x20, b'7'];
            let count = if object.path.ends_with("manifest.json") { 2 } else { 4 };
            for other in others.into_iter().take(count).filter(|other| *other != bytes[at]) {
                let mut changed = bytes.clone();
                changed[at] = other;
                overwrite(&objects, &object.path, &changed);
                match read(store) {
                    Ok(after) => {
                        assert_eq!(after, before, "{}: byte {at} as {other}", object.path);
                        harmless += 1;
                    }
                    Err(error) => {
                        let kinds = [Kind::Broken, Kind::Unsupported];
                        assert!(kinds.contains(&error.kind()), "{error:?}");
                        assert!(error.message().contains(&object.path), "{error}");
                    }
                }
            }
        }
        overwrite(&objects, &object.path, &bytes);
    }
    assert_eq!(read(store).unwrap(), before);
    // Only the line feed at the very end of a sealed document is not covered.
    assert!(harmless <= 3 * 4, "{harmless}");
}

#[test]
fn every_truncated_document_is_refused() {
    let (objects, collection) = in_hand(1);
    let store = collection.store();
    for object in store.list("").unwrap().iter().filter(|object| object.path.ends_with(".json")) {
        let bytes = store.get(&object.path, u64::MAX).unwrap();
        for len in 0..bytes.len() - 1 {
            overwrite(&objects, &object.path, &bytes[..len]);
            assert_eq!(read(store).unwrap_err().kind(), Kind::Broken, "{}: {len}", object.path);
        }
        overwrite(&objects, &object.path, &bytes);
    }
}

#[test]
fn a_gap_in_the_log_names_the_missing_entry() {
    refused("log/000002.json", |dir, _| fs::remove_file(dir.join("log/000002.json")).unwrap());
    refused("log/000001.json", |dir, _| fs::remove_file(dir.join("log/000001.json")).unwrap());
}

#[test]
fn a_reordered_log_is_refused() {
    refused("log/000002.json", |dir, _| {
        let path = |number: u32| dir.join(format!("log/00000{number}.json"));
        fs::rename(path(2), dir.join("aside")).unwrap();
        fs::rename(path(3), path(2)).unwrap();
        fs::rename(dir.join("aside"), path(3)).unwrap();
    });
    // Also when the numbers inside were changed along.
    refused("log/000002.json", |dir, log| {
        for (number, from) in [(2, &log[2]), (3, &log[1])] {
            rewrite(&dir.join(format!("log/00000{number}.json")), |entry| {
                *entry = LogEntry { sequence: Sequence(number), ..from.clone() };
            });
        }
    });
}

#[test]
fn a_fork_and_a_doubled_number_are_refused() {
    refused("log/000003.json", |dir, log| {
        rewrite(&dir.join("log/000003.json"), |entry| entry.previous = log[1].previous.clone());
    });
    refused("log/2.json", |dir, _| {
        fs::copy(dir.join("log/000002.json"), dir.join("log/2.json")).unwrap();
    });
    refused("log/000003.json", |dir, _| {
        fs::copy(dir.join("log/000002.json"), dir.join("log/000003.json")).unwrap();
    });
    refused("log/000003.json", |dir, log| {
        rewrite(&dir.join("log/000003.json"), |entry| entry.directory = log[1].directory.clone());
    });
}

#[test]
fn an_entry_that_leaves_the_collection_or_is_too_large_is_refused() {
    for directory in ["../20260131093002Z_incremental", "/etc", "20260131093002Z_full", "x"] {
        refused("log/000003.json", |dir, _| {
            rewrite(&dir.join("log/000003.json"), |entry| entry.directory = directory.to_owned());
        });
    }
    refused("log/000003.json", |dir, _| {
        fs::write(dir.join("log/000003.json"), vec![b' '; 65 << 10]).unwrap();
    });
}

#[test]
fn a_missing_or_exchanged_manifest_is_refused() {
    refused("manifest.json", |dir, log| {
        fs::remove_file(dir.join(manifest_path(&log[1].directory))).unwrap();
    });
    refused(&log_path(Sequence(3)), |dir, _| {
        rewrite(&dir.join(log_path(Sequence(3))), |entry| entry.manifest = "A".repeat(64));
    });
    let error = refused("manifest.json", |dir, log| {
        let path = |entry: &LogEntry| dir.join(manifest_path(&entry.directory));
        fs::copy(path(&log[1]), path(&log[2])).unwrap();
    });
    assert!(error.message().contains("BLAKE3"), "{error}");
}

#[test]
fn an_oversized_manifest_is_refused_before_it_is_read() {
    refused("manifest.json", |dir, log| {
        let path = dir.join(manifest_path(&log[2].directory));
        // A sparse file: 300 MiB that take no space.
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(300 << 20).unwrap();
    });
}

#[test]
fn a_manifest_that_contradicts_anything_is_refused() {
    type Change = fn(&mut Manifest);
    let changes: Vec<(&str, Change)> = vec![
        ("collection", |m| m.collection = CollectionId(99)),
        ("sequence", |m| m.sequence = Sequence(2)),
        ("Full", |m| m.kind = FULL),
        ("directory", |m| m.directory = "20260131093009Z_incremental".to_owned()),
        ("without a parent", |m| m.parent = None),
        ("parent 1", |m| m.parent.as_mut().unwrap().sequence = Sequence(1)),
        ("parent", |m| m.parent.as_mut().unwrap().directory.push('x')),
        ("parent manifest", |m| m.parent.as_mut().unwrap().manifest = "0".repeat(64)),
        ("hexadecimal", |m| m.parent.as_mut().unwrap().manifest = "xyz".to_owned()),
        ("positions", |m| m.source.from = Some(Position(u64::MAX))),
        ("positions", |m| m.source.from = None),
        ("position", |m| m.source.from = Some(Position(19))),
        ("source", |m| m.source.identity.push('x')),
        ("sorted by name", |m| m.tables.reverse()),
        ("sorted by name", |m| m.tables[1].name = m.tables[0].name.clone()),
        ("twice", |m| m.tables[1].id = m.tables[0].id),
        ("schema", |m| m.tables[0].schema.columns.clear()),
        ("no key", |m| m.tables[0].schema.key.clear()),
        ("totals", |m| m.totals.rows += 1),
        ("totals", |m| m.totals.parts = 0),
        ("beyond 2^64", |m| {
            for table in &mut m.tables {
                table.parts[0].bytes = u64::MAX;
            }
        }),
        ("at most 2^50", |m| {
            m.tables[0].parts[0].bytes = (1 << 50) + 1;
            m.totals = totals(&m.tables).unwrap();
        }),
        ("inside the backup", |m| m.tables[0].parts[0].name = "../../etc/passwd".to_owned()),
        ("inside the backup", |m| m.tables[0].parts[0].name = "/etc/passwd".to_owned()),
        ("inside the backup", |m| m.tables[0].parts[0].name = "a\\b".to_owned()),
        ("inside the backup", |m| m.tables[0].parts[0].name = String::new()),
        ("twice", |m| m.tables[1].parts[0].name = m.tables[0].parts[0].name.clone()),
        ("twice", |m| m.tables[1].parts[0].name = "manifest.json".to_owned()),
        ("hexadecimal", |m| m.tables[0].parts[0].blake3.push('0')),
        ("hexadecimal", |m| m.tables[0].parts[0].blake3 = "G".repeat(64)),
        ("at least one row", |m| m.tables[0].parts[0].rows = 0),
        ("at least one row", |m| m.tables[0].parts[0].bytes = 0),
        ("tombstones than rows", |m| m.tables[0].parts[0].tombstones = 4),
        ("a digest of", |m| m.tables[0].parts[0].tombstones = 1),
        ("whole", |m| {
            m.tables[0].mode = TableMode::Whole;
            m.tables[0].parts[0].tombstones = 1;
        }),
        ("greatest row", |m| m.tables[0].parts[0].row_bytes_max = 61),
        ("greatest row", |m| m.tables[0].parts[0].row_bytes_max = 19),
        ("first key", |m| m.tables[0].parts[0].last_key.clear()),
        ("first key", |m| {
            m.tables[0].parts[0].last_key = m.tables[0].parts[0].first_key.clone();
        }),
        ("row groups", |m| m.tables[0].parts[0].row_groups.clear()),
        ("row groups", |m| m.tables[0].parts[0].row_groups[0].rows = 2),
        ("row groups", |m| m.tables[0].parts[0].row_groups[0].row_bytes = u64::MAX),
        ("row groups", |m| m.tables[0].parts[0].row_groups[0].first_key.push(0)),
        ("row groups", |m| {
            let group = m.tables[0].parts[0].row_groups[0].clone();
            m.tables[0].parts[0].row_groups[0].rows = 1;
            let half = super::manifest::RowGroupEntry { rows: 2, row_bytes: 0, ..group };
            m.tables[0].parts[0].row_groups.push(half);
        }),
        ("samples", |m| m.tables[0].parts[0].key_samples.push(vec![])),
        ("key beyond", |m| {
            let mut part = m.tables[0].parts[0].clone();
            part.name.push('x');
            m.tables[0].parts.push(part);
        }),
        ("the source had", |m| {
            m.tables[0].mode = TableMode::Whole;
            m.tables[0].state = Some(crate::row::Digest { rows: 4, sum: 0 });
        }),
    ];
    for (says, change) in changes {
        let (objects, collection) = in_hand(2);
        forge(&objects, &collection, change);
        let error = read(collection.store()).unwrap_err();
        assert_eq!(error.kind(), Kind::Broken, "{says}: {error:?}");
        assert!(error.message().contains(says), "{says}: {error}");
        assert!(error.message().contains("20260131093002Z_incremental/manifest.json"), "{error}");
    }
}

#[test]
fn a_table_without_a_key_has_no_keys_anywhere() {
    let keyless = |manifest: &mut Manifest| {
        for table in &mut manifest.tables {
            table.schema.key.clear();
            let mut part = table.parts[0].clone();
            part.first_key.clear();
            part.last_key.clear();
            part.row_groups[0].first_key.clear();
            part.key_samples = vec![Vec::new()];
            table.parts = vec![part];
        }
    };
    let (objects, collection) = in_hand(0);
    forge(&objects, &collection, keyless);
    read(collection.store()).unwrap();
    forge(&objects, &collection, |manifest| manifest.tables[0].parts[0].last_key = vec![1]);
    let error = read(collection.store()).unwrap_err();
    assert!(error.message().contains("expected no key"), "{error}");
}

#[test]
fn a_full_carries_every_table_whole_and_has_no_parent() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 3] = [
        ("every table whole", |m| m.tables[0].mode = TableMode::Delta),
        ("without a parent", |m| {
            m.parent = Some(super::manifest::ParentLink {
                sequence: Sequence(1),
                directory: "x".to_owned(),
                manifest: "0".repeat(64),
            });
        }),
        ("from the beginning", |m| m.source.from = Some(Position(1))),
    ];
    for (says, change) in changes {
        let (objects, collection) = in_hand(0);
        forge(&objects, &collection, change);
        let error = read(collection.store()).unwrap_err();
        assert!(error.message().contains(says), "{error}");
    }
}

#[test]
fn fields_of_newer_minors_are_kept() {
    let (objects, collection) = in_hand(1);
    forge(&objects, &collection, |manifest| {
        manifest.format.minor = 7;
        manifest.extra.insert("later".to_owned(), serde_json::json!({"deep": [1]}));
        manifest.tables[0].extra.insert("hint".to_owned(), serde_json::json!(true));
        manifest.tables[0].parts[0].extra.insert("codec".to_owned(), serde_json::json!("x"));
    });
    let manifest = collection.manifest(&collection.log().unwrap()[1]).unwrap();
    assert_eq!(manifest.extra["later"]["deep"][0], 1);
    assert_eq!(manifest.tables[0].extra["hint"], true);
    assert_eq!(manifest.tables[0].parts[0].extra["codec"], "x");
}

#[test]
fn an_increment_on_a_chain_that_lost_an_object_is_refused_and_so_is_restoring_it() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("found nothing", |part| fs::remove_file(part).unwrap()),
        ("found 3 bytes", |part| fs::write(part, b"cut").unwrap()),
        ("found nothing", |part| {
            fs::remove_dir_all(part.parent().unwrap()).unwrap();
        }),
    ];
    for (says, damage) in damages {
        let (dir, collection) = on_disk(2);
        let chain = collection.chain(&RestorePoint::Latest).unwrap();
        let part = &chain.links()[0].manifest.tables[0].parts[0];
        let path = chain.tables(&[]).unwrap()[0].links[0].part_path(part);
        damage(&dir.path().join(&path));

        let env = TestEnv::new();
        for error in [
            collection.check_present(&chain).unwrap_err(),
            collection.begin_backup(INCREMENT, &env).unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Broken);
            assert!(error.message().contains(&path) && error.message().contains(says), "{error}");
            assert!(error.message().contains("take a new full backup"), "{error}");
        }
        let error = collection.open_part(&chain.links()[0].entry.directory, part).unwrap_err();
        assert_eq!(error.kind(), Kind::Broken);
        // A new full needs nothing of the old chain.
        take(&collection, FULL, &env);
        take(&collection, INCREMENT, &env);
        let report = check_manifests(&collection, None).unwrap();
        assert!(report.flaws.iter().any(|flaw| flaw.object == path), "{report:?}");
        let newest = check_manifests(&collection, Some(&RestorePoint::Latest)).unwrap();
        assert_eq!((newest.backups, newest.flaws.len()), (2, 0));
    }
}

#[test]
fn a_lost_newest_backup_is_noticed_by_its_log_entry() {
    let (dir, collection) = on_disk(1);
    let newest = collection.log().unwrap().pop().unwrap();
    fs::remove_dir_all(dir.path().join(&newest.directory)).unwrap();
    let error = collection.begin_backup(INCREMENT, &TestEnv::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains(&newest.directory), "{error}");
}

#[test]
fn a_changed_byte_in_a_part_is_found_by_its_check() {
    let (dir, collection) = on_disk(1);
    let ManifestReport { parts, .. } = check_manifests(&collection, None).unwrap();
    let path = dir.path().join(&parts[2].path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(check_manifests(&collection, None).unwrap().flaws.is_empty(), "sizes are the same");
    let flaws: Vec<_> = parts.iter().filter_map(|part| part.run(&collection).unwrap()).collect();
    assert_eq!(flaws.len(), 1);
    assert_eq!(flaws[0].object, parts[2].path);
    assert!(flaws[0].found.contains("BLAKE3") && flaws[0].expected.contains(&parts[2].blake3));

    bytes.pop();
    fs::write(&path, &bytes).unwrap();
    assert!(parts[2].run(&collection).unwrap().unwrap().found.contains("bytes"));
    fs::remove_file(&path).unwrap();
    assert_eq!(parts[2].run(&collection).unwrap().unwrap().found, "nothing");
}

#[test]
fn of_two_who_commit_at_once_exactly_one_wins_and_nothing_is_deleted() {
    for round in 0..10 {
        let (dir, collection) = on_disk(0);
        let env = TestEnv::new();
        // Both began before either committed; even rounds share the directory.
        let begun: Vec<NewBackup> = (0..2u64)
            .map(|writer| {
                env.now_ms.fetch_add(writer * (round % 2) * 5000, Ordering::Relaxed);
                collection.begin_backup(INCREMENT, &env).unwrap()
            })
            .collect();
        let barrier = Barrier::new(2);
        let outcomes: Vec<Result<LogEntry>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2usize)
                .map(|writer| {
                    let (begun, collection, barrier) = (&begun[writer], &collection, &barrier);
                    scope.spawn(move || {
                        let mut tables = tables(TableMode::Delta);
                        write_parts(collection, begun, &mut tables, &format!("w{writer}"))?;
                        barrier.wait();
                        begun.commit(collection, &manifest(begun, tables))
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
        let lost = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
        assert_eq!(lost.kind(), Kind::Overtaken, "{lost}");
        assert!(lost.message().contains("another backup took that number"), "{lost}");
        let reading = read(collection.store()).unwrap();
        assert_eq!(reading.log.len(), 2);
        let parts = collection.store().list("").unwrap();
        assert_eq!(parts.iter().filter(|object| object.path.ends_with("parquet")).count(), 6);
        drop(dir);
    }
}

#[test]
fn committing_again_after_a_crash_succeeds_and_other_content_does_not() {
    let (_dir, collection) = on_disk(0);
    let env = TestEnv::new();
    let begun = collection.begin_backup(INCREMENT, &env).unwrap();
    // The plan is stored with the operation and read back by the next process.
    let begun: NewBackup = serde_json::from_str(&serde_json::to_string(&begun).unwrap()).unwrap();
    let mut tables = tables(TableMode::Delta);
    write_parts(&collection, &begun, &mut tables, "1a").unwrap();
    let manifest = manifest(&begun, tables);
    // A crash between manifest and log entry.
    let path = manifest_path(&begun.directory);
    collection.store().put_new(&path, &document::pretty(&manifest)).unwrap();
    assert_eq!(collection.log().unwrap().len(), 1, "it does not exist yet");

    let first = begun.commit(&collection, &manifest).unwrap();
    let again = begun.commit(&collection, &manifest).unwrap();
    assert_eq!(first, again);
    assert_eq!(collection.log().unwrap().len(), 2);

    let mut other = manifest.clone();
    other.cut_at = WallTime(1);
    assert_eq!(begun.commit(&collection, &other).unwrap_err().kind(), Kind::Overtaken);
    assert_eq!(collection.manifest(&first).unwrap(), manifest);
}

#[test]
fn a_manifest_whose_parts_are_not_there_is_never_acknowledged() {
    let (dir, collection) = on_disk(0);
    let begun = collection.begin_backup(INCREMENT, &TestEnv::new()).unwrap();
    let mut tables = tables(TableMode::Delta);
    write_parts(&collection, &begun, &mut tables, "1a").unwrap();
    let manifest = manifest(&begun, tables);
    let part = begun.part_path(&manifest.tables[1].parts[0].name);
    fs::remove_file(dir.path().join(&part)).unwrap();
    let error = begun.commit(&collection, &manifest).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains(&part), "{error}");
    assert_eq!(collection.log().unwrap().len(), 1);
}

#[test]
fn a_manifest_that_does_not_follow_its_parent_is_never_acknowledged() {
    let (_dir, collection) = on_disk(0);
    let begun = collection.begin_backup(INCREMENT, &TestEnv::new()).unwrap();
    let mut tables = tables(TableMode::Delta);
    write_parts(&collection, &begun, &mut tables, "1a").unwrap();
    let mut manifest = manifest(&begun, tables);
    manifest.source.from = Some(Position(3));
    let error = begun.commit(&collection, &manifest).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.message().contains("position"), "{error}");
    assert_eq!(collection.log().unwrap().len(), 1);
}

#[test]
fn a_backup_that_died_after_its_manifest_does_not_block_the_next() {
    let (_dir, collection) = on_disk(0);
    let env = TestEnv::new();
    let dead = collection.begin_backup(INCREMENT, &env).unwrap();
    collection.store().put_new(&manifest_path(&dead.directory), b"half").unwrap();
    let next = collection.begin_backup(INCREMENT, &env).unwrap();
    assert_eq!(next.sequence, dead.sequence);
    assert_ne!(next.directory, dead.directory);
    take(&collection, INCREMENT, &env);
    read(collection.store()).unwrap();
}

#[test]
fn garbage_is_what_crashes_left_and_only_when_it_is_old() {
    let (dir, collection) = on_disk(1);
    let env = TestEnv::new();
    let dead = collection.begin_backup(INCREMENT, &env).unwrap();
    let mut tables = tables(TableMode::Delta);
    write_parts(&collection, &dead, &mut tables, "dead").unwrap();
    let writer = dead.create_part(&collection, "public.x/00000-dead.parquet").unwrap();
    std::mem::forget(writer);
    fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
    let before = read(collection.store()).unwrap();

    let grace = Duration::from_secs(60);
    // Files carry the machine's clock, so the test moves its own past it.
    env.now_ms.store(0, Ordering::Relaxed);
    assert!(
        collection.garbage(grace, Unlisted::Kept, &env).unwrap().is_empty(),
        "everything is young"
    );
    env.now_ms.store(u64::MAX, Ordering::Relaxed);
    let garbage = collection.garbage(grace, Unlisted::Kept, &env).unwrap();
    assert_eq!(garbage.len(), 3, "{garbage:?}");
    assert!(garbage.iter().all(|object| object.path.starts_with(&dead.directory)));
    assert!(garbage.iter().any(|object| object.is_draft()));
    assert_eq!(
        collection.remove_garbage(grace, Unlisted::Kept, &env, &mut |_| {}).unwrap().objects,
        3
    );
    assert!(collection.garbage(grace, Unlisted::Kept, &env).unwrap().is_empty());
    assert_eq!(read(collection.store()).unwrap(), before);
    assert!(dir.path().join("notes.txt").exists() && !dir.path().join(&dead.directory).exists());

    // With a damaged log nobody knows what is garbage.
    fs::remove_file(dir.path().join("log/000001.json")).unwrap();
    assert_eq!(
        collection.remove_garbage(grace, Unlisted::Kept, &env, &mut |_| {}).unwrap_err().kind(),
        Kind::Broken
    );
}

#[test]
fn committed_backups_leave_nothing_but_their_objects() {
    let (_dir, collection) = on_disk(1);
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    let objects = collection.store().list("").unwrap();
    for object in &objects {
        let kind = object.path.rsplit(['/', '.']).next().unwrap();
        *kinds.entry(kind).or_default() += 1;
    }
    assert_eq!(kinds, BTreeMap::from([("json", 5), ("parquet", 4)]), "{objects:?}");
}
