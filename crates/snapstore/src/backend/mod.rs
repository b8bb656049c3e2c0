//! Objects under keys: what both kinds of stores can do. Keys here are those beneath `snapshots/`.

use bytes::Bytes;

use crate::{
    Error, Result,
    config::{Location, StoreConfig},
    content::Sha256,
};

mod directory;
mod s3;

use directory::Directory;
use s3::S3;

/// What all keys begin with, after the prefix that is configured.
const FOLDER: &str = "snapshots";

/// A store.
#[derive(Debug)]
pub(crate) enum Backend {
    Directory(Directory),
    S3(Box<S3>),
}

/// Why an operation on an object did not come about.
#[derive(Debug)]
pub(crate) enum Fault {
    /// There is no such object.
    Absent,
    /// The object is another one than was meant.
    Changed,
    /// There is no such upload: it has ended, or the store has forgotten it.
    NoUpload,
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) size_bytes: u64,
    /// Its version, where the store tells versions apart.
    pub(crate) etag: Option<String>,
    /// Which push made it, where the store keeps that.
    pub(crate) revision: Option<String>,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A key, or the beginning of several up to a slash.
    pub(crate) key: String,
    /// Of an object.
    pub(crate) size_bytes: u64,
}

/// How far a listing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Up to the next slash.
    Level,
    /// All the way.
    All,
}

/// When an object may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Only where there is none.
    Absent,
    /// Only in place of this version.
    Replaces(String),
    /// Whatever is there.
    Always,
}

/// An upload in parts that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) key: String,
    pub(crate) id: String,
}

/// Bytes on their way to the store.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) digest: Sha256,
}

impl Payload {
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        let digest = Sha256::of_pieces(pieces.iter().map(AsRef::as_ref));
        Self { pieces, digest }
    }

    pub(crate) fn length(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// A part that the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) size_bytes: u64,
    /// What the store called it; some do not say when asked later.
    pub(crate) etag: Option<String>,
}

/// Calls the same method of whichever store it is.
macro_rules! either {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {
        match $self {
            Self::Directory(store) => store.$method($($argument),*).await,
            Self::S3(store) => store.$method($($argument),*).await,
        }
    };
}

impl Backend {
    pub(crate) async fn open(config: &StoreConfig) -> Result<Self> {
        match &config.location {
            Location::Directory(path) => Directory::open(path).await.map(Self::Directory),
            Location::Bucket(bucket) => {
                S3::open(bucket, &config.patience).map(|store| Self::S3(Box::new(store)))
            }
        }
    }

    /// The store, as messages name it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Directory(store) => store.name(),
            Self::S3(store) => store.name(),
        }
    }

    /// Bytes free, where that is known.
    pub(crate) async fn free_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Directory(store) => store.free_bytes().await.map(Some),
            Self::S3(_) => Ok(None),
        }
    }

    pub(crate) async fn head(&self, key: &str) -> Result<Object, Fault> {
        either!(self.head(key))
    }

    /// A stretch of an object; of this version, if one is given.
    pub(crate) async fn get(
        &self,
        key: &str,
        etag: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Fault> {
        either!(self.get(key, etag, offset, length))
    }

    /// A small object as a whole, with a version that [`Condition::Replaces`] takes.
    pub(crate) async fn document(&self, key: &str, bytes_max: u64) -> Result<(Bytes, Option<String>), Fault> {
        either!(self.document(key, bytes_max))
    }

    /// Writes a small object as a whole; gives its version, as [`Self::head`] would.
    pub(crate) async fn put(
        &self,
        key: &str,
        payload: Payload,
        condition: &Condition,
        revision: &str,
    ) -> Result<Option<String>, Fault> {
        either!(self.put(key, payload, condition, revision))
    }

    pub(crate) async fn begin_upload(&self, key: &str, revision: &str) -> Result<Upload, Fault> {
        either!(self.begin_upload(key, revision))
    }

    /// Writes a part, which begins at `offset` of the object. Gives what the store calls it.
    pub(crate) async fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        offset: u64,
        payload: Payload,
    ) -> Result<String, Fault> {
        either!(self.put_part(upload, number, offset, payload))
    }

    /// The parts that the store has; `None` if it cannot say.
    pub(crate) async fn parts(&self, upload: &Upload) -> Result<Option<Vec<Part>>, Fault> {
        either!(self.parts(upload))
    }

    /// Makes the object of its parts, number and what the store called each; gives its version.
    pub(crate) async fn complete(
        &self,
        upload: &Upload,
        parts: &[(u32, String)],
        size_bytes: u64,
    ) -> Result<Option<String>, Fault> {
        either!(self.complete(upload, parts, size_bytes))
    }

    /// Forgets an upload and its parts. One that is not there is success.
    pub(crate) async fn abort(&self, upload: &Upload) -> Result<(), Fault> {
        either!(self.abort(upload))
    }

    pub(crate) async fn list(&self, prefix: &str, depth: Depth) -> Result<Vec<Entry>, Fault> {
        either!(self.list(prefix, depth))
    }

    /// Removes an object. One that is not there is success.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), Fault> {
        either!(self.remove(key))
    }

    /// Makes an object that is like another, within the store; gives its version.
    pub(crate) async fn copy(
        &self,
        from: &str,
        to: &str,
        size_bytes: u64,
        revision: &str,
    ) -> Result<Option<String>, Fault> {
        either!(self.copy(from, to, size_bytes, revision))
    }
}
