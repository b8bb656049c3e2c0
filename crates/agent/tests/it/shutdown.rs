//! How an agent ends, what it writes about itself, and what it starts beside.

use std::{
    io::{Read as _, Write as _},
    thread,
};

use serde_json::{Value, json};

use crate::support::{Agent, Who, argv, eventually};

#[test]
fn what_was_asked_for_is_answered_before_the_end() {
    let mut agent = Agent::start(None);
    let idle = agent.connect();
    let mut kept = agent.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: agent\r\n\r\n").expect("ask");
    let mut head = [0; 12];
    kept.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let command = "echo begun > begun; while [ ! -e go ]; do sleep 0.05; done; echo done";
            agent.post("/process/execute", &json!({ "command": command }))
        });
        eventually("the command runs", || agent.work().join("begun").exists());
        agent.ask_to_end();
        eventually("nobody is let in any more", || {
            std::os::unix::net::UnixStream::connect(agent.work().with_file_name("sock")).is_err()
        });
        std::fs::write(agent.work().join("go"), "").expect("let it go on");
        let reply = asked.join().expect("asked");
        assert_eq!((reply.status, reply.json::<Value>()["result"].as_str()), (200, Some("done\n")));
    });
    assert!(agent.wait(), "it ends in order");
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).expect("an idle connection is closed");
    drop(idle);
}

#[test]
fn a_second_request_to_end_is_not_waited_for() {
    let mut agent = Agent::start(None);
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut stream = agent.connect();
            let body = r#"{"command":"echo begun > begun; sleep 600"}"#;
            let head = "POST /process/execute HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\n";
            write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("ask");
            let mut rest = Vec::new();
            // It breaks off, in whatever way.
            let _ = stream.read_to_end(&mut rest);
            rest
        });
        eventually("the command runs", || agent.work().join("begun").exists());
        agent.ask_to_end();
        eventually("nobody is let in any more", || {
            std::os::unix::net::UnixStream::connect(agent.work().with_file_name("sock")).is_err()
        });
        agent.ask_to_end();
        assert_eq!(asked.join().expect("asked"), b"");
    });
    assert!(agent.wait());
}

#[test]
fn the_first_process_ends_its_processes_and_their_streams() {
    let Some(mut agent) = Agent::init(Who::Root) else { return };
    let mut stream = agent.spawn(&argv(&["sh", "-c", "echo up; exec sleep 600"]));
    stream.until("up");
    agent.ask_to_end();
    let all = stream.collect();
    let exit: Value = serde_json::from_slice(&all.exit).expect("an exit record");
    // The hang-up comes a moment before the request to end; either ends it.
    assert!(exit["signal"] == 1 || exit["signal"] == 15, "{exit}");
    agent.wait();
}

#[test]
fn it_writes_down_what_it_does_and_nothing_secret() {
    let agent = Agent::start_prepared(None, |command, _| {
        command.env("LOG_LEVEL", "debug");
    });
    assert_eq!(agent.get("/files/info?path=.&signature=secret").status, 200);
    assert_eq!(agent.get("/computeruse/status").status, 503);
    eventually("all of it is written", || agent.log().contains("GET /computeruse/status 503"));
    let log = agent.log();
    assert!(
        log.contains("INFO  the toolbox is served\n") && log.contains("DEBUG GET /files/info 200\n"),
        "{log}"
    );
    assert!(!log.contains("secret"), "{log}");
    let quiet = Agent::start_prepared(None, |command, _| {
        command.env("LOG_LEVEL", "error");
    });
    assert_eq!(quiet.get("/computeruse/status").status, 503);
    assert_eq!(quiet.log(), "");
}

#[test]
fn a_command_beside_runs_in_its_own_session() {
    let agent = Agent::start_prepared(None, |command, _| {
        command.args(["sh", "-c", "echo \"$1\" > beside; exec sleep 600", "sh", "-x y"]);
    });
    let beside = agent.work().join("beside");
    eventually("it has run", || std::fs::read(&beside).is_ok_and(|text| text == b"-x y\n"));
    let session: Value = agent.get("/process/session/entrypoint").json();
    assert_eq!(session["commands"][0]["id"], "entrypoint_command", "{session}");
}

#[test]
fn processes_start_at_home_where_that_is_asked_for() {
    let agent = Agent::start_prepared(None, |command, folder| {
        let socket = format!("unix:{}", folder.join("sock").display());
        *command = std::process::Command::new(env!("CARGO_BIN_EXE_sandhaus-agent"));
        command
            .args(["--listen", &socket])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", folder.join("work"));
        command
            .env("DAYTONA_USER_HOME_AS_WORKDIR", "true")
            .env("DAYTONA_DAEMON_LOG_FILE_PATH", folder.join("log"));
    });
    let work = agent.work().canonicalize().expect("a real path");
    assert_eq!(agent.get("/work-dir").json::<Value>()["dir"], work.to_str().expect("UTF-8"));
}
