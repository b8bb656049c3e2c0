//! A server that takes one virtual machine through its whole life and is killed on the way.

use std::{path::PathBuf, process::ExitCode};

use sandhaus_engines::qemu::{AcceleratorChoice, QemuConfig, QemuEngine};
use sandhaus_sandbox::{
    engine::{Boot, Capture, Engine, EngineError, MachineSpec, StopMode},
    types::{Generation, NetworkPolicy, Resources, SandboxId, SecurityProfile, Tree},
};
use serde::Deserialize;

/// What the test says.
#[derive(Deserialize)]
pub(crate) struct Drive {
    data_dir: PathBuf,
    instance: String,
    binary: PathBuf,
    tree: Tree,
    id: SandboxId,
    /// The machine goes on from this one instead of starting from its disk.
    snapshot: Option<PathBuf>,
    /// How often its disk is captured.
    disk_captures: u32,
}

/// The whole life.
pub(crate) async fn run(drive: Drive) -> ExitCode {
    match live(drive).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error}: {:?}", std::error::Error::source(&error));
            ExitCode::FAILURE
        }
    }
}

async fn live(drive: Drive) -> Result<(), EngineError> {
    let captures = drive.data_dir.join("captures");
    let config = QemuConfig {
        probe_dir: drive.data_dir.join("vm"),
        data_dir: drive.data_dir,
        instance: drive.instance,
        binary: drive.binary,
        accelerator: AcceleratorChoice::Tcg,
        network: sandhaus_engines::net::NetworkConfig::default(),
        cgroup: None,
    };
    let engine = QemuEngine::open(config).await?;
    let spec = MachineSpec {
        id: drive.id,
        generation: Generation(1),
        tree: drive.tree,
        snapshot: drive.snapshot.clone(),
        resources: Resources { cpu_millis: 1000, memory_bytes: 256 << 20, pids: 64, disk_bytes: 0 },
        network: NetworkPolicy::None,
        security: SecurityProfile::Container,
        readonly_root: false,
        env: std::collections::BTreeMap::new(),
        workdir: "/workspace".to_owned(),
        mounts: Vec::new(),
        hostname: "swept".to_owned(),
        entrypoint: Vec::new(),
        shell: sandhaus_protocol::boot::ShellPreference::Sh,
        warm_shell: false,
        seccomp: sandhaus_sandbox::types::Seccomp::default(),
        workspace: None,
    };
    let id = &spec.id;
    engine.materialize(&spec).await?;
    println!("disk");
    engine.start(&spec, drive.snapshot.map_or(Boot::Cold, Boot::Restore)).await?;
    println!("machine");
    engine.thaw(id).await?;
    engine.freeze(id).await?;
    let empty = |name: &str| {
        let path = captures.join(name);
        fs_err::create_dir_all(&path)
            .map(|()| path)
            .map_err(|error| EngineError::host("make directory", error))
    };
    engine.capture(id, Capture::Machine, empty("machine")?).await?;
    engine.pack(captures.join("machine"), empty("packed")?).await?;
    for number in 0..drive.disk_captures {
        engine.capture(id, Capture::Disk, empty(&format!("disk-{number}"))?).await?;
    }
    println!("captured");
    engine.stop(id, StopMode::Graceful).await?;
    println!("stopped");
    engine.destroy(id).await?;
    println!("gone");
    engine.shutdown().await
}
