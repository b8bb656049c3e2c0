//! The domain: what a sandbox is, what is wanted of it, and the one task per sandbox that makes it so.
//!
//! Reading order: [`types`] (the nouns), [`error`], [`engine`] (the seam below), [`plan`] (the pure policy),
//! `actor` (the one task that changes a sandbox) and `handle` (how it is reached), [`store`] (what is wanted, durably),
//! `gate` (who may speak to a sandbox) and [`toolbox`] (speaking to the agent inside) with [`renewal`] (another agent in its place), [`service`] (what the edges call)
//! with [`pool`] (what is kept ready), `admission` (what is refused, and why), `images`, `machine` and `clock`,
//! [`workspace`] (what outlives sandboxes, with [`removal`] and [`loop_device`]), [`snapshot`], [`job`] (long work), [`doors`] (secrets of SSH), [`instance`] (who
//! holds a data directory), [`fault`] (named points to die at).
//!
//! This crate knows no HTTP server, no dialect, no engine by name and no operating system interface beyond files and
//! their mounts.

pub mod doors;
pub mod engine;
pub mod error;
pub mod fault;
pub mod instance;
pub mod job;
pub mod loop_device;
pub mod plan;
pub mod pool;
pub mod removal;
pub mod renewal;
pub mod service;
pub mod snapshot;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod toolbox;
pub mod types;
pub mod workspace;

mod actor;
mod admission;
mod clock;
mod digits;
mod gate;
mod handle;
mod images;
mod machine;
mod publish;

pub use error::{Error, Kind, Result};
pub use instance::Instance;
pub use service::Service;
pub use types::*;
