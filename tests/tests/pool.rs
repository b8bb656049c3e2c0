//! Sandboxes kept ready: given to whoever asks for one like them and to nobody else, whatever happens to the server.

use std::{collections::BTreeSet, sync::Barrier};

use sandhaus_client::wire::{PoolInfo, SessionInfo};
use sandhaus_tests::{
    binary,
    http::Http,
    runnable,
    server::{DataDir, Options, Server},
    session::Session,
};
use serde_json::{Value, json};

/// Creates at once.
const AT_ONCE: usize = 100;

fn keeping(count: usize) -> Options {
    Options {
        config: Some(format!("pool:\n  enabled: true\n  images: {{host: {count}}}\n")),
        ..Options::default()
    }
}

/// Waits until the pool is full, as its owner would.
#[track_caller]
fn fill(http: &Http) -> PoolInfo {
    let pool: PoolInfo = http.post("/v1/pool/fill", &json!({})).expect(200).json();
    for image in &pool.images {
        assert_eq!(image.idle, image.wanted, "{pool:?}");
    }
    pool
}

fn idle(http: &Http) -> BTreeSet<String> {
    let all: Vec<SessionInfo> = http.get("/v1/sessions").expect(200).json();
    all.into_iter().filter(|session| session.status == "pool_idle").map(|session| session.id).collect()
}

#[track_caller]
fn create(http: &Http, request: &Value) -> SessionInfo {
    http.post("/v1/sessions", request).expect(201).json()
}

/// Empties the pool and everything else, and proves that nothing is left.
#[track_caller]
fn end(server: Server, dir: &DataDir) {
    server.http().post("/v1/pool/drain", &json!({})).expect(200);
    server.delete_all();
    let (status, log) = server.stop();
    assert!(status.success(), "{status}\n{log}");
    let odd: Vec<_> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}

#[test]
fn a_pooled_session_is_its_owners_in_all() {
    if !runnable("a_pooled_session_is_its_owners_in_all") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start_with(&dir, &keeping(2));
    let http = server.http();
    fill(&http);
    let waiting = idle(&http);
    assert_eq!(waiting.len(), 2);

    // What waits can be seen and meets nobody.
    let one = Session::at(&http, waiting.first().expect("one waits"));
    assert_eq!(one.info().status, "pool_idle");
    let refusal = one.try_exec(&json!({"cmd": "true"}));
    assert!(refusal.expect(409).text().contains("status=pool_idle"));
    http.post(&one.route("/pause"), &json!({})).expect(409);
    http.get(&one.route("/toolbox/files?path=/")).expect(409);
    http.get(&one.route("/fs/read?path=x")).expect(409);

    let before = one.info().created_at;
    let value = "it's $HOME `id` \"\n\\";
    let info = create(
        &http,
        &json!({"env": {"GIVEN": value}, "ttl_seconds": 600, "name": "web", "labels": {"team": "red"}}),
    );
    assert!(waiting.contains(&info.id));
    assert_eq!((info.status.as_str(), info.acquire_source.as_deref()), ("running", Some("pool")));
    assert_eq!((info.acquire_detail, info.name.as_deref()), (None, Some("web")));
    assert!(info.created_at > before, "its time begins with its owner");
    let expires: jiff::Timestamp = info.expires_at.parse().expect("a time");
    let created: jiff::Timestamp = info.created_at.parse().expect("a time");
    // The claim has two looks at the clock.
    assert!((599..=600).contains(&expires.duration_since(created).as_secs()));
    let session = Session::at(&http, &info.id);
    assert_eq!(session.output("printf '%s' \"$GIVEN\""), value, "the shell that was warm has it");
    assert_eq!(session.output("printenv GIVEN"), value, "and what it starts");
    let spawned = json!({"command": "printenv GIVEN"});
    let executed: Value = http.post(&session.route("/toolbox/process/execute"), &spawned).expect(200).json();
    assert_eq!(executed["result"], json!(format!("{value}\n")), "and what the agent starts");
    let hello = json!({"protocol": 1, "sandbox_id": info.id, "generation": 1, "env": {"B": "x"}});
    http.post(&session.route("/toolbox/sandhaus/hello"), &hello).expect(403);
    let listed: Vec<SessionInfo> = http.get("/v1/sessions?label=team%3Dred").expect(200).json();
    assert_eq!(listed.len(), 1);

    // The next has nothing of the first.
    fill(&http);
    let other = Session::at(&http, &create(&http, &json!({})).id);
    assert_eq!(other.output("echo \"<$GIVEN>\""), "<>");
    // Started again, it is the owner's from its first moment.
    http.post(&session.route("/stop"), &json!({})).expect(200);
    http.post(&session.route("/start"), &json!({})).expect(200);
    assert_eq!(session.output("printf '%s' \"$GIVEN\""), value);

    let shown = binary::run(server.cli().args(["pool", "list", "-o", "json"]));
    let pool: PoolInfo = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!((pool.images[0].hits, pool.images[0].misses), (2, 0));
    let metrics = http.get("/metrics").expect(200).text();
    assert!(metrics.contains("sandhaus_pool_requests_total{image=\"host\",outcome=\"hit\"} 2"), "{metrics}");
    end(server, &dir);
}

#[test]
fn another_policy_is_never_served_from_the_pool() {
    if !runnable("another_policy_is_never_served_from_the_pool") {
        return;
    }
    // Some of these are bridged: on a host of their own.
    sandhaus_tests::network::Space::new().enter();
    let dir = DataDir::new();
    let server = Server::start_with(&dir, &keeping(1));
    let http = server.http();
    fill(&http);
    let waiting = idle(&http);
    let others = [
        json!({"cpus": 0.5}),
        json!({"memory_mb": 64}),
        json!({"pids": 64}),
        json!({"security": "container"}),
        json!({"readonly_root": false}),
        json!({"workdir": "/tmp"}),
        json!({"entrypoint": ["true"]}),
        json!({"warm_shell": false}),
    ];
    for other in others {
        let info = create(&http, &other);
        assert_eq!((info.acquire_source.as_deref(), info.acquire_detail.as_deref()), (Some("cold"), None));
        assert!(!waiting.contains(&info.id), "{other}");
        Session::at(&http, &info.id).delete();
    }
    // Whatever this host can do of these, it is not the pool that does it.
    for other in [
        json!({"network": "bridge"}),
        json!({"network": {"allow": ["192.0.2.0/24"]}}),
        json!({"disk_mb": 64}),
    ] {
        let answer = http.post("/v1/sessions", &other);
        if answer.status == 201 {
            let info: SessionInfo = answer.json();
            assert_eq!(info.acquire_source.as_deref(), Some("cold"), "{other}");
            Session::at(&http, &info.id).delete();
        }
    }
    assert_eq!(idle(&http), waiting);
    let info = create(&http, &json!({"image": "base", "security": "strict", "seccomp": "strict"}));
    assert!(waiting.contains(&info.id), "what says the defaults says nothing");
    end(server, &dir);
}

#[test]
fn w26_a_killed_server_leaks_nothing_of_its_pool() {
    if !runnable("w26_a_killed_server_leaks_nothing_of_its_pool") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start_with(&dir, &keeping(3));
    fill(&server.http());
    let waiting = idle(&server.http());
    let taken = create(&server.http(), &json!({"env": {"KEPT": "yes"}}));
    server.kill();

    let server = Server::start_with(&dir, &keeping(3));
    let http = server.http();
    fill(&http);
    let adopted = idle(&http);
    assert!(waiting.iter().filter(|id| **id != taken.id).all(|id| adopted.contains(id)), "they wait still");
    assert!(!adopted.contains(&taken.id), "whoever was given away is not given away again");
    assert_eq!(Session::at(&http, &taken.id).output("echo $KEPT"), "yes");
    let info = create(&http, &json!({}));
    assert_eq!(info.acquire_source.as_deref(), Some("pool"));
    assert_eq!(Session::at(&http, &info.id).output("echo works"), "works");
    server.kill();

    // Nobody wants a pool any more: nothing of it is left but what was given away.
    let server = Server::start(&dir);
    let http = server.http();
    http.post("/v1/pool/fill", &json!({})).expect(200);
    sandhaus_tests::settles("an end of those who waited", || idle(&http).is_empty());
    let live: Vec<SessionInfo> = http.get("/v1/sessions?status=all").expect(200).json();
    let live: BTreeSet<_> =
        live.into_iter().filter(|session| session.status == "running").map(|session| session.id).collect();
    assert_eq!(live, BTreeSet::from([taken.id, info.id]));
    end(server, &dir);
}

/// Every one of many creates at once succeeds, and no two are given the same.
fn all_at_once(name: &str, options: &Options) {
    if !runnable(name) {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start_with(&dir, options);
    let http = server.http();
    http.post("/v1/pool/fill", &json!({})).expect(200);
    let waiting = idle(&http);
    let start = Barrier::new(AT_ONCE);
    let created: Vec<SessionInfo> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    create(&http, &json!({}))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("created")).collect()
    });
    let ids: BTreeSet<_> = created.iter().map(|session| session.id.clone()).collect();
    assert_eq!(ids.len(), AT_ONCE);
    assert!(waiting.is_subset(&ids), "whoever waited was given away");
    for session in &created {
        assert_eq!(session.status, "running");
        assert_eq!(Session::at(&http, &session.id).output("hostname"), session.id);
    }
    end(server, &dir);
}

#[test]
fn w35_a_hundred_cold_creates_at_once() {
    all_at_once("w35_a_hundred_cold_creates_at_once", &Options::default());
}

#[test]
fn w35_a_hundred_creates_at_once_from_a_pool() {
    all_at_once("w35_a_hundred_creates_at_once_from_a_pool", &keeping(20));
}
