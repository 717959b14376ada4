//! Reading one object at random, as Parquet does.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::{Backend, Store, folder};
use crate::error::{Error, Kind, Result};

/// Read ahead by [`ObjectReader`] on local files: a Parquet page header and more.
const READ_AHEAD_LOCAL_BYTES: u64 = 8 << 10;

/// The same over a network, where a request costs more than its bytes.
const READ_AHEAD_REMOTE_BYTES: u64 = 64 << 10;

/// An object open for reading; clones share it, and reads may run in parallel.
///
/// Reads of a local file go straight to it. Everything else is asked for under the
/// store's deadline.
#[derive(Clone, Debug)]
pub struct ReadObject {
    store: Store,
    path: Arc<str>,
    bytes: u64,
    file: Option<OpenFile>,
}

#[derive(Clone, Debug)]
struct OpenFile {
    file: Arc<File>,
    can_hang: bool,
}

impl ReadObject {
    pub(super) fn local(
        store: Store,
        path: &str,
        file: File,
        bytes: u64,
        can_hang: bool,
    ) -> ReadObject {
        let file = Some(OpenFile { file: Arc::new(file), can_hang });
        ReadObject { store, path: path.into(), bytes, file }
    }

    pub(super) fn remote(store: Store, path: &str, bytes: u64) -> ReadObject {
        ReadObject { store, path: path.into(), bytes, file: None }
    }

    /// Path inside the store.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Size when it was opened; objects never change.
    pub fn byte_count(&self) -> u64 {
        self.bytes
    }

    /// The `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Kind::Broken`] beyond the end; otherwise what the store says, among it
    /// [`Kind::Transient`] after the deadline.
    pub fn read_at(&self, offset: u64, len: u64) -> Result<Bytes> {
        let end = offset.checked_add(len).filter(|end| *end <= self.bytes);
        let Some(end) = end else {
            let message = format!(
                "read `{}`: bytes {offset} to {} were asked for, the object has {}; it was \
                 truncated, or what points into it is wrong",
                self.path,
                u128::from(offset) + u128::from(len),
                self.bytes
            );
            return Err(Error::new(Kind::Broken, message));
        };
        if len == 0 {
            // Some stores refuse to give nothing.
            return Ok(Bytes::new());
        }
        let range = offset..end;
        let what = || format!("read bytes {offset} to {end} of `{}`", self.path);
        match (&self.file, &self.store.backend) {
            (Some(open), _) if !open.can_hang => {
                read_file(&open.file, &range).map_err(|cause| super::failure(what(), cause))
            }
            (Some(open), _) => {
                let file = Arc::clone(&open.file);
                self.store.run_on_disk(what, move || read_file(&file, &range))
            }
            (None, Backend::Objects(objects)) => {
                let path = super::object_path(&self.path)?;
                let bytes = self.store.run(what, async {
                    object_store::ObjectStoreExt::get_range(&**objects, &path, range).await
                })?;
                if bytes.len() as u64 != len {
                    let message = format!("{}: the store gave {} bytes", what(), bytes.len());
                    return Err(Error::new(Kind::Transient, message));
                }
                Ok(bytes)
            }
            (None, Backend::Folder(_)) => unreachable!("objects of a folder hold their file"),
        }
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        match &self.file {
            Some(open) if !open.can_hang && end <= self.bytes => {
                folder::read_exact_at(&open.file, buffer, offset).map_err(|cause| {
                    let what = format!("read bytes {offset} to {end} of `{}`", self.path);
                    super::failure(what, cause)
                })
            }
            _ => {
                buffer.copy_from_slice(&self.read_at(offset, buffer.len() as u64)?);
                Ok(())
            }
        }
    }

    /// Whether reading costs no request: then small pieces, which stay in the processor's cache,
    /// are faster than large ones.
    pub(super) fn is_near(&self) -> bool {
        self.file.as_ref().is_some_and(|open| !open.can_hang)
    }

    /// A reader from `offset` to the end, reading ahead a little.
    pub fn reader(&self, offset: u64) -> ObjectReader {
        ObjectReader { object: self.clone(), offset, ahead: Bytes::new() }
    }
}

fn read_file(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut buffer = vec![0; len];
    folder::read_exact_at(file, &mut buffer, range.start)?;
    Ok(buffer.into())
}

/// Reads an object from a position to its end.
#[derive(Clone, Debug)]
pub struct ObjectReader {
    object: ReadObject,
    offset: u64,
    ahead: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            let read_ahead = match self.object.file {
                Some(_) => READ_AHEAD_LOCAL_BYTES,
                None => READ_AHEAD_REMOTE_BYTES,
            };
            let left = self.object.bytes.saturating_sub(self.offset);
            let len = read_ahead.max(buffer.len() as u64).min(left);
            self.ahead = self.object.read_at(self.offset, len).map_err(io::Error::other)?;
            self.offset += len;
        }
        let len = buffer.len().min(self.ahead.len());
        buffer[..len].copy_from_slice(&self.ahead.split_to(len));
        Ok(len)
    }
}

impl Length for ReadObject {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for ReadObject {
    type T = ObjectReader;

    fn get_read(&self, start: u64) -> ParquetResult<ObjectReader> {
        Ok(self.reader(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.read_at(start, length as u64).map_err(|cause| ParquetError::External(cause.into()))
    }
}
