//! The engine itself: sequences of steps over disks, cgroups, the launcher and machines.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
};
use sandhaus_sandbox::{
    engine::{
        Boot, Capabilities, Capture, Change, DiskSnapshot, Engine, EngineError, EngineResult, ExitLog,
        GuestPort, GuestStream, ImageForm, MachineSpec, Observed, ObservedMachine, Res, RunState, StopMode,
    },
    types::{GuestOs, SandboxId, Stats},
    workspace,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{Mutex, watch},
};

use super::{
    NamespaceConfig,
    admission::{self, boot_document},
    capture, dial, disk,
    disk::Disks,
    first_process::is_agent,
    image_file,
    launcher_client::{self, LaunchError, LauncherClient},
    layer_copy, network, removal,
    steps::{self, DestroyStep, LaunchStep, Moment, StartStep, Step, StopStep},
    wire::{LaunchDescriptors, LaunchFailure, LaunchRequest, LayerMapping},
};
use crate::{
    calls::{self, Turns},
    cgroup::Cgroups,
    machine::{self, MachineName, Machines},
    net::{self, Networks},
};

/// How long the agent may take to end its processes by itself.
const GRACE: Duration = Duration::from_secs(5);

/// How long the launcher may take for one machine.
const LAUNCH_MAX: Duration = Duration::from_secs(30);

/// Runs sandboxes of namespaces.
#[derive(Debug)]
pub struct NamespaceEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NamespaceConfig,
    capabilities: Capabilities,
    networks: Networks,
    cgroups: Arc<Cgroups>,
    disks: Disks,
    machines: Arc<Machines>,
    agent: OwnedFd,
    launcher: Mutex<Option<Arc<LauncherClient>>>,
    turns: Turns,
    mapping: LayerMapping,
    /// Layers turned out to lie where ids cannot be mapped.
    copies_layers: AtomicBool,
}

impl NamespaceEngine {
    /// Starts the launcher. The instance's lock must be held by this process.
    pub async fn open(config: NamespaceConfig) -> EngineResult<Self> {
        let mapping = admission::layer_mapping();
        Self::open_with(config, mapping).await
    }

    /// The same with a given way to map layers, for tests of the ways that older kernels need.
    #[doc(hidden)]
    pub async fn open_on(config: NamespaceConfig, kernel: (u32, u32)) -> EngineResult<Self> {
        Self::open_with(config, admission::layer_mapping_of(kernel)).await
    }

    async fn open_with(config: NamespaceConfig, mapping: LayerMapping) -> EngineResult<Self> {
        let inner = tokio::task::spawn_blocking(move || Inner::open(config, mapping))
            .await
            .map_err(|error| EngineError::host("open engine", error))??;
        let engine = Self { inner: Arc::new(inner) };
        engine.inner.launcher().await?;
        Ok(engine)
    }

    /// Runs `work` to its end, whether or not anybody waits for it.
    fn detached<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Inner>) -> BoxFuture<'static, EngineResult<T>>,
    ) -> Res<'static, T> {
        calls::detached(work(Arc::clone(&self.inner)))
    }

    /// Runs blocking `work` to its end on a thread for such.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> EngineResult<T> + Send + 'static,
    ) -> Res<'static, T> {
        self.detached(|inner| Box::pin(async move { inner.block(work).await }))
    }
}

impl Engine for NamespaceEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn survey(&self) -> Res<'_, Vec<Observed>> {
        self.blocking(|inner| {
            let mut ids = inner.disks.list()?;
            ids.extend(inner.machines.list());
            ids.sort();
            ids.dedup();
            let observed: EngineResult<Vec<_>> = ids.iter().map(|id| inner.observe(id)).collect();
            Ok(observed?.into_iter().flatten().collect())
        })
    }

    fn watch(&self) -> watch::Receiver<ExitLog> {
        self.inner.machines.watch()
    }

    fn observe<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Option<Observed>> {
        let id = id.clone();
        self.blocking(move |inner| inner.observe(&id))
    }

    fn materialize<'a>(&'a self, spec: &'a MachineSpec) -> Res<'a, ()> {
        let spec = spec.clone();
        self.blocking(move |inner| {
            admission::check(&spec)?;
            layers(&spec)?;
            net::check_policy(&spec.network, &inner.config.network)?;
            if spec.resources.disk_bytes != 0 && inner.capabilities.disk_limit.is_none() {
                return Err(EngineError::Unsupported("a disk limit on this host".to_owned()));
            }
            inner.disks.materialize(&spec)
        })
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec, boot: Boot) -> Res<'a, ()> {
        if let Boot::Restore(_) = boot {
            return Box::pin(async { Err(EngineError::Unsupported("restoring memory".to_owned())) });
        }
        let spec = spec.clone();
        self.detached(|inner| Box::pin(async move { inner.start(spec).await }))
    }

    fn stop<'a>(&'a self, id: &'a SandboxId, mode: StopMode) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| Box::pin(async move { inner.stop(&id, mode).await }))
    }

    fn freeze<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.blocking(move |inner| inner.cgroups.freeze(&inner.running_name(&id)?))
    }

    fn thaw<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.blocking(move |inner| inner.cgroups.thaw(&inner.running_name(&id)?))
    }

    fn capture<'a>(&'a self, id: &'a SandboxId, what: Capture, into: PathBuf) -> Res<'a, ()> {
        let id = id.clone();
        self.blocking(move |inner| match what {
            Capture::Disk => inner.capture_disk(&id, &into),
            Capture::Memory | Capture::Machine | Capture::Suspended(_) => {
                Err(EngineError::Unsupported("capturing memory".to_owned()))
            }
        })
    }

    fn pack<'a>(&'a self, _: PathBuf, _: PathBuf) -> Res<'a, ()> {
        Box::pin(async { Err(EngineError::Unsupported("packing a snapshot".to_owned())) })
    }

    fn verify<'a>(&'a self, _: PathBuf) -> Res<'a, ()> {
        Box::pin(async { Err(EngineError::Unsupported("snapshots of a store".to_owned())) })
    }

    fn update<'a>(&'a self, id: &'a SandboxId, change: Change) -> Res<'a, ()> {
        let id = id.clone();
        self.blocking(move |inner| match change {
            Change::Network(policy) => {
                net::check_policy(&policy, &inner.config.network)?;
                let name = inner.running_machine(&id)?;
                network::change(&inner.networks, &policy, &inner.machines.directory(&name))
            }
            Change::Resources(resources) => {
                let name = inner.running_name(&id)?;
                if inner.disks.limit_of(&id)? != image_file::size(resources.disk_bytes) {
                    return Err(EngineError::Unsupported("changing the size of a disk".to_owned()));
                }
                inner.cgroups.limit(&name, &resources)
            }
        })
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| Box::pin(async move { inner.destroy(&id).await }))
    }

    fn stats<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Stats> {
        let id = id.clone();
        self.blocking(move |inner| inner.cgroups.stats(&inner.running_name(&id)?))
    }

    fn dial<'a>(&'a self, id: &'a SandboxId, port: GuestPort) -> Res<'a, GuestStream> {
        let id = id.clone();
        Box::pin(async move {
            let held = match self.inner.machines.running(&id) {
                Some(held) => Some(held),
                // Left by an earlier server, and not looked at since.
                None => self.blocking(move |inner| inner.hold_running(&id)).await?,
            };
            let (name, process) = held.ok_or(EngineError::NotFound)?;
            match port {
                GuestPort::Agent => dial::agent(&self.inner.machines.directory(&name)).await,
                GuestPort::Tcp(port) => {
                    let own = network::attachment(&self.inner.machines.directory(&name));
                    dial::tcp(process.get_ref(), own.map(|own| own.address), port).await
                }
                GuestPort::Display => Err(EngineError::Unsupported("a display".to_owned())),
                GuestPort::Console => Err(EngineError::Unsupported("a serial console".to_owned())),
            }
        })
    }

    fn shutdown(&self) -> Res<'_, ()> {
        self.detached(|inner| {
            Box::pin(async move {
                if let Some(launcher) = inner.launcher.lock().await.take() {
                    launcher.end().await;
                }
                inner
                    .block(|inner| {
                        inner.cgroups.close();
                        inner.networks.close()
                    })
                    .await
            })
        })
    }
}

impl Inner {
    fn open(config: NamespaceConfig, mapping: LayerMapping) -> EngineResult<Self> {
        let stage = config.data_dir.join(STAGE);
        disk::make_private(&stage).map_err(|error| EngineError::host("make launcher's directory", error))?;
        launcher_client::await_orphan(&stage)?;
        let agent = admission::install_agent(&config)?;
        let cgroups = Arc::new(Cgroups::open(&config.instance, config.cgroup.as_deref(), &config.data_dir)?);
        let machines = Arc::new(Machines::open(&config.data_dir, &cgroups, watch::Sender::default())?);
        let disks = Disks::open(&config.data_dir)?;
        let known =
            machines.all().into_iter().filter_map(|name| network::attachment(&machines.directory(&name)));
        let networks = Networks::open(
            &config.instance,
            config.network.clone(),
            config.data_dir.join(FORWARDING),
            known.collect(),
        )?;
        let capabilities = Capabilities {
            guest_os: vec![GuestOs::Linux],
            freeze: true,
            image_form: ImageForm::Layers,
            boots_by_greeting: false,
            start_max: LAUNCH_MAX,
            memory_snapshot: false,
            disk_snapshot: DiskSnapshot::Frozen,
            portable_snapshots: false,
            console: false,
            resize: true,
            disk_growth: false,
            display: false,
            disk_limit: image_file::way().map(str::to_owned),
            mounts: true,
            bridge: true,
            host_network: true,
            workspaces: mapping != LayerMapping::Copied,
            seccomp: true,
        };
        Ok(Self {
            config,
            capabilities,
            networks,
            cgroups,
            disks,
            machines,
            agent,
            launcher: Mutex::new(None),
            turns: Turns::default(),
            mapping,
            copies_layers: AtomicBool::new(false),
        })
    }

    /// Does blocking work on a thread for such; so many at a time.
    async fn block<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> EngineResult<T> + Send + 'static,
    ) -> EngineResult<T> {
        self.turns.block(self, work).await
    }

    /// The launcher, a new one if the last is gone.
    async fn launcher(&self) -> EngineResult<Arc<LauncherClient>> {
        let mut launcher = self.launcher.lock().await;
        if let Some(alive) = launcher.as_ref().filter(|launcher| launcher.is_alive()) {
            return Ok(Arc::clone(alive));
        }
        if launcher.is_some() {
            tracing::warn!("launcher is gone; starting another");
        }
        let fresh = LauncherClient::spawn(&self.config.launcher, &self.config.data_dir.join(STAGE))?;
        Ok(Arc::clone(launcher.insert(Arc::new(fresh))))
    }

    /// What exists of one sandbox.
    fn observe(self: &Arc<Self>, id: &SandboxId) -> EngineResult<Option<Observed>> {
        let disk = self.disks.record(id)?.map(|record| record.generation);
        let running = match self.machines.running(id) {
            Some(held) => Some(held),
            None => self.hold_running(id)?,
        };
        let machine = match running {
            Some((name, _)) => {
                let frozen = self.cgroups.is_frozen(&name.to_string());
                let run = if frozen { RunState::Frozen } else { RunState::Running };
                Some(ObservedMachine { generation: name.generation, run })
            }
            None => {
                let newest = self.machines.names_of(id).pop();
                newest.map(|name| ObservedMachine { generation: name.generation, run: RunState::Dead })
            }
        };
        let exists = disk.is_some() || machine.is_some() || self.disks.exists(id);
        Ok(exists.then(|| Observed { id: id.clone(), disk, machine }))
    }

    /// Looks for a running machine of a sandbox, newest first, and holds its first process.
    fn hold_running(
        self: &Arc<Self>,
        id: &SandboxId,
    ) -> EngineResult<Option<(MachineName, Arc<AsyncFd<OwnedFd>>)>> {
        for name in self.machines.names_of(id).into_iter().rev() {
            if let Some(process) = machine::find_first_process(&self.cgroups, &name, is_agent)? {
                let held = self.machines.hold(&name, process, &self.cgroups)?;
                return Ok(Some((name, held)));
            }
        }
        Ok(None)
    }

    /// The name of the running machine of a sandbox, as its cgroups bear it.
    fn running_name(self: &Arc<Self>, id: &SandboxId) -> EngineResult<String> {
        self.running_machine(id).map(|name| name.to_string())
    }

    /// The running machine of a sandbox.
    fn running_machine(self: &Arc<Self>, id: &SandboxId) -> EngineResult<MachineName> {
        let held = match self.machines.running(id) {
            Some(held) => Some(held),
            None => self.hold_running(id)?,
        };
        held.map(|(name, _)| name).ok_or(EngineError::NotFound)
    }

    async fn start(self: &Arc<Self>, spec: MachineSpec) -> EngineResult<()> {
        admission::check(&spec)?;
        let spec = Arc::new(spec);
        let name = MachineName { id: spec.id.clone(), generation: spec.generation };
        let prepared = {
            let (spec, name) = (Arc::clone(&spec), name.clone());
            self.block(move |inner| inner.prepare(&spec, &name)).await?
        };
        let Some((request, descriptors)) = prepared else { return Ok(()) };
        let started = self.launch(&spec, &name, request, &descriptors).await;
        if started.is_err() {
            // What is left of it is in nobody's way: the next start or the end of the sandbox clears it as well.
            let name = name.clone();
            if let Err(error) = self.block(move |inner| inner.clear(&name)).await {
                tracing::warn!(%error, "cannot clear a failed start");
            }
        }
        started
    }

    /// Everything before the launcher's part. `None` if the machine runs already.
    fn prepare(
        self: &Arc<Self>,
        spec: &MachineSpec,
        name: &MachineName,
    ) -> EngineResult<Option<(LaunchRequest, LaunchDescriptors)>> {
        let Some(record) = self.disks.record(&spec.id)? else {
            return Err(EngineError::host("open disk", io::Error::from(io::ErrorKind::NotFound)));
        };
        if let Some((running, _)) = self.hold_running(&spec.id)? {
            if running == *name {
                return Ok(None);
            }
            if running.generation > name.generation {
                return Err(EngineError::Invalid("a newer generation of the machine runs".to_owned()));
            }
        }
        steps::pass(StartStep::Clear, || {
            self.machines.names_of(&spec.id).iter().try_for_each(|old| self.clear(old))
        })?;
        self.machines.note(name);
        let directory = self.machines.directory(name);
        let host = |error: io::Error| disk::failure("make machine", error);
        steps::pass(StartStep::Directory, || {
            rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o700)).map_err(|error| host(error.into()))
        })?;
        let listener = steps::pass(StartStep::Socket, || dial::listen(&directory).map_err(host))?;
        let entrance =
            steps::pass(StartStep::Cgroups, || self.cgroups.make(&name.to_string(), &spec.resources))?;
        let joined = steps::pass(StartStep::Network, || {
            network::join(&self.networks, &spec.network, &name.to_string(), &directory)
        })?;
        let workspace = steps::pass(StartStep::Workspace, || {
            spec.workspace
                .as_deref()
                .map(workspace::mount)
                .transpose()
                .map_err(|error| disk::failure("open workspace", error))
        })?;
        let boot = boot_document(spec)?;
        let agent = self.agent.try_clone().map_err(host)?;
        let copied = self.mapping == LayerMapping::Copied || self.copies_layers.load(Ordering::Relaxed);
        let layers = if copied { self.copy_layers(spec, record.base)? } else { layers(spec)? };
        let request = LaunchRequest {
            tag: 0,
            base: record.base,
            workload: spec.workload().uid,
            security: spec.security,
            seccomp: spec.seccomp,
            readonly_root: spec.readonly_root,
            home: image_home(spec),
            memory_bytes: spec.resources.memory_bytes,
            hostname: spec.hostname.clone(),
            network: joined.network,
            resolv_conf: joined.resolv_conf,
            layers,
            mapping: if copied { LayerMapping::Copied } else { self.mapping },
            disk: self.disks.place(&spec.id, record),
            binds: admission::binds(spec),
            mounts: admission::mounts(spec),
            unified: entrance.unified.is_some(),
            workspace: workspace.is_some(),
        };
        let descriptors = LaunchDescriptors {
            boot,
            listener,
            agent,
            network: joined.namespace,
            sys: joined.sys,
            workspace,
            unified: entrance.unified,
            tasks: entrance.tasks,
        };
        Ok(Some((request, descriptors)))
    }

    fn copy_layers(&self, spec: &MachineSpec, base: u32) -> EngineResult<Vec<PathBuf>> {
        let into = self.disks.path_of(&spec.id).join(disk::LAYERS);
        layer_copy::copy_all(&layers(spec)?, &into, base).map_err(|error| disk::failure("copy image", error))
    }

    /// Writes what a sandbox has written. Its machine, if it has one, must stand still.
    fn capture_disk(self: &Arc<Self>, id: &SandboxId, into: &Path) -> EngineResult<()> {
        if let Some((name, _)) = self.hold_running(id)?
            && !self.cgroups.is_frozen(&name.to_string())
        {
            return Err(EngineError::Invalid("the machine is not frozen".to_owned()));
        }
        self.disks.capture(id, into)
    }

    /// The launcher's part, and holding what it made.
    async fn launch(
        self: &Arc<Self>,
        spec: &Arc<MachineSpec>,
        name: &MachineName,
        request: LaunchRequest,
        descriptors: &LaunchDescriptors,
    ) -> EngineResult<()> {
        steps::hit(StartStep::Launch, Moment::Before);
        let mapped = request.mapping != LayerMapping::Copied;
        let (base, mut again) = (request.base, request.clone());
        let mut launched = self.ask_launcher(request, descriptors).await;
        if let Err(LaunchError::Failed(failure)) = &launched
            && mapped
            && failure.says_unmappable()
        {
            tracing::warn!(%failure, "image lies where ids cannot be mapped; copying it for each sandbox from now on");
            self.copies_layers.store(true, Ordering::Relaxed);
            let spec = Arc::clone(spec);
            again.layers = self.block(move |inner| inner.copy_layers(&spec, base)).await?;
            again.mapping = LayerMapping::Copied;
            launched = self.ask_launcher(again, descriptors).await;
        }
        let process = launched.map_err(|error| admission::explain(error, spec))?;
        steps::hit(StartStep::Launch, Moment::After);
        steps::pass(StartStep::Watch, || self.machines.hold(name, process, &self.cgroups))?;
        Ok(())
    }

    async fn ask_launcher(
        &self,
        request: LaunchRequest,
        descriptors: &LaunchDescriptors,
    ) -> Result<OwnedFd, LaunchError> {
        let launcher =
            self.launcher().await.map_err(|error| LaunchError::Unreachable(io::Error::other(error)))?;
        let launch = launcher.launch(request, descriptors);
        tokio::time::timeout(LAUNCH_MAX, launch)
            .await
            .unwrap_or_else(|_| Err(LaunchError::Unreachable(io::ErrorKind::TimedOut.into())))
    }

    /// Ends all machines of a sandbox and removes what they leave; the disk stays.
    async fn stop(self: &Arc<Self>, id: &SandboxId, mode: StopMode) -> EngineResult<()> {
        if mode == StopMode::Graceful {
            self.terminate(id).await?;
        }
        let id = id.clone();
        self.block(move |inner| inner.machines.names_of(&id).iter().try_for_each(|name| inner.clear(name)))
            .await
    }

    /// Asks the agent to end everything, and waits a while for it.
    async fn terminate(self: &Arc<Self>, id: &SandboxId) -> EngineResult<()> {
        steps::hit(StopStep::Terminate, Moment::Before);
        let id = id.clone();
        let held = self
            .block(move |inner| {
                let held = inner.hold_running(&id)?;
                if let Some((name, process)) = &held {
                    // A frozen agent would never hear of it.
                    inner.cgroups.thaw(&name.to_string())?;
                    match rustix::process::pidfd_send_signal(process.get_ref(), Signal::TERM) {
                        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                        Err(error) => return Err(EngineError::host("signal machine", error)),
                    }
                }
                Ok(held)
            })
            .await?;
        if let Some((name, process)) = held
            && tokio::time::timeout(GRACE, process.readable()).await.is_err()
        {
            tracing::info!(machine = %name, "machine did not end by itself in time; killing it");
        }
        steps::hit(StopStep::Terminate, Moment::After);
        Ok(())
    }

    /// Kills what runs under a name and removes all that bears it.
    fn clear(&self, name: &MachineName) -> EngineResult<()> {
        let text = name.to_string();
        let held = self.machines.running(&name.id).filter(|(running, _)| running == name);
        let first = held.as_ref().map(|(_, process)| process.get_ref());
        steps::pass(StopStep::Kill, || self.cgroups.kill(&text, first))?;
        steps::pass(StopStep::Cgroups, || self.cgroups.remove(&text))?;
        if let Some(attachment) = network::attachment(&self.machines.directory(name)) {
            self.networks.release(&attachment.interface);
        }
        steps::pass(StopStep::Directory, || {
            let machines = self.machines.directory(name);
            let parent = machines.parent().expect("it lies in the directory of all machines");
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(io::Error::from);
            parent
                .and_then(|parent| removal::remove_tree(parent.as_fd(), &text))
                .map_err(|error| EngineError::host("remove machine", error))
        })?;
        self.machines.forget(name);
        Ok(())
    }

    async fn destroy(self: &Arc<Self>, id: &SandboxId) -> EngineResult<()> {
        let id = id.clone();
        self.block(move |inner| {
            inner.disks.doom(&id)?;
            steps::pass(DestroyStep::Machine, || {
                inner.machines.names_of(&id).iter().try_for_each(|name| inner.clear(name))
            })?;
            steps::pass(DestroyStep::Disk, || inner.disks.remove(&id))
        })
        .await
    }
}

/// What is to be undone on the host when the last bridged machine is gone.
const FORWARDING: &str = "machines/.forwarding";

/// The directory on which the launcher mounts what only it sees.
const STAGE: &str = "machines/.stage";

/// Everything that a machine's own layer lies over, top first.
/// Where the image's own user is at home; root's home is another matter.
fn image_home(spec: &MachineSpec) -> Option<PathBuf> {
    let account = spec.tree.config.account.as_ref().filter(|account| account.uid != 0)?;
    Some(PathBuf::from(&account.home))
}

fn layers(spec: &MachineSpec) -> EngineResult<Vec<PathBuf>> {
    let mut layers = match &spec.snapshot {
        Some(snapshot) => capture::layers(snapshot)?,
        None => Vec::new(),
    };
    layers.extend(spec.tree.layers.iter().cloned());
    if layers.len() > admission::LAYERS_MAX {
        return Err(EngineError::Invalid(format!(
            "image and snapshot have {} layers, at most {} can be one file system",
            layers.len(),
            admission::LAYERS_MAX
        )));
    }
    Ok(layers)
}

impl LaunchFailure {
    /// The kernel or a file system refused to map the ids of a layer.
    fn says_unmappable(&self) -> bool {
        self.area == LaunchStep::AREA
            && self.step == LaunchStep::Layers.name()
            && matches!(self.errno, libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)
    }
}
