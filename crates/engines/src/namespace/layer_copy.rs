//! Copies of trees with other ids: of image layers that carry a sandbox's own, for kernels and file systems that cannot map
//! them, and of what a sandbox wrote that carry an image's, for snapshots.
//!
//! The same to look at: owners are shifted into a sandbox's range or out of it, those of files, of access lists and of file
//! capabilities; links, holes, modes, times and extended attributes stay what they are. Nothing in a tree is followed.

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

use super::{disk::IDS_PER_SANDBOX, removal, sparse};

/// Deepest tree that is copied; image imports allow no deeper one.
const DEPTH_MAX: usize = 512;

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Largest list of names or value of an extended attribute, the kernel's own limit.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Whom ids beyond a sandbox's range become.
const NOBODY: u32 = 65_534;

/// What overlayfs notes for itself alone about files of an upper layer: in a lower one it would be wrong.
const OVERLAY_OWN: &[&[u8]] = &[
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
];

/// Whose ids a copy carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// Those of the sandbox whose range begins here, of an image's.
    Into(u32),
    /// An image's, of those of the sandbox whose range begins here.
    OutOf(u32),
    /// The same; and files are further names of those that are there, as nobody ever changes them.
    Linked,
}

impl Owners {
    fn map(self, id: u32) -> u32 {
        match self {
            Self::Into(base) => base + if id < IDS_PER_SANDBOX { id } else { NOBODY },
            Self::OutOf(base) => id.checked_sub(base).filter(|id| *id < IDS_PER_SANDBOX).unwrap_or(NOBODY),
            Self::Linked => id,
        }
    }
}

/// Copies all below `source` into the empty directory `target`, and what `source` itself is.
pub(super) fn copy_tree(source: &OwnedFd, target: &OwnedFd, owners: Owners) -> io::Result<()> {
    let root = target.try_clone()?;
    Copier { owners, links: HashMap::new(), root, path: PathBuf::new() }.directory(source, target, 0)
}

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
        copy_tree(&source, &target, Owners::Into(base))?;
        rustix::fs::renameat(&parent, &*partial, &parent, index.to_string())?;
    }
    Ok(finished)
}

/// Opens a directory that is no link.
pub(super) fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

struct Copier {
    owners: Owners,
    /// Where a file with several names was copied to first, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    root: OwnedFd,
    path: PathBuf,
}

impl Copier {
    /// Copies what `source` holds into `target`, then what `source` is.
    fn directory(&mut self, source: &OwnedFd, target: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
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
        copy_attributes(source, target, self.owners)?;
        self.finish_open(target, &status)
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &CString, depth: usize) -> io::Result<()> {
        let status = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if self.owners == Owners::Linked && kind.is_file() {
            match rustix::fs::linkat(source, name, target, name, AtFlags::empty()) {
                // It has all the names it can have, or lies elsewhere: then it is copied.
                Err(Errno::MLINK | Errno::XDEV) => {}
                linked => return Ok(linked?),
            }
        }
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
        sparse::copy(&from, &to, u64::try_from(status.st_size).unwrap_or(0))?;
        // The owner first: a change of it clears capabilities and setuid.
        let (uid, gid) = self.owner(status);
        rustix::fs::fchown(&to, Some(uid), Some(gid))?;
        copy_attributes(&from, &to, self.owners)?;
        self.finish_open(&to, status)
    }

    fn finish_open(&self, target: &OwnedFd, status: &Stat) -> io::Result<()> {
        let (uid, gid) = self.owner(status);
        rustix::fs::fchown(target, Some(uid), Some(gid))?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(status.st_mode & 0o7777))?;
        Ok(rustix::fs::futimens(target, &times(status))?)
    }

    fn owner(&self, status: &Stat) -> (Uid, Gid) {
        (Uid::from_raw(self.owners.map(status.st_uid)), Gid::from_raw(self.owners.map(status.st_gid)))
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
fn copy_attributes(source: &OwnedFd, target: &OwnedFd, owners: Owners) -> io::Result<()> {
    let mut names = match rustix::fs::flistxattr_query(source) {
        // Most files have none.
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => vec![0; length],
        Err(error) => return Err(error.into()),
    };
    let length = rustix::fs::flistxattr(source, &mut names[..])?;
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if OVERLAY_OWN.contains(&name) {
            continue;
        }
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        value.truncate(length);
        let mapped = match name {
            b"security.capability" => capability_of(&value, owners),
            b"system.posix_acl_access" | b"system.posix_acl_default" => access_list_of(&value, owners),
            _ => None,
        };
        rustix::fs::fsetxattr(target, name, &mapped.unwrap_or(value), XattrFlags::empty())?;
    }
    Ok(())
}

/// File capabilities count for the user namespace whose root they name: version 2 names the host's, version 3 one.
fn capability_of(value: &[u8], owners: Owners) -> Option<Vec<u8>> {
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const REVISIONS: u32 = 0xff00_0000;
    const BYTES_2: usize = 20;
    let magic = u32::from_le_bytes(*value.first_chunk()?);
    let (other, base) = match owners {
        Owners::Into(base) if magic & REVISIONS == REVISION_2 && value.len() == BYTES_2 => {
            (REVISION_3, Some(base))
        }
        Owners::OutOf(base)
            if magic & REVISIONS == REVISION_3 && value.get(BYTES_2..)? == base.to_le_bytes() =>
        {
            (REVISION_2, None)
        }
        Owners::Into(_) | Owners::OutOf(_) | Owners::Linked => return None,
    };
    let mut mapped = value.get(..BYTES_2)?.to_vec();
    mapped[..4].copy_from_slice(&((magic & !REVISIONS) | other).to_le_bytes());
    mapped.extend(base.into_iter().flat_map(u32::to_le_bytes));
    Some(mapped)
}

/// An access list names users and groups: a version, then a tag, permissions and an id for each entry.
fn access_list_of(value: &[u8], owners: Owners) -> Option<Vec<u8>> {
    const HEAD_BYTES: usize = 4;
    const ENTRY_BYTES: usize = 8;
    const TAG_USER: u16 = 0x02;
    const TAG_GROUP: u16 = 0x08;
    let mut mapped = value.to_vec();
    for entry in mapped.get_mut(HEAD_BYTES..)?.chunks_exact_mut(ENTRY_BYTES) {
        let (head, id) = entry.split_at_mut(4);
        if matches!(u16::from_le_bytes(*head.first_chunk()?), TAG_USER | TAG_GROUP) {
            let other = owners.map(u32::from_le_bytes(*id.first_chunk()?));
            id.copy_from_slice(&other.to_le_bytes());
        }
    }
    Some(mapped)
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

        // And back: what was the host's, or beyond the range, is nobody's.
        let back = scratch.path().join("back");
        fs_err::create_dir(&back).expect("made");
        rustix::fs::setxattr(copy.join("a"), "trusted.overlay.origin", b"x", XattrFlags::empty())
            .expect("marked");
        let open = |path: &Path| open_directory(CWD, path).expect("opened");
        copy_tree(&open(copy), &open(&back), Owners::OutOf(BASE)).expect("copied");
        let status = |path: &str| fs_err::symlink_metadata(back.join(path)).expect("there");
        assert_eq!((status("a/file").uid(), status("a/file").gid()), (1000, NOBODY));
        assert_eq!((status("a/link").uid(), status("gone").rdev()), (0, 0));
        assert_eq!(rustix::fs::getxattr(back.join("a"), "trusted.overlay.opaque", &mut opaque), Ok(1));
        assert_eq!(
            rustix::fs::getxattr(back.join("a"), "trusted.overlay.origin", &mut opaque),
            Err(Errno::NODATA)
        );

        let linked = scratch.path().join("linked");
        fs_err::create_dir(&linked).expect("made");
        copy_tree(&open(&back), &open(&linked), Owners::Linked).expect("linked");
        let inode = |path: &Path| fs_err::symlink_metadata(path).expect("there").ino();
        assert_eq!(inode(&linked.join("a/file")), inode(&back.join("a/b/same")));
        assert_eq!(
            fs_err::symlink_metadata(linked.join("gone")).expect("there").mode() & libc::S_IFMT,
            libc::S_IFCHR
        );

        fs_err::write(copy.join("a/mark"), "").expect("written");
        copy_all(&[layer], &into, BASE).expect("used again");
        assert!(copy.join("a/mark").exists(), "a copy that is whole is made once");
    }

    #[test]
    fn file_capabilities_count_inside_only() {
        let mut host = vec![1, 0, 0, 2];
        host.extend([0; 16]);
        let inside = capability_of(&host, Owners::Into(BASE)).expect("version 2");
        assert_eq!(inside[..4], [1, 0, 0, 3]);
        assert_eq!(inside[20..], BASE.to_le_bytes());
        assert_eq!(capability_of(&inside, Owners::Into(BASE)), None);
        assert_eq!(capability_of(&[], Owners::Into(BASE)), None);
        assert_eq!(capability_of(&inside, Owners::OutOf(BASE)), Some(host));
        assert_eq!(capability_of(&inside, Owners::OutOf(BASE + IDS_PER_SANDBOX)), None, "another's");
    }

    #[test]
    fn access_lists_name_others() {
        let entry = |tag: u16, id: u32| {
            let mut entry = tag.to_le_bytes().to_vec();
            entry.extend([7, 0]);
            entry.extend(id.to_le_bytes());
            entry
        };
        let list =
            |user, group| [vec![2, 0, 0, 0], entry(1, u32::MAX), entry(2, user), entry(8, group)].concat();
        let (image, sandbox) = (list(33, 44), list(BASE + 33, BASE + 44));
        assert_eq!(access_list_of(&image, Owners::Into(BASE)), Some(sandbox.clone()));
        assert_eq!(access_list_of(&sandbox, Owners::OutOf(BASE)), Some(image));
        assert_eq!(access_list_of(&[1], Owners::OutOf(BASE)), None);
    }
}
