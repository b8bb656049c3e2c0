//! The layers of an image as one tree, as a process inside would see them.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use crate::{
    Error, Result,
    root::{OPAQUE_ATTRIBUTE, WHITEOUT},
};

/// Most links followed on one way.
const LINKS_MAX: usize = 40;

/// Longest way, links followed.
const NAMES_MAX: usize = 512;

/// The layers of an image, top first.
#[derive(Debug)]
pub(crate) struct Merged {
    location: PathBuf,
    layers: Vec<PathBuf>,
}

/// One directory of the merged tree: the directories of the layers that show in it, top first.
#[derive(Debug)]
pub(crate) struct Directory {
    parts: Vec<OwnedFd>,
}

impl Directory {
    /// The part that says what the directory is like.
    pub(crate) fn top(&self) -> BorrowedFd<'_> {
        self.parts.first().expect("a directory has a part").as_fd()
    }
}

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Node {
    /// A directory, with the attributes of its topmost part.
    Directory(Directory, Stat),
    /// A file, open.
    File(OwnedFd, Stat),
    /// A symbolic link.
    Symlink(Vec<u8>, Stat),
    /// Anything else.
    Other,
}

impl Merged {
    /// The tree of these layers, top first.
    pub(crate) fn new(layers: Vec<PathBuf>) -> Self {
        let location = layers.first().cloned().unwrap_or_default();
        Self { location, layers }
    }

    /// Its top directory.
    pub(crate) fn root(&self) -> Result<Directory> {
        let mut parts = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            parts.push(rustix::fs::open(layer, flags, Mode::empty()).map_err(Error::at(layer))?);
        }
        Ok(Directory { parts })
    }

    /// What a path stands for, links followed as a process inside follows them. `None` if it leads nowhere.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Node>> {
        let mut names: VecDeque<Vec<u8>> = path.split('/').map(|name| name.as_bytes().to_vec()).collect();
        let mut way = vec![self.root()?];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = names.pop_front() {
            steps += 1;
            if steps > NAMES_MAX {
                return Ok(None);
            }
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(here) = way.last() else { return Ok(None) };
            match self.lookup(here, &name)? {
                None => return Ok(None),
                Some(Node::Directory(directory, stat)) => {
                    if names.iter().all(|name| matches!(name.as_slice(), b"" | b".")) {
                        return Ok(Some(Node::Directory(directory, stat)));
                    }
                    way.push(directory);
                }
                Some(Node::Symlink(target, _)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    for name in target.split(|byte| *byte == b'/').rev() {
                        names.push_front(name.to_vec());
                    }
                }
                Some(node) => return Ok(names.is_empty().then_some(node)),
            }
        }
        Ok(None)
    }

    /// What a name in a directory stands for, links not followed.
    pub(crate) fn lookup(&self, directory: &Directory, name: &[u8]) -> Result<Option<Node>> {
        let name = CString::new(name).map_err(|_| Error::Source("a name has a NUL byte".to_owned()))?;
        let mut found: Option<(Vec<OwnedFd>, Stat)> = None;
        for part in &directory.parts {
            let stat = match rustix::fs::statat(part, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(self.failed(&name)(error)),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind != FileType::Directory {
                // Below a directory it is hidden; on top it hides what is below.
                if found.is_none() {
                    return self.leaf(part, &name, kind, stat);
                }
                break;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(part, &name, flags, Mode::empty()).map_err(self.failed(&name))?;
            let mut mark = [0_u8; 1];
            let opaque =
                rustix::fs::fgetxattr(&opened, OPAQUE_ATTRIBUTE, &mut mark[..]).is_ok() && mark == *b"y";
            found.get_or_insert_with(|| (Vec::new(), stat)).0.push(opened);
            if opaque {
                break;
            }
        }
        Ok(found.map(|(parts, stat)| Node::Directory(Directory { parts }, stat)))
    }

    fn leaf(&self, part: &OwnedFd, name: &CString, kind: FileType, stat: Stat) -> Result<Option<Node>> {
        Ok(match kind {
            WHITEOUT => None,
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let opened =
                    rustix::fs::openat(part, name, flags, Mode::empty()).map_err(self.failed(name))?;
                Some(Node::File(opened, stat))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(part, name, Vec::new()).map_err(self.failed(name))?;
                Some(Node::Symlink(target.into_bytes(), stat))
            }
            _ => Some(Node::Other),
        })
    }

    /// Names in a directory, in order; some may be hidden.
    pub(crate) fn names(&self, directory: &Directory) -> Result<Vec<Vec<u8>>> {
        let mut names = BTreeMap::new();
        for part in &directory.parts {
            for entry in Dir::read_from(part).map_err(Error::at(&self.location))? {
                let entry = entry.map_err(Error::at(&self.location))?;
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    names.insert(name.to_vec(), ());
                }
            }
        }
        Ok(names.into_keys().collect())
    }

    /// The attributes that a directory has in the first layer from `above` on that has it and shows there, and which one
    /// that is.
    pub(crate) fn directory_below(&self, path: &str, above: usize) -> Result<Option<(usize, Stat)>> {
        let mut parts: Vec<(usize, OwnedFd)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            parts.push((index, rustix::fs::open(layer, flags, Mode::empty()).map_err(Error::at(layer))?));
        }
        for name in path.split('/') {
            let mut next = Vec::new();
            for (index, part) in &parts {
                let one = Directory { parts: vec![part.try_clone().map_err(Error::at(&self.location))?] };
                match self.lookup(&one, name.as_bytes())? {
                    Some(Node::Directory(mut directory, _)) => {
                        let opened = directory.parts.remove(0);
                        let mut mark = [0_u8; 1];
                        let opaque = rustix::fs::fgetxattr(&opened, OPAQUE_ATTRIBUTE, &mut mark[..]).is_ok();
                        next.push((*index, opened));
                        if opaque {
                            break;
                        }
                    }
                    Some(_) => break,
                    None if self.is_hidden(part, name)? => break,
                    None => {}
                }
            }
            parts = next;
        }
        match parts.iter().find(|(index, _)| *index >= above) {
            Some((index, part)) => {
                let stat = rustix::fs::fstat(part).map_err(Error::at(&self.location))?;
                Ok(Some((*index, stat)))
            }
            None => Ok(None),
        }
    }

    fn is_hidden(&self, part: &OwnedFd, name: &str) -> Result<bool> {
        match rustix::fs::statat(part.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::at(self.location.join(name))(error)),
        }
    }

    fn failed<'n>(&self, name: &'n CString) -> impl FnOnce(Errno) -> Error + use<'n> {
        let place = self.location.join(Path::new(OsStr::from_bytes(name.to_bytes())));
        Error::at(place)
    }
}
