//! What a target cannot hold, told before anything is recorded.

use super::plan::{ExistingTables, PlanTable};
use crate::collection::chain::TableLink;
use crate::collection::manifest::PartEntry;
use crate::database::Disposition;
use crate::error::{Error, Kind, Result};

/// Refuses tables that would not fit; `links` are those of each table.
///
/// Manifests tell some keys of a part, its first and last among them. A longer one in between
/// is met by the chunk that holds it.
///
/// # Errors
/// [`Kind::Usage`], with the way out.
pub(super) fn check(
    existing: &dyn ExistingTables,
    tables: &[PlanTable],
    links: &[Vec<TableLink<'_>>],
) -> Result<()> {
    let limits = existing.limits()?;
    if let Some(bytes_max) = limits.key_bytes_max {
        for (table, links) in tables.iter().zip(links) {
            let parts = links.iter().flat_map(|link| &link.entry.parts);
            let longest = parts.flat_map(known_keys).map(Vec::len).max().unwrap_or(0) as u64;
            if longest > bytes_max {
                let message = format!(
                    "table `{}` has a key of {longest} bytes in its stored form, this target \
                     stores at most {bytes_max}; restore the other tables with --table, or this \
                     one into another database",
                    table.source_name
                );
                return Err(Error::new(Kind::Usage, message));
            }
        }
    }
    let Some(most) = limits.shards_max else { return Ok(()) };
    let needed: u64 = tables.iter().map(|table| table.target.shards.len() as u64).sum();
    let mut kept = limits.shards_now + needed;
    if kept > most {
        // What gives way makes room; looked up only when it matters.
        for table in tables.iter().filter(|table| table.target.disposition != Disposition::Fresh) {
            let found = existing.existing(&table.target.name)?;
            kept -= found.map_or(0, |found| found.shards.len() as u64).min(kept);
        }
    }
    if needed <= most && kept <= most {
        return Ok(());
    }
    let message = format!(
        "the restore needs {needed} shards; this target holds {most} of all its tables together \
         and has {} now; ask for fewer per table with --shards, or restore fewer tables at a time \
         with --table",
        limits.shards_now
    );
    Err(Error::new(Kind::Usage, message))
}

fn known_keys(part: &PartEntry) -> impl Iterator<Item = &Vec<u8>> {
    let groups = part.row_groups.iter().map(|group| &group.first_key);
    [&part.first_key, &part.last_key].into_iter().chain(&part.key_samples).chain(groups)
}
