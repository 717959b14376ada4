//! PostgreSQL as a [`Source`] of backups.
//!
//! Every cut is a snapshot that several sessions share. With a replication slot for the
//! collection, made by [`set_up`](super::setup::set_up), its position is an exact place in the
//! log, and increments carry what the slot tells between two of them. Without one it can be
//! read all the same, as a full backup does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::database::postgres::capture::{Evidence, Snapped, identity_flaw, snapped, sql_name};
use crate::database::postgres::catalog::{self, DatabaseFacts, TableFacts, Which};
use crate::database::postgres::changes::{
    CUT_PREFIX, ChangeReader, ChangedTable, ReadChanges, SLICE_BYTES, Slices, Span,
    WORDS_VERSION_MIN, read_slot,
};
use crate::database::postgres::collapse::{CollapsedRows, RowState};
use crate::database::postgres::cut::{CutBy, CutSessions, lock};
use crate::database::postgres::error::{Refused, failed};
use crate::database::postgres::pgoutput::Lsn;
use crate::database::postgres::replication::show_lsn;
use crate::database::postgres::scan::{ScannedTable, scan};
use crate::database::postgres::slot::{self, SlotCopy, SlotFacts, capture_name};
use crate::database::postgres::types::RowReader;
use crate::database::postgres::types::read::Tuples;
use crate::database::postgres::{Purpose, Server};
use crate::database::scratch::{Scratch, remove_dead_scratch};
use crate::database::{Delta, ParentTable, Snapshot, Source, SourceShard, SourceTable};
use crate::env::{Env, make_folder};
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, CutId, Position, TableName};
use crate::row::digest::RowHasher;
use crate::row::{ChangeOp, Digest, KeyRange, RowBatch, RowRef, RowStream, Schema};

/// Bytes of a table that one worker reads; a large table is cut into so many.
const SHARD_BYTES: u64 = 64 << 20;
const SHARDS_MAX: u64 = 256;

/// Pages whose keys are looked at for each range of a table: rows of one page are neighbours
/// more often than not, so few pages tell little however many rows they have.
const PAGES_PER_SHARD: u64 = 20;
const PAGE_BYTES: u64 = 8192;

/// How often a cut is taken again because a table changed its form in that moment.
const CUT_TRIES: u32 = 5;

/// Bytes of a row that nobody counted yet.
const ROW_BYTES_GUESSED: u64 = 100;

/// Rows whose bases are fetched at once.
const FETCHED_ROWS_MAX: usize = 500;

/// Threads that read for digests: each decodes and hashes what one session of the server sends.
const ATTESTING_THREADS: usize = 2;

/// How long a cut waits for transactions that have written, if nobody says otherwise.
pub const CUT_WAIT_DEFAULT: Duration = Duration::from_secs(60);

/// What can be chosen about a [`PostgresSource`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Folder for what does not fit into memory; made when it is missing.
    pub scratch: PathBuf,
    /// How long a cut waits for transactions that have written.
    pub cut_wait: Duration,
    /// Bytes of a table that one worker reads.
    pub shard_bytes: u64,
    /// Bytes of the log that one read covers at least: the server keeps what a read gives in
    /// temporary files until it was sent.
    pub slice_bytes: u64,
    /// Whether every cut reads all rows once more, for the digests of its tables.
    pub attests: bool,
}

impl SourceOptions {
    /// The usual ones, with that scratch folder.
    pub fn new(scratch: PathBuf) -> SourceOptions {
        SourceOptions {
            scratch,
            cut_wait: CUT_WAIT_DEFAULT,
            shard_bytes: SHARD_BYTES,
            slice_bytes: SLICE_BYTES,
            attests: false,
        }
    }
}

/// A database of a PostgreSQL server that can be backed up.
#[derive(Debug)]
pub struct PostgresSource {
    server: Server,
    database: DatabaseFacts,
    options: SourceOptions,
    env: Arc<dyn Env>,
}

impl PostgresSource {
    /// Connects and looks which database it is.
    ///
    /// # Errors
    /// As [`Server::connect`]; those of making the scratch folder.
    pub fn open(
        server: Server,
        options: SourceOptions,
        env: Arc<dyn Env>,
    ) -> Result<PostgresSource> {
        let mut session = server.connect(Purpose::Read)?;
        let database = catalog::database(&mut session)?;
        make_folder(&options.scratch).map_err(|cause| {
            Error::io(format!("make the folder `{}`", options.scratch.display()), cause)
        })?;
        remove_dead_scratch(&options.scratch)?;
        Ok(PostgresSource { server, database, options, env })
    }

    /// The tables and schemas that a backup would be of now, sorted by name.
    ///
    /// # Errors
    /// As [`failed`] says.
    pub fn tables(&self) -> Result<Vec<(TableName, Schema)>> {
        let mut session = self.server.connect(Purpose::Read)?;
        let tables = catalog::tables(session.client(), Which::OfUsers)?;
        let carried = tables.into_iter().filter(is_carried);
        carried.map(|facts| Ok((facts.name.clone(), facts.schema()?))).collect()
    }

    fn cut(
        &self,
        name: &str,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<PostgresSnapshot> {
        let capture = self.capture_now(name)?;
        let by = match &capture {
            Capture::Slot(_) => CutBy::Slot { wait: self.options.cut_wait },
            Capture::Flawed(_) | Capture::None => CutBy::Look,
        };
        let scratch = self.options.scratch.clone();
        let (sessions, position) = CutSessions::begin(&self.server, by, scratch, &self.env)?;
        let cut = CutTables::read(&sessions, name, selects)?;
        let is_captured = matches!(capture, Capture::Slot(_));
        let id = if is_captured { self.leave_word()? } else { None };
        let slot = is_captured.then(|| name.to_owned());
        let mut tables = Vec::with_capacity(cut.tables.len());
        let mut details = Vec::with_capacity(cut.tables.len());
        for (facts, snapped) in cut.tables {
            let detail = TableDetail::new(&facts, snapped)?;
            let evidence = Evidence {
                slot: slot.clone(),
                timeline: cut.timeline,
                published: detail.snapped.published.clone(),
                file_node: detail.snapped.file_node,
                attributes: detail.snapped.attributes.clone(),
            };
            let mut structure = facts.structure.carried();
            evidence.put(&mut structure);
            let id = self.database.table_id(facts.oid);
            tables.push(SourceTable {
                id,
                digest_id: id,
                name: facts.name.clone(),
                schema: detail.scanned.schema.clone(),
                shards: self.shards(&sessions, &facts, &detail.scanned)?,
                digest: None,
                structure: Some(structure),
            });
            details.push(TableDetail { evidence, ..detail });
        }
        let sessions = Arc::new(sessions);
        if self.options.attests {
            attest(&sessions, &mut tables, &details)?;
        }
        Ok(PostgresSnapshot {
            sessions,
            server: self.server.clone(),
            database: self.database.clone(),
            name: name.to_owned(),
            capture,
            position,
            slice_bytes: self.options.slice_bytes,
            id,
            parent_id: Mutex::default(),
            tables,
            details,
            table_names: cut.names,
            random: self.env.random(),
            changes: Mutex::default(),
        })
    }

    /// Names a cut in the log right behind it, durably; `None` where slots do not tell of it.
    ///
    /// Positions repeat in a server that was set back to older files, or in a copy of them. An
    /// increment that does not find its parent's cut in the log builds on another's history.
    fn leave_word(&self) -> Result<Option<CutId>> {
        let mut session = self.server.connect(Purpose::Write)?;
        if session.version() < WORDS_VERSION_MIN {
            return Ok(None);
        }
        let id = CutId(self.env.random_id());
        let sql = "SELECT pg_logical_emit_message(true, $1::text, $2::text)";
        let what = "name the cut in the server's log";
        session.client().execute(sql, &[&CUT_PREFIX, &id.to_string()]).map_err(failed(what))?;
        Ok(Some(id))
    }

    /// Whether changes are captured for the collection now.
    fn capture_now(&self, name: &str) -> Result<Capture> {
        let mut session = self.server.connect(Purpose::Read)?;
        Ok(match SlotFacts::read(&mut session, name)? {
            None => Capture::None,
            Some(slot) => match slot.flaw(&self.database.name) {
                Some(flaw) => Capture::Flawed(flaw),
                None => Capture::Slot(slot),
            },
        })
    }

    /// Ranges of about as many bytes each.
    fn shards(
        &self,
        sessions: &CutSessions,
        facts: &TableFacts,
        table: &Arc<ScannedTable>,
    ) -> Result<Vec<SourceShard>> {
        let rows = match facts.rows_estimated {
            rows if rows >= 0.0 => rows as u64,
            _ => facts.bytes / ROW_BYTES_GUESSED,
        };
        let count = (facts.bytes / self.options.shard_bytes.max(1)).clamp(1, SHARDS_MAX);
        let splits = match table.is_ordered_by_server() {
            true if count > 1 => sample_splits(sessions, table, count, facts.bytes)?,
            _ => Vec::new(),
        };
        let ranges = KeyRange::between(&splits);
        let share = |whole: u64| whole / ranges.len() as u64;
        let (rows, bytes) = (share(rows), share(facts.bytes));
        Ok(ranges.into_iter().map(|range| SourceShard { range, rows, bytes }).collect())
    }
}

/// Whether a backup has the table: its own rows, stored in it.
fn is_carried(facts: &TableFacts) -> bool {
    facts.kind == 'r'
}

impl Source for PostgresSource {
    fn identity(&self) -> Result<String> {
        Ok(self.database.identity())
    }

    fn snapshot(&self, collection: CollectionId) -> Result<Arc<dyn Snapshot>> {
        self.snapshot_of(collection, &mut |_| true)
    }

    fn snapshot_of(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<Arc<dyn Snapshot>> {
        let name = capture_name(collection);
        let mut tries = 1;
        loop {
            match self.cut(&name, selects) {
                Err(error) if error.is_reshaped() && tries < CUT_TRIES => tries += 1,
                cut => {
                    return Ok(Arc::new(cut.map_err(|error| {
                        error.context(format!("take a cut of `{}`", self.server.shown()))
                    })?));
                }
            }
        }
    }

    fn advance(&self, collection: CollectionId, to: Position) -> Result<()> {
        let mut session = self.server.connect(Purpose::Read)?;
        slot::advance(&mut session, &capture_name(collection), to.0)
    }
}

/// A table of this name changed its form between the snapshot and the lock.
#[derive(Debug)]
struct Reshaped;

impl std::fmt::Display for Reshaped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it is another table now than in the snapshot")
    }
}

impl std::error::Error for Reshaped {}

impl Error {
    fn is_reshaped(&self) -> bool {
        std::error::Error::source(self).is_some_and(|cause| cause.is::<Reshaped>())
    }
}

fn reshaped(name: &TableName) -> Error {
    let message = format!("table `{name}` was dropped or rewritten while the cut was taken");
    Error::with_source(Kind::Transient, message, Reshaped)
}

/// The tables at the moment of a snapshot.
struct CutTables {
    tables: Vec<(TableFacts, Snapped)>,
    names: Vec<TableName>,
    timeline: i32,
}

impl CutTables {
    /// Reads which tables there are, and keeps those that are selected as they are.
    ///
    /// A table that is truncated or rewritten after a snapshot looks empty to it. So each is
    /// locked against that, as `pg_dump` does it, and must then still be the one of the
    /// snapshot.
    fn read(
        sessions: &CutSessions,
        publication: &str,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<CutTables> {
        let mut holder = sessions.holder();
        let client = holder.client();
        let facts = catalog::tables(client, Which::OfUsers)?;
        let names: Vec<TableName> = facts.iter().map(|facts| facts.name.clone()).collect();
        let selected: Vec<TableFacts> =
            facts.into_iter().filter(|facts| is_carried(facts) && selects(&facts.name)).collect();
        let what = "keep the tables as they are";
        for facts in &selected {
            let sql = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", sql_name(facts));
            client.batch_execute(&sql).map_err(failed(what)).map_err(
                |error| match Refused::code_of(&error) {
                    Some("42P01" | "3F000") => reshaped(&facts.name),
                    _ => error.context(format!("table `{}`", facts.name)),
                },
            )?;
        }
        let snapped = snapped(client, publication)?;
        // What the catalogs say of the locked tables now.
        let sql = "SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0)::oid FROM pg_class c \
                   WHERE c.relkind = 'r'";
        let rows = client.query(sql, &[]).map_err(failed(what))?;
        let now: BTreeMap<u32, u32> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let timeline = client
            .query_one("SELECT timeline_id FROM pg_control_checkpoint()", &[])
            .map_err(failed("ask for the timeline"))?
            .get(0);
        // Again, now that nothing changes any more: some of it is not of the snapshot.
        let facts = catalog::tables(client, Which::OfUsers)?;
        let mut by_oid: BTreeMap<u32, TableFacts> =
            facts.into_iter().map(|facts| (facts.oid, facts)).collect();
        let mut tables = Vec::with_capacity(selected.len());
        for table in selected {
            let facts = by_oid.remove(&table.oid).ok_or_else(|| reshaped(&table.name))?;
            let snapped = snapped.get(&table.oid).cloned().unwrap_or_default();
            if now.get(&table.oid) != Some(&snapped.file_node) || facts.name != table.name {
                return Err(reshaped(&table.name));
            }
            tables.push((facts, snapped));
        }
        Ok(CutTables { tables, names, timeline })
    }
}

/// How much of a table of `bytes` is looked at to cut it into `count` ranges.
fn sampled_percent(count: u64, bytes: u64) -> f64 {
    let pages = (bytes / PAGE_BYTES).max(1);
    ((count * PAGES_PER_SHARD) as f64 * 100.0 / pages as f64).min(100.0)
}

/// Keys that cut a table into about equal ranges; fewer where keys repeat.
fn sample_splits(
    sessions: &CutSessions,
    table: &Arc<ScannedTable>,
    count: u64,
    bytes: u64,
) -> Result<Vec<Vec<u8>>> {
    let percent = sampled_percent(count, bytes);
    let key: Vec<_> = table.key().cloned().collect();
    let selected: Vec<String> = key.iter().map(|native| native.selected()).collect();
    let sql = format!(
        "COPY (SELECT {} FROM ONLY {} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (7)) TO STDOUT \
         (FORMAT binary)",
        selected.join(", "),
        table.name
    );
    let key_schema = Schema {
        columns: table.schema.key_columns().cloned().collect(),
        key: table.schema.key.clone(),
        next_column_id: table.schema.next_column_id,
    };
    let reader = RowReader::new(&key_schema, &key);
    let mut holder = sessions.holder();
    let output = holder
        .client()
        .copy_out(&sql)
        .map_err(failed(&format!("look at some keys of {}", table.name)))?;
    let mut tuples = Tuples::new(output);
    let mut keys = Vec::new();
    while tuples.next()? {
        let mut key = Vec::new();
        reader.key(&tuples, &mut key)?;
        keys.push(key);
    }
    keys.sort_unstable();
    keys.dedup();
    let split = |at: u64| keys.get((keys.len() as u64 * at / count) as usize).cloned();
    let mut splits: Vec<Vec<u8>> = (1..count).filter_map(split).collect();
    splits.dedup();
    Ok(splits)
}

/// Reads every row of the cut for the digests of its tables.
fn attest(
    sessions: &Arc<CutSessions>,
    tables: &mut [SourceTable],
    details: &[TableDetail],
) -> Result<()> {
    let ranges: Vec<(usize, &SourceShard)> = (0..)
        .zip(tables.iter())
        .flat_map(|(at, table)| table.shards.iter().map(move |shard| (at, shard)))
        .filter(|(at, _)| !tables[*at].schema.key.is_empty())
        .collect();
    let next = AtomicUsize::new(0);
    let read = || -> Result<BTreeMap<usize, Digest>> {
        let mut digests = BTreeMap::new();
        while let Some((at, shard)) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut hasher = RowHasher::new(tables[*at].digest_id);
            let mut rows = scan(sessions, &details[*at].scanned, &shard.range);
            let mut batch = RowBatch::new();
            let digest: &mut Digest = digests.entry(*at).or_default();
            while rows.next_batch(&mut batch)? {
                batch.iter().for_each(|row| *digest += hasher.row(row.key, row.payload));
            }
        }
        Ok(digests)
    };
    let readers: Vec<Result<BTreeMap<usize, Digest>>> = std::thread::scope(|threads| {
        let readers: Vec<_> = (0..ATTESTING_THREADS).map(|_| threads.spawn(read)).collect();
        let joined = readers.into_iter().map(|reader| reader.join());
        joined.map(|read| read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut sums = vec![Digest::default(); tables.len()];
    for digests in readers {
        digests?.into_iter().for_each(|(at, digest)| sums[at] += digest);
    }
    for (table, sum) in tables.iter_mut().zip(sums) {
        table.digest = (!table.schema.key.is_empty()).then_some(sum);
    }
    Ok(())
}

/// Whether changes are kept for a collection.
#[derive(Debug)]
enum Capture {
    /// By this slot.
    Slot(SlotFacts),
    /// There is a slot, and this is wrong with it.
    Flawed(String),
    /// There is no slot.
    None,
}

/// What is needed of a table beside what a [`SourceTable`] tells.
#[derive(Debug)]
struct TableDetail {
    oid: u32,
    scanned: Arc<ScannedTable>,
    snapped: Snapped,
    evidence: Evidence,
    identity_flaw: Option<&'static str>,
}

impl TableDetail {
    fn new(facts: &TableFacts, snapped: Snapped) -> Result<TableDetail> {
        let schema = facts.schema()?;
        let natives = facts.natives(&schema)?;
        let scanned = ScannedTable { name: sql_name(facts), schema, natives };
        let evidence = Evidence {
            slot: None,
            timeline: 0,
            published: None,
            file_node: 0,
            attributes: Vec::new(),
        };
        Ok(TableDetail {
            oid: facts.oid,
            scanned: Arc::new(scanned),
            snapped,
            evidence,
            identity_flaw: identity_flaw(facts),
        })
    }
}

/// One cut of a database.
#[derive(Debug)]
struct PostgresSnapshot {
    sessions: Arc<CutSessions>,
    server: Server,
    database: DatabaseFacts,
    /// Of the slot and the publication.
    name: String,
    capture: Capture,
    position: Lsn,
    /// See [`SourceOptions::slice_bytes`].
    slice_bytes: u64,
    /// Its name in the log.
    id: Option<CutId>,
    /// That of the parent's cut, which the slot must tell of.
    parent_id: Mutex<Option<CutId>>,
    tables: Vec<SourceTable>,
    details: Vec<TableDetail>,
    table_names: Vec<TableName>,
    random: u64,
    /// What the slot told since a position.
    changes: Mutex<Option<(Lsn, Arc<KeptChanges>)>>,
}

/// Changes, and the folder that they lie in.
#[derive(Debug)]
struct KeptChanges {
    read: ReadChanges,
    _scratch: Scratch,
}

impl PostgresSnapshot {
    fn detail(&self, table: usize) -> Result<&TableDetail> {
        self.details.get(table).ok_or_else(|| {
            let message =
                format!("the cut has {} tables, number {table} was asked", self.tables.len());
            Error::new(Kind::Usage, message)
        })
    }

    /// The slot that the increment from `from` is read from.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is none; [`Kind::Broken`] when it cannot tell the changes
    /// since `from` any more. Both with what to do.
    fn slot_since(&self, from: Lsn) -> Result<&SlotFacts> {
        let full = "take a new full backup (--full); every restore point that is there can still \
                    be restored";
        let slot = match &self.capture {
            Capture::Slot(slot) => slot,
            Capture::Flawed(flaw) => {
                let message = format!(
                    "the replication slot `{}` cannot tell what changed: {flaw}. Remove it with \
                     `tidemark source drop`, make another with `tidemark source setup`, and {full}",
                    self.name
                );
                return Err(Error::new(Kind::Broken, message));
            }
            Capture::None if self.database.is_standby => {
                let message = "an increment cannot be taken from a standby; take it from the \
                               primary. A full backup (--full) of a standby is possible";
                return Err(Error::new(Kind::Usage, message));
            }
            Capture::None => {
                let message = format!(
                    "an increment needs a replication slot that keeps changes, and there is none \
                     for this collection (`{}`); `tidemark source setup` makes one. A full backup \
                     (--full) needs none",
                    self.name
                );
                return Err(Error::new(Kind::Usage, message));
            }
        };
        match slot.confirmed {
            Some(confirmed) if confirmed <= from => Ok(slot),
            confirmed => {
                let message = format!(
                    "the replication slot `{}` stands at {}, beyond the parent's cut at {}: \
                     somebody moved it or made it anew, and what changed in between is not told \
                     any more; {full}",
                    self.name,
                    show_lsn(confirmed.unwrap_or(0)),
                    show_lsn(from)
                );
                Err(Error::new(Kind::Broken, message))
            }
        }
    }

    /// What the slot tells between `from` and the cut; read once.
    fn changes_since(&self, from: Lsn) -> Result<Arc<KeptChanges>> {
        let mut changes = lock(&self.changes);
        if let Some((since, read)) = &*changes
            && *since == from
        {
            return Ok(Arc::clone(read));
        }
        let slot = self.slot_since(from)?;
        let tables: Option<Vec<ChangedTable>> = self
            .details
            .iter()
            .map(|detail| {
                let table = &detail.scanned;
                let attributes = &detail.snapped.attributes;
                ChangedTable::new(detail.oid, &table.schema, &table.natives, attributes)
            })
            .collect();
        let tables = tables.ok_or_else(|| {
            Error::new(Kind::Transient, "a table was altered while the cut was taken")
        })?;
        let scratch = self.sessions.scratch()?;
        let span = Span { from, to: self.position };
        let mut reader = ChangeReader::new(span, &tables, scratch.dir());
        if let Some(parent) = *lock(&self.parent_id) {
            reader = reader.looking_for(parent);
        }
        let mut copy = SlotCopy::create(&self.server, &self.name, self.random)?;
        let begins_at = slot.confirmed.unwrap_or(from);
        let slices = Slices { begins_at, bytes_min: self.slice_bytes };
        read_slot(&mut copy, &self.name, slices, &mut reader)?;
        if !reader.has_found() {
            let message = format!(
                "the parent's cut at {} is not in the past of this server: it was set back to \
                 older files since, or is a copy that went its own way. What changed since cannot \
                 be told; take a new full backup (--full). Every restore point that is there can \
                 still be restored",
                show_lsn(from)
            );
            return Err(Error::new(Kind::Broken, message));
        }
        let read = Arc::new(KeptChanges { read: reader.finish()?, _scratch: scratch });
        *changes = Some((from, Arc::clone(&read)));
        Ok(read)
    }
}

impl Snapshot for PostgresSnapshot {
    fn position(&self) -> Position {
        Position(self.position)
    }

    fn cut_id(&self) -> Option<CutId> {
        self.id
    }

    /// Told later, by [`delta`](Self::delta): the slot has to be read for it.
    fn is_after(&self, _: Position, cut: CutId) -> Result<bool> {
        *lock(&self.parent_id) = Some(cut);
        Ok(true)
    }

    fn tables(&self) -> &[SourceTable] {
        &self.tables
    }

    fn table_names(&self) -> Vec<TableName> {
        self.table_names.clone()
    }

    fn scan<'a>(&'a self, table: usize, range: &KeyRange) -> Result<Box<dyn RowStream + 'a>> {
        Ok(scan(&self.sessions, &self.detail(table)?.scanned, range))
    }

    fn delta(&self, table: usize, parent: &ParentTable) -> Result<Delta> {
        let whole = |reason: &str| Ok(Delta::Whole { reason: reason.to_owned() });
        let detail = self.detail(table)?;
        let from = parent.position.0;
        let before = Evidence::of(parent.structure.as_ref());
        if let (Capture::Slot(_), Some(flaw)) = (&self.capture, detail.identity_flaw) {
            return whole(flaw);
        }
        // A parent that was never captured is no broken chain; this increment begins one.
        let gap = match &before {
            None => Some("what its parent was is not known"),
            Some(before) => detail.evidence.gap_since(before),
        };
        let was_captured = before.is_some_and(|before| before.slot.as_deref() == Some(&self.name));
        if was_captured || !matches!(self.capture, Capture::Slot(_)) {
            self.slot_since(from)?;
        }
        if let Some(reason) = &detail.snapped.unpublished {
            return whole(reason);
        }
        if detail.snapped.published.is_none() && was_captured {
            return whole(&format!(
                "it is not in the publication `{}`; `tidemark source setup` adds it",
                self.name
            ));
        }
        if let Some(gap) = gap {
            return whole(gap);
        }
        if !parent.schema.same_key(&detail.scanned.schema) {
            return whole("its key columns changed after the parent");
        }
        if from >= self.position {
            return whole("the parent was taken after this cut");
        }
        let changes = self.changes_since(from)?;
        if let Some(gap) = changes.read.gap(table as u32) {
            return whole(gap);
        }
        let left = changes.read.collapsed.table(table as u32);
        Ok(Delta::Known { rows: left.rows, bytes: left.bytes })
    }

    fn changes<'a>(
        &'a self,
        table: usize,
        range: &KeyRange,
        from: Position,
    ) -> Result<Box<dyn RowStream + 'a>> {
        let detail = self.detail(table)?;
        let changes = self.changes_since(from.0)?;
        let rows = changes.read.collapsed.read(table as u32, range)?;
        Ok(Box::new(ChangeStream { snapshot: self, detail, rows, _changes: changes }))
    }
}

/// Changes of a range, with the rows that moved fetched from the cut.
struct ChangeStream<'a> {
    snapshot: &'a PostgresSnapshot,
    detail: &'a TableDetail,
    rows: CollapsedRows,
    _changes: Arc<KeptChanges>,
}

/// Rows and bytes after which a batch of changes is handed out.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: u64 = 512 << 10;

impl RowStream for ChangeStream<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        // Positions in the batch of rows whose values stand under another key.
        let mut moved = Vec::new();
        while batch.len() < BATCH_ROWS
            && batch.byte_count() < BATCH_BYTES
            && moved.len() < FETCHED_ROWS_MAX
            && self.rows.next(|state, key, payload| {
                let op = match state {
                    RowState::Upsert => ChangeOp::Upsert,
                    RowState::Update => ChangeOp::Update,
                    RowState::Delete => ChangeOp::Delete,
                    RowState::Moved => {
                        moved.push(batch.len());
                        ChangeOp::Upsert
                    }
                };
                batch.push(RowRef { key, op, payload });
            })?
        {}
        if !moved.is_empty() {
            *batch = self.with_fetched(batch, &moved)?;
        }
        Ok(!batch.is_empty())
    }
}

impl ChangeStream<'_> {
    /// The batch with the rows at `moved` as the cut has them.
    fn with_fetched(&self, batch: &RowBatch, moved: &[usize]) -> Result<RowBatch> {
        let table = &self.detail.scanned;
        let keys: Vec<&[u8]> = moved.iter().map(|at| batch.row(*at).key).collect();
        let sql = format!("COPY ({}) TO STDOUT (FORMAT binary)", table.query_of(&keys)?);
        let what = format!("read moved rows of {}", table.name);
        let mut session = self.snapshot.sessions.take()?;
        let mut fetched = RowBatch::new();
        {
            let reader = RowReader::new(&table.schema, &table.natives);
            let output = session.client().copy_out(&sql).map_err(failed(&what))?;
            let mut tuples = Tuples::new(output);
            while tuples.next()? {
                reader.push(&tuples, &mut fetched)?;
            }
        }
        self.snapshot.sessions.give_back(session);
        let by_key: BTreeMap<&[u8], &[u8]> = (0..fetched.len())
            .map(|at| fetched.row(at))
            .map(|row| (row.key, row.payload))
            .collect();
        let mut whole = RowBatch::new();
        let mut moved = moved.iter().copied().peekable();
        for (at, row) in (0..).zip(batch.iter()) {
            if moved.next_if_eq(&at).is_none() {
                whole.push(row);
                continue;
            }
            let payload = by_key.get(row.key).ok_or_else(|| {
                let message = format!(
                    "{what}: the slot tells of the row at key 0x{}, the cut does not have it",
                    crate::row::value::hex(row.key)
                );
                Error::new(Kind::Fatal, message)
            })?;
            whole.push(RowRef { payload, ..row });
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_pages_of_a_table_of_any_size_are_looked_at() {
        for bytes in [1u64 << 16, 1 << 25, 400 << 20, 1 << 34, 1 << 44] {
            let count = (bytes / SHARD_BYTES).clamp(1, SHARDS_MAX);
            let pages = bytes / PAGE_BYTES;
            let looked_at = sampled_percent(count, bytes) / 100.0 * pages as f64;
            let wanted = (count * PAGES_PER_SHARD).min(pages) as f64;
            assert!((looked_at - wanted).abs() < 1.0, "{bytes}: {looked_at} of {wanted}");
        }
    }
}
