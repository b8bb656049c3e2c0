//! Snapshots: taken, listed, removed, copied to a store and back; and what is made of a session as it stands.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_client::wire::{
    CreateSnapshot, ErrorBody, ForkSession, Okay, SessionInfo, SnapshotInfo, SnapshotList,
    StoredSnapshotInfo, StoredSnapshotList,
};
use sandhaus_sandbox::{
    Kind, OwnerId, SandboxId, SnapshotName,
    job::{Job, JobState},
    service::snapshots::ForkSandbox,
    snapshot::{self, CaptureMode, Snapshot, SnapshotKind, StoredSnapshot},
};

use super::{
    SessionPath,
    events::{self, News, event},
    jobs::job_info,
    json,
    json::{Ignored, Json},
    sessions::{OWNER, session_error},
    wire::{session_info, time},
};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Takes a snapshot of a session and answers when it is whole.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = CreateSnapshot, responses(
    (status = 201, body = SnapshotInfo),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST, or UNSUPPORTED: the session's engine cannot"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING or ALREADY_EXISTS"),
))]
pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Json(request): Json<CreateSnapshot>,
) -> ApiResult<Response<Body>> {
    let sandbox =
        SandboxId::parse(&request.session).map_err(|error| ApiError::of(Subject::Request, error))?;
    let kind = match request.kind.as_str() {
        "" | "disk" => SnapshotKind::Disk,
        "machine" => SnapshotKind::Machine,
        _ => return Err(ApiError::invalid("kind must be \"disk\" or \"machine\"")),
    };
    let mode = if request.live { CaptureMode::Live } else { CaptureMode::Frozen };
    if kind == SnapshotKind::Machine && mode == CaptureMode::Live {
        return Err(ApiError::invalid("memory can only be captured of a frozen machine: leave out \"live\""));
    }
    let wanted =
        snapshot::CreateSnapshot { sandbox: sandbox.clone(), name: parse(&request.name)?, kind, mode };
    match edge.service.create_snapshot(wanted).await {
        Ok(snapshot) => Ok(json(StatusCode::CREATED, &info(&snapshot))),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Gone) => {
            Err(session_error(&edge, &sandbox, error).await)
        }
        Err(error) => Err(ApiError::of(Subject::Machine, error)),
    }
}

/// Snapshots of this server, by name.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", responses((status = 200, body = SnapshotList)))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let snapshots = edge.service.snapshots().await.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(json(StatusCode::OK, &SnapshotList { snapshots: snapshots.iter().map(info).collect() }))
}

/// One snapshot of this server.
#[utoipa::path(get, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, body = SnapshotInfo),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND"),
))]
pub(super) async fn inspect(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
) -> ApiResult<Response<Body>> {
    let snapshot = edge.service.snapshot(&parse(&name)?).await;
    let snapshot = snapshot.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(json(StatusCode::OK, &info(&snapshot)))
}

/// Removes a snapshot from this server. Sessions that were made of it go on.
#[utoipa::path(delete, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, body = Okay),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND"),
))]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let removed = edge.service.remove_snapshot(&parse(&name)?).await;
    removed.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Copies a snapshot to the store: `progress` events as it goes on, then `done` or `error`. A second push of the same
/// joins the first. It goes on when its clients hang up.
#[utoipa::path(post, path = "/v1/snapshots/{name}/push", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, content_type = "text/event-stream", body = String, description = "events: progress (JobInfo), done (JobInfo), error (PullFailed)"),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: no store is configured"),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND"),
))]
pub(super) async fn push(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let job = edge.service.push_snapshot(&parse(&name)?).await;
    let job = job.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(events::follow(job, Subject::Snapshot, told))
}

/// Copies a snapshot from the store: `progress` events as it goes on, then `done` or `error`. One that is here and whole
/// is not fetched again. A second pull of the same joins the first. It goes on when its clients hang up.
#[utoipa::path(post, path = "/v1/snapshots/{name}/pull", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, content_type = "text/event-stream", body = String, description = "events: progress (JobInfo), done (JobInfo), error (PullFailed)"),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: no store is configured"),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND: the store does not have it"),
))]
pub(super) async fn pull(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let job = edge.service.pull_snapshot(&parse(&name)?).await;
    let job = job.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(events::follow(job, Subject::Snapshot, told))
}

/// Snapshots in the store, by name.
#[utoipa::path(get, path = "/v1/store/snapshots", tag = "snapshots", responses(
    (status = 200, body = StoredSnapshotList),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: no store is configured"),
))]
pub(super) async fn list_stored(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let stored = edge.service.stored_snapshots().await;
    let stored = stored.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    let snapshots = stored.iter().map(stored_info).collect();
    Ok(json(StatusCode::OK, &StoredSnapshotList { snapshots }))
}

/// One snapshot in the store.
#[utoipa::path(get, path = "/v1/store/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, body = StoredSnapshotInfo),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND"),
))]
pub(super) async fn inspect_stored(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
) -> ApiResult<Response<Body>> {
    let name = parse(&name)?;
    let stored = edge.service.stored_snapshot(&name).await;
    match stored.map_err(|error| ApiError::of(Subject::Snapshot, error))? {
        Some(stored) => Ok(json(StatusCode::OK, &stored_info(&stored))),
        None => {
            let message = format!("the store has no snapshot {name}");
            Err(ApiError::new(Kind::NotFound, Subject::Snapshot, message))
        }
    }
}

/// Removes a snapshot from the store.
#[utoipa::path(delete, path = "/v1/store/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)), responses(
    (status = 200, body = Okay),
    (status = 404, body = ErrorBody, description = "SNAPSHOT_NOT_FOUND"),
))]
pub(super) async fn remove_stored(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let removed = edge.service.remove_stored_snapshot(&parse(&name)?).await;
    removed.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Copies a session as it stands, its memory too where its engine can, and answers when the copy runs.
#[utoipa::path(post, path = "/v1/sessions/{id}/fork", tag = "sessions", params(("id" = String, Path)), request_body = ForkSession, responses(
    (status = 201, body = SessionInfo),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST, or UNSUPPORTED: the session's engine cannot"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    (status = 429, body = ErrorBody, description = "no room for another session"),
))]
pub(super) async fn fork(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    Json(request): Json<ForkSession>,
) -> ApiResult<Response<Body>> {
    let wanted = ForkSandbox {
        owner: OwnerId(OWNER.to_owned()),
        name: (!request.name.is_empty()).then_some(request.name),
        env: request.env,
        labels: request.labels,
    };
    match edge.service.fork(&id, wanted).await {
        Ok(view) => Ok(json(StatusCode::CREATED, &session_info(&view))),
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}

/// Shows the snapshots of sessions by the names that they have now.
pub(super) async fn name_snapshots(edge: &Edge, sessions: &mut [SessionInfo]) {
    if sessions.iter().all(|session| session.snapshot.is_none()) {
        return;
    }
    // What they stand on is told by its id where its name is not known.
    let Ok(snapshots) = edge.service.snapshots().await else { return };
    for shown in sessions.iter_mut().filter_map(|session| session.snapshot.as_mut()) {
        let named = snapshots.iter().find(|snapshot| snapshot.id.as_str() == shown);
        if let Some(name) = named.and_then(|snapshot| snapshot.name.as_ref()) {
            name.as_str().clone_into(shown);
        }
    }
}

/// The name of a snapshot, checked.
pub(super) fn parse(name: &str) -> ApiResult<SnapshotName> {
    SnapshotName::parse(name).map_err(|error| ApiError::of(Subject::Snapshot, error))
}

/// A transfer as it stands.
fn told(job: Job) -> News {
    match (job.state, &job.error) {
        (JobState::Running, _) => News::Progress(event("progress", &job_info(&job))),
        (JobState::Succeeded, _) => News::End(event("done", &job_info(&job))),
        (JobState::Failed, error) => {
            let message = error.clone().unwrap_or_else(|| "the transfer failed".to_owned());
            News::End(events::failed(Subject::Snapshot, Kind::Unavailable, message))
        }
    }
}

fn info(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: snapshot.id.to_string(),
        name: snapshot.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        kind: kind_word(snapshot.kind).to_owned(),
        engine: snapshot.engine.0.clone(),
        session: snapshot.sandbox.as_ref().map(ToString::to_string),
        image: snapshot.image.as_ref().map(|(name, _)| name.to_string()),
        created_at: time(snapshot.created_at_ms),
        size_bytes: snapshot.size_bytes,
    }
}

fn stored_info(stored: &StoredSnapshot) -> StoredSnapshotInfo {
    StoredSnapshotInfo {
        name: stored.name.to_string(),
        kind: kind_word(stored.kind).to_owned(),
        size_bytes: stored.size_bytes,
    }
}

fn kind_word(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Disk => "disk",
        SnapshotKind::Machine => "machine",
    }
}
