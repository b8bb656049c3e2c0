//! Workspaces: what outlives sessions, and its files from outside. Here the host itself opens files, so all that is
//! said about paths is the domain's: beneath the workspace's root, and nothing but regular files.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header, request::Parts},
};
use sandhaus_client::wire::{
    ErrorBody, FsEntry, FsList, FsRead, FsWrite, Okay, Uploaded, WorkspaceInfo, WorkspaceList,
};
use sandhaus_sandbox::{
    Error, Kind, WorkspaceId,
    workspace::{Extent, FileEntry, Missing, Removal, WorkspaceFiles, WorkspacePath, WorkspaceView},
};

use super::{
    files::{asked_path, content, encoded_answer, flag, parameter, read_limit},
    inside::whole,
    json,
    json::Json,
    upload::{self, Target},
    wire::time,
};
use crate::{
    body::forward,
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// The `{id}` of a path, parsed.
pub(super) struct IdPath(WorkspaceId);

impl<S: Send + Sync> FromRequestParts<S> for IdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refuse = || ApiError::invalid("invalid workspace id");
        let parameters = RawPathParams::from_request_parts(parts, state).await.map_err(|_| refuse())?;
        let text = parameters.iter().find_map(|(name, value)| (name == "id").then_some(value));
        parse(text.ok_or_else(refuse)?).map(Self)
    }
}

/// The words of the path form differ a little from those of a create request.
fn parse(text: &str) -> ApiResult<WorkspaceId> {
    WorkspaceId::parse(text)
        .map_err(|error| ApiError::invalid(error.message().replace("workspace_id", "workspace id")))
}

/// Workspaces, by id.
#[utoipa::path(get, path = "/v1/workspaces", tag = "workspaces", responses(
    (status = 200, body = WorkspaceList),
    (status = 400, body = ErrorBody, description = "INVALID_WORKSPACE: there are none on this server"),
))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let views = edge.service.workspaces().await.map_err(workspace_error)?;
    Ok(json(StatusCode::OK, &WorkspaceList { workspaces: views.into_iter().map(info).collect() }))
}

fn info(view: WorkspaceView) -> WorkspaceInfo {
    WorkspaceInfo {
        id: view.id.to_string(),
        created_at: time(view.created_at_ms),
        used_bytes: view.used_bytes,
        quota_bytes: view.quota_bytes,
        session_count: view.sandboxes,
        active_session_count: view.running,
    }
}

/// Removes a workspace with all its files. One that is not there is success. One that live sessions show is refused, or
/// with `force=true` taken from them: they see an empty directory until they are started again.
#[utoipa::path(delete, path = "/v1/workspaces/{id}", tag = "workspaces", params(
    ("id" = String, Path), ("force" = Option<bool>, Query),
), responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 409, body = ErrorBody, description = "WORKSPACE_IN_USE"),
))]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let removal = if flag(&uri, "force")? { Removal::Forced } else { Removal::Unused };
    edge.service.remove_workspace(id, removal).await.map_err(workspace_error)?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Writes a file whole, atomically; its directories are made, and so is the workspace.
#[utoipa::path(post, path = "/v1/workspaces/{id}/fs/write", tag = "workspaces", params(("id" = String, Path)), request_body = FsWrite, responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 507, body = ErrorBody, description = "WORKSPACE_FULL"),
))]
pub(super) async fn write(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    Json(request): Json<FsWrite>,
) -> ApiResult<Response<Body>> {
    let path = file_path(&request.path)?;
    let content = content(request)?;
    let files = open(&edge, id, Missing::Make).await?;
    files.write(path, whole(content)).await.map_err(file_error)?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Puts files into a directory of a workspace, which is made if it is not there.
#[utoipa::path(post, path = "/v1/workspaces/{id}/fs/upload", tag = "workspaces", params(("id" = String, Path)),
    request_body(content_type = "multipart/form-data", content = Object, description = "fields: file (one or more), path (directory)"),
    responses(
        (status = 200, body = Uploaded),
        (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
        (status = 507, body = ErrorBody, description = "WORKSPACE_FULL"),
    ))]
pub(super) async fn upload(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    request: Request,
) -> ApiResult<Response<Body>> {
    let form = upload::begin(&edge, request)?;
    let files = open(&edge, id, Missing::Make).await?;
    form.receive(Target::Workspace(files)).await
}

/// Entries of a directory, by name.
#[utoipa::path(get, path = "/v1/workspaces/{id}/fs", tag = "workspaces", params(
    ("id" = String, Path), ("path" = Option<String>, Query, description = "from the workspace's root; absent: the root"),
), responses(
    (status = 200, body = FsList),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 404, body = ErrorBody, description = "WORKSPACE_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn list_files(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path = any_path(parameter(&uri, "path")?.as_deref().unwrap_or("."))?;
    let files = open(&edge, id, Missing::Refuse).await?;
    let entries = files.list(path).await.map_err(file_error)?;
    Ok(json(StatusCode::OK, &FsList { entries: entries.into_iter().map(entry).collect() }))
}

/// A file or directory.
#[utoipa::path(get, path = "/v1/workspaces/{id}/fs/stat", tag = "workspaces", params(
    ("id" = String, Path), ("path" = String, Query, description = "from the workspace's root"),
), responses(
    (status = 200, body = FsEntry),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 404, body = ErrorBody, description = "WORKSPACE_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn stat(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path = any_path(&asked_path(&uri)?)?;
    let files = open(&edge, id, Missing::Refuse).await?;
    Ok(json(StatusCode::OK, &entry(files.stat(path).await.map_err(file_error)?)))
}

/// Reads the beginning of a file.
#[utoipa::path(get, path = "/v1/workspaces/{id}/fs/read", tag = "workspaces", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "from the workspace's root"),
    ("max_bytes" = Option<u64>, Query, description = "0 to 104857600; 0: 10 MiB"),
), responses(
    (status = 200, body = FsRead),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 404, body = ErrorBody, description = "WORKSPACE_NOT_FOUND or FILE_NOT_FOUND"),
))]
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let limit = read_limit(&uri)?;
    let asked = asked_path(&uri)?;
    let path = any_path(&asked)?;
    let files = open(&edge, id, Missing::Refuse).await?;
    let file = files.open(path).await.map_err(file_error)?;
    let truncated = file.entry().size_bytes > limit;
    // Its length is not announced: a session may change the file meanwhile.
    Ok(encoded_answer(&asked, truncated, None, file.content(0, limit)))
}

/// A file's content as it is, streamed; a `Range` of one part is honoured.
#[utoipa::path(get, path = "/v1/workspaces/{id}/fs/raw", tag = "workspaces", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "from the workspace's root"),
    ("Range" = Option<String>, Header),
), responses(
    (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
    (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
    (status = 404, body = ErrorBody, description = "WORKSPACE_NOT_FOUND or FILE_NOT_FOUND"),
    (status = 416, body = ErrorBody, description = "INVALID_RANGE"),
))]
pub(super) async fn raw_read(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
    given: HeaderMap,
) -> ApiResult<Response<Body>> {
    let path = any_path(&asked_path(&uri)?)?;
    let files = open(&edge, id, Missing::Refuse).await?;
    let file = files.open(path).await.map_err(file_error)?;
    let size = file.entry().size_bytes;
    let asked = given.get(header::RANGE).and_then(|range| range.to_str().ok());
    let (status, first, length) = match asked.map_or(Part::Whole, |range| part(range, size)) {
        Part::Whole => (StatusCode::OK, 0, size),
        Part::Some { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
        Part::Outside => {
            let refusal = ApiError::invalid(format!("the file has {size} bytes"));
            return Err(refusal.with_status(StatusCode::RANGE_NOT_SATISFIABLE, "INVALID_RANGE"));
        }
    };
    let mut response = Response::new(Body::new(file.content(first, length)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{size}", first + length - 1);
        headers
            .insert(header::CONTENT_RANGE, HeaderValue::try_from(range).expect("digits make a header value"));
    }
    Ok(response)
}

/// Writes a file whole from the request's body, streamed and atomic: until the last byte has arrived, readers see the
/// old content. Its directories are made, and so is the workspace.
#[utoipa::path(put, path = "/v1/workspaces/{id}/fs/raw", tag = "workspaces", params(
    ("id" = String, Path), ("path" = String, Query, description = "from the workspace's root"),
), request_body(content_type = "application/octet-stream", content = Vec<u8>), responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 507, body = ErrorBody, description = "WORKSPACE_FULL"),
))]
pub(super) async fn raw_write(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    request: Request,
) -> ApiResult<Response<Body>> {
    let path = file_path(&asked_path(request.uri())?)?;
    let files = open(&edge, id, Missing::Make).await?;
    files.write(path, forward(request.into_body())).await.map_err(file_error)?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Removes a file or an empty directory; with `recursive=true` a directory with all in it.
#[utoipa::path(delete, path = "/v1/workspaces/{id}/fs", tag = "workspaces", params(
    ("id" = String, Path),
    ("path" = String, Query, description = "from the workspace's root"),
    ("recursive" = Option<bool>, Query),
), responses(
    (status = 200, body = Okay),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST or INVALID_WORKSPACE"),
    (status = 404, body = ErrorBody, description = "WORKSPACE_NOT_FOUND or FILE_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "CONFLICT: the directory is not empty"),
))]
pub(super) async fn remove_file(
    State(edge): State<Arc<Edge>>,
    IdPath(id): IdPath,
    uri: Uri,
) -> ApiResult<Response<Body>> {
    let path = file_path(&asked_path(&uri)?)?;
    let extent = if flag(&uri, "recursive")? { Extent::Tree } else { Extent::One };
    let files = open(&edge, id, Missing::Refuse).await?;
    files.remove(path, extent).await.map_err(file_error)?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

async fn open(edge: &Edge, id: WorkspaceId, missing: Missing) -> ApiResult<WorkspaceFiles> {
    edge.service.workspace_files(id, missing).await.map_err(workspace_error)
}

fn entry(entry: FileEntry) -> FsEntry {
    FsEntry {
        is_dir: entry.is_dir(),
        size: entry.size_bytes,
        mode: entry.mode_text(),
        modified_at: time(entry.modified_at_ms),
        name: entry.name,
    }
}

/// A path in a workspace.
pub(super) fn any_path(text: &str) -> ApiResult<WorkspacePath> {
    WorkspacePath::parse(text).map_err(|error| ApiError::of(Subject::Workspace, error))
}

/// The same for something below its root.
fn file_path(text: &str) -> ApiResult<WorkspacePath> {
    if text.is_empty() {
        return Err(ApiError::invalid("path is required"));
    }
    let path = any_path(text)?;
    if path.is_root() {
        return Err(ApiError::invalid("path must point to a file in the workspace"));
    }
    Ok(path)
}

/// An error about a workspace as a whole.
pub(super) fn workspace_error(error: Error) -> ApiError {
    full_or(Subject::Workspace, error)
}

/// An error about a file in a workspace.
pub(super) fn file_error(error: Error) -> ApiError {
    full_or(Subject::File, error)
}

fn full_or(subject: Subject, error: Error) -> ApiError {
    let is_full = error.kind() == Kind::Exhausted;
    let error = ApiError::of(subject, error);
    if is_full { error.with_status(StatusCode::INSUFFICIENT_STORAGE, "WORKSPACE_FULL") } else { error }
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it: there is no range, or one of a kind that is not known here, which then counts for nothing.
    Whole,
    Some {
        first: u64,
        length: u64,
    },
    Outside,
}

fn part(range: &str, size: u64) -> Part {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => (first, size),
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), size),
        _ => return Part::Whole,
    };
    if first >= end { Part::Outside } else { Part::Some { first, length: end - first } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_paths_are_checked_in_their_own_words() {
        assert_eq!(parse("sandkasten-ws-abc").unwrap().as_str(), "abc");
        for (id, expected) in [
            ("a", "workspace id must be at least 2 characters"),
            (&"a".repeat(65), "workspace id must not exceed 64 characters"),
            ("..", "workspace id must contain only lowercase letters, numbers, and hyphens"),
            ("sandkasten-ws-", "workspace id must be at least 2 characters"),
        ] {
            assert!(parse(id).unwrap_err().public_message("").starts_with(expected), "{id}");
        }
    }

    #[test]
    fn ranges() {
        let some = |first, length| Part::Some { first, length };
        for (range, expected) in [
            ("bytes=0-0", some(0, 1)),
            ("bytes=2-", some(2, 8)),
            ("bytes=2-100", some(2, 8)),
            ("bytes=-3", some(7, 3)),
            ("bytes=-100", some(0, 10)),
            ("bytes=10-", Part::Outside),
            ("bytes=-0", Part::Outside),
            ("bytes=5-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes=x-", Part::Whole),
        ] {
            assert_eq!(part(range, 10), expected, "{range}");
        }
        assert_eq!(part("bytes=0-", 0), Part::Outside);
    }

    #[test]
    fn a_full_workspace_has_a_code_of_its_own() {
        let error = file_error(Error::new(Kind::Exhausted, "workspace ab is full"));
        assert_eq!((error.status(), error.code()), (StatusCode::INSUFFICIENT_STORAGE, "WORKSPACE_FULL"));
        let error = workspace_error(Error::new(Kind::Conflict, "workspace ab is in use"));
        assert_eq!((error.status(), error.code()), (StatusCode::CONFLICT, "WORKSPACE_IN_USE"));
    }
}
