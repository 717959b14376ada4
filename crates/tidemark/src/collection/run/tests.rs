//! Plans stay within their budget; runs are found again only when they are whole.

use proptest::prelude::*;

use super::*;
use crate::row::{ChangeOp, LogicalType, RowRef};

const MIB: u64 = 1 << 20;

fn increment(open_bytes: u64, row_bytes: u64) -> LinkCost {
    LinkCost { kind: PartKind::Increment, open_bytes, row_bytes }
}

fn full(open_bytes: u64) -> LinkCost {
    LinkCost { kind: PartKind::Full, open_bytes, row_bytes: 1 << 40 }
}

/// Carries a plan out on costs alone; checks that it merges neighbours within the budget.
fn check(links: &[LinkCost], budget: RunBudget, plan: &RunPlan) -> u64 {
    // Each input as the span of links it stands for, and its costs.
    let mut made: Vec<(std::ops::Range<usize>, LinkCost)> = Vec::new();
    let look = |made: &[(std::ops::Range<usize>, LinkCost)], input: &RunInput| match input {
        RunInput::Link(at) => (at.0 as usize..at.0 as usize + 1, links[at.0 as usize]),
        RunInput::Run(run) => made[*run as usize].clone(),
    };
    let mut rewritten = 0;
    for run in &plan.runs {
        let inputs: Vec<_> = run.inputs.iter().map(|input| look(&made, input)).collect();
        assert!(inputs.len() >= 2);
        assert!(inputs.iter().all(|(_, cost)| cost.kind == PartKind::Increment));
        assert!(inputs.windows(2).all(|pair| pair[0].0.end == pair[1].0.start), "neighbours");
        let opened: u64 = inputs.iter().map(|(_, cost)| cost.open_bytes).sum();
        assert!(opened + budget.writer_bytes <= budget.bytes, "{opened}");
        let row_bytes = inputs.iter().map(|(_, cost)| cost.row_bytes).sum();
        assert_eq!(run.row_bytes, row_bytes);
        rewritten += row_bytes;
        let greatest = inputs.iter().map(|(_, cost)| cost.open_bytes).max().unwrap();
        let open_bytes = opened.min(budget.reader_bytes_max.max(greatest));
        let span = inputs[0].0.start..inputs[inputs.len() - 1].0.end;
        made.push((span, increment(open_bytes, row_bytes)));
    }
    let last: Vec<_> = plan.last.iter().map(|input| look(&made, input)).collect();
    let spans: Vec<usize> = last.iter().flat_map(|(span, _)| span.clone()).collect();
    assert_eq!(spans, (0..links.len()).collect::<Vec<usize>>(), "every link once, in order");
    let opened: u64 = last.iter().map(|(_, cost)| cost.open_bytes).sum();
    assert!(opened <= budget.bytes, "{opened}");
    rewritten
}

#[test]
fn what_fits_is_not_merged() {
    let links = [full(10), increment(10, 1), increment(10, 1)];
    let budget = RunBudget { bytes: 30, writer_bytes: 10, reader_bytes_max: 10 };
    let plan = plan_runs(&links, budget).unwrap();
    assert_eq!(plan.runs, []);
    assert_eq!(plan.last.len(), 3);
    assert_eq!(plan_runs(&[], budget).unwrap(), RunPlan::default());
}

#[test]
fn the_smallest_neighbours_are_merged_first() {
    let links =
        [full(10), increment(10, 900), increment(10, 5), increment(10, 7), increment(10, 800)];
    let budget = RunBudget { bytes: 40, writer_bytes: 5, reader_bytes_max: 10 };
    let plan = plan_runs(&links, budget).unwrap();
    assert_eq!(plan.runs.len(), 1);
    assert_eq!(plan.runs[0].inputs, [RunInput::Link(LinkIdx(2)), RunInput::Link(LinkIdx(3))]);
    check(&links, budget, &plan);
}

#[test]
fn four_hundred_wide_links_fit_a_shard_of_eight() {
    let page_bytes = PartKind::Increment.page_bytes_max(102);
    let reader_bytes_max = 102 * page_bytes * 3 / 2 + 300 * 1024;
    let links: Vec<LinkCost> = std::iter::once(full(6 * MIB))
        .chain((0..399).map(|at| increment(reader_bytes_max, MIB * (1 + at % 7))))
        .collect();
    let writer_bytes = run_writer_memory_bytes(100, 1000);
    let budget = RunBudget { bytes: 256 * MIB / 8, writer_bytes, reader_bytes_max };
    let plan = plan_runs(&links, budget).unwrap();
    let rewritten = check(&links, budget, &plan);
    let once: u64 = links[1..].iter().map(|link| link.row_bytes).sum();
    assert!(rewritten <= 3 * once, "{} times", rewritten as f64 / once as f64);
}

#[test]
fn a_budget_that_cannot_do_says_what_would() {
    let links = [full(10), increment(50, 1), increment(50, 1)];
    let budget = RunBudget { bytes: 100, writer_bytes: 10, reader_bytes_max: 50 };
    let error = plan_runs(&links, budget).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("up to 110"), "{error}");
}

fn schema() -> Schema {
    Schema::new(&[("id", LogicalType::Int64), ("n", LogicalType::Int64)], &["id"]).unwrap()
}

/// A stream of one batch of deletes.
struct Deletes(std::ops::Range<i64>);

impl RowStream for Deletes {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        for id in std::mem::replace(&mut self.0, 0..0) {
            let mut key = Vec::new();
            crate::row::key::encode_key_i64(id, &mut key);
            batch.push(RowRef { key: &key, op: ChangeOp::Delete, payload: &[] });
        }
        Ok(!batch.is_empty())
    }
}

fn write(path: &Path, ids: std::ops::Range<i64>) -> SortedRun {
    let links: Vec<Box<dyn RowStream>> = vec![Box::new(Deletes(ids))];
    write_run(links, &schema(), TableId(1), path, &mut |_| Ok(())).unwrap()
}

#[test]
fn a_finished_run_is_found_again_and_an_empty_one_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run-0");
    assert_eq!(open_run(&path).unwrap(), None);
    let run = write(&path, 0..10);
    assert_eq!(run.part.as_ref().unwrap().tombstones, 10);
    assert_eq!(run.part.as_ref().unwrap().name, "run-0");
    assert_eq!(open_run(&path).unwrap(), Some(run));
    let empty = write(&path, 0..0);
    assert_eq!(open_run(&path).unwrap(), Some(empty));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_run_that_is_not_whole_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run-0");
    let description = beside(&path, ".json");
    let whole = || {
        write(&path, 0..10);
        assert!(open_run(&path).unwrap().is_some());
    };
    let refused = || assert_eq!(open_run(&path).unwrap(), None);

    whole();
    fs::remove_file(&description).unwrap();
    refused();
    whole();
    fs::remove_file(&path).unwrap();
    refused();
    whole();
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    refused();
    whole();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused();
    whole();
    let text = fs::read(&description).unwrap();
    for len in 0..text.len() {
        fs::write(&description, &text[..len]).unwrap();
        refused();
    }
    // The crash between the part and its description of a second run.
    whole();
    fs::write(&description, &text).unwrap();
    let later = directory.path().join("later");
    write(&later, 0..11);
    fs::rename(&later, &path).unwrap();
    refused();
}

#[test]
fn a_merge_ends_when_its_caller_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run-0");
    let links: Vec<Box<dyn RowStream>> = vec![Box::new(Deletes(0..10))];
    let mut told = Vec::new();
    let error = write_run(links, &schema(), TableId(1), &path, &mut |tallies| {
        told.push(tallies[0].rows);
        Err(Error::new(Kind::Transient, "stopped"))
    });
    assert_eq!(error.unwrap_err().kind(), Kind::Transient);
    assert_eq!(told, [10]);
    assert_eq!(open_run(&path).unwrap(), None);
}

proptest! {
    #[test]
    fn every_plan_keeps_its_budget_or_refuses(
        costs in prop::collection::vec((1u64..100, 0u64..10_000), 0..80),
        full_open in 1u64..100,
        bytes in 1u64..600,
        writer_bytes in 0u64..100,
        reader_bytes_max in 1u64..100,
    ) {
        let increments = costs.iter().map(|(open, rows)| increment(*open, *rows));
        let links: Vec<LinkCost> = std::iter::once(full(full_open)).chain(increments).collect();
        let budget = RunBudget { bytes, writer_bytes, reader_bytes_max };
        match plan_runs(&links, budget) {
            Ok(plan) => {
                check(&links, budget, &plan);
                prop_assert_eq!(plan_runs(&links, budget).unwrap(), plan);
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), Kind::Usage);
                // Enough is what the full, one merge of two and its writer take.
                let enough = full_open + 2 * 100 + writer_bytes + reader_bytes_max;
                prop_assert!(bytes < enough, "{} {}", bytes, enough);
            }
        }
    }
}
