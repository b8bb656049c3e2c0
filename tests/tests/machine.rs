//! Virtual machines as sandboxes: memory that goes to disk and comes back, copies, what must not be shared between them,
//! and the command line.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use sandhaus_client::wire::{SessionInfo, SnapshotInfo};
use sandhaus_tests::{
    binary,
    engine::Engine,
    files_named, flip_bit, process,
    server::{DataDir, Server, with_server_on},
    session::Session,
    terminal::Terminal,
    vm::{self, count, counted, goes_on},
};
use serde_json::{Value, json};

/// A server of small virtual machines, and proof that nothing is left afterwards.
fn with_machines(name: &str, more: &str, body: impl FnOnce(&Server)) {
    if !vm::bootable(name) {
        return;
    }
    let dir = DataDir::new();
    vm::initramfs_image(dir.path());
    with_server_on(&dir, &vm::options(more), body);
}

fn machine(server: &Server) -> Session {
    Session::create(&server.http(), &json!({}))
}

fn change(server: &Server, session: &Session, to: &str) -> SessionInfo {
    server.http().post(&session.route(&format!("/{to}")), &json!({})).expect(200).json()
}

fn take(server: &Server, session: &Session, name: &str) -> SnapshotInfo {
    let request = json!({"session": session.id, "name": name, "kind": "machine"});
    server.http().post("/v1/snapshots", &request).expect(201).json()
}

fn copy(server: &Server, snapshot: &str) -> Session {
    Session::create(&server.http(), &json!({"snapshot": snapshot}))
}

/// The program that runs a sandbox's machine: its number and its arguments.
fn program(id: &str) -> (u32, Vec<String>) {
    let of_it = |pid: u32| {
        let arguments = process::arguments(pid);
        let ours = arguments.first().is_some_and(|program| program.contains("qemu-system"));
        (ours && arguments.iter().any(|argument| argument.contains(id))).then_some((pid, arguments))
    };
    process::all().into_iter().find_map(of_it).unwrap_or_else(|| panic!("no machine of {id} runs"))
}

fn checksum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum is installed");
    String::from_utf8(output.stdout).expect("text").split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn memory_goes_to_disk_and_comes_back_again_and_again() {
    with_machines("memory_goes_to_disk_and_comes_back_again_and_again", "", |server| {
        let session = machine(server);
        count(&session);
        let (first, _) = program(&session.id);
        let mut asleep = 0;
        for round in 0..2 {
            let before = counted(&session);
            assert_eq!(change(server, &session, "suspend").status, "suspended");
            if round == 0 {
                take(server, &session, "asleep");
                let fork = server.http().post(&session.route("/fork"), &json!({})).expect(201);
                let fork = Session::at(&server.http(), &fork.json::<SessionInfo>().id);
                goes_on(&fork, before);
                fork.delete();
                assert_eq!(session.info().status, "suspended");
                asleep = before;
            }
            assert!(
                !process::all()
                    .into_iter()
                    .any(|pid| process::arguments(pid).join(" ").contains(&session.id))
            );
            assert_eq!(change(server, &session, "start").status, "running");
            goes_on(&session, before);
        }
        assert_ne!(program(&session.id).0, first);
        // Paused in its memory, it keeps the same process.
        let (pid, _) = program(&session.id);
        assert_eq!(change(server, &session, "pause").status, "paused");
        let before = change(server, &session, "resume");
        assert_eq!(before.status, "running");
        assert_eq!(program(&session.id).0, pid);
        // Suspended, it can be deleted without ever running again.
        change(server, &session, "suspend");
        session.delete();
        // And what was taken of it meanwhile begins where it was then.
        let copy = copy(server, "asleep");
        goes_on(&copy, asleep);
        server.http().delete("/v1/snapshots/asleep").expect(200);
    });
}

#[test]
fn copies_go_on_with_the_same_memory_and_share_no_identity() {
    with_machines("copies_go_on_with_the_same_memory_and_share_no_identity", "", |server| {
        let original = machine(server);
        count(&original);
        let before = counted(&original);
        let snapshot = take(server, &original, "counting");
        assert_eq!((snapshot.kind.as_str(), snapshot.engine.as_str()), ("machine", "qemu"));
        goes_on(&original, before);
        let memory = files_named(&server.data_dir().join("snapshots"), "memory");
        let [memory] = memory.as_slice() else { panic!("one memory image: {memory:?}") };
        let sum = checksum(memory);

        let copies: Vec<Session> = (0..3).map(|_| copy(server, "counting")).collect();
        for session in &copies {
            goes_on(session, before);
            assert_eq!(session.output("hostname"), session.id);
            let arguments = program(&session.id).1.join(" ");
            assert!(arguments.contains("share=off"), "{arguments}");
            session.write("own", session.id.as_bytes());
        }
        assert_eq!(checksum(memory), sum, "copies write to their own memory");
        let all: Vec<&Session> = copies.iter().chain([&original]).collect();
        for what in ["head -c 16 /dev/urandom | md5sum", "cat /etc/machine-id", "hostname"] {
            let mut seen: Vec<String> = all.iter().map(|session| session.output(what)).collect();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all.len(), "{what}: {seen:?}");
        }
        for session in &copies {
            assert_eq!(session.read("own"), session.id.as_bytes());
            // The clock is right although the memory is old.
            let now: i64 = session.output("date +%s").parse().expect("a number");
            let here =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            assert!((now - here.as_secs() as i64).abs() < 60, "{now}");
        }
        // The snapshot's name can go while copies of it run, and a copy is as good as an original.
        server.http().delete("/v1/snapshots/counting").expect(200);
        let again = counted(&copies[0]);
        take(server, &copies[0], "of-a-copy");
        goes_on(&copy(server, "of-a-copy"), again);
        goes_on(&copies[1], before);
        server.http().delete("/v1/snapshots/of-a-copy").expect(200);
    });
}

#[test]
fn a_fork_has_the_memory_of_its_original() {
    with_machines("a_fork_has_the_memory_of_its_original", "", |server| {
        let original = machine(server);
        count(&original);
        let before = counted(&original);
        let forked: SessionInfo =
            server.http().post(&original.route("/fork"), &json!({"name": "twin"})).expect(201).json();
        let forked = Session::at(&server.http(), &forked.id);
        goes_on(&forked, before);
        goes_on(&original, before);
        forked.write("only-here", b"x");
        original.try_read("only-here").expect(404);
        // Of the copy's memory nothing is left once both are gone, though it has no name.
        original.delete();
        goes_on(&forked, before);
        forked.delete();
        let left = || files_named(&server.data_dir().join("snapshots"), "memory");
        sandhaus_tests::settles("the memory goes with its last user", || left().is_empty());
    });
}

#[test]
fn a_damaged_memory_is_refused_before_it_runs() {
    let name = "a_damaged_memory_is_refused_before_it_runs";
    if !vm::bootable(name) {
        return;
    }
    let dir = DataDir::new();
    vm::initramfs_image(dir.path());
    // The server warns of what it refuses, so this is not one that must not.
    let server = &Server::start_with(&dir, &vm::options(""));
    let original = machine(server);
    count(&original);
    take(server, &original, "whole");
    original.delete();
    for name in ["memory", "state"] {
        let found = files_named(&server.data_dir().join("snapshots"), name);
        let [file] = found.as_slice() else { panic!("one {name}: {found:?}") };
        flip_bit(file);
        let refused = server.http().post("/v1/sessions", &json!({"snapshot": "whole"}));
        assert!((400..=599).contains(&refused.status), "{}", refused.text());
        assert!(server.http().get("/v1/sessions").expect(200).json::<Vec<Value>>().is_empty());
        flip_bit(file);
    }
    goes_on(&copy(server, "whole"), 1);
    server.http().delete("/v1/snapshots/whole").expect(200);
    server.delete_all();
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}

#[test]
fn machines_outlive_the_server() {
    let name = "machines_outlive_the_server";
    if !vm::bootable(name) {
        return;
    }
    let dir = DataDir::new();
    vm::initramfs_image(dir.path());
    let server = Server::start_with(&dir, &vm::options(""));
    let (running, suspended) = (machine(&server), machine(&server));
    count(&running);
    count(&suspended);
    let before = counted(&suspended);
    change(&server, &suspended, "suspend");
    let (pid, _) = program(&running.id);
    server.kill();
    let server = Server::start_with(&dir, &vm::options(""));
    let again = Session::at(&server.http(), &running.id);
    goes_on(&again, 1);
    assert_eq!(program(&running.id).0, pid, "the same process");
    let suspended = Session::at(&server.http(), &suspended.id);
    assert_eq!(suspended.info().status, "suspended");
    change(&server, &suspended, "start");
    goes_on(&suspended, before);
    // One that ends by itself is told.
    process::Handle::open(pid).expect("it runs").signal(rustix::process::Signal::KILL);
    sandhaus_tests::settles("its end is told", || again.info().status != "running");
    server.delete_all();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}

#[test]
fn the_command_line_runs_in_a_snapshot() {
    with_machines("the_command_line_runs_in_a_snapshot", "", |server| {
        let original = machine(server);
        count(&original);
        let mut create = server.cli();
        let taken = binary::run(create.args(["snapshot", "create", &original.id, "warm", "--memory"]));
        assert_eq!(taken.code, 0, "{}", taken.stderr);
        original.delete();
        let mut run = server.cli();
        run.args(["run", "--engine", "qemu", "--snapshot", "warm", "-i", "--", "sh", "-c"]);
        run.arg("cat; test -s /tmp/n && echo from memory; echo to stderr >&2; exit 7");
        let mut child =
            run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        child.stdin.take().expect("piped").write_all(b"from stdin\n").expect("write");
        let ran = binary::ran(child.wait_with_output().expect("it ends"));
        assert_eq!((ran.code, ran.stdout.as_str()), (7, "from stdin\nfrom memory\n"), "{}", ran.stderr);
        assert!(ran.stderr.contains("to stderr"), "{}", ran.stderr);
        assert!(server.http().get("/v1/sessions").expect(200).json::<Vec<Value>>().is_empty());
        let removed = binary::run(server.cli().args(["snapshot", "rm", "warm"]));
        assert_eq!(removed.code, 0, "{}", removed.stderr);
    });
}

#[test]
fn a_screen_is_a_picture_and_a_console_speaks() {
    with_machines("a_screen_is_a_picture_and_a_console_speaks", "", |server| {
        let session = Session::create(&server.http(), &json!({"security": "container"}));
        let picture = server.http().get(&session.route("/screenshot")).expect(200);
        assert!(picture.body.starts_with(b"\x89PNG\r\n\x1a\n"), "{} bytes", picture.body.len());

        session.output("echo '<1>said by the kernel' > /dev/kmsg");
        session.output("setsid getty -n -l /bin/sh -L 115200 ttyS0 vt100 </dev/null >/dev/null 2>&1 &");
        for typed in ["first", "second"] {
            let mut terminal = Terminal::new();
            let mut console = terminal.spawn(server.cli().args(["console", &session.id]));
            // What was said before somebody looked is shown, too.
            terminal.expect("said by the kernel");
            terminal.expect("# ");
            assert!(!terminal.is_cooked(), "every key goes to the machine");
            terminal.write(&format!("echo $((6*7))-{typed} > /dev/ttyS0\r"));
            terminal.expect(&format!("42-{typed}"));
            terminal.write("\u{1d}");
            assert!(console.wait().expect("it ends").success());
            assert!(terminal.is_cooked(), "the terminal is as it was");
        }
        assert_eq!(session.info().status, "running");
    });
}

#[test]
fn snapshots_go_to_a_store_and_come_back() {
    let store = tempfile::tempdir().expect("make a folder");
    let more = format!("snapshots:\n  store: {}\n", store.path().display());
    with_machines("snapshots_go_to_a_store_and_come_back", &more, |server| {
        let original = machine(server);
        count(&original);
        let before = counted(&original);
        take(server, &original, "travels");
        original.delete();
        let cli = |arguments: &[&str]| {
            let ran = binary::run(server.cli().args(arguments));
            assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
            ran.stdout
        };
        cli(&["snapshot", "push", "travels"]);
        cli(&["snapshot", "rm", "travels"]);
        let refused = server.http().post("/v1/sessions", &json!({"snapshot": "travels"})).expect(404);
        assert!(refused.text().contains("pull"), "{}", refused.text());
        cli(&["snapshot", "pull", "travels"]);
        goes_on(&copy(server, "travels"), before);
        cli(&["snapshot", "rm", "travels"]);
    });
}

#[test]
fn debian_boots_with_its_services_and_keeps_its_disk() {
    let name = "debian_boots_with_its_services_and_keeps_its_disk";
    if !vm::bootable(name) {
        return;
    }
    let dir = DataDir::new();
    vm::debian_image(dir.path());
    let config =
        vm::options("").config.expect("there is one").replace(Engine::Qemu.image(), vm::DEBIAN_IMAGE);
    let options = sandhaus_tests::server::Options { config: Some(config), ..Default::default() };
    with_server_on(&dir, &options, |server| {
        let request = json!({"memory_mb": 512, "security": "container"});
        let session = Session::create(&server.http(), &request);
        assert_eq!(session.output("cat /proc/1/comm; id -u"), "systemd\n0");
        session.output("echo kept > /root/file; sync");
        // The disk alone, while it runs.
        let live = json!({"session": session.id, "name": "disk", "kind": "disk", "live": true});
        server.http().post("/v1/snapshots", &live).expect(201);
        session.output("echo later > /root/later; sync");
        assert_eq!(change(server, &session, "stop").status, "stopped");
        let restored = Session::create(&server.http(), &json!({"snapshot": "disk"}));
        assert_eq!(restored.output("cat /root/file; ls /root/later 2>&1 | grep -c 'No such'"), "kept\n1");
        restored.delete();
        change(server, &session, "start");
        assert_eq!(session.output("cat /root/file /root/later"), "kept\nlater");
        server.http().delete("/v1/snapshots/disk").expect(200);
    });
}
