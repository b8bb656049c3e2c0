//! Sandboxes outlive the server and its launcher, however those end; instances never touch each other.

use rustix::process::Signal;
use sandhaus_client::wire::SessionInfo;
use sandhaus_tests::{
    binary, runnable,
    server::{DataDir, Server},
    session::Session,
};
use serde_json::json;

/// How many sandboxes live while the server is killed.
const LIVE: usize = 50;

#[test]
fn fifty_sessions_survive_a_killed_server() {
    if !runnable("fifty_sessions_survive_a_killed_server") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();
    let sessions: Vec<_> = (0..LIVE)
        .map(|number| {
            let session = Session::create(&http, &json!({}));
            session
                .output(&format!("number={number}; cd /tmp; sleep 1000 & echo {number} > /workspace/number"));
            session
        })
        .collect();
    let launcher = server.launcher().expect("a server has a launcher");
    let before = dir.objects();
    server.kill();
    launcher.wait();

    let server = Server::start(&dir);
    for (number, session) in sessions.iter().enumerate() {
        let session = Session::at(&server.http(), &session.id);
        let said = session.output("echo $number; pwd; jobs -r | wc -l; cat /workspace/number");
        assert_eq!(said, format!("{number}\n/tmp\n1\n{number}"));
        assert_eq!(session.info().status, "running");
    }
    assert_eq!(dir.objects().processes, before.processes, "the same processes as before");
    for session in &sessions {
        Session::at(&server.http(), &session.id).delete();
    }
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_command_goes_on_while_the_server_is_replaced() {
    if !runnable("a_command_goes_on_while_the_server_is_replaced") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let session = Session::create(&server.http(), &json!({}));
    session.output("mkfifo gate; (cat gate; echo went on > result) & true");
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");

    let server = Server::start(&dir);
    let session = Session::at(&server.http(), &session.id);
    session.output("echo go > gate; wait; cat result");
    assert_eq!(session.read("result"), b"went on\n");
    session.delete();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_killed_launcher_is_replaced() {
    if !runnable("a_killed_launcher_is_replaced") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();
    let first = Session::create(&http, &json!({}));
    first.output("kept=1");
    let launcher = server.launcher().expect("a server has a launcher");
    launcher.signal(Signal::KILL);
    launcher.wait();
    let second = Session::create(&http, &json!({}));
    assert_eq!(second.output("echo new"), "new");
    assert_eq!(first.output("echo $kept"), "1");
    assert_ne!(server.launcher().expect("a new launcher").pid(), launcher.pid());
    // The first was the old launcher's child; its end must be seen all the same.
    first.delete();
    second.delete();
    assert_eq!(http.get("/v1/sessions").json::<Vec<SessionInfo>>(), []);
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_sandbox_that_ends_by_itself_is_told_apart() {
    if !runnable("a_sandbox_that_ends_by_itself_is_told_apart") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let (quiet, away) =
        (Session::create(&server.http(), &json!({})), Session::create(&server.http(), &json!({})));
    quiet.output("true");
    // One dies while the server looks on, the other while there is none.
    kill_agent(&dir, &away.id);
    sandhaus_tests::settles("the end is noticed", || away.info().status == "crashed");
    assert_eq!(away.try_exec(&json!({"cmd": "true"})).expect(409).error_code(), "SESSION_NOT_RUNNING");
    server.kill();
    kill_agent(&dir, &quiet.id);
    let server = Server::start(&dir);
    let quiet = Session::at(&server.http(), &quiet.id);
    sandhaus_tests::settles("the end is noticed", || quiet.info().status == "crashed");
    quiet.delete();
    Session::at(&server.http(), &away.id).delete();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

/// Kills the first process of a sandbox from outside.
fn kill_agent(dir: &DataDir, id: &str) {
    let agents: Vec<_> = sandhaus_tests::process::all()
        .into_iter()
        .filter(|pid| {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let first =
                sandhaus_tests::process::status(*pid, "NSpid").is_some_and(|list| list.ends_with("\t1"));
            cgroup.contains(id) && first
        })
        .collect();
    assert_eq!(agents.len(), 1, "{:#?}", dir.objects());
    let agent = sandhaus_tests::process::Handle::open(agents[0]).expect("the agent lives");
    agent.signal(Signal::KILL);
    agent.wait();
}

#[test]
fn instances_never_touch_each_other() {
    if !runnable("instances_never_touch_each_other") {
        return;
    }
    let (one, two) = (DataDir::new(), DataDir::new());
    let (first, second) = (Server::start(&one), Server::start(&two));
    let mine = Session::create(&first.http(), &json!({}));
    let theirs = Session::create(&second.http(), &json!({}));
    mine.output("me=first");
    theirs.output("me=second");
    assert_ne!(one.instance(), two.instance());
    second.http().get(&mine.route("")).expect(404);

    // A second server on a held directory is refused, and harms nothing.
    let refused = binary::run(binary::command(one.path()).args(["serve", "--listen", "127.0.0.1:0"]));
    assert_ne!(refused.code, 0);
    assert_ne!(refused.stderr, "");

    // A run on a third directory, and on the held ones without their server, beside both.
    let three = DataDir::new();
    for dir in [&three, &one, &two] {
        let mut command = binary::command(dir.path());
        let ran = binary::run(command.args(["run", "-v", "/usr/share:/shown:ro", "--", "echo", "beside"]));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "beside\n"), "{}", ran.stderr);
    }
    first.kill();
    let first = Server::start(&one);
    assert_eq!(theirs.output("echo $me"), "second");
    let mine = Session::at(&first.http(), &mine.id);
    assert_eq!(mine.output("echo $me"), "first");
    mine.delete();
    first.stop();
    assert_eq!(theirs.output("echo $me"), "second");
    theirs.delete();
    second.stop();
    for dir in [&one, &two, &three] {
        let left = dir.objects();
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[test]
fn a_deadline_passes_also_while_no_server_runs() {
    if !runnable("a_deadline_passes_also_while_no_server_runs") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let brief = Session::create(&server.http(), &json!({"ttl_seconds": 1}));
    let lasting = Session::create(&server.http(), &json!({"ttl_seconds": 1000}));
    server.kill();
    let server = Server::start(&dir);
    let brief = Session::at(&server.http(), &brief.id);
    sandhaus_tests::settles("the deadline", || brief.info().status == "expired");
    let lasting = Session::at(&server.http(), &lasting.id);
    assert_eq!(lasting.output("echo alive"), "alive");
    lasting.delete();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}
