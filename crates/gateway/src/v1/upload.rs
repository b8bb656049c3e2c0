//! Uploads as browsers and the published clients send them: `multipart/form-data`, streamed on to the agent.
//!
//! The fields are `file` (any number; or, if there is none, `files`) and `path`, the directory to put them into. A
//! part goes straight through when it is known where it goes; a part that comes before `path`, or under the second
//! name, waits in memory until the form has ended. Each file is atomic, the form is not: files written before a later
//! one fails stay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Response, StatusCode, header},
};
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use multer::{Field, Multipart};
use sandhaus_client::wire::{ErrorBody, UPLOAD_FILES_MAX, Uploaded};
use sandhaus_protocol::files::PATH_BYTES_MAX;
use sandhaus_sandbox::{toolbox, workspace::WorkspaceFiles};
use serde_json::json;

use super::{
    SessionPath,
    inside::{Inside, resolve, whole},
    json,
    wire::WORKSPACE,
    workspaces,
};
use crate::{
    body::forward,
    edge::Edge,
    error::{ApiError, ApiResult},
};

/// What a body fails with.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How long a whole form may take to arrive.
const FORM_TIMEOUT: Duration = Duration::from_secs(600);

/// Puts files into a directory under `/workspace`.
#[utoipa::path(post, path = "/v1/sessions/{id}/fs/upload", tag = "files", params(("id" = String, Path)),
    request_body(content_type = "multipart/form-data", content = Object, description = "fields: file (one or more), path (directory)"),
    responses(
        (status = 200, body = Uploaded),
        (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
        (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
        (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    ))]
pub(super) async fn upload(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    request: Request,
) -> ApiResult<Response<Body>> {
    let form = begin(&edge, request)?;
    form.receive(Target::Session(Inside::enter(edge, id).await?)).await
}

/// A form whose header is read and found well.
pub(super) struct Begun {
    limit: Limit,
    form: Multipart<'static>,
}

/// Where a form's files go.
pub(super) enum Target {
    /// Into a session that runs.
    Session(Inside),
    /// Into a workspace.
    Workspace(WorkspaceFiles),
}

/// Reads the header of a form; nothing of its body yet.
pub(super) fn begin(edge: &Edge, request: Request) -> ApiResult<Begun> {
    let limit = Limit::new(edge.v1.upload_bytes_max);
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > limit.bytes_max) {
        return Err(limit.error());
    }
    let boundary = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| multer::parse_boundary(value.to_str().ok()?).ok())
        .ok_or_else(|| ApiError::invalid("invalid multipart form: the content type names no boundary"))?;
    let form = Multipart::new(limit.count(request.into_body()), boundary);
    Ok(Begun { limit, form })
}

impl Begun {
    /// Takes the files and answers where they are.
    pub(super) async fn receive(self, target: Target) -> ApiResult<Response<Body>> {
        let Self { limit, form } = self;
        let receive =
            Form { target, limit, directory: None, count: 0, waiting: Vec::new(), paths: Vec::new() }
                .receive(form);
        let paths = tokio::time::timeout(FORM_TIMEOUT, receive)
            .await
            .unwrap_or_else(|_| Err(ApiError::invalid("the form did not arrive in time")))?;
        Ok(json(StatusCode::OK, &Uploaded { ok: true, paths }))
    }
}

impl Target {
    /// The directory that a form names, checked; empty is the topmost.
    fn directory(&self, text: &str) -> ApiResult<String> {
        match self {
            Self::Session(_) => resolve(if text.is_empty() { WORKSPACE } else { text }),
            Self::Workspace(_) => Ok(workspaces::any_path(text)?.as_str().to_owned()),
        }
    }

    async fn put(&self, path: &str, content: toolbox::Body) -> ApiResult<()> {
        match self {
            Self::Session(inside) => inside.put(path, content).await,
            Self::Workspace(files) => {
                let path = workspaces::any_path(path)?;
                files.write(path, content).await.map_err(workspaces::file_error)
            }
        }
    }
}

/// Counts the bytes of a body, and remembers that there were too many: by then the error has passed through layers
/// that keep only its words.
#[derive(Clone)]
struct Limit {
    seen: Arc<AtomicU64>,
    bytes_max: u64,
}

impl Limit {
    fn new(bytes_max: usize) -> Self {
        Self { seen: Arc::default(), bytes_max: bytes_max as u64 }
    }

    fn count(&self, body: Body) -> impl futures::Stream<Item = Result<Bytes, Cause>> + Send + 'static {
        let limit = self.clone();
        BodyStream::new(forward(body)).map(move |frame| {
            let data = frame?.into_data().unwrap_or_default();
            let seen = limit.seen.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
            if seen > limit.bytes_max { Err("the form is too large".into()) } else { Ok(data) }
        })
    }

    fn is_passed(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > self.bytes_max
    }

    fn error(&self) -> ApiError {
        ApiError::invalid("request body too large").with_details(json!({ "max_bytes": self.bytes_max }))
    }

    /// The true reason of an error met while the form was read.
    fn explain(&self, error: ApiError) -> ApiError {
        if self.is_passed() { self.error() } else { error }
    }
}

/// The two names that files come under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    File,
    Files,
}

struct Waiting {
    name: Name,
    file_name: String,
    content: Bytes,
}

/// A form as it is read.
struct Form {
    target: Target,
    limit: Limit,
    directory: Option<String>,
    count: usize,
    waiting: Vec<Waiting>,
    paths: Vec<String>,
}

impl Form {
    /// Reads the form to its end and answers where its files are.
    async fn receive(mut self, mut form: Multipart<'static>) -> ApiResult<Vec<String>> {
        while let Some(field) = form.next_field().await.map_err(|error| self.malformed(&error))? {
            match field.name() {
                Some("path") => self.take_directory(field).await?,
                Some("file") => self.take_file(Name::File, field).await?,
                Some("files") => self.take_file(Name::Files, field).await?,
                _ => {}
            }
        }
        let directory = match self.directory.take() {
            Some(directory) => directory,
            None => self.target.directory("")?,
        };
        let any_file =
            !self.paths.is_empty() || self.waiting.iter().any(|waiting| waiting.name == Name::File);
        for Waiting { name, file_name, content } in std::mem::take(&mut self.waiting) {
            if name == Name::File || !any_file {
                self.put(&directory, &file_name, whole(content)).await?;
            }
        }
        if self.paths.is_empty() {
            return Err(ApiError::invalid("no file provided: use form field 'file' or 'files'"));
        }
        Ok(self.paths)
    }

    async fn take_directory(&mut self, mut field: Field<'static>) -> ApiResult<()> {
        let mut text = Vec::new();
        while let Some(piece) = field.chunk().await.map_err(|error| self.malformed(&error))? {
            if text.len() + piece.len() > PATH_BYTES_MAX {
                return Err(ApiError::invalid(format!("path must not exceed {PATH_BYTES_MAX} bytes")));
            }
            text.extend_from_slice(&piece);
        }
        let text = String::from_utf8(text).map_err(|_| ApiError::invalid("path must be UTF-8"))?;
        self.directory = Some(self.target.directory(&text)?);
        Ok(())
    }

    async fn take_file(&mut self, name: Name, field: Field<'static>) -> ApiResult<()> {
        self.count += 1;
        if self.count > UPLOAD_FILES_MAX {
            let details = json!({ "max_files": UPLOAD_FILES_MAX });
            return Err(ApiError::invalid("too many files").with_details(details));
        }
        let file_name = base_name(field.file_name().unwrap_or_default())?;
        match (name, self.directory.clone()) {
            (Name::File, Some(directory)) => {
                let stream = field.map_ok(Frame::data).map_err(Cause::from);
                let put = self.put(&directory, &file_name, BodyExt::boxed(StreamBody::new(stream))).await;
                put.map_err(|error| self.limit.explain(error))
            }
            _ => {
                let content = field.bytes().await.map_err(|error| self.malformed(&error))?;
                self.waiting.push(Waiting { name, file_name, content });
                Ok(())
            }
        }
    }

    async fn put(&mut self, directory: &str, file_name: &str, content: toolbox::Body) -> ApiResult<()> {
        // The topmost directory of a workspace has no name.
        let path =
            if directory.is_empty() { file_name.to_owned() } else { format!("{directory}/{file_name}") };
        self.target.put(&path, content).await?;
        self.paths.push(path);
        Ok(())
    }

    fn malformed(&self, error: &multer::Error) -> ApiError {
        self.limit.explain(ApiError::invalid(format!("invalid multipart form: {error}")))
    }
}

/// The last part of a file name as a client sent it.
fn base_name(name: &str) -> ApiResult<String> {
    let base = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    if base.is_empty() || base == "." || base.contains("..") || base.contains('\0') || base.len() > 255 {
        return Err(ApiError::invalid(format!("invalid file name: {name:?}")));
    }
    Ok(base.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_names() {
        assert_eq!(base_name("a.txt").unwrap(), "a.txt");
        assert_eq!(base_name("/etc/passwd").unwrap(), "passwd");
        assert_eq!(base_name("dir/sub/").unwrap(), "sub");
        assert_eq!(base_name("\u{fc} name").unwrap(), "\u{fc} name");
        for wrong in ["", "/", ".", "..", "../x/..", "a..b", "a\0b", &"a".repeat(256)] {
            assert!(base_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
