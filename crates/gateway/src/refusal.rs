//! The body of a refusal in every dialect that speaks the compatible contract (docs: `daytona.md` section 1.2).

use axum::{
    body::Body,
    http::{HeaderValue, Method, Response, StatusCode, header},
};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;

/// Seconds after which a refusal for lack of room is worth another try.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Code of a body that cannot be read.
pub(crate) const INVALID_BODY: &str = "INVALID_REQUEST_BODY";

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorResponse {
    /// The answer's status again.
    status_code: u16,
    /// What happened, in words.
    message: String,
    /// The same in one word.
    code: String,
    /// When, RFC 3339.
    timestamp: String,
    /// The path that was asked for.
    path: String,
    /// The method.
    method: String,
}

/// The answer to what failed.
pub(crate) fn answer(error: &ApiError, request_id: &str, method: &Method, path: &str) -> Response<Body> {
    let status = error.status();
    let body = ErrorResponse {
        status_code: status.as_u16(),
        message: error.public_message(request_id),
        code: code(status, error.code()).to_owned(),
        timestamp: Timestamp::now().to_string(),
        path: path.to_owned(),
        method: method.to_string(),
    };
    let mut response = Response::new(Body::from(serde_json::to_vec(&body).expect("wire types serialise")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// The word of the contract: by status, but for what has a word of its own.
fn code(status: StatusCode, own: &'static str) -> &'static str {
    match status {
        _ if own == INVALID_BODY => INVALID_BODY,
        StatusCode::BAD_REQUEST => "BAD_REQUEST",
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "FORBIDDEN",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::CONFLICT => "CONFLICT",
        StatusCode::GONE => "GONE",
        StatusCode::UNPROCESSABLE_ENTITY => "UNPROCESSABLE_ENTITY",
        StatusCode::GATEWAY_TIMEOUT => "GATEWAY_TIMEOUT",
        StatusCode::INTERNAL_SERVER_ERROR => "INTERNAL_SERVER_ERROR",
        _ => own,
    }
}
