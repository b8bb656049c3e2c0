//! A server that is newer than the agents of its sandboxes replaces them where they run, and dies on the way without harm.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use sandhaus_tests::{
    process, runnable,
    server::{DataDir, Options, Server},
    session::Session,
    settles, vm,
    websocket::WebSocket,
};
use serde_json::json;

#[path = "../../crates/engines/tests/shared/agent.rs"]
mod shared;

/// An agent that took the place of another one has this in its command line.
const SUCCESSOR: &str = "--resume";

/// Options of a server whose sandboxes get another build of the agent than the one that every other server has.
fn older() -> Options {
    let agent = shared::agent();
    let config = format!("agent: {{executable: {}}}\n", agent.display());
    Options { config: Some(config), ..Options::default() }
}

/// That other build without what only debuggers read, which an emulated machine needs a minute to take in.
fn stripped_agent(dir: &DataDir) -> PathBuf {
    let stripped = dir.path().with_file_name("other-agent");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(shared::agent()).status();
    assert!(status.expect("strip is installed").success(), "the agent cannot be stripped");
    stripped
}

/// The numbers of all processes of a data directory's sandboxes.
fn processes(dir: &DataDir) -> BTreeSet<u32> {
    let number = |process: &String| process.split(' ').next().and_then(|pid| pid.parse().ok());
    dir.objects().processes.iter().map(|process| number(process).expect("a number first")).collect()
}

/// Those of agents that took another one's place.
fn successors(dir: &DataDir) -> BTreeSet<u32> {
    let is_successor = |pid: &u32| process::arguments(*pid).iter().any(|argument| argument == SUCCESSOR);
    processes(dir).into_iter().filter(is_successor).collect()
}

/// A sandbox that an older agent serves, with something of everything going on in it.
fn begun(dir: &DataDir) -> String {
    let server = Server::start_with(dir, &older());
    let session = Session::create(&server.http(), &json!({}));
    session.output("x=1; (n=0; while :; do echo $n; n=$((n+1)); sleep 0.01; done > counter) &");
    assert!(successors(dir).is_empty());
    server.kill();
    session.id
}

/// What was going on goes on.
fn goes_on(server: &Server, id: &str) {
    let session = Session::at(&server.http(), id);
    assert_eq!(session.output("echo $x; jobs -pr | wc -l"), "1\n1");
    session
        .output("before=$(tail -n 1 counter); while [ \"$(tail -n 1 counter)\" = \"$before\" ]; do :; done");
    let counted = String::from_utf8(session.read("counter")).expect("digits");
    let whole = counted.lines().count() - 1;
    assert!(counted.lines().take(whole).enumerate().all(|(n, line)| line == n.to_string()));
}

#[test]
fn an_older_agent_is_replaced_where_it_runs() {
    if !runnable("an_older_agent_is_replaced_where_it_runs") {
        return;
    }
    let dir = DataDir::new();
    let id = begun(&dir);
    let before = processes(&dir);

    let never = Options { config: Some("agent: {upgrade: never}\n".to_owned()), ..Options::default() };
    let server = Server::start_with(&dir, &never);
    goes_on(&server, &id);
    let (_, log) = server.stop();
    assert!(!log.contains("WARN") && successors(&dir).is_empty(), "{log}");

    let server = Server::start(&dir);
    settles("a new agent", || server.log().contains("its agent was replaced"));
    assert_eq!(successors(&dir).len(), 1);
    goes_on(&server, &id);
    assert!(successors(&dir).is_subset(&before), "in the same process");
    // What is new has the right agent already, and so does what was replaced.
    let fresh = Session::create(&server.http(), &json!({}));
    fresh.output("true");
    let (_, log) = server.stop();
    assert!(!log.contains("WARN"), "{log}");
    assert_eq!(log.matches("its agent was replaced").count(), 1);
    let server = Server::start(&dir);
    goes_on(&server, &id);
    server.delete_all();
    let (_, log) = server.stop();
    assert!(!log.contains("WARN") && !log.contains("its agent was replaced"), "{log}");
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_server_that_dies_while_it_replaces_an_agent_harms_nothing() {
    if !runnable("a_server_that_dies_while_it_replaces_an_agent_harms_nothing") {
        return;
    }
    for (point, done) in [("renew_agent.send.before", false), ("renew_agent.send.after", true)] {
        let dir = DataDir::new();
        let id = begun(&dir);
        let fault = ("SANDHAUS_FAULT".to_owned(), point.to_owned());
        let dies = Options { env: vec![fault], ..Options::default() };
        Server::start_with(&dir, &dies).reap();
        assert_eq!(successors(&dir).len(), usize::from(done), "{point}");
        let server = Server::start(&dir);
        goes_on(&server, &id);
        settles("a new agent", || successors(&dir).len() == 1);
        goes_on(&server, &id);
        server.delete_all();
        let (_, log) = server.stop();
        assert!(!log.contains("WARN"), "{log}");
        let left = dir.objects();
        assert!(left.is_empty(), "{left:#?}");
    }
}

/// The numbers that a terminal counted by lines such as `at-7`, without the last, which may not be whole.
fn counted(shown: &str) -> Vec<u64> {
    let lines: Vec<&str> = shown.split("\r\n").collect();
    let whole = &lines[..lines.len().saturating_sub(1)];
    whole.iter().filter_map(|line| line.strip_prefix("at-")?.parse().ok()).collect()
}

#[test]
fn a_machine_that_goes_on_from_memory_gets_the_servers_agent_where_it_runs() {
    if !vm::bootable("a_machine_that_goes_on_from_memory_gets_the_servers_agent_where_it_runs") {
        return;
    }
    let dir = DataDir::new();
    vm::initramfs_image(dir.path());
    let server = Server::start_with(&dir, &vm::options(""));
    let original = Session::create(&server.http(), &json!({}));
    let route = |id: &str, rest: &str| format!("/toolbox/{id}/process/pty{rest}");
    server.http().post(&route(&original.id, ""), &json!({"id": "counts"})).expect(201);
    let mut terminal = WebSocket::open(&server.http(), &route(&original.id, "/counts/connect"));
    terminal.send(b"n=0; while :; do n=$((n+1)); echo at-$n; sleep 0.05; done\n");
    terminal.read_until("at-5\r\n");
    let request = json!({"session": original.id, "name": "counting", "kind": "machine"});
    server.http().post("/v1/snapshots", &request).expect(201);
    drop(terminal);
    original.delete();
    let (_, log) = server.stop();
    assert!(!log.contains("its agent was replaced"), "{log}");

    // Another build than the one that the memory holds.
    let other = format!("agent: {{executable: {}}}\n", stripped_agent(&dir).display());
    let server = Server::start_with(&dir, &vm::options(&other));
    let copy = Session::create(&server.http(), &json!({"snapshot": "counting"}));
    settles("a new agent", || server.log().contains("its agent was replaced"));
    let first = copy.output("tr '\\0' ' ' < /proc/1/cmdline");
    assert!(first.contains(SUCCESSOR), "{first}");
    // The same terminal, without a number that is missing, and it goes on.
    let connect = route(&copy.id, "/counts/connect?scrollback=true");
    let mut terminal = WebSocket::open(&server.http(), &connect);
    let mut shown = String::new();
    while counted(&shown).is_empty() {
        shown += &terminal.read_until("at-");
    }
    let further = counted(&shown).last().expect("there is one") + 10;
    shown += &terminal.read_until(&format!("at-{further}\r\n"));
    let numbers = counted(&shown);
    assert!(numbers.contains(&1) && numbers.contains(&further), "{numbers:?}");
    assert!(numbers.is_sorted_by(|one, next| one + 1 == *next), "{numbers:?}");
    drop(terminal);
    server.http().delete("/v1/snapshots/counting").expect(200);
    server.delete_all();
    let (_, log) = server.stop();
    assert!(!log.contains("not replaced"), "{log}");
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}
