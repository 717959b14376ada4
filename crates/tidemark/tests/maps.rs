//! The maps in the documentation lead somewhere: every row is there, and every file, item and
//! test that is named exists.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&manifest).join("../..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Rows of the table below the heading, as cells, without its head.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let lines = page.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading);
    let rows = lines.skip(1).take_while(|line| !line.starts_with('#'));
    let rows = rows.skip_while(|line| !line.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |line: &'a str| line.trim_matches('|').split('|').map(str::trim).collect();
    rows.skip(2).map(cells).collect()
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A file of the maps, below one of the two crates.
fn source(path: &str) -> PathBuf {
    let place = match path.strip_prefix("cli/") {
        Some(path) => Path::new("crates/tidemark-cli").join(path),
        None => Path::new("crates/tidemark").join(path),
    };
    root().join(place)
}

/// Sources that were read, by the path in the map.
#[derive(Default)]
struct Sources(BTreeMap<String, Option<String>>);

impl Sources {
    fn text(&mut self, path: &str) -> Option<&str> {
        let read = || std::fs::read_to_string(source(path)).ok();
        self.0.entry(path.to_owned()).or_insert_with(read).as_deref()
    }

    /// Why a file and an item in it, as `path` or `path::item`, do not exist.
    fn check_item(&mut self, named: &str) -> Option<String> {
        let (path, item) = named.split_once("::").unwrap_or((named, ""));
        let Some(text) = self.text(path) else { return Some(format!("no file: {named}")) };
        let words: BTreeSet<&str> =
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let missing = item.split("::").find(|word| !word.is_empty() && !words.contains(word));
        missing.map(|word| format!("no `{word}` in that file: {named}"))
    }

    /// Why a test does not exist.
    ///
    /// A promise of the conformance suite counts as one when the suite lists it.
    fn check_test(&mut self, named: &str) -> Option<String> {
        let Some((path, name)) = named.split_once("::") else {
            return Some(format!("not a test: {named}"));
        };
        let suite = path.strip_prefix("src/database/conformance/");
        if let Some(module) = suite.and_then(|file| file.strip_suffix(".rs")) {
            let lists = match module {
                "cut" => (path, format!(", {name})")),
                _ => ("src/database/conformance.rs", format!("{module}::{name})")),
            };
            let is_listed = self.text(lists.0).is_some_and(|text| text.contains(&lists.1));
            return (!is_listed).then(|| format!("no such promise: {named}"));
        }
        let Some(text) = self.text(path) else { return Some(format!("no file: {named}")) };
        let mut lines = text.lines().map(str::trim);
        let opening = format!("fn {name}(");
        while let Some(line) = lines.next() {
            if line == "#[test]" {
                let function = lines.find(|line| !line.starts_with("#[") && !line.is_empty());
                if function.is_some_and(|line| line.contains(&opening)) {
                    return None;
                }
            }
        }
        Some(format!("no such test: {named}"))
    }
}

/// Checks that a table has the rows `numbers`, in that order, each with a test.
fn check_table(page: &str, heading: &str, numbers: &[u32], sources: &mut Sources) -> Vec<String> {
    let rows = table(page, heading);
    let found: Vec<u32> = rows.iter().map(|row| row[0].parse().unwrap_or(0)).collect();
    assert_eq!(found, numbers, "rows of `{heading}`");
    let mut wrong = Vec::new();
    for row in rows {
        let tests = row.last().expect("a row has cells");
        let mut count = 0;
        for named in quoted(tests) {
            wrong.extend(sources.check_test(named));
            count += 1;
        }
        if count == 0 && !tests.starts_with("not a test: ") {
            wrong.push(format!("row {} of `{heading}` names no test", row[0]));
        }
    }
    wrong
}

#[track_caller]
fn nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_point_of_the_plan_is_mapped_to_what_exists() {
    let page = read("docs/plan.md");
    let mut sources = Sources::default();
    let mut wrong = Vec::new();
    let parts = [("Sections", 10), ("Implementation notes", 6), ("Required changes", 8)];
    for (heading, count) in parts {
        let numbers: Vec<u32> = (1..=count).collect();
        wrong.extend(check_table(&page, heading, &numbers, &mut sources));
        for row in table(&page, heading) {
            let places: Vec<&str> = quoted(row[2]).filter(|word| word.contains('/')).collect();
            if places.is_empty() {
                wrong.push(format!("row {} of `{heading}` names no file", row[0]));
            }
            wrong.extend(places.iter().filter_map(|place| sources.check_item(place)));
        }
    }
    nothing(&wrong);
}

#[test]
fn every_promise_requirement_and_failure_has_tests_that_exist() {
    let page = read("docs/promises.md");
    let mut sources = Sources::default();
    let promises: Vec<u32> = (1..=7).collect();
    let mut wrong = check_table(&page, "Promises", &promises, &mut sources);
    let requirements: Vec<u32> = (1..=19).chain([31]).collect();
    wrong.extend(check_table(&page, "Requirements", &requirements, &mut sources));
    let failures: Vec<u32> = (1..=20).collect();
    wrong.extend(check_table(&page, "Failures", &failures, &mut sources));
    nothing(&wrong);
}

#[test]
fn the_map_of_the_code_names_every_module_of_the_library_and_nothing_that_is_gone() {
    let page = read("ARCHITECTURE.md");
    let mut wrong = Vec::new();
    let mut named = BTreeSet::new();
    let crates = [
        ("crates/tidemark: the library", "crates/tidemark/src"),
        ("crates/tidemark-cli: the command", "crates/tidemark-cli/src"),
        ("xtask: continuous integration", "xtask/src"),
    ];
    for (heading, folder) in crates {
        let rows = table(&page, heading);
        assert!(rows.len() > 1, "`{heading}` has no rows");
        // A path in the second column belongs to a folder that the first one names.
        for cell in rows.iter().flatten() {
            for path in quoted(cell).filter(|word| word.ends_with(".rs") || word.ends_with('/')) {
                let path = Path::new(folder).join(path);
                if !root().join(&path).exists() {
                    wrong.push(format!("gone: {}", path.display()));
                }
                named.insert(path);
            }
        }
    }
    for row in table(&page, "What always holds, and who sees to it") {
        for path in quoted(row[1]).filter(|path| !root().join(path).exists()) {
            wrong.push(format!("gone: {path}"));
        }
    }
    for folder in ["crates/tidemark/src", "crates/tidemark-cli/src", "xtask/src"] {
        for module in std::fs::read_dir(root().join(folder)).unwrap() {
            let module = Path::new(folder).join(module.unwrap().file_name());
            if !named.iter().any(|path| path.starts_with(&module)) {
                wrong.push(format!("not on the map: {}", module.display()));
            }
        }
    }
    nothing(&wrong);
}

#[test]
fn links_between_the_pages_lead_to_pages() {
    let mut pages = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    for folder in ["docs", "docs/decisions", "examples/data"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                pages.push(format!("{folder}/{name}"));
            }
        }
    }
    let mut wrong = Vec::new();
    for page in pages {
        let text = read(&page);
        let folder = root().join(&page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                wrong.push(format!("{page}: {link}"));
            }
        }
    }
    nothing(&wrong);
}

#[test]
fn the_format_page_names_every_database_that_is_stored_and_files_that_exist() {
    let page = read("docs/format.md");
    let mut sources = Sources::default();
    let mut wrong = Vec::new();
    let mut described = BTreeSet::new();
    for heading in
        ["In `catalog/`: tables", "In `catalog/`: operations", "In `shards/<generation>/`"]
    {
        for row in table(&page, heading) {
            described.extend(quoted(row[0]).map(str::to_owned));
            let layouts = quoted(row[3]).map(|path| format!("src/{path}"));
            wrong.extend(layouts.filter_map(|path| sources.check_item(&path)));
        }
    }
    // What the records' own table and the catalog say.
    let records = read("crates/tidemark/src/database/embedded/record/mod.rs");
    let rows = records.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let mut stored: BTreeSet<String> =
        rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
    let catalog = read("crates/tidemark/src/catalog/lmdb.rs");
    let names = catalog.split_once("const DATABASE_NAMES").expect("names of databases").1;
    let names = names.split_once("];").expect("an end of the names").0;
    stored.extend(names.split('"').skip(1).step_by(2).map(str::to_owned));
    stored.extend(["rows", "changes"].map(str::to_owned));
    wrong.extend(stored.difference(&described).map(|name| format!("not on the page: {name}")));
    wrong.extend(described.difference(&stored).map(|name| format!("not stored: {name}")));
    nothing(&wrong);
}
