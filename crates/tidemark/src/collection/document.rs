//! The small JSON documents that no other document vouches for, with their seal.
//!
//! A manifest's hash is in its log entry. `collection.json` and the log's entries
//! carry a seal of their own: the last member is `"checksum"`, the BLAKE3 of
//! every byte of the file before the comma in front of it:
//!
//! ```text
//! {
//!   "format": …,
//!   …
//!   "last": …,                      <- hashed up to here, without this comma
//!   "checksum": "64 hexadecimal digits"
//! }
//! ```
//!
//! So any changed byte is noticed, unless it is white space after the seal.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::flaw::{Flaw, ReadFailure};
use super::manifest::{FORMAT_MAJOR, FORMAT_MINOR};
use crate::error::{Error, Kind};

/// What stands between the hashed bytes and the checksum's digits.
const SEAL: &str = ",\n  \"checksum\": \"";
/// What follows the digits.
const SEAL_END: &str = "\"\n}";

/// The bytes of a sealed document. The same document always gives the same bytes.
pub(super) fn seal(document: &impl Serialize) -> Vec<u8> {
    let mut bytes = pretty(document);
    let body_end = bytes.len() - b"\n}\n".len();
    bytes.truncate(body_end);
    seal_body(bytes)
}

/// A document's bytes up to the comma before its seal, and the seal.
pub(super) fn seal_body(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(SEAL.as_bytes());
    bytes.extend_from_slice(checksum.as_bytes());
    bytes.extend_from_slice(SEAL_END.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// The bytes of a document without a seal: JSON over several lines and a line feed.
pub(super) fn pretty(document: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(document).expect("our documents are objects with text keys");
    bytes.push(b'\n');
    bytes
}

/// Reads a sealed document that lies at `object`.
pub(super) fn unseal<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T, ReadFailure> {
    check_version(object, bytes)?;
    let flawed = |found: &str| Flaw::new(object, found, "a document that ends in its checksum");
    let text = std::str::from_utf8(bytes).map_err(|_| flawed("bytes that are not UTF-8"))?;
    let (body, tail) = text.rsplit_once(SEAL).ok_or_else(|| flawed("no checksum at the end"))?;
    let checksum = tail.trim_end().strip_suffix(SEAL_END);
    let checksum = checksum.ok_or_else(|| flawed("text after the checksum"))?;
    let found = blake3::hash(body.as_bytes()).to_hex();
    if found.as_str() != checksum {
        let expected = format!("`{checksum}` as the document itself says");
        return Err(Flaw::new(object, format!("BLAKE3 `{found}`"), expected).into());
    }
    parse(object, format!("{body}\n}}").as_bytes())
}

/// Reads JSON, after the version allowed it.
pub(super) fn parse<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T, ReadFailure> {
    check_version(object, bytes)?;
    serde_json::from_slice(bytes).map_err(|cause| {
        let found = format!("JSON that does not fit ({cause})");
        let expected = format!("a document of format {FORMAT_MAJOR}");
        Flaw::new(object, found, expected).into()
    })
}

/// The version of any document, whatever else a newer one holds.
#[derive(serde::Deserialize)]
struct Versioned {
    format: VersionOnly,
}

#[derive(serde::Deserialize)]
struct VersionOnly {
    major: u64,
}

/// Before anything else, since a newer major may differ in everything but its version.
fn check_version(object: &str, bytes: &[u8]) -> Result<(), ReadFailure> {
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|cause| {
        let found = format!("{} bytes that are no versioned JSON document ({cause})", bytes.len());
        Flaw::new(object, found, "a JSON object with the version in `format`")
    })?;
    let major = versioned.format.major;
    if major == u64::from(FORMAT_MAJOR) {
        return Ok(());
    }
    let advice = if major > u64::from(FORMAT_MAJOR) { "; a newer tidemark reads it" } else { "" };
    let message = format!(
        "`{object}` has format {major}, this program reads {FORMAT_MAJOR} (up to \
         {FORMAT_MAJOR}.{FORMAT_MINOR} and newer minors){advice}"
    );
    Err(Error::new(Kind::Unsupported, message).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::manifest::{CollectionRecord, FormatVersion};
    use crate::env::WallTime;
    use crate::ids::CollectionId;

    fn record() -> CollectionRecord {
        CollectionRecord {
            format: FormatVersion::CURRENT,
            id: CollectionId(7),
            created: WallTime(1),
            extra: serde_json::Map::new(),
        }
    }

    fn error_of(bytes: &[u8]) -> Error {
        unseal::<CollectionRecord>("collection.json", bytes).unwrap_err().into()
    }

    #[test]
    fn a_sealed_document_reads_back_with_fields_of_newer_minors() {
        let mut record = record();
        record.format.minor = 9;
        record.extra.insert("later".to_owned(), serde_json::json!({ "a": [1, null] }));
        let read: CollectionRecord = unseal("collection.json", &seal(&record)).unwrap();
        assert_eq!(read, record);
    }

    #[test]
    fn every_truncated_document_is_refused() {
        let bytes = seal(&record());
        for len in 0..bytes.len() - 1 {
            assert_eq!(error_of(&bytes[..len]).kind(), Kind::Broken, "{len}");
        }
    }

    #[test]
    fn another_major_is_unsupported_whatever_else_it_holds() {
        let error = error_of(br#"{ "format": { "major": 2, "magic": true }, "id": 5 }"#);
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("newer tidemark"), "{error}");
        assert_eq!(error_of(br#"{ "format": { "major": 0 } }"#).kind(), Kind::Unsupported);
    }

    #[test]
    fn garbage_is_broken_and_says_where() {
        for bytes in [&b""[..], b"\xff\xfe", b"null", b"[]", b"{}", b"{\"format\":{\"major\":1}}"] {
            let error = error_of(bytes);
            assert_eq!(error.kind(), Kind::Broken);
            assert!(error.message().contains("collection.json"), "{error}");
        }
    }
}
