//! The reference for restores: the same bytes into LMDB, and nothing else.
//!
//! As many environments as the engine has shards, as many threads, the same rows per
//! transaction, every transaction durable before the next begins.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, PutFlags};
use tidemark::database::{LinkTally, Mark};
use tidemark::ids::TableId;
use tidemark::row::digest::RowHasher;
use tidemark::row::{ChangeOp, Digest, RowBatch};

use crate::data::THREADS;
use crate::report::{Clock, Spent};

/// One environment per shard.
pub(crate) struct RawStore {
    shards: Vec<RawShard>,
}

struct RawShard {
    env: Env,
    rows: Database<'static, Bytes, Bytes>,
    meta: Database<'static, Bytes, Bytes>,
}

impl RawStore {
    /// Empty environments in `folder`.
    pub(crate) fn create(folder: &Path, shard_count: usize) -> RawStore {
        let dirs = (0..shard_count).map(|shard| folder.join(shard.to_string()));
        RawStore { shards: dirs.map(RawShard::create).collect() }
    }

    /// Appends the chunks of each shard, a transaction each.
    pub(crate) fn append(&self, chunks: &[Vec<RowBatch>]) -> Spent {
        let begun = Clock::start();
        on_threads(&self.shards, |at, shard| {
            for chunk in &chunks[at] {
                let mut txn = shard.env.write_txn().unwrap();
                for row in chunk.iter() {
                    let flags = PutFlags::APPEND;
                    shard.rows.put_with_flags(&mut txn, flags, row.key, row.payload).unwrap();
                }
                txn.commit().unwrap();
            }
        });
        begun.spent()
    }

    /// Changes rows in place, chunk by chunk; all shards end before the next call begins.
    pub(crate) fn change(&self, chunks: &[Vec<RowBatch>]) -> Spent {
        let begun = Clock::start();
        on_threads(&self.shards, |at, shard| {
            for chunk in &chunks[at] {
                let mut txn = shard.env.write_txn().unwrap();
                for row in chunk.iter() {
                    match row.op {
                        ChangeOp::Delete => {
                            shard.rows.delete(&mut txn, row.key).unwrap();
                        }
                        ChangeOp::Upsert | ChangeOp::Update => {
                            shard.rows.put(&mut txn, row.key, row.payload).unwrap();
                        }
                    }
                }
                txn.commit().unwrap();
            }
        });
        begun.spent()
    }

    /// Keeps marks for `chunks` as a restore of `link_count` links does, without the rows;
    /// gives the time that accounting, encoding and storing them took, over all threads.
    ///
    /// What a transaction costs is not in it: the rows need that one anyway.
    pub(crate) fn marks(&self, chunks: &[Vec<RowBatch>], link_count: usize) -> Duration {
        let spent = Mutex::new(Duration::ZERO);
        on_threads(&self.shards, |at, shard| {
            let mut hasher = RowHasher::new(TableId(7));
            let mut mark = Mark {
                links: vec![LinkTally { rows: 1_000_000, bytes: 131_000_000 }; link_count],
                ..Mark::default()
            };
            for chunk in &chunks[at] {
                let digests: Vec<Digest> =
                    chunk.iter().map(|row| hasher.row(row.key, row.payload)).collect();
                let mut txn = shard.env.write_txn().unwrap();
                let begun = Instant::now();
                if let Some(stored) = shard.meta.get(&txn, b"mark").unwrap() {
                    mark.ranges = Mark::decode(stored).unwrap().ranges;
                }
                let mut appending = mark.appending();
                for (row, digest) in chunk.iter().zip(digests) {
                    appending.add(row.key, digest);
                }
                appending.finish();
                mark.last_key = chunk.last().map(|row| row.key.to_vec());
                let mut stored = Vec::new();
                mark.encode(&mut stored);
                shard.meta.put(&mut txn, b"mark", &stored).unwrap();
                *spent.lock().unwrap() += begun.elapsed();
                txn.commit().unwrap();
            }
        });
        spent.into_inner().unwrap()
    }
}

impl RawShard {
    fn create(dir: PathBuf) -> RawShard {
        std::fs::create_dir_all(&dir).unwrap();
        // SAFETY: the folder is new and this process alone uses it.
        let env = unsafe { EnvOpenOptions::new().map_size(64 << 30).max_dbs(2).open(dir) }.unwrap();
        let txn = env.write_txn().unwrap();
        let created = env.create_databases_and_commit(txn, |opener, txn| {
            let rows = opener.create_database::<Bytes, Bytes>(txn, Some("rows"))?;
            let meta = opener.create_database::<Bytes, Bytes>(txn, Some("meta"))?;
            heed::Result::Ok(CommitOrAbort::<_, ()>::Commit((rows, meta)))
        });
        let (rows, meta) = created.unwrap().commit().unwrap();
        RawShard { env, rows, meta }
    }
}

/// Works through `items` with the threads of a comparison, each item on one of them.
pub(crate) fn on_threads<T: Sync>(items: &[T], work: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    match items.get(at) {
                        Some(item) => work(at, item),
                        None => return,
                    }
                }
            });
        }
    });
}
