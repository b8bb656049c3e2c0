//! The routes, the accept loop and the error body. Every answer that is not a success has the body of the
//! compatible contract, whoever refused: a route, an extractor or the router.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd, RawFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody as _},
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandhaus_protocol::{
    frame::PAYLOAD_BYTES_MAX,
    guest::{NOT_GREETED, REFUSAL_HEADER},
    upgrade,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, oneshot, watch},
};
use tower::Service as _;

use crate::{
    agent::Agent,
    code_run, desktop,
    error::Error,
    execute, files, git,
    guest::{Arrived, Guest},
    interpreter,
    log::Level,
    lsp, ports, process, proxy, pty,
    ring::UNSENT_BYTES_MAX,
    session, shell, sys, system,
    upgrade::{Connection, Hold, passing},
};

/// Most connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Largest JSON request body: a command of the greatest length with every byte escaped, and some room.
const JSON_BYTES_MAX: usize = 8 << 20;

/// A connection without a request is closed after so long; a request's head must arrive in this time.
const IDLE: Duration = Duration::from_secs(70);

/// Bytes of an answer that wait for a slow connection before more are asked for.
const BUFFER_BYTES: usize = 64 * 1024;

const _: () = assert!(BUFFER_BYTES + PAYLOAD_BYTES_MAX <= UNSENT_BYTES_MAX);

/// Pause after a failed accept: out of descriptors or memory, so others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Longest message taken over from a refusal that is not ours.
const FOREIGN_MESSAGE_BYTES_MAX: usize = 4096;

/// Most bytes that are taken of a body that nobody read before the answer goes out.
const UNREAD_BYTES_MAX: u64 = 16 << 20;

/// How long they may take to come.
const UNREAD_WAIT: Duration = Duration::from_secs(2);

/// Changes, in whatever way, when the server is to end.
pub(crate) type Ending = watch::Receiver<()>;

/// Where the agent listens.
pub(crate) enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On a TCP port.
    Tcp(TcpListener),
}

impl Listener {
    /// One that another program has left open.
    pub(crate) fn inherited(socket: OwnedFd) -> io::Result<Self> {
        let unix = std::os::unix::net::UnixListener::from(socket);
        if unix.local_addr().is_ok() {
            return UnixListener::from_std(unix).map(Self::Unix);
        }
        TcpListener::from_std(OwnedFd::from(unix).into()).map(Self::Tcp)
    }

    /// Its number, which is the same as long as it is open.
    pub(crate) fn number(&self) -> RawFd {
        match self {
            Self::Unix(listener) => sys::number(listener),
            Self::Tcp(listener) => sys::number(listener),
        }
    }

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
        .merge(lsp::routes())
        .merge(git::routes())
        .merge(ports::routes())
        .merge(proxy::routes())
        .merge(crate::ssh::routes())
        .merge(desktop::routes())
        .merge(crate::upgrade::routes())
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
    Open {
        /// The agent.
        agent: Arc<Agent>,
        /// Its routes.
        router: Router,
    },
    /// Those that a virtual machine's agent has for this peer at present.
    Guest {
        /// The agent.
        guest: Arc<Guest>,
        /// Its routes that do not depend on a sandbox.
        reception: Router,
    },
}

impl Door {
    /// The way to everything that this agent has.
    pub(crate) fn open(agent: &Arc<Agent>) -> Self {
        Self::Open { agent: Arc::clone(agent), router: routes().with_state(Arc::clone(agent)) }
    }

    /// Notes a request as long as the agent cannot be replaced for its sake.
    fn note(&self, method: &Method, path: &str) -> Hold {
        self.agent().map_or_else(Hold::none, |agent| agent.upgrades.request(method, path))
    }

    /// The agent, once there is one.
    fn agent(&self) -> Option<&Arc<Agent>> {
        match self {
            Self::Open { agent, .. } => Some(agent),
            Self::Guest { guest, .. } => guest.agent(),
        }
    }

    /// Writes down what was asked for; what cannot be done now, or went wrong, matters more.
    fn log(&self, method: &Method, path: &str, status: StatusCode) {
        let level = match status {
            StatusCode::INTERNAL_SERVER_ERROR => Level::Error,
            status if status.is_server_error() => Level::Info,
            _ => Level::Debug,
        };
        if let Some(agent) = self.agent() {
            agent.log(level, format_args!("{method} {path} {}", status.as_u16()));
        }
    }

    async fn answer(&self, peer: Option<SocketAddr>, mut request: axum::extract::Request) -> Response {
        let mut router = match (self, peer) {
            (Self::Open { router, .. }, _) => router.clone(),
            // Never: such an agent listens on TCP alone.
            (Self::Guest { .. }, None) => return Error::unauthorized("nobody is known here").into_response(),
            (Self::Guest { guest, reception }, Some(peer)) => {
                request.extensions_mut().insert(peer);
                request.extensions_mut().insert(Arrived(Instant::now()));
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

/// Accepts connections until it is to end.
///
/// Once whoever holds the other side of `ending` drops it, no connection is taken any more, those that are idle are closed,
/// and what was asked for is still answered: this returns after the last answer.
pub(crate) async fn serve(door: Door, listener: Listener, ending: Ending) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut over = ending.clone();
    // Cancel-safe: a connection that is taken is taken over by a task of its own at once.
    tokio::select! {
        () = accept(&door, &listener, &places, &ending) => {}
        _ = over.changed() => {}
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    drop(places.acquire_many(all).await);
}

async fn accept(door: &Door, listener: &Listener, places: &Arc<Semaphore>, ending: &Ending) {
    loop {
        let place = Arc::clone(places).acquire_owned().await;
        let accepted = match listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                // Frames are small and wanted at once.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream, peer)
            }),
        };
        let (door, ending) = (door.clone(), ending.clone());
        match accepted {
            Ok(Stream::Unix(stream)) => drop(tokio::spawn(connection(stream, None, door, ending, place))),
            Ok(Stream::Tcp(stream, peer)) => {
                drop(tokio::spawn(connection(stream, Some(peer), door, ending, place)))
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream, SocketAddr),
}

async fn connection<P>(
    stream: impl AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static,
    peer: Option<SocketAddr>,
    door: Door,
    mut ending: Ending,
    _place: P,
) {
    let number = sys::number(&stream);
    let _open = door.agent().map(|agent| agent.upgrades.open(number));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let door = door.clone();
        async move {
            let (mut request, unread) = lend(request);
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let hold = door.note(&method, &path);
            assume_json(&mut request);
            if path == upgrade::PATH {
                request.extensions_mut().insert(Connection(number));
            }
            let response = door.answer(peer, request).await;
            let response = finish(response, &method, &path).await;
            pass_over(unread).await;
            door.log(&method, &path, response.status());
            Ok::<_, Infallible>(passing(response, hold))
        }
    });
    let mut builder = http1::Builder::new();
    let served = builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    // Cancel-safe: the connection goes on either way.
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        _ = ending.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    // A connection that breaks is the other side's affair.
    drop(ended);
}

/// A body that comes back when whoever has it lets go of it.
struct Lent {
    body: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
}

impl axum::body::HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take())
            && !body.is_end_stream()
        {
            // Nobody waits for it any more if the answer is out already.
            drop(back.send(body));
        }
    }
}

/// The request for the routes, and the way on which a body that they do not read comes back.
fn lend(request: hyper::Request<Incoming>) -> (axum::extract::Request, Option<oneshot::Receiver<Incoming>>) {
    if request.body().is_end_stream() {
        return (request.map(Body::new), None);
    }
    let (back, unread) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body: Some(body), back: Some(back) }));
    (request, Some(unread))
}

/// Reads what a refusal has left of a request. A connection that is closed on a client which still writes takes the answer
/// with it, or the client's next request.
async fn pass_over(unread: Option<oneshot::Receiver<Incoming>>) {
    let Some(Ok(body)) = unread.map(|mut unread| unread.try_recv()) else { return };
    let mut body = Body::new(body);
    let read = async {
        let mut left = UNREAD_BYTES_MAX;
        while let Ok(Some(chunk)) = next_chunk(&mut body).await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                return;
            }
        }
    };
    // Who does not send what was announced waits for the answer, perhaps.
    let _ = tokio::time::timeout(UNREAD_WAIT, read).await;
}

/// Published clients send JSON in places without saying so. What is passed on to a port stays as it is.
fn assume_json(request: &mut axum::extract::Request) {
    if !request.body().is_end_stream() && !request.uri().path().starts_with("/proxy/") {
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().entry(header::CONTENT_TYPE).or_insert(json);
    }
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
    let mut status = response.status();
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
            // What cannot be read as the request it should be is one kind of mistake, whatever is wrong with it.
            if matches!(status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE) {
                status = StatusCode::BAD_REQUEST;
                *response.status_mut() = status;
            }
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
        StatusCode::BAD_REQUEST => ("INVALID_REQUEST_BODY", format!("invalid body request: {text}")),
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
