//! The records of operations as the target of a restore keeps them, beside those of tables.
//!
//! | named database | key | record |
//! |---|---|---|
//! | `target_operations` | operation, `u64` big-endian | [`TargetOperationRecord`] |
//! | `hidden_tables` | operation, `u64` big-endian; table name as text | [`HiddenTableRecord`] |
//! | `reservations` | table name as text | [`ReservationRecord`] |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heed::{RoTxn, RwTxn};

use crate::database::embedded::record::{
    self, HiddenTableRecord, ReservationRecord, TargetOperationRecord,
};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::{OperationId, TableName};
use crate::lmdb::{Environment, KEY_BYTES_MAX, LmdbContext, NamedDatabase};

/// Typed access to the records; every call is inside a transaction of the caller.
#[derive(Debug)]
pub(in crate::database::embedded) struct TargetRecords {
    operations: NamedDatabase,
    hidden_tables: NamedDatabase,
    reservations: NamedDatabase,
    /// Decoded hidden tables, each with the bytes it was read from. A record is read for every
    /// chunk, and one of thousands of shards takes longer to parse than to compare.
    decoded: Mutex<HashMap<Vec<u8>, Decoded>>,
}

#[derive(Debug)]
struct Decoded {
    stored: Vec<u8>,
    record: Arc<HiddenTableRecord>,
}

impl TargetRecords {
    /// The records in the catalog's environment; their databases are made when missing.
    pub(in crate::database::embedded) fn open(
        environment: &Environment,
        env: &dyn Env,
        wait: Duration,
    ) -> Result<TargetRecords> {
        let names = ["target_operations", "hidden_tables", "reservations"];
        let [operations, hidden_tables, reservations] =
            environment.create_databases(names, env, wait)?;
        Ok(TargetRecords { operations, hidden_tables, reservations, decoded: Mutex::default() })
    }

    /// The operation; `None` before its first call.
    pub(super) fn operation(
        &self,
        txn: &RoTxn<'_>,
        operation: OperationId,
    ) -> Result<Option<TargetOperationRecord>> {
        let stored = self.operations.get(txn, &operation.0.to_be_bytes()).during(reading)?;
        stored
            .map(record::decode)
            .transpose()
            .map_err(|error| error.context(format!("operation {operation}")))
    }

    /// Stores the operation.
    pub(super) fn put_operation(
        &self,
        txn: &mut RwTxn<'_>,
        operation: OperationId,
        record: &TargetOperationRecord,
    ) -> Result<()> {
        let stored = record::encode(record);
        self.operations.put(txn, &operation.0.to_be_bytes(), &stored).during(writing)
    }

    /// A hidden table; `None` if there is no such.
    pub(super) fn hidden_table(
        &self,
        txn: &RoTxn<'_>,
        operation: OperationId,
        name: &TableName,
    ) -> Result<Option<Arc<HiddenTableRecord>>> {
        let key = hidden_key(operation, name)?;
        let stored = self.hidden_tables.get(txn, &key).during(reading)?;
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stored) = stored else {
            decoded.remove(&key);
            return Ok(None);
        };
        if let Some(known) = decoded.get(&key).filter(|known| known.stored == stored) {
            return Ok(Some(Arc::clone(&known.record)));
        }
        let record = record::decode::<HiddenTableRecord>(stored)
            .map_err(|error| error.context(format!("operation {operation}, table `{name}`")))?;
        let record = Arc::new(record);
        let known = Decoded { stored: stored.to_vec(), record: Arc::clone(&record) };
        decoded.insert(key, known);
        Ok(Some(record))
    }

    /// All hidden tables of an operation.
    pub(super) fn hidden_tables(
        &self,
        txn: &RoTxn<'_>,
        operation: OperationId,
    ) -> Result<Vec<HiddenTableRecord>> {
        let prefix = operation.0.to_be_bytes();
        let mut tables = Vec::new();
        for entry in self.hidden_tables.prefix_iter(txn, &prefix).during(reading)? {
            let (_, stored) = entry.during(reading)?;
            let table = record::decode(stored)
                .map_err(|error: Error| error.context(format!("operation {operation}")))?;
            tables.push(table);
        }
        Ok(tables)
    }

    /// Stores a hidden table and reserves its name.
    pub(super) fn put_hidden_table(
        &self,
        txn: &mut RwTxn<'_>,
        operation: OperationId,
        record: &HiddenTableRecord,
    ) -> Result<()> {
        let name = &record.plan.name;
        let key = hidden_key(operation, name)?;
        self.hidden_tables.put(txn, &key, &record::encode(record)).during(writing)?;
        let reservation = record::encode(&ReservationRecord { operation });
        self.reservations.put(txn, &key[PREFIX_BYTES..], &reservation).during(writing)
    }

    /// Removes a hidden table and its reservation.
    pub(super) fn remove_hidden_table(
        &self,
        txn: &mut RwTxn<'_>,
        operation: OperationId,
        name: &TableName,
    ) -> Result<()> {
        let key = hidden_key(operation, name)?;
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.hidden_tables.delete(txn, &key).during(writing)?;
        self.reservations.delete(txn, &key[PREFIX_BYTES..]).during(writing)?;
        Ok(())
    }

    /// The operation that reserved the name.
    pub(super) fn reserved_by(
        &self,
        txn: &RoTxn<'_>,
        name: &TableName,
    ) -> Result<Option<OperationId>> {
        let key = hidden_key(OperationId(0), name)?;
        let stored = self.reservations.get(txn, &key[PREFIX_BYTES..]).during(reading)?;
        let reservation = stored.map(record::decode::<ReservationRecord>).transpose()?;
        Ok(reservation.map(|reservation| reservation.operation))
    }
}

/// Bytes of the operation in front of a hidden table's name.
const PREFIX_BYTES: usize = 8;

fn hidden_key(operation: OperationId, name: &TableName) -> Result<Vec<u8>> {
    let text = name.to_string();
    let mut key = operation.0.to_be_bytes().to_vec();
    key.extend_from_slice(text.as_bytes());
    if key.len() > KEY_BYTES_MAX {
        let message = format!(
            "the table name `{text:.60}...` has {} bytes, at most {} are possible",
            text.len(),
            KEY_BYTES_MAX - PREFIX_BYTES
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(key)
}

fn reading() -> String {
    "read the records of operations".to_owned()
}

fn writing() -> String {
    "write the records of operations".to_owned()
}
