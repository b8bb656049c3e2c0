//! Snapshots, by which callers mean whatever sandboxes are made of: images and snapshots of this server.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::{Response, StatusCode},
};
use sandhaus_sandbox::{
    Kind, Phase, SandboxId, SnapshotName,
    job::{Job, JobState},
    service::images::{Credentials, PullImage, PullStatus, Reference},
    snapshot::{self, CaptureMode, Snapshot, SnapshotKind},
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Origin, Runner,
    find::{given, image_name, problem, required, snapshot_name, unsupported},
    json::{Ignored, Json, answer, sentence},
    wire::{
        BuildSnapshotDto, CreateSnapshotDto, CreatedSnapshot, InspectSnapshotDto, PullSnapshotDto,
        PushSnapshotDto, PushedSnapshot, Registry, SnapshotDigest, SnapshotExists, SnapshotFromSandboxDto,
        SnapshotInfo, TagImageDto,
    },
};
use crate::{
    error::{ApiError, ApiResult, Subject},
    refusal::ErrorResponse,
};

/// Bytes in what callers call a GB.
const GIGABYTE: f64 = 1_073_741_824.0;

/// Longest name or password of a registry's user.
const CREDENTIAL_BYTES_MAX: usize = 16 << 10;

/// Which snapshot a question is about.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Which {
    snapshot: Option<String>,
    snapshot_ref: Option<String>,
}

/// How a snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// The sandbox stands still meanwhile. One of that name is in the way.
    Frozen,
    /// The sandbox runs on. One of that name is in the way.
    Live,
    /// The sandbox stands still meanwhile. One of that name goes.
    Replacing,
}

/// Takes a snapshot of a sandbox's disk.
pub(super) async fn take(
    runner: &Runner,
    sandbox: &SandboxId,
    name: SnapshotName,
    how: Take,
) -> ApiResult<Snapshot> {
    let mode = if how == Take::Live { CaptureMode::Live } else { CaptureMode::Frozen };
    let wanted = snapshot::CreateSnapshot { sandbox: sandbox.clone(), name, kind: SnapshotKind::Disk, mode };
    let taken = match how {
        Take::Frozen | Take::Live => runner.service().create_snapshot(wanted).await,
        Take::Replacing => runner.service().replace_snapshot(wanted).await,
    };
    taken.map_err(problem)
}

/// Copies the disk of a sandbox to the store, under a name that it may have there already, and waits until it is there.
/// Here it stays only where there was one of that name before.
pub(super) async fn copy_to_store(runner: &Runner, sandbox: &SandboxId, name: SnapshotName) -> ApiResult<()> {
    let stays = runner.service().snapshot(&name).await.is_ok();
    take(runner, sandbox, name.clone(), Take::Replacing).await?;
    let copied = pushed(runner, &name).await;
    if !stays && let Err(error) = runner.service().remove_snapshot(&name).await {
        tracing::warn!(snapshot = %name, %error, "what was pushed stays here too");
    }
    copied
}

async fn pushed(runner: &Runner, name: &SnapshotName) -> ApiResult<()> {
    let job = runner.service().push_snapshot(name).await;
    let job = job.map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    ended(job).await.map_err(|message| ApiError::new(Kind::Unavailable, Subject::Snapshot, message))
}

/// Waits for the end of a transfer; the error is in words that may be shown.
async fn ended(mut job: watch::Receiver<Job>) -> Result<(), String> {
    match job.wait_for(|job| job.state != JobState::Running).await {
        Ok(job) if job.state == JobState::Succeeded => Ok(()),
        Ok(job) => Err(job.error.clone().unwrap_or_else(|| "the transfer failed".to_owned())),
        Err(_) => Err("the server is shutting down".to_owned()),
    }
}

/// The same, where there is a store that takes it; gives where it lies there. What no store takes stays here alone.
async fn pushed_if_possible(runner: &Runner, name: &SnapshotName) -> ApiResult<Option<String>> {
    match runner.service().push_snapshot(name).await {
        Ok(job) => {
            let failed = |message| ApiError::new(Kind::Unavailable, Subject::Snapshot, message);
            ended(job).await.map_err(failed)?;
            Ok(stored(runner, name).await?.map(|stored| stored.path))
        }
        Err(error) if error.kind() == Kind::Unsupported => Ok(None),
        Err(error) => Err(ApiError::of(Subject::Snapshot, error)),
    }
}

/// What the snapshot of a disk is called in a store, where nothing else starts it.
fn key(name: &SnapshotName) -> String {
    format!("snapshots/{name}.qcow2")
}

fn gigabytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people, and far from the limit")]
    let bytes = bytes as f64;
    bytes / GIGABYTE
}

/// Runs work to its end even when the caller goes away.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = ApiResult<T>> + Send + 'static,
) -> ApiResult<T> {
    let failed = || ApiError::new(Kind::Internal, Subject::Snapshot, "finish work on snapshots");
    tokio::spawn(work).await.map_err(|_| failed())?
}

/// Takes a snapshot of a sandbox's disk; where there is a store, it goes there too.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/snapshot-from-sandbox", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = SnapshotFromSandboxDto, responses(
    (status = 200, body = SnapshotInfo), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse, description = "there is one of that name"),
))]
pub(super) async fn of_sandbox(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Json(request): Json<SnapshotFromSandboxDto>,
) -> ApiResult<Response<Body>> {
    let name = snapshot_name(&required("name", request.name)?)?;
    let sandbox = runner.live(&id).await?.sandbox.id;
    let taken = to_the_end(async move {
        let taken = take(&runner, &sandbox, name.clone(), Take::Frozen).await?;
        pushed_if_possible(&runner, &name).await?;
        Ok(taken)
    })
    .await?;
    Ok(answer(StatusCode::OK, &of_snapshot(&taken)))
}

/// Takes a snapshot of a sandbox's disk, also while it runs; where there is a store, it goes there too.
#[utoipa::path(post, path = "/snapshots/create", tag = "snapshots", request_body = CreateSnapshotDto, responses(
    (status = 200, body = CreatedSnapshot), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse, description = "there is one of that name"),
))]
pub(super) async fn create(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<CreateSnapshotDto>,
) -> ApiResult<Response<Body>> {
    let name = snapshot_name(&required("name", request.name)?)?;
    let sandbox = runner.live(&required("sandboxId", request.sandbox_id)?).await?.sandbox.id;
    let how = if request.live == Some(true) { Take::Live } else { Take::Frozen };
    let started = Instant::now();
    let taken = to_the_end({
        let (runner, name) = (Arc::clone(&runner), name.clone());
        async move {
            let taken = take(&runner, &sandbox, name.clone(), how).await?;
            let path = pushed_if_possible(&runner, &name).await?;
            Ok((taken, path))
        }
    })
    .await;
    runner.edge.metrics.operation("snapshot", &taken, started.elapsed());
    let (taken, path) = taken?;
    let created = CreatedSnapshot {
        snapshot_path: path.unwrap_or_else(|| key(&name)),
        name: name.to_string(),
        size_bytes: taken.size_bytes,
        live_mode: how == Take::Live,
    };
    Ok(answer(StatusCode::OK, &created))
}

/// Copies the disk of a sandbox to the store, under a name that it may have there already.
#[utoipa::path(post, path = "/snapshots/push", tag = "snapshots", request_body = PushSnapshotDto, responses(
    (status = 200, body = PushedSnapshot),
    (status = 400, body = ErrorResponse, description = "no store is configured"),
    (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse, description = "the sandbox runs"),
))]
pub(super) async fn push(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<PushSnapshotDto>,
) -> ApiResult<Response<Body>> {
    let name = snapshot_name(&required("snapshotName", request.snapshot_name)?)?;
    let view = runner.live(&required("sandboxId", request.sandbox_id)?).await?;
    if !matches!(view.status.phase, Phase::Stopped | Phase::Paused | Phase::Suspended) {
        let message = "sandbox must be stopped or paused";
        return Err(ApiError::new(Kind::Conflict, Subject::Session, message));
    }
    // Without a store there is nowhere to put it.
    stored(&runner, &name).await?;
    let started = Instant::now();
    let outcome = to_the_end({
        let (runner, name) = (Arc::clone(&runner), name.clone());
        async move { copy_to_store(&runner, &view.sandbox.id, name).await }
    })
    .await;
    runner.edge.metrics.operation("push_snapshot", &outcome, started.elapsed());
    outcome?;
    let there = stored(&runner, &name).await?;
    let pushed = PushedSnapshot {
        snapshot_name: name.to_string(),
        size_bytes: there.as_ref().map_or(0, |stored| stored.size_bytes),
        snapshot_path: there.map_or_else(|| key(&name), |stored| stored.path),
    };
    Ok(answer(StatusCode::OK, &pushed))
}

async fn stored(runner: &Runner, name: &SnapshotName) -> ApiResult<Option<snapshot::StoredSnapshot>> {
    let stored = runner.service().stored_snapshot(name).await;
    stored.map_err(|error| ApiError::of(Subject::Snapshot, error))
}

/// Begins to pull a snapshot from the store, or an image from a registry: `info` tells how that ends.
#[utoipa::path(post, path = "/snapshots/pull", tag = "snapshots", request_body = PullSnapshotDto, responses(
    (status = 202, body = String), (status = 400, body = ErrorResponse),
    (status = 404, body = ErrorResponse, description = "the store does not have it"),
    (status = 429, body = ErrorResponse),
))]
pub(super) async fn pull(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<PullSnapshotDto>,
) -> ApiResult<Response<Body>> {
    let what = required("snapshot", request.snapshot)?;
    if request.destination_registry.is_some() || given(request.destination_ref).is_some() {
        return Err(unsupported("pushing what was pulled to another registry"));
    }
    let tag = match given(request.new_tag) {
        Some(tag) => Some(image_name(&tag).ok_or_else(|| invalid_name(&tag))?),
        None => None,
    };
    match origin(&runner, &what, request.sandbox_class.as_deref()).await? {
        Origin::Store if tag.is_some() => {
            return Err(unsupported("another name for a snapshot of the store"));
        }
        Origin::Store => pull_snapshot(&runner, what).await?,
        Origin::Registry => {
            let name = image_name(&what).ok_or_else(|| invalid_name(&what))?;
            let reference = Reference::parse(&what).map_err(|_| invalid_name(&what))?;
            let credentials = credentials(request.registry)?;
            let wanted =
                PullImage { name: Some(name.clone()), reference, platform: None, credentials, replace: true };
            let status = runner.service().pull_image(wanted).await;
            let status = status.map_err(|error| ApiError::of(Subject::Image, error))?;
            follow(&runner, what, async move |runner| {
                image_arrived(status).await?;
                let Some(tag) = tag else { return Ok(()) };
                let tagged = runner.service().tag_image(name, tag).await;
                tagged.map(drop).map_err(|error| error.message().to_owned())
            });
        }
    }
    Ok(sentence(StatusCode::ACCEPTED, "Snapshot pull started"))
}

/// Notes a pull, and how it ends.
fn follow<W: Future<Output = Result<(), String>> + Send + 'static>(
    runner: &Arc<Runner>,
    what: String,
    work: impl FnOnce(Arc<Runner>) -> W,
) {
    runner.pulls.begin(&what);
    let (runner, work) = (Arc::clone(runner), work(Arc::clone(runner)));
    tokio::spawn(async move {
        let started = Instant::now();
        let outcome = work.await;
        runner.edge.metrics.operation("pull_snapshot", &outcome, started.elapsed());
        runner.pulls.end(&what, outcome);
    });
}

async fn pull_snapshot(runner: &Arc<Runner>, what: String) -> ApiResult<()> {
    let name = SnapshotName::parse(&what).map_err(|error| ApiError::of(Subject::Snapshot, error))?;
    let job = runner.service().pull_snapshot(&name).await.map_err(|error| match error.kind() {
        Kind::NotFound => not_in_store(&what),
        _ => ApiError::of(Subject::Snapshot, error),
    })?;
    follow(runner, what, async move |_| ended(job).await);
    Ok(())
}

fn not_in_store(what: &str) -> ApiError {
    ApiError::new(Kind::NotFound, Subject::Snapshot, format!("snapshot not found in store: {what}"))
}

/// Where something is pulled from: as its class says; of none, from the store what has a plain name and is there, else
/// from a registry.
async fn origin(runner: &Runner, what: &str, class: Option<&str>) -> ApiResult<Origin> {
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        let known = runner.config.classes.get(class);
        return known.map(|class| class.origin).ok_or_else(|| {
            ApiError::invalid(format!("bad request: there is no sandbox class {class:?} here"))
        });
    }
    let Ok(name) = SnapshotName::parse(what) else { return Ok(Origin::Registry) };
    match runner.service().stored_snapshot(&name).await {
        // Where there is a store, a plain name means what is in it.
        Ok(_) => Ok(Origin::Store),
        Err(error) if error.kind() == Kind::Unsupported => Ok(Origin::Registry),
        Err(error) => Err(ApiError::of(Subject::Snapshot, error)),
    }
}

fn credentials(registry: Option<Registry>) -> ApiResult<Option<Credentials>> {
    let Some(registry) = registry else { return Ok(None) };
    let Some(username) = given(registry.username) else { return Ok(None) };
    let password = registry.password.unwrap_or_default();
    if username.len() + password.len() > CREDENTIAL_BYTES_MAX {
        return Err(ApiError::invalid("bad request: username and password are too long"));
    }
    Ok(Some(Credentials::Password { username, password }))
}

async fn image_arrived(mut status: watch::Receiver<PullStatus>) -> Result<(), String> {
    match status.wait_for(|status| status.outcome.is_some()).await {
        Ok(status) => match &status.outcome {
            Some(Err(failure)) if failure.kind == Kind::Internal => Err("internal error".to_owned()),
            Some(Err(failure)) => Err(failure.message.clone()),
            Some(Ok(_)) | None => Ok(()),
        },
        Err(_) => Err("the server is shutting down".to_owned()),
    }
}

fn invalid_name(what: &str) -> ApiError {
    ApiError::invalid(format!("bad request: {what:?} is no name of a snapshot or image"))
}

/// Builds an image. Not here: build it elsewhere and pull it.
#[utoipa::path(post, path = "/snapshots/build", tag = "snapshots", request_body = BuildSnapshotDto, responses(
    (status = 400, body = ErrorResponse),
))]
pub(super) async fn build(Json(request): Json<BuildSnapshotDto>) -> ApiResult<Response<Body>> {
    let BuildSnapshotDto { snapshot, dockerfile, organization_id } = request;
    required("dockerfile", dockerfile)?;
    required("organizationId", organization_id)?;
    let what = given(snapshot).map_or_else(String::new, |name| format!(" (here {name})"));
    Err(unsupported(&format!("building images of Dockerfiles{what} on this runner")))
}

/// Gives an image a further name.
#[utoipa::path(post, path = "/snapshots/tag", tag = "snapshots", request_body = TagImageDto, responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
))]
pub(super) async fn tag(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<TagImageDto>,
) -> ApiResult<Response<Body>> {
    let source = required("sourceImage", request.source_image)?;
    let target = required("targetImage", request.target_image)?;
    let source = image_name(&source).ok_or_else(|| invalid_name(&source))?;
    let target = image_name(&target).ok_or_else(|| invalid_name(&target))?;
    let tagged = runner.service().tag_image(source, target).await;
    tagged.map_err(|error| ApiError::of(Subject::Image, error))?;
    Ok(sentence(StatusCode::OK, "Image tagged"))
}

/// What the store knows of a snapshot.
#[utoipa::path(post, path = "/snapshots/inspect", tag = "snapshots", request_body = InspectSnapshotDto, responses(
    (status = 200, body = SnapshotDigest),
    (status = 400, body = ErrorResponse, description = "it is of a registry, or no store is configured"),
    (status = 404, body = ErrorResponse),
))]
pub(super) async fn inspect(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<InspectSnapshotDto>,
) -> ApiResult<Response<Body>> {
    let what = required("snapshot", request.snapshot)?;
    let Ok(name) = SnapshotName::parse(&what) else {
        return Err(unsupported("looking at an image in its registry"));
    };
    let stored = stored(&runner, &name).await?.ok_or_else(|| not_in_store(&what))?;
    let digest = SnapshotDigest { hash: stored.name.to_string(), size_gb: gigabytes(stored.size_bytes) };
    Ok(answer(StatusCode::OK, &digest))
}

/// Whether something is here.
#[utoipa::path(get, path = "/snapshots/exists", tag = "snapshots", params(("snapshot" = String, Query)), responses(
    (status = 200, body = SnapshotExists), (status = 400, body = ErrorResponse),
))]
pub(super) async fn exists(
    State(runner): State<Arc<Runner>>,
    Query(which): Query<Which>,
) -> ApiResult<Response<Body>> {
    let what = required("snapshot", which.snapshot)?;
    let exists = here(&runner, &what).await?.is_some();
    Ok(answer(StatusCode::OK, &SnapshotExists { exists }))
}

/// What is here, or why it is not.
#[utoipa::path(get, path = "/snapshots/info", tag = "snapshots", params(("snapshot" = String, Query)), responses(
    (status = 200, body = SnapshotInfo),
    (status = 404, body = ErrorResponse, description = "it is not here, or not yet"),
    (status = 422, body = ErrorResponse, description = "its pull failed"),
))]
pub(super) async fn info(
    State(runner): State<Arc<Runner>>,
    Query(which): Query<Which>,
) -> ApiResult<Response<Body>> {
    let what = required("snapshot", which.snapshot)?;
    let missing = |message: String| ApiError::new(Kind::NotFound, Subject::Snapshot, message);
    if runner.pulls.is_under_way(&what) {
        return Err(missing(format!("not found: snapshot {what} is still being pulled")));
    }
    if let Some(words) = runner.pulls.failure(&what) {
        return Err(missing(words).with_status(StatusCode::UNPROCESSABLE_ENTITY, "UNPROCESSABLE_ENTITY"));
    }
    match here(&runner, &what).await? {
        Some(info) => Ok(answer(StatusCode::OK, &info)),
        None => Err(missing(format!("not found: snapshot {what} is not on this runner"))),
    }
}

/// What of this name is here: a snapshot, else an image.
async fn here(runner: &Runner, what: &str) -> ApiResult<Option<SnapshotInfo>> {
    if let Ok(name) = SnapshotName::parse(what) {
        match runner.service().snapshot(&name).await {
            Ok(snapshot) => return Ok(Some(of_snapshot(&snapshot))),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(ApiError::of(Subject::Snapshot, error)),
        }
    }
    let Some(name) = image_name(what) else { return Ok(None) };
    match runner.service().image(name).await {
        Ok(details) => Ok(Some(SnapshotInfo {
            name: what.to_owned(),
            size_gb: gigabytes(details.image.size_bytes),
            entrypoint: details.config.entrypoint,
            cmd: details.config.cmd,
            hash: details.image.digest,
        })),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Invalid) => Ok(None),
        Err(error) => Err(ApiError::of(Subject::Image, error)),
    }
}

fn of_snapshot(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        name: snapshot.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        size_gb: gigabytes(snapshot.size_bytes),
        entrypoint: snapshot.config.entrypoint.clone(),
        cmd: snapshot.config.cmd.clone(),
        hash: snapshot.id.to_string(),
    }
}

/// The log of a build, of which there is none here.
#[utoipa::path(get, path = "/snapshots/logs", tag = "snapshots", params(
    ("snapshotRef" = String, Query), ("follow" = Option<bool>, Query),
), responses((status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse)))]
pub(super) async fn logs(Query(which): Query<Which>) -> ApiResult<Response<Body>> {
    let what = required("snapshotRef", which.snapshot_ref)?;
    let message = format!("not found: there is no build log of {what}");
    Err(ApiError::new(Kind::NotFound, Subject::Snapshot, message))
}

/// Removes a snapshot or an image's name from this runner. One that is not here is success.
#[utoipa::path(post, path = "/snapshots/remove", tag = "snapshots", params(("snapshot" = String, Query)), responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse),
    (status = 409, body = ErrorResponse, description = "sandboxes need it"),
))]
pub(super) async fn remove(
    State(runner): State<Arc<Runner>>,
    Query(which): Query<Which>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let what = required("snapshot", which.snapshot)?;
    runner.pulls.forget(&what);
    if let Ok(name) = SnapshotName::parse(&what) {
        match runner.service().remove_snapshot(&name).await {
            Ok(()) => return Ok(sentence(StatusCode::OK, "Snapshot removed")),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(ApiError::of(Subject::Snapshot, error)),
        }
    }
    if let Some(name) = image_name(&what) {
        match runner.service().remove_image(name).await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(ApiError::of(Subject::Image, error)),
        }
    }
    Ok(sentence(StatusCode::OK, "Snapshot removed"))
}
