//! The compatible process routes: execute, sessions, terminals.

use std::io::{Read as _, Write as _};

use sandhaus_protocol::toolbox::{
    ExecuteReply, PtyListReply, PtySessionInfo, Session, SessionExecuteReply, SessionLogs,
};
use serde_json::{Value, json};

use crate::{
    socket::Socket,
    support::{Agent, Reply, eventually},
};

const NEWEST: [(&str, &str); 2] =
    [("content-type", "application/json"), ("x-daytona-sdk-version", "0.226.1")];

#[test]
fn execute_runs_to_the_end() {
    let agent = Agent::start(None);
    let run = |body: Value| -> (i32, String) {
        let reply: ExecuteReply = agent.post("/process/execute", &body).json();
        (reply.exit_code, reply.result)
    };
    assert_eq!(run(json!({ "command": "echo out; echo err >&2; exit 3" })), (3, "out\nerr\n".to_owned()));
    assert_eq!(
        run(json!({ "command": "pwd; echo $A; cat", "cwd": "/usr", "envs": { "A": "b" } })),
        (0, "/usr\nb\n".to_owned())
    );
    assert_eq!(run(json!({ "command": "pwd", "cwd": "/nosuch" })).0, -1);
    let long = format!("echo {} | wc -c", "x".repeat(300_000));
    assert_eq!(run(json!({ "command": long })), (0, "300001\n".to_owned()));
    let slow =
        json!({ "command": "sleep 1234 & (setsid sleep 1234 &); echo started; sleep 1234", "timeout": 1 });
    assert_eq!(
        agent.post("/process/execute", &slow).refusal(),
        (408, "PROCESS_EXECUTION_TIMEOUT".to_owned())
    );
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    for wrong in [
        json!({ "command": " " }),
        json!({ "command": "x", "envs": { "1": "" } }),
        json!({ "command": "x", "timeout": -1 }),
    ] {
        assert_eq!(agent.post("/process/execute", &wrong).refusal().0, 400, "{wrong}");
    }
}

/// What is wrong with a request shows in its head already. Its body is taken all the same: a client that still sends it
/// would not read the answer, nor get one to its next request.
#[test]
fn a_refused_request_ends_no_connection() {
    const BODY_BYTES: usize = 3 << 20;
    let agent = Agent::start(None);
    let body = vec![b'x'; BODY_BYTES];
    for (method, target, status) in
        [("PATCH", "/lsp/did-close", 405), ("POST", "/no/such", 404), ("POST", "/files/folder", 400)]
    {
        let mut stream = agent.connect();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: agent\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("send the head");
        stream.write_all(&body).expect("send the body");
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")
            .expect("send more");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("both answers");
        let found: Vec<&str> =
            answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
        assert_eq!(found, [status.to_string(), "200".to_owned()], "{target}: {answers}");
    }
}

#[test]
fn a_caller_that_leaves_takes_its_command_along() {
    let agent = Agent::start(None);
    let body = json!({ "command": "sleep 1234" }).to_string();
    let mut stream = agent.connect();
    let head = format!(
        "POST /process/execute HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    eventually("the command runs", || !agent.descendants_with("sleep 1234").is_empty());
    drop(stream);
    eventually("the command is gone", || agent.descendants_with("sleep 1234").is_empty());
}

fn in_session(agent: &Agent, id: &str, body: &Value) -> Reply {
    agent.request("POST", &format!("/process/session/{id}/exec"), &NEWEST, body.to_string().as_bytes())
}

#[test]
fn sessions_keep_state_and_streams_apart() {
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/session", &json!({ "sessionId": "s" })).status, 201);
    assert_eq!(agent.post("/process/session", &json!({ "sessionId": "s" })).refusal().0, 409);
    assert_eq!(agent.post("/process/session", &json!({ "sessionId": "entrypoint" })).refusal().0, 400);
    let run = |command: &str| -> SessionExecuteReply {
        let reply = in_session(&agent, "s", &json!({ "command": command }));
        assert_eq!(reply.status, 200, "{command}");
        reply.json()
    };
    run("cd /usr; x=1; f() { echo f; }");
    let reply = run("pwd; echo $x; f; echo err >&2; cat; (exit 4)");
    assert_eq!(reply.exit_code, Some(4));
    assert_eq!((reply.stdout.as_deref(), reply.stderr.as_deref()), (Some("/usr\n1\nf\n"), Some("err\n")));
    assert!(
        reply.output.is_some_and(
            |output| output.contains("\u{1}\u{1}\u{1}") && output.contains("\u{2}\u{2}\u{2}err\n")
        )
    );
    assert_eq!(run("echo \"unclosed").exit_code, Some(2));
    let reply = run("seq 1 50000");
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(reply.stdout, Some(expected));
    let old = agent.request(
        "POST",
        "/process/session/s/exec",
        &NEWEST[..1],
        br#"{"command":"echo o; echo e >&2"}"#,
    );
    let old: SessionExecuteReply = old.json();
    assert_eq!(old.stdout, None);
    assert!(old.output.is_some_and(|output| output == "o\ne\n" || output == "e\no\n"));
    let session: Session = agent.get("/process/session/s").json();
    assert_eq!(session.commands.len(), 5);
    assert_eq!(agent.get("/process/session/nosuch").refusal(), (404, "PROCESS_NOT_FOUND".to_owned()));
    assert_eq!(
        agent.get("/process/session/s/command/nosuch").refusal(),
        (404, "PROCESS_NOT_FOUND".to_owned())
    );
    assert_eq!(in_session(&agent, "s", &json!({ "command": "" })).refusal().0, 400);
    let gone = in_session(&agent, "s", &json!({ "command": "echo bye; exit 3" }));
    assert_eq!(gone.refusal(), (410, "SESSION_ENDED".to_owned()));
    assert_eq!(in_session(&agent, "s", &json!({ "command": "echo" })).refusal().0, 410);
}

#[test]
fn commands_in_the_background_take_input_and_can_be_followed() {
    let agent = Agent::start(None);
    agent.post("/process/session", &json!({ "sessionId": "s" }));
    let script = "echo ready; read a; echo got $a; read b; echo got $b >&2";
    let reply = in_session(&agent, "s", &json!({ "command": script, "runAsync": true }));
    assert_eq!(reply.status, 202);
    let reply: SessionExecuteReply = reply.json();
    let command = format!("/process/session/s/command/{}", reply.cmd_id);
    assert_eq!(agent.get(&command).json::<Value>()["exitCode"], Value::Null);
    assert_eq!(agent.post(&format!("{command}/input"), &json!({ "data": "one" })).status, 204);
    assert_eq!(agent.post(&format!("{command}/input"), &json!({ "data": "two\nunread\n" })).status, 204);
    let followed = agent.request("GET", &format!("{command}/logs?follow=true"), &[], b"");
    let text = String::from_utf8_lossy(&followed.body).into_owned();
    assert!(text.contains("got one\n") && text.contains("got two\n"), "{text}");
    assert_eq!(agent.get(&command).json::<Value>()["exitCode"], 0);
    let logs: SessionLogs = agent.request("GET", &format!("{command}/logs"), &NEWEST[1..], b"").json();
    assert_eq!(logs.stderr, "got two\n");
    assert!(logs.stdout.contains("one\n") && logs.stdout.contains("got one\n"));
    let plain = agent.get(&format!("{command}/logs"));
    assert!(plain.headers["content-type"].starts_with("text/plain") && !plain.body.contains(&1));
    let late = agent.post(&format!("{command}/input"), &json!({ "data": "late" }));
    assert_eq!(late.refusal(), (410, "COMMAND_ALREADY_COMPLETED".to_owned()));
    // What was not read is not for the next command.
    let reply = in_session(&agent, "s", &json!({ "command": "read c; echo c=$c", "runAsync": true }));
    let reply: SessionExecuteReply = reply.json();
    let command = format!("/process/session/s/command/{}", reply.cmd_id);
    agent.post(&format!("{command}/input"), &json!({ "data": "fresh" }));
    let followed = agent.request("GET", &format!("{command}/logs?follow=true"), &[], b"");
    assert!(String::from_utf8_lossy(&followed.body).contains("c=fresh\n"));
    in_session(&agent, "s", &json!({ "command": "sleep 1234 & (setsid sleep 1234 &)" }));
    assert_eq!(agent.delete("/process/session/s").status, 204);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    assert_eq!(agent.get("/process/session/s").status, 404);
}

#[test]
fn terminals_attach_type_resize_and_tell_their_end() {
    let agent = Agent::start(None);
    let protocols = "X-Daytona-Pty-Envs~eyJBIjoiYiJ9,X-Daytona-Pty-Exit-Control";
    let (mut socket, protocol) =
        Socket::connect(&agent, "/process/pty/create-connect?id=t&cols=100&rows=30", protocols)
            .expect("upgrades");
    assert_eq!(protocol.as_deref(), Some("X-Daytona-Pty-Exit-Control"));
    let (kind, content) = socket.receive();
    assert_eq!(
        (kind, serde_json::from_slice::<Value>(&content).expect("JSON")),
        (1, json!({ "type": "control", "status": "connected" }))
    );
    let listed: PtyListReply = agent.get("/process/pty").json();
    assert_eq!((listed.sessions[0].id.as_str(), listed.sessions[0].active), ("t", true));
    assert_eq!(listed.sessions[0].envs["A"], "b");
    assert_eq!(Socket::connect(&agent, "/process/pty/create-connect?id=t", "").err(), Some(409));
    assert_eq!(Socket::connect(&agent, "/process/pty/create-connect?id=", "").err(), Some(400));
    let resized: PtySessionInfo =
        agent.post("/process/pty/t/resize", &json!({ "cols": 77, "rows": 11 })).json();
    assert_eq!((resized.cols, resized.rows), (77, 11));
    assert_eq!(agent.post("/process/pty/t/resize", &json!({ "cols": 0, "rows": 11 })).refusal().0, 400);
    socket.send("stty size; echo $A-; tty; exit 3\n");
    let (bytes, texts, close) = socket.finish();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("11 77\r\nb-\r\n/dev/pts/"), "{text}");
    assert_eq!(
        texts[0],
        json!({ "type": "control", "status": "exited", "exitCode": 3, "exitReason": "non-zero exit" })
    );
    assert_eq!(&close[..2], 1011_u16.to_be_bytes());
    assert_eq!(serde_json::from_slice::<Value>(&close[2..]).expect("JSON")["exitCode"], 3);
    eventually("an ended terminal is not listed", || {
        agent.get("/process/pty").json::<PtyListReply>().sessions.is_empty()
    });
    assert_eq!(agent.post("/process/pty/t/resize", &json!({ "cols": 7, "rows": 11 })).refusal().0, 410);
}

#[test]
fn terminals_over_rest() {
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t" })).status, 201);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t" })).refusal().0, 409);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "u", "cols": 2000 })).refusal().0, 400);
    let lazy = agent.post("/process/pty", &json!({ "id": "lazy", "lazyStart": true }));
    assert_eq!(lazy.json::<Value>()["sessionId"], "lazy");
    let info: PtySessionInfo = agent.get("/process/pty/lazy").json();
    assert!(!info.active && info.lazy_start);
    let (mut socket, protocol) = Socket::connect(&agent, "/process/pty/lazy/connect", "").expect("upgrades");
    assert_eq!(protocol, None);
    socket.send("exit 0\n");
    let (_, texts, close) = socket.finish();
    assert_eq!(texts.len(), 1, "who does not ask for the exit in words gets it with the close alone");
    assert_eq!(&close[..2], 1000_u16.to_be_bytes());
    let (mut socket, _) = Socket::connect(&agent, "/process/pty/t/connect", "").expect("upgrades");
    socket.send("sleep 1234 & echo $((40+2))\n");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("42") {
        seen.extend_from_slice(&socket.receive().1);
    }
    assert_eq!(agent.delete("/process/pty/t").status, 200);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    assert_eq!(agent.delete("/process/pty/t").refusal().0, 404);
    let (socket, _) = Socket::connect(&agent, "/process/pty/nosuch/connect", "").expect("upgrades");
    assert_eq!(socket.finish().1[0]["status"], "error");
}

#[test]
fn who_comes_back_to_a_terminal_sees_what_was_printed() {
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t", "lazyStart": true })).status, 201);
    let until = |socket: &mut Socket, text: &str| {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let (kind, content) = socket.receive();
            if kind == 2 {
                seen.extend_from_slice(&content);
            }
        }
    };
    let (mut first, _) =
        Socket::connect(&agent, "/process/pty/t/connect?scrollback=true", "").expect("upgrades");
    let connected = |socket: &mut Socket| serde_json::from_slice::<Value>(&socket.receive().1).expect("JSON");
    assert_eq!(connected(&mut first)["scrollback"], 0, "nobody was here before");
    first.send("echo $((40+2))\n");
    until(&mut first, "42\r\n");
    drop(first);
    let (mut plain, _) = Socket::connect(&agent, "/process/pty/t/connect", "").expect("upgrades");
    assert_eq!(connected(&mut plain).get("scrollback"), None);
    let (mut again, _) =
        Socket::connect(&agent, "/process/pty/t/connect?scrollback=true", "").expect("upgrades");
    let old = usize::try_from(connected(&mut again)["scrollback"].as_u64().expect("a count")).expect("small");
    let (kind, content) = again.receive();
    assert_eq!((kind, content.len()), (2, old), "what is old comes first, in one piece");
    assert!(String::from_utf8_lossy(&content).contains("42\r\n"));
    again.send("exit 0\n");
    let (bytes, _, _) = plain.finish();
    assert!(!String::from_utf8_lossy(&bytes).contains("42"), "who does not ask gets what is new");
}

#[test]
fn logs_can_be_followed_on_a_socket() {
    let agent = Agent::start(None);
    agent.post("/process/session", &json!({ "sessionId": "s" }));
    let reply = in_session(&agent, "s", &json!({ "command": "echo o; echo e >&2; read x", "async": true }));
    let reply: SessionExecuteReply = reply.json();
    let command = format!("/process/session/s/command/{}", reply.cmd_id);
    let offered = "X-Daytona-SDK-Version~0.226.1";
    let (socket, protocol) =
        Socket::connect(&agent, &format!("{command}/logs?follow=true"), offered).expect("upgrades");
    assert_eq!(protocol.as_deref(), Some(offered));
    agent.post(&format!("{command}/input"), &json!({ "data": "go" }));
    let (bytes, texts, close) = socket.finish();
    assert!(texts.is_empty());
    assert_eq!(close, 1000_u16.to_be_bytes());
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("\u{1}\u{1}\u{1}o\n") && text.contains("\u{2}\u{2}\u{2}e\n"), "{text:?}");
}

#[test]
fn a_log_goes_on_where_a_connection_broke() {
    let agent = Agent::start(None);
    agent.post("/process/session", &json!({ "sessionId": "s" }));
    let script = "printf '%06d' $(seq 1 20000); echo e >&2; read x; printf last";
    let reply = in_session(&agent, "s", &json!({ "command": script, "async": true }));
    let reply: SessionExecuteReply = reply.json();
    let logs = format!("/process/session/s/command/{}/logs", reply.cmd_id);
    let whole = || agent.request("GET", &format!("{logs}?offset=0"), &[], b"");
    eventually("both streams are there", || {
        let log = whole().body;
        log.len() > 120_000 && String::from_utf8_lossy(&log).contains("\u{2}\u{2}\u{2}e\n")
    });
    let reply = whole();
    assert_eq!(reply.headers["x-sandhaus-offset"], "0");
    assert_eq!(reply.headers["x-sandhaus-end-offset"], reply.body.len().to_string());
    // Over HTTP and over a socket: a part, then a broken connection.
    let mut answer = agent.send("GET", &format!("{logs}?follow=true&offset=10"), &[], b"");
    assert_eq!(answer.headers["x-sandhaus-offset"], "10");
    let first = answer.next_piece().expect("a piece").expect("not the end");
    drop(answer);
    assert_eq!(first, reply.body[10..10 + first.len()]);
    let from = 10 + first.len();
    let (mut socket, _) =
        Socket::connect(&agent, &format!("{logs}?follow=true&offset={from}"), "").expect("upgrades");
    let (kind, second) = socket.receive();
    assert_eq!((kind, &second[..]), (2, &reply.body[from..from + second.len()]));
    drop(socket);
    let from = from + second.len();
    let input = format!("/process/session/s/command/{}/input", reply_id(&logs));
    assert_eq!(agent.post(&input, &json!({ "data": "go" })).status, 204);
    let rest = agent.request("GET", &format!("{logs}?follow=true&offset={from}"), &[], b"");
    let log = whole().body;
    assert_eq!(rest.body, log[from..]);
    assert!(log.ends_with(b"last"));
    // Who knows no markers sees none, also while following.
    let plain = agent.request("GET", &format!("{logs}?follow=true"), &[], b"").body;
    assert!(!plain.contains(&1) && !plain.contains(&2) && plain.ends_with(b"last"));
    let old = "X-Daytona-SDK-Version~0.26.0";
    let (socket, _) = Socket::connect(&agent, &format!("{logs}?follow=true"), old).expect("upgrades");
    assert_eq!(socket.finish().0, plain);
}

/// The command's name in the address of its log.
fn reply_id(logs: &str) -> &str {
    logs.rsplit('/').nth(1).expect("it has one")
}

#[test]
fn a_terminal_has_many_clients_and_drops_the_slow_ones() {
    /// Together more than all the buffers between hold, each less than the queue of one client.
    const STEPS: usize = 12;
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t" })).status, 201);
    let connect = || Socket::connect(&agent, "/process/pty/t/connect", "").expect("upgrades").0;
    let (slow, mut one, mut other) = (connect(), connect(), connect());
    for step in 0..STEPS {
        one.send(&format!("head -c 200000 /dev/zero | tr '\\0' x; echo en''d{step}\n"));
        let end = format!("end{step}\r\n");
        for quick in [&mut one, &mut other] {
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen[seen.len().saturating_sub(8192)..]).contains(&end) {
                seen.extend_from_slice(&quick.receive().1);
            }
        }
    }
    let (_, _, close) = slow.finish();
    assert_eq!(&close[..2], 1008_u16.to_be_bytes());
    other.send("exit 0\n");
    for quick in [one, other] {
        assert_eq!(&quick.finish().2[..2], 1000_u16.to_be_bytes());
    }
}

#[test]
fn a_terminal_goes_on_where_a_connection_broke() {
    let agent = Agent::start(None);
    assert_eq!(agent.post("/process/pty", &json!({ "id": "t", "lazyStart": true })).status, 201);
    let connect = |offset: usize| {
        let target = format!("/process/pty/t/connect?offset={offset}");
        let (mut socket, _) = Socket::connect(&agent, &target, "").expect("upgrades");
        let connected: Value = serde_json::from_slice(&socket.receive().1).expect("JSON");
        assert_eq!(connected["offset"], offset);
        socket
    };
    let mut first = connect(0);
    first.send("echo $((40+2)); echo en''d\n");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("end\r\n") {
        seen.extend_from_slice(&first.receive().1);
    }
    drop(first);
    let place = seen.windows(4).position(|window| window == b"42\r\n").expect("printed");
    let mut again = connect(place);
    assert!(again.receive().1.starts_with(b"42\r\nend\r\n"));
    assert_eq!(agent.delete("/process/pty/t").status, 200);
}

#[test]
fn a_reader_that_is_behind_holds_its_command_up_and_loses_nothing() {
    let agent = Agent::start(None);
    agent.post("/process/session", &json!({ "sessionId": "s" }));
    let script = "read x; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo done";
    let reply =
        in_session(&agent, "s", &json!({ "command": script, "async": true, "suppressInputEcho": true }));
    let reply: SessionExecuteReply = reply.json();
    let command = format!("/process/session/s/command/{}", reply.cmd_id);
    let mut following = agent.send("GET", &format!("{command}/logs?follow=true"), &[], b"");
    assert_eq!(agent.post(&format!("{command}/input"), &json!({ "data": "" })).status, 204);
    let (mut count, mut tail) = (0, Vec::new());
    while let Some(piece) = following.next_piece().expect("whole") {
        count += piece.len();
        tail.extend_from_slice(&piece);
        tail = tail.split_off(tail.len().saturating_sub(16));
    }
    assert_eq!(count, 20_000_000 + "\ndone\n".len());
    assert!(tail.ends_with(b"x\ndone\n"));
}

#[test]
fn a_command_can_come_with_the_agent() {
    let agent = Agent::start_prepared(None, |command, _| {
        command.args(["--", "sh", "-c", "echo out; echo err >&2; echo \"$0\" $1; exit 3", "a b", "c"]);
    });
    let reply = agent.request("GET", "/process/session/entrypoint/logs?follow=true", &[], b"");
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(text.contains("out\n") && text.contains("err\n") && text.contains("a b c\n"), "{text}");
    let session: Session = agent.get("/process/session/entrypoint").json();
    assert_eq!(
        (session.commands[0].id.as_str(), session.commands[0].exit_code),
        ("entrypoint_command", Some(3))
    );
    assert_eq!(agent.get("/process/session").json::<Vec<Session>>(), []);
    assert_eq!(agent.delete("/process/session/entrypoint").refusal().0, 400);
    let plain = Agent::start(None);
    assert_eq!(plain.get("/process/session/entrypoint").refusal().0, 404);
}

#[test]
fn what_the_agent_says_of_itself() {
    let agent = Agent::start(None);
    assert_eq!(agent.get("/version").json::<Value>()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(agent.get("/health").json::<Value>()["status"], "ok");
    let work = agent.work().canonicalize().expect("resolves");
    for route in ["/work-dir", "/project-dir"] {
        assert_eq!(agent.get(route).json::<Value>()["dir"].as_str(), work.to_str());
    }
    assert!(agent.get("/user-home-dir").json::<Value>()["dir"].is_string());
}
