//! The way inside a sandbox.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{RawPathParams, Request, State},
    http::Response,
};

use super::{Runner, find::problem};
use crate::{
    error::{ApiError, ApiResult},
    proxy::{self, Target, Use},
    refusal::ErrorResponse,
};

/// Slashes of `/sandboxes/ID/toolbox`; the next one begins the path inside.
const TOOLBOX_SLASHES: usize = 3;

/// Slashes of `/sandboxes/ID`: there `/proxy/PORT/…` begins.
const PORT_SLASHES: usize = 2;

/// The agent's own API: any method, path and query as they are, streamed both ways; upgrades (WebSocket) pass too.
/// `proxy/PORT/…` leads to a TCP port of the sandbox.
#[utoipa::path(
    method(get, post, put, delete, patch, head, options),
    path = "/sandboxes/{sandboxId}/toolbox/{*path}",
    tag = "toolbox",
    params(("sandboxId" = String, Path), ("path" = String, Path, description = "path of the agent's API")),
    responses(
        (status = 200, description = "whatever the agent answers"),
        (status = 400, body = ErrorResponse),
        (status = 404, body = ErrorResponse),
        (status = 409, body = ErrorResponse, description = "it does not run"),
        (status = 502, body = ErrorResponse, description = "nothing answers on the port"),
    )
)]
pub(super) async fn proxy(
    State(runner): State<Arc<Runner>>,
    parameters: RawPathParams,
    request: Request,
) -> ApiResult<Response<Body>> {
    pass(&runner, &parameters, TOOLBOX_SLASHES, request).await
}

/// A TCP port of a sandbox.
#[utoipa::path(
    method(get, post, put, delete, patch, head, options),
    path = "/sandboxes/{sandboxId}/proxy/{*path}",
    tag = "toolbox",
    params(("sandboxId" = String, Path), ("path" = String, Path, description = "the port, and the path behind it")),
    responses(
        (status = 200, description = "whatever answers on the port"),
        (status = 400, body = ErrorResponse),
        (status = 404, body = ErrorResponse),
        (status = 409, body = ErrorResponse, description = "it does not run"),
        (status = 502, body = ErrorResponse, description = "nothing answers on the port"),
    )
)]
pub(super) async fn port(
    State(runner): State<Arc<Runner>>,
    parameters: RawPathParams,
    request: Request,
) -> ApiResult<Response<Body>> {
    pass(&runner, &parameters, PORT_SLASHES, request).await
}

async fn pass(
    runner: &Runner,
    parameters: &RawPathParams,
    slashes: usize,
    request: Request,
) -> ApiResult<Response<Body>> {
    let id = parameters.iter().find_map(|(name, value)| (name == "sandboxId").then_some(value));
    let view = runner.live(id.ok_or_else(|| ApiError::invalid("bad request: no sandbox is named"))?).await?;
    let target = Target::behind(request.uri(), slashes)?;
    match proxy::pass(&runner.edge, &view.sandbox.id, target, request, Use::Counted).await {
        Ok(answer) => answer,
        Err(error) => Err(problem(error)),
    }
}
