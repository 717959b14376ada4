//! The database as a [`Target`]: hidden tables, marks beside them, and one transaction at the end.
//!
//! Everything that is remembered lies in the schema `tidemark` of the database itself, see
//! `target/records.rs`. The hidden tables of an operation lie in a schema of their own, which
//! its role alone can enter.
//!
//! # Order
//! A chunk's transaction writes rows first and updates the mark last, and only if the mark is
//! still the one that was read and the epoch still the caller's. So the row of the mark is
//! locked for the moment of the commit alone, and a holder that stops before it blocks nobody;
//! whoever takes over ends the sessions of older epochs that are inside a transaction.
//!
//! # How rows change
//! Rows beyond everything that a shard holds are copied in, without a key on the table. For
//! others the keys go into a staging table, the rows that stand there are read by one join and
//! removed by another, and the new ones are copied in. A copy that is published is not touched
//! before the end: its changes lie in a table beside it, `gone` where a row is deleted, and are
//! merged into it in the transaction that publishes.
//!
//! # Whether a copy was written to
//! No trigger is left in it. What publishing recorded is a snapshot: every row that was
//! written by a transaction that the snapshot does not see was written by somebody else, and
//! rows that are fewer than recorded were deleted. One scan on the server tells.

mod apply;
mod copy;
mod discard;
mod hidden;
mod layout;
mod prepare;
mod publish;
mod read;
mod records;
mod seal;
mod structure;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::database::postgres::catalog::{self, DatabaseFacts};
use crate::database::postgres::error::failed;
use crate::database::postgres::{Purpose, Server, Session};
use crate::database::{
    ChangesMax, ExistingTable, Fence, Mark, Publish, Target, TargetShard, TargetTable,
};
use crate::error::{Error, Kind, Result};
use crate::ids::{OperationId, ShardIdx, TableName, Txn};
use crate::row::{RowBatch, RowStream};
use hidden::HiddenCache;

/// Sessions that are kept for the next call.
const IDLE_MAX: usize = 16;

/// A database that restores go into.
pub struct PostgresTarget {
    server: Server,
    database: DatabaseFacts,
    /// Whose operations these are: their numbers count per catalog.
    scope: String,
    idle: Mutex<Vec<Session>>,
    /// Whether the schema `tidemark` is known to be there.
    has_records: AtomicBool,
    hidden: HiddenCache,
}

impl PostgresTarget {
    /// Connects. The schema `tidemark` is made when something is to be remembered.
    ///
    /// `scope` tells operations of several catalogs apart, whose numbers may be the same; it is
    /// of letters, digits and underscores, and empty for a catalog in this very database.
    ///
    /// # Errors
    /// As [`Server::connect`]; [`Kind::Blocked`] for a standby.
    pub fn open(server: Server, scope: &str) -> Result<PostgresTarget> {
        let is_plain = scope.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_plain || scope.len() > 24 {
            let message = format!("`{scope}` is no scope of operations");
            return Err(Error::new(Kind::Usage, message));
        }
        let mut session = server.connect(Purpose::Write)?;
        let database = catalog::database(&mut session)?;
        if database.is_standby {
            let message = format!(
                "`{}` is a standby, which takes no writes; restore into its primary",
                server.shown()
            );
            return Err(Error::new(Kind::Blocked, message));
        }
        let has_records = AtomicBool::new(records::are_there(&mut session)?);
        Ok(PostgresTarget {
            server,
            database,
            scope: scope.to_owned(),
            idle: Mutex::new(vec![session]),
            has_records,
            hidden: HiddenCache::default(),
        })
    }

    /// The server and database.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What the records call an operation.
    fn key(&self, operation: OperationId) -> String {
        match &*self.scope {
            "" => operation.to_string(),
            scope => format!("{scope}_{operation}"),
        }
    }

    /// A session from those that are idle, or a new one.
    fn session(&self) -> Result<Session> {
        loop {
            let idle = self.idle.lock().expect("nothing panics while it is held").pop();
            match idle {
                Some(session) if session.is_closed() => {}
                Some(session) => return Ok(session),
                None => return self.server.connect(Purpose::Write),
            }
        }
    }

    /// Keeps a session that is in no transaction.
    fn keep(&self, session: Session) {
        let mut idle = self.idle.lock().expect("nothing panics while it is held");
        if idle.len() < IDLE_MAX && !session.is_closed() {
            idle.push(session);
        }
    }

    /// The same once the schema `tidemark` is there.
    fn with_records<T>(&self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        self.with(|session| {
            if !self.has_records.load(Ordering::Acquire) {
                records::create(session)?;
                self.has_records.store(true, Ordering::Release);
            }
            work(session)
        })
    }

    /// Runs `work` on a session. A transaction that it left open is rolled back by the client.
    fn with<T>(&self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let mut session = self.session()?;
        let done = work(&mut session);
        // Of an error that may be the connection's the session is not kept.
        if !matches!(&done, Err(error) if error.kind() == Kind::Transient) {
            self.keep(session);
        }
        done
    }
}

impl fmt::Debug for PostgresTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTarget").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Target for PostgresTarget {
    fn identity(&self) -> Result<String> {
        Ok(self.database.identity())
    }

    fn allocate_txn(&self) -> Result<Txn> {
        self.with_records(|session| {
            let sql = "SELECT nextval('tidemark.txn')";
            let row = session.client().query_one(sql, &[]).map_err(failed("take a number"))?;
            Ok(Txn(row.get::<_, i64>(0) as u64))
        })
    }

    fn existing(&self, name: &TableName) -> Result<Option<ExistingTable>> {
        self.with(|session| {
            // Somebody else may have made it since; looking makes nothing.
            if !self.has_records.load(Ordering::Acquire) {
                self.has_records.store(records::are_there(session)?, Ordering::Release);
            }
            let has_records = self.has_records.load(Ordering::Acquire);
            copy::existing(session, &self.database, name, has_records)
        })
    }

    fn changes_max(&self) -> ChangesMax {
        // Every chunk costs a dozen statements, and its plan does not depend on its size.
        ChangesMax { rows: 16_384, bytes: 4 << 20 }
    }

    fn prepare(&self, fence: Fence, tables: &[TargetTable]) -> Result<()> {
        let key = self.key(fence.operation);
        self.with_records(|session| prepare::prepare(session, &self.database, &key, fence, tables))
    }

    fn mark(&self, shard: &TargetShard) -> Result<Option<Mark>> {
        let key = self.key(shard.operation);
        self.with_records(|session| Ok(records::mark(session.client(), &key, shard)?.mark))
    }

    fn apply(
        &self,
        fence: Fence,
        shard: &TargetShard,
        rows: &RowBatch,
        mark: &mut Mark,
    ) -> Result<()> {
        let key = self.key(fence.operation);
        self.with_records(|session| {
            let hidden = self.hidden.of(session, &key, shard)?;
            apply::apply(session, &hidden, fence, shard, rows, mark)
        })
    }

    fn seal(&self, fence: Fence) -> Result<()> {
        let key = self.key(fence.operation);
        self.with_records(|session| seal::seal(session, &key, fence))
    }

    fn read_back<'a>(&'a self, shard: &TargetShard) -> Result<Box<dyn RowStream + 'a>> {
        let key = self.key(shard.operation);
        let mut session = self.session()?;
        let hidden = self.hidden.of(&mut session, &key, shard)?;
        records::mark(session.client(), &key, shard)?;
        read::rows(session, &hidden, shard)
    }

    fn read_back_table<'a>(
        &'a self,
        operation: OperationId,
        table: &TableName,
        parts_max: usize,
    ) -> Result<Option<Vec<Box<dyn RowStream + 'a>>>> {
        let key = self.key(operation);
        let shard = TargetShard { operation, table: table.clone(), shard: ShardIdx(0) };
        let (hidden, parts) = self.with_records(|session| {
            let hidden = self.hidden.of(session, &key, &shard)?;
            records::mark(session.client(), &key, &shard)?;
            let parts = read::parts(session, &hidden, parts_max)?;
            Ok((hidden, parts))
        })?;
        let mut streams: Vec<Box<dyn RowStream + 'a>> = Vec::new();
        for part in parts {
            streams.push(read::part(self.session()?, &hidden, part));
        }
        Ok(Some(streams))
    }

    fn publish(&self, fence: Fence, how: Publish) -> Result<()> {
        let key = self.key(fence.operation);
        self.with_records(|session| publish::publish(session, &self.database, &key, fence, how))
    }

    fn notices(&self, operation: OperationId) -> Result<Vec<String>> {
        let key = self.key(operation);
        self.with_records(|session| records::notices(session.client(), &key))
    }

    fn discard(&self, fence: Fence) -> Result<()> {
        let key = self.key(fence.operation);
        self.with_records(|session| discard::discard(session, &key, fence))
    }
}
