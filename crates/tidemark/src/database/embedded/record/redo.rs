//! A batch that changes several shards, recorded before the first of them changes.
//!
//! Layout, version 1; integers little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 1 | version |
//! | 4 | number of shards, `u32`; then per shard: |
//! | 8 | generation, `u64` |
//! | 16 | digest id of its table |
//! | 4 | number of rows, `u32`; then per row, in ascending key order: |
//! | 1 | 0 upsert, 2 delete |
//! | 4, n | key |
//! | 4, n | payload |

use super::GenerationNumber;
use crate::error::{Error, Kind, Result};
use crate::ids::TableId;
use crate::row::{ChangeOp, RowBatch, RowRef};

const VERSION: u8 = 1;

/// What is left to be applied until the record is gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RedoRecord {
    /// Shards in the order they are applied.
    pub(crate) shards: Vec<RedoShard>,
}

/// The rows of one shard.
#[derive(Clone, Debug)]
pub(crate) struct RedoShard {
    /// Generation that holds the shard.
    pub(crate) generation: GenerationNumber,
    /// Digest id of its table.
    pub(crate) digest_id: TableId,
    /// Upserts and deletes, ascending.
    pub(crate) rows: RowBatch,
}

impl RedoRecord {
    /// The stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&(self.shards.len() as u32).to_le_bytes());
        for shard in &self.shards {
            out.extend_from_slice(&shard.generation.0.to_le_bytes());
            out.extend_from_slice(&shard.digest_id.0.to_le_bytes());
            out.extend_from_slice(&(shard.rows.len() as u32).to_le_bytes());
            for row in shard.rows.iter() {
                out.push(row.op as u8);
                for bytes in [row.key, row.payload] {
                    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
        out
    }

    /// Reads a stored form.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another version, [`Kind::Broken`] for malformed bytes.
    pub(crate) fn decode(stored: &[u8]) -> Result<RedoRecord> {
        let broken = || Error::new(Kind::Broken, "a stored redo record is malformed");
        let (&version, mut rest) = stored.split_first().ok_or_else(broken)?;
        if version != VERSION {
            let message =
                format!("a redo record has version {version}, this program reads {VERSION}");
            return Err(Error::new(Kind::Unsupported, message));
        }
        let record = take_record(&mut rest).filter(|_| rest.is_empty());
        record.ok_or_else(broken)
    }
}

fn take_record(rest: &mut &[u8]) -> Option<RedoRecord> {
    let mut record = RedoRecord::default();
    for _ in 0..take_u32(rest)? {
        let generation = GenerationNumber(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?));
        let digest_id = TableId(u128::from_le_bytes(take(rest, 16)?.try_into().ok()?));
        let mut rows = RowBatch::new();
        for _ in 0..take_u32(rest)? {
            let op = match take(rest, 1)? {
                [0] => ChangeOp::Upsert,
                [2] => ChangeOp::Delete,
                _ => return None,
            };
            let key_len = take_u32(rest)?;
            let key = take(rest, key_len)?;
            let payload_len = take_u32(rest)?;
            let payload = take(rest, payload_len)?;
            rows.push(RowRef { key, op, payload });
        }
        record.shards.push(RedoShard { generation, digest_id, rows });
    }
    Some(record)
}

fn take<'a>(rest: &mut &'a [u8], len: u32) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len as usize)?;
    *rest = after;
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RedoRecord {
        let mut rows = RowBatch::new();
        rows.push(RowRef { key: b"a", op: ChangeOp::Upsert, payload: b"\x01payload" });
        rows.push(RowRef { key: b"b", op: ChangeOp::Delete, payload: b"" });
        let shard = RedoShard { generation: GenerationNumber(3), digest_id: TableId(5), rows };
        let empty = RedoShard { rows: RowBatch::new(), ..shard.clone() };
        RedoRecord { shards: vec![shard, empty] }
    }

    #[test]
    fn a_redo_record_reads_back() {
        let stored = record().encode();
        let read = RedoRecord::decode(&stored).unwrap();
        assert_eq!(read.encode(), stored);
        assert!(read.shards[0].rows.iter().eq(record().shards[0].rows.iter()));
    }

    #[test]
    fn every_truncated_or_longer_redo_record_is_refused() {
        let mut stored = record().encode();
        for len in 0..stored.len() {
            assert_eq!(RedoRecord::decode(&stored[..len]).unwrap_err().kind(), Kind::Broken);
        }
        stored.push(0);
        assert_eq!(RedoRecord::decode(&stored).unwrap_err().kind(), Kind::Broken);
        stored[0] = 2;
        assert_eq!(RedoRecord::decode(&stored).unwrap_err().kind(), Kind::Unsupported);
    }
}
