//! The one place where LMDB's errors become ours.

use std::io;

use heed::MdbError;

use crate::error::{Error, Kind, Result, is_too_many_files, kind_of_io};

/// Says what was being done when LMDB refused.
pub(crate) trait LmdbContext<T> {
    /// The result with our error: `doing` is a clause like "write to `/x`".
    fn during(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> LmdbContext<T> for heed::Result<T> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| translate(doing(), cause))
    }
}

/// Whether trying again in a moment may help an opener.
pub(super) fn is_busy(cause: &heed::Error) -> bool {
    match cause {
        heed::Error::EnvAlreadyOpened => true,
        heed::Error::Io(cause) => kind_of_io(cause) == Kind::Transient,
        _ => false,
    }
}

/// An error of the operating system that `io::ErrorKind` has no stable name for.
const OUT_OF_MEMORY: i32 = 12;
/// What LMDB says when the system took only a part of what it wrote ("short write, filesystem
/// full?" in its `mdb_page_flush`): so it is for the write that fills a disk. It reads
/// through its map, where errors are signals.
const INPUT_OUTPUT: i32 = 5;

fn translate(doing: String, cause: heed::Error) -> Error {
    let (kind, advice) = match &cause {
        heed::Error::Io(cause) => translate_io(cause),
        heed::Error::Mdb(cause) => translate_mdb(*cause),
        heed::Error::EnvAlreadyOpened => {
            (Kind::Held, "this process still has it open; close it first")
        }
        heed::Error::Encoding(_) | heed::Error::Decoding(_) => (Kind::Broken, ""),
    };
    let message = if advice.is_empty() { doing } else { format!("{doing}: {advice}") };
    Error::with_source(kind, message, cause)
}

fn translate_io(cause: &io::Error) -> (Kind, &'static str) {
    match cause.raw_os_error() {
        _ if is_too_many_files(cause) => (
            Kind::Blocked,
            "too many files are open; raise the limit (`ulimit -n`), an open shard takes three",
        ),
        Some(OUT_OF_MEMORY) => (
            Kind::Blocked,
            "no address space or memory is left; raise `ulimit -v` or `vm.max_map_count`, or \
             keep fewer shards open",
        ),
        Some(INPUT_OUTPUT) => (
            Kind::Blocked,
            "not all of it could be written; free space is needed here, or a disk that works; \
             nothing was written, so the same command carries on afterwards",
        ),
        _ => match kind_of_io(cause) {
            Kind::Blocked => (
                Kind::Blocked,
                "free space, or permission to write here, is needed; nothing was written, so the \
                 same command carries on afterwards",
            ),
            kind => (kind, ""),
        },
    }
}

fn translate_mdb(cause: MdbError) -> (Kind, &'static str) {
    match cause {
        MdbError::MapFull => (
            Kind::Blocked,
            "the reserved address space is full; close every program that has it open and open \
             it again alone, it then grows",
        ),
        MdbError::MapResized => (
            Kind::Blocked,
            "another program has grown it beyond what was reserved here; start this program again",
        ),
        MdbError::ReadersFull => {
            (Kind::Transient, "every reader slot is taken; it passes when readers end")
        }
        MdbError::TxnFull => {
            (Kind::Usage, "one transaction changes too many pages; write in smaller pieces")
        }
        MdbError::BadValSize => {
            (Kind::Usage, "a key is empty or longer than 511 bytes, or a value is too long")
        }
        MdbError::Corrupted | MdbError::PageNotFound => {
            (Kind::Broken, "the file is damaged; restore it from a backup")
        }
        MdbError::Invalid => (Kind::Broken, "the file is no LMDB file, or a damaged one"),
        MdbError::VersionMismatch => {
            (Kind::Unsupported, "the file was written by another version of LMDB")
        }
        MdbError::Incompatible => {
            (Kind::Unsupported, "a database in the file has flags that are not ours")
        }
        MdbError::KeyExist => {
            (Kind::Broken, "keys do not ascend: a key is not greater than the last stored one")
        }
        MdbError::Panic
        | MdbError::NotFound
        | MdbError::DbsFull
        | MdbError::TlsFull
        | MdbError::CursorFull
        | MdbError::PageFull
        | MdbError::BadRslot
        | MdbError::BadTxn
        | MdbError::BadDbi
        | MdbError::Problem
        | MdbError::Other(_) => (Kind::Fatal, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn kind(cause: heed::Error) -> Kind {
        Err::<(), _>(cause).during(|| "test".to_owned()).unwrap_err().kind()
    }

    fn os(code: i32) -> heed::Error {
        heed::Error::Io(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn what_a_person_must_solve_is_blocked() {
        for cause in
            [os(28), os(30), os(13), os(24), os(12), os(5), heed::Error::Mdb(MdbError::MapFull)]
        {
            assert_eq!(kind(cause), Kind::Blocked);
        }
    }

    #[test]
    fn damage_and_foreign_files_are_told_apart() {
        assert_eq!(kind(heed::Error::Mdb(MdbError::Corrupted)), Kind::Broken);
        assert_eq!(kind(heed::Error::Mdb(MdbError::VersionMismatch)), Kind::Unsupported);
        assert_eq!(kind(heed::Error::Mdb(MdbError::BadValSize)), Kind::Usage);
        assert_eq!(kind(heed::Error::Mdb(MdbError::ReadersFull)), Kind::Transient);
    }
}
