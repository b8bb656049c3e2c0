//! The way to the agent inside a session.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::Response,
};
use sandhaus_client::wire::ErrorBody;

use super::{SessionPath, sessions::session_error};
use crate::{
    edge::Edge,
    error::ApiResult,
    proxy::{self, Target, Use},
};

/// Slashes of `/v1/sessions/ID/toolbox`; the next one begins the agent's path.
const SLASHES: usize = 4;

/// The agent's own API: any method, path and query as they are, streamed both ways; upgrades (WebSocket) pass too.
/// `proxy/PORT/…` leads to a TCP port of the session. A client that hangs up closes the request inside.
#[utoipa::path(
    method(get, post, put, delete, patch, head, options),
    path = "/v1/sessions/{id}/toolbox/{*path}",
    tag = "toolbox",
    params(("id" = String, Path), ("path" = String, Path, description = "path of the agent's API")),
    responses(
        (status = 200, description = "whatever the agent answers"),
        (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
        (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
        (status = 502, body = ErrorBody, description = "BAD_GATEWAY: nothing answers on the port"),
    )
)]
pub(super) async fn proxy(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    request: Request,
) -> ApiResult<Response<Body>> {
    let target = Target::behind(request.uri(), SLASHES)?;
    match proxy::pass(&edge, &id, target, request, Use::Counted).await {
        Ok(answer) => answer,
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}
