//! Memory of whole restores, counted by the allocator.
//!
//! One test, since the counter is the whole process's. What C allocates is not counted:
//! LMDB's dirty pages, bounded by the size of a chunk, and one zstd context of each kind
//! per thread. [`UNCOUNTED_BYTES`] of the promised memory are left for them. The program
//! itself is measured by `cargo xtask bench memory`, and under a limit of the system.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![expect(clippy::print_stdout, reason = "figures for people who look for them")]

mod chain;
mod counting;
mod wide;

use std::io::{self, Write};
use std::sync::Arc;

use chain::{backup, database, env, name, restore};
use counting::{Counting, peak_of};
use tidemark::catalog::LmdbCatalog;
use tidemark::collection::check::Level;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{DumpFormat, EmbeddedDatabase};
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{RestoreOptions, Room};
use tidemark::row::{LogicalType, Schema, Value};
use tidemark::verify::{VerifyOptions, VerifyRequest, begin_verify};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: u64 = 1 << 20;
/// Two shards in flight dirty at most 8 MiB each; the rest is for zstd.
const UNCOUNTED_BYTES: u64 = 32 * MIB;

const LARGE_BYTES: usize = 64 << 20;

#[test]
fn memory_of_restores_stays_within_what_is_promised() {
    a_hundred_columns_and_four_hundred_links_fit_the_default_memory();
    a_value_of_64_mib_costs_a_stated_multiple_all_the_way();
}

fn a_hundred_columns_and_four_hundred_links_fit_the_default_memory() {
    let folder = tempfile::tempdir().unwrap();
    let collection = wide::chain(&folder.path().join("collection"), 2_000, 40);
    let target = database(&folder.path().join("target"));
    let options = RestoreOptions { shards: Some(8), ..RestoreOptions::default() };
    let (ended, peak) =
        peak_of(|| restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap());
    // Done means proven: what was read back has the digest that the last link records.
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    println!("{} columns, {} links, 8 shards: peak {} MiB", wide::COLUMNS, wide::LINKS, peak / MIB);
    assert!(peak <= MEMORY_BYTES_DEFAULT - UNCOUNTED_BYTES, "{} MiB", peak / MIB);
}

/// Besides what a program holds anyway, each verb holds the value so many times.
fn a_value_of_64_mib_costs_a_stated_multiple_all_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let source = database(&folder.path().join("source"));
    let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
    let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
    let columns = [("id", LogicalType::Int64), ("value", LogicalType::Text)];
    source.create_table(&name("large"), &Schema::new(&columns, &["id"]).unwrap(), &[]).unwrap();
    for id in 0..20 {
        let bytes = if id == 10 { LARGE_BYTES } else { 100 };
        let row = vec![Value::Int64(id), Value::Text(noise(bytes))];
        source.put(&name("large"), row).unwrap();
    }
    let told = |verb: &str, peak: u64, factor: u64| {
        println!("64 MiB value: {verb} takes {} MiB", peak / MIB);
        let bytes = factor * LARGE_BYTES as u64 + 24 * MIB;
        assert!(peak <= bytes, "{verb}: {} MiB, {factor} times were promised", peak / MIB);
    };
    let ((), peak) = peak_of(|| drop(backup(&source, &collection)));
    told("backup", peak, 5);
    let target = database(&folder.path().join("target"));
    let options = RestoreOptions::default();
    let (ended, peak) =
        peak_of(|| restore(&target, &collection, &options, MEMORY_BYTES_DEFAULT).unwrap());
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
    told("restore", peak, 5);
    let ((), peak) = peak_of(|| verify(&folder.path().join("state"), &collection));
    told("verify", peak, 5);
    let (expected, peak) = peak_of(|| dumped(&source));
    told("dump", peak, 5);
    assert_eq!(dumped(&target), expected);
}

/// Text in which no codec finds repetitions.
fn noise(bytes: usize) -> String {
    let mut seed = 1u64;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let letters =
            (16..64).step_by(6).map(|shift| char::from(b'0' + (seed >> shift) as u8 % 64));
        text.extend(letters.take(bytes - text.len()));
    }
    text
}

fn verify(state: &std::path::Path, collection: &Arc<Collection>) {
    let catalog = LmdbCatalog::open_or_create(state, env()).unwrap();
    let room =
        Room { window: 2, memory_bytes: MEMORY_BYTES_DEFAULT, scratch: state.join("scratch") };
    let request = VerifyRequest {
        collection: Arc::clone(collection),
        collection_shown: "collection",
        options: &VerifyOptions { level: Level::Rows, at: None },
        room: &room,
    };
    let begun = begin_verify(&catalog, &request, &SystemEnv).unwrap();
    let stop = Stop::default();
    let ended =
        run(&catalog, &begun.job, begun.id, Intent::CarryOn, &SystemEnv, &stop, &mut Unobserved);
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
}

/// BLAKE3 of the table as CSV.
fn dumped(database: &EmbeddedDatabase) -> String {
    struct Hashing(blake3::Hasher);
    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut out = Hashing(blake3::Hasher::new());
    database.dump(&name("large"), DumpFormat::Csv, &mut out).unwrap();
    out.0.finalize().to_hex().to_string()
}
