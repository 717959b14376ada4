//! Numbers, sizes and tables as people read them.

use std::time::Duration;

use tidemark::byte_size::ByteSize;

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// `1 row`, `1,234 rows`.
pub(crate) fn counted(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {one}{plural}", count(number))
}

/// Bytes with a unit that fits.
pub(crate) fn bytes(number: u64) -> String {
    ByteSize(number).to_string()
}

/// `text` with places below the current directory named from there, as one would type them.
pub(crate) fn from_here(text: &str) -> String {
    match std::env::current_dir() {
        Ok(here) if here.parent().is_some() => text.replace(&format!("{}/", here.display()), ""),
        _ => text.to_owned(),
    }
}

/// A duration in at most two units: `0.4 s`, `42 s`, `3 min 7 s`, `2 h 5 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// What so much in that time is per second; `None` when it was too short to tell.
pub(crate) fn per_second(amount: u64, duration: Duration) -> Option<u64> {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis < 10 {
        return None;
    }
    u64::try_from(u128::from(amount) * 1000 / u128::from(millis)).ok()
}

/// On which side a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a header, two spaces between columns and a line end behind every row.
///
/// `rows` have as many cells as `columns`.
pub(crate) fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            let cells = std::iter::once(&header).chain(rows);
            cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut shown = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (((_, align), width), cell) in columns.iter().zip(&widths).zip(row) {
            let padding = " ".repeat(width - cell.chars().count());
            match align {
                Align::Left => line.extend([cell.as_str(), &padding, "  "]),
                Align::Right => line.extend([padding.as_str(), cell, "  "]),
            }
        }
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_parted() {
        for (number, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), shown);
        }
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(2000, "row"), "2,000 rows");
    }

    #[test]
    fn places_below_the_current_directory_are_named_from_it() {
        let here = std::env::current_dir().unwrap();
        let title = format!("restore of `{}/backups` into `embedded:/else`", here.display());
        assert_eq!(from_here(&title), "restore of `backups` into `embedded:/else`");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (millis, shown) in [
            (0, "0.0 s"),
            (420, "0.4 s"),
            (42_000, "42 s"),
            (187_000, "3 min 7 s"),
            (7_500_000, "2 h 5 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), shown);
        }
    }

    #[test]
    fn rates_of_an_instant_are_not_told() {
        assert_eq!(per_second(500, Duration::from_millis(9)), None);
        assert_eq!(per_second(500, Duration::from_millis(500)), Some(1000));
        assert_eq!(per_second(u64::MAX, Duration::from_millis(10)), None);
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        let shown = table(&[("name", Align::Left), ("rows", Align::Right)], &rows);
        assert_eq!(shown, "name  rows\na        1\nlong\n");
    }
}
