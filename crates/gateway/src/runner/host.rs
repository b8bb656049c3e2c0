//! Health, figures, and the document of the API.

use std::sync::{Arc, OnceLock};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, Response, StatusCode, header},
};
use sandhaus_sandbox::{Phase, service::ListFilter};
use utoipa::openapi::{
    InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{
    Runner, documented,
    find::problem,
    json::answer,
    wire::{Health, RunnerInfo, RunnerMetrics, ServiceHealth},
};
use crate::error::{ApiError, ApiResult, Subject};

/// The version of this server.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bytes in what callers call a GiB, and thousandths in a core.
const GIBIBYTE: f64 = 1_073_741_824.0;
const MILLIS: f64 = 1000.0;

/// Whether the runner answers at all. Needs no key.
#[utoipa::path(get, path = "/", tag = "runner", security(()), responses((status = 200, body = Health)))]
pub(super) async fn health() -> Response<Body> {
    answer(StatusCode::OK, &Health { status: "ok", version: VERSION })
}

/// How the runner is, and how busy.
#[utoipa::path(get, path = "/info", tag = "runner", responses((status = 200, body = RunnerInfo)))]
pub(super) async fn info(State(runner): State<Arc<Runner>>) -> ApiResult<Response<Body>> {
    let service = runner.service();
    let live = service.list(ListFilter::default()).await.map_err(problem)?;
    let owned = || live.iter().filter(|view| !view.is_idle());
    let up = || owned().filter(|view| matches!(view.status.phase, Phase::Running | Phase::Paused));
    let images = service.images().await.map_err(|error| ApiError::of(Subject::Image, error))?.len();
    let snapshots = service.snapshots().await.map_err(|error| ApiError::of(Subject::Snapshot, error))?.len();
    let load = {
        let load = Arc::clone(&runner.config.load);
        let unclear =
            |_| ApiError::new(sandhaus_sandbox::Kind::Internal, Subject::Request, "look at the load");
        tokio::task::spawn_blocking(move || load()).await.map_err(unclear)?
    };
    let gibibytes = |bytes: u64| number(bytes) / GIBIBYTE;
    let metrics = RunnerMetrics {
        current_cpu_load_average: load.cpu_load_average,
        current_cpu_usage_percentage: load.cpu_percent,
        current_memory_usage_percentage: load.memory_percent,
        current_disk_usage_percentage: load.disk_percent,
        current_allocated_cpu: up()
            .map(|view| f64::from(view.sandbox.spec.resources.cpu_millis) / MILLIS)
            .sum(),
        current_allocated_memory: up().map(|view| gibibytes(view.sandbox.spec.resources.memory_bytes)).sum(),
        current_allocated_disk: owned().map(|view| gibibytes(view.sandbox.spec.resources.disk_bytes)).sum(),
        current_snapshot_count: images + snapshots,
        current_started_sandboxes: owned().filter(|view| view.status.phase == Phase::Running).count(),
    };
    let health = ServiceHealth { service_name: "sandboxes", healthy: true, error_reason: None };
    let info = RunnerInfo { app_version: VERSION, service_health: vec![health], metrics };
    Ok(answer(StatusCode::OK, &info))
}

#[expect(clippy::cast_precision_loss, reason = "for people, and far from the limit")]
fn number(bytes: u64) -> f64 {
    bytes as f64
}

/// Counts and durations in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", tag = "runner", responses(
    (status = 200, content_type = "text/plain", body = String),
))]
pub(super) async fn metrics(State(runner): State<Arc<Runner>>) -> ApiResult<Response<Body>> {
    let live = runner.service().list(ListFilter::default()).await.map_err(problem)?;
    let text = runner.edge.metrics.render(&live, &runner.service().pool());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// This document.
#[utoipa::path(get, path = "/api/openapi.json", tag = "runner", responses((status = 200, content_type = "application/json", body = Object)))]
pub(super) async fn document() -> Response<Body> {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| {
        let mut document = documented().into_openapi();
        let paths = std::mem::take(&mut document.paths.paths);
        document.paths.paths =
            paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
        document.to_json().expect("an OpenAPI document serialises")
    });
    let mut response = Response::new(Body::from(text.as_str()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What the document says before its routes.
pub(super) fn preface() -> OpenApi {
    let mut document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Sandhaus, as a runner")
                .version(VERSION)
                .description(Some("Sandboxes and snapshots of one host, for a control plane."))
                .build(),
        )
        .security(Some([SecurityRequirement::new("key", Vec::<String>::new())]))
        .build();
    let key = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("key", key);
    document
}
