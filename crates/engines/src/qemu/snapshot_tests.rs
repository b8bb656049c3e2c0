//! Snapshots tried on machines without a guest: what would be in their memory and on their disks is put there from outside,
//! so that a machine is there within milliseconds and every form of a memory image can be tried.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::{fs::MemfdFlags, process::Pid};
use sandhaus_sandbox::{
    engine::{Capture, EngineError, EngineResult, MachineSpec},
    types::{DiskImage, Generation, NetworkPolicy, Resources, SandboxId, Seccomp, SecurityProfile, Tree},
};
use serde_json::json;

use super::{
    Accelerator,
    arguments::{Hardware, RAM},
    capture::{Forms, MemoryBlock, Subject, capture_stopped, memory_blocks},
    disk::{Chain, Disks, KERNEL, OWN_LAYERS_MAX, PACKED, layer_name},
    manifest::{CONFIG, Form, MEMORY, Manifest, QemuVersion, STATE, VIDEO, devices_of},
    pack,
    qmp::Qmp,
    restore::Image,
};

const QEMU: &str = "qemu-system-x86_64";

/// How long a QEMU may take for anything here.
const LIMIT: Duration = Duration::from_secs(60);

const MEMORY_MIB: u64 = 32;
const DISK_BYTES: u64 = 64 << 20;
const VERSION: QemuVersion = QemuVersion { major: 9, minor: 2, micro: 0 };

/// Descriptors that one test has its children inherit would be inherited by those of another, with the locks behind them.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Host {
    directory: tempfile::TempDir,
    disks: Arc<Disks>,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

struct Machine {
    child: Child,
    qmp: Arc<Qmp>,
    subject: Subject,
    arguments: Vec<String>,
    blocks: Vec<MemoryBlock>,
}

impl Host {
    /// None, aloud, where there is no QEMU.
    async fn new(test: &str) -> Option<Self> {
        if Command::new(QEMU).arg("-version").stdout(Stdio::null()).status().is_err() {
            use std::io::Write as _;
            let line = format!("SKIPPED {test}: {QEMU} is not installed\n");
            std::io::stderr().write_all(line.as_bytes()).expect("standard error takes lines");
            return None;
        }
        let _alone = ALONE.lock().await;
        let directory = tempfile::tempdir().expect("a directory");
        let disks = Arc::new(Disks::open(directory.path()).expect("opened"));
        Some(Self { directory, disks, _alone })
    }

    fn empty(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs_err::create_dir(&path).expect("a directory");
        path
    }

    /// A sandbox of an image with one layer that shows `i` at its beginning.
    fn spec(&self) -> MachineSpec {
        let image = self.directory.path().join("image");
        let layer = image.join("0.qcow2");
        if !image.exists() {
            fs_err::create_dir(&image).expect("a directory");
            qemu_img(&image, &["create", "-q", "-f", "qcow2", "0.qcow2", &DISK_BYTES.to_string()]);
            qemu_io(&layer, &format!("write -q -P {} 0 64k", b'i'));
            fs_err::write(image.join(KERNEL), "a kernel").expect("written");
        }
        spec(DiskImage {
            layers: vec![layer],
            kernel: Some(image.join(KERNEL)),
            initramfs: None,
            command_line: "quiet".to_owned(),
            size_bytes: DISK_BYTES,
        })
    }

    fn made(&self, spec: &MachineSpec) -> SandboxId {
        self.disks.materialize(spec).expect("made");
        spec.id.clone()
    }

    fn made_of(&self, snapshot: &Path) -> SandboxId {
        self.made(&MachineSpec { snapshot: Some(snapshot.to_owned()), ..self.spec() })
    }

    async fn start(&self, id: &SandboxId, from: Option<&Path>) -> Machine {
        let image = from.map(|directory| Image::open(directory).expect("whole"));
        let files = self.disks.open_files(id).expect("a disk");
        // Copies that a child inherits.
        let mut inherited: Vec<OwnedFd> = Vec::new();
        let mut inherit = |file: &File| {
            let copy = rustix::io::dup(file).expect("copied");
            let number = copy.as_raw_fd();
            inherited.push(copy);
            number
        };
        let (disk, node) = files.arguments(&mut inherit);
        let (ram, how) = match image.as_ref().and_then(Image::memory) {
            Some(file) => (inherit(file), "share=off,readonly=on,rom=off"),
            None => {
                let fresh = rustix::fs::memfd_create("sandhaus-ram", MemfdFlags::CLOEXEC).expect("made");
                rustix::fs::ftruncate(&fresh, MEMORY_MIB << 20).expect("sized");
                (inherit(&File::from(fresh)), "share=on")
            }
        };
        let monitor = self.directory.path().join("monitor");
        let listener = std::os::unix::net::UnixListener::bind(&monitor).expect("bound");
        let listens = inherit(&File::from(OwnedFd::from(listener)));
        let hardware = hardware();
        let ram = format!("id={RAM},mem-path=/proc/self/fd/{ram},size={MEMORY_MIB}M,{how}");
        let mut arguments: Vec<String> = [
            "-machine",
            &format!("{},memory-backend={RAM}", hardware.machine),
            "-accel",
            "tcg",
            "-cpu",
            &hardware.cpu,
            "-m",
            &format!("{MEMORY_MIB}M"),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-object",
            &format!("memory-backend-file,{ram}"),
            "-chardev",
            &format!("socket,id=monitor,fd={listens},server=on,wait=off"),
            "-mon",
            "chardev=monitor,mode=control",
            "-device",
            "VGA,vgamem_mb=8",
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(disk);
        if let Some(node) = node {
            arguments.extend(["-device".to_owned(), format!("virtio-blk-pci,id=disk,drive={node}")]);
        }
        match &image {
            Some(_) => arguments.extend(Image::ARGUMENTS.iter().map(|word| (*word).to_owned())),
            None => arguments.push("-S".to_owned()),
        }
        let child = Command::new(QEMU)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("it starts");
        drop(inherited);
        let stream = tokio::net::UnixStream::connect(&monitor).await.expect("connected");
        fs_err::remove_file(&monitor).expect("removed");
        let qmp = tokio::time::timeout(LIMIT, Qmp::begin(stream)).await.expect("in time");
        let qmp = Arc::new(qmp.expect("a monitor"));
        let process = Pid::from_child(&child);
        if let Some(image) = &image {
            image.machine.check(&hardware, &devices_of(&arguments), VERSION).expect("it fits");
            image.load(&qmp, process).await.expect("loaded");
            assert!(!qmp.status().await.expect("a status").running, "it comes up frozen");
        }
        let (disks, devices) = (Arc::clone(&self.disks), devices_of(&arguments));
        let subject = Subject {
            id: id.clone(),
            disks,
            qmp: Arc::clone(&qmp),
            process,
            hardware,
            devices,
            qemu: VERSION,
        };
        let blocks = memory_blocks(&qmp).await.expect("listed");
        Machine { child, qmp, subject, arguments, blocks }
    }
}

fn hardware() -> Hardware {
    Hardware {
        // What the version of the minimum knows.
        machine: "pc-q35-8.2".to_owned(),
        cpu: "Nehalem".to_owned(),
        accelerator: Accelerator::Tcg,
        cpus: 1,
        memory_mib: MEMORY_MIB,
    }
}

fn spec(disk: DiskImage) -> MachineSpec {
    MachineSpec {
        id: SandboxId::random(),
        generation: Generation(1),
        tree: Tree { layers: Vec::new(), binds: Vec::new(), config: Default::default(), disk: Some(disk) },
        snapshot: None,
        resources: Resources { cpu_millis: 1000, memory_bytes: MEMORY_MIB << 20, pids: 0, disk_bytes: 0 },
        network: NetworkPolicy::None,
        security: SecurityProfile::Container,
        readonly_root: false,
        env: Default::default(),
        workdir: "/".to_owned(),
        mounts: Vec::new(),
        hostname: "tried".to_owned(),
        entrypoint: Vec::new(),
        shell: sandhaus_protocol::boot::ShellPreference::Sh,
        warm_shell: false,
        seccomp: Seccomp::default(),
        workspace: None,
    }
}

impl Machine {
    fn block(&self, name: &str) -> &MemoryBlock {
        self.blocks.iter().find(|block| block.name.ends_with(name)).expect("a block")
    }

    fn memory(&self) -> File {
        let path = format!("/proc/{}/mem", self.child.id());
        fs_err::OpenOptions::new().read(true).write(true).open(path).expect("opened").into_file()
    }

    fn put(&self, block: &str, offset: u64, bytes: &[u8]) {
        self.memory().write_all_at(bytes, self.block(block).address + offset).expect("written");
    }

    fn get(&self, block: &str, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory().read_exact_at(&mut bytes, self.block(block).address + offset).expect("read");
        bytes
    }

    /// What a guest would do to its disk.
    async fn disk(&self, command: &str) {
        let line = format!("qemu-io -d /machine/peripheral/disk/virtio-backend \"{command}\"");
        let said = self.qmp.execute("human-monitor-command", json!({ "command-line": line })).await;
        let said = said.expect("done").as_str().map(str::to_owned).unwrap_or_default();
        assert!(!said.contains("fail") && !said.contains("rror"), "{command}: {said}");
    }

    async fn capture(&self, what: Capture, into: &Path, forms: Option<Forms>) {
        self.subject.capture_as(what, into, forms).await.unwrap_or_else(|error| panic!("{error:?}"));
    }

    async fn layers(&self) -> Vec<u32> {
        let top = self.subject.top_layer().await.expect("asked").expect("a disk");
        Chain::below(&self.subject.disks.path_of(&self.subject.id), top).expect("read").layers
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qemu_img(directory: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).current_dir(directory).output().expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Reads or writes a disk as QEMU does.
fn qemu_io(path: &Path, command: &str) {
    let mut program = Command::new("qemu-io");
    if command.starts_with("read") {
        program.arg("-r");
    }
    let output = program.args(["-f", "qcow2", "-c", command]).arg(path).output();
    let output = output.expect("it runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("failed"), "{command}: {said}");
}

/// The disk of a snapshot, or of a sandbox without a machine, shows this letter where it is asked.
fn shows(directory: &Path, letter: u8, offset: &str) {
    let chain = Chain::read(directory).expect("a chain");
    let name = if directory.join(PACKED).exists() {
        PACKED.to_owned()
    } else {
        layer_name(chain.top().expect("a disk"))
    };
    qemu_io(&directory.join(name), &format!("read -q -P {letter} {offset} 64k"));
}

fn contents(path: &Path) -> Vec<u8> {
    fs_err::read(path).expect("read")
}

fn flip(path: &Path, offset: u64) {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path).expect("opened").into_file();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
}

fn refused<T: std::fmt::Debug>(result: EngineResult<T>, words: &str) {
    match result {
        Err(EngineError::Invalid(reason)) => assert!(reason.contains(words), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_comes_back_in_every_form_and_an_image_never_changes() {
    let Some(host) = Host::new("memory_comes_back_in_every_form_and_an_image_never_changes").await else {
        return;
    };
    const SECOND: u64 = 5 << 20;
    let parent = host.start(&host.made(&host.spec()), None).await;
    parent.put(RAM, SECOND, b"of the parent");
    parent.put("vram", 4096, b"on its screen");
    let forms: [(Form, Forms); 3] = [
        (Form::IgnoreShared, &[Form::IgnoreShared]),
        (Form::Devices, &[Form::Devices]),
        (Form::Stream, &[Form::Stream]),
    ];
    for (form, forms) in forms {
        let snapshot = host.empty(&format!("of-the-parent-{form:?}"));
        parent.capture(Capture::Machine, &snapshot, Some(forms)).await;
        assert_eq!(Manifest::read(&snapshot).expect("read").machine.expect("one").form, form);
        let image = snapshot.join(if form.maps_memory() { MEMORY } else { STATE });
        let whole = contents(&image);
        let child = host.start(&host.made_of(&snapshot), Some(&snapshot)).await;
        assert_eq!(child.arguments.iter().any(|word| word.contains("share=off")), form.maps_memory());
        assert_eq!(child.get(RAM, SECOND, 13), b"of the parent");
        assert_eq!(child.get("vram", 4096, 13), b"on its screen");
        child.put(RAM, SECOND + 7, b"child!");
        child.put(RAM, SECOND + (2 << 20), b"written by it alone");

        // What is its own is in images of it, whatever their form, and in none of its parent's.
        let forms: [(Form, Forms); 3] = [
            (Form::Devices, &[Form::Devices]),
            (Form::MappedRam, &[Form::MappedRam]),
            (Form::Stream, &[Form::Stream]),
        ];
        for (second, forms) in forms {
            let snapshot = host.empty(&format!("{form:?}-{second:?}"));
            child.capture(Capture::Machine, &snapshot, Some(forms)).await;
            let grandchild = host.start(&host.made_of(&snapshot), Some(&snapshot)).await;
            assert_eq!(grandchild.get(RAM, SECOND, 13), b"of the child!");
            assert_eq!(grandchild.get(RAM, SECOND + (2 << 20), 19), b"written by it alone");
            assert_eq!(grandchild.get("vram", 4096, 13), b"on its screen");
        }
        assert!(contents(&image) == whole, "nobody writes to an image");
        assert_eq!(parent.get(RAM, SECOND, 13), b"of the parent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_qemu_does_not_know_is_passed_over() {
    let Some(host) = Host::new("a_form_that_qemu_does_not_know_is_passed_over").await else { return };
    let parent = host.start(&host.made(&host.spec()), None).await;
    let suspended = host.empty("suspended");
    parent.capture(Capture::Memory, &suspended, None).await;
    let child = host.start(&parent.subject.id, Some(&suspended)).await;
    // RAM of a restored machine is its own for QEMU, so this form cannot leave it out; the next can.
    let again = host.empty("again");
    child.capture(Capture::Memory, &again, Some(&[Form::MappedRam, Form::Stream])).await;
    assert!(Manifest::read(&again).expect("read").disk.is_none());
    refused(host.disks.materialize(&MachineSpec { snapshot: Some(again), ..host.spec() }), "memory alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_before_anything_runs() {
    let Some(host) = Host::new("a_flipped_bit_is_found_before_anything_runs").await else { return };
    let parent = host.start(&host.made(&host.spec()), None).await;
    parent.put(RAM, 3 << 20, b"something");
    let snapshot = host.empty("snapshot");
    parent.capture(Capture::Machine, &snapshot, Some(&[Form::Devices])).await;
    Image::open(&snapshot).expect("whole");
    let packed = host.empty("packed");
    pack::pack(&snapshot, &packed).expect("packed");
    pack::verify(&packed).expect("whole");
    for (name, offset) in [(MEMORY, (3 << 20) + 2), (MEMORY, 9 << 20), (STATE, 1000), (VIDEO, 70_000)] {
        flip(&snapshot.join(name), offset);
        refused(Image::open(&snapshot), name);
        flip(&snapshot.join(name), offset);
        Image::open(&snapshot).expect("whole again");
    }
    let config = contents(&snapshot.join(CONFIG));
    let digit = config.windows(7).position(|word| word == b"\"bytes\"").expect("a number") + 9;
    flip(&snapshot.join(CONFIG), digit as u64);
    assert!(matches!(Image::open(&snapshot), Err(EngineError::Invalid(_))));
    fs_err::remove_file(snapshot.join(CONFIG)).expect("removed");
    fs_err::write(snapshot.join(CONFIG), &config).expect("written");
    Image::open(&snapshot).expect("whole again");
    fs_err::remove_file(snapshot.join(VIDEO)).expect("removed");
    refused(Image::open(&snapshot), VIDEO);

    // `packed` has links to some of those files, which the flips came and went in; the rest is its own.
    for (name, offset) in [(PACKED, 70_000), (KERNEL, 2)] {
        flip(&packed.join(name), offset);
        refused(pack::verify(&packed), name);
        flip(&packed.join(name), offset);
        pack::verify(&packed).expect("whole again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_captured_while_its_machine_writes_and_layers_become_one() {
    let Some(host) = Host::new("a_disk_is_captured_while_its_machine_writes_and_layers_become_one").await
    else {
        return;
    };
    let machine = host.start(&host.made(&host.spec()), None).await;
    let directory = host.disks.path_of(&machine.subject.id);
    machine.qmp.cont().await.expect("it runs");
    machine.disk(&format!("read -P {} 0 64k", b'i')).await;
    let mut snapshots = Vec::new();
    let count = OWN_LAYERS_MAX + 3;
    for number in 0..count {
        let letter = b'a' + u8::try_from(number).expect("few");
        machine.disk(&format!("write -P {letter} 64k 64k")).await;
        machine.disk(&format!("write -P {letter} {}k 64k", 128 + 64 * number)).await;
        if number == 5 {
            // A server that died in the midst leaves a layer that no machine took.
            let top = machine.layers().await.pop().expect("a top");
            host.disks.add_layer(&machine.subject.id, top, DISK_BYTES).expect("added");
        }
        let snapshot = host.empty(&format!("snapshot-{number}"));
        machine.capture(Capture::Disk, &snapshot, None).await;
        assert!(machine.qmp.status().await.expect("a status").running, "it runs on");
        let own = machine.layers().await.len() - 1;
        assert!(own <= OWN_LAYERS_MAX, "{own} layers at {number}");
        snapshots.push((snapshot, letter));
    }
    assert!(machine.layers().await.len() < count, "they were merged");
    assert!(!directory.join(layer_name(2)).exists(), "what was merged is gone");
    for (number, (snapshot, letter)) in snapshots.iter().enumerate() {
        shows(snapshot, b'i', "0");
        shows(snapshot, *letter, "64k");
        shows(snapshot, b'a', "128k");
        shows(snapshot, *letter, &format!("{}k", 128 + 64 * number));
        let top = Chain::read(snapshot).expect("read").top().expect("a disk");
        qemu_img(snapshot, &["check", "-q", "-f", "qcow2", &layer_name(top)]);
    }
    machine.disk(&format!("read -P {} 128k 64k", b'a')).await;

    // The same without a machine, and of what is made of that.
    let id = machine.subject.id.clone();
    drop(machine);
    let mut snapshot = host.empty("stopped");
    capture_stopped(&host.disks, &id, &snapshot).await.expect("captured");
    for number in 0..OWN_LAYERS_MAX + 2 {
        let id = host.made_of(&snapshot);
        let chain = Chain::read(&host.disks.path_of(&id)).expect("read");
        let top = host.disks.path_of(&id).join(layer_name(chain.top().expect("a top")));
        qemu_io(&top, &format!("write -q -P {} 64k 64k", b'A' + u8::try_from(number).expect("few")));
        snapshot = host.empty(&format!("stopped-{number}"));
        capture_stopped(&host.disks, &id, &snapshot).await.expect("captured");
        let own = Chain::read(&snapshot).expect("read").layers.len() - 1;
        assert!(own <= OWN_LAYERS_MAX, "{own} layers at {number}");
        shows(&snapshot, b'A' + u8::try_from(number).expect("few"), "64k");
        shows(&snapshot, b'b', "192k");
    }
    shows(&snapshot, b'i', "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_snapshot_stands_alone_and_is_a_sandboxs_beginning() {
    let Some(host) = Host::new("a_packed_snapshot_stands_alone_and_is_a_sandboxs_beginning").await else {
        return;
    };
    let parent = host.start(&host.made(&host.spec()), None).await;
    parent.put(RAM, 1 << 20, b"warm");
    parent.disk(&format!("write -P {} 1M 64k", b'p')).await;
    let (snapshot, packed, again) = (host.empty("snapshot"), host.empty("packed"), host.empty("again"));
    parent.capture(Capture::Machine, &snapshot, None).await;
    pack::pack(&snapshot, &packed).expect("packed");
    let mut names: Vec<_> = fs_err::read_dir(&packed)
        .expect("read")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, [CONFIG, PACKED, KERNEL, MEMORY, STATE]);

    // Nothing of this host is needed any more.
    drop(parent);
    fs_err::remove_dir_all(&snapshot).expect("removed");
    fs_err::remove_dir_all(host.directory.path().join("image")).expect("removed");
    assert_eq!(pack::verify(&packed).expect("whole").expect("a machine").hardware, hardware());
    let of_pack = spec(DiskImage {
        layers: Vec::new(),
        kernel: None,
        initramfs: None,
        command_line: String::new(),
        size_bytes: 0,
    });
    let id = host.made(&MachineSpec { snapshot: Some(packed.clone()), ..of_pack });
    let child = host.start(&id, Some(&packed)).await;
    assert_eq!(child.get(RAM, 1 << 20, 4), b"warm");
    child.qmp.cont().await.expect("it runs");
    child.disk(&format!("read -P {} 1M 64k", b'p')).await;
    child.disk(&format!("read -P {} 0 64k", b'i')).await;
    child.disk(&format!("write -P {} 2M 64k", b'c')).await;
    assert_eq!(child.subject.disks.open_files(&id).expect("open").command_line, "quiet");
    drop(child);
    pack::verify(&packed).expect("whole still");
    // And back into a store.
    pack::pack(&packed, &again).expect("packed");
    assert!(contents(&again.join(CONFIG)) == contents(&packed.join(CONFIG)));
}
