//! The native dialect `/v1`, compatible with the published Sandkasten clients.
//!
//! Reading order: `json` (how requests are read), `wire` (domain to wire), `sessions`, `stats`, `exec` and `stream` (commands),
//! `clean` (what becomes of their output), `files`, `upload`, `workspaces`, `images`, `snapshots`, `jobs` and `events` (long
//! work as it stands and as it goes on), `devices` (console and display), `doors` (secrets of SSH), `toolbox` (the way to the
//! agent inside).

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
};
use sandhaus_sandbox::SandboxId;
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    edge::Edge,
    error::{ApiError, Subject},
};

mod clean;
mod devices;
mod doors;
mod events;
mod exec;
mod files;
mod images;
mod inside;
mod jobs;
mod json;
mod pool;
mod sessions;
mod snapshots;
mod stats;
mod stream;
mod toolbox;
mod upload;
mod wire;
mod workspaces;

pub(crate) use sessions::plain_request;

/// All routes of the dialect.
pub(crate) fn routes() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::new()
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::delete))
        .routes(routes!(stats::stats))
        .routes(routes!(stats::all))
        .routes(routes!(sessions::extend))
        .routes(routes!(sessions::pause))
        .routes(routes!(sessions::resume))
        .routes(routes!(sessions::stop))
        .routes(routes!(sessions::start))
        .routes(routes!(sessions::suspend))
        .routes(routes!(snapshots::fork))
        .routes(routes!(devices::console))
        .routes(routes!(devices::screenshot))
        .routes(routes!(doors::doors))
        .routes(routes!(exec::exec))
        .routes(routes!(stream::exec_stream))
        .routes(routes!(files::write))
        .routes(routes!(files::read))
        .routes(routes!(upload::upload))
        .routes(routes!(files::list))
        .routes(routes!(files::stat))
        .routes(routes!(files::remove))
        .routes(routes!(files::raw_read, files::raw_write))
        .routes(routes!(toolbox::proxy))
        .routes(routes!(images::list))
        .routes(routes!(images::inspect, images::remove))
        .routes(routes!(images::pull))
        .routes(routes!(images::prune))
        .routes(routes!(images::tag))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::inspect, snapshots::remove))
        .routes(routes!(snapshots::push))
        .routes(routes!(snapshots::pull))
        .routes(routes!(snapshots::list_stored))
        .routes(routes!(snapshots::inspect_stored, snapshots::remove_stored))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::inspect))
        .routes(routes!(pool::get))
        .routes(routes!(pool::drain))
        .routes(routes!(pool::fill))
        .routes(routes!(workspaces::list))
        .routes(routes!(workspaces::remove))
        .routes(routes!(workspaces::write))
        .routes(routes!(workspaces::upload))
        .routes(routes!(workspaces::list_files, workspaces::remove_file))
        .routes(routes!(workspaces::stat))
        .routes(routes!(workspaces::read))
        .routes(routes!(workspaces::raw_read, workspaces::raw_write))
}

/// A JSON answer, with the final newline that this API always has.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("wire types serialise");
    text.push(b'\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The `{id}` of a path, parsed.
pub(crate) struct SessionPath(pub(crate) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for SessionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refuse = || ApiError::invalid("invalid session id format");
        let parameters = RawPathParams::from_request_parts(parts, state).await.map_err(|_| refuse())?;
        let text = parameters.iter().find_map(|(name, value)| (name == "id").then_some(value));
        let id = SandboxId::parse(text.ok_or_else(refuse)?);
        id.map(Self).map_err(|error| ApiError::of(Subject::Request, error))
    }
}
