//! Changes to sandboxes that are there: limits, reach, recovery.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_sandbox::{ALLOWED_NETWORKS_MAX, Goal, NetworkPolicy, Resources, engine::Change};

use super::{
    Runner,
    find::{problem, required, unsupported},
    json::{Json, answer, sentence},
    sandboxes::{bytes, cores},
    wire::{IsRecoverable, IsRecoverableDto, NetworkSettings, RecoverSandboxDto, ResizeSandboxDto},
};
use crate::{
    error::{ApiError, ApiResult},
    refusal::ErrorResponse,
};

/// What of an error's text tells that a disk is full.
const FULL_DISK: [&str; 3] = ["no space left on device", "storage limit", "disk quota exceeded"];

/// By how much of its first size a full disk grows at a time, in percent.
const RECOVERY_STEP_PERCENT: u64 = 5;

/// By how much of it at most.
const RECOVERY_MOST_PERCENT: u64 = 10;

/// Gives a sandbox more of what it has. Less is refused.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/resize", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = ResizeSandboxDto, responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
))]
pub(super) async fn resize(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Json(request): Json<ResizeSandboxDto>,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    if request.gpu.is_some_and(|gpus| gpus != 0) {
        return Err(unsupported("a graphics processor"));
    }
    let now = view.sandbox.spec.resources;
    let wanted = Resources {
        cpu_millis: larger("cpu", now.cpu_millis, cores("cpu", request.cpu)?)?,
        memory_bytes: larger("memory", now.memory_bytes, bytes("memory", request.memory)?)?,
        disk_bytes: larger("disk", now.disk_bytes, bytes("disk", request.disk)?)?,
        pids: now.pids,
    };
    if wanted != now {
        let started = Instant::now();
        let changed = runner.service().change(&view.sandbox.id, Change::Resources(wanted)).await;
        runner.edge.metrics.operation("resize", &changed, started.elapsed());
        changed.map_err(problem)?;
    }
    Ok(sentence(StatusCode::OK, "Sandbox resized"))
}

/// What is asked for, unless that is less; none asked for: as it is.
fn larger<T: Copy + PartialOrd + Default>(name: &str, now: T, asked: T) -> ApiResult<T> {
    if asked == T::default() {
        return Ok(now);
    }
    if asked < now {
        return Err(ApiError::invalid(format!("bad request: {name} can only grow")));
    }
    Ok(asked)
}

/// What a sandbox may reach.
#[utoipa::path(get, path = "/sandboxes/{sandboxId}/network-settings", tag = "sandboxes", params(("sandboxId" = String, Path)), responses(
    (status = 200, body = NetworkSettings), (status = 404, body = ErrorResponse),
))]
pub(super) async fn network_settings(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    let list = match &view.sandbox.spec.network {
        NetworkPolicy::Allow(networks) => {
            let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
            Some(networks.join(","))
        }
        NetworkPolicy::None | NetworkPolicy::Bridge | NetworkPolicy::Host => None,
    };
    let settings = NetworkSettings {
        network_block_all: Some(view.sandbox.spec.network == NetworkPolicy::None),
        network_allow_list: list,
        ..NetworkSettings::default()
    };
    Ok(answer(StatusCode::OK, &settings))
}

/// Changes what a sandbox may reach, at once.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/network-settings", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = NetworkSettings, responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
))]
pub(super) async fn update_network_settings(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Json(request): Json<NetworkSettings>,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    if request.network_limit_egress == Some(true) {
        return Err(unsupported("limiting how much a sandbox sends"));
    }
    let policy = network_policy(
        request.network_block_all,
        request.network_allow_list.as_deref(),
        request.domain_allow_list.as_deref(),
    )?;
    if let Some(policy) = policy.filter(|policy| *policy != view.sandbox.spec.network) {
        let started = Instant::now();
        let changed = runner.service().change(&view.sandbox.id, Change::Network(policy)).await;
        runner.edge.metrics.operation("update_network_settings", &changed, started.elapsed());
        changed.map_err(problem)?;
    }
    Ok(sentence(StatusCode::OK, "Network settings updated"))
}

/// The policy that these words mean; nothing said: `None`. To reach nothing comes before a list.
pub(super) fn network_policy(
    block_all: Option<bool>,
    allow_list: Option<&str>,
    domains: Option<&str>,
) -> ApiResult<Option<NetworkPolicy>> {
    if domains.is_some_and(|domains| !domains.trim().is_empty()) {
        return Err(unsupported("an allow list of domains"));
    }
    if block_all == Some(true) {
        return Ok(Some(NetworkPolicy::None));
    }
    let Some(list) = allow_list.map(str::trim) else {
        return Ok(block_all.map(|_| NetworkPolicy::Bridge));
    };
    if list.is_empty() {
        return Ok(Some(NetworkPolicy::Bridge));
    }
    let entries: Vec<&str> = list.split(',').map(str::trim).collect();
    if entries.len() > ALLOWED_NETWORKS_MAX {
        let message = format!(
            "bad request: networkAllowList has {} networks, the most is {ALLOWED_NETWORKS_MAX}",
            entries.len()
        );
        return Err(ApiError::invalid(message));
    }
    let networks = entries.into_iter().map(|entry| {
        entry.parse().map_err(|_| {
            ApiError::invalid(format!(
                "bad request: networkAllowList entry {entry:?} is not of the form ADDRESS/BITS"
            ))
        })
    });
    Ok(Some(NetworkPolicy::Allow(networks.collect::<ApiResult<_>>()?)))
}

/// Whether it may help to recover a sandbox that failed so.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/is-recoverable", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = IsRecoverableDto, responses(
    (status = 200, body = IsRecoverable), (status = 400, body = ErrorResponse),
))]
pub(super) async fn is_recoverable(Json(request): Json<IsRecoverableDto>) -> ApiResult<Response<Body>> {
    let recoverable = is_recoverable_reason(&required("errorReason", request.error_reason)?);
    Ok(answer(StatusCode::OK, &IsRecoverable { recoverable }))
}

/// It tells of a full disk.
pub(super) fn is_recoverable_reason(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    FULL_DISK.iter().any(|words| reason.contains(words))
}

/// Gives a sandbox whose disk is full a little more, and starts it again.
#[utoipa::path(post, path = "/sandboxes/{sandboxId}/recover", tag = "sandboxes", params(("sandboxId" = String, Path)), request_body = RecoverSandboxDto, responses(
    (status = 200, body = String), (status = 400, body = ErrorResponse), (status = 404, body = ErrorResponse),
))]
pub(super) async fn recover(
    State(runner): State<Arc<Runner>>,
    Path(id): Path<String>,
    Json(request): Json<RecoverSandboxDto>,
) -> ApiResult<Response<Body>> {
    let view = runner.live(&id).await?;
    let reasons = [request.error_reason.as_deref(), request.backup_error_reason.as_deref()];
    if !reasons.into_iter().flatten().any(is_recoverable_reason) {
        return Err(ApiError::invalid("bad request: the sandbox is not recoverable: its disk is not full"));
    }
    let now = view.sandbox.spec.resources;
    let first = match bytes("storageQuota", request.storage_quota)? {
        0 => now.disk_bytes,
        first => first,
    };
    let grown = next_size(first, now.disk_bytes).ok_or_else(|| {
        ApiError::invalid(format!(
            "bad request: the disk has grown by {RECOVERY_MOST_PERCENT} % already, and no more is given"
        ))
    })?;
    let id = &view.sandbox.id;
    let started = Instant::now();
    let recovered = async {
        let wanted = Resources { disk_bytes: grown, ..now };
        runner.service().change(id, Change::Resources(wanted)).await?;
        runner.service().set_goal(id, Goal::Running).await
    }
    .await;
    runner.edge.metrics.operation("recover", &recovered, started.elapsed());
    recovered.map_err(problem)?;
    Ok(sentence(StatusCode::OK, "Sandbox recovered"))
}

/// How large a full disk becomes that was `first` large and is `now`; `None`: no larger.
fn next_size(first: u64, now: u64) -> Option<u64> {
    let most = first + first / 100 * RECOVERY_MOST_PERCENT;
    let next = now.max(first) + first / 100 * RECOVERY_STEP_PERCENT;
    (first > 0 && next <= most).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach() {
        let policy = |block, list| network_policy(block, list, None).unwrap();
        let allow = |list: &[&str]| {
            Some(NetworkPolicy::Allow(list.iter().map(|network| network.parse().unwrap()).collect()))
        };
        assert_eq!(policy(None, None), None);
        assert_eq!(policy(Some(true), None), Some(NetworkPolicy::None));
        assert_eq!(policy(Some(true), Some("10.0.0.0/8")), Some(NetworkPolicy::None));
        assert_eq!(policy(Some(false), None), Some(NetworkPolicy::Bridge));
        assert_eq!(policy(None, Some("")), Some(NetworkPolicy::Bridge));
        assert_eq!(policy(None, Some("1.2.3.0/24, 10.0.0.0/8")), allow(&["1.2.3.0/24", "10.0.0.0/8"]));
        for wrong in ["x", "1.2.3.4", "1.2.3.0/24,", "1.2.3.0/33"] {
            assert!(network_policy(None, Some(wrong), None).is_err(), "{wrong}");
        }
        assert!(network_policy(None, Some(&vec!["1.2.3.0/24"; 65].join(",")), None).is_err());
        assert!(network_policy(None, None, Some("*.example.com")).is_err());
        assert_eq!(network_policy(None, None, Some("")).unwrap(), None);
    }

    #[test]
    fn a_full_disk_grows_twice() {
        const GIB: u64 = 1 << 30;
        let first = 10 * GIB;
        let once = next_size(first, first).unwrap();
        assert_eq!(once, first + first / 100 * 5);
        let twice = next_size(first, once).unwrap();
        assert_eq!(twice, first + first / 100 * 10);
        assert_eq!(next_size(first, twice), None);
        assert_eq!(next_size(0, 0), None, "what has no limit is not full");
    }

    #[test]
    fn what_tells_of_a_full_disk() {
        for reason in ["write: No Space Left On Device", "storage limit reached", "Disk quota exceeded (122)"]
        {
            assert!(is_recoverable_reason(reason), "{reason}");
        }
        assert!(!is_recoverable_reason("exit status 1"));
    }
}
