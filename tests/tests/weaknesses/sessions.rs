//! What a session keeps, says and ends.

use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    binary, process, runnable,
    server::{DataDir, Options, Server, with_server},
    session::{Session, base64},
    settles,
    tree::busybox_tree,
};
use serde_json::{Value, json};

use super::agent_of;

#[test]
fn w17_state_lasts_output_is_clean_and_any_shell_will_do() {
    if !runnable("w17_state_lasts_output_is_clean_and_any_shell_will_do") {
        return;
    }
    let dir = DataDir::new();
    let tree = busybox_tree();
    let import = ["image", "import", "busy", tree.path().to_str().unwrap()];
    assert_eq!(binary::run(binary::command(dir.path()).args(import)).code, 0);
    let server = Server::start(&dir);
    // One image with bash, one without.
    for image in ["host", "busy"] {
        let session = Session::create(&server.http(), &json!({"image": image}));
        let moved = session.exec("cd /tmp; export KEPT=1; plain=2; f() { echo f$plain; }");
        assert_eq!((moved.cwd.as_str(), moved.output.as_str()), ("/tmp", ""), "{image}");
        let said = session.exec("echo hello; pwd; echo $KEPT; f");
        assert_eq!((said.cwd.as_str(), said.output.as_str()), ("/tmp", "hello\n/tmp\n1\nf2\n"), "{image}");
        session.delete();
    }
    server.stop();
}

#[test]
fn w18_a_session_without_a_workspace_can_write_its_own() {
    with_server("w18_a_session_without_a_workspace_can_write_its_own", |server| {
        for readonly in [true, false] {
            let session = Session::create(&server.http(), &json!({"readonly_root": readonly}));
            assert_eq!(session.output("stat -c '%U %a' /workspace; echo mine > mine"), "sandbox 755");
            session.write("given", b"given\n");
            assert_eq!(
                session.output("echo more >> given; cat given mine; rm given mine"),
                "given\nmore\nmine"
            );
            session.delete();
        }
    });
}

#[test]
fn w19_uploads_keep_every_byte() {
    with_server("w19_uploads_keep_every_byte", |server| {
        let session = Session::create(&server.http(), &json!({}));
        let every: Vec<u8> = (0..=255).collect();
        let mut form =
            b"--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"bytes\"\r\n\r\n".to_vec();
        form.extend(&every);
        form.extend(b"\r\n--edge--\r\n");
        let media = "multipart/form-data; boundary=edge";
        server.http().send("POST", &session.route("/fs/upload"), media, &form).expect(200);
        assert_eq!(session.output("stat -c %s bytes"), "256");
        assert_eq!(session.read("bytes"), every);
    });
}

#[test]
fn w20_answers_of_any_allowed_size_and_shape_pass() {
    with_server("w20_answers_of_any_allowed_size_and_shape_pass", |server| {
        let session = Session::create(&server.http(), &json!({}));
        // Each of these grew beyond what a line of the older tool could hold.
        let escaped = session.exec("yes '\"\\' | head -c 5000000");
        assert_eq!((escaped.output.len(), escaped.truncated), (5_000_000, false));
        session.output("head -c 9000000 /dev/urandom > large");
        let read = session.read("large");
        assert_eq!(read.len(), 9_000_000);
        let mut form =
            b"--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"back\"\r\n\r\n".to_vec();
        form.extend(&read);
        form.extend(b"\r\n--edge--\r\n");
        let media = "multipart/form-data; boundary=edge";
        server.http().send("POST", &session.route("/fs/upload"), media, &form).expect(200);
        assert_eq!(session.output("cmp large back && echo same"), "same");
        let most = json!({"path": "written", "content_base64": base64(&read[..1_400_000])});
        server.http().post(&session.route("/fs/write"), &most).expect(200);
        assert_eq!(session.output("stat -c %s written"), "1400000");
    });
}

#[test]
fn w21_a_time_limit_ends_the_whole_tree_in_both_modes() {
    with_server("w21_a_time_limit_ends_the_whole_tree_in_both_modes", |server| {
        let session = Session::create(&server.http(), &json!({}));
        session.output("kept=yes; cd /tmp");
        for mode in ["stateful", "stateless"] {
            for cmd in [
                "sleep 1234 & echo before; sleep 1234|(sleep 1234)",
                "echo before; sh -c 'trap \"\" INT TERM; sleep 1234; sleep 1234'; echo after > /tmp/after",
                "echo before; (setsid sleep 1234 &); sleep 1234",
            ] {
                let request = json!({"cmd": cmd, "timeout_ms": 300, "mode": mode});
                let answer = session.try_exec(&request).expect(504);
                assert_eq!(answer.error_code(), "COMMAND_TIMEOUT");
                let details = answer.json::<Value>()["details"].clone();
                assert_eq!(details["output"], "before\n", "{mode}: {cmd}");
                let next = session.output("pgrep -cx sleep; ls /tmp/after 2>/dev/null; echo $kept; pwd");
                assert_eq!(next, "0\nyes\n/tmp", "{mode}: {cmd}");
            }
        }
    });
}

/// How often the agent of a session has gone to sleep and been woken again.
fn wakeups(session: &Session) -> u64 {
    let agent = agent_of(session);
    let tasks = fs_err::read_dir(format!("/proc/{agent}/task")).unwrap();
    let count = |task: std::io::Result<fs_err::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.map(count).sum()
}

#[test]
fn w22_nobody_polls_while_a_command_runs() {
    with_server("w22_nobody_polls_while_a_command_runs", |server| {
        let session = Session::create(&server.http(), &json!({}));
        for mode in ["stateful", "stateless"] {
            let during = |seconds: &str| {
                let before = wakeups(&session);
                let cmd = format!("sleep {seconds}");
                session.try_exec(&json!({"cmd": cmd, "mode": mode})).expect(200);
                wakeups(&session) - before
            };
            during("0.1");
            let (short, long) = (during("0.1"), during("2.1"));
            // A look every 50 ms would be forty more.
            assert!(long < short + 20, "{mode}: {short} wake-ups in a short command, {long} in a long one");
        }
    });
}

#[test]
fn w24_nobody_leaves_zombies() {
    with_server("w24_nobody_leaves_zombies", |server| {
        let session = Session::create(&server.http(), &json!({}));
        for mode in ["stateful", "stateless"] {
            let orphans = json!({"cmd": "for i in 1 2 3 4 5; do (sleep 0.01 & sleep 0.01 &); done; true", "mode": mode});
            session.try_exec(&orphans).expect(200);
        }
        let zombies = || session.output("grep -h ^State /proc/[0-9]*/status 2>/dev/null | grep -c Z; true");
        settles("the orphans are reaped", || {
            zombies() == "0" && session.output("pgrep -cx sleep; true") == "0"
        });
        for _ in 0..5 {
            Session::create(&server.http(), &json!({})).delete();
        }
        session.delete();
        let dead =
            |pid: u32| process::status(pid, "State").is_some_and(|state| state.trim().starts_with('Z'));
        let launcher = server.launcher().unwrap().pid();
        for parent in [server.handle().pid(), launcher] {
            settles("ended machines are reaped", || !process::children(parent).into_iter().any(dead));
        }
    });
}

#[test]
fn w25_use_never_shortens_a_session_s_life() {
    if !runnable("w25_use_never_shortens_a_session_s_life") {
        return;
    }
    let dir = DataDir::new();
    let config = Some("session_ttl_seconds: 60\n".to_owned());
    let server = Server::start_with(&dir, &Options { config, ..Options::default() });
    let http = server.http();
    let session = Session::create(&http, &json!({"ttl_seconds": 3600}));
    // As instants: as text, a fraction of one digit would come after the same with three.
    let end = |info: &SessionInfo| info.expires_at.parse::<jiff::Timestamp>().expect("a time of RFC 3339");
    let mut until = end(&session.info());
    let mut not_sooner = |what: &str| {
        let now = end(&session.info());
        assert!(now >= until, "{what} moved the end from {until} to {now}");
        until = now;
    };
    session.output("echo x > file");
    not_sooner("exec");
    session.read("file");
    not_sooner("read");
    session.write("file", b"y");
    not_sooner("write");
    session.try_exec(&json!({"cmd": "sleep 10", "timeout_ms": 100})).expect(504);
    not_sooner("a command that took too long");
    http.post(&session.route("/extend"), &json!({"ttl_seconds": 10})).expect(200);
    not_sooner("a short extension");
    let extended: SessionInfo =
        http.post(&session.route("/extend"), &json!({"ttl_seconds": 86400})).expect(200).json();
    assert!(end(&extended) > until, "{} {until}", extended.expires_at);
    // A command at work holds its session open beyond its time.
    let short = Session::create(&http, &json!({"ttl_seconds": 1}));
    let held: ExecResult = short.try_exec(&json!({"cmd": "sleep 3; echo held"})).expect(200).json();
    assert_eq!(held.output, "held\n");
    server.delete_all();
    server.stop();
}

#[test]
fn limits_of_the_server_s_owner_hold_for_every_request() {
    if !runnable("limits_of_the_server_s_owner_hold_for_every_request") {
        return;
    }
    let dir = DataDir::new();
    let config = "allowed_images: [host]\ndefaults:\n  exec_mode: stateless\n  max_exec_timeout_ms: 1000\n  \
                  readonly_rootfs: true\n  shell_prefer: sh\n";
    let server = Server::start_with(&dir, &Options { config: Some(config.to_owned()), ..Options::default() });
    let session = Session::create(&server.http(), &json!({"memory_mb": 64}));
    let refused = server.http().post("/v1/sessions", &json!({"image": "python"})).expect(400);
    assert_eq!(refused.error_code(), "INVALID_IMAGE");
    assert!(refused.text().contains("image not allowed: python"), "{}", refused.text());
    for timeout_ms in [0, 600_000] {
        let answer = session.try_exec(&json!({"cmd": "sleep 1000", "timeout_ms": timeout_ms})).expect(504);
        assert!(answer.text().contains("exceeded 1s"), "{}", answer.text());
    }
    assert_ne!(session.exec("touch /usr/x /etc/x").exit_code, 0);
    assert_eq!(session.output("cd /tmp; x=1; touch /tmp/x /run/../tmp/y"), "");
    assert_eq!(session.output("pwd; echo [$x]; readlink -f /proc/$$/exe"), {
        let shell = fs_err::canonicalize("/bin/sh").unwrap();
        format!("/workspace\n[]\n{}", shell.display())
    });
    let kept: ExecResult =
        session.try_exec(&json!({"cmd": "cd /tmp; x=1", "mode": "stateful"})).expect(200).json();
    assert_eq!(kept.cwd, "/tmp");
    let hungry = session.exec("tail /dev/zero");
    assert_eq!((hungry.exit_code, hungry.oom), (137, true));
    assert_eq!(hungry.reason.as_deref(), Some("the memory limit of 64 MiB ended a process of the session"));
    let (name, done) = session.events(&json!({"cmd": "tail /dev/zero"})).last().unwrap();
    assert_eq!((name.as_str(), &done["oom"], &done["exit_code"]), ("done", &json!(true), &json!(137)));
    assert_eq!(session.output("echo alive"), "alive");
    server.delete_all();
    server.stop();
}
