//! One run: a schedule of steps that the seed decides, over the real code.
//!
//! The executor's own loop has threads; this one owns the time and the order instead. Each
//! turn is the real one, [`Turns::turn`]: what is heard goes through the order file, and what
//! that asks for becomes workers, each of whose chunks is one step. A person is simulated,
//! too: whoever's command ended before the operation did runs it again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemark::catalog::{Catalog, Holding, OperationRecord, Verb};
use tidemark::collection::{Collection, Store};
use tidemark::database::{Fence, Mark, Publish, Target, TargetShard};
use tidemark::env::Env;
use tidemark::executor::commit::Orders;
use tidemark::executor::turn::{Answer, Turns};
use tidemark::executor::{ChunkOutcome, Ended, Intent, Job, Stop, Unobserved, claim};
use tidemark::ids::{Epoch, OperationId, ShardIdx, StepIdx};
use tidemark::operation::Task;
use tidemark::operation::{
    Effect, Event, Failure, Moment, PausedBy, Planned, Request, RetryPolicy, State, Work as Amount,
};
use tidemark::restore::{Room, Route, begin_restore, plan_restore, resume_restore};
use tidemark::row::{ChangeOp, RowBatch, RowRef};
use tidemark::{Error, Kind, Result};

use crate::bug::Bug;
use crate::catalog::SimCatalog;
use crate::chance::{Rate, mixed};
use crate::check::Checker;
use crate::crowd::CrowdJob;
use crate::database::Database;
use crate::process::{Drive, Jobs, Process, Shape, Stage, Work, Worker};
use crate::scenario::{Scenario, Setup};
use crate::store::{Damage, SimStore};
use crate::target::SimTarget;
use crate::world::{Rates, World};

/// Steps after which nothing goes wrong any more.
const STORMY_STEPS: u64 = 1_500;
/// Steps after which a run that still has not ended never will.
const STEPS_MAX: u64 = 12_000;
/// Processes at once.
const PROCESSES_MAX: usize = 3;
/// What one restore owns before: the copy that is rolled forward.
const EARLIER_OPERATION: OperationId = OperationId(1_000_000);
/// Milliseconds after which the executor looks around again.
const LOOK_AROUND: u64 = 100;
/// A gate that cannot be reached: a run that counts its gates dies nowhere.
const NOWHERE: Option<u64> = None;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Whether it writes a log.
    pub is_recording: bool,
    /// A bug that is there.
    pub bug: Option<Bug>,
    /// Shards of [`Scenario::MillionShards`].
    pub crowd: u32,
    /// How many times as often as usual things go wrong.
    pub storm: u32,
}

impl Default for How {
    fn default() -> How {
        How { is_recording: false, bug: None, crowd: 1_000_000, storm: 1 }
    }
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What must not have happened.
    pub violation: Option<String>,
    /// The phase that the operation ended in.
    pub phase: &'static str,
    /// Steps of the schedule.
    pub steps: u64,
    /// Processes that were started.
    pub processes: u32,
    /// Milliseconds that passed in the world.
    pub passed: u64,
    /// The log, if one was written.
    pub log: String,
}

/// Makes the run of `seed`.
pub fn run(scenario: Scenario, seed: u64, how: How) -> Report {
    Bug::with(how.bug, || {
        let crash_at = match scenario {
            Scenario::CrashEverywhere => Some(death(scenario, seed, how)),
            _ => NOWHERE,
        };
        run_once(scenario, seed, how, crash_at).0
    })
}

/// The gate at which the process of that seed dies: each of an undisturbed run is as likely.
fn death(scenario: Scenario, seed: u64, how: How) -> u64 {
    let quiet = How { is_recording: false, bug: None, ..how };
    let (_, gates) = run_once(scenario, seed, quiet, NOWHERE);
    mixed(seed) % gates.max(1) + 1
}

fn run_once(scenario: Scenario, seed: u64, how: How, crash_at: Option<u64>) -> (Report, u64) {
    let rates = scenario.rates().times(how.storm);
    let world = Arc::new(World::new(seed, rates, how.is_recording));
    let jobs = Jobs::default();
    let made = Simulation::new(scenario, seed, how, &jobs, Arc::clone(&world));
    let finished = caught(|| {
        let mut simulation = made?;
        world.crash_at(crash_at);
        simulation.run()?;
        Ok((simulation.phase_name(), simulation.steps, simulation.processes_started))
    });
    let (phase, steps, processes) = finished.unwrap_or_else(|error| {
        world.violate(error.chain());
        ("unknown", 0, 0)
    });
    let passed = world.now();
    let report =
        Report { violation: world.violation(), phase, steps, processes, passed, log: world.log() };
    (report, world.crash_points())
}

/// What `work` gives; a panic of the real code, or of the simulator, is an error that a report
/// can tell.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(Error::new(Kind::Fatal, format!("a panic: {}", text.unwrap_or("no message"))))
    })
}

/// Something that the schedule has.
enum Happening {
    /// A person starts the command.
    Start(Intent),
    /// A process goes on towards the hold.
    Take(u32),
    /// A driver looks around, and does so again and again.
    Drive(u32),
    /// A driver looks around once more.
    Look(u32),
    /// A worker does its next piece.
    Work(u32, u64),
    /// An answer reaches a driver.
    Heard(u32, Answer),
    /// A worker thread has ended.
    WorkerGone(u32, u64),
    /// Objects are put back from a copy of the collection.
    Mend,
}

impl Happening {
    fn process(&self) -> Option<u32> {
        match self {
            Happening::Take(process)
            | Happening::Drive(process)
            | Happening::Look(process)
            | Happening::Work(process, _)
            | Happening::Heard(process, _)
            | Happening::WorkerGone(process, _) => Some(*process),
            Happening::Start(_) | Happening::Mend => None,
        }
    }
}

struct Simulation<'a> {
    world: Arc<World>,
    jobs: &'a Jobs,
    setup: Setup,
    target: SimTarget,
    catalog: SimCatalog,
    store: SimStore,
    /// The job of [`Scenario::MillionShards`].
    crowd: Option<CrowdJob>,
    checker: Checker,
    /// By time, then by lot, then by age.
    schedule: BTreeMap<(u64, u64, u64), Happening>,
    scheduled: u64,
    processes: BTreeMap<u32, Process<'a>>,
    processes_started: u32,
    workers_started: u64,
    steps: u64,
    steps_max: u64,
    stormy_steps: u64,
}

impl<'a> Simulation<'a> {
    fn new(
        scenario: Scenario,
        seed: u64,
        how: How,
        jobs: &'a Jobs,
        world: Arc<World>,
    ) -> Result<Simulation<'a>> {
        let setup = Setup::new(scenario, seed)?;
        let database = Database::new("the simulated target").with_bug(how.bug);
        let target = SimTarget::new(database.clone(), Arc::clone(&world));
        let catalog = SimCatalog::new(Arc::clone(&world), how.bug);
        let store = SimStore::new(Arc::clone(&setup.chain.objects), Arc::clone(&world));
        restore_base(&setup, &database)?;
        let checker = Checker::new(Arc::clone(&world), database, catalog.clone());
        let is_crowd = scenario == Scenario::MillionShards;
        let crowd = is_crowd.then(|| CrowdJob::new(Arc::clone(&world), how.crowd));
        let many = if is_crowd { u64::from(how.crowd) * 8 } else { 0 };
        let mut simulation = Simulation {
            world,
            jobs,
            setup,
            target,
            catalog,
            store,
            crowd,
            checker,
            schedule: BTreeMap::new(),
            scheduled: 0,
            processes: BTreeMap::new(),
            processes_started: 0,
            workers_started: 0,
            steps: 0,
            steps_max: STEPS_MAX + many,
            stormy_steps: STORMY_STEPS + many / 4,
        };
        if simulation.crowd.is_some() {
            simulation.record_crowd(how.crowd)?;
        }
        simulation.after(0, Happening::Start(Intent::CarryOn));
        Ok(simulation)
    }

    fn record_crowd(&self, shards: u32) -> Result<()> {
        let record = OperationRecord {
            verb: Verb::Restore,
            identity: "crowd".to_owned(),
            title: "restore of a crowd".to_owned(),
            request: serde_json::Value::Null,
            plan_hash: String::new(),
            step_count: 1,
            created_at: self.world.wall_time(),
        };
        let work = Amount { rows: u64::from(shards), bytes: u64::from(shards) };
        let state = State::new(Planned { steps: vec![work], proof_bytes: 1 }, 64);
        for _ in 0..100 {
            if self.catalog.create(&record, b"", &state).is_ok() || self.catalog.first().is_some() {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Fatal, "the operation could not be recorded"))
    }

    /// Puts something into the schedule, `delay` milliseconds from now.
    fn after(&mut self, delay: u64, happening: Happening) {
        let lot = self.world.draw(|chance| chance.below(1 << 20));
        self.scheduled += 1;
        self.schedule.insert((self.world.now() + delay, lot, self.scheduled), happening);
    }

    fn between(&self, first: u64, last: u64) -> u64 {
        self.world.draw(|chance| chance.between(first, last))
    }

    fn happens(&self, rate: impl FnOnce(&Rates) -> Rate) -> bool {
        self.world.happens(rate)
    }

    fn operation(&self) -> Option<OperationId> {
        self.catalog.first()
    }

    fn phase_name(&self) -> &'static str {
        let name = |state: &State| state.phase.name();
        self.operation().and_then(|id| self.catalog.look_at_state(id, name)).unwrap_or("nothing")
    }

    fn has_ended(&self) -> bool {
        let is_terminal = |state: &State| state.phase.is_terminal();
        self.operation().and_then(|id| self.catalog.look_at_state(id, is_terminal)) == Some(true)
    }

    fn run(&mut self) -> Result<()> {
        while self.world.violation().is_none() {
            if self.processes.is_empty() && self.has_ended() {
                break;
            }
            let Some(((time, lot, age), happening)) = self.schedule.pop_first() else {
                self.world.violate("nothing is left to happen, and the operation has not ended");
                break;
            };
            self.world.set_now(time);
            if let Some(process) = happening.process() {
                let Some(found) = self.processes.get(&process) else { continue };
                if found.frozen_until > self.world.now() {
                    self.schedule.insert((found.frozen_until, lot, age), happening);
                    continue;
                }
            }
            self.steps += 1;
            if self.steps == self.stormy_steps {
                self.world.enter(0);
                self.world.say(|| "calm".to_owned());
                self.world.calm_down();
                self.store.mend();
            }
            if self.steps > self.steps_max {
                self.world.violate(format!("not ended after {} steps", self.steps));
            }
            if self.setup.cancelled_at == Some(self.steps)
                && let Some(id) = self.operation()
            {
                self.cancel(id);
            }
            self.happen(happening);
            if self.crowd.is_none() {
                self.checker.check(&self.setup)?;
            }
        }
        // Holds and workers go before the last look.
        self.processes.clear();
        if self.world.violation().is_some() {
            return Ok(());
        }
        self.world.enter(0);
        match &self.crowd {
            None => self.checker.check_end(&self.setup),
            Some(crowd) => {
                let is_done = self.phase_name() == "done";
                if is_done && !crowd.is_whole() {
                    self.world.violate("done, and a shard is not");
                }
                let left = self.operation().map(|id| self.catalog.leftovers(id));
                if left.is_some_and(|(records, holder)| records > 0 || holder.is_some()) {
                    self.world.violate("records of shards or a holder are left behind");
                }
                Ok(())
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        let process = happening.process();
        self.world.enter(process.unwrap_or(0));
        match happening {
            Happening::Start(intent) => self.start(intent),
            Happening::Take(process) => self.take(process),
            Happening::Drive(process) => {
                self.disturb(process);
                self.drive(process);
                if self.is_driving(process) {
                    let pause = self.between(100, 1_500);
                    self.after(pause, Happening::Drive(process));
                }
            }
            Happening::Look(process) => self.drive(process),
            Happening::Work(process, worker) => self.work(process, worker),
            Happening::Heard(process, answer) => self.hear(process, answer),
            Happening::WorkerGone(process, worker) => self.worker_gone(process, worker),
            Happening::Mend => {
                self.store.mend();
            }
        }
        if self.world.is_dead() {
            self.die(self.world.actor());
        }
        self.world.leave();
        self.try_again();
    }

    /// A person runs the same command again when nobody works at it.
    fn try_again(&mut self) {
        let is_coming =
            || self.schedule.values().any(|happening| matches!(happening, Happening::Start(_)));
        if !self.processes.is_empty() || self.has_ended() || is_coming() {
            return;
        }
        let cancels = self.operation().is_some() && self.happens(|rates| rates.cancel);
        let intent = if cancels { Intent::Cancel } else { Intent::CarryOn };
        let pause = self.between(100, 20_000);
        self.after(pause, Happening::Start(intent));
    }

    fn start(&mut self, intent: Intent) {
        if self.has_ended() {
            return;
        }
        self.processes_started += 1;
        let process = self.processes_started;
        self.world.enter(process);
        match self.begin(intent) {
            Err(error) => self.world.say(|| format!("cannot begin: {}", error.chain())),
            Ok((job, id)) => {
                self.world.say(|| format!("begins, {intent:?}"));
                let stage = Stage::Looking(u64::MAX);
                let started = Process { job, id, intent, stage, frozen_until: 0, taking: None };
                self.processes.insert(process, started);
                let delay = self.world.leave() + self.between(0, 50);
                self.after(delay, Happening::Take(process));
            }
        }
    }

    /// The job of the command, as the real verb makes it.
    fn begin(&self, intent: Intent) -> Result<(&'a dyn Job, OperationId)> {
        if let (Some(crowd), Some(id)) = (&self.crowd, self.operation()) {
            return Ok((self.jobs.push(Box::new(crowd.clone())), id));
        }
        let collection = Arc::new(Collection::open(Store::over(
            "the simulated store",
            Arc::new(self.store.clone()),
        ))?);
        let target: Arc<dyn Target> = Arc::new(self.target.clone());
        let room = room(&self.setup);
        let begun = match (intent, self.operation()) {
            (Intent::Cancel, Some(id)) => {
                resume_restore(&self.catalog, id, target, collection, &room.scratch)?
            }
            (Intent::Cancel | Intent::CarryOn, _) => {
                let route = Route { collection: "the chain", target: "the target" };
                let options = &self.setup.options;
                let catalog = &self.catalog;
                begin_restore(catalog, target, collection, route, options, &room, &*self.world)?
            }
        };
        let job = begun.job.with_chunk_rows_max(self.setup.chunk_rows_max);
        // One thread alone makes one order of what happens.
        let job = job.with_readers_max(1).without_read_ahead();
        Ok((self.jobs.push(Box::new(job)), begun.id))
    }

    fn take(&mut self, process: u32) {
        let Some(found) = self.processes.get_mut(&process) else { return };
        let (job, id, intent) = (found.job, found.id, found.intent);
        match found.stage {
            Stage::Looking(least) => {
                if found.taking.is_none() {
                    match self.catalog.taking(id) {
                        Ok(taking) => found.taking = Some(taking),
                        Err(error) => return self.end(process, &error.chain()),
                    }
                }
                let waits = match self.catalog.holder(id) {
                    Ok(Holding::Alive { lease_seconds, .. }) if lease_seconds > 0 => lease_seconds,
                    Ok(Holding::Free | Holding::Dead { .. } | Holding::Alive { .. }) => {
                        return self.claim(process, job, id, intent);
                    }
                    Err(error) => return self.end(process, &error.chain()),
                };
                if waits > least {
                    return self.end(process, "somebody else renews the lease");
                }
                found.stage = Stage::Looking(waits);
                self.after(250, Happening::Take(process));
            }
            Stage::Claimed(epoch) => match self.hold(process, job, id, epoch, intent) {
                Ok(()) => {}
                Err(error) => self.end(process, &error.chain()),
            },
            Stage::Driving(_) => {}
        }
    }

    fn claim(&mut self, process: u32, job: &'a dyn Job, id: OperationId, intent: Intent) {
        match claim(&self.catalog, job, id, intent) {
            Err(error) => self.end(process, &format!("cannot claim: {}", error.chain())),
            Ok(epoch) => {
                self.world.say(|| format!("claims with epoch {epoch}"));
                if let Some(found) = self.processes.get_mut(&process) {
                    found.stage = Stage::Claimed(epoch);
                }
                // Others may claim and hold before it comes to that.
                let pause = if self.between(0, 3) == 0 { 3_000 } else { 20 };
                let delay = self.world.leave() + self.between(0, pause);
                self.after(delay, Happening::Take(process));
            }
        }
    }

    fn hold(
        &mut self,
        process: u32,
        job: &'a dyn Job,
        id: OperationId,
        epoch: Epoch,
        intent: Intent,
    ) -> Result<()> {
        let hold = self.catalog.hold(id, epoch)?;
        let moment = self.moment();
        let mut turns = Turns::load(&self.catalog, hold, job, id, policy(), moment.now)?;
        let orders = turns.begin(intent, moment, &mut Unobserved);
        // Whatever came of it, the process has the hold now, and dies with it.
        let drive = Drive::new(turns);
        if let Some(found) = self.processes.get_mut(&process) {
            found.taking = None;
            found.stage = Stage::Driving(Box::new(drive));
        }
        self.act(process, orders?);
        let delay = self.world.leave() + self.between(0, 100);
        self.after(delay, Happening::Drive(process));
        Ok(())
    }

    fn moment(&self) -> Moment {
        Moment { now: self.world.boot_time(), chance: self.world.random() }
    }

    /// What happens around a driver that looks around.
    fn disturb(&mut self, process: u32) {
        let Some(id) = self.operation() else { return };
        if self.happens(|rates| rates.clock_jump) {
            self.world.jump_clocks();
        }
        if self.happens(|rates| rates.reboot) {
            self.world.say(|| "the machine starts anew".to_owned());
            self.world.reboot();
            for process in self.processes.keys().copied().collect::<Vec<u32>>() {
                self.die(process);
            }
            return;
        }
        if self.processes.len() < PROCESSES_MAX && self.happens(|rates| rates.second_driver) {
            let pause = self.between(0, 20_000);
            self.after(pause, Happening::Start(Intent::CarryOn));
        }
        if self.happens(|rates| rates.freeze) {
            let until = self.world.now() + self.between(10_000, 60_000);
            self.world.say(|| format!("freezes until {until}"));
            if let Some(found) = self.processes.get_mut(&process) {
                found.frozen_until = until;
            }
            // People notice, and some of them at once.
            for _ in self.processes.len()..PROCESSES_MAX {
                if self.happens(|rates| Rate(rates.second_driver.0 * 10)) {
                    let pause = self.between(0, 3_000);
                    self.after(pause, Happening::Start(Intent::CarryOn));
                }
            }
        }
        if self.happens(|rates| rates.steer) {
            let request = match self.between(0, 4) {
                0 => Some(Request::Resume),
                1 => Some(Request::Window(self.between(1, 5) as u32)),
                2 => None,
                _ => Some(Request::Pause { by: PausedBy::Person, why: "a pause".to_owned() }),
            };
            match request {
                Some(request) => {
                    self.world.say(|| format!("somebody asks: {request:?}"));
                    let _ = self.catalog.steer(id, &request);
                }
                None => {
                    self.world.say(|| "somebody interrupts the command".to_owned());
                    if let Some(drive) = self.drive_of(process) {
                        drive.is_interrupted = true;
                    }
                }
            }
        }
        if self.happens(|rates| rates.cancel) {
            self.cancel(id);
        }
        if self.happens(|rates| rates.store_damage) {
            self.damage();
        }
    }

    fn cancel(&self, id: OperationId) {
        self.world.say(|| "somebody cancels".to_owned());
        let _ = self.catalog.steer(id, &Request::Cancel);
    }

    fn damage(&mut self) {
        let paths = &self.setup.chain.paths;
        let (path, bytes) = &paths[self.between(0, paths.len() as u64 - 1) as usize];
        let damage = match self.between(0, 2) {
            0 => Damage::Missing,
            1 => Damage::Torn(self.between(0, bytes.saturating_sub(1))),
            _ => Damage::Flipped(self.between(0, bytes * 8)),
        };
        self.world.say(|| format!("`{path}` is damaged: {damage:?}"));
        self.store.damage(path, damage);
        let pause = self.between(100, 60_000);
        self.after(pause, Happening::Mend);
    }

    fn is_driving(&self, process: u32) -> bool {
        let found = self.processes.get(&process);
        found.is_some_and(|found| matches!(found.stage, Stage::Driving(_)))
    }

    fn drive_of(&mut self, process: u32) -> Option<&mut Drive<'a>> {
        match &mut self.processes.get_mut(&process)?.stage {
            Stage::Driving(drive) => Some(drive),
            Stage::Looking(_) | Stage::Claimed(_) => None,
        }
    }

    fn hear(&mut self, process: u32, answer: Answer) {
        let Some(drive) = self.drive_of(process) else { return };
        drive.inbox.push(answer);
        // Sometimes several answers are in one commit.
        let is_crowd = self.crowd.is_some();
        if !is_crowd && self.between(0, 9) < 7 {
            self.drive(process);
        }
    }

    /// What the executor's loop does with what it has heard.
    fn drive(&mut self, process: u32) {
        let now = self.world.boot_time();
        let Some(drive) = self.drive_of(process) else { return };
        let answers = std::mem::take(&mut drive.inbox);
        let is_stale = !answers.is_empty() && drive.are_all_stale(&answers);
        if is_stale && drive.turns.is_due(now) {
            // What is due would hide what late answers do.
            self.turn(process, Vec::new(), false);
        }
        self.turn(process, answers, is_stale);
    }

    /// One turn of that loop; nothing follows from answers that are all stale.
    fn turn(&mut self, process: u32, answers: Vec<Answer>, is_stale: bool) {
        let moment = self.moment();
        let Some(drive) = self.drive_of(process) else { return };
        if drive.leaving.is_some() {
            return self.leave_if_alone(process);
        }
        let window = drive.turns.operation().state().window;
        let before = drive.shape();
        let is_stale = is_stale && !drive.turns.is_due(moment.now);
        drive.note_heard(&answers, moment.now);
        let turned = drive.turns.turn(answers, drive.is_interrupted, moment, &mut Unobserved);
        let orders = match turned {
            Ok(orders) => orders,
            Err(error) => {
                drive.workers.values().for_each(|worker| worker.stop.ask());
                drive.leaving = Some(error.chain());
                return self.leave_if_alone(process);
            }
        };
        self.check_turn(process, &orders, is_stale.then_some(before), window);
        self.act(process, orders);
        self.leave_if_at_rest(process);
    }

    fn check_turn(&mut self, process: u32, orders: &Orders, stale: Option<Shape>, window: u32) {
        let (world, catalog) = (Arc::clone(&self.world), self.catalog.clone());
        let now = world.boot_time();
        let is_crowd = self.crowd.is_some();
        let asks = !orders.effects.is_empty();
        let Some(drive) = self.drive_of(process) else { return };
        if stale.is_some_and(|before| before != drive.shape()) || (stale.is_some() && asks) {
            world.violate(format!("a late answer was heard, and asked for {:?}", orders.effects));
        }
        let operation = drive.turns.operation();
        let state = operation.state();
        let starts = |effect: &Effect| matches!(effect, Effect::RunShard(_));
        // A window that shrinks lets end what runs already.
        let window = window.max(state.window);
        if operation.in_flight_count() > window && orders.effects.iter().any(starts) {
            let running = operation.in_flight_count();
            world.violate(format!("{running} shards run in a window of {window}"));
        }
        let is_durable = |stored: &State| stored == state;
        let durable = catalog.look_at_state(operation.id(), is_durable);
        if let Some(ticket) = drive.long_silent(now) {
            world.violate(format!("{ticket:?} is silent, and nobody gives it up"));
        }
        if !orders.effects.is_empty() && !is_crowd && durable != Some(true) {
            world.violate(format!("{:?} before their decision is durable", orders.effects));
        }
    }

    /// Performs effects; what they are about is durable.
    fn act(&mut self, process: u32, orders: Orders) {
        if !orders.effects.is_empty() && self.world.crash_point("commit, before effects").is_err() {
            return;
        }
        for effect in orders.effects {
            match effect {
                Effect::StopInFlight => {
                    if let Some(drive) = self.drive_of(process) {
                        drive.workers.values().for_each(|worker| worker.stop.ask());
                    }
                }
                Effect::StopShard(given_up) => {
                    if let Some(drive) = self.drive_of(process) {
                        let is_it = |worker: &&Worker<'_>| match worker.work {
                            Work::Shard(ticket) => ticket == given_up,
                            Work::Task(_) => false,
                        };
                        let workers = drive.workers.values().filter(is_it);
                        workers.for_each(|worker| worker.stop.ask());
                    }
                }
                Effect::RunTask(ticket) => self.employ(process, Work::Task(ticket)),
                Effect::RunShard(ticket) => {
                    if let Some(drive) = self.drive_of(process) {
                        drive.started.insert((ticket.step, ticket.shard), ticket.attempt);
                    }
                    self.employ(process, Work::Shard(ticket));
                }
            }
        }
    }

    /// Starts a worker; every effect may be performed twice.
    fn employ(&mut self, process: u32, work: Work) {
        let count = if self.happens(|rates| rates.answer_doubled) { 2 } else { 1 };
        for _ in 0..count {
            self.workers_started += 1;
            let number = self.workers_started;
            let Some(drive) = self.drive_of(process) else { return };
            let worker = Worker {
                work,
                stop: Stop::default(),
                epoch: drive.turns.fence().epoch,
                run: None,
                opened_after: 0,
                has_hung: false,
            };
            drive.workers.insert(number, worker);
            let mut delay = self.between(0, 200);
            let is_publishing =
                matches!(work, Work::Task(ticket) if matches!(ticket.task, Task::Publish { .. }));
            // The last moment to change one's mind is one too late.
            if is_publishing
                && self.happens(|rates| Rate(rates.cancel.0 * 10))
                && let Some(id) = self.operation()
            {
                self.cancel(id);
                // Both at once, as late as it takes to look around again.
                delay += LOOK_AROUND;
                self.after(delay, Happening::Look(process));
            }
            self.after(delay, Happening::Work(process, number));
        }
    }

    fn work(&mut self, process: u32, number: u64) {
        let hangs = self.happens(|rates| rates.hang);
        let hangs_for = policy().silence_max.as_millis() as u64 + self.between(0, 10_000);
        let chunks = self.target.chunks();
        let job = self.processes.get(&process).map(|found| (found.job, found.id));
        let (Some((job, id)), Some(drive)) = (job, self.drive_of(process)) else { return };
        let Some(worker) = drive.workers.get_mut(&number) else { return };
        let epoch = worker.epoch;
        let fence = Fence { operation: id, epoch };
        if hangs && !worker.has_hung {
            worker.has_hung = true;
            self.world.say(|| format!("worker {number} hangs for {hangs_for} ms"));
            return self.after(hangs_for, Happening::Work(process, number));
        }
        match worker.work {
            Work::Task(ticket) => {
                let stop = worker.stop.clone();
                let advanced: Mutex<Vec<u64>> = Mutex::default();
                let note = |bytes| {
                    advanced.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
                };
                let done = job.run_task(ticket, fence, &stop, &note);
                self.world
                    .say(|| format!("{:?} attempt {}: {done:?}", ticket.task, ticket.attempt));
                if self.world.is_dead() {
                    return;
                }
                let delay = self.world.leave() + 1;
                let advanced = advanced.into_inner().unwrap_or_else(PoisonError::into_inner);
                for bytes in advanced {
                    let event = Event::TaskAdvanced { ticket, bytes };
                    self.after(delay, Happening::Heard(process, Answer { event, epoch }));
                }
                let event = match done {
                    Ok(outcome) => Event::TaskDone { ticket, outcome },
                    Err(error) => Event::TaskFailed { ticket, failure: failure(&error) },
                };
                self.answer((process, epoch), event, delay, false);
                self.after(delay + 1, Happening::WorkerGone(process, number));
            }
            Work::Shard(ticket) => {
                if worker.stop.is_asked() {
                    self.answer((process, epoch), Event::ShardStopped { ticket }, 1, true);
                    return self.after(2, Happening::WorkerGone(process, number));
                }
                let target = self.target.clone();
                let Some(worker) =
                    self.drive_of(process).and_then(|drive| drive.workers.get_mut(&number))
                else {
                    return;
                };
                let outcome = match &mut worker.run {
                    None => {
                        worker.opened_after = chunks;
                        job.start_shard(ticket, fence).map(|run| {
                            worker.run = Some(run);
                            None
                        })
                    }
                    Some(run) => {
                        target.enter(Some((number, worker.opened_after)));
                        let outcome = run.next_chunk().map(Some);
                        target.enter(None);
                        outcome
                    }
                };
                if self.world.is_dead() {
                    return;
                }
                let delay = self.world.leave() + self.between(1, 30);
                match outcome {
                    Ok(None) => self.after(delay, Happening::Work(process, number)),
                    Ok(Some(ChunkOutcome::Advanced { done, last_key })) => {
                        let event = Event::ShardAdvanced { ticket, done, last_key };
                        self.answer((process, epoch), event, delay, true);
                        self.after(delay, Happening::Work(process, number));
                    }
                    Ok(Some(ChunkOutcome::Done { done })) => {
                        self.answer(
                            (process, epoch),
                            Event::ShardDone { ticket, done },
                            delay,
                            true,
                        );
                        self.after(delay + 1, Happening::WorkerGone(process, number));
                    }
                    Err(error) => {
                        self.world.say(|| format!("{ticket:?} failed: {}", error.chain()));
                        let event = Event::ShardFailed { ticket, failure: failure(&error) };
                        self.answer((process, epoch), event, delay, true);
                        self.after(delay + 1, Happening::WorkerGone(process, number));
                    }
                }
            }
        }
    }

    /// Sends an answer on its way; it may come late, twice or, where somebody waits for silence,
    /// not at all.
    fn answer(&mut self, from: (u32, Epoch), event: Event, delay: u64, may_be_lost: bool) {
        let (process, epoch) = from;
        if may_be_lost && self.happens(|rates| rates.answer_lost) {
            self.world.say(|| format!("lost on the way: {event:?}"));
            let now = self.world.boot_time();
            if let Some(drive) = self.drive_of(process) {
                drive.note_lost(&event, now);
            }
            return;
        }
        let copies = if self.happens(|rates| rates.answer_doubled) { 2 } else { 1 };
        for copy in 0..copies {
            // Some cross the end of their step, some that of their attempt.
            let late = match copy > 0 || self.happens(|rates| rates.answer_late) {
                false => 0,
                true if self.between(0, 1) == 0 => self.between(20, 600),
                true => self.between(500, 40_000),
            };
            let answer = Answer { event: event.clone(), epoch };
            self.after(delay + late, Happening::Heard(process, answer));
        }
    }

    fn worker_gone(&mut self, process: u32, number: u64) {
        let Some(drive) = self.drive_of(process) else { return };
        drive.workers.remove(&number);
        if drive.leaving.is_some() {
            self.leave_if_alone(process);
        } else {
            self.leave_if_at_rest(process);
        }
    }

    fn leave_if_at_rest(&mut self, process: u32) {
        let Some(drive) = self.drive_of(process) else { return };
        if !drive.turns.may_leave() || !drive.workers.is_empty() || !drive.inbox.is_empty() {
            return;
        }
        let how = match drive.turns.ended() {
            Ended::Paused { why, .. } => format!("paused: {why}"),
            Ended::Done { .. } | Ended::Cancelled | Ended::Failed(_) => {
                drive.turns.operation().state().phase.name().to_owned()
            }
        };
        self.end(process, &how);
    }

    fn leave_if_alone(&mut self, process: u32) {
        let Some(drive) = self.drive_of(process) else { return };
        if let (Some(why), true) = (drive.leaving.clone(), drive.workers.is_empty()) {
            self.end(process, &why);
        }
    }

    /// A process ends in order, and gives back what it holds, unless it died on the way.
    fn end(&mut self, process: u32, why: &str) {
        if self.world.is_dead() {
            return;
        }
        self.world.say(|| format!("ends: {why}"));
        self.processes.remove(&process);
    }

    /// A process is gone from one moment to the next.
    fn die(&mut self, process: u32) {
        self.catalog.died(process);
        self.processes.remove(&process);
    }
}

/// The retry policy of the product, with a silence that ends within a run.
fn policy() -> RetryPolicy {
    RetryPolicy { silence_max: Duration::from_secs(10), ..RetryPolicy::default() }
}

fn failure(error: &Error) -> Failure {
    Failure { kind: error.kind(), message: error.chain() }
}

/// Memory enough that nothing is merged beforehand: that goes through real files.
fn room(setup: &Setup) -> Room {
    let scratch = PathBuf::from("/nonexistent/tidemark-sim");
    Room { window: setup.window, memory_bytes: 1 << 50, scratch }
}

/// Makes the copy that is rolled forward, by the target's own calls.
fn restore_base(setup: &Setup, database: &Database) -> Result<()> {
    let Some((link, is_held)) = setup.base else { return Ok(()) };
    let objects: Arc<dyn object_store::ObjectStore> = setup.chain.objects.clone();
    let collection = Collection::open(Store::over("the chain", objects))?;
    let mut options = setup.options.clone();
    options.at = format!("#{}", link + 1);
    options.roll_forward = false;
    options.shards = Some(3);
    let plan = plan_restore(database, &collection, &options, &room(setup))?;
    let fence = Fence { operation: EARLIER_OPERATION, epoch: Epoch(database.allocate_txn()?.0) };
    let tables: Vec<_> = plan.tables.iter().map(|table| table.target.clone()).collect();
    database.prepare(fence, &tables)?;
    let states = setup.chain.at(link);
    for table in &tables {
        for (shard, range) in (0u32..).zip(&table.shards) {
            let mut rows = RowBatch::new();
            for (key, payload) in states.get(&table.name).into_iter().flatten() {
                if range.contains(key) {
                    rows.push(RowRef { key, op: ChangeOp::Upsert, payload });
                }
            }
            let mut mark = Mark::default().enter_step(StepIdx(0), 1);
            mark.last_key = rows.last().map(|row| row.key.to_vec());
            mark.done = true;
            let at = TargetShard {
                operation: EARLIER_OPERATION,
                table: table.name.clone(),
                shard: ShardIdx(shard),
            };
            database.apply(fence, &at, &rows, &mut mark)?;
        }
    }
    database.seal(fence)?;
    database.publish(fence, if is_held { Publish::Held } else { Publish::Visible })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_and_does_not_end_the_soak() {
        let error = caught::<()>(|| panic!("nothing is in flight")).unwrap_err();
        assert_eq!(error.message(), "a panic: nothing is in flight");
        assert_eq!(caught(|| Ok(7)).unwrap(), 7);
    }
}
