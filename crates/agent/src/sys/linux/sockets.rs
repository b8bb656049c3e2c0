//! Sockets that are opened for the workload: with its user and group, so that the other side sees it and not the agent.

#![expect(unsafe_code, reason = "the kernel's per-thread identity calls have no safe wrapper")]

use std::{
    io,
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};
use sandhaus_protocol::boot::Workload;

use super::identity::{enter_workload_thread, own_ids};

/// Leaves an id as it is.
const SAME: libc::c_long = -1;

/// Runs `action` on this thread, which is one for files, as the workload in every respect: who is asked who is there
/// answers the workload. Refused where the thread cannot become it.
fn as_workload<T>(workload: Option<&Workload>, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(workload) = workload else { return action() };
    let (uid, gid) = own_ids();
    if (uid, gid) == (workload.uid, workload.gid) {
        return action();
    }
    become_effective(workload.uid, workload.gid)?;
    let result = action();
    // The saved ids allow it always; going on as someone else would mix the two up.
    become_effective(uid, gid).expect("a thread can become again who it was");
    enter_workload_thread(workload);
    result
}

/// Changes who this thread is taken for. By raw calls: the C library's would change every thread.
fn become_effective(uid: u32, gid: u32) -> io::Result<()> {
    let checked = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // Whoever may change both may change the group only as long as it is privileged.
    if uid == 0 {
        // SAFETY: plain numbers; only this thread's credentials change.
        checked(unsafe { libc::syscall(libc::SYS_setresuid, SAME, libc::c_long::from(uid), SAME) })?;
        // SAFETY: as above.
        return checked(unsafe { libc::syscall(libc::SYS_setresgid, SAME, libc::c_long::from(gid), SAME) });
    }
    // SAFETY: as above.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, SAME, libc::c_long::from(gid), SAME) })?;
    // SAFETY: as above.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, SAME, libc::c_long::from(uid), SAME) })
}

fn socket(family: AddressFamily) -> io::Result<rustix::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Connects to the socket at a path. One whose queue is full counts as one that does not answer.
pub(crate) fn connect_local(path: &str, workload: Option<&Workload>) -> io::Result<UnixStream> {
    as_workload(workload, || {
        let socket = socket(AddressFamily::UNIX)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    })
}

/// Listens at a path where nothing is yet, for the workload alone.
pub(crate) fn listen_local(
    path: &str,
    waiting: i32,
    workload: Option<&Workload>,
) -> io::Result<UnixListener> {
    as_workload(workload, || bind_local(path, waiting))
}

/// The same in a folder that is made for it.
pub(crate) fn listen_in_folder(
    folder: &str,
    name: &str,
    waiting: i32,
    workload: Option<&Workload>,
) -> io::Result<UnixListener> {
    as_workload(workload, || {
        rustix::fs::mkdir(folder, Mode::RWXU)?;
        bind_local(&format!("{folder}/{name}"), waiting)
    })
}

fn bind_local(path: &str, waiting: i32) -> io::Result<UnixListener> {
    let socket = socket(AddressFamily::UNIX)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before it listens.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, waiting)?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket, or a folder made for one with it. Anything else stays.
pub(crate) fn remove_socket(path: &str) {
    let Ok(stat) = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) else { return };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => drop(rustix::fs::unlink(path)),
        FileType::Directory => {
            remove_socket(&format!("{path}/agent"));
            let _ = rustix::fs::rmdir(path);
        }
        _ => {}
    }
}

/// Listens at an address.
pub(crate) fn listen_tcp(address: SocketAddr, waiting: i32) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, waiting)?;
    Ok(socket.into())
}

/// The same, with no more right to a port than the workload has.
pub(crate) fn listen_tcp_as(
    address: SocketAddr,
    waiting: i32,
    workload: Option<&Workload>,
) -> io::Result<std::net::TcpListener> {
    as_workload(workload, || listen_tcp(address, waiting))
}
