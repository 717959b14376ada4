//! Restores beside raw LMDB.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidemark::catalog::LmdbCatalog;
use tidemark::database::Target;
use tidemark::env::SystemEnv;
use tidemark::executor::{Ended, Intent, Stop, Unobserved, run};
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{PlanKind, RestoreOptions, Room, Route, begin_restore};
use tidemark::row::RowBatch;

use crate::Size;
use crate::data::{self, Chain, INCREMENTS, SHARDS, THREADS};
use crate::machine::settle;
use crate::raw::RawStore;
use crate::report::{Clock, Goal, Report, Sample, Spent, Turn};
use crate::watched::Watched;

/// What a restore appends in one transaction, and what it changes in one: as `restore::apply`.
const APPENDED_BYTES: u64 = 4 << 20;
const CHANGED_ROWS: usize = 1024;

/// How one restore went.
#[derive(Debug)]
pub(crate) struct Timed {
    pub(crate) whole: Spent,
    pub(crate) steps: Vec<Spent>,
    pub(crate) proof: Spent,
}

pub(crate) fn measure(chain: &Chain, folder: &Path, size: &Size, report: &mut Report) {
    let ranges = data::shard_ranges(size.rows);
    let appended = |chunk: &RowBatch| chunk.byte_count() >= APPENDED_BYTES;
    let changed = |chunk: &RowBatch| chunk.len() >= CHANGED_ROWS;
    let collection = data::collection(&chain.collection);
    let full = data::decode(&collection, 0, &ranges, appended).shards;
    let last = data::decode(&data::collection(&chain.whole), 0, &ranges, appended).shards;
    let increments: Vec<Vec<Vec<RowBatch>>> = (1..=INCREMENTS as usize)
        .map(|link| data::decode(&collection, link, &ranges, changed).shards)
        .collect();
    let raw = |name: &str| RawStore::create(&folder.join(name), SHARDS as usize);
    let gone = |name: &str| fs::remove_dir_all(folder.join(name)).unwrap();

    let mut turns: [Vec<Turn>; 5] = Default::default();
    let (mut proofs, mut marks, mut whole_steps) = <(Sample, Sample, Vec<Turn>)>::default();
    for _ in 0..size.runs {
        let store = raw("raw");
        settle();
        let raw_full = store.append(&full);
        let ours = restore(chain, folder, false, "#1", PlanKind::Fold);
        turns[0].push(Turn { ours: ours.whole, reference: raw_full });
        whole_steps.push(Turn { ours: ours.steps[0], reference: raw_full });
        proofs.push(ours.proof.wall / ours.whole.wall);

        settle();
        let raw_changes = increments.iter().map(|chunks| store.change(chunks)).sum();
        let stepwise = restore(chain, folder, false, "latest", PlanKind::Sequential);
        let steps = stepwise.steps[1..].iter().copied().sum();
        turns[1].push(Turn { ours: steps, reference: raw_changes });
        turns[2].push(Turn { ours: stepwise.whole, reference: raw_full + raw_changes });
        drop(store);
        gone("raw");

        let store = raw("raw");
        settle();
        let raw_last = store.append(&last);
        drop(store);
        gone("raw");
        let whole = restore(chain, folder, true, "latest", PlanKind::Fold);
        let folded = restore(chain, folder, false, "latest", PlanKind::Fold);
        turns[3].push(Turn { ours: folded.whole, reference: whole.whole });
        turns[4].push(Turn { ours: folded.whole, reference: raw_last });

        let store = raw("marks");
        let spent = store.marks(&last, INCREMENTS as usize + 1);
        drop(store);
        gone("marks");
        let applying = folded.steps[0].wall * f64::from(THREADS);
        marks.push(spent.as_secs_f64() / applying);
    }
    let reference = "the same bytes appended to LMDB";
    report.rate("restore of a full", reference, &turns[0], Goal::AtLeast(0.7));
    report.rate(
        "  its rows alone, without plan, proof, publishing",
        reference,
        &whole_steps,
        Goal::None,
    );
    let reference = "restore of one full of the final state";
    report.time("full + 10 increments, folded", reference, &turns[3], Goal::AtMost(1.3));
    let reference = "the final state appended to LMDB";
    report.rate("full + 10 increments, folded", reference, &turns[4], Goal::None);
    let reference = "the same changes in raw LMDB";
    report.rate("ten increments, step by step", reference, &turns[1], Goal::AtLeast(0.6));
    let reference = "append and changes in raw LMDB";
    report.rate("full + 10 increments, step by step", reference, &turns[2], Goal::None);
    report.figure("proof, of the restore of a full", "of the time", proofs, Goal::AtMost(0.1));
    report.figure("marks, of applying the fold", "of the time", marks, Goal::AtMost(0.02));
}

/// Restores into a new database, which is removed again.
fn restore(chain: &Chain, folder: &Path, of_whole: bool, at: &str, plan: PlanKind) -> Timed {
    let path = folder.join("target");
    let from = if of_whole { &chain.whole } else { &chain.collection };
    settle();
    let timed = restore_into(from, &path, at, plan, |target| target);
    fs::remove_dir_all(&path).unwrap();
    timed
}

/// Restores from a collection into the database at `path`, seen through `wrap`.
pub(crate) fn restore_into(
    from: &Path,
    path: &Path,
    at: &str,
    plan: PlanKind,
    wrap: impl FnOnce(Arc<dyn Target>) -> Arc<dyn Target>,
) -> Timed {
    let collection = data::collection(from);
    let database = data::database(path);
    let catalog = LmdbCatalog::of_database(&database, data::env()).unwrap();
    let options = RestoreOptions {
        at: at.to_owned(),
        plan: Some(plan),
        shards: Some(SHARDS),
        ..RestoreOptions::default()
    };
    let room = Room {
        window: THREADS,
        memory_bytes: MEMORY_BYTES_DEFAULT,
        scratch: database.scratch_dir(),
    };
    let route = Route { collection: "collection", target: "embedded:target" };
    let target = wrap(database);
    let begun = Clock::start();
    let restore =
        begin_restore(&catalog, target, collection, route, &options, &room, &SystemEnv).unwrap();
    let watched = Watched::new(&restore.job);
    let stop = Stop::default();
    let ended =
        run(&catalog, &watched, restore.id, Intent::CarryOn, &SystemEnv, &stop, &mut Unobserved);
    let whole = begun.spent();
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
    Timed { whole, steps: watched.steps(), proof: watched.proof() }
}
