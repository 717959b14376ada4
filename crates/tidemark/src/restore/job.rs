//! A restore as the executor sees it: tasks, shards, and what they do to the target.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::apply::{ShardApply, ShardWork};
use super::chain_proof::ChainProof;
use super::merge::{Merge, MergeWork};
use super::plan::{self, Piece, PlanShard, PlanTable, RestorePlan};
use super::proof::{self, ReadingBack, ShardClaim, TableProof};
use super::runs::Runs;
use super::source::{Input, Parts};
use super::undo;
use crate::collection::chain::TableLink;
use crate::collection::run::{RunInput, SortedRun};
use crate::collection::{Chain, Collection};
use crate::database::{Disposition, Fence, Publish, Target, TargetShard, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::executor::{Job, ResumedStep, ShardRun, Stop};
use crate::ids::{Epoch, LinkIdx, OperationId, ShardIdx, StepIdx, TableName};
use crate::operation::{Phase, Task, TaskOutcome, TaskTicket, Ticket, Work, Working};
use crate::planted::{self, Bug};
use crate::row::{Digest, RowCodec};

/// A planned restore with everything it needs to run.
pub struct RestoreJob {
    target: Arc<dyn Target>,
    collection: Arc<Collection>,
    chain: Chain,
    plan: RestorePlan,
    parts: Parts,
    scratch: PathBuf,
    runs: Runs,
    /// Per table, where the links that hold its rows are: looked for once, since a long chain
    /// has many and every shard of every step asks.
    links: Vec<Vec<LinkPosition>>,
    codecs: Vec<RowCodec>,
    targets: Vec<TargetTable>,
    proofs: Mutex<Vec<TableProof>>,
    /// What the target wants people to know.
    told: Mutex<Vec<String>>,
    chunk_rows_max: u32,
    readers_max: usize,
    reads_ahead: bool,
}

/// One table's entry in one manifest of the chain.
#[derive(Clone, Copy, Debug)]
struct LinkPosition {
    link: LinkIdx,
    table: usize,
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
    ///
    /// # Errors
    /// [`Kind::Broken`] when the chain lacks a table of the plan.
    pub fn new(
        target: Arc<dyn Target>,
        collection: Arc<Collection>,
        chain: Chain,
        plan: RestorePlan,
        scratch: &Path,
    ) -> Result<RestoreJob> {
        let links = positions(&chain, &plan)?;
        let codecs = plan.tables.iter().map(|table| RowCodec::new(&table.target.schema)).collect();
        let targets = plan.tables.iter().map(|table| table.target.clone()).collect();
        let parts = Parts::new(Arc::clone(&collection));
        let proofs = Mutex::default();
        let scratch = scratch.to_owned();
        Ok(RestoreJob {
            target,
            collection,
            chain,
            plan,
            parts,
            scratch,
            runs: Runs::default(),
            links,
            codecs,
            targets,
            proofs,
            told: Mutex::default(),
            chunk_rows_max: u32::MAX,
            readers_max: proof::readers_max(),
            reads_ahead: true,
        })
    }

    /// The same restore in chunks of at most so many rows; at least one.
    #[must_use]
    pub fn with_chunk_rows_max(mut self, rows: u32) -> RestoreJob {
        self.chunk_rows_max = rows.max(1);
        self
    }

    /// The same restore with at most so many shards read back at once, at least one; one is
    /// read by the thread that runs the proof.
    #[must_use]
    pub fn with_readers_max(mut self, readers: usize) -> RestoreJob {
        self.readers_max = readers.max(1);
        self
    }

    /// The same restore with a shard's chunks read and applied in turns, by the one thread that
    /// runs the shard.
    #[must_use]
    pub fn without_read_ahead(mut self) -> RestoreJob {
        self.reads_ahead = false;
        self
    }

    /// The plan.
    pub fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    fn target_shard(&self, operation: OperationId, table: usize, shard: ShardIdx) -> TargetShard {
        TargetShard { operation, table: self.plan.tables[table].target.name.clone(), shard }
    }

    fn run_path(&self, operation: OperationId, table: usize, run: u32) -> PathBuf {
        undo::scratch_of(&self.scratch, operation).join(format!("{table}-{run}.parquet"))
    }

    /// What a step merges for a table, oldest first.
    fn inputs(
        &self,
        operation: OperationId,
        table: usize,
        step: StepIdx,
    ) -> Result<Vec<Input<'_>>> {
        let plan = &self.plan.tables[table];
        let links = self.links(table, Some(step))?;
        if plan.runs.runs.is_empty() {
            return Ok(links.into_iter().map(Input::Link).collect());
        }
        plan.runs.last.iter().map(|input| self.input(operation, table, &links, *input)).collect()
    }

    fn input<'a>(
        &'a self,
        operation: OperationId,
        table: usize,
        links: &[TableLink<'a>],
        input: RunInput,
    ) -> Result<Input<'a>> {
        match input {
            RunInput::Link(link) => {
                let link = links.get(link.0 as usize).copied();
                link.map(Input::Link).ok_or_else(|| {
                    Error::new(Kind::Broken, "a planned merge reads a link that the chain lacks")
                })
            }
            RunInput::Run(run) => {
                let path = self.run_path(operation, table, run);
                let make = || self.make_run(operation, table, links, run);
                let found = self.runs.open(&path, make)?;
                let schema = &self.plan.tables[table].target.schema;
                Ok(Input::Run { path, part: found.part, schema })
            }
        }
    }

    /// Makes a run that was there and is lost, in one go.
    fn make_run(
        &self,
        operation: OperationId,
        table: usize,
        links: &[TableLink<'_>],
        run: u32,
    ) -> Result<SortedRun> {
        let inputs = self.merged(operation, table, links, run)?;
        let (codec, target) = (&self.codecs[table], &self.plan.tables[table].target);
        let path = self.run_path(operation, table, run);
        self.parts.merge(&inputs, codec, target, &path, &mut |_| Ok(()))
    }

    /// What the merge of that number reads, oldest first.
    fn merged<'a>(
        &'a self,
        operation: OperationId,
        table: usize,
        links: &[TableLink<'a>],
        run: u32,
    ) -> Result<Vec<Input<'a>>> {
        let planned = self.plan.tables[table].runs.runs.get(run as usize);
        let planned = planned
            .ok_or_else(|| Error::new(Kind::Broken, format!("merge {run} is beyond the plan")))?;
        let inputs = planned.inputs.iter();
        inputs.map(|input| self.input(operation, table, links, *input)).collect()
    }

    fn start_merge(
        &self,
        ticket: Ticket,
        table: usize,
        run: u32,
        planned: Work,
    ) -> Result<Merge<'_>> {
        let links = self.links(table, None)?;
        Merge::open(MergeWork {
            parts: &self.parts,
            inputs: self.merged(ticket.operation, table, &links, run)?,
            codec: &self.codecs[table],
            table: &self.plan.tables[table].target,
            path: self.run_path(ticket.operation, table, run),
            planned,
            attempt: ticket.attempt,
        })
    }

    /// The links that hold rows of a table, from where it is whole; `step` narrows them.
    fn links(&self, table: usize, step: Option<StepIdx>) -> Result<Vec<TableLink<'_>>> {
        let first = self.plan.tables[table].first_link;
        let (from, to) = match step {
            Some(step) => self.plan.step(step)?.links,
            None => (first, LinkIdx(u32::MAX)),
        };
        let is_inside = |at: &&LinkPosition| (from.max(first)..=to).contains(&at.link);
        Ok(self.links[table].iter().filter(is_inside).map(|at| self.link_at(*at)).collect())
    }

    fn link_at(&self, at: LinkPosition) -> TableLink<'_> {
        let link = self.chain.link(at.link).expect("positions come from this chain");
        let entry = &link.manifest.tables[at.table];
        TableLink { link: at.link, directory: &link.entry.directory, entry }
    }

    fn shards_of(&self, step: StepIdx) -> Result<Vec<Work>> {
        Ok(self.plan.step(step)?.shards.iter().map(PlanShard::work).collect())
    }

    /// Where the last chunk of a shard must have been applied; `None` if no step touches it.
    fn last_step(&self, table: usize, shard: ShardIdx) -> Option<StepIdx> {
        let touches = |step: &plan::PlanStep| {
            step.shards
                .iter()
                .any(|each| each.table as usize == table && each.piece == Piece::Apply(shard))
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
        // The proof weighs what the plan says, spread evenly over the rows that the marks tell.
        let total: u64 = claims.iter().map(ShardClaim::rows).sum();
        let chain_bytes: u64 = self.plan.tables.iter().map(|table| table.proof_read_bytes).sum();
        let weight = self.plan.proof_bytes - chain_bytes / plan::CHAIN_PROOF_DIVISOR;
        let scaled = |rows: u64| {
            let share = u128::from(rows) * u128::from(weight) / u128::from(total.max(1));
            advanced(u64::try_from(share).unwrap_or(weight).min(weight));
        };
        let reading = ReadingBack { target: &*self.target, stop, advanced: &scaled };
        let digests = reading.run(&claims, self.readers_max)?;
        let mut digests = digests.into_iter();
        let mut proofs = Vec::new();
        let mut read_before = 0;
        for (table, plan) in self.plan.tables.iter().enumerate() {
            let shards = digests.by_ref().take(plan.target.shards.len());
            let chain_read = |bytes: u64| {
                let read = (read_before + bytes).min(chain_bytes);
                advanced(weight + read / plan::CHAIN_PROOF_DIVISOR);
            };
            let operation = fence.operation;
            proofs.push(self.prove_table(operation, table, shards.sum(), stop, &chain_read)?);
            read_before += plan.proof_read_bytes;
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
    fn prove_table(
        &self,
        operation: OperationId,
        table: usize,
        found: Digest,
        stop: &Stop,
        chain_read: &dyn Fn(u64),
    ) -> Result<TableProof> {
        let plan = &self.plan.tables[table];
        let name = plan.target.name.clone();
        let is_new = plan.target.disposition != Disposition::RollForward;
        let (expected, says) = match plan.state {
            Some(state) => (state, "the source said at that cut"),
            None => (self.chain_digest(operation, table, stop, chain_read)?, "the chain says"),
        };
        if found != expected {
            let message = format!(
                "table `{name}`: read back {found}, {says} {expected}; nothing was published, \
                 cancel the restore and run `tidemark verify` on the collection"
            );
            return Err(Error::new(Kind::Mismatch, message));
        }
        Ok(TableProof {
            table: name,
            digest: found,
            equals_source: plan.state.is_some(),
            // New copies were summed from the chain's rows as they were read.
            equals_chain: is_new || plan.state.is_none(),
        })
    }

    /// What a table's chain says, folded once more without writing anything.
    fn chain_digest(
        &self,
        operation: OperationId,
        table: usize,
        stop: &Stop,
        advanced: &dyn Fn(u64),
    ) -> Result<Digest> {
        let plan = &self.plan.tables[table];
        let proof = ChainProof {
            parts: &self.parts,
            links: self.links[table].iter().map(|at| self.link_at(*at)).collect(),
            runs: &plan.proof_runs,
            codec: &self.codecs[table],
            table: &plan.target,
            runs_at: undo::scratch_of(&self.scratch, operation).join(format!("proof-{table}")),
        };
        proof.digest(stop, advanced)
    }
}

/// Where the rows of every planned table lie in the chain.
fn positions(chain: &Chain, plan: &RestorePlan) -> Result<Vec<Vec<LinkPosition>>> {
    let names: Vec<String> =
        plan.tables.iter().map(|table| table.source_name.to_string()).collect();
    let selected = if names.is_empty() { Vec::new() } else { chain.tables(&names)? };
    let of_table = |table: &PlanTable| {
        let found = selected.iter().find(|found| found.table.id == table.target.id);
        let found = found.ok_or_else(|| {
            let message =
                format!("table `{}` is no longer in the chain that was planned", table.source_name);
            Error::new(Kind::Broken, message)
        })?;
        let links = plan::links_between(found, LinkIdx(0), None);
        let position = |link: TableLink<'_>| {
            let manifest = &chain.link(link.link).expect("links come from this chain").manifest;
            let table = manifest.tables.iter().position(|entry| entry.id == table.target.id);
            LinkPosition {
                link: link.link,
                table: table.expect("a link's entry is in its manifest"),
            }
        };
        Ok(links.into_iter().map(position).collect())
    };
    plan.tables.iter().map(of_table).collect()
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
                // Later steps find the hidden tables that the first one made; whoever took the
                // operation over meanwhile claimed them.
                if step.0 == 0 {
                    self.collection.check_present(&self.chain)?;
                    self.target.prepare(fence, &self.targets)?;
                }
                TaskOutcome::Accepted(self.shards_of(step)?)
            }
            Task::Seal { .. } => {
                self.target.seal(fence)?;
                TaskOutcome::Sealed
            }
            Task::Prove { .. } if planted::is(Bug::ProofSkipped) => TaskOutcome::Proved,
            Task::Prove { .. } => {
                self.prove(fence, stop, advanced)?;
                TaskOutcome::Proved
            }
            Task::Publish { .. } => {
                let told = self.target.notices(ticket.operation)?;
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
                self.target.publish(fence, self.plan.publish)?;
                undo::clear_scratch(&self.scratch, fence.operation);
                TaskOutcome::Published
            }
            Task::Discard { .. } => undo::discard(&*self.target, &self.scratch, fence)?,
        })
    }

    fn start_shard<'a>(&'a self, ticket: Ticket, fence: Fence) -> Result<Box<dyn ShardRun + 'a>> {
        let step = self.plan.step(ticket.step)?;
        let planned = step.shards.get(ticket.shard.0 as usize).ok_or_else(|| {
            let message = format!("shard {} is beyond step {}", ticket.shard, ticket.step);
            Error::new(Kind::Broken, message)
        })?;
        let at = planned.table as usize;
        let shard = match planned.piece {
            Piece::Apply(shard) => shard,
            Piece::Merge(run) => {
                return Ok(Box::new(self.start_merge(ticket, at, run, planned.work())?));
            }
        };
        let table = &self.plan.tables[at];
        let inputs = self.inputs(ticket.operation, at, ticket.step)?;
        let work = ShardWork {
            target: &*self.target,
            parts: &self.parts,
            fence,
            ticket,
            shard: self.target_shard(ticket.operation, at, shard),
            range: &table.target.shards[shard.0 as usize],
            is_fresh: inputs.first().is_some_and(Input::is_whole),
            inputs,
            codec: &self.codecs[at],
            chunk_rows_max: self.chunk_rows_max,
            reads_ahead: self.reads_ahead,
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

    fn window_max(&self) -> u32 {
        self.plan.window_max.max(1)
    }

    fn outcome(&self) -> Option<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = RestoreOutcome {
            backup: self.plan.point.directory.clone(),
            published: self.plan.publish,
            tables: self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            notices: self.plan.notices.iter().chain(&*told).cloned().collect(),
        };
        Some(serde_json::to_string(&outcome).expect("an outcome is plain data"))
    }

    fn recall(&self, outcome: &str) -> Result<()> {
        let recalled: RestoreOutcome = serde_json::from_str(outcome).map_err(|cause| {
            Error::with_source(Kind::Broken, "read what the restore proved before", cause)
        })?;
        *self.proofs.lock().unwrap_or_else(PoisonError::into_inner) = recalled.tables;
        Ok(())
    }
}
