//! `shard_progress`: claim and attempt of one shard in one step, and a copy of its mark.
//!
//! Key: operation `u64`, step `u32`, shard `u32`, all big-endian; the step is in the key, so
//! that a shard that was done in one step is not taken for done in the next. Value, version 1:
//!
//! | field | shape |
//! |---|---|
//! | status | u8: 0 pending, 1 resting (varint until, boot ms), 2 in flight, 3 done |
//! | attempt, failures | 2 varints |
//! | rows, bytes | 2 varints |
//! | last key, reason | option of bytes, option of text |
//!
//! A shard without a record is pending and was never started. The copy of the mark is for
//! people; recovery asks the target.

use super::restore_state::read_work;
use crate::catalog::codec::{Reader, Writer};
use crate::env::BootTime;
use crate::error::Result;
use crate::ids::{Attempt, OperationId, ShardIdx, StepIdx};
use crate::operation::{ShardProgress, ShardStatus};

const NAME: &str = "shard_progress";
const VERSION: u8 = 1;

/// Key of one shard.
pub(in crate::catalog) fn key(operation: OperationId, step: StepIdx, shard: ShardIdx) -> [u8; 16] {
    let mut key = [0; 16];
    key[..12].copy_from_slice(&step_prefix(operation, step));
    key[12..].copy_from_slice(&shard.0.to_be_bytes());
    key
}

/// What the keys of one step begin with.
pub(in crate::catalog) fn step_prefix(operation: OperationId, step: StepIdx) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&operation.0.to_be_bytes());
    key[8..].copy_from_slice(&step.0.to_be_bytes());
    key
}

/// Shard of a key.
pub(in crate::catalog) fn shard_of(key: &[u8]) -> Option<ShardIdx> {
    Some(ShardIdx(u32::from_be_bytes(key.get(12..16)?.try_into().ok()?)))
}

pub(in crate::catalog) fn encode(progress: &ShardProgress) -> Vec<u8> {
    let mut out = Writer::new(VERSION);
    match progress.status {
        ShardStatus::Pending => out.u8(0),
        ShardStatus::Resting { until } => out.u8(1).varint(until.0),
        ShardStatus::InFlight => out.u8(2),
        ShardStatus::Done => out.u8(3),
    };
    out.varint(u64::from(progress.attempt.0)).varint(u64::from(progress.failures));
    out.varint(progress.done.rows).varint(progress.done.bytes);
    out.option(progress.last_key.as_deref(), |out, key| {
        out.bytes(key);
    });
    out.option(progress.reason.as_deref(), |out, reason| {
        out.text(reason);
    });
    out.finish()
}

pub(in crate::catalog) fn decode(bytes: &[u8]) -> Result<ShardProgress> {
    let mut from = Reader::new(NAME, VERSION, bytes)?;
    let status = match from.u8()? {
        0 => ShardStatus::Pending,
        1 => ShardStatus::Resting { until: BootTime(from.varint()?) },
        2 => ShardStatus::InFlight,
        3 => ShardStatus::Done,
        _ => return Err(from.broken("holds an unknown status")),
    };
    let progress = ShardProgress {
        status,
        attempt: Attempt(from.u32()?),
        failures: from.u32()?,
        done: read_work(&mut from)?,
        last_key: from.option(|from| from.bytes().map(<[u8]>::to_vec))?,
        reason: from.option(Reader::text)?,
    };
    from.end()?;
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::codec::check_codec;
    use crate::operation::Work;

    #[test]
    fn every_status_reads_back_and_every_prefix_is_refused() {
        for status in [
            ShardStatus::Pending,
            ShardStatus::Resting { until: BootTime(1 << 40) },
            ShardStatus::InFlight,
            ShardStatus::Done,
        ] {
            let progress = ShardProgress {
                status,
                attempt: Attempt(3),
                failures: 2,
                done: Work { rows: 1_000_000, bytes: 5 },
                last_key: Some(vec![0, 255]),
                reason: Some("throttled".to_owned()),
            };
            check_codec(&progress, encode, decode);
        }
    }

    #[test]
    fn the_step_is_in_the_key() {
        let of_step = |step| key(OperationId(1), StepIdx(step), ShardIdx(2));
        assert_ne!(of_step(0), of_step(1));
        assert_eq!(shard_of(&of_step(0)), Some(ShardIdx(2)));
    }
}
