//! Ports of a sandbox that the host's loopback shows: a listener per port, and for each connection a stream into the
//! sandbox by way of its engine. So it works whatever the engine and the network are, and needs nothing of the host's
//! packet filters.
//!
//! ```text
//! 127.0.0.1:host_port ──accept──▶ lease on Tcp(port) ──copied both ways──▶ sandbox
//! ```
//!
//! The row has the host's port, so a later server binds the same one again. The listeners belong to the sandbox's actor:
//! they close before the sandbox is gone for those who wait for its end.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    engine::GuestPort,
    error::{Error, Kind, Result},
    service::{Service, Shared},
    types::{PublishedPort, SandboxId},
};

/// Connections that the published ports of one sandbox carry at a time; one more is closed at once.
const CONNECTIONS_MAX: usize = 256;

/// Lowest port of the host that can be asked for: those below belong to the host's own services.
pub(crate) const HOST_PORT_MIN: u16 = 1024;

/// How long a server waits before it tries again to bind a port that somebody else has taken meanwhile.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// How long nothing is accepted after the host could not (it is out of descriptors, say).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Ports that are bound, and lead nowhere yet.
#[derive(Debug, Default)]
pub(crate) struct Bound(Vec<(PublishedPort, std::net::TcpListener)>);

impl Bound {
    /// Binds the ports of the host, all or none; where any will do, it is chosen now.
    pub(crate) fn bind(wanted: &[PublishedPort]) -> Result<Self> {
        wanted
            .iter()
            .map(|&port| listen(port).map_err(|error| refused(port, error)))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The ports with those of the host as they are.
    pub(crate) fn ports(&self) -> Vec<PublishedPort> {
        self.0.iter().map(|(port, _)| *port).collect()
    }
}

fn listen(port: PublishedPort) -> io::Result<(PublishedPort, std::net::TcpListener)> {
    let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port.host_port)))?;
    listener.set_nonblocking(true)?;
    let host_port = listener.local_addr()?.port();
    Ok((PublishedPort { host_port, ..port }, listener))
}

fn refused(port: PublishedPort, error: io::Error) -> Error {
    let shown = port.host_port;
    match error.kind() {
        io::ErrorKind::AddrInUse if shown == 0 => Error::new(Kind::Exhausted, "the host has no free port"),
        io::ErrorKind::AddrInUse => {
            let message =
                format!("port {shown} of the host is in use: choose another, or 0 for any that is free");
            Error::new(Kind::Conflict, message)
        }
        _ => Error::internal(format!("bind port {shown} of the host"), error),
    }
}

/// The listeners of a sandbox. Dropped, they close.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Publication {
    /// Lets bound ports lead into a sandbox.
    pub(crate) fn serve(shared: &Arc<Shared>, id: &SandboxId, bound: Bound) -> Self {
        let publication = Self::default();
        if bound.0.is_empty() {
            return publication;
        }
        let door = publication.door(shared, id);
        for (port, listener) in bound.0 {
            let door = door.clone();
            publication.tracker.spawn(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => door.accept(port, listener).await,
                    Err(error) => {
                        tracing::error!(sandbox = %door.id, %error, "cannot serve a published port")
                    }
                }
            });
        }
        publication
    }

    /// Binds the ports of a sandbox that an earlier server had, however long somebody else keeps one of them.
    pub(crate) fn resume(shared: &Arc<Shared>, id: &SandboxId, ports: &[PublishedPort]) -> Self {
        let publication = Self::default();
        if ports.is_empty() {
            return publication;
        }
        let door = publication.door(shared, id);
        for &port in ports {
            let door = door.clone();
            publication.tracker.spawn(async move { door.resume(port).await });
        }
        publication
    }

    /// Closes all of it and waits until that is done.
    pub(crate) async fn close(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn door(&self, shared: &Arc<Shared>, id: &SandboxId) -> Door {
        Door {
            service: Service::over(shared.clone()),
            id: id.clone(),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            token: self.token.clone(),
            tracker: self.tracker.clone(),
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

/// The way from the host's ports into one sandbox.
#[derive(Clone)]
struct Door {
    service: Service,
    id: SandboxId,
    room: Arc<Semaphore>,
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Door {
    async fn resume(&self, port: PublishedPort) {
        let mut told = false;
        loop {
            match listen(port).and_then(|(_, listener)| TcpListener::from_std(listener)) {
                Ok(listener) => return self.accept(port, listener).await,
                Err(error) if !told => {
                    told = true;
                    let host_port = port.host_port;
                    tracing::warn!(sandbox = %self.id, host_port, %error, "a published port cannot be bound again yet");
                }
                Err(_) => {}
            }
            // Both hold nothing.
            tokio::select! {
                () = tokio::time::sleep(BIND_AGAIN) => {}
                () = self.token.cancelled() => return,
            }
        }
    }

    async fn accept(&self, port: PublishedPort, listener: TcpListener) {
        loop {
            // Cancel-safe: a connection that was not handed out stays with the listener.
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.token.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => match self.room.clone().try_acquire_owned() {
                    Ok(place) => {
                        let door = self.clone();
                        self.tracker.spawn(async move { door.carry(port, stream, place).await });
                    }
                    Err(_) => tracing::debug!(sandbox = %self.id, "too many connections to published ports"),
                },
                Err(error) => {
                    tracing::debug!(sandbox = %self.id, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// One connection, until both sides have said all they have to say.
    async fn carry(&self, port: PublishedPort, mut stream: TcpStream, _place: OwnedSemaphorePermit) {
        let carried = async {
            // Small answers should not wait for more; a socket that cannot do so works all the same.
            let _ = stream.set_nodelay(true);
            self.service.touch(&self.id).await?;
            let mut inside = self.service.dial(&self.id, GuestPort::Tcp(port.port)).await?;
            let copied = tokio::io::copy_bidirectional(&mut stream, &mut inside).await;
            drop(inside);
            self.service.touch(&self.id).await?;
            // Either side may hang up as it likes.
            if let Err(error) = copied {
                tracing::trace!(sandbox = %self.id, %error, "a connection to a published port broke");
            }
            Ok::<_, Error>(())
        };
        // What is dropped is a connection, which may break at any time.
        let ended = tokio::select! {
            ended = carried => ended,
            () = self.token.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(sandbox = %self.id, port = port.port, %error, "a published port leads nowhere now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(port: u16) -> PublishedPort {
        PublishedPort { port, host_port: 0 }
    }

    #[test]
    fn ports_are_bound_on_loopback_all_or_none() {
        let bound = Bound::bind(&[any(80), any(81)]).expect("free ports");
        let ports = bound.ports();
        assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
        assert_ne!(ports[0].host_port, ports[1].host_port);
        for (port, listener) in &bound.0 {
            let expected = SocketAddr::from((Ipv4Addr::LOCALHOST, port.host_port));
            assert_eq!(listener.local_addr().expect("bound"), expected);
        }
        let taken = PublishedPort { port: 80, host_port: ports[0].host_port };
        let error = Bound::bind(&[any(82), taken]).expect_err("taken");
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.message().contains(&ports[0].host_port.to_string()), "{error}");
        drop(bound);
        Bound::bind(&[taken]).expect("free again");
    }
}
