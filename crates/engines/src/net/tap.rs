//! The device by which a guest's packets come and go.

#![expect(unsafe_code, reason = "attaching to a tap is an ioctl without a safe binding")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags};

/// Where taps are asked for.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// Makes a tap in the calling thread's network namespace. It is there as long as the descriptor, or a copy of it. Packets
/// bear the header by which a guest and the kernel leave checksums and the cutting of segments to each other.
pub(super) fn make(name: &str) -> io::Result<OwnedFd> {
    let tap = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // The last byte stays the closing zero.
    for (place, byte) in ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let ifru_flags = libc::c_short::try_from(flags).expect("flags of interfaces are short");
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives until the call is over.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(tap) }
}
