//! How this dialect reads JSON, and what its answers look like: the content type is ignored, unknown keys too, and `null`
//! is nothing said.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderValue, Response, StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{ApiError, ApiResult},
    refusal::INVALID_BODY,
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest body.
const BODY_BYTES_MAX: usize = 2 << 20;

/// A body that must be there.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?;
        if says_nothing(&body) {
            return Err(invalid_body("it is empty"));
        }
        parse(&body).map(Self)
    }
}

/// A body that may say nothing: then all of it is as it is by default.
pub(super) struct Optional<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Optional<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?;
        if says_nothing(&body) { Ok(Self(T::default())) } else { parse(&body).map(Self) }
    }
}

/// A body that nothing is read of but its end.
pub(super) struct Ignored;

impl<S: Send + Sync> FromRequest<S> for Ignored {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        read(request).await.map(|_| Self)
    }
}

fn says_nothing(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"" | b"null")
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body).map_err(|error| invalid_body(&error.to_string()))
}

async fn read(request: Request) -> ApiResult<Bytes> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(invalid_body(&format!("it is larger than {BODY_BYTES_MAX} bytes")))
        }
        Ok(Err(_)) => Err(invalid_body("it ends too early")),
        Err(_) => Err(invalid_body("it did not arrive in time")),
    }
}

fn invalid_body(problem: &str) -> ApiError {
    ApiError::invalid(format!("invalid body request: {problem}"))
        .with_status(StatusCode::BAD_REQUEST, INVALID_BODY)
}

/// A JSON answer.
pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("wire types serialise");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer of one sentence.
pub(super) fn sentence(status: StatusCode, words: &str) -> Response<Body> {
    answer(status, &words)
}
