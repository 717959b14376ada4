//! Rows: schemas, values, and the two byte forms that everything else moves.
//!
//! A row travels as a **key** and a **payload**. The key is the canonical,
//! order-preserving encoding of its key columns ([`key`]): `memcmp` of keys is
//! the order of every shard, part and fold. The payload holds the other
//! columns, tagged with id and type ([`payload`]), so that a column that was
//! added or dropped later changes no stored row. Both are the same for every
//! engine, which is why digests ([`digest`]) agree across engines.

pub mod batch;
pub mod digest;
pub mod key;
pub mod payload;
pub mod schema;
pub mod value;

pub use batch::{ChangeOp, RowBatch, RowRef, RowStream};
pub use digest::Digest;
pub use key::KeyRange;
pub use payload::RowCodec;
pub use schema::{Column, LogicalType, Schema};
pub use value::{Row, Value};
