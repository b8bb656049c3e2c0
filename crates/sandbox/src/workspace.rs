//! Workspaces: directories that outlive sandboxes and the server, and that several sandboxes show at `/workspace` at
//! once.
//!
//! ```text
//! <workspaces>/<id>/record       when it was made; a symbolic link that leads nowhere
//! <workspaces>/<id>/files/       its files, or
//! <workspaces>/<id>/files.ext4   a file system with them, where a quota is kept
//! <workspaces>/.new-<random>/    one that is being made
//! <workspaces>/.gone-<random>/   one that is being removed
//! ```
//!
//! Invariants:
//! - A workspace has its name only while it is whole: it is made aside and renamed, and renamed aside and removed.
//!   Whoever makes or removes one holds a lock on its directory, so that what nobody locks was left by a crash.
//! - A sandbox is known to the service before it takes hold of its workspace, and a removal looks for sandboxes while
//!   nobody can take hold: a workspace in use is never removed unless that is asked for.
//! - On disk everything belongs to ids that no user of the host has ([`WORKSPACE_ID_BASE`]).

mod files;
mod steps;
mod volume;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

pub use files::{Extent, FileEntry, WorkspacePath};
pub use steps::fault_points;
pub use volume::mount;

use crate::{
    engine::Capabilities,
    error::{Error, Kind, Result},
    instance::Span,
    removal,
    service::{Service, WorkspaceConfig},
    toolbox::Body,
    types::{Phase, Sandbox, SandboxId, Tenancy, WORKLOAD_ID, WORKSPACE_ID_BASE, WorkspaceId},
};
use files::Draft;
use steps::{MakeStep, RemoveStep, pass};
use volume::{Volume, open_directory};

/// The sandbox's user and group on disk.
const OWNER: u32 = WORKSPACE_ID_BASE + WORKLOAD_ID;

const RECORD: &str = "record";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// How often a workspace may be removed under the hands of whoever wants to use it.
const HOLD_ATTEMPTS_MAX: usize = 16;

/// Files counted to tell how much a workspace holds.
const COUNTED_ENTRIES_MAX: usize = 50_000;

/// How long a mounted workspace is kept ready for the next request.
const VOLUME_IDLE: Duration = Duration::from_secs(2);

/// Bytes of a file read at a time.
const READ_BYTES: usize = 128 * 1024;

/// A workspace as the edges see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceView {
    /// Its name.
    pub id: WorkspaceId,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// Bytes that it takes of the host's disk; absent where that would take too long to tell.
    pub used_bytes: Option<u64>,
    /// Bytes that it may hold; absent: no limit.
    pub quota_bytes: Option<u64>,
    /// Live sandboxes that show it.
    pub sandboxes: usize,
    /// Those of them that run.
    pub running: usize,
}

/// Whether a workspace is removed while sandboxes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is not: [`Kind::Conflict`].
    Unused,
    /// It is. They see an empty directory that takes nothing until they are started again; then they get a new one.
    Forced,
}

/// What becomes of a request for files of a workspace that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// [`Kind::NotFound`].
    Refuse,
    /// The workspace is made.
    Make,
}

/// All workspaces of a data directory. Other processes on it may have sandboxes that show them too.
pub(crate) struct Workspaces {
    config: WorkspaceConfig,
    /// What this process alone holds: its sandboxes go when it does.
    held: Option<Mutex<BTreeMap<WorkspaceId, OwnedFd>>>,
    /// Mounts that are in use.
    volumes: Mutex<HashMap<WorkspaceId, Weak<Kept>>>,
}

/// An open volume, and the word that it is to be closed soon.
struct Kept {
    volume: Volume,
    close: CancellationToken,
}

impl Workspaces {
    /// Removes what a crash left, where workspaces were ever made.
    pub(crate) fn open(config: &WorkspaceConfig, span: Span) -> Self {
        let workspaces = Self {
            config: config.clone(),
            held: (span == Span::Process).then(Mutex::default),
            volumes: Mutex::default(),
        };
        match workspaces.sweep() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "cannot remove what is left of workspaces"),
        }
        workspaces
    }

    /// Which workspace a sandbox shows, of which a request may have named one. [`Kind::Invalid`] if there are none.
    pub(crate) fn admit(
        &self,
        asked: Option<WorkspaceId>,
        sandbox: &SandboxId,
        capabilities: &Capabilities,
    ) -> Result<Option<WorkspaceId>> {
        let wanted = match asked {
            Some(id) => id,
            None if self.config.enabled && self.config.persist_by_default => Self::of(sandbox),
            None => return Ok(None),
        };
        self.enabled()?;
        if !capabilities.workspaces {
            let message = "workspaces are not supported on this host: its kernel cannot map owners of files";
            return Err(Error::new(Kind::Unsupported, message));
        }
        Ok(Some(wanted))
    }

    /// The workspace that a sandbox gets whose request named none.
    fn of(sandbox: &SandboxId) -> WorkspaceId {
        WorkspaceId::parse(sandbox.as_str()).expect("hex digits with hyphens between them are a name")
    }

    /// Gives a sandbox its final id: a workspace of its own is named after it. `None` if that name is taken.
    pub(crate) fn name(&self, sandbox: &Sandbox, id: SandboxId) -> Option<Sandbox> {
        let mut named = Sandbox { id, ..sandbox.clone() };
        if named.spec.workspace.as_ref() != Some(&Self::of(&sandbox.id)) {
            return Some(named);
        }
        // One that nobody has yet must leave nothing behind.
        named.spec.workspace = None;
        if named.tenancy != Tenancy::Idle {
            let own = Self::of(&named.id);
            if self.path(&own).symlink_metadata().is_ok() {
                return None;
            }
            named.spec.workspace = Some(own);
        }
        Some(named)
    }

    fn enabled(&self) -> Result<()> {
        if self.config.enabled {
            return Ok(());
        }
        let message =
            "workspaces are not enabled on this server; set workspace.enabled: true in its configuration";
        Err(Error::new(Kind::Invalid, message))
    }

    fn path(&self, id: &WorkspaceId) -> PathBuf {
        self.config.directory.join(id.as_str())
    }

    /// Makes sure that the workspace of a sandbox about to start is there, and answers where. The sandbox must be known
    /// to the service already.
    pub(crate) fn take(&self, id: &WorkspaceId) -> Result<PathBuf> {
        let lock = self.hold(id)?;
        if let Some(held) = &self.held {
            held.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_insert(lock);
        }
        Ok(self.path(id))
    }

    /// A lock on a workspace's directory, which is there as long as this is held; it is made if need be.
    fn hold(&self, id: &WorkspaceId) -> Result<OwnedFd> {
        self.enabled()?;
        let path = self.path(id);
        for _ in 0..HOLD_ATTEMPTS_MAX {
            let directory = match open_directory(CWD, &path) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => {
                    self.make(id)?;
                    continue;
                }
                Err(error) => return Err(host("open workspace", error)),
            };
            rustix::fs::flock(&directory, FlockOperation::LockShared)
                .map_err(|error| host("lock workspace", error))?;
            if is_named(&directory, &path) {
                return Ok(directory);
            }
        }
        Err(Error::new(Kind::Unavailable, format!("workspace {id} is being removed again and again")))
    }

    /// Makes a workspace, durably. One that is there by then is as good.
    fn make(&self, id: &WorkspaceId) -> Result<()> {
        if self.config.quota_bytes > 0 && !volume::can_limit() {
            let message =
                "workspace.quota_mb needs mkfs.ext4 (package e2fsprogs) and loop devices on the server";
            return Err(Error::new(Kind::Unsupported, message));
        }
        let aside = self.config.directory.join(format!("{NEW}{:016x}", random()));
        let made = self.make_aside(&aside, id);
        if made.is_err() {
            // What cannot be removed now is removed at the next start.
            let _ = remove_aside(&self.config.directory, &aside);
        }
        made.map_err(|error| host("make workspace", error))
    }

    fn make_aside(&self, aside: &Path, id: &WorkspaceId) -> io::Result<()> {
        let _lock = pass(MakeStep::Directory, || {
            fs_err::create_dir_all(&self.config.directory)?;
            rustix::fs::chmod(&self.config.directory, Mode::from_raw_mode(0o700))?;
            rustix::fs::mkdir(aside, Mode::from_raw_mode(0o700))?;
            let directory = open_directory(CWD, aside)?;
            rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            io::Result::Ok(directory)
        })?;
        pass(MakeStep::Files, || volume::make(aside, self.config.quota_bytes))?;
        pass(MakeStep::Record, || {
            rustix::fs::symlink(now_ms().to_string(), aside.join(RECORD)).map_err(io::Error::from)
        })?;
        pass(MakeStep::Sync, || sync(aside))?;
        pass(MakeStep::Name, || {
            match rustix::fs::renameat_with(CWD, aside, CWD, self.path(id), RenameFlags::NOREPLACE) {
                Ok(()) => sync(&self.config.directory),
                Err(Errno::EXIST) => remove_aside(&self.config.directory, aside),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Removes a workspace. `used` counts the sandboxes that show it, and is asked while nobody can take hold of it.
    /// Absent is success.
    fn remove(&self, id: &WorkspaceId, removal: Removal, used: impl FnOnce() -> usize) -> Result<()> {
        self.enabled()?;
        let path = self.path(id);
        let lock = match open_directory(CWD, &path) {
            Ok(lock) => lock,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(host("open workspace", error)),
        };
        let in_use = |who: &str| {
            let message = format!("workspace {id} is in use by {who}; end that first, or use force=true");
            Err(Error::new(Kind::Conflict, message))
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if removal == Removal::Forced => {}
            Err(Errno::WOULDBLOCK) => return in_use("a sandbox of another process, or one about to start"),
            Err(error) => return Err(host("lock workspace", error)),
        }
        if !is_named(&lock, &path) {
            return Ok(());
        }
        let used = used();
        if used > 0 && removal == Removal::Unused {
            return in_use(&format!("{used} session(s)"));
        }
        let aside = self.config.directory.join(format!("{GONE}{:016x}", random()));
        let removed = pass(RemoveStep::Name, || {
            rustix::fs::rename(&path, &aside)?;
            sync(&self.config.directory)
        });
        self.forget_volume(id);
        removed
            .and_then(|()| remove_aside(&self.config.directory, &aside))
            .map_err(|error| host("remove workspace", error))
    }

    /// Removes what was being made or removed when its process died.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.config.directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(NEW) && !name.starts_with(GONE) {
                continue;
            }
            let Ok(lock) = open_directory(CWD, &path) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                tracing::info!("removing what a crash left of a workspace");
                remove_aside(&self.config.directory, &path)?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<WorkspaceView>> {
        self.enabled()?;
        let entries = match fs_err::read_dir(&self.config.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(host("list workspaces", error)),
        };
        let mut views = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| host("list workspaces", error))?;
            let name = entry.file_name();
            // What does not carry a name that could be asked for is none.
            let Some(id) = name.to_str().filter(|name| !name.starts_with(WorkspaceId::LEGACY_PREFIX)) else {
                continue;
            };
            let Ok(id) = WorkspaceId::parse(id) else { continue };
            match view(id, &entry.path()) {
                Ok(view) => views.push(view),
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(host("look at workspace", error)),
            }
        }
        views.sort_by(|left, right| left.id.cmp(&right.id));
        Ok(views)
    }

    /// The files of a workspace: those that are open already, or opened now.
    fn volume(&self, id: &WorkspaceId, missing: Missing) -> Result<Arc<Kept>> {
        let path = self.path(id);
        let _lock = match missing {
            Missing::Make => Some(self.hold(id)?),
            Missing::Refuse => {
                self.enabled()?;
                None
            }
        };
        let mut volumes = self.volumes();
        if let Some(kept) = volumes.get(id).and_then(Weak::upgrade) {
            return Ok(kept);
        }
        let volume = Volume::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(Kind::NotFound, format!("workspace not found: {id}")),
            _ => host("open workspace", error),
        })?;
        let kept = Arc::new(Kept { volume, close: CancellationToken::new() });
        volumes.retain(|_, kept| kept.strong_count() > 0);
        volumes.insert(id.clone(), Arc::downgrade(&kept));
        Ok(kept)
    }

    fn forget_volume(&self, id: &WorkspaceId) {
        if let Some(kept) = self.volumes().remove(id).and_then(|kept| kept.upgrade()) {
            kept.close.cancel();
        }
    }

    fn volumes(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, Weak<Kept>>> {
        // The map is whole between any two statements.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(id: WorkspaceId, path: &Path) -> io::Result<WorkspaceView> {
    let record = fs_err::read_link(path.join(RECORD))?;
    Ok(WorkspaceView {
        id,
        created_at_ms: record.to_str().and_then(|text| text.parse().ok()).unwrap_or(0),
        used_bytes: volume::used(path, COUNTED_ENTRIES_MAX)?,
        quota_bytes: volume::quota_of(path)?,
        sandboxes: 0,
        running: 0,
    })
}

/// Removes a directory that has no workspace's name, whoever still writes into it.
fn remove_aside(parent: &Path, aside: &Path) -> io::Result<()> {
    pass(RemoveStep::Files, || volume::empty(aside))?;
    pass(RemoveStep::Directory, || {
        let directory = open_directory(CWD, parent)?;
        let name = aside.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        removal::take_and_remove_tree(directory.as_fd(), name)
    })
}

fn is_named(directory: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(directory), rustix::fs::lstat(path)) {
        (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
        _ => false,
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(rustix::fs::open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)?)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    u64::from_ne_bytes(bytes)
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A failing host, told apart from one that is full.
fn host(what: &str, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Error::new(Kind::Exhausted, format!("{what}: no space left on the server")).with_source(error)
        }
        Some(libc::EBUSY) => {
            Error::new(Kind::Conflict, format!("{what}: somebody on the server uses its file by other means"))
                .with_source(error)
        }
        _ => Error::internal(what, error),
    }
}

impl Service {
    /// Whether there are workspaces; the refusal names the setting.
    pub fn check_workspaces(&self) -> Result<()> {
        self.shared().workspaces.enabled()
    }

    /// Workspaces, by name.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceView>> {
        let shared = self.shared().clone();
        let mut views = blocking("list workspaces", move || shared.workspaces.list()).await?;
        let mut shown: HashMap<WorkspaceId, (usize, usize)> = HashMap::new();
        for handle in self.shared().handles() {
            if let Some(id) = handle.workspace() {
                let (sandboxes, running) = shown.entry(id).or_default();
                *sandboxes += 1;
                *running += usize::from(handle.phase() == Phase::Running);
            }
        }
        for view in &mut views {
            (view.sandboxes, view.running) = shown.get(&view.id).copied().unwrap_or_default();
        }
        Ok(views)
    }

    /// Removes a workspace with all its files. One that is not there is success.
    pub async fn remove_workspace(&self, id: WorkspaceId, removal: Removal) -> Result<()> {
        let shared = self.shared().clone();
        blocking("remove workspace", move || {
            let used = || {
                let handles = shared.handles();
                handles.iter().filter(|handle| handle.workspace().as_ref() == Some(&id)).count()
            };
            shared.workspaces.remove(&id, removal, used)
        })
        .await
    }

    /// The files of a workspace.
    pub async fn workspace_files(&self, id: WorkspaceId, missing: Missing) -> Result<WorkspaceFiles> {
        let shared = self.shared().clone();
        let name = id.clone();
        let kept = blocking("open workspace", move || shared.workspaces.volume(&name, missing)).await?;
        let (idle, close, token) = (kept.clone(), kept.close.clone(), self.shared().token.clone());
        // The next request finds it mounted.
        self.shared().spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(VOLUME_IDLE) => {}
                () = close.cancelled() => {}
                () = token.cancelled() => {}
            }
            // The last one to let go unmounts it, which may wait for the disk.
            let _ = tokio::task::spawn_blocking(move || drop(idle)).await;
        });
        Ok(WorkspaceFiles { id, kept })
    }
}

/// The files of one workspace.
#[derive(Clone)]
pub struct WorkspaceFiles {
    id: WorkspaceId,
    kept: Arc<Kept>,
}

impl WorkspaceFiles {
    /// What is at a path.
    pub async fn stat(&self, path: WorkspacePath) -> Result<FileEntry> {
        self.with(move |volume| files::stat(volume.root(), &path)).await
    }

    /// What a directory holds, by name.
    pub async fn list(&self, path: WorkspacePath) -> Result<Vec<FileEntry>> {
        self.with(move |volume| files::list(volume.root(), &path)).await
    }

    /// Opens a regular file to read it.
    pub async fn open(&self, path: WorkspacePath) -> Result<OpenFile> {
        let (file, entry) = self.with(move |volume| files::open(volume.root(), &path)).await?;
        Ok(OpenFile { file: Arc::new(file.into()), entry })
    }

    /// Writes a file whole, durably and atomically; its directories are made.
    pub async fn write(&self, path: WorkspacePath, mut content: Body) -> Result<()> {
        let mut draft = self.with(move |volume| Draft::start(volume.root(), &path)).await?;
        while let Some(frame) = content.frame().await {
            let frame = frame
                .map_err(|error| Error::new(Kind::Invalid, "the content broke off").with_source(error))?;
            let Ok(data) = frame.into_data() else { continue };
            draft = self
                .with(move |_| {
                    draft.write(&data)?;
                    Ok(draft)
                })
                .await?;
        }
        self.with(move |_| draft.commit()).await
    }

    /// Removes what is at a path.
    pub async fn remove(&self, path: WorkspacePath, extent: Extent) -> Result<()> {
        self.with(move |volume| files::remove(volume.root(), &path, extent)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Volume) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let kept = self.kept.clone();
        let done = blocking("use workspace", move || act(&kept.volume)).await;
        done.map_err(|error| match (error.kind(), self.kept.volume.quota_bytes) {
            (Kind::Exhausted, Some(bytes)) => {
                let message = format!("workspace {} is full: it may hold {} MiB", self.id, bytes >> 20);
                Error::new(Kind::Exhausted, message).with_source(error)
            }
            (Kind::Exhausted, None) => {
                let message = format!("no space left on the server for workspace {}", self.id);
                Error::new(Kind::Exhausted, message).with_source(error)
            }
            _ => error,
        })
    }
}

/// A file that is open for reading. It stays what it is, whatever becomes of its name.
#[derive(Debug)]
pub struct OpenFile {
    file: Arc<std::fs::File>,
    entry: FileEntry,
}

impl OpenFile {
    /// What it is.
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }

    /// Its content from byte `offset` on, at most `length` bytes, as it is read.
    pub fn content(&self, offset: u64, length: u64) -> Body {
        let end = offset.saturating_add(length);
        let pieces = futures::stream::try_unfold((self.file.clone(), offset), move |(file, at)| async move {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(READ_BYTES);
            if wanted == 0 {
                return Ok(None);
            }
            let read = move || {
                let mut piece = vec![0; wanted];
                let count = std::os::unix::fs::FileExt::read_at(&*file, &mut piece, at)?;
                piece.truncate(count);
                io::Result::Ok((piece, file))
            };
            let (piece, file) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            let at = at + piece.len() as u64;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                (!piece.is_empty()).then(|| (Frame::data(piece.into()), (file, at))),
            )
        });
        BodyExt::boxed(StreamBody::new(pieces))
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(what, error)),
    }
}

#[cfg(test)]
mod tests;
