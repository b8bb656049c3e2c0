//! Waiting for devices: the kernel tells of each one that appears.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
    },
};

/// The group of what the kernel itself says.
const KERNEL_GROUP: u32 = 1;

/// A device is looked for again after so long even if nothing was told: what overflowed is lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Longest message.
const MESSAGE_BYTES_MAX: usize = 8192;

/// What the kernel tells from now on.
pub(super) struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Listens.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, Some(KOBJECT_UEVENT))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// Looks with each change whether `find` finds what it looks for; `None` when the time is over.
    pub(super) fn wait_for<T>(
        &self,
        patience: Duration,
        mut find: impl FnMut() -> Option<T>,
    ) -> io::Result<Option<T>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = find() {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = Timespec::try_from(left.min(LOOK_AGAIN)).expect("a short time");
            match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut message = [0_u8; MESSAGE_BYTES_MAX];
            // That something was told is enough; what, the next look sees.
            while rustix::net::recv(&self.socket, &mut message[..], RecvFlags::empty()).is_ok() {}
        }
    }
}
