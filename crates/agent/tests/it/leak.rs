//! Nothing of what has ended stays: descriptors, processes, threads, memory.

use std::{collections::BTreeMap, fs, thread};

use serde_json::{Value, json};

use crate::support::{Agent, argv, eventually};

/// Threads that ask at once.
const ASKING: usize = 4;

/// Of each kind: what is run before anything is counted, and what is run then, by each of them.
const WARM: usize = 50;
const PROCESSES: usize = 2250;
const COMMANDS: usize = 225;
const SESSION_COMMANDS: usize = 100;
const TERMINALS: usize = 25;

/// What the agent may have more of after all that, in KiB: pages that its allocator keeps for the next time.
const MEMORY_SLACK_KIB: u64 = 1536;

/// Entries of a large folder, and what may stay of a listing: it takes some tens of MiB.
const FILES: usize = 30_000;
const LISTING_SLACK_KIB: u64 = 6 * 1024;

/// What an agent holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Processes below it by what they are, ended ones that nobody has collected among them.
    processes: BTreeMap<String, usize>,
}

impl Held {
    fn of(agent: &Agent) -> Self {
        let mut processes = BTreeMap::new();
        let children = format!("/proc/{0}/task/{0}/children", agent.pid);
        for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let state = stat[stat.rfind(')').map_or(0, |at| at + 1)..]
                .trim_start()
                .chars()
                .take(1)
                .collect::<String>();
            *processes.entry(if state == "Z" { "ended" } else { "alive" }.to_owned()).or_default() += 1;
        }
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid)).expect("list threads").count();
        Self { descriptors: agent.descriptors(), threads, processes }
    }
}

fn on_all(agent: &Agent, each: impl Fn(&Agent, usize) + Sync) {
    thread::scope(|scope| {
        for number in 0..ASKING {
            let each = &each;
            scope.spawn(move || each(agent, number));
        }
    });
}

fn work(agent: &Agent, number: usize, [processes, commands, in_session, terminals]: [usize; 4]) {
    for _ in 0..processes {
        assert_eq!(agent.run(&argv(&["/bin/true"])).1.exit_code, 0);
    }
    for _ in 0..commands {
        let reply: Value = agent.post("/process/execute", &json!({ "command": "echo x" })).json();
        assert_eq!(reply["result"], "x\n");
    }
    let session = format!("session-{number}");
    assert_eq!(agent.post("/process/session", &json!({ "sessionId": session })).status, 201);
    for _ in 0..in_session {
        let target = format!("/process/session/{session}/exec");
        let reply: Value = agent.post(&target, &json!({ "command": "true" })).json();
        assert_eq!(reply["exitCode"], 0);
    }
    assert_eq!(agent.delete(&format!("/process/session/{session}")).status, 204);
    for _ in 0..terminals {
        let id = format!("terminal-{number}");
        assert_eq!(agent.post("/process/pty", &json!({ "id": id })).status, 201);
        assert_eq!(agent.delete(&format!("/process/pty/{id}")).status, 200);
    }
}

#[test]
fn ten_thousand_processes_leave_nothing() {
    let agent = Agent::start(None);
    on_all(&agent, |agent, number| work(agent, number, [WARM, WARM / 4, WARM / 4, WARM / 20]));
    // All threads for files are there, and the most that this test needs at once has been needed.
    on_all(&agent, |agent, _| {
        for _ in 0..WARM {
            agent.get("/files");
        }
    });
    // It settles when its connections are closed and its children's ends are collected.
    let mut before = Held::of(&agent);
    eventually("the agent is at rest", || {
        let now = Held::of(&agent);
        let rests = now == before && !now.processes.contains_key("ended");
        before = now;
        rests
    });
    let memory = agent.private_kib();
    on_all(&agent, |agent, number| {
        work(agent, number, [PROCESSES, COMMANDS, SESSION_COMMANDS, TERMINALS]);
    });
    eventually("all is as it was", || {
        let now = Held::of(&agent);
        now.descriptors <= before.descriptors && now.processes == before.processes
    });
    // Threads for files are made up to their limit and then stay.
    assert!(Held::of(&agent).threads <= before.threads.max(5), "{before:?}");
    let grown = agent.private_kib().saturating_sub(memory);
    assert!(grown <= MEMORY_SLACK_KIB, "{grown} KiB over {memory}");
}

#[test]
fn a_large_folder_is_listed_and_its_memory_given_back() {
    let agent = Agent::start(None);
    let folder = agent.work().join("many");
    fs::create_dir(&folder).expect("make a folder");
    for number in 0..FILES {
        fs::File::create(folder.join(format!("file-{number}"))).expect("make a file");
    }
    let listed = |agent: &Agent| agent.get("/files?path=many").json::<Vec<Value>>().len();
    agent.get("/files");
    let memory = agent.private_kib();
    for _ in 0..3 {
        assert_eq!(listed(&agent), FILES);
    }
    let found = agent.get("/files/search?path=many&pattern=%2A9").json::<Value>();
    assert_eq!(found["files"].as_array().map(Vec::len), Some(FILES / 10));
    eventually("memory is given back", || agent.private_kib() <= memory + LISTING_SLACK_KIB);
    assert_eq!(agent.delete("/files?path=many&recursive=true").status, 204);
    assert!(!folder.exists());
}
