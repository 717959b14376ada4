//! A table as one Parquet file for people, in the profile of parts.

use std::io::Write;

use super::{PartKind, PartOptions, PartSummary, PartWriter};
use crate::error::Result;
use crate::ids::TableId;
use crate::row::{RowBatch, RowRef, RowStream, Schema};

/// Writes the rows of `stream`, which are whole rows of `schema`, as one file of the profile
/// that the parts of a full have; unlike a part it may have no row.
///
/// # Errors
/// Those of the stream and as [`PartWriter`]'s; a file that was begun has no end then, and no
/// reader takes it for whole.
pub fn write_table(
    schema: &Schema,
    stream: &mut dyn RowStream,
    out: impl Write,
) -> Result<PartSummary> {
    // Only digests carry the identity, and nobody compares those of this file.
    let options = PartOptions::new(TableId(0));
    let mut writer = PartWriter::new(out, schema, PartKind::Full, options)?;
    let mut batch = RowBatch::new();
    let mut keyless = RowBatch::new();
    while stream.next_batch(&mut batch)? {
        if schema.key.is_empty() {
            // The key of a table without key columns only numbers its rows.
            keyless.clear();
            batch.iter().for_each(|row| keyless.push(RowRef { key: &[], ..row }));
            writer.write(&keyless)?;
        } else {
            writer.write(&batch)?;
        }
    }
    Ok(writer.finish_with_any_rows()?.1)
}
