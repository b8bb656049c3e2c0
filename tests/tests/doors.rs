//! The doors of a sandbox, by OpenSSH's own programs: with what `GET /v1/sessions/{id}/doors` says, through ports of the
//! server's loopback, and while the agent hangs. What they do inside is seen by the API.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use sandhaus_client::wire::{Door, Doors};
use sandhaus_tests::{
    process::{self, Handle},
    runnable,
    server::{DataDir, Options, Server},
    session::Session,
    settles, skip,
};
use serde_json::json;

/// Longest that a client may run, in seconds.
const CLIENT_SECONDS_MAX: &str = "120";

/// What a client ends with that was not let in.
const NOT_IN: i32 = 255;

/// What the process of a rescue door has in its command line.
const RESCUE: &str = "--rescue";

/// The files of clients.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("a plain name").to_owned()
    }

    /// A program that knows one host by its key, and one password.
    fn program(&self, name: &str, port_option: &str, door: &Door) -> Command {
        let port = door.host_port.expect("it is published").to_string();
        let (known, ask) = (self.path(&format!("known-{port}")), self.path(&format!("ask-{port}")));
        let key = door.host_key.as_ref().expect("doors of SSH have a key");
        fs::write(&known, format!("[127.0.0.1]:{port} {key}\n")).expect("write what is known");
        fs::write(&ask, format!("#!/bin/sh\necho '{}'\n", door.secret)).expect("write the password");
        fs::set_permissions(&ask, fs::Permissions::from_mode(0o700)).expect("make it a program");
        let mut command = Command::new("timeout");
        command.args([CLIENT_SECONDS_MAX, name, "-F", "none"]);
        for option in [
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "PubkeyAuthentication=no",
            "BatchMode=no",
            "NumberOfPasswordPrompts=1",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.arg("-o").arg(format!("UserKnownHostsFile={known}")).args([port_option, &port]);
        command.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").env_remove("SSH_AUTH_SOCK");
        command.stdin(Stdio::null());
        command
    }

    fn ssh(&self, door: &Door, words: &str) -> Output {
        self.program("ssh", "-p", door).args(["anybody@127.0.0.1", words]).output().expect("run ssh")
    }

    /// What a command prints that must not fail.
    #[track_caller]
    fn output(&self, door: &Door, words: &str) -> String {
        let output = self.ssh(door, words);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn is_refused(&self, door: &Door) {
        let output = self.ssh(door, "echo was here > refused");
        assert_eq!(output.status.code(), Some(NOT_IN), "{output:?}");
    }
}

/// A sandbox that shows all its doors and has no other network.
fn with_doors(server: &Server) -> (Session, Doors) {
    let ports = json!([{"port": 22220}, {"port": 22222}, {"port": 2222}]);
    let session = Session::create(&server.http(), &json!({"network": "none", "ports": ports}));
    let doors = doors(server, &session);
    (session, doors)
}

fn doors(server: &Server, session: &Session) -> Doors {
    server.http().get(&session.route("/doors")).expect(200).json()
}

fn rescue(switch: &str) -> Options {
    Options { config: Some(format!("agent: {{rescue: {switch}}}\n")), ..Options::default() }
}

/// Whether this machine has the programs; said aloud where it has not.
fn has_clients(name: &str) -> bool {
    if !runnable(name) {
        return false;
    }
    let found = Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_ok();
    if !found {
        skip(name, "ssh is not installed");
    }
    found
}

/// The processes of a data directory's sandboxes with this in their command line.
fn with_argument(dir: &DataDir, argument: &str) -> Vec<u32> {
    let numbers = dir.objects().processes.into_iter();
    let numbers = numbers.filter_map(|process| process.split(' ').next().and_then(|pid| pid.parse().ok()));
    numbers.filter(|pid| process::arguments(*pid).iter().any(|found| found == argument)).collect()
}

/// Lets a stopped process go on, whatever a test came to.
struct Stopped(Handle);

impl Stopped {
    fn new(pid: u32) -> Self {
        let handle = Handle::open(pid).expect("it runs");
        handle.signal(Signal::STOP);
        settles("it stands still", || {
            process::status(pid, "State").is_some_and(|state| state.starts_with('T'))
        });
        Self(handle)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

#[test]
fn openssh_comes_in_with_the_secret_and_nobody_without() {
    if !has_clients("openssh_comes_in_with_the_secret_and_nobody_without") {
        return;
    }
    let (dir, files) = (DataDir::new(), Folder::new());
    let server = Server::start(&dir);
    let ((session, doors), (other, theirs)) = (with_doors(&server), with_doors(&server));
    assert_eq!((doors.ssh.port, doors.terminal.port, &doors.rescue), (22220, 22222, &None));
    assert!(doors.ssh.secret != theirs.ssh.secret && doors.ssh.host_key != theirs.ssh.host_key);

    // A command of the workload's own, seen from outside of SSH.
    let said = files.output(&doors.ssh, "echo by ssh > seen; id -un; pwd");
    assert_eq!(said.trim_end(), session.output("id -un; pwd"));
    assert_eq!(session.read("seen"), b"by ssh\n");
    assert_eq!(files.ssh(&doors.ssh, "exit 7").status.code(), Some(7));

    // Files, by both programs.
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(files.path("local"), &content).expect("write a file");
    let directory = session.output("pwd");
    let copied = files
        .program("scp", "-P", &doors.ssh)
        .args([files.path("local"), format!("anybody@127.0.0.1:{directory}/copied")])
        .output()
        .expect("run scp");
    assert!(copied.status.success(), "{copied:?}");
    assert_eq!(session.read("copied"), content);
    fs::write(
        files.path("batch"),
        format!("get {directory}/copied {}\nrm {directory}/copied\n", files.path("back")),
    )
    .expect("write the commands");
    let fetched = files
        .program("sftp", "-P", &doors.ssh)
        .args(["-b", &files.path("batch"), "anybody@127.0.0.1"])
        .output()
        .expect("run sftp");
    assert!(fetched.status.success(), "{fetched:?}");
    assert_eq!(fs::read(files.path("back")).expect("it was fetched"), content);
    session.try_read("copied").expect(404);

    // One sandbox's secret opens no other, nor does its key stand for another's.
    files.is_refused(&Door { secret: theirs.ssh.secret.clone(), ..doors.ssh.clone() });
    files.is_refused(&Door { host_key: theirs.ssh.host_key.clone(), ..doors.ssh.clone() });
    session.try_read("refused").expect(404);
    let page = |token: &str| {
        let port = doors.terminal.host_port.expect("it is published");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: it\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        )
        .expect("ask");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        // The page itself is compressed.
        let head = String::from_utf8_lossy(&answer);
        head.split(' ').nth(1).expect("a status").to_owned()
    };
    assert_eq!([page(&doors.terminal.secret), page(&theirs.terminal.secret)], ["200", "401"]);

    // A server that comes after this one tells the same.
    server.kill();
    let server = Server::start(&dir);
    assert_eq!(self::doors(&server, &session), doors);
    let session = Session::at(&server.http(), &session.id);
    assert_eq!(files.output(&doors.ssh, "cat seen"), "by ssh\n");
    session.delete();
    assert_eq!(server.http().get(&session.route("/doors")).expect(409).error_code(), "SESSION_NOT_RUNNING");
    Session::at(&server.http(), &other.id).delete();
    let (_, log) = server.stop();
    assert!(!log.contains("WARN") && !log.contains(&doors.ssh.secret), "{log}");
}

#[test]
fn the_rescue_door_stands_open_while_the_agent_hangs_if_it_is_wanted() {
    if !has_clients("the_rescue_door_stands_open_while_the_agent_hangs_if_it_is_wanted") {
        return;
    }
    let (dir, files) = (DataDir::new(), Folder::new());
    let server = Server::start_with(&dir, &rescue("on"));
    let (session, doors) = with_doors(&server);
    let door = doors.rescue.expect("it is wanted");
    assert_ne!(door.secret, doors.ssh.secret);
    settles("the door's process runs", || with_argument(&dir, RESCUE).len() == 1);
    let directory = session.output("pwd");
    // Its port is there a moment after its process.
    settles("it lets somebody in", || files.ssh(&door, "true").status.success());
    files.is_refused(&Door { secret: doors.ssh.secret.clone(), ..door.clone() });

    let mut numbers = dir.objects().processes.into_iter();
    let agent = numbers
        .find_map(|process| {
            let pid = process.split(' ').next()?.parse().ok()?;
            // The first process of its namespace.
            let inner = process::status(pid, "NSpid")?;
            (inner.split_whitespace().next_back() == Some("1")).then_some(pid)
        })
        .expect("the agent runs");
    {
        let _hangs = Stopped::new(agent);
        let said = files
            .output(&door, &format!("cd {directory} && echo by rescue > seen && grep State /proc/1/status"));
        assert!(said.contains("T (stopped)"), "{said}");
    }
    assert_eq!(session.read("seen"), b"by rescue\n");
    session.try_read("refused").expect(404);

    // No longer wanted, it is closed where it was open.
    server.kill();
    let server = Server::start_with(&dir, &rescue("off"));
    let session = Session::at(&server.http(), &session.id);
    assert_eq!(self::doors(&server, &session).rescue, None);
    settles("its process ends", || with_argument(&dir, RESCUE).is_empty());
    files.is_refused(&door);
    assert_eq!(files.output(&doors.ssh, &format!("cat {directory}/seen")), "by rescue\n");
    session.try_read("refused").expect(404);
    session.delete();
    let (_, log) = server.stop();
    assert!(!log.contains("WARN"), "{log}");
}
