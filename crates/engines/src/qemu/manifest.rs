//! What a snapshot says of itself: `config.json`.
//!
//! ```text
//!   config.json            this
//!   0.qcow2 1.qcow2 …      the disk, as it is shared on this host; or
//!   disk.qcow2             the disk, packed: it stands alone
//!   kernel initramfs       what starts it
//!   state                  the devices and processors
//!   memory                 the RAM, to be mapped
//!   video                  what else the devices have of memory
//! ```
//!
//! A snapshot of a disk has no memory, one of memory alone no disk. A memory image fits only the hardware that it was taken
//! from, so that is here too, and compared before anything is started.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use sandhaus_sandbox::engine::{EngineError, EngineResult};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    arguments::Hardware,
    disk::{INITRAMFS, KERNEL, PACKED, open_read},
    memory::Sums,
};

/// The file that this is.
pub(super) const CONFIG: &str = "config.json";
/// State of devices and processors.
pub(super) const STATE: &str = "state";
/// The RAM.
pub(super) const MEMORY: &str = "memory";
/// Memory of devices, one block after the other.
pub(super) const VIDEO: &str = "video";

/// The form of what is written here. Another one is refused.
const FORMAT: u32 = 1;

/// Longest manifest: the sums of the largest RAM, and some.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct QemuVersion {
    /// Changes what machine types there are.
    pub(super) major: u32,
    /// The same.
    pub(super) minor: u32,
    /// Mends things.
    pub(super) micro: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// How RAM and state of a machine were written, and so how they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    /// RAM as a file to map; a stream of the rest (`x-ignore-shared`).
    IgnoreShared,
    /// RAM and memory of devices as files; a stream of devices alone (`xen-save-devices-state`).
    Devices,
    /// One file with all, pages at places of their own (`mapped-ram`).
    MappedRam,
    /// One stream of all.
    Stream,
}

impl Form {
    /// RAM is a file of its own, to be mapped.
    pub(super) fn maps_memory(self) -> bool {
        match self {
            Self::IgnoreShared | Self::Devices => true,
            Self::MappedRam | Self::Stream => false,
        }
    }
}

/// Memory of a device within [`VIDEO`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Block {
    /// QEMU's name for it.
    pub(super) name: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// A machine that stood still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    /// What wrote it.
    pub(super) qemu: QemuVersion,
    /// The hardware.
    pub(super) hardware: Hardware,
    /// Tells other devices from these.
    pub(super) devices: String,
    /// How it is written.
    pub(super) form: Form,
    /// Sums of [`STATE`].
    pub(super) state: Sums,
    /// Sums of [`MEMORY`].
    pub(super) memory: Option<Sums>,
    /// Sums of [`VIDEO`].
    pub(super) video: Option<Sums>,
    /// What lies in [`VIDEO`].
    pub(super) video_blocks: Vec<Block>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    /// How many of the lowest layers are the image's.
    pub(super) image_layers: usize,
    /// Command line of the kernel, but for the console.
    pub(super) command_line: String,
    /// Size of the disk in bytes; zero: there is none.
    pub(super) size_bytes: u64,
    /// SHA-256 of the files, once they are packed.
    pub(super) digests: Option<Digests>,
}

/// SHA-256 of the files of a packed disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Digests {
    /// Of [`PACKED`].
    pub(super) disk: Option<String>,
    /// Of the kernel.
    pub(super) kernel: Option<String>,
    /// Of the initial file system.
    pub(super) initramfs: Option<String>,
}

impl Digests {
    /// Those of the files in a directory.
    pub(super) fn of(directory: &Path) -> EngineResult<Self> {
        let digest = |name: &str| match open_read(&directory.join(name)) {
            Ok(file) => sha256(&file).map(Some).map_err(|error| EngineError::host("read snapshot", error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EngineError::host("open snapshot", error)),
        };
        Ok(Self { disk: digest(PACKED)?, kernel: digest(KERNEL)?, initramfs: digest(INITRAMFS)? })
    }
}

/// The manifest of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// The machine, if the snapshot has one.
    pub(super) machine: Option<Machine>,
    /// The disk, if the snapshot has one.
    pub(super) disk: Option<Disk>,
}

/// The file: a manifest, and what a flipped bit in it does not fit.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    sha256: String,
}

/// Only the form of a file, for those that are of another.
#[derive(Debug, Deserialize)]
struct AnyForm {
    manifest: Format,
}

#[derive(Debug, Deserialize)]
struct Format {
    format: u32,
}

impl Manifest {
    /// A manifest of what is captured here and now.
    pub(super) fn new(machine: Option<Machine>, disk: Option<Disk>) -> Self {
        Self { format: FORMAT, machine, disk }
    }

    /// Reads that of a snapshot.
    pub(super) fn read(directory: &Path) -> EngineResult<Self> {
        let text = match read_bounded(&directory.join(CONFIG)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EngineError::Invalid(format!("the snapshot has no {CONFIG}")));
            }
            Err(error) => return Err(EngineError::host("read snapshot", error)),
        };
        Self::parse(&text)
    }

    fn parse(text: &[u8]) -> EngineResult<Self> {
        let damaged = || EngineError::Invalid(format!("{CONFIG} of the snapshot is damaged"));
        let AnyForm { manifest: Format { format } } = serde_json::from_slice(text).map_err(|_| damaged())?;
        if format != FORMAT {
            return Err(EngineError::Invalid(format!(
                "the snapshot has form {format}, this server knows form {FORMAT} alone: it was written by another version"
            )));
        }
        let Sealed { manifest, sha256 } = serde_json::from_slice(text).map_err(|_| damaged())?;
        if manifest.seal().map_err(|_| damaged())? != sha256 {
            return Err(damaged());
        }
        Ok(manifest)
    }

    /// Writes it into a directory that nobody looks at yet.
    pub(super) fn write(&self, directory: &Path) -> io::Result<File> {
        let sealed = Sealed { manifest: self.clone(), sha256: self.seal()? };
        let file = fs_err::File::create_new(directory.join(CONFIG))?.into_file();
        file.write_all_at(&serde_json::to_vec_pretty(&sealed)?, 0)?;
        Ok(file)
    }

    fn seal(&self) -> serde_json::Result<String> {
        Ok(hexadecimal(&Sha256::digest(serde_json::to_vec(self)?)))
    }
}

impl Machine {
    /// Refuses a machine that cannot go on with this hardware and this QEMU, and says why.
    pub(super) fn check(&self, hardware: &Hardware, devices: &str, qemu: QemuVersion) -> EngineResult<()> {
        let then = &self.hardware;
        let differs = |what: &str, then: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
            Err(EngineError::Invalid(format!(
                "the snapshot's memory cannot be used here: its {what} is {then}, this one's is {now}"
            )))
        };
        if then.accelerator != hardware.accelerator {
            let name = |accelerator| match accelerator {
                super::Accelerator::Kvm => "KVM",
                super::Accelerator::Tcg => "emulation (TCG)",
            };
            return differs("virtualisation", &name(then.accelerator), &name(hardware.accelerator));
        }
        if then.machine != hardware.machine {
            return differs("machine type", &then.machine, &hardware.machine);
        }
        if then.cpu != hardware.cpu {
            return differs("processor model", &then.cpu, &hardware.cpu);
        }
        if then.cpus != hardware.cpus {
            return differs("number of processors", &then.cpus, &hardware.cpus);
        }
        if then.memory_mib != hardware.memory_mib {
            return differs("memory in MiB", &then.memory_mib, &hardware.memory_mib);
        }
        if (self.qemu.major, self.qemu.minor) > (qemu.major, qemu.minor) {
            return differs("QEMU, which has to be the same or an earlier one,", &self.qemu, &qemu);
        }
        if self.devices != devices {
            return differs("set of devices", &self.devices, &devices);
        }
        Ok(())
    }
}

/// Tells one set of devices from another, by the options of a command line that make them.
pub(super) fn devices_of(arguments: &[String]) -> String {
    const OPTIONS: &[&str] = &["-device", "-machine"];
    let mut digest = Sha256::new();
    for (option, value) in arguments.iter().zip(arguments.iter().skip(1)) {
        if !OPTIONS.contains(&option.as_str()) {
            continue;
        }
        // The layer that a disk begins with is no part of what the guest sees, nor is what it once started from.
        let parts =
            value.split(',').filter(|part| !part.starts_with("drive=") && !part.starts_with("bootindex="));
        for part in [option.as_str()].into_iter().chain(parts) {
            digest.update(part);
            digest.update([0]);
        }
    }
    hexadecimal(&digest.finalize()[..DEVICES_BYTES])
}

/// Bytes of the digest that tell devices apart.
const DEVICES_BYTES: usize = 8;

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_read(path)?;
    let length = file.metadata()?.len();
    if length > CONFIG_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut text = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut text, 0)?;
    Ok(text)
}

/// SHA-256 of a file, as hexadecimal digits.
fn sha256(file: &File) -> io::Result<String> {
    let (mut digest, mut buffer, mut offset) = (Sha256::new(), vec![0; READ_BYTES], 0);
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hexadecimal(&digest.finalize())),
            count => {
                digest.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}

/// What is read at a time.
const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Accelerator;

    const VERSION: QemuVersion = QemuVersion { major: 10, minor: 0, micro: 2 };

    fn machine() -> Machine {
        let file = tempfile::tempfile().expect("a file");
        Machine {
            qemu: VERSION,
            hardware: Hardware {
                machine: "pc-q35-10.0".to_owned(),
                cpu: "Nehalem".to_owned(),
                accelerator: Accelerator::Tcg,
                cpus: 2,
                memory_mib: 256,
            },
            devices: "0011".to_owned(),
            form: Form::Devices,
            state: Sums::of(&file).expect("summed up"),
            memory: None,
            video: None,
            video_blocks: vec![Block { name: "vga".to_owned(), bytes: 4096 }],
        }
    }

    fn refused<T: std::fmt::Debug>(result: EngineResult<T>, words: &str) {
        match result {
            Err(EngineError::Invalid(reason)) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_manifest_reads_as_it_was_written_and_no_flipped_bit_is_overlooked() {
        let directory = tempfile::tempdir().expect("a directory");
        refused(Manifest::read(directory.path()), "has no config.json");
        let manifest = Manifest::new(Some(machine()), None);
        manifest.write(directory.path()).expect("written");
        assert_eq!(Manifest::read(directory.path()).expect("read"), manifest);
        let text = fs_err::read(directory.path().join(CONFIG)).expect("read");
        for place in 0..text.len() {
            let mut flipped = text.clone();
            flipped[place] ^= 1;
            // What is between the words alone may differ.
            if let Ok(read) = Manifest::parse(&flipped) {
                assert_eq!(read, manifest, "at {place}");
                assert!(text[place].is_ascii_whitespace(), "at {place}");
            }
        }
        assert!(Manifest::parse(&text[..text.len() - 3]).is_err());
        let later = String::from_utf8(text).expect("text").replacen("\"format\": 1", "\"format\": 2", 1);
        refused(Manifest::parse(later.as_bytes()), "form 2");
    }

    #[test]
    fn hardware_that_differs_is_refused_with_the_reason() {
        let image = machine();
        let own = image.hardware.clone();
        let check = |hardware: Hardware, devices: &str, qemu| image.check(&hardware, devices, qemu);
        check(own.clone(), "0011", VERSION).expect("the same");
        check(own.clone(), "0011", QemuVersion { major: 10, minor: 0, micro: 0 }).expect("mended otherwise");
        check(own.clone(), "0011", QemuVersion { major: 11, minor: 1, micro: 0 }).expect("newer");
        refused(check(own.clone(), "0011", QemuVersion { major: 9, minor: 2, micro: 4 }), "10.0.2");
        refused(check(own.clone(), "0012", VERSION), "set of devices");
        let kvm = Hardware { accelerator: Accelerator::Kvm, ..own.clone() };
        refused(check(kvm, "0011", VERSION), "emulation (TCG), this one's is KVM");
        let cpu = Hardware { cpu: "Skylake-Server".to_owned(), ..own.clone() };
        refused(check(cpu, "0011", VERSION), "Nehalem");
        refused(check(Hardware { cpus: 1, ..own.clone() }, "0011", VERSION), "is 2, this one's is 1");
        refused(
            check(Hardware { memory_mib: 512, ..own.clone() }, "0011", VERSION),
            "is 256, this one's is 512",
        );
        refused(check(Hardware { machine: "pc-q35-9.2".to_owned(), ..own }, "0011", VERSION), "machine type");
    }

    #[test]
    fn devices_are_told_apart_by_what_a_guest_sees_of_them() {
        let line = |disk: &str, more: &[&str]| {
            let mut words = vec!["-m", "256", "-device", disk, "-netdev", "tap,fd=7"];
            words.extend_from_slice(more);
            devices_of(&words.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let one = line("virtio-blk-pci,id=disk,drive=layer-1", &[]);
        assert_eq!(one, line("virtio-blk-pci,id=disk,drive=layer-9,bootindex=0", &["-S"]));
        assert_ne!(one, line("virtio-scsi-pci,id=disk,drive=layer-1", &[]));
        assert_ne!(one, line("virtio-blk-pci,id=disk,drive=layer-1", &["-device", "vmgenid"]));
        assert_ne!(one, line("virtio-blk-pci,id=disk,drive=layer-1", &["-machine", "q35"]));
    }
}
