//! The one error of the agent's API: a status, a code that programs read and a message that people read.
//! [`crate::http`] prints the body.

use std::{borrow::Cow, io};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::sys::SpawnError;

/// Why a call was refused or failed.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Machine-readable code.
    pub(crate) code: &'static str,
    /// What happened, safe to show.
    pub(crate) message: Cow<'static, str>,
}

/// Result of a call.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A refusal with a status and a code of its area.
    pub(crate) fn coded(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, code, message)
    }

    /// 408 of anything but a command.
    pub(crate) fn timeout(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", format!("request timeout: {message}"))
    }

    /// 400.
    pub(crate) fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", format!("bad request: {message}"))
    }

    /// 400 for a path that may not be named.
    pub(crate) fn invalid_path(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_FILE_PATH", format!("bad request: {message}"))
    }

    /// 404 for a process, session, command or terminal.
    pub(crate) fn no_process(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "PROCESS_NOT_FOUND", format!("not found: {message}"))
    }

    /// 404 for a file.
    pub(crate) fn no_file(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "FILE_NOT_FOUND", format!("not found: {message}"))
    }

    /// 404 for what is served elsewhere or nowhere.
    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", "not found: no such route")
    }

    /// 409.
    pub(crate) fn conflict(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, "CONFLICT", format!("conflict: {message}"))
    }

    /// 409 that names what keeps the agent from being replaced.
    pub(crate) fn in_the_way(what: impl std::fmt::Display) -> Self {
        let message = format!("conflict: the agent cannot be replaced during {what}");
        Self::new(StatusCode::CONFLICT, sandhaus_protocol::upgrade::IN_THE_WAY, message)
    }

    /// 409 of a next agent that does not take over.
    pub(crate) fn not_taken(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, sandhaus_protocol::upgrade::NOT_TAKEN, format!("conflict: {message}"))
    }

    /// 410 with the code of what has ended.
    pub(crate) fn gone(code: &'static str, message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::GONE, code, format!("gone: {message}"))
    }

    /// 413.
    pub(crate) fn too_large(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", format!("bad request: {message}"))
    }

    /// 416.
    pub(crate) fn no_such_range(size: u64) -> Self {
        let message =
            format!("bad request: the file has {size} bytes, and none of those that were asked for");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_NOT_SATISFIABLE", message)
    }

    /// 429.
    pub(crate) fn too_many(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", message.to_string())
    }

    /// 408 of a command that took too long.
    pub(crate) fn execution_timeout() -> Self {
        let message = "request timeout: command execution timeout";
        Self::new(StatusCode::REQUEST_TIMEOUT, "PROCESS_EXECUTION_TIMEOUT", message)
    }

    /// 401.
    pub(crate) fn unauthorized(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", format!("unauthorized: {message}"))
    }

    /// 403.
    pub(crate) fn forbidden(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::FORBIDDEN, "FORBIDDEN", format!("forbidden: {message}"))
    }

    /// 503 of an agent that knows nobody yet.
    pub(crate) fn not_greeted() -> Self {
        let message = "not greeted: this machine's agent serves nobody before its host has said who it is";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, sandhaus_protocol::guest::NOT_GREETED, message)
    }

    /// 503: not now, try again.
    pub(crate) fn unavailable(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", message.to_string())
    }

    /// 400 for a body that is not what the route takes.
    pub(crate) fn invalid_body(error: &serde_json::Error) -> Self {
        let message = format!("invalid body request: {error}");
        Self::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST_BODY", message)
    }

    /// 502 of something inside that is to answer and does not.
    pub(crate) fn bad_gateway(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "BAD_GATEWAY", format!("bad gateway: {message}"))
    }

    /// 503 of recordings where nothing records.
    pub(crate) fn no_recorder() -> Self {
        let message = "recordings need ffmpeg and a desktop, and the agent of this sandbox serves none";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "RECORDING_FFMPEG_NOT_FOUND", message)
    }

    /// 500.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR", message.to_string())
    }

    /// What a file operation on `path` failed with.
    pub(crate) fn file(path: &str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound => Self::no_file(format_args!("no such file or directory: {path}")),
            Kind::PermissionDenied => Self::new(
                StatusCode::FORBIDDEN,
                "FILE_ACCESS_DENIED",
                format!("forbidden: permission denied: {path}"),
            ),
            Kind::NotADirectory => Self::invalid_path(format_args!("not a directory: {path}")),
            Kind::IsADirectory => Self::invalid_path(format_args!("is a directory: {path}")),
            Kind::CrossesDevices => {
                Self::invalid_path(format_args!("path leads outside of its root: {path}"))
            }
            Kind::InvalidFilename => Self::invalid_path(format_args!("name too long: {path}")),
            Kind::InvalidInput => Self::invalid_path(format_args!("not a usable path: {path}")),
            Kind::AlreadyExists => Self::conflict(format_args!("already exists: {path}")),
            Kind::FileTooLarge => Self::too_large(format_args!("larger than this takes: {path}")),
            Kind::DirectoryNotEmpty => Self::invalid_path(format_args!("directory is not empty: {path}")),
            Kind::StorageFull | Kind::QuotaExceeded => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "STORAGE_FULL", format!("no space left: {path}"))
            }
            Kind::ReadOnlyFilesystem => Self::new(
                StatusCode::FORBIDDEN,
                "FILE_ACCESS_DENIED",
                format!("forbidden: read-only: {path}"),
            ),
            Kind::OutOfMemory => Self::unavailable(format_args!("out of memory: {path}")),
            _ => match error.raw_os_error() {
                // A socket, or a device without anything behind it.
                Some(libc::ENXIO | libc::ENODEV) => {
                    Self::invalid_path(format_args!("not a usable path: {path}"))
                }
                Some(libc::ELOOP) => Self::invalid_path(format_args!("too many symbolic links: {path}")),
                Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN) => {
                    Self::unavailable(format_args!("no room for another open file: {path}"))
                }
                _ => Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "FILE_READ_FAILED",
                    format!("cannot access {path}: {}", reason(error)),
                ),
            },
        }
    }
}

/// The text of an error without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

impl From<SpawnError> for Error {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Exhausted(_) => Self::unavailable(error),
            SpawnError::Invalid(_) | SpawnError::Directory(_) => Self::invalid(error),
            SpawnError::NotFound | SpawnError::NotExecutable(_) => Self::invalid(error),
            SpawnError::Failed(..) => Self::internal(error),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOSPC) => {
                Self::unavailable(format_args!("no room left: {}", reason(&error)))
            }
            _ => Self::internal(reason(&error)),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
