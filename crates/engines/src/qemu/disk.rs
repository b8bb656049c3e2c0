//! Disks: chains of qcow2 files, each sandbox's in a directory of its own.
//!
//! ```text
//!   <data>/vm/disks/<id>/   record             whose user id, for which generation, how large
//!                           kernel initramfs   links to those of the image or the snapshot
//!                           0.qcow2 1.qcow2 …  links to layers that nobody writes to any more
//!                           n.qcow2            the highest number: the machine's own
//!   <data>/vm/disks/.new-<id>      one that is being made
//!   <data>/vm/disks/.doomed-<id>   one that is being removed
//! ```
//!
//! A layer names the one below by its bare file name, so a chain is whole wherever all of its files are linked into one
//! directory. A directory appears and goes by one rename. Only the server can enter any of this: QEMU gets descriptors.
//! After a crash amid the change of layers the highest number may be an empty layer that its machine never used: it shows
//! what is below, so it is the top all the same.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult, MachineSpec},
    removal,
    types::{Generation, SandboxId},
};
use serde::{Deserialize, Serialize};

use super::{
    manifest::{self, Manifest},
    qcow2::{self, Header},
};
use crate::{
    namespace::disk::{failure, make_private},
    steps::{pass, sequence},
};

/// The kernel beside a chain.
pub(super) const KERNEL: &str = "kernel";
/// The initial file system that goes with it.
pub(super) const INITRAMFS: &str = "initramfs";
/// The one layer of a snapshot that was packed.
pub(super) const PACKED: &str = "disk.qcow2";

const RECORD: &str = "record";
const NEW: &str = ".new-";
const DOOMED: &str = ".doomed-";

/// Layers of a chain above those of its image; before there are more, they become one.
pub(super) const OWN_LAYERS_MAX: usize = 24;

/// Layers of a chain altogether.
const LAYERS_MAX: usize = 64;

/// User ids of machines: below those that other engines give to sandboxes, far above those of people.
const UID_FIRST: u32 = 0x3800_0000;

/// How many there are. Instances do not know of each other, so they draw from many.
const UIDS: u32 = 1 << 26;

/// Longest record.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Modes of what nobody writes to any more, and of what a machine writes to.
const FROZEN_MODE: u32 = 0o444;
const OWN_MODE: u32 = 0o600;

sequence! {
    /// Making a disk.
    MaterializeStep in "vm_materialize" {
        Clear = "clear",
        Directory = "directory",
        Layers = "layers",
        Overlay = "overlay",
        Record = "record",
        Publish = "publish",
    }
}

sequence! {
    /// Removing one.
    RemoveStep in "vm_remove" {
        Doom = "doom",
        Files = "files",
    }
}

sequence! {
    /// Putting an empty layer over the top of a disk.
    OverlayStep in "vm_overlay" {
        Freeze = "freeze",
        Write = "write",
        Publish = "publish",
    }
}

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The generation it was made for.
    pub(super) generation: Generation,
    /// The user that the machine is on the host, and the group of the same number.
    pub(super) uid: u32,
    /// How many of the lowest layers are the image's.
    pub(super) image_layers: usize,
    /// Command line of the kernel, but for the console.
    pub(super) command_line: String,
}

/// The name of a layer's file.
pub(super) fn layer_name(number: u32) -> String {
    format!("{number}.qcow2")
}

fn layer_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".qcow2")?;
    let number: u32 = digits.parse().ok()?;
    (layer_name(number) == name).then_some(number)
}

/// The chain of files in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Numbers of the layers, lowest first; none at all: there is no disk.
    pub(super) layers: Vec<u32>,
    /// Size of the disk in bytes.
    pub(super) size_bytes: u64,
}

impl Chain {
    /// That of a directory without a disk.
    pub(super) fn none() -> Self {
        Self { layers: Vec::new(), size_bytes: 0 }
    }

    /// The chain below the highest number there is.
    pub(super) fn read(directory: &Path) -> EngineResult<Self> {
        let host = |error: io::Error| EngineError::host("read disk", error);
        let mut top = None;
        for entry in fs_err::read_dir(directory).map_err(host)? {
            let name = entry.map_err(host)?.file_name();
            top = top.max(name.to_str().and_then(layer_number));
        }
        top.map_or_else(|| Ok(Self::none()), |top| Self::below(directory, top))
    }

    /// Follows the chain from a layer down. Every header is checked: each layer stands on a file of this directory with a
    /// lower number, and on nothing else.
    pub(super) fn below(directory: &Path, top: u32) -> EngineResult<Self> {
        let (mut number, mut layers, mut size_bytes) = (top, vec![top], None);
        loop {
            let header = header_of(&directory.join(layer_name(number)))?;
            size_bytes.get_or_insert(header.size_bytes);
            let Some(below) = &header.backing else { break };
            let invalid = || invalid_layer(number, &qcow2::Refusal::Below(below.clone()));
            let next = layer_number(below).filter(|next| *next < number).ok_or_else(invalid)?;
            header.stands_on(below).map_err(|refusal| invalid_layer(number, &refusal))?;
            if layers.len() == LAYERS_MAX {
                return Err(EngineError::Invalid(format!("the disk has more than {LAYERS_MAX} layers")));
            }
            layers.push(next);
            number = next;
        }
        layers.reverse();
        Ok(Self { layers, size_bytes: size_bytes.unwrap_or_default() })
    }

    /// The layer that its machine writes to.
    pub(super) fn top(&self) -> Option<u32> {
        self.layers.last().copied()
    }
}

fn invalid_layer(number: u32, refusal: &qcow2::Refusal) -> EngineError {
    EngineError::Invalid(format!("layer {number} of the disk cannot be used: {refusal}"))
}

/// Reads the header of a file that was opened without following a link.
pub(super) fn header_of(path: &Path) -> EngineResult<Header> {
    let file = open_read(path).map_err(|error| EngineError::host("open disk", error))?;
    let header = Header::read(&file).map_err(|error| EngineError::host("read disk", error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    header.map_err(|refusal| EngineError::Invalid(format!("{name} cannot be used: {refusal}")))
}

/// Opens a regular file for reading, and nothing else.
pub(super) fn open_read(path: &Path) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = fs_err::OpenOptions::from_options(options).open(path)?.into_file();
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// One layer of a disk, open.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its number.
    pub(super) number: u32,
    /// Open for reading.
    pub(super) read: File,
    /// The same file open for reading and writing: the top alone.
    pub(super) write: Option<File>,
}

/// All that a machine needs of its disk, open.
#[derive(Debug)]
pub(super) struct DiskFiles {
    /// Lowest first; none at all: there is no disk.
    pub(super) layers: Vec<Layer>,
    /// The kernel to start, if it is not the disk's own affair.
    pub(super) kernel: Option<File>,
    /// The initial file system that goes with it.
    pub(super) initramfs: Option<File>,
    /// Command line of the kernel, but for the console.
    pub(super) command_line: String,
}

/// The name of a layer's node in QEMU.
pub(super) fn node_name(number: u32) -> String {
    format!("{NODE}{number}")
}

/// The layer that a node in QEMU is.
pub(super) fn number_of_node(name: &str) -> Option<u32> {
    name.strip_prefix(NODE)?.parse().ok()
}

const NODE: &str = "layer-";

/// The set of descriptors in QEMU that a layer's file is opened through.
pub(super) fn descriptor_set(number: u32) -> u32 {
    LAYER_SETS + number
}

/// Sets from this number on are those of layers.
const LAYER_SETS: u32 = 1 << 16;

/// How QEMU is told which descriptor of a set is open for writing. That one has to be taken back when the layer is frozen:
/// the locks of a file stay while any copy of the descriptor is there that they were taken through.
pub(super) const WRITE_MARK: &str = "write";
/// The same of one that is not.
pub(super) const READ_MARK: &str = "read";

/// Whether a layer is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It is the top.
    Own,
    /// Nobody writes to it any more.
    Frozen,
}

/// A layer's node, as `-blockdev` and `blockdev-add` take it.
///
/// The format is said and never guessed: what a guest writes at the start of its disk means nothing to us.
pub(super) fn node(number: u32, below: Option<u32>, access: Access) -> serde_json::Value {
    let own = access == Access::Own;
    serde_json::json!({
        "driver": "qcow2",
        "node-name": node_name(number),
        "read-only": !own,
        "discard": "unmap",
        "detect-zeroes": if own { "unmap" } else { "off" },
        "file": {
            "driver": "file",
            "filename": format!("/dev/fdset/{}", descriptor_set(number)),
            "discard": "unmap",
        },
        "backing": below.map(node_name),
    })
}

impl DiskFiles {
    /// QEMU's arguments for the layers, and the name of the node to hang a device on, if there is a disk. `inherit` is given
    /// each file that QEMU is to inherit, and says under which number it does.
    pub(super) fn arguments(&self, mut inherit: impl FnMut(&File) -> RawFd) -> (Vec<String>, Option<String>) {
        let (mut arguments, mut below) = (Vec::new(), None);
        for layer in &self.layers {
            let set = descriptor_set(layer.number);
            for (file, mark) in [(Some(&layer.read), READ_MARK), (layer.write.as_ref(), WRITE_MARK)] {
                let Some(file) = file else { continue };
                arguments.push("-add-fd".to_owned());
                arguments.push(format!("fd={},set={set},opaque={mark}", inherit(file)));
            }
            let access = if layer.write.is_some() { Access::Own } else { Access::Frozen };
            arguments.push("-blockdev".to_owned());
            arguments.push(node(layer.number, below, access).to_string());
            below = Some(layer.number);
        }
        (arguments, below.map(node_name))
    }
}

/// The disks of an instance.
#[derive(Debug)]
pub(super) struct Disks {
    path: PathBuf,
    directory: OwnedFd,
    uids: Mutex<HashSet<u32>>,
}

impl Disks {
    /// Opens `vm/disks/` of a data directory and notes the ids in use.
    pub(super) fn open(data_dir: &Path) -> EngineResult<Self> {
        let path = data_dir.join("vm").join("disks");
        let host = |error: io::Error| EngineError::host("open disks", error);
        make_private(&path).map_err(host)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| host(error.into()))?;
        let disks = Self { path, directory, uids: Mutex::new(HashSet::new()) };
        let mut uids = HashSet::new();
        for id in disks.list()? {
            uids.extend(disks.any_record(&id).map(|record| record.uid));
        }
        *disks.uids.lock().expect("no holder panics") = uids;
        Ok(disks)
    }

    /// Every sandbox that has anything here.
    pub(super) fn list(&self) -> EngineResult<Vec<SandboxId>> {
        let host = |error: io::Error| EngineError::host("list disks", error);
        let mut ids = HashSet::new();
        for entry in fs_err::read_dir(&self.path).map_err(host)? {
            let name = entry.map_err(host)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let name = name.strip_prefix(NEW).or(name.strip_prefix(DOOMED)).unwrap_or(name);
            ids.extend(SandboxId::parse(name).ok());
        }
        Ok(ids.into_iter().collect())
    }

    /// The disk of a sandbox, if it is made and not doomed.
    pub(super) fn record(&self, id: &SandboxId) -> EngineResult<Option<Record>> {
        match read_record(&self.path_of(id)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(EngineError::host("read disk record", error)),
        }
    }

    /// Whether anything of a disk is there.
    pub(super) fn exists(&self, id: &SandboxId) -> bool {
        ["", NEW, DOOMED]
            .iter()
            .any(|prefix| self.path.join(format!("{prefix}{id}")).symlink_metadata().is_ok())
    }

    fn any_record(&self, id: &SandboxId) -> Option<Record> {
        ["", DOOMED, NEW].iter().find_map(|prefix| read_record(&self.path.join(format!("{prefix}{id}"))).ok())
    }

    /// The directory of a disk.
    pub(super) fn path_of(&self, id: &SandboxId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Makes the disk of a sandbox: empty above its image, or with what its snapshot has. One that is made stays as it is.
    pub(super) fn materialize(&self, spec: &MachineSpec) -> EngineResult<()> {
        let id = &spec.id;
        if self.record(id)?.is_some() {
            return Ok(());
        }
        let origin = Origin::of(spec)?;
        let size_bytes = origin.fit(spec.resources.disk_bytes)?;
        pass(MaterializeStep::Clear, || if self.exists(id) { self.remove(id) } else { Ok(()) })?;
        let aside = self.path.join(format!("{NEW}{id}"));
        let slot = self.take_uid()?;
        let host = |error: io::Error| failure("make disk", error);
        pass(MaterializeStep::Directory, || {
            rustix::fs::mkdirat(CWD, &aside, Mode::from_raw_mode(0o700)).map_err(io::Error::from)
        })
        .map_err(host)?;
        pass(MaterializeStep::Layers, || origin.link_into(&aside)).map_err(host)?;
        pass(MaterializeStep::Overlay, || match origin.layers.keys().last() {
            Some(top) => write_layer(&aside, top + 1, size_bytes, Some(&layer_name(*top))).map(drop),
            None => Ok(()),
        })
        .map_err(host)?;
        let record = Record {
            generation: spec.generation,
            uid: slot.uid,
            image_layers: origin.image_layers,
            command_line: origin.command_line,
        };
        pass(MaterializeStep::Record, || write_record(&aside, &record)).map_err(host)?;
        pass(MaterializeStep::Publish, || {
            Ok::<_, io::Error>(rustix::fs::renameat(CWD, &aside, CWD, self.path_of(id))?)
        })
        .map_err(host)?;
        slot.keep();
        Ok(())
    }

    /// The layer that has to change for the disk to be as large as it is to be, and the size that it gets. Less than it has
    /// changes nothing.
    pub(super) fn growth(&self, id: &SandboxId, disk_bytes: u64) -> EngineResult<Option<(u32, u64)>> {
        let chain = Chain::read(&self.path_of(id))?;
        let Some(top) = chain.top().filter(|_| disk_bytes > chain.size_bytes) else { return Ok(None) };
        Ok(Some((top, fit(disk_bytes, chain.size_bytes)?)))
    }

    /// Makes the disk as large as it is to be. For a machine that runs, QEMU has to do it.
    pub(super) fn grow(&self, id: &SandboxId, disk_bytes: u64) -> EngineResult<()> {
        let Some((top, wanted)) = self.growth(id, disk_bytes)? else { return Ok(()) };
        let file = open_write(&self.path_of(id).join(layer_name(top)));
        file.and_then(|file| qcow2::grow(&file, wanted)).map_err(|error| failure("grow disk", error))
    }

    /// Opens all that a machine needs of its disk.
    pub(super) fn open_files(&self, id: &SandboxId) -> EngineResult<DiskFiles> {
        let Some(record) = self.record(id)? else { return Err(EngineError::NotFound) };
        let directory = self.path_of(id);
        let chain = Chain::read(&directory)?;
        let host = |error: io::Error| failure("open disk", error);
        let mut layers = Vec::with_capacity(chain.layers.len());
        for &number in &chain.layers {
            let path = directory.join(layer_name(number));
            let write =
                if Some(number) == chain.top() { Some(open_write(&path).map_err(host)?) } else { None };
            layers.push(Layer { number, read: open_read(&path).map_err(host)?, write });
        }
        Ok(DiskFiles {
            layers,
            kernel: if_there(open_read(&directory.join(KERNEL))).map_err(host)?,
            initramfs: if_there(open_read(&directory.join(INITRAMFS))).map_err(host)?,
            command_line: record.command_line,
        })
    }

    /// Puts an empty layer over layer `below`, which nobody writes to from now on but a machine that is told about the new
    /// one next. One that is there above it was never used.
    pub(super) fn add_layer(&self, id: &SandboxId, below: u32, size_bytes: u64) -> EngineResult<Layer> {
        let directory = self.path_of(id);
        let host = |error: io::Error| failure("make layer of disk", error);
        pass(OverlayStep::Freeze, || freeze(&directory.join(layer_name(below)))).map_err(host)?;
        let number = below + 1;
        let write = pass(OverlayStep::Write, || {
            write_layer_aside(&directory, number, size_bytes, Some(&layer_name(below)))
        })
        .map_err(host)?;
        let path = directory.join(layer_name(number));
        pass(OverlayStep::Publish, || fs_err::rename(aside(&directory, number), &path)).map_err(host)?;
        let read = open_read(&path).map_err(host)?;
        Ok(Layer { number, read, write: Some(write) })
    }

    /// Removes layers that are in no chain any more.
    pub(super) fn remove_layers(&self, id: &SandboxId, layers: &[u32]) -> EngineResult<()> {
        for &number in layers {
            if_there(fs_err::remove_file(self.path_of(id).join(layer_name(number))))
                .map_err(|error| EngineError::host("remove layer of disk", error))?;
        }
        Ok(())
    }

    /// Marks a disk so that it never counts as one again, but its user id stays taken.
    pub(super) fn doom(&self, id: &SandboxId) -> EngineResult<()> {
        pass(RemoveStep::Doom, || {
            let (from, to) = (id.as_str(), format!("{DOOMED}{id}"));
            let rename = || rustix::fs::renameat(&self.directory, from, &self.directory, &*to);
            match rename() {
                // One that was doomed before is still there: this is another.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    removal::remove_tree(self.directory.as_fd(), &to)?;
                    rename().map_err(io::Error::from)
                }
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
        .map_err(|error| EngineError::host("doom disk", error))
    }

    /// Removes a disk, all of it, and frees its user id. Absent is success.
    pub(super) fn remove(&self, id: &SandboxId) -> EngineResult<()> {
        let record = self.any_record(id);
        self.doom(id)?;
        pass(RemoveStep::Files, || {
            for prefix in [NEW, DOOMED] {
                removal::remove_tree(self.directory.as_fd(), &format!("{prefix}{id}"))?;
            }
            Ok(())
        })
        .map_err(|error: io::Error| EngineError::host("remove disk", error))?;
        if let Some(record) = record {
            self.uids.lock().expect("no holder panics").remove(&record.uid);
        }
        Ok(())
    }

    /// Takes a user id that no disk of this instance has, at random.
    fn take_uid(&self) -> EngineResult<UidSlot<'_>> {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| EngineError::host("draw user id", error))?;
        let start = u32::from_ne_bytes(bytes) % UIDS;
        let mut uids = self.uids.lock().expect("no holder panics");
        let uid = (0..UIDS)
            .map(|step| UID_FIRST + (start + step) % UIDS)
            .find(|uid| !uids.contains(uid))
            .ok_or_else(|| EngineError::Exhausted("user ids".to_owned()))?;
        uids.insert(uid);
        Ok(UidSlot { uid, disks: self, kept: false })
    }
}

/// A user id that is taken, for good once it is recorded with a disk.
struct UidSlot<'a> {
    uid: u32,
    disks: &'a Disks,
    kept: bool,
}

impl UidSlot<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for UidSlot<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.disks.uids.lock().expect("no holder panics").remove(&self.uid);
        }
    }
}

/// What a disk is made of.
struct Origin {
    /// Files of the layers, by the numbers they get.
    layers: BTreeMap<u32, PathBuf>,
    image_layers: usize,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    command_line: String,
    size_bytes: u64,
}

impl Origin {
    fn of(spec: &MachineSpec) -> EngineResult<Self> {
        match (&spec.snapshot, &spec.tree.disk) {
            (Some(directory), _) => Self::of_snapshot(directory),
            (None, Some(image)) => {
                let origin = Self {
                    layers: (0..).zip(image.layers.iter().cloned()).collect(),
                    image_layers: image.layers.len(),
                    kernel: image.kernel.clone(),
                    initramfs: image.initramfs.clone(),
                    command_line: image.command_line.clone(),
                    size_bytes: image.size_bytes,
                };
                origin.check()
            }
            (None, None) => Err(EngineError::Invalid(
                "the image is no disk of a virtual machine: `sandhaus image build-vm` makes one of it"
                    .to_owned(),
            )),
        }
    }

    fn of_snapshot(directory: &Path) -> EngineResult<Self> {
        let manifest = Manifest::read(directory)?;
        let manifest::Disk { image_layers, command_line, .. } = manifest.disk.ok_or_else(|| {
            EngineError::Invalid("the snapshot holds memory alone, without its disk".to_owned())
        })?;
        let packed = directory.join(PACKED);
        let (layers, size_bytes) = if packed.symlink_metadata().is_ok() {
            let header = header_of(&packed)?;
            header.stands_alone().map_err(|refusal| invalid_layer(0, &refusal))?;
            (BTreeMap::from([(0, packed)]), header.size_bytes)
        } else {
            let chain = Chain::read(directory)?;
            let path = |number: u32| (number, directory.join(layer_name(number)));
            (chain.layers.iter().map(|&number| path(number)).collect(), chain.size_bytes)
        };
        let if_there = |name: &str| Some(directory.join(name)).filter(|path| path.symlink_metadata().is_ok());
        let (kernel, initramfs) = (if_there(KERNEL), if_there(INITRAMFS));
        Self { layers, image_layers, kernel, initramfs, command_line, size_bytes }.check()
    }

    fn check(self) -> EngineResult<Self> {
        if self.layers.is_empty() && self.kernel.is_none() {
            return Err(EngineError::Invalid("the image has neither a disk nor a kernel".to_owned()));
        }
        Ok(self)
    }

    /// How large the disk is to be.
    fn fit(&self, disk_bytes: u64) -> EngineResult<u64> {
        if self.layers.is_empty() { Ok(0) } else { fit(disk_bytes, self.size_bytes) }
    }

    fn link_into(&self, directory: &Path) -> io::Result<()> {
        for (number, path) in &self.layers {
            link(path, &directory.join(layer_name(*number)))?;
        }
        for (path, name) in [(&self.kernel, KERNEL), (&self.initramfs, INITRAMFS)] {
            if let Some(path) = path {
                link(path, &directory.join(name))?;
            }
        }
        Ok(())
    }
}

/// The size that a disk of `size_bytes` gets when it is to have `disk_bytes`: it never shrinks.
fn fit(disk_bytes: u64, size_bytes: u64) -> EngineResult<u64> {
    let wanted = disk_bytes.next_multiple_of(qcow2::SECTOR_BYTES);
    match wanted {
        0 => Ok(size_bytes),
        _ if wanted > qcow2::DISK_BYTES_MAX => {
            Err(EngineError::Invalid(format!("a disk has at most {} bytes", qcow2::DISK_BYTES_MAX)))
        }
        _ if wanted < size_bytes => Err(EngineError::Invalid(format!(
            "a disk of {disk_bytes} bytes is smaller than that of its image, {size_bytes}: ask for that at least, or \
             for none in particular"
        ))),
        _ => Ok(wanted),
    }
}

/// Links a file that nobody writes to any more, or copies it where that cannot be.
pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs_err::hard_link(from, to) {
        // Another file system, or more links than this one can count.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EXDEV | libc::EMLINK)) => {
            fs_err::copy(from, to)?;
            freeze(to)
        }
        other => other,
    }
}

/// Takes a file from whoever may write to it.
fn freeze(path: &Path) -> io::Result<()> {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(FROZEN_MODE))
}

fn open_write(path: &Path) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    Ok(fs_err::OpenOptions::from_options(options).open(path)?.into_file())
}

fn aside(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("new-{number}"))
}

fn write_layer_aside(
    directory: &Path,
    number: u32,
    size_bytes: u64,
    below: Option<&str>,
) -> io::Result<File> {
    let path = aside(directory, number);
    if_there(fs_err::remove_file(&path))?;
    write_layer_at(&path, size_bytes, below)
}

/// Writes an empty layer into a directory that nobody looks at yet.
fn write_layer(directory: &Path, number: u32, size_bytes: u64, below: Option<&str>) -> io::Result<File> {
    write_layer_at(&directory.join(layer_name(number)), size_bytes, below)
}

fn write_layer_at(path: &Path, size_bytes: u64, below: Option<&str>) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(OWN_MODE).custom_flags(libc::O_NOFOLLOW);
    let file = fs_err::OpenOptions::from_options(options).open(path)?.into_file();
    qcow2::write_empty(&file, size_bytes, below)?;
    Ok(file)
}

fn write_record(directory: &Path, record: &Record) -> io::Result<()> {
    let mut file = fs_err::File::create_new(directory.join(RECORD))?;
    file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)
}

fn read_record(directory: &Path) -> io::Result<Record> {
    let file = open_read(&directory.join(RECORD))?;
    let length = file.metadata()?.len();
    if length > RECORD_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut text = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut text, 0)?;
    serde_json::from_slice(&text).map_err(io::Error::from)
}

/// `None` for what is not there.
pub(super) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use sandhaus_sandbox::types::{DiskImage, NetworkPolicy, Resources, Seccomp, SecurityProfile, Tree};

    use super::*;

    struct Host {
        directory: tempfile::TempDir,
        disks: Disks,
    }

    const IMAGE_BYTES: u64 = 1 << 30;

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let image = directory.path().join("image");
            fs_err::create_dir(&image).expect("made");
            write_layer(&image, 0, IMAGE_BYTES, None).expect("written");
            write_layer(&image, 1, IMAGE_BYTES, Some("0.qcow2")).expect("written");
            fs_err::write(image.join(KERNEL), "a kernel").expect("written");
            let disks = Disks::open(directory.path()).expect("opened");
            Self { directory, disks }
        }

        fn spec(&self, layers: u32, disk_bytes: u64) -> MachineSpec {
            let image = self.directory.path().join("image");
            MachineSpec {
                id: SandboxId::random(),
                generation: Generation(3),
                tree: Tree {
                    layers: Vec::new(),
                    binds: Vec::new(),
                    config: Default::default(),
                    disk: Some(DiskImage {
                        layers: (0..layers).map(|number| image.join(layer_name(number))).collect(),
                        kernel: Some(image.join(KERNEL)),
                        initramfs: None,
                        command_line: "quiet".to_owned(),
                        size_bytes: IMAGE_BYTES,
                    }),
                },
                snapshot: None,
                resources: Resources { cpu_millis: 0, memory_bytes: 0, pids: 0, disk_bytes },
                network: NetworkPolicy::None,
                security: SecurityProfile::Container,
                readonly_root: false,
                env: Default::default(),
                workdir: "/".to_owned(),
                mounts: Vec::new(),
                hostname: "tested".to_owned(),
                entrypoint: Vec::new(),
                shell: sandhaus_protocol::boot::ShellPreference::Sh,
                warm_shell: false,
                seccomp: Seccomp::default(),
                workspace: None,
            }
        }

        fn chain(&self, id: &SandboxId) -> Chain {
            Chain::read(&self.disks.path_of(id)).expect("a chain")
        }
    }

    fn refused<T: std::fmt::Debug>(result: EngineResult<T>, words: &str) {
        match result {
            Err(EngineError::Invalid(reason)) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disk_is_made_once_and_removed_for_good() {
        let host = Host::new();
        let spec = host.spec(2, 0);
        assert_eq!(host.disks.record(&spec.id).expect("read"), None);
        host.disks.materialize(&spec).expect("made");
        let record = host.disks.record(&spec.id).expect("read").expect("made");
        assert_eq!(
            (record.generation, record.image_layers, &*record.command_line),
            (Generation(3), 2, "quiet")
        );
        assert!(record.uid >= UID_FIRST);
        assert_eq!(host.chain(&spec.id), Chain { layers: vec![0, 1, 2], size_bytes: IMAGE_BYTES });
        let files = host.disks.open_files(&spec.id).expect("opened");
        let own: Vec<_> = files.layers.iter().map(|layer| (layer.number, layer.write.is_some())).collect();
        assert_eq!(own, [(0, false), (1, false), (2, true)]);

        // What is there stays.
        host.disks
            .materialize(&MachineSpec { generation: Generation(9), ..spec.clone() })
            .expect("made already");
        assert_eq!(host.disks.record(&spec.id).expect("read"), Some(record.clone()));
        let again = Disks::open(host.directory.path()).expect("opened");
        assert!(again.uids.lock().expect("no holder panics").contains(&record.uid));

        host.disks.doom(&spec.id).expect("doomed");
        assert_eq!(host.disks.record(&spec.id).expect("read"), None);
        assert!(host.disks.exists(&spec.id));
        assert_eq!(host.disks.list().expect("listed"), std::slice::from_ref(&spec.id));
        host.disks.materialize(&spec).expect("another is made");
        host.disks.remove(&spec.id).expect("removed");
        host.disks.remove(&spec.id).expect("absent");
        assert!(!host.disks.exists(&spec.id));
        assert_eq!(host.disks.list().expect("listed"), []);
        assert!(host.disks.uids.lock().expect("no holder panics").is_empty());
    }

    #[test]
    fn what_was_made_half_way_is_made_anew() {
        let host = Host::new();
        let spec = host.spec(1, 0);
        let aside = host.disks.path.join(format!("{NEW}{}", spec.id));
        fs_err::create_dir(&aside).expect("made");
        fs_err::write(aside.join("0.qcow2"), "cut short").expect("written");
        assert!(host.disks.exists(&spec.id));
        assert_eq!(host.disks.record(&spec.id).expect("read"), None);
        host.disks.materialize(&spec).expect("made");
        assert_eq!(host.chain(&spec.id).layers, [0, 1]);
        assert!(!aside.exists());
    }

    #[test]
    fn a_disk_is_as_large_as_asked_for_and_only_grows() {
        let host = Host::new();
        refused(host.disks.materialize(&host.spec(1, IMAGE_BYTES - 1024)), "smaller than that of its image");
        refused(host.disks.materialize(&host.spec(1, u64::MAX / 2)), "at most");
        assert_eq!(host.disks.list().expect("listed"), []);
        let spec = host.spec(1, 3 * IMAGE_BYTES - 100);
        host.disks.materialize(&spec).expect("made");
        assert_eq!(host.chain(&spec.id).size_bytes, 3 * IMAGE_BYTES);
        host.disks.grow(&spec.id, 4 * IMAGE_BYTES).expect("grown");
        assert_eq!(host.chain(&spec.id).size_bytes, 4 * IMAGE_BYTES);
        host.disks.grow(&spec.id, 0).expect("as it is");
        host.disks.grow(&spec.id, IMAGE_BYTES).expect("as it is");
        assert_eq!(host.chain(&spec.id).size_bytes, 4 * IMAGE_BYTES);
    }

    #[test]
    fn a_guest_of_its_initramfs_alone_has_no_disk() {
        let host = Host::new();
        let spec = host.spec(0, 5 << 30);
        host.disks.materialize(&spec).expect("made");
        assert_eq!(host.chain(&spec.id), Chain::none());
        let files = host.disks.open_files(&spec.id).expect("opened");
        assert!(files.layers.is_empty() && files.kernel.is_some() && files.initramfs.is_none());
        assert_eq!(files.arguments(|_| unreachable!("no file")), (Vec::new(), None));
        let mut nothing = host.spec(0, 0);
        nothing.tree.disk.as_mut().expect("one").kernel = None;
        refused(host.disks.materialize(&nothing), "neither a disk nor a kernel");
        nothing.tree.disk = None;
        refused(host.disks.materialize(&nothing), "build-vm");
    }

    #[test]
    fn a_chain_leads_nowhere_else() {
        let host = Host::new();
        let id = host.spec(1, 0).id;
        for (name, below) in [
            ("a name elsewhere", "../0.qcow2"),
            ("an absolute name", "/etc/shadow"),
            ("itself", "1.qcow2"),
            ("one above", "2.qcow2"),
            ("another spelling", "00.qcow2"),
            ("a protocol", "nbd://host/x"),
        ] {
            let directory = host.directory.path().join(name);
            fs_err::create_dir(&directory).expect("made");
            write_layer(&directory, 0, IMAGE_BYTES, None).expect("written");
            write_layer(&directory, 1, IMAGE_BYTES, Some(below)).expect("written");
            refused(Chain::read(&directory), "cannot be used");
        }
        let linked = host.directory.path().join("linked");
        fs_err::create_dir(&linked).expect("made");
        std::os::unix::fs::symlink("/etc/shadow", linked.join("0.qcow2")).expect("linked");
        assert!(Chain::read(&linked).is_err());
        let deep = host.directory.path().join(id.as_str());
        fs_err::create_dir(&deep).expect("made");
        write_layer(&deep, 0, IMAGE_BYTES, None).expect("written");
        for number in 1..=u32::try_from(LAYERS_MAX).expect("few") {
            write_layer(&deep, number, IMAGE_BYTES, Some(&layer_name(number - 1))).expect("written");
        }
        refused(Chain::read(&deep), "more than 64 layers");
    }
}
