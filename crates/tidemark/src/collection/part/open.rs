//! Opens a part: its bytes, its footer, and the checks of both against the manifest.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use super::columns::PartBytes;
use super::footer::{self, GroupExtent, MAGIC, TAIL_BYTES};
use super::layout::{Layout, PartColumn};
use super::reader::{Group, PartRead};
use super::{META_KIND, META_SCHEMA, META_VERSION, PROFILE_VERSION, PartKind};
use crate::collection::manifest::RowGroupEntry;
use crate::error::{Error, Kind, Result};
use crate::row::Schema;

/// Footer bytes of a column chunk and of the rest, beyond names and schema.
const FOOTER_CHUNK_BYTES: u64 = 128;
const FOOTER_BASE_BYTES: u64 = 64 << 10;

/// Refuses a manifest entry that contradicts itself.
pub(super) fn check_entry(read: &PartRead<'_>) -> Result<()> {
    let part = read.part;
    let groups = &part.row_groups;
    let sum =
        |of: fn(&RowGroupEntry) -> u64| groups.iter().map(of).try_fold(0u64, u64::checked_add);
    let keyed = !read.schema.key.is_empty();
    let ascending = groups.is_sorted_by(|a, b| !keyed || a.first_key < b.first_key);
    let consistent = groups.first().is_some_and(|group| group.first_key == part.first_key)
        && groups.last().is_some_and(|group| group.first_key <= part.last_key)
        && groups.iter().all(|group| group.rows > 0)
        && ascending
        && sum(|group| group.rows) == Some(part.rows)
        && sum(|group| group.row_bytes) == Some(part.row_bytes)
        && part.row_bytes_max <= part.row_bytes
        && part.tombstones <= part.rows
        && (read.kind == PartKind::Increment || part.tombstones == 0);
    if consistent {
        return Ok(());
    }
    Err(Error::new(Kind::Broken, "its manifest entry contradicts itself"))
}

/// Reads the footer and compares it with the manifest; gives the row groups.
pub(super) fn read_footer(
    file: &dyn PartBytes,
    read: &PartRead<'_>,
    layout: &Layout,
) -> Result<Vec<GroupExtent>> {
    let broken = |message: String| Error::new(Kind::Broken, message);
    let malformed = || broken("its footer is malformed, or it is no part of ours".to_owned());
    let head_bytes = MAGIC.len() as u64;
    let body_bytes = read.part.bytes.checked_sub(head_bytes + TAIL_BYTES).ok_or_else(malformed)?;
    let tail = file.read(read.part.bytes - TAIL_BYTES, TAIL_BYTES as usize)?;
    let (len, magic) = tail.split_first_chunk::<4>().ok_or_else(malformed)?;
    let len = u64::from(u32::from_le_bytes(*len));
    let head = file.read(0, MAGIC.len())?;
    if magic != MAGIC || *head != *MAGIC || len > body_bytes {
        return Err(malformed());
    }
    let bound = footer_bytes_max(read, layout);
    if len > bound {
        return Err(broken(format!("its footer has {len} bytes, at most {bound} were expected")));
    }
    let start = head_bytes + body_bytes - len;
    let bytes = file.read(start, len as usize)?;
    let footer = footer::decode(&bytes).ok_or_else(malformed)?;

    let version = footer.meta(META_VERSION);
    if version != Some(PROFILE_VERSION) {
        let message = format!(
            "it is a part of version {}, this program reads {PROFILE_VERSION}",
            version.unwrap_or("unknown")
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    if footer.meta(META_KIND) != Some(read.kind.name()) {
        return Err(broken(format!("it is no part of kind {}", read.kind.name())));
    }
    let schema = footer.meta(META_SCHEMA).and_then(|text| serde_json::from_str(text).ok());
    let same = schema.is_some_and(|found: Schema| {
        found.columns == read.schema.columns && found.key == read.schema.key
    });
    if !same {
        return Err(broken("its schema is another than that of its manifest".to_owned()));
    }
    if let Some(difference) = footer.differs_from(layout) {
        return Err(broken(difference));
    }
    check_groups(&footer.groups, start, read, layout)?;
    if footer.rows != read.part.rows {
        let expected = read.part.rows;
        return Err(broken(format!("it has {} rows, its manifest says {expected}", footer.rows)));
    }
    Ok(footer.groups)
}

/// Refuses row groups of other sizes than the manifest has, and chunks that do not lie
/// one behind the other from the magic to the footer.
fn check_groups(
    groups: &[GroupExtent],
    footer_start: u64,
    read: &PartRead<'_>,
    layout: &Layout,
) -> Result<()> {
    let found = groups.iter().map(|group| group.rows);
    if !found.eq(read.part.row_groups.iter().map(|group| group.rows)) {
        let message = "its row groups are others than those of its manifest";
        return Err(Error::new(Kind::Broken, message));
    }
    let mut offset = MAGIC.len() as u64;
    let mut seamless = true;
    for group in groups {
        seamless &= group.chunks.len() == layout.columns.len();
        for chunk in &group.chunks {
            seamless &= chunk.offset == offset && chunk.bytes <= footer_start - offset;
            if !seamless {
                break;
            }
            offset += chunk.bytes;
        }
    }
    if seamless && offset == footer_start {
        return Ok(());
    }
    Err(Error::new(Kind::Broken, "its columns do not lie one behind the other"))
}

/// Bytes a footer of ours has at most, so that a false length allocates nothing.
fn footer_bytes_max(read: &PartRead<'_>, layout: &Layout) -> u64 {
    let columns = layout.columns.len() as u64;
    let text = |column: &PartColumn| {
        (column.name.len() + column.native.as_ref().map_or(0, String::len)) as u64
    };
    let texts: u64 = layout.columns.iter().map(text).sum();
    let chunks = read.part.row_groups.len() as u64 * (columns * FOOTER_CHUNK_BYTES + texts);
    // Each column is in the Parquet schema, in the schema's JSON (with every byte escaped
    // at worst), and in Arrow's, in base64.
    chunks + columns * 1024 + texts * 16 + FOOTER_BASE_BYTES
}

/// The row groups that may hold keys of the range.
pub(super) fn overlapping(groups: Vec<GroupExtent>, read: &PartRead<'_>) -> VecDeque<Group> {
    let entries = &read.part.row_groups;
    let keyed = !read.schema.key.is_empty();
    let last = groups.len() - 1;
    let inside = |position: usize| {
        // All keys of a group are below the first one of the next.
        let below = entries.get(position + 1).is_some_and(|next| {
            *next.first_key <= *read.range.start
                || read.after.is_some_and(|after| *next.first_key <= *after)
        });
        let end = read.range.end.as_deref();
        let beyond = end.is_some_and(|end| *entries[position].first_key >= *end);
        let all_read = position == last
            && (*read.part.last_key < *read.range.start
                || read.after.is_some_and(|after| *read.part.last_key <= *after));
        !keyed || !(below || beyond || all_read)
    };
    groups
        .into_iter()
        .enumerate()
        .filter(|(position, _)| inside(*position))
        .map(|(position, extent)| Group {
            position,
            extent,
            first_key: entries[position].first_key.clone(),
            is_last: position == last,
        })
        .collect()
}

/// A [`ChunkReader`] with our errors.
pub(super) struct Chunks<R>(pub(super) R);

impl<R: ChunkReader> PartBytes for Chunks<R> {
    fn read(&self, start: u64, len: usize) -> Result<Bytes> {
        let bytes = self.0.get_bytes(start, len).map_err(error_of)?;
        if bytes.len() != len {
            let message = format!("it ends at {}, expected {len} bytes from {start}", bytes.len());
            return Err(Error::new(Kind::Broken, message));
        }
        Ok(bytes)
    }
}

fn error_of(error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<Error>() {
            Ok(error) => *error,
            Err(cause) => match cause.downcast::<io::Error>() {
                Ok(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                    Error::with_source(Kind::Broken, "it ends too early", *cause)
                }
                Ok(cause) => Error::io("read the object", *cause),
                Err(cause) => Error::with_source(Kind::Fatal, "read the object", cause),
            },
        },
        ParquetError::EOF(_) => Error::with_source(Kind::Broken, "it ends too early", error),
        other => Error::with_source(Kind::Fatal, "read the object", other),
    }
}
