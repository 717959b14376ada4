//! What LMDB needs of the file system.

use std::path::Path;

use crate::env;
use crate::error::{Error, Kind, Result};

/// Network file systems by the magic number of `statfs(2)`: their maps are not coherent and
/// their locks not reliable.
const NETWORK: [(u32, &str); 7] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x517b, "SMB"),
    (0x5346_414f, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

/// Refuses a directory on a network file system.
///
/// # Errors
/// [`Kind::Unsupported`], naming the file system.
pub(super) fn refuse_network(dir: &Path) -> Result<()> {
    let found = rustix::fs::statfs(dir)
        .map_err(|cause| Error::io(format!("examine `{}`", dir.display()), cause.into()))?;
    // The width of the field differs between machines; the magic numbers are 32 bits.
    match network_name(found.f_type as u32) {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "open `{}`: it lies on {name}, a network file system, where LMDB loses writes; \
                 use a local disk",
                dir.display()
            );
            Err(Error::new(Kind::Unsupported, message))
        }
    }
}

fn network_name(magic: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(network, _)| *network == magic).map(|(_, name)| *name)
}

/// Makes a directory, durable as all that leads to it.
pub(crate) fn make_directory(dir: &Path) -> Result<()> {
    env::make_folder(dir).map_err(|cause| Error::io(format!("create `{}`", dir.display()), cause))
}

/// Makes the names inside `dir` durable: new, renamed and removed files.
pub(crate) fn sync_directory(dir: &Path) -> Result<()> {
    env::sync_folder(dir).map_err(|cause| Error::io(format!("sync `{}`", dir.display()), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_number() {
        assert_eq!(network_name(0x6969), Some("NFS"));
        assert_eq!(network_name(0xff53_4d42), Some("CIFS"));
        assert_eq!(network_name(0xef53), None);
    }
}
