//! Commands without state, as users see them, in every shell that images have.

use std::{fs, io::Write as _};

use sandhaus_protocol::{
    frame::Kind,
    process::Process,
    shell::{ShellExec, ShellExit, ShellStarted},
};

use crate::support::{Agent, Frames, eventually, find_shell};

fn stream(agent: &Agent, cmd: &str, timeout_ms: u64) -> Frames {
    let body = serde_json::to_vec(&ShellExec { cmd: cmd.to_owned(), timeout_ms }).expect("JSON");
    Frames::new(agent.send("POST", "/sandhaus/script", &[("content-type", "application/json")], &body))
}

fn run(agent: &Agent, cmd: &str, timeout_ms: u64) -> (String, ShellExit) {
    let all = stream(agent, cmd, timeout_ms).collect();
    let exit = serde_json::from_slice(&all.exit).expect("an exit record");
    (String::from_utf8(all.stdout).expect("text"), exit)
}

#[test]
fn each_command_has_a_fresh_shell() {
    for shell in ["bash", "dash", "busybox"] {
        let Some(shell) = find_shell(shell) else { continue };
        let agent = Agent::start(Some(&shell));
        let work = agent.work().display().to_string();
        for (cmd, output, status) in [
            ("cd /usr; export X=1; f() { :; }; pwd", "/usr\n", 0),
            ("pwd; echo \"[$X]\"", &*format!("{work}\n[]\n"), 0),
            // In the order written, newlines and carriage returns as they are.
            ("echo 1; echo 2 >&2; echo 3; printf 'a\\r\\n\\n'", "1\n2\n3\na\r\n\n", 0),
            ("test -t 1 || cat; read line; echo $?", "1\n", 0),
            ("exit 7", "", 7),
            ("kill -9 $$", "", 137),
            ("kill -TERM $$", "", 143),
        ] {
            let (said, exit) = run(&agent, cmd, 0);
            assert_eq!((said.as_str(), exit.exit_code), (output, status), "{shell}: {cmd}");
            assert_eq!((exit.cwd.as_str(), exit.timed_out, exit.shell_replaced), (&*work, false, false));
        }
        let long =
            format!("# {}\nv='{}'\necho ${{#v}}; read x; echo $?", "x".repeat(200_000), "y".repeat(500_000));
        assert_eq!(run(&agent, &long, 0).0, "500000\n1\n", "{shell}");
        let (said, exit) = run(&agent, "for (", 0);
        assert!(exit.exit_code != 0 && !said.is_empty(), "{shell}: an error is told");
    }
}

#[test]
fn time_limits_end_the_whole_tree_at_once() {
    let agent = Agent::start(None);
    for cmd in [
        "sleep 1234 & (setsid sleep 1234 &); sleep 1234|(sleep 1234)",
        "trap '' INT TERM; sh -c 'trap \"\" INT TERM; sleep 1234; sleep 1234'; echo never > ran",
    ] {
        let (said, exit) = run(&agent, &format!("echo before; {cmd}"), 200);
        assert_eq!((said.as_str(), exit.timed_out, exit.exit_code), ("before\n", true, 137), "{cmd}");
        assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0], "{cmd}");
        assert!(!agent.work().join("ran").exists(), "{cmd}");
    }
}

#[test]
fn commands_run_beside_each_other_and_background_jobs_live_on() {
    let agent = Agent::start(None);
    run(&agent, "true", 0);
    let quiet = agent.descriptors();
    // The first waits for what only a later one does.
    let mut waiting = stream(&agent, "mkfifo gate; echo made; cat gate", 0);
    waiting.until("made");
    assert_eq!(run(&agent, "echo through > gate", 0).1.exit_code, 0);
    waiting.until("through");
    waiting.collect();
    // A job that prints after its command has ended dies of no closed pipe; nobody hears it.
    let (said, _) =
        run(&agent, "(read line < gate; echo late; echo late >&2; echo $line > done) & echo at once", 0);
    assert_eq!(said, "at once\n");
    fs::OpenOptions::new()
        .write(true)
        .open(agent.work().join("gate"))
        .and_then(|mut gate| gate.write_all(b"word\n"))
        .expect("open the gate");
    let done = agent.work().join("done");
    eventually("the job has ended well", || fs::read_to_string(&done).is_ok_and(|text| text == "word\n"));
    eventually("what was held for it is let go", || agent.descriptors() <= quiet);
}

#[test]
fn streams_resume_and_commands_are_listed() {
    let agent = Agent::start(None);
    let mut first = stream(&agent, "seq 1 20000; echo done", 0);
    let head = first.next().expect("a first frame");
    assert_eq!(head.kind, Kind::Started);
    let started: ShellStarted = serde_json::from_slice(&head.payload).expect("a started record");
    first.until("1\n");
    first.hang_up();
    let mut whole: Vec<u8> = (1..=20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    whole.extend_from_slice(b"done\n");
    for offset in [0, 1, whole.len() / 2, whole.len(), whole.len() + 10] {
        let target = format!("/sandhaus/script/{}?offset={offset}", started.exec_id);
        let all = Frames::new(agent.send("GET", &target, &[], b"")).collect();
        assert_eq!(all.stdout, whole.get(offset..).unwrap_or_default(), "from {offset}");
    }
    let listed: Process = agent.get(&format!("/sandhaus/process/{}", started.exec_id)).json();
    assert_eq!(listed.argv.last().map(String::as_str), Some("seq 1 20000; echo done"));
    assert_eq!(agent.get("/sandhaus/script/999").refusal(), (404, "PROCESS_NOT_FOUND".to_owned()));
    let body = serde_json::json!({ "cmd": "a\0b" });
    assert_eq!(agent.post("/sandhaus/script", &body).refusal().0, 400);
    let body = serde_json::json!({ "cmd": "#".repeat((1 << 20) + 1) });
    assert_eq!(agent.post("/sandhaus/script", &body).refusal().0, 413);
}

#[test]
fn a_missing_shell_or_directory_is_told() {
    let agent = Agent::start(Some("/nonexistent/sh"));
    let (said, exit) = run(&agent, "echo x", 0);
    assert_eq!((said.as_str(), exit.exit_code), ("cannot start a shell: command not found\n", 127));
    let agent = Agent::start(None);
    fs::remove_dir(agent.work()).expect("remove the work directory");
    let (said, exit) = run(&agent, "pwd", 0);
    assert_eq!((said.as_str(), exit.cwd.as_str()), ("/\n", "/"));
}
