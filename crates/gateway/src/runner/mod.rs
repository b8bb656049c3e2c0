//! The dialect of a Daytona runner, on a listener of its own: what a control plane of that product, or a person with
//! `curl`, asks of one host.
//!
//! Reading order: `json` (how requests are read and answers look), `wire` (what travels), `find` (from the ids of callers to
//! sandboxes), `sandboxes` (make, show, start, stop, end), `changes` (limits, reach, recovery), `backups`, `snapshots`, `pulls`
//! (what a caller can hear of a pull later), `toolbox` (the way inside), `host` (health, figures, the document).

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
    middleware::{self, Next},
    response::IntoResponse,
};
use sandhaus_protocol::boot::ShellPreference;
use sandhaus_sandbox::{EngineName, Kind, Seccomp, Service};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    body::Unread,
    edge::{Edge, REQUEST_ID, RequestId},
    error::{ApiError, Failed, Subject},
    refusal, server,
};

mod backups;
mod changes;
mod find;
mod host;
mod json;
mod pulls;
mod sandboxes;
mod snapshots;
mod toolbox;
mod wire;

use backups::Backups;
use pulls::Pulls;

/// The same key as in `Authorization`, for callers whose proxies keep that header for themselves.
const OTHER_AUTHORIZATION: HeaderName = HeaderName::from_static("x-daytona-authorization");

/// Routes that need no key: whether the runner is there.
const PUBLIC_ROUTES: &[&str] = &["/"];

/// What the runner's edge needs to know.
#[derive(Clone)]
pub struct RunnerConfig {
    /// The key that callers must show; none only on loopback.
    pub api_key: Option<String>,
    /// What each class of sandboxes means here.
    pub classes: BTreeMap<String, SandboxClass>,
    /// Shell of sandboxes.
    pub shell: ShellPreference,
    /// Filter of system calls of sandboxes.
    pub seccomp: Seccomp,
    /// How busy this host is.
    pub load: Arc<dyn Fn() -> HostLoad + Send + Sync>,
}

/// A class of sandboxes, as callers name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxClass {
    /// The engine that runs them.
    pub engine: EngineName,
    /// Where what they are made of is pulled from.
    pub origin: Origin,
}

/// Where what sandboxes are made of is pulled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A registry of images.
    Registry,
    /// The store of snapshots.
    Store,
}

/// How busy a host is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostLoad {
    /// The load average of the last minute.
    pub cpu_load_average: f64,
    /// Use of its processors, in percent.
    pub cpu_percent: f64,
    /// Use of its memory, in percent.
    pub memory_percent: f64,
    /// Use of the disk that holds the data directory, in percent.
    pub disk_percent: f64,
}

/// What handlers share.
pub(crate) struct Runner {
    edge: Arc<Edge>,
    config: RunnerConfig,
    pulls: Pulls,
    backups: Backups,
}

impl Runner {
    fn new(service: Service, config: RunnerConfig) -> Self {
        let edge = Arc::new(Edge::without_page(service, config.api_key.clone(), PUBLIC_ROUTES));
        Self { edge, config, pulls: Pulls::default(), backups: Backups::default() }
    }

    fn service(&self) -> &Service {
        &self.edge.service
    }
}

/// Serves until `shutdown`, as [`crate::serve`] does. Without a key only a loopback listener is served.
pub async fn serve(
    listener: tokio::net::TcpListener,
    service: Service,
    config: RunnerConfig,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    crate::check_listener(&listener, config.api_key.as_deref())?;
    let runner = Arc::new(Runner::new(service, config));
    let edge = Arc::clone(&runner.edge);
    server::run(listener, edge, router(runner), shutdown).await
}

fn documented() -> OpenApiRouter<Arc<Runner>> {
    OpenApiRouter::with_openapi(host::preface())
        .routes(routes!(host::health))
        .routes(routes!(host::info))
        .routes(routes!(host::metrics))
        .routes(routes!(host::document))
        .routes(routes!(sandboxes::create))
        .routes(routes!(sandboxes::info))
        .routes(routes!(sandboxes::start))
        .routes(routes!(sandboxes::stop))
        .routes(routes!(sandboxes::destroy))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(changes::resize))
        .routes(routes!(backups::backup))
        .routes(routes!(changes::recover))
        .routes(routes!(changes::is_recoverable))
        .routes(routes!(changes::network_settings, changes::update_network_settings))
        .routes(routes!(snapshots::of_sandbox))
        .routes(routes!(snapshots::create))
        .routes(routes!(snapshots::push))
        .routes(routes!(snapshots::pull))
        .routes(routes!(snapshots::build))
        .routes(routes!(snapshots::tag))
        .routes(routes!(snapshots::inspect))
        .routes(routes!(snapshots::exists))
        .routes(routes!(snapshots::info))
        .routes(routes!(snapshots::logs))
        .routes(routes!(snapshots::remove))
        .routes(routes!(toolbox::proxy))
        .routes(routes!(toolbox::port))
}

fn router(runner: Arc<Runner>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&runner), pass))
        .with_state(runner)
}

async fn unknown() -> ApiError {
    ApiError::new(Kind::NotFound, Subject::Request, "not found: there is no such route")
}

async fn wrong_method() -> ApiError {
    ApiError::invalid("the route does not take this method")
        .with_status(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED")
}

/// The way in and out: names the request, asks for the key, measures, renders and logs what failed.
async fn pass(State(runner): State<Arc<Runner>>, mut request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let unread = Unread::watch(request.body_mut());
    // Whoever shows the key here keeps the usual header for what is inside.
    let mut shown = request.headers().clone();
    if let Some(key) = request.headers_mut().remove(OTHER_AUTHORIZATION) {
        shown.insert(header::AUTHORIZATION, key);
    }
    let mut response = match runner.edge.guard.admit(route, &method, request.uri(), &shown) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let route = route.unwrap_or("unknown");
    if let Some(Failed(error)) = response.extensions_mut().remove::<Failed>() {
        error.log(id.as_str(), route);
        response = refusal::answer(&error, id.as_str(), &method, &path);
    }
    let taken = started.elapsed();
    runner.edge.metrics.request(&method, route, response.status(), taken);
    tracing::debug!(
        request_id = id.as_str(),
        %method,
        route,
        status = response.status().as_u16(),
        taken_us = taken.as_micros(),
        "request answered"
    );
    response.headers_mut().insert(REQUEST_ID, id.value());
    // The rest of a body that nobody wants cannot be told from a next request.
    let refused = response.status().is_client_error() || response.status().is_server_error();
    if refused && unread.is_some_and(|unread| unread.is_so()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
