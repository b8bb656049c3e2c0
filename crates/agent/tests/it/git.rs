//! The git routes, against the real git and a real server of it over HTTP.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use sandhaus_protocol::git::{
    GitCommitInfo, GitCommitResponse, GitConfigResponse, GitFileState, GitStatus, ListBranchResponse,
    ListRemotesResponse,
};
use serde_json::{Value, json};

use crate::support::{Agent, Reply, encoded, eventually};

const USER: &str = "alice";
const PASSWORD: &str = "s3cr3t/of:al1ce";

/// An agent, and a served repository `one.git` whose branch `main` has one commit.
struct Scene {
    agent: Agent,
    server: Child,
    /// Outside of the agent's own folder.
    elsewhere: tempfile::TempDir,
    url: String,
    /// What the server was asked for, and as whom.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Scene {
    fn new() -> Self {
        Self::prepared(|_, _| {})
    }

    fn prepared(prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let agent = Agent::start_prepared(None, prepare);
        let elsewhere = tempfile::tempdir().expect("a temporary folder");
        let served = elsewhere.path().join("served");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/toolbox/git_server.py");
        let mut server = Command::new("python3")
            .arg(script)
            .args([served.to_str().expect("UTF-8"), USER, PASSWORD])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the git server");
        let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
        let port = lines.next().expect("a line").expect("its port");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().expect("not poisoned").push(line);
            }
        });
        let scene = Self { agent, server, elsewhere, url: format!("http://127.0.0.1:{port}"), requests };
        scene.git("", "init -q --bare -b main served/one.git");
        scene.git("served/one.git", "config http.receivepack true");
        scene.git("", "init -q -b main seed");
        scene.put("seed/a.txt", "one");
        scene.git("seed", "add .");
        scene.commit("seed", "first");
        scene.git("seed", "remote add origin ../served/one.git");
        scene.git("seed", "push -q origin main");
        scene
    }

    /// Writes a file elsewhere.
    fn put(&self, path: &str, text: &str) {
        fs::write(self.elsewhere.path().join(path), text).expect("write");
    }

    /// Git elsewhere: what it prints. Nobody's settings count.
    fn git(&self, directory: &str, words: &str) -> String {
        git_in(&self.elsewhere.path().join(directory), words)
    }

    fn commit(&self, directory: &str, message: &str) {
        self.git(
            directory,
            &format!("-c user.name=Seed -c user.email=seed@example.com commit -q -m {message}"),
        );
    }

    /// A path below the agent's work directory.
    fn work(&self, path: &str) -> PathBuf {
        self.agent.work().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.work(path);
        fs::create_dir_all(path.parent().expect("below")).expect("create");
        fs::write(path, text).expect("write");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.work(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Git in a repository of the agent: what it prints.
    fn look(&self, repository: &str, words: &str) -> String {
        git_in(&self.work(repository), words)
    }

    fn post(&self, route: &str, body: &Value) -> Reply {
        self.agent.post(&format!("/git/{route}"), body)
    }

    fn done(&self, route: &str, body: &Value) {
        let reply = self.post(route, body);
        assert!(
            matches!(reply.status, 200 | 201),
            "{route} {body}: {}",
            String::from_utf8_lossy(&reply.body)
        );
    }

    fn refused(&self, route: &str, body: &Value, status: u16, code: &str) {
        assert_eq!(self.post(route, body).refusal(), (status, code.to_owned()), "{route} {body}");
    }

    fn remove_branch(&self, body: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        self.agent.request("DELETE", "/git/branches", &headers, body.to_string().as_bytes())
    }

    fn get(&self, route: &str, path: &str) -> Reply {
        self.agent.get(&format!("/git/{route}?path={}", encoded(path)))
    }

    fn status(&self, path: &str) -> GitStatus {
        self.get("status", path).json()
    }

    /// Clones `one.git` with the password.
    fn clone(&self, path: &str) {
        let url = format!("{}/private/one.git", self.url);
        self.done("clone", &json!({ "url": url, "path": path, "username": USER, "password": PASSWORD }));
    }

    fn requested(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn git_in(directory: &Path, words: &str) -> String {
    let output = Command::new("git")
        .args(words.split(' '))
        .current_dir(directory)
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("run git");
    assert!(output.status.success(), "git {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Every file below a folder that holds `text`.
fn files_with(folder: &Path, text: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("list").flatten() {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files_with(&entry.path(), text, found);
        } else if kind.is_file() {
            let content = fs::read(entry.path()).expect("read");
            if content.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(entry.path());
            }
        }
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).expect("write a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).expect("make it executable");
}

/// Puts spies into every place where git may start a program of its user's: each notes what it can see of its environment,
/// its descriptors and its parent. `git` itself is one, too.
fn bug(command: &mut Command, home: &Path) {
    let bin = home.join("bin");
    let seen = home.join("seen");
    let hooks = home.join("template/hooks");
    for folder in [&bin, &seen, &hooks] {
        fs::create_dir_all(folder).expect("create");
    }
    let seen = seen.display();
    let watch = format!(
        "out={seen}/$(basename \"$0\").$$\n\
         {{ env; tr '\\0' '\\n' </proc/$PPID/environ; tr '\\0' ' ' </proc/$PPID/cmdline\n\
         for fd in /proc/$$/fd/* /proc/$PPID/fd/*; do at=$(readlink $fd); echo \"$fd $at\"\n\
         case $at in *memfd*) cat $fd;; esac; done; }} >$out 2>/dev/null\n"
    );
    for name in ["filter", "fsmonitor", "gpg", "refs"] {
        script(&bin.join(name), &format!("{watch}case $0 in */filter) exec cat;; esac\n"));
    }
    // Names nobody, so that git goes on to ask elsewhere.
    script(&bin.join("helper"), &watch);
    for hook in
        ["post-checkout", "post-merge", "pre-push", "pre-commit", "post-commit", "reference-transaction"]
    {
        script(&hooks.join(hook), &watch);
    }
    let git = format!(
        "out={seen}/arguments.$$\n{{ printf '%s\\n' \"$@\"; env; }} >$out\nexec /usr/bin/git \"$@\"\n"
    );
    script(&bin.join("git"), &git);
    let settings = format!(
        "[init]\n templateDir = {home}/template\n[filter \"spy\"]\n smudge = {home}/bin/filter\n clean = {home}/bin/filter\n\
         [core]\n attributesFile = {home}/attributes\n fsmonitor = {home}/bin/fsmonitor\n alternateRefsCommand = {home}/bin/refs\n askPass = {home}/bin/helper\n\
         [credential]\n helper = {home}/bin/helper\n[gpg]\n program = {home}/bin/gpg\n[commit]\n gpgSign = true\n[push]\n gpgSign = if-asked\n[gc]\n auto = 1\n",
        home = home.display()
    );
    fs::write(home.join(".gitconfig"), settings).expect("write settings");
    fs::write(home.join("attributes"), "* filter=spy\n").expect("write attributes");
    command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()));
}

#[test]
fn a_password_is_seen_by_nobody_but_the_remote() {
    let scene = Scene::prepared(bug);
    let home = scene.agent.work().parent().expect("a home").to_owned();
    let seen = |name: &str| -> usize {
        let names = fs::read_dir(home.join("seen")).expect("list").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(name)).count()
    };
    let url = format!("http://{USER}:{}@{}/private/one.git", PASSWORD.replace('/', "%2F"), &scene.url[7..]);
    let with = |mut body: Value| {
        body["username"] = json!(USER);
        body["password"] = json!(PASSWORD);
        body
    };
    scene.done("clone", &json!({ "url": url, "path": "in-address" }));
    scene.clone("r");
    assert_eq!(scene.read("r/a.txt"), "one");
    assert!(seen("filter.") >= 2, "the filters did not run: they would prove nothing");
    assert!(seen("arguments.") >= 2, "the program that notes its arguments did not run");
    scene.write("r/a.txt", "two");
    scene.done("add", &json!({ "path": "r", "files": ["."] }));
    scene.done("commit", &json!({ "path": "r", "message": "second", "author": "A", "email": "a@b.c" }));
    scene.done("push", &with(json!({ "path": "r" })));
    assert_eq!(scene.git("served/one.git", "show main:a.txt"), "two");
    let filtered = seen("filter.");
    scene.done("pull", &with(json!({ "path": "in-address" })));
    assert_eq!(scene.read("in-address/a.txt"), "two");
    assert!(seen("filter.") > filtered, "the merge did not run the filter");
    let fresh = json!({ "path": "fresh" });
    scene.done("init", &fresh);
    scene.done("remotes", &json!({ "path": "fresh", "name": "origin", "url": url, "fetch": true }));
    assert_eq!(scene.look("fresh", "rev-parse origin/main"), scene.look("r", "rev-parse HEAD"));
    // A remote that sends elsewhere does not take the password along.
    let away = format!("{}/away/one.git", scene.url);
    scene.refused("clone", &with(json!({ "url": away, "path": "away" })), 401, "GIT_AUTH_FAILED");
    eventually("it was sent elsewhere", || {
        scene.requested().iter().any(|line| line.starts_with("localhost:"))
    });
    let told: Vec<String> = scene
        .requested()
        .into_iter()
        .filter(|line| line.starts_with("localhost:") && !line.ends_with(" nothing"))
        .collect();
    assert_eq!(told, Vec::<String>::new());
    for name in ["helper", "fsmonitor", "gpg", "refs", "post-", "pre-", "reference-transaction"] {
        assert_eq!(seen(name), 0, "{name} ran");
    }
    let mut found = Vec::new();
    for text in [PASSWORD, "s3cr3t"] {
        files_with(&home, text, &mut found);
    }
    assert_eq!(found, Vec::<PathBuf>::new());
    // Without a password of the request the user's own helpers count.
    let private = format!("{}/private/one.git", scene.url);
    scene.refused("clone", &json!({ "url": private, "path": "no" }), 401, "GIT_AUTH_FAILED");
    assert!(seen("helper") > 0, "the configured helper was not asked");
    let wrong = with(json!({ "url": format!("{}/private/none.git", scene.url), "path": "no" }));
    let reply = scene.post("clone", &wrong);
    assert_eq!(reply.refusal(), (404, "GIT_REPO_NOT_FOUND".to_owned()));
    assert!(!String::from_utf8_lossy(&reply.body).contains("s3cr3t"));
}

#[test]
fn stored_credentials_are_used_where_none_are_given() {
    let scene = Scene::new();
    let host = &scene.url[7..];
    let pair = json!({ "username": USER, "password": PASSWORD, "host": host, "protocol": "http" });
    scene.done("credentials", &pair);
    let home = scene.agent.work().parent().expect("a home").to_owned();
    let mode = fs::metadata(home.join(".git-credentials")).expect("the store").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    scene.done("clone", &json!({ "url": format!("{}/private/one.git", scene.url), "path": "r" }));
    assert_eq!(scene.read("r/a.txt"), "one");
    for wrong in [
        json!({ "username": "", "password": "x" }),
        json!({ "username": "a\nhost=b", "password": "x" }),
        json!({ "username": "a", "password": "x", "host": "a b" }),
        json!({ "username": "a", "password": "x", "protocol": "ssh" }),
    ] {
        scene.refused("credentials", &wrong, 400, "BAD_REQUEST");
    }
}

#[test]
fn clones_are_whole_or_not_there() {
    let scene = Scene::new();
    let first = scene.git("seed", "rev-parse main");
    scene.git("seed", "checkout -q -b side");
    scene.put("seed/b.txt", "two");
    scene.git("seed", "add .");
    scene.commit("seed", "second");
    scene.git("seed", "push -q origin side");
    scene.git("", "init -q --bare served/empty.git");
    let open = format!("{}/open/one.git", scene.url);
    scene.done("clone", &json!({ "url": open, "path": "deep/down/r" }));
    assert_eq!(scene.read("deep/down/r/a.txt"), "one");
    scene.done("clone", &json!({ "url": open, "path": "side", "branch": "side" }));
    assert_eq!(scene.read("side/b.txt"), "two");
    scene.done("clone", &json!({ "url": open, "path": "shallow", "branch": "side", "depth": 1 }));
    assert_eq!(scene.look("shallow", "rev-list --count HEAD"), "1");
    let second = scene.git("seed", "rev-parse side");
    scene.git("served/one.git", "config uploadpack.allowAnySHA1InWant true");
    // On another branch than the one that is cloned.
    scene.done("clone", &json!({ "url": open, "path": "commit", "commit_id": second }));
    assert_eq!(
        (scene.look("commit", "rev-parse HEAD"), scene.read("commit/b.txt")),
        (second, "two".to_owned())
    );
    assert!(scene.status("commit").detached);
    fs::create_dir(scene.work("empty")).expect("create");
    scene.done("clone", &json!({ "url": open, "path": "empty", "commit_id": first }));
    assert_eq!(scene.read("empty/a.txt"), "one");
    fs::create_dir(scene.work("stays")).expect("create");
    let none = "0".repeat(40);
    let url = |path: &str| format!("{}/{path}", scene.url);
    for (body, status, code) in [
        (json!({ "url": url("open/none.git") }), 404, "GIT_REPO_NOT_FOUND"),
        (json!({ "url": url("open/empty.git") }), 404, "NOT_FOUND"),
        (json!({ "url": open, "branch": "none" }), 404, "GIT_BRANCH_NOT_FOUND"),
        (json!({ "url": open, "commit_id": none }), 404, "GIT_BRANCH_NOT_FOUND"),
        (json!({ "url": open, "commit_id": "none" }), 404, "GIT_BRANCH_NOT_FOUND"),
        (json!({ "url": url("private/one.git") }), 401, "GIT_AUTH_FAILED"),
        (
            json!({ "url": url("private/one.git"), "username": USER, "password": "no" }),
            401,
            "GIT_AUTH_FAILED",
        ),
        (
            json!({ "url": url("forbidden/one.git"), "username": USER, "password": PASSWORD }),
            403,
            "FORBIDDEN",
        ),
        (json!({ "url": url("broken/one.git") }), 502, "GIT_TRANSPORT_FAILED"),
        (json!({ "url": "http://127.0.0.1:9/one.git" }), 502, "GIT_TRANSPORT_FAILED"),
        (json!({ "url": "/nonexistent/one.git" }), 404, "GIT_REPO_NOT_FOUND"),
        (json!({ "url": "--upload-pack=touch /tmp/x" }), 400, "BAD_REQUEST"),
        (json!({ "url": "ext::sh -c true" }), 400, "BAD_REQUEST"),
        (json!({ "url": open, "branch": "--mirror" }), 400, "BAD_REQUEST"),
        (json!({ "url": open, "depth": -1 }), 400, "BAD_REQUEST"),
        (json!({ "url": open, "depth": i64::MAX }), 400, "BAD_REQUEST"),
    ] {
        for path in ["gone", "stays"] {
            let mut body = body.clone();
            body["path"] = json!(path);
            scene.refused("clone", &body, status, code);
        }
    }
    assert!(!scene.work("gone").exists());
    assert_eq!(fs::read_dir(scene.work("stays")).expect("list").count(), 0);
    scene.refused("clone", &json!({ "url": open, "path": "side" }), 409, "CONFLICT");
    assert_eq!(scene.read("side/b.txt"), "two");
}

#[test]
fn a_caller_that_leaves_takes_its_clone_along() {
    let scene = Scene::new();
    let body = json!({ "url": format!("{}/silent/one.git", scene.url), "path": "r" }).to_string();
    let mut stream = scene.agent.connect();
    let head = format!(
        "POST /git/clone HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("send");
    eventually("the remote is asked", || scene.requested().iter().any(|line| line.contains("/silent/")));
    assert!(scene.work("r").exists());
    assert!(!scene.agent.descendants_with("git").is_empty());
    // Nobody else can use the place meanwhile.
    let again = json!({ "url": format!("{}/open/one.git", scene.url), "path": "r" });
    scene.refused("clone", &again, 409, "CONFLICT");
    drop(stream);
    eventually("git is gone", || scene.agent.descendants_with("git").is_empty());
    eventually("the place is free", || {
        !scene.work("r").exists() && scene.post("clone", &again).status == 200
    });
    assert_eq!(scene.read("r/a.txt"), "one");
}

#[test]
fn changes_are_staged_committed_and_told() {
    let scene = Scene::new();
    scene.clone("r");
    scene.write("r/a.txt", "changed");
    scene.write("r/new/-dash *[x]\n\u{fc}.txt", "new");
    scene.write("r/other.txt", "other");
    let state = |status: &GitStatus| -> BTreeMap<String, (GitFileState, GitFileState)> {
        status.file_status.iter().map(|file| (file.name.clone(), (file.staging, file.worktree))).collect()
    };
    use GitFileState::{Added, Modified, Renamed, Unmerged, Unmodified, Untracked};
    let strange = "new/-dash *[x]\n\u{fc}.txt";
    let expected = [
        ("a.txt", (Unmodified, Modified)),
        (strange, (Untracked, Untracked)),
        ("other.txt", (Untracked, Untracked)),
    ];
    let expected = BTreeMap::from(expected.map(|(name, states)| (name.to_owned(), states)));
    assert_eq!(state(&scene.status("r")), expected);
    // Paths are words, not patterns.
    scene.refused("add", &json!({ "path": "r", "files": ["*.txt"] }), 404, "FILE_NOT_FOUND");
    scene.refused("add", &json!({ "path": "r", "files": ["../seed"] }), 400, "INVALID_FILE_PATH");
    scene.refused("add", &json!({ "path": "r", "files": [] }), 400, "BAD_REQUEST");
    scene.done("add", &json!({ "path": "r", "files": [strange] }));
    assert_eq!(scene.look("r", "diff --cached --name-only -z"), format!("{strange}\0"));
    let commit = |body: Value| scene.post("commit", &body);
    let mut body =
        json!({ "path": "r", "message": "one\n\n# two \u{fc}", "author": "Ann", "email": "ann@example.com" });
    let reply = commit(body.clone());
    assert_eq!(reply.json::<GitCommitResponse>().hash, scene.look("r", "rev-parse HEAD"));
    assert_eq!(scene.look("r", "show --name-only --format= -z HEAD"), format!("{strange}\0"));
    assert_eq!(
        scene.look("r", "log -1 --format=%an|%ae|%cn|%ce|%B"),
        "Ann|ann@example.com|Ann|ann@example.com|one\n\n# two \u{fc}"
    );
    assert_eq!(commit(body.clone()).refusal(), (409, "CONFLICT".to_owned()));
    body["allow_empty"] = json!(true);
    assert_eq!(commit(body.clone()).status, 200);
    for (field, wrong) in
        [("message", " "), ("author", ""), ("email", ""), ("author", "a\nb"), ("author", "<>")]
    {
        let mut body = body.clone();
        body[field] = json!(wrong);
        assert_eq!(commit(body).refusal(), (400, "BAD_REQUEST".to_owned()), "{field}");
    }
    let history: Vec<GitCommitInfo> = scene.get("history", "r").json();
    let told: Vec<(&str, &str)> =
        history.iter().map(|commit| (commit.message.as_str(), commit.author.as_str())).collect();
    assert_eq!(told, [("one\n\n# two \u{fc}", "Ann"), ("one\n\n# two \u{fc}", "Ann"), ("first", "Seed")]);
    assert_eq!(history[0].timestamp, scene.look("r", "log -1 --format=%aI"));
    let status = scene.status("r");
    assert_eq!((status.ahead, status.behind, status.branch_published), (2, 0, true));
    assert_eq!((status.current_branch.as_str(), status.upstream.as_deref()), ("main", Some("origin/main")));
    // Renamed, and in conflict.
    scene.done("reset", &json!({ "path": "r", "mode": "hard" }));
    scene.look("r", "mv a.txt b.txt");
    let renamed = scene.status("r");
    let renamed = renamed.file_status.iter().find(|file| file.name == "b.txt").expect("a renamed file");
    assert_eq!((renamed.extra.as_str(), renamed.staging, renamed.worktree), ("a.txt", Renamed, Unmodified));
    scene.done("reset", &json!({ "path": "r", "mode": "hard" }));
    for (branch, text) in [("left", "l"), ("right", "r")] {
        scene.done("checkout", &json!({ "path": "r", "branch": "main" }));
        scene.done("branches", &json!({ "path": "r", "name": branch }));
        scene.write("r/a.txt", text);
        scene.done("add", &json!({ "path": "r", "files": ["a.txt"] }));
        body["message"] = json!(branch);
        assert_eq!(commit(body.clone()).status, 200);
    }
    let merge = Command::new("git")
        .args(["-C", scene.work("r").to_str().expect("UTF-8"), "merge", "-q", "left"])
        .output();
    assert!(!merge.expect("run git").status.success(), "the branches do not conflict");
    assert_eq!(state(&scene.status("r")).get("a.txt"), Some(&(Unmerged, Unmerged)));
    assert_eq!(commit(body).refusal(), (409, "GIT_MERGE_CONFLICT".to_owned()));
    scene.refused("checkout", &json!({ "path": "r", "branch": "main" }), 409, "GIT_MERGE_CONFLICT");
    scene.done("reset", &json!({ "path": "r", "mode": "merge" }));
    scene.write("r/c.txt", "c");
    scene.done("add", &json!({ "path": "r", "files": ["c.txt"] }));
    assert_eq!(state(&scene.status("r")).get("c.txt"), Some(&(Added, Unmodified)));
}

#[test]
fn branches_come_and_go() {
    let scene = Scene::new();
    scene.clone("r");
    let names = |path: &str| -> (Vec<String>, Option<String>) {
        let list: ListBranchResponse = scene.get("branches", path).json();
        (list.branches, list.current)
    };
    scene.done("branches", &json!({ "path": "r", "name": "feature/x" }));
    assert_eq!(names("r"), (vec!["feature/x".to_owned(), "main".to_owned()], Some("feature/x".to_owned())));
    assert_eq!(scene.look("r", "symbolic-ref HEAD"), "refs/heads/feature/x");
    scene.refused("branches", &json!({ "path": "r", "name": "main" }), 409, "GIT_BRANCH_EXISTS");
    scene.refused("branches", &json!({ "path": "r", "name": "-d" }), 400, "BAD_REQUEST");
    scene.refused("checkout", &json!({ "path": "r", "branch": "--orphan" }), 400, "BAD_REQUEST");
    scene.refused("checkout", &json!({ "path": "r", "branch": "none" }), 404, "GIT_BRANCH_NOT_FOUND");
    let branch = json!({ "path": "r", "name": "feature/x" });
    // It is checked out.
    assert_eq!(scene.remove_branch(&branch).refusal(), (409, "CONFLICT".to_owned()));
    scene.write("r/b.txt", "b");
    scene.done("add", &json!({ "path": "r", "files": ["."] }));
    scene.done("commit", &json!({ "path": "r", "message": "m", "author": "A", "email": "a@b.c" }));
    let commit = scene.look("r", "rev-parse HEAD");
    scene.done("checkout", &json!({ "path": "r", "branch": "main" }));
    assert!(!scene.work("r/b.txt").exists());
    // Not merged anywhere.
    assert_eq!(scene.remove_branch(&branch).status, 204);
    assert_eq!(names("r"), (vec!["main".to_owned()], Some("main".to_owned())));
    assert_eq!(scene.remove_branch(&branch).refusal(), (404, "GIT_BRANCH_NOT_FOUND".to_owned()));
    scene.done("checkout", &json!({ "path": "r", "branch": commit }));
    assert_eq!((scene.look("r", "rev-parse HEAD"), names("r").1), (commit, None));
    scene.refused("push", &json!({ "path": "r" }), 404, "NOT_FOUND");
    scene.write("r/b.txt", "in the way");
    scene.refused("checkout", &json!({ "path": "r", "branch": "main" }), 409, "GIT_DIRTY_WORKTREE");
    assert_eq!(scene.read("r/b.txt"), "in the way");
}

#[test]
fn what_was_changed_is_undone() {
    let scene = Scene::new();
    scene.clone("r");
    let staged = || scene.look("r", "diff --cached --name-only");
    let add = || scene.done("add", &json!({ "path": "r", "files": ["."] }));
    scene.write("r/a.txt", "two");
    add();
    scene.done("restore", &json!({ "path": "r", "files": ["a.txt"], "staged": true }));
    assert_eq!((staged(), scene.read("r/a.txt")), (String::new(), "two".to_owned()));
    scene.done("restore", &json!({ "path": "r", "files": ["a.txt"] }));
    assert_eq!(scene.read("r/a.txt"), "one");
    scene.write("r/a.txt", "three");
    scene.write("r/dir/b.txt", "new");
    add();
    scene.done("reset", &json!({ "path": "r", "files": ["dir"] }));
    assert_eq!(staged(), "a.txt");
    scene.done("commit", &json!({ "path": "r", "message": "m", "author": "A", "email": "a@b.c" }));
    scene.done(
        "restore",
        &json!({ "path": "r", "files": ["."], "staged": true, "worktree": true, "source": "HEAD~1" }),
    );
    assert_eq!((staged(), scene.read("r/a.txt")), ("a.txt".to_owned(), "one".to_owned()));
    scene.done("reset", &json!({ "path": "r", "mode": "soft", "target": "HEAD~1" }));
    assert_eq!(scene.look("r", "rev-list --count HEAD"), "1");
    scene.write("r/a.txt", "four");
    scene.done("reset", &json!({ "path": "r", "mode": "hard" }));
    assert_eq!(scene.read("r/a.txt"), "one");
    for (route, body, status, code) in [
        ("reset", json!({ "mode": "gentle" }), 400, "BAD_REQUEST"),
        ("reset", json!({ "mode": "hard", "files": ["a.txt"] }), 400, "BAD_REQUEST"),
        ("reset", json!({ "target": "none" }), 404, "GIT_BRANCH_NOT_FOUND"),
        ("reset", json!({ "target": "--hard" }), 400, "BAD_REQUEST"),
        ("restore", json!({ "files": ["none"] }), 404, "FILE_NOT_FOUND"),
        ("restore", json!({ "files": ["a.txt"], "source": "none" }), 404, "GIT_BRANCH_NOT_FOUND"),
        ("restore", json!({ "files": ["a.txt"], "staged": false }), 400, "BAD_REQUEST"),
        ("restore", json!({ "files": [] }), 400, "BAD_REQUEST"),
    ] {
        let mut body = body;
        body["path"] = json!("r");
        scene.refused(route, &body, status, code);
    }
    // Before the first commit there is nothing to go back to, but what is staged can be unstaged.
    scene.done("init", &json!({ "path": "fresh" }));
    scene.write("fresh/a.txt", "a");
    scene.done("add", &json!({ "path": "fresh", "files": ["a.txt"] }));
    scene.done("restore", &json!({ "path": "fresh", "files": ["a.txt"], "staged": true }));
    assert_eq!((scene.look("fresh", "ls-files"), scene.read("fresh/a.txt")), (String::new(), "a".to_owned()));
}

#[test]
fn commits_go_to_and_come_from_remotes() {
    let scene = Scene::new();
    scene.clone("r");
    scene.done("clone", &json!({ "url": format!("{}/open/one.git", scene.url), "path": "reader" }));
    let with = |mut body: Value| {
        body["username"] = json!(USER);
        body["password"] = json!(PASSWORD);
        body
    };
    let commit = |name: &str| {
        scene.write(&format!("r/{name}"), name);
        scene.done("add", &json!({ "path": "r", "files": [name] }));
        scene.done("commit", &json!({ "path": "r", "message": name, "author": "A", "email": "a@b.c" }));
    };
    commit("b.txt");
    scene.refused("push", &json!({ "path": "r" }), 401, "GIT_AUTH_FAILED");
    scene.refused("push", &with(json!({ "path": "r", "remote": "none" })), 404, "NOT_FOUND");
    scene.refused("push", &with(json!({ "path": "r", "branch": "none" })), 404, "GIT_BRANCH_NOT_FOUND");
    scene.refused("push", &with(json!({ "path": "r", "remote": "--all" })), 400, "BAD_REQUEST");
    for _ in 0..2 {
        scene.done("push", &with(json!({ "path": "r" })));
        assert_eq!(scene.git("served/one.git", "rev-parse main"), scene.look("r", "rev-parse main"));
        scene.done("pull", &json!({ "path": "reader" }));
        assert_eq!(scene.read("reader/b.txt"), "b.txt");
    }
    scene.refused("pull", &json!({ "path": "reader", "branch": "none" }), 404, "GIT_BRANCH_NOT_FOUND");
    scene.done("branches", &json!({ "path": "r", "name": "topic" }));
    commit("c.txt");
    assert_eq!(scene.status("r").upstream, None);
    scene.done("push", &with(json!({ "path": "r", "set_upstream": true })));
    let status = scene.status("r");
    assert_eq!((status.upstream.as_deref(), status.branch_published), (Some("origin/topic"), true));
    scene.done("pull", &json!({ "path": "reader", "branch": "topic" }));
    assert_eq!(scene.read("reader/c.txt"), "c.txt");
    // The other side has gone another way.
    scene.git("seed", "pull -q origin main");
    scene.put("seed/d.txt", "d");
    scene.git("seed", "add .");
    scene.commit("seed", "other");
    scene.git("seed", "push -q origin main");
    scene.done("checkout", &json!({ "path": "r", "branch": "main" }));
    commit("e.txt");
    scene.refused("push", &with(json!({ "path": "r" })), 409, "GIT_PUSH_REJECTED");
    scene.refused("pull", &with(json!({ "path": "r" })), 409, "GIT_MERGE_CONFLICT");
    assert_eq!(scene.read("r/e.txt"), "e.txt");
    scene.done("reset", &json!({ "path": "r", "mode": "hard", "target": "HEAD~1" }));
    scene.write("r/d.txt", "in the way");
    scene.refused("pull", &with(json!({ "path": "r" })), 409, "GIT_DIRTY_WORKTREE");
    // The remote's own rules.
    script(&scene.elsewhere.path().join("served/one.git/hooks/pre-receive"), "exit 1\n");
    fs::remove_file(scene.work("r/d.txt")).expect("remove");
    scene.done("pull", &with(json!({ "path": "r" })));
    commit("f.txt");
    scene.refused("push", &with(json!({ "path": "r" })), 422, "GIT_REMOTE_REJECTED");
}

#[test]
fn settings_and_remotes_are_kept_where_they_belong() {
    let scene = Scene::new();
    scene.done("init", &json!({ "path": "r", "initial_branch": "trunk" }));
    assert_eq!(scene.look("r", "symbolic-ref HEAD"), "refs/heads/trunk");
    scene.refused("init", &json!({ "path": "r" }), 409, "CONFLICT");
    scene.refused("init", &json!({ "path": "x", "initial_branch": "-x" }), 400, "BAD_REQUEST");
    scene.done("init", &json!({ "path": "b.git", "bare": true }));
    assert_eq!(scene.look("b.git", "rev-parse --is-bare-repository"), "true");
    scene.refused("init", &json!({ "path": "b.git", "bare": true }), 409, "CONFLICT");
    scene.refused("add", &json!({ "path": "b.git", "files": ["."] }), 400, "BAD_REQUEST");
    let list: ListBranchResponse = scene.get("branches", "r").json();
    assert_eq!((list.branches.len(), list.current.as_deref()), (0, Some("trunk")));
    assert_eq!(scene.get("history", "r").json::<Vec<GitCommitInfo>>().len(), 0);
    assert_eq!(scene.status("r").current_branch, "trunk");
    // A folder of a repository is none, and neither is what is not there or no folder.
    fs::create_dir(scene.work("r/inside")).expect("create");
    scene.write("file", "");
    for path in ["r/inside", "none", "file", "."] {
        for route in ["status", "branches", "history", "remotes"] {
            assert_eq!(
                scene.get(route, path).refusal(),
                (404, "GIT_REPO_NOT_FOUND".to_owned()),
                "{route} {path}"
            );
        }
    }
    let get = |query: &str| -> Option<String> {
        scene.agent.get(&format!("/git/config?{query}")).json::<GitConfigResponse>().value
    };
    assert_eq!(get("key=user.name&scope=local&path=r"), None);
    scene.done(
        "config/user",
        &json!({ "name": "Bo \u{fc}", "email": "bo@example.com", "scope": "local", "path": "r" }),
    );
    assert_eq!(scene.look("r", "config --local user.name"), "Bo \u{fc}");
    assert_eq!(get("key=user.email&scope=local&path=r").as_deref(), Some("bo@example.com"));
    scene.done("config", &json!({ "key": "user.name", "value": "-Global\nname" }));
    assert_eq!(get("key=user.name").as_deref(), Some("-Global\nname"));
    assert!(fs::read_to_string(scene.agent.work().join("../.gitconfig")).expect("read").contains("-Global"));
    for wrong in ["key=user", "key=--list", "key=user.name&scope=local", "key=user.name&scope=worktree"] {
        let reply = scene.agent.get(&format!("/git/config?{wrong}"));
        assert_eq!(reply.refusal(), (400, "BAD_REQUEST".to_owned()), "{wrong}");
    }
    let outside = scene.agent.get("/git/config?key=user.name&scope=local&path=.");
    assert_eq!(outside.refusal(), (404, "GIT_REPO_NOT_FOUND".to_owned()));
    let remotes = || -> Vec<(String, String)> {
        let list: ListRemotesResponse = scene.get("remotes", "r").json();
        list.remotes.into_iter().map(|remote| (remote.name, remote.url)).collect()
    };
    assert_eq!(remotes(), []);
    let remote = json!({ "path": "r", "name": "up", "url": "https://user:hidden@example.com/a" });
    scene.done("remotes", &remote);
    let shown = ("up".to_owned(), "https://user@example.com/a".to_owned());
    assert_eq!(remotes(), std::slice::from_ref(&shown));
    assert!(!scene.read("r/.git/config").contains("hidden"));
    scene.refused("remotes", &remote, 409, "CONFLICT");
    // One that somebody wrote there is not shown either.
    scene.look("r", "remote set-url up https://user:hidden@example.com/a");
    assert_eq!(remotes(), [shown]);
    let url = format!("{}/open/one.git", scene.url);
    scene
        .done("remotes", &json!({ "path": "r", "name": "up", "url": url, "overwrite": true, "fetch": true }));
    assert_eq!(scene.look("r", "rev-parse up/main"), scene.git("seed", "rev-parse main"));
    let broken =
        json!({ "path": "r", "name": "bad", "url": format!("{}/open/none.git", scene.url), "fetch": true });
    scene.refused("remotes", &broken, 404, "GIT_REPO_NOT_FOUND");
    assert_eq!(remotes().len(), 1);
    scene.refused("remotes", &json!({ "path": "r", "name": "--x", "url": url }), 400, "BAD_REQUEST");
    scene.refused("remotes", &json!({ "path": "r", "name": "x", "url": "--x" }), 400, "BAD_REQUEST");
}

#[test]
fn without_git_the_remedy_is_named() {
    let agent = Agent::start_prepared(None, |command, _| {
        command.env("PATH", "/nonexistent");
    });
    let reply = agent.post("/git/init", &json!({ "path": "r" }));
    assert_eq!(reply.refusal(), (503, "GIT_NOT_INSTALLED".to_owned()));
    assert!(String::from_utf8_lossy(&reply.body).contains("apt-get install git"));
}
