//! Snapshots and forks of sandboxes of namespaces: what a copy has, what it has not, and what becomes of it all.

use sandhaus_client::wire::{SessionInfo, SnapshotInfo};
use sandhaus_tests::{
    runnable,
    server::{DataDir, Server},
    session::Session,
    settles,
};
use serde_json::{Value, json};

fn take(server: &Server, session: &Session, name: &str) -> SnapshotInfo {
    server.http().post("/v1/snapshots", &json!({"session": session.id, "name": name})).expect(201).json()
}

fn fork(server: &Server, session: &Session, request: &Value) -> Session {
    let http = server.http();
    let info: SessionInfo = http.post(&session.route("/fork"), request).expect(201).json();
    assert_eq!(info.status, "running");
    Session::at(&http, &info.id)
}

fn snapshots_on_disk(dir: &DataDir) -> usize {
    fs_err::read_dir(dir.path().join("snapshots")).map_or(0, Iterator::count)
}

#[test]
fn a_fork_goes_its_own_way_and_its_original_goes_on() {
    if !runnable("a_fork_goes_its_own_way_and_its_original_goes_on") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let original = Session::create(&server.http(), &json!({"env": {"A": "old", "B": "old"}}));
    original.output("echo shared > /workspace/file; ln /workspace/file /workspace/other; X=memory");
    // A command runs all the while: it is neither ended nor is whoever follows it cut off.
    original.output("mkfifo gate");
    let mut events = original.events(&json!({"cmd": "echo first; cat gate; echo last"}));
    assert_eq!(events.next().expect("it has begun").1["chunk"], "first\n");
    let copy = fork(&server, &original, &json!({"env": {"A": "new"}}));
    let release = json!({"command": "sh -c 'echo between > /workspace/gate'"});
    server.http().post(&original.route("/toolbox/process/execute"), &release).expect(200);
    let text: String = events.filter_map(|(_, data)| data["chunk"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, "between\nlast\n");
    original.output("rm gate");
    copy.output("test -p gate && rm gate");

    assert_ne!(copy.id, original.id);
    assert_eq!(
        copy.output("cat /workspace/file; echo $A $B ${X:-none}; hostname"),
        format!("shared\nnew old none\n{}", copy.id)
    );
    assert_eq!(copy.output("stat -c %h /workspace/file"), "2");
    copy.output("echo its own > /workspace/file; rm /workspace/other");
    assert_eq!(original.output("cat /workspace/file /workspace/other; echo $X"), "shared\nshared\nmemory");
    assert_eq!(copy.output("cat /workspace/file"), "its own");
    assert!(copy.info().snapshot.is_some_and(|snapshot| !snapshot.is_empty()));

    // It outlives its original and the server, and starts again.
    original.delete();
    server.http().post(&copy.route("/stop"), &json!({})).expect(200);
    server.stop();
    let server = Server::start(&dir);
    let copy = Session::at(&server.http(), &copy.id);
    server.http().post(&copy.route("/start"), &json!({})).expect(200);
    assert_eq!(copy.output("cat /workspace/file; ls /workspace"), "its own\nfile");
    assert_eq!(snapshots_on_disk(&dir), 1, "it stands on what was captured");
    copy.delete();
    settles("an end of what stood behind the copy", || snapshots_on_disk(&dir) == 0);
    server.stop();
    assert!(dir.objects().is_empty(), "{:#?}", dir.objects());
}

#[test]
fn a_snapshot_outlives_its_sandbox() {
    if !runnable("a_snapshot_outlives_its_sandbox") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();
    let session = Session::create(&http, &json!({}));
    session.output("mkdir /workspace/deep; echo one > /workspace/deep/file; chmod 640 /workspace/deep/file");
    let taken = take(&server, &session, "first");
    assert_eq!((taken.name.as_str(), taken.kind.as_str()), ("first", "disk"));
    assert_eq!(taken.session.as_deref(), Some(&*session.id));
    http.post("/v1/snapshots", &json!({"session": session.id, "name": "first"})).expect(409);
    http.post("/v1/snapshots", &json!({"session": session.id, "name": "x", "kind": "machine"})).expect(400);
    http.post("/v1/snapshots", &json!({"session": session.id, "name": "x", "live": true})).expect(400);
    http.post("/v1/snapshots", &json!({"session": session.id, "name": "../x"})).expect(400);
    session.output("echo later > /workspace/later");
    session.delete();

    // The machine of a stopped one need not be there.
    let copies: Vec<Session> =
        (0..4).map(|_| Session::create(&http, &json!({"snapshot": "first"}))).collect();
    for (number, copy) in copies.iter().enumerate() {
        assert_eq!(
            copy.output("cat /workspace/deep/file; stat -c '%a %U' /workspace/deep/file; ls /workspace"),
            "one\n640 sandbox\ndeep"
        );
        copy.output(&format!("echo {number} >> /workspace/deep/file"));
    }
    assert_eq!(copies[3].output("cat /workspace/deep/file"), "one\n3", "each has its own");
    http.post(&copies[0].route("/stop"), &json!({})).expect(200);
    take(&server, &copies[0], "second");
    server.kill();

    let server = Server::start(&dir);
    let http = server.http();
    let again = Session::create(&http, &json!({"snapshot": "second"}));
    assert_eq!(again.output("cat /workspace/deep/file"), "one\n0", "a layer on a layer");
    for name in ["first", "second"] {
        http.delete(&format!("/v1/snapshots/{name}")).expect(200);
        http.get(&format!("/v1/snapshots/{name}")).expect(404);
        http.post("/v1/sessions", &json!({"snapshot": name})).expect(404);
    }
    // Those that are made of them go on, and start again.
    let copy = Session::at(&http, &copies[1].id);
    http.post(&copy.route("/stop"), &json!({})).expect(200);
    http.post(&copy.route("/start"), &json!({})).expect(200);
    assert_eq!(copy.output("cat /workspace/deep/file"), "one\n1");
    for session in copies.iter().map(|copy| Session::at(&http, &copy.id)).chain([again]) {
        session.delete();
    }
    settles("an end of what nobody can name", || snapshots_on_disk(&dir) == 0);
    server.stop();
    assert!(dir.objects().is_empty(), "{:#?}", dir.objects());
}

#[test]
fn a_fork_shares_the_workspace_and_an_image_stays_while_it_is_needed() {
    if !runnable("a_fork_shares_the_workspace_and_an_image_stays_while_it_is_needed") {
        return;
    }
    let dir = DataDir::new();
    let options = sandhaus_tests::server::Options {
        config: Some("workspace: {enabled: true}\n".to_owned()),
        ..Default::default()
    };
    let server = Server::try_start(&dir, &options).expect("it starts");
    let http = server.http();
    let original = Session::create(&http, &json!({"workspace_id": "shared"}));
    original.output("echo before > /workspace/file");
    let copy = fork(&server, &original, &json!({}));
    assert_eq!(copy.info().workspace_id.as_deref(), Some("shared"));
    copy.output("echo by the copy > /workspace/file");
    assert_eq!(original.output("cat /workspace/file"), "by the copy");
    // A session that is made of a snapshot shows one only if it is asked for.
    take(&server, &original, "bare");
    let made = Session::create(&http, &json!({"snapshot": "bare"}));
    assert_eq!(made.output("ls -A /workspace"), "");
    for session in [&original, &copy, &made] {
        session.delete();
    }
    http.delete("/v1/snapshots/bare").expect(200);
    server.stop();
}
