//! A streaming reader of RFC 4180 records that tells quoted fields from plain ones.
//!
//! [`Reader`] holds one record at a time, checks that it is UTF-8 and has as many
//! fields as the header, and refuses the first byte that is not CSV with file,
//! line, what was found and what was expected. Beyond the RFC: a line may end in
//! LF alone, the last one in nothing, and a byte order mark in front is skipped.
//! Short of it: a carriage return outside quotes is only ever half a line end.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Cursor, Read};

use crate::error::{Error, Kind, Result};

/// Most bytes of one record, 8 for every field included.
///
/// Twice the largest value that tests carry. A quote that is never closed is
/// noticed here at the latest, before it swallows the memory.
pub const RECORD_BYTES_MAX: u64 = 128 << 20;

const FIELD_COST_BYTES: u64 = 8;
const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// One field of a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The text, without its quotes.
    pub text: &'a str,
    /// Whether quotes stood around it.
    pub quoted: bool,
}

impl Field<'_> {
    /// Whether the field stands for NULL: nothing, without quotes.
    pub fn is_null(&self) -> bool {
        self.text.is_empty() && !self.quoted
    }
}

/// One record, its text in one buffer that the next record takes over.
#[derive(Clone, Debug, Default)]
pub struct Record {
    line: u64,
    text: String,
    fields: Vec<FieldEnd>,
}

#[derive(Clone, Copy, Debug)]
struct FieldEnd {
    end: u32,
    quoted: bool,
}

impl Record {
    /// An empty record, to be read into.
    pub fn new() -> Record {
        Record::default()
    }

    /// Line of the file on which the record starts, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The fields in order.
    pub fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        let mut start = 0;
        self.fields.iter().map(move |field| {
            let text = &self.text[start..field.end as usize];
            start = field.end as usize;
            Field { text, quoted: field.quoted }
        })
    }
}

/// Reads the records of one file after its header.
#[derive(Debug)]
pub struct Reader<R> {
    input: BufReader<io::Chain<Cursor<Vec<u8>>, R>>,
    file: String,
    header: Vec<String>,
    /// Line of the next byte, from 1.
    line: u64,
    record_bytes_max: u64,
}

/// What stood behind a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    Comma,
    LineEnd,
    FileEnd,
}

/// The record being read, before it is known to be UTF-8.
struct Unverified {
    line: u64,
    bytes: Vec<u8>,
    fields: Vec<FieldEnd>,
}

impl<R: Read> Reader<R> {
    /// Opens `input` and reads its header; `file` names it in errors.
    ///
    /// # Errors
    /// [`Kind::Usage`]: an empty file, an empty or doubled column name, and
    /// whatever [`read`](Self::read) refuses.
    pub fn open(input: R, file: &str) -> Result<Reader<R>> {
        Reader::open_bounded(input, file, RECORD_BYTES_MAX)
    }

    fn open_bounded(mut input: R, file: &str, record_bytes_max: u64) -> Result<Reader<R>> {
        let mut start = Vec::new();
        (&mut input)
            .take(BYTE_ORDER_MARK.len() as u64)
            .read_to_end(&mut start)
            .map_err(|cause| Error::io(format!("read {file}"), cause))?;
        if start == BYTE_ORDER_MARK {
            start.clear();
        }
        let mut reader = Reader {
            input: BufReader::with_capacity(BUFFER_BYTES, Cursor::new(start).chain(input)),
            file: file.to_owned(),
            header: Vec::new(),
            line: 1,
            record_bytes_max,
        };
        reader.header = reader.read_header()?;
        Ok(reader)
    }

    /// The column names, in order; not empty, each there once.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// What is read from; at the end of the file every byte of it was asked for.
    pub fn input(&self) -> &R {
        self.input.get_ref().get_ref().1
    }

    /// Replaces `record` by the next one; `false` at the end of the file.
    ///
    /// # Errors
    /// [`Kind::Usage`], with file and line: another number of fields than the
    /// header, a quote that is not closed or out of place, a lone carriage return,
    /// bytes that are not UTF-8, a record beyond [`RECORD_BYTES_MAX`]. The reader
    /// is spent then.
    pub fn read(&mut self, record: &mut Record) -> Result<bool> {
        if !self.read_record(record)? {
            return Ok(false);
        }
        if record.fields.len() != self.header.len() {
            let message = format!(
                "found {}, expected {} as in the header; a field that holds a comma needs quotes",
                counted(record.fields.len(), "field"),
                self.header.len()
            );
            return Err(self.refuse(record.line, message));
        }
        Ok(true)
    }

    fn read_header(&mut self) -> Result<Vec<String>> {
        let mut record = Record::new();
        if !self.read_record(&mut record)? {
            return Err(self.refuse(1, "the file is empty, expected a header with column names"));
        }
        let mut seen = BTreeMap::new();
        for (field, number) in record.fields().zip(1..) {
            if field.text.is_empty() {
                let message = format!("column {number} of the header has no name");
                return Err(self.refuse(record.line, message));
            }
            if let Some(first) = seen.insert(field.text, number) {
                let message = format!(
                    "columns {first} and {number} of the header are both named `{}`",
                    field.text
                );
                return Err(self.refuse(record.line, message));
            }
        }
        Ok(record.fields().map(|field| field.text.to_owned()).collect())
    }

    fn read_record(&mut self, record: &mut Record) -> Result<bool> {
        let mut bytes = std::mem::take(&mut record.text).into_bytes();
        let mut fields = std::mem::take(&mut record.fields);
        bytes.clear();
        fields.clear();
        if self.peek()?.is_none() {
            return Ok(false);
        }
        let mut read = Unverified { line: self.line, bytes, fields };
        loop {
            let quoted = self.peek()? == Some(b'"');
            let delimiter = if quoted {
                self.read_quoted_field(&mut read)?
            } else {
                self.read_plain_field(&mut read)?
            };
            let end = u32::try_from(read.bytes.len()).expect("a record is bounded: see push");
            read.fields.push(FieldEnd { end, quoted });
            if delimiter != Delimiter::Comma {
                break;
            }
        }
        *record = self.verify(read)?;
        Ok(true)
    }

    fn read_plain_field(&mut self, read: &mut Unverified) -> Result<Delimiter> {
        loop {
            let chunk = fill(&mut self.input, &self.file)?;
            let is_special = |byte: &u8| matches!(byte, b',' | b'"' | b'\n' | b'\r');
            let Some(stop) = chunk.iter().position(is_special) else {
                if chunk.is_empty() {
                    return Ok(Delimiter::FileEnd);
                }
                let count = chunk.len();
                self.push(read, count, None)?;
                continue;
            };
            let special = chunk[stop];
            self.push(read, stop, None)?;
            if special == b'"' {
                let message = format!(
                    "field {} holds a quote but does not begin with one; put the field in quotes and double the quote",
                    read.fields.len() + 1
                );
                return Err(self.refuse(self.line, message));
            }
            return Ok(self
                .read_delimiter()?
                .expect("a delimiter stands here: it stopped the field"));
        }
    }

    fn read_quoted_field(&mut self, read: &mut Unverified) -> Result<Delimiter> {
        let opened = self.line;
        let number = read.fields.len() + 1;
        self.input.consume(1);
        loop {
            let chunk = fill(&mut self.input, &self.file)?;
            if chunk.is_empty() {
                let message = format!("the quote that opens field {number} is never closed");
                return Err(self.refuse(opened, message));
            }
            let stop = chunk.iter().position(|byte| *byte == b'"');
            let count = stop.unwrap_or(chunk.len());
            let lines = chunk[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.push(read, count, Some(opened))?;
            self.line += lines;
            if stop.is_none() {
                continue;
            }
            self.input.consume(1);
            if self.peek()? == Some(b'"') {
                self.push(read, 1, Some(opened))?;
                continue;
            }
            return self.read_delimiter()?.ok_or_else(|| {
                let message = format!(
                    "field {number} goes on behind its closing quote, expected a comma or the end of the line; a quote inside quotes is doubled"
                );
                self.refuse(self.line, message)
            });
        }
    }

    /// Takes a comma or a line end; `None`, nothing taken, if something else stands here.
    fn read_delimiter(&mut self) -> Result<Option<Delimiter>> {
        let Some(byte) = self.peek()? else { return Ok(Some(Delimiter::FileEnd)) };
        match byte {
            b',' => {
                self.input.consume(1);
                return Ok(Some(Delimiter::Comma));
            }
            b'\n' => {}
            b'\r' => {
                self.input.consume(1);
                if self.peek()? != Some(b'\n') {
                    let message =
                        "found a carriage return outside quotes, expected a line feed behind it";
                    return Err(self.refuse(self.line, message));
                }
            }
            _ => return Ok(None),
        }
        self.input.consume(1);
        self.line += 1;
        Ok(Some(Delimiter::LineEnd))
    }

    /// Moves `count` buffered bytes into the record, if it stays within its bound.
    fn push(&mut self, read: &mut Unverified, count: usize, quote: Option<u64>) -> Result<()> {
        let cost =
            (read.bytes.len() + count) as u64 + (read.fields.len() as u64 + 1) * FIELD_COST_BYTES;
        if cost > self.record_bytes_max {
            let hint = quote.map_or(String::new(), |line| {
                format!("; is the quote that opens on line {line} closed?")
            });
            let message =
                format!("the record is larger than {} bytes{hint}", self.record_bytes_max);
            return Err(self.refuse(read.line, message));
        }
        read.bytes.extend_from_slice(&self.input.buffer()[..count]);
        self.input.consume(count);
        Ok(())
    }

    fn verify(&self, read: Unverified) -> Result<Record> {
        let Unverified { line, bytes, fields } = read;
        let bad_at = |at: usize, bytes: &[u8]| {
            let line = line + bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
            let number = fields.iter().take_while(|field| field.end as usize <= at).count() + 1;
            self.refuse(line, format!("field {number} holds bytes that are not UTF-8"))
        };
        let text = String::from_utf8(bytes)
            .map_err(|cause| bad_at(cause.utf8_error().valid_up_to(), cause.as_bytes()))?;
        // Two halves of a character on both sides of a comma make sense only together.
        if let Some(split) = fields.iter().find(|field| !text.is_char_boundary(field.end as usize))
        {
            return Err(bad_at(split.end as usize - 1, text.as_bytes()));
        }
        Ok(Record { line, text, fields })
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(fill(&mut self.input, &self.file)?.first().copied())
    }

    fn refuse(&self, line: u64, message: impl AsRef<str>) -> Error {
        Error::new(Kind::Usage, format!("{}, line {line}: {}", self.file, message.as_ref()))
    }
}

fn fill<'a, R: Read>(input: &'a mut BufReader<R>, file: &str) -> Result<&'a [u8]> {
    // Asked twice, because a borrow that is returned cannot live through the loop.
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(Error::io(format!("read {file}"), cause)),
        }
    }
    Ok(input.buffer())
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out its bytes in pieces of one, so that every buffer end is met.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let (Some(byte), Some(slot)) = (self.0.first(), out.first_mut()) else { return Ok(0) };
            *slot = *byte;
            self.0 = &self.0[1..];
            Ok(1)
        }
    }

    type Rows = Vec<(u64, Vec<(String, bool)>)>;

    fn rows<R: Read>(mut reader: Reader<R>) -> Result<Rows> {
        let mut record = Record::new();
        let mut rows = Vec::new();
        while reader.read(&mut record)? {
            let fields = record.fields().map(|field| (field.text.to_owned(), field.quoted));
            rows.push((record.line(), fields.collect()));
        }
        Ok(rows)
    }

    #[track_caller]
    fn read(text: &[u8]) -> Result<Rows> {
        let whole = Reader::open(text, "t.csv").and_then(rows);
        let dribbled = Reader::open(Dribble(text), "t.csv").and_then(rows);
        assert_eq!(format!("{whole:?}"), format!("{dribbled:?}"));
        whole
    }

    #[track_caller]
    fn refused(text: &[u8], line: u64, expected: &str) {
        let error = read(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        let message = error.message();
        assert!(message.starts_with(&format!("t.csv, line {line}: ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }

    fn fields(row: &[(&str, bool)]) -> Vec<(String, bool)> {
        row.iter().map(|(text, quoted)| ((*text).to_owned(), *quoted)).collect()
    }

    #[test]
    fn an_empty_field_is_null_unless_it_is_quoted() {
        let rows = read(b"a,b,c\n,\"\",x\n").unwrap();
        assert_eq!(rows, [(2, fields(&[("", false), ("", true), ("x", false)]))]);
    }

    #[test]
    fn quoted_fields_hold_commas_quotes_and_lines() {
        let rows = read(b"a,b\r\n\"x,\"\"y\"\"\",\"1\r\n2\n3\"\r\nu,v").unwrap();
        assert_eq!(
            rows,
            [
                (2, fields(&[("x,\"y\"", true), ("1\r\n2\n3", true)])),
                (5, fields(&[("u", false), ("v", false)])),
            ]
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        let reader = Reader::open(&b"\xef\xbb\xbf\"a\",b\n"[..], "t.csv").unwrap();
        assert_eq!(reader.header(), ["a", "b"]);
        let reader = Reader::open(&b"\xef\xbb\xbf\xef\xbb\xbfa\n"[..], "t.csv").unwrap();
        assert_eq!(reader.header(), ["\u{feff}a"]);
    }

    #[test]
    fn a_blank_line_is_a_null_in_one_column_and_ragged_in_two() {
        assert_eq!(read(b"a\n\nx\n").unwrap()[0], (2, fields(&[("", false)])));
        refused(b"a,b\n1,2\n\n", 3, "found 1 field, expected 2");
    }

    #[test]
    fn a_header_without_rows_is_a_file_without_rows() {
        for text in [&b"a,b"[..], b"a,b\n", b"a,b\r\n"] {
            assert_eq!(read(text).unwrap(), []);
        }
    }

    #[test]
    fn ragged_rows_are_refused_with_line_found_and_expected() {
        refused(b"a,b\n1,2\n\"x\ny\",2\n1,2,3\n", 5, "found 3 fields, expected 2");
        refused(b"a,b\n1\n", 2, "found 1 field, expected 2");
    }

    #[test]
    fn quotes_out_of_place_are_refused_where_they_stand() {
        refused(b"a,b\n1,x\"y\n", 2, "field 2 holds a quote");
        refused(b"a,b\n1,\"x\ny\"z\n", 3, "field 2 goes on behind its closing quote");
        refused(b"a,b\n1,2\n\"x\",\"y\nz\n", 3, "field 2 is never closed");
        refused(b"a,b\n1,2\n\"x", 3, "field 1 is never closed");
        refused(b"a,b\n1,\"\n\"\n\"x\ny\",\"", 5, "field 2 is never closed");
    }

    #[test]
    fn a_lone_carriage_return_is_refused() {
        refused(b"a\n1\r2\n", 2, "carriage return");
        refused(b"a\n1\r", 2, "carriage return");
        refused(b"a\n\"1\"\r\r\n", 2, "carriage return");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_on_their_line() {
        refused(b"a,b\n1,\xff\n", 2, "field 2 holds bytes that are not UTF-8");
        refused(b"a,b\n1,\"x\n\xc3\"\n", 3, "field 2");
        refused(b"a,b\n\xc3,\xa9\n", 2, "field 1");
        refused(b"a\xff,b\n", 1, "field 1");
        assert!(read(b"a,b\n\xc3\xa9,x\n").is_ok());
    }

    #[test]
    fn headers_without_names_or_with_doubles_are_refused() {
        refused(b"", 1, "the file is empty");
        refused(b"\xef\xbb\xbf", 1, "the file is empty");
        refused(b"a,,b\n", 1, "column 2 of the header has no name");
        refused(b"\na\n", 1, "column 1 of the header has no name");
        refused(b"a,b,a\n", 1, "columns 1 and 3 of the header are both named `a`");
    }

    #[test]
    fn a_record_beyond_its_bound_is_refused() {
        let bounded =
            |text: &'static str| Reader::open_bounded(text.as_bytes(), "t.csv", 64).and_then(rows);
        assert!(bounded("a\n12345678901234567890123456789012345678901234567890\n").is_ok());
        let long = "a\nx\n1234567890123456789012345678901234567890123456789012345678901234567890\n";
        let error = bounded(long).unwrap_err();
        assert_eq!(error.message(), "t.csv, line 3: the record is larger than 64 bytes");
        let error = bounded("a\n,,,,,,,,,,,,,,,,,,,,,\n").unwrap_err();
        assert!(error.message().contains("larger than 64 bytes"), "{error}");
        let open = "a\nx\n\"12345678901234567890123456789012345678901234567890\n1234567890\n";
        let error = bounded(open).unwrap_err();
        assert!(error.message().ends_with("is the quote that opens on line 3 closed?"), "{error}");
    }

    #[test]
    fn a_reader_that_fails_is_told_with_the_file() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let error = Reader::open(b"a,b\n".chain(Failing), "t.csv").and_then(rows).unwrap_err();
        assert_eq!(error.chain(), "read t.csv: gone");
    }
}
