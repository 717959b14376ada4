//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one.
///
/// Systems keep the soft limit at 1,024 for programs that cannot cope with more. An open shard
/// takes three descriptors, and a chain one for each of its links.
pub(crate) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        // The work may fit all the same; if not, its error says which limit is in the way.
        tracing::debug!(%cause, "could not raise the limit of open files");
    }
}
