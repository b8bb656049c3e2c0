//! The command line towards sandboxes that stay, and snapshots of them, with and without a server.

use std::process::{Command, Output};

use sandhaus_tests::{
    binary, runnable,
    server::{DataDir, Server, with_server},
};
use serde_json::Value;

fn output(mut command: Command) -> Output {
    command.output().expect("run the binary")
}

/// What a command printed that must succeed, without the final newline.
#[track_caller]
fn printed(server: &Server, arguments: &[&str]) -> String {
    let mut command = server.cli();
    command.args(arguments);
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

/// What a command said that must fail.
#[track_caller]
fn refused(server: &Server, arguments: &[&str]) -> String {
    let mut command = server.cli();
    command.args(arguments);
    let output = output(command);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("text")
}

fn status(server: &Server, id: &str) -> String {
    let text = printed(server, &["inspect", id]);
    let inspection: Value = serde_json::from_str(&text).expect("JSON");
    inspection["status"].as_str().expect("a word").to_owned()
}

#[test]
fn a_sandbox_by_hand() {
    with_server("a_sandbox_by_hand", |server| {
        let id = printed(server, &["create", "--name", "by-hand", "--label", "team=a", "--env", "MINE=kept"]);
        assert_eq!(status(server, &id), "running");
        assert_eq!(
            printed(server, &["exec", &id, "--", "sh", "-c", "echo $MINE; echo old > /workspace/note"]),
            "kept"
        );
        for (command, state) in
            [("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")]
        {
            assert_eq!(printed(server, &[command, &id]), id, "{command}");
            assert_eq!(status(server, &id), state, "{command}");
        }
        let copy = printed(server, &["fork", &id, "--name", "copy", "--env", "MINE=its own"]);
        assert_ne!(copy, id);
        assert_eq!(
            printed(server, &["exec", &copy, "--", "sh", "-c", "cat /workspace/note; echo $MINE"]),
            "old\nits own"
        );

        // What its engine cannot do is told by name, and one that fails does not keep the others.
        assert!(refused(server, &["suspend", &id]).contains("not supported"), "memory stays where it is");
        assert!(refused(server, &["console", &id]).contains("a serial console is not supported"));
        assert!(refused(server, &["screenshot", &id, "-o", "-"]).contains("a display is not supported"));
        let error = refused(server, &["stop", "00000000-000", &copy]);
        assert!(error.contains("cannot stop 00000000-000"), "{error}");
        assert_eq!(status(server, &copy), "stopped");
        printed(server, &["rm", &id, &copy]);
        assert!(refused(server, &["create", "--engine", "none"]).contains("there is no engine"));
        assert!(refused(server, &["create", "--snapshot", "missing"]).contains("missing"));
    });
}

#[test]
fn snapshots_by_hand() {
    with_server("snapshots_by_hand", |server| {
        let id = printed(server, &["create"]);
        printed(server, &["exec", &id, "--", "sh", "-c", "echo old > /workspace/note"]);
        assert_eq!(printed(server, &["snapshot", "create", &id, "noted"]), "noted");
        assert!(refused(server, &["snapshot", "create", &id, "noted"]).contains("already"));
        assert!(refused(server, &["snapshot", "create", "--memory", &id, "warm"]).contains("memory"));
        assert!(refused(server, &["snapshot", "create", &id, "../x"]).contains("name"));
        printed(server, &["exec", &id, "--", "sh", "-c", "echo new > /workspace/note"]);
        let list = printed(server, &["snapshot", "list"]);
        assert!(list.starts_with("NAME") && list.contains("noted"), "{list}");
        let found: Value =
            serde_json::from_str(&printed(server, &["snapshot", "inspect", "noted", "-o", "json"]))
                .expect("JSON");
        assert_eq!(
            (&found[0]["session"], &found[0]["kind"]),
            (&Value::from(id.clone()), &Value::from("disk"))
        );
        assert!(refused(server, &["snapshot", "push", "noted"]).contains("store"));

        let run = printed(server, &["run", "--snapshot", "noted", "--", "cat", "/workspace/note"]);
        assert_eq!(run, "old");
        let made: Value =
            serde_json::from_str(&printed(server, &["create", "--snapshot", "noted", "-o", "json"]))
                .expect("JSON");
        assert_eq!(made["snapshot"], "noted");
        let made = made["id"].as_str().expect("an id");
        assert_eq!(printed(server, &["snapshot", "rm", "noted"]), "noted");
        assert_eq!(printed(server, &["exec", made, "--", "cat", "/workspace/note"]), "old");
        assert!(refused(server, &["snapshot", "rm", "noted"]).contains("there is no snapshot noted"));
        printed(server, &["rm", made, &id]);
    });
}

#[test]
fn a_snapshot_is_run_without_a_server() {
    if !runnable("a_snapshot_is_run_without_a_server") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let id = printed(&server, &["create"]);
    printed(&server, &["exec", &id, "--", "sh", "-c", "echo old > /workspace/note"]);
    printed(&server, &["snapshot", "create", &id, "noted"]);
    printed(&server, &["rm", &id]);
    let (ended, log) = server.stop();
    assert!(ended.success(), "{log}");

    let run = |snapshot: &str, script: &str| {
        let mut command = binary::command(dir.path());
        command.args(["run", "--snapshot", snapshot, "--", "sh", "-c", script]);
        output(command)
    };
    let ran = run("noted", "cat /workspace/note; echo aside >&2; echo changed > /workspace/note; exit 7");
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!((ran.status.code(), stdout.as_ref()), (Some(7), "old\n"), "{stderr}");
    assert_eq!(stderr, "aside\n");
    let again = run("noted", "cat /workspace/note");
    assert_eq!(again.stdout, b"old\n", "what one run changes no other sees: {:?}", again.stderr);
    let missing = run("missing", "true");
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no snapshot missing"));

    let server = Server::start(&dir);
    printed(&server, &["snapshot", "rm", "noted"]);
    let (ended, log) = server.stop();
    assert!(ended.success(), "{log}");
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}
