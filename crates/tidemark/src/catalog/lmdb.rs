//! The catalog in an LMDB environment.
//!
//! LMDB is multi-process: a second terminal lists, watches and steers what a first
//! one drives. Who drives holds an OS lock on `operation-<id>-<epoch>.lock`, which
//! its death releases, and a lease on the machine's boot clock, which its silence
//! lets run out.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heed::RoTxn;

use super::record::holder::HolderRecord;
use super::record::operation::OperationRecord;
use super::record::{shard_progress, steering};
use super::{Catalog, Commit, Hold, Holding, StoredState};
use crate::database::embedded::EmbeddedDatabase;
use crate::database::embedded::catalog::Catalog as Records;
use crate::env::{BootTime, Env};
use crate::error::{Error, Kind, Result};
use crate::ids::{Epoch, OperationId, ShardIdx, StepIdx, Txn};
use crate::lmdb::{
    Environment, EnvironmentOptions, FileLock, LmdbContext, LockMode, NamedDatabase, WriteTxn,
};
use crate::operation::{Removed, Request, ShardProgress, State};

/// Time after its last renewal at which a silent holder may be taken over.
///
/// Renewals come every two seconds, so seven are missed first.
const LEASE: Duration = Duration::from_secs(15);

/// Time after which a renewal also clears the slots of readers that died: a killed `operation
/// watch` would keep every page that it could see, while a long restore commits each second.
const CLEAR_READERS: Duration = Duration::from_secs(60);

/// How long a command waits for another process that is writing.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// How long a driver waits beyond that: a command that is frozen while it writes must not end
/// the work of hours. Nobody can take the operation meanwhile, since nobody can write.
const HOLDER_WAIT: Duration = Duration::from_secs(600);

/// Named databases of the catalog, besides those of the database it lives in.
const DATABASE_NAMES: [&str; 9] = [
    "operation",
    "operation_plan",
    "restore_state",
    "shard_progress",
    "holder",
    "steering",
    "operation_identity",
    "operation_txn",
    "operation_counter",
];

/// How the environment of a catalog without a database is opened.
const DIRECTORY_OPTIONS: EnvironmentOptions =
    EnvironmentOptions { map_bytes: 16 << 30, databases_max: 16, readers_max: 1024 };

const NEXT_OPERATION: &[u8] = b"next operation";
const NEXT_EPOCH: &[u8] = b"next epoch";
const NEXT_STEERING: &[u8] = b"next steering";

/// Operations in an LMDB environment.
#[derive(Clone, Debug)]
pub struct LmdbCatalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Arc<Environment>,
    locks: PathBuf,
    env: Arc<dyn Env>,
    operation: NamedDatabase,
    plan: NamedDatabase,
    state: NamedDatabase,
    shards: NamedDatabase,
    holder: NamedDatabase,
    steering: NamedDatabase,
    identity: NamedDatabase,
    txn: NamedDatabase,
    counter: NamedDatabase,
    numbers: Numbers,
}

/// Where numbers are drawn that nothing else on a database may have.
#[derive(Debug)]
enum Numbers {
    /// Here: the catalog belongs to no database.
    Own,
    /// Here as well, but for fencing numbers: they come from the database around the catalog.
    Around(Records),
    /// From the catalog of the database that these operations are on.
    Of(LmdbCatalog),
}

impl LmdbCatalog {
    /// A catalog of its own in the directory `dir`, made when it is missing.
    ///
    /// # Errors
    /// [`Kind::Blocked`] when `dir` cannot be written.
    pub fn open_or_create(dir: &Path, env: Arc<dyn Env>) -> Result<LmdbCatalog> {
        let environment = Environment::create(dir, DIRECTORY_OPTIONS, &*env)?;
        LmdbCatalog::inside(environment, &dir.join("locks"), env, Numbers::Own)
    }

    /// The same, for operations on `database`.
    ///
    /// A target knows operations by their numbers, so these are drawn from the database as
    /// well: no two operations on it have one number, wherever they are recorded.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub fn of_directory_for(
        dir: &Path,
        database: &EmbeddedDatabase,
        env: Arc<dyn Env>,
    ) -> Result<LmdbCatalog> {
        let numbers = LmdbCatalog::of_database(database, Arc::clone(&env))?;
        let environment = Environment::create(dir, DIRECTORY_OPTIONS, &*env)?;
        LmdbCatalog::inside(environment, &dir.join("locks"), env, Numbers::Of(numbers))
    }

    /// The operations of an embedded database, beside its own records: restores into it and
    /// backups of it.
    pub fn of_database(database: &EmbeddedDatabase, env: Arc<dyn Env>) -> Result<LmdbCatalog> {
        let environment = Arc::clone(database.catalog_environment());
        let numbers = Numbers::Around(database.catalog().clone());
        LmdbCatalog::inside(environment, &database.locks_dir(), env, numbers)
    }

    /// A catalog inside the environment of a database; `locks` is a directory for lock files.
    fn inside(
        environment: Arc<Environment>,
        locks: &Path,
        env: Arc<dyn Env>,
        numbers: Numbers,
    ) -> Result<LmdbCatalog> {
        std::fs::create_dir_all(locks)
            .map_err(|cause| Error::io(format!("create `{}`", locks.display()), cause))?;
        let [operation, plan, state, shards, holder, steering, identity, txn, counter] =
            environment.create_databases(DATABASE_NAMES, &*env, WRITE_WAIT)?;
        let locks = locks.to_owned();
        Ok(LmdbCatalog(Arc::new(Inner {
            environment,
            locks,
            env,
            operation,
            plan,
            state,
            shards,
            holder,
            steering,
            identity,
            txn,
            counter,
            numbers,
        })))
    }

    /// Draws a number for an operation that is recorded elsewhere, at least `least`.
    fn draw_number(&self, least: u64) -> Result<u64> {
        let inner = &self.0;
        let mut txn = inner.write()?;
        let number = inner.next_number(&txn)?.max(least);
        inner.put_next_number(&mut txn, number + 1)?;
        txn.commit()?;
        Ok(number)
    }
}

impl Inner {
    fn write(&self) -> Result<WriteTxn<'_>> {
        self.environment.write(&*self.env, WRITE_WAIT)
    }

    /// A transaction of whoever drives an operation.
    fn write_as_holder(&self) -> Result<WriteTxn<'_>> {
        match self.write() {
            Err(error) if error.kind() == Kind::Held => {
                tracing::warn!(%error, "the operation waits to be recorded");
                self.environment.write(&*self.env, HOLDER_WAIT)
            }
            opened => opened,
        }
    }

    fn get<'t>(
        &self,
        from: NamedDatabase,
        txn: &'t RoTxn<'_>,
        key: &[u8],
    ) -> Result<Option<&'t [u8]>> {
        from.get(txn, key).during(|| "read the catalog".to_owned())
    }

    fn put(
        &self,
        to: NamedDatabase,
        txn: &mut WriteTxn<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        to.put(txn, key, value).during(|| "write the catalog".to_owned())
    }

    fn delete(&self, from: NamedDatabase, txn: &mut WriteTxn<'_>, key: &[u8]) -> Result<()> {
        from.delete(txn, key).during(|| "write the catalog".to_owned())?;
        Ok(())
    }

    /// Removes every record whose key begins with `prefix`.
    fn delete_prefix(
        &self,
        from: NamedDatabase,
        txn: &mut WriteTxn<'_>,
        prefix: &[u8],
    ) -> Result<()> {
        let doing = || "write the catalog".to_owned();
        let mut records = from.prefix_iter_mut(txn, prefix).during(doing)?;
        while let Some(record) = records.next() {
            record.during(doing)?;
            // SAFETY: the key and value of the record are not used after this.
            unsafe { records.del_current() }.during(doing)?;
        }
        Ok(())
    }

    fn require<'t>(
        &self,
        from: NamedDatabase,
        txn: &'t RoTxn<'_>,
        id: OperationId,
    ) -> Result<&'t [u8]> {
        self.get(from, txn, &key(id))?.ok_or_else(|| unknown(id))
    }

    fn next(&self, txn: &mut WriteTxn<'_>, counter: &[u8]) -> Result<u64> {
        let next = match self.get(self.counter, txn, counter)? {
            Some(bytes) => number(bytes)?,
            None => 1,
        };
        self.put(self.counter, txn, counter, &(next + 1).to_be_bytes())?;
        Ok(next)
    }

    /// The number that the next operation would get here.
    fn next_number(&self, txn: &RoTxn<'_>) -> Result<u64> {
        self.get(self.counter, txn, NEXT_OPERATION)?.map_or(Ok(1), number)
    }

    fn put_next_number(&self, txn: &mut WriteTxn<'_>, next: u64) -> Result<()> {
        self.put(self.counter, txn, NEXT_OPERATION, &next.to_be_bytes())
    }

    fn holder(&self, txn: &RoTxn<'_>, id: OperationId) -> Result<Option<HolderRecord>> {
        self.get(self.holder, txn, &key(id))?.map(HolderRecord::decode).transpose()
    }

    fn taking_path(&self, id: OperationId) -> PathBuf {
        self.locks.join(format!("operation-{id}-taking.lock"))
    }

    fn lock_path(&self, id: OperationId, epoch: Epoch) -> PathBuf {
        self.locks.join(format!("operation-{id}-{epoch}.lock"))
    }

    /// Whether the process behind a holder record can still act.
    fn holding(&self, id: OperationId, record: Option<HolderRecord>) -> Result<Holding> {
        let Some(record) = record else { return Ok(Holding::Free) };
        // Its death let go of the lock; a lock file that is gone was let go of in order.
        let is_dead = !FileLock::is_held(&self.lock_path(id, record.epoch))?;
        if is_dead || record.boot_id != self.env.boot_id() {
            return Ok(Holding::Dead { pid: record.pid });
        }
        let rest = record.lease_until.since(self.env.boot_time());
        Ok(Holding::Alive {
            pid: record.pid,
            lease_seconds: rest.as_millis().div_ceil(1000) as u64,
        })
    }

    /// Removes the lock files of holders of an operation that are gone, but for that of `but`;
    /// says whether one is still held by a process that was taken over while it was silent.
    fn sweep_locks(&self, id: OperationId, but: Option<Epoch>) -> Result<bool> {
        let what = || format!("list `{}`", self.locks.display());
        let mut has_silent = false;
        for entry in std::fs::read_dir(&self.locks).map_err(|cause| Error::io(what(), cause))? {
            let name = entry.map_err(|cause| Error::io(what(), cause))?.file_name();
            let Some(epoch) = name.to_str().and_then(|name| lock_epoch(name, id)) else { continue };
            if Some(epoch) == but {
                continue;
            }
            let path = self.lock_path(id, epoch);
            match FileLock::try_acquire(&path, LockMode::Exclusive)? {
                // Its owner is dead; the name is not used again.
                Some(_) => drop(std::fs::remove_file(&path)),
                None => has_silent = true,
            }
        }
        Ok(has_silent)
    }

    /// A holder record that runs from now.
    fn lease(&self, epoch: Epoch) -> HolderRecord {
        HolderRecord {
            epoch,
            pid: std::process::id(),
            boot_id: self.env.boot_id(),
            lease_until: self.env.boot_time().after(LEASE),
        }
    }
}

impl Catalog for LmdbCatalog {
    fn create(&self, new: &OperationRecord, plan: &[u8], state: &State) -> Result<OperationId> {
        let inner = &self.0;
        // Drawn before our transaction, which must not wait for another database's lock.
        let drawn = match &inner.numbers {
            Numbers::Own | Numbers::Around(_) => 0,
            Numbers::Of(numbers) => {
                numbers.draw_number(inner.next_number(&*inner.environment.read()?)?)?
            }
        };
        let mut txn = inner.write()?;
        if let Some(bytes) =
            inner.get(inner.identity, &txn, identity_key(&new.identity).as_slice())?
        {
            let message = format!(
                "{} is already under way as operation {}; run the same command to carry on with it",
                new.title,
                number(bytes)?
            );
            return Err(Error::new(Kind::Held, message));
        }
        let next = inner.next_number(&txn)?;
        if matches!(inner.numbers, Numbers::Of(_)) && drawn < next {
            // Another operation took it here since we looked; the drawn one is never used.
            drop(txn);
            return self.create(new, plan, state);
        }
        let id = OperationId(next.max(drawn));
        inner.put_next_number(&mut txn, id.0 + 1)?;
        inner.put(inner.operation, &mut txn, &key(id), &new.encode())?;
        inner.put(inner.plan, &mut txn, &key(id), plan)?;
        let stored = StoredState {
            state: state.clone(),
            version: 1,
            created_at: new.created_at,
            changed_at: new.created_at,
            ended_at: None,
            outcome: None,
        };
        inner.put(inner.state, &mut txn, &key(id), &stored.encode())?;
        let identity = identity_key(&new.identity);
        inner.put(inner.identity, &mut txn, &identity, &id.0.to_be_bytes())?;
        txn.commit()?;
        Ok(id)
    }

    fn unfinished(&self, identity: &str) -> Result<Option<OperationId>> {
        let txn = self.0.environment.read()?;
        let found = self.0.get(self.0.identity, &txn, &identity_key(identity))?;
        found.map(|bytes| number(bytes).map(OperationId)).transpose()
    }

    fn by_txn(&self, number_wanted: Txn) -> Result<Option<OperationId>> {
        let txn = self.0.environment.read()?;
        let found = self.0.get(self.0.txn, &txn, &number_wanted.0.to_be_bytes())?;
        found.map(|bytes| number(bytes).map(OperationId)).transpose()
    }

    fn list(&self) -> Result<Vec<OperationId>> {
        let txn = self.0.environment.read()?;
        let doing = || "list operations".to_owned();
        let mut ids = Vec::new();
        for record in self.0.operation.iter(&txn).during(doing)? {
            let (key, _) = record.during(doing)?;
            ids.push(OperationId(number(key)?));
        }
        Ok(ids)
    }

    fn operation(&self, id: OperationId) -> Result<OperationRecord> {
        let txn = self.0.environment.read()?;
        OperationRecord::decode(self.0.require(self.0.operation, &txn, id)?)
    }

    fn plan(&self, id: OperationId) -> Result<Vec<u8>> {
        let txn = self.0.environment.read()?;
        Ok(self.0.require(self.0.plan, &txn, id)?.to_vec())
    }

    fn state(&self, id: OperationId) -> Result<StoredState> {
        let txn = self.0.environment.read()?;
        StoredState::decode(self.0.require(self.0.state, &txn, id)?)
    }

    fn shards(&self, id: OperationId, step: StepIdx) -> Result<Vec<(ShardIdx, ShardProgress)>> {
        let inner = &self.0;
        let txn = inner.environment.read()?;
        inner.require(inner.operation, &txn, id)?;
        let doing = || format!("read the shards of operation {id}");
        let prefix = shard_progress::step_prefix(id, step);
        let mut shards = Vec::new();
        for record in inner.shards.prefix_iter(&txn, &prefix).during(doing)? {
            let (key, value) = record.during(doing)?;
            let shard = shard_progress::shard_of(key).ok_or_else(broken_key)?;
            shards.push((shard, shard_progress::decode(value)?));
        }
        Ok(shards)
    }

    fn holder(&self, id: OperationId) -> Result<Holding> {
        let txn = self.0.environment.read()?;
        self.0.require(self.0.operation, &txn, id)?;
        let record = self.0.holder(&txn, id)?;
        drop(txn);
        self.0.holding(id, record)
    }

    fn taking(&self, id: OperationId) -> Result<Box<dyn Debug>> {
        let path = self.0.taking_path(id);
        let wait = Duration::ZERO;
        let lock = FileLock::acquire(&path, LockMode::Exclusive, &*self.0.env, wait);
        let lock = lock.map_err(|error| {
            error.context(format!("operation {id} is being taken over by another process"))
        })?;
        Ok(Box::new(lock))
    }

    fn hold(&self, id: OperationId, epoch: Epoch) -> Result<Box<dyn Hold>> {
        let inner = &self.0;
        let before = {
            let txn = inner.environment.read()?;
            inner.require(inner.operation, &txn, id)?;
            inner.holder(&txn, id)?
        };
        if let Holding::Alive { pid, lease_seconds } = inner.holding(id, before)?
            && lease_seconds > 0
        {
            return Err(held(id, pid, lease_seconds));
        }
        // Our own lock first: whoever reads the record below must find it locked.
        let path = inner.lock_path(id, epoch);
        let lock = FileLock::try_acquire(&path, LockMode::Exclusive)?;
        let lock = lock.ok_or_else(|| held(id, 0, LEASE.as_secs()))?;
        let mut txn = inner.write()?;
        let stored = StoredState::decode(inner.require(inner.state, &txn, id)?)?;
        let version = stored.version;
        if inner.holder(&txn, id)? != before {
            drop(txn);
            // Another took it, or it was renewed, between the look and the lock.
            let _ = std::fs::remove_file(&path);
            return Err(held(id, 0, LEASE.as_secs()));
        }
        // An ended operation is held by nobody, also if whoever looks at it dies meanwhile.
        if !stored.state.phase.is_terminal() {
            inner.put(inner.holder, &mut txn, &key(id), &inner.lease(epoch).encode())?;
        }
        txn.commit()?;
        // The silent that were taken over keep theirs: it tells that they may wake.
        inner.sweep_locks(id, Some(epoch))?;
        Ok(Box::new(LmdbHold {
            inner: Arc::clone(inner),
            id,
            epoch,
            version,
            lock: Some(lock),
            readers_cleared_at: inner.env.boot_time(),
        }))
    }

    fn has_silent_holder(&self, id: OperationId) -> Result<bool> {
        let now = self.0.holder(&*self.0.environment.read()?, id)?;
        self.0.sweep_locks(id, now.map(|record| record.epoch))
    }

    fn steer(&self, id: OperationId, request: &Request) -> Result<()> {
        let inner = &self.0;
        let mut txn = inner.write()?;
        inner.require(inner.operation, &txn, id)?;
        let number = inner.next(&mut txn, NEXT_STEERING)?;
        let key = steering::key(id, number);
        inner.put(inner.steering, &mut txn, &key, &steering::encode(request))?;
        txn.commit()
    }

    fn forget(&self, id: OperationId) -> Result<()> {
        let inner = &self.0;
        if let Holding::Alive { pid, .. } = self.holder(id)? {
            let message = format!(
                "operation {id} is being driven by process {pid}; wait for its end, or cancel it"
            );
            return Err(Error::new(Kind::Held, message));
        }
        let mut txn = inner.write()?;
        let stored = StoredState::decode(inner.require(inner.state, &txn, id)?)?;
        if !stored.state.phase.is_terminal() {
            let message = format!(
                "operation {id} is {}, not ended; run `tidemark operation cancel {id}` first",
                stored.state.phase.name()
            );
            return Err(Error::new(Kind::Usage, message));
        }
        if let Some(number) = stored.state.phase.txn() {
            inner.delete(inner.txn, &mut txn, &number.0.to_be_bytes())?;
        }
        for records in [inner.operation, inner.plan, inner.state, inner.holder] {
            inner.delete(records, &mut txn, &key(id))?;
        }
        for records in [inner.shards, inner.steering] {
            inner.delete_prefix(records, &mut txn, &key(id))?;
        }
        txn.commit()?;
        // Litter costs a few bytes and harms nobody.
        let _ = inner.sweep_locks(id, None);
        let _ = std::fs::remove_file(inner.taking_path(id));
        Ok(())
    }

    fn allocate_epoch(&self) -> Result<Epoch> {
        if let Numbers::Of(numbers) = &self.0.numbers {
            return numbers.allocate_epoch();
        }
        let mut txn = self.0.write()?;
        let epoch = match &self.0.numbers {
            Numbers::Around(records) => Epoch(records.allocate_txn(&mut txn)?.0),
            Numbers::Own | Numbers::Of(_) => Epoch(self.0.next(&mut txn, NEXT_EPOCH)?),
        };
        txn.commit()?;
        Ok(epoch)
    }
}

/// A hold in an LMDB catalog.
#[derive(Debug)]
struct LmdbHold {
    inner: Arc<Inner>,
    id: OperationId,
    epoch: Epoch,
    version: u64,
    lock: Option<FileLock>,
    readers_cleared_at: BootTime,
}

impl LmdbHold {
    fn check_current(&self, txn: &WriteTxn<'_>) -> Result<()> {
        match self.inner.holder(txn, self.id)? {
            Some(record) if record.epoch == self.epoch => Ok(()),
            found => {
                let by = found.map_or("ended by another process".to_owned(), |record| {
                    format!("taken over by process {}", record.pid)
                });
                let message = format!("operation {} was {by}; this process stops", self.id);
                Err(Error::new(Kind::Fenced, message))
            }
        }
    }

    fn write_shards(&self, txn: &mut WriteTxn<'_>, commit: &Commit<'_>) -> Result<()> {
        let inner = &self.inner;
        match commit.changes.removed {
            Removed::Nothing => {}
            Removed::Step(step) => {
                let prefix = shard_progress::step_prefix(self.id, step);
                inner.delete_prefix(inner.shards, txn, &prefix)?;
            }
            Removed::All => inner.delete_prefix(inner.shards, txn, &key(self.id))?,
        }
        for (step, shard, progress) in &commit.changes.shards {
            let key = shard_progress::key(self.id, *step, *shard);
            inner.put(inner.shards, txn, &key, &shard_progress::encode(progress))?;
        }
        Ok(())
    }

    /// An ended operation is held by nobody, and its identity is free again.
    fn release_ended(&self, txn: &mut WriteTxn<'_>) -> Result<()> {
        let inner = &self.inner;
        let record = OperationRecord::decode(inner.require(inner.operation, txn, self.id)?)?;
        inner.delete(inner.identity, txn, &identity_key(&record.identity))?;
        inner.delete(inner.holder, txn, &key(self.id))?;
        inner.delete_prefix(inner.steering, txn, &key(self.id))
    }
}

impl Hold for LmdbHold {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<()> {
        let inner = &self.inner;
        let mut txn = inner.write_as_holder()?;
        self.check_current(&txn)?;
        let mut stored = StoredState::decode(inner.require(inner.state, &txn, self.id)?)?;
        if stored.version != self.version {
            let message = format!(
                "operation {} changed from version {} to {} behind its holder's back",
                self.id, self.version, stored.version
            );
            return Err(Error::new(Kind::Fenced, message));
        }
        self.write_shards(&mut txn, commit)?;
        let is_new_txn = stored.state.phase.txn() != commit.state.phase.txn();
        if let (true, Some(number)) = (is_new_txn, commit.state.phase.txn()) {
            let key = number.0.to_be_bytes();
            inner.put(inner.txn, &mut txn, &key, &self.id.0.to_be_bytes())?;
        }
        stored.state = commit.state.clone();
        stored.version += 1;
        stored.changed_at = inner.env.wall_time();
        if let Some(outcome) = commit.outcome {
            stored.outcome = Some(outcome.to_owned());
        }
        if let Some(seen) = commit.seen {
            for number in numbers(inner, &txn, self.id)? {
                if number <= seen {
                    inner.delete(inner.steering, &mut txn, &steering::key(self.id, number))?;
                }
            }
        }
        if commit.state.phase.is_terminal() {
            stored.ended_at = Some(stored.changed_at);
            self.release_ended(&mut txn)?;
        }
        inner.put(inner.state, &mut txn, &key(self.id), &stored.encode())?;
        txn.commit()?;
        self.version = stored.version;
        Ok(())
    }

    fn renew(&mut self) -> Result<()> {
        let inner = &self.inner;
        let mut txn = inner.write_as_holder()?;
        self.check_current(&txn)?;
        inner.put(inner.holder, &mut txn, &key(self.id), &inner.lease(self.epoch).encode())?;
        txn.commit()?;
        let now = inner.env.boot_time();
        if now.since(self.readers_cleared_at) >= CLEAR_READERS {
            self.readers_cleared_at = now;
            inner.environment.clear_stale_readers()?;
        }
        Ok(())
    }

    fn requests(&self) -> Result<Vec<(u64, Request)>> {
        let txn = self.inner.environment.read()?;
        let doing = || format!("read requests to operation {}", self.id);
        let mut requests = Vec::new();
        for record in self.inner.steering.prefix_iter(&txn, &key(self.id)).during(doing)? {
            let (key, value) = record.during(doing)?;
            let number = steering::number_of(key).ok_or_else(broken_key)?;
            requests.push((number, steering::decode(value)?));
        }
        Ok(requests)
    }
}

impl Drop for LmdbHold {
    /// Gives the operation back; whoever cannot is treated as dead once the process ends.
    fn drop(&mut self) {
        let released = self.inner.write().and_then(|mut txn| {
            self.check_current(&txn)?;
            self.inner.delete(self.inner.holder, &mut txn, &key(self.id))?;
            txn.commit()
        });
        self.lock = None;
        let _ = std::fs::remove_file(self.inner.lock_path(self.id, self.epoch));
        if let Err(error) = released
            && error.kind() != Kind::Fenced
        {
            tracing::debug!(operation = self.id.0, %error, "could not give the hold back");
        }
    }
}

fn numbers(inner: &Inner, txn: &RoTxn<'_>, id: OperationId) -> Result<Vec<u64>> {
    let doing = || format!("read requests to operation {id}");
    let mut numbers = Vec::new();
    for record in inner.steering.prefix_iter(txn, &key(id)).during(doing)? {
        let (key, _) = record.during(doing)?;
        numbers.push(steering::number_of(key).ok_or_else(broken_key)?);
    }
    Ok(numbers)
}

/// The epoch in the name of a lock file of that operation.
fn lock_epoch(name: &str, id: OperationId) -> Option<Epoch> {
    let epoch = name.strip_prefix(&format!("operation-{id}-"))?.strip_suffix(".lock")?;
    epoch.parse().ok().map(Epoch)
}

fn key(id: OperationId) -> [u8; 8] {
    id.0.to_be_bytes()
}

/// Identities are of any length, keys are not: BLAKE3.
fn identity_key(identity: &str) -> [u8; 32] {
    *blake3::hash(identity.as_bytes()).as_bytes()
}

fn number(bytes: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| broken_key())?;
    Ok(u64::from_be_bytes(bytes))
}

fn broken_key() -> Error {
    Error::new(Kind::Broken, "the catalog holds a key of impossible length")
}

fn unknown(id: OperationId) -> Error {
    let message = format!("there is no operation {id} here; `tidemark operation list` shows them");
    Error::new(Kind::NotFound, message)
}

fn held(id: OperationId, pid: u32, lease_seconds: u64) -> Error {
    let by = if pid == 0 { "another process".to_owned() } else { format!("process {pid}") };
    let message = format!(
        "operation {id} is held by {by}, whose lease runs for {lease_seconds} s more unless it \
         renews it; watch it with `tidemark operation watch {id}`, or end that process"
    );
    Error::new(Kind::Held, message)
}

#[cfg(test)]
mod tests;
