//! Snapshots in a store that others share: S3-compatible, or a directory. It knows no sandbox and no engine: a snapshot
//! here is a name and a few files.

use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store has no snapshot of this name.
    #[error("there is no snapshot {0} in the store")]
    NotFound(String),
    /// A file of this host could not be used.
    #[error("{what} failed")]
    Io {
        /// Verb and noun, safe to show.
        what: &'static str,
        /// The cause, for the log.
        #[source]
        source: io::Error,
    },
}
