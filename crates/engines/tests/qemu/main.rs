//! Virtual machines on this host: a real QEMU, a stock kernel and the real agent. Needs root.

#[path = "../shared/agent.rs"]
mod agent;
#[path = "../shared/dialled.rs"]
mod dialled;
mod kill_sweep;
mod life;
mod network;
mod snapshot;
mod support;
