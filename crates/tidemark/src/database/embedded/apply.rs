//! Changing rows inside a shard's write transaction, with digest and change log.

use heed::{PutFlags, RwTxn};

use super::record::ShardMeta;
use super::shard::Shard;
use crate::database::Mark;
use crate::error::{Error, Kind, Result};
use crate::ids::Position;
use crate::lmdb::{KEY_BYTES_MAX, LmdbContext};
use crate::row::digest::RowHasher;
use crate::row::key::compare_keys;
use crate::row::payload::overlay;
use crate::row::value::hex;
use crate::row::{ChangeOp, Digest, RowBatch, RowRef};

impl Shard {
    /// Applies `rows`, which ascend strictly, and keeps digest, byte count and change log in step.
    ///
    /// Upserts write, deletes remove (a missing row is no error), updates overlay the stored
    /// row. With `capture`, every key whose row changed is noted as seen first by that cut; with
    /// `mark`, its ranges account for every row. Nothing is durable before the transaction
    /// commits.
    ///
    /// # Errors
    /// [`Kind::Broken`] for an update without a stored row, or keys that do not ascend, naming
    /// the key; [`Kind::Usage`] for a key that LMDB cannot store. The transaction must be dropped.
    pub(crate) fn apply(
        &self,
        txn: &mut RwTxn<'_>,
        rows: &RowBatch,
        hasher: &mut RowHasher,
        capture: Option<Position>,
        mark: Option<&mut Mark>,
    ) -> Result<()> {
        let Some(first) = (!rows.is_empty()).then(|| rows.row(0)) else { return Ok(()) };
        let last_stored = self.rows().last(txn).during(|| self.doing("read"))?;
        // Rows behind the last one need no look below and no search for their page.
        let appends = last_stored.is_none_or(|(last, _)| last < first.key);
        let mut meta = self.meta(txn)?;
        if appends {
            self.append_rows(txn, rows, hasher, capture, mark, &mut meta)?;
        } else {
            self.change_rows(txn, rows, hasher, capture, mark, &mut meta)?;
        }
        self.put_meta(txn, &meta)
    }

    fn append_rows(
        &self,
        txn: &mut RwTxn<'_>,
        rows: &RowBatch,
        hasher: &mut RowHasher,
        capture: Option<Position>,
        mark: Option<&mut Mark>,
        meta: &mut ShardMeta,
    ) -> Result<()> {
        let mut appending = mark.map(Mark::appending);
        let mut before: Option<&[u8]> = None;
        hasher.rows(rows.iter(), |row, digest| {
            check_key(row.key, before)?;
            before = Some(row.key);
            match row.op {
                ChangeOp::Upsert => {}
                ChangeOp::Delete => return Ok(()),
                ChangeOp::Update => return Err(no_row_below(row.key)),
            }
            self.rows()
                .put_with_flags(txn, PutFlags::APPEND, row.key, row.payload)
                .during(|| self.doing_row("append", row.key))?;
            meta.digest += digest;
            meta.row_bytes += row.byte_count();
            if let Some(cut) = capture {
                self.note_change(txn, row.key, cut)?;
            }
            if let Some(appending) = &mut appending {
                appending.add(row.key, digest);
            }
            Ok(())
        })?;
        if let Some(appending) = appending {
            appending.finish();
        }
        Ok(())
    }

    fn change_rows(
        &self,
        txn: &mut RwTxn<'_>,
        rows: &RowBatch,
        hasher: &mut RowHasher,
        capture: Option<Position>,
        mut mark: Option<&mut Mark>,
        meta: &mut ShardMeta,
    ) -> Result<()> {
        let mut merged = Vec::new();
        let mut before: Option<&[u8]> = None;
        for row in rows.iter() {
            check_key(row.key, before)?;
            before = Some(row.key);
            let (old, new) = self.change_row(txn, row, hasher, meta, &mut merged)?;
            if old != new
                && let Some(cut) = capture
            {
                self.note_change(txn, row.key, cut)?;
            }
            if let Some(mark) = &mut mark {
                mark.account(row.key, old, new);
            }
        }
        Ok(())
    }

    /// The digests of the row before and after.
    fn change_row(
        &self,
        txn: &mut RwTxn<'_>,
        row: RowRef<'_>,
        hasher: &mut RowHasher,
        meta: &mut ShardMeta,
        merged: &mut Vec<u8>,
    ) -> Result<(Option<Digest>, Option<Digest>)> {
        let stored = self.rows().get(txn, row.key).during(|| self.doing_row("read", row.key))?;
        if let (ChangeOp::Update, Some(stored)) = (row.op, stored) {
            merged.clear();
            overlay(row.payload, stored, merged)?;
        }
        let old = stored.map(|stored| hasher.row(row.key, stored));
        let old_bytes = stored.map_or(0, |stored| (row.key.len() + stored.len()) as u64);
        let payload = match (row.op, stored) {
            (ChangeOp::Delete, _) => None,
            (ChangeOp::Upsert, _) => Some(row.payload),
            (ChangeOp::Update, Some(_)) => Some(merged.as_slice()),
            (ChangeOp::Update, None) => return Err(no_row_below(row.key)),
        };
        let new = payload.map(|payload| hasher.row(row.key, payload));
        // Equal hashes are equal rows: a write that changes nothing dirties no page.
        if old == new {
            return Ok((old, new));
        }
        match payload {
            Some(payload) => self
                .rows()
                .put(txn, row.key, payload)
                .during(|| self.doing_row("write", row.key))?,
            None => {
                self.rows().delete(txn, row.key).during(|| self.doing_row("delete", row.key))?;
            }
        }
        let new_bytes = payload.map_or(0, |payload| (row.key.len() + payload.len()) as u64);
        meta.digest += new.unwrap_or_default() - old.unwrap_or_default();
        meta.row_bytes = (meta.row_bytes + new_bytes).saturating_sub(old_bytes);
        Ok((old, new))
    }

    /// Notes that the key's last change is first seen by `cut`.
    fn note_change(&self, txn: &mut RwTxn<'_>, key: &[u8], cut: Position) -> Result<()> {
        let stamp = cut.0.to_le_bytes();
        let noted = self.changes().get(txn, key).during(|| self.doing_row("read", key))?;
        if noted != Some(&stamp[..]) {
            self.changes().put(txn, key, &stamp).during(|| self.doing_row("note", key))?;
        }
        Ok(())
    }

    fn doing_row(&self, verb: &str, key: &[u8]) -> String {
        format!("{verb} key {} in shard generation {}", key_for_people(key), self.generation())
    }
}

/// A key in a message: its beginning in hexadecimal, and its length.
pub(crate) fn key_for_people(key: &[u8]) -> String {
    const SHOWN: usize = 32;
    if key.len() <= SHOWN {
        return format!("0x{}", hex(key));
    }
    format!("0x{}... ({} bytes)", hex(&key[..SHOWN]), key.len())
}

/// Refuses a key that LMDB cannot store.
///
/// # Errors
/// [`Kind::Usage`], with the key's beginning and length.
pub(crate) fn check_key_length(key: &[u8]) -> Result<()> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let message = format!(
        "key {} is {} bytes long in its stored form; an embedded database stores keys of 1 to \
         {KEY_BYTES_MAX} bytes",
        key_for_people(key),
        key.len()
    );
    Err(Error::new(Kind::Usage, message))
}

fn check_key(key: &[u8], before: Option<&[u8]>) -> Result<()> {
    check_key_length(key)?;
    match before {
        Some(before) if compare_keys(before, key).is_ge() => {
            let message = format!(
                "key {} follows key {}; keys must ascend",
                key_for_people(key),
                key_for_people(before)
            );
            Err(Error::new(Kind::Broken, message))
        }
        _ => Ok(()),
    }
}

fn no_row_below(key: &[u8]) -> Error {
    let message = format!(
        "a partial update of key {} finds no row to update; the chain misses an older change",
        key_for_people(key)
    );
    Error::new(Kind::Broken, message)
}
