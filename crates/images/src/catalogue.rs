//! The local catalogue: names, and what they stand for.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{ImportOptions, Result, Tree};

/// A checked image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self> {
        todo!("{name}")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = crate::Error;
    fn try_from(name: String) -> Result<Self> {
        Self::parse(&name)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// How an image came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The read-only view of this host.
    Host,
    /// Imported from an archive or a directory.
    Imported,
}

/// An image as the catalogue lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// The content's identity: `sha256:…` of the tree; two names of one image share it.
    pub digest: String,
    /// How it came to be.
    pub kind: Kind,
    /// When, RFC 3339 in UTC.
    pub created_at: String,
    /// Bytes of file content on disk; zero for the host view.
    pub size_bytes: u64,
}

/// The images of one data directory. Cheap to clone; every method is blocking and safe to call from many threads.
#[derive(Debug, Clone)]
pub struct Catalogue {}

impl Catalogue {
    /// Opens (or makes) the catalogue in `dir`, clears what a crash left half done, refreshes the built-in images.
    pub fn open(dir: &Path) -> Result<Self> {
        todo!("{}", dir.display())
    }

    /// Every image, by name.
    pub fn list(&self) -> Result<Vec<Image>> {
        todo!()
    }

    /// One image.
    pub fn get(&self, name: &ImageName) -> Result<Image> {
        todo!("{name}")
    }

    /// The tree that `name` stands for now.
    pub fn tree(&self, name: &ImageName) -> Result<Tree> {
        todo!("{name}")
    }

    /// The tree with this digest, also after its last name was moved elsewhere.
    pub fn tree_by_digest(&self, digest: &str) -> Result<Tree> {
        todo!("{digest}")
    }

    /// Imports an archive (tar, tar.gz, tar.zst) or a directory under `name`. Nothing is visible until it is whole.
    /// `progress` is called with bytes read so far and the total where it is known.
    pub fn import(
        &self,
        name: &ImageName,
        source: &Path,
        options: &ImportOptions,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Image> {
        let _ = (name, source, options, progress);
        todo!()
    }

    /// Gives an image another name, moving that name if it stood for another image.
    pub fn tag(&self, existing: &ImageName, new: &ImageName) -> Result<Image> {
        todo!("{existing} {new}")
    }

    /// Removes a name; the content goes when no name is left and `in_use` does not hold its digest.
    pub fn remove(&self, name: &ImageName, in_use: &dyn Fn(&str) -> bool) -> Result<()> {
        let _ = (name, in_use);
        todo!()
    }
}
