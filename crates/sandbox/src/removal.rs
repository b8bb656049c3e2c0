//! Removing a tree that a sandbox has filled: never outside it, whatever it holds, however deep it goes, and if need be
//! while the sandbox still writes into it.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Uid},
    io::Errno,
};

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Directories entered one within the other; what lies deeper is moved up first.
const DEPTH_MAX: usize = 32;

/// Directories at the top that are looked at in one pass.
const NAMES_MAX: usize = 1024;

/// Removes `name` under `parent` with all below. Absent is success.
///
/// Nobody may still write below it. What lies deep is moved up to the top before it is emptied, so neither depth nor
/// count needs stack, memory or descriptors beyond a few.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    remove(parent, name, Writers::None)
}

/// The same while sandboxes may still write below it: each directory is taken from them before it is emptied.
pub(crate) fn take_and_remove_tree(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    remove(parent, name, Writers::Some)
}

/// Empties an open directory into which sandboxes may still write. They can no longer afterwards.
pub(crate) fn take_and_empty(top: &OwnedFd) -> io::Result<()> {
    Removal { top, moved: 0, writers: Writers::Some }.run()
}

fn remove(parent: BorrowedFd<'_>, name: &str, writers: Writers) -> io::Result<()> {
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return ignore_absent(rustix::fs::unlinkat(parent, name, AtFlags::empty()));
        }
        Err(error) => return Err(error.into()),
    };
    Removal { top: &top, moved: 0, writers }.run()?;
    ignore_absent(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

/// Whether somebody may write into the tree meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writers {
    None,
    Some,
}

/// Everybody may look into a directory that is taken from its owner.
const TAKEN_MODE: Mode = Mode::from_raw_mode(0o755);

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn ignore_absent(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

struct Removal<'a> {
    top: &'a OwnedFd,
    moved: u64,
    writers: Writers,
}

impl Removal<'_> {
    fn run(mut self) -> io::Result<()> {
        let top = self.top;
        self.empty(top, 0)?;
        while self.moved > 0 {
            // Everything else is gone, so all that is at the top was moved there; emptying it may move more.
            let names = names(top)?;
            if names.is_empty() {
                break;
            }
            for name in names {
                let inner = open_directory(top, &name)?;
                self.empty(&inner, 1)?;
                ignore_absent(rustix::fs::unlinkat(top, &name, AtFlags::REMOVEDIR))?;
            }
        }
        Ok(())
    }

    /// Leaves nothing in `directory`, which lies `depth` below the top.
    fn empty(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        if self.writers == Writers::Some {
            // The host's root is nobody inside, over whose files no one there has power.
            rustix::fs::fchown(directory, Some(Uid::ROOT), Some(Gid::ROOT))?;
            rustix::fs::fchmod(directory, TAKEN_MODE)?;
        }
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
                Err(Errno::ISDIR | Errno::PERM) => self.subdirectory(directory, name, depth)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn subdirectory(&mut self, directory: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => return ignore_absent(removed),
        }
        if depth >= DEPTH_MAX {
            return self.move_up(directory, name);
        }
        let inner = open_directory(directory, name)?;
        self.empty(&inner, depth + 1)?;
        drop(inner);
        ignore_absent(rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR))
    }

    /// Moves a directory to the top, under a name that nothing there has.
    fn move_up(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let fresh = format!(".removed-{}", self.moved);
            match rustix::fs::renameat_with(directory, name, self.top, &*fresh, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// Names in a directory, at most [`NAMES_MAX`]: the caller comes again.
fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    rustix::fs::seek(directory, SeekFrom::Start(0))?;
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if names.len() == NAMES_MAX {
            break;
        }
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
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
