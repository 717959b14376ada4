//! The few shapes that binary records are made of.
//!
//! Integers are little-endian, `varint` is LEB128 of a `u64`, `bytes` is a
//! varint length and that many bytes, `text` is bytes of UTF-8. Every record
//! starts with a version byte.

use crate::error::{Error, Kind, Result};

/// Writes a record.
#[derive(Debug)]
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(super) fn new(version: u8) -> Writer {
        Writer { out: vec![version] }
    }

    pub(super) fn u8(&mut self, number: u8) -> &mut Writer {
        self.out.push(number);
        self
    }

    pub(super) fn varint(&mut self, mut number: u64) -> &mut Writer {
        while number >= 0x80 {
            self.out.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
        self
    }

    pub(super) fn u128(&mut self, number: u128) -> &mut Writer {
        self.out.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Writer {
        self.bytes(text.as_bytes())
    }

    /// A flag byte, then the value if there is one.
    pub(super) fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Writer, T),
    ) -> &mut Writer {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Reads a record; every mistake in the bytes is an error that names the record.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the version byte.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another version, [`Kind::Broken`] for no byte at all.
    pub(super) fn new(record: &'static str, version: u8, bytes: &'a [u8]) -> Result<Reader<'a>> {
        match bytes.split_first() {
            Some((&found, rest)) if found == version => Ok(Reader { record, rest }),
            Some((&found, _)) => {
                let message = format!(
                    "a {record} record has version {found}, this program reads {version}; \
                     use the program that wrote it"
                );
                Err(Error::new(Kind::Unsupported, message))
            }
            None => Err(Reader { record, rest: bytes }.broken("is empty")),
        }
    }

    pub(super) fn broken(&self, what: &str) -> Error {
        Error::new(Kind::Broken, format!("a {} record {what}", self.record))
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            number |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.broken("holds a number beyond 64 bits"))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| self.broken("holds a number beyond 32 bits"))
    }

    pub(super) fn u128(&mut self) -> Result<u128> {
        let bytes = self.take(16)?;
        Ok(u128::from_le_bytes(bytes.try_into().expect("16 bytes were taken")))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| self.broken("holds an impossible length"))?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.broken("holds text that is not UTF-8"))
    }

    pub(super) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.broken("holds a flag that is neither 0 nor 1")),
        }
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.broken("is longer than it should be")) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| self.broken("is truncated"))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Checks a codec: the bytes read back, and every prefix and every longer record is refused.
#[cfg(test)]
#[track_caller]
pub(super) fn check_codec<T: PartialEq + std::fmt::Debug>(
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T>,
) {
    let mut bytes = encode(value);
    assert_eq!(&decode(&bytes).unwrap(), value);
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len]).unwrap_err().kind(), Kind::Broken, "prefix of {len}");
    }
    bytes.push(0);
    assert_eq!(decode(&bytes).unwrap_err().kind(), Kind::Broken);
    bytes[0] = 0xee;
    assert_eq!(decode(&bytes).unwrap_err().kind(), Kind::Unsupported);
}
