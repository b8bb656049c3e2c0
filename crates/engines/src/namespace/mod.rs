//! The namespace engine.

use std::path::PathBuf;

use sandhaus_sandbox::engine::EngineResult;

/// First command line argument with which the binary re-executes itself as the launcher, before any thread exists.
pub const LAUNCHER_ARGUMENT: &str = "__launcher";

/// What the engine needs to know.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// The instance's data directory; the engine keeps to `machines/` (sockets) and `disks/` in it.
    pub data_dir: PathBuf,
    /// The instance's id, part of every kernel object's name.
    pub instance: String,
    /// The binary that becomes the launcher when called with [`LAUNCHER_ARGUMENT`].
    pub launcher: PathBuf,
    /// The agent's executable, put under `agent_dir` unreadable for the inside.
    pub agent: &'static [u8],
    /// SHA-256 of `agent` in hex, known since the binary was built: its file name, so that no start hashes it again.
    pub agent_digest: &'static str,
    /// Where the agent's executable lies. Instances of `run` share the one of their data directory, so that a run
    /// writes it once and not each time.
    pub agent_dir: PathBuf,
}

/// Runs sandboxes of namespaces.
#[derive(Debug)]
pub struct NamespaceEngine {}

/// A fact about this host that the engine depends on, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCheck {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is well.
    pub remedy: Option<String>,
}

/// How a checked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// As it should be.
    Ok,
    /// Works with a restriction.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

impl NamespaceEngine {
    /// Starts the launcher. The instance's lock must be held by this process.
    pub async fn open(config: NamespaceConfig) -> EngineResult<Self> {
        let _ = config;
        todo!()
    }
}

/// Looks at the host by trying, not by guessing from versions: kernel, cgroups, overlay tier, user namespaces, seccomp,
/// disk limit. Needs no instance; makes and removes its own probes under `scratch`.
pub fn check_host(scratch: &std::path::Path) -> Vec<HostCheck> {
    let _ = scratch;
    todo!()
}

/// The launcher's life, entered from `main` before any thread exists.
pub fn launcher_main() -> std::process::ExitCode {
    todo!()
}

/// Names of all points at which [`sandhaus_sandbox::fault::hit`] is called by this engine and its launcher.
pub fn fault_points() -> Vec<String> {
    todo!()
}
