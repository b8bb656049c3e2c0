//! Connections into a machine.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    thread::ThreadNameSpaceType,
};
use sandhaus_sandbox::engine::{EngineError, EngineResult, GuestStream};
use tokio::net::{TcpSocket, UnixStream};

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

/// Connects to a TCP port on the loopback device of the machine that `process` is the first of.
pub(super) async fn tcp(process: &OwnedFd, port: u16) -> EngineResult<GuestStream> {
    let process = process.try_clone().map_err(|error| EngineError::host("enter machine's network", error))?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A socket belongs to the namespace it is made in, so only that happens in there. The thread ends with it: one
    // that stayed would keep the namespace alive.
    std::thread::Builder::new()
        .name("enter-network".to_owned())
        .spawn(move || {
            // Whoever asked may have gone.
            let _ = sender.send(socket_inside(&process));
        })
        .map_err(|error| EngineError::host("enter machine's network", error))?;
    let socket = receiver
        .await
        .map_err(|error| EngineError::host("enter machine's network", error))?
        .map_err(not_there)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.map_err(not_there)?;
    Ok(GuestStream::new(stream))
}

fn socket_inside(process: &OwnedFd) -> io::Result<OwnedFd> {
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
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
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => EngineError::NotFound,
        _ => EngineError::host("dial machine", error),
    }
}
