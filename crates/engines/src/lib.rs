//! The engines: each implements [`sandhaus_sandbox::engine::Engine`] and knows nothing of the API above it.
//!
//! - [`namespace`]: Linux sandboxes made of namespaces, cgroups, overlayfs and seccomp, set up by a small
//!   single-threaded launcher process.
//! - [`qemu`]: virtual machines on QEMU.
//! - [`net`]: networks of machines, for every engine.

pub mod namespace;
pub mod net;
pub mod qemu;

mod calls;
mod cgroup;
mod cgroup_probe;
mod machine;
mod steps;

pub use cgroup::retire_to_leaf;
