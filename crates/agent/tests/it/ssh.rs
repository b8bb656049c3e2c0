//! SSH, against OpenSSH's own client, sftp and scp: an agent by hand, and one in what stands for a virtual machine.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use sandhaus_protocol::{hello::HelloRequest, ssh::Access};
use serde_json::json;

use crate::{
    machine::{Guest, HOST, STRANGER, hello},
    support::{Wire, command_line, descendants, eventually, exchange},
};

/// What everybody must show who has no key.
pub(crate) const SECRET: &str = "secret-of-the-sandbox-0123456789";

/// Longest that a client may run, in seconds.
const CLIENT_SECONDS_MAX: &str = "120";

/// Whether this machine has a client; said aloud where it has none.
fn has_client() -> bool {
    let found = Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED: this machine has no ssh");
    }
    found
}

/// An agent by hand with its doors open, and the files of its clients.
pub(crate) struct Host {
    agent: Child,
    folder: tempfile::TempDir,
    pub(crate) ssh_port: u16,
    pub(crate) terminal_port: u16,
}

impl Host {
    /// `None`, said aloud, where there is no client.
    fn start() -> Option<Self> {
        has_client().then(Self::open)
    }

    /// The same where no client is needed.
    pub(crate) fn open() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("work")).expect("create the work directory");
        fs::write(path("secret"), format!("{SECRET}\n")).expect("write the secret");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus-agent"));
        command.arg("--listen").arg(format!("unix:{}", path("sock").display()));
        command.arg("--workdir").arg(path("work")).arg("--ssh-secret-file").arg(path("secret"));
        command.args(["--ssh-port", "0", "--terminal-port", "0"]);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", folder.path());
        let mut agent = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("start the agent");
        let mut lines = BufReader::new(agent.stdout.take().expect("piped")).lines();
        let mut port = |name: &str| {
            let start = format!("Starting {name} server on port ");
            let mut lines = (&mut lines).map(|line| line.expect("the agent says where it listens"));
            let line = lines.find(|line| line.starts_with(&start)).expect("it listens");
            line[start.len()..].parse().expect("a port")
        };
        let (terminal_port, ssh_port) = (port("terminal"), port("SSH"));
        Self { agent, folder, ssh_port, terminal_port }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> Client {
        Client::new(self.folder.path().to_owned(), "127.0.0.1", self.ssh_port)
    }

    /// Tells who may come in from now on.
    pub(crate) fn tell(&self, access: &Access) -> u16 {
        let body = serde_json::to_vec(access).expect("JSON");
        let stream = UnixStream::connect(self.path("sock")).expect("connect");
        let headers = [("content-type", "application/json")];
        exchange(Wire::Unix(stream), "POST", "/sandhaus/ssh", &headers, &body).finish().status
    }

    /// Living processes below the agent whose command line contains `text`.
    pub(crate) fn descendants_with(&self, text: &str) -> Vec<u32> {
        descendants(self.agent.id()).into_iter().filter(|pid| command_line(*pid).contains(text)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let below = descendants(self.agent.id());
        let _ = self.agent.kill();
        for pid in below {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.agent.wait();
    }
}

/// Somebody who comes in.
struct Client {
    folder: PathBuf,
    address: String,
    port: u16,
    secret: String,
    key: Option<PathBuf>,
    options: Vec<String>,
}

impl Client {
    fn new(folder: PathBuf, address: &str, port: u16) -> Self {
        let (address, secret) = (address.to_owned(), SECRET.to_owned());
        Self { folder, address, port, secret, key: None, options: Vec::new() }
    }

    fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// A program of OpenSSH's with what they all need. Whatever goes wrong, it ends.
    fn program(&self, name: &str, port_option: &str) -> Command {
        let ask = self.folder.join(format!("ask-{}", self.secret));
        if !ask.exists() {
            fs::write(&ask, format!("#!/bin/sh\necho '{}'\n", self.secret)).expect("write the script");
            fs::set_permissions(&ask, fs::Permissions::from_mode(0o700)).expect("make it a program");
        }
        let mut command = Command::new("timeout");
        command.args([CLIENT_SECONDS_MAX, name, "-F", "none"]);
        // What comes first holds.
        command.args(&self.options);
        // With commands from a file, sftp would not ask for a password.
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=no",
            "NumberOfPasswordPrompts=1",
        ] {
            command.args(["-o", option]);
        }
        command.arg(port_option).arg(self.port.to_string());
        match &self.key {
            Some(key) => command.args(["-o", "PasswordAuthentication=no", "-i"]).arg(key),
            None => command.args(["-o", "PubkeyAuthentication=no"]),
        };
        command.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").env_remove("SSH_AUTH_SOCK");
        command.stdin(Stdio::null());
        command
    }

    fn ssh(&self) -> Command {
        let mut command = self.program("ssh", "-p");
        command.arg(format!("anybody@{}", self.address));
        command
    }

    fn run(&self, words: &str) -> Output {
        self.ssh().arg(words).output().expect("run ssh")
    }

    /// What a command prints that must not fail.
    fn output(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).expect("a text")
    }

    /// Starts a command that says when it is there, and goes on until its input ends.
    fn start(&self) -> Child {
        let mut command = self.ssh();
        command.arg("echo ready; cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run ssh");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it runs");
        child
    }

    /// Ends it as its user would.
    fn end(mut child: Child) {
        drop(child.stdin.take());
        assert!(child.wait().expect("an end").success());
    }

    fn sftp(&self, commands: &str) -> String {
        let mut command = self.program("sftp", "-P");
        // Of the program that `timeout` starts: no other end of line, and the first error is the end.
        command.args(["-q", "-b", "-"]).arg(format!("anybody@{}", self.address));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(&self.folder)
            .spawn()
            .expect("run sftp");
        child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("say what to do");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{commands}: {output:?}");
        String::from_utf8(output.stdout).expect("a text")
    }
}

/// Bytes that repeat nowhere near.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.extend_from_slice(&state.rotate_left(23).to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Gives back what it is sent, once the sender has said that it is all.
fn answer_backwards(mut stream: impl std::io::Read + std::io::Write) {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    all.reverse();
    let _ = stream.write_all(&all);
}

fn tcp_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_backwards(stream));
        }
    });
    port
}

fn local_server(path: &Path) {
    let listener = UnixListener::bind(path).expect("bind");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_backwards(stream));
        }
    });
}

fn ask_local(path: &Path) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).expect("connect");
    let sent = content(300_000);
    stream.write_all(&sent).expect("send");
    stream.shutdown(Shutdown::Write).expect("say that it is all");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("receive");
    received.reverse();
    received
}

fn ask_tcp(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.write_all(b"abc").expect("send");
    stream.shutdown(Shutdown::Write).expect("say that it is all");
    let mut received = String::new();
    stream.read_to_string(&mut received).expect("receive");
    assert_eq!(received, "cba");
}

#[test]
fn commands() {
    let Some(host) = Host::start() else { return };
    let client = host.client();
    let output = client.run("echo out; echo err >&2; pwd; exit 7");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("out\n{}\n", host.path("work").display()));
    assert_eq!(output.stderr, b"err\n");
    // Its shell's status for what is not there, and a signal.
    assert_eq!(client.run("exec /no/such/program").status.code(), Some(127));
    let killed = client.run("kill -TERM $$");
    assert_eq!(killed.status.code(), Some(255), "{killed:?}");
    let variables = host.client().with(&["-o", "SetEnv=OF_CLIENT=yes"]);
    assert_eq!(variables.output("echo $OF_CLIENT"), "yes\n");
    // Whatever runs on in the background holds nobody up.
    assert_eq!(client.output("sleep 1000 & echo there"), "there\n");
    // Its input ends, and it goes on.
    let mut command = client.ssh();
    command.arg("wc -c; echo after").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("run ssh");
    child.stdin.take().expect("piped").write_all(&content(1_000_000)).expect("send");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1000000\nafter\n");
    // Without a command, what is sent is what the shell reads.
    let mut shell = client.ssh().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run ssh");
    shell.stdin.take().expect("piped").write_all(b"echo $((6 * 7))\nexit 3\n").expect("send");
    let output = shell.wait_with_output().expect("an end");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"42\n"[..]), "{output:?}");
}

#[test]
fn a_client_that_goes_away_takes_its_command_along() {
    let Some(host) = Host::start() else { return };
    let mut command = host.client().ssh();
    let mut child =
        command.arg("echo ready; sleep 98765; true").stdout(Stdio::piped()).spawn().expect("run ssh");
    let mut ready = [0; 6];
    child.stdout.take().expect("piped").read_exact(&mut ready).expect("it runs");
    eventually("it sleeps", || !host.descendants_with("sleep 98765").is_empty());
    for pid in descendants(child.id()) {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    child.wait().expect("an end");
    eventually("it is gone", || host.descendants_with("sleep 98765").is_empty());
}

#[test]
fn files_of_any_size_both_ways() {
    let Some(host) = Host::start() else { return };
    let client = host.client();
    let big = content(50 << 20);
    fs::write(host.path("big"), &big).expect("write");
    client.sftp("put big\nget big back\n");
    assert!(fs::read(host.path("work/big")).expect("read") == big, "it arrived whole");
    assert!(fs::read(host.path("back")).expect("read") == big, "it came back whole");
    // Taken up again in the middle.
    let half = big.len() / 2;
    fs::write(host.path("work/big"), &big[..half]).expect("write");
    fs::write(host.path("back"), &big[..half]).expect("write");
    client.sftp("reput big\nreget big back\n");
    assert!(fs::read(host.path("work/big")).expect("read") == big, "the rest arrived");
    assert!(fs::read(host.path("back")).expect("read") == big, "the rest came back");
    // The way of scp today, and as it was.
    for (name, way) in [("new", &[][..]), ("old", &["-O"][..])] {
        let mut scp = client.program("scp", "-P");
        let there = format!("anybody@127.0.0.1:{name}");
        let output = scp.args(way).arg("-p").arg(host.path("big")).arg(&there).output().expect("run scp");
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(host.path("work").join(name)).expect("read") == big, "{name}");
        let mut scp = client.program("scp", "-P");
        let output = scp.args(way).arg(&there).arg(host.path("back")).output().expect("run scp");
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(host.path("back")).expect("read") == big, "{name}");
    }
}

#[test]
fn what_sftp_does_to_files() {
    let Some(host) = Host::start() else { return };
    let client = host.client();
    fs::write(host.path("small"), "small").expect("write");
    fs::set_permissions(host.path("small"), fs::Permissions::from_mode(0o754)).expect("chmod");
    client.sftp("mkdir d\nput -p small d/ä€\nln -s ä€ d/link\nln d/ä€ d/second\n");
    let work = host.path("work");
    let stat = fs::metadata(work.join("d/ä€")).expect("it is there");
    assert_eq!((stat.mode() & 0o7777, stat.len(), stat.nlink()), (0o754, 5, 2));
    assert_eq!(stat.mtime(), fs::metadata(host.path("small")).expect("stat").mtime());
    assert_eq!(fs::read_link(work.join("d/link")).expect("a link"), Path::new("ä€"));
    let listed = client.sftp("ls -1 d\nls -l d\npwd\n");
    assert!(
        listed.contains("d/ä€\n") && listed.contains("-rwxr-xr--") && listed.contains("lrwxrwxrwx"),
        "{listed}"
    );
    assert!(listed.contains(&work.canonicalize().expect("there").display().to_string()), "{listed}");
    // In the place of another file, too.
    client.sftp("chmod 600 d/ä€\nrm d/link\nput small d/other\nrename d/ä€ d/other\nrm d/second\n");
    assert_eq!(fs::read_dir(work.join("d")).expect("list").count(), 1);
    assert_eq!(fs::metadata(work.join("d/other")).expect("stat").mode() & 0o7777, 0o600);
    // Trees, and more names than one answer holds.
    fs::create_dir_all(host.path("tree/deep")).expect("create");
    for number in 0..300 {
        fs::write(host.path("tree/deep").join(number.to_string()), number.to_string()).expect("write");
    }
    client.sftp("put -r tree\nget -r tree copy\nrm d/other\nrmdir d\n");
    for number in 0..300 {
        let copied = fs::read_to_string(host.path("copy/deep").join(number.to_string())).expect("read");
        assert_eq!(copied, number.to_string());
    }
    assert!(!work.join("d").exists());
    // What is no file waits for nobody.
    let made = Command::new("mkfifo").arg(work.join("pipe")).status().expect("run mkfifo");
    assert!(made.success());
    client.sftp("-get pipe nothing\n-get missing\n-put small /proc/no\nls\n");
}

/// The clients' side of a terminal.
struct Screen {
    child: Child,
    keyboard: fs::File,
    screen: fs::File,
    seen: String,
}

impl Screen {
    fn start(client: &Client, words: &str) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("the other side may be opened");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the other side");
        Self::resize(&master, 90, 30);
        let ssh = client.ssh();
        let mut command = Command::new("setsid");
        // Its size changes are told only to whom the terminal controls.
        command.args(["--ctty", "--wait"]).args(ssh.get_args().skip(1)).args(["-tt", words]);
        command.envs(ssh.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let other = |slave: &OwnedFd| Stdio::from(slave.try_clone().expect("a second descriptor"));
        let child = command.stdin(other(&slave)).stdout(other(&slave)).stderr(other(&slave)).spawn();
        let screen = fs::File::from(master.try_clone().expect("a second descriptor"));
        Self { child: child.expect("run ssh"), keyboard: master.into(), screen, seen: String::new() }
    }

    fn resize(master: impl std::os::fd::AsFd, cols: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size).expect("resize");
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("type");
    }

    fn until(&mut self, text: &str) {
        self.until_any(&[text]);
    }

    /// Reads until one of these is there; what was read up to it is gone.
    fn until_any<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        let mut buffer = [0; 4096];
        loop {
            let found = texts.iter().filter_map(|text| Some((self.seen.find(text)?, *text))).min();
            if let Some((at, text)) = found {
                self.seen.drain(..at + text.len());
                return text;
            }
            let read = self.screen.read(&mut buffer).unwrap_or(0);
            assert!(read > 0, "none of {texts:?} in {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        for pid in descendants(self.child.id()) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn terminals() {
    let Some(host) = Host::start() else { return };
    let words = "echo $TERM; while stty size; do read line || break; done";
    let mut screen = Screen::start(&host.client(), words);
    screen.until("xterm\r\n30 90\r\n");
    Screen::resize(&screen.keyboard, 100, 40);
    // The change travels on its own: asked until it is there.
    loop {
        screen.type_in("\n");
        if screen.until_any(&["30 90\r\n", "40 100\r\n"]) == "40 100\r\n" {
            break;
        }
    }
    // What is typed there interrupts here; of a signal the client says no more than that.
    screen.type_in("\x03");
    assert_eq!(screen.child.wait().expect("an end").code(), Some(255));
    let mut shell = Screen::start(&host.client(), "exec cat");
    shell.type_in("some words\n");
    shell.until("some words\r\nsome words\r\n");
    shell.type_in("\x04");
    assert_eq!(shell.child.wait().expect("an end").code(), Some(0));
}

#[test]
fn forwards_in_both_directions() {
    let Some(host) = Host::start() else { return };
    let port = tcp_server();
    local_server(&host.path("server"));
    let place = |name: &str| host.path(name).display().to_string();
    let client = host.client().with(&[
        "-o",
        "ExitOnForwardFailure=yes",
        // It says then which port it got.
        "-o",
        "LogLevel=INFO",
        "-L",
        &format!("{}:127.0.0.1:{port}", place("to-port")),
        "-L",
        &format!("{}:localhost:{port}", place("to-name")),
        "-L",
        &format!("{}:{}", place("to-socket"), place("server")),
        "-R",
        &format!("0:127.0.0.1:{port}"),
        "-R",
        &format!("{}:{}", place("from-socket"), place("server")),
    ]);
    let mut running = client.start();
    for name in ["to-port", "to-name", "to-socket", "from-socket"] {
        let received = ask_local(&host.path(name));
        assert!(received == content(300_000), "{name}: {} bytes came back", received.len());
    }
    let mut said = String::new();
    let mut stderr = BufReader::new(running.stderr.take().expect("piped"));
    while !said.contains("Allocated port") {
        assert!(stderr.read_line(&mut said).expect("it says which port") > 0, "{said}");
    }
    let allocated = said.split("Allocated port ").nth(1).and_then(|rest| rest.split(' ').next());
    ask_tcp(allocated.and_then(|port| port.parse().ok()).expect("a port"));
    // One who listens there may see it is the workload's, and nobody else may connect.
    assert_eq!(fs::metadata(host.path("from-socket")).expect("a socket").mode() & 0o777, 0o600);
    // Where nobody listens: the connection is there and then is not.
    let nowhere = host.client().with(&["-L", &format!("{}:{}", place("to-nothing"), place("nothing"))]);
    let other = nowhere.start();
    let mut stream = UnixStream::connect(host.path("to-nothing")).expect("connect");
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    Client::end(other);
    Client::end(running);
    eventually("its socket went with it", || !host.path("from-socket").exists());
}

#[test]
fn keys_of_the_clients_agent() {
    let Some(host) = Host::start() else { return };
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", "ed25519", "-f"])
        .arg(host.path("key"))
        .status();
    assert!(made.expect("run ssh-keygen").success());
    let socket = host.path("agent");
    let mut agent = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
    let agent = agent.as_mut().expect("run ssh-agent");
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    let added =
        Command::new("ssh-add").arg("-q").arg(host.path("key")).env("SSH_AUTH_SOCK", &socket).status();
    assert!(added.expect("run ssh-add").success());
    let client = host.client().with(&["-A"]);
    let mut command = client.ssh();
    command.env("SSH_AUTH_SOCK", &socket).arg("echo $SSH_AUTH_SOCK; stat -c %a $SSH_AUTH_SOCK; ssh-add -L");
    let output = command.output().expect("run ssh");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let path = PathBuf::from(lines.next().unwrap_or_default());
    assert_eq!(lines.next(), Some("600"), "{output:?}");
    let key = fs::read_to_string(host.path("key.pub")).expect("read the key");
    assert_eq!(lines.next(), Some(key.trim_end()), "{output:?}");
    eventually("it went with its session", || !path.parent().is_some_and(Path::exists));
    assert_eq!(host.client().run("echo $SSH_AUTH_SOCK").stdout, b"\n");
    agent.kill().and_then(|()| agent.wait()).expect("end ssh-agent");
}

#[test]
fn who_may_come_in() {
    let Some(host) = Host::start() else { return };
    let wrong = Client { secret: "another-secret-0123456789".to_owned(), ..host.client() };
    assert_eq!(wrong.run("true").status.code(), Some(255));
    assert_eq!(host.client().output("echo in"), "in\n");
    for kind in ["ed25519", "rsa"] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(host.path(kind)).status();
        assert!(made.expect("run ssh-keygen").success());
    }
    let key = |kind: &str| fs::read_to_string(host.path(kind).with_extension("pub")).expect("read the key");
    let with_key = |kind: &str| Client { key: Some(host.path(kind)), ..host.client() };
    assert_eq!(with_key("ed25519").run("true").status.code(), Some(255), "nobody has told of it");
    // Told anew: what held before does not any more.
    let access = Access { authorized_keys: vec![key("ed25519")], ..Access::default() };
    assert_eq!(host.tell(&access), 204);
    assert_eq!(with_key("ed25519").output("echo in"), "in\n");
    assert_eq!(with_key("rsa").run("true").status.code(), Some(255));
    assert_eq!(host.client().run("true").status.code(), Some(255), "the secret is no more");
    let access = Access { authorized_keys: vec![key("rsa"), key("ed25519")], ..access };
    assert_eq!(host.tell(&access), 204);
    assert_eq!(with_key("rsa").output("echo in"), "in\n");
    // What cannot be taken changes nothing.
    let broken = Access { authorized_keys: vec!["no key".to_owned()], ..Access::default() };
    assert_eq!(host.tell(&broken), 400);
    assert_eq!(with_key("rsa").output("echo in"), "in\n");
    // Nobody: then nothing listens.
    assert_eq!(host.tell(&Access::default()), 204);
    eventually("the door is shut", || TcpStream::connect(("127.0.0.1", host.ssh_port)).is_err());
}

#[test]
fn many_commands_over_one_connection() {
    let Some(host) = Host::start() else { return };
    let socket = format!("ControlPath={}", host.path("control").display());
    let master = host.client().with(&["-M", "-o", &socket]).start();
    let client = host.client().with(&["-o", &socket]);
    let children: Vec<_> = (0..20)
        .map(|number| {
            let mut command = client.ssh();
            command.arg(format!("head -c 200000 /dev/zero; exit {number}")).stdout(Stdio::piped());
            (number, command.spawn().expect("run ssh"))
        })
        .collect();
    for (number, child) in children {
        let output = child.wait_with_output().expect("an end");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(number), 200_000), "{output:?}");
    }
    Client::end(master);
}

#[test]
fn quiet_clients_are_kept() {
    let Some(host) = Host::start() else { return };
    let client = host.client().with(&["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"]);
    assert_eq!(client.output("sleep 4; echo still"), "still\n");
}

#[test]
fn somebody_who_says_nothing_keeps_nobody_out() {
    let Some(host) = Host::start() else { return };
    let silent: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", host.ssh_port)).expect("connect");
            let mut line = [0; 8];
            stream.read_exact(&mut line).expect("a greeting");
            stream
        })
        .collect();
    assert_eq!(host.client().output("echo in"), "in\n");
    drop(silent);
}

/// A greeting that says who may come in.
fn greeting(access: Access) -> HelloRequest {
    HelloRequest { ssh: Some(Box::new(access)), ..hello("one", 1) }
}

#[test]
fn in_a_machine_everything_is_the_workloads() {
    let Some(guest) = Guest::start().filter(|_| has_client()) else { return };
    guest.greet(&hello("one", 1));
    let address = ("192.168.0.2", sandhaus_protocol::ssh::PORT);
    assert!(TcpStream::connect(address).is_err(), "nobody was told who may come in");
    let folder = tempfile::tempdir().expect("a temporary folder");
    guest.greet(&greeting(Access { secret: Some(SECRET.to_owned()), ..Access::default() }));
    let client = || Client::new(folder.path().to_owned(), address.0, address.1);
    assert_eq!(client().output("id -u; id -g; pwd"), "1000\n1000\n/srv/work\n");
    fs::write(folder.path().join("file"), "of the workload").expect("write");
    client().sftp("put file\n-put file /etc/file\n-get /etc/shadow\n");
    assert_eq!(guest.output(&["stat", "-c", "%u %a", "/srv/work/file"]), "1000 644\n");
    assert!(!guest.path("/etc/file").exists());
    // Who answers at a socket sees the workload, and not the agent.
    let server = "import os, socket, struct\n\
                  server = socket.socket(socket.AF_UNIX)\n\
                  server.bind('/srv/work/who')\n\
                  os.chmod('/srv/work/who', 0o777)\n\
                  server.listen()\n\
                  peer, _ = server.accept()\n\
                  seen = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)\n\
                  peer.sendall(str(struct.unpack('3i', seen)[1:]).encode())\n";
    let _frames = guest.spawn(&crate::support::argv(&["python3", "-c", server]));
    eventually("it listens", || guest.path("/srv/work/who").exists());
    let place = folder.path().join("who");
    let forward = format!("{}:/srv/work/who", place.display());
    let running = client().with(&["-o", "ExitOnForwardFailure=yes", "-L", &forward]).start();
    let mut seen = String::new();
    UnixStream::connect(&place).and_then(|mut stream| stream.read_to_string(&mut seen)).expect("an answer");
    assert_eq!(seen, "(1000, 1000)");
    Client::end(running);
    // Ports of the privileged are not to be had through the agent.
    let privileged = client().with(&["-o", "ExitOnForwardFailure=yes", "-R", "80:127.0.0.1:1"]);
    assert_eq!(privileged.run("true").status.code(), Some(255));
    // Only the host tells who may come in.
    let body = serde_json::to_vec(&Access::default()).expect("JSON");
    let token = format!("Bearer {}", crate::machine::TOKEN);
    let headers = [("content-type", "application/json"), ("authorization", token.as_str())];
    let told = |source| guest.send_from(source, "POST", "/sandhaus/ssh", &headers, &body).finish().status;
    assert_eq!((told(STRANGER), told(HOST)), (403, 204));
    eventually("the door is shut", || TcpStream::connect(address).is_err());
}

#[test]
fn the_rescue_door_opens_when_the_agent_hangs() {
    let Some(guest) = Guest::start().filter(|_| has_client()) else { return };
    let address = ("192.168.0.2", sandhaus_protocol::ssh::RESCUE_PORT);
    guest.greet(&greeting(Access { secret: Some(SECRET.to_owned()), ..Access::default() }));
    assert!(TcpStream::connect(address).is_err(), "it is off unless wanted");
    let rescue = |secret: &str| {
        let rescue_secret = Some(secret.to_owned());
        greeting(Access { secret: Some(SECRET.to_owned()), rescue_secret, ..Access::default() })
    };
    guest.greet(&rescue("rescue-secret-0123456789"));
    eventually("it is there", || TcpStream::connect(address).is_ok());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let client = |secret: &str| Client {
        secret: secret.to_owned(),
        ..Client::new(folder.path().to_owned(), address.0, address.1)
    };
    let pid =
        i32::try_from(guest.agent_pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop the agent");
    let inside = client("rescue-secret-0123456789");
    assert_eq!(inside.output("id -u; echo $OF_BOOT"), "1000\none.1\n");
    let output = inside.run("exit 9");
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    // The sandbox's own secret is another, and there is nothing but shell and commands.
    assert_eq!(client(SECRET).run("true").status.code(), Some(255));
    let forward = format!("{}:/srv/work/none", folder.path().join("socket").display());
    let forwarding = inside.with(&["-o", "ExitOnForwardFailure=yes", "-R", &forward]);
    assert_eq!(forwarding.run("true").status.code(), Some(255));
    let mut sftp = client("rescue-secret-0123456789").program("sftp", "-P");
    let refused = sftp.args(["-q", "-b", "/dev/null"]).arg(format!("anybody@{}", address.0)).output();
    assert!(!refused.expect("run sftp").status.success());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("let the agent go on");
    // Another secret holds as soon as it is told, and none means no door.
    guest.greet(&rescue("another-rescue-secret-0123"));
    eventually("the new secret holds", || client("another-rescue-secret-0123").run("true").status.success());
    assert_eq!(client("rescue-secret-0123456789").run("true").status.code(), Some(255));
    guest.greet(&greeting(Access { secret: Some(SECRET.to_owned()), ..Access::default() }));
    eventually("it is off", || TcpStream::connect(address).is_err());
}

#[test]
fn an_agent_that_is_told_nothing_listens_for_nobody() {
    let host = Host::open();
    assert_eq!(host.tell(&Access::default()), 204);
    for port in [host.ssh_port, host.terminal_port] {
        eventually("the door is shut", || TcpStream::connect(("127.0.0.1", port)).is_err());
    }
    let body = json!({ "secret": "short" }).to_string();
    let stream = UnixStream::connect(host.path("sock")).expect("connect");
    let headers = [("content-type", "application/json")];
    let reply = exchange(Wire::Unix(stream), "POST", "/sandhaus/ssh", &headers, body.as_bytes()).finish();
    assert_eq!(reply.refusal(), (400, "BAD_REQUEST".to_owned()));
}
