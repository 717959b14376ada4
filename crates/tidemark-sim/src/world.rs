//! What all simulated parts share: the clocks, the dice, the faults, the log.
//!
//! Every call of the real code that leaves it (target, catalog, object store) passes a
//! [`gate`](World::gate) here, which decides from the seed what becomes of it: an error, a
//! delay, the death of the process before the effect, after it, or an answer that is lost.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark::env::{BootTime, Env, WallTime};
use tidemark::{Error, Kind, Result};

use crate::chance::{Chance, Rate, mixed};

/// How often what goes wrong. Rates are per call, per answer or per step of the schedule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// A call fails and may be tried again.
    pub error: Rate,
    /// A call is refused for a while.
    pub throttled: Rate,
    /// A call fails for good.
    pub fatal: Rate,
    /// The disk is full: a person must act.
    pub disk_full: Rate,
    /// A call takes effect, but its caller is told that it failed.
    pub answer_of_call_lost: Rate,
    /// A call takes seconds.
    pub slow: Rate,
    /// The process dies in front of an effect or behind it.
    pub crash: Rate,
    /// A worker says nothing for longer than anybody waits.
    pub hang: Rate,
    /// A worker's answer is lost on the way to the driver.
    pub answer_lost: Rate,
    /// A worker's answer comes twice.
    pub answer_doubled: Rate,
    /// A worker's answer comes seconds late.
    pub answer_late: Rate,
    /// A process freezes beyond its lease, and wakes up again.
    pub freeze: Rate,
    /// The same command is started while it runs.
    pub second_driver: Rate,
    /// Somebody pauses, resumes or changes the window.
    pub steer: Rate,
    /// Somebody cancels.
    pub cancel: Rate,
    /// A clock jumps: the calendar in both directions, the boot clock ahead.
    pub clock_jump: Rate,
    /// The machine starts anew: every process dies, the boot clock begins at zero.
    pub reboot: Rate,
    /// A request to the object store fails.
    pub store_error: Rate,
    /// A request to the object store is throttled.
    pub store_throttled: Rate,
    /// A request to the object store takes seconds.
    pub store_slow: Rate,
    /// A request to the object store is never answered, until the client gives up.
    pub store_hang: Rate,
    /// An answer of the object store has a flipped bit.
    pub store_flip: Rate,
    /// An object is damaged where it lies: missing, torn or flipped, until somebody mends it.
    pub store_damage: Rate,
}

impl Rates {
    /// The same, so many times as often.
    #[must_use]
    pub fn times(mut self, factor: u32) -> Rates {
        let all = [
            &mut self.error,
            &mut self.throttled,
            &mut self.fatal,
            &mut self.disk_full,
            &mut self.answer_of_call_lost,
            &mut self.slow,
            &mut self.crash,
            &mut self.hang,
            &mut self.answer_lost,
            &mut self.answer_doubled,
            &mut self.answer_late,
            &mut self.freeze,
            &mut self.second_driver,
            &mut self.steer,
            &mut self.cancel,
            &mut self.clock_jump,
            &mut self.reboot,
            &mut self.store_error,
            &mut self.store_throttled,
            &mut self.store_slow,
            &mut self.store_hang,
            &mut self.store_flip,
            &mut self.store_damage,
        ];
        all.into_iter().for_each(|rate| rate.0 *= factor);
        self
    }
}

/// What may happen at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Nothing outside changes.
    Reads,
    /// Something becomes durable: the process may die on either side of it.
    Writes,
}

/// Leave to go on, with what becomes of the answer.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    call: &'static str,
    answer_is_lost: bool,
    touch: Touch,
}

/// One simulated machine with its outside.
#[derive(Debug)]
pub struct World(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    seed: u64,
    /// Milliseconds since the run began.
    now: u64,
    booted_at: u64,
    boot: u64,
    /// What the calendar is ahead of the run.
    calendar: u64,
    chance: Chance,
    rates: Rates,
    is_calm: bool,
    actor: u32,
    is_dead: bool,
    delay: u64,
    crash_points: u64,
    crash_at: Option<u64>,
    store_requests: std::collections::BTreeMap<String, u64>,
    store_notes: Vec<String>,
    log: Option<String>,
    violation: Option<String>,
}

/// Where the calendar stands when a run begins.
const CALENDAR_FIRST: u64 = 1_800_000_000_000;
/// Requests that a client of an object store makes of one before it gives up.
const STORE_ATTEMPTS: u32 = 3;
/// What a client of an object store waits for one answer.
const STORE_DEADLINE: u64 = 60_000;

/// What becomes of one request to the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFate {
    /// It is answered.
    Answered,
    /// It is answered with the bit of that number flipped, counted modulo the answer's size.
    Flipped(u64),
    /// It fails, after all retries of the client.
    Failed(&'static str),
}

impl World {
    /// The world of `seed`.
    pub fn new(seed: u64, rates: Rates, is_recording: bool) -> World {
        World(Mutex::new(Inner {
            seed,
            now: 0,
            booted_at: 0,
            boot: 1,
            calendar: CALENDAR_FIRST,
            chance: Chance::new(mixed(seed)),
            rates,
            is_calm: false,
            actor: 0,
            is_dead: false,
            delay: 0,
            crash_points: 0,
            crash_at: None,
            store_requests: std::collections::BTreeMap::new(),
            store_notes: Vec::new(),
            log: is_recording.then(String::new),
            violation: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line into the log, if there is one.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let mut inner = self.lock();
        let (now, actor) = (inner.now, inner.actor);
        if let Some(log) = &mut inner.log {
            log.push_str(&format!("{now:>9} p{actor} {}\n", line()));
        }
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.lock().log.clone().unwrap_or_default()
    }

    /// Notes that something happened which must not; the first one counts.
    pub fn violate(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(|| format!("VIOLATION {what}"));
        self.lock().violation.get_or_insert(what);
    }

    /// What must not have happened.
    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// Draws from the dice.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.lock().chance)
    }

    /// Whether a fault of that rate happens now; none does once the world is calm.
    pub fn happens(&self, rate: impl FnOnce(&Rates) -> Rate) -> bool {
        let mut inner = self.lock();
        let rate = if inner.is_calm { Rate::NEVER } else { rate(&inner.rates) };
        inner.chance.happens(rate)
    }

    /// Ends all faults, so that what is left can be done.
    pub fn calm_down(&self) {
        self.lock().is_calm = true;
    }

    /// Whether faults have ended.
    pub fn is_calm(&self) -> bool {
        self.lock().is_calm
    }

    /// Milliseconds since the run began.
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// Moves the clock on.
    pub fn set_now(&self, now: u64) {
        let mut inner = self.lock();
        inner.now = inner.now.max(now);
    }

    /// Lets clocks jump, within what real ones do.
    pub fn jump_clocks(&self) {
        let mut inner = self.lock();
        let ahead = inner.chance.below(7_200_000);
        match inner.chance.below(3) {
            // The machine was suspended: the boot clock goes on meanwhile.
            0 => inner.now += ahead / 100,
            1 => inner.calendar += ahead,
            _ => inner.calendar -= ahead,
        }
        drop(inner);
        self.say(|| "clocks jump".to_owned());
    }

    /// Another boot of the machine: its clock begins at zero.
    pub fn reboot(&self) {
        let mut inner = self.lock();
        inner.boot += 1;
        inner.booted_at = inner.now;
    }

    /// Says who acts from here on, alive.
    pub fn enter(&self, process: u32) {
        let mut inner = self.lock();
        inner.actor = process;
        inner.is_dead = false;
        inner.delay = 0;
    }

    /// Who acts.
    pub fn actor(&self) -> u32 {
        self.lock().actor
    }

    /// Whether the process that acts has died in a call.
    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// How long the calls since [`enter`](Self::enter) took; and puts their notes in the log.
    pub fn leave(&self) -> u64 {
        let mut inner = self.lock();
        let mut notes = std::mem::take(&mut inner.store_notes);
        let delay = std::mem::take(&mut inner.delay);
        drop(inner);
        // Requests on the way at once are noted in any order.
        notes.sort();
        notes.into_iter().for_each(|note| self.say(|| note));
        delay
    }

    /// Lets the process die at the gate of that number, counted from 1.
    pub fn crash_at(&self, point: Option<u64>) {
        self.lock().crash_at = point;
    }

    /// Gates at which the process could have died so far.
    pub fn crash_points(&self) -> u64 {
        self.lock().crash_points
    }

    /// A point at which the process may die.
    pub fn crash_point(&self, place: &'static str) -> Result<()> {
        let mut inner = self.lock();
        if inner.is_dead {
            return Err(dead());
        }
        inner.crash_points += 1;
        let is_chosen = inner.crash_at == Some(inner.crash_points);
        let rate = if inner.is_calm { Rate::NEVER } else { inner.rates.crash };
        if !inner.chance.happens(rate) && !is_chosen {
            return Ok(());
        }
        inner.is_dead = true;
        drop(inner);
        self.say(|| format!("dies at {place}"));
        Err(dead())
    }

    /// Asks whether a call may take effect.
    ///
    /// # Errors
    /// The fault that the seed has for it; nothing happened then.
    pub fn gate(&self, call: &'static str, touch: Touch) -> Result<Pass> {
        if touch == Touch::Writes {
            self.crash_point(call)?;
        }
        let mut inner = self.lock();
        if inner.is_dead {
            return Err(dead());
        }
        let rates = if inner.is_calm { Rates::default() } else { inner.rates };
        if inner.chance.happens(rates.slow) {
            inner.delay += inner.chance.between(1_000, 20_000);
        }
        let fault = if inner.chance.happens(rates.error) {
            Some((Kind::Transient, "the connection was lost"))
        } else if inner.chance.happens(rates.throttled) {
            inner.delay += inner.chance.between(100, 5_000);
            Some((Kind::Transient, "too many requests"))
        } else if inner.chance.happens(rates.fatal) {
            Some((Kind::Fatal, "something broke for good"))
        } else if touch == Touch::Writes && inner.chance.happens(rates.disk_full) {
            Some((Kind::Blocked, "no space left on device"))
        } else {
            None
        };
        let answer_is_lost =
            touch == Touch::Writes && inner.chance.happens(rates.answer_of_call_lost);
        drop(inner);
        match fault {
            Some((kind, what)) => {
                self.say(|| format!("{call}: {what}"));
                Err(Error::new(kind, format!("{call}: {what}")))
            }
            None => Ok(Pass { call, answer_is_lost, touch }),
        }
    }

    /// Hands an answer on, unless the process died or the answer is lost.
    pub fn answer<T>(&self, pass: Pass, answer: Result<T>) -> Result<T> {
        if pass.touch == Touch::Writes {
            self.crash_point(pass.call)?;
        }
        if pass.answer_is_lost && answer.is_ok() {
            self.say(|| format!("{}: done, but the answer is lost", pass.call));
            let message = format!("{}: the connection was lost", pass.call);
            return Err(Error::new(Kind::Transient, message));
        }
        answer
    }

    /// What becomes of a request for `what`. Depends on how often that was asked for and on
    /// nothing else, so that requests on the way at once do not disturb one another.
    pub fn store_fate(&self, what: &str) -> StoreFate {
        let mut inner = self.lock();
        let asked = inner.store_requests.entry(what.to_owned()).or_default();
        *asked += 1;
        let named = what.bytes().fold(inner.seed, |sum, byte| mixed(sum ^ u64::from(byte)));
        let asked = inner.store_requests[what];
        let mut chance = Chance::new(mixed(named ^ asked));
        let rates = if inner.is_calm { Rates::default() } else { inner.rates };
        let mut fate = StoreFate::Answered;
        for attempt in 1..=STORE_ATTEMPTS {
            if chance.happens(rates.store_slow) {
                inner.delay += chance.between(500, 5_000);
            }
            let failed = if chance.happens(rates.store_error) {
                "500 Internal Server Error"
            } else if chance.happens(rates.store_throttled) {
                "503 Slow Down"
            } else if chance.happens(rates.store_hang) {
                inner.delay += STORE_DEADLINE;
                "no answer"
            } else {
                fate = StoreFate::Answered;
                break;
            };
            inner.delay += 100 << attempt;
            fate = StoreFate::Failed(failed);
        }
        if fate == StoreFate::Answered && chance.happens(rates.store_flip) {
            fate = StoreFate::Flipped(chance.bits());
        }
        if fate != StoreFate::Answered && inner.log.is_some() {
            inner.store_notes.push(format!("store: {what} ({asked}): {fate:?}"));
        }
        fate
    }
}

fn dead() -> Error {
    Error::new(Kind::Fatal, "the process is dead")
}

impl Env for World {
    fn wall_time(&self) -> WallTime {
        let inner = self.lock();
        WallTime(inner.calendar + inner.now)
    }

    fn boot_time(&self) -> BootTime {
        let inner = self.lock();
        BootTime(inner.now - inner.booted_at)
    }

    fn boot_id(&self) -> u128 {
        u128::from(self.lock().boot)
    }

    fn random(&self) -> u64 {
        self.lock().chance.bits()
    }

    fn sleep(&self, duration: Duration) {
        self.lock().now += duration.as_millis() as u64;
    }
}
