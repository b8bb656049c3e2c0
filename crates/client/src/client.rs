//! The client itself: one HTTP/1.1 connection per call in flight, kept for the next call where it can be.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RANGE},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

use crate::{
    console::Console,
    error::{Error, Result},
    stream::{ExecStream, JobStream},
    wire::*,
};

/// Where `http://` goes unless it says.
const HTTP_PORT: u16 = 80;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections kept for later calls.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// Largest answer that is held in memory: the largest `fs/read` in base64, and room for its frame.
const ANSWER_BYTES_MAX: usize = 160 << 20;

/// A streaming request body.
pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl Endpoint {
    /// Reads a base URL: `http://HOST[:PORT][/PATH]`. Only plain HTTP: a remote server belongs behind a tunnel.
    pub fn parse(url: &str) -> Result<Self> {
        let refuse = |reason| Error::Url { url: url.to_owned(), reason };
        let rest = url.strip_prefix("http://").ok_or_else(|| refuse("it must begin with http://"))?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(refuse("it must not hold a user name or password"));
        }
        if path.contains(['?', '#']) {
            return Err(refuse("it must not hold a query or fragment"));
        }
        let authority: hyper::http::uri::Authority =
            authority.parse().map_err(|_| refuse("its host is malformed"))?;
        if authority.host().is_empty() {
            return Err(refuse("it names no host"));
        }
        let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| refuse("its port is malformed"))?,
            None => HTTP_PORT,
        };
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { host: authority.host().to_owned(), port, path })
    }

    /// Host and port, as for the Host header.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Path before every route; empty for a server at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A fresh connection, without Nagle's delay.
    pub async fn connect(&self) -> Result<TcpStream> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let failed = |source| Error::Connect { address: self.authority(), source };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, self.port)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }
}

/// A client of one server. Cheap to clone; clones share their kept connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.inner.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `url`, showing `api_key` if there is one.
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self> {
        let endpoint = Endpoint::parse(url)?;
        let malformed = |reason| Error::Url { url: url.to_owned(), reason };
        let host =
            HeaderValue::from_str(&endpoint.authority()).map_err(|_| malformed("its host is malformed"))?;
        let authorization = api_key
            .map(|key| HeaderValue::from_str(&format!("Bearer {key}")))
            .transpose()
            .map_err(|_| malformed("the API key holds characters that a header cannot carry"))?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self { inner: Arc::new(Inner { endpoint, host, authorization, idle: Mutex::default() }) })
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Whether the server answers at all.
    pub async fn healthz(&self) -> Result<Health> {
        self.call(Method::GET, "/healthz", None::<&()>).await
    }

    /// Makes a session and waits until it runs.
    pub async fn create(&self, request: &CreateSession) -> Result<SessionInfo> {
        self.call(Method::POST, "/v1/sessions", Some(request)).await
    }

    /// Sessions, newest first.
    pub async fn list(&self, filter: &ListSessions) -> Result<Vec<SessionInfo>> {
        let mut path = "/v1/sessions".to_owned();
        let mut query = Query::new(&mut path);
        if filter.all {
            query.add("status", "all");
        }
        for (name, value) in &filter.labels {
            query.add("label", &format!("{name}={value}"));
        }
        if let Some(cursor) = &filter.cursor {
            query.add("cursor", cursor);
        }
        if filter.limit > 0 {
            query.add("limit", &filter.limit.to_string());
        }
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// One session.
    pub async fn get(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::GET, &session(id, ""), None::<&()>).await
    }

    /// Ends a session; nothing of it is left afterwards.
    pub async fn delete(&self, id: &str) -> Result<()> {
        self.call::<Okay>(Method::DELETE, &session(id, ""), None::<&()>).await.map(drop)
    }

    /// Has a session live until so many seconds from now at least; 0: its own time to live.
    pub async fn extend(&self, id: &str, ttl_seconds: i64) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/extend"), Some(&ExtendSession { ttl_seconds })).await
    }

    /// Freezes a session in memory.
    pub async fn pause(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/pause"), None::<&()>).await
    }

    /// Thaws a session.
    pub async fn resume(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/resume"), None::<&()>).await
    }

    /// Ends a session's machine and keeps its disk.
    pub async fn stop(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/stop"), None::<&()>).await
    }

    /// Starts a stopped session again.
    pub async fn start(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/start"), None::<&()>).await
    }

    /// Writes a session's memory to disk and lets go of the memory; starting it goes on where it was.
    pub async fn suspend(&self, id: &str) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/suspend"), None::<&()>).await
    }

    /// Copies a session as it stands.
    pub async fn fork(&self, id: &str, request: &ForkSession) -> Result<SessionInfo> {
        self.call(Method::POST, &session(id, "/fork"), Some(request)).await
    }

    /// What the display of a session shows, as a PNG.
    pub async fn screenshot(&self, id: &str) -> Result<Vec<u8>> {
        let request = self.request(Method::GET, &session(id, "/screenshot"), full_body(Bytes::new()))?;
        let (response, connection) = self.send(request).await?;
        let picture = collect(successful(response).await?.into_body()).await?;
        self.keep(connection);
        Ok(picture)
    }

    /// The serial console of a session.
    pub async fn console(&self, id: &str) -> Result<Console> {
        let request = self.request(Method::GET, &session(id, "/console"), full_body(Bytes::new()))?;
        Console::open(request, self).await
    }

    /// Use of resources.
    pub async fn stats(&self, id: &str) -> Result<Stats> {
        self.call(Method::GET, &session(id, "/stats"), None::<&()>).await
    }

    /// Runs a command in the session's shell and waits for its end. Dropping the wait leaves the command running.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResult> {
        self.call(Method::POST, &session(id, "/exec"), Some(request)).await
    }

    /// Runs a command in the session's shell and follows its output.
    pub async fn exec_stream(&self, id: &str, request: &ExecRequest) -> Result<ExecStream> {
        let body = full_body(encode_json(request)?);
        let request = self.request(Method::POST, &session(id, "/exec/stream"), body)?;
        let (response, _) = self.send(request).await?;
        Ok(ExecStream::new(successful(response).await?.into_body()))
    }

    /// Writes a file under `/workspace`, atomically. The content streams; its size has no limit of the client's.
    pub async fn write(&self, id: &str, path: &str, content: Body) -> Result<()> {
        let request = self.request(Method::PUT, &file(id, "/fs/raw", path), content)?;
        let (response, _) = self.send(request).await?;
        successful(response).await.map(drop)
    }

    /// Reads a file under `/workspace` from byte `offset` on, streaming.
    pub async fn read(&self, id: &str, path: &str, offset: u64) -> Result<Download> {
        let mut request = self.request(Method::GET, &file(id, "/fs/raw", path), full_body(Bytes::new()))?;
        if offset > 0 {
            let range =
                HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits make a header value");
            request.headers_mut().insert(RANGE, range);
        }
        let (response, _) = self.send(request).await?;
        Ok(Download { body: successful(response).await?.into_body() })
    }

    /// Entries of a directory under `/workspace`.
    pub async fn list_files(&self, id: &str, path: &str) -> Result<Vec<FsEntry>> {
        let list: FsList = self.call(Method::GET, &file(id, "/fs/list", path), None::<&()>).await?;
        Ok(list.entries)
    }

    /// A file or directory under `/workspace`.
    pub async fn stat_file(&self, id: &str, path: &str) -> Result<FsEntry> {
        self.call(Method::GET, &file(id, "/fs/stat", path), None::<&()>).await
    }

    /// Removes a file or empty directory under `/workspace`.
    pub async fn remove_file(&self, id: &str, path: &str) -> Result<()> {
        self.call::<Okay>(Method::DELETE, &file(id, "/fs", path), None::<&()>).await.map(drop)
    }

    /// Removes a directory under `/workspace` with all in it.
    pub async fn remove_tree(&self, id: &str, path: &str) -> Result<()> {
        let path = format!("{}&recursive=true", file(id, "/fs", path));
        self.call::<Okay>(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    /// Workspaces by id.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceInfo>> {
        let list: WorkspaceList = self.call(Method::GET, "/v1/workspaces", None::<&()>).await?;
        Ok(list.workspaces)
    }

    /// Removes a workspace that no session shows.
    pub async fn remove_workspace(&self, id: &str) -> Result<()> {
        self.call::<Okay>(Method::DELETE, &workspace(id, ""), None::<&()>).await.map(drop)
    }

    /// Removes a workspace, also from under the sessions that show it.
    pub async fn remove_workspace_by_force(&self, id: &str) -> Result<()> {
        self.call::<Okay>(Method::DELETE, &workspace(id, "?force=true"), None::<&()>).await.map(drop)
    }

    /// Entries of a directory in a workspace.
    pub async fn list_workspace_files(&self, id: &str, path: &str) -> Result<Vec<FsEntry>> {
        let list: FsList = self.call(Method::GET, &at(workspace(id, "/fs"), path), None::<&()>).await?;
        Ok(list.entries)
    }

    /// Writes a file in a workspace, atomically; the workspace is made if it is not there.
    pub async fn write_workspace_file(&self, id: &str, path: &str, content: Body) -> Result<()> {
        let request = self.request(Method::PUT, &at(workspace(id, "/fs/raw"), path), content)?;
        let (response, _) = self.send(request).await?;
        successful(response).await.map(drop)
    }

    /// Reads a file in a workspace, streaming.
    pub async fn read_workspace_file(&self, id: &str, path: &str) -> Result<Download> {
        let target = at(workspace(id, "/fs/raw"), path);
        let request = self.request(Method::GET, &target, full_body(Bytes::new()))?;
        let (response, _) = self.send(request).await?;
        Ok(Download { body: successful(response).await?.into_body() })
    }

    /// Takes a snapshot of a session and waits until it is whole.
    pub async fn create_snapshot(&self, request: &CreateSnapshot) -> Result<SnapshotInfo> {
        self.call(Method::POST, "/v1/snapshots", Some(request)).await
    }

    /// Snapshots of the server, by name.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let list: SnapshotList = self.call(Method::GET, "/v1/snapshots", None::<&()>).await?;
        Ok(list.snapshots)
    }

    /// One snapshot of the server.
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.call(Method::GET, &format!("/v1/snapshots/{}", encoded(name)), None::<&()>).await
    }

    /// Removes a snapshot from the server.
    pub async fn remove_snapshot(&self, name: &str) -> Result<()> {
        let path = format!("/v1/snapshots/{}", encoded(name));
        self.call::<Okay>(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    /// Copies a snapshot to the store.
    pub async fn push_snapshot(&self, name: &str) -> Result<JobStream> {
        self.follow(&format!("/v1/snapshots/{}/push", encoded(name))).await
    }

    /// Copies a snapshot from the store.
    pub async fn pull_snapshot(&self, name: &str) -> Result<JobStream> {
        self.follow(&format!("/v1/snapshots/{}/pull", encoded(name))).await
    }

    /// Snapshots in the store, by name.
    pub async fn stored_snapshots(&self) -> Result<Vec<StoredSnapshotInfo>> {
        let list: StoredSnapshotList = self.call(Method::GET, "/v1/store/snapshots", None::<&()>).await?;
        Ok(list.snapshots)
    }

    /// One snapshot in the store.
    pub async fn stored_snapshot(&self, name: &str) -> Result<StoredSnapshotInfo> {
        self.call(Method::GET, &format!("/v1/store/snapshots/{}", encoded(name)), None::<&()>).await
    }

    /// Removes a snapshot from the store.
    pub async fn remove_stored_snapshot(&self, name: &str) -> Result<()> {
        let path = format!("/v1/store/snapshots/{}", encoded(name));
        self.call::<Okay>(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    /// Long work, newest first.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>> {
        let list: JobList = self.call(Method::GET, "/v1/jobs", None::<&()>).await?;
        Ok(list.jobs)
    }

    /// One of them.
    pub async fn job(&self, id: &str) -> Result<JobInfo> {
        self.call(Method::GET, &format!("/v1/jobs/{}", encoded(id)), None::<&()>).await
    }

    async fn follow(&self, path: &str) -> Result<JobStream> {
        let request = self.request(Method::POST, path, full_body(Bytes::new()))?;
        let (response, _) = self.send(request).await?;
        Ok(JobStream::new(successful(response).await?.into_body()))
    }

    /// The sandboxes that are kept ready.
    pub async fn pool(&self) -> Result<PoolInfo> {
        self.call(Method::GET, "/v1/pool", None::<&()>).await
    }

    /// Empties the pool and keeps it empty.
    pub async fn drain_pool(&self) -> Result<PoolInfo> {
        self.call(Method::POST, "/v1/pool/drain", None::<&()>).await
    }

    /// Fills the pool and keeps it filled.
    pub async fn fill_pool(&self) -> Result<PoolInfo> {
        self.call(Method::POST, "/v1/pool/fill", None::<&()>).await
    }

    /// Images by name.
    pub async fn images(&self) -> Result<Vec<ImageInfo>> {
        let list: ImageList = self.call(Method::GET, "/v1/images", None::<&()>).await?;
        Ok(list.images)
    }

    /// Everything known of an image.
    pub async fn image(&self, name: &str) -> Result<ImageDetails> {
        self.call(Method::GET, &format!("/v1/images/{}", encoded(name)), None::<&()>).await
    }

    /// Removes images that nothing needs, or also those that only their names hold.
    pub async fn prune_images(&self, all: bool) -> Result<PrunedImages> {
        self.call(Method::POST, "/v1/images/prune", Some(&PruneImages { all })).await
    }

    /// Gives an image a further name.
    pub async fn tag_image(&self, name: &str, tag: &str) -> Result<ImageInfo> {
        let path = format!("/v1/images/{}/tag", encoded(name));
        self.call(Method::POST, &path, Some(&TagImage { tag: tag.to_owned() })).await
    }

    /// Removes an image's name.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let path = format!("/v1/images/{}", encoded(name));
        self.call::<Okay>(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    pub(crate) fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.inner.endpoint.path)
            .parse()
            .map_err(|_| Error::Url { url: path.to_owned(), reason: "it cannot be a request path" })?;
        request.headers_mut().insert(HOST, self.inner.host.clone());
        if let Some(authorization) = &self.inner.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        let content = match body {
            Some(body) => encode_json(body)?,
            None => Bytes::new(),
        };
        let mut request = self.request(method, path, full_body(content))?;
        if body.is_some() {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let (response, connection) = self.send(request).await?;
        let body = collect(successful(response).await?.into_body()).await?;
        self.keep(connection);
        serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()))
    }

    /// Sends on a kept connection, or on a fresh one. A kept connection that the server had closed gives the request
    /// back unsent, so that even a call that must not happen twice goes on to the next; a plain read is repeated also
    /// when it cannot be told whether the request arrived.
    async fn send(&self, mut request: Request<Body>) -> Result<(Response<Incoming>, SendRequest<Body>)> {
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            let (parts, body) = request.into_parts();
            let repeat = (parts.method == Method::GET)
                .then(|| Request::from_parts(parts.clone(), full_body(Bytes::new())));
            request = Request::from_parts(parts, body);
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut refused) => match refused.take_message().or(repeat) {
                    Some(again) => request = again,
                    None => return Err(Error::Transport(refused.into_error())),
                },
            }
        }
        let stream = self.inner.endpoint.connect().await?;
        let (mut connection, driver) = handshake(TokioIo::new(stream)).await.map_err(Error::Transport)?;
        // The driver ends with the connection, which ends when its last handle or body is dropped. What fails on it
        // the caller sees on the call itself.
        tokio::spawn(async move { drop(driver.await) });
        let response = connection.send_request(request).await.map_err(Error::Transport)?;
        Ok((response, connection))
    }

    /// Sends on a connection of its own, which the answer may turn into something else.
    pub(crate) async fn upgrade(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let stream = self.inner.endpoint.connect().await?;
        let (mut connection, driver) = handshake(TokioIo::new(stream)).await.map_err(Error::Transport)?;
        tokio::spawn(async move { drop(driver.with_upgrades().await) });
        connection.send_request(request).await.map_err(Error::Transport)
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, connection: SendRequest<Body>) {
        let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }
}

/// A file's content as it arrives.
#[derive(Debug)]
pub struct Download {
    body: Incoming,
}

impl Download {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    Ok(_) | Err(_) => {}
                },
                Some(Err(error)) => return Err(Error::Transport(error)),
                None => return Ok(None),
            }
        }
    }
}

/// A body that is wholly in memory.
pub fn full_body(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed()
}

fn encode_json(value: &impl Serialize) -> Result<Bytes> {
    let text = serde_json::to_vec(value).map_err(|error| Error::Answer(error.to_string()))?;
    Ok(text.into())
}

pub(crate) async fn successful(response: Response<Incoming>) -> Result<Response<Incoming>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let body = collect(response.into_body()).await?;
    Err(Error::from_answer(status, &body))
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Error::Transport)?.into_data() {
            if content.len() + data.len() > ANSWER_BYTES_MAX {
                return Err(Error::Answer(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            content.extend_from_slice(&data);
        }
    }
    Ok(content)
}

fn session(id: &str, rest: &str) -> String {
    format!("/v1/sessions/{}{rest}", encoded(id))
}

fn file(id: &str, route: &str, path: &str) -> String {
    at(session(id, route), path)
}

fn workspace(id: &str, rest: &str) -> String {
    format!("/v1/workspaces/{}{rest}", encoded(id))
}

fn at(mut target: String, path: &str) -> String {
    Query::new(&mut target).add("path", path);
    target
}

/// Appends query parameters to a path.
struct Query<'a> {
    target: &'a mut String,
    separator: char,
}

impl<'a> Query<'a> {
    fn new(target: &'a mut String) -> Self {
        Self { target, separator: '?' }
    }

    fn add(&mut self, name: &str, value: &str) {
        self.target.push(self.separator);
        self.target.push_str(name);
        self.target.push('=');
        self.target.push_str(&encoded(value));
        self.separator = '&';
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn urls() {
        let plain = Endpoint::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!((plain.authority().as_str(), plain.path()), ("127.0.0.1:8080", ""));
        let nested = Endpoint::parse("http://[::1]/base/").unwrap();
        assert_eq!((nested.authority().as_str(), nested.path()), ("[::1]:80", "/base"));
        for wrong in [
            "https://host",
            "127.0.0.1:8080",
            "http://",
            "http://u:p@host",
            "http://host:x",
            "http://h/p?q=1",
        ] {
            assert!(matches!(Endpoint::parse(wrong), Err(Error::Url { .. })), "{wrong}");
        }
    }

    #[test]
    fn encoding() {
        assert_eq!(encoded("a b/ü?&"), "a%20b%2F%C3%BC%3F%26");
    }

    /// Answers each connection once with `answer`, then closes it.
    async fn server(answers: Vec<&'static str>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Client::new(&url, Some("key")).unwrap()
    }

    #[tokio::test]
    async fn errors_keep_status_code_and_message() {
        let client = server(vec![
            "HTTP/1.1 404 Not Found\r\nContent-Length: 66\r\n\r\n{\"error_code\":\"SESSION_NOT_FOUND\",\"message\":\"gone\",\"future\":[1,2]}",
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nproxy",
        ])
        .await;
        let error = client.get("1").await.unwrap_err();
        assert_eq!(
            (error.status(), error.code(), error.to_string().as_str()),
            (Some(404), Some("SESSION_NOT_FOUND"), "gone")
        );
        let error = client.get("1").await.unwrap_err();
        assert_eq!(
            (error.status(), error.code(), error.to_string().as_str()),
            (Some(502), None, "502: proxy")
        );
    }

    #[tokio::test]
    async fn a_connection_closed_while_idle_is_replaced() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n{\"status\":\"ok\",\"future\":true}";
        let client = server(vec![answer, answer]).await;
        assert_eq!(client.healthz().await.unwrap().status, "ok");
        assert_eq!(client.healthz().await.unwrap().status, "ok");
    }
}
