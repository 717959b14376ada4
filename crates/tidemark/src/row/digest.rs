//! The digest of a set of rows: what proofs compare.
//!
//! Each row hashes to 128 bits (XXH3-128, seed 0) over
//!
//! | bytes | |
//! |---|---|
//! | 16 | digest id of the table, little-endian |
//! | 4 | length of the key, `u32` little-endian |
//! | n | canonical key ([`key`](super::key)) |
//! | m | payload without its version byte ([`payload`](super::payload)) |
//!
//! and the hashes are added modulo 2^128. Order and sharding do not matter, sums
//! can be added and subtracted, and names play no part. It guards against loss
//! and mix-ups, not against an adversary: that is what BLAKE3 of the files is for.

use std::convert::Infallible;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::ids::TableId;
use crate::row::batch::RowRef;

/// Number of rows and the sum of their hashes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Rows in the set. Wraps in differences, which may be negative.
    pub rows: u64,
    /// Sum of the row hashes modulo 2^128.
    #[serde(with = "hex_u128")]
    pub sum: u128,
}

impl Digest {
    /// Bytes of [`to_bytes`](Self::to_bytes).
    pub const LEN: usize = 24;

    /// `rows` as `u64`, then `sum` as `u128`, both little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.rows.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Digest {
        let (rows, sum) = bytes.split_at(8);
        Digest {
            rows: u64::from_le_bytes(rows.try_into().expect("8 bytes")),
            sum: u128::from_le_bytes(sum.try_into().expect("16 bytes")),
        }
    }
}

impl Add for Digest {
    type Output = Digest;

    fn add(self, other: Digest) -> Digest {
        Digest { rows: self.rows.wrapping_add(other.rows), sum: self.sum.wrapping_add(other.sum) }
    }
}

impl Sub for Digest {
    type Output = Digest;

    fn sub(self, other: Digest) -> Digest {
        Digest { rows: self.rows.wrapping_sub(other.rows), sum: self.sum.wrapping_sub(other.sum) }
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Digest) {
        *self = *self + other;
    }
}

impl SubAssign for Digest {
    fn sub_assign(&mut self, other: Digest) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Digest {
    fn sum<I: Iterator<Item = Digest>>(digests: I) -> Digest {
        digests.fold(Digest::default(), Add::add)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x} ({} rows)", self.sum, self.rows)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Rows that are hashed together.
const BLOCK_ROWS: usize = 64;
/// Bytes after which a block ends; together with what else is at hand they stay in the cache.
const BLOCK_BYTES: usize = 8 << 10;

/// Hashes the rows of one table; keeps its buffer between rows.
#[derive(Clone, Debug)]
pub struct RowHasher {
    digest_id: [u8; 16],
    buffer: Vec<u8>,
}

impl RowHasher {
    /// A hasher for the table whose digest id is `digest_id`.
    pub fn new(digest_id: TableId) -> RowHasher {
        RowHasher { digest_id: digest_id.0.to_le_bytes(), buffer: Vec::new() }
    }

    /// The digest of one row.
    pub fn row(&mut self, key: &[u8], payload: &[u8]) -> Digest {
        self.buffer.clear();
        self.gather(key, payload);
        Digest { rows: 1, sum: xxh3_128(&self.buffer) }
    }

    /// Gives `found` the digest of each row, in order; its first error ends it.
    ///
    /// Faster than row by row: a processor waits when it loads what it stored a moment ago in
    /// pieces of other sizes, so some rows are laid out before the first of them is hashed.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn rows<'r, E>(
        &mut self,
        rows: impl IntoIterator<Item = RowRef<'r>>,
        mut found: impl FnMut(RowRef<'r>, Digest) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rows = rows.into_iter();
        let mut block: [Option<(RowRef<'r>, usize)>; BLOCK_ROWS] = [None; BLOCK_ROWS];
        loop {
            self.buffer.clear();
            let mut count = 0;
            while count < BLOCK_ROWS
                && self.buffer.len() < BLOCK_BYTES
                && let Some(row) = rows.next()
            {
                self.gather(row.key, row.payload);
                block[count] = Some((row, self.buffer.len()));
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            let mut start = 0;
            for (row, end) in block[..count].iter().flatten() {
                found(*row, Digest { rows: 1, sum: xxh3_128(&self.buffer[start..*end]) })?;
                start = *end;
            }
        }
    }

    /// The digest of all rows together.
    pub fn sum<'r>(&mut self, rows: impl IntoIterator<Item = RowRef<'r>>) -> Digest {
        let mut sum = Digest::default();
        let Ok(()) = self.rows(rows, |_, row| {
            sum += row;
            Ok::<(), Infallible>(())
        });
        sum
    }

    /// Appends what is hashed of a row to the buffer.
    fn gather(&mut self, key: &[u8], payload: &[u8]) {
        self.buffer.extend_from_slice(&self.digest_id);
        self.buffer.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(payload.get(1..).unwrap_or_default());
    }
}

mod hex_u128 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(sum: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{sum:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        let well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        well_formed
            .then(|| u128::from_str_radix(&text, 16).ok())
            .flatten()
            .ok_or_else(|| serde::de::Error::custom("expected 32 hexadecimal digits"))
    }
}
