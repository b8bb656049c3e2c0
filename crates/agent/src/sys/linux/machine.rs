//! What is a machine's own: its clock, its random numbers, its name, its disks, its end.

#![expect(unsafe_code, reason = "these ioctls have no safe wrapper")]

use std::{
    fs::{self, File},
    io,
    mem::size_of,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    path::Path,
};

use rustix::{
    mount::{MountFlags, UnmountFlags},
    system::RebootCommand,
    time::{ClockId, Timespec},
};

use super::{
    signals::SYSTEMD_POWER_OFF,
    spawn::{Command, Session},
};

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// Adds bytes to the kernel's pool and counts them as random: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// Has the kernel draw from the pool at once what it makes numbers of: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Makes a mounted ext4 as large as so many of its blocks: `_IOW('f', 16, __u64)`, of the kernel's `ext4.h`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// What `statfs` calls ext4.
const EXT4_SUPER_MAGIC: u64 = 0xef53;

/// Bytes of what `/sys` counts disks in.
const SECTOR_BYTES: u64 = 512;

/// There while systemd is the first process.
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// Bytes of entropy that go into the pool with one call.
const ENTROPY_AT_ONCE: usize = 64;

/// Sets the machine's clock.
pub(crate) fn set_clock(unix_time_ns: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: unix_time_ns.div_euclid(NANOSECONDS_PER_SECOND),
        tv_nsec: unix_time_ns.rem_euclid(NANOSECONDS_PER_SECOND),
    };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// What `RNDADDENTROPY` takes: `struct rand_pool_info` with room for the bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_AT_ONCE],
}

/// Adds to the kernel's random numbers what nobody else knows. From then on two copies draw different ones.
pub(crate) fn seed_random(entropy: &[u8]) -> io::Result<()> {
    let device = File::open("/dev/urandom")?;
    for piece in entropy.chunks(ENTROPY_AT_ONCE) {
        let length = libc::c_int::try_from(piece.len()).expect("a piece is short");
        let mut info = PoolInfo { entropy_bits: length * 8, bytes: length, buffer: [0; ENTROPY_AT_ONCE] };
        info.buffer[..piece.len()].copy_from_slice(piece);
        // SAFETY: the kernel reads the two numbers and as many bytes as the second says, which are there.
        checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    }
    // SAFETY: takes no argument.
    match checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }) {
        // Said by a pool that has not counted enough yet: it draws from it anew as soon as it has.
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        other => other,
    }
}

/// Sets the kernel's host name.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Everything written so far reaches the disks.
pub(crate) fn flush_disks() {
    rustix::fs::sync();
}

/// Has the root file system stand still; false where it cannot, as one in memory. Frozen already is success.
pub(crate) fn freeze_root() -> io::Result<bool> {
    match root_ioctl(FIFREEZE) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EBUSY) => Ok(true),
            Some(libc::EOPNOTSUPP | libc::ENOTTY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Lets it go on; false if it did.
pub(crate) fn thaw_root() -> io::Result<bool> {
    match root_ioctl(FITHAW) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Has the root file system take all of its disk or partition, which may have become larger. Only ext4 can do that by
/// itself; of any other it is false.
pub(crate) fn grow_root() -> io::Result<bool> {
    let root = File::open("/")?;
    let system = rustix::fs::fstatfs(&root)?;
    if u64::try_from(system.f_type) != Ok(EXT4_SUPER_MAGIC) {
        return Ok(false);
    }
    let device = rustix::fs::fstat(&root)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let block_bytes = u64::try_from(system.f_bsize).map_err(io::Error::other)?;
    let blocks = sectors * SECTOR_BYTES / block_bytes;
    // SAFETY: the kernel reads one number of 64 bits, which is there. One that is as large already is left alone.
    checked(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) })?;
    Ok(true)
}

fn root_ioctl(request: libc::c_ulong) -> io::Result<()> {
    let root = File::open("/")?;
    // SAFETY: the argument of both is a number that the kernel does not look at.
    checked(unsafe { libc::ioctl(root.as_raw_fd(), request, 0) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Cuts every TCP connection of this process but the one to `kept`: who was on the other side is gone, without a word
/// that would ever come, and whoever waits for it here is to know now.
pub(crate) fn sever_connections(kept: SocketAddr) {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    for number in numbers.collect::<Vec<_>>() {
        // SAFETY: this thread alone opens and closes descriptors of sockets, and closes none during the call; a number that
        // was the listing's own answers an error.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        let peer = rustix::net::getpeername(socket).ok().flatten();
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        if peer.is_some_and(|peer| peer != kept) {
            // One that broke already is cut.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

/// Asks systemd, if that is the first process here; false if it is not.
pub(crate) fn ask_systemd_for_power_off() -> bool {
    if !Path::new(SYSTEMD_RUNS).is_dir() {
        return false;
    }
    // SAFETY: plain numbers.
    unsafe { libc::kill(1, SYSTEMD_POWER_OFF) == 0 }
}

/// A program of the guest with nothing of the agent's, as the agent's own user.
pub(crate) fn bare_command(argv: &[String]) -> Command<'_> {
    static NO_VARIABLES: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    Command { argv, env: &NO_VARIABLES, cwd: "/", descriptors: &[], session: Session::Own, workload: None }
}

/// Switches the machine off: what is written reaches the disks, file systems are left or made read-only, then the power.
pub(crate) fn switch_off() -> io::Result<()> {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The latest lie upon the others.
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if mount != "/" {
            // In use, or a path with escapes: the root goes read-only anyway, and the flush above counts.
            let _ = rustix::mount::unmount(mount, UnmountFlags::empty());
        }
    }
    let _ = rustix::mount::mount_remount("/", MountFlags::RDONLY, "");
    rustix::fs::sync();
    Ok(rustix::system::reboot(RebootCommand::PowerOff)?)
}

const _: () = assert!(size_of::<PoolInfo>() == 2 * size_of::<libc::c_int>() + ENTROPY_AT_ONCE);
