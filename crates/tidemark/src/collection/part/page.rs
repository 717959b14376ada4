//! Pages: header, levels, compressed values; the smallest thing that is read and checked.
//!
//! A page in the file is a Thrift header and one zstd frame. The frame's content is,
//! for an optional column, a `u32` little-endian length and the definition levels in
//! RLE / bit-packed hybrid of width 1, and then the PLAIN values of the rows that are
//! not NULL. Source: `apache/parquet-format`, README.md and Encodings.md.

use std::cell::RefCell;
use std::io::Cursor;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use super::thrift::{FieldIs, Reader, write_struct};
use crate::error::{Error, Kind, Result};

/// Level 1: decoding is as fast at every level, and encoding is what a backup waits for.
const ZSTD_LEVEL: i32 = 1;

/// Bytes of a page header that we write at most; more is not of our making.
pub(super) const HEADER_BYTES_MAX: usize = 64;

const DATA_PAGE: i32 = 0;
pub(super) const ENCODING_PLAIN: i32 = 0;
pub(super) const ENCODING_RLE: i32 = 3;

thread_local! {
    // One context a thread and not one a column: a context weighs hundreds of kilobytes,
    // and a fold of a hundred columns and hundreds of links would hold gigabytes of them.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// What a page header announces; nothing of it is believed before it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageHeader {
    /// Bytes of the frame's content.
    pub(super) content_bytes: u32,
    /// Bytes of the frame.
    pub(super) frame_bytes: u32,
    /// Rows, NULLs included.
    pub(super) rows: u32,
}

impl PageHeader {
    fn put(self, out: &mut Vec<u8>) {
        write_struct(out, |page| {
            page.i32(1, DATA_PAGE);
            page.i32(2, self.content_bytes as i32);
            page.i32(3, self.frame_bytes as i32);
            page.structure(5, |data| {
                data.i32(1, self.rows as i32);
                data.i32(2, ENCODING_PLAIN);
                data.i32(3, ENCODING_RLE);
                data.i32(4, ENCODING_RLE);
            });
        });
    }

    /// Reads a header off the front of `bytes`, and its length; `None` unless it is one that we write.
    pub(super) fn take(bytes: &[u8]) -> Option<(PageHeader, usize)> {
        let mut reader = Reader::new(bytes);
        let (mut kind, mut content, mut frame, mut data) = (None, None, None, [None; 4]);
        reader.structure(|reader, id, _| {
            match id {
                1 => kind = Some(reader.i32()?),
                2 => content = Some(reader.i32()?),
                3 => frame = Some(reader.i32()?),
                5 => reader.structure(|reader, id, _| {
                    let Some(slot) = id.checked_sub(1).and_then(|at| data.get_mut(at as usize))
                    else {
                        return Some(FieldIs::Unknown);
                    };
                    *slot = Some(reader.i32()?);
                    Some(FieldIs::Taken)
                })?,
                _ => return Some(FieldIs::Unknown),
            }
            Some(FieldIs::Taken)
        })?;
        let [rows, values, levels, _] = data;
        if (kind, values, levels) != (Some(DATA_PAGE), Some(ENCODING_PLAIN), Some(ENCODING_RLE)) {
            return None;
        }
        let header = PageHeader {
            content_bytes: u32::try_from(content?).ok()?,
            frame_bytes: u32::try_from(frame?).ok()?,
            rows: u32::try_from(rows?).ok()?,
        };
        Some((header, bytes.len() - reader.remaining()))
    }
}

/// Appends a page of `rows` rows with that content to `chunk`; gives the bytes of its header.
///
/// Needs room for the frame only: `chunk` grows by at most the content and 1 %.
///
/// # Errors
/// [`Kind::Usage`] for a content beyond 2 GiB, which Parquet cannot say.
pub(super) fn append_page(content: &[u8], rows: u32, chunk: &mut Vec<u8>) -> Result<usize> {
    let content_bytes = i32::try_from(content.len()).map_err(|_| {
        let message = format!("a value of {} bytes: a page holds at most 2 GiB", content.len());
        Error::new(Kind::Usage, message)
    })?;
    let start = chunk.len();
    let frame_bound = zstd::zstd_safe::compress_bound(content.len());
    if frame_bound > 1 << 20 {
        // Doubling is for small things: it would hold a huge value twice.
        chunk.reserve_exact(HEADER_BYTES_MAX + frame_bound);
    } else {
        chunk.reserve(HEADER_BYTES_MAX + frame_bound);
    }
    // The header comes first and says how long the frame is, so the frame is moved to it.
    chunk.resize(start + HEADER_BYTES_MAX, 0);
    let frame_start = chunk.len();
    let frame_bytes = COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(new_compressor()?),
        };
        let mut out = Cursor::new(&mut *chunk);
        out.set_position(frame_start as u64);
        compressor.compress_to_buffer(content, &mut out)
    });
    let frame_bytes = frame_bytes
        .map_err(|cause| Error::with_source(Kind::Fatal, "compress a page with zstd", cause))?;
    let header = PageHeader {
        content_bytes: content_bytes as u32,
        frame_bytes: u32::try_from(frame_bytes).expect("a frame is at most its content and 1 %"),
        rows,
    };
    let mut header_bytes = Vec::with_capacity(HEADER_BYTES_MAX);
    header.put(&mut header_bytes);
    chunk[start..start + header_bytes.len()].copy_from_slice(&header_bytes);
    chunk.copy_within(frame_start..frame_start + frame_bytes, start + header_bytes.len());
    chunk.truncate(start + header_bytes.len() + frame_bytes);
    Ok(header_bytes.len())
}

fn new_compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(ZSTD_LEVEL)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    Ok(compressor)
}

/// Replaces `content` by what `frame` holds, which must be `content_bytes` bytes.
///
/// # Errors
/// [`Kind::Broken`] if it is not, or its checksum fails; [`Kind::Blocked`] if there is no
/// memory for it.
pub(super) fn decompress(frame: &[u8], content_bytes: u32, content: &mut Vec<u8>) -> Result<()> {
    let expected = content_bytes as usize;
    content.clear();
    if content.try_reserve_exact(expected).is_err() {
        let message = format!("no memory for a page of {expected} bytes");
        return Err(Error::new(Kind::Blocked, message));
    }
    let found = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(frame, content)
    });
    match found {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => {
            let message = format!("a page has {found} bytes, its header says {expected}");
            Err(Error::new(Kind::Broken, message))
        }
        Err(cause) => {
            Err(Error::with_source(Kind::Broken, "a page fails its checksum or is no page", cause))
        }
    }
}

/// Appends the levels of `rows` rows whose presence is in the bits of `present`, first row lowest.
pub(super) fn put_levels(present: &[u8], rows: u32, null_count: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    if null_count == 0 || null_count == rows {
        super::thrift::put_varint(u64::from(rows) << 1, out);
        out.push(u8::from(null_count == 0));
    } else {
        let groups = rows.div_ceil(8) as usize;
        super::thrift::put_varint((groups as u64) << 1 | 1, out);
        out.extend_from_slice(&present[..groups]);
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// What the levels of a page say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    /// Where the values begin.
    pub(super) end: usize,
    /// Rows that have one.
    pub(super) value_count: usize,
}

/// Reads the levels of `rows` rows into the bits of `present`.
pub(super) fn take_levels(content: &[u8], rows: u32, present: &mut Vec<u8>) -> Option<Levels> {
    let (len, rest) = content.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let mut levels = rest.get(..len)?;
    let rows = rows as usize;
    present.clear();
    present.resize(rows.div_ceil(8), 0);
    let (mut at, mut value_count) = (0usize, 0usize);
    while at < rows {
        let mut reader = Reader::new(levels);
        let run = reader.varint()?;
        levels = &levels[levels.len() - reader.remaining()..];
        let count = usize::try_from(run >> 1).ok()?;
        if count == 0 {
            return None;
        }
        if run & 1 == 0 {
            let (&level, rest) = levels.split_first()?;
            levels = rest;
            if level > 1 || count > rows - at {
                return None;
            }
            if level == 1 {
                value_count += count;
                if count == rows {
                    // What mostly is, at once.
                    present.fill(0xff);
                    *present.last_mut()? >>= (8 - rows % 8) % 8;
                } else {
                    (at..at + count).for_each(|row| present[row / 8] |= 1 << (row % 8));
                }
            }
            at += count;
        } else {
            let (packed, rest) = levels.split_at_checked(count)?;
            levels = rest;
            let count = count.checked_mul(8)?.min(rows - at);
            for bit in (0..count).filter(|bit| packed[bit / 8] >> (bit % 8) & 1 == 1) {
                let row = at + bit;
                present[row / 8] |= 1 << (row % 8);
                value_count += 1;
            }
            at += count;
        }
    }
    levels.is_empty().then_some(Levels { end: 4 + len, value_count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_reads_back_and_a_flipped_bit_is_found() {
        let content: Vec<u8> = (0..10_000u32).flat_map(|n| (n * 7).to_le_bytes()).collect();
        let mut chunk = vec![1, 2, 3];
        append_page(&content, 10_000, &mut chunk).unwrap();
        let (header, len) = PageHeader::take(&chunk[3..]).unwrap();
        assert_eq!(header.rows, 10_000);
        let frame_start = 3 + len;
        assert_eq!(chunk.len(), frame_start + header.frame_bytes as usize);

        let mut read = Vec::new();
        decompress(&chunk[frame_start..], header.content_bytes, &mut read).unwrap();
        assert_eq!(read, content);

        for bit in (0..8 * (chunk.len() - frame_start)).step_by(97) {
            let mut broken = chunk[frame_start..].to_vec();
            broken[bit / 8] ^= 1 << (bit % 8);
            let result = decompress(&broken, header.content_bytes, &mut read);
            assert!(result.is_err() || read == content, "{bit}");
        }
    }

    #[test]
    fn every_truncated_header_and_page_is_refused() {
        let mut chunk = Vec::new();
        append_page(b"content content content", 3, &mut chunk).unwrap();
        let (header, len) = PageHeader::take(&chunk).unwrap();
        for end in 0..len {
            assert_eq!(PageHeader::take(&chunk[..end]), None, "{end}");
        }
        for end in len..chunk.len() {
            let read = decompress(&chunk[len..end], header.content_bytes, &mut Vec::new());
            assert_eq!(read.unwrap_err().kind(), Kind::Broken, "{end}");
        }
    }

    proptest! {
        #[test]
        fn levels_read_back(rows in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut present = vec![0u8; rows.len().div_ceil(8)];
            for (at, _) in rows.iter().enumerate().filter(|(_, present)| **present) {
                present[at / 8] |= 1 << (at % 8);
            }
            let nulls = rows.iter().filter(|present| !**present).count() as u32;
            let mut content = Vec::new();
            put_levels(&present, rows.len() as u32, nulls, &mut content);
            let mut read = Vec::new();
            let value_count = rows.len() - nulls as usize;
            let levels = Some(Levels { end: content.len(), value_count });
            prop_assert_eq!(take_levels(&content, rows.len() as u32, &mut read), levels);
            prop_assert_eq!(read, present);
            for len in 0..content.len() {
                prop_assert_eq!(take_levels(&content[..len], rows.len() as u32, &mut Vec::new()), None);
            }
        }

        #[test]
        fn no_bytes_break_the_readers(bytes: Vec<u8>, rows in 0u32..1000) {
            let _ = PageHeader::take(&bytes);
            let _ = take_levels(&bytes, rows, &mut Vec::new());
        }
    }
}
