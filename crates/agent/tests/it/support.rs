//! A running agent and a small client of it: blocking, one request per connection, so that a test decides exactly
//! what is on the wire and when.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sandhaus_protocol::{
    frame::{Decoder, Frame, Kind},
    process::{Exit, Spawn},
    shell::{ShellExec, ShellExit},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Longest a test waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long to wait before another look at what announces nothing: whoever only looks leaves no processor to the agent.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A running agent in a folder of its own. Dropping it ends everything it has started.
pub(crate) struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    /// Process id of the agent as this test sees it.
    pub(crate) pid: u32,
}

/// A root shell of its own process namespace, for the agent as PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Root of the namespace, as under the container profile.
    Root,
    /// An unprivileged user without capabilities, as under the strict profile.
    Unprivileged,
}

impl Agent {
    /// By hand, with this shell, or the preferred one.
    pub(crate) fn start(shell: Option<&str>) -> Self {
        Self::start_prepared(shell, |_, _| {})
    }

    /// The same with these variables.
    pub(crate) fn start_with(shell: Option<&str>, variables: &[(&str, &str)]) -> Self {
        Self::start_prepared(shell, |command, _| {
            command.envs(variables.iter().copied());
        })
    }

    /// The same with further preparations of the command and of the agent's folder, which is its home.
    pub(crate) fn start_prepared(shell: Option<&str>, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("work")).expect("create the work directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus-agent"));
        command.arg("--listen").arg(format!("unix:{}", folder.path().join("sock").display()));
        command.arg("--workdir").arg(folder.path().join("work"));
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", folder.path());
        command.env("DAYTONA_DAEMON_LOG_FILE_PATH", folder.path().join("log"));
        if let Some(shell) = shell {
            let program = folder.path().join(if shell.ends_with("busybox") { "ash" } else { "shell" });
            if shell.ends_with("busybox") {
                std::os::unix::fs::symlink(shell, &program).expect("link busybox");
                command.arg("--shell").arg(&program);
            } else {
                command.arg("--shell").arg(shell);
            }
        }
        prepare(&mut command, folder.path());
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("start the agent");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("the agent says it listens");
        assert!(line.starts_with("Starting toolbox server on "), "{line}");
        let pid = child.id();
        Self { child, folder, pid }
    }

    /// As PID 1 of a process namespace. `None`, said aloud, where this user may not make one.
    pub(crate) fn init(who: Who) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to make a process namespace");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let work = folder.path().join("work");
        fs::create_dir(&work).expect("create the work directory");
        let id = if who == Who::Root { 0 } else { 1000 };
        std::os::unix::fs::chown(&work, Some(id), Some(id)).expect("give the work directory away");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).expect("let the workload in");
        let listener = UnixListener::bind(folder.path().join("sock")).expect("bind the socket");
        let boot = serde_json::json!({
            "sandbox_id": "0123abcd-456", "generation": 7, "workdir": work, "warm_shell": true,
            "user": { "uid": id, "gid": id, "name": "sandbox", "home": work, "unprivileged": who == Who::Unprivileged },
            "env": { "PATH": "/usr/local/bin:/usr/bin:/bin", "SECRET_OF_BOOT": "not-for-proc-1" },
            "limits": { "cpu_millis": 500, "memory_bytes": 512 << 20 },
            "entrypoint": ["sh", "-c", "echo entry; echo point >&2; exit 5"],
        });
        fs::write(folder.path().join("boot"), boot.to_string()).expect("write the boot document");
        let script =
            r#"exec 3<&0 4<"$1" 0</dev/null; exec unshare -pf --kill-child --mount-proc "$2" --init"#;
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(folder.path().join("boot"))
            .arg(env!("CARGO_BIN_EXE_sandhaus-agent"))
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .expect("start unshare");
        let mut agent = Self { child, folder, pid: 0 };
        agent.request("GET", "/health", &[], b"");
        let children = format!("/proc/{0}/task/{0}/children", agent.child.id());
        let pid = fs::read_to_string(children).expect("read the namespace's first process");
        agent.pid = pid.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("one child");
        Some(agent)
    }

    /// Asks the agent to end, and leaves it to that.
    pub(crate) fn ask_to_end(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
    }

    /// Waits for the agent's end: whether that was in order.
    pub(crate) fn wait(&mut self) -> bool {
        self.child.wait().expect("it is ours").success()
    }

    /// Its own log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The work directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("sock")).expect("connect to the agent");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time limit");
        stream
    }

    /// Sends a request and leaves the answer to be read.
    pub(crate) fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        exchange(Wire::Unix(self.connect()), method, target, headers, body)
    }

    pub(crate) fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(method, target, headers, body).finish()
    }

    pub(crate) fn post(&self, target: &str, body: &impl Serialize) -> Reply {
        let body = serde_json::to_vec(body).expect("JSON");
        self.request("POST", target, &[("content-type", "application/json")], &body)
    }

    pub(crate) fn get(&self, target: &str) -> Reply {
        self.request("GET", target, &[], b"")
    }

    pub(crate) fn delete(&self, target: &str) -> Reply {
        self.request("DELETE", target, &[], b"")
    }

    /// Starts a command in the default shell and leaves its frames to be read.
    pub(crate) fn shell_stream(&self, cmd: &str, timeout_ms: u64) -> Frames {
        let body = serde_json::to_vec(&ShellExec { cmd: cmd.to_owned(), timeout_ms }).expect("JSON");
        let headers = [("content-type", "application/json")];
        Frames::new(self.send("POST", "/sandhaus/shell/default/exec", &headers, &body))
    }

    /// Runs a command in the default shell: what it printed, and its end.
    pub(crate) fn shell_limited(&self, cmd: &str, timeout_ms: u64) -> (Vec<u8>, ShellExit) {
        let all = self.shell_stream(cmd, timeout_ms).collect();
        (all.stdout, serde_json::from_slice(&all.exit).expect("an exit record"))
    }

    /// The same as text without carriage returns, and the status.
    pub(crate) fn shell(&self, cmd: &str) -> (String, i32) {
        let (output, exit) = self.shell_limited(cmd, 0);
        assert!(!exit.timed_out);
        (String::from_utf8_lossy(&output).replace("\r\n", "\n"), exit.exit_code)
    }

    /// Starts a process and leaves its frames to be read.
    pub(crate) fn spawn(&self, spawn: &Spawn) -> Frames {
        let body = serde_json::to_vec(spawn).expect("JSON");
        Frames::new(self.send("POST", "/sandhaus/process", &[("content-type", "application/json")], &body))
    }

    /// Runs a process to its end.
    pub(crate) fn run(&self, spawn: &Spawn) -> (Collected, Exit) {
        let all = self.spawn(spawn).collect();
        let exit = serde_json::from_slice(&all.exit).expect("an exit record");
        (all, exit)
    }

    /// Memory of the agent that is no file's, in KiB: pages of an executable that was written a moment ago would count as
    /// its own otherwise, or not, as other agents come and go.
    pub(crate) fn private_kib(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).expect("read smaps_rollup");
        let line =
            text.lines().find(|line| line.starts_with("Anonymous:")).expect("a line for private memory");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Open descriptors of the agent.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("list descriptors").count()
    }

    /// Whether the agent has a file open for writing that lies in this folder, under whatever name or none.
    pub(crate) fn holds_a_file_in(&self, folder: &Path) -> bool {
        let folder = folder.canonicalize().expect("a real path");
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("list descriptors").flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|to| to != folder && to.starts_with(&folder))
    }

    /// Living processes below the agent whose command line contains `text`.
    pub(crate) fn descendants_with(&self, text: &str) -> Vec<u32> {
        descendants(self.pid).into_iter().filter(|pid| command_line(*pid).contains(text)).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let below = descendants(self.child.id());
        let _ = self.child.kill();
        for pid in below {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds; fails the test after a long time.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

pub(crate) fn descendants(root: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("list /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let mut fields = stat[stat.rfind(')').map_or(0, |at| at + 1)..].split_whitespace();
        let state = fields.next().unwrap_or_default();
        let parent = fields.next().and_then(|parent| parent.parse::<u32>().ok()).unwrap_or(0);
        if state != "Z" {
            parents.insert(pid, parent);
        }
    }
    let below = |pid: u32| {
        let mut at = pid;
        while let Some(parent) = parents.get(&at) {
            if *parent == root {
                return true;
            }
            at = *parent;
        }
        false
    };
    parents.keys().copied().filter(|pid| below(*pid)).collect()
}

pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Path that a shell named in a test has here; `None`, said aloud, where it is missing.
pub(crate) fn find_shell(name: &str) -> Option<String> {
    let found = ["/bin", "/usr/bin"]
        .iter()
        .map(|folder| format!("{folder}/{name}"))
        .find(|path| Path::new(path).exists());
    if found.is_none() {
        eprintln!("SKIPPED: this machine has no {name}");
    }
    found
}

/// A connection to an agent.
pub(crate) enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Wire {
    fn shut(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
        }
    }
}

/// Sends a request and leaves the answer to be read.
pub(crate) fn exchange(
    mut wire: Wire,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: agent\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    wire.write_all(head.as_bytes()).expect("send the head");
    // A refusal may come before the whole body is taken.
    let _ = wire.write_all(body);
    Answer::read_head(wire)
}

/// An answer whose body is still on the wire.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    reader: BufReader<Wire>,
    remaining: Remaining,
}

enum Remaining {
    Exactly(u64),
    Chunks,
    Nothing,
}

/// A whole answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of a refusal, whose body must have all that the contract asks for.
    pub(crate) fn refusal(&self) -> (u16, String) {
        let body: Value = self.json();
        assert_eq!(body["statusCode"], self.status);
        for field in ["message", "error", "timestamp", "path", "method", "source"] {
            assert!(body[field].is_string(), "{field} is missing: {body}");
        }
        (self.status, body["code"].as_str().expect("a code").to_owned())
    }
}

impl Answer {
    fn read_head(stream: Wire) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("read the status line");
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{line:?}"));
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line).expect("read a header");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let remaining = match headers.get("content-length") {
            Some(length) => Remaining::Exactly(length.parse().expect("a length")),
            None if headers.contains_key("transfer-encoding") => Remaining::Chunks,
            None => Remaining::Nothing,
        };
        Self { status, headers, reader, remaining }
    }

    /// The next piece of the body as it was sent; `None` at its end, an error where the connection breaks off.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.remaining {
            Remaining::Nothing | Remaining::Exactly(0) => Ok(None),
            Remaining::Exactly(length) => {
                let mut piece = vec![0; usize::try_from(length.min(1 << 16)).expect("small")];
                self.reader.read_exact(&mut piece)?;
                self.remaining = Remaining::Exactly(length - piece.len() as u64);
                Ok(Some(piece))
            }
            Remaining::Chunks => {
                let mut line = String::new();
                if self.reader.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's length");
                let mut piece = vec![0; length + 2];
                self.reader.read_exact(&mut piece)?;
                piece.truncate(length);
                if length == 0 {
                    self.remaining = Remaining::Nothing;
                    return Ok(None);
                }
                Ok(Some(piece))
            }
        }
    }

    pub(crate) fn finish(mut self) -> Reply {
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece().expect("the body is whole") {
            body.extend_from_slice(&piece);
        }
        Reply { status: self.status, headers: self.headers, body }
    }

    /// The connection itself, after an upgrade.
    pub(crate) fn into_stream(self) -> BufReader<Wire> {
        self.reader
    }
}

/// Frames as they come.
pub(crate) struct Frames {
    answer: Answer,
    decoder: Decoder,
}

/// Everything a stream carried.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) started: Vec<u8>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Vec<u8>,
    pub(crate) gaps: usize,
}

impl Frames {
    pub(crate) fn new(mut answer: Answer) -> Self {
        if answer.status != 200 {
            let mut body = Vec::new();
            while let Ok(Some(piece)) = answer.next_piece() {
                body.extend_from_slice(&piece);
            }
            panic!("status {}: {}", answer.status, String::from_utf8_lossy(&body));
        }
        assert_eq!(answer.headers["content-type"], sandhaus_protocol::frame::CONTENT_TYPE);
        Self { answer, decoder: Decoder::default() }
    }

    /// The next frame; `None` when the body has ended.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("valid frames") {
                return Some(frame);
            }
            self.decoder.push(&self.answer.next_piece().expect("the stream is whole")?);
        }
    }

    /// Reads until standard output contains `text`; answers all of it.
    pub(crate) fn until(&mut self, text: &str) -> Vec<u8> {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let frame =
                self.next().unwrap_or_else(|| panic!("no {text:?} in {:?}", String::from_utf8_lossy(&seen)));
            if frame.kind == Kind::Stdout {
                seen.extend_from_slice(&frame.payload);
            }
        }
        seen
    }

    /// Everything to the end. Offsets must be without holes but for announced gaps.
    pub(crate) fn collect(mut self) -> Collected {
        let mut all = Collected::default();
        let (mut next_out, mut next_err) = (None, None);
        while let Some(frame) = self.next() {
            assert!(all.exit.is_empty(), "a frame after the exit");
            match frame.kind {
                Kind::Ping => {}
                Kind::Started => all.started = frame.payload,
                Kind::Stdout => {
                    assert_eq!(frame.offset, next_out.unwrap_or(frame.offset), "a hole in standard output");
                    next_out = Some(frame.offset + frame.payload.len() as u64);
                    all.stdout.extend_from_slice(&frame.payload);
                }
                Kind::Stderr => {
                    assert_eq!(frame.offset, next_err.unwrap_or(frame.offset), "a hole in standard error");
                    next_err = Some(frame.offset + frame.payload.len() as u64);
                    all.stderr.extend_from_slice(&frame.payload);
                }
                Kind::Exit => all.exit = frame.payload,
                Kind::GapStdout => {
                    all.gaps += 1;
                    next_out = None;
                }
                Kind::GapStderr => {
                    all.gaps += 1;
                    next_err = None;
                }
            }
        }
        assert!(!all.exit.is_empty(), "no exit record");
        all
    }

    /// The next frame of a stream that is cut; `None` when all that had arrived was read.
    pub(crate) fn next_before_cut(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("valid frames") {
                return Some(frame);
            }
            match self.answer.next_piece() {
                Ok(Some(piece)) => self.decoder.push(&piece),
                Ok(None) => panic!("the stream has ended"),
                Err(_) => return None,
            }
        }
    }

    /// Reads to the end; whether that came without the last record.
    pub(crate) fn breaks_off(mut self) -> bool {
        loop {
            match self.answer.next_piece() {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Goes away without a word.
    pub(crate) fn hang_up(self) {
        self.answer.reader.get_ref().shut().expect("shut the connection");
    }
}

/// A process without more than its arguments.
pub(crate) fn argv(argv: &[&str]) -> Spawn {
    Spawn { argv: argv.iter().map(|a| (*a).to_owned()).collect(), ..Spawn::default() }
}

/// Percent-encodes a query value.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~/".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}
