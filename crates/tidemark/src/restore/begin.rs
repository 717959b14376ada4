//! Beginning a restore, or carrying on the one that the same command began.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::job::RestoreJob;
use super::options::{PlanLink, ResolvedRestore, RestoreOptions};
use super::plan::{ExistingTables, PlanInputs, RestorePlan};
use crate::catalog::{Catalog, OperationRecord, Verb};
use crate::collection::chain::show_time;
use crate::collection::{Chain, Collection, RestorePoint};
use crate::database::{ExistingTable, Target, TargetLimits};
use crate::env::{Env, WallTime};
use crate::error::{Error, Kind, Result};
use crate::executor::begin::{self, Asked, NewOperation};
use crate::ids::{CollectionId, OperationId, Sequence, TableName};
use crate::operation::{Phase, State};

/// From where to where, as people named them.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The collection.
    pub collection: &'a str,
    /// The target.
    pub target: &'a str,
}

/// A restore that is recorded and can be driven.
#[derive(Debug)]
pub struct BegunRestore {
    /// Its number.
    pub id: OperationId,
    /// Whether it was there already.
    pub is_resumed: bool,
    /// What the executor drives.
    pub job: RestoreJob,
    /// What people should know now.
    pub notices: Vec<String>,
}

/// Begins a restore, or finds the unfinished one of the same identity, pinned to the restore
/// point it had the first time.
///
/// # Errors
/// Everything [`RestorePlan::new`] refuses, before anything is recorded, and so are a chain that
/// lost an object ([`Kind::Broken`]) and a name that another operation has reserved
/// ([`Kind::InTheWay`]); [`Kind::Usage`] for an unfinished one with other options; what reading
/// the collection gives.
pub fn begin_restore(
    catalog: &dyn Catalog,
    target: Arc<dyn Target>,
    collection: Arc<Collection>,
    route: Route<'_>,
    options: &RestoreOptions,
    room: &Room,
    env: &dyn Env,
) -> Result<BegunRestore> {
    options.check()?;
    let identity = identity(collection.id(), &target.identity()?, options);
    if let Some(found) = begin::unfinished::<_, ResolvedRestore>(catalog, &identity, options)? {
        let (planned, given) = (found.resolved.memory_bytes, room.memory_bytes);
        if planned != given {
            // The plan cut its shards and merges for that much.
            let differs = format!("`memory` was {planned} bytes, now it is {given}");
            return Err(begin::other_options(found.id, &found.record, &[differs]));
        }
        return carry_on(catalog, found.id, &found.record, target, collection, &room.scratch);
    }
    let chain = collection.chain(&RestorePoint::parse(&options.at)?)?;
    let plan = make_plan(&*target, &collection, &chain, options, room)
        .map_err(|error| told_as_done(catalog, &identity, options, error))?;
    let resolved = ResolvedRestore {
        collection_shown: route.collection.to_owned(),
        target_shown: route.target.to_owned(),
        collection: collection.id(),
        point: plan.point.clone(),
        memory_bytes: room.memory_bytes,
    };
    let bytes = plan.to_bytes();
    let title = title(route, &plan.point, options);
    let new = NewOperation {
        verb: Verb::Restore,
        identity: &identity,
        title: &title,
        plan: &bytes,
        step_count: plan.steps.len() as u32,
        at: env.wall_time(),
    };
    let state = State::new(plan.planned(), plan.window);
    let id = begin::record(catalog, &new, Asked { options, resolved: &resolved }, &state)?;
    let notices = plan.notices.clone();
    let job = RestoreJob::new(target, collection, chain, plan, &room.scratch)?;
    Ok(BegunRestore { id, is_resumed: false, job, notices })
}

/// What a restore may use.
#[derive(Clone, Debug)]
pub struct Room {
    /// Shards in flight, at most.
    pub window: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Folder for sorted runs; what an operation puts there goes with its end.
    pub scratch: PathBuf,
}

/// The job of a recorded restore, for whoever drives it by its number.
///
/// # Errors
/// [`Kind::Broken`] when the chain is not the one that was planned, with what differs.
pub fn resume_restore(
    catalog: &dyn Catalog,
    id: OperationId,
    target: Arc<dyn Target>,
    collection: Arc<Collection>,
    scratch: &Path,
) -> Result<BegunRestore> {
    let record = catalog.operation(id)?;
    carry_on(catalog, id, &record, target, collection, scratch)
}

/// The plan that the same call of [`begin_restore`] would record; nothing is written.
///
/// # Errors
/// As [`begin_restore`].
pub fn plan_restore(
    target: &dyn Target,
    collection: &Collection,
    options: &RestoreOptions,
    room: &Room,
) -> Result<RestorePlan> {
    options.check()?;
    let chain = collection.chain(&RestorePoint::parse(&options.at)?)?;
    make_plan(target, collection, &chain, options, room)
}

/// The plan, once nothing that can be seen before stands against it: what is found only
/// afterwards leaves an operation that somebody has to cancel.
fn make_plan(
    target: &dyn Target,
    collection: &Collection,
    chain: &Chain,
    options: &RestoreOptions,
    room: &Room,
) -> Result<RestorePlan> {
    let existing = &InTarget(target);
    let (window, memory_bytes) = (room.window, room.memory_bytes);
    let of = collection.id();
    let inputs = PlanInputs { collection: of, chain, options, existing, window, memory_bytes };
    let plan = RestorePlan::new(&inputs)?;
    plan.tables.iter().try_for_each(|table| target.check_unreserved(&table.target.name))?;
    collection.check_present(chain)?;
    Ok(plan)
}

/// Verb, collection, target, tables and renames as typed.
fn identity(collection: CollectionId, target: &str, options: &RestoreOptions) -> String {
    let typed = (&options.tables, &options.renames);
    let typed = serde_json::to_string(&typed).expect("options are plain data");
    match &options.into_schema {
        None => format!("restore|{collection}|{target}|{typed}"),
        Some(schema) => format!("restore|{collection}|{target}|{typed}|{schema}"),
    }
}

/// What tells a restore from others in a list: "restore of `x` at #3 into `y`, `a` as `b`".
fn title(route: Route<'_>, point: &PlanLink, options: &RestoreOptions) -> String {
    /// Tables named at most; an operation's record has them all.
    const SHOWN_MAX: usize = 3;
    let renamed = |table: &String| options.renames.iter().any(|(from, _)| from == table);
    let selected = options.tables.iter().filter(|table| !renamed(table));
    let named: Vec<String> = selected
        .map(|table| format!("`{table}`"))
        .chain(options.renames.iter().map(|(from, to)| format!("`{from}` as `{to}`")))
        .collect();
    let mut title =
        format!("restore of `{}` at #{} into `{}`", route.collection, point.sequence, route.target);
    named.iter().take(SHOWN_MAX).for_each(|named| title.push_str(&format!(", {named}")));
    if named.len() > SHOWN_MAX {
        title.push_str(&format!(", and {} more", named.len() - SHOWN_MAX));
    }
    title
}

/// The refusal of a restore that finds its target in the way, with the operation that did the
/// same before: a process that died between the end of its work and its exit never said so.
fn told_as_done(
    catalog: &dyn Catalog,
    identity: &str,
    options: &RestoreOptions,
    error: Error,
) -> Error {
    if error.kind() != Kind::InTheWay || options.roll_forward {
        return error;
    }
    // What cannot be read is no reason to hide what is in the way.
    let Ok(Some((id, point, ended))) = last_done(catalog, identity) else { return error };
    let ended = ended.map_or_else(String::new, |ended| format!(" at {}", show_time(ended)));
    error.context(format!(
        "operation {id} restored `{point}` under the same names, and was done{ended}"
    ))
}

/// The newest restore of that identity that is done, with its restore point and its end.
fn last_done(
    catalog: &dyn Catalog,
    identity: &str,
) -> Result<Option<(OperationId, String, Option<WallTime>)>> {
    for id in catalog.list()?.into_iter().rev() {
        let record = catalog.operation(id)?;
        if record.identity != identity {
            continue;
        }
        let stored = catalog.state(id)?;
        if matches!(stored.state.phase, Phase::Done { .. }) {
            let resolved: ResolvedRestore = begin::resolved(&record)?;
            return Ok(Some((id, resolved.point.directory, stored.ended_at)));
        }
    }
    Ok(None)
}

fn carry_on(
    catalog: &dyn Catalog,
    id: OperationId,
    record: &OperationRecord,
    target: Arc<dyn Target>,
    collection: Arc<Collection>,
    scratch: &Path,
) -> Result<BegunRestore> {
    let resolved: ResolvedRestore = begin::resolved(record)?;
    if resolved.collection != collection.id() {
        let message = format!(
            "resume operation {id}: it restores from collection {}, `{}` is {}",
            resolved.collection,
            collection.store(),
            collection.id()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    // The plan is the one that was recorded: made anew it would meet the operation's own
    // hidden tables and marks. The chain it was made from must still be the same.
    let bytes = catalog.plan(id)?;
    if blake3::hash(&bytes).to_hex().to_string() != record.plan_hash {
        let message = format!("resume operation {id}: its stored plan is not the recorded one");
        return Err(Error::new(Kind::Broken, message));
    }
    let plan = RestorePlan::from_bytes(&bytes)?;
    let chain = collection.chain(&RestorePoint::Sequence(plan.point.sequence))?;
    check_chain(id, &plan, &chain)?;
    let newer = newer_points(
        collection.log_to_flaw()?.0.iter().map(|entry| entry.sequence),
        plan.point.sequence,
    );
    let mut notices = vec![format!("resuming {id}, pinned to {}", plan.point.directory)];
    if newer > 0 {
        notices[0].push_str(&format!("; {newer} newer restore points exist"));
    }
    notices.extend(plan.notices.iter().cloned());
    let job = RestoreJob::new(target, collection, chain, plan, scratch)?;
    Ok(BegunRestore { id, is_resumed: true, job, notices })
}

/// Restore points after the pinned one. The log may have lost some since the chain was read.
fn newer_points(log: impl Iterator<Item = Sequence>, pinned: Sequence) -> usize {
    log.filter(|sequence| *sequence > pinned).count()
}

/// Refuses a chain other than the planned one, naming the first backup that differs.
fn check_chain(id: OperationId, plan: &RestorePlan, chain: &Chain) -> Result<()> {
    let now: Vec<PlanLink> = chain.links().iter().map(PlanLink::from).collect();
    if now == plan.chain {
        return Ok(());
    }
    let differs = plan.chain.iter().zip(&now).find(|(planned, found)| planned != found);
    let what = match differs {
        Some((planned, found)) => format!(
            "backup #{} was `{}` with manifest {}, now it is `{}` with manifest {}",
            planned.sequence, planned.directory, planned.manifest, found.directory, found.manifest
        ),
        None => format!("it had {} backups, now it has {}", plan.chain.len(), now.len()),
    };
    let message = format!(
        "resume operation {id}: the chain is not the one that was planned: {what}; cancel it with \
         `tidemark operation cancel {id}` and restore anew"
    );
    Err(Error::new(Kind::Broken, message))
}

/// Looks names up in a target.
#[derive(Debug)]
struct InTarget<'a>(&'a dyn Target);

impl ExistingTables for InTarget<'_> {
    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        self.0.existing(name)
    }

    fn limits(&self) -> Result<TargetLimits> {
        self.0.limits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_shorter_than_the_pinned_point_has_nothing_newer() {
        for (pinned, newer) in [(1, 2), (3, 0), (4, 0), (9, 0)] {
            assert_eq!(
                newer_points((1..=3).map(Sequence), Sequence(pinned)),
                newer,
                "pinned to {pinned}"
            );
        }
    }
}
