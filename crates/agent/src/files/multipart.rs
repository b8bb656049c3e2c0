//! Forms: a single file in a field, and many files at once in both directions.

use std::{collections::HashMap, fmt::Write as _, io, sync::Arc};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use sandhaus_protocol::{
    files::PATH_BYTES_MAX,
    toolbox::{BulkDownloadRequest, BulkUploadReply, UploadedFile},
};
use tokio::sync::mpsc;

use super::{
    Target,
    form::{Form, boundary},
    transfer::{Source, read_chunk, receive},
    work,
};
use crate::{
    agent::Agent,
    clock,
    error::{Error, Result},
};

/// Separates the parts of a bulk download; clients look for this very text.
const DOWNLOAD_BOUNDARY: &str = "DAYTONA-FILE-BOUNDARY";

/// Most files in one bulk call.
const FILES_MAX: usize = 10_000;

/// Characters of a field's name that are shown.
const NAME_CHARS_SHOWN: usize = 80;

/// Chunks of a bulk download that are read ahead.
const AHEAD: usize = 2;

/// A Content-Disposition for a file name in any script: a plain form for old readers, an encoded one for the rest.
pub(crate) fn disposition(kind: &str, field: Option<&str>, name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| match c {
            '"' | '\\' => '_',
            c if c.is_ascii() && !c.is_ascii_control() => c,
            _ => '_',
        })
        .collect();
    let mut text = kind.to_owned();
    if let Some(field) = field {
        let _ = write!(text, "; name=\"{field}\"");
    }
    let _ = write!(text, "; filename=\"{plain}\"; filename*=utf-8''");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Stores the field `file` of a form at `target`.
pub(super) async fn receive_field(
    agent: &Arc<Agent>,
    target: Target,
    body: Body,
    boundary: &str,
) -> Result<u64> {
    let mut form = Form::new(body, boundary);
    let received = async {
        while let Some(name) = form.next_part().await? {
            if name == "file" {
                return receive(agent, target, Source::Part(&mut form)).await;
            }
        }
        Err(Error::invalid("the form has no field named file"))
    };
    let received = received.await;
    form.drain().await;
    received
}

/// A path given as a field of a form.
async fn read_path(form: &mut Form) -> Result<String> {
    let mut bytes = Vec::new();
    while let Some(piece) = form.next_content().await? {
        if bytes.len() + piece.len() > PATH_BYTES_MAX {
            return Err(Error::invalid_path(format_args!("a path has 1 to {PATH_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid_path("the path is not UTF-8"))
}

/// What a field of a bulk upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// The path of the file with this number.
    Path(usize),
    /// Its content.
    File(usize),
    /// Of a file, but which?
    Unclear,
    /// Something else.
    Other,
}

impl Field {
    fn parse(name: &str) -> Self {
        let Some(rest) = name.strip_prefix("files[") else { return Self::Other };
        let Some((index, kind)) = rest.split_once("].") else { return Self::Unclear };
        match (index.parse::<usize>().ok().filter(|index| *index < FILES_MAX), kind) {
            (Some(index), "path") => Self::Path(index),
            (Some(index), "file") => Self::File(index),
            _ => Self::Unclear,
        }
    }
}

/// `POST /files/bulk-upload`. One bad file does not stop the others; the body is always read to its end.
pub(crate) async fn upload(
    State(agent): State<Arc<Agent>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let boundary = boundary(&headers).ok_or_else(|| Error::invalid("the body is no multipart form"))?;
    let mut form = Form::new(body, &boundary);
    let mut reply = BulkUploadReply::default();
    if let Err(error) = receive_files(&agent, &mut form, &mut reply).await {
        // Nothing can be understood after this.
        reply.errors.push(error.message.into_owned());
    }
    form.drain().await;
    reply.errors.truncate(FILES_MAX);
    let status = if reply.errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let mut response = (status, Json(&reply)).into_response();
    if !reply.errors.is_empty() {
        response.extensions_mut().insert(crate::http::OwnBody);
    }
    Ok(response)
}

/// Stores one file after the other; what is wrong with one is noted, and an error only what ends all.
async fn receive_files(agent: &Arc<Agent>, form: &mut Form, reply: &mut BulkUploadReply) -> Result<()> {
    let mut paths: HashMap<usize, String> = HashMap::new();
    while let Some(name) = form.next_part().await? {
        if reply.errors.len() + reply.files.len() >= FILES_MAX {
            return Err(Error::invalid(format_args!("at most {FILES_MAX} files at once")));
        }
        match Field::parse(&name) {
            Field::Path(index) => match read_path(form).await {
                Ok(path) => drop(paths.insert(index, path)),
                Err(error) => reply.errors.push(format!("{name}: {}", error.message)),
            },
            Field::File(index) => match paths.remove(&index) {
                Some(path) => {
                    let target = Target { path: path.clone(), root: None };
                    match receive(agent, target, Source::Part(form)).await {
                        Ok(bytes) => reply.files.push(UploadedFile { path, bytes }),
                        Err(error) => reply.errors.push(format!("{path}: {}", error.message)),
                    }
                }
                None => reply.errors.push(format!("{name}: its path was not given before it")),
            },
            Field::Unclear => {
                let shown: String = name.chars().take(NAME_CHARS_SHOWN).collect();
                reply
                    .errors
                    .push(format!("{shown}: not files[N].path or files[N].file, N below {FILES_MAX}"));
            }
            Field::Other => {}
        }
    }
    Ok(())
}

/// `POST /files/bulk-download`: a part per path, in order, with the file or with what is wrong with it.
pub(crate) async fn download(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<BulkDownloadRequest>,
) -> Result<Response> {
    if request.paths.is_empty() || request.paths.len() > FILES_MAX {
        return Err(Error::invalid(format_args!("1 to {FILES_MAX} paths")));
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(AHEAD);
    tokio::spawn(async move {
        for path in request.paths {
            // A reader that is gone needs no more.
            if send_part(&agent, &sender, path).await.is_none() {
                return;
            }
        }
        let _ = sender.send(Ok(Bytes::from(format!("--{DOWNLOAD_BOUNDARY}--\r\n")))).await;
    });
    let parts = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let mut response = Response::new(Body::from_stream(parts));
    let content_type = HeaderValue::from_static("multipart/form-data; boundary=DAYTONA-FILE-BOUNDARY");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// Sends one part; `None` when the rest makes no sense any more.
async fn send_part(agent: &Arc<Agent>, sender: &mpsc::Sender<io::Result<Bytes>>, path: String) -> Option<()> {
    let target = Target { path: path.clone(), root: None };
    let opened = work(agent, target, |place| {
        let (file, entry) = place.open_regular()?;
        let first = read_chunk(&file, 0, entry.size)?;
        Ok((file, entry.size, first))
    })
    .await;
    match opened {
        Err(error) => {
            let body = serde_json::json!({
                "statusCode": error.status.as_u16(),
                "message": error.message,
                "error": error.message,
                "code": error.code,
                "source": "DAYTONA_DAEMON",
                "timestamp": clock::now_rfc3339(),
                "path": path,
                "method": "POST",
            })
            .to_string();
            let head = part_head("error", &path, "application/json", body.len() as u64);
            sender.send(Ok(Bytes::from(format!("{head}{body}\r\n")))).await.ok()
        }
        Ok((file, size, first)) => {
            let mut at = first.len() as u64;
            let mut bytes = part_head("file", &path, content_type(&path), size).into_bytes();
            bytes.extend_from_slice(&first);
            let file = Arc::new(file);
            while at < size {
                sender.send(Ok(Bytes::from(bytes))).await.ok()?;
                let file = Arc::clone(&file);
                match agent.on_file_thread(move || read_chunk(&file, at, size)).await {
                    Ok(more) => bytes = more,
                    Err(error) => {
                        // The missing end of the body tells the client that this is not whole.
                        let _ = sender.send(Err(error)).await;
                        return None;
                    }
                }
                at += bytes.len() as u64;
            }
            bytes.extend_from_slice(b"\r\n");
            sender.send(Ok(Bytes::from(bytes))).await.ok()
        }
    }
}

fn part_head(field: &str, path: &str, content_type: &str, size: u64) -> String {
    let disposition = disposition("form-data", Some(field), path);
    format!(
        "--{DOWNLOAD_BOUNDARY}\r\nContent-Disposition: {disposition}\r\nContent-Type: {content_type}\r\n\
         Content-Length: {size}\r\n\r\n"
    )
}

/// A content type by the name's extension, for the kinds that people download.
fn content_type(path: &str) -> &'static str {
    let extension =
        path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, extension)| extension);
    match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("txt" | "log" | "md") => "text/plain; charset=utf-8",
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("csv") => "text/csv; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("xml") => "application/xml",
        Some("pdf") => "application/pdf",
        Some("zip") => "application/zip",
        Some("gz") => "application/gzip",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("svg") => "image/svg+xml",
        Some("webp") => "image/webp",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_script_have_two_forms() {
        assert_eq!(
            disposition("attachment", None, "ä b\".txt"),
            "attachment; filename=\"_ b_.txt\"; filename*=utf-8''%C3%A4%20b%22.txt"
        );
        assert_eq!(
            disposition("form-data", Some("file"), "/a"),
            "form-data; name=\"file\"; filename=\"/a\"; filename*=utf-8''%2Fa"
        );
    }

    #[test]
    fn fields_of_a_bulk_upload() {
        assert_eq!(Field::parse("files[12].path"), Field::Path(12));
        assert_eq!(Field::parse("files[9999].file"), Field::File(9999));
        for wrong in ["files[].file", "files[-1].file", "files[99999999].file", "files[1]file", "files[1].x"]
        {
            assert_eq!(Field::parse(wrong), Field::Unclear, "{wrong}");
        }
        assert_eq!(Field::parse("file"), Field::Other);
    }
}
