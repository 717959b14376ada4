//! Taking an operation: at once from the dead, after the lease from the silent.

use std::time::Duration;

use super::{Intent, Job, Observer};
use crate::catalog::{Catalog, Hold, Holding};
use crate::database::Fence;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::{Epoch, OperationId};

/// Pause between two looks at a lease.
const LOOK: Duration = Duration::from_millis(250);

/// How long a holder may go without renewing before it is called silent: one that lives renews
/// every two seconds.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Takes the operation: raises the fence where the rows are, then tells the catalog.
///
/// A holder that renews its lease while we look is alive, and wins; one that stays silent is
/// taken over when its lease ends.
///
/// # Errors
/// [`Kind::Held`] naming the process that drives it.
pub(super) fn take(
    catalog: &dyn Catalog,
    job: &dyn Job,
    id: OperationId,
    intent: Intent,
    env: &dyn Env,
    observer: &mut dyn Observer,
) -> Result<Box<dyn Hold>> {
    // Of two that take it at once, the loser must not fence the winner.
    let _taking = catalog.taking(id)?;
    await_free(catalog, id, env, observer)?;
    let epoch = claim(catalog, job, id, intent)?;
    catalog.hold(id, epoch)
}

/// Raises the fence where the rows are and gives its epoch, for [`Catalog::hold`].
///
/// Whoever held the operation before can write nothing from here on, whether or not the
/// catalog ever learns of the new epoch. Call it inside [`Catalog::taking`].
///
/// # Errors
/// What the target says of hidden tables that are gone, and of a fence that is higher already.
pub fn claim(
    catalog: &dyn Catalog,
    job: &dyn Job,
    id: OperationId,
    intent: Intent,
) -> Result<Epoch> {
    let epoch = job.allocate_epoch()?;
    match intent {
        Intent::CarryOn => {
            let phase = catalog.state(id)?.state.phase;
            job.claim(Fence { operation: id, epoch }, &phase)?;
        }
        // Discarding raises the fence itself, also where shards are damaged.
        Intent::Cancel => {}
    }
    Ok(epoch)
}

fn await_free(
    catalog: &dyn Catalog,
    id: OperationId,
    env: &dyn Env,
    observer: &mut dyn Observer,
) -> Result<()> {
    let begun = env.boot_time();
    let mut least = u64::MAX;
    loop {
        let (pid, seconds) = match catalog.holder(id)? {
            Holding::Free | Holding::Dead { .. } => return Ok(()),
            Holding::Alive { lease_seconds: 0, .. } => return Ok(()),
            Holding::Alive { pid, lease_seconds } => (pid, lease_seconds),
        };
        if seconds > least || pid == std::process::id() {
            let message = format!(
                "operation {id} is being driven by process {pid}; watch it with `tidemark \
                 operation watch {id}`, or pause it with `tidemark operation pause {id}`"
            );
            return Err(Error::new(Kind::Held, message));
        }
        least = seconds;
        if env.boot_time().since(begun) >= SILENT_AFTER {
            observer.waiting_for_holder(pid, seconds);
        }
        env.sleep(LOOK);
    }
}
