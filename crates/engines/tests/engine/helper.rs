//! The other processes of this crate's tests: the launcher, and a server that is killed at every step.
//!
//! `engine-test-helper __launcher …` is the launcher. `engine-test-helper drive CONFIG` opens an engine as CONFIG (JSON)
//! says, takes one sandbox through its whole life, and tells how far it got on standard output;
//! `engine-test-helper drive-machine CONFIG` does the same with a virtual machine.

#![expect(clippy::print_stdout, reason = "its output is read by the test that started it")]

#[path = "../qemu/drive.rs"]
mod machine;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use sandhaus_engines::namespace::{LAUNCHER_ARGUMENT, NamespaceConfig, NamespaceEngine, launcher_main};
use sandhaus_sandbox::{
    engine::{Boot, Capture, Engine, EngineError, MachineSpec, StopMode},
    types::{Generation, NetworkPolicy, Resources, SandboxId, SecurityProfile, Tree},
};
use serde::Deserialize;

/// How often one call is tried again after the launcher was killed under it.
const ATTEMPTS_MAX: usize = 3;

#[derive(Deserialize)]
struct Drive {
    data_dir: PathBuf,
    instance: String,
    agent: PathBuf,
    tree: Tree,
    id: SandboxId,
    disk_bytes: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(LAUNCHER_ARGUMENT) => launcher_main(),
        Some("drive") => {
            let drive = serde_json::from_str(&arguments[2]).expect("the test writes its own words");
            runtime().block_on(run(drive))
        }
        Some("drive-machine") => {
            let drive = serde_json::from_str(&arguments[2]).expect("the test writes its own words");
            runtime().block_on(machine::run(drive))
        }
        _ => ExitCode::from(2),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts")
}

async fn run(drive: Drive) -> ExitCode {
    let agent = fs_err::read(&drive.agent).expect("the agent is built");
    let config = NamespaceConfig {
        instance: drive.instance.clone(),
        launcher: std::env::current_exe().expect("it runs"),
        agent: agent.leak(),
        agent_digest: "tested",
        agent_dir: drive.data_dir.join("agent"),
        data_dir: drive.data_dir.clone(),
        network: sandhaus_engines::net::NetworkConfig::default(),
        cgroup: None,
    };
    let engine = NamespaceEngine::open(config).await.expect("the engine opens");
    println!("open");
    let spec = MachineSpec {
        id: drive.id,
        generation: Generation(1),
        tree: drive.tree,
        snapshot: None,
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 256 << 20,
            pids: 64,
            disk_bytes: drive.disk_bytes,
        },
        network: NetworkPolicy::Bridge,
        security: SecurityProfile::Strict,
        readonly_root: true,
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
    let life = async {
        again(|| engine.materialize(&spec)).await?;
        println!("disk");
        again(|| engine.start(&spec, Boot::Cold)).await?;
        println!("machine");
        again(|| engine.freeze(&spec.id)).await?;
        capture(&engine, &spec.id, &drive.data_dir.join("captured")).await?;
        again(|| engine.thaw(&spec.id)).await?;
        again(|| engine.stop(&spec.id, StopMode::Graceful)).await?;
        again(|| engine.start(&spec, Boot::Cold)).await?;
        again(|| engine.destroy(&spec.id)).await?;
        println!("gone");
        engine.shutdown().await
    };
    match life.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes what the disk holds into a fresh directory.
async fn capture(engine: &NamespaceEngine, id: &SandboxId, into: &Path) -> Result<(), EngineError> {
    if into.exists() {
        fs_err::remove_dir_all(into).expect("removed");
    }
    fs_err::create_dir(into).expect("made");
    engine.capture(id, Capture::Disk, into.to_owned()).await
}

/// Does as the domain does when the engine fails for a moment: the same call again.
async fn again<'a>(call: impl Fn() -> sandhaus_sandbox::engine::Res<'a, ()>) -> Result<(), EngineError> {
    let mut attempt = 1;
    loop {
        match call().await {
            Err(EngineError::Host { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            other => return other,
        }
    }
}
