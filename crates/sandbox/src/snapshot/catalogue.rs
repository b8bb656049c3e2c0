//! The snapshots that a data directory has.
//!
//! ```text
//! snapshots/<id>/snapshot.json   what it is
//! snapshots/<id>/machine/        what its engine wrote; gone once its sandboxes have all they need and its name is gone
//! snapshots/.new-<id>/           one that is being made
//! snapshots/.gone-<id>           what is being removed
//! ```
//!
//! What holds, and why:
//!
//! - *A snapshot is there whole or not at all*: it is written aside, brought to the disk, and gets its place by one rename.
//!   What lies aside belongs to nobody after a crash and goes at the next start.
//! - *A name means one snapshot.* One that takes the place of another is there before the other loses its name; of two with
//!   one name after a crash the newer has it.
//! - *Removing takes away the name.* What sandboxes still need goes with the last of them. Nothing here counts them: the
//!   rows say who needs what ([`Use`]).
//!
//! All but the lookups block.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

use super::{
    Clash, Snapshot,
    steps::{MakeStep, RemoveStep, Step},
};
use crate::{
    error::{Error, Kind, Result},
    fault, removal,
    types::{SnapshotId, SnapshotName},
};

/// Its directory in a data directory.
pub(super) const DIR: &str = "snapshots";

/// What a snapshot is.
const RECORD: &str = "snapshot.json";

/// What its engine wrote.
const MACHINE: &str = "machine";

/// Before the id of one that is being made.
pub(super) const NEW: &str = ".new-";

/// Before the id of what is being removed.
const GONE: &str = ".gone-";

/// Largest record in bytes: an environment, many times over.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// Most snapshots of one server.
const SNAPSHOTS_MAX: usize = 10_000;

/// Bytes of directory entries read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Bytes of a block as the kernel counts them.
const BLOCK_BYTES: u64 = 512;

/// How much of a snapshot a sandbox needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// None of it.
    Nothing,
    /// What it says about itself: its engine keeps the rest beside the sandbox's own disk.
    Record,
    /// All of it.
    Everything,
}

/// What a snapshot must survive once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// The end of the process.
    Process,
    /// A power cut.
    Power,
}

/// The catalogue.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    state: Mutex<State>,
    /// Held over changes of records: the file and the state change together.
    changing: Mutex<()>,
    /// Held by whoever removes: one at a time.
    removing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<SnapshotId, Entry>,
    /// Names of those that are being made.
    reserved: HashSet<SnapshotName>,
}

#[derive(Debug)]
struct Entry {
    snapshot: Arc<Snapshot>,
    data: Data,
    held: usize,
}

/// Whether what the engine wrote is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Here,
    Gone,
}

/// Keeps a snapshot, all of it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    snapshots: Arc<Snapshots>,
    id: SnapshotId,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.snapshots.state().entries.get_mut(&self.id) {
            entry.held = entry.held.saturating_sub(1);
        }
    }
}

/// A snapshot that is being made. Dropped before it is published, what it has written goes at the next start, or with
/// [`Self::abandon`].
#[derive(Debug)]
pub(crate) struct Draft {
    snapshots: Arc<Snapshots>,
    id: SnapshotId,
    name: Option<SnapshotName>,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.snapshots.state().reserved.remove(name);
        }
    }
}

impl Snapshots {
    /// Opens the catalogue of a data directory and removes what was left half made or half removed.
    pub(crate) fn open(data_dir: &Path) -> Result<Arc<Self>> {
        let dir = data_dir.join(DIR);
        let mut state = State::default();
        for id in list(&dir).map_err(|error| Error::internal("list snapshots", error))? {
            match read(&dir, &id) {
                Ok((snapshot, data)) => {
                    state.entries.insert(id, Entry { snapshot: Arc::new(snapshot), data, held: 0 });
                }
                // Nobody can use it, and nobody but its owner may say that it is to go.
                Err(error) => tracing::error!(snapshot = %id, %error, "a snapshot cannot be read"),
            }
        }
        let snapshots = Arc::new(Self {
            dir,
            state: Mutex::new(state),
            changing: Mutex::default(),
            removing: Mutex::default(),
        });
        for older in snapshots.doubly_named() {
            snapshots.unname(&older)?;
        }
        Ok(snapshots)
    }

    /// Those that lost their name to a newer one, in a crash.
    fn doubly_named(&self) -> Vec<SnapshotId> {
        let state = self.state();
        let mut newest: HashMap<&SnapshotName, &Snapshot> = HashMap::new();
        let mut older = Vec::new();
        for entry in state.entries.values() {
            let snapshot = &entry.snapshot;
            let Some(name) = &snapshot.name else { continue };
            let age = |snapshot: &Snapshot| (snapshot.created_at_ms, snapshot.id.clone());
            match newest.get(name) {
                Some(other) if age(other) > age(snapshot) => older.push(snapshot.id.clone()),
                Some(other) => {
                    older.push(other.id.clone());
                    newest.insert(name, snapshot);
                }
                None => drop(newest.insert(name, snapshot)),
            }
        }
        older
    }

    /// Those with names, by name.
    pub(crate) fn named(&self) -> Vec<Arc<Snapshot>> {
        let state = self.state();
        let mut named: Vec<_> = state
            .entries
            .values()
            .map(|entry| entry.snapshot.clone())
            .filter(|snapshot| snapshot.name.is_some())
            .collect();
        named.sort_by(|one, other| one.name.cmp(&other.name));
        named
    }

    /// The one of this name.
    pub(crate) fn find(&self, name: &SnapshotName) -> Option<Arc<Snapshot>> {
        self.state().find(name)
    }

    /// One of them, named or not.
    pub(crate) fn get(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        self.state().entries.get(id).map(|entry| entry.snapshot.clone())
    }

    /// Where what the engine wrote lies, if it is still there.
    pub(crate) fn machine(&self, id: &SnapshotId) -> Option<PathBuf> {
        let state = self.state();
        let entry = state.entries.get(id).filter(|entry| entry.data == Data::Here);
        entry.map(|_| self.dir.join(id.as_str()).join(MACHINE))
    }

    /// The one of this name, all of which stays as long as the answer is held.
    pub(crate) fn hold(self: &Arc<Self>, name: &SnapshotName) -> Option<(Arc<Snapshot>, Held)> {
        let mut state = self.state();
        let id = state.find(name)?.id.clone();
        let entry = state.entries.get_mut(&id).filter(|entry| entry.data == Data::Here)?;
        entry.held += 1;
        let snapshot = entry.snapshot.clone();
        drop(state);
        Some((snapshot, Held { snapshots: self.clone(), id }))
    }

    /// Digests of the images that any of them lies over.
    pub(crate) fn images(&self) -> BTreeSet<String> {
        self.state().entries.values().filter_map(|entry| entry.snapshot.image_digest()).collect()
    }

    /// Whether one of them lies over the image with this digest.
    pub(crate) fn uses_image(&self, digest: &str) -> bool {
        let lies_over = |entry: &Entry| {
            entry.snapshot.image.as_ref().is_some_and(|(_, image_digest)| image_digest == digest)
        };
        self.state().entries.values().any(lies_over)
    }

    /// Begins one. Its name is its own from here on; [`Kind::Exists`] if another has it.
    pub(crate) fn begin(self: &Arc<Self>, name: Option<SnapshotName>, clash: Clash) -> Result<Draft> {
        let id = {
            let mut state = self.state();
            if let Some(name) = &name {
                if clash == Clash::Refuse && state.find(name).is_some() {
                    return Err(Error::new(Kind::Exists, format!("there is a snapshot {name} already")));
                }
                if state.reserved.contains(name) {
                    return Err(Error::new(Kind::Exists, format!("a snapshot {name} is being made")));
                }
            }
            if state.entries.len() + state.reserved.len() >= SNAPSHOTS_MAX {
                let message = format!("there are {SNAPSHOTS_MAX} snapshots, the most allowed");
                return Err(Error::new(Kind::Exhausted, message));
            }
            let id = loop {
                let id = SnapshotId::random();
                if !state.entries.contains_key(&id) {
                    break id;
                }
            };
            state.reserved.extend(name.clone());
            id
        };
        let draft = Draft { snapshots: self.clone(), id, name };
        let made = fault::pass(MakeStep::Directory.name(), || {
            make_private(&self.dir)?;
            make_private(&draft.aside())?;
            make_private(&draft.machine())
        });
        made.map_err(|error| failed("make snapshot", error))?;
        Ok(draft)
    }

    /// Takes the name away. What nobody needs then is [`Self::collect`]'s to remove.
    pub(crate) fn forget_name(&self, name: &SnapshotName) -> Result<Option<Arc<Snapshot>>> {
        let Some(snapshot) = self.find(name) else { return Ok(None) };
        fault::pass(RemoveStep::Name.name(), || self.unname(&snapshot.id))?;
        Ok(Some(snapshot))
    }

    fn unname(&self, id: &SnapshotId) -> Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(snapshot) = self.get(id) else { return Ok(()) };
        let nameless = Snapshot { name: None, ..Snapshot::clone(&snapshot) };
        let dir = self.dir.join(id.as_str());
        rewrite(&dir, &nameless).map_err(|error| failed("remove name of snapshot", error))?;
        if let Some(entry) = self.state().entries.get_mut(id) {
            entry.snapshot = Arc::new(nameless);
        }
        Ok(())
    }

    /// Removes what has no name and is not needed; `needed` says what sandboxes still need of one.
    pub(crate) fn collect(&self, needed: &dyn Fn(&Snapshot) -> Use) -> Result<()> {
        let _alone = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let nameless: Vec<Arc<Snapshot>> = {
            let state = self.state();
            let free = |entry: &&Entry| entry.snapshot.name.is_none() && entry.held == 0;
            state.entries.values().filter(free).map(|entry| entry.snapshot.clone()).collect()
        };
        for snapshot in nameless {
            match needed(&snapshot) {
                Use::Everything => {}
                Use::Record => self.drop_data(&snapshot.id)?,
                Use::Nothing => self.remove(&snapshot.id)?,
            }
        }
        Ok(())
    }

    fn drop_data(&self, id: &SnapshotId) -> Result<()> {
        {
            let mut state = self.state();
            let entry = state.entries.get_mut(id);
            let Some(entry) = entry.filter(|entry| entry.held == 0 && entry.data == Data::Here) else {
                return Ok(());
            };
            entry.data = Data::Gone;
        }
        self.take_away(&self.dir.join(id.as_str()).join(MACHINE), id)
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        {
            let mut state = self.state();
            if state.entries.get(id).is_none_or(|entry| entry.held > 0) {
                return Ok(());
            }
            state.entries.remove(id);
        }
        tracing::info!(snapshot = %id, "snapshot removed");
        self.take_away(&self.dir.join(id.as_str()), id)
    }

    /// Renames first: half of a snapshot must never look like one.
    fn take_away(&self, path: &Path, id: &SnapshotId) -> Result<()> {
        let gone = format!("{GONE}{id}");
        let remove = || -> io::Result<()> {
            let dir = open_directory(CWD, &self.dir)?;
            // Of an earlier removal that did not come to its end.
            removal::remove_tree(dir.as_fd(), &gone)?;
            fault::pass(RemoveStep::Withdraw.name(), || {
                ignore_absent(fs_err::rename(path, self.dir.join(&gone)))
            })?;
            fault::pass(RemoveStep::Files.name(), || removal::remove_tree(dir.as_fd(), &gone))
        };
        remove().map_err(|error| failed("remove snapshot", error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, name: &SnapshotName) -> Option<Arc<Snapshot>> {
        let snapshots = self.entries.values().map(|entry| &entry.snapshot);
        // While one takes the place of another, both have the name for a moment: the newer has it.
        let with_name = snapshots.filter(|snapshot| snapshot.name.as_ref() == Some(name));
        with_name.max_by_key(|snapshot| (snapshot.created_at_ms, snapshot.id.clone())).cloned()
    }
}

impl Snapshot {
    fn image_digest(&self) -> Option<String> {
        self.image.as_ref().map(|(_, digest)| digest.clone())
    }
}

impl Draft {
    /// Which one it will be.
    pub(crate) fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// What it will be called.
    pub(crate) fn name(&self) -> Option<&SnapshotName> {
        self.name.as_ref()
    }

    fn aside(&self) -> PathBuf {
        self.snapshots.dir.join(format!("{NEW}{}", self.id))
    }

    /// The empty directory that its engine writes into, or a copy that came from elsewhere is put into.
    pub(crate) fn machine(&self) -> PathBuf {
        self.aside().join(MACHINE)
    }

    /// Makes it appear. Id, name and size of `snapshot` are filled in here. If that fails, nothing of it is left.
    pub(crate) fn publish(self, snapshot: Snapshot, sync: Sync) -> Result<(Arc<Snapshot>, Held)> {
        let aside = self.aside();
        let outcome = self.settle(snapshot, sync);
        if outcome.is_err() {
            drop(remove_aside(&self.snapshots.dir, &aside));
        }
        outcome
    }

    /// Removes what there is of it.
    pub(crate) fn abandon(self) -> Result<()> {
        remove_aside(&self.snapshots.dir, &self.aside())
            .map_err(|error| failed("remove half made snapshot", error))
    }

    fn settle(&self, snapshot: Snapshot, sync: Sync) -> Result<(Arc<Snapshot>, Held)> {
        let host = |error| failed("keep snapshot", error);
        let (aside, dir) = (self.aside(), &self.snapshots.dir);
        let size_bytes = allocated_bytes(&self.machine()).map_err(host)?;
        let before = self.name.as_ref().and_then(|name| self.snapshots.find(name));
        // Of two with one name the newer has it.
        let later = before.map_or(i64::MIN, |before| before.created_at_ms.saturating_add(1));
        let created_at_ms = snapshot.created_at_ms.max(later);
        let (id, name) = (self.id.clone(), self.name.clone());
        let snapshot = Snapshot { id, name, created_at_ms, size_bytes, ..snapshot };
        fault::pass(MakeStep::Record.name(), || write_record(&aside.join(RECORD), &snapshot))
            .map_err(host)?;
        if sync == Sync::Power {
            // One call for all of it: it may be very many small files.
            let sync = || Ok::<_, io::Error>(rustix::fs::syncfs(open_directory(CWD, &aside)?)?);
            fault::pass(MakeStep::Sync.name(), sync).map_err(host)?;
        }
        let place = || {
            fs_err::rename(&aside, dir.join(self.id.as_str()))?;
            if sync == Sync::Power { fs_err::File::open(dir)?.sync_all() } else { Ok(()) }
        };
        let snapshot = Arc::new(snapshot);
        let before = {
            let _alone = self.snapshots.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let before = self.name.as_ref().and_then(|name| self.snapshots.find(name));
            fault::pass(MakeStep::Publish.name(), place).map_err(host)?;
            let mut state = self.snapshots.state();
            // Held already: nobody may find it useless before its maker has had a look at it.
            let entry = Entry { snapshot: snapshot.clone(), data: Data::Here, held: 1 };
            state.entries.insert(self.id.clone(), entry);
            before
        };
        let held = Held { snapshots: self.snapshots.clone(), id: self.id.clone() };
        if let Some(before) = before
            && let Err(error) = self.snapshots.unname(&before.id)
        {
            // The newer has the name all the same, and the next start repeats this.
            tracing::warn!(snapshot = %before.id, %error, "a snapshot that was replaced keeps its name");
        }
        tracing::info!(snapshot = %self.id, kind = ?snapshot.kind, bytes = size_bytes, "snapshot made");
        Ok((snapshot, held))
    }
}

/// Digests of the images that snapshots of a data directory lie over, without opening it.
pub fn images_of(data_dir: &Path) -> Result<BTreeSet<String>> {
    let dir = data_dir.join(DIR);
    let host = |error| Error::internal("list snapshots", error);
    let mut digests = BTreeSet::new();
    for entry in entries(&dir).map_err(host)? {
        let Ok(id) = SnapshotId::parse(&entry) else { continue };
        if let Ok((snapshot, _)) = read(&dir, &id) {
            digests.extend(snapshot.image_digest());
        }
    }
    Ok(digests)
}

/// The newest of this name in a directory of snapshots, without opening the catalogue: whoever has it goes on.
pub(super) fn newest_named(dir: &Path, name: &SnapshotName) -> Result<Option<SnapshotId>> {
    let host = |error| Error::internal("list snapshots", error);
    let ids = entries(dir).map_err(host)?.into_iter().filter_map(|entry| SnapshotId::parse(&entry).ok());
    let read = ids.filter_map(|id| read(dir, &id).ok());
    let named = read.filter(|(snapshot, data)| snapshot.name.as_ref() == Some(name) && *data == Data::Here);
    let newest = named.max_by_key(|(snapshot, _)| (snapshot.created_at_ms, snapshot.id.clone()));
    Ok(newest.map(|(snapshot, _)| snapshot.id))
}

/// Those that are there; what lies aside is removed.
fn list(dir: &Path) -> io::Result<Vec<SnapshotId>> {
    let mut ids = Vec::new();
    for name in entries(dir)? {
        if name.starts_with(NEW) || name.starts_with(GONE) {
            remove_aside(dir, &dir.join(&name))?;
        } else if let Ok(id) = SnapshotId::parse(&name) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn entries(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    Ok(names?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn read(dir: &Path, id: &SnapshotId) -> Result<(Snapshot, Data)> {
    let dir = dir.join(id.as_str());
    let host = |error| Error::internal("read snapshot", error);
    let path = dir.join(RECORD);
    let size = fs_err::metadata(&path).map_err(host)?.len();
    if size > RECORD_BYTES_MAX {
        return Err(Error::new(Kind::Internal, format!("the record of snapshot {id} is too large")));
    }
    let text = fs_err::read(&path).map_err(host)?;
    let snapshot: Snapshot =
        serde_json::from_slice(&text).map_err(|error| Error::internal("read snapshot", error))?;
    if snapshot.id != *id {
        return Err(Error::new(Kind::Internal, format!("the record of snapshot {id} is another's")));
    }
    let data = if dir.join(MACHINE).is_dir() { Data::Here } else { Data::Gone };
    Ok((snapshot, data))
}

fn write_record(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    use std::io::Write as _;
    let text = serde_json::to_vec_pretty(snapshot)?;
    fs_err::File::create_new(path)?.write_all(&text)
}

/// Replaces a record, whole or not at all.
fn rewrite(dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let fresh = dir.join(format!(".{RECORD}"));
    ignore_absent(fs_err::remove_file(&fresh))?;
    write_record(&fresh, snapshot)?;
    fs_err::File::open(&fresh)?.sync_all()?;
    fs_err::rename(&fresh, dir.join(RECORD))
}

fn remove_aside(dir: &Path, path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    removal::remove_tree(open_directory(CWD, dir)?.as_fd(), name)
}

pub(super) fn make_private(path: &Path) -> io::Result<()> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Bytes on disk of all below a directory; a file with several names counts once.
fn allocated_bytes(path: &Path) -> io::Result<u64> {
    fn add(directory: &OwnedFd, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
        let mut bytes = 0_u64;
        let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let status = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(status.st_mode).is_dir();
            if !is_directory && status.st_nlink > 1 && !seen.insert((status.st_dev, status.st_ino)) {
                continue;
            }
            bytes += u64::try_from(status.st_blocks).unwrap_or(0) * BLOCK_BYTES;
            if is_directory {
                bytes += add(&open_directory(directory, name)?, seen)?;
            }
        }
        Ok(bytes)
    }
    add(&open_directory(CWD, path)?, &mut HashSet::new())
}

/// A failing host, told apart from one that is full.
fn failed(what: &'static str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Error::new(Kind::Exhausted, format!("{what}: no space left in the data directory"))
                .with_source(error)
        }
        _ => Error::internal(what, error),
    }
}
