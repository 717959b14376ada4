//! How far an operation is, in one unit: planned input bytes.
//!
//! Before the first row is written the whole plan is known: the bytes of every
//! step, and a declared weight for the proof, which reads what was written. A
//! percentage counts against that sum, never goes backwards and reaches 100 only
//! when the result is published and proven.

use super::event::Work;
use crate::ids::StepIdx;

/// Work of a whole plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Rows and bytes per step: estimated when the plan was made and when its shards were cut,
    /// exact once it is finished.
    pub steps: Vec<Work>,
    /// Bytes that the proof counts for: what reading back costs, in units of the rest.
    pub proof_bytes: u64,
}

impl Planned {
    /// Replaces the estimate of a step by what its shards add up to, or have done.
    pub(super) fn cut_step(&mut self, step: StepIdx, work: Work) {
        let at = step.0 as usize;
        if self.steps.len() <= at {
            self.steps.resize(at + 1, Work::default());
        }
        self.steps[at] = work;
    }

    /// Rows and bytes of all steps; the proof is not in the rows and is in the bytes.
    pub fn total(&self) -> Work {
        let mut total = Work { rows: 0, bytes: self.proof_bytes };
        self.steps.iter().for_each(|step| total += *step);
        total
    }

    /// The share that `done` is, below 100.
    pub fn percent(&self, done: Work) -> Percent {
        let total = self.total().bytes.max(1);
        let share = u128::from(done.bytes) * u128::from(Percent::WHOLE.0) / u128::from(total);
        Percent(u32::try_from(share).unwrap_or(u32::MAX).min(Percent::WHOLE.0 - 1))
    }
}

/// A percentage in hundredths: 10,000 is 100 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// 0 %.
    pub const ZERO: Percent = Percent(0);
    /// 100 %: published and proven.
    pub const WHOLE: Percent = Percent(10_000);

    /// As a fraction of 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Percent::WHOLE.0)
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}
