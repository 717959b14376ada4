//! Verifying a table that one backup carries whole: its parts tell, without a fold.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use std::path::Path;
use std::sync::Arc;

use chain::{backup, database, env, name};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::check::Level;
use tidemark::collection::{Collection, NewBackup, Store};
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::ids::Sequence;
use tidemark::restore::Room;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::row::{LogicalType, Schema, Value};
use tidemark::verify::{VerifyOptions, VerifyRequest, begin_verify};

fn open(path: &Path) -> Arc<Collection> {
    let store = Store::open(path.to_str().unwrap()).unwrap();
    Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap())
}

fn verify(state: &Path, collection: &Arc<Collection>) -> Ended {
    let catalog = LmdbCatalog::open_or_create(state, env()).unwrap();
    let scratch = state.join("scratch");
    let room = Room { window: 2, memory_bytes: MEMORY_BYTES_DEFAULT, scratch };
    let request = VerifyRequest {
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &VerifyOptions { level: Level::Rows, at: None },
        room: &room,
    };
    let begun = begin_verify(&catalog, &request, &SystemEnv).unwrap();
    let (stop, intent) = (Stop::default(), Intent::CarryOn);
    run(&catalog, &begun.job, begun.id, intent, &SystemEnv, &stop, &mut Unobserved).unwrap()
}

#[test]
fn a_full_that_differs_from_its_source_is_found_though_its_parts_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    source.create_table(&name("t"), &Schema::new(&columns, &["id"]).unwrap(), &[]).unwrap();
    for id in 0..100 {
        let row = vec![Value::Int64(id), Value::Text(format!("note {id}"))];
        source.put(&name("t"), row).unwrap();
    }
    let (good_path, bad_path) = (folder.path().join("good"), folder.path().join("bad"));
    let good = open(&good_path);
    let directory = backup(&source, &good);
    assert!(matches!(verify(&folder.path().join("a"), &good), Ended::Done { .. }));

    // The same backup, of a source that says it had other rows.
    let bad = open(&bad_path);
    let entry = good.log().unwrap().remove(0);
    let mut manifest = good.manifest(&entry).unwrap();
    copy_all(&good_path.join(&directory), &bad_path.join(&directory));
    std::fs::remove_file(bad_path.join(&directory).join("manifest.json")).unwrap();
    manifest.collection = bad.id();
    let state = manifest.tables[0].state.as_mut().unwrap();
    state.sum = state.sum.wrapping_add(1);
    let new = NewBackup {
        collection: bad.id(),
        sequence: Sequence(1),
        kind: manifest.kind,
        directory,
        parent: None,
        previous: None,
    };
    new.commit(&bad, &manifest).unwrap();
    let ended = verify(&folder.path().join("b"), &bad);
    let Ended::Failed(failure) = ended else { unreachable!("{ended:?}") };
    assert_eq!(failure.kind, tidemark::Kind::Mismatch, "{}", failure.message);
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
