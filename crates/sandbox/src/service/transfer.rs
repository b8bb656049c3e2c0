//! Snapshots on their way to a store and back, as the edges ask for them.
//!
//! ```text
//! transfers/push-<snapshot id>/packing/   its engine writes it as a store keeps it
//! transfers/push-<snapshot id>/packed/    all of that
//! transfers/push-<snapshot id>/journal    what the store has of it
//! transfers/pull-<name>/machine/          one that has arrived; becomes the snapshot's by a rename
//! ```
//!
//! What a transfer leaves behind that was interrupted serves the next one of the same, for [`KEEP`].

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::fs::{CWD, Mode, OFlags};
pub use sandhaus_snapstore::{
    Bucket as StoreBucket, Credentials as StoreCredentials, Landing, Location as StoreLocation,
    PlainHttp as StorePlainHttp, StoreConfig,
};
use sandhaus_snapstore::{Info, Listed, Name, Observer, Pull, Push, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, watch};

use super::{Service, Shared, snapshots::blocking};
use crate::{
    engine::{Engine, ImageForm},
    error::{Error, Kind, Result},
    job::{Job, JobHandle, JobId, JobKind, JobState},
    removal,
    snapshot::{Clash, Held, Snapshot, SnapshotKind, StoredSnapshot, Sync},
    types::*,
};

/// Most transfers under way at once.
const TRANSFERS_MAX: usize = 8;

/// How long what an interrupted transfer has achieved is kept.
const KEEP: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Room left free where a snapshot is packed.
const SPARE_BYTES: u64 = 64 << 20;

/// Its directory in a data directory.
const DIR: &str = "transfers";
const PUSH: &str = "push-";
const PULL: &str = "pull-";
const PACKING: &str = "packing";
const PACKED: &str = "packed";
const JOURNAL: &str = "journal";
const MACHINE: &str = "machine";

/// The store that a service pushes to and pulls from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStore {
    /// Where it is.
    pub store: StoreConfig,
    /// Owner and permissions of what is pulled.
    pub landing: Landing,
}

/// Transfers, and the store that they go to.
#[derive(Debug)]
pub(crate) struct Transfers {
    config: Option<SnapshotStore>,
    store: OnceCell<Store>,
    under_way: Mutex<HashMap<(JobKind, SnapshotName), watch::Receiver<Job>>>,
}

impl Transfers {
    pub(crate) fn new(config: Option<SnapshotStore>) -> Self {
        Self { config, store: OnceCell::new(), under_way: Mutex::default() }
    }

    /// Whether there is a store.
    pub(crate) fn has_store(&self) -> bool {
        self.config.is_some()
    }

    fn config(&self) -> Result<&SnapshotStore> {
        let message = "no snapshot store is configured: set snapshots.store to s3://BUCKET or to a directory";
        self.config.as_ref().ok_or_else(|| Error::new(Kind::Unsupported, message))
    }

    async fn store(&self) -> Result<&Store> {
        let config = self.config()?;
        // One that cannot be opened now may be there later.
        Ok(self.store.get_or_try_init(|| Store::open(&config.store)).await?)
    }

    fn live(&self) -> Vec<Job> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.values().map(|job| job.borrow().clone()).collect()
    }
}

/// What a store is told of a snapshot: what this server says of it, but for what belongs to this host.
#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    kind: SnapshotKind,
    engine: EngineName,
    spec: SandboxSpec,
    config: sandhaus_images::ImageConfig,
    taken_at_ms: i64,
}

impl Metadata {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            kind: snapshot.kind,
            engine: snapshot.engine.clone(),
            spec: without_host(snapshot.spec.clone()),
            config: snapshot.config.clone(),
            taken_at_ms: snapshot.created_at_ms,
        }
    }
}

/// What a snapshot brings along may confine sandboxes that are made of it, and never give them anything of a host.
fn without_host(spec: SandboxSpec) -> SandboxSpec {
    let network = match spec.network {
        NetworkPolicy::Host => NetworkPolicy::None,
        network => network,
    };
    SandboxSpec {
        network,
        mounts: Vec::new(),
        workspace: None,
        publish: Vec::new(),
        seccomp: Seccomp::default(),
        ..spec
    }
}

impl Service {
    /// Begins to push a snapshot to the store, or joins the push that is under way. It goes on when nobody watches.
    pub async fn push_snapshot(&self, name: &SnapshotName) -> Result<watch::Receiver<Job>> {
        let shared = &self.shared;
        shared.transfers.config()?;
        let stored_name = parse(name)?;
        let (snapshot, held) = shared.snapshots.hold(name).ok_or_else(|| shared.no_snapshot(name))?;
        let engine = portable(shared, &snapshot.engine)?;
        let (work, name) = (shared.clone(), name.clone());
        self.transfer(JobKind::PushSnapshot, name, move |job| async move {
            push(&work, &stored_name, &snapshot, &held, engine.as_ref(), &job).await
        })
    }

    /// Begins to pull a snapshot from the store, or joins the pull that is under way. One that is here and whole is not
    /// fetched again; one that is broken is.
    pub async fn pull_snapshot(&self, name: &SnapshotName) -> Result<watch::Receiver<Job>> {
        let shared = &self.shared;
        shared.transfers.config()?;
        let stored_name = parse(name)?;
        let (work, wanted) = (shared.clone(), name.clone());
        self.transfer(JobKind::PullSnapshot, name.clone(), move |job| async move {
            pull(&work, &wanted, &stored_name, &job).await
        })
    }

    /// Snapshots in the store, by name.
    pub async fn stored_snapshots(&self) -> Result<Vec<StoredSnapshot>> {
        let mut snapshots = Vec::new();
        for listed in self.shared.transfers.store().await?.list().await? {
            match listed {
                Listed::Whole(info) => snapshots.push(stored(&info)?),
                Listed::Unusable(name, problem) => {
                    tracing::warn!(%name, problem, "a snapshot in the store is unusable")
                }
            }
        }
        Ok(snapshots)
    }

    /// One of them; `None` if the store does not have it.
    pub async fn stored_snapshot(&self, name: &SnapshotName) -> Result<Option<StoredSnapshot>> {
        match self.shared.transfers.store().await?.info(&parse(name)?).await {
            Ok(info) => stored(&info).map(Some),
            Err(sandhaus_snapstore::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes it from the store.
    pub async fn remove_stored_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let shared = self.shared.clone();
        let name = parse(name)?;
        // It goes on when the caller goes away: half of a removal would leave remains.
        let removed = self
            .shared
            .tracker
            .spawn(async move { Ok(shared.transfers.store().await?.remove(&name).await?) });
        removed.await.map_err(|error| Error::internal("remove snapshot from the store", error))?
    }

    /// Long work, newest first: what is under way, and how the rest ended.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = self.shared.store.jobs().await?;
        let live: HashMap<JobId, Job> =
            self.shared.transfers.live().into_iter().map(|job| (job.id.clone(), job)).collect();
        for job in &mut jobs {
            if let Some(now) = live.get(&job.id) {
                job.clone_from(now);
            }
        }
        Ok(jobs)
    }

    /// One of them.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>> {
        if let Some(job) = self.shared.transfers.live().into_iter().find(|job| job.id == *id) {
            return Ok(Some(job));
        }
        self.shared.store.job(id).await
    }

    /// Begins a transfer, or joins the one that is under way.
    fn transfer<W: Future<Output = Result<()>> + Send + 'static>(
        &self,
        kind: JobKind,
        name: SnapshotName,
        work: impl FnOnce(Arc<JobHandle>) -> W,
    ) -> Result<watch::Receiver<Job>> {
        let shared = self.shared.clone();
        let mut under_way = shared.transfers.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, job| job.has_changed().is_ok() && job.borrow().state == JobState::Running);
        let key = (kind, name);
        if let Some(job) = under_way.get(&key) {
            return Ok(job.clone());
        }
        if under_way.len() >= TRANSFERS_MAX {
            let message = format!("{TRANSFERS_MAX} snapshots are pushed or pulled, the most allowed at once");
            return Err(Error::new(Kind::Exhausted, message));
        }
        let job = Arc::new(JobHandle::new(kind, key.1.to_string(), shared.clock.now_ms()));
        let watch = job.watch();
        under_way.insert(key, watch.clone());
        drop(under_way);
        let work = work(job.clone());
        self.shared.spawn(async move {
            let outcome = match job.record(&shared.store).await {
                Ok(()) => work.await,
                Err(error) => Err(error),
            };
            if let Err(error) = &outcome {
                let source = std::error::Error::source(error);
                match error.kind() {
                    Kind::Internal => {
                        tracing::error!(%error, ?source, ?kind, "a snapshot could not be moved")
                    }
                    _ => tracing::info!(%error, ?source, ?kind, "a snapshot could not be moved"),
                }
            }
            if let Err(error) = job.end(&shared.store, &outcome).await {
                tracing::warn!(%error, "how a transfer ended is not on record");
            }
        });
        Ok(watch)
    }
}

/// Pushes a snapshot that is held.
async fn push(
    shared: &Arc<Shared>,
    name: &Name,
    snapshot: &Arc<Snapshot>,
    _held: &Held,
    engine: &dyn Engine,
    job: &Arc<JobHandle>,
) -> Result<()> {
    let store = shared.transfers.store().await?;
    let folder = transfers(shared).join(format!("{PUSH}{}", snapshot.id));
    let packed = folder.join(PACKED);
    if !exists(&packed).await? {
        job.progress("packing", 0, Some(snapshot.size_bytes));
        pack(shared, snapshot, engine, &folder).await?;
    }
    let metadata = serde_json::to_value(Metadata::of(snapshot))
        .map_err(|error| Error::internal("describe snapshot", error))?;
    let push = Push { name: name.clone(), directory: packed, journal: folder.join(JOURNAL), metadata };
    let info = store.push(&push, observer(job), &shared.token).await?;
    tracing::info!(snapshot = %name, bytes = info.stored_bytes, "snapshot pushed");
    remove(shared, folder).await
}

/// Has the engine write a snapshot as a store keeps it.
async fn pack(shared: &Arc<Shared>, snapshot: &Snapshot, engine: &dyn Engine, folder: &Path) -> Result<()> {
    let from = shared.snapshots.machine(&snapshot.id);
    let from = from.ok_or_else(|| Error::new(Kind::Gone, format!("snapshot {} is gone", snapshot.id)))?;
    let packing = folder.join(PACKING);
    remove(shared, packing.clone()).await?;
    let (into, size_bytes) = (packing.clone(), snapshot.size_bytes);
    blocking("make room for the snapshot", move || {
        make_private(&into)?;
        check_room(&into, size_bytes)
    })
    .await?;
    tokio::select! {
        packed = engine.pack(from, packing.clone()) => packed?,
        () = shared.token.cancelled() => return Err(super::shutting_down()),
    }
    let packed = folder.join(PACKED);
    blocking("keep the packed snapshot", move || {
        fs_err::rename(packing, packed).map_err(|error| Error::internal("keep the packed snapshot", error))
    })
    .await
}

/// Pulls a snapshot, unless it is here and whole.
async fn pull(shared: &Arc<Shared>, name: &SnapshotName, stored: &Name, job: &Arc<JobHandle>) -> Result<()> {
    let here = shared.snapshots.hold(name);
    let (clash, copy) = match &here {
        None => (Clash::Refuse, None),
        Some((here, _held)) => {
            job.progress("checking", 0, None);
            if is_whole(shared, here).await? {
                return Ok(());
            }
            (Clash::Replace, shared.snapshots.machine(&here.id))
        }
    };
    let store = shared.transfers.store().await?;
    // What cannot be used here is not fetched.
    let metadata = metadata(shared, &store.info(stored).await?)?;
    let engine = portable(shared, &metadata.engine)?;
    let folder = transfers(shared).join(format!("{PULL}{name}"));
    let into = folder.join(MACHINE);
    blocking("make room for the snapshot", {
        let folder = folder.clone();
        move || make_private(&folder)
    })
    .await?;
    let landing = shared.transfers.config()?.landing;
    let pull = Pull { name: stored.clone(), into: into.clone(), copy, landing };
    let info = store.pull(&pull, observer(job), &shared.token).await?;
    let metadata = self::metadata(shared, &info)?;
    job.progress("checking", info.size_bytes, Some(info.size_bytes));
    if let Err(error) = engine.verify(into.clone()).await {
        remove(shared, folder).await?;
        let error = Error::from(error);
        let message = format!("snapshot {name} of the store cannot be used here: {}", error.message());
        return Err(Error::new(error.kind(), message).with_source(error));
    }
    adopt(shared, name, clash, into, metadata).await?;
    tracing::info!(snapshot = %name, bytes = info.size_bytes, "snapshot pulled");
    drop(here);
    if clash == Clash::Replace {
        shared.collect_snapshots_soon();
    }
    remove(shared, folder).await
}

async fn is_whole(shared: &Arc<Shared>, snapshot: &Snapshot) -> Result<bool> {
    let engine = shared.engines.get(&snapshot.engine);
    let (Some(engine), Some(machine)) = (engine, shared.snapshots.machine(&snapshot.id)) else {
        return Ok(false);
    };
    // One that needs other things of this host was taken here, and its engine has no check for it.
    if engine.capabilities().image_form == ImageForm::Layers && snapshot.image.is_some() {
        return Ok(true);
    }
    match engine.verify(machine).await {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::warn!(snapshot = %snapshot.id, %error, "a snapshot is broken and is fetched again");
            Ok(false)
        }
    }
}

/// Makes a directory that came from a store a snapshot of this server.
async fn adopt(
    shared: &Arc<Shared>,
    name: &SnapshotName,
    clash: Clash,
    from: PathBuf,
    metadata: Metadata,
) -> Result<()> {
    let snapshots = shared.snapshots.clone();
    let (name, created_at_ms) = (name.clone(), shared.clock.now_ms());
    blocking("keep snapshot", move || {
        let draft = snapshots.begin(Some(name), clash)?;
        let moved = fs_err::rename(from, draft.machine());
        if let Err(error) = moved {
            draft.abandon()?;
            return Err(Error::internal("keep snapshot", error));
        }
        let snapshot = Snapshot {
            // These three are the catalogue's to say.
            id: draft.id().clone(),
            name: draft.name().cloned(),
            size_bytes: 0,
            kind: metadata.kind,
            engine: metadata.engine,
            sandbox: None,
            image: None,
            spec: metadata.spec,
            config: metadata.config,
            created_at_ms,
        };
        draft.publish(snapshot, Sync::Power).map(drop)
    })
    .await
}

/// What is known of a snapshot in the store, made safe.
fn metadata(shared: &Shared, info: &Info) -> Result<Metadata> {
    if info.metadata.is_null() {
        return foreign(shared, info);
    }
    let metadata: Metadata = serde_json::from_value(info.metadata.clone()).map_err(|error| {
        let message =
            format!("snapshot {} was pushed by a server that this one does not understand", info.name);
        Error::new(Kind::Unsupported, message).with_source(error)
    })?;
    Ok(Metadata { spec: without_host(metadata.spec), ..metadata })
}

/// A disk that another tool put into the store: for the engine that runs such disks, and what a request gets that says
/// nothing.
fn foreign(shared: &Shared, info: &Info) -> Result<Metadata> {
    let runs_disks = |engine: &Arc<dyn Engine>| {
        engine.capabilities().portable_snapshots && engine.capabilities().image_form == ImageForm::Disk
    };
    let engine = shared.engines.iter().find(|(_, engine)| runs_disks(engine)).map(|(name, _)| name.clone());
    let engine = engine.ok_or_else(|| {
        let message =
            format!("snapshot {} is a disk of a virtual machine, and nothing here runs those", info.name);
        Error::new(Kind::Unsupported, message)
    })?;
    let (defaults, plain) = (&shared.config.defaults, &shared.config.plain_request);
    let spec = SandboxSpec {
        source: Source::Image { name: defaults.image.clone(), digest: String::new() },
        engine: engine.clone(),
        os: GuestOs::Linux,
        resources: defaults.resources,
        network: defaults.network.clone(),
        security: plain.security,
        readonly_root: false,
        env: Env::new(),
        workdir: None,
        mounts: Vec::new(),
        entrypoint: Vec::new(),
        shell: plain.shell,
        warm_shell: false,
        seccomp: plain.seccomp,
        workspace: None,
        publish: Vec::new(),
    };
    let config = sandhaus_images::ImageConfig::default();
    Ok(Metadata { kind: SnapshotKind::Disk, engine, spec: without_host(spec), config, taken_at_ms: 0 })
}

fn stored(info: &Info) -> Result<StoredSnapshot> {
    let kind = info.metadata.get("kind").and_then(|kind| serde_json::from_value(kind.clone()).ok());
    Ok(StoredSnapshot {
        name: SnapshotName::parse(info.name.as_str())?,
        kind: kind.unwrap_or(SnapshotKind::Disk),
        size_bytes: info.stored_bytes,
        path: info.path.clone(),
    })
}

fn parse(name: &SnapshotName) -> Result<Name> {
    Ok(Name::parse(name.as_str())?)
}

/// The engine of a snapshot, if its snapshots can travel.
fn portable(shared: &Shared, name: &EngineName) -> Result<Arc<dyn Engine>> {
    let engine = shared
        .engines
        .get(name)
        .ok_or_else(|| Error::new(Kind::Unsupported, format!("engine {} is not on this server", name.0)))?;
    if !engine.capabilities().portable_snapshots {
        let message =
            format!("snapshots of engine {} lie over images of this server and cannot be moved", name.0);
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(engine.clone())
}

fn observer(job: &Arc<JobHandle>) -> Observer {
    let job = job.clone();
    Arc::new(move |progress| {
        job.progress(&progress.stage.to_string(), progress.done_bytes, Some(progress.total_bytes));
    })
}

fn transfers(shared: &Shared) -> PathBuf {
    shared.instance.dir().join(DIR)
}

impl Shared {
    /// Removes what interrupted transfers have left that nobody will go on with: of snapshots that are gone, or old.
    pub(crate) fn sweep_transfers_soon(self: &Arc<Self>) {
        let shared = self.clone();
        self.spawn(async move {
            let swept = blocking("sweep transfers", move || {
                let dir = transfers(&shared);
                sweep(&dir, &|name| is_of_use(&shared, name))
                    .map_err(|error| Error::internal("sweep transfers", error))
            });
            if let Err(error) = swept.await {
                tracing::warn!(%error, "what transfers have left stays");
            }
        });
    }
}

fn is_of_use(shared: &Shared, name: &str) -> bool {
    match name.strip_prefix(PUSH).map(SnapshotId::parse) {
        Some(Ok(id)) => shared.snapshots.machine(&id).is_some(),
        Some(Err(_)) => false,
        None => name.starts_with(PULL),
    }
}

fn sweep(dir: &Path, is_of_use: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs_err::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let top = rustix::fs::openat(CWD, dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
        if age > KEEP || !is_of_use(&name) {
            removal::remove_tree(top.as_fd(), &name)?;
        }
    }
    Ok(())
}

async fn exists(path: &Path) -> Result<bool> {
    let path = path.to_owned();
    blocking("look for the packed snapshot", move || {
        path.try_exists().map_err(|error| Error::internal("look for the packed snapshot", error))
    })
    .await
}

/// Removes a directory of transfers, or one within; absent is success.
async fn remove(shared: &Shared, path: PathBuf) -> Result<()> {
    debug_assert!(path.starts_with(transfers(shared)));
    blocking("remove scratch of a transfer", move || match fs_err::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::internal("remove scratch of a transfer", error))
        }
        _ => Ok(()),
    })
    .await
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Error::internal("make scratch for a transfer", error))
}

fn check_room(path: &Path, size_bytes: u64) -> Result<()> {
    let status = rustix::fs::statvfs(path)
        .map_err(|error| Error::internal("look at the data directory's disk", error))?;
    let (free, needed) =
        (status.f_bavail.saturating_mul(status.f_frsize), size_bytes.saturating_add(SPARE_BYTES));
    if free >= needed {
        return Ok(());
    }
    let message = format!(
        "the data directory's disk has {free} bytes free, {needed} are needed to pack the snapshot: make room there"
    );
    Err(Error::new(Kind::Exhausted, message))
}

impl From<sandhaus_snapstore::Error> for Error {
    fn from(error: sandhaus_snapstore::Error) -> Self {
        use sandhaus_snapstore::Error as Stored;
        let kind = match &error {
            Stored::Name { .. } => Kind::Invalid,
            Stored::NotFound(_) => Kind::NotFound,
            Stored::Conflict(_) | Stored::Changed(_) | Stored::Damaged { .. } => Kind::Conflict,
            Stored::Unfit { .. } | Stored::Configuration(_) => Kind::Unsupported,
            Stored::Space { .. } => Kind::Exhausted,
            Stored::Refused { .. } | Stored::Store { .. } | Stored::Interrupted => Kind::Unavailable,
            _ => Kind::Internal,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}

#[cfg(test)]
mod tests;
