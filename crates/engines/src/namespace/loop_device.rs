//! Disks within files: a loop device that goes with its last user, and the ext4 file system on it as a mount.

#![expect(unsafe_code, reason = "loop devices are driven by ioctl")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::MountAttrFlags,
};

use super::mounting::{self, Parameter};

/// How often another process may take the free device before we do.
const ATTEMPTS_MAX: usize = 64;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Mounts the ext4 file system in `image`, attached nowhere. Device and mount last as long as somebody uses them.
pub(super) fn mount_image(image: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(image, flags, Mode::empty())?;
    // The device stays open until it is mounted: it clears itself with its last user.
    let (_device, path) = attach_device(&file)?;
    mounting::new_file_system(
        "ext4",
        &[
            Parameter::Text("source", &path),
            Parameter::Flag("noinit_itable"),
            // What is deleted inside shrinks the file outside.
            Parameter::Flag("discard"),
            // Nothing here outlives a power cut by promise; without this the end of a machine waits for the disk.
            Parameter::Flag("nobarrier"),
        ],
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
}

/// Puts `file` behind a free loop device.
fn attach_device(file: &OwnedFd) -> io::Result<(OwnedFd, String)> {
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: takes no pointer.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = format!("/dev/loop{number}");
        let device = rustix::fs::open(&*path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: all fields are plain numbers, for which zero is valid.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.descriptor = file.as_raw_fd().cast_unsigned();
        config.info.flags = LO_FLAGS_AUTOCLEAR;
        // SAFETY: the block has the layout of loop_config and lives through the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok((device, path));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}
