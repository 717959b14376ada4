//! What a load promises, on real revisions and on random tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

use super::{Load, LoadBounds, LoadMode, LoadReport, LoadRequest, file};
use crate::csv::Writer;
use crate::database::embedded::record::RedoRecord;
use crate::database::embedded::{DumpFormat, EmbeddedDatabase, EmbeddedOptions, TableSummary};
use crate::database::scratch::Scratch;
use crate::database::{Delta, ParentTable, Snapshot, Source, SourceTable};
use crate::env::SystemEnv;
use crate::error::{Kind, Result};
use crate::ids::{CollectionId, TableName};
use crate::row::digest::RowHasher;
use crate::row::key::encode_key_value;
use crate::row::{ChangeOp, Digest, KeyRange, LogicalType, RowBatch, RowCodec, RowStream, Value};

const COLLECTION: CollectionId = CollectionId(7);

/// A database and a directory for files to load.
struct World {
    dir: tempfile::TempDir,
    database: EmbeddedDatabase,
}

fn table() -> TableName {
    TableName::parse("t").unwrap()
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let database = open(dir.path());
        World { dir, database }
    }

    /// The database as the next process finds it.
    fn reopened(self) -> World {
        let World { dir, database } = self;
        drop(database);
        let database = open(dir.path());
        World { dir, database }
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("t.csv");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn request(&self, text: &str, mode: LoadMode) -> LoadRequest {
        LoadRequest {
            table: table(),
            file: self.file(text),
            key: Vec::new(),
            mode,
            shards: Some(3),
            types: BTreeMap::new(),
        }
    }

    /// Makes the table, with its first column as the key.
    fn create(&self, text: &str) -> Result<LoadReport> {
        let key = text.split([',', '\n']).next().unwrap().to_owned();
        self.load(&LoadRequest { key: vec![key], ..self.request(text, LoadMode::Create) })
    }

    fn sync(&self, text: &str) -> Result<LoadReport> {
        self.load(&self.request(text, LoadMode::Sync))
    }

    fn load(&self, request: &LoadRequest) -> Result<LoadReport> {
        self.database.load(request)
    }

    fn dump(&self) -> String {
        let mut out = Vec::new();
        self.database.dump(&table(), DumpFormat::Csv, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn summary(&self) -> TableSummary {
        self.database.tables().unwrap().remove(0)
    }

    /// A cut of the one table, whose digest is that of its rows.
    fn cut(&self) -> TakenCut {
        let snapshot = self.database.snapshot(COLLECTION).unwrap();
        let cut = TakenCut { table: snapshot.tables()[0].clone(), snapshot };
        let mut hasher = RowHasher::new(cut.table.digest_id);
        let rows = cut.rows();
        let digest: Digest = rows.iter().map(|(key, payload)| hasher.row(key, payload)).sum();
        assert_eq!(cut.table.digest, Some(digest));
        cut
    }
}

fn open(dir: &Path) -> EmbeddedDatabase {
    let options = EmbeddedOptions { shard_map_bytes: 64 << 20, ..EmbeddedOptions::default() };
    EmbeddedDatabase::open_or_create(&dir.join("db"), Arc::new(SystemEnv), options).unwrap()
}

struct TakenCut {
    table: SourceTable,
    snapshot: Arc<dyn Snapshot>,
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

impl TakenCut {
    fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        drain(self.snapshot.scan(0, &KeyRange::ALL).unwrap(), |key, op, payload| {
            assert_eq!(op, ChangeOp::Upsert);
            rows.insert(key, payload);
        });
        rows
    }

    /// The rows under the schema of `later`.
    fn rows_as(&self, later: &TakenCut) -> Rows {
        let codec = RowCodec::new(&later.table.schema);
        let project = |(key, payload): (Vec<u8>, Vec<u8>)| {
            let mut projected = Vec::new();
            codec.project(&payload, &mut projected).unwrap();
            (key, projected)
        };
        self.rows().into_iter().map(project).collect()
    }

    /// Changes since `parent`; `None` if they are not known.
    fn changes_since(&self, parent: &TakenCut) -> Option<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
        let position = parent.snapshot.position();
        let (id, schema) = (parent.table.id, parent.table.schema.clone());
        let delta =
            self.snapshot.delta(0, &ParentTable { id, schema, position, structure: None }).unwrap();
        if let Delta::Whole { .. } = delta {
            return None;
        }
        let mut changes = BTreeMap::new();
        drain(self.snapshot.changes(0, &KeyRange::ALL, position).unwrap(), |key, op, payload| {
            changes.insert(key, (op == ChangeOp::Upsert).then_some(payload));
        });
        Some(changes)
    }

    /// Fails unless the changes since `parent` are exactly what differs.
    #[track_caller]
    fn check_changes_since(&self, parent: &TakenCut) {
        let (before, after) = (parent.rows_as(self), self.rows());
        let changes = self.changes_since(parent).expect("the changes are known");
        let keys: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
        let differing = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
        let expected: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            differing.map(|key| (key.clone(), after.get(key).cloned())).collect();
        assert_eq!(changes, expected);
    }
}

impl TakenCut {
    /// Fails unless the changes since an older cut lead from its rows to these; a row that
    /// changed and changed back may be among them.
    #[track_caller]
    fn check_changes_lead_here_from(&self, older: &TakenCut) {
        let mut rows = older.rows_as(self);
        for (key, payload) in self.changes_since(older).expect("the changes are known") {
            match payload {
                Some(payload) => rows.insert(key, payload),
                None => rows.remove(&key),
            };
        }
        assert_eq!(rows, self.rows());
    }
}

fn drain(mut stream: Box<dyn RowStream + '_>, mut show: impl FnMut(Vec<u8>, ChangeOp, Vec<u8>)) {
    let mut batch = RowBatch::new();
    while stream.next_batch(&mut batch).unwrap() {
        for row in batch.iter() {
            show(row.key.to_vec(), row.op, row.payload.to_vec());
        }
    }
}

#[track_caller]
fn refused(result: Result<LoadReport>, kind: Kind, expected: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().starts_with("load table `t`: "), "{error}");
    assert!(error.message().contains(expected), "{error}");
}

fn examples(folder: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data").join(folder);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The header, then the other lines in the order of their bytes: that of a text key in front.
fn sorted_by_key(text: &str) -> String {
    let (header, rows) = text.split_once('\n').unwrap();
    let mut rows: Vec<&str> = rows.split_inclusive('\n').collect();
    rows.sort_by_key(|row| row.split(',').next().unwrap());
    format!("{header}\n{}", rows.concat())
}

#[test]
fn every_real_revision_comes_out_as_it_went_in() {
    let world = World::new();
    let mut reports: Vec<(String, LoadReport)> = Vec::new();
    let mut parent: Option<TakenCut> = None;
    for path in examples("sp500") {
        let request = LoadRequest {
            file: path.clone(),
            key: vec!["Symbol".to_owned()],
            ..world.request("", LoadMode::Sync)
        };
        let report = world.load(&request).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(world.dump() == sorted_by_key(&text), "{}", path.display());
        let cut = world.cut();
        if let Some(parent) = &parent {
            cut.check_changes_since(parent);
        }
        parent = Some(cut);
        reports.push((path.file_name().unwrap().to_string_lossy()[..3].to_owned(), report));
    }
    assert_eq!(reports.len(), 181);
    let changed: Vec<&str> = reports
        .iter()
        .filter(|(_, report)| !report.schema_changes.is_empty())
        .map(|(number, _)| number.as_str())
        .collect();
    assert_eq!(changed, ["064", "151", "152"]);
    // What examples/data/README.md counts; here the two renames of a column are a column that
    // goes and one that comes, so they change each of 503 rows as well.
    let total = |count: fn(&LoadReport) -> u64| -> u64 {
        reports[1..].iter().map(|(_, report)| count(report)).sum()
    };
    assert_eq!((total(|r| r.inserted), total(|r| r.deleted)), (328, 325));
    assert_eq!(total(|r| r.updated), 2457 + 2 * 503);
}

#[test]
fn real_ragged_revisions_are_refused_and_the_table_stays() {
    let world = World::new();
    world.create("Symbol,Name,Sector\nMMM,3M Co.,Industrials\n").unwrap();
    let parent = world.cut();
    let before = world.dump();
    let found: Vec<String> = examples("sp500-ragged")
        .into_iter()
        .map(|path| {
            let request = LoadRequest { file: path, ..world.request("", LoadMode::Sync) };
            let error = world.load(&request).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            let (_, name) = error.message().rsplit_once('/').unwrap();
            assert!(name.contains(", expected 3 as in the header"), "{error}");
            name[..name.find(", expected").unwrap()].to_owned()
        })
        .collect();
    assert_eq!(
        found,
        [
            "000_20121227T201758Z.csv, line 135: found 4 fields",
            "003_20130505T144319Z.csv, line 4: found 2 fields",
            "004_20130505T150238Z.csv, line 282: found 2 fields",
            "005_20130608T172943Z.csv, line 281: found 2 fields",
            "006_20130804T153512Z.csv, line 280: found 2 fields",
            "007_20131005T124645Z.csv, line 279: found 2 fields",
            "008_20140119T222839Z.csv, line 281: found 2 fields",
        ]
    );
    assert_eq!(world.dump(), before);
    assert_eq!(world.cut().changes_since(&parent), Some(BTreeMap::new()));
}

#[test]
fn a_new_table_is_cut_evenly_and_only_where_rows_are() {
    let world = World::new();
    let report = world.create("id,n\n5,a\n1,b\n4,c\n2,d\n3,e\n").unwrap();
    assert_eq!((report.rows, report.inserted, report.unchanged), (5, 5, 0));
    assert_eq!(report.bytes, 25);
    let rows: Vec<u64> = world.cut().table.shards.iter().map(|shard| shard.rows).collect();
    assert_eq!(rows, [2, 2, 1]);
    assert_eq!(world.dump(), "id,n\n1,b\n2,d\n3,e\n4,c\n5,a\n");

    let empty = World::new();
    empty.create("id,n\n").unwrap();
    assert_eq!((empty.summary().shards.len(), empty.dump().as_str()), (1, "id,n\n"));
    for shards in [0, u32::MAX] {
        let request = empty.request("id\n", LoadMode::Sync);
        let request = LoadRequest { shards: Some(shards), ..request };
        refused(empty.load(&request), Kind::Usage, "a table has from 1 to");
    }
}

#[test]
fn a_table_that_exists_is_only_changed_when_asked() {
    let world = World::new();
    world.create("id,n\n1,a\n").unwrap();
    refused(world.create("id,n\n2,b\n"), Kind::InTheWay, "the table exists; use --sync");
    assert_eq!(world.dump(), "id,n\n1,a\n");
    let other = World::new();
    refused(other.sync("id,n\n1,a\n"), Kind::Usage, "a new table needs a key");
    let request = other.request("id,n\n1,a\n", LoadMode::Sync);
    other.load(&LoadRequest { key: vec!["id".to_owned()], ..request }).unwrap();
    assert_eq!(other.dump(), "id,n\n1,a\n");
}

#[test]
fn a_bad_file_makes_no_table_and_changes_none() {
    let long = format!("id,n\nx,1\n{},2\n", "k".repeat(510));
    let cases = [
        ("id,n\n1,a\n1,b\n", "t.csv, lines 2 and 3 have the same key: id = `1`"),
        ("id,n\n1,a\n,b\n", "t.csv, line 3: column `id` is NULL"),
        (long.as_str(), "t.csv, line 3: the key takes 512 bytes"),
        ("id,n\n1,\"a\n", "t.csv, line 2: the quote that opens field 2 is never closed"),
        ("id,n,id\n", "t.csv, line 1: columns 1 and 3 of the header are both named `id`"),
        ("", "t.csv, line 1: the file is empty"),
    ];
    for (text, expected) in cases {
        let world = World::new();
        let request = world.request(text, LoadMode::Create);
        let request = LoadRequest { key: vec!["id".to_owned()], ..request };
        refused(world.load(&request), Kind::Usage, expected);
        assert_eq!(world.database.tables().unwrap(), []);

        world.create("id,n\n9,z\n").unwrap();
        let before = world.cut();
        refused(world.sync(text), Kind::Usage, expected);
        assert_eq!(world.dump(), "id,n\n9,z\n");
        assert_eq!(world.cut().changes_since(&before), Some(BTreeMap::new()));
        let scratch: Vec<_> = std::fs::read_dir(world.database.scratch_dir()).unwrap().collect();
        assert!(scratch.is_empty(), "{scratch:?}");
    }
}

#[test]
fn null_and_empty_and_many_lines_survive() {
    let world = World::new();
    let text = "id,a,b\n1,,\"\"\n2,\"x\ny\r\nz\",\"a,\"\"b\"\"\"\n3,\"\",\n";
    world.create(text).unwrap();
    assert_eq!(world.dump(), text);
    let report = world.sync(&text.replace("3,\"\",", "3,,\"\"")).unwrap();
    assert_eq!((report.updated, report.unchanged), (1, 2));
    assert!(world.dump().ends_with("3,,\"\"\n"));
}

#[test]
fn a_file_that_says_the_same_writes_nothing() {
    let world = World::new();
    let text = "id,n,d\n1,1.50,2024-02-29\n2,,\n3,7,0001-01-01\n";
    world.create(text).unwrap();
    let (before, records) = (world.cut(), catalog_of(&world));
    let report = world.sync("id,n,d\n3,7,0001-01-01\n1,1.50,2024-02-29\n2,,\n").unwrap();
    let expected =
        LoadReport { rows: 3, unchanged: 3, bytes: report.bytes, ..LoadReport::default() };
    assert_eq!(report, expected);
    assert_eq!(catalog_of(&world), records);
    assert_eq!(world.cut().changes_since(&before), Some(BTreeMap::new()));
}

/// The records that a load changes: of the database, of the table, and of its shards.
fn catalog_of(world: &World) -> String {
    let database = &world.database;
    let txn = database.catalog().read().unwrap();
    let record = database.catalog().table(&txn, &table()).unwrap().unwrap();
    let shards: Vec<_> = record
        .shards
        .iter()
        .map(|shard| database.open_shard(shard.generation).unwrap().view().unwrap().meta().unwrap())
        .collect();
    format!("{:?} {record:?} {shards:?}", database.catalog().database(&txn).unwrap())
}

#[test]
fn columns_that_come_and_go_change_schema_and_rows_together() {
    let world = World::new();
    world.create("id,a,b\n1,x,1\n2,y,2\n3,,3\n").unwrap();
    let parent = world.cut();
    let report = world.sync("id,b,c\n1,1,\n2,2,true\n3,3,\n").unwrap();
    let shown: Vec<String> = report.schema_changes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["column `c` added as bool", "column `a` dropped; it was text"]);
    // What lost a column is not another row; only `true` is new.
    assert_eq!((report.updated, report.unchanged), (1, 2));
    assert_eq!(world.dump(), "id,b,c\n1,1,\n2,2,true\n3,3,\n");
    world.cut().check_changes_since(&parent);
    // A column of the same name is another column.
    let report = world.sync("id,b,a\n1,1,\n2,2,\n3,3,\n").unwrap();
    assert_eq!((report.updated, report.unchanged), (0, 3));
    assert_eq!(world.dump(), "id,b,a\n1,1,\n2,2,\n3,3,\n");
    let parent = world.cut();
    let report = world.sync("a,id,b\n,1,1\n,2,2\n,3,3\n").unwrap();
    assert_eq!(report.schema_changes, [super::SchemaChange::Reordered]);
    assert_eq!(world.dump(), "a,id,b\n,1,1\n,2,2\n,3,3\n");
    assert_eq!(world.cut().changes_since(&parent), Some(BTreeMap::new()));
}

#[test]
fn a_type_that_widens_is_told_and_keeps_every_text() {
    let world = World::new();
    world.create("id,n\n1,10\n2,\n3,30\n").unwrap();
    let parent = world.cut();
    let report = world.sync("id,n\n1,10\n2,\n3,x\n").unwrap();
    assert_eq!(report.schema_changes[0].to_string(), "column `n` is now text; it was int64");
    assert_eq!((report.updated, report.unchanged), (2, 1));
    assert_eq!(world.dump(), "id,n\n1,10\n2,\n3,x\n");
    world.cut().check_changes_since(&parent);
    // It is never narrowed again by itself.
    assert_eq!(world.sync("id,n\n1,10\n2,\n3,4\n").unwrap().schema_changes, []);
    assert_eq!(world.summary().schema.columns[1].logical, LogicalType::Text);
}

#[test]
fn a_key_that_widens_is_another_key_for_every_row() {
    let world = World::new();
    world.create("id,n\n1,a\n2,b\n10,c\n").unwrap();
    let parent = world.cut();
    let report = world.sync("id,n\n2,b\n10,c\nx,d\n").unwrap();
    assert_eq!(report.schema_changes[0].to_string(), "column `id` is now text; it was int64");
    assert_eq!((report.inserted, report.deleted, report.rows), (3, 3, 3));
    assert_eq!(world.dump(), "id,n\n10,c\n2,b\nx,d\n");
    let cut = world.cut();
    assert_eq!(cut.changes_since(&parent), None);
    assert_eq!((cut.table.id, cut.table.shards.len()), (parent.table.id, 3));
    assert_eq!(parent.rows().len(), 3);
}

#[test]
fn a_type_that_is_given_decides() {
    let world = World::new();
    let typed = |text: &str, logical| LoadRequest {
        key: vec!["id".to_owned()],
        types: BTreeMap::from([("n".to_owned(), logical)]),
        ..world.request(text, LoadMode::Sync)
    };
    let int = LogicalType::Int64;
    let error = world.load(&typed("id,n\n1,2\n2,x\n", int));
    refused(
        error,
        Kind::Usage,
        "t.csv, line 3: column `n`: found `x`, expected a value of type int64",
    );
    world.load(&typed("id,n\n1,+2\n2,\n", int)).unwrap();
    assert_eq!(world.dump(), "id,n\n1,2\n2,\n");
    // The same text is the same value, so nothing differs.
    assert_eq!(world.load(&typed("id,n\n1,+2\n2,\n", int)).unwrap().unchanged, 2);
    world.load(&typed("id,n\n1,0.5\n2,1e3\n", LogicalType::Float64)).unwrap();
    assert_eq!(world.dump(), "id,n\n1,0.5\n2,1000\n");
}

#[test]
fn another_key_than_the_tables_is_refused_with_both() {
    let world = World::new();
    world.create("id,n\n1,a\n").unwrap();
    let request = world.request("id,n\n1,a\n", LoadMode::Sync);
    let request = LoadRequest { key: vec!["n".to_owned()], ..request };
    refused(world.load(&request), Kind::Usage, "the table's key is `id`, --key says `n`");
}

#[test]
fn a_table_written_to_meanwhile_is_not_overwritten() {
    for bounds in [LoadBounds::default(), IN_GENERATIONS] {
        let world = World::new();
        world.create("id,n\n1,a\n2,b\n3,c\n").unwrap();
        let request = world.request("id,n\n1,x\n2,y\n", LoadMode::Sync);
        let file = file::survey(&request.file).unwrap();
        let scratch = Scratch::create(&world.database.scratch_dir(), world.database.env()).unwrap();
        let (database, request) = (&world.database, &request);
        let load = Load { database, request, bounds, file: &file, scratch: &scratch };
        let base = database.find_base(request).unwrap().unwrap();
        database.put(&table(), vec![Value::Int64(3), Value::Text("mine".to_owned())]).unwrap();
        assert_eq!(load.sync(&base).unwrap(), None);
        assert_eq!(world.dump(), "id,n\n1,a\n2,b\n3,mine\n");
        let base = database.find_base(request).unwrap().unwrap();
        // A cut between stamping and switching would not see the change, nor the next one.
        let parent = world.cut();
        assert_eq!(load.sync(&base).unwrap(), None);
        assert_eq!(world.sync("id,n\n1,x\n2,y\n").unwrap().rows, 2);
        world.cut().check_changes_since(&parent);
    }
}

#[test]
fn a_change_that_was_recorded_happens_after_a_crash() {
    let world = World::new();
    world.create("id,n\n1,a\n2,b\n3,c\n").unwrap();
    let parent = world.cut();
    let request = world.request("id,n,m\n1,x,\n3,c,1\n", LoadMode::Sync);
    let file = file::survey(&request.file).unwrap();
    let scratch = Scratch::create(&world.database.scratch_dir(), world.database.env()).unwrap();
    let (database, bounds) = (&world.database, LoadBounds::default());
    let load = Load { database, request: &request, bounds, file: &file, scratch: &scratch };
    let base = database.find_base(&request).unwrap().unwrap();
    let recorded: RedoRecord = load.record_only(&base).unwrap();
    assert!(recorded.shards.len() > 1);
    drop((base, scratch));
    let world = world.reopened();
    assert_eq!(world.dump(), "id,n,m\n1,x,\n3,c,1\n");
    world.cut().check_changes_since(&parent);
}

#[test]
fn what_a_dead_load_left_goes_with_the_next_opening_and_a_living_one_keeps_its_own() {
    let world = World::new();
    world.create("id,n\n1,a\n").unwrap();
    let alive = Scratch::create(&world.database.scratch_dir(), world.database.env()).unwrap();
    let dead = world.database.scratch_dir().join("load-00000000000000ff");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("run-000001"), "half a run").unwrap();
    std::fs::write(dead.with_extension("lock"), "").unwrap();
    let again = open(world.dir.path());
    assert!(!dead.exists() && !dead.with_extension("lock").exists());
    assert!(alive.dir().exists());
    drop(alive);
    assert_eq!(std::fs::read_dir(again.scratch_dir()).unwrap().count(), 0);
}

#[test]
fn a_shard_that_does_not_differ_stays_and_one_that_does_keeps_its_log() {
    let world = World::new();
    let sync = |text: &str| {
        let request = world.request(text, LoadMode::Sync);
        world.database.load_within(&request, IN_GENERATIONS).unwrap()
    };
    let generations = || -> Vec<u64> {
        let txn = world.database.catalog().read().unwrap();
        let record = world.database.catalog().table(&txn, &table()).unwrap().unwrap();
        record.shards.iter().map(|shard| shard.generation.0).collect()
    };
    world.create("id,n\n1,a\n2,b\n3,c\n4,d\n5,e\n6,f\n").unwrap();
    let (oldest, before) = (world.cut(), generations());
    sync("id,n\n1,a\n2,b\n3,x\n4,d\n5,e\n6,f\n");
    let parent = world.cut();
    let report = sync("id,n\n1,a\n2,b\n3,x\n5,e\n6,f\n");
    assert_eq!((report.deleted, report.unchanged), (1, 5));
    assert_eq!(world.dump(), "id,n\n1,a\n2,b\n3,x\n5,e\n6,f\n");
    let after = generations();
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_ne!(after[1], before[1]);
    let cut = world.cut();
    cut.check_changes_since(&parent);
    cut.check_changes_since(&oldest);
}

#[test]
fn readers_of_before_read_on() {
    let world = World::new();
    world.create("id,n\n1,a\n2,b\n3,c\n").unwrap();
    let before = world.cut();
    let rows = before.rows();
    world
        .database
        .load_within(&world.request("id,m\n7,z\n", LoadMode::Sync), IN_GENERATIONS)
        .unwrap();
    assert_eq!(before.rows(), rows);
    assert_eq!(world.dump(), "id,m\n7,z\n");
    drop(before);
    world.sync("id,m\n8,z\n").unwrap();
    let generations =
        world.database.catalog().generations(&world.database.catalog().read().unwrap());
    assert_eq!(generations.unwrap().len(), 3, "what nobody reads is gone");
}

/// Every difference makes new generations, and every few rows a scratch file.
const IN_GENERATIONS: LoadBounds =
    LoadBounds { sort_bytes_max: 100, batch_rows_max: 0, batch_bytes_max: 0 };

/// A file with a key column and up to three more, in any order.
#[derive(Clone, Debug)]
struct RandomFile {
    columns: Vec<&'static str>,
    rows: BTreeMap<String, [Option<String>; 3]>,
}

impl RandomFile {
    fn cell(&self, key: &str, column: &str) -> Option<String> {
        match ["a", "b", "c"].iter().position(|name| *name == column) {
            Some(at) => self.rows[key][at].clone(),
            None => Some(key.to_owned()),
        }
    }

    /// The file with its rows in the given order.
    fn text<'a>(&self, keys: impl IntoIterator<Item = &'a String>) -> String {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer.header(self.columns.iter().copied()).unwrap();
        for key in keys {
            let cell = |column: &&str| self.cell(key, column).map_or(Value::Null, Value::Text);
            writer.row(&self.columns.iter().map(cell).collect::<Vec<Value>>()).unwrap();
        }
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Keys in the order that a key column of that type has.
    fn keys_sorted(&self, logical: LogicalType) -> Vec<&String> {
        let mut keys: Vec<&String> = self.rows.keys().collect();
        keys.sort_by_key(|key| {
            let mut bytes = Vec::new();
            encode_key_value(&Value::parse(logical, key).unwrap(), &mut bytes).unwrap();
            bytes
        });
        keys
    }
}

fn random_file() -> impl Strategy<Value = RandomFile> {
    let cell = prop_oneof![
        3 => Just(None),
        3 => (0..4i64).prop_map(|number| Some(number.to_string())),
        1 => "[01]\\.[05]".prop_map(Some),
        1 => Just(Some(String::new())),
        1 => "[x,\"\n]{1,2}".prop_map(Some),
        1 => Just(Some("2024-02-29".to_owned())),
    ];
    let key =
        prop_oneof![20 => (0..30i64).prop_map(|key| key.to_string()), 1 => Just("k".to_owned())];
    let cells = prop::array::uniform3(cell);
    let rows = prop::collection::btree_map(key, cells, 0..25);
    let columns = prop_oneof![
        4 => Just(vec!["k", "a", "b", "c"]),
        1 => prop::sample::subsequence(vec!["a", "b", "c"], 0..4).prop_map(|mut columns| {
            columns.insert(columns.len() / 2, "k");
            columns
        }),
    ];
    (columns, rows).prop_map(|(columns, rows)| RandomFile { columns, rows })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_sync_makes_the_table_equal_to_the_file_and_captures_the_difference(
        files in prop::collection::vec((random_file(), any::<bool>()), 2..5),
    ) {
        let world = World::new();
        let mut parent: Option<TakenCut> = None;
        let mut oldest: Option<TakenCut> = None;
        for (file, in_generations) in files {
            let text = file.text(file.rows.keys());
            let request = world.request(&text, LoadMode::Sync);
            let request = LoadRequest { key: vec!["k".to_owned()], ..request };
            let bounds = if in_generations { IN_GENERATIONS } else { LoadBounds::default() };
            let report = world.database.load_within(&request, bounds).unwrap();
            let key_type = world.summary().schema.key_columns().next().unwrap().logical;
            assert_eq!(world.dump(), file.text(file.keys_sorted(key_type)));
            assert_eq!(report.rows, file.rows.len() as u64);

            let cut = world.cut();
            match &parent {
                Some(parent) if cut.table.schema.same_key(&parent.table.schema) => {
                    cut.check_changes_since(parent);
                    let changes = cut.changes_since(parent).unwrap();
                    let differences = report.inserted + report.updated + report.deleted;
                    assert_eq!(changes.len() as u64, differences);
                }
                Some(parent) => assert_eq!(cut.changes_since(parent), None),
                None => {}
            }
            oldest = match oldest {
                Some(oldest) if oldest.table.schema.same_key(&cut.table.schema) => {
                    cut.check_changes_lead_here_from(&oldest);
                    Some(oldest)
                }
                _ => Some(world.cut()),
            };
            parent = Some(cut);
        }
    }
}
