//! One-shot processes: streams, input, terminals, signals, limits.

use crate::support::{Agent, Frames, argv, eventually};
use sandhaus_protocol::{
    frame::Kind,
    process::{Exit, Process, Resize, Spawn},
};

fn started(frames: &mut Frames) -> Process {
    let first = frames.next().expect("a first frame");
    assert_eq!(first.kind, Kind::Started);
    serde_json::from_slice(&first.payload).expect("a process")
}

#[test]
fn streams_are_apart_and_ends_are_told() {
    let agent = Agent::start(None);
    let (all, exit) = agent.run(&argv(&["sh", "-c", "echo out; echo err >&2; exit 3"]));
    assert_eq!((all.stdout.as_slice(), all.stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!((exit.exit_code, exit.signal, exit.timed_out, exit.error), (3, None, false, None));
    let (_, exit) = agent.run(&argv(&["sh", "-c", "kill -TERM $$"]));
    assert_eq!((exit.exit_code, exit.signal), (143, Some(15)));
    let (_, exit) = agent.run(&argv(&["nosuchprogram"]));
    assert_eq!((exit.exit_code, exit.error.as_deref()), (127, Some("command not found")));
    let (_, exit) = agent.run(&argv(&["/etc/passwd"]));
    assert_eq!(exit.exit_code, 126);
    assert!(exit.error.is_some());
    let (_, exit) = agent.run(&Spawn { cwd: Some("/nosuch".to_owned()), ..argv(&["true"]) });
    assert_eq!(exit.exit_code, 126);
    let (all, _) = agent.run(&Spawn {
        cwd: Some("/usr".to_owned()),
        env: [("ADDED".to_owned(), "a b".to_owned())].into(),
        ..argv(&["sh", "-c", "pwd; echo $ADDED; cat; ls /proc/self/fd"])
    });
    assert_eq!(all.stdout, b"/usr\na b\n0\n1\n2\n3\n");
}

#[test]
fn a_script_without_interpreter_line_runs_as_by_a_shell() {
    use std::os::unix::fs::PermissionsExt as _;
    let agent = Agent::start(None);
    let script = agent.work().join("script");
    std::fs::write(&script, "echo $1 $#\n").expect("write the script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let (all, exit) = agent.run(&argv(&["./script", "one", "two"]));
    assert_eq!((all.stdout.as_slice(), exit.exit_code), (b"one 2\n".as_slice(), 0));
}

#[test]
fn bad_requests_are_refused() {
    let agent = Agent::start(None);
    for (body, status) in [
        (serde_json::json!({ "argv": [] }), 400),
        (serde_json::json!({ "argv": [""] }), 400),
        (serde_json::json!({ "argv": ["a\0b"] }), 400),
        (serde_json::json!({ "argv": ["true"], "env": { "A=B": "" } }), 400),
        (serde_json::json!({ "argv": ["true"], "tty": { "cols": 0, "rows": 1 } }), 400),
        (serde_json::json!({ "argv": vec!["x"; 5000] }), 400),
        (serde_json::json!({ "nothing": 1 }), 400),
    ] {
        assert_eq!(agent.post("/sandhaus/process", &body).refusal().0, status, "{body}");
    }
    assert_eq!(agent.get("/sandhaus/process/77").refusal(), (404, "PROCESS_NOT_FOUND".to_owned()));
    assert_eq!(agent.get("/nosuch").refusal(), (404, "NOT_FOUND".to_owned()));
    assert_eq!(agent.delete("/version").refusal().0, 405);
    let text = agent.request("POST", "/sandhaus/process", &[("content-type", "application/json")], b"{");
    assert_eq!(text.refusal(), (400, "INVALID_REQUEST_BODY".to_owned()));
}

#[test]
fn input_flows_with_back_pressure() {
    let agent = Agent::start(None);
    let mut frames = agent.spawn(&Spawn { stdin: true, ..argv(&["cat"]) });
    let process = started(&mut frames);
    let data: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let stdin = format!("/sandhaus/process/{}/stdin", process.id);
    let all = std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(agent.request("POST", &stdin, &[], &data[..1000]).status, 204);
            assert_eq!(agent.request("POST", &format!("{stdin}?eof=true"), &[], &data[1000..]).status, 204);
        });
        frames.collect()
    });
    assert_eq!(all.stdout, data);
    assert_eq!(agent.request("POST", &stdin, &[], b"more").refusal().0, 410);
    // Input for a process that has ended without reading it does not hang.
    let mut frames = agent.spawn(&Spawn { stdin: true, ..argv(&["sleep", "1234"]) });
    let process = started(&mut frames);
    std::thread::scope(|scope| {
        let stdin = format!("/sandhaus/process/{}/stdin", process.id);
        let sender = scope.spawn({
            let (agent, data) = (&agent, &data);
            move || agent.request("POST", &stdin, &[], data).status
        });
        let signal = format!("/sandhaus/process/{}/signal", process.id);
        assert_eq!(agent.post(&signal, &serde_json::json!({ "signal": 15 })).status, 204);
        assert_eq!(sender.join().expect("the sender ends"), 410);
    });
    let exit: Exit = serde_json::from_slice(&frames.collect().exit).expect("an exit record");
    assert_eq!(exit.signal, Some(15));
}

#[test]
fn terminals_resize_and_pass_signals_to_the_foreground() {
    let agent = Agent::start(None);
    let script = "trap 'stty size' WINCH; stty size; tty >/dev/null && echo terminal; read x; echo got $x; cat; echo end";
    let mut frames = agent.spawn(&Spawn {
        tty: Some(Resize { cols: 99, rows: 33 }),
        stdin: true,
        ..argv(&["bash", "-c", script])
    });
    let process = started(&mut frames);
    assert!(process.tty);
    frames.until("33 99\r\nterminal\r\n");
    let resize = format!("/sandhaus/process/{}/resize", process.id);
    assert_eq!(agent.post(&resize, &Resize { cols: 50, rows: 20 }).status, 204);
    let stdin = format!("/sandhaus/process/{}/stdin", process.id);
    assert_eq!(agent.request("POST", &stdin, &[], b"word\n").status, 204);
    frames.until("got word\r\n");
    // End of transmission ends the cat, not the script.
    assert_eq!(agent.request("POST", &format!("{stdin}?eof=true"), &[], b"").status, 204);
    let all = frames.collect();
    assert!(String::from_utf8_lossy(&all.stdout).contains("end\r\n"));
    let mut frames = agent.spawn(&Spawn {
        tty: Some(Resize { cols: 80, rows: 24 }),
        stdin: true,
        ..argv(&["sh", "-c", "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.01; done"])
    });
    started(&mut frames);
    frames.until("ready");
    let id =
        agent.get("/sandhaus/process").json::<Vec<Process>>().iter().map(|p| p.id).max().expect("a process");
    assert_eq!(agent.request("POST", &format!("/sandhaus/process/{id}/stdin"), &[], b"\x03").status, 204);
    frames.until("interrupted");
    let exit: Exit = serde_json::from_slice(&frames.collect().exit).expect("an exit record");
    assert_eq!(exit.exit_code, 9);
    let mut frames = agent.spawn(&argv(&["sleep", "1234"]));
    let process = started(&mut frames);
    let resize = format!("/sandhaus/process/{}/resize", process.id);
    assert_eq!(agent.post(&resize, &Resize { cols: 50, rows: 20 }).refusal().0, 409);
    assert_eq!(agent.delete(&format!("/sandhaus/process/{}", process.id)).status, 204);
}

#[test]
fn terminal_output_is_whole_however_soon_the_process_ends() {
    let agent = Agent::start(None);
    for _ in 0..50 {
        let tty = Some(Resize { cols: 80, rows: 24 });
        let (all, exit) = agent.run(&Spawn { tty, ..argv(&["seq", "1", "3000"]) });
        let expected: Vec<u8> = (1..=3000).flat_map(|n| format!("{n}\r\n").into_bytes()).collect();
        assert_eq!((all.stdout == expected, exit.exit_code), (true, 0));
    }
}

#[test]
fn limits_and_departures_end_the_whole_family() {
    let agent = Agent::start(None);
    let script = "sleep 1234 & setsid sleep 1234 & (setsid sleep 1234 &); echo up; sleep 1234";
    let (all, exit) = agent.run(&Spawn { timeout_ms: 300, ..argv(&["sh", "-c", script]) });
    assert_eq!((all.stdout.as_slice(), exit.exit_code, exit.timed_out), (b"up\n".as_slice(), 137, true));
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    let mut frames = agent.spawn(&Spawn { kill_on_disconnect: true, ..argv(&["sh", "-c", script]) });
    frames.until("up");
    frames.hang_up();
    eventually("the family is gone after its reader", || agent.descendants_with("sleep 1234").is_empty());
    let mut frames = agent.spawn(&argv(&["sh", "-c", "echo up; read x; sleep 1234"]));
    let process = started(&mut frames);
    frames.until("up");
    frames.hang_up();
    let output = format!("/sandhaus/process/{}/output", process.id);
    let mut frames = Frames::new(agent.send("GET", &output, &[], b""));
    assert_eq!(frames.until("up"), b"up\n");
    assert_eq!(agent.delete(&format!("/sandhaus/process/{}", process.id)).status, 204);
    let exit: Exit = serde_json::from_slice(&frames.collect().exit).expect("an exit record");
    assert_eq!(exit.exit_code, 137);
    assert_eq!(agent.get(&format!("/sandhaus/process/{}", process.id)).status, 404);
}

#[test]
fn a_process_has_ended_when_it_has() {
    let agent = Agent::start(None);
    let (all, exit) = agent.run(&argv(&["sh", "-c", "sleep 1234 & echo now"]));
    assert_eq!((all.stdout.as_slice(), exit.exit_code), (b"now\n".as_slice(), 0));
    assert_eq!(agent.descendants_with("sleep 1234").len(), 1, "what it left running is left running");
}

#[test]
fn without_a_reader_the_newest_output_is_kept() {
    let agent = Agent::start(None);
    let mut frames = agent.spawn(&argv(&["seq", "1", "200000"]));
    let process = started(&mut frames);
    frames.hang_up();
    let info = format!("/sandhaus/process/{}", process.id);
    eventually("it ends without a reader", || agent.get(&info).json::<Process>().exit.is_some());
    let whole: Vec<u8> = (1..=200_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let all = Frames::new(agent.send("GET", &format!("{info}/output"), &[], b"")).collect();
    assert_eq!(all.gaps, 1);
    assert!(whole.ends_with(&all.stdout) && all.stdout.len() == 256 * 1024);
    let at = whole.len() - 10;
    let all = Frames::new(agent.send("GET", &format!("{info}/output?stdout={at}"), &[], b"")).collect();
    assert_eq!((all.stdout.as_slice(), all.gaps), (&whole[at..], 0));
}

#[test]
fn thousands_of_processes_leave_nothing_behind() {
    let agent = Agent::start(None);
    let round = || {
        for _ in 0..250 {
            agent.run(&argv(&["true"]));
            agent.shell("true");
        }
    };
    round();
    let (memory, descriptors) = (agent.private_kib(), agent.descriptors());
    round();
    round();
    round();
    eventually("connections are closed", || agent.descriptors() <= descriptors);
    assert!(
        agent.private_kib() <= memory + 256,
        "private memory grew from {memory} to {} KiB",
        agent.private_kib()
    );
    assert_eq!(
        agent.get("/sandhaus/process").json::<Vec<Process>>().len(),
        64,
        "only the newest are remembered"
    );
}
