//! What the QEMU at hand can do, and whether the processor runs guests: found out once and written down, since finding out
//! takes a moment. What is written down counts for the same QEMU, and of the processor for the same kernel until it starts
//! again.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sandhaus_sandbox::engine::{EngineError, EngineResult};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;

use super::{
    Accelerator, AcceleratorChoice,
    manifest::QemuVersion,
    qmp::{Qmp, QmpResult},
};

/// What is written down, in the engine's shared directory.
const FILE: &str = "probe";

/// Longest such file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The processor that emulation shows: of a model that needs nothing which it lacks, with random numbers.
const CPU_TCG: &str = "Nehalem,+rdrand";

/// Models of processors, best first: the first that the host has all of is shown where the processor runs guests.
const CPUS_KVM: &[&str] = &[
    "SapphireRapids-v1",
    "Icelake-Server-v1",
    "Cascadelake-Server-v1",
    "Skylake-Server-v1",
    "EPYC-Genoa-v1",
    "EPYC-Milan-v1",
    "EPYC-Rome-v1",
    "EPYC-v1",
    "Broadwell-v1",
    "Haswell-v1",
    "IvyBridge-v1",
    "SandyBridge-v1",
    "Westmere-v1",
    "Nehalem-v1",
    "qemu64-v1",
];

/// Oldest QEMU whose memory images are used: before, no state goes straight into a file.
pub(super) const MEMORY_SNAPSHOT_VERSION: QemuVersion = QemuVersion { major: 8, minor: 2, micro: 0 };

/// Reads what `-version` says.
fn parse_version(text: &str) -> Option<QemuVersion> {
    let rest = text.split_once("version ")?.1;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(QemuVersion { major: next()?, minor: next()?, micro: next()? })
}

/// A program by what tells it from another of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    inode: u64,
    bytes: u64,
    modified_ns: i64,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let status = fs_err::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            inode: status.ino(),
            bytes: status.len(),
            modified_ns: status.mtime().saturating_mul(1_000_000_000).saturating_add(status.mtime_nsec()),
        })
    }
}

/// Everything that is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    qemu: Identity,
    version: QemuVersion,
    /// The newest versioned machine.
    #[serde(default)]
    machine: Option<String>,
    #[serde(default)]
    kvm: Option<KvmNotes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KvmNotes {
    /// Release and start of the kernel that this was found under.
    kernel: String,
    boot: String,
    /// Why it does not run guests, if it does not.
    broken: Option<String>,
    /// The best model of a processor.
    #[serde(default)]
    cpu: Option<String>,
}

/// What machines are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Knowledge {
    /// QEMU's version.
    pub(super) version: QemuVersion,
    /// The newest versioned machine it knows.
    pub(super) machine: String,
    /// Who runs guests.
    pub(super) accelerator: Accelerator,
    /// The processor they see.
    pub(super) cpu: String,
    /// Why they are emulated, if they are and that was not chosen.
    pub(super) emulated_because: Option<String>,
}

/// A QEMU to find out about.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    binary: PathBuf,
    /// Where it is written down; nowhere: it is found out anew.
    directory: Option<PathBuf>,
    choice: AcceleratorChoice,
}

impl Probe {
    /// About `binary`; what is found out is written down in `directory`, if one is given.
    pub(super) fn new(binary: &Path, directory: Option<&Path>, choice: AcceleratorChoice) -> Self {
        Self { binary: binary.to_owned(), directory: directory.map(Path::to_owned), choice }
    }

    /// QEMU's version. Blocks, for a moment where it is not written down.
    pub(super) fn version(&self) -> EngineResult<QemuVersion> {
        let identity = Identity::of(&self.binary).map_err(|error| EngineError::host("find QEMU", error))?;
        self.notes(identity).map(|notes| notes.version)
    }

    /// All of it.
    pub(super) async fn find_out(&self) -> EngineResult<Knowledge> {
        let identity = Identity::of(&self.binary).map_err(|error| EngineError::host("find QEMU", error))?;
        let this = self.clone();
        let mut notes = blocking(move || this.notes(identity)).await?;
        if notes.machine.is_none() {
            notes.machine = Some(self.newest_machine().await?);
            self.write(&notes);
        }
        let machine = notes.machine.clone().unwrap_or_default();
        let emulated = |because: Option<String>| Knowledge {
            version: notes.version,
            machine: machine.clone(),
            accelerator: Accelerator::Tcg,
            cpu: CPU_TCG.to_owned(),
            emulated_because: because,
        };
        let probe = match self.choice {
            AcceleratorChoice::Tcg => return Ok(emulated(None)),
            AcceleratorChoice::Kvm => None,
            AcceleratorChoice::Auto(probe) => Some(probe),
        };
        let (kernel, boot) = running_kernel();
        let known = notes.kvm.clone().filter(|known| known.kernel == kernel && known.boot == boot);
        let mut kvm = match (known, probe) {
            (Some(known), Some(_)) => known,
            // Chosen by who owns the server: nothing is to be found out.
            (known, None) => {
                let cpu = known.and_then(|known| known.cpu);
                KvmNotes { kernel, boot, broken: None, cpu }
            }
            (None, Some(probe)) => {
                let broken = blocking(move || Ok(probe().err())).await?;
                KvmNotes { kernel, boot, broken, cpu: None }
            }
        };
        if kvm.broken.is_none() && kvm.cpu.is_none() {
            match self.best_processor(&machine).await {
                Ok(cpu) => kvm.cpu = Some(cpu),
                Err(error) => kvm.broken = Some(error.to_string()),
            }
        }
        if !matches!(self.choice, AcceleratorChoice::Kvm) && notes.kvm.as_ref() != Some(&kvm) {
            self.write(&Notes { kvm: Some(kvm.clone()), ..notes.clone() });
        }
        match (kvm.broken, kvm.cpu, self.choice) {
            (None, Some(cpu), _) => Ok(Knowledge {
                version: notes.version,
                machine,
                accelerator: Accelerator::Kvm,
                cpu,
                emulated_because: None,
            }),
            (broken, _, AcceleratorChoice::Kvm) => Err(EngineError::Unsupported(format!(
                "KVM on this host ({}; `qemu.accelerator: tcg` emulates)",
                broken.unwrap_or_default()
            ))),
            (broken, ..) => Ok(emulated(broken)),
        }
    }

    /// What is written down of this QEMU, else what it says of itself.
    fn notes(&self, qemu: Identity) -> EngineResult<Notes> {
        if let Some(notes) = self.read().filter(|notes| notes.qemu == qemu) {
            return Ok(notes);
        }
        let output = Command::new(&self.binary)
            .arg("-version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| EngineError::host("start QEMU", error))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = parse_version(&said).ok_or_else(|| {
            let said = said.lines().next().unwrap_or_default();
            EngineError::host("read QEMU's version", io::Error::other(format!("it says {said:?}")))
        })?;
        let notes = Notes { qemu, version, machine: None, kvm: None };
        self.write(&notes);
        Ok(notes)
    }

    fn read(&self) -> Option<Notes> {
        use std::io::Read as _;
        let mut text = Vec::new();
        let file = fs_err::File::open(self.directory.as_ref()?.join(FILE)).ok()?;
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whole or not at all. What cannot be written down is found out again next time.
    fn write(&self, notes: &Notes) {
        let Some(directory) = &self.directory else { return };
        let mut random = [0_u8; 8];
        // Only a name that another process does not use at the same moment.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let fresh = directory.join(format!("{FILE}.{:016x}", u64::from_ne_bytes(random)));
        let text = serde_json::to_vec(notes).unwrap_or_default();
        let written = fs_err::create_dir_all(directory)
            .and_then(|()| fs_err::write(&fresh, text))
            .and_then(|()| fs_err::rename(&fresh, directory.join(FILE)));
        if let Err(error) = written {
            tracing::debug!(%error, "cannot write down what QEMU can do");
        }
    }

    /// The newest versioned machine of the kind in use.
    async fn newest_machine(&self) -> EngineResult<String> {
        #[derive(Deserialize)]
        struct Machine {
            name: String,
            #[serde(default)]
            deprecated: bool,
        }
        let mut asked = self.ask_one(&["-machine", "none"]).await?;
        let machines: Vec<Machine> = asked
            .qmp
            .ask("query-machines", json!({}))
            .await
            .map_err(|error| EngineError::host("ask QEMU for machines", error))?;
        asked.end().await;
        let names = machines.iter().filter(|machine| !machine.deprecated).map(|machine| &*machine.name);
        newest(names)
            .ok_or_else(|| EngineError::Unsupported("a QEMU without machines of type q35".to_owned()))
    }

    /// The best model of a processor that the host has all of.
    async fn best_processor(&self, machine: &str) -> EngineResult<String> {
        #[derive(Deserialize)]
        struct Definition {
            name: String,
            #[serde(rename = "unavailable-features")]
            missing: Option<Vec<String>>,
        }
        let mut asked = self.ask_one(&["-machine", machine, "-accel", "kvm", "-cpu", "qemu64"]).await?;
        let definitions: QmpResult<Vec<Definition>> = asked.qmp.ask("query-cpu-definitions", json!({})).await;
        asked.end().await;
        let definitions = definitions.map_err(|error| EngineError::host("ask QEMU for processors", error))?;
        let whole = |name: &&&str| {
            definitions.iter().any(|found| {
                found.name == **name && found.missing.as_ref().is_some_and(|missing| missing.is_empty())
            })
        };
        let best = CPUS_KVM.iter().find(whole).map(|name| (*name).to_owned());
        best.ok_or_else(|| EngineError::Unsupported("a model of this processor".to_owned()))
    }

    /// A QEMU without a guest, to ask questions of.
    async fn ask_one(&self, arguments: &[&str]) -> EngineResult<Asked> {
        let host = |error: io::Error| EngineError::host("start QEMU", error);
        let (ours, theirs) = UnixStream::pair().map_err(host)?;
        let theirs = theirs.into_std().map_err(host)?;
        theirs.set_nonblocking(false).map_err(host)?;
        let theirs = OwnedFd::from(theirs);
        let child = Command::new(&self.binary)
            .args(arguments)
            .args(["-no-user-config", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"])
            .env_clear()
            .stdin(theirs.try_clone().map_err(host)?)
            .stdout(theirs)
            .stderr(Stdio::null())
            .spawn()
            .map_err(host)?;
        let child = Ending(Some(child));
        let qmp = Qmp::begin(ours).await.map_err(|error| EngineError::host("ask QEMU", error))?;
        Ok(Asked { qmp, child })
    }
}

struct Asked {
    qmp: Qmp,
    child: Ending,
}

impl Asked {
    async fn end(&mut self) {
        // It is killed otherwise.
        let _ = self.qmp.quit().await;
        let child = self.child.0.take();
        let _ = blocking(move || {
            child.map(|mut child| child.wait());
            Ok(())
        })
        .await;
    }
}

/// A child that does not outlive this.
struct Ending(Option<std::process::Child>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> EngineResult<T> + Send + 'static,
) -> EngineResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| EngineError::host("ask QEMU", error))?
}

/// Release and start of the kernel that runs.
fn running_kernel() -> (String, String) {
    let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    (release, boot.trim().to_owned())
}

/// The newest of the versioned machines among these names.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let version = |name: &str| {
        let (major, minor) = name.strip_prefix("pc-q35-")?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    names.filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let version = |text| parse_version(text).expect("a version");
        let debian =
            version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright");
        assert_eq!(debian.to_string(), "10.0.2");
        assert!(debian > MEMORY_SNAPSHOT_VERSION);
        assert!(version("QEMU emulator version 7.2.15 (Debian)") < MEMORY_SNAPSHOT_VERSION);
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_newest_machine_is_found_by_number() {
        let names = ["q35", "pc-q35-9.2", "pc-q35-10.0", "pc-q35-2.12", "pc-i440fx-11.0", "pc-q35-x.1"];
        assert_eq!(newest(names.into_iter()).as_deref(), Some("pc-q35-10.0"));
        assert_eq!(newest(["none"].into_iter()), None);
    }
}
