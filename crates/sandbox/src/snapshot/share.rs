//! A snapshot of one data directory in another of the same file system: every file by a further link, so that it takes no
//! room, and neither directory needs the other from then on.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags};

use super::catalogue::{self, DIR, NEW, newest_named};
use crate::{
    error::{Error, Kind, Result},
    types::SnapshotName,
};

/// Deepest directory: as deep as the kernel's longest path.
const DEPTH_MAX: usize = 2048;

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Longest list of a directory's attributes, and longest value of one: the kernel's own limits.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Puts the snapshot of this name that `from` has into `into`, both data directories. It must not be in use as a data
/// directory yet. [`Kind::NotFound`] if `from` has no such snapshot.
pub fn share(from: &Path, into: &Path, name: &SnapshotName) -> Result<()> {
    let missing = || Error::new(Kind::NotFound, format!("there is no snapshot {name}"));
    let id = newest_named(&from.join(DIR), name)?.ok_or_else(missing)?;
    let place = into.join(DIR);
    let aside = format!("{NEW}{id}");
    let link = || -> io::Result<()> {
        let source = catalogue::open_directory(rustix::fs::CWD, from.join(DIR).join(id.as_str()))?;
        catalogue::make_private(&place)?;
        let target = catalogue::open_directory(rustix::fs::CWD, &place)?;
        rustix::fs::mkdirat(&target, &*aside, Mode::RWXU)?;
        link_all(&source, &catalogue::open_directory(&target, &*aside)?, DEPTH_MAX)?;
        Ok(rustix::fs::renameat(&target, &*aside, &target, id.as_str())?)
    };
    link().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(Kind::Conflict, format!("snapshot {name} was removed meanwhile")).with_source(error)
        }
        _ => Error::internal("share snapshot", error),
    })
}

/// Links all in one directory into another, and makes that look the same.
fn link_all(source: &OwnedFd, target: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
    let mut entries = RawDir::new(source, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let status = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(status.st_mode).is_dir() {
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            let (from, into) = (open(source, name)?, open(target, name)?);
            link_all(&from, &into, depth - 1)?;
        } else {
            rustix::fs::linkat(source, name, target, name, AtFlags::empty())?;
        }
    }
    // Last: entries that come change its times, and a directory that may not be written could not get any.
    copy_attributes(source, target)?;
    let status = rustix::fs::fstat(source)?;
    rustix::fs::fchown(target, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
    rustix::fs::fchmod(target, Mode::from_raw_mode(status.st_mode))?;
    Ok(rustix::fs::futimens(target, &times(&status))?)
}

fn open(parent: &OwnedFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn times(status: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(status.st_atime, status.st_atime_nsec),
        last_modification: time(status.st_mtime, status.st_mtime_nsec),
    }
}

/// Attributes of directories mean something to an overlay: that what lies below does not show through, for one.
fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let mut list = vec![MaybeUninit::<u8>::uninit(); ATTRIBUTE_BYTES_MAX];
    let names = match rustix::fs::flistxattr(source.as_fd(), &mut list[..]) {
        Ok((names, _)) => names,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); ATTRIBUTE_BYTES_MAX];
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let (value, _) = rustix::fs::fgetxattr(source.as_fd(), name, &mut buffer[..])?;
        rustix::fs::fsetxattr(target.as_fd(), name, value, XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn every_file_is_linked_and_directories_look_the_same() {
        let dir = tempfile::tempdir().expect("directory");
        let (from, into) = (dir.path().join("from"), dir.path().join("into"));
        let deep = from.join("a/b");
        std::fs::create_dir_all(&deep).expect("made");
        std::fs::create_dir(&into).expect("made");
        std::fs::write(deep.join("file"), "content").expect("written");
        symlink("nowhere", from.join("link")).expect("linked");
        rustix::fs::setxattr(from.join("a"), "user.note", b"kept", XattrFlags::empty()).expect("noted");
        std::fs::set_permissions(&deep, PermissionsExt::from_mode(0o2750)).expect("set");
        let open = |path: &Path| catalogue::open_directory(rustix::fs::CWD, path).expect("opens");
        link_all(&open(&from), &open(&into), DEPTH_MAX).expect("linked");

        let metadata = |path: &Path| path.symlink_metadata().expect("there");
        let (one, other) = (metadata(&deep.join("file")), metadata(&into.join("a/b/file")));
        assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
        assert_eq!(std::fs::read_link(into.join("link")).expect("a link"), Path::new("nowhere"));
        let (one, other) = (metadata(&deep), metadata(&into.join("a/b")));
        assert_eq!((one.mode(), one.mtime_nsec()), (other.mode(), other.mtime_nsec()));
        let mut note = [0; 8];
        let length = rustix::fs::getxattr(into.join("a"), "user.note", &mut note).expect("noted");
        assert_eq!(&note[..length], b"kept");

        std::fs::remove_dir_all(&from).expect("removed");
        assert_eq!(std::fs::read_to_string(into.join("a/b/file")).expect("stays"), "content");
    }

    #[test]
    fn what_is_not_there_is_told() {
        let dir = tempfile::tempdir().expect("directory");
        let name = SnapshotName::parse("missing").expect("a name");
        let error = share(dir.path(), &dir.path().join("into"), &name).expect_err("there is none");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
