//! Use of resources: of one session, and of all that run at once, so that whoever watches many asks once.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use futures::StreamExt as _;
use sandhaus_client::wire::{AllStats, ErrorBody, Stats};
use sandhaus_sandbox::{Phase, SandboxId, service::ListFilter};

use super::{SessionPath, json, sessions::session_error};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Most sessions of one answer: the newest.
const SESSIONS_MAX: usize = 1000;

/// Sessions asked at once.
const ASKED_AT_ONCE: usize = 8;

/// Use of resources.
#[utoipa::path(get, path = "/v1/sessions/{id}/stats", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = Stats),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
))]
pub(super) async fn stats(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
) -> ApiResult<Response<Body>> {
    match edge.service.stats(&id).await {
        Ok(stats) => Ok(json(StatusCode::OK, &wire(stats))),
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}

/// Use of resources of every session that runs or is paused; of the newest 1000, where there are more.
#[utoipa::path(get, path = "/v1/stats", tag = "sessions", responses((status = 200, body = AllStats)))]
pub(super) async fn all(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let views = edge.service.list(ListFilter::default()).await;
    let views = views.map_err(|error| ApiError::of(Subject::Session, error))?;
    let there = views
        .into_iter()
        .filter(|view| matches!(view.status.phase, Phase::Running | Phase::Paused))
        .map(|view| view.sandbox.id)
        .take(SESSIONS_MAX);
    let ask = async |id: SandboxId| {
        // One that has ended since the list was made has nothing to say.
        let stats = edge.service.stats(&id).await.ok()?;
        Some((id.to_string(), wire(stats)))
    };
    let asked = futures::stream::iter(there).map(ask).buffer_unordered(ASKED_AT_ONCE);
    let sessions = asked.filter_map(std::future::ready).collect::<Vec<_>>().await;
    Ok(json(StatusCode::OK, &AllStats { sessions: sessions.into_iter().collect() }))
}

fn wire(stats: sandhaus_sandbox::Stats) -> Stats {
    Stats {
        memory_bytes: stats.memory_bytes,
        memory_limit: stats.memory_limit_bytes.filter(|limit| *limit > 0),
        cpu_usage_usec: stats.cpu_usage_usec,
        pids: stats.pids,
        oom_kills: stats.oom_kills,
    }
}
