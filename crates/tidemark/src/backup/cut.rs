//! One cut of the source, what each table of it carries, and the parts written from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use super::job::lock;
use super::parent::check_parent;
use crate::collection::chain::Pattern;
use crate::collection::manifest::{BackupKind, Manifest, PartEntry, TableEntry, TableMode};
use crate::collection::{Collection, NewBackup};
use crate::database::{Delta, ParentTable, Snapshot, Source, SourceTable};
use crate::env::{Env, WallTime};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::{Attempt, CutId, Position, ShardIdx, TableId, TableName};
use crate::operation::Work;
use crate::row::{KeyRange, RowStream, Schema};

/// What a cut is taken of.
pub(super) struct CutRequest<'r> {
    pub(super) source: &'r dyn Source,
    pub(super) collection: &'r Collection,
    pub(super) kind: BackupKind,
    pub(super) source_identity: &'r str,
    pub(super) tables: &'r [String],
    /// [`ResolvedBackup::mark`](super::ResolvedBackup::mark).
    pub(super) mark: &'r str,
    pub(super) env: &'r dyn Env,
}

/// One consistent cut, and the backup that is being made of it.
///
/// Nothing of it outlives the process but the objects it wrote, which are garbage unless a
/// log entry names them.
pub(super) struct Cut {
    pub(super) new: NewBackup,
    pub(super) parent_position: Option<Position>,
    pub(super) cut_at: WallTime,
    snapshot: Arc<dyn Snapshot>,
    tables: Vec<CutTable>,
    shards: Vec<CutShard>,
    gone: Vec<String>,
    /// In the names of the parts: of which operation they are, and that two cuts that chose
    /// one directory stay apart.
    ticket: String,
    written: Mutex<Written>,
}

/// One selected table.
struct CutTable {
    /// Position in the snapshot's tables.
    source: usize,
    /// Its entry in the manifest, without parts.
    entry: TableEntry,
}

/// One shard: a range of one table.
#[derive(Clone, Debug)]
pub(super) struct CutShard {
    /// Position in the cut's tables.
    pub(super) table: usize,
    /// Position in its table.
    pub(super) number: u32,
    pub(super) range: KeyRange,
    pub(super) planned: Work,
}

#[derive(Debug, Default)]
struct Written {
    shards: Vec<ShardParts>,
    /// Every object that was or may have been made, by path in the collection.
    objects: BTreeSet<String>,
    is_spent: bool,
}

/// The durable parts of one shard.
#[derive(Clone, Debug, Default)]
struct ShardParts {
    /// The latest attempt; only its parts are taken.
    attempt: Attempt,
    parts: Vec<PartEntry>,
    is_complete: bool,
}

/// Where an attempt of a shard begins.
#[derive(Clone, Debug)]
pub(super) struct ShardStart {
    /// Behind the parts that are durable already.
    pub(super) range: KeyRange,
    /// In those parts.
    pub(super) done: Work,
    pub(super) is_complete: bool,
}

impl Cut {
    /// Chooses the backup's place, takes the snapshot and decides what each table carries.
    /// Nothing is written.
    ///
    /// # Errors
    /// As [`Collection::begin_backup`] and [`Source::snapshot`]; [`Kind::Usage`] for a parent
    /// of another source or selection; [`Kind::Broken`] for a source that does not know its
    /// parent's cut; [`Kind::NotFound`] for a pattern that selects no table
    /// of a full; [`Kind::Unsupported`] for a table without a key.
    pub(super) fn take(request: &CutRequest<'_>) -> Result<Cut> {
        let new = request.collection.begin_backup(request.kind, request.env)?;
        let parent = parent_manifest(request, &new)?;
        failpoint::hit("backup.before_cut");
        let mut patterns = read_patterns(request.tables)?;
        let snapshot = request
            .source
            .snapshot_of(request.collection.id(), &mut |name| is_selected(&mut patterns, name))?;
        let cut_at = request.env.wall_time();
        failpoint::hit("backup.after_cut");
        if let Some(parent) = &parent {
            check_past(&*snapshot, parent)?;
        }

        let described: Vec<(&TableName, &Schema)> =
            snapshot.tables().iter().map(|table| (&table.name, &table.schema)).collect();
        let (selected, gone) = select(&described, request.tables)?;
        if request.kind == BackupKind::Full {
            refuse_gone(&gone, snapshot.table_names().iter())?;
        }
        let mut tables = Vec::with_capacity(selected.len());
        let mut shards = Vec::new();
        for source in selected {
            let table = &snapshot.tables()[source];
            let carried = carry(&*snapshot, source, table, parent.as_ref())?;
            cut_shards(table, &carried, tables.len(), &mut shards);
            tables.push(CutTable { source, entry: carried.into_entry(table) });
        }
        let written =
            Written { shards: vec![ShardParts::default(); shards.len()], ..Written::default() };
        Ok(Cut {
            new,
            parent_position: parent.map(|parent| parent.source.to),
            cut_at,
            snapshot,
            tables,
            shards,
            gone,
            ticket: format!("{}{:08x}", ticket_mark(request.mark), request.env.random() as u32),
            written: Mutex::new(written),
        })
    }

    /// What people should know of this cut.
    pub(super) fn notices(&self) -> Vec<String> {
        let whole = self.tables.iter().filter_map(|table| {
            let reason = table.entry.reason.as_ref()?;
            Some(format!("table `{}` is carried whole: {reason}", table.entry.name))
        });
        let gone = self.gone.iter();
        whole.chain(gone.map(|pattern| format!("`{pattern}` selects no table any more"))).collect()
    }

    /// Work of each shard, in order.
    pub(super) fn planned(&self) -> impl Iterator<Item = Work> {
        self.shards.iter().map(|shard| shard.planned)
    }

    pub(super) fn table_names(&self) -> Vec<TableName> {
        self.tables.iter().map(|table| table.entry.name.clone()).collect()
    }

    pub(super) fn shard(&self, shard: ShardIdx) -> Option<&CutShard> {
        self.shards.get(usize::try_from(shard.0).ok()?)
    }

    /// The entry of a table, without parts.
    pub(super) fn table(&self, table: usize) -> &TableEntry {
        &self.tables[table].entry
    }

    pub(super) fn position(&self) -> Position {
        self.snapshot.position()
    }

    /// Its name, if the source gives one.
    pub(super) fn id(&self) -> Option<CutId> {
        self.snapshot.cut_id()
    }

    /// What a shard's table carries of `range`.
    pub(super) fn stream<'a>(
        &'a self,
        table: usize,
        range: &KeyRange,
    ) -> Result<Box<dyn RowStream + 'a>> {
        let CutTable { source, entry } = &self.tables[table];
        match (entry.mode, self.parent_position) {
            (TableMode::Delta, Some(from)) => self.snapshot.changes(*source, range, from),
            (TableMode::Delta | TableMode::Whole, _) => self.snapshot.scan(*source, range),
        }
    }

    /// Name of part `ordinal` of an attempt of a shard.
    pub(super) fn part_name(
        &self,
        shard: &CutShard,
        attempt: Attempt,
        ordinal: u32,
    ) -> Result<String> {
        let ticket = format!("{}-{attempt}-{ordinal}", self.ticket);
        self.new.part_name(&self.table(shard.table).name, shard.number, &ticket)
    }

    /// Begins an attempt of a shard: behind what earlier attempts made durable.
    ///
    /// # Errors
    /// [`Kind::Transient`] when a later attempt has begun.
    pub(super) fn start_shard(&self, shard: ShardIdx, attempt: Attempt) -> Result<ShardStart> {
        let mut written = lock(&self.written);
        let state = &mut written.shards[shard.0 as usize];
        if state.attempt > attempt {
            return Err(superseded(shard, attempt));
        }
        state.attempt = attempt;
        let mut start = ShardStart {
            range: self.shards[shard.0 as usize].range.clone(),
            done: Work::default(),
            is_complete: state.is_complete,
        };
        for part in &state.parts {
            start.done += Work { rows: part.rows, bytes: part.row_bytes };
        }
        if let Some(last) = state.parts.last() {
            // The least key beyond it.
            start.range.start = [last.last_key.as_slice(), &[0]].concat();
        }
        Ok(start)
    }

    /// Notes an object before it is made, so that it can be removed whatever happens.
    pub(super) fn note_object(&self, path: String) {
        lock(&self.written).objects.insert(path);
    }

    /// Takes back that an object may be ours.
    pub(super) fn forget_object(&self, path: &str) {
        lock(&self.written).objects.remove(path);
    }

    /// Takes a durable part of an attempt.
    ///
    /// # Errors
    /// [`Kind::Transient`] when a later attempt has begun: the part is garbage.
    pub(super) fn keep_part(
        &self,
        shard: ShardIdx,
        attempt: Attempt,
        part: PartEntry,
    ) -> Result<()> {
        let mut written = lock(&self.written);
        let state = &mut written.shards[shard.0 as usize];
        if state.attempt != attempt {
            return Err(superseded(shard, attempt));
        }
        state.parts.push(part);
        Ok(())
    }

    /// Notes that all rows of a shard are in durable parts.
    pub(super) fn complete_shard(&self, shard: ShardIdx, attempt: Attempt) -> Result<()> {
        let mut written = lock(&self.written);
        let state = &mut written.shards[shard.0 as usize];
        if state.attempt != attempt {
            return Err(superseded(shard, attempt));
        }
        state.is_complete = true;
        Ok(())
    }

    /// The tables with all their parts, sorted by name as the snapshot is.
    ///
    /// # Errors
    /// [`Kind::Fatal`] when a shard is not complete.
    pub(super) fn finished_tables(&self) -> Result<Vec<TableEntry>> {
        let written = lock(&self.written);
        let mut tables: Vec<TableEntry> =
            self.tables.iter().map(|table| table.entry.clone()).collect();
        for (shard, state) in self.shards.iter().zip(&written.shards) {
            if !state.is_complete {
                let table = &tables[shard.table].name;
                let message = format!("shard {} of table `{table}` is not complete", shard.number);
                return Err(Error::new(Kind::Fatal, message));
            }
            tables[shard.table].parts.extend(state.parts.iter().cloned());
        }
        Ok(tables)
    }

    /// Every object that was or may have been made.
    pub(super) fn objects(&self) -> BTreeSet<String> {
        lock(&self.written).objects.clone()
    }

    /// Notes that this cut cannot become a backup any more.
    pub(super) fn spend(&self) {
        lock(&self.written).is_spent = true;
    }

    pub(super) fn is_spent(&self) -> bool {
        lock(&self.written).is_spent
    }
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut")
            .field("new", &self.new)
            .field("position", &self.position())
            .field("tables", &self.tables.len())
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

/// How tickets of the parts of an operation begin, whichever process writes them: 64 bits of
/// its mark, so that a later process tells them from those of any other backup.
pub(super) fn ticket_mark(mark: &str) -> String {
    format!("{:.16}-", mark)
}

fn superseded(shard: ShardIdx, attempt: Attempt) -> Error {
    let message = format!("attempt {attempt} of shard {shard} was given up; a later one runs");
    Error::new(Kind::Transient, message)
}

/// The manifest that an increment builds on, if it may.
fn parent_manifest(request: &CutRequest<'_>, new: &NewBackup) -> Result<Option<Manifest>> {
    let Some(link) = &new.parent else { return Ok(None) };
    let log = request.collection.log()?;
    let entry =
        log.iter().find(|entry| entry.sequence == link.sequence && entry.manifest == link.manifest);
    let entry = entry.ok_or_else(|| {
        let message = format!("backup `{}` is gone from the log", link.directory);
        Error::new(Kind::Broken, message)
    })?;
    let manifest = request.collection.manifest(entry)?;
    check_parent(&manifest, request.source_identity, request.tables)?;
    Ok(Some(manifest))
}

/// Refuses an increment of a source that was rolled back to before its parent's cut, or that
/// is a copy: positions repeat there, and changes would be missed without a word.
fn check_past(snapshot: &dyn Snapshot, parent: &Manifest) -> Result<()> {
    let Some(cut) = parent.source.cut else { return Ok(()) };
    let position = parent.source.to;
    if snapshot.is_after(position, cut)? {
        return Ok(());
    }
    let message = format!(
        "an increment would build on backup `{}`, whose cut `{cut}` at position {position} this \
         database does not know: it was rolled back to an older state since, or is a copy that \
         went its own way. What changed since that backup cannot be told; take a new full backup \
         (--full). Every restore point that is there can still be restored",
        parent.directory
    );
    Err(Error::new(Kind::Broken, message))
}

/// Refuses what a full backup of `patterns` would refuse of these tables, before anything is
/// made for it.
///
/// # Errors
/// [`Kind::NotFound`] for a pattern that selects none of them; [`Kind::Unsupported`] for a
/// table without a key; [`Kind::Usage`] for a text that is neither a name nor a pattern.
pub fn check_selection<'t>(
    patterns: &[String],
    tables: impl IntoIterator<Item = (&'t TableName, &'t Schema)>,
) -> Result<()> {
    let tables: Vec<(&TableName, &Schema)> = tables.into_iter().collect();
    let (_, gone) = select(&tables, patterns)?;
    refuse_gone(&gone, tables.iter().map(|(name, _)| *name))
}

/// Positions of the selected tables, and the patterns that select none.
fn select(
    tables: &[(&TableName, &Schema)],
    patterns: &[String],
) -> Result<(Vec<usize>, Vec<String>)> {
    let mut patterns = read_patterns(patterns)?;
    let mut selected = Vec::new();
    for (at, (name, schema)) in tables.iter().enumerate() {
        if !is_selected(&mut patterns, name) {
            continue;
        }
        if schema.key.is_empty() {
            let message = format!(
                "table `{name}` has no key, and backups of such tables are not possible yet; \
                 leave it out by naming the tables to back up"
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        selected.push(at);
    }
    let gone = patterns.iter().filter(|pattern| !pattern.has_selected());
    Ok((selected, gone.map(|pattern| pattern.text().to_owned()).collect()))
}

/// Names and globs of tables, as people type them; none selects every table.
#[derive(Debug)]
pub struct TablePatterns(Vec<Pattern>);

impl TablePatterns {
    /// Reads them.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a text that is neither a name nor a pattern.
    pub fn new(texts: &[String]) -> Result<TablePatterns> {
        read_patterns(texts).map(TablePatterns)
    }

    /// Whether they select the table.
    pub fn selects(&mut self, name: &TableName) -> bool {
        is_selected(&mut self.0, name)
    }
}

fn read_patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

/// Whether any pattern selects the table, or there is none.
fn is_selected(patterns: &mut [Pattern], name: &TableName) -> bool {
    // Every pattern is asked, so that each knows whether it selected anything.
    let chosen = patterns.iter_mut().fold(false, |chosen, pattern| pattern.selects(name) | chosen);
    chosen || patterns.is_empty()
}

/// A full with a name that fits nothing is a mistake; an increment tells that a table was dropped.
fn refuse_gone<'t>(gone: &[String], names: impl Iterator<Item = &'t TableName>) -> Result<()> {
    const SHOWN_MAX: usize = 10;
    let Some(pattern) = gone.first() else { return Ok(()) };
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let message = format!(
        "`{pattern}` selects no table of the source; it has {} tables: {}",
        names.len(),
        names[..names.len().min(SHOWN_MAX)].join(", ")
    );
    Err(Error::new(Kind::NotFound, message))
}

/// What a backup carries of a table.
enum Carried {
    /// Changes, about so many.
    Delta(Work),
    /// Every row; people are told why if the backup is an increment.
    Whole { reason: Option<String> },
}

impl Carried {
    fn into_entry(self, table: &SourceTable) -> TableEntry {
        let (mode, reason) = match self {
            Carried::Delta(_) => (TableMode::Delta, None),
            Carried::Whole { reason } => (TableMode::Whole, reason),
        };
        TableEntry {
            id: table.id,
            digest_id: table.digest_id,
            name: table.name.clone(),
            schema: table.schema.clone(),
            mode,
            reason,
            state: table.digest,
            structure: table.structure.clone(),
            parts: Vec::new(),
            extra: serde_json::Map::new(),
        }
    }
}

fn carry(
    snapshot: &dyn Snapshot,
    at: usize,
    table: &SourceTable,
    parent: Option<&Manifest>,
) -> Result<Carried> {
    let Some(parent) = parent else { return Ok(Carried::Whole { reason: None }) };
    let whole = |reason: &str| Ok(Carried::Whole { reason: Some(reason.to_owned()) });
    let by_id: BTreeMap<TableId, &TableEntry> =
        parent.tables.iter().map(|entry| (entry.id, entry)).collect();
    let Some(before) = by_id.get(&table.id) else {
        let same_name = parent.tables.iter().any(|entry| entry.name == table.name);
        return whole(match same_name {
            true => "it was dropped and made again after the parent",
            false => "it was made after the parent, or is selected for the first time",
        });
    };
    // The source decides whether it knows every change; these are what the format asks.
    if before.digest_id != table.digest_id {
        return whole("its rows have another origin than those of the parent");
    }
    let is_retyped = table.schema.columns.iter().any(|column| {
        let older = before.schema.column(column.id);
        older.is_some_and(|older| older.logical != column.logical)
    });
    if is_retyped {
        return whole("a column changed its type after the parent");
    }
    let known = ParentTable {
        id: before.id,
        schema: before.schema.clone(),
        position: parent.source.to,
        structure: before.structure.clone(),
    };
    Ok(match snapshot.delta(at, &known)? {
        Delta::Known { rows, bytes } => Carried::Delta(Work { rows, bytes }),
        Delta::Whole { reason } => Carried::Whole { reason: Some(reason) },
    })
}

/// One shard for each range of the table. Those of a delta get their share of what is
/// expected, by size; also a range of which nothing is expected is read, since sources estimate.
fn cut_shards(table: &SourceTable, carried: &Carried, at: usize, shards: &mut Vec<CutShard>) {
    let total: u64 = table.shards.iter().map(|shard| shard.bytes).sum();
    let count = table.shards.len() as u64;
    for (number, shard) in (0u32..).zip(&table.shards) {
        let share = |whole: u64| match total {
            0 => whole / count,
            total => {
                let share = u128::from(whole) * u128::from(shard.bytes) / u128::from(total);
                u64::try_from(share).unwrap_or(u64::MAX)
            }
        };
        let planned = match carried {
            Carried::Whole { .. } => Work { rows: shard.rows, bytes: shard.bytes },
            Carried::Delta(work) => Work { rows: share(work.rows), bytes: share(work.bytes) },
        };
        shards.push(CutShard { table: at, number, range: shard.range.clone(), planned });
    }
}
