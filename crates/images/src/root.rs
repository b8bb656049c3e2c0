//! A directory tree being written from names and links that nobody has checked.
//!
//! Whatever the caller asks for, nothing outside the tree changes: a path is taken apart into plain components, the
//! directory it lies in is opened beneath the tree's own descriptor without following any symbolic link, and the last
//! component is only ever created, never opened through. Symbolic links are data here. Everything written is counted.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString, OsStr},
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{Error, Result};

/// Most files, directories and links of one image.
const ENTRIES_MAX: u64 = 1_000_000;

/// Most bytes of all files of one image together, holes included.
const CONTENT_BYTES_MAX: u64 = 64 << 30;

/// Longest path inside an image.
const PATH_BYTES_MAX: u64 = 4095;

/// Longest name of one file.
const NAME_BYTES_MAX: u64 = 255;

/// Deepest directory of an image. Walking a tree holds one descriptor for each level.
const DEPTH_MAX: u64 = 128;

/// Most bytes of paths remembered until the end: those of directories, for their times.
const REMEMBERED_BYTES_MAX: u64 = 64 << 20;

/// User and group ids of an image lie below this: what a sandbox's id range can show.
const IDS_END: u64 = 65536;

/// What may come out of a decompressor before its rate of expansion counts.
const EXPANSION_ALLOWANCE_BYTES: u64 = 256 << 20;

/// Most bytes of paths remembered of directories that an archive implies without listing them.
const IMPLIED_BYTES_MAX: u64 = 1 << 20;

/// What overlayfs takes as "nothing of the layers below shows in this directory".
pub(crate) const OPAQUE_ATTRIBUTE: &CStr = c"trusted.overlay.opaque";

/// How much may be written. The fields differ from their default only in tests.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) content_bytes: u64,
    pub(crate) expansion_allowance_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: ENTRIES_MAX,
            content_bytes: CONTENT_BYTES_MAX,
            expansion_allowance_bytes: EXPANSION_ALLOWANCE_BYTES,
        }
    }
}

/// A path inside a tree: relative, made of plain names. Empty for the tree itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Takes a path as an archive has it: leading slashes and `.` components are dropped, `..` is refused.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self> {
        let mut path = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for name in raw.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => {
                    return Err(Error::Source(format!("entry {} has .. in its path", shown(raw))));
                }
                _ => {}
            }
            if name.contains(&0) {
                return Err(Error::Source(format!("entry {} has a NUL byte in its path", shown(raw))));
            }
            within("length of a file name", name.len() as u64, NAME_BYTES_MAX)?;
            depth += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        within("length of a path", path.len() as u64, PATH_BYTES_MAX)?;
        within("depth of a path", depth, DEPTH_MAX)?;
        Ok(Self(path))
    }

    /// The path of `name` in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Result<Self> {
        let mut path = self.0.clone();
        path.push(b'/');
        path.extend_from_slice(name);
        Self::parse(&path)
    }

    /// Whether it is the tree itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it lies in the top directory `directory`.
    pub(crate) fn is_in(&self, directory: &str) -> bool {
        self.0.strip_prefix(directory.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// The path as bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path of the directory it lies in, and its name there.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

/// Bytes of a name as a message shows them: quoted, escaped and cut.
pub(crate) fn shown(raw: &[u8]) -> String {
    format!("\"{}\"", escaped(raw))
}

/// Bytes as a message shows them: escaped and cut.
pub(crate) fn escaped(raw: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 256;
    match raw.get(..SHOWN_BYTES_MAX) {
        Some(start) => format!("{}…", start.escape_ascii()),
        None => raw.escape_ascii().to_string(),
    }
}

/// Fails if a count is over its limit.
pub(crate) fn within(what: &'static str, count: u64, limit: u64) -> Result<()> {
    if count > limit { Err(Error::TooLarge { what, limit }) } else { Ok(()) }
}

/// What a file, directory or link has besides its content.
#[derive(Debug, Clone)]
pub(crate) struct Attributes {
    /// Permissions with setuid, setgid and sticky.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u64,
    /// Group.
    pub(crate) gid: u64,
    /// Time of the last change of the content.
    pub(crate) modified: Timespec,
    /// Extended attributes; only those that [`keeps_attribute`] names.
    pub(crate) extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Attributes of something that root owns, as old as the epoch.
    pub(crate) fn of_root(mode: u32) -> Self {
        Self::owned(mode, 0)
    }

    /// Attributes of something that `id` owns as user and group, as old as the epoch.
    pub(crate) fn owned(mode: u32, id: u32) -> Self {
        Self {
            mode,
            uid: id.into(),
            gid: id.into(),
            modified: Timespec { tv_sec: 0, tv_nsec: 0 },
            extended: Vec::new(),
        }
    }
}

/// Whether an extended attribute belongs to an image. What overlayfs reads as instructions does not: a layer that says
/// by itself what it hides or redirects to is not a plain tree.
pub(crate) fn keeps_attribute(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// How a name that hides what is below it is stored: as overlayfs reads it. Nothing else of this kind is ever made.
pub(crate) const WHITEOUT: FileType = FileType::CharacterDevice;

/// A tree being written.
#[derive(Debug)]
pub(crate) struct Root {
    directory: Rc<OwnedFd>,
    location: PathBuf,
    limits: Limits,
    entries: u64,
    content_bytes: u64,
    remembered_bytes: u64,
    /// The directory written into last: archives list a directory's files one after another. It holds what was written,
    /// so it is never one that was removed since.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Times of directories, which writing into them changes; set at the end.
    times: Vec<(EntryPath, Timespec)>,
    /// Directories that were made only because something lies in them.
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: u64,
}

/// A file being written, not yet with its attributes.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    path: EntryPath,
    length: u64,
}

impl OpenFile {
    /// Bytes and holes so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

impl Root {
    /// Writes into the existing, empty directory at `location`, which the caller trusts.
    pub(crate) fn open(location: &Path, limits: Limits) -> Result<Self> {
        let directory = rustix::fs::open(
            location,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(Error::at(location))?;
        Ok(Self {
            directory: Rc::new(directory),
            location: location.to_path_buf(),
            limits,
            entries: 0,
            content_bytes: 0,
            remembered_bytes: 0,
            last_parent: None,
            times: Vec::new(),
            implied: BTreeSet::new(),
            implied_bytes: 0,
        })
    }

    /// Makes a directory, or gives an existing one these attributes. The tree's own attributes stay as they are.
    pub(crate) fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        if path.is_root() {
            return Ok(());
        }
        self.count_entry()?;
        self.remembered_bytes += path.as_bytes().len() as u64;
        within("total length of directory paths", self.remembered_bytes, REMEMBERED_BYTES_MAX)?;
        let parent = self.parent_of(path)?;
        let name = OsStr::from_bytes(path.split().1);
        self.implied.remove(path.as_bytes());
        let mut replaces_whiteout = false;
        if let Err(error) = rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o700)) {
            if error != Errno::EXIST {
                return Err(self.at(path, error));
            }
            let there = self.kind_of(&parent, path)?;
            if there != Some(FileType::Directory) {
                replaces_whiteout = there == Some(WHITEOUT);
                self.remove(&parent, path)?;
                rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o700))
                    .map_err(|error| self.at(path, error))?;
            }
        }
        let directory = rustix::fs::openat(
            &*parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| self.at(path, error))?;
        self.apply(directory.as_fd(), path, attributes)?;
        if replaces_whiteout {
            self.hide_below(directory.as_fd(), path)?;
        }
        self.times.push((path.clone(), attributes.modified));
        Ok(())
    }

    /// Hides what layers below have under this name. What this tree has there itself stays.
    pub(crate) fn whiteout(&mut self, path: &EntryPath) -> Result<()> {
        self.refuse_root(path)?;
        self.count_entry()?;
        let parent = self.parent_of(path)?;
        let name = OsStr::from_bytes(path.split().1);
        match self.kind_of(&parent, path)? {
            None => rustix::fs::mknodat(&*parent, name, WHITEOUT, Mode::empty(), 0)
                .map_err(|error| self.at(path, error)),
            Some(FileType::Directory) => self.opaque(path),
            // It hides what is below by being there.
            Some(_) => Ok(()),
        }
    }

    /// Hides all that layers below have in this directory.
    pub(crate) fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        self.count_entry()?;
        let directory = self.directory_at(path)?;
        // It may be empty and be removed again, so it is no place to remember.
        self.last_parent = None;
        let opened = rustix::fs::openat(
            &*directory,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| self.at(path, error))?;
        self.hide_below(opened.as_fd(), path)
    }

    fn hide_below(&self, directory: BorrowedFd<'_>, path: &EntryPath) -> Result<()> {
        rustix::fs::fsetxattr(directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
            .map_err(|error| self.at(path, error))
    }

    /// What has this name; `None` if nothing does.
    fn kind_of(&self, parent: &OwnedFd, path: &EntryPath) -> Result<Option<FileType>> {
        match rustix::fs::statat(parent, OsStr::from_bytes(path.split().1), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok(Some(FileType::from_raw_mode(there.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.at(path, error)),
        }
    }

    /// Makes a symbolic link. Its target is kept as it is and never looked at.
    pub(crate) fn symlink(&mut self, path: &EntryPath, target: &[u8], attributes: &Attributes) -> Result<()> {
        self.refuse_root(path)?;
        if target.is_empty() || target.contains(&0) {
            return Err(Error::Source(format!("symbolic link {path} has no valid target")));
        }
        within("length of a link target", target.len() as u64, PATH_BYTES_MAX)?;
        self.count_entry()?;
        let parent = self.parent_of(path)?;
        let name = OsStr::from_bytes(path.split().1);
        let target = OsStr::from_bytes(target);
        match rustix::fs::symlinkat(target, &*parent, name) {
            Err(Errno::EXIST) => {
                self.remove(&parent, path)?;
                rustix::fs::symlinkat(target, &*parent, name)
            }
            result => result,
        }
        .map_err(|error| self.at(path, error))?;
        let (uid, gid) = owner(path, attributes)?;
        rustix::fs::chownat(&*parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.at(path, error))?;
        rustix::fs::utimensat(&*parent, name, &timestamps(attributes.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.at(path, error))
    }

    /// Gives a regular file of this tree another name.
    pub(crate) fn hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<()> {
        self.refuse_root(path)?;
        self.count_entry()?;
        if path == target {
            return Ok(());
        }
        let refused =
            || Error::Source(format!("hard link {path} is to {target}, which is no file before it"));
        if target.is_root() {
            return Err(refused());
        }
        let target_parent =
            self.open_directory(target.split().0).map_err(|_not_there_or_through_a_link| refused())?;
        let target_name = OsStr::from_bytes(target.split().1);
        match rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            // A link is never followed by the call that names it again.
            Ok(there)
                if matches!(
                    FileType::from_raw_mode(there.st_mode),
                    FileType::RegularFile | FileType::Symlink
                ) => {}
            Ok(_) | Err(Errno::NOENT) => return Err(refused()),
            Err(error) => return Err(self.at(target, error)),
        }
        let parent = self.parent_of(path)?;
        let name = OsStr::from_bytes(path.split().1);
        match rustix::fs::linkat(&target_parent, target_name, &*parent, name, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                self.remove(&parent, path)?;
                rustix::fs::linkat(&target_parent, target_name, &*parent, name, AtFlags::empty())
            }
            result => result,
        }
        .map_err(|error| self.at(path, error))
    }

    /// Starts a regular file, in the place of whatever had its name.
    pub(crate) fn create(&mut self, path: &EntryPath) -> Result<OpenFile> {
        self.refuse_root(path)?;
        self.count_entry()?;
        let parent = self.parent_of(path)?;
        let name = OsStr::from_bytes(path.split().1);
        let open = || {
            rustix::fs::openat(
                &*parent,
                name,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )
        };
        let file = match open() {
            Err(Errno::EXIST) => {
                self.remove(&parent, path)?;
                open()
            }
            result => result,
        }
        .map_err(|error| self.at(path, error))?;
        Ok(OpenFile { file: file.into(), path: path.clone(), length: 0 })
    }

    /// Writes at the end of a file.
    pub(crate) fn append(&mut self, file: &mut OpenFile, data: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        self.count_content(data.len() as u64)?;
        file.file.write_all_at(data, file.length).map_err(|error| self.at(&file.path, error))?;
        file.length += data.len() as u64;
        Ok(())
    }

    /// Lets a hole reach from the end of a file to `length`.
    pub(crate) fn extend(&mut self, file: &mut OpenFile, length: u64) -> Result<()> {
        self.count_content(length.saturating_sub(file.length))?;
        file.length = file.length.max(length);
        Ok(())
    }

    /// Ends a file: its length and attributes.
    pub(crate) fn finish_file(&mut self, file: OpenFile, attributes: &Attributes) -> Result<()> {
        // Writing keeps up with the length except for a hole at the end.
        rustix::fs::ftruncate(&file.file, file.length).map_err(|error| self.at(&file.path, error))?;
        self.apply(file.file.as_fd(), &file.path, attributes)?;
        rustix::fs::futimens(&file.file, &timestamps(attributes.modified))
            .map_err(|error| self.at(&file.path, error))
    }

    /// Writes a whole small file.
    pub(crate) fn file(&mut self, path: &EntryPath, content: &[u8], attributes: &Attributes) -> Result<()> {
        let mut file = self.create(path)?;
        self.append(&mut file, content)?;
        self.finish_file(file, attributes)
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Sets the times of the directories.
    pub(crate) fn finish(self) -> Result<()> {
        for (path, modified) in self.times.iter().rev() {
            // What was a directory when it was listed may have been replaced since.
            let Ok(directory) = self.open_directory(path.as_bytes()) else { continue };
            rustix::fs::utimensat(&directory, ".", &timestamps(*modified), AtFlags::empty())
                .map_err(|error| self.at(path, error))?;
        }
        Ok(())
    }

    /// Directories that were made only because something lies in them.
    pub(crate) fn implied(&self) -> impl Iterator<Item = &[u8]> {
        self.implied.iter().map(Vec::as_slice)
    }

    /// The directory that a path lies in, made with what leads to it if it is not there.
    fn parent_of(&mut self, path: &EntryPath) -> Result<Rc<OwnedFd>> {
        self.reach(path, path.split().0)
    }

    /// The directory that a path names, made with what leads to it if it is not there.
    fn directory_at(&mut self, path: &EntryPath) -> Result<Rc<OwnedFd>> {
        self.reach(path, path.as_bytes())
    }

    /// The directory `parent`, on the way to `path` or that itself.
    fn reach(&mut self, path: &EntryPath, parent: &[u8]) -> Result<Rc<OwnedFd>> {
        if parent.is_empty() {
            return Ok(Rc::clone(&self.directory));
        }
        if let Some((last, directory)) = &self.last_parent
            && last == parent
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.open_directory(parent) {
            Ok(directory) => directory,
            // The second: a whiteout may stand in the way, which gives way.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make_parents(path, parent)?;
                self.open_directory(parent).map_err(|error| self.refused(path, error))?
            }
            Err(error) => return Err(self.refused(path, error)),
        };
        let directory = Rc::new(directory);
        self.last_parent = Some((parent.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    /// Makes the missing directories on the way to `path`.
    fn make_parents(&mut self, path: &EntryPath, parent: &[u8]) -> Result<()> {
        let mut directory = Rc::clone(&self.directory);
        let mut end = 0;
        for name in parent.split(|byte| *byte == b'/') {
            end += name.len();
            let here = EntryPath(parent[..end].to_vec());
            end += 1;
            let name = OsStr::from_bytes(name);
            let replaces_whiteout = self.kind_of(&directory, &here)? == Some(WHITEOUT);
            if replaces_whiteout {
                self.remove(&directory, &here)?;
            }
            let made = match rustix::fs::mkdirat(&*directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(self.at(path, error)),
            };
            if made {
                self.count_entry()?;
                // The process's umask may have taken bits away.
                rustix::fs::chmodat(&*directory, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                    .map_err(|error| self.at(path, error))?;
                self.implied_bytes += here.0.len() as u64;
                within("total length of implied paths", self.implied_bytes, IMPLIED_BYTES_MAX)?;
                self.implied.insert(here.0.clone());
            }
            let opened = rustix::fs::openat(
                &*directory,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| self.refused(path, error))?;
            if replaces_whiteout {
                self.hide_below(opened.as_fd(), &here)?;
            }
            directory = Rc::new(opened);
        }
        Ok(())
    }

    /// Opens an existing directory of the tree; no component of the path may be a symbolic link.
    fn open_directory(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(
            &*self.directory,
            if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) },
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Removes what has the name that something new is to have. Nothing that has content below it.
    fn remove(&self, parent: &OwnedFd, path: &EntryPath) -> Result<()> {
        let name = OsStr::from_bytes(path.split().1);
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    Err(Error::Source(format!("entry {path} would replace a directory that is not empty")))
                }
                result => result.map_err(|error| self.at(path, error)),
            },
            result => result.map_err(|error| self.at(path, error)),
        }
    }

    fn apply(&self, target: BorrowedFd<'_>, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        let failed = |error: Errno| self.at(path, error);
        let (uid, gid) = owner(path, attributes)?;
        // In this order: a change of owner takes setuid bits and capabilities away.
        rustix::fs::fchown(target, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(attributes.mode & 0o7777)).map_err(failed)?;
        for (name, value) in &attributes.extended {
            rustix::fs::fsetxattr(target, name.as_c_str(), value, XattrFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    fn refuse_root(&self, path: &EntryPath) -> Result<()> {
        if path.is_root() {
            return Err(Error::Source("an entry that is no directory stands for the whole tree".to_owned()));
        }
        Ok(())
    }

    fn count_entry(&mut self) -> Result<()> {
        self.entries += 1;
        within("number of files", self.entries, self.limits.entries)
    }

    fn count_content(&mut self, bytes: u64) -> Result<()> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        within("total size of files", self.content_bytes, self.limits.content_bytes)
    }

    /// The error for a path whose way leads through something that is no directory.
    fn refused(&self, path: &EntryPath, error: Errno) -> Error {
        match error {
            // A symbolic link that is asked to be a directory and not to be followed is either of these.
            Errno::LOOP | Errno::NOTDIR => Error::Source(format!(
                "entry {path} lies below something that is no directory; links are not followed"
            )),
            error => self.at(path, error),
        }
    }

    fn at(&self, path: &EntryPath, error: impl Into<io::Error>) -> Error {
        Error::at(self.location.join(OsStr::from_bytes(path.as_bytes())))(error)
    }
}

/// Owner and group as the kernel takes them.
fn owner(path: &EntryPath, attributes: &Attributes) -> Result<(Uid, Gid)> {
    let id = |what: &str, id: u64| match u32::try_from(id) {
        Ok(small) if id < IDS_END => Ok(small),
        _ => Err(Error::Source(format!("entry {path} has {what} {id}; only those below {IDS_END} fit"))),
    };
    Ok((Uid::from_raw(id("user id", attributes.uid)?), Gid::from_raw(id("group id", attributes.gid)?)))
}

fn timestamps(modified: Timespec) -> Timestamps {
    Timestamps { last_access: modified, last_modification: modified }
}
