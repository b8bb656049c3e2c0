//! Connections to stores: TLS with the host's own certificates, through a proxy where the environment names one.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Uri,
    body::{Body, Frame, SizeHint},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;
use tower::Service;

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Pieces of a body that are handed to a connection at once.
const FRAME_BYTES: usize = 256 << 10;

/// Speaks HTTP to a store.
pub(super) type HttpClient = Client<HttpsConnector<Connector>, Outgoing>;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connects directly or through the proxy that the environment names for a host.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.direct.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        // Plain HTTP is for this machine and for hosts in its reach; no proxy stands between.
        let https = target.scheme_str() == Some("https");
        let Some(proxy) = https.then(|| self.proxies.intercept(&target)).flatten() else {
            let connecting = self.direct.call(target);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        Box::pin(async move { Ok(tunnel.call(target).await?) })
    }
}

/// A client with connections of its own.
pub(super) fn client(connect_timeout: Duration) -> Result<HttpClient, Failure> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_connect_timeout(Some(connect_timeout));
    direct.set_nodelay(true);
    let connector = Connector { direct, proxies: Arc::new(Matcher::from_env()) };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new()).timer(TokioTimer::new());
    Ok(builder.build(connector))
}

/// A body that tells how much of it has gone.
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    left: u64,
    moved: Arc<AtomicU64>,
}

impl Outgoing {
    pub(super) fn new(pieces: Vec<Bytes>) -> Self {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces: pieces.into(), left, moved: Arc::default() }
    }

    /// Counts bytes handed to the connection.
    pub(super) fn moved(&self) -> Arc<AtomicU64> {
        self.moved.clone()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(mut piece) = self.pieces.pop_front() else { return Poll::Ready(None) };
        if piece.len() > FRAME_BYTES {
            let rest = piece.split_off(FRAME_BYTES);
            self.pieces.push_front(rest);
        }
        self.left -= piece.len() as u64;
        self.moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
