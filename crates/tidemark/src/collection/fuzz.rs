//! Fuzz targets of what a collection says of itself, and of names.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Map;

use super::accept::{BACKUP_SIZE_MAX, UnverifiedManifest, check_link, totals};
use super::document;
use super::layout::{
    BackupDirectory, check_relative, file_url_path, log_path, log_sequence, manifest_path,
    part_ticket, split_scheme, table_folder, table_of_folder,
};
use super::log::check_log;
use super::manifest::{
    BackupKind, CollectionRecord, FormatVersion, LogEntry, Manifest, ParentLink, SourceLink,
    TableEntry, TableMode,
};
use super::part::PartKind;
use super::part::fuzz::{Sample, samples};
use super::{Chain, RestorePoint};
use crate::env::WallTime;
use crate::error::Error;
use crate::ids::{CollectionId, Position, Sequence, TableId, TableName};
use crate::row::{LogicalType, Value};

/// What stands between documents of one input; no JSON holds it.
const BETWEEN: u8 = 0;

/// Log entries in order, or `collection.json`: sealed, or anew under a seal of their bytes.
pub(crate) fn log(input: &[u8]) {
    let pieces = || input.split(|byte| *byte == BETWEEN);
    let entries: Vec<LogEntry> = pieces().filter_map(sealed).collect();
    pieces().filter_map(sealed::<CollectionRecord>).for_each(drop);
    if check_log(&entries).is_ok() {
        for entry in &entries {
            assert_eq!(log_sequence(&log_path(entry.sequence)), Some(entry.sequence));
            let directory = BackupDirectory::parse(&entry.directory).expect("it was accepted");
            assert_eq!(directory.to_string(), entry.directory);
            assert!(check_relative(&manifest_path(&entry.directory)).is_ok());
        }
    }
}

fn sealed<T: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) -> Option<T> {
    let read = document::unseal::<T>("document.json", bytes).or_else(|failure| {
        let _: Error = failure.into();
        let body = bytes.strip_suffix(b"\n}\n").unwrap_or(bytes);
        document::unseal::<T>("document.json", &document::seal_body(body.to_vec()))
    });
    let read = read.ok()?;
    let written = document::seal(&read);
    let again = document::unseal::<T>("document.json", &written);
    assert!(again.is_ok_and(|again| again == read), "a document reads back as another");
    Some(read)
}

pub(crate) fn log_seeds() -> Vec<Vec<u8>> {
    let (entries, _) = small_log();
    let collection = CollectionRecord {
        format: FormatVersion::CURRENT,
        id: CollectionId(7),
        created: WallTime(1_769_851_800_000),
        extra: Map::new(),
    };
    let sealed: Vec<Vec<u8>> = entries.iter().map(document::seal).collect();
    vec![
        sealed.join(&[BETWEEN][..]),
        document::pretty(&entries[0]),
        document::seal(&collection),
        document::pretty(&collection),
    ]
}

/// Manifests in the order of a log: each checked, neighbours held against one another, and a
/// restore of the newest planned.
pub(crate) fn manifest(input: &[u8]) {
    let mut manifests: Vec<Manifest> = Vec::new();
    for bytes in input.split(|byte| *byte == BETWEEN) {
        let Ok(manifest) = UnverifiedManifest::parse("manifest.json", bytes) else { continue };
        let manifest = manifest.unchecked();
        let entry = entry_of(&manifest, "ab");
        if let Ok(accepted) = UnverifiedManifest::from(manifest).check(CollectionId(7), &entry) {
            believed(&accepted);
            manifests.push(accepted);
        }
    }
    for pair in manifests.windows(2) {
        let _ = check_link(&pair[0], &pair[1]);
    }
    if let Some(chain) = chain_of(&manifests) {
        crate::restore::fuzz::plans_of(&chain, CollectionId(7));
    }
}

/// The entry of a log that fits `manifest`; the hash of a manifest is `hash`, repeated.
fn entry_of(manifest: &Manifest, hash: &str) -> LogEntry {
    LogEntry {
        format: FormatVersion::CURRENT,
        sequence: manifest.sequence,
        kind: manifest.kind,
        directory: manifest.directory.clone(),
        manifest: hash.repeat(32),
        previous: manifest.parent.as_ref().map(|parent| parent.manifest.clone()),
        extra: Map::new(),
    }
}

/// What everybody does with a manifest that passed its check.
fn believed(manifest: &Manifest) {
    let written = document::pretty(manifest);
    let again = UnverifiedManifest::parse("manifest.json", &written);
    let again = again.map(UnverifiedManifest::unchecked);
    assert!(again.is_ok_and(|again| again == *manifest), "a manifest reads back as another");
    for table in &manifest.tables {
        table.schema.key_columns().count();
        assert!(TableName::parse(&table.name.to_string()).as_ref() == Ok(&table.name));
        assert!(check_relative(&table_folder(&table.name)).is_ok(), "a folder that is refused");
    }
}

fn chain_of(manifests: &[Manifest]) -> Option<Chain> {
    let mut entries: Vec<LogEntry> =
        manifests.iter().map(|manifest| entry_of(manifest, "ab")).collect();
    for at in 1..entries.len() {
        // Hashes cannot be those of bytes that change; the links between them can.
        if let Some(previous) = entries[at].previous.clone() {
            entries[at - 1].manifest = previous;
        }
    }
    check_log(&entries).ok()?;
    let mut read = |entry: &LogEntry| Ok(manifests[entry.sequence.0 as usize - 1].clone());
    Chain::resolve(&entries, &RestorePoint::Latest, &mut read).ok()
}

/// A log of a full and two increments, with its manifests, of tables as parts have them.
fn small_log() -> (Vec<LogEntry>, Vec<Manifest>) {
    let (mut entries, mut manifests) = (Vec::new(), Vec::new());
    for sequence in 1..=3u64 {
        let kind = if sequence == 1 { BackupKind::Full } else { BackupKind::Incremental };
        let newest = manifests
            .last()
            .and_then(|manifest: &Manifest| BackupDirectory::parse(&manifest.directory));
        let directory = BackupDirectory::after(newest, kind, WallTime(1_769_851_800_000))
            .expect("an ordinary time")
            .to_string();
        let previous = entries.last().map(|entry: &LogEntry| entry.manifest.clone());
        let parent = manifests.last().zip(previous.clone()).map(
            |(before, manifest): (&Manifest, String)| ParentLink {
                sequence: before.sequence,
                directory: before.directory.clone(),
                manifest,
            },
        );
        let tables: Vec<TableEntry> =
            samples().iter().filter_map(|sample| table_of(sample, kind)).collect();
        let manifest = Manifest {
            format: FormatVersion::CURRENT,
            collection: CollectionId(7),
            sequence: Sequence(sequence),
            kind,
            directory,
            source: SourceLink {
                identity: "embedded:0".to_owned(),
                from: parent.as_ref().map(|_| Position(sequence * 10 - 10)),
                to: Position(sequence * 10),
                cut: None,
            },
            parent,
            cut_at: WallTime(1_769_851_800_000 + sequence * 60_000),
            totals: totals(&tables).expect("small sums"),
            tables,
            extra: Map::new(),
        };
        let entry = LogEntry { previous, ..entry_of(&manifest, &format!("{sequence:02x}")) };
        entries.push(entry);
        manifests.push(manifest);
    }
    (entries, manifests)
}

/// The table that a sample is a part of, as a backup of `kind` has it.
fn table_of(sample: &Sample, kind: BackupKind) -> Option<TableEntry> {
    let delta = sample.kind == PartKind::Increment;
    if delta != (kind == BackupKind::Incremental && sample.has_key()) {
        return None;
    }
    let id = TableId(sample.number);
    Some(TableEntry {
        id,
        digest_id: id,
        name: TableName::new("public", &format!("t{:02}", sample.number)).expect("a plain name"),
        schema: sample.schema.clone(),
        mode: if delta { TableMode::Delta } else { TableMode::Whole },
        reason: None,
        state: None,
        structure: None,
        parts: vec![sample.entry.clone()],
        extra: Map::new(),
    })
}

/// The chain of the log that seeds are made of.
pub(crate) fn small_chain() -> (Chain, CollectionId) {
    let (_, manifests) = small_log();
    (chain_of(&manifests).expect("the small log is well formed"), CollectionId(7))
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let (_, manifests) = small_log();
    let all = |manifests: &[Manifest]| {
        let one = |manifest| serde_json::to_vec(manifest).expect("a manifest is plain data");
        manifests.iter().map(one).collect::<Vec<Vec<u8>>>().join(&[BETWEEN][..])
    };
    // Sizes that are just possible in each of them.
    let mut huge = manifests.clone();
    for manifest in &mut huge {
        for part in manifest.tables.iter_mut().flat_map(|table| &mut table.parts) {
            part.row_groups.iter_mut().for_each(|group| group.row_bytes = 0);
            part.row_groups[0].row_bytes = BACKUP_SIZE_MAX / 3;
            (part.row_bytes, part.row_bytes_max) = (BACKUP_SIZE_MAX / 3, BACKUP_SIZE_MAX / 3);
        }
        manifest.totals = totals(&manifest.tables).expect("3 tables in each");
    }
    vec![all(&manifests), all(&manifests[..1]), document::pretty(&manifests[1]), all(&huge)]
}

/// Everything that people type or that names something in a store.
pub(crate) fn name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(point) = RestorePoint::parse(text) {
        let again = RestorePoint::parse(&point.to_string());
        assert_eq!(again.ok(), Some(point), "a restore point reads back as another");
    }
    if let Ok(table) = TableName::parse(text) {
        assert_eq!(TableName::parse(&table.to_string()), Ok(table.clone()), "another table");
        let folder = table_folder(&table);
        assert!(check_relative(&folder).is_ok(), "a folder that is refused");
        if let Some(found) = table_of_folder(&folder) {
            assert_eq!(found, table, "a folder of another table");
        }
    }
    if let Some(directory) = BackupDirectory::parse(text) {
        assert_eq!(directory.to_string(), text, "a directory prints as another");
        let _ = BackupDirectory::after(Some(directory), directory.kind(), WallTime(0));
    }
    if let Some(table) = table_of_folder(text) {
        assert_eq!(table_folder(&table), text, "a table of another folder");
    }
    if let Some(sequence) = log_sequence(text) {
        assert_eq!(log_path(sequence), text, "an entry of another number");
    }
    if check_relative(text).is_ok() {
        let below = text.split('/').all(|name| !matches!(name, "" | "." | ".."));
        assert!(below && !text.contains('\\'), "a path that leaves its folder");
    }
    part_ticket(text);
    if let Some((scheme, rest)) = split_scheme(text)
        && scheme == "file"
    {
        file_url_path(rest);
    }
    for logical in LogicalType::ALL {
        if let Some(value) = Value::parse(logical, text) {
            let again = Value::parse(logical, &value.to_text());
            // Not the values themselves: a NaN is none's equal.
            let printed = again.map(|again| again.to_text());
            assert_eq!(printed, Some(value.to_text()), "a value reads back as another");
        }
    }
}

pub(crate) fn name_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "latest",
        "#7",
        "2026-01-31",
        "2026-01-31T09:30:00.5+02:00",
        "20260131093000Z_full",
        "20260131093000Z_incremental",
        "\"a.b\".\"c\"\"d\"",
        "public.orders",
        "sch%C3%A9ma.a%2Fb",
        "log/000001.json",
        "20260131093000Z_full/public.orders/00000-1a.parquet",
        "file:///srv/back%20ups",
        "file://localhost/a",
        "s3://bucket/prefix?region=x",
        "-123456789.00100",
        "-0001-02-28 23:59:59.000001",
        "9999-12-31T23:59:59-15:59",
        "\\x00ff",
        "1e-300",
        "00112233-4455-6677-8899-aabbccddeeff",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
