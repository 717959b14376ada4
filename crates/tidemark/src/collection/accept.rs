//! Which manifests are believed.
//!
//! Bytes from a store become an [`UnverifiedManifest`]; only its check, against
//! the log entry that names it, yields a [`Manifest`]. [`check_link`] then holds
//! an increment against the manifest of its parent.

use std::collections::{BTreeMap, BTreeSet};

use super::document;
use super::flaw::{Flaw, ReadFailure, expect};
use super::layout::{BackupDirectory, MANIFEST_FILE, check_relative, manifest_path};
use super::manifest::{
    BackupKind, FormatVersion, LogEntry, Manifest, ParentLink, PartEntry, TableEntry, TableMode,
    Totals,
};
use crate::ids::{CollectionId, Sequence, TableId};
use crate::row::value::hex;

/// Bytes or rows of a backup at most: a pebibyte. So sums over a chain stay far from 2^64, and
/// a plan's memory is what it says, whatever a manifest claims.
pub(super) const BACKUP_SIZE_MAX: u64 = 1 << 50;

/// A manifest as it was found, before anything in it is believed.
#[derive(Clone, Debug)]
pub struct UnverifiedManifest(Manifest);

impl From<Manifest> for UnverifiedManifest {
    fn from(manifest: Manifest) -> UnverifiedManifest {
        UnverifiedManifest(manifest)
    }
}

impl UnverifiedManifest {
    /// Reads the bytes that lie at `object`.
    pub(super) fn parse(object: &str, bytes: &[u8]) -> Result<UnverifiedManifest, ReadFailure> {
        document::parse(object, bytes).map(UnverifiedManifest)
    }

    /// The log entry that would name it, if one did; as little believed as the manifest.
    pub(super) fn entry_in(&self, directory: &str, bytes: &[u8]) -> LogEntry {
        let Manifest { sequence, kind, parent, .. } = &self.0;
        LogEntry {
            format: FormatVersion::CURRENT,
            sequence: *sequence,
            kind: *kind,
            directory: directory.to_owned(),
            manifest: blake3::hash(bytes).to_hex().to_string(),
            previous: parent.as_ref().map(|parent| parent.manifest.clone()),
            extra: serde_json::Map::new(),
        }
    }

    /// What it says, as it stands there.
    #[cfg(feature = "fuzzing")]
    pub(super) fn unchecked(self) -> Manifest {
        self.0
    }

    /// Holds everything in the manifest against its log entry and against itself.
    ///
    /// Afterwards every path in it is safe, ranges and counts agree, and it claims to be
    /// exactly the backup that `entry` names, in the collection `collection`.
    pub fn check(self, collection: CollectionId, entry: &LogEntry) -> Result<Manifest, Flaw> {
        let manifest = self.0;
        let object = manifest_path(&entry.directory);
        check_identity(&object, &manifest, collection, entry)?;
        check_descent(&object, &manifest, entry)?;

        let mut names = BTreeSet::from([MANIFEST_FILE]);
        let mut ids = BTreeSet::new();
        let mut totals = Totals::default();
        let mut previous: Option<&TableEntry> = None;
        for table in &manifest.tables {
            let named = format!("table {}", table.name);
            if let Some(previous) = previous.filter(|previous| previous.name >= table.name) {
                let found = format!("{named} after table {}", previous.name);
                return Err(Flaw::new(&object, found, "tables sorted by name, each once"));
            }
            let found = format!("the id {} of {named} twice", table.id);
            expect(ids.insert(table.id), &object, found, "one table of an id")?;
            check_table(&object, table, manifest.kind)?;
            for part in &table.parts {
                let found = format!("part `{}` twice", part.name);
                expect(names.insert(&part.name), &object, found, "a name of its own")?;
            }
            add_table(&mut totals, table).ok_or_else(|| {
                Flaw::new(&object, format!("counts beyond 2^64 up to {named}"), "possible counts")
            })?;
            previous = Some(table);
        }
        let claimed = manifest.totals;
        let found = format!("totals {claimed:?}");
        expect(claimed == totals, &object, &found, format!("the sums {totals:?}"))?;
        let greatest = totals.rows.max(totals.bytes).max(totals.row_bytes);
        expect(greatest <= BACKUP_SIZE_MAX, &object, found, "at most 2^50 of each")?;
        Ok(manifest)
    }
}

/// Sums over `tables`, as [`Manifest::totals`] holds them; `None` beyond 2^64.
pub fn totals(tables: &[TableEntry]) -> Option<Totals> {
    let mut totals = Totals::default();
    for table in tables {
        add_table(&mut totals, table)?;
    }
    Some(totals)
}

fn add_table(totals: &mut Totals, table: &TableEntry) -> Option<()> {
    let add = |sum: &mut u64, more: u64| sum.checked_add(more).map(|added| *sum = added);
    add(&mut totals.tables, 1)?;
    for part in &table.parts {
        add(&mut totals.parts, 1)?;
        add(&mut totals.rows, part.rows)?;
        add(&mut totals.tombstones, part.tombstones)?;
        add(&mut totals.bytes, part.bytes)?;
        add(&mut totals.row_bytes, part.row_bytes)?;
    }
    Some(())
}

fn check_identity(
    object: &str,
    manifest: &Manifest,
    collection: CollectionId,
    entry: &LogEntry,
) -> Result<(), Flaw> {
    let Manifest { sequence, kind, directory, .. } = manifest;
    let found = format!("collection {}", manifest.collection);
    let expected = format!("collection {collection}, in which it lies");
    expect(manifest.collection == collection, object, found, expected)?;
    let expected = format!("sequence {} of its log entry", entry.sequence);
    expect(*sequence == entry.sequence, object, format!("sequence {sequence}"), expected)?;
    let expected = format!("a {:?} as its log entry says", entry.kind);
    expect(*kind == entry.kind, object, format!("a {kind:?}"), expected)?;
    let expected = format!("directory `{}`, in which it lies", entry.directory);
    expect(*directory == entry.directory, object, format!("directory {directory:?}"), expected)
}

/// What it says of its parent, the log entry before it.
fn check_descent(object: &str, manifest: &Manifest, entry: &LogEntry) -> Result<(), Flaw> {
    match (manifest.kind, &manifest.parent) {
        (BackupKind::Full, None) => {
            let from = manifest.source.from;
            let found = format!("a full from position {from:?}");
            expect(from.is_none(), object, found, "a full from the beginning")
        }
        (BackupKind::Full, Some(parent)) => {
            let found = format!("a full with the parent {}", parent.sequence);
            Err(Flaw::new(object, found, "a full without a parent"))
        }
        (BackupKind::Incremental, None) => {
            Err(Flaw::new(object, "an increment without a parent", "the backup before it"))
        }
        (BackupKind::Incremental, Some(parent)) => {
            let ParentLink { sequence, manifest: hash, .. } = parent;
            check_hash(object, "manifest of the parent", hash)?;
            let before = entry.sequence.0.checked_sub(1).map(Sequence);
            let found = format!("parent {sequence}");
            let expected = format!("sequence {before:?}, the one before its own");
            expect(Some(*sequence) == before && sequence.0 > 0, object, found, expected)?;
            let expected = format!("{:?} as its log entry says", entry.previous);
            let same = entry.previous.as_ref() == Some(hash);
            expect(same, object, format!("parent manifest {hash:?}"), expected)?;
            let (from, to) = (manifest.source.from, manifest.source.to);
            let found = format!("positions from {from:?} to {to}");
            let forward = from.is_some_and(|from| from <= to);
            expect(forward, object, found, "an increment that goes forward")
        }
    }
}

fn check_table(object: &str, table: &TableEntry, kind: BackupKind) -> Result<(), Flaw> {
    let named = format!("table {}", table.name);
    if let Err(cause) = table.schema.check() {
        return Err(Flaw::new(object, format!("{named}: {cause}"), "a possible schema"));
    }
    let delta = table.mode == TableMode::Delta;
    let found = format!("{named} as a delta in a full");
    expect(!delta || kind == BackupKind::Incremental, object, found, "every table whole")?;
    let keyless = table.schema.key.is_empty();
    let found = format!("{named}, which has no key, as a delta");
    expect(!delta || !keyless, object, found, "a table without a key whole")?;

    let mut rows = 0u64;
    let mut last_key: Option<&[u8]> = None;
    for part in &table.parts {
        check_part(object, part, table)?;
        rows = rows.saturating_add(part.rows);
        let ascending = last_key.is_none_or(|last| last < part.first_key.as_slice());
        let found = format!("part `{}` from key {}", part.name, hex(&part.first_key));
        let expected = format!("a key beyond {} of the part before", show_key(last_key));
        expect(ascending || keyless, object, found, expected)?;
        last_key = Some(&part.last_key);
    }
    match table.state {
        Some(state) if !delta => {
            let found = format!("{named} whole with {rows} rows");
            let expected = format!("the {} rows that the source had", state.rows);
            expect(state.rows == rows, object, found, expected)
        }
        _ => Ok(()),
    }
}

fn check_part(object: &str, part: &PartEntry, table: &TableEntry) -> Result<(), Flaw> {
    let named = format!("part `{}` of table {}", part.name, table.name);
    if let Err(cause) = check_relative(&part.name) {
        return Err(Flaw::new(object, format!("{named}: {cause}"), "a path inside the backup"));
    }
    check_hash(object, &named, &part.blake3)?;
    let counts = |holds: bool, expected: &str| {
        let PartEntry { bytes, rows, tombstones, row_bytes, row_bytes_max, .. } = part;
        let found = format!(
            "{named} with {bytes} bytes, {rows} rows, {tombstones} tombstones, {row_bytes} row \
             bytes, the greatest {row_bytes_max}, digest of {} rows",
            part.digest.rows
        );
        expect(holds, object, found, expected)
    };
    counts(part.rows > 0 && part.bytes > 0, "at least one row, in an object that is not empty")?;
    counts(part.tombstones <= part.rows, "no more tombstones than rows")?;
    let whole = table.mode == TableMode::Whole;
    counts(!whole || part.tombstones == 0, "no tombstones in a table that is whole")?;
    let alive = part.rows - part.tombstones;
    counts(part.digest.rows == alive, "a digest of the rows that are no tombstones")?;
    counts(part.row_bytes_max <= part.row_bytes, "a greatest row within the sum")?;
    let bound = u128::from(part.rows) * u128::from(part.row_bytes_max);
    counts(u128::from(part.row_bytes) <= bound, "a sum within rows times the greatest row")?;

    check_row_groups(object, &named, part)?;
    if table.schema.key.is_empty() {
        check_keyless(object, &named, part)
    } else {
        check_keys(object, &named, part)
    }
}

/// Rows of a table without a key have the empty key, and so has everything about them.
fn check_keyless(object: &str, named: &str, part: &PartEntry) -> Result<(), Flaw> {
    let groups = part.row_groups.iter().map(|group| &group.first_key);
    let mut keys =
        [&part.first_key, &part.last_key].into_iter().chain(groups).chain(&part.key_samples);
    let found = format!("{named} with a key, of a table without one");
    expect(keys.all(Vec::is_empty), object, found, "no key")
}

fn check_keys(object: &str, named: &str, part: &PartEntry) -> Result<(), Flaw> {
    let found = format!("{named} from {} to {}", hex(&part.first_key), hex(&part.last_key));
    let ordered = match part.rows {
        1 => part.first_key == part.last_key,
        _ => part.first_key < part.last_key,
    };
    let ordered = ordered && !part.first_key.is_empty();
    expect(ordered, object, found, "a first key before the last, equal for one row")?;

    let groups = &part.row_groups;
    let ordered = groups.is_sorted_by(|a, b| a.first_key < b.first_key)
        && groups.first().is_some_and(|group| group.first_key == part.first_key)
        && groups.last().is_some_and(|group| group.first_key <= part.last_key);
    let found = format!("{named} with row groups out of order");
    expect(ordered, object, found, "row groups in key order, from its first key on")?;

    let inside = |key: &Vec<u8>| *key >= part.first_key && *key <= part.last_key;
    let samples = part.key_samples.is_sorted() && part.key_samples.iter().all(inside);
    let found = format!("{named} with key samples out of order or range");
    expect(samples, object, found, "ascending samples between its first and last key")
}

fn check_row_groups(object: &str, named: &str, part: &PartEntry) -> Result<(), Flaw> {
    let sum = |count: fn(&super::manifest::RowGroupEntry) -> u64| -> u128 {
        part.row_groups.iter().map(|group| u128::from(count(group))).sum()
    };
    let (rows, row_bytes) = (sum(|group| group.rows), sum(|group| group.row_bytes));
    let agree = rows == u128::from(part.rows) && row_bytes == u128::from(part.row_bytes);
    let found = format!("{named} with row groups of {rows} rows and {row_bytes} row bytes");
    let expected = format!("{} rows and {} row bytes in all", part.rows, part.row_bytes);
    expect(agree, object, found, expected)?;
    let filled = part.row_groups.iter().all(|group| group.rows > 0);
    expect(filled, object, format!("{named} with empty row groups"), "at least one row in each")
}

/// Refuses what is not 64 lower-case hexadecimal digits.
pub(super) fn check_hash(object: &str, what: &str, hash: &str) -> Result<(), Flaw> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let well_formed = hash.len() == 64 && hash.bytes().all(digit);
    let found = format!("BLAKE3 {hash:?} of {what}");
    expect(well_formed, object, found, "64 lower-case hexadecimal digits")
}

/// Refuses a log entry whose directory is no backup's, or of another kind.
pub(super) fn check_directory(object: &str, entry: &LogEntry) -> Result<BackupDirectory, Flaw> {
    BackupDirectory::parse(&entry.directory).filter(|name| name.kind() == entry.kind).ok_or_else(
        || {
            let expected = match entry.kind {
                BackupKind::Full => "YYYYMMDDHHMMSSZ_full",
                BackupKind::Incremental => "YYYYMMDDHHMMSSZ_incremental",
            };
            Flaw::new(object, format!("directory {:?}", entry.directory), expected)
        },
    )
}

/// Holds an increment against its parent's manifest; both have passed their own check.
///
/// Afterwards: it begins where the parent ends, at the same source, and each of its deltas
/// is of a table that the parent knows, with the same key and digest id, whose columns kept
/// their types.
pub fn check_link(parent: &Manifest, child: &Manifest) -> Result<(), Flaw> {
    let object = manifest_path(&child.directory);
    let names_parent = child
        .parent
        .as_ref()
        .is_some_and(|link| link.sequence == parent.sequence && link.directory == parent.directory);
    let found = format!("parent {:?}", child.parent);
    let expected = format!("backup {} in `{}`", parent.sequence, parent.directory);
    expect(names_parent, &object, found, expected)?;
    let (source, before) = (&child.source, &parent.source);
    let found = format!("source {:?}", source.identity);
    let expected = format!("source {:?} of its parent", before.identity);
    expect(source.identity == before.identity, &object, found, expected)?;
    let found = format!("changes from position {:?}", source.from);
    let expected = format!("changes from position {}, where its parent ends", before.to);
    expect(source.from == Some(before.to), &object, found, expected)?;

    let known: BTreeMap<TableId, &TableEntry> =
        parent.tables.iter().map(|table| (table.id, table)).collect();
    for table in child.tables.iter().filter(|table| table.mode == TableMode::Delta) {
        let named = format!("table {} ({})", table.name, table.id);
        let Some(before) = known.get(&table.id) else {
            let found = format!("a delta of {named}");
            return Err(Flaw::new(&object, found, "that table in its parent"));
        };
        let found = format!("a delta of {named} with another key or digest id");
        let same = table.schema.same_key(&before.schema) && table.digest_id == before.digest_id;
        expect(same, &object, found, "the key and digest id that it has in its parent")?;
        let retyped = table.schema.columns.iter().find(|column| {
            let older = before.schema.column(column.id);
            older.is_some_and(|older| older.logical != column.logical)
        });
        if let Some(column) = retyped {
            let found = format!("a delta of {named} whose column `{}` changed type", column.name);
            return Err(Flaw::new(&object, found, "a new column, or the table whole"));
        }
    }
    Ok(())
}

fn show_key(key: Option<&[u8]>) -> String {
    key.map_or_else(|| "nothing".to_owned(), hex)
}
