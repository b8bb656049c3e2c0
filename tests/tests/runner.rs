//! The API of a runner over the real binary: what a control plane, or somebody with `curl`, does with one.

use sandhaus_tests::{
    http::{Answer, Http},
    server::{DataDir, Options, Server, with_configured_server, with_server_on},
    settles, vm,
    websocket::{Message, WebSocket},
};
use serde_json::{Value, json};

const ID: &str = "7e57ab1e-0123-4567-89ab-0123456789ab";
const OTHER: &str = "7e57ab1e-0123-4567-89ab-ba9876543210";
const THIRD: &str = "11111111-2222-4333-8444-555555555555";

fn options() -> Options {
    Options {
        config: Some("runner: {enabled: true, listen: '127.0.0.1:0'}\n".to_owned()),
        ..Options::default()
    }
}

/// Where its runner listens, as the server's banner says.
fn runner(server: &Server) -> Http {
    let mut address = None;
    settles("the runner's address in the banner", || {
        let log = server.log();
        let line = log.lines().find_map(|line| line.trim().strip_prefix("runner"));
        let url = line.and_then(|line| line.trim().strip_prefix("http://"));
        address = url.and_then(|url| url.trim_end_matches('/').parse().ok());
        address.is_some()
    });
    Http::new(address.expect("found above"))
}

struct Sandbox<'a> {
    http: &'a Http,
    id: &'a str,
}

impl Sandbox<'_> {
    fn post(&self, verb: &str, body: &Value) -> Answer {
        self.http.post(&format!("/sandboxes/{}/{verb}", self.id), body)
    }

    fn state(&self) -> String {
        let info: Value = self.http.get(&format!("/sandboxes/{}", self.id)).expect(200).json();
        info["state"].as_str().expect("a word").to_owned()
    }

    /// Runs a command as an SDK does.
    #[track_caller]
    fn run(&self, command: &str) -> String {
        let answer = self.post("toolbox/process/execute", &json!({ "command": command }));
        let result: Value = answer.expect(200).json();
        assert_eq!(result["exitCode"], 0, "{command}: {result}");
        result["result"].as_str().expect("text").trim_end().to_owned()
    }
}

fn body(id: &str, snapshot: &str) -> Value {
    json!({
        "id": id, "userId": "u", "osUser": "daytona", "snapshot": snapshot, "cpuQuota": 1, "memoryQuota": 512,
        "storageQuota": 0, "networkBlockAll": true, "sandboxClass": "container", "env": { "MINE": "kept" },
    })
}

#[test]
fn a_sandbox_of_a_control_plane() {
    with_configured_server("a_sandbox_of_a_control_plane", &options(), |server| {
        let http = runner(server);
        let health: Value = http.get("/").expect(200).json();
        assert_eq!(health["status"], "ok");
        let sandbox = Sandbox { http: &http, id: ID };
        assert_eq!(sandbox.state(), "destroyed");
        let missing = http.post("/sandboxes", &body(ID, "not-here")).expect(404).text();
        assert!(missing.contains("/snapshots/pull"), "{missing}");

        let made: Value = http.post("/sandboxes", &body(ID, "host")).expect(201).json();
        assert!(made["daemonVersion"].as_str().is_some_and(|version| !version.is_empty()), "{made}");
        assert_eq!(sandbox.state(), "started");
        assert_eq!(sandbox.run("echo $MINE $DAYTONA_SANDBOX_ID"), format!("kept {ID}"));
        // The native API sees the same sandbox.
        let session: Value = server.http().get(&format!("/v1/sessions/{ID}")).expect(200).json();
        assert_eq!((&session["security"], &session["network"]), (&json!("container"), &json!("none")));

        sandbox.post("resize", &json!({ "memory": 768 })).expect(200);
        assert_eq!(http.post(&format!("/sandboxes/{ID}/resize"), &json!({ "memory": 256 })).status, 400);
        sandbox.run("echo old > ~/note");
        sandbox.post("pause", &Value::Null).expect(200);
        assert_eq!(sandbox.state(), "paused");
        sandbox.post("toolbox/process/execute", &json!({ "command": "true" })).expect(409);
        sandbox.post("resume", &Value::Null).expect(200);
        let pushed = http.post("/snapshots/push", &json!({ "sandboxId": ID, "snapshotName": "x" }));
        assert!(pushed.expect(409).text().contains("sandbox must be stopped or paused"));

        let created: Value =
            http.post("/snapshots/create", &json!({ "sandboxId": ID, "name": "noted" })).expect(200).json();
        assert_eq!((&created["name"], &created["liveMode"]), (&json!("noted"), &json!(false)));
        let info: Value = http.get("/snapshots/info?snapshot=noted").expect(200).json();
        assert!(info["sizeGB"].is_number(), "{info}");
        sandbox.run("echo new > ~/note");
        let other = Sandbox { http: &http, id: OTHER };
        http.post("/sandboxes", &body(OTHER, "noted")).expect(201);
        assert_eq!(
            (other.run("cat ~/note"), sandbox.run("cat ~/note")),
            ("old".to_owned(), "new".to_owned())
        );
        other.post("destroy", &Value::Null).expect(200);
        http.post("/snapshots/remove?snapshot=noted", &Value::Null).expect(200);

        sandbox.post("stop", &json!({ "force": true })).expect(200);
        assert_eq!(sandbox.state(), "stopped");
        sandbox.post("start", &Value::Null).expect(200);
        assert_eq!(sandbox.run("cat ~/note"), "new");
        let text = http.get("/metrics").expect(200).text();
        assert!(
            text.contains(r#"container_operation_total{operation="create",status="success"} 2"#),
            "{text}"
        );
        let figures: Value = http.get("/info").expect(200).json();
        assert_eq!(figures["metrics"]["currentStartedSandboxes"], 1, "{figures}");
        sandbox.post("destroy", &Value::Null).expect(200);
        assert_eq!(sandbox.state(), "destroyed");
    });
}

fn machine_body(id: &str, snapshot: &str) -> Value {
    let mut body = body(id, snapshot);
    body["sandboxClass"] = "linux-vm".into();
    body["memoryQuota"] = 256.into();
    body
}

/// What a person at a terminal in a sandbox types and sees, to the end of its shell.
fn terminal(http: &Http, id: &str) {
    let path = format!("/sandboxes/{id}/toolbox/process/pty/create-connect?id=window&cols=100&rows=30");
    let mut socket = WebSocket::open(http, &path);
    let Message::Text(first) = socket.read() else { panic!("a word first") };
    assert!(first.contains("connected"), "{first}");
    socket.send(b"stty size; echo $((6*7))-typed\n");
    let seen = socket.read_until("42-typed");
    assert!(seen.contains("30 100"), "{seen}");
    socket.send(b"exit 3\n");
    let end = loop {
        if let Message::Close(code, reason) = socket.read() {
            break (code, serde_json::from_str::<Value>(&reason).expect("JSON"));
        }
    };
    assert_eq!((end.0, &end.1["exitCode"]), (1011, &json!(3)));
}

/// A file goes in and comes out as it was, whatever its bytes and its name.
fn files(http: &Http, id: &str) {
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let path = "path=/root/a%20file%2Bmore";
    let toolbox = format!("/sandboxes/{id}/toolbox");
    let put = format!("{toolbox}/files/upload-v2?{path}");
    http.send("POST", &put, "application/octet-stream", &content).expect(200);
    assert!(http.get(&format!("{toolbox}/files/download?{path}")).expect(200).body == content);
    let info: Value = http.get(&format!("{toolbox}/files/info?{path}")).expect(200).json();
    assert_eq!((&info["name"], &info["size"]), (&json!("a file+more"), &json!(300_000)));
}

/// Waits until a pull has ended well.
fn pulled(http: &Http, snapshot: &str) {
    http.post("/snapshots/pull", &json!({ "snapshot": snapshot, "sandboxClass": "linux-vm" })).expect(202);
    settles("the snapshot is here", || {
        let info = http.get(&format!("/snapshots/info?snapshot={snapshot}"));
        assert!(matches!(info.status, 200 | 404), "{}", info.text());
        info.status == 200
    });
}

#[test]
fn a_virtual_machine_of_a_control_plane() {
    let name = "a_virtual_machine_of_a_control_plane";
    if !vm::bootable(name) {
        return;
    }
    let dir = DataDir::new();
    vm::disk_image(dir.path());
    let store = tempfile::tempdir().expect("make a folder");
    let more = format!(
        "runner: {{enabled: true, listen: '127.0.0.1:0'}}\nsnapshots: {{store: {}}}\n",
        store.path().display()
    );
    with_server_on(&dir, &vm::options(&more), |server| {
        let http = runner(server);
        let health: Value = http.get("/").expect(200).json();
        assert_eq!(health["status"], "ok");
        let sandbox = Sandbox { http: &http, id: ID };
        let made: Value = http.post("/sandboxes", &machine_body(ID, vm::DISK_IMAGE)).expect(201).json();
        assert!(made["daemonVersion"].as_str().is_some_and(|version| !version.is_empty()), "{made}");
        assert_eq!(sandbox.state(), "started");
        assert_eq!(sandbox.run("echo $MINE $DAYTONA_SANDBOX_ID"), format!("kept {ID}"));
        files(&http, ID);
        terminal(&http, ID);

        // Its memory is kept while it stands still, and its disk is copied while it runs.
        sandbox
            .run("echo in memory > /dev/shm/note || echo in memory > /tmp/note; echo old > /root/note; sync");
        let running = json!({ "sandboxId": ID, "snapshotName": "resting" });
        assert!(http.post("/snapshots/push", &running).expect(409).text().contains("stopped or paused"));
        sandbox.post("pause", &Value::Null).expect(200);
        assert_eq!(sandbox.state(), "paused");
        sandbox.post("toolbox/process/execute", &json!({ "command": "true" })).expect(409);
        sandbox.post("resume", &Value::Null).expect(200);
        assert_eq!(sandbox.run("cat /dev/shm/note /tmp/note 2>/dev/null || true"), "in memory");
        let live = json!({ "sandboxId": ID, "name": "live", "live": true });
        let created: Value = http.post("/snapshots/create", &live).expect(200).json();
        assert_eq!((&created["name"], &created["liveMode"]), (&json!("live"), &json!(true)));
        let there = |name: &str| -> bool {
            let answer: Value = http.get(&format!("/snapshots/exists?snapshot={name}")).expect(200).json();
            answer["exists"] == true
        };
        assert!(there("live"));
        let kept = store.path().join(created["snapshotPath"].as_str().expect("a path"));
        assert!(kept.join("disk.qcow2").is_file() && kept.join("kernel").is_file(), "{}", kept.display());

        // Where nobody says otherwise, what was written a moment ago is in it.
        sandbox.run("echo fresh > /root/fresh");
        let whole = json!({ "sandboxId": ID, "name": "whole" });
        http.post("/snapshots/create", &whole).expect(200);
        assert_eq!(sandbox.run("echo goes on > /root/fresh; cat /root/fresh"), "goes on");

        // Its disk grows under it, and the file system with it.
        let room = || sandbox.run("df -k / | awk 'END {print $2}'").parse::<u64>().expect("a number");
        assert!(room() < 200 << 10);
        sandbox.post("resize", &json!({ "disk": 300 })).expect(200);
        assert!(room() > 260 << 10, "{} KiB", room());
        let smaller = sandbox.post("resize", &json!({ "disk": 290 })).expect(400).text();
        assert!(smaller.contains("can only grow"), "{smaller}");

        // Stopped, it is pushed; another host has to pull it first.
        sandbox.run("echo later > /root/note; sync");
        sandbox.post("stop", &Value::Null).expect(200);
        assert_eq!(sandbox.state(), "stopped");
        sandbox.post("resize", &json!({ "disk": 400 })).expect(200);
        let pushed: Value = http.post("/snapshots/push", &running).expect(200).json();
        assert!(store.path().join(pushed["snapshotPath"].as_str().expect("a path")).is_dir(), "{pushed}");
        for name in ["live", "live"] {
            http.post(&format!("/snapshots/remove?snapshot={name}"), &Value::Null).expect(200);
        }
        assert!(!there("live") && !there("resting"));
        let refused = http.post("/sandboxes", &machine_body(OTHER, "live")).expect(404).text();
        assert!(refused.contains("/snapshots/pull"), "{refused}");
        pulled(&http, "live");
        let other = Sandbox { http: &http, id: OTHER };
        http.post("/sandboxes", &machine_body(OTHER, "live")).expect(201);
        assert_eq!(other.run("cat /root/note; wc -c < '/root/a file+more'"), "old\n300000");
        let figures: Value = http.get("/info").expect(200).json();
        assert_eq!(figures["metrics"]["currentStartedSandboxes"], 1, "{figures}");
        other.post("destroy", &Value::Null).expect(200);
        http.post("/sandboxes", &machine_body(THIRD, "whole")).expect(201);
        let third = Sandbox { http: &http, id: THIRD };
        assert_eq!(third.run("cat /root/fresh"), "fresh");
        third.post("destroy", &Value::Null).expect(200);

        // And the first one goes on with its own disk.
        sandbox.post("start", &Value::Null).expect(200);
        assert_eq!(sandbox.run("cat /root/note"), "later");
        assert!(room() > 340 << 10, "{} KiB", room());
        let text = http.get("/metrics").expect(200).text();
        for operation in ["create", "pause", "resume", "stop", "start", "snapshot", "push_snapshot"] {
            let line = format!(r#"container_operation_total{{operation="{operation}",status="success"}}"#);
            assert!(text.contains(&line), "{operation} in {text}");
        }
        sandbox.post("destroy", &Value::Null).expect(200);
        assert_eq!((sandbox.state(), other.state()), ("destroyed".to_owned(), "destroyed".to_owned()));
        http.post("/snapshots/remove?snapshot=live", &Value::Null).expect(200);
    });
}

#[test]
fn ports_and_streams_of_a_sandbox() {
    with_configured_server("ports_and_streams_of_a_sandbox", &options(), |server| {
        let http = runner(server);
        http.post("/sandboxes", &body("by-name", "host")).expect(201);
        let sandbox = Sandbox { http: &http, id: "by-name" };
        sandbox.run("mkdir -p /tmp/site && echo served > /tmp/site/page");
        sandbox.post("toolbox/process/session", &json!({ "sessionId": "web" })).expect(201);
        let serve =
            json!({ "command": "python3 -m http.server 3000 --directory /tmp/site", "runAsync": true });
        sandbox.post("toolbox/process/session/web/exec", &serve).expect(202);
        settles("a web server inside", || http.get("/sandboxes/by-name/proxy/3000/page").status == 200);
        for path in ["proxy/3000/page", "toolbox/proxy/3000/page"] {
            let page = http.get(&format!("/sandboxes/by-name/{path}")).expect(200);
            assert_eq!(page.text().trim_end(), "served", "{path}");
        }
        http.get("/sandboxes/by-name/proxy/3001/").expect(502);
        http.get("/sandboxes/by-name/proxy/0/").expect(400);
        // A log that is followed goes on as long as what writes it.
        let command = json!({ "command": "for n in 1 2 3; do echo line$n; done", "runAsync": true });
        sandbox.post("toolbox/process/session", &json!({ "sessionId": "talk" })).expect(201);
        let started: Value = sandbox.post("toolbox/process/session/talk/exec", &command).expect(202).json();
        let command = started["cmdId"].as_str().expect("an id");
        let logs = http
            .get(&format!(
                "/sandboxes/by-name/toolbox/process/session/talk/command/{command}/logs?follow=true"
            ))
            .expect(200);
        assert!(logs.text().contains("line3"), "{}", logs.text());
        sandbox.post("destroy", &Value::Null).expect(200);
    });
}
