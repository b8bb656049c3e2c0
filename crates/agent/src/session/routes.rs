//! The routes under `/process/session`, and what clients of different ages expect of them.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use sandhaus_protocol::toolbox::{
    Command as CommandInfo, CreateSessionRequest, END_HEADER, OFFSET_HEADER, Session as SessionInfo,
    SessionExecuteReply, SessionExecuteRequest, SessionInputRequest, SessionLogs,
};
use serde::Deserialize;

use super::{
    ENTRYPOINT, InputEcho, SessionCommand,
    demux::{Demux, split, strip},
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    ring::{Found, Reader},
    shell::dialect::Input,
    websocket,
};

/// Header with the client's version.
const VERSION_HEADER: &str = "x-daytona-sdk-version";

/// Header of clients without a version that want the streams apart.
const SPLIT_HEADER: &str = "x-daytona-split-output";

/// The first versions that take marked output, and separate streams.
const MARKED_SINCE: (u64, u64) = (0, 27);
const SPLIT_SINCE: (u64, u64) = (0, 167);

/// Bytes of a followed log sent at once.
const FOLLOW_BYTES: usize = 32 * 1024;

/// How a client wants output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One text without markers.
    Combined,
    /// One text with markers.
    Marked,
    /// The streams apart, and the text with markers.
    Split,
}

impl Shape {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let version = text(VERSION_HEADER).or_else(|| websocket::offered_version(headers));
        match version {
            Some(version) => Self::of_version(version),
            None if text(SPLIT_HEADER).is_some_and(|value| value.eq_ignore_ascii_case("true")) => Self::Split,
            None => Self::Combined,
        }
    }

    fn of_version(version: &str) -> Self {
        if version.contains("dev") {
            return Self::Split;
        }
        let mut numbers =
            version.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        match version {
            version if version >= SPLIT_SINCE => Self::Split,
            version if version >= MARKED_SINCE => Self::Marked,
            _ => Self::Combined,
        }
    }
}

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/process/session", get(list).post(create))
        .route("/process/session/entrypoint", get(entrypoint).delete(delete_entrypoint))
        .route("/process/session/entrypoint/logs", get(entrypoint_logs))
        .route("/process/session/{id}", get(info).delete(delete))
        .route("/process/session/{id}/exec", post(exec))
        .route("/process/session/{id}/command/{command_id}", get(command))
        .route("/process/session/{id}/command/{command_id}/input", post(input))
        .route("/process/session/{id}/command/{command_id}/logs", get(logs))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// `POST /process/session`.
pub(crate) async fn create(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<CreateSessionRequest>,
) -> Result<StatusCode> {
    agent.sessions.create(&agent, &request.session_id)?;
    Ok(StatusCode::CREATED)
}

/// `GET /process/session`.
pub(crate) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<SessionInfo>> {
    Json(agent.sessions.list())
}

/// `GET /process/session/{id}`.
pub(crate) async fn info(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<SessionInfo>> {
    Ok(Json(agent.sessions.find(&id)?.describe()))
}

/// `GET /process/session/entrypoint`.
pub(crate) async fn entrypoint(State(agent): State<Arc<Agent>>) -> Result<Json<SessionInfo>> {
    Ok(Json(agent.sessions.find(ENTRYPOINT)?.describe()))
}

/// `DELETE /process/session/{id}`.
pub(crate) async fn delete(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode> {
    agent.sessions.delete(&agent, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /process/session/entrypoint`, which is always refused.
pub(crate) async fn delete_entrypoint(State(agent): State<Arc<Agent>>) -> Result<StatusCode> {
    delete(State(agent), Path(ENTRYPOINT.to_owned())).await
}

/// `POST /process/session/{id}/exec`.
pub(crate) async fn exec(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<SessionExecuteRequest>,
) -> Result<Response> {
    let session = agent.sessions.find(&id)?;
    let echo = if request.suppress_input_echo { InputEcho::Suppressed } else { InputEcho::Logged };
    if request.run_async || request.is_async {
        let command = session.submit(&request.command, Input::Open, echo)?;
        let reply = SessionExecuteReply { cmd_id: command.id.clone(), ..SessionExecuteReply::default() };
        return Ok((StatusCode::ACCEPTED, Json(reply)).into_response());
    }
    let command = session.submit(&request.command, Input::Empty, echo)?;
    let exit_code = command.ended().await;
    if session.has_ended() {
        let message = format!("session {id} has ended with exit code {exit_code}");
        return Err(Error::gone("SESSION_ENDED", message));
    }
    let marked = command.output();
    let mut reply =
        SessionExecuteReply { cmd_id: command.id.clone(), exit_code: Some(exit_code), ..Default::default() };
    match Shape::of(&headers) {
        Shape::Combined => reply.output = Some(text(strip(&marked))),
        Shape::Marked => reply.output = Some(text(marked)),
        Shape::Split => {
            let (stdout, stderr) = split(&marked);
            (reply.stdout, reply.stderr) = (Some(text(stdout)), Some(text(stderr)));
            reply.output = Some(text(marked));
        }
    }
    Ok(Json(reply).into_response())
}

/// `GET /process/session/{id}/command/{command_id}`.
pub(crate) async fn command(
    State(agent): State<Arc<Agent>>,
    Path((id, command_id)): Path<(String, String)>,
) -> Result<Json<CommandInfo>> {
    Ok(Json(agent.sessions.find(&id)?.command(&command_id)?.describe()))
}

/// `POST /process/session/{id}/command/{command_id}/input`.
pub(crate) async fn input(
    State(agent): State<Arc<Agent>>,
    Path((id, command_id)): Path<(String, String)>,
    Json(request): Json<SessionInputRequest>,
) -> Result<StatusCode> {
    let session = agent.sessions.find(&id)?;
    let command = session.command(&command_id)?;
    if session.has_ended() && command.exit_code().is_none() {
        return Err(Error::gone("SESSION_ENDED", format_args!("session {id} has ended")));
    }
    command.send(&request.data).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query of a log.
#[derive(Debug, Deserialize)]
pub(crate) struct LogsQuery {
    #[serde(default)]
    follow: bool,
    /// Only what comes after so many bytes of the log with its markers, and with its markers.
    offset: Option<u64>,
}

/// A WebSocket upgrade, if the request is one.
type Upgrade = std::result::Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>;

/// `GET /process/session/{id}/command/{command_id}/logs`.
pub(crate) async fn logs(
    State(agent): State<Arc<Agent>>,
    Path((id, command_id)): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response> {
    let command = agent.sessions.find(&id)?.command(&command_id)?;
    Ok(send_logs(command, &query, &headers, upgrade))
}

/// `GET /process/session/entrypoint/logs`.
pub(crate) async fn entrypoint_logs(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response> {
    let command = agent.sessions.find(ENTRYPOINT)?.entrypoint_command()?;
    Ok(send_logs(command, &query, &headers, upgrade))
}

fn send_logs(
    command: Arc<SessionCommand>,
    query: &LogsQuery,
    headers: &HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let shape = match query.offset {
        // Who counts bytes counts those of the markers.
        Some(_) if Shape::of(headers) == Shape::Combined => Shape::Marked,
        _ => Shape::of(headers),
    };
    let from = query.offset.unwrap_or(0);
    if let Ok(mut upgrade) = upgrade {
        websocket::select_protocol(&mut upgrade);
        let says_version =
            headers.contains_key(VERSION_HEADER) || websocket::offered_version(headers).is_some();
        // A socket without a version is no old client: those never had sockets.
        let shape = if says_version { shape } else { Shape::Marked };
        let (following, start) = Following::new(command, from, shape);
        let response = upgrade.on_upgrade(move |socket| follow_on_socket(socket, following));
        return telling(response, start, None);
    }
    if query.follow {
        let (following, start) = Following::new(command, from, shape);
        let chunks = futures::stream::unfold(following, |mut following| async move {
            let chunk = following.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(chunk)), following))
        });
        return telling(plain(Body::from_stream(chunks)), start, None);
    }
    let (start, marked) = command.log.copy_from(from);
    let end = start + marked.len() as u64;
    let response = match shape {
        Shape::Combined => plain(Body::from(strip(&marked))),
        Shape::Marked => plain(Body::from(marked)),
        Shape::Split => {
            let (stdout, stderr) = split(&marked);
            Json(SessionLogs { output: text(marked), stdout: text(stdout), stderr: text(stderr) })
                .into_response()
        }
    };
    telling(response, start, Some(end))
}

fn plain(body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Says which bytes of the log an answer has, so that a reader whose connection breaks can go on behind them.
fn telling(mut response: Response, start: u64, end: Option<u64>) -> Response {
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(OFFSET_HEADER), start.into());
    if let Some(end) = end {
        headers.insert(HeaderName::from_static(END_HEADER), end.into());
    }
    response
}

/// A reader that follows a command's log to its end.
struct Following {
    command: Arc<SessionCommand>,
    reader: Reader,
    /// Takes the markers out for clients that do not know them.
    strip: Option<Demux>,
}

impl Following {
    /// A reader from `offset` on, or from the first byte after it that is kept: that one's offset.
    fn new(command: Arc<SessionCommand>, offset: u64, shape: Shape) -> (Self, u64) {
        let (reader, start) = command.log.attach_kept(offset);
        let strip = match shape {
            Shape::Combined => Some(Demux::default()),
            Shape::Marked | Shape::Split => None,
        };
        (Self { command, reader, strip }, start)
    }

    /// The next bytes; `None` when the command has ended and everything was given. Cancel-safe.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let command = Arc::clone(&self.command);
        loop {
            let changed = command.log.changed().notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            // Asked before the log is read: what it holds then is everything.
            let ended = command.exit_code().is_some();
            let bytes = match self.reader.take(FOLLOW_BYTES, None) {
                Found::Bytes(_, bytes) => self.without_markers(bytes),
                Found::Gap(_) => continue,
                Found::Nothing if ended => self.last()?,
                Found::Nothing => {
                    changed.await;
                    continue;
                }
            };
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    fn without_markers(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(demux) = &mut self.strip else { return bytes };
        let mut plain = Vec::with_capacity(bytes.len());
        demux.feed(&bytes, |_, bytes| plain.extend_from_slice(bytes));
        plain
    }

    /// What might have become a marker; `None` when nothing is left.
    fn last(&mut self) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        self.strip.as_mut()?.finish(|_, bytes| plain.extend_from_slice(bytes));
        (!plain.is_empty()).then_some(plain)
    }
}

async fn follow_on_socket(mut socket: WebSocket, mut following: Following) {
    loop {
        tokio::select! {
            // Both arms are cancel-safe.
            chunk = following.next() => match chunk {
                Some(chunk) => if socket.send(Message::Binary(chunk.into())).await.is_err() { return },
                None => break,
            },
            message = websocket::receive(&mut socket) => match message {
                // Clients have nothing to say here.
                Some(_) => {}
                None => return,
            },
        }
    }
    websocket::close(socket, CloseFrame { code: close_code::NORMAL, reason: "".into() }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_decide_the_shape() {
        for (version, shape) in [
            ("0.26.9", Shape::Combined),
            ("0.27.0", Shape::Marked),
            ("v0.166.3", Shape::Marked),
            ("0.167.0", Shape::Split),
            ("0.226.1", Shape::Split),
            ("1.0.0", Shape::Split),
            ("0.0.0-dev", Shape::Split),
            ("nonsense", Shape::Combined),
        ] {
            assert_eq!(Shape::of_version(version), shape, "{version}");
        }
        assert_eq!(Shape::of(&HeaderMap::new()), Shape::Combined);
    }
}
