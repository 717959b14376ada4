//! Changes in the order in which they happened, collapsed to the last state per key.
//!
//! [`Collapser`] takes the changes of all tables and sorts them by table and key in bounded
//! memory; [`Collapsed`] is what is left of each key, in one scratch file that any number of
//! readers go through at once, each from the key it asks for.
//!
//! What two changes of one key make together, the older one above, the newer one on the left:
//!
//! | | upsert | update | moved | delete |
//! |---|---|---|---|---|
//! | **upsert** | upsert | upsert | upsert | upsert |
//! | **update** | upsert, overlaid | update, overlaid | moved, overlaid | refused |
//! | **moved** | moved | moved | moved | moved |
//! | **delete** | delete | delete | delete | delete |
//!
//! *Moved* is a row that came here from another key and left out values that did not change
//! and are stored out of line: its base stands under the key it came from, where no reader of
//! this key would look. Whoever reads [`Collapsed`] fetches such rows from the cut itself.
//!
//! The file is entries one after another, in ascending table, then key:
//!
//! | bytes | |
//! |---|---|
//! | 4, 8, 1 | length of table and key together, payload length, state |
//! | 4 | table, big-endian |
//! | n, m | key, payload |

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::database::sorter::RowSorter;
use crate::error::{Error, Kind, Result};
use crate::row::KeyRange;
use crate::row::payload::{is_partial, overlay};
use crate::row::value::hex;

/// Bytes of the file between two keys that readers can begin at.
const INDEX_BYTES: u64 = 256 << 10;
const BUFFER_BYTES: usize = 256 << 10;

const HEADER_LEN: usize = 13;
const TABLE_LEN: usize = 4;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RowState {
    /// The payload is the whole row.
    Upsert = 0,
    /// The payload misses columns, which are as they were under the same key.
    Update = 1,
    /// The row is gone.
    Delete = 2,
    /// The payload misses columns, which are as they were under another key.
    Moved = 3,
}

impl RowState {
    fn from_number(number: u8) -> Option<RowState> {
        [RowState::Upsert, RowState::Update, RowState::Delete, RowState::Moved]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

/// Takes changes, of any number of tables, in the order in which they happened.
#[derive(Debug)]
pub(super) struct Collapser {
    sorter: RowSorter,
    path: PathBuf,
    change_count: u64,
    table_count: u32,
}

impl Collapser {
    /// A collapser of `table_count` tables that keeps what does not fit `bytes_max` in the
    /// folder `scratch`, which exists and is its own.
    pub(super) fn new(scratch: &Path, table_count: u32, bytes_max: u64) -> Collapser {
        Collapser {
            sorter: RowSorter::new(scratch, bytes_max),
            path: scratch.join("changes"),
            change_count: 0,
            table_count,
        }
    }

    /// Adds a change of `table` that `write_key` and `write_payload` append in place.
    ///
    /// # Errors
    /// Theirs, and those of the scratch folder; the collapser is spent then.
    pub(super) fn push(
        &mut self,
        table: u32,
        state: RowState,
        write_key: impl FnOnce(&mut Vec<u8>) -> Result<()>,
        write_payload: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        debug_assert!(table < self.table_count, "tables are numbered from 0");
        self.change_count += 1;
        self.sorter.push_with(
            self.change_count,
            |out| {
                out.extend(table.to_be_bytes());
                write_key(out)
            },
            |out| {
                out.push(state as u8);
                write_payload(out)
            },
        )
    }

    /// Changes so far.
    pub(super) fn change_count(&self) -> u64 {
        self.change_count
    }

    /// Collapses what was pushed.
    ///
    /// # Errors
    /// [`Kind::Fatal`] for changes that contradict one another, naming the key; those of the
    /// scratch folder.
    pub(super) fn finish(self) -> Result<Collapsed> {
        let mut file = CollapsedWriter::create(self.path, self.table_count)?;
        let sorted = self.sorter.finish_all()?;
        let mut rows = sorted.rows()?;
        let mut last = Pending::default();
        let mut failed = Ok(());
        while rows.next(|_, key, change| {
            let Some((state, payload)) = split_change(change) else {
                failed = Err(malformed(file.path()));
                return;
            };
            failed = if last.is_some && last.key == key {
                last.add(state, payload)
            } else {
                let put = file.put(&last);
                last.replace(key, state, payload);
                put
            };
        })? {
            std::mem::replace(&mut failed, Ok(()))?;
        }
        file.put(&last)?;
        file.finish()
    }
}

fn split_change(change: &[u8]) -> Option<(RowState, &[u8])> {
    let (state, payload) = change.split_first()?;
    Some((RowState::from_number(*state)?, payload))
}

/// The last state of the key at hand, so far.
#[derive(Debug, Default)]
struct Pending {
    is_some: bool,
    key: Vec<u8>,
    state: Option<RowState>,
    payload: Vec<u8>,
    overlaid: Vec<u8>,
}

impl Pending {
    fn replace(&mut self, key: &[u8], state: RowState, payload: &[u8]) {
        self.is_some = true;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.set(state, payload);
    }

    fn set(&mut self, state: RowState, payload: &[u8]) {
        self.state = Some(state);
        self.payload.clear();
        self.payload.extend_from_slice(payload);
    }

    /// Puts a newer change on top.
    fn add(&mut self, newer: RowState, payload: &[u8]) -> Result<()> {
        let older = self.state.expect("a key has a state");
        match (older, newer) {
            (_, RowState::Upsert | RowState::Delete | RowState::Moved) => self.set(newer, payload),
            (RowState::Delete, RowState::Update) => {
                let key = hex(self.key.get(TABLE_LEN..).unwrap_or_default());
                let message = format!(
                    "the slot tells of an update of the row at key 0x{key}, which it said was \
                     deleted before"
                );
                return Err(Error::new(Kind::Fatal, message));
            }
            (RowState::Upsert | RowState::Update | RowState::Moved, RowState::Update) => {
                self.overlaid.clear();
                overlay(payload, &self.payload, &mut self.overlaid)?;
                std::mem::swap(&mut self.payload, &mut self.overlaid);
                if !is_partial(&self.payload)? {
                    self.state = Some(RowState::Upsert);
                }
            }
        }
        Ok(())
    }
}

/// What is left of each key.
#[derive(Debug)]
pub(super) struct Collapsed {
    path: PathBuf,
    /// Table and key of some entries, ascending, and where they begin.
    index: Vec<(Vec<u8>, u64)>,
    tables: Vec<CollapsedTable>,
}

/// How much is left of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CollapsedTable {
    /// Keys.
    pub(super) rows: u64,
    /// Key and payload bytes.
    pub(super) bytes: u64,
}

impl Collapsed {
    /// How much is left of `table`.
    pub(super) fn table(&self, table: u32) -> CollapsedTable {
        self.tables.get(table as usize).copied().unwrap_or_default()
    }

    /// What is left of `table` inside `range`, ascending by key.
    ///
    /// # Errors
    /// Those of opening the file.
    pub(super) fn read(&self, table: u32, range: &KeyRange) -> Result<CollapsedRows> {
        let full_key = |key: &[u8]| [&table.to_be_bytes()[..], key].concat();
        let start = full_key(&range.start);
        // The last entry with a known place that is not beyond the start.
        let at = self.index.partition_point(|(key, _)| *key <= start).saturating_sub(1);
        let offset = self.index.get(at).map_or(0, |(_, offset)| *offset);
        let open = || -> std::io::Result<(File, u64)> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            Ok((file, length.saturating_sub(offset)))
        };
        let (file, left) = open().map_err(|cause| file_error("open", &self.path, cause))?;
        let end = match &range.end {
            Some(end) => full_key(end),
            None => table.wrapping_add(1).to_be_bytes().to_vec(),
        };
        Ok(CollapsedRows {
            path: self.path.clone(),
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            left,
            start,
            end,
            key: Vec::new(),
            payload: Vec::new(),
        })
    }
}

#[derive(Debug)]
struct CollapsedWriter {
    file: BufWriter<File>,
    written: u64,
    collapsed: Collapsed,
}

impl CollapsedWriter {
    fn create(path: PathBuf, table_count: u32) -> Result<CollapsedWriter> {
        let file = File::create_new(&path).map_err(|cause| file_error("create", &path, cause))?;
        let tables = vec![CollapsedTable::default(); table_count as usize];
        Ok(CollapsedWriter {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            written: 0,
            collapsed: Collapsed { path, index: Vec::new(), tables },
        })
    }

    fn path(&self) -> &Path {
        &self.collapsed.path
    }

    fn put(&mut self, row: &Pending) -> Result<()> {
        let Some(state) = row.state.filter(|_| row.is_some) else { return Ok(()) };
        let Collapsed { index, tables, path } = &mut self.collapsed;
        if index.last().is_none_or(|(_, offset)| self.written >= offset + INDEX_BYTES) {
            index.push((row.key.clone(), self.written));
        }
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&(row.key.len() as u32).to_le_bytes());
        header[4..12].copy_from_slice(&(row.payload.len() as u64).to_le_bytes());
        header[12] = state as u8;
        for piece in [&header[..], &row.key, &row.payload] {
            self.file.write_all(piece).map_err(|cause| file_error("write", path, cause))?;
            self.written += piece.len() as u64;
        }
        let (table, key) = row.key.split_at(TABLE_LEN);
        let table = u32::from_be_bytes(table.try_into().expect("4 bytes"));
        let table = &mut tables[table as usize];
        table.rows += 1;
        table.bytes += (key.len() + row.payload.len()) as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<Collapsed> {
        self.file.flush().map_err(|cause| file_error("write", &self.collapsed.path, cause))?;
        Ok(self.collapsed)
    }
}

/// Entries of one table in a range of keys.
#[derive(Debug)]
pub(super) struct CollapsedRows {
    path: PathBuf,
    file: BufReader<File>,
    left: u64,
    /// First and first other, table included.
    start: Vec<u8>,
    end: Vec<u8>,
    key: Vec<u8>,
    payload: Vec<u8>,
}

impl CollapsedRows {
    /// Shows the next row as state, key and payload; `false` at the end.
    pub(super) fn next(&mut self, show: impl FnOnce(RowState, &[u8], &[u8])) -> Result<bool> {
        while self.left > 0 {
            let mut header = [0; HEADER_LEN];
            self.take(HEADER_LEN as u64)?;
            read_exact(&mut self.file, &self.path, &mut header)?;
            let key_len = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
            let payload_len = u64::from_le_bytes(header[4..12].try_into().expect("8 bytes"));
            let state = RowState::from_number(header[12]).ok_or_else(|| malformed(&self.path))?;
            if (key_len as usize) < TABLE_LEN {
                return Err(malformed(&self.path));
            }
            self.take(u64::from(key_len))?;
            self.take(payload_len)?;
            self.key.resize(key_len as usize, 0);
            read_exact(&mut self.file, &self.path, &mut self.key)?;
            self.payload.resize(payload_len as usize, 0);
            read_exact(&mut self.file, &self.path, &mut self.payload)?;
            if self.key >= self.end {
                self.left = 0;
                return Ok(false);
            }
            if self.key >= self.start {
                show(state, &self.key[TABLE_LEN..], &self.payload);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| malformed(&self.path))?;
        Ok(())
    }
}

fn read_exact(file: &mut BufReader<File>, path: &Path, out: &mut [u8]) -> Result<()> {
    file.read_exact(out).map_err(|cause| file_error("read", path, cause))
}

fn file_error(what: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::io(format!("{what} the collapsed changes in {}", path.display()), cause)
}

fn malformed(path: &Path) -> Error {
    let message = format!("the collapsed changes in {} are malformed", path.display());
    Error::new(Kind::Fatal, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ColumnId;
    use crate::row::Value;
    use crate::row::payload;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SMALL: ColumnId = ColumnId(2);
    const LARGE: ColumnId = ColumnId(3);

    fn whole(small: i64, large: i64) -> Vec<u8> {
        let mut out = Vec::new();
        payload::begin(&mut out);
        payload::put_value(SMALL, &Value::Int64(small), &mut out);
        payload::put_value(LARGE, &Value::Int64(large), &mut out);
        out
    }

    /// The large column is as it was.
    fn partial(small: i64) -> Vec<u8> {
        let mut out = Vec::new();
        payload::begin(&mut out);
        payload::put_value(SMALL, &Value::Int64(small), &mut out);
        payload::put_unchanged(LARGE, &mut out);
        out
    }

    fn push(to: &mut Collapser, table: u32, key: &[u8], state: RowState, payload: &[u8]) {
        let put = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        to.push(table, state, |out| put(key, out), |out| put(payload, out)).unwrap();
    }

    type Found = Vec<(Vec<u8>, RowState, Vec<u8>)>;

    fn read(collapsed: &Collapsed, table: u32, range: &KeyRange) -> Found {
        let mut rows = collapsed.read(table, range).unwrap();
        let mut found = Vec::new();
        while rows
            .next(|state, key, payload| found.push((key.to_vec(), state, payload.to_vec())))
            .unwrap()
        {}
        found
    }

    /// What is left of one key after these changes.
    fn left_of(changes: &[(RowState, Vec<u8>)]) -> Result<(RowState, Vec<u8>)> {
        let scratch = tempfile::tempdir().unwrap();
        let mut collapser = Collapser::new(scratch.path(), 1, 1 << 20);
        for (state, payload) in changes {
            push(&mut collapser, 0, b"k", *state, payload);
        }
        let found = read(&collapser.finish()?, 0, &KeyRange::ALL);
        let [(_, state, payload)] = found.as_slice() else { panic!("{found:?}") };
        Ok((*state, payload.clone()))
    }

    #[test]
    fn every_pair_of_changes_makes_what_the_table_says() {
        use RowState::*;
        let change = |state| match state {
            Upsert => (Upsert, whole(1, 1)),
            Update | Moved => (state, partial(2)),
            Delete => (Delete, Vec::new()),
        };
        let pair = |older, newer| left_of(&[change(older), change(newer)]);
        for older in [Upsert, Update, Delete, Moved] {
            for newer in [Upsert, Delete, Moved] {
                assert_eq!(pair(older, newer).unwrap(), change(newer), "{older:?} {newer:?}");
            }
        }
        assert_eq!(pair(Upsert, Update).unwrap(), (Upsert, whole(2, 1)));
        assert_eq!(pair(Update, Update).unwrap(), (Update, partial(2)));
        assert_eq!(pair(Moved, Update).unwrap(), (Moved, partial(2)));
        assert_eq!(pair(Delete, Update).unwrap_err().kind(), Kind::Fatal);
        // A partial row that later gets what it misses needs no base any more.
        let moved = left_of(&[change(Moved), (Update, whole(3, 3))]);
        assert_eq!(moved.unwrap(), (Upsert, whole(3, 3)));
    }

    #[test]
    fn tables_are_apart_and_every_range_is_read_from_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        let mut collapser = Collapser::new(scratch.path(), 4, 64 << 10);
        let large = vec![payload::PAYLOAD_VERSION; 3000];
        for at in (0u32..2000).rev() {
            push(&mut collapser, at % 2 * 2, &at.to_be_bytes(), RowState::Upsert, &large);
        }
        let collapsed = collapser.finish().unwrap();
        assert!(collapsed.index.len() > 10);
        let keys = |table, from: u32, to: Option<u32>| -> Vec<u32> {
            let range = KeyRange {
                start: from.to_be_bytes().to_vec(),
                end: to.map(|to| to.to_be_bytes().to_vec()),
            };
            let rows = read(&collapsed, table, &range);
            rows.iter().map(|(key, ..)| u32::from_be_bytes(key[..].try_into().unwrap())).collect()
        };
        assert_eq!(keys(0, 0, None), (0..2000).step_by(2).collect::<Vec<u32>>());
        assert_eq!(keys(2, 0, None), (1..2000).step_by(2).collect::<Vec<u32>>());
        assert!(keys(1, 0, None).is_empty());
        assert!(keys(3, 0, None).is_empty());
        assert_eq!(keys(2, 1500, Some(1503)), [1501]);
        assert_eq!(keys(0, 1998, None), [1998]);
        assert!(keys(0, 2000, None).is_empty());
        let table = CollapsedTable { rows: 1000, bytes: 1000 * 3004 };
        assert_eq!((collapsed.table(0), collapsed.table(1)), (table, CollapsedTable::default()));
    }

    #[test]
    fn a_malformed_file_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let mut collapser = Collapser::new(scratch.path(), 1, 1 << 20);
        push(&mut collapser, 0, b"key", RowState::Upsert, &whole(1, 2));
        let collapsed = collapser.finish().unwrap();
        let path = scratch.path().join("changes");
        let bytes = std::fs::read(&path).unwrap();
        for length in 1..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let next = collapsed.read(0, &KeyRange::ALL).unwrap().next(|_, _, _| {});
            assert_eq!(next.unwrap_err().kind(), Kind::Fatal, "{length}");
        }
    }

    /// What an application does to one of its rows.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Insert { key: u8, small: i64, large: i64 },
        Small { key: u8, small: i64 },
        Both { key: u8, small: i64, large: i64 },
        Move { from: u8, to: u8, small: i64 },
        Delete { key: u8 },
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let (key, value) = (|| 0u8..6, || 0i64..100);
        let deed = prop_oneof![
            (key(), value(), value()).prop_map(|(key, small, large)| Deed::Insert {
                key,
                small,
                large
            }),
            (key(), value()).prop_map(|(key, small)| Deed::Small { key, small }),
            (key(), value(), value()).prop_map(|(key, small, large)| Deed::Both {
                key,
                small,
                large
            }),
            (key(), key(), value()).prop_map(|(from, to, small)| Deed::Move { from, to, small }),
            key().prop_map(|key| Deed::Delete { key }),
        ];
        prop::collection::vec(deed, 0..60)
    }

    proptest! {
        #[test]
        fn what_is_left_leads_from_the_old_rows_to_the_new_ones(
            before in prop::collection::btree_map(0u8..6, (0i64..100, 0i64..100), 0..6),
            deeds in deeds(),
            bytes_max in 1u64..4000,
        ) {
            let scratch = tempfile::tempdir().unwrap();
            let mut collapser = Collapser::new(scratch.path(), 1, bytes_max);
            let mut rows: BTreeMap<u8, (i64, i64)> = before.clone();
            for deed in deeds {
                use RowState::*;
                let mut say = |key: u8, state, payload: &[u8]| {
                    push(&mut collapser, 0, &[key], state, payload);
                };
                match deed {
                    Deed::Insert { key, small, large } if !rows.contains_key(&key) => {
                        rows.insert(key, (small, large));
                        say(key, Upsert, &whole(small, large));
                    }
                    Deed::Small { key, small } => if let Some(row) = rows.get_mut(&key) {
                        row.0 = small;
                        say(key, Update, &partial(small));
                    },
                    Deed::Both { key, small, large } => if let Some(row) = rows.get_mut(&key) {
                        *row = (small, large);
                        say(key, Upsert, &whole(small, large));
                    },
                    Deed::Move { from, to, small } if !rows.contains_key(&to) => {
                        if let Some((_, large)) = rows.remove(&from) {
                            rows.insert(to, (small, large));
                            say(from, Delete, &[]);
                            say(to, Moved, &partial(small));
                        }
                    }
                    Deed::Delete { key } => if rows.remove(&key).is_some() {
                        say(key, Delete, &[]);
                    },
                    Deed::Insert { .. } | Deed::Move { .. } => {}
                }
            }
            let encode = |rows: &BTreeMap<u8, (i64, i64)>| -> BTreeMap<Vec<u8>, Vec<u8>> {
                rows.iter().map(|(key, row)| (vec![*key], whole(row.0, row.1))).collect()
            };
            let (mut restored, at_cut) = (encode(&before), encode(&rows));
            for (key, state, payload) in read(&collapser.finish().unwrap(), 0, &KeyRange::ALL) {
                match state {
                    RowState::Upsert => drop(restored.insert(key, payload)),
                    RowState::Delete => drop(restored.remove(&key)),
                    RowState::Moved => drop(restored.insert(key.clone(), at_cut[&key].clone())),
                    RowState::Update => {
                        let mut row = Vec::new();
                        overlay(&payload, &restored[&key], &mut row).unwrap();
                        restored.insert(key, row);
                    }
                }
            }
            prop_assert_eq!(restored, at_cut);
        }
    }
}
