//! Network namespaces, made from outside: nobody who lives in one owns it, so nobody there can change it.

#![expect(unsafe_code, reason = "unshare has no safe binding")]

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};

use super::{
    Tenants,
    route::{LOOPBACK, Routes},
};

/// The namespace of the calling thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What everybody inside may do, since nobody there has rights over the namespace: use every port, and ping. Whatever
/// interface comes later has no IPv6.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
];

/// A network namespace with its loopback device up.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// The namespace. It lives as long as this or a process in it.
    pub(crate) namespace: OwnedFd,
    /// `/sys` as it is in there, read-only and attached nowhere; a host that hides parts of its own gives none.
    pub(crate) sys: Option<OwnedFd>,
    /// The guest's tap, where a guest is to live here. It is there as long as this or a copy of it.
    pub(crate) tap: Option<OwnedFd>,
}

/// The namespace of the calling thread, to come back to.
pub(super) fn own() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(OWN_NAMESPACE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a namespace. The calling thread is in `home` before and after.
pub(super) fn make(home: &OwnedFd, tenants: Tenants) -> io::Result<(Namespace, Routes)> {
    // SAFETY: only the network namespace changes, and only of this thread; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    let _back = Back(home);
    let routes = Routes::open()?;
    routes.raise(LOOPBACK)?;
    for (path, value) in SETTINGS {
        // A kernel without IPv6 has no such file; a host that forbids the rest only takes a comfort away.
        if let Ok(mut file) = fs_err::OpenOptions::new().write(true).open(path) {
            let _ = file.write_all(value.as_bytes());
        }
    }
    let sys = match tenants {
        Tenants::Processes => sys().ok(),
        Tenants::Guests => None,
    };
    Ok((Namespace { namespace: own()?, sys, tap: None }, routes))
}

/// Does something in a namespace. The calling thread is in `home` before and after.
pub(super) fn within<T>(
    home: &OwnedFd,
    namespace: &OwnedFd,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let _back = Back(home);
    work()
}

/// `/sys` of the calling thread's network namespace.
fn sys() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Brings the thread back, however its stay ends.
struct Back<'a>(&'a OwnedFd);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let back =
            rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network));
        // What the thread does next would hit the wrong namespace.
        back.expect("a namespace that this thread was in can be entered again");
    }
}
