//! Why a call of the store failed.

use std::{error::Error as StdError, io};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. The messages name the thing, the cause and what to do, and are safe to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is configured cannot be used.
    #[error("the snapshot store cannot be used: {0}")]
    Configuration(String),
    /// The name cannot be one in a store.
    #[error("snapshot name {name:?} cannot be used in a store: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The store has no snapshot of this name.
    #[error("snapshot {0} is not in the store")]
    NotFound(String),
    /// Somebody else pushed a snapshot of the same name at the same time.
    #[error(
        "snapshot {0} was changed in the store by somebody else at the same time: push again to replace theirs"
    )]
    Conflict(String),
    /// Somebody else replaced it while it was being read.
    #[error("snapshot {0} was replaced in the store while it was read: try again")]
    Changed(String),
    /// What is to be pushed cannot be kept in a store.
    #[error("snapshot {name} cannot be pushed: {problem}")]
    Unfit {
        /// The snapshot.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What the store has is not what was put there.
    #[error("snapshot {name} is damaged in the store: {problem}; push it again from where it is whole")]
    Damaged {
        /// The snapshot.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// There is not enough room.
    #[error(
        "{place} has {free_bytes} bytes free, {needed_bytes} are needed: make room or choose another disk"
    )]
    Space {
        /// Where.
        place: &'static str,
        /// So much is needed.
        needed_bytes: u64,
        /// So much there is.
        free_bytes: u64,
    },
    /// The store does not let us.
    #[error("store {store} refuses {what}: {reason}")]
    Refused {
        /// The store.
        store: String,
        /// What was asked.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The store cannot be reached or answers what it should not.
    #[error("store {store} {problem}")]
    Store {
        /// The store.
        store: String,
        /// What it did.
        problem: String,
        /// Why.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// Somebody asked to stop.
    #[error(
        "the transfer was interrupted; what has arrived is kept, and the same call again goes on from there"
    )]
    Interrupted,
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

impl Error {
    /// Turns a failure of the file system into an error; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }
}
