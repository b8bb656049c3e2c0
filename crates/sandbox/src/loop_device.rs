//! Files as block devices: a loop device that goes with its last user.

#![expect(unsafe_code, reason = "loop devices are driven by ioctl")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags},
    io::Errno,
};

/// How often another process may take the free device before we do.
const ATTEMPTS_MAX: usize = 64;

const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
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

/// A loop device, open: as long as this or a mount of it lives, it keeps its file.
#[derive(Debug)]
pub struct LoopDevice {
    descriptor: OwnedFd,
    path: String,
}

impl LoopDevice {
    /// Puts `file` behind a free device.
    pub fn attach(file: &OwnedFd) -> io::Result<Self> {
        let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        for _ in 0..ATTEMPTS_MAX {
            // SAFETY: takes no pointer.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let device = Self::open(format!("/dev/loop{number}"), OFlags::RDWR)?;
            // SAFETY: all fields are plain numbers, for which zero is valid.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.descriptor = file.as_raw_fd().cast_unsigned();
            config.info.flags = LO_FLAGS_AUTOCLEAR;
            // SAFETY: the block has the layout of loop_config and lives through the call.
            let done =
                unsafe { libc::ioctl(device.descriptor.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            if done == 0 {
                return Ok(device);
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// The one device on `file`: two would be two file systems in one file, which destroy each other. It is looked for
    /// and, if there is none, attached while this process alone may do so.
    pub fn share(file: &OwnedFd) -> io::Result<Self> {
        // An open file description of its own: that of `file` goes to the device, and a lock on it would stay with it.
        let lock = rustix::fs::open(
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        match Self::find(file)? {
            Some(device) => Ok(device),
            None => Self::attach(file),
        }
    }

    /// The device that has this file, if there is one.
    pub(crate) fn find(file: &OwnedFd) -> io::Result<Option<Self>> {
        let wanted = rustix::fs::fstat(file)?;
        for entry in fs_err::read_dir("/sys/block")? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
            // Only devices in use have this; opening others would be a waste.
            if rustix::fs::access(format!("/sys/block/{name}/loop"), rustix::fs::Access::EXISTS).is_err() {
                continue;
            }
            let device = match Self::open(format!("/dev/{name}"), OFlags::RDONLY) {
                Ok(device) => device,
                // It goes just now, or its node is not there.
                Err(Errno::NXIO | Errno::NOENT | Errno::NODEV) => continue,
                Err(error) => return Err(error.into()),
            };
            // Held open by us now, it stays what it is.
            let Some(info) = device.info()? else { continue };
            if (info.device, info.inode) != (wanted.st_dev, wanted.st_ino) {
                continue;
            }
            if info.offset != 0 || info.size_limit != 0 || info.flags & LO_FLAGS_READ_ONLY != 0 {
                // Somebody looks at it by other means.
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            return Ok(Some(device));
        }
        Ok(None)
    }

    fn open(path: String, access: OFlags) -> Result<Self, Errno> {
        Ok(Self {
            descriptor: rustix::fs::openat(CWD, &*path, access | OFlags::CLOEXEC, Mode::empty())?,
            path,
        })
    }

    /// What it stands for; `None` if for nothing.
    fn info(&self) -> io::Result<Option<LoopInfo>> {
        // SAFETY: all fields are plain numbers, for which zero is valid.
        let mut info: LoopInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the block has the layout of loop_info64, is writable and lives through the call.
        let done = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        if done == 0 {
            return Ok(Some(info));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
    }

    /// Its path, for a mount.
    pub fn path(&self) -> &str {
        &self.path
    }
}
