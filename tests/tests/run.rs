//! `sandhaus run` without a server, and the command line beside one.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use sandhaus_tests::{
    binary::{self, Ran},
    process::{self, Handle},
    runnable,
    server::{DataDir, Server},
    session::Session,
    settles,
};
use serde_json::{Value, json};

fn run(dir: &DataDir, arguments: &[&str]) -> Ran {
    binary::run(&mut run_command(dir, arguments))
}

fn run_command(dir: &DataDir, arguments: &[&str]) -> Command {
    let mut command = binary::command(dir.path());
    command.arg("run").args(arguments);
    command
}

fn assert_nothing_left(dir: &DataDir) {
    // The instance of a `run` has its own id in its own folder; with the folder gone only the kernel could hold on.
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}

#[test]
fn a_cautious_file_mask_of_the_caller_is_no_obstacle_inside() {
    if !runnable("a_cautious_file_mask_of_the_caller_is_no_obstacle_inside") {
        return;
    }
    let dir = DataDir::new();
    let mut command = Command::new("sh");
    let direct =
        run_command(&dir, &["--security", "strict", "--", "sh", "-c", "umask && touch /workspace/file"]);
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(direct.get_program()).args(direct.get_args());
    for (name, value) in direct.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ran = binary::run(&mut command);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0022\n"), "{}", ran.stderr);
    assert_nothing_left(&dir);
}

#[test]
fn a_server_that_is_on_its_way_down_is_done_without() {
    if !runnable("a_server_that_is_on_its_way_down_is_done_without") {
        return;
    }
    let dir = DataDir::new();
    // Makes the data directory; then this test holds it, as a server does that listens no more.
    assert_eq!(run(&dir, &["--", "true"]).code, 0);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lock = fs_err::OpenOptions::new().create(true).append(true).open(dir.path().join("lock")).unwrap();
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let holder = json!({"pid": std::process::id(), "url": format!("http://{gone}")});
    fs_err::write(dir.path().join("holder"), holder.to_string()).unwrap();
    let ran = run(&dir, &["--", "echo", "alone"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "alone\n"), "{}", ran.stderr);
    // What needs the server says so.
    let url = format!("http://{gone}");
    for flags in [&["--keep", "--", "true"][..], &["--host", &url, "--", "true"]] {
        let ran = run(&dir, flags);
        assert!(ran.code != 0 && ran.stderr.contains("no server answers"), "{flags:?}: {}", ran.stderr);
    }
    drop(lock);
    assert_nothing_left(&dir);
}

#[test]
fn streams_status_and_input_pass_through() {
    if !runnable("streams_status_and_input_pass_through") {
        return;
    }
    let dir = DataDir::new();
    let ran = run(&dir, &["--", "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (42, "out\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "err\n");
    assert_eq!(run(&dir, &["--", "sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(run(&dir, &["--", "no-such-program"]).code, 127);
    assert_eq!(run(&dir, &["--", "cat"]).stdout, "");

    let mut child = run_command(&dir, &["-i", "--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let content = vec![7_u8; 3_000_000];
    child.stdin.take().unwrap().write_all(&content).unwrap();
    let ran = binary::ran(child.wait_with_output().unwrap());
    let mut direct = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    direct.stdin.take().unwrap().write_all(&content).unwrap();
    assert_eq!(ran.stdout.as_bytes(), direct.wait_with_output().unwrap().stdout);

    let flood = run(&dir, &["--", "sh", "-c", "yes out | head -c 20000000; yes err | head -c 3000000 >&2"]);
    assert_eq!((flood.code, flood.stdout.len(), flood.stderr.len()), (0, 20_000_000, 3_000_000));
    assert_nothing_left(&dir);
}

#[test]
fn options_shape_the_sandbox() {
    if !runnable("options_shape_the_sandbox") {
        return;
    }
    let dir = DataDir::new();
    let ran = run(&dir, &["-e", "A=b c", "--workdir", "/tmp", "--", "sh", "-c", "echo $A; pwd; id -u"]);
    assert_eq!(ran.stdout, "b c\n/tmp\n0\n", "{}", ran.stderr);
    let strict = run(
        &dir,
        &["--security", "strict", "--", "sh", "-c", "id -u; touch /usr/x; grep NoNewPrivs /proc/self/status"],
    );
    assert!(
        strict.stdout.starts_with("1000\n") && strict.stdout.contains("NoNewPrivs:\t1"),
        "{}",
        strict.stdout
    );
    assert!(!strict.stderr.is_empty());
    let memory = run(&dir, &["--memory", "64MiB", "--", "python3", "-c", "b = bytearray(300 << 20)"]);
    assert_eq!(memory.code, 137, "{}", memory.stderr);
    let time = run(&dir, &["--timeout", "300ms", "--", "sh", "-c", "echo before; sleep 1000"]);
    assert_eq!((time.code, time.stdout.as_str()), (124, "before\n"), "{}", time.stderr);

    let shown = tempfile::tempdir().unwrap();
    fs_err::write(shown.path().join("file"), "from the host").unwrap();
    let volume = format!("{}:/shown", shown.path().display());
    let ran = run(&dir, &["-v", &volume, "--", "sh", "-c", "cat /shown/file; echo written > /shown/new"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "from the host"), "{}", ran.stderr);
    assert_eq!(fs_err::read_to_string(shown.path().join("new")).unwrap(), "written\n");
    let ran = run(&dir, &["-v", &format!("{volume}:ro"), "--", "sh", "-c", "echo x > /shown/other"]);
    assert_ne!(ran.code, 0);
    assert!(!shown.path().join("other").exists());
    assert_nothing_left(&dir);
}

#[test]
fn a_refused_command_line_says_why_and_changes_nothing() {
    if !runnable("a_refused_command_line_says_why_and_changes_nothing") {
        return;
    }
    let dir = DataDir::new();
    for (arguments, said) in [
        (&["--image", "absent", "--", "true"][..], "absent"),
        (&["--network", "bridges", "--", "true"], "bridges"),
        (&["--network", "allow=1.2.3.4/33", "--", "true"], "1.2.3.4/33"),
        (&["-p", "80:0", "--", "true"], "80:0"),
        (&["-v", "/no/such/folder:/x", "--", "true"], "/no/such/folder"),
        (&["--keep", "--", "true"], "server"),
        (&["--memory", "lots", "--", "true"], "lots"),
        (&["--cpus", "-1", "--", "true"], "-1"),
    ] {
        let ran = run(&dir, arguments);
        assert_ne!(ran.code, 0, "{arguments:?}");
        assert!(ran.stderr.contains(said), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    assert_nothing_left(&dir);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    if !runnable("an_interrupted_run_leaves_nothing") {
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let dir = DataDir::new();
        let mut child = run_command(&dir, &["--", "sh", "-c", "echo up; sleep 1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0_u8; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        Handle::open(child.id()).unwrap().signal(signal);
        let ran = binary::ran(child.wait_with_output().unwrap());
        assert_ne!(ran.code, 0, "{signal:?}");
        assert_nothing_left(&dir);
    }
}

#[test]
fn what_a_killed_run_leaves_the_next_one_sweeps() {
    if !runnable("what_a_killed_run_leaves_the_next_one_sweeps") {
        return;
    }
    let dir = DataDir::new();
    let mut child = run_command(&dir, &["--", "sh", "-c", "echo up; exec sleep 314159"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0_u8; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(run(&dir, &["--", "echo", "next"]).stdout, "next\n");
    let asleep = || {
        process::all()
            .into_iter()
            .filter(|pid| process::arguments(*pid).iter().any(|word| word == "314159"))
            .count()
    };
    settles("the end of the killed run's process", || asleep() == 0);
    assert_nothing_left(&dir);
}

#[test]
fn a_terminal_is_one() {
    if !runnable("a_terminal_is_one") {
        return;
    }
    let dir = DataDir::new();
    let script = "tty; stty size; printf 'name? '; read name; echo \"hello $name\"; exit 9";
    let program = "
import os, pty, sys, fcntl, termios, struct, signal
pid, master = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 33, 99, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
seen = b''
while b'name? ' not in seen:
    seen += os.read(master, 4096)
os.write(master, b'world\\r')
try:
    while True:
        piece = os.read(master, 4096)
        if not piece: break
        seen += piece
except OSError:
    pass
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let inner = binary::command(dir.path());
    let mut outer = Command::new("python3");
    outer.args(["-c", program]).arg(inner.get_program()).args(inner.get_args());
    let ran = binary::run(outer.args(["run", "-i", "-t", "--", "sh", "-c", script]));
    assert_eq!(ran.code, 9, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("/dev/pts/") && ran.stdout.contains("33 99"), "{:?}", ran.stdout);
    assert!(ran.stdout.contains("hello world"), "{:?}", ran.stdout);
    assert_nothing_left(&dir);
}

#[test]
fn the_command_line_beside_a_server_works_on_its_sandboxes() {
    if !runnable("the_command_line_beside_a_server_works_on_its_sandboxes") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let session = Session::create(&server.http(), &json!({"labels": {"kind": "test"}}));
    let id = session.id.as_str();
    let cli = |arguments: &[&str]| binary::run(server.cli().args(arguments));

    assert!(cli(&["ps"]).stdout.contains(id));
    let listed: Value =
        serde_json::from_str(&cli(&["ps", "-o", "json", "--label", "kind=test"]).stdout).unwrap();
    assert_eq!(listed[0]["id"], id);
    assert!(!cli(&["ps", "--label", "kind=other"]).stdout.contains(id));
    let ran = cli(&["exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));

    let folder = tempfile::tempdir().unwrap();
    let (source, back) = (folder.path().join("source"), folder.path().join("back"));
    fs_err::write(&source, [0, 255, 10, 13]).unwrap();
    let inside = format!("{id}:/workspace/copied");
    let ran = cli(&["cp", source.to_str().unwrap(), &inside]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = cli(&["cp", &inside, back.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fs_err::read(&back).unwrap(), [0, 255, 10, 13]);

    session.output("echo remembered");
    assert!(cli(&["logs", id]).stdout.contains("remembered"));
    let inspected: Value = serde_json::from_str(&cli(&["inspect", id]).stdout).unwrap();
    assert!(inspected.to_string().contains(id));

    let kept = cli(&["run", "--keep", "--", "sh", "-c", "echo kept > /tmp/kept"]);
    assert_eq!(kept.code, 0, "{}", kept.stderr);
    assert_eq!(server.http().get("/v1/sessions").json::<Vec<Value>>().len(), 2);
    let ran = cli(&["run", "--", "cat", "/tmp/kept"]);
    assert_ne!(ran.code, 0);

    let ids: Vec<String> = server
        .http()
        .get("/v1/sessions")
        .json::<Vec<Value>>()
        .iter()
        .map(|s| s["id"].as_str().unwrap().to_owned())
        .collect();
    let mut arguments = vec!["rm"];
    arguments.extend(ids.iter().map(String::as_str));
    assert_eq!(cli(&arguments).code, 0);
    assert_ne!(cli(&["rm", "00000000-000"]).code, 0);
    assert!(!cli(&["ps"]).stdout.contains(id));
    server.stop();
    assert_nothing_left(&dir);
}

#[test]
fn doctor_and_completions_speak() {
    let dir = DataDir::new();
    let doctor = binary::run(binary::command(dir.path()).args(["doctor", "-o", "json"]));
    let checks: Value = serde_json::from_str(&doctor.stdout).expect("doctor prints JSON");
    assert!(!checks.to_string().is_empty());
    for word in ["kernel", "cgroup", "overlay", "user namespace", "seccomp", "kvm", "disk"] {
        assert!(
            doctor.stdout.to_lowercase().contains(word),
            "doctor does not speak of {word}: {}",
            doctor.stdout
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = binary::run(binary::command(dir.path()).args(["completions", shell]));
        assert!(script.code == 0 && script.stdout.contains("sandhaus"), "{shell}");
    }
}
