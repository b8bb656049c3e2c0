//! The seam below the domain: what an engine does with machines. Nothing here is about one engine only.
//!
//! An engine keeps no plan of its own. Every method is idempotent: calling it again after a crash at any point brings
//! the same end. What an engine cannot do is absent from its [`Capabilities`] and refused at admission by name.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use crate::error::{Error, Kind};
use crate::types::{
    Env, Generation, GuestOs, Mount, NetworkPolicy, Resources, SandboxId, Seccomp, SecurityProfile, Stats,
    Tree,
};

/// Result of an engine call.
pub type EngineResult<T> = Result<T, EngineError>;

/// The future of an engine call. Dropping it drops only the wait: the work goes on or ends by itself.
pub type Res<'a, T> = BoxFuture<'a, EngineResult<T>>;

/// Runs machines.
pub trait Engine: Send + Sync + 'static {
    /// What this engine can do on this host.
    fn capabilities(&self) -> &Capabilities;

    /// Every machine and disk of this instance that exists, ours or orphan.
    fn survey(&self) -> Res<'_, Vec<Observed>>;

    /// Ends of machines as they happen. The value counts changes; after each, `survey` or `observe` tells what is.
    fn watch(&self) -> watch::Receiver<ExitLog>;

    /// What exists of one sandbox: no entry means surely nothing.
    fn observe<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Option<Observed>>;

    /// Makes the disk: empty above the image, or with what a snapshot has. A disk that is there already stays as it is.
    fn materialize<'a>(&'a self, spec: &'a MachineSpec) -> Res<'a, ()>;

    /// Starts the machine on its disk. Returns when the agent's channel can be dialled.
    fn start<'a>(&'a self, spec: &'a MachineSpec, boot: Boot) -> Res<'a, ()>;

    /// Ends the machine, whatever its generation; the disk stays. Absent is success.
    fn stop<'a>(&'a self, id: &'a SandboxId, mode: StopMode) -> Res<'a, ()>;

    /// Freezes the machine in RAM. Frozen already is success.
    fn freeze<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()>;

    /// Thaws it. Running already is success.
    fn thaw<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()>;

    /// Writes memory or disk of the machine into the directory `into`, which is empty. What lies in it then is this
    /// engine's own affair; whoever has it may link its files into other directories of the same file system, and gives
    /// the directory back as [`Boot::Restore`] or [`MachineSpec::snapshot`]. Nothing in it changes afterwards, whatever
    /// becomes of the machine.
    fn capture<'a>(&'a self, id: &'a SandboxId, what: Capture, into: PathBuf) -> Res<'a, ()>;

    /// Writes what [`Self::capture`] wrote into `from` so that it needs nothing else of this host, into the directory
    /// `into`, which is empty: what a store keeps, and what [`MachineSpec::snapshot`] takes after it came back.
    fn pack<'a>(&'a self, from: PathBuf, into: PathBuf) -> Res<'a, ()>;

    /// Checks what came from a store: whole, and such that it can be started here.
    fn verify<'a>(&'a self, snapshot: PathBuf) -> Res<'a, ()>;

    /// Changes limits or network of a running machine.
    fn update<'a>(&'a self, id: &'a SandboxId, change: Change) -> Res<'a, ()>;

    /// Ends the machine and removes its disk and all else of it. Absent is success.
    fn destroy<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()>;

    /// Use of resources now.
    fn stats<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Stats>;

    /// Connects to a port of the machine.
    fn dial<'a>(&'a self, id: &'a SandboxId, port: GuestPort) -> Res<'a, GuestStream>;

    /// Stops what the engine runs for itself on the host (helpers, pools); machines stay.
    fn shutdown(&self) -> Res<'_, ()>;
}

/// What an engine can do. Data, so that admission can refuse by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Operating systems it can run.
    pub guest_os: Vec<GuestOs>,
    /// It can freeze and thaw.
    pub freeze: bool,
    /// What images must be for it.
    pub image_form: ImageForm,
    /// Its agents know nothing until they are greeted: the greeting brings what a boot document would
    /// ([`sandhaus_protocol::hello::Guest`]).
    pub boots_by_greeting: bool,
    /// How long a machine may take from the start until its agent can be dialled.
    pub start_max: Duration,
    /// It can capture and restore memory.
    pub memory_snapshot: bool,
    /// It can capture a disk, and how.
    pub disk_snapshot: DiskSnapshot,
    /// Its snapshots can be packed for a store.
    pub portable_snapshots: bool,
    /// It has a serial console to dial.
    pub console: bool,
    /// Limits can change while running.
    pub resize: bool,
    /// Disks can grow, also while running.
    pub disk_growth: bool,
    /// It has a display to dial.
    pub display: bool,
    /// It can limit the size of the writable layer, and how, in words for `doctor`.
    pub disk_limit: Option<String>,
    /// Host directories can be shown inside.
    pub mounts: bool,
    /// It can give a machine an address of its own behind NAT, with allow lists ([`NetworkPolicy::Bridge`] and
    /// [`NetworkPolicy::Allow`]).
    pub bridge: bool,
    /// A machine can use the host's own network ([`NetworkPolicy::Host`]).
    pub host_network: bool,
    /// A workspace of the host can be shown at `/workspace`.
    pub workspaces: bool,
    /// The filter of system calls can be chosen.
    pub seccomp: bool,
}

/// What an engine makes root file systems of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageForm {
    /// Layers of files.
    Layers,
    /// Disks of virtual machines.
    Disk,
}

/// How an engine captures disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSnapshot {
    /// Not at all.
    None,
    /// Only of a machine that is frozen, or of a sandbox without one.
    Frozen,
    /// Also while the machine runs, as it would be after a power cut.
    Live,
}

/// A machine to start: everything resolved, nothing left to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Whose machine.
    pub id: SandboxId,
    /// The generation it carries.
    pub generation: Generation,
    /// Its root file system.
    pub tree: Tree,
    /// The snapshot that its disk is made of, as [`Engine::capture`] or [`Engine::pack`] wrote it; with layers, those of
    /// `tree` lie beneath.
    pub snapshot: Option<PathBuf>,
    /// Limits.
    pub resources: Resources,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// Confinement.
    pub security: SecurityProfile,
    /// Root read-only.
    pub readonly_root: bool,
    /// Environment of every process, the image's and the sandbox's already merged.
    pub env: Env,
    /// Directory to start in.
    pub workdir: String,
    /// Host directories shown inside.
    pub mounts: Vec<Mount>,
    /// Host name inside.
    pub hostname: String,
    /// Started beside the agent.
    pub entrypoint: Vec<String>,
    /// Shell of the persistent sessions.
    pub shell: sandhaus_protocol::boot::ShellPreference,
    /// Start the default shell with the machine.
    pub warm_shell: bool,
    /// How system calls are filtered.
    pub seccomp: Seccomp,
    /// Where the workspace lies that is shown at `/workspace` in place of the disk's own: [`crate::workspace::mount`] gives a
    /// mount of it. Its ids are those of [`crate::types::WORKSPACE_ID_BASE`].
    pub workspace: Option<PathBuf>,
}

/// How a machine comes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// From its disk.
    Cold,
    /// From a memory image in this directory; it comes up frozen.
    Restore(PathBuf),
}

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Let the agent end its processes first, at most a few seconds.
    Graceful,
    /// At once.
    Kill,
}

/// What to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// The disk. Of a machine that runs only by an engine that can ([`DiskSnapshot::Live`]).
    Disk,
    /// Memory and device state of a frozen machine, which stays frozen; its disk is kept by whoever keeps this.
    Memory,
    /// Disk, memory and device state of a frozen machine, all of one moment; it stays frozen.
    Machine,
    /// The same of a sandbox without a machine: its disk, and what [`Self::Memory`] wrote of its last machine into this
    /// directory. Nothing is copied that can be linked.
    Suspended(PathBuf),
}

/// A change to a running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New limits.
    Resources(Resources),
    /// New reach.
    Network(NetworkPolicy),
}

/// A port of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPort {
    /// The agent's HTTP API.
    Agent,
    /// A TCP port on the machine's loopback or own address.
    Tcp(u16),
    /// RFB.
    Display,
    /// Serial console.
    Console,
}

/// What exists of one sandbox. With neither disk nor machine: remains that only [`Engine::destroy`] clears for good and
/// [`Engine::materialize`] for a new disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whose.
    pub id: SandboxId,
    /// Its disk, and the generation it was made for. The row alone says which generation a disk is at: here only its
    /// presence counts.
    pub disk: Option<Generation>,
    /// Its machine.
    pub machine: Option<ObservedMachine>,
}

/// A machine that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObservedMachine {
    /// The generation it carries.
    pub generation: Generation,
    /// What it does.
    pub run: RunState,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// It runs.
    Running,
    /// It is frozen.
    Frozen,
    /// Its first process is gone, remains are left (a cgroup, a mount, a socket).
    Dead,
}

/// Ends of machines, newest last; bounded, so a reader that fell behind surveys.
#[derive(Debug, Clone, Default)]
pub struct ExitLog {
    /// How many ends there were since the engine started.
    pub count: u64,
    /// The last ones.
    pub recent: Arc<Vec<MachineExit>>,
}

/// The end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineExit {
    /// Whose.
    pub id: SandboxId,
    /// Which.
    pub generation: Generation,
    /// The memory limit ended it.
    pub out_of_memory: bool,
}

/// Why an engine call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine cannot do it on this host.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// There is no such machine or port.
    #[error("machine is not there")]
    NotFound,
    /// The host is out of something; later may do.
    #[error("host is out of {0}")]
    Exhausted(String),
    /// The request cannot be carried out as it is (a mount source that is missing, an image without a shell).
    #[error("{0}")]
    Invalid(String),
    /// The host failed while doing `what` (verb + noun).
    #[error("{what} failed")]
    Host {
        /// Verb and noun, safe to show.
        what: String,
        /// The cause, for the log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EngineError {
    /// The host failed while doing `what`.
    pub fn host(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Host { what: what.into(), source: source.into() }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let kind = match &error {
            EngineError::Unsupported(_) => Kind::Unsupported,
            EngineError::NotFound => Kind::Conflict,
            EngineError::Exhausted(_) => Kind::Exhausted,
            EngineError::Invalid(_) => Kind::Invalid,
            EngineError::Host { .. } => Kind::Internal,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}

/// A byte stream into a machine.
pub struct GuestStream(Box<dyn Stream>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl GuestStream {
    /// Wraps a connected stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(stream))
    }
}

impl std::fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestStream")
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
