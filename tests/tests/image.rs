//! Images through the command line: import, names, and archives that mean harm.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use sandhaus_tests::{
    archive::{BLOCK, Entry, Size, archive, entry},
    binary::{self, Ran},
    runnable,
    server::{DataDir, Server},
    session::Session,
    settles,
    tree::busybox_tree,
};
use serde_json::{Value, json};

fn sandhaus(dir: &DataDir, arguments: &[&str]) -> Ran {
    binary::run(binary::command(dir.path()).args(arguments))
}

#[test]
fn an_imported_tree_runs_under_every_name_until_it_is_removed() {
    if !runnable("an_imported_tree_runs_under_every_name_until_it_is_removed") {
        return;
    }
    let dir = DataDir::new();
    let tree = busybox_tree();
    let packed = tempfile::tempdir().unwrap();
    let archives: Vec<_> =
        [("plain.tar", "--no-auto-compress"), ("packed.tar.gz", "--gzip"), ("packed.tar.zst", "--zstd")]
            .into_iter()
            .filter_map(|(name, option)| {
                let path = packed.path().join(name);
                let made = Command::new("tar")
                    .arg("-C")
                    .arg(tree.path())
                    .args(["-c", option, "-f"])
                    .arg(&path)
                    .arg(".")
                    .status();
                made.is_ok_and(|status| status.success()).then_some(path)
            })
            .collect();
    assert!(archives.len() >= 2, "tar packs plain and gzip at least");
    for (number, source) in archives.iter().map(PathBuf::as_path).chain([tree.path()]).enumerate() {
        let name = format!("busy{number}");
        let ran = sandhaus(&dir, &["image", "import", &name, source.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let ran = sandhaus(&dir, &["run", "--image", &name, "--", "cat", "/etc/marker"]);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (0, "imported\n"),
            "{}: {}",
            source.display(),
            ran.stderr
        );
    }
    assert_ne!(sandhaus(&dir, &["image", "import", "busy0", tree.path().to_str().unwrap()]).code, 0);
    assert_eq!(sandhaus(&dir, &["image", "tag", "busy0", "python"]).code, 0);
    assert_eq!(sandhaus(&dir, &["image", "rm", "busy0"]).code, 0);
    let listed: Value =
        serde_json::from_str(&sandhaus(&dir, &["image", "list", "-o", "json"]).stdout).unwrap();
    let names: Vec<_> =
        listed.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"python") && names.contains(&"host") && !names.contains(&"busy0"), "{names:?}");
    assert_eq!(
        sandhaus(&dir, &["run", "--image", "python", "--", "cat", "/etc/marker"]).stdout,
        "imported\n"
    );
    assert_ne!(sandhaus(&dir, &["run", "--image", "busy0", "--", "true"]).code, 0);
    assert_ne!(sandhaus(&dir, &["image", "rm", "host"]).code, 0);
    assert_ne!(sandhaus(&dir, &["image", "rm", "absent"]).code, 0);
    assert_ne!(sandhaus(&dir, &["image", "tag", "absent", "other"]).code, 0);
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_session_in_a_busybox_tree_keeps_its_state() {
    if !runnable("a_session_in_a_busybox_tree_keeps_its_state") {
        return;
    }
    let dir = DataDir::new();
    let tree = busybox_tree();
    assert_eq!(sandhaus(&dir, &["image", "import", "busy", tree.path().to_str().unwrap()]).code, 0);
    let server = Server::start(&dir);
    for profile in ["strict", "container"] {
        let session = Session::create(&server.http(), &json!({"image": "busy", "security": profile}));
        session.output("cd /tmp; x=1; f() { echo f$x; }");
        assert_eq!(session.output("pwd; f; cat /etc/marker"), "/tmp\nf1\nimported");
        session.write("file", b"content");
        assert_eq!(session.output("cat /workspace/file"), "content");
        let long = format!("# {}\necho long", "x".repeat(20_000));
        assert_eq!(session.output(&long), "long");
        assert_eq!(session.exec("exit 4").exit_code, 4);
        // In use: the name may go, the content stays until the sandbox is gone.
        session.delete();
    }
    server.stop();
}

/// Imports an archive made by hand; it may be refused or taken, but nothing outside may change.
fn import(dir: &DataDir, archive: &[u8]) -> Ran {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    sandhaus(dir, &["image", "import", "evil", "--replace", file.path().to_str().unwrap()])
}

#[test]
fn archives_write_nothing_outside_their_own_tree() {
    if !runnable("archives_write_nothing_outside_their_own_tree") {
        return;
    }
    let outside = tempfile::Builder::new().prefix("canary-").tempdir_in("/var/tmp").unwrap();
    let canary = outside.path().join("canary");
    fs_err::write(&canary, "untouched").unwrap();
    let dir = DataDir::new();
    assert_eq!(sandhaus(&dir, &["image", "list"]).code, 0);
    let before = tree_of(&dir.path().join("images"));
    let mode = mode_of(outside.path());
    let place = outside.path().to_str().unwrap();
    let absolute = format!("{place}/planted");
    let climbing = format!("../../../../../../../../../..{place}/planted");
    let canary_path = canary.to_str().unwrap();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("a name that climbs", archive(&[entry(&climbing, b'0', "", b"x")])),
        ("an absolute name", archive(&[entry(&absolute, b'0', "", b"x")])),
        (
            "a file through a link",
            archive(&[entry("l", b'2', place, b""), entry("l/planted", b'0', "", b"x")]),
        ),
        (
            "a file through a climbing link",
            archive(&[
                entry("a/l", b'2', &climbing[..climbing.len() - 8], b""),
                entry("a/l/planted", b'0', "", b"x"),
            ]),
        ),
        (
            "a link replaced by a file",
            archive(&[entry("c", b'2', canary_path, b""), entry("c", b'0', "", b"spoiled")]),
        ),
        (
            "a folder over a link",
            archive(&[
                entry("l", b'2', place, b""),
                entry("l", b'5', "", b""),
                entry("l/planted", b'0', "", b"x"),
            ]),
        ),
        (
            "a hard link out, absolute",
            archive(&[entry("h", b'1', canary_path, b""), entry("h", b'0', "", b"spoiled")]),
        ),
        (
            "a hard link out, climbing",
            archive(&[entry("h", b'1', &climbing.replace("planted", "canary"), b"")]),
        ),
        (
            "a hard link through a link",
            archive(&[entry("l", b'2', place, b""), entry("h", b'1', "l/canary", b"")]),
        ),
        ("a folder that climbs", archive(&[entry(&climbing, b'5', "", b"")])),
        (
            "a name of dots",
            archive(&[
                entry("..", b'5', "", b""),
                entry(".", b'5', "", b""),
                entry("a/../../x", b'0', "", b"x"),
            ]),
        ),
    ];
    for (what, bytes) in attacks {
        import(&dir, &bytes);
        assert_eq!(fs_err::read_to_string(&canary).unwrap(), "untouched", "{what}");
        let names: Vec<_> =
            fs_err::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["canary"], "{what}");
        assert_eq!(
            fs_err::metadata(&canary).map(|file| std::os::unix::fs::MetadataExt::nlink(&file)).unwrap(),
            1,
            "{what}"
        );
        assert_eq!(mode_of(outside.path()), mode, "{what}");
        // Taken or refused: a sandbox of it, if any, sees nothing of the host either.
        let shown = sandhaus(&dir, &["run", "--image", "evil", "--", "/c"]);
        assert!(!shown.stdout.contains("untouched"), "{what}");
    }
    let _ = sandhaus(&dir, &["image", "rm", "evil"]);
    assert_eq!(tree_of(&dir.path().join("images")), before, "refused and removed images leave files");
}

#[test]
fn archives_that_lie_or_swell_are_refused() {
    if !runnable("archives_that_lie_or_swell_are_refused") {
        return;
    }
    let dir = DataDir::new();
    assert_eq!(sandhaus(&dir, &["image", "list"]).code, 0);
    let before = tree_of(&dir.path().join("images"));
    let claimed =
        |length| Entry { name: "large", kind: b'0', link: "", mode: 0o644, size: Size::Claimed(length) };
    let mut broken = archive(&[entry("file", b'0', "", b"content")]);
    broken[3] ^= 0xff;
    let whole = archive(&[entry("file", b'0', "", &[7; 5000])]);
    for (what, bytes) in [
        ("a length beyond all disks", archive(&[claimed(1 << 62)])),
        ("a length that is not there", archive(&[claimed(1 << 20)])),
        ("a cut archive", whole[..BLOCK * 4].to_vec()),
        ("a wrong checksum", broken),
        ("no archive", b"plain text, and not even much of it".to_vec()),
        ("a cut gzip stream", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1]),
        ("a broken zstd stream", vec![0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff]),
    ] {
        let ran = import(&dir, &bytes);
        assert_ne!(ran.code, 0, "{what}: {}", ran.stdout);
        assert_ne!(ran.stderr, "", "{what}");
    }
    assert_eq!(tree_of(&dir.path().join("images")), before, "refused images leave files");
    assert_ne!(sandhaus(&dir, &["image", "import", "absent", "/no/such/archive.tar"]).code, 0);
    assert_ne!(sandhaus(&dir, &["image", "import", "../evil", "/tmp"]).code, 0);
}

#[test]
fn devices_in_an_archive_are_dead_inside() {
    if !runnable("devices_in_an_archive_are_dead_inside") {
        return;
    }
    let dir = DataDir::new();
    let tree = busybox_tree();
    fs_err::create_dir_all(tree.path().join("dev")).unwrap();
    for (name, kind, numbers) in
        [("mem", "c", ["1", "1"]), ("disk", "b", ["254", "0"]), ("null2", "c", ["1", "3"])]
    {
        let made = Command::new("mknod")
            .args(["-m", "666"])
            .arg(tree.path().join("etc").join(name))
            .arg(kind)
            .args(numbers)
            .status();
        assert!(made.unwrap().success());
    }
    let packed = tempfile::tempdir().unwrap();
    let path = packed.path().join("devices.tar");
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(tree.path())
            .arg("-cf")
            .arg(&path)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    for source in [path.as_path(), tree.path()] {
        let ran = sandhaus(&dir, &["image", "import", "--replace", "devices", source.to_str().unwrap()]);
        if ran.code != 0 {
            // Refusing such a tree is as good as disarming it.
            assert!(!ran.stderr.is_empty());
            continue;
        }
        for name in ["mem", "disk", "null2"] {
            let read = format!("head -c 1 /etc/{name} || echo closed");
            let ran = sandhaus(&dir, &["run", "--image", "devices", "--", "/bin/sh", "-c", &read]);
            assert_eq!(ran.stdout, "closed\n", "{name} from {}", source.display());
        }
    }
}

#[test]
fn a_killed_import_leaves_nothing_visible() {
    if !runnable("a_killed_import_leaves_nothing_visible") {
        return;
    }
    let dir = DataDir::new();
    assert_eq!(sandhaus(&dir, &["image", "list"]).code, 0);
    let before = tree_of(&dir.path().join("images"));
    // Large enough that the kill strikes while it is still read.
    let packed = tempfile::tempdir().unwrap();
    let source = packed.path().join("large.tar");
    let mut large = fs_err::File::create(&source).unwrap();
    let filler = vec![2_u8; 8 << 20];
    for number in 0..24 {
        let name = format!("filler{number}");
        let piece = archive(&[entry(&name, b'0', "", &filler)]);
        large.write_all(&piece[..piece.len() - 2 * BLOCK]).unwrap();
    }
    large.write_all(&[0; 2 * BLOCK]).unwrap();
    let mut child =
        binary::command(dir.path()).args(["image", "import", "cut"]).arg(&source).spawn().unwrap();
    settles("the import has begun", || {
        tree_of(&dir.path().join("images")).len() > before.len() + 2 || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let listed = sandhaus(&dir, &["image", "list", "-o", "json"]);
    if !listed.stdout.contains("cut") {
        assert_eq!(tree_of(&dir.path().join("images")), before, "an unfinished import leaves files");
    }
}

fn mode_of(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::mode(&fs_err::metadata(path).unwrap())
}

/// Paths of everything beneath a folder.
fn tree_of(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}
