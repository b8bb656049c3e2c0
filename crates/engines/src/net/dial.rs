//! Connections into another network namespace.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    thread::ThreadNameSpaceType,
};
use sandhaus_sandbox::engine::GuestStream;
use tokio::net::TcpSocket;

/// Connects to an address as it is in the network namespace of a process, given by a descriptor of it.
pub(crate) async fn tcp(process: &OwnedFd, address: SocketAddr) -> io::Result<GuestStream> {
    let process = process.try_clone()?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A socket belongs to the namespace it is made in, so only that happens in there. The thread ends with it: one
    // that stayed would keep the namespace alive.
    std::thread::Builder::new().name("enter-network".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = sender.send(socket_inside(&process, address));
    })?;
    let socket = receiver.await.map_err(io::Error::other)??;
    let socket = TcpSocket::from_std_stream(socket.into());
    Ok(GuestStream::new(socket.connect(address).await?))
}

fn socket_inside(process: &OwnedFd, address: SocketAddr) -> io::Result<OwnedFd> {
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}
