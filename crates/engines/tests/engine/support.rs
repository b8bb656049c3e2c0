//! An engine on a scratch instance, an image of busybox, and eyes on what the kernel keeps.

use std::{
    collections::BTreeMap,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use sandhaus_engines::namespace::{NamespaceConfig, NamespaceEngine};
use sandhaus_protocol::{hello::HelloRequest, process::Spawn, ssh::Access};
use sandhaus_sandbox::{
    engine::{Boot, Engine, MachineSpec},
    toolbox::{Base, Event, Toolbox},
    types::{Generation, NetworkPolicy, Resources, SandboxId, SecurityProfile, Tree},
};

pub(crate) use crate::agent::agent;
use crate::dialled::Dialled;

/// The helper of this crate's tests.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_engine-test-helper");

/// A scratch instance.
pub(crate) struct Host {
    pub(crate) engine: Arc<NamespaceEngine>,
    pub(crate) instance: String,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) tree: Tree,
}

/// How a command inside ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    /// A fresh instance with an engine.
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = busybox_tree(&directory.path().join("image"));
        let instance = random_instance();
        let engine = open(directory.path(), &instance).await;
        Self { engine: Arc::new(engine), instance, directory, tree }
    }

    /// Another engine on the same instance, as after a restart.
    pub(crate) async fn reopen(&mut self) {
        self.engine = Arc::new(open(self.directory.path(), &self.instance).await);
    }

    pub(crate) fn spec(&self, security: SecurityProfile) -> MachineSpec {
        MachineSpec {
            id: SandboxId::random(),
            generation: Generation(1),
            tree: self.tree.clone(),
            snapshot: None,
            resources: Resources { cpu_millis: 2000, memory_bytes: 256 << 20, pids: 128, disk_bytes: 0 },
            network: NetworkPolicy::None,
            security,
            readonly_root: security == SecurityProfile::Strict,
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
        self.engine.materialize(spec).await.expect("the disk is made");
        self.start(spec).await
    }

    /// Starts the machine on its disk and greets the agent.
    pub(crate) async fn start(&self, spec: &MachineSpec) -> Toolbox {
        self.engine.start(spec, Boot::Cold).await.unwrap_or_else(|error| panic!("{error:?}"));
        self.greet(spec).await
    }

    pub(crate) async fn greet(&self, spec: &MachineSpec) -> Toolbox {
        self.greet_with(spec, None).await
    }

    /// The same, and tells who may come in by the sandbox's own doors.
    pub(crate) async fn greet_with(&self, spec: &MachineSpec, access: Option<Access>) -> Toolbox {
        let toolbox = self.toolbox(&spec.id);
        let hello = HelloRequest {
            protocol: sandhaus_protocol::PROTOCOL_VERSION,
            sandbox_id: spec.id.to_string(),
            generation: spec.generation.0,
            env: BTreeMap::new(),
            guest: None,
            ssh: access.map(Box::new),
        };
        toolbox.hello(&hello).await.unwrap_or_else(|error| panic!("{error:?}"));
        toolbox
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
        assert_eq!(left_behind(self.directory.path(), &self.instance), Vec::<String>::new());
    }
}

impl Drop for Host {
    /// Machines outlive their engine by design, but not a test that failed.
    fn drop(&mut self) {
        let mounts = mounts_of("self");
        let unified = mounts.iter().filter_map(MountLine::cgroup_mount).map(|mount| {
            let path = mount.join("sandhaus").join(&self.instance);
            for machine in fs_err::read_dir(&path).into_iter().flatten().flatten() {
                let _ = fs_err::write(machine.path().join("cgroup.kill"), "1");
            }
            path
        });
        for path in unified.collect::<Vec<_>>() {
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

/// Runs a shell command inside.
pub(crate) async fn sh(toolbox: &Toolbox, command: &str) -> Done {
    run(toolbox, &["/bin/sh", "-c", command]).await
}

/// Runs a program inside.
pub(crate) async fn run(toolbox: &Toolbox, argv: &[&str]) -> Done {
    let spawn = Spawn { argv: argv.iter().map(ToString::to_string).collect(), ..Spawn::default() };
    let mut events = toolbox.spawn(&spawn).await.unwrap_or_else(|error| panic!("{error:?}"));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match events.next().await.unwrap_or_else(|error| panic!("{error:?}")) {
            Some(Event::Stdout(_, bytes)) => stdout.extend_from_slice(&bytes),
            Some(Event::Stderr(_, bytes)) => stderr.extend_from_slice(&bytes),
            Some(Event::Exit(exit)) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return Done { code: exit.exit_code, stdout: text(stdout), stderr: text(stderr) };
            }
            Some(_) => {}
            None => panic!("the stream ended without an exit"),
        }
    }
}

pub(crate) fn config(directory: &Path, instance: &str) -> NamespaceConfig {
    NamespaceConfig {
        data_dir: directory.to_owned(),
        instance: instance.to_owned(),
        launcher: PathBuf::from(HELPER),
        agent: agent_bytes(),
        agent_digest: "tested",
        agent_dir: directory.join("agent"),
        network: sandhaus_engines::net::NetworkConfig::default(),
        cgroup: None,
    }
}

pub(crate) async fn open(directory: &Path, instance: &str) -> NamespaceEngine {
    NamespaceEngine::open(config(directory, instance)).await.unwrap_or_else(|error| panic!("{error:?}"))
}

pub(crate) fn random_instance() -> String {
    let id = SandboxId::random();
    id.as_str().replace('-', "").chars().chain(std::iter::once('e')).collect()
}

fn agent_bytes() -> &'static [u8] {
    static AGENT: OnceLock<Vec<u8>> = OnceLock::new();
    AGENT.get_or_init(|| fs_err::read(agent()).expect("the agent is built"))
}

/// The probe that makes system calls inside, static.
pub(crate) fn probe() -> PathBuf {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        // Test binaries run side by side: each has its own.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
        let status = Command::new("rustc")
            .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-o"])
            .arg(&path)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/probe.rs"))
            .status()
            .expect("rustc runs");
        assert!(status.success(), "the probe does not build");
        path
    };
    PROBE.get_or_init(build).clone()
}

/// A root file system of busybox alone, under the scaffold that every image has.
pub(crate) fn busybox_tree(directory: &Path) -> Tree {
    let (scaffold, base) = (directory.join("scaffold"), directory.join("base"));
    for (path, mode) in sandhaus_images::SCAFFOLD_DIRS {
        let path = scaffold.join(path);
        fs_err::create_dir_all(&path).expect("made");
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("set");
    }
    let home = scaffold.join("home/sandbox");
    chown(&home, Some(sandhaus_images::WORKLOAD_ID), Some(sandhaus_images::WORKLOAD_ID)).expect("given");
    let passwd = "root:x:0:0::/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/sh\n";
    fs_err::write(scaffold.join("etc/passwd"), passwd).expect("written");
    fs_err::write(scaffold.join("etc/group"), "root:x:0:\nsandbox:x:1000:\n").expect("written");

    let bin = base.join("bin");
    fs_err::create_dir_all(&bin).expect("made");
    fs_err::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs").stdout;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", bin.join(applet)).expect("linked");
    }
    Tree {
        layers: vec![scaffold, base],
        binds: Vec::new(),
        config: sandhaus_images::ImageConfig::default(),
        disk: None,
    }
}

/// What of an instance exists in the kernel or on disk beyond its empty directories.
pub(crate) fn left_behind(directory: &Path, instance: &str) -> Vec<String> {
    let mut left = Vec::new();
    for mount in mounts_of("self") {
        let Some(hierarchy) = mount.cgroup_mount() else { continue };
        let path = hierarchy.join("sandhaus").join(instance);
        if path.exists() {
            left.push(format!("cgroup {}", path.display()));
        }
    }
    let text = directory.to_string_lossy().into_owned();
    for process in processes() {
        if process == std::process::id() {
            continue;
        }
        let cgroup = fs_err::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        let command = fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let status = fs_err::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        if status.contains("State:\tZ") {
            // It has ended; when its new parent, the host's init, takes notice is not ours to say.
            continue;
        }
        if cgroup.contains(instance) || command.contains(&text) {
            left.push(format!("process {process} {command:?}"));
        }
        let mounts = mounts_of(&process.to_string());
        left.extend(
            mounts.iter().filter(|mount| mount.0.contains(&text)).map(|mount| format!("mount {}", mount.0)),
        );
    }
    for device in fs_err::read_dir("/sys/block").expect("readable").flatten() {
        let file = fs_err::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(&text) {
            left.push(format!("loop device on {file}"));
        }
    }
    for name in ["machines", "disks"] {
        for entry in fs_err::read_dir(directory.join(name)).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with('.') {
                left.push(format!("file {}", entry.path().display()));
            }
        }
    }
    left
}

/// Moves the calling thread, and whatever it starts, into a network namespace of its own, far from the host's.
pub(crate) fn leave_the_network() {
    use std::io::{BufRead as _, Write as _};
    let mut holder = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("unshare is installed");
    // Once it answers, it is where it is to be.
    let mut lines = std::io::BufReader::new(holder.stdout.take().expect("piped"));
    let mut stdin = holder.stdin.take().expect("piped");
    stdin.write_all(b"there\n").expect("it reads");
    lines.read_line(&mut String::new()).expect("it answers");
    let namespace = fs_err::File::open(format!("/proc/{}/ns/net", holder.id())).expect("it lives");
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), None).expect("root may");
    drop(stdin);
    holder.wait().expect("it ends with its input");
}

/// All processes of the host.
pub(crate) fn processes() -> Vec<u32> {
    let entries = fs_err::read_dir("/proc").expect("readable");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

struct MountLine(String);

impl MountLine {
    fn cgroup_mount(&self) -> Option<PathBuf> {
        let (mount, kind) = self.0.split_once(" - ")?;
        kind.starts_with("cgroup").then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    }
}

fn mounts_of(process: &str) -> Vec<MountLine> {
    let text = fs_err::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.lines().map(|line| MountLine(line.to_owned())).collect()
}
