//! The catalog of one embedded database: typed access to its records.
//!
//! Everything here happens inside a transaction of the caller, so that several
//! records change together. The same environment also holds the records of
//! operations, in databases of their own.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use heed::{RoTxn, RwTxn, WithoutTls};

use super::record::{
    self, CutRecord, DatabaseRecord, GenerationNumber, GenerationRecord, RedoRecord,
    SourcePositionRecord, TableRecord,
};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::{CollectionId, CutId, OperationId, Position, TableName, Txn};
use crate::lmdb::{Environment, KEY_BYTES_MAX, LmdbContext, NamedDatabase, WriteTxn};

/// Key of the database's own record.
const DATABASE_KEY: &[u8] = b"record";

/// The records of a database.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    environment: Arc<Environment>,
    database: NamedDatabase,
    tables: NamedDatabase,
    generations: NamedDatabase,
    source_positions: NamedDatabase,
    redo: NamedDatabase,
    cuts: NamedDatabase,
}

impl Catalog {
    /// The catalog in `environment`; its named databases are made when missing.
    pub(crate) fn open(
        environment: Arc<Environment>,
        env: &dyn Env,
        wait: Duration,
    ) -> Result<Catalog> {
        let names = ["database", "tables", "generations", "source_positions", "redo", "cuts"];
        let [database, tables, generations, source_positions, redo, cuts] =
            environment.create_databases(names, env, wait)?;
        Ok(Catalog { environment, database, tables, generations, source_positions, redo, cuts })
    }

    /// Where the records lie.
    pub(crate) fn environment(&self) -> &Arc<Environment> {
        &self.environment
    }

    /// A view of the last commit.
    pub(crate) fn read(&self) -> Result<RoTxn<'_, WithoutTls>> {
        self.environment.read()
    }

    /// Begins to change records; see [`Environment::write`].
    pub(crate) fn write(&self, env: &dyn Env, wait: Duration) -> Result<WriteTxn<'_>> {
        self.environment.write(env, wait)
    }

    /// The database's own record; `None` before the database is complete.
    pub(crate) fn find_database(&self, txn: &RoTxn<'_>) -> Result<Option<DatabaseRecord>> {
        let stored = self.database.get(txn, DATABASE_KEY);
        stored.during(reading)?.map(record::decode).transpose()
    }

    /// The database's own record.
    pub(crate) fn database(&self, txn: &RoTxn<'_>) -> Result<DatabaseRecord> {
        self.find_database(txn)?.ok_or_else(|| {
            Error::new(Kind::Broken, "the catalog has no database record; it is damaged")
        })
    }

    /// Stores the database's own record.
    pub(crate) fn put_database(&self, txn: &mut RwTxn<'_>, record: &DatabaseRecord) -> Result<()> {
        let stored = record::encode(record);
        self.database.put(txn, DATABASE_KEY, &stored).during(writing)
    }

    /// Draws a number that nothing of this database had before.
    pub(crate) fn allocate_txn(&self, txn: &mut RwTxn<'_>) -> Result<Txn> {
        let mut database = self.database(txn)?;
        let allocated = Txn(database.next_txn);
        database.next_txn += 1;
        self.put_database(txn, &database)?;
        Ok(allocated)
    }

    /// Stores whatever a newer or broken program might.
    #[cfg(test)]
    pub(super) fn put_raw_database(&self, txn: &mut RwTxn<'_>, stored: &[u8]) -> Result<()> {
        self.database.put(txn, DATABASE_KEY, stored).during(writing)
    }

    /// The record of the table of that name, hidden or not.
    pub(crate) fn table(&self, txn: &RoTxn<'_>, name: &TableName) -> Result<Option<TableRecord>> {
        let stored = self.tables.get(txn, &table_key(name)?);
        stored
            .during(reading)?
            .map(record::decode)
            .transpose()
            .map_err(|error| error.context(format!("table `{name}`")))
    }

    /// Stores or, with `None`, removes the record of a table; readers notice.
    ///
    /// Says nothing of generations: [`switch_table`](super::EmbeddedDatabase::switch_table) does.
    pub(crate) fn put_table(
        &self,
        txn: &mut RwTxn<'_>,
        name: &TableName,
        table: Option<&TableRecord>,
    ) -> Result<()> {
        let key = table_key(name)?;
        match table {
            Some(table) => {
                let stored = record::encode(table);
                self.tables.put(txn, &key, &stored).during(writing)?;
            }
            None => {
                self.tables.delete(txn, &key).during(writing)?;
            }
        }
        let mut database = self.database(txn)?;
        database.tables_version += 1;
        self.put_database(txn, &database)
    }

    /// All tables, hidden ones too, by name.
    pub(crate) fn tables(&self, txn: &RoTxn<'_>) -> Result<Vec<(TableName, TableRecord)>> {
        let mut tables = Vec::new();
        for entry in self.tables.iter(txn).during(reading)? {
            let (key, stored) = entry.during(reading)?;
            let text = String::from_utf8_lossy(key);
            let name = TableName::parse(&text).map_err(|cause| {
                Error::new(
                    Kind::Broken,
                    format!("a table's name in the catalog is damaged: {cause}"),
                )
            })?;
            let table =
                record::decode(stored).map_err(|error| error.context(format!("table `{name}`")))?;
            tables.push((name, table));
        }
        tables.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(tables)
    }

    /// What a generation is for; `None` once it is gone.
    pub(crate) fn generation(
        &self,
        txn: &RoTxn<'_>,
        number: GenerationNumber,
    ) -> Result<Option<GenerationRecord>> {
        let stored = self.generations.get(txn, &number.0.to_be_bytes());
        stored.during(reading)?.map(record::decode).transpose()
    }

    /// Stores what a generation is for; `None` forgets it.
    pub(crate) fn put_generation(
        &self,
        txn: &mut RwTxn<'_>,
        number: GenerationNumber,
        generation: Option<&GenerationRecord>,
    ) -> Result<()> {
        let key = number.0.to_be_bytes();
        match generation {
            Some(generation) => {
                self.generations.put(txn, &key, &record::encode(generation)).during(writing)
            }
            None => self.generations.delete(txn, &key).during(writing).map(|_| ()),
        }
    }

    /// All generations in the order of their numbers.
    pub(crate) fn generations(
        &self,
        txn: &RoTxn<'_>,
    ) -> Result<Vec<(GenerationNumber, GenerationRecord)>> {
        let mut generations = Vec::new();
        for entry in self.generations.iter(txn).during(reading)? {
            let (key, stored) = entry.during(reading)?;
            generations.push((GenerationNumber(number_of_key(key)?), record::decode(stored)?));
        }
        Ok(generations)
    }

    /// Number of generations, garbage included.
    pub(crate) fn generation_count(&self, txn: &RoTxn<'_>) -> Result<u64> {
        self.generations.len(txn).during(reading)
    }

    /// The generations that belong to an operation, in the order of their numbers.
    pub(crate) fn generations_owned(
        &self,
        txn: &RoTxn<'_>,
        operation: OperationId,
    ) -> Result<Vec<GenerationNumber>> {
        let owned = GenerationRecord::Owned { operation };
        let all = self.generations(txn)?;
        Ok(all.into_iter().filter(|(_, state)| *state == owned).map(|(number, _)| number).collect())
    }

    /// How far each collection has been served.
    pub(crate) fn source_positions(
        &self,
        txn: &RoTxn<'_>,
    ) -> Result<Vec<(CollectionId, Position)>> {
        let mut positions = Vec::new();
        for entry in self.source_positions.iter(txn).during(reading)? {
            let (key, stored) = entry.during(reading)?;
            let key = <[u8; 16]>::try_from(key).map_err(|_| damaged_key())?;
            let SourcePositionRecord { position } = record::decode(stored)?;
            positions.push((CollectionId(u128::from_be_bytes(key)), position));
        }
        Ok(positions)
    }

    /// Stores how far a collection has been served; `None` forgets the collection.
    pub(crate) fn put_source_position(
        &self,
        txn: &mut RwTxn<'_>,
        collection: CollectionId,
        position: Option<Position>,
    ) -> Result<()> {
        let key = collection.0.to_be_bytes();
        match position {
            Some(position) => {
                let stored = record::encode(&SourcePositionRecord { position });
                self.source_positions.put(txn, &key, &stored).during(writing)
            }
            None => self.source_positions.delete(txn, &key).during(writing).map(|_| ()),
        }
    }

    /// The cuts that an increment may follow, by position.
    pub(crate) fn cuts(&self, txn: &RoTxn<'_>) -> Result<Vec<(Position, CutId)>> {
        let mut cuts = Vec::new();
        for entry in self.cuts.iter(txn).during(reading)? {
            let (key, stored) = entry.during(reading)?;
            let CutRecord { id } = record::decode(stored)?;
            cuts.push((Position(number_of_key(key)?), id));
        }
        Ok(cuts)
    }

    /// Stores the name of the cut at `position`.
    pub(crate) fn put_cut(&self, txn: &mut RwTxn<'_>, position: Position, id: CutId) -> Result<()> {
        let stored = record::encode(&CutRecord { id });
        self.cuts.put(txn, &position.0.to_be_bytes(), &stored).during(writing)
    }

    /// Forgets the cuts before `position`.
    pub(crate) fn remove_cuts_before(&self, txn: &mut RwTxn<'_>, position: Position) -> Result<()> {
        let end = position.0.to_be_bytes();
        let older = (Bound::Unbounded, Bound::Excluded(end.as_slice()));
        self.cuts.delete_range(txn, &older).during(writing).map(|_| ())
    }

    /// The oldest batch that is recorded and not yet applied to all its shards.
    pub(crate) fn first_redo(&self, txn: &RoTxn<'_>) -> Result<Option<(u64, RedoRecord)>> {
        let Some((key, stored)) = self.redo.first(txn).during(reading)? else { return Ok(None) };
        Ok(Some((number_of_key(key)?, RedoRecord::decode(stored)?)))
    }

    /// Whether a batch is recorded and not yet applied to all its shards.
    pub(crate) fn has_redo(&self, txn: &RoTxn<'_>) -> Result<bool> {
        Ok(self
            .redo
            .remap_data_type::<heed::types::DecodeIgnore>()
            .first(txn)
            .during(reading)?
            .is_some())
    }

    /// Records a batch under the next sequence number, which is returned.
    pub(crate) fn add_redo(&self, txn: &mut RwTxn<'_>, redo: &RedoRecord) -> Result<u64> {
        let mut database = self.database(txn)?;
        let sequence = database.next_redo;
        database.next_redo += 1;
        self.put_database(txn, &database)?;
        let stored = redo.encode();
        self.redo.put(txn, &sequence.to_be_bytes(), &stored).during(writing)?;
        Ok(sequence)
    }

    /// Forgets a batch that is applied everywhere.
    pub(crate) fn remove_redo(&self, txn: &mut RwTxn<'_>, sequence: u64) -> Result<()> {
        self.redo.delete(txn, &sequence.to_be_bytes()).during(writing).map(|_| ())
    }
}

fn reading() -> String {
    "read the catalog".to_owned()
}

fn writing() -> String {
    "write the catalog".to_owned()
}

fn table_key(name: &TableName) -> Result<Vec<u8>> {
    let text = name.to_string();
    if text.len() > KEY_BYTES_MAX {
        let message = format!(
            "the table name `{:.60}...` has {} bytes, at most {KEY_BYTES_MAX} are possible",
            text,
            text.len()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(text.into_bytes())
}

fn number_of_key(key: &[u8]) -> Result<u64> {
    <[u8; 8]>::try_from(key).map(u64::from_be_bytes).map_err(|_| damaged_key())
}

fn damaged_key() -> Error {
    Error::new(Kind::Broken, "a key in the catalog is malformed; the catalog is damaged")
}
