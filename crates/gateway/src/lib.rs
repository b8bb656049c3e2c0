//! The HTTP edge: translations of public dialects onto [`sandhaus_sandbox::Service`]. It knows no engine, and nothing
//! in it needs root. Each dialect is a folder; no dialect names another.

use std::net::SocketAddr;

use sandhaus_sandbox::Service;
use tokio_util::sync::CancellationToken;

/// What the edge needs to know.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The key that callers must show; none only on loopback.
    pub api_key: Option<String>,
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
    /// Longest a command may run, in milliseconds; also what `timeout_ms: 0` means.
    pub exec_timeout_max_ms: u64,
    /// Bytes of output kept of one blocking command.
    pub output_bytes_max: usize,
}

/// Serves until `shutdown`, then lets requests in flight end for a bounded time.
pub async fn serve(
    listener: tokio::net::TcpListener,
    service: Service,
    config: GatewayConfig,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let _: Option<SocketAddr> = listener.local_addr().ok();
    let _ = (service, config, shutdown);
    todo!()
}

/// The OpenAPI document of everything this edge serves, as JSON.
pub fn openapi() -> String {
    todo!()
}
