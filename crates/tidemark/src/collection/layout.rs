//! Names of the objects of a collection, and which names are refused.
//!
//! ```text
//! collection.json
//! log/000001.json
//! 20260131093000Z_full/manifest.json
//! 20260131093000Z_full/public.orders/00000-1a.parquet
//! probe/<32 hexadecimal digits>                          while a store is tried out
//! ```
//!
//! Names never decide an order: [`log`](super::log) does. Every path that comes
//! from outside passes [`check_relative`] before a store sees it.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::manifest::BackupKind;
use crate::env::WallTime;
use crate::error::{Error, Kind, Result};
use crate::ids::{Sequence, TableName};
use crate::percent;

/// The document that makes a place a collection.
pub const COLLECTION_FILE: &str = "collection.json";
/// Folder of the log's entries.
pub const LOG_FOLDER: &str = "log";
/// Name of a backup's manifest inside its directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Folder in which a store is tried out before it is written to.
pub const PROBE_FOLDER: &str = "probe";

/// Longest path of an object: what S3 takes.
pub(super) const PATH_BYTES_MAX: usize = 1024;
/// Longest segment: what file systems take, with room for the number of a draft.
pub(super) const SEGMENT_BYTES_MAX: usize = 240;
/// Longest encoded table name; beyond it a hash stands for the rest.
pub(super) const TABLE_FOLDER_BYTES_MAX: usize = 200;
/// How much of a longer one is kept in front of its hash.
pub(super) const TABLE_FOLDER_BYTES_KEPT: usize = 150;
/// Longest ticket in a part's name.
pub(super) const TICKET_BYTES_MAX: usize = 64;
/// Last second that a directory's name can say: in the last days of the year 9999.
const SECOND_MAX: u64 = 253_402_207_200;

/// Refuses a path that could leave the collection or that some store cannot hold.
///
/// # Errors
/// [`Kind::Usage`]: empty or longer than 1024 bytes; absolute; a segment that is
/// empty, `.`, `..`, longer than 240 bytes or ends in a dot; a backslash, a
/// control character, or `#`, which marks drafts.
pub fn check_relative(path: &str) -> Result<()> {
    let refuse = |found: &str| {
        let message = format!(
            "{path:?} is no path inside a collection: {found}; expected plain names with `/` \
             between them"
        );
        Err(Error::new(Kind::Usage, message))
    };
    if path.len() > PATH_BYTES_MAX {
        return refuse("it is too long");
    }
    if path.starts_with('/') {
        return refuse("it is absolute");
    }
    if path.contains(|ch: char| ch.is_control() || ch == '\\' || ch == '#') {
        return refuse("it holds a control character, a backslash or `#`");
    }
    for segment in path.split('/') {
        match segment {
            "" => return refuse("a segment is empty"),
            "." | ".." => return refuse("it leaves its folder"),
            _ if segment.ends_with('.') => return refuse("a segment ends in a dot"),
            _ if segment.len() > SEGMENT_BYTES_MAX => return refuse("a segment is too long"),
            _ => {}
        }
    }
    Ok(())
}

/// `log/<sequence>.json`, at least six digits.
pub fn log_path(sequence: Sequence) -> String {
    format!("{LOG_FOLDER}/{:06}.json", sequence.0)
}

/// The sequence that a path of the log's folder names; `None` if it is no entry's.
pub fn log_sequence(path: &str) -> Option<Sequence> {
    let digits = path.strip_prefix(LOG_FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?;
    let sequence = Sequence(digits.parse().ok()?);
    (sequence.0 > 0 && log_path(sequence) == path).then_some(sequence)
}

/// Path of a backup's manifest.
pub fn manifest_path(directory: &str) -> String {
    format!("{directory}/{MANIFEST_FILE}")
}

/// A backup's directory: `<YYYYMMDDHHMMSS>Z_full` or `Z_incremental`, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupDirectory {
    second: u64,
    kind: BackupKind,
}

impl BackupDirectory {
    /// The directory for a backup of `kind` that begins at `now`, later than `newest`
    /// even within one second or after the clock was set back.
    ///
    /// # Errors
    /// [`Kind::Fatal`] after the year 9999.
    pub fn after(
        newest: Option<BackupDirectory>,
        kind: BackupKind,
        now: WallTime,
    ) -> Result<BackupDirectory> {
        let next = newest.map_or(0, |newest| newest.second + 1);
        let second = next.max(now.0 / 1000);
        if second > SECOND_MAX {
            let message = "name a backup: the clock, or the newest backup, is at the year 10000";
            return Err(Error::new(Kind::Fatal, message));
        }
        Ok(BackupDirectory { second, kind })
    }

    /// Reads a name that [`Display`](fmt::Display) wrote; `None` for any other text.
    pub fn parse(name: &str) -> Option<BackupDirectory> {
        let (digits, suffix) = name.split_at_checked(14)?;
        let kind = match suffix {
            "Z_full" => BackupKind::Full,
            "Z_incremental" => BackupKind::Incremental,
            _ => return None,
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = |range: std::ops::Range<usize>| digits[range].parse::<i16>().ok();
        let small = |range| i8::try_from(number(range)?).ok();
        let time = DateTime::new(
            number(0..4)?,
            small(4..6)?,
            small(6..8)?,
            small(8..10)?,
            small(10..12)?,
            small(12..14)?,
            0,
        );
        let second = TimeZone::UTC.to_timestamp(time.ok()?).ok()?.as_second();
        Some(BackupDirectory { second: u64::try_from(second).ok()?, kind })
    }

    /// Kind that the name says.
    pub fn kind(self) -> BackupKind {
        self.kind
    }

    /// Seconds since 1970 that the name says.
    pub fn second(self) -> u64 {
        self.second
    }
}

impl fmt::Display for BackupDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = i64::try_from(self.second).expect("at most the year 9999: checked");
        let time = Timestamp::from_second(second).expect("at most the year 9999: checked");
        let suffix = match self.kind {
            BackupKind::Full => "full",
            BackupKind::Incremental => "incremental",
        };
        write!(f, "{}Z_{suffix}", time.strftime("%Y%m%d%H%M%S"))
    }
}

/// Name of a part inside its backup's directory: `<schema>.<table>/00000-<ticket>.parquet`.
///
/// The ticket names the attempt, so that two writers never have one name.
///
/// # Errors
/// [`Kind::Usage`] for a ticket that is empty, longer than 64 bytes, or holds anything but
/// ASCII letters, digits, `-` and `_`.
pub fn part_name(table: &TableName, number: u32, ticket: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if ticket.is_empty() || ticket.len() > TICKET_BYTES_MAX || !ticket.bytes().all(plain) {
        let message = format!(
            "{ticket:?} cannot be the ticket in a part's name: expected 1 to {TICKET_BYTES_MAX} \
             ASCII letters, digits, `-` or `_`"
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(format!("{}/{number:05}-{ticket}.parquet", table_folder(table)))
}

/// The ticket in the path of a part, or of a draft of one; `None` for what is no part.
pub fn part_ticket(path: &str) -> Option<&str> {
    let (_, name) = path.rsplit_once('/')?;
    let (number, rest) = name.split_once('-')?;
    let (ticket, _) = rest.rsplit_once(".parquet")?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(ticket)
}

/// Folder of a table's parts: `<schema>.<table>`, with every byte but ASCII letters, digits,
/// `-` and `_` written `%XX`, upper-case hexadecimal.
///
/// A name that would be longer than 200 bytes is cut to at most 150 and ends in `~` and the
/// first 32 hexadecimal digits of the BLAKE3 of its encoded form. The manifest has the name.
pub fn table_folder(table: &TableName) -> String {
    let mut folder = String::new();
    encode_name(table.schema(), &mut folder);
    folder.push('.');
    encode_name(table.name(), &mut folder);
    if folder.len() <= TABLE_FOLDER_BYTES_MAX {
        return folder;
    }
    let hash = blake3::hash(folder.as_bytes()).to_hex();
    folder.truncate(TABLE_FOLDER_BYTES_KEPT);
    folder.push('~');
    folder.push_str(&hash[..32]);
    folder
}

/// The table of a folder that [`table_folder`] named; `None` for other text and for names
/// that were cut.
pub fn table_of_folder(folder: &str) -> Option<TableName> {
    let (schema, name) = folder.split_once('.')?;
    let table = TableName::new(&percent::decode(schema)?, &percent::decode(name)?)?;
    (table_folder(&table) == folder).then_some(table)
}

fn encode_name(name: &str, out: &mut String) {
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Splits `scheme://rest`; `None` for a plain path.
pub(super) fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let mut bytes = scheme.bytes();
    let letter = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (letter && bytes.all(plain)).then_some((scheme, rest))
}

/// The path of `file://` URL, given what follows `file://`.
pub(super) fn file_url_path(rest: &str) -> Option<PathBuf> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return None;
    }
    percent::decode(path).filter(|path| !path.contains('\0')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_leave_the_collection_are_refused() {
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "a\\b",
            "a\0b",
            "a\nb",
            "a\u{7f}b",
            "a\u{85}b",
            "a.",
            "a./b",
            "a#1",
        ] {
            assert_eq!(check_relative(path).unwrap_err().kind(), Kind::Usage, "{path:?}");
        }
        assert!(check_relative(&"a".repeat(241)).is_err());
        assert!(check_relative(&["abc"; 300].join("/")).is_err());
        for path in ["a", "a/b", "..a/b", "a..b", ".a", "%2E%2E/%2F", "\u{fc}/x"] {
            check_relative(path).unwrap();
        }
    }

    #[test]
    fn only_the_one_spelling_of_a_sequence_is_an_entry() {
        for sequence in [1, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(log_sequence(&log_path(Sequence(sequence))), Some(Sequence(sequence)));
        }
        for path in [
            "log/1.json",
            "log/000000.json",
            "log/0000001.json",
            "log/+00001.json",
            "log/00001x.json",
            "log/000001.json#1",
            "log/000001",
            "000001.json",
            "log/99999999999999999999.json",
        ] {
            assert_eq!(log_sequence(path), None, "{path}");
        }
    }

    #[test]
    fn directories_read_back_and_other_names_are_refused() {
        for second in [0, 1_769_852_400, SECOND_MAX] {
            for kind in [BackupKind::Full, BackupKind::Incremental] {
                let name = BackupDirectory { second, kind };
                assert_eq!(BackupDirectory::parse(&name.to_string()), Some(name));
                check_relative(&name.to_string()).unwrap();
            }
        }
        let name = BackupDirectory { second: 1_769_852_400, kind: BackupKind::Full };
        assert_eq!(name.to_string(), "20260131094000Z_full");
        for text in [
            "",
            "20260131094000Z_Full",
            "20260131094000Z",
            "20261331094000Z_full",
            "20260230094000Z_full",
            "2026013109400\u{661}Z_full",
            "+0260131094000Z_full",
            "20260131094060Z_full",
            "20260131094000Z_full/",
            "\u{fc}0260131094000Z_full",
        ] {
            assert_eq!(BackupDirectory::parse(text), None, "{text}");
        }
    }

    #[test]
    fn directories_increase_within_a_second_and_when_the_clock_goes_back() {
        let now = WallTime(1_769_852_400_500);
        let first = BackupDirectory::after(None, BackupKind::Full, now).unwrap();
        let second = BackupDirectory::after(Some(first), BackupKind::Incremental, now).unwrap();
        assert_eq!(second.second(), first.second() + 1);
        let third = BackupDirectory::after(Some(second), BackupKind::Full, WallTime(5)).unwrap();
        assert_eq!(third.second(), second.second() + 1);
        assert!(first.to_string() < second.to_string());
        let last = BackupDirectory { second: SECOND_MAX, kind: BackupKind::Full };
        assert!(BackupDirectory::after(Some(last), BackupKind::Full, now).is_err());
    }

    #[test]
    fn hostile_table_names_read_back_and_stay_inside() {
        for (schema, name) in [
            ("public", "orders"),
            ("..", ".."),
            ("a/b", "../../etc"),
            ("x.", "y."),
            ("%2E", "%"),
            ("a\u{1}b", "c\\d"),
            ("Orders", "orders"),
            ("~", "#1"),
            ("caf\u{e9}", "\u{202e}x"),
            (".", "."),
            ("-", "CON"),
            ("a b", " "),
        ] {
            let table = TableName::new(schema, name).unwrap();
            let part = part_name(&table, 7, "1a").unwrap();
            check_relative(&part).unwrap();
            assert_eq!(table_of_folder(&table_folder(&table)), Some(table), "{part}");
        }
    }

    #[test]
    fn names_that_are_too_long_stay_apart() {
        let long =
            |last: &str| TableName::new("s", &format!("{}{last}", "\u{444}".repeat(63))).unwrap();
        let (one, two) = (table_folder(&long("a")), table_folder(&long("b")));
        assert_ne!(one, two);
        check_relative(&part_name(&long("a"), u32::MAX, &"t".repeat(64)).unwrap()).unwrap();
        assert_eq!(table_of_folder(&one), None);
    }

    #[test]
    fn tickets_cannot_name_other_folders() {
        let table = TableName::new("public", "t").unwrap();
        for ticket in ["", "..", "a/b", "a.b", "\u{e9}", "a b", &"x".repeat(65)] {
            assert_eq!(part_name(&table, 0, ticket).unwrap_err().kind(), Kind::Usage);
        }
        assert_eq!(part_name(&table, 0, "1a").unwrap(), "public.t/00000-1a.parquet");
    }

    #[test]
    fn file_urls_are_decoded_once_and_hosts_refused() {
        assert_eq!(file_url_path("/a%20b%252F"), Some(PathBuf::from("/a b%2F")));
        assert_eq!(file_url_path("localhost/a"), Some(PathBuf::from("/a")));
        for rest in ["", "a", "host/a", "/a%", "/a%zz", "/a%00", "/a?b"] {
            assert_eq!(file_url_path(rest), None, "{rest}");
        }
    }

    proptest! {
        #[test]
        fn every_table_name_stays_inside_and_apart(schema in ".{1,40}", name in ".{1,40}") {
            if let Some(table) = TableName::new(&schema, &name) {
                let folder = table_folder(&table);
                prop_assert!(check_relative(&folder).is_ok());
                if !folder.contains('~') {
                    prop_assert_eq!(table_of_folder(&folder), Some(table));
                }
            }
        }

        #[test]
        fn no_text_breaks_the_readers_of_names(text in ".{0,30}") {
            BackupDirectory::parse(&text);
            log_sequence(&text);
            table_of_folder(&text);
            let _ = check_relative(&text);
        }
    }
}
