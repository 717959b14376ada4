//! Bugs that a test build plants on purpose, to see whether the simulator finds them.
//!
//! Without the feature `planted-bugs`, which no release has, `is` is `false` and the
//! compiler removes what it guards. With it a bug is there only inside [`with`], on the
//! thread that called it.

/// One bug: what a careless change could make of the code it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// An answer of an attempt that was given up counts for the one that runs.
    LateAnswerAccepted,
    /// An answer of an earlier step counts for the step that runs.
    AnswerOfEarlierStepAccepted,
    /// Publishing begins when the shards are sealed.
    PublishBeforeProof,
    /// A step is left while one of its shards is not done.
    BarrierSkipped,
    /// The percentage is what was counted last, not the greatest.
    ProgressTurnsBack,
    /// A cancel is taken when publishing began.
    CancelAfterPublishing,
    /// One shard more than the window runs.
    WindowExceeded,
    /// A silent attempt is never given up.
    SilenceIgnored,
    /// A full disk ends the operation instead of pausing it.
    ObstacleFails,
    /// Effects are performed although the commit failed.
    ActsWithoutCommit,
    /// A new attempt begins at the first row, whatever the mark says.
    RetryFromZero,
    /// A shard is said to be done before its last chunk is applied.
    DoneBeforeApply,
    /// The mark moves behind a row that was not applied.
    MarkBeyondRows,
    /// The proof reads nothing back.
    ProofSkipped,
    /// Of two backups that have a key, the older one decides.
    FoldOldestWins,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 15] = [
        Bug::LateAnswerAccepted,
        Bug::AnswerOfEarlierStepAccepted,
        Bug::PublishBeforeProof,
        Bug::BarrierSkipped,
        Bug::ProgressTurnsBack,
        Bug::CancelAfterPublishing,
        Bug::WindowExceeded,
        Bug::SilenceIgnored,
        Bug::ObstacleFails,
        Bug::ActsWithoutCommit,
        Bug::RetryFromZero,
        Bug::DoneBeforeApply,
        Bug::MarkBeyondRows,
        Bug::ProofSkipped,
        Bug::FoldOldestWins,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether `bug` is planted here and now.
#[inline]
pub(crate) fn is(bug: Bug) -> bool {
    #[cfg(feature = "planted-bugs")]
    return PLANTED.get() == Some(bug);
    #[cfg(not(feature = "planted-bugs"))]
    {
        let _ = bug;
        false
    }
}

/// Runs `work` with `bug` in the code that this thread runs meanwhile.
#[cfg(feature = "planted-bugs")]
pub fn with<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
    /// Takes the bug away again, also when `work` panics.
    struct Planted(Option<Bug>);
    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(self.0);
        }
    }
    let _planted = Planted(PLANTED.replace(Some(bug)));
    work()
}
