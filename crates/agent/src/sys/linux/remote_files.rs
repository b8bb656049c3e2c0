//! Files as SFTP names them: by bytes, wherever the workload may go. Each call belongs on a thread for files. Nothing here
//! waits for anybody: what is no regular file is opened without waiting for its other side.

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

/// Most symbolic links followed and parts of a path taken while it is made absolute.
const PARTS_MAX: usize = 4096;

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Opening {
    /// For reading.
    pub(crate) read: bool,
    /// For writing.
    pub(crate) write: bool,
    /// Each write goes to the end.
    pub(crate) append: bool,
    /// It is made where it is missing.
    pub(crate) create: bool,
    /// What is in it goes.
    pub(crate) truncate: bool,
    /// It must be missing.
    pub(crate) exclusive: bool,
}

/// What is to change of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Owner and group.
    pub(crate) owner: Option<(u32, u32)>,
    /// Permission bits.
    pub(crate) permissions: Option<u32>,
    /// Last access and last change, in seconds since 1970.
    pub(crate) times: Option<(u32, u32)>,
}

/// How a file stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Bytes.
    pub(crate) size: u64,
    /// Kind and permission bits.
    pub(crate) mode: u32,
    /// Names of it.
    pub(crate) links: u64,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last access, in seconds since 1970.
    pub(crate) accessed: i64,
    /// Last change of the content.
    pub(crate) modified: i64,
}

impl From<Stat> for Standing {
    fn from(stat: Stat) -> Self {
        #[expect(clippy::useless_conversion, reason = "the count is narrower on some architectures")]
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            links: stat.st_nlink.into(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            accessed: stat.st_atime,
            modified: stat.st_mtime,
        }
    }
}

/// An open directory.
pub(crate) struct Listing {
    directory: Dir,
    fd: OwnedFd,
}

/// Which file a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// What a link leads to.
    Followed,
    /// The link itself.
    Themselves,
}

impl Links {
    fn flags(self) -> AtFlags {
        match self {
            Self::Followed => AtFlags::empty(),
            Self::Themselves => AtFlags::SYMLINK_NOFOLLOW,
        }
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Opens a file that is no directory.
pub(crate) fn open_file(path: &CStr, opening: Opening, mode: u32) -> io::Result<OwnedFd> {
    let mut flags = match (opening.read, opening.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    };
    for (wanted, flag) in [
        (opening.append, OFlags::APPEND),
        (opening.create, OFlags::CREATE),
        (opening.truncate, OFlags::TRUNC),
        (opening.exclusive, OFlags::EXCL),
    ] {
        flags.set(flag, wanted);
    }
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, permissions(mode))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if kind == FileType::Directory { Err(Errno::ISDIR.into()) } else { Ok(fd) }
}

/// Reads from a place in a file; fewer bytes at its end, none beyond.
pub(crate) fn read_at(file: &impl AsFd, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let mut filled = 0;
    while filled < most {
        match rustix::io::pread(file, &mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Writes at a place in a file.
pub(crate) fn write_at(file: &impl AsFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                bytes = &bytes[written..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Has what was written reach the disk.
pub(crate) fn sync_file(file: &impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(file)?)
}

/// How a file stands.
pub(crate) fn stat_path(path: &CStr, links: Links) -> io::Result<Standing> {
    Ok(rustix::fs::statat(CWD, path, links.flags())?.into())
}

/// The same of an open one.
pub(crate) fn stat_file(file: &impl AsFd) -> io::Result<Standing> {
    Ok(rustix::fs::fstat(file)?.into())
}

/// The same of the file system that a file is on: sizes of its blocks; all, free and available ones; the same of files; a
/// number that means nothing elsewhere; flags; the longest name.
pub(crate) fn stat_file_system(path: &CStr) -> io::Result<[u64; 11]> {
    let stat = rustix::fs::statvfs(path)?;
    let blocks = [stat.f_bsize, stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail];
    let [size, fragment, all, free, available] = blocks;
    let flags = stat.f_flag.bits();
    Ok([
        size,
        fragment,
        all,
        free,
        available,
        stat.f_files,
        stat.f_ffree,
        stat.f_favail,
        0,
        flags,
        stat.f_namemax,
    ])
}

/// Changes what is asked for, in an order in which the owner can still do the rest.
pub(crate) fn change_path(path: &CStr, attributes: Attributes, links: Links) -> io::Result<()> {
    if let Some(size) = attributes.size {
        let opening = Opening { write: true, ..Opening::default() };
        rustix::fs::ftruncate(open_file(path, opening, 0)?, size)?;
    }
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), links.flags())?;
    }
    if let Some(mode) = attributes.permissions {
        match rustix::fs::chmodat(CWD, path, permissions(mode), links.flags()) {
            // Links have no permissions of their own.
            Err(Errno::OPNOTSUPP) if links == Links::Themselves => {}
            other => other?,
        }
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), links.flags())?;
    }
    Ok(())
}

/// The same of an open file.
pub(crate) fn change_file(file: &impl AsFd, attributes: Attributes) -> io::Result<()> {
    if let Some(size) = attributes.size {
        rustix::fs::ftruncate(file, size)?;
    }
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if let Some(mode) = attributes.permissions {
        rustix::fs::fchmod(file, permissions(mode))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::futimens(file, &timestamps(times))?;
    }
    Ok(())
}

fn timestamps((accessed, modified): (u32, u32)) -> Timestamps {
    let at = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Timestamps { last_access: at(accessed), last_modification: at(modified) }
}

/// Opens a directory for its names.
pub(crate) fn open_listing(path: &CStr) -> io::Result<Listing> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(Listing { directory: Dir::read_from(&fd)?, fd })
}

impl Listing {
    /// The next names with how their files stand, at most so many; none at the end.
    pub(crate) fn next(&mut self, most: usize) -> io::Result<Vec<(Vec<u8>, Standing)>> {
        let mut entries = Vec::new();
        while entries.len() < most {
            let Some(entry) = self.directory.read() else { break };
            let entry = entry?;
            let name = entry.file_name();
            // What goes away meanwhile is not there.
            if let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                entries.push((name.to_bytes().to_vec(), stat.into()));
            }
        }
        Ok(entries)
    }
}

/// Makes a directory.
pub(crate) fn make_directory(path: &CStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdir(path, permissions(mode))?)
}

/// Removes an empty directory.
pub(crate) fn remove_directory(path: &CStr) -> io::Result<()> {
    Ok(rustix::fs::rmdir(path)?)
}

/// Removes anything else.
pub(crate) fn remove_file(path: &CStr) -> io::Result<()> {
    Ok(rustix::fs::unlink(path)?)
}

/// Gives a file another name, in the place of whatever has it.
pub(crate) fn rename_over(from: &CStr, to: &CStr) -> io::Result<()> {
    Ok(rustix::fs::rename(from, to)?)
}

/// Gives a file another name that nothing has.
pub(crate) fn rename_aside(from: &CStr, to: &CStr) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it: look first.
        Err(Errno::INVAL | Errno::NOSYS) => match stat_path(to, Links::Themselves) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(_) => rename_over(from, to),
        },
        other => Ok(other?),
    }
}

/// Gives a file a second name.
pub(crate) fn link_file(from: &CStr, to: &CStr) -> io::Result<()> {
    Ok(rustix::fs::link(from, to)?)
}

/// Makes a symbolic link with this text.
pub(crate) fn link_symbolically(text: &CStr, link: &CStr) -> io::Result<()> {
    Ok(rustix::fs::symlink(text, link)?)
}

/// The text of a symbolic link.
pub(crate) fn read_link(path: &CStr) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlink(path, Vec::new())?.into_bytes())
}

/// An absolute path without links. Its last part, or all from one that is missing on, may be missing.
pub(crate) fn absolute(path: &[u8]) -> io::Result<Vec<u8>> {
    let whole = std::ffi::OsString::from_vec(path.to_owned());
    let whole = std::path::Path::new(&whole);
    if let Ok(found) = std::fs::canonicalize(whole) {
        return Ok(found.into_os_string().into_vec());
    }
    if let (Some(folder), Some(name)) = (whole.parent(), whole.file_name())
        && let Ok(folder) = std::fs::canonicalize(folder)
    {
        return Ok(folder.join(name).into_os_string().into_vec());
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/').take(PARTS_MAX) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok([b"/".to_vec(), parts.join(&b'/')].concat())
}
