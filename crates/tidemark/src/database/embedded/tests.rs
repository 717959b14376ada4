//! The database against a plain map, and in the states that crashes leave.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::open::{MARKER_STARTED, write_marker};
use super::record::MarkerRecord;
use super::*;
use crate::database::{Delta, Origin, ParentTable, Snapshot, Source};
use crate::env::{BootTime, SystemEnv, WallTime};
use crate::ids::{CollectionId, OperationId, Position};
use crate::lmdb::{EnvironmentOptions, FileLock, LockMode};
use crate::row::digest::RowHasher;
use crate::row::{
    ChangeOp, Digest, KeyRange, LogicalType, Row, RowBatch, RowStream, Schema, Value,
};

const COLLECTION: CollectionId = CollectionId(1);

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        lock_wait: Duration::from_secs(20),
        open_shards_max: 64,
        shard_map_bytes: 256 << 20,
    }
}

/// A database in a directory that goes with it.
struct Fixture {
    database: EmbeddedDatabase,
    place: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("database");
        let database = EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), options()).unwrap();
        Fixture { database, place }
    }

    /// The same directory, opened as another process would.
    fn other(&self) -> EmbeddedDatabase {
        open(&self.place.path().join("database")).unwrap()
    }

    fn reopen(self) -> Fixture {
        let Fixture { database, place } = self;
        drop(database);
        let database = open(&place.path().join("database")).unwrap();
        Fixture { database, place }
    }

    fn generations_on_disk(&self) -> BTreeSet<String> {
        names_in(&self.database.dir.join("shards"))
    }
}

fn open(dir: &Path) -> Result<EmbeddedDatabase> {
    EmbeddedDatabase::open(dir, Arc::new(SystemEnv), options())
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn name(text: &str) -> TableName {
    TableName::parse(text).unwrap()
}

fn schema() -> Schema {
    Schema::new(&[("id", LogicalType::Int64), ("amount", LogicalType::Int64)], &["id"]).unwrap()
}

fn row(id: i64, amount: i64) -> Row {
    vec![Value::Int64(id), Value::Int64(amount)]
}

fn key(id: i64) -> Vec<Value> {
    vec![Value::Int64(id)]
}

/// A table with shards that begin at the given keys.
fn create(database: &EmbeddedDatabase, table: &str, splits: &[i64]) -> TableName {
    let splits: Vec<Vec<Value>> = splits.iter().map(|split| key(*split)).collect();
    database.create_table(&name(table), &schema(), &splits).unwrap();
    name(table)
}

fn rows_of(database: &EmbeddedDatabase, table: &TableName) -> Vec<Row> {
    database.scan(table, &RowRange::ALL).unwrap().map(Result::unwrap).collect()
}

fn drain(mut stream: Box<dyn RowStream + '_>) -> Vec<(Vec<u8>, ChangeOp, Vec<u8>)> {
    let mut batch = RowBatch::new();
    let mut rows = Vec::new();
    while stream.next_batch(&mut batch).unwrap() {
        assert!(!batch.is_empty());
        rows.extend(batch.iter().map(|row| (row.key.to_vec(), row.op, row.payload.to_vec())));
    }
    assert!(batch.is_empty());
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
    rows
}

/// What an increment from `position` is told of the first table of `snapshot`.
fn parent(snapshot: &dyn Snapshot, position: Position) -> ParentTable {
    let table = &snapshot.tables()[0];
    ParentTable { id: table.id, schema: table.schema.clone(), position, structure: None }
}

#[track_caller]
fn assert_whole(snapshot: &dyn Snapshot, position: Position, because: &str) {
    match snapshot.delta(0, &parent(snapshot, position)).unwrap() {
        Delta::Whole { reason } => assert!(reason.contains(because), "{reason}"),
        known @ Delta::Known { .. } => panic!("expected whole, found {known:?}"),
    }
}

#[track_caller]
fn assert_known(snapshot: &dyn Snapshot, position: Position, expected_rows: u64) {
    match snapshot.delta(0, &parent(snapshot, position)).unwrap() {
        Delta::Known { rows, .. } => assert_eq!(rows, expected_rows),
        whole @ Delta::Whole { .. } => panic!("expected known, found {whole:?}"),
    }
}

/// The stored digests of a table are those of its rows.
#[track_caller]
fn assert_digest(database: &EmbeddedDatabase, table: &TableName) {
    let access = database.pass_shared().unwrap();
    let handle = database.resolve(&access.database, table).unwrap();
    let mut hasher = RowHasher::new(handle.record.digest_id);
    for shard in &handle.record.shards {
        let shard = database.open_shard(shard.generation).unwrap();
        let txn = shard.read().unwrap();
        let (mut digest, mut bytes) = (Digest::default(), 0);
        for entry in shard.rows().iter(&txn).unwrap() {
            let (key, payload) = entry.unwrap();
            digest += hasher.row(key, payload);
            bytes += (key.len() + payload.len()) as u64;
        }
        let meta = shard.meta(&txn).unwrap();
        assert_eq!((meta.digest, meta.row_bytes), (digest, bytes));
    }
}

// --- against a plain map ---------------------------------------------------------------

/// One step of a random history: ids are small, so that keys are hit again and again.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, i64, Option<i64>)>),
    Cut,
    Advance,
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    let change = (0..2u8, -20..20i64, proptest::option::weighted(0.7, 0..4i64));
    prop_oneof![
        6 => proptest::collection::vec(change, 1..12).prop_map(Step::Write),
        2 => Just(Step::Cut),
        1 => Just(Step::Advance),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Oracle {
    rows: BTreeMap<i64, i64>,
    changed: BTreeSet<i64>,
}

impl Oracle {
    fn write(&mut self, changes: &BTreeMap<i64, Option<i64>>) {
        for (id, amount) in changes {
            let before = match amount {
                Some(amount) => self.rows.insert(*id, *amount),
                None => self.rows.remove(id),
            };
            if before != *amount {
                self.changed.insert(*id);
            }
        }
    }

    fn expected_rows(&self) -> Vec<Row> {
        self.rows.iter().map(|(id, amount)| row(*id, *amount)).collect()
    }
}

/// The cut holds the oracle's rows, and its changes since `from` are those the oracle saw.
fn check_cut(snapshot: &dyn Snapshot, oracles: &mut [Oracle], from: Option<Position>) {
    for (at, oracle) in oracles.iter_mut().enumerate() {
        let table = &snapshot.tables()[at];
        let codec = RowCodec::new(&table.schema);
        let decode = |(key, op, payload): (Vec<u8>, ChangeOp, Vec<u8>)| {
            assert_eq!(op, ChangeOp::Upsert);
            codec.decode(&key, &payload).unwrap()
        };
        let found: Vec<Row> =
            drain(snapshot.scan(at, &KeyRange::ALL).unwrap()).into_iter().map(decode).collect();
        assert_eq!(found, oracle.expected_rows());
        assert_eq!(table.digest.unwrap().rows, oracle.rows.len() as u64);
        if let Some(from) = from {
            let asked =
                ParentTable { id: table.id, schema: schema(), position: from, structure: None };
            let delta = snapshot.delta(at, &asked).unwrap();
            assert!(
                matches!(delta, Delta::Known { rows, .. } if rows == oracle.changed.len() as u64),
                "{delta:?}"
            );
            let mut expected = Vec::new();
            for id in &oracle.changed {
                let (mut key, mut payload) = (Vec::new(), Vec::new());
                codec.encode_key_values(&[Value::Int64(*id)], &mut key).unwrap();
                let op = match oracle.rows.get(id) {
                    Some(amount) => {
                        codec.encode_payload(&row(*id, *amount), &mut payload).unwrap();
                        ChangeOp::Upsert
                    }
                    None => ChangeOp::Delete,
                };
                expected.push((key, op, payload));
            }
            assert_eq!(drain(snapshot.changes(at, &KeyRange::ALL, from).unwrap()), expected);
        }
        oracle.changed.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_history_reads_like_a_plain_map_and_its_changes_are_the_difference(
        steps in proptest::collection::vec(any_step(), 1..24)
    ) {
        let mut fixture = Fixture::new();
        let tables = [create(&fixture.database, "a", &[-5, 5]), create(&fixture.database, "b", &[])];
        let mut oracles = [Oracle::default(), Oracle::default()];
        let mut last_cut = None;
        for step in steps {
            match step {
                Step::Write(changes) => {
                    let mut batch = WriteBatch::new();
                    let mut collapsed = [BTreeMap::new(), BTreeMap::new()];
                    for (table, id, amount) in changes {
                        let name = &tables[usize::from(table)];
                        match amount {
                            Some(amount) => batch.put(name, row(id, amount)),
                            None => batch.delete(name, key(id)),
                        }
                        collapsed[usize::from(table)].insert(id, amount);
                    }
                    fixture.database.write(&batch).unwrap();
                    for (oracle, changes) in oracles.iter_mut().zip(&collapsed) {
                        oracle.write(changes);
                    }
                }
                Step::Cut => {
                    let snapshot = fixture.database.snapshot(COLLECTION).unwrap();
                    check_cut(&*snapshot, &mut oracles, last_cut);
                    last_cut = Some(snapshot.position());
                }
                Step::Advance => if let Some(cut) = last_cut {
                    fixture.database.advance(COLLECTION, cut).unwrap();
                },
                Step::Reopen => fixture = fixture.reopen(),
            }
        }
        for (table, oracle) in tables.iter().zip(&oracles) {
            prop_assert_eq!(rows_of(&fixture.database, table), oracle.expected_rows());
            for id in -20..20 {
                let found = fixture.database.get(table, &key(id)).unwrap();
                prop_assert_eq!(found, oracle.rows.get(&id).map(|amount| row(id, *amount)));
            }
            assert_digest(&fixture.database, table);
        }
    }
}

#[test]
fn a_range_is_read_over_all_its_shards_and_no_further() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[10, 20, 30]);
    let mut batch = WriteBatch::new();
    (0..40).for_each(|id| batch.put(&table, row(id, 0)));
    fixture.database.write(&batch).unwrap();
    for (start, end) in [(0, 40), (5, 6), (5, 25), (10, 20), (19, 31), (35, 99), (7, 7), (9, 3)] {
        let range = RowRange { start: key(start), end: Some(key(end)) };
        let found: Vec<Row> =
            fixture.database.scan(&table, &range).unwrap().map(Result::unwrap).collect();
        let expected: Vec<Row> = (start..end.min(40)).map(|id| row(id, 0)).collect();
        assert_eq!(found, expected, "{start}..{end}");
    }
}

#[test]
fn large_tables_are_read_in_many_batches() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[6000]);
    for ids in [0..9000, 9000..12_000] {
        let mut batch = WriteBatch::new();
        ids.for_each(|id| batch.put(&table, row(id, id)));
        fixture.database.write(&batch).unwrap();
    }
    let expected: Vec<Row> = (0..12_000).map(|id| row(id, id)).collect();
    assert_eq!(rows_of(&fixture.database, &table), expected);
    assert_digest(&fixture.database, &table);
}

// --- one cut ---------------------------------------------------------------------------

/// The real machine, a little slower whenever it looks at its clock: before every lock.
#[derive(Debug)]
struct DawdlingEnv;

impl Env for DawdlingEnv {
    fn wall_time(&self) -> WallTime {
        SystemEnv.wall_time()
    }

    fn boot_time(&self) -> BootTime {
        SystemEnv.sleep(Duration::from_micros(300));
        SystemEnv.boot_time()
    }

    fn boot_id(&self) -> u128 {
        SystemEnv.boot_id()
    }

    fn random(&self) -> u64 {
        SystemEnv.random()
    }

    fn sleep(&self, duration: Duration) {
        SystemEnv.sleep(duration);
    }
}

/// Ends the writers of a test, also when its checks fail.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn transfers_across_shards_keep_their_sum_in_every_cut() {
    const ACCOUNTS: i64 = 12;
    const THREADS: i64 = 3;
    let fixture = Fixture::new();
    // A reader that dawdles over each shard: a cut takes long enough for writers to get
    // between its shards if anything lets them.
    let slow = EmbeddedOptions { open_shards_max: 1, ..options() };
    let dawdling = Arc::new(DawdlingEnv);
    let reader = EmbeddedDatabase::open(&fixture.database.dir, dawdling, slow).unwrap();
    let database = &fixture.database;
    let splits: Vec<i64> = (1..ACCOUNTS).collect();
    let table = create(database, "accounts", &splits);
    let mut batch = WriteBatch::new();
    (0..ACCOUNTS).for_each(|id| batch.put(&table, row(id, 100)));
    database.write(&batch).unwrap();

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&done);
        for thread in 0..THREADS {
            let (table, done) = (&table, &done);
            // Each thread owns some of the accounts, so that no two change the same row.
            scope.spawn(move || {
                let own: Vec<i64> = (0..ACCOUNTS).filter(|id| id % THREADS == thread).collect();
                let mut amounts = vec![100; own.len()];
                let mut turn = 0;
                while !done.load(Ordering::Relaxed) {
                    // Far apart, so that a cut is long on its way between the two.
                    let (from, to) = if turn % 3 == 0 { (own.len() - 1, 0) } else { (0, 3) };
                    turn += 1;
                    amounts[from] -= 1;
                    amounts[to] += 1;
                    let mut batch = WriteBatch::new();
                    batch.put(table, row(own[from], amounts[from]));
                    batch.put(table, row(own[to], amounts[to]));
                    database.write(&batch).unwrap();
                }
            });
        }
        let sum = |rows: Vec<Row>| -> i64 {
            let amount = |row: &Row| match row[1] {
                Value::Int64(amount) => amount,
                _ => panic!("amounts are integers"),
            };
            rows.iter().map(amount).sum()
        };
        let codec = RowCodec::new(&schema());
        for _ in 0..12 {
            let snapshot = reader.snapshot(COLLECTION).unwrap();
            let rows = drain(snapshot.scan(0, &KeyRange::ALL).unwrap());
            let rows = rows.iter().map(|(key, _, payload)| codec.decode(key, payload).unwrap());
            assert_eq!(sum(rows.collect()), ACCOUNTS * 100);
            assert_eq!(sum(rows_of(&reader, &table)), ACCOUNTS * 100);
        }
    });
    assert_digest(database, &table);
}

#[test]
fn a_cut_waits_for_a_writer_with_a_limit_and_names_its_process() {
    let place = tempfile::tempdir().unwrap();
    let impatient = EmbeddedOptions { lock_wait: Duration::from_millis(20), ..options() };
    let database =
        EmbeddedDatabase::create(&place.path().join("d"), Arc::new(SystemEnv), impatient).unwrap();
    let writer = database.pass_shared().unwrap();
    let error = database.snapshot(COLLECTION).unwrap_err();
    assert_eq!(error.kind(), Kind::Held);
    assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
    drop(writer);
    database.snapshot(COLLECTION).unwrap();
}

#[test]
fn a_snapshot_keeps_its_rows_while_they_are_written_over() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[5]);
    fixture.database.put(&table, row(1, 1)).unwrap();
    let snapshot = fixture.database.snapshot(COLLECTION).unwrap();
    let before = drain(snapshot.scan(0, &KeyRange::ALL).unwrap());
    fixture.database.put(&table, row(1, 2)).unwrap();
    fixture.database.drop_table(&table).unwrap();
    assert_eq!(drain(snapshot.scan(0, &KeyRange::ALL).unwrap()), before);
}

// --- batches that died -----------------------------------------------------------------

#[test]
fn a_batch_that_died_between_shards_is_completed_by_whoever_comes_next() {
    for applied in 0..=3 {
        for reopened in [false, true] {
            let mut fixture = Fixture::new();
            let table = create(&fixture.database, "t", &[10, 20]);
            fixture.database.put(&table, row(15, 1)).unwrap();
            let first = fixture.database.snapshot(COLLECTION).unwrap().position();
            let mut batch = WriteBatch::new();
            batch.put(&table, row(5, 2));
            batch.delete(&table, key(15));
            batch.put(&table, row(25, 2));
            fixture.database.die_after(&batch, applied).unwrap();
            if reopened {
                fixture = fixture.reopen();
                let txn = fixture.database.catalog.read().unwrap();
                assert!(!fixture.database.catalog.has_redo(&txn).unwrap());
            }
            assert_eq!(fixture.database.get(&table, &key(25)).unwrap(), Some(row(25, 2)));
            assert_eq!(rows_of(&fixture.database, &table), [row(5, 2), row(25, 2)]);
            assert_digest(&fixture.database, &table);
            let snapshot = fixture.database.snapshot(COLLECTION).unwrap();
            assert_eq!(drain(snapshot.changes(0, &KeyRange::ALL, first).unwrap()).len(), 3);
        }
    }
}

#[test]
fn a_later_write_is_not_undone_by_completing_an_older_batch() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[10]);
    let mut batch = WriteBatch::new();
    batch.put(&table, row(5, 1));
    batch.put(&table, row(15, 1));
    fixture.database.die_after(&batch, 1).unwrap();
    fixture.other().put(&table, row(15, 2)).unwrap();
    assert_eq!(rows_of(&fixture.database, &table), [row(5, 1), row(15, 2)]);
}

// --- change capture --------------------------------------------------------------------

#[test]
fn an_increment_from_before_anything_was_captured_is_whole() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    fixture.database.put(&table, row(1, 1)).unwrap();
    let first = fixture.database.snapshot(COLLECTION).unwrap();
    assert_whole(&*first, Position(0), "after the parent");
    fixture.database.put(&table, row(2, 1)).unwrap();
    let second = fixture.database.snapshot(COLLECTION).unwrap();
    assert_known(&*second, first.position(), 1);
}

#[test]
fn a_table_that_was_replaced_in_bulk_is_whole_once() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[5]);
    fixture.database.put(&table, row(1, 1)).unwrap();
    let first = fixture.database.snapshot(COLLECTION).unwrap().position();
    fixture.database.truncate(&table).unwrap();
    fixture.database.put(&table, row(9, 1)).unwrap();
    let second = fixture.database.snapshot(COLLECTION).unwrap();
    assert_whole(&*second, first, "emptied");
    fixture.database.delete(&table, &key(9)).unwrap();
    let third = fixture.database.snapshot(COLLECTION).unwrap();
    assert_known(&*third, second.position(), 1);
    assert_eq!(rows_of(&fixture.database, &table), [] as [Row; 0]);

    let old = parent(&*third, third.position());
    fixture.database.drop_table(&table).unwrap();
    create(&fixture.database, "t", &[]);
    let fourth = fixture.database.snapshot(COLLECTION).unwrap();
    let delta = fourth.delta(0, &old).unwrap();
    assert!(matches!(&delta, Delta::Whole { reason } if reason.contains("dropped")), "{delta:?}");
}

#[test]
fn changes_are_kept_until_every_collection_has_them() {
    let fixture = Fixture::new();
    let (slow, fast) = (CollectionId(7), CollectionId(8));
    let table = create(&fixture.database, "t", &[5]);
    let base = fixture.database.snapshot(slow).unwrap().position();
    fixture.database.snapshot(fast).unwrap();
    (0..10).for_each(|id| fixture.database.put(&table, row(id, 1)).unwrap());
    let cut = fixture.database.snapshot(fast).unwrap().position();
    fixture.database.advance(fast, cut).unwrap();
    assert_known(&*fixture.database.snapshot(slow).unwrap(), base, 10);

    fixture.database.advance(slow, cut).unwrap();
    fixture.database.advance(slow, base).unwrap();
    let later = fixture.database.snapshot(slow).unwrap();
    assert_known(&*later, cut, 0);
    assert_whole(&*later, base, "no longer kept");
    for generation in fixture.generations_on_disk() {
        let shard = GenerationNumber(generation.parse().unwrap());
        let shard = fixture.database.open_shard(shard).unwrap();
        assert!(shard.changes().is_empty(&shard.read().unwrap()).unwrap());
    }
}

#[test]
fn a_forgotten_collection_holds_nothing_back() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    let base = fixture.database.snapshot(COLLECTION).unwrap().position();
    fixture.database.put(&table, row(1, 1)).unwrap();
    fixture.database.forget_collection(COLLECTION).unwrap();
    fixture.database.put(&table, row(2, 1)).unwrap();
    let snapshot = fixture.database.snapshot(COLLECTION).unwrap();
    let error = fixture.database.advance(COLLECTION, Position(99)).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_whole(&*snapshot, base, "no longer kept");
    fixture.database.put(&table, row(3, 1)).unwrap();
    let later = fixture.database.snapshot(COLLECTION).unwrap();
    assert_known(&*later, snapshot.position(), 1);
}

// --- altering --------------------------------------------------------------------------

#[test]
fn columns_come_go_and_are_renamed_without_breaking_increments() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[5]);
    fixture.database.put(&table, row(1, 10)).unwrap();
    fixture.database.put(&table, row(8, 80)).unwrap();
    let first = fixture.database.snapshot(COLLECTION).unwrap();
    fixture.database.put(&table, row(8, 81)).unwrap();
    let digest = fixture.database.tables().unwrap()[0].digest;
    fixture
        .database
        .alter(
            &table,
            &[
                Alteration::AddColumn { name: "note".to_owned(), logical: LogicalType::Text },
                Alteration::RenameColumn { from: "id".to_owned(), to: "number".to_owned() },
            ],
        )
        .unwrap();
    assert_eq!(fixture.database.tables().unwrap()[0].digest, digest);
    let with_note = vec![Value::Int64(1), Value::Int64(10), Value::Null];
    assert_eq!(fixture.database.get(&table, &key(1)).unwrap(), Some(with_note));

    let drop = [Alteration::DropColumn { name: "amount".to_owned() }];
    fixture.other().alter(&table, &drop).unwrap();
    let rows = rows_of(&fixture.database, &table);
    assert_eq!(rows, [vec![Value::Int64(1), Value::Null], vec![Value::Int64(8), Value::Null]]);
    assert_ne!(fixture.database.tables().unwrap()[0].digest, digest);
    assert_digest(&fixture.database, &table);
    let second = fixture.database.snapshot(COLLECTION).unwrap();
    let changes = drain(second.changes(0, &KeyRange::ALL, first.position()).unwrap());
    assert_eq!(changes.len(), 1);
    assert_known(&*second, first.position(), 1);
}

#[test]
fn impossible_alterations_change_nothing() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    let before = fixture.database.tables().unwrap();
    let text = |text: &str| text.to_owned();
    for alteration in [
        Alteration::DropColumn { name: text("id") },
        Alteration::DropColumn { name: text("nothing") },
        Alteration::RenameColumn { from: text("id"), to: text("amount") },
        Alteration::AddColumn { name: text("amount"), logical: LogicalType::Bool },
    ] {
        let added = Alteration::AddColumn { name: text("x"), logical: LogicalType::Bool };
        let error = fixture.database.alter(&table, &[added, alteration]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error:?}");
    }
    assert_eq!(fixture.database.tables().unwrap(), before);
}

// --- limits and refusals ---------------------------------------------------------------

#[test]
fn a_key_that_is_too_long_is_refused_with_table_key_and_length() {
    let fixture = Fixture::new();
    let table = name("long");
    let schema = Schema::new(&[("k", LogicalType::Text)], &["k"]).unwrap();
    fixture.database.create_table(&table, &schema, &[]).unwrap();
    let put = |len: usize| fixture.database.put(&table, vec![Value::Text("x".repeat(len))]);
    put(509).unwrap();
    let error = put(510).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    for part in ["`long`", "0x7878", "512 bytes", "511"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(rows_of(&fixture.database, &table).len(), 1);
}

#[test]
fn rows_that_do_not_fit_the_table_are_refused() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    let kind = |result: Result<()>| result.unwrap_err().kind();
    let database = &fixture.database;
    assert_eq!(kind(database.put(&table, vec![Value::Null, Value::Null])), Kind::Usage);
    assert_eq!(kind(database.put(&table, vec![Value::Int64(1)])), Kind::Usage);
    assert_eq!(kind(database.put(&table, vec![Value::Int64(1), Value::Bool(true)])), Kind::Usage);
    assert_eq!(kind(database.delete(&table, &[])), Kind::Usage);
    assert_eq!(kind(database.put(&name("other"), row(1, 1))), Kind::NotFound);
    let mut batch = WriteBatch::new();
    (0..=WRITE_BATCH_ROWS_MAX as i64).for_each(|id| batch.put(&table, row(id, 0)));
    assert_eq!(kind(database.write(&batch)), Kind::Usage);
    assert_eq!(rows_of(database, &table), [] as [Row; 0]);
}

#[test]
fn a_batch_with_one_bad_row_writes_nothing() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[5]);
    let mut batch = WriteBatch::new();
    batch.put(&table, row(1, 1));
    batch.put(&table, vec![Value::Null, Value::Null]);
    fixture.database.write(&batch).unwrap_err();
    assert_eq!(rows_of(&fixture.database, &table), [] as [Row; 0]);
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    let database = &fixture.database;
    let kind = |result: Result<crate::ids::TableId>| result.unwrap_err().kind();
    assert_eq!(kind(database.create_table(&table, &schema(), &[])), Kind::InTheWay);
    let keyless = Schema::new(&[("a", LogicalType::Int64)], &[]).unwrap();
    assert_eq!(kind(database.create_table(&name("k"), &keyless, &[])), Kind::Usage);
    let splits = [key(5), key(5)];
    assert_eq!(kind(database.create_table(&name("s"), &schema(), &splits)), Kind::Usage);
    let splits: Vec<Vec<Value>> = (0..i64::from(SHARDS_MAX)).map(key).collect();
    assert_eq!(kind(database.create_table(&name("m"), &schema(), &splits)), Kind::Usage);
    let long = TableName::parse(&"n".repeat(600)).unwrap();
    assert_eq!(kind(database.create_table(&long, &schema(), &[])), Kind::Usage);
    assert_eq!(database.drop_table(&name("s")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(database.tables().unwrap().len(), 1);
}

#[test]
fn all_tables_together_have_a_bounded_number_of_shards() {
    let fixture = Fixture::new();
    let database = &fixture.database;
    let shards = database.build_generations(2).unwrap();
    let table = |generations: &[GenerationNumber]| TableRecord {
        id: crate::ids::TableId(1),
        digest_id: crate::ids::TableId(1),
        schema: schema(),
        shards: generations
            .iter()
            .map(|generation| ShardRecord { range: KeyRange::ALL, generation: *generation })
            .collect(),
        base_position: Position(1),
        created_by: None,
        copy: None,
    };
    let alone = database.pass_alone().unwrap();
    let mut txn = database.write_catalog().unwrap();
    let mut record = database.catalog.database(&txn).unwrap();
    record.live_shards = SHARDS_MAX - 1;
    database.catalog.put_database(&mut txn, &record).unwrap();
    let both = table(&[shards[0].generation(), shards[1].generation()]);
    let error = database.switch_table(&alone.gate, &mut txn, &name("t"), Some(&both)).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    drop(txn);
    let mut txn = database.write_catalog().unwrap();
    let error = database
        .switch_table(&alone.gate, &mut txn, &name("t"), Some(&table(&[GenerationNumber(99)])))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
}

// --- opening ---------------------------------------------------------------------------

#[test]
fn a_directory_that_is_not_ours_is_refused_and_untouched() {
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    assert_eq!(open(&missing).unwrap_err().kind(), Kind::NotFound);
    assert!(!missing.exists());
    assert_eq!(open(place.path()).unwrap_err().kind(), Kind::NotFound);
    fs::write(place.path().join("letters.txt"), "dear").unwrap();
    assert_eq!(open(place.path()).unwrap_err().kind(), Kind::Unsupported);
    let created = EmbeddedDatabase::create(place.path(), Arc::new(SystemEnv), options());
    assert_eq!(created.unwrap_err().kind(), Kind::InTheWay);
    let found = EmbeddedDatabase::open_or_create(place.path(), Arc::new(SystemEnv), options());
    assert_eq!(found.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(names_in(place.path()), BTreeSet::from(["letters.txt".to_owned()]));
}

#[test]
fn a_newer_or_foreign_marker_is_refused_and_nothing_is_touched() {
    let fixture = Fixture::new();
    let Fixture { database, place } = fixture;
    let dir = place.path().join("database");
    drop(database);
    let marker = dir.join(MarkerRecord::FILE);
    let ours = fs::read_to_string(&marker).unwrap();
    fs::remove_dir_all(dir.join("locks")).unwrap();
    for (other, kind) in [
        (ours.replace("\"version\":1", "\"version\":2"), Kind::Unsupported),
        (ours.replace("embedded", "floating"), Kind::Unsupported),
        ("{".to_owned(), Kind::Broken),
    ] {
        fs::write(&marker, other).unwrap();
        assert_eq!(open(&dir).unwrap_err().kind(), kind);
        assert!(!dir.join("locks").exists());
    }
    fs::write(&marker, ours).unwrap();
    open(&dir).unwrap();
}

#[test]
fn a_newer_catalog_record_is_refused() {
    let Fixture { database, place } = Fixture::new();
    let mut txn = database.write_catalog().unwrap();
    let record = database.catalog.database(&txn).unwrap();
    let stored = String::from_utf8(record::encode(&record)).unwrap();
    let newer = stored.replace("\"version\":1", "\"version\":2");
    database.catalog.put_raw_database(&mut txn, newer.as_bytes()).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = open(&place.path().join("database")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn an_interrupted_creation_is_completed() {
    let place = tempfile::tempdir().unwrap();
    for (at, interrupted) in ["marker started", "marker", "directories"].iter().enumerate() {
        let dir = place.path().join(at.to_string());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(MARKER_STARTED), "{").unwrap();
        if at > 0 {
            write_marker(&dir, &SystemEnv).unwrap();
        }
        if at > 1 {
            fs::create_dir(dir.join("shards")).unwrap();
            Environment::create(&dir.join("catalog"), EnvironmentOptions::default(), &SystemEnv)
                .unwrap();
        }
        let created = EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), options());
        create(&created.unwrap_or_else(|error| panic!("{interrupted}: {error}")), "t", &[]);
        let again = EmbeddedDatabase::create(&dir, Arc::new(SystemEnv), options());
        assert_eq!(again.unwrap_err().kind(), Kind::InTheWay);
        assert_eq!(open(&dir).unwrap().tables().unwrap().len(), 1);
    }
}

#[test]
fn a_lost_catalog_or_shard_is_told_and_not_replaced_by_an_empty_one() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    fixture.database.put(&table, row(1, 1)).unwrap();
    let Fixture { database, place } = fixture;
    let dir = place.path().join("database");
    let generation = names_in(&dir.join("shards")).pop_first().unwrap();
    drop(database);
    fs::rename(dir.join("shards").join(&generation), place.path().join("lost")).unwrap();
    let database = open(&dir).unwrap();
    assert_eq!(database.get(&table, &key(1)).unwrap_err().kind(), Kind::Broken);
    drop(database);
    fs::rename(place.path().join("lost"), dir.join("shards").join(&generation)).unwrap();
    fs::remove_dir_all(dir.join("catalog")).unwrap();
    assert_eq!(open(&dir).unwrap_err().kind(), Kind::Broken);
}

#[test]
fn identity_and_txn_numbers_survive_opening_again() {
    let fixture = Fixture::new();
    let identity = fixture.database.identity().unwrap();
    assert!(identity.starts_with("embedded:") && identity.len() == 41, "{identity}");
    let first = fixture.database.allocate_txn().unwrap();
    let fixture = fixture.reopen();
    assert!(fixture.database.allocate_txn().unwrap() > first);
    assert_eq!(fixture.database.identity().unwrap(), identity);
    assert_ne!(Fixture::new().database.identity().unwrap(), identity);
}

// --- generations -----------------------------------------------------------------------

#[test]
fn an_old_generation_goes_after_its_last_reader() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    fixture.database.put(&table, row(1, 1)).unwrap();
    let old = fixture.generations_on_disk();
    let reader = fixture.other();
    let snapshot = reader.snapshot(COLLECTION).unwrap();
    let own = fixture.database.scan(&table, &RowRange::ALL).unwrap();
    fixture.database.truncate(&table).unwrap();
    assert!(fixture.generations_on_disk().is_superset(&old));
    assert_eq!(own.count(), 1);
    fixture.database.collect_garbage().unwrap();
    assert!(fixture.generations_on_disk().is_superset(&old));

    assert_eq!(drain(snapshot.scan(0, &KeyRange::ALL).unwrap()).len(), 1);
    drop((snapshot, reader));
    fixture.database.collect_garbage().unwrap();
    assert!(fixture.generations_on_disk().is_disjoint(&old));
    assert_eq!(names_in(&fixture.database.scratch_dir()), BTreeSet::new());
}

#[test]
fn what_a_dead_builder_left_is_garbage_and_what_an_operation_owns_is_not() {
    let fixture = Fixture::new();
    let owner = GenerationRecord::Owned { operation: OperationId(4) };
    let mut txn = fixture.database.write_catalog().unwrap();
    let owned = fixture.database.allocate_generations(&mut txn, 2, &owner).unwrap();
    txn.commit().unwrap();
    fixture.database.create_shard(owned[0]).unwrap();
    let built = fixture.database.build_generations(2).unwrap();
    fixture.database.collect_garbage().unwrap();
    fixture.other().collect_garbage().unwrap();
    assert_eq!(fixture.generations_on_disk().len(), 3);
    drop(built);
    let fixture = fixture.reopen();
    assert_eq!(fixture.generations_on_disk(), BTreeSet::from([owned[0].to_string()]));
    let txn = fixture.database.catalog.read().unwrap();
    let listed = fixture.database.catalog.generations_owned(&txn, OperationId(4)).unwrap();
    assert_eq!(listed, owned);
    assert_eq!(fixture.database.catalog.generation_count(&txn).unwrap(), 2);
}

#[test]
fn a_removal_that_died_half_way_is_finished() {
    let fixture = Fixture::new();
    let table = create(&fixture.database, "t", &[]);
    let generation = fixture.generations_on_disk().pop_first().unwrap();
    let reader = fixture.database.scan(&table, &RowRange::ALL).unwrap();
    fixture.database.drop_table(&table).unwrap();
    drop(reader);
    let fixture = {
        let Fixture { database, place } = fixture;
        let dir = database.dir.clone();
        drop(database);
        // The directory was moved aside, its record is still there.
        let aside = dir.join("scratch").join(format!("garbage-{generation}"));
        fs::rename(dir.join("shards").join(&generation), aside).unwrap();
        Fixture { database: open(&dir).unwrap(), place }
    };
    let txn = fixture.database.catalog.read().unwrap();
    assert_eq!(fixture.database.catalog.generation_count(&txn).unwrap(), 0);
    assert_eq!(fixture.generations_on_disk(), BTreeSet::new());
    assert_eq!(names_in(&fixture.database.scratch_dir()), BTreeSet::new());
}

#[test]
fn a_mark_is_stored_with_its_shard() {
    let fixture = Fixture::new();
    let shard = fixture.database.build_generations(1).unwrap().remove(0);
    let mark = crate::database::Mark { rows: 5, ..crate::database::Mark::default() };
    for stored in [None, Some(mark), None] {
        let mut txn = fixture.database.write_shard(&shard).unwrap();
        shard.put_mark(&mut txn, stored.as_ref()).unwrap();
        txn.commit().unwrap();
        assert_eq!(shard.mark(&shard.read().unwrap()).unwrap(), stored);
    }
}

#[test]
fn a_shard_in_use_cannot_be_locked_alone() {
    let fixture = Fixture::new();
    create(&fixture.database, "t", &[]);
    let generation = fixture.generations_on_disk().pop_first().unwrap();
    let path = fixture.database.dir.join("shards").join(generation).join("in-use");
    assert!(FileLock::try_acquire(&path, LockMode::Exclusive).unwrap().is_none());
}

#[test]
fn rows_that_are_built_in_order_are_read_back() {
    let fixture = Fixture::new();
    let database = &fixture.database;
    let shards = database.build_generations(1).unwrap();
    let id = crate::ids::TableId(77);
    let mut builder = ShardBuilder::new(database, Arc::clone(&shards[0]), id);
    let codec = RowCodec::new(&schema());
    let payload_text = Value::Int64(1);
    for number in 0..5000 {
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        let row = vec![Value::Int64(number), payload_text.clone()];
        codec.encode_key(&row, &mut key).unwrap();
        codec.encode_payload(&row, &mut payload).unwrap();
        builder.push(&key, &payload).unwrap();
    }
    assert_eq!(builder.finish().unwrap().digest.rows, 5000);
    let mut again = ShardBuilder::new(database, Arc::clone(&shards[0]), id);
    again.push(&[0x80, 0, 0, 0, 0, 0, 0, 1], b"\x01").unwrap();
    // It is there already: it replaces, and the digest follows.
    assert_eq!(again.finish().unwrap().digest.rows, 5000);

    let copy = CopyRecord {
        origin: Origin { collection: COLLECTION, manifest: "00".to_owned() },
        held: true,
        altered: false,
    };
    let mut record = TableRecord {
        id,
        digest_id: id,
        schema: schema(),
        shards: vec![ShardRecord { range: KeyRange::ALL, generation: shards[0].generation() }],
        base_position: Position(1),
        created_by: Some(OperationId(1)),
        copy: Some(copy),
    };
    let switch = |record: &TableRecord| {
        let alone = database.pass_alone().unwrap();
        let mut txn = database.write_catalog().unwrap();
        database.switch_table(&alone.gate, &mut txn, &name("t"), Some(record)).unwrap();
        txn.commit().unwrap();
    };
    switch(&record);
    assert_eq!(database.tables().unwrap(), []);
    let error = database.put(&name("t"), row(1, 1)).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    record.copy.as_mut().unwrap().held = false;
    switch(&record);
    assert_eq!(rows_of(database, &name("t")).len(), 5000);
    assert_eq!(database.table_totals(&record).unwrap().user_writes, 0);
    database.put(&name("t"), row(1, 1)).unwrap();
    assert_eq!(database.table_totals(&record).unwrap().user_writes, 1);
    assert_digest(database, &name("t"));
}

// --- several handles -------------------------------------------------------------------

#[test]
fn what_one_handle_does_the_other_sees_at_once() {
    let fixture = Fixture::new();
    let other = fixture.other();
    let table = create(&fixture.database, "t", &[]);
    other.put(&table, row(1, 1)).unwrap();
    assert_eq!(fixture.database.get(&table, &key(1)).unwrap(), Some(row(1, 1)));
    fixture.database.drop_table(&table).unwrap();
    assert_eq!(other.get(&table, &key(1)).unwrap_err().kind(), Kind::NotFound);
    create(&fixture.database, "t", &[0]);
    assert_eq!(other.get(&table, &key(1)).unwrap(), None);
}

#[test]
fn two_processes_make_one_database() {
    for _ in 0..25 {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("database");
        let start = std::sync::Barrier::new(4);
        let make = || {
            start.wait();
            // What one does while the other is anywhere in the same.
            (0..20).try_for_each(|_| write_marker(&dir, &SystemEnv))?;
            EmbeddedDatabase::open_or_create(&dir, Arc::new(SystemEnv), options())
        };
        let identities: Vec<String> = std::thread::scope(|threads| {
            let makers: Vec<_> = (0..4).map(|_| threads.spawn(make)).collect();
            let made = makers.into_iter().map(|maker| maker.join().unwrap().unwrap());
            made.map(|database| database.identity_text()).collect()
        });
        assert!(identities.iter().all(|identity| *identity == identities[0]), "{identities:?}");
        let left = fs::read_dir(&dir).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: Vec<String> = names.filter(|name| name.starts_with(MARKER_STARTED)).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}
