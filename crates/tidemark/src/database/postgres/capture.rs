//! Whether the changes of a table are known completely, and what that is proven by.
//!
//! Each backup records an [`Evidence`] of every table beside its structure. An increment may
//! carry changes only if the evidence of its own cut equals that of its parent's: then the
//! table was published all the time, its rows were never rewritten behind the slot's back, and
//! every value that the slot tells means what it meant. Everything else is carried whole, with
//! the reason.

use std::collections::BTreeMap;

use postgres::GenericClient;
use serde::{Deserialize, Serialize};

use crate::database::Structure;
use crate::database::postgres::catalog::TableFacts;
use crate::database::postgres::error::failed;
use crate::database::postgres::{ENGINE, quoted};
use crate::error::Result;

/// Where the evidence lies inside [`Structure::table`].
const EVIDENCE: &str = "capture";

/// What must not have changed between two cuts of a table for its changes to be complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Evidence {
    /// Slot whose position the cut has; `None` for a cut without one.
    pub(super) slot: Option<String>,
    /// Timeline of the server: another one after a restore or a promotion.
    pub(super) timeline: i32,
    /// The publication's entry of the table, by numbers that no other entry ever has; `None` if
    /// it is not published, or not all of it.
    pub(super) published: Option<String>,
    /// Number of the file with the rows.
    pub(super) file_node: u32,
    /// Columns, generated ones too.
    pub(super) attributes: Vec<Attribute>,
}

/// A column as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attribute {
    /// `attnum`.
    pub(super) number: i16,
    /// Name.
    pub(super) name: String,
    /// Type.
    pub(super) type_oid: u32,
    /// What belongs to the type; -1 for nothing.
    pub(super) type_modifier: i32,
    /// Collation.
    pub(super) collation: u32,
    /// Whether the server computes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_generated: bool,
}

/// What the catalogs say of a table at the moment of a snapshot, and not a moment later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapped {
    pub(super) file_node: u32,
    pub(super) attributes: Vec<Attribute>,
    pub(super) published: Option<String>,
    /// Why it is not published, or not all of it: a clause.
    pub(super) unpublished: Option<String>,
}

/// Reads what evidence is made of, by table.
///
/// Straight from the catalogs' rows: functions like `pg_relation_filenode` look at the latest
/// state, whatever the transaction's snapshot is.
///
/// # Errors
/// As [`failed`] says.
pub(super) fn snapped(
    client: &mut impl GenericClient,
    publication: &str,
) -> Result<BTreeMap<u32, Snapped>> {
    let what = "read what changes are captured";
    let sql = "SELECT c.oid, c.relfilenode, a.attnum, a.attname::text, a.atttypid, a.atttypmod, \
               a.attcollation, a.attgenerated <> '' \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               LEFT JOIN pg_attribute a \
                 ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
               WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
               AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
               ORDER BY c.oid, a.attnum";
    let mut tables: BTreeMap<u32, Snapped> = BTreeMap::new();
    for row in client.query(sql, &[]).map_err(failed(what))? {
        let table = tables.entry(row.get(0)).or_default();
        table.file_node = row.get(1);
        let Some(number) = row.get::<_, Option<i16>>(2) else { continue };
        table.attributes.push(Attribute {
            number,
            name: row.get(3),
            type_oid: row.get(4),
            type_modifier: row.get(5),
            collation: row.get(6),
            is_generated: row.get(7),
        });
    }
    // Filters of rows and columns came with version 15.
    let sql = "SELECT r.prrelid, format('%s.%s.%s.%s', p.oid, p.xmin, r.oid, r.xmin), \
               to_jsonb(r)->>'prqual' IS NOT NULL, to_jsonb(r)->>'prattrs' IS NOT NULL, \
               p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot \
               FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
               WHERE p.pubname = $1::text";
    for row in client.query(sql, &[&publication]).map_err(failed(what))? {
        let Some(table) = tables.get_mut(&row.get(0)) else { continue };
        let (has_filter, has_list, tells_all, via_root) =
            (row.get::<_, bool>(2), row.get::<_, bool>(3), row.get::<_, bool>(4), row.get(5));
        table.unpublished = if has_filter {
            Some(format!("the publication `{publication}` filters its rows"))
        } else if has_list {
            Some(format!("the publication `{publication}` leaves out columns of it"))
        } else if !tells_all {
            Some(format!("the publication `{publication}` does not tell every kind of change"))
        } else if via_root {
            Some(format!(
                "the publication `{publication}` tells changes of partitions as another's"
            ))
        } else {
            table.published = Some(row.get(1));
            None
        };
    }
    Ok(tables)
}

/// Whether the server can say which row a change is of: a clause that says why not.
pub(super) fn identity_flaw(facts: &TableFacts) -> Option<&'static str> {
    match facts.persistence {
        'p' => {}
        _ => return Some("it is unlogged, and the log tells no changes of it"),
    }
    if facts.key().is_empty() {
        return Some("it has no key");
    }
    match facts.replica_identity {
        'n' => {
            Some("its replica identity is `nothing`, so the log does not tell which rows change")
        }
        // Another index than the primary key tells rows by other columns than we do.
        'i' if facts.identity_key != facts.key() => {
            Some("its replica identity is an index over other columns than its primary key")
        }
        'd' if facts.primary_key.is_empty() => {
            Some("its replica identity is `default`, and it has no primary key")
        }
        // Published, it could not be updated any more.
        'd' if has_deferrable_key(facts) => {
            Some("its primary key is deferrable, and so no replica identity")
        }
        _ => None,
    }
}

fn has_deferrable_key(facts: &TableFacts) -> bool {
    facts
        .structure
        .constraints
        .iter()
        .any(|constraint| constraint.kind == "p" && constraint.definition.contains(") DEFERRABLE"))
}

impl Evidence {
    /// Puts the evidence into what a table carries.
    pub(super) fn put(&self, structure: &mut Structure) {
        let value = serde_json::to_value(self).expect("evidence is plain data");
        if let Some(fields) = structure.table.as_object_mut() {
            fields.insert(EVIDENCE.to_owned(), value);
        }
    }

    /// The evidence of a table of a backup, if it has one that makes sense.
    pub(super) fn of(structure: Option<&Structure>) -> Option<Evidence> {
        let structure = structure.filter(|structure| structure.engine == ENGINE)?;
        Evidence::deserialize(structure.table.get(EVIDENCE)?).ok()
    }

    /// Why changes between `parent` and here are not known completely: a clause.
    pub(super) fn gap_since(&self, parent: &Evidence) -> Option<&'static str> {
        if parent.slot.is_none() || parent.slot != self.slot {
            return Some("changes were not captured yet when the parent was taken");
        }
        if parent.timeline != self.timeline {
            return Some(
                "the server was restored or a standby was promoted after the parent was taken",
            );
        }
        if parent.published.is_none() {
            return Some("its changes were not published when the parent was taken");
        }
        if parent.published != self.published {
            return Some("it was taken out of the publication and put back, after the parent");
        }
        if parent.attributes != self.attributes {
            return Some("its columns changed after the parent");
        }
        if parent.file_node != self.file_node {
            return Some(
                "it was truncated or rewritten (VACUUM FULL, CLUSTER, ALTER TABLE) after the parent",
            );
        }
        None
    }
}

/// `"schema"."table"`.
pub(super) fn sql_name(facts: &TableFacts) -> String {
    format!("{}.{}", quoted(facts.name.schema()), quoted(facts.name.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        let attribute = |number, name: &str, type_oid| Attribute {
            number,
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            collation: 0,
            is_generated: false,
        };
        Evidence {
            slot: Some("tidemark_7".to_owned()),
            timeline: 1,
            published: Some("1.2.3.4".to_owned()),
            file_node: 16_400,
            attributes: vec![attribute(1, "id", 20), attribute(3, "name", 25)],
        }
    }

    #[test]
    fn changes_are_complete_only_when_nothing_is_another() {
        let now = evidence();
        assert_eq!(now.gap_since(&evidence()), None);
        let of = |change: &dyn Fn(&mut Evidence)| {
            let mut parent = evidence();
            change(&mut parent);
            now.gap_since(&parent).expect("a gap").to_owned()
        };
        assert!(of(&|parent| parent.slot = None).contains("not captured"));
        assert!(of(&|parent| parent.slot = Some("other".to_owned())).contains("not captured"));
        assert!(of(&|parent| parent.timeline = 2).contains("promoted"));
        assert!(of(&|parent| parent.published = None).contains("not published"));
        assert!(of(&|parent| parent.published = Some("5.2.3.4".to_owned())).contains("put back"));
        assert!(of(&|parent| parent.file_node = 5).contains("truncated"));
        assert!(of(&|parent| parent.attributes[1].type_oid = 1043).contains("columns"));
        assert!(of(&|parent| parent.attributes[1].type_modifier = 14).contains("columns"));
        assert!(of(&|parent| parent.attributes[1].collation = 950).contains("columns"));
        assert!(of(&|parent| parent.attributes[0].name = "key".to_owned()).contains("columns"));
        assert!(of(&|parent| drop(parent.attributes.pop())).contains("columns"));
    }

    #[test]
    fn evidence_travels_with_the_structure_of_its_table() {
        let table = serde_json::json!({ "kind": "r" });
        let mut structure = Structure { engine: ENGINE.to_owned(), table };
        assert_eq!(Evidence::of(Some(&structure)), None);
        evidence().put(&mut structure);
        assert_eq!(Evidence::of(Some(&structure)), Some(evidence()));
        assert_eq!(structure.table["kind"], "r");
        structure.engine = "another".to_owned();
        assert_eq!(Evidence::of(Some(&structure)), None);
        assert_eq!(Evidence::of(None), None);
    }
}
