//! Every restore point of a real chain: one full, 180 increments, both schema changes.
//!
//! The expected result of restoring a point is the published file itself, sorted by key.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use chain::{Chain, data, database, dump, restore_done, sp500};
use std::path::Path;
use tidemark::restore::{PlanKind, RestoreOptions};

/// The lines of a published file as a dump has them: the header, then the rows by key.
fn by_key(file: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(file).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    // No field of these files holds a line end, and no key a quote or comma.
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_by_key(|row| row.split(',').next().unwrap());
    let lines = std::iter::once(header).chain(rows);
    lines.flat_map(|line| [line, "\n"]).collect::<String>().into_bytes()
}

/// Restores every point into one target and compares each with its file.
fn every_point_equals_its_file(plan: PlanKind, shards: u32) {
    let files = data("sp500");
    let (Chain { folder, points }, collection) = sp500(0..files.len());
    assert_eq!(points.len(), 181);
    let target = database(&folder.path().join("target"));
    for (at, ((directory, _), file)) in points.iter().zip(&files).enumerate() {
        let options = RestoreOptions {
            at: directory.clone(),
            plan: Some(plan),
            shards: Some(shards),
            replace: true,
            ..RestoreOptions::default()
        };
        restore_done(&target, &collection, &options);
        let found = dump(&target, "sp500");
        let shown = file.display();
        assert!(found == by_key(file), "point {at} in {shards} shards differs from {shown}");
    }
}

#[test]
fn every_point_folded_into_1_shard_equals_its_file() {
    every_point_equals_its_file(PlanKind::Fold, 1);
}

#[test]
fn every_point_folded_into_3_shards_equals_its_file() {
    every_point_equals_its_file(PlanKind::Fold, 3);
}

#[test]
fn every_point_folded_into_16_shards_equals_its_file() {
    every_point_equals_its_file(PlanKind::Fold, 16);
}

#[test]
fn every_point_applied_step_by_step_to_1_shard_equals_its_file() {
    every_point_equals_its_file(PlanKind::Sequential, 1);
}

#[test]
fn every_point_applied_step_by_step_to_3_shards_equals_its_file() {
    every_point_equals_its_file(PlanKind::Sequential, 3);
}

#[test]
fn every_point_applied_step_by_step_to_16_shards_equals_its_file() {
    every_point_equals_its_file(PlanKind::Sequential, 16);
}
