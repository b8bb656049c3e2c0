//! Names and contents, whole images, and several processes at once.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{assert_no_leftovers, listing, name, pack::Pack, quick_directory, small_catalogue};
use crate::{Catalogue, Error, ImportOptions, Kind, digest::extended_attributes};

const NEW: ImportOptions = ImportOptions { replace: false, platform: None };
const REPLACE: ImportOptions = ImportOptions { replace: true, platform: None };

fn archive(directory: &Path, pack: Pack) -> std::path::PathBuf {
    let path = directory.join("source.tar");
    fs::write(&path, pack.finish()).unwrap();
    path
}

#[test]
fn an_image_comes_goes_and_is_shared() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    let source = archive(directory.path(), Pack::default().file("bin/sh", "#!").file("etc/x", "y"));
    let mut calls = Vec::new();
    let image = catalogue
        .import(&name("debian:12"), &source, &NEW, &mut |done, total| calls.push((done, total)))
        .unwrap();
    assert_eq!((image.kind, image.name.as_str()), (Kind::Imported, "debian:12"));
    assert!(image.digest.starts_with("sha256:") && image.size_bytes > 0, "{image:?}");
    let length = fs::metadata(&source).unwrap().len();
    assert!(calls.iter().all(|(done, total)| *done <= length && *total == Some(length)), "{calls:?}");
    assert!(calls.is_sorted() && !calls.is_empty());

    assert_eq!(catalogue.get(&name("debian:12")).unwrap(), image);
    let tree = catalogue.tree(&name("debian:12")).unwrap();
    assert_eq!(tree, catalogue.tree_by_digest(&image.digest).unwrap());
    assert_eq!(fs::read_to_string(tree.layers[1].join("bin/sh")).unwrap(), "#!");
    assert!(tree.layers[0].join("workspace").is_dir());

    // The same files under another name are the same content.
    let again = catalogue.import(&name("team/other"), &source, &NEW, &mut |_, _| {}).unwrap();
    assert_eq!(again.digest, image.digest);
    assert_eq!(catalogue.tree(&name("team/other")).unwrap(), tree);
    let listed: Vec<_> = catalogue.list().unwrap().into_iter().map(|image| image.name.to_string()).collect();
    assert_eq!(listed, ["debian:12", "host", "team/other"]);

    let taken = catalogue.import(&name("team/other"), &source, &NEW, &mut |_, _| {});
    assert!(matches!(taken, Err(Error::Exists(taken)) if taken == "team/other"));

    catalogue.remove(&name("debian:12"), &|_| false).unwrap();
    assert!(matches!(catalogue.tree(&name("debian:12")), Err(Error::NotFound(_))));
    assert!(tree.layers[1].exists(), "another name holds it");
    catalogue.remove(&name("team/other"), &|digest| digest == image.digest).unwrap();
    assert_eq!(catalogue.tree_by_digest(&image.digest).unwrap(), tree, "a sandbox holds it");
    catalogue.collect(&|_| false).unwrap();
    assert!(!tree.layers[1].exists());
    assert!(matches!(catalogue.tree_by_digest(&image.digest), Err(Error::NotFound(_))));
    assert!(matches!(catalogue.remove(&name("team/other"), &|_| false), Err(Error::NotFound(_))));
    assert_no_leftovers(&directory.path().join("images"));
}

#[test]
fn digests_name_content_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let catalogue = small_catalogue(directory.path());
    let digest = |pack: Pack| {
        let source = archive(directory.path(), pack);
        catalogue.import(&name("x"), &source, &REPLACE, &mut |_, _| {}).unwrap().digest
    };
    let first = digest(Pack::default().file("a", "1").file("b", "2"));
    assert_eq!(digest(Pack::default().file("b", "2").file("a", "1")), first, "the order does not matter");
    let later =
        Pack::default().entry_with(tar::EntryType::Regular, "a", "", "1", |header| header.set_mtime(5));
    assert_eq!(digest(later.file("b", "2")), first, "times do not matter");
    let others = [
        Pack::default().file("a", "1"),
        Pack::default().file("a", "1").file("c", "2"),
        Pack::default().file("a", "1").file("b", "3"),
        Pack::default().file("a", "1").symlink("b", "2"),
        Pack::default().file("a", "1").directory("b"),
        Pack::default().file("a", "1").file("b/2", ""),
        Pack::default()
            .file("a", "1")
            .entry_with(tar::EntryType::Regular, "b", "", "2", |header| header.set_mode(0o600)),
        Pack::default()
            .file("a", "1")
            .entry_with(tar::EntryType::Regular, "b", "", "2", |header| header.set_uid(1)),
        Pack::default().file("a", "1").pax(&[("SCHILY.xattr.user.x", b"y")]).file("b", "2"),
        Pack::default().file("a", "1").file("b", "1"),
        Pack::default().file("a", "1").hard_link("b", "a"),
    ];
    let mut seen = vec![first];
    for pack in others {
        let digest = digest(pack);
        assert!(!seen.contains(&digest));
        seen.push(digest);
    }
}

#[test]
fn digests_from_outside_are_no_paths() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    for bad in ["", "sha256:", "sha256:../names", &format!("sha256:{}", "A".repeat(64)), &"x".repeat(1 << 20)]
    {
        assert!(matches!(catalogue.tree_by_digest(bad), Err(Error::NotFound(_))));
    }
}

#[test]
fn failed_imports_leave_nothing() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    let before = listing(&directory.path().join("images"));
    let source = archive(directory.path(), Pack::default().file("a", "x").file("../b", "y"));
    assert!(matches!(catalogue.import(&name("x"), &source, &NEW, &mut |_, _| {}), Err(Error::Source(_))));
    let missing = catalogue.import(&name("x"), Path::new("/missing/source.tar"), &NEW, &mut |_, _| {});
    assert!(matches!(missing, Err(Error::Io { path, .. }) if path == Path::new("/missing/source.tar")));
    assert!(matches!(
        catalogue.import(&name("x"), Path::new("/dev/null"), &NEW, &mut |_, _| {}),
        Err(Error::Source(_))
    ));
    assert_eq!(listing(&directory.path().join("images")), before);
}

#[test]
fn replacing_moves_the_name_only() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    let source = archive(directory.path(), Pack::default().file("a", "old"));
    let old = catalogue.import(&name("x"), &source, &NEW, &mut |_, _| {}).unwrap();
    let source = archive(directory.path(), Pack::default().file("a", "new"));
    let new = catalogue.import(&name("x"), &source, &REPLACE, &mut |_, _| {}).unwrap();
    assert_ne!(old.digest, new.digest);
    catalogue.tree_by_digest(&old.digest).expect("sandboxes on the old content go on");
    assert_eq!(catalogue.tag(&name("x"), &name("y")).unwrap().digest, new.digest);
    assert_eq!(catalogue.tag(&name("host"), &name("y")).unwrap().kind, Kind::Host);
    assert!(matches!(catalogue.tag(&name("none"), &name("y")), Err(Error::NotFound(_))));
    assert_eq!(catalogue.get(&name("y")).unwrap().kind, Kind::Host);
    // The next removal collects what has no name.
    catalogue.remove(&name("y"), &|_| false).unwrap();
    assert!(matches!(catalogue.tree_by_digest(&old.digest), Err(Error::NotFound(_))));
    catalogue.tree(&name("x")).unwrap();
}

#[test]
fn accounts_of_an_image_are_kept_and_the_workload_is_added() {
    let merged = |pack: Pack| {
        let directory = quick_directory();
        let catalogue = small_catalogue(directory.path());
        let source = archive(directory.path(), pack);
        catalogue.import(&name("x"), &source, &NEW, &mut |_, _| {}).unwrap();
        let scaffold = catalogue.tree(&name("x")).unwrap().layers[0].clone();
        let read = |file: &str| {
            let content = fs::read(scaffold.join("etc").join(file)).unwrap_or_default();
            String::from_utf8_lossy(&content).into_owned()
        };
        (read("passwd"), read("group"), read("hosts"))
    };
    let debian = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n";
    let (passwd, group, hosts) = merged(
        Pack::default()
            .file("etc/passwd", debian)
            .file("etc/group", "root:x:0:\nsudo:x:27:")
            .symlink("bin", "usr/bin")
            .file("usr/bin/bash", ""),
    );
    assert_eq!(passwd, format!("{debian}sandbox:*:1000:1000::/home/sandbox:/bin/bash\n"));
    assert_eq!(group, "root:x:0:\nsudo:x:27:\nsandbox:x:1000:\n");
    assert!(hosts.contains("127.0.0.1\tlocalhost"));

    let node = "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n";
    let (passwd, group, hosts) = merged(
        Pack::default()
            .file("etc/passwd", node)
            .file("etc/group", "root:x:0:\nnode:x:1000:\n")
            .file("etc/hosts", "127.0.0.1 localhost\n10.0.0.1 other\n"),
    );
    assert_eq!((passwd.as_str(), group.as_str()), (node, "root:x:0:\nnode:x:1000:\n"));
    assert_eq!(hosts, "", "the image has its own");

    let (passwd, group, _) = merged(
        Pack::default()
            .file("etc/passwd", "sandbox:x:5:5::/:/bin/false\n")
            .file("etc/group", "sandbox:x:5:\n"),
    );
    assert!(passwd.ends_with("\nsandbox-1000:*:1000:1000::/home/sandbox:/bin/sh\n"), "{passwd}");
    assert!(group.ends_with("\nsandbox-1000:x:1000:\n"), "{group}");

    let (passwd, group, _) = merged(Pack::default().file("bin/true", ""));
    assert!(passwd.starts_with("root:x:0:0:") && passwd.contains("\nsandbox:*:1000:"), "{passwd}");
    assert!(group.starts_with("root:x:0:\n") && group.contains("\nsandbox:x:1000:\n"), "{group}");

    // Bytes that are no text stay as they are; a file that is too large or a link out of the image is as none.
    let (passwd, ..) = merged(Pack::default().file("etc/passwd", b"r\xff:x:0:0::/:/bin/sh\n"));
    assert!(passwd.contains("\nsandbox:*:1000:"), "{passwd}");
    for pack in [
        Pack::default().file("etc/passwd", vec![b'x'; 2 << 20]),
        Pack::default().symlink("etc/passwd", "/etc/shadow"),
        Pack::default().symlink("etc/passwd", "../../../../../../../../etc/shadow"),
        Pack::default().symlink("etc/passwd", "/proc/self/environ"),
        Pack::default().symlink("etc", "/etc"),
        Pack::default().directory("etc/passwd"),
    ] {
        let (passwd, ..) = merged(pack);
        assert_eq!(passwd.lines().count(), 3, "{passwd}");
    }
}

/// A tree with all that an archive can keep.
fn rich_tree(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir(root.join("shared")).unwrap();
    fs::set_permissions(root.join("shared"), fs::Permissions::from_mode(0o3775)).unwrap();
    fs::write(root.join("usr/bin/su"), "setuid").unwrap();
    std::os::unix::fs::chown(root.join("usr/bin/su"), Some(5), Some(60_000)).unwrap();
    fs::set_permissions(root.join("usr/bin/su"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(root.join("usr/bin/ping"), "capable").unwrap();
    let ping = fs::File::open(root.join("usr/bin/ping")).unwrap();
    // cap_net_raw+ep, in the form that the kernel stores; with line feeds in it, which careless readers split at.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&ping, "security.capability", &capability, flags).unwrap();
    rustix::fs::fsetxattr(&ping, "user.note", b"a\nb=c\n", flags).unwrap();
    fs::hard_link(root.join("usr/bin/ping"), root.join("usr/bin/ping4")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    let long = "long-name-".repeat(20);
    fs::write(root.join(&long), "long").unwrap();
    symlink(&long, root.join("to-long")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt as _;
    sparse.set_len(20 << 20).unwrap();
    for count in 0..40 {
        sparse.write_all_at(b"island", count * 500_000).unwrap();
    }
    fs::File::create(root.join("hole")).unwrap().set_len(5 << 20).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for path in ["usr/bin/su", "usr/bin", "usr"] {
        fs::File::open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

fn assert_rich(tree: &Path, seconds: i64, nanoseconds: i64) {
    let metadata = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap();
    let su = metadata("usr/bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o6755, 5, 60_000));
    for path in ["usr/bin/su", "usr/bin", "usr"] {
        assert_eq!((metadata(path).mtime(), metadata(path).mtime_nsec()), (seconds, nanoseconds), "{path}");
    }
    assert_eq!(metadata("shared").mode() & 0o7777, 0o3775);
    assert_eq!(fs::read_link(tree.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(metadata("usr/bin/ping").ino(), metadata("usr/bin/ping4").ino());
    assert_eq!(fs::read_to_string(tree.join("to-long")).unwrap(), "long");
    for path in ["sparse", "hole"] {
        let file = metadata(path);
        assert!(file.blocks() * 512 < file.len() / 2, "{path} has no holes: {} blocks", file.blocks());
    }
}

#[test]
fn real_archives_and_directories_give_the_same_image() {
    // Extended attributes of users need a disk, on older kernels.
    let directory = tempfile::tempdir().unwrap();
    let catalogue = small_catalogue(directory.path());
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    rich_tree(&root);
    let copied = catalogue.import(&name("copied"), &root, &NEW, &mut |_, _| {}).unwrap();
    let tree = catalogue.tree(&name("copied")).unwrap().layers[1].clone();
    assert_rich(&tree, 1_000_000_000, 123_456_789);
    assert_eq!(listing(&tree), listing(&root));
    let ping = fs::File::open(tree.join("usr/bin/ping")).unwrap();
    assert_eq!(extended_attributes(std::os::fd::AsFd::as_fd(&ping)).unwrap().len(), 2);
    catalogue.remove(&name("copied"), &|_| false).unwrap();

    let posix = ["--format=posix", "--xattrs", "--xattrs-include=*"];
    for (format, arguments, nanoseconds) in [
        ("pax, sparse 1.0", [posix.as_slice(), &["--sparse"]].concat(), 123_456_789),
        ("pax, sparse 0.1", [posix.as_slice(), &["--sparse", "--sparse-version=0.1"]].concat(), 123_456_789),
        ("pax, sparse 0.0", [posix.as_slice(), &["--sparse", "--sparse-version=0.0"]].concat(), 123_456_789),
        ("gnu", vec!["--format=gnu", "--sparse"], 0),
    ] {
        let packed = directory.path().join("packed.tar");
        let status = Command::new("tar")
            .args(&arguments)
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&packed)
            .arg(".")
            .status();
        assert!(status.unwrap().success(), "{format}");
        let image = catalogue.import(&name("packed"), &packed, &REPLACE, &mut |_, _| {}).unwrap();
        assert_rich(&catalogue.tree(&name("packed")).unwrap().layers[1], 1_000_000_000, nanoseconds);
        // Only this format says nothing of extended attributes.
        assert_eq!(image.digest == copied.digest, format != "gnu", "{format}");

        if format != "gnu" {
            continue;
        }
        for compress in ["gzip", "zstd"] {
            let plain = fs::read(&packed).unwrap();
            let compressed = match compress {
                "gzip" => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&plain).unwrap();
                    encoder.finish().unwrap()
                }
                _ => zstd::encode_all(plain.as_slice(), 1).unwrap(),
            };
            let path = directory.path().join("compressed");
            fs::write(&path, compressed).unwrap();
            let again = catalogue.import(&name("packed"), &path, &REPLACE, &mut |_, _| {}).unwrap();
            assert_eq!(again.digest, image.digest, "{format}, {compress}");
        }
    }
}

#[test]
fn leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    let images = directory.path().join("images");
    fs::create_dir_all(images.join("tmp/dead/image/tree/deep")).unwrap();
    fs::write(images.join("tmp/dead/image/tree/file"), "x").unwrap();
    fs::write(images.join("tmp/record"), "{").unwrap();

    let source = archive(directory.path(), Pack::default().file("a", "x"));
    let host = directory.path().join("host");
    let mut opened = false;
    let image = catalogue
        .import(&name("x"), &source, &NEW, &mut |_, _| {
            if !opened {
                opened = true;
                Catalogue::open_on(&images, &host).expect("another process opens it meanwhile");
            }
        })
        .expect("an import goes on while others open the catalogue");
    assert!(opened);
    assert_no_leftovers(&images);
    assert_eq!(Catalogue::open_on(&images, &host).unwrap().get(&name("x")).unwrap(), image);
}

/// Runs one test of this file in a process of its own, with the catalogue's directory in its environment.
fn child(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("tests::catalogue::{test}"), "--nocapture"])
        .env("SANDHAUS_TEST_CATALOGUE", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The directory, in a process made by [`child`].
fn given_directory() -> Option<std::path::PathBuf> {
    std::env::var_os("SANDHAUS_TEST_CATALOGUE").map(Into::into)
}

#[test]
fn child_importing_until_killed() {
    let Some(directory) = given_directory() else { return };
    let catalogue = small_catalogue(&directory);
    let mut count = 0;
    let result = catalogue.import(&name("x"), &directory.join("source.tar"), &NEW, &mut |_, _| {
        count += 1;
        if count == 3 {
            println!("\nhalfway");
            // Never comes: the parent ends this process.
            std::io::stdin().read_exact(&mut [0]).expect("the parent keeps the pipe open");
        }
    });
    panic!("{result:?}");
}

#[test]
fn an_import_killed_halfway_leaves_nothing() {
    let directory = quick_directory();
    let mut pack = Pack::default();
    for count in 0..10 {
        pack = pack.file(format!("d/{count}"), "content");
    }
    archive(directory.path(), pack);
    let mut importing = child("child_importing_until_killed", directory.path());
    let output = BufReader::new(importing.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "halfway"), "the child imports");
    let images = directory.path().join("images");
    let catalogue = small_catalogue(directory.path());
    assert_ne!(listing(&images.join("tmp")), Vec::<String>::new(), "the living child's folder stays");
    importing.kill().unwrap();
    importing.wait().unwrap();
    assert!(matches!(catalogue.get(&name("x")), Err(Error::NotFound(_))));
    let catalogue = small_catalogue(directory.path());
    assert_no_leftovers(&images);
    assert_eq!(fs::read_dir(images.join("content")).unwrap().count(), 0);
    catalogue.import(&name("x"), &directory.path().join("source.tar"), &NEW, &mut |_, _| {}).unwrap();
}

#[test]
fn child_changing_things() {
    let Some(directory) = given_directory() else { return };
    let catalogue = small_catalogue(&directory);
    let (mut imported, mut removed, mut read) = (0, 0, 0);
    for round in 0..60 {
        let target = name(["one", "two"][round % 2]);
        let source = directory.join(["a.tar", "b.tar"][(round / 2) % 2]);
        match catalogue.import(
            &target,
            &source,
            &ImportOptions { replace: round % 3 == 0, platform: None },
            &mut |_, _| {},
        ) {
            Ok(_) => imported += 1,
            Err(Error::Exists(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        match catalogue.tree(&name("one")) {
            // Held from now on: nobody takes it away, whatever happens to its names.
            Ok(tree) => {
                fs::read(tree.layers[1].join("a/file")).unwrap();
                fs::read(tree.layers[0].join("etc/passwd")).unwrap();
                read += 1;
            }
            Err(Error::NotFound(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        for result in [
            catalogue.tag(&name("one"), &name("three")).map(drop),
            catalogue.list().map(drop),
            catalogue.remove(&name(["one", "two", "three"][round % 3]), &|_| false).map(|()| removed += 1),
        ] {
            assert!(matches!(result, Ok(()) | Err(Error::NotFound(_))), "{result:?}");
        }
    }
    assert!(imported > 0 && removed > 0 && read > 0, "{imported} {removed} {read}");
}

#[test]
fn processes_do_not_disturb_each_other() {
    let directory = quick_directory();
    for (file, content) in [("a.tar", "first"), ("b.tar", "second")] {
        fs::write(directory.path().join(file), Pack::default().file("a/file", content).finish()).unwrap();
    }
    let mut children = [(); 2].map(|()| child("child_changing_things", directory.path()));
    for child in &mut children {
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success(), "{output}");
    }
    let catalogue = small_catalogue(directory.path());
    catalogue.collect(&|_| false).unwrap();
    let mut digests: Vec<_> = catalogue
        .list()
        .unwrap()
        .into_iter()
        .filter(|image| image.kind == Kind::Imported)
        .map(|image| image.digest)
        .collect();
    digests.sort();
    digests.dedup();
    let contents = fs::read_dir(directory.path().join("images/content")).unwrap().count();
    assert_eq!(contents, digests.len(), "every content has a name");
    assert_no_leftovers(&directory.path().join("images"));
}

#[test]
fn a_content_in_use_by_another_process_is_not_removed() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    // Another catalogue stands for another process: locks are of open files, not of processes.
    let other = small_catalogue(directory.path());
    let source = archive(directory.path(), Pack::default().file("a", "x"));
    let digest = catalogue.import(&name("x"), &source, &NEW, &mut |_, _| {}).unwrap().digest;
    let tree = other.tree(&name("x")).unwrap();
    catalogue.remove(&name("x"), &|_| false).unwrap();
    assert!(tree.layers[1].join("a").exists());
    assert_eq!(other.tree_by_digest(&digest).unwrap(), tree);
    drop(other);
    catalogue.collect(&|_| false).unwrap();
    assert!(!tree.layers[1].exists());
}

#[test]
fn scaffolds_of_older_versions_are_made_anew() {
    let directory = quick_directory();
    let catalogue = small_catalogue(directory.path());
    let source = archive(directory.path(), Pack::default().file("etc/passwd", "me:x:1000:1000::/:/bin/sh\n"));
    catalogue.import(&name("x"), &source, &NEW, &mut |_, _| {}).unwrap();
    let tree = catalogue.tree(&name("x")).unwrap();
    let before = listing(&tree.layers[0]);
    fs::remove_dir_all(&tree.layers[0]).unwrap();
    let catalogue = small_catalogue(directory.path());
    assert_eq!(catalogue.tree(&name("x")).unwrap(), tree);
    assert_eq!(listing(&tree.layers[0]), before);
    assert_no_leftovers(&directory.path().join("images"));
}

#[test]
fn images_from_before_layers_were_shared_are_read() {
    let directory = quick_directory();
    let source = archive(directory.path(), Pack::default().file("bin/sh", "#!").file("etc/x", "y"));
    let images = directory.path().join("images");
    let (digest, before) = {
        let catalogue = small_catalogue(directory.path());
        let image = catalogue.import(&name("old"), &source, &NEW, &mut |_, _| {}).unwrap();
        (image.digest, catalogue.tree(&name("old")).unwrap())
    };
    // As it was stored then: one tree of its own, and a record that knows no layers.
    let content = images.join("content").join(digest.trim_start_matches("sha256:"));
    fs::rename(&before.layers[1], content.join("tree")).unwrap();
    fs::remove_dir_all(before.layers[1].parent().unwrap()).unwrap();
    let record = serde_json::json!({"created_at": "2026-01-01T00:00:00Z", "size_bytes": 8192,
        "config": {"env": {}, "entrypoint": []}});
    fs::write(content.join("image.json"), record.to_string()).unwrap();

    let catalogue = small_catalogue(directory.path());
    let tree = catalogue.tree(&name("old")).unwrap();
    assert_eq!(tree.layers, [before.layers[0].clone(), content.join("tree")]);
    catalogue.validate(&name("old")).unwrap();
    let mut exported = Vec::new();
    catalogue.export(&name("old"), crate::ExportFormat::Tar, &mut exported).unwrap();
    fs::write(&source, &exported).unwrap();
    // What is imported of the same files now is the same image.
    assert_eq!(catalogue.import(&name("new"), &source, &NEW, &mut |_, _| {}).unwrap().digest, digest);
    fs::write(content.join("tree/etc/x"), "z").unwrap();
    assert!(matches!(catalogue.validate(&name("old")), Err(Error::Damaged { .. })));
    catalogue.remove(&name("new"), &|_| false).unwrap();
    catalogue.remove(&name("old"), &|_| false).unwrap();
    assert!(!content.exists());
    assert_no_leftovers(&images);
}
