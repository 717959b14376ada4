//! A simulator of Tidemark: one seed is one run, byte for byte.
//!
//! The code under test is the real one: the pure operation, the executor's order file, the
//! restore's plan, job, fold, parts and proof. Simulated is what lies outside it: a
//! [`database`], a [`catalog`], an object [`store`], the clocks and the dice of the
//! [`world`], and the threads: every chunk of every shard is one step of a schedule that the
//! seed decides ([`run`]). So crashes, lost answers, leases that run out and holders that
//! wake up too late happen in every order, and each order can be had again.
//!
//! After every step [`check`] compares what is durable with an oracle that is a plain map
//! ([`chain`]). [`bug`]s are planted to see whether it would notice.
//!
//! ```text
//! tidemark-sim run restore_fold --seed 42
//! ```

pub mod bug;
pub mod catalog;
pub mod chain;
pub mod chance;
pub mod check;
pub mod crowd;
pub mod database;
mod process;
pub mod run;
pub mod scenario;
pub mod soak;
pub mod store;
pub mod target;
pub mod world;
