//! What a tree is, as one number.
//!
//! A walk in a fixed order over names, types, permissions, owners, contents, link targets, kept extended attributes,
//! what is hidden of layers below, and which names are one file. Times are left out: the same files packed on another day are the same image.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    root::{OPAQUE_ATTRIBUTE, WHITEOUT, keeps_attribute},
};

/// Bytes read at once.
const READ_BYTES: usize = 128 << 10;

/// Most bytes of the list of extended attribute names of one file; the kernel's own limit.
const ATTRIBUTE_LIST_BYTES_MAX: usize = 64 << 10;

/// Most bytes of one extended attribute; the kernel's own limit.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// What a walk found.
#[derive(Debug)]
pub(crate) struct Summary {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    /// Bytes that the content of the files takes on disk, each file once.
    pub(crate) stored_bytes: u64,
    /// Files, directories, links and whiteouts.
    pub(crate) entries: u64,
}

/// Walks the tree at `location`, which nobody changes meanwhile.
pub(crate) fn summarize(location: &Path) -> Result<Summary> {
    let directory = rustix::fs::open(
        location,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::at(location))?;
    let mut walk = Walk {
        location,
        hasher: Sha256::new(),
        files: HashMap::new(),
        stored_bytes: 0,
        entries: 0,
        buffer: vec![0; READ_BYTES],
    };
    walk.directory(directory)?;
    Ok(Summary {
        digest: format!("sha256:{}", hexadecimal(&walk.hasher.finalize())),
        stored_bytes: walk.stored_bytes,
        entries: walk.entries,
    })
}

/// Lower case hexadecimal digits of bytes.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

struct Walk<'a> {
    location: &'a Path,
    hasher: Sha256,
    /// Files with several names: the number of the entry that had the first one.
    files: HashMap<(u64, u64), u64>,
    stored_bytes: u64,
    entries: u64,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: OwnedFd) -> Result<()> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(&directory).map_err(Error::at(self.location))? {
            let entry = entry.map_err(Error::at(self.location))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            self.entry(directory.as_fd(), &name)?;
        }
        // Ends the directory, so that a file in it and a file after it differ.
        self.hasher.update(b"/");
        Ok(())
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        self.entries += 1;
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed(name))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.sized(name.to_bytes());
        let letter = match kind {
            FileType::Directory => b'd',
            FileType::RegularFile => b'f',
            FileType::Symlink => b'l',
            WHITEOUT if stat.st_rdev == 0 => b'w',
            _ => return Err(Error::Source(format!("{name:?} is neither file, directory nor link"))),
        };
        self.hasher.update([letter]);
        for number in [stat.st_mode & 0o7777, stat.st_uid, stat.st_gid] {
            self.hasher.update(number.to_le_bytes());
        }
        if kind == WHITEOUT {
            return Ok(());
        }
        if kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(self.failed(name))?;
            self.sized(target.as_bytes());
            return Ok(());
        }
        let opened = rustix::fs::openat(
            parent,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(self.failed(name))?;
        self.attributes(opened.as_fd(), name)?;
        if kind == FileType::Directory { self.directory(opened) } else { self.file(&opened, name, &stat) }
    }

    fn file(&mut self, file: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.files.get(&(stat.st_dev, stat.st_ino)) {
                self.hasher.update(b"=");
                self.hasher.update(first.to_le_bytes());
                return Ok(());
            }
            self.files.insert((stat.st_dev, stat.st_ino), self.entries);
        }
        self.stored_bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.hasher.update(u64::try_from(stat.st_size).unwrap_or(0).to_le_bytes());
        loop {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut *self.buffer))
                .map_err(self.failed(name))?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&self.buffer[..count]);
        }
    }

    fn attributes(&mut self, file: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let kept = |name: &[u8]| keeps_attribute(name) || name == OPAQUE_ATTRIBUTE.to_bytes();
        let mut kept = attributes_of(file, kept).map_err(self.failed(name))?;
        kept.sort_unstable();
        self.hasher.update((kept.len() as u64).to_le_bytes());
        for (attribute, value) in kept {
            self.sized(attribute.to_bytes());
            self.sized(&value);
        }
        Ok(())
    }

    fn sized(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    fn failed<'n>(&self, name: &'n CStr) -> impl FnOnce(Errno) -> Error + use<'n> {
        Error::at(self.location.join(OsStr::from_bytes(name.to_bytes())))
    }
}

/// The extended attributes of an open file that belong to an image.
pub(crate) fn extended_attributes(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<(CString, Vec<u8>)>> {
    attributes_of(file, keeps_attribute)
}

fn attributes_of(
    file: BorrowedFd<'_>,
    keep: impl Fn(&[u8]) -> bool,
) -> rustix::io::Result<Vec<(CString, Vec<u8>)>> {
    let mut kept = Vec::new();
    let length = match rustix::fs::flistxattr_query(file) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(kept),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(kept);
    }
    let mut list = vec![0; ATTRIBUTE_LIST_BYTES_MAX];
    let length = rustix::fs::flistxattr(file, &mut *list)?;
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !keep(name.to_bytes()) {
            continue;
        }
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(file, name, &mut *value)?;
        value.truncate(length);
        kept.push((name.to_owned(), value));
    }
    Ok(kept)
}
