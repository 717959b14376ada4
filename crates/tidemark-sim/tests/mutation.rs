//! Can the simulator see? Every planted bug is found within a number of seeds.

use tidemark::planted;
use tidemark::planted::Bug::{
    ActsWithoutCommit, AnswerOfEarlierStepAccepted, BarrierSkipped, CancelAfterPublishing,
    DoneBeforeApply, FoldOldestWins, LateAnswerAccepted, MarkBeyondRows, ObstacleFails,
    ProgressTurnsBack, ProofSkipped, PublishBeforeProof, RetryFromZero, SilenceIgnored,
    WindowExceeded,
};
use tidemark_sim::bug::Bug;
use tidemark_sim::run::{How, run};
use tidemark_sim::scenario::Scenario;

/// Seeds within which a bug must be found.
const SEEDS: u64 = 60;

/// The scenario in which a bug shows most often.
fn scenario(bug: Bug) -> Scenario {
    match bug {
        Bug::Library(bug) => match bug {
            PublishBeforeProof | WindowExceeded | ActsWithoutCommit | DoneBeforeApply
            | MarkBeyondRows | ProofSkipped | FoldOldestWins => Scenario::RestoreFold,
            AnswerOfEarlierStepAccepted | BarrierSkipped | ProgressTurnsBack | ObstacleFails => {
                Scenario::RestoreSequential
            }
            // A silent store is what attempts are given up for.
            LateAnswerAccepted | SilenceIgnored => Scenario::ChaosStore,
            CancelAfterPublishing => Scenario::PauseCancelAnywhere,
            RetryFromZero => Scenario::TwoDrivers,
        },
        Bug::MarkBeforeRows
        | Bug::RowsBeforeMark
        | Bug::PublishOneByOne
        | Bug::DoubledChunkAccepted => Scenario::RestoreFold,
        Bug::HolderOutlivesEnd => Scenario::RestoreFold,
        Bug::TargetIgnoresFence | Bug::CatalogIgnoresHold | Bug::TwoTakersAtOnce => {
            Scenario::TwoDrivers
        }
        Bug::DiscardLeavesTables => Scenario::PauseCancelAnywhere,
        Bug::NoStepInShardKey | Bug::ShardRecordsLeft => Scenario::RestoreSequential,
    }
}

fn is_found(bug: Bug) -> bool {
    let how = How { bug: Some(bug), storm: 3, ..How::default() };
    (1..=SEEDS).any(|seed| run(scenario(bug), seed, how).violation.is_some())
}

fn check(bugs: impl Iterator<Item = Bug>) {
    let missed: Vec<Bug> = bugs.filter(|bug| !is_found(*bug)).collect();
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn every_bug_planted_in_the_library_is_found() {
    check(planted::Bug::ALL.into_iter().map(Bug::Library));
}

#[test]
fn every_bug_planted_in_what_is_simulated_is_found() {
    check(Bug::SIMULATED.into_iter());
}
