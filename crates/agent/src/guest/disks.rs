//! Bringing the disk into order for a snapshot of it: flushed, or standing still for a bounded time. And its growth.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use axum::{Json, extract::State};
use sandhaus_protocol::guest::{FREEZE_MAX_MS, SyncReply, SyncRequest};
use tokio::sync::oneshot;

use super::Guest;
use crate::{
    error::{Error, Result},
    sys,
};

/// Longest that everything written may take to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(120);

/// The root file system as far as it stands still. The thread that made it so lets it go on when its time is over: the
/// agent's others may be waiting to write.
#[derive(Default)]
pub(super) struct Freezer {
    state: Arc<Mutex<Stillness>>,
}

/// How far it is.
#[derive(Default)]
enum Stillness {
    /// It goes on.
    #[default]
    Going,
    /// What was written before is on its way to the disk.
    Stopping,
    /// It stands still, for as long as was said last; without anyone to say so it was thawed already.
    Still(mpsc::Sender<Duration>),
}

/// `POST /sandhaus/sync`.
pub(super) async fn sync(
    State(guest): State<Arc<Guest>>,
    Json(request): Json<SyncRequest>,
) -> Result<Json<SyncReply>> {
    let frozen = match request {
        SyncRequest::Flush => {
            on_its_own(sys::flush_disks).await?;
            false
        }
        SyncRequest::Freeze { limit_ms } => guest.freezer.freeze(limit_ms).await?,
        SyncRequest::Thaw => guest.freezer.thaw()?,
        SyncRequest::Grow => {
            on_its_own(sys::grow_root).await?.map_err(|error| {
                Error::internal(format_args!("the root file system cannot grow: {error}"))
            })?;
            false
        }
    };
    Ok(Json(SyncReply { frozen }))
}

impl Freezer {
    async fn freeze(&self, limit_ms: u64) -> Result<bool> {
        if limit_ms == 0 || limit_ms > FREEZE_MAX_MS {
            return Err(Error::invalid(format_args!("limit_ms is 1 to {FREEZE_MAX_MS}")));
        }
        let limit = Duration::from_millis(limit_ms);
        let Some(frozen) = self.begin(limit)? else { return Ok(true) };
        within(limit, frozen)
            .await?
            .map_err(|error| Error::internal(format_args!("cannot freeze the root file system: {error}")))
    }

    /// Has a thread freeze it and tell how that went; `None` where it stands still already, and now so much longer.
    fn begin(&self, limit: Duration) -> Result<Option<oneshot::Receiver<io::Result<bool>>>> {
        let mut state = lock(&self.state);
        match &*state {
            Stillness::Still(anew) if anew.send(limit).is_ok() => return Ok(None),
            Stillness::Stopping => {
                return Err(Error::conflict("the root file system is being frozen already"));
            }
            Stillness::Going | Stillness::Still(_) => {}
        }
        let (sender, frozen) = oneshot::channel();
        let shared = Arc::clone(&self.state);
        std::thread::Builder::new().spawn(move || keep_still(&shared, limit, sender))?;
        *state = Stillness::Stopping;
        Ok(Some(frozen))
    }

    /// Lets the root file system go on; false if it did.
    pub(super) fn thaw(&self) -> Result<bool> {
        let mut state = lock(&self.state);
        let thawed = sys::thaw_root();
        if matches!(*state, Stillness::Still(_)) {
            *state = Stillness::Going;
        }
        thawed.map_err(|error| Error::internal(format_args!("cannot thaw the root file system: {error}")))
    }
}

fn keep_still(shared: &Mutex<Stillness>, limit: Duration, told: oneshot::Sender<io::Result<bool>>) {
    sys::flush_disks();
    let frozen = sys::freeze_root();
    let still = matches!(frozen, Ok(true));
    let mut state = lock(shared);
    if told.send(frozen).is_err() && still {
        // Too late: nobody waits any more, and nobody would thaw it.
        let _ = sys::thaw_root();
        *state = Stillness::Going;
        return;
    }
    if !still {
        *state = Stillness::Going;
        return;
    }
    let (anew, orders) = mpsc::channel();
    *state = Stillness::Still(anew);
    drop(state);
    let mut left = limit;
    loop {
        match orders.recv_timeout(left) {
            Ok(anew) => left = anew,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let mut state = lock(shared);
                // Said in the last moment, which the lock makes the last.
                match orders.try_recv() {
                    Ok(anew) => left = anew,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                    Err(mpsc::TryRecvError::Empty) => {
                        let _ = sys::thaw_root();
                        *state = Stillness::Going;
                        return;
                    }
                }
            }
        }
    }
}

fn lock(state: &Mutex<Stillness>) -> MutexGuard<'_, Stillness> {
    // Replaced as a whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does on a thread of its own what the disk may take long for.
async fn on_its_own<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, done) = oneshot::channel();
    std::thread::Builder::new().spawn(|| {
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    })?;
    within(FLUSH_MAX, done).await
}

async fn within<T>(limit: Duration, answer: oneshot::Receiver<T>) -> Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Error::unavailable("the disk did not take everything in time")),
    }
}
