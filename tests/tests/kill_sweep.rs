//! Kills the server and its launcher at every step of a sandbox's life, those of the half-built child included, then
//! proves that nothing is left behind.
//!
//! The points come from the binary itself (`sandhaus __fault-points`), which takes them from the enums its step
//! sequences run through. All of them are swept, with every victim that makes sense at the point. A point that no
//! operation of the sweep passes is a failure too: then the sweep proves nothing about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sandhaus_client::wire::SessionInfo;
use sandhaus_tests::{
    PATIENCE, binary,
    http::Http,
    network::Space,
    process::{Handle, any_ends_within},
    runnable,
    server::{DataDir, Options, Server},
    session::Session,
    settles,
};
use serde_json::{Value, json};

/// Cases in flight at once: they wait more than they work.
const WORKERS: usize = 4;

/// The workspace of the cases that show one.
const WORKSPACE: &str = "swept";

/// The snapshot of the cases that take one.
const SNAPSHOT: &str = "swept";

/// Configuration of the server that dies in a claim; the next one keeps no pool, so nothing of it may be left.
const POOL: &str = "pool: {enabled: true, images: {host: 1}}\n";

/// Points that no sandbox of namespaces passes.
const ELSEWHERE: &[(&str, &[&str])] = &[
    (
        "swept with virtual machines, which have memory that can be captured, and end by themselves as well",
        &[
            "plan.restore.",
            "plan.commit.",
            "plan.capture_memory.",
            "plan.record_memory.",
            "plan.retire_memory.",
            "plan.drop_memory.",
            "plan.lower.",
            "plan.lose.",
        ],
    ),
    ("swept where another agent comes, in agent.rs", &["renew_agent."]),
    (
        "nothing is archived yet",
        &["plan.fetch.", "plan.archive.", "plan.record_archive.", "plan.drop_disk.", "plan.drop_archive."],
    ),
];

/// A point, and who dies there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    point: String,
    victim: &'static str,
}

/// Every point with the victims that make sense there. A launcher's points, and those of a child, which the launcher
/// passes on its behalf, can end the launcher, the server or both; a server's parent is this test.
fn cases(points: &[String]) -> Vec<Case> {
    let victims = |point: &str| -> &'static [&'static str] {
        if in_launcher(point) { &["self", "parent", "both"] } else { &["self"] }
    };
    let is_elsewhere =
        |point: &str| ELSEWHERE.iter().any(|(_, areas)| areas.iter().any(|area| point.starts_with(area)));
    points
        .iter()
        .filter(|point| !is_elsewhere(point))
        .flat_map(|point| victims(point).iter().map(|victim| Case { point: point.clone(), victim }))
        .collect()
}

impl Case {
    /// Every step of a start is passed with a workspace too, by one of its victims.
    fn shows_workspace(&self) -> bool {
        self.point.contains("workspace") || self.point.starts_with("start.") || self.victim == "both"
    }

    /// The point lies in the claim of a sandbox that waits in the pool.
    fn claims(&self) -> bool {
        self.point.starts_with("pool.")
    }

    /// The point lies in what is done with snapshots: other cases do without.
    fn captures(&self) -> bool {
        ["capture.", "capture_disk.", "snapshot_make.", "snapshot_remove.", "materialize."]
            .iter()
            .any(|area| self.point.starts_with(area))
    }

    /// Workspaces with a quota have the most that could be left: a file system, a mount and a device.
    fn config(&self) -> Option<String> {
        self.shows_workspace().then(|| "workspace: {enabled: true, quota_mb: 16}\n".to_owned())
    }
}

fn in_launcher(point: &str) -> bool {
    point.starts_with("launcher.") || point.starts_with("child.")
}

#[test]
fn a_death_at_any_step_leaves_nothing_behind() {
    if !runnable("a_death_at_any_step_leaves_nothing_behind") {
        return;
    }
    let listed = binary::run(Command::new(binary::path()).arg("__fault-points"));
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    let points: Vec<String> = listed.stdout.lines().map(str::to_owned).collect();
    assert_eq!(points.iter().collect::<BTreeSet<_>>().len(), points.len(), "two points of one name");
    let areas = [
        "start.",
        "launcher.",
        "child.",
        "stop.",
        "destroy.",
        "workspace_make.",
        "workspace_remove.",
        "capture.",
        "capture_disk.",
        "snapshot_make.",
        "snapshot_remove.",
    ];
    for area in areas {
        assert!(points.iter().any(|point| point.starts_with(area)), "no point in {area}");
    }

    let cases = cases(&points);
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<BTreeMap<Case, Result<Hit, String>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                // A host of its own, without an uplink: sandboxes of this one are bridged.
                Space::new().enter();
                let mut dir = DataDir::new();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome =
                        std::panic::catch_unwind(|| sweep(case, &dir)).map_err(|panic| told(panic.as_ref()));
                    if outcome.is_err() {
                        // What one case left must not be another's.
                        dir = DataDir::new();
                    }
                    outcomes.lock().expect("no worker panics here").insert(case.clone(), outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no worker panics here");
    let failed: Vec<_> =
        outcomes.iter().filter_map(|(case, outcome)| Some((case, outcome.as_ref().err()?))).collect();
    let missed: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Ok(Hit::Missed)))
        .map(|(case, _)| case)
        .collect();
    assert!(failed.is_empty() && missed.is_empty(), "left behind: {failed:#?}\nnever passed: {missed:#?}");
}

fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Whether the point was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Passed,
    Missed,
}

/// One case: a life with the point armed, then a server without, which must find everything in order. The directory
/// serves the next case too: what is left is nothing.
fn sweep(case: &Case, dir: &DataDir) -> Hit {
    let armed = Options {
        env: vec![("SANDHAUS_FAULT".to_owned(), format!("{}={}", case.point, case.victim))],
        config: if case.claims() { Some(POOL.to_owned()) } else { case.config() },
    };
    let mut hit = Hit::Missed;
    match Server::try_start(dir, &armed) {
        // The point lies in the start itself.
        Err(_) => hit = Hit::Passed,
        Ok(server) => {
            let launcher = launcher_of(&server);
            let lived = live(&server.http(), case);
            // The one handle to the first launcher tells its death even after another took its place. What does not work
            // tells of a death too, but only if there is one.
            let limit = if lived.is_err() { PATIENCE } else { Duration::ZERO };
            let victims: Vec<&Handle> = launcher.iter().chain([server.handle()]).collect();
            if any_ends_within(&victims, limit) {
                hit = Hit::Passed;
            } else if let Err(error) = lived {
                panic!("nobody died, and yet: {error}");
            }
            if server.handle().has_ended() {
                server.reap();
            } else if !in_launcher(&case.point) && hit == Hit::Missed {
                // What the server does after its last answer counts as well: let it end in order.
                let (status, _) = server.stop();
                if !status.success() {
                    hit = Hit::Passed;
                }
            } else {
                server.kill();
            }
        }
    }
    settle_again(dir, case);
    hit
}

/// The launcher of a server that has just come up, unless the server is gone already. The kernel's list of children may leave
/// one out while others come and go.
fn launcher_of(server: &Server) -> Option<Handle> {
    let mut found = None;
    settles("a launcher", || {
        found = server.launcher();
        found.is_some() || server.handle().has_ended()
    });
    found
}

/// Everything a sandbox goes through; the first thing that does not work ends it.
fn live(http: &Http, case: &Case) -> Result<(), String> {
    let step = |method: &str, path: &str, body: Value| -> Result<Value, String> {
        let answer = http
            .try_send(method, path, "application/json", body.to_string().as_bytes())
            .map_err(|error| format!("{method} {path}: {error}"))?;
        if answer.status >= 300 {
            return Err(format!("{method} {path}: {} {}", answer.status, answer.text()));
        }
        Ok(answer.json())
    };
    let asked = match (case.shows_workspace(), case.claims()) {
        (true, _) => json!({"workspace_id": WORKSPACE}),
        (false, true) => json!({"env": {"CLAIMED": "whole"}}),
        (false, false) => json!({}),
    };
    if case.claims() {
        step("POST", "/v1/pool/fill", json!({}))?;
    }
    let created = step("POST", "/v1/sessions", asked)?;
    let route = format!("/v1/sessions/{}", created["id"].as_str().unwrap_or_default());
    step("POST", &format!("{route}/exec"), json!({"cmd": "echo kept > /workspace/kept; sleep 1000 & true"}))?;
    if case.captures() {
        snapshots(&step, &route, created["id"].as_str().unwrap_or_default())?;
    }
    step("POST", &format!("{route}/pause"), json!({}))?;
    step("POST", &format!("{route}/resume"), json!({}))?;
    step("POST", &format!("{route}/stop"), json!({}))?;
    step("POST", &format!("{route}/start"), json!({}))?;
    step("DELETE", &route, json!({}))?;
    if case.shows_workspace() {
        step("DELETE", &format!("/v1/workspaces/{WORKSPACE}"), json!({}))?;
    }
    // A second one is deleted while it runs.
    let created = step("POST", "/v1/sessions", json!({"network": "bridge"}))?;
    let route = format!("/v1/sessions/{}", created["id"].as_str().unwrap_or_default());
    step("DELETE", &route, json!({}))?;
    Ok(())
}

/// A snapshot is taken and a session made of it, a copy is made, and all of them go.
fn snapshots(
    step: &dyn Fn(&str, &str, Value) -> Result<Value, String>,
    route: &str,
    id: &str,
) -> Result<(), String> {
    step("POST", "/v1/snapshots", json!({"session": id, "name": SNAPSHOT}))?;
    let made = step("POST", "/v1/sessions", json!({"snapshot": SNAPSHOT}))?;
    let copy = step("POST", &format!("{route}/fork"), json!({}))?;
    for session in [made, copy] {
        let route = format!("/v1/sessions/{}", session["id"].as_str().unwrap_or_default());
        step("POST", &format!("{route}/exec"), json!({"cmd": "grep kept /workspace/kept"}))?;
        step("DELETE", &route, json!({}))?;
    }
    step("DELETE", &format!("/v1/snapshots/{SNAPSHOT}"), json!({}))?;
    Ok(())
}

/// A snapshot that has a name is whole: what is made of it has what was there; then it goes.
fn snapshots_are_whole_or_gone(http: &Http, case: &Case) {
    let listed: Value = http.get("/v1/snapshots").expect(200).json();
    for snapshot in listed["snapshots"].as_array().expect("a list") {
        assert_eq!(snapshot["name"], SNAPSHOT, "{case:?}");
        let session = Session::create(http, &json!({"snapshot": SNAPSHOT}));
        assert_eq!(session.output("cat /workspace/kept"), "kept", "{case:?}");
        session.delete();
        http.delete(&format!("/v1/snapshots/{SNAPSHOT}")).expect(200);
    }
}

/// A workspace that has a name can be used; then it goes.
fn workspaces_are_whole_or_gone(http: &Http, case: &Case) {
    let listed: Value = http.get("/v1/workspaces").expect(200).json();
    for workspace in listed["workspaces"].as_array().expect("a list") {
        assert_eq!(workspace["id"], WORKSPACE, "{case:?}");
    }
    let write = format!("/v1/workspaces/{WORKSPACE}/fs/write");
    http.post(&write, &json!({"path": "after/file", "text": "usable"})).expect(200);
    http.delete(&format!("/v1/workspaces/{WORKSPACE}")).expect(200);
}

/// A server without faults finds every sandbox usable or gone, and can delete what there is.
fn settle_again(dir: &DataDir, case: &Case) {
    let server = Server::try_start(dir, &Options { config: case.config(), ..Options::default() })
        .unwrap_or_else(|log| panic!("{case:?}: the server does not start again:\n{log}"));
    let http = server.http();
    let sessions: Vec<SessionInfo> = http.get("/v1/sessions").expect(200).json();
    for session in &sessions {
        let session = Session::at(&http, &session.id);
        let mut status = String::new();
        settles("an end of all steps", || {
            let answer = http.get(&session.route(""));
            // One that never came to life is not even remembered.
            status =
                if answer.status == 404 { "gone".to_owned() } else { answer.json::<SessionInfo>().status };
            !matches!(status.as_str(), "starting" | "stopping" | "destroying")
        });
        match status.as_str() {
            "running" if case.claims() => assert_eq!(session.output("echo $CLAIMED"), "whole", "{case:?}"),
            "running" => assert_eq!(session.output("echo usable"), "usable", "{case:?}"),
            "stopped" | "paused" => {
                let verb = if status == "paused" { "/resume" } else { "/start" };
                http.post(&session.route(verb), &json!({})).expect(200);
                assert_eq!(session.output("echo usable"), "usable", "{case:?}");
            }
            // It could not be started or ended by itself: it can be deleted.
            "crashed" => {}
            "gone" | "destroyed" | "expired" | "pool_idle" => continue,
            other => panic!("{case:?}: a session is {other}"),
        }
        session.delete();
    }
    // What the dead server was deleting goes on being deleted; nobody is told when that has come to its end.
    settles(&format!("{case:?}: an empty list"), || {
        http.get("/v1/sessions").expect(200).json::<Vec<Value>>().is_empty()
    });
    if case.shows_workspace() {
        workspaces_are_whole_or_gone(&http, case);
    }
    snapshots_are_whole_or_gone(&http, case);
    settles(&format!("{case:?}: an end of all remains"), || dir.objects().is_empty());
    // And the next one is made as ever.
    let next = Session::create(&http, &json!({}));
    assert_eq!(next.output("echo next"), "next", "{case:?}");
    next.delete();
    let launcher: Option<Handle> = server.launcher();
    let (status, log) = server.stop();
    assert!(status.success(), "{case:?}: {status}\n{log}");
    if let Some(launcher) = launcher {
        assert!(launcher.ends_within(Duration::from_secs(10)), "{case:?}: the launcher outlives its server");
    }
    let left = dir.objects();
    assert!(left.is_empty(), "{case:?}: after the end: {left:#?}\n{log}");
    let snapshots = fs_err::read_dir(dir.path().join("snapshots"));
    let snapshots = snapshots.map_or(0, Iterator::count);
    assert_eq!(snapshots, 0, "{case:?}: snapshots that nobody can name\n{log}");
    assert_eq!(dir.network(), BTreeSet::new(), "{case:?}: after the end");
}
