//! Bringing the disk into order for a snapshot of it: flushed, or standing still for a bounded time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Json, extract::State};
use sandhaus_protocol::guest::{FREEZE_MAX_MS, SyncReply, SyncRequest};
use tokio::{sync::oneshot, task::AbortHandle};

use super::Guest;
use crate::{
    error::{Error, Result},
    sys,
};

/// Longest that everything written may take to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(120);

/// The root file system, while it stands still: the task that lets it go on when its time is over.
#[derive(Default)]
pub(super) struct Freezer {
    thaw: Mutex<Option<AbortHandle>>,
}

/// `POST /sandhaus/sync`.
pub(super) async fn sync(
    State(guest): State<Arc<Guest>>,
    Json(request): Json<SyncRequest>,
) -> Result<Json<SyncReply>> {
    let frozen = match request {
        SyncRequest::Flush => {
            on_own_thread(FLUSH_MAX, sys::flush_disks, |()| {}).await?;
            false
        }
        SyncRequest::Freeze { limit_ms } => freeze(&guest, limit_ms).await?,
        SyncRequest::Thaw => guest.freezer.thaw()?,
    };
    Ok(Json(SyncReply { frozen }))
}

async fn freeze(guest: &Arc<Guest>, limit_ms: u64) -> Result<bool> {
    if limit_ms == 0 || limit_ms > FREEZE_MAX_MS {
        return Err(Error::invalid(format_args!("limit_ms is 1 to {FREEZE_MAX_MS}")));
    }
    let limit = Duration::from_millis(limit_ms);
    let work = || {
        sys::flush_disks();
        sys::freeze_root()
    };
    // Nobody waits any more for what came too late, and nobody would thaw it.
    let too_late = |frozen| {
        if matches!(frozen, Ok(true)) {
            let _ = sys::thaw_root();
        }
    };
    let frozen = on_own_thread(limit, work, too_late).await?;
    let frozen = frozen
        .map_err(|error| Error::internal(format_args!("cannot freeze the root file system: {error}")))?;
    if frozen {
        let later = Arc::clone(guest);
        let task = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            let _ = later.freezer.thaw();
        });
        guest.freezer.replace(Some(task.abort_handle()));
    }
    Ok(frozen)
}

impl Freezer {
    /// Lets the root file system go on; false if it did.
    pub(super) fn thaw(&self) -> Result<bool> {
        let thawed = sys::thaw_root();
        self.replace(None);
        thawed.map_err(|error| Error::internal(format_args!("cannot thaw the root file system: {error}")))
    }

    fn replace(&self, task: Option<AbortHandle>) {
        let mut thaw = self.thaw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *thaw, task) {
            old.abort();
        }
    }
}

/// Runs `work` on a thread of the agent's own, since those of files are few and the workload's. What ends after `limit` is
/// handed to `too_late` there.
async fn on_own_thread<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    too_late: impl FnOnce(T) + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        if let Err(result) = sender.send(work()) {
            too_late(result);
        }
    };
    std::thread::Builder::new().spawn(run)?;
    match tokio::time::timeout(limit, receiver).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) | Err(_) => Err(Error::unavailable("the disk did not take everything in time")),
    }
}
