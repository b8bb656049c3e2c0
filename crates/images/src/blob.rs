//! Digests of blobs, and blobs of which only a part has arrived.
//!
//! A partial blob is a file named after its digest. Whoever fills it holds a lock on it, so a blob is fetched once at a
//! time on this host, by whatever process. What is in it stays when its maker dies: the next one goes on behind it.

use std::{
    fmt,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result, digest::hexadecimal};

/// What digests of this kind begin with; registries use no other.
const PREFIX: &str = "sha256:";

/// Hexadecimal digits of a digest.
const HEX_DIGITS: usize = 64;

/// Names a blob by its content: `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct BlobDigest(String);

impl BlobDigest {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(PREFIX)?;
        let digits = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (hex.len() == HEX_DIGITS && digits).then(|| Self(text.to_owned()))
    }

    /// The digest of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest of everything that a hasher has seen.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(format!("{PREFIX}{}", hexadecimal(&hasher.finalize())))
    }

    /// The digits alone: safe as a file name.
    pub(crate) fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Fails if these bytes have another digest.
    pub(crate) fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        self.equals(what, &Self::of(bytes))
    }

    /// Fails if `found` is another.
    pub(crate) fn equals(&self, what: &str, found: &Self) -> Result<()> {
        if self == found {
            return Ok(());
        }
        Err(Error::Digest { what: what.to_owned(), expected: self.to_string(), found: found.to_string() })
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BlobDigest {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let refuse = || format!("{text:.80?} is no sha256 digest");
        Self::parse(&text).ok_or_else(refuse)
    }
}

impl From<BlobDigest> for String {
    fn from(digest: BlobDigest) -> Self {
        digest.0
    }
}

/// The part of a blob that is here, to be filled by its holder alone.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    file: File,
    path: PathBuf,
    length: u64,
}

impl PartialBlob {
    /// Opens or begins the partial blob at `path`; `None` while another holds it.
    pub(crate) fn try_open(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = rustix::fs::open(
                path,
                OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )
            .map_err(Error::at(path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(Error::at(path)(error)),
            }
            let stat = rustix::fs::fstat(&file).map_err(Error::at(path))?;
            // Whoever had it before may have removed it: then the name is free, or stands for another file.
            if stat.st_nlink > 0 {
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                return Ok(Some(Self { file: file.into(), path: path.to_path_buf(), length }));
            }
        }
    }

    /// Bytes that are here.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Forgets what is here.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::at(&self.path))?;
        self.length = 0;
        Ok(())
    }

    /// Adds what follows.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Reads of what is here.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// Removes it: what it was for is done, or it is worth nothing.
    pub(crate) fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::at(&self.path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = BlobDigest::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(digest.hex(), hex);
        for bad in ["", "sha256:", "sha256:../x", &format!("sha256:{}", "A".repeat(64)), &hex] {
            assert_eq!(BlobDigest::parse(bad), None);
        }
        assert_eq!(
            BlobDigest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(matches!(digest.check("x", b""), Err(Error::Digest { .. })));
    }

    #[test]
    fn one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        let mut first = PartialBlob::try_open(&path).unwrap().unwrap();
        first.append(b"abc").unwrap();
        assert!(PartialBlob::try_open(&path).unwrap().is_none());
        drop(first);
        let second = PartialBlob::try_open(&path).unwrap().unwrap();
        assert_eq!(second.length(), 3);
        second.remove().unwrap();
        assert_eq!(PartialBlob::try_open(&path).unwrap().unwrap().length(), 0);
    }
}
