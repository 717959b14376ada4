//! Bugs planted on purpose, to see whether the simulator sees them.

#[cfg(feature = "planted-bugs")]
use tidemark::planted;

/// One bug. Those of the pure machine and the executor are in the library, behind its feature
/// `planted-bugs`; those of what is simulated are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A bug inside the library.
    #[cfg(feature = "planted-bugs")]
    Library(planted::Bug),
    /// The target makes the mark durable first, and the rows in a second transaction.
    MarkBeforeRows,
    /// The target makes the rows durable first, and the mark in a second transaction.
    RowsBeforeMark,
    /// The target takes rows of an epoch that was taken over.
    TargetIgnoresFence,
    /// The target takes a chunk that its mark is beyond already.
    DoubledChunkAccepted,
    /// The target publishes one table after the other.
    PublishOneByOne,
    /// The target discards an operation and keeps its hidden tables.
    DiscardLeavesTables,
    /// The catalog takes commits of a holder whose hold was taken away.
    CatalogIgnoresHold,
    /// The catalog lets two take one operation at once.
    TwoTakersAtOnce,
    /// The catalog keeps the holder of an operation that has ended.
    HolderOutlivesEnd,
    /// The catalog's key of a shard's record has no step.
    NoStepInShardKey,
    /// The catalog keeps the records of shards when the operation ends.
    ShardRecordsLeft,
}

impl Bug {
    /// Every bug of what is simulated.
    pub const SIMULATED: [Bug; 11] = [
        Bug::MarkBeforeRows,
        Bug::RowsBeforeMark,
        Bug::TargetIgnoresFence,
        Bug::DoubledChunkAccepted,
        Bug::PublishOneByOne,
        Bug::DiscardLeavesTables,
        Bug::CatalogIgnoresHold,
        Bug::TwoTakersAtOnce,
        Bug::HolderOutlivesEnd,
        Bug::NoStepInShardKey,
        Bug::ShardRecordsLeft,
    ];

    /// Runs `work` with the bug in place.
    pub fn with<T>(bug: Option<Bug>, work: impl FnOnce() -> T) -> T {
        match bug {
            #[cfg(feature = "planted-bugs")]
            Some(Bug::Library(bug)) => planted::with(bug, work),
            _ => work(),
        }
    }
}
