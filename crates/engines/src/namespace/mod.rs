//! The namespace engine: Linux sandboxes made of namespaces, cgroups, overlayfs and seccomp.
//!
//! ```text
//!  server process                         launcher process            a machine
//!  ┌──────────────────────────┐ requests  ┌──────────────────┐ clone3 ┌───────────────────────┐
//!  │ engine: disks, cgroups,  │──────────▶│ one thread, own  │───────▶│ child → pid 1: agent  │
//!  │ sockets, ends, limits    │◀──────────│ mount namespace  │◀───────│ own namespaces        │
//!  └──────────────────────────┘  pidfds   └──────────────────┘  steps └───────────────────────┘
//!        │ dial: machines/<id>.<generation>/agent.sock                        ▲
//!        └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! - Everything in the kernel that belongs to a machine is found from its cgroup or goes with its last process;
//!   everything on disk lies under `machines/` or `disks/` of the instance's data directory.
//! - Machines outlive the server and the launcher. No process id is ever written down.
//! - The host never resolves a path inside a sandbox, and a child never resolves a path of the host.
//! - Outside, a sandbox's users are an unprivileged range of its own, freed only with its disk.

mod admission;
mod capture;
mod check;
mod child;
mod confinement;
mod dial;
pub(crate) mod disk;
mod engine;
mod first_process;
mod image_file;
mod launcher;
mod launcher_client;
mod layer_copy;
mod loop_device;
mod mounting;
mod network;
mod place;
pub(crate) mod removal;
mod seccomp;
mod sparse;
mod steps;
pub(crate) mod sys;
mod wire;

use std::path::PathBuf;

pub use check::{CheckLevel, HostCheck, check_host};
pub use engine::NamespaceEngine;
pub use launcher::launcher_main;

pub(crate) use mounting::magic_link;

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
    /// Networks of machines.
    pub network: crate::net::NetworkConfig,
    /// The cgroup of version 2 that machines go beneath; none: the one delegated to this service, else the top.
    pub cgroup: Option<PathBuf>,
}

/// Names of all points at which [`sandhaus_sandbox::fault::hit`] is called by this engine and its launcher.
pub fn fault_points() -> Vec<String> {
    steps::fault_points()
}
