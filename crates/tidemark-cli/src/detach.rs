//! Background: the same operation, driven by a process of its own session.
//!
//! The operation is recorded first, so the child is just `tidemark operation resume ID`;
//! nothing depends on this process any more once the child holds the operation.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidemark::catalog::{Catalog, Holding};
use tidemark::env::Env;
use tidemark::ids::OperationId;
use tidemark::{Error, Kind, Result};

use crate::exit::Exit;
use crate::output::Output;
use crate::place::Place;

/// How long the child may take to hold the operation: it opens the same database again.
const START_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the child.
const LOOK: Duration = Duration::from_millis(50);
/// What is shown of the log of a child that ended at once, in bytes.
const LOG_SHOWN_MAX: usize = 2000;

/// An operation that runs in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct DetachedView {
    operation: u64,
    pid: u32,
    log: String,
    watch: String,
}

/// Starts a process that carries on with `id`, and says how to watch it.
///
/// # Errors
/// [`Kind::Fatal`] when the process cannot be started, or ends before it holds the operation,
/// with what it had to say. The operation stays recorded and can be resumed.
pub(crate) fn start(
    place: &Place,
    id: OperationId,
    env: &Arc<dyn Env>,
    output: Output,
) -> Result<Exit> {
    let log = place.logs.join(format!("operation-{id}.log"));
    let opening = |cause| Error::io(format!("open the log `{}`", log.display()), cause);
    let file = OpenOptions::new().create(true).append(true).open(&log).map_err(opening)?;
    let from = file.metadata().map_err(opening)?.len();
    let starting = |cause| Error::io("start a process in the background", cause);
    let program = std::env::current_exe().map_err(starting)?;
    let mut child = Command::new(program)
        .args(place.operation_args("resume", id))
        .arg("--own-session")
        .envs(place.password().map(|password| ("PGPASSWORD", password)))
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(opening)?)
        .stderr(file)
        .spawn()
        .map_err(starting)?;
    let pid = child.id();
    let deadline = env.boot_time().after(START_MAX);
    loop {
        if matches!(place.catalog.holder(id)?, Holding::Alive { pid: holder, .. } if holder == pid)
        {
            break;
        }
        if let Some(status) = child.try_wait().map_err(starting)? {
            // A short operation may be over before it was seen to begin.
            if place.catalog.state(id)?.state.phase.is_terminal() {
                break;
            }
            let said = tail(&log, from);
            let message = format!(
                "the process in the background ended with {status} before it drove operation {id}: \
                 {said}"
            );
            return Err(Error::new(Kind::Fatal, message));
        }
        if env.boot_time() >= deadline {
            let message = format!(
                "process {pid} was started for operation {id} and does not drive it after {} s; its \
                 log is `{}`",
                START_MAX.as_secs(),
                log.display()
            );
            return Err(Error::new(Kind::Fatal, message));
        }
        env.sleep(LOOK);
    }
    let view = DetachedView {
        operation: id.0,
        pid,
        log: log.display().to_string(),
        watch: place.operation_command("watch", id),
    };
    output.summary("detached", &view, || {
        format!(
            "operation {id} runs in the background as process {pid}, its log is `{}`\n\
             watch it:    {}\nwait for it: {}\npause it:    {}\n",
            view.log,
            view.watch,
            place.operation_command("wait", id),
            place.operation_command("pause", id),
        )
    })?;
    Ok(Exit::Done)
}

/// The child's side: leaves the session of the terminal, whose end must not end it.
///
/// # Errors
/// [`Kind::Fatal`] when the process leads a group already, so somebody else started it.
pub(crate) fn enter_own_session() -> Result<()> {
    rustix::process::setsid()
        .map(|_| ())
        .map_err(|cause| Error::io("leave the terminal's session", cause.into()))?;
    // The log is read by people later, who want to know whose lines these are.
    let _ = writeln!(std::io::stderr(), "process {} begins", std::process::id());
    Ok(())
}

/// The end of what was added to the log.
fn tail(log: &Path, from: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    let added = &bytes[from..];
    let shown = &added[added.len().saturating_sub(LOG_SHOWN_MAX)..];
    String::from_utf8_lossy(shown).trim().to_owned()
}
