//! `restore_state`: where an operation stands. Written with every transition.
//!
//! Key: operation, `u64` big-endian. Value, version 1, shapes of `catalog/codec.rs`:
//!
//! | field | shape |
//! |---|---|
//! | version of the state, created, changed (ms) | 3 varints |
//! | ended (ms), outcome (JSON) | option of varint, option of text |
//! | phase | see below |
//! | desired | u8: 0 run; 1 paused: u8 by (0 person, 1 obstacle), text why; 2 cancelled |
//! | window | varint |
//! | task: attempt, failures | 2 varints |
//! | task: rests until (boot ms), reason | option of varint, option of text |
//! | planned: proof bytes, steps | varint, varint count, then rows and bytes each |
//! | finished: rows, bytes; percent in hundredths | 3 varints |
//!
//! Phase: u8 then what it carries. 0 allocating; 1 proposing and 2 waiting: txn, step;
//! 3 applying: txn, u8 stage (0 sealing, 1 proving, 2 publishing); 4 failed: the working
//! phase it stopped in (0–3 with what it carries), text kind, text message; 5 reverting and
//! 7 cancelled: option of txn; 6 done: txn.

use crate::catalog::StoredState;
use crate::catalog::codec::{Reader, Writer};
use crate::env::{BootTime, WallTime};
use crate::error::{Kind, Result};
use crate::ids::{Attempt, StepIdx, Txn};
use crate::operation::{
    ApplyStage, Desired, Failure, PausedBy, Percent, Phase, Planned, State, TaskState, Work,
    Working,
};

const NAME: &str = "restore_state";
const VERSION: u8 = 1;

impl StoredState {
    pub(in crate::catalog) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VERSION);
        out.varint(self.version).varint(self.created_at.0).varint(self.changed_at.0);
        out.option(self.ended_at, |out, at| {
            out.varint(at.0);
        });
        out.option(self.outcome.as_deref(), |out, outcome| {
            out.text(outcome);
        });
        let state = &self.state;
        write_phase(&state.phase, &mut out);
        match &state.desired {
            Desired::Run => out.u8(0),
            Desired::Paused { by, why } => {
                out.u8(1).u8(if *by == PausedBy::Person { 0 } else { 1 }).text(why)
            }
            Desired::Cancelled => out.u8(2),
        };
        out.varint(u64::from(state.window));
        out.varint(u64::from(state.task.attempt.0)).varint(u64::from(state.task.failures));
        out.option(state.task.rests_until, |out, until| {
            out.varint(until.0);
        });
        out.option(state.task.reason.as_deref(), |out, reason| {
            out.text(reason);
        });
        out.varint(state.planned.proof_bytes).varint(state.planned.steps.len() as u64);
        for step in &state.planned.steps {
            out.varint(step.rows).varint(step.bytes);
        }
        out.varint(state.finished.rows).varint(state.finished.bytes);
        out.varint(u64::from(state.percent.0));
        out.finish()
    }

    pub(in crate::catalog) fn decode(bytes: &[u8]) -> Result<StoredState> {
        let mut from = Reader::new(NAME, VERSION, bytes)?;
        let version = from.varint()?;
        let created_at = WallTime(from.varint()?);
        let changed_at = WallTime(from.varint()?);
        let ended_at = from.option(Reader::varint)?.map(WallTime);
        let outcome = from.option(Reader::text)?;
        let phase = read_phase(&mut from)?;
        let desired = match from.u8()? {
            0 => Desired::Run,
            1 => {
                let by = match from.u8()? {
                    0 => PausedBy::Person,
                    1 => PausedBy::Obstacle,
                    _ => return Err(from.broken("was paused by nobody known")),
                };
                Desired::Paused { by, why: from.text()? }
            }
            2 => Desired::Cancelled,
            _ => return Err(from.broken("holds an unknown desired state")),
        };
        let window = from.u32()?;
        let task = TaskState {
            attempt: Attempt(from.u32()?),
            failures: from.u32()?,
            rests_until: from.option(Reader::varint)?.map(BootTime),
            reason: from.option(Reader::text)?,
        };
        let proof_bytes = from.varint()?;
        let step_count = from.varint()?;
        let mut steps = Vec::new();
        for _ in 0..step_count {
            steps.push(read_work(&mut from)?);
        }
        let finished = read_work(&mut from)?;
        let percent = Percent(from.u32()?);
        from.end()?;
        let planned = Planned { steps, proof_bytes };
        let state = State { phase, desired, window, task, planned, finished, percent };
        Ok(StoredState { state, version, created_at, changed_at, ended_at, outcome })
    }
}

pub(super) fn read_work(from: &mut Reader<'_>) -> Result<Work> {
    Ok(Work { rows: from.varint()?, bytes: from.varint()? })
}

fn write_phase(phase: &Phase, out: &mut Writer) {
    match phase {
        Phase::Working(working) => write_working(*working, out),
        Phase::Failed { was, failure } => {
            out.u8(4);
            write_working(*was, out);
            out.text(failure.kind.name()).text(&failure.message);
        }
        Phase::Reverting { txn } => write_ended(5, *txn, out),
        Phase::Done { txn } => {
            out.u8(6).varint(txn.0);
        }
        Phase::Cancelled { txn } => write_ended(7, *txn, out),
    }
}

fn write_working(working: Working, out: &mut Writer) {
    match working {
        Working::Allocating => out.u8(0),
        Working::Proposing { txn, step } => out.u8(1).varint(txn.0).varint(u64::from(step.0)),
        Working::Waiting { txn, step } => out.u8(2).varint(txn.0).varint(u64::from(step.0)),
        Working::Applying { txn, stage } => out.u8(3).varint(txn.0).u8(match stage {
            ApplyStage::Sealing => 0,
            ApplyStage::Proving => 1,
            ApplyStage::Publishing => 2,
        }),
    };
}

fn write_ended(number: u8, txn: Option<Txn>, out: &mut Writer) {
    out.u8(number).option(txn, |out, txn| {
        out.varint(txn.0);
    });
}

fn read_phase(from: &mut Reader<'_>) -> Result<Phase> {
    Ok(match from.u8()? {
        number @ 0..=3 => Phase::Working(read_working(number, from)?),
        4 => {
            let number = from.u8()?;
            let was = read_working(number, from)?;
            let kind = from.text()?;
            let kind = Kind::from_name(&kind)
                .ok_or_else(|| from.broken("holds an unknown kind of error"))?;
            Phase::Failed { was, failure: Failure { kind, message: from.text()? } }
        }
        5 => Phase::Reverting { txn: from.option(Reader::varint)?.map(Txn) },
        6 => Phase::Done { txn: Txn(from.varint()?) },
        7 => Phase::Cancelled { txn: from.option(Reader::varint)?.map(Txn) },
        _ => return Err(from.broken("holds an unknown phase")),
    })
}

fn read_working(number: u8, from: &mut Reader<'_>) -> Result<Working> {
    Ok(match number {
        0 => Working::Allocating,
        1 => Working::Proposing { txn: Txn(from.varint()?), step: StepIdx(from.u32()?) },
        2 => Working::Waiting { txn: Txn(from.varint()?), step: StepIdx(from.u32()?) },
        3 => {
            let txn = Txn(from.varint()?);
            let stage = match from.u8()? {
                0 => ApplyStage::Sealing,
                1 => ApplyStage::Proving,
                2 => ApplyStage::Publishing,
                _ => return Err(from.broken("holds an unknown stage")),
            };
            Working::Applying { txn, stage }
        }
        _ => return Err(from.broken("holds an unknown phase")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::codec::check_codec;

    fn stored(phase: Phase, desired: Desired) -> StoredState {
        let planned = Planned { steps: vec![Work { rows: 3, bytes: 900 }; 2], proof_bytes: 70 };
        let mut state = State::new(planned, 10);
        state.phase = phase;
        state.desired = desired;
        state.task.rests_until = Some(BootTime(777));
        state.task.reason = Some("the store is throttled".to_owned());
        StoredState {
            state,
            version: 9,
            created_at: WallTime(1),
            changed_at: WallTime(2),
            ended_at: Some(WallTime(3)),
            outcome: Some("{}".to_owned()),
        }
    }

    #[test]
    fn every_phase_reads_back_and_every_prefix_is_refused() {
        let txn = Txn(300);
        let was = Working::Waiting { txn, step: StepIdx(4) };
        let failure = Failure { kind: Kind::Broken, message: "part is gone".to_owned() };
        for phase in [
            Phase::FIRST,
            Phase::Working(Working::Proposing { txn, step: StepIdx(1) }),
            Phase::Working(was),
            Phase::Working(Working::Applying { txn, stage: ApplyStage::Proving }),
            Phase::Failed { was, failure },
            Phase::Reverting { txn: None },
            Phase::Done { txn },
            Phase::Cancelled { txn: Some(txn) },
        ] {
            let why = "a disk is full".to_owned();
            let paused = Desired::Paused { by: PausedBy::Obstacle, why };
            for desired in [Desired::Run, paused, Desired::Cancelled] {
                let stored = stored(phase.clone(), desired);
                check_codec(&stored, StoredState::encode, StoredState::decode);
            }
        }
    }
}
