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
use futures::{StreamExt, stream::BoxStream};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use sandhaus_client::wire::{ErrorBody, UPLOAD_FILES_MAX, Uploaded};
use sandhaus_protocol::{
    files::PATH_BYTES_MAX,
    multipart::{self, Decoder, Event, Malformed, Part},
};
use sandhaus_sandbox::{toolbox, workspace::WorkspaceFiles};
use serde_json::json;
use tokio::sync::mpsc;

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
    parts: Parts,
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
        .and_then(|value| multipart::boundary(value.to_str().ok()?))
        .ok_or_else(|| ApiError::invalid("invalid multipart form: the content type names no boundary"))?;
    let parts = Parts::new(limit.count(request.into_body()).boxed(), &boundary);
    Ok(Begun { limit, parts })
}

impl Begun {
    /// Takes the files and answers where they are.
    pub(super) async fn receive(self, target: Target) -> ApiResult<Response<Body>> {
        let Self { limit, parts } = self;
        let receive =
            Form { target, limit, directory: None, count: 0, waiting: Vec::new(), paths: Vec::new() }
                .receive(parts);
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

/// The parts of a form as they arrive: the body is read only as far as somebody takes what was read.
struct Parts {
    body: BoxStream<'static, Result<Bytes, Cause>>,
    decoder: Decoder,
    /// The part at hand has more content.
    in_part: bool,
}

impl Parts {
    fn new(body: BoxStream<'static, Result<Bytes, Cause>>, boundary: &str) -> Self {
        Self { body, decoder: Decoder::new(boundary), in_part: false }
    }

    /// The next part. What is left of the part at hand is passed over.
    async fn next(&mut self) -> Result<Option<Part>, Cause> {
        while self.in_part {
            self.content().await?;
        }
        match self.event().await? {
            Event::Part(part) => {
                self.in_part = true;
                Ok(Some(part))
            }
            Event::Content(_) | Event::End => Ok(None),
        }
    }

    /// The next piece of the part's content; `None` at its end. Cancel-safe.
    async fn content(&mut self) -> Result<Option<Bytes>, Cause> {
        match self.event().await? {
            Event::Content(bytes) if !bytes.is_empty() => Ok(Some(bytes)),
            Event::Content(_) | Event::Part(_) | Event::End => {
                self.in_part = false;
                Ok(None)
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Cause> {
        loop {
            if let Some(event) = self.decoder.next_event()? {
                return Ok(event);
            }
            let chunk = self.body.next().await.ok_or(Malformed::Cut)??;
            self.decoder.push(&chunk);
        }
    }

    /// Hands the part's content on piece by piece, and says when that was all: whoever takes it would else mistake a form
    /// that breaks off for a whole one. Ends early, and well, when nobody takes it any more.
    async fn pour(&mut self, into: mpsc::Sender<Option<Bytes>>) -> Result<(), Cause> {
        loop {
            let piece = self.content().await?;
            let last = piece.is_none();
            if into.send(piece).await.is_err() || last {
                return Ok(());
            }
        }
    }
}

/// What is poured, as a body.
fn poured(mut pieces: mpsc::Receiver<Option<Bytes>>) -> toolbox::Body {
    let frames = futures::stream::poll_fn(move |context| {
        pieces.poll_recv(context).map(|piece| match piece {
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(None) => None,
            None => Some(Err(Cause::from("the form broke off"))),
        })
    });
    BodyExt::boxed(StreamBody::new(frames))
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
    async fn receive(mut self, mut parts: Parts) -> ApiResult<Vec<String>> {
        while let Some(part) = parts.next().await.map_err(|cause| self.malformed(&cause))? {
            match part.name.as_deref() {
                Some("path") => self.take_directory(&mut parts).await?,
                Some("file") => self.take_file(Name::File, part.file_name, &mut parts).await?,
                Some("files") => self.take_file(Name::Files, part.file_name, &mut parts).await?,
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

    async fn take_directory(&mut self, parts: &mut Parts) -> ApiResult<()> {
        let mut text = Vec::new();
        while let Some(piece) = parts.content().await.map_err(|cause| self.malformed(&cause))? {
            if text.len() + piece.len() > PATH_BYTES_MAX {
                return Err(ApiError::invalid(format!("path must not exceed {PATH_BYTES_MAX} bytes")));
            }
            text.extend_from_slice(&piece);
        }
        let text = String::from_utf8(text).map_err(|_| ApiError::invalid("path must be UTF-8"))?;
        self.directory = Some(self.target.directory(&text)?);
        Ok(())
    }

    async fn take_file(&mut self, name: Name, file_name: Option<String>, parts: &mut Parts) -> ApiResult<()> {
        self.count += 1;
        if self.count > UPLOAD_FILES_MAX {
            let details = json!({ "max_files": UPLOAD_FILES_MAX });
            return Err(ApiError::invalid("too many files").with_details(details));
        }
        let file_name = base_name(&file_name.unwrap_or_default())?;
        if let (Name::File, Some(directory)) = (name, self.directory.clone()) {
            return self.pass_on(&directory, &file_name, parts).await;
        }
        let mut content = Vec::new();
        while let Some(piece) = parts.content().await.map_err(|cause| self.malformed(&cause))? {
            content.extend_from_slice(&piece);
        }
        self.waiting.push(Waiting { name, file_name, content: content.into() });
        Ok(())
    }

    /// Puts the part at hand where it belongs while it arrives.
    async fn pass_on(&mut self, directory: &str, file_name: &str, parts: &mut Parts) -> ApiResult<()> {
        let (sender, pieces) = mpsc::channel(1);
        let limit = self.limit.clone();
        let mut put = std::pin::pin!(self.put(directory, file_name, poured(pieces)));
        // Cancel-safe: who is done first decides, and a part that is not wanted any more is not read any further.
        let (put, broken) = tokio::select! {
            put = put.as_mut() => (put, None),
            done = parts.pour(sender) => (put.await, done.err()),
        };
        match broken {
            Some(cause) => Err(limit.explain(malformed(&cause))),
            None => put.map_err(|error| limit.explain(error)),
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

    fn malformed(&self, cause: &Cause) -> ApiError {
        self.limit.explain(malformed(cause))
    }
}

fn malformed(cause: &Cause) -> ApiError {
    ApiError::invalid(format!("invalid multipart form: {cause}"))
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
