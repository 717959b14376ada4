//! The second half: a table that grows, and a restore that is killed half-way.

use tidemark::Result;
use tidemark::database::embedded::{EmbeddedDatabase, WriteBatch};
use tidemark::row::{LogicalType, Schema, Value};

use super::{Stage, check_equal, dump, table};
use crate::args::DemoArgs;
use crate::output::human::counted;

const TABLE: &str = "orders";
/// Rows of one batch: below what a batch holds.
const BATCH_ROWS: u64 = 20_000;
/// Share of its work after which a restore is killed: half-way, seeing that a look takes a
/// moment.
const KILLED_AT: f64 = 0.4;
/// One row of so many changes between two backups.
const CHANGED_SHARE: u64 = 20;

pub(super) fn run(stage: &mut Stage, args: &DemoArgs) -> Result<()> {
    let source = stage.database("plant")?;
    stage.say(&format!(
        "\n2. a table of {} and {}, restored after a SIGKILL",
        counted(args.rows, "row"),
        counted(u64::from(args.increments), "increment")
    ));
    create(&source, args.rows)?;
    let mut states = Vec::new();
    for generation in 0..=u64::from(args.increments) {
        if generation > 0 {
            change(&source, args.rows, generation)?;
        }
        stage.command(&["backup", "--source", "embedded:plant", "--to", "plant-backups"])?;
        states.push(blake3_of(&dump(&source, TABLE)?));
    }
    stage.say("the table is dropped");
    source.drop_table(&table(TABLE))?;
    killed_and_resumed(stage, &source, states.last().map_or("", String::as_str))?;
    let newest_but_one = states.len() - 2;
    for at in [0, newest_but_one] {
        if at == newest_but_one {
            undisturbed(stage, at + 1)?;
        } else {
            stage.command(&restore_of(at + 1).each_ref().map(String::as_str))?;
        }
        let copy = copy_of(at + 1);
        check_digest(&source, &copy, &states[at])?;
        stage.prove(
            format!("point #{}", at + 1),
            format!("`{copy}` equals what the source held then"),
        );
        if newest_but_one == 0 {
            break;
        }
    }
    Ok(())
}

/// Restores and is killed half-way, then restores by the same command.
fn killed_and_resumed(stage: &mut Stage, source: &EmbeddedDatabase, expected: &str) -> Result<()> {
    let restore = ["restore", "plant-backups", "--target", "embedded:plant"];
    stage.killed_at = stage.command_killed_at(&restore, KILLED_AT)?;
    let visible = source.tables()?.iter().any(|found| found.name == table(TABLE));
    let proof = match stage.killed_at {
        Some(percent) if !visible => {
            stage
                .say(&format!("   killed with SIGKILL at {percent:.0} %; the same command again:"));
            stage.command(&restore)?;
            format!("`{TABLE}`, killed at {percent:.0} % and resumed, equals what the source held")
        }
        _ => {
            stage.killed_at = None;
            stage.say("   the restore was done before it could be killed; try more --rows");
            format!("`{TABLE}` equals what the source held; it was too small to be killed half-way")
        }
    };
    check_digest(source, TABLE, expected)?;
    stage.prove("newest point", proof);
    Ok(())
}

/// Restores without trouble, and holds its progress against the clock.
fn undisturbed(stage: &mut Stage, sequence: usize) -> Result<()> {
    let restore = restore_of(sequence);
    let looks = stage.command_watched(&restore.each_ref().map(String::as_str))?;
    stage.deviation = looks.deviation_max();
    let proof = match stage.deviation {
        Some(points) => format!(
            "at most {points:.0} points from linear time in {} looks over {:.1} s (goal: 20)",
            looks.count(),
            looks.duration().as_secs_f64()
        ),
        None => format!("over in {:.1} s: too short to judge", looks.duration().as_secs_f64()),
    };
    stage.prove("progress", proof);
    Ok(())
}

fn restore_of(sequence: usize) -> [String; 8] {
    let (point, rename) = (format!("#{sequence}"), format!("{TABLE}={}", copy_of(sequence)));
    let words = ["restore", "plant-backups", "--target", "embedded:plant", "--at", &point];
    let [verb, collection, target, database, at, point] = words.map(str::to_owned);
    [verb, collection, target, database, at, point, "--rename".to_owned(), rename]
}

fn copy_of(sequence: usize) -> String {
    format!("{TABLE}_{sequence}")
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
