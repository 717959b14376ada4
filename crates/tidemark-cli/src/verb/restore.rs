//! `restore`: any point of a chain, carried on by the same command.

use std::sync::Arc;

use serde::Serialize;
use tidemark::Result;
use tidemark::collection::{Collection, RestorePoint, Store};
use tidemark::database::embedded::EmbeddedDatabase;
use tidemark::database::{ExistingTable, TargetLimits};
use tidemark::env::Env;
use tidemark::executor::Intent;
use tidemark::ids::TableName;
use tidemark::restore::plan::{ExistingTables, PlanInputs};
use tidemark::restore::{RestoreOptions, RestorePlan, Room, Route, begin_restore, plan_restore};

use crate::args::RestoreArgs;
use crate::detach;
use crate::drive::{Drive, drive};
use crate::exit::Exit;
use crate::output::Output;
use crate::place::{OpenTarget, absolute_collection, system};

pub(crate) fn run(args: &RestoreArgs, output: Output) -> Result<Exit> {
    let env = system();
    let shown = absolute_collection(&args.collection)?;
    let collection = Arc::new(Collection::open(Store::open(&shown)?)?);
    let options = options(args);
    options.check()?;
    if args.dry_run {
        return dry_run(args, &collection, &options, &env, output);
    }
    if args.target.is_missing() {
        // What is refused must not leave an empty database behind.
        plan_for_missing(args, &collection, &options)?;
    }
    let target_shown = args.target.absolute()?;
    let opened = args.target.open_target(args.drive.state.as_deref(), &env)?;
    let OpenTarget { target, place, scratch } = opened;
    let window = args.drive.window();
    let room = Room { window, memory_bytes: args.memory, scratch };
    let route = Route { collection: &shown, target: &target_shown.to_string() };
    let begun = begin_restore(&place.catalog, target, collection, route, &options, &room, &*env)?;
    if begun.is_resumed {
        place.keep_window(begun.id, args.drive.shards_in_flight)?;
    }
    if args.detach {
        begun.notices.iter().for_each(|notice| output.notice(notice));
        return detach::start(&place, begun.id, &env, output);
    }
    let work = Drive {
        place: &place,
        id: begun.id,
        job: &begun.job,
        intent: Intent::CarryOn,
        notices: &begun.notices,
    };
    drive(&work, &env, output)
}

fn options(args: &RestoreArgs) -> RestoreOptions {
    RestoreOptions {
        at: args.at.clone(),
        tables: args.tables.clone(),
        renames: args.renames.clone(),
        into_schema: args.into_schema.clone(),
        shards: args.shards,
        plan: args.plan,
        replace: args.replace,
        hold: args.hold,
        roll_forward: args.roll_forward,
    }
}

#[derive(Serialize)]
struct PlanView<'a> {
    plan: &'a RestorePlan,
    total_rows: u64,
    total_bytes: u64,
    shards: u64,
}

fn dry_run(
    args: &RestoreArgs,
    collection: &Collection,
    options: &RestoreOptions,
    env: &Arc<dyn Env>,
    output: Output,
) -> Result<Exit> {
    let (window, memory_bytes) = (args.drive.window(), args.memory);
    let plan = if args.target.is_missing() {
        // The restore would make the database; a look at the plan does not.
        plan_for_missing(args, collection, options)?
    } else {
        let opened = args.target.open_target(args.drive.state.as_deref(), env)?;
        let room = Room { window, memory_bytes, scratch: opened.scratch };
        plan_restore(&*opened.target, collection, options, &room)?
    };
    let total = plan.planned().total();
    let shards = plan.steps.iter().map(|step| step.shards.len() as u64).sum();
    let view = PlanView { plan: &plan, total_rows: total.rows, total_bytes: total.bytes, shards };
    output.summary("restore plan", &view, || format!("{plan}nothing was done\n"))?;
    Ok(Exit::Done)
}

/// The plan of a restore into a database that does not exist yet.
fn plan_for_missing(
    args: &RestoreArgs,
    collection: &Collection,
    options: &RestoreOptions,
) -> Result<RestorePlan> {
    let (window, memory_bytes) = (args.drive.window(), args.memory);
    let chain = &collection.chain(&RestorePoint::parse(&options.at)?)?;
    let existing = &NothingThere;
    let of = collection.id();
    let inputs = PlanInputs { collection: of, chain, options, existing, window, memory_bytes };
    let plan = RestorePlan::new(&inputs)?;
    collection.check_present(chain)?;
    Ok(plan)
}

/// A database that does not exist yet.
#[derive(Debug)]
struct NothingThere;

impl ExistingTables for NothingThere {
    fn existing(&self, _: &TableName) -> Result<Option<ExistingTable>> {
        Ok(None)
    }

    fn limits(&self) -> Result<TargetLimits> {
        Ok(EmbeddedDatabase::LIMITS)
    }
}
