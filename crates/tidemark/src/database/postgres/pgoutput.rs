//! What a logical replication slot says: messages of the plugin `pgoutput`, protocol version 1.
//!
//! The layout is that of the manual's chapter "Logical Replication Message Formats": a letter,
//! then numbers in network order and texts that end with a zero byte. [`Message::decode`]
//! borrows from the bytes; a tuple is walked once when it is decoded, so that going through its
//! columns afterwards cannot fail. Messages of transactions that are still in progress belong to
//! streaming, which is never asked for, and are refused.

use crate::error::{Error, Kind, Result};

/// Object identifier of PostgreSQL's catalogs.
pub(super) type Oid = u32;

/// Place in the write-ahead log.
pub(super) type Lsn = u64;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// Its number.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// Where that record ends.
        end_lsn: Lsn,
    },
    /// Where the transaction came from, on a server that is a replica itself.
    Origin,
    /// What a table looks like, before the first change of it and after it was altered.
    Relation(Relation<'a>),
    /// What a type that is not built in is called.
    Type {
        /// The type.
        oid: Oid,
    },
    /// A new row.
    Insert {
        /// Table.
        relation: Oid,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// Table.
        relation: Oid,
        /// What is known of it before; `None` when its identity did not change.
        old: Option<OldTuple<'a>>,
        /// The row now.
        new: Tuple<'a>,
    },
    /// A row is gone.
    Delete {
        /// Table.
        relation: Oid,
        /// What is known of it.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// The tables.
        relations: Vec<Oid>,
    },
    /// Something that a program wrote into the log for others to read.
    Logical {
        /// Whose.
        prefix: &'a str,
        /// What.
        content: &'a [u8],
    },
}

/// A table as the changes that follow have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation<'a> {
    /// The table.
    pub(super) oid: Oid,
    /// How it identifies rows: `d`efault, `n`othing, `f`ull or `i`ndex.
    pub(super) identity: u8,
    /// Columns of tuples, in order; without dropped and generated ones.
    pub(super) columns: Vec<RelationColumn<'a>>,
}

/// One column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelationColumn<'a> {
    /// Whether it identifies rows.
    pub(super) is_key: bool,
    /// Name.
    pub(super) name: &'a str,
    /// Type.
    pub(super) type_oid: Oid,
    /// What belongs to the type: a length, a scale; -1 for nothing.
    pub(super) type_modifier: i32,
}

/// A row before it changed, or what of it identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OldTuple<'a> {
    /// Columns of its identity; the others are null.
    Key(Tuple<'a>),
    /// All columns.
    Whole(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The columns that are known.
    pub(super) fn tuple(&self) -> &Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Whole(tuple) => tuple,
        }
    }
}

/// The columns of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tuple<'a> {
    column_count: u16,
    /// Checked: holds so many columns and nothing else.
    bytes: &'a [u8],
}

/// One column of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datum<'a> {
    /// NULL.
    Null,
    /// A value stored out of line that did not change and is not repeated.
    Unchanged,
    /// The text form, as the type's output function gives it.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    pub(super) fn column_count(&self) -> usize {
        usize::from(self.column_count)
    }

    /// The columns, in the order of the relation.
    pub(super) fn columns(&self) -> impl Iterator<Item = Datum<'a>> + use<'a> {
        let mut reader = Reader { rest: self.bytes };
        (0..self.column_count).map(move |_| reader.datum().expect("the tuple was checked"))
    }
}

impl<'a> Message<'a> {
    /// Reads a whole message.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a message of another version; [`Kind::Fatal`] for one that is
    /// truncated, too long or malformed.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Message<'a>> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Err(Error::new(Kind::Fatal, "the server sent an empty change"));
        };
        if !b"BCORYIUDTM".contains(&kind) {
            let message = format!(
                "the server sent a change of kind {:?}, which is of a protocol that was not asked \
                 for",
                char::from(kind)
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        let mut reader = Reader { rest };
        match reader.message(kind) {
            Some(message) if reader.rest.is_empty() => Ok(message),
            _ => {
                let message = format!(
                    "the server sent a change of kind {:?} with {} bytes that make no sense",
                    char::from(kind),
                    rest.len()
                );
                Err(Error::new(Kind::Fatal, message))
            }
        }
    }
}

/// What is left of a message.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn message(&mut self, kind: u8) -> Option<Message<'a>> {
        Some(match kind {
            b'B' => {
                let final_lsn = self.u64()?;
                self.take(8)?; // when it committed
                Message::Begin { final_lsn, xid: self.u32()? }
            }
            b'C' => {
                self.take(1)?; // flags, unused
                let (commit_lsn, end_lsn) = (self.u64()?, self.u64()?);
                self.take(8)?; // when it committed
                Message::Commit { commit_lsn, end_lsn }
            }
            b'O' => {
                self.take(8)?;
                self.text()?;
                Message::Origin
            }
            b'R' => Message::Relation(self.relation()?),
            b'Y' => {
                let oid = self.u32()?;
                self.text()?;
                self.text()?;
                Message::Type { oid }
            }
            b'I' => {
                let relation = self.u32()?;
                let new = self.new_tuple()?;
                Message::Insert { relation, new }
            }
            b'U' => {
                let relation = self.u32()?;
                let old = match self.rest.first()? {
                    b'N' => None,
                    _ => Some(self.old_tuple()?),
                };
                Message::Update { relation, old, new: self.new_tuple()? }
            }
            b'D' => Message::Delete { relation: self.u32()?, old: self.old_tuple()? },
            b'T' => {
                let count = self.u32()? as usize;
                self.take(1)?; // CASCADE, RESTART IDENTITY
                let oids = self.take(count.checked_mul(4)?)?;
                let oid = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("4 bytes"));
                Message::Truncate { relations: oids.chunks_exact(4).map(oid).collect() }
            }
            b'M' => {
                self.take(1)?; // whether it belongs to a transaction
                self.take(8)?;
                let prefix = self.text()?;
                let length = self.u32()?;
                Message::Logical { prefix, content: self.take(length as usize)? }
            }
            _ => return None,
        })
    }

    fn relation(&mut self) -> Option<Relation<'a>> {
        let oid = self.u32()?;
        self.text()?; // schema; empty for pg_catalog
        self.text()?; // table
        let identity = self.u8()?;
        let count = self.u16()?;
        // A column takes at least ten bytes, so the list is no longer than the message.
        let mut columns = Vec::with_capacity(usize::from(count).min(self.rest.len() / 10));
        for _ in 0..count {
            columns.push(RelationColumn {
                is_key: self.u8()? & 1 == 1,
                name: self.text()?,
                type_oid: self.u32()?,
                type_modifier: self.u32()? as i32,
            });
        }
        Some(Relation { oid, identity, columns })
    }

    fn new_tuple(&mut self) -> Option<Tuple<'a>> {
        match self.u8()? {
            b'N' => self.tuple(),
            _ => None,
        }
    }

    fn old_tuple(&mut self) -> Option<OldTuple<'a>> {
        match self.u8()? {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Whole),
            _ => None,
        }
    }

    fn tuple(&mut self) -> Option<Tuple<'a>> {
        let column_count = self.u16()?;
        let from = self.rest;
        for _ in 0..column_count {
            self.datum()?;
        }
        Some(Tuple { column_count, bytes: &from[..from.len() - self.rest.len()] })
    }

    fn datum(&mut self) -> Option<Datum<'a>> {
        Some(match self.u8()? {
            b'n' => Datum::Null,
            b'u' => Datum::Unchanged,
            b't' => {
                let length = self.u32()?;
                Datum::Text(self.take(length as usize)?)
            }
            // `b`, the binary form, is not asked for.
            _ => return None,
        })
    }

    fn text(&mut self) -> Option<&'a str> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(self.take(end)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes(bytes.try_into().expect("2 bytes")))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("4 bytes")))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64::from_be_bytes(bytes.try_into().expect("8 bytes")))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    //! Fuzz target of what a slot sends.

    use super::{Message, OldTuple, Tuple};

    /// A message; every tuple of it is gone through.
    pub(crate) fn message(input: &[u8]) {
        let Ok(message) = Message::decode(input) else { return };
        let walk = |tuple: &Tuple<'_>| {
            assert_eq!(tuple.columns().count(), tuple.column_count(), "columns are missing");
        };
        match &message {
            Message::Insert { new, .. } => walk(new),
            Message::Update { old, new, .. } => {
                old.iter().map(OldTuple::tuple).for_each(walk);
                walk(new);
            }
            Message::Delete { old, .. } => walk(old.tuple()),
            _ => {}
        }
    }

    /// One message of each kind.
    pub(crate) fn message_seeds() -> Vec<Vec<u8>> {
        super::sample::every_kind()
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod sample {
    //! Messages as a server writes them.

    /// A column of a tuple.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) enum Cell<'a> {
        Null,
        Unchanged,
        Text(&'a str),
    }

    fn put_text(text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }

    fn put_tuple(kind: u8, cells: &[Cell<'_>], out: &mut Vec<u8>) {
        out.push(kind);
        out.extend((cells.len() as u16).to_be_bytes());
        for cell in cells {
            match cell {
                Cell::Null => out.push(b'n'),
                Cell::Unchanged => out.push(b'u'),
                Cell::Text(text) => {
                    out.push(b't');
                    out.extend((text.len() as u32).to_be_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
    }

    pub(in super::super) fn begin(final_lsn: u64, xid: u32) -> Vec<u8> {
        let mut out = vec![b'B'];
        out.extend(final_lsn.to_be_bytes());
        out.extend(0u64.to_be_bytes());
        out.extend(xid.to_be_bytes());
        out
    }

    pub(in super::super) fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
        let mut out = vec![b'C', 0];
        out.extend(commit_lsn.to_be_bytes());
        out.extend(end_lsn.to_be_bytes());
        out.extend(0u64.to_be_bytes());
        out
    }

    /// Columns as (is key, name, type, modifier).
    pub(in super::super) fn relation(oid: u32, columns: &[(bool, &str, u32, i32)]) -> Vec<u8> {
        let mut out = vec![b'R'];
        out.extend(oid.to_be_bytes());
        put_text("public", &mut out);
        put_text("orders", &mut out);
        out.push(b'd');
        out.extend((columns.len() as u16).to_be_bytes());
        for (is_key, name, type_oid, modifier) in columns {
            out.push(u8::from(*is_key));
            put_text(name, &mut out);
            out.extend(type_oid.to_be_bytes());
            out.extend(modifier.to_be_bytes());
        }
        out
    }

    pub(in super::super) fn insert(relation: u32, new: &[Cell<'_>]) -> Vec<u8> {
        let mut out = vec![b'I'];
        out.extend(relation.to_be_bytes());
        put_tuple(b'N', new, &mut out);
        out
    }

    /// `old` with its kind, `K` or `O`.
    pub(in super::super) fn update(
        relation: u32,
        old: Option<(u8, &[Cell<'_>])>,
        new: &[Cell<'_>],
    ) -> Vec<u8> {
        let mut out = vec![b'U'];
        out.extend(relation.to_be_bytes());
        if let Some((kind, cells)) = old {
            put_tuple(kind, cells, &mut out);
        }
        put_tuple(b'N', new, &mut out);
        out
    }

    pub(in super::super) fn delete(relation: u32, kind: u8, old: &[Cell<'_>]) -> Vec<u8> {
        let mut out = vec![b'D'];
        out.extend(relation.to_be_bytes());
        put_tuple(kind, old, &mut out);
        out
    }

    pub(in super::super) fn truncate(relations: &[u32]) -> Vec<u8> {
        let mut out = vec![b'T'];
        out.extend((relations.len() as u32).to_be_bytes());
        out.push(0);
        relations.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
        out
    }

    pub(in super::super) fn origin() -> Vec<u8> {
        let mut out = vec![b'O'];
        out.extend(7u64.to_be_bytes());
        put_text("elsewhere", &mut out);
        out
    }

    pub(in super::super) fn type_of(oid: u32) -> Vec<u8> {
        let mut out = vec![b'Y'];
        out.extend(oid.to_be_bytes());
        put_text("public", &mut out);
        put_text("mood", &mut out);
        out
    }

    pub(in super::super) fn logical(prefix: &str, content: &[u8]) -> Vec<u8> {
        let mut out = vec![b'M', 1];
        out.extend(9u64.to_be_bytes());
        put_text(prefix, &mut out);
        out.extend((content.len() as u32).to_be_bytes());
        out.extend_from_slice(content);
        out
    }

    /// One message of each kind, at least.
    pub(in super::super) fn every_kind() -> Vec<Vec<u8>> {
        let row = [Cell::Text("7"), Cell::Null, Cell::Unchanged];
        let key = [Cell::Text("8"), Cell::Null, Cell::Null];
        vec![
            begin(0x0123_4567, 42),
            commit(0x0123_4567, 0x0123_4599),
            origin(),
            relation(16_400, &[(true, "id", 20, -1), (false, "sum", 1700, 0x0006_0004)]),
            type_of(16_500),
            insert(16_400, &row),
            update(16_400, None, &row),
            update(16_400, Some((b'K', &key)), &row),
            update(16_400, Some((b'O', &key)), &row),
            delete(16_400, b'K', &key),
            delete(16_400, b'O', &key),
            truncate(&[16_400, 16_401]),
            logical("tidemark", b"\0\xff"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::sample::{self, Cell};
    use super::*;

    #[test]
    fn every_kind_of_message_reads_as_it_was_written() {
        let decode = |bytes: &[u8]| format!("{:?}", Message::decode(bytes).unwrap());
        assert_eq!(decode(&sample::begin(7, 9)), "Begin { final_lsn: 7, xid: 9 }");
        assert_eq!(decode(&sample::commit(7, 8)), "Commit { commit_lsn: 7, end_lsn: 8 }");
        assert_eq!(decode(&sample::truncate(&[3, 1])), "Truncate { relations: [3, 1] }");
        assert_eq!(decode(&sample::type_of(5)), "Type { oid: 5 }");
        assert_eq!(decode(&sample::origin()), "Origin");
        let message = sample::logical("p", b"\xff");
        let logical = Message::Logical { prefix: "p", content: b"\xff" };
        assert_eq!(Message::decode(&message).unwrap(), logical);

        let bytes = sample::relation(5, &[(true, "id", 20, -1), (false, "x", 1700, 6)]);
        let Message::Relation(relation) = Message::decode(&bytes).unwrap() else {
            panic!("not a relation")
        };
        let column = |is_key, name, type_oid, type_modifier| RelationColumn {
            is_key,
            name,
            type_oid,
            type_modifier,
        };
        assert_eq!((relation.oid, relation.identity), (5, b'd'));
        assert_eq!(relation.columns, [column(true, "id", 20, -1), column(false, "x", 1700, 6)]);
    }

    #[test]
    fn a_row_has_its_columns_in_order() {
        let (new, old) = ([Cell::Text("7"), Cell::Unchanged], [Cell::Text(""), Cell::Null]);
        let bytes = sample::update(5, Some((b'K', &old)), &new);
        let Message::Update { relation, old, new } = Message::decode(&bytes).unwrap() else {
            panic!("not an update")
        };
        assert_eq!(relation, 5);
        assert_eq!(new.columns().collect::<Vec<_>>(), [Datum::Text(b"7"), Datum::Unchanged]);
        let Some(OldTuple::Key(old)) = old else { panic!("no old key") };
        assert_eq!(old.columns().collect::<Vec<_>>(), [Datum::Text(b""), Datum::Null]);
        assert_eq!(old.column_count(), 2);
    }

    #[test]
    fn every_truncated_and_every_longer_message_is_refused() {
        for message in sample::every_kind() {
            assert!(Message::decode(&message).is_ok(), "{message:x?}");
            for length in 0..message.len() {
                assert!(Message::decode(&message[..length]).is_err(), "{message:x?} {length}");
            }
            let longer = [&message[..], &[0]].concat();
            assert_eq!(Message::decode(&longer).unwrap_err().kind(), Kind::Fatal);
        }
    }

    #[test]
    fn messages_of_transactions_in_progress_are_refused() {
        for kind in [b'S', b'E', b'c', b'A', b'b', b'P', b'K', b'r', b'p'] {
            let refused = Message::decode(&[kind, 0, 0, 0, 1, 1]).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unsupported, "{refused}");
        }
    }

    #[test]
    fn absurd_counts_are_refused_before_memory_is_asked_for() {
        let truncate = [b"T".as_slice(), &u32::MAX.to_be_bytes(), &[0]].concat();
        assert!(Message::decode(&truncate).is_err());
        let insert = [b"I".as_slice(), &[0; 4], b"N", &[0xff; 2], b"n"].concat();
        assert!(Message::decode(&insert).is_err());
    }
}
