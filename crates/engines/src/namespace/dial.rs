//! Connections into a machine.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};
use sandhaus_sandbox::engine::{EngineError, EngineResult, GuestStream};
use tokio::net::UnixStream;

use crate::net;

/// The agent's socket in a machine's directory.
pub(super) const AGENT_SOCKET: &str = "agent.sock";

/// Longest path that fits a socket address with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections that may wait for the agent to take them.
const BACKLOG: i32 = 1024;

/// Connects to the agent of the machine in `directory`.
pub(super) async fn agent(directory: &Path) -> EngineResult<GuestStream> {
    let path = directory.join(AGENT_SOCKET);
    let connected = if path.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX {
        UnixStream::connect(&path).await
    } else {
        let directory = open_directory(directory).map_err(not_there)?;
        UnixStream::connect(short_path(&directory)).await
    };
    connected.map(GuestStream::new).map_err(not_there)
}

/// Makes the agent's listening socket in `directory`.
pub(super) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // By descriptor: a data directory of any depth fits, and the inside learns nothing of where it lies.
    let address = rustix::net::SocketAddrUnix::new(short_path(&directory))?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to a TCP port of the machine that `process` is the first of: on its loopback device, by either version of
/// the protocol, or else on its own address.
pub(super) async fn tcp(process: &OwnedFd, own: Option<Ipv4Addr>, port: u16) -> EngineResult<GuestStream> {
    let own = own.map(IpAddr::V4);
    let places = [Some(Ipv4Addr::LOCALHOST.into()), Some(Ipv6Addr::LOCALHOST.into()), own];
    for address in places.into_iter().flatten() {
        match net::dial(process, SocketAddr::new(address, port)).await {
            // Nobody listens there, or the machine does not speak that version.
            Err(error) if is_refusal(&error) => {}
            other => return other.map_err(not_there),
        }
    }
    Err(EngineError::NotFound)
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
        || matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::ENETUNREACH))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn short_path(directory: &OwnedFd) -> String {
    format!("{}/{AGENT_SOCKET}", super::mounting::magic_link(directory))
}

/// Nobody listens there: the machine or the port is not up.
fn not_there(error: io::Error) -> EngineError {
    match error.kind() {
        // The last of these: it ended while it had yet to take the connection.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            EngineError::NotFound
        }
        _ => EngineError::host("dial machine", error),
    }
}
