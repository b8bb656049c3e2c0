//! `/toolbox/{id}/…`: the agent's API of a sandbox where the compatible clients look for it, one path for every sandbox of
//! this server. A suspended sandbox wakes up for it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{RawPathParams, Request, State},
    http::{HeaderName, Response},
};
use sandhaus_sandbox::SandboxId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
    proxy::{self, Target, Use},
    refusal::ErrorResponse,
};

/// The route, by which it is known outside this file that it speaks the compatible contract.
pub(crate) const ROUTE: &str = "/toolbox/{id}/{*path}";

/// Slashes of `/toolbox/ID`; the next one begins the agent's path.
const SLASHES: usize = 2;

/// A request that is not to count as use of the sandbox says so with `true`.
const UNCOUNTED: HeaderName = HeaderName::from_static("x-daytona-skip-last-activity-update");

/// The routes of this dialect.
pub(crate) fn routes() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::new().routes(routes!(call))
}

/// The agent's own API: any method, path and query as they are, streamed both ways; upgrades (WebSocket) pass too.
/// `proxy/PORT/…` leads to a TCP port of the sandbox. A suspended sandbox is brought back first.
#[utoipa::path(
    method(get, post, put, delete, patch, head, options),
    path = ROUTE,
    tag = "agent",
    params(("id" = String, Path), ("path" = String, Path, description = "path of the agent's API")),
    responses(
        (status = 200, description = "whatever the agent answers"),
        (status = 400, body = ErrorResponse),
        (status = 404, body = ErrorResponse),
        (status = 409, body = ErrorResponse, description = "it does not run"),
        (status = 502, body = ErrorResponse, description = "nothing answers on the port"),
    )
)]
async fn call(
    State(edge): State<Arc<Edge>>,
    parameters: RawPathParams,
    request: Request,
) -> ApiResult<Response<Body>> {
    let id = parameters.iter().find_map(|(name, value)| (name == "id").then_some(value)).unwrap_or_default();
    let about = |error| ApiError::of(Subject::Session, error);
    let id = SandboxId::parse(id).map_err(about)?;
    let target = Target::behind(request.uri(), SLASHES)?;
    edge.service.wake(&id).await.map_err(about)?;
    let uncounted = request.headers().get(UNCOUNTED).is_some_and(|value| value.as_bytes() == b"true");
    let counted = if uncounted { Use::Uncounted } else { Use::Counted };
    proxy::pass(&edge, &id, target, request, counted).await.map_err(about)?
}
