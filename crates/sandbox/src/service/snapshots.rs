//! Snapshots and forks, as the edges ask for them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{Service, Shared, shutting_down};
use crate::{
    admission,
    engine::ImageForm,
    error::{Error, Kind, Result},
    handle::{Captured, Capturing, Handle, Made, Message, gone, not_running},
    job::{JobHandle, JobKind},
    snapshot::{CaptureMode, Clash, CreateSnapshot, Held, Snapshot, SnapshotKind, Sync, Use},
    types::*,
};

/// How long somebody waits until a sandbox is captured: as long as that may take, and some time for what it is at.
const CAPTURE_WAIT_MAX: Duration = Duration::from_secs(1200);

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
    /// Captures a sandbox. Waits until the snapshot is whole; it goes on when the caller goes away. [`Kind::Exists`] if
    /// there is one of that name.
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        self.take_named(request, Clash::Refuse).await
    }

    /// The same, but one of that name gives it up as soon as the new one is whole.
    pub async fn replace_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        self.take_named(request, Clash::Replace).await
    }

    async fn take_named(&self, request: CreateSnapshot, clash: Clash) -> Result<Snapshot> {
        let handle = self.to_capture(&request.sandbox).await?;
        admission::admit_capture(handle.engine.capabilities(), request.kind, request.mode)?;
        let shared = self.shared.clone();
        let made = self.shared.tracker.spawn(async move {
            let now_ms = shared.clock.now_ms();
            let subject = request.name.to_string();
            let job = JobHandle::begin(&shared.store, JobKind::CreateSnapshot, subject, now_ms).await?;
            let what = Taking {
                name: Some(request.name),
                clash,
                kind: request.kind,
                mode: request.mode,
                sync: Sync::Power,
            };
            let outcome = take(&shared, &handle, what).await.map(|(snapshot, _)| Snapshot::clone(&snapshot));
            job.end(&shared.store, &outcome).await?;
            if clash == Clash::Replace {
                shared.collect_snapshots_soon();
            }
            outcome
        });
        joined(made.await)
    }

    /// Named snapshots of this server, by name.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(self.shared.snapshots.named().iter().map(|snapshot| Snapshot::clone(snapshot)).collect())
    }

    /// One of them. [`Kind::NotFound`] names the pull, where a store is configured.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        let snapshot = self.shared.snapshots.find(name).ok_or_else(|| self.shared.no_snapshot(name))?;
        Ok(Snapshot::clone(&snapshot))
    }

    /// Removes it from this server; sandboxes made of it go on. One that is not there is [`Kind::NotFound`].
    pub async fn remove_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let (shared, wanted) = (self.shared.clone(), name.clone());
        let removed = self.shared.tracker.spawn(async move {
            let snapshots = shared.snapshots.clone();
            let found = blocking("remove snapshot", move || snapshots.forget_name(&wanted)).await?;
            shared.collect_snapshots().await?;
            Ok(found)
        });
        joined(removed.await)?.map(drop).ok_or_else(|| self.shared.no_snapshot(name))
    }

    /// Copies a sandbox, with its memory where its engine can, and waits until the copy runs. The original is frozen for
    /// as short as that takes; one that is suspended stays so.
    pub async fn fork(&self, id: &SandboxId, request: ForkSandbox) -> Result<SandboxView> {
        let handle = self.to_capture(id).await?;
        let capabilities = handle.engine.capabilities();
        let kind = if capabilities.memory_snapshot { SnapshotKind::Machine } else { SnapshotKind::Disk };
        admission::admit_capture(capabilities, kind, CaptureMode::Frozen)?;
        let suspended = kind == SnapshotKind::Machine && handle.phase() == Phase::Suspended;
        if !suspended && !matches!(handle.phase(), Phase::Running | Phase::Paused | Phase::Starting) {
            return Err(not_running(id));
        }
        // What is wrong with the request is told before the original is disturbed.
        let mut copy = admission::admit_fork(&self.shared, &handle.view().sandbox, request)?;
        self.shared.check_room(&self.shared.sandboxes(), &copy)?;
        let sync = match capabilities.image_form {
            // Disks of its sandboxes do not promise to outlive a power cut either.
            ImageForm::Layers => Sync::Process,
            ImageForm::Disk => Sync::Power,
        };
        let (service, shared) = (self.clone(), self.shared.clone());
        let made = self.shared.tracker.spawn(async move {
            let what = Taking { name: None, clash: Clash::Refuse, kind, mode: CaptureMode::Frozen, sync };
            let (snapshot, held) = take(&shared, &handle, what).await?;
            copy.spec.source = snapshot.source();
            let outcome = service.make(&copy, None).await;
            drop(held);
            // The copy may have all it needs of it by now, or there is none.
            shared.collect_snapshots_soon();
            outcome
        });
        joined(made.await)
    }

    async fn to_capture(&self, id: &SandboxId) -> Result<Arc<Handle>> {
        let handle = self.live(id).await?;
        // What waits in the pool has met nobody.
        if handle.is_idle() {
            return Err(not_running(id));
        }
        if handle.expired(self.shared.clock.now_ms()) {
            return Err(gone(id));
        }
        Ok(handle)
    }
}

/// A snapshot to take.
struct Taking {
    name: Option<SnapshotName>,
    clash: Clash,
    kind: SnapshotKind,
    mode: CaptureMode,
    sync: Sync,
}

/// Takes a snapshot of a sandbox.
async fn take(shared: &Arc<Shared>, handle: &Arc<Handle>, what: Taking) -> Result<(Arc<Snapshot>, Held)> {
    let Taking { name, clash, kind, mode, sync } = what;
    let snapshots = shared.snapshots.clone();
    let draft = blocking("make snapshot", move || snapshots.begin(name, clash)).await?;
    let captured = match capture(shared, handle, kind, mode, draft.machine()).await {
        Ok(captured) => captured,
        Err(error) => {
            if let Err(error) = blocking("remove half made snapshot", move || draft.abandon()).await {
                tracing::warn!(%error, "what is left of a snapshot goes at the next start");
            }
            return Err(error);
        }
    };
    let Captured { sandbox, config } = captured;
    let image = match (handle.engine.capabilities().image_form, &sandbox.spec.source) {
        (ImageForm::Disk, _) => None,
        (ImageForm::Layers, Source::Image { name, digest }) => Some((name.clone(), digest.clone())),
        (ImageForm::Layers, Source::Snapshot { image, .. }) => image.clone(),
    };
    let snapshot = Snapshot {
        // These three are the catalogue's to say.
        id: draft.id().clone(),
        name: draft.name().cloned(),
        size_bytes: 0,
        kind,
        engine: sandbox.spec.engine.clone(),
        sandbox: Some(sandbox.id.clone()),
        image,
        spec: sandbox.spec.clone(),
        config,
        created_at_ms: shared.clock.now_ms(),
    };
    blocking("keep snapshot", move || draft.publish(snapshot, sync)).await
}

/// Has its actor capture a sandbox, once it has nothing else to do.
async fn capture(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    kind: SnapshotKind,
    mode: CaptureMode,
    into: PathBuf,
) -> Result<Captured> {
    let (reply, answer) = oneshot::channel();
    handle.tell(Message::Capture(Box::new(Capturing { kind, mode, into, reply })))?;
    match tokio::time::timeout(CAPTURE_WAIT_MAX, answer).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) if shared.token.is_cancelled() => Err(shutting_down()),
        Ok(Err(_)) => Err(gone(&handle.id)),
        Err(_) => {
            let message = format!("sandbox {} could not be captured in time", handle.id);
            Err(Error::new(Kind::Timeout, message))
        }
    }
}

impl Shared {
    /// There is no snapshot of this name here.
    pub(crate) fn no_snapshot(&self, name: &SnapshotName) -> Error {
        let remedy = match self.transfers.has_store() {
            true => format!("; `sandhaus snapshot pull {name}` fetches it if the store has it"),
            false => String::new(),
        };
        Error::new(Kind::NotFound, format!("there is no snapshot {name} on this server{remedy}"))
    }

    /// Removes what of snapshots nobody needs any more.
    pub(crate) async fn collect_snapshots(self: &Arc<Self>) -> Result<()> {
        let shared = self.clone();
        blocking("remove snapshots", move || {
            shared.snapshots.collect(&|snapshot: &Snapshot| shared.use_of(snapshot))
        })
        .await
    }

    /// The same, without anybody waiting for it.
    pub(crate) fn collect_snapshots_soon(self: &Arc<Self>) {
        let shared = self.clone();
        self.spawn(async move {
            if let Err(error) = shared.collect_snapshots().await {
                let source = std::error::Error::source(&error);
                tracing::warn!(%error, ?source, "snapshots that nobody needs are left");
            }
        });
    }

    /// How much of a snapshot some sandbox still needs.
    fn use_of(&self, snapshot: &Snapshot) -> Use {
        let made_of = |source: &Source| source.snapshot() == Some(&snapshot.id);
        if self.set_aside.get().is_some_and(|sources| sources.iter().any(made_of)) {
            return Use::Everything;
        }
        let engine = self.engines.get(&snapshot.engine);
        let standalone = engine.is_some_and(|engine| engine.capabilities().image_form == ImageForm::Disk);
        let sandboxes = self.sandboxes();
        let uses = sandboxes.values().map(|handle| match handle.made_of(&snapshot.id) {
            None => Use::Nothing,
            Some(Made::Already) if standalone => Use::Record,
            Some(Made::Already | Made::NotYet) => Use::Everything,
        });
        uses.max().unwrap_or(Use::Nothing)
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(what, error))?
}

fn joined<T>(outcome: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| Error::internal("finish work on snapshots", error))?
}

#[cfg(test)]
mod tests;
