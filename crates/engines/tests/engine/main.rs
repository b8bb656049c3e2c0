//! The namespace engine on this host: real machines with the real agent. Needs root.

#[path = "../shared/agent.rs"]
mod agent;
mod confinement;
#[path = "../shared/dialled.rs"]
mod dialled;
mod kill_sweep;
mod life;
mod limits;
mod network;
mod snapshot;
mod support;
mod workspace;
