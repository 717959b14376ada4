//! Whether and when something is tried again: decided here and nowhere else.

use std::time::Duration;

use crate::env::BootTime;
use crate::error::Kind;
use crate::planted::{self, Bug};

/// Times that undoing is tried on a full disk, or against a process that holds a lock, before it
/// waits for a person.
///
/// Each try frees what it can, so that the next may find room.
pub const UNDO_OBSTACLE_MAX: u32 = 3;

/// How often and how soon failed work is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row, without progress between them, that end the operation; at least 1.
    pub failures_max: u32,
    /// Rest after the first failure in a row; doubles with each further one.
    pub backoff_first: Duration,
    /// Longest rest.
    pub backoff_max: Duration,
    /// Silence of a running shard after which its attempt is given up.
    pub silence_max: Duration,
}

impl Default for RetryPolicy {
    /// Eight failures in a row with rests from 1 s to 30 s: about two minutes of trying;
    /// ten minutes of silence, ten times the deadline of a single read.
    fn default() -> RetryPolicy {
        RetryPolicy {
            failures_max: 8,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            silence_max: Duration::from_secs(600),
        }
    }
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after a rest, within the budget.
    Retry,
    /// Stand still until somebody acted.
    Pause,
    /// End the operation.
    Fail,
}

/// What follows a failure of that kind.
pub fn decide(kind: Kind) -> Decision {
    match kind {
        // A fenced write is either a doubled attempt, which starts again from the mark, or a
        // lost hold, which the executor notices by itself at its next commit.
        Kind::Transient | Kind::Held | Kind::Fenced => Decision::Retry,
        Kind::Blocked if planted::is(Bug::ObstacleFails) => Decision::Fail,
        Kind::Blocked => Decision::Pause,
        Kind::Usage
        | Kind::NotFound
        | Kind::Overtaken
        | Kind::InTheWay
        | Kind::Broken
        | Kind::Mismatch
        | Kind::Unsupported
        | Kind::Fatal => Decision::Fail,
    }
}

impl RetryPolicy {
    /// Rest after `failures` failures in a row (at least 1), shortened by up to half by `chance`.
    ///
    /// The jitter is "equal jitter" of the AWS architecture blog's "Exponential Backoff And
    /// Jitter": half is fixed, so that a rest is never nothing.
    pub fn backoff(&self, failures: u32, chance: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.backoff_first.saturating_mul(1 << doublings).min(self.backoff_max);
        let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(millis - chance % (millis / 2 + 1))
    }

    /// Whether a rest until `at` is over; a rest longer than any we order was ordered
    /// before the machine booted.
    pub fn is_due(&self, at: BootTime, now: BootTime) -> bool {
        at <= now || at.since(now) > self.backoff_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_from_one_second_to_thirty_with_jitter() {
        let policy = RetryPolicy::default();
        let rests: Vec<u64> = (1..=7).map(|n| policy.backoff(n, 0).as_secs()).collect();
        assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30]);
        for chance in 0..5_000 {
            let rest = policy.backoff(1, chance).as_millis();
            assert!((500..=1000).contains(&rest), "{rest}");
        }
    }

    #[test]
    fn a_rest_ordered_before_a_reboot_is_over() {
        let policy = RetryPolicy::default();
        assert!(policy.is_due(BootTime(9_000_000), BootTime(1_000)));
        assert!(!policy.is_due(BootTime(20_000), BootTime(1_000)));
    }

    #[test]
    fn a_full_disk_pauses_and_a_broken_chain_fails() {
        assert_eq!(decide(Kind::Blocked), Decision::Pause);
        assert_eq!(decide(Kind::Broken), Decision::Fail);
        assert_eq!(decide(Kind::Mismatch), Decision::Fail);
        assert_eq!(decide(Kind::Overtaken), Decision::Fail);
        assert_eq!(decide(Kind::Transient), Decision::Retry);
    }
}
