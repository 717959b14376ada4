//! The part of Thrift's compact protocol that Parquet's headers are written in.
//!
//! Source: Apache Thrift, `doc/specs/thrift-compact-protocol.md`. The parquet
//! crate keeps its own codec private, and a page header must be looked at before
//! anything is allocated for what it announces.

/// Wire types; the values are the protocol's.
pub(super) mod wire {
    pub(in super::super) const TRUE: u8 = 1;
    pub(in super::super) const FALSE: u8 = 2;
    pub(in super::super) const BYTE: u8 = 3;
    pub(in super::super) const I16: u8 = 4;
    pub(in super::super) const I32: u8 = 5;
    pub(in super::super) const I64: u8 = 6;
    pub(in super::super) const DOUBLE: u8 = 7;
    pub(in super::super) const BINARY: u8 = 8;
    pub(in super::super) const LIST: u8 = 9;
    pub(in super::super) const SET: u8 = 10;
    pub(in super::super) const MAP: u8 = 11;
    pub(in super::super) const STRUCT: u8 = 12;
}

/// Nested values that are skipped at most; Parquet's own headers nest six deep.
const SKIP_DEPTH_MAX: u32 = 16;

/// Writes one struct: its fields in ascending id, then [`end`](Self::end).
pub(super) struct StructWriter<'a> {
    out: &'a mut Vec<u8>,
    last_id: u8,
}

impl<'a> StructWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> StructWriter<'a> {
        StructWriter { out, last_id: 0 }
    }

    fn field(&mut self, id: u8, kind: u8) {
        // Deltas up to 15 fit the short form; no struct of Parquet's has a wider gap.
        self.out.push((id - self.last_id) << 4 | kind);
        self.last_id = id;
    }

    pub(super) fn bool(&mut self, id: u8, value: bool) {
        self.field(id, if value { wire::TRUE } else { wire::FALSE });
    }

    pub(super) fn i32(&mut self, id: u8, value: i32) {
        self.field(id, wire::I32);
        put_zigzag(i64::from(value), self.out);
    }

    pub(super) fn i64(&mut self, id: u8, value: i64) {
        self.field(id, wire::I64);
        put_zigzag(value, self.out);
    }

    pub(super) fn binary(&mut self, id: u8, value: &[u8]) {
        self.field(id, wire::BINARY);
        put_binary(value, self.out);
    }

    pub(super) fn structure(&mut self, id: u8, write: impl FnOnce(&mut StructWriter<'_>)) {
        self.field(id, wire::STRUCT);
        write_struct(self.out, write);
    }

    /// A list of `items`, each written by `write` as a bare value of wire type `kind`.
    pub(super) fn list<T>(
        &mut self,
        id: u8,
        kind: u8,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Vec<u8>, T),
    ) {
        self.field(id, wire::LIST);
        match u8::try_from(items.len()) {
            Ok(count) if count < 15 => self.out.push(count << 4 | kind),
            _ => {
                self.out.push(0xf0 | kind);
                put_varint(items.len() as u64, self.out);
            }
        }
        for item in items {
            write(self.out, item);
        }
    }

    fn end(self) {
        self.out.push(0);
    }
}

/// Writes a whole struct.
pub(super) fn write_struct(out: &mut Vec<u8>, write: impl FnOnce(&mut StructWriter<'_>)) {
    let mut writer = StructWriter::new(out);
    write(&mut writer);
    writer.end();
}

pub(super) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    put_varint((value << 1 ^ value >> 63) as u64, out);
}

pub(super) fn put_binary(value: &[u8], out: &mut Vec<u8>) {
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Reads values off a slice; `None` from any method means the bytes are not what they should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// What a struct's callback did with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldIs {
    /// Its value was read.
    Taken,
    /// Its value is still to be skipped.
    Unknown,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes not yet read.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return None;
            }
            number |= low << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        let number = self.varint()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        i32::try_from(self.i64()?).ok()
    }

    pub(super) fn binary(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.binary()?).ok()
    }

    /// Calls `field` with the reader, id and wire type of each field of a struct.
    pub(super) fn structure(
        &mut self,
        mut field: impl FnMut(&mut Reader<'a>, i16, u8) -> Option<FieldIs>,
    ) -> Option<()> {
        self.fields(SKIP_DEPTH_MAX, &mut field)
    }

    fn fields(
        &mut self,
        depth: u32,
        field: &mut dyn FnMut(&mut Reader<'a>, i16, u8) -> Option<FieldIs>,
    ) -> Option<()> {
        let mut id = 0i16;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(());
            }
            id = match header >> 4 {
                0 => i16::try_from(self.i64()?).ok()?,
                delta => id.checked_add(i16::from(delta))?,
            };
            let kind = header & 0x0f;
            if field(self, id, kind)? == FieldIs::Unknown {
                self.skip(kind, depth)?;
            }
        }
    }

    /// Calls `item` for each element of a list of wire type `kind`.
    pub(super) fn list(
        &mut self,
        kind: u8,
        mut item: impl FnMut(&mut Reader<'a>) -> Option<()>,
    ) -> Option<()> {
        let (found, count) = self.list_header()?;
        if count > 0 && found != kind {
            return None;
        }
        (0..count).try_for_each(|_| item(self))
    }

    fn list_header(&mut self) -> Option<(u8, u64)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        // Every element takes at least a byte, so a false count ends here.
        (count <= self.rest.len() as u64).then_some((header & 0x0f, count))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            // In a field a bool is in the header; in a collection it is a byte: see below.
            wire::TRUE | wire::FALSE => {}
            wire::BYTE => {
                self.byte()?;
            }
            wire::I16 | wire::I32 | wire::I64 => {
                self.varint()?;
            }
            wire::DOUBLE => self.rest = self.rest.get(8..)?,
            wire::BINARY => {
                self.binary()?;
            }
            wire::LIST | wire::SET => {
                let (kind, count) = self.list_header()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))?;
            }
            wire::MAP => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    (0..count).try_for_each(|_| {
                        self.skip_element(kinds >> 4, depth)?;
                        self.skip_element(kinds & 0x0f, depth)
                    })?;
                }
            }
            wire::STRUCT => self.fields(depth, &mut |_, _, _| Some(FieldIs::Unknown))?,
            _ => return None,
        }
        Some(())
    }

    fn skip_element(&mut self, kind: u8, depth: u32) -> Option<()> {
        match kind {
            wire::TRUE | wire::FALSE => self.byte().map(|_| ()),
            _ => self.skip(kind, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_fields_of_every_kind_are_skipped() {
        let mut bytes = Vec::new();
        write_struct(&mut bytes, |out| {
            out.bool(1, true);
            out.i32(2, -5);
            out.binary(3, b"abc");
            out.structure(4, |inner| inner.bool(2, false));
            out.list(5, wire::I64, 0..20i32, |out, item| put_zigzag(item.into(), out));
            out.list(6, wire::TRUE, 0..2, |out, _| out.push(1));
            out.i64(20, i64::MIN);
        });
        let mut found = None;
        Reader::new(&bytes)
            .structure(|reader, id, _| match id {
                20 => {
                    found = Some(reader.i64()?);
                    Some(FieldIs::Taken)
                }
                _ => Some(FieldIs::Unknown),
            })
            .unwrap();
        assert_eq!(found, Some(i64::MIN));
    }

    #[test]
    fn every_truncated_struct_is_refused() {
        let mut bytes = Vec::new();
        write_struct(&mut bytes, |out| {
            out.i32(1, 300);
            out.binary(2, b"name");
            out.list(3, wire::BINARY, 0..16, |out, _| put_binary(b"x", out));
        });
        for len in 0..bytes.len() {
            let read = Reader::new(&bytes[..len]).structure(|_, _, _| Some(FieldIs::Unknown));
            assert_eq!(read, None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).structure(|_, _, _| Some(FieldIs::Unknown));
        }

        #[test]
        fn numbers_read_back(value: i64) {
            let mut bytes = Vec::new();
            put_zigzag(value, &mut bytes);
            prop_assert_eq!(Reader::new(&bytes).i64(), Some(value));
        }
    }
}
