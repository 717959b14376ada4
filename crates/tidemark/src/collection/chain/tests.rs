use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::collection::fixture::{NOW_MS, paper_log, table};
use crate::collection::log::check_log;
use crate::row::{LogicalType, Schema};

type Paper = Vec<(LogEntry, Manifest)>;

const FULL: BackupKind = BackupKind::Full;
const INCREMENT: BackupKind = BackupKind::Incremental;
const WHOLE: TableMode = TableMode::Whole;
const DELTA: TableMode = TableMode::Delta;

fn resolve(paper: &Paper, point: &RestorePoint) -> Result<Chain> {
    let log: Vec<LogEntry> = paper.iter().map(|(entry, _)| entry.clone()).collect();
    Chain::resolve(&log, point, &mut |entry| {
        let found = paper.iter().find(|(other, _)| other.sequence == entry.sequence);
        Ok(found.unwrap().1.clone())
    })
}

fn simple(kinds: &[BackupKind]) -> Paper {
    paper_log(kinds, |at| vec![table(1, "orders", if kinds[at] == FULL { WHOLE } else { DELTA })])
}

fn sequences(chain: &Chain) -> Vec<u64> {
    chain.links().iter().map(|link| link.entry.sequence.0).collect()
}

#[track_caller]
fn broken(paper: &Paper, says: &str) {
    let error = resolve(paper, &RestorePoint::Latest).unwrap_err();
    assert_eq!(error.kind(), Kind::Broken, "{error}");
    assert!(error.message().contains(says), "{error}");
    assert!(error.message().contains("found") && error.message().contains("expected"), "{error}");
}

#[test]
fn a_chain_that_claims_more_than_sums_can_hold_is_refused() {
    let mut kinds = vec![INCREMENT; 64];
    kinds[0] = FULL;
    let mut paper = simple(&kinds);
    for (_, manifest) in &mut paper {
        manifest.totals.row_bytes = 1 << 50;
    }
    assert_eq!(resolve(&paper, &RestorePoint::Latest).unwrap().links().len(), 64);
    paper[7].1.totals.bytes = (1 << 50) + 1;
    broken(&paper, "at most 2^56");
}

#[test]
fn points_read_as_people_write_them() {
    let sequence = |number| RestorePoint::Sequence(Sequence(number));
    let time = |millis| RestorePoint::Time(WallTime(millis));
    for (text, point) in [
        ("latest", RestorePoint::Latest),
        ("#7", sequence(7)),
        ("12", sequence(12)),
        ("20260131093000Z_full", RestorePoint::Directory("20260131093000Z_full".to_owned())),
        ("2026-01-31T09:30:00Z", time(NOW_MS)),
        ("2026-01-31T10:30:00.250+01:00", time(NOW_MS + 250)),
        ("1970-01-01", time(86_400_000 - 1)),
    ] {
        assert_eq!(RestorePoint::parse(text).unwrap(), point, "{text}");
        assert_eq!(RestorePoint::parse(&point.to_string()).unwrap(), point, "{text}");
    }
    for text in [
        "",
        "#",
        "0",
        "#0",
        "-1",
        "99999999999999999999",
        "Latest",
        "2026-13-01",
        "2026-01-31T09:30:00",
        "20260131093000Z",
        "1969-12-30",
        "yesterday",
    ] {
        assert_eq!(RestorePoint::parse(text).unwrap_err().kind(), Kind::Usage, "{text}");
    }
}

#[test]
fn a_point_is_found_by_name_number_and_time() {
    let paper = simple(&[FULL, INCREMENT, INCREMENT, FULL, INCREMENT]);
    let parse = |text: &str| RestorePoint::parse(text).unwrap();
    let at = |text: &str| sequences(&resolve(&paper, &parse(text)).unwrap());
    assert_eq!(at("latest"), [4, 5]);
    assert_eq!(at("#3"), [1, 2, 3]);
    assert_eq!(at("4"), [4]);
    assert_eq!(at(&paper[1].0.directory), [1, 2]);
    assert_eq!(at("2026-01-31T09:33:59.999Z"), [1, 2, 3]);
    assert_eq!(at("2026-01-31T09:34:00Z"), [4]);
    assert_eq!(at("2030-01-01"), [4, 5]);

    for text in ["#6", "2026-01-30", "20200101000000Z_full"] {
        let error = resolve(&paper, &parse(text)).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("the first is #1"), "{error}");
        assert!(error.message().contains("the last #5"), "{error}");
        assert!(error.message().contains("2026-01-31T09:31:00.000Z"), "{error}");
    }
    assert_eq!(resolve(&Vec::new(), &RestorePoint::Latest).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn the_newest_backup_before_a_time_is_the_last_one_taken_even_if_clocks_jumped() {
    let mut paper = simple(&[FULL, INCREMENT, INCREMENT]);
    paper[1].1.cut_at = WallTime(NOW_MS + 9_000_000);
    paper[2].1.cut_at = WallTime(NOW_MS);
    let chain = resolve(&paper, &RestorePoint::Time(WallTime(NOW_MS))).unwrap();
    assert_eq!(sequences(&chain), [1, 2, 3]);
}

#[test]
fn every_chain_end_covers_every_backup_once() {
    let paper = simple(&[FULL, FULL, INCREMENT, INCREMENT, FULL, INCREMENT]);
    let log: Vec<LogEntry> = paper.iter().map(|(entry, _)| entry.clone()).collect();
    let covered: Vec<u64> = chain_ends(&log)
        .into_iter()
        .flat_map(|end| sequences(&resolve(&paper, &RestorePoint::Sequence(end)).unwrap()))
        .collect();
    assert_eq!(covered, [1, 2, 3, 4, 5, 6]);
    assert!(chain_ends(&[]).is_empty());
}

#[test]
fn an_increment_without_a_backup_before_it_is_a_broken_chain() {
    let mut paper = simple(&[FULL, INCREMENT, INCREMENT]);
    paper.remove(0);
    broken(&paper, "no backup before it");
}

#[test]
fn a_lost_or_exchanged_parent_is_a_broken_chain() {
    let mut paper = simple(&[FULL, INCREMENT, INCREMENT]);
    paper.remove(1);
    broken(&paper, "parent manifest");

    let mut paper = simple(&[FULL, INCREMENT]);
    paper[0].0.manifest = "0".repeat(64);
    broken(&paper, "parent manifest");
}

#[test]
fn an_increment_that_does_not_begin_where_its_parent_ends_is_refused() {
    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.source.from = Some(Position(9));
    broken(&paper, "changes from position");

    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.source.identity = "embedded:1".to_owned();
    broken(&paper, "source");
}

#[test]
fn a_delta_must_fit_what_it_changes() {
    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.tables[0].id = TableId(9);
    broken(&paper, "a delta of table orders");

    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.tables[0].digest_id = TableId(9);
    broken(&paper, "another key or digest id");

    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.tables[0].schema.key = vec![paper[1].1.tables[0].schema.columns[1].id];
    broken(&paper, "another key or digest id");

    let mut paper = simple(&[FULL, INCREMENT]);
    paper[1].1.tables[0].schema.columns[1].logical = LogicalType::Bytes;
    broken(&paper, "changed type");

    // With the table whole, all of that is allowed: it begins anew.
    let mut paper = simple(&[FULL, INCREMENT]);
    let changed = &mut paper[1].1.tables[0];
    changed.mode = WHOLE;
    changed.schema = Schema::new(&[("other", LogicalType::Uuid)], &["other"]).unwrap();
    let chain = resolve(&paper, &RestorePoint::Latest).unwrap();
    let tables = chain.tables(&[]).unwrap();
    assert_eq!(tables[0].links.len(), 1);
    assert_eq!(tables[0].links[0].link, LinkIdx(1));
}

#[test]
fn a_renamed_table_is_followed_by_its_id_and_a_dropped_one_is_gone() {
    let paper = paper_log(&[FULL, INCREMENT, INCREMENT], |at| match at {
        0 => vec![table(1, "a", WHOLE), table(2, "b", WHOLE)],
        // `b` is dropped, and `a` takes its name; a new `a` appears.
        1 => vec![table(3, "a", WHOLE), table(1, "b", DELTA)],
        _ => vec![table(3, "a", DELTA), table(1, "b", DELTA)],
    });
    let chain = resolve(&paper, &RestorePoint::Latest).unwrap();
    let tables = chain.tables(&[]).unwrap();
    let found: Vec<(String, u128, Vec<u32>)> = tables
        .iter()
        .map(|found| {
            let links = found.links.iter().map(|link| link.link.0).collect();
            (found.table.name.to_string(), found.table.id.0, links)
        })
        .collect();
    assert_eq!(found, [("a".to_owned(), 3, vec![1, 2]), ("b".to_owned(), 1, vec![0, 1, 2])]);
    assert_eq!(tables[1].links[0].entry.name.to_string(), "a");
}

#[test]
fn patterns_select_tables_and_an_idle_one_is_told() {
    let names = ["orders", "order_lines", "stock.items", "stock.\"a.b\"", "x[y"];
    let paper = paper_log(&[FULL], |_| {
        let mut tables: Vec<TableEntry> =
            (1..).zip(names).map(|(id, name)| table(id, name, WHOLE)).collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        tables
    });
    let chain = resolve(&paper, &RestorePoint::Latest).unwrap();
    let select = |patterns: &[&str]| -> Result<Vec<String>> {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        Ok(chain.tables(&patterns)?.iter().map(|found| found.table.name.to_string()).collect())
    };
    assert_eq!(select(&[]).unwrap().len(), 5);
    assert_eq!(select(&["orders"]).unwrap(), ["orders"]);
    assert_eq!(select(&["public.orders"]).unwrap(), ["orders"]);
    assert_eq!(select(&["order*"]).unwrap(), ["order_lines", "orders"]);
    assert_eq!(select(&["stock.*", "orders"]).unwrap(), ["orders", "stock.\"a.b\"", "stock.items"]);
    assert_eq!(select(&["stock.\"a.b\""]).unwrap(), ["stock.\"a.b\""]);
    assert_eq!(select(&["x[y"]).unwrap(), ["x[y"]);
    let error = select(&["orders", "oders"]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("`oders`") && error.message().contains("`orders`"), "{error}");
    assert_eq!(select(&["\"[x"]).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn four_hundred_links_are_no_burden() {
    let mut kinds = vec![INCREMENT; 401];
    kinds[0] = FULL;
    let paper = paper_log(&kinds, |at| {
        (0..50)
            .map(|id| table(id, &format!("t{id:02}"), if at == 0 { WHOLE } else { DELTA }))
            .collect()
    });
    let log: Vec<LogEntry> = paper.iter().map(|(entry, _)| entry.clone()).collect();
    check_log(&log).unwrap();
    let mut reads = 0;
    let chain = Chain::resolve(&log, &RestorePoint::Latest, &mut |entry| {
        reads += 1;
        let at = usize::try_from(entry.sequence.0).unwrap() - 1;
        Ok(paper[at].1.clone())
    });
    let chain = chain.unwrap();
    assert_eq!(reads, 401, "every manifest is read once");
    let tables = chain.tables(&[]).unwrap();
    assert!(tables.iter().all(|table| table.links.len() == 401));
}

/// A table's life in one backup, as proptest draws it.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Absent,
    Whole,
    Delta,
}

proptest! {
    /// The oracle replays the log forward with a plain map: what a whole begins and a delta
    /// continues. The chain, which walks backward, must say the same.
    #[test]
    fn resolution_agrees_with_a_replay_of_the_log(
        steps in prop::collection::vec(
            (prop::bool::weighted(0.25), prop::collection::vec(0..3u8, 4)), 1..14),
        point in any::<prop::sample::Index>(),
    ) {
        let mut alive = [false; 4];
        let mut fates: Vec<[Fate; 4]> = Vec::new();
        let mut kinds = Vec::new();
        for (at, (full, drawn)) in steps.iter().enumerate() {
            let full = *full || at == 0;
            let mut row = [Fate::Absent; 4];
            for (table, fate) in row.iter_mut().enumerate() {
                *fate = match drawn[table] {
                    0 => Fate::Absent,
                    1 => Fate::Whole,
                    // A delta needs the table in its parent, and a full has none.
                    _ if full || !alive[table] => Fate::Whole,
                    _ => Fate::Delta,
                };
                alive[table] = !matches!(fate, Fate::Absent);
            }
            fates.push(row);
            kinds.push(if full { FULL } else { INCREMENT });
        }
        let paper = paper_log(&kinds, |at| {
            let present = fates[at].iter().enumerate().filter_map(|(id, fate)| match fate {
                Fate::Absent => None,
                Fate::Whole => Some(table(id as u128, &format!("t{id}"), WHOLE)),
                Fate::Delta => Some(table(id as u128, &format!("t{id}"), DELTA)),
            });
            present.collect()
        });

        let point = point.index(paper.len());
        let mut begun = 0;
        let mut expected: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for at in 0..=point {
            if kinds[at] == FULL {
                begun = at;
            }
            for (table, fate) in fates[at].iter().enumerate() {
                match fate {
                    Fate::Absent => { expected.remove(&table); }
                    Fate::Whole => { expected.insert(table, vec![at]); }
                    Fate::Delta => expected.get_mut(&table).unwrap().push(at),
                }
            }
        }

        let chain = resolve(&paper, &RestorePoint::Sequence(Sequence(point as u64 + 1))).unwrap();
        prop_assert_eq!(chain.links().len(), point - begun + 1);
        let found: BTreeMap<usize, Vec<usize>> = chain.tables(&[]).unwrap().iter().map(|table| {
            let links = table.links.iter().map(|link| begun + link.link.0 as usize).collect();
            (table.table.id.0 as usize, links)
        }).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_text_breaks_the_reader_of_points(text in ".{0,40}") {
        let _ = RestorePoint::parse(&text);
    }
}
