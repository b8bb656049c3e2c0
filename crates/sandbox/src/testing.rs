//! An engine without machines, for tests of everything above the engine seam: the domain's own, and the edges'.
//!
//! [`FakeEngine`] keeps machines and disks in memory and outlives the service, as real machines do. Tests script it:
//! calls fail before or after they took effect, are held until released, machines crash, the host reboots. The agent
//! inside is a handler over an in-memory stream; the default one answers the greeting.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use sandhaus_images::Catalogue;
use sandhaus_protocol::{
    PROTOCOL_VERSION,
    hello::{self, Feature, HelloReply, HelloRequest},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    doors::RescueDoor,
    engine::*,
    error::{Error, Result},
    instance::Instance,
    service::{CreateSandbox, Defaults, Service, ServiceConfig},
    types::*,
};

/// Bytes in flight on a stream into a fake machine.
const STREAM_BYTES: usize = 64 * 1024;

/// Largest request head and body that the default agent reads.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Ends kept in the log; a reader that falls further behind looks at everything.
const EXITS_MAX: usize = 16;

/// What a disk holds, as it is captured.
const DISK_FILE: &str = "disk";

/// What a memory holds, as it is captured.
const MEMORY_FILE: &str = "memory";

/// A call of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of the same name")]
pub enum Op {
    Survey,
    Observe,
    Materialize,
    Start,
    Stop,
    Freeze,
    Thaw,
    Capture,
    Pack,
    Verify,
    Update,
    Destroy,
    Stats,
    Dial,
}

/// How far a failing call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing of it happened.
    Nothing,
    /// All of it happened, only the answer was lost.
    Everything,
}

/// Whose agent a stream reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The sandbox.
    pub id: SandboxId,
    /// The generation of its machine.
    pub generation: Generation,
}

/// Serves one stream into a machine; dropped when the machine ends.
pub type Agent = Arc<dyn Fn(DuplexStream, AgentIdentity) -> BoxFuture<'static, ()> + Send + Sync>;

/// Serves one stream to another port than the agent's; dropped when the machine ends.
pub type Ports = Arc<dyn Fn(DuplexStream, GuestPort) -> BoxFuture<'static, ()> + Send + Sync>;

/// An engine in memory. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct FakeEngine {
    capabilities: Arc<Capabilities>,
    agent: Agent,
    ports: Option<Ports>,
    exits: Arc<watch::Sender<ExitLog>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    disks: HashMap<SandboxId, Disk>,
    machines: HashMap<SandboxId, Machine>,
    calls: Vec<(Op, Option<SandboxId>)>,
    failures: Vec<Failing>,
    held: HashMap<Op, (watch::Sender<usize>, watch::Receiver<bool>)>,
    /// Streams into frozen machines: open, and never answered.
    stuck: Vec<DuplexStream>,
    stats: Stats,
}

#[derive(Default)]
struct Disk {
    generation: Generation,
    text: String,
}

struct Failing {
    op: Op,
    reach: Reach,
    error: fn() -> EngineError,
}

struct Machine {
    observed: ObservedMachine,
    spec: MachineSpec,
    memory: String,
    /// Ends what serves its streams.
    life: CancellationToken,
}

/// Calls of one kind are held until this is dropped.
#[derive(Debug)]
pub struct Held {
    arrived: watch::Receiver<usize>,
    _release: watch::Sender<bool>,
}

impl Held {
    /// Waits until so many calls are held.
    pub async fn arrived(&mut self, calls: usize) {
        self.arrived.wait_for(|arrived| *arrived >= calls).await.expect("the engine outlives the test");
    }
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new(Capabilities {
            guest_os: vec![GuestOs::Linux],
            freeze: true,
            image_form: ImageForm::Layers,
            boots_by_greeting: false,
            start_max: std::time::Duration::from_secs(60),
            memory_snapshot: true,
            disk_snapshot: DiskSnapshot::Live,
            portable_snapshots: true,
            console: false,
            resize: true,
            disk_growth: false,
            display: false,
            disk_limit: Some("in memory".to_owned()),
            mounts: true,
            bridge: true,
            host_network: true,
            workspaces: true,
            seccomp: true,
        })
    }
}

impl FakeEngine {
    /// An engine that can do so much, with the default agent.
    pub fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities: Arc::new(capabilities),
            agent: Arc::new(|stream, identity| Box::pin(answer_hello(stream, identity))),
            ports: None,
            exits: Arc::new(watch::Sender::new(ExitLog::default())),
            state: Arc::default(),
        }
    }

    /// The same machines with another agent inside.
    #[must_use]
    pub fn with_agent(self, agent: Agent) -> Self {
        Self { agent, ..self }
    }

    /// The same machines with something behind their other ports, console and display too.
    #[must_use]
    pub fn with_ports(self, ports: Ports) -> Self {
        Self { ports: Some(ports), ..self }
    }

    /// The next call of `op` that has no failure yet fails.
    pub fn fail(&self, op: Op, reach: Reach, error: fn() -> EngineError) {
        self.state().failures.push(Failing { op, reach, error });
    }

    /// Forgets the failures that have not come about.
    pub fn forget_failures(&self) {
        self.state().failures.clear();
    }

    /// Holds every call of `op`.
    pub fn hold(&self, op: Op) -> Held {
        let (arrived, arrivals) = watch::channel(0);
        let (release, released) = watch::channel(false);
        self.state().held.insert(op, (arrived, released));
        Held { arrived: arrivals, _release: release }
    }

    /// Ends a machine as its own first process would; `out_of_memory` as the kernel would say.
    pub fn crash(&self, id: &SandboxId, out_of_memory: OutOfMemory) {
        let mut state = self.state();
        let machine = state.machines.get_mut(id).expect("a machine to crash");
        machine.life.cancel();
        machine.observed.run = RunState::Dead;
        let generation = machine.observed.generation;
        drop(state);
        let exit =
            MachineExit { id: id.clone(), generation, out_of_memory: out_of_memory == OutOfMemory::Yes };
        self.exits.send_modify(|log| {
            log.count += 1;
            let recent = Arc::make_mut(&mut log.recent);
            recent.push(exit);
            if recent.len() > EXITS_MAX {
                recent.remove(0);
            }
        });
    }

    /// All machines are gone without a trace, disks stay. Only sensible while no service runs.
    pub fn reboot_host(&self) {
        for (_, machine) in self.state().machines.drain() {
            machine.life.cancel();
        }
    }

    /// Puts a machine and a disk there behind the service's back.
    pub fn plant(&self, id: &SandboxId, generation: Generation, run: RunState) {
        let mut state = self.state();
        let like = state.machines.values().next().map(|machine| machine.spec.clone());
        let spec = match state.machines.remove(id) {
            Some(machine) => machine.spec,
            None => like.expect("another machine to take the shape of"),
        };
        let observed = ObservedMachine { generation, run };
        let machine = Machine { observed, spec, memory: String::new(), life: CancellationToken::new() };
        state.machines.insert(id.clone(), machine);
        state.disks.insert(id.clone(), Disk { generation, text: String::new() });
    }

    /// The running machine writes to its disk and its memory.
    pub fn write(&self, id: &SandboxId, disk: &str, memory: &str) {
        let mut state = self.state();
        let machine = state.machines.get_mut(id).expect("a machine that writes");
        assert_eq!(machine.observed.run, RunState::Running, "only what runs writes");
        memory.clone_into(&mut machine.memory);
        disk.clone_into(&mut state.disks.get_mut(id).expect("a disk to write to").text);
    }

    /// What the disk and the memory of a machine hold.
    pub fn content(&self, id: &SandboxId) -> (String, String) {
        let state = self.state();
        let memory = state.machines.get(id).map(|machine| machine.memory.clone());
        let disk = state.disks.get(id).map(|disk| disk.text.clone());
        (disk.expect("a disk"), memory.expect("a machine"))
    }

    /// Takes a disk away behind the service's back.
    pub fn lose_disk(&self, id: &SandboxId) {
        self.state().disks.remove(id);
    }

    /// The machine of a sandbox.
    pub fn machine(&self, id: &SandboxId) -> Option<ObservedMachine> {
        self.state().machines.get(id).map(|machine| machine.observed)
    }

    /// What the machine was last started with.
    pub fn spec(&self, id: &SandboxId) -> Option<MachineSpec> {
        self.state().machines.get(id).map(|machine| machine.spec.clone())
    }

    /// How many machines and disks there are.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.machines.len(), state.disks.len())
    }

    /// Calls so far, in order.
    pub fn calls(&self) -> Vec<Op> {
        self.state().calls.iter().map(|(op, _)| *op).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// What `stats` answers.
    pub fn set_stats(&self, stats: Stats) {
        self.state().stats = stats;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call: logged, held if it is to be, failed if it is to be.
    async fn call<T>(
        &self,
        op: Op,
        id: Option<&SandboxId>,
        effect: impl FnOnce(&mut State) -> EngineResult<T>,
    ) -> EngineResult<T> {
        let held = {
            let mut state = self.state();
            state.calls.push((op, id.cloned()));
            state.held.get(&op).map(|(arrived, released)| {
                arrived.send_modify(|calls| *calls += 1);
                released.clone()
            })
        };
        if let Some(mut released) = held {
            // Ends with an error when the holder is dropped, which is the release.
            while released.changed().await.is_ok() {}
        }
        let mut state = self.state();
        let failure = state.failures.iter().position(|failing| failing.op == op);
        match failure.map(|index| state.failures.remove(index)) {
            None => effect(&mut state),
            Some(Failing { reach: Reach::Nothing, error, .. }) => Err(error()),
            Some(Failing { reach: Reach::Everything, error, .. }) => {
                effect(&mut state)?;
                Err(error())
            }
        }
    }

    async fn set_run(&self, op: Op, id: &SandboxId, run: RunState) -> EngineResult<()> {
        self.call(op, Some(id), |state| {
            let machine = state.machines.get_mut(id).ok_or(EngineError::NotFound)?;
            if machine.observed.run == RunState::Dead {
                return Err(EngineError::NotFound);
            }
            machine.observed.run = run;
            Ok(())
        })
        .await
    }
}

/// Whether the memory limit ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// It did.
    Yes,
    /// It did not.
    No,
}

fn observed(state: &State, id: &SandboxId) -> Option<Observed> {
    let disk = state.disks.get(id).map(|disk| disk.generation);
    let machine = state.machines.get(id).map(|machine| machine.observed);
    (disk.is_some() || machine.is_some()).then(|| Observed { id: id.clone(), disk, machine })
}

impl Engine for FakeEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn survey(&self) -> Res<'_, Vec<Observed>> {
        Box::pin(self.call(Op::Survey, None, |state| {
            let ids: std::collections::BTreeSet<_> =
                state.disks.keys().chain(state.machines.keys()).collect();
            Ok(ids.into_iter().filter_map(|id| observed(state, id)).collect())
        }))
    }

    fn watch(&self) -> watch::Receiver<ExitLog> {
        self.exits.subscribe()
    }

    fn observe<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Option<Observed>> {
        Box::pin(self.call(Op::Observe, Some(id), move |state| Ok(observed(state, id))))
    }

    fn materialize<'a>(&'a self, spec: &'a MachineSpec) -> Res<'a, ()> {
        Box::pin(self.call(Op::Materialize, Some(&spec.id), |state| {
            let text = match &spec.snapshot {
                Some(snapshot) => std::fs::read_to_string(snapshot.join(DISK_FILE))
                    .map_err(|error| EngineError::host("read snapshot", error))?,
                None => String::new(),
            };
            let disk = Disk { generation: spec.generation, text };
            state.disks.entry(spec.id.clone()).or_insert(disk);
            Ok(())
        }))
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec, boot: Boot) -> Res<'a, ()> {
        Box::pin(self.call(Op::Start, Some(&spec.id), move |state| {
            if !state.disks.contains_key(&spec.id) {
                return Err(EngineError::Invalid("the disk is not there".to_owned()));
            }
            let (run, memory) = match boot {
                Boot::Cold => (RunState::Running, String::new()),
                Boot::Restore(image) => {
                    let memory = std::fs::read_to_string(image.join(MEMORY_FILE))
                        .map_err(|error| EngineError::host("read memory image", error))?;
                    (RunState::Frozen, memory)
                }
            };
            if state.machines.contains_key(&spec.id) {
                return Err(EngineError::Invalid("a machine is there already".to_owned()));
            }
            let observed = ObservedMachine { generation: spec.generation, run };
            let machine = Machine { observed, spec: spec.clone(), memory, life: CancellationToken::new() };
            state.machines.insert(spec.id.clone(), machine);
            Ok(())
        }))
    }

    fn stop<'a>(&'a self, id: &'a SandboxId, _mode: StopMode) -> Res<'a, ()> {
        Box::pin(self.call(Op::Stop, Some(id), move |state| {
            if let Some(machine) = state.machines.remove(id) {
                machine.life.cancel();
            }
            Ok(())
        }))
    }

    fn freeze<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        Box::pin(self.set_run(Op::Freeze, id, RunState::Frozen))
    }

    fn thaw<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        Box::pin(self.set_run(Op::Thaw, id, RunState::Running))
    }

    fn capture<'a>(&'a self, id: &'a SandboxId, what: Capture, into: PathBuf) -> Res<'a, ()> {
        let live = self.capabilities.disk_snapshot == DiskSnapshot::Live;
        Box::pin(self.call(Op::Capture, Some(id), move |state| {
            let machine = state.machines.get(id).filter(|machine| machine.observed.run != RunState::Dead);
            let fits = match (&what, machine.map(|machine| machine.observed.run)) {
                (Capture::Suspended(_), run) => run.is_none(),
                (_, Some(RunState::Frozen)) | (Capture::Disk, None) => true,
                (Capture::Disk, _) => live,
                (Capture::Memory | Capture::Machine, _) => false,
            };
            if !fits {
                return Err(EngineError::Invalid("the machine is not frozen".to_owned()));
            }
            let write = |name: &str, text: &str| {
                std::fs::write(into.join(name), text)
                    .map_err(|error| EngineError::host("write what is captured", error))
            };
            if let (Capture::Memory | Capture::Machine, Some(machine)) = (&what, machine) {
                write(MEMORY_FILE, &machine.memory)?;
            }
            if let Capture::Suspended(image) = &what {
                std::fs::hard_link(image.join(MEMORY_FILE), into.join(MEMORY_FILE))
                    .map_err(|error| EngineError::host("link memory", error))?;
            }
            if let Capture::Disk | Capture::Machine | Capture::Suspended(_) = what {
                write(DISK_FILE, &state.disks.get(id).ok_or(EngineError::NotFound)?.text)?;
            }
            Ok(())
        }))
    }

    fn pack<'a>(&'a self, from: PathBuf, into: PathBuf) -> Res<'a, ()> {
        Box::pin(self.call(Op::Pack, None, move |_| {
            for name in [DISK_FILE, MEMORY_FILE].into_iter().filter(|name| from.join(name).exists()) {
                std::fs::copy(from.join(name), into.join(name))
                    .map_err(|error| EngineError::host("pack snapshot", error))?;
            }
            Ok(())
        }))
    }

    fn verify<'a>(&'a self, snapshot: PathBuf) -> Res<'a, ()> {
        Box::pin(self.call(Op::Verify, None, move |_| {
            let whole = snapshot.join(DISK_FILE).is_file();
            whole.then_some(()).ok_or_else(|| EngineError::Invalid("the snapshot is not whole".to_owned()))
        }))
    }

    fn update<'a>(&'a self, id: &'a SandboxId, change: Change) -> Res<'a, ()> {
        Box::pin(self.call(Op::Update, Some(id), move |state| {
            let machine = state.machines.get_mut(id).ok_or(EngineError::NotFound)?;
            match change {
                Change::Resources(resources) => machine.spec.resources = resources,
                Change::Network(network) => machine.spec.network = network,
            }
            Ok(())
        }))
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> Res<'a, ()> {
        Box::pin(self.call(Op::Destroy, Some(id), move |state| {
            if let Some(machine) = state.machines.remove(id) {
                machine.life.cancel();
            }
            state.disks.remove(id);
            Ok(())
        }))
    }

    fn stats<'a>(&'a self, id: &'a SandboxId) -> Res<'a, Stats> {
        Box::pin(self.call(Op::Stats, Some(id), move |state| {
            if state.machines.contains_key(id) { Ok(state.stats) } else { Err(EngineError::NotFound) }
        }))
    }

    fn dial<'a>(&'a self, id: &'a SandboxId, port: GuestPort) -> Res<'a, GuestStream> {
        Box::pin(self.call(Op::Dial, Some(id), move |state| {
            let machine = state.machines.get(id).ok_or(EngineError::NotFound)?;
            let elsewhere = self.ports.as_ref().filter(|_| port != GuestPort::Agent);
            if elsewhere.is_none() && matches!(port, GuestPort::Display | GuestPort::Console) {
                return Err(EngineError::Unsupported("that port".to_owned()));
            }
            let (near, far) = tokio::io::duplex(STREAM_BYTES);
            match machine.observed.run {
                RunState::Dead => return Err(EngineError::NotFound),
                RunState::Frozen => state.stuck.push(far),
                RunState::Running => {
                    let generation = machine.observed.generation;
                    let served = match elsewhere {
                        Some(ports) => ports(far, port),
                        None => (self.agent)(far, AgentIdentity { id: id.clone(), generation }),
                    };
                    let life = machine.life.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = served => {}
                            () = life.cancelled() => {}
                        }
                    });
                }
            }
            Ok(GuestStream::new(near))
        }))
    }

    fn shutdown(&self) -> Res<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// The default agent: answers greetings, and 404 to all else.
pub async fn answer_hello(mut stream: DuplexStream, identity: AgentIdentity) {
    while let Some((head, body)) = read_request(&mut stream).await {
        let (status, reply) = if head.starts_with(&format!("POST {} ", hello::PATH)) {
            hello_reply(&body, &identity)
        } else {
            ("404 Not Found", r#"{"message":"not found"}"#.to_owned())
        };
        if write_response(&mut stream, status, reply.as_bytes()).await.is_none() {
            return;
        }
    }
}

/// How an agent answers a greeting: status and body.
pub fn hello_reply(body: &[u8], identity: &AgentIdentity) -> (&'static str, String) {
    let Ok(hello) = serde_json::from_slice::<HelloRequest>(body) else {
        return ("400 Bad Request", r#"{"message":"not a greeting"}"#.to_owned());
    };
    if hello.sandbox_id != identity.id.as_str() || hello.generation != identity.generation.0 {
        return ("409 Conflict", r#"{"message":"another sandbox"}"#.to_owned());
    }
    let reply = HelloReply {
        protocol: PROTOCOL_VERSION,
        version: "0.0.0".to_owned(),
        build: None,
        sandbox_id: hello.sandbox_id,
        generation: hello.generation,
        features: vec![Feature::Shell, Feature::Process, Feature::Files, Feature::Env],
        cwd: "/workspace".to_owned(),
        clock_skew_ns: None,
    };
    ("200 OK", serde_json::to_string(&reply).expect("plain data"))
}

/// Reads one HTTP/1.1 request with a Content-Length: its head and its body. `None` at the end of the stream.
pub async fn read_request(stream: &mut DuplexStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if bytes.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
    });
    let length = length.unwrap_or(0).min(REQUEST_BYTES_MAX);
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, bytes[head_end..head_end + length].to_vec()))
}

/// Writes one HTTP/1.1 response with a Content-Length. `None` if the other side is gone.
pub async fn write_response(stream: &mut DuplexStream, status: &str, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.ok()
}

/// Name under which [`open`] registers the engine.
pub const ENGINE: &str = "fake";

/// A configuration with the image `host` and no time to live.
pub fn config() -> ServiceConfig {
    ServiceConfig {
        defaults: Defaults {
            image: ImageName::parse("host").expect("a valid name"),
            image_aliases: vec![ImageName::parse("base").expect("a valid name")],
            allowed_images: Vec::new(),
            engine: EngineName(ENGINE.to_owned()),
            resources: Resources { cpu_millis: 1000, memory_bytes: 512 << 20, pids: 256, disk_bytes: 0 },
            network: NetworkPolicy::None,
            ttl: None,
        },
        sandboxes_max: 1000,
        settle_timeout: std::time::Duration::from_secs(300),
        history_keep: std::time::Duration::from_secs(3600),
        pool: crate::service::PoolConfig::default(),
        plain_request: request(),
        agent: None,
        snapshot_store: None,
        rescue_door: RescueDoor::Closed,
        workspaces: crate::service::WorkspaceConfig::default(),
        insecure_registries: Vec::new(),
    }
}

/// A request that says nothing.
pub fn request() -> CreateSandbox {
    CreateSandbox {
        owner: OwnerId("test".to_owned()),
        id: None,
        name: None,
        image: None,
        snapshot: None,
        engine: None,
        resources: Resources::default(),
        network: None,
        security: SecurityProfile::Strict,
        readonly_root: true,
        env: Env::new(),
        workdir: None,
        mounts: Vec::new(),
        entrypoint: Vec::new(),
        ttl: None,
        labels: Labels::new(),
        shell: sandhaus_protocol::boot::ShellPreference::default(),
        warm_shell: false,
        seccomp: Seccomp::default(),
        workspace: None,
        publish: Vec::new(),
    }
}

/// A catalogue that the tests of one build share, with the image `host`: making that takes a second. It lies beside the
/// test binaries, so it is made once and goes with them.
pub fn images() -> Result<Catalogue> {
    static IMAGES: Mutex<Option<Catalogue>> = Mutex::new(None);
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    if images.is_none() {
        let binary = std::env::current_exe().map_err(|error| Error::internal("find this binary", error))?;
        *images = Some(Catalogue::open(&binary.with_file_name("test-images"))?);
    }
    Ok(images.clone().expect("just made"))
}

/// A service on `engine` and the shared [`images`], whose clock is the runtime's, so that paused time also moves
/// deadlines.
pub async fn open(instance: Instance, config: ServiceConfig, engine: FakeEngine) -> Result<Service> {
    open_with(instance, config, engine, images()?).await
}

/// The same on a catalogue of its own.
pub async fn open_with(
    instance: Instance,
    config: ServiceConfig,
    engine: FakeEngine,
    images: Catalogue,
) -> Result<Service> {
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let engines = BTreeMap::from([(EngineName(ENGINE.to_owned()), engine)]);
    // Each service of a test goes on where the former one's clock stood.
    static START: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    let start_ms = *START.get_or_init(|| jiff::Timestamp::now().as_millisecond());
    let clock = Clock::Runtime { start: tokio::time::Instant::now(), start_ms };
    Service::open_at(instance, config, engines, images, clock).await
}
