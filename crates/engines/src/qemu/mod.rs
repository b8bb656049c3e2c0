//! Virtual machines on QEMU.
//!
//! ```text
//!   server process                                    a machine: one process, a user of its own, no rights, own network
//!   ┌───────────────────────────────┐  fork, exec     ┌────────────────────────────────────────────────┐
//!   │ engine: disks, cgroups, ends  │ ──────────────▶ │ QEMU   RAM: a file without a name, or an image │
//!   │                               │  monitor.sock   │        disk: descriptors of qcow2 layers       │
//!   │ channel: monitor, console     │ ◀─────────────▶ │        tap0 192.168.0.1 ── guest 192.168.0.2   │
//!   │ dial: enters the network      │  console.sock   │                                   agent :2280  │
//!   └───────────────────────────────┘                 └────────────────────────────────────────────────┘
//! ```
//!
//! Reading order:
//! - `arguments`: the command line of a QEMU; `probe`: what the QEMU at hand can do;
//! - `spawn`: making the process; `channel`, `qmp`, `console`, `dial`: speaking to it and to the guest;
//! - `engine`, `start`: the engine itself; `steps`: its sequences; `check`: what `doctor` is told;
//! - `qcow2`, `disk`: disks, chains of qcow2 files;
//! - `manifest`, `memory`, `capture`, `restore`, `pack`: what a snapshot is, taking, restoring and sending one;
//!   `snapshot`: the engine's part in that.
//!
//! Invariants:
//! - A QEMU is an unprivileged user of its own and opens nothing of the host by path: files reach it as descriptors, inherited
//!   or handed over (`/dev/fdset/…`, [`qmp::Qmp::add_fd`]).
//! - A machine is found by its cgroup and by what runs in it, never by a number that was written down. Its RAM, its log and
//!   its tap are gone with its process; all else of it lies in its directory, which is there before anything is started.
//! - Machines outlive the server. One whose state was not read to its end is dead, whatever its process does.

mod arguments;
mod capture;
mod channel;
mod check;
mod console;
mod dial;
mod disk;
mod engine;
mod image_tool;
mod manifest;
mod memory;
mod pack;
mod probe;
mod qcow2;
mod qmp;
mod restore;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod spawn;
mod start;
mod steps;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::check_machines;
pub use engine::QemuEngine;

/// Who runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself, by translating them.
    Tcg,
}

/// How it is decided who runs guests.
#[derive(Debug, Clone, Copy)]
pub enum AcceleratorChoice {
    /// The processor, if this runs a guest; it says why not. That a device opens proves nothing.
    Auto(fn() -> Result<(), String>),
    /// The processor, and nothing else.
    Kvm,
    /// QEMU.
    Tcg,
}

/// What the engine needs to know.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The instance's data directory; the engine keeps to `vm/` in it.
    pub data_dir: PathBuf,
    /// The instance's id. What this engine makes in the kernel carries it with `v` for its first digit, so that no other
    /// engine of the instance takes it for its own.
    pub instance: String,
    /// The program.
    pub binary: PathBuf,
    /// Who runs guests.
    pub accelerator: AcceleratorChoice,
    /// Where it is written down what the program can do; instances of `run` share that of their data directory.
    pub probe_dir: PathBuf,
    /// Networks of machines.
    pub network: crate::net::NetworkConfig,
    /// The cgroup of version 2 that machines go beneath; none: the one delegated to this service, else the top.
    pub cgroup: Option<PathBuf>,
}

/// Names of all points at which [`sandhaus_sandbox::fault::hit`] is called by this engine.
pub fn fault_points() -> Vec<String> {
    steps::fault_points().collect()
}
