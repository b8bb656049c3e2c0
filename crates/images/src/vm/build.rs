//! Building an image of a virtual machine from a tree of files.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use rustix::fs::{Stat, Timespec};
use sandhaus_protocol::initramfs::{self as document, Init, Initramfs};

use super::{
    BUILD_TIME_S, BuildProgress, BuildReport, BuildVm, BuiltVm, COMMAND_LINE_BYTES_MAX, Compression,
    DISK_BYTES_DEFAULT, DISK_BYTES_MIN, FileRecord, Form, INITRAMFS, KERNEL, KernelRecord, Layering,
    Manifest, Origin, Purpose, Stage, VmSource,
    cpio::Cpio,
    filesystem,
    guest::{self, Content, InitSystem, Look, Piece},
    kernel::{self, Kernel},
    layer_name,
    qcow2::{self, DISK_BYTES_MAX},
    stock,
    tool::{MKE2FS, MMDEBSTRAP, QEMU_IMG, Tools},
};
use crate::{
    Catalogue, Error, ImageConfig, ImageName, Result,
    blob::BlobDigest,
    content::{self, ContentRecord},
    digest::{self, extended_attributes},
    export::Files,
    import,
    merged::{Directory, Merged, Node},
    root::{Attributes, EntryPath, Limits, Root},
    store::Scratch,
};

/// Version of the manifest's form.
const MANIFEST_VERSION: u32 = 1;

/// What the kernel is told besides what a user adds: to write to its root, to call the network `eth0`, not to say much,
/// and to end the machine when it fails.
const COMMAND_LINE: &str = "rw net.ifnames=0 quiet panic=-1";

/// Where modules lie in an initial file system.
const MODULES: &str = "sandhaus-modules";

/// Most bytes of the agent's executable.
const AGENT_BYTES_MAX: usize = 64 << 20;

/// Largest tree that is held in a machine's memory.
const MEMORY_TREE_BYTES_MAX: u64 = 2 << 30;

/// Bytes that have to be free before anything begins.
const ROOM_BYTES_MIN: u64 = 256 << 20;

/// Packages that an installed Debian has besides the essential ones.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "curl",
    "sudo",
    "procps",
    "less",
];

/// Those of a desktop.
const DESKTOP_PACKAGES: &[&str] =
    &["xvfb", "x11vnc", "novnc", "python3-websockify", "xfce4", "xfce4-terminal", "dbus-x11"];

/// Longest name of a suite.
const SUITE_BYTES_MAX: usize = 32;

/// Largest account file that is read.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// What a build has made in its scratch folder, beneath `image`.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) origin: Origin,
    /// Files of the disk.
    pub(crate) layers: usize,
    pub(crate) size_bytes: u64,
    pub(crate) kernel: Option<MadeKernel>,
    pub(crate) init: Option<InitSystem>,
    pub(crate) agent: Option<String>,
    pub(crate) command_line: String,
    pub(crate) config: ImageConfig,
    pub(crate) tools: BTreeMap<String, String>,
}

/// A kernel in an image's folder, with an initial file system or without.
#[derive(Debug)]
pub(crate) struct MadeKernel {
    pub(crate) origin: String,
    pub(crate) release: Option<String>,
    pub(crate) modules: Vec<String>,
}

impl Made {
    /// The manifest of the files in `whole`.
    pub(crate) fn manifest(self, whole: &Path) -> Result<Manifest> {
        let layers = (0..self.layers).map(|place| FileRecord::of(&whole.join(layer_name(place))));
        let layers = layers.collect::<Result<_>>()?;
        let initramfs = whole.join(INITRAMFS);
        let initramfs =
            if crate::store::exists(&initramfs)? { Some(FileRecord::of(&initramfs)?) } else { None };
        let kernel = match self.kernel {
            Some(MadeKernel { origin, release, modules }) => {
                Some(KernelRecord { file: FileRecord::of(&whole.join(KERNEL))?, origin, release, modules })
            }
            None => None,
        };
        let init = self.init.map(|init| match init {
            InitSystem::Systemd => "systemd".to_owned(),
            InitSystem::Agent => "agent".to_owned(),
        });
        Ok(Manifest {
            version: MANIFEST_VERSION,
            source: self.origin,
            layers,
            size_bytes: self.size_bytes,
            kernel,
            initramfs,
            agent: self.agent,
            init,
            command_line: self.command_line,
            config: self.config,
            tools: self.tools,
        })
    }
}

impl Catalogue {
    /// Builds an image of a virtual machine and gives it the next version of a name. Blocking, for as long as a minute;
    /// nothing is visible until it is whole.
    pub fn build_vm(
        &self,
        name: &ImageName,
        build: &BuildVm<'_>,
        report: BuildReport<'_>,
    ) -> Result<BuiltVm> {
        self.refuse_versions_of(name)?;
        check(build)?;
        let scratch = self.vm_scratch(ROOM_BYTES_MIN)?;
        let tools = Tools::new(&scratch, &build.interrupt);
        let whole = scratch.directory("image")?;
        let mut work = Work { catalogue: self, build, tools, whole, report };
        let made = match &build.source {
            VmSource::Disk(disk) => stock::make(&mut work, disk)?,
            VmSource::Debian { .. } | VmSource::Tree(_) | VmSource::Image(_) => from_tree(&mut work)?,
        };
        work.stage(Stage::Store)?;
        let Work { whole, .. } = work;
        self.enter_vm(name, &scratch, &whole, made.manifest(&whole)?)
    }

    /// A scratch folder for something large, if there is room for it.
    pub(crate) fn vm_scratch(&self, needed_bytes: u64) -> Result<Scratch> {
        let store = self.store();
        room_for(store.root(), needed_bytes)?;
        let scratch = store.scratch(&store.lock()?)?;
        Ok(scratch)
    }
}

/// Fails where less than this is free.
pub(crate) fn room_for(place: &Path, needed_bytes: u64) -> Result<()> {
    let found = rustix::fs::statvfs(place).map_err(Error::at(place))?;
    let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
    if free_bytes < needed_bytes { Err(Error::NoRoom { needed_bytes, free_bytes }) } else { Ok(()) }
}

fn check(build: &BuildVm<'_>) -> Result<()> {
    let refused = |problem: &str| Err(Error::Source(problem.to_owned()));
    crate::root::within("the agent", build.agent.len() as u64, AGENT_BYTES_MAX as u64)?;
    if let Form::Disk(Some(size)) = build.form
        && !(DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&size)
    {
        return refused("a disk has at least 64 MiB and at most 16 TiB");
    }
    if build.form == Form::Memory && !matches!(build.layering, Layering::Natural | Layering::Flat) {
        return refused("a machine without a disk has none that could lie over another's");
    }
    if build.form == Form::Memory && matches!(build.source, VmSource::Disk(_)) {
        return refused("a disk's files cannot go into memory: give a tree or an image");
    }
    check_command_line(build.append.as_deref())
}

/// Fails if this cannot be added to a kernel's command line.
pub(crate) fn check_command_line(append: Option<&str>) -> Result<()> {
    let Some(append) = append else { return Ok(()) };
    if append.len() > COMMAND_LINE_BYTES_MAX || !append.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(Error::Source(format!(
            "what is added to the kernel's command line is longer than {COMMAND_LINE_BYTES_MAX} bytes or is not plain text"
        )));
    }
    Ok(())
}

/// One build.
pub(crate) struct Work<'a> {
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) build: &'a BuildVm<'a>,
    pub(crate) tools: Tools<'a>,
    /// The image's folder.
    pub(crate) whole: PathBuf,
    report: BuildReport<'a>,
}

impl Work<'_> {
    /// Says what comes next, unless somebody wants it to stop.
    pub(crate) fn stage(&mut self, stage: Stage) -> Result<()> {
        self.tools.go_on()?;
        (self.report)(BuildProgress { stage, done: 0, total: None });
        Ok(())
    }

    /// The command line of its kernel.
    pub(crate) fn command_line(&self, more: &str) -> String {
        let words = [COMMAND_LINE, more, self.build.append.as_deref().unwrap_or_default()];
        words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Turns a plain disk of the scratch folder into the files of the image's. Returns how many there are.
    pub(crate) fn write_disk(&mut self, plain: &str) -> Result<usize> {
        self.stage(Stage::Disk)?;
        let Layering::Over(base) = &self.build.layering else {
            self.convert(plain, "image/0.qcow2", &[])?;
            return Ok(1);
        };
        let base = link_disk(self.catalogue, base, &self.whole)?;
        let top = format!("image/{}", layer_name(base - 1));
        let before = ["convert", "-f", "qcow2", "-O", "raw", &top, "below.raw"];
        self.tools.run(QEMU_IMG, &before)?;
        self.write_over("below.raw", plain, base)?;
        Ok(base + 1)
    }

    /// Writes what differs between two plain disks as the image's layer at this place.
    pub(crate) fn write_over(&mut self, before: &str, after: &str, place: usize) -> Result<()> {
        let folder = self.tools.folder();
        let below = layer_name(place - 1);
        let plain = self.whole.join("difference");
        qcow2::write_difference(&folder.join(before), &folder.join(after), &below, &plain)?;
        self.tools.go_on()?;
        let into = format!("image/{}", layer_name(place));
        if self.build.compression == Compression::None {
            let into = folder.join(into);
            return fs_err::rename(&plain, &into).map_err(Error::at(&into));
        }
        self.convert_from("image/difference", "qcow2", &into, &["-B", &below, "-F", "qcow2"])?;
        fs_err::remove_file(&plain).map_err(Error::at(&plain))
    }

    /// Converts a plain disk.
    pub(crate) fn convert(&mut self, plain: &str, into: &str, options: &[&str]) -> Result<()> {
        self.convert_from(plain, "raw", into, options)
    }

    fn convert_from(&mut self, from: &str, format: &str, into: &str, options: &[&str]) -> Result<()> {
        let mut arguments = vec!["convert", "-p", "-f", format, "-O", "qcow2"];
        match self.build.compression {
            Compression::Zstd => arguments.extend(["-c", "-o", "compat=1.1,compression_type=zstd"]),
            Compression::None => arguments.extend(["-o", "compat=1.1"]),
        }
        arguments.extend(options);
        arguments.extend([from, into]);
        let report = &mut self.report;
        self.tools.run_watched(QEMU_IMG, &arguments, &mut |printed| {
            if let Some(done) = percent(printed) {
                report(BuildProgress { stage: Stage::Disk, done, total: Some(PERCENT_WHOLE) });
            }
        })?;
        Ok(())
    }

    /// The versions of the programs whose work shows in the image.
    pub(crate) fn versions(&self) -> Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        let said = self.tools.end_of(MKE2FS, &["-V"], &mut |_| {})?;
        versions.insert(MKE2FS.name.to_owned(), first_line(&said.errors));
        let said = self.tools.run(QEMU_IMG, &["--version"])?;
        versions.insert(QEMU_IMG.name.to_owned(), first_line(&said));
        Ok(versions)
    }
}

/// What `qemu-img` calls all of its work, times a hundred.
const PERCENT_WHOLE: u64 = 10_000;

/// The last `(12.34/100%)` of what was printed, times a hundred.
fn percent(printed: &[u8]) -> Option<u64> {
    let tail = &printed[printed.len().saturating_sub(64)..];
    let tail = str::from_utf8(tail).ok()?;
    let (before, _) = tail.rsplit_once("/100%")?;
    let (whole, part) = before.rsplit_once('(')?.1.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or_default().trim().to_owned()
}

/// Links the files of an image's disk into the folder of another that lies over it. Returns how many there are.
pub(crate) fn link_disk(catalogue: &Catalogue, base: &ImageName, whole: &Path) -> Result<usize> {
    let disk = catalogue.tree(base)?.disk.filter(|disk| !disk.layers.is_empty());
    let Some(disk) = disk else {
        return Err(Error::Form {
            image: base.to_string(),
            problem: "has no disk of a virtual machine to lie over",
        });
    };
    for (place, layer) in disk.layers.iter().enumerate() {
        let name = whole.join(layer_name(place));
        fs_err::hard_link(layer, &name).map_err(Error::at(&name))?;
    }
    Ok(disk.layers.len())
}

/// Writes a file that is not to change any more: a kernel or what goes with it.
pub(crate) fn write_initramfs(
    whole: &Path,
    document: &Initramfs,
    agent: &[u8],
    modules: &[kernel::Module],
    tree: Option<&Path>,
) -> Result<()> {
    let path = whole.join(INITRAMFS);
    let file = File::create_new(&path).map_err(Error::at(&path))?;
    let mut archive = Cpio::new(BufWriter::new(file));
    let text = serde_json::to_vec(document).map_err(|error| Error::at(&path)(std::io::Error::from(error)))?;
    crate::root::within(
        "the description of an initial file system",
        text.len() as u64,
        document::BYTES_MAX as u64,
    )?;
    let description = document::PATH.trim_start_matches('/');
    archive.file("init", 0o755, agent)?;
    archive.file(description, 0o644, &text)?;
    archive.directory(MODULES, 0o755)?;
    for module in modules {
        archive.file(&format!("{MODULES}/{}.ko", module.name), 0o644, &module.content)?;
    }
    match tree {
        Some(tree) => archive.tree(tree, &["init", description, MODULES])?,
        None => {
            for directory in ["dev", "proc", "sys", "run", "root"] {
                archive.directory(directory, 0o755)?;
            }
        }
    }
    archive.finish().map(drop)
}

/// The paths of modules as the initial file system's description has them.
pub(crate) fn module_paths(modules: &[kernel::Module]) -> Vec<String> {
    modules.iter().map(|module| format!("/{MODULES}/{}.ko", module.name)).collect()
}

/// Puts a kernel and its initial file system into the image's folder.
pub(crate) fn write_kernel(
    work: &Work<'_>,
    kernel: &Kernel,
    modules: &[kernel::Module],
    document: &Initramfs,
    tree: Option<&Path>,
) -> Result<MadeKernel> {
    let place = work.whole.join(KERNEL);
    fs_err::rename(&kernel.file, &place).map_err(Error::at(&place))?;
    write_initramfs(&work.whole, document, work.build.agent, modules, tree)?;
    Ok(MadeKernel {
        origin: kernel.origin.clone(),
        release: kernel.release.clone(),
        modules: modules.iter().map(|module| module.name.clone()).collect(),
    })
}

/// Builds from files.
fn from_tree(work: &mut Work<'_>) -> Result<Made> {
    let began = filesystem::beginning(&work.tools)?;
    let tree = work.tools.directory("tree")?;
    let (origin, config) = fill(work, &tree)?;
    let content_bytes = filesystem::content_bytes(&tree)?;
    // The file system, and the disk's file before and after it is compressed.
    room_for(&tree, content_bytes.saturating_mul(2).saturating_add(ROOM_BYTES_MIN))?;
    let look = Inside(Merged::new(vec![tree.clone()]));
    let init = match work.build.form {
        Form::Disk(_) => InitSystem::of(&look)?,
        Form::Memory => InitSystem::Agent,
    };

    work.stage(Stage::Kernel)?;
    let kernel = kernel::choose(&work.tools, &work.build.kernel, work.build.modules.as_deref(), Some(&tree))?;
    let modules = kernel.first_modules(&work.tools)?;
    if matches!(work.build.form, Form::Disk(_)) {
        kernel.install(&tree)?;
    }
    let mut pieces = guest::pieces(&look, init, work.build.agent)?;
    if init == InitSystem::Systemd && matches!(work.build.source, VmSource::Debian { .. }) {
        pieces.extend(guest::quiet_pieces());
    }
    write_pieces(&tree, &pieces)?;
    filesystem::settle_times(&tree, began)?;

    work.stage(Stage::FileSystem)?;
    let mut document = Initramfs { modules: module_paths(&modules), root: None };
    let (layers, size_bytes, made_kernel) = match work.build.form {
        Form::Memory => {
            crate::root::within("a tree in memory", content_bytes, MEMORY_TREE_BYTES_MAX)?;
            (0, 0, write_kernel(work, &kernel, &modules, &document, Some(&tree))?)
        }
        Form::Disk(size) => {
            let size = size.unwrap_or(DISK_BYTES_DEFAULT).next_multiple_of(4096);
            filesystem::make(&work.tools, &tree, "disk.raw", size)?;
            fs_err::remove_dir_all(&tree).map_err(Error::at(&tree))?;
            document.root = Some(document::Root {
                device: "/dev/vda".to_owned(),
                filesystem: Some("ext4".to_owned()),
                options: String::new(),
                init: first_program(init),
            });
            let made = write_kernel(work, &kernel, &modules, &document, None)?;
            (work.write_disk("disk.raw")?, size, made)
        }
    };
    Ok(Made {
        origin,
        layers,
        size_bytes,
        kernel: Some(made_kernel),
        init: Some(init),
        agent: Some(BlobDigest::of(work.build.agent).to_string()),
        command_line: work.command_line(""),
        config,
        tools: if work.build.form == Form::Memory { BTreeMap::new() } else { work.versions()? },
    })
}

/// What the initial file system hands over to.
pub(crate) fn first_program(init: InitSystem) -> Init {
    match init {
        InitSystem::Systemd => Init::Program(vec!["/sbin/init".to_owned()]),
        InitSystem::Agent => Init::Agent,
    }
}

/// Fills the empty directory `tree` from the source.
fn fill(work: &mut Work<'_>, tree: &Path) -> Result<(Origin, ImageConfig)> {
    let catalogue = work.catalogue.store().root();
    match &work.build.source {
        VmSource::Debian { suite, purpose } => {
            work.stage(Stage::Install)?;
            install(&work.tools, suite, *purpose)?;
            work.stage(Stage::Copy)?;
            let archive = work.tools.folder().join(INSTALLED);
            import::fill(&archive, tree, catalogue, Limits::default(), &mut |_, _| {})?;
            fs_err::remove_file(&archive).map_err(Error::at(&archive))?;
            let status = Inside(Merged::new(vec![tree.to_path_buf()])).status()?;
            let digest = digest::summarize(tree)?.digest;
            Ok((Origin::Debian { suite: suite.clone(), digest, packages: status }, ImageConfig::default()))
        }
        VmSource::Tree(source) => {
            work.stage(Stage::Copy)?;
            let report = &mut work.report;
            let mut progress = |done, total| report(BuildProgress { stage: Stage::Copy, done, total });
            import::fill(source, tree, catalogue, Limits::default(), &mut progress)?;
            Ok((Origin::Tree { digest: digest::summarize(tree)?.digest }, ImageConfig::default()))
        }
        VmSource::Image(name) => {
            work.stage(Stage::Copy)?;
            let digest = work.catalogue.get(name)?.digest;
            // Held, so that nobody removes it meanwhile.
            let held = work.catalogue.tree_by_digest(&digest)?;
            let directory = work.catalogue.content_directory(&digest)?;
            let content = ContentRecord::read(&directory)?.filter(|content| content.disk.is_none());
            let Some(content) = content else {
                let problem = "has no files that could be put on another disk";
                return Err(Error::Form { image: name.to_string(), problem });
            };
            copy_image(&Files::new(content::merged(work.catalogue.store(), &directory, &content)?), tree)?;
            Ok((Origin::Image { digest }, held.config))
        }
        VmSource::Disk(_) => Err(Error::Source("a disk is no tree of files".to_owned())),
    }
}

/// Name of the archive of an installed Debian in the scratch folder.
const INSTALLED: &str = "installed.tar";

/// Installs Debian's packages into an archive.
fn install(tools: &Tools<'_>, suite: &str, purpose: Purpose) -> Result<()> {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if suite.is_empty()
        || suite.len() > SUITE_BYTES_MAX
        || suite.starts_with('-')
        || !suite.bytes().all(letters)
    {
        return Err(Error::Source("the suite of Debian should be one such as bookworm".to_owned()));
    }
    let mut packages = PACKAGES.to_vec();
    if purpose == Purpose::Desktop {
        packages.extend(DESKTOP_PACKAGES);
    }
    let packages = format!("--include={}", packages.join(","));
    let options = [
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-include=/usr/share/locale/locale.alias",
        &packages,
        suite,
        INSTALLED,
    ];
    tools.run(MMDEBSTRAP, &options).map(drop)
}

/// Copies the files of an image into an empty directory.
fn copy_image(files: &Files, tree: &Path) -> Result<()> {
    let mut copy = ImageCopy { files, root: Root::open(tree, Limits::default())?, names: HashMap::new() };
    let top = files.merged.root()?;
    copy.directory(&top, b"")?;
    copy.root.finish()
}

struct ImageCopy<'a> {
    files: &'a Files,
    root: Root,
    /// Files with several names, and the first one.
    names: HashMap<(u64, u64), EntryPath>,
}

impl ImageCopy<'_> {
    fn directory(&mut self, directory: &Directory, path: &[u8]) -> Result<()> {
        for name in self.files.merged.names(directory)? {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let entry = EntryPath::parse(&path)?;
            match self.files.merged.lookup(directory, &name)? {
                Some(Node::Directory(inner, stat)) => {
                    let attributes = match self.files.implied.get(&path) {
                        Some(attributes) => attributes.clone(),
                        None => attributes(&stat),
                    };
                    self.root.directory(&entry, &attributes)?;
                    self.directory(&inner, &path)?;
                }
                Some(Node::File(file, stat)) if !self.again(&stat, &entry)? => {
                    let mut attributes = attributes(&stat);
                    attributes.extended =
                        extended_attributes(std::os::fd::AsFd::as_fd(&file)).map_err(Error::at("image"))?;
                    let mut into = self.root.create(&entry)?;
                    let (mut file, mut piece) = (File::from(file), vec![0; 256 << 10]);
                    loop {
                        let count = std::io::Read::read(&mut file, &mut piece).map_err(Error::at("image"))?;
                        if count == 0 {
                            break;
                        }
                        self.root.append(&mut into, &piece[..count])?;
                    }
                    self.root.finish_file(into, &attributes)?;
                }
                Some(Node::Symlink(target, stat)) if !self.again(&stat, &entry)? => {
                    self.root.symlink(&entry, &target, &attributes(&stat))?;
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Makes a further name of what was copied before; false if it was not.
    fn again(&mut self, stat: &Stat, path: &EntryPath) -> Result<bool> {
        if stat.st_nlink <= 1 {
            return Ok(false);
        }
        match self.names.get(&(stat.st_dev, stat.st_ino)) {
            Some(first) => self.root.hard_link(path, first).map(|()| true),
            None => {
                self.names.insert((stat.st_dev, stat.st_ino), path.clone());
                Ok(false)
            }
        }
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        modified: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() },
        extended: Vec::new(),
    }
}

/// Writes what a guest needs into a tree. No symbolic link of the tree is followed.
fn write_pieces(tree: &Path, pieces: &[Piece]) -> Result<()> {
    let mut root = Root::open(tree, Limits::default())?;
    let mut inside = Attributes::of_root(0);
    inside.modified = Timespec { tv_sec: BUILD_TIME_S, tv_nsec: 0 };
    for piece in pieces {
        let path = EntryPath::parse(piece.path.as_bytes())?;
        match &piece.content {
            Content::Directory(mode, owner) => {
                let there = std::fs::symlink_metadata(tree.join(piece.path));
                // A link stays too: what is put beneath it is refused by name.
                if there.is_ok_and(|there| there.is_dir() || there.is_symlink()) {
                    continue;
                }
                let owner = u64::from(*owner);
                root.directory(&path, &Attributes { mode: *mode, uid: owner, gid: owner, ..inside.clone() })?;
            }
            Content::File(mode, content) => {
                root.file(&path, content, &Attributes { mode: *mode, ..inside.clone() })?;
            }
            Content::Link(target) => {
                root.symlink(&path, target.as_bytes(), &Attributes { mode: 0o777, ..inside.clone() })?;
            }
        }
    }
    root.finish()
}

/// A tree in the scratch folder, seen as a process inside sees it.
struct Inside(Merged);

impl Inside {
    /// Versions of the packages that Debian's own record has, by name.
    fn status(&self) -> Result<BTreeMap<String, String>> {
        const STATUS_BYTES_MAX: u64 = 64 << 20;
        let status = self.small("var/lib/dpkg/status", STATUS_BYTES_MAX)?.unwrap_or_default();
        let mut packages = BTreeMap::new();
        let mut name = None;
        for line in String::from_utf8_lossy(&status).lines() {
            if let Some(found) = line.strip_prefix("Package: ") {
                name = Some(found.to_owned());
            } else if let Some(version) = line.strip_prefix("Version: ")
                && let Some(name) = name.take()
            {
                packages.insert(name, version.to_owned());
            }
        }
        Ok(packages)
    }

    fn small(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        use std::io::Read as _;
        let Some(Node::File(file, _)) = self.0.find(path)? else { return Ok(None) };
        let mut content = Vec::new();
        File::from(file).take(bytes_max).read_to_end(&mut content).map_err(Error::at(path))?;
        Ok(Some(content))
    }
}

impl Look for Inside {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.small(path, SMALL_FILE_BYTES_MAX)
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(matches!(self.0.find(path)?, Some(Node::File(..))))
    }
}
