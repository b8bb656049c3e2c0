//! The engine itself: sequences of steps over disks, cgroups, networks and machines.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use sandhaus_sandbox::{
    engine::{
        Boot, Capabilities, Capture, Change, DiskSnapshot, Engine, EngineError, EngineResult, ExitLog,
        GuestPort, GuestStream, ImageForm, MachineSpec, Observed, ObservedMachine, Res, RunState, StopMode,
    },
    types::{GuestOs, Resources, SandboxId, Stats},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{OnceCell, watch},
};

use super::{
    QemuConfig,
    channel::Channel,
    dial,
    disk::{self, Disks},
    probe::{Knowledge, MEMORY_SNAPSHOT_VERSION, Probe},
    qmp::{QmpError, Status},
    restore, spawn,
    start::{self, MachineRecord, START_MAX},
    steps::{Moment, StopStep, hit, pass},
};
use crate::{
    calls::{self, Turns},
    cgroup::Cgroups,
    machine::{self, MachineName, Machines},
    namespace::removal,
    net::{self, Networks},
};

/// How long a guest may take to switch itself off.
const POWER_OFF_MAX: Duration = Duration::from_secs(30);

/// How long it may take to tell it so.
const ASK_MAX: Duration = Duration::from_secs(15);

/// How long a QEMU may take to say what its machine does, before it counts as one that runs and does not answer.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The engine's folder in a data directory.
const FOLDER: &str = "vm";

/// What it has in there once there was a machine.
const DISKS: &str = "disks";
const MACHINES: &str = "machines";

/// What is to be undone on the host when the last bridged machine is gone.
const FORWARDING: &str = "machines/.forwarding";

/// A machine's process, held.
pub(super) type Process = Arc<AsyncFd<OwnedFd>>;

/// Runs virtual machines.
#[derive(Debug)]
pub struct QemuEngine {
    config: QemuConfig,
    capabilities: Capabilities,
    exits: watch::Sender<ExitLog>,
    /// Opened by the first who needs it: a server without virtual machines, or a `run` without one, makes nothing for them.
    inner: Arc<OnceCell<Arc<Inner>>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: QemuConfig,
    probe: Probe,
    knowledge: OnceCell<Knowledge>,
    pub(super) networks: Networks,
    pub(super) cgroups: Arc<Cgroups>,
    pub(super) disks: Arc<Disks>,
    pub(super) machines: Arc<Machines>,
    pub(super) channels: Mutex<HashMap<MachineName, Arc<Channel>>>,
    turns: Turns,
    /// The turn to read memory images that nobody has vouched for.
    reading: Mutex<()>,
}

impl QemuEngine {
    /// The engine of an instance, whose lock must be held by this process. Nothing is tried out but QEMU's version, and that
    /// only where it is not known yet.
    pub async fn open(config: QemuConfig) -> EngineResult<Self> {
        let probe = Probe::new(&config.binary, Some(&config.probe_dir), config.accelerator);
        let version = tokio::task::spawn_blocking(move || probe.version())
            .await
            .map_err(|error| EngineError::host("open engine", error))?;
        let memory_snapshot = match version {
            Ok(version) if version < MEMORY_SNAPSHOT_VERSION => {
                tracing::info!(%version, "this QEMU is too old for memory snapshots");
                false
            }
            Ok(_) => true,
            Err(error) => {
                // What earlier servers left can be seen and ended all the same.
                let source = std::error::Error::source(&error);
                tracing::warn!(%error, ?source, "virtual machines cannot be started");
                false
            }
        };
        Ok(Self {
            config,
            capabilities: capabilities(memory_snapshot),
            exits: watch::Sender::default(),
            inner: Arc::default(),
        })
    }

    /// Whether an instance has, or had, virtual machines.
    pub fn is_in_use(data_dir: &Path) -> bool {
        [DISKS, MACHINES].iter().any(|name| data_dir.join(FOLDER).join(name).exists())
    }

    fn opening(&self) -> impl Future<Output = EngineResult<Arc<Inner>>> + use<> {
        let (inner, config, exits) = (Arc::clone(&self.inner), self.config.clone(), self.exits.clone());
        async move {
            let open = async || {
                tokio::task::spawn_blocking(move || Inner::open(config, exits).map(Arc::new))
                    .await
                    .map_err(|error| EngineError::host("open engine", error))?
            };
            inner.get_or_try_init(open).await.cloned()
        }
    }

    /// Runs `work` to its end, whether or not anybody waits for it.
    fn detached<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Inner>) -> BoxFuture<'static, EngineResult<T>> + Send + 'static,
    ) -> Res<'static, T> {
        let opening = self.opening();
        calls::detached(async move { work(opening.await?).await })
    }

    /// Runs blocking `work` to its end on a thread for such.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> EngineResult<T> + Send + 'static,
    ) -> Res<'static, T> {
        self.detached(|inner| Box::pin(async move { inner.block(work).await }))
    }
}

impl Engine for QemuEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn survey(&self) -> Res<'_, Vec<Observed>> {
        if self.inner.get().is_none() && !Self::is_in_use(&self.config.data_dir) {
            return Box::pin(async { Ok(Vec::new()) });
        }
        self.detached(|inner| {
            Box::pin(async move {
                let mut ids = inner.block(|inner| inner.disks.list()).await?;
                ids.extend(inner.machines.list());
                ids.sort();
                ids.dedup();
                let looks = ids.iter().map(|id| inner.observe(id));
                let observed = futures::future::try_join_all(looks).await?;
                Ok(observed.into_iter().flatten().collect())
            })
        })
    }

    fn watch(&self) -> watch::Receiver<ExitLog> {
        self.exits.subscribe()
    }

    fn observe<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Option<Observed>> {
        let id = id.clone();
        self.detached(move |inner| Box::pin(async move { inner.observe(&id).await }))
    }

    fn materialize<'a>(&'a self, spec: &'a MachineSpec) -> Res<'a, ()> {
        let spec = spec.clone();
        self.blocking(move |inner| {
            start::check(&spec)?;
            net::check_guest_policy(&spec.network, &inner.config.network)?;
            if let Some(snapshot) = &spec.snapshot {
                restore::find_whole(snapshot, &inner.reading)?;
            }
            inner.disks.materialize(&spec)
        })
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec, boot: Boot) -> Res<'a, ()> {
        let spec = spec.clone();
        self.detached(|inner| Box::pin(async move { inner.start(spec, boot).await }))
    }

    fn stop<'a>(&'a self, id: &'a SandboxId, mode: StopMode) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| Box::pin(async move { inner.stop(&id, mode).await }))
    }

    fn freeze<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| {
            Box::pin(async move {
                let (name, _) = inner.running(&id).await?;
                let host = |error: QmpError| EngineError::host("freeze machine", error);
                inner.channel(&name).monitor().await.map_err(host)?.stop().await.map_err(host)
            })
        })
    }

    fn thaw<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| {
            Box::pin(async move {
                let (name, _) = inner.running(&id).await?;
                inner.thaw(&name).await
            })
        })
    }

    fn capture<'a>(&'a self, id: &'a SandboxId, what: Capture, into: PathBuf) -> Res<'a, ()> {
        let id = id.clone();
        self.detached(move |inner| Box::pin(async move { inner.capture(id, what, into).await }))
    }

    fn pack<'a>(&'a self, from: PathBuf, into: PathBuf) -> Res<'a, ()> {
        self.detached(|inner| Box::pin(async move { inner.pack(from, into).await }))
    }

    fn verify<'a>(&'a self, snapshot: PathBuf) -> Res<'a, ()> {
        self.detached(|inner| Box::pin(async move { inner.verify(snapshot).await }))
    }

    fn update<'a>(&'a self, id: &'a SandboxId, change: Change) -> Res<'a, ()> {
        let id = id.clone();
        match change {
            Change::Network(policy) => self.blocking(move |inner| {
                let (name, _) = inner.hold_running(&id)?.ok_or(EngineError::NotFound)?;
                net::check_guest_policy(&policy, &inner.config.network)?;
                inner.networks.change_guest(&policy, &inner.machines.directory(&name))
            }),
            Change::Resources(resources) => {
                self.detached(move |inner| Box::pin(async move { inner.resize(&id, resources).await }))
            }
        }
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        let id = id.clone();
        self.blocking(move |inner| {
            inner.disks.doom(&id)?;
            inner.machines.names_of(&id).iter().try_for_each(|name| inner.clear(name))?;
            inner.disks.remove(&id)
        })
    }

    fn stats<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Stats> {
        let id = id.clone();
        self.blocking(move |inner| {
            let (name, _) = inner.hold_running(&id)?.ok_or(EngineError::NotFound)?;
            let stats = inner.cgroups.stats(&name.to_string())?;
            // The limit that the owner knows is the guest's memory, not that of the process around it.
            let hardware = MachineRecord::read(&inner.machines.directory(&name))?.hardware;
            Ok(Stats { memory_limit_bytes: Some(hardware.memory_mib << 20), ..stats })
        })
    }

    fn dial<'a>(&'a self, id: &'a SandboxId, port: GuestPort) -> Res<'a, GuestStream> {
        let id = id.clone();
        Box::pin(async move {
            let inner = match self.inner.get() {
                Some(inner) => Arc::clone(inner),
                None => self.opening().await?,
            };
            let (name, process) = inner.running(&id).await?;
            match port {
                GuestPort::Agent => dial::agent(process.get_ref()).await,
                GuestPort::Tcp(port) => dial::tcp(process.get_ref(), port).await,
                GuestPort::Display => inner.channel(&name).dial_display().await,
                GuestPort::Console => inner.channel(&name).dial_console().await,
            }
        })
    }

    fn shutdown(&self) -> Res<'_, ()> {
        if self.inner.get().is_none() {
            return Box::pin(async { Ok(()) });
        }
        self.detached(|inner| {
            Box::pin(async move {
                inner.channels.lock().expect("no holder panics").clear();
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

/// What a machine does, by QEMU's word. One that is neither here nor there has stopped for good: its state was not read to
/// its end, or its processor is stuck.
pub(super) fn run_state(status: &Status) -> RunState {
    match status.status.as_str() {
        _ if status.running => RunState::Running,
        "suspended" => RunState::Running,
        "paused" | "postmigrate" | "finish-migrate" | "save-vm" | "restore-vm" => RunState::Frozen,
        _ => RunState::Dead,
    }
}

impl Inner {
    fn open(config: QemuConfig, exits: watch::Sender<ExitLog>) -> EngineResult<Self> {
        let own_id = config
            .instance
            .get(1..)
            .map(|rest| format!("v{rest}"))
            .ok_or_else(|| EngineError::Invalid("an instance without an id".to_owned()))?;
        let directory = config.data_dir.join(FOLDER);
        crate::namespace::disk::make_private(&directory)
            .map_err(|error| EngineError::host("make directory of virtual machines", error))?;
        let probe = Probe::new(&config.binary, Some(&config.probe_dir), config.accelerator);
        let cgroups = Arc::new(Cgroups::open(&own_id, config.cgroup.as_deref(), &directory)?);
        let machines = Arc::new(Machines::open(&directory, &cgroups, exits)?);
        let disks = Arc::new(Disks::open(&config.data_dir)?);
        let directories: Vec<_> = machines.all().iter().map(|name| machines.directory(name)).collect();
        let networks = Networks::open_for_guests(
            &own_id,
            config.network.clone(),
            directory.join(FORWARDING),
            directories,
        )?;
        Ok(Self {
            probe,
            knowledge: OnceCell::new(),
            networks,
            cgroups,
            disks,
            machines,
            channels: Mutex::default(),
            turns: Turns::default(),
            reading: Mutex::default(),
            config,
        })
    }

    /// What machines are made with, found out by whoever needs it first.
    pub(super) async fn knowledge(&self) -> EngineResult<Knowledge> {
        let find_out = async || {
            let knowledge = self.probe.find_out().await?;
            let Knowledge { version, machine, cpu, .. } = &knowledge;
            match &knowledge.emulated_because {
                Some(reason) => {
                    tracing::warn!(%version, machine, cpu, reason, "virtual machines are emulated, which is slow");
                }
                None => {
                    let by = knowledge.accelerator;
                    tracing::info!(%version, machine, cpu, ?by, "virtual machines can run");
                }
            }
            Ok(knowledge)
        };
        self.knowledge.get_or_try_init(find_out).await.cloned()
    }

    /// Does blocking work on a thread for such; so many at a time.
    pub(super) async fn block<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> EngineResult<T> + Send + 'static,
    ) -> EngineResult<T> {
        self.turns.block(self, work).await
    }

    /// What exists of one sandbox.
    async fn observe(self: &Arc<Self>, id: &SandboxId) -> EngineResult<Option<Observed>> {
        let asked = id.clone();
        let (disk, disk_remains, running, newest) = self
            .block(move |inner| {
                let disk = inner.disks.record(&asked)?.map(|record| record.generation);
                let running = inner.hold_running(&asked)?;
                let newest = inner.machines.names_of(&asked).pop();
                Ok((disk, inner.disks.exists(&asked), running, newest))
            })
            .await?;
        let machine = match (running, newest) {
            (Some((name, process)), _) => {
                let run = self.look(&name, &process).await?;
                Some(ObservedMachine { generation: name.generation, run })
            }
            (None, Some(name)) => Some(ObservedMachine { generation: name.generation, run: RunState::Dead }),
            (None, None) => None,
        };
        let exists = disk.is_some() || machine.is_some() || disk_remains;
        Ok(exists.then(|| Observed { id: id.clone(), disk, machine }))
    }

    /// What a machine does whose process is there.
    async fn look(&self, name: &MachineName, process: &Process) -> EngineResult<RunState> {
        let asked = tokio::time::timeout(LOOK_MAX, self.status(name)).await;
        match asked {
            Ok(Ok(status)) => Ok(run_state(&status)),
            _ if !machine::is_alive(process.get_ref()) => Ok(RunState::Dead),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                tracing::warn!(machine = %name, "a virtual machine does not say what it does");
                Ok(RunState::Running)
            }
        }
    }

    /// What QEMU says of a machine.
    pub(super) async fn status(&self, name: &MachineName) -> EngineResult<Status> {
        let host = |error: QmpError| EngineError::host("look at machine", error);
        self.channel(name).monitor().await.map_err(host)?.status().await.map_err(host)
    }

    async fn thaw(&self, name: &MachineName) -> EngineResult<()> {
        let host = |error: QmpError| EngineError::host("thaw machine", error);
        self.channel(name).monitor().await.map_err(host)?.cont().await.map_err(host)
    }

    /// Looks for a running machine of a sandbox, newest first, and holds its process.
    pub(super) fn hold_running(
        self: &Arc<Self>,
        id: &SandboxId,
    ) -> EngineResult<Option<(MachineName, Process)>> {
        if let Some(held) = self.machines.running(id) {
            return Ok(Some(held));
        }
        for name in self.machines.names_of(id).into_iter().rev() {
            let text = name.to_string();
            let is_first = |pid| spawn::is_machine(pid, &text);
            if let Some(process) = machine::find_first_process(&self.cgroups, &name, is_first)? {
                let held = self.machines.hold(&name, process, &self.cgroups)?;
                self.listen_again(&name);
                return Ok(Some((name, held)));
            }
        }
        Ok(None)
    }

    /// Goes on listening to the console of a machine that an earlier server started.
    fn listen_again(self: &Arc<Self>, name: &MachineName) {
        let (channel, name) = (self.channel(name), name.clone());
        tokio::spawn(async move {
            if let Err(error) = channel.listen_to_console().await {
                tracing::warn!(%error, machine = %name, "cannot listen to the console of a machine");
            }
        });
    }

    /// The running machine of a sandbox.
    pub(super) async fn running(self: &Arc<Self>, id: &SandboxId) -> EngineResult<(MachineName, Process)> {
        let held = match self.machines.running(id) {
            Some(held) => Some(held),
            // Left by an earlier server, and not looked at since.
            None => {
                let id = id.clone();
                self.block(move |inner| inner.hold_running(&id)).await?
            }
        };
        held.ok_or(EngineError::NotFound)
    }

    /// Gives a machine other limits, and its guest a larger disk.
    async fn resize(self: &Arc<Self>, id: &SandboxId, resources: Resources) -> EngineResult<()> {
        let (name, _) = self.running(id).await?;
        let (machine, sandbox) = (name.clone(), id.clone());
        let growth = self
            .block(move |inner| {
                let growth = inner.disks.growth(&sandbox, resources.disk_bytes)?;
                inner.limit(&machine, &resources)?;
                Ok(growth)
            })
            .await?;
        let Some((top, size_bytes)) = growth else { return Ok(()) };
        let monitor = self.channel(&name).monitor().await;
        let resized = async { monitor?.block_resize(&disk::node_name(top), size_bytes).await };
        resized.await.map_err(|error| EngineError::host("make disk larger", error))
    }

    fn limit(&self, name: &MachineName, resources: &Resources) -> EngineResult<()> {
        let hardware = MachineRecord::read(&self.machines.directory(name))?.hardware;
        if start::memory_mib(resources) != hardware.memory_mib {
            return Err(EngineError::Unsupported(
                "changing the memory of a virtual machine that runs".to_owned(),
            ));
        }
        self.cgroups.limit(&name.to_string(), &start::limits(&hardware, resources))
    }

    /// Ends all machines of a sandbox and removes what they leave; the disk stays.
    async fn stop(self: &Arc<Self>, id: &SandboxId, mode: StopMode) -> EngineResult<()> {
        if mode == StopMode::Graceful {
            hit(StopStep::PowerOff, Moment::Before);
            if let Ok((name, process)) = self.running(id).await {
                self.power_off(&name, &process).await;
            }
            hit(StopStep::PowerOff, Moment::After);
        }
        let id = id.clone();
        self.block(move |inner| inner.machines.names_of(&id).iter().try_for_each(|name| inner.clear(name)))
            .await
    }

    /// Has the guest switch itself off, and waits a while for it. The agent ends everything in order; without one the power
    /// button is pressed, which a guest with an init system understands.
    async fn power_off(&self, name: &MachineName, process: &Process) {
        let switched = async {
            // A frozen guest would never hear of it.
            self.thaw(name).await?;
            match dial::ask_to_power_off(process.get_ref()).await {
                Ok(true) => Ok(()),
                refused => {
                    tracing::debug!(machine = %name, ?refused, "the agent does not switch its machine off");
                    let host = |error: QmpError| EngineError::host("press power button", error);
                    self.channel(name).monitor().await.map_err(host)?.system_powerdown().await.map_err(host)
                }
            }
        };
        match tokio::time::timeout(ASK_MAX, switched).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error);
                tracing::info!(machine = %name, %error, ?source, "machine cannot be asked to end; killing it");
                return;
            }
            Err(_) => {
                tracing::info!(machine = %name, "machine does not hear that it is to end; killing it");
                return;
            }
        }
        if tokio::time::timeout(POWER_OFF_MAX, process.readable()).await.is_err() {
            tracing::info!(machine = %name, "machine did not end by itself in time; killing it");
        }
    }

    /// Kills what runs under a name and removes all that bears it.
    pub(super) fn clear(&self, name: &MachineName) -> EngineResult<()> {
        let text = name.to_string();
        let held = self.machines.running(&name.id).filter(|(running, _)| running == name);
        let first = held.as_ref().map(|(_, process)| process.get_ref());
        pass(StopStep::Kill, || self.cgroups.kill(&text, first))?;
        pass(StopStep::Cgroups, || self.cgroups.remove(&text))?;
        self.channels.lock().expect("no holder panics").remove(name);
        let directory = self.machines.directory(name);
        pass(StopStep::Network, || {
            self.networks.release_guest(&text, &directory);
            EngineResult::Ok(())
        })?;
        pass(StopStep::Directory, || {
            let parent = directory.parent().expect("it lies in the directory of all machines");
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(io::Error::from);
            parent
                .and_then(|parent| removal::remove_tree(parent.as_fd(), &text))
                .map_err(|error| EngineError::host("remove machine", error))
        })?;
        self.machines.forget(name);
        Ok(())
    }
}

fn capabilities(memory_snapshot: bool) -> Capabilities {
    Capabilities {
        guest_os: vec![GuestOs::Linux],
        freeze: true,
        image_form: ImageForm::Disk,
        boots_by_greeting: true,
        start_max: START_MAX,
        memory_snapshot,
        disk_snapshot: DiskSnapshot::Live,
        portable_snapshots: true,
        console: true,
        resize: true,
        disk_growth: true,
        display: true,
        disk_limit: Some("the size of its qcow2 file".to_owned()),
        mounts: false,
        bridge: true,
        host_network: false,
        workspaces: false,
        seccomp: false,
    }
}
