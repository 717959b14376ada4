//! THE ORDER FILE: commit, then act.
//!
//! A transition is computed by the pure machine, made durable by the catalog, and only
//! then are its effects handed out. A crash before the commit leaves the old state, whose
//! work is asked for again; a crash after it leaves effects unperformed, which
//! [`Operation::recover`] asks for again. So every effect happens at least once and none
//! before the decision for it is durable. Nothing else in the crate commits transitions.

use super::{Job, ResumedStep};
use crate::catalog::{Catalog, Commit, Hold};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::ids::OperationId;
use crate::operation::{
    ApplyStage, Changes, Effect, Event, Moment, Operation, Phase, Refusal, Removed, Request,
    RetryPolicy, Working,
};
use crate::planted::{self, Bug};

/// One operation under one hold.
#[derive(Debug)]
pub struct Driver<'a> {
    operation: Operation,
    hold: Box<dyn Hold>,
    job: &'a dyn Job,
}

/// What is to be done after a commit.
#[derive(Debug, Default)]
pub struct Orders {
    /// Effects, in order.
    pub effects: Vec<Effect>,
    /// Requests that were refused.
    pub refused: Vec<Refusal>,
}

impl<'a> Driver<'a> {
    /// Builds the operation from what the catalog holds.
    ///
    /// # Errors
    /// [`Kind::Broken`] for records that contradict each other; what the job cannot resume.
    pub fn load(
        catalog: &dyn Catalog,
        hold: Box<dyn Hold>,
        job: &'a dyn Job,
        id: OperationId,
        policy: RetryPolicy,
    ) -> Result<(Driver<'a>, Recovered)> {
        let record = catalog.operation(id)?;
        let stored = catalog.state(id)?;
        if let Some(outcome) = &stored.outcome {
            job.recall(outcome)?;
        }
        let stored = stored.state;
        let mut recovered = Recovered::AsStored;
        let step = if stored.phase.has_shards() { stored.phase.step() } else { None };
        let (planned, shards) = match step.map(|step| Ok((step, job.resume_step(step)?))) {
            None => (Vec::new(), Vec::new()),
            Some(Err(error)) => return Err(error),
            Some(Ok((step, ResumedStep::Shards(planned)))) => (planned, catalog.shards(id, step)?),
            Some(Ok((_, ResumedStep::CutLost))) => {
                recovered = Recovered::CutLost;
                (Vec::new(), Vec::new())
            }
        };
        // The parts of a lost cut cannot be published either.
        let is_applying = matches!(
            stored.phase,
            Phase::Working(Working::Applying { .. })
                | Phase::Failed { was: Working::Applying { .. }, .. }
        );
        if is_applying && job.resume_step(crate::ids::StepIdx(0))? == ResumedStep::CutLost {
            recovered = Recovered::CutLost;
        }
        let operation = Operation::new(id, record.step_count, policy, stored, &planned, shards);
        Ok((Driver { operation, hold, job }, recovered))
    }

    /// The operation as it is now.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Epoch of the hold.
    pub fn epoch(&self) -> crate::ids::Epoch {
        self.hold.epoch()
    }

    /// Says that this holder lives.
    pub fn renew(&mut self) -> Result<()> {
        self.hold.renew()
    }

    /// Requests of other processes that wait to be seen.
    pub fn requests(&self) -> Result<Vec<(u64, Request)>> {
        self.hold.requests()
    }

    /// Asks for everything that the stored state says is to be done.
    pub fn recover(&mut self, moment: Moment) -> Result<Orders> {
        let transition = self.operation.recover(moment);
        if transition.changed {
            self.commit(&transition.changes, None)?;
        }
        Ok(Orders {
            effects: transition.effects,
            refused: transition.refused.into_iter().collect(),
        })
    }

    /// Applies events, commits what they change in one transaction, then says what to do.
    ///
    /// `seen` is the greatest request number among the events.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when the hold was lost, anything the catalog's commit gives, and
    /// [`Kind::Fatal`] for an event that cannot happen. The driver is spent then: nothing was
    /// made durable, and no effect may be performed.
    pub fn commit_then_act(
        &mut self,
        events: Vec<Event>,
        moment: Moment,
        seen: Option<u64>,
    ) -> Result<Orders> {
        let mut orders = Orders::default();
        let mut changes = Changes::default();
        let mut changed = seen.is_some();
        for event in events {
            let transition = self.operation.step(event, moment).map_err(|illegal| {
                Error::with_source(Kind::Fatal, "drive the operation", illegal)
            })?;
            changed |= transition.changed;
            merge(&mut changes, transition.changes);
            orders.effects.extend(transition.effects);
            orders.refused.extend(transition.refused);
        }
        if changed {
            let committed = self.commit(&changes, seen);
            if !planted::is(Bug::ActsWithoutCommit) {
                committed?;
            }
        }
        Ok(orders)
    }

    fn commit(&mut self, changes: &Changes, seen: Option<u64>) -> Result<()> {
        let state = self.operation.state();
        // What was proven is written before anything is published: afterwards nothing of it
        // could be read back, and a process that comes after a crash must still tell it.
        let outcome = match state.phase {
            Phase::Working(Working::Applying { stage: ApplyStage::Publishing, .. })
            | Phase::Done { .. } => self.job.outcome(),
            Phase::Working(_)
            | Phase::Failed { .. }
            | Phase::Reverting { .. }
            | Phase::Cancelled { .. } => None,
        };
        failpoint::hit("catalog.before_commit");
        self.hold.commit(&Commit { state, changes, seen, outcome: outcome.as_deref() })?;
        failpoint::hit("catalog.after_commit");
        Ok(())
    }
}

/// What loading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// Work goes on where it stands.
    AsStored,
    /// A backup's snapshot died with its process: [`Event::CutLost`] comes first.
    CutLost,
}

/// Adds the changes of a later transition.
fn merge(changes: &mut Changes, later: Changes) {
    match later.removed {
        Removed::Nothing => {}
        Removed::Step(removed) => {
            changes.shards.retain(|(step, ..)| *step != removed);
            if changes.removed == Removed::Nothing {
                changes.removed = Removed::Step(removed);
            }
        }
        Removed::All => {
            changes.shards.clear();
            changes.removed = Removed::All;
        }
    }
    changes.shards.extend(later.shards);
}
