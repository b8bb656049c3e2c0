//! Connections to registries: TLS with the host's own certificates, through a proxy where the environment names one.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::Full;
use hyper::{Uri, body::Bytes};
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

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Speaks HTTP to registries.
pub(crate) type HttpClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connects directly or through the proxy that the environment names for a host.
#[derive(Clone)]
pub(crate) struct Connector {
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
        let proxy = match target.scheme_str() {
            Some("https") => self.proxies.intercept(&target),
            _ => None,
        };
        match proxy {
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
                if let Some(authorization) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                Box::pin(async move { tunnel.call(target).await.map_err(Failure::from) })
            }
            None => {
                let connecting = self.direct.call(target);
                Box::pin(async move { connecting.await.map_err(Failure::from) })
            }
        }
    }
}

/// A client with connections of its own. Certificates are read once: there are many, and TLS may never be needed.
pub(crate) fn client() -> Result<HttpClient, Failure> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_connect_timeout(Some(CONNECT_TIMEOUT));
    direct.set_nodelay(true);
    let connector = Connector { direct, proxies: Arc::new(Matcher::from_env()) };
    let tls = HttpsConnectorBuilder::new()
        .with_tls_config(tls_configuration()?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new()).timer(TokioTimer::new());
    Ok(builder.build(tls))
}

fn tls_configuration() -> Result<rustls::ClientConfig, Failure> {
    static CONFIGURATION: OnceLock<rustls::ClientConfig> = OnceLock::new();
    if let Some(configuration) = CONFIGURATION.get() {
        return Ok(configuration.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            "this host has no certificates of authorities: install ca-certificates to reach registries by TLS"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let configuration = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(CONFIGURATION.get_or_init(|| configuration).clone())
}
