//! Copies that move on while the columns of their table change.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod chain;

use std::sync::Arc;

use chain::{Chain, backup, database, dump, folder, name, restore, restore_done, sync};
use tidemark::Kind;
use tidemark::collection::{Collection, Store};
use tidemark::database::embedded::{Alteration, EmbeddedDatabase, WriteBatch};
use tidemark::env::SystemEnv;
use tidemark::executor::Ended;
use tidemark::restore::options::MEMORY_BYTES_DEFAULT;
use tidemark::restore::{PlanKind, RestoreOptions};
use tidemark::row::{LogicalType, Schema, Value};

/// Every way to make a copy and to move it on.
const WAYS: [(bool, PlanKind); 4] = [
    (false, PlanKind::Sequential),
    (false, PlanKind::Fold),
    (true, PlanKind::Sequential),
    (true, PlanKind::Fold),
];

/// A source with its table `t`, its collection, and what it held at each backup.
struct Source {
    database: Arc<EmbeddedDatabase>,
    collection: Arc<Collection>,
    chain: Chain,
}

impl Source {
    fn new() -> Source {
        let folder = folder();
        let database = database(&folder.path().join("source"));
        let store = Store::open(folder.path().join("collection").to_str().unwrap()).unwrap();
        let collection = Arc::new(Collection::open_or_create(store, &SystemEnv).unwrap());
        Source { database, collection, chain: Chain { folder, points: Vec::new() } }
    }

    fn backup(&mut self) {
        let directory = backup(&self.database, &self.collection);
        self.chain.points.push((directory, dump(&self.database, "t")));
    }

    fn sync(&mut self, text: &str) {
        let file = self.chain.folder.path().join("t.csv");
        std::fs::write(&file, text).unwrap();
        sync(&self.database, "t", "k", &file);
        self.backup();
    }

    /// Makes a copy at each point and moves it on to each later one, in every way.
    #[track_caller]
    fn rolls_forward(&self, replay: &str) {
        let target = database(&self.chain.folder.path().join("target"));
        for from in 0..self.chain.points.len() {
            for to in from + 1..self.chain.points.len() {
                for (hold, plan) in WAYS {
                    let copy = format!("t_{from}_{to}_{hold}_{plan:?}");
                    let made = RestoreOptions {
                        at: self.chain.points[from].0.clone(),
                        renames: vec![("t".to_owned(), copy.clone())],
                        shards: Some(2),
                        hold,
                        ..RestoreOptions::default()
                    };
                    restore_done(&target, &self.collection, &made);
                    let (at, expected) = self.chain.points[to].clone();
                    let (shards, plan) = (None, Some(plan));
                    let moved = RestoreOptions { roll_forward: true, at, shards, plan, ..made };
                    let moved = RestoreOptions { hold: false, ..moved };
                    restore_done(&target, &self.collection, &moved);
                    let found = dump(&target, &copy);
                    assert!(found == expected, "{replay}: {copy} is not what the source was");
                }
            }
        }
    }
}

#[test]
fn a_copy_moves_on_when_a_column_was_dropped() {
    let mut source = Source::new();
    source.sync("k,a,b\n1,x,y\n2,p,q\n");
    source.sync("k,a\n1,x\n2,p\n");
    source.sync("k,a\n1,x\n3,p\n");
    source.rolls_forward("drop");
}

#[test]
fn a_copy_moves_on_when_a_type_widened_and_values_became_null() {
    let mut source = Source::new();
    source.sync("k,a\n1,10\n2,20\n3,30\n");
    source.sync("k,a\n1,10\n2,\n3,x\n");
    source.rolls_forward("widen");
}

#[test]
fn a_held_copy_is_shown_where_it_stands_once_it_is_proven() {
    for plan in [PlanKind::Sequential, PlanKind::Fold] {
        let mut source = Source::new();
        source.sync("k,a\n1,x\n2,y\n");
        source.sync("k,a\n1,x\n2,z\n");
        let target = database(&source.chain.folder.path().join("target"));
        let held = RestoreOptions { hold: true, shards: Some(2), ..RestoreOptions::default() };
        restore_done(&target, &source.collection, &held);
        let moved = RestoreOptions { roll_forward: true, hold: true, ..RestoreOptions::default() };
        // Asked to stay hidden it stays.
        restore_done(&target, &source.collection, &moved);
        assert_eq!(target.tables().unwrap(), []);
        assert_eq!(target.held_copies().unwrap()[0].digest.rows, 2);

        let shown = RestoreOptions { hold: false, plan: Some(plan), ..moved };
        let ended = restore(&target, &source.collection, &shown, MEMORY_BYTES_DEFAULT).unwrap();
        let Ended::Done { outcome: Some(outcome) } = ended else { panic!("{ended:?}") };
        assert!(outcome.contains(r#""equals_source":true"#), "{outcome}");
        assert_eq!(target.held_copies().unwrap(), []);
        assert_eq!(dump(&target, "t"), source.chain.points[1].1);
        // And it can be moved on like any other.
        source.sync("k,a\n1,x\n");
        restore_done(&target, &source.collection, &shown);
        assert_eq!(dump(&target, "t"), source.chain.points[2].1);
    }
}

#[test]
fn a_held_copy_that_stands_there_is_shown_together_with_tables_that_are_new() {
    let mut source = Source::new();
    source.sync("k,a\n1,x\n");
    let target = database(&source.chain.folder.path().join("target"));
    let held = RestoreOptions { hold: true, ..RestoreOptions::default() };
    restore_done(&target, &source.collection, &held);
    sync(&source.database, "u", "k", &source.chain.folder.path().join("t.csv"));
    source.backup();
    let only = RestoreOptions { tables: vec!["t".to_owned()], roll_forward: true, ..held };
    restore_done(&target, &source.collection, &only);

    let both = RestoreOptions { hold: false, tables: Vec::new(), ..only };
    restore_done(&target, &source.collection, &both);

    for table in ["t", "u"] {
        assert_eq!(dump(&target, table), source.chain.points[0].1, "{table}");
    }
}

#[test]
fn what_readers_see_is_never_hidden() {
    let mut source = Source::new();
    source.sync("k,a\n1,x\n");
    let target = database(&source.chain.folder.path().join("target"));
    restore_done(&target, &source.collection, &RestoreOptions::default());
    source.sync("k,a\n1,y\n");
    let held = RestoreOptions { hold: true, ..RestoreOptions::default() };
    for (options, kind, says) in [
        (RestoreOptions { replace: true, ..held.clone() }, Kind::Usage, "--rename"),
        (RestoreOptions { roll_forward: true, ..held }, Kind::InTheWay, "is visible"),
    ] {
        let refused = restore(&target, &source.collection, &options, MEMORY_BYTES_DEFAULT);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert_eq!(dump(&target, "t"), source.chain.points[0].1);
    }
}

/// Numbers that a seed reproduces: SplitMix64, by Steele, Lea and Flood (2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }
}

/// The columns behind the key, as they change.
struct Columns {
    columns: Vec<(String, LogicalType)>,
    named: usize,
}

impl Columns {
    fn fresh_name(&mut self) -> String {
        self.named += 1;
        format!("c{}", self.named)
    }

    /// One change of the schema; a type changes as a column that goes and comes.
    fn change(&mut self, dice: &mut Dice) -> Vec<Alteration> {
        let at = dice.below(self.columns.len());
        let logical = [LogicalType::Int64, LogicalType::Text][dice.below(2)];
        match dice.below(5) {
            0 => Vec::new(),
            1 if self.columns.len() > 1 => {
                let (name, _) = self.columns.remove(at);
                vec![Alteration::DropColumn { name }]
            }
            2 => {
                let (from, to) = (self.columns[at].0.clone(), self.fresh_name());
                self.columns[at].0.clone_from(&to);
                vec![Alteration::RenameColumn { from, to }]
            }
            3 => {
                let (name, _) = self.columns.remove(at);
                self.columns.push((name.clone(), logical));
                let dropped = Alteration::DropColumn { name: name.clone() };
                vec![dropped, Alteration::AddColumn { name, logical }]
            }
            _ => {
                let name = self.fresh_name();
                self.columns.push((name.clone(), logical));
                vec![Alteration::AddColumn { name, logical }]
            }
        }
    }

    fn row(&self, key: usize, dice: &mut Dice) -> Vec<Value> {
        let mut row = vec![Value::Int64(key as i64)];
        for (_, logical) in &self.columns {
            row.push(match (dice.below(3), logical) {
                (0, _) => Value::Null,
                (number, LogicalType::Int64) => Value::Int64(number as i64),
                (number, _) => Value::Text(format!("text {number}")),
            });
        }
        row
    }
}

#[test]
fn a_copy_at_any_point_moves_on_to_any_later_one_whatever_columns_came_and_went() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let mut source = Source::new();
        let columns = [("k", LogicalType::Int64), ("c", LogicalType::Text)];
        let schema = Schema::new(&columns, &["k"]).unwrap();
        source.database.create_table(&name("t"), &schema, &[]).unwrap();
        let columns = vec![("c".to_owned(), LogicalType::Text)];
        let mut columns = Columns { columns, named: 0 };
        for point in 0..4 {
            if point > 0 {
                let changes = columns.change(&mut dice);
                source.database.alter(&name("t"), &changes).unwrap();
            }
            let mut batch = WriteBatch::new();
            for key in 0..40 {
                match dice.below(if point == 0 { 2 } else { 8 }) {
                    0 => batch.put(&name("t"), columns.row(key, &mut dice)),
                    1 => batch.delete(&name("t"), vec![Value::Int64(key as i64)]),
                    _ => {}
                }
            }
            source.database.write(&batch).unwrap();
            source.backup();
        }
        source.rolls_forward(&format!("seed {seed}"));
    }
}
