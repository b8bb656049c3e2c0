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
    /// What should name an image in a registry does not.
    #[error("{reference:?} names no image of a registry: {problem}")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        problem: &'static str,
    },
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
    /// The registry has no such image.
    #[error("image {0} is not in its registry")]
    NotInRegistry(String),
    /// The registry wants to know who asks, or does not let them.
    #[error("registry {registry} refuses access to {repository}: {reason}")]
    Refused {
        /// Its name.
        registry: String,
        /// What was asked for.
        repository: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The registry cannot be reached or answers what it should not.
    #[error("registry {registry} {problem}")]
    Registry {
        /// Its name.
        registry: String,
        /// What it did.
        problem: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The image is there, but not for this kind of machine.
    #[error("image {reference} is not made for {wanted}, only for {available}")]
    Platform {
        /// What was asked for.
        reference: String,
        /// The kind of machine.
        wanted: String,
        /// The kinds it is made for.
        available: String,
    },
    /// What arrived is not what its digest names.
    #[error("{what} is not what was asked for: it has digest {found}, not {expected}")]
    Digest {
        /// What arrived.
        what: String,
        /// The digest it should have.
        expected: String,
        /// The digest it has.
        found: String,
    },
    /// Somebody asked to stop.
    #[error("the pull was interrupted; what has arrived is kept, and pulling again goes on from there")]
    Interrupted,
    /// Somebody asked to stop a build.
    #[error("the build was interrupted; nothing of it is left")]
    BuildInterrupted,
    /// A program that a build needs is not installed.
    #[error("{tool} is not installed: `apt-get install {package}` brings it")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// The package of Debian that has it.
        package: &'static str,
    },
    /// A program that a build needs failed.
    #[error("{tool} failed: {problem}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// Its status and the last it said.
        problem: String,
    },
    /// There is not enough room for a build.
    #[error(
        "the build needs about {needed_bytes} bytes of disk, {free_bytes} are free beneath the data directory"
    )]
    NoRoom {
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The image is the disk of a virtual machine, or is not, and what was asked for needs the other.
    #[error("image {image} {problem}")]
    Form {
        /// The image.
        image: String,
        /// What it is, and what would be needed.
        problem: &'static str,
    },
    /// A name has no version before the one that it stands for.
    #[error("image {0} has no version before the one that it stands for")]
    NoVersionBefore(String),
    /// What is stored has changed since.
    #[error("image {image} is damaged: {problem}")]
    Damaged {
        /// The image.
        image: String,
        /// What is wrong.
        problem: String,
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
