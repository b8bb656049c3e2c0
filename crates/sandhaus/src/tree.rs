//! Directories of this host as descriptors: every step goes down by one checked name, and no step follows a symbolic
//! link. Whoever swaps names beneath us meanwhile gains nothing.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, fchmod, fstat, mkdirat, openat,
        openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};

/// Longest name of one component in bytes, as Linux has it.
const NAME_BYTES_MAX: usize = 255;

/// Most entries of one directory.
const ENTRIES_MAX: usize = sandhaus_protocol::files::LIST_ENTRIES_MAX;

/// Prefix of the names that files have until they are whole.
const UNFINISHED_PREFIX: &str = ".sandhaus-cp.";

/// A directory that is open.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A symbolic link that says this.
    Link(String),
    /// A device, socket or pipe.
    Other,
}

impl Entry {
    /// What a person named, links followed, and the directory that it is in.
    pub(crate) fn named(path: &Path) -> Result<(Self, Rc<Directory>)> {
        let path = fs_err::canonicalize(path)?;
        let parent = path.parent().context("the root of this host cannot be copied")?;
        let name = path.file_name().and_then(|name| name.to_str()).context("the name is not UTF-8")?;
        let parent = Directory::open_named(parent)?;
        let entry = parent.entry(name)?;
        Ok((entry, Rc::new(parent)))
    }
}

impl Directory {
    /// Opens a directory that a person named: links in it are theirs, and are followed.
    pub(crate) fn open_named(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())
            .with_context(|| format!("open directory {}", path.display()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the directory `name` in this one.
    pub(crate) fn open(&self, name: &str) -> Result<Self> {
        check_name(name)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat2(&self.fd, name, flags, Mode::empty(), beneath())
            .with_context(|| format!("open directory {}", self.shown(name)))?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// Makes the directory `name` in this one, unless it is there, and opens it. A link of that name is an error.
    pub(crate) fn make(&self, name: &str) -> Result<Self> {
        check_name(name)?;
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.open(name),
            Err(error) => Err(error).with_context(|| format!("make directory {}", self.shown(name))),
        }
    }

    /// Sets this directory's own permission bits.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        fchmod(&self.fd, Mode::from_raw_mode(mode as RawMode))
            .with_context(|| format!("set permissions of {}", self.path.display()))
    }

    /// What lies in this directory.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let failed = || format!("list {}", self.path.display());
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.fd).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                bail!("{} holds a name that is not UTF-8: {:?}", self.path.display(), entry.file_name());
            };
            if matches!(name, "." | "..") {
                continue;
            }
            ensure!(
                entries.len() < ENTRIES_MAX,
                "{} holds more than {ENTRIES_MAX} entries",
                self.path.display()
            );
            entries.push(self.entry(name)?);
        }
        Ok(entries)
    }

    /// One thing in this directory, not followed if it is a link.
    fn entry(&self, name: &str) -> Result<Entry> {
        let failed = || format!("look at {}", self.shown(name));
        let stat = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).with_context(failed)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = readlinkat(&self.fd, name, Vec::new()).with_context(failed)?;
                Kind::Link(
                    target.into_string().with_context(|| format!("{} is not UTF-8", self.shown(name)))?,
                )
            }
            _ => Kind::Other,
        };
        Ok(Entry { name: name.to_owned(), kind, mode: stat.st_mode })
    }

    /// Opens the regular file `name` for reading.
    pub(crate) fn open_file(&self, name: &str) -> Result<File> {
        check_name(name)?;
        // Not blocking: a pipe that took the name meanwhile must not hold us up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = openat2(&self.fd, name, flags, Mode::empty(), beneath())
            .with_context(|| format!("open {}", self.shown(name)))?;
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        ensure!(kind == FileType::RegularFile, "{} is not a file any more", self.shown(name));
        Ok(File::from(fd))
    }

    /// A file that takes the name `name` when it is whole, replacing a file or link of that name.
    pub(crate) fn replace_file(&self, name: &str, mode: u32) -> Result<NewFile<'_>> {
        check_name(name)?;
        let unfinished = unfinished_name()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(&self.fd, &unfinished, flags, Mode::RUSR | Mode::WUSR, beneath())
            .with_context(|| format!("make {}", self.shown(name)))?;
        Ok(NewFile {
            directory: self,
            name: name.to_owned(),
            mode,
            file: File::from(fd),
            unfinished: Unfinished { directory: self, name: Some(unfinished) },
        })
    }

    /// A symbolic link that says `target`, replacing a file or link of that name.
    pub(crate) fn replace_link(&self, name: &str, target: &str) -> Result<()> {
        check_name(name)?;
        let failed = || format!("make link {}", self.shown(name));
        let unfinished = unfinished_name()?;
        symlinkat(target, &self.fd, &unfinished).with_context(failed)?;
        let unfinished = Unfinished { directory: self, name: Some(unfinished) };
        unfinished.rename_to(name).with_context(failed)
    }

    fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

/// A file that has no name yet that anyone would look for. Dropped before [`Self::commit`], it goes.
#[derive(Debug)]
pub(crate) struct NewFile<'a> {
    directory: &'a Directory,
    name: String,
    mode: u32,
    file: File,
    unfinished: Unfinished<'a>,
}

impl NewFile<'_> {
    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("write {}", self.directory.shown(&self.name)))
    }

    /// Gives it its mode and its name.
    pub(crate) fn commit(self) -> Result<()> {
        let failed = || format!("write {}", self.directory.shown(&self.name));
        fchmod(self.file.as_fd(), Mode::from_raw_mode(self.mode as RawMode)).with_context(failed)?;
        self.unfinished.rename_to(&self.name).with_context(failed)
    }
}

/// A name that goes unless it becomes another.
#[derive(Debug)]
struct Unfinished<'a> {
    directory: &'a Directory,
    name: Option<String>,
}

impl Unfinished<'_> {
    fn rename_to(mut self, name: &str) -> rustix::io::Result<()> {
        let unfinished = self.name.as_deref().expect("taken only here and at the end");
        renameat(&self.directory.fd, unfinished, &self.directory.fd, name)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The error that brought us here is the one to tell.
            let _ = unlinkat(&self.directory.fd, name.as_str(), AtFlags::empty());
        }
    }
}

/// No link and no `..` leads anywhere.
fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// One component, and no other.
fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || matches!(name, "." | "..")
        || name.bytes().any(|byte| matches!(byte, b'/' | 0));
    ensure!(!bad, "{name:?} is not a name of a file");
    Ok(())
}

fn unfinished_name() -> Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{UNFINISHED_PREFIX}{random}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn open(dir: &tempfile::TempDir) -> Directory {
        Directory::open_named(dir.path()).unwrap()
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = open(&dir);
        for name in ["", ".", "..", "a/b", "/etc", "../x", "a\0b", &"n".repeat(256)] {
            assert!(directory.make(name).is_err(), "{name:?}");
            assert!(directory.open(name).is_err(), "{name:?}");
            assert!(directory.open_file(name).is_err(), "{name:?}");
            assert!(directory.replace_file(name, 0o644).is_err(), "{name:?}");
            assert!(directory.replace_link(name, "x").is_err(), "{name:?}");
        }
        assert_eq!(directory.entries().unwrap(), []);
    }

    #[test]
    fn links_are_not_followed_but_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "alive").unwrap();
        symlink(outside.path(), dir.path().join("directory")).unwrap();
        symlink(&canary, dir.path().join("file")).unwrap();
        let directory = open(&dir);
        assert!(directory.make("directory").is_err());
        assert!(directory.open("directory").is_err());
        assert!(directory.open_file("file").is_err());
        let mut file = directory.replace_file("file", 0o640).unwrap();
        file.write(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "alive");
        let written = dir.path().join("file");
        assert_eq!(std::fs::read_to_string(&written).unwrap(), "new");
        assert_eq!(std::fs::symlink_metadata(&written).unwrap().permissions().mode() & 0o7777, 0o640);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let directory = open(&dir);
        std::fs::write(dir.path().join("kept"), "old").unwrap();
        let mut file = directory.replace_file("kept", 0o644).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(directory.entries().unwrap().len(), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("kept")).unwrap(), "old");
        std::fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(directory.replace_link("taken", "x").is_err());
        assert_eq!(directory.entries().unwrap().len(), 2);
    }

    #[test]
    fn kinds_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        symlink("nowhere", dir.path().join("c")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("d"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let directory = open(&dir);
        let mut entries = directory.entries().unwrap();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let kinds: Vec<Kind> = entries.into_iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::Directory, Kind::Link("nowhere".to_owned()), Kind::Other]);
        assert!(directory.open_file("d").is_err(), "a pipe is not a file, and opening it does not wait");
        let (entry, _) = Entry::named(&dir.path().join("b/../a")).unwrap();
        assert_eq!((entry.name.as_str(), entry.kind), ("a", Kind::File));
    }
}
