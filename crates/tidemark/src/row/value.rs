//! Single values: what they are, how they read and print.

use std::fmt::Write as _;

use super::schema::LogicalType;

/// One value of one column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// See [`LogicalType::Bool`].
    Bool(bool),
    /// See [`LogicalType::Int64`].
    Int64(i64),
    /// See [`LogicalType::Float64`].
    Float64(f64),
    /// Canonical decimal text: `-?(0|[1-9][0-9]*)(\.[0-9]+)?`, `NaN`, `Infinity` or `-Infinity`.
    Decimal(String),
    /// See [`LogicalType::Text`].
    Text(String),
    /// See [`LogicalType::Bytes`].
    Bytes(Vec<u8>),
    /// Days since 1970-01-01; `i32::MAX` and `i32::MIN` stand for the infinities.
    Date(i32),
    /// Microseconds since 1970-01-01T00:00:00; `i64::MAX` and `i64::MIN` stand for the infinities.
    Timestamp(i64),
    /// The same, in UTC.
    TimestampTz(i64),
    /// See [`LogicalType::Uuid`].
    Uuid(u128),
}

/// The values of one row, in the display order of its schema.
pub type Row = Vec<Value>;

impl Value {
    /// The type this value has; `None` for NULL, which every type has.
    pub fn logical(&self) -> Option<LogicalType> {
        Some(match self {
            Value::Null => return None,
            Value::Bool(_) => LogicalType::Bool,
            Value::Int64(_) => LogicalType::Int64,
            Value::Float64(_) => LogicalType::Float64,
            Value::Decimal(_) => LogicalType::Decimal,
            Value::Text(_) => LogicalType::Text,
            Value::Bytes(_) => LogicalType::Bytes,
            Value::Date(_) => LogicalType::Date,
            Value::Timestamp(_) => LogicalType::Timestamp,
            Value::TimestampTz(_) => LogicalType::TimestampTz,
            Value::Uuid(_) => LogicalType::Uuid,
        })
    }

    /// Reads the text form of a value; `None` if `text` is not one of `logical`.
    ///
    /// Accepts a little more than [`print`](Self::print) writes (`+1`, `1e3`,
    /// `T` or a space between date and time); whoever needs the exact form back
    /// compares.
    pub fn parse(logical: LogicalType, text: &str) -> Option<Value> {
        Some(match logical {
            LogicalType::Bool => match text {
                "true" | "t" => Value::Bool(true),
                "false" | "f" => Value::Bool(false),
                _ => return None,
            },
            LogicalType::Int64 => Value::Int64(text.parse().ok()?),
            LogicalType::Float64 => Value::Float64(text.parse().ok()?),
            LogicalType::Decimal => is_decimal(text).then(|| Value::Decimal(text.to_owned()))?,
            LogicalType::Text => Value::Text(text.to_owned()),
            LogicalType::Bytes => Value::Bytes(bytes_from_hex(text.strip_prefix("\\x")?)?),
            LogicalType::Date => Value::Date(parse_date(text)?),
            LogicalType::Timestamp => Value::Timestamp(parse_timestamp(text)?),
            LogicalType::TimestampTz => Value::TimestampTz(parse_timestamp_tz(text)?),
            LogicalType::Uuid => Value::Uuid(parse_uuid(text)?),
        })
    }

    /// Appends the text form; nothing for NULL.
    pub fn print(&self, out: &mut String) {
        let written = match self {
            Value::Null => Ok(()),
            Value::Bool(value) => write!(out, "{value}"),
            Value::Int64(value) => write!(out, "{value}"),
            Value::Float64(value) => match value {
                value if value.is_nan() => write!(out, "NaN"),
                value if *value == f64::INFINITY => write!(out, "Infinity"),
                value if *value == f64::NEG_INFINITY => write!(out, "-Infinity"),
                value => write!(out, "{value}"),
            },
            Value::Decimal(text) | Value::Text(text) => write!(out, "{text}"),
            Value::Bytes(bytes) => {
                out.push_str("\\x");
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
            }
            Value::Date(days) => print_date(*days, out),
            Value::Timestamp(micros) => print_timestamp(*micros, ' ', "", out),
            Value::TimestampTz(micros) => print_timestamp(*micros, 'T', "Z", out),
            Value::Uuid(bits) => {
                let text = format!("{bits:032x}");
                write!(
                    out,
                    "{}-{}-{}-{}-{}",
                    &text[..8],
                    &text[8..12],
                    &text[12..16],
                    &text[16..20],
                    &text[20..]
                )
            }
        };
        written.expect("writing to a String cannot fail");
    }

    /// The text form; empty for NULL.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.print(&mut text);
        text
    }
}

/// Whether `text` is a canonical decimal: see [`Value::Decimal`].
pub fn is_decimal(text: &str) -> bool {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (unsigned, None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_zero = unsigned.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        // Numeric types know no negative zero.
        && !(is_zero && text.starts_with('-'))
}

const DATE_INFINITY: (i32, i32) = (i32::MIN, i32::MAX);
const TIME_INFINITY: (i64, i64) = (i64::MIN, i64::MAX);
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// 1970-01-01 counted from 0000-03-01, the epoch of the civil calendar algorithms below.
const EPOCH_FROM_MARCH: i64 = 719_468;

/// Days since 1970-01-01 of a proleptic Gregorian date.
///
/// The calendar arithmetic is Howard Hinnant's, "chrono-compatible low-level
/// date algorithms"; it covers every `i32` of days, which date crates do not.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - EPOCH_FROM_MARCH
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_FROM_MARCH;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn parse_date(text: &str) -> Option<i32> {
    match text {
        "-infinity" => return Some(DATE_INFINITY.0),
        "infinity" => return Some(DATE_INFINITY.1),
        _ => {}
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = unsigned.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() < 4 || month.len() != 2 || day.len() != 2 {
        return None;
    }
    let number = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<i64>().ok())?
    };
    let year = if negative { -number(year)? } else { number(year)? };
    let (month, day) = (number(month)?, number(day)?);
    if year.abs() > 6_000_000 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    // A day that does not exist comes back as another one.
    if !(1..=12).contains(&month) || civil_from_days(days) != (year, month, day) {
        return None;
    }
    i32::try_from(days).ok().filter(|days| *days != DATE_INFINITY.0 && *days != DATE_INFINITY.1)
}

fn print_date(days: i32, out: &mut String) -> std::fmt::Result {
    if days == DATE_INFINITY.0 {
        return write!(out, "-infinity");
    }
    if days == DATE_INFINITY.1 {
        return write!(out, "infinity");
    }
    write_civil(i64::from(days), out)
}

fn write_civil(days: i64, out: &mut String) -> std::fmt::Result {
    let (year, month, day) = civil_from_days(days);
    let sign = if year < 0 { "-" } else { "" };
    write!(out, "{sign}{:04}-{month:02}-{day:02}", year.abs())
}

/// Reads `YYYY-MM-DD HH:MM:SS[.ffffff]`, with a space or a `T`.
fn parse_timestamp(text: &str) -> Option<i64> {
    match text {
        "-infinity" => return Some(TIME_INFINITY.0),
        "infinity" => return Some(TIME_INFINITY.1),
        _ => {}
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let days = i64::from(parse_date(date)?);
    let bytes = time.as_bytes();
    if bytes.len() < 8 || bytes[2] != b':' || bytes[5] != b':' {
        return None;
    }
    let two = |at: usize| {
        let pair = &bytes[at..at + 2];
        pair.iter()
            .all(u8::is_ascii_digit)
            .then(|| i64::from(pair[0] - b'0') * 10 + i64::from(pair[1] - b'0'))
    };
    let (hour, minute, second) = (two(0)?, two(3)?, two(6)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = 0;
    if bytes.len() > 8 {
        let fraction = &bytes[9..];
        if bytes[8] != b'.' || fraction.is_empty() || fraction.len() > 6 {
            return None;
        }
        for place in 0..6 {
            let digit = fraction.get(place).copied().unwrap_or(b'0');
            micros = micros * 10 + i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        }
    }
    days.checked_mul(MICROS_PER_DAY)?
        .checked_add(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
        .filter(|micros| *micros != TIME_INFINITY.0 && *micros != TIME_INFINITY.1)
}

/// Reads a timestamp that ends in `Z`, `+00`, or an offset `±HH:MM`.
fn parse_timestamp_tz(text: &str) -> Option<i64> {
    if matches!(text, "infinity" | "-infinity") {
        return parse_timestamp(text);
    }
    if let Some(utc) = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00")) {
        return parse_timestamp(utc);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let sign = match offset.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let number = |part: &str| {
        (part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| part.parse::<i64>().ok())?
    };
    let minutes = number(hours)? * 60 + number(minutes)?;
    parse_timestamp(local)?.checked_sub(sign * minutes * 60_000_000)
}

fn print_timestamp(micros: i64, between: char, suffix: &str, out: &mut String) -> std::fmt::Result {
    if micros == TIME_INFINITY.0 {
        return write!(out, "-infinity");
    }
    if micros == TIME_INFINITY.1 {
        return write!(out, "infinity");
    }
    write_civil(micros.div_euclid(MICROS_PER_DAY), out)?;
    let of_day = micros.rem_euclid(MICROS_PER_DAY);
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write!(out, "{between}{hour:02}:{minute:02}:{second:02}")?;
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        write!(out, ".{}", digits.trim_end_matches('0'))?;
    }
    out.write_str(suffix)
}

fn parse_uuid(text: &str) -> Option<u128> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    if lengths != [8, 4, 4, 4, 12] {
        return None;
    }
    let digits = groups.concat();
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u128::from_str_radix(&digits, 16).ok())?
}

/// Reads pairs of hexadecimal digits.
pub(crate) fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Writes bytes as pairs of lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn prints_back(logical: LogicalType, text: &str) {
        let value = Value::parse(logical, text).unwrap_or_else(|| panic!("{logical:?} {text}"));
        assert_eq!(value.to_text(), text);
    }

    #[test]
    fn canonical_texts_print_back_identically() {
        prints_back(LogicalType::Bool, "true");
        prints_back(LogicalType::Int64, "-9223372036854775808");
        prints_back(LogicalType::Float64, "-0");
        prints_back(LogicalType::Float64, "0.1");
        prints_back(LogicalType::Float64, "NaN");
        prints_back(LogicalType::Decimal, "-0.50");
        prints_back(LogicalType::Bytes, "\\x00ff");
        prints_back(LogicalType::Date, "1957-03-04");
        prints_back(LogicalType::Date, "-0044-03-15");
        prints_back(LogicalType::Date, "infinity");
        prints_back(LogicalType::Timestamp, "2024-02-29 23:59:59.000001");
        prints_back(LogicalType::Timestamp, "1969-12-31 23:59:59.5");
        prints_back(LogicalType::TimestampTz, "2024-02-29T23:59:59Z");
        prints_back(LogicalType::Uuid, "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn texts_of_another_type_are_refused() {
        for (logical, text) in [
            (LogicalType::Decimal, "01"),
            (LogicalType::Decimal, "-0"),
            (LogicalType::Decimal, "1."),
            (LogicalType::Decimal, ".5"),
            (LogicalType::Date, "2023-02-29"),
            (LogicalType::Date, "2023-13-01"),
            (LogicalType::Date, "23-01-01"),
            (LogicalType::Timestamp, "2023-01-01 24:00:00"),
            (LogicalType::Timestamp, "2023-01-01 10:00:00.1234567"),
            (LogicalType::TimestampTz, "2023-01-01 10:00:00"),
            (LogicalType::Uuid, "00112233-4455-6677-8899-aabbccddeef"),
            (LogicalType::Bytes, "\\x0"),
        ] {
            assert_eq!(Value::parse(logical, text), None, "{logical:?} {text}");
        }
    }

    #[test]
    fn an_offset_is_taken_off() {
        let value = Value::parse(LogicalType::TimestampTz, "2024-01-01 01:30:00+01:30");
        assert_eq!(value.unwrap().to_text(), "2024-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn every_date_and_time_prints_and_parses(days: i32, micros: i64) {
            for value in [Value::Date(days), Value::Timestamp(micros), Value::TimestampTz(micros)] {
                let logical = value.logical().unwrap();
                prop_assert_eq!(Value::parse(logical, &value.to_text()), Some(value));
            }
        }
    }
}
