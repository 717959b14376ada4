//! Fuzz target of stored plans, and plans of manifests that the one of manifests has believed.

use super::plan::{ExistingTables, PlanInputs, RestorePlan};
use super::{PlanKind, RestoreOptions};
use crate::collection::Chain;
use crate::database::{ExistingTable, TargetLimits};
use crate::error::Result;
use crate::ids::{CollectionId, StepIdx, TableName};
use crate::row::RowCodec;

#[derive(Debug)]
struct Nothing;

impl ExistingTables for Nothing {
    fn existing(&self, _: &TableName) -> Result<Option<ExistingTable>> {
        Ok(None)
    }

    fn limits(&self) -> Result<TargetLimits> {
        Ok(TargetLimits { shards_max: Some(1000), shards_now: 0, key_bytes_max: Some(511) })
    }
}

/// Plans a restore of all tables of `chain` that have a key, in both ways; gives the plans that
/// can be made.
pub(crate) fn plans_of(chain: &Chain, collection: CollectionId) -> Vec<RestorePlan> {
    let keyed = chain.point().manifest.tables.iter().filter(|table| !table.schema.key.is_empty());
    let tables: Vec<String> = keyed.map(|table| table.name.to_string()).collect();
    let kinds = [PlanKind::Fold, PlanKind::Sequential].into_iter();
    kinds
        .filter_map(|kind| {
            let tables = tables.clone();
            let options = RestoreOptions { tables, plan: Some(kind), ..RestoreOptions::default() };
            RestorePlan::new(&PlanInputs {
                collection,
                chain,
                options: &options,
                existing: &Nothing,
                window: 10,
                memory_bytes: 64 << 20,
            })
            .ok()
        })
        .inspect(|plan| drop(plan.to_string()))
        .collect()
}

/// What carrying on a restore does with a stored plan before it reads a row.
pub(crate) fn plan(input: &[u8]) {
    let Ok(plan) = RestorePlan::from_bytes(input) else { return };
    let written = plan.to_bytes();
    assert_eq!(RestorePlan::from_bytes(&written).ok().as_ref(), Some(&plan), "reads as another");
    plan.planned();
    plan.to_string();
    let _ = plan.step(StepIdx(plan.steps.len() as u32));
    for table in &plan.tables {
        RowCodec::new(&table.target.schema);
    }
}

pub(crate) fn plan_seeds() -> Vec<Vec<u8>> {
    let (chain, collection) = crate::collection::fuzz::small_chain();
    plans_of(&chain, collection).iter().map(RestorePlan::to_bytes).collect()
}
