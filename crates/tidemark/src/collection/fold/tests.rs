//! A fold of any chain equals a map to which the changes were applied one by one.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::collection::manifest::PartEntry;
use crate::collection::part::{PartKind, PartOptions, PartRead, PartReader, PartWriter};
use crate::collection::run::{LinkCost, RunBudget, RunInput, open_run, plan_runs, write_run};
use crate::ids::{ColumnId, TableId};
use crate::row::payload::{begin, put_unchanged, put_value};
use crate::row::{Column, KeyRange, LogicalType, RowCodec, Schema, Value};

const DIGEST_ID: TableId = TableId(3);

type Change = (Vec<u8>, ChangeOp, Vec<u8>);

/// Hands out changes in batches of a given length.
struct Given {
    changes: Vec<Change>,
    at: usize,
    rows: usize,
}

impl RowStream for Given {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        for (key, op, payload) in self.changes.iter().skip(self.at).take(self.rows) {
            batch.push(RowRef { key, op: *op, payload });
        }
        self.at += batch.len();
        Ok(!batch.is_empty())
    }
}

fn given(changes: &[Change], rows: usize) -> Box<dyn RowStream> {
    Box::new(Given { changes: changes.to_vec(), at: 0, rows })
}

fn upsert(key: u8, value: u8) -> Change {
    let mut payload = Vec::new();
    begin(&mut payload);
    put_value(ColumnId(2), &Value::Int64(value.into()), &mut payload);
    put_value(ColumnId(3), &Value::Bool(true), &mut payload);
    (vec![key], ChangeOp::Upsert, payload)
}

/// Leaves column 2 as it was.
fn update(key: u8) -> Change {
    let mut payload = Vec::new();
    begin(&mut payload);
    put_unchanged(ColumnId(2), &mut payload);
    put_value(ColumnId(3), &Value::Bool(false), &mut payload);
    (vec![key], ChangeOp::Update, payload)
}

fn updated(key: u8, value: u8) -> Change {
    let mut payload = Vec::new();
    begin(&mut payload);
    put_value(ColumnId(2), &Value::Int64(value.into()), &mut payload);
    put_value(ColumnId(3), &Value::Bool(false), &mut payload);
    (vec![key], ChangeOp::Upsert, payload)
}

fn delete(key: u8) -> Change {
    (vec![key], ChangeOp::Delete, Vec::new())
}

fn fold(mode: FoldMode, links: &[Vec<Change>]) -> Result<Vec<Change>> {
    let links = links.iter().map(|link| given(link, 3)).collect();
    collect(&mut Fold::new(links, FoldOptions::new(mode)))
}

fn collect(fold: &mut dyn RowStream) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut batch = RowBatch::new();
    while fold.next_batch(&mut batch)? {
        changes.extend(batch.iter().map(|row| (row.key.to_vec(), row.op, row.payload.to_vec())));
    }
    Ok(changes)
}

#[test]
fn the_newest_link_decides() {
    let links = [
        vec![upsert(1, 1), upsert(2, 1), upsert(3, 1), upsert(4, 1), upsert(9, 1)],
        vec![delete(2), update(3), upsert(4, 2), delete(7)],
        vec![upsert(2, 3), update(3), delete(4), upsert(5, 3)],
    ];
    let folded = fold(FoldMode::ToFull, &links).unwrap();
    assert_eq!(folded, [upsert(1, 1), upsert(2, 3), updated(3, 1), upsert(5, 3), upsert(9, 1)]);
}

#[test]
fn an_increment_keeps_deletes_and_partial_updates() {
    let links = [vec![upsert(1, 1), delete(2), update(3)], vec![update(1), delete(3), update(4)]];
    let folded = fold(FoldMode::ToIncrement, &links).unwrap();
    assert_eq!(folded, [updated(1, 1), delete(2), delete(3), update(4)]);
}

#[test]
fn an_update_without_an_older_row_names_its_key() {
    for links in [
        vec![vec![upsert(1, 1)], vec![update(0xab)]],
        vec![vec![upsert(0xab, 1)], vec![delete(0xab)], vec![update(0xab)]],
        vec![vec![update(0xab)]],
    ] {
        let error = fold(FoldMode::ToFull, &links).unwrap_err();
        assert_eq!(error.kind(), Kind::Broken);
        assert!(error.to_string().contains("key 0xab"), "{error}");
    }
    let links = [vec![delete(0xab)], vec![update(0xab)]];
    assert_eq!(fold(FoldMode::ToIncrement, &links).unwrap_err().kind(), Kind::Broken);
}

#[test]
fn no_link_and_empty_links_give_no_row() {
    assert_eq!(fold(FoldMode::ToFull, &[]).unwrap(), []);
    assert_eq!(fold(FoldMode::ToFull, &[vec![], vec![]]).unwrap(), []);
    assert_eq!(fold(FoldMode::ToFull, &[vec![upsert(1, 1)], vec![delete(1)]]).unwrap(), []);
}

#[test]
fn trailing_deletes_are_consumed_and_covered_by_the_last_key() {
    let full = vec![upsert(1, 1), upsert(2, 1), upsert(3, 1)];
    let links = vec![given(&full, 9), given(&[delete(2), delete(3), delete(8)], 9)];
    let mut fold = Fold::new(links, FoldOptions::new(FoldMode::ToFull));
    assert_eq!(fold.last_key_consumed(), None);
    let mut batch = RowBatch::new();
    assert!(fold.next_batch(&mut batch).unwrap());
    assert_eq!(batch.len(), 1);
    assert!(!fold.next_batch(&mut batch).unwrap());
    assert_eq!(fold.last_key_consumed(), Some(&[8][..]));
    assert_eq!(fold.tallies().iter().map(|tally| tally.rows).collect::<Vec<u64>>(), [3, 3]);
}

#[test]
fn batches_are_as_long_as_the_fold_says_whatever_those_of_the_links_are() {
    let changes: Vec<Change> = (0..10).map(|key| upsert(key, 1)).collect();
    for (rows_max, expected) in [(4096, &[10][..]), (4, &[4, 4, 2]), (3, &[3, 3, 3, 1])] {
        let options = FoldOptions { rows_max, ..FoldOptions::new(FoldMode::ToFull) };
        let mut fold = Fold::new(vec![given(&changes, 4)], options);
        let mut lengths = Vec::new();
        let mut batch = RowBatch::new();
        while fold.next_batch(&mut batch).unwrap() {
            lengths.push(batch.len());
        }
        assert_eq!(lengths, expected);
    }
}

#[test]
fn a_link_out_of_order_is_refused() {
    let links = [vec![upsert(5, 1), upsert(6, 1), upsert(7, 1), upsert(2, 1)]];
    assert_eq!(fold(FoldMode::ToFull, &links).unwrap_err().kind(), Kind::Broken);
}

/// One link as a backup would hold it: its schema, its part if it has rows.
struct StoredLink {
    schema: Schema,
    kind: PartKind,
    changes: Vec<Change>,
    part: Option<(Bytes, PartEntry)>,
}

impl StoredLink {
    fn new(
        schema: &Schema,
        kind: PartKind,
        changes: BTreeMap<Vec<u8>, (ChangeOp, Vec<u8>)>,
    ) -> StoredLink {
        let changes: Vec<Change> =
            changes.into_iter().map(|(key, (op, payload))| (key, op, payload)).collect();
        let part = (!changes.is_empty()).then(|| {
            let options = PartOptions { group_rows_max: 7, ..PartOptions::new(DIGEST_ID) };
            let mut writer = PartWriter::new(Vec::new(), schema, kind, options).unwrap();
            let mut batch = RowBatch::new();
            for (key, op, payload) in &changes {
                batch.push(RowRef { key, op: *op, payload });
            }
            writer.write(&batch).unwrap();
            let (bytes, summary) = writer.finish().unwrap();
            (Bytes::from(bytes), summary.into_entry("p".to_owned()))
        });
        StoredLink { schema: schema.clone(), kind, changes, part }
    }

    fn open(
        &self,
        wanted: &RowCodec,
        range: &KeyRange,
        after: Option<&[u8]>,
    ) -> Box<dyn RowStream> {
        let Some((bytes, part)) = &self.part else { return given(&[], 1) };
        let (schema, kind) = (&self.schema, self.kind);
        let read = PartRead { part, schema, kind, wanted, range, after };
        Box::new(PartReader::open(bytes.clone(), &read).unwrap())
    }
}

/// What a client did to one key, or to the table, between two backups.
#[derive(Clone, Debug)]
enum Action {
    Put(u8, [Option<i64>; 3]),
    Set(u8, u8, i64),
    Remove(u8),
    AddColumn,
    DropColumn(u8),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0u8..40, any::<[Option<i64>; 3]>()).prop_map(|(key, values)| Action::Put(key, values)),
        6 => (0u8..40, any::<u8>(), any::<i64>()).prop_map(|(key, at, value)| Action::Set(key, at, value)),
        4 => (0u8..40).prop_map(Action::Remove),
        1 => Just(Action::AddColumn),
        1 => any::<u8>().prop_map(Action::DropColumn),
    ]
}

/// The table as a plain map, and the links that its history makes.
struct Oracle {
    schema: Schema,
    rows: BTreeMap<u8, BTreeMap<ColumnId, i64>>,
}

impl Oracle {
    fn key(key: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::row::key::encode_key_value(&Value::Int64(key.into()), &mut bytes).unwrap();
        bytes
    }

    fn value_columns(&self) -> Vec<ColumnId> {
        self.schema.columns.iter().map(|column| column.id).filter(|id| id.0 > 1).collect()
    }

    /// Applies one backup's worth of actions; schema changes come first, as a delta needs it.
    fn link(&mut self, actions: &[Action], kind: PartKind) -> StoredLink {
        for action in actions {
            match action {
                Action::AddColumn if self.schema.columns.len() < 6 => {
                    let id = self.schema.next_column_id;
                    self.schema.next_column_id = ColumnId(id.0 + 1);
                    let (name, native) = (format!("c{id}"), None);
                    self.schema.columns.push(Column {
                        id,
                        name,
                        logical: LogicalType::Int64,
                        native,
                    });
                }
                Action::DropColumn(at) if self.schema.columns.len() > 2 => {
                    let at = 1 + usize::from(*at) % (self.schema.columns.len() - 1);
                    let gone = self.schema.columns.remove(at).id;
                    self.rows.values_mut().for_each(|row| {
                        row.remove(&gone);
                    });
                }
                _ => {}
            }
        }
        let columns = self.value_columns();
        // Per key what became of it: removed, put whole, or only some columns set.
        let mut touched: BTreeMap<u8, Option<Vec<ColumnId>>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Put(key, values) => {
                    let pairs = columns.iter().zip(values.iter().cycle());
                    let row = pairs.filter_map(|(id, value)| Some((*id, (*value)?))).collect();
                    self.rows.insert(*key, row);
                    touched.insert(*key, Some(columns.clone()));
                }
                Action::Set(key, at, value) if kind == PartKind::Increment => {
                    let id = columns[usize::from(*at) % columns.len()];
                    let Some(row) = self.rows.get_mut(key) else { continue };
                    row.insert(id, *value);
                    if let Some(set) = touched.entry(*key).or_insert_with(|| Some(Vec::new())) {
                        set.push(id);
                    }
                }
                // A delete of a row that is not there is legal.
                Action::Remove(key) if kind == PartKind::Increment => {
                    self.rows.remove(key);
                    touched.insert(*key, None);
                }
                _ => {}
            }
        }
        let change = |(key, set): (u8, Option<Vec<ColumnId>>)| {
            let change = match set {
                None => (ChangeOp::Delete, Vec::new()),
                Some(set) => self.change(&self.rows[&key], &columns, &set),
            };
            (Oracle::key(key), change)
        };
        StoredLink::new(&self.schema, kind, touched.into_iter().map(change).collect())
    }

    fn change(
        &self,
        row: &BTreeMap<ColumnId, i64>,
        columns: &[ColumnId],
        set: &[ColumnId],
    ) -> (ChangeOp, Vec<u8>) {
        let whole = columns.iter().all(|id| set.contains(id));
        let mut payload = Vec::new();
        begin(&mut payload);
        for id in columns {
            match row.get(id) {
                _ if !set.contains(id) => put_unchanged(*id, &mut payload),
                Some(value) => put_value(*id, &Value::Int64(*value), &mut payload),
                None => {}
            }
        }
        (if whole { ChangeOp::Upsert } else { ChangeOp::Update }, payload)
    }

    fn expected(&self) -> Vec<Change> {
        let columns = self.value_columns();
        let row = |(key, row): (&u8, &BTreeMap<ColumnId, i64>)| {
            let (op, payload) = self.change(row, &columns, &columns);
            (Oracle::key(*key), op, payload)
        };
        self.rows.iter().map(row).collect()
    }
}

fn chain(history: &[Vec<Action>]) -> (Oracle, Vec<StoredLink>) {
    let columns =
        [("id", LogicalType::Int64), ("a", LogicalType::Int64), ("b", LogicalType::Int64)];
    let schema = Schema::new(&columns, &["id"]).unwrap();
    let mut oracle = Oracle { schema, rows: BTreeMap::new() };
    let mut links = Vec::new();
    for (at, actions) in history.iter().enumerate() {
        let kind = if at == 0 { PartKind::Full } else { PartKind::Increment };
        links.push(oracle.link(actions, kind));
    }
    (oracle, links)
}

fn history() -> impl Strategy<Value = Vec<Vec<Action>>> {
    let increment = prop::collection::vec(action(), 0..25);
    (prop::collection::vec(action(), 0..60), prop::collection::vec(increment, 0..9))
        .prop_map(|(full, increments)| std::iter::once(full).chain(increments).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_chain_folds_to_what_a_map_holds_and_resumes_anywhere(
        history in history(), rows_max in 1u32..30, bytes_max in 1u64..600,
    ) {
        let (oracle, links) = chain(&history);
        let wanted = RowCodec::new(&oracle.schema);
        let options = FoldOptions { mode: FoldMode::ToFull, rows_max, bytes_max };
        let open = |after: Option<&[u8]>| {
            let streams =
                links.iter().map(|link| link.open(&wanted, &KeyRange::ALL, after)).collect();
            Fold::new(streams, options)
        };
        let mut fold = open(None);
        let mut folded = Vec::new();
        let mut stops = vec![];
        let mut batch = RowBatch::new();
        while fold.next_batch(&mut batch).unwrap() {
            prop_assert!(batch.len() <= rows_max as usize);
            folded.extend(batch.iter().map(|row| (row.key.to_vec(), row.op, row.payload.to_vec())));
            let last_key = fold.last_key_consumed().unwrap().to_vec();
            prop_assert!(*batch.last().unwrap().key <= *last_key);
            for (link, tally) in links.iter().zip(fold.tallies()) {
                let consumed = link.changes.iter().filter(|(key, _, _)| *key <= last_key).count();
                prop_assert_eq!(tally.rows, consumed as u64);
            }
            stops.push((last_key, folded.len(), fold.tallies().to_vec()));
        }
        prop_assert_eq!(&folded, &oracle.expected());

        let total = fold.tallies().to_vec();
        for (last_key, count, tallies) in stops {
            let mut rest = open(Some(&last_key));
            prop_assert_eq!(&*collect(&mut rest).unwrap(), &folded[count..]);
            for ((before, after), total) in tallies.iter().zip(rest.tallies()).zip(&total) {
                prop_assert_eq!(before.rows + after.rows, total.rows);
                prop_assert_eq!(before.bytes + after.bytes, total.bytes);
            }
        }
    }

    #[test]
    fn a_fold_over_planned_runs_is_the_same(
        history in history(), budget in 2u64..5, range in (0u8..40, 0u8..40),
    ) {
        let (oracle, links) = chain(&history);
        let wanted = RowCodec::new(&oracle.schema);
        let range = KeyRange { start: Oracle::key(range.0), end: Some(Oracle::key(range.1)) };
        let costs: Vec<LinkCost> = links
            .iter()
            .map(|link| LinkCost { kind: link.kind, open_bytes: 1, row_bytes: link.changes.len() as u64 })
            .collect();
        let budget = RunBudget { bytes: budget, writer_bytes: 0, reader_bytes_max: 1 };
        let plan = plan_runs(&costs, budget).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |run: u32| directory.path().join(format!("run-{run}"));
        let open = |input: &RunInput| -> Box<dyn RowStream> {
            let run = match input {
                RunInput::Link(at) => return links[at.0 as usize].open(&wanted, &range, None),
                RunInput::Run(run) => *run,
            };
            let Some(part) = open_run(&path(run)).unwrap().unwrap().part else {
                return given(&[], 1);
            };
            let read = PartRead {
                part: &part,
                schema: &oracle.schema,
                kind: PartKind::Increment,
                wanted: &wanted,
                range: &range,
                after: None,
            };
            Box::new(PartReader::open(std::fs::File::open(path(run)).unwrap(), &read).unwrap())
        };
        for (at, run) in (0..).zip(&plan.runs) {
            prop_assert!(run.inputs.len() as u64 <= budget.bytes);
            let inputs = run.inputs.iter().map(&open).collect();
            write_run(inputs, &oracle.schema, DIGEST_ID, &path(at), &mut |_| Ok(())).unwrap();
        }
        prop_assert!(plan.last.len() as u64 <= budget.bytes);
        let links = plan.last.iter().map(&open).collect();
        let folded = collect(&mut Fold::new(links, FoldOptions::new(FoldMode::ToFull))).unwrap();
        let expected: Vec<Change> =
            oracle.expected().into_iter().filter(|(key, _, _)| range.contains(key)).collect();
        prop_assert_eq!(folded, expected);
    }
}
