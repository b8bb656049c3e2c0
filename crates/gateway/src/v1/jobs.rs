//! Long work: what is under way, and how the rest ended.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_client::wire::{ErrorBody, JobInfo, JobList};
use sandhaus_sandbox::{
    Kind,
    job::{Job, JobId},
};

use super::{json, wire::time};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Long work, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses((status = 200, body = JobList)))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let jobs = edge.service.jobs().await.map_err(|error| ApiError::of(Subject::Request, error))?;
    Ok(json(StatusCode::OK, &JobList { jobs: jobs.iter().map(job_info).collect() }))
}

/// One of them.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)), responses(
    (status = 200, body = JobInfo),
    (status = 404, body = ErrorBody, description = "NOT_FOUND"),
))]
pub(super) async fn inspect(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> ApiResult<Response<Body>> {
    let job = edge.service.job(&JobId(id)).await.map_err(|error| ApiError::of(Subject::Request, error))?;
    let missing = || ApiError::new(Kind::NotFound, Subject::Request, "there is no such job");
    Ok(json(StatusCode::OK, &job_info(&job.ok_or_else(missing)?)))
}

/// A job as this dialect shows it.
pub(super) fn job_info(job: &Job) -> JobInfo {
    let word = |value: serde_json::Result<serde_json::Value>| match value {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    };
    JobInfo {
        id: job.id.0.clone(),
        kind: word(serde_json::to_value(job.kind)),
        subject: job.subject.clone(),
        state: word(serde_json::to_value(job.state)),
        stage: job.progress.stage.clone(),
        done_bytes: job.progress.done,
        total_bytes: job.progress.total,
        error: job.error.clone(),
        created_at: time(job.created_at_ms),
    }
}
