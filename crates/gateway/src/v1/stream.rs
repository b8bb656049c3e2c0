//! Commands in a session, followed as they happen: server-sent events.
//!
//! What the published clients' parsers need, and so what holds here: the data of an event is one line of ASCII (some
//! split lines at U+0085 and U+2028), an event is at most [`EVENT_BYTES_MAX`] bytes and goes out in one write of its
//! own (some forget an event's type between two reads), and a silent stream is kept alive by comments.
//!
//! The id of an event is `COMMAND:OFFSET`: which command of the session, and how many bytes of its output the client
//! has seen. Sent back as `Last-Event-ID` it resumes the stream there, of a running command or of one that has ended
//! lately, without running anything again.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Request, State},
    http::{HeaderMap, HeaderValue, Response, header},
};
use futures::Stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use jiff::Timestamp;
use sandhaus_client::wire::{ErrorBody, ExecDone, ExecFailed, ExecRequest};
use sandhaus_protocol::shell::ShellExit;
use serde::Serialize;

use super::{
    SessionPath,
    clean::Cleaner,
    exec::{Command, ExecName, Output, Running, terminal},
    json::{parse, read_body},
};
use crate::{
    edge::{Edge, RequestId},
    error::{ApiError, ApiResult},
};

/// Silence after which a comment is sent.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Largest event in bytes, framing included.
const EVENT_BYTES_MAX: usize = 8 * 1024;

/// Terminal bytes that are cleaned and escaped at a time.
const PIECE_BYTES: usize = 256;

/// Most ASCII bytes that one terminal byte becomes: `\ufffd`.
const ESCAPED_BYTES_MAX: usize = 6;

/// Room for an event's framing, id and timestamp.
const FRAMING_BYTES_MAX: usize = 256;

/// Escaped text after which an event is closed, so that the next piece cannot make it too large. A character that was
/// kept back may come on top of a piece.
const EVENT_TEXT_BYTES: usize = EVENT_BYTES_MAX - FRAMING_BYTES_MAX - ESCAPED_BYTES_MAX * (PIECE_BYTES + 4);

/// Stands for a command that has not said its number: what has no name cannot be taken up.
const UNNAMED: ExecName = ExecName::Shell(0);

/// Header with which a client takes up a stream.
const LAST_EVENT_ID: &str = "last-event-id";

/// Runs a command and follows it: `chunk` events with output as it happens, then `done`; or `error`. A client that
/// hangs up leaves the command running, and takes it up again with the header `Last-Event-ID`.
#[utoipa::path(post, path = "/v1/sessions/{id}/exec/stream", tag = "exec", params(
    ("id" = String, Path),
    ("Last-Event-ID" = Option<String>, Header, description = "resume after this event instead of running anything"),
), request_body = ExecRequest, responses(
    (status = 200, content_type = "text/event-stream", body = String, description = "events: chunk (ExecChunk), done (ExecDone), error (ExecFailed)"),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
))]
pub(super) async fn exec_stream(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let last = last_event(request.headers())?;
    let body = read_body(request).await?;
    let (started, terminal, limit) = match last {
        Some(Position { name, offset }) => {
            let request = if body.is_empty() { ExecRequest::default() } else { parse(&body)? };
            let running = Running::resume(Arc::clone(&edge), id, name, offset).await;
            (running.map(|running| (running, offset)), terminal(request.raw_output), None)
        }
        None => {
            let command = Command::check(&edge, parse(&body)?)?;
            let running = Running::start(Arc::clone(&edge), id, &command).await;
            (running.map(|running| (running, 0)), command.terminal, Some(command))
        }
    };
    let mut events = Events {
        edge,
        request_id,
        running: None,
        command: limit,
        pending: VecDeque::new(),
        truncated: false,
    };
    match started {
        Ok((running, offset)) => events.running = Some((running, Cleaner::new(terminal, offset))),
        Err(error) => events.fail(&error),
    }
    let stream = futures::stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(event)), events))
    });
    let mut response =
        Response::new(Body::new(StreamBody::new(OnePerWrite { stream: Box::pin(stream), paused: false })));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Where a client stands in a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    name: ExecName,
    offset: u64,
}

fn last_event(headers: &HeaderMap) -> ApiResult<Option<Position>> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let position = text.split_once(':').and_then(|(name, offset)| {
        Some(Position { name: ExecName::parse(name)?, offset: offset.parse().ok()? })
    });
    position.map(Some).ok_or_else(|| ApiError::invalid("Last-Event-ID is not an event id of this API"))
}

/// The events of one command.
struct Events {
    edge: Arc<Edge>,
    request_id: RequestId,
    /// None once the last event is in `pending`.
    running: Option<(Running, Cleaner)>,
    /// Absent where the stream was resumed.
    command: Option<Command>,
    pending: VecDeque<Bytes>,
    truncated: bool,
}

impl Events {
    /// The next event's bytes.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let (running, _) = self.running.as_mut()?;
            // Cancel-safe: dropping a wait for output loses none of it.
            let output = tokio::select! {
                output = tokio::time::timeout(PING_INTERVAL, running.next()) => output,
                () = self.edge.ending.cancelled() => {
                    self.running = None;
                    self.pending.push_back(failed("the server is ending; the command goes on", "UNAVAILABLE"));
                    continue;
                }
            };
            match output {
                Err(_) => return Some(Bytes::from_static(b": ping\n\n")),
                Ok(Ok(output)) => self.take(output).await,
                Ok(Err(error)) => self.fail(&error),
            }
        }
    }

    async fn take(&mut self, output: Output) {
        let Some((running, cleaner)) = self.running.as_mut() else { return };
        match output {
            Output::Bytes(bytes) => {
                let name = running.name().unwrap_or(UNNAMED);
                chunks(cleaner, name, &bytes, &mut self.pending);
            }
            Output::Lost(offset) => {
                let mut text = String::new();
                cleaner.jump(offset, &mut text);
                self.truncated = true;
            }
            Output::Quiet => {}
            Output::Exit(exit) => self.end(exit).await,
        }
    }

    async fn end(&mut self, exit: ShellExit) {
        let Some((running, mut cleaner)) = self.running.take() else { return };
        let name = running.name().unwrap_or(UNNAMED);
        let oom = running.finish(exit.exit_code).await;
        let mut rest = String::new();
        cleaner.finish(&mut rest);
        if !rest.is_empty() {
            let mut text = Vec::new();
            escape(&rest, &mut text);
            self.pending.push_back(chunk(name, cleaner.resume_offset(), &text));
        }
        if exit.timed_out {
            let error = match &self.command {
                Some(command) => command.timed_out(),
                None => ApiError::new(
                    sandhaus_sandbox::Kind::Timeout,
                    crate::error::Subject::Command,
                    "command timeout",
                ),
            };
            return self.fail(&error);
        }
        let done = ExecDone {
            exit_code: exit.exit_code,
            cwd: exit.cwd,
            duration_ms: exit.duration_ms,
            truncated: self.truncated,
            oom: oom.is_some(),
            reason: oom,
        };
        self.pending.push_back(event("done", &done));
    }

    fn fail(&mut self, error: &ApiError) {
        self.running = None;
        error.log(self.request_id.as_str(), "/v1/sessions/{id}/exec/stream");
        self.pending.push_back(failed(&error.public_message(self.request_id.as_str()), error.code()));
    }
}

/// Cuts output into `chunk` events.
fn chunks(cleaner: &mut Cleaner, name: ExecName, bytes: &[u8], events: &mut VecDeque<Bytes>) {
    let mut text = String::new();
    let mut escaped = Vec::with_capacity(bytes.len().min(EVENT_BYTES_MAX) + bytes.len() / 8);
    for piece in bytes.chunks(PIECE_BYTES) {
        text.clear();
        cleaner.push(piece, &mut text);
        escape(&text, &mut escaped);
        if escaped.len() >= EVENT_TEXT_BYTES {
            events.push_back(chunk(name, cleaner.resume_offset(), &escaped));
            escaped.clear();
        }
    }
    if !escaped.is_empty() {
        events.push_back(chunk(name, cleaner.resume_offset(), &escaped));
    }
}

fn chunk(name: ExecName, offset: u64, escaped: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(escaped.len() + FRAMING_BYTES_MAX);
    out.extend_from_slice(format!("id: {name}:{offset}\nevent: chunk\ndata: {{\"chunk\":\"").as_bytes());
    out.extend_from_slice(escaped);
    out.extend_from_slice(format!("\",\"timestamp\":{}}}\n\n", Timestamp::now().as_millisecond()).as_bytes());
    out.into()
}

fn failed(message: &str, code: &str) -> Bytes {
    event("error", &ExecFailed { error: message.to_owned(), error_code: code.to_owned() })
}

/// An event with this data, as ASCII.
fn event(kind: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("wire types serialise");
    let mut out = format!("event: {kind}\ndata: ");
    for character in data.chars() {
        push_ascii(character, &mut out);
    }
    out.push_str("\n\n");
    out.into()
}

/// Appends the inside of a JSON string, in ASCII.
fn escape(text: &str, out: &mut Vec<u8>) {
    let mut buffer = String::new();
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            ' '..='~' => out.push(u8::try_from(character).expect("the range is ASCII")),
            _ if character.is_ascii() => {
                buffer.clear();
                write!(buffer, "\\u{:04x}", u32::from(character)).expect("writing to a string cannot fail");
                out.extend_from_slice(buffer.as_bytes());
            }
            _ => {
                buffer.clear();
                push_ascii(character, &mut buffer);
                out.extend_from_slice(buffer.as_bytes());
            }
        }
    }
}

/// Appends a character that stands in JSON text; beyond ASCII as one or two UTF-16 escapes.
fn push_ascii(character: char, out: &mut String) {
    if character.is_ascii() {
        out.push(character);
    } else {
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
        }
    }
}

/// Yields once between two events, so that the connection flushes each in a write of its own.
struct OnePerWrite<S> {
    stream: Pin<Box<S>>,
    paused: bool,
}

impl<S: Stream> Stream for OnePerWrite<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if std::mem::take(&mut self.paused) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.stream.as_mut().poll_next(cx);
        self.paused = matches!(polled, Poll::Ready(Some(_)));
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::{super::clean::Terminal, *};

    fn texts(events: &VecDeque<Bytes>) -> Vec<String> {
        events
            .iter()
            .map(|event| {
                let event = std::str::from_utf8(event).unwrap();
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                let data: serde_json::Value = serde_json::from_str(data).unwrap();
                data["chunk"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn events_are_small_lines_of_ascii() {
        let worst: [Vec<u8>; 5] = [
            vec![0xff; 64 * 1024],
            vec![1; 64 * 1024],
            "\u{1f600}\u{85}\u{2028}\u{b}\u{c}\u{1c}\"\\".repeat(5000).into_bytes(),
            vec![b'a'; 64 * 1024],
            [&[0xe2, 0x82][..], &[b'"'; 70_000]].concat(),
        ];
        for input in worst {
            let mut cleaner = Cleaner::new(Terminal::Keep, 0);
            let mut events = VecDeque::new();
            chunks(&mut cleaner, ExecName::Shell(7), &input, &mut events);
            let mut text = texts(&events).concat();
            cleaner.finish(&mut text);
            assert_eq!(text, String::from_utf8_lossy(&input));
            for event in &events {
                assert!(event.len() <= EVENT_BYTES_MAX, "{} bytes", event.len());
                assert!(event.iter().all(|byte| *byte == b'\n' || (0x20..0x7f).contains(byte)));
                assert_eq!(
                    event.iter().filter(|byte| **byte == b'\n').count(),
                    4,
                    "one line each and the end"
                );
                assert!(event.starts_with(b"id: 7:"));
            }
        }
    }

    #[test]
    fn ids_tell_where_to_go_on() {
        let mut cleaner = Cleaner::new(Terminal::Strip, 100);
        let mut events = VecDeque::new();
        chunks(&mut cleaner, ExecName::Script(3), b"abc\x1b[3", &mut events);
        assert!(events[0].starts_with(b"id: s3:103\nevent: chunk\ndata: {\"chunk\":\"abc\",\"timestamp\":"));
    }

    #[test]
    fn other_events_are_ascii_too() {
        let done = ExecDone { cwd: "/w\u{2028}\u{1f600}".into(), ..ExecDone::default() };
        let event = event("done", &done);
        assert!(event.is_ascii());
        let data: ExecDone =
            serde_json::from_slice(event.strip_prefix(b"event: done\ndata: ").unwrap()).unwrap();
        assert_eq!(data, done);
    }

    #[test]
    fn positions() {
        let parse = |text: &'static str| {
            last_event(&HeaderMap::from_iter([(
                LAST_EVENT_ID.parse().unwrap(),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(parse("7:123").unwrap(), Some(Position { name: ExecName::Shell(7), offset: 123 }));
        assert_eq!(parse("s7:5").unwrap(), Some(Position { name: ExecName::Script(7), offset: 5 }));
        assert_eq!(parse("").unwrap(), None);
        for wrong in ["7", "x:1", "1:x", "-1:2", "1:2:3", "s:1", "s-1:1", "ss1:1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
