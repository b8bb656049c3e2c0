//! The routes, the accept loop and the error body. Every answer that is not a success has the body of the
//! compatible contract, whoever refused: a route, an extractor or the router.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandhaus_protocol::guest::{NOT_GREETED, REFUSAL_HEADER};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tower::Service as _;

use crate::{
    agent::Agent, code_run, desktop, error::Error, execute, files, git, guest::Guest, interpreter, ports,
    process, proxy, pty, session, shell, system,
};

/// Most connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Largest JSON request body: a command of the greatest length with every byte escaped, and some room.
const JSON_BYTES_MAX: usize = 8 << 20;

/// A connection without a request is closed after so long; a request's head must arrive in this time.
const IDLE: Duration = Duration::from_secs(70);

/// Pause after a failed accept: out of descriptors or memory, so others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Longest message taken over from a refusal that is not ours.
const FOREIGN_MESSAGE_BYTES_MAX: usize = 4096;

/// Where the agent listens.
pub(crate) enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On a TCP port.
    Tcp(TcpListener),
}

impl Listener {
    /// The TCP port.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
        }
    }
}

/// The routes of the agent proper. Each area lists its own.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .merge(system::routes())
        .merge(shell::routes())
        .merge(process::routes())
        .merge(execute::routes())
        .merge(code_run::routes())
        .merge(interpreter::routes())
        .merge(session::routes())
        .merge(pty::routes())
        .merge(files::routes())
        .merge(git::routes())
        .merge(ports::routes())
        .merge(proxy::routes())
        .merge(desktop::routes())
        .layer(body_limit())
}

/// How large a JSON body may be.
pub(crate) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(JSON_BYTES_MAX)
}

/// Which routes a request meets.
#[derive(Clone)]
pub(crate) enum Door {
    /// Always the same.
    Open(Router),
    /// Those that a virtual machine's agent has for this peer at present.
    Guest {
        /// The agent.
        guest: Arc<Guest>,
        /// Its routes that do not depend on a sandbox.
        reception: Router,
    },
}

impl Door {
    async fn answer(&self, peer: Option<SocketAddr>, mut request: axum::extract::Request) -> Response {
        let mut router = match (self, peer) {
            (Self::Open(router), _) => router.clone(),
            // Never: such an agent listens on TCP alone.
            (Self::Guest { .. }, None) => return Error::unauthorized("nobody is known here").into_response(),
            (Self::Guest { guest, reception }, Some(peer)) => {
                request.extensions_mut().insert(peer);
                match guest.admit(peer, request.uri().path(), request.headers(), reception) {
                    Ok(router) => router,
                    Err(error) => return refused(error),
                }
            }
        };
        match router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// A refusal with what the protocol wants beside the body.
fn refused(error: Error) -> Response {
    let header = match error.code {
        NOT_GREETED => Some((HeaderName::from_static(REFUSAL_HEADER), NOT_GREETED)),
        _ if error.status == StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
        _ => None,
    };
    let mut response = error.into_response();
    if let Some((name, value)) = header {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Accepts connections for ever.
pub(crate) async fn serve(door: Door, listener: Listener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                // Frames are small and wanted at once.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream, peer)
            }),
        };
        let door = door.clone();
        match accepted {
            Ok(Stream::Unix(stream)) => drop(tokio::spawn(connection(stream, None, door, place))),
            Ok(Stream::Tcp(stream, peer)) => drop(tokio::spawn(connection(stream, Some(peer), door, place))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream, SocketAddr),
}

async fn connection<P>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Option<SocketAddr>,
    door: Door,
    _place: P,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let door = door.clone();
        async move {
            let request = request.map(Body::new);
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let response = door.answer(peer, request).await;
            Ok::<_, Infallible>(finish(response, &method, &path).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    // A connection that breaks is the other side's affair.
    drop(served);
}

/// Marks an answer that says by itself what went wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnBody;

/// What some refusals say besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Details {
    /// Why.
    pub(crate) details: &'static str,
    /// What helps.
    pub(crate) solution: &'static str,
}

/// Gives refusals their body.
async fn finish(mut response: Response, method: &Method, path: &str) -> Response {
    let status = response.status();
    if status.is_success() || status.is_redirection() || status.is_informational() {
        return response;
    }
    if response.extensions().get::<OwnBody>().is_some() {
        return response;
    }
    let (code, message) = match response.extensions_mut().remove::<Error>() {
        Some(error) => (error.code, error.message.into_owned()),
        None => {
            let (parts, body) = response.into_parts();
            let text = foreign_message(body).await;
            response = Response::from_parts(parts, Body::empty());
            foreign(status, &text)
        }
    };
    let details = response.extensions_mut().remove::<Details>();
    let mut body = serde_json::json!({
        "statusCode": status.as_u16(),
        "message": message,
        "error": message,
        "code": code,
        "source": "DAYTONA_DAEMON",
        "timestamp": crate::clock::now_rfc3339(),
        "path": path,
        "method": method.as_str(),
    });
    if let Some(Details { details, solution }) = details {
        body["details"] = details.into();
        body["solution"] = solution.into();
    }
    let bytes = Bytes::from(body.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Body::from(bytes);
    response
}

async fn foreign_message(body: Body) -> String {
    let limited = http_body_util::Limited::new(body, FOREIGN_MESSAGE_BYTES_MAX);
    let bytes = limited.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Code and message for what an extractor or the router refused.
fn foreign(status: StatusCode, text: &str) -> (&'static str, String) {
    match status {
        StatusCode::NOT_FOUND if text.is_empty() => ("NOT_FOUND", "not found: no such route".to_owned()),
        StatusCode::METHOD_NOT_ALLOWED => ("METHOD_NOT_ALLOWED", "this route has no such method".to_owned()),
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("INVALID_REQUEST_BODY", format!("invalid body request: {text}"))
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            ("PAYLOAD_TOO_LARGE", format!("bad request: a body has at most {JSON_BYTES_MAX} bytes"))
        }
        other => ("BAD_REQUEST", format!("{}: {text}", other.canonical_reason().unwrap_or("refused"))),
    }
}

/// Reads a streamed body chunk by chunk; `None` at its end.
pub(crate) async fn next_chunk(body: &mut Body) -> io::Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
