//! The bytes of single values: in payloads, in pages, in keys.
//!
//! Parquet's PLAIN form of every fixed-width type is the payload's form of it, and so
//! are the bytes of a text; a boolean here is one byte. Only keys differ.

use crate::row::LogicalType;
use crate::row::key::{
    encode_key_bytes, encode_key_decimal, encode_key_f64, encode_key_i32, encode_key_i64,
};
use crate::row::payload::canonical_f64;
use crate::row::value::is_decimal;

/// Whether `value`, in payload form and of the type's width, is a canonical value of the type.
pub(super) fn bytes_fit(logical: LogicalType, value: &[u8]) -> bool {
    match logical {
        LogicalType::Bool => matches!(value, [0] | [1]),
        LogicalType::Text => std::str::from_utf8(value).is_ok(),
        LogicalType::Decimal => std::str::from_utf8(value).is_ok_and(is_decimal),
        LogicalType::Float64 => value.first_chunk().is_some_and(|bytes| {
            let float = f64::from_le_bytes(*bytes);
            float.to_bits() == canonical_f64(float).to_bits()
        }),
        LogicalType::Int64
        | LogicalType::Bytes
        | LogicalType::Date
        | LogicalType::Timestamp
        | LogicalType::TimestampTz
        | LogicalType::Uuid => true,
    }
}

/// Appends the key form of a value of which [`bytes_fit`] holds.
pub(super) fn encode_key(logical: LogicalType, value: &[u8], out: &mut Vec<u8>) {
    let eight = || *value.first_chunk::<8>().expect("the physical type has 8 bytes");
    match logical {
        LogicalType::Bool | LogicalType::Uuid => out.extend_from_slice(value),
        LogicalType::Int64 | LogicalType::Timestamp | LogicalType::TimestampTz => {
            encode_key_i64(i64::from_le_bytes(eight()), out);
        }
        LogicalType::Date => {
            let four = *value.first_chunk::<4>().expect("the physical type has 4 bytes");
            encode_key_i32(i32::from_le_bytes(four), out);
        }
        LogicalType::Float64 => encode_key_f64(f64::from_le_bytes(eight()), out),
        LogicalType::Decimal => {
            encode_key_decimal(std::str::from_utf8(value).expect("a decimal is ASCII"), out);
        }
        LogicalType::Text | LogicalType::Bytes => encode_key_bytes(value, out),
    }
}

/// Takes an escaped text or bytes value off a key; `None` if the key ends inside it.
pub(super) fn take_key_bytes(rest: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    loop {
        let zero = rest.iter().position(|byte| *byte == 0)?;
        out.extend_from_slice(&rest[..zero]);
        let after = *rest.get(zero + 1)?;
        *rest = &rest[zero + 2..];
        match after {
            0 => return Some(()),
            0xff => out.push(0),
            _ => return None,
        }
    }
}

/// Passes a decimal in a key; `None` if the key ends inside it.
pub(super) fn skip_key_decimal(rest: &mut &[u8]) -> Option<()> {
    let end = match rest.split_off_first()? {
        0x20 => 0xff,
        0x40 => 0,
        _ => return Some(()),
    };
    // Four bytes of exponent, then digits up to the end.
    let digit_count = rest.get(4..)?.iter().position(|byte| *byte == end)?;
    *rest = &rest[4 + digit_count + 1..];
    Some(())
}
