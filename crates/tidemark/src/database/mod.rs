//! What a database driver promises: [`Source`] for backups, [`Target`] for restores.
//!
//! Every call states what a crash between it and the next leaves behind. A
//! driver is tested by [`conformance`], which runs the same checks on any
//! implementation; `embedded` is the one that needs no server.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{
    CollectionId, CutId, Epoch, OperationId, Position, ShardIdx, TableId, TableName, Txn,
};
use crate::row::{Digest, KeyRange, RowBatch, RowStream, Schema};

pub mod conformance;
pub mod embedded;
mod layer;
pub mod mark;
#[cfg(feature = "postgres")]
pub mod postgres;
mod scratch;
mod sorter;

pub use layer::TargetLayer;
pub use mark::{LinkTally, Mark, RangeDigest};

/// A database that can be backed up.
pub trait Source: Debug + Send + Sync {
    /// Who this is: the same database gives the same text for ever, another never does.
    fn identity(&self) -> Result<String>;

    /// Takes one consistent cut over all tables, for a backup into `collection`.
    ///
    /// Everything committed before the call is in the cut, nothing after its
    /// return is. From the first cut on the source captures changes. The cut
    /// lives as long as the value; a crash ends it and leaves nothing to clean.
    ///
    /// # Errors
    /// [`Kind::Held`](crate::Kind::Held) when writers did not let go in time, with who they are.
    fn snapshot(&self, collection: CollectionId) -> Result<Arc<dyn Snapshot>>;

    /// The same with those tables only that `selects` says yes to, so that a source need not
    /// open the others; by default with all of them.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    fn snapshot_of(
        &self,
        collection: CollectionId,
        selects: &mut dyn FnMut(&TableName) -> bool,
    ) -> Result<Arc<dyn Snapshot>> {
        let _ = selects;
        self.snapshot(collection)
    }

    /// Says that the increment up to `to` is durable in `collection`, so that older
    /// changes need not be kept for it. Idempotent; never moves back.
    fn advance(&self, collection: CollectionId, to: Position) -> Result<()>;
}

/// One consistent cut, read in parallel.
pub trait Snapshot: Debug + Send + Sync {
    /// Position of the cut: an increment from here sees exactly what came later.
    fn position(&self) -> Position;

    /// Random name of this cut, which the source keeps for as long as an increment may follow
    /// it; `None`, the default, for a source that no rollback and no copy can make repeat a
    /// position.
    fn cut_id(&self) -> Option<CutId> {
        None
    }

    /// Whether the cut `cut` at `position` is in the past of this database: `false` once the
    /// database was rolled back to before it, and in a copy that was made before it.
    ///
    /// Also `true` for what is too old to be told; [`delta`](Self::delta) says so then.
    fn is_after(&self, position: Position, cut: CutId) -> Result<bool> {
        let _ = (position, cut);
        Ok(true)
    }

    /// The tables of the cut, sorted by name.
    fn tables(&self) -> &[SourceTable];

    /// Names of all tables that the source has, also those that are not in the cut.
    fn table_names(&self) -> Vec<TableName> {
        self.tables().iter().map(|table| table.name.clone()).collect()
    }

    /// Rows of `tables()[table]` inside `range`, all upserts, ascending by key.
    fn scan<'a>(&'a self, table: usize, range: &KeyRange) -> Result<Box<dyn RowStream + 'a>>;

    /// Whether the changes of `tables()[table]` since `parent` are known completely.
    fn delta(&self, table: usize, parent: &ParentTable) -> Result<Delta>;

    /// Changes inside `range` after `from` up to the cut, collapsed to the last state
    /// per key, ascending by key. Only after [`delta`](Self::delta) said [`Delta::Known`].
    fn changes<'a>(
        &'a self,
        table: usize,
        range: &KeyRange,
        from: Position,
    ) -> Result<Box<dyn RowStream + 'a>>;
}

/// One table of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// Identity for the life of the table: a table that is dropped and made again has another.
    pub id: TableId,
    /// Identity that its digests carry; a restored copy keeps that of its origin.
    pub digest_id: TableId,
    /// Name at the cut.
    pub name: TableName,
    /// Schema at the cut.
    pub schema: Schema,
    /// Ranges that cover all keys in order; each is read by one worker.
    pub shards: Vec<SourceShard>,
    /// Digest of all rows at the cut, if the source keeps one.
    pub digest: Option<Digest>,
    /// See [`Structure`].
    pub structure: Option<Structure>,
}

/// One range of a table of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceShard {
    /// Keys.
    pub range: KeyRange,
    /// Rows, estimated where the source does not count.
    pub rows: u64,
    /// Key and payload bytes, estimated.
    pub bytes: u64,
}

/// What an increment's parent recorded of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentTable {
    /// Identity then.
    pub id: TableId,
    /// Schema then.
    pub schema: Schema,
    /// Position of the parent's cut.
    pub position: Position,
    /// See [`Structure`].
    pub structure: Option<Structure>,
}

/// Whether an increment can carry changes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// Every change since the parent was captured; about so many rows and bytes.
    Known {
        /// Rows, estimated.
        rows: u64,
        /// Bytes, estimated.
        bytes: u64,
    },
    /// Not known completely; the whole table is carried, and people are told why.
    Whole {
        /// A clause: "it was created after the parent".
        reason: String,
    },
}

/// A database that can be restored into.
///
/// Rows go into hidden tables of one operation; only [`publish`](Self::publish)
/// lets anybody see them.
///
/// # Fences
/// The database remembers per operation the highest epoch it was shown. A call
/// with a lower one is refused with [`Kind::Fenced`](crate::Kind::Fenced) and changes nothing.
/// [`prepare`](Self::prepare), [`seal`](Self::seal) and [`discard`](Self::discard) raise
/// it, so a takeover is any of them with a higher epoch; [`apply`](Self::apply) and
/// [`publish`](Self::publish) never do, and need exactly the claimed one.
///
/// ```text
///             prepare            seal              publish
///   (nothing) --------> open ------------> sealed ---------> published
///                        ^                   |
///                        +-- prepare, with --+
///                            a higher epoch           discard, from anything but
///                                                     published ----> discarded
/// ```
/// Only `open` takes rows. `published` and `discarded` are for ever: the operation's
/// number is remembered, so that a holder who comes late makes nothing anew.
pub trait Target: Debug + Send + Sync {
    /// Who this is: see [`Source::identity`].
    fn identity(&self) -> Result<String>;

    /// A fresh fencing number, greater than every earlier one of this database.
    fn allocate_txn(&self) -> Result<Txn>;

    /// What stands under `name` now; `None` if nothing does.
    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>>;

    /// Refuses a name that an unfinished operation has reserved, so that a restore can be refused
    /// before it is recorded; [`prepare`](Self::prepare) decides. Nothing is refused by default.
    ///
    /// # Errors
    /// [`Kind::InTheWay`](crate::Kind::InTheWay), naming the operation.
    fn check_unreserved(&self, _name: &TableName) -> Result<()> {
        Ok(())
    }

    /// How much fits, so that a restore can be refused before it is recorded; no limits by default.
    fn limits(&self) -> Result<TargetLimits> {
        Ok(TargetLimits::default())
    }

    /// How much one chunk may hold that changes rows in place.
    fn changes_max(&self) -> ChangesMax {
        ChangesMax::default()
    }

    /// Makes the hidden tables of `fence.operation` and claims every shard for
    /// `fence.epoch`. Idempotent: what is there already is kept, marks included.
    ///
    /// A crash leaves some hidden tables and reserved names, all of them owned by the
    /// operation; calling again completes them, [`discard`](Self::discard) removes them.
    /// After publishing it does nothing. Once it returned, nobody else rolls the same
    /// copies forward: that is the moment to compare [`CopyState::origin`] with the plan.
    ///
    /// # Errors
    /// [`Kind::InTheWay`](crate::Kind::InTheWay): a name is taken by a table, or reserved by another
    /// operation, which is named; a copy to replace or roll forward was written to, altered or
    /// dropped.
    /// [`Kind::Usage`](crate::Kind::Usage): a table was prepared differently before, or is
    /// new to a sealed operation; the shards of a copy to roll forward are cut differently.
    /// [`Kind::Unsupported`](crate::Kind::Unsupported): the plan has other columns than a copy to
    /// roll forward, and this target cannot bring it there; nothing was changed.
    /// [`Kind::Fenced`](crate::Kind::Fenced): also after a discard, whatever the epoch.
    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()>;

    /// The shard's position; `None` before its first chunk. The only truth about it.
    ///
    /// A copy that is rolled forward has one from the beginning: it stands at the
    /// start of step 0 with nothing consumed, and its ranges say what the copy holds, without
    /// the columns that went.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) when the hidden table is gone, which
    /// it is after publishing and discarding too: nothing is skipped silently.
    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>>;

    /// Applies one chunk and moves the mark, durable in one transaction, if the fence is current.
    ///
    /// Rows ascend, lie inside the shard and, within a step, beyond the stored mark's
    /// last key. Upserts write, deletes remove (a missing row is not an error), updates
    /// overlay the stored row. `mark` comes with the position after the chunk;
    /// its ranges are replaced by the stored ones with every row accounted
    /// ([`Mark::account`]), so on return `mark` is what is durable and an attempt that
    /// failed half-way cannot count twice.
    ///
    /// # Errors
    /// After each of them nothing is written, and `mark` is unspecified. A crash leaves
    /// all of the chunk or nothing.
    /// [`Kind::Fenced`](crate::Kind::Fenced): the epoch is not the claimed one, or the operation is sealed.
    /// [`Kind::Transient`](crate::Kind::Transient): the stored mark is already beyond the chunk; read
    /// it and carry on from there. [`Kind::Broken`](crate::Kind::Broken): an update without a stored row,
    /// naming the key. [`Kind::Usage`](crate::Kind::Usage): rows that do not ascend or lie outside the
    /// shard. [`Kind::NotFound`](crate::Kind::NotFound): the hidden table is gone.
    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()>;

    /// Claims every shard for an epoch that nobody holds, so that nothing can be written
    /// between the proof and publishing. Builds what waits for all rows (indexes). Idempotent.
    ///
    /// Only [`prepare`](Self::prepare) with a higher epoch opens the shards again. A crash leaves
    /// some shards sealed; calling again seals the others. After publishing it does nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) when nothing was prepared.
    fn seal(&self, fence: Fence) -> Result<()>;

    /// The rows that the shard really holds, all upserts, in ascending key order.
    ///
    /// # Errors
    /// As [`mark`](Self::mark).
    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>>;

    /// The rows of a whole hidden table, as at most `parts_max` streams that are read at the same
    /// time and together hold every row once; all upserts, in **any** order.
    ///
    /// For a target that finds a shard's rows only by a search per row, and reads the table as
    /// it lies in a fraction of the time: the proof then assigns rows to shards itself. `None`,
    /// the default, where [`read_back`](Self::read_back) of every shard costs no more.
    ///
    /// # Errors
    /// As [`read_back`](Self::read_back).
    fn read_back_table<'a>(
        &'a self,
        operation: OperationId,
        table: &TableName,
        parts_max: usize,
    ) -> Result<Option<Vec<Box<dyn RowStream + 'a>>>> {
        let _ = (operation, table, parts_max);
        Ok(None)
    }

    /// Makes all tables of the operation visible in one transaction, or none.
    ///
    /// Idempotent for the same operation, whatever became of the tables since. A
    /// crash leaves either all hidden or all published; what the publishing replaced is
    /// removed later by itself. Afterwards nothing of the operation can be read back, so
    /// the caller records the proof before it calls.
    ///
    /// # Errors
    /// After each of them nothing is published.
    /// [`Kind::InTheWay`](crate::Kind::InTheWay) when a name was taken meanwhile, or a copy that is
    /// replaced or rolled forward was written to, altered or dropped meanwhile, or when
    /// [`Publish::Held`] would hide a table that readers see.
    /// [`Kind::Usage`](crate::Kind::Usage) when the operation is not sealed.
    /// [`Kind::NotFound`](crate::Kind::NotFound) when nothing was prepared.
    fn publish(&self, fence: Fence, how: Publish) -> Result<()>;

    /// Gives back room that is kept for a full disk: called before an operation is undone, which
    /// frees room and needs some for that. May be called twice; by default nothing is kept.
    ///
    /// # Errors
    /// [`Kind::Blocked`](crate::Kind::Blocked) when nothing can be changed.
    fn make_room(&self) -> Result<()> {
        Ok(())
    }

    /// What people should know of an operation once it is published, like things of a table
    /// that this target could not build; nothing by default. Asked before publishing.
    fn notices(&self, operation: OperationId) -> Result<Vec<String>> {
        let _ = operation;
        Ok(Vec::new())
    }

    /// Removes the hidden tables and reservations of an operation; the target is as it was.
    ///
    /// Idempotent, also for an operation that never prepared anything. One thing does
    /// not come back: a held copy that took rows in place counts as written to, since
    /// it stands between two restore points. A crash leaves some of it removed; calling
    /// again removes the rest.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::Kind::Usage) after publishing, which is the point of no return.
    fn discard(&self, fence: Fence) -> Result<()>;
}

/// Who writes: the operation and the epoch its holder claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Operation.
    pub operation: OperationId,
    /// Epoch of its holder.
    pub epoch: Epoch,
}

/// The refusal of [`Publish::Held`] over a table that readers see.
pub(crate) fn holding_would_hide(name: &TableName) -> Error {
    let message = format!(
        "table `{name}` is visible, and keeping the result hidden would take it from its readers; \
         cancel, and restore without --hold or under another name"
    );
    Error::new(crate::Kind::InTheWay, message)
}

/// What becomes of the tables at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Visible under their names.
    Visible,
    /// Kept hidden under their names, to be rolled forward; see [`Disposition::RollForward`].
    /// Never where readers see a table.
    Held,
}

/// A table to be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetTable {
    /// Name it will have.
    pub name: TableName,
    /// Identity in the chain.
    pub id: TableId,
    /// Identity that its digests carry.
    pub digest_id: TableId,
    /// Schema at the restore point.
    pub schema: Schema,
    /// Ranges that cover all keys in order.
    pub shards: Vec<KeyRange>,
    /// What to do with what stands under the name.
    pub disposition: Disposition,
    /// What the copy will be a copy of: recorded so that it can be rolled forward later.
    pub origin: Origin,
    /// See [`Structure`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<Structure>,
}

/// What a table is beyond its columns and rows, as its own engine describes it: indexes,
/// defaults, checks and the like. Carried as it is, and understood by that engine alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Engine that wrote it, like `postgresql`. Others ignore it.
    pub engine: String,
    /// The description.
    pub table: serde_json::Value,
}

/// The restore point that a copy stands at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Collection.
    pub collection: CollectionId,
    /// BLAKE3 of the manifest of the restore point, hexadecimal.
    pub manifest: String,
}

/// What to do with what stands under a target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// The name must be free, now and when publishing.
    Fresh,
    /// The new table takes the name; the old one goes with the publishing transaction.
    Replace,
    /// The same in the place of a restored copy, which must still be there, and must not be
    /// written to: what a user did to it would be lost without a word.
    ReplaceCopy {
        /// The copy.
        table: TableId,
    },
    /// The existing copy moves on to a later restore point; its shards stay as they are cut.
    /// Its rows lose the columns that the plan's schema no longer has, by id or type: no change
    /// of a later backup says so.
    RollForward,
}

/// What a database can hold; `None` for what it does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetLimits {
    /// Shards of all tables together.
    pub shards_max: Option<u64>,
    /// How many of them there are now.
    pub shards_now: u64,
    /// Bytes of a key in its canonical encoding.
    pub key_bytes_max: Option<u64>,
}

/// How much one chunk may hold that changes rows in place. What is appended has one size for
/// every target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesMax {
    /// Rows.
    pub rows: u32,
    /// Key and payload bytes.
    pub bytes: u64,
}

impl Default for ChangesMax {
    /// For a target in which each row dirties a page, and another when it splits the first: a
    /// chunk then stays below 8 MiB.
    fn default() -> ChangesMax {
        ChangesMax { rows: 768, bytes: 1 << 20 }
    }
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingTable {
    /// Identity in this database.
    pub id: TableId,
    /// Identity that its digests carry.
    pub digest_id: TableId,
    /// Schema now.
    pub schema: Schema,
    /// How it is cut.
    pub shards: Vec<KeyRange>,
    /// Rows now.
    pub rows: u64,
    /// Where it came from, if it is a restored copy.
    pub copy: Option<CopyState>,
}

impl ExistingTable {
    /// Whether it is a copy that no reader sees.
    pub fn is_held(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.held)
    }
}

/// A restored copy's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyState {
    /// Restore point it stands at.
    pub origin: Origin,
    /// Whether it is hidden: restored with `--hold`.
    pub held: bool,
    /// Whether anybody wrote to it since.
    pub written_to: bool,
}

/// One shard of a hidden table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetShard {
    /// Operation that owns the hidden table.
    pub operation: OperationId,
    /// Name the table will have.
    pub table: TableName,
    /// Position of the shard in its table, in key order.
    pub shard: ShardIdx,
}
