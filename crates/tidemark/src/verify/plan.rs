//! What is looked at: parts and folds, always in the same order.

use std::sync::Arc;

use serde::Serialize;

use super::ResolvedVerify;
use super::fold::is_told_by_parts;
use crate::collection::chain::{TableChain, chain_ends};
use crate::collection::check::{Level, check_entries, check_log};
use crate::collection::flaw::Flaw;
use crate::collection::log::LogToFlaw;
use crate::collection::manifest::{LogEntry, Manifest, PartEntry, TableEntry};
use crate::collection::unlisted::UnlistedBackup;
use crate::collection::{Chain, Collection, RestorePoint};
use crate::error::{Kind, Result};
use crate::ids::{ShardIdx, StepIdx, TableName};
use crate::operation::Work;

/// The step in which parts are read.
pub(super) const PARTS: StepIdx = StepIdx(0);
/// The step in which chains are folded.
pub(super) const FOLDS: StepIdx = StepIdx(1);

/// Everything that a verification looks at, and what is wrong at first sight.
#[derive(Debug)]
pub(super) struct VerifyPlan {
    pub(super) level: Level,
    pub(super) backups: u64,
    /// Flaws of documents and missing objects.
    pub(super) flaws: Vec<Flaw>,
    /// Whole backups behind the end of the log.
    pub(super) unlisted: Vec<UnlistedBackup>,
    manifests: Vec<Arc<Manifest>>,
    parts: Vec<PartPosition>,
    chains: Vec<Chain>,
    folds: Vec<FoldPosition>,
    tables: Vec<TableName>,
}

#[derive(Clone, Copy, Debug)]
struct PartPosition {
    manifest: usize,
    table: usize,
    part: usize,
}

#[derive(Clone, Copy, Debug)]
struct FoldPosition {
    chain: usize,
    /// In the tables of the chain's end.
    table: usize,
}

/// One part to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedPart<'p> {
    pub(super) directory: &'p str,
    pub(super) table: &'p TableEntry,
    pub(super) part: &'p PartEntry,
}

impl PlannedPart<'_> {
    /// Path inside the collection.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.directory, self.part.name)
    }
}

/// What a resume compares: all that decides which shard is which.
#[derive(Serialize)]
struct PlanText<'p> {
    level: Level,
    parts: Vec<(&'p str, &'p str, u64, &'p str)>,
    folds: Vec<(&'p str, &'p TableName)>,
}

impl VerifyPlan {
    /// Reads the documents of the pinned backups.
    ///
    /// # Errors
    /// What keeps us from looking: the store fails, or a document is of another major version.
    pub(super) fn read(
        collection: &Collection,
        level: Level,
        resolved: &ResolvedVerify,
    ) -> Result<VerifyPlan> {
        let mut plan = VerifyPlan {
            level,
            backups: 0,
            flaws: Vec::new(),
            unlisted: Vec::new(),
            manifests: Vec::new(),
            parts: Vec::new(),
            chains: Vec::new(),
            folds: Vec::new(),
            tables: Vec::new(),
        };
        let LogToFlaw { entries: log, flaw } = check_log(collection)?;
        if flaw.is_none() && resolved.last.0 >= log.len() as u64 {
            plan.unlisted = collection.unlisted_backups()?;
        }
        let is_pinned =
            |entry: &&LogEntry| entry.sequence >= resolved.first && entry.sequence <= resolved.last;
        let entries: Vec<LogEntry> = log.iter().filter(is_pinned).cloned().collect();
        let manifests = &mut plan.manifests;
        let report =
            check_entries(collection, &entries, &mut |manifest| manifests.push(manifest.into()))?;
        plan.backups = report.backups;
        plan.flaws = flaw.into_iter().chain(report.flaws).collect();
        if level >= Level::Parts {
            plan.add_parts();
        }
        if level >= Level::Rows {
            plan.add_folds(collection, &entries)?;
        }
        plan.add_tables();
        Ok(plan)
    }

    fn add_parts(&mut self) {
        for (manifest, document) in self.manifests.iter().enumerate() {
            for (table, entry) in document.tables.iter().enumerate() {
                let parts = 0..entry.parts.len();
                self.parts.extend(parts.map(|part| PartPosition { manifest, table, part }));
            }
        }
    }

    fn add_folds(&mut self, collection: &Collection, entries: &[LogEntry]) -> Result<()> {
        for end in chain_ends(entries) {
            let point = RestorePoint::Sequence(end);
            let resolved = Chain::resolve(entries, &point, &mut |entry| collection.manifest(entry));
            let chain = match resolved {
                Ok(chain) => chain,
                Err(error) if error.kind() == Kind::Broken => {
                    // The documents' own check has mostly told it; a chain without a beginning
                    // it could not.
                    if self.flaws.is_empty() {
                        let object = format!("the chain that ends at backup {end}");
                        self.flaws.push(Flaw::new(object, error.message(), "a whole chain"));
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let at = self.chains.len();
            let with_state =
                chain.point().manifest.tables.iter().enumerate().filter(|(_, t)| t.state.is_some());
            self.folds.extend(with_state.map(|(table, _)| FoldPosition { chain: at, table }));
            self.chains.push(chain);
        }
        Ok(())
    }

    fn add_tables(&mut self) {
        let parts = (0..self.parts.len()).map(|at| self.part_at(at).table.name.clone());
        let folds = self.folds.iter().map(|fold| self.folded(*fold).name.clone());
        let mut tables: Vec<TableName> = parts.chain(folds).collect();
        tables.sort();
        tables.dedup();
        self.tables = tables;
    }

    /// The plan's bytes: equal when every shard means what it meant.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let text = PlanText {
            level: self.level,
            parts: (0..self.parts.len())
                .map(|at| {
                    let PlannedPart { directory, part, .. } = self.part_at(at);
                    (directory, part.name.as_str(), part.bytes, part.blake3.as_str())
                })
                .collect(),
            folds: self
                .folds
                .iter()
                .map(|fold| {
                    let point = self.chains[fold.chain].point();
                    (point.entry.manifest.as_str(), &self.folded(*fold).name)
                })
                .collect(),
        };
        serde_json::to_vec(&text).expect("a plan is plain data")
    }

    /// Steps of the plan.
    pub(super) fn step_count(&self) -> u32 {
        if self.folds.is_empty() { 1 } else { 2 }
    }

    /// Work of each shard of a step; never without bytes, since 0 done stands for a flaw.
    pub(super) fn planned(&self, step: StepIdx) -> Vec<Work> {
        match step {
            PARTS => (0..self.parts.len()).map(|at| self.part_work(at)).collect(),
            _ => self.folds.iter().map(|fold| self.fold_work(*fold)).collect(),
        }
    }

    /// Work of one shard.
    pub(super) fn planned_shard(&self, step: StepIdx, shard: ShardIdx) -> Option<Work> {
        let at = usize::try_from(shard.0).ok()?;
        match step {
            PARTS => (at < self.parts.len()).then(|| self.part_work(at)),
            _ => self.folds.get(at).map(|fold| self.fold_work(*fold)),
        }
    }

    fn part_work(&self, at: usize) -> Work {
        let part = self.part_at(at).part;
        // Hashed, and decoded at level rows: both read the whole object.
        let passes = if self.level >= Level::Rows { 2 } else { 1 };
        Work { rows: part.rows, bytes: part.bytes.saturating_mul(passes).max(1) }
    }

    fn fold_work(&self, fold: FoldPosition) -> Work {
        // A table that leads nowhere is found out when its shard runs.
        let chain = self.table_chain(fold).ok().flatten();
        let read = |chain: &TableChain<'_>| !is_told_by_parts(chain);
        let (rows, bytes) =
            chain.filter(read).map_or((0, 0), |chain| (chain.rows(), chain.bytes()));
        Work { rows, bytes: bytes.max(1) }
    }

    /// The part that a shard of [`PARTS`] reads.
    pub(super) fn part(&self, shard: ShardIdx) -> Option<PlannedPart<'_>> {
        let at = usize::try_from(shard.0).ok()?;
        (at < self.parts.len()).then(|| self.part_at(at))
    }

    fn part_at(&self, at: usize) -> PlannedPart<'_> {
        let PartPosition { manifest, table, part } = self.parts[at];
        let manifest = &self.manifests[manifest];
        let table = &manifest.tables[table];
        PlannedPart { directory: &manifest.directory, table, part: &table.parts[part] }
    }

    /// The table that a shard of [`FOLDS`] folds, and the name of its end.
    ///
    /// # Errors
    /// [`Kind::Broken`] when its links lead nowhere.
    pub(super) fn fold(&self, shard: ShardIdx) -> Result<Option<(&str, TableChain<'_>)>> {
        let Some(fold) = usize::try_from(shard.0).ok().and_then(|at| self.folds.get(at)) else {
            return Ok(None);
        };
        let point = &self.chains[fold.chain].point().entry.directory;
        Ok(self.table_chain(*fold)?.map(|chain| (point.as_str(), chain)))
    }

    /// Paths of the parts that a shard of [`FOLDS`] reads; none if they lead nowhere.
    pub(super) fn folded_paths(&self, shard: ShardIdx) -> impl Iterator<Item = String> {
        let chain = self.fold(shard).ok().flatten();
        chain.into_iter().flat_map(|(_, chain)| {
            let path = |directory: &str, part: &PartEntry| format!("{directory}/{}", part.name);
            chain
                .links
                .iter()
                .flat_map(|link| {
                    link.entry.parts.iter().map(move |part| path(link.directory, part))
                })
                .collect::<Vec<String>>()
        })
    }

    fn table_chain(&self, fold: FoldPosition) -> Result<Option<TableChain<'_>>> {
        let table = self.folded(fold);
        // The name as a pattern may select others as well.
        let chains = self.chains[fold.chain].tables(&[table.name.to_string()])?;
        Ok(chains.into_iter().find(|chain| chain.table.id == table.id))
    }

    fn folded(&self, fold: FoldPosition) -> &TableEntry {
        &self.chains[fold.chain].point().manifest.tables[fold.table]
    }

    /// What a shard is called in findings: the part's path, or backup and table.
    pub(super) fn object(&self, step: StepIdx, shard: ShardIdx) -> String {
        let at = shard.0 as usize;
        match step {
            PARTS => self.part_at(at).path(),
            _ => {
                let fold = self.folds[at];
                let point = &self.chains[fold.chain].point().entry.directory;
                format!("{point}, table {}", self.folded(fold).name)
            }
        }
    }

    /// Tables, sorted by name.
    pub(super) fn tables(&self) -> &[TableName] {
        &self.tables
    }

    /// Position in [`tables`](Self::tables) of a shard's table.
    pub(super) fn table_of(&self, step: StepIdx, shard: ShardIdx) -> Option<usize> {
        let at = usize::try_from(shard.0).ok()?;
        let name = match step {
            PARTS => &self.part(shard)?.table.name,
            _ => &self.folded(*self.folds.get(at)?).name,
        };
        self.tables.binary_search(name).ok()
    }

    /// Parts, their bytes and their rows.
    pub(super) fn part_totals(&self) -> (u64, u64, u64) {
        (0..self.parts.len())
            .map(|at| self.part_at(at).part)
            .fold((0, 0, 0), |(parts, bytes, rows), part| {
                (parts + 1, bytes + part.bytes, rows + part.rows)
            })
    }

    /// Tables to be folded.
    pub(super) fn fold_count(&self) -> u64 {
        self.folds.len() as u64
    }
}
