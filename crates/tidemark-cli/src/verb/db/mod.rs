//! Tables of an embedded database.

pub(crate) mod collections;
pub(crate) mod drop;
pub(crate) mod dump;
pub(crate) mod load;
pub(crate) mod tables;
