//! The engine's part in snapshots: which machine is captured, and whether one that is restored fits this host.

use std::{io, os::fd::AsFd, path::PathBuf, sync::Arc};

use rustix::process::Pid;
use sandhaus_sandbox::{
    engine::{Capture, EngineError, EngineResult},
    types::{Resources, SandboxId},
};

use super::{
    arguments::Hardware,
    capture::{self, Subject},
    engine::Inner,
    manifest::{self, Machine},
    pack,
    probe::Knowledge,
    start::{self, MachineRecord},
};

impl Inner {
    /// Captures a sandbox into an empty directory.
    pub(super) async fn capture(
        self: &Arc<Self>,
        id: SandboxId,
        what: Capture,
        into: PathBuf,
    ) -> EngineResult<()> {
        match self.running(&id).await {
            Ok((name, process)) => {
                let directory = self.machines.directory(&name);
                let (record, process, arguments) = self
                    .block(move |_| {
                        let record = MachineRecord::read(&directory)?;
                        let look = |error: io::Error| EngineError::host("look at machine", error);
                        let process = pid_of(process.get_ref()).map_err(look)?;
                        Ok((record, process, arguments_of(process).map_err(look)?))
                    })
                    .await?;
                let talk = |error| EngineError::host("talk to machine", error);
                let subject = Subject {
                    id,
                    disks: Arc::clone(&self.disks),
                    qmp: self.channel(&name).monitor().await.map_err(talk)?,
                    process,
                    hardware: record.hardware,
                    devices: manifest::devices_of(&arguments),
                    qemu: self.knowledge().await?.version,
                };
                subject.capture(what, &into).await
            }
            Err(EngineError::NotFound) => match what {
                Capture::Disk => capture::capture_stopped(&self.disks, &id, &into).await,
                Capture::Suspended(memory) => {
                    capture::capture_suspended(&self.disks, &id, memory, &into).await
                }
                Capture::Memory | Capture::Machine => Err(EngineError::NotFound),
            },
            Err(error) => Err(error),
        }
    }

    /// Packs a snapshot for a store.
    pub(super) async fn pack(self: &Arc<Self>, from: PathBuf, into: PathBuf) -> EngineResult<()> {
        // Not among what others wait for: it takes as long as compressing a disk does.
        capture::run_blocking(move || pack::pack(&from, &into)).await
    }

    /// Checks what came from a store.
    pub(super) async fn verify(self: &Arc<Self>, snapshot: PathBuf) -> EngineResult<()> {
        let machine = capture::run_blocking(move || pack::verify(&snapshot)).await?;
        let Some(machine) = machine else { return Ok(()) };
        let knowledge = self.knowledge().await?;
        // Whether memory and processors are what is asked for is known when it is asked for.
        let hardware = Hardware {
            cpu: knowledge.cpu.clone(),
            accelerator: knowledge.accelerator,
            ..machine.hardware.clone()
        };
        machine.check(&hardware, &machine.devices, knowledge.version)
    }
}

/// The hardware of a machine that goes on from a memory image. Its machine type is the image's, which a newer QEMU has as
/// well; and it keeps processors that were asked for when there were as many.
pub(super) fn hardware(
    knowledge: &Knowledge,
    resources: &Resources,
    image: &Machine,
) -> EngineResult<Hardware> {
    let own = start::hardware(knowledge, resources)?;
    let wanted = resources.cpu_millis.div_ceil(1000);
    let cpus = if [own.cpus, wanted].contains(&image.hardware.cpus) { image.hardware.cpus } else { own.cpus };
    Ok(Hardware { machine: image.hardware.machine.clone(), cpus, ..own })
}

/// The number of a process that is held.
pub(super) fn pid_of(process: &impl AsFd) -> io::Result<Pid> {
    use std::os::fd::AsRawFd as _;
    let text = fs_err::read_to_string(format!("/proc/self/fdinfo/{}", process.as_fd().as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process is gone"))
}

/// The arguments of a process.
fn arguments_of(process: Pid) -> io::Result<Vec<String>> {
    let line = fs_err::read(format!("/proc/{}/cmdline", process.as_raw_nonzero()))?;
    Ok(line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}
