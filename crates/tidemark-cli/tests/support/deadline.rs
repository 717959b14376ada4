//! Waiting for something to become true, for so long and no longer.

use std::time::{Duration, Instant};

/// The longest that any single wait of a test lasts; far more than an honest one needs.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(120);

/// Asks again and again until `answer` has one; `None` when `patience` has run out.
///
/// The pause between two questions is no synchronisation: a longer or a shorter one
/// changes only how soon the answer is seen.
#[expect(clippy::disallowed_methods, reason = "other processes run on the real clock")]
pub(crate) fn poll<T>(patience: Duration, mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    const PAUSE: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return Some(answer);
        }
        if begun.elapsed() >= patience {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `holds`; panics with `what` after [`WAIT_MAX`].
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    poll(WAIT_MAX, || holds().then_some(()))
        .unwrap_or_else(|| panic!("waited {} s in vain until {what}", WAIT_MAX.as_secs()));
}
