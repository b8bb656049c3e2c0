//! What every request passes on its way in and out, and the routes that belong to no dialect.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
    middleware::{self, Next},
    response::IntoResponse,
};
use sandhaus_client::wire::Health;
use sandhaus_sandbox::{Kind, Service, service::ListFilter};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::openapi::{
    ContactBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
    SecurityRequirement,
    path::{Operation, PathItem},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    GatewayConfig, V1Config,
    auth::{Guard, PUBLIC_ROUTES},
    body::Unread,
    dashboard::{self, Page},
    error::{ApiError, ApiResult, Failed, Subject},
    metrics::Metrics,
    refusal, toolbox, v1,
};

/// Header that names a request in answers and logs.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id of a caller that is taken over, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What handlers share.
pub(crate) struct Edge {
    pub(crate) service: Service,
    pub(crate) v1: V1Config,
    pub(crate) metrics: Metrics,
    /// Cancelled when the server begins to end: streams say so and stop.
    pub(crate) ending: CancellationToken,
    /// Connections that were handed over to another protocol.
    pub(crate) upgraded: TaskTracker,
    pub(crate) guard: Guard,
    page: Option<Page>,
}

impl Edge {
    pub(crate) fn new(service: Service, config: GatewayConfig) -> Self {
        Self::open(service, config, PUBLIC_ROUTES)
    }

    /// An edge of its own beside the first: another dialect's, without a page.
    pub(crate) fn without_page(
        service: Service,
        api_key: Option<String>,
        public: &'static [&'static str],
    ) -> Self {
        Self::open(service, GatewayConfig { api_key, dashboard: None, v1: V1Config::default() }, public)
    }

    fn open(service: Service, config: GatewayConfig, public: &'static [&'static str]) -> Self {
        let page = config.dashboard.map(Page::new);
        let logins = page.as_ref().map(|page| Arc::clone(&page.logins));
        Self {
            service,
            guard: Guard::new(config.api_key.as_deref(), logins, public),
            page,
            v1: config.v1,
            metrics: Metrics::new(),
            ending: CancellationToken::new(),
            upgraded: TaskTracker::new(),
        }
    }

    /// What the web page's handlers share. Without a page there are no routes to them.
    pub(crate) fn page(&self) -> ApiResult<&Page> {
        let missing = || ApiError::new(Kind::NotFound, Subject::Request, "this server has no web page");
        self.page.as_ref().ok_or_else(missing)
    }
}

/// The name of a request, for handlers that answer piecemeal.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's own if it is sane, else 8 random hex digits.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(REQUEST_ID) {
            Some(given)
                if !given.is_empty() && given.len() <= REQUEST_ID_BYTES_MAX && given.to_str().is_ok() =>
            {
                Self(given.clone())
            }
            _ => {
                let mut bytes = [0; 4];
                getrandom::fill(&mut bytes).expect("the kernel has random bytes");
                let text = format!("{:08x}", u32::from_be_bytes(bytes));
                Self(HeaderValue::from_str(&text).expect("hex digits make a header value"))
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn value(self) -> HeaderValue {
        self.0
    }
}

/// The whole edge as a service.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    let served = if edge.page.is_some() { documented().merge(dashboard::routes()) } else { documented() };
    let (router, _) = served.split_for_parts();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&edge), pass))
        .with_state(edge)
}

/// The OpenAPI document as JSON text.
pub(crate) fn document() -> String {
    let mut document = documented().merge(dashboard::routes()).into_openapi();
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), named(item))).collect();
    let mut text = document.to_pretty_json().expect("an OpenAPI document serialises");
    text.push('\n');
    text
}

/// Operation ids must be unique: `TAG_NAME`, and the method where one handler serves several.
fn named(mut item: PathItem) -> PathItem {
    let methods = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("options", &mut item.options),
        ("head", &mut item.head),
        ("patch", &mut item.patch),
    ];
    let mut operations: Vec<(&str, &mut Operation)> =
        methods.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?))).collect();
    let names: Vec<Option<String>> =
        operations.iter().map(|(_, operation)| operation.operation_id.clone()).collect();
    for (index, (method, operation)) in operations.iter_mut().enumerate() {
        let tag = operation.tags.iter().flatten().next().map_or("server", String::as_str);
        let name = names[index].as_deref().unwrap_or("call");
        let shared = names.iter().filter(|other| **other == names[index]).count() > 1;
        if operation.security.is_none() {
            operation.responses.responses.entry("401".to_owned()).or_insert_with(unauthorized);
        }
        operation.operation_id =
            Some(if shared { format!("{tag}_{name}_{method}") } else { format!("{tag}_{name}") });
    }
    item
}

/// What every route that wants the key answers without it.
fn unauthorized() -> RefOr<utoipa::openapi::Response> {
    let schema = Ref::from_schema_name("ErrorBody");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description("UNAUTHORIZED").content("application/json", content).build().into()
}

fn documented() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::with_openapi(preface())
        .routes(routes!(healthz))
        .routes(routes!(openapi_json))
        .routes(routes!(metrics))
        .merge(toolbox::routes())
        .merge(v1::routes())
}

fn preface() -> OpenApi {
    let mut document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Sandhaus")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("Sandboxes for programs: sessions, commands, files and images."))
                .contact(Some(ContactBuilder::new().name(Some("Sandhaus")).build()))
                .build(),
        )
        .security(Some([SecurityRequirement::new("key", Vec::<String>::new())]))
        .build();
    let key = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("key", key);
    document
}

/// The way in and out: names the request, asks for the key, measures, renders and logs what failed.
async fn pass(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let unread = Unread::watch(request.body_mut());
    let mut response = match edge.guard.admit(route, &method, request.uri(), request.headers()) {
        Ok(()) => {
            request.extensions_mut().insert(id.clone());
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    let route = route.unwrap_or("unknown");
    if let Some(Failed(error)) = response.extensions_mut().remove::<Failed>() {
        error.log(id.as_str(), route);
        response = match route {
            toolbox::ROUTE => refusal::answer(&error, id.as_str(), &method, &path),
            _ => error.render(id.as_str()),
        };
    }
    let taken = started.elapsed();
    edge.metrics.request(&method, route, response.status(), taken);
    tracing::debug!(
        request_id = id.as_str(),
        %method,
        route,
        status = response.status().as_u16(),
        taken_us = taken.as_micros(),
        "request answered"
    );
    response.headers_mut().insert(REQUEST_ID, id.0);
    for (name, value) in dashboard::FENCE {
        response.headers_mut().entry(name).or_insert(value);
    }
    // The rest of a body that nobody wants cannot be told from a next request, so the connection ends with this
    // answer; a client that is not told would send its next request into it.
    let refused = response.status().is_client_error() || response.status().is_server_error();
    if refused && unread.is_some_and(|unread| unread.is_so()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn unknown_path() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

async fn wrong_method() -> Response<Body> {
    plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Whether the server answers at all. Needs no key.
#[utoipa::path(get, path = "/healthz", tag = "server", security(()), responses((status = 200, body = Health)))]
async fn healthz() -> Response<Body> {
    v1::json(StatusCode::OK, &Health { status: "ok".to_owned() })
}

/// This document. Needs no key.
#[utoipa::path(get, path = "/openapi.json", tag = "server", security(()), responses((status = 200, content_type = "application/json", body = Object)))]
async fn openapi_json() -> Response<Body> {
    static DOCUMENT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let mut response = Response::new(Body::from(DOCUMENT.get_or_init(document).as_str()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Counts and durations in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, content_type = "text/plain", body = String),
))]
async fn metrics(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let live = edge
        .service
        .list(ListFilter::default())
        .await
        .map_err(|error| ApiError::of(Subject::Session, error))?;
    let mut response = Response::new(Body::from(edge.metrics.render(&live, &edge.service.pool())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_document_is_whole() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.contains_key("/v1/sessions/{id}/toolbox/{path}"));
        let operations: Vec<&serde_json::Value> = paths
            .values()
            .flat_map(|item| item.as_object().unwrap().values())
            .filter(|value| value.is_object())
            .collect();
        let ids: HashSet<&str> =
            operations.iter().map(|operation| operation["operationId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), operations.len(), "operation ids are unique");
        for operation in operations {
            assert!(operation["summary"].is_string(), "{operation} says what it does");
        }
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (_, rest) in text.match_indices("#/components/schemas/").map(|(at, _)| text.split_at(at + 21)) {
            let name = rest.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "schema {name} is there");
        }
    }
}
