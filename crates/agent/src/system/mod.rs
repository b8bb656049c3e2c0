//! The sandbox as a machine: who serves it, where it works, what it uses ([`metrics`]), what its processes find in their
//! environment, and the description of this API ([`description`]).

mod description;
mod metrics;

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    routing::{get, post},
};
use sandhaus_protocol::system::{Directory, Initialize, UpdateEnv};
use serde_json::{Value, json};

pub(crate) use self::metrics::Usage;
use crate::{
    agent::{self, Agent},
    error::{Error, Result},
};

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/sandhaus/hello", post(agent::hello))
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/work-dir", get(work_dir))
        .route("/project-dir", get(work_dir))
        .route("/user-home-dir", get(home))
        .route("/init", post(initialize))
        .route("/env", post(update_env))
        .route("/system/metrics", get(metrics::metrics))
        .route("/memory-stats", get(metrics::memory))
        .merge(description::routes())
}

/// `GET /version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /health`.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn work_dir(State(agent): State<Arc<Agent>>) -> Json<Directory> {
    Json(Directory { dir: agent.workdir.clone() })
}

async fn home(State(agent): State<Arc<Agent>>) -> Json<Directory> {
    Json(Directory { dir: agent.workload.home.clone() })
}

/// `POST /init`. The token is for reports to a control plane, of which this agent makes none. Clients send no body or an
/// empty one as well.
async fn initialize(body: Bytes) -> Result<Json<Value>> {
    if !body.is_empty() {
        let _: Initialize = serde_json::from_slice(&body).map_err(|error| Error::invalid_body(&error))?;
    }
    Ok(Json(json!({ "message": "the toolbox is initialized" })))
}

/// `POST /env`.
async fn update_env(State(agent): State<Arc<Agent>>, Json(change): Json<UpdateEnv>) -> Result<Json<Value>> {
    agent.change_variables(change)?;
    Ok(Json(json!({ "message": "processes started from now on find the new environment" })))
}
