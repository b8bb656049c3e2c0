//! Files: contents in and out, confinement to a root, what is refused.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use sandhaus_protocol::toolbox::{BulkUploadReply, FileInfo, Match, ReplaceResult, SearchReply};

use crate::support::{Agent, encoded, eventually};

#[test]
fn contents_go_in_and_out_unchanged() {
    let agent = Agent::start(None);
    let data: Vec<u8> = (0..9_000_001_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let root = encoded(agent.work().to_str().expect("UTF-8"));
    let target = format!("root={root}&path=deep/er/file.bin");
    let reply: serde_json::Value =
        agent.request("POST", &format!("/files/upload-v2?{target}"), &[], &data).json();
    assert_eq!((reply["name"].as_str(), reply["type"].as_str()), (Some("file.bin"), Some("file")));
    let download = format!("/files/download?{target}");
    let whole = agent.get(&download);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.headers["x-file-size"], data.len().to_string());
    assert_eq!(whole.headers["content-length"], data.len().to_string());
    assert!(whole.body == data);
    for (offset, limit) in [(0, 10), (5_000_000, 300_000), (9_000_000, 50), (9_000_001, 5), (99_000_000, 5)] {
        let part = agent.get(&format!("{download}&offset={offset}&limit={limit}"));
        let expected = &data[offset.min(data.len())..(offset + limit).min(data.len())];
        assert!(part.body == expected, "{offset} {limit}");
        assert_eq!(part.headers["x-file-size"], data.len().to_string());
    }
    let part = agent.request("GET", &download, &[("range", "bytes=100-300099")], b"");
    assert_eq!((part.status, part.headers["content-range"].as_str()), (206, "bytes 100-300099/9000001"));
    assert!(part.body == data[100..300_100]);
    assert_eq!(agent.request("GET", &download, &[("range", "bytes=9000001-")], b"").status, 416);
    let head = agent.send("HEAD", &download, &[], b"");
    assert_eq!((head.status, head.headers["content-length"].as_str()), (200, "9000001"));
    assert_eq!(agent.request("POST", "/files/upload-v2?path=empty", &[], b"").status, 200);
    let empty = agent.get("/files/download?path=empty");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn names_in_any_script() {
    let agent = Agent::start(None);
    for name in ["ünï", "日本語.txt", "a b\"c'd", "line\nbreak", "-rf", "%41", "...", "emoji 🎉"] {
        let query = format!("path={}", encoded(name));
        assert_eq!(
            agent.request("POST", &format!("/files/upload-v2?{query}"), &[], name.as_bytes()).status,
            200
        );
        assert_eq!(agent.get(&format!("/files/download?{query}")).body, name.as_bytes());
        let info: FileInfo = agent.get(&format!("/files/info?{query}")).json();
        assert_eq!((info.name.as_str(), info.size, info.is_dir), (name, name.len() as u64, false));
        assert!(agent.work().join(name).is_file(), "{name}");
        assert_eq!(agent.delete(&format!("/files?{query}")).status, 204);
    }
    assert_eq!(agent.get("/files").json::<Vec<FileInfo>>().len(), 0);
}

#[test]
fn nothing_outside_of_a_root_can_be_named() {
    let agent = Agent::start(None);
    let secret = agent.work().parent().expect("a parent").join("secret");
    fs::write(&secret, "secret").expect("write the secret");
    symlink("../secret", agent.work().join("relative")).expect("link");
    symlink(&secret, agent.work().join("absolute")).expect("link");
    symlink("/", agent.work().join("up")).expect("link");
    symlink("/proc/self", agent.work().join("proc")).expect("link");
    symlink("loop", agent.work().join("loop")).expect("link");
    let root = encoded(agent.work().to_str().expect("UTF-8"));
    let secret_path = secret.to_str().expect("UTF-8").to_owned();
    for path in [
        "relative",
        "absolute",
        "../secret",
        "x/../../secret",
        "up/etc/passwd",
        "proc/root/etc/passwd",
        "/etc/passwd",
        &secret_path,
        "..",
        "up",
    ] {
        let query = format!("root={root}&path={}", encoded(path));
        for (method, route) in
            [("GET", "download"), ("GET", "info"), ("POST", "upload-v2"), ("POST", "folder")]
        {
            let reply = agent.request(method, &format!("/files/{route}?{query}"), &[], b"attack");
            assert!(reply.status == 400 || reply.status == 404, "{method} {route} {path}: {}", reply.status);
        }
        let listed = agent.get(&format!("/files?{query}"));
        assert_eq!(listed.refusal().0, 400, "list {path}");
    }
    let moved = agent.request(
        "POST",
        &format!("/files/move?root={root}&source=relative&destination=../stolen"),
        &[],
        b"",
    );
    assert_eq!(moved.refusal(), (400, "INVALID_FILE_PATH".to_owned()));
    assert_eq!(agent.delete(&format!("/files?root={root}&path=../secret")).refusal().0, 400);
    assert_eq!(agent.delete(&format!("/files?root={root}&path=up/etc&recursive=true")).refusal().0, 400);
    assert_eq!(agent.get(&format!("/files/download?root={root}&path=loop")).refusal().0, 400);
    assert_eq!(agent.get("/files/download?root=relative&path=x").refusal().0, 400);
    assert_eq!(fs::read(&secret).expect("the secret is there"), b"secret");
    // Deleting a link deletes the link.
    assert_eq!(agent.delete(&format!("/files?root={root}&path=absolute")).status, 204);
    assert!(secret.exists());
}

#[test]
fn a_link_swapped_all_the_time_never_leads_out() {
    let agent = Agent::start(None);
    let outside = agent.work().parent().expect("a parent").join("outside");
    fs::create_dir(&outside).expect("make a folder outside");
    fs::write(outside.join("file"), "outside").expect("write");
    let inside = agent.work().join("inside");
    fs::create_dir(&inside).expect("make a folder inside");
    fs::write(inside.join("file"), "inside").expect("write");
    let mut frames = agent.spawn(&crate::support::argv(&[
        "sh",
        "-c",
        "echo up; while :; do ln -sfn ../outside swapped; ln -sfn inside swapped; done",
    ]));
    frames.until("up");
    let root = encoded(agent.work().to_str().expect("UTF-8"));
    let mut seen = [0; 2];
    for n in 0..400 {
        let reply = agent.get(&format!("/files/download?root={root}&path=swapped/file"));
        match reply.status {
            200 => assert_eq!(reply.body, b"inside"),
            status => assert!(status == 400 || status == 404, "{status}"),
        }
        seen[usize::from(reply.status == 200)] += 1;
        agent.request("POST", &format!("/files/upload-v2?root={root}&path=swapped/new{n}"), &[], b"x");
    }
    frames.hang_up();
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1, "nothing was written outside: {seen:?}");
}

#[test]
fn pipes_and_devices_are_never_opened_for_content() {
    let agent = Agent::start(None);
    let pipe = agent.work().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("make a pipe");
    let _socket = std::os::unix::net::UnixListener::bind(agent.work().join("socket")).expect("make a socket");
    fs::create_dir(agent.work().join("folder")).expect("make a folder");
    for path in ["pipe", "folder", "/dev/zero", "/dev/tty"] {
        let query = format!("path={}", encoded(path));
        assert_eq!(agent.get(&format!("/files/download?{query}")).refusal().0, 400, "{path}");
        assert_eq!(
            agent.request("POST", &format!("/files/upload-v2?{query}"), &[], b"x").refusal().0,
            400,
            "{path}"
        );
    }
    assert!(agent.get("/files/download?path=socket").status >= 400);
    let info: FileInfo = agent.get("/files/info?path=pipe").json();
    assert!(info.mode.starts_with('p'));
    let found: Vec<Match> = agent.get("/files/find?path=.&pattern=x").json();
    assert!(found.is_empty());
}

#[test]
fn uploads_replace_atomically_and_leave_nothing_when_cut() {
    let agent = Agent::start(None);
    let file = agent.work().join("file");
    fs::write(&file, "before").expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
    {
        let mut stream = agent.connect();
        let head =
            "POST /files/upload-v2?path=file HTTP/1.1\r\nhost: agent\r\ncontent-length: 5000000\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("send the head");
        stream.write_all(&vec![b'x'; 1_000_000]).expect("send a part");
        eventually("the upload has begun", || agent.holds_a_file_in(&agent.work()));
        assert_eq!(fs::read_dir(agent.work()).expect("list").count(), 1, "nobody sees it before it is whole");
    }
    eventually("nothing is left of it", || !agent.holds_a_file_in(&agent.work()));
    assert_eq!(fs::read_dir(agent.work()).expect("list").count(), 1);
    assert_eq!(fs::read(&file).expect("read"), b"before");
    assert_eq!(agent.request("POST", "/files/upload-v2?path=file", &[], b"after").status, 200);
    assert_eq!(fs::read(&file).expect("read"), b"after");
    assert_eq!(fs::metadata(&file).expect("stat").permissions().mode() & 0o7777, 0o640);
    symlink("file", agent.work().join("link")).expect("link");
    assert_eq!(agent.request("POST", "/files/upload-v2?path=link", &[], b"through").status, 200);
    assert_eq!(fs::read(&file).expect("read"), b"through");
    assert!(agent.work().join("link").is_symlink());
}

#[test]
fn folders_listings_moves_and_permissions() {
    let agent = Agent::start(None);
    let post = |target: &str| agent.request("POST", target, &[], b"");
    assert_eq!(post("/files/folder?path=a/b/c&mode=0700").status, 201);
    assert_eq!(fs::metadata(agent.work().join("a/b/c")).expect("stat").permissions().mode() & 0o7777, 0o700);
    assert_eq!(post("/files/folder?path=a/b/c&mode=abc").refusal().0, 400);
    agent.request("POST", "/files/upload-v2?path=a/b/file", &[], b"1234");
    symlink("nowhere", agent.work().join("a/dangling")).expect("link");
    symlink("b", agent.work().join("a/folder-link")).expect("link");
    let listed: Vec<FileInfo> = agent.get("/files?path=a").json();
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["b", "dangling", "folder-link"]);
    assert!(listed[0].is_dir && listed[1].mode.starts_with('L') && listed[0].path.is_none());
    let deep: Vec<FileInfo> = agent.get("/files?path=a&depth=5").json();
    let mut paths: Vec<&str> = deep.iter().filter_map(|entry| entry.path.as_deref()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["a/b", "a/b/c", "a/b/file", "a/dangling", "a/folder-link"]);
    assert_eq!(agent.get("/files?depth=0").refusal().0, 400);
    assert_eq!(agent.get("/files?path=nosuch").refusal(), (404, "FILE_NOT_FOUND".to_owned()));
    assert_eq!(agent.get("/files?path=a/b/file").refusal().0, 400);
    assert_eq!(post("/files/move?source=a/b/file&destination=moved").status, 200);
    assert_eq!(post("/files/move?source=a/b/file&destination=moved2").refusal().0, 404);
    assert_eq!(post("/files/move?source=moved&destination=nosuch/moved").refusal().0, 404);
    assert_eq!(post("/files/move?source=moved&destination=a").refusal().0, 409);
    assert_eq!(post("/files/permissions?path=moved&mode=0604").status, 200);
    assert_eq!(agent.get("/files/info?path=moved").json::<FileInfo>().permissions, "0604");
    assert_eq!(post("/files/permissions?path=moved&owner=nosuchuser").refusal().0, 400);
    assert_eq!(agent.delete("/files?path=a").refusal().0, 400);
    assert_eq!(agent.delete("/files?path=a&recursive=true").status, 204);
    assert_eq!(agent.delete("/files?path=a").refusal().0, 404);
}

fn part(name: &str, file: Option<&str>, content: &[u8]) -> Vec<u8> {
    let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
    let mut part =
        format!("--cut\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").into_bytes();
    part.extend_from_slice(content);
    part.extend_from_slice(b"\r\n");
    part
}

#[test]
fn forms_carry_files_in_both_directions() {
    let agent = Agent::start(None);
    let form = [("content-type", "multipart/form-data; boundary=cut")];
    let big: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut body = part("file", Some("x"), &big);
    body.extend_from_slice(b"--cut--\r\n");
    assert_eq!(agent.request("POST", "/files/upload?path=one", &form, &body).status, 200);
    assert!(fs::read(agent.work().join("one")).expect("read") == big);
    assert_eq!(agent.request("POST", "/files/upload-v2?path=two", &form, &body).status, 200);
    assert_eq!(agent.request("POST", "/files/upload?path=three", &[], b"raw").refusal().0, 400);
    let mut body = Vec::new();
    for (name, file, content) in [
        ("files[0].path", None, b"many/a".as_slice()),
        ("files[1].path", None, "many/ü".as_bytes()),
        ("files[0].file", Some("ignored"), b"content a"),
        ("files[1].file", Some("ignored"), &big),
    ] {
        body.extend_from_slice(&part(name, file, content));
    }
    let mut bad = body.clone();
    body.extend_from_slice(b"--cut--\r\n");
    let reply = agent.request("POST", "/files/bulk-upload", &form, &body);
    assert_eq!((reply.status, reply.json::<BulkUploadReply>().files.len()), (200, 2));
    bad.extend_from_slice(&part("files[9].file", Some("x"), b"without a path"));
    bad.extend_from_slice(&part("files[2].path", None, b"many/last"));
    bad.extend_from_slice(&part("files[2].file", Some("x"), b"last"));
    bad.extend_from_slice(b"--cut--\r\n");
    let reply = agent.request("POST", "/files/bulk-upload", &form, &bad);
    let said: BulkUploadReply = reply.json();
    assert_eq!((reply.status, said.files.len(), said.errors.len()), (400, 3, 1));
    let reply =
        agent.post("/files/bulk-download", &serde_json::json!({ "paths": ["many/ü", "nosuch", "many/a"] }));
    let text = String::from_utf8_lossy(&reply.body);
    let parts: Vec<&str> = text.split("--DAYTONA-FILE-BOUNDARY").collect();
    assert_eq!(parts.len(), 5);
    assert!(parts[1].contains("name=\"file\"") && parts[1].contains("filename*=utf-8''many%2F%C3%BC"));
    assert!(parts[1].contains("Content-Length: 700000\r\n"));
    assert!(parts[2].contains("name=\"error\"") && parts[2].contains("\"FILE_NOT_FOUND\""));
    assert!(parts[3].ends_with("\r\n\r\ncontent a\r\n"));
    assert_eq!(parts[4], "--\r\n");
    assert_eq!(agent.post("/files/bulk-download", &serde_json::json!({ "paths": [] })).refusal().0, 400);
}

#[test]
fn contents_and_names_are_found_and_replaced() {
    let agent = Agent::start(None);
    for (path, content) in [
        ("a.txt", "one\ntwo needle\n"),
        ("sub/b.txt", "needle.*needle"),
        ("sub/binary", "\0needle"),
        ("sub/c.md", "hay"),
    ] {
        agent.request("POST", &format!("/files/upload-v2?path={path}"), &[], content.as_bytes());
    }
    let found: Vec<Match> = agent.get("/files/find?path=.&pattern=needle").json();
    let mut lines: Vec<_> = found.iter().map(|m| (m.file.as_str(), m.line, m.content.as_str())).collect();
    lines.sort_unstable();
    assert_eq!(lines, [("a.txt", 2, "two needle"), ("sub/b.txt", 1, "needle.*needle")]);
    let mut names = agent.get("/files/search?path=.&pattern=%2A.txt").json::<SearchReply>().files;
    names.sort_unstable();
    assert_eq!(names, ["a.txt", "sub/b.txt"]);
    assert_eq!(agent.get("/files/search?path=.&pattern=%5B").refusal().0, 400);
    fs::set_permissions(agent.work().join("a.txt"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let request = serde_json::json!({ "files": ["a.txt", "nosuch"], "pattern": "e", "newValue": "E" });
    let results: Vec<ReplaceResult> = agent.post("/files/replace", &request).json();
    assert_eq!((results[0].success, results[1].success, results[1].error.is_some()), (true, false, true));
    assert_eq!(fs::read(agent.work().join("a.txt")).expect("read"), b"onE\ntwo nEEdlE\n");
    assert_eq!(fs::metadata(agent.work().join("a.txt")).expect("stat").permissions().mode() & 0o7777, 0o600);
}

/// The events of a watch, by name and data.
struct Events {
    answer: crate::support::Answer,
    text: String,
}

impl Events {
    fn of(agent: &Agent, query: &str) -> Self {
        let answer = agent.send("GET", &format!("/files/watch?{query}"), &[], b"");
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "text/event-stream"));
        let mut events = Self { answer, text: String::new() };
        assert_eq!(events.next().expect("a first event").0, "ready");
        events
    }

    fn next(&mut self) -> Option<(String, serde_json::Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                let Some(event) = event.strip_prefix("event: ") else { continue };
                let (name, data) = event.split_once("\ndata: ").expect("a name and data");
                return Some((name.to_owned(), serde_json::from_str(data).expect("JSON")));
            }
            let piece = self.answer.next_piece().expect("the stream is whole")?;
            self.text.push_str(&String::from_utf8(piece).expect("text"));
        }
    }

    /// Reads until this happened to that.
    fn until(&mut self, kind: &str, path: &str) -> serde_json::Value {
        loop {
            let (name, change) = self.next().unwrap_or_else(|| panic!("{path} was not {kind}"));
            if name == "change" && change["type"] == kind && change["path"] == path {
                return change;
            }
        }
    }
}

#[test]
fn changes_are_told_as_they_happen() {
    let agent = Agent::start(None);
    fs::create_dir_all(agent.work().join("tree/old")).expect("make");
    fs::write(agent.work().join("tree/old/file"), "x").expect("write");
    let mut events = Events::of(&agent, "path=tree&recursive=true");
    fs::write(agent.work().join("tree/new"), "content").expect("write");
    assert_eq!(events.until("created", "tree/new")["isDir"], false);
    events.until("modified", "tree/new");
    events.until("closed", "tree/new");
    fs::create_dir_all(agent.work().join("tree/a/b/c")).expect("make");
    events.until("created", "tree/a/b/c");
    fs::write(agent.work().join("tree/a/b/c/deep"), "content").expect("write");
    events.until("created", "tree/a/b/c/deep");
    fs::rename(agent.work().join("tree/a/b"), agent.work().join("tree/old/moved")).expect("rename");
    assert_eq!(events.until("moved", "tree/old/moved")["from"], "tree/a/b");
    fs::write(agent.work().join("tree/old/moved/c/deep"), "again").expect("write");
    events.until("modified", "tree/old/moved/c/deep");
    fs::set_permissions(agent.work().join("tree/old/file"), fs::Permissions::from_mode(0o600))
        .expect("chmod");
    events.until("attributes", "tree/old/file");
    fs::rename(agent.work().join("tree/old/moved"), agent.work().join("outside")).expect("rename");
    events.until("deleted", "tree/old/moved");
    fs::write(agent.work().join("outside/unseen"), "x").expect("write");
    fs::remove_file(agent.work().join("tree/new")).expect("remove");
    loop {
        let (_, change) = events.next().expect("the removal is told");
        assert!(!change["path"].as_str().is_some_and(|path| path.ends_with("unseen")), "{change}");
        if change["type"] == "deleted" && change["path"] == "tree/new" {
            break;
        }
    }
    fs::rename(agent.work().join("tree"), agent.work().join("elsewhere")).expect("rename");
    while events.next().is_some_and(|(name, _)| name != "gone") {}
    assert_eq!(events.next(), None, "nothing follows");
}

#[test]
fn one_folder_and_one_file_are_watched_alone() {
    let agent = Agent::start(None);
    fs::create_dir(agent.work().join("inner")).expect("make");
    fs::write(agent.work().join("file"), "x").expect("write");
    let (mut folder, mut file) = (Events::of(&agent, "path=."), Events::of(&agent, "path=file"));
    fs::write(agent.work().join("inner/unseen"), "x").expect("write");
    fs::write(agent.work().join("file"), "y").expect("write");
    file.until("modified", "file");
    let (_, change) = folder.next().expect("a change");
    assert_eq!(change["path"], "file", "what is in a folder below is not told");
    fs::remove_file(agent.work().join("file")).expect("remove");
    while file.next().is_some_and(|(name, _)| name != "gone") {}
    assert_eq!(agent.get("/files/watch?path=nosuch").refusal(), (404, "FILE_NOT_FOUND".to_owned()));
    let held: Vec<Events> = (0..14).map(|_| Events::of(&agent, "path=.")).collect();
    let mut one_more = None;
    eventually("a place is free when its stream has ended", || {
        let answer = agent.send("GET", "/files/watch?path=.", &[], b"");
        one_more = Some(answer).filter(|answer| answer.status == 200);
        one_more.is_some()
    });
    assert_eq!(agent.get("/files/watch?path=.").refusal().0, 429);
    drop((held, one_more, folder));
    eventually("places are free when their readers go", || {
        let answer = agent.send("GET", "/files/watch?path=.", &[], b"");
        answer.status == 200
    });
}
