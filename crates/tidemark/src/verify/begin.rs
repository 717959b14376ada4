//! Recording a verification, or finding the unfinished one that the same command carries on.

use std::sync::Arc;

use super::job::VerifyJob;
use super::plan::{FOLDS, PARTS, VerifyPlan};
use super::{BegunVerify, ResolvedVerify, VerifyOptions, VerifyRequest};
use crate::catalog::{Catalog, OperationRecord, Verb};
use crate::collection::check::{check_log, checked_range};
use crate::collection::log::LogToFlaw;
use crate::collection::manifest::LogEntry;
use crate::collection::{Collection, RestorePoint, chain};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::executor::begin::{Asked, NewOperation, Unfinished};
use crate::executor::{self, Intent, Stop, Unobserved};
use crate::ids::{OperationId, Sequence};
use crate::operation::{Phase, Planned, Request, State, Work};
use crate::restore::Room;

/// Records a verification of the backups that there are now, or carries on the unfinished one
/// of the same collection, level and restore point.
///
/// One that was interrupted is carried on; one that has given its verdict, or whose backups
/// changed meanwhile, is ended, and a new one begins.
///
/// # Errors
/// [`Kind::Usage`] for text that is no restore point; [`Kind::NotFound`] for a point that does
/// not exist; what keeps us from reading the collection. Flaws are no errors here.
pub fn begin_verify<'c>(
    catalog: &'c dyn Catalog,
    request: &VerifyRequest<'_>,
    env: &dyn Env,
) -> Result<BegunVerify<'c>> {
    let point = request.options.at.as_deref().map(RestorePoint::parse).transpose()?;
    let identity = identity_of(&request.collection, request.options);
    let mut notices = Vec::new();
    if let Some(found) = executor::begin::unfinished(catalog, &identity, request.options)? {
        match carry_on(catalog, &found, request, env)? {
            Carried::On(begun) => return Ok(begun),
            Carried::Ended(notice) => notices.push(notice),
        }
    }
    let (first, last) = pinned(&request.collection, point.as_ref())?;
    let resolved = ResolvedVerify {
        collection: request.collection_shown.to_owned(),
        collection_id: request.collection.id(),
        first,
        last,
    };
    let plan = VerifyPlan::read(&request.collection, request.options.level, &resolved)?;
    let id = record(catalog, &identity, request, &resolved, &plan, env)?;
    let collection = Arc::clone(&request.collection);
    let job = VerifyJob::new(catalog, id, collection, plan, request.room.clone());
    Ok(BegunVerify { id, is_resumed: false, job, notices })
}

/// Carries on verification `id`, whatever its state: for `operation resume` and `cancel`.
///
/// After a verdict that found flaws, what was flawed is looked at again, and nothing else.
///
/// # Errors
/// [`Kind::Usage`] when `id` is no verification, or of another collection, or when the backups
/// that it was to look at have changed: cancel it and begin anew.
pub fn resume_verify<'c>(
    catalog: &'c dyn Catalog,
    id: OperationId,
    collection: Arc<Collection>,
    room: &Room,
) -> Result<BegunVerify<'c>> {
    let record = catalog.operation(id)?;
    let resolved = resolved_verify(&record)?;
    let options: VerifyOptions = executor::begin::options(&record)?;
    if collection.id() != resolved.collection_id {
        let message = format!(
            "operation {id} is a {}: the collection given is {}, not {}",
            record.title,
            collection.id(),
            resolved.collection_id
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let plan = VerifyPlan::read(&collection, options.level, &resolved)?;
    if !is_planned(&record, &plan) {
        let message = format!(
            "operation {id}: the collection changed since this verification began, so what was \
             done cannot be told from what was not; give it up with `tidemark operation cancel \
             {id}` and verify anew"
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let notices = vec![carrying_on(id, &record)];
    let job = VerifyJob::new(catalog, id, collection, plan, room.clone());
    Ok(BegunVerify { id, is_resumed: true, job, notices })
}

/// What a verification resolved when it was recorded: its place, to open it again.
///
/// # Errors
/// [`Kind::Usage`] for an operation that is no verification; [`Kind::Broken`] for a damaged
/// record.
pub fn resolved_verify(record: &OperationRecord) -> Result<ResolvedVerify> {
    if record.verb != Verb::Verify {
        let message = format!("a {} is no verification", record.title);
        return Err(Error::new(Kind::Usage, message));
    }
    executor::begin::resolved(record)
}

/// What becomes of an unfinished verification when the same command comes again.
enum Carried<'c> {
    On(BegunVerify<'c>),
    /// It is over; a sentence says why.
    Ended(String),
}

fn carry_on<'c>(
    catalog: &'c dyn Catalog,
    found: &Unfinished<ResolvedVerify>,
    request: &VerifyRequest<'_>,
    env: &dyn Env,
) -> Result<Carried<'c>> {
    let Unfinished { id, resolved, record } = found;
    let id = *id;
    let state = catalog.state(id)?.state;
    let plan = VerifyPlan::read(&request.collection, request.options.level, resolved)?;
    let is_planned = is_planned(record, &plan);
    let collection = Arc::clone(&request.collection);
    let job = VerifyJob::new(catalog, id, collection, plan, request.room.clone());
    let over = match &state.phase {
        Phase::Failed { failure, .. } if matches!(failure.kind, Kind::Broken | Kind::Mismatch) => {
            format!("operation {id} ended with flaws; this is a new verification")
        }
        _ if !is_planned => {
            format!("the collection changed since operation {id} began; this is a new verification")
        }
        _ => {
            if state.window != request.room.window.max(1) {
                catalog.steer(id, &Request::Window(request.room.window))?;
            }
            let notices = vec![carrying_on(id, record)];
            return Ok(Carried::On(BegunVerify { id, is_resumed: true, job, notices }));
        }
    };
    let (stop, observer) = (Stop::default(), &mut Unobserved);
    executor::run(catalog, &job, id, Intent::Cancel, env, &stop, observer)?;
    Ok(Carried::Ended(over))
}

fn carrying_on(id: OperationId, record: &OperationRecord) -> String {
    format!(
        "carrying on operation {id}, begun {}; parts that were clean are not read again",
        chain::show_time(record.created_at)
    )
}

fn is_planned(record: &OperationRecord, plan: &VerifyPlan) -> bool {
    blake3::hash(&plan.to_bytes()).to_hex().as_str() == record.plan_hash
}

/// The first and last backup that are looked at.
fn pinned(collection: &Collection, point: Option<&RestorePoint>) -> Result<(Sequence, Sequence)> {
    let LogToFlaw { entries: log, flaw } = check_log(collection)?;
    if flaw.is_some() && point.is_none() {
        // All that will be there: once the log is mended, it is another collection.
        return Ok((Sequence(1), Sequence(u64::MAX)));
    }
    let range = checked_range(collection, &log, flaw.as_ref(), point)?;
    let pinned: &[LogEntry] = &log[range];
    Ok(match (pinned.first(), pinned.last()) {
        (Some(first), Some(last)) => (first.sequence, last.sequence),
        _ => (Sequence(1), Sequence(0)),
    })
}

fn record(
    catalog: &dyn Catalog,
    identity: &str,
    request: &VerifyRequest<'_>,
    resolved: &ResolvedVerify,
    plan: &VerifyPlan,
    env: &dyn Env,
) -> Result<OperationId> {
    let mut steps = vec![Work::default(); plan.step_count() as usize];
    for (step, planned) in [PARTS, FOLDS].into_iter().zip(&mut steps) {
        plan.planned(step).into_iter().for_each(|work| *planned += work);
    }
    let title = format!("verification of `{}`", resolved.collection);
    let new = NewOperation {
        verb: Verb::Verify,
        identity,
        title: &title,
        plan: &plan.to_bytes(),
        step_count: plan.step_count(),
        at: env.wall_time(),
    };
    let state = State::new(Planned { steps, proof_bytes: 0 }, request.room.window);
    let asked = Asked { options: request.options, resolved };
    executor::begin::record(catalog, &new, asked, &state)
}

fn identity_of(collection: &Collection, options: &VerifyOptions) -> String {
    let at = options.at.as_deref().unwrap_or_default();
    format!("verify|{}|{}|{at}", collection.id(), options.level.name())
}
