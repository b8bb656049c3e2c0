//! Backups: copies of a sandbox's disk in the store, made in the background.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_sandbox::{Kind, SandboxId, SnapshotName};
use tokio_util::sync::CancellationToken;

use super::{
    Runner,
    find::{required, snapshot_name},
    json::{Json, sentence},
    snapshots::{copy_to_store, to_the_end},
    wire::CreateBackupDto,
};
use crate::{
    error::{ApiError, ApiResult, Subject},
    refusal::ErrorResponse,
};

/// Copies a sandbox's disk to the store, in the background: its info tells how that goes.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/backup", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = CreateBackupDto, responses(
    (status = 201, body = String),
    (status = 400, body = ErrorResponse, description = "no store is configured"),
    (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse, description = "one is under way"),
))]
pub(super) async fn backup(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Json(request): Json<CreateBackupDto>,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    let shown = required("snapshot", request.snapshot)?;
    let name = snapshot_name(&shown)?;
    // Without a store there is nowhere to put it.
    runner.service().stored_snapshot(&name).await.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    let id = view.sandbox.id;
    let cancelled = runner.backups.begin(&id, shown)?;
    tokio::spawn(async move {
        // Dropping the wait drops only that: what was begun goes on to its end.
        tokio::select! {
            outcome = back_up(&runner, &id, name) => runner.backups.ended(&id, outcome),
            () = cancelled.cancelled() => {}
            () = runner.edge.ending.cancelled() => {}
        }
    });
    Ok(sentence(StatusCode::CREATED, "Backup started"))
}

async fn back_up(runner: &Arc<Runner>, id: &SandboxId, name: SnapshotName) -> ApiResult<()> {
    let started = Instant::now();
    // To its end even if nobody waits any more, so that nothing of it stays on this host.
    let outcome = to_the_end({
        let (runner, id) = (Arc::clone(runner), id.clone());
        async move { copy_to_store(&runner, &id, name).await }
    })
    .await;
    runner.edge.metrics.operation("backup", &outcome, started.elapsed());
    outcome
}

/// Backups of sandboxes as this server knows them: of each the last one. Not kept: after a restart there was none.
#[derive(Debug, Default)]
pub(super) struct Backups(Mutex<HashMap<SandboxId, Entry>>);

#[derive(Debug)]
struct Entry {
    snapshot: String,
    state: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Under way, until this is cancelled.
    Running(CancellationToken),
    Done,
    /// It failed, in these words.
    Failed(String),
}

/// A backup, as an answer tells of it.
#[derive(Debug, Default)]
pub(super) struct Backup {
    word: Option<&'static str>,
    pub(super) snapshot: Option<String>,
    pub(super) error: Option<String>,
}

impl Backup {
    /// Its state in this dialect's words.
    pub(super) fn word(&self) -> &'static str {
        self.word.unwrap_or("NONE")
    }
}

impl Backups {
    /// The last backup of a sandbox.
    pub(super) fn of(&self, id: &SandboxId) -> Backup {
        let entries = self.entries();
        let Some(entry) = entries.get(id) else { return Backup::default() };
        let (word, error) = match &entry.state {
            Progress::Running(_) => ("IN_PROGRESS", None),
            Progress::Done => ("COMPLETED", None),
            Progress::Failed(error) => ("FAILED", Some(error.clone())),
        };
        Backup { word: Some(word), snapshot: Some(entry.snapshot.clone()), error }
    }

    /// Notes that one begins. There is one at a time.
    fn begin(&self, id: &SandboxId, snapshot: String) -> ApiResult<CancellationToken> {
        let mut entries = self.entries();
        if entries.get(id).is_some_and(|entry| matches!(entry.state, Progress::Running(_))) {
            let message = format!("conflict: a backup of sandbox {id} is under way");
            return Err(ApiError::new(Kind::Conflict, Subject::Session, message));
        }
        let cancelled = CancellationToken::new();
        entries.insert(id.clone(), Entry { snapshot, state: Progress::Running(cancelled.clone()) });
        Ok(cancelled)
    }

    fn ended(&self, id: &SandboxId, outcome: ApiResult<()>) {
        if let Some(entry) = self.entries().get_mut(id) {
            entry.state = match outcome {
                Ok(()) => Progress::Done,
                Err(error) => Progress::Failed(error.public_message("")),
            };
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn cancel(&self, id: &SandboxId) {
        let mut entries = self.entries();
        let running = entries.get(id).and_then(|entry| match &entry.state {
            Progress::Running(cancelled) => Some(cancelled.clone()),
            Progress::Done | Progress::Failed(_) => None,
        });
        if let Some(cancelled) = running {
            cancelled.cancel();
            entries.remove(id);
        }
    }

    /// Its sandbox goes.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.cancel(id);
        self.entries().remove(id);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SandboxId, Entry>> {
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
