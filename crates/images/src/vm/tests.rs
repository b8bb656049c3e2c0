//! Images of virtual machines, built with a kernel that no machine could start: what is in the files is looked at by the
//! programs of their formats.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tokio_util::sync::CancellationToken;

use super::{
    BuildVm, BuiltVm, Compression, Form, ImportVm, KernelChoice, Layering, Novelty, Origin, Stage, VmSource,
};
use crate::{Catalogue, Error, ImageName, ImportOptions, Kind, Prune, Result};

const AGENT: &[u8] = b"#!agent";

struct World {
    folder: tempfile::TempDir,
    catalogue: Catalogue,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&folder.path().join("images")).unwrap();
        fs::write(folder.path().join("vmlinuz"), "a kernel").unwrap();
        Self { folder, catalogue }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A tree with this in a file.
    fn tree(&self, name: &str, content: &str) -> PathBuf {
        let tree = self.path(name);
        fs::create_dir_all(tree.join("etc")).unwrap();
        if !tree.join("etc/passwd").exists() {
            fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        }
        // The same files have the same times.
        if fs::read_to_string(tree.join("etc/content")).ok().as_deref() != Some(content) {
            fs::write(tree.join("etc/content"), content).unwrap();
        }
        tree
    }

    fn build(&self, source: VmSource, form: Form) -> BuildVm<'static> {
        BuildVm {
            source,
            form,
            kernel: KernelChoice::File(self.path("vmlinuz")),
            modules: None,
            compression: Compression::Zstd,
            layering: Layering::Natural,
            append: None,
            agent: AGENT,
            interrupt: CancellationToken::new(),
        }
    }

    fn in_memory(&self, content: &str) -> BuildVm<'static> {
        self.build(VmSource::Tree(self.tree("tree", content)), Form::Memory)
    }

    fn on_disk(&self, content: &str) -> BuildVm<'static> {
        self.build(VmSource::Tree(self.tree("tree", content)), Form::Disk(Some(128 << 20)))
    }

    fn make(&self, name: &str, build: &BuildVm<'_>) -> Result<BuiltVm> {
        self.catalogue.build_vm(&named(name), build, &mut |_| {})
    }

    fn import(&self, name: &str, disk: &Path, base: Option<&str>) -> Result<BuiltVm> {
        let import = ImportVm {
            disk: disk.to_owned(),
            base: base.map(named),
            kernel: None,
            initramfs: None,
            append: None,
            interrupt: CancellationToken::new(),
        };
        self.catalogue.import_vm(&named(name), &import, &mut |_| {})
    }

    fn digest(&self, name: &str) -> String {
        self.catalogue.get(&named(name)).unwrap().digest
    }

    fn layers(&self, name: &str) -> Vec<PathBuf> {
        self.catalogue.tree(&named(name)).unwrap().disk.expect("a disk").layers
    }

    /// A file within the file system on an image's disk, as `debugfs` reads it; empty if it is not there.
    fn file(&self, name: &str, path: &str, offset: u64) -> String {
        self.ask(name, &format!("cat {path}"), offset)
    }

    /// What `debugfs` says to a command.
    fn ask(&self, name: &str, command: &str, offset: u64) -> String {
        let plain = self.path("plain.raw");
        tool(
            "qemu-img",
            &["convert", "-f", "qcow2", "-O", "raw", text(self.layers(name).last().unwrap()), text(&plain)],
        );
        let place = format!("{}?offset={offset}", plain.display());
        let read = tool("debugfs", &["-R", command, &place]);
        fs::remove_file(plain).unwrap();
        read
    }

    fn scratches(&self) -> usize {
        fs::read_dir(self.path("images/tmp")).unwrap().count()
    }
}

fn named(name: &str) -> ImageName {
    ImageName::parse(name).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

#[track_caller]
fn tool(program: &str, arguments: &[&str]) -> String {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new("/usr/bin/env")
        .arg("-")
        .arg(format!("PATH={path}"))
        .arg(program)
        .args(arguments)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn names_have_versions_and_go_back() {
    let world = World::new();
    let first = world.make("vm", &world.in_memory("one")).unwrap();
    assert_eq!((first.version.as_str(), first.novelty, first.image.kind), ("vm.1", Novelty::New, Kind::Disk));
    let again = world.make("vm", &world.in_memory("one")).unwrap();
    assert_eq!((again.version.as_str(), again.novelty), ("vm.1", Novelty::Same), "nothing in it is new");
    assert!(matches!(world.catalogue.rollback(&named("vm")), Err(Error::NoVersionBefore(_))));
    for (content, version) in [("two", "vm.2"), ("three", "vm.3")] {
        assert_eq!(world.make("vm", &world.in_memory(content)).unwrap().version.as_str(), version);
    }
    assert_eq!(world.digest("vm"), world.digest("vm.3"));

    let (image, version) = world.catalogue.rollback(&named("vm")).unwrap();
    assert_eq!((version.as_str(), image.digest), ("vm.2", world.digest("vm.2")));
    // A version that was removed is passed over, and its number is not given again.
    world.catalogue.remove(&named("vm.1"), &|_| false).unwrap();
    assert!(matches!(world.catalogue.rollback(&named("vm")), Err(Error::NoVersionBefore(_))));
    world.catalogue.remove(&named("vm.3"), &|_| false).unwrap();
    assert_eq!(world.make("vm", &world.in_memory("three")).unwrap().version.as_str(), "vm.4");
    let (_, version) = world.catalogue.rollback(&named("vm")).unwrap();
    assert_eq!(version.as_str(), "vm.2");
    // What was rolled back comes forward again by building it.
    let again = world.make("vm", &world.in_memory("three")).unwrap();
    assert_eq!((again.version.as_str(), again.novelty), ("vm.4", Novelty::Same));
    assert_eq!(world.digest("vm"), world.digest("vm.4"));
    // A name that was given by hand knows where it is by what it stands for.
    world.catalogue.tag(&named("vm.4"), &named("vm")).unwrap();
    assert_eq!(world.catalogue.rollback(&named("vm")).unwrap().1.as_str(), "vm.2");
    assert!(matches!(world.catalogue.rollback(&named("missing")), Err(Error::NotFound(_))));
}

#[test]
fn an_image_in_memory_is_kept_and_removed_as_others() {
    let world = World::new();
    let built = world.make("vm", &world.in_memory("one")).unwrap();
    let details = world.catalogue.details(&named("vm")).unwrap();
    let manifest = details.disk.expect("a manifest");
    assert!(matches!(manifest.source, Origin::Tree { .. }), "{manifest:?}");
    assert_eq!((manifest.layers.len(), manifest.size_bytes), (0, 0));
    let tree = world.catalogue.tree(&named("vm")).unwrap();
    let disk = tree.disk.expect("a disk");
    assert!(tree.layers.is_empty() && disk.layers.is_empty());
    let initramfs = fs::read(disk.initramfs.expect("an initramfs")).unwrap();
    let holds = |wanted: &[u8]| initramfs.windows(wanted.len()).any(|found| found == wanted);
    assert!(holds(AGENT) && holds(b"etc/content") && holds(br#"{"modules":[],"root":null}"#));
    assert_eq!(fs::read(disk.kernel.expect("a kernel")).unwrap(), b"a kernel");

    world.catalogue.validate(&named("vm")).unwrap();
    let refused = world.catalogue.export(&named("vm"), crate::ExportFormat::Tar, &mut Vec::new());
    assert!(matches!(refused, Err(Error::Form { .. })), "{refused:?}");
    let source = VmSource::Image(named("vm"));
    assert!(matches!(world.make("other", &world.build(source, Form::Memory)), Err(Error::Form { .. })));
    let replace = ImportOptions::default();
    assert!(matches!(
        world.catalogue.import(&named("vm"), &world.tree("tree", "x"), &replace, &mut |_, _| {}),
        Err(Error::Exists(_))
    ));

    // In use it stays without a name; then it goes.
    let digest = built.image.digest;
    let in_use = |asked: &str| asked == digest;
    world.catalogue.remove(&named("vm"), &in_use).unwrap();
    world.catalogue.remove(&named("vm.1"), &in_use).unwrap();
    world.catalogue.tree_by_digest(&digest).unwrap();
    let pruned = world.catalogue.prune(Prune::Nameless, &|_| false).unwrap();
    assert!(pruned.freed_bytes > 0);
    assert!(matches!(world.catalogue.tree_by_digest(&digest), Err(Error::NotFound(_))));
}

#[test]
fn damage_is_found_by_the_file_it_is_in() {
    let world = World::new();
    world.make("vm", &world.in_memory("one")).unwrap();
    let disk = world.catalogue.tree(&named("vm")).unwrap().disk.expect("a disk");
    let kernel = disk.kernel.expect("a kernel");
    tool("chmod", &["600", text(&kernel)]);
    fs::write(kernel, "another!").unwrap();
    let damaged = world.catalogue.validate(&named("vm")).unwrap_err().to_string();
    assert!(damaged.contains("file kernel has changed"), "{damaged}");
}

#[test]
fn the_same_files_give_the_same_disk() {
    let (one, other) = (World::new(), World::new());
    let build = one.on_disk("content");
    let first = one.make("vm", &build).unwrap();
    let second = other.make("another-name", &build).unwrap();
    let (first, second) = (first.image.digest, second.image.digest);
    let manifest = |world: &World, name| world.catalogue.details(&named(name)).unwrap().disk;
    assert_eq!(manifest(&one, "vm"), manifest(&other, "another-name"));
    assert_eq!(first, second);
    assert_eq!(one.file("vm", "/etc/content", 0), "content");
    assert_eq!(one.file("vm", "/etc/resolv.conf", 0), "nameserver 192.168.0.1\n");
    let layers = one.layers("vm");
    tool("qemu-img", &["check", "-f", "qcow2", text(&layers[0])]);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&layers[0]).unwrap());
    assert_eq!(mode & 0o777, 0o444, "nobody writes to it any more");
    assert_eq!(one.scratches(), 0);
}

#[test]
fn files_of_a_directory_keep_owner_and_mode_on_the_disk() {
    let world = World::new();
    let tree = world.tree("tree", "x");
    fs::write(tree.join("etc/secret"), "").unwrap();
    tool("chmod", &["4750", text(&tree.join("etc/secret"))]);
    fs::hard_link(tree.join("etc/secret"), tree.join("etc/second")).unwrap();
    world.make("vm", &world.build(VmSource::Tree(tree), Form::Disk(Some(128 << 20)))).unwrap();
    let plain = world.path("plain.raw");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(&world.layers("vm")[0]), text(&plain)]);
    let said = tool("debugfs", &["-R", "stat /etc/secret", text(&plain)]);
    assert!(said.contains("Mode:  04750") && said.contains("Links: 2"), "{said}");
    assert!(said.contains("User:     0"), "{said}");
    assert!(tool("debugfs", &["-R", "stat /workspace", text(&plain)]).contains("User:  1000"));
    tool("e2fsck", &["-f", "-n", text(&plain)]);
}

#[test]
fn an_image_of_layers_becomes_a_disk() {
    let world = World::new();
    let tree = world.tree("tree", "layered");
    fs::hard_link(tree.join("etc/content"), tree.join("etc/twin")).unwrap();
    std::os::unix::fs::symlink("content", tree.join("etc/link")).unwrap();
    let options = ImportOptions::default();
    let image = world.catalogue.import(&named("layers"), &tree, &options, &mut |_, _| {}).unwrap();
    let build = world.build(VmSource::Image(named("layers")), Form::Disk(Some(128 << 20)));
    world.make("vm", &build).unwrap();
    assert_eq!(world.file("vm", "/etc/twin", 0), "layered");
    assert!(world.ask("vm", "stat /etc/content", 0).contains("Links: 2"));
    assert!(world.ask("vm", "stat /etc/link", 0).contains("dest: \"content\""));
    let manifest = world.catalogue.details(&named("vm")).unwrap().disk.expect("a manifest");
    assert_eq!(manifest.source, Origin::Image { digest: image.digest });
    // The image of the host is shown, not kept, so nothing can be made of it.
    let host = world.build(VmSource::Image(named("host")), Form::Memory);
    assert!(matches!(world.make("vm", &host), Err(Error::Form { .. })));
}

#[test]
fn a_disk_lies_over_that_of_another_image() {
    let world = World::new();
    world.make("base", &world.on_disk("base")).unwrap();
    let mut over = world.on_disk("golden");
    over.layering = Layering::Over(named("base"));
    for (name, compression) in [("golden", Compression::Zstd), ("plain", Compression::None)] {
        over.compression = compression;
        world.make(name, &over).unwrap();
        let layers = world.layers(name);
        assert_eq!(layers.len(), 2);
        let said = tool("qemu-img", &["info", "-f", "qcow2", text(&layers[1])]);
        assert!(
            said.contains("backing file: 0.qcow2") && said.contains("backing file format: qcow2"),
            "{said}"
        );
        tool("qemu-img", &["check", "-f", "qcow2", text(&layers[1])]);
        assert_eq!(world.file(name, "/etc/content", 0), "golden");
        assert!(fs::metadata(&layers[1]).unwrap().len() < fs::metadata(&layers[0]).unwrap().len() * 4);
    }
    // The image below may go: its file has another name here.
    world.catalogue.remove(&named("base"), &|_| false).unwrap();
    world.catalogue.remove(&named("base.1"), &|_| false).unwrap();
    world.catalogue.validate(&named("golden")).unwrap();
    assert_eq!(world.file("golden", "/etc/content", 0), "golden");
    // The same without layers is the same disk.
    over.layering = Layering::Flat;
    world.make("flat", &over).unwrap();
    let (golden, flat) = (world.layers("golden"), world.layers("flat"));
    tool("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", text(&golden[1]), text(&flat[0])]);

    over.layering = Layering::Over(named("nowhere"));
    assert!(matches!(world.make("x", &over), Err(Error::NotFound(_))));
}

/// A disk as distributions ship them: a partition table, and on its second partition a system with a kernel.
fn stock_disk(world: &World) -> PathBuf {
    const START: u64 = 2 << 20;
    let tree = world.tree("stock", "stock");
    let modules = tree.join("usr/lib/modules/6.6.6-stock");
    for folder in
        ["boot", "sbin", "usr/lib/systemd", "usr/lib/modules/6.6.5-old", "usr/lib/modules/6.6.6-stock/kernel"]
    {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", tree.join("lib")).unwrap();
    std::os::unix::fs::symlink("/lib/systemd/systemd", tree.join("sbin/init")).unwrap();
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", tree.join("etc/resolv.conf"))
        .unwrap();
    fs::write(tree.join("usr/lib/systemd/systemd"), "").unwrap();
    fs::write(tree.join("boot/vmlinuz-6.6.6-stock"), "its own kernel").unwrap();
    fs::write(tree.join("etc/machine-id"), "0123\n").unwrap();
    let names = ["virtio_pci", "virtio_blk", "virtio_net", "ext4"];
    let lines: String = names.iter().map(|name| format!("kernel/{name}.ko:\n")).collect();
    fs::write(modules.join("modules.dep"), lines).unwrap();
    for name in names {
        fs::write(modules.join(format!("kernel/{name}.ko")), format!("\x7fELF {name}")).unwrap();
    }
    let disk = world.path("stock.img");
    let file = fs::File::create(&disk).unwrap();
    file.set_len(96 << 20).unwrap();
    let part = world.path("part.raw");
    fs::File::create(&part).unwrap().set_len(64 << 20).unwrap();
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", text(&tree), text(&part)]);
    tool(
        "dd",
        &[
            "status=none",
            "conv=notrunc",
            "bs=1M",
            "seek=2",
            &format!("if={}", part.display()),
            &format!("of={}", disk.display()),
        ],
    );
    // A header, and one entry: the second of the table.
    use std::os::unix::fs::FileExt as _;
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[72..80].copy_from_slice(&2_u64.to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    file.write_all_at(&header, 512).unwrap();
    let mut entry = [0; 128];
    entry[0] = 1;
    entry[32..40].copy_from_slice(&(START / 512).to_le_bytes());
    entry[40..48].copy_from_slice(&((START + (64 << 20)) / 512 - 1).to_le_bytes());
    file.write_all_at(&entry, 1024 + 128).unwrap();
    disk
}

#[test]
fn a_stock_disk_gets_the_agent_without_being_booted() {
    const START: u64 = 2 << 20;
    let world = World::new();
    let disk = stock_disk(&world);
    let packed = world.path("stock.qcow2");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&disk), text(&packed)]);
    for (name, source, layers) in [("from-img", &disk, 2), ("from-qcow2", &packed, 2), ("flat", &disk, 1)] {
        let mut build = world.build(VmSource::Disk(source.clone()), Form::Disk(None));
        build.kernel = KernelChoice::Automatic;
        if layers == 1 {
            build.layering = Layering::Flat;
        }
        world.make(name, &build).unwrap();
        assert_eq!(world.layers(name).len(), layers, "{name}");
        assert_eq!(world.file(name, "/usr/local/bin/sandhaus-agent", START), "#!agent");
        let unit = world.file(name, "/etc/systemd/system/sandhaus-agent.service", START);
        let wanted = "stat /etc/systemd/system/multi-user.target.wants/sandhaus-agent.service";
        let wanted = world.ask(name, wanted, START);
        assert!(wanted.contains("dest: \"/etc/systemd/system/sandhaus-agent.service\""), "{wanted}");
        assert!(unit.contains("ExecStart=/usr/local/bin/sandhaus-agent --guest"), "{unit}");
        assert_eq!(world.file(name, "/etc/resolv.conf", START), "nameserver 192.168.0.1\n");
        assert_eq!(world.file(name, "/etc/machine-id", START), "");
        assert_eq!(world.file(name, "/etc/content", START), "stock", "what was there is there");
        assert!(world.file(name, "/etc/passwd", START).contains("daytona:*:1000:1000:"));
        let image = world.catalogue.tree(&named(name)).unwrap().disk.expect("a disk");
        assert_eq!(fs::read(image.kernel.expect("a kernel")).unwrap(), b"its own kernel");
        let initramfs =
            String::from_utf8_lossy(&fs::read(image.initramfs.expect("one")).unwrap()).into_owned();
        assert!(initramfs.contains(r#""device":"/dev/vda2""#) && initramfs.contains("\x7fELF virtio_blk"));
        assert!(image.command_line.contains("cloud-init=disabled"), "{}", image.command_line);
        let manifest = world.catalogue.details(&named(name)).unwrap().disk.expect("a manifest");
        assert_eq!(manifest.init.as_deref(), Some("systemd"));
        assert_eq!(manifest.kernel.expect("a kernel").release.as_deref(), Some("6.6.6-stock"));
    }
    // The untouched disk lies below what was put into it.
    let bottom = &world.layers("from-img")[0];
    tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(bottom), text(&disk)]);
    let (layered, flat) = (world.layers("from-img"), world.layers("flat"));
    tool("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", text(&layered[1]), text(&flat[0])]);
    assert_eq!(world.scratches(), 0);
}

#[test]
fn disks_that_name_other_files_are_refused() {
    let world = World::new();
    let secret = world.path("secret");
    fs::write(&secret, "x".repeat(1 << 20)).unwrap();
    let backed = world.path("backed.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&secret), "-F", "raw", text(&backed)]);
    let external = world.path("external.qcow2");
    let option = format!("data_file={}", world.path("data").display());
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, text(&external), "1M"]);
    let encrypted = world.path("encrypted.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "--object",
            "secret,id=s,data=x",
            "-f",
            "qcow2",
            "-o",
            options,
            text(&encrypted),
            "1M",
        ],
    );
    let plain = world.path("plain.qcow2");
    fs::write(&plain, vec![0; 4096]).unwrap();
    for (disk, why) in [
        (&backed, "names a backing file"),
        (&external, "external data file"),
        (&encrypted, "encrypted"),
        (&plain, "not in the format qcow2"),
    ] {
        let refused = world.import("vm", disk, None).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        let build = world.build(VmSource::Disk(disk.clone()), Form::Disk(None));
        let refused = world.make("vm", &build).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(world.catalogue.get(&named("vm")).is_err());
    assert_eq!(world.scratches(), 0);
}

#[test]
fn a_disk_is_imported_as_it_is_or_over_an_image() {
    let world = World::new();
    world.make("base", &world.on_disk("base")).unwrap();
    let base = &world.layers("base")[0];
    let whole = world.path("whole.qcow2");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "qcow2", text(base), text(&whole)]);
    let built = world.import("whole", &whole, None).unwrap();
    assert_eq!(built.version.as_str(), "whole.1");
    assert_eq!(world.file("whole", "/etc/content", 0), "base");
    let disk = world.catalogue.tree(&named("whole")).unwrap().disk.expect("a disk");
    assert_eq!((disk.kernel, disk.initramfs, disk.size_bytes), (None, None, 128 << 20));

    // Over an image's disk, whatever its header calls the file below; that is never opened.
    let golden = world.path("golden.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&whole), "-F", "qcow2", text(&golden)]);
    tool("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "/nonexistent/base", "-F", "raw", text(&golden)]);
    let refused = world.import("golden", &golden, None).unwrap_err().to_string();
    assert!(refused.contains("names a backing file"), "{refused}");
    world.import("golden", &golden, Some("base")).unwrap();
    let layers = world.layers("golden");
    let said = tool("qemu-img", &["info", "-f", "qcow2", text(&layers[1])]);
    assert!(said.contains("backing file: 0.qcow2") && said.contains("backing file format: qcow2"), "{said}");
    assert_eq!(world.file("golden", "/etc/content", 0), "base");
    let disk = world.catalogue.tree(&named("golden")).unwrap().disk.expect("a disk");
    assert!(disk.kernel.is_some() && disk.initramfs.is_some(), "those of the image below");
    assert!(world.import("whole", &whole, Some("base")).is_err(), "it is whole");

    // A file whose tables are wrong.
    let broken = world.path("broken.qcow2");
    let mut bytes = fs::read(&whole).unwrap();
    bytes[0x40000..0x50000].fill(0xff);
    let table = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    let table = usize::try_from(table).unwrap();
    bytes[table..table + 8].copy_from_slice(&0x7fff_ffff_0000_u64.to_be_bytes());
    fs::write(&broken, bytes).unwrap();
    assert!(matches!(world.import("broken", &broken, None), Err(Error::Tool { tool: "qemu-img", .. })));
    assert_eq!(world.scratches(), 0);
}

#[test]
fn a_build_that_is_stopped_leaves_nothing() {
    let world = World::new();
    for stage in [Stage::Copy, Stage::Kernel, Stage::FileSystem, Stage::Disk, Stage::Store] {
        let build = world.on_disk("one");
        let token = build.interrupt.clone();
        let stopped = world.catalogue.build_vm(&named("vm"), &build, &mut |progress| {
            if progress.stage == stage {
                token.cancel();
            }
        });
        match stopped {
            Err(Error::BuildInterrupted) => assert!(world.catalogue.get(&named("vm")).is_err()),
            // Once all is there it is kept.
            other => assert!(stage == Stage::Store && other.is_ok(), "{stage:?}: {other:?}"),
        }
        assert_eq!(world.scratches(), 0, "{stage:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let world = World::new();
    let long = "x".repeat(2000);
    let append = |append: &str| BuildVm { append: Some(append.to_owned()), ..world.in_memory("one") };
    for (build, why) in [
        (append(&long), "longer than"),
        (append("a\nb"), "not plain text"),
        (world.build(VmSource::Tree(world.tree("tree", "x")), Form::Disk(Some(1 << 20))), "at least 64 MiB"),
        (
            world.build(VmSource::Tree(world.tree("tree", "x")), Form::Disk(Some(64 << 20))),
            "choose a larger one",
        ),
        (
            world.build(
                VmSource::Debian { suite: "../x".to_owned(), purpose: super::Purpose::Plain },
                Form::Memory,
            ),
            "suite",
        ),
        (
            BuildVm { kernel: KernelChoice::Package("-o evil".to_owned()), ..world.in_memory("x") },
            "no name of a package",
        ),
        (BuildVm { modules: Some(world.path("tree")), ..world.in_memory("x") }, "no kernel's modules"),
    ] {
        let refused = world.make("vm", &build).unwrap_err();
        assert!(refused.to_string().contains(why), "{why}: {refused}");
    }
    assert!(matches!(world.make("host", &world.in_memory("x")), Err(Error::BuiltIn(_))));
    let almost = "n".repeat(125);
    assert!(
        matches!(world.make(&almost, &world.in_memory("x")), Err(Error::Name(_))),
        "no room for a version"
    );
    assert_eq!(world.scratches(), 0);
}
