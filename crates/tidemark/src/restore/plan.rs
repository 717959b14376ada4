//! The plan of a restore: tables, shards and steps, made without any I/O.
//!
//! The same chain, options and target give the same plan, byte for byte; its hash is
//! recorded when the operation begins, so that a resume on anything else is noticed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{PlanKind, PlanLink, RestoreOptions};
use super::{cut, limits, memory};
use crate::byte_size::ByteSize;
use crate::collection::Chain;
use crate::collection::chain::{TableChain, TableLink};
use crate::collection::manifest::{TableEntry, TableMode};
use crate::collection::run::RunPlan;
use crate::database::{Disposition, ExistingTable, Origin, Publish, TargetLimits, TargetTable};
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, LinkIdx, ShardIdx, StepIdx, TableName};
use crate::operation::{Planned, Work};
use crate::row::{Digest, KeyRange};

/// Bytes of restoring that reading back one byte counts for, as a divisor.
///
/// A scan with hashing runs at many times the rate of decoding, folding and writing: measured
/// on 2 cores, 10 to 25 times while the rows are still in memory.
pub(super) const PROOF_DIVISOR: u64 = 12;

/// The same for reading the chain once more, where that is the proof: decoding and folding are
/// about half of restoring.
pub(super) const CHAIN_PROOF_DIVISOR: u64 = 2;

/// Everything that is decided before the first row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The restore point.
    pub point: PlanLink,
    /// The chain that leads to it, the full first.
    pub chain: Vec<PlanLink>,
    /// What becomes of the tables.
    pub publish: Publish,
    /// Tables, by name in the backup.
    pub tables: Vec<PlanTable>,
    /// Steps, in order; at least one.
    pub steps: Vec<PlanStep>,
    /// What the proof counts for in progress.
    pub proof_bytes: u64,
    /// Shards in flight: those that were asked for, as far as they fit the memory.
    pub window: u32,
    /// Shards in flight that would fit the memory, at least 1; a window is never set wider.
    pub window_max: u32,
    /// What people should know beforehand.
    pub notices: Vec<String>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTable {
    /// Name in the backup.
    pub source_name: TableName,
    /// What the target is asked for.
    pub target: TargetTable,
    /// Digest at the restore point, if the backup recorded the source's.
    pub state: Option<Digest>,
    /// First link of the chain that this restore reads for the table; the number of links when
    /// it reads none, and a held copy is proven and shown as it stands.
    pub first_link: LinkIdx,
    /// How the links are merged beforehand, where one fold of all of them would not fit the
    /// memory; links are counted among those that hold rows of the table.
    pub runs: RunPlan,
    /// The same for the proof, which folds the whole chain once more if `state` is not known;
    /// empty otherwise.
    pub proof_runs: RunPlan,
    /// Bytes that such a proof reads of the chain, merges included.
    pub proof_read_bytes: u64,
}

/// One step: shards that may run in any order, between two barriers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// First and last link of the chain that it applies.
    pub links: (LinkIdx, LinkIdx),
    /// Shards in order: by table, then by key.
    pub shards: Vec<PlanShard>,
}

/// One shard of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanShard {
    /// Position of its table in the plan.
    pub table: u32,
    /// What is to be done.
    pub piece: Piece,
    /// Rows to be read, estimated.
    pub rows: u64,
    /// Key and payload bytes to be read, estimated.
    pub bytes: u64,
}

/// What a plan is made of.
#[derive(Debug)]
pub struct PlanInputs<'a> {
    /// Collection.
    pub collection: CollectionId,
    /// Chain up to the restore point.
    pub chain: &'a Chain,
    /// What was asked.
    pub options: &'a RestoreOptions,
    /// What stands under a name in the target.
    pub existing: &'a dyn ExistingTables,
    /// Shards in flight that were asked for; the plan may allow fewer.
    pub window: u32,
    /// Memory for reading, in bytes.
    pub memory_bytes: u64,
}

/// Looks up what stands under a name in the target.
pub trait ExistingTables: fmt::Debug {
    /// See [`Target::existing`](crate::database::Target::existing).
    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>>;

    /// See [`Target::limits`](crate::database::Target::limits).
    fn limits(&self) -> Result<TargetLimits>;
}

/// What a shard of a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// Applies the step's links to one shard of the target.
    Apply(ShardIdx),
    /// Merges increments into the sorted run of that number, so that applying needs less memory.
    Merge(u32),
}

impl RestorePlan {
    /// Makes the plan.
    ///
    /// # Errors
    /// [`Kind::Usage`]: options that do not fit together, two tables of one name, more shards or
    /// longer keys than the target holds.
    /// [`Kind::NotFound`]: a pattern or rename that fits nothing, a copy that is not there.
    /// [`Kind::InTheWay`]: a name that is taken, a copy that was written to or is of another
    /// chain. [`Kind::Broken`]: a chain that does not lead to a table.
    pub fn new(inputs: &PlanInputs<'_>) -> Result<RestorePlan> {
        inputs.options.check()?;
        let chains = inputs.chain.tables(&inputs.options.tables)?;
        let names = target_names(inputs.options, &chains)?;
        let chain: Vec<PlanLink> = inputs.chain.links().iter().map(PlanLink::from).collect();
        let mut tables = Vec::new();
        let mut notices = Vec::new();
        for (table, name) in chains.iter().zip(names) {
            tables.extend(plan_table(inputs, table, name, &mut notices)?);
        }
        if tables.is_empty() && !chains.is_empty() {
            notices.push("every copy stands at this restore point already".to_owned());
        }
        let selected: Vec<&TableChain<'_>> = tables
            .iter()
            .map(|table| {
                let same = |chain: &&TableChain<'_>| chain.table.id == table.target.id;
                chains.iter().find(same).expect("planned tables come from the chains")
            })
            .collect();
        let links: Vec<Vec<TableLink<'_>>> = tables
            .iter()
            .zip(&selected)
            .map(|(table, chain)| links_between(chain, table.first_link, None))
            .collect();
        limits::check(inputs.existing, &tables, &links)?;
        let steps = steps(inputs, &tables, &links);
        let (window, window_max) = if plan_kind(inputs) == PlanKind::Fold {
            let shards = steps.iter().map(|step| step.shards.len()).max().unwrap_or(0) as u32;
            let fitted = memory::fit(inputs, &links, shards, &mut notices)?;
            for (table, runs) in tables.iter_mut().zip(fitted.runs) {
                table.runs = runs;
            }
            (fitted.window, fitted.window_max)
        } else {
            let max = memory::sequential_window_max(inputs.memory_bytes, &links);
            (inputs.window.min(max), max)
        };
        let steps = memory::with_merges(&tables, steps);
        for (table, chain) in tables.iter_mut().zip(&selected) {
            plan_proof(table, chain, inputs.memory_bytes)?;
        }
        let read_bytes: u64 = tables.iter().map(|table| table.proof_read_bytes).sum();
        let final_bytes: u64 = selected
            .iter()
            .map(|chain| chain.links[0].entry.parts.iter().map(|part| part.row_bytes).sum::<u64>())
            .sum();
        Ok(RestorePlan {
            point: PlanLink::from(inputs.chain.point()),
            chain,
            publish: if inputs.options.hold { Publish::Held } else { Publish::Visible },
            tables,
            steps,
            proof_bytes: final_bytes / PROOF_DIVISOR + read_bytes / CHAIN_PROOF_DIVISOR,
            window,
            window_max,
            notices,
        })
    }

    /// The stored form: JSON, the same bytes for the same plan.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan is plain data")
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Kind::Broken`] for anything else, also for a plan that names what it does not hold.
    pub fn from_bytes(bytes: &[u8]) -> Result<RestorePlan> {
        let plan: RestorePlan = serde_json::from_slice(bytes)
            .map_err(|cause| Error::with_source(Kind::Broken, "read a stored plan", cause))?;
        plan.check().map_err(|message| {
            Error::new(Kind::Broken, format!("read a stored plan: {message}"))
        })?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        for table in &self.tables {
            if let Err(error) = table.target.schema.check() {
                return Err(format!("table `{}`: {}", table.source_name, error.message()));
            }
            if table.first_link.0 as usize > self.chain.len() {
                return Err(format!("table `{}` begins beyond the chain", table.source_name));
            }
        }
        for shard in self.steps.iter().flat_map(|step| &step.shards) {
            let is_there =
                self.tables.get(shard.table as usize).is_some_and(|table| match shard.piece {
                    Piece::Apply(shard) => (shard.0 as usize) < table.target.shards.len(),
                    Piece::Merge(run) => (run as usize) < table.runs.runs.len(),
                });
            if !is_there {
                return Err(format!("{:?} of table {} does not exist", shard.piece, shard.table));
            }
        }
        Ok(())
    }

    /// Work of all steps and the proof, for progress.
    pub fn planned(&self) -> Planned {
        let of_step = |step: &PlanStep| {
            let mut work = Work::default();
            step.shards.iter().for_each(|shard| work += shard.work());
            work
        };
        Planned { steps: self.steps.iter().map(of_step).collect(), proof_bytes: self.proof_bytes }
    }

    /// The step at `step`, which the machine only asks for if it is there.
    ///
    /// # Errors
    /// [`Kind::Broken`] for a step beyond the plan: the catalog contradicts itself.
    pub fn step(&self, step: StepIdx) -> Result<&PlanStep> {
        self.steps.get(step.0 as usize).ok_or_else(|| {
            let message =
                format!("step {step} is beyond the plan, which has {} steps", self.steps.len());
            Error::new(Kind::Broken, message)
        })
    }
}

impl PlanShard {
    /// Its work.
    pub fn work(&self) -> Work {
        Work { rows: self.rows, bytes: self.bytes }
    }
}

/// The name that each selected table gets.
fn target_names(options: &RestoreOptions, chains: &[TableChain<'_>]) -> Result<Vec<TableName>> {
    let renames = options.parsed_renames()?;
    for (from, _) in &renames {
        if !chains.iter().any(|chain| chain.table.name == *from) {
            let message =
                format!("--rename {from}=…: table `{from}` is not among the tables to be restored");
            return Err(Error::new(Kind::NotFound, message));
        }
    }
    let renamed = |name: &TableName| {
        let rename = renames.iter().find(|(from, _)| from == name);
        match (rename, &options.into_schema) {
            (Some((_, to)), _) => to.clone(),
            (None, Some(schema)) => {
                TableName::new(schema, name.name()).expect("the schema is a name: checked")
            }
            (None, None) => name.clone(),
        }
    };
    let names: Vec<TableName> = chains.iter().map(|chain| renamed(&chain.table.name)).collect();
    let mut seen = std::collections::BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        None => Ok(names),
        Some(twice) => {
            let message = format!("two tables would be restored as `{twice}`; rename one of them");
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// Plans one table; nothing for a copy that stands at the restore point already.
fn plan_table(
    inputs: &PlanInputs<'_>,
    chain: &TableChain<'_>,
    name: TableName,
    notices: &mut Vec<String>,
) -> Result<Option<PlanTable>> {
    let entry = chain.table;
    if entry.schema.key.is_empty() {
        let message = format!(
            "table `{}` has no key, and this target keeps rows by key; restore the others with \
             --table, or restore it into a database that has tables without keys",
            entry.name
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let existing = inputs.existing.existing(&name)?;
    if inputs.options.roll_forward {
        return roll_forward(inputs, chain, name, existing, notices);
    }
    let disposition = match (&existing, inputs.options.replace) {
        (None, _) => Disposition::Fresh,
        (Some(_), true) => Disposition::Replace,
        (Some(existing), false) => {
            return Err(in_the_way(&name, &entry.name, existing));
        }
    };
    let count = inputs.options.shards.unwrap_or_else(|| cut::shard_count(chain.row_bytes()));
    let shards = cut::cut(chain, count);
    if inputs.options.shards.is_some_and(|asked| (shards.len() as u64) < u64::from(asked)) {
        notices.push(format!(
            "table `{name}` gets {} shards, not {count}: its backup tells no more keys apart",
            shards.len()
        ));
    }
    let first_link = chain.links[0].link;
    Ok(Some(new_table(inputs, entry, name, shards, disposition, first_link)))
}

/// The refusal of a restore whose name is taken.
fn in_the_way(name: &TableName, source_name: &TableName, existing: &ExistingTable) -> Error {
    let rows = existing.rows;
    let message = if existing.is_held() {
        format!(
            "a held copy `{name}` is in the target ({rows} rows), which no reader sees: a restore \
             with --hold left it; move it on and show it with `--continue`, remove it with \
             `tidemark db drop`, restore beside it with `--rename {source_name}=NEW_NAME`, or in \
             its place with `--replace`"
        )
    } else {
        format!(
            "a table `{name}` exists in the target ({rows} rows); restore beside it with \
             `--rename {source_name}=NEW_NAME`, or in its place with `--replace`"
        )
    };
    Error::new(Kind::InTheWay, message)
}

fn new_table(
    inputs: &PlanInputs<'_>,
    entry: &TableEntry,
    name: TableName,
    shards: Vec<KeyRange>,
    disposition: Disposition,
    first_link: LinkIdx,
) -> PlanTable {
    let target = TargetTable {
        name,
        id: entry.id,
        digest_id: entry.digest_id,
        schema: entry.schema.clone(),
        shards,
        disposition,
        origin: Origin {
            collection: inputs.collection,
            manifest: inputs.chain.point().entry.manifest.clone(),
        },
        structure: entry.structure.clone(),
    };
    PlanTable {
        source_name: entry.name.clone(),
        target,
        state: entry.state,
        first_link,
        runs: RunPlan::default(),
        proof_runs: RunPlan::default(),
        proof_read_bytes: 0,
    }
}

/// Plans to move a copy on from the restore point it stands at.
fn roll_forward(
    inputs: &PlanInputs<'_>,
    chain: &TableChain<'_>,
    name: TableName,
    existing: Option<ExistingTable>,
    notices: &mut Vec<String>,
) -> Result<Option<PlanTable>> {
    let point = &inputs.chain.point().entry.directory;
    let Some(existing) = existing else {
        // A table that is new since the copy was made comes whole.
        notices.push(format!("table `{name}` is not in the target yet: it is restored whole"));
        let shards = cut::cut(chain, cut::shard_count(chain.row_bytes()));
        let first = chain.links[0].link;
        let table = new_table(inputs, chain.table, name, shards, Disposition::Fresh, first);
        return Ok(Some(table));
    };
    let refuse = |found: String| {
        let message = format!(
            "table `{name}` cannot be moved on to `{point}`: {found}; restore it anew with \
             --replace, or beside it with --rename"
        );
        Err(Error::new(Kind::InTheWay, message))
    };
    let Some(copy) = &existing.copy else {
        return refuse("it is not a restored copy".to_owned());
    };
    if copy.origin.collection != inputs.collection || existing.digest_id != chain.table.digest_id {
        return refuse("it is a copy of another table or collection".to_owned());
    }
    if copy.written_to {
        return refuse("it was written to since it was restored".to_owned());
    }
    if inputs.options.hold && !copy.held {
        let message = format!(
            "table `{name}` is visible, and --hold would hide it from its readers; leave --hold \
             out, or make a held copy beside it with --rename and without --continue"
        );
        return Err(Error::new(Kind::InTheWay, message));
    }
    let links = inputs.chain.links();
    let stands_at = links.iter().position(|link| link.entry.manifest == copy.origin.manifest);
    let Some(stands_at) = stands_at else {
        return refuse("the backup it was restored from is not on the way there".to_owned());
    };
    let next = LinkIdx(stands_at as u32 + 1);
    let stands_there = stands_at + 1 == links.len();
    if stands_there && (inputs.options.hold || !copy.held) {
        return Ok(None);
    }
    let whole = chain.links[0].link;
    if whole >= next {
        notices.push(format!("table `{name}` comes whole again in a newer backup: it is replaced"));
        let shards = cut::cut(chain, cut::shard_count(chain.row_bytes()));
        let replaced = Disposition::ReplaceCopy { table: existing.id };
        let table = new_table(inputs, chain.table, name, shards, replaced, whole);
        return Ok(Some(table));
    }
    let shards = existing.shards;
    Ok(Some(new_table(inputs, chain.table, name, shards, Disposition::RollForward, next)))
}

/// Plans the fold that proves a table whose backup recorded no digest of the source.
fn plan_proof(table: &mut PlanTable, chain: &TableChain<'_>, memory_bytes: u64) -> Result<()> {
    if table.state.is_some() {
        return Ok(());
    }
    let links = links_between(chain, LinkIdx(0), None);
    table.proof_runs = memory::proof_runs(memory_bytes, &links)?;
    let merged: u64 = table.proof_runs.runs.iter().map(|run| run.row_bytes).sum();
    table.proof_read_bytes = merged + chain.row_bytes();
    Ok(())
}

/// The links that hold rows of a table, from `first` on, in a step or in all of them.
pub(super) fn links_between<'a>(
    chain: &TableChain<'a>,
    first: LinkIdx,
    step: Option<(LinkIdx, LinkIdx)>,
) -> Vec<TableLink<'a>> {
    let (from, to) = step.unwrap_or((first, LinkIdx(u32::MAX)));
    let mut links = chain.links.clone();
    links.retain(|link| {
        // The whole one makes every shard, empty ones included.
        let holds_rows = !link.entry.parts.is_empty() || link.entry.mode == TableMode::Whole;
        holds_rows && (from.max(first)..=to).contains(&link.link)
    });
    links
}

fn plan_kind(inputs: &PlanInputs<'_>) -> PlanKind {
    inputs.options.plan.unwrap_or(if inputs.options.roll_forward {
        PlanKind::Sequential
    } else {
        PlanKind::Fold
    })
}

/// The steps: one for a fold, one per link otherwise.
fn steps(
    inputs: &PlanInputs<'_>,
    tables: &[PlanTable],
    links: &[Vec<TableLink<'_>>],
) -> Vec<PlanStep> {
    let last = LinkIdx(inputs.chain.links().len() as u32 - 1);
    let first = tables.iter().map(|table| table.first_link).min().unwrap_or(last).min(last);
    let spans: Vec<(LinkIdx, LinkIdx)> = match plan_kind(inputs) {
        PlanKind::Fold => vec![(first, last)],
        PlanKind::Sequential => {
            (first.0..=last.0).map(|link| (LinkIdx(link), LinkIdx(link))).collect()
        }
    };
    let step = |span| PlanStep { links: span, shards: step_shards(span, tables, links) };
    spans.into_iter().map(step).collect()
}

fn step_shards(
    span: (LinkIdx, LinkIdx),
    tables: &[PlanTable],
    links: &[Vec<TableLink<'_>>],
) -> Vec<PlanShard> {
    let mut shards = Vec::new();
    for (table, (plan, links)) in (0u32..).zip(tables.iter().zip(links)) {
        let inside: Vec<&TableLink<'_>> =
            links.iter().filter(|link| (span.0..=span.1).contains(&link.link)).collect();
        // A table that a backup does not change needs no shard in its step.
        if inside.is_empty() {
            continue;
        }
        for (shard, range) in (0u32..).zip(&plan.target.shards) {
            let mut work = Work::default();
            inside.iter().for_each(|link| work += cut::work_in(link, range));
            let Work { rows, bytes } = work;
            shards.push(PlanShard { table, piece: Piece::Apply(ShardIdx(shard)), rows, bytes });
        }
    }
    shards
}

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "restore point #{} `{}`, a chain of {} backups, {} steps",
            self.point.sequence,
            self.point.directory,
            self.chain.len(),
            self.steps.len()
        )?;
        let total = self.planned().total();
        writeln!(
            f,
            "about {} rows and {} to read",
            total.rows,
            ByteSize(total.bytes - self.proof_bytes)
        )?;
        for table in &self.tables {
            let how = match table.target.disposition {
                Disposition::Fresh => "new",
                Disposition::Replace => "replaces the table of that name",
                Disposition::ReplaceCopy { .. } => "replaces the copy",
                Disposition::RollForward => "moves the copy on",
            };
            let proof = if table.state.is_some() { "chain and source" } else { "chain" };
            let (how, from) = match self.chain.get(table.first_link.0 as usize) {
                Some(first) => (how, format!(", from backup #{}", first.sequence)),
                None => ("shows the held copy", String::new()),
            };
            writeln!(
                f,
                "  {} -> {}: {how}, {} shards{from}, proof against {proof}",
                table.source_name,
                table.target.name,
                table.target.shards.len(),
            )?;
        }
        self.notices.iter().try_for_each(|notice| writeln!(f, "  note: {notice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ColumnId, Sequence, TableId};
    use crate::row::{LogicalType, Schema};

    fn plan() -> RestorePlan {
        let name = TableName::parse("t").unwrap();
        let manifest = "ab".repeat(32);
        let directory = "20260131093000Z_full".to_owned();
        let point = PlanLink { sequence: Sequence(1), directory, manifest: manifest.clone() };
        let target = TargetTable {
            name: name.clone(),
            id: TableId(1),
            digest_id: TableId(1),
            schema: Schema::new(&[("k", LogicalType::Int64)], &["k"]).unwrap(),
            shards: KeyRange::between(&[vec![5]]),
            disposition: Disposition::Fresh,
            origin: Origin { collection: CollectionId(7), manifest },
            structure: None,
        };
        let table = PlanTable {
            source_name: name,
            target,
            state: None,
            first_link: LinkIdx(0),
            runs: RunPlan::default(),
            proof_runs: RunPlan::default(),
            proof_read_bytes: 9,
        };
        let piece = Piece::Apply(ShardIdx(1));
        let shards = vec![PlanShard { table: 0, piece, rows: 1, bytes: 9 }];
        RestorePlan {
            chain: vec![point.clone()],
            point,
            publish: Publish::Visible,
            tables: vec![table],
            steps: vec![PlanStep { links: (LinkIdx(0), LinkIdx(0)), shards }],
            proof_bytes: 1,
            window: 1,
            window_max: 1,
            notices: Vec::new(),
        }
    }

    #[test]
    fn a_stored_plan_reads_back_and_one_that_names_what_it_lacks_is_refused() {
        assert_eq!(RestorePlan::from_bytes(&plan().to_bytes()).unwrap(), plan());
        type Change = fn(&mut RestorePlan);
        let changes: [(&str, Change); 5] = [
            ("key column 7", |plan| plan.tables[0].target.schema.key = vec![ColumnId(7)]),
            ("beyond the chain", |plan| plan.tables[0].first_link = LinkIdx(2)),
            ("does not exist", |plan| plan.steps[0].shards[0].table = 1),
            ("does not exist", |plan| plan.steps[0].shards[0].piece = Piece::Merge(0)),
            ("does not exist", |plan| {
                plan.steps[0].shards[0].piece = Piece::Apply(ShardIdx(2));
            }),
        ];
        for (says, change) in changes {
            let mut plan = plan();
            change(&mut plan);
            let error = RestorePlan::from_bytes(&plan.to_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Broken, "{says}");
            assert!(error.message().contains(says), "{error}");
        }
    }
}
