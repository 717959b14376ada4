//! What a verification looked at, proved and found, for people.

use serde_json::Value;
use tidemark::collection::check::Level;
use tidemark::verify::{Finding, VerifyOutcome};

use super::human::{bytes, counted};

/// What was checked and what that proves, then every flaw on a line of its own.
pub(crate) fn text(outcome: &VerifyOutcome) -> String {
    let VerifyOutcome { level, backups, parts, bytes: part_bytes, rows, folds, .. } = outcome;
    let mut lines = vec![format!(
        "  documents  {}: log, manifests, how they follow one another, and that every object is \
         there with its size",
        counted(*backups, "backup")
    )];
    lines.push(if *level >= Level::Parts {
        let parts = counted(*parts, "part");
        format!("  parts      {parts} ({}): the BLAKE3 of every byte", bytes(*part_bytes))
    } else {
        "  parts      not read; `--level parts` does".to_owned()
    });
    if *level >= Level::Rows {
        lines.push(format!(
            "  rows       {}: decoded, in key order, with the digests of their manifests",
            counted(*rows, "row")
        ));
        lines.push(format!(
            "  chains     {} folded from the full to the end of the chain and compared with what \
             the source had",
            counted(*folds, "table")
        ));
    } else {
        lines.push("  rows       not read; `--level rows` does".to_owned());
    }
    lines.push(match outcome.findings.len() {
        0 if outcome.backups == 0 => "nothing was there to be verified".to_owned(),
        0 => match level {
            Level::Manifest => "proven: nothing is missing".to_owned(),
            Level::Parts => "proven: nothing is missing, and no byte has changed".to_owned(),
            Level::Rows => format!(
                "proven: nothing is missing, no byte and no row has changed, and {} at the ends \
                 of their chains equal their source",
                counted(*folds, "table")
            ),
        },
        count => format!("found {}:", counted(count as u64, "flaw")),
    });
    lines.extend(outcome.findings.iter().map(finding));
    if !outcome.findings.is_empty() {
        let others = outcome.unfolded.iter().chain(&outcome.unlisted);
        lines.extend(others.map(|why| format!("  {why}")));
    }
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

fn finding(finding: &Finding) -> String {
    format!("  {}: {finding}; {}", finding.kind.name(), finding.remedy)
}

/// What people should know of a verification that found no flaw.
pub(crate) fn warnings(outcome: &Value) -> Vec<String> {
    let Ok(outcome) = serde_json::from_value::<VerifyOutcome>(outcome.clone()) else {
        return Vec::new();
    };
    let mut warnings = outcome.unfolded;
    warnings.extend(outcome.unlisted);
    if outcome.backups == 0 {
        warnings.push("the collection has no backup yet".to_owned());
    }
    warnings
}
