//! What the server does to its host, and says of it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;
use sandhaus_client::wire::SessionInfo;
use sandhaus_tests::{
    probe,
    process::Handle,
    runnable,
    server::{DataDir, Options, Server, with_server},
    session::Session,
    settles, skip,
};
use serde_json::{Value, json};

use super::agent_of;

/// A process that has exactly this number, which must be free; and the one that made it and ends it with its input.
fn start_as(pid: u32) -> Option<(Handle, Child)> {
    let mut maker = Command::new(probe::build("as_pid"))
        .arg(pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(maker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.trim() == pid.to_string() {
        return Some((Handle::open(pid).unwrap(), maker));
    }
    maker.wait().unwrap();
    None
}

#[test]
fn w14_a_process_with_a_reused_number_is_not_harmed() {
    let name = "w14_a_process_with_a_reused_number_is_not_harmed";
    if !runnable(name) {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let session = Session::create(&server.http(), &json!({}));
    let agent = agent_of(&session);
    let handle = Handle::open(agent).unwrap();
    let launcher = server.launcher().unwrap();
    server.kill();
    launcher.wait();
    // While no server looks, the machine ends and its number goes to somebody else.
    handle.signal(Signal::KILL);
    handle.wait();
    settles("the dead process is reaped", || !std::path::Path::new(&format!("/proc/{agent}")).exists());
    let Some((bystander, mut maker)) = start_as(agent) else {
        skip(name, "this host does not let process numbers be chosen");
        return;
    };
    let server = Server::start(&dir);
    let http = server.http();
    let info: SessionInfo = http.get(&session.route("")).expect(200).json();
    assert_ne!(info.status, "running", "a stranger does not count as the machine");
    Session::at(&http, &session.id).delete();
    server.stop();
    assert!(!bystander.has_ended(), "the stranger was harmed");
    drop(maker.stdin.take());
    assert!(maker.wait().unwrap().success());
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn w16_errors_say_nothing_of_the_host() {
    if !runnable("w16_errors_say_nothing_of_the_host") {
        return;
    }
    let dir = DataDir::new();
    let config = Some("sandboxes_max: 2\n".to_owned());
    let server = Server::start_with(&dir, &Options { config, ..Options::default() });
    let http = server.http();
    let session = Session::create(&http, &json!({}));
    let route = |rest: &str| session.route(rest);
    let folder = dir.path().to_str().unwrap();
    let mut answers = vec![
        http.get(&route("/fs/read?path=absent")),
        http.get(&route("/fs/read?path=../../etc/passwd")),
        http.get(&route("/fs/read?path=.")),
        http.get(&route("/fs/list?path=absent")),
        http.post(&route("/fs/write"), &json!({"path": "absent/../../x", "text": ""})),
        http.post(&route("/fs/write"), &json!({"path": "/workspace", "text": ""})),
        http.post(&route("/exec"), &json!({"cmd": 7})),
        http.post("/v1/sessions", &json!({"image": "absent"})),
        http.post("/v1/sessions", &json!({"image": "../../absent"})),
        http.post("/v1/sessions", &json!({"snapshot": "absent"})),
        http.post("/v1/sessions", &json!({"engine": "absent"})),
        http.post("/v1/sessions", &json!({"workdir": "/../.."})),
        http.post("/v1/sessions", &json!({"memory_mb": 1})),
        http.get("/v1/sessions/00000000-000"),
        http.get("/v1/images/absent"),
        http.get("/nowhere"),
        http.send("POST", "/v1/sessions", "", b"{"),
    ];
    // There is an end to the number of sessions, said by name.
    let second = Session::create(&http, &json!({}));
    let full = http.post("/v1/sessions", &json!({}));
    assert_eq!((full.status, full.header("retry-after")), (429, Some("1")), "{}", full.text());
    assert!(full.text().contains("the most allowed"), "{}", full.text());
    answers.push(full);
    second.delete();
    answers.push(second.try_exec(&json!({"cmd": "true"})));
    for answer in answers {
        let text = answer.text();
        assert!(answer.status >= 400, "{} {text}", answer.status);
        for secret in [folder, "/var/lib", "machines/", "disks/", "os error", "panicked", ".rs:"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    // Without a key, names that a foreign page could use are refused.
    for head in ["Host: evil.example", "Host: localhost\r\nOrigin: http://evil.example"] {
        let mut connection = http.connect().unwrap();
        let request = format!("GET /v1/sessions HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n");
        connection.write_raw(request.as_bytes()).unwrap();
        let answer = connection.read_answer().unwrap();
        assert!(matches!(answer.status, 403 | 421), "{head}: {}", answer.status);
    }
    session.delete();
    server.stop();
}

#[test]
fn w23_a_deleted_session_is_not_waited_for() {
    if !runnable("w23_a_deleted_session_is_not_waited_for") {
        return;
    }
    let dir = DataDir::new();
    let config = Some("workspace: {enabled: true}\n".to_owned());
    let server = Server::start_with(&dir, &Options { config, ..Options::default() });
    // What a process could still do after a polite request to end would stay in a workspace that outlives its session.
    let session = Session::create(&server.http(), &json!({"workspace_id": "left-behind"}));
    session.output("(trap 'echo asked > asked; sleep 1000' TERM HUP INT; touch ready; while :; do sleep 0.01; done) & true");
    session.output("while ! test -e ready; do sleep 0.01; done");
    let before = dir.objects();
    assert!(!before.processes.is_empty());
    session.delete();
    // The answer means that all of it is gone.
    let after = dir.objects();
    assert!(after.processes.is_empty() && after.cgroups.is_empty() && after.files.is_empty(), "{after:#?}");
    let next = Session::create(&server.http(), &json!({"workspace_id": "left-behind"}));
    assert_eq!(next.output("ls"), "ready", "it was killed, not asked");
    next.delete();
    server.stop();
}

#[test]
fn w27_the_list_shows_what_lives() {
    with_server("w27_the_list_shows_what_lives", |server| {
        let http = server.http();
        let ended: Vec<String> = (0..5)
            .map(|_| {
                let session = Session::create(&http, &json!({}));
                session.delete();
                session.id
            })
            .collect();
        let live = Session::create(&http, &json!({}));
        let ids = |path: &str| -> Vec<String> {
            let listed: Vec<SessionInfo> = http.get(path).expect(200).json();
            listed.into_iter().map(|info| info.id).collect()
        };
        assert_eq!(ids("/v1/sessions"), [live.id.as_str()]);
        let all = ids("/v1/sessions?status=all");
        assert_eq!(all.len(), 6);
        assert!(ended.iter().all(|id| all.contains(id)));
        // Long lists come in pages.
        let page = http.get("/v1/sessions?status=all&limit=4").expect(200);
        let cursor = page.header("x-next-cursor").unwrap().to_owned();
        assert_eq!(page.json::<Vec<Value>>().len(), 4);
        assert_eq!(ids(&format!("/v1/sessions?status=all&limit=4&cursor={cursor}")).len(), 2);
    });
}
