//! Disks: what of a sandbox lasts beyond its machine.
//!
//! ```text
//! disks/<id>/record      what it is; a disk without it is not made yet, and is made again
//! disks/<id>/doomed      the same, once it is to go
//! disks/<id>/upper/      what the sandbox wrote over its image      ┐ or all three in disks/<id>/disk.ext4,
//! disks/<id>/workspace/  /workspace                                 │ where the size is limited
//! disks/<id>/work/       the overlay's own                          ┘
//! disks/<id>/layers/     the image's layers with this sandbox's ids, on kernels that cannot map them
//! disks/<id>/below       leads to the snapshot that it is made of
//! ```
//!
//! The record is a symbolic link that leads nowhere: one call makes it, whole or not at all, and one call reads it.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult, MachineSpec},
    types::{Generation, SandboxId},
};

use super::{
    capture, image_file, loop_device, removal,
    steps::{self, DestroyStep, MaterializeStep},
    sys,
    wire::DiskPlace,
};

/// Ids of users and groups that a sandbox has: all that 16 bits name.
pub(super) const IDS_PER_SANDBOX: u32 = 1 << 16;

/// First id given to sandboxes: far above those of people, and of other container engines.
const BASE_FIRST: u32 = 0x4000_0000;

/// How many sandboxes of one instance have ids of their own.
const SLOTS: u32 = 16 * 1024;

/// The machine's own layer.
pub(super) const UPPER: &str = "upper";
/// The overlay's own directory.
pub(super) const WORK: &str = "work";
/// `/workspace`.
pub(super) const WORKSPACE: &str = "workspace";
/// Copied layers.
pub(super) const LAYERS: &str = "layers";
/// The snapshot below it.
const BELOW: &str = "below";
/// The file of a size-limited disk.
const IMAGE: &str = "disk.ext4";

const RECORD: &str = "record";
const DOOMED: &str = "doomed";

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// The generation it was made for.
    pub(super) generation: Generation,
    /// First id outside of its range.
    pub(super) base: u32,
    /// How it lies.
    pub(super) kind: Kind,
}

/// How a disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// In a directory, as large as the host's file system allows.
    Directory,
    /// In a file system within a file.
    Image,
}

impl Record {
    fn to_text(self) -> String {
        let kind = match self.kind {
            Kind::Directory => "directory",
            Kind::Image => "image",
        };
        format!("{} {:#x} {kind}", self.generation, self.base)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let generation = Generation(words.next()?.parse().ok()?);
        let base = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        let kind = match words.next()? {
            "directory" => Kind::Directory,
            "image" => Kind::Image,
            _ => return None,
        };
        words.next().is_none().then_some(Self { generation, base, kind })
    }
}

/// What lies in a fresh disk.
pub(super) struct Layout<'a> {
    /// First id outside of its range.
    pub(super) base: u32,
    /// The workload's user and group outside.
    pub(super) workload: u32,
    /// The machine's name.
    pub(super) hostname: &'a str,
}

impl Layout<'_> {
    /// Lays it all out; what is there already stays.
    pub(super) fn lay(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.lay_directories(directory)?;
        self.lay_identity(directory)
    }

    fn lay_directories(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        make_directory(directory, UPPER, self.base)?;
        make_directory(directory, WORKSPACE, self.workload)
    }

    /// The name of the machine, and that it knows nobody else. The upper layer is fresh, so no link can stand here.
    fn lay_identity(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let upper = sys::open_beneath(directory, Path::new(UPPER), OFlags::PATH | OFlags::DIRECTORY)?;
        make_directory(upper.as_fd(), "etc", self.base)?;
        let etc = sys::open_beneath(upper.as_fd(), Path::new("etc"), OFlags::PATH | OFlags::DIRECTORY)?;
        let name = self.hostname;
        let hosts =
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
        for (file, text) in [
            ("hosts", &*hosts),
            ("hostname", &format!("{name}\n")),
            // The next start puts the name servers there, if there are any.
            ("resolv.conf", &crate::net::text_of_none()),
        ] {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&etc, file, flags, Mode::from_raw_mode(0o644)) {
                Ok(opened) => {
                    rustix::io::write(&opened, text.as_bytes())?;
                    rustix::fs::fchown(
                        &opened,
                        Some(rustix::fs::Uid::from_raw(self.base)),
                        Some(rustix::fs::Gid::from_raw(self.base)),
                    )?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Makes a directory and gives it away; one that is there keeps its owner.
fn make_directory(parent: BorrowedFd<'_>, name: &str, owner: u32) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => sys::give(parent, name, owner, owner),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The disks of an instance.
#[derive(Debug)]
pub(super) struct Disks {
    data_dir: PathBuf,
    path: PathBuf,
    directory: OwnedFd,
    slots: Mutex<HashSet<u32>>,
}

impl Disks {
    /// Opens `disks/` of a data directory and notes the ids in use.
    pub(super) fn open(data_dir: &Path) -> EngineResult<Self> {
        let path = data_dir.join("disks");
        let host = |error: io::Error| EngineError::host("open disks", error);
        make_private(&path).map_err(host)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| host(error.into()))?;
        let data_dir = data_dir.to_owned();
        let disks = Self { data_dir, path, directory, slots: Mutex::new(HashSet::new()) };
        let mut slots = HashSet::new();
        for id in disks.list()? {
            slots.extend(disks.any_record(&id)?.map(|record| slot_of(record.base)));
        }
        *disks.slots.lock().expect("no holder panics") = slots;
        Ok(disks)
    }

    /// Where size-limited disks are prepared.
    pub(super) fn templates(&self) -> PathBuf {
        self.path.join(".templates")
    }

    /// Every sandbox that has anything here.
    pub(super) fn list(&self) -> EngineResult<Vec<SandboxId>> {
        let host = |error: io::Error| EngineError::host("list disks", error);
        let mut ids = Vec::new();
        for entry in fs_err::read_dir(&self.path).map_err(host)? {
            let name = entry.map_err(host)?.file_name();
            ids.extend(name.to_str().and_then(|name| SandboxId::parse(name).ok()));
        }
        Ok(ids)
    }

    /// The disk of a sandbox, if it is made and not doomed.
    pub(super) fn record(&self, id: &SandboxId) -> EngineResult<Option<Record>> {
        self.read(id, RECORD)
    }

    /// Whether anything of a disk is there.
    pub(super) fn exists(&self, id: &SandboxId) -> bool {
        rustix::fs::statat(&self.directory, id.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn any_record(&self, id: &SandboxId) -> EngineResult<Option<Record>> {
        Ok(match self.read(id, RECORD)? {
            Some(record) => Some(record),
            None => self.read(id, DOOMED)?,
        })
    }

    fn read(&self, id: &SandboxId, name: &str) -> EngineResult<Option<Record>> {
        match rustix::fs::readlinkat(&self.directory, format!("{id}/{name}"), Vec::new()) {
            Ok(text) => match text.to_str().ok().and_then(Record::parse) {
                Some(record) => Ok(Some(record)),
                None => {
                    Err(EngineError::host("read disk record", io::Error::from(io::ErrorKind::InvalidData)))
                }
            },
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(EngineError::host("read disk record", error)),
        }
    }

    /// Where the launcher finds a disk.
    pub(super) fn place(&self, id: &SandboxId, record: Record) -> DiskPlace {
        match record.kind {
            Kind::Directory => DiskPlace::Directory(self.path_of(id)),
            Kind::Image => DiskPlace::Image(self.path_of(id).join(IMAGE)),
        }
    }

    /// How many bytes a disk is limited to, if it is.
    pub(super) fn limit_of(&self, id: &SandboxId) -> EngineResult<Option<u64>> {
        let Some(Record { kind: Kind::Image, .. }) = self.record(id)? else { return Ok(None) };
        let status = fs_err::metadata(self.path_of(id).join(IMAGE));
        status.map(|status| Some(status.len())).map_err(|error| EngineError::host("open disk", error))
    }

    /// The directory of a disk.
    pub(super) fn path_of(&self, id: &SandboxId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Makes the disk of a sandbox, empty above its image. One that is made stays as it is.
    pub(super) fn materialize(&self, spec: &MachineSpec) -> EngineResult<()> {
        let id = &spec.id;
        if self.record(id)?.is_some() {
            return Ok(());
        }
        let host = |what: &'static str| move |error: io::Error| failure(what, error);
        steps::pass(MaterializeStep::Clear, || if self.exists(id) { self.remove(id) } else { Ok(()) })?;
        let kind = if spec.resources.disk_bytes == 0 { Kind::Directory } else { Kind::Image };
        let slot = self.take_slot()?;
        let base = slot.base();
        let directory = steps::pass(MaterializeStep::Directory, || {
            rustix::fs::mkdirat(&self.directory, id.as_str(), Mode::from_raw_mode(0o700))?;
            sys::open_beneath(
                self.directory.as_fd(),
                Path::new(id.as_str()),
                OFlags::PATH | OFlags::DIRECTORY,
            )
        })
        .map_err(host("make disk"))?;
        let workload = base + spec.workload().uid;
        let layout = Layout { base, workload, hostname: &spec.hostname };
        steps::pass(MaterializeStep::Layer, || match kind {
            Kind::Directory => layout.lay_directories(directory.as_fd()).map_err(host("make disk")),
            Kind::Image => {
                let image = self.path_of(id).join(IMAGE);
                image_file::make(&self.templates(), &image, spec.resources.disk_bytes)
                    .map_err(host("make disk"))
            }
        })?;
        steps::pass(MaterializeStep::Identity, || match kind {
            Kind::Directory => layout.lay_identity(directory.as_fd()),
            // The launcher does it when it first mounts the file.
            Kind::Image => Ok(()),
        })
        .map_err(host("make disk"))?;
        steps::pass(MaterializeStep::Snapshot, || match &spec.snapshot {
            None => Ok(()),
            Some(snapshot) => self.begin_from(id, snapshot, &directory, kind, &layout),
        })?;
        let record = Record { generation: spec.generation, base, kind };
        steps::pass(MaterializeStep::Record, || {
            rustix::fs::symlinkat(record.to_text(), &directory, RECORD).map_err(io::Error::from)
        })
        .map_err(host("record disk"))?;
        slot.keep();
        Ok(())
    }

    /// Begins a disk with what a snapshot has beside its layers, which stay where they are.
    fn begin_from(
        &self,
        id: &SandboxId,
        snapshot: &Path,
        directory: &OwnedFd,
        kind: Kind,
        layout: &Layout<'_>,
    ) -> EngineResult<()> {
        capture::layers(snapshot)?;
        let begin = || -> io::Result<()> {
            capture::note_below(directory, BELOW, &self.data_dir, snapshot)?;
            match kind {
                Kind::Directory => {
                    let whole = sys::open_beneath(directory.as_fd(), Path::new("."), OFlags::RDONLY)?;
                    capture::fill_workspace(&whole, layout.base, snapshot)
                }
                Kind::Image => {
                    // Nobody else has it yet.
                    let mounted = loop_device::mount_image(&self.path_of(id).join(IMAGE))?;
                    layout.lay(mounted.as_fd())?;
                    capture::fill_workspace(&mounted, layout.base, snapshot)
                }
            }
        };
        begin().map_err(|error| failure("make disk of snapshot", error))
    }

    /// Writes what a disk holds into the empty directory `into`. Nobody may write to it meanwhile.
    pub(super) fn capture(&self, id: &SandboxId, into: &Path) -> EngineResult<()> {
        let host = |error: io::Error| failure("open disk", error);
        let Some(record) = self.record(id)? else {
            return Err(EngineError::Invalid("there is no disk to capture".to_owned()));
        };
        let path = self.path_of(id);
        let below = match rustix::fs::readlinkat(&self.directory, format!("{id}/{BELOW}"), Vec::new()) {
            Ok(_) => Some(fs_err::canonicalize(path.join(BELOW)).map_err(host)?),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(host(error.into())),
        };
        let disk = match record.kind {
            Kind::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                sys::open_beneath(self.directory.as_fd(), Path::new(id.as_str()), flags)
            }
            Kind::Image => loop_device::share_image(&path.join(IMAGE)),
        };
        capture::write(&disk.map_err(host)?, record.base, below.as_deref(), into)
    }

    /// Marks a disk so that it never counts as one again, but its ids stay taken.
    pub(super) fn doom(&self, id: &SandboxId) -> EngineResult<()> {
        steps::pass(DestroyStep::Doom, || {
            let (from, to) = (format!("{id}/{RECORD}"), format!("{id}/{DOOMED}"));
            match rustix::fs::renameat(&self.directory, from, &self.directory, to) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(EngineError::host("doom disk", error)),
            }
        })
    }

    /// Removes a disk, all of it, and frees its ids. Absent is success.
    pub(super) fn remove(&self, id: &SandboxId) -> EngineResult<()> {
        let record = self.any_record(id)?;
        removal::remove_tree(self.directory.as_fd(), id.as_str())
            .map_err(|error| EngineError::host("remove disk", error))?;
        if let Some(record) = record {
            self.slots.lock().expect("no holder panics").remove(&slot_of(record.base));
        }
        Ok(())
    }

    /// Takes ids that no disk of this instance has, at random: instances do not know of each other.
    fn take_slot(&self) -> EngineResult<Slot<'_>> {
        let mut slots = self.slots.lock().expect("no holder panics");
        if slots.len() >= SLOTS as usize {
            return Err(EngineError::Exhausted("user ids".to_owned()));
        }
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| EngineError::host("draw user ids", error))?;
        let start = u32::from_ne_bytes(bytes) % SLOTS;
        let slot = (0..SLOTS)
            .map(|step| (start + step) % SLOTS)
            .find(|slot| !slots.contains(slot))
            .expect("fewer are taken than there are");
        slots.insert(slot);
        Ok(Slot { slot, disks: self, kept: false })
    }
}

/// Ids that are taken, for good once they are recorded on a disk.
struct Slot<'a> {
    slot: u32,
    disks: &'a Disks,
    kept: bool,
}

impl Slot<'_> {
    fn base(&self) -> u32 {
        BASE_FIRST + self.slot * IDS_PER_SANDBOX
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.disks.slots.lock().expect("no holder panics").remove(&self.slot);
        }
    }
}

fn slot_of(base: u32) -> u32 {
    base.saturating_sub(BASE_FIRST) / IDS_PER_SANDBOX
}

/// Makes a directory that only the server's user can enter, with its parents.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A failing host, told apart from one that is full.
pub(crate) fn failure(what: &'static str, error: io::Error) -> EngineError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => EngineError::Exhausted("disk space".to_owned()),
        Some(libc::EMFILE | libc::ENFILE) => EngineError::Exhausted("open files".to_owned()),
        Some(libc::ENOMEM) => EngineError::Exhausted("memory".to_owned()),
        _ => EngineError::host(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_it_was_written() {
        for kind in [Kind::Directory, Kind::Image] {
            let record = Record { generation: Generation(7), base: BASE_FIRST + 3 * IDS_PER_SANDBOX, kind };
            assert_eq!(Record::parse(&record.to_text()), Some(record));
        }
        for text in [
            "",
            "1",
            "1 0x40000000",
            "1 0x40000000 other",
            "x 0x40000000 image",
            "1 2 image",
            "1 0x1 image x",
        ] {
            assert_eq!(Record::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn ids_are_free_again_only_when_the_disk_is_gone() {
        let scratch = tempfile::tempdir().expect("a directory");
        let disks = Disks::open(scratch.path()).expect("opened");
        let taken: Vec<Slot<'_>> = (0..SLOTS).map(|_| disks.take_slot().expect("free")).collect();
        assert!(matches!(disks.take_slot(), Err(EngineError::Exhausted(_))));
        let bases: HashSet<u32> = taken.iter().map(Slot::base).collect();
        assert_eq!(bases.len(), SLOTS as usize);
        drop(taken);
        assert!(disks.take_slot().is_ok());
    }
}
