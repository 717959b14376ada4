//! Chains: what leads to a restore point, resolved without touching a store.
//!
//! A [`Chain`] holds the links from a full to one backup, in order, their
//! manifests checked against one another. [`Chain::tables`] says, for each table
//! that exists at the point, which links still matter: the newest that carries
//! it whole, and every delta after that. Tables are followed by id, so a rename
//! changes nothing.

use std::collections::BTreeMap;
use std::fmt;

use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::accept::check_link;
use super::flaw::{Flaw, expect};
use super::layout::{BackupDirectory, log_path, manifest_path};
use super::manifest::{BackupKind, LogEntry, Manifest, PartEntry, TableEntry, TableMode};
use crate::env::WallTime;
use crate::error::{Error, Kind, Result};
use crate::ids::{LinkIdx, Position, Sequence, TableId, TableName};

/// Bytes or rows of a chain at most.
const CHAIN_SIZE_MAX: u128 = 1 << 56;

/// A state that can be restored, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestorePoint {
    /// The newest backup.
    Latest,
    /// The backup in that directory.
    Directory(String),
    /// The backup of that number.
    Sequence(Sequence),
    /// The newest backup whose cut is not later.
    Time(WallTime),
}

impl RestorePoint {
    /// Reads `latest`, a directory's name, `#7` or `7`, an RFC 3339 time, or a date, which
    /// means all of that day in UTC.
    ///
    /// # Errors
    /// [`Kind::Usage`] for any other text.
    pub fn parse(text: &str) -> Result<RestorePoint> {
        if text == "latest" {
            return Ok(RestorePoint::Latest);
        }
        if BackupDirectory::parse(text).is_some() {
            return Ok(RestorePoint::Directory(text.to_owned()));
        }
        let digits = text.strip_prefix('#').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let sequence = digits.parse().ok().filter(|sequence| *sequence > 0);
            return sequence.map(|sequence| RestorePoint::Sequence(Sequence(sequence))).ok_or_else(
                || Error::new(Kind::Usage, format!("`{text}`: backups are numbered from 1")),
            );
        }
        parse_time(text).map(RestorePoint::Time).ok_or_else(|| {
            let message = format!(
                "`{text}` is no restore point: expected `latest`, a backup's name \
                 (20260131093000Z_full), its number (#7), a time with its zone \
                 (2026-01-31T09:30:00Z) or a date (2026-01-31)"
            );
            Error::new(Kind::Usage, message)
        })
    }
}

fn parse_time(text: &str) -> Option<WallTime> {
    let millisecond = match text.parse::<Timestamp>() {
        Ok(time) => time.as_millisecond(),
        Err(_) if text.len() == 10 => {
            let next = text.parse::<Date>().ok()?.tomorrow().ok()?;
            TimeZone::UTC.to_timestamp(next.at(0, 0, 0, 0)).ok()?.as_millisecond() - 1
        }
        Err(_) => return None,
    };
    u64::try_from(millisecond).ok().map(WallTime)
}

/// A time as people write it: RFC 3339 in UTC.
pub fn show_time(time: WallTime) -> String {
    let shown = i64::try_from(time.0).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    // Always three decimals, so that columns of them line up.
    shown.map_or_else(|| format!("{} ms", time.0), |shown| format!("{shown:.3}"))
}

impl fmt::Display for RestorePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestorePoint::Latest => f.write_str("latest"),
            RestorePoint::Directory(name) => f.write_str(name),
            RestorePoint::Sequence(sequence) => write!(f, "#{sequence}"),
            RestorePoint::Time(time) => f.write_str(&show_time(*time)),
        }
    }
}

/// One backup of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its entry in the log.
    pub entry: LogEntry,
    /// Its manifest, checked.
    pub manifest: Manifest,
}

/// The backups that lead to a restore point: a full, then its increments in order.
///
/// Never empty; every pair of neighbours has passed [`check_link`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// Finds `point` in `log`, which has passed [`check_log`](super::log::check_log), and walks
    /// from it to its full. `read_manifest` gives checked manifests.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such point, with the points that there are;
    /// [`Kind::Broken`] when a parent is missing or is not the one that its child names; and
    /// what `read_manifest` gives.
    pub fn resolve(
        log: &[LogEntry],
        point: &RestorePoint,
        read_manifest: &mut dyn FnMut(&LogEntry) -> Result<Manifest>,
    ) -> Result<Chain> {
        let mut at = point_position(log, point, read_manifest)?;
        let mut links: Vec<Link> = Vec::new();
        loop {
            let entry = &log[at];
            let manifest = read_manifest(entry)?;
            if let Some(child) = links.last() {
                check_parent_hash(entry, child)?;
                check_link(&manifest, &child.manifest)?;
            }
            let kind = manifest.kind;
            links.push(Link { entry: entry.clone(), manifest });
            if kind == BackupKind::Full {
                links.reverse();
                check_size(&links)?;
                return Ok(Chain { links });
            }
            at = at.checked_sub(1).ok_or_else(|| {
                let found = "an increment, with no backup before it";
                Flaw::new(log_path(entry.sequence), found, "a full as the first backup")
            })?;
        }
    }

    /// The links, the full first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The backup that the chain leads to.
    pub fn point(&self) -> &Link {
        self.links.last().expect("a chain is never empty: resolve ends at a full")
    }

    /// The link at `link`.
    pub fn link(&self, link: LinkIdx) -> Option<&Link> {
        self.links.get(usize::try_from(link.0).ok()?)
    }

    /// The tables at the restore point that `patterns` select, by name, each with the links
    /// that matter for it; all of them if there are no patterns.
    ///
    /// A pattern is a name as [`TableName`] writes it, or a glob (`*`, `?`, `[…]`, `{a,b}`)
    /// that fits the name with or without its schema's `public.`.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a malformed pattern; [`Kind::NotFound`] for one that selects
    /// nothing; [`Kind::Broken`] for a delta without anything older to build on.
    pub fn tables(&self, patterns: &[String]) -> Result<Vec<TableChain<'_>>> {
        let mut patterns =
            patterns.iter().map(|text| Pattern::new(text)).collect::<Result<Vec<Pattern>>>()?;
        let all = patterns.is_empty();
        let by_id: Vec<BTreeMap<TableId, &TableEntry>> = self
            .links
            .iter()
            .map(|link| link.manifest.tables.iter().map(|table| (table.id, table)).collect())
            .collect();
        let mut selected = Vec::new();
        for table in &self.point().manifest.tables {
            // Every pattern is asked, so that each knows whether it selected anything.
            let mut chosen = all;
            for pattern in &mut patterns {
                chosen |= pattern.selects(&table.name);
            }
            if chosen {
                selected.push(self.follow(table, &by_id)?);
            }
        }
        match patterns.iter().find(|pattern| !pattern.selected) {
            None => Ok(selected),
            Some(pattern) => Err(self.nothing_selected(&pattern.text)),
        }
    }

    /// Collects the links of one table, from the restore point down to where it is whole.
    fn follow<'a>(
        &'a self,
        table: &'a TableEntry,
        by_id: &[BTreeMap<TableId, &'a TableEntry>],
    ) -> Result<TableChain<'a>> {
        let mut links = Vec::new();
        for (at, link) in self.links.iter().enumerate().rev() {
            let Some(entry) = by_id[at].get(&table.id) else { break };
            let same = entry.schema.same_key(&table.schema) && entry.digest_id == table.digest_id;
            if !same {
                let found = format!("table {} with another key or digest id", entry.name);
                let expected = format!("those of table {} in `{}`", table.name, self.point_name());
                return Err(Flaw::new(manifest_path(&link.entry.directory), found, expected).into());
            }
            let at = LinkIdx(u32::try_from(at).expect("a log of 2^32 backups fits no memory"));
            links.push(TableLink { link: at, directory: &link.entry.directory, entry });
            if entry.mode == TableMode::Whole {
                links.reverse();
                return Ok(TableChain { table, links });
            }
        }
        let found = format!("deltas of table {} ({}) only", table.name, table.id);
        let object = manifest_path(self.point_name());
        Err(Flaw::new(object, found, "an older backup that carries it whole").into())
    }

    fn point_name(&self) -> &str {
        &self.point().entry.directory
    }

    fn nothing_selected(&self, pattern: &str) -> Error {
        const SHOWN_MAX: usize = 10;
        let tables = &self.point().manifest.tables;
        let mut names: Vec<String> =
            tables.iter().take(SHOWN_MAX).map(|table| format!("`{}`", table.name)).collect();
        if tables.len() > SHOWN_MAX {
            names.push(format!("{} more", tables.len() - SHOWN_MAX));
        }
        let there = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
        let message = format!(
            "`{pattern}` selects no table of backup `{}`: it has {there}",
            self.point_name()
        );
        Error::new(Kind::NotFound, message)
    }
}

/// Refuses a chain whose backups claim more together than sums of their sizes could hold.
fn check_size(links: &[Link]) -> Result<(), Flaw> {
    let size = |link: &Link| {
        let totals = link.manifest.totals;
        u128::from(totals.rows.max(totals.bytes).max(totals.row_bytes))
    };
    let claimed: u128 = links.iter().map(size).sum();
    let last = links.last().map_or("", |link| &link.entry.directory);
    let found = format!("a chain of {} backups and {claimed} bytes or rows", links.len());
    expect(claimed <= CHAIN_SIZE_MAX, &manifest_path(last), found, "at most 2^56")
}

/// The newest manifest first, since its child names it.
fn check_parent_hash(parent: &LogEntry, child: &Link) -> Result<(), Flaw> {
    let claimed = child.manifest.parent.as_ref().map(|link| link.manifest.as_str());
    if claimed == Some(parent.manifest.as_str()) {
        return Ok(());
    }
    let object = manifest_path(&child.entry.directory);
    let expected = format!("manifest `{}` of backup {}", parent.manifest, parent.sequence);
    Err(Flaw::new(object, format!("parent manifest {claimed:?}"), expected))
}

/// Position in `log` of `point`: see [`Chain::resolve`] for the errors.
pub(crate) fn point_position(
    log: &[LogEntry],
    point: &RestorePoint,
    read_manifest: &mut dyn FnMut(&LogEntry) -> Result<Manifest>,
) -> Result<usize> {
    let (Some(first), Some(last)) = (log.first(), log.last()) else {
        let message = format!("restore point `{point}`: the collection has no backup yet");
        return Err(Error::new(Kind::NotFound, message));
    };
    let found = match point {
        RestorePoint::Latest => Some(log.len() - 1),
        RestorePoint::Directory(name) => log.iter().position(|entry| entry.directory == *name),
        RestorePoint::Sequence(sequence) => {
            log.iter().position(|entry| entry.sequence == *sequence)
        }
        RestorePoint::Time(time) => newest_before(log, *time, read_manifest)?,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let mut cut = |entry: &LogEntry| match read_manifest(entry) {
        Ok(manifest) => format!(", cut at {}", show_time(manifest.cut_at)),
        // The answer is that there is no such point; that this one is unreadable is another matter.
        Err(_) => String::new(),
    };
    let message = format!(
        "there is no restore point `{point}`; the first is #{} (`{}`{}), the last #{} (`{}`{})",
        first.sequence,
        first.directory,
        cut(first),
        last.sequence,
        last.directory,
        cut(last),
    );
    Err(Error::new(Kind::NotFound, message))
}

fn newest_before(
    log: &[LogEntry],
    time: WallTime,
    read_manifest: &mut dyn FnMut(&LogEntry) -> Result<Manifest>,
) -> Result<Option<usize>> {
    for (at, entry) in log.iter().enumerate().rev() {
        if read_manifest(entry)?.cut_at <= time {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The positions in `log` at which a chain ends: before each further full, and at the end.
/// Resolving each of them visits every backup once.
pub fn chain_ends(log: &[LogEntry]) -> Vec<Sequence> {
    let ends = (0..log.len())
        .filter(|at| log.get(at + 1).is_none_or(|next| next.kind == BackupKind::Full));
    ends.map(|at| log[at].sequence).collect()
}

/// One table of a restore point and what leads to its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChain<'a> {
    /// The table at the restore point: name, schema and digest as they will be.
    pub table: &'a TableEntry,
    /// The links that matter: one that carries it whole, then deltas, in chain order.
    pub links: Vec<TableLink<'a>>,
}

impl<'a> TableChain<'a> {
    /// Rows to be read, tombstones included.
    pub fn rows(&self) -> u64 {
        self.sum(|part| part.rows)
    }

    /// Key and payload bytes to be read: the unit of progress.
    pub fn row_bytes(&self) -> u64 {
        self.sum(|part| part.row_bytes)
    }

    /// Bytes of the objects to be read.
    pub fn bytes(&self) -> u64 {
        self.sum(|part| part.bytes)
    }

    fn sum(&self, count: fn(&PartEntry) -> u64) -> u64 {
        let parts = self.links.iter().flat_map(|link| &link.entry.parts);
        parts.fold(0, |sum, part| sum.saturating_add(count(part)))
    }

    /// What an increment's source is told of this table.
    pub fn parent_table(&self, position: Position) -> crate::database::ParentTable {
        crate::database::ParentTable {
            id: self.table.id,
            schema: self.table.schema.clone(),
            position,
            structure: self.table.structure.clone(),
        }
    }
}

/// One table in one backup of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLink<'a> {
    /// Position in the chain.
    pub link: LinkIdx,
    /// Directory of the backup.
    pub directory: &'a str,
    /// Schema, mode and parts there.
    pub entry: &'a TableEntry,
}

impl TableLink<'_> {
    /// Path of one of its parts inside the collection.
    pub fn part_path(&self, part: &PartEntry) -> String {
        format!("{}/{}", self.directory, part.name)
    }
}

/// A name or glob that selects tables, and whether it has.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: String,
    glob: Option<GlobMatcher>,
    selected: bool,
}

impl Pattern {
    /// Reads a pattern: see [`Chain::tables`].
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is neither a name nor a glob.
    pub(crate) fn new(text: &str) -> Result<Pattern> {
        let glob = GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build();
        let glob = match glob {
            Ok(glob) => Some(glob.compile_matcher()),
            // A name may look like a malformed glob and still be a name.
            Err(_) if TableName::parse(text).is_ok() => None,
            Err(cause) => {
                let message = format!("`{text}` is neither a table's name nor a pattern");
                return Err(Error::with_source(Kind::Usage, message, cause));
            }
        };
        Ok(Pattern { text: text.to_owned(), glob, selected: false })
    }

    /// As it was typed.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it has selected anything yet.
    pub(crate) fn has_selected(&self) -> bool {
        self.selected
    }

    /// Whether it selects that table.
    pub(crate) fn selects(&mut self, name: &TableName) -> bool {
        let shown = name.to_string();
        let full = format!("{}.{}", name.schema(), name.name());
        let fits = |glob: &GlobMatcher| glob.is_match(&shown) || glob.is_match(&full);
        let exact = TableName::parse(&self.text).as_ref() == Ok(name);
        let selects = exact || self.glob.as_ref().is_some_and(fits);
        self.selected |= selects;
        selects
    }
}

#[cfg(test)]
mod tests;
