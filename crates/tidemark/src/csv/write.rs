//! Writes records with as few quotes as can be, one line feed behind each.

use std::io::Write;

use crate::error::{Error, Result};
use crate::row::Value;

/// Writes CSV that [`Reader`](super::Reader) reads back as it was.
///
/// Quotes stand only around fields that hold a comma, a quote, a carriage
/// return or a line feed, and around a text that is empty but not NULL.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    /// The record being written, a comma behind every field.
    line: Vec<u8>,
    text: String,
    byte_count: u64,
}

impl<W: Write> Writer<W> {
    /// A writer into `output`, which should be buffered.
    pub fn new(output: W) -> Writer<W> {
        Writer { output, line: Vec::new(), text: String::new(), byte_count: 0 }
    }

    /// Writes a record of column names.
    ///
    /// # Errors
    /// Whatever the output says; what was written before stays.
    pub fn header<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        for name in names {
            self.put(Some(name));
        }
        self.end_record()
    }

    /// Writes the text forms of `row`, in the order given.
    ///
    /// # Errors
    /// As [`header`](Self::header).
    pub fn row<'a>(&mut self, row: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        let mut text = std::mem::take(&mut self.text);
        for value in row {
            text.clear();
            value.print(&mut text);
            self.put((*value != Value::Null).then_some(text.as_str()));
        }
        self.text = text;
        self.end_record()
    }

    /// Flushes, and gives the bytes written.
    ///
    /// # Errors
    /// As [`header`](Self::header).
    pub fn finish(mut self) -> Result<u64> {
        self.output.flush().map_err(write_error)?;
        Ok(self.byte_count)
    }

    fn put(&mut self, field: Option<&str>) {
        // A byte order mark that begins the file would be skipped by its reader.
        let looks_like_mark = |text: &str| {
            self.byte_count == 0 && self.line.is_empty() && text.starts_with('\u{feff}')
        };
        match field {
            None => {}
            Some(text) if needs_quotes(text) || looks_like_mark(text) => {
                self.line.push(b'"');
                for byte in text.bytes() {
                    if byte == b'"' {
                        self.line.push(b'"');
                    }
                    self.line.push(byte);
                }
                self.line.push(b'"');
            }
            Some(text) => self.line.extend_from_slice(text.as_bytes()),
        }
        self.line.push(b',');
    }

    fn end_record(&mut self) -> Result<()> {
        self.line.pop();
        self.line.push(b'\n');
        self.output.write_all(&self.line).map_err(write_error)?;
        self.byte_count += self.line.len() as u64;
        self.line.clear();
        Ok(())
    }
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty() || text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n'))
}

fn write_error(cause: std::io::Error) -> Error {
    Error::io("write CSV", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(row: &[Value]) -> String {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer.row(row).unwrap();
        assert_eq!(writer.finish().unwrap(), out.len() as u64);
        String::from_utf8(out).unwrap()
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn quotes_stand_only_where_they_must() {
        let row = [text("a b"), text("a,b"), text("a\"b"), text("a\rb"), text("a\nb"), text("'")];
        assert_eq!(written(&row), "a b,\"a,b\",\"a\"\"b\",\"a\rb\",\"a\nb\",'\n");
    }

    #[test]
    fn null_is_nothing_and_the_empty_text_is_quotes() {
        assert_eq!(written(&[Value::Null, text(""), Value::Null]), ",\"\",\n");
        assert_eq!(written(&[Value::Null]), "\n");
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::Error::from_raw_os_error(28))
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = Writer::new(Full).row(&[Value::Null]).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Blocked);
    }
}
