//! Making a new table of a staged file.

use std::sync::Arc;

use super::compare::Tally;
use super::file::StagedFile;
use super::{Load, LoadReport, SHARDS_DEFAULT, file, plan};
use crate::database::embedded::{Shard, ShardBuilder};
use crate::error::Result;
use crate::failpoint;
use crate::ids::TableId;
use crate::row::{KeyRange, RowBatch, RowStream};

impl Load<'_> {
    /// Makes the table; it is visible with all its rows or not at all.
    pub(super) fn create(&self) -> Result<LoadReport> {
        let schema = plan::plan_new(self.columns())?;
        let shards = self.request.shards.unwrap_or(SHARDS_DEFAULT);
        let staged = self.stage(&schema, shards)?;
        let id = TableId(self.database.env().random_id());
        let (ranges, built) = self.build_shards(&staged, id)?;
        failpoint::hit("load.before_switch");
        self.database.name_new_table(&self.request.table, id, &schema, ranges, &built)?;
        failpoint::hit("load.after_switch");
        let tally = Tally { inserted: staged.rows.row_count(), ..Tally::default() };
        Ok(LoadReport::new(self.file, tally, Vec::new()))
    }

    /// The file's rows under `schema`, sorted and cut for that many shards.
    pub(super) fn stage(&self, schema: &crate::row::Schema, shards: u32) -> Result<StagedFile> {
        let sort_bytes_max = self.bounds.sort_bytes_max;
        file::stage(self.file, schema, self.scratch.dir(), sort_bytes_max, shards)
    }

    /// New shards with the rows of the file, cut where it says.
    pub(super) fn build_shards(
        &self,
        staged: &StagedFile,
        digest_id: TableId,
    ) -> Result<(Vec<KeyRange>, Vec<Arc<Shard>>)> {
        let ranges = KeyRange::between(&staged.splits);
        let built = self.database.build_generations(ranges.len() as u32)?;
        let builder =
            |at: usize| ShardBuilder::new(self.database, Arc::clone(&built[at]), digest_id);
        let mut at = 0;
        let mut shard = builder(at);
        let mut stream = staged.rows.stream()?;
        let mut batch = RowBatch::new();
        while stream.next_batch(&mut batch)? {
            for row in batch.iter() {
                // No shard is without rows, so the next one begins right here.
                if !ranges[at].contains(row.key) {
                    at += 1;
                    std::mem::replace(&mut shard, builder(at)).finish()?;
                }
                shard.push(row.key, row.payload)?;
            }
        }
        shard.finish()?;
        Ok((ranges, built))
    }
}
