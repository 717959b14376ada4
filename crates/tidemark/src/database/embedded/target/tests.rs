use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::database::conformance::{
    Capture, Rows, SourceSubject, Subject, TargetSubject, check_source, check_target,
};
use crate::database::embedded::record::GenerationRecord;
use crate::database::embedded::{Alteration, EmbeddedOptions, LoadMode, LoadRequest, WriteBatch};
use crate::database::{Disposition, Origin, Source};
use crate::env::SystemEnv;
use crate::ids::{CollectionId, Epoch, OperationId, ShardIdx, StepIdx, TableId};
use crate::row::key::decode_key_value;
use crate::row::{ChangeOp, KeyRange, LogicalType, RowCodec, RowRef, Schema, Value};

fn open(dir: &Path, options: &EmbeddedOptions) -> EmbeddedDatabase {
    EmbeddedDatabase::open_or_create(dir, Arc::new(SystemEnv), options.clone()).unwrap()
}

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        lock_wait: Duration::from_secs(20),
        shard_map_bytes: 64 << 20,
        // Fewer than the checks use, so that shards are closed and opened all the time.
        open_shards_max: 3,
    }
}

/// A database in a directory that goes with it.
struct Place {
    dir: PathBuf,
    _dir: tempfile::TempDir,
    database: Option<EmbeddedDatabase>,
}

impl Place {
    fn new() -> Place {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("database");
        let database = Some(open(&dir, &options()));
        Place { dir, _dir: place, database }
    }

    fn database(&self) -> &EmbeddedDatabase {
        self.database.as_ref().expect("it is open between two calls")
    }

    fn schema(&self, name: &TableName) -> Schema {
        let tables = self.database().tables().unwrap();
        tables.into_iter().find(|table| table.name == *name).unwrap().schema
    }

    /// Closes and opens, as a process does that was killed.
    fn reopen_with(&mut self, options: &EmbeddedOptions) {
        self.database = None;
        self.database = Some(open(&self.dir, options));
    }
}

impl Subject for Place {
    fn reopen(&mut self) -> Result<()> {
        self.reopen_with(&options());
        Ok(())
    }

    fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()> {
        self.database().create_table(name, schema, &[vec![Value::Int64(500)]]).map(drop)
    }

    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        let codec = RowCodec::new(&self.schema(name));
        let mut batch = WriteBatch::new();
        for row in rows.iter() {
            match row.op {
                ChangeOp::Delete => {
                    let id = decode_key_value(LogicalType::Int64, &mut { row.key }).unwrap();
                    batch.delete(name, vec![id]);
                }
                ChangeOp::Upsert => batch.put(name, codec.decode(row.key, row.payload)?),
                ChangeOp::Update => unreachable!("users write whole rows"),
            }
        }
        self.database().write(&batch)
    }

    fn drop_table(&self, name: &TableName) -> Result<()> {
        self.database().drop_table(name)
    }

    fn rows(&self, name: &TableName) -> Result<Option<Rows>> {
        let scan = match self.database().scan(name, &crate::database::embedded::RowRange::ALL) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            scan => scan?,
        };
        let codec = RowCodec::new(&self.schema(name));
        let mut rows = Rows::new();
        for row in scan {
            let row = row?;
            let (mut key, mut payload) = (Vec::new(), Vec::new());
            codec.encode_key(&row, &mut key)?;
            codec.encode_payload(&row, &mut payload)?;
            rows.insert(key, payload);
        }
        Ok(Some(rows))
    }
}

impl TargetSubject for Place {
    fn target(&self) -> &dyn Target {
        self.database()
    }
}

impl SourceSubject for Place {
    fn source(&self) -> &dyn Source {
        self.database()
    }
}

#[test]
fn the_embedded_database_keeps_the_promises_of_a_target() {
    check_target(&|| Box::new(Place::new()));
}

#[test]
fn the_embedded_database_keeps_the_promises_of_a_source() {
    check_source(&|| Box::new(Place::new()), Capture::Changes);
}

const OPERATION: OperationId = OperationId(1);

fn fence(epoch: u64) -> Fence {
    Fence { operation: OPERATION, epoch: Epoch(epoch) }
}

fn key(id: i64) -> Vec<u8> {
    let mut key = Vec::new();
    crate::row::key::encode_key_value(&Value::Int64(id), &mut key).unwrap();
    key
}

fn plan(disposition: Disposition, point: u32) -> TargetTable {
    let columns = [("id", LogicalType::Int64), ("note", LogicalType::Text)];
    TargetTable {
        name: TableName::parse("orders").unwrap(),
        id: TableId(1),
        digest_id: TableId(2),
        schema: Schema::new(&columns, &["id"]).unwrap(),
        shards: KeyRange::between(&[key(100), key(200)]),
        disposition,
        origin: Origin { collection: CollectionId(1), manifest: format!("{point:064x}") },
        structure: None,
    }
}

fn at(shard: u32) -> TargetShard {
    let table = plan(Disposition::Fresh, 1).name;
    TargetShard { operation: OPERATION, table, shard: ShardIdx(shard) }
}

fn rows(ids: impl IntoIterator<Item = i64>, note: &str) -> RowBatch {
    let codec = RowCodec::new(&plan(Disposition::Fresh, 1).schema);
    let mut batch = RowBatch::new();
    for id in ids {
        let mut payload = Vec::new();
        let row = [Value::Int64(id), Value::Text(note.to_owned())];
        codec.encode_payload(&row, &mut payload).unwrap();
        batch.push(RowRef { key: &key(id), op: ChangeOp::Upsert, payload: &payload });
    }
    batch
}

/// Applies rows from where the shard stands.
fn apply(
    database: &EmbeddedDatabase,
    fence: Fence,
    at: &TargetShard,
    rows: &RowBatch,
) -> Result<Mark> {
    let stored = database.mark(at)?.filter(|mark| !mark.links.is_empty());
    let mut mark = stored.unwrap_or_else(|| {
        database.mark(at).unwrap().unwrap_or_default().enter_step(StepIdx(0), 1)
    });
    mark.rows += rows.len() as u64;
    mark.bytes += rows.byte_count();
    mark.last_key = rows.last().map(|row| row.key.to_vec());
    database.apply(fence, at, rows, &mut mark)?;
    Ok(mark)
}

fn count(database: &EmbeddedDatabase, at: &TargetShard) -> usize {
    let mut stream = database.read_back(at).unwrap();
    let (mut batch, mut count) = (RowBatch::new(), 0);
    while stream.next_batch(&mut batch).unwrap() {
        count += batch.len();
    }
    count
}

/// Restores a copy of three rows, one per shard, at point 1 by another operation.
fn restore_copy(database: &EmbeddedDatabase, how: Publish) {
    let fence = Fence { operation: OperationId(900), epoch: Epoch(7) };
    database.prepare(fence, &[plan(Disposition::Fresh, 1)]).unwrap();
    for (shard, id) in [(0, 5), (1, 150), (2, 250)] {
        let at = TargetShard { operation: fence.operation, ..at(shard) };
        apply(database, fence, &at, &rows([id], "full")).unwrap();
    }
    database.seal(fence).unwrap();
    database.publish(fence, how).unwrap();
}

fn generations(database: &EmbeddedDatabase) -> Vec<GenerationRecord> {
    let all = database.catalog().generations(&database.catalog().read().unwrap()).unwrap();
    all.into_iter().map(|(_, state)| state).collect()
}

fn directories(place: &Place) -> usize {
    std::fs::read_dir(place.dir.join("shards")).unwrap().count()
}

#[test]
fn preparing_completes_what_a_crash_left() {
    for disposition in [Disposition::Fresh, Disposition::RollForward] {
        for shards_made in 0..=3 {
            let mut place = Place::new();
            if disposition == Disposition::RollForward {
                restore_copy(place.database(), Publish::Visible);
            }
            let plan = plan(disposition, 2);
            let tables = std::slice::from_ref(&plan);
            // Killed after the reservation and so many shards.
            let database = place.database();
            let untouched = database.find_untouched_copies(tables).unwrap();
            let hidden = database.reserve(fence(1), tables, &untouched).unwrap();
            let mut partial = hidden[0].clone();
            partial.generations.truncate(shards_made);
            database.complete(fence(1), &[partial]).unwrap();
            if let Some(next) = hidden[0].generations.get(shards_made) {
                // And a copy that was not finished.
                let dir = place.dir.join("shards").join(next.to_string());
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join("data.mdb.0123.unfinished"), [0; 5000]).unwrap();
            }
            place.reopen().unwrap();
            let database = place.database();
            assert_eq!(database.mark(&at(0)).unwrap_err().kind(), Kind::NotFound);
            assert_eq!(database.seal(fence(1)).unwrap_err().kind(), Kind::Usage);
            database.prepare(fence(2), tables).unwrap();
            for (shard, id) in [(0, 6), (1, 151), (2, 251)] {
                apply(database, fence(2), &at(shard), &rows([id], "later")).unwrap();
            }
            database.seal(fence(2)).unwrap();
            database.publish(fence(2), Publish::Visible).unwrap();
            let expected = if disposition == Disposition::Fresh { 3 } else { 6 };
            assert_eq!(place.rows(&plan.name).unwrap().unwrap().len(), expected);
            assert_eq!(generations(place.database()), vec![GenerationRecord::Live; 3]);
            assert_eq!(directories(&place), 3);
        }
    }
}

#[test]
fn a_takeover_that_died_half_way_is_completed_by_the_next() {
    for claimed in 0..=3 {
        let mut place = Place::new();
        let tables = [plan(Disposition::Fresh, 1)];
        place.database().prepare(fence(1), &tables).unwrap();
        apply(place.database(), fence(1), &at(0), &rows(0..10, "a")).unwrap();
        // Killed after so many shards; the catalog still names epoch 1.
        let database = place.database();
        let mut hidden = (*database.hidden_shard(&at(0)).unwrap().0).clone();
        hidden.generations.truncate(claimed);
        let wanted = ShardFence::open(hidden.txn, Epoch(2));
        database.claim_shards(fence(2), &hidden, wanted).unwrap();
        place.reopen().unwrap();
        let database = place.database();
        for shard in 0..3 {
            let first = i64::from(shard) * 100 + 50;
            let late = apply(database, fence(1), &at(shard), &rows([first], "late"));
            let refused = late.err().map(|error| error.kind());
            let expected = ((shard as usize) < claimed).then_some(Kind::Fenced);
            assert_eq!(refused, expected, "shard {shard} of {claimed}");
        }
        database.prepare(fence(3), &tables).unwrap();
        for shard in 0..3 {
            let id = i64::from(shard) * 100 + 60;
            apply(database, fence(3), &at(shard), &rows([id], "on")).unwrap();
            assert!(apply(database, fence(2), &at(shard), &rows([id + 1], "late")).is_err());
        }
    }
}

#[test]
fn a_seal_that_died_half_way_is_completed() {
    for sealed in 0..=3 {
        for resumed_by in [1, 2] {
            let mut place = Place::new();
            let tables = [plan(Disposition::Fresh, 1)];
            place.database().prepare(fence(1), &tables).unwrap();
            let database = place.database();
            let mut hidden = (*database.hidden_shard(&at(0)).unwrap().0).clone();
            hidden.generations.truncate(sealed);
            let wanted = ShardFence::sealed(hidden.txn, Epoch(1));
            database.claim_shards(fence(1), &hidden, wanted).unwrap();
            place.reopen().unwrap();
            let database = place.database();
            assert_eq!(
                database.publish(fence(1), Publish::Visible).unwrap_err().kind(),
                Kind::Usage
            );
            database.prepare(fence(resumed_by), &tables).unwrap();
            database.seal(fence(resumed_by)).unwrap();
            for shard in 0..3 {
                let ids = rows([i64::from(shard) * 100], "late");
                let late = apply(database, fence(resumed_by), &at(shard), &ids);
                assert_eq!(late.unwrap_err().kind(), Kind::Fenced);
            }
            database.publish(fence(resumed_by), Publish::Visible).unwrap();
        }
    }
}

#[test]
fn a_discard_that_died_half_way_is_completed_and_takes_no_rows() {
    let mut place = Place::new();
    let tables = [plan(Disposition::Fresh, 1)];
    place.database().prepare(fence(1), &tables).unwrap();
    let hidden = Arc::clone(&place.database().hidden_shard(&at(0)).unwrap().0);
    place.database().seal_discarded(fence(1), &hidden).unwrap();
    place.reopen().unwrap();
    let late = apply(place.database(), fence(1), &at(0), &rows([1], "late"));
    assert_eq!(late.unwrap_err().kind(), Kind::Fenced);
    place.database().discard(fence(1)).unwrap();
    assert_eq!(generations(place.database()), []);
    assert_eq!(directories(&place), 0);
}

#[test]
fn a_shard_that_somebody_deleted_can_be_discarded_and_is_not_skipped() {
    let mut place = Place::new();
    place.database().prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    let gone = place.database().hidden_shard(&at(1)).unwrap().0.generations[1];
    place.database = None;
    std::fs::remove_dir_all(place.dir.join("shards").join(gone.to_string())).unwrap();
    place.reopen().unwrap();
    assert_eq!(place.database().mark(&at(1)).unwrap_err().kind(), Kind::Broken);
    assert_eq!(place.database().seal(fence(1)).unwrap_err().kind(), Kind::Broken);
    place.database().discard(fence(1)).unwrap();
    assert_eq!(generations(place.database()), []);
}

/// A holder that was frozen before the operation ended must not reach the shards of the next.
#[test]
fn a_frozen_holder_of_an_earlier_operation_cannot_write_into_a_held_copy() {
    let place = Place::new();
    let database = place.database();
    restore_copy(database, Publish::Held);
    let earlier = Fence { operation: OperationId(900), epoch: Epoch(7) };
    database.prepare(fence(1), &[plan(Disposition::RollForward, 2)]).unwrap();
    let (hidden, shard) = database.hidden_shard(&at(0)).unwrap();
    let current = shard.meta(&shard.read().unwrap()).unwrap().fence;
    // Its epoch is greater; its fencing number is not.
    for fence in [ShardFence::open, ShardFence::sealed] {
        let mut older = (*hidden).clone();
        older.txn = Txn(hidden.txn.0 - 1);
        let late = database.claim_shard(earlier, &older, &shard, fence(older.txn, Epoch(7)));
        assert_eq!(late.unwrap_err().kind(), Kind::Fenced);
    }
    assert_eq!(shard.meta(&shard.read().unwrap()).unwrap().fence, current);
    apply(database, fence(1), &at(0), &rows([6], "on")).unwrap();
}

#[test]
fn an_altered_copy_is_not_rolled_forward() {
    let place = Place::new();
    restore_copy(place.database(), Publish::Visible);
    let plan = plan(Disposition::RollForward, 2);
    let column = Alteration::AddColumn { name: "more".to_owned(), logical: LogicalType::Bool };
    place.database().alter(&plan.name, &[column]).unwrap();
    assert_eq!(place.database().prepare(fence(1), &[plan]).unwrap_err().kind(), Kind::InTheWay);
}

#[test]
fn a_copy_dropped_meanwhile_is_told_and_not_made_anew() {
    let place = Place::new();
    restore_copy(place.database(), Publish::Visible);
    let plan = plan(Disposition::RollForward, 2);
    place.database().prepare(fence(1), std::slice::from_ref(&plan)).unwrap();
    place.database().seal(fence(1)).unwrap();
    // The name is reserved, so no call drops it; what else might is told all the same.
    let database = place.database();
    let alone = database.pass_alone().unwrap();
    let mut txn = database.write_catalog().unwrap();
    database.switch_table(&alone.gate, &mut txn, &plan.name, None).unwrap();
    txn.commit().unwrap();
    drop(alone);
    database.tidy();
    let error = place.database().publish(fence(1), Publish::Visible).unwrap_err();
    assert_eq!(error.kind(), Kind::InTheWay, "{error}");
    assert_eq!(place.rows(&plan.name).unwrap(), None);
    place.database().discard(fence(1)).unwrap();
    assert_eq!(generations(place.database()), []);
}

#[test]
fn readers_of_a_replaced_table_read_on() {
    let place = Place::new();
    restore_copy(place.database(), Publish::Visible);
    let plan = plan(Disposition::Replace, 2);
    let mut scan =
        place.database().scan(&plan.name, &crate::database::embedded::RowRange::ALL).unwrap();
    assert!(scan.next().is_some());
    place.database().prepare(fence(1), std::slice::from_ref(&plan)).unwrap();
    place.database().seal(fence(1)).unwrap();
    place.database().publish(fence(1), Publish::Visible).unwrap();
    assert_eq!(place.rows(&plan.name).unwrap(), Some(Rows::new()));
    assert_eq!(scan.map(Result::unwrap).count(), 2);
}

#[test]
fn a_published_table_is_whole_in_the_next_increment_and_a_delta_afterwards() {
    let place = Place::new();
    let database = place.database();
    let collection = CollectionId(3);
    let before = database.snapshot(collection).unwrap().position();
    restore_copy(database, Publish::Visible);
    let parent = |snapshot: &dyn crate::database::Snapshot, position| {
        let table = &snapshot.tables()[0];
        crate::database::ParentTable {
            id: table.id,
            schema: table.schema.clone(),
            position,
            structure: None,
        }
    };
    let first = database.snapshot(collection).unwrap();
    let delta = first.delta(0, &parent(&*first, before)).unwrap();
    assert!(matches!(delta, crate::database::Delta::Whole { .. }), "{delta:?}");
    place.write(&first.tables()[0].name, &rows([7], "by a user")).unwrap();
    let second = database.snapshot(collection).unwrap();
    let delta = second.delta(0, &parent(&*first, first.position())).unwrap();
    assert!(matches!(delta, crate::database::Delta::Known { rows: 1, .. }), "{delta:?}");
}

/// A process that takes a lock, signs it, and keeps it until this is dropped.
struct HolderElsewhere(Child);

impl HolderElsewhere {
    fn new(lock: &Path) -> HolderElsewhere {
        let script = format!(
            "exec 9<>'{0}'; flock 9; printf '%10d\\n' $$ >'{0}'; echo held; exec sleep 600",
            lock.display()
        );
        let mut child =
            Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        HolderElsewhere(child)
    }
}

impl Drop for HolderElsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_shard_locked_by_another_process_times_out_and_names_it() {
    let mut place = Place::new();
    place.database().prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    let generation = place.database().hidden_shard(&at(0)).unwrap().0.generations[0];
    let lock = place.dir.join("shards").join(generation.to_string()).join("write.lock");
    place.reopen_with(&EmbeddedOptions { lock_wait: Duration::from_millis(30), ..options() });
    let holder = HolderElsewhere::new(&lock);
    let error = apply(place.database(), fence(1), &at(0), &rows([1], "a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Held);
    assert!(error.message().contains(&format!("process {}", holder.0.id())), "{error}");
    // The other shards go on, and so does this one as soon as the holder is dead.
    apply(place.database(), fence(1), &at(1), &rows([150], "a")).unwrap();
    drop(holder);
    apply(place.database(), fence(1), &at(0), &rows([1], "a")).unwrap();
}

#[test]
fn a_full_shard_is_blocked_loses_nothing_and_goes_on_when_there_is_room() {
    let mut place = Place::new();
    let tiny = EmbeddedOptions { shard_map_bytes: 1 << 20, ..options() };
    place.reopen_with(&tiny);
    place.database().prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    let long = "x".repeat(10_000);
    let mut chunks = (0..20).map(|chunk| rows(chunk * 5..chunk * 5 + 5, &long));
    let mut applied = 0;
    let (refused, mark) = loop {
        let chunk = chunks.next().expect("a megabyte does not hold them all");
        let before = place.database().mark(&at(0)).unwrap();
        match apply(place.database(), fence(1), &at(0), &chunk) {
            Ok(_) => applied += chunk.len(),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Blocked, "{error:?}");
                break (chunk, before);
            }
        }
    };
    assert!(applied > 0);
    assert_eq!(place.database().mark(&at(0)).unwrap(), mark);
    assert_eq!(count(place.database(), &at(0)), applied);
    // Opened again alone, it has room.
    place.reopen_with(&options());
    assert_eq!(place.database().mark(&at(0)).unwrap(), mark);
    apply(place.database(), fence(1), &at(0), &refused).unwrap();
    for chunk in chunks {
        apply(place.database(), fence(1), &at(0), &chunk).unwrap();
    }
    assert_eq!(count(place.database(), &at(0)), 100);
    let mark = place.database().mark(&at(0)).unwrap().unwrap();
    assert_eq!(mark.digest().rows, 100);
}

#[test]
fn shards_are_filled_in_parallel_and_one_of_two_rivals_wins_each_chunk() {
    let place = Place::new();
    let database = place.database();
    database.prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    std::thread::scope(|threads| {
        for _ in 0..2 {
            for shard in 0..3u32 {
                threads.spawn(move || {
                    for chunk in 0..10 {
                        let first = i64::from(shard) * 100 + chunk * 5;
                        let batch = rows(first..first + 5, "x");
                        let mut mark = Mark::default().enter_step(StepIdx(0), 1);
                        mark.last_key = batch.last().map(|row| row.key.to_vec());
                        match database.apply(fence(1), &at(shard), &batch, &mut mark) {
                            Ok(()) => {}
                            Err(error) => assert_eq!(error.kind(), Kind::Transient, "{error}"),
                        }
                    }
                });
            }
        }
    });
    for shard in 0..3 {
        assert_eq!(count(database, &at(shard)), 50);
        assert_eq!(database.mark(&at(shard)).unwrap().unwrap().digest().rows, 50);
    }
}

/// The file of a load into the table of [`plan`].
fn load_request(place: &Place, mode: LoadMode) -> LoadRequest {
    let file = place.dir.with_file_name("orders.csv");
    std::fs::write(&file, "id,note\n1,theirs\n").unwrap();
    LoadRequest {
        table: plan(Disposition::Fresh, 1).name,
        file,
        key: vec!["id".to_owned()],
        mode,
        shards: Some(1),
        types: std::collections::BTreeMap::new(),
    }
}

#[track_caller]
fn is_reserved<T: std::fmt::Debug>(what: &str, refused: Result<T>) {
    let error = refused.expect_err(what);
    assert_eq!(error.kind(), Kind::InTheWay, "{what}: {error}");
    for words in ["operation 1", "tidemark operation cancel 1"] {
        assert!(error.message().contains(words), "{what}: {error}");
    }
}

#[test]
fn a_reserved_name_is_refused_to_db_load() {
    let place = Place::new();
    let database = place.database();
    let Schema { columns, .. } = plan(Disposition::Fresh, 1).schema;
    let columns: Vec<_> = columns.iter().map(|column| (&*column.name, column.logical)).collect();
    let (name, schema) =
        (plan(Disposition::Fresh, 1).name, Schema::new(&columns, &["id"]).unwrap());
    database.prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    apply(database, fence(1), &at(0), &rows([1], "ours")).unwrap();
    is_reserved("create", database.create_table(&name, &schema, &[]));
    is_reserved("load", database.load(&load_request(&place, LoadMode::Create)));
    is_reserved("sync", database.load(&load_request(&place, LoadMode::Sync)));
    database.seal(fence(1)).unwrap();
    is_reserved("load when sealed", database.load(&load_request(&place, LoadMode::Create)));
    database.publish(fence(1), Publish::Visible).unwrap();
    // From then on the table is its owner's.
    database.load(&load_request(&place, LoadMode::Sync)).unwrap();
}

#[test]
fn a_name_is_free_again_when_its_operation_is_cancelled() {
    let place = Place::new();
    let database = place.database();
    database.prepare(fence(1), &[plan(Disposition::Fresh, 1)]).unwrap();
    database.discard(fence(1)).unwrap();
    database.load(&load_request(&place, LoadMode::Create)).unwrap();
}

#[test]
fn a_table_that_a_restore_moves_on_or_replaces_keeps_its_shape_until_then() {
    for disposition in [Disposition::RollForward, Disposition::Replace] {
        let place = Place::new();
        let database = place.database();
        let name = plan(disposition, 1).name;
        let made_by = Fence { operation: OperationId(7), ..fence(1) };
        database.prepare(made_by, &[plan(Disposition::Fresh, 1)]).unwrap();
        database.seal(made_by).unwrap();
        database.publish(made_by, Publish::Visible).unwrap();
        database.prepare(fence(1), &[plan(disposition, 2)]).unwrap();
        let before = database.tables().unwrap();
        is_reserved("drop", database.drop_table(&name));
        is_reserved("truncate", database.truncate(&name));
        is_reserved("sync", database.load(&load_request(&place, LoadMode::Sync)));
        let rename = Alteration::RenameColumn { from: "note".into(), to: "remark".into() };
        is_reserved("alter", database.alter(&name, &[rename]));
        assert_eq!(database.tables().unwrap(), before);
        // Its rows are still to be written; the restore tells at its end.
        place.write(&name, &rows([5], "by a user")).unwrap();
        database.discard(fence(1)).unwrap();
        database.drop_table(&name).unwrap();
    }
}
