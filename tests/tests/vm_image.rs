//! Images of virtual machines through the command line: builds that come to the same, versions, deaths in the middle.
//! What boots of them is `machine.rs`' to say.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal};
use sandhaus_tests::{
    binary::{self, Ran},
    files_named,
    server::DataDir,
    settles,
    tree::busybox_tree,
    vm,
};
use serde_json::Value;

fn sandhaus(dir: &DataDir, arguments: &[&str]) -> Ran {
    binary::run(binary::command(dir.path()).args(arguments))
}

fn inspected(dir: &DataDir, name: &str) -> Value {
    let ran = sandhaus(dir, &["image", "inspect", name]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn two_builds_of_the_same_are_the_same_image() {
    if !vm::bootable("two_builds_of_the_same_are_the_same_image") {
        return;
    }
    let (one, other, tree) = (DataDir::new(), DataDir::new(), busybox_tree());
    for (name, options) in [("memory", &["--initramfs-only"][..]), ("disk", &["--size", "256MiB"])] {
        for dir in [&one, &other] {
            let ran = binary::run(vm::build(dir.path(), name, tree.path()).args(options));
            assert_eq!(ran.code, 0, "{}", ran.stderr);
        }
        let (first, second) = (inspected(&one, name), inspected(&other, name));
        assert_eq!(first["disk"], second["disk"], "{name}");
        assert_eq!(first["digest"], second["digest"]);
        assert_eq!(first["kind"], "disk");
        let manifest = &first["disk"];
        let modules: Vec<&str> = manifest["kernel"]["modules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        assert!(modules.contains(&"virtio_net") && modules.contains(&"virtio_pci"), "{modules:?}");
        assert!(manifest["kernel"]["release"].as_str().unwrap().ends_with("-amd64"), "{manifest}");
        assert!(manifest["agent"].as_str().unwrap().starts_with("sha256:"));
    }
    assert_eq!(inspected(&one, "disk")["disk"]["layers"].as_array().unwrap().len(), 1);
    let listed = sandhaus(&one, &["image", "list"]).stdout;
    for name in ["memory ", "memory.1 ", "disk ", "disk.1 "] {
        assert!(listed.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{listed}");
    }
}

/// Runs a tool of QEMU and gives what it says.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{output:?}");
    said
}

#[test]
fn a_disk_is_written_out_as_one_file() {
    if !vm::bootable("a_disk_is_written_out_as_one_file") {
        return;
    }
    let (dir, folder) = (DataDir::new(), tempfile::tempdir().unwrap());
    vm::disk_image(dir.path());
    vm::initramfs_image(dir.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let ran = sandhaus(&dir, arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    };
    // An image of two layers.
    let [below] = files_named(&dir.path().join("images/content"), "0.qcow2").try_into().unwrap();
    let (below, over) = (below.to_str().unwrap(), file("over.qcow2"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", &over]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 4M 64k", &over]);
    run(&["image", "import-vm", "--name", "layered", "--base", vm::DISK_IMAGE, &over]);

    let (flat, plain) = (file("flat.qcow2"), file("flat.img"));
    run(&["image", "export", "layered", &flat]);
    run(&["image", "export", "layered", &plain]);
    tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", &flat, &plain]);
    tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "qcow2", &flat, &over]);
    assert!(!tool("qemu-img", &["info", "-f", "qcow2", &flat]).contains("backing"));
    // It stands alone, so that it can be taken anywhere.
    run(&["image", "import-vm", "--name", "again", &flat]);

    for (name, to, why) in [
        (vm::INITRAMFS_IMAGE, "x.qcow2", "has no disk"),
        ("host", "x.img", "built in"),
        ("layered", "x.tar", "export it to a .qcow2"),
        ("layered", "x.iso", "say --format"),
        ("missing", "x.raw", "is not there"),
    ] {
        let refused = sandhaus(&dir, &["image", "export", name, &file(to)]);
        assert_eq!(refused.code, 1, "{name} {to}: {}", refused.stderr);
        assert!(refused.stderr.contains(why), "{name} {to}: {}", refused.stderr);
    }
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["flat.img", "flat.qcow2", "over.qcow2"], "nothing half written");
}

#[test]
fn a_name_goes_back_to_the_version_before() {
    if !vm::bootable("a_name_goes_back_to_the_version_before") {
        return;
    }
    let (dir, tree) = (DataDir::new(), busybox_tree());
    let build = |more: &[&str]| {
        let mut command = vm::build(dir.path(), "tool", tree.path());
        let ran = binary::run(command.args(["--initramfs-only", "-o", "json"]).args(more));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()
    };
    let first = build(&[]);
    assert_eq!((&first["version"], &first["new"]), (&"tool.1".into(), &true.into()));
    assert_eq!(build(&[])["new"], Value::Bool(false), "nothing in it is new");
    let second = build(&["--append", "sandbox.test=1"]);
    assert_eq!(second["version"], "tool.2");
    assert_eq!(inspected(&dir, "tool")["digest"], second["image"]["digest"]);
    let back = sandhaus(&dir, &["image", "rollback", "tool"]);
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert!(back.stderr.contains("tool now stands for tool.1"), "{}", back.stderr);
    assert_eq!(inspected(&dir, "tool")["digest"], first["image"]["digest"]);
    let again = sandhaus(&dir, &["image", "rollback", "tool"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("no version before"), "{}", again.stderr);
    let removed = sandhaus(&dir, &["image", "rm", "tool.2"]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let valid = sandhaus(&dir, &["image", "validate", "tool", "tool.1"]);
    assert_eq!(valid.code, 0, "{}", valid.stderr);
}

/// Starts a build of a disk that takes a moment.
fn building(dir: &Path, tree: &Path) -> Child {
    let mut command = vm::build(dir, "vm", tree);
    command.args(["--size", "1GiB"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a build says this.
fn heard(build: &mut Child, until: &str) {
    let mut said = BufReader::new(build.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains(until)), "it ended before: {until}");
    // Read on, or the build would die of a pipe that nobody reads.
    std::thread::spawn(move || said.for_each(drop));
}

#[test]
fn a_build_that_dies_leaves_nothing_that_is_seen() {
    if !vm::bootable("a_build_that_dies_leaves_nothing_that_is_seen") {
        return;
    }
    let tree = busybox_tree();
    // Enough that there is something to be in the middle of.
    std::fs::write(tree.path().join("etc/random"), noise(24 << 20)).unwrap();
    for (stage, signal) in [
        ("finding a kernel", Signal::KILL),
        ("making the file system", Signal::KILL),
        ("writing the disk", Signal::TERM),
        ("writing the disk", Signal::KILL),
        ("storing the image", Signal::KILL),
    ] {
        let dir = DataDir::new();
        let mut child = building(dir.path(), tree.path());
        heard(&mut child, stage);
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        let scratch = dir.path().join("images/tmp");
        let scratches = || std::fs::read_dir(&scratch).map_or(0, Iterator::count);
        // What it had started ends by itself; only then does the next one sweep.
        settles("the leftovers are swept", || {
            assert_eq!(sandhaus(&dir, &["image", "list"]).code, 0);
            scratches() == 0
        });
        let listed = sandhaus(&dir, &["image", "list", "-o", "json"]).stdout;
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        let names: Vec<_> = listed.iter().map(|image| image["name"].as_str().unwrap()).collect();
        if status.success() || names.contains(&"vm") {
            // It came through before the signal did: then all of it is there.
            assert_eq!(names, ["host", "vm", "vm.1"], "{stage}, {signal:?}");
            assert_eq!(sandhaus(&dir, &["image", "validate", "vm"]).code, 0);
        } else {
            assert!(names == ["host"] || names == ["host", "vm.1"], "{stage}, {signal:?}: {names:?}");
            let pruned = sandhaus(&dir, &["image", "prune", "--all"]);
            assert_eq!(pruned.code, 0, "{}", pruned.stderr);
            let left = std::fs::read_dir(dir.path().join("images/content")).unwrap().count();
            assert_eq!(left, 0, "{stage}, {signal:?}");
        }
    }
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn sources_and_disks_that_cannot_be_are_refused_with_a_remedy() {
    if !vm::bootable("sources_and_disks_that_cannot_be_are_refused_with_a_remedy") {
        return;
    }
    let (dir, tree) = (DataDir::new(), busybox_tree());
    let tree = tree.path().to_str().unwrap();
    let plain = tempfile::NamedTempFile::new().unwrap();
    let plain = plain.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (
            &["build-vm", "--name", "x", "--from", tree, "--size", "1MiB", "--kernel", plain],
            "at least 64 MiB",
        ),
        (&["build-vm", "--name", "x", "--from", tree, "--kernel", plain], "is empty"),
        (&["build-vm", "--name", "x", "--from", tree, "--desktop"], "--from debian:bookworm"),
        (&["build-vm", "--name", "x", "--from", tree, "--initramfs-only", "--size", "1GiB"], "has none"),
        (&["build-vm", "--name", "host", "--from", tree], "built in"),
        (&["build-vm", "--name", "../x", "--from", tree], "not valid"),
        (&["build-vm", "--name", "x", "--from", "host", "--kernel", plain], "no files that could be put"),
        (&["import-vm", "--name", "x", plain], "not in the format qcow2"),
        (&["import-vm", "--name", "x", "--append", "a", plain], "without a kernel"),
        (&["rollback", "x"], "is not there"),
    ];
    for (arguments, why) in cases {
        let ran = sandhaus(&dir, &[&["image"], *arguments].concat());
        assert_eq!(ran.code, 1, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(why), "{arguments:?}: {}", ran.stderr);
    }
    let listed = sandhaus(&dir, &["image", "list", "-o", "json"]).stdout;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed).unwrap().len(), 1);
}
