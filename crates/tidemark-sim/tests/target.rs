//! The simulated target keeps the contract of a target, so what it shows is worth something.

use tidemark::Result;
use tidemark::database::Target;
use tidemark::database::conformance::{Rows, Subject, TargetSubject, check_target};
use tidemark::ids::TableName;
use tidemark::row::{RowBatch, Schema};
use tidemark_sim::database::Database;

struct SimSubject(Database);

impl Subject for SimSubject {
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

impl TargetSubject for SimSubject {
    fn target(&self) -> &dyn Target {
        &self.0
    }
}

#[test]
fn the_simulated_target_keeps_the_promises_of_a_target() {
    check_target(&|| Box::new(SimSubject(Database::new("simulated"))));
}
