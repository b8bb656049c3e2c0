//! The HTTP edge: translations of public dialects onto [`sandhaus_sandbox::Service`]. It knows no engine, and nothing
//! in it needs root. Each dialect is a folder; no dialect names another.
//!
//! Reading order: `server` (connections and their limits), `edge` (what every request passes: request id, key, log,
//! metrics), `auth`, `error` (the one table from kinds to status codes), `metrics`, `proxy` (the way inside) and `screen`
//! (pictures of displays), then the dialects: `v1`, `runner` on a
//! listener of its own, and `dashboard`, the web page.

use std::sync::Arc;

use sandhaus_sandbox::Service;
use tokio_util::sync::CancellationToken;

mod auth;
mod body;
mod dashboard;
mod edge;
mod error;
mod metrics;
mod proxy;
mod refusal;
mod runner;
mod screen;
mod server;
mod toolbox;
mod v1;

pub use dashboard::{Asset, CookieTransport, Dashboard};
pub use runner::{HostLoad, Origin, RunnerConfig, SandboxClass, serve as serve_runner};

use edge::Edge;

/// What the edge needs to know.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The key that callers must show; none only on loopback.
    pub api_key: Option<String>,
    /// The web page; none: it is not served.
    pub dashboard: Option<Dashboard>,
    /// What `/v1` gives to requests that do not say.
    pub v1: V1Config,
}

/// Defaults and limits of `/v1`.
#[derive(Debug, Clone)]
pub struct V1Config {
    /// Confinement of `/v1` sandboxes.
    pub security: sandhaus_sandbox::SecurityProfile,
    /// Read-only root.
    pub readonly_root: bool,
    /// Shell of `/v1` sandboxes.
    pub shell: sandhaus_protocol::boot::ShellPreference,
    /// Filter of system calls of sandboxes that do not say, and the weakest that a request may ask for.
    pub seccomp: sandhaus_sandbox::Seccomp,
    /// Whether commands of a session share one shell.
    pub exec_mode: ExecMode,
    /// Longest a command may run, in milliseconds; also what `timeout_ms: 0` means.
    pub exec_timeout_max_ms: u64,
    /// Bytes of output kept of one blocking command.
    pub output_bytes_max: usize,
    /// Bytes of one multipart upload.
    pub upload_bytes_max: usize,
}

/// Whether commands of a session share one shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecMode {
    /// One shell: directory, variables, functions and jobs last from command to command.
    #[default]
    Stateful,
    /// A fresh shell for each command.
    Stateless,
}

impl Default for V1Config {
    fn default() -> Self {
        Self {
            security: sandhaus_sandbox::SecurityProfile::Strict,
            readonly_root: true,
            shell: sandhaus_protocol::boot::ShellPreference::default(),
            seccomp: sandhaus_sandbox::Seccomp::Strict,
            exec_mode: ExecMode::Stateful,
            exec_timeout_max_ms: 120_000,
            output_bytes_max: 5 << 20,
            upload_bytes_max: 10 << 20,
        }
    }
}

/// Serves until `shutdown`, then lets requests in flight end for a bounded time. Without a key only a loopback
/// listener is served.
pub async fn serve(
    listener: tokio::net::TcpListener,
    service: Service,
    config: GatewayConfig,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    check_listener(&listener, config.api_key.as_deref())?;
    let edge = Arc::new(Edge::new(service, config));
    let router = edge::router(Arc::clone(&edge));
    server::run(listener, edge, router, shutdown).await
}

/// Refuses a listener beyond loopback without a key.
fn check_listener(listener: &tokio::net::TcpListener, api_key: Option<&str>) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    if api_key.is_some() || address.ip().is_loopback() {
        return Ok(());
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        format!("refusing to listen on {address} without an API key; set one, or listen on 127.0.0.1"),
    ))
}

/// What a `/v1` request that says nothing asks of the domain: what is kept ready for such requests must be the same.
pub fn plain_request(config: &V1Config) -> sandhaus_sandbox::service::CreateSandbox {
    v1::plain_request(config)
}

/// The OpenAPI document of everything this edge serves, as JSON.
pub fn openapi() -> String {
    edge::document()
}
