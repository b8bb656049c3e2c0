//! The way to a session's files: requests to its agent, and the agent's refusals in this dialect's words.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Bytes,
    http::{HeaderMap, Method, Request, Response, StatusCode},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use sandhaus_protocol::files::PATH_BYTES_MAX;
use sandhaus_sandbox::{
    Kind, SandboxId,
    toolbox::{Body, Toolbox},
};
use serde::Deserialize;

use super::{exec::note_use, sessions::session_error, wire::WORKSPACE};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Largest error answer of the agent that is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Longest message of the agent that is passed on, in characters. It comes from inside the sandbox.
const MESSAGE_CHARS_MAX: usize = 500;

/// A running session's files.
pub(super) struct Inside {
    edge: Arc<Edge>,
    id: SandboxId,
    toolbox: Toolbox,
}

impl Inside {
    /// Refused if the session does not run. Reaching for files is a use: it moves the session's deadline.
    pub(super) async fn enter(edge: Arc<Edge>, id: SandboxId) -> ApiResult<Self> {
        let toolbox = match edge.service.toolbox(&id).await {
            Ok(toolbox) => toolbox,
            Err(error) => return Err(session_error(&edge, &id, error).await),
        };
        note_use(&edge, &id).await;
        Ok(Self { edge, id, toolbox })
    }

    /// A call about the file at `path`, which is resolved beneath the workspace.
    pub(super) async fn call(&self, call: Call<'_>) -> ApiResult<Response<Incoming>> {
        let Call { method, route, path, parameters, headers, body } = call;
        let mut query = BTreeMap::from([("root", WORKSPACE), ("path", path)]);
        query.extend(parameters.iter().copied());
        let uri = format!("{route}?{}", Toolbox::query(&query));
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri
            .parse()
            .map_err(|_| ApiError::invalid("path is too long or holds characters that are not allowed"))?;
        *request.headers_mut() = headers;
        match self.toolbox.send(request).await {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => Err(refusal(response).await),
            Err(error) => Err(session_error(&self.edge, &self.id, error).await),
        }
    }

    /// Writes a file whole, atomically.
    pub(super) async fn put(&self, path: &str, body: Body) -> ApiResult<()> {
        let call = Call { method: Method::POST, route: "/files/upload-v2", body, ..Call::get("", path) };
        self.call(call).await.map(drop)
    }

    /// The answer to a call, whole.
    pub(super) async fn collect(&self, response: Response<Incoming>, bytes_max: usize) -> ApiResult<Bytes> {
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            let error = sandhaus_sandbox::Error::internal("read the agent's answer", error);
            ApiError::of(Subject::File, error)
        })
    }
}

/// A call of the agent's file routes.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) route: &'a str,
    pub(super) path: &'a str,
    pub(super) parameters: &'a [(&'a str, &'a str)],
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl<'a> Call<'a> {
    /// A GET without more.
    pub(super) fn get(route: &'a str, path: &'a str) -> Self {
        Self {
            method: Method::GET,
            route,
            path,
            parameters: &[],
            headers: HeaderMap::new(),
            body: whole(Bytes::new()),
        }
    }
}

/// A body that is all there.
pub(super) fn whole(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed()
}

/// The agent's error body, as far as it matters here.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

async fn refusal(response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
    let message = body
        .ok()
        .and_then(|body| serde_json::from_slice::<Refusal>(&body.to_bytes()).ok())
        .map(|refusal| {
            refusal.message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect::<String>()
        })
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| format!("the sandbox answered {status}"));
    let about = |kind| ApiError::new(kind, Subject::File, message.clone());
    match status {
        StatusCode::FORBIDDEN => about(Kind::Forbidden),
        StatusCode::NOT_FOUND => about(Kind::NotFound),
        StatusCode::CONFLICT => about(Kind::Conflict),
        StatusCode::PAYLOAD_TOO_LARGE => about(Kind::Invalid).with_status(status, "TOO_LARGE"),
        StatusCode::RANGE_NOT_SATISFIABLE => about(Kind::Invalid).with_status(status, "INVALID_RANGE"),
        StatusCode::TOO_MANY_REQUESTS => about(Kind::Exhausted),
        StatusCode::INSUFFICIENT_STORAGE => about(Kind::Exhausted).with_status(status, "DISK_FULL"),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => about(Kind::Unavailable),
        StatusCode::NOT_IMPLEMENTED => about(Kind::Unsupported),
        status if status.is_client_error() => about(Kind::Invalid),
        // What the agent fails at is inside the sandbox: its words may be shown, unlike the host's.
        _ => about(Kind::Invalid).with_status(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
    }
}

/// A path under the workspace, absolute and without `.`, `..` or double slashes. The agent enforces the same against
/// what is really there.
pub(super) fn resolve(path: &str) -> ApiResult<String> {
    if path.len() > PATH_BYTES_MAX {
        return Err(ApiError::invalid(format!("path must not exceed {PATH_BYTES_MAX} bytes")));
    }
    if path.contains('\0') {
        return Err(ApiError::invalid("path must not contain NUL"));
    }
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{WORKSPACE}/{path}") };
    let mut parts = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let clean = format!("/{}", parts.join("/"));
    match clean.strip_prefix(WORKSPACE) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(clean),
        _ => Err(ApiError::invalid("path must be under /workspace")),
    }
}

/// The same for something below the workspace itself.
pub(super) fn resolve_file(path: &str) -> ApiResult<String> {
    if path.is_empty() {
        return Err(ApiError::invalid("path is required"));
    }
    let path = resolve(path)?;
    if path == WORKSPACE {
        return Err(ApiError::invalid("path must point to a file under /workspace"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (given, clean) in [
            ("a.txt", "/workspace/a.txt"),
            ("./a//b/../c", "/workspace/a/c"),
            ("/workspace/x", "/workspace/x"),
            ("/workspace", "/workspace"),
            (".", "/workspace"),
            ("/tmp/../workspace/y", "/workspace/y"),
            ("../workspace/z", "/workspace/z"),
        ] {
            assert_eq!(resolve(given).unwrap(), clean, "{given}");
        }
        for outside in
            ["/etc/passwd", "../etc/passwd", "/workspace/../etc", "/workspacex", "/", "/workspace/../../.."]
        {
            assert_eq!(
                resolve(outside).unwrap_err().public_message(""),
                "path must be under /workspace",
                "{outside}"
            );
        }
        assert!(resolve("a\0b").is_err());
        assert!(resolve(&"a".repeat(PATH_BYTES_MAX + 1)).is_err());
        assert_eq!(resolve_file("").unwrap_err().public_message(""), "path is required");
        assert_eq!(
            resolve_file("/workspace/").unwrap_err().public_message(""),
            "path must point to a file under /workspace"
        );
    }
}
