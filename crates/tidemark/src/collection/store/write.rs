//! Writing one object as a stream, with bounded memory.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinHandle;

use super::folder::LocalDraft;
use super::{PutOutcome, Store, failure, runtime};
use crate::error::{Error, Kind, Result};

/// Bytes of one request of an upload: the least that S3 takes. At 10,000 requests an
/// object has at most 50 GB; a writer keeps at most two of them in memory.
const UPLOAD_BYTES: usize = 5 << 20;

/// Writes one new object; nobody sees it before [`finish`](Self::finish).
///
/// Dropped unfinished it takes back what it wrote. A crash leaves a draft (local) or an
/// upload that was never completed (object stores end those by their own rules).
#[derive(Debug)]
pub struct ObjectWriter {
    store: Store,
    path: String,
    state: WriterState,
    bytes: u64,
}

#[derive(Debug)]
enum WriterState {
    Draft(LocalDraft),
    Upload(Upload),
    /// A write failed; nothing more is accepted.
    Failed,
}

impl ObjectWriter {
    pub(super) fn draft(store: Store, path: &str, draft: LocalDraft) -> ObjectWriter {
        ObjectWriter::new(store, path, WriterState::Draft(draft))
    }

    pub(super) fn upload(
        store: Store,
        path: &str,
        objects: Arc<dyn ObjectStore>,
        location: Path,
    ) -> ObjectWriter {
        let upload = Upload { objects, location, buffer: Vec::new(), parts: None, in_flight: None };
        ObjectWriter::new(store, path, WriterState::Upload(upload))
    }

    fn new(store: Store, path: &str, state: WriterState) -> ObjectWriter {
        ObjectWriter { store, path: path.to_owned(), state, bytes: 0 }
    }

    /// Path inside the store.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes accepted so far.
    pub fn byte_count(&self) -> u64 {
        self.bytes
    }

    /// Makes the object durable and visible; gives its size.
    ///
    /// # Errors
    /// [`Kind::Held`] when an object of that name is there already: it is left alone, and what
    /// was written is gone. [`Kind::Blocked`] for a full disk and the like. After any error the
    /// name may or may not exist; it is whole if it does.
    pub fn finish(mut self) -> Result<u64> {
        let outcome = match mem::replace(&mut self.state, WriterState::Failed) {
            WriterState::Draft(draft) => draft
                .publish()
                .map_err(|cause| failure(format!("finish writing `{}`", self.path), cause))?,
            WriterState::Upload(upload) => upload.complete(&self.store, &self.path)?,
            WriterState::Failed => {
                let message = format!("finish writing `{}`: an earlier write failed", self.path);
                return Err(Error::new(Kind::Fatal, message));
            }
        };
        match outcome {
            PutOutcome::Created => Ok(self.bytes),
            PutOutcome::Exists => Err(Error::new(
                Kind::Held,
                format!("finish writing `{}`: an object of that name is there already", self.path),
            )),
        }
    }
}

impl Write for ObjectWriter {
    /// Takes all of `bytes`. The [`io::Error`] carries the store's own error:
    /// see [`kind_of_cause`](super::kind_of_cause).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.state {
            WriterState::Draft(draft) => draft.write_all(bytes),
            WriterState::Upload(upload) => {
                upload.push(&self.store, &self.path, bytes).map_err(io::Error::other)
            }
            WriterState::Failed => Err(io::Error::other("an earlier write failed")),
        };
        if let Err(cause) = written {
            self.state = WriterState::Failed;
            return Err(cause);
        }
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    /// Does nothing: only [`finish`](ObjectWriter::finish) makes anything durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An upload to an object store: one request if it is small, several otherwise.
struct Upload {
    objects: Arc<dyn ObjectStore>,
    location: Path,
    buffer: Vec<u8>,
    parts: Option<Box<dyn MultipartUpload>>,
    in_flight: Option<JoinHandle<object_store::Result<()>>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Upload {
    fn push(&mut self, store: &Store, path: &str, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = UPLOAD_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == UPLOAD_BYTES {
                self.send(store, path)?;
            }
        }
        Ok(())
    }

    /// Sends the buffer as the next part, after the one before it has arrived.
    fn send(&mut self, store: &Store, path: &str) -> Result<()> {
        let what = || format!("upload `{path}`");
        self.settle(store, path)?;
        if self.parts.is_none() {
            let begun = self.objects.put_multipart(&self.location);
            self.parts = Some(store.run(what, begun)?);
        }
        let parts = self.parts.as_mut().expect("begun above");
        let payload = PutPayload::from(mem::take(&mut self.buffer));
        let runtime = runtime()?;
        let _inside = runtime.enter();
        self.in_flight = Some(runtime.spawn(parts.put_part(payload)));
        Ok(())
    }

    fn settle(&mut self, store: &Store, path: &str) -> Result<()> {
        match self.in_flight.take() {
            None => Ok(()),
            Some(task) => store.run(|| format!("upload `{path}`"), async { task.await? }),
        }
    }

    fn complete(mut self, store: &Store, path: &str) -> Result<PutOutcome> {
        if self.parts.is_none() {
            return store.put_object(&self.objects, &self.location, mem::take(&mut self.buffer));
        }
        if !self.buffer.is_empty() {
            self.send(store, path)?;
        }
        self.settle(store, path)?;
        // A multipart upload replaces what is there, so we look first. That is enough: the
        // names of parts carry the attempt that wrote them, no other writer has them.
        if store.size(path)?.is_some() {
            return Ok(PutOutcome::Exists);
        }
        let mut parts = self.parts.take().expect("begun: checked above");
        store.run(|| format!("finish uploading `{path}`"), async { parts.complete().await })?;
        Ok(PutOutcome::Created)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut parts), Ok(runtime)) = (self.parts.take(), runtime()) {
            // Best effort, and nobody waits for it: the store forgets it later otherwise.
            runtime.spawn(async move { parts.abort().await });
        }
    }
}
