//! Virtual machines on QEMU.
//!
//! Reading order:
//! - `qmp`: speaking to a QEMU that runs;
//! - `qcow2`, `disk`: disks, chains of qcow2 files;
//! - `manifest`, `memory`, `capture`: what a snapshot is, taking and restoring one.
//!
//! Invariants:
//! - A QEMU is an unprivileged user of its own and opens nothing of the host by path: files reach it as descriptors, inherited
//!   or handed over (`/dev/fdset/…`, [`qmp::Qmp::add_fd`]).

mod capture;
mod disk;
mod manifest;
mod memory;
mod qcow2;
mod qmp;
