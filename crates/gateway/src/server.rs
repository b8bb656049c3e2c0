//! Connections: how many, how large their heads, how long they may idle, and how they end.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::{
    Request, Response,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{edge::Edge, metrics::UPKEEP_INTERVAL};

/// Most connections at once; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;

/// From the end of one answer (or from the connection's start) to the last byte of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest request head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes buffered per connection and direction.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// How long requests in flight may go on once the server ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Pause after a failed accept, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `shutdown`, then lets them end.
pub(crate) async fn run(
    listener: TcpListener,
    edge: Arc<Edge>,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let upkeep = tokio::spawn(keep_metrics(Arc::clone(&edge)));

    loop {
        // Cancel-safe: an accepted connection or permit is only given away when its arm wins.
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept connections");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        let routed = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            routed.call(request)
        });
        let io = TokioIo::new(Lingering::new(stream));
        let connection = http.serve_connection(io, service).with_upgrades();
        connections.spawn(drive(connection, edge.ending.clone(), cut.clone(), permit));
    }

    drop(listener);
    edge.ending.cancel();
    connections.close();
    edge.upgraded.close();
    let ended = async {
        connections.wait().await;
        edge.upgraded.wait().await;
    };
    if tokio::time::timeout(SHUTDOWN_GRACE, ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests still in flight at the end are cut");
        cut.cancel();
        connections.wait().await;
    }
    upkeep.abort();
    Ok(())
}

/// Who is at the other end of a request's connection: a proxy, where there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Serves one connection. What fails on it is the peer's: it hung up, spoke nonsense, or was too slow.
async fn drive<S>(
    connection: http1::UpgradeableConnection<TokioIo<Lingering>, S>,
    ending: CancellationToken,
    cut: CancellationToken,
    _permit: Permit,
) where
    S: Service<Request<Incoming>, Response = Response<axum::body::Body>, Error = Infallible>,
{
    let mut connection = std::pin::pin!(connection);
    // Cancel-safe: the connection is only borrowed, and goes on below.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "connection ended");
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<(TcpStream, Peer, Permit)> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, address) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, Peer(address.ip()), permit))
}

async fn keep_metrics(edge: Arc<Edge>) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        edge.metrics.upkeep();
    }
}

/// Bytes read and thrown away after an answer, before the connection is closed.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// How long a peer may go on sending after an answer.
const LINGER_TIME_MAX: Duration = Duration::from_secs(5);

/// How long to wait for a peer that sends nothing.
const LINGER_QUIET: Duration = Duration::from_millis(50);

/// A stream that on closing first reads what the peer still sends. Without it, a request refused before its body was
/// read would end in a reset that takes the answer with it.
struct Lingering {
    stream: TcpStream,
    linger: Option<Linger>,
}

struct Linger {
    quiet: Pin<Box<Sleep>>,
    until: Instant,
    bytes: usize,
}

impl Lingering {
    fn new(stream: TcpStream) -> Self {
        Self { stream, linger: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Linger {
            quiet: Box::pin(tokio::time::sleep(LINGER_QUIET)),
            until: Instant::now() + LINGER_TIME_MAX,
            bytes: 0,
        });
        let mut scratch = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.bytes += buffer.filled().len();
                    let now = Instant::now();
                    if linger.bytes > LINGER_BYTES_MAX || now >= linger.until {
                        return Poll::Ready(Ok(()));
                    }
                    linger.quiet.as_mut().reset(now + LINGER_QUIET);
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.quiet.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
