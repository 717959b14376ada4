//! The end of a part: Parquet's `FileMetaData`, its length, and the magic.
//!
//! Source: `apache/parquet-format`, parquet.thrift. Reading keeps three numbers a
//! column chunk, so that opening a wide part costs kilobytes.

use super::layout::{Layout, PartColumn, Physical};
use super::page::{ENCODING_PLAIN, ENCODING_RLE};
use super::thrift::{FieldIs, Reader, StructWriter, put_binary, put_zigzag, wire, write_struct};
use crate::row::LogicalType;

/// First and last bytes of a Parquet file.
pub(super) const MAGIC: &[u8; 4] = b"PAR1";

/// Bytes behind the metadata: their length and the magic.
pub(super) const TAIL_BYTES: u64 = 8;

/// The format's version that has nothing we do not write.
const FORMAT_VERSION: i32 = 1;
const CODEC_ZSTD: i32 = 6;
const REQUIRED: i32 = 0;
const OPTIONAL: i32 = 1;

/// Where a column chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkExtent {
    /// Offset of its first page in the file.
    pub(super) offset: u64,
    /// Bytes of all its pages, headers included.
    pub(super) bytes: u64,
    /// The same before compression.
    pub(super) content_bytes: u64,
}

/// One row group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupExtent {
    pub(super) rows: u64,
    /// One per column, in file order.
    pub(super) chunks: Vec<ChunkExtent>,
}

/// Element of the schema, as much of it as a part's column has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Element {
    name: String,
    physical: Option<i32>,
    length: Option<i32>,
    repetition: Option<i32>,
    children: Option<i32>,
    field_id: Option<i32>,
}

/// What a footer says.
#[derive(Debug)]
pub(super) struct Footer {
    pub(super) rows: u64,
    pub(super) groups: Vec<GroupExtent>,
    pub(super) metadata: Vec<(String, String)>,
    elements: Vec<Element>,
}

impl Footer {
    /// The metadata under `key`.
    pub(super) fn meta(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(found, _)| found == key).map(|(_, value)| &**value)
    }

    /// The first column that is not as `layout` has it, for people; `None` if all are.
    pub(super) fn differs_from(&self, layout: &Layout) -> Option<String> {
        let expected = elements(layout);
        if self.elements.len() != expected.len() {
            let found = self.elements.len().saturating_sub(1);
            return Some(format!("it has {found} columns, expected {}", layout.columns.len()));
        }
        let mut pairs = self.elements.iter().zip(&expected);
        let (found, expected) = pairs.find(|(found, expected)| found != expected)?;
        Some(format!("its column `{}` is {found:?}, expected {expected:?}", expected.name))
    }
}

fn elements(layout: &Layout) -> Vec<Element> {
    let root = Element {
        name: "schema".to_owned(),
        physical: None,
        length: None,
        repetition: None,
        children: Some(layout.columns.len() as i32),
        field_id: None,
    };
    let leaf = |column: &PartColumn| {
        let physical = Physical::of(column.logical);
        Element {
            name: column.name.clone(),
            physical: Some(physical as i32),
            length: (physical == Physical::Fixed16).then_some(16),
            repetition: Some(if column.required { REQUIRED } else { OPTIONAL }),
            children: None,
            field_id: column.id.and_then(|id| i32::try_from(id.0).ok()),
        }
    };
    std::iter::once(root).chain(layout.columns.iter().map(leaf)).collect()
}

/// The footer's bytes, from the metadata to the final magic.
pub(super) fn encode(
    layout: &Layout,
    groups: &[GroupExtent],
    metadata: &[(&str, String)],
) -> Vec<u8> {
    let mut out = Vec::new();
    let elements = elements(layout);
    write_struct(&mut out, |file| {
        file.i32(1, FORMAT_VERSION);
        file.list(2, wire::STRUCT, elements.iter().enumerate(), |out, (at, element)| {
            let column = at.checked_sub(1).map(|at| &layout.columns[at]);
            write_struct(out, |out| put_element(element, column, out));
        });
        file.i64(3, groups.iter().map(|group| group.rows as i64).sum());
        file.list(4, wire::STRUCT, groups.iter(), |out, group| {
            write_struct(out, |out| put_group(layout, group, out));
        });
        file.list(5, wire::STRUCT, metadata.iter(), |out, (key, value)| {
            write_struct(out, |pair| {
                pair.binary(1, key.as_bytes());
                pair.binary(2, value.as_bytes());
            });
        });
        file.binary(6, concat!("tidemark version ", env!("CARGO_PKG_VERSION")).as_bytes());
    });
    let len = out.len() as u32;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(MAGIC);
    out
}

fn put_element(element: &Element, column: Option<&PartColumn>, out: &mut StructWriter<'_>) {
    if let Some(physical) = element.physical {
        out.i32(1, physical);
    }
    if let Some(length) = element.length {
        out.i32(2, length);
    }
    if let Some(repetition) = element.repetition {
        out.i32(3, repetition);
    }
    out.binary(4, element.name.as_bytes());
    if let Some(children) = element.children {
        out.i32(5, children);
    }
    let Some(column) = column else { return };
    // The older annotation, for readers that know no other; the format has none for a
    // timestamp without a zone.
    match column.logical {
        LogicalType::Decimal | LogicalType::Text => out.i32(6, 0),
        LogicalType::Date => out.i32(6, 6),
        LogicalType::TimestampTz => out.i32(6, 10),
        _ => {}
    }
    if let Some(field_id) = element.field_id {
        out.i32(9, field_id);
    }
    let empty = |_: &mut StructWriter<'_>| {};
    match column.logical {
        LogicalType::Decimal | LogicalType::Text => {
            out.structure(10, |union| union.structure(1, empty));
        }
        LogicalType::Date => out.structure(10, |union| union.structure(6, empty)),
        LogicalType::Timestamp | LogicalType::TimestampTz => out.structure(10, |union| {
            union.structure(8, |timestamp| {
                timestamp.bool(1, column.logical == LogicalType::TimestampTz);
                timestamp.structure(2, |unit| unit.structure(2, empty));
            });
        }),
        LogicalType::Uuid => out.structure(10, |union| union.structure(14, empty)),
        LogicalType::Bool | LogicalType::Int64 | LogicalType::Float64 | LogicalType::Bytes => {}
    }
}

fn put_group(layout: &Layout, group: &GroupExtent, out: &mut StructWriter<'_>) {
    let columns = layout.columns.iter().zip(&group.chunks);
    out.list(1, wire::STRUCT, columns, |out, (column, chunk)| {
        write_struct(out, |out| {
            out.i64(2, 0);
            out.structure(3, |meta| {
                meta.i32(1, Physical::of(column.logical) as i32);
                let encodings = [ENCODING_PLAIN, ENCODING_RLE];
                meta.list(2, wire::I32, encodings.iter(), |out, encoding| {
                    put_zigzag(i64::from(*encoding), out);
                });
                meta.list(3, wire::BINARY, std::iter::once(&column.name), |out, name| {
                    put_binary(name.as_bytes(), out);
                });
                meta.i32(4, CODEC_ZSTD);
                meta.i64(5, group.rows as i64);
                meta.i64(6, chunk.content_bytes as i64);
                meta.i64(7, chunk.bytes as i64);
                meta.i64(9, chunk.offset as i64);
            });
        });
    });
    out.i64(2, group.chunks.iter().map(|chunk| chunk.content_bytes as i64).sum());
    out.i64(3, group.rows as i64);
}

/// Reads the metadata, without the tail; `None` if it is malformed or outside the profile.
pub(super) fn decode(bytes: &[u8]) -> Option<Footer> {
    let (mut rows, mut elements, mut groups, mut metadata) = (None, Vec::new(), Vec::new(), vec![]);
    let mut reader = Reader::new(bytes);
    reader.structure(|reader, id, _| {
        match id {
            2 => reader.list(wire::STRUCT, |reader| {
                elements.push(take_element(reader)?);
                Some(())
            })?,
            3 => rows = Some(u64::try_from(reader.i64()?).ok()?),
            4 => reader.list(wire::STRUCT, |reader| {
                groups.push(take_group(reader)?);
                Some(())
            })?,
            5 => reader.list(wire::STRUCT, |reader| {
                metadata.push(take_pair(reader)?);
                Some(())
            })?,
            _ => return Some(FieldIs::Unknown),
        }
        Some(FieldIs::Taken)
    })?;
    (reader.remaining() == 0).then_some(Footer { rows: rows?, groups, metadata, elements })
}

fn take_element(reader: &mut Reader<'_>) -> Option<Element> {
    let mut name = None;
    let mut numbers = [None; 10];
    reader.structure(|reader, id, _| {
        match id {
            4 => name = Some(reader.text()?.to_owned()),
            1 | 2 | 3 | 5 | 9 => numbers[id as usize] = Some(reader.i32()?),
            _ => return Some(FieldIs::Unknown),
        }
        Some(FieldIs::Taken)
    })?;
    let [_, physical, length, repetition, _, children, _, _, _, field_id] = numbers;
    Some(Element { name: name?, physical, length, repetition, children, field_id })
}

fn take_group(reader: &mut Reader<'_>) -> Option<GroupExtent> {
    let mut rows = None;
    let mut chunks = Vec::new();
    let mut value_counts = Vec::new();
    reader.structure(|reader, id, _| {
        match id {
            1 => reader.list(wire::STRUCT, |reader| {
                let (chunk, value_count) = take_chunk(reader)?;
                chunks.push(chunk);
                value_counts.push(value_count);
                Some(())
            })?,
            3 => rows = Some(u64::try_from(reader.i64()?).ok()?),
            _ => return Some(FieldIs::Unknown),
        }
        Some(FieldIs::Taken)
    })?;
    let rows = rows?;
    let flat = value_counts.iter().all(|value_count| *value_count == rows);
    flat.then_some(GroupExtent { rows, chunks })
}

/// A chunk's extent and the number of its values.
fn take_chunk(reader: &mut Reader<'_>) -> Option<(ChunkExtent, u64)> {
    let mut found = None;
    reader.structure(|reader, id, _| {
        if id != 3 {
            return Some(FieldIs::Unknown);
        }
        let mut codec = None;
        let mut numbers = [None; 10];
        reader.structure(|reader, id, _| {
            match id {
                4 => codec = Some(reader.i32()?),
                5 | 6 | 7 | 9 => {
                    numbers[id as usize] = Some(u64::try_from(reader.i64()?).ok()?);
                }
                _ => return Some(FieldIs::Unknown),
            }
            Some(FieldIs::Taken)
        })?;
        let [_, _, _, _, _, values, content_bytes, bytes, _, offset] = numbers;
        if codec != Some(CODEC_ZSTD) {
            return None;
        }
        let (offset, bytes, content_bytes) = (offset?, bytes?, content_bytes?);
        found = Some((ChunkExtent { offset, bytes, content_bytes }, values?));
        Some(FieldIs::Taken)
    })?;
    found
}

fn take_pair(reader: &mut Reader<'_>) -> Option<(String, String)> {
    let (mut key, mut value) = (None, None);
    reader.structure(|reader, id, _| {
        match id {
            1 => key = Some(reader.text()?.to_owned()),
            2 => value = Some(reader.text()?.to_owned()),
            _ => return Some(FieldIs::Unknown),
        }
        Some(FieldIs::Taken)
    })?;
    Some((key?, value.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::part::PartKind;
    use crate::row::Schema;
    use proptest::prelude::*;

    fn footer() -> (Layout, Vec<GroupExtent>, Vec<u8>) {
        let columns: Vec<(String, LogicalType)> = LogicalType::ALL
            .into_iter()
            .map(|logical| (format!("a {}", logical.name()), logical))
            .collect();
        let columns: Vec<(&str, LogicalType)> =
            columns.iter().map(|(name, logical)| (&**name, *logical)).collect();
        let schema = Schema::new(&columns, &["a int64"]).unwrap();
        let layout = Layout::new(&schema, PartKind::Increment).unwrap();
        let chunk = |at: u64| ChunkExtent { offset: 4 + at, bytes: at * 1000, content_bytes: at };
        let group = |rows| GroupExtent { rows, chunks: (0..12).map(chunk).collect() };
        let groups: Vec<GroupExtent> = (1..4).map(group).collect();
        let bytes = encode(&layout, &groups, &[("k", "v".to_owned())]);
        (layout, groups, bytes)
    }

    #[test]
    fn a_footer_reads_back() {
        let (layout, groups, bytes) = footer();
        let read = decode(&bytes[..bytes.len() - TAIL_BYTES as usize]).unwrap();
        assert_eq!(read.groups, groups);
        assert_eq!(read.rows, (1..4).sum::<u64>());
        assert_eq!(read.meta("k"), Some("v"));
        assert_eq!(read.differs_from(&layout), None);
    }

    #[test]
    fn every_truncated_footer_is_refused() {
        let (_, _, bytes) = footer();
        for len in 0..bytes.len() - TAIL_BYTES as usize {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_flipped_bit_breaks_the_reader(at in 0usize..10_000) {
            let (_, _, mut bytes) = footer();
            let at = at % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let _ = decode(&bytes);
        }
    }
}
