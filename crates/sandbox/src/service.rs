//! What the edges call. A call validates, writes what is wanted, wakes the actor and waits; it never changes a
//! sandbox itself. Dropping a call drops only the wait.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use sandhaus_images::Catalogue;
use sandhaus_protocol::{guest::PORT as AGENT_PORT, ssh};
use tokio::sync::{Notify, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    actor::Actor,
    admission,
    clock::{self, Clock},
    doors::{DoorKeys, RescueDoor, Secrets},
    engine::{Capabilities, Engine, GuestPort},
    error::{Error, Kind, Result},
    handle::{Handle, Message, gone, not_running},
    images::Images,
    instance::{Instance, Span},
    plan::Seen,
    pool::{self, Acquired, Acquisition, Claimed, Pool, PoolStatus},
    publish::{Bound, Publication},
    renewal::{AgentProgram, Renewals},
    snapshot::Snapshots,
    store::Store,
    toolbox::{Lease, Toolbox},
    types::*,
    workspace::Workspaces,
};

/// The database's name in the data directory.
const STORE_FILE: &str = "sandhaus.db";

/// Fresh ids tried before giving up; a collision is one in 2^44 per sandbox.
const ID_ATTEMPTS_MAX: usize = 4;

/// Where a service keeps itself and what bounds it.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// What a request that does not say gets.
    pub defaults: Defaults,
    /// Most live sandboxes; one more is refused ([`crate::Kind::Exhausted`]).
    pub sandboxes_max: usize,
    /// How long create and delete wait before they answer with what is.
    pub settle_timeout: Duration,
    /// How long ended sandboxes stay in the history.
    pub history_keep: Duration,
    /// Sandboxes kept ready.
    pub pool: PoolConfig,
    /// A request that says nothing, as the edge that most requests come through passes it on: what is kept ready is what
    /// it would get.
    pub plain_request: CreateSandbox,
    /// Workspaces.
    pub workspaces: WorkspaceConfig,
    /// Registries, `HOST` or `HOST:PORT`, that may be spoken to without TLS; those on this host always may.
    pub insecure_registries: Vec<String>,
    /// The agent that takes the place of older ones; absent: they stay.
    pub agent: Option<Arc<AgentProgram>>,
    /// Where snapshots are pushed to and pulled from; absent: nowhere.
    pub snapshot_store: Option<transfer::SnapshotStore>,
    /// Whether sandboxes have a rescue door.
    pub rescue_door: RescueDoor,
}

/// Sandboxes kept ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolConfig {
    /// Whether any are.
    pub enabled: bool,
    /// How many of each image, as a request that says nothing else would get them.
    pub images: BTreeMap<ImageName, usize>,
}

/// Workspaces: directories that outlive sandboxes and can be shown in several at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkspaceConfig {
    /// Whether there are any.
    pub enabled: bool,
    /// Where they lie. A server and every process beside it on one data directory share them.
    pub directory: PathBuf,
    /// A sandbox whose request names none gets one of its own that outlives it, named after its id.
    pub persist_by_default: bool,
    /// Bytes that each may hold; zero: no limit.
    pub quota_bytes: u64,
}

/// What a request that does not say gets.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Image.
    pub image: ImageName,
    /// Names that stand for the default image.
    pub image_aliases: Vec<ImageName>,
    /// Images that may be used; empty: all.
    pub allowed_images: Vec<ImageName>,
    /// Engine.
    pub engine: EngineName,
    /// Limits.
    pub resources: Resources,
    /// Network.
    pub network: NetworkPolicy,
    /// Time to live; none: for ever.
    pub ttl: Option<Duration>,
}

/// A request for a sandbox. What is absent comes from [`Defaults`].
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// Who asks.
    pub owner: OwnerId,
    /// The id it is to have; absent: a fresh one. One that a live sandbox has already is [`Kind::Exists`].
    pub id: Option<SandboxId>,
    /// A name, unique among the owner's live sandboxes.
    pub name: Option<String>,
    /// Image.
    pub image: Option<ImageName>,
    /// The snapshot to begin from instead of an image: then what is absent is as it was in the snapshot's sandbox.
    pub snapshot: Option<SnapshotName>,
    /// Engine.
    pub engine: Option<EngineName>,
    /// Limits, each zero meaning the default.
    pub resources: Resources,
    /// Network.
    pub network: Option<NetworkPolicy>,
    /// Confinement.
    pub security: SecurityProfile,
    /// Read-only root.
    pub readonly_root: bool,
    /// Environment, over the image's.
    pub env: Env,
    /// Directory to start in.
    pub workdir: Option<String>,
    /// Host directories; only from the local command line.
    pub mounts: Vec<Mount>,
    /// Started beside the agent.
    pub entrypoint: Vec<String>,
    /// Time to live; absent: the default; zero: for ever.
    pub ttl: Option<Duration>,
    /// Free marks.
    pub labels: Labels,
    /// Shell of the persistent sessions.
    pub shell: sandhaus_protocol::boot::ShellPreference,
    /// Start the default shell with the machine.
    pub warm_shell: bool,
    /// How system calls are filtered.
    pub seccomp: Seccomp,
    /// The workspace shown at `/workspace`; made if it is not there.
    pub workspace: Option<WorkspaceId>,
    /// Ports that the host's loopback shows.
    pub publish: Vec<PublishedPort>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Also those that have ended.
    pub with_ended: bool,
    /// Only those with all of these marks.
    pub labels: Labels,
    /// Only those made before this id's row, for paging.
    pub after: Option<SandboxId>,
    /// At most so many; zero: no limit.
    pub limit: usize,
}

/// How often the memory limit has ended a process of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryKills {
    /// Up to now.
    pub now: u64,
    /// Up to the look before this one, if there was one.
    pub before: Option<u64>,
    /// The limit.
    pub limit_bytes: Option<u64>,
}

/// The domain, as the edges hold it. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

/// What the service, the actors and the clock share.
pub(crate) struct Shared {
    pub(crate) instance: Instance,
    pub(crate) config: ServiceConfig,
    pub(crate) engines: BTreeMap<EngineName, Arc<dyn Engine>>,
    pub(crate) images: Images,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) pool: Pool,
    /// Told when a sandbox with a deadline came.
    pub(crate) deadline_added: Notify,
    pub(crate) token: CancellationToken,
    pub(crate) workspaces: Workspaces,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) transfers: transfer::Transfers,
    pub(crate) renewals: Renewals,
    pub(crate) secrets: Secrets,
    tracker: TaskTracker,
    sandboxes: RwLock<HashMap<SandboxId, Arc<Handle>>>,
    /// Images of sandboxes that are left alone because their engine is not there.
    set_aside: OnceLock<Vec<Source>>,
}

impl Shared {
    /// Who may come in by a sandbox's own doors. One that uses the host's network has none: they would be the host's.
    pub(crate) fn access(&self, spec: &SandboxSpec, id: &SandboxId) -> Option<ssh::Access> {
        let own = spec.network != NetworkPolicy::Host;
        own.then(|| self.secrets.access(id, self.config.rescue_door))
    }

    pub(crate) fn handles(&self) -> Vec<Arc<Handle>> {
        self.sandboxes().values().cloned().collect()
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.pool.left(id);
    }

    pub(crate) fn sandboxes(&self) -> std::sync::RwLockReadGuard<'_, HashMap<SandboxId, Arc<Handle>>> {
        // The map is whole between any two statements.
        self.sandboxes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox with these deadlines is somebody's now.
    pub(crate) fn expect_deadline(&self, deadlines: Deadlines) {
        // A later one is seen when the clock looks anyway.
        if (1..clock::TICK_MAX.as_millis()).contains(&u128::from(deadlines.ttl_ms)) {
            self.deadline_added.notify_one();
        }
    }

    /// Removes what images have left behind: a name that moved, content that was in use when its name went.
    pub(crate) async fn collect_images(self: &Arc<Self>) -> Result<()> {
        let shared = self.clone();
        self.images
            .blocking(move |catalogue| catalogue.collect(&|digest: &str| shared.uses_image(digest)))
            .await
    }

    fn uses_image(&self, digest: &str) -> bool {
        let set_aside =
            self.set_aside.get().is_some_and(|sources| sources.iter().any(|source| source.is(digest)));
        set_aside
            || self.snapshots.uses_image(digest)
            || self.sandboxes().values().any(|handle| handle.uses_image(digest))
    }

    /// Whether `sandbox` may come to those that are there: what waits in the pool gives way to what somebody wants.
    pub(crate) fn check_room(
        &self,
        sandboxes: &HashMap<SandboxId, Arc<Handle>>,
        sandbox: &Sandbox,
    ) -> Result<()> {
        let most = self.config.sandboxes_max;
        let counted = match sandbox.tenancy {
            Tenancy::Idle => sandboxes.len(),
            Tenancy::Own | Tenancy::Claimed(_) => sandboxes.len().saturating_sub(self.pool.len()),
        };
        if counted >= most {
            return Err(Error::new(Kind::Exhausted, format!("there are {most} sandboxes, the most allowed")));
        }
        if let Some(name) = &sandbox.name
            && sandboxes.values().any(|other| other.is_named(&sandbox.owner, name))
        {
            return Err(Error::new(Kind::Exists, format!("there is a sandbox named {name}")));
        }
        Ok(())
    }

    /// How long somebody may wait until a sandbox of this engine runs.
    fn patience(&self, engine: &EngineName) -> Duration {
        let engine = self.engines.get(engine);
        let start_max = engine.map(|engine| engine.capabilities().start_max).unwrap_or_default();
        self.config.settle_timeout.max(start_max)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }
}

impl Service {
    /// A service that is open already.
    pub(crate) fn over(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Opens the store of an instance, surveys every engine, adopts what matches, ends what does not, and starts the
    /// actors.
    pub async fn open(
        instance: Instance,
        config: ServiceConfig,
        engines: BTreeMap<EngineName, Arc<dyn Engine>>,
        images: Catalogue,
    ) -> Result<Self> {
        Self::open_at(instance, config, engines, images, Clock::Wall).await
    }

    /// The same with another clock.
    pub(crate) async fn open_at(
        instance: Instance,
        config: ServiceConfig,
        engines: BTreeMap<EngineName, Arc<dyn Engine>>,
        images: Catalogue,
        clock: Clock,
    ) -> Result<Self> {
        let (path, id, span) = (instance.dir().join(STORE_FILE), instance.id().to_owned(), instance.span());
        let workspaces = config.workspaces.clone();
        let secrets = Secrets::open(&instance)?;
        let (store, rows, workspaces, snapshots) = tokio::task::spawn_blocking(move || {
            let snapshots = Snapshots::open(path.parent().expect("the store lies in the data directory"))?;
            let store = match span {
                Span::Lasting => Store::open(&path)?,
                Span::Process => Store::open_in_memory(&id)?,
            };
            let rows = store.load()?;
            Ok::<_, Error>((store, rows, Workspaces::open(&workspaces, span), snapshots))
        })
        .await
        .map_err(|error| Error::internal("open store", error))??;

        let pool = Pool::new(&config.pool);
        let transfers = transfer::Transfers::new(config.snapshot_store.clone());
        let shared = Arc::new(Shared {
            instance,
            config,
            pool,
            engines,
            images: Images::new(images),
            store,
            clock,
            deadline_added: Notify::new(),
            token: CancellationToken::new(),
            workspaces,
            snapshots,
            transfers,
            renewals: Renewals::default(),
            secrets,
            tracker: TaskTracker::new(),
            sandboxes: RwLock::default(),
            set_aside: OnceLock::new(),
        });
        adoption::adopt(&shared, rows).await?;
        shared.collect_snapshots_soon();
        shared.sweep_transfers_soon();
        shared.spawn(clock::run(shared.clone()));
        shared.spawn(pool::keep(shared.clone()));
        Ok(Self { shared })
    }

    /// Makes a sandbox, or takes one from the pool, and waits until it runs. On failure nothing of it is left.
    pub async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        self.acquire(request).await.map(|acquired| acquired.view)
    }

    /// The same, and tells where it came from.
    pub async fn acquire(&self, request: CreateSandbox) -> Result<Acquired> {
        let shared = &self.shared;
        let _busy = shared.pool.busy();
        let wanted_id = request.id.clone();
        // Held until the sandbox is among those that need it.
        let (sandbox, _held) = match request.snapshot.clone() {
            Some(name) => {
                let (snapshot, held) =
                    shared.snapshots.hold(&name).ok_or_else(|| shared.no_snapshot(&name))?;
                (admission::admit_from(shared, request, &snapshot)?, Some(held))
            }
            None => (admission::admit(shared, request).await?, None),
        };
        // What waits in the pool has its id already.
        let source = match wanted_id {
            Some(_) => Acquisition::Cold,
            None => match pool::claim(shared, &sandbox).await? {
                Claimed::Granted(view) => return Ok(Acquired { view: *view, source: Acquisition::Pool }),
                Claimed::Missed(source) => source,
            },
        };
        Ok(Acquired { view: self.make(&sandbox, wanted_id).await?, source })
    }

    async fn make(&self, sandbox: &Sandbox, wanted_id: Option<SandboxId>) -> Result<SandboxView> {
        let shared = &self.shared;
        let mut attempt = 0;
        loop {
            attempt += 1;
            // From here to the spawned actor nothing waits, so a caller that goes away leaves nothing half made.
            let bound = Bound::bind(&sandbox.spec.publish)?;
            let id = wanted_id.clone().unwrap_or_else(SandboxId::random);
            let answer = enroll(shared, sandbox, id, bound)?;
            let (id, answer) = match answer {
                Enrolled::Spawned(id, answer) => (id, answer),
                Enrolled::IdTaken => match &wanted_id {
                    Some(id) => {
                        return Err(Error::new(Kind::Exists, format!("there is a sandbox {id} already")));
                    }
                    None if attempt < ID_ATTEMPTS_MAX => continue,
                    None => return Err(Error::new(Kind::Unavailable, "no free id was found")),
                },
            };
            return match tokio::time::timeout(shared.patience(&sandbox.spec.engine), answer).await {
                Ok(Ok(Err(error)))
                    if error.kind() == Kind::Exists && wanted_id.is_none() && attempt < ID_ATTEMPTS_MAX =>
                {
                    continue;
                }
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(shutting_down()),
                Err(_) => self.get(&id).await,
            };
        }
    }

    /// The pool as it stands.
    pub fn pool(&self) -> PoolStatus {
        self.shared.pool.status()
    }

    /// Lets everything in the pool go, and keeps it empty until [`Self::fill_pool`] or a restart. Waits until it is empty.
    pub async fn drain_pool(&self) -> PoolStatus {
        self.shared.pool.drain(self.shared.config.settle_timeout).await;
        self.pool()
    }

    /// Keeps the pool filled again, and waits until it is or it is known why not.
    pub async fn fill_pool(&self) -> PoolStatus {
        self.shared.pool.fill(self.shared.config.settle_timeout).await;
        self.pool()
    }

    /// What sandboxes can do that say nothing of an engine.
    pub fn capabilities(&self) -> Option<&Capabilities> {
        let shared = &self.shared;
        shared.engines.get(&shared.config.defaults.engine).map(|engine| engine.capabilities())
    }

    /// Sandboxes, newest first. Those that wait in the pool are among them; those on their way there and out of it only
    /// with the ended ones.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<SandboxView>> {
        let mut views: Vec<SandboxView> = self.shared.handles().iter().map(|handle| handle.view()).collect();
        // One that is being taken from the map belongs to the history.
        views.retain(|view| view.status.phase != Phase::Deleted);
        if !filter.with_ended {
            views.retain(|view| !view.is_idle() || view.status.phase == Phase::Running);
        }
        if filter.with_ended {
            let live: std::collections::HashSet<SandboxId> =
                views.iter().map(|view| view.sandbox.id.clone()).collect();
            let ended = self.shared.store.history().await?;
            let ended = ended.into_iter().map(|(sandbox, ended)| ended_view(sandbox, ended));
            // One that ended between the two looks is in both.
            views.extend(ended.filter(|view| !live.contains(&view.sandbox.id)));
        }
        let marked = |view: &SandboxView| {
            filter.labels.iter().all(|(key, value)| view.sandbox.labels.get(key) == Some(value))
        };
        views.retain(marked);
        let order = |view: &SandboxView| (view.sandbox.created_at_ms, view.sandbox.id.clone());
        views.sort_by_cached_key(|view| std::cmp::Reverse(order(view)));
        if let Some(after) = &filter.after {
            let index = views.iter().position(|view| view.sandbox.id == *after);
            let index =
                index.ok_or_else(|| Error::new(Kind::Invalid, format!("there is no sandbox {after}")))?;
            views.drain(..=index);
        }
        if filter.limit > 0 {
            views.truncate(filter.limit);
        }
        Ok(views)
    }

    /// One sandbox, live or from the history.
    pub async fn get(&self, id: &SandboxId) -> Result<SandboxView> {
        if let Some(handle) = self.handle(id) {
            return Ok(handle.view());
        }
        match self.shared.store.ended(id).await? {
            Some((sandbox, ended)) => Ok(ended_view(sandbox, ended)),
            None => Err(not_found(id)),
        }
    }

    /// Deletes a sandbox from whatever state and waits until nothing of it is left. One that has ended already is
    /// success; one that never was is [`crate::Kind::NotFound`].
    pub async fn delete(&self, id: &SandboxId) -> Result<()> {
        let Some(handle) = self.handle(id) else {
            return match self.shared.store.ended(id).await? {
                Some(_) => Ok(()),
                None => Err(not_found(id)),
            };
        };
        match self.ask(&handle, Goal::Absent).await {
            Ok(_) => Ok(()),
            // It ended meanwhile.
            Err(error) if error.kind() == Kind::Gone => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes what is wanted and waits until it is so. Refused by name if the engine cannot.
    pub async fn set_goal(&self, id: &SandboxId, goal: Goal) -> Result<SandboxView> {
        let handle = self.live(id).await?;
        if handle.is_idle() {
            return Err(not_running(id));
        }
        admission::admit_goal(&handle, goal)?;
        self.ask(&handle, goal).await
    }

    /// Brings a suspended sandbox, or one that is about to be suspended, back to where it was. Any other is left as it is.
    pub async fn wake(&self, id: &SandboxId) -> Result<()> {
        let handle = self.live(id).await?;
        if handle.goal() == Goal::Suspended {
            self.set_goal(id, Goal::Running).await?;
        }
        Ok(())
    }

    /// Marks a use: the deadline moves to at least now + the sandbox's own time to live, never back.
    pub async fn touch(&self, id: &SandboxId) -> Result<()> {
        let handle = self.live(id).await?;
        let now_ms = self.shared.clock.now_ms();
        if handle.is_idle() {
            return Err(not_running(id));
        }
        if handle.expired(now_ms) {
            return Err(gone(id));
        }
        handle.touch(now_ms);
        Ok(())
    }

    /// Moves the deadline to at least now + `ttl`, never back; without `ttl` it is the sandbox's own.
    pub async fn extend(&self, id: &SandboxId, ttl: Option<Duration>) -> Result<SandboxView> {
        let handle = self.live(id).await?;
        let now_ms = self.shared.clock.now_ms();
        if handle.expired(now_ms) || matches!(handle.phase(), Phase::Deleting | Phase::Deleted) {
            return Err(gone(id));
        }
        match ttl {
            Some(ttl) => {
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).min(TTL_MS_MAX);
                handle.extend(now_ms, i64::try_from(ttl_ms).unwrap_or(i64::MAX));
            }
            None => handle.touch(now_ms),
        }
        Ok(handle.view())
    }

    /// Looks how often the memory limit has ended a process of a sandbox.
    pub async fn memory_kills(&self, id: &SandboxId) -> Result<MemoryKills> {
        let stats = self.stats(id).await?;
        let handle = self.live(id).await?;
        Ok(MemoryKills {
            now: stats.oom_kills,
            before: handle.look_at_memory_kills(stats.oom_kills),
            limit_bytes: stats.memory_limit_bytes,
        })
    }

    /// One that seems to have ended just now, once that is known or `limit` is over.
    pub async fn after_loss(&self, id: &SandboxId, limit: Duration) -> Result<SandboxView> {
        if let Some(handle) = self.handle(id) {
            let mut published = handle.published.subscribe();
            let lost = published.wait_for(|published| published.phase != Phase::Running);
            // Cancel-safe. What has not shown by then is told as it stands.
            let _ = tokio::time::timeout(limit, lost).await;
        }
        self.get(id).await
    }

    /// Use of resources.
    pub async fn stats(&self, id: &SandboxId) -> Result<Stats> {
        let handle = self.live(id).await?;
        match handle.phase() {
            Phase::Running | Phase::Paused => Ok(handle.engine.stats(id).await?),
            _ => Err(not_running(id)),
        }
    }

    /// A client of the agent inside, under a lease. [`crate::Kind::Gone`] past the deadline, [`crate::Kind::Conflict`]
    /// if it does not run.
    pub async fn toolbox(&self, id: &SandboxId) -> Result<Toolbox> {
        Ok(self.running(id).await?.toolbox.clone())
    }

    /// What opens a sandbox's own doors, for whoever leads users there. Secret. [`crate::Kind::Unsupported`] if it has none.
    pub async fn doors(&self, id: &SandboxId) -> Result<DoorKeys> {
        let handle = self.live(id).await?;
        let network = handle.published.borrow().sandbox.spec.network.clone();
        if network == NetworkPolicy::Host {
            let message =
                "a sandbox with the host's network has no SSH of its own: its ports would be the host's";
            return Err(Error::new(Kind::Unsupported, message));
        }
        Ok(self.shared.secrets.keys(id, self.shared.config.rescue_door))
    }

    /// Whether [`Service::dial`] comes from outside of a sandbox's system: what listens on its loopback alone is then reached by
    /// its agent only.
    pub async fn is_dialled_from_outside(&self, id: &SandboxId) -> Result<bool> {
        Ok(self.live(id).await?.engine.capabilities().boots_by_greeting)
    }

    /// A raw stream to a port inside, under a lease.
    pub async fn dial(&self, id: &SandboxId, port: GuestPort) -> Result<Lease> {
        let handle = self.running(id).await?;
        if port == GuestPort::Tcp(AGENT_PORT) && handle.engine.capabilities().boots_by_greeting {
            // Its agent takes whoever comes from the host for the host.
            let message = format!("port {AGENT_PORT} is the agent's own: it is reached as the toolbox");
            return Err(Error::new(Kind::Forbidden, message));
        }
        let ticket = handle.gate.enter().ok_or_else(|| not_running(id))?;
        let stream = handle.engine.dial(id, port).await?;
        Ok(ticket.bind(stream))
    }

    /// Stops the actors and engines' helpers and closes the store. Sandboxes go on.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.token.cancel();
        shared.tracker.close();
        shared.tracker.wait().await;
        for (name, engine) in &shared.engines {
            if let Err(error) = engine.shutdown().await {
                tracing::warn!(engine = %name.0, %error, "an engine did not shut down well");
            }
        }
        shared.store.close().await;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn handle(&self, id: &SandboxId) -> Option<Arc<Handle>> {
        self.shared.sandboxes().get(id).cloned()
    }

    async fn live(&self, id: &SandboxId) -> Result<Arc<Handle>> {
        if let Some(handle) = self.handle(id) {
            return Ok(handle);
        }
        match self.shared.store.ended(id).await? {
            Some(_) => Err(gone(id)),
            None => Err(not_found(id)),
        }
    }

    /// One that runs; one that is on its way (right after a start of the server, all are) is waited for.
    async fn running(&self, id: &SandboxId) -> Result<Arc<Handle>> {
        let handle = self.live(id).await?;
        // What waits in the pool is to meet nobody before its owner.
        if handle.is_idle() {
            return Err(not_running(id));
        }
        if handle.expired(self.shared.clock.now_ms()) {
            return Err(gone(id));
        }
        let mut phase = handle.phase();
        if phase == Phase::Starting {
            let mut published = handle.published.subscribe();
            let up = published.wait_for(|published| published.phase != Phase::Starting);
            let patience = self.shared.config.settle_timeout.max(handle.engine.capabilities().start_max);
            phase = match tokio::time::timeout(patience, up).await {
                Ok(Ok(published)) => published.phase,
                Ok(Err(_)) => return Err(gone(id)),
                Err(_) => {
                    return Err(Error::new(Kind::Unavailable, format!("sandbox {id} is still starting")));
                }
            };
        }
        match phase {
            Phase::Running => Ok(handle),
            Phase::Deleting | Phase::Deleted => Err(gone(id)),
            Phase::Starting
            | Phase::Paused
            | Phase::Suspended
            | Phase::Stopped
            | Phase::Stopping
            | Phase::Archived
            | Phase::Failed => Err(not_running(id)),
        }
    }

    async fn ask(&self, handle: &Handle, goal: Goal) -> Result<SandboxView> {
        let (reply, answer) = oneshot::channel();
        handle.tell(Message::SetGoal { goal, reply })?;
        let patience = self.shared.config.settle_timeout.max(handle.engine.capabilities().start_max);
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(shutting_down()),
            Err(_) => {
                let message = format!("sandbox {} takes long to change; it goes on", handle.id);
                Err(Error::new(Kind::Timeout, message))
            }
        }
    }
}

pub(crate) enum Enrolled {
    Spawned(SandboxId, oneshot::Receiver<Result<SandboxView>>),
    IdTaken,
}

/// Gives the sandbox an id and an actor, if there is room for it.
pub(crate) fn enroll(
    shared: &Arc<Shared>,
    sandbox: &Sandbox,
    id: SandboxId,
    bound: Bound,
) -> Result<Enrolled> {
    let engine = shared.engines.get(&sandbox.spec.engine).cloned();
    let engine = engine.ok_or_else(|| admission::no_engine(&sandbox.spec.engine))?;
    let Some(mut sandbox) = shared.workspaces.name(sandbox, id.clone()) else { return Ok(Enrolled::IdTaken) };
    sandbox.spec.publish = bound.ports();
    let sandbox = Arc::new(sandbox);
    let (handle, inbox) = Handle::new(&sandbox, engine);
    {
        let mut sandboxes = shared.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        if shared.token.is_cancelled() {
            return Err(shutting_down());
        }
        shared.check_room(&sandboxes, &sandbox)?;
        if sandboxes.contains_key(&id) {
            return Ok(Enrolled::IdTaken);
        }
        sandboxes.insert(id.clone(), handle.clone());
        if sandbox.tenancy == Tenancy::Idle {
            shared.pool.enter(&handle, &sandbox);
        }
    }
    let (reply, answer) = oneshot::channel();
    let publication = Publication::serve(shared, &id, bound);
    let actor = Actor::new(shared.clone(), handle, inbox, sandbox.clone(), Seen::fresh())
        .with_creator(reply)
        .with_publication(publication);
    shared.spawn(actor.run());
    shared.expect_deadline(sandbox.deadlines);
    Ok(Enrolled::Spawned(id, answer))
}

fn ended_view(sandbox: Sandbox, ended: Ended) -> SandboxView {
    let status =
        Status { phase: Phase::Deleted, generation: sandbox.generation, failure: sandbox.failure.clone() };
    SandboxView { sandbox, status, ended: Some(ended) }
}

fn not_found(id: &SandboxId) -> Error {
    Error::new(Kind::NotFound, format!("there is no sandbox {id}"))
}

pub(crate) fn shutting_down() -> Error {
    Error::new(Kind::Unavailable, "the server is shutting down")
}

mod adoption;
mod change;
pub mod images;
pub mod snapshots;
#[cfg(test)]
mod tests;
pub mod transfer;
