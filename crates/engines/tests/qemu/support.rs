//! An engine on a scratch instance, a guest that lives in its initramfs, and eyes on what the kernel keeps.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use sandhaus_engines::{
    net::NetworkConfig,
    qemu::{AcceleratorChoice, QemuConfig, QemuEngine},
};
use sandhaus_images::DiskImage;
use sandhaus_protocol::{
    hello::{Guest, HelloReply, HelloRequest},
    process::Spawn,
};
use sandhaus_sandbox::{
    engine::{Boot, Engine, MachineSpec},
    toolbox::{Base, Event, Toolbox},
    types::{Generation, NetworkPolicy, Resources, SandboxId, SecurityProfile, Tree},
};

use crate::dialled::Dialled;

/// The program under test's other half.
const QEMU: &str = "qemu-system-x86_64";

/// A scratch instance.
pub(crate) struct Host {
    pub(crate) engine: Arc<QemuEngine>,
    pub(crate) instance: String,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) tree: Tree,
    network: NetworkConfig,
}

impl Host {
    /// A fresh instance with an engine; none, aloud, where virtual machines cannot be.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        Self::with_network(test, NetworkConfig::default()).await
    }

    /// The same with networks as given.
    pub(crate) async fn with_network(test: &str, network: NetworkConfig) -> Option<Self> {
        if !possible(test) {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let instance = random_instance();
        let engine = Arc::new(open(directory.path(), &instance, &network).await);
        Some(Self { engine, instance, directory, tree: tree(), network })
    }

    /// Another engine on the same instance, as after a restart.
    pub(crate) async fn reopen(&mut self) {
        self.engine = Arc::new(open(self.directory.path(), &self.instance, &self.network).await);
    }

    pub(crate) fn spec(&self) -> MachineSpec {
        MachineSpec {
            id: SandboxId::random(),
            generation: Generation(1),
            tree: self.tree.clone(),
            snapshot: None,
            resources: Resources { cpu_millis: 1000, memory_bytes: 256 << 20, pids: 128, disk_bytes: 0 },
            network: NetworkPolicy::None,
            security: SecurityProfile::Container,
            readonly_root: false,
            env: BTreeMap::new(),
            workdir: "/workspace".to_owned(),
            mounts: Vec::new(),
            hostname: "tested".to_owned(),
            entrypoint: Vec::new(),
            shell: sandhaus_protocol::boot::ShellPreference::Sh,
            warm_shell: false,
            seccomp: sandhaus_sandbox::types::Seccomp::default(),
            workspace: None,
        }
    }

    /// Makes disk and machine and greets the agent.
    pub(crate) async fn up(&self, spec: &MachineSpec) -> Toolbox {
        self.engine.materialize(spec).await.unwrap_or_else(|error| panic!("{error:?}"));
        self.engine.start(spec, Boot::Cold).await.unwrap_or_else(|error| panic!("{error:?}"));
        self.greet(spec).await.0
    }

    pub(crate) async fn greet(&self, spec: &MachineSpec) -> (Toolbox, HelloReply) {
        let toolbox = self.toolbox(&spec.id);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos();
        let guest = Guest {
            boot: spec.boot_config(),
            hostname: spec.hostname.clone(),
            unix_time_ns: i64::try_from(now).expect("before 2262"),
            entropy: "5a".repeat(64),
            token: "0".repeat(64),
        };
        let hello = HelloRequest {
            protocol: sandhaus_protocol::PROTOCOL_VERSION,
            sandbox_id: spec.id.to_string(),
            generation: spec.generation.0,
            env: BTreeMap::new(),
            guest: Some(Box::new(guest)),
            ssh: None,
        };
        let reply = toolbox.hello(&hello).await.unwrap_or_else(|error| panic!("{error:?}"));
        (toolbox, reply)
    }

    pub(crate) fn toolbox(&self, id: &SandboxId) -> Toolbox {
        let dialled = Dialled { engine: self.engine.clone(), id: id.clone() };
        Toolbox::new(Arc::new(dialled), Base::default())
    }

    /// Ends the instance; nothing of it may be left.
    pub(crate) async fn end(self) {
        for observed in self.engine.survey().await.expect("surveyed") {
            self.engine.destroy(&observed.id).await.expect("destroyed");
        }
        self.engine.shutdown().await.expect("shut down");
        assert_eq!(self.left_behind(), Vec::<String>::new());
    }

    /// What of the instance exists in the kernel or on disk beyond its empty directories.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let own = self.kernel_id();
        let mut left: Vec<_> =
            cgroups(&own).into_iter().map(|path| format!("cgroup {}", path.display())).collect();
        for process in self.processes() {
            left.push(format!("process {process} {}", command(process).join(" ")));
        }
        left.extend(self.namespace_names().into_iter().map(|name| format!("network namespace {name}")));
        for name in ["machines", "disks"] {
            let directory = self.directory.path().join("vm").join(name);
            for entry in fs_err::read_dir(directory).into_iter().flatten().flatten() {
                if !entry.file_name().to_string_lossy().starts_with(".forwarding") {
                    left.push(format!("file {}", entry.path().display()));
                }
            }
        }
        left
    }

    /// Names of network namespaces whose files say that the instance made them. The words lie below what is mounted, so a
    /// mount namespace of the look's own is cleared of it first.
    fn namespace_names(&self) -> Vec<String> {
        const LOOK: &str = "for name in /run/netns/*; do umount -l \"$name\" 2>/dev/null; \
                            printf '%s %s\\n' \"$name\" \"$(head -c 256 \"$name\" | head -n 1)\"; done";
        let mut look = Command::new("unshare");
        look.args(["--mount", "--propagation", "private", "sh", "-c", LOOK]);
        let said = look.output().expect("unshare is installed").stdout;
        let ours = |line: &str| {
            let (name, words) = line.split_once(' ')?;
            words.contains(&self.kernel_id()).then(|| name.to_owned())
        };
        String::from_utf8_lossy(&said).lines().filter_map(ours).collect()
    }

    /// What the engine's own things in the kernel are called by.
    fn kernel_id(&self) -> String {
        format!("v{}", &self.instance[1..])
    }

    /// Every process in a cgroup of the instance, but those that have ended and that nobody has taken notice of.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let own = self.kernel_id();
        let all = fs_err::read_dir("/proc").expect("readable").flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.filter(|process: &i32| {
            let read =
                |file: &str| fs_err::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
            read("cgroup").contains(&own) && !read("status").contains("State:\tZ")
        })
        .collect()
    }
}

impl Drop for Host {
    /// Machines outlive their engine by design, but not a test that failed.
    fn drop(&mut self) {
        for process in self.processes() {
            let pid = rustix::process::Pid::from_raw(process).expect("a process");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        for name in self.namespace_names() {
            let _ = rustix::mount::unmount(&*name, rustix::mount::UnmountFlags::DETACH);
            let _ = fs_err::remove_file(name);
        }
        for path in cgroups(&self.kernel_id()) {
            for machine in fs_err::read_dir(&path).into_iter().flatten().flatten() {
                while machine.path().is_dir()
                    && fs_err::remove_dir(machine.path())
                        .is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
                {
                    std::thread::yield_now();
                }
            }
            let _ = fs_err::remove_dir(&path);
        }
    }
}

/// The arguments of a process.
pub(crate) fn command(process: i32) -> Vec<String> {
    let line = fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The directories of an instance in every hierarchy of cgroups.
fn cgroups(instance: &str) -> Vec<PathBuf> {
    let mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("readable");
    let hierarchies = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup").then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    });
    hierarchies.map(|mount| mount.join("sandhaus").join(instance)).filter(|path| path.exists()).collect()
}

/// Whether virtual machines can be here; aloud, if not. What they are made of is there afterwards.
pub(crate) fn possible(test: &str) -> bool {
    let reason = match qemu() {
        None => Some("qemu-system-x86_64 is not installed"),
        Some(_) if std::env::consts::ARCH != "x86_64" => Some("guests are of another architecture"),
        Some(_) if !rustix::process::geteuid().is_root() => Some("virtual machines need root"),
        Some(_) => None,
    };
    match reason {
        Some(reason) => skip(test, reason),
        None => {
            guest();
        }
    }
    reason.is_none()
}

/// What a shell command inside writes; it must succeed.
pub(crate) async fn sh(toolbox: &Toolbox, command: &str) -> String {
    let argv = ["/bin/sh", "-c", command].map(str::to_owned).into();
    let spawn = Spawn { argv, ..Spawn::default() };
    let mut events = toolbox.spawn(&spawn).await.unwrap_or_else(|error| panic!("{error:?}"));
    let mut said = Vec::new();
    loop {
        match events.next().await.unwrap_or_else(|error| panic!("{error:?}")) {
            Some(Event::Stdout(_, bytes) | Event::Stderr(_, bytes)) => said.extend_from_slice(&bytes),
            Some(Event::Exit(exit)) => {
                let said = String::from_utf8_lossy(&said).into_owned();
                assert_eq!(exit.exit_code, 0, "{command}: {said}");
                return said;
            }
            Some(_) => {}
            None => panic!("the stream ended without an exit"),
        }
    }
}

fn config(directory: &Path, instance: &str, network: &NetworkConfig) -> QemuConfig {
    QemuConfig {
        data_dir: directory.to_owned(),
        instance: instance.to_owned(),
        binary: qemu().expect("it was found before"),
        accelerator: AcceleratorChoice::Tcg,
        probe_dir: directory.join("vm"),
        network: network.clone(),
        cgroup: None,
    }
}

async fn open(directory: &Path, instance: &str, network: &NetworkConfig) -> QemuEngine {
    QemuEngine::open(config(directory, instance, network)).await.unwrap_or_else(|error| panic!("{error:?}"))
}

/// The program that runs machines.
pub(crate) fn qemu() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(QEMU)).find(|path| path.is_file())
}

fn random_instance() -> String {
    let id = SandboxId::random();
    let digits = id.as_str().replace('-', "");
    // An instance's id has twelve digits.
    format!("{digits:0>12}")[..12].to_owned()
}

/// An image without a disk: the guest lives in its initramfs.
fn tree() -> Tree {
    let (kernel, initramfs) = guest();
    let disk = DiskImage {
        layers: Vec::new(),
        kernel: Some(kernel.clone()),
        initramfs: Some(initramfs.clone()),
        command_line: "quiet".to_owned(),
        size_bytes: 0,
    };
    Tree {
        layers: Vec::new(),
        binds: Vec::new(),
        config: sandhaus_images::ImageConfig::default(),
        disk: Some(disk),
    }
}

/// The kernel that all guests of this project's tests have, and an initramfs with the agent; both are kept.
fn guest() -> &'static (PathBuf, PathBuf) {
    static GUEST: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    GUEST.get_or_init(|| {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest");
        // <target>/tmp is for this crate alone, <target>/test-cache for all tests.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a parent").join("test-cache");
        fs_err::create_dir_all(&cache).expect("made");
        let kernel =
            cache.join(format!("guest-kernel-{:016x}", checksum(&recipes, &["kernel.sh", "initramfs-init"])));
        run(Command::new(recipes.join("kernel.sh")).arg(&kernel));
        let initramfs = cache
            .join(format!("guest-machine-{:016x}.cpio", checksum(&recipes, &["kernel.sh", "machine.sh"])));
        run(Command::new(recipes.join("machine.sh")).arg(&kernel).arg(crate::agent::agent()).arg(&initramfs));
        (kernel.join("vmlinuz"), initramfs)
    })
}

/// Changes with the recipe; the same as that of the end-to-end tests, which share the kernel.
fn checksum(folder: &Path, recipe: &[&str]) -> u64 {
    let recipe = recipe.iter().flat_map(|file| fs_err::read(folder.join(file)).expect("read the recipe"));
    recipe
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?} ended with {status}");
}

/// Says loudly that a test did not run, and why, as the end-to-end tests do.
fn skip(name: &str, reason: &str) {
    let line = format!("{name}: {reason}\n");
    std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes()).expect("standard error takes lines");
    if let Some(path) = std::env::var_os("SANDHAUS_TEST_SKIPS") {
        let mut file =
            fs_err::OpenOptions::new().create(true).append(true).open(path).expect("open the skip list");
        file.write_all(line.as_bytes()).expect("write the skip list");
    }
}
