//! A restore as the executor sees it: tasks, shards, and what they do to the target.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::apply::{ShardApply, ShardWork};
use super::plan::{self, PlanShard, PlanTable, RestorePlan};
use super::proof::{self, ShardClaim, TableProof};
use super::source::{Parts, Reading};
use crate::collection::chain::{TableChain, TableLink};
use crate::collection::manifest::TableMode;
use crate::collection::{Chain, Collection};
use crate::database::{Disposition, Fence, Publish, Target, TargetShard, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::executor::{Job, ResumedStep, ShardRun, Stop};
use crate::ids::{Epoch, OperationId, ShardIdx, StepIdx, TableName};
use crate::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket, Work, Working};
use crate::row::digest::RowHasher;
use crate::row::{Digest, KeyRange, RowBatch, RowCodec, RowStream};

/// A planned restore with everything it needs to run.
pub struct RestoreJob {
    target: Arc<dyn Target>,
    collection: Arc<Collection>,
    chain: Chain,
    plan: RestorePlan,
    parts: Parts,
    codecs: Vec<RowCodec>,
    targets: Vec<TargetTable>,
    proofs: Mutex<Vec<TableProof>>,
}

impl fmt::Debug for RestoreJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreJob").field("point", &self.plan.point).finish_non_exhaustive()
    }
}

/// What a restore says at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// Backup that the tables stand at now.
    pub backup: String,
    /// What became of the tables.
    pub published: Publish,
    /// What was proven, per table.
    pub tables: Vec<TableProof>,
    /// What people should know.
    pub notices: Vec<String>,
}

impl RestoreJob {
    /// A job for a plan that was made from `chain`.
    pub fn new(
        target: Arc<dyn Target>,
        collection: Arc<Collection>,
        chain: Chain,
        plan: RestorePlan,
    ) -> RestoreJob {
        let codecs = plan.tables.iter().map(|table| RowCodec::new(&table.target.schema)).collect();
        let targets = plan.tables.iter().map(|table| table.target.clone()).collect();
        let parts = Parts::new(Arc::clone(&collection));
        let proofs = Mutex::default();
        RestoreJob { target, collection, chain, plan, parts, codecs, targets, proofs }
    }

    /// The plan.
    pub fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    fn target_shard(&self, operation: OperationId, table: usize, shard: ShardIdx) -> TargetShard {
        TargetShard { operation, table: self.plan.tables[table].target.name.clone(), shard }
    }

    /// The links that a step applies to a table, oldest first.
    fn links(&self, table: &PlanTable, step: StepIdx) -> Result<Vec<TableLink<'_>>> {
        let (first, last) = self.plan.step(step)?.links;
        let mut links = self.table_chain(table)?.links;
        links.retain(|link| {
            link.link >= table.first_link.max(first)
                && link.link <= last
                && (!link.entry.parts.is_empty() || link.entry.mode == TableMode::Whole)
        });
        Ok(links)
    }

    fn table_chain(&self, table: &PlanTable) -> Result<TableChain<'_>> {
        let name = table.source_name.to_string();
        let chains = self.chain.tables(std::slice::from_ref(&name))?;
        chains.into_iter().find(|chain| chain.table.id == table.target.id).ok_or_else(|| {
            let message = format!("table `{name}` is no longer in the chain that was planned");
            Error::new(Kind::Broken, message)
        })
    }

    fn shards_of(&self, step: StepIdx) -> Result<Vec<Work>> {
        Ok(self.plan.step(step)?.shards.iter().map(PlanShard::work).collect())
    }

    /// Where the last chunk of a shard must have been applied; `None` if no step touches it.
    fn last_step(&self, table: usize, shard: ShardIdx) -> Option<StepIdx> {
        let touches = |step: &plan::PlanStep| {
            step.shards.iter().any(|each| each.table as usize == table && each.shard == shard)
        };
        let last = self.plan.steps.iter().rposition(touches)?;
        Some(StepIdx(last as u32))
    }

    fn prove(&self, fence: Fence, stop: &Stop, advanced: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let mut claims = Vec::new();
        for (table, plan) in self.plan.tables.iter().enumerate() {
            for shard in 0..plan.target.shards.len() as u32 {
                claims.push(self.claim_of(fence, table, ShardIdx(shard))?);
            }
        }
        // The whole proof weighs what the plan says; what is read back is spread over it.
        let planned: u64 = self.plan.planned().steps.iter().map(|step| step.bytes).sum();
        let weight = self.plan.proof_bytes;
        let scaled = |read: u64| {
            advanced(
                (read.min(planned) / planned.max(1).div_ceil(weight.max(1)).max(1)).min(weight),
            )
        };
        let digests = proof::read_back(&*self.target, &claims, stop, &scaled)?;
        let mut digests = digests.into_iter();
        let mut proofs = Vec::new();
        for plan in &self.plan.tables {
            let shards = digests.by_ref().take(plan.target.shards.len());
            proofs.push(self.prove_table(plan, shards.sum(), stop)?);
        }
        *self.proofs.lock().unwrap_or_else(PoisonError::into_inner) = proofs;
        Ok(())
    }

    fn claim_of(&self, fence: Fence, table: usize, shard: ShardIdx) -> Result<ShardClaim<'_>> {
        let target_shard = self.target_shard(fence.operation, table, shard);
        let mark = self.target.mark(&target_shard)?;
        if let Some(step) = self.last_step(table, shard) {
            let is_complete = mark.as_ref().is_some_and(|mark| mark.done && mark.step == step);
            if !is_complete {
                let message = format!(
                    "restore {}: shard {shard} of `{}` has no mark at the end of step {step}; its \
                     hidden table was changed from outside: cancel and restore anew",
                    fence.operation, target_shard.table
                );
                return Err(Error::new(Kind::Broken, message));
            }
        }
        let table = &self.plan.tables[table].target;
        Ok(ShardClaim { table, shard: target_shard, mark })
    }

    /// Compares a table with the source's digest, or with one more fold of the chain.
    fn prove_table(&self, plan: &PlanTable, found: Digest, stop: &Stop) -> Result<TableProof> {
        let table = plan.target.name.clone();
        let is_new = plan.target.disposition != Disposition::RollForward;
        let (expected, says) = match plan.state {
            Some(state) => (state, "the source said at that cut"),
            None => (self.chain_digest(plan, stop)?, "the chain says"),
        };
        if found != expected {
            let message = format!(
                "table `{table}`: read back {found}, {says} {expected}; nothing was published, \
                 cancel the restore and run `tidemark verify` on the collection"
            );
            return Err(Error::new(Kind::Mismatch, message));
        }
        Ok(TableProof {
            table,
            digest: found,
            equals_source: plan.state.is_some(),
            // New copies were summed from the chain's rows as they were read.
            equals_chain: is_new || plan.state.is_none(),
        })
    }

    /// Folds a table's chain without writing anything.
    fn chain_digest(&self, plan: &PlanTable, stop: &Stop) -> Result<Digest> {
        let chain = self.table_chain(plan)?;
        let codec = RowCodec::new(&plan.target.schema);
        let reading =
            Reading { links: &chain.links, wanted: &codec, range: &KeyRange::ALL, after: None };
        let mut stream = self.parts.open(reading)?;
        let mut hasher = RowHasher::new(plan.target.digest_id);
        let mut batch = RowBatch::new();
        let mut digest = Digest::default();
        while stream.next_batch(&mut batch)? {
            if stop.is_asked() {
                return Err(Error::new(Kind::Transient, "the proof was asked to stop"));
            }
            for row in batch.iter() {
                digest += hasher.row(row.key, row.payload);
            }
        }
        Ok(digest)
    }
}

impl Job for RestoreJob {
    fn allocate_epoch(&self) -> Result<Epoch> {
        Ok(Epoch(self.target.allocate_txn()?.0))
    }

    fn claim(&self, fence: Fence, phase: &Phase) -> Result<()> {
        let working = match phase {
            Phase::Working(working) | Phase::Failed { was: working, .. } => *working,
            Phase::Reverting { .. } | Phase::Done { .. } | Phase::Cancelled { .. } => return Ok(()),
        };
        let is_prepared = match working {
            Working::Allocating => false,
            Working::Proposing { step, .. } => step.0 > 0,
            Working::Waiting { .. } => true,
            // Sealed shards stay sealed; only who may publish changes.
            Working::Applying { .. } => return self.target.seal(fence),
        };
        if !is_prepared {
            return Ok(());
        }
        // Making them again would hide that somebody dropped them: look first.
        for (table, plan) in self.plan.tables.iter().enumerate() {
            for shard in 0..plan.target.shards.len() as u32 {
                let shard = self.target_shard(fence.operation, table, ShardIdx(shard));
                self.target.mark(&shard)?;
            }
        }
        self.target.prepare(fence, &self.targets)
    }

    fn resume_step(&self, step: StepIdx) -> Result<ResumedStep> {
        Ok(ResumedStep::Shards(self.shards_of(step)?))
    }

    fn run_task(
        &self,
        ticket: TaskTicket,
        fence: Fence,
        stop: &Stop,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<TaskOutcome> {
        Ok(match ticket.task {
            Task::Allocate => TaskOutcome::Allocated(self.target.allocate_txn()?),
            Task::Propose { step, .. } => {
                if step.0 == 0 {
                    self.collection.check_present(&self.chain)?;
                }
                self.target.prepare(fence, &self.targets)?;
                TaskOutcome::Accepted(self.shards_of(step)?)
            }
            Task::Seal { .. } => {
                self.target.seal(fence)?;
                TaskOutcome::Sealed
            }
            Task::Prove { .. } => {
                self.prove(fence, stop, advanced)?;
                TaskOutcome::Proved
            }
            Task::Publish { .. } => {
                self.target.publish(fence, self.plan.publish)?;
                TaskOutcome::Published
            }
            Task::Discard { .. } => {
                self.target.discard(fence)?;
                TaskOutcome::Discarded
            }
        })
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        let step = self.plan.step(ticket.step)?;
        let planned = step.shards.get(ticket.shard.0 as usize).ok_or_else(|| {
            let message = format!("shard {} is beyond step {}", ticket.shard, ticket.step);
            Error::new(Kind::Broken, message)
        })?;
        let at = planned.table as usize;
        let table = &self.plan.tables[at];
        let links = self.links(table, ticket.step)?;
        let is_fresh = links.first().is_some_and(|link| link.entry.mode == TableMode::Whole);
        let work = ShardWork {
            target: &*self.target,
            parts: &self.parts,
            fence,
            ticket,
            shard: self.target_shard(ticket.operation, at, planned.shard),
            range: &table.target.shards[planned.shard.0 as usize],
            links,
            codec: &self.codecs[at],
            is_fresh,
        };
        Ok(Box::new(ShardApply::open(work)?))
    }

    fn tables(&self) -> Vec<TableName> {
        self.plan.tables.iter().map(|table| table.target.name.clone()).collect()
    }

    fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize> {
        let shard = self.plan.step(step).ok()?.shards.get(shard.0 as usize)?;
        Some(shard.table as usize)
    }

    fn outcome(&self) -> Option<String> {
        let outcome = RestoreOutcome {
            backup: self.plan.point.directory.clone(),
            published: self.plan.publish,
            tables: self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            notices: self.plan.notices.clone(),
        };
        Some(serde_json::to_string(&outcome).expect("an outcome is plain data"))
    }
}
