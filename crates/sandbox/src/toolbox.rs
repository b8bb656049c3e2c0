//! Speaking to the agent inside a sandbox: an HTTP client over whatever stream the engine dials, and the leases that
//! let the actor close the gate before it captures a machine.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use sandhaus_protocol::{
    files::SIZE_HEADER,
    frame::{self, Decoder, Frame},
    guest::{self, NOT_GREETED, REFUSAL_HEADER, SyncReply, SyncRequest},
    hello::{self, HelloReply, HelloRequest},
    process::{Exit, Process, Resize, Signal, Spawn},
    shell::{ShellExec, ShellExit, ShellInfo, ShellStarted},
    upgrade::{self, UpgradeReply},
};
use tokio::time::Instant;

pub use crate::gate::Lease;
use crate::{
    engine::GuestStream,
    error::{Error, Kind, Result},
    renewal::AgentProgram,
};

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the agent may take to answer a greeting.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may take to write everything to its disk.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(120);

/// How long another agent may take to take its place, the wait for what is in the way included.
pub const REPLACE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the end of a stream may stay out after its last frame.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Idle connections kept per sandbox. Each costs the agent a few KiB.
pub const IDLE_MAX: usize = 4;

/// How long an idle connection is used again; shorter than the agent keeps it (70 s), so that a request seldom meets
/// one that is just being closed.
pub const IDLE_AGE_MAX: Duration = Duration::from_secs(30);

/// Largest JSON answer, in bytes.
pub const JSON_BYTES_MAX: usize = 4 << 20;

/// Longest message of the agent that is passed on, in characters. It comes from inside the sandbox.
const MESSAGE_CHARS_MAX: usize = 500;

/// Body of a toolbox request.
pub type Body = http_body_util::combinators::BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Opens streams to one agent: by an engine's `dial` under a lease, or by TCP to a server's toolbox route.
pub trait Connect: Send + Sync + 'static {
    /// A fresh connection.
    fn connect(&self) -> futures::future::BoxFuture<'_, Result<GuestStream>>;

    /// The agent said that nobody has greeted it: it was started anew since. Told with each answer that says so.
    fn forgotten(&self) {}
}

/// A client of one agent. Cheap to clone; each call uses a pooled keep-alive connection or dials a new one. A request
/// on a pooled connection that the other side had closed already is sent again on a new one.
#[derive(Clone)]
pub struct Toolbox {
    inner: Arc<Inner>,
}

struct Inner {
    connect: Arc<dyn Connect>,
    path_prefix: String,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// Connections in use whose answer is still streaming are here too: they are not ready until it has ended.
    connections: Mutex<Vec<Connection>>,
    /// Connections are kept for the next request.
    keeping: AtomicBool,
}

struct Connection {
    sender: SendRequest<Body>,
    since: Instant,
}

/// Where a toolbox is reached beyond the stream itself.
#[derive(Clone, Default)]
pub struct Base {
    /// Put before every path (`/v1/sessions/ID/toolbox` behind a server, empty towards the agent itself).
    pub path_prefix: String,
    /// Value of the Host header; an agent itself needs none, a server checks it.
    pub host: Option<String>,
    /// Value of the Authorization header, if any.
    pub authorization: Option<String>,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let authorization = self.authorization.as_ref().map(|_| "…");
        f.debug_struct("Base")
            .field("path_prefix", &self.path_prefix)
            .field("host", &self.host)
            .field("authorization", &authorization)
            .finish()
    }
}

/// What became of an agent that was to be replaced.
#[derive(Debug)]
pub enum Replacement {
    /// The new one has taken its place.
    Done(UpgradeReply),
    /// It stays, because of something that may be over later.
    NotNow(String),
}

/// What a stream of the agent yields.
#[derive(Debug)]
pub enum Event<S, E> {
    /// First.
    Started(S),
    /// Terminal or standard output, with its offset.
    Stdout(u64, Bytes),
    /// Standard error, with its offset.
    Stderr(u64, Bytes),
    /// Bytes that the ring has dropped, up to this offset of standard output.
    Gap(u64),
    /// Nothing yet, but alive.
    Ping,
    /// Last.
    Exit(E),
}

/// Frames of a running command or process, decoded.
pub struct Events<S, E> {
    /// Until the last frame.
    body: Option<Incoming>,
    decoder: Decoder,
    /// Where bytes of standard output are missing; their end is where the next ones begin.
    gap: Option<u64>,
    ready: VecDeque<Event<S, E>>,
}

impl<S: serde::de::DeserializeOwned, E: serde::de::DeserializeOwned> Events<S, E> {
    fn new(body: Incoming) -> Self {
        Self { body: Some(body), decoder: Decoder::default(), gap: None, ready: VecDeque::new() }
    }

    /// The next event; `None` after [`Event::Exit`]. A connection that breaks before is an error of kind Unavailable.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event<S, E>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            let frame = self.decoder.next_frame().map_err(|error| broken("a frame is malformed", error))?;
            if let Some(frame) = frame {
                self.take(frame)?;
                continue;
            }
            // Cancel-safe: a body yields a frame whole or not at all.
            match body.frame().await {
                Some(Ok(piece)) => {
                    if let Some(bytes) = piece.data_ref() {
                        self.decoder.push(bytes);
                    }
                }
                Some(Err(error)) => return Err(broken("the connection broke", error)),
                None => return Err(Error::new(Kind::Unavailable, "the stream from the sandbox ended early")),
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        match frame.kind {
            frame::Kind::Ping => self.ready.push_back(Event::Ping),
            frame::Kind::Started => self.ready.push_back(Event::Started(parse(&frame.payload)?)),
            frame::Kind::Stdout => {
                if self.gap.take().is_some() {
                    self.ready.push_back(Event::Gap(frame.offset));
                }
                self.ready.push_back(Event::Stdout(frame.offset, frame.payload.into()));
            }
            frame::Kind::Stderr => self.ready.push_back(Event::Stderr(frame.offset, frame.payload.into())),
            frame::Kind::GapStdout => self.gap = Some(frame.offset),
            // The next bytes of standard error carry their own offset.
            frame::Kind::GapStderr => {}
            frame::Kind::Exit => {
                if let Some(offset) = self.gap.take() {
                    self.ready.push_back(Event::Gap(offset));
                }
                self.ready.push_back(Event::Exit(parse(&frame.payload)?));
                if let Some(body) = self.body.take() {
                    finish(body);
                }
            }
        }
        Ok(())
    }
}

/// Reads the end of a body whose last frame was seen: only then can its connection serve another request.
fn finish(mut body: Incoming) {
    if matches!(body.frame().now_or_never(), Some(None)) {
        return;
    }
    // The end is on its way. What does not come in time costs a connection.
    tokio::spawn(tokio::time::timeout(FINISH_TIMEOUT, async move {
        while let Some(Ok(_)) = body.frame().await {}
    }));
}

impl Toolbox {
    /// A client that connects through `connect`.
    pub fn new(connect: Arc<dyn Connect>, base: Base) -> Self {
        let authorization = base.authorization.and_then(|value| {
            // A value that is no header value authorizes nothing: the other side says so.
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let host = base.host.and_then(|host| HeaderValue::try_from(host).ok());
        let inner = Inner {
            connect,
            path_prefix: base.path_prefix,
            host: host.unwrap_or(HeaderValue::from_static("sandbox")),
            authorization,
            connections: Mutex::new(Vec::new()),
            keeping: AtomicBool::new(true),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Any request of the toolbox API, streamed both ways; the URI's path and query count. Answers with an error
    /// status are given back as they are.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let mut request = self.addressed(request)?;
        // Each round takes a connection out of the pool, so there are at most as many as it has.
        while let Some(mut sender) = self.inner.checkout() {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.inner.checkin(sender);
                    return Ok(self.noted(response));
                }
                Err(mut failure) => match failure.take_message() {
                    // Nothing of it had been sent: the other side had closed the idle connection.
                    Some(message) => request = message,
                    None => return Err(broken("the connection to the sandbox broke", failure.into_error())),
                },
            }
        }
        let mut sender = self.dial().await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken("the connection to the sandbox broke", error))?;
        self.inner.checkin(sender);
        Ok(self.noted(response))
    }

    /// Tells of an agent that has forgotten whom it serves.
    fn noted(&self, response: Response<Incoming>) -> Response<Incoming> {
        if response.headers().get(REFUSAL_HEADER).is_some_and(|code| code == NOT_GREETED) {
            self.inner.connect.forgotten();
        }
        response
    }

    /// Greets.
    pub async fn hello(&self, hello: &HelloRequest) -> Result<HelloReply> {
        let greet = async { self.json(Method::POST, hello::PATH, Some(hello)).await };
        match tokio::time::timeout(HELLO_TIMEOUT, greet).await {
            Ok(reply) => reply,
            Err(_) => Err(Error::new(Kind::Timeout, "the agent did not answer in time")),
        }
    }

    /// Has the agent of a virtual machine bring its disk into order.
    pub async fn sync(&self, request: &SyncRequest) -> Result<SyncReply> {
        let sync = async { self.json(Method::POST, guest::SYNC_PATH, Some(request)).await };
        match tokio::time::timeout(SYNC_TIMEOUT, sync).await {
            Ok(reply) => reply,
            Err(_) => Err(Error::new(Kind::Timeout, "the guest did not bring its disk into order in time")),
        }
    }

    /// Makes sure that a connection waits for the next request: what that tells is not to grow old while one is made.
    pub async fn connect(&self) -> Result<()> {
        let mut sender = match self.inner.checkout() {
            Some(sender) => sender,
            None => self.dial().await?,
        };
        sender.ready().await.map_err(|error| broken("connect to the sandbox", error))?;
        self.inner.checkin(sender);
        Ok(())
    }

    /// Sends another agent, which takes the place of the one that answers here.
    pub async fn replace_agent(&self, program: &AgentProgram) -> Result<Replacement> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(upgrade::PATH)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(upgrade::DIGEST_HEADER, program.digest())
            .body(Self::body(program.executable().clone()))
            .map_err(|error| Error::internal("write request", error))?;
        let replace = async {
            let response = self.send(request).await?;
            if response.status() == StatusCode::OK {
                let body = Limited::new(response.into_body(), JSON_BYTES_MAX).collect().await;
                let body = body.map_err(|error| broken("the answer of the agent broke", error))?;
                return parse(&body.to_bytes()).map(Replacement::Done);
            }
            let (code, refusal) = told(response).await;
            match code.as_deref() {
                Some(upgrade::IN_THE_WAY) => Ok(Replacement::NotNow(refusal.message().to_owned())),
                _ => Err(refusal),
            }
        };
        match tokio::time::timeout(REPLACE_TIMEOUT, replace).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(Kind::Timeout, "the agent did not take another one in time")),
        }
    }

    /// Runs a command in a persistent shell.
    pub async fn shell_exec(&self, shell: &str, exec: &ShellExec) -> Result<Events<ShellStarted, ShellExit>> {
        let path = format!("/sandhaus/shell/{}/exec", Encoded(shell));
        self.events(Method::POST, &path, Some(exec)).await
    }

    /// Resumes a command's stream.
    pub async fn shell_resume(
        &self,
        shell: &str,
        exec_id: u64,
        offset: u64,
    ) -> Result<Events<ShellStarted, ShellExit>> {
        let path = format!("/sandhaus/shell/{}/exec/{exec_id}?offset={offset}", Encoded(shell));
        self.events(Method::GET, &path, None::<&()>).await
    }

    /// Runs a command in a fresh shell.
    pub async fn script_exec(&self, exec: &ShellExec) -> Result<Events<ShellStarted, ShellExit>> {
        self.events(Method::POST, "/sandhaus/script", Some(exec)).await
    }

    /// Resumes the stream of such a command.
    pub async fn script_resume(&self, exec_id: u64, offset: u64) -> Result<Events<ShellStarted, ShellExit>> {
        let path = format!("/sandhaus/script/{exec_id}?offset={offset}");
        self.events(Method::GET, &path, None::<&()>).await
    }

    /// A shell as it stands.
    pub async fn shell_info(&self, shell: &str) -> Result<ShellInfo> {
        self.json(Method::GET, &format!("/sandhaus/shell/{}", Encoded(shell)), None::<&()>).await
    }

    /// Starts a process and follows it.
    pub async fn spawn(&self, spawn: &Spawn) -> Result<Events<Process, Exit>> {
        self.events(Method::POST, "/sandhaus/process", Some(spawn)).await
    }

    /// Resumes a process's streams.
    pub async fn process_output(&self, id: u64, stdout: u64, stderr: u64) -> Result<Events<Process, Exit>> {
        let path = format!("/sandhaus/process/{id}/output?stdout={stdout}&stderr={stderr}");
        self.events(Method::GET, &path, None::<&()>).await
    }

    /// Sends standard input; the body may stream. `eof` closes it afterwards.
    pub async fn process_stdin(&self, id: u64, body: Body, eof: bool) -> Result<()> {
        let path = format!("/sandhaus/process/{id}/stdin?eof={eof}");
        self.raw(Method::POST, &path, body).await?;
        Ok(())
    }

    /// Sends a signal.
    pub async fn process_signal(&self, id: u64, signal: i32) -> Result<()> {
        let path = format!("/sandhaus/process/{id}/signal");
        self.call(Method::POST, &path, Some(&Signal { signal })).await?;
        Ok(())
    }

    /// Resizes its terminal.
    pub async fn process_resize(&self, id: u64, size: Resize) -> Result<()> {
        self.call(Method::POST, &format!("/sandhaus/process/{id}/resize"), Some(&size)).await?;
        Ok(())
    }

    /// Reads a file beneath `root`: up to `limit` bytes from `offset`, and the whole size.
    pub async fn read_file(&self, root: &str, path: &str, offset: u64, limit: u64) -> Result<(Bytes, u64)> {
        let (offset, limit_text) = (offset.to_string(), limit.to_string());
        let query = Self::query(&BTreeMap::from([
            ("root", root),
            ("path", path),
            ("offset", offset.as_str()),
            ("limit", limit_text.as_str()),
        ]));
        let response = self.call(Method::GET, &format!("/files/download?{query}"), None::<&()>).await?;
        let size = response.headers().get(SIZE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let size: u64 =
            size.ok_or_else(|| Error::new(Kind::Internal, "the agent did not tell the size of the file"))?;
        // The agent is not trusted to keep to the limit.
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = Limited::new(response.into_body(), limit)
            .collect()
            .await
            .map_err(|error| broken("read of the file broke", error))?
            .to_bytes();
        Ok((bytes, size))
    }

    /// Writes a file beneath `root` atomically, making its parents.
    pub async fn write_file(&self, root: &str, path: &str, body: Body) -> Result<()> {
        let query = Self::query(&BTreeMap::from([("root", root), ("path", path)]));
        self.raw(Method::POST, &format!("/files/upload-v2?{query}"), body).await?;
        Ok(())
    }

    /// Query parameters, percent-encoded, without the question mark; for callers of [`Self::send`].
    pub fn query(parameters: &BTreeMap<&str, &str>) -> String {
        let mut query = String::new();
        for (name, value) in parameters {
            let separator = if query.is_empty() { "" } else { "&" };
            write!(query, "{separator}{}={}", Encoded(name), Encoded(value))
                .expect("a String takes everything");
        }
        query
    }

    /// A body that is all there.
    pub fn body(bytes: impl Into<Bytes>) -> Body {
        Full::new(bytes.into()).map_err(|never| match never {}).boxed()
    }

    /// Connections that wait for a request.
    pub(crate) fn idle(&self) -> usize {
        self.inner.connections().iter().filter(|connection| connection.sender.is_ready()).count()
    }

    /// Closes every connection as soon as it has ended what it does, until [`Self::open`].
    pub(crate) fn close(&self) {
        self.inner.keeping.store(false, Ordering::Release);
        self.inner.connections().clear();
    }

    /// Keeps connections for the next request again.
    pub(crate) fn open(&self) {
        self.inner.keeping.store(true, Ordering::Release);
    }

    fn addressed(&self, mut request: Request<Body>) -> Result<Request<Body>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        if !self.inner.path_prefix.is_empty() || request.uri().scheme().is_some() {
            let uri = Uri::try_from(format!("{}{path}", self.inner.path_prefix)).map_err(|error| {
                Error::new(Kind::Invalid, "the path is not valid in a URI").with_source(error)
            })?;
            *request.uri_mut() = uri;
        }
        let headers = request.headers_mut();
        headers.entry(HOST).or_insert_with(|| self.inner.host.clone());
        if let Some(authorization) = &self.inner.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn dial(&self) -> Result<SendRequest<Body>> {
        let connect = async {
            let stream = self.inner.connect.connect().await?;
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| broken("connect to the sandbox", error))
        };
        let (sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| Error::new(Kind::Timeout, "the sandbox did not take the connection in time"))??;
        // Needs no tracker: it ends with its stream, or when the pool drops the other half.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an agent ended");
            }
        });
        Ok(sender)
    }

    async fn call<T: serde::Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&T>,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some(body) => {
                let json =
                    serde_json::to_vec(body).map_err(|error| Error::internal("write request", error))?;
                request.header(CONTENT_TYPE, "application/json").body(Self::body(json))
            }
            None => request.body(Self::body(Bytes::new())),
        };
        self.checked(request).await
    }

    async fn raw(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(path);
        self.checked(request.header(CONTENT_TYPE, "application/octet-stream").body(body)).await
    }

    async fn checked(&self, request: hyper::http::Result<Request<Body>>) -> Result<Response<Incoming>> {
        let request = request
            .map_err(|error| Error::new(Kind::Invalid, "the request is not valid").with_source(error))?;
        let response = self.send(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn json<T: serde::Serialize, R: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&T>,
    ) -> Result<R> {
        let response = self.call(method, path, body).await?;
        let bytes = Limited::new(response.into_body(), JSON_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| broken("the answer of the agent broke", error))?
            .to_bytes();
        parse(&bytes)
    }

    async fn events<T, S, E>(&self, method: Method, path: &str, body: Option<&T>) -> Result<Events<S, E>>
    where
        T: serde::Serialize,
        S: serde::de::DeserializeOwned,
        E: serde::de::DeserializeOwned,
    {
        Ok(Events::new(self.call(method, path, body).await?.into_body()))
    }
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        // The list is whole between any two statements.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most recently used connection that is ready.
    fn checkout(&self) -> Option<SendRequest<Body>> {
        let mut connections = self.connections();
        connections.retain(|connection| {
            let fresh = connection.since.elapsed() < IDLE_AGE_MAX;
            !connection.sender.is_closed() && (fresh || !connection.sender.is_ready())
        });
        let index = connections.iter().rposition(|connection| connection.sender.is_ready())?;
        Some(connections.remove(index).sender)
    }

    fn checkin(&self, sender: SendRequest<Body>) {
        if sender.is_closed() {
            return;
        }
        let mut connections = self.connections();
        // Looked at under the lock: whoever closes clears the list afterwards.
        if !self.keeping.load(Ordering::Acquire) {
            return;
        }
        connections.push(Connection { sender, since: Instant::now() });
        let mut idle = connections.iter().filter(|connection| connection.sender.is_ready()).count();
        connections.retain(|connection| {
            let surplus = idle > IDLE_MAX && connection.sender.is_ready();
            idle -= usize::from(surplus);
            !surplus
        });
    }
}

/// A path segment, query name or value, percent-encoded.
struct Encoded<'a>(&'a str);

impl std::fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

fn broken(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Unavailable, what).with_source(error)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::internal("read answer of the agent", error))
}

/// The error that an answer of the agent tells.
async fn refusal(response: Response<Incoming>) -> Error {
    told(response).await.1
}

/// The same with its code.
async fn told(response: Response<Incoming>) -> (Option<String>, Error) {
    #[derive(serde::Deserialize)]
    struct Told {
        code: Option<String>,
        message: Option<String>,
        error: Option<String>,
    }
    let status = response.status();
    let body = Limited::new(response.into_body(), JSON_BYTES_MAX).collect().await.map(|body| body.to_bytes());
    let told = body.ok().and_then(|body| serde_json::from_slice::<Told>(&body).ok());
    let (code, message) = told.map(|told| (told.code, told.message.or(told.error))).unwrap_or_default();
    let message = message.unwrap_or_default();
    // It comes from inside: no control characters towards a terminal or a log, and not without end.
    let message: String = message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect();
    let message = if message.is_empty() { format!("the agent answered {status}") } else { message };
    (code, Error::new(kind_of(status), message))
}

fn kind_of(status: StatusCode) -> Kind {
    match status {
        StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
        StatusCode::FORBIDDEN => Kind::Forbidden,
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::Conflict,
        StatusCode::GONE => Kind::Gone,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Kind::Timeout,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE => Kind::Exhausted,
        StatusCode::NOT_IMPLEMENTED => Kind::Unsupported,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
        status if status.is_client_error() => Kind::Invalid,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests;
