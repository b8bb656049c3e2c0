//! `/swagger/…`: the description of this API, for people and programs, unless the sandbox says that it is in production.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::{IntoResponse as _, Redirect},
    routing::get,
};

use crate::{agent::Agent, error::Error};

/// `docs/openapi-toolbox.json` without its indentation.
const DOCUMENT: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi-toolbox.json"));

/// Lists what the document says. It is a page of its own: nothing is taken from elsewhere.
const PAGE: &str = include_str!("description.html");

/// The variable that says where the sandbox is used, and the place where nobody is to read this.
const PLACE: (&str, &str) = ("ENVIRONMENT", "production");

/// The routes of this area.
pub(super) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/swagger", get(page)).route("/swagger/{*name}", get(part))
}

fn is_hidden(agent: &Agent) -> bool {
    agent.environment().get(PLACE.0).is_some_and(|place| place == PLACE.1)
}

async fn page(State(agent): State<Arc<Agent>>) -> axum::response::Response {
    if is_hidden(&agent) {
        return Error::no_route().into_response();
    }
    // Relative, since nobody here knows beneath which path this is served.
    Redirect::temporary("swagger/index.html").into_response()
}

async fn part(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> axum::response::Response {
    let (kind, text) = match name.as_str() {
        "" | "index.html" => ("text/html; charset=utf-8", PAGE),
        "doc.json" => ("application/json", DOCUMENT),
        _ => return Error::no_route().into_response(),
    };
    if is_hidden(&agent) {
        return Error::no_route().into_response();
    }
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
