//! Cuts, and the bookkeeping of who still needs which changes.
//!
//! The position counts cuts. A writer that commits while the position is `P` stamps
//! the keys it changes with `P + 1`: the cut that will see them first. A cut raises
//! the position to `P + 1` while nobody writes. So the increment from cut `A` to cut
//! `B` carries exactly the keys whose stamp is above `A`, read at `B`.
//!
//! Positions repeat in a database that was rolled back, and in a copy. So each cut also has
//! a random name, kept until no increment can follow it: whoever builds on a cut whose name
//! is not known here builds on the history of another.

use std::ops::Bound;
use std::sync::Arc;

use super::EmbeddedDatabase;
use super::read::{TableView, decode_stamp};
use super::record::{DatabaseRecord, GenerationNumber, GenerationRecord};
use super::shard::Shard;
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, CutId, Position, TableName};
use crate::lmdb::{LmdbContext, WriteTxn};

/// Entries of a change log that one transaction looks at while forgetting.
const TRIM_ENTRIES_MAX: usize = 16_384;

/// The visible tables that were selected, at one moment.
#[derive(Debug)]
pub(super) struct Cut {
    /// Views of the tables, by name.
    pub(super) tables: Vec<TableView>,
    /// Names of all visible tables.
    pub(super) names: Vec<TableName>,
    /// The database's record with the position of this cut.
    pub(super) database: DatabaseRecord,
    /// Random name of this cut.
    pub(super) id: CutId,
    /// The cuts before it that an increment may follow, by position.
    pub(super) past: Vec<(Position, CutId)>,
}

/// A collection that changes are kept for, so that its next increment can carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptCollection {
    /// Its identity.
    pub id: CollectionId,
    /// The cut that its next increment begins at.
    pub position: Position,
    /// Cuts that were taken after that one, for this collection and others.
    pub cuts_since: u64,
}

impl EmbeddedDatabase {
    /// Takes a cut for `collection`, which is registered: changes after it are kept for it.
    ///
    /// Opens the shards of the tables that `selects` says yes to, and no others.
    pub(super) fn cut(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<Cut> {
        let alone = self.pass_alone()?;
        let visible = self.visible_tables()?;
        let names = visible.iter().map(|table| table.name.clone()).collect();
        let selected = visible.iter().filter(|table| selects(&table.name));
        let tables = selected.map(|table| self.view_table(table)).collect::<Result<_>>()?;
        let mut txn = self.write_catalog()?;
        let mut database = self.catalog().database(&txn)?;
        database.position = database.next_cut();
        database.capture_since.get_or_insert(database.position);
        self.catalog().put_database(&mut txn, &database)?;
        let registered = self.catalog().source_positions(&txn)?;
        if registered.iter().all(|(other, _)| *other != collection) {
            self.catalog().put_source_position(&mut txn, collection, Some(database.position))?;
        }
        let past = self.catalog().cuts(&txn)?;
        let id = CutId(self.env().random_id());
        self.catalog().put_cut(&mut txn, database.position, id)?;
        txn.commit()?;
        drop(alone);
        Ok(Cut { tables, names, database, id, past })
    }

    /// Records that `collection` needs no change up to `to`; forgets what nobody needs.
    pub(super) fn advance_collection(&self, collection: CollectionId, to: Position) -> Result<()> {
        let mut txn = self.write_catalog()?;
        let database = self.catalog().database(&txn)?;
        if to > database.position {
            let message = format!(
                "collection {collection} claims to hold position {to}, the last cut is {}; it \
                 belongs to another database or to a copy of this one",
                database.position
            );
            return Err(Error::new(Kind::Usage, message));
        }
        let positions = self.catalog().source_positions(&txn)?;
        let before = positions.iter().find(|(other, _)| *other == collection).map(|(_, at)| *at);
        if before.is_none_or(|before| before < to) {
            self.catalog().put_source_position(&mut txn, collection, Some(to))?;
        }
        let raised = self.raise_trimmed(&mut txn)?;
        txn.commit()?;
        raised.map_or(Ok(()), |trimmed_to| self.trim(trimmed_to))
    }

    /// The collections that changes are kept for, by id.
    pub fn collections(&self) -> Result<Vec<KeptCollection>> {
        let txn = self.catalog().read()?;
        let last = self.catalog().database(&txn)?.position;
        let positions = self.catalog().source_positions(&txn)?;
        let kept = |(id, position): (CollectionId, Position)| KeptCollection {
            id,
            position,
            cuts_since: last.0.saturating_sub(position.0),
        };
        Ok(positions.into_iter().map(kept).collect())
    }

    /// Forgets a collection: changes need not be kept for it any more. Idempotent.
    ///
    /// Its next backup, if there is one, carries every table whole.
    pub fn forget_collection(&self, collection: CollectionId) -> Result<()> {
        let mut txn = self.write_catalog()?;
        self.catalog().put_source_position(&mut txn, collection, None)?;
        let raised = self.raise_trimmed(&mut txn)?;
        txn.commit()?;
        raised.map_or(Ok(()), |trimmed_to| self.trim(trimmed_to))
    }

    /// Decides, before anything is forgotten, what will be: a delta from before it is refused.
    /// `None` when nothing more can be.
    fn raise_trimmed(&self, txn: &mut WriteTxn<'_>) -> Result<Option<Position>> {
        let mut database = self.catalog().database(txn)?;
        let positions = self.catalog().source_positions(txn)?;
        // With nobody to keep them for, changes that no cut has seen yet can go as well.
        let needed = positions.iter().map(|(_, at)| *at).min().unwrap_or(database.next_cut());
        if needed <= database.trimmed_to {
            return Ok(None);
        }
        database.trimmed_to = needed;
        self.catalog().put_database(txn, &database)?;
        // No increment follows an older cut any more.
        self.catalog().remove_cuts_before(txn, needed)?;
        Ok(Some(needed))
    }

    /// Removes entries up to `trimmed_to` from all change logs.
    ///
    /// A shard that somebody else is writing is left for the next time: entries that stay
    /// cost space, and are not read.
    fn trim(&self, trimmed_to: Position) -> Result<()> {
        let live = |(number, state)| (state == GenerationRecord::Live).then_some(number);
        let all = self.catalog().generations(&*self.catalog().read()?)?;
        for number in all.into_iter().filter_map(live) {
            let Some(shard) = self.open_live(number)? else { continue };
            // A reader that died would keep every page it could see.
            shard.clear_stale_readers()?;
            match self.trim_shard(&shard, trimmed_to) {
                Err(error) if error.kind() == Kind::Held => {}
                trimmed => trimmed?,
            }
        }
        Ok(())
    }

    /// The shard, if a table still names it.
    fn open_live(&self, number: GenerationNumber) -> Result<Option<Arc<Shard>>> {
        let _access = self.pass_shared()?;
        let state = self.catalog().generation(&*self.catalog().read()?, number)?;
        let live = state == Some(GenerationRecord::Live);
        live.then(|| self.open_shard(number)).transpose()
    }

    fn trim_shard(&self, shard: &Shard, trimmed_to: Position) -> Result<()> {
        let reading = || shard.doing("read the changes of");
        let mut next: Bound<Vec<u8>> = Bound::Unbounded;
        loop {
            let txn = shard.read()?;
            let bounds = (next.as_ref().map(Vec::as_slice), Bound::Unbounded);
            let mut forgotten: Vec<Vec<u8>> = Vec::new();
            let mut seen = 0;
            let mut last: Option<&[u8]> = None;
            for entry in
                shard.changes().range(&txn, &bounds).during(reading)?.take(TRIM_ENTRIES_MAX)
            {
                let (key, stamp) = entry.during(reading)?;
                seen += 1;
                last = Some(key);
                if decode_stamp(stamp)? <= trimmed_to {
                    forgotten.push(key.to_vec());
                }
            }
            let Some(last) = last else { return Ok(()) };
            next = Bound::Excluded(last.to_vec());
            drop(txn);
            self.forget_changes(shard, &forgotten, trimmed_to)?;
            if seen < TRIM_ENTRIES_MAX {
                return Ok(());
            }
        }
    }

    fn forget_changes(&self, shard: &Shard, keys: &[Vec<u8>], trimmed_to: Position) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let writing = || shard.doing("trim the changes of");
        let mut txn = self.write_shard(shard)?;
        for key in keys {
            // It may have changed again since it was read.
            let stamp = shard.changes().get(&txn, key).during(writing)?.map(decode_stamp);
            if stamp.transpose()?.is_some_and(|stamp| stamp <= trimmed_to) {
                shard.changes().delete(&mut txn, key).during(writing)?;
            }
        }
        txn.commit()
    }
}
