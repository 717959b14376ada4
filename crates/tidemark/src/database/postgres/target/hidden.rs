//! What every chunk needs to know of its hidden table, looked up once.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::database::TargetShard;
use crate::database::postgres::Session;
use crate::database::postgres::catalog::{self, Which};
use crate::database::postgres::quoted;
use crate::database::postgres::target::layout::{name_of, sql_name};
use crate::database::postgres::target::records::{self, Base, HiddenRecord};
use crate::database::postgres::types::NativeColumn;
use crate::error::{Error, Kind, Result};
use crate::ids::TableName;

/// A hidden table, with its columns as the server has them.
#[derive(Debug)]
pub(super) struct Hidden {
    /// What the records call its operation.
    pub(super) key: String,
    pub(super) record: HiddenRecord,
    /// The table that takes rows, as SQL.
    pub(super) at: String,
    /// The published copy below it, as SQL.
    pub(super) below: Option<String>,
    /// Columns in the order of the plan's schema.
    pub(super) natives: Vec<NativeColumn>,
    /// Whether rows are known to be found by key.
    pub(super) has_key: AtomicBool,
}

/// Hidden tables that were looked up.
#[derive(Debug, Default)]
pub(super) struct HiddenCache(Mutex<BTreeMap<(String, TableName), Arc<Hidden>>>);

impl HiddenCache {
    /// The hidden table of a shard.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none.
    pub(super) fn of(
        &self,
        session: &mut Session,
        key: &str,
        shard: &TargetShard,
    ) -> Result<Arc<Hidden>> {
        let at = (key.to_owned(), shard.table.clone());
        let known = self.0.lock().expect("nothing panics while it is held").get(&at).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let hidden = Arc::new(Hidden::look_up(session, key, &shard.table)?);
        self.0.lock().expect("nothing panics while it is held").insert(at, Arc::clone(&hidden));
        Ok(hidden)
    }
}

impl Hidden {
    pub(super) fn look_up(session: &mut Session, key: &str, name: &TableName) -> Result<Hidden> {
        let record = records::hidden_table(session.client(), key, name)?;
        let gone = || {
            Error::new(Kind::NotFound, format!("the hidden table of `{name}` is no longer there"))
        };
        let at = name_of(session.client(), record.oid)?.ok_or_else(gone)?;
        let below = match record.base {
            Base::Beside(oid) => Some(name_of(session.client(), oid)?.ok_or_else(gone)?),
            Base::Empty | Base::InPlace(_) => None,
        };
        let facts = catalog::tables(session.client(), Which::Numbered(record.oid))?;
        let facts = facts.first().ok_or_else(gone)?;
        let natives = facts.natives(&record.plan.schema)?;
        for (column, native) in record.plan.schema.columns.iter().zip(&natives) {
            if native.wire.logical() != column.logical {
                let message = format!(
                    "column `{}` of `{name}` is `{}` here, which is no {}",
                    column.name,
                    native.native,
                    column.logical.name()
                );
                return Err(Error::new(Kind::Unsupported, message));
            }
        }
        Ok(Hidden {
            key: key.to_owned(),
            has_key: AtomicBool::new(record.has_key),
            record,
            at: sql_name(&at),
            below: below.as_ref().map(sql_name),
            natives,
        })
    }

    /// Names of all columns as SQL, in the order of the schema.
    pub(super) fn column_list(&self) -> String {
        let names: Vec<String> = self.natives.iter().map(|native| quoted(&native.name)).collect();
        names.join(", ")
    }

    /// What to select from the table `alias` so that rows can be read.
    pub(super) fn selected(&self) -> String {
        let selected: Vec<String> = self.natives.iter().map(NativeColumn::selected).collect();
        selected.join(", ")
    }

    /// The key columns as the server has them, in key order.
    pub(super) fn key_natives(&self) -> Vec<&NativeColumn> {
        let schema = &self.record.plan.schema;
        let native = |column: &crate::row::Column| {
            let at = schema.columns.iter().position(|it| it.id == column.id);
            &self.natives[at.expect("key columns exist: checked")]
        };
        schema.key_columns().map(native).collect()
    }

    /// `a.k = b.k AND …` over the key.
    pub(super) fn keys_equal(&self, a: &str, b: &str) -> String {
        let equal = |native: &&NativeColumn| {
            let name = quoted(&native.name);
            format!("{a}.{name} = {b}.{name}")
        };
        self.key_natives().iter().map(equal).collect::<Vec<String>>().join(" AND ")
    }

    /// The rows that stand under the keys of the table `keys`.
    ///
    /// Two joins, each with an index below it; one over [`shown`](Self::shown) would read all.
    pub(super) fn standing_under(&self, keys: &str) -> String {
        let selected: Vec<String> =
            self.natives.iter().map(|native| native.selected_of("t")).collect();
        let selected = selected.join(", ");
        let equal = self.keys_equal("k", "t");
        match &self.below {
            None => {
                format!("SELECT {selected} FROM {keys} k JOIN ONLY {} t ON {equal}", self.at)
            }
            Some(below) => format!(
                "SELECT {selected} FROM {keys} k JOIN ONLY {} t ON {equal} \
                 WHERE NOT t.tidemark_gone \
                 UNION ALL SELECT {selected} FROM {keys} k JOIN ONLY {below} t ON {equal} \
                 WHERE NOT EXISTS (SELECT FROM ONLY {} a WHERE {})",
                self.at,
                self.at,
                self.keys_equal("a", "k")
            ),
        }
    }

    /// Every row as a table would show it: what lies beside a published copy goes before it.
    pub(super) fn shown(&self) -> String {
        let list = self.column_list();
        match &self.below {
            None => format!("(SELECT {list} FROM ONLY {})", self.at),
            Some(below) => format!(
                "(SELECT {list} FROM ONLY {} WHERE NOT tidemark_gone \
                 UNION ALL SELECT {list} FROM ONLY {below} b WHERE NOT EXISTS \
                 (SELECT FROM ONLY {} a WHERE {}))",
                self.at,
                self.at,
                self.keys_equal("a", "b")
            ),
        }
    }
}
