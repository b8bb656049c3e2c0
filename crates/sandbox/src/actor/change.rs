//! New limits or another reach for a sandbox: the machine first, if there is one, then the row. A crash in between leaves
//! a machine that has more or less than its row says until it starts again; whoever asked was told nothing.

use std::sync::Arc;

use sandhaus_protocol::guest::SyncRequest;
use tokio::sync::oneshot;

use super::{Actor, answer};
use crate::{
    engine::Change,
    error::{Error, Kind, Result},
    handle::gone,
    plan::Row,
    types::*,
};

/// Somebody who wants a change.
pub(super) struct Asked {
    pub(super) change: Change,
    pub(super) reply: oneshot::Sender<Result<SandboxView>>,
}

impl Actor {
    /// Makes what was asked for. Only called when there is no step to do, so that a machine is there or is not.
    pub(super) async fn make_changes(&mut self) {
        while let Some(Asked { change, reply }) = self.changes.pop_front() {
            let outcome = match self.seen.row {
                Row::Gone => Err(gone(&self.handle.id)),
                _ => self.make_change(change).await,
            };
            answer(reply, outcome);
        }
    }

    async fn make_change(&mut self, change: Change) -> Result<SandboxView> {
        let mut sandbox = Sandbox::clone(&self.sandbox);
        match &change {
            Change::Resources(resources) => sandbox.spec.resources = *resources,
            Change::Network(network) => sandbox.spec.network = network.clone(),
        }
        let id = &self.handle.id;
        let growth = self.disk_growth(&sandbox.spec.resources)?;
        match sandbox.goal {
            Goal::Paused if growth => {
                let message = format!("sandbox {id} is paused: resume it before its disk grows");
                return Err(Error::new(Kind::Conflict, message));
            }
            Goal::Running | Goal::Paused => {
                self.handle.engine.update(id, change).await?;
                if growth {
                    self.handle.toolbox.sync(&SyncRequest::Grow).await?;
                }
            }
            // It is made larger when it starts.
            Goal::Stopped => {}
            // Its memory on disk was made under the old ones.
            Goal::Suspended | Goal::Archived => {
                let message = format!("sandbox {id} is not in memory: start it before it is changed");
                return Err(Error::new(Kind::Conflict, message));
            }
            Goal::Absent => return Err(gone(id)),
        }
        self.shared.store.respec(&sandbox).await?;
        tracing::info!(sandbox = %id, "limits or network changed");
        self.sandbox = Arc::new(sandbox);
        self.publish();
        Ok(self.handle.view())
    }

    /// Whether the disk is to grow, which not every engine can make it do, and none the other way.
    fn disk_growth(&self, wanted: &Resources) -> Result<bool> {
        let before = self.sandbox.spec.resources.disk_bytes;
        if wanted.disk_bytes == before {
            return Ok(false);
        }
        if !self.handle.engine.capabilities().disk_growth {
            let message = "changing the size of a disk is not supported by this sandbox's engine";
            return Err(Error::new(Kind::Unsupported, message));
        }
        if wanted.disk_bytes < before {
            let message = format!("a disk of {before} bytes cannot shrink to {}", wanted.disk_bytes);
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(true)
    }
}
