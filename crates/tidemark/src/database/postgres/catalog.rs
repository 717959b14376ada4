//! What tables a database has, read from its catalogs.

use std::collections::BTreeMap;

use postgres::GenericClient;
use serde::{Deserialize, Serialize};

use crate::database::Structure;
use crate::database::postgres::error::failed;
use crate::database::postgres::types::{NativeColumn, Wire, native_default};
use crate::database::postgres::{ENGINE, Session};
use crate::error::{Error, Kind, Result};
use crate::ids::{ColumnId, TableId, TableName};
use crate::row::{Column, Schema};

/// Schemas of this program: its own records, hidden tables, and tables that were replaced.
pub const OWN_SCHEMA: &str = "tidemark";
/// What the names of its other schemas begin with.
pub const OWN_PREFIX: &str = "tidemark_";

/// The database that a session is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Number that `initdb` gave the cluster; a copy of its files has the same.
    pub system: u64,
    /// The database inside the cluster.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Whether the server only replays what another one sends.
    pub is_standby: bool,
}

/// Reads which database a session is connected to.
///
/// # Errors
/// As [`failed`] says.
pub fn database(session: &mut Session) -> Result<DatabaseFacts> {
    let sql = "SELECT (SELECT system_identifier FROM pg_control_system()), d.oid, d.datname::text, \
               pg_is_in_recovery() FROM pg_database d WHERE d.datname = current_database()";
    let row = session.client().query_one(sql, &[]).map_err(failed("identify the database"))?;
    let system: i64 = row.get(0);
    Ok(DatabaseFacts {
        system: system as u64,
        oid: row.get(1),
        name: row.get(2),
        is_standby: row.get(3),
    })
}

impl DatabaseFacts {
    /// The identity of one of its tables: system, database and table, which are never used
    /// again while the cluster lives.
    pub fn table_id(&self, oid: u32) -> TableId {
        TableId(u128::from(self.system) << 64 | u128::from(self.oid) << 32 | u128::from(oid))
    }

    /// See [`Source::identity`](crate::database::Source::identity).
    pub fn identity(&self) -> String {
        format!("postgresql:{:016x}:{}", self.system, self.oid)
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFacts {
    /// Its number in `pg_class`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// `relkind`: `r` a table, `p` a partitioned one, `f` a foreign one.
    pub kind: char,
    /// `relpersistence`: `p` lasting, `u` unlogged.
    pub persistence: char,
    /// Number of the file that holds its rows; another one after every rewrite.
    pub file_node: u32,
    /// Whether it is a partition of another table.
    pub is_partition: bool,
    /// Whether row-security policies apply.
    pub has_row_security: bool,
    /// Rows that the planner expects; negative if nobody looked yet.
    pub rows_estimated: f64,
    /// Bytes of its main file.
    pub bytes: u64,
    /// `relreplident`: `d` the primary key, `i` an index, `f` the whole row, `n` nothing.
    pub replica_identity: char,
    /// Columns in display order; generated ones too.
    pub columns: Vec<ColumnFacts>,
    /// Numbers of the columns of the primary key in its order; empty if there is none.
    pub primary_key: Vec<i16>,
    /// The same for the index that is the replica identity; empty if none is.
    pub identity_key: Vec<i16>,
    /// What is beyond columns and rows.
    pub structure: TableStructure,
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// How it travels.
    pub native: NativeColumn,
    /// Whether the server computes it from others; such a column is not carried.
    pub is_generated: bool,
}

/// What a table is beyond its columns and rows: the description inside [`Structure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStructure {
    /// Name of the table.
    pub name: TableName,
    /// `relkind`, as in [`TableFacts`].
    pub kind: String,
    /// `relpersistence`.
    pub persistence: String,
    /// `relreplident`.
    pub replica_identity: String,
    /// Number of the file that held the rows.
    pub file_node: u32,
    /// Storage parameters, `fillfactor=70` and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Owner.
    pub owner: String,
    /// Grants to others than the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<GrantStructure>,
    /// Whether row-security policies apply; to the owner too.
    #[serde(default)]
    pub row_security: bool,
    /// Whether they apply to the owner too.
    #[serde(default)]
    pub row_security_forced: bool,
    /// Names of triggers of users, of rules and of policies; they are not restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Columns in display order.
    pub columns: Vec<ColumnStructure>,
    /// Constraints by name.
    pub constraints: Vec<ConstraintStructure>,
    /// Indexes that are no constraint, by name.
    pub indexes: Vec<IndexStructure>,
}

/// One privilege that somebody has on a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantStructure {
    /// Role, or `PUBLIC` for everybody.
    pub to: String,
    /// `SELECT` and the like.
    pub privilege: String,
    /// Whether they may pass it on.
    #[serde(default)]
    pub with_option: bool,
}

/// One column beyond name and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnStructure {
    /// `attnum`.
    pub number: i16,
    /// Name.
    pub name: String,
    /// Type with modifiers.
    pub native: String,
    /// Whether NULL is refused.
    #[serde(default)]
    pub not_null: bool,
    /// Collation, if it is not that of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
    /// Default, or what a generated column is computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `s` for a generated column that is stored, `v` for one that is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    /// `a` or `d` for an identity column: always, or by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The sequence that belongs to the column: of an identity, or of a `serial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceStructure>,
    /// Comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A sequence that belongs to a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceStructure {
    /// Name as SQL, qualified.
    pub name: String,
    /// Type.
    pub native: String,
    /// First value.
    pub start: i64,
    /// Step.
    pub increment: i64,
    /// Least value.
    pub min: i64,
    /// Greatest value.
    pub max: i64,
    /// Values that a session takes at once.
    pub cache: i64,
    /// Whether it begins anew at its end.
    pub cycle: bool,
    /// Value that was given out last; `None` before the first, or if it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<i64>,
}

/// One constraint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintStructure {
    /// Name.
    pub name: String,
    /// `contype`: `p` primary key, `u` unique, `c` check, `f` foreign key, `x` exclusion.
    pub kind: String,
    /// What follows its name, as `pg_get_constraintdef` writes it.
    pub definition: String,
    /// Table that a foreign key leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<TableName>,
    /// Whether the rows are known to obey it.
    pub is_valid: bool,
    /// Comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// One index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexStructure {
    /// Name.
    pub name: String,
    /// Whether keys are unique.
    pub unique: bool,
    /// From `USING` on, as `pg_get_indexdef` writes it: no name of a table is in it.
    pub definition: String,
    /// Whether it is the replica identity.
    #[serde(default)]
    pub replica_identity: bool,
    /// Whether the table is clustered on it.
    #[serde(default)]
    pub clustered: bool,
    /// Comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl TableStructure {
    /// The description as tables carry it.
    pub fn carried(&self) -> Structure {
        let table = serde_json::to_value(self).expect("a description is plain data");
        Structure { engine: ENGINE.to_owned(), table }
    }

    /// Reads a description; `None` for that of another engine.
    ///
    /// # Errors
    /// [`Kind::Broken`] for one of this engine that makes no sense.
    pub fn of(carried: Option<&Structure>) -> Result<Option<TableStructure>> {
        let Some(carried) = carried.filter(|carried| carried.engine == ENGINE) else {
            return Ok(None);
        };
        let read = TableStructure::deserialize(&carried.table);
        read.map(Some).map_err(|error| {
            Error::with_source(Kind::Broken, "a table's description makes no sense", error)
        })
    }
}

impl TableFacts {
    /// Columns that are carried, in display order: all but the generated ones.
    pub fn carried(&self) -> impl Iterator<Item = &NativeColumn> {
        self.columns.iter().filter(|column| !column.is_generated).map(|column| &column.native)
    }

    /// The key: the primary key, else the index that is the replica identity.
    pub fn key(&self) -> &[i16] {
        if self.primary_key.is_empty() { &self.identity_key } else { &self.primary_key }
    }

    /// The schema that every engine understands; columns have their `attnum` as id.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a table without a column that could be carried, or whose key
    /// has a generated column.
    pub fn schema(&self) -> Result<Schema> {
        let id = |number: i16| ColumnId(u32::try_from(number).unwrap_or(0));
        let columns: Vec<Column> = self
            .carried()
            .map(|native| {
                let logical = native.wire.logical();
                let says_more = native.native != native_default(logical);
                Column {
                    id: id(native.number),
                    name: native.name.clone(),
                    logical,
                    native: says_more.then(|| native.native.clone()),
                }
            })
            .collect();
        let next = self.columns.iter().map(|column| column.native.number).max().unwrap_or(0) + 1;
        let key = self.key().iter().map(|number| id(*number)).collect();
        let schema = Schema { columns, key, next_column_id: id(next) };
        schema.check().map_err(|error| {
            let message = format!("table `{}` cannot be carried: {error}", self.name);
            Error::new(Kind::Unsupported, message)
        })?;
        Ok(schema)
    }

    /// The carried columns in the order of `schema`, found by name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a column that the table does not have.
    pub fn natives(&self, schema: &Schema) -> Result<Vec<NativeColumn>> {
        let by_name: BTreeMap<&str, &NativeColumn> =
            self.carried().map(|native| (native.name.as_str(), native)).collect();
        let native = |column: &Column| {
            let found = by_name.get(column.name.as_str()).map(|native| (*native).clone());
            found.ok_or_else(|| {
                let message = format!("table `{}` has no column `{}`", self.name, column.name);
                Error::new(Kind::NotFound, message)
            })
        };
        schema.columns.iter().map(native).collect()
    }
}

/// Which tables are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those of users, in every schema but the server's and this program's own.
    OfUsers,
    /// The one with this number.
    Numbered(u32),
    /// Those in this schema, whoever's it is.
    InSchema(&'a str),
}

/// Reads the tables, sorted by name. Views, sequences and temporary tables are none.
///
/// Takes a transaction's client, so that everything is from one moment.
///
/// # Errors
/// As [`failed`] says.
pub fn tables(client: &mut impl GenericClient, which: Which<'_>) -> Result<Vec<TableFacts>> {
    let condition = match which {
        Which::OfUsers => {
            "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'tidemark') \
             AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%' \
             AND n.nspname NOT LIKE 'tidemark\\_%' AND $1::text IS NULL"
        }
        Which::Numbered(_) => "c.oid = $1::text::oid",
        Which::InSchema(_) => "n.nspname = $1::text",
    };
    let asked = match which {
        Which::OfUsers => None,
        Which::Numbered(oid) => Some(oid.to_string()),
        Which::InSchema(schema) => Some(schema.to_owned()),
    };
    let of_tables = format!(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND {condition}"
    );
    let mut tables = read_tables(client, &of_tables, &asked)?;
    read_columns(client, &of_tables, &asked, &mut tables)?;
    read_constraints(client, &of_tables, &asked, &mut tables)?;
    read_indexes(client, &of_tables, &asked, &mut tables)?;
    let mut tables: Vec<TableFacts> = tables.into_values().collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

type ByOid = BTreeMap<u32, TableFacts>;
type Asked = Option<String>;

fn char_of(row: &postgres::Row, at: usize) -> char {
    row.get::<_, i8>(at) as u8 as char
}

fn read_tables(client: &mut impl GenericClient, of: &str, asked: &Asked) -> Result<ByOid> {
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind, c.relpersistence, \
         COALESCE(pg_relation_filenode(c.oid), 0)::oid, c.relispartition, c.relrowsecurity, \
         c.relforcerowsecurity, c.reltuples::float8, \
         CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) ELSE 0 END, c.relreplident, \
         c.reloptions, obj_description(c.oid, 'pg_class'), pg_get_userbyid(c.relowner)::text, \
         ARRAY(SELECT array_to_string(ARRAY[g.privilege_type, g.is_grantable::text, \
           COALESCE(pg_get_userbyid(NULLIF(g.grantee, 0))::text, 'PUBLIC')], ' ') \
           FROM aclexplode(c.relacl) g WHERE g.grantee <> c.relowner), \
         ARRAY(SELECT 'trigger ' || g.tgname FROM pg_trigger g \
           WHERE g.tgrelid = c.oid AND NOT g.tgisinternal \
           UNION ALL SELECT 'policy ' || y.polname FROM pg_policy y WHERE y.polrelid = c.oid \
           UNION ALL SELECT 'rule ' || r.rulename FROM pg_rewrite r WHERE r.ev_class = c.oid \
           UNION ALL SELECT 'statistics ' || x.stxname FROM pg_statistic_ext x \
           WHERE x.stxrelid = c.oid ORDER BY 1) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({of})"
    );
    let rows = client.query(&sql, &[asked]).map_err(failed("read which tables there are"))?;
    let mut tables = ByOid::new();
    for row in rows {
        let oid: u32 = row.get(0);
        let name = TableName::new(row.get(1), row.get(2));
        let name = name.expect("names of tables are neither empty nor hold a NUL");
        let grant = |text: &String| {
            // A role's name comes last, since it may hold anything.
            let mut words = text.splitn(3, ' ');
            let (privilege, with_option) = (words.next()?, words.next()?);
            Some(GrantStructure {
                privilege: privilege.to_owned(),
                with_option: with_option == "true",
                to: words.next()?.to_owned(),
            })
        };
        let structure = TableStructure {
            name: name.clone(),
            kind: char_of(&row, 3).to_string(),
            persistence: char_of(&row, 4).to_string(),
            replica_identity: char_of(&row, 11).to_string(),
            file_node: row.get(5),
            options: row.get::<_, Option<Vec<String>>>(12).unwrap_or_default(),
            comment: row.get(13),
            owner: row.get(14),
            grants: row.get::<_, Vec<String>>(15).iter().filter_map(grant).collect(),
            row_security: row.get(7),
            row_security_forced: row.get(8),
            left_out: row.get(16),
            columns: Vec::new(),
            constraints: Vec::new(),
            indexes: Vec::new(),
        };
        let facts = TableFacts {
            oid,
            name,
            kind: char_of(&row, 3),
            persistence: char_of(&row, 4),
            file_node: row.get(5),
            is_partition: row.get(6),
            has_row_security: row.get(7),
            rows_estimated: row.get(9),
            // A table that somebody drops in this moment has no size.
            bytes: row.get::<_, Option<i64>>(10).unwrap_or(0) as u64,
            replica_identity: char_of(&row, 11),
            columns: Vec::new(),
            primary_key: Vec::new(),
            identity_key: Vec::new(),
            structure,
        };
        tables.insert(oid, facts);
    }
    Ok(tables)
}

fn read_columns(
    client: &mut impl GenericClient,
    of: &str,
    asked: &Asked,
    tables: &mut ByOid,
) -> Result<()> {
    // A domain travels as what it is a domain over, however many lie between.
    let sql = format!(
        "WITH RECURSIVE base AS ( \
           SELECT t.oid AS outer_type, t.oid, t.typtype, t.typbasetype, t.typoutput FROM pg_type t \
           UNION ALL \
           SELECT b.outer_type, t.oid, t.typtype, t.typbasetype, t.typoutput \
           FROM base b JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype) \
         SELECT a.attrelid, a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), \
         b.oid, b.typtype, format('%I.%I', pn.nspname, p.proname), a.attnotnull, a.attidentity, \
         a.attgenerated, pg_get_expr(d.adbin, d.adrelid), \
         CASE WHEN a.attcollation <> t.typcollation \
           THEN (SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co \
                 JOIN pg_namespace cn ON cn.oid = co.collnamespace \
                 WHERE co.oid = a.attcollation) END, \
         col_description(a.attrelid, a.attnum), s.name, s.native, s.seqstart, s.seqincrement, \
         s.seqmin, s.seqmax, s.seqcache, s.seqcycle, s.last \
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
         JOIN base b ON b.outer_type = a.atttypid AND b.typtype <> 'd' \
         JOIN pg_proc p ON p.oid = b.typoutput JOIN pg_namespace pn ON pn.oid = p.pronamespace \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         LEFT JOIN LATERAL ( \
           SELECT format('%I.%I', sn.nspname, sc.relname) AS name, \
           format_type(q.seqtypid, NULL) AS native, q.seqstart, q.seqincrement, q.seqmin, \
           q.seqmax, q.seqcache, q.seqcycle, \
           CASE WHEN has_sequence_privilege(q.seqrelid, 'SELECT, USAGE') \
             THEN pg_sequence_last_value(q.seqrelid) END AS last \
           FROM pg_depend e JOIN pg_sequence q ON q.seqrelid = e.objid \
           JOIN pg_class sc ON sc.oid = q.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace \
           WHERE e.classid = 'pg_class'::regclass AND e.refclassid = 'pg_class'::regclass \
           AND e.refobjid = a.attrelid AND e.refobjsubid = a.attnum \
           AND e.deptype IN ('a', 'i') ORDER BY q.seqrelid LIMIT 1) s ON true \
         WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid IN ({of}) \
         ORDER BY a.attrelid, a.attnum"
    );
    let rows = client.query(&sql, &[asked]).map_err(failed("read the columns of tables"))?;
    let some_char = |row: &postgres::Row, at| Some(char_of(row, at)).filter(|char| *char != '\0');
    for row in rows {
        let Some(table) = tables.get_mut(&row.get(0)) else { continue };
        let generated = some_char(&row, 9);
        let native = NativeColumn {
            number: row.get(1),
            name: row.get(2),
            native: row.get(3),
            wire: Wire::of_type(row.get(4), char_of(&row, 5)),
            output: row.get(6),
        };
        let sequence = row.get::<_, Option<String>>(13).map(|name| SequenceStructure {
            name,
            native: row.get(14),
            start: row.get(15),
            increment: row.get(16),
            min: row.get(17),
            max: row.get(18),
            cache: row.get(19),
            cycle: row.get(20),
            last: row.get(21),
        });
        table.structure.columns.push(ColumnStructure {
            number: native.number,
            name: native.name.clone(),
            native: native.native.clone(),
            not_null: row.get(7),
            collation: row.get(11),
            default: row.get(10),
            generated: generated.map(String::from),
            identity: some_char(&row, 8).map(String::from),
            sequence,
            comment: row.get(12),
        });
        table.columns.push(ColumnFacts { native, is_generated: generated.is_some() });
    }
    Ok(())
}

fn read_constraints(
    client: &mut impl GenericClient,
    of: &str,
    asked: &Asked,
    tables: &mut ByOid,
) -> Result<()> {
    // NOT NULL is a constraint too since 18; columns say it.
    let sql = format!(
        "SELECT k.conrelid, k.conname::text, k.contype, pg_get_constraintdef(k.oid), k.conkey, \
         fn.nspname::text, f.relname::text, k.convalidated, obj_description(k.oid, 'pg_constraint') \
         FROM pg_constraint k LEFT JOIN pg_class f ON f.oid = k.confrelid AND k.contype = 'f' \
         LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace \
         WHERE k.contype IN ('p', 'u', 'c', 'f', 'x') AND k.conrelid IN ({of}) \
         ORDER BY k.conrelid, k.conname"
    );
    let rows = client.query(&sql, &[asked]).map_err(failed("read the constraints of tables"))?;
    for row in rows {
        let Some(table) = tables.get_mut(&row.get(0)) else { continue };
        let kind = char_of(&row, 2);
        if kind == 'p' {
            table.primary_key = row.get::<_, Option<Vec<i16>>>(4).unwrap_or_default();
        }
        let schema: Option<String> = row.get(5);
        let references = schema.and_then(|schema| TableName::new(&schema, row.get(6)));
        table.structure.constraints.push(ConstraintStructure {
            name: row.get(1),
            kind: kind.to_string(),
            definition: row.get(3),
            references,
            is_valid: row.get(7),
            comment: row.get(8),
        });
    }
    Ok(())
}

fn read_indexes(
    client: &mut impl GenericClient,
    of: &str,
    asked: &Asked,
    tables: &mut ByOid,
) -> Result<()> {
    // The definition begins with words that can be rebuilt exactly, and they are cut off.
    let sql = format!(
        "SELECT x.indrelid, i.relname::text, x.indisunique, \
         substring(pg_get_indexdef(x.indexrelid) FROM length(format('CREATE %sINDEX %I ON %s%I.%I ', \
           CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END, i.relname, \
           CASE WHEN c.relkind = 'p' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname)) + 1), \
         x.indisreplident, x.indisclustered, obj_description(x.indexrelid, 'pg_class'), \
         x.indkey::int2[], x.indnkeyatts, k.oid IS NOT NULL \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
         JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid \
           AND k.contype IN ('p', 'u', 'x') \
         WHERE x.indisvalid AND x.indrelid IN ({of}) ORDER BY x.indrelid, i.relname"
    );
    let rows = client.query(&sql, &[asked]).map_err(failed("read the indexes of tables"))?;
    for row in rows {
        let Some(table) = tables.get_mut(&row.get(0)) else { continue };
        let replica_identity: bool = row.get(4);
        if replica_identity {
            let keys: i16 = row.get(8);
            let columns: Vec<i16> = row.get(7);
            table.identity_key = columns.into_iter().take(keys as usize).collect();
        }
        if row.get::<_, bool>(9) {
            continue;
        }
        table.structure.indexes.push(IndexStructure {
            name: row.get(1),
            unique: row.get(2),
            definition: row.get(3),
            replica_identity,
            clustered: row.get(5),
            comment: row.get(6),
        });
    }
    Ok(())
}
