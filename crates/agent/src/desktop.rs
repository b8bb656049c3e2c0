//! `/computeruse`: the desktop's routes in an agent without one. Each says so, with what is missing and what helps; none
//! pretends.

use std::sync::Arc;

use axum::{
    Router,
    response::{IntoResponse as _, Response},
    routing::any,
};

use crate::{agent::Agent, error::Error, http::Details};

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/computeruse/recordings", any(recordings))
        .route("/computeruse/recordings/{*rest}", any(recordings))
        .route("/computeruse/{*rest}", any(unavailable))
}

async fn unavailable() -> Response {
    let mut response = Error::unavailable("computer use is not available in this sandbox").into_response();
    response.extensions_mut().insert(Details {
        details: "the agent of this sandbox serves no desktop",
        solution: "use the process, terminal and file routes, or a sandbox with a desktop",
    });
    response
}

async fn recordings() -> Error {
    Error::no_recorder()
}
