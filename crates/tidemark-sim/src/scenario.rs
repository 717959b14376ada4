//! The scenarios: what is done, and what goes wrong meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark::Result;
use tidemark::restore::{PlanKind, RestoreOptions};

use crate::chain::{ChainSize, SimChain};
use crate::chance::{Chance, Rate, mixed};
use crate::world::Rates;

/// Chains that a scenario has; each seed takes one of them, so that few are built.
const CHAINS: u64 = 64;

const SIZE: ChainSize = ChainSize { tables_max: 3, links_min: 1, links_max: 5, rows_max: 24 };

/// What a run does and what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scenario {
    /// A fold into a fresh target; a little of everything goes wrong.
    RestoreFold,
    /// A step per backup; a little of everything goes wrong.
    RestoreSequential,
    /// A copy, published or held, moves on to a later backup.
    RollForward,
    /// The process dies at one gate after the other, a different one for every seed.
    CrashEverywhere,
    /// Processes freeze, wake after their lease, and fight for the operation.
    TwoDrivers,
    /// Somebody pauses, resumes, changes the window and cancels, at any time.
    PauseCancelAnywhere,
    /// Of the requests to the store 15 % fail, 20 % are throttled, 10 % are slow, and 0.5 % of
    /// the answers have a flipped bit.
    ChaosStore,
    /// A job of very many shards, on counters instead of rows.
    MillionShards,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Scenario; 8] = [
        Scenario::RestoreFold,
        Scenario::RestoreSequential,
        Scenario::RollForward,
        Scenario::CrashEverywhere,
        Scenario::TwoDrivers,
        Scenario::PauseCancelAnywhere,
        Scenario::ChaosStore,
        Scenario::MillionShards,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::RestoreFold => "restore_fold",
            Scenario::RestoreSequential => "restore_sequential",
            Scenario::RollForward => "roll_forward",
            Scenario::CrashEverywhere => "crash_everywhere",
            Scenario::TwoDrivers => "two_drivers",
            Scenario::PauseCancelAnywhere => "pause_cancel_anywhere",
            Scenario::ChaosStore => "chaos_store",
            Scenario::MillionShards => "million_shards",
        }
    }

    /// The scenario of that name.
    pub fn from_name(name: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// What goes wrong, and how often.
    pub fn rates(self) -> Rates {
        let little = Rates {
            error: Rate(60),
            throttled: Rate(60),
            fatal: Rate(3),
            disk_full: Rate(8),
            answer_of_call_lost: Rate(60),
            slow: Rate(60),
            crash: Rate(40),
            hang: Rate(40),
            answer_lost: Rate(300),
            answer_doubled: Rate(1000),
            answer_late: Rate(1000),
            freeze: Rate(10),
            second_driver: Rate(10),
            steer: Rate(20),
            cancel: Rate(2),
            clock_jump: Rate(20),
            reboot: Rate(3),
            store_error: Rate(100),
            store_throttled: Rate(100),
            store_slow: Rate(100),
            store_hang: Rate(10),
            store_flip: Rate(5),
            store_damage: Rate(5),
        };
        match self {
            Scenario::RestoreFold | Scenario::RestoreSequential | Scenario::RollForward => little,
            // The death that the seed chooses is the only fault.
            Scenario::CrashEverywhere => Rates::default(),
            Scenario::TwoDrivers => Rates {
                freeze: Rate(300),
                second_driver: Rate(500),
                crash: Rate(60),
                answer_late: Rate(500),
                slow: Rate(300),
                store_slow: Rate(300),
                clock_jump: Rate(100),
                reboot: Rate(20),
                ..Rates::default()
            },
            Scenario::PauseCancelAnywhere => Rates {
                steer: Rate(1500),
                cancel: Rate(150),
                crash: Rate(30),
                error: Rate(100),
                answer_of_call_lost: Rate(200),
                answer_late: Rate(300),
                slow: Rate(200),
                ..Rates::default()
            },
            Scenario::ChaosStore => Rates {
                store_error: Rate::percent(15),
                store_throttled: Rate::percent(20),
                store_slow: Rate::percent(10),
                store_flip: Rate(50),
                store_hang: Rate(20),
                store_damage: Rate(20),
                crash: Rate(5),
                answer_lost: Rate(100),
                answer_doubled: Rate(100),
                answer_late: Rate(100),
                ..Rates::default()
            },
            Scenario::MillionShards => Rates {
                error: Rate(20),
                answer_of_call_lost: Rate(1),
                answer_lost: Rate(1),
                answer_doubled: Rate(20),
                answer_late: Rate(20),
                ..Rates::default()
            },
        }
    }
}

/// Everything that a seed decides before a run begins.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) chain: Arc<SimChain>,
    pub(crate) options: RestoreOptions,
    /// Position of the restore point in the chain.
    pub(crate) point: usize,
    /// Position of the backup that a copy stands at already, and whether it is held.
    pub(crate) base: Option<(usize, bool)>,
    pub(crate) window: u32,
    pub(crate) chunk_rows_max: u32,
    /// Step of the schedule at which somebody cancels, whatever else goes wrong.
    pub(crate) cancelled_at: Option<u64>,
}

impl Setup {
    pub(crate) fn new(scenario: Scenario, seed: u64) -> Result<Setup> {
        let mut chance = Chance::new(mixed(seed ^ 0x5e7));
        let rolls = match scenario {
            Scenario::RollForward => true,
            Scenario::CrashEverywhere | Scenario::TwoDrivers | Scenario::PauseCancelAnywhere => {
                chance.happens(Rate::percent(25))
            }
            Scenario::RestoreFold
            | Scenario::RestoreSequential
            | Scenario::ChaosStore
            | Scenario::MillionShards => false,
        };
        let size = if rolls { ChainSize { links_min: 2, ..SIZE } } else { SIZE };
        let chain = chain(chance.below(CHAINS), size)?;
        let plan = match scenario {
            Scenario::RestoreFold | Scenario::ChaosStore => Some(PlanKind::Fold),
            Scenario::RestoreSequential => Some(PlanKind::Sequential),
            _ if rolls => None,
            _ if chance.below(2) == 0 => Some(PlanKind::Fold),
            _ => Some(PlanKind::Sequential),
        };
        let links = chain.links as usize;
        let base = rolls
            .then(|| (chance.below(links as u64 - 1) as usize, chance.happens(Rate::percent(40))));
        // What is visible is never hidden; a held copy may be shown where it stands.
        let held = base.is_some_and(|base| base.1);
        let hold = rolls && chance.happens(Rate::percent(60)) && held;
        let shown = usize::from(!held || hold);
        let first_point = base.map_or(0, |(link, _)| link + shown) as u64;
        let newest = links as u64 - 1;
        let point = match chance.below(3) {
            0 => chance.between(first_point, newest),
            _ => newest,
        } as usize;
        let shards = (!rolls).then(|| chance.between(1, 5) as u32);
        let options = RestoreOptions {
            at: format!("#{}", point + 1),
            shards,
            plan,
            hold,
            roll_forward: rolls,
            ..RestoreOptions::default()
        };
        let is_cancelled =
            scenario == Scenario::CrashEverywhere && chance.happens(Rate::percent(25));
        let cancelled_at = is_cancelled.then(|| chance.between(3, 60));
        Ok(Setup {
            chain,
            options,
            point,
            base,
            window: chance.between(1, 4) as u32,
            chunk_rows_max: chance.between(1, 7) as u32,
            cancelled_at,
        })
    }
}

/// The chain of that number, built once per process.
fn chain(number: u64, size: ChainSize) -> Result<Arc<SimChain>> {
    type Built = BTreeMap<(u64, u64), Arc<SimChain>>;
    static BUILT: Mutex<Built> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let at = (number, size.links_min);
    if let Some(chain) = built.get(&at) {
        return Ok(Arc::clone(chain));
    }
    let chain = Arc::new(SimChain::build(number, size)?);
    built.insert(at, Arc::clone(&chain));
    Ok(chain)
}
