//! Files by path, changed: atomic replacement, directories, removal, moves, permissions.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid},
    io::Errno,
};

use super::{
    places::{Entry, EntryKind, Place, names, open_below},
    random_hex,
};

/// Mode of a file that did not exist before.
const NEW_FILE_MODE: u32 = 0o644;

/// Mode of directories made on the way to a new file.
const NEW_FOLDER_MODE: u32 = 0o755;

/// Bytes copied at once between file systems.
const COPY_BYTES: usize = 256 * 1024;

/// Deepest directory tree that is copied between file systems.
const COPY_DEPTH_MAX: u32 = 64;

/// A file being written beside the one it will replace. Dropped before [`Upload::commit`] it leaves nothing.
pub(crate) struct Upload {
    parent: OwnedFd,
    name: String,
    temporary: Option<String>,
    file: File,
    previous: Option<Stat>,
    written: u64,
}

impl Upload {
    /// Starts replacing or making the file at `place`; missing directories are made.
    pub(crate) fn start(mut place: Place) -> io::Result<Self> {
        place.follow()?;
        let (parent, name) = match place.parent() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folders(&place, Folder::OfThis)?;
                place.parent()?
            }
            other => other?,
        };
        let previous = match rustix::fs::statat(&parent, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match previous.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None | Some(FileType::RegularFile) => {}
            Some(FileType::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let temporary = format!(".sandhaus-{}", random_hex(8));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, temporary.as_str(), flags, Mode::from_raw_mode(0o600))?;
        Ok(Self { parent, name, temporary: Some(temporary), file: File::from(file), previous, written: 0 })
    }

    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts the file in its place, with the previous one's mode and owner. Answers how many bytes it has.
    pub(crate) fn commit(mut self) -> io::Result<u64> {
        let mode = self.previous.as_ref().map_or(NEW_FILE_MODE, |stat| stat.st_mode & 0o7777);
        if let Some(previous) = &self.previous {
            let now = rustix::fs::fstat(&self.file)?;
            if (now.st_uid, now.st_gid) != (previous.st_uid, previous.st_gid) {
                // Only a privileged workload can; others own what they write.
                let _ = rustix::fs::fchown(
                    &self.file,
                    Some(Uid::from_raw(previous.st_uid)),
                    Some(Gid::from_raw(previous.st_gid)),
                );
            }
        }
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))?;
        if let Some(temporary) = &self.temporary {
            rustix::fs::renameat(&self.parent, temporary.as_str(), &self.parent, self.name.as_str())?;
        }
        self.temporary = None;
        Ok(self.written)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // What cannot be removed now is left: there is nobody to tell.
            let _ = rustix::fs::unlinkat(&self.parent, temporary.as_str(), AtFlags::empty());
        }
    }
}

/// Makes a symbolic link, in one step where a file or link is replaced. The place itself is never followed.
pub(crate) fn make_link(place: &Place, target: &str) -> io::Result<()> {
    let (parent, name) = place.parent()?;
    let temporary = format!(".sandhaus-{}", random_hex(8));
    rustix::fs::symlinkat(target, &parent, temporary.as_str())?;
    rustix::fs::renameat(&parent, temporary.as_str(), &parent, name.as_str()).map_err(|error| {
        // What cannot be removed now is left: the first error is the one to tell.
        let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
        error.into()
    })
}

/// Which directories to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    /// The path itself and all above it.
    This,
    /// Only those above it.
    OfThis,
}

/// Makes directories that are missing. True when the last one is new.
pub(crate) fn make_folders(place: &Place, which: Folder) -> io::Result<bool> {
    let path = place.path().trim_end_matches('/');
    let mut ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).collect();
    if which == Folder::This {
        ends.push(path.len());
    }
    let mut made = false;
    for end in ends {
        let here = &path[..end];
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        made = false;
        match place.open_at(here, directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (folder, name) = match here.rfind('/') {
                    Some(0) => ("/", &here[1..]),
                    Some(at) => (&here[..at], &here[at + 1..]),
                    None => (".", here),
                };
                let parent = place.open_at(folder, directory)?;
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(NEW_FOLDER_MODE)) {
                    Ok(()) => made = true,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            other => drop(other?),
        }
    }
    Ok(made)
}

/// Makes a directory and all above it; a new one gets exactly `mode`.
pub(crate) fn make_folder(place: &Place, mode: u32) -> io::Result<()> {
    if make_folders(place, Folder::This)? {
        set_mode(place, mode)?;
    }
    Ok(())
}

/// Changes permission bits.
pub(crate) fn set_mode(place: &Place, mode: u32) -> io::Result<()> {
    // Opened as a plain path, so that neither pipes nor devices are touched, and changed through its number: the
    // file is the one that was resolved, whatever the path leads to by now.
    let fd = place.open_at(place.path(), OFlags::PATH)?;
    Ok(rustix::fs::chmodat(rustix::fs::CWD, through(&fd), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Changes owner and group.
pub(crate) fn set_owner(place: &Place, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let fd = place.open_at(place.path(), OFlags::PATH)?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(rustix::fs::chownat(&fd, "", uid, gid, AtFlags::EMPTY_PATH)?)
}

fn through(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What removal takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Anything but a directory.
    Single,
    /// Directories with everything in them, too.
    Recursive,
}

/// Removes a file, or a whole tree. Links are removed, not followed.
pub(crate) fn remove(place: &Place, removal: Removal) -> io::Result<()> {
    let (parent, name) = place.parent()?;
    let stat = rustix::fs::statat(&parent, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(&parent, name.as_str(), AtFlags::empty())?);
    }
    match removal {
        Removal::Single => Err(io::ErrorKind::IsADirectory.into()),
        Removal::Recursive => remove_tree(&parent, &name),
    }
}

/// Empties and removes a directory with one descriptor however deep it is: going up is trusted only where `..` is
/// the directory that it came from.
fn remove_tree(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let top = rustix::fs::fstat(parent)?;
    let mut above = vec![((top.st_dev, top.st_ino), name.to_owned())];
    let mut here = open_child(parent, name)?;
    loop {
        let mut child = None;
        for name in names(&here)? {
            match rustix::fs::unlinkat(&here, name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    match rustix::fs::unlinkat(&here, name.as_str(), AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(Errno::NOTEMPTY | Errno::EXIST) => {
                            child = Some(name);
                            break;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(name) = child {
            let stat = rustix::fs::fstat(&here)?;
            let next = open_child(&here, &name)?;
            above.push(((stat.st_dev, stat.st_ino), name));
            here = next;
            continue;
        }
        let Some((identity, name)) = above.pop() else { return Ok(()) };
        let up = if above.is_empty() {
            parent.try_clone()?
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&here, "..", flags, Mode::empty())?
        };
        let stat = rustix::fs::fstat(&up)?;
        if (stat.st_dev, stat.st_ino) != identity {
            return Err(io::Error::other("the directory was moved while it was removed"));
        }
        rustix::fs::unlinkat(&up, name.as_str(), AtFlags::REMOVEDIR)?;
        if above.is_empty() {
            return Ok(());
        }
        here = up;
    }
}

fn open_child(parent: &impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Moves a file or tree. The destination must not exist; between file systems it is copied, then removed.
pub(crate) fn move_file(source: &Place, destination: &Place) -> io::Result<()> {
    let (from, name) = source.parent()?;
    rustix::fs::statat(&from, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    let (to, new_name) = destination.parent()?;
    let moved =
        match rustix::fs::renameat_with(&from, name.as_str(), &to, new_name.as_str(), RenameFlags::NOREPLACE)
        {
            // A file system that cannot promise not to replace: look first.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::statat(&to, new_name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(Errno::NOENT) => rustix::fs::renameat(&from, name.as_str(), &to, new_name.as_str()),
                    Err(error) => Err(error),
                }
            }
            other => other,
        };
    match moved {
        Err(Errno::XDEV) => {
            if rustix::fs::statat(&to, new_name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(Errno::EXIST.into());
            }
            copy(&from, &name, &to, &new_name, COPY_DEPTH_MAX)?;
            remove(source, Removal::Recursive)
        }
        other => Ok(other?),
    }
}

fn copy(from: &OwnedFd, name: &str, to: &OwnedFd, new_name: &str, depth_left: u32) -> io::Result<()> {
    if depth_left == 0 {
        return Err(io::Error::other(format!("directories are nested deeper than {COPY_DEPTH_MAX}")));
    }
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match Entry::new(name, name, &stat).kind {
        EntryKind::Directory => {
            rustix::fs::mkdirat(to, new_name, Mode::from_raw_mode(0o700))?;
            let (source, target) = (open_below(from, name)?, open_below(to, new_name)?);
            for child in names(&source)? {
                copy(&source, &child, &target, &child, depth_left - 1)?;
            }
            rustix::fs::fchmod(&target, mode)?;
        }
        EntryKind::Link => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, new_name)?;
        }
        EntryKind::File => {
            let (mut source, _) = super::places::open_regular_below(from, name)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mut target = File::from(rustix::fs::openat(to, new_name, flags, Mode::from_raw_mode(0o600))?);
            let mut buffer = vec![0; COPY_BYTES];
            loop {
                match source.read(&mut buffer)? {
                    0 => break,
                    read => target.write_all(&buffer[..read])?,
                }
            }
            rustix::fs::fchmod(&target, mode)?;
        }
        EntryKind::Pipe | EntryKind::Socket | EntryKind::CharacterDevice | EntryKind::BlockDevice => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &std::path::Path, path: &str) -> Place {
        Place::new(Some(root.to_str().expect("UTF-8")), "/", path).expect("resolves")
    }

    #[test]
    fn replacement_keeps_the_mode_and_leaves_nothing_when_dropped() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut upload = Upload::start(place(folder.path(), "a/b/file")).expect("starts");
        upload.write(b"first").expect("writes");
        assert_eq!(upload.commit().expect("commits"), 5);
        let file = folder.path().join("a/b/file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o751)).expect("chmod");
        std::os::unix::fs::symlink("a/b/file", folder.path().join("link")).expect("link");
        let mut upload = Upload::start(place(folder.path(), "link")).expect("starts");
        upload.write(b"second").expect("writes");
        drop(upload);
        assert_eq!(std::fs::read(&file).expect("reads"), b"first");
        assert_eq!(std::fs::read_dir(folder.path().join("a/b")).expect("lists").count(), 1);
        let mut upload = Upload::start(place(folder.path(), "link")).expect("starts");
        upload.write(b"third").expect("writes");
        upload.commit().expect("commits");
        assert_eq!(std::fs::read(&file).expect("reads"), b"third");
        assert_eq!(std::fs::metadata(&file).expect("stat").permissions().mode() & 0o7777, 0o751);
        assert!(folder.path().join("link").is_symlink());
    }

    #[test]
    fn links_are_made_and_listed_but_never_followed_by_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("kept"), "kept").expect("write");
        std::fs::create_dir(folder.path().join("taken")).expect("make");
        make_link(&place(folder.path(), "link"), "kept").expect("makes");
        make_link(&place(folder.path(), "link"), "nowhere").expect("replaces the link, not what it led to");
        assert_eq!(std::fs::read(folder.path().join("kept")).expect("reads"), b"kept");
        make_link(&place(folder.path(), "taken"), "kept").expect_err("a directory stays");
        make_link(&place(folder.path(), "none/link"), "kept").expect_err("the parent must be there");
        let entries = place(folder.path(), ".").list(1, 10).expect("lists").expect("few");
        let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.link_target.as_deref())).collect();
        assert_eq!(seen, [("kept", None), ("link", Some("nowhere")), ("taken", None)]);
    }

    #[test]
    fn deep_trees_are_removed_and_links_in_them_not_followed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("kept"), "kept").expect("write");
        let top = place(folder.path(), "tree");
        make_folder(&top, 0o700).expect("makes");
        let mut here =
            rustix::fs::open(folder.path().join("tree"), OFlags::RDONLY, Mode::empty()).expect("opens");
        for _ in 0..600 {
            rustix::fs::mkdirat(&here, "deeper", Mode::from_raw_mode(0o755)).expect("makes");
            rustix::fs::symlinkat("/", &here, "link").expect("links");
            here = open_child(&here, "deeper").expect("opens");
        }
        assert_eq!(
            remove(&top, Removal::Single).expect_err("a directory").kind(),
            io::ErrorKind::IsADirectory
        );
        remove(&top, Removal::Recursive).expect("removes");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn moves_do_not_replace() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("a"), "a").expect("write");
        std::fs::write(folder.path().join("b"), "b").expect("write");
        let (a, b, c) = (place(folder.path(), "a"), place(folder.path(), "b"), place(folder.path(), "c"));
        assert_eq!(move_file(&a, &b).expect_err("exists").kind(), io::ErrorKind::AlreadyExists);
        move_file(&a, &c).expect("moves");
        assert_eq!(move_file(&a, &c).expect_err("missing").kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read(folder.path().join("c")).expect("reads"), b"a");
    }

    #[test]
    fn trees_are_copied_with_links_and_modes() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(folder.path().join("a/b")).expect("makes");
        std::fs::write(folder.path().join("a/b/file"), vec![7_u8; COPY_BYTES + 1]).expect("write");
        std::fs::set_permissions(folder.path().join("a/b/file"), std::fs::Permissions::from_mode(0o640))
            .expect("chmod");
        std::os::unix::fs::symlink("b/file", folder.path().join("a/link")).expect("link");
        let base = rustix::fs::open(folder.path(), OFlags::RDONLY, Mode::empty()).expect("opens");
        copy(&base, "a", &base, "copy", COPY_DEPTH_MAX).expect("copies");
        let copied = folder.path().join("copy/link");
        assert_eq!(std::fs::read(&copied).expect("reads through the link").len(), COPY_BYTES + 1);
        assert_eq!(std::fs::metadata(copied).expect("stat").permissions().mode() & 0o7777, 0o640);
    }
}
