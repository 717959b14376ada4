//! The rows of a table's chain inside a key range, as one ordered stream.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use parquet::file::reader::{ChunkReader, Length};

use super::merge::make_folder_of;
use crate::collection::Collection;
use crate::collection::chain::TableLink;
use crate::collection::flaw::Flaw;
use crate::collection::fold::{Fold, FoldMode, FoldOptions};
use crate::collection::manifest::{PartEntry, TableMode};
use crate::collection::store::{ObjectReader, ReadObject};

use crate::collection::part::{LinkReader, OpenPart, PartKind, PartRead, PartReader};
use crate::collection::run::{SortedRun, write_run};
use crate::database::{LinkTally, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::row::{KeyRange, RowBatch, RowCodec, RowStream, Schema};

/// Opens parts, each checked against its BLAKE3 once per process before its first row is used.
#[derive(Debug)]
pub(super) struct Parts {
    collection: Arc<Collection>,
    checked: Mutex<HashMap<String, Arc<OnceLock<()>>>>,
    opened: Mutex<HashMap<String, Weak<ReadObject>>>,
}

/// An open part that several readers share; it is closed with the last of them.
#[derive(Clone, Debug)]
struct SharedPart(Arc<ReadObject>);

impl Length for SharedPart {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for SharedPart {
    type T = ObjectReader;

    fn get_read(&self, start: u64) -> parquet::errors::Result<ObjectReader> {
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

static EVERY_KEY: KeyRange = KeyRange::ALL;

/// What is read of a table.
#[derive(Clone, Copy)]
pub(super) struct Reading<'r, 'a> {
    /// What is merged, oldest first; never empty.
    pub(super) inputs: &'r [Input<'a>],
    /// Encoding of the rows that come out.
    pub(super) wanted: &'a RowCodec,
    /// Keys.
    pub(super) range: &'a KeyRange,
    /// Only keys beyond this one.
    pub(super) after: Option<&'r [u8]>,
}

/// Where a batch ends: with the row that reaches one of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchMax {
    pub(super) rows: u32,
    pub(super) bytes: u64,
}

/// Something that holds rows of a table.
#[derive(Clone, Debug)]
pub(super) enum Input<'a> {
    /// A backup of the chain.
    Link(TableLink<'a>),
    /// Increments that were merged into a local file beforehand.
    Run {
        /// The file.
        path: PathBuf,
        /// Its description; no part if there was no row.
        part: Option<PartEntry>,
        /// Schema it was written under.
        schema: &'a Schema,
    },
}

impl Input<'_> {
    /// Whether it holds every row of the table.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Input::Link(link) if link.entry.mode == TableMode::Whole)
    }
}

/// Rows of one or several links, with what was consumed of each.
pub(super) enum LinkStream<'a> {
    /// One link needs no merging.
    Single { stream: LinkReader<'a>, tally: [LinkTally; 1], last_key: Option<Vec<u8>> },
    /// Several are merged.
    Folded(Fold<'a>),
}

impl Parts {
    pub(super) fn new(collection: Arc<Collection>) -> Parts {
        Parts { collection, checked: Mutex::default(), opened: Mutex::default() }
    }

    /// Opens `reading`, in batches of that size.
    ///
    /// # Errors
    /// [`Kind::Broken`] for a part that is missing or not what its manifest says.
    pub(super) fn open<'a>(
        &'a self,
        reading: Reading<'_, 'a>,
        batch_max: BatchMax,
    ) -> Result<LinkStream<'a>> {
        if let [single] = reading.inputs {
            let stream = self.open_input(single, reading, Some(batch_max))?;
            return Ok(LinkStream::Single {
                stream,
                tally: [LinkTally::default()],
                last_key: None,
            });
        }
        let BatchMax { rows: rows_max, bytes: bytes_max } = batch_max;
        let options = FoldOptions { rows_max, bytes_max, ..FoldOptions::new(mode(reading)) };
        Ok(LinkStream::Folded(Fold::new(self.open_each(reading)?, options)))
    }

    /// Opens every input of `reading` by itself.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_each<'a>(
        &'a self,
        reading: Reading<'_, 'a>,
    ) -> Result<Vec<Box<dyn RowStream + 'a>>> {
        let open = |input| {
            let stream = self.open_input(input, reading, None)?;
            Ok(Box::new(stream) as Box<dyn RowStream + 'a>)
        };
        reading.inputs.iter().map(open).collect()
    }

    /// Merges the inputs into a run at `path`, all at once; `on_batch` is told what was consumed
    /// of each, and its error ends the merge.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`write_run`].
    pub(super) fn merge<'a>(
        &'a self,
        inputs: &[Input<'a>],
        codec: &'a RowCodec,
        table: &TargetTable,
        path: &Path,
        on_batch: &mut dyn FnMut(&[LinkTally]) -> Result<()>,
    ) -> Result<SortedRun> {
        make_folder_of(path)?;
        let reading = Reading { inputs, wanted: codec, range: &EVERY_KEY, after: None };
        let links = self.open_each(reading)?;
        write_run(links, &table.schema, table.digest_id, path, on_batch)
    }

    fn open_input<'a>(
        &'a self,
        input: &Input<'a>,
        reading: Reading<'_, 'a>,
        batch_max: Option<BatchMax>,
    ) -> Result<LinkReader<'a>> {
        match input {
            Input::Link(link) => self.open_link(*link, reading, batch_max),
            Input::Run { path, part, schema } => {
                open_run(path, part.as_ref(), schema, reading, batch_max)
            }
        }
    }

    fn open_link<'a>(
        &'a self,
        link: TableLink<'a>,
        reading: Reading<'_, 'a>,
        batch_max: Option<BatchMax>,
    ) -> Result<LinkReader<'a>> {
        let Reading { wanted, range, after, .. } = reading;
        let beyond = after.map(<[u8]>::to_vec);
        let kind = match link.entry.mode {
            TableMode::Whole => PartKind::Full,
            TableMode::Delta => PartKind::Increment,
        };
        let open_part: OpenPart<'a> = Box::new(move |part: &PartEntry| {
            self.check(&link, part)?;
            let object = self.shared(&link, part)?;
            let schema = &link.entry.schema;
            let after = beyond.as_deref();
            let read = PartRead { part, schema, kind, wanted, range, after };
            let reader = PartReader::open(object, &read)
                .map_err(|error| error.context(format!("backup `{}`", link.directory)))?;
            Ok(Box::new(bounded(reader, batch_max)) as Box<dyn RowStream + 'a>)
        });
        LinkReader::new(&link.entry.parts, range, after, open_part)
    }

    /// The part, opened once for all who read it at the same time: a chain of hundreds of links
    /// takes one descriptor for each, however many shards are in flight.
    fn shared(&self, link: &TableLink<'_>, part: &PartEntry) -> Result<SharedPart> {
        let path = link.part_path(part);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = opened.get(&path).and_then(Weak::upgrade) {
            return Ok(SharedPart(object));
        }
        drop(opened);
        // Outside the lock, since a store may keep us waiting; of two openers one is in vain.
        let object = Arc::new(self.collection.open_part(link.directory, part)?);
        opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|_, object| object.strong_count() > 0);
        if let Some(faster) = opened.get(&path).and_then(Weak::upgrade) {
            return Ok(SharedPart(faster));
        }
        opened.insert(path, Arc::downgrade(&object));
        Ok(SharedPart(object))
    }

    /// Compares the object with its recorded hash, unless this process did so before.
    fn check(&self, link: &TableLink<'_>, part: &PartEntry) -> Result<()> {
        let path = link.part_path(part);
        let cell = {
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(checked.entry(path.clone()).or_default())
        };
        // Two openers may both hash it; neither waits for the other inside a lock.
        if cell.get().is_some() {
            return Ok(());
        }
        let found = self.collection.store().hash(&path).map_err(|error| match error.kind() {
            Kind::NotFound => Flaw::new(path.clone(), "no such object", "the part").into(),
            _ => error,
        })?;
        if (found.bytes, found.blake3.as_str()) != (part.bytes, part.blake3.as_str()) {
            let found = format!("{} bytes with BLAKE3 {}", found.bytes, found.blake3);
            let expected = format!("{} bytes with BLAKE3 {}", part.bytes, part.blake3);
            return Err(Flaw::new(path, found, expected).into());
        }
        let _ = cell.set(());
        Ok(())
    }
}

/// What merging the inputs gives.
fn mode(reading: Reading<'_, '_>) -> FoldMode {
    let oldest = reading.inputs.first().expect("a piece of work reads at least one link");
    if oldest.is_whole() { FoldMode::ToFull } else { FoldMode::ToIncrement }
}

fn open_run<'a>(
    path: &Path,
    part: Option<&PartEntry>,
    schema: &'a Schema,
    reading: Reading<'_, 'a>,
    batch_max: Option<BatchMax>,
) -> Result<LinkReader<'a>> {
    let Reading { wanted, range, after, .. } = reading;
    let beyond = after.map(<[u8]>::to_vec);
    let path = path.to_owned();
    let open_part: OpenPart<'a> = Box::new(move |part: &PartEntry| {
        let file = File::open(&path).map_err(|cause| {
            let opening = format!("open the sorted run {}", path.display());
            match cause.kind() {
                // It went since the shard began: the next attempt makes it again.
                ErrorKind::NotFound => Error::with_source(Kind::Transient, opening, cause),
                _ => Error::io(opening, cause),
            }
        })?;
        let after = beyond.as_deref();
        let kind = PartKind::Increment;
        let read = PartRead { part, schema, kind, wanted, range, after };
        let reader = PartReader::open(file, &read)?;
        Ok(Box::new(bounded(reader, batch_max)) as Box<dyn RowStream + 'a>)
    });
    LinkReader::new(part.map_or(&[], std::slice::from_ref), range, after, open_part)
}

fn bounded(reader: PartReader, batch_max: Option<BatchMax>) -> PartReader {
    match batch_max {
        Some(BatchMax { rows, bytes }) => reader.with_batch_max(rows, bytes),
        None => reader,
    }
}

impl LinkStream<'_> {
    /// Consumed so far, per link.
    pub(super) fn tallies(&self) -> &[LinkTally] {
        match self {
            LinkStream::Single { tally, .. } => tally,
            LinkStream::Folded(fold) => fold.tallies(),
        }
    }

    /// Greatest key consumed, deleted ones included.
    pub(super) fn last_key_consumed(&self) -> Option<&[u8]> {
        match self {
            LinkStream::Single { last_key, .. } => last_key.as_deref(),
            LinkStream::Folded(fold) => fold.last_key_consumed(),
        }
    }
}

impl RowStream for LinkStream<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        self.append_batch(batch)
    }

    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        match self {
            LinkStream::Folded(fold) => fold.append_batch(batch),
            LinkStream::Single { stream, tally: [tally], last_key } => {
                let (rows, bytes) = (batch.len(), batch.byte_count());
                let more = stream.append_batch(batch)?;
                tally.rows += (batch.len() - rows) as u64;
                tally.bytes += batch.byte_count() - bytes;
                if let Some(last) = batch.last().filter(|_| batch.len() > rows) {
                    let key = last_key.get_or_insert_default();
                    key.clear();
                    key.extend_from_slice(last.key);
                }
                Ok(more)
            }
        }
    }
}
