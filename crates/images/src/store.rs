//! The catalogue on disk.
//!
//! ```text
//! lock                   held while names or contents change, and for nothing that takes long
//! names/<name>.json      what a name stands for
//! content/<hex>/         one image, whole or not there
//!     image.json         what is known of it, and its layers
//!     config.json        its configuration as its maker wrote it, if it has one
//!     scaffold-<n>/      the layer above all others
//!     tree/              the root file system, in images from before layers were shared
//! layers/<hex>/          one layer, whole or not there
//!     layer.json         what is known of it
//!     tree/              what is stacked
//! partial/<hex>          what has arrived of a blob; locked by whoever fetches it
//! host/<hex>/            one state of the host's view: scaffold/ and view.json
//! host/current.json      which of them holds, and what of the host it was made from
//! tmp/<random>           everything half done; locked by its maker, removed by whoever opens the catalogue next
//! ```
//!
//! A content in use is locked shared through its own directory by every process that uses it, so that none removes it
//! under another.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result, blob::BlobDigest, digest::hexadecimal};

/// Largest record that is read.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// The file of a scratch folder that the programs which work in it have open and locked.
const PROGRAMS: &str = ".programs";

/// The folders of one catalogue.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// The right to change names and contents, given back on drop.
#[derive(Debug)]
pub(crate) struct ChangeLock {
    _file: OwnedFd,
}

/// A folder for what is half done, removed on drop with all that is still in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    lock: OwnedFd,
}

impl Store {
    /// Makes the folders where they are missing. Nobody but the owner gets in: imported trees hold setuid programs.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for directory in [
            root.to_path_buf(),
            root.join("names"),
            root.join("content"),
            root.join("layers"),
            root.join("partial"),
            root.join("host"),
            root.join("tmp"),
        ] {
            match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
                Ok(()) => {}
                Err(error) => return Err(Error::at(directory)(error)),
            }
        }
        fs_err::set_permissions(root, std::fs::Permissions::from_mode(0o700)).map_err(Error::at(root))?;
        let root = fs_err::canonicalize(root).map_err(Error::at(root))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    pub(crate) fn contents(&self) -> PathBuf {
        self.root.join("content")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where a layer lies or will lie.
    pub(crate) fn layer(&self, id: &BlobDigest) -> PathBuf {
        self.layers().join(id.hex())
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Where a blob lies that has not arrived whole.
    pub(crate) fn partial(&self, digest: &BlobDigest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    pub(crate) fn host(&self) -> PathBuf {
        self.root.join("host")
    }

    fn scratches(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Waits for the right to change things.
    pub(crate) fn lock(&self) -> Result<ChangeLock> {
        let path = self.root.join("lock");
        let file = rustix::fs::open(
            &path,
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )
        .map_err(Error::at(&path))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .map_err(Error::at(&path))?;
        Ok(ChangeLock { _file: file })
    }

    /// A new folder for something half done.
    pub(crate) fn scratch(&self, _lock: &ChangeLock) -> Result<Scratch> {
        let path = self.scratches().join(random_name()?);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::at(&path))?;
        let directory = open_directory(&path).map_err(Error::at(&path))?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(Error::at(&path))?;
        Ok(Scratch { path, lock: directory })
    }

    /// Takes over every folder that a process which is gone left half done; dropping them removes them.
    pub(crate) fn leftovers(&self, _lock: &ChangeLock) -> Result<Vec<Scratch>> {
        let mut leftovers = Vec::new();
        for name in entries(&self.scratches())? {
            let path = self.scratches().join(name);
            match open_directory(&path) {
                Ok(directory) => {
                    match is_forsaken(&directory) {
                        Ok(true) => leftovers.push(Scratch { path, lock: directory }),
                        // Its maker lives, or a program that was started by it.
                        Ok(false) => {}
                        Err(error) => return Err(Error::at(path)(error)),
                    }
                }
                // Records are written under the lock that we hold, so this one has no maker any more.
                Err(Errno::NOTDIR) => fs_err::remove_file(&path).map_err(Error::at(&path))?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::at(path)(error)),
            }
        }
        Ok(leftovers)
    }

    /// Moves a folder out of sight, to be removed when the result is dropped; `None` while a process uses it.
    pub(crate) fn take_away(&self, directory: &Path, _lock: &ChangeLock) -> Result<Option<Scratch>> {
        let lock = match open_directory(directory) {
            Ok(lock) => lock,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Error::at(directory)(error)),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(Error::at(directory)(error)),
        }
        let path = self.scratches().join(random_name()?);
        publish(directory, &path)?;
        Ok(Some(Scratch { path, lock }))
    }

    /// Writes a record so that a crash leaves the old one or the new one.
    pub(crate) fn write_record(
        &self,
        path: &Path,
        record: &impl Serialize,
        _lock: &ChangeLock,
    ) -> Result<()> {
        let temporary = self.scratches().join(random_name()?);
        write_new(&temporary, record)?;
        publish(&temporary, path)
    }
}

impl Scratch {
    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A lock to be handed to a program that works in it, as its standard input: an empty file, of which it may read as
    /// much as it likes. Nobody sweeps the folder while somebody has it.
    pub(crate) fn lock_handle(&self) -> Result<OwnedFd> {
        let path = self.path.join(PROGRAMS);
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(Error::at(&path))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(Error::at(&path))?;
        Ok(file)
    }

    /// Brings everything in it to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.lock).map_err(Error::at(&self.path))
    }

    /// Makes a folder in it.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(Error::at(&path))?;
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(Error::at(&path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "leftover of an image operation stays until the catalogue is opened again");
        }
    }
}

/// Locks a scratch folder of which nobody has a lock any more.
fn is_forsaken(directory: &OwnedFd) -> rustix::io::Result<bool> {
    match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let programs = match rustix::fs::openat(directory, PROGRAMS, flags, Mode::empty()) {
        Ok(programs) => programs,
        Err(Errno::NOENT) => return Ok(true),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&programs, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks a content against removal by other processes for as long as the result lives. `None` if it is not there.
pub(crate) fn hold(directory: &Path) -> Result<Option<OwnedFd>> {
    let lock = match open_directory(directory) {
        Ok(lock) => lock,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::at(directory)(error)),
    };
    rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockShared))
        .map_err(Error::at(directory))?;
    // Whoever removes it had it locked and has moved it away by now.
    if exists(directory)? { Ok(Some(lock)) } else { Ok(None) }
}

/// Renames, and makes the change last.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<()> {
    fs_err::rename(from, to).map_err(Error::at(to))?;
    for path in [from, to] {
        let parent = path.parent().unwrap_or(path);
        let directory = open_directory(parent).map_err(Error::at(parent))?;
        rustix::fs::fsync(&directory).map_err(Error::at(parent))?;
    }
    Ok(())
}

/// Removes a file, and makes the change last.
pub(crate) fn remove_record(path: &Path) -> Result<()> {
    fs_err::remove_file(path).map_err(Error::at(path))?;
    let parent = path.parent().unwrap_or(path);
    let directory = open_directory(parent).map_err(Error::at(parent))?;
    rustix::fs::fsync(&directory).map_err(Error::at(parent))
}

/// Writes a record under a name that nothing has yet.
pub(crate) fn write_new(path: &Path, record: &impl Serialize) -> Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let content = serde_json::to_vec(record).map_err(|error| Error::at(path)(io::Error::from(error)))?;
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::at(path))?;
    file.write_all(&content).map_err(Error::at(path))?;
    file.sync_all().map_err(Error::at(path))
}

/// Reads a record; `None` if there is none.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::at(path)(error)),
    };
    let mut content = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut content).map_err(Error::at(path))?;
    serde_json::from_slice(&content).map(Some).map_err(|error| Error::at(path)(io::Error::from(error)))
}

/// Whether a directory or file is there.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match rustix::fs::access(path, rustix::fs::Access::EXISTS) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(Error::at(path)(error)),
    }
}

/// Names in a directory, in no order.
pub(crate) fn entries(directory: &Path) -> Result<Vec<OsString>> {
    fs_err::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .map_err(Error::at(directory))
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn random_name() -> Result<String> {
    let mut random = [0_u8; 16];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
        .map_err(Error::at(OsStr::new("random source")))?;
    Ok(hexadecimal(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_is_not_swept_while_a_program_works_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut scratch = store.scratch(&store.lock().unwrap()).unwrap();
        let held = scratch.lock_handle().unwrap();
        assert!(store.leftovers(&store.lock().unwrap()).unwrap().is_empty(), "its maker lives");
        // As if its maker had been killed: its lock is gone, the descriptor of the program stays.
        scratch.lock = open_directory(folder.path()).unwrap();
        assert!(store.leftovers(&store.lock().unwrap()).unwrap().is_empty(), "a program works in it");
        drop(held);
        assert_eq!(store.leftovers(&store.lock().unwrap()).unwrap().len(), 1);
        assert!(!scratch.path().exists());
    }
}
