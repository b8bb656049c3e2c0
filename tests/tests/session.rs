//! What a session over HTTP does: commands, state, streams, files, limits.

use std::time::Instant;

use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    engine::Engine,
    on_every_engine, runnable,
    server::{DataDir, Options, Server, with_server},
    session::{Session, base64},
};
use serde_json::{Value, json};

on_every_engine!(
    a_session_lives_from_create_to_delete,
    a_shell_keeps_its_state_between_commands,
    commands_of_any_shape_run,
    output_is_bounded_and_says_so,
    a_stream_arrives_while_the_command_runs,
    files_go_in_and_out_unchanged,
);

fn a_session_lives_from_create_to_delete(server: &Server, engine: Engine) {
    let http = server.http();
    assert_eq!(http.get("/healthz").expect(200).json::<Value>(), json!({"status": "ok"}));
    let created: SessionInfo =
        http.post("/v1/sessions", &json!({"image": engine.image()})).expect(201).json();
    assert_eq!((created.status.as_str(), created.cwd.as_str()), ("running", "/workspace"));
    assert_eq!(created.image, engine.image());
    assert_eq!(created.acquire_source.as_deref(), Some("cold"));
    let parts: Vec<_> = created.id.split('-').map(str::len).collect();
    assert_eq!(parts, [8, 3]);

    let listed: Vec<SessionInfo> = http.get("/v1/sessions").expect(200).json();
    assert_eq!(listed.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), [&created.id]);
    let session = Session::at(&http, &created.id);
    assert_eq!(session.info().id, created.id);
    let result = session.exec("echo hello; echo to stderr >&2; exit 7");
    assert_eq!((result.exit_code, result.output.as_str()), (7, "hello\nto stderr\n"));

    session.delete();
    session.delete();
    assert_eq!(http.get("/v1/sessions").expect(200).json::<Value>(), json!([]));
    assert_eq!(http.get(&session.route("")).expect(200).json::<SessionInfo>().status, "destroyed");
    assert_eq!(session.try_exec(&json!({"cmd": "true"})).expect(409).error_code(), "SESSION_NOT_RUNNING");
    let all: Vec<SessionInfo> = http.get("/v1/sessions?status=all").expect(200).json();
    assert_eq!(all.len(), 1);
}

fn a_shell_keeps_its_state_between_commands(server: &Server, _: Engine) {
    let session = Session::create(&server.http(), &json!({}));
    assert_eq!(session.exec("mkdir -p a/b && cd a/b").cwd, "/workspace/a/b");
    session.output("export EXPORTED='one two'; plain=3; f() { echo \"f $1\"; }; umask 077; set -o noclobber");
    assert_eq!(
        session.output("pwd; echo \"$EXPORTED $plain\"; f x; umask"),
        "/workspace/a/b\none two 3\nf x\n0077"
    );
    assert_ne!(session.exec("echo 1 > file; echo 2 > file").exit_code, 0);
    assert_eq!(session.output("sleep 1000 & jobs -p | wc -l"), "1");
    assert_eq!(session.output("jobs | grep -c Running"), "1");

    // Unbalanced quotes, reading standard input, and a shell that ends do not wedge the session.
    assert_ne!(session.exec("echo \"open").exit_code, 0);
    assert_eq!(session.output("cat; read line; echo after"), "after");
    assert_eq!(session.exec("exit 3").exit_code, 3);
    assert_eq!(session.output("pwd; echo \"[$plain]\""), "/workspace/a/b\n[]");
    assert_eq!(session.exec("kill -9 $$").exit_code, 137);
    assert_eq!(session.output("echo alive"), "alive");
    assert_eq!(
        session.output("[ -t 1 ] && echo its output; [ -t 0 ] || echo not its input"),
        "its output\nnot its input"
    );
}

fn commands_of_any_shape_run(server: &Server, _: Engine) {
    let session = Session::create(&server.http(), &json!({}));
    assert_eq!(session.output("cat <<'END'\nit's \"$HOME\"\nEND"), "it's \"$HOME\"");
    let long = format!("# {}\necho counted: ${{#HOME}}", "x".repeat(900_000));
    assert_eq!(session.output(&long), "counted: 13");
    assert_eq!(session.output("printf 'no newline'"), "no newline");
    assert_eq!(session.exec("printf '\\033[31mred\\033[0m\\r\\n'").output, "red\n");
    let raw: ExecResult =
        session.try_exec(&json!({"cmd": "printf '\\033[31mred\\n'", "raw_output": true})).expect(200).json();
    assert!(raw.output.contains("\u{1b}[31mred"), "{:?}", raw.output);
    assert_eq!(session.output("printf 'a\\xffb'"), "a\u{fffd}b");
    assert_eq!(session.output("for i in $(seq 20); do (sleep 0.01 &) ; done; ls /workspace | wc -l"), "0");
}

fn output_is_bounded_and_says_so(server: &Server, _: Engine) {
    let session = Session::create(&server.http(), &json!({}));
    let flood = session.exec("yes 0123456789abcde | head -c 6000000; echo END; exit 5");
    assert_eq!((flood.exit_code, flood.truncated, flood.output.len()), (5, true, 5 << 20));
    assert!(flood.output.starts_with("0123456789abcde\n") && !flood.output.contains("END"));
    let whole = session.exec("yes 0123456789abcde | head -c 4000000");
    assert_eq!((whole.truncated, whole.output.len()), (false, 4_000_000));
}

#[test]
fn a_timeout_ends_the_command_and_spares_the_shell() {
    with_server("a_timeout_ends_the_command_and_spares_the_shell", |server| {
        let session = Session::create(&server.http(), &json!({}));
        session.output("kept=yes; cd /tmp");
        for stubborn in ["sleep 1000", "while :; do :; done", "sh -c 'sleep 1000 | cat'"] {
            let cmd = format!("echo before; {stubborn}; echo never");
            let answer = session.try_exec(&json!({"cmd": cmd, "timeout_ms": 300})).expect(504);
            assert_eq!(answer.error_code(), "COMMAND_TIMEOUT");
            let details = answer.json::<Value>()["details"].clone();
            assert_eq!(
                details["output"].as_str().map(str::trim_end),
                Some("before"),
                "{stubborn}: {details}"
            );
            assert_eq!(session.output("echo $kept; pwd"), "yes\n/tmp", "{stubborn}");
        }
        // A program that is deaf to interrupts is killed; its shell, which was not interrupted, takes that for the
        // program's end. A shell that is deaf itself is replaced.
        for deaf in ["sh -c 'trap \"\" INT TERM; sleep 1000'", "trap '' INT TERM; while :; do :; done"] {
            session.try_exec(&json!({"cmd": deaf, "timeout_ms": 300})).expect(504);
            assert_eq!(session.output("echo alive"), "alive", "{deaf}");
        }
        assert_eq!(session.output("pgrep -x sleep | wc -l"), "0");
    });
}

fn a_stream_arrives_while_the_command_runs(server: &Server, _: Engine) {
    let session = Session::create(&server.http(), &json!({}));
    session.output("mkfifo gate");
    let mut events =
        session.events(&json!({"cmd": "echo first; cat gate; printf 'last\\342\\200\\250\\302\\205'"}));
    // A terminal may hand over the end of a line by itself.
    let mut first = String::new();
    while !first.ends_with('\n') {
        let (name, data) = events.next().expect("an event before the end");
        assert_eq!(name, "chunk");
        first.push_str(data["chunk"].as_str().expect("a text"));
    }
    assert_eq!(first, "first\n");
    // The command waits for this file operation: it can only end after its first line has arrived here.
    let opener = Session::at(&server.http(), &session.id);
    let writer = std::thread::spawn(move || opener.write("from-host", b"x"));
    writer.join().expect("the write succeeds beside a running command");
    server
        .http()
        .post(
            &session.route("/toolbox/process/execute"),
            &json!({"command": "sh -c 'echo opened > /workspace/gate'"}),
        )
        .expect(200);
    let rest: Vec<_> = events.collect();
    let text: String = rest.iter().filter_map(|(_, data)| data["chunk"].as_str()).collect();
    assert_eq!(text, "opened\nlast\u{2028}\u{85}");
    let (name, done) = rest.last().expect("the stream has an end");
    assert_eq!(
        (name.as_str(), done["exit_code"].as_i64(), done["cwd"].as_str()),
        ("done", Some(0), Some("/workspace"))
    );
}

fn files_go_in_and_out_unchanged(server: &Server, _: Engine) {
    let http = server.http();
    let session = Session::create(&http, &json!({}));
    let every: Vec<u8> = (0..=255).collect();
    session.write("bytes.bin", &every);
    assert_eq!(session.read("/workspace/bytes.bin"), every);
    session.write("empty", b"");
    assert_eq!(session.read("empty"), b"");
    session.write("made/on/the/way", "text\n".as_bytes());
    assert_eq!(
        session.output("cat made/on/the/way; stat -c '%u %a' made/on/the/way; echo more >> made/on/the/way"),
        "text\n1000 644"
    );

    let large: Vec<u8> = (0..9_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut form =
        b"--edge\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/workspace/up\r\n".to_vec();
    form.extend(b"--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"large.bin\"\r\n\r\n");
    form.extend(&large);
    form.extend(b"\r\n--edge--\r\n");
    let up = http
        .send("POST", &session.route("/fs/upload"), "multipart/form-data; boundary=edge", &form)
        .expect(200);
    assert_eq!(up.json::<Value>(), json!({"ok": true, "paths": ["/workspace/up/large.bin"]}));
    assert_eq!(session.read("up/large.bin"), large);
    let cut = http.get(&session.route("/fs/read?path=up/large.bin&max_bytes=10")).expect(200).json::<Value>();
    assert_eq!(
        (cut["truncated"].as_bool(), cut["content_base64"].as_str()),
        (Some(true), Some(base64(&large[..10]).as_str()))
    );

    assert_eq!(session.try_read("absent").expect(404).error_code(), "FILE_NOT_FOUND");
    for bad in ["/etc/passwd", "../../etc/passwd", "/workspace/../etc/passwd", ""] {
        assert_eq!(session.try_read(bad).expect(400).error_code(), "INVALID_REQUEST", "{bad}");
    }
    let both = json!({"path": "x", "text": "a", "content_base64": "YQ=="});
    assert_eq!(http.post(&session.route("/fs/write"), &both).expect(400).error_code(), "INVALID_REQUEST");
}

#[test]
fn limits_hold_and_are_told() {
    with_server("limits_hold_and_are_told", |server| {
        let session = Session::create(&server.http(), &json!({"memory_mb": 64, "pids": 40, "cpus": 0.5}));
        let hungry = session.exec("python3 -c 'b = bytearray(300 << 20); print(len(b))'");
        assert_eq!((hungry.exit_code, hungry.oom), (137, true), "{}", hungry.output);
        assert_eq!(session.output("echo alive"), "alive");
        let stats = session.stats();
        assert_eq!(stats.memory_limit, Some(64 << 20));
        assert!(
            stats.oom_kills >= 1 && stats.memory_bytes > 0 && stats.memory_bytes <= 64 << 20,
            "{stats:?}"
        );

        let crowd = "import os, signal, time\nmade = []\ntry:\n while True:\n  child = os.fork()\n  if not child: time.sleep(1000)\n  \
                     made.append(child)\nexcept OSError as error: print(len(made) < 40, error.strerror)\nfor child in made: \
                     os.kill(child, signal.SIGKILL); os.wait()";
        session.write("crowd.py", crowd.as_bytes());
        assert_eq!(session.output("python3 crowd.py"), "True Resource temporarily unavailable");
        assert!(session.stats().pids <= 40);

        // Half a core: the processor time that a busy loop gets is bounded by the quota, whatever the clock says.
        let before = session.stats().cpu_usage_usec;
        let started = Instant::now();
        session.try_exec(&json!({"cmd": "while :; do :; done", "timeout_ms": 1000})).expect(504);
        let (used, wall) = (session.stats().cpu_usage_usec - before, started.elapsed().as_micros());
        assert!(u128::from(used) < wall * 3 / 4, "{used} µs of processor in {wall} µs");
        assert!(used > 0);
    });
}

#[test]
fn memory_that_is_full_of_files_is_told_and_the_session_lives() {
    with_server("memory_that_is_full_of_files_is_told_and_the_session_lives", |server| {
        for readonly_root in [true, false] {
            let request = json!({"memory_mb": 64, "readonly_root": readonly_root});
            let session = Session::create(&server.http(), &request);
            for mode in ["stateful", "stateless"] {
                let exec = |cmd: &str| -> ExecResult {
                    session.try_exec(&json!({"cmd": cmd, "mode": mode})).expect(200).json()
                };
                let full = exec("head -c 500M /dev/zero > /dev/shm/fill; echo status $?");
                assert!(full.output.contains("No space left"), "{mode}: {full:?}");
                assert!(full.output.ends_with("status 1\n") && !full.oom, "{mode}: {full:?}");
                assert_eq!(exec("echo alive").output, "alive\n");
                let crowd = exec(
                    "rm /dev/shm/fill; cd /dev/shm; i=0; while [ $i -lt 300000 ] && : > $i; do i=$((i+1)); done; echo $i",
                );
                assert!(crowd.output.contains("No space left"), "{mode}: {crowd:?}");
                let processes = exec("tail /dev/zero; echo status $?");
                assert!(processes.oom && processes.output.ends_with("status 137\n"), "{mode}: {processes:?}");
                assert_eq!(exec("cd /; find /dev/shm -type f -delete; echo alive").output, "alive\n");
            }
            session.delete();
        }
    });
}

#[test]
fn a_machine_that_its_memory_limit_ended_says_so() {
    if !runnable("a_machine_that_its_memory_limit_ended_says_so") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let session = Session::create(&server.http(), &json!({"memory_mb": 32}));
    let program = fs_err::read(sandhaus_tests::probe::build("hoard")).expect("read the probe");
    session.write("hoard", &program);
    session.output("chmod +x hoard");
    let mut last = None;
    sandhaus_tests::settles("the machine's end", || {
        let answer = session.try_exec(&json!({"cmd": "./hoard; (:) | (:)"}));
        let ended = answer.status == 409;
        last = Some(answer);
        ended
    });
    let told = last.unwrap();
    assert_eq!(told.error_code(), "SESSION_NOT_RUNNING");
    assert!(told.text().contains("its memory limit ended it"), "{}", told.text());
    assert_eq!(told.json::<Value>()["details"]["failure"]["kind"], "out_of_memory");
    assert_eq!(session.info().failure.unwrap().kind, "out_of_memory");
    // Its disk is there, and it starts again.
    server.http().post(&session.route("/start"), &json!({})).expect(200);
    assert_eq!(session.output("ls"), "hoard");
    session.delete();
    server.stop();
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    with_server("bad_requests_are_refused_and_change_nothing", |server| {
        let http = server.http();
        let session = Session::create(&http, &json!({}));
        for (body, message) in [
            (json!({"cmd": ""}), "cmd is required"),
            (json!({"cmd": "x", "timeout_ms": -1}), "timeout_ms must be non-negative"),
            (json!({"cmd": "x", "timeout_ms": 600_001}), "timeout_ms must not exceed 600000"),
            (json!({"cmd": "x".repeat((1 << 20) + 1)}), "cmd is too large"),
        ] {
            let answer = session.try_exec(&body).expect(400);
            assert!(answer.text().contains(message), "{}", answer.text());
        }
        for (body, code) in [
            (json!({"image": "absent"}), "INVALID_IMAGE"),
            (json!({"image": "../../etc"}), "INVALID_IMAGE"),
            (json!({"ttl_seconds": -1}), "INVALID_REQUEST"),
            (json!({"ttl_seconds": 86401}), "INVALID_REQUEST"),
            (json!({"network": "host"}), "INVALID_REQUEST"),
            (json!({"memory_mb": -5}), "INVALID_REQUEST"),
        ] {
            assert_eq!(http.post("/v1/sessions", &body).expect(400).error_code(), code, "{body}");
        }
        assert_eq!(http.get("/v1/sessions/nonsense").expect(400).error_code(), "INVALID_REQUEST");
        assert_eq!(http.get("/v1/sessions/00000000-000").expect(404).error_code(), "SESSION_NOT_FOUND");
        http.delete("/v1/sessions/00000000-000").expect(404);
        http.send("POST", "/v1/sessions", "", b"{").expect(400);
        http.get("/v1/nothing").expect(404);
        http.send("PUT", "/v1/sessions", "", b"").expect(405);
        assert_eq!(http.get("/v1/sessions").expect(200).json::<Vec<Value>>().len(), 1);
        assert_eq!(session.output("echo alive"), "alive");
    });
}

#[test]
fn a_key_is_asked_for_where_one_is_set() {
    if !runnable("a_key_is_asked_for_where_one_is_set") {
        return;
    }
    let dir = DataDir::new();
    let env = vec![("SANDHAUS_API_KEY".to_owned(), "sk-right".to_owned())];
    let server = Server::start_with(&dir, &Options { env, config: None });
    let http = server.http();
    http.get("/healthz").expect(200);
    assert_eq!(http.get("/v1/sessions").expect(401).error_code(), "UNAUTHORIZED");
    http.with_key("sk-wrong").get("/v1/sessions").expect(401);
    http.with_key("sk-righ").get("/v1/sessions").expect(401);
    http.with_key("sk-right").get("/v1/sessions").expect(200);
    assert!(!server.log().contains("sk-right"), "the key is in the log");
}

#[test]
fn sandboxes_do_not_see_each_other() {
    with_server("sandboxes_do_not_see_each_other", |server| {
        let http = server.http();
        let (one, two) = (Session::create(&http, &json!({})), Session::create(&http, &json!({})));
        one.output("echo secret > /workspace/mine; echo secret > /tmp/mine; sleep 1000 & true");
        assert_eq!(two.output("ls -A /workspace /tmp | grep -c mine; true"), "0");
        assert_eq!(two.output("pgrep -cx sleep; true"), "0");
        assert_ne!(one.output("hostname"), two.output("hostname"));
        assert_ne!(one.output("readlink /proc/self/ns/net"), two.output("readlink /proc/self/ns/net"));
        assert_eq!(one.output("id -un; id -u; echo $HOME"), "sandbox\n1000\n/home/sandbox");
        // Only the loopback is there, and it is up.
        assert_eq!(
            one.output("ls /sys/class/net 2>/dev/null || awk -F: 'NR>2{print $1}' /proc/net/dev | tr -d ' '"),
            "lo"
        );
        let echo = "import socket,threading\ns=socket.create_server(('127.0.0.1',0))\nthreading.Thread(target=lambda:s.accept()[0].sendall(b'up')).start()\nprint(socket.create_connection(s.getsockname()).recv(2).decode())";
        one.write("echo.py", echo.as_bytes());
        assert_eq!(one.output("python3 echo.py"), "up");
    });
}

#[test]
fn many_sessions_at_once_come_and_go() {
    with_server("many_sessions_at_once_come_and_go", |server| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let http = server.http();
                std::thread::spawn(move || {
                    for round in 0..5 {
                        let session = Session::create(&http, &json!({}));
                        let said = format!("{worker} {round}");
                        assert_eq!(session.output(&format!("echo {said}")), said);
                        session.delete();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("every session of every worker answers");
        }
    });
}
