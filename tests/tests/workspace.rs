//! Workspaces from outside: shared, lasting, kept to their quota, and no way to the host.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use sandhaus_client::wire::{FsList, FsRead, SessionInfo, WorkspaceInfo, WorkspaceList};
use sandhaus_tests::{
    binary,
    http::{Answer, Http},
    probe,
    server::{DataDir, Options, Server, with_configured_server, with_server},
    session::{Session, base64, from_base64},
    settles,
};
use serde_json::{Value, json};

/// First id of everything on disk in a workspace.
const ID_BASE: u32 = 0x3fff_0000;

/// Exchanges of two names that an attack makes at least.
const EXCHANGES: usize = 20_000;

/// Calls into the midst of them.
const CALLS: usize = 300;

/// Bytes of a small quota: as few as a file system of its own makes sense for.
const QUOTA: usize = 16 << 20;

fn enabled() -> Options {
    configured("workspace: {enabled: true}\n")
}

fn configured(config: &str) -> Options {
    Options { config: Some(config.to_owned()), ..Options::default() }
}

fn route(workspace: &str, rest: &str) -> String {
    format!("/v1/workspaces/{workspace}{rest}")
}

fn write(http: &Http, workspace: &str, path: &str, content: &[u8]) -> Answer {
    http.post(&route(workspace, "/fs/write"), &json!({"path": path, "content_base64": base64(content)}))
}

fn read(http: &Http, workspace: &str, path: &str) -> Answer {
    http.get(&route(workspace, &format!("/fs/read?path={path}")))
}

fn content(answer: Answer) -> Vec<u8> {
    from_base64(&answer.expect(200).json::<FsRead>().content_base64)
}

fn list(http: &Http) -> Vec<WorkspaceInfo> {
    http.get("/v1/workspaces").expect(200).json::<WorkspaceList>().workspaces
}

fn show(http: &Http, workspace: &str, security: &str) -> Session {
    Session::create(http, &json!({"workspace_id": workspace, "security": security}))
}

fn files(server: &Server, workspace: &str) -> PathBuf {
    server.data_dir().join("workspaces").join(workspace).join("files")
}

#[test]
fn sessions_of_both_profiles_share_a_workspace_and_it_outlives_them() {
    with_configured_server("sessions_share", &enabled(), |server| {
        let http = server.http();
        let (strict, container) = (show(&http, "team", "strict"), show(&http, "team", "container"));
        assert_eq!(strict.info().workspace_id.as_deref(), Some("team"));
        strict.output("echo of strict > one; mkdir -m 700 dir");
        container.output("echo of container > dir/two; echo more >> one");
        assert_eq!(
            strict.output("cat one dir/two; stat -c %U one dir/two"),
            "of strict\nmore\nof container\nsandbox\nsandbox"
        );
        assert_eq!(container.output("stat -c %u:%g one"), "0:0");
        // An id that one gives is the same id in the other.
        container.output("chown 33:44 one");
        assert_eq!(strict.output("stat -c %u:%g one"), "33:44");
        let listed = list(&http);
        let counted = (listed[0].session_count, listed[0].active_session_count);
        assert_eq!((listed.len(), listed[0].id.as_str(), counted), (1, "team", (2, 2)));
        assert!(listed[0].created_at.starts_with("20") && listed[0].used_bytes > Some(0), "{listed:?}");

        http.post(&strict.route("/stop"), &json!({})).expect(200);
        assert_eq!((list(&http)[0].session_count, list(&http)[0].active_session_count), (2, 1));
        strict.delete();
        container.delete();
        assert_eq!(content(read(&http, "team", "dir/two")), b"of container\n");
        let later = show(&http, "sandkasten-ws-team", "strict");
        assert_eq!(later.output("cat dir/two"), "of container");
        later.delete();
        http.delete(&route("team", "")).expect(200);
        assert_eq!(list(&http), []);
    });
}

#[test]
fn a_workspace_outlives_a_killed_server() {
    if !sandhaus_tests::runnable("a_workspace_outlives_a_killed_server") {
        return;
    }
    let dir = DataDir::new();
    let options = configured("workspace: {enabled: true, quota_mb: 16}\n");
    let server = Server::start_with(&dir, &options);
    let session = show(&server.http(), "lasting", "strict");
    write(&server.http(), "lasting", "from/outside", b"outside").expect(200);
    session.output("echo inside > from/inside; exec 3> open; (sleep 1000 >&3 &) ");
    server.kill();
    let server = Server::start_with(&dir, &options);
    let http = server.http();
    let session = Session::at(&http, &session.id);
    assert_eq!(session.output("cat from/outside from/inside; echo again > from/again"), "outsideinside");
    assert_eq!(content(read(&http, "lasting", "from/again")), b"again\n", "still one file system");
    assert_eq!(dir.objects().loop_devices.len(), 1, "on one device");
    // Once more, from nothing but the disk.
    http.post(&session.route("/stop"), &json!({})).expect(200);
    settles("an end of the device", || dir.objects().loop_devices.is_empty());
    http.post(&session.route("/start"), &json!({})).expect(200);
    assert_eq!(session.output("cat from/again"), "again");
    session.delete();
    http.delete(&route("lasting", "")).expect(200);
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    settles("an end of all", || dir.objects().is_empty());
    assert_eq!(fs_err::read_dir(dir.path().join("workspaces")).expect("there").count(), 0);
}

#[test]
fn a_quota_holds_inside_and_outside() {
    let options = configured("workspace: {enabled: true, quota_mb: 16}\n");
    with_configured_server("a_quota_holds_inside_and_outside", &options, |server| {
        let http = server.http();
        let session = show(&http, "small", "strict");
        assert_eq!(session.output("ls -A"), "", "nothing is in a new one");
        let full = session.exec("head -c 20M /dev/zero > large");
        assert_ne!(full.exit_code, 0);
        assert!(full.output.contains("No space left on device"), "{}", full.output);
        let refused = write(&http, "small", "file", &vec![7; 1 << 20]).expect(507);
        assert_eq!(refused.error_code(), "WORKSPACE_FULL");
        assert!(refused.text().contains("16 MiB"), "{}", refused.text());
        assert_eq!(session.output("rm large; ls -A"), "", "what did not fit left nothing");
        let put = |bytes: usize| http.send("PUT", &route("small", "/fs/raw?path=file"), "", &vec![7; bytes]);
        assert_eq!(put(QUOTA).expect(507).error_code(), "WORKSPACE_FULL");
        put(QUOTA / 2).expect(200);
        assert_eq!(session.output("stat -c %s file"), (QUOTA / 2).to_string());
        let listed = &list(&http)[0];
        assert_eq!(listed.quota_bytes, Some(QUOTA as u64));
        assert!(listed.used_bytes >= Some(QUOTA as u64 / 2), "{listed:?}");
        // Another workspace has room of its own.
        write(&http, "other", "file", &vec![7; 1 << 20]).expect(200);
        session.delete();
        for workspace in ["small", "other"] {
            http.delete(&route(workspace, "")).expect(200);
        }
        let left = || sandhaus_tests::kernel::KernelObjects::of(server.data_dir(), None).loop_devices;
        settles("an end of the devices", || left().is_empty());
    });
}

#[test]
fn one_in_use_is_deleted_only_by_force() {
    for config in ["workspace: {enabled: true}\n", "workspace: {enabled: true, quota_mb: 16}\n"] {
        with_configured_server("one_in_use_is_deleted_only_by_force", &configured(config), |server| {
            let http = server.http();
            http.delete(&route("never-was", "")).expect(200);
            let session = show(&http, "used", "container");
            session.output("mkdir -p a/b; echo x > a/b/file");
            let refused = http.delete(&route("used", "")).expect(409);
            assert_eq!(refused.error_code(), "WORKSPACE_IN_USE");
            http.post(&session.route("/stop"), &json!({})).expect(200);
            http.delete(&route("used", "")).expect(409);
            http.post(&session.route("/start"), &json!({})).expect(200);
            assert_eq!(session.output("cat a/b/file; cd a/b"), "x");
            http.delete(&route("used", "?force=true")).expect(200);
            assert_eq!(list(&http), []);
            assert_eq!(session.output("ls -A /workspace"), "", "nothing of it is left to those inside");
            assert_ne!(session.exec("echo x > /workspace/new").exit_code, 0);
            assert_ne!(session.exec("echo x > new").exit_code, 0, "nor where a shell still stands");
            http.post(&session.route("/stop"), &json!({})).expect(200);
            http.post(&session.route("/start"), &json!({})).expect(200);
            session.output("echo fresh > new");
            assert_eq!(content(read(&http, "used", "new")), b"fresh\n", "a start makes a new one");
            session.delete();
            http.delete(&route("used", "")).expect(200);
        });
    }
}

#[test]
fn without_them_the_refusal_names_the_setting() {
    with_server("without_them_the_refusal_names_the_setting", |server| {
        let http = server.http();
        for answer in [
            http.get("/v1/workspaces"),
            http.delete("/v1/workspaces/ab"),
            http.post("/v1/sessions", &json!({"workspace_id": "ab"})),
            write(&http, "ab", "file", b"x"),
            read(&http, "ab", "file"),
        ] {
            let answer = answer.expect(400);
            assert_eq!(answer.error_code(), "INVALID_WORKSPACE");
            assert!(answer.text().contains("workspace.enabled"), "{}", answer.text());
        }
        assert!(!server.data_dir().join("workspaces").exists());
    });
}

#[test]
fn w05_what_is_on_disk_belongs_to_no_user_of_the_host() {
    with_configured_server("w05", &enabled(), |server| {
        let http = server.http();
        write(&http, "owned", "api/file", b"x").expect(200);
        let (strict, container) = (show(&http, "owned", "strict"), show(&http, "owned", "container"));
        strict.output("touch strict; mkdir d; ln -s nowhere link; mkfifo fifo");
        container
            .output("touch container; touch other; chown 33:33 other; cp /bin/true suid; chmod 4755 suid");
        let passwd = fs_err::read_to_string("/etc/passwd").expect("there");
        let known: Vec<u32> =
            passwd.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok()).collect();
        let mut seen = 0;
        let mut folders = vec![files(server, "owned")];
        while let Some(folder) = folders.pop() {
            for path in fs_err::read_dir(&folder).expect("there").map(|entry| entry.expect("there").path()) {
                let status = path.symlink_metadata().expect("there");
                for id in [status.uid(), status.gid()] {
                    assert!((ID_BASE..ID_BASE + 65_536).contains(&id), "{}: {id}", path.display());
                    assert!(!known.contains(&id));
                }
                seen += 1;
                if status.is_dir() {
                    folders.push(path);
                }
            }
        }
        assert_eq!(seen, 9);
        // Nor does a setuid bit make anybody somebody.
        assert!(strict.output("grep ' /workspace ' /proc/self/mountinfo").contains("nosuid,nodev"));
        strict.delete();
        container.delete();
    });
}

/// A folder of the host that nobody may reach from a workspace.
fn victim(server: &Server) -> PathBuf {
    let victim = server.data_dir().with_file_name("victim");
    fs_err::create_dir(&victim).expect("made");
    fs_err::write(victim.join("secret"), "of the host").expect("written");
    victim
}

fn untouched(victim: &Path) {
    let names: Vec<_> =
        fs_err::read_dir(victim).expect("there").map(|entry| entry.expect("there").file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs_err::read_to_string(victim.join("secret")).expect("there"), "of the host");
    assert_eq!(victim.metadata().expect("there").uid(), 0);
}

#[test]
fn w07_a_link_swapped_at_the_right_moment_leads_nowhere() {
    with_configured_server("w07", &enabled(), |server| {
        let http = server.http();
        let victim = victim(server);
        let session = show(&http, "race", "strict");
        let program = fs_err::read(probe::build("swap")).expect("the probe is built");
        http.send("PUT", &route("race", "/fs/raw?path=swap"), "", &program).expect(200);
        session.output(&format!(
            "chmod +x swap; mkdir real; echo inside > real/secret; ln -s {} link; \
             (./swap real link {EXCHANGES} > count 2>&1; echo ended > ended) &",
            victim.display()
        ));
        let mut outcomes = [0_usize; 2];
        for _ in 0..CALLS {
            let answer = read(&http, "race", "real/secret");
            if answer.status == 200 {
                assert_eq!(content(answer), b"inside\n");
                outcomes[0] += 1;
            } else {
                assert!(matches!(answer.status, 403 | 404 | 409), "{}", answer.text());
                outcomes[1] += 1;
            }
            let answer = http.get(&route("race", "/fs?path=real"));
            if answer.status == 200 {
                let names: Vec<String> =
                    answer.json::<FsList>().entries.into_iter().map(|entry| entry.name).collect();
                assert!(names.iter().all(|name| name == "secret" || name == "new"), "{names:?}");
            }
            for answer in
                [write(&http, "race", "real/new", b"x"), http.delete(&route("race", "/fs?path=real/new"))]
            {
                assert!(matches!(answer.status, 200 | 403 | 404 | 409), "{}", answer.text());
            }
        }
        write(&http, "race", "stop", b"").expect(200);
        settles("an end of the swaps", || read(&http, "race", "ended").status == 200);
        let count: usize = session.output("cat count").parse().expect("a number");
        assert!(count >= EXCHANGES);
        assert!(outcomes.iter().all(|outcome| *outcome > 0), "both sides were met: {outcomes:?}");
        untouched(&victim);
        // A link that stands still is refused just so, and removing it removes the link.
        session.output("rm -rf still; ln -s / still");
        assert_eq!(read(&http, "race", "still/etc/passwd").expect(403).error_code(), "FILE_ACCESS_DENIED");
        http.delete(&route("race", "/fs?path=still&recursive=true")).expect(200);
        session.delete();
    });
}

#[test]
fn w08_a_pipe_holds_nobody_up_and_no_read_is_without_bounds() {
    with_configured_server("w08", &enabled(), |server| {
        let http = server.http();
        let session = show(&http, "odd", "container");
        session
            .output("mkfifo pipe; mkdir dir; truncate -s 1T huge; (cat pipe > heard; echo ended > ended) &");
        for path in ["pipe", "dir"] {
            for answer in [read(&http, "odd", path), write(&http, "odd", path, b"x")] {
                assert_eq!(answer.expect(400).error_code(), "INVALID_REQUEST", "{path}");
            }
            let raw = http.get(&route("odd", &format!("/fs/raw?path={path}")));
            assert_eq!(raw.expect(400).error_code(), "INVALID_REQUEST");
        }
        let beginning: FsRead = read(&http, "odd", "huge&max_bytes=10").expect(200).json();
        assert_eq!((from_base64(&beginning.content_base64).len(), beginning.truncated), (10, true));
        assert_eq!(
            read(&http, "odd", "huge&max_bytes=104857601").expect(400).error_code(),
            "INVALID_REQUEST"
        );
        // Nobody has opened the pipe meanwhile, or its reader would have come to an end.
        assert_eq!(
            session.output("ls ended 2>&1 || true; echo x > pipe; wait; cat heard").lines().last(),
            Some("x")
        );
        session.delete();
    });
}

#[test]
fn w09_no_name_leads_out_of_the_workspaces() {
    with_configured_server("w09", &enabled(), |server| {
        let http = server.http();
        let victim = victim(server);
        for id in ["../../victim", "..", "/etc", "a/b", "x\u{0}y", "UPPER", "-a", "a"] {
            let refused = http.post("/v1/sessions", &json!({"workspace_id": id})).expect(400);
            assert!(refused.text().contains("workspace_id must"), "{}", refused.text());
        }
        for id in ["..%2F..%2Fvictim", "%2e%2e", "UPPER", "-a"] {
            for answer in
                [write(&http, id, "x", b"x"), http.delete(&route(id, "?force=true")), read(&http, id, "x")]
            {
                let refused = answer.expect(400);
                assert!(refused.text().contains("workspace id must"), "{}", refused.text());
            }
        }
        for path in ["../x", "../../../victim/secret", "a/../../x"] {
            for answer in [write(&http, "inner", path, b"x"), read(&http, "inner", path)] {
                assert_eq!(answer.expect(400).error_code(), "INVALID_WORKSPACE", "{path}");
            }
        }
        // A slash in front means the workspace's own root.
        write(&http, "inner", "/etc/passwd", b"mine").expect(200);
        assert_eq!(content(read(&http, "inner", "etc/passwd")), b"mine");
        untouched(&victim);
        let names: Vec<String> = list(&http).into_iter().map(|workspace| workspace.id).collect();
        assert_eq!(names, ["inner"]);
    });
}

#[test]
fn w31_what_is_written_from_outside_is_the_sandboxs_own() {
    with_configured_server("w31", &enabled(), |server| {
        let http = server.http();
        let every: Vec<u8> = (0..=255).collect();
        write(&http, "mixed", "api/deep/file", &every).expect(200);
        let (strict, container) = (show(&http, "mixed", "strict"), show(&http, "mixed", "container"));
        let own = "stat -c '%U %a' api api/deep api/deep/file; echo more >> api/deep/file; touch api/new; mv api/deep api/moved";
        assert_eq!(strict.output(own), "sandbox 755\nsandbox 755\nsandbox 644");
        assert_eq!(content(read(&http, "mixed", "api/moved/file")).len(), 256 + 5);
        // A program stays one when its text is replaced, and the other way round the root of a container may edit as well.
        strict.output("printf '#!/bin/sh\\necho old' > run; chmod 755 run");
        write(&http, "mixed", "run", b"#!/bin/sh\necho new").expect(200);
        assert_eq!(strict.output("./run"), "new");
        assert_eq!(container.output("stat -c %U run; echo >> run; ./run"), "root\nnew");
        strict.delete();
        container.delete();
    });
}

#[test]
fn w37_a_session_that_names_none_keeps_one_of_its_own() {
    let options = configured("workspace: {enabled: true, persist_by_default: true}\n");
    with_configured_server("w37", &options, |server| {
        let http = server.http();
        let session = Session::create(&http, &json!({}));
        let info: SessionInfo = session.info();
        assert_eq!(info.workspace_id.as_deref(), Some(session.id.as_str()));
        session.output("echo kept > file");
        let other = Session::create(&http, &json!({}));
        assert_eq!(other.output("ls -A"), "");
        other.delete();
        session.delete();
        assert_eq!(content(read(&http, &session.id, "file")), b"kept\n");
        let again = Session::create(&http, &json!({"workspace_id": session.id}));
        assert_eq!(again.output("cat file"), "kept");
        again.delete();
        assert_eq!(list(&http).len(), 2);
    });
}

#[test]
fn the_command_line_reaches_them() {
    with_configured_server("the_command_line_reaches_them", &enabled(), |server| {
        let file = server.data_dir().with_file_name("file");
        fs_err::write(&file, "from the host").expect("written");
        let cli = |arguments: &[&str]| {
            let ran = binary::run(server.cli().args(arguments));
            assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
            ran.stdout
        };
        let path = file.to_str().expect("text");
        cli(&["workspace", "cp", path, "tools:dir/file"]);
        assert_eq!(
            cli(&["run", "--workspace", "tools", "--", "cat", "/workspace/dir/file"]),
            "from the host"
        );
        cli(&["run", "--workspace", "tools", "--", "sh", "-c", "echo from inside > back"]);
        assert_eq!(cli(&["workspace", "cat", "tools:back"]), "from inside\n");
        cli(&["workspace", "cp", "tools:back", path]);
        assert_eq!(fs_err::read_to_string(&file).expect("there"), "from inside\n");
        let listed: Value = serde_json::from_str(&cli(&["workspace", "ls", "-o", "json"])).expect("JSON");
        assert_eq!(listed[0]["id"], "tools");
        assert!(cli(&["workspace", "ls", "tools:"]).contains("back"));
        cli(&["workspace", "rm", "tools"]);
        assert_eq!(list(&server.http()), []);
    });
}

#[test]
fn run_shows_one_without_a_server() {
    if !sandhaus_tests::runnable("run_shows_one_without_a_server") {
        return;
    }
    let dir = DataDir::new();
    let run = |enabled: &str, command: &str| {
        let mut sandhaus = binary::command(dir.path());
        sandhaus.env("SANDHAUS_WORKSPACE_ENABLED", enabled);
        binary::run(sandhaus.args(["run", "--workspace", "own", "--", "sh", "-c", command]))
    };
    let refused = run("false", "true");
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("workspace.enabled"), "{}", refused.stderr);
    assert_eq!(run("true", "echo kept > file").code, 0);
    assert_eq!(run("true", "cat file").stdout, "kept\n");
    settles("an end of all", || dir.objects().is_empty());
}
