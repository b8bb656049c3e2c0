//! Files replaced as a whole: written where nobody sees them, then put in their place in one step.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

use super::{
    changes::{Folder, make_folders, through},
    places::Place,
    random_hex,
};

/// Mode of a file that did not exist before.
const NEW_FILE_MODE: u32 = 0o644;

/// A file being written beside the one it will replace. Dropped before [`Upload::commit`] it leaves nothing.
pub(crate) struct Upload {
    parent: OwnedFd,
    name: String,
    /// Its name until then, where the file system has no files without one.
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
        let (file, temporary) = new_file(&parent)?;
        Ok(Self { parent, name, temporary, file, previous, written: 0 })
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
        self.put_in_place()?;
        self.temporary = None;
        Ok(self.written)
    }

    fn put_in_place(&mut self) -> io::Result<()> {
        if self.temporary.is_none() {
            let name = match self.previous {
                // Where nothing is, it can appear at once.
                None => match self.link(&self.name) {
                    Err(Errno::EXIST) => None,
                    other => return Ok(other?),
                },
                Some(_) => None,
            };
            let name = name.unwrap_or_else(temporary_name);
            self.link(&name)?;
            self.temporary = Some(name);
        }
        if let Some(temporary) = &self.temporary {
            rustix::fs::renameat(&self.parent, temporary.as_str(), &self.parent, self.name.as_str())?;
        }
        Ok(())
    }

    /// Gives the file a name.
    fn link(&self, name: &str) -> Result<(), Errno> {
        let own = through(&self.file);
        rustix::fs::linkat(CWD, own, &self.parent, name, AtFlags::SYMLINK_FOLLOW)
    }
}

/// A file that has no name yet, so that nothing of it is left whatever happens; where the file system has none of these,
/// one with a name of its own.
fn new_file(parent: &OwnedFd) -> io::Result<(File, Option<String>)> {
    let mode = Mode::from_raw_mode(0o600);
    match rustix::fs::openat(parent, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
        Ok(file) => return Ok((File::from(file), None)),
        // Each file system has its own way to say that it has none.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let name = temporary_name();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name.as_str(), flags, mode)?;
    Ok((File::from(file), Some(name)))
}

/// A name beside the final one that nothing else has.
pub(super) fn temporary_name() -> String {
    format!(".sandhaus-{}", random_hex(8))
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // What cannot be removed now is left: there is nobody to tell.
            let _ = rustix::fs::unlinkat(&self.parent, temporary.as_str(), AtFlags::empty());
        }
    }
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
    fn a_file_that_appears_meanwhile_is_replaced_too() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut upload = Upload::start(place(folder.path(), "file")).expect("starts");
        upload.write(b"ours").expect("writes");
        std::fs::write(folder.path().join("file"), "theirs").expect("writes");
        assert_eq!(upload.commit().expect("commits"), 4);
        assert_eq!(std::fs::read(folder.path().join("file")).expect("reads"), b"ours");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
    }
}
