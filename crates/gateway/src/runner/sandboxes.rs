//! Sandboxes: make, show, start, stop, end.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{Request, Response, StatusCode},
};
use http_body_util::{BodyExt, Limited};
use sandhaus_sandbox::{
    EngineName, Error, FailureKind, Goal, Kind, NetworkPolicy, OwnerId, Phase, Resources, SandboxId,
    SandboxView, SecurityProfile, SnapshotName, service::CreateSandbox, toolbox::Toolbox, types::ImageName,
};
use serde::Deserialize;

use super::{
    Runner,
    changes::{is_recoverable_reason, network_policy},
    find::{OWNER, RunnerId, given, image_name, labels, problem, required, unsupported},
    json::{Ignored, Json, Optional, answer, sentence},
    wire::{CreateSandboxDto, SandboxInfo, Started, StopSandboxDto},
};
use crate::{
    error::{ApiError, ApiResult, Subject},
    refusal::ErrorResponse,
};

/// Amounts of memory and disk from here on are MiB, below GiB: both are sent for the same field.
const MEBIBYTES_FROM: i64 = 256;

/// Most of either.
const QUOTA_MAX: i64 = 64 << 20;

/// Most processor cores.
const CORES_MAX: i64 = 4096;

/// The user that programs of a sandbox expect, where nobody says.
const OS_USER: &str = "daytona";

/// Largest answer to the question for the agent's version.
const VERSION_BYTES_MAX: usize = 4096;

/// How long that answer may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a sandbox and answers when its agent does. One that is there already is started.
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", request_body = CreateSandboxDto, responses(
    (status = 201, body = Started),
    (status = 400, body = ErrorResponse),
    (status = 404, body = ErrorResponse, description = "the snapshot is not here"),
    (status = 409, body = ErrorResponse, description = "it is still being made, or was there before"),
    (status = 429, body = ErrorResponse),
))]
pub(super) async fn create(
    State(runner): State<Arc<Runner>>,
    Json(request): Json<CreateSandboxDto>,
) -> ApiResult<Response<Body>> {
    let id = RunnerId::parse(&required("id", request.id.clone())?)?;
    let started = std::time::Instant::now();
    let outcome = match runner.find(&id).await? {
        Some(view) if view.status.phase == Phase::Starting => {
            let message = format!("conflict: sandbox {} is still being made", view.sandbox.id);
            return Err(ApiError::new(Kind::Conflict, Subject::Session, message));
        }
        Some(view) => start_again(&runner, &view).await,
        None => make(&runner, id, request).await,
    };
    runner.edge.metrics.operation("create", &outcome, started.elapsed());
    Ok(answer(StatusCode::CREATED, &Started { daemon_version: outcome? }))
}

async fn make(runner: &Runner, id: RunnerId, request: CreateSandboxDto) -> ApiResult<String> {
    let skip_start = request.skip_start == Some(true);
    let wanted = wanted(runner, id, request).await?;
    let view = runner.service().create(wanted).await.map_err(|error| match error.kind() {
        Kind::NotFound => ApiError::of(Subject::Snapshot, error),
        _ => problem(error),
    })?;
    let version = daemon_version(runner, &view.sandbox.id).await.unwrap_or_default();
    if skip_start {
        runner.service().set_goal(&view.sandbox.id, Goal::Stopped).await.map_err(problem)?;
    }
    Ok(version)
}

/// A request, checked, in the domain's words.
async fn wanted(runner: &Runner, id: RunnerId, request: CreateSandboxDto) -> ApiResult<CreateSandbox> {
    refuse_what_is_missing(&request)?;
    let engine = engine(runner, request.sandbox_class.as_deref())?;
    let reference = required("snapshot", request.snapshot.clone())?;
    let (image, snapshot) = source(runner, &reference).await?;
    let network = network_policy(
        request.network_block_all,
        request.network_allow_list.as_deref(),
        request.domain_allow_list.as_deref(),
    )?;
    let shown_id = match &id {
        RunnerId::Own(id) => id.to_string(),
        RunnerId::Name(name) => name.clone(),
    };
    let os_user = given(request.os_user).unwrap_or_else(|| OS_USER.to_owned());
    let mut env = request.env.unwrap_or_default();
    for (name, value) in [
        ("DAYTONA_SANDBOX_ID", Some(shown_id)),
        ("DAYTONA_SANDBOX_SNAPSHOT", Some(reference.clone())),
        ("DAYTONA_SANDBOX_USER", Some(os_user)),
        ("DAYTONA_OTEL_ENDPOINT", given(request.otel_endpoint)),
        ("DAYTONA_ORGANIZATION_ID", given(request.organization_id.clone())),
        ("DAYTONA_REGION_ID", given(request.region_id)),
    ] {
        if let Some(value) = value {
            env.insert(name.to_owned(), value);
        }
    }
    let own_labels = [
        ("name", request.name),
        ("user", request.user_id),
        ("organization", request.organization_id),
        ("snapshot", Some(reference)),
    ];
    let (id, name) = match id {
        RunnerId::Own(id) => (Some(id), None),
        RunnerId::Name(name) => (None, Some(name)),
    };
    Ok(CreateSandbox {
        owner: OwnerId(OWNER.to_owned()),
        id,
        name,
        image,
        snapshot,
        engine,
        resources: Resources {
            cpu_millis: cores("cpuQuota", request.cpu_quota)?,
            memory_bytes: bytes("memoryQuota", request.memory_quota)?,
            pids: 0,
            disk_bytes: bytes("storageQuota", request.storage_quota)?,
        },
        network: Some(network.unwrap_or(NetworkPolicy::Bridge)),
        security: SecurityProfile::Container,
        readonly_root: false,
        env,
        workdir: None,
        mounts: Vec::new(),
        entrypoint: request.entrypoint.unwrap_or_default(),
        // Whoever made it says when it ends.
        ttl: Some(Duration::ZERO),
        labels: labels(request.metadata, own_labels),
        shell: runner.config.shell,
        warm_shell: false,
        seccomp: runner.config.seccomp,
        workspace: None,
        publish: Vec::new(),
    })
}

fn refuse_what_is_missing(request: &CreateSandboxDto) -> ApiResult<()> {
    let says = |value: &Option<String>| value.as_deref().is_some_and(|value| !value.is_empty());
    if request.gpu_quota.is_some_and(|gpus| gpus != 0) {
        return Err(unsupported("a graphics processor"));
    }
    if request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        return Err(unsupported("showing volumes inside"));
    }
    if says(&request.linked_sandbox_id) {
        return Err(unsupported("linking sandboxes"));
    }
    if says(&request.from_volume_id) {
        return Err(unsupported("making a sandbox of a volume"));
    }
    Ok(())
}

/// The engine of a class; of none, whichever what it is made of needs.
fn engine(runner: &Runner, class: Option<&str>) -> ApiResult<Option<EngineName>> {
    let Some(class) = class.filter(|class| !class.is_empty()) else { return Ok(None) };
    let classes = &runner.config.classes;
    let known = classes.get(class).ok_or_else(|| {
        let known: Vec<&str> = classes.keys().map(String::as_str).collect();
        ApiError::invalid(format!(
            "bad request: there is no sandbox class {class:?} here, but {}",
            known.join(", ")
        ))
    })?;
    Ok(Some(known.engine.clone()))
}

/// What a reference means: a snapshot of this server, else an image of it.
async fn source(runner: &Runner, reference: &str) -> ApiResult<(Option<ImageName>, Option<SnapshotName>)> {
    if let Ok(name) = SnapshotName::parse(reference) {
        match runner.service().snapshot(&name).await {
            Ok(_) => return Ok((None, Some(name))),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(ApiError::of(Subject::Snapshot, error)),
        }
    }
    if let Some(name) = image_name(reference) {
        match runner.service().image(name.clone()).await {
            Ok(_) => return Ok((Some(name), None)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Invalid) => {}
            Err(error) => return Err(ApiError::of(Subject::Image, error)),
        }
    }
    let message = format!(
        "not found: snapshot {reference:?} is not on this runner; pull it first with POST /snapshots/pull \
         {{\"snapshot\": {reference:?}}}"
    );
    Err(ApiError::new(Kind::NotFound, Subject::Snapshot, message))
}

/// Cores as a limit; none said, or 0: the default.
pub(super) fn cores(name: &str, quota: Option<i64>) -> ApiResult<u32> {
    match quota.unwrap_or(0) {
        cores @ 0..=CORES_MAX => Ok(u32::try_from(cores).expect("CORES_MAX fits") * 1000),
        _ => Err(ApiError::invalid(format!("bad request: {name} must be between 1 and {CORES_MAX}"))),
    }
}

/// An amount as a limit; none said, or 0: the default.
pub(super) fn bytes(name: &str, quota: Option<i64>) -> ApiResult<u64> {
    match quota.unwrap_or(0) {
        gibibytes @ 0..MEBIBYTES_FROM => Ok(gibibytes.unsigned_abs() << 30),
        mebibytes @ MEBIBYTES_FROM..=QUOTA_MAX => Ok(mebibytes.unsigned_abs() << 20),
        _ => Err(ApiError::invalid(format!("bad request: {name} must be between 1 and {QUOTA_MAX}"))),
    }
}

/// How a sandbox stands. One that is not there, or never was, is `destroyed`.
#[utoipa::path(get, path = "/sandboxes/{sandboxId}", tag = "sandboxes", params(("sandboxId" = String, Path)), responses(
    (status = 200, body = SandboxInfo),
    (status = 400, body = ErrorResponse),
))]
pub(super) async fn info(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
) -> ApiResult<Response<Body>> {
    let Some(view) = runner.find(&RunnerId::parse(&id)?).await? else {
        let info = SandboxInfo {
            state: "destroyed",
            backup_state: "NONE",
            backup_snapshot: None,
            backup_error: None,
            recoverable: None,
            daemon_version: None,
        };
        return Ok(answer(StatusCode::OK, &info));
    };
    let daemon_version = match view.status.phase {
        Phase::Running => daemon_version(&runner, &view.sandbox.id).await.ok(),
        _ => None,
    };
    let backup = runner.backups.of(&view.sandbox.id);
    let reason = view.status.failure.as_ref().map(|failure| failure.message.as_str());
    let info = SandboxInfo {
        state: state(&view),
        backup_state: backup.word(),
        backup_snapshot: backup.snapshot,
        backup_error: backup.error,
        recoverable: reason.map(is_recoverable_reason),
        daemon_version,
    };
    Ok(answer(StatusCode::OK, &info))
}

/// A sandbox's state in this dialect's words.
fn state(view: &SandboxView) -> &'static str {
    match view.status.phase {
        Phase::Starting if view.sandbox.life == sandhaus_sandbox::Life::New => "creating",
        Phase::Starting if view.sandbox.holdings.memory.is_some() => "resuming",
        Phase::Starting => "starting",
        Phase::Running => "started",
        Phase::Paused | Phase::Suspended => "paused",
        Phase::Stopping if matches!(view.sandbox.goal, Goal::Paused | Goal::Suspended) => "pausing",
        Phase::Stopping => "stopping",
        // Its programs ended, as those of a container do.
        Phase::Stopped if ended_by_itself(view) => "stopped",
        Phase::Stopped if view.status.failure.is_some() => "error",
        Phase::Stopped | Phase::Archived => "stopped",
        Phase::Deleting => "destroying",
        Phase::Deleted => "destroyed",
        Phase::Failed => "error",
    }
}

fn ended_by_itself(view: &SandboxView) -> bool {
    let kind = view.status.failure.as_ref().map(|failure| failure.kind);
    matches!(kind, Some(FailureKind::Crashed))
}

/// Starts a sandbox, or goes on with one that is paused. One that runs already is success.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/start", tag = "sandboxes", params(
    ("sandboxId" = String, Path),
    ("token" = Option<String>, Query, description = "not used: the runner asks for its own key"),
), responses(
    (status = 200, body = Started), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse),
))]
pub(super) async fn start(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    let started = std::time::Instant::now();
    let outcome = start_again(&runner, &view).await;
    runner.edge.metrics.operation("start", &outcome, started.elapsed());
    Ok(answer(StatusCode::OK, &Started { daemon_version: outcome? }))
}

async fn start_again(runner: &Runner, view: &SandboxView) -> ApiResult<String> {
    let id = &view.sandbox.id;
    if view.status.phase != Phase::Running {
        runner.service().set_goal(id, Goal::Running).await.map_err(problem)?;
    }
    Ok(daemon_version(runner, id).await.unwrap_or_default())
}

/// Stops a sandbox, whose disk stays. One that is stopped, or not there, is success. A backup that is under way ends.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/stop", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = StopSandboxDto, responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse),
))]
pub(super) async fn stop(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Optional(_): Optional<StopSandboxDto>,
) -> ApiResult<Response<Body>> {
    if let Some(view) = runner.find(&RunnerId::parse(&id)?).await? {
        runner.backups.cancel(&view.sandbox.id);
        change_goal(&runner, "stop", &view.sandbox.id, Goal::Stopped).await?;
    }
    Ok(sentence(StatusCode::OK, "Sandbox stopped"))
}

/// Ends a sandbox and answers when nothing of it is left. One that is not there is success.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/destroy", tag = "sandboxes", params(("sandboxId" = String, Path)), responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse),
))]
pub(super) async fn destroy(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    if let Some(view) = runner.find(&RunnerId::parse(&id)?).await? {
        let id = &view.sandbox.id;
        runner.backups.forget(id);
        let started = std::time::Instant::now();
        let outcome = match runner.service().delete(id).await {
            Err(error) if error.kind() != Kind::NotFound => Err(problem(error)),
            _ => Ok(()),
        };
        runner.edge.metrics.operation("destroy", &outcome, started.elapsed());
        outcome?;
    }
    Ok(sentence(StatusCode::OK, "Sandbox destroyed"))
}

/// Freezes a sandbox, which keeps its memory.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/pause", tag = "sandboxes", params(("sandboxId" = String, Path)), responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse),
))]
pub(super) async fn pause(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    if view.status.phase != Phase::Suspended {
        change_goal(&runner, "pause", &view.sandbox.id, Goal::Paused).await?;
    }
    Ok(sentence(StatusCode::OK, "Sandbox paused"))
}

/// Has a sandbox go on that is paused, in memory or on disk.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/resume", tag = "sandboxes", params(("sandboxId" = String, Path)), responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
    (status = 409, body = ErrorResponse),
))]
pub(super) async fn resume(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    change_goal(&runner, "resume", &view.sandbox.id, Goal::Running).await?;
    Ok(sentence(StatusCode::OK, "Sandbox resumed"))
}

async fn change_goal(runner: &Runner, operation: &'static str, id: &SandboxId, goal: Goal) -> ApiResult<()> {
    let started = std::time::Instant::now();
    let outcome = runner.service().set_goal(id, goal).await;
    runner.edge.metrics.operation(operation, &outcome, started.elapsed());
    outcome.map(drop).map_err(problem)
}

/// The version of the agent inside, which so shows that it answers.
async fn daemon_version(runner: &Runner, id: &SandboxId) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let unclear = |_| Error::new(Kind::Unavailable, "the agent does not tell its version");
    let toolbox = runner.service().toolbox(id).await?;
    let mut request = Request::new(Toolbox::body(Bytes::new()));
    *request.uri_mut() = "/version".parse().expect("a constant path");
    let asked = async {
        let response = toolbox.send(request).await?;
        let body = Limited::new(response.into_body(), VERSION_BYTES_MAX).collect().await;
        let body = body.map_err(|_| Error::new(Kind::Unavailable, "the agent does not answer"))?;
        serde_json::from_slice::<Version>(&body.to_bytes()).map(|version| version.version).map_err(unclear)
    };
    match tokio::time::timeout(VERSION_TIMEOUT, asked).await {
        Ok(version) => version,
        Err(_) => Err(Error::new(Kind::Timeout, "the agent does not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_gibibytes_or_mebibytes() {
        for (quota, expected) in [
            (None, 0),
            (Some(0), 0),
            (Some(1), 1 << 30),
            (Some(255), 255 << 30),
            (Some(256), 256 << 20),
            (Some(4096), 4 << 30),
        ] {
            assert_eq!(bytes("memoryQuota", quota).unwrap(), expected, "{quota:?}");
        }
        for wrong in [-1, QUOTA_MAX + 1, i64::MIN, i64::MAX] {
            assert!(bytes("memoryQuota", Some(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(cores("cpuQuota", Some(2)).unwrap(), 2000);
        assert!(cores("cpuQuota", Some(-1)).is_err());
    }
}
