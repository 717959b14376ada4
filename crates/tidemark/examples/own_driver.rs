//! A database driver of one's own: plain maps behind a mutex.
//!
//! It keeps every promise of [`Source`] and [`Target`]; `tests/own_driver.rs` runs the
//! conformance suite on it. What makes it simple is that one lock is one transaction:
//! each call takes it, checks everything, and only then changes anything. A driver for a
//! real database has to keep the same order inside that database's transactions.
//!
//! Run it with `cargo run --example own_driver`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tidemark::database::conformance::Rows;
use tidemark::database::{
    CopyState, Delta, Disposition, ExistingTable, Fence, Mark, Origin, ParentTable, Publish,
    Snapshot, Source, SourceShard, SourceTable, Target, TargetShard, TargetTable,
};
use tidemark::ids::{
    CollectionId, Epoch, OperationId, Position, ShardIdx, TableId, TableName, Txn,
};
use tidemark::row::digest::RowHasher;
use tidemark::row::{
    ChangeOp, KeyRange, LogicalType, RowBatch, RowCodec, RowRef, RowStream, Schema, Value, payload,
};
use tidemark::{Error, Kind, Result};

/// A handle on a database in memory; clones are handles on the same one.
#[derive(Clone, Debug)]
pub(crate) struct OwnDatabase {
    store: Arc<Mutex<Store>>,
}

/// Everything the database holds.
#[derive(Debug, Default)]
struct Store {
    identity: String,
    last_txn: u64,
    last_table: u128,
    /// Writes are stamped with the number of cuts taken before them, plus one.
    cuts: u64,
    tables: BTreeMap<TableName, Table>,
    operations: BTreeMap<OperationId, Operation>,
}

/// A table with its name, visible or held.
#[derive(Clone, Debug)]
struct Table {
    id: TableId,
    digest_id: TableId,
    schema: Schema,
    cut: Vec<KeyRange>,
    rows: Rows,
    /// Position of the last write per key, deleted ones included.
    changed: BTreeMap<Vec<u8>, Position>,
    /// Position at which it was created or published: what came before is not captured.
    since: Position,
    copy: Option<CopyState>,
}

/// What is remembered of an operation, for ever.
#[derive(Debug)]
struct Operation {
    epoch: Epoch,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Takes rows.
    Open(BTreeMap<TableName, Hidden>),
    /// Takes no rows; waits for proof and publishing.
    Sealed(BTreeMap<TableName, Hidden>),
    Published,
    Discarded,
}

/// A table that nobody sees yet.
#[derive(Debug)]
struct Hidden {
    plan: TargetTable,
    /// Identity of the copy that is rolled forward.
    base: Option<TableId>,
    shards: Vec<HiddenShard>,
}

#[derive(Debug, Default)]
struct HiddenShard {
    rows: Rows,
    mark: Option<Mark>,
}

impl OwnDatabase {
    /// An empty database.
    pub(crate) fn new(identity: &str) -> OwnDatabase {
        let store = Store { identity: identity.to_owned(), ..Store::default() };
        OwnDatabase { store: Arc::new(Mutex::new(store)) }
    }

    /// Creates an empty table in one shard.
    pub(crate) fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()> {
        let mut store = self.lock();
        if store.tables.contains_key(name) {
            return Err(refuse(Kind::InTheWay, format!("create `{name}`: the table exists")));
        }
        let id = store.next_table_id();
        let table = Table {
            id,
            digest_id: id,
            schema: schema.clone(),
            cut: vec![KeyRange::ALL],
            rows: Rows::new(),
            changed: BTreeMap::new(),
            since: store.now(),
            copy: None,
        };
        store.tables.insert(name.clone(), table);
        Ok(())
    }

    /// Writes upserts and deletes in one transaction.
    pub(crate) fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        let mut store = self.lock();
        let now = store.now();
        let table = store.visible(name)?;
        for row in rows.iter() {
            match row.op {
                ChangeOp::Delete => table.rows.remove(row.key),
                _ => table.rows.insert(row.key.to_vec(), row.payload.to_vec()),
            };
            table.changed.insert(row.key.to_vec(), now);
        }
        if let Some(copy) = &mut table.copy {
            copy.written_to = true;
        }
        Ok(())
    }

    /// Drops a table.
    pub(crate) fn drop_table(&self, name: &TableName) -> Result<()> {
        let mut store = self.lock();
        store.visible(name)?;
        store.tables.remove(name);
        Ok(())
    }

    /// The rows of a table; `None` if there is none to see.
    pub(crate) fn rows(&self, name: &TableName) -> Option<Rows> {
        self.lock().visible(name).ok().map(|table| table.rows.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic in a check leaves the maps as they were: every change is made at the end.
        self.store.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn refuse(kind: Kind, message: String) -> Error {
    Error::new(kind, message)
}

impl Store {
    fn now(&self) -> Position {
        Position(self.cuts + 1)
    }

    fn next_table_id(&mut self) -> TableId {
        self.last_table += 1;
        TableId(self.last_table)
    }

    fn visible(&mut self, name: &TableName) -> Result<&mut Table> {
        let held = |table: &Table| table.copy.as_ref().is_some_and(|copy| copy.held);
        let table = self.tables.get_mut(name).filter(|table| !held(table));
        table.ok_or_else(|| refuse(Kind::NotFound, format!("there is no table `{name}`")))
    }

    /// The operation, if `fence` is not older than what it was shown before.
    fn operation(&mut self, fence: Fence) -> Result<Option<&mut Operation>> {
        match self.operations.get_mut(&fence.operation) {
            Some(found) if fence.epoch < found.epoch => Err(refuse(
                Kind::Fenced,
                format!(
                    "operation {} is held with epoch {}, this is epoch {}",
                    fence.operation, found.epoch, fence.epoch
                ),
            )),
            found => Ok(found),
        }
    }

    fn hidden_shard(&mut self, at: &TargetShard) -> Result<(&TargetTable, &mut HiddenShard)> {
        let tables = match self.operations.get_mut(&at.operation).map(|found| &mut found.state) {
            Some(State::Open(tables) | State::Sealed(tables)) => tables.get_mut(&at.table),
            _ => None,
        };
        tables
            .and_then(|hidden| Some((&hidden.plan, hidden.shards.get_mut(at.shard.0 as usize)?)))
            .ok_or_else(|| {
                let message = format!(
                    "operation {} has no hidden shard {} of `{}`",
                    at.operation, at.shard, at.table
                );
                refuse(Kind::NotFound, message)
            })
    }

    /// Refuses a name that `operation` cannot have; `plan` was not prepared before.
    fn check_name(&self, operation: OperationId, plan: &TargetTable) -> Result<()> {
        let name = &plan.name;
        for (other, found) in &self.operations {
            let (State::Open(tables) | State::Sealed(tables)) = &found.state else { continue };
            if *other != operation && tables.contains_key(name) {
                let message = format!("`{name}` is reserved by operation {other}");
                return Err(refuse(Kind::InTheWay, message));
            }
        }
        let found = self.tables.get(name);
        match (plan.disposition, found) {
            (Disposition::Replace, _) | (Disposition::Fresh, None) => Ok(()),
            (Disposition::Fresh, Some(_)) => {
                Err(refuse(Kind::InTheWay, format!("`{name}` exists already")))
            }
            (Disposition::ReplaceCopy { table }, found) => check_replaced(name, table, found),
            (Disposition::RollForward, found) => check_copy(plan, found),
        }
    }

    fn make_hidden(&self, plan: &TargetTable) -> Result<Hidden> {
        let base =
            self.tables.get(&plan.name).filter(|_| plan.disposition == Disposition::RollForward);
        let codec = RowCodec::new(&plan.schema);
        // Columns that went since the copy was made are in no change that will come.
        let projected = |(key, row): (&Vec<u8>, &Vec<u8>)| {
            let mut payload = Vec::new();
            codec.project(row, &mut payload)?;
            Ok((key.clone(), payload))
        };
        let shards = plan.shards.iter().map(|range| match base {
            None => Ok(HiddenShard::default()),
            Some(base) => {
                let inside = base.rows.iter().filter(|(key, _)| range.contains(key));
                let rows: Rows = inside.map(projected).collect::<Result<_>>()?;
                let mut hasher = RowHasher::new(plan.digest_id);
                let mut mark = Mark::default();
                for (key, row) in &rows {
                    mark.account(key, None, Some(hasher.row(key, row)));
                }
                Ok(HiddenShard { rows, mark: Some(mark) })
            }
        });
        let shards = shards.collect::<Result<_>>()?;
        Ok(Hidden { plan: plan.clone(), base: base.map(|base| base.id), shards })
    }
}

/// Refuses to replace anything but the untouched copy that was planned with.
fn check_replaced(name: &TableName, copy: TableId, found: Option<&Table>) -> Result<()> {
    let is_untouched = |table: &Table| table.copy.as_ref().is_some_and(|copy| !copy.written_to);
    match found {
        Some(found) if found.id == copy && is_untouched(found) => Ok(()),
        _ => Err(refuse(
            Kind::InTheWay,
            format!("the copy `{name}` was written to, dropped or replaced since it was restored"),
        )),
    }
}

/// Refuses what cannot be rolled forward.
fn check_copy(plan: &TargetTable, found: Option<&Table>) -> Result<()> {
    let name = &plan.name;
    let in_the_way = |what: &str| Err(refuse(Kind::InTheWay, format!("`{name}` {what}")));
    let Some(table) = found else { return in_the_way("does not exist, nothing to roll forward") };
    let Some(copy) = &table.copy else { return in_the_way("is no restored copy") };
    if copy.written_to {
        return in_the_way("was written to since it was restored");
    }
    if table.digest_id != plan.digest_id {
        return in_the_way("is a copy of another table");
    }
    if table.cut != plan.shards {
        let message = format!("`{name}` is cut into other shards than the plan says");
        return Err(refuse(Kind::Usage, message));
    }
    Ok(())
}

impl Target for OwnDatabase {
    fn identity(&self) -> Result<String> {
        Ok(self.lock().identity.clone())
    }

    fn allocate_txn(&self) -> Result<Txn> {
        let mut store = self.lock();
        store.last_txn += 1;
        Ok(Txn(store.last_txn))
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        let store = self.lock();
        Ok(store.tables.get(name).map(|table| ExistingTable {
            id: table.id,
            digest_id: table.digest_id,
            schema: table.schema.clone(),
            shards: table.cut.clone(),
            rows: table.rows.len() as u64,
            copy: table.copy.clone(),
        }))
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        let mut store = self.lock();
        let prepared = match store.operation(fence)?.map(|found| &found.state) {
            Some(State::Published) => return Ok(()),
            Some(State::Discarded) => {
                let message = format!("operation {} was discarded", fence.operation);
                return Err(refuse(Kind::Fenced, message));
            }
            Some(State::Open(hidden) | State::Sealed(hidden)) => Some(hidden),
            None => None,
        };
        let mut missing = Vec::new();
        for plan in tables {
            match prepared.and_then(|hidden| hidden.get(&plan.name)) {
                Some(hidden) if hidden.plan == *plan => {}
                Some(_) => {
                    let message = format!("`{}` was prepared differently before", plan.name);
                    return Err(refuse(Kind::Usage, message));
                }
                None => missing.push(plan),
            }
        }
        if let Some(found) = store.operation(fence)? {
            let stays_sealed =
                matches!(found.state, State::Sealed(_)) && found.epoch == fence.epoch;
            if stays_sealed && !missing.is_empty() {
                let message = format!("operation {} takes no more tables", fence.operation);
                return Err(refuse(Kind::Usage, message));
            }
        }
        let check = |plan: &&TargetTable| store.check_name(fence.operation, plan);
        missing.iter().try_for_each(check)?;
        let made: Vec<Hidden> =
            missing.iter().map(|plan| store.make_hidden(plan)).collect::<Result<_>>()?;

        let opened = || Operation { epoch: fence.epoch, state: State::Open(BTreeMap::new()) };
        let operation = store.operations.entry(fence.operation).or_insert_with(opened);
        if fence.epoch > operation.epoch {
            operation.epoch = fence.epoch;
            if let State::Sealed(hidden) = &mut operation.state {
                operation.state = State::Open(std::mem::take(hidden));
            }
        }
        if let State::Open(hidden) | State::Sealed(hidden) = &mut operation.state {
            hidden.extend(made.into_iter().map(|made| (made.plan.name.clone(), made)));
        }
        Ok(())
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        Ok(self.lock().hidden_shard(shard)?.1.mark.clone())
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let mut store = self.lock();
        let current = match store.operation(fence)? {
            Some(found) => found.epoch == fence.epoch && matches!(found.state, State::Open(_)),
            None => false,
        };
        let (plan, stored) = store.hidden_shard(shard)?;
        if !current {
            let message = format!(
                "apply to shard {} of `{}`: epoch {} is not the one that holds it",
                shard.shard, shard.table, fence.epoch
            );
            return Err(refuse(Kind::Fenced, message));
        }
        let before = stored.mark.clone().unwrap_or_default();
        mark.check_follows(stored.mark.as_ref(), rows)?;
        rows.check_inside(&plan.shards[shard.shard.0 as usize])?;

        mark.ranges = before.ranges;
        let mut hasher = RowHasher::new(plan.digest_id);
        let mut changes: Vec<(&[u8], Option<Vec<u8>>)> = Vec::with_capacity(rows.len());
        for row in rows.iter() {
            let old = stored.rows.get(row.key);
            let new = match row.op {
                ChangeOp::Upsert => Some(row.payload.to_vec()),
                ChangeOp::Delete => None,
                ChangeOp::Update => Some(overlaid(row, old)?),
            };
            let mut digest = |payload: &Vec<u8>| hasher.row(row.key, payload);
            mark.account(row.key, old.map(&mut digest), new.as_ref().map(&mut digest));
            changes.push((row.key, new));
        }
        // Nothing above changed anything, nothing below can fail: that is the transaction.
        for (key, new) in changes {
            match new {
                Some(payload) => stored.rows.insert(key.to_vec(), payload),
                None => stored.rows.remove(key),
            };
        }
        stored.mark = Some(mark.clone());
        Ok(())
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        let mut store = self.lock();
        let Some(operation) = store.operation(fence)? else { return Err(unprepared(fence)) };
        match &mut operation.state {
            State::Open(hidden) | State::Sealed(hidden) => {
                operation.state = State::Sealed(std::mem::take(hidden));
            }
            State::Published => {}
            State::Discarded => return Err(discarded(fence)),
        }
        operation.epoch = fence.epoch;
        Ok(())
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let rows = self.lock().hidden_shard(shard)?.1.rows.clone();
        Ok(Box::new(RowsStream { rest: upserts(rows) }))
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        let mut store = self.lock();
        let hidden = match store.operation(fence)? {
            None => return Err(unprepared(fence)),
            Some(Operation { state: State::Published, .. }) => return Ok(()),
            Some(Operation { state: State::Discarded, .. }) => return Err(discarded(fence)),
            Some(found) if found.epoch != fence.epoch => {
                let message = format!("publish: epoch {} was never claimed", fence.epoch);
                return Err(refuse(Kind::Fenced, message));
            }
            Some(Operation { state: State::Open(_), .. }) => {
                let message = format!("publish: operation {} is not sealed", fence.operation);
                return Err(refuse(Kind::Usage, message));
            }
            Some(Operation { state: State::Sealed(hidden), .. }) => &*hidden,
        };
        let plans: Vec<(TargetTable, Option<TableId>)> =
            hidden.values().map(|hidden| (hidden.plan.clone(), hidden.base)).collect();
        for (plan, base) in &plans {
            store.check_name(fence.operation, plan)?;
            if base.is_some() && store.tables.get(&plan.name).map(|found| found.id) != *base {
                let message = format!("`{}` was replaced meanwhile", plan.name);
                return Err(refuse(Kind::InTheWay, message));
            }
            let is_visible = |found: &Table| found.copy.as_ref().is_none_or(|copy| !copy.held);
            if how == Publish::Held && store.tables.get(&plan.name).is_some_and(is_visible) {
                let message = format!("`{}` is visible and would be hidden", plan.name);
                return Err(refuse(Kind::InTheWay, message));
            }
        }
        // Every name is checked: from here on all of them change, or the lock is never let go.
        let (id, held) = (fence.operation, how == Publish::Held);
        let Some(operation) = store.operations.get_mut(&id) else { return Err(unprepared(fence)) };
        let done = std::mem::replace(&mut operation.state, State::Published);
        if let State::Sealed(hidden) = done {
            for (name, hidden) in hidden {
                let table = store.publish_one(hidden, held);
                store.tables.insert(name, table);
            }
        }
        Ok(())
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        let mut store = self.lock();
        if let Some(Operation { state: State::Published, .. }) = store.operation(fence)? {
            let message =
                format!("discard: operation {} has published its tables", fence.operation);
            return Err(refuse(Kind::Usage, message));
        }
        let gone = Operation { epoch: fence.epoch, state: State::Discarded };
        store.operations.insert(fence.operation, gone);
        Ok(())
    }
}

fn unprepared(fence: Fence) -> Error {
    refuse(Kind::NotFound, format!("operation {} prepared nothing here", fence.operation))
}

fn discarded(fence: Fence) -> Error {
    refuse(Kind::Fenced, format!("operation {} was discarded", fence.operation))
}

impl Store {
    fn publish_one(&mut self, hidden: Hidden, held: bool) -> Table {
        let id = self.next_table_id();
        Table {
            id,
            digest_id: hidden.plan.digest_id,
            schema: hidden.plan.schema,
            cut: hidden.plan.shards,
            rows: hidden.shards.into_iter().flat_map(|shard| shard.rows).collect(),
            changed: BTreeMap::new(),
            since: self.now(),
            copy: Some(CopyState { origin: hidden.plan.origin, held, written_to: false }),
        }
    }
}

/// The stored row with the columns that an update changes.
fn overlaid(row: RowRef<'_>, old: Option<&Vec<u8>>) -> Result<Vec<u8>> {
    let old = old.ok_or_else(|| {
        let digits: String = row.key.iter().map(|byte| format!("{byte:02x}")).collect();
        refuse(Kind::Broken, format!("an update of key {digits} finds no row"))
    })?;
    let mut whole = Vec::new();
    payload::overlay(row.payload, old, &mut whole)?;
    Ok(whole)
}

type Changes = std::collections::btree_map::IntoIter<Vec<u8>, Option<Vec<u8>>>;

fn upserts(rows: Rows) -> Changes {
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(key, row)| (key, Some(row))).collect();
    rows.into_iter()
}

/// Rows and deletes out of a map, a batch at a time.
struct RowsStream {
    rest: Changes,
}

/// Rows of one batch; real drivers bound bytes.
const BATCH_ROWS: usize = 256;

impl RowStream for RowsStream {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        for (key, row) in self.rest.by_ref().take(BATCH_ROWS) {
            let op = if row.is_some() { ChangeOp::Upsert } else { ChangeOp::Delete };
            batch.push(RowRef { key: &key, op, payload: row.as_deref().unwrap_or_default() });
        }
        Ok(!batch.is_empty())
    }
}

impl Source for OwnDatabase {
    fn identity(&self) -> Result<String> {
        Target::identity(self)
    }

    fn snapshot(&self, _: CollectionId) -> Result<Arc<dyn Snapshot>> {
        let mut store = self.lock();
        store.cuts += 1;
        let tables: Vec<(SourceTable, Table)> = store
            .tables
            .iter()
            .filter(|(_, table)| table.copy.as_ref().is_none_or(|copy| !copy.held))
            .map(|(name, table)| (source_table(name, table), table.clone()))
            .collect();
        let (tables, contents) = tables.into_iter().unzip();
        Ok(Arc::new(OwnSnapshot { position: Position(store.cuts), tables, contents }))
    }

    fn advance(&self, _: CollectionId, _: Position) -> Result<()> {
        // One entry per key is kept for ever, so there is nothing to let go.
        Ok(())
    }
}

fn source_table(name: &TableName, table: &Table) -> SourceTable {
    let shards = table.cut.iter().map(|range| {
        let inside = || table.rows.iter().filter(|(key, _)| range.contains(key));
        SourceShard {
            range: range.clone(),
            rows: inside().count() as u64,
            bytes: inside().map(|(key, row)| (key.len() + row.len()) as u64).sum(),
        }
    });
    let mut hasher = RowHasher::new(table.digest_id);
    SourceTable {
        id: table.id,
        digest_id: table.digest_id,
        name: name.clone(),
        schema: table.schema.clone(),
        shards: shards.collect(),
        digest: Some(table.rows.iter().map(|(key, row)| hasher.row(key, row)).sum()),
        structure: None,
    }
}

/// A cut is a copy of everything.
#[derive(Debug)]
struct OwnSnapshot {
    position: Position,
    tables: Vec<SourceTable>,
    contents: Vec<Table>,
}

impl Snapshot for OwnSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    fn tables(&self) -> &[SourceTable] {
        &self.tables
    }

    fn scan<'a>(&'a self, table: usize, range: &KeyRange) -> Result<Box<dyn RowStream + 'a>> {
        let mut rows = self.contents[table].rows.clone();
        rows.retain(|key, _| range.contains(key));
        Ok(Box::new(RowsStream { rest: upserts(rows) }))
    }

    fn delta(&self, table: usize, parent: &ParentTable) -> Result<Delta> {
        let table = &self.contents[table];
        if table.id != parent.id || table.since > parent.position {
            return Ok(Delta::Whole { reason: "it was created after the parent".to_owned() });
        }
        let later = table.changed.values().filter(|at| **at > parent.position).count();
        Ok(Delta::Known { rows: later as u64, bytes: 0 })
    }

    fn changes<'a>(
        &'a self,
        table: usize,
        range: &KeyRange,
        from: Position,
    ) -> Result<Box<dyn RowStream + 'a>> {
        let table = &self.contents[table];
        let changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = table
            .changed
            .iter()
            .filter(|(key, at)| **at > from && range.contains(key))
            .map(|(key, _)| (key.clone(), table.rows.get(key).cloned()))
            .collect();
        Ok(Box::new(RowsStream { rest: changes.into_iter() }))
    }
}

/// Restores two rows into a hidden table, is killed in between, and publishes.
#[expect(clippy::print_stdout, reason = "an example prints what it does")]
fn main() -> Result<()> {
    let database = OwnDatabase::new("an example in memory");
    let columns = [("id", LogicalType::Int64), ("city", LogicalType::Text)];
    let schema = Schema::new(&columns, &["id"])?;
    let codec = RowCodec::new(&schema);
    let name = TableName::parse("cities").map_err(|text| Error::new(Kind::Usage, text))?;
    let table = TargetTable {
        name: name.clone(),
        id: TableId(1),
        digest_id: TableId(1),
        schema,
        shards: vec![KeyRange::ALL],
        disposition: Disposition::Fresh,
        origin: Origin { collection: CollectionId(1), manifest: "0".repeat(64) },
        structure: None,
    };
    let operation = OperationId(1);
    let shard = TargetShard { operation, table: name.clone(), shard: ShardIdx(0) };
    let tables = [table];

    // A table of somebody else has the name: nothing is touched until it is gone.
    database.create_table(&name, &tables[0].schema)?;
    database.write(&name, &RowBatch::new())?;
    if let Err(error) = database.prepare(Fence { operation, epoch: Epoch(1) }, &tables) {
        println!("refused: {error}");
    }
    database.drop_table(&name)?;

    // The first holder applies one chunk and dies; the second carries on from the mark.
    for (epoch, id, city) in [(1, 1, "Berlin"), (2, 2, "Lima")] {
        let fence = Fence { operation, epoch: Epoch(epoch) };
        database.prepare(fence, &tables)?;
        let stored = database.mark(&shard)?;
        println!(
            "epoch {epoch}: the shard stands at {} rows",
            stored.as_ref().map_or(0, |mark| mark.rows)
        );
        let row = [Value::Int64(id), Value::Text(city.to_owned())];
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        codec.encode_key(&row, &mut key)?;
        codec.encode_payload(&row, &mut payload)?;
        let mut chunk = RowBatch::new();
        chunk.push(RowRef { key: &key, op: ChangeOp::Upsert, payload: &payload });
        let mut mark = stored.unwrap_or_default();
        mark.rows += 1;
        mark.bytes += chunk.byte_count();
        mark.last_key = Some(key);
        database.apply(fence, &shard, &chunk, &mut mark)?;
        println!("epoch {epoch}: applied {city}, digest {}", mark.digest());
    }

    let (stale, current) =
        (Fence { operation, epoch: Epoch(1) }, Fence { operation, epoch: Epoch(2) });
    if let Err(error) = database.seal(stale) {
        println!("the first holder wakes up and is refused: {error}");
    }
    database.seal(current)?;
    println!("readers before publishing: {:?}", database.rows(&name).map(|rows| rows.len()));
    database.publish(current, Publish::Visible)?;
    println!("readers after publishing: {:?}", database.rows(&name).map(|rows| rows.len()));
    Ok(())
}
