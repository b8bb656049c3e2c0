//! What a virtual machine's image was made of, and what it is: the record beside its files that also names it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{DiskImage, Error, Result, blob::BlobDigest};

/// Name of the file.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Everything an image of a virtual machine is made of. The same inputs give the same manifest: it says nothing of when,
/// where or under what name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub version: u32,
    /// Where its files came from.
    pub source: Origin,
    /// The disk's files, lowest first.
    pub layers: Vec<FileRecord>,
    /// Size of the disk as the machine sees it; zero without one.
    pub size_bytes: u64,
    /// The kernel; none: the disk's own, by firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelRecord>,
    /// The initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<FileRecord>,
    /// Digest of the agent in it; none: it was put there by somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// What runs first on its root: `systemd` or `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The kernel's command line but for the console.
    pub command_line: String,
    /// The user that its maker names, the environment and the rest of what images say.
    pub config: crate::ImageConfig,
    /// Versions of the programs that made it.
    pub tools: BTreeMap<String, String>,
}

/// Where the files of an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Origin {
    /// Installed from Debian's packages.
    Debian {
        /// The suite.
        suite: String,
        /// Digest of the installed tree.
        digest: String,
        /// Versions of the packages, by name.
        packages: BTreeMap<String, String>,
    },
    /// A directory or archive.
    Tree {
        /// Digest of the tree.
        digest: String,
    },
    /// An image of the catalogue.
    Image {
        /// Its digest.
        digest: String,
    },
    /// A disk that somebody else made.
    Disk {
        /// Digest of its file.
        digest: String,
    },
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size_bytes: u64,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// The file.
    #[serde(flatten)]
    pub file: FileRecord,
    /// Where it came from: `tree`, `file`, or a package with its version.
    pub origin: String,
    /// What it calls itself, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Names of the modules that the initial file system loads, in order.
    #[serde(default)]
    pub modules: Vec<String>,
}

impl FileRecord {
    /// What a file is.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        const PIECE_BYTES: usize = 256 << 10;
        let mut file = File::open(path).map_err(Error::at(path))?;
        let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(Self { digest: BlobDigest::finish(hasher).to_string(), size_bytes }),
                Ok(count) => {
                    hasher.update(&piece[..count]);
                    size_bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::at(path)(error)),
            }
        }
    }
}

impl Manifest {
    /// As it is stored; its digest is the image's.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|error| Error::at(MANIFEST)(io::Error::from(error)))
    }

    /// The manifest of the image in `directory`, and its digest.
    pub(crate) fn read(directory: &Path) -> Result<(Self, BlobDigest)> {
        let path = directory.join(MANIFEST);
        let bytes = fs_err::read(&path).map_err(Error::at(&path))?;
        let manifest =
            serde_json::from_slice(&bytes).map_err(|error| Error::at(&path)(io::Error::from(error)))?;
        Ok((manifest, BlobDigest::of(&bytes)))
    }

    /// The disk of the image in `directory`.
    pub(crate) fn disk(&self, directory: &Path) -> DiskImage {
        DiskImage {
            layers: (0..self.layers.len()).map(|place| directory.join(layer_name(place))).collect(),
            kernel: self.kernel.as_ref().map(|_| directory.join(KERNEL)),
            initramfs: self.initramfs.as_ref().map(|_| directory.join(INITRAMFS)),
            command_line: self.command_line.clone(),
            size_bytes: self.size_bytes,
        }
    }

    /// Every file that it names, by its name.
    pub(crate) fn files(&self) -> Vec<(String, &FileRecord)> {
        let mut files: Vec<(String, &FileRecord)> =
            self.layers.iter().enumerate().map(|(place, layer)| (layer_name(place), layer)).collect();
        files.extend(self.kernel.as_ref().map(|kernel| (KERNEL.to_owned(), &kernel.file)));
        files.extend(self.initramfs.as_ref().map(|file| (INITRAMFS.to_owned(), file)));
        files
    }
}

/// Names of the files in an image's folder.
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs";

/// Name of a disk's file by its place: who lies over it names it so.
pub(crate) fn layer_name(place: usize) -> String {
    format!("{place}.qcow2")
}
