//! Which type a column of a CSV file has: only one that keeps every text as it is.
//!
//! A [`Survey`] sees every record and remembers per column the types under which
//! each value so far printed back identically. Text always does, so there is
//! always an answer; a file that is loaded and dumped again is the same bytes.

use crate::error::{Error, Kind, Result};
use crate::row::{LogicalType, Value};

use super::read::{Field, Record};

/// Longest decimal that is still taken for a number, in bytes.
///
/// PostgreSQL's `numeric` ends at 147,455 digits, and a key decodes up to
/// 200,000 places; whatever is longer is text.
const DECIMAL_BYTES_MAX: usize = 100_000;

/// The types a column can be found to have, the first that fits wins.
///
/// No floats: `0.1` prints back from a double, yet people who write `0.1` mean a tenth.
const INFERRED: [LogicalType; 7] = [
    LogicalType::Int64,
    LogicalType::Decimal,
    LogicalType::Date,
    LogicalType::Timestamp,
    LogicalType::TimestampTz,
    LogicalType::Uuid,
    LogicalType::Bool,
];

/// What was seen of the columns of a file.
#[derive(Clone, Debug)]
pub struct Survey {
    columns: Vec<ColumnSurvey>,
    /// Printed form of the value at hand; kept for its memory.
    printed: String,
}

/// What was seen of one column.
#[derive(Clone, Debug)]
pub struct ColumnSurvey {
    /// Types under which every value printed back identically.
    fitting: Vec<LogicalType>,
    valued: bool,
    scale: Scale,
}

/// Fraction digits of the column's values, as long as they are decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Unseen,
    Uniform(usize),
    Mixed,
}

impl Survey {
    /// A survey of a file with that many columns, before its first record.
    pub fn new(column_count: usize) -> Survey {
        let column = ColumnSurvey {
            fitting: LogicalType::ALL.to_vec(),
            valued: false,
            scale: Scale::Unseen,
        };
        Survey { columns: vec![column; column_count], printed: String::new() }
    }

    /// Takes a record into account; its fields are those of the columns, in order.
    pub fn observe(&mut self, record: &Record) {
        for (column, field) in self.columns.iter_mut().zip(record.fields()) {
            if !field.is_null() {
                column.observe(field.text, &mut self.printed);
            }
        }
    }

    /// What was seen, in the order of the columns.
    pub fn columns(&self) -> &[ColumnSurvey] {
        &self.columns
    }
}

impl ColumnSurvey {
    fn observe(&mut self, text: &str, printed: &mut String) {
        self.valued = true;
        self.fitting.retain(|logical| prints_back(*logical, text, printed));
        if self.fitting.contains(&LogicalType::Decimal) && text.bytes().any(|b| b.is_ascii_digit())
        {
            let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            self.scale = match self.scale {
                Scale::Unseen => Scale::Uniform(scale),
                Scale::Uniform(before) if before == scale => Scale::Uniform(scale),
                Scale::Uniform(_) | Scale::Mixed => Scale::Mixed,
            };
        }
    }

    /// Whether every value printed back identically under `logical`.
    pub fn fits(&self, logical: LogicalType) -> bool {
        self.fitting.contains(&logical)
    }

    /// The type of a new column that is not part of a key; text if it has no value.
    pub fn inferred(&self) -> LogicalType {
        let found = INFERRED.into_iter().find(|logical| self.valued && self.fits(*logical));
        found.unwrap_or(LogicalType::Text)
    }

    /// The type of a new column that is part of a key.
    ///
    /// `1.1` and `1.10` are one number and so one key, but may be two versions of
    /// something: a key is decimal only if all its values have the same scale.
    pub fn inferred_key(&self) -> LogicalType {
        match self.inferred() {
            LogicalType::Decimal if self.scale == Scale::Mixed => LogicalType::Text,
            other => other,
        }
    }

    /// The type of a column that was `current` until now: the same while it fits, else a wider one.
    ///
    /// Never a narrower one, and never one that reads the older values differently:
    /// integers widen to decimals, everything else to text.
    pub fn widened(&self, current: LogicalType) -> LogicalType {
        match current {
            current if self.fits(current) => current,
            LogicalType::Int64 if self.fits(LogicalType::Decimal) => LogicalType::Decimal,
            _ => LogicalType::Text,
        }
    }
}

/// The value of a field in a column of type `logical`, however the text is written.
///
/// # Errors
/// [`Kind::Usage`] with value and expected type, for a caller that knows file, line and column.
pub fn parse_field(field: Field<'_>, logical: LogicalType) -> Result<Value> {
    if field.is_null() {
        return Ok(Value::Null);
    }
    parse_text(logical, field.text).ok_or_else(|| {
        let found = shortened(field.text);
        let message = format!("found {found}, expected a value of type {}", logical.name());
        Error::new(Kind::Usage, message)
    })
}

fn parse_text(logical: LogicalType, text: &str) -> Option<Value> {
    let too_long = logical == LogicalType::Decimal && text.len() > DECIMAL_BYTES_MAX;
    if too_long { None } else { Value::parse(logical, text) }
}

fn prints_back(logical: LogicalType, text: &str, printed: &mut String) -> bool {
    if logical == LogicalType::Text {
        return true;
    }
    let Some(value) = parse_text(logical, text) else { return false };
    printed.clear();
    value.print(printed);
    printed == text
}

/// The value in quotes, cut where a message would drown in it.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}...` ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::Reader;

    fn survey(column: &str) -> ColumnSurvey {
        let file = format!(
            "a,b\n{}",
            column.lines().map(|line| line.to_owned() + ",\n").collect::<String>()
        );
        let mut reader = Reader::open(file.as_bytes(), "t.csv").unwrap();
        let mut survey = Survey::new(2);
        let mut record = Record::new();
        while reader.read(&mut record).unwrap() {
            survey.observe(&record);
        }
        survey.columns()[0].clone()
    }

    #[track_caller]
    fn inferred(column: &str, expected: LogicalType) {
        assert_eq!(survey(column).inferred(), expected, "{column}");
    }

    #[test]
    fn a_column_has_the_type_under_which_every_value_prints_back() {
        inferred("1\n-7\n9223372036854775807", LogicalType::Int64);
        inferred("1\n9223372036854775808", LogicalType::Decimal);
        inferred("1\n1.50\n-0.1", LogicalType::Decimal);
        inferred("2024-02-29\n0001-01-01", LogicalType::Date);
        inferred("2024-02-29 10:00:00\n2024-02-29 10:00:00.5", LogicalType::Timestamp);
        inferred("2024-02-29T10:00:00Z", LogicalType::TimestampTz);
        inferred("00112233-4455-6677-8899-aabbccddeeff", LogicalType::Uuid);
        inferred("true\nfalse", LogicalType::Bool);
        inferred("a\nb", LogicalType::Text);
    }

    #[test]
    fn nothing_is_typed_that_would_print_otherwise() {
        for column in [
            "007",
            "+1",
            "1e3",
            "-0",
            "1.",
            ".5",
            "0x10",
            "1_000",
            " 1",
            "1 ",
            "t",
            "TRUE",
            "0,5",
            "2024-2-29",
            "2023-02-29",
            "2024-02-29T10:00:00",
            "2024-02-29 10:00:00Z",
            "2024-02-29 10:00:00.50",
            "2024-02-29T10:00:00+01:00",
            "\\x00",
            "00112233-4455-6677-8899-AABBCCDDEEFF",
            "inf",
            "nan",
            "NULL",
            "1\n2\nx",
        ] {
            let quoted: String = column.lines().map(|line| format!("\"{line}\"\n")).collect();
            inferred(&quoted, LogicalType::Text);
        }
    }

    #[test]
    fn nulls_say_nothing_and_only_nulls_are_text() {
        inferred("\n1\n\n", LogicalType::Int64);
        inferred("\n\n", LogicalType::Text);
        inferred("", LogicalType::Text);
    }

    #[test]
    fn one_quoted_empty_field_makes_a_column_text() {
        inferred("1\n\"\"\n2", LogicalType::Text);
        inferred("\"1\"\n2", LogicalType::Int64);
    }

    #[test]
    fn a_decimal_key_has_one_scale() {
        assert_eq!(survey("1.1\n1.2").inferred_key(), LogicalType::Decimal);
        assert_eq!(survey("1.1\n1.10").inferred_key(), LogicalType::Text);
        assert_eq!(survey("1.1\n1.10").inferred(), LogicalType::Decimal);
        assert_eq!(survey("1\n2").inferred_key(), LogicalType::Int64);
    }

    #[test]
    fn a_type_stays_or_widens_and_never_narrows() {
        assert_eq!(survey("1\n2").widened(LogicalType::Text), LogicalType::Text);
        assert_eq!(survey("1\n2").widened(LogicalType::Decimal), LogicalType::Decimal);
        assert_eq!(survey("1\n2.5").widened(LogicalType::Int64), LogicalType::Decimal);
        assert_eq!(survey("1\nx").widened(LogicalType::Int64), LogicalType::Text);
        assert_eq!(survey("1\n2").widened(LogicalType::Date), LogicalType::Text);
        assert_eq!(survey("0.1\n2").widened(LogicalType::Float64), LogicalType::Float64);
        assert_eq!(survey("\n").widened(LogicalType::Uuid), LogicalType::Uuid);
    }

    #[test]
    fn a_digit_string_without_end_is_text() {
        inferred(&"1".repeat(DECIMAL_BYTES_MAX), LogicalType::Decimal);
        inferred(&"1".repeat(DECIMAL_BYTES_MAX + 1), LogicalType::Text);
    }

    #[test]
    fn a_value_of_another_type_is_told_with_what_was_expected() {
        let field = Field { text: "x1", quoted: false };
        let error = parse_field(field, LogicalType::Int64).unwrap_err();
        assert_eq!(error.message(), "found `x1`, expected a value of type int64");
        let empty = Field { text: "", quoted: true };
        assert!(parse_field(empty, LogicalType::Int64).is_err());
        assert_eq!(parse_field(empty, LogicalType::Text).unwrap(), Value::Text(String::new()));
        let null = Field { text: "", quoted: false };
        assert_eq!(parse_field(null, LogicalType::Int64).unwrap(), Value::Null);
        let loose = Field { text: "+1", quoted: false };
        assert_eq!(parse_field(loose, LogicalType::Int64).unwrap(), Value::Int64(1));
    }
}
