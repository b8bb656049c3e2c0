//! Changes of files as the kernel tells them (inotify), for a file, a folder, or a tree.

use std::{collections::HashMap, io, os::fd::OwnedFd};

use rustix::{
    fs::{
        AtFlags, FileType, OFlags,
        inotify::{self, CreateFlags, WatchFlags},
    },
    io::Errno,
};
use sandhaus_protocol::watch::{ChangeKind, FOLDERS_MAX};

use super::{
    changes::through,
    places::{Place, open_below, open_directory, raw_names},
};

/// What a folder is asked to tell.
const WANTED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::EXCL_UNLINK);

/// What is wanted of the top besides.
const OF_TOP: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

/// Bytes of a message before its name.
const HEAD_BYTES: usize = 16;

/// Most entries told of a folder that appeared with something in it.
const FOUND_MAX: usize = 100_000;

/// How far down is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What is named, and what is in it.
    Single,
    /// All beneath it.
    Tree,
}

/// What was told; paths are beneath the top, whose own is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Something happened.
    Change {
        /// What.
        kind: ChangeKind,
        /// To which.
        path: String,
        /// It is a folder.
        is_folder: bool,
        /// Where it was before.
        from: Option<String>,
    },
    /// Some of it was lost.
    Overflow,
    /// The top is no longer where it was. Nothing follows.
    Gone,
}

/// The state behind a stream of changes.
pub(crate) struct Watches {
    inotify: OwnedFd,
    /// Opened anew each time: an open folder would keep its own end from being told.
    place: Place,
    extent: Extent,
    top_watch: i32,
    /// Folders by the kernel's number for their watch.
    paths: HashMap<i32, String>,
}

/// One message of the kernel.
struct Message<'a> {
    watch: i32,
    mask: u32,
    cookie: u32,
    name: &'a [u8],
}

impl Watches {
    /// Watches from now on. What was lost at the beginning already is told as the first.
    pub(crate) fn start(place: Place, extent: Extent) -> io::Result<(Self, Vec<Told>)> {
        let top = place.open_at(place.path(), OFlags::PATH)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let top_watch = inotify::add_watch(&inotify, through(&top), WANTED | OF_TOP)?;
        let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&top)?.st_mode) == FileType::Directory;
        let paths = HashMap::from([(top_watch, String::new())]);
        drop(top);
        let mut watches = Self { inotify, place, extent, top_watch, paths };
        let mut told = Vec::new();
        if extent == Extent::Tree && is_folder {
            watches.descend(String::new(), &mut |_, _| {}, &mut told);
        }
        Ok((watches, told))
    }

    /// Where the kernel's messages come from.
    pub(crate) fn messages(&self) -> io::Result<OwnedFd> {
        self.inotify.try_clone()
    }

    /// What messages say. New folders are watched.
    pub(crate) fn digest(&mut self, bytes: &[u8]) -> Vec<Told> {
        let mut told = Vec::new();
        let mut messages = parse(bytes).peekable();
        while let Some(message) = messages.next() {
            let has = |flag: WatchFlags| message.mask & flag.bits() != 0;
            if message.mask & libc::IN_Q_OVERFLOW != 0 {
                told.push(Told::Overflow);
                continue;
            }
            if message.mask & libc::IN_IGNORED != 0 {
                self.paths.remove(&message.watch);
                continue;
            }
            if message.watch == self.top_watch && has(OF_TOP) {
                told.push(Told::Gone);
                return told;
            }
            let Some(folder) = self.paths.get(&message.watch) else { continue };
            let path = below(folder, &String::from_utf8_lossy(message.name));
            let is_folder = message.mask & libc::IN_ISDIR != 0;
            let moved_to = messages.peek().filter(|next| {
                has(WatchFlags::MOVED_FROM)
                    && next.mask & WatchFlags::MOVED_TO.bits() != 0
                    && next.cookie == message.cookie
            });
            if let Some(next) = moved_to
                && let Some(folder) = self.paths.get(&next.watch)
            {
                let to = below(folder, &String::from_utf8_lossy(next.name));
                messages.next();
                self.rename(&path, &to);
                told.push(Told::Change { kind: ChangeKind::Moved, path: to, is_folder, from: Some(path) });
                continue;
            }
            let Some(kind) = kind(message.mask) else { continue };
            if has(WatchFlags::MOVED_FROM) && is_folder {
                self.forget(&path);
            }
            let is_new = kind == ChangeKind::Created && is_folder && self.extent == Extent::Tree;
            told.push(Told::Change { kind, path: path.clone(), is_folder, from: None });
            if is_new {
                self.take_in(path, &mut told);
            }
        }
        told
    }

    /// Watches a folder that appeared, and tells what is in it: that may have been before it was watched.
    fn take_in(&mut self, path: String, told: &mut Vec<Told>) {
        if !self.watch(&path, told) {
            return;
        }
        let mut found = Vec::new();
        self.descend(path, &mut |path, is_folder| found.push((path.to_owned(), is_folder)), told);
        if found.len() > FOUND_MAX {
            found.truncate(FOUND_MAX);
            told.push(Told::Overflow);
        }
        let created =
            |(path, is_folder)| Told::Change { kind: ChangeKind::Created, path, is_folder, from: None };
        told.extend(found.into_iter().map(created));
    }

    /// Watches every folder beneath one that is watched; `see` is shown each entry there. What goes away meanwhile, or may
    /// not be read, is passed over.
    fn descend(&mut self, path: String, see: &mut dyn FnMut(&str, bool), told: &mut Vec<Told>) {
        let Ok(top) = open_directory(&self.place) else { return };
        let mut waiting = vec![path];
        while let Some(folder) = waiting.pop() {
            let Ok(directory) = open_below(&top, &folder) else { continue };
            for name in raw_names(&directory).unwrap_or_default() {
                let Ok(stat) = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let path = below(&folder, &name.to_string_lossy());
                see(&path, is_folder);
                // A name that is no text cannot be said, nor found again.
                if is_folder && name.to_str().is_ok() {
                    if !self.watch(&path, told) && told.last() == Some(&Told::Overflow) {
                        return;
                    }
                    waiting.push(path);
                }
            }
        }
    }

    /// Adds one folder. False when it is not watched; where that is for lack of room, that is told.
    fn watch(&mut self, path: &str, told: &mut Vec<Told>) -> bool {
        let folder = open_directory(&self.place).and_then(|top| open_below(&top, path));
        let Ok(folder) = folder else { return false };
        let added = match self.paths.len() < FOLDERS_MAX {
            true => inotify::add_watch(&self.inotify, through(&folder), WANTED | WatchFlags::ONLYDIR),
            false => Err(Errno::NOSPC),
        };
        match added {
            Ok(watch) => {
                self.paths.insert(watch, path.to_owned());
                true
            }
            Err(Errno::NOSPC | Errno::NOMEM) => {
                told.push(Told::Overflow);
                false
            }
            Err(_) => false,
        }
    }

    /// A folder is elsewhere within the tree; its watches went with it.
    fn rename(&mut self, from: &str, to: &str) {
        for path in self.paths.values_mut() {
            if let Some(rest) = within(path, from) {
                *path = format!("{to}{rest}");
            }
        }
    }

    /// A folder has left the tree, and what happens in it is no longer of interest.
    fn forget(&mut self, folder: &str) {
        let inotify = &self.inotify;
        self.paths.retain(|watch, path| {
            let stays = within(path, folder).is_none();
            if !stays {
                // It may be gone by itself.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            stays
        });
    }
}

/// What is left of a path after a folder that it is or lies in.
fn within<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    path.strip_prefix(folder).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn below(folder: &str, name: &str) -> String {
    match (folder.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (false, true) => folder.to_owned(),
        (false, false) => format!("{folder}/{name}"),
    }
}

fn kind(mask: u32) -> Option<ChangeKind> {
    let kinds = [
        (WatchFlags::CREATE, ChangeKind::Created),
        (WatchFlags::MOVED_TO, ChangeKind::Created),
        (WatchFlags::DELETE, ChangeKind::Deleted),
        (WatchFlags::MOVED_FROM, ChangeKind::Deleted),
        (WatchFlags::MODIFY, ChangeKind::Modified),
        (WatchFlags::CLOSE_WRITE, ChangeKind::Closed),
        (WatchFlags::ATTRIB, ChangeKind::Attributes),
    ];
    kinds.into_iter().find_map(|(flag, kind)| (mask & flag.bits() != 0).then_some(kind))
}

fn parse(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let number = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let (name, rest) = rest.split_at_checked(usize::try_from(number(12)?).ok()?)?;
        bytes = rest;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Message { watch: number(0)?.cast_signed(), mask: number(4)?, cookie: number(8)?, name })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_within_a_folder() {
        assert_eq!(within("a/b", "a"), Some("/b"));
        assert_eq!(within("a", "a"), Some(""));
        assert_eq!(within("ab", "a"), None);
        assert_eq!(below("", "x"), "x");
        assert_eq!(below("a", ""), "a");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in parse(&bytes) {
                prop_assert!(message.name.len() <= bytes.len());
            }
        }
    }
}
