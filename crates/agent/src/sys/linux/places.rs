//! Files by path, looked at: resolution under a root that nothing leads out of, opening, describing, listing.
//!
//! With a root every step of the way is taken by the kernel (`openat2`, RESOLVE_BENEATH and no magic links), so a
//! symbolic link swapped in meanwhile changes nothing. Without one, paths mean what they mean to the workload.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

/// Attempts at a path that others rename while it is resolved.
const RESOLVE_ATTEMPTS: u32 = 64;

/// Symbolic links followed at the end of one path.
const LINKS_MAX: u32 = 40;

/// A path and what it is resolved from.
#[derive(Debug)]
pub(crate) struct Place {
    base: OwnedFd,
    /// The base's own absolute path where nothing may lead out of it.
    root: Option<String>,
    path: String,
}

/// What kind of thing a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// A file as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Last part of its path.
    pub(crate) name: String,
    /// Path below the listed directory.
    pub(crate) path: String,
    /// Its kind.
    pub(crate) kind: EntryKind,
    /// Bytes.
    pub(crate) size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) permissions: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last change of the content: seconds since 1970 and nanoseconds.
    pub(crate) modified: (i64, u32),
    /// Text of the symbolic link that the entry is in its directory, where a listing found one.
    pub(crate) link_target: Option<String>,
}

impl Entry {
    pub(super) fn new(name: &str, path: &str, stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Link,
            FileType::Fifo => EntryKind::Pipe,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharacterDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::RegularFile | FileType::Unknown => EntryKind::File,
        };
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            permissions: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            link_target: None,
        }
    }
}

impl Place {
    /// `path` beneath `root`, or as the workload sees it from `workdir`.
    pub(crate) fn new(root: Option<&str>, workdir: &str, path: &str) -> io::Result<Self> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::open(root.unwrap_or(workdir), directory, Mode::empty())?;
        let mut place =
            Self { base, root: root.map(|root| root.trim_end_matches('/').to_owned()), path: String::new() };
        place.path = place.enter(path)?;
        Ok(place)
    }

    /// A path as the base takes it: an absolute one must lie under the root, where there is one.
    fn enter(&self, path: &str) -> io::Result<String> {
        if path.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let inside = match &self.root {
            Some(root) if path.starts_with('/') => {
                let rest =
                    path.strip_prefix(root.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                rest.ok_or(io::ErrorKind::CrossesDevices)?.trim_start_matches('/')
            }
            Some(_) | None => path,
        };
        Ok(if inside.is_empty() { ".".to_owned() } else { inside.to_owned() })
    }

    /// The path as it is resolved.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Opens `path`, which has entered.
    pub(super) fn open_at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = match self.root {
            Some(_) => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            None => ResolveFlags::empty(),
        };
        for _ in 0..RESOLVE_ATTEMPTS {
            match rustix::fs::openat2(&self.base, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The directory that holds the last part of the path, and that part.
    pub(super) fn parent(&self) -> io::Result<(OwnedFd, String)> {
        let (folder, name) = split(&self.path)?;
        Ok((self.open_at(folder, OFlags::PATH | OFlags::DIRECTORY)?, name.to_owned()))
    }

    /// Follows symbolic links at the end of the path, so that what they point to is replaced and not they.
    pub(super) fn follow(&mut self) -> io::Result<()> {
        for _ in 0..LINKS_MAX {
            let (folder, name) = split(&self.path)?;
            let target = match self.open_at(folder, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(parent) => match rustix::fs::readlinkat(&parent, name, Vec::new()) {
                    Ok(target) => target.into_string().map_err(|_| io::ErrorKind::InvalidInput)?,
                    // Not a link, or nothing there yet.
                    Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            self.path =
                if target.starts_with('/') { self.enter(&target)? } else { format!("{folder}/{target}") };
        }
        Err(Errno::LOOP.into())
    }

    /// How the file stands that the path leads to, links followed.
    pub(crate) fn describe(&self) -> io::Result<Entry> {
        let stat = rustix::fs::fstat(self.open_at(&self.path, OFlags::PATH)?)?;
        let name = split(&self.path).map_or(self.path.as_str(), |(_, name)| name);
        Ok(Entry::new(name, &self.path, &stat))
    }

    /// Every entry of the directory, `depth` levels deep, at most `most` of them; `None` when there are more.
    /// Links are described by what they point to where that can be reached, and never descended into.
    pub(crate) fn list(&self, depth: u32, most: usize) -> io::Result<Option<Vec<Entry>>> {
        let top = self.open_at(&self.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)?;
        let mut entries = Vec::new();
        let mut waiting = vec![(String::new(), 1)];
        while let Some((folder, level)) = waiting.pop() {
            let directory = match open_below(&top, &folder) {
                Ok(directory) => directory,
                Err(error) if folder.is_empty() => return Err(error),
                // Unreadable or gone meanwhile.
                Err(_) => continue,
            };
            let first = entries.len();
            for name in names(&directory)? {
                if entries.len() == most {
                    return Ok(None);
                }
                let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                let Ok(stat) = rustix::fs::statat(&directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                else {
                    continue;
                };
                let entry = Entry::new(&name, &path, &stat);
                if entry.kind == EntryKind::Directory && level < depth {
                    waiting.push((path.clone(), level + 1));
                }
                entries.push(match entry.kind {
                    EntryKind::Link => {
                        let text = rustix::fs::readlinkat(&directory, entry.name.as_str(), Vec::new());
                        let link_target = text.ok().and_then(|text| text.into_string().ok());
                        Entry { link_target, ..self.describe_target(&entry).unwrap_or(entry) }
                    }
                    EntryKind::File
                    | EntryKind::Directory
                    | EntryKind::Pipe
                    | EntryKind::Socket
                    | EntryKind::CharacterDevice
                    | EntryKind::BlockDevice => entry,
                });
            }
            entries[first..].sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(Some(entries))
    }

    fn describe_target(&self, link: &Entry) -> Option<Entry> {
        let path = format!("{}/{}", self.path, link.path);
        let stat = rustix::fs::fstat(self.open_at(&path, OFlags::PATH).ok()?).ok()?;
        Some(Entry::new(&link.name, &link.path, &stat))
    }

    /// Opens a regular file for reading. Anything else is refused without ever waiting for it.
    pub(crate) fn open_regular(&self) -> io::Result<(File, Entry)> {
        let fd = self.open_at(&self.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        regular(fd, &self.path)
    }
}

/// A file below an open directory, links nowhere followed; `path` comes from a listing of it.
pub(crate) fn open_regular_below(top: &impl AsFd, path: &str) -> io::Result<(File, Entry)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    regular(rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)?, path)
}

fn regular(fd: OwnedFd, path: &str) -> io::Result<(File, Entry)> {
    let stat = rustix::fs::fstat(&fd)?;
    let entry = Entry::new(path.rsplit('/').next().unwrap_or(path), path, &stat);
    match entry.kind {
        EntryKind::File => Ok((File::from(fd), entry)),
        EntryKind::Directory => Err(io::ErrorKind::IsADirectory.into()),
        EntryKind::Link
        | EntryKind::Pipe
        | EntryKind::Socket
        | EntryKind::CharacterDevice
        | EntryKind::BlockDevice => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Opens the directory that a place names, to open what was listed below it.
pub(crate) fn open_directory(place: &Place) -> io::Result<OwnedFd> {
    place.open_at(&place.path, OFlags::PATH | OFlags::DIRECTORY)
}

/// A directory below `top`, links nowhere followed.
pub(super) fn open_below(top: &impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.is_empty() { "." } else { path };
    Ok(rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)?)
}

/// Names in a directory, as the kernel has them.
pub(super) fn raw_names(directory: &impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Names in a directory. Those that are no UTF-8 cannot be said in this API and are left out.
fn names(directory: &impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A path's directory and last part. The last part is a name, not `.` or `..`.
fn split(path: &str) -> io::Result<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (folder, name) = match path.rfind('/') {
        Some(0) => ("/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (".", path),
    };
    if matches!(name, "" | "." | "..") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((folder, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_their_last_part() {
        assert_eq!(split("a").ok(), Some((".", "a")));
        assert_eq!(split("/a").ok(), Some(("/", "a")));
        assert_eq!(split("a/b//").ok(), Some(("a", "b")));
        for wrong in ["", ".", "..", "/", "a/..", "a/."] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("create root");
        std::fs::write(folder.path().join("secret"), "secret").expect("write secret");
        std::fs::write(root.join("file"), "file").expect("write file");
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).expect("make link");
        link("../secret", "relative");
        link(&folder.path().join("secret").display().to_string(), "absolute");
        link("/proc/self/root", "magic");
        link("file", "inside");
        let root = root.to_str().expect("UTF-8");
        let read = |path: &str| {
            Place::new(Some(root), "/", path).and_then(|p| p.open_regular()).map(|(_, e)| e.size)
        };
        assert_eq!(read("file").ok(), Some(4));
        assert_eq!(read("inside").ok(), Some(4));
        assert_eq!(read(&format!("{root}/file")).ok(), Some(4));
        let secret = folder.path().join("secret").display().to_string();
        for outside in ["relative", "absolute", "magic/etc/passwd", "../secret", &secret, "/etc/passwd"] {
            let error = read(outside).expect_err(outside);
            assert_eq!(error.kind(), io::ErrorKind::CrossesDevices, "{outside}: {error}");
        }
        let mut place = Place::new(Some(root), "/", "relative").expect("resolves lexically");
        let error = place.follow().expect_err("the link leads out");
        assert_eq!(error.kind(), io::ErrorKind::CrossesDevices);
    }
}
