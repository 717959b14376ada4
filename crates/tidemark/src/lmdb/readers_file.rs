//! LMDB's file of readers, `lock.mdb`: given all its space before LMDB maps it.
//!
//! LMDB makes the file by setting its length, and then writes into it as memory. On a disk
//! without room for the page that is touched first, such a write has no error to return: the
//! process gets SIGBUS. Space that is allocated before can be refused like any other.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// LMDB's name for it.
const READERS_FILE: &str = "lock.mdb";

/// Bytes of one reader, and more than what stands before the first: `MDB_reader` and
/// `MDB_txninfo` of LMDB 0.9, each padded to lines of 64 bytes.
const READER_BYTES: u64 = 64;
const HEAD_BYTES: u64 = 1024;
/// Unit in which memory is mapped, and disks are asked for room.
const PAGE_BYTES: u64 = 4096;

/// Allocates the file of the environment in `dir`, which this process must not have open:
/// closing the file lets go of the locks that LMDB holds on it.
///
/// Where a file system cannot allocate, LMDB makes the file as it always does.
///
/// # Errors
/// For a full disk; what was allocated by then stays, and LMDB never saw it.
pub(super) fn allocate(dir: &Path, readers_max: u32) -> io::Result<()> {
    let path = dir.join(READERS_FILE);
    let (length, allocated) = match fs::metadata(&path) {
        // Blocks are counted in units of 512 bytes, whatever the file system's own are.
        Ok(found) => (found.len(), found.blocks() * 512),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => (0, 0),
        Err(cause) => return Err(cause),
    };
    let readers = u64::from(readers_max) * READER_BYTES;
    // What LMDB began is at least as long as its readers. It is never made longer: processes
    // that have it open count the readers by its length.
    let wanted = match length {
        begun if begun > 0 && begun + READER_BYTES >= readers => begun,
        _ => (readers + HEAD_BYTES).next_multiple_of(PAGE_BYTES),
    };
    if length >= wanted && allocated >= length {
        return Ok(());
    }
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, wanted) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_readers_has_all_its_space_and_keeps_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(READERS_FILE);
        allocate(dir.path(), 1024).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!(made.len(), 17 * PAGE_BYTES);
        assert!(made.blocks() * 512 >= made.len());
        // As LMDB leaves it where nobody allocated before.
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1023 * READER_BYTES + 192).unwrap();
        allocate(dir.path(), 1024).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 1023 * READER_BYTES + 192);
        assert!(found.blocks() * 512 >= found.len());
    }
}
