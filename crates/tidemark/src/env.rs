//! Time, chance and sleep, the only way the crate gets them.
//!
//! Everything else takes a [`Env`], so that a simulator can own the clock and
//! the dice. Clippy refuses the wall clock and the random crates elsewhere.

use std::fmt::Debug;
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z, for people and for names.
///
/// Never decides an order: clocks jump.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(pub u64);

/// Milliseconds since the machine booted, suspended time included; comparable
/// only together with the same boot id. Leases and back-off are measured on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The instant `duration` later; saturates.
    #[must_use]
    pub fn after(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to here; zero if it is not earlier.
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The world outside: clocks, chance, rest.
pub trait Env: Debug + Send + Sync {
    /// The calendar, for names and for people.
    fn wall_time(&self) -> WallTime;

    /// The clock that leases and back-off use.
    fn boot_time(&self) -> BootTime;

    /// Names this boot of this machine; a lease of another boot has ended.
    fn boot_id(&self) -> u128;

    /// 64 bits that nobody can predict.
    fn random(&self) -> u64;

    /// Blocks the caller for about `duration`.
    fn sleep(&self, duration: Duration);

    /// 128 bits that nobody else will draw.
    fn random_id(&self) -> u128 {
        u128::from(self.random()) << 64 | u128::from(self.random())
    }
}

/// The real machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn wall_time(&self) -> WallTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        WallTime(millis(now))
    }

    fn boot_time(&self) -> BootTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        BootTime(millis(now))
    }

    fn boot_id(&self) -> u128 {
        // Linux gives every boot a UUID. Where it is hidden, 0 is as good: leases then
        // count on the boot clock alone, which starts again from zero at a reboot.
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0)
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        u64::from_le_bytes(bytes)
    }

    #[expect(clippy::disallowed_methods, reason = "this is where sleep enters the crate")]
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

fn millis(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}
