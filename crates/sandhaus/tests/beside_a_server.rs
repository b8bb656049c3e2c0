//! The command line beside a server, on sandboxes that last.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that cannot run says so"
)]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Sandboxes need root; without it the test says so and passes.
fn runnable(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: sandboxes need root");
    }
    root
}

/// A server on a data directory and a port of its own; it ends with this value, and its sandboxes before it.
struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = sandhaus(dir.path())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("is ready"));
        assert!(ready.is_some(), "the server ended before it was ready");
        // Read on, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        Self { dir, child }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = sandhaus(self.dir.path());
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command line that succeeds.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.text(&["ps", "-o", "json"])).unwrap()
    }

    /// A sandbox that stays.
    fn sandbox(&self, arguments: &[&str]) -> String {
        let before: Vec<Value> = self.list();
        let mut all = vec!["run", "--keep", "-q"];
        all.extend(arguments);
        self.text(&all);
        let new = self.list().into_iter().find(|session| !before.contains(session)).unwrap();
        new["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for session in self.list() {
            self.run(&["rm", session["id"].as_str().unwrap()]);
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "{status}");
        }
    }
}

fn sandhaus(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    command.arg("--data-dir").arg(data_dir);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file beneath a directory, by path, with what distinguishes it.
fn contents(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        let what = if metadata.is_symlink() {
            format!("link to {}", std::fs::read_link(&path).unwrap().display())
        } else if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            format!("directory {mode:o}")
        } else {
            format!("file {mode:o} {:?}", std::fs::read(&path).unwrap())
        };
        found.push((path.strip_prefix(root).unwrap().to_owned(), what));
    }
    found.sort();
    found
}

#[test]
fn trees_survive_a_round_trip() {
    if !runnable("trees_survive_a_round_trip") {
        return;
    }
    let server = Server::start();
    let id = server.sandbox(&["--", "true"]);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("tree");
    std::fs::create_dir_all(source.join("deep/deeper")).unwrap();
    std::fs::create_dir(source.join("empty")).unwrap();
    std::fs::write(source.join("binary"), [0, 255, 10, 13, 0x85]).unwrap();
    std::fs::write(source.join("nothing"), "").unwrap();
    std::fs::write(source.join("deep/deeper/large"), vec![7; 3_000_000]).unwrap();
    std::fs::write(source.join("name with spaces & ü?#%"), "odd").unwrap();
    std::fs::write(source.join("script"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(source.join("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(source.join("binary"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(source.join("empty"), std::fs::Permissions::from_mode(0o500)).unwrap();
    symlink("binary", source.join("link")).unwrap();
    symlink("/etc/shadow", source.join("deep/absolute")).unwrap();
    symlink("nowhere", source.join("dangling")).unwrap();

    let source = source.to_str().unwrap();
    server.text(&["cp", source, &format!("{id}:/tmp/new")]);
    server.text(&["cp", source, &format!("{id}:/tmp")]);
    server.text(&["cp", &format!("{source}/."), &format!("{id}:/workspace")]);
    for (number, inside) in ["/tmp/new", "/tmp/tree"].into_iter().enumerate() {
        let back = folder.path().join(format!("back{number}"));
        server.text(&["cp", &format!("{id}:{inside}"), back.to_str().unwrap()]);
        assert_eq!(contents(Path::new(source)), contents(&back), "{inside}");
    }
    // What lies in it, into a directory that is there.
    let into = folder.path().join("into");
    std::fs::create_dir(&into).unwrap();
    server.text(&["cp", &format!("{id}:/tmp/tree/."), into.to_str().unwrap()]);
    let below = |root: &Path| {
        contents(root).into_iter().filter(|(path, _)| path != Path::new("")).collect::<Vec<_>>()
    };
    assert_eq!(below(Path::new(source)), below(&into));
    assert_eq!(server.text(&["exec", &id, "cat", "/workspace/script"]), "#!/bin/sh\n");
}

#[test]
fn copies_land_where_they_are_meant_to() {
    if !runnable("copies_land_where_they_are_meant_to") {
        return;
    }
    let server = Server::start();
    let id = server.sandbox(&["--", "sh", "-c", "mkdir -p /tmp/d/e; echo inside > /tmp/d/e/f"]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let inside = |name: &str| format!("{id}:{name}");
    std::fs::create_dir(path("dir")).unwrap();

    server.text(&["cp", &inside("/tmp/d/e/f"), &text("file")]);
    server.text(&["cp", &inside("/tmp/d/e/f"), &text("dir")]);
    server.text(&["cp", &inside("/tmp/d/."), &text("dir")]);
    assert_eq!(std::fs::read_to_string(path("file")).unwrap(), "inside\n");
    assert_eq!(std::fs::read_to_string(path("dir/f")).unwrap(), "inside\n");
    assert_eq!(std::fs::read_to_string(path("dir/e/f")).unwrap(), "inside\n");

    // A relative path starts in the work directory.
    std::fs::write(path("file"), "outside\n").unwrap();
    server.text(&["cp", &text("file"), &inside("sub/renamed")]);
    assert_eq!(server.text(&["exec", &id, "cat", "/workspace/sub/renamed"]), "outside\n");

    for (source, destination, said) in [
        (inside("/tmp/none"), text("x"), "/tmp/none"),
        (text("none"), inside("/tmp/x"), "none"),
        (inside("/tmp/d/e/f"), text("no/such/place"), "no/such"),
        (inside("/tmp/d/e/f"), format!("{}/", text("missing")), "missing"),
        (text("file"), inside("/tmp/missing/"), "/tmp/missing"),
        (text("file"), text("x"), "both paths are on this host"),
        (inside("/a"), inside("/b"), "both paths are in sandboxes"),
        (text("file"), "00000000-000:/x".to_owned(), "00000000-000"),
    ] {
        let output = server.run(&["cp", &source, &destination]);
        assert_eq!(output.status.code(), Some(1), "{source} {destination}");
        assert!(stderr(&output).contains(said), "{source} {destination}: {}", stderr(&output));
    }
    assert!(!path("x").exists());
}

/// A link that lies on the host where the copy goes is replaced, never followed; a directory is never replaced.
#[test]
fn copies_follow_no_link_of_the_host() {
    if !runnable("copies_follow_no_link_of_the_host") {
        return;
    }
    let server = Server::start();
    let id = server.sandbox(&[
        "--",
        "sh",
        "-c",
        "mkdir /tmp/d; echo evil > /tmp/d/file; mkdir /tmp/d/sub; echo evil > /tmp/d/sub/x",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    let back = folder.path().join("back");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(&back).unwrap();
    std::fs::write(outside.join("canary"), "alive").unwrap();
    symlink(outside.join("canary"), back.join("file")).unwrap();
    symlink(&outside, back.join("sub")).unwrap();
    let output = server.run(&["cp", &format!("{id}:/tmp/d/."), back.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "a link stands where a directory must be made");
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "alive");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    std::fs::remove_file(back.join("sub")).unwrap();
    server.text(&["cp", &format!("{id}:/tmp/d/."), back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "alive");
    assert_eq!(std::fs::read_to_string(back.join("file")).unwrap(), "evil\n");
    assert!(std::fs::symlink_metadata(back.join("file")).unwrap().is_file());
}

#[test]
fn commands_in_a_sandbox_that_lasts() {
    if !runnable("commands_in_a_sandbox_that_lasts") {
        return;
    }
    let server = Server::start();
    let id =
        server.sandbox(&["--name", "kept", "-e", "A=b c", "--", "sh", "-c", "echo first; echo second >&2"]);
    let output = server.run(&[
        "exec",
        "-e",
        "B=d",
        "-w",
        "/tmp",
        &id,
        "--",
        "sh",
        "-c",
        "echo $A $B; pwd; echo err >&2; exit 3",
    ]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b c d\n/tmp\n");
    assert_eq!(stderr(&output), "err\n");
    let missing = server.run(&["exec", &id, "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(stderr(&missing).contains("no-such-program"), "{}", stderr(&missing));
    let late = server.run(&["exec", "--timeout", "200ms", &id, "sleep", "1000"]);
    assert_eq!(late.status.code(), Some(124));
    let unknown = server.run(&["exec", "00000000-000", "true"]);
    assert_eq!(unknown.status.code(), Some(125));

    let mut child = server
        .command(&["exec", "-i", &id, "sh", "-c", "wc -c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 2_000_000]).unwrap();
    assert_eq!(String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).trim(), "2000000");

    let logs = server.run(&["logs", &id]);
    assert_eq!(
        (logs.stdout.as_slice(), logs.stderr.as_slice()),
        (b"first\n".as_slice(), b"second\n".as_slice())
    );
    assert!(server.text(&["logs", "--process", "2", &id]).contains("b c d"));
    let followed = server.run(&["logs", "-f", "--process", "1", &id]);
    assert_eq!(followed.stdout, b"first\n", "the source has ended, and so does following it");

    let listed = server.list();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&Value::from(id.as_str()), &Value::from("kept")));
    let table = server.text(&["ps"]);
    assert!(table.lines().count() == 2 && table.contains("kept") && table.contains("running"), "{table}");
    let inspected: Value = serde_json::from_str(&server.text(&["inspect", &id])).unwrap();
    assert_eq!(inspected["processes"][0]["argv"][0], "sh");
    assert!(inspected["stats"]["memory_bytes"].as_u64().unwrap() > 0);

    assert_eq!(server.text(&["run", "--", "sh", "-c", "echo gone"]), "gone\n");
    assert_eq!(server.list().len(), 1, "what `run` makes is removed");
    let removal = server.run(&["rm", "00000000-000", &id]);
    assert_eq!(removal.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&removal.stdout),
        format!("{id}\n"),
        "one failure does not keep the other"
    );
    assert!(server.list().is_empty());
    assert!(server.run(&["rm", "--force", "00000000-000"]).status.success());
}

#[test]
fn nothing_that_a_sandbox_is_called_steers_the_terminal() {
    if !runnable("nothing_that_a_sandbox_is_called_steers_the_terminal") {
        return;
    }
    let server = Server::start();
    let id = server.sandbox(&["-w", "/tmp", "--", "sh", "-c", "true", "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}"]);
    for arguments in [&["ps"][..], &["ps", "-o", "json"], &["inspect", &id], &["inspect", "-o", "table", &id]]
    {
        let text = server.text(arguments);
        let steering = text.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(steering, None, "{arguments:?}: {text:?}");
    }
}

#[test]
fn a_run_that_is_ended_leaves_nothing_on_the_server() {
    if !runnable("a_run_that_is_ended_leaves_nothing_on_the_server") {
        return;
    }
    let server = Server::start();
    let mut child = server
        .command(&["run", "--", "sh", "-c", "echo ready; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(server.list().len(), 1);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(server.list().is_empty());
}

#[test]
fn one_data_directory_has_one_server_and_images_are_shared() {
    if !runnable("one_data_directory_has_one_server_and_images_are_shared") {
        return;
    }
    let server = Server::start();
    let second = server.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("is in use") && stderr(&second).contains("hint: "),
        "{}",
        stderr(&second)
    );

    server.text(&["image", "tag", "host", "python"]);
    assert_eq!(server.text(&["run", "--image", "python", "--", "echo", "x"]), "x\n");
    let listed: Value = serde_json::from_str(&server.text(&["image", "list", "-o", "json"])).unwrap();
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().filter_map(|image| image["name"].as_str()).collect();
    assert_eq!(names, ["host", "python"]);
    server.text(&["image", "rm", "python"]);
    let gone = server.run(&["run", "--image", "python", "--", "true"]);
    assert_eq!(gone.status.code(), Some(125));
    assert!(stderr(&gone).contains("python"), "{}", stderr(&gone));
}
