//! A source with one table `orders`, its changes, and their backups by the real binary.

use std::path::Path;
use std::sync::Arc;

use tidemark::database::embedded::{EmbeddedDatabase, EmbeddedOptions, WriteBatch};
use tidemark::env::{Env, SystemEnv};
use tidemark::ids::TableName;
use tidemark::row::{LogicalType, Row, Schema, Value};

use super::Tidemark;

/// The backup that [`make_chain`] takes again and again.
pub(crate) const BACKUP: [&str; 6] =
    ["backup", "--source", "embedded:source", "--to", "backups", "--json"];

/// SplitMix64; a failure prints the seed.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// The embedded database in `dir`, made when it is missing.
pub(crate) fn open(dir: &Path) -> EmbeddedDatabase {
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    EmbeddedDatabase::open_or_create(dir, env, EmbeddedOptions::default()).unwrap()
}

pub(crate) fn table(name: &str) -> TableName {
    TableName::parse(name).unwrap()
}

/// A row of a KiB, so that few rows make many chunks.
fn row(id: u64, generation: u64) -> Row {
    let mut rng = Rng(id ^ generation << 40);
    let words: String = (0..8).map(|_| format!("{:016x}", rng.below(u64::MAX))).collect();
    let text = Value::Text(words.repeat(8));
    vec![Value::Int64(id as i64), Value::Int64(generation as i64), text]
}

/// Makes the table `name` in two shards with `rows` rows.
pub(crate) fn make_table(source: &EmbeddedDatabase, name: &TableName, rows: u64) {
    let columns = [
        ("id", LogicalType::Int64),
        ("generation", LogicalType::Int64),
        ("text", LogicalType::Text),
    ];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    source.create_table(name, &schema, &[vec![Value::Int64((rows / 2) as i64)]]).unwrap();
    for first in (0..rows).step_by(20_000) {
        let mut batch = WriteBatch::new();
        (first..rows.min(first + 20_000)).for_each(|id| batch.put(name, row(id, 0)));
        source.write(&batch).unwrap();
    }
}

/// Puts, changes and deletes about a quarter of the rows of the table `name`.
pub(crate) fn change(source: &EmbeddedDatabase, name: &TableName, rows: u64, generation: u64) {
    let mut rng = Rng(generation);
    let mut batch = WriteBatch::new();
    for _ in 0..rows / 4 {
        let id = rng.below(rows + rows / 10);
        match rng.below(8) {
            0 => batch.delete(name, vec![Value::Int64(id as i64)]),
            _ => batch.put(name, row(id, generation)),
        }
    }
    source.write(&batch).unwrap();
}

/// A database `source` with `rows` rows in `orders`, changed `increments` times, and the
/// collection `backups` with a full and an increment of each change.
pub(crate) fn make_chain(folder: &Path, rows: u64, increments: u64) {
    let tidemark = Tidemark::new(folder);
    let (source, orders) = (open(&folder.join("source")), table("orders"));
    make_table(&source, &orders, rows);
    tidemark.run(BACKUP).expect_code(0);
    for generation in 1..=increments {
        change(&source, &orders, rows, generation);
        tidemark.run(BACKUP).expect_code(0);
    }
}
