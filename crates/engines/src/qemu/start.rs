//! Starting a machine.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::fs::{Gid, MemfdFlags, Mode, Uid};
use sandhaus_sandbox::{
    engine::{Boot, EngineError, EngineResult, MachineSpec},
    types::{NetworkPolicy, Resources},
};
use serde::{Deserialize, Serialize};

use super::{
    Accelerator,
    arguments::{Hardware, Invocation, Kernel, Ram},
    channel::{self, CONSOLE_SOCKET, Channel, MONITOR_SOCKET},
    dial::{self, Awaited},
    disk::DiskFiles,
    engine::{Inner, Process},
    manifest::devices_of,
    probe::Knowledge,
    restore::Image,
    snapshot,
    spawn::{self, Launch, Log},
    steps::{Moment, StartStep, hit, pass},
};
use crate::{cgroup::Entrance, machine::MachineName, namespace::disk::failure, net::Guest};

/// How long a guest may take until its agent listens.
const ANSWER_MAX_TCG: Duration = Duration::from_secs(120);
const ANSWER_MAX_KVM: Duration = Duration::from_secs(30);

/// How long the whole start of a machine may take, by any way: [`sandhaus_sandbox::engine::Capabilities::start_max`].
pub(super) const START_MAX: Duration = Duration::from_secs(180);

/// Memory of a machine without a limit.
const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// Least memory that a stock kernel starts in.
const MEMORY_MIB_MIN: u64 = 64;

/// Most processors.
const CPUS_MAX: u32 = 64;

/// What QEMU needs beside the guest's memory, as a limit and not as a measure: translated code, devices, its own.
const OVERHEAD_BYTES_TCG: u64 = 320 << 20;
const OVERHEAD_BYTES_KVM: u64 = 160 << 20;

/// Threads of a QEMU: processors, and those that wait for disks.
const THREADS_MAX: u32 = 256;

/// The device whose group may use the processor's virtualisation.
const KVM_DEVICE: &str = "/dev/kvm";

/// The name of a machine's RAM, as `/proc` shows it.
const RAM_NAME: &str = "sandhaus-ram";

/// What is written down of a machine, in its directory.
const RECORD: &str = "machine.json";

/// Longest record.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// What has to be known of a machine that runs and cannot be asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineRecord {
    /// Its hardware.
    pub(super) hardware: Hardware,
}

impl MachineRecord {
    /// That of the machine in `directory`.
    pub(super) fn read(directory: &Path) -> EngineResult<Self> {
        use std::io::Read as _;
        let read = || -> io::Result<Self> {
            let mut text = Vec::new();
            fs_err::File::open(directory.join(RECORD))?.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read().map_err(|error| EngineError::host("read machine's record", error))
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        fs_err::write(directory.join(RECORD), serde_json::to_vec(self)?)
    }
}

/// Everything of a machine that is there before its process is.
struct Prepared {
    arguments: Vec<String>,
    inherited: Vec<OwnedFd>,
    network: OwnedFd,
    cgroups: Entrance,
    user: u32,
    group: Option<u32>,
}

/// Refuses what no virtual machine can have. Admission has refused it by name before.
pub(super) fn check(spec: &MachineSpec) -> EngineResult<()> {
    let unsupported = |what: &str| Err(EngineError::Unsupported(format!("{what} in a virtual machine")));
    if spec.network == NetworkPolicy::Host {
        return unsupported("the host's own network");
    }
    if !spec.mounts.is_empty() || spec.workspace.is_some() {
        return unsupported("a directory of the host");
    }
    if spec.tree.disk.is_none() && spec.snapshot.is_none() {
        return Err(EngineError::Invalid("the image is not one of a virtual machine".to_owned()));
    }
    Ok(())
}

/// The hardware of a machine that starts from its disk.
pub(super) fn hardware(knowledge: &Knowledge, resources: &Resources) -> EngineResult<Hardware> {
    let memory_mib = memory_mib(resources);
    if memory_mib < MEMORY_MIB_MIN {
        return Err(EngineError::Invalid(format!(
            "a virtual machine needs at least {MEMORY_MIB_MIN} MiB of memory"
        )));
    }
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let host = u32::try_from(host).unwrap_or(CPUS_MAX);
    let wanted = if resources.cpu_millis == 0 { host } else { resources.cpu_millis.div_ceil(1000) };
    Ok(Hardware {
        machine: knowledge.machine.clone(),
        cpu: knowledge.cpu.clone(),
        accelerator: knowledge.accelerator,
        cpus: wanted.min(host).clamp(1, CPUS_MAX),
        memory_mib,
    })
}

/// The memory that a guest has with these limits.
pub(super) fn memory_mib(resources: &Resources) -> u64 {
    let bytes = if resources.memory_bytes == 0 { MEMORY_BYTES_DEFAULT } else { resources.memory_bytes };
    bytes >> 20
}

/// What the process may use for that the guest has so much.
pub(super) fn limits(hardware: &Hardware, resources: &Resources) -> Resources {
    let overhead = match hardware.accelerator {
        Accelerator::Tcg => OVERHEAD_BYTES_TCG,
        Accelerator::Kvm => OVERHEAD_BYTES_KVM,
    };
    Resources {
        cpu_millis: resources.cpu_millis,
        memory_bytes: (hardware.memory_mib << 20) + overhead,
        // Those of the guest's are the guest's own affair.
        pids: THREADS_MAX,
        disk_bytes: 0,
    }
}

impl Inner {
    /// Starts a machine; returns when its agent can be dialled or, of one that goes on from a memory image, when it stands
    /// ready.
    pub(super) async fn start(self: &Arc<Self>, spec: MachineSpec, boot: Boot) -> EngineResult<()> {
        check(&spec)?;
        let knowledge = self.knowledge().await?;
        let name = MachineName { id: spec.id.clone(), generation: spec.generation };
        let (spec, name) = (Arc::new(spec), Arc::new(name));
        let found = {
            let (spec, name) = (Arc::clone(&spec), Arc::clone(&name));
            self.block(move |inner| inner.find_or_clear(&spec, &name)).await?
        };
        let started = match found {
            Some(process) => self.resume(&name, &process, &boot).await,
            None => self.start_anew(&spec, &name, &knowledge, boot).await,
        };
        if started.is_err() {
            // What is left of it is in nobody's way: the next start or the end of the sandbox clears it as well.
            let name = Arc::clone(&name);
            if let Err(error) = self.block(move |inner| inner.clear(&name)).await {
                tracing::warn!(%error, "cannot clear a failed start");
            }
        }
        started
    }

    /// The machine's process, if it is there already; all older ones are cleared away.
    fn find_or_clear(
        self: &Arc<Self>,
        spec: &MachineSpec,
        name: &MachineName,
    ) -> EngineResult<Option<Process>> {
        if let Some((running, process)) = self.hold_running(&spec.id)? {
            if running == *name {
                return Ok(Some(process));
            }
            if running.generation > name.generation {
                return Err(EngineError::Invalid("a newer generation of the machine runs".to_owned()));
            }
        }
        pass(StartStep::Clear, || {
            self.machines.names_of(&spec.id).iter().try_for_each(|old| self.clear(old))
        })?;
        Ok(None)
    }

    /// A start that was cut short goes on, if that can be.
    async fn resume(
        self: &Arc<Self>,
        name: &MachineName,
        process: &Process,
        boot: &Boot,
    ) -> EngineResult<()> {
        match boot {
            Boot::Cold => self.await_answer(name, process, ANSWER_MAX_TCG, None).await,
            Boot::Restore(_) => {
                let status = self.status(name).await?;
                let stands = super::engine::run_state(&status) != sandhaus_sandbox::engine::RunState::Dead;
                stands.then_some(()).ok_or_else(|| {
                    EngineError::host(
                        "go on with machine",
                        io::Error::other("its state was not read to its end"),
                    )
                })
            }
        }
    }

    async fn start_anew(
        self: &Arc<Self>,
        spec: &Arc<MachineSpec>,
        name: &Arc<MachineName>,
        knowledge: &Knowledge,
        boot: Boot,
    ) -> EngineResult<()> {
        let image = match boot {
            Boot::Cold => None,
            Boot::Restore(directory) => Some(Arc::new(self.block(move |_| Image::open(&directory)).await?)),
        };
        let hardware = match &image {
            None => hardware(knowledge, &spec.resources)?,
            Some(image) => snapshot::hardware(knowledge, &spec.resources, &image.machine)?,
        };
        let limit = match hardware.accelerator {
            Accelerator::Tcg => ANSWER_MAX_TCG,
            Accelerator::Kvm => ANSWER_MAX_KVM,
        };
        let (spec, held, from, version) =
            (Arc::clone(spec), Arc::clone(name), image.clone(), knowledge.version);
        let (process, log) = self
            .block(move |inner| {
                let prepared = inner.prepare(&spec, &held, &hardware, from.as_deref())?;
                if let Some(image) = from {
                    image.machine.check(&hardware, &devices_of(&prepared.arguments), version)?;
                }
                inner.spawn(&held, prepared)
            })
            .await?;
        if let Err(error) = self.channel(name).listen_to_console().await {
            tracing::warn!(%error, machine = %name, "cannot listen to the console of a machine");
        }
        match image {
            None => self.await_answer(name, &process, limit, Some(&log)).await,
            Some(image) => self.load(name, &process, &image, &log).await,
        }
    }

    /// Has a machine that waits for it read its state; it stands still then.
    async fn load(
        &self,
        name: &MachineName,
        process: &Process,
        image: &Image,
        log: &Log,
    ) -> EngineResult<()> {
        hit(StartStep::Load, Moment::Before);
        let what = "restore virtual machine";
        let pid = snapshot::pid_of(process.get_ref()).map_err(|error| EngineError::host(what, error))?;
        let monitor = self.channel(name).monitor().await.map_err(|error| EngineError::host(what, error))?;
        image.load(&monitor, pid).await.inspect_err(|_| {
            let said = log.last_line();
            tracing::warn!(machine = %name, said, "a memory image cannot be loaded");
        })?;
        hit(StartStep::Load, Moment::After);
        Ok(())
    }

    /// Waits until the agent listens.
    async fn await_answer(
        &self,
        name: &MachineName,
        process: &Process,
        limit: Duration,
        log: Option<&Log>,
    ) -> EngineResult<()> {
        hit(StartStep::Answer, Moment::Before);
        let what = "start virtual machine";
        let awaited = dial::await_agent(process.get_ref(), limit)
            .await
            .map_err(|error| EngineError::host(what, error))?;
        match awaited {
            Awaited::Listens => {
                hit(StartStep::Answer, Moment::After);
                Ok(())
            }
            Awaited::Ended => {
                let said = log.and_then(Log::last_line).unwrap_or_else(|| "it said nothing".to_owned());
                Err(EngineError::host(what, io::Error::other(format!("QEMU ended: {said}"))))
            }
            Awaited::Late => {
                let seconds = limit.as_secs();
                tracing::warn!(machine = %name, seconds, "the agent of a virtual machine did not come up in time");
                let cause = format!("its agent did not listen within {seconds} s");
                Err(EngineError::host(what, io::Error::new(io::ErrorKind::TimedOut, cause)))
            }
        }
    }

    /// Everything before the process.
    fn prepare(
        self: &Arc<Self>,
        spec: &MachineSpec,
        name: &MachineName,
        hardware: &Hardware,
        image: Option<&Image>,
    ) -> EngineResult<Prepared> {
        let record = self
            .disks
            .record(&spec.id)?
            .ok_or_else(|| EngineError::host("open disk", io::Error::from(io::ErrorKind::NotFound)))?;
        self.disks.grow(&spec.id, spec.resources.disk_bytes)?;
        let mut disk = self.disks.open_files(&spec.id)?;
        self.machines.note(name);
        let directory = self.machines.directory(name);
        let host = |error: io::Error| failure("make machine", error);
        pass(StartStep::Directory, || {
            rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o700))?;
            MachineRecord { hardware: hardware.clone() }.write(&directory)
        })
        .map_err(host)?;
        let (monitor, console) = pass(StartStep::Sockets, || {
            Ok((channel::listen(&directory, MONITOR_SOCKET)?, channel::listen(&directory, CONSOLE_SOCKET)?))
        })
        .map_err(host)?;
        let limits = limits(hardware, &spec.resources);
        let text = name.to_string();
        let cgroups = pass(StartStep::Cgroups, || self.cgroups.make(&text, &limits))?;
        let Guest { namespace, tap, .. } =
            pass(StartStep::Network, || self.networks.guest(&text, &spec.network, &directory))?;
        let mapped = image.and_then(Image::memory);
        let ram = match mapped {
            Some(file) => file.try_clone().map(OwnedFd::from),
            None => fresh_ram(hardware, record.uid),
        }
        .map_err(host)?;
        let mut inherited = vec![monitor, console, tap, ram];
        let numbers: Vec<_> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        if image.is_some() {
            // They did their work before the image was taken, and a guest that restarts ends; each QEMU would keep a copy.
            disk.kernel = None;
            disk.initramfs = None;
        }
        let (disk, disk_node) = disk_arguments(&disk, &mut inherited).map_err(host)?;
        let invocation = Invocation {
            name: &text,
            hardware,
            ram: if mapped.is_some() { Ram::Image(numbers[3]) } else { Ram::Fresh(numbers[3]) },
            disk: disk.arguments,
            disk_node,
            incoming: image.map_or(&[], |_| Image::ARGUMENTS),
            kernel: disk.kernel,
            tap: numbers[2],
            monitor: numbers[0],
            console: numbers[1],
        };
        let arguments = invocation.arguments();
        let group = (hardware.accelerator == Accelerator::Kvm).then(kvm_group).flatten();
        Ok(Prepared { arguments, inherited, network: namespace, cgroups, user: record.uid, group })
    }

    /// The process, held.
    fn spawn(self: &Arc<Self>, name: &MachineName, prepared: Prepared) -> EngineResult<(Process, Log)> {
        let launch = Launch {
            name: &name.to_string(),
            binary: &self.config.binary,
            arguments: prepared.arguments,
            inherited: prepared.inherited.iter().map(AsFd::as_fd).collect::<Vec<BorrowedFd<'_>>>(),
            network: prepared.network.as_fd(),
            cgroups: &prepared.cgroups,
            user: prepared.user,
            group: prepared.group,
        };
        let (process, log) =
            pass(StartStep::Spawn, || spawn::spawn(&launch).map_err(|error| failure("start QEMU", error)))?;
        let process = pass(StartStep::Watch, || self.machines.hold(name, process, &self.cgroups))?;
        Ok((process, log))
    }

    /// A machine's sockets.
    pub(super) fn channel(&self, name: &MachineName) -> Arc<Channel> {
        let mut channels = self.channels.lock().expect("no holder panics");
        let channel = channels
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Channel::new(self.machines.directory(name))));
        Arc::clone(channel)
    }
}

struct DiskArguments {
    arguments: Vec<String>,
    kernel: Kernel,
}

/// What of a disk goes into the command line; its descriptors go to `inherited`.
fn disk_arguments(
    disk: &DiskFiles,
    inherited: &mut Vec<OwnedFd>,
) -> io::Result<(DiskArguments, Option<String>)> {
    let mut failed = None;
    let mut inherit = |file: &std::fs::File| match file.try_clone() {
        Ok(copy) => {
            let copy = OwnedFd::from(copy);
            let number = copy.as_raw_fd();
            inherited.push(copy);
            number
        }
        Err(error) => {
            failed = Some(error);
            -1
        }
    };
    let (arguments, node) = disk.arguments(&mut inherit);
    let kernel = match &disk.kernel {
        None => Kernel::Firmware,
        Some(kernel) => Kernel::Direct {
            kernel: inherit(kernel),
            initramfs: disk.initramfs.as_ref().map(&mut inherit),
            command_line: disk.command_line.clone(),
        },
    };
    match failed {
        Some(error) => Err(error),
        None => Ok((DiskArguments { arguments, kernel }, node)),
    }
}

/// RAM that is all zero and the machine's alone.
fn fresh_ram(hardware: &Hardware, user: u32) -> io::Result<OwnedFd> {
    let ram = rustix::fs::memfd_create(RAM_NAME, MemfdFlags::CLOEXEC)?;
    rustix::fs::fchmod(&ram, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchown(&ram, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    rustix::fs::ftruncate(&ram, hardware.memory_mib << 20)?;
    Ok(ram)
}

/// The group of those who may use the processor's virtualisation, if it is one that a program without rights may be in.
fn kvm_group() -> Option<u32> {
    let status = rustix::fs::stat(KVM_DEVICE).ok()?;
    let opens = Mode::from_raw_mode(status.st_mode).contains(Mode::RGRP | Mode::WGRP);
    (opens && status.st_gid != 0).then_some(status.st_gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knowledge() -> Knowledge {
        Knowledge {
            version: super::super::manifest::QemuVersion { major: 10, minor: 0, micro: 2 },
            machine: "pc-q35-10.0".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu: "Nehalem".to_owned(),
            emulated_because: None,
        }
    }

    fn resources(cpu_millis: u32, memory_bytes: u64) -> Resources {
        Resources { cpu_millis, memory_bytes, pids: 10, disk_bytes: 0 }
    }

    #[test]
    fn hardware_follows_the_limits() {
        let made = hardware(&knowledge(), &resources(500, 256 << 20)).expect("possible");
        assert_eq!((made.cpus, made.memory_mib), (1, 256));
        let host = std::thread::available_parallelism().expect("known").get();
        let unlimited = hardware(&knowledge(), &resources(0, 0)).expect("possible");
        assert_eq!(usize::try_from(unlimited.cpus).expect("small"), host.min(64));
        assert_eq!(unlimited.memory_mib, 512);
        let huge = hardware(&knowledge(), &resources(64_000_000, 1 << 30)).expect("possible");
        assert_eq!(huge.cpus, unlimited.cpus, "never more processors than the host has");
        let refused = hardware(&knowledge(), &resources(500, 63 << 20));
        assert!(matches!(refused, Err(EngineError::Invalid(_))), "{refused:?}");
    }

    #[test]
    fn the_process_may_use_more_than_its_guest() {
        let made = hardware(&knowledge(), &resources(1500, 256 << 20)).expect("possible");
        let limits = limits(&made, &resources(1500, 256 << 20));
        assert_eq!(limits.cpu_millis, 1500);
        assert!(limits.memory_bytes > 256 << 20);
        assert!(limits.pids > 10, "the guest's processes are none of the host's");
    }
}
