//! Connections to a guest, made in the network namespace that its QEMU lives in: the guest has the same address in all.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    thread::ThreadNameSpaceType,
};
use sandhaus_protocol::guest::{GUEST_ADDRESS, PORT, POWER_OFF_PATH};
use sandhaus_sandbox::engine::{EngineError, EngineResult, GuestStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a guest may take to answer to a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long one attempt may take while a guest starts: until it listens, most are lost.
const ATTEMPT_MAX: Duration = Duration::from_millis(200);

/// Pause after an attempt that was refused.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// Longest line that an answer may begin with.
const STATUS_BYTES_MAX: u64 = 256;

/// What became of a guest that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Its agent listens.
    Listens,
    /// Its QEMU ended.
    Ended,
    /// Neither, in time.
    Late,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(GUEST_ADDRESS).into(), port)
}

/// Connects to a port of the guest whose QEMU `process` is.
pub(super) async fn tcp(process: &OwnedFd, port: u16) -> EngineResult<GuestStream> {
    let connect = crate::net::dial(process, address(port));
    let connected = tokio::time::timeout(CONNECT_MAX, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| match error.kind() {
        // Nobody listens there, or all is on its way out.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::NotFound => {
            EngineError::NotFound
        }
        _ => EngineError::host("dial machine", error),
    })
}

/// Connects to the agent.
pub(super) async fn agent(process: &OwnedFd) -> EngineResult<GuestStream> {
    tcp(process, PORT).await
}

/// Asks the agent to switch the machine off; whether it said that it would.
pub(super) async fn ask_to_power_off(process: &OwnedFd) -> EngineResult<bool> {
    let host = |error: io::Error| EngineError::host("ask machine to switch off", error);
    let exchange = async {
        let mut stream = agent(process).await?;
        let request = format!(
            "POST {POWER_OFF_PATH} HTTP/1.1\r\nhost: guest\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(host)?;
        let mut answer = Vec::new();
        stream.take(STATUS_BYTES_MAX).read_to_end(&mut answer).await.map_err(host)?;
        Ok(answer.starts_with(b"HTTP/1.1 2"))
    };
    match tokio::time::timeout(CONNECT_MAX, exchange).await {
        Ok(answered) => answered,
        Err(_) => Err(host(io::ErrorKind::TimedOut.into())),
    }
}

/// Waits until the agent listens, its QEMU ends, or the time is over.
pub(super) async fn await_agent(process: &OwnedFd, limit: Duration) -> io::Result<Awaited> {
    let process = process.try_clone()?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // The thread goes elsewhere for good, so it is one that ends with this.
    std::thread::Builder::new().name("await-guest".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = sender.send(await_inside(&process, limit));
    })?;
    receiver.await.map_err(io::Error::other)?
}

fn await_inside(process: &OwnedFd, limit: Duration) -> io::Result<Awaited> {
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK)?;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let begun = rustix::net::connect(&socket, &address(PORT));
        let refused = match begun {
            Ok(()) => return Ok(Awaited::Listens),
            Err(Errno::INPROGRESS) => {
                let mut both = [PollFd::new(&socket, PollFlags::OUT), PollFd::new(process, PollFlags::IN)];
                wait(&mut both, ATTEMPT_MAX)?;
                if !both[1].revents().is_empty() {
                    return Ok(Awaited::Ended);
                }
                if both[0].revents().is_empty() {
                    // Lost on the way to a guest that does not listen to its card yet: the next one goes out at once,
                    // where this one would be sent again only after a second.
                    continue;
                }
                match sockopt::socket_error(&socket)? {
                    Ok(()) => return Ok(Awaited::Listens),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::trace!(%refused, "the guest is not up yet");
        let mut ended = [PollFd::new(process, PollFlags::IN)];
        wait(&mut ended, ATTEMPT_PAUSE)?;
        if !ended[0].revents().is_empty() {
            return Ok(Awaited::Ended);
        }
    }
    Ok(Awaited::Late)
}

fn wait(events: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).ok();
    match rustix::event::poll(events, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
