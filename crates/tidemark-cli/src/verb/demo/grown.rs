//! The second half: a table that grows, and a restore that is killed half-way.

use tidemark::Result;
use tidemark::database::embedded::{EmbeddedDatabase, WriteBatch};
use tidemark::row::{LogicalType, Schema, Value};

use super::{Stage, check_equal, dump, table};
use crate::args::DemoArgs;

const TABLE: &str = "orders";
/// Rows of one batch: below what a batch holds.
const BATCH_ROWS: u64 = 20_000;
/// One row of so many changes between two backups.
const CHANGED_SHARE: u64 = 20;

pub(super) fn run(stage: &mut Stage, args: &DemoArgs) -> Result<()> {
    let source = stage.database("plant")?;
    stage.say(&format!(
        "\n2. a table of {} rows and {} increments, restored after a SIGKILL",
        args.rows, args.increments
    ));
    create(&source, args.rows)?;
    let plant = format!("embedded:{}", stage.path("plant"));
    let collection = stage.path("plant-backups");
    let mut states = Vec::new();
    for generation in 0..=u64::from(args.increments) {
        if generation > 0 {
            change(&source, args.rows, generation)?;
        }
        stage.command(&["backup", "--source", &plant, "--to", &collection])?;
        states.push(blake3_of(&dump(&source, TABLE)?));
    }
    stage.say("the table is dropped");
    source.drop_table(&table(TABLE))?;
    killed_and_resumed(
        stage,
        &source,
        &collection,
        &plant,
        states.last().map_or("", String::as_str),
    )?;
    let earlier = [0, states.len().saturating_sub(2)];
    for at in earlier.into_iter().take(states.len() - 1) {
        let (point, copy) = (format!("#{}", at + 1), format!("orders_{}", at + 1));
        let rename = format!("{TABLE}={copy}");
        stage.command(&[
            "restore",
            &collection,
            "--target",
            &plant,
            "--at",
            &point,
            "--rename",
            &rename,
        ])?;
        check_digest(&source, &copy, &states[at])?;
        stage.prove(format!("restore point {point} equals what the source held then (`{copy}`)"));
    }
    Ok(())
}

fn killed_and_resumed(
    stage: &mut Stage,
    source: &EmbeddedDatabase,
    collection: &str,
    plant: &str,
    expected: &str,
) -> Result<()> {
    let restore = ["restore", collection, "--target", plant];
    match stage.command_killed_at(&restore, 0.2)? {
        Some(percent) => {
            stage.say(&format!("killed with SIGKILL at {percent:.0} %; the same command again:"))
        }
        None => stage.say("the restore was done before it could be killed; try more --rows"),
    }
    let visible = source.tables()?.iter().any(|found| found.name == table(TABLE));
    if !visible {
        stage.command(&restore)?;
    }
    check_digest(source, TABLE, expected)?;
    stage.prove(
        "the newest point equals what the source held, after a SIGKILL and a resume".to_owned(),
    );
    Ok(())
}

fn check_digest(database: &EmbeddedDatabase, name: &str, expected: &str) -> Result<()> {
    let found = blake3_of(&dump(database, name)?);
    check_equal(&format!("BLAKE3 of the dump of `{name}`"), found.as_bytes(), expected.as_bytes())
}

fn blake3_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn create(database: &EmbeddedDatabase, rows: u64) -> Result<()> {
    let schema = Schema::new(
        &[
            ("id", LogicalType::Int64),
            ("customer", LogicalType::Int64),
            ("placed", LogicalType::Timestamp),
            ("amount", LogicalType::Decimal),
            ("state", LogicalType::Text),
            ("note", LogicalType::Text),
        ],
        &["id"],
    )?;
    let quarter = |part: u64| vec![Value::Int64((rows * part / 4) as i64)];
    database.create_table(&table(TABLE), &schema, &[quarter(1), quarter(2), quarter(3)])?;
    for first in (0..rows).step_by(BATCH_ROWS as usize) {
        let mut batch = WriteBatch::new();
        for id in first..rows.min(first + BATCH_ROWS) {
            batch.put(&table(TABLE), order(id, 0));
        }
        database.write(&batch)?;
    }
    Ok(())
}

/// Updates, inserts and deletes a share of the rows, spread over all of them.
fn change(database: &EmbeddedDatabase, rows: u64, generation: u64) -> Result<()> {
    let changes = (rows / CHANGED_SHARE).max(1);
    for first in (0..changes).step_by(BATCH_ROWS as usize) {
        let mut batch = WriteBatch::new();
        for at in first..changes.min(first + BATCH_ROWS) {
            let id = (at * CHANGED_SHARE + generation * 7) % rows;
            match at % 10 {
                0 => batch.delete(&table(TABLE), vec![Value::Int64(id as i64)]),
                1 => batch.put(&table(TABLE), order(rows + generation * changes + at, generation)),
                _ => batch.put(&table(TABLE), order(id, generation)),
            }
        }
        database.write(&batch)?;
    }
    Ok(())
}

/// A row that looks random and is always the same.
fn order(id: u64, generation: u64) -> Vec<Value> {
    let mut state = id ^ generation << 48;
    let mut random = || {
        // SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    const STATES: [&str; 4] = ["placed", "paid", "shipped", "returned"];
    vec![
        Value::Int64(id as i64),
        Value::Int64((random() % 100_000) as i64),
        Value::Timestamp(1_700_000_000_000_000 + (random() % 31_536_000_000_000) as i64),
        Value::Decimal(format!("{}.{:02}", random() % 1_000, random() % 100)),
        Value::Text(STATES[(random() % 4) as usize].to_owned()),
        Value::Text(format!("{:016x}{:016x}", random(), random())),
    ]
}
