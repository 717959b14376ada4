//! Values as a type's output function prints them, which is how a slot sends them.
//!
//! Under the settings that a [`Session`](super::Session) pins, the text of a value is exact,
//! and gives the same canonical value as the binary form that a scan reads.

use crate::database::postgres::types::Wire;
use crate::error::{Error, Kind, Result};
use crate::row::Value;
use crate::row::value::is_decimal;

/// The value that `text` is the printed form of.
///
/// # Errors
/// [`Kind::Unsupported`] for what the logical type cannot hold: a timestamp beyond the year
/// 294246; [`Kind::Fatal`] for a text that is no value of the type.
pub(super) fn parse(wire: Wire, text: &[u8]) -> Result<Value> {
    let malformed = || {
        let message = format!("the server sent {} bytes that are no {wire:?}", text.len());
        Error::new(Kind::Fatal, message)
    };
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let value = match wire {
        Wire::Bool => match text {
            "t" => Some(Value::Bool(true)),
            "f" => Some(Value::Bool(false)),
            _ => None,
        },
        Wire::Int2 | Wire::Int4 | Wire::Int8 => text.parse().ok().map(Value::Int64),
        // A double has more digits than the text, and is another number than the float.
        Wire::Float4 => text.parse::<f32>().ok().map(|value| Value::Float64(f64::from(value))),
        Wire::Float8 => text.parse().ok().map(Value::Float64),
        Wire::Numeric => is_decimal(text).then(|| Value::Decimal(text.to_owned())),
        Wire::Text | Wire::Jsonb | Wire::Printed => Some(Value::Text(text.to_owned())),
        Wire::Bytea | Wire::Uuid => Value::parse(wire.logical(), text),
        Wire::Date | Wire::Timestamp | Wire::TimestampTz => {
            return parse_time(wire, text).ok_or_else(|| {
                let message =
                    format!("`{text}` is beyond the times that can be carried, or is none");
                Error::new(Kind::Unsupported, message)
            });
        }
    };
    value.ok_or_else(malformed)
}

/// ISO with ` BC` behind years that others write with a minus: 1 BC is the year 0.
fn parse_time(wire: Wire, text: &str) -> Option<Value> {
    let Some(before) = text.strip_suffix(" BC") else {
        return Value::parse(wire.logical(), text);
    };
    let (year, rest) = before.split_once('-')?;
    let year = 1 - year.parse::<i64>().ok()?;
    let sign = if year < 0 { "-" } else { "" };
    Value::parse(wire.logical(), &format!("{sign}{:04}-{rest}", year.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(wire: Wire, text: &str, shown: &str) {
        assert_eq!(parse(wire, text.as_bytes()).unwrap().to_text(), shown, "{wire:?} {text}");
    }

    #[test]
    fn printed_values_are_read() {
        reads(Wire::Bool, "t", "true");
        reads(Wire::Int8, "-9223372036854775808", "-9223372036854775808");
        reads(Wire::Float8, "1e+300", &1e300f64.to_string());
        reads(Wire::Float8, "-0", "-0");
        reads(Wire::Float8, "-Infinity", "-Infinity");
        reads(Wire::Float4, "0.1", &f64::from(0.1f32).to_string());
        reads(Wire::Float4, "NaN", "NaN");
        reads(Wire::Numeric, "-0.50", "-0.50");
        reads(Wire::Numeric, "Infinity", "Infinity");
        reads(Wire::Bytea, "\\x00ff", "\\x00ff");
        reads(Wire::Jsonb, "{\"a\": 1}", "{\"a\": 1}");
        reads(
            Wire::Uuid,
            "00112233-4455-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeeff",
        );
    }

    #[test]
    fn times_before_the_common_era_and_without_end_are_read() {
        reads(Wire::Date, "2024-02-29", "2024-02-29");
        reads(Wire::Date, "0001-01-01 BC", "0000-01-01");
        reads(Wire::Date, "0044-03-15 BC", "-0043-03-15");
        reads(Wire::Date, "5874897-12-31", "5874897-12-31");
        reads(Wire::Date, "infinity", "infinity");
        reads(Wire::Timestamp, "4713-01-01 00:00:00.5 BC", "-4712-01-01 00:00:00.5");
        reads(Wire::Timestamp, "-infinity", "-infinity");
        reads(Wire::TimestampTz, "2024-01-01 10:00:00.000001+00", "2024-01-01T10:00:00.000001Z");
        reads(Wire::TimestampTz, "0001-12-31 23:59:59+00 BC", "0000-12-31T23:59:59Z");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (wire, text, kind) in [
            (Wire::Bool, "true", Kind::Fatal),
            (Wire::Int4, "1.5", Kind::Fatal),
            (Wire::Numeric, "1e3", Kind::Fatal),
            (Wire::Bytea, "abc", Kind::Fatal),
            (Wire::Timestamp, "294276-12-31 23:59:59.999999", Kind::Unsupported),
            (Wire::Date, "tomorrow", Kind::Unsupported),
        ] {
            assert_eq!(parse(wire, text.as_bytes()).unwrap_err().kind(), kind, "{text}");
        }
        assert_eq!(parse(Wire::Text, b"\xff").unwrap_err().kind(), Kind::Fatal);
    }
}
