//! Time, chance and sleep, the only way the crate gets them; and folders that last.
//!
//! Everything else takes a [`Env`], so that a simulator can own the clock and
//! the dice. Clippy refuses the wall clock and the random crates elsewhere.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::Path;
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

/// How often a folder is begun anew that others remove while it is made.
const FOLDER_TRIES: u32 = 100;

/// Makes a folder and those above it that are missing; on return their names are durable.
///
/// Each is made and synced before the next is made in it. So of those that are there already,
/// whoever made them, only the last can be one whose maker died before it was synced.
///
/// # Errors
/// [`io::ErrorKind::NotADirectory`] when a file has one of the names.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let mut tries = 1;
    loop {
        match make_missing(&folder) {
            // Somebody removed what was empty.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && tries < FOLDER_TRIES => {
                tries += 1;
            }
            made => return made,
        }
    }
}

fn make_missing(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|above| !above.is_dir()).collect();
    let there = folder.ancestors().nth(missing.len());
    if let Some(around) = there.and_then(Path::parent) {
        sync_entries(around)?;
    }
    for made in missing.into_iter().rev() {
        match fs::create_dir(made) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                if !made.is_dir() {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
            }
            other => other?,
        }
        made.parent().map_or(Ok(()), sync_entries)?;
    }
    Ok(())
}

/// Makes the names in a folder durable, unless it is closed to us.
fn sync_entries(folder: &Path) -> io::Result<()> {
    match sync_folder(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Makes the names in a folder durable: new, moved and removed ones.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems cannot sync a directory and have no need to.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

fn millis(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}
