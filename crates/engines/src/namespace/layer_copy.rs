//! Copies of image layers that carry a sandbox's own ids, for kernels and file systems that cannot map them.
//!
//! Slow, but the same to look at: owners are shifted into the sandbox's range; links, modes, times, extended attributes
//! and file capabilities stay what they are. The copy belongs to the sandbox's disk and goes with it.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{disk::IDS_PER_SANDBOX, removal};

/// Deepest tree that is copied; image imports allow no deeper one.
const DEPTH_MAX: usize = 512;

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Bytes copied by one call.
const COPY_BYTES_MAX: usize = 1 << 30;

/// Largest list of names or value of an extended attribute, the kernel's own limit.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Whom ids beyond a sandbox's range become.
const NOBODY: u32 = 65_534;

/// Copies all layers into `into`, once; what is there whole already is used again.
pub(super) fn copy_all(layers: &[PathBuf], into: &Path, base: u32) -> io::Result<Vec<PathBuf>> {
    let name = |directory: &str| into.join(directory);
    let finished: Vec<PathBuf> = (0..layers.len()).map(|index| name(&index.to_string())).collect();
    super::disk::make_private(into)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(into, flags, Mode::empty())?;
    for (index, (layer, copy)) in layers.iter().zip(&finished).enumerate() {
        if copy.symlink_metadata().is_ok() {
            continue;
        }
        let partial = format!("{index}.partial");
        removal::remove_tree(parent.as_fd(), &partial)?;
        rustix::fs::mkdirat(&parent, &*partial, Mode::from_raw_mode(0o755))?;
        let source = open_directory(CWD, layer)?;
        let target = open_directory(&parent, &*partial)?;
        let mut copier =
            Copier { base, links: HashMap::new(), root: target.try_clone()?, path: PathBuf::new() };
        copier.directory(&source, &target, 0)?;
        rustix::fs::renameat(&parent, &*partial, &parent, index.to_string())?;
    }
    Ok(finished)
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

struct Copier {
    base: u32,
    /// Where a file with several names was copied to first, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    root: OwnedFd,
    path: PathBuf,
}

impl Copier {
    /// Copies what `source` holds into `target`, then what `source` is.
    fn directory(&mut self, source: &OwnedFd, target: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
        let mut entries = RawDir::new(source, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = name.to_owned();
            self.path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(source, target, &name, depth)?;
            self.path.pop();
        }
        let status = rustix::fs::fstat(source)?;
        copy_attributes(source, target, self.base)?;
        self.finish_open(target, &status)
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &CString, depth: usize) -> io::Result<()> {
        let status = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if !kind.is_dir() && status.st_nlink > 1 {
            let key = (status.st_dev, status.st_ino);
            if let Some(first) = self.links.get(&key) {
                return Ok(rustix::fs::linkat(&self.root, first, target, name, AtFlags::empty())?);
            }
            self.links.insert(key, self.path.clone());
        }
        let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(target, name, Mode::from_raw_mode(0o700))?;
                let (inner, copy) = (open_directory(source, name)?, open_directory(target, name)?);
                return self.directory(&inner, &copy, depth + 1);
            }
            FileType::RegularFile => return self.file(source, target, name, &status),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(link, target, name)?;
            }
            // A socket in an image speaks to nobody.
            FileType::Socket | FileType::Unknown => return Ok(()),
            // Whiteouts of upper layers are character devices 0:0; others are powerless below a mount without devices.
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                rustix::fs::mknodat(target, name, kind, mode, status.st_rdev)?;
            }
        }
        let (uid, gid) = self.owner(&status);
        rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(target, name, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(target, name, &times(&status), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn file(&self, source: &OwnedFd, target: &OwnedFd, name: &CString, status: &Stat) -> io::Result<()> {
        let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(source, name, reading, Mode::empty())?;
        let writing = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(target, name, writing, Mode::from_raw_mode(0o600))?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            while rustix::fs::copy_file_range(&from, None, &to, None, COPY_BYTES_MAX)? > 0 {}
        }
        // The owner first: a change of it clears capabilities and setuid.
        let (uid, gid) = self.owner(status);
        rustix::fs::fchown(&to, Some(uid), Some(gid))?;
        copy_attributes(&from, &to, self.base)?;
        self.finish_open(&to, status)
    }

    fn finish_open(&self, target: &OwnedFd, status: &Stat) -> io::Result<()> {
        let (uid, gid) = self.owner(status);
        rustix::fs::fchown(target, Some(uid), Some(gid))?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(status.st_mode & 0o7777))?;
        Ok(rustix::fs::futimens(target, &times(status))?)
    }

    fn owner(&self, status: &Stat) -> (Uid, Gid) {
        let shift = |id: u32| self.base + if id < IDS_PER_SANDBOX { id } else { NOBODY };
        (Uid::from_raw(shift(status.st_uid)), Gid::from_raw(shift(status.st_gid)))
    }
}

fn times(status: &Stat) -> Timestamps {
    let nanoseconds = |value| i64::try_from(value).unwrap_or(0);
    Timestamps {
        last_access: Timespec { tv_sec: status.st_atime, tv_nsec: nanoseconds(status.st_atime_nsec) },
        last_modification: Timespec { tv_sec: status.st_mtime, tv_nsec: nanoseconds(status.st_mtime_nsec) },
    }
}

/// Copies extended attributes: also those by which overlayfs marks opaque directories.
fn copy_attributes(source: &OwnedFd, target: &OwnedFd, base: u32) -> io::Result<()> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match rustix::fs::flistxattr(source, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        value.truncate(length);
        if name == b"security.capability" {
            value = capability_of(&value, base).unwrap_or(value);
        }
        rustix::fs::fsetxattr(target, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// File capabilities count for the user namespace whose root they name: version 2 names the host's, version 3 one.
fn capability_of(value: &[u8], base: u32) -> Option<Vec<u8>> {
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const REVISIONS: u32 = 0xff00_0000;
    let magic = u32::from_le_bytes(*value.first_chunk()?);
    if magic & REVISIONS != REVISION_2 || value.len() != 20 {
        return None;
    }
    let mut shifted = value.to_vec();
    shifted[..4].copy_from_slice(&((magic & !REVISIONS) | REVISION_3).to_le_bytes());
    shifted.extend(base.to_le_bytes());
    Some(shifted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    const BASE: u32 = 0x4005_0000;

    #[test]
    fn a_copy_is_the_same_but_for_its_owners() {
        let scratch = tempfile::tempdir().expect("a directory");
        let layer = scratch.path().join("layer");
        fs_err::create_dir_all(layer.join("a/b")).expect("made");
        fs_err::write(layer.join("a/file"), "content").expect("written");
        fs_err::hard_link(layer.join("a/file"), layer.join("a/b/same")).expect("linked");
        symlink("../nowhere", layer.join("a/link")).expect("linked");
        std::os::unix::fs::chown(layer.join("a/file"), Some(1000), Some(70_000)).expect("given");
        fs_err::set_permissions(layer.join("a/file"), std::fs::Permissions::from_mode(0o4755)).expect("set");
        rustix::fs::setxattr(layer.join("a"), "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .expect("marked");
        rustix::fs::mknodat(CWD, layer.join("gone"), FileType::CharacterDevice, Mode::empty(), 0)
            .expect("made");

        let into = scratch.path().join("copies");
        let copies = copy_all(std::slice::from_ref(&layer), &into, BASE).expect("copied");
        let copy = &copies[0];
        let status = |path: &str| fs_err::symlink_metadata(copy.join(path)).expect("there");
        assert_eq!(fs_err::read_to_string(copy.join("a/b/same")).expect("read"), "content");
        assert_eq!((status("a/file").uid(), status("a/file").gid()), (BASE + 1000, BASE + NOBODY));
        assert_eq!(status("a/file").mode() & 0o7777, 0o4755);
        assert_eq!(status("a/file").ino(), status("a/b/same").ino());
        assert_eq!(fs_err::read_link(copy.join("a/link")).expect("a link"), Path::new("../nowhere"));
        assert_eq!(status("a/link").uid(), BASE);
        assert_eq!((status("gone").rdev(), status("gone").mode() & libc::S_IFMT), (0, libc::S_IFCHR));
        let mut opaque = [0; 8];
        assert_eq!(rustix::fs::getxattr(copy.join("a"), "trusted.overlay.opaque", &mut opaque), Ok(1));

        fs_err::write(copy.join("a/mark"), "").expect("written");
        copy_all(&[layer], &into, BASE).expect("used again");
        assert!(copy.join("a/mark").exists(), "a copy that is whole is made once");
    }

    #[test]
    fn file_capabilities_count_inside_only() {
        let mut host = vec![1, 0, 0, 2];
        host.extend([0; 16]);
        let inside = capability_of(&host, BASE).expect("version 2");
        assert_eq!(inside[..4], [1, 0, 0, 3]);
        assert_eq!(inside[20..], BASE.to_le_bytes());
        assert_eq!(capability_of(&inside, BASE), None);
        assert_eq!(capability_of(&[], BASE), None);
    }
}
