//! Snapshots of machines that run, and what is made of them, on a guest with the real agent.

use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use sandhaus_sandbox::{
    engine::{Boot, Capture, Engine, EngineError, MachineSpec, StopMode},
    toolbox::Toolbox,
    types::{Generation, SandboxId},
};

use crate::support::{Host, command, sh};

/// Counts in memory, slowly enough that many guests can do so at once.
const COUNT: &str = "(count=0; while :; do count=$((count+1)); echo $count >/run/count.new; \
                     mv /run/count.new /run/count; sleep 0.5; done) >/dev/null 2>&1 &";

async fn count(toolbox: &Toolbox) -> u64 {
    sh(toolbox, "cat /run/count").await.trim().parse().expect("a number")
}

/// Waits until the guest has counted on.
async fn counts_on(toolbox: &Toolbox) -> u64 {
    let before = count(toolbox).await;
    loop {
        let now = count(toolbox).await;
        if now > before {
            return now;
        }
    }
}

fn empty(host: &Host, name: &str) -> PathBuf {
    let path = host.directory.path().join(name);
    fs_err::create_dir(&path).expect("a directory");
    path
}

fn whole(path: &Path) -> Vec<u8> {
    let output = Command::new("sha256sum").arg(path).output().expect("it runs");
    assert!(output.status.success());
    output.stdout
}

fn qemu_img(directory: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).current_dir(directory).output().expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A spec with a disk, which the guest does not start from but has as a device.
pub(crate) fn with_disk(host: &Host) -> MachineSpec {
    let image = empty(host, "image");
    qemu_img(&image, &["create", "-q", "-f", "qcow2", "0.qcow2", "64M"]);
    let mut spec = host.spec();
    let disk = spec.tree.disk.as_mut().expect("an image of a machine");
    disk.layers = vec![image.join("0.qcow2")];
    disk.size_bytes = 64 << 20;
    spec
}

/// A sandbox that begins as another one was.
fn made_of(spec: &MachineSpec, snapshot: &Path) -> MachineSpec {
    let snapshot = Some(snapshot.to_owned());
    MachineSpec { id: SandboxId::random(), hostname: "copy".to_owned(), snapshot, ..spec.clone() }
}

async fn restored(host: &Host, spec: &MachineSpec, from: &Path) -> Toolbox {
    host.engine.materialize(spec).await.unwrap_or_else(|error| panic!("{error:?}"));
    let boot = Boot::Restore(from.to_owned());
    host.engine.start(spec, boot).await.unwrap_or_else(|error| panic!("{error:?}"));
    host.engine.thaw(&spec.id).await.expect("thawed");
    host.greet(spec).await.0
}

async fn captured(host: &Host, id: &SandboxId, what: Capture, into: &Path) {
    host.engine.capture(id, what, into.to_owned()).await.unwrap_or_else(|error| panic!("{error:?}"));
}

/// Memory that a process shares with nobody, in MiB.
fn private_mib(process: i32) -> u64 {
    let text = fs_err::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

fn say(line: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("standard error takes lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_go_on_where_their_parent_was_and_share_its_memory() {
    const CLONES: usize = 8;
    let Some(host) = Host::new("clones_go_on_where_their_parent_was_and_share_its_memory").await else {
        return;
    };
    let spec = with_disk(&host);
    let parent = host.up(&spec).await;
    sh(&parent, &format!("echo parent >/dev/vda; sync; echo parent >/run/name; {COUNT}")).await;
    let then = counts_on(&parent).await;

    host.engine.freeze(&spec.id).await.expect("frozen");
    let snapshot = empty(&host, "snapshot");
    let begun = Instant::now();
    captured(&host, &spec.id, Capture::Machine, &snapshot).await;
    say(&format!("captured in {:?}", begun.elapsed()));
    host.engine.thaw(&spec.id).await.expect("thawed");
    let (parent, _) = host.greet(&spec).await;
    assert!(counts_on(&parent).await > then, "the parent goes on");
    sh(&parent, "echo later- >/dev/vda; sync; echo later >/run/name").await;
    let memory = whole(&snapshot.join("memory"));

    let mut clones = Vec::new();
    for number in 0..CLONES {
        let copy = made_of(&spec, &snapshot);
        let begun = Instant::now();
        let clone = restored(&host, &copy, &snapshot).await;
        assert_eq!(sh(&clone, "head -c 7 /dev/vda; cat /run/name; hostname").await, "parent\nparent\ncopy\n");
        say(&format!("clone {number}: first answer after {:?}", begun.elapsed()));
        assert!(counts_on(&clone).await >= then, "it goes on");
        sh(&clone, &format!("echo clone{number} >/dev/vda; sync; echo clone{number} >/run/name")).await;
        clones.push((copy, clone));
    }
    for (number, (_, clone)) in clones.iter().enumerate() {
        let own = format!("clone{number}\nclone{number}\n");
        assert_eq!(sh(clone, "head -c 7 /dev/vda; cat /run/name").await, own);
    }
    assert_eq!(sh(&parent, "head -c 7 /dev/vda; cat /run/name").await, "later-\nlater\n");
    assert!(whole(&snapshot.join("memory")) == memory, "nobody writes to the image");

    // Every clone maps the one file, and none as its own to write to.
    let inode =
        std::os::unix::fs::MetadataExt::ino(&fs_err::metadata(snapshot.join("memory")).expect("there"));
    let mut mapped = 0;
    for process in host.processes() {
        let private = command(process).iter().any(|word| word.contains("share=off,readonly=on,rom=off"));
        let maps = fs_err::read_to_string(format!("/proc/{process}/maps")).expect("readable");
        let line = maps.lines().find(|line| line.split_whitespace().nth(4) == Some(&*inode.to_string()));
        assert_eq!(private, line.is_some(), "{process}");
        if let Some(line) = line {
            assert!(line.contains("rw-p"), "{line}");
            say(&format!("clone: {} MiB private", private_mib(process)));
            mapped += 1;
        }
    }
    assert_eq!(mapped, CLONES);

    // Whatever becomes of the snapshot, its clones go on; and so do clones of them.
    fs_err::remove_dir_all(&snapshot).expect("removed");
    let (first, clone) = clones.swap_remove(0);
    let then = counts_on(&clone).await;
    host.engine.freeze(&first.id).await.expect("frozen");
    let second = empty(&host, "second");
    let begun = Instant::now();
    captured(&host, &first.id, Capture::Machine, &second).await;
    say(&format!("a clone captured in {:?}", begun.elapsed()));
    let copy = made_of(&spec, &second);
    let grandchild = restored(&host, &copy, &second).await;
    assert_eq!(sh(&grandchild, "head -c 7 /dev/vda; cat /run/name").await, "clone0\nclone0\n");
    assert!(counts_on(&grandchild).await >= then);
    host.engine.thaw(&first.id).await.expect("thawed");
    let (clone, _) = host.greet(&first).await;
    assert!(counts_on(&clone).await >= then);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_suspended_again_and_again_and_what_is_damaged_never_runs() {
    let Some(host) = Host::new("a_machine_is_suspended_again_and_again_and_what_is_damaged_never_runs").await
    else {
        return;
    };
    let mut spec = with_disk(&host);
    let mut toolbox = host.up(&spec).await;
    sh(&toolbox, COUNT).await;
    let mut then = counts_on(&toolbox).await;
    let mut image = PathBuf::new();
    let asleep = empty(&host, "asleep");
    for round in 1..=3 {
        sh(&toolbox, &format!("echo round{round} >/dev/vda; sync")).await;
        host.engine.freeze(&spec.id).await.expect("frozen");
        let old = std::mem::replace(&mut image, empty(&host, &format!("memory-{round}")));
        captured(&host, &spec.id, Capture::Memory, &image).await;
        if round == 2 {
            // An attempt that was not recorded is made again.
            fs_err::remove_dir_all(&image).expect("removed");
            fs_err::create_dir(&image).expect("made");
            captured(&host, &spec.id, Capture::Memory, &image).await;
        }
        host.engine.stop(&spec.id, StopMode::Kill).await.expect("stopped");
        if round == 1 {
            captured(&host, &spec.id, Capture::Suspended(image.clone()), &asleep).await;
            let inode = |directory: &Path| fs_err::metadata(directory.join("memory")).expect("there").ino();
            assert_eq!(inode(&asleep), inode(&image), "its memory is linked, not copied");
        }
        if round > 1 {
            fs_err::remove_dir_all(old).expect("removed");
        }
        spec.generation = Generation(spec.generation.0 + 1);
        toolbox = restored(&host, &spec, &image).await;
        let now = counts_on(&toolbox).await;
        assert!(now > then, "it goes on: {now} after {then}");
        assert_eq!(sh(&toolbox, "head -c 7 /dev/vda").await, format!("round{round}\n"));
        then = now;
    }
    host.engine.stop(&spec.id, StopMode::Kill).await.expect("stopped");
    spec.generation = Generation(spec.generation.0 + 1);

    // No bit of it may be another.
    let refused = async |reason: &str| {
        let boot = Boot::Restore(image.clone());
        match host.engine.start(&spec, boot).await {
            Err(EngineError::Invalid(why)) => assert!(why.contains(reason), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(host.processes(), Vec::<i32>::new(), "nothing was started");
    };
    for (name, offset) in [("memory", 20 << 20), ("state", 3000), ("config.json", 60)] {
        let file = fs_err::OpenOptions::new().read(true).write(true).open(image.join(name)).expect("opened");
        let mut byte = [0];
        file.file().read_exact_at(&mut byte, offset).expect("read");
        file.file().write_all_at(&[byte[0] ^ 2], offset).expect("written");
        refused("damaged").await;
        file.file().write_all_at(&byte, offset).expect("written");
    }
    let whole = spec.resources;
    spec.resources.memory_bytes *= 2;
    let boot = Boot::Restore(image.clone());
    match host.engine.start(&spec, boot).await {
        Err(EngineError::Invalid(why)) => {
            assert!(why.contains("memory in MiB is 256, this one's is 512"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    spec.resources = whole;
    let toolbox = restored(&host, &spec, &image).await;
    assert!(counts_on(&toolbox).await > 0);
    let awake = empty(&host, "awake");
    let refused = host.engine.capture(&spec.id, Capture::Suspended(image), awake).await;
    assert!(matches!(refused, Err(EngineError::Invalid(_))), "{refused:?}");
    host.engine.stop(&spec.id, StopMode::Kill).await.expect("stopped");

    // What was taken while it was suspended is what it was then, though it went on.
    let twin = restored(&host, &made_of(&spec, &asleep), &asleep).await;
    assert_eq!(sh(&twin, "head -c 7 /dev/vda").await, "round1\n");
    assert!(counts_on(&twin).await > 0);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_captured_while_its_guest_writes() {
    let Some(host) = Host::new("a_disk_is_captured_while_its_guest_writes").await else { return };
    let spec = with_disk(&host);
    let toolbox = host.up(&spec).await;
    // Each block says how often the whole disk was written before it.
    let write = "(round=0; while :; do round=$((round+1)); \
                 yes $round | head -c 4194304 | dd of=/dev/vda bs=64k conv=notrunc,fsync 2>/dev/null; \
                 echo $round >/run/count.new; mv /run/count.new /run/count; done) >/dev/null 2>&1 &";
    sh(&toolbox, &format!("echo 0 >/run/count; {write}")).await;
    let mut snapshots = Vec::new();
    for number in 0..3 {
        counts_on(&toolbox).await;
        let snapshot = empty(&host, &format!("snapshot-{number}"));
        captured(&host, &spec.id, Capture::Disk, &snapshot).await;
        let observed = host.engine.observe(&spec.id).await.expect("observed").expect("there");
        assert_eq!(observed.machine.expect("one").run, sandhaus_sandbox::engine::RunState::Running);
        counts_on(&toolbox).await;
        let top = format!("{}.qcow2", number + 1);
        qemu_img(&snapshot, &["check", "-q", "-f", "qcow2", &top]);
        let flat = host.directory.path().join(format!("flat-{number}"));
        let flat = flat.to_str().expect("text");
        qemu_img(&snapshot, &["convert", "-f", "qcow2", "-O", "raw", &top, flat]);
        snapshots.push(fs_err::read(flat).expect("read"));
    }
    assert!(snapshots[0] != snapshots[1] && snapshots[1] != snapshots[2], "the guest wrote between them");
    // After the last, the first is what it was.
    let again = host.directory.path().join("again");
    let directory = host.directory.path().join("snapshot-0");
    qemu_img(&directory, &["convert", "-f", "qcow2", "-O", "raw", "1.qcow2", again.to_str().expect("text")]);
    assert!(fs_err::read(again).expect("read") == snapshots[0]);

    // What is made of it starts cold, packed or not.
    let packed = empty(&host, "packed");
    host.engine.pack(directory.clone(), packed.clone()).await.expect("packed");
    host.engine.verify(packed.clone()).await.expect("whole");
    host.engine.destroy(&spec.id).await.expect("destroyed");
    let copy = made_of(&spec, &packed);
    let toolbox = host.up(&copy).await;
    assert_eq!(sh(&toolbox, "dd if=/dev/vda bs=64k count=64 2>/dev/null | sha256sum").await, {
        let head = host.directory.path().join("head");
        fs_err::write(&head, &snapshots[0][..4 << 20]).expect("written");
        format!("{}  -\n", String::from_utf8_lossy(&whole(&head)).split(' ').next().expect("a digest"))
    });
    host.end().await;
}
