//! Why an image operation failed.

use std::{io, path::PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image operation failed; the messages name the thing and are safe to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is not one: letters, digits, `.`, `_`, `-`, `/` and `:`, at most 128 bytes.
    #[error("image name {0:?} is not valid")]
    Name(String),
    /// No such image.
    #[error("image {0} is not there")]
    NotFound(String),
    /// The name is taken.
    #[error("image {0} exists")]
    Exists(String),
    /// The built-in images cannot be removed or replaced.
    #[error("image {0} is built in")]
    BuiltIn(String),
    /// The archive or tree is not acceptable.
    #[error("image source is not acceptable: {0}")]
    Source(String),
    /// A limit was reached.
    #[error("image is too large: {what} is over {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The most.
        limit: u64,
    },
    /// The file system failed.
    #[error("image storage failed at {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Turns a failure of the file system at `path` into an error; for `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { path: path.into(), source: source.into() }
    }
}
