//! What stands for a virtual machine in tests without one: namespaces with a network, a root and names of their own, and
//! the agent as its service. The test's own thread lives in a network namespace that stands for the host's side.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    thread::LinkNameSpaceType,
};
use sandhaus_protocol::{
    boot::{BootConfig, ShellPreference, Workload},
    frame::Kind,
    guest::{GUEST_ADDRESS, HOST_ADDRESS, PORT},
    hello::{Guest as Told, HelloReply, HelloRequest},
    process::{Exit, Spawn},
    shell::{ShellExec, ShellExit},
};
use serde::Serialize;

use crate::support::{
    Answer, Collected, Frames, PATIENCE, Reply, Wire, argv, command_line, descendants, eventually, exchange,
};

/// The host, as the agent knows it.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::from_octets(HOST_ADDRESS);

/// Somebody else on the same network.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 3);

/// The token of the first greeting.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A running guest. Dropping it ends everything in it.
pub(crate) struct Guest {
    holder: Child,
    machine: Child,
    starts: ChildStdin,
    _folder: tempfile::TempDir,
}

impl Guest {
    /// Starts one, whose agent nobody has greeted. `None`, said aloud, where this user may not make namespaces.
    pub(crate) fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to make namespaces");
            return None;
        }
        let holder =
            Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().expect("start unshare");
        wait_for_network(holder.id());
        enter_network(holder.id());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/guest.sh");
        let mut machine = Command::new("unshare")
            .args([
                "--net",
                "--uts",
                "--mount",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ])
            .arg("sh")
            .arg(script)
            .arg(folder.path())
            .arg(env!("CARGO_BIN_EXE_sandhaus-agent"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start unshare");
        wait_for_network(machine.id());
        let pid = machine.id().to_string();
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "guest", "type", "veth", "peer", "name", "eth0"]);
        ip(&["link", "set", "eth0", "netns", &pid]);
        for address in [HOST, STRANGER] {
            ip(&["address", "add", &format!("{address}/24"), "dev", "guest"]);
        }
        ip(&["link", "set", "guest", "up"]);
        let starts = machine.stdin.take().expect("piped");
        let mut guest = Self { holder, machine, starts, _folder: folder };
        guest.start_agent();
        Some(guest)
    }

    fn start_agent(&mut self) {
        writeln!(self.starts, "start").expect("ask for a start");
        eventually("the agent listens", || connect(HOST).is_ok());
    }

    /// Ends the agent without a word and starts it anew, as a supervisor does.
    pub(crate) fn restart_agent(&mut self) {
        let agent = self.agent_pid();
        let pid = i32::try_from(agent).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("end the agent");
        // Reaped, so that nothing listens for it any more.
        eventually("the agent is gone", || !Path::new(&format!("/proc/{agent}")).exists());
        self.start_agent();
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        let agents = descendants(self.machine.id());
        agents
            .into_iter()
            .find(|pid| command_line(*pid).starts_with("/agent --guest"))
            .expect("the agent runs")
    }

    /// A file of the guest, as the host sees it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.agent_pid()))
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn send_from(
        &self,
        source: Ipv4Addr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let stream = connect(source).expect("connect to the agent");
        exchange(Wire::Tcp(stream), method, target, headers, body)
    }

    pub(crate) fn from(
        &self,
        source: Ipv4Addr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        self.send_from(source, method, target, headers, b"").finish()
    }

    fn post_stream(&self, target: &str, body: &impl Serialize) -> Answer {
        let body = serde_json::to_vec(body).expect("JSON");
        self.send_from(HOST, "POST", target, &[("content-type", "application/json")], &body)
    }

    pub(crate) fn post(&self, target: &str, body: &impl Serialize) -> Reply {
        self.post_stream(target, body).finish()
    }

    /// Greets as the host.
    pub(crate) fn greet(&self, hello: &HelloRequest) -> HelloReply {
        let reply = self.post("/sandhaus/hello", hello);
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }

    /// Starts a process and leaves its frames to be read.
    pub(crate) fn spawn(&self, spawn: &Spawn) -> Frames {
        Frames::new(self.post_stream("/sandhaus/process", spawn))
    }

    /// What a fresh process prints.
    pub(crate) fn output(&self, command: &[&str]) -> String {
        let all: Collected = self.spawn(&argv(command)).collect();
        let exit: Exit = serde_json::from_slice(&all.exit).expect("an exit record");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(exit.exit_code, 0, "{command:?}: {}{}", text(&all.stdout), text(&all.stderr));
        text(&all.stdout)
    }

    /// What a command in the default shell prints.
    pub(crate) fn shell(&self, cmd: &str) -> String {
        let exec = ShellExec { cmd: cmd.to_owned(), timeout_ms: 0 };
        let all = Frames::new(self.post_stream("/sandhaus/shell/default/exec", &exec)).collect();
        let exit: ShellExit = serde_json::from_slice(&all.exit).expect("an exit record");
        assert_eq!(exit.exit_code, 0, "{cmd}");
        String::from_utf8_lossy(&all.stdout).replace("\r\n", "\n")
    }

    /// The standard output of a process from its beginning, up to its end.
    pub(crate) fn output_of(&self, process: u64) -> String {
        let target = format!("/sandhaus/process/{process}/output?stdout=0&stderr=0");
        let all = Frames::new(self.send_from(HOST, "GET", &target, &[], b"")).collect();
        String::from_utf8_lossy(&all.stdout).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for child in [&mut self.machine, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads the first record of a process's stream.
pub(crate) fn process_of(frames: &mut Frames) -> u64 {
    loop {
        let frame = frames.next().expect("a record of the start");
        if frame.kind == Kind::Started {
            let process: sandhaus_protocol::process::Process =
                serde_json::from_slice(&frame.payload).expect("a process");
            return process.id;
        }
    }
}

/// The greeting of a sandbox whose workload is an unprivileged user that the guest does not know.
pub(crate) fn hello(sandbox_id: &str, generation: u64) -> HelloRequest {
    let user = Workload {
        uid: 1000,
        gid: 1000,
        name: "sandbox".to_owned(),
        home: "/home/sandbox".to_owned(),
        unprivileged: true,
    };
    let boot = BootConfig {
        sandbox_id: sandbox_id.to_owned(),
        generation,
        user,
        env: [("OF_BOOT".to_owned(), format!("{sandbox_id}.{generation}"))].into(),
        workdir: "/srv/work".to_owned(),
        shell: ShellPreference::Bash,
        entrypoint: Vec::new(),
        warm_shell: true,
        limits: Default::default(),
    };
    let told = Told {
        boot,
        hostname: format!("host-{sandbox_id}"),
        unix_time_ns: unix_time_ns(),
        entropy: "5a".repeat(64),
        token: TOKEN.to_owned(),
    };
    HelloRequest {
        protocol: 1,
        sandbox_id: sandbox_id.to_owned(),
        generation,
        env: Default::default(),
        guest: Some(Box::new(told)),
        ssh: None,
    }
}

/// The time now.
pub(crate) fn unix_time_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_nanos()).expect("before 2262")
}

fn connect(source: Ipv4Addr) -> std::io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
    rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::from(GUEST_ADDRESS), PORT)))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn network_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn wait_for_network(pid: u32) {
    let own = fs::read_link("/proc/thread-self/ns/net").expect("a network namespace");
    eventually("a network of its own", || network_of(pid).is_some_and(|network| network != own));
}

/// Takes this thread, and what it starts from now on, to the network of a process.
fn enter_network(pid: u32) {
    let network = File::open(format!("/proc/{pid}/ns/net")).expect("open its network");
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("enter its network");
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("start ip");
    assert!(status.success(), "ip {arguments:?}");
}
