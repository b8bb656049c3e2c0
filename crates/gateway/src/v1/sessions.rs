//! Sessions: make, list, show, end, and what lies between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, Response, StatusCode, Uri},
};
use jiff::Timestamp;
use sandhaus_client::wire::{
    CreateSession, ErrorBody, ExtendSession, Network, Okay, SessionInfo, TTL_SECONDS_MAX,
};
use sandhaus_sandbox::{
    ALLOWED_NETWORKS_MAX, EndReason, EngineName, Error, Goal, ImageName, Kind, NetworkPolicy, OwnerId, Phase,
    PublishedPort, Resources, SandboxId, SandboxView, Seccomp, SecurityProfile, WorkspaceId,
    pool::Acquisition,
    service::{CreateSandbox, ListFilter},
};

use super::{
    SessionPath, json,
    json::{Ignored, Json},
    snapshots::{self, name_snapshots},
    wire::{failure_info, session_info, status},
    workspaces,
};
use crate::{
    ExecMode, V1Config,
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Who owns the sessions of this dialect: it knows one key, so one owner.
pub(super) const OWNER: &str = "v1";

/// Longest image name that this dialect accepts.
const IMAGE_NAME_BYTES_MAX: usize = 64;

/// Most processor cores that may be asked for.
const CPUS_MAX: f64 = 4096.0;

/// Most memory or disk that may be asked for, in MiB.
const MEGABYTES_MAX: i64 = 64 << 20;

/// Most processes that may be asked for.
const PIDS_MAX: i64 = 4 << 20;

/// How long the end of a machine may take to show after it cut a request off.
const LOSS_SHOWS: Duration = Duration::from_secs(2);

/// Most sessions of one page.
const PAGE_MAX: usize = 1000;

/// Header of a page with more behind it: the `cursor` of the next.
const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// Makes a session and answers when it runs.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = CreateSession, responses(
    (status = 201, body = SessionInfo),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST, INVALID_IMAGE, INVALID_WORKSPACE or UNSUPPORTED"),
    (status = 429, body = ErrorBody, description = "no room for another session"),
))]
pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Json(request): Json<CreateSession>,
) -> ApiResult<Response<Body>> {
    let started = Instant::now();
    let wanted = wanted(&edge.v1, request)?;
    if wanted.workspace.is_some() {
        edge.service.check_workspaces().map_err(workspaces::workspace_error)?;
    }
    let (image, snapshot) = (wanted.image.clone(), wanted.snapshot.is_some());
    let acquired = edge.service.acquire(wanted).await.map_err(|error| match (error.kind(), image) {
        (Kind::NotFound, _) if snapshot => ApiError::of(Subject::Snapshot, error),
        (Kind::NotFound, Some(image)) => {
            let message = format!(
                "image not found: {image}; pull it with: sandhaus image pull --name {image} REFERENCE"
            );
            ApiError::new(Kind::NotFound, Subject::NewSession, message)
        }
        _ => ApiError::of(Subject::NewSession, error),
    })?;
    edge.metrics.created(started.elapsed());
    let (source, detail) = match acquired.source {
        Acquisition::Pool => ("pool", None),
        Acquisition::Cold => ("cold", None),
        Acquisition::PoolEmpty => ("cold", Some("pool_empty".to_owned())),
    };
    let mut info = SessionInfo {
        acquire_source: Some(source.to_owned()),
        acquire_detail: detail,
        ..session_info(&acquired.view)
    };
    name_snapshots(&edge, std::slice::from_mut(&mut info)).await;
    Ok(json(StatusCode::CREATED, &info))
}

/// What a request that says nothing asks of the domain.
pub(crate) fn plain_request(config: &V1Config) -> CreateSandbox {
    wanted(config, CreateSession::default()).unwrap_or_else(|_| unreachable!("what is not said is not wrong"))
}

/// A request, checked, in the domain's words.
fn wanted(config: &V1Config, request: CreateSession) -> ApiResult<CreateSandbox> {
    let ttl = time_to_live(request.ttl_seconds)?;
    let snapshot = match request.snapshot.as_str() {
        "" => None,
        _ if !request.image.is_empty() => {
            return Err(ApiError::invalid("name an image or a snapshot, not both"));
        }
        name => Some(snapshots::parse(name)?),
    };
    let workspace = workspace(&request.workspace_id)?;
    let network = network(request.network.as_ref())?;
    let publish =
        request.ports.iter().map(|port| PublishedPort { port: port.port, host_port: port.host_port });
    let publish = publish.collect();
    let seccomp = seccomp(&request.seccomp, config.seccomp)?;
    let security = match request.security.as_str() {
        "" => config.security,
        "strict" => SecurityProfile::Strict,
        "container" => SecurityProfile::Container,
        _ => return Err(ApiError::invalid("security must be \"strict\" or \"container\"")),
    };
    Ok(CreateSandbox {
        owner: OwnerId(OWNER.to_owned()),
        id: None,
        name: (!request.name.is_empty()).then_some(request.name),
        image: image(&request.image)?,
        snapshot,
        engine: (!request.engine.is_empty()).then_some(EngineName(request.engine)),
        resources: Resources {
            cpu_millis: cpu_millis(request.cpus)?,
            memory_bytes: megabytes("memory_mb", request.memory_mb)?,
            pids: pids(request.pids)?,
            disk_bytes: megabytes("disk_mb", request.disk_mb)?,
        },
        network,
        security,
        readonly_root: request.readonly_root.unwrap_or(config.readonly_root),
        env: request.env,
        workdir: (!request.workdir.is_empty()).then_some(request.workdir),
        mounts: Vec::new(),
        entrypoint: request.entrypoint,
        ttl,
        labels: request.labels,
        shell: config.shell,
        warm_shell: request.warm_shell.unwrap_or(config.exec_mode == ExecMode::Stateful),
        seccomp,
        workspace,
        publish,
    })
}

fn time_to_live(seconds: i64) -> ApiResult<Option<Duration>> {
    match seconds {
        ..0 => Err(ApiError::invalid("ttl_seconds must be non-negative")),
        0 => Ok(None),
        1..=TTL_SECONDS_MAX => Ok(Some(Duration::from_secs(seconds.unsigned_abs()))),
        _ => Err(ApiError::invalid("ttl_seconds must not exceed 86400 (24 hours)")),
    }
}

fn network(asked: Option<&Network>) -> ApiResult<Option<NetworkPolicy>> {
    match asked {
        None => Ok(None),
        Some(Network::Mode(mode)) => match mode.as_str() {
            "" => Ok(None),
            "none" => Ok(Some(NetworkPolicy::None)),
            "bridge" => Ok(Some(NetworkPolicy::Bridge)),
            _ => Err(ApiError::invalid(
                "network must be \"none\", \"bridge\" or {\"allow\": [\"ADDRESS/BITS\", ...]}",
            )),
        },
        Some(Network::Allow { allow }) => {
            if allow.len() > ALLOWED_NETWORKS_MAX {
                let message =
                    format!("network.allow has {} networks, the most is {ALLOWED_NETWORKS_MAX}", allow.len());
                return Err(ApiError::invalid(message));
            }
            let networks = allow.iter().map(|text| {
                text.parse().map_err(|_| {
                    ApiError::invalid(format!("network.allow entry {text:?} is not of the form ADDRESS/BITS"))
                })
            });
            Ok(Some(NetworkPolicy::Allow(networks.collect::<ApiResult<_>>()?)))
        }
    }
}

/// A request may ask for more confinement than the server's owner chose, never for less.
fn seccomp(asked: &str, default: Seccomp) -> ApiResult<Seccomp> {
    let strictness = |seccomp: Seccomp| match seccomp {
        Seccomp::Off => 0,
        Seccomp::Mvp => 1,
        Seccomp::Strict => 2,
    };
    let asked = match asked {
        "" => return Ok(default),
        "off" => Seccomp::Off,
        "mvp" => Seccomp::Mvp,
        "strict" => Seccomp::Strict,
        _ => return Err(ApiError::invalid("seccomp must be \"strict\", \"mvp\" or \"off\"")),
    };
    if strictness(asked) < strictness(default) {
        let message = "seccomp must not be weaker than the server's default";
        return Err(ApiError::new(Kind::Forbidden, Subject::Request, message));
    }
    Ok(asked)
}

fn image(name: &str) -> ApiResult<Option<ImageName>> {
    if name.is_empty() {
        return Ok(None);
    }
    let refuse = || ApiError::new(Kind::Invalid, Subject::Image, format!("invalid image name: {name:?}"));
    if name.len() > IMAGE_NAME_BYTES_MAX {
        return Err(refuse());
    }
    ImageName::parse(name).map(Some).map_err(|_| refuse())
}

/// The workspace to show, if one is named.
fn workspace(id: &str) -> ApiResult<Option<WorkspaceId>> {
    if id.is_empty() {
        return Ok(None);
    }
    WorkspaceId::parse(id).map(Some).map_err(|error| ApiError::of(Subject::Request, error))
}

fn cpu_millis(cpus: f64) -> ApiResult<u32> {
    if !(0.0..=CPUS_MAX).contains(&cpus) {
        return Err(ApiError::invalid(format!("cpus must be between 0 and {CPUS_MAX}")));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked just above"
    )]
    let millis = (cpus * 1000.0).round() as u32;
    // Zero means the default, so that what is asked for is never rounded down to it.
    Ok(if cpus > 0.0 { millis.max(1) } else { 0 })
}

fn megabytes(name: &str, value: i64) -> ApiResult<u64> {
    match value {
        ..0 => Err(ApiError::invalid(format!("{name} must be non-negative"))),
        0..=MEGABYTES_MAX => Ok(value.unsigned_abs() << 20),
        _ => Err(ApiError::invalid(format!("{name} must not exceed {MEGABYTES_MAX}"))),
    }
}

fn pids(value: i64) -> ApiResult<u32> {
    match value {
        ..0 => Err(ApiError::invalid("pids must be non-negative")),
        0..=PIDS_MAX => Ok(u32::try_from(value).expect("PIDS_MAX fits")),
        _ => Err(ApiError::invalid(format!("pids must not exceed {PIDS_MAX}"))),
    }
}

/// Sessions that live, newest first; with `status=all` also those that have ended.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", params(
    ("status" = Option<String>, Query, description = "`all`: also sessions that have ended"),
    ("label" = Option<Vec<String>>, Query, description = "`key=value`, may be given several times: only sessions with these labels"),
    ("limit" = Option<u32>, Query, description = "at most so many, 1 to 1000; the header X-Next-Cursor then names the next page"),
    ("cursor" = Option<String>, Query, description = "the page after this session"),
), responses((status = 200, body = Vec<SessionInfo>), (status = 400, body = ErrorBody)))]
pub(super) async fn list(State(edge): State<Arc<Edge>>, uri: Uri) -> ApiResult<Response<Body>> {
    let filter = filter(&uri)?;
    let limit = filter.limit;
    let views = edge.service.list(filter).await.map_err(|error| ApiError::of(Subject::Session, error))?;
    let mut infos: Vec<SessionInfo> = views.iter().map(session_info).collect();
    name_snapshots(&edge, &mut infos).await;
    let mut response = json(StatusCode::OK, &infos);
    if let Some(last) = infos.last().filter(|_| limit > 0 && infos.len() >= limit) {
        let cursor = HeaderValue::from_str(&last.id).expect("an id is made of hex digits and hyphens");
        response.headers_mut().insert(NEXT_CURSOR, cursor);
    }
    Ok(response)
}

fn filter(uri: &Uri) -> ApiResult<ListFilter> {
    let mut filter = ListFilter::default();
    for (name, value) in super::files::query_pairs(uri)? {
        match name.as_str() {
            "status" if value == "all" => filter.with_ended = true,
            "status" if value.is_empty() || value == "live" => {}
            "status" => return Err(ApiError::invalid("status must be \"live\" or \"all\"")),
            "label" => {
                let (key, value) = value
                    .split_once('=')
                    .ok_or_else(|| ApiError::invalid("label must have the form key=value"))?;
                filter.labels.insert(key.to_owned(), value.to_owned());
            }
            "limit" => {
                filter.limit =
                    value.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit)).ok_or_else(|| {
                        ApiError::invalid(format!("limit must be between 1 and {PAGE_MAX}"))
                    })?;
            }
            "cursor" if value.is_empty() => {}
            "cursor" => {
                let after = SandboxId::parse(&value);
                filter.after =
                    Some(after.map_err(|_| ApiError::invalid("cursor must be the id of a session"))?);
            }
            _ => {}
        }
    }
    Ok(filter)
}

/// One session, live or ended.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
))]
pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
) -> ApiResult<Response<Body>> {
    let view = match edge.service.get(&id).await {
        Ok(view) => view,
        Err(error) => return Err(session_error(&edge, &id, error).await),
    };
    let mut info = session_info(&view);
    let stateful = edge.v1.exec_mode == ExecMode::Stateful;
    if stateful && view.ended.is_none() && view.status.phase == Phase::Running {
        // Where the shell stands is known to the shell alone. If it cannot say, the start directory is the answer.
        if let Ok(toolbox) = edge.service.toolbox(&id).await
            && let Ok(shell) = toolbox.shell_info(sandhaus_protocol::shell::DEFAULT).await
            && !shell.cwd.is_empty()
        {
            info.cwd = shell.cwd;
        }
    }
    name_snapshots(&edge, std::slice::from_mut(&mut info)).await;
    Ok(json(StatusCode::OK, &info))
}

/// Ends a session and answers when nothing of it is left. One that has ended already is success.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = Okay),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
))]
pub(super) async fn delete(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    match edge.service.delete(&id).await {
        Ok(()) => Ok(json(StatusCode::OK, &Okay { ok: true })),
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}

/// Has a session live longer: until `ttl_seconds` from now at least. Its end only ever moves away, and every use moves
/// it by the session's own time to live anyway.
#[utoipa::path(post, path = "/v1/sessions/{id}/extend", tag = "sessions", params(("id" = String, Path)), request_body = ExtendSession, responses(
    (status = 200, body = SessionInfo),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    (status = 410, body = ErrorBody, description = "SESSION_EXPIRED"),
))]
pub(super) async fn extend(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    Json(request): Json<ExtendSession>,
) -> ApiResult<Response<Body>> {
    let ttl = time_to_live(request.ttl_seconds)?;
    match edge.service.extend(&id, ttl).await {
        Ok(view) => Ok(json(StatusCode::OK, &session_info(&view))),
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}

/// Freezes a session in memory.
#[utoipa::path(post, path = "/v1/sessions/{id}/pause", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
))]
pub(super) async fn pause(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    set_goal(&edge, &id, Goal::Paused).await
}

/// Thaws a session.
#[utoipa::path(post, path = "/v1/sessions/{id}/resume", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
))]
pub(super) async fn resume(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    set_goal(&edge, &id, Goal::Running).await
}

/// Writes a session's memory to disk and lets go of the memory: `start` goes on where it was.
#[utoipa::path(post, path = "/v1/sessions/{id}/suspend", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: the session's engine cannot"),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody),
))]
pub(super) async fn suspend(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    set_goal(&edge, &id, Goal::Suspended).await
}

/// Ends a session's machine and keeps its disk.
#[utoipa::path(post, path = "/v1/sessions/{id}/stop", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
))]
pub(super) async fn stop(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    set_goal(&edge, &id, Goal::Stopped).await
}

/// Starts a stopped session again, on its disk; a suspended one goes on where it was.
#[utoipa::path(post, path = "/v1/sessions/{id}/start", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = SessionInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
))]
pub(super) async fn start(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    _: Ignored,
) -> ApiResult<Response<Body>> {
    set_goal(&edge, &id, Goal::Running).await
}

async fn set_goal(edge: &Edge, id: &SandboxId, goal: Goal) -> ApiResult<Response<Body>> {
    match edge.service.set_goal(id, goal).await {
        Ok(view) => Ok(json(StatusCode::OK, &session_info(&view))),
        Err(error) => Err(session_error(edge, id, error).await),
    }
}

/// An error about a session in the words that the clients expect: if it does not run, what it does.
pub(super) async fn session_error(edge: &Edge, id: &SandboxId, error: Error) -> ApiError {
    let about = |kind, message| ApiError::new(kind, Subject::Machine, message);
    match error.kind() {
        Kind::NotFound => about(Kind::NotFound, format!("session not found: {id}")),
        // Its machine may be gone, which shows a moment later.
        Kind::Unavailable => match edge.service.after_loss(id, LOSS_SHOWS).await {
            Ok(view) if view.status.failure.is_some() => not_running(id, &view),
            _ => ApiError::of(Subject::Machine, error),
        },
        Kind::Conflict => match edge.service.after_loss(id, LOSS_SHOWS).await {
            Ok(view) => not_running(id, &view),
            Err(_) => ApiError::of(Subject::Machine, error),
        },
        Kind::Gone => match edge.service.get(id).await {
            // One that is past its time may still be on its way out.
            Ok(view) if !was_deleted(&view) => about(Kind::Gone, format!("session expired: {id}")),
            Ok(view) => not_running(id, &view),
            Err(_) => ApiError::of(Subject::Machine, error),
        },
        _ => ApiError::of(Subject::Machine, error),
    }
}

/// How it stands, and why, if it ended by itself.
fn not_running(id: &SandboxId, view: &SandboxView) -> ApiError {
    let message = format!("session not running: {id} (status={})", status(view));
    match &view.status.failure {
        Some(failure) => {
            let details = serde_json::json!({ "failure": failure_info(failure) });
            ApiError::new(Kind::Conflict, Subject::Machine, format!("{message}: {}", failure.message))
                .with_details(details)
        }
        None => ApiError::new(Kind::Conflict, Subject::Machine, message),
    }
}

fn was_deleted(view: &SandboxView) -> bool {
    match view.ended {
        Some(ended) => ended.reason == EndReason::Deleted,
        None => {
            let now_ms = Timestamp::now().as_millisecond();
            view.sandbox.deadlines.expires_at_ms.is_none_or(|expires_at_ms| expires_at_ms > now_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn message<T>(result: ApiResult<T>) -> String {
        result.err().map(|error| error.public_message("")).unwrap_or_default()
    }

    #[test]
    fn workspace_ids() {
        assert_eq!(workspace("").unwrap(), None);
        assert_eq!(workspace("sandkasten-ws-user-123").unwrap().unwrap().as_str(), "user-123");
        for (id, expected) in [
            ("a", "workspace_id must be at least 2 characters"),
            (&"a".repeat(65), "workspace_id must not exceed 64 characters"),
            ("-ab", "cannot start or end with a hyphen"),
            ("ab-", "cannot start or end with a hyphen"),
            ("../../victim", "workspace_id must contain only lowercase letters, numbers, and hyphens"),
            ("UPPER", "workspace_id must contain only lowercase letters"),
        ] {
            let error = workspace(id).unwrap_err();
            assert_eq!(error.code(), "INVALID_REQUEST", "{id}");
            assert!(error.public_message("").contains(expected), "{id}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(cpu_millis(0.0).unwrap(), 0);
        assert_eq!(cpu_millis(1.5).unwrap(), 1500);
        assert_eq!(cpu_millis(0.000_01).unwrap(), 1);
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(cpu_millis(wrong).is_err(), "{wrong}");
        }
        assert_eq!(megabytes("memory_mb", 512).unwrap(), 512 << 20);
        assert_eq!(message(megabytes("memory_mb", -1)), "memory_mb must be non-negative");
        assert!(megabytes("disk_mb", i64::MAX).is_err());
        assert!(pids(i64::MAX).is_err());
    }

    #[test]
    fn filters() {
        let all = filter(&Uri::from_static(
            "/?status=all&limit=2&label=a%3Db&label=c=d&cursor=0123abcd-012&future=1",
        ))
        .unwrap();
        assert!(all.with_ended);
        assert_eq!(all.limit, 2);
        assert_eq!(all.labels, BTreeMap::from([("a".into(), "b".into()), ("c".into(), "d".into())]));
        assert_eq!(all.after.unwrap().as_str(), "0123abcd-012");
        for wrong in ["limit=0", "limit=x", "limit=1001", "status=odd", "label=x", "cursor=../x"] {
            assert!(filter(&format!("/?{wrong}").parse().unwrap()).is_err(), "{wrong}");
        }
    }
}
