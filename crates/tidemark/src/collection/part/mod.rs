//! Parts: the Parquet objects that a backup's rows live in.
//!
//! [`PartWriter`] writes one, [`PartReader`] streams a key range of one. A part is
//! plain Parquet that any tool opens, inside a narrow profile, so that every bound
//! holds to the byte and every bit is checked before it is believed:
//!
//! - one leaf per column, in schema order; key columns required, the others
//!   optional; an increment adds [`OP_COLUMN`] and [`UNCHANGED_COLUMN`];
//! - data pages of version 1, values PLAIN, levels RLE; no dictionaries, so that a
//!   reader holds one page per column and nothing else;
//! - every page one zstd frame of level 1 **with its checksum**: a flipped bit is
//!   found before the page is decoded, also by a reader of only a few pages;
//! - column chunks without gaps, in column order; no statistics and no indexes,
//!   since the manifest says where each row group begins.
//!
//! The encoders are ours and not the parquet crate's: that keeps two zstd contexts
//! and a dictionary per column and reader (beyond 15 MB for a hundred columns), writes
//! no page checksums, and allocates what a page header announces before looking at
//! it. The crate is the referee: the tests read every part back through it.
//!
//! Invariant: what is read is exactly what was written, or an error of
//! [`Kind::Broken`](crate::Kind::Broken) that names the part.

mod columns;
mod footer;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod layout;
mod link;
mod open;
mod page;
mod reader;
mod table;
mod thrift;
mod values;
mod writer;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use crate::row::value::hex;

pub use link::{LinkReader, OpenPart};
pub use reader::{PartRead, PartReader};
pub use table::write_table;
pub use writer::{PartOptions, PartSummary, PartWriter};

/// Column of an increment that says what happened: `upsert`, `update` or `delete`.
pub const OP_COLUMN: &str = "__tidemark_op";

/// Column of an increment that lists the ids of columns which an update leaves as they
/// were, ascending and joined by commas; NULL when there is none.
pub const UNCHANGED_COLUMN: &str = "__tidemark_unchanged";

/// Key of the file's metadata: version of the profile, [`PROFILE_VERSION`].
pub const META_VERSION: &str = "tidemark.part";
/// Key of the file's metadata: `full` or `increment`.
pub const META_KIND: &str = "tidemark.kind";
/// Key of the file's metadata: the [`Schema`](crate::row::Schema) as JSON.
pub const META_SCHEMA: &str = "tidemark.schema";
/// Key of an Arrow field's metadata: column id, decimal.
pub const META_COLUMN_ID: &str = "tidemark.id";
/// Key of an Arrow field's metadata: logical type.
pub const META_COLUMN_TYPE: &str = "tidemark.type";
/// Key of an Arrow field's metadata: the source's own type name, if it says more.
pub const META_COLUMN_NATIVE: &str = "tidemark.native";

/// Value of [`META_VERSION`].
pub const PROFILE_VERSION: &str = "1";

/// Rows of a page at most: bounds its null levels to 2 KiB.
pub const PAGE_ROWS_MAX: u32 = 16_384;

/// What the rows of a part are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// Whole rows: of a full, or of a table that an increment carries whole.
    Full,
    /// Changes: upserts, partial updates, deletes.
    Increment,
}

impl PartKind {
    fn name(self) -> &'static str {
        match self {
            PartKind::Full => "full",
            PartKind::Increment => "increment",
        }
    }

    /// Bytes of a page before compression, unless a single value is greater.
    ///
    /// A reader holds one page per column, and a fold holds a reader per link. So the
    /// pages of a wide table shrink: together at most 1 MiB in an increment, of which
    /// there may be hundreds, and 4 MiB in a full, until zstd would suffer.
    pub fn page_bytes_max(self, column_count: u32) -> u64 {
        let (together, least, most): (u64, u64, u64) = match self {
            PartKind::Full => (4 << 20, 16 << 10, 256 << 10),
            PartKind::Increment => (1 << 20, 8 << 10, 64 << 10),
        };
        (together / u64::from(column_count.max(1))).clamp(least, most)
    }

    /// Bytes that a reader fetches ahead per column: a page, mostly, once compressed.
    fn window_bytes(self, column_count: u32) -> u64 {
        self.page_bytes_max(column_count) / 2
    }

    /// Rows of a reader's batch.
    fn batch_rows_max(self) -> u32 {
        match self {
            PartKind::Full => 4096,
            PartKind::Increment => 1024,
        }
    }

    /// Bytes of a reader's batch: small in increments, since a fold holds one batch per
    /// link; enough in both to make a call's own cost vanish.
    pub fn batch_bytes_max(self) -> u64 {
        match self {
            PartKind::Full => 512 << 10,
            PartKind::Increment => 64 << 10,
        }
    }
}

/// Counts and hashes what passes to `W`.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// A writer that passes everything on to `inner`.
    pub fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    /// Bytes passed on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The inner writer, the number of bytes passed on, and their BLAKE3 in hexadecimal.
    pub fn finish(self) -> (W, u64, String) {
        (self.inner, self.bytes, self.hasher.finalize().to_hex().to_string())
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A key for people: hexadecimal, its beginning only if it is long.
pub(crate) fn key_text(key: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    match key.get(..SHOWN_BYTES) {
        Some(head) if key.len() > SHOWN_BYTES => {
            format!("0x{}... ({} bytes)", hex(head), key.len())
        }
        _ => format!("0x{}", hex(key)),
    }
}
