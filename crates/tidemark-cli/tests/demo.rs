//! `tidemark demo`, small: every promise that it prints was compared.

use std::fs;

use support::Tidemark;

mod support;

#[test]
fn a_small_demo_proves_everything_it_says() {
    // Given the first revisions of the example data, and fewer rows than by default
    let folder = support::temp_folder();
    let data = folder.path().join("revisions");
    fs::create_dir(&data).unwrap();
    for file in support::revisions("sp500").iter().take(9) {
        fs::copy(file, data.join(file.file_name().unwrap())).unwrap();
    }
    // When
    let args = ["demo", "--rows", "20000", "--increments", "2", "--data", "revisions", "--json"];
    let outcome = Tidemark::new(folder.path()).run(args).expect_code(0);
    // Then
    let lines = outcome.json_lines();
    let [summary] = lines.as_slice() else { panic!("one line was expected: {outcome}") };
    let proofs = summary["proofs"].as_array().unwrap();
    let labels: Vec<&str> = proofs.iter().map(|proof| proof["label"].as_str().unwrap()).collect();
    let expected = [
        "first revision",
        "half-way revision",
        "last revision",
        "newest point",
        "point #1",
        "progress",
        "point #2",
    ];
    assert_eq!(labels, expected, "{outcome}");
    assert!(proofs.iter().all(|proof| !proof["proof"].as_str().unwrap().is_empty()));
    assert!(proofs[2]["proof"].as_str().unwrap().starts_with("point #9 of 9 equals 017_"));
    // And a restore that was killed was killed half-way
    let killed_at = &summary["killed_at_percent"];
    assert!(killed_at.is_null() || killed_at.as_f64().unwrap() >= 40.0, "{outcome}");
}

#[test]
fn the_demo_shows_commands_as_one_would_type_them_and_leaves_what_is_to_be_kept() {
    let folder = support::temp_folder();
    let data = folder.path().join("revisions");
    fs::create_dir(&data).unwrap();
    let file = &support::revisions("sp500")[0];
    fs::copy(file, data.join(file.file_name().unwrap())).unwrap();
    let args = ["demo", "--rows", "2000", "--increments", "1", "--data", "revisions"];
    let outcome = Tidemark::new(folder.path())
        .run(args.iter().chain(&["--dir", "stage", "--keep"]))
        .expect_code(0);
    for line in [
        "$ tidemark backup --source embedded:plant --to plant-backups\n",
        "$ tidemark restore plant-backups --target embedded:plant\n",
        "$ tidemark restore plant-backups --target embedded:plant --at '#1' --rename orders=orders_1\n",
        "restore of `backups` at #1 into `embedded:shop`, `sp500` as `sp500_1`\n",
    ] {
        assert!(outcome.stderr.contains(line), "{line} is not in {outcome}");
    }
    assert!(folder.path().join("stage/plant-backups/collection.json").exists());
    // A folder that holds something is never worked in
    let again = Tidemark::new(folder.path()).run(["demo", "--dir", "stage"]).expect_code(14);
    assert!(again.stderr.contains("--dir"), "{again}");
}
