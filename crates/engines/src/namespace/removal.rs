//! Removing a tree that a sandbox has filled: never outside it, whatever it holds, however deep it goes.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir},
    io::Errno,
};

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Removes `name` under `parent` with all below. Absent is success.
///
/// Nobody may still write below it. Directories that are not empty are moved up to the top before they are emptied, so
/// neither depth nor count needs memory, stack or descriptors beyond a few.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return ignore_absent(rustix::fs::unlinkat(parent, name, AtFlags::empty()));
        }
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0_u64;
    empty(&top, &top, &mut moved)?;
    // Each pass empties the directories that were moved up, and moves up what lies in those.
    loop {
        let before = moved;
        let mut found = false;
        for directory in subdirectories(&top)? {
            found = true;
            let inner = open_directory(&top, &directory)?;
            empty(&inner, &top, &mut moved)?;
            drop(inner);
            ignore_absent(rustix::fs::unlinkat(&top, &*directory, AtFlags::REMOVEDIR))?;
        }
        if !found && before == moved {
            break;
        }
    }
    ignore_absent(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

fn open_directory(
    parent: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn ignore_absent(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Leaves nothing in `directory`: what is not empty itself goes to `top` under a fresh name.
fn empty(directory: &std::os::fd::OwnedFd, top: &std::os::fd::OwnedFd, moved: &mut u64) -> io::Result<()> {
    let is_top = std::ptr::eq(directory, top);
    let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let unlinked = match entry.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            _ => rustix::fs::unlinkat(directory, name, AtFlags::empty()),
        };
        match unlinked {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // Already where it would be moved to: the next pass takes it.
                    Err(Errno::NOTEMPTY | Errno::EXIST) if is_top => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => move_up(directory, name, top, moved)?,
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Moves a directory to the top, under a name that nothing there has.
fn move_up(
    directory: &std::os::fd::OwnedFd,
    name: &std::ffi::CStr,
    top: &std::os::fd::OwnedFd,
    moved: &mut u64,
) -> io::Result<()> {
    loop {
        *moved += 1;
        let fresh = format!(".removed-{moved}");
        match rustix::fs::renameat_with(directory, name, top, &*fresh, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

/// The names of the directories directly in `top`, as they are now; bounded, as the caller comes again.
fn subdirectories(top: &std::os::fd::OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    const NAMES_MAX: usize = 1024;
    rustix::fs::seek(top, rustix::fs::SeekFrom::Start(0))?;
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
    let mut entries = RawDir::new(top, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if names.len() == NAMES_MAX {
            break;
        }
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::fs::symlink};

    use super::*;

    fn open(path: &std::path::Path) -> std::os::fd::OwnedFd {
        open_directory(rustix::fs::CWD, path).expect("the directory opens")
    }

    #[test]
    fn everything_goes_and_nothing_beside() {
        let scratch = tempfile::tempdir().expect("a directory");
        let outside = scratch.path().join("outside");
        fs_err::create_dir(&outside).expect("made");
        fs_err::write(outside.join("kept"), "x").expect("written");
        let tree = scratch.path().join("tree");
        for directory in ["a/b/c", "a/.removed-1/d", "e"] {
            fs_err::create_dir_all(tree.join(directory)).expect("made");
        }
        for file in ["a/b/c/f", "a/b/g", "h"] {
            fs_err::write(tree.join(file), "x").expect("written");
        }
        symlink(&outside, tree.join("a/b/link")).expect("linked");
        symlink(&outside, tree.join("link")).expect("linked");
        remove_tree(open(scratch.path()).as_fd(), "tree").expect("removed");
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(open(scratch.path()).as_fd(), "tree").expect("absent is success");
    }

    #[test]
    fn depth_needs_no_stack_and_no_descriptors() {
        const DEPTH: usize = 30_000;
        // In memory: a journal would only make this slow.
        let scratch = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(open(scratch.path()), "tree", mode).expect("made");
        let mut at = open(&scratch.path().join("tree"));
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&at, "d", mode).expect("made");
            at = open_directory(&at, "d").expect("opened");
        }
        drop(at);
        remove_tree(open(scratch.path()).as_fd(), "tree").expect("removed");
        assert!(!scratch.path().join("tree").exists());
    }

    #[test]
    fn a_link_in_its_place_is_removed_itself() {
        let scratch = tempfile::tempdir().expect("a directory");
        let outside = scratch.path().join("outside");
        fs_err::create_dir(&outside).expect("made");
        symlink(&outside, scratch.path().join("tree")).expect("linked");
        remove_tree(open(scratch.path()).as_fd(), "tree").expect("removed");
        assert!(outside.exists());
        assert!(scratch.path().join("tree").symlink_metadata().is_err());
    }
}
