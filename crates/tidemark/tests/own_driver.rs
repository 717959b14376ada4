//! The example driver keeps every promise, and so shows that the contract can be kept.

#[path = "../examples/own_driver.rs"]
#[allow(dead_code, reason = "only the example runs its `main`")]
mod own_driver;

use own_driver::OwnDatabase;
use tidemark::Result;
use tidemark::database::conformance::{
    Capture, Rows, SourceSubject, Subject, TargetSubject, check_source, check_target,
};
use tidemark::database::{Source, Target};
use tidemark::ids::TableName;
use tidemark::row::{RowBatch, Schema};

struct OwnSubject(OwnDatabase);

impl Subject for OwnSubject {
    fn reopen(&mut self) -> Result<()> {
        self.0 = self.0.clone();
        Ok(())
    }

    fn create_table(&self, name: &TableName, schema: &Schema) -> Result<()> {
        self.0.create_table(name, schema)
    }

    fn write(&self, name: &TableName, rows: &RowBatch) -> Result<()> {
        self.0.write(name, rows)
    }

    fn drop_table(&self, name: &TableName) -> Result<()> {
        self.0.drop_table(name)
    }

    fn rows(&self, name: &TableName) -> Result<Option<Rows>> {
        Ok(self.0.rows(name))
    }
}

impl TargetSubject for OwnSubject {
    fn target(&self) -> &dyn Target {
        &self.0
    }
}

impl SourceSubject for OwnSubject {
    fn source(&self) -> &dyn Source {
        &self.0
    }
}

#[test]
fn a_driver_of_ones_own_keeps_the_promises_of_a_target() {
    check_target(&|| Box::new(OwnSubject(OwnDatabase::new("own"))));
}

#[test]
fn a_driver_of_ones_own_keeps_the_promises_of_a_source() {
    check_source(&|| Box::new(OwnSubject(OwnDatabase::new("own"))), Capture::Changes);
}
