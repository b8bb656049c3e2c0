//! The agent is replaced while it runs, by another build of it and by things that are none.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use sandhaus_protocol::{
    frame::{Frame, Kind},
    hello::{Feature, HelloReply},
    process::{Process, Spawn},
    shell::{ShellExit, ShellStarted},
    toolbox::{SessionExecuteReply, SessionLogs},
    upgrade::{DIGEST_HEADER, IN_THE_WAY, NOT_TAKEN, PATH, UpgradeReply, build_of},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    machine::{self, Guest, HOST, STRANGER, TOKEN},
    socket::Socket,
    support::{Agent, Frames, PATIENCE, Reply, Who, Wire, argv, eventually, exchange},
};

#[path = "../../../engines/tests/shared/agent.rs"]
mod shared;

/// A version gate of the compatible contract.
const NEWEST: [(&str, &str); 2] =
    [("content-type", "application/json"), ("x-daytona-sdk-version", "0.226.1")];

/// The build that the tests start.
fn old_build() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fs::read(env!("CARGO_BIN_EXE_sandhaus-agent")).expect("read the agent"))
}

/// Another build: static, as sandboxes have it.
fn new_build() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fs::read(shared::agent()).expect("read the other agent"))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn upgrade(agent: &Agent, query: &str, program: &[u8]) -> Reply {
    agent.request("POST", &format!("{PATH}{query}"), &[(DIGEST_HEADER, &digest(program))], program)
}

/// Replaces the agent and checks that it is the new one, in the same process.
fn replaced(agent: &Agent, program: &[u8]) {
    let reply = upgrade(agent, "", program);
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let reply: UpgradeReply = reply.json();
    assert_eq!(Some(&reply.build), build_of(program).as_ref());
    assert_eq!(hello(agent).build, Some(reply.build));
}

fn hello(agent: &Agent) -> HelloReply {
    let hello = json!({ "protocol": 1, "sandbox_id": "0123abcd-456", "generation": 7 });
    agent.post("/sandhaus/hello", &hello).json()
}

/// What is refused leaves the same build at work.
fn refused(agent: &Agent, program: &[u8]) -> (u16, String) {
    let refusal = upgrade(agent, "", program).refusal();
    assert_eq!(hello(agent).build, build_of(old_build()));
    refusal
}

/// Numbers of the lines `n0`, `n1`, …, in order, as a terminal showed them.
fn counted(output: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(output);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| line.trim().strip_prefix('n')?.parse().ok()).collect()
}

fn started(frames: &mut Frames) -> Process {
    let first = frames.next().expect("a first frame");
    assert_eq!(first.kind, Kind::Started);
    serde_json::from_slice(&first.payload).expect("a process")
}

#[test]
fn the_builds_differ_and_say_which_they_are() {
    let agent = Agent::start(None);
    let reply = hello(&agent);
    assert!(reply.features.contains(&Feature::Upgrade));
    assert_eq!(reply.build, build_of(old_build()));
    assert_ne!(build_of(old_build()), build_of(new_build()));
}

#[test]
fn a_terminal_that_counts_goes_on_in_the_same_process() {
    let builds = [new_build(), old_build(), new_build()];
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t", "envs": { "HISTFILE": "" } })).status, 201);
    let (mut socket, _) = Socket::connect(&agent, "/process/pty/t/connect", "").expect("upgrades");
    // For minutes, but not for more than a terminal keeps.
    socket.send(
        "stty -echo; echo pid$$; i=0; while [ $i -lt 6000 ]; do echo n$i; i=$((i+1)); sleep 0.02; done\n",
    );
    let mut seen = Vec::new();
    while counted(&seen).len() < 20 {
        let (kind, content) = socket.receive();
        if kind == 2 {
            seen.extend(content);
        }
    }
    let text = String::from_utf8_lossy(&seen);
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
    let shell = text.split("pid").skip(1).find_map(number).expect("the shell's number");
    for build in builds {
        replaced(&agent, build);
        let status = fs::read_to_string(format!("/proc/{shell}/status")).expect("the shell is alive");
        assert!(status.contains(&format!("PPid:\t{}\n", agent.pid)), "a child of the same process: {status}");
    }
    let (mut socket, _) =
        Socket::connect(&agent, "/process/pty/t/connect?scrollback=true", "").expect("upgrades");
    let (mut all, mut last) = (Vec::new(), 0);
    while last < 100 {
        let (kind, content) = socket.receive();
        if kind == 2 {
            all.extend(content);
        }
        last = counted(&all).last().copied().unwrap_or(0);
    }
    let counted = counted(&all);
    let hole = counted.iter().copied().enumerate().find(|(n, line)| *n as u64 != *line);
    assert_eq!(hole, None);
    // It is interrupted from its keyboard, and says its own end.
    socket.send("\u{3}");
    socket.send("exit 7\n");
    let (_, _, close) = socket.finish();
    assert_eq!(close[..2], 1011_u16.to_be_bytes());
    assert!(String::from_utf8_lossy(&close[2..]).contains(r#""exitCode":7"#));
}

#[test]
fn a_half_read_stream_goes_on_without_a_missing_byte() {
    // Made before a reader has to wait for it: nobody waits for a reader for ever.
    let builds = [new_build(), old_build()];
    let agent = Agent::start(None);
    // More than the log, the connection and the pipe hold together: its writer waits for the reader.
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    let mut frames = agent.spawn(&argv(&["sh", "-c", "seq 1 400000; echo end >&2; exit 3"]));
    let process = started(&mut frames);
    let mut seen = Vec::new();
    for build in builds {
        let enough = seen.len() + 200_000;
        let mut take = |frame: Frame| {
            if frame.kind == Kind::Stdout {
                assert_eq!(frame.offset, seen.len() as u64);
                seen.extend_from_slice(&frame.payload);
            }
            seen.len()
        };
        while take(frames.next().expect("more output")) < enough {}
        replaced(&agent, build);
        // What was on the way arrives; what the agent had taken out of its log and not sent is to come again.
        while let Some(frame) = frames.next_before_cut() {
            take(frame);
        }
        assert!(seen.len() < expected.len(), "the stream is cut before its end");
        let target = format!("/sandhaus/process/{}/output?stdout={}", process.id, seen.len());
        frames = Frames::new(agent.send("GET", &target, &[], b""));
        assert_eq!(started(&mut frames).pid, process.pid);
    }
    let rest = frames.collect();
    assert_eq!(rest.gaps, 0);
    seen.extend_from_slice(&rest.stdout);
    assert!(seen == expected.as_bytes(), "{} of {} bytes", seen.len(), expected.len());
    assert_eq!(rest.stderr, b"end\n");
    let exit: sandhaus_protocol::process::Exit = serde_json::from_slice(&rest.exit).expect("an exit record");
    assert_eq!(exit.exit_code, 3);
}

#[test]
fn processes_keep_their_input_their_time_limit_and_their_end() {
    let agent = Agent::start(None);
    let mut cat = agent.spawn(&Spawn { stdin: true, ..argv(&["cat"]) });
    let cat = started(&mut cat);
    let input = |query: &str, bytes: &[u8]| {
        agent.request("POST", &format!("/sandhaus/process/{}/stdin{query}", cat.id), &[], bytes).status
    };
    assert_eq!(input("", b"before "), 204);
    let mut slow = agent.spawn(&Spawn { timeout_ms: 1500, ..argv(&["sleep", "1234"]) });
    let slow = started(&mut slow);
    let mut kept = agent.spawn(&Spawn { kill_on_disconnect: true, ..argv(&["sleep", "4321"]) });
    let kept = started(&mut kept);
    let (_, ended) = agent.run(&argv(&["sh", "-c", "echo kept; (sleep 0.3; echo background) & exit 9"]));
    assert_eq!(ended.exit_code, 9);
    replaced(&agent, new_build());
    assert_eq!(input("?eof=true", b"after"), 204);
    let output = |process: &Process| {
        Frames::new(agent.send("GET", &format!("/sandhaus/process/{}/output", process.id), &[], b""))
    };
    assert_eq!(output(&cat).collect().stdout, b"before after");
    let slow: sandhaus_protocol::process::Exit =
        serde_json::from_slice(&output(&slow).collect().exit).expect("an exit record");
    assert!(slow.timed_out && slow.exit_code == 137, "{slow:?}");
    // The former ones are there by their numbers, new ones get others.
    let all: Vec<Process> = agent.get("/sandhaus/process").json();
    assert_eq!(all.len(), 4);
    let next = started(&mut agent.spawn(&argv(&["true"])));
    assert!(all.iter().all(|process| process.id < next.id));
    // Who was tied to its reader is tied to the one that takes its place.
    let reader = output(&kept);
    assert_eq!(agent.descendants_with("sleep 4321").len(), 1);
    reader.hang_up();
    eventually("it has left with its reader", || agent.descendants_with("sleep 4321").is_empty());
}

#[test]
fn shells_go_on_with_what_they_were_told() {
    let agent = Agent::start(None);
    agent.shell("cd /usr; x=1; f() { echo f$x; }");
    let mut frames = agent.shell_stream(
        "echo begin; read_it() { cat; }; while [ ! -e $HOME/go ]; do sleep 0.01; done; f; x=2",
        0,
    );
    let started: ShellStarted =
        serde_json::from_slice(&frames.next().expect("a first frame").payload).expect("started");
    frames.until("begin\r\n");
    // One that waits behind it, in another task.
    let waiting = agent.send("POST", "/sandhaus/shell/default/exec", &NEWEST[..1], br#"{"cmd":"f; exit 4"}"#);
    let mut waiting = Frames::new(waiting);
    let waits: ShellStarted =
        serde_json::from_slice(&waiting.next().expect("a first frame").payload).expect("started");
    replaced(&agent, new_build());
    let resume = |id: u64, offset: usize| {
        let target = format!("/sandhaus/shell/default/exec/{id}?offset={offset}");
        Frames::new(agent.send("GET", &target, &[], b""))
    };
    let all = resume(started.exec_id, 0);
    fs::write(agent.work().join("../go"), "").expect("let it go on");
    let all = all.collect();
    assert_eq!(all.stdout, b"begin\r\nf1\r\n");
    let exit: ShellExit = serde_json::from_slice(&all.exit).expect("an exit record");
    assert_eq!((exit.exit_code, exit.cwd.as_str(), exit.shell_replaced), (0, "/usr", false));
    let all = resume(waits.exec_id, 0).collect();
    let exit: ShellExit = serde_json::from_slice(&all.exit).expect("an exit record");
    assert_eq!((all.stdout.as_slice(), exit.exit_code, exit.shell_replaced), (b"f2\r\n".as_slice(), 4, true));
    assert_eq!(agent.shell("pwd; echo $x").0, "/usr\n\n");
    // A time limit counts from the command's beginning, and ends what it started alone.
    agent.shell("sleep 4321 &");
    let _cut = agent.shell_stream("echo slow; sleep 1234", 1500);
    let log = Frames::new(agent.send("GET", "/sandhaus/shell/default/log?follow=true", &[], b""));
    { log }.until("slow");
    replaced(&agent, old_build());
    eventually("its time is over", || agent.descendants_with("sleep 1234").is_empty());
    assert_eq!(agent.shell("echo back").0, "back\n");
    assert_eq!(agent.descendants_with("sleep 4321").len(), 1);
}

#[test]
fn sessions_go_on_with_their_commands_and_logs() {
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/session", &json!({ "sessionId": "s" })).status, 201);
    let run = |body: serde_json::Value| -> SessionExecuteReply {
        agent.request("POST", "/process/session/s/exec", &NEWEST, body.to_string().as_bytes()).json()
    };
    run(json!({ "command": "cd /usr; x=1; echo first" }));
    let reads =
        run(json!({ "command": "echo asked; read answer; echo \"got $answer\" >&2", "runAsync": true }));
    let waits = run(json!({ "command": "echo $x$answer; pwd; (exit 6)", "runAsync": true }));
    let logs = |id: &str| -> SessionLogs {
        agent.request("GET", &format!("/process/session/s/command/{id}/logs"), &NEWEST, b"").json()
    };
    eventually("it asks", || logs(&reads.cmd_id).stdout == "asked\n");
    for build in [new_build(), old_build()] {
        replaced(&agent, build);
    }
    let input = format!("/process/session/s/command/{}/input", reads.cmd_id);
    assert_eq!(agent.post(&input, &json!({ "data": "it" })).status, 204);
    let code = |id: &str| -> Option<i64> {
        agent.get(&format!("/process/session/s/command/{id}")).json::<serde_json::Value>()["exitCode"]
            .as_i64()
    };
    eventually("both have ended", || code(&waits.cmd_id).is_some());
    assert_eq!((code(&reads.cmd_id), code(&waits.cmd_id)), (Some(0), Some(6)));
    let read = logs(&reads.cmd_id);
    assert_eq!((read.stdout.as_str(), read.stderr.as_str()), ("asked\nit\n", "got it\n"));
    assert_eq!(logs(&waits.cmd_id).stdout, "1it\n/usr\n");
    assert_eq!(run(json!({ "command": "echo $x" })).stdout.as_deref(), Some("1\n"));
    assert_eq!(agent.delete("/process/session/s").status, 204);
}

#[test]
fn the_first_process_of_a_namespace_is_replaced() {
    for who in [Who::Unprivileged, Who::Root] {
        let Some(agent) = Agent::init(who) else { return };
        agent.shell("x=1; (while :; do sleep 0.01; done) & disown");
        replaced(&agent, new_build());
        assert_eq!(agent.shell("echo $x; cat /proc/1/comm").0, "1\nsandhaus-agent\n");
        // It keeps to itself what it was told, and its successor's file.
        for secret in ["cat /proc/1/environ", "ls /proc/1/fd", "readlink /proc/1/exe", "cat /proc/1/maps"] {
            let (output, code) = agent.shell(secret);
            if who == Who::Unprivileged {
                assert_ne!(code, 0, "{secret}: {output}");
            }
            assert!(!output.contains("not-for-proc-1"), "{secret}");
        }
        assert_eq!(agent.shell("printenv SECRET_OF_BOOT").0, "not-for-proc-1\n");
        // Nothing of it is open in what it starts.
        let (all, _) = agent.run(&argv(&["ls", "/proc/self/fd"]));
        assert_eq!(all.stdout, b"0\n1\n2\n3\n");
        assert_eq!(agent.shell("ulimit -n").0, agent.shell("ulimit -n").0);
        let logs: SessionLogs = agent.request("GET", "/process/session/entrypoint/logs", &NEWEST, b"").json();
        assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("entry\n", "point\n"));
        let children =
            || fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid)).expect("read");
        eventually("no zombies", || {
            children().split_whitespace().all(|pid| {
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
            })
        });
        let before = agent.descriptors();
        replaced(&agent, old_build());
        replaced(&agent, new_build());
        // A connection of this test may still be closing.
        eventually("descriptors that nobody needs any more are closed", || agent.descriptors() <= before);
        for attack in ["kill -9 1", "kill -TERM 1"] {
            agent.shell_limited(attack, 0);
        }
        assert_eq!(agent.shell("echo alive").0, "alive\n");
    }
}

#[test]
fn the_agent_of_a_machine_is_replaced_by_its_host_alone() {
    let Some(guest) = Guest::start() else { return };
    let (program, digest) = (new_build(), digest(new_build()));
    let bearer = format!("Bearer {TOKEN}");
    let headers = [(DIGEST_HEADER, digest.as_str()), ("authorization", bearer.as_str())];
    let ask = |source| guest.send_from(source, "POST", PATH, &headers, program).finish();
    assert_eq!(ask(HOST).refusal().0, 503, "nobody was greeted");
    let greeting = machine::hello("0123abcd-456", 3);
    assert_eq!(guest.greet(&greeting).build, build_of(old_build()));
    assert_eq!(ask(STRANGER).refusal().0, 403, "not even with the token");
    guest.shell("x=1; cd /usr");
    let reply = ask(HOST);
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(guest.shell("echo $x; pwd"), "1\n/usr\n");
    // It knows whom it serves, who may ask, and as whom files are touched.
    assert_eq!(guest.from(STRANGER, "GET", "/process/pty", &[]).refusal().0, 401);
    assert_eq!(guest.from(STRANGER, "GET", "/process/pty", &headers[1..]).status, 200);
    let uploaded = guest.send_from(HOST, "POST", "/files/upload-v2?path=mine", &[], b"mine").finish();
    assert_eq!(uploaded.status, 200);
    assert_eq!(guest.output(&["stat", "-c", "%u", "/srv/work/mine"]), "1000\n");
    assert_eq!(guest.greet(&greeting).build, build_of(new_build()));
    assert_eq!(guest.post("/sandhaus/hello", &machine::hello("0123abcd-456", 2)).refusal().0, 409);
    assert_eq!(guest.shell("echo $x"), "1\n", "a repeat changes nothing");
}

#[test]
fn what_is_in_the_way_is_named_and_given_up_by_force() {
    let agent = Agent::start(None);
    let body = json!({ "command": "echo $$ > started; sleep 1234" }).to_string();
    let mut stream = agent.connect();
    let head = format!(
        "POST /process/execute HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    eventually("the command runs", || !agent.descendants_with("sleep 1234").is_empty());
    let reply = upgrade(&agent, "", new_build());
    assert_eq!(reply.refusal(), (409, IN_THE_WAY.to_owned()));
    let message = reply.json::<serde_json::Value>()["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("POST /process/execute"), "{message}");
    assert_eq!(hello(&agent).build, build_of(old_build()));
    assert!(!agent.descendants_with("sleep 1234").is_empty(), "it was not touched");
    let reply = upgrade(&agent, "?force=true", new_build());
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(hello(&agent).build, build_of(new_build()));
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.is_empty(), "its caller is cut");
}

#[test]
fn what_is_no_agent_leaves_the_old_one_at_work() {
    let agent = Agent::start(None);
    agent.shell("x=1");
    let program = new_build();
    // Not what was announced, or cut short on its way.
    let wrong = |headers: &[(&str, &str)], body: &[u8]| {
        let refusal = agent.request("POST", PATH, headers, body).refusal();
        assert_eq!(hello(&agent).build, build_of(old_build()));
        refusal.0
    };
    assert_eq!(wrong(&[], program), 400);
    assert_eq!(wrong(&[(DIGEST_HEADER, &digest(b"other"))], program), 400);
    assert_eq!(wrong(&[(DIGEST_HEADER, &digest(program))], &program[..program.len() / 2]), 400);
    let mut stream = agent.connect();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: agent\r\n{DIGEST_HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
        digest(program),
        program.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    stream.write_all(&program[..100_000]).expect("send");
    drop(stream);
    // No executable of this machine.
    assert_eq!(refused(&agent, b"#!/bin/sh\necho\n").0, 400);
    let mut foreign = program.to_vec();
    foreign[18] ^= 0xff;
    assert_eq!(refused(&agent, &foreign).0, 400);
    assert_eq!(refused(&agent, b"").0, 400);
    // None that runs, or none that is an agent: one that ends, one that crashes, one that says nothing for ever.
    let not_taken = (409, NOT_TAKEN.to_owned());
    assert_eq!(refused(&agent, &program[..4096]), not_taken);
    assert_eq!(refused(&agent, &fs::read("/bin/true").expect("read")), not_taken);
    let crash = compiled("crash", "int main(void) { __builtin_trap(); }");
    assert_eq!(refused(&agent, &crash), not_taken);
    let hang = compiled("hang", "int pause(void); int main(void) { for (;;) pause(); }");
    assert_eq!(refused(&agent, &hang), not_taken);
    eventually("it is gone", || agent.descendants_with("--check-state").is_empty());
    let verdict = r#""{\"takes\":false,\"reason\":\"too old\"}""#;
    let no = compiled("no", &format!("int puts(const char *); int main(void) {{ puts({verdict}); }}"));
    let reply = upgrade(&agent, "", &no);
    assert_eq!(reply.refusal(), not_taken);
    assert!(String::from_utf8_lossy(&reply.body).contains("too old"));
    assert_eq!(agent.shell("echo $x").0, "1\n");
    replaced(&agent, program);
    assert_eq!(agent.shell("echo $x").0, "1\n");
}

#[test]
fn an_agent_that_cannot_go_on_gives_everything_back() {
    // The fault is asked for by the agent's own environment, which its successor has too.
    let agent = Agent::start_with(None, &[("SANDHAUS_AGENT_FAULT", "1")]);
    agent.shell("x=1");
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t" })).status, 201);
    let reply = upgrade(&agent, "", old_build());
    assert_eq!(reply.refusal(), (409, NOT_TAKEN.to_owned()));
    assert!(String::from_utf8_lossy(&reply.body).contains("a fault was asked for"));
    assert_eq!(hello(&agent).build, build_of(old_build()));
    assert_eq!(agent.shell("echo $x").0, "1\n");
    let terminals: serde_json::Value = agent.get("/process/pty").json();
    assert_eq!(terminals["sessions"][0]["id"], "t");
    // Twice is no different.
    assert_eq!(upgrade(&agent, "", old_build()).refusal().0, 409);
    assert_eq!(agent.shell("echo $x").0, "1\n");
}

#[test]
fn where_anyone_might_ask_nobody_may() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let digest = digest(new_build());
    let headers = [(DIGEST_HEADER, digest.as_str())];
    let agent = ByPort::start(&["--workdir".as_ref(), folder.path()]);
    assert_eq!(agent.request("POST", PATH, &headers, new_build()).refusal().0, 403);
    let agent = ByPort::start(&["--workdir".as_ref(), folder.path(), "--replaceable".as_ref()]);
    assert_eq!(agent.request("POST", PATH, &headers, new_build()).status, 200);
    assert_eq!(agent.request("GET", "/health", &[], b"").status, 200);
}

/// An agent on a port of this machine.
struct ByPort {
    child: Child,
    port: u16,
}

impl ByPort {
    fn start(arguments: &[&Path]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus-agent"));
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start the agent");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its first line");
        let port = line.trim().rsplit(' ').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, port }
    }

    fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time limit");
        exchange(Wire::Tcp(stream), method, target, headers, body).finish()
    }
}

impl Drop for ByPort {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of a few words, by the compiler that links these tests.
fn compiled(name: &str, text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, target): (PathBuf, PathBuf) = (folder.path().join("source.c"), folder.path().join(name));
    fs::write(&source, text).expect("write the source");
    let status = Command::new("cc").arg("-o").arg(&target).arg(&source).status().expect("cc runs");
    assert!(status.success(), "{name} does not compile");
    fs::read(&target).expect("read the program")
}
