//! From kinds of error to HTTP: the one table, and the body that all error answers have.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use sandhaus_client::wire::ErrorBody;
use sandhaus_sandbox::{Error, Kind};
use serde_json::Value;

/// Seconds after which a refusal for lack of room is worth another try.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Result of a handler.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

/// What an error is about: together with its kind it gives the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The request itself.
    Request,
    /// A session as a row.
    Session,
    /// The image, and all else, of a session about to be made.
    NewSession,
    /// The inside of a session: it must run.
    Machine,
    /// A running command.
    Command,
    /// A file inside.
    File,
    /// An image.
    Image,
    /// A workspace.
    Workspace,
    /// A snapshot.
    Snapshot,
}

fn status_and_code(kind: Kind, subject: Subject) -> (StatusCode, &'static str) {
    match kind {
        Kind::Invalid => (
            StatusCode::BAD_REQUEST,
            match subject {
                Subject::Image => "INVALID_IMAGE",
                Subject::Workspace => "INVALID_WORKSPACE",
                _ => "INVALID_REQUEST",
            },
        ),
        Kind::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        Kind::Forbidden => match subject {
            // Making a session from an image that is not on the allow-list.
            Subject::NewSession => (StatusCode::BAD_REQUEST, "INVALID_IMAGE"),
            Subject::File => (StatusCode::FORBIDDEN, "FILE_ACCESS_DENIED"),
            _ => (StatusCode::FORBIDDEN, "FORBIDDEN"),
        },
        Kind::NotFound => match subject {
            Subject::NewSession => (StatusCode::BAD_REQUEST, "INVALID_IMAGE"),
            Subject::Session | Subject::Machine => (StatusCode::NOT_FOUND, "SESSION_NOT_FOUND"),
            Subject::Command => (StatusCode::NOT_FOUND, "COMMAND_NOT_FOUND"),
            Subject::File => (StatusCode::NOT_FOUND, "FILE_NOT_FOUND"),
            Subject::Image => (StatusCode::NOT_FOUND, "IMAGE_NOT_FOUND"),
            Subject::Workspace => (StatusCode::NOT_FOUND, "WORKSPACE_NOT_FOUND"),
            Subject::Snapshot => (StatusCode::NOT_FOUND, "SNAPSHOT_NOT_FOUND"),
            Subject::Request => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        },
        Kind::Exists => (StatusCode::CONFLICT, "ALREADY_EXISTS"),
        Kind::Conflict => match subject {
            Subject::Machine | Subject::Command => (StatusCode::CONFLICT, "SESSION_NOT_RUNNING"),
            Subject::Image => (StatusCode::CONFLICT, "IMAGE_IN_USE"),
            Subject::Workspace => (StatusCode::CONFLICT, "WORKSPACE_IN_USE"),
            Subject::Snapshot => (StatusCode::CONFLICT, "SNAPSHOT_IN_USE"),
            _ => (StatusCode::CONFLICT, "CONFLICT"),
        },
        Kind::Gone => (StatusCode::GONE, "SESSION_EXPIRED"),
        Kind::Unsupported => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
        Kind::Exhausted => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
        Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        Kind::Timeout => match subject {
            Subject::Command => (StatusCode::GATEWAY_TIMEOUT, "COMMAND_TIMEOUT"),
            _ => (StatusCode::GATEWAY_TIMEOUT, "TIMEOUT"),
        },
        Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
    }
}

/// An error on its way out: small, since every handler's result carries one.
#[derive(Debug)]
pub(crate) struct ApiError(Box<Fields>);

#[derive(Debug)]
struct Fields {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Option<Value>,
    retry_after_seconds: u64,
    cause: Option<Error>,
}

impl ApiError {
    pub(crate) fn new(kind: Kind, subject: Subject, message: impl Into<String>) -> Self {
        let (status, code) = status_and_code(kind, subject);
        Self(Box::new(Fields {
            status,
            code,
            message: message.into(),
            details: None,
            retry_after_seconds: RETRY_AFTER_SECONDS,
            cause: None,
        }))
    }

    /// The request is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, Subject::Request, message)
    }

    /// An error of the domain about `subject`.
    pub(crate) fn of(subject: Subject, error: Error) -> Self {
        let mut api = Self::new(error.kind(), subject, error.message());
        api.0.cause = Some(error);
        api
    }

    /// A status that no kind of error has, such as 413 or 416.
    pub(crate) fn with_status(mut self, status: StatusCode, code: &'static str) -> Self {
        self.0.status = status;
        self.0.code = code;
        self
    }

    pub(crate) fn with_details(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    /// When a refusal for lack of room is worth another try.
    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = seconds;
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(crate) fn code(&self) -> &'static str {
        self.0.code
    }

    /// The words that a caller may see.
    pub(crate) fn public_message(&self, request_id: &str) -> String {
        if self.0.status == StatusCode::INTERNAL_SERVER_ERROR {
            format!("internal error (request {request_id})")
        } else {
            self.0.message.clone()
        }
    }

    /// Logs what must be looked at, once: at the end of the request it failed.
    pub(crate) fn log(&self, request_id: &str, route: &str) {
        if !self.0.status.is_server_error() {
            return;
        }
        let cause = self.0.cause.as_ref().map(chain).unwrap_or_default();
        if self.0.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(request_id, route, error = %self.0.message, cause, "request failed");
        } else {
            tracing::debug!(request_id, route, status = self.0.status.as_u16(), error = %self.0.message, cause, "request failed");
        }
    }

    /// The answer.
    pub(crate) fn render(&self, request_id: &str) -> Response<Body> {
        let message = self.public_message(request_id);
        let body = ErrorBody {
            error_code: self.0.code.to_owned(),
            error: message.clone(),
            message,
            details: self.0.details.clone(),
        };
        let mut text = serde_json::to_vec(&body).expect("strings and JSON values serialise");
        text.push(b'\n');
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.0.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.0.retry_after_seconds));
        }
        response
    }
}

/// A cause and its causes on one line.
fn chain(error: &Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// An error travels through the router as an extension of an empty answer; the edge renders and logs it, since it
/// alone knows the request's id.
#[derive(Clone)]
pub(crate) struct Failed(pub(crate) std::sync::Arc<ApiError>);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.0.status;
        response.extensions_mut().insert(Failed(std::sync::Arc::new(self)));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_text_stays_inside() {
        let error =
            ApiError::of(Subject::Session, Error::internal("open /var/lib/x", std::io::Error::other("EIO")));
        assert_eq!(error.public_message("0123abcd"), "internal error (request 0123abcd)");
        assert_eq!(chain(error.0.cause.as_ref().unwrap()), "EIO");
        assert_eq!(error.render("0123abcd").status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn lack_of_room_says_when_to_come_back() {
        let error = ApiError::new(Kind::Exhausted, Subject::NewSession, "at most 10 sessions");
        let response = error.render("1");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
