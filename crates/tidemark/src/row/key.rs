//! The canonical key encoding, and ranges of keys.
//!
//! `memcmp` of two encoded keys is the order of the rows, whatever a database's
//! collation says. Columns follow one another in key order, none is NULL:
//!
//! | type | bytes |
//! |---|---|
//! | bool | `00` or `01` |
//! | int64, timestamp, timestamp_tz | 8, big-endian, sign bit flipped |
//! | date | 4, big-endian, sign bit flipped |
//! | float64 | 8, big-endian; sign bit flipped if positive, all bits if negative; `-0.0` as `0.0`; one NaN, last |
//! | decimal | class byte, then for finite non-zero values exponent (4, as date) and digits (digit + 1 each), `00`; all inverted if negative |
//! | text, bytes | bytes, `00` as `00 ff`; then `00 00` |
//! | uuid | 16 |
//!
//! Decimal classes: `10` -Infinity, `20` negative, `30` zero, `40` positive,
//! `50` Infinity, `60` NaN. Digits carry no leading or trailing zeros, the value
//! is `0.digits × 10^exponent`: `1.0` and `1.00` are one key.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::row::schema::LogicalType;
use crate::row::value::{Value, hex};

/// Keys from `start` on, up to but without `end`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key that belongs; empty for the very first.
    #[serde(with = "hex_bytes")]
    pub start: Vec<u8>,
    /// First key that does not; `None` for no end.
    #[serde(with = "hex_bytes::option")]
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Every key.
    pub const ALL: KeyRange = KeyRange { start: Vec::new(), end: None };

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether any key from `first` to `last`, both included, is inside.
    pub fn overlaps(&self, first: &[u8], last: &[u8]) -> bool {
        *self.start <= *last && self.end.as_deref().is_none_or(|end| first < end)
    }

    /// The ranges between `splits`, which are ascending: one more than there are splits.
    pub fn between(splits: &[Vec<u8>]) -> Vec<KeyRange> {
        let starts = std::iter::once(Vec::new()).chain(splits.iter().cloned());
        let ends = splits.iter().cloned().map(Some).chain(std::iter::once(None));
        starts.zip(ends).map(|(start, end)| KeyRange { start, end }).collect()
    }

    /// Whether `ranges` hold every key, each in one of them, and are in order.
    pub(crate) fn cover_all<'a>(mut ranges: impl Iterator<Item = &'a KeyRange>) -> bool {
        let mut next = Some(&[][..]);
        let seamless = ranges.all(|range| {
            let follows = next == Some(&*range.start);
            next = range.end.as_deref();
            follows && next.is_none_or(|end| *range.start < *end)
        });
        seamless && next.is_none()
    }
}

impl std::fmt::Display for KeyRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end =
            self.end.as_deref().map_or_else(|| "end".to_owned(), |end| format!("0x{}", hex(end)));
        let start = if self.start.is_empty() {
            "start".to_owned()
        } else {
            format!("0x{}", hex(&self.start))
        };
        write!(f, "[{start}, {end})")
    }
}

/// The order of two keys, as `memcmp` has it.
///
/// Mostly the first eight bytes decide. Asking them first also spares what a call to `memcmp`
/// costs on a key that was written just before: its wide loads wait for those stores.
#[inline]
pub(crate) fn compare_keys(a: &[u8], b: &[u8]) -> Ordering {
    if let (Some(first_a), Some(first_b)) = (a.first_chunk::<8>(), b.first_chunk::<8>())
        && first_a != first_b
    {
        return u64::from_be_bytes(*first_a).cmp(&u64::from_be_bytes(*first_b));
    }
    a.cmp(b)
}

/// Appends the key form of `value`.
///
/// # Errors
/// [`Kind::Usage`] for NULL, which no key holds.
pub fn encode_key_value(value: &Value, out: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Null => {
            return Err(Error::new(
                Kind::Usage,
                "a key column is NULL; every key column needs a value",
            ));
        }
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Int64(value) | Value::Timestamp(value) | Value::TimestampTz(value) => {
            encode_key_i64(*value, out);
        }
        Value::Date(days) => encode_key_i32(*days, out),
        Value::Float64(value) => encode_key_f64(*value, out),
        Value::Decimal(text) => encode_key_decimal(text, out),
        Value::Text(text) => encode_key_bytes(text.as_bytes(), out),
        Value::Bytes(bytes) => encode_key_bytes(bytes, out),
        Value::Uuid(bits) => out.extend_from_slice(&bits.to_be_bytes()),
    }
    Ok(())
}

pub(crate) fn encode_key_i64(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&(value as u64 ^ 1 << 63).to_be_bytes());
}

pub(crate) fn encode_key_i32(value: i32, out: &mut Vec<u8>) {
    out.extend_from_slice(&(value as u32 ^ 1 << 31).to_be_bytes());
}

pub(crate) fn encode_key_f64(value: f64, out: &mut Vec<u8>) {
    let value = if value.is_nan() {
        f64::NAN
    } else if value == 0.0 {
        0.0
    } else {
        value
    };
    let bits = value.to_bits() & if value.is_nan() { !(1 << 63) } else { u64::MAX };
    let ordered = if bits >> 63 == 0 { bits ^ 1 << 63 } else { !bits };
    out.extend_from_slice(&ordered.to_be_bytes());
}

pub(crate) fn encode_key_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// `text` is canonical: see [`Value::Decimal`].
pub(crate) fn encode_key_decimal(text: &str, out: &mut Vec<u8>) {
    match text {
        "-Infinity" => return out.push(0x10),
        "Infinity" => return out.push(0x50),
        "NaN" => return out.push(0x60),
        _ => {}
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|byte| byte - b'0').collect();
    let Some(first) = digits.iter().position(|digit| *digit != 0) else {
        return out.push(0x30);
    };
    let last = digits.iter().rposition(|digit| *digit != 0).expect("a digit is not zero");
    let exponent = whole.len() as i32 - first as i32;

    out.push(if negative { 0x20 } else { 0x40 });
    let from = out.len();
    encode_key_i32(exponent, out);
    out.extend(digits[first..=last].iter().map(|digit| digit + 1));
    out.push(0);
    if negative {
        out[from..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// Takes the first value of type `logical` off `key`; `None` if the bytes are no such value.
///
/// A float or decimal comes back as the representative of its key: see
/// [`LogicalType::key_is_exact`].
pub fn decode_key_value(logical: LogicalType, key: &mut &[u8]) -> Option<Value> {
    let value = match logical {
        LogicalType::Bool => match take(key, 1)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return None,
        },
        LogicalType::Int64 => Value::Int64(take_i64(key)?),
        LogicalType::Timestamp => Value::Timestamp(take_i64(key)?),
        LogicalType::TimestampTz => Value::TimestampTz(take_i64(key)?),
        LogicalType::Date => {
            let bytes: [u8; 4] = take(key, 4)?.try_into().ok()?;
            Value::Date((u32::from_be_bytes(bytes) ^ 1 << 31) as i32)
        }
        LogicalType::Float64 => {
            let bytes: [u8; 8] = take(key, 8)?.try_into().ok()?;
            let ordered = u64::from_be_bytes(bytes);
            let bits = if ordered >> 63 == 1 { ordered ^ 1 << 63 } else { !ordered };
            let value = f64::from_bits(bits);
            // Of zeros and of NaNs one each is in keys.
            let is_zero_or_nan = value == 0.0 || value.is_nan();
            let is_another = is_zero_or_nan && bits != 0 && bits != f64::NAN.to_bits();
            Value::Float64((!is_another).then_some(value)?)
        }
        LogicalType::Decimal => Value::Decimal(take_decimal(key)?),
        LogicalType::Text => Value::Text(String::from_utf8(take_bytes(key)?).ok()?),
        LogicalType::Bytes => Value::Bytes(take_bytes(key)?),
        LogicalType::Uuid => {
            let bytes: [u8; 16] = take(key, 16)?.try_into().ok()?;
            Value::Uuid(u128::from_be_bytes(bytes))
        }
    };
    Some(value)
}

fn take<'a>(key: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = key.split_at_checked(len)?;
    *key = rest;
    Some(taken)
}

fn take_i64(key: &mut &[u8]) -> Option<i64> {
    let bytes: [u8; 8] = take(key, 8)?.try_into().ok()?;
    Some((u64::from_be_bytes(bytes) ^ 1 << 63) as i64)
}

fn take_bytes(key: &mut &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        match *take(key, 1)?.first()? {
            0 => match *take(key, 1)?.first()? {
                0 => return Some(bytes),
                0xff => bytes.push(0),
                _ => return None,
            },
            byte => bytes.push(byte),
        }
    }
}

fn take_decimal(key: &mut &[u8]) -> Option<String> {
    let negative = match take(key, 1)? {
        [0x10] => return Some("-Infinity".to_owned()),
        [0x20] => true,
        [0x30] => return Some("0".to_owned()),
        [0x40] => false,
        [0x50] => return Some("Infinity".to_owned()),
        [0x60] => return Some("NaN".to_owned()),
        _ => return None,
    };
    let invert = |byte: u8| if negative { !byte } else { byte };
    let bytes: Vec<u8> = take(key, 4)?.iter().map(|byte| invert(*byte)).collect();
    let exponent = (u32::from_be_bytes(bytes.try_into().ok()?) ^ 1 << 31) as i32;
    let mut digits = String::new();
    loop {
        match invert(*take(key, 1)?.first()?) {
            0 => break,
            digit @ 1..=10 => digits.push((b'0' + digit - 1) as char),
            _ => return None,
        }
    }
    // Other digits would be a second key of a number, or none at all.
    if digits.is_empty() || digits.starts_with('0') || digits.ends_with('0') {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    // A hostile exponent must not make a text of gigabytes; no database has such a number.
    if exponent.unsigned_abs() > 200_000 {
        return None;
    }
    let point = exponent.max(0) as usize;
    Some(if exponent <= 0 {
        format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize))
    } else if digits.len() <= point {
        format!("{sign}{digits}{}", "0".repeat(point - digits.len()))
    } else {
        format!("{sign}{}.{}", &digits[..point], &digits[point..])
    })
}

/// Keys in JSON: hexadecimal text.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::row::value::{bytes_from_hex, hex};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        bytes_from_hex(&text).ok_or_else(|| de::Error::custom("expected hexadecimal digits"))
    }

    /// The same, with `null` for no key.
    pub(crate) mod option {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(
            bytes: &Option<Vec<u8>>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match bytes {
                Some(bytes) => super::serialize(bytes, to),
                None => to.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Vec<u8>>, D::Error> {
            let text = Option::<String>::deserialize(from)?;
            text.map(|text| {
                bytes_from_hex(&text)
                    .ok_or_else(|| de::Error::custom("expected hexadecimal digits"))
            })
            .transpose()
        }
    }

    /// The same for a list of keys.
    pub(crate) mod list {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(keys: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(keys.iter().map(|key| hex(key)))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Vec<Vec<u8>>, D::Error> {
            let texts = Vec::<String>::deserialize(from)?;
            let key = |text: &String| {
                bytes_from_hex(text).ok_or_else(|| de::Error::custom("expected hexadecimal digits"))
            };
            texts.iter().map(key).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key_value(value, &mut out).unwrap();
        out
    }

    #[track_caller]
    fn ascending(values: &[Value]) {
        let keys: Vec<Vec<u8>> = values.iter().map(key).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{values:?} {keys:x?}");
    }

    #[test]
    fn memcmp_is_the_order_of_values() {
        let decimal = |text: &str| Value::Decimal(text.to_owned());
        let text = |text: &str| Value::Text(text.to_owned());
        ascending(&[Value::Int64(i64::MIN), Value::Int64(-1), Value::Int64(0), Value::Int64(7)]);
        ascending(&[
            Value::Float64(f64::NEG_INFINITY),
            Value::Float64(-1.5),
            Value::Float64(-0.0),
            Value::Float64(1e-300),
            Value::Float64(f64::INFINITY),
            Value::Float64(f64::NAN),
        ]);
        ascending(&[
            decimal("-Infinity"),
            decimal("-100"),
            decimal("-99.9"),
            decimal("-0.01"),
            decimal("0.00"),
            decimal("0.009"),
            decimal("1"),
            decimal("1.05"),
            decimal("10"),
            decimal("Infinity"),
            decimal("NaN"),
        ]);
        ascending(&[text(""), text("\0"), text("\0a"), text("a"), text("a\0"), text("ab")]);
    }

    #[test]
    fn equal_numbers_are_one_key() {
        let decimal = |text: &str| key(&Value::Decimal(text.to_owned()));
        assert_eq!(decimal("1.0"), decimal("1.00"));
        assert_eq!(key(&Value::Float64(0.0)), key(&Value::Float64(-0.0)));
    }

    #[test]
    fn a_null_key_is_refused() {
        let error = encode_key_value(&Value::Null, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }

    #[test]
    fn a_number_has_one_key_and_every_other_is_refused() {
        let decode = |logical, mut key: &[u8]| decode_key_value(logical, &mut key);
        let decimal = |digits: &[u8]| {
            let mut key = vec![0x40];
            encode_key_i32(2, &mut key);
            key.extend(digits.iter().map(|digit| digit + 1));
            key.push(0);
            decode(LogicalType::Decimal, &key)
        };
        assert_eq!(decimal(&[1, 0, 5]), Some(Value::Decimal("10.5".to_owned())));
        for digits in [&[][..], &[0], &[0, 5], &[5, 0], &[0, 0]] {
            assert_eq!(decimal(digits), None, "{digits:?}");
        }
        let float = |bits: u64| {
            let ordered = if bits >> 63 == 0 { bits ^ 1 << 63 } else { !bits };
            decode(LogicalType::Float64, &ordered.to_be_bytes())
        };
        assert_eq!(float((-1.5f64).to_bits()), Some(Value::Float64(-1.5)));
        assert!(float(f64::NAN.to_bits()).is_some());
        for bits in [(-0.0f64).to_bits(), (-f64::NAN).to_bits(), f64::NAN.to_bits() + 1] {
            assert_eq!(float(bits), None, "{bits:x}");
        }
    }

    proptest! {
        #[test]
        fn keys_compare_as_memcmp_does(
            a in prop::collection::vec(0u8..3, 0..12),
            b in prop::collection::vec(0u8..3, 0..12),
        ) {
            prop_assert_eq!(compare_keys(&a, &b), a.cmp(&b));
        }

        #[test]
        fn keys_of_exact_types_read_back(number: i64, days: i32, bytes: Vec<u8>, text: String, uuid: u128) {
            for value in [
                Value::Int64(number), Value::Timestamp(number), Value::Date(days),
                Value::Bytes(bytes), Value::Text(text), Value::Uuid(uuid),
            ] {
                let encoded = key(&value);
                let mut rest = encoded.as_slice();
                prop_assert_eq!(decode_key_value(value.logical().unwrap(), &mut rest), Some(value));
                prop_assert!(rest.is_empty());
            }
        }

        #[test]
        fn no_bytes_break_the_decoder(bytes: Vec<u8>) {
            for logical in LogicalType::ALL {
                decode_key_value(logical, &mut bytes.as_slice());
            }
        }

        #[test]
        fn pairs_of_keys_sort_like_pairs_of_values(a: (i64, Vec<u8>), b: (i64, Vec<u8>)) {
            let pair = |(number, bytes): &(i64, Vec<u8>)| {
                let mut out = key(&Value::Int64(*number));
                out.extend(key(&Value::Bytes(bytes.clone())));
                out
            };
            prop_assert_eq!(pair(&a).cmp(&pair(&b)), a.cmp(&b));
        }
    }
}
