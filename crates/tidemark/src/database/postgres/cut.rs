//! The sessions of one cut: one that holds its snapshot, and others that read what it shows.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::CancelToken;

use crate::database::postgres::error::failed;
use crate::database::postgres::pgoutput::Lsn;
use crate::database::postgres::replication::{ReplicationSession, SlotLife, parse_lsn};
use crate::database::postgres::slot::create_slot;
use crate::database::postgres::{Purpose, Server, Session, literal};
use crate::database::scratch::Scratch;
use crate::env::Env;
use crate::error::{Error, Kind, Result};

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// How a cut gets its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutBy {
    /// By a temporary slot: every commit is either before the position and seen, or neither.
    Slot {
        /// How long transactions that have written are waited for.
        wait: Duration,
    },
    /// By looking at the log afterwards: good enough where no increment follows.
    Look,
}

/// Sessions that all see the same moment.
///
/// Ends with the value, or with the session that holds the snapshot; what was read stays right.
pub(super) struct CutSessions {
    server: Server,
    /// Name under which the holder exports its snapshot.
    snapshot: String,
    holder: Mutex<Session>,
    idle: Mutex<Vec<Session>>,
    scratch: PathBuf,
    env: Arc<dyn Env>,
}

impl CutSessions {
    /// Takes a snapshot of this moment, and its position.
    ///
    /// # Errors
    /// [`Kind::Held`] when transactions did not end in time; as [`failed`] says otherwise.
    pub(super) fn begin(
        server: &Server,
        by: CutBy,
        scratch: PathBuf,
        env: &Arc<dyn Env>,
    ) -> Result<(CutSessions, Lsn)> {
        let what = "take a snapshot";
        let mut holder = server.connect(Purpose::Read)?;
        let position = match by {
            CutBy::Look => {
                holder.client().batch_execute(BEGIN).map_err(failed(what))?;
                None
            }
            CutBy::Slot { wait } => {
                let replication = ReplicationSession::connect(server)?;
                let name = format!("tidemark_cut_{:016x}", env.random());
                let slot = create_slot(server, &replication, &name, SlotLife::OfSession, wait)?;
                let snapshot = slot.snapshot.ok_or_else(|| {
                    Error::new(Kind::Unsupported, "the server gave a slot without a snapshot")
                })?;
                let import = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(&snapshot));
                holder.client().batch_execute(&import).map_err(failed(what))?;
                // From here on the holder keeps the snapshot; the slot would keep the log.
                replication.drop_slot(&name)?;
                Some(slot.consistent_point)
            }
        };
        let sql = "SELECT pg_export_snapshot(), \
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                     ELSE pg_current_wal_insert_lsn() END::text";
        let row = holder.client().query_one(sql, &[]).map_err(failed(what))?;
        let looked: Option<String> = row.get(1);
        let position = position.or_else(|| parse_lsn(&looked?));
        let position = position.ok_or_else(|| {
            Error::new(Kind::Unsupported, "the server does not tell its place in the log")
        })?;
        let sessions = CutSessions {
            server: server.clone(),
            snapshot: row.get(0),
            holder: Mutex::new(holder),
            idle: Mutex::default(),
            scratch,
            env: Arc::clone(env),
        };
        Ok((sessions, position))
    }

    /// The session that holds the snapshot.
    pub(super) fn holder(&self) -> MutexGuard<'_, Session> {
        lock(&self.holder)
    }

    /// A session that sees the snapshot.
    ///
    /// # Errors
    /// [`Kind::Fatal`] when the session that holds it is gone: nothing can be read from the cut
    /// any more. As [`Server::connect`] otherwise.
    pub(super) fn take(&self) -> Result<Session> {
        if let Some(session) = lock(&self.idle).pop() {
            return Ok(session);
        }
        let mut session = self.server.connect(Purpose::Read)?;
        let import = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(&self.snapshot));
        let imported = session.client().batch_execute(&import);
        imported.map_err(failed("read from the cut")).map_err(|error| match self.is_held() {
            true => error,
            false => {
                let message = "the session that held the cut is gone, and the cut with it: the \
                               server was restarted, or somebody ended the session. The same \
                               command takes a new cut";
                Error::with_source(Kind::Fatal, message, error)
            }
        })?;
        Ok(session)
    }

    /// Takes a session back that is idle in its transaction.
    pub(super) fn give_back(&self, session: Session) {
        lock(&self.idle).push(session);
    }

    /// Ends what a session is doing.
    pub(super) fn cancel(&self, token: &CancelToken) {
        self.server.cancel(token);
    }

    /// A folder for what does not fit into memory.
    ///
    /// # Errors
    /// Those of making it.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        Scratch::create(&self.scratch, &*self.env)
    }

    fn is_held(&self) -> bool {
        self.holder().client().batch_execute("SELECT 1").is_ok()
    }
}

impl std::fmt::Debug for CutSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CutSessions")
            .field("server", &self.server)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// What a thread that panicked leaves is a session like any other.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
