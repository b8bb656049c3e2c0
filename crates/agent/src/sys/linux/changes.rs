//! Files by path, changed: directories, removal, moves, permissions.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

use super::{
    places::{Entry, EntryKind, Place, raw_names},
    uploads::temporary_name,
};

/// Mode of directories made on the way to a new file.
const NEW_FOLDER_MODE: u32 = 0o755;

/// Bytes copied at once between file systems.
const COPY_BYTES: usize = 256 * 1024;

/// Deepest directory tree that is copied between file systems.
const COPY_DEPTH_MAX: u32 = 64;

/// How often a directory that is being removed is looked into again because others put something there meanwhile.
const REMOVAL_ROUNDS_MAX: u32 = 16;

/// Makes a symbolic link, in one step where a file or link is replaced. The place itself is never followed.
pub(crate) fn make_link(place: &Place, target: &str) -> io::Result<()> {
    let (parent, name) = place.parent()?;
    let temporary = temporary_name();
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

/// A path that leads to an open file, whatever its name is by now.
pub(super) fn through(fd: &impl AsFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
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
    remove_entry(&parent, &name, removal)
}

fn remove_entry(parent: &OwnedFd, name: &str, removal: Removal) -> io::Result<()> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
    }
    match removal {
        Removal::Single => Err(io::ErrorKind::IsADirectory.into()),
        Removal::Recursive => remove_tree(parent, name),
    }
}

/// One level of a tree that is being removed.
struct Level {
    /// The directory that it lies in.
    parent: (u64, u64),
    /// Its own name there.
    name: CString,
    /// What is in it and was not looked at yet.
    pending: Vec<CString>,
    /// How often new entries were found in it that others made meanwhile.
    again: u32,
}

/// Empties and removes a directory with one descriptor however deep it is: going up is trusted only where `..` is
/// the directory that it came from.
fn remove_tree(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut here = open_child(parent, &name)?;
    let level = |above: &OwnedFd, name, here: &OwnedFd| {
        let stat = rustix::fs::fstat(above)?;
        Ok::<_, io::Error>(Level {
            parent: (stat.st_dev, stat.st_ino),
            name,
            pending: raw_names(here)?,
            again: 0,
        })
    };
    let mut levels = vec![level(parent, name, &here)?];
    while let Some(mut top) = levels.pop() {
        if let Some(name) = top.pending.pop() {
            levels.push(top);
            if !is_removed(&here, &name)? {
                let next = open_child(&here, &name)?;
                levels.push(level(&here, name, &next)?);
                here = next;
            }
            continue;
        }
        let up = match levels.last() {
            None => parent.try_clone()?,
            Some(_) => open_child(&here, c"..")?,
        };
        let stat = rustix::fs::fstat(&up)?;
        if (stat.st_dev, stat.st_ino) != top.parent {
            return Err(io::Error::other("the directory was moved while it was removed"));
        }
        match rustix::fs::unlinkat(&up, top.name.as_c_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => here = up,
            Err(Errno::NOTEMPTY | Errno::EXIST) if top.again < REMOVAL_ROUNDS_MAX => {
                top.pending = raw_names(&here)?;
                top.again += 1;
                levels.push(top);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes an entry unless it is a directory with something in it.
fn is_removed(here: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(here, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // It was no directory: the first refusal is the one that counts.
        Err(Errno::NOTDIR) => Err(Errno::PERM.into()),
        Err(error) => Err(error.into()),
    }
}

fn open_child(parent: &impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Why something was not moved.
#[derive(Debug)]
pub(crate) enum NotMoved {
    /// It is about what was to be moved.
    Source(io::Error),
    /// It is about where it was to go.
    Destination(io::Error),
}

/// Moves a file or tree. The destination must not exist; between file systems it is copied, then removed.
pub(crate) fn move_file(source: &Place, destination: &Place) -> Result<(), NotMoved> {
    let (from, name) = source.parent().map_err(NotMoved::Source)?;
    let of_source = |error: Errno| NotMoved::Source(error.into());
    let of_destination = |error: Errno| NotMoved::Destination(error.into());
    rustix::fs::statat(&from, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(of_source)?;
    let (to, new_name) = destination.parent().map_err(NotMoved::Destination)?;
    match rename_new(&from, &name, &to, &new_name) {
        Ok(()) => Ok(()),
        Err(error @ (Errno::EXIST | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::NOSPC | Errno::DQUOT)) => {
            Err(of_destination(error))
        }
        Err(Errno::XDEV) => {
            if rustix::fs::statat(&to, new_name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(of_destination(Errno::EXIST));
            }
            move_across(&from, &name, &to, &new_name)
        }
        Err(error) => Err(of_source(error)),
    }
}

/// Renames, and never onto something.
fn rename_new(from: &OwnedFd, name: &str, to: &OwnedFd, new_name: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE) {
        // A file system that cannot promise not to replace: look first.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match rustix::fs::statat(to, new_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => rustix::fs::renameat(from, name, to, new_name),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}

/// Copies beside the destination and renames that: what breaks off leaves nothing there, and the source as it was.
fn move_across(from: &OwnedFd, name: &str, to: &OwnedFd, new_name: &str) -> Result<(), NotMoved> {
    let temporary = temporary_name();
    let (c_name, c_temporary) = (c_string(name), c_string(&temporary));
    let copied = c_name.and_then(|name| copy(from, &name, to, &c_temporary?, COPY_DEPTH_MAX));
    let moved = copied.and_then(|()| Ok(rename_new(to, &temporary, to, new_name)?));
    if let Err(error) = moved {
        // What cannot be removed now is left: the first error is the one to tell.
        let _ = remove_entry(to, &temporary, Removal::Recursive);
        return Err(NotMoved::Destination(error));
    }
    remove_entry(from, name, Removal::Recursive).map_err(NotMoved::Source)
}

fn c_string(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn copy(from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr, depth_left: u32) -> io::Result<()> {
    if depth_left == 0 {
        return Err(io::Error::other(format!("directories are nested deeper than {COPY_DEPTH_MAX}")));
    }
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match Entry::new("", "", &stat).kind {
        EntryKind::Directory => {
            rustix::fs::mkdirat(to, new_name, Mode::from_raw_mode(0o700))?;
            let (source, target) = (open_child(from, name)?, open_child(to, new_name)?);
            for child in raw_names(&source)? {
                copy(&source, &child, &target, &child, depth_left - 1)?;
            }
            take_over(&target, &stat)
        }
        EntryKind::Link => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, new_name)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            // Only a privileged workload can; others own what they make.
            let _ = rustix::fs::chownat(to, new_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            Ok(())
        }
        EntryKind::File => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let target = File::from(rustix::fs::openat(to, new_name, flags, Mode::from_raw_mode(0o600))?);
            copy_content(&source, &target)?;
            take_over(&target, &stat)
        }
        EntryKind::Pipe | EntryKind::Socket | EntryKind::CharacterDevice | EntryKind::BlockDevice => {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

/// Gives a copy what the original has beside its content.
fn take_over(target: &impl AsFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Only a privileged workload can; others own what they make.
    let _ = rustix::fs::fchown(target, Some(uid), Some(gid));
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(target, &times)?)
}

/// Copies what a file holds; its holes stay holes.
fn copy_content(source: &File, target: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let size = source.metadata()?.len();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(_) => at,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(data)).unwrap_or(size).max(data);
        at = data;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
            match source.read_at(&mut buffer[..wanted], at)? {
                // It was cut short meanwhile.
                0 => return Ok(()),
                read => {
                    target.write_all_at(&buffer[..read], at)?;
                    at += read as u64;
                }
            }
        }
    }
    target.set_len(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &std::path::Path, path: &str) -> Place {
        Place::new(Some(root.to_str().expect("UTF-8")), "/", path).expect("resolves")
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
            here = open_child(&here, c"deeper").expect("opens");
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
        let nowhere = place(folder.path(), "none/c");
        let refused = |result: Result<(), NotMoved>| match result.expect_err("is refused") {
            NotMoved::Source(error) => ("source", error.kind()),
            NotMoved::Destination(error) => ("destination", error.kind()),
        };
        assert_eq!(refused(move_file(&a, &b)), ("destination", io::ErrorKind::AlreadyExists));
        assert_eq!(refused(move_file(&a, &nowhere)), ("destination", io::ErrorKind::NotFound));
        move_file(&a, &c).expect("moves");
        assert_eq!(refused(move_file(&a, &c)), ("source", io::ErrorKind::NotFound));
        assert_eq!(std::fs::read(folder.path().join("c")).expect("reads"), b"a");
    }

    /// A folder on another file system than the temporary ones, where this machine has one that can be written to.
    fn elsewhere() -> Option<tempfile::TempDir> {
        let here = rustix::fs::stat(std::env::temp_dir().as_path()).ok()?.st_dev;
        let folder = ["/dev/shm", "/var/tmp", "/run"]
            .iter()
            .filter(|path| rustix::fs::stat(**path).is_ok_and(|stat| stat.st_dev != here))
            .find_map(|path| tempfile::tempdir_in(path).ok());
        if folder.is_none() {
            eprintln!("SKIPPED: this machine has one file system only");
        }
        folder
    }

    #[test]
    fn trees_move_between_file_systems_with_links_modes_times_and_holes() {
        use std::os::unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, PermissionsExt as _},
        };
        let Some(other) = elsewhere() else { return };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inside = folder.path().join("a/b");
        std::fs::create_dir_all(&inside).expect("makes");
        let file = File::create(inside.join("file")).expect("makes");
        file.write_all_at(&[7; 5000], 40 << 20).expect("writes behind a hole");
        file.set_len(1 << 30).expect("ends with a hole");
        file.set_permissions(std::fs::Permissions::from_mode(0o640)).expect("chmod");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000))
            .expect("sets the time");
        std::os::unix::fs::symlink("b/file", folder.path().join("a/link")).expect("link");
        let odd = std::ffi::OsStr::from_bytes(b"not \xff text");
        std::fs::write(folder.path().join("a").join(odd), "odd").expect("writes");
        move_file(&place(folder.path(), "a"), &place(other.path(), "moved")).expect("moves");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 0);
        assert_eq!(std::fs::read_dir(other.path()).expect("lists").count(), 1);
        let moved = other.path().join("moved");
        let file = File::open(moved.join("link")).expect("opens through the link");
        let stat = file.metadata().expect("stat");
        assert_eq!(
            (stat.len(), stat.permissions().mode() & 0o7777, stat.mtime()),
            (1 << 30, 0o640, 1_000_000)
        );
        assert!(stat.blocks() * 512 < 8 << 20, "holes stay holes");
        let mut bytes = [0; 5001];
        file.read_exact_at(&mut bytes, (40 << 20) - 1).expect("reads");
        assert!(bytes[0] == 0 && bytes[1..].iter().all(|byte| *byte == 7));
        assert_eq!(std::fs::read(moved.join(odd)).expect("reads"), b"odd");
    }

    #[test]
    fn a_move_between_file_systems_that_fails_leaves_everything_as_it_was() {
        let Some(other) = elsewhere() else { return };
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("a")).expect("makes");
        std::fs::write(folder.path().join("a/file"), "a").expect("writes");
        let _socket =
            std::os::unix::net::UnixListener::bind(folder.path().join("a/socket")).expect("a socket");
        let moved = move_file(&place(folder.path(), "a"), &place(other.path(), "moved"));
        assert!(matches!(moved, Err(NotMoved::Destination(_))), "{moved:?}");
        assert_eq!(std::fs::read_dir(other.path()).expect("lists").count(), 0);
        assert_eq!(std::fs::read_dir(folder.path().join("a")).expect("lists").count(), 2);
    }

    #[test]
    fn names_that_are_no_text_and_many_folders_are_removed() {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tree = folder.path().join("tree");
        for number in 0..3000 {
            std::fs::create_dir_all(tree.join(format!("{number}/inner"))).expect("makes");
        }
        std::fs::write(tree.join("7/inner").join(std::ffi::OsStr::from_bytes(b"\xfe")), "x").expect("writes");
        remove(&place(folder.path(), "tree"), Removal::Recursive).expect("removes");
        assert!(!tree.exists());
    }
}
