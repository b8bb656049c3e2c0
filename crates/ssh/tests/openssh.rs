//! The protocol against the client that everyone has: OpenSSH's. What runs in the channels is a shell of this machine.
#![expect(clippy::print_stderr, reason = "a test that cannot run on this machine says so")]

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use sandhaus_ssh::{
    Authority, Channel, ChannelEvent, Connection, Ending, Incoming, Request, Settings,
    keys::{HostKey, PublicKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
};

/// Longest a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lets in who knows the password or holds the key.
struct Door {
    password: &'static str,
    keys: Vec<PublicKey>,
}

impl Authority for Door {
    fn is_password(&self, password: &[u8]) -> bool {
        !self.password.is_empty() && password == self.password.as_bytes()
    }

    fn knows(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    fn takes_passwords(&self) -> bool {
        !self.password.is_empty()
    }
}

/// A server, and the files of its client.
struct Server {
    folder: tempfile::TempDir,
    port: u16,
}

impl Server {
    async fn start(
        password: &'static str,
        key_type: Option<(&str, &str)>,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        if std::process::Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: this machine has no ssh");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut keys = Vec::new();
        if let Some((kind, bits)) = key_type {
            let file = folder.path().join("key");
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"])
                .arg(&file)
                .status();
            assert!(made.expect("run ssh-keygen").success());
            let line = fs::read_to_string(file.with_extension("pub")).expect("read the key");
            keys.push(PublicKey::from_openssh(&line).expect("a key"));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let host = Arc::new(HostKey::random());
        fs::write(folder.path().join("known"), format!("[127.0.0.1]:{port} {}\n", host.to_openssh()))
            .expect("write known hosts");
        let mut settings = Settings::new(host);
        change(&mut settings);
        let (settings, door) = (Arc::new(settings), Arc::new(Door { password, keys }));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (settings, door) = (Arc::clone(&settings), Arc::clone(&door));
                tokio::spawn(async move {
                    let Ok(mut connection) = Connection::accept(stream, settings, &*door).await else {
                        return;
                    };
                    while let Ok(incoming) = connection.next().await {
                        if let Incoming::Open(opening) = incoming {
                            tokio::spawn(session(opening.accept()));
                        }
                    }
                });
            }
        });
        Some(Self { folder, port })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self, options: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.kill_on_drop(true).stdin(Stdio::null());
        command.args(["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.path("known").display()));
        command.arg("-p").arg(self.port.to_string());
        if self.path("key").exists() {
            command.arg("-o").arg("IdentitiesOnly=yes").arg("-i").arg(self.path("key"));
        }
        command.args(options).arg("anybody@127.0.0.1");
        command
    }

    async fn run(&self, options: &[&str], words: &str) -> Output {
        let output = self.client(options).arg(words).output();
        tokio::time::timeout(PATIENCE, output).await.expect("in time").expect("run ssh")
    }

    /// Has the client give this as its password.
    fn with_password(&self, command: &mut Command, password: &str) {
        let script = self.path("ask");
        fs::write(&script, format!("#!/bin/sh\necho '{password}'\n")).expect("write the script");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&script, mode).expect("make it a program");
        command.env("SSH_ASKPASS", script).env("SSH_ASKPASS_REQUIRE", "force");
    }
}

/// Runs the command that is asked for.
async fn session(mut channel: Channel) {
    let command = loop {
        match channel.receive().await {
            Some(ChannelEvent::Request(Request::Execute(command), question)) => {
                question.agree();
                break String::from_utf8(command).expect("a text");
            }
            Some(_) => {}
            None => return,
        }
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("start a shell");
    let mut input = child.stdin.take();
    let (mut output, mut error) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (sender, second) = (channel.sender(), channel.sender());
    let outputs = tokio::spawn(async move {
        let out = async {
            let mut buffer = vec![0; 10_000];
            while let Ok(read @ 1..) = output.read(&mut buffer).await {
                if sender.data(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        };
        let err = async {
            let mut buffer = vec![0; 10_000];
            while let Ok(read @ 1..) = error.read(&mut buffer).await {
                if second.error(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(out, err);
    });
    let inputs = async {
        while let Some(event) = channel.receive().await {
            let written = match (event, &mut input) {
                (ChannelEvent::Data(bytes), Some(pipe)) => pipe.write_all(&bytes).await.is_ok(),
                (ChannelEvent::Eof, _) => false,
                _ => true,
            };
            if !written {
                input = None;
            }
        }
    };
    tokio::select! {
        () = inputs => {}
        ended = outputs => {
            ended.expect("no panic");
            let status = child.wait().await.expect("an end").code().and_then(|code| u32::try_from(code).ok());
            channel.finish(status.map(Ending::Status));
        }
    }
}

#[tokio::test]
async fn status_and_both_streams() {
    let Some(server) = Server::start("", Some(("ed25519", "256")), |_| {}).await else { return };
    let output = server.run(&[], "echo out; echo err >&2; exit 7").await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
}

#[tokio::test]
async fn keys_of_every_type() {
    for key in [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "384")] {
        let Some(server) = Server::start("", Some(key), |_| {}).await else { return };
        let output = server.run(&[], "echo in").await;
        assert_eq!(&output.stdout[..], b"in\n", "{key:?}: {output:?}");
    }
}

#[tokio::test]
async fn wrong_passwords_and_foreign_keys_are_refused() {
    let Some(server) = Server::start("right", None, |_| {}).await else { return };
    for (password, expected) in [("right", Some(0)), ("wrong", Some(255))] {
        let mut command = server.client(&["-o", "NumberOfPasswordPrompts=1"]);
        server.with_password(&mut command, password);
        let output = command.arg("true").output().await.expect("run ssh");
        assert_eq!(output.status.code(), expected, "{password}: {output:?}");
    }
    // The key is there, and nobody's.
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", "ed25519", "-f"])
        .arg(server.path("key"))
        .status();
    assert!(made.expect("run ssh-keygen").success());
    let output = server.run(&["-o", "PasswordAuthentication=no"], "true").await;
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}

/// Both directions at once, each as fast as it can: what would stand still if one waited for the other.
async fn there_and_back(server: &Server, options: &[&str], megabytes: usize) {
    let sent: Vec<u8> = (0..megabytes << 20).map(|at| u8::try_from(at * 31 % 251).expect("a byte")).collect();
    let mut command = server.client(options);
    let mut child = command.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run ssh");
    let (mut input, mut output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let content = sent.clone();
    let writing = tokio::spawn(async move { input.write_all(&content).await });
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, output.read_to_end(&mut received)).await.expect("in time").expect("reads");
    writing.await.expect("no panic").expect("all is sent");
    assert!(child.wait().await.expect("an end").success());
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
}

#[tokio::test]
async fn much_in_both_directions_with_every_cipher() {
    let Some(server) = Server::start("", Some(("ed25519", "256")), |_| {}).await else { return };
    for cipher in ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-gcm@openssh.com"] {
        there_and_back(&server, &["-c", cipher], 8).await;
    }
}

#[tokio::test]
async fn keys_are_renewed_whoever_asks() {
    let Some(server) =
        Server::start("", Some(("ed25519", "256")), |settings| settings.rekey_bytes = 300_000).await
    else {
        return;
    };
    there_and_back(&server, &[], 8).await;
    let Some(patient) = Server::start("", Some(("ed25519", "256")), |_| {}).await else { return };
    there_and_back(&patient, &["-o", "RekeyLimit=300K"], 8).await;
    there_and_back(&server, &["-o", "RekeyLimit=300K"], 8).await;
}

#[tokio::test]
async fn a_channel_that_stands_still_holds_up_no_other() {
    let Some(server) = Server::start("", Some(("ed25519", "256")), |_| {}).await else { return };
    let socket = format!("ControlPath={}", server.path("control").display());
    let mut stuck = server.client(&["-M", "-o", &socket]);
    let stuck = stuck.arg("echo ready; exec sleep 1000").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stuck = stuck.spawn().expect("run ssh");
    let mut ready = [0; 6];
    stuck.stdout.take().expect("piped").read_exact(&mut ready).await.expect("it runs");
    let mut input = stuck.stdin.take().expect("piped");
    let flood = tokio::spawn(async move { while input.write_all(&[b'x'; 65536]).await.is_ok() {} });
    for round in 0..20 {
        let output = server.run(&["-o", &socket], &format!("echo {round}")).await;
        assert_eq!(output.stdout, format!("{round}\n").into_bytes(), "{output:?}");
    }
    flood.abort();
    stuck.kill().await.expect("ends");
}

#[tokio::test]
async fn many_channels_of_one_connection() {
    let Some(server) = Server::start("", Some(("ed25519", "256")), |_| {}).await else { return };
    let socket = format!("ControlPath={}", server.path("control").display());
    let mut master = server.client(&["-M", "-o", &socket]);
    let mut master =
        master.arg("echo ready; cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run ssh");
    let mut ready = [0; 6];
    master.stdout.take().expect("piped").read_exact(&mut ready).await.expect("it runs");
    let mut all = tokio::task::JoinSet::new();
    for number in 0..30_u8 {
        let mut command = server.client(&["-o", &socket]);
        command.arg(format!("head -c 100000 /dev/zero; exit {number}"));
        all.spawn(async move { (number, command.output().await.expect("run ssh")) });
    }
    while let Some(done) = all.join_next().await {
        let (number, output) = done.expect("no panic");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(number.into()), 100_000), "{output:?}");
    }
    drop(master.stdin.take());
    assert!(master.wait().await.expect("an end").success());
}

#[tokio::test]
async fn a_quiet_client_is_asked_whether_it_is_there() {
    let often = |settings: &mut Settings| {
        // Asked many times, with much time to answer.
        (settings.quiet, settings.quiet_questions_max) = (Duration::from_millis(50), 1000);
    };
    let Some(server) = Server::start("", Some(("ed25519", "256")), often).await else { return };
    let output = server.run(&[], "sleep 1; echo still").await;
    assert_eq!(&output.stdout[..], b"still\n", "{output:?}");
}

#[tokio::test]
async fn one_who_does_not_log_in_is_cut_off() {
    let Some(server) =
        Server::start("x", None, |settings| settings.login_max = Duration::from_millis(200)).await
    else {
        return;
    };
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connects");
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("in time").expect("an end");
    assert!(all.starts_with(b"SSH-2.0-"));
}

#[tokio::test]
async fn any_garbage_ends_the_connection() {
    let Some(server) = Server::start("x", None, |_| {}).await else { return };
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff\xff", &[b'x'; 300]]
    {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connects");
        stream.write_all(garbage).await.expect("sends");
        let mut all = Vec::new();
        // It may also be reset, since not all was read.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("in time");
    }
}
