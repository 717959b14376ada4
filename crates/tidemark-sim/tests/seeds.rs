//! A minute of processor time of seeds, spread over the scenarios, and that a seed is one run.

use tidemark_sim::run::{How, run};
use tidemark_sim::scenario::Scenario;
use tidemark_sim::soak::seeds;

/// Shards of the crowd in a test build; the command has a million.
const CROWD: u32 = 5_000;

fn how() -> How {
    How { crowd: CROWD, ..How::default() }
}

#[track_caller]
fn hold(scenario: Scenario, count: u64) {
    if let Err(failed) = seeds(scenario, 1, count, how()) {
        panic!("{failed}");
    }
}

#[test]
fn a_fold_survives_everything() {
    hold(Scenario::RestoreFold, 360);
}

#[test]
fn a_sequential_restore_survives_everything() {
    hold(Scenario::RestoreSequential, 240);
}

#[test]
fn rolling_forward_survives_everything() {
    hold(Scenario::RollForward, 300);
}

#[test]
fn a_process_may_die_at_every_gate() {
    hold(Scenario::CrashEverywhere, 240);
}

#[test]
fn of_several_drivers_one_wins() {
    hold(Scenario::TwoDrivers, 300);
}

#[test]
fn pausing_and_cancelling_is_possible_anywhere() {
    hold(Scenario::PauseCancelAnywhere, 300);
}

/// Found by a soak: two windows in one look, and shards were started in the first one.
#[test]
fn of_two_windows_asked_for_at_once_the_last_one_counts() {
    let report = run(Scenario::PauseCancelAnywhere, 5_000_449, How::default());
    assert_eq!(report.violation, None);
}

#[test]
fn a_store_in_chaos_delays_and_changes_nothing() {
    hold(Scenario::ChaosStore, 90);
}

#[test]
fn very_many_shards_are_driven_to_their_end() {
    hold(Scenario::MillionShards, 3);
}

#[test]
fn a_seed_is_one_run_byte_for_byte() {
    for scenario in Scenario::ALL {
        for seed in [3, 4, 5] {
            let how = How { is_recording: true, crowd: 500, ..how() };
            let (first, second) = (run(scenario, seed, how), run(scenario, seed, how));
            assert!(!first.log.is_empty());
            assert_eq!(first, second, "{} seed {seed}", scenario.name());
        }
    }
}

#[test]
fn a_scenario_reads_back_from_its_name() {
    for scenario in Scenario::ALL {
        assert_eq!(Scenario::from_name(scenario.name()), Some(scenario));
    }
}
