//! What a database driver promises: [`Source`] for backups, [`Target`] for restores.
//!
//! Every call states what a crash between it and the next leaves behind. A
//! driver is tested by `database::conformance`, which runs the same checks on
//! any implementation; `embedded` is the one that needs no server.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::{CollectionId, Epoch, OperationId, Position, ShardIdx, TableId, TableName, Txn};
use crate::row::{Digest, KeyRange, RowBatch, RowStream, Schema};

pub mod embedded;
pub mod mark;

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

    /// Says that the increment up to `to` is durable in `collection`, so that older
    /// changes need not be kept for it. Idempotent; never moves back.
    fn advance(&self, collection: CollectionId, to: Position) -> Result<()>;
}

/// One consistent cut, read in parallel.
pub trait Snapshot: Debug + Send + Sync {
    /// Position of the cut: an increment from here sees exactly what came later.
    fn position(&self) -> Position;

    /// The tables of the cut, sorted by name.
    fn tables(&self) -> &[SourceTable];

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
/// lets anybody see them. Writes carry a [`Fence`] and are refused with
/// [`Kind::Fenced`](crate::Kind::Fenced) once a newer epoch was claimed.
pub trait Target: Debug + Send + Sync {
    /// Who this is: see [`Source::identity`].
    fn identity(&self) -> Result<String>;

    /// A fresh fencing number, greater than every earlier one of this database.
    fn allocate_txn(&self) -> Result<Txn>;

    /// What stands under `name` now; `None` if nothing does.
    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>>;

    /// Makes the hidden tables of `fence.operation` and claims every shard for
    /// `fence.epoch`. Idempotent: what is there already is kept, marks included.
    ///
    /// A crash leaves some hidden tables and reserved names, all of them owned by the
    /// operation; calling again completes them, [`discard`](Self::discard) removes them.
    ///
    /// # Errors
    /// [`Kind::InTheWay`](crate::Kind::InTheWay): a name is taken by a table, or reserved by another
    /// operation; a copy to roll forward was written to, altered or dropped.
    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()>;

    /// The shard's position; `None` before its first chunk. The only truth about it.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) when the hidden table is gone: nothing is skipped silently.
    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>>;

    /// Applies one chunk and moves the mark, durable in one transaction, if the fence is current.
    ///
    /// Rows ascend and lie beyond the stored mark's last key within a step. Upserts
    /// write, deletes remove (a missing row is not an error), updates overlay the
    /// stored row. The target accounts every row in `mark`
    /// ([`Mark::account`]) before it stores it, so on return `mark` is what is durable.
    ///
    /// # Errors
    /// [`Kind::Fenced`](crate::Kind::Fenced), nothing written. [`Kind::Broken`](crate::Kind::Broken): an
    /// update without a stored row, naming the key. A crash leaves all of the chunk or nothing.
    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()>;

    /// Claims every shard for an epoch that nobody holds, so that nothing can be written
    /// between the proof and publishing. Builds what waits for all rows (indexes). Idempotent.
    fn seal(&self, fence: Fence) -> Result<()>;

    /// The rows that the shard really holds, in ascending key order.
    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>>;

    /// Makes all tables of the operation visible in one transaction, or none.
    ///
    /// Idempotent for the same operation. A crash leaves either all hidden or all
    /// published; what the publishing replaced is removed later by itself.
    ///
    /// # Errors
    /// [`Kind::InTheWay`](crate::Kind::InTheWay) when a name was taken meanwhile.
    fn publish(&self, fence: Fence, how: Publish) -> Result<()>;

    /// Removes the hidden tables and reservations of an operation; the target is as it was.
    /// Idempotent; refused after publishing.
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

/// What becomes of the tables at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Visible under their names.
    Visible,
    /// Kept hidden under their names, to be rolled forward; see [`Disposition::RollForward`].
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
    /// The existing copy moves on to a later restore point; its shards stay as they are cut.
    RollForward,
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
