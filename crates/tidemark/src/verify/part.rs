//! Reading one part: its bytes, then its rows.

use super::fold::PROCESS_BYTES;
use super::job::VerifyJob;
use super::outcome::Finding;
use super::plan::{PARTS, PlannedPart};
use crate::collection::check::Level;
use crate::collection::flaw::Flaw;
use crate::collection::manifest::{PartEntry, TableMode};
use crate::collection::part::{PartKind, PartRead, PartReader};
use crate::collection::run::part_memory_bytes;
use crate::collection::store::ObjectHasher;
use crate::error::{Error, Kind, Result};
use crate::executor::{ChunkOutcome, ShardRun};
use crate::ids::{ShardIdx, TableId};
use crate::operation::Work;
use crate::row::digest::RowHasher;
use crate::row::{ChangeOp, Digest, KeyRange, RowBatch, RowCodec, RowStream};

/// Bytes between two reports of progress.
const CHUNK_BYTES: u64 = 4 << 20;

/// One attempt of one part.
///
/// Holds a piece of the object, or a reader and a batch.
pub(super) struct PartRun<'a> {
    job: &'a VerifyJob<'a>,
    shard: ShardIdx,
    planned: PlannedPart<'a>,
    stage: Stage,
    hashed_bytes: u64,
}

enum Stage {
    Unopened,
    Hashing(ObjectHasher),
    Decoding(Box<Decoding>),
}

/// What is known of the rows that were read.
struct Decoding {
    reader: PartReader,
    hasher: RowHasher,
    batch: RowBatch,
    tally: RowTally,
}

/// Sums over rows, to be held against a manifest entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct RowTally {
    rows: u64,
    tombstones: u64,
    row_bytes: u64,
    row_bytes_max: u64,
    first_key: Option<Vec<u8>>,
    last_key: Option<Vec<u8>>,
    digest: Digest,
}

/// What a piece of reading led to.
enum Step {
    More,
    /// Clean, as far as this level looks.
    Clean,
}

impl<'a> PartRun<'a> {
    pub(super) fn start(job: &'a VerifyJob<'_>, shard: ShardIdx) -> Result<PartRun<'a>> {
        let planned = job.plan.part(shard).ok_or_else(|| {
            Error::new(Kind::Fatal, format!("the verification has no part {shard}"))
        })?;
        Ok(PartRun { job, shard, planned, stage: Stage::Unopened, hashed_bytes: 0 })
    }

    fn step(&mut self) -> Result<Step> {
        match &mut self.stage {
            Stage::Unopened => {
                let hasher = self.job.collection.store().hasher(&self.planned.path())?;
                self.stage = Stage::Hashing(hasher);
                Ok(Step::More)
            }
            Stage::Hashing(hasher) => {
                if let Some(bytes) = hasher.read(CHUNK_BYTES)? {
                    self.hashed_bytes += bytes;
                    return Ok(Step::More);
                }
                let found = hasher.finish();
                let part = self.planned.part;
                if (found.bytes, &found.blake3) != (part.bytes, &part.blake3) {
                    let found = format!("{} bytes with BLAKE3 `{}`", found.bytes, found.blake3);
                    let expected =
                        format!("{} bytes with `{}` as its manifest says", part.bytes, part.blake3);
                    return Err(Flaw::new(self.planned.path(), found, expected).into());
                }
                if self.job.plan.level < Level::Rows {
                    return Ok(Step::Clean);
                }
                self.stage = Stage::Decoding(Box::new(self.open_rows()?));
                Ok(Step::More)
            }
            Stage::Decoding(decoding) => match decoding.read()? {
                true => Ok(Step::More),
                false => {
                    decoding.tally.check(self.planned.part, &self.planned.path())?;
                    Ok(Step::Clean)
                }
            },
        }
    }

    fn open_rows(&self) -> Result<Decoding> {
        let PlannedPart { directory, table, part } = self.planned;
        let kind = match table.mode {
            TableMode::Whole => PartKind::Full,
            TableMode::Delta => PartKind::Increment,
        };
        self.check_memory(part, table.schema.columns.len() as u32, kind)?;
        let object = self.job.collection.open_part(directory, part)?;
        let wanted = RowCodec::new(&table.schema);
        let read = PartRead {
            part,
            schema: &table.schema,
            kind,
            wanted: &wanted,
            range: &KeyRange::ALL,
            after: None,
        };
        Ok(Decoding::new(PartReader::open(object, &read)?, table.digest_id))
    }

    /// Refuses to decode what would not fit: a manifest may claim rows of any size.
    fn check_memory(&self, part: &PartEntry, columns: u32, kind: PartKind) -> Result<()> {
        let needed = part_memory_bytes(part, columns, kind).saturating_add(PROCESS_BYTES);
        let given = self.job.room.memory_bytes;
        if needed <= given {
            return Ok(());
        }
        let found = format!(
            "rows of up to {} bytes, for which reading it needs {needed} bytes of memory",
            part.row_bytes_max
        );
        let expected = format!("at most the {given} that were given; allow more with --memory");
        Err(Flaw::new(self.planned.path(), found, expected).into())
    }

    fn work(&self) -> Work {
        let part = self.planned.part;
        let rows = match &self.stage {
            Stage::Unopened | Stage::Hashing(_) => 0,
            Stage::Decoding(decoding) => decoding.tally.rows,
        };
        let decoded = u128::from(part.bytes) * u128::from(rows) / u128::from(part.rows.max(1));
        let decoded = u64::try_from(decoded).unwrap_or(u64::MAX);
        Work { rows, bytes: self.hashed_bytes.saturating_add(decoded) }
    }

    fn planned_work(&self) -> Work {
        let planned = self.job.plan.planned_shard(PARTS, self.shard);
        planned.expect("the shard is in the plan: checked in start")
    }
}

impl ShardRun for PartRun<'_> {
    fn next_chunk(&mut self) -> Result<ChunkOutcome> {
        let found = match self.step() {
            Ok(Step::More) => {
                return Ok(ChunkOutcome::Advanced { done: self.work(), last_key: None });
            }
            Ok(Step::Clean) => None,
            Err(error) => Some(finding_of(self.planned.path(), error)?),
        };
        let planned = self.planned_work();
        Ok(self.job.conclude(PARTS, self.shard, found, planned))
    }
}

impl Decoding {
    fn new(reader: PartReader, digest_id: TableId) -> Decoding {
        let hasher = RowHasher::new(digest_id);
        Decoding { reader, hasher, batch: RowBatch::new(), tally: RowTally::default() }
    }

    /// Reads on; `false` at the end.
    fn read(&mut self) -> Result<bool> {
        let before = self.tally.row_bytes;
        while self.tally.row_bytes - before < CHUNK_BYTES {
            if !self.reader.next_batch(&mut self.batch)? {
                return Ok(false);
            }
            for row in self.batch.iter() {
                let tally = &mut self.tally;
                tally.rows += 1;
                tally.row_bytes += row.byte_count();
                tally.row_bytes_max = tally.row_bytes_max.max(row.byte_count());
                tally.tombstones += u64::from(row.op == ChangeOp::Delete);
                if tally.first_key.is_none() {
                    tally.first_key = Some(row.key.to_vec());
                }
            }
            let held = self.batch.iter().filter(|row| row.op != ChangeOp::Delete);
            self.tally.digest += self.hasher.sum(held);
            if let Some(last) = self.batch.last() {
                let key = self.tally.last_key.get_or_insert_default();
                key.clear();
                key.extend_from_slice(last.key);
            }
        }
        Ok(true)
    }
}

impl RowTally {
    fn of(part: &PartEntry) -> RowTally {
        RowTally {
            rows: part.rows,
            tombstones: part.tombstones,
            row_bytes: part.row_bytes,
            row_bytes_max: part.row_bytes_max,
            first_key: Some(part.first_key.clone()),
            last_key: Some(part.last_key.clone()),
            digest: part.digest,
        }
    }

    /// Holds the rows that were read against what the manifest says of them.
    fn check(&self, part: &PartEntry, path: &str) -> Result<()> {
        let expected = RowTally::of(part);
        if *self == expected {
            return Ok(());
        }
        Err(Flaw::new(path, self.shown(), format!("{} as its manifest says", expected.shown()))
            .into())
    }

    fn shown(&self) -> String {
        let key = |key: &Option<Vec<u8>>| {
            key.as_deref().map_or_else(|| "none".to_owned(), crate::collection::part::key_text)
        };
        format!(
            "{} rows, {} tombstones, {} row bytes, the greatest {}, keys {} to {}, digest {}",
            self.rows,
            self.tombstones,
            self.row_bytes,
            self.row_bytes_max,
            key(&self.first_key),
            key(&self.last_key),
            self.digest
        )
    }
}

/// The finding that an error is; what only keeps us from looking stays an error.
pub(super) fn finding_of(object: String, error: Error) -> Result<Finding> {
    match error.kind() {
        Kind::Broken | Kind::NotFound | Kind::Unsupported => {
            let text = error.chain();
            // One that a flaw became has its words already.
            let told = text.split_once(&format!("`{object}`: found "));
            let told = told.and_then(|(_, rest)| rest.split_once(", expected "));
            Ok(Finding::flaw(match told {
                Some((found, expected)) => Flaw::new(object, found, expected),
                None => Flaw::new(object, text, "a part that can be restored"),
            }))
        }
        _ => Err(error),
    }
}
