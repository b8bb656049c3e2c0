//! Virtual machines on QEMU.
//!
//! Reading order:
//! - `arguments`: the command line of a QEMU;
//! - `qmp`: speaking to one that runs;
//! - `qcow2`, `disk`: disks, chains of qcow2 files;
//! - `manifest`, `memory`, `capture`: what a snapshot is, taking and restoring one.
//!
//! The seam between the engine and its disks and memory images, until both sides are there, is kept in step by hand: layer
//! `i` of a disk (0 is the lowest) is inherited as descriptor set `i + 1`, its nodes are `file<i>` and `disk<i>`; sets from
//! 1000 on are for what is handed over later; the RAM is a file without a name, `sandhaus-ram`, behind the object `ram`.
//!
//! Invariants:
//! - A QEMU is an unprivileged user of its own and opens nothing of the host by path: files reach it as descriptors, inherited
//!   or handed over (`/dev/fdset/…`, [`qmp::Qmp::add_fd`]).

mod arguments;
mod capture;
mod disk;
mod manifest;
mod memory;
mod qcow2;
mod qmp;

use serde::{Deserialize, Serialize};

/// Who runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself, by translating them.
    Tcg,
}
