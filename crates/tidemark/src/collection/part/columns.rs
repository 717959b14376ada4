//! One column of a row group: values appended into pages, values taken out of pages.

use std::cmp::Ordering;

use bytes::{Buf, Bytes};

use super::PAGE_ROWS_MAX;
use super::footer::ChunkExtent;
use super::layout::Physical;
use super::page::{self, HEADER_BYTES_MAX, PageHeader, append_page, decompress};
use crate::error::{Error, Kind, Result};

/// Bytes of a page's levels at most: length, run header, a bit a row.
const LEVEL_BYTES_MAX: usize = 16 + PAGE_ROWS_MAX as usize / 8;

/// Collects the values of one column chunk; finished pages are compressed at once.
#[derive(Debug)]
pub(super) struct ColumnEncoder {
    nullable: bool,
    page_bytes_max: usize,
    /// PLAIN values of the open page; for booleans, bits.
    values: Vec<u8>,
    value_count: u32,
    /// A bit per row of the open page, lowest first: whether it has a value.
    present: Vec<u8>,
    rows: u32,
    /// Finished pages of the open row group.
    chunk: Vec<u8>,
    content_bytes: u64,
}

impl ColumnEncoder {
    pub(super) fn new(required: bool, page_bytes_max: u64) -> ColumnEncoder {
        ColumnEncoder {
            nullable: !required,
            page_bytes_max: page_bytes_max as usize,
            values: Vec::new(),
            value_count: 0,
            present: Vec::new(),
            rows: 0,
            chunk: Vec::new(),
            content_bytes: 0,
        }
    }

    /// Appends a row that is NULL.
    pub(super) fn put_null(&mut self) -> Result<()> {
        debug_assert!(self.nullable, "key columns have values: checked by the writer");
        self.make_room(0)?;
        self.put_presence(false);
        Ok(())
    }

    /// Appends a row with a fixed-width value in its PLAIN form.
    pub(super) fn put_fixed(&mut self, value: &[u8]) -> Result<()> {
        self.make_room(value.len())?;
        self.put_presence(true);
        self.values.extend_from_slice(value);
        Ok(())
    }

    /// Appends a row with a byte array.
    pub(super) fn put_bytes(&mut self, value: &[u8]) -> Result<()> {
        let Ok(len) = u32::try_from(value.len()) else {
            let message = format!("a value of {} bytes: a part holds at most 2 GiB", value.len());
            return Err(Error::new(Kind::Usage, message));
        };
        self.make_room(4 + value.len())?;
        self.put_presence(true);
        self.values.extend_from_slice(&len.to_le_bytes());
        self.values.extend_from_slice(value);
        Ok(())
    }

    /// Appends a row with a boolean.
    pub(super) fn put_bool(&mut self, value: bool) -> Result<()> {
        self.make_room(1)?;
        let bit = self.value_count % 8;
        self.put_presence(true);
        if bit == 0 {
            self.values.push(0);
        }
        *self.values.last_mut().expect("a byte was pushed for its first bit") |=
            u8::from(value) << bit;
        Ok(())
    }

    /// Bytes held: the open page and the finished ones.
    pub(super) fn buffered_bytes(&self) -> u64 {
        (self.values.len() + self.chunk.len()) as u64
    }

    /// Ends the chunk; its bytes are in [`chunk`](Self::chunk) until [`clear`](Self::clear).
    pub(super) fn finish(&mut self, offset: u64) -> Result<ChunkExtent> {
        self.finish_page()?;
        let bytes = self.chunk.len() as u64;
        Ok(ChunkExtent { offset, bytes, content_bytes: self.content_bytes })
    }

    pub(super) fn chunk(&self) -> &[u8] {
        &self.chunk
    }

    /// Begins the next chunk; keeps memory of ordinary size.
    pub(super) fn clear(&mut self) {
        self.content_bytes = 0;
        self.chunk.clear();
        self.chunk.shrink_to(4 * self.page_bytes_max);
    }

    fn make_room(&mut self, len: usize) -> Result<()> {
        let bytes = self.values.len() + len + LEVEL_BYTES_MAX;
        if self.rows > 0 && (bytes > self.page_bytes_max || self.rows == PAGE_ROWS_MAX) {
            self.finish_page()?;
        }
        if len > self.page_bytes_max {
            // Exactly, and with the levels: doubling would hold a huge value twice.
            self.values.reserve_exact(len + LEVEL_BYTES_MAX);
        }
        Ok(())
    }

    fn put_presence(&mut self, present: bool) {
        if self.nullable {
            let bit = self.rows % 8;
            if bit == 0 {
                self.present.push(0);
            }
            *self.present.last_mut().expect("a byte was pushed for its first bit") |=
                u8::from(present) << bit;
        }
        self.rows += 1;
        self.value_count += u32::from(present);
    }

    fn finish_page(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        if self.nullable {
            let mut levels = Vec::with_capacity(LEVEL_BYTES_MAX);
            page::put_levels(&self.present, self.rows, self.rows - self.value_count, &mut levels);
            self.values.splice(0..0, levels);
        }
        let header_bytes = append_page(&self.values, self.rows, &mut self.chunk)?;
        self.content_bytes += (self.values.len() + header_bytes) as u64;
        self.values.clear();
        self.values.shrink_to(2 * self.page_bytes_max);
        self.present.clear();
        self.rows = 0;
        self.value_count = 0;
        Ok(())
    }
}

/// Where a part's bytes come from.
pub(super) trait PartBytes: Send {
    /// `len` bytes from `start` on, all inside the file.
    fn read(&self, start: u64, len: usize) -> Result<Bytes>;
}

/// Bounds of a reader's buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct CursorLimits {
    /// Content of a page at most; a page that announces more is refused.
    pub(super) content_bytes_max: u64,
    /// Bytes fetched ahead, so that a page is mostly one read.
    pub(super) window_bytes: usize,
}

/// Walks one column chunk row by row; holds one page and a window of fetched bytes.
#[derive(Debug)]
pub(super) struct ColumnCursor {
    physical: Physical,
    required: bool,
    limits: CursorLimits,
    /// Offset of the next page, and end of the chunk.
    next: u64,
    end: u64,
    /// Bytes from `next` on that were fetched already.
    window: Bytes,
    /// Rows in the pages from `next` on.
    rows_ahead: u64,
    content: Vec<u8>,
    present: Vec<u8>,
    /// Whether every row of the page has a value.
    is_dense: bool,
    page_rows: u32,
    /// Rows of the page that were passed.
    page_at: u32,
    /// Where the next value begins; for booleans, where the bits do.
    value_at: usize,
    bools_passed: usize,
    current: Current,
}

#[derive(Clone, Copy, Debug)]
enum Current {
    Null,
    Bytes { start: usize, end: usize },
    Bool(bool),
}

impl ColumnCursor {
    /// A cursor without a chunk; [`enter`](Self::enter) gives it one.
    pub(super) fn new(physical: Physical, required: bool, limits: CursorLimits) -> ColumnCursor {
        ColumnCursor {
            physical,
            required,
            limits,
            next: 0,
            end: 0,
            window: Bytes::new(),
            rows_ahead: 0,
            content: Vec::new(),
            present: Vec::new(),
            is_dense: true,
            page_rows: 0,
            page_at: 0,
            value_at: 0,
            bools_passed: 0,
            current: Current::Null,
        }
    }

    /// Stands before the first row of a chunk of `rows` rows.
    pub(super) fn enter(&mut self, chunk: ChunkExtent, rows: u64) {
        self.next = chunk.offset;
        self.end = chunk.offset + chunk.bytes;
        self.window = Bytes::new();
        self.rows_ahead = rows;
        self.page_rows = 0;
        self.page_at = 0;
        self.current = Current::Null;
    }

    /// The current row's value in PLAIN form, a boolean as one byte; `None` for NULL.
    pub(super) fn value(&self) -> Option<&[u8]> {
        match self.current {
            Current::Null => None,
            Current::Bytes { start, end } => Some(&self.content[start..end]),
            Current::Bool(false) => Some(&[0]),
            Current::Bool(true) => Some(&[1]),
        }
    }

    /// Moves to the next row, which must exist.
    #[inline]
    pub(super) fn advance(&mut self, file: &dyn PartBytes) -> Result<()> {
        if self.page_at == self.page_rows {
            self.next_page(file)?;
        }
        let row = self.page_at as usize;
        self.page_at += 1;
        let present = self.is_dense || self.present[row / 8] >> (row % 8) & 1 == 1;
        self.current = match self.physical.width() {
            _ if !present => Current::Null,
            Some(width) => {
                let start = self.value_at;
                self.value_at += width;
                Current::Bytes { start, end: self.value_at }
            }
            None if self.physical == Physical::Boolean => self.take_bool(),
            None => self.take_bytes()?,
        };
        if self.physical == Physical::ByteArray
            && self.page_at == self.page_rows
            && self.value_at != self.content.len()
        {
            return Err(bytes_behind());
        }
        Ok(())
    }

    /// Passes `count` rows, which must exist; pages wholly among them are not even fetched.
    pub(super) fn skip(&mut self, mut count: u64, file: &dyn PartBytes) -> Result<()> {
        while count > 0 {
            if self.page_at == self.page_rows {
                let header = self.read_header(file)?;
                if u64::from(header.rows) <= count {
                    self.consume(u64::from(header.frame_bytes));
                    self.rows_ahead -= u64::from(header.rows);
                    self.check_chunk_end()?;
                    count -= u64::from(header.rows);
                    continue;
                }
                self.load(header, file)?;
            }
            self.advance(file)?;
            count -= 1;
        }
        Ok(())
    }

    fn take_bool(&mut self) -> Current {
        let at = self.bools_passed;
        self.bools_passed += 1;
        Current::Bool(self.content[self.value_at + at / 8] >> (at % 8) & 1 == 1)
    }

    #[inline]
    fn take_bytes(&mut self) -> Result<Current> {
        let rest = self.content.get(self.value_at..);
        let Some((len, rest)) = rest.and_then(|rest| rest.split_first_chunk::<4>()) else {
            return Err(ends_inside());
        };
        let len = u32::from_le_bytes(*len) as usize;
        if len > rest.len() {
            return Err(ends_inside());
        }
        let start = self.value_at + 4;
        self.value_at = start + len;
        Ok(Current::Bytes { start, end: self.value_at })
    }

    /// Refuses a page that has more or fewer values than its rows, where their bytes tell.
    fn check_values(&self, value_count: usize) -> Result<()> {
        let bytes = match self.physical.width() {
            Some(width) => value_count * width,
            None if self.physical == Physical::Boolean => value_count.div_ceil(8),
            // Told by the values themselves, one after the other.
            None => return Ok(()),
        };
        match (self.content.len() - self.value_at).cmp(&bytes) {
            Ordering::Less => Err(ends_inside()),
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(bytes_behind()),
        }
    }

    fn check_chunk_end(&self) -> Result<()> {
        if self.rows_ahead == 0 && self.next != self.end {
            return Err(broken("a column has bytes behind its last page"));
        }
        Ok(())
    }

    /// Reads and consumes the next page's header, and checks all that it announces.
    fn read_header(&mut self, file: &dyn PartBytes) -> Result<PageHeader> {
        let wanted = (HEADER_BYTES_MAX as u64).min(self.end - self.next) as usize;
        if self.window.len() < wanted {
            let len = (self.limits.window_bytes.max(wanted) as u64).min(self.end - self.next);
            self.window = Bytes::new();
            self.window = file.read(self.next, len as usize)?;
        }
        let head = &self.window[..self.window.len().min(HEADER_BYTES_MAX)];
        let (header, len) = PageHeader::take(head)
            .ok_or_else(|| broken("a page header is malformed, or the page not of our making"))?;
        self.consume(len as u64);
        let rows_fit = header.rows >= 1 && u64::from(header.rows) <= self.rows_ahead;
        if !rows_fit {
            let message = format!("a page has {} rows, {} are left", header.rows, self.rows_ahead);
            return Err(broken(message));
        }
        // Their null levels, a bit a row, may come out of a few bytes.
        if header.rows > PAGE_ROWS_MAX {
            let message = format!("a page has {} rows, at most {PAGE_ROWS_MAX}", header.rows);
            return Err(broken(message));
        }
        if u64::from(header.frame_bytes) > self.end - self.next {
            return Err(broken("a page is longer than its column"));
        }
        if u64::from(header.content_bytes) > self.limits.content_bytes_max {
            return Err(broken(format!(
                "a page of {} bytes, at most {} were expected",
                header.content_bytes, self.limits.content_bytes_max
            )));
        }
        Ok(header)
    }

    #[cold]
    fn next_page(&mut self, file: &dyn PartBytes) -> Result<()> {
        let header = self.read_header(file)?;
        self.load(header, file)
    }

    fn load(&mut self, header: PageHeader, file: &dyn PartBytes) -> Result<()> {
        let frame_bytes = header.frame_bytes as usize;
        // A page beyond the ordinary gives its memory back before the next one is fetched.
        if self.content.capacity() > 4 * self.limits.window_bytes {
            self.content = Vec::new();
        }
        if frame_bytes <= self.window.len() {
            decompress(&self.window[..frame_bytes], header.content_bytes, &mut self.content)?;
            self.consume(frame_bytes as u64);
        } else {
            self.window = Bytes::new();
            let frame = file.read(self.next, frame_bytes)?;
            self.next += frame_bytes as u64;
            decompress(&frame, header.content_bytes, &mut self.content)?;
        }
        self.value_at = 0;
        let mut value_count = header.rows as usize;
        if !self.required {
            let levels = page::take_levels(&self.content, header.rows, &mut self.present)
                .ok_or_else(|| broken("a page's levels are malformed"))?;
            self.value_at = levels.end;
            value_count = levels.value_count;
        }
        self.is_dense = value_count == header.rows as usize;
        self.check_values(value_count)?;
        self.page_rows = header.rows;
        self.page_at = 0;
        self.bools_passed = 0;
        self.rows_ahead -= u64::from(header.rows);
        self.check_chunk_end()
    }

    fn consume(&mut self, len: u64) {
        self.window.advance((self.window.len() as u64).min(len) as usize);
        self.next += len;
    }
}

#[cold]
fn ends_inside() -> Error {
    broken("a page ends inside its values")
}

#[cold]
fn bytes_behind() -> Error {
    broken("a page has bytes behind its last value")
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(Kind::Broken, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::part::page::{append_page, put_levels};
    use crate::error::Kind;

    struct InMemory(Vec<u8>);

    impl PartBytes for InMemory {
        fn read(&self, start: u64, len: usize) -> Result<Bytes> {
            Ok(Bytes::copy_from_slice(&self.0[start as usize..start as usize + len]))
        }
    }

    /// Reads the first row of a column chunk of one page, all NULL.
    fn first_of(rows: u32) -> Result<()> {
        let mut content = Vec::new();
        put_levels(&vec![0; rows.div_ceil(8) as usize], rows, rows, &mut content);
        let mut chunk = Vec::new();
        append_page(&content, rows, &mut chunk).unwrap();
        let limits = CursorLimits { content_bytes_max: 1 << 20, window_bytes: 1 << 16 };
        let mut cursor = ColumnCursor::new(Physical::Int64, false, limits);
        let bytes = chunk.len() as u64;
        cursor.enter(ChunkExtent { offset: 0, bytes, content_bytes: bytes }, u64::from(rows));
        cursor.advance(&InMemory(chunk))
    }

    #[test]
    fn a_page_of_more_rows_than_we_write_is_refused() {
        first_of(PAGE_ROWS_MAX).unwrap();
        for rows in [PAGE_ROWS_MAX + 1, 1 << 24] {
            let refused = first_of(rows).unwrap_err();
            assert_eq!(refused.kind(), Kind::Broken);
            assert!(refused.message().contains("at most 16384"), "{refused}");
        }
    }
}
