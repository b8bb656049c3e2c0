//! The dialect of a runner: every route, what it answers, and what it refuses.

use std::{collections::BTreeMap, sync::Arc};

use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use sandhaus_gateway::{HostLoad, Origin, RunnerConfig, SandboxClass, serve_runner};
use sandhaus_protocol::boot::ShellPreference;
use sandhaus_sandbox::{
    EngineName, Instance, NetworkPolicy, SandboxId, Seccomp,
    engine::{Capabilities, Engine, EngineError},
    service::ServiceConfig,
    testing::{ENGINE, FakeEngine, Op, Reach, config, open},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Script,
    server::{Answer, KEY, request, stored},
};

/// An id as a control plane gives it.
const ID: &str = "0123abcd-0123-4567-89ab-0123456789ab";

struct Runner {
    address: std::net::SocketAddr,
    engine: FakeEngine,
    _dir: tempfile::TempDir,
}

impl Runner {
    async fn start() -> Self {
        Self::start_with(Some(KEY)).await
    }

    async fn start_with(api_key: Option<&str>) -> Self {
        // Disks of its engine grow.
        let capabilities = Engine::capabilities(&FakeEngine::default()).clone();
        let engine = FakeEngine::new(Capabilities { disk_growth: true, ..capabilities });
        Self::start_on(engine, config(), api_key).await
    }

    async fn start_on(engine: FakeEngine, config: ServiceConfig, api_key: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine.with_agent(Script::new().agent());
        let service = open(Instance::acquire(dir.path()).unwrap(), config, engine.clone()).await.unwrap();
        let class = |origin| SandboxClass { engine: EngineName(ENGINE.to_owned()), origin };
        let runner = RunnerConfig {
            api_key: api_key.map(str::to_owned),
            classes: BTreeMap::from([
                ("container".to_owned(), class(Origin::Registry)),
                ("vm".to_owned(), class(Origin::Store)),
            ]),
            shell: ShellPreference::default(),
            seccomp: Seccomp::Strict,
            load: Arc::new(|| HostLoad { cpu_percent: 12.5, ..HostLoad::default() }),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_runner(listener, service, runner, CancellationToken::new()));
        Self { address, engine, _dir: dir }
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> Answer {
        Answer::of(request(self.address, method, path, &[], body).await).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, &body.to_string()).await
    }

    /// Makes the sandbox [`ID`].
    async fn sandbox(&self) -> SandboxId {
        let answer = self.post("/sandboxes", &body()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
        assert_eq!(answer.json(), json!({ "daemonVersion": "1.2.3" }));
        SandboxId::parse(ID).unwrap()
    }

    async fn state(&self) -> String {
        let answer = self.call(Method::GET, &format!("/sandboxes/{ID}"), "").await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.json()["state"].as_str().unwrap().to_owned()
    }
}

/// What a control plane sends at least.
fn body() -> Value {
    json!({
        "id": ID, "userId": "u", "osUser": "daytona", "snapshot": "host",
        "cpuQuota": 1, "memoryQuota": 1, "storageQuota": 3, "networkBlockAll": true,
    })
}

fn with(extra: Value) -> Value {
    let mut body = body();
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> String {
    let body = answer.json();
    assert_eq!(answer.status.as_u16(), status, "{body}");
    assert_eq!((&body["statusCode"], &body["code"]), (&json!(status), &json!(code)), "{body}");
    assert!(
        body["path"].is_string() && body["timestamp"].is_string() && body["method"].is_string(),
        "{body}"
    );
    body["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_sandbox_lives_and_dies() {
    let runner = Runner::start().await;
    assert_eq!(runner.state().await, "destroyed", "one that never was");
    let id = runner.sandbox().await;
    let spec = runner.engine.spec(&id).unwrap();
    assert_eq!((spec.resources.cpu_millis, spec.resources.memory_bytes), (1000, 1 << 30));
    assert_eq!((spec.resources.disk_bytes, spec.network), (3 << 30, NetworkPolicy::None));
    assert_eq!(spec.env["DAYTONA_SANDBOX_ID"], ID);
    assert_eq!(
        (spec.env["DAYTONA_SANDBOX_SNAPSHOT"].as_str(), spec.env["DAYTONA_SANDBOX_USER"].as_str()),
        ("host", "daytona")
    );
    let info = runner.call(Method::GET, &format!("/sandboxes/{ID}"), "").await.json();
    assert_eq!(info, json!({ "state": "started", "backupState": "NONE", "daemonVersion": "1.2.3" }));

    let sandbox = format!("/sandboxes/{ID}");
    for (verb, body, state) in [
        ("pause", "", "paused"),
        ("pause", "null", "paused"),
        ("resume", "", "started"),
        ("pause", "", "paused"),
        ("start", "{\"k\":\"v\"}", "started"),
        ("stop", "", "stopped"),
        ("stop", "{\"force\":true}", "stopped"),
        ("start", "null", "started"),
        ("start?token=t", "", "started"),
        ("stop", "null", "stopped"),
    ] {
        let answer = runner.call(Method::POST, &format!("{sandbox}/{verb}"), body).await;
        assert_eq!(answer.status, StatusCode::OK, "{verb}: {:?}", answer.body);
        assert_eq!(runner.state().await, state, "{verb}");
        assert!(!verb.starts_with("start") || answer.json()["daemonVersion"] == "1.2.3");
    }
    // One that is there is started.
    let again = runner.post("/sandboxes", &body()).await;
    assert_eq!((again.status, runner.state().await.as_str()), (StatusCode::CREATED, "started"));
    for _ in 0..2 {
        let answer = runner.call(Method::POST, &format!("{sandbox}/destroy"), "").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(runner.state().await, "destroyed");
    }
    let stopped = runner.call(Method::POST, &format!("{sandbox}/stop"), "").await;
    assert_eq!(stopped.status, StatusCode::OK, "what is not there does not run");
    for verb in ["start", "pause", "resume"] {
        let answer = runner.call(Method::POST, &format!("{sandbox}/{verb}"), "").await;
        refused(&answer, 404, "NOT_FOUND");
    }
    refused(&runner.post("/sandboxes", &body()).await, 409, "CONFLICT");
}

#[tokio::test]
async fn ids_that_are_no_uuids_are_names() {
    let runner = Runner::start().await;
    let minimal = json!({
        "id": "test-vm_1", "snapshot": "host", "cpuQuota": 2, "memoryQuota": 4096, "storageQuota": 50,
        "networkBlockAll": true, "skipStart": true, "name": "for people", "metadata": { "team": "a" },
    });
    assert_eq!(runner.post("/sandboxes", &minimal).await.status, StatusCode::CREATED);
    let info = runner.call(Method::GET, "/sandboxes/test-vm_1", "").await;
    assert_eq!(info.json()["state"], "stopped");
    assert_eq!(runner.call(Method::POST, "/sandboxes/test-vm_1/start", "").await.status, StatusCode::OK);
    assert_eq!(runner.call(Method::POST, "/sandboxes/test-vm_1/destroy", "").await.status, StatusCode::OK);
    assert_eq!(
        runner.post("/sandboxes", &minimal).await.status,
        StatusCode::CREATED,
        "a name can be used again"
    );
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_by_name() {
    let runner = Runner::start().await;
    for (extra, code, words) in [
        (json!({ "id": "" }), "BAD_REQUEST", "id is required"),
        (json!({ "id": "a/b" }), "BAD_REQUEST", "sandbox id"),
        (json!({ "snapshot": null }), "BAD_REQUEST", "snapshot is required"),
        (json!({ "cpuQuota": -1 }), "BAD_REQUEST", "cpuQuota"),
        (json!({ "memoryQuota": "1" }), "INVALID_REQUEST_BODY", "invalid body request"),
        (json!({ "gpuQuota": 1 }), "BAD_REQUEST", "graphics"),
        (json!({ "volumes": [{ "volumeId": "v", "mountPath": "/x" }] }), "BAD_REQUEST", "volumes"),
        (json!({ "sandboxClass": "windows" }), "BAD_REQUEST", "container, vm"),
        (json!({ "networkBlockAll": false, "networkAllowList": "x" }), "BAD_REQUEST", "networkAllowList"),
        (json!({ "domainAllowList": "*.example.com" }), "BAD_REQUEST", "domains"),
        (json!({ "linkedSandboxId": "x" }), "BAD_REQUEST", "linking"),
        (json!({ "fromVolumeId": "x" }), "BAD_REQUEST", "volume"),
        (json!({ "env": { "A B": "x" } }), "BAD_REQUEST", "environment"),
    ] {
        let answer = runner.post("/sandboxes", &with(extra.clone())).await;
        let message = refused(&answer, 400, code);
        assert!(message.contains(words), "{extra}: {message}");
    }
    for body in ["", "null", "{", "7"] {
        refused(&runner.call(Method::POST, "/sandboxes", body).await, 400, "INVALID_REQUEST_BODY");
    }
    let answer = runner.post("/sandboxes", &with(json!({ "snapshot": "win-base" }))).await;
    let message = refused(&answer, 404, "NOT_FOUND");
    assert!(message.contains("POST /snapshots/pull") && message.contains("win-base"), "{message}");
    assert_eq!(runner.engine.counts(), (0, 0), "nothing was made");

    let held = runner.engine.hold(Op::Start);
    let mut held = held;
    let wanted = body();
    let first = runner.post("/sandboxes", &wanted);
    let second = async {
        held.arrived(1).await;
        let answer = runner.post("/sandboxes", &body()).await;
        drop(held);
        answer
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.status, StatusCode::CREATED);
    refused(&second, 409, "CONFLICT");
}

#[tokio::test]
async fn limits_grow_and_reach_changes() {
    let runner = Runner::start().await;
    let id = runner.sandbox().await;
    let resize = format!("/sandboxes/{ID}/resize");
    let answer = runner.post(&resize, &json!({ "cpu": 2, "memory": 512, "gpu": 0 })).await;
    refused(&answer, 400, "BAD_REQUEST");
    let answer = runner.post(&resize, &json!({ "cpu": 2, "memory": 2, "disk": 3 })).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let spec = runner.engine.spec(&id).unwrap();
    assert_eq!((spec.resources.cpu_millis, spec.resources.memory_bytes), (2000, 2 << 30));
    for (body, words) in [
        (json!({ "cpu": 1 }), "can only grow"),
        (json!({ "gpu": 1 }), "graphics"),
        (json!({ "memory": -1 }), "memory"),
    ] {
        let message = refused(&runner.post(&resize, &body).await, 400, "BAD_REQUEST");
        assert!(message.contains(words), "{message}");
    }
    runner.engine.fail(Op::Update, Reach::Nothing, || {
        EngineError::Unsupported("changing the size of a disk".to_owned())
    });
    let message = refused(&runner.post(&resize, &json!({ "disk": 5 })).await, 400, "BAD_REQUEST");
    assert!(message.contains("disk"), "{message}");

    let network = format!("/sandboxes/{ID}/network-settings");
    for (body, policy, shown) in [
        (
            json!({ "networkAllowList": "1.2.3.0/24, 10.1.0.0/16" }),
            NetworkPolicy::Allow(vec!["1.2.3.0/24".parse().unwrap(), "10.1.0.0/16".parse().unwrap()]),
            json!({ "networkBlockAll": false, "networkAllowList": "1.2.3.0/24,10.1.0.0/16" }),
        ),
        (
            json!({}),
            NetworkPolicy::Allow(vec!["1.2.3.0/24".parse().unwrap(), "10.1.0.0/16".parse().unwrap()]),
            json!({ "networkBlockAll": false, "networkAllowList": "1.2.3.0/24,10.1.0.0/16" }),
        ),
        (json!({ "networkAllowList": "" }), NetworkPolicy::Bridge, json!({ "networkBlockAll": false })),
        (json!({ "networkBlockAll": true }), NetworkPolicy::None, json!({ "networkBlockAll": true })),
        (json!({ "networkBlockAll": false }), NetworkPolicy::Bridge, json!({ "networkBlockAll": false })),
    ] {
        let answer = runner.post(&network, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{body}: {:?}", answer.body);
        assert_eq!(runner.engine.spec(&id).unwrap().network, policy, "{body}");
        assert_eq!(runner.call(Method::GET, &network, "").await.json(), shown);
    }
    for body in [
        json!({ "networkLimitEgress": true }),
        json!({ "domainAllowList": "x" }),
        json!({ "networkAllowList": "x" }),
    ] {
        refused(&runner.post(&network, &body).await, 400, "BAD_REQUEST");
    }
}

#[tokio::test]
async fn full_disks_are_recovered_as_far_as_they_grow() {
    let runner = Runner::start().await;
    let id = runner.sandbox().await;
    for (reason, recoverable) in [("write: No space left on device", true), ("exit status 1", false)] {
        let path = format!("/sandboxes/{ID}/is-recoverable");
        let answer = runner.post(&path, &json!({ "errorReason": reason })).await;
        assert_eq!(answer.json(), json!({ "recoverable": recoverable }));
    }
    let recover = format!("/sandboxes/{ID}/recover");
    let full = json!({ "userId": "u", "osUser": "o", "errorReason": "storage limit", "storageQuota": 3 });
    refused(&runner.post(&recover, &json!({ "errorReason": "exit status 1" })).await, 400, "BAD_REQUEST");
    for step in [5, 10] {
        assert_eq!(runner.post(&recover, &full).await.status, StatusCode::OK);
        let grown = (3_u64 << 30) + (3_u64 << 30) / 100 * step;
        assert_eq!(runner.engine.spec(&id).unwrap().resources.disk_bytes, grown);
    }
    let message = refused(&runner.post(&recover, &full).await, 400, "BAD_REQUEST");
    assert!(message.contains("10 %"), "{message}");
}

#[tokio::test]
async fn snapshots_of_sandboxes() {
    let runner = Runner::start().await;
    runner.sandbox().await;
    let taken = runner
        .post(
            &format!("/sandboxes/{ID}/snapshot-from-sandbox"),
            &json!({ "name": "one", "registry": { "url": "r" } }),
        )
        .await;
    assert_eq!(taken.status, StatusCode::OK, "{:?}", taken.body);
    assert_eq!(taken.json()["name"], "one");
    let created =
        runner.post("/snapshots/create", &json!({ "sandboxId": ID, "name": "two", "live": true })).await;
    let created = created.json();
    assert_eq!((&created["name"], &created["snapshotPath"]), (&json!("two"), &json!("snapshots/two.qcow2")));
    assert_eq!((created["liveMode"].as_bool(), created["sizeBytes"].is_u64()), (Some(true), true));
    refused(
        &runner.post("/snapshots/create", &json!({ "sandboxId": ID, "name": "two" })).await,
        409,
        "CONFLICT",
    );
    refused(
        &runner.post("/snapshots/create", &json!({ "sandboxId": "other", "name": "x" })).await,
        404,
        "NOT_FOUND",
    );
    refused(&runner.post("/snapshots/create", &json!({ "sandboxId": ID })).await, 400, "BAD_REQUEST");

    let push = json!({ "sandboxId": ID, "snapshotName": "three" });
    let message = refused(&runner.post("/snapshots/push", &push).await, 409, "CONFLICT");
    assert_eq!(message, "sandbox must be stopped or paused");

    for (name, exists) in [("one", true), ("two", true), ("host", true), ("three", false), ("a%20b", false)] {
        let answer = runner.call(Method::GET, &format!("/snapshots/exists?snapshot={name}"), "").await;
        assert_eq!(answer.json(), json!({ "exists": exists }), "{name}");
        let info = runner.call(Method::GET, &format!("/snapshots/info?snapshot={name}"), "").await;
        assert_eq!(info.status.as_u16(), if exists { 200 } else { 404 }, "{name}");
        if exists {
            let info = info.json();
            assert!(
                info["sizeGB"].is_number() && info["hash"].is_string() && info["cmd"].is_array(),
                "{info}"
            );
        }
    }
    let made =
        runner.post("/sandboxes", &with(json!({ "id": "copy", "snapshot": "one", "storageQuota": 0 }))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    for _ in 0..2 {
        let removed = runner.call(Method::POST, "/snapshots/remove?snapshot=one", "").await;
        assert_eq!(removed.status, StatusCode::OK);
    }
    for path in ["/snapshots/exists", "/snapshots/info", "/snapshots/logs"] {
        refused(&runner.call(Method::GET, path, "").await, 400, "BAD_REQUEST");
    }
    refused(
        &runner.call(Method::GET, "/snapshots/logs?snapshotRef=one&follow=true", "").await,
        404,
        "NOT_FOUND",
    );
    let build = json!({ "snapshot": "a:1", "dockerfile": "FROM x", "organizationId": "o" });
    let built = runner.post("/snapshots/build", &build).await;
    assert!(refused(&built, 400, "BAD_REQUEST").contains("Dockerfiles"));
    refused(&runner.post("/snapshots/build", &json!({ "snapshot": "a:1" })).await, 400, "BAD_REQUEST");
    refused(
        &runner.post("/snapshots/inspect", &json!({ "snapshot": "r.example/a:1" })).await,
        400,
        "BAD_REQUEST",
    );
}

#[tokio::test]
async fn images_are_tagged_and_pulled() {
    let runner = Runner::start().await;
    let tagged = runner
        .post("/snapshots/tag", &json!({ "sourceImage": "host", "targetImage": "r.example/runner-test:1" }))
        .await;
    assert_eq!(tagged.status, StatusCode::OK, "{:?}", tagged.body);
    let exists = runner.call(Method::GET, "/snapshots/exists?snapshot=r.example%2Frunner-test%3A1", "").await;
    assert_eq!(exists.json(), json!({ "exists": true }));
    let removed = runner.call(Method::POST, "/snapshots/remove?snapshot=r.example/runner-test:1", "").await;
    assert_eq!(removed.status, StatusCode::OK);
    refused(
        &runner.post("/snapshots/tag", &json!({ "sourceImage": "missing", "targetImage": "x" })).await,
        404,
        "NOT_FOUND",
    );

    // Nobody listens there, so it fails, which is told later.
    let what = "127.0.0.1:9/none:1";
    let pulled =
        runner.post("/snapshots/pull", &json!({ "snapshot": what, "sandboxClass": "container" })).await;
    assert_eq!(pulled.status, StatusCode::ACCEPTED, "{:?}", pulled.body);
    let info = loop {
        let info = runner.call(Method::GET, &format!("/snapshots/info?snapshot={what}"), "").await;
        if info.status != StatusCode::NOT_FOUND {
            break info;
        }
    };
    refused(&info, 422, "UNPROCESSABLE_ENTITY");
    for body in [
        json!({}),
        json!({ "snapshot": "a b" }),
        json!({ "snapshot": "x:1", "destinationRef": "y:1" }),
        json!({ "snapshot": "x:1", "sandboxClass": "odd" }),
    ] {
        refused(&runner.post("/snapshots/pull", &body).await, 400, "BAD_REQUEST");
    }
}

#[tokio::test]
async fn the_way_inside() {
    let runner = Runner::start().await;
    runner.sandbox().await;
    let path = format!("/sandboxes/{ID}/toolbox/process/a%2Fb//c?x=%20&y=1+2");
    let headers = [("x-daytona-source", "sdk"), ("cookie", "a=1")];
    let answer = Answer::of(request(runner.address, Method::PATCH, &path, &headers, "the body").await).await;
    assert_eq!(answer.status, StatusCode::IM_A_TEAPOT);
    assert!(answer.body.starts_with(b"PATCH /process/a%2Fb//c?x=%20&y=1+2\n"), "{:?}", answer.body);
    assert!(
        !answer.body.windows(6).any(|window| window == b"cookie" || window == b"Bearer"),
        "{:?}",
        answer.body
    );

    let headers = [("connection", "Upgrade"), ("upgrade", "reverse")];
    let path = format!("/sandboxes/{ID}/toolbox/upgrade");
    let mut response = request(runner.address, Method::GET, &path, &headers, "").await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"abcde").await.unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).await.unwrap();
    assert_eq!(word, "edcba");

    for path in ["toolbox/proxy/0/", "proxy/x/", "proxy/70000/"] {
        refused(&runner.call(Method::GET, &format!("/sandboxes/{ID}/{path}"), "").await, 400, "BAD_REQUEST");
    }
    runner.call(Method::POST, &format!("/sandboxes/{ID}/stop"), "").await;
    for path in ["toolbox/version", "proxy/3000/", "toolbox/proxy/3000/x"] {
        refused(&runner.call(Method::GET, &format!("/sandboxes/{ID}/{path}"), "").await, 409, "CONFLICT");
        refused(&runner.call(Method::GET, &format!("/sandboxes/unknown/{path}"), "").await, 404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn who_may_ask_and_what_the_host_tells() {
    let runner = Runner::start().await;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let stream = tokio::net::TcpStream::connect(runner.address).await.unwrap();
        Answer::of(crate::server::request_on(stream, Method::GET, path, headers, "").await).await
    };
    let health = ask("/", &[]).await;
    assert_eq!((health.status, health.json()["status"].as_str()), (StatusCode::OK, Some("ok")));
    for path in ["/info", "/metrics", "/sandboxes/x", "/api/openapi.json", "/nowhere"] {
        refused(&ask(path, &[]).await, 401, "UNAUTHORIZED");
        refused(&ask(path, &[("authorization", "Bearer wrong")]).await, 401, "UNAUTHORIZED");
    }
    let other = format!("Bearer {KEY}");
    let info = ask("/info", &[("x-daytona-authorization", &other)]).await;
    assert_eq!(info.status, StatusCode::OK);
    runner.sandbox().await;
    let info = runner.call(Method::GET, "/info", "").await.json();
    assert_eq!(info["serviceHealth"][0]["healthy"], true);
    let metrics = &info["metrics"];
    assert_eq!(
        (&metrics["currentStartedSandboxes"], &metrics["currentCpuUsagePercentage"]),
        (&json!(1), &json!(12.5))
    );
    assert_eq!(
        (&metrics["currentAllocatedCpu"], &metrics["currentAllocatedMemoryGiB"]),
        (&json!(1.0), &json!(1.0))
    );
    let metrics = runner.call(Method::GET, "/metrics", "").await;
    let text = String::from_utf8_lossy(&metrics.body);
    assert!(text.contains(r#"container_operation_total{operation="create",status="success"} 1"#), "{text}");
    assert!(text.contains("container_operation_duration_seconds"), "{text}");
    refused(&runner.call(Method::GET, "/nowhere", "").await, 404, "NOT_FOUND");
    refused(&runner.call(Method::PUT, "/sandboxes", "").await, 405, "METHOD_NOT_ALLOWED");

    let open = Runner::start_with(None).await;
    let stream = tokio::net::TcpStream::connect(open.address).await.unwrap();
    let answer = crate::server::request_on(stream, Method::GET, "/info", &[], "").await;
    assert_eq!(answer.status(), StatusCode::OK, "on loopback no key is needed where none is set");
}

#[tokio::test]
async fn snapshots_go_to_the_store_and_come_back() {
    let store = tempfile::tempdir().unwrap();
    let (engine, config) = stored(store.path());
    let runner = Runner::start_on(engine, config, Some(KEY)).await;
    let id = runner.sandbox().await;
    runner.engine.write(&id, "disk", "memory");
    let push = json!({ "sandboxId": ID, "snapshotName": "win-base" });
    let message = refused(&runner.post("/snapshots/push", &push).await, 409, "CONFLICT");
    assert_eq!(message, "sandbox must be stopped or paused");
    runner.call(Method::POST, &format!("/sandboxes/{ID}/pause"), "").await;
    for _ in 0..2 {
        let pushed = runner.post("/snapshots/push", &push).await;
        assert_eq!(pushed.status, StatusCode::OK, "{:?}", pushed.body);
        let pushed = pushed.json();
        assert_eq!(
            (&pushed["snapshotName"], &pushed["snapshotPath"]),
            (&json!("win-base"), &json!("snapshots/win-base"))
        );
        assert!(pushed["sizeBytes"].as_u64().is_some_and(|size| size > 0), "{pushed}");
    }
    let digest = runner.post("/snapshots/inspect", &json!({ "snapshot": "win-base" })).await.json();
    assert!(digest["sizeGB"].is_number(), "{digest}");

    runner.call(Method::POST, "/snapshots/remove?snapshot=win-base", "").await;
    let message = refused(
        &runner.post("/sandboxes", &with(json!({ "id": "a", "snapshot": "win-base" }))).await,
        404,
        "NOT_FOUND",
    );
    assert!(message.contains("pull"), "{message}");
    let pulled = runner.post("/snapshots/pull", &json!({ "snapshot": "win-base" })).await;
    assert_eq!(pulled.status, StatusCode::ACCEPTED, "{:?}", pulled.body);
    let info = loop {
        let info = runner.call(Method::GET, "/snapshots/info?snapshot=win-base", "").await;
        if info.status != StatusCode::NOT_FOUND {
            break info;
        }
    };
    assert_eq!(info.status, StatusCode::OK, "{:?}", info.body);
    let made = runner
        .post("/sandboxes", &with(json!({ "id": "a", "snapshot": "win-base", "sandboxClass": "vm" })))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);

    let missing =
        runner.post("/snapshots/pull", &json!({ "snapshot": "missing", "sandboxClass": "vm" })).await;
    let told = match missing.status {
        StatusCode::NOT_FOUND => refused(&missing, 404, "NOT_FOUND"),
        _ => loop {
            let info = runner.call(Method::GET, "/snapshots/info?snapshot=missing", "").await;
            if info.status != StatusCode::NOT_FOUND {
                break refused(&info, 422, "UNPROCESSABLE_ENTITY");
            }
        },
    };
    assert!(told.contains("missing"), "{told}");

    let path = format!("/sandboxes/{ID}/backup");
    let begun = runner.post(&path, &json!({ "registry": { "url": "r" }, "snapshot": "r/backup-1:2" })).await;
    assert_eq!(begun.status, StatusCode::CREATED, "{:?}", begun.body);
    let info = loop {
        let info = runner.call(Method::GET, &format!("/sandboxes/{ID}"), "").await.json();
        if info["backupState"] != "IN_PROGRESS" {
            break info;
        }
    };
    assert_eq!(
        (&info["backupState"], &info["backupSnapshot"]),
        (&json!("COMPLETED"), &json!("r/backup-1:2")),
        "{info}"
    );
    let kept = runner.post("/snapshots/inspect", &json!({ "snapshot": "backup-1-2" })).await;
    assert_eq!(kept.status, StatusCode::OK, "{:?}", kept.body);
    let exists = runner.call(Method::GET, "/snapshots/exists?snapshot=backup-1-2", "").await;
    assert_eq!(exists.json(), json!({ "exists": false }), "it went to the store");
}

#[tokio::test]
async fn backups_need_a_store() {
    let runner = Runner::start().await;
    runner.sandbox().await;
    let path = format!("/sandboxes/{ID}/backup");
    refused(&runner.post(&path, &json!({ "registry": { "url": "r" } })).await, 400, "BAD_REQUEST");
    let answer = runner.post(&path, &json!({ "registry": { "url": "r" }, "snapshot": "r/backup-1:2" })).await;
    assert!(refused(&answer, 400, "BAD_REQUEST").contains("store"));
    let info = runner.call(Method::GET, &format!("/sandboxes/{ID}"), "").await.json();
    assert_eq!(info["backupState"], "NONE");
}

/// What callers send and read, by name: the fields of each body, those that must be there first.
const SHAPES: &[(&str, &[&str], &[&str])] = &[
    (
        "CreateSandboxDto",
        &["id", "snapshot"],
        &[
            "userId",
            "osUser",
            "name",
            "cpuQuota",
            "gpuQuota",
            "memoryQuota",
            "storageQuota",
            "env",
            "registry",
            "entrypoint",
            "volumes",
            "networkBlockAll",
            "networkAllowList",
            "domainAllowList",
            "metadata",
            "authToken",
            "otelEndpoint",
            "skipStart",
            "sandboxClass",
            "organizationId",
            "regionId",
            "linkedSandboxId",
            "fromVolumeId",
        ],
    ),
    ("Started", &["daemonVersion"], &[]),
    (
        "SandboxInfo",
        &["state", "backupState"],
        &["backupSnapshot", "backupError", "recoverable", "daemonVersion"],
    ),
    ("StopSandboxDto", &[], &["force"]),
    ("ResizeSandboxDto", &[], &["cpu", "memory", "disk", "gpu", "registry"]),
    ("CreateBackupDto", &["snapshot"], &["registry"]),
    (
        "NetworkSettings",
        &[],
        &["networkBlockAll", "networkAllowList", "domainAllowList", "networkLimitEgress"],
    ),
    ("IsRecoverableDto", &["errorReason"], &[]),
    ("IsRecoverable", &["recoverable"], &[]),
    ("SnapshotFromSandboxDto", &["name"], &["organizationId", "registry"]),
    ("SnapshotInfo", &["name", "sizeGB", "entrypoint", "cmd", "hash"], &[]),
    ("SnapshotDigest", &["hash", "sizeGB"], &[]),
    ("SnapshotExists", &["exists"], &[]),
    (
        "PullSnapshotDto",
        &["snapshot"],
        &["registry", "destinationRegistry", "destinationRef", "newTag", "sandboxClass"],
    ),
    ("TagImageDto", &["sourceImage", "targetImage"], &[]),
    ("InspectSnapshotDto", &["snapshot"], &["registry"]),
    ("BuildSnapshotDto", &["dockerfile", "organizationId"], &["snapshot"]),
    ("CreatedSnapshot", &["name", "snapshotPath", "sizeBytes", "liveMode"], &[]),
    ("PushedSnapshot", &["snapshotName", "snapshotPath", "sizeBytes"], &[]),
    ("RunnerInfo", &["appVersion", "serviceHealth", "metrics"], &[]),
    (
        "RunnerMetrics",
        &[
            "currentCpuLoadAverage",
            "currentCpuUsagePercentage",
            "currentMemoryUsagePercentage",
            "currentDiskUsagePercentage",
            "currentAllocatedCpu",
            "currentAllocatedMemoryGiB",
            "currentAllocatedDiskGiB",
            "currentSnapshotCount",
            "currentStartedSandboxes",
        ],
        &[],
    ),
    ("ErrorResponse", &["statusCode", "message", "code", "timestamp", "path", "method"], &[]),
];

/// Routes with the status of their success; none: there is never one.
const ROUTES: &[(&str, &str, Option<&str>)] = &[
    ("get", "/", Some("200")),
    ("get", "/info", Some("200")),
    ("get", "/metrics", Some("200")),
    ("post", "/sandboxes", Some("201")),
    ("get", "/sandboxes/{sandboxId}", Some("200")),
    ("post", "/sandboxes/{sandboxId}/start", Some("200")),
    ("post", "/sandboxes/{sandboxId}/stop", Some("200")),
    ("post", "/sandboxes/{sandboxId}/destroy", Some("200")),
    ("post", "/sandboxes/{sandboxId}/pause", Some("200")),
    ("post", "/sandboxes/{sandboxId}/resume", Some("200")),
    ("post", "/sandboxes/{sandboxId}/resize", Some("200")),
    ("post", "/sandboxes/{sandboxId}/backup", Some("201")),
    ("post", "/sandboxes/{sandboxId}/recover", Some("200")),
    ("post", "/sandboxes/{sandboxId}/is-recoverable", Some("200")),
    ("post", "/sandboxes/{sandboxId}/snapshot-from-sandbox", Some("200")),
    ("get", "/sandboxes/{sandboxId}/network-settings", Some("200")),
    ("post", "/sandboxes/{sandboxId}/network-settings", Some("200")),
    ("get", "/sandboxes/{sandboxId}/toolbox/{path}", Some("200")),
    ("post", "/sandboxes/{sandboxId}/toolbox/{path}", Some("200")),
    ("delete", "/sandboxes/{sandboxId}/toolbox/{path}", Some("200")),
    ("get", "/sandboxes/{sandboxId}/proxy/{path}", Some("200")),
    ("post", "/snapshots/pull", Some("202")),
    ("post", "/snapshots/build", None),
    ("post", "/snapshots/tag", Some("200")),
    ("post", "/snapshots/inspect", Some("200")),
    ("get", "/snapshots/exists", Some("200")),
    ("get", "/snapshots/info", Some("200")),
    ("get", "/snapshots/logs", None),
    ("post", "/snapshots/remove", Some("200")),
    ("post", "/snapshots/push", Some("200")),
    ("post", "/snapshots/create", Some("200")),
];

#[tokio::test]
async fn the_document_has_the_shapes_that_callers_know() {
    let runner = Runner::start().await;
    let document = runner.call(Method::GET, "/api/openapi.json", "").await.json();
    for (method, path, success) in ROUTES {
        let operation = &document["paths"][path][method];
        assert!(operation.is_object(), "{method} {path}");
        let successes: Vec<&String> = operation["responses"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|status| status.starts_with('2'))
            .collect();
        assert_eq!(successes, success.iter().collect::<Vec<_>>(), "{method} {path}");
    }
    for (name, required, optional) in SHAPES {
        let schema = &document["components"]["schemas"][name];
        let names = |value: &Value| -> std::collections::BTreeSet<String> {
            match value {
                Value::Array(items) => items.iter().map(|item| item.as_str().unwrap().to_owned()).collect(),
                Value::Object(fields) => fields.keys().cloned().collect(),
                _ => Default::default(),
            }
        };
        let expected = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
        assert_eq!(names(&schema["required"]), expected(required), "{name}");
        assert_eq!(names(&schema["properties"]), expected(&[*required, *optional].concat()), "{name}");
    }
}
