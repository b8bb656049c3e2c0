//! One file's content, in and out: `download` with ranges, `upload` and `upload-v2` with atomic replacement.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use sandhaus_protocol::{files::SIZE_HEADER, toolbox::UploadReply};
use serde::Deserialize;

use super::{
    Target, base_name,
    form::{Form, boundary, drain},
    multipart, work,
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    http,
    sys::Upload,
};

/// Bytes read from a file at once; a file of at most so much goes out in one piece.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes gathered before they are written to a file.
pub(crate) const WRITE_BYTES: usize = 256 * 1024;

/// Query of a download.
#[derive(Debug, Deserialize)]
pub(crate) struct DownloadQuery {
    path: String,
    root: Option<String>,
    offset: Option<u64>,
    limit: Option<u64>,
}

/// Which bytes of a file are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those from `start` up to `end`; said with a plain 200.
    Slice { start: u64, end: u64 },
    /// The same, said with 206 and their place.
    Range { start: u64, end: u64 },
    /// A range that the file does not have.
    Unsatisfiable,
}

/// `GET` and `HEAD /files/download`.
pub(crate) async fn download(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<DownloadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
    let name = base_name(&query.path).to_owned();
    let target = Target { path: query.path, root: query.root };
    let slice = (query.offset.unwrap_or(0), query.limit);
    let (file, size, wanted, first) = work(&agent, target, move |place| {
        let (file, entry) = place.open_regular()?;
        let wanted = choose(range.as_deref(), slice, entry.size);
        let first = match wanted {
            Wanted::Slice { start, end } | Wanted::Range { start, end } => read_chunk(&file, start, end)?,
            Wanted::Unsatisfiable => Vec::new(),
        };
        Ok((file, entry.size, wanted, first))
    })
    .await?;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(SIZE_HEADER, HeaderValue::from(size));
    let (start, end) = match wanted {
        Wanted::Slice { start, end } => (start, end),
        Wanted::Range { start, end } => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes {start}-{}/{size}", end - 1)));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (start, end)
        }
        Wanted::Unsatisfiable => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            response.extensions_mut().insert(Error::no_such_range(size));
            return Ok(response);
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, value(&multipart::disposition("attachment", None, &name)));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
    if method != Method::HEAD {
        *response.body_mut() = if first.len() as u64 == end - start {
            Body::from(first)
        } else {
            stream(agent, file, start, end, first)
        };
    }
    Ok(response)
}

/// A header value; what cannot be one is left empty.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// The rest of a file after its first piece. A file that shrinks meanwhile breaks the answer off, so that the reader
/// sees it is not whole.
pub(crate) fn stream(agent: Arc<Agent>, file: File, start: u64, end: u64, first: Vec<u8>) -> Body {
    let state = (agent, Arc::new(file), start, Some(first));
    Body::from_stream(futures::stream::try_unfold(state, move |(agent, file, at, first)| async move {
        let bytes = match first {
            Some(bytes) => bytes,
            None if at >= end => return Ok(None),
            None => {
                let file = Arc::clone(&file);
                agent.on_file_thread(move || read_chunk(&file, at, end)).await?
            }
        };
        let next = at + bytes.len() as u64;
        Ok::<_, io::Error>(Some((Bytes::from(bytes), (agent, file, next, None))))
    }))
}

/// A piece of a file of at most [`CHUNK_BYTES`], never empty before `end`.
pub(crate) fn read_chunk(file: &File, at: u64, end: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Decides what to send. A Range header that is not understood counts as none, as the standard has it.
fn choose(range: Option<&str>, (offset, limit): (u64, Option<u64>), size: u64) -> Wanted {
    let start = offset.min(size);
    let whole =
        Wanted::Slice { start, end: limit.map_or(size, |limit| start.saturating_add(limit).min(size)) };
    let Some(range) =
        range.and_then(|range| range.strip_prefix("bytes=")).filter(|range| !range.contains(','))
    else {
        return whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else { return whole };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => whole,
        (Ok(first), _) if first >= size => Wanted::Unsatisfiable,
        (Ok(first), Ok(last)) => Wanted::Range { start: first, end: last.saturating_add(1).min(size) },
        (Ok(first), Err(_)) if last.trim().is_empty() => Wanted::Range { start: first, end: size },
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Unsatisfiable,
        (Err(_), Ok(_)) if first.trim().is_empty() && size == 0 => Wanted::Unsatisfiable,
        (Err(_), Ok(last)) if first.trim().is_empty() => {
            Wanted::Range { start: size.saturating_sub(last), end: size }
        }
        _ => whole,
    }
}

/// `POST /files/upload-v2`: a raw body, or a form with a field `file`.
pub(crate) async fn upload(
    State(agent): State<Arc<Agent>>,
    Query(target): Query<Target>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<UploadReply>> {
    let reply = UploadReply {
        name: base_name(&target.path).to_owned(),
        path: target.path.clone(),
        kind: "file".to_owned(),
    };
    match boundary(&headers) {
        Some(boundary) => {
            multipart::receive_field(&agent, target, body, &boundary).await?;
        }
        None => {
            let mut body = body;
            if let Err(error) = receive(&agent, target, Source::Body(&mut body)).await {
                drain(&mut body).await;
                return Err(error);
            }
        }
    }
    Ok(Json(reply))
}

/// `POST /files/upload`: a form with a field `file`.
pub(crate) async fn upload_form(
    State(agent): State<Arc<Agent>>,
    Query(target): Query<Target>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let boundary = boundary(&headers).ok_or_else(|| Error::invalid("the body is no multipart form"))?;
    multipart::receive_field(&agent, target, body, &boundary).await?;
    Ok(StatusCode::OK)
}

/// Where an upload's bytes come from.
pub(super) enum Source<'a> {
    /// A raw request body.
    Body(&'a mut Body),
    /// The part at hand of a form.
    Part(&'a mut Form),
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Body(body) => http::next_chunk(body)
                .await
                .map_err(|error| Error::invalid(format_args!("the upload broke off: {error}"))),
            Self::Part(form) => form.next_content().await,
        }
    }
}

/// Writes what `source` gives beside the target and then puts it in its place. A source that breaks off, or a caller
/// that is dropped, leaves nothing: the upload removes its temporary file whenever it is not committed.
pub(super) async fn receive(agent: &Arc<Agent>, target: Target, mut source: Source<'_>) -> Result<u64> {
    let path = target.path.clone();
    let failed = |error: io::Error| Error::file(&path, &error);
    let mut gathered = Vec::new();
    let mut upload = None;
    loop {
        let chunk = source.next().await?;
        if let Some(chunk) = &chunk {
            gathered.extend_from_slice(chunk);
            if gathered.len() < WRITE_BYTES {
                continue;
            }
        }
        let bytes = std::mem::take(&mut gathered);
        let started: Option<Upload> = upload.take();
        let last = chunk.is_none();
        let target = target.clone();
        let workdir = agent.workdir.clone();
        // Opening, writing and committing a small file is one trip to the file thread.
        let step = agent
            .on_file_thread(move || {
                let mut upload = match started {
                    Some(upload) => upload,
                    None => match target.place(&workdir) {
                        Ok(place) => Upload::start(place).map_err(StepError::File)?,
                        Err(error) => return Err(StepError::Refused(error)),
                    },
                };
                upload.write(&bytes).map_err(StepError::File)?;
                if last { upload.commit().map(Step::Done) } else { Ok(Step::More(Box::new(upload))) }
                    .map_err(StepError::File)
            })
            .await;
        match step {
            Ok(Step::More(started)) => upload = Some(*started),
            Ok(Step::Done(written)) => return Ok(written),
            Err(StepError::File(error)) => return Err(failed(error)),
            Err(StepError::Refused(error)) => return Err(error),
        }
    }
}

enum Step {
    More(Box<Upload>),
    Done(u64),
}

enum StepError {
    File(io::Error),
    Refused(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |text| choose(Some(text), (0, None), 10);
        assert_eq!(range("bytes=2-4"), Wanted::Range { start: 2, end: 5 });
        assert_eq!(range("bytes=2-"), Wanted::Range { start: 2, end: 10 });
        assert_eq!(range("bytes=-3"), Wanted::Range { start: 7, end: 10 });
        assert_eq!(range("bytes=-30"), Wanted::Range { start: 0, end: 10 });
        assert_eq!(range("bytes=0-99"), Wanted::Range { start: 0, end: 10 });
        assert_eq!(range("bytes=10-"), Wanted::Unsatisfiable);
        assert_eq!(range("bytes=-0"), Wanted::Unsatisfiable);
        for ignored in ["bytes=5-2", "bytes=a-b", "bytes=1-2,4-5", "lines=1-2", "bytes=", "bytes=-"] {
            assert_eq!(range(ignored), Wanted::Slice { start: 0, end: 10 }, "{ignored}");
        }
        assert_eq!(choose(None, (4, Some(3)), 10), Wanted::Slice { start: 4, end: 7 });
        assert_eq!(choose(None, (40, Some(u64::MAX)), 10), Wanted::Slice { start: 10, end: 10 });
        assert_eq!(choose(Some("bytes=0-"), (0, None), 0), Wanted::Unsatisfiable);
    }
}
