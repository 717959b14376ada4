//! The replication slot that keeps changes for a collection, and the publication that says of
//! which tables.
//!
//! Both are named `tidemark_` and the collection's id: one of each per collection. The slot's
//! position is at or before the cut of the newest backup; it moves only after the next one is
//! durable. So a crash anywhere leaves changes that are read again, never a gap.

use std::time::Duration;

use crate::database::postgres::error::{Refused, failed};
use crate::database::postgres::pgoutput::Lsn;
use crate::database::postgres::replication::{
    CreatedSlot, ReplicationSession, SlotLife, WAIT_STEP, parse_lsn, show_lsn,
};
use crate::database::postgres::{Purpose, Server, Session};
use crate::error::{Error, Kind, Result};
use crate::ids::CollectionId;

/// What an error has to do with a slot that somebody uses.
const IN_USE: &str = "55006";

/// Waiting that is short enough not to be told.
const SILENT_WAIT: Duration = Duration::from_secs(2);

/// The name of the slot and of the publication of a collection.
pub fn capture_name(collection: CollectionId) -> String {
    format!("tidemark_{collection}")
}

/// A replication slot, as the server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Name.
    pub name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database whose changes it tells.
    pub database: Option<String>,
    /// Process that reads from it now.
    pub reader: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server gave it up.
    pub invalidation: Option<String>,
    /// From where on the log is kept for it.
    pub restart: Option<Lsn>,
    /// Commits before it are not told any more.
    pub confirmed: Option<Lsn>,
    /// Bytes of the log that are kept for it.
    pub retained_bytes: u64,
    /// Bytes that can still be written before it is lost; `None` without a limit.
    pub safe_bytes: Option<i64>,
}

impl SlotFacts {
    /// Reads a slot; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`failed`] says.
    pub fn read(session: &mut Session, name: &str) -> Result<Option<SlotFacts>> {
        // Some columns came with later versions.
        let sql = "SELECT s.plugin::text, s.database::text, s.active_pid, s.wal_status, \
                   CASE WHEN to_jsonb(s)->>'conflicting' = 'true' THEN \
                     coalesce(to_jsonb(s)->>'invalidation_reason', 'a conflict with recovery') \
                     ELSE to_jsonb(s)->>'invalidation_reason' END, \
                   s.restart_lsn::text, s.confirmed_flush_lsn::text, \
                   CASE WHEN pg_is_in_recovery() THEN 0 \
                     ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::int8 END, \
                   s.safe_wal_size \
                   FROM pg_replication_slots s WHERE s.slot_name = $1::text";
        let what = format!("look at the replication slot `{name}`");
        let row = session.client().query_opt(sql, &[&name]).map_err(failed(&what))?;
        let lsn = |text: Option<String>| text.as_deref().and_then(parse_lsn);
        Ok(row.map(|row| SlotFacts {
            name: name.to_owned(),
            plugin: row.get(0),
            database: row.get(1),
            reader: row.get(2),
            wal_status: row.get(3),
            invalidation: row.get(4),
            restart: lsn(row.get(5)),
            confirmed: lsn(row.get(6)),
            retained_bytes: row.get::<_, Option<i64>>(7).unwrap_or(0).max(0) as u64,
            safe_bytes: row.get(8),
        }))
    }

    /// Why no increment can be read from it, if that is so: a clause.
    pub fn flaw(&self, database: &str) -> Option<String> {
        if let Some(reason) = &self.invalidation {
            return Some(format!("the server gave it up ({reason})"));
        }
        if self.wal_status.as_deref() == Some("lost") {
            let why = "the server removed the log it needs, because more than \
                       max_slot_wal_keep_size had piled up";
            return Some(why.to_owned());
        }
        match self.plugin.as_deref() {
            Some("pgoutput") => {}
            Some(plugin) => return Some(format!("it is of the plugin `{plugin}`, not of ours")),
            None => return Some("it is a physical slot, not of ours".to_owned()),
        }
        if self.database.as_deref() != Some(database) {
            let of = self.database.as_deref().unwrap_or("none");
            return Some(format!("it is of the database `{of}`, not of `{database}`"));
        }
        if self.confirmed.is_none() || self.restart.is_none() {
            return Some("it was never finished, or the log it needs is gone".to_owned());
        }
        None
    }
}

/// Creates a slot and says whom the server waits for meanwhile.
///
/// # Errors
/// [`Kind::Held`] when transactions that have written did not end within `wait`, with who they
/// are; those of [`ReplicationSession::create_slot`].
pub(super) fn create_slot(
    server: &Server,
    replication: &ReplicationSession,
    name: &str,
    life: SlotLife,
    wait: Duration,
) -> Result<CreatedSlot> {
    let mut watcher: Option<Session> = None;
    let mut steps = 0u32;
    let mut told = Vec::new();
    replication.create_slot(name, life, &mut |backend| {
        steps += 1;
        let waited = WAIT_STEP * steps;
        if waited < SILENT_WAIT && waited < wait {
            return Ok(());
        }
        let session = match &mut watcher {
            Some(session) => session,
            none => none.insert(server.connect(Purpose::Read)?),
        };
        let blockers = blockers(session, backend)?;
        if waited >= wait {
            // It would go on waiting long after we have gone.
            let end = "SELECT pg_terminate_backend($1)";
            session.client().query(end, &[&backend]).map_err(failed("end the wait for a cut"))?;
            let message = format!(
                "the server cannot tell a consistent moment while transactions that have written \
                 are open; {} s passed, and it still waits for {}. End them, or try again later",
                wait.as_secs(),
                shown(&blockers)
            );
            return Err(Error::new(Kind::Held, message));
        }
        if !blockers.is_empty() && blockers != told {
            let left = (wait - waited).as_secs();
            tracing::warn!(blockers = %shown(&blockers), "waiting up to {left} s for a cut");
            told = blockers;
        }
        Ok(())
    })
}

fn shown(blockers: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    match blockers {
        [] => "a transaction that cannot be seen from here".to_owned(),
        few if few.len() <= SHOWN_MAX => few.join(", "),
        many => format!("{} and {} more", many[..SHOWN_MAX].join(", "), many.len() - SHOWN_MAX),
    }
}

/// Whom the process `backend` waits for, for people.
fn blockers(session: &mut Session, backend: i32) -> Result<Vec<String>> {
    let what = "look who is waited for";
    // Somebody else's session shows only part of itself to an ordinary user.
    let sql = "SELECT b.pid, a.usename::text, a.application_name, a.state, \
               extract(epoch FROM clock_timestamp() - a.xact_start)::int8 \
               FROM unnest(pg_blocking_pids($1)) AS b (pid) \
               LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start";
    let rows = session.client().query(sql, &[&backend]).map_err(failed(what))?;
    let mut blockers = Vec::new();
    for row in rows {
        let pid: i32 = row.get(0);
        if pid == 0 {
            let sql = "SELECT gid, owner::text FROM pg_prepared_xacts ORDER BY prepared";
            let prepared = session.client().query(sql, &[]).map_err(failed(what))?;
            blockers.extend(prepared.iter().map(|row| {
                let (gid, owner): (String, String) = (row.get(0), row.get(1));
                format!("the prepared transaction `{gid}` of `{owner}`")
            }));
            continue;
        }
        let details = [
            row.get::<_, Option<String>>(1).map(|user| format!("user `{user}`")),
            row.get::<_, Option<String>>(2)
                .filter(|name| !name.is_empty())
                .map(|name| format!("`{name}`")),
            row.get::<_, Option<String>>(3),
            row.get::<_, Option<i64>>(4).map(|seconds| format!("open for {seconds} s")),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        blockers.push(match details.is_empty() {
            true => format!("process {pid}"),
            false => format!("process {pid} ({})", details.join(", ")),
        });
    }
    Ok(blockers)
}

/// Moves the slot of a collection on to `to`; never back.
///
/// A slot that is gone is no error: what was kept for the backup is in it already, and whoever
/// takes the next increment is told.
///
/// # Errors
/// [`Kind::Held`] while somebody else reads from it; as [`failed`] says otherwise.
pub(super) fn advance(session: &mut Session, name: &str, to: Lsn) -> Result<()> {
    let what = format!("move the replication slot `{name}` on to {}", show_lsn(to));
    let Some(slot) = SlotFacts::read(session, name)? else { return Ok(()) };
    if slot.flaw_without_database().is_some() || slot.confirmed.is_none_or(|at| at >= to) {
        return Ok(());
    }
    let sql = "SELECT pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)";
    let moved = session.client().execute(sql, &[&name, &show_lsn(to)]);
    match moved.map_err(failed(&what)) {
        Ok(_) => Ok(()),
        Err(error) if Refused::code_of(&error) == Some(IN_USE) => {
            let reader = slot.reader.map_or(String::new(), |pid| format!(" (process {pid})"));
            let message = format!("{what}: somebody else reads from it{reader}");
            Err(Error::with_source(Kind::Held, message, error))
        }
        Err(error) => Err(error),
    }
}

impl SlotFacts {
    /// [`flaw`](Self::flaw), of whatever database it is.
    fn flaw_without_database(&self) -> Option<String> {
        self.flaw(self.database.as_deref().unwrap_or_default())
    }
}

/// A replication slot that is a copy of another one and lives as long as its session: what is
/// read from it is still told by the other one.
#[derive(Debug)]
pub(super) struct SlotCopy {
    session: Session,
    name: String,
}

impl SlotCopy {
    /// Copies the slot `of`.
    ///
    /// # Errors
    /// [`Kind::Blocked`] when the server has no slot left; as [`failed`] says otherwise.
    pub(super) fn create(server: &Server, of: &str, random: u64) -> Result<SlotCopy> {
        let mut session = server.connect(Purpose::Read)?;
        let name = format!("tidemark_reader_{random:016x}");
        let sql = "SELECT pg_copy_logical_replication_slot($1::text::name, $2::text::name, true)";
        session
            .client()
            .execute(sql, &[&of, &name])
            .map_err(failed(&format!("copy the replication slot `{of}`")))?;
        Ok(SlotCopy { session, name })
    }

    /// The session that it lives in, and its name.
    pub(super) fn parts(&mut self) -> (&mut Session, &str) {
        (&mut self.session, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> SlotFacts {
        SlotFacts {
            name: "tidemark_7".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            reader: None,
            wal_status: Some("reserved".to_owned()),
            invalidation: None,
            restart: Some(5),
            confirmed: Some(6),
            retained_bytes: 0,
            safe_bytes: None,
        }
    }

    #[test]
    fn a_slot_that_is_lost_foreign_or_unfinished_is_told() {
        assert_eq!(slot().flaw("shop"), None);
        let lost = SlotFacts { wal_status: Some("lost".to_owned()), ..slot() };
        assert!(lost.flaw("shop").unwrap().contains("max_slot_wal_keep_size"));
        let invalid = SlotFacts { invalidation: Some("idle_timeout".to_owned()), ..slot() };
        assert!(invalid.flaw("shop").unwrap().contains("idle_timeout"));
        let other = SlotFacts { plugin: Some("wal2json".to_owned()), ..slot() };
        assert!(other.flaw("shop").unwrap().contains("wal2json"));
        assert!(SlotFacts { plugin: None, ..slot() }.flaw("shop").unwrap().contains("physical"));
        assert!(slot().flaw("other").unwrap().contains("`shop`"));
        assert!(SlotFacts { restart: None, ..slot() }.flaw("shop").is_some());
    }

    #[test]
    fn few_blockers_are_named_and_many_are_counted() {
        let blockers: Vec<String> = (0..7).map(|pid| format!("process {pid}")).collect();
        assert_eq!(shown(&blockers[..2]), "process 0, process 1");
        assert!(shown(&blockers).ends_with("process 4 and 2 more"));
        assert!(shown(&[]).contains("cannot be seen"));
    }
}
