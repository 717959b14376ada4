//! What an operation proved outlives the process that proved it.
#![cfg(feature = "failpoints")]

use support::Tidemark;

mod support;

const LOAD: [&str; 7] = ["db", "load", "--db", "shop", "--table", "orders", "--key"];
const BACKUP: [&str; 5] = ["backup", "--source", "embedded:shop", "--to", "backups"];
const RESTORE: [&str; 5] = ["restore", "backups", "--target", "embedded:copy", "--json"];

#[test]
fn a_restore_killed_while_publishing_still_tells_what_was_proven() {
    for point in ["target.publish.before_commit:1", "target.publish.after_commit:1"] {
        let folder = support::temp_folder();
        let tidemark = Tidemark::new(folder.path());
        std::fs::write(folder.path().join("orders.csv"), "id,item\n1,tea\n2,salt\n").unwrap();
        tidemark.run(LOAD.iter().chain(&["id", "orders.csv"])).expect_code(0);
        tidemark.run(BACKUP).expect_code(0);
        tidemark.with_failpoint(point).run(RESTORE).expect_killed();

        let resumed = tidemark.run(RESTORE).expect_code(0);

        let lines = resumed.json_lines();
        let summary = lines.last().expect("a summary ends the output");
        let proven = &summary["outcome"]["tables"][0];
        assert_eq!(proven["table"], "orders", "{point}: {summary}");
        assert_eq!(proven["digest"]["rows"], 2, "{point}: {summary}");
        assert_eq!(proven["equals_source"], true, "{point}: {summary}");
    }
}
