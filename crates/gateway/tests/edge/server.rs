//! The edge as a test sees it, and how it begins and ends.

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use sandhaus_client::{Client, wire::CreateSession};
use sandhaus_gateway::{GatewayConfig, V1Config, serve};
use sandhaus_sandbox::{
    Instance, Service,
    engine::{Capabilities, Engine, ImageForm},
    service::{
        ServiceConfig,
        transfer::{Landing, SnapshotStore, StoreConfig, StoreLocation},
    },
    testing::{FakeEngine, config, open},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::agent::Script;

pub(crate) const KEY: &str = "sk-test";

/// A served edge.
pub(crate) struct Edge {
    pub(crate) engine: FakeEngine,
    pub(crate) script: Arc<Script>,
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    pub(crate) ending: CancellationToken,
    pub(crate) served: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The whole of one that has begun.
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

impl Edge {
    pub(crate) async fn start() -> Self {
        Self::start_with(config(), V1Config::default()).await
    }

    pub(crate) async fn start_with(config: ServiceConfig, v1: V1Config) -> Self {
        Self::start_gateway(config, GatewayConfig { api_key: Some(KEY.to_owned()), dashboard: None, v1 })
            .await
    }

    pub(crate) async fn start_gateway(config: ServiceConfig, gateway: GatewayConfig) -> Self {
        let script = Script::new();
        let engine = FakeEngine::default().with_agent(script.agent());
        Self::start_engine(engine, script, config, gateway).await
    }

    /// On an engine whose snapshots stand alone, with this directory as their store.
    pub(crate) async fn start_stored(store: &Path) -> Self {
        let script = Script::new();
        let (engine, config) = stored(store);
        let gateway =
            GatewayConfig { api_key: Some(KEY.to_owned()), dashboard: None, v1: V1Config::default() };
        Self::start_engine(engine.with_agent(script.agent()), script, config, gateway).await
    }

    /// The same on an engine of the test's own.
    pub(crate) async fn start_engine(
        engine: FakeEngine,
        script: Arc<Script>,
        config: ServiceConfig,
        gateway: GatewayConfig,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::acquire(dir.path()).unwrap();
        let service = open(instance, config, engine.clone()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ending = CancellationToken::new();
        let served = tokio::spawn(serve(listener, service, gateway, ending.clone()));
        let client = Client::new(&format!("http://{address}"), Some(KEY)).unwrap();
        Self { engine, script, client, address, ending, served, _dir: dir }
    }

    /// A session's id.
    pub(crate) async fn session(&self) -> String {
        self.client.create(&CreateSession::default()).await.unwrap().id
    }

    /// A request with the key, its answer as it begins.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        request(self.address, method, path, headers, body).await
    }

    /// A request with the key and its whole answer.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &str) -> Answer {
        Answer::of(self.send(method, path, &[("x-request-id", "test")], body).await).await
    }
}

/// An engine whose snapshots stand alone, and a configuration with this directory as their store.
pub(crate) fn stored(store: &Path) -> (FakeEngine, ServiceConfig) {
    let capabilities = Engine::capabilities(&FakeEngine::default()).clone();
    let engine = FakeEngine::new(Capabilities { image_form: ImageForm::Disk, ..capabilities });
    let store = StoreConfig::at(StoreLocation::Directory(store.to_owned()));
    let store = SnapshotStore { store, landing: Landing::default() };
    (engine, ServiceConfig { snapshot_store: Some(store), ..config() })
}

/// A request with the key, its answer as it begins.
pub(crate) async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let authorization = format!("Bearer {KEY}");
    let headers = [&[("authorization", authorization.as_str())], headers].concat();
    request_on(stream, method, path, &headers, body).await
}

/// A request as it is, on a connection.
pub(crate) async fn request_on(
    stream: tokio::net::TcpStream,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    sender.send_request(request.body(body).unwrap()).await.unwrap()
}

#[tokio::test]
async fn without_a_key_only_loopback_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let service: Service =
        open(Instance::acquire(dir.path()).unwrap(), config(), FakeEngine::default()).await.unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let gateway = GatewayConfig { api_key: None, dashboard: None, v1: V1Config::default() };
    let error = serve(listener, service, gateway, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn requests_in_flight_end_well_when_the_server_does() {
    let edge = Arc::new(Edge::start().await);
    let id = edge.session().await;
    let waiting = tokio::spawn({
        let (client, id) = (edge.client.clone(), id.clone());
        async move {
            let exec =
                sandhaus_client::wire::ExecRequest { cmd: "print:done park".into(), ..Default::default() };
            client.exec(&id, &exec).await
        }
    });
    // Its command has arrived inside, so the request is in flight.
    while edge.script.commands() == 0 {
        tokio::task::yield_now().await;
    }
    edge.ending.cancel();
    while tokio::net::TcpStream::connect(edge.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    edge.script.release();
    assert_eq!(waiting.await.unwrap().unwrap().output, "done");
    let edge = Arc::into_inner(edge).unwrap();
    drop(edge.client);
    edge.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_outlives_a_body_that_nobody_read() {
    let edge = Edge::start().await;
    let body = "x".repeat(20 << 20);
    for path in ["/v1/sessions", "/v1/nowhere", "/v1/sessions/00000000-000/fs/upload"] {
        let answer = edge.call(Method::POST, path, &body).await;
        assert!(answer.status.is_client_error(), "{path}");
        assert_eq!(answer.headers["x-request-id"], "test");
    }
}

#[tokio::test]
async fn a_refusal_before_the_body_says_that_the_connection_ends() {
    let edge = Edge::start().await;
    let answer = async |head: &str, body: &str| {
        let mut stream = tokio::net::TcpStream::connect(edge.address).await.unwrap();
        let length = body.len().max(1);
        let request = format!("POST {head}host: edge\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "an answer comes first");
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let unread = answer("/v1/sessions HTTP/1.1\r\n", "").await;
    assert!(unread.starts_with("http/1.1 401") && unread.contains("\r\nconnection: close\r\n"), "{unread}");
    let read = answer(&format!("/v1/sessions HTTP/1.1\r\nauthorization: Bearer {KEY}\r\n"), "nonsense").await;
    assert!(read.starts_with("http/1.1 400") && !read.contains("\r\nconnection:"), "{read}");
}

#[tokio::test]
async fn a_body_that_says_nothing_leaves_its_connection_open() {
    let edge = Edge::start().await;
    let mut stream = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for path in ["/v1/pool/fill", "/v1/pool/drain"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {KEY}\r\ncontent-length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Nothing is answered before all of the request is there.
        let mut answer = Vec::new();
        tokio::select! {
            biased;
            _ = stream.read_buf(&mut answer) => panic!("{path} was answered early"),
            healthy = edge.client.healthz() => healthy.unwrap(),
        };
        stream.write_all(b"{}").await.unwrap();
        while !answer.ends_with(b"\n") || !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{path}: the connection stays");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
}
