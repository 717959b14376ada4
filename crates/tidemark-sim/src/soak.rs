//! Many seeds, one after the other, until one fails or the time is up.

use std::time::Duration;

use tidemark::env::{Env, SystemEnv};

use crate::run::{How, run};
use crate::scenario::Scenario;

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Scenario.
    pub scenario: Scenario,
    /// Seed.
    pub seed: u64,
    /// What must not have happened.
    pub violation: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failed { scenario, seed, violation } = self;
        write!(f, "{violation}\nreplay it with: tidemark-sim run {} --seed {seed}", scenario.name())
    }
}

/// Runs `count` seeds of a scenario from `first` on.
///
/// # Errors
/// The first that fails.
pub fn seeds(scenario: Scenario, first: u64, count: u64, how: How) -> Result<(), Failed> {
    for seed in first..first + count {
        if let Some(violation) = run(scenario, seed, how).violation {
            return Err(Failed { scenario, seed, violation });
        }
    }
    Ok(())
}

/// Runs rounds of every scenario for about `time`, and gives the number of runs; `told` takes
/// the scenario and its seeds before they run.
///
/// # Errors
/// The first that fails.
pub fn soak(
    time: Duration,
    first: u64,
    mut told: impl FnMut(Scenario, u64, u64),
) -> Result<u64, Failed> {
    const ROUND: u64 = 500;
    let env = SystemEnv;
    let begun = env.boot_time();
    let (mut seed, mut runs) = (first, 0);
    loop {
        for scenario in Scenario::ALL {
            let count = if scenario == Scenario::MillionShards { 1 } else { ROUND };
            if env.boot_time().since(begun) >= time {
                return Ok(runs);
            }
            told(scenario, seed, count);
            seeds(scenario, seed, count, How::default())?;
            runs += count;
        }
        seed += ROUND;
    }
}
