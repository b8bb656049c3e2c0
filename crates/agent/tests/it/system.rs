//! The sandbox as a machine: what it uses, its environment, its ports, what is not there.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sandhaus_protocol::system::{MemoryStats, Metrics, PortInUse, PortList};
use serde_json::{Value, json};

use crate::support::{Agent, Who, argv, eventually};

#[test]
fn use_of_the_machine_is_what_the_kernel_says() {
    let agent = Agent::start(None);
    let metrics: Metrics = agent.get("/system/metrics").json();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(metrics.timestamp_unix.unsigned_abs().abs_diff(now) < 300, "{metrics:?}");
    assert!((0.0..=100.0).contains(&metrics.cpu_used_pct), "{metrics:?}");
    assert!(metrics.cpu_count >= 1 && metrics.mem_used > 0 && metrics.mem_used <= metrics.mem_total);
    let disk = rustix::fs::statvfs(agent.work()).expect("the disk of the work directory");
    assert_eq!(metrics.disk_total, disk.f_blocks * disk.f_frsize);
    assert!(metrics.disk_used + metrics.disk_free <= metrics.disk_total, "{metrics:?}");
    let memory: MemoryStats = agent.get("/memory-stats").json();
    assert_eq!(memory.total, metrics.mem_total);
    assert!(memory.used <= memory.total && memory.available <= memory.total && memory.free <= memory.total);
}

#[test]
fn a_busy_process_shows_in_the_metrics() {
    let agent = Agent::start(None);
    let mut busy = agent.spawn(&argv(&["sh", "-c", "echo up; while :; do :; done"]));
    busy.until("up");
    eventually("use of the processors is seen", || {
        agent.get("/system/metrics").json::<Metrics>().cpu_used_pct > 5.0
    });
    busy.hang_up();
}

#[test]
fn the_first_process_counts_its_own_sandbox() {
    let Some(agent) = Agent::init(Who::Root) else { return };
    let metrics: Metrics = agent.get("/system/metrics").json();
    // The boot document of these tests says so.
    assert_eq!((metrics.mem_total, metrics.cpu_count), (512 << 20, 1));
    assert!(metrics.mem_used > 0 && metrics.mem_used < 256 << 20, "{metrics:?}");
    let hog =
        "python3 -c 'import time; held = bytearray(96 << 20); print(\"held\", flush=True); time.sleep(600)'";
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: this machine has no python3");
        return;
    }
    agent.spawn(&argv(&["sh", "-c", hog])).until("held");
    let after: MemoryStats = agent.get("/memory-stats").json();
    assert!(after.used >= metrics.mem_used + (64 << 20), "{after:?} after {metrics:?}");
}

#[test]
fn a_limited_cgroup_is_the_machine() {
    // Version 1 beside version 2, or version 2 alone: whichever hierarchy has a controller for memory here.
    let mount = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .iter()
        .find(|mount| fs::metadata(format!("{mount}/cgroup.procs")).is_ok());
    let Some(mount) = mount.filter(|_| rustix::process::geteuid().is_root()) else {
        eprintln!("SKIPPED: no cgroup can be made here");
        return;
    };
    let group = format!("{mount}/sandhaus-agent-test-{}", std::process::id());
    let limits = ["memory.limit_in_bytes", "memory.max"].map(|name| format!("{group}/{name}"));
    if fs::create_dir(&group).is_err() || !limits.iter().any(|limit| fs::write(limit, "268435456").is_ok()) {
        let _ = fs::remove_dir(&group);
        eprintln!("SKIPPED: no memory limit can be set here");
        return;
    }
    let agent = Agent::start(None);
    fs::write(format!("{group}/cgroup.procs"), agent.pid.to_string()).expect("join the cgroup");
    let memory: MemoryStats = agent.get("/memory-stats").json();
    assert_eq!(memory.total, 268_435_456);
    assert!(memory.used < memory.total && memory.available <= memory.total, "{memory:?}");
    drop(agent);
    eventually("the cgroup can go", || fs::remove_dir(&group).is_ok());
}

#[test]
fn later_processes_find_the_changed_environment() {
    let agent = Agent::start(None);
    let change = |change: Value| agent.post("/env", &change).status;
    let seen = |name: &str| {
        let run =
            agent.post("/process/execute", &json!({ "command": format!("printf %s \"${{{name}-none}}\"") }));
        run.json::<Value>()["result"].as_str().expect("text").to_owned()
    };
    assert_eq!(agent.shell("echo before").0, "before\n");
    assert_eq!(
        change(json!({ "set": { "A": "one", "TOKEN": "placeholder:1", "KEY": "placeholder:2" } })),
        200
    );
    assert_eq!((seen("A"), seen("TOKEN")), ("one".to_owned(), "placeholder:1".to_owned()));
    assert_eq!(agent.shell("echo ${A-none}").0, "none\n", "what runs keeps its own");
    let revoked =
        json!({ "unsetValuePrefix": "placeholder:", "set": { "KEY": "placeholder:3" }, "unset": ["A"] });
    assert_eq!(change(revoked), 200);
    assert_eq!([seen("A"), seen("TOKEN"), seen("KEY")], ["none", "none", "placeholder:3"]);
    for wrong in [
        json!({ "set": { "1A": "x" } }),
        json!({ "set": { "A=B": "x", "GOOD": "x" } }),
        json!({ "unset": ["a b"] }),
        json!({ "set": { "A": "nul\0" } }),
        json!({ "set": { "A": "x".repeat(200_000) } }),
    ] {
        assert_eq!(agent.post("/env", &wrong).refusal().0, 400);
    }
    assert_eq!(seen("GOOD"), "none", "a change with a mistake changes nothing");
    let unsaid = agent.request("POST", "/env", &[], br#"{"set":{"UNSAID":"json"}}"#);
    assert_eq!((unsaid.status, seen("UNSAID")), (200, "json".to_owned()), "JSON without its name is JSON");
    assert_eq!(change(json!({ "unsetValuePrefix": "" })), 200);
    assert_eq!(seen("KEY"), "placeholder:3", "an empty prefix means none");
}

#[test]
fn who_and_where_it_is() {
    let agent = Agent::start(None);
    let work = agent.work().canonicalize().expect("a real path");
    for route in ["/work-dir", "/project-dir"] {
        assert_eq!(agent.get(route).json::<Value>()["dir"], work.to_str().expect("UTF-8"));
    }
    assert!(
        agent.get("/user-home-dir").json::<Value>()["dir"].as_str().is_some_and(|dir| dir.starts_with('/'))
    );
    assert_eq!(agent.get("/version").json::<Value>()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(agent.get("/health").json::<Value>()["status"], "ok");
    assert_eq!(agent.post("/init", &json!({ "token": "x" })).status, 200);
    assert_eq!(agent.request("POST", "/init", &[], b"").status, 200);
    assert_eq!(agent.request("POST", "/init", &[], b"[").refusal(), (400, "INVALID_REQUEST_BODY".to_owned()));
    let description: Value = agent.get("/swagger/doc.json").json();
    assert!(description["paths"]["/files/upload-v2"]["post"].is_object(), "{description}");
    assert_eq!(agent.get("/swagger/index.html").headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(agent.post("/env", &json!({ "set": { "ENVIRONMENT": "production" } })).status, 200);
    for hidden in ["/swagger", "/swagger/index.html", "/swagger/doc.json"] {
        assert_eq!(agent.get(hidden).refusal().0, 404, "{hidden}");
    }
}

#[test]
fn listeners_are_seen_when_asked_for() {
    let agent = Agent::start(None);
    let listed = || agent.get("/port").json::<PortList>().ports;
    let in_use = |port: u16| agent.get(&format!("/port/{port}/in-use")).json::<PortInUse>().is_in_use;
    // Any of those that may be asked for which nobody has here.
    let (listener, port) = (3000..=9999)
        .find_map(|port| Some((TcpListener::bind(("127.0.0.1", port)).ok()?, port)))
        .expect("one of seven thousand ports is free");
    assert!(listed().contains(&port) && in_use(port));
    let newer = (port + 1..=9999).find_map(|port| Some((TcpListener::bind(("::1", port)).ok()?, port)));
    match &newer {
        Some((_, port)) => assert!(listed().contains(port) && in_use(*port)),
        None => eprintln!("SKIPPED: this machine has no IPv6"),
    }
    drop(listener);
    assert!(!in_use(port) || TcpListener::bind(("127.0.0.1", port)).is_err());
    for wrong in ["2999", "10000", "0", "x", "-1", "70000"] {
        assert_eq!(agent.get(&format!("/port/{wrong}/in-use")).refusal().0, 400, "{wrong}");
    }
}

#[test]
fn what_is_not_there_says_so() {
    let agent = Agent::start(None);
    for (method, route) in [
        ("POST", "start"),
        ("GET", "status"),
        ("GET", "screenshot/region/compressed"),
        ("POST", "mouse/click"),
        ("GET", "a11y/tree"),
        ("GET", "process/xvfb/logs"),
    ] {
        let reply = agent.request(method, &format!("/computeruse/{route}"), &[], b"");
        let body: Value = reply.json();
        assert_eq!(reply.refusal().0, 503, "{route}");
        assert!(body["details"].is_string() && body["solution"].is_string(), "{body}");
    }
    for (method, route) in
        [("POST", "/start"), ("GET", ""), ("GET", "/x"), ("GET", "/x/download"), ("DELETE", "/x")]
    {
        let reply = agent.request(method, &format!("/computeruse/recordings{route}"), &[], b"");
        assert_eq!(reply.refusal(), (503, "RECORDING_FFMPEG_NOT_FOUND".to_owned()), "{route}");
    }
}

#[test]
fn questions_cost_nothing_when_nobody_asks() {
    let agent = Agent::start(None);
    agent.get("/system/metrics");
    agent.get("/port");
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid)).expect("the agent lives");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split(' ').collect();
        fields[12].parse::<u64>().expect("ticks") + fields[13].parse::<u64>().expect("ticks")
    };
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid)).expect("the agent lives");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).expect("a line");
        line.split_whitespace().nth(1).expect("a number").to_owned()
    };
    // It settles, and then does nothing at all for a while.
    let quiet = Duration::from_millis(1500);
    eventually("the agent sleeps", || {
        let before = (used(), switches());
        std::thread::sleep(quiet);
        before == (used(), switches())
    });
}

/// Routes that the sources name: path and methods. Those of other listeners, and what is the host's alone, are left out.
fn routes_of_the_sources(folder: &std::path::Path, found: &mut std::collections::BTreeSet<(String, String)>) {
    for entry in fs::read_dir(folder).expect("list the sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !["terminal", "guest", "ssh", "sys"].iter().any(|other| path.ends_with(other)) {
                routes_of_the_sources(&path, found);
            }
            continue;
        }
        let text = fs::read_to_string(&path).expect("read a source");
        // Tests route to things of their own.
        let served = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for call in served.split(".route(").skip(1) {
            let Some(rest) = call.trim_start().strip_prefix('"') else { continue };
            let (path, handlers) = rest.split_once('"').expect("a closed text");
            let handlers = handlers.split([';', '\n']).next().unwrap_or_default();
            for (call, method) in
                [("get(", "get"), ("post(", "post"), ("delete(", "delete"), ("delete_route(", "delete")]
            {
                let starts = |at: usize| {
                    !handlers[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
                };
                if handlers.match_indices(call).any(|(at, _)| starts(at)) {
                    found.insert((path.trim_end_matches('/').replace("{*", "{"), method.to_owned()));
                }
            }
        }
    }
}

#[test]
fn every_route_is_described_and_every_description_is_served() {
    let agent = Agent::start(None);
    let description: Value = agent.get("/swagger/doc.json").json();
    let mut described = std::collections::BTreeSet::new();
    for (path, operations) in description["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            described.insert((path.clone(), method.clone()));
        }
    }
    let mut sources = std::collections::BTreeSet::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    routes_of_the_sources(&folder, &mut sources);
    sources.retain(|(path, _)| !path.starts_with("/swagger"));
    assert!(sources.len() > 50, "{sources:?}");
    let missing: Vec<_> = sources.difference(&described).collect();
    assert!(missing.is_empty(), "not in protocol/src/openapi.rs: {missing:?}");
    for (path, method) in described {
        let target = path.replace("{port}", "1").replace(['{', '}'], "");
        let reply = agent.send(&method.to_uppercase(), &target, &[], b"");
        if reply.status < 400 {
            continue;
        }
        let body: Value = reply.finish().json();
        let message = body["message"].as_str().expect("a message");
        assert!(!message.contains("no such route") && body["statusCode"] != 405, "{method} {path}: {body}");
        assert_ne!(body["statusCode"], 500, "{method} {path}: {body}");
    }
}
