//! `/port`: on which ports something listens. Asked of the kernel at each question; nothing is scanned in between.

use std::{net::Ipv4Addr, net::Ipv6Addr, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use sandhaus_protocol::system::{ASKED_PORTS, PortInUse, PortList};
use tokio::net::TcpStream;

use crate::{
    agent::Agent,
    error::{Error, Result},
    sys,
};

/// How long a listener of the same machine may take to take a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/port", get(list)).route("/port/{port}/in-use", get(in_use))
}

/// `GET /port`.
async fn list(State(agent): State<Arc<Agent>>) -> Result<Json<PortList>> {
    let ports = agent.on_file_thread(sys::listening_ports).await?;
    Ok(Json(PortList { ports: ports.into_iter().collect() }))
}

/// `GET /port/{port}/in-use`.
async fn in_use(Path(port): Path<String>) -> Result<Json<PortInUse>> {
    let refused = || {
        let (first, last) = (ASKED_PORTS.start(), ASKED_PORTS.end());
        Error::invalid(format_args!("port must be a number from {first} to {last}"))
    };
    let port = port.parse().ok().filter(|port| ASKED_PORTS.contains(port)).ok_or_else(refused)?;
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, dial(port)).await;
    Ok(Json(PortInUse { is_in_use: matches!(dialled, Ok(Ok(_))) }))
}

/// Connects to a port of this machine, by whichever protocol something listens on. Names are not looked up.
pub(crate) async fn dial(port: u16) -> std::io::Result<TcpStream> {
    let older = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpStream::connect(older).await {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let newer = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            // The first error tells more: the newer protocol is often not there at all.
            TcpStream::connect(newer).await.map_err(|_| error)
        }
    }
}
