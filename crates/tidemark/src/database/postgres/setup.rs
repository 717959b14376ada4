//! What increments need on a server: making it, looking at it, removing it.
//!
//! A publication names the tables whose changes are told, a replication slot keeps the log
//! until they were read. Both belong to one collection, and both are only ever made and
//! removed by request: a slot that nobody reads from fills the server's disk.

use std::time::Duration;

use crate::database::postgres::capture::{identity_flaw, snapped, sql_name};
use crate::database::postgres::catalog::{self, TableFacts, Which};
use crate::database::postgres::error::{Refused, failed};
use crate::database::postgres::replication::{ReplicationSession, SlotLife};
use crate::database::postgres::slot::{SlotFacts, capture_name, create_slot};
use crate::database::postgres::{Purpose, Server, Session, quoted};
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, TableName};

/// How a collection's changes are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Name of the slot and of the publication.
    pub name: String,
    /// The slot; `None` if there is none.
    pub slot: Option<SlotFacts>,
    /// What is wrong with the slot: a clause.
    pub slot_flaw: Option<String>,
    /// Whether there is a publication.
    pub is_published: bool,
    /// Tables whose changes are told, sorted.
    pub captured: Vec<TableName>,
    /// The others, sorted, each with a clause that says why; increments carry them whole.
    pub whole: Vec<(TableName, String)>,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_slot_wal_keep_size` in bytes; `None` for no limit.
    pub wal_kept_bytes_max: Option<u64>,
    /// Whether the server only replays what another one sends.
    pub is_standby: bool,
}

/// Looks at what is there.
///
/// # Errors
/// As [`Server::connect`].
pub fn status(server: &Server, collection: CollectionId) -> Result<CaptureStatus> {
    let mut session = server.connect(Purpose::Read)?;
    read_status(&mut session, &capture_name(collection))
}

fn read_status(session: &mut Session, name: &str) -> Result<CaptureStatus> {
    let database = catalog::database(session)?;
    let slot = SlotFacts::read(session, name)?;
    let slot_flaw = slot.as_ref().and_then(|slot| slot.flaw(&database.name));
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1::text), \
               current_setting('wal_level'), \
               (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size')";
    let row = session.client().query_one(sql, &[&name]).map_err(failed("look at the settings"))?;
    let kept_megabytes: Option<i64> = row.get(2);
    let mut status = CaptureStatus {
        name: name.to_owned(),
        slot,
        slot_flaw,
        is_published: row.get(0),
        captured: Vec::new(),
        whole: Vec::new(),
        wal_level: row.get(1),
        wal_kept_bytes_max: kept_megabytes
            .and_then(|max| u64::try_from(max).ok())
            .map(|max| max << 20),
        is_standby: database.is_standby,
    };
    let snapped = snapped(session.client(), name)?;
    for facts in catalog::tables(session.client(), Which::OfUsers)? {
        if facts.kind != 'r' {
            continue;
        }
        let found = snapped.get(&facts.oid);
        let unpublished = found.and_then(|snapped| snapped.unpublished.clone());
        let why = identity_flaw(&facts).map(str::to_owned).or(unpublished);
        match why {
            Some(why) => status.whole.push((facts.name, why)),
            None if found.is_some_and(|snapped| snapped.published.is_some()) => {
                status.captured.push(facts.name);
            }
            None => status.whole.push((facts.name, "it is not in the publication".to_owned())),
        }
    }
    Ok(status)
}

/// What was made, and how it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUp {
    /// Tables that were added to the publication, sorted.
    pub added: Vec<TableName>,
    /// Tables that were taken out of it, sorted.
    pub removed: Vec<TableName>,
    /// Whether the slot was made.
    pub made_slot: bool,
    /// How it stands now.
    pub status: CaptureStatus,
}

/// Makes the publication of the tables that `selects` says yes to, then the slot.
///
/// Only tables whose rows the log identifies are published: of any other, updates and deletes
/// would be refused to everybody. Calling it again brings the list of tables up to date and
/// keeps the slot; a crash in the middle leaves a publication without a slot, which does no
/// harm.
///
/// # Errors
/// [`Kind::Usage`]: a standby, or a server whose log does not tell rows (`wal_level`).
/// [`Kind::Broken`]: there is a slot of that name that cannot tell changes any more.
/// [`Kind::Blocked`]: the role may not do it, or the server has no slot left.
/// [`Kind::Held`]: transactions that have written did not end within `wait`.
pub fn set_up(
    server: &Server,
    collection: CollectionId,
    selects: &mut dyn FnMut(&TableName) -> bool,
    wait: Duration,
) -> Result<SetUp> {
    let name = capture_name(collection);
    // The only thing that is ever written to a source.
    let mut session = server.connect(Purpose::Write)?;
    let before = read_status(&mut session, &name)?;
    check_server(server, &before)?;
    let wanted: Vec<TableFacts> = catalog::tables(session.client(), Which::OfUsers)?
        .into_iter()
        .filter(|facts| facts.kind == 'r' && selects(&facts.name) && identity_flaw(facts).is_none())
        .collect();
    let is_missing = |names: &[TableName], name: &TableName| names.binary_search(name).is_err();
    let wanted_names: Vec<TableName> = wanted.iter().map(|facts| facts.name.clone()).collect();
    let added = wanted_names.iter().filter(|name| is_missing(&before.captured, name)).cloned();
    let removed = before.captured.iter().filter(|name| is_missing(&wanted_names, name)).cloned();
    let (added, removed): (Vec<TableName>, Vec<TableName>) = (added.collect(), removed.collect());
    if !before.is_published || !added.is_empty() || !removed.is_empty() {
        publish(&mut session, &before, &wanted)?;
    }
    let made_slot = before.slot.is_none();
    if made_slot {
        let replication = ReplicationSession::connect(server)?;
        create_slot(server, &replication, &name, SlotLife::Lasting, wait)?;
    }
    let status = read_status(&mut session, &name)?;
    Ok(SetUp { added, removed, made_slot, status })
}

fn check_server(server: &Server, status: &CaptureStatus) -> Result<()> {
    let without = "A full backup (--full) works without";
    let refused = if status.is_standby {
        format!(
            "`{}` is a standby, which can neither publish nor keep changes; set up the primary. \
             {without}",
            server.shown()
        )
    } else if status.wal_level != "logical" {
        format!(
            "the log of `{}` does not tell rows: its wal_level is `{}`, and increments need \
             `logical`. Set `wal_level = logical` in its postgresql.conf and restart it. {without}",
            server.shown(),
            status.wal_level
        )
    } else if let Some(flaw) = &status.slot_flaw {
        let message = format!(
            "there is a replication slot `{}`, but {flaw}; remove it with `tidemark source drop` \
             first, and take a full backup after setting up again",
            status.name
        );
        return Err(Error::new(Kind::Broken, message));
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, refused))
}

/// Makes the publication, or gives it another list of tables.
///
/// An entry that stays is not touched: it proves that its table was published all the time.
fn publish(session: &mut Session, before: &CaptureStatus, wanted: &[TableFacts]) -> Result<()> {
    let name = quoted(&before.name);
    let list: Vec<String> =
        wanted.iter().map(|facts| format!("ONLY {}", sql_name(facts))).collect();
    let list = list.join(", ");
    let options =
        "publish = 'insert, update, delete, truncate', publish_via_partition_root = false";
    let sql = match (before.is_published, wanted.is_empty()) {
        (false, false) => format!("CREATE PUBLICATION {name} FOR TABLE {list} WITH ({options})"),
        (false, true) => format!("CREATE PUBLICATION {name} WITH ({options})"),
        (true, false) => format!("ALTER PUBLICATION {name} SET TABLE {list}"),
        (true, true) => {
            let captured: Vec<String> = before
                .captured
                .iter()
                .map(|table| format!("ONLY {}.{}", quoted(table.schema()), quoted(table.name())))
                .collect();
            format!("ALTER PUBLICATION {name} DROP TABLE {}", captured.join(", "))
        }
    };
    let what = format!("publish the changes of {} tables", wanted.len());
    session.client().batch_execute(&sql).map_err(failed(&what)).map_err(|error| {
        match Refused::code_of(&error) {
            Some("42501") => error.context(
                "publishing needs the right to create in the database and every table's owner; \
                 somebody who has them runs this command once",
            ),
            _ => error,
        }
    })
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Whether there was a slot.
    pub slot: bool,
    /// Whether there was a publication.
    pub publication: bool,
}

/// Removes slot and publication of a collection; the log that was kept for it goes. Idempotent.
///
/// # Errors
/// [`Kind::Held`] while somebody reads from the slot; [`Kind::Blocked`] for a role that may not.
pub fn drop_capture(server: &Server, collection: CollectionId) -> Result<Dropped> {
    let name = capture_name(collection);
    let mut session = server.connect(Purpose::Write)?;
    // The slot first: it is what fills disks.
    let slot = SlotFacts::read(&mut session, &name)?;
    if let Some(slot) = &slot {
        let what = format!("drop the replication slot `{name}`");
        let sql = "SELECT pg_drop_replication_slot($1::text::name)";
        session.client().execute(sql, &[&name]).map_err(failed(&what)).map_err(|error| {
            if Refused::code_of(&error) == Some("55006") {
                let reader =
                    slot.reader.map_or("somebody".to_owned(), |pid| format!("process {pid}"));
                let message = format!("{what}: {reader} reads from it");
                return Error::with_source(Kind::Held, message, error);
            }
            error
        })?;
    }
    let publication = read_status(&mut session, &name)?.is_published;
    if publication {
        let sql = format!("DROP PUBLICATION IF EXISTS {}", quoted(&name));
        session.client().batch_execute(&sql).map_err(failed("drop the publication"))?;
    }
    Ok(Dropped { slot: slot.is_some(), publication })
}
