//! Files of a workspace, from the host's side, while sandboxes may do to them what they like.
//!
//! Every path is resolved by the kernel beneath the workspace's root, so neither `..` nor a link, however quickly it is
//! swapped, leads out. What is opened is looked at first, and only then read: a pipe or a device holds nobody up. What
//! is written belongs to the sandbox's user and appears whole or not at all.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::volume::{give, open_directory};
use crate::{
    error::{Error, Kind, Result},
    removal,
    types::PATH_BYTES_MAX,
};

/// How often a path is resolved again that somebody renames meanwhile.
const RESOLVE_ATTEMPTS_MAX: usize = 64;

/// Most entries of one listing.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// Permissions of what is new.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// Permission bits that a replaced file hands on.
const MODE_MASK: u32 = 0o777;

/// A path in a workspace, from its root, clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspacePath(String);

impl WorkspacePath {
    /// Reads a path: a slash at its front counts for nothing, `.` and `..` are resolved by their names.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |message: String| Err(Error::new(Kind::Invalid, message));
        if text.len() > PATH_BYTES_MAX {
            return invalid(format!("path must not exceed {PATH_BYTES_MAX} bytes"));
        }
        if text.contains('\0') {
            return invalid("path must not contain NUL".to_owned());
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    return invalid("path must stay within the workspace".to_owned());
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        Ok(Self(parts.join("/")))
    }

    /// The workspace itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path, empty for the workspace itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds it, and its name there; `None` for the workspace itself.
    fn split(&self) -> Option<(&str, &str)> {
        if self.is_root() {
            return None;
        }
        Some(self.0.rsplit_once('/').unwrap_or(("", &self.0)))
    }
}

impl std::fmt::Display for WorkspacePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_root() { "." } else { &self.0 })
    }
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name in its directory.
    pub name: String,
    /// What it is, and its permissions, as the kernel numbers them.
    pub mode: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last change of the content, milliseconds since the Unix epoch.
    pub modified_at_ms: i64,
}

impl FileEntry {
    fn new(name: impl Into<String>, status: &Stat) -> Self {
        let millis = i64::try_from(status.st_mtime_nsec).unwrap_or(0) / 1_000_000;
        Self {
            name: name.into(),
            mode: status.st_mode,
            size_bytes: u64::try_from(status.st_size).unwrap_or(0),
            modified_at_ms: status.st_mtime.saturating_mul(1000).saturating_add(millis),
        }
    }

    /// It is a directory.
    pub fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.mode).is_dir()
    }

    /// Kind and permissions as `ls` prints them.
    pub fn mode_text(&self) -> String {
        let kind = match FileType::from_raw_mode(self.mode) {
            FileType::Directory => 'd',
            FileType::Symlink => 'l',
            FileType::Fifo => 'p',
            FileType::Socket => 's',
            FileType::CharacterDevice => 'c',
            FileType::BlockDevice => 'b',
            FileType::RegularFile | FileType::Unknown => '-',
        };
        let bits = (0..9).map(|at| {
            let letter = ['r', 'w', 'x'][at % 3];
            if self.mode & (0o400 >> at) == 0 { '-' } else { letter }
        });
        std::iter::once(kind).chain(bits).collect()
    }
}

/// How far a removal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A file or an empty directory.
    One,
    /// With all below.
    Tree,
}

/// Opens beneath the root, following only links that stay beneath.
fn resolve(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        attempts += 1;
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something on the way was renamed meanwhile, so the kernel cannot tell whether it stayed beneath.
            Err(Errno::AGAIN) if attempts < RESOLVE_ATTEMPTS_MAX => {}
            other => return other,
        }
    }
}

/// What went wrong with `path`, in words that are safe to show.
fn trouble(path: &WorkspacePath, error: io::Error) -> Error {
    let about = |kind, what: &str| Error::new(kind, format!("{what}: {path}"));
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => about(Kind::NotFound, "file not found"),
        Some(Errno::NOTDIR) => about(Kind::Invalid, "not a directory"),
        Some(Errno::ISDIR) => about(Kind::Invalid, "is a directory"),
        Some(Errno::NAMETOOLONG) => about(Kind::Invalid, "name too long"),
        Some(Errno::INVAL) => about(Kind::Invalid, "not a valid path"),
        Some(Errno::LOOP) => about(Kind::Invalid, "too many links"),
        Some(Errno::XDEV) => about(Kind::Forbidden, "a link leads out of the workspace"),
        Some(Errno::ACCESS | Errno::PERM) => about(Kind::Forbidden, "not allowed"),
        Some(Errno::NOTEMPTY | Errno::EXIST) => about(Kind::Conflict, "directory is not empty"),
        Some(Errno::AGAIN | Errno::BUSY | Errno::TXTBSY) => about(Kind::Conflict, "it is in use"),
        Some(Errno::NOSPC | Errno::DQUOT) => Error::new(Kind::Exhausted, "no space left"),
        Some(Errno::FBIG) => about(Kind::Invalid, "file too large"),
        _ => Error::internal("use a workspace's files", error),
    }
}

/// What is at `path`, links followed.
pub(super) fn stat(root: BorrowedFd<'_>, path: &WorkspacePath) -> Result<FileEntry> {
    let look = || -> io::Result<FileEntry> {
        let status = rustix::fs::fstat(resolve(root, &path.0, OFlags::PATH)?)?;
        Ok(FileEntry::new(path.split().map_or(".", |(_, name)| name), &status))
    };
    look().map_err(|error| trouble(path, error))
}

/// What a directory holds, by name.
pub(super) fn list(root: BorrowedFd<'_>, path: &WorkspacePath) -> Result<Vec<FileEntry>> {
    let look = || -> io::Result<Option<Vec<FileEntry>>> {
        let directory = resolve(root, &path.0, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entries.len() == ENTRIES_MAX {
                return Ok(None);
            }
            match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => entries.push(FileEntry::new(name.to_string_lossy(), &status)),
                // Gone meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(Some(entries))
    };
    look().map_err(|error| trouble(path, error))?.ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{path} has more than {ENTRIES_MAX} entries; list its parts"))
    })
}

/// Opens a regular file to read it.
pub(super) fn open(root: BorrowedFd<'_>, path: &WorkspacePath) -> Result<(OwnedFd, FileEntry)> {
    let look = || -> io::Result<Option<(OwnedFd, FileEntry)>> {
        // Only a place at first: opening a pipe would wait, and let its writer go on.
        let place = resolve(root, &path.0, OFlags::PATH)?;
        let status = rustix::fs::fstat(&place)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Ok(None),
        }
        // The same file, whatever its name means by now. It does not wait for a sandbox to give up a lease either.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, magic_link(&place), flags, Mode::empty())?;
        Ok(Some((file, FileEntry::new(path.split().map_or(".", |(_, name)| name), &status))))
    };
    look().map_err(|error| trouble(path, error))?.ok_or_else(|| irregular(path))
}

fn irregular(path: &WorkspacePath) -> Error {
    Error::new(Kind::Invalid, format!("not a regular file: {path}"))
}

fn magic_link(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Removes what is at `path`; a link itself, never what it leads to.
pub(super) fn remove(root: BorrowedFd<'_>, path: &WorkspacePath, extent: Extent) -> Result<()> {
    let Some((parent, name)) = path.split() else {
        return Err(Error::new(Kind::Invalid, "path must point to something in the workspace"));
    };
    let act = || -> io::Result<()> {
        let parent = resolve(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let unlinked = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match unlinked {
            Err(Errno::NOTEMPTY | Errno::EXIST) if extent == Extent::Tree => {
                removal::remove_tree(parent.as_fd(), name)?;
            }
            other => other?,
        }
        Ok(rustix::fs::fsync(&parent)?)
    };
    act().map_err(|error| trouble(path, error))
}

/// A file that is being written: it has no name yet, and vanishes if it never gets one.
#[derive(Debug)]
pub(super) struct Draft {
    path: WorkspacePath,
    parent: OwnedFd,
    name: String,
    file: std::fs::File,
    mode: u32,
}

impl Draft {
    /// Starts replacing or making the file at `path`; missing directories are made.
    pub(super) fn start(root: BorrowedFd<'_>, path: &WorkspacePath) -> Result<Self> {
        let Some((parent, name)) = path.split() else {
            return Err(Error::new(Kind::Invalid, "path must point to a file in the workspace"));
        };
        let start = || -> io::Result<Option<(OwnedFd, OwnedFd, u32)>> {
            let parent = match resolve(root, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => make_directories(root, parent)?,
                other => other?,
            };
            let mode = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => match FileType::from_raw_mode(status.st_mode) {
                    FileType::RegularFile => status.st_mode & MODE_MASK,
                    // Replaced itself.
                    FileType::Symlink => FILE_MODE,
                    FileType::Directory => return Err(Errno::ISDIR.into()),
                    _ => return Ok(None),
                },
                Err(Errno::NOENT) => FILE_MODE,
                Err(error) => return Err(error.into()),
            };
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&parent, ".", flags, Mode::from_raw_mode(0o600))?;
            Ok(Some((parent, file, mode)))
        };
        let started = start().map_err(|error| trouble(path, error))?;
        let (parent, file, mode) = started.ok_or_else(|| irregular(path))?;
        Ok(Self { path: path.clone(), parent, name: name.to_owned(), file: file.into(), mode })
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        io::Write::write_all(&mut self.file, bytes).map_err(|error| trouble(&self.path, error))
    }

    /// Puts the file in its place, durably.
    pub(super) fn commit(self) -> Result<()> {
        self.place().map_err(|error| trouble(&self.path, error))
    }

    fn place(&self) -> io::Result<()> {
        give(&self.file)?;
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.mode))?;
        self.file.sync_all()?;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let temporary = format!(".sandhaus-{:016x}", u64::from_ne_bytes(random));
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, unnamed, &self.parent, &*temporary, AtFlags::SYMLINK_FOLLOW)?;
        if let Err(error) = rustix::fs::renameat(&self.parent, &*temporary, &self.parent, &*self.name) {
            // The first error counts; a name that stays shows in the listing.
            let _ = rustix::fs::unlinkat(&self.parent, &*temporary, AtFlags::empty());
            return Err(error.into());
        }
        Ok(rustix::fs::fsync(&self.parent)?)
    }
}

/// Makes the directories of a path that are missing, and opens the last.
fn make_directories(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = resolve(root, "", flags)?;
    for (end, _) in path.match_indices('/').chain(std::iter::once((path.len(), ""))) {
        at = match resolve(root, &path[..end], flags) {
            Err(Errno::NOENT) => make_directory(&at, path[..end].rsplit('/').next().unwrap_or(path))?,
            other => other?,
        };
    }
    Ok(at)
}

fn make_directory(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let made = open_directory(parent, name)?;
    // Nobody inside can make anything that is the host's root's: this is still the one made just now.
    if rustix::fs::fstat(&made)?.st_uid == 0 {
        rustix::fs::fchmod(&made, DIRECTORY_MODE)?;
        give(&made)?;
    }
    rustix::fs::fsync(parent)?;
    Ok(made)
}
