//! A catalog in memory: one lock is one transaction, and its processes can die or fall silent.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark::catalog::{Catalog, Commit, Hold, Holding, OperationRecord, StoredState};
use tidemark::env::{BootTime, Env};
use tidemark::ids::{Epoch, OperationId, ShardIdx, StepIdx, Txn};
use tidemark::operation::{Percent, Phase, Removed, Request, ShardProgress, State};
use tidemark::{Error, Kind, Result};

use crate::bug::Bug;
use crate::world::{Touch, World};

/// Time after its last renewal at which a silent holder may be taken over.
const LEASE: Duration = Duration::from_secs(15);

/// A [`Catalog`] in a world; clones are the same one.
#[derive(Clone, Debug)]
pub struct SimCatalog {
    world: Arc<World>,
    records: Arc<Mutex<Records>>,
    bug: Option<Bug>,
}

#[derive(Debug, Default)]
struct Records {
    operations: BTreeMap<OperationId, Operation>,
    identities: BTreeMap<String, OperationId>,
    last_epoch: u64,
    last_request: u64,
    /// Who takes which operation.
    taking: BTreeMap<OperationId, u32>,
}

/// The right to take an operation, until it is dropped.
#[derive(Debug)]
struct Taking {
    catalog: SimCatalog,
    id: OperationId,
    process: u32,
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut records = self.catalog.lock();
        if records.taking.get(&self.id) == Some(&self.process) {
            records.taking.remove(&self.id);
        }
    }
}

#[derive(Debug)]
struct Operation {
    record: OperationRecord,
    plan: Vec<u8>,
    stored: StoredState,
    shards: BTreeMap<(StepIdx, ShardIdx), ShardProgress>,
    requests: BTreeMap<u64, Request>,
    holder: Option<Holder>,
    /// The greatest epoch that ever held it.
    newest: Epoch,
    /// Records that were written since somebody looked.
    written: Vec<(StepIdx, ShardIdx)>,
}

#[derive(Debug)]
struct Holder {
    epoch: Epoch,
    process: u32,
    boot_id: u128,
    lease_until: BootTime,
    is_dead: bool,
}

impl SimCatalog {
    /// An empty catalog.
    pub fn new(world: Arc<World>, bug: Option<Bug>) -> SimCatalog {
        SimCatalog { world, records: Arc::default(), bug }
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What death does: whatever the process held can be taken at once.
    pub fn died(&self, process: u32) {
        for operation in self.lock().operations.values_mut() {
            if let Some(holder) = &mut operation.holder
                && holder.process == process
            {
                holder.is_dead = true;
            }
        }
    }

    /// The first operation, whatever became of it.
    pub fn first(&self) -> Option<OperationId> {
        self.lock().operations.keys().next().copied()
    }

    /// The state as it is durable.
    pub fn look_at_state<T>(&self, id: OperationId, look: impl FnOnce(&State) -> T) -> Option<T> {
        self.lock().operations.get(&id).map(|operation| look(&operation.stored.state))
    }

    /// The plan's bytes.
    pub fn plan_bytes(&self, id: OperationId) -> Option<Vec<u8>> {
        self.lock().operations.get(&id).map(|operation| operation.plan.clone())
    }

    /// Number of shard records, and who holds the operation.
    pub fn leftovers(&self, id: OperationId) -> (usize, Option<u32>) {
        let records = self.lock();
        records.operations.get(&id).map_or((0, None), |operation| {
            let holder = operation.holder.as_ref().map(|holder| holder.process);
            (operation.shards.len(), holder)
        })
    }

    /// The shard records that were written since the last call, as they are now.
    pub fn take_written(&self, id: OperationId) -> Vec<(StepIdx, ShardIdx, ShardProgress)> {
        let mut records = self.lock();
        let Some(operation) = records.operations.get_mut(&id) else { return Vec::new() };
        let written = std::mem::take(&mut operation.written);
        let shards = &operation.shards;
        let now = |(step, shard)| Some((step, shard, shards.get(&(step, shard))?.clone()));
        written.into_iter().filter_map(now).collect()
    }

    fn key(&self, step: StepIdx, shard: ShardIdx) -> (StepIdx, ShardIdx) {
        match self.bug {
            Some(Bug::NoStepInShardKey) => (StepIdx(0), shard),
            _ => (step, shard),
        }
    }

    fn holding(&self, holder: Option<&Holder>) -> Holding {
        let Some(holder) = holder else { return Holding::Free };
        let pid = holder.process;
        if holder.is_dead || holder.boot_id != self.world.boot_id() {
            return Holding::Dead { pid };
        }
        let rest = holder.lease_until.since(self.world.boot_time());
        Holding::Alive { pid, lease_seconds: rest.as_millis().div_ceil(1000) as u64 }
    }
}

impl Records {
    fn operation(&mut self, id: OperationId) -> Result<&mut Operation> {
        let found = self.operations.get_mut(&id);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no operation {id}")))
    }
}

impl Catalog for SimCatalog {
    fn create(&self, new: &OperationRecord, plan: &[u8], state: &State) -> Result<OperationId> {
        let pass = self.world.gate("catalog.create", Touch::Writes)?;
        let mut records = self.lock();
        if let Some(id) = records.identities.get(&new.identity) {
            let message = format!("{} is under way as operation {id}", new.title);
            return Err(Error::new(Kind::Held, message));
        }
        let id = OperationId(records.operations.len() as u64 + 1);
        records.identities.insert(new.identity.clone(), id);
        let stored = StoredState {
            state: state.clone(),
            version: 1,
            created_at: new.created_at,
            changed_at: new.created_at,
            ended_at: None,
            outcome: None,
        };
        let operation = Operation {
            record: new.clone(),
            plan: plan.to_vec(),
            stored,
            shards: BTreeMap::new(),
            requests: BTreeMap::new(),
            holder: None,
            newest: Epoch(0),
            written: Vec::new(),
        };
        records.operations.insert(id, operation);
        drop(records);
        self.world.say(|| format!("catalog.create {id}"));
        self.world.answer(pass, Ok(id))
    }

    fn unfinished(&self, identity: &str) -> Result<Option<OperationId>> {
        let pass = self.world.gate("catalog.unfinished", Touch::Reads)?;
        self.world.answer(pass, Ok(self.lock().identities.get(identity).copied()))
    }

    fn by_txn(&self, txn: Txn) -> Result<Option<OperationId>> {
        let records = self.lock();
        let of = |operation: &Operation| operation.stored.state.phase.txn() == Some(txn);
        Ok(records.operations.iter().find(|(_, found)| of(found)).map(|(id, _)| *id))
    }

    fn list(&self) -> Result<Vec<OperationId>> {
        Ok(self.lock().operations.keys().copied().collect())
    }

    fn operation(&self, id: OperationId) -> Result<OperationRecord> {
        let pass = self.world.gate("catalog.operation", Touch::Reads)?;
        let record = self.lock().operation(id).map(|found| found.record.clone());
        self.world.answer(pass, record)
    }

    fn plan(&self, id: OperationId) -> Result<Vec<u8>> {
        self.lock().operation(id).map(|found| found.plan.clone())
    }

    fn state(&self, id: OperationId) -> Result<StoredState> {
        let pass = self.world.gate("catalog.state", Touch::Reads)?;
        let stored = self.lock().operation(id).map(|found| found.stored.clone());
        self.world.answer(pass, stored)
    }

    fn shards(&self, id: OperationId, step: StepIdx) -> Result<Vec<(ShardIdx, ShardProgress)>> {
        let pass = self.world.gate("catalog.shards", Touch::Reads)?;
        let step = self.key(step, ShardIdx(0)).0;
        let shards = self.lock().operation(id).map(|found| {
            let of_step = (step, ShardIdx(0))..=(step, ShardIdx(u32::MAX));
            let of_step = found.shards.range(of_step);
            of_step.map(|((_, shard), progress)| (*shard, progress.clone())).collect()
        });
        self.world.answer(pass, shards)
    }

    fn holder(&self, id: OperationId) -> Result<Holding> {
        let pass = self.world.gate("catalog.holder", Touch::Reads)?;
        let mut records = self.lock();
        let holding = records.operation(id).map(|found| self.holding(found.holder.as_ref()));
        drop(records);
        self.world.answer(pass, holding)
    }

    fn taking(&self, id: OperationId) -> Result<Box<dyn Debug>> {
        let pass = self.world.gate("catalog.taking", Touch::Reads)?;
        let process = self.world.actor();
        let mut records = self.lock();
        let taker = records.taking.get(&id).copied().filter(|taker| *taker != process);
        if taker.is_some() && self.bug != Some(Bug::TwoTakersAtOnce) {
            let message = format!("operation {id} is being taken over by another process");
            return Err(Error::new(Kind::Held, message));
        }
        records.taking.insert(id, process);
        drop(records);
        self.world.answer(pass, Ok(Box::new(Taking { catalog: self.clone(), id, process })))
    }

    fn hold(&self, id: OperationId, epoch: Epoch) -> Result<Box<dyn Hold>> {
        let pass = self.world.gate("catalog.hold", Touch::Writes)?;
        let mut records = self.lock();
        let operation = records.operation(id)?;
        if let Holding::Alive { pid, lease_seconds } = self.holding(operation.holder.as_ref())
            && lease_seconds > 0
        {
            let message =
                format!("operation {id} is held by process {pid} for {lease_seconds} s more");
            return Err(Error::new(Kind::Held, message));
        }
        let process = self.world.actor();
        // An ended operation is held by nobody.
        let is_held =
            !operation.stored.state.phase.is_terminal() || self.bug == Some(Bug::HolderOutlivesEnd);
        operation.holder = is_held.then(|| Holder {
            epoch,
            process,
            boot_id: self.world.boot_id(),
            lease_until: self.world.boot_time().after(LEASE),
            is_dead: false,
        });
        operation.newest = operation.newest.max(epoch);
        let version = operation.stored.version;
        drop(records);
        self.world.say(|| format!("catalog.hold epoch {epoch}"));
        let hold = SimHold { catalog: self.clone(), id, epoch, version };
        self.world.answer(pass, Ok(Box::new(hold)))
    }

    fn steer(&self, id: OperationId, request: &Request) -> Result<()> {
        let mut records = self.lock();
        records.last_request += 1;
        let number = records.last_request;
        records.operation(id)?.requests.insert(number, request.clone());
        Ok(())
    }

    fn forget(&self, id: OperationId) -> Result<()> {
        let mut records = self.lock();
        let operation = records.operation(id)?;
        if operation.holder.is_some() || !operation.stored.state.phase.is_terminal() {
            return Err(Error::new(Kind::Held, format!("operation {id} has not ended")));
        }
        records.operations.remove(&id);
        Ok(())
    }

    fn allocate_epoch(&self) -> Result<Epoch> {
        let pass = self.world.gate("catalog.allocate_epoch", Touch::Writes)?;
        let mut records = self.lock();
        records.last_epoch += 1;
        let epoch = Epoch(records.last_epoch);
        drop(records);
        self.world.answer(pass, Ok(epoch))
    }
}

/// A hold in a simulated catalog.
#[derive(Debug)]
struct SimHold {
    catalog: SimCatalog,
    id: OperationId,
    epoch: Epoch,
    version: u64,
}

impl SimHold {
    fn check_current(&self, operation: &Operation) -> Result<()> {
        match &operation.holder {
            Some(holder) if holder.epoch == self.epoch => Ok(()),
            _ if self.catalog.bug == Some(Bug::CatalogIgnoresHold) => Ok(()),
            _ => {
                let message = format!("operation {} was taken over; this process stops", self.id);
                Err(Error::new(Kind::Fenced, message))
            }
        }
    }

    /// Makes the commit durable; the phases before and after it.
    fn write(&mut self, commit: &Commit<'_>) -> Result<(Phase, Percent)> {
        let catalog = self.catalog.clone();
        let mut records = catalog.lock();
        let operation = records.operation(self.id)?;
        self.check_current(operation)?;
        let ignores = catalog.bug == Some(Bug::CatalogIgnoresHold);
        if operation.stored.version != self.version && !ignores {
            let message = format!("operation {} changed behind its holder's back", self.id);
            return Err(Error::new(Kind::Fenced, message));
        }
        if self.epoch < operation.newest {
            catalog.world.violate(format!(
                "two holders can commit: epoch {} did, epoch {} holds the operation",
                self.epoch, operation.newest
            ));
        }
        let before = (operation.stored.state.phase.clone(), operation.stored.state.percent);
        let is_kept = catalog.bug == Some(Bug::ShardRecordsLeft);
        match commit.changes.removed {
            Removed::Nothing => {}
            Removed::Step(step) => operation.shards.retain(|(of, _), _| *of != step),
            Removed::All if is_kept => {}
            Removed::All => operation.shards.clear(),
        }
        for (step, shard, progress) in &commit.changes.shards {
            let key = catalog.key(*step, *shard);
            operation.shards.insert(key, progress.clone());
            operation.written.push(key);
        }
        operation.stored.state = commit.state.clone();
        operation.stored.version += 1;
        operation.stored.changed_at = catalog.world.wall_time();
        if let Some(outcome) = commit.outcome {
            operation.stored.outcome = Some(outcome.to_owned());
        }
        if let Some(seen) = commit.seen {
            operation.requests.retain(|number, _| *number > seen);
        }
        self.version = operation.stored.version;
        if commit.state.phase.is_terminal() {
            operation.stored.ended_at = Some(operation.stored.changed_at);
            operation.requests.clear();
            if catalog.bug != Some(Bug::HolderOutlivesEnd) {
                operation.holder = None;
            }
            let identity = operation.record.identity.clone();
            records.identities.remove(&identity);
        }
        Ok(before)
    }
}

impl Hold for SimHold {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<()> {
        let world = Arc::clone(&self.catalog.world);
        let pass = world.gate("catalog.commit", Touch::Writes)?;
        let written = self.write(commit);
        let state = commit.state;
        world.say(|| {
            format!(
                "catalog.commit epoch {} {:?} {:?} {} {} shards: {:?}",
                self.epoch,
                state.phase,
                state.desired,
                state.percent,
                commit.changes.shards.len(),
                written.as_ref().map(|_| ()).map_err(|error| error.kind())
            )
        });
        if let Ok((phase, percent)) = &written {
            check_commit(&world, phase, *percent, state);
        }
        world.answer(pass, written.map(|_| ()))
    }

    fn renew(&mut self) -> Result<()> {
        let world = Arc::clone(&self.catalog.world);
        let pass = world.gate("catalog.renew", Touch::Writes)?;
        let mut records = self.catalog.lock();
        let renewed = records.operation(self.id).and_then(|operation| {
            self.check_current(operation)?;
            if let Some(holder) = &mut operation.holder {
                holder.lease_until = world.boot_time().after(LEASE);
            }
            Ok(())
        });
        drop(records);
        world.answer(pass, renewed)
    }

    fn requests(&self) -> Result<Vec<(u64, Request)>> {
        let pass = self.catalog.world.gate("catalog.requests", Touch::Reads)?;
        let mut records = self.catalog.lock();
        let requests = records.operation(self.id).map(|operation| {
            operation.requests.iter().map(|(number, request)| (*number, request.clone())).collect()
        });
        drop(records);
        self.catalog.world.answer(pass, requests)
    }
}

impl Drop for SimHold {
    /// Gives the operation back, unless the process died.
    fn drop(&mut self) {
        if let Ok(operation) = self.catalog.lock().operation(self.id)
            && operation
                .holder
                .as_ref()
                .is_some_and(|holder| holder.epoch == self.epoch && !holder.is_dead)
        {
            operation.holder = None;
        }
    }
}

/// What must hold of every commit, whoever makes it.
fn check_commit(world: &World, before: &Phase, percent: Percent, state: &State) {
    if before.is_terminal() {
        world.violate(format!("terminal is terminal: {} became {:?}", before.name(), state.phase));
    }
    if state.percent < percent {
        world.violate(format!("progress went back from {percent} to {}", state.percent));
    }
    let is_whole = state.percent >= Percent::WHOLE;
    if is_whole != matches!(state.phase, Phase::Done { .. }) || state.percent > Percent::WHOLE {
        world.violate(format!("{} while {}", state.percent, state.phase.name()));
    }
}
