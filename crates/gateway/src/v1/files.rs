//! Files under `/workspace`. The host opens none of them: every call is one of the agent's own, confined to the root
//! that is named with it, so neither `..` nor a symbolic link inside leads out.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http_body_util::BodyExt;
use sandhaus_client::wire::{
    ErrorBody, FsEntry, FsList, FsRead, FsWrite, Okay, READ_BYTES_DEFAULT, READ_BYTES_MAX,
};
use sandhaus_protocol::files::SIZE_HEADER;
use sandhaus_sandbox::Kind;
use serde::Deserialize;

use super::{
    SessionPath,
    inside::{Call, Inside, resolve, resolve_file, whole},
    json,
    json::Json,
    wire::WORKSPACE,
};
use crate::{
    body::forward,
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Largest answer of the agent that is held in memory: a listing.
const LISTING_BYTES_MAX: usize = 64 << 20;

/// Headers of a request for a file's content that matter to the agent.
const REQUEST_HEADERS: [HeaderName; 2] = [header::RANGE, header::IF_RANGE];

/// Headers of a file's content that are passed on.
const CONTENT_HEADERS: [HeaderName; 7] = [
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::CONTENT_DISPOSITION,
    header::LAST_MODIFIED,
    header::ETAG,
    HeaderName::from_static(SIZE_HEADER),
];

/// Writes a file whole, atomically; its directories are made.
#[utoipa::path(post, path = "/v1/sessions/{id}/fs/write", tag = "files", params(("id" = String, Path)), request_body = FsWrite, responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
))]
pub(super) async fn write(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    Json(request): Json<FsWrite>,
) -> ApiResult<Response<Body>> {
    let path = resolve_file(&request.path)?;
    let content = content(request)?;
    Inside::enter(edge, id).await?.put(&path, whole(content)).await?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Exactly one of the two forms. One that is present but empty is an empty file, unless the other has content: some
/// clients send the form that they do not use as an empty one.
pub(super) fn content(request: FsWrite) -> ApiResult<Vec<u8>> {
    let decode = |encoded: String| {
        BASE64
            .decode(encoded)
            .map_err(|error| ApiError::invalid(format!("content_base64 is not base64: {error}")))
    };
    match (request.text, request.content_base64) {
        (Some(text), Some(encoded)) if !text.is_empty() && !encoded.is_empty() => {
            Err(ApiError::invalid("provide either 'text' or 'content_base64', not both"))
        }
        (Some(text), None) => Ok(text.into_bytes()),
        (Some(text), Some(_)) if !text.is_empty() => Ok(text.into_bytes()),
        (_, Some(encoded)) => decode(encoded),
        (None, None) => Err(ApiError::invalid("either 'text' or 'content_base64' must be provided")),
    }
}

/// Reads the beginning of a file.
#[utoipa::path(get, path = "/v1/sessions/{id}/fs/read", tag = "files", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "under /workspace, or relative to it"),
    ("max_bytes" = Option<u64>, Query, description = "0 to 104857600; 0: 10 MiB"),
), responses(
    (status = 200, body = FsRead),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND or FILE_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
))]
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let limit = read_limit(&uri)?;
    let asked = asked_path(&uri)?;
    let path = resolve(&asked)?;
    let inside = Inside::enter(edge, id).await?;
    let limit_text = limit.to_string();
    let parameters = [("offset", "0"), ("limit", limit_text.as_str())];
    let call = Call { parameters: &parameters, ..Call::get("/files/download", &path) };
    let file = inside.call(call).await?;
    let number = |name: &str| file.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let Some(size) = number(SIZE_HEADER) else {
        return Err(ApiError::new(
            Kind::Internal,
            Subject::File,
            "the agent did not tell the size of the file",
        ));
    };
    let length = number(header::CONTENT_LENGTH.as_str());
    Ok(encoded_answer(&asked, size > limit, length, file.into_body()))
}

/// How many bytes of a file are asked for.
pub(super) fn read_limit(uri: &Uri) -> ApiResult<u64> {
    match parameter(uri, "max_bytes")?.as_deref() {
        None | Some("") => Ok(READ_BYTES_DEFAULT),
        Some(text) => {
            match text.parse::<i64>().map_err(|_| ApiError::invalid("max_bytes must be an integer"))? {
                ..0 => Err(ApiError::invalid("max_bytes must be non-negative")),
                0 => Ok(READ_BYTES_DEFAULT),
                bytes @ 1..=READ_BYTES_MAX => Ok(bytes.unsigned_abs()),
                _ => Err(ApiError::invalid("max_bytes must not exceed 104857600 (100MB)")),
            }
        }
    }
}

/// `{"path":…,"content_base64":…,"truncated":…}` around a file that streams through: it is never held whole.
pub(super) fn encoded_answer<B>(asked: &str, truncated: bool, length: Option<u64>, file: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError> + Send,
{
    let path = serde_json::to_string(asked).expect("a string serialises");
    let head = format!("{{\"path\":{path},\"content_base64\":\"");
    let tail = format!("\",\"truncated\":{truncated}}}\n");
    let total = length.map(|length| head.len() as u64 + length.div_ceil(3) * 4 + tail.len() as u64);
    let encoding = Encoding { file, kept: Vec::new(), head: Some(head), tail: Some(tail) };
    let stream = futures::stream::unfold(encoding, |mut encoding| async {
        let piece = encoding.next().await?;
        Some((piece, encoding))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(total) = total {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(total));
    }
    response
}

/// A file on its way into a JSON string.
struct Encoding<B> {
    file: B,
    /// Bytes that make no whole group of three yet.
    kept: Vec<u8>,
    head: Option<String>,
    tail: Option<String>,
}

impl<B: hyper::body::Body<Data = Bytes> + Unpin> Encoding<B> {
    async fn next(&mut self) -> Option<Result<Bytes, B::Error>> {
        if let Some(head) = self.head.take() {
            return Some(Ok(head.into()));
        }
        while let Some(frame) = self.file.frame().await {
            let data = match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => data,
                Ok(Err(_trailers)) => continue,
                Err(error) => return Some(Err(error)),
            };
            self.kept.extend_from_slice(&data);
            let whole = self.kept.len() / 3 * 3;
            if whole > 0 {
                let encoded = BASE64.encode(&self.kept[..whole]);
                self.kept.drain(..whole);
                return Some(Ok(encoded.into()));
            }
        }
        let tail = self.tail.take()?;
        Some(Ok(format!("{}{tail}", BASE64.encode(&self.kept)).into()))
    }
}

/// Entries of a directory, by name.
#[utoipa::path(get, path = "/v1/sessions/{id}/fs/list", tag = "files", params(
    ("id" = String, Path),
    ("path" = Option<String>, Query, description = "under /workspace, or relative to it; absent: /workspace"),
), responses(
    (status = 200, body = FsList),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path =
        resolve(parameter(&uri, "path")?.filter(|path| !path.is_empty()).as_deref().unwrap_or(WORKSPACE))?;
    let inside = Inside::enter(edge, id).await?;
    let response = inside.call(Call::get("/files", &path)).await?;
    let infos: Vec<AgentFile> = agent_json(&inside.collect(response, LISTING_BYTES_MAX).await?)?;
    let mut entries: Vec<FsEntry> = infos.into_iter().map(FsEntry::from).collect();
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(json(StatusCode::OK, &FsList { entries }))
}

/// A file or directory.
#[utoipa::path(get, path = "/v1/sessions/{id}/fs/stat", tag = "files", params(
    ("id" = String, Path), ("path" = String, Query, description = "under /workspace, or relative to it"),
), responses(
    (status = 200, body = FsEntry),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn stat(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path = resolve(&asked_path(&uri)?)?;
    let inside = Inside::enter(edge, id).await?;
    let response = inside.call(Call::get("/files/info", &path)).await?;
    let info: AgentFile = agent_json(&inside.collect(response, LISTING_BYTES_MAX).await?)?;
    Ok(json(StatusCode::OK, &FsEntry::from(info)))
}

/// Removes a file or an empty directory; with `recursive=true` a directory with all in it.
#[utoipa::path(delete, path = "/v1/sessions/{id}/fs", tag = "files", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "under /workspace, or relative to it"),
    ("recursive" = Option<bool>, Query),
), responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path = resolve_file(&asked_path(&uri)?)?;
    let recursive = if flag(&uri, "recursive")? { "true" } else { "false" };
    let inside = Inside::enter(edge, id).await?;
    let parameters = [("recursive", recursive)];
    let call = Call { method: Method::DELETE, parameters: &parameters, ..Call::get("/files", &path) };
    inside.call(call).await?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// A file's content as it is, streamed; `Range` is honoured.
#[utoipa::path(get, path = "/v1/sessions/{id}/fs/raw", tag = "files", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "under /workspace, or relative to it"),
    ("Range" = Option<String>, Header),
), responses(
    (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
    (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND or FILE_NOT_FOUND"),
    (status = 416, body = ErrorBody, description = "INVALID_RANGE"),
))]
pub(super) async fn raw_read(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    uri: Uri,
    given: HeaderMap,
) -> ApiResult<Response<Body>> {
    let path = resolve(&asked_path(&uri)?)?;
    let inside = Inside::enter(edge, id).await?;
    let headers = selected(&given, &REQUEST_HEADERS);
    let file = inside.call(Call { headers, ..Call::get("/files/download", &path) }).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = file.status();
    *response.headers_mut() = selected(file.headers(), &CONTENT_HEADERS);
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    *response.body_mut() = Body::new(file.into_body());
    Ok(response)
}

/// Writes a file whole from the request's body, streamed and atomic: until the last byte has arrived, readers see the
/// old content. Its directories are made. The limit is the session's disk.
#[utoipa::path(put, path = "/v1/sessions/{id}/fs/raw", tag = "files", params(
    ("id" = String, Path), ("path" = String, Query, description = "under /workspace, or relative to it"),
), request_body(content_type = "application/octet-stream", content = Vec<u8>), responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 507, body = ErrorBody, description = "DISK_FULL"),
))]
pub(super) async fn raw_write(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    request: Request,
) -> ApiResult<Response<Body>> {
    let path = resolve_file(&asked_path(request.uri())?)?;
    Inside::enter(edge, id).await?.put(&path, forward(request.into_body())).await?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// A file as the agent describes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentFile {
    name: String,
    size: u64,
    mode: String,
    mod_time: String,
    is_dir: bool,
}

impl From<AgentFile> for FsEntry {
    fn from(file: AgentFile) -> Self {
        let AgentFile { name, size, mode, mod_time, is_dir } = file;
        Self { name, is_dir, size, mode, modified_at: mod_time }
    }
}

fn agent_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::of(Subject::File, sandhaus_sandbox::Error::internal("read the agent's answer", error))
    })
}

fn selected(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}

/// The query parameters, decoded, in order.
pub(super) fn query_pairs(uri: &Uri) -> ApiResult<Vec<(String, String)>> {
    Query::try_from_uri(uri)
        .map(|Query(pairs)| pairs)
        .map_err(|_| ApiError::invalid("the query parameters are malformed"))
}

/// A parameter that is true or false.
pub(super) fn flag(uri: &Uri, name: &str) -> ApiResult<bool> {
    match parameter(uri, name)?.as_deref() {
        None | Some("" | "false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(ApiError::invalid(format!("{name} must be true or false"))),
    }
}

pub(super) fn parameter(uri: &Uri, wanted: &str) -> ApiResult<Option<String>> {
    Ok(query_pairs(uri)?.into_iter().find_map(|(name, value)| (name == wanted).then_some(value)))
}

pub(super) fn asked_path(uri: &Uri) -> ApiResult<String> {
    parameter(uri, "path")?
        .filter(|path| !path.is_empty())
        .ok_or_else(|| ApiError::invalid("path query parameter is required"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: Option<&str>, encoded: Option<&str>) -> FsWrite {
        FsWrite { path: "x".into(), text: text.map(Into::into), content_base64: encoded.map(Into::into) }
    }

    #[test]
    fn one_content_in_either_form() {
        assert_eq!(content(write(Some("hi"), None)).unwrap(), b"hi");
        assert_eq!(content(write(None, Some("AAEC"))).unwrap(), [0, 1, 2]);
        assert_eq!(content(write(Some(""), None)).unwrap(), b"");
        assert_eq!(content(write(None, Some(""))).unwrap(), b"");
        assert_eq!(content(write(Some(""), Some("AAEC"))).unwrap(), [0, 1, 2]);
        assert_eq!(content(write(Some("hi"), Some(""))).unwrap(), b"hi");
        let message = |request| content(request).unwrap_err().public_message("");
        assert_eq!(
            message(write(Some("a"), Some("AAEC"))),
            "provide either 'text' or 'content_base64', not both"
        );
        assert_eq!(message(write(None, None)), "either 'text' or 'content_base64' must be provided");
        assert!(message(write(None, Some("***"))).starts_with("content_base64 is not base64"));
    }

    #[test]
    fn queries_are_decoded() {
        let pairs = query_pairs(&Uri::from_static("/x?path=a%20b+c%C3%BC&path=2&flag")).unwrap();
        assert_eq!(pairs[0], ("path".into(), "a b c\u{fc}".into()));
        assert_eq!(parameter(&Uri::from_static("/x?a=1&path=p"), "path").unwrap().as_deref(), Some("p"));
    }
}
