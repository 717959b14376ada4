//! The promises of [`Source`] and [`Target`] as checks that run on any driver.
//!
//! This is a test facility: a promise that does not hold **panics**, and the message
//! begins with the promise's name. A driver's author wraps the database under test in
//! a [`TargetSubject`] or [`SourceSubject`] and calls [`check_target`] or
//! [`check_source`] from a test; [`TARGET_PROMISES`] and [`SOURCE_PROMISES`] hold the
//! same checks one by one. `examples/own_driver.rs` is a driver that passes them.
//!
//! Every check gets an empty database of its own. A crash cannot be made from
//! here, so restarts stand for it: [`Subject::reopen`] closes the database between two
//! calls, and what is found afterwards is compared with a plain map.

use std::collections::BTreeMap;

use crate::database::{Source, Target};
use crate::error::{Error, Kind, Result};
use crate::ids::TableName;
use crate::row::{RowBatch, Schema};

mod bench;
mod cut;
mod fence;
mod hidden;
mod publish;
mod roll_forward;

pub use cut::{Capture, SOURCE_PROMISES, SourcePromise, check_source};

/// Rows of a table: payloads by key.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A database under test, as its ordinary users know it.
pub trait Subject {
    /// Closes the database and opens it again, as a restarted process does.
    fn reopen(&mut self) -> Result<()>;

    /// Creates an empty table.
    ///
    /// # Errors
    /// [`Kind::InTheWay`] when the name is taken; a driver may also refuse one that an
    /// operation reserved.
    fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()>;

    /// Writes upserts and deletes in one transaction of an ordinary user.
    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()>;

    /// Drops a table.
    fn drop_table(&self, name: &TableName) -> Result<()>;

    /// What ordinary readers see; `None` if there is no such table for them.
    fn rows(&self, name: &TableName) -> Result<Option<Rows>>;
}

/// A database that restores are tested on.
pub trait TargetSubject: Subject {
    /// The driver under test, on the database as it is now.
    fn target(&self) -> &dyn Target;
}

/// A database that backups are tested on.
pub trait SourceSubject: Subject + Sync {
    /// The driver under test, on the database as it is now.
    fn source(&self) -> &dyn Source;
}

/// One promise of [`Target`], checked on an empty database.
pub type TargetPromise = fn(&mut dyn TargetSubject);

/// Every promise of [`Target`], by name, in the order in which they build on one another.
pub const TARGET_PROMISES: &[(&str, TargetPromise)] = &[
    ("txn_grows_and_survives_reopening", hidden::txn_grows_and_survives_reopening),
    ("prepare_is_idempotent_and_keeps_marks", hidden::prepare_is_idempotent_and_keeps_marks),
    ("hidden_tables_are_invisible", hidden::hidden_tables_are_invisible),
    ("rows_and_mark_are_one_transaction", hidden::rows_and_mark_are_one_transaction),
    ("a_mark_reads_back_as_apply_returned_it", hidden::a_mark_reads_back_as_apply_returned_it),
    ("work_continues_after_reopening", hidden::work_continues_after_reopening),
    ("changes_mean_what_they_say", hidden::changes_mean_what_they_say),
    ("an_update_without_its_row_is_refused", hidden::an_update_without_its_row_is_refused),
    ("a_doubled_chunk_is_refused", hidden::a_doubled_chunk_is_refused),
    ("misplaced_rows_are_refused", hidden::misplaced_rows_are_refused),
    ("the_digest_is_that_of_the_rows", hidden::the_digest_is_that_of_the_rows),
    ("read_back_is_ascending_and_complete", hidden::read_back_is_ascending_and_complete),
    ("a_whole_table_reads_back_as_its_shards", hidden::a_whole_table_reads_back_as_its_shards),
    ("a_missing_hidden_table_is_told", hidden::a_missing_hidden_table_is_told),
    ("a_stale_epoch_changes_nothing", fence::a_stale_epoch_changes_nothing),
    ("an_unclaimed_epoch_changes_nothing", fence::an_unclaimed_epoch_changes_nothing),
    ("a_sealed_shard_takes_no_rows", fence::a_sealed_shard_takes_no_rows),
    ("a_discarded_operation_makes_nothing_anew", fence::a_discarded_operation_makes_nothing_anew),
    ("publish_shows_all_tables", publish::publish_shows_all_tables),
    ("publish_is_idempotent", publish::publish_is_idempotent),
    ("publish_needs_a_seal", publish::publish_needs_a_seal),
    ("a_name_taken_meanwhile_stops_publish", publish::a_name_taken_meanwhile_stops_publish),
    ("an_existing_table_is_in_the_way", publish::an_existing_table_is_in_the_way),
    ("replace_swaps", publish::replace_swaps),
    ("discard_leaves_the_target_as_it_was", publish::discard_leaves_the_target_as_it_was),
    ("discard_is_refused_after_publishing", publish::discard_is_refused_after_publishing),
    ("a_reserved_name_is_refused_to_others", publish::a_reserved_name_is_refused_to_others),
    ("disjoint_operations_are_independent", publish::disjoint_operations_are_independent),
    ("any_call_may_be_the_last_before_a_restart", publish::any_call_may_be_the_last),
    ("a_published_copy_rolls_forward", roll_forward::a_published_copy_rolls_forward),
    ("a_held_copy_rolls_forward", roll_forward::a_held_copy_rolls_forward),
    ("a_copy_loses_the_columns_that_went", roll_forward::a_copy_loses_the_columns_that_went),
    ("a_held_copy_loses_them_too", roll_forward::a_held_copy_loses_them_too),
    ("a_copy_written_to_is_refused", roll_forward::a_copy_written_to_is_refused),
    ("a_copy_written_to_meanwhile_is_kept", roll_forward::a_copy_written_to_meanwhile_is_kept),
    (
        "a_copy_written_to_while_it_is_replaced_is_kept",
        roll_forward::a_copy_written_to_while_it_is_replaced_is_kept,
    ),
    ("holding_hides_nothing_that_is_seen", roll_forward::holding_hides_nothing_that_is_seen),
    ("an_untouched_copy_is_replaced", roll_forward::an_untouched_copy_is_replaced),
    ("a_copy_cut_differently_is_refused", roll_forward::a_copy_cut_differently_is_refused),
    ("what_is_no_copy_is_not_rolled_forward", roll_forward::what_is_no_copy_is_not_rolled_forward),
    ("discard_keeps_a_published_copy", roll_forward::discard_keeps_a_published_copy),
    ("discard_keeps_an_untouched_held_copy", roll_forward::discard_keeps_an_untouched_held_copy),
    ("a_half_rolled_held_copy_is_told", roll_forward::a_half_rolled_held_copy_is_told),
];

/// Checks every promise of [`Target`], each on an empty database that `make` gives.
///
/// # Panics
/// At the first promise that does not hold, with its name.
pub fn check_target(make: &dyn Fn() -> Box<dyn TargetSubject>) {
    for (_, promise) in TARGET_PROMISES {
        promise(&mut *make());
    }
}

/// Names the promise under check, and panics with that name.
#[derive(Clone, Copy)]
struct Promise(&'static str);

impl Promise {
    #[track_caller]
    fn broken(self, what: impl std::fmt::Display) -> ! {
        panic!("promise `{}` does not hold: {what}", self.0);
    }

    /// What must be true.
    #[track_caller]
    fn holds(self, truth: bool, otherwise: impl std::fmt::Display) {
        if !truth {
            self.broken(otherwise);
        }
    }

    /// What must be equal.
    #[track_caller]
    fn equal<T: PartialEq + std::fmt::Debug>(self, what: &str, found: &T, expected: &T) {
        if found != expected {
            self.broken(format!("{what}: found {found:?}, expected {expected:?}"));
        }
    }

    /// What must succeed.
    #[track_caller]
    fn ok<T>(self, what: &str, result: Result<T>) -> T {
        result.unwrap_or_else(|error| self.broken(format!("{what} failed: {error:?}")))
    }

    /// What must be refused with `kind`.
    #[track_caller]
    fn refused<T>(self, what: &str, result: Result<T>, kind: Kind) -> Error {
        match result {
            Ok(_) => self.broken(format!("{what} was accepted, expected {kind:?}")),
            Err(error) if error.kind() == kind => error,
            Err(error) => {
                self.broken(format!("{what} was refused as {error:?}, expected {kind:?}"))
            }
        }
    }
}
