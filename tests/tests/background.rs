//! A server in the background, as people and the older tool's scripts start and stop it.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use rustix::process::Signal;
use sandhaus_tests::{
    PATIENCE,
    binary::{self, Ran},
    http::Http,
    process::{self, Handle},
    runnable,
    server::DataDir,
    session::Session,
};
use serde_json::{Value, json};

/// Arguments after the global ones.
fn sandhaus(dir: &DataDir, arguments: &[&str]) -> Ran {
    binary::run(binary::command(dir.path()).args(arguments))
}

/// Servers on a data directory: processes of the binary that were started with its path and are no launchers.
fn servers(dir: &DataDir) -> Vec<u32> {
    let wanted = dir.path().to_str().unwrap();
    let is_server = |pid: &u32| {
        let arguments = process::arguments(*pid);
        process::executable(*pid).as_deref() == Some(binary::path())
            && arguments.iter().any(|argument| argument.contains(wanted))
            && !arguments.iter().any(|argument| argument == "__launcher")
    };
    process::all().into_iter().filter(is_server).collect()
}

/// Ends whatever server a failed test left.
struct Ended<'a>(&'a DataDir);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for server in servers(self.0).into_iter().filter_map(Handle::open) {
            server.signal(Signal::KILL);
            server.ends_within(PATIENCE);
        }
    }
}

fn client(url: &str) -> Http {
    Http::new(url.trim().strip_prefix("http://").unwrap().parse().unwrap())
}

/// The older tool, told `-detach` or `-d=true`, started itself again and again.
#[test]
fn w33_every_spelling_of_detach_starts_one_server() {
    if !runnable("w33_every_spelling_of_detach_starts_one_server") {
        return;
    }
    let dir = DataDir::new();
    let _ended = Ended(&dir);
    let spellings: [&[&str]; 8] = [
        &["serve", "--detach"],
        &["daemon", "-d"],
        &["daemon", "-d=true"],
        &["daemon", "-detach"],
        &["daemon", "-detach=true"],
        &["daemon", "--detach=1"],
        &["daemon", "--d"],
        &["serve", "-detach", "-d=false", "-d"],
    ];
    for spelling in &spellings[..7] {
        let mut command = binary::command(dir.path());
        // What the older tool marked its second self with means nothing here.
        command.args(*spelling).args(["--listen", "127.0.0.1:0"]).env("SANDKASTEN_DETACHED", "1");
        let ran = binary::run(&mut command);
        assert_eq!(ran.code, 0, "{spelling:?}: {}", ran.stderr);
        assert_eq!(client(&ran.stdout).get("/healthz").expect(200).text().trim(), r#"{"status":"ok"}"#);
        let running = servers(&dir);
        assert_eq!(running.len(), 1, "{spelling:?}: {running:?}");
        let noted = fs_err::read_to_string(dir.path().join("run/sandhaus.pid")).unwrap();
        assert_eq!(noted.trim(), running[0].to_string());
        // It has no terminal, no session and no parent of ours.
        let text = fs_err::read_to_string(format!("/proc/{}/stat", running[0])).unwrap();
        let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        let (session, terminal) = (fields[3], fields[4]);
        assert_ne!(session, running[0].to_string(), "a leader of a session could get a terminal");
        assert_eq!(terminal, "0");
        let ran = sandhaus(&dir, &["stop"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(servers(&dir), Vec::<u32>::new(), "{spelling:?}");
        assert!(!dir.path().join("run/sandhaus.pid").exists());
    }
    // Said twice, it is refused, and nothing starts.
    assert_eq!(sandhaus(&dir, spellings[7]).code, 2);
    assert_eq!(servers(&dir), Vec::<u32>::new());
    let log = dir.path().join("run/sandhaus.log");
    assert_eq!(fs_err::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o600);
    let shown = sandhaus(&dir, &["logs"]);
    assert_eq!(shown.stdout, fs_err::read_to_string(&log).unwrap());
    assert_eq!(shown.stdout.matches("is ready").count(), 7);
    assert_eq!(sandhaus(&dir, &["logs", "--tail", "1"]).stdout.lines().count(), 1);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    if !runnable("a_server_that_cannot_start_says_why") {
        return;
    }
    let dir = DataDir::new();
    let _ended = Ended(&dir);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = sandhaus(&dir, &["serve", "-d", "--listen", &address]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stdout, "");
    let wanted = format!("cannot listen on {address}");
    assert!(
        ran.stderr.contains(&wanted) && ran.stderr.contains("ended before it answered"),
        "{}",
        ran.stderr
    );
    assert_eq!(servers(&dir), Vec::<u32>::new());

    let first = sandhaus(&dir, &["serve", "-d", "--listen", "127.0.0.1:0"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let second = sandhaus(&dir, &["serve", "-d", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("is in use"), "{}", second.stderr);
    assert_eq!(servers(&dir).len(), 1);
    assert_eq!(sandhaus(&dir, &["stop"]).code, 0);
    let none = sandhaus(&dir, &["stop"]);
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("no server runs on data directory"), "{}", none.stderr);
}

/// The older tool ended whatever process had the number in its file.
#[test]
fn w14_stop_ends_the_holder_of_the_directory_and_nobody_else() {
    if !runnable("w14_stop_ends_the_holder_of_the_directory_and_nobody_else") {
        return;
    }
    let dir = DataDir::new();
    let _ended = Ended(&dir);
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let watched = Handle::open(bystander.id()).unwrap();
    let lie = || {
        let holder = json!({ "pid": watched.pid(), "url": "http://127.0.0.1:1" });
        fs_err::write(dir.path().join("holder"), holder.to_string()).unwrap();
        fs_err::write(dir.path().join("run/sandhaus.pid"), watched.pid().to_string()).unwrap();
    };

    let started = sandhaus(&dir, &["serve", "-d", "--listen", "127.0.0.1:0"]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let server = servers(&dir).into_iter().next().and_then(Handle::open).unwrap();
    let http = client(&started.stdout);
    let session = Session::create(&http, &json!({}));
    session.exec("cd /tmp");
    lie();
    let stopped = sandhaus(&dir, &["stop"]);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert!(stopped.stdout.contains(&format!("process {}", server.pid())), "{}", stopped.stdout);
    assert!(server.has_ended());

    // Nobody holds the directory now, whatever its files say.
    lie();
    assert_eq!(sandhaus(&dir, &["stop"]).code, 1);
    assert!(!watched.has_ended(), "a process that only has the number was ended");

    // The sandbox has gone on.
    let again = sandhaus(&dir, &["serve", "-d", "--listen", "127.0.0.1:0"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let session = Session::at(&client(&again.stdout), &session.id);
    assert_eq!(session.exec("pwd").output, "/tmp\n");
    session.delete();
    assert_eq!(sandhaus(&dir, &["stop"]).code, 0);
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(dir.objects().is_empty(), "{:#?}", dir.objects());
}

/// A binary under another name, as the older tool's scripts call it.
fn called(name: &str, folder: &Path) -> Command {
    let link = folder.join(name);
    if !link.exists() {
        symlink(binary::path(), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(folder).stdin(std::process::Stdio::null());
    command
}

/// The walk that the older tool's own documents describe, with its names, its flags and what it prints.
#[test]
fn the_older_tools_walkthrough() {
    if !runnable("the_older_tools_walkthrough") {
        return;
    }
    let dir = DataDir::new();
    let _ended = Ended(&dir);
    let folder = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let run = |name: &str, arguments: &[&str]| binary::run(called(name, folder.path()).args(arguments));
    let sandkasten = |arguments: &[&str]| run("sandkasten", arguments);

    let made = sandkasten(&["init", "-data-dir", data, "-listen", "127.0.0.1:0", "-skip-pull"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(folder.path().join("sandkasten.yaml").exists());
    let tree = folder.path().join("tree");
    fs_err::create_dir(&tree).unwrap();
    fs_err::write(tree.join("marker"), "imported").unwrap();
    let tar = folder.path().join("rootfs.tar");
    assert!(
        Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&tree).arg(".").status().unwrap().success()
    );
    let imported =
        run("imgbuilder", &["import", "--name", "python", "--tar", tar.to_str().unwrap(), "-data-dir", data]);
    assert_eq!(
        (imported.code, imported.stdout.as_str()),
        (0, "Imported image: python\n"),
        "{}",
        imported.stderr
    );
    let images = run("imgbuilder", &["list", "-data-dir", data]).stdout;
    assert!(images.starts_with("Images:\n") && images.contains("\n  - python (created: 2"), "{images}");
    assert_eq!(
        run("imgbuilder", &["validate", "-data-dir", data, "python"]).stdout,
        "Image python is valid\n"
    );
    assert_eq!(run("imgbuilder", &["delete", "python", "-data-dir", data]).stdout, "Deleted image: python\n");

    assert_eq!(sandkasten(&["version"]).stdout.split(' ').next(), Some("sandkasten"));
    assert_eq!(sandkasten(&["help"]).code, 0);
    assert_eq!(sandkasten(&["frobnicate"]).code, 1);
    assert_eq!(sandkasten(&["stop", "-config", "sandkasten.yaml"]).code, 1);

    let started = sandkasten(&["-config", "sandkasten.yaml", "-d"]);
    assert_eq!((started.code, started.stdout.as_str()), (0, ""), "{}", started.stderr);
    let holder: Value = serde_json::from_slice(&fs_err::read(dir.path().join("holder")).unwrap()).unwrap();
    let url = holder["url"].as_str().unwrap().to_owned();
    let key = fs_err::read_to_string(folder.path().join("sandkasten.yaml")).unwrap();
    let key = key.lines().find_map(|line| line.strip_prefix("api_key: ")).unwrap();
    let http = client(&url).with_key(key);
    let created = http.send("POST", "/v1/sessions", "", br#"{"image":"base"}"#).expect(201);
    let id = created.json::<Value>()["id"].as_str().unwrap().to_owned();

    let listed = sandkasten(&["ps", "--config", "sandkasten.yaml"]);
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", listed.stdout);
    assert!(lines[0].starts_with("SESSION ID                           IMAGE        STATUS     CREATED"));
    assert_eq!(lines[2].split_whitespace().next(), Some(id.as_str()));
    assert_eq!(lines[2].split_whitespace().last(), Some("/workspace"));
    let removed = sandkasten(&["rm", &id, "00000000-000"]);
    assert_eq!(removed.code, 1);
    assert_eq!(removed.stdout, "");
    assert!(removed.stderr.lines().any(|line| line == id), "{}", removed.stderr);
    assert!(removed.stderr.contains("rm: 00000000-000: session not found or invalid"), "{}", removed.stderr);

    let stopped = sandkasten(&["stop", "-data-dir", data]);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert!(stopped.stdout.starts_with("stopped daemon (PID "), "{}", stopped.stdout);
    let audit = sandkasten(&["security"]);
    assert!(audit.stdout.starts_with("Sandkasten security\n[OK] api key"), "{}", audit.stdout);
    assert!(dir.objects().is_empty(), "{:#?}", dir.objects());
}
