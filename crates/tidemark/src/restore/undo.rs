//! Giving a restore up: what it made in the target and in the scratch folder goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::database::{Fence, Target};
use crate::error::{Kind, Result};
use crate::executor::Undo;
use crate::ids::{Epoch, OperationId};
use crate::operation::TaskOutcome;

/// The work of cancelling a restore into `target`, which needs nothing but that target.
///
/// `scratch` is the folder of sorted runs that the restore was given.
pub fn undo_restore(target: Arc<dyn Target>, scratch: &Path) -> Undo<'static> {
    let allocating = Arc::clone(&target);
    let scratch = scratch.to_owned();
    Undo::new(
        move || {
            // Drawing the number is the first thing that writes.
            allocating.make_room()?;
            Ok(Epoch(allocating.allocate_txn()?.0))
        },
        move |fence| discard(&*target, &scratch, fence),
    )
}

/// Removes hidden tables, reservations and sorted runs; tells when all was published before.
///
/// # Errors
/// As [`Target::discard`], but for its refusal after publishing.
pub(super) fn discard(target: &dyn Target, scratch: &Path, fence: Fence) -> Result<TaskOutcome> {
    target.make_room()?;
    let outcome = match target.discard(fence) {
        Ok(()) => TaskOutcome::Discarded,
        Err(error) if error.kind() == Kind::Usage => TaskOutcome::Published,
        Err(error) => return Err(error),
    };
    clear_scratch(scratch, fence.operation);
    Ok(outcome)
}

/// Folder of an operation's sorted runs.
pub(super) fn scratch_of(scratch: &Path, operation: OperationId) -> PathBuf {
    scratch.join(format!("restore-{operation}"))
}

/// Removes what the operation put into the scratch folder; nobody misses it.
pub(super) fn clear_scratch(scratch: &Path, operation: OperationId) {
    let folder = scratch_of(scratch, operation);
    if let Err(cause) = std::fs::remove_dir_all(&folder)
        && cause.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %cause, "could not remove the scratch folder");
    }
}
