//! From what a slot tells to the last state of each row.
//!
//! [`ChangeReader`] takes the messages of a slot in order and gives the changes of the tables it
//! knows, between two cuts, to a [`Collapser`]. Of a table that is truncated or altered on the
//! way nothing more is taken: its changes are not complete, and [`ReadChanges::gap`] says why.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;

use crate::database::postgres::capture::Attribute;
use crate::database::postgres::collapse::{Collapsed, Collapser, RowState};
use crate::database::postgres::error::failed;
use crate::database::postgres::pgoutput::{Datum, Lsn, Message, Oid, OldTuple, Relation, Tuple};
use crate::database::postgres::replication::show_lsn;
use crate::database::postgres::slot::SlotCopy;
use crate::database::postgres::types::read::Tuples;
use crate::database::postgres::types::{NativeColumn, Wire};
use crate::database::postgres::{literal, text};
use crate::error::{Error, Kind, Result};
use crate::ids::{ColumnId, CutId};
use crate::row::key::encode_key_value;
use crate::row::payload::{begin, put_unchanged, put_value};
use crate::row::{RowCodec, Schema, Value};

/// Bytes of the log that one read covers at least, if nobody says otherwise. Not less, since each
/// read begins at the oldest transaction that was open at its start, and goes through the log
/// from there on again.
pub(super) const SLICE_BYTES: u64 = 1 << 30;

/// Reads at most, for the same reason.
const SLICES_MAX: u64 = 16;

/// Memory for changes that wait to be sorted.
const SORT_BYTES_MAX: u64 = 64 << 20;

/// Whose words are in the log that name cuts.
pub(super) const CUT_PREFIX: &str = "tidemark";

/// First version whose slots tell words that programs leave in the log.
pub(super) const WORDS_VERSION_MIN: u32 = 140_000;

/// The span of the log that an increment covers: commits from `from` on and before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Position of the parent's cut.
    pub(super) from: Lsn,
    /// Position of this cut.
    pub(super) to: Lsn,
}

/// The reads that a span is divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slices {
    /// Where the slot begins to tell.
    pub(super) begins_at: Lsn,
    /// Bytes of the log that each covers at least.
    pub(super) bytes_min: u64,
}

/// A table whose changes are read.
#[derive(Clone, Debug)]
pub(super) struct ChangedTable {
    oid: Oid,
    /// Columns as tuples have them.
    columns: Vec<ChangedColumn>,
    /// Positions among them of the key columns, in key order.
    key: Vec<usize>,
    /// Positions among them of the columns in payloads, in ascending column id.
    stored: Vec<usize>,
}

#[derive(Clone, Debug)]
struct ChangedColumn {
    id: ColumnId,
    name: String,
    wire: Wire,
    type_oid: u32,
    type_modifier: i32,
}

impl ChangedTable {
    /// A table at the cut: its schema, its columns in the order of the schema, and what the
    /// catalogs say of them.
    ///
    /// `None` when they do not fit together, which only another moment's catalogs do not.
    pub(super) fn new(
        oid: Oid,
        schema: &Schema,
        natives: &[NativeColumn],
        attributes: &[Attribute],
    ) -> Option<ChangedTable> {
        let columns: Vec<ChangedColumn> = attributes
            .iter()
            .filter(|attribute| !attribute.is_generated)
            .map(|attribute| {
                let at = natives.iter().position(|native| native.number == attribute.number)?;
                Some(ChangedColumn {
                    id: schema.columns.get(at)?.id,
                    name: attribute.name.clone(),
                    wire: natives[at].wire,
                    type_oid: attribute.type_oid,
                    type_modifier: attribute.type_modifier,
                })
            })
            .collect::<Option<_>>()?;
        let position = |id: ColumnId| columns.iter().position(|column| column.id == id);
        let key = schema.key.iter().map(|id| position(*id)).collect::<Option<_>>()?;
        let codec = RowCodec::new(schema);
        let stored = codec.stored_columns().iter();
        let stored = stored.map(|at| position(schema.columns[*at].id)).collect::<Option<_>>()?;
        (columns.len() == schema.columns.len()).then_some(ChangedTable {
            oid,
            columns,
            key,
            stored,
        })
    }

    /// Why tuples of `relation` cannot be read as rows of this table: a clause.
    fn gap_in(&self, relation: &Relation<'_>) -> Option<&'static str> {
        let same = self.columns.len() == relation.columns.len()
            && self.columns.iter().zip(&relation.columns).all(|(ours, theirs)| {
                (ours.name.as_str(), ours.type_oid, ours.type_modifier)
                    == (theirs.name, theirs.type_oid, theirs.type_modifier)
            });
        if !same {
            return Some("its columns changed after the parent, and back");
        }
        let names_rows =
            relation.identity == b'f' || self.key.iter().all(|at| relation.columns[*at].is_key);
        (!names_rows).then_some("its replica identity was another one after the parent")
    }

    fn check(&self, tuple: &Tuple<'_>) -> Result<()> {
        if tuple.column_count() == self.columns.len() {
            return Ok(());
        }
        let message = format!(
            "the slot tells of a row with {} columns, its table has {}",
            tuple.column_count(),
            self.columns.len()
        );
        Err(Error::new(Kind::Fatal, message))
    }

    fn value(&self, at: usize, bytes: &[u8]) -> Result<Value> {
        let column = &self.columns[at];
        text::parse(column.wire, bytes)
            .map_err(|error| error.context(format!("column `{}`", column.name)))
    }

    /// Appends the key of a row; what is unchanged in it stands in the row before.
    fn encode_key(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        for &at in &self.key {
            let Datum::Text(bytes) = row.datum(at) else {
                let message = format!(
                    "the slot tells of a row without its key column `{}`",
                    self.columns[at].name
                );
                return Err(Error::new(Kind::Fatal, message));
            };
            encode_key_value(&self.value(at, bytes)?, out)?;
        }
        Ok(())
    }

    /// Appends the payload of a row; says whether it misses columns.
    fn encode_payload(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        let mut is_partial = false;
        begin(out);
        for &at in &self.stored {
            let id = self.columns[at].id;
            match row.datum(at) {
                Datum::Null => {}
                Datum::Text(bytes) => put_value(id, &self.value(at, bytes)?, out),
                Datum::Unchanged => {
                    put_unchanged(id, out);
                    is_partial = true;
                }
            }
        }
        Ok(is_partial)
    }
}

/// A row that the slot tells of, with what it says of the same row before.
struct Row<'a> {
    new: Vec<Datum<'a>>,
    old: Option<OldRow<'a>>,
}

struct OldRow<'a> {
    data: Vec<Datum<'a>>,
    is_whole: bool,
}

impl<'a> Row<'a> {
    /// The value now: an unchanged one is the one before, if that is told.
    fn datum(&self, at: usize) -> Datum<'a> {
        match (self.new[at], &self.old) {
            // In a key tuple only columns of the identity are told, the others are null.
            (Datum::Unchanged, Some(old)) => match old.data[at] {
                Datum::Null if !old.is_whole => Datum::Unchanged,
                told => told,
            },
            (datum, _) => datum,
        }
    }
}

/// Takes messages in order.
pub(super) struct ChangeReader<'t> {
    span: Span,
    /// Words that cuts left in the log of which this one is looked for.
    looks_for: Option<CutId>,
    is_found: bool,
    tables: &'t [ChangedTable],
    by_oid: BTreeMap<Oid, u32>,
    /// Tables whose columns were told since the last read began.
    described: BTreeSet<u32>,
    gaps: BTreeMap<u32, &'static str>,
    collapser: Collapser,
    /// Whether the transaction at hand is inside the span.
    is_inside: bool,
    key: Vec<u8>,
    old_key: Vec<u8>,
    payload: Vec<u8>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct ReadChanges {
    gaps: BTreeMap<u32, &'static str>,
    /// The changes of the other tables, by their positions.
    pub(super) collapsed: Collapsed,
}

impl ReadChanges {
    /// Why the changes of a table are not complete: a clause; `None` if they are.
    pub(super) fn gap(&self, table: u32) -> Option<&'static str> {
        self.gaps.get(&table).copied()
    }
}

impl<'t> ChangeReader<'t> {
    /// A reader that keeps what does not fit its memory in the folder `scratch`, its own.
    pub(super) fn new(span: Span, tables: &'t [ChangedTable], scratch: &Path) -> ChangeReader<'t> {
        let by_oid = (0..).zip(tables).map(|(at, table)| (table.oid, at)).collect();
        ChangeReader {
            span,
            looks_for: None,
            is_found: false,
            tables,
            by_oid,
            described: BTreeSet::new(),
            gaps: BTreeMap::new(),
            collapser: Collapser::new(scratch, tables.len() as u32, SORT_BYTES_MAX),
            is_inside: false,
            key: Vec::new(),
            old_key: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The same, looking for the word that the parent's cut left behind itself.
    #[must_use]
    pub(super) fn looking_for(self, cut: CutId) -> ChangeReader<'t> {
        ChangeReader { looks_for: Some(cut), ..self }
    }

    /// Whether what was looked for was found, or nothing was.
    pub(super) fn has_found(&self) -> bool {
        self.is_found || self.looks_for.is_none()
    }

    /// Takes a message.
    ///
    /// # Errors
    /// As [`Message::decode`]; [`Kind::Fatal`] for a message that makes no sense where it
    /// stands; those of the scratch folder.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        match Message::decode(bytes)? {
            Message::Begin { final_lsn, .. } => {
                self.is_inside = self.span.from <= final_lsn && final_lsn < self.span.to;
            }
            Message::Commit { .. } => self.is_inside = false,
            Message::Relation(relation) => self.describe(&relation),
            Message::Insert { relation, new } => {
                if let Some(at) = self.wanted(relation)? {
                    self.insert(at, &new)?;
                }
            }
            Message::Update { relation, old, new } => {
                if let Some(at) = self.wanted(relation)? {
                    self.update(at, old.as_ref(), &new)?;
                }
            }
            Message::Delete { relation, old } => {
                if let Some(at) = self.wanted(relation)? {
                    self.delete(at, &old)?;
                }
            }
            Message::Truncate { relations } => {
                for relation in relations.iter().filter(|_| self.is_inside) {
                    if let Some(&at) = self.by_oid.get(relation) {
                        self.gaps.entry(at).or_insert("it was truncated after the parent");
                    }
                }
            }
            Message::Logical { prefix, content } => {
                let is_ours = self.is_inside && prefix == CUT_PREFIX;
                let wanted = self.looks_for.map(|cut| cut.to_string());
                self.is_found |= is_ours && wanted.is_some_and(|cut| cut.as_bytes() == content);
            }
            Message::Origin | Message::Type { .. } => {}
        }
        Ok(())
    }

    /// Notes what a table looks like from here on.
    fn describe(&mut self, relation: &Relation<'_>) {
        let Some(&at) = self.by_oid.get(&relation.oid) else { return };
        let Some(gap) = self.tables[at as usize].gap_in(relation) else {
            self.described.insert(at);
            return;
        };
        self.described.remove(&at);
        if self.is_inside {
            self.gaps.entry(at).or_insert(gap);
        }
    }

    /// Forgets what tables look like: every read tells it anew.
    fn begin_read(&mut self) {
        self.described.clear();
    }

    /// The changes, collapsed.
    ///
    /// # Errors
    /// Those of [`Collapser::finish`].
    pub(super) fn finish(self) -> Result<ReadChanges> {
        Ok(ReadChanges { gaps: self.gaps, collapsed: self.collapser.finish()? })
    }

    /// Changes so far.
    pub(super) fn change_count(&self) -> u64 {
        self.collapser.change_count()
    }

    /// Position of the table, if its changes are taken.
    fn wanted(&mut self, relation: Oid) -> Result<Option<u32>> {
        let Some(&at) = self.by_oid.get(&relation) else { return Ok(None) };
        if !self.is_inside || self.gaps.contains_key(&at) {
            return Ok(None);
        }
        if !self.described.contains(&at) {
            // Told before the span as something else, and not again: then it is that still.
            self.gaps.insert(at, "its columns changed after the parent, and back");
            return Ok(None);
        }
        Ok(Some(at))
    }

    fn insert(&mut self, at: u32, new: &Tuple<'_>) -> Result<()> {
        let table = &self.tables[at as usize];
        table.check(new)?;
        self.put(at, &Row { new: new.columns().collect(), old: None }, RowState::Upsert)
    }

    fn update(&mut self, at: u32, old: Option<&OldTuple<'_>>, new: &Tuple<'_>) -> Result<()> {
        let table = &self.tables[at as usize];
        table.check(new)?;
        let Some(old) = old else {
            let row = Row { new: new.columns().collect(), old: None };
            return self.put(at, &row, RowState::Update);
        };
        let is_whole = matches!(old, OldTuple::Whole(_));
        let before = self.old_row(at, old)?;
        let data = old.tuple().columns().collect();
        let row = Row { new: new.columns().collect(), old: Some(OldRow { data, is_whole }) };
        self.old_key.clear();
        table.encode_key(&before, &mut self.old_key)?;
        self.key.clear();
        table.encode_key(&row, &mut self.key)?;
        if self.old_key == self.key {
            return self.put(at, &row, RowState::Update);
        }
        self.push(at, RowState::Delete, Pushed::OldKey)?;
        self.put(at, &row, RowState::Moved)
    }

    fn delete(&mut self, at: u32, old: &OldTuple<'_>) -> Result<()> {
        let before = self.old_row(at, old)?;
        self.old_key.clear();
        self.tables[at as usize].encode_key(&before, &mut self.old_key)?;
        self.push(at, RowState::Delete, Pushed::OldKey)
    }

    fn old_row<'a>(&self, at: u32, old: &OldTuple<'a>) -> Result<Row<'a>> {
        self.tables[at as usize].check(old.tuple())?;
        Ok(Row { new: old.tuple().columns().collect(), old: None })
    }

    /// Adds a row; in the state `partial` if it misses columns, whole otherwise.
    fn put(&mut self, at: u32, row: &Row<'_>, partial: RowState) -> Result<()> {
        let table = &self.tables[at as usize];
        self.key.clear();
        table.encode_key(row, &mut self.key)?;
        self.payload.clear();
        let state = match table.encode_payload(row, &mut self.payload)? {
            true if partial == RowState::Upsert => {
                return Err(Error::new(Kind::Fatal, "the slot tells of a new row with old values"));
            }
            true => partial,
            false => RowState::Upsert,
        };
        self.push(at, state, Pushed::Row)
    }

    fn push(&mut self, at: u32, state: RowState, pushed: Pushed) -> Result<()> {
        let (key, payload) = match pushed {
            Pushed::Row => (&self.key, &self.payload[..]),
            Pushed::OldKey => (&self.old_key, &[][..]),
        };
        let put = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        self.collapser.push(at, state, |out| put(key, out), |out| put(payload, out))
    }
}

/// What is pushed of the row at hand.
#[derive(Clone, Copy)]
enum Pushed {
    Row,
    OldKey,
}

/// Reads everything that a copy of a slot tells, up to the end of the reader's span.
///
/// In several reads, so that the server never keeps more than a bounded part of the log in
/// temporary files.
///
/// # Errors
/// As [`failed`] says; those of [`ChangeReader::take`].
pub(super) fn read_slot(
    copy: &mut SlotCopy,
    publication: &str,
    slices: Slices,
    reader: &mut ChangeReader<'_>,
) -> Result<()> {
    let to = reader.span.to;
    let Slices { begins_at, bytes_min } = slices;
    let slice = (to.saturating_sub(begins_at) / SLICES_MAX).max(bytes_min).max(1);
    let mut at = begins_at;
    while at < to {
        at = to.min(at.saturating_add(slice));
        reader.begin_read();
        read_slice(copy, publication, at, reader)?;
        tracing::debug!(up_to = %show_lsn(at), changes = reader.change_count(), "read the slot");
    }
    Ok(())
}

fn read_slice(
    copy: &mut SlotCopy,
    publication: &str,
    up_to: Lsn,
    reader: &mut ChangeReader<'_>,
) -> Result<()> {
    let (session, name) = copy.parts();
    let words = if session.version() < WORDS_VERSION_MIN { "" } else { ", 'messages', 'true'" };
    let sql = format!(
        "COPY (SELECT data FROM pg_logical_slot_get_binary_changes({}, {}, NULL, \
         'proto_version', '1', 'publication_names', {}{words})) TO STDOUT (FORMAT binary)",
        literal(name),
        literal(&show_lsn(up_to)),
        // A list of names, each of them quoted as an identifier.
        literal(&super::quoted(publication)),
    );
    let what = "read the changes that the slot tells";
    let output = session.client().copy_out(&sql).map_err(failed(what))?;
    take_all(&mut Tuples::new(output), reader)
}

fn take_all<R: BufRead>(tuples: &mut Tuples<R>, reader: &mut ChangeReader<'_>) -> Result<()> {
    while tuples.next()? {
        let message = tuples
            .field(0)
            .ok_or_else(|| Error::new(Kind::Fatal, "the server sent a change that is NULL"))?;
        reader.take(message)?;
    }
    Ok(())
}
